//! The content of the shared memory.

use super::{Event, died, hand, hostile_channel, must, plain};
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    plain::{data_of, tail_of},
    protocol::layout,
    stage::{Program, Stage, Who},
};

use super::SIZE;

/// Starts a host of the plain program and a guest that performs each step by hand.
pub(super) fn plain_and_hand(stage: &Stage, address: &str) -> Result<(Actor, Actor), RowError> {
    let mut host = plain(stage, "the host")?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    let mut hand = stage.spawn(
        "the hostile guest",
        Who::Agent,
        Program::Genuine,
        &["hand", "plain", "guest", address],
    )?;
    hand.line_after("holding")?;
    host.line_after("joined host")?;
    Ok((host, hand))
}

const CAPACITY: u64 = 64 * 1024;
const WHOLE: u32 = layout::FIRST | layout::LAST;

/// Makes a record's header.
const fn header(length: u64, flags: u32) -> u64 {
    length | (flags as u64) << 32
}

/// Returns violations by the writer of a ring: values and where they are stored, in order.
fn lies_of_a_producer() -> Vec<(&'static str, Vec<(usize, u64)>)> {
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
fn lies_of_a_consumer() -> Vec<(&'static str, Vec<(usize, u64)>)> {
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
pub(super) fn lies(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let (mut host, mut guest) = plain_and_hand(stage, &address)?;
    // A record of four gigabytes in a ring of thirty kilobytes.
    must(
        &mut guest,
        &format!("store {} {}", data_of(1, SIZE), u32::MAX - 16),
        "stored",
    )?;
    must(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    let plain = match died(&mut host, "receive 10000") {
        Event::Exited(how) => Outcome::succeeded(format!("reads out of bounds: {how}")),
        Event::Line(answer) if answer.starts_with("got 4294967279") => {
            Outcome::succeeded("reads out of bounds")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut pair = Liar {
        stage,
        host: super::fenced(stage, "the host")?,
        peer: hand(stage)?,
    };
    let pid = pair.host.ask("pid")?;
    let named = pair.at_rest()?;
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
struct Liar<'stage> {
    stage: &'stage Stage,
    host: Actor,
    peer: Actor,
}

impl Liar<'_> {
    fn channel(&mut self, name: &str) -> Result<(), RowError> {
        let address = self.stage.address(name);
        super::host_again(&mut self.host, &address, "")?;
        must(&mut self.peer, &format!("channel {address}"), "channel")?;
        self.host.line_after("joined host").map(drop)
    }

    /// Stores the values and requires that the host reports the violation.
    fn found(&mut self, lie: &str, stores: &[(usize, u64)], order: &str) -> Result<(), RowError> {
        for (at, value) in stores {
            must(&mut self.peer, &format!("store {at} {value}"), "stored")?;
        }
        let answer = self.host.try_ask(order, super::TIME_LIMIT);
        match &answer {
            Event::Line(found) if found.starts_with("error RING_CORRUPT") => {}
            other => return Err(RowError::wrong(format!("{lie}: {other:?}"))),
        }
        must(&mut self.host, "reason", "corrupt")?;
        must(&mut self.host, "close", "closed")
    }

    /// Tries every violation separately. Returns their number.
    fn at_rest(&mut self) -> Result<usize, RowError> {
        let mut count = 0;
        for (lies, order) in [
            (lies_of_a_producer(), "receive 300"),
            (lies_of_a_consumer(), "stuff 300"),
        ] {
            for (lie, stores) in lies {
                count += 1;
                self.channel(&format!("lie-{count}"))?;
                self.found(lie, &stores, order)?;
            }
        }
        // A value that goes back: a tail that was already further.
        self.channel("backwards")?;
        must(&mut self.peer, "message honest", "rung")?;
        must(&mut self.host, "receive 10000", "got 6 honest")?;
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
        must(&mut self.peer, &format!("storm {number}"), "storming")?;
        let answer = self
            .host
            .try_ask(&format!("work {how} {time}"), super::TIME_LIMIT);
        must(&mut self.peer, "calm", "calm")?;
        let Event::Line(line) = &answer else {
            return Ok(Err(format!("{how}, storm {round}: {answer:?}")));
        };
        let end = line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        if !(end.starts_with("error RING_CORRUPT") || end == "still open") {
            return Ok(Err(format!(
                "a false value is reported as the caller's error ({how}, storm {round}): {end}"
            )));
        }
        must(&mut self.host, "close", "closed").map(Ok)
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
pub(super) fn double_fetch(stage: &Stage) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hand(stage, &stage.address("plain"))?;
    let data = data_of(1, SIZE);
    must(&mut guest, &format!("store {data} 8"), "stored")?;
    must(&mut guest, &format!("write {} allowed!", data + 4), "written")?;
    must(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    must(&mut host, "receive 10000", "got 8 allowed!")?;
    must(&mut guest, &format!("write {} deadly!!", data + 4), "written")?;
    let plain = match &*host.ask("again")? {
        "got 8 deadly!!" => Outcome::succeeded("the message changes between its check and its use"),
        other => Outcome::failed(other),
    };

    let (mut host, mut guest) = hostile_channel(stage, &stage.address("ringfence"), "", "")?;
    must(&mut guest, "message allowed!", "rung")?;
    must(&mut host, "receive 10000", "got 8 allowed!")?;
    must(
        &mut guest,
        &format!("write {} deadly!!", layout::DATA + 8),
        "written",
    )?;
    must(
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
const LITTLE: u64 = 32 << 20;

/// Row 41: a peer chooses sizes for which the victim would pay: of a message, of its ring, and of the data
/// that it leaves behind.
///
/// Defence: a ring above `max_peer_capacity` is refused in HELLO, before anything is made or mapped.
/// The data of a dead peer is read in place, without a copy.
pub(super) fn heavy(stage: &Stage) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hand(stage, &stage.address("plain"))?;
    must(&mut host, &format!("limit-memory {LITTLE}"), "limited")?;
    must(
        &mut guest,
        &format!("store {} {}", data_of(1, SIZE), u32::MAX - 16),
        "stored",
    )?;
    must(&mut guest, &format!("store {} 16", tail_of(1)), "stored")?;
    let plain = match died(&mut host, "receive 10000") {
        Event::Exited(how) => Outcome::succeeded(format!(
            "allocates as much memory as the peer claims, and is killed: {how}"
        )),
        other => Outcome::failed(format!("{other:?}")),
    };

    let address = stage.address("ringfence");
    let mut host = super::fenced_host(stage, &address, "")?;
    let mut peer = hand(stage)?;
    must(&mut peer, &format!("connect {address}"), "connected")?;
    must(&mut peer, &format!("hello capacity={}", 1_u64 << 40), "said")?;
    let refused = peer.ask("hear-acceptor")?;
    for number in [1_u64 << 40, 1 << 30] {
        if !refused.starts_with("refuse 3") || !refused.contains(&number.to_string()) {
            return Ok(Report::with_harm(plain, format!("a ring of 1 TiB: {refused}")));
        }
    }
    let ring = 256_u64 << 20;
    must(
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
    must(&mut host, &format!("limit-memory {LITTLE}"), "limited")?;
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
            if grown >= LITTLE {
                return Ok(Report::with_harm(plain, format!("{grown} bytes were copied")));
            }
        }
    }
    let last = host.ask("receive 10000")?;
    if !super::is_lost(&last) {
        return Err(RowError::wrong(last));
    }
    must(&mut host, "reason", "lost")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "a ring of 1 TiB: {refused}; {count} messages of a dead peer were read in place"
        )),
        stopped_by: "max_peer_capacity; a mapping survives its owner's exit",
    })
}

fn own_memory(actor: &mut Actor) -> Result<u64, RowError> {
    let answer = actor.ask("own-memory")?;
    answer.parse().map_err(|_| RowError::wrong(answer))
}

/// Starts a program that calls the hostile peer, and has made one call.
fn caller_and_hand(stage: &Stage, address: &str) -> Result<(Actor, Actor), RowError> {
    let args = ["caller", address];
    let mut caller = stage.spawn("the caller", Who::Agent, Program::Genuine, &args)?;
    let mut server = hand(stage)?;
    must(&mut server, &format!("channel {address}"), "channel")?;
    caller.line_after("joined")?;
    must(&mut caller, "call first", "called")?;
    Ok((caller, server))
}

/// Row 66: a peer answers a call twice, or a call that was never made. A program that takes the next message for the reply to its last
/// request then takes the second reply to one request for the reply to the next one.
///
/// Defence: replies have the numbers of their calls. A reply to a call that does not wait for one ends the channel.
pub(super) fn replies(stage: &Stage) -> Result<Report, RowError> {
    let (mut caller, mut server) = plain_and_hand(stage, &stage.address("plain"))?;
    must(&mut caller, "send first?", "sent")?;
    // Two replies of 4 bytes.
    for record in [0, 8] {
        let at = data_of(1, SIZE) + record;
        let reply = u64::from(u32::from_le_bytes(*b"one!")) << 32 | 4;
        must(&mut server, &format!("store {at} {reply}"), "stored")?;
    }
    must(&mut server, &format!("store {} 16", tail_of(1)), "stored")?;
    must(&mut caller, "receive 10000", "got 4 one!")?;
    must(&mut caller, "done", "done")?;
    must(&mut caller, "send second?", "sent")?;
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
        let (mut caller, mut server) = caller_and_hand(stage, &stage.address(&format!("call-{index}")))?;
        if answered {
            must(&mut server, "frame 2 0 one!", "rung")?;
            must(&mut caller, "reply", "got one!")?;
            must(&mut caller, "call second", "called")?;
        }
        must(&mut server, &format!("frame {frame}"), "rung")?;
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
