//! The content of the shared memory.

use super::{Event, answer_or_exit, expect_answer, hostile, hostile_channel, plain};
use crate::{
    Outcome, Report, RowError,
    plain::{data_of, tail_of},
    process::Process,
    protocol::layout,
    setup::{Program, Setup, User},
};

use super::SIZE;

/// Starts a host of the plain program and a guest that performs each step by hand.
pub(super) fn plain_and_hostile(setup: &Setup, address: &str) -> Result<(Process, Process), RowError> {
    let mut host = plain(setup, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    let mut hostile = setup.spawn(
        "the hostile guest",
        User::Agent,
        Program::Genuine,
        &["hostile", "plain", "guest", address],
    )?;
    hostile.line_after("holding")?;
    host.line_after("joined host")?;
    Ok((host, hostile))
}

const CAPACITY: u64 = 64 * 1024;
const WHOLE: u32 = layout::FIRST | layout::LAST;

/// Makes a record's header.
const fn header(length: u64, flags: u32) -> u64 {
    length | (flags as u64) << 32
}

/// Returns violations by the writer of a ring: values and where they are stored, in order.
fn malformed_tails() -> Vec<(&'static str, Vec<(usize, u64)>)> {
    let (tail, data) = (layout::TAIL, layout::DATA);
    let record = |length, flags, published| vec![(data, header(length, flags)), (tail, published)];
    vec![
        ("an unaligned tail", vec![(tail, 12)]),
        ("a tail more than a ring ahead", vec![(tail, CAPACITY + 8)]),
        ("a tail behind zero", vec![(tail, u64::MAX - 7)]),
        ("a tail half the number space ahead", vec![(tail, 1 << 63)]),
        ("a record longer than what is published", record(64, WHOLE, 16)),
        (
            "the longest possible record",
            record(u64::from(u32::MAX), WHOLE, CAPACITY),
        ),
        (
            "a length just short of overflow",
            record(u64::from(u32::MAX) - 7, WHOLE, CAPACITY),
        ),
        (
            "a record above half the ring",
            record(CAPACITY / 2 + 8, WHOLE, CAPACITY),
        ),
        (
            "the whole ring as one record",
            record(CAPACITY - 8, WHOLE, CAPACITY),
        ),
        ("a gap longer than what is published", record(8, 8 | WHOLE, 16)),
        ("unknown flags", record(8, 32 | WHOLE, 16)),
        ("all flags", record(8, u32::MAX, 16)),
        ("no flags", record(8, 0, 16)),
        ("a last fragment without a first", record(8, layout::LAST, 16)),
        ("padding in the middle", record(8, layout::PADDING, 64)),
        (
            "a first fragment too short for its size",
            record(8, layout::FIRST, 16),
        ),
        (
            "a message longer than agreed",
            [vec![(data + 8, 1 << 40)], record(16, layout::FIRST, 24)].concat(),
        ),
        (
            "a message shorter than its first fragment",
            [vec![(data + 8, 4)], record(16, layout::FIRST, 24)].concat(),
        ),
        (
            "a whole message inside another",
            [
                vec![(data + 8, 100), (data + 24, header(8, WHOLE))],
                record(16, layout::FIRST, 40),
            ]
            .concat(),
        ),
        (
            "more fragments than the message has",
            [
                vec![(data + 8, 16), (data + 24, header(64, layout::LAST))],
                record(16, layout::FIRST, 96),
            ]
            .concat(),
        ),
        (
            "an empty fragment",
            [
                vec![(data + 8, 100), (data + 24, header(0, 0))],
                record(16, layout::FIRST, 32),
            ]
            .concat(),
        ),
        ("an unknown phase", vec![(layout::PHASE, 77)]),
    ]
}

/// Returns violations by the reader of a ring.
fn malformed_heads() -> Vec<(&'static str, Vec<(usize, u64)>)> {
    let head = layout::HEAD;
    vec![
        ("a head past what was published", vec![(head, CAPACITY * 2)]),
        ("an unaligned head", vec![(head, 12)]),
        ("a head behind zero", vec![(head, u64::MAX - 7)]),
        ("a head half the number space ahead", vec![(head, 1 << 63)]),
    ]
}

/// Row 33: a peer that passed every check writes invalid words and headers: at rest, one after the other, and
/// as fast as it can while they are read.
///
/// Defence: every word is read once into a local and checked against facts that this process knows
/// itself. A violation ends the channel (`RING_CORRUPT`), and the process continues.
pub(super) fn malformed_ring(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let (mut host, mut guest) = plain_and_hostile(setup, &address)?;
    // A record of four gigabytes in a ring of thirty kilobytes.
    expect_answer(
        &mut guest,
        &format!("store {} {}", data_of(1, SIZE), u32::MAX - 16),
        "stored",
    )?;
    expect_answer(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    let plain = match answer_or_exit(&mut host, "receive 10000") {
        Event::Exited(how) => Outcome::succeeded(format!("reads out of bounds: {how}")),
        Event::Line(answer) if answer.starts_with("got 4294967279") => {
            Outcome::succeeded("reads out of bounds")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut pair = Writer {
        setup,
        host: super::protected(setup, "the host")?,
        peer: hostile(setup)?,
    };
    let pid = pair.host.ask("pid")?;
    let named = pair.one_at_a_time()?;
    for round in 0..STORMS + SIZES {
        if let Err(harm) = pair.storm(round)? {
            return Ok(Report::with_harm(plain, harm));
        }
    }
    if pair.host.ask("pid")? != pid {
        return Err(RowError::wrong("the host is another process"));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "RING_CORRUPT for each of {named} false values; the process survives {} storms",
            STORMS + SIZES
        )),
        stopped_by: "each shared word is read once and checked against private state",
    })
}

/// A process that makes one channel after the other with a peer that violates the protocol on each.
struct Writer<'setup> {
    setup: &'setup Setup,
    host: Process,
    peer: Process,
}

impl Writer<'_> {
    fn channel(&mut self, name: &str) -> Result<(), RowError> {
        let address = self.setup.address(name);
        super::join_as_host(&mut self.host, &address, "")?;
        expect_answer(&mut self.peer, &format!("channel {address}"), "channel")?;
        self.host.line_after("joined host").map(drop)
    }

    /// Stores the values and requires that the host reports the violation.
    fn found(&mut self, false_value: &str, stores: &[(usize, u64)], order: &str) -> Result<(), RowError> {
        for (at, value) in stores {
            expect_answer(&mut self.peer, &format!("store {at} {value}"), "stored")?;
        }
        let answer = self.host.try_ask(order, super::TIME_LIMIT);
        match &answer {
            Event::Line(found) if found.starts_with("error RING_CORRUPT") => {}
            other => return Err(RowError::wrong(format!("{false_value}: {other:?}"))),
        }
        expect_answer(&mut self.host, "reason", "corrupt")?;
        expect_answer(&mut self.host, "close", "closed")
    }

    /// Tries every violation separately. Returns their number.
    fn one_at_a_time(&mut self) -> Result<usize, RowError> {
        let mut count = 0;
        for (lies, order) in [
            (malformed_tails(), "receive 300"),
            (malformed_heads(), "fill-and-wait 300"),
        ] {
            for (false_value, stores) in lies {
                count += 1;
                self.channel(&format!("malformed-{count}"))?;
                self.found(false_value, &stores, order)?;
            }
        }
        // A value that goes back: a tail that was already further.
        self.channel("backwards")?;
        expect_answer(&mut self.peer, "message honest", "woken")?;
        expect_answer(&mut self.host, "receive 10000", "got 6 honest")?;
        self.found("a tail that moves backwards", &[(layout::TAIL, 0)], "receive 300")?;
        Ok(count + 1)
    }

    /// Changes words while the host reads, in one of the ways to read. Returns an inner `Err` with the harm,
    /// if any.
    fn storm(&mut self, round: usize) -> Result<Result<(), String>, RowError> {
        let (how, number, time) = if round < STORMS {
            // Not a multiple of five: those are about sizes.
            (
                ["receive", "packed", "part", "drain"][round % 4],
                round * 35 + round % 4 + 1,
                150,
            )
        } else {
            (["receive", "drain"][round % 2], round * 5, 40)
        };
        self.channel(&format!("storm-{round}"))?;
        expect_answer(&mut self.peer, &format!("storm {number}"), "storming")?;
        let answer = self
            .host
            .try_ask(&format!("work {how} {time}"), super::TIME_LIMIT);
        expect_answer(&mut self.peer, "stop-storm", "storm stopped")?;
        let Event::Line(line) = &answer else {
            return Ok(Err(format!("{how}, storm {round}: {answer:?}")));
        };
        let end = line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        if !(end.starts_with("error RING_CORRUPT") || end == "still open") {
            return Ok(Err(format!(
                "a false value is reported as the caller's error ({how}, storm {round}): {end}"
            )));
        }
        expect_answer(&mut self.host, "close", "closed").map(Ok)
    }
}

/// The number of channels with a peer that changes any word as fast as it can.
const STORMS: usize = 16;
/// The number of channels with a peer that changes only the sizes of fragmented messages, at the start of a
/// channel.
const SIZES: usize = 40;

/// Row 34: a peer changes a message after the reader has checked it and before the reader uses it. A program
/// that works on the shared memory itself reads twice and gets two results.
///
/// Defence: `receive` returns a copy in the receiver's private memory.
pub(super) fn double_fetch(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hostile(setup, &setup.address("plain"))?;
    let data = data_of(1, SIZE);
    expect_answer(&mut guest, &format!("store {data} 8"), "stored")?;
    expect_answer(&mut guest, &format!("write {} allowed!", data + 4), "written")?;
    expect_answer(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    expect_answer(&mut host, "receive 10000", "got 8 allowed!")?;
    expect_answer(&mut guest, &format!("write {} deadly!!", data + 4), "written")?;
    let plain = match &*host.ask("again")? {
        "got 8 deadly!!" => Outcome::succeeded("the message changes between its check and its use"),
        other => Outcome::failed(other),
    };

    let (mut host, mut guest) = hostile_channel(setup, &setup.address("ringfence"), "", "")?;
    expect_answer(&mut guest, "message allowed!", "woken")?;
    expect_answer(&mut host, "receive 10000", "got 8 allowed!")?;
    expect_answer(
        &mut guest,
        &format!("write {} deadly!!", layout::DATA + 8),
        "written",
    )?;
    expect_answer(
        &mut guest,
        &format!("store {} {}", layout::DATA, header(4, WHOLE)),
        "stored",
    )?;
    let ringfence = match &*host.ask("again")? {
        "got 8 allowed!" => Outcome::failed("the message does not change"),
        other => Outcome::succeeded(other),
    };
    Ok(Report {
        plain,
        ringfence,
        stopped_by: "the caller gets a private copy",
    })
}

/// The number of bytes that the victim of row 41 may still allocate: less than an eighth of the dead peer's
/// ring.
const MEMORY_LIMIT: u64 = 32 << 20;

/// Row 41: a peer chooses sizes for which the victim would pay: of a message, of its ring, and of the data
/// that it leaves behind.
///
/// Defence: a ring above `max_peer_capacity` is refused in HELLO, before anything is made or mapped.
/// The data of a dead peer is read in place, without a copy.
pub(super) fn huge_ring(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hostile(setup, &setup.address("plain"))?;
    expect_answer(&mut host, &format!("limit-memory {MEMORY_LIMIT}"), "limited")?;
    expect_answer(
        &mut guest,
        &format!("store {} {}", data_of(1, SIZE), u32::MAX - 16),
        "stored",
    )?;
    expect_answer(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    let plain = match answer_or_exit(&mut host, "receive 10000") {
        Event::Exited(how) => Outcome::succeeded(format!(
            "allocates as much memory as the peer claims, and is killed: {how}"
        )),
        other => Outcome::failed(format!("{other:?}")),
    };

    let address = setup.address("ringfence");
    let mut host = super::protected_host(setup, &address, "")?;
    let mut peer = hostile(setup)?;
    expect_answer(&mut peer, &format!("connect {address}"), "connected")?;
    expect_answer(&mut peer, &format!("hello capacity={}", 1_u64 << 40), "sent")?;
    let refused = peer.ask("receive-from-acceptor")?;
    for number in [1_u64 << 40, 1 << 30] {
        if !refused.starts_with("refuse 3") || !refused.contains(&number.to_string()) {
            return Ok(Report::with_harm(plain, format!("a ring of 1 TiB: {refused}")));
        }
    }
    let ring = 256_u64 << 20;
    expect_answer(
        &mut peer,
        &format!("channel {address} capacity={ring}"),
        "channel",
    )?;
    host.line_after("joined host")?;
    let length = (1 << 20) - 8;
    let filled = peer.ask(&format!("fill {length}"))?;
    let count: u64 = filled
        .strip_prefix("filled ")
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| RowError::wrong(filled.clone()))?;
    let before = own_memory(&mut host)?;
    expect_answer(&mut host, &format!("limit-memory {MEMORY_LIMIT}"), "limited")?;
    // Dropping it kills it.
    drop(peer);
    for index in 0..count {
        match host.try_ask("receive 10000", super::TIME_LIMIT) {
            Event::Line(line) if line.starts_with(&format!("got {length} ")) => {}
            other => {
                return Ok(Report::with_harm(
                    plain,
                    format!("message {index} of {count}: {other:?}"),
                ));
            }
        }
        // At the first message, all data is still in the ring.
        if index == 0 {
            let grown = own_memory(&mut host)?.saturating_sub(before);
            if grown >= MEMORY_LIMIT {
                return Ok(Report::with_harm(plain, format!("{grown} bytes were copied")));
            }
        }
    }
    let last = host.ask("receive 10000")?;
    if !super::is_lost(&last) {
        return Err(RowError::wrong(last));
    }
    expect_answer(&mut host, "reason", "lost")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "a ring of 1 TiB: {refused}; {count} messages of a dead peer were read in place"
        )),
        stopped_by: "max_peer_capacity; a mapping survives its owner's exit",
    })
}

fn own_memory(process: &mut Process) -> Result<u64, RowError> {
    let answer = process.ask("own-memory")?;
    answer.parse().map_err(|_| RowError::wrong(answer))
}

/// Starts a program that calls the hostile peer, and has made one call.
fn caller_and_hostile(setup: &Setup, address: &str) -> Result<(Process, Process), RowError> {
    let args = ["caller", address];
    let mut caller = setup.spawn("the caller", User::Agent, Program::Genuine, &args)?;
    let mut server = hostile(setup)?;
    expect_answer(&mut server, &format!("channel {address}"), "channel")?;
    caller.line_after("joined")?;
    expect_answer(&mut caller, "call first", "called")?;
    Ok((caller, server))
}

/// Row 66: a peer answers a call twice, or a call that was never made. A program that takes the next message for the reply to its last
/// request then takes the second reply to one request for the reply to the next one.
///
/// Defence: replies have the numbers of their calls. A reply to a call that does not wait for one ends the channel.
pub(super) fn invalid_replies(setup: &Setup) -> Result<Report, RowError> {
    let (mut caller, mut server) = plain_and_hostile(setup, &setup.address("plain"))?;
    expect_answer(&mut caller, "send first?", "sent")?;
    // Two replies of 4 bytes.
    for record in [0, 8] {
        let at = data_of(1, SIZE) + record;
        let reply = u64::from(u32::from_le_bytes(*b"one!")) << 32 | 4;
        expect_answer(&mut server, &format!("store {at} {reply}"), "stored")?;
    }
    expect_answer(&mut server, &format!("store {} 16", tail_of(1)), "stored")?;
    expect_answer(&mut caller, "receive 10000", "got 4 one!")?;
    expect_answer(&mut caller, "done", "done")?;
    expect_answer(&mut caller, "send second?", "sent")?;
    let plain = match &*caller.ask("receive 10000")? {
        "got 4 one!" => Outcome::succeeded("the second call gets the reply to the first one"),
        other => Outcome::failed(other),
    };

    // Whether the call was answered before, and the frame: of kind 2 a reply, of 3 an error, of 5 the answer to a cancel.
    let violations = [
        (true, "2 0 again"),
        (true, "3 0"),
        (true, "5 0"),
        (false, "2 1 early"),
        (false, "3 1"),
        (false, "2 9007199254740991 none"),
        (false, "5 0"),
    ];
    for (index, (answered, frame)) in violations.into_iter().enumerate() {
        let (mut caller, mut server) = caller_and_hostile(setup, &setup.address(&format!("call-{index}")))?;
        if answered {
            expect_answer(&mut server, "frame 2 0 one!", "woken")?;
            expect_answer(&mut caller, "reply", "got one!")?;
            expect_answer(&mut caller, "call second", "called")?;
        }
        expect_answer(&mut server, &format!("frame {frame}"), "woken")?;
        let answer = caller.ask("reply")?;
        if !answer.starts_with("error RING_CORRUPT") {
            return Ok(Report::with_harm(plain, format!("frame {frame}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!("each of {} kinds ends the channel", violations.len())),
        stopped_by: "replies have the numbers of their calls, and only a call that waits accepts one",
    })
}
