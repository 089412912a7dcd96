//! Data on the line, and its absence.

use std::time::{Duration, Instant};

use super::{
    Event, SIZE, fenced_host, hand, honest_guest, hostile_channel, must, plain, ring::plain_and_hand,
};
use crate::{
    Outcome, Report, RowError,
    stage::{Program, Stage, Who},
};

/// Row 36: a peer that sends half of a frame and then nothing. A peer that changes the mode of the shared
/// socket, fills its buffers, and sends garbage, with and without descriptors.
///
/// Defence: all waits of a handshake share one deadline, and clients are served in parallel. On a
/// channel, every call on the line is individually non-blocking (`MSG_DONTWAIT`). Received bytes are read and
/// discarded, and descriptors are never installed (recv instead of recvmsg).
pub(super) fn rude(stage: &Stage) -> Result<Report, RowError> {
    let plain = half_a_struct(stage)?;
    silent_newcomers(stage)?;
    if let Some(harm) = rude_on_a_channel(stage)? {
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
fn half_a_struct(stage: &Stage) -> Result<Outcome, RowError> {
    let address = stage.address("plain");
    let mut host = stage.spawn(
        "the hostile host",
        Who::Agent,
        Program::Genuine,
        &["hand", "plain", "host", &address, "half"],
    )?;
    host.line_after("listening")?;
    let mut guest = plain(stage, "the guest")?;
    guest.send_order(&format!("join {address} {SIZE}"))?;
    host.line_after("passed")?;
    Ok(match guest.next_event(Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded("waits forever for the rest of a struct"),
        other => Outcome::failed(format!("{other:?}")),
    })
}

/// Tests silent clients and half a HELLO: others are served in the meantime, and the deadline ends both.
fn silent_newcomers(stage: &Stage) -> Result<(), RowError> {
    let address = stage.address("silent");
    let mut host = fenced_host(stage, &address, "timeout=700")?;
    let (mut silent, mut halting) = (hand(stage)?, hand(stage)?);
    must(&mut silent, &format!("connect {address}"), "connected")?;
    let start = Instant::now();
    must(&mut halting, &format!("connect {address}"), "connected")?;
    must(&mut halting, "half-hello", "said")?;
    let answers = (silent.ask("hear-acceptor")?, halting.ask("hear-acceptor")?);
    let late = start.elapsed();
    let timely = late > Duration::from_millis(600) && late < Duration::from_secs(10);
    let told = |answer: &str| answer.starts_with("refuse 5 HANDSHAKE_TIMEOUT");
    if !(told(&answers.0) && told(&answers.1) && timely) {
        return Err(RowError::wrong(format!(
            "expected HANDSHAKE_TIMEOUT in time for silent clients, got {answers:?} after {late:?}"
        )));
    }
    must(&mut silent, &format!("connect {address}"), "connected")?;
    must(&mut halting, &format!("connect {address}"), "connected")?;
    honest_guest(stage, &mut host, &address, "").map(drop)
}

/// Returns the harm done on a channel, if any.
fn rude_on_a_channel(stage: &Stage) -> Result<Option<String>, RowError> {
    let address = stage.address("rude");
    let (mut host, mut peer) = hostile_channel(stage, &address, "", "keep=1")?;
    let before = host.ask("descriptors")?;
    for round in 0..4 {
        // Back and forth, so both modes are tried.
        must(
            &mut peer,
            "nonblock",
            if round % 2 == 0 {
                "non-blocking"
            } else {
                "blocking"
            },
        )?;
        must(&mut peer, "fill", "filled")?;
        must(&mut peer, "parcel", "EAGAIN")?;
        let start = Instant::now();
        // Until the ring is full, because nothing reads it here.
        must(&mut host, "send more", if round == 0 { "sent" } else { "full" })?;
        must(&mut host, "receive 50", "nothing")?;
        must(&mut host, "stuff 50", "full")?;
        if start.elapsed() > Duration::from_secs(10) {
            return Ok(Some("the host was blocked".into()));
        }
        must(&mut peer, "garbage 3", "")?;
        must(&mut peer, "parcel", "")?;
        must(&mut host, "receive 50", "nothing")?;
    }
    let after = host.ask("descriptors")?;
    if before != after {
        return Ok(Some(format!("{before} descriptors before, {after} after")));
    }
    must(&mut peer, "message after-all", "")?;
    must(&mut host, "receive 10000", "got 9 after-all")?;
    must(&mut host, "close", "closed")?;
    Ok(None)
}

/// Row 38: the peer never reads.
///
/// Defence: a full ring is a result (`false` of `try_send`) or a wait, and a wait ends with the
/// channel.
pub(super) fn never_reads(stage: &Stage) -> Result<Report, RowError> {
    let (mut host, _guest) = plain_and_hand(stage, &stage.address("plain"))?;
    let plain = match host.try_ask("send-all 100", Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded("the producer waits forever"),
        other => Outcome::failed(format!("{other:?}")),
    };
    let (mut host, _peer) = hostile_channel(stage, &stage.address("ringfence"), "", "")?;
    must(&mut host, "stuff 100", "full")?;
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
pub(super) fn pidfds(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut victim = plain(stage, "the victim")?;
    victim.send_order(&format!("take-line {address}"))?;
    victim.line_after("listening")?;
    let args = ["attacker", "pidfds", &address];
    let mut attacker = stage.spawn("the attacker", Who::Agent, Program::Genuine, &args)?;
    match &*attacker.line()? {
        "said" => {}
        other => return Err(RowError::Skipped(format!("needs Linux 6.5: {other}"))),
    }
    let plain = match &*victim.line()? {
        "left 0" => Outcome::failed("no descriptor is left"),
        left => Outcome::succeeded(format!("64 bytes on a line leave {left} descriptors open")),
    };

    let address = stage.address("ringfence");
    let mut host = fenced_host(stage, &address, "")?;
    let before = host.ask("descriptors")?;
    let mut peer = hand(stage)?;
    must(&mut peer, &format!("connect {address}"), "connected")?;
    must(&mut peer, "hello keep=1", "said")?;
    must(&mut peer, "hear", "hello")?;
    must(&mut peer, "hear", "offer")?;
    must(&mut peer, "ask-for-pidfds", "asked")?;
    must(&mut peer, "pieces", "as told")?;
    must(&mut peer, "ready", "said")?;
    let answer = peer.ask("hear")?;
    must(&mut peer, "hang-up", "hung up")?;
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
    honest_guest(stage, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PROTOCOL; no descriptor is left; the host accepts the next client"),
        stopped_by: "every received descriptor is owned at once, and an unexpected one ends the handshake",
    })
}
