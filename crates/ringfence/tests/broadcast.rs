//! Broadcasts with real processes: the guarantees to a publisher and its subscribers.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Address, CloseReason, Delivery, Error, Options, Publisher, PublisherEvent, Subscriber, Subscription,
    publish, subscribe,
};

use support::{Actor, TIME_LIMIT, assert_lost, fresh_address, report, wait_for_test};

const CAPACITY: u64 = 64 << 10;

/// The stall limit of a subscriber that pauses for a quarter of it.
const STALL: Duration = Duration::from_secs(2);

/// Number of messages in a long run.
const COUNT: u64 = 20_000;

fn options() -> Options {
    Options::new().capacity(CAPACITY).handshake_timeout(TIME_LIMIT)
}

fn options_with(delivery: &str, from: &str) -> Options {
    options()
        .delivery(delivery.parse().unwrap())
        .from(from.parse().unwrap())
}

/// The message with this number: a wrong byte in it is detected.
fn message(number: u64, length: usize) -> Vec<u8> {
    number
        .to_le_bytes()
        .into_iter()
        .cycle()
        .take(length.max(8))
        .collect()
}

fn number(message: &[u8]) -> u64 {
    let number = u64::from_le_bytes(message[..8].try_into().unwrap());
    assert_eq!(message, self::message(number, message.len()), "torn");
    number
}

/// Returns the next subscriber that is admitted.
fn next_subscriber(publisher: &Publisher) -> Subscriber {
    loop {
        match publisher.next().unwrap() {
            PublisherEvent::Subscriber(subscriber) => return subscriber,
            PublisherEvent::Gone(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the next subscriber that is reported as gone, and why.
fn next_gone(publisher: &Publisher) -> (Subscriber, CloseReason) {
    loop {
        match publisher.next().unwrap() {
            PublisherEvent::Gone(subscriber, reason) => return (subscriber, reason),
            PublisherEvent::Subscriber(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Starts one subscriber in a separate process, and waits until it is admitted.
fn subscriber(role: &str, address: &Address, delivery: &str, from: &str) -> Actor {
    let actor = Actor::start(role, &[&address.to_string(), delivery, from]);
    actor.expect("in");
    actor
}

fn join(arguments: &[String]) -> Subscription {
    let address: Address = arguments[0].parse().unwrap();
    let subscription = subscribe(&address, &options_with(&arguments[1], &arguments[2])).unwrap();
    report("in");
    subscription
}

/// Reads until the end, and returns a summary: the number of messages, the first and the last, whether they
/// were in order, the number of lost ones, and how the subscription ended.
fn read_all(subscription: &mut Subscription) -> String {
    let first_sequence = subscription.sequence();
    let mut into = vec![0; 64 << 10];
    let (mut count, mut first, mut last) = (0_u64, 0, 0);
    let end = loop {
        match subscription.receive(&mut into) {
            Ok(Some(length)) => {
                let number = number(&into[..length]);
                assert!(number > last, "{number} after {last}");
                assert_eq!(number, subscription.sequence());
                last = number;
                count += 1;
                if count == 1 {
                    first = number;
                }
                assert_eq!(
                    count + subscription.lost(),
                    subscription.sequence() - first_sequence
                );
            }
            Ok(None) => {
                assert_eq!(subscription.close_reason(), Some(CloseReason::Closed));
                break "closed".to_owned();
            }
            Err(error) => break error.code().to_owned(),
        }
    };
    format!(
        "{count} from {first} to {last}, lost {}, {end}",
        subscription.lost()
    )
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let arguments = &arguments[..];
    match role.as_str() {
        "reads" => {
            let mut subscription = join(arguments);
            report(read_all(&mut subscription));
        }
        // Reads on command.
        "waits" => {
            let mut subscription = join(arguments);
            wait_for_test();
            report(read_all(&mut subscription));
        }
        // Reports the outcome of one attempt to subscribe.
        "tries" => {
            let address: Address = arguments[0].parse().unwrap();
            match subscribe(&address, &options_with(&arguments[1], &arguments[2])) {
                Ok(_) => report("in"),
                Err(error) => report(format!("{}: {error}", error.code())),
            }
        }
        "reads in bursts" => as_reads_in_bursts(arguments),
        "publishes" => as_publishes(arguments),
        "ends" => as_ends(arguments),
        "reads 5000" => as_reads_5000(arguments),
        "loops" => as_loops(arguments),
        "many" => as_many(arguments),
        "other endpoints" => as_other_endpoints(arguments),
        "polls is_ended" => as_polls_is_ended(arguments),
        "accepts less" => {
            let address: Address = arguments[0].parse().unwrap();
            let error = subscribe(&address, &options().max_message_size(1000)).unwrap_err();
            report(format!("{}: {error}", error.code()));
        }
        other => panic!("{other}"),
    }
}

/// Checks for the end in a way that never polls the line.
fn as_polls_is_ended(arguments: &[String]) {
    let mut subscription = join(arguments);
    assert!(mapped() > 0);
    while !subscription.is_ended().unwrap() {
        thread::yield_now();
    }
    let reason = subscription.close_reason().expect("an end");
    report(format!("{reason}, {} mapped", mapped()));
}

/// Counts the shared objects that this process has mapped.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:ringfence"))
        .count()
}

/// Reads up to the message that the test names, reports that, and pauses until the next name.
fn as_reads_in_bursts(arguments: &[String]) {
    let mut subscription = join(arguments);
    let mut into = [0; 2048];
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(line)) = lines.next() {
        let wanted: u64 = line.parse().unwrap();
        while subscription.sequence() < wanted {
            match subscription.receive(&mut into) {
                Ok(Some(length)) => assert_eq!(number(&into[..length]), subscription.sequence()),
                other => return report(format!("{other:?}")),
            }
        }
        report("read");
    }
}

fn as_publishes(arguments: &[String]) {
    let address: Address = arguments[0].parse().unwrap();
    let mut publisher = publish(&address, &options()).unwrap();
    report("out");
    wait_for_test();
    for number in 1..=arguments[1].parse().unwrap() {
        publisher.send(&message(number, 100)).unwrap();
    }
    report("sent");
    wait_for_test();
}

fn as_reads_5000(arguments: &[String]) {
    let mut subscription = join(arguments);
    let mut into = [0; 64];
    let mut last = subscription.sequence();
    for _ in 0..5000 {
        let length = subscription.receive(&mut into).unwrap().unwrap();
        let number = number(&into[..length]);
        assert_eq!(number, last + 1);
        last = number;
    }
    report("in order");
}

fn as_loops(arguments: &[String]) {
    let mut subscription = join(arguments);
    wait_for_test();
    let mut count = 0;
    loop {
        count += subscription
            .receive_each(|bytes| assert!(number(&bytes.to_vec()) > 0), 7)
            .unwrap();
        if subscription.is_ended().unwrap() {
            break;
        }
        if subscription.arm().unwrap() {
            readable(&subscription);
            subscription.poll_line().unwrap();
            subscription.disarm();
        }
    }
    report(format!("{count} read, {}", subscription.close_reason().unwrap()));
}

fn as_many(arguments: &[String]) {
    let address: Address = arguments[0].parse().unwrap();
    let count = arguments[1].parse().unwrap();
    let mut all: Vec<_> = (0..count)
        .map(|_| subscribe(&address, &options()).unwrap())
        .collect();
    report("in");
    wait_for_test();
    let mut into = [0; 64];
    for subscription in &mut all {
        while subscription.receive(&mut into).unwrap().is_some() {}
    }
    let whole = all.iter().filter(|one| one.sequence() == 1000 && one.lost() == 0);
    report(format!("{} have 1000", whole.count()));
}

fn as_other_endpoints(arguments: &[String]) {
    let address: Address = arguments[0].parse().unwrap();
    let code = |result: ringfence::Result<()>| result.unwrap_err().code();
    let options = options();
    report(format!(
        "join {}, connect {}, member {}, publish {}",
        code(ringfence::join(&address, &options).map(drop)),
        code(ringfence::connect(&address, &options).map(drop)),
        code(ringfence::member(&address, &options).and_then(|member| member.next().map(drop))),
        code(publish(&address, &options).map(drop)),
    ));
    wait_for_test();
}

#[test]
fn reliable_subscribers_get_every_message_in_order() {
    let (address, _directory) = fresh_address(true);
    let mut publisher = publish(&address, &options()).unwrap();
    let readers: Vec<_> = (0..3)
        .map(|_| subscriber("reads", &address, "reliable", "now"))
        .collect();
    let admitted: Vec<_> = (0..3).map(|_| next_subscriber(&publisher)).collect();
    assert_eq!(publisher.subscribers().len(), 3);
    assert!(admitted.iter().all(|one| one.gone().is_none() && one.lag() == 0));
    for number in 1..=COUNT {
        publisher
            .send(&message(number, 8 + usize::try_from(number % 500).unwrap()))
            .unwrap();
    }
    assert_eq!(publisher.sequence(), COUNT);
    publisher.end();
    for reader in readers {
        reader.expect(&format!("{COUNT} from 1 to {COUNT}, lost 0, closed"));
        reader.finish();
    }
    let reasons: Vec<_> = (0..3).map(|_| next_gone(&publisher).1).collect();
    assert_eq!(reasons, [CloseReason::Closed; 3]);
    assert!(matches!(publisher.next(), Err(Error::Closed(_))));
    assert_eq!(publisher.close_reason(), Some(ringfence::CloseReason::Closed));
}

#[test]
fn published_messages_survive_a_killed_publisher() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = Actor::start("publishes", &[&address.to_string(), "300"]);
    publisher.expect("out");
    let mut reader = subscriber("waits", &address, "reliable", "now");
    publisher.proceed();
    publisher.expect("sent");
    publisher.kill();
    reader.proceed();
    reader.expect("300 from 1 to 300, lost 0, PEER_LOST");
    reader.finish();
}

#[test]
fn killed_subscriber_is_removed_while_send_waits() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::MAX)).unwrap();
    let mut dead = subscriber("waits", &address, "reliable", "now");
    let alive = subscriber("reads", &address, "reliable", "now");
    let mut sent = 0;
    while publisher.try_send(&message(sent + 1, 1000)).unwrap() {
        sent += 1;
    }
    let (mut sender, audience) = publisher.split();
    let sleeping = thread::spawn(move || {
        sender.send(&message(sent + 1, 1000)).unwrap();
        sender.end();
        sent + 1
    });
    // Time for the sender to park. If it has not parked, the test covers less, but does not fail.
    thread::sleep(Duration::from_millis(20));
    dead.kill();
    let sent = sleeping.join().unwrap();
    alive.expect(&format!("{sent} from 1 to {sent}, lost 0, closed"));
    let mut reasons = Vec::new();
    while let Ok(event) = audience.next() {
        if let PublisherEvent::Gone(_, reason) = event {
            reasons.push(reason);
        }
    }
    assert_eq!(reasons, [CloseReason::Lost, CloseReason::Closed]);
}

#[test]
fn stalled_subscriber_is_evicted_and_notified() {
    let (address, _directory) = fresh_address(false);
    // Long enough that the reading subscriber never takes as long, even on a busy machine.
    let stall = Duration::from_secs(2);
    let mut publisher = publish(&address, &options().stall(stall)).unwrap();
    let mut slow = subscriber("waits", &address, "reliable", "now");
    let alive = subscriber("reads", &address, "reliable", "now");
    let start = Instant::now();
    let count = 4 * CAPACITY / 1000;
    for number in 1..=count {
        publisher.send(&message(number, 1000)).unwrap();
    }
    assert!(start.elapsed() >= stall, "the publisher did not wait");
    let (gone, reason) = next_gone(&publisher);
    assert_eq!((gone.peer().pid, reason), (slow.pid(), CloseReason::Evicted));
    assert_eq!(gone.gone(), Some(CloseReason::Evicted));
    slow.proceed();
    slow.expect("0 from 0 to 0, lost 0, EVICTED");
    slow.finish();
    publisher.end();
    alive.expect(&format!("{count} from 1 to {count}, lost 0, closed"));
}

/// Makes a subscriber pause with a full ring, each time for a part of its stall. Then it reads up to the
/// message that `catches_up` computes from the last one. Returns the subscriber's final report and the
/// longest pause: a machine that halts for a whole stall proves nothing.
fn run_with_pauses(rounds: u32, catches_up: impl Fn(u64) -> u64) -> (String, Duration) {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(STALL)).unwrap();
    let mut reader = subscriber("reads in bursts", &address, "reliable", "now");
    let admitted = next_subscriber(&publisher);
    let (mut sent, mut longest) = (0, Duration::ZERO);
    let mut line = String::new();
    for _ in 0..rounds {
        let since = Instant::now();
        while publisher.try_send(&message(sent + 1, 1000)).unwrap() {
            sent += 1;
        }
        // The publisher knows the subscriber's own position from a moment after its admission.
        while admitted.lag() == 0 && admitted.gone().is_none() {
            assert!(since.elapsed() < TIME_LIMIT, "the subscriber does not count");
            thread::yield_now();
        }
        thread::sleep(STALL / 4);
        // There is room for a message before the subscriber has caught up.
        for read in [sent - 48, catches_up(sent)] {
            reader.send_line(&read.to_string());
            line = reader.next_line();
            longest = longest.max(since.elapsed());
            if line != "read" {
                return (line, longest);
            }
            sent += 1;
            assert!(publisher.try_send(&message(sent, 1000)).unwrap());
        }
    }
    (line, longest)
}

#[test]
fn pausing_subscriber_that_catches_up_is_not_evicted() {
    loop {
        let (line, longest) = run_with_pauses(7, |sent| sent);
        if longest < STALL {
            break assert_eq!(line, "read");
        }
    }
}

#[test]
fn pausing_subscriber_that_stays_behind_is_evicted() {
    let (line, _) = run_with_pauses(60, |sent| sent - 17);
    assert_eq!(line, "Err(Evicted)");
}

/// The program need not call again for that.
#[test]
fn refused_try_send_keeps_the_stall_timer_running() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::from_millis(50))).unwrap();
    let _slow = subscriber("waits", &address, "reliable", "now");
    while publisher.try_send(&message(1, 1000)).unwrap() {}
    assert_eq!(next_gone(&publisher).1, CloseReason::Evicted);
    assert!(publisher.try_send(&message(1, 1000)).unwrap());
}

#[test]
fn slow_subscriber_is_waited_for_without_a_stall_limit() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::MAX)).unwrap();
    let mut slow = subscriber("waits", &address, "reliable", "now");
    next_subscriber(&publisher);
    let mut sent = 0;
    while publisher.try_send(&message(sent + 1, 1000)).unwrap() {
        sent += 1;
    }
    let deadline = Instant::now() + Duration::from_millis(100);
    assert!(!publisher.wait(1000, Some(deadline)).unwrap());
    assert!(
        publisher.try_next().unwrap().is_none(),
        "no subscriber was removed"
    );
    slow.proceed();
    publisher.send(&message(sent + 1, 1000)).unwrap();
    publisher.end();
    let sent = sent + 1;
    slow.expect(&format!("{sent} from 1 to {sent}, lost 0, closed"));
}

#[test]
fn lossy_deliveries_never_block_and_count_losses() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut best = subscriber("waits", &address, "best-effort", "now");
    let mut latest = subscriber("waits", &address, "latest", "now");
    let count = 10 * CAPACITY / 100;
    for number in 1..=count {
        assert!(
            publisher.try_send(&message(number, 100)).unwrap(),
            "{number} waits"
        );
    }
    publisher.end();
    best.proceed();
    latest.proceed();
    latest.expect(&format!("1 from {count} to {count}, lost {}, closed", count - 1));
    let reply = best.next_line();
    // The counts were compared message by message. This checks that the subscriber received the last one.
    assert!(
        reply.contains(&format!("to {count}, lost ")) && reply.ends_with("closed"),
        "{reply}"
    );
    assert!(!reply.contains("lost 0"), "{reply}");
}

#[test]
fn late_subscriber_starts_at_oldest_latest_or_now() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let count = 3 * CAPACITY / 100;
    for number in 1..=count {
        assert!(publisher.try_send(&message(number, 92)).unwrap());
    }
    let oldest = subscriber("reads", &address, "reliable", "oldest");
    let latest = subscriber("reads", &address, "reliable", "latest");
    let now = subscriber("reads", &address, "reliable", "now");
    publisher.send(&message(count + 1, 92)).unwrap();
    publisher.end();
    now.expect(&format!("1 from {0} to {0}, lost 0, closed", count + 1));
    latest.expect(&format!("2 from {count} to {}, lost 0, closed", count + 1));
    let reply = oldest.next_line();
    let got: u64 = reply.split(' ').next().unwrap().parse().unwrap();
    assert!(got * 104 >= CAPACITY * 3 / 4, "{reply}");
    assert_eq!(
        reply,
        format!("{got} from {} to {}, lost 0, closed", count + 2 - got, count + 1)
    );
}

#[test]
fn disconnected_subscriber_reads_the_remaining_messages() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut leaving = subscriber("waits", &address, "reliable", "now");
    let left = next_subscriber(&publisher);
    let staying = subscriber("reads", &address, "reliable", "now");
    drop(next_subscriber(&publisher));
    for number in 1..=10 {
        publisher.send(&message(number, 100)).unwrap();
    }
    left.disconnect();
    assert_eq!(left.gone(), Some(CloseReason::Closed));
    assert_eq!(publisher.subscribers().len(), 1);
    // More than the ring holds: unread messages are kept nevertheless.
    let mut sent = 10;
    while publisher.try_send(&message(sent + 1, 100)).unwrap() {
        sent += 1;
    }
    leaving.proceed();
    leaving.expect("10 from 1 to 10, lost 0, closed");
    for number in sent + 1..=2000 {
        publisher.send(&message(number, 100)).unwrap();
    }
    publisher.end();
    staying.expect("2000 from 1 to 2000, lost 0, closed");
}

/// The reason is known before the remaining messages are read, whatever ended the publisher.
#[test]
fn close_reason_is_known_before_all_messages_are_read() {
    for (ending, reason) in [
        ("disconnects", CloseReason::Closed),
        ("ends", CloseReason::Closed),
        ("closes", CloseReason::Closed),
        ("is dropped", CloseReason::Closed),
        ("destroys", CloseReason::Lost),
        ("panics", CloseReason::Lost),
        ("dies", CloseReason::Lost),
        ("evicts", CloseReason::Evicted),
    ] {
        let (address, _directory) = fresh_address(false);
        let mut publisher = Actor::start("ends", &[&address.to_string(), ending]);
        publisher.expect("out");
        let mut subscription = subscribe(&address, &options()).unwrap();
        publisher.expect("published");
        assert_eq!(subscription.close_reason(), None, "{ending}");
        publisher.proceed();
        if ending == "dies" {
            publisher.kill();
        } else {
            publisher.expect("ended");
        }
        subscription
            .poll_line()
            .unwrap_or_else(|error| assert_eq!(error.code(), "EVICTED"));
        assert_eq!(subscription.close_reason(), Some(reason), "{ending}");
        let mut into = [0; 1000];
        for number in 1..=10 {
            let received = subscription.receive(&mut into);
            if reason == CloseReason::Evicted {
                assert!(matches!(received, Err(Error::Evicted)), "{received:?}");
                continue;
            }
            assert_eq!(received.unwrap(), Some(1000), "{ending}");
            assert_eq!(
                (into[0], subscription.close_reason()),
                (number, Some(reason)),
                "{ending}"
            );
        }
        match reason {
            CloseReason::Evicted => {}
            CloseReason::Closed => assert_eq!(subscription.receive(&mut into).unwrap(), None, "{ending}"),
            _ => assert_lost(subscription.receive(&mut into)),
        }
        assert_eq!(subscription.close_reason(), Some(reason), "{ending}");
        if ending != "dies" {
            publisher.proceed();
            publisher.finish();
        }
    }
}

fn as_ends(arguments: &[String]) {
    let address: Address = arguments[0].parse().unwrap();
    let options = options().stall(Duration::from_millis(1));
    let mut publisher = publish(&address, &options).unwrap();
    report("out");
    let subscriber = next_subscriber(&publisher);
    for number in 1..=10 {
        publisher.send(&[number; 1000]).unwrap();
    }
    report("published");
    wait_for_test();
    match &*arguments[1] {
        "disconnects" => subscriber.disconnect(),
        "ends" => publisher.end(),
        "closes" => publisher.close(),
        "is dropped" => drop(publisher),
        "destroys" => publisher.destroy(),
        "panics" => {
            let panicking = thread::spawn(move || {
                let _publisher = publisher;
                panic!("on purpose");
            });
            assert!(panicking.join().is_err());
        }
        "evicts" => {
            while publisher.try_send(&[11; 1000]).unwrap() {}
            assert_eq!(next_gone(&publisher).1, CloseReason::Evicted);
        }
        // The test kills it.
        _ => wait_for_test(),
    }
    report("ended");
    wait_for_test();
}

#[test]
fn closed_publisher_leaves_its_messages_readable() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut reader = subscriber("waits", &address, "reliable", "now");
    for number in 1..=100 {
        publisher.send(&message(number, 200)).unwrap();
    }
    publisher.close();
    assert!(matches!(publisher.try_send(b"x"), Err(Error::Closed(_))));
    drop(publisher);
    reader.proceed();
    reader.expect("100 from 1 to 100, lost 0, closed");
    // The address is free.
    drop(publish(&address, &options()).unwrap());
}

#[test]
fn unacceptable_subscriber_learns_the_reason() {
    let (address, _directory) = fresh_address(false);
    let deliveries = [Delivery::Reliable, Delivery::Latest];
    let publisher = publish(&address, &options().deliveries(deliveries).max_peers(1)).unwrap();
    let text = address.to_string();
    let try_subscribe = |delivery: &str| Actor::start("tries", &[&text, delivery, "now"]).next_line();
    let reply = try_subscribe("best-effort");
    assert!(
        reply.starts_with("PEER_REFUSED") && reply.contains("delivery"),
        "{reply}"
    );
    let PublisherEvent::Refused(refused) = publisher.next().unwrap() else {
        panic!("a refusal")
    };
    assert_eq!(refused.error.refusal().unwrap().check.as_str(), "delivery");
    let _one = subscriber("waits", &address, "reliable", "now");
    let reply = try_subscribe("reliable");
    assert!(reply.starts_with("ADDRESS_OCCUPIED"), "{reply}");
}

#[test]
fn publisher_address_refuses_other_kinds_of_clients() {
    let (address, _directory) = fresh_address(false);
    let publisher = publish(&address, &options()).unwrap();
    let mut child = Actor::start("other endpoints", &[&address.to_string()]);
    child.expect("join PROTOCOL, connect PROTOCOL, member PROTOCOL, publish ADDRESS_OCCUPIED");
    child.proceed();
    drop(publisher);
    let listener = ringfence::listen(&address, &options()).unwrap();
    let reply = Actor::start("tries", &[&address.to_string(), "reliable", "now"]).next_line();
    assert!(reply.starts_with("PROTOCOL"), "{reply}");
    drop(listener);
    let reply = Actor::start("tries", &[&address.to_string(), "reliable", "now"]).next_line();
    assert!(reply.starts_with("PEER_LOST"), "{reply}");
}

#[test]
fn invalid_options_are_rejected() {
    let (address, _directory) = fresh_address(false);
    for (wrong, code) in [
        (options().backing(ringfence::Backing::Shm), "INVALID_ARGUMENT"),
        (options().max_message_size(CAPACITY / 8 + 1), "INVALID_ARGUMENT"),
        (options().deliveries([]), "INVALID_ARGUMENT"),
        (options().capacity(1 << 60), "NO_SPACE"),
    ] {
        assert_eq!(publish(&address, &wrong).unwrap_err().code(), code);
    }
    let wrong = options().backing(ringfence::Backing::Shm);
    assert_eq!(
        subscribe(&address, &wrong).unwrap_err().code(),
        "INVALID_ARGUMENT"
    );
    let mut publisher = publish(&address, &options()).unwrap();
    assert_eq!(publisher.max_message_size(), CAPACITY / 8);
    let large = vec![0; 8193];
    assert_eq!(
        publisher.try_send(&large).unwrap_err().code(),
        "MESSAGE_TOO_LARGE"
    );
    assert!(publisher.try_send(&large[1..]).unwrap());
    let reply = Actor::start("accepts less", &[&address.to_string()]).next_line();
    assert!(
        reply.starts_with("PROTOCOL") && reply.contains("8192") && reply.contains("1000"),
        "{reply}"
    );
}

#[test]
fn batch_of_a_closed_publisher_fails_with_closed() {
    let (address, _directory) = fresh_address(false);
    let (mut sender, audience) = publish(&address, &options()).unwrap().split();
    let mut batch = sender.batch().unwrap();
    assert!(batch.reserve(8).unwrap().is_some());
    audience.close();
    assert_eq!(batch.reserve(8).unwrap_err().code(), "CLOSED");
    assert_eq!(batch.push(&[1; 8]).unwrap_err().code(), "CLOSED");
}

#[test]
fn message_sent_after_subscribe_is_never_missed() {
    let (address, _directory) = fresh_address(false);
    let publisher = publish(&address, &options()).unwrap();
    let (mut sender, audience) = publisher.split();
    let sending = thread::spawn(move || {
        let mut number = 0;
        while sender.close_reason().is_none() {
            number += 1;
            if sender.send(&message(number, 16)).is_err() {
                break;
            }
        }
    });
    // Each reports the position at which it starts and reads a little, without gaps.
    for _ in 0..8 {
        let reader = Actor::start("reads 5000", &[&address.to_string(), "reliable", "now"]);
        reader.expect("in");
        reader.expect("in order");
        reader.finish();
    }
    audience.close();
    sending.join().unwrap();
}

/// As a program with its own event loop does it.
#[test]
fn both_ends_work_in_an_event_loop() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::MAX)).unwrap();
    let mut reader = Actor::start("loops", &[&address.to_string(), "reliable", "now"]);
    reader.expect("in");
    let sender = publisher.sender();
    let mut sent = 0;
    while sent < 2 * CAPACITY / 100 {
        if sender.try_send(&message(sent + 1, 100)).unwrap() {
            sent += 1;
            continue;
        }
        if sent <= CAPACITY / 100 {
            // The subscriber has not read yet, so this resumes it.
            reader.proceed();
        }
        while sender.arm(100).unwrap() {
            readable(&*sender);
            sender.poll_line();
            sender.disarm();
        }
    }
    sender.end();
    reader.expect(&format!("{sent} read, closed"));
    reader.finish();
}

#[test]
fn reservations_and_batches_are_published() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let reader = subscriber("reads", &address, "reliable", "now");
    let mut room = publisher.reserve(500).unwrap().unwrap();
    room[..100].copy_from_slice(&message(1, 100));
    room.commit(100).unwrap();
    drop(publisher.reserve(500).unwrap().unwrap());
    let mut batch = publisher.batch().unwrap();
    // More than the ring holds: the batch publishes its own messages that are in the way, and does not wait.
    let mut number = 2;
    while batch.push(&message(number, 1000)).unwrap() && number < 40 {
        number += 1;
    }
    batch
        .reserve(64)
        .unwrap()
        .unwrap()
        .copy_from_slice(&message(number + 1, 64));
    drop(batch);
    let reserved = publisher.reserve_detached(16).unwrap().unwrap();
    assert_eq!(publisher.try_send(b"x").unwrap_err().code(), "INVALID_ARGUMENT");
    publisher.sender().cancel(reserved).unwrap();
    assert_eq!(publisher.sequence(), number + 1);
    publisher.end();
    reader.expect(&format!("{0} from 1 to {0}, lost 0, closed", number + 1));
    assert!(matches!(publisher.reserve(8).map(drop), Err(Error::Closed(_))));
}

/// Waits until a descriptor is readable.
fn readable(descriptor: impl std::os::fd::AsFd) {
    ringfence::wait_readable(descriptor, &ringfence::CancelToken::new().unwrap()).unwrap();
}

#[test]
fn one_process_can_subscribe_many_times() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut many = Actor::start("many", &[&address.to_string(), "40"]);
    many.expect("in");
    for _ in 0..40 {
        drop(next_subscriber(&publisher));
    }
    for number in 1..=1000 {
        publisher.send(&message(number, 50)).unwrap();
    }
    many.proceed();
    publisher.end();
    many.expect("40 have 1000");
    many.finish();
    for _ in 0..40 {
        assert_eq!(next_gone(&publisher).1, CloseReason::Closed);
    }
}

#[test]
fn verify_checks_a_subscriber_until_it_is_gone() {
    let (address, _directory) = fresh_address(false);
    let publisher = publish(&address, &options()).unwrap();
    let mut reader = subscriber("waits", &address, "best-effort", "latest");
    let admitted = next_subscriber(&publisher);
    assert_eq!(admitted.verify().unwrap().pid, reader.pid());
    assert_eq!((admitted.delivery(), admitted.lag()), (Delivery::BestEffort, 0));
    assert!(!admitted.evidence().is_empty());
    reader.kill();
    assert!(next_gone(&publisher).0.is(&admitted));
    assert!(admitted.verify().is_err());
}

/// A program may keep it for a long time without calling it.
#[test]
fn ended_subscription_unmaps_its_memory() {
    for ends_first in [true, false] {
        let (address, _keep) = fresh_address(false);
        let mut publisher = publish(&address, &options()).unwrap();
        let subscriber = subscriber("polls is_ended", &address, "reliable", "now");
        next_subscriber(&publisher);
        if ends_first {
            publisher.end();
        } else {
            drop(publisher);
        }
        subscriber.expect("closed, 0 mapped");
        subscriber.finish();
    }
}
