//! The rows of the table. Each is one function that carries out its attack on the plain program and then on
//! ringfence.

use crate::{
    Row, RowError,
    process::{Event, Process, TIME_LIMIT},
    setup::{Program, Setup, User},
};

mod address;
mod broadcast;
mod closing;
mod fork;
mod injection;
mod insider;
mod line;
mod merge;
mod namespace;
mod node;
mod object;
mod peer;
mod ring;
mod signals;

/// The table, in order. The macro `then` receives the rows: this crate makes a list of them, and the tests a
/// test for each.
#[macro_export]
macro_rules! with_rows {
    ($then:ident) => {
        $then! {
            1 row_01_o_path_descriptor "SU" "takes an O_PATH descriptor between create and unlink, and opens it later" true insider::o_path_descriptor;
            2 row_02_hard_link "SU" "makes a hard link between create and unlink" true object::hard_link;
            3 row_03_proc_fd "SU" "opens /proc/PID/fd/N during the handshake" true insider::proc_fd;
            4 row_04_getfd "SU" "copies the object's descriptor with pidfd_getfd during the handshake" true insider::getfd;
            5 row_05_kept_o_path_descriptor "SU" "opens an O_PATH descriptor after both sides closed theirs" true insider::kept_o_path_descriptor;
            6 row_06_lease_break "SU" "breaks the lease to kill its holder with SIGIO" true insider::lease_break;
            7 row_07_memory "SU" "reads /proc/PID/mem" true insider::memory;
            8 row_08_core_dump "SU" "raises the core limit, sends SIGABRT, reads the core" true insider::core_dump;
            9 row_09_traced "SU" "starts the genuine program under ptrace" true injection::traced;
            10 row_10_ld_preload "SU" "injects code into the genuine program with LD_PRELOAD" true injection::ld_preload;
            11 row_11_node_options "SU" "injects code into a genuine Node program with NODE_OPTIONS=--require" true node::node_options;
            12 row_12_inspector "SU/OU" "sends SIGUSR1, and reads the memory through the inspector" true node::inspector;
            13 row_13_faked_executable "SU" "fakes its executable with PR_SET_MM_MAP in its own user namespace" true injection::faked_executable;
            14 row_14_exec_after_connect "SU" "connects, leaves the socket to another process, and executes the genuine program" true peer::exec_after_connect;
            15 row_15_exec_after_listen "SU" "does the same with a listening socket" true peer::exec_after_listen;
            16 row_16_pid_reuse "SU" "exits after connecting, and another process gets its pid before /proc is read" true peer::pid_reuse;
            17 row_17_zombie "SU" "dies and is not reaped" true peer::zombie;
            18 row_18_exec_after_check "MP" "executes another program after the check" true peer::exec_after_check;
            19 row_19_same_inode "SU" "runs an executable with the same inode number on another filesystem" true namespace::same_inode;
            20 row_20_other_arguments "SU" "runs the same executable with other arguments" true injection::other_arguments;
            21 row_21_other_user "OU" "connects" false peer::other_user;
            22 row_22_unmapped_uid "OU" "has no uid in the user namespace, like the victim" true namespace::unmapped_uid;
            23 row_23_pid_zero "OU" "lives in another pid namespace (pid 0)" false namespace::pid_zero;
            24 row_24_occupied_address "OU" "binds the address first" true address::occupied_address;
            25 row_25_backlog "OU" "fills the socket's backlog" true address::backlog;
            26 row_26_silent_clients "SU" "connects many times and sends nothing" true address::silent_clients;
            27 row_27_stale_race "SU" "races for a stale socket file with another starting process" true address::stale_race;
            28 row_28_forged_leave_signal "SU" "forges a realtime signal \"I am leaving\"" true signals::forged_leave_signal;
            29 row_29_full_signal_queue "SU" "fills the signal queue" true signals::full_signal_queue;
            30 row_30_truncate "MP" "truncates the passed object" true object::truncate;
            31 row_31_full_tmpfs "MP/OU" "fills the tmpfs" true object::full_tmpfs;
            32 row_32_write_to_peer_ring "MP" "writes into the ring that it should only read" true object::write_to_peer_ring;
            33 row_33_malformed_ring "MP" "writes a false tail, head, length or flags at any moment" true ring::malformed_ring;
            34 row_34_double_fetch "MP" "changes a message while it is read" true ring::double_fetch;
            35 row_35_invalid_object "MP" "passes an invalid object, too many objects, or none" true object::invalid_object;
            36 row_36_line_abuse "MP" "sets O_NONBLOCK, fills the buffer, sends garbage, or sends nothing on the line" true line::line_abuse;
            37 row_37_inheritance "child" "forks and executes another program at any moment" true object::inheritance;
            38 row_38_peer_never_reads "MP" "never reads" true line::peer_never_reads;
            39 row_39_pidfds "MP" "sets SO_PASSPIDFD on the line that it passes, and sends frames byte by byte" true line::pidfds;
            40 row_40_forged_credentials "SU" "forges the credentials of messages from its own pid namespace" true namespace::forged_credentials;
            41 row_41_huge_ring "MP" "passes a ring of 1 TiB, or exits and leaves a full ring of 256 MiB" true ring::huge_ring;
            42 row_42_slot_exhaustion "MP" "tries to take every slot of a service" true address::slot_exhaustion;
            43 row_43_dropped_group "MP" "drops the group that the policy requires, while /proc hides the process" true namespace::dropped_group;
            44 row_44_without_descriptors "NR" "runs out of descriptors while a healthy peer is checked" true peer::without_descriptors;
            45 row_45_concurrent_close "MP" "closes, half-closes or leaves at every moment of the peer's close" true closing::concurrent_close;
            46 row_46_malformed_head "MP" "subscribes and writes a false head: backwards, past the tail, unaligned, changing" true broadcast::malformed_head;
            47 row_47_slow_subscriber "MP" "subscribes and never reads, reads slowly, sends no wakeup, is stopped, or is a zombie" true broadcast::slow_subscriber;
            48 row_48_write_to_shared_ring "MP" "subscribes and tries to write, truncate, seal or punch holes into the ring" true broadcast::write_to_shared_ring;
            49 row_49_publishers_descriptor "SU" "opens the publisher's descriptor, or the one that a subscriber received" true broadcast::publishers_descriptor;
            50 row_50_connection_flood "OU" "floods a publisher's address with connections" true broadcast::connection_flood;
            51 row_51_subscription_churn "MP" "makes and drops 1,000 subscriptions" true broadcast::subscription_churn;
            52 row_52_malformed_publisher "MP" "publishes a false OFFER, tail, floor, mark, length or flags at any moment" true broadcast::malformed_publisher;
            53 row_53_malformed_codec_input "MP" "sends malformed messages to a codec: truncated, random, deeply nested, or with huge lengths" true node::malformed_codec_input;
            54 row_54_floods_a_merge "MP" "floods one source of a merge" true merge::flooded_source;
            55 row_55_false_alarm "SU" "sends a false alarm (SIGIO) to a process without free descriptors" true signals::false_alarm;
            56 row_56_fork "child" "forks without exec, and uses and drops the inherited handles" true fork::without_exec;
            57 row_57_bad_callback "NR" "has a callback that panics or never returns" true address::bad_callback;
            58 row_58_overwrite_during_visit "MP" "publishes, and overwrites a message while a merge visits it" true broadcast::overwrite_during_visit;
            64 row_64_attachments "MP" "attaches memory that it can change, too much, or other descriptors" true object::attachments;
            65 row_65_publisher_attachments "MP" "publishes, and attaches memory that it can change, too much, or other descriptors" true broadcast::publisher_attachments;
            66 row_66_invalid_replies "MP" "answers a call twice, or a call that was never made" true ring::invalid_replies;
        }
    };
}

macro_rules! list {
    ($($number:literal $test:ident $who:literal $attack:literal $harms:literal $module:ident::$run:ident;)*) => {
        /// All rows, in the order of the table.
        pub const ROWS: &[Row] = &[$(Row {
            number: $number,
            who: $who,
            attack: $attack,
            harms_plain: $harms,
            run: $module::$run,
        }),*];
    };
}

with_rows!(list);

/// The size of the plain program's object in bytes.
const SIZE: usize = 64 * 1024;

/// Whether the host's answer is the error of a lost peer.
fn is_lost(answer: &str) -> bool {
    answer.starts_with("error PEER_LOST")
}

/// Starts an instance of the plain program.
fn plain(setup: &Setup, name: &'static str) -> Result<Process, RowError> {
    setup.spawn(name, User::Agent, Program::Genuine, &["victim", "plain"])
}

/// Starts an instance of a program that uses ringfence.
fn protected(setup: &Setup, name: &'static str) -> Result<Process, RowError> {
    setup.spawn(name, User::Agent, Program::Genuine, &["victim", "ringfence"])
}

/// Starts a ringfence peer that performs each protocol step by hand.
fn hostile(setup: &Setup) -> Result<Process, RowError> {
    setup.spawn(
        "the hostile peer",
        User::Agent,
        Program::Genuine,
        &["hostile", "ringfence"],
    )
}

/// Gives an order and requires an answer that starts with `wanted`.
fn expect_answer(process: &mut Process, order: &str, wanted: &str) -> Result<(), RowError> {
    let answer = process.ask(order)?;
    if answer.starts_with(wanted) {
        return Ok(());
    }
    Err(RowError::wrong(format!(
        "expected {wanted:?} as the answer to {order:?}, got {answer:?}"
    )))
}

/// Starts a pair of the plain program.
fn plain_pair(setup: &Setup, address: &str) -> Result<(Process, Process), RowError> {
    let (mut host, mut guest) = (plain(setup, "the host")?, plain(setup, "the guest")?);
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    Ok((host, guest))
}

/// Starts a host of the plain program that already listens.
fn plain_host(setup: &Setup, address: &str, options: &str) -> Result<Process, RowError> {
    let mut host = plain(setup, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening {options}"))?;
    host.line_after("listening")?;
    Ok(host)
}

/// Starts a ringfence host that already waits for its guest.
fn protected_host(setup: &Setup, address: &str, options: &str) -> Result<Process, RowError> {
    let mut host = protected(setup, "the host")?;
    join_as_host(&mut host, address, options)?;
    Ok(host)
}

/// Makes the same process the host at another address.
fn join_as_host(host: &mut Process, address: &str, options: &str) -> Result<(), RowError> {
    expect_answer(
        host,
        &format!("join-in-background {address} {options}"),
        "joining",
    )?;
    crate::socket::wait_for_listener(address).map_err(RowError::Wrong)
}

/// Starts an honest ringfence pair.
fn protected_pair(setup: &Setup, address: &str, options: &str) -> Result<(Process, Process), RowError> {
    let mut host = protected_host(setup, address, options)?;
    let guest = honest_guest(setup, &mut host, address, options)?;
    Ok((host, guest))
}

/// Starts an honest guest at a waiting host (whatever happened to the host before), and checks that the
/// channel works.
fn honest_guest(
    setup: &Setup,
    host: &mut Process,
    address: &str,
    options: &str,
) -> Result<Process, RowError> {
    let mut guest = protected(setup, "the honest guest")?;
    expect_answer(&mut guest, &format!("join {address} {options}"), "joined guest")?;
    let peer = host.line_after("joined host")?;
    if peer != format!("pid={}", guest.pid()) {
        return Err(RowError::wrong(format!(
            "the host has {peer} instead of the honest guest"
        )));
    }
    exchange_messages(host, &mut guest)?;
    Ok(guest)
}

/// Sends a message in each direction.
fn exchange_messages(one: &mut Process, other: &mut Process) -> Result<(), RowError> {
    expect_answer(one, "send there", "sent")?;
    expect_answer(other, "receive 10000", "got 5 there")?;
    expect_answer(other, "send back", "sent")?;
    expect_answer(one, "receive 10000", "got 4 back")
}

/// Requires that the channel has ended because another process tried to open this side's memory.
fn is_exposed(process: &mut Process) -> Result<(), RowError> {
    expect_answer(process, "receive 10000", "error OBJECT_EXPOSED")?;
    expect_answer(process, "reason", "exposed")
}

/// Starts a host, and a hostile guest that has a channel with it.
fn hostile_channel(
    setup: &Setup,
    address: &str,
    options: &str,
    hostile_options: &str,
) -> Result<(Process, Process), RowError> {
    let mut host = protected_host(setup, address, options)?;
    let mut hostile = hostile(setup)?;
    expect_answer(
        &mut hostile,
        &format!("channel {address} {hostile_options}"),
        "channel",
    )?;
    host.line_after("joined host")?;
    Ok((host, hostile))
}

/// Gives an order to a process that the attack should have killed, and returns the result.
fn answer_or_exit(process: &mut Process, order: &str) -> Event {
    process.try_ask(order, TIME_LIMIT)
}
