//! The identity of the peer.

use super::{SIZE, expect_answer, honest_guest, hostile, plain, plain_pair, protected_host, protected_pair};
use crate::{
    Outcome, Report, RowError,
    setup::{Program, Setup, User},
};

/// Row 14: another process of the same user connects, leaves the socket to a helper, and executes the genuine
/// program. `SO_PEERCRED` names the process that called connect, and `/proc/PID/exe` of that process is now
/// correct, while the helper holds the other end. The victim is stopped in the meantime, which any process of
/// the same user may do.
///
/// Defence: ringfence sends nothing over the agreed socket. The guest must send first and pass a line
/// of its own. The kernel stamps every message with its sender (unix(7), `SCM_CREDENTIALS`), which must be
/// the process that connected. Claiming to be another process needs CAP_SYS_ADMIN over the sender's pid
/// namespace (row 40).
pub(super) fn exec_after_connect(setup: &Setup) -> Result<Report, RowError> {
    let genuine = setup.program(Program::Genuine).display().to_string();
    let attacker = |address: &str, victim: &str| {
        let args = ["attacker", "connect-then-exec", address, victim, &genuine];
        setup.spawn("the attacker", User::Agent, Program::Other, &args)
    };

    let address = setup.address("plain");
    let mut host = plain(setup, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    let mut intruder = attacker(&address, &host.pid().to_string())?;
    intruder.line_after("forged")?;
    intruder.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("the helper gets the object and reads what is sent");

    let address = setup.address("ringfence");
    let mut host = protected_host(setup, &address, "")?;
    let mut intruder = attacker(&address, &host.pid().to_string())?;
    let attempt = intruder.line_after("forged")?;
    if attempt != "Err(EPERM), own Ok(128)" {
        return Err(RowError::wrong(format!("the attack itself failed: {attempt}")));
    }
    let got = intruder.line()?;
    let over_line = intruder.line()?;
    if !(got.starts_with("refuse 2 line ")
        && got.ends_with(", 0 descriptors")
        && over_line == "end, 0 descriptors")
    {
        return Ok(Report::with_harm(plain, format!("{got}; {over_line}")));
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (line); the host accepts the next client"),
        stopped_by: "every message carries its sender's credentials, which must match those of the connecting process",
    })
}

/// Row 17: a peer that has died and was not reaped by its parent. Its pid stays in use, and signal 0 succeeds
/// on it (kill(2)), so a program that checks in that way waits for a dead process. Before the handshake both
/// programs notice it immediately, because `/proc/PID/exe` of a zombie cannot be followed. Afterwards, the
/// plain program has no other way to check.
///
/// Defence: a pidfd polls readable once its process has ended, reaped or not (pidfd_open(2)). And the
/// line, which only the two processes hold, ends with either of them.
pub(super) fn zombie(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_pair(setup, &setup.address("plain"))?;
    guest.kill();
    guest.wait_for_zombie()?;
    expect_answer(&mut host, "alive", "alive")?;
    expect_answer(&mut host, "receive 100", "nothing")?;
    let plain = Outcome::succeeded("signal 0 reports it as alive; the host keeps waiting");

    let address = setup.address("ringfence");
    let (mut host, mut guest) = protected_pair(setup, &address, "")?;
    host.send_order("receive 20000")?;
    guest.kill();
    guest.wait_for_zombie()?;
    let (ended, sent, reason) = (host.line()?, host.ask("send more")?, host.ask("reason")?);
    if !super::is_lost(&ended) || !super::is_lost(&sent) || reason != "lost" {
        return Err(RowError::wrong(format!(
            "receive: {ended}, send: {sent}, reason: {reason}"
        )));
    }

    // The same with an accomplice that holds the line, and keeps it busy.
    let address = setup.address("accomplice");
    let (mut host, mut peer) = super::hostile_channel(setup, &address, "", "")?;
    host.send_order("receive 5000")?;
    peer.send_order("exit-waking")?;
    peer.wait_for_zombie()?;
    let (ended, reason) = (host.line()?, host.ask("reason")?);
    expect_answer(&mut host, "close", "closed")?;
    if !super::is_lost(&ended) || reason != "lost" {
        let seen = format!(
            "an accomplice that keeps sending wakeups hides the death: receive: {ended}, reason: {reason}"
        );
        return Ok(Report::with_harm(plain, seen));
    }

    // The same in the moment before the host inspects it.
    let address = setup.address("before");
    let mut host = protected_host(setup, &address, "")?;
    host.stop()?;
    let dead = setup.spawn(
        "the dead guest",
        User::Agent,
        Program::Genuine,
        &["attacker", "connect-and-exit", &address],
    )?;
    dead.wait_for_zombie()?;
    host.resume()?;
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_LOST, 'lost'; a client that is already dead is skipped"),
        stopped_by: "the line closes, and the pidfd is polled; signal 0 is not used",
    })
}

/// Row 18: a peer that passed the check executes another program, which inherits the socket. The kernel's
/// credentials of the connection do not change.
///
/// Defence: an honest peer's line is close-on-exec, so an exec ends the channel. A hostile peer can
/// keep the line, but it is checked again after its object has arrived, and then its executable is a
/// different one.
pub(super) fn exec_after_check(setup: &Setup) -> Result<Report, RowError> {
    let other = setup.program(Program::Other).display().to_string();
    let address = setup.address("plain");
    let mut host = plain(setup, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    let args = ["attacker", "exec-after-check", &address, &other];
    let mut intruder = setup.spawn("the intruder", User::Agent, Program::Genuine, &args)?;
    intruder.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("another program gets the object and reads it");

    let address = setup.address("honest");
    let (mut host, mut guest) = protected_pair(setup, &address, "")?;
    expect_answer(&mut guest, &format!("exec {other}"), "[]")?;
    let (ended, reason) = (host.ask("receive 20000")?, host.ask("reason")?);
    if !super::is_lost(&ended) || reason != "lost" {
        return Err(RowError::wrong(format!("after an exec: {ended}, {reason}")));
    }

    let address = setup.address("hostile");
    let mut host = protected_host(setup, &address, "")?;
    let mut hostile = hostile(setup)?;
    expect_answer(&mut hostile, &format!("connect {address}"), "connected")?;
    expect_answer(&mut hostile, "hello", "sent")?;
    expect_answer(&mut hostile, "receive", "hello")?;
    expect_answer(&mut hostile, "receive", "offer")?;
    host.stop()?;
    expect_answer(&mut hostile, "offer sound", "sent")?;
    expect_answer(&mut hostile, &format!("exec {other}"), "sent")?;
    host.resume()?;
    let answer = hostile.line()?;
    if !(answer.starts_with("refuse 2 executable ") && answer.ends_with(", 0 descriptors")) {
        return Ok(Report::with_harm(plain, answer));
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "an honest peer's exec ends the channel; a hostile one's: PEER_REFUSED (executable)",
        ),
        stopped_by: "the line is close-on-exec; the executable is checked again at the end",
    })
}

/// Row 21: a process of another user connects to an abstract address, which has no permissions.
///
/// Defence: the uid that the kernel attests. The host continues with the next client.
pub(super) fn other_user(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain(setup, "the host")?;
    host.send_order(&format!("join {address} {SIZE} tell listening"))?;
    host.line_after("listening")?;
    let knock = |address: &str| {
        setup.spawn(
            "the other user",
            User::Other,
            Program::Genuine,
            &["attacker", "connect", address],
        )
    };
    let got = knock(&address)?.line()?;
    let plain = if got == "nothing" {
        Outcome::failed("refused")
    } else {
        Outcome::succeeded(got)
    };
    host.line_after("refused")?;

    let address = setup.address("ringfence");
    let mut host = protected_host(setup, &address, "")?;
    let got = knock(&address)?.line()?;
    if !(got.starts_with("refuse 2 uid ") && got.ends_with(", 0 descriptors")) {
        return Ok(Report::with_harm(plain, got));
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (uid); the host accepts the next client"),
        stopped_by: "the uid that the kernel attests (SO_PEERCRED)",
    })
}

/// Row 15: the same with the listening socket. `SO_PEERCRED` of a client names the process that called listen
/// (unix(7)), which has since become the genuine program, while the helper accepts.
///
/// Defence: the host's HELLO must arrive over the guest's own line, with the credentials of the process
/// that listened. The guest passes nothing before that.
pub(super) fn exec_after_listen(setup: &Setup) -> Result<Report, RowError> {
    let genuine = setup.program(Program::Genuine).display().to_string();
    let squat = |address: &str| {
        let args = ["attacker", "listen-then-exec", address, &genuine];
        let mut attacker = setup.spawn("the false host", User::Agent, Program::Other, &args)?;
        attacker.line_after("listening")?;
        Ok::<_, RowError>(attacker)
    };
    let address = setup.address("plain");
    let mut intruder = squat(&address)?;
    let mut guest = plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    intruder.line_after("passed")?;
    expect_answer(&mut guest, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("the guest maps the helper's object and writes its messages there");

    let address = setup.address("ringfence");
    let mut intruder = squat(&address)?;
    let mut guest = super::protected(setup, "the guest")?;
    let joined = guest.ask(&format!("join {address}"))?;
    intruder.line_after("answered Ok")?;
    let got = intruder.line()?;
    if !joined.starts_with("error PEER_REFUSED check=line by_peer=false") || !got.ends_with(" 0 descriptors")
    {
        return Ok(Report::with_harm(
            plain,
            format!("the guest: {joined}; the helper: {got}"),
        ));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (line); nothing was passed"),
        stopped_by: "the answer must come over the private line, from the process that listened",
    })
}

/// The largest `pid_max` for which wrapping the process numbers is fast enough here.
const LARGEST_PID_MAX: u64 = 70_000;

/// Row 16: the process that connected ends, and processes are started until the genuine program gets its
/// number. The victim, stopped in the meantime, then inspects the wrong process.
///
/// Defence: a pidfd refers to the process, not to its number. The kernel provides it with the socket
/// (`SO_PEERPIDFD`, Linux 6.5). Values read about the process count only between two checks that find it
/// alive.
pub(super) fn pid_reuse(setup: &Setup) -> Result<Report, RowError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    if text.trim().parse().is_ok_and(|most: u64| most > LARGEST_PID_MAX) {
        return Err(RowError::Skipped(format!(
            "cycling through {} pids takes too long",
            text.trim()
        )));
    }
    let genuine = setup.program(Program::Genuine).display().to_string();
    let attacker = |address: &str, victim: &str| {
        let args = ["attacker", "wrap", address, victim, &genuine];
        let mut attacker = setup.spawn("the attacker", User::Agent, Program::Other, &args)?;
        attacker.line_after("pid")?;
        // The time depends on starting that many processes.
        match attacker.next_event(super::TIME_LIMIT * 2) {
            crate::process::Event::Line(line) if line.starts_with("wrapped") => Ok(attacker),
            other => Err(RowError::wrong(format!(
                "could not cycle through the pids: {other:?}"
            ))),
        }
    };
    let address = setup.address("plain");
    let mut host = super::plain_host(setup, &address, "")?;
    let mut intruder = attacker(&address, &host.pid().to_string())?;
    intruder.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("the process that holds the dead process's socket gets the object");

    let address = setup.address("ringfence");
    let mut host = protected_host(setup, &address, "")?;
    let mut intruder = attacker(&address, &host.pid().to_string())?;
    let got = intruder.line()?;
    if got != "nothing" && !(got.starts_with("refuse 5 PEER_LOST") && got.ends_with(" 0 descriptors")) {
        return Ok(Report::with_harm(plain, got));
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "PEER_LOST: disconnected, and nothing was passed; the host accepts the next client",
        ),
        stopped_by: "the pidfd of the socket's peer; the peer must be alive before and after each check",
    })
}

/// Row 44: not an attack, but a situation that an attacker can cause by making a program run out of
/// descriptors. The program then checks a healthy peer.
///
/// Defence: a check for which no descriptor is available has found out nothing, and is a local error.
pub(super) fn without_descriptors(setup: &Setup) -> Result<Report, RowError> {
    const VERIFY: &str = "verify-without-descriptors";
    let address = setup.address("plain");
    let mut host = super::plain_host(setup, &address, "")?;
    let mut guest = super::plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let plain = match &*host.ask(VERIFY)? {
        "cut off" => Outcome::succeeded("the peer is considered dead and is disconnected"),
        answer => Outcome::failed(answer),
    };

    let address = setup.address("ringfence");
    let mut host = super::protected_host(setup, &address, "")?;
    let mut guest = super::protected(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;
    let answer = host.ask(VERIFY)?;
    if !answer.starts_with("error NO_SPACE ") {
        return Ok(Report::with_harm(plain, answer));
    }
    super::exchange_messages(&mut host, &mut guest)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("NO_SPACE as a local error; the channel stays open"),
        stopped_by: "a local error is not mistaken for a finding about the peer",
    })
}
