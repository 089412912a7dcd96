//! Two processes that end their channel, or leave their place, at the same moment.

use std::sync::PoisonError;

use super::{
    expect_answer, honest_guest, hostile, join_as_host, protected,
    signals::{NUMBERS, QUEUE, plain_heir},
};
use crate::{
    Outcome, Report, RowError,
    process::{Event, Process, TIME_LIMIT},
    protocol::layout,
    setup::Setup,
};

/// The ways in which one side ends a channel, each with what the other side does in the meantime. (If both
/// ended their sending and then waited for the other's close, they would wait forever.)
const WAYS: [(&str, &str); 11] = [
    ("closes", "closes"),
    ("closes", "ends"),
    ("ends", "closes"),
    ("closes", "reads"),
    ("reads", "closes"),
    ("destroys", "ends"),
    ("ends", "destroys"),
    ("drops", "closes"),
    ("closes", "drops"),
    ("drops", "ends"),
    ("ends", "drops"),
];
/// Rounds of each in one batch, so that no answer takes as long as the time limit.
const ROUNDS: usize = 10;
const BATCHES: usize = 6;
/// The error of a call when the peer claims that its memory was opened.
const EXPOSED: &str = "error OBJECT_EXPOSED";
/// The number of rounds of each way to leave.
const LEAVES: usize = 15;

/// The phases that a manual peer announces: each with and without an end of its sending, and an invalid one.
const PHASES: [u64; 9] = [1, 2, 3, 4, 5, 10, 12, 13, 77];
/// The actions of the victim in the meantime, with the expected answers.
const ACTIONS: [(&str, &str); 3] = [
    ("close", "closed"),
    ("end", "ended"),
    ("receive 10000", "got 4 last"),
];

/// Row 45: a peer closes, half-closes or leaves at every moment of the other side's close.
///
/// The plain program has closed its socket, as the recipe says, and knows two things about its peer: whether
/// its process exists, and the announcement that it is about to exit. It checks its ring, then its peer. A
/// peer that sends its last message and exits between these two checks is taken for dead, and the message is
/// lost. A peer that sends the announcement, which is the only one for any kind of end, and stays is a second
/// host.
///
/// Defence: each side's phase is in its own memory, written after its messages, and is read before the
/// end of the line counts. A member that leaves hands over the address.
pub(super) fn concurrent_close(setup: &Setup) -> Result<Report, RowError> {
    let plain = {
        // It uses a signal, for which the queue needs space.
        let _turn = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
        plain_close(setup)?
    };
    let address = setup.address("ringfence");
    let (mut one, mut other) = (
        protected(setup, "the first member")?,
        protected(setup, "the second member")?,
    );
    for _ in 0..BATCHES {
        if let Some(wrong) = ends(&mut one, &mut other, &address)? {
            return Ok(Report::with_harm(plain, wrong));
        }
    }
    let address = setup.address("place");
    for round in 0..LEAVES {
        if let Some(wrong) = leaves(&mut one, &mut other, &format!("{address}-{round}"))? {
            return Ok(Report::with_harm(plain, format!("round {round}: {wrong}")));
        }
    }
    if let Some(wrong) = lies(setup)? {
        return Ok(Report::with_harm(plain, wrong));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "the actual end is always reported, all messages before it are read, and there is one host",
        ),
        stopped_by: "the phase in each side's memory, which is read before the closed line counts as an end",
    })
}

/// Shows how a plain program handles a peer that exits at the worst moment.
fn plain_close(setup: &Setup) -> Result<Outcome, RowError> {
    let (mut host, mut guest) = plain_heir(setup, &setup.address("plain"))?;
    // The first half of the guest's check.
    expect_answer(&mut guest, "receive 0", "nothing")?;
    expect_answer(&mut host, "send last", "sent")?;
    expect_answer(&mut host, &format!("announce-leave {}", NUMBERS.0), "announced")?;
    guest.line_after("took over")?;
    // It still exists, and has its channel.
    expect_answer(&mut host, "alive", "alive")?;
    host.send_order("exit")?;
    // Reaped as well, because a zombie would look alive.
    match host.next_event(TIME_LIMIT) {
        Event::Exited(how) if how == "exit status: 0" => {}
        other => {
            return Err(RowError::wrong(format!(
                "expected the host to exit, got {other:?}"
            )));
        }
    }
    // The second half.
    let answer = guest.ask("check-peer")?;
    Ok(if answer == "exited, 4 bytes unread" {
        Outcome::succeeded(
            "an orderly end is reported as a loss, the last message is lost, and there are two hosts for a while",
        )
    } else {
        Outcome::failed(answer)
    })
}

/// Lets both end a batch of channels. Returns what was reported wrongly.
fn ends(one: &mut Process, other: &mut Process, address: &str) -> Result<Option<String>, RowError> {
    let count = WAYS.len() * ROUNDS;
    let (ones, others): (Vec<&str>, Vec<&str>) = WAYS.into_iter().unzip();
    one.send_order(&format!("end-channels {address} {count} {}", ones.join(",")))?;
    other.send_order(&format!("end-channels {address} {count} {}", others.join(",")))?;
    // A side that sees an error stops, and the other then waits for a peer. So report both outputs.
    let answers = [one.next_event(TIME_LIMIT), other.next_event(TIME_LIMIT)];
    let wanted = Event::Line(format!("as promised {count}"));
    let wrong = answers.iter().any(|answer| *answer != wanted);
    Ok(wrong.then(|| format!("{answers:?}")))
}

/// A manual peer sends a message, announces a phase and hangs up, at about the moment at which the host
/// closes, half-closes or reads. The host then hosts again at the same address. Returns what was wrong.
fn lies(setup: &Setup) -> Result<Option<String>, RowError> {
    let address = setup.address("lies");
    let mut host = protected(setup, "the host")?;
    for (action, answer) in ACTIONS {
        for claim in PHASES {
            join_as_host(&mut host, &address, "")?;
            let mut hostile = hostile(setup)?;
            expect_answer(&mut hostile, &format!("channel {address}"), "channel")?;
            host.line_after("joined host")?;
            expect_answer(&mut hostile, "message last", "woken")?;
            // The three orders do not wait for each other.
            hostile.send_order(&format!("store {} {claim}", layout::PHASE))?;
            host.send_order(action)?;
            hostile.send_order("disconnect")?;
            let outcome = host.next_event(TIME_LIMIT);
            let exposed = claim == 3 && matches!(&outcome, Event::Line(line) if line.starts_with(EXPOSED));
            if outcome != Event::Line(answer.into()) && !exposed {
                return Ok(Some(format!("{action} with the claim {claim}: {outcome:?}")));
            }
            hostile.line_after("stored")?;
            hostile.line_after("disconnected")?;
            if action == "close" {
                continue;
            }
            let mut last = host.ask("receive 10000")?;
            while last.starts_with("got ") {
                last = host.ask("receive 10000")?;
            }
            let reason = host.ask("reason")?;
            // This side may still send to a peer that has ended its sending, so it need not have checked
            // whether the peer exists.
            let ends: &[&str] = match claim {
                1 => &["closed", "open"],
                3 => &["exposed"],
                77 => &["corrupt", "lost"],
                // It has closed without an end.
                _ => &["closed", "lost"],
            };
            if last == "nothing" || !ends.contains(&&*reason) {
                return Ok(Some(format!("{action} with the claim {claim}: {last}, {reason}")));
            }
            expect_answer(&mut host, "close", "closed")?;
        }
    }
    join_as_host(&mut host, &address, "")?;
    honest_guest(setup, &mut host, &address, "").map(|_| None)
}

/// One of two members leaves, or both do, at about the moment of the other's close. Returns what was wrong.
fn leaves(one: &mut Process, other: &mut Process, address: &str) -> Result<Option<String>, RowError> {
    let come = format!("member {address}");
    expect_answer(one, &come, "member host")?;
    expect_answer(other, &come, "member guest")?;
    meet(one, other)?;
    // The host leaves while the guest closes: the guest gets the place, and the member that left joins it.
    at_once(one, "leave", "left", other, "close", "closed")?;
    next(other, "role host")?;
    let again = one.ask(&come)?;
    if again != "member guest" {
        return Ok(Some(format!(
            "after the host left, it came back as {again} next to its successor"
        )));
    }
    meet(other, one)?;
    // The guest leaves while the host closes.
    at_once(one, "leave", "left", other, "close", "closed")?;
    let (role, again) = (other.ask("role")?, one.ask(&come)?);
    if role != "host" || again != "member guest" {
        return Ok(Some(format!(
            "after the guest left, it came back as {again} next to the {role}"
        )));
    }
    meet(other, one)?;
    // The host leaves while the guest ends its sending, and reads.
    expect_answer(other, "send last", "sent")?;
    at_once(other, "leave", "left", one, "end", "ended")?;
    let seen = [
        one.ask("receive 10000")?,
        one.ask("receive 10000")?,
        one.ask("reason")?,
    ];
    if seen != ["got 4 last", "end", "closed"] {
        return Ok(Some(format!("a host that left was reported as {seen:?}")));
    }
    next(one, "role host")?;
    expect_answer(other, &come, "member guest")?;
    meet(one, other)?;
    // Both leave: the place is free, and the next member gets it.
    at_once(one, "leave", "left", other, "leave", "left")?;
    let (first, second) = (one.ask(&come)?, other.ask(&come)?);
    if first != "member host" || second != "member guest" {
        return Ok(Some(format!(
            "after both left, they came back as {first} and {second}"
        )));
    }
    meet(one, other)?;
    at_once(one, "leave", "left", other, "leave", "left").map(|()| None)
}

/// Gives two members their channel.
fn meet(host: &mut Process, guest: &mut Process) -> Result<(), RowError> {
    for member in [&mut *host, &mut *guest] {
        loop {
            next(member, "channel")?;
            // A channel that the leave has ended immediately is still an event. A member that closes then
            // meets the other again.
            if member.ask("receive 0")? == "nothing" {
                break;
            }
        }
    }
    super::exchange_messages(host, guest)
}

/// Skips to the event that starts like this. Channels or handshakes that a leave cut short may precede it.
fn next(member: &mut Process, wanted: &str) -> Result<(), RowError> {
    loop {
        let change = member.ask("change 10000")?;
        if change.starts_with(wanted) {
            return Ok(());
        }
        if !change.starts_with("channel") && !change.starts_with("refused PEER_LOST") {
            return Err(RowError::wrong(format!("expected {wanted:?}, got {change:?}")));
        }
    }
}

/// Gives two orders that do not wait for each other.
fn at_once(
    one: &mut Process,
    order: &str,
    answer: &str,
    other: &mut Process,
    other_order: &str,
    other_answer: &str,
) -> Result<(), RowError> {
    one.send_order(order)?;
    other.send_order(other_order)?;
    one.line_after(answer)?;
    other.line_after(other_answer).map(drop)
}
