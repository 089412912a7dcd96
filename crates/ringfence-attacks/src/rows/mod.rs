//! The rows of the table. Each is one function that carries out its attack on the plain program and then on
//! ringfence.

use crate::{
    Row, RowError,
    actor::{Actor, Event, TIME_LIMIT},
    stage::{Program, Stage, Who},
};

mod broadcast;
mod closing;
mod face;
mod fork;
mod insider;
mod line;
mod merge;
mod node;
mod object;
mod peer;
mod place;
mod ring;
mod signals;
mod space;

/// The table, in order. The macro `then` receives the rows: this crate makes a list of them, and the tests a
/// test for each.
#[macro_export]
macro_rules! with_rows {
    ($then:ident) => {
        $then! {
            1 row_01_path_descriptor "SU" "takes an O_PATH descriptor between create and unlink, and opens it later" true insider::path_descriptor;
            2 row_02_hard_link "SU" "makes a hard link between create and unlink" true object::hard_link;
            3 row_03_proc_fd "SU" "opens /proc/PID/fd/N during the handshake" true insider::proc_fd;
            4 row_04_getfd "SU" "copies the object's descriptor with pidfd_getfd during the handshake" true insider::getfd;
            5 row_05_kept_path "SU" "opens an O_PATH descriptor after both sides closed theirs" true insider::kept_path;
            6 row_06_lease_break "SU" "breaks the lease to kill its holder with SIGIO" true insider::lease_break;
            7 row_07_memory "SU" "reads /proc/PID/mem" true insider::memory;
            8 row_08_core_dump "SU" "raises the core limit, sends SIGABRT, reads the core" true insider::core_dump;
            9 row_09_traced "SU" "starts the genuine program under ptrace" true face::traced;
            10 row_10_preloaded "SU" "injects code into the genuine program with LD_PRELOAD" true face::preloaded;
            11 row_11_node_options "SU" "injects code into a genuine Node program with NODE_OPTIONS=--require" true node::injected;
            12 row_12_inspector "SU/OU" "sends SIGUSR1, and reads the memory through the inspector" true node::inspector;
            13 row_13_worn "SU" "fakes its executable with PR_SET_MM_MAP in its own user namespace" true face::worn;
            14 row_14_borrowed_face "SU" "connects, leaves the socket to another process, and executes the genuine program" true peer::borrowed_face;
            15 row_15_false_host "SU" "does the same with a listening socket" true peer::false_host;
            16 row_16_wrap "SU" "exits after connecting, and another process gets its pid before /proc is read" true peer::wrap;
            17 row_17_zombie "SU" "dies and is not reaped" true peer::zombie;
            18 row_18_turncoat "MP" "executes another program after the check" true peer::turncoat;
            19 row_19_same_inode "SU" "runs an executable with the same inode number on another filesystem" true space::same_inode;
            20 row_20_other_script "SU" "runs the same executable with other arguments" true face::other_script;
            21 row_21_stranger "OU" "connects" false peer::stranger;
            22 row_22_unmapped "OU" "has no uid in the user namespace, like the victim" true space::unmapped;
            23 row_23_pid_zero "OU" "lives in another pid namespace (pid 0)" false space::pid_zero;
            24 row_24_squatter "OU" "binds the address first" true place::squatter;
            25 row_25_backlog "OU" "fills the socket's backlog" true place::backlog;
            26 row_26_silent_crowd "SU" "connects many times and sends nothing" true place::silent_crowd;
            27 row_27_stale_race "SU" "races for a stale socket file with another starting process" true place::stale_race;
            28 row_28_forged_farewell "SU" "forges a realtime signal \"I am leaving\"" true signals::forged_farewell;
            29 row_29_flooded_queue "SU" "fills the signal queue" true signals::flooded_queue;
            30 row_30_truncate "MP" "truncates the passed object" true object::truncate;
            31 row_31_full_tmpfs "MP/OU" "fills the tmpfs" true object::full_tmpfs;
            32 row_32_write_what_it_reads "MP" "writes into the ring that it should only read" true object::write_what_it_reads;
            33 row_33_lies "MP" "writes a false tail, head, length or flags at any moment" true ring::lies;
            34 row_34_double_fetch "MP" "changes a message while it is read" true ring::double_fetch;
            35 row_35_unsound "MP" "passes an invalid object, too many objects, or none" true object::unsound;
            36 row_36_rude "MP" "sets O_NONBLOCK, fills the buffer, sends garbage, or sends nothing on the line" true line::rude;
            37 row_37_inheritance "child" "forks and executes another program at any moment" true object::inheritance;
            38 row_38_never_reads "MP" "never reads" true line::never_reads;
            39 row_39_pidfds "MP" "sets SO_PASSPIDFD on the line that it passes, and sends frames byte by byte" true line::pidfds;
            40 row_40_namesake "SU" "forges the credentials of messages from its own pid namespace" true space::namesake;
            41 row_41_heavy "MP" "passes a ring of 1 TiB, or exits and leaves a full ring of 256 MiB" true ring::heavy;
            42 row_42_greedy "MP" "tries to take every slot of a service" true place::greedy;
            43 row_43_dropped_group "MP" "drops the group that the policy requires, while /proc hides the process" true space::dropped_group;
            44 row_44_without_descriptors "NR" "runs out of descriptors while a healthy peer is checked" true peer::without_descriptors;
            45 row_45_at_every_moment "MP" "closes, half-closes or leaves at every moment of the peer's close" true closing::at_every_moment;
            46 row_46_lying_head "MP" "subscribes and writes a false head: backwards, past the tail, unaligned, changing" true broadcast::lying_head;
            47 row_47_slow "MP" "subscribes and never reads, reads slowly, never rings, is stopped, or is a zombie" true broadcast::slow;
            48 row_48_writes_to_all "MP" "subscribes and tries to write, truncate, seal or punch holes into the ring" true broadcast::writes_to_all;
            49 row_49_publishers_descriptor "SU" "opens the publisher's descriptor, or the one that a subscriber received" true broadcast::publishers_descriptor;
            50 row_50_stranger_floods "OU" "floods a publisher's address with connections" true broadcast::stranger_floods;
            51 row_51_come_and_go "MP" "makes and drops 1,000 subscriptions" true broadcast::come_and_go;
            52 row_52_lying_publisher "MP" "publishes a false OFFER, tail, floor, mark, length or flags at any moment" true broadcast::lying_publisher;
            53 row_53_made_up "MP" "sends malformed messages to a codec: truncated, random, deeply nested, or with huge lengths" true node::made_up;
            54 row_54_floods_a_merge "MP" "floods one source of a merge" true merge::floods_one_source;
            55 row_55_false_alarm "SU" "sends a false alarm (SIGIO) to a process without free descriptors" true signals::false_alarm;
            56 row_56_fork "child" "forks without exec, and uses and drops the inherited handles" true fork::without_exec;
            57 row_57_bad_callback "NR" "has a callback that panics or never returns" true place::bad_callback;
            58 row_58_overwrites_a_visit "MP" "publishes, and overwrites a message while a merge visits it" true broadcast::overwrites_a_visit;
            64 row_64_attachments "MP" "attaches memory that it can change, too much, or other descriptors" true object::attachments;
            65 row_65_attachments_of_a_publisher "MP" "publishes, and attaches memory that it can change, too much, or other descriptors" true broadcast::attachments_of_a_publisher;
            66 row_66_replies "MP" "answers a call twice, or a call that was never made" true ring::replies;
        }
    };
}

macro_rules! list {
    ($($number:literal $test:ident $who:literal $attack:literal $bites:literal $module:ident::$run:ident;)*) => {
        /// All rows, in the order of the table.
        pub const ROWS: &[Row] = &[$(Row {
            number: $number,
            who: $who,
            attack: $attack,
            harms_plain: $bites,
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
fn plain(stage: &Stage, name: &'static str) -> Result<Actor, RowError> {
    stage.spawn(name, Who::Agent, Program::Genuine, &["victim", "plain"])
}

/// Starts an instance of a program that uses ringfence.
fn fenced(stage: &Stage, name: &'static str) -> Result<Actor, RowError> {
    stage.spawn(name, Who::Agent, Program::Genuine, &["victim", "ringfence"])
}

/// Starts a ringfence peer that performs each protocol step by hand.
fn hand(stage: &Stage) -> Result<Actor, RowError> {
    stage.spawn(
        "the hostile peer",
        Who::Agent,
        Program::Genuine,
        &["hand", "ringfence"],
    )
}

/// Gives an order and requires an answer that starts with `wanted`.
fn must(actor: &mut Actor, order: &str, wanted: &str) -> Result<(), RowError> {
    let answer = actor.ask(order)?;
    if answer.starts_with(wanted) {
        return Ok(());
    }
    Err(RowError::wrong(format!(
        "expected {wanted:?} as the answer to {order:?}, got {answer:?}"
    )))
}

/// Starts a pair of the plain program.
fn plain_pair(stage: &Stage, address: &str) -> Result<(Actor, Actor), RowError> {
    let (mut host, mut guest) = (plain(stage, "the host")?, plain(stage, "the guest")?);
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    Ok((host, guest))
}

/// Starts a host of the plain program that already listens.
fn plain_host(stage: &Stage, address: &str, options: &str) -> Result<Actor, RowError> {
    let mut host = plain(stage, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening {options}"))?;
    host.line_after("listening")?;
    Ok(host)
}

/// Starts a ringfence host that already waits for its guest.
fn fenced_host(stage: &Stage, address: &str, options: &str) -> Result<Actor, RowError> {
    let mut host = fenced(stage, "the host")?;
    host_again(&mut host, address, options)?;
    Ok(host)
}

/// Makes the same process the host at another address.
fn host_again(host: &mut Actor, address: &str, options: &str) -> Result<(), RowError> {
    must(host, &format!("join-aside {address} {options}"), "joining")?;
    crate::post::wait_for_listener(address).map_err(RowError::Wrong)
}

/// Starts an honest ringfence pair.
fn fenced_pair(stage: &Stage, address: &str, options: &str) -> Result<(Actor, Actor), RowError> {
    let mut host = fenced_host(stage, address, options)?;
    let guest = honest_guest(stage, &mut host, address, options)?;
    Ok((host, guest))
}

/// Starts an honest guest at a waiting host (whatever happened to the host before), and checks that the
/// channel works.
fn honest_guest(stage: &Stage, host: &mut Actor, address: &str, options: &str) -> Result<Actor, RowError> {
    let mut guest = fenced(stage, "the honest guest")?;
    must(&mut guest, &format!("join {address} {options}"), "joined guest")?;
    let peer = host.line_after("joined host")?;
    if peer != format!("pid={}", guest.pid()) {
        return Err(RowError::wrong(format!(
            "the host has {peer} instead of the honest guest"
        )));
    }
    talks(host, &mut guest)?;
    Ok(guest)
}

/// Sends a message in each direction.
fn talks(one: &mut Actor, other: &mut Actor) -> Result<(), RowError> {
    must(one, "send there", "sent")?;
    must(other, "receive 10000", "got 5 there")?;
    must(other, "send back", "sent")?;
    must(one, "receive 10000", "got 4 back")
}

/// Requires that the channel has ended because another process tried to open this side's memory.
fn is_exposed(actor: &mut Actor) -> Result<(), RowError> {
    must(actor, "receive 10000", "error OBJECT_EXPOSED")?;
    must(actor, "reason", "exposed")
}

/// Starts a host, and a hostile guest that has a channel with it.
fn hostile_channel(
    stage: &Stage,
    address: &str,
    options: &str,
    hand_options: &str,
) -> Result<(Actor, Actor), RowError> {
    let mut host = fenced_host(stage, address, options)?;
    let mut hand = hand(stage)?;
    must(&mut hand, &format!("channel {address} {hand_options}"), "channel")?;
    host.line_after("joined host")?;
    Ok((host, hand))
}

/// Gives an order to a process that the attack should have killed, and returns the result.
fn died(actor: &mut Actor, order: &str) -> Event {
    actor.try_ask(order, TIME_LIMIT)
}
