//! Data on the line, and its absence.

use std::time::{Duration, Instant};

use super::{
    Event, SIZE, expect_answer, honest_guest, hostile, hostile_channel, plain, protected_host,
    ring::plain_and_hostile,
};
use crate::{
    Outcome, Report, RowError,
    setup::{Program, Setup, User},
};

/// Row 36: a peer that sends half of a frame and then nothing. A peer that changes the mode of the shared
/// socket, fills its buffers, and sends garbage, with and without descriptors.
///
/// Defence: all waits of a handshake share one deadline, and clients are served in parallel. On a
/// channel, every call on the line is individually non-blocking (`MSG_DONTWAIT`). Received bytes are read and
/// discarded, and descriptors are never installed (recv instead of recvmsg).
pub(super) fn line_abuse(setup: &Setup) -> Result<Report, RowError> {
    let plain = partial_struct(setup)?;
    silent_clients(setup)?;
    if let Some(harm) = abuse_open_line(setup)? {
        return Ok(Report::with_harm(plain, harm));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "HANDSHAKE_TIMEOUT for silent clients, others are served in the meantime; an open channel is unaffected",
        ),
        stopped_by: "deadlines; MSG_DONTWAIT in every call; the line's bytes carry no information",
    })
}

/// Runs a plain guest against a host that passes half of the required data.
fn partial_struct(setup: &Setup) -> Result<Outcome, RowError> {
    let address = setup.address("plain");
    let mut host = setup.spawn(
        "the hostile host",
        User::Agent,
        Program::Genuine,
        &["hostile", "plain", "host", &address, "half"],
    )?;
    host.line_after("listening")?;
    let mut guest = plain(setup, "the guest")?;
    guest.send_order(&format!("join {address} {SIZE}"))?;
    host.line_after("passed")?;
    Ok(match guest.next_event(Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded("waits forever for the rest of a struct"),
        other => Outcome::failed(format!("{other:?}")),
    })
}

/// Tests silent clients and half a HELLO: others are served in the meantime, and the deadline ends both.
fn silent_clients(setup: &Setup) -> Result<(), RowError> {
    let address = setup.address("silent");
    let mut host = protected_host(setup, &address, "timeout=700")?;
    let (mut silent, mut halting) = (hostile(setup)?, hostile(setup)?);
    expect_answer(&mut silent, &format!("connect {address}"), "connected")?;
    let start = Instant::now();
    expect_answer(&mut halting, &format!("connect {address}"), "connected")?;
    expect_answer(&mut halting, "half-hello", "sent")?;
    let answers = (
        silent.ask("receive-from-acceptor")?,
        halting.ask("receive-from-acceptor")?,
    );
    let late = start.elapsed();
    let timely = late > Duration::from_millis(600) && late < Duration::from_secs(10);
    let outcome = |answer: &str| answer.starts_with("refuse 5 HANDSHAKE_TIMEOUT");
    if !(outcome(&answers.0) && outcome(&answers.1) && timely) {
        return Err(RowError::wrong(format!(
            "expected HANDSHAKE_TIMEOUT in time for silent clients, got {answers:?} after {late:?}"
        )));
    }
    expect_answer(&mut silent, &format!("connect {address}"), "connected")?;
    expect_answer(&mut halting, &format!("connect {address}"), "connected")?;
    honest_guest(setup, &mut host, &address, "").map(drop)
}

/// Returns the harm done on a channel, if any.
fn abuse_open_line(setup: &Setup) -> Result<Option<String>, RowError> {
    let address = setup.address("rude");
    let (mut host, mut peer) = hostile_channel(setup, &address, "", "keep=1")?;
    let before = host.ask("descriptors")?;
    for round in 0..4 {
        // Back and forth, so both modes are tried.
        expect_answer(
            &mut peer,
            "nonblock",
            if round % 2 == 0 {
                "non-blocking"
            } else {
                "blocking"
            },
        )?;
        expect_answer(&mut peer, "fill", "filled")?;
        expect_answer(&mut peer, "parcel", "EAGAIN")?;
        let start = Instant::now();
        // Until the ring is full, because nothing reads it here.
        expect_answer(&mut host, "send more", if round == 0 { "sent" } else { "full" })?;
        expect_answer(&mut host, "receive 50", "nothing")?;
        expect_answer(&mut host, "fill-and-wait 50", "full")?;
        if start.elapsed() > Duration::from_secs(10) {
            return Ok(Some("the host was blocked".into()));
        }
        expect_answer(&mut peer, "garbage 3", "")?;
        expect_answer(&mut peer, "parcel", "")?;
        expect_answer(&mut host, "receive 50", "nothing")?;
    }
    let after = host.ask("descriptors")?;
    if before != after {
        return Ok(Some(format!("{before} descriptors before, {after} after")));
    }
    expect_answer(&mut peer, "message after-all", "")?;
    expect_answer(&mut host, "receive 10000", "got 9 after-all")?;
    expect_answer(&mut host, "close", "closed")?;
    Ok(None)
}

/// Row 38: the peer never reads.
///
/// Defence: a full ring is a result (`false` of `try_send`) or a wait, and a wait ends with the
/// channel.
pub(super) fn peer_never_reads(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, _guest) = plain_and_hostile(setup, &setup.address("plain"))?;
    let plain = match host.try_ask("send-all 100", Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded("the producer waits forever"),
        other => Outcome::failed(format!("{other:?}")),
    };
    let (mut host, _peer) = hostile_channel(setup, &setup.address("ringfence"), "", "")?;
    expect_answer(&mut host, "fill-and-wait 100", "full")?;
    let answer = host.ask("stuck-close")?;
    if !(answer.starts_with("closed at once") && answer.contains("error CLOSED")) {
        return Ok(Report::with_harm(plain, answer));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("the ring is full; close() ends another thread's wait at once (CLOSED)"),
        stopped_by: "backpressure; waits end with the channel",
    })
}

/// Row 39: the peer passes a line on which the kernel installs a descriptor of the sender with each read
/// (`SO_PASSPIDFD`, unix(7)), and sends its frames byte by byte.
///
/// Defence: the option is reset before the first read. A peer that sets it again is detected by the
/// first unexpected control message: the received descriptors are closed, and the handshake ends.
pub(super) fn pidfds(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut victim = plain(setup, "the victim")?;
    victim.send_order(&format!("take-line {address}"))?;
    victim.line_after("listening")?;
    let args = ["attacker", "pidfds", &address];
    let mut attacker = setup.spawn("the attacker", User::Agent, Program::Genuine, &args)?;
    match &*attacker.line()? {
        "sent" => {}
        other => return Err(RowError::Skipped(format!("needs Linux 6.5: {other}"))),
    }
    let plain = match &*victim.line()? {
        "left 0" => Outcome::failed("no descriptor is left"),
        left => Outcome::succeeded(format!("64 bytes on a line leave {left} descriptors open")),
    };

    let address = setup.address("ringfence");
    let mut host = protected_host(setup, &address, "")?;
    let before = host.ask("descriptors")?;
    let mut peer = hostile(setup)?;
    expect_answer(&mut peer, &format!("connect {address}"), "connected")?;
    expect_answer(&mut peer, "hello keep=1", "sent")?;
    expect_answer(&mut peer, "receive", "hello")?;
    expect_answer(&mut peer, "receive", "offer")?;
    expect_answer(&mut peer, "set-passpidfd", "set")?;
    expect_answer(&mut peer, "byte-by-byte", "ok")?;
    expect_answer(&mut peer, "ready", "sent")?;
    let answer = peer.ask("receive")?;
    expect_answer(&mut peer, "disconnect", "disconnected")?;
    // The host closes a guest's descriptors a moment after it has sent the reason.
    let end = Instant::now() + super::TIME_LIMIT;
    loop {
        let left = host.ask("descriptors")?;
        if left == before {
            break;
        }
        if Instant::now() > end {
            let seen = format!("{answer}; {left} descriptors, {before} before");
            return Ok(Report::with_harm(plain, seen));
        }
    }
    if !(answer.starts_with("refuse 3 ") && answer.contains("control message")) {
        return Err(RowError::wrong(answer));
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PROTOCOL; no descriptor is left; the host accepts the next client"),
        stopped_by: "every received descriptor is owned at once, and an unexpected one ends the handshake",
    })
}
