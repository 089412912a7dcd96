//! Processes of the same user that inspect another: /proc, descriptors, memory, cores.

use super::{
    Event, SIZE, expect_answer, hostile, is_exposed,
    object::{plain_window, shm_window},
    plain, plain_host, plain_pair, protected_host,
};
use crate::{
    Outcome, Report, RowError,
    plain::data_of,
    process::Process,
    protocol::layout,
    setup::{Program, Setup, User},
};

/// The plain program's object, as /proc names it.
const PLAIN: &str = "/dev/shm/plain-";
/// ringfence's object.
const FENCED: &str = "/memfd:ringfence";

fn insider(setup: &Setup, args: &[&str]) -> Result<Process, RowError> {
    setup.spawn(
        "the insider",
        User::Agent,
        Program::Other,
        &[&["insider"][..], args].concat(),
    )
}

/// Requires that the attacker sees what the host sends.
fn shows_secret(host: &mut Process, attacker: &mut Process) -> Result<(), RowError> {
    expect_answer(host, "send secret", "sent")?;
    expect_answer(attacker, "find secret", "found")
}

/// Starts a ringfence host in the middle of a handshake, with its object open, and the guest that delays it.
fn waiting_host(setup: &Setup, address: &str, options: &str) -> Result<(Process, Process), RowError> {
    let host = protected_host(setup, address, options)?;
    let mut guest = hostile(setup)?;
    expect_answer(&mut guest, &format!("connect {address}"), "connected")?;
    expect_answer(&mut guest, "hello", "sent")?;
    expect_answer(&mut guest, "receive", "hello")?;
    expect_answer(&mut guest, "receive", "offer")?;
    Ok((host, guest))
}

/// Lets the delaying guest continue, and checks that the channel works.
fn finish_handshake(host: &mut Process, guest: &mut Process) -> Result<(), RowError> {
    expect_answer(guest, "offer sound", "sent")?;
    expect_answer(guest, "ready", "sent")?;
    expect_answer(guest, "receive", "ready")?;
    host.line_after("joined host")?;
    expect_answer(guest, "message hello", "woken")?;
    expect_answer(host, "receive 10000", "got 5 hello")
}

/// Lets the delaying guest continue after another process has tried to open the host's object. Then no
/// channel is made, or it ends soon.
fn expect_exposed(host: &mut Process, guest: &mut Process) -> Result<(), RowError> {
    expect_answer(guest, "offer sound", "")?;
    // The host may already have hung up.
    guest.ask("ready")?;
    let answer = host.line()?;
    if answer.starts_with("joined host") {
        return is_exposed(host);
    }
    if answer.starts_with("error OBJECT_EXPOSED") {
        return Ok(());
    }
    Err(RowError::wrong(format!(
        "the host did not report the exposure: {answer}"
    )))
}

/// Row 1: between `shm_open` and `shm_unlink`, another process of the same user takes an `O_PATH` descriptor
/// of the object. That does not count as opening it (open(2)), so the lease neither detects nor prevents it.
/// Later, the file's owner changes the mode and opens it through /proc/self/fd.
///
/// Defence: a memfd has no such moment. With shm, the lease stays while the object is mapped, and the
/// kernel blocks the process that opens it (fcntl(2)). The owner is notified, wipes the object, and closes
/// the channel.
pub(super) fn o_path_descriptor(setup: &Setup) -> Result<Report, RowError> {
    let shm = setup.own_shm(1 << 20)?;
    let plain = plain_window(setup, &shm, "watcher")?;

    let address = setup.address("memfd");
    let mut host = shm.spawn("the host", Program::Genuine, &["victim", "ringfence"])?;
    expect_answer(&mut host, "pid", "")?;
    let args = ["attacker", "watcher", &host.pid().to_string()];
    let mut watcher = shm.spawn("the attacker", Program::Other, &args)?;
    watcher.line_after("watching")?;
    super::join_as_host(&mut host, &address, "")?;
    let mut guest = shm.spawn("the hostile peer", Program::Genuine, &["hostile", "ringfence"])?;
    expect_answer(&mut guest, &format!("channel {address}"), "channel")?;
    host.line_after("joined host")?;
    let seen = watcher.ask("count")?;
    if seen != "0" {
        return Ok(Report::with_harm(
            plain,
            format!("memfd: {seen} objects appeared"),
        ));
    }
    drop(watcher);

    let (mut attacker, mut host, mut guest, exposed) = shm_window(setup, &shm, "watcher")?;
    if exposed {
        return Err(RowError::wrong("the lease must not notice an O_PATH descriptor"));
    }
    expect_answer(&mut host, "send secret", "sent")?;
    match &*attacker.ask("find secret")? {
        "EAGAIN" => {}
        other => return Ok(Report::with_harm(plain, format!("shm: {other}"))),
    }
    is_exposed(&mut host)?;
    // The peer still has it mapped, so it can search it.
    match &*guest.ask("find-theirs secret")? {
        "absent" => {}
        other => {
            return Ok(Report::with_harm(
                plain,
                format!("shm: the memory was not wiped: {other}"),
            ));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("memfd: nothing appears; shm: EAGAIN, 'exposed', and the memory is wiped"),
        stopped_by: "a memfd has no name; shm: the lease and its tripwire",
    })
}

/// Row 3: while the host holds its object's descriptor, another process of the same user opens it through
/// /proc/PID/fd.
///
/// Defence: hardening closes the directory (EACCES, proc(5)). Without it, the lease blocks the open and
/// notifies the holder.
pub(super) fn proc_fd(setup: &Setup) -> Result<Report, RowError> {
    let plain = opened(setup, &["open"])?;
    let (host, _guest) = waiting_host(setup, &setup.address("hardened"), "harden")?;
    let answer = insider(setup, &["open", &host.pid().to_string(), FENCED])?.line()?;
    if answer != "EACCES" {
        return Ok(Report::with_harm(plain, format!("hardened: {answer}")));
    }
    let (mut host, mut guest) = waiting_host(setup, &setup.address("ringfence"), "")?;
    let answer = insider(setup, &["open", &host.pid().to_string(), FENCED])?.line()?;
    if answer != "EAGAIN" {
        return Ok(Report::with_harm(plain, answer));
    }
    expect_exposed(&mut host, &mut guest)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("hardened: EACCES; otherwise EAGAIN, and the host reports 'exposed'"),
        stopped_by: "harden(): /proc/PID/fd is inaccessible; otherwise the lease and its tripwire",
    })
}

/// Row 4: the descriptor itself is copied out of the process (pidfd_getfd(2)). It is the same open file,
/// which no lease detects.
///
/// Defence: after hardening the call fails with EPERM, because it needs the permission to trace the
/// process.
pub(super) fn getfd(setup: &Setup) -> Result<Report, RowError> {
    let plain = opened(setup, &["getfd"])?;
    let (mut host, mut guest) = waiting_host(setup, &setup.address("hardened"), "harden")?;
    let answer = insider(setup, &["getfd", &host.pid().to_string(), FENCED])?.line()?;
    if answer != "EPERM" {
        return Ok(Report::with_harm(plain, format!("hardened: {answer}")));
    }
    finish_handshake(&mut host, &mut guest)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("hardened: EPERM for every number (not hardened: as documented)"),
        stopped_by: "harden(): not dumpable, so no process of the same user may trace it",
    })
}

/// Tries `how` on a host of the plain program while it holds its object's descriptor.
fn opened(setup: &Setup, how: &[&str]) -> Result<Outcome, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut attacker = insider(setup, &[how, &[&host.pid().to_string(), PLAIN]].concat())?;
    attacker.line_after("opened")?;
    let mut guest = plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    shows_secret(&mut host, &mut attacker)?;
    Ok(Outcome::succeeded(
        "the object is opened and read, and can be written",
    ))
}

/// Row 5: an `O_PATH` descriptor is taken through /proc/PID/fd during the handshake, and opened long after
/// both sides have closed theirs.
///
/// Defence: the lease belongs to the open file, which exists as long as the mapping (mmap(2)). The
/// owner is notified, wipes the object, and closes the channel. After hardening, no such descriptor can be
/// obtained.
pub(super) fn kept_o_path_descriptor(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut attacker = insider(setup, &["hold-path", &host.pid().to_string(), PLAIN])?;
    attacker.line_after("holding")?;
    let mut guest = plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    expect_answer(&mut attacker, "reopen", "opened")?;
    shows_secret(&mut host, &mut attacker)?;
    let plain = Outcome::succeeded("the object is opened and read");

    let (mut host, mut guest) = waiting_host(setup, &setup.address("ringfence"), "")?;
    let mut attacker = insider(setup, &["hold-path", &host.pid().to_string(), FENCED])?;
    attacker.line_after("holding")?;
    finish_handshake(&mut host, &mut guest)?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut guest, "find-theirs secret", "found")?;
    match &*attacker.ask("reopen")? {
        "EAGAIN" => {}
        other => return Ok(Report::with_harm(plain, other)),
    }
    is_exposed(&mut host)?;
    // The peer still has it mapped, so it can search it.
    match &*guest.ask("find-theirs secret")? {
        "absent" => {}
        other => {
            return Ok(Report::with_harm(
                plain,
                format!("the memory was not wiped: {other}"),
            ));
        }
    }
    let (host, _guest) = waiting_host(setup, &setup.address("hardened"), "harden")?;
    let answer = insider(setup, &["hold-path", &host.pid().to_string(), FENCED])?.line()?;
    if answer != "EACCES" {
        return Ok(Report::with_harm(plain, format!("hardened: {answer}")));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "EAGAIN; the host reports 'exposed', and the memory is wiped. Hardened: EACCES",
        ),
        stopped_by: "the lease and its tripwire outlive the descriptor",
    })
}

/// Row 6: a process that opens a leased file makes the kernel send SIGIO to the holder. By default the signal
/// terminates the holder (fcntl(2), signal(7)).
///
/// Defence: the lease uses another signal, which goes to a thread that waits for it.
pub(super) fn lease_break(setup: &Setup) -> Result<Report, RowError> {
    let mut host = plain_host(setup, &setup.address("plain"), "keep-lease")?;
    let mut attacker = insider(setup, &["open", &host.pid().to_string(), PLAIN])?;
    attacker.line_after("EAGAIN")?;
    let plain = match host.next_event(super::TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("killed: {how}")),
        other => Outcome::failed(format!("{other:?}")),
    };
    let (mut host, mut guest) = waiting_host(setup, &setup.address("ringfence"), "")?;
    let mut attacker = insider(setup, &["open", &host.pid().to_string(), FENCED])?;
    attacker.line_after("EAGAIN")?;
    match host.try_ask("pid", super::TIME_LIMIT) {
        Event::Line(pid) if pid == host.pid().to_string() => {}
        other => return Ok(Report::with_harm(plain, format!("{other:?}"))),
    }
    expect_exposed(&mut host, &mut guest)?;
    let pid = host.pid().to_string();
    expect_answer(&mut host, "pid", &pid)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("EAGAIN for the attacker; the host survives and reports 'exposed'"),
        stopped_by: "a thread waits for the lease's signal, which therefore does not kill",
    })
}

/// Row 7: a process of the same user reads the memory of another dumpable process, and attaches to it
/// (proc(5), ptrace(2), process_vm_readv(2)).
///
/// Defence: after hardening, EACCES and EPERM.
pub(super) fn memory(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, _guest) = plain_pair(setup, &setup.address("plain"))?;
    let mut attacker = insider(setup, &["read-memory", &host.pid().to_string(), "secret"])?;
    attacker.line_after("reading")?;
    expect_answer(&mut host, "send secret", "sent")?;
    attacker.line_after("found")?;
    // EFAULT means that access was allowed and nothing is mapped at the address.
    insider(setup, &["attach", &host.pid().to_string()])?.line_after("attached Some(EFAULT)")?;
    let plain = Outcome::succeeded("the attacker reads the message in its memory, and attaches to it");

    let (mut host, mut guest) = super::protected_pair(setup, &setup.address("ringfence"), "harden")?;
    expect_answer(&mut host, "send secret", "sent")?;
    for victim in [host.pid(), guest.pid()] {
        let victim = victim.to_string();
        for (how, wanted) in [
            (&["read-memory", &victim, "secret"][..], "EACCES"),
            (&["attach", &victim], "EPERM Some(EPERM)"),
        ] {
            let answer = insider(setup, how)?.line()?;
            if answer != wanted {
                return Ok(Report::with_harm(plain, format!("{}: {answer}", how[0])));
            }
        }
    }
    expect_answer(&mut guest, "receive 10000", "got 6 secret")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("hardened: mem EACCES, ptrace EPERM, process_vm_readv EPERM"),
        stopped_by: "harden(): not dumpable",
    })
}

/// Row 8: the core limit of another process is raised (prlimit(2)), the process is aborted, and the core is
/// searched for a message that its peer has written. Shared memory without a name counts as anonymous there,
/// and is dumped by default (core(5)).
///
/// Defence: mappings are `MADV_DONTDUMP` (madvise(2)). After hardening, there is no core.
pub(super) fn core_dump(setup: &Setup) -> Result<Report, RowError> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let pattern = pattern.trim();
    if pattern.starts_with('|') || pattern.contains('/') {
        return Err(RowError::Skipped(format!(
            "cores are not written to the working directory here ({pattern})"
        )));
    }
    let cores = setup.private().display().to_string();
    let genuine = setup.program(Program::Genuine);
    let dump = |victim: &Process| {
        let mut attacker = insider(setup, &["dump", &victim.pid().to_string(), &cores, "topsecret"])?;
        attacker.line()
    };
    // Messages that the guest has written: the victim never had them in its own memory.
    let address = setup.address("plain");
    let mut host = setup.spawn_at("the host", &genuine, &["victim", "plain"], &[])?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    let args = ["hostile", "plain", "guest", &address];
    let mut guest = setup.spawn("the guest", User::Agent, Program::Genuine, &args)?;
    guest.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(
        &mut guest,
        &format!("write {} topsecret", data_of(1, SIZE)),
        "written",
    )?;
    let plain = match &*dump(&host)? {
        "found" => Outcome::succeeded("the message is in the core"),
        "no core" => {
            return Err(RowError::Skipped(
                "no core is written here (a hard limit?)".into(),
            ));
        }
        _ => Outcome::failed("it is not in the core"),
    };

    for (options, wanted) in [("", "absent"), ("harden", "no core")] {
        let address = setup.address(&format!("ringfence-{options}"));
        let mut host = setup.spawn_at("the host", &genuine, &["victim", "ringfence"], &[])?;
        super::join_as_host(&mut host, &address, options)?;
        let mut guest = hostile(setup)?;
        expect_answer(&mut guest, &format!("channel {address}"), "channel")?;
        host.line_after("joined host")?;
        expect_answer(
            &mut guest,
            &format!("write {} topsecret", layout::DATA + 8),
            "written",
        )?;
        let answer = dump(&host)?;
        if answer != wanted {
            return Ok(Report::with_harm(plain, format!("{options}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("it is not in the core; hardened: no core"),
        stopped_by: "MADV_DONTDUMP; harden(): not dumpable, no core",
    })
}
