//! One to many: attacks of a subscriber on its publisher and on other subscribers, and of a publisher on its
//! subscribers.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    Event, TIME_LIMIT, answer_or_exit, expect_answer, hostile,
    object::{UNSOUND_ATTACHMENTS, attach},
};
use crate::{
    Outcome, Report, RowError, plain_broadcast,
    process::Process,
    protocol::layout,
    setup::{Program, Setup, User},
};

/// The size of the ring of each ringfence publisher here, in bytes.
const CAPACITY: u64 = 64 * 1024;
/// Far more messages than a ring holds.
const MESSAGES: &str = "500";

fn spawn_role(setup: &Setup, name: &'static str, role: &'static str, of: &str) -> Result<Process, RowError> {
    setup.spawn(name, User::Agent, Program::Genuine, &[role, of])
}

/// Starts a publisher of the plain program.
fn plain_publisher(setup: &Setup, address: &str, options: &str) -> Result<Process, RowError> {
    let mut publisher = spawn_role(setup, "the publisher", "publisher", "plain")?;
    expect_answer(
        &mut publisher,
        &format!("publish {address} {options}"),
        "publishing",
    )?;
    Ok(publisher)
}

/// Starts a publisher, an honest and a hostile subscriber of the plain program.
fn plain_three(setup: &Setup) -> Result<[Process; 3], RowError> {
    let address = setup.address("plain");
    let publisher = plain_publisher(setup, &address, "")?;
    let mut honest = spawn_role(setup, "the honest subscriber", "subscriber", "plain")?;
    expect_answer(&mut honest, &format!("subscribe {address} 0"), "subscribed")?;
    let args = ["hostile", "plain", "guest", &address];
    let mut hostile = setup.spawn("the hostile subscriber", User::Agent, Program::Genuine, &args)?;
    hostile.line_after("holding")?;
    Ok([publisher, honest, hostile])
}

/// Checks whether the publisher of the plain program can still send.
fn plain_sends(publisher: &mut Process) -> Result<Outcome, RowError> {
    let answer = publisher.ask(&format!("send-all {MESSAGES}"))?;
    Ok(if answer == "all sent" {
        Outcome::failed(answer)
    } else {
        Outcome::succeeded(format!("it can no longer send to any subscriber: {answer}"))
    })
}

/// Starts a ringfence publisher and an honest subscriber.
fn protected_two(setup: &Setup, address: &str, options: &str) -> Result<(Process, Process), RowError> {
    let mut publisher = spawn_role(setup, "the publisher", "publisher", "ringfence")?;
    expect_answer(
        &mut publisher,
        &format!("publish {address} {options}"),
        "publishing",
    )?;
    let mut honest = spawn_role(setup, "the honest subscriber", "subscriber", "ringfence")?;
    subscribe(&mut honest, address, "reliable")?;
    expect_subscriber(&mut publisher, &honest)?;
    Ok((publisher, honest))
}

fn subscribe(subscriber: &mut Process, address: &str, delivery: &str) -> Result<(), RowError> {
    expect_answer(
        subscriber,
        &format!("subscribe {address} {delivery} now"),
        "subscribed",
    )
}

fn expect_subscriber(publisher: &mut Process, who: &Process) -> Result<(), RowError> {
    expect_answer(publisher, "event", &format!("subscribed {}", who.pid()))
}

/// Starts a hostile ringfence subscriber.
fn hostile_subscriber(setup: &Setup, publisher: &mut Process, address: &str) -> Result<Process, RowError> {
    let mut hostile = hostile(setup)?;
    expect_answer(&mut hostile, &format!("subscribe {address}"), "subscribed")?;
    expect_subscriber(publisher, &hostile)?;
    Ok(hostile)
}

/// Sends more than a ring to the honest subscriber while the other one does `meanwhile`. Returns an inner
/// `Err` if that failed.
fn while_publishing(
    publisher: &mut Process,
    honest: &mut Process,
    meanwhile: impl FnOnce() -> Result<(), RowError>,
) -> Result<Result<(), String>, RowError> {
    publisher.send_order(&format!("send-all {MESSAGES}"))?;
    honest.send_order(&format!("read-all {MESSAGES}"))?;
    meanwhile()?;
    for (process, wanted) in [
        (publisher, "all sent".to_owned()),
        (honest, format!("read {MESSAGES}")),
    ] {
        match process.next_event(TIME_LIMIT) {
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
pub(super) fn malformed_head(setup: &Setup) -> Result<Report, RowError> {
    let [mut publisher, honest, mut hostile] = plain_three(setup)?;
    let false_value = format!("store {} {}", plain_broadcast::head_of(1), 1_u64 << 40);
    expect_answer(&mut hostile, &false_value, "stored")?;
    let plain = plain_sends(&mut publisher)?;
    drop((publisher, honest, hostile));

    let lies = ["past", "unaligned", "far", "last", "back", "oscillate-head"];
    for false_value in lies {
        let address = setup.address(&format!("ringfence-{false_value}"));
        let (mut publisher, mut honest) = protected_two(setup, &address, "stall=8000")?;
        let mut hostile = hostile_subscriber(setup, &mut publisher, &address)?;
        let pid = hostile.pid();
        let outcome = while_publishing(&mut publisher, &mut honest, || match false_value {
            "oscillate-head" => expect_answer(&mut hostile, false_value, "oscillating"),
            _ => expect_answer(&mut hostile, &format!("head {false_value}"), "stored"),
        })?;
        if let Err(harm) = outcome {
            return Ok(Report::with_harm(plain, format!("{false_value}: {harm}")));
        }
        // A subscriber that shows a higher position at each check is not detected, and has not delayed the
        // publisher.
        if false_value == "oscillate-head" {
            expect_answer(&mut publisher, "close", "closed")?;
            continue;
        }
        // If the sender does not check again in time, the subscriber is evicted for its stall instead.
        let event = publisher.ask("event")?;
        if ![format!("gone {pid} corrupt"), format!("gone {pid} evicted")].contains(&event) {
            return Err(RowError::wrong(format!("{false_value}: {event}")));
        }
        expect_answer(&mut publisher, "close", "closed")?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "each of {} false heads removes only the hostile subscriber ('corrupt' or 'evicted') or is never read; the honest subscriber gets all",
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
pub(super) fn slow_subscriber(setup: &Setup) -> Result<Report, RowError> {
    let [mut publisher, honest, hostile_one] = plain_three(setup)?;
    let plain = plain_sends(&mut publisher)?;
    drop((publisher, honest, hostile_one));

    for (how, reason) in [
        ("never", "evicted"),
        ("read-slowly", "evicted"),
        ("silent", "evicted"),
        ("stopped", "evicted"),
        ("dead", "lost"),
    ] {
        let address = setup.address(&format!("ringfence-{how}"));
        // The publisher must not wait for a dead subscriber.
        let stall = if how == "dead" {
            "stall=100000"
        } else {
            "stall=800"
        };
        let (mut publisher, mut honest) = protected_two(setup, &address, stall)?;
        let mut slow = hostile_subscriber(setup, &mut publisher, &address)?;
        let gone = format!("gone {} {reason}", slow.pid());
        let outcome = while_publishing(&mut publisher, &mut honest, || match how {
            "read-slowly" => expect_answer(&mut slow, "read-slowly 2048 200 wakes", "reading slowly"),
            "silent" => expect_answer(&mut slow, "read-slowly 8192 200 silently", "reading slowly"),
            "stopped" => slow.stop(),
            "dead" => {
                slow.kill();
                slow.wait_for_zombie()
            }
            _ => Ok(()),
        })?;
        if let Err(harm) = outcome {
            return Ok(Report::with_harm(plain, format!("{how}: {harm}")));
        }
        expect_answer(&mut publisher, "event", &gone)?;
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
pub(super) fn write_to_shared_ring(setup: &Setup) -> Result<Report, RowError> {
    let [mut publisher, mut honest, mut forger] = plain_three(setup)?;
    expect_answer(&mut publisher, "send-all 1", "all sent")?;
    let at = plain_broadcast::message_at(0) + 8;
    expect_answer(&mut forger, &format!("write {at} forged!!"), "written")?;
    let plain = match &*honest.ask("receive")? {
        "got None" => Outcome::succeeded("another subscriber reads what the attacker wrote"),
        other => Outcome::failed(other),
    };
    drop((publisher, honest, forger));

    let address = setup.address("ringfence");
    let (mut publisher, mut honest) = protected_two(setup, &address, "")?;
    let mut forger = hostile_subscriber(setup, &mut publisher, &address)?;
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
    expect_answer(&mut forger, "head far", "stored")?;
    if let Err(harm) = while_publishing(&mut publisher, &mut honest, || Ok(()))? {
        return Ok(Report::with_harm(plain, harm));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("EPERM or EACCES for each attempt; the honest subscriber gets all"),
        stopped_by: "F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK, F_SEAL_GROW; mode 0",
    })
}

fn insider(setup: &Setup, how: &str, victim: &Process, name: &str) -> Result<Process, RowError> {
    let args = ["insider", how, &victim.pid().to_string(), name];
    setup.spawn("the insider", User::Agent, Program::Other, &args)
}

/// Row 49: another process of the same user opens the descriptor that a publisher needs for its next
/// subscriber.
///
/// Defence: the descriptor is in no table, but in flight to the publisher itself. Descriptors that were
/// passed on are covered by the owner's lease: opening one ends all channels.
pub(super) fn publishers_descriptor(setup: &Setup) -> Result<Report, RowError> {
    let [mut publisher, honest, hostile_one] = plain_three(setup)?;
    let mut attacker = insider(setup, "open", &publisher, "/memfd:plain-broadcast")?;
    attacker.line_after("opened")?;
    expect_answer(&mut publisher, "send-all 1", "all sent")?;
    let plain = Outcome::succeeded(
        "the descriptor stays open as long as the publisher lives, and can be opened for writing",
    );
    drop((publisher, honest, hostile_one));

    let address = setup.address("ringfence");
    let (mut publisher, mut honest) = protected_two(setup, &address, "")?;
    let mut opener = hostile_subscriber(setup, &mut publisher, &address)?;
    let table = format!("/proc/{}/fd", publisher.pid());
    let entries = fs::read_dir(&table).map_err(|error| RowError::wrong(format!("{table}: {error}")))?;
    for entry in entries.filter_map(Result::ok) {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains("memfd") {
            return Ok(Report::with_harm(plain, format!("it holds {}", target.display())));
        }
    }
    expect_answer(&mut publisher, "send-all 10", "all sent")?;
    expect_answer(&mut publisher, "send topsecret", "sent")?;
    expect_answer(&mut opener, "find-theirs topsecret", "found")?;
    // A subscriber opens the descriptor that it was passed, as its user may.
    let answer = opener.ask("expose-theirs")?;
    if answer != "EAGAIN" {
        return Ok(Report::with_harm(
            plain,
            format!("opened by a subscriber: {answer}"),
        ));
    }
    for (process, order) in [(&mut honest, "read 20000"), (&mut publisher, "send more")] {
        expect_exposed_after(process, order)?;
    }
    // The channel is ended a moment before the ring is wiped.
    let end = Instant::now() + TIME_LIMIT;
    while opener.ask("find-theirs topsecret")? != "absent" {
        if Instant::now() > end {
            return Ok(Report::with_harm(plain, "the memory was not wiped"));
        }
    }
    let address = setup.address("hardened");
    let (publisher, _honest) = protected_two(setup, &address, "harden")?;
    for (how, wanted) in [("open", "EACCES"), ("getfd", "EPERM")] {
        let answer = insider(setup, how, &publisher, "memfd")?.line()?;
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
fn expect_exposed_after(process: &mut Process, order: &str) -> Result<(), RowError> {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let answer = process.ask(order)?;
        if answer.starts_with("error OBJECT_EXPOSED") {
            return expect_answer(process, "reason", "exposed");
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
pub(super) fn connection_flood(setup: &Setup) -> Result<Report, RowError> {
    let connect_many = |address: &str| {
        let args = ["attacker", "connect-many", address, "40"];
        setup.spawn("the clients", User::Other, Program::Other, &args)
    };
    let address = setup.address("plain");
    let _publisher = plain_publisher(setup, &address, "greeting")?;
    let mut clients = connect_many(&address)?;
    clients.line_after("connected")?;
    let mut honest = spawn_role(setup, "the honest subscriber", "subscriber", "plain")?;
    let order = format!("subscribe {address} 0 greeting");
    let plain = match honest.try_ask(&order, Duration::from_secs(1)) {
        Event::Line(line) => Outcome::failed(line),
        _ => Outcome::succeeded("it waits for the first stranger's greeting, and admits no subscriber"),
    };

    let address = setup.address("ringfence");
    let (mut publisher, mut honest) = protected_two(setup, &address, "")?;
    let mut late = spawn_role(setup, "a late subscriber", "subscriber", "ringfence")?;
    let outcome = while_publishing(&mut publisher, &mut honest, || {
        let mut clients = connect_many(&address)?;
        clients.line_after("connected")?;
        subscribe(&mut late, &address, "best-effort")
    })?;
    if let Err(harm) = outcome {
        return Ok(Report::with_harm(plain, harm));
    }
    let mut refused = 0;
    loop {
        let event = publisher.ask("event")?;
        if event.starts_with("refused") {
            refused += 1;
        } else if event == format!("subscribed {}", late.pid()) {
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
const SUBSCRIPTIONS: usize = 1000;

/// Row 51: subscriptions are made and dropped one after the other.
///
/// Defence: everything that the publisher keeps for a subscription is released with it, and the list of
/// subscribers is separate from the sending path.
pub(super) fn subscription_churn(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut publisher = plain_publisher(setup, &address, "")?;
    let args = ["attacker", "connect-many", &address, "8"];
    let mut clients = setup.spawn("the clients", User::Agent, Program::Genuine, &args)?;
    clients.line_after("connected")?;
    drop(clients);
    while publisher.ask("subscribers")? == "0" {}
    let plain = plain_sends(&mut publisher)?;

    let address = setup.address("ringfence");
    let (mut publisher, mut honest) = protected_two(setup, &address, "")?;
    let before = publisher.ask("descriptors")?;
    let mut visitor = spawn_role(setup, "the visitor", "subscriber", "ringfence")?;
    for _ in 0..SUBSCRIPTIONS / 100 {
        let outcome = while_publishing(&mut publisher, &mut honest, || {
            expect_answer(
                &mut visitor,
                &format!("subscribe-and-drop {address} 100"),
                "no error",
            )
        })?;
        if let Err(harm) = outcome {
            return Ok(Report::with_harm(plain, harm));
        }
    }
    drop(visitor);
    // Each visitor causes two events.
    for _ in 0..2 * SUBSCRIPTIONS {
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
            "{SUBSCRIPTIONS} subscriptions leave nothing behind; the honest subscriber gets all"
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
fn malformed_publisher_values() -> Vec<(&'static str, Vec<(usize, u64)>)> {
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
pub(super) fn malformed_publisher(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = super::ring::plain_and_hostile(setup, &setup.address("plain"))?;
    let (data, tail) = (crate::plain::data_of(1, super::SIZE), crate::plain::tail_of(1));
    expect_answer(&mut guest, &format!("store {data} {}", u32::MAX - 16), "stored")?;
    expect_answer(&mut guest, &format!("store {tail} 16"), "stored")?;
    let plain = match host.try_ask("receive 10000", TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("a reader reads out of bounds: {how}")),
        Event::Line(answer) if answer.starts_with("got 4294967279") => {
            Outcome::succeeded("a reader reads out of bounds")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut false_publisher = FalsePublisher::new(setup, "")?;
    for offer in OFFERS {
        let answer = false_publisher.meet("reliable", offer)?;
        if !answer.starts_with("error RING_CORRUPT") {
            return Ok(Report::with_harm(plain, format!("{offer}: {answer}")));
        }
    }
    let lies = malformed_publisher_values();
    for (false_value, stores) in &lies {
        expect_subscribed(&false_publisher.meet("reliable", "slot=4294967295")?)?;
        if stores.is_empty() {
            expect_answer(&mut false_publisher.peer, "store-control 640 77", "stored")?;
        }
        for (at, value) in stores {
            expect_answer(
                &mut false_publisher.peer,
                &format!("store {at} {value}"),
                "stored",
            )?;
        }
        expect_answer(&mut false_publisher.peer, "wake", "woken")?;
        match false_publisher.victim.try_ask("read 20000", TIME_LIMIT) {
            Event::Line(line) if line.starts_with("error RING_CORRUPT") => {}
            other => return Ok(Report::with_harm(plain, format!("{false_value}: {other:?}"))),
        }
    }
    for seed in 0..STORMS {
        let delivery = ["reliable", "best-effort", "latest"][usize::try_from(seed % 3).unwrap_or(0)];
        expect_subscribed(&false_publisher.meet(delivery, "")?)?;
        expect_answer(
            &mut false_publisher.peer,
            &format!("fan-storm {}", seed + 1),
            "storming",
        )?;
        let answer = false_publisher.victim.try_ask("read 150", TIME_LIMIT);
        expect_answer(&mut false_publisher.peer, "stop-storm", "storm stopped")?;
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

fn expect_subscribed(answer: &str) -> Result<(), RowError> {
    if answer == "subscribed" {
        Ok(())
    } else {
        Err(RowError::wrong(answer))
    }
}

/// A hostile publisher, and one process that subscribes to it repeatedly.
struct FalsePublisher {
    peer: Process,
    victim: Process,
    address: String,
    /// The options of each subscription.
    options: &'static str,
}

impl FalsePublisher {
    fn new(setup: &Setup, options: &'static str) -> Result<Self, RowError> {
        let address = setup.address("false-publisher");
        let mut peer = hostile(setup)?;
        expect_answer(&mut peer, &format!("listen {address}"), "listening")?;
        let victim = spawn_role(setup, "the subscriber", "subscriber", "ringfence")?;
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
pub(super) fn publisher_attachments(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let args = ["hostile", "plain", "host", &address, "unsealed"];
    let mut publisher = setup.spawn("the hostile publisher", User::Agent, Program::Genuine, &args)?;
    publisher.line_after("listening")?;
    let mut subscriber = spawn_role(setup, "the subscriber", "subscriber", "plain")?;
    expect_answer(&mut subscriber, &format!("subscribe {address} 0"), "subscribed")?;
    publisher.line_after("passed")?;
    expect_answer(&mut publisher, "truncate", "truncated")?;
    let plain = match answer_or_exit(&mut subscriber, "receive") {
        Event::Exited(how) => Outcome::succeeded(format!("the subscriber reads memory that shrinks: {how}")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut false_publisher = FalsePublisher::new(setup, "attachments=4")?;
    let kinds = UNSOUND_ATTACHMENTS.map(|(kind, code)| (kind, format!("error {code}")));
    let harmless = [("absent", 0), ("sound", 1)];
    let harmless = harmless.map(|(kind, count)| (kind, format!("got 8 with {count}")));
    for delivery in ["reliable", "best-effort", "latest"] {
        for (kind, wanted) in kinds.iter().chain(&harmless) {
            expect_subscribed(&false_publisher.meet(delivery, "")?)?;
            if let Some(harm) = attach(
                &mut false_publisher.peer,
                &mut false_publisher.victim,
                kind,
                wanted,
            )? {
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
pub(super) fn overwrite_during_visit(setup: &Setup) -> Result<Report, RowError> {
    let [mut publisher, mut honest, mut forger] = plain_three(setup)?;
    expect_answer(&mut publisher, "send-all 1", "all sent")?;
    let at = plain_broadcast::message_at(0) + 8;
    expect_answer(&mut forger, &format!("write {at} another!"), "written")?;
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
        let address = setup.address(&format!("overwrites-{number}"));
        let mut peer = hostile(setup)?;
        expect_answer(&mut peer, &format!("listen {address}"), "listening")?;
        let mut victim = spawn_role(setup, "the collector", "collector", "ringfence")?;
        victim.send_order(&format!("subscribe {address}"))?;
        expect_answer(&mut peer, "publish", "published")?;
        victim.line_after("subscribed")?;
        for (at, word) in [
            (data, header(IN_PLACE, WHOLE)),
            (first, 1),
            (layout::TAIL, IN_PLACE + 8),
        ] {
            expect_answer(&mut peer, &format!("store {at} {word}"), "stored")?;
        }
        victim.send_order("visit")?;
        victim.line_after("visiting")?;
        for order in *way {
            expect_answer(&mut peer, order, "stored")?;
        }
        expect_answer(&mut peer, &format!("store {first} 2"), "stored")?;
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
