//! One to many: what a subscriber can do to its publisher and to the others, and a publisher to its subscribers.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{Heard, TIME_LIMIT, hand, must};
use crate::{
    Half, Report, Trouble,
    actor::Actor,
    plain_many,
    protocol::layout,
    stage::{Program, Stage, Who},
};

/// Bytes of the ring of each publisher of ringfence's here.
const CAPACITY: u64 = 64 * 1024;
/// More messages than a ring holds, by far.
const MANY: &str = "500";

fn actor(stage: &Stage, name: &'static str, role: &'static str, of: &str) -> Result<Actor, Trouble> {
    stage.spawn(name, Who::Agent, Program::Genuine, &[role, of])
}

/// A publisher of the plain program's.
fn plain_publisher(stage: &Stage, address: &str, options: &str) -> Result<Actor, Trouble> {
    let mut publisher = actor(stage, "the publisher", "publisher", "plain")?;
    must(
        &mut publisher,
        &format!("publish {address} {options}"),
        "publishing",
    )?;
    Ok(publisher)
}

/// Publisher, honest subscriber and hostile one of the plain program.
fn plain_three(stage: &Stage) -> Result<[Actor; 3], Trouble> {
    let address = stage.address("plain");
    let publisher = plain_publisher(stage, &address, "")?;
    let mut honest = actor(stage, "the honest subscriber", "subscriber", "plain")?;
    must(&mut honest, &format!("subscribe {address} 0"), "subscribed")?;
    let args = ["hand", "plain", "guest", &address];
    let mut hostile = stage.spawn("the hostile subscriber", Who::Agent, Program::Genuine, &args)?;
    hostile.expect("holding")?;
    Ok([publisher, honest, hostile])
}

/// What the publisher of the plain program can still send.
fn plain_sends(publisher: &mut Actor) -> Result<Half, Trouble> {
    let answer = publisher.ask(&format!("send-all {MANY}"))?;
    Ok(if answer == "all sent" {
        Half::held(answer)
    } else {
        Half::bit(format!("it sends to none any more: {answer}"))
    })
}

/// A publisher of ringfence's, and an honest subscriber.
fn fenced_two(stage: &Stage, address: &str, options: &str) -> Result<(Actor, Actor), Trouble> {
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

fn subscribe(subscriber: &mut Actor, address: &str, delivery: &str) -> Result<(), Trouble> {
    must(
        subscriber,
        &format!("subscribe {address} {delivery} now"),
        "subscribed",
    )
}

fn comes(publisher: &mut Actor, who: &Actor) -> Result<(), Trouble> {
    must(publisher, "event", &format!("came {}", who.pid()))
}

/// A hostile subscriber of ringfence's.
fn hostile(stage: &Stage, publisher: &mut Actor, address: &str) -> Result<Actor, Trouble> {
    let mut hostile = hand(stage)?;
    must(&mut hostile, &format!("subscribe {address}"), "subscribed")?;
    comes(publisher, &hostile)?;
    Ok(hostile)
}

/// More than a ring is sent to the honest one, whatever the other does `meanwhile`. `Err`: it was not.
fn goes_on(
    publisher: &mut Actor,
    honest: &mut Actor,
    meanwhile: impl FnOnce() -> Result<(), Trouble>,
) -> Result<Result<(), String>, Trouble> {
    publisher.say(&format!("send-all {MANY}"))?;
    honest.say(&format!("read-all {MANY}"))?;
    meanwhile()?;
    for (actor, wanted) in [
        (publisher, "all sent".to_owned()),
        (honest, format!("read {MANY}")),
    ] {
        match actor.hear(TIME_LIMIT) {
            Heard::Line(line) if line == wanted => {}
            other => return Ok(Err(format!("{wanted:?} was to be said, but: {other:?}"))),
        }
    }
    Ok(Ok(()))
}

/// Row 46: a subscriber says of itself what cannot be, or one thing to the sender and another to the watcher.
///
/// What stops it: each subscriber's head is a word of its own object, compared with what it said before and with what is published. A
/// lie ends that subscriber's channel.
pub(super) fn lying_head(stage: &Stage) -> Result<Report, Trouble> {
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
            return Ok(Report::bitten(plain, format!("{lie}: {harm}")));
        }
        // One that shows a higher position each time that the publisher looks is not found out, and has not held the publisher up.
        if lie == "to-and-fro" {
            must(&mut publisher, "close", "closed")?;
            continue;
        }
        // Where the sender does not look again in time, its stall is what it costs.
        let event = publisher.ask("event")?;
        if ![format!("gone {pid} corrupt"), format!("gone {pid} evicted")].contains(&event) {
            return Err(Trouble::wrong(format!("{lie}: {event}")));
        }
        must(&mut publisher, "close", "closed")?;
    }
    Ok(Report {
        plain,
        ringfence: Half::held(format!(
            "each of {} lies ends the liar alone, 'corrupt' or 'evicted', or is never seen; the honest one gets all",
            lies.len()
        )),
        stopped_by: "each head is an own object's, checked against what was seen and published",
    })
}

/// Row 47: a subscriber that does not read, in every way: never, a message a moment, silently (it makes room and does not ring), stopped,
/// dead and not reaped.
///
/// What stops it: the time for which it holds the publisher up is counted in all, up to the look that finds that it does no more; the
/// watcher looks now and then whether the sender sleeps in vain. A dead one is noticed by its pidfd.
pub(super) fn slow(stage: &Stage) -> Result<Report, Trouble> {
    let [mut publisher, honest, hostile_one] = plain_three(stage)?;
    let plain = plain_sends(&mut publisher)?;
    drop((publisher, honest, hostile_one));

    for (how, reason) in [
        ("never", "evicted"),
        ("drip", "evicted"),
        ("silent", "evicted"),
        ("stopped", "evicted"),
        ("dead", "exited"),
    ] {
        let address = stage.address(&format!("ringfence-{how}"));
        // A dead one must not have to be waited for.
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
            return Ok(Report::bitten(plain, format!("{how}: {harm}")));
        }
        must(&mut publisher, "event", &gone)?;
    }
    Ok(Report {
        plain,
        ringfence: Half::held(
            "evicted once its stall is over; a dead one is let go of; the honest one gets all",
        ),
        stopped_by: "the stall is counted in all; a watcher with the pidfd of each",
    })
}

/// Row 48: a subscriber writes into the ring that all read, cuts it, or takes its pages away.
///
/// What stops it: the ring is a memfd that is sealed against new writers, and against changes of its size.
pub(super) fn writes_to_all(stage: &Stage) -> Result<Report, Trouble> {
    let [mut publisher, mut honest, mut forger] = plain_three(stage)?;
    must(&mut publisher, "send-all 1", "all sent")?;
    let at = plain_many::message_at(0) + 8;
    must(&mut forger, &format!("write {at} forged!!"), "written")?;
    let plain = match &*honest.ask("receive")? {
        "got None" => Half::bit("another subscriber reads what it has written"),
        other => Half::held(other),
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
            return Ok(Report::bitten(plain, format!("{order}: {answer}")));
        }
    }
    must(&mut forger, "head far", "stored")?;
    if let Err(harm) = goes_on(&mut publisher, &mut honest, || Ok(()))? {
        return Ok(Report::bitten(plain, harm));
    }
    Ok(Report {
        plain,
        ringfence: Half::held("EPERM and EACCES to all that it tries; the honest one gets all"),
        stopped_by: "F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK, F_SEAL_GROW; mode 0",
    })
}

fn insider(stage: &Stage, how: &str, victim: &Actor, name: &str) -> Result<Actor, Trouble> {
    let args = ["insider", how, &victim.pid().to_string(), name];
    stage.spawn("the insider", Who::Agent, Program::Other, &args)
}

/// Row 49: another process of the same user opens the descriptor that a publisher needs for its next subscriber.
///
/// What stops it: it is in no table, but in flight to the publisher itself. What was passed on is under the lease of its owner: an
/// opening ends all.
pub(super) fn publishers_descriptor(stage: &Stage) -> Result<Report, Trouble> {
    let [mut publisher, honest, hostile_one] = plain_three(stage)?;
    let mut attacker = insider(stage, "open", &publisher, "/memfd:plain-many")?;
    attacker.expect("opened")?;
    must(&mut publisher, "send-all 1", "all sent")?;
    let plain = Half::bit("it is there as long as the publisher is: opened, and may be written");
    drop((publisher, honest, hostile_one));

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let mut opener = hostile(stage, &mut publisher, &address)?;
    let table = format!("/proc/{}/fd", publisher.pid());
    let entries = fs::read_dir(&table).map_err(|error| Trouble::wrong(format!("{table}: {error}")))?;
    for entry in entries.filter_map(Result::ok) {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains("memfd") {
            return Ok(Report::bitten(plain, format!("it holds {}", target.display())));
        }
    }
    must(&mut publisher, "send-all 10", "all sent")?;
    must(&mut publisher, "send topsecret", "sent")?;
    must(&mut opener, "find-theirs topsecret", "found")?;
    // A subscriber that opens what it was passed, as its user may.
    let answer = opener.ask("expose-theirs")?;
    if answer != "EAGAIN" {
        return Ok(Report::bitten(plain, format!("opened by a subscriber: {answer}")));
    }
    for (actor, order) in [(&mut honest, "read 20000"), (&mut publisher, "send more")] {
        must_end_exposed(actor, order)?;
    }
    // It is told before it is wiped, in the next moment.
    let end = Instant::now() + TIME_LIMIT;
    while opener.ask("find-theirs topsecret")? != "absent" {
        if Instant::now() > end {
            return Ok(Report::bitten(plain, "it was to be wiped"));
        }
    }
    let address = stage.address("hardened");
    let (publisher, _honest) = fenced_two(stage, &address, "harden")?;
    for (how, wanted) in [("open", "EACCES"), ("getfd", "EPERM")] {
        let answer = insider(stage, how, &publisher, "memfd")?.line()?;
        if answer != wanted {
            return Ok(Report::bitten(plain, format!("hardened, {how}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Half::held(
            "no descriptor of it in the table; opened by a subscriber: EAGAIN, 'exposed' for all, wiped. Hardened: EACCES, EPERM",
        ),
        stopped_by: "a descriptor that is kept in flight; the lease, and the tripwire on it; harden()",
    })
}

/// Asks again until the alarm has come through.
fn must_end_exposed(actor: &mut Actor, order: &str) -> Result<(), Trouble> {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let answer = actor.ask(order)?;
        if answer.starts_with("error OBJECT_EXPOSED") {
            return must(actor, "reason", "exposed");
        }
        if Instant::now() > end {
            return Err(Trouble::wrong(format!("{order}: {answer}")));
        }
    }
}

/// Row 50: another user connects to the address without end, and says nothing.
///
/// What stops it: a stranger is refused before anything is waited for; the thread that admits is not the one that sends.
pub(super) fn stranger_floods(stage: &Stage) -> Result<Report, Trouble> {
    let crowd = |address: &str| {
        let args = ["attacker", "crowd", address, "40"];
        stage.spawn("the crowd", Who::Stranger, Program::Other, &args)
    };
    let address = stage.address("plain");
    let _publisher = plain_publisher(stage, &address, "greeting")?;
    let mut strangers = crowd(&address)?;
    strangers.expect("crowd")?;
    let mut honest = actor(stage, "the honest subscriber", "subscriber", "plain")?;
    let order = format!("subscribe {address} 0 greeting");
    let plain = match honest.try_ask(&order, Duration::from_secs(1)) {
        Heard::Line(line) => Half::held(line),
        _ => Half::bit("it waits for the first stranger's greeting, and lets in none"),
    };

    let address = stage.address("ringfence");
    let (mut publisher, mut honest) = fenced_two(stage, &address, "")?;
    let mut late = actor(stage, "a late subscriber", "subscriber", "ringfence")?;
    let told = goes_on(&mut publisher, &mut honest, || {
        let mut strangers = crowd(&address)?;
        strangers.expect("crowd")?;
        subscribe(&mut late, &address, "best-effort")
    })?;
    if let Err(harm) = told {
        return Ok(Report::bitten(plain, harm));
    }
    let mut refused = 0;
    loop {
        let event = publisher.ask("event")?;
        if event.starts_with("refused") {
            refused += 1;
        } else if event == format!("came {}", late.pid()) {
            break;
        } else {
            return Err(Trouble::wrong(event));
        }
    }
    Ok(Report {
        plain,
        ringfence: Half::held(format!(
            "{refused} refused before a subscriber was let in among them; the others get all"
        )),
        stopped_by: "the kernel's word on who connects, before anything else; a thread for admission",
    })
}

/// Subscriptions that row 51 makes and drops.
const VISITS: usize = 1000;

/// Row 51: subscriptions are made and dropped one after the other.
///
/// What stops it: each goes with all that the publisher has of it, and the list of subscribers is beside the sender's way.
pub(super) fn come_and_go(stage: &Stage) -> Result<Report, Trouble> {
    let address = stage.address("plain");
    let mut publisher = plain_publisher(stage, &address, "")?;
    let args = ["attacker", "crowd", &address, "8"];
    let mut crowd = stage.spawn("the visitors", Who::Agent, Program::Genuine, &args)?;
    crowd.expect("crowd")?;
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
            return Ok(Report::bitten(plain, harm));
        }
    }
    drop(visitor);
    // Each has come and gone.
    for _ in 0..2 * VISITS {
        publisher.ask("event")?;
    }
    let after = publisher.ask("descriptors")?;
    if before != after || publisher.ask("subscribers")? != "1" {
        return Ok(Report::bitten(
            plain,
            format!("{before} descriptors became {after}"),
        ));
    }
    Ok(Report {
        plain,
        ringfence: Half::held(format!("{VISITS} leave nothing behind; the honest one gets all")),
        stopped_by: "one way out for whatever the publisher has of a subscriber",
    })
}

const WHOLE: u32 = layout::FIRST | layout::LAST;

/// A record's header.
const fn header(length: u64, flags: u32) -> u64 {
    length | (flags as u64) << 32
}

/// Lies of a publisher in its ring: what is stored where, one after the other.
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
            "a floor and a tail beyond all",
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

/// Lies in a publisher's OFFER.
const OFFERS: [&str; 3] = [
    "position=12",
    "position=64 sequence=100",
    "position=9223372036854775808",
];

/// Storms of lies, of each delivery some.
const STORMS: u64 = 18;

/// Row 52: a publisher lies to its subscriber in OFFER and in every word of its ring: at rest, and as fast as it can.
///
/// What stops it: as with a pair (row 33), and what may have been overwritten is not judged before the floor says that it was whole.
pub(super) fn lying_publisher(stage: &Stage) -> Result<Report, Trouble> {
    let (mut host, mut guest) = super::ring::plain_and_hand(stage, &stage.address("plain"))?;
    let (data, tail) = (crate::plain::data_of(1, super::SIZE), crate::plain::tail_of(1));
    must(&mut guest, &format!("store {data} {}", u32::MAX - 16), "stored")?;
    must(&mut guest, &format!("store {tail} 16"), "stored")?;
    let plain = match host.try_ask("receive 10000", TIME_LIMIT) {
        Heard::Ended(how) => Half::bit(format!("a reader reads outside of its memory: {how}")),
        Heard::Line(answer) if answer.starts_with("got 4294967279") => {
            Half::bit("a reader reads outside of its memory")
        }
        other => Half::held(format!("{other:?}")),
    };

    let mut liar = FalsePublisher::new(stage)?;
    for offer in OFFERS {
        let answer = liar.meet("reliable", offer)?;
        if !answer.starts_with("error RING_CORRUPT") {
            return Ok(Report::bitten(plain, format!("{offer}: {answer}")));
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
            Heard::Line(line) if line.starts_with("error RING_CORRUPT") => {}
            other => return Ok(Report::bitten(plain, format!("{lie}: {other:?}"))),
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
            Heard::Line(line) if known.iter().any(|start| line.starts_with(start)) => {}
            other => {
                return Ok(Report::bitten(
                    plain,
                    format!("storm {seed}, {delivery}: {other:?}"),
                ));
            }
        }
    }
    Ok(Report {
        plain,
        ringfence: Half::held(format!(
            "RING_CORRUPT to each of {} lies; {STORMS} storms, and the process lives",
            lies.len() + OFFERS.len()
        )),
        stopped_by: "each shared word is read once and checked; the floor is looked at after each copy",
    })
}

fn must_be_in(answer: &str) -> Result<(), Trouble> {
    if answer == "subscribed" {
        Ok(())
    } else {
        Err(Trouble::wrong(answer))
    }
}

/// A publisher that lies, and one process that subscribes there time after time.
struct FalsePublisher {
    peer: Actor,
    victim: Actor,
    address: String,
}

impl FalsePublisher {
    fn new(stage: &Stage) -> Result<Self, Trouble> {
        let address = stage.address("liar");
        let mut peer = hand(stage)?;
        must(&mut peer, &format!("listen {address}"), "listening")?;
        let victim = actor(stage, "the subscriber", "subscriber", "ringfence")?;
        Ok(Self {
            peer,
            victim,
            address,
        })
    }

    /// One subscription: what becomes of the call.
    fn meet(&mut self, delivery: &str, offer: &str) -> Result<String, Trouble> {
        let order = format!("subscribe {} {delivery} now", self.address);
        self.victim.say(&order)?;
        self.peer.ask(&format!("publish {offer}"))?;
        self.victim.line()
    }
}
