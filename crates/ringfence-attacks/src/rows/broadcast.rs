//! One to many: attacks of a subscriber on its publisher and on other subscribers, and of a publisher on its
//! subscribers.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    Event, TIME_LIMIT, died, hand, must,
    object::{UNSOUND_ATTACHMENTS, attach},
};
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    plain_many,
    protocol::layout,
    stage::{Program, Stage, Who},
};

/// The size of the ring of each ringfence publisher here, in bytes.
const CAPACITY: u64 = 64 * 1024;
/// Far more messages than a ring holds.
const MANY: &str = "500";

fn actor(stage: &Stage, name: &'static str, role: &'static str, of: &str) -> Result<Actor, RowError> {
    stage.spawn(name, Who::Agent, Program::Genuine, &[role, of])
}

/// Starts a publisher of the plain program.
fn plain_publisher(stage: &Stage, address: &str, options: &str) -> Result<Actor, RowError> {
    let mut publisher = actor(stage, "the publisher", "publisher", "plain")?;
    must(
        &mut publisher,
        &format!("publish {address} {options}"),
        "publishing",
    )?;
    Ok(publisher)
}

/// Starts a publisher, an honest and a hostile subscriber of the plain program.
fn plain_three(stage: &Stage) -> Result<[Actor; 3], RowError> {
    let address = stage.address("plain");
    let publisher = plain_publisher(stage, &address, "")?;
    let mut honest = actor(stage, "the honest subscriber", "subscriber", "plain")?;
    must(&mut honest, &format!("subscribe {address} 0"), "subscribed")?;
    let args = ["hand", "plain", "guest", &address];
    let mut hostile = stage.spawn("the hostile subscriber", Who::Agent, Program::Genuine, &args)?;
    hostile.line_after("holding")?;
    Ok([publisher, honest, hostile])
}

/// Checks whether the publisher of the plain program can still send.
fn plain_sends(publisher: &mut Actor) -> Result<Outcome, RowError> {
    let answer = publisher.ask(&format!("send-all {MANY}"))?;
    Ok(if answer == "all sent" {
        Outcome::failed(answer)
    } else {
        Outcome::succeeded(format!("it can no longer send to any subscriber: {answer}"))
    })
}

/// Starts a ringfence publisher and an honest subscriber.
fn fenced_two(stage: &Stage, address: &str, options: &str) -> Result<(Actor, Actor), RowError> {
    let mut publisher = actor(stage, "the publisher", "publisher", "ringfence")?;
    must(
        &mut publisher,
        &format!("publish {address} {options}"),
        "publishing",
    )?;
    let mut honest = actor(stage, "the honest subscriber", "subscriber", "ringfence")?;
    subscribe(&mut honest, address, "reliable")?;
    comes(&mut publisher, &honest)?;
    Ok((publisher, honest))
}

fn subscribe(subscriber: &mut Actor, address: &str, delivery: &str) -> Result<(), RowError> {
    must(
        subscriber,
        &format!("subscribe {address} {delivery} now"),
        "subscribed",
    )
}

fn comes(publisher: &mut Actor, who: &Actor) -> Result<(), RowError> {
    must(publisher, "event", &format!("came {}", who.pid()))
}

/// Starts a hostile ringfence subscriber.
fn hostile(stage: &Stage, publisher: &mut Actor, address: &str) -> Result<Actor, RowError> {
    let mut hostile = hand(stage)?;
    must(&mut hostile, &format!("subscribe {address}"), "subscribed")?;
    comes(publisher, &hostile)?;
    Ok(hostile)
}

/// Sends more than a ring to the honest subscriber while the other one does `meanwhile`. Returns an inner
/// `Err` if that failed.
fn goes_on(
    publisher: &mut Actor,
    honest: &mut Actor,
    meanwhile: impl FnOnce() -> Result<(), RowError>,
) -> Result<Result<(), String>, RowError> {
    publisher.send_order(&format!("send-all {MANY}"))?;
    honest.send_order(&format!("read-all {MANY}"))?;
    meanwhile()?;
    for (actor, wanted) in [
        (publisher, "all sent".to_owned()),
        (honest, format!("read {MANY}")),
    ] {
        match actor.next_event(TIME_LIMIT) {
            Event::Line(line) if line == wanted => {}
            other => return Ok(Err(format!("expected {wanted:?}, got {other:?}"))),
        }
    }
    Ok(Ok(()))
}

/// Row 46: a subscriber reports invalid positions, or different ones to the sender and to the watcher.
///
/// Defence: each subscriber's head is a word in its own object, compared with its earlier value and
/// with what was published. A violation ends that subscriber's channel.
pub(super) fn lying_head(stage: &Stage) -> Result<Report, RowError> {
    let [mut publisher, honest, mut liar] = plain_three(stage)?;
    let lie = format!("store {} {}", plain_many::head_of(1), 1_u64 << 40);
    must(&mut liar, &lie, "stored")?;
    let plain = plain_sends(&mut publisher)?;
    drop((publisher, honest, liar));

    let lies = ["past", "unaligned", "far", "last", "back", "to-and-fro"];
    for lie in lies {
        let address = stage.address(&format!("ringfence-{lie}"));
        let (mut publisher, mut honest) = fenced_two(stage, &address, "stall=8000")?;
        let mut liar = hostile(stage, &mut publisher, &address)?;
        let pid = liar.pid();
        let told = goes_on(&mut publisher, &mut honest, || match lie {
            "to-and-fro" => must(&mut liar, lie, "to and fro"),
            _ => must(&mut liar, &format!("head {lie}"), "stored"),
        })?;
        if let Err(harm) = told {
            return Ok(Report::with_harm(plain, format!("{lie}: {harm}")));
        }
        // A subscriber that shows a higher position at each check is not detected, and has not delayed the
        // publisher.
        if lie == "to-and-fro" {
            must(&mut publisher, "close", "closed")?;
            continue;
        }
        // If the sender does not check again in time, the subscriber is evicted for its stall instead.
        let event = publisher.ask("event")?;
        if ![format!("gone {pid} corrupt"), format!("gone {pid} evicted")].contains(&event) {
            return Err(RowError::wrong(format!("{lie}: {event}")));
        }
        must(&mut publisher, "close", "closed")?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "each of {} false heads removes only the liar ('corrupt' or 'evicted') or is never read; the honest subscriber gets all",
            lies.len()
        )),
        stopped_by: "each subscriber has its own head object, checked against the last head and the tail",
    })
}

/// Row 47: a subscriber that does not read, in every way: it never reads, reads a message now and then, frees
/// space without a wakeup, is stopped, or is dead and not reaped.
///
/// Defence: the time for which it delays the publisher is added up, until a check finds that it no
/// longer does. The watcher checks from time to time whether the sender sleeps although there is space. A
/// dead subscriber is noticed through its pidfd.
pub(super) fn slow(stage: &Stage) -> Result<Report, RowError> {
    let [mut publisher, honest, hostile_one] = plain_three(stage)?;
    let plain = plain_sends(&mut publisher)?;
    drop((publisher, honest, hostile_one));

    for (how, reason) in [
        ("never", "evicted"),
        ("drip", "evicted"),
        ("silent", "evicted"),
        ("stopped", "evicted"),
        ("dead", "lost"),
    ] {
        let address = stage.address(&format!("ringfence-{how}"));
        // The publisher must not wait for a dead subscriber.
        let stall = if how == "dead" {
            "stall=100000"
        } else {
            "stall=800"
        };
        let (mut publisher, mut honest) = fenced_two(stage, &address, stall)?;
        let mut slow = hostile(stage, &mut publisher, &address)?;
        let gone = format!("gone {} {reason}", slow.pid());
        let told = goes_on(&mut publisher, &mut honest, || match how {
            "drip" => must(&mut slow, "drip 2048 200 rings", "dripping"),
            "silent" => must(&mut slow, "drip 8192 200 silently", "dripping"),
            "stopped" => slow.freeze(),
            "dead" => {
                slow.kill();
                slow.leave_as_zombie()
            }
            _ => Ok(()),
        })?;
        if let Err(harm) = told {
            return Ok(Report::with_harm(plain, format!("{how}: {harm}")));
        }
        must(&mut publisher, "event", &gone)?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "evicted after its stall; a dead one is removed; the honest subscriber gets all",
        ),
        stopped_by: "the stall covers all waits together; a watcher polls each pidfd",
    })
}

/// Row 48: a subscriber writes into the ring that all read, truncates it, or removes its pages.
///
/// Defence: the ring is a memfd that is sealed against new writers and against changes of its size.
pub(super) fn writes_to_all(stage: &Stage) -> Result<Report, RowError> {
    let [mut publisher, mut honest, mut forger] = plain_three(stage)?;
    must(&mut publisher, "send-all 1", "all sent")?;
    let at = plain_many::message_at(0) + 8;
    must(&mut forger, &format!("write {at} forged!!"), "written")?;
    let plain = match &*honest.ask("receive")? {
        "got None" => Outcome::succeeded("another subscriber reads what the attacker wrote"),
        other => Outcome::failed(other),
    };
    drop((publisher, honest, forger));

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let mut forger = hostile(stage, &mut publisher, &address)?;
    for (order, wanted) in [
        ("map-theirs", "EPERM"),
        ("protect-theirs", "EACCES"),
        ("write-theirs", "EPERM"),
        ("shrink-theirs", "EPERM"),
        ("grow-theirs", "EPERM"),
        ("punch-theirs", "EPERM"),
        ("unseal-theirs", "EPERM"),
        // Its mode is 0.
        ("reopen-theirs", "EACCES"),
    ] {
        let answer = forger.ask(order)?;
        if answer != wanted {
            return Ok(Report::with_harm(plain, format!("{order}: {answer}")));
        }
    }
    must(&mut forger, "head far", "stored")?;
    if let Err(harm) = goes_on(&mut publisher, &mut honest, || Ok(()))? {
        return Ok(Report::with_harm(plain, harm));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("EPERM or EACCES for each attempt; the honest subscriber gets all"),
        stopped_by: "F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK, F_SEAL_GROW; mode 0",
    })
}

fn insider(stage: &Stage, how: &str, victim: &Actor, name: &str) -> Result<Actor, RowError> {
    let args = ["insider", how, &victim.pid().to_string(), name];
    stage.spawn("the insider", Who::Agent, Program::Other, &args)
}

/// Row 49: another process of the same user opens the descriptor that a publisher needs for its next
/// subscriber.
///
/// Defence: the descriptor is in no table, but in flight to the publisher itself. Descriptors that were
/// passed on are covered by the owner's lease: opening one ends all channels.
pub(super) fn publishers_descriptor(stage: &Stage) -> Result<Report, RowError> {
    let [mut publisher, honest, hostile_one] = plain_three(stage)?;
    let mut attacker = insider(stage, "open", &publisher, "/memfd:plain-many")?;
    attacker.line_after("opened")?;
    must(&mut publisher, "send-all 1", "all sent")?;
    let plain = Outcome::succeeded(
        "the descriptor stays open as long as the publisher lives, and can be opened for writing",
    );
    drop((publisher, honest, hostile_one));

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let mut opener = hostile(stage, &mut publisher, &address)?;
    let table = format!("/proc/{}/fd", publisher.pid());
    let entries = fs::read_dir(&table).map_err(|error| RowError::wrong(format!("{table}: {error}")))?;
    for entry in entries.filter_map(Result::ok) {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains("memfd") {
            return Ok(Report::with_harm(plain, format!("it holds {}", target.display())));
        }
    }
    must(&mut publisher, "send-all 10", "all sent")?;
    must(&mut publisher, "send topsecret", "sent")?;
    must(&mut opener, "find-theirs topsecret", "found")?;
    // A subscriber opens the descriptor that it was passed, as its user may.
    let answer = opener.ask("expose-theirs")?;
    if answer != "EAGAIN" {
        return Ok(Report::with_harm(
            plain,
            format!("opened by a subscriber: {answer}"),
        ));
    }
    for (actor, order) in [(&mut honest, "read 20000"), (&mut publisher, "send more")] {
        must_end_exposed(actor, order)?;
    }
    // The channel is ended a moment before the ring is wiped.
    let end = Instant::now() + TIME_LIMIT;
    while opener.ask("find-theirs topsecret")? != "absent" {
        if Instant::now() > end {
            return Ok(Report::with_harm(plain, "the memory was not wiped"));
        }
    }
    let address = stage.address("hardened");
    let (publisher, _honest) = fenced_two(stage, &address, "harden")?;
    for (how, wanted) in [("open", "EACCES"), ("getfd", "EPERM")] {
        let answer = insider(stage, how, &publisher, "memfd")?.line()?;
        if answer != wanted {
            return Ok(Report::with_harm(plain, format!("hardened, {how}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "the publisher holds no descriptor; a subscriber's: EAGAIN, 'exposed' for all, wiped. Hardened: EACCES, EPERM",
        ),
        stopped_by: "the descriptor is kept in flight in a socket; the lease and its tripwire; harden()",
    })
}

/// Asks again until the alarm has taken effect.
fn must_end_exposed(actor: &mut Actor, order: &str) -> Result<(), RowError> {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let answer = actor.ask(order)?;
        if answer.starts_with("error OBJECT_EXPOSED") {
            return must(actor, "reason", "exposed");
        }
        if Instant::now() > end {
            return Err(RowError::wrong(format!("{order}: {answer}")));
        }
    }
}

/// Row 50: another user connects to the address continuously, and sends nothing.
///
/// Defence: another user is refused before anything is waited for. The thread that admits is not the
/// one that sends.
pub(super) fn stranger_floods(stage: &Stage) -> Result<Report, RowError> {
    let crowd = |address: &str| {
        let args = ["attacker", "crowd", address, "40"];
        stage.spawn("the crowd", Who::Stranger, Program::Other, &args)
    };
    let address = stage.address("plain");
    let _publisher = plain_publisher(stage, &address, "greeting")?;
    let mut strangers = crowd(&address)?;
    strangers.line_after("crowd")?;
    let mut honest = actor(stage, "the honest subscriber", "subscriber", "plain")?;
    let order = format!("subscribe {address} 0 greeting");
    let plain = match honest.try_ask(&order, Duration::from_secs(1)) {
        Event::Line(line) => Outcome::failed(line),
        _ => Outcome::succeeded("it waits for the first stranger's greeting, and admits no subscriber"),
    };

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let mut late = actor(stage, "a late subscriber", "subscriber", "ringfence")?;
    let told = goes_on(&mut publisher, &mut honest, || {
        let mut strangers = crowd(&address)?;
        strangers.line_after("crowd")?;
        subscribe(&mut late, &address, "best-effort")
    })?;
    if let Err(harm) = told {
        return Ok(Report::with_harm(plain, harm));
    }
    let mut refused = 0;
    loop {
        let event = publisher.ask("event")?;
        if event.starts_with("refused") {
            refused += 1;
        } else if event == format!("came {}", late.pid()) {
            break;
        } else {
            return Err(RowError::wrong(event));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "{refused} connections refused before a subscriber was admitted among them; the subscribers get all"
        )),
        stopped_by: "the credentials from the kernel are checked first; admission has its own thread",
    })
}

/// The number of subscriptions that row 51 makes and drops.
const VISITS: usize = 1000;

/// Row 51: subscriptions are made and dropped one after the other.
///
/// Defence: everything that the publisher keeps for a subscription is released with it, and the list of
/// subscribers is separate from the sending path.
pub(super) fn come_and_go(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut publisher = plain_publisher(stage, &address, "")?;
    let args = ["attacker", "crowd", &address, "8"];
    let mut crowd = stage.spawn("the visitors", Who::Agent, Program::Genuine, &args)?;
    crowd.line_after("crowd")?;
    drop(crowd);
    while publisher.ask("subscribers")? == "0" {}
    let plain = plain_sends(&mut publisher)?;

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let before = publisher.ask("descriptors")?;
    let mut visitor = actor(stage, "the visitor", "subscriber", "ringfence")?;
    for _ in 0..VISITS / 100 {
        let told = goes_on(&mut publisher, &mut honest, || {
            must(&mut visitor, &format!("come-and-go {address} 100"), "no error")
        })?;
        if let Err(harm) = told {
            return Ok(Report::with_harm(plain, harm));
        }
    }
    drop(visitor);
    // Each visitor causes two events.
    for _ in 0..2 * VISITS {
        publisher.ask("event")?;
    }
    let after = publisher.ask("descriptors")?;
    if before != after || publisher.ask("subscribers")? != "1" {
        return Ok(Report::with_harm(
            plain,
            format!("{before} descriptors before, {after} after"),
        ));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "{VISITS} visits leave nothing behind; the honest subscriber gets all"
        )),
        stopped_by: "one code path releases everything that the publisher holds for a subscriber",
    })
}

const WHOLE: u32 = layout::FIRST | layout::LAST;

/// Makes a record's header.
const fn header(length: u64, flags: u32) -> u64 {
    length | (flags as u64) << 32
}

/// Returns the violations of a publisher in its ring: values and where they are stored, in order.
fn lies_of_a_publisher() -> Vec<(&'static str, Vec<(usize, u64)>)> {
    let (tail, floor, data) = (layout::TAIL, layout::FLOOR, layout::DATA);
    let record = |length, flags, published| vec![(data, header(length, flags)), (tail, published)];
    vec![
        ("a tail between two words", vec![(tail, 12)]),
        (
            "a tail more than a ring past the floor",
            vec![(tail, CAPACITY + 8)],
        ),
        ("a tail behind zero", vec![(tail, u64::MAX - 7)]),
        ("a tail half the number space ahead", vec![(tail, 1 << 63)]),
        (
            "a floor and a tail at the end of the number space",
            vec![(floor, (1 << 62) + 8), (tail, (1 << 62) + 16)],
        ),
        ("a record longer than what is published", record(64, WHOLE, 16)),
        (
            "the longest record that there can be",
            record(u32::MAX.into(), WHOLE, CAPACITY),
        ),
        (
            "a message above an eighth of the ring",
            record(CAPACITY / 8 + 8, WHOLE, CAPACITY),
        ),
        ("a fragment", record(16, layout::FIRST, 24)),
        ("unknown flags", record(8, 64 | WHOLE, 16)),
        ("no flags", record(8, 0, 16)),
        ("padding at the ring's beginning", record(8, layout::PADDING, 16)),
        ("an unknown phase", Vec::new()),
    ]
}

/// The phase of a publisher that has evicted this subscriber.
const EVICTED: u64 = 6;

/// Violations in a publisher's OFFER.
const OFFERS: [&str; 3] = [
    "position=12",
    "position=64 sequence=100",
    "position=9223372036854775808",
];

/// The number of storms of violations, spread over the deliveries.
const STORMS: u64 = 18;

/// Row 52: a publisher sends its subscriber invalid values in OFFER and in every word of its ring: at rest,
/// and as fast as it can.
///
/// Defence: the same as for a pair (row 33). Data that may have been overwritten is not judged before
/// the floor shows that it was complete.
pub(super) fn lying_publisher(stage: &Stage) -> Result<Report, RowError> {
    let (mut host, mut guest) = super::ring::plain_and_hand(stage, &stage.address("plain"))?;
    let (data, tail) = (crate::plain::data_of(1, super::SIZE), crate::plain::tail_of(1));
    must(&mut guest, &format!("store {data} {}", u32::MAX - 16), "stored")?;
    must(&mut guest, &format!("store {tail} 16"), "stored")?;
    let plain = match host.try_ask("receive 10000", TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("a reader reads out of bounds: {how}")),
        Event::Line(answer) if answer.starts_with("got 4294967279") => {
            Outcome::succeeded("a reader reads out of bounds")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut liar = FalsePublisher::new(stage, "")?;
    for offer in OFFERS {
        let answer = liar.meet("reliable", offer)?;
        if !answer.starts_with("error RING_CORRUPT") {
            return Ok(Report::with_harm(plain, format!("{offer}: {answer}")));
        }
    }
    let lies = lies_of_a_publisher();
    for (lie, stores) in &lies {
        must_be_in(&liar.meet("reliable", "slot=4294967295")?)?;
        if stores.is_empty() {
            must(&mut liar.peer, "store-control 640 77", "stored")?;
        }
        for (at, value) in stores {
            must(&mut liar.peer, &format!("store {at} {value}"), "stored")?;
        }
        must(&mut liar.peer, "ring", "rung")?;
        match liar.victim.try_ask("read 20000", TIME_LIMIT) {
            Event::Line(line) if line.starts_with("error RING_CORRUPT") => {}
            other => return Ok(Report::with_harm(plain, format!("{lie}: {other:?}"))),
        }
    }
    for seed in 0..STORMS {
        let delivery = ["reliable", "best-effort", "latest"][usize::try_from(seed % 3).unwrap_or(0)];
        must_be_in(&liar.meet(delivery, "")?)?;
        must(&mut liar.peer, &format!("fan-storm {}", seed + 1), "storming")?;
        let answer = liar.victim.try_ask("read 150", TIME_LIMIT);
        must(&mut liar.peer, "calm", "calm")?;
        let known = ["error RING_CORRUPT", "error EVICTED", "still open"];
        match &answer {
            Event::Line(line) if known.iter().any(|start| line.starts_with(start)) => {}
            other => {
                return Ok(Report::with_harm(
                    plain,
                    format!("storm {seed}, {delivery}: {other:?}"),
                ));
            }
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "RING_CORRUPT for each of {} false values; the process survives {STORMS} storms",
            lies.len() + OFFERS.len()
        )),
        stopped_by: "each shared word is read once and checked; the floor is read again after each copy",
    })
}

fn must_be_in(answer: &str) -> Result<(), RowError> {
    if answer == "subscribed" {
        Ok(())
    } else {
        Err(RowError::wrong(answer))
    }
}

/// A hostile publisher, and one process that subscribes to it repeatedly.
struct FalsePublisher {
    peer: Actor,
    victim: Actor,
    address: String,
    /// The options of each subscription.
    options: &'static str,
}

impl FalsePublisher {
    fn new(stage: &Stage, options: &'static str) -> Result<Self, RowError> {
        let address = stage.address("liar");
        let mut peer = hand(stage)?;
        must(&mut peer, &format!("listen {address}"), "listening")?;
        let victim = actor(stage, "the subscriber", "subscriber", "ringfence")?;
        Ok(Self {
            peer,
            victim,
            address,
            options,
        })
    }

    /// Makes one subscription, and returns the result of the call.
    fn meet(&mut self, delivery: &str, offer: &str) -> Result<String, RowError> {
        let order = format!("subscribe {} {delivery} now {}", self.address, self.options);
        self.victim.send_order(&order)?;
        self.peer.ask(&format!("publish {offer}"))?;
        self.victim.line()
    }
}

/// Row 65: a publisher attaches memory that it can change, too much, or other descriptors. Or it announces attachments that it does not
/// send.
///
/// Defence: the same as for a pair (row 64). A message may lack its attachments, since an honest publisher need not wait for a
/// subscriber at its limit.
pub(super) fn attachments_of_a_publisher(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let args = ["hand", "plain", "host", &address, "unsealed"];
    let mut publisher = stage.spawn("the hostile publisher", Who::Agent, Program::Genuine, &args)?;
    publisher.line_after("listening")?;
    let mut subscriber = actor(stage, "the subscriber", "subscriber", "plain")?;
    must(&mut subscriber, &format!("subscribe {address} 0"), "subscribed")?;
    publisher.line_after("passed")?;
    must(&mut publisher, "truncate", "truncated")?;
    let plain = match died(&mut subscriber, "receive") {
        Event::Exited(how) => Outcome::succeeded(format!("the subscriber reads memory that shrinks: {how}")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut liar = FalsePublisher::new(stage, "attachments=4")?;
    let kinds = UNSOUND_ATTACHMENTS.map(|(kind, code)| (kind, format!("error {code}")));
    let harmless = [("absent", 0), ("sound", 1)];
    let harmless = harmless.map(|(kind, count)| (kind, format!("got 8 with {count}")));
    for delivery in ["reliable", "best-effort", "latest"] {
        for (kind, wanted) in kinds.iter().chain(&harmless) {
            must_be_in(&liar.meet(delivery, "")?)?;
            if let Some(harm) = attach(&mut liar.peer, &mut liar.victim, kind, wanted)? {
                return Ok(Report::with_harm(plain, format!("{delivery}, {harm}")));
            }
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "each of {} kinds ends the subscription, absent ones are missing, and no descriptor leaks",
            kinds.len()
        )),
        stopped_by: "the checks of row 64",
    })
}

/// Bytes of a message that a reliable subscription is shown in the ring itself.
const IN_PLACE: u64 = 1000;

/// Row 58: a publisher overwrites a message while the visitor of a merge looks at it: after it has said that the subscriber is evicted, after it
/// has moved its floor, or both.
///
/// The defense: the merge checks the floor and the phase after each visit in the ring, and its call fails if a message was overwritten
/// during the visit.
pub(super) fn overwrites_a_visit(stage: &Stage) -> Result<Report, RowError> {
    let [mut publisher, mut honest, mut forger] = plain_three(stage)?;
    must(&mut publisher, "send-all 1", "all sent")?;
    let at = plain_many::message_at(0) + 8;
    must(&mut forger, &format!("write {at} another!"), "written")?;
    let plain = match &*honest.ask("receive")? {
        "got None" => {
            Outcome::succeeded("the reader takes what was written over the message for the message")
        }
        other => Outcome::failed(other),
    };
    drop((publisher, honest, forger));

    let (data, first) = (layout::DATA, layout::DATA + 8);
    let floor = format!("store {} {}", layout::FLOOR, IN_PLACE + 8);
    let evicted = format!("store-control {} {EVICTED}", layout::PHASE);
    let ways = [&[&evicted][..], &[&floor], &[&evicted, &floor]];
    for (number, way) in ways.iter().enumerate() {
        let address = stage.address(&format!("overwrites-{number}"));
        let mut peer = hand(stage)?;
        must(&mut peer, &format!("listen {address}"), "listening")?;
        let mut victim = actor(stage, "the collector", "collector", "ringfence")?;
        victim.send_order(&format!("subscribe {address}"))?;
        must(&mut peer, "publish", "published")?;
        victim.line_after("subscribed")?;
        for (at, word) in [
            (data, header(IN_PLACE, WHOLE)),
            (first, 1),
            (layout::TAIL, IN_PLACE + 8),
        ] {
            must(&mut peer, &format!("store {at} {word}"), "stored")?;
        }
        victim.send_order("visit")?;
        victim.line_after("visiting")?;
        for order in *way {
            must(&mut peer, order, "stored")?;
        }
        must(&mut peer, &format!("store {first} 2"), "stored")?;
        let answer = victim.line()?;
        if answer != "EVICTED after 2, 0 received" {
            return Ok(Report::with_harm(plain, format!("{way:?}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("EVICTED, and the message does not count"),
        stopped_by: "the floor and the phase are checked after each visit in the ring",
    })
}
