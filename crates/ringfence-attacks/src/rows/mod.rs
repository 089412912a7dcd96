//! The rows of the table. Each is one function, which carries its attack out against the plain program and then
//! against ringfence.

use crate::{
    Row, Trouble,
    actor::{Actor, Heard, TIME_LIMIT},
    stage::{Program, Stage, Who},
};

mod closing;
mod face;
mod fork;
mod insider;
mod line;
mod node;
mod object;
mod peer;
mod place;
mod ring;
mod signals;
mod space;

/// All rows that can be played, in the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        number: 1,
        who: "SU",
        attack: "an O_PATH descriptor taken between create and unlink, opened later",
        bites_plain: true,
        run: insider::path_descriptor,
    },
    Row {
        number: 2,
        who: "SU",
        attack: "a hard link made between create and unlink",
        bites_plain: true,
        run: object::hard_link,
    },
    Row {
        number: 3,
        who: "SU",
        attack: "opens /proc/PID/fd/N during the handshake",
        bites_plain: true,
        run: insider::proc_fd,
    },
    Row {
        number: 4,
        who: "SU",
        attack: "pidfd_getfd of the object during the handshake",
        bites_plain: true,
        run: insider::getfd,
    },
    Row {
        number: 5,
        who: "SU",
        attack: "opens a kept O_PATH after both sides closed the descriptor",
        bites_plain: true,
        run: insider::kept_path,
    },
    Row {
        number: 6,
        who: "SU",
        attack: "breaks the lease, to kill its holder with SIGIO",
        bites_plain: true,
        run: insider::lease_break,
    },
    Row {
        number: 7,
        who: "SU",
        attack: "reads /proc/PID/mem",
        bites_plain: true,
        run: insider::memory,
    },
    Row {
        number: 8,
        who: "SU",
        attack: "raises the core limit, sends SIGABRT, reads the core",
        bites_plain: true,
        run: insider::core_dump,
    },
    Row {
        number: 9,
        who: "SU",
        attack: "starts the genuine program under ptrace",
        bites_plain: true,
        run: face::traced,
    },
    Row {
        number: 10,
        who: "SU",
        attack: "LD_PRELOAD into the genuine program",
        bites_plain: true,
        run: face::preloaded,
    },
    Row {
        number: 11,
        who: "SU",
        attack: "NODE_OPTIONS=--require into a genuine Node program",
        bites_plain: true,
        run: node::injected,
    },
    Row {
        number: 12,
        who: "SU/OU",
        attack: "SIGUSR1, then reads the memory through the inspector",
        bites_plain: true,
        run: node::inspector,
    },
    Row {
        number: 13,
        who: "SU",
        attack: "PR_SET_MM_MAP in a user namespace of its own, to wear another executable",
        bites_plain: true,
        run: face::worn,
    },
    Row {
        number: 14,
        who: "SU",
        attack: "connects, leaves the socket to another process, executes the genuine program",
        bites_plain: true,
        run: peer::borrowed_face,
    },
    Row {
        number: 15,
        who: "SU",
        attack: "the same with the listening socket",
        bites_plain: true,
        run: peer::false_host,
    },
    Row {
        number: 16,
        who: "SU",
        attack: "the pid is another process's between accept and the look at /proc",
        bites_plain: true,
        run: peer::wrap,
    },
    Row {
        number: 17,
        who: "SU",
        attack: "a peer that is dead and not reaped",
        bites_plain: true,
        run: peer::zombie,
    },
    Row {
        number: 18,
        who: "MP",
        attack: "executes another program after the check",
        bites_plain: true,
        run: peer::turncoat,
    },
    Row {
        number: 19,
        who: "SU",
        attack: "another executable with the same inode number on another filesystem",
        bites_plain: true,
        run: space::same_inode,
    },
    Row {
        number: 20,
        who: "SU",
        attack: "other work for the same executable",
        bites_plain: true,
        run: face::other_script,
    },
    Row {
        number: 21,
        who: "OU",
        attack: "connects",
        bites_plain: false,
        run: peer::stranger,
    },
    Row {
        number: 22,
        who: "OU",
        attack: "is not mapped in the user namespace, as the victim is not",
        bites_plain: true,
        run: space::unmapped,
    },
    Row {
        number: 23,
        who: "OU",
        attack: "lives in another pid namespace (pid 0)",
        bites_plain: false,
        run: space::pid_zero,
    },
    Row {
        number: 24,
        who: "OU",
        attack: "takes the name first",
        bites_plain: true,
        run: place::squatter,
    },
    Row {
        number: 25,
        who: "OU",
        attack: "fills the backlog of the socket",
        bites_plain: true,
        run: place::backlog,
    },
    Row {
        number: 26,
        who: "SU",
        attack: "connects and says nothing, many times",
        bites_plain: true,
        run: place::silent_crowd,
    },
    Row {
        number: 27,
        who: "SU",
        attack: "two starters race for a stale socket file",
        bites_plain: true,
        run: place::stale_race,
    },
    Row {
        number: 28,
        who: "SU",
        attack: "a forged realtime signal \"I am leaving\"",
        bites_plain: true,
        run: signals::forged_farewell,
    },
    Row {
        number: 29,
        who: "SU",
        attack: "floods the queue of signals",
        bites_plain: true,
        run: signals::flooded_queue,
    },
    Row {
        number: 30,
        who: "MP",
        attack: "ftruncate on the passed object",
        bites_plain: true,
        run: object::truncate,
    },
    Row {
        number: 31,
        who: "MP/OU",
        attack: "fills the tmpfs",
        bites_plain: true,
        run: object::full_tmpfs,
    },
    Row {
        number: 32,
        who: "MP",
        attack: "writes into the ring that it only reads",
        bites_plain: true,
        run: object::write_what_it_reads,
    },
    Row {
        number: 33,
        who: "MP",
        attack: "lying tail, head, length, flags, at any moment",
        bites_plain: true,
        run: ring::lies,
    },
    Row {
        number: 34,
        who: "MP",
        attack: "changes a message while it is read",
        bites_plain: true,
        run: ring::double_fetch,
    },
    Row {
        number: 35,
        who: "MP",
        attack: "passes what is no sound object, too many, or none",
        bites_plain: true,
        run: object::unsound,
    },
    Row {
        number: 36,
        who: "MP",
        attack: "O_NONBLOCK, a full buffer, garbage and silence on the line",
        bites_plain: true,
        run: line::rude,
    },
    Row {
        number: 37,
        who: "child",
        attack: "is forked and executes at any moment",
        bites_plain: true,
        run: object::inheritance,
    },
    Row {
        number: 38,
        who: "MP",
        attack: "never reads",
        bites_plain: true,
        run: line::never_reads,
    },
    Row {
        number: 39,
        who: "MP",
        attack: "SO_PASSPIDFD on the line that it passes, frames byte by byte",
        bites_plain: true,
        run: line::pidfds,
    },
    Row {
        number: 40,
        who: "SU",
        attack: "forges the credentials of messages from a pid namespace of its own",
        bites_plain: true,
        run: space::namesake,
    },
    Row {
        number: 41,
        who: "MP",
        attack: "a ring of a terabyte, or a full one of 256 MiB at its exit",
        bites_plain: true,
        run: ring::heavy,
    },
    Row {
        number: 42,
        who: "MP",
        attack: "takes every seat of a service",
        bites_plain: true,
        run: place::greedy,
    },
    Row {
        number: 43,
        who: "MP",
        attack: "drops the group that the policy asks for, where /proc hides it",
        bites_plain: true,
        run: space::dropped_group,
    },
    Row {
        number: 44,
        who: "NR",
        attack: "no descriptor left when a healthy peer is looked at",
        bites_plain: true,
        run: peer::without_descriptors,
    },
    Row {
        number: 45,
        who: "MP",
        attack: "closes, half-closes, leaves at every moment of the other's close",
        bites_plain: true,
        run: closing::at_every_moment,
    },
    Row {
        number: 55,
        who: "SU",
        attack: "sends SIGIO, as at an alarm, where no descriptor is left",
        bites_plain: true,
        run: signals::false_alarm,
    },
    Row {
        number: 56,
        who: "child",
        attack: "is forked, executes nothing, uses and drops what it has",
        bites_plain: true,
        run: fork::without_exec,
    },
    Row {
        number: 57,
        who: "NR",
        attack: "a callback that panics, or never returns",
        bites_plain: true,
        run: place::bad_callback,
    },
];

/// Bytes of the plain program's object.
const SIZE: usize = 64 * 1024;

/// An instance of the plain program.
fn plain(stage: &Stage, name: &'static str) -> Result<Actor, Trouble> {
    stage.spawn(name, Who::Agent, Program::Genuine, &["victim", "plain"])
}

/// An instance of a program that uses ringfence.
fn fenced(stage: &Stage, name: &'static str) -> Result<Actor, Trouble> {
    stage.spawn(name, Who::Agent, Program::Genuine, &["victim", "ringfence"])
}

/// A peer of ringfence that does everything by hand.
fn hand(stage: &Stage) -> Result<Actor, Trouble> {
    stage.spawn(
        "the hostile peer",
        Who::Agent,
        Program::Genuine,
        &["hand", "ringfence"],
    )
}

/// An order whose answer must be this one.
fn must(actor: &mut Actor, order: &str, wanted: &str) -> Result<(), Trouble> {
    let answer = actor.ask(order)?;
    if answer.starts_with(wanted) {
        return Ok(());
    }
    Err(Trouble::wrong(format!(
        "{order:?} was to be answered by {wanted:?}, but: {answer:?}"
    )))
}

/// A pair of the plain program.
fn plain_pair(stage: &Stage, address: &str) -> Result<(Actor, Actor), Trouble> {
    let (mut host, mut guest) = (plain(stage, "the host")?, plain(stage, "the guest")?);
    host.say(&format!("join {address} {SIZE} listening"))?;
    host.expect("listening")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.expect("joined host")?;
    Ok((host, guest))
}

/// A host of the plain program that listens already.
fn plain_host(stage: &Stage, address: &str, options: &str) -> Result<Actor, Trouble> {
    let mut host = plain(stage, "the host")?;
    host.say(&format!("join {address} {SIZE} listening {options}"))?;
    host.expect("listening")?;
    Ok(host)
}

/// A host of ringfence's that already waits for its guest.
fn fenced_host(stage: &Stage, address: &str, options: &str) -> Result<Actor, Trouble> {
    let mut host = fenced(stage, "the host")?;
    host_again(&mut host, address, options)?;
    Ok(host)
}

/// The same process becomes the host at another address.
fn host_again(host: &mut Actor, address: &str, options: &str) -> Result<(), Trouble> {
    must(host, &format!("join-aside {address} {options}"), "joining")?;
    crate::post::wait_for_listener(address).map_err(Trouble::Wrong)
}

/// An honest pair of ringfence's.
fn fenced_pair(stage: &Stage, address: &str, options: &str) -> Result<(Actor, Actor), Trouble> {
    let mut host = fenced_host(stage, address, options)?;
    let guest = honest_guest(stage, &mut host, address, options)?;
    Ok((host, guest))
}

/// An honest guest comes to a host that waits (whatever happened to it before), and the channel works.
fn honest_guest(stage: &Stage, host: &mut Actor, address: &str, options: &str) -> Result<Actor, Trouble> {
    let mut guest = fenced(stage, "the honest guest")?;
    must(&mut guest, &format!("join {address} {options}"), "joined guest")?;
    let peer = host.expect("joined host")?;
    if peer != format!("pid={}", guest.pid()) {
        return Err(Trouble::wrong(format!(
            "the host has {peer} instead of the honest guest"
        )));
    }
    talks(host, &mut guest)?;
    Ok(guest)
}

/// A message goes each way.
fn talks(one: &mut Actor, other: &mut Actor) -> Result<(), Trouble> {
    must(one, "send there", "sent")?;
    must(other, "receive 10000", "got 5 there")?;
    must(other, "send back", "sent")?;
    must(one, "receive 10000", "got 4 back")
}

/// Somebody has tried to open a process's memory: its channel has ended, and says why.
fn is_exposed(actor: &mut Actor) -> Result<(), Trouble> {
    must(actor, "receive 10000", "error OBJECT_EXPOSED")?;
    must(actor, "reason", "exposed")
}

/// A hostile guest that has a channel with a host, and the host.
fn hostile_channel(
    stage: &Stage,
    address: &str,
    options: &str,
    hand_options: &str,
) -> Result<(Actor, Actor), Trouble> {
    let mut host = fenced_host(stage, address, options)?;
    let mut hand = hand(stage)?;
    must(&mut hand, &format!("channel {address} {hand_options}"), "channel")?;
    host.expect("joined host")?;
    Ok((host, hand))
}

/// What a process that should have died of the attack did.
fn died(actor: &mut Actor, order: &str) -> Heard {
    actor.try_ask(order, TIME_LIMIT)
}
