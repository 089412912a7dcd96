//! Statistics of a channel, a service, a publisher and a merge: exact, and the last figures remain available.

mod support;

use std::time::{Duration, Instant};

use ringfence::{
    Address, Arrival, ChannelStats, CloseReason, Delivery, Error, Merge, Policy, Publisher, PublisherEvent,
    Subscription, connect, join, listen, publish, subscribe,
};
use support::{Actor, accepted, fresh_address, report, small, wait_for_test};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "reads all" => {
            let mut channel = join(&address, &small()).unwrap();
            report("joined");
            wait_for_test();
            let mut into = vec![0; 1 << 16];
            while channel.receiver().receive(&mut into).unwrap().is_some() {}
            let stats = channel.stats();
            report(format!("{} {}", stats.messages_received, stats.bytes_received));
            wait_for_test();
        }
        "sends three" => {
            // One of them is refused.
            let Ok(mut channel) = connect(&address, &small()) else {
                return;
            };
            for message in [&b"one"[..], b"three", b"seven"] {
                channel.sender().send(message).unwrap();
            }
            wait_for_test();
        }
        "subscribes" => {
            let mut subscription = subscribe(&address, &small()).unwrap();
            report("subscribed");
            let mut into = vec![0; 1 << 16];
            while subscription.receive(&mut into).unwrap().is_some() {}
            let stats = subscription.stats();
            report(format!("{} {}", stats.messages_received, stats.bytes_received));
            wait_for_test();
        }
        "sleeps on command" => {
            let mut channel = join(&address, &small()).unwrap();
            let mut into = [0; 64];
            for _ in 0..2 {
                assert!(channel.receiver().arm().unwrap(), "there is nothing to read");
                report(format!("asleep {}", channel.stats().sleeps));
                wait_for_test();
                channel.receiver().poll_line().unwrap();
                channel.receiver().disarm();
                while channel.receiver().try_receive(&mut into).unwrap().is_some() {}
            }
        }
        "publishes seven" => {
            let mut publisher = publish(&address, &small()).unwrap();
            assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
            for number in 0..7_u8 {
                publisher.send(&[number; 10]).unwrap();
            }
            report("published");
            wait_for_test();
        }
        "subscribes and never reads" => {
            let _subscription = subscribe(&address, &small()).unwrap();
            report("subscribed");
            wait_for_test();
        }
        "evicts" => {
            let options = small().stall(Duration::from_millis(1));
            let mut publisher = publish(&address, &options).unwrap();
            let subscriber = match publisher.next().unwrap() {
                PublisherEvent::Subscriber(subscriber) => subscriber,
                other => panic!("{other:?}"),
            };
            for _ in 0..3 {
                publisher.send(&[7; 100]).unwrap();
            }
            // Its own position counts from a moment after the event. Until then it appears to have read
            // nothing.
            while subscriber.lag() == 0 {
                std::thread::yield_now();
            }
            report("three");
            wait_for_test();
            // It is evicted without being overwritten: the ring still holds all its unread messages.
            while publisher.try_send(&[7; 100]).unwrap() {}
            let (_gone, reason) = match publisher.next().unwrap() {
                PublisherEvent::Gone(gone, reason) => (gone, reason),
                other => panic!("{other:?}"),
            };
            report(reason.to_string());
            wait_for_test();
        }
        "joins" => {
            join(&address, &small()).unwrap_err();
            wait_for_test();
        }
        other => panic!("no role {other}"),
    }
}

fn counts(stats: &ChannelStats) -> [u64; 4] {
    [
        stats.messages_sent,
        stats.bytes_sent,
        stats.messages_received,
        stats.bytes_received,
    ]
}

#[test]
fn every_kind_of_send_is_counted() {
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("reads all", &[&address.to_string()]);
    let mut channel = join(&address, &small()).unwrap();
    assert_eq!(actor.next_line(), "joined");
    let sender = channel.sender();
    sender.send(b"").unwrap();
    sender.send(&[1; 100]).unwrap();
    let mut room = sender.reserve(64).unwrap().unwrap();
    room[..8].copy_from_slice(&[2; 8]);
    room.commit(8).unwrap();
    drop(sender.reserve(64).unwrap());
    let mut batch = sender.batch().unwrap();
    assert!(batch.push(&[3; 10]).unwrap());
    batch.reserve(20).unwrap().unwrap().fill(4);
    drop(batch);
    let packed = [&5_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"packed\0\0"].concat();
    assert_eq!(sender.try_send_packed(&packed).unwrap(), 16);
    let before = channel.stats();
    assert_eq!(counts(&before), [6, 143, 0, 0]);
    assert_eq!((before.waits, before.ring_capacity), (0, 4096));
    assert!(before.ring_used >= 143, "{before:?}");
    // More than the ring holds: the message is sent in fragments, which wait for room.
    actor.proceed();
    channel.sender().send(&vec![6; 50_000]).unwrap();
    let after = channel.stats();
    assert_eq!(counts(&after), [7, 50_143, 0, 0]);
    assert!(after.waits == 1 && after.waited_micros > 0, "{after:?}");
    channel.sender().end();
    assert_eq!(actor.next_line(), "7 50143");
    let last = channel.stats();
    assert_eq!(counts(&last), [7, 50_143, 0, 0]);
    channel.sender().close();
    assert_eq!(
        counts(&channel.stats()),
        [7, 50_143, 0, 0],
        "the last counts remain"
    );
}

#[test]
fn service_totals_include_closed_channels() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let actors: Vec<_> = (0..2)
        .map(|_| Actor::start("sends three", &[&address.to_string()]))
        .collect();
    let mut merge = Merge::new().unwrap();
    let mut channels = Vec::new();
    for _ in &actors {
        let (sender, receiver) = accepted(&listener).split();
        channels.push(sender);
        merge.add(receiver).unwrap();
    }
    let mut into = vec![0; 4096];
    for _ in 0..6 {
        merge.receive(&mut into).unwrap().unwrap();
    }
    let merged = merge.stats();
    assert_eq!(
        [
            merged.sources as u64,
            merged.messages_received,
            merged.bytes_received
        ],
        [2, 6, 26]
    );
    // The reader publishes its counts when it sleeps or is asked.
    assert_eq!(counts(&listener.stats().channels), [0, 0, 6, 26]);
    assert_eq!((listener.stats().open, listener.stats().accepted), (2, 2));
    drop(merge);
    drop(channels);
    let stats = listener.stats();
    assert_eq!((stats.open, stats.accepted), (0, 2));
    assert_eq!(counts(&stats.channels), [0, 0, 6, 26]);
    assert_eq!(stats.channels.ring_capacity, 0, "only open channels");
}

#[test]
fn refusal_is_counted_by_its_check() {
    let (address, _keep) = fresh_address(false);
    let policy = Policy::new().authorize(|_| Ok::<_, Error>(false));
    let listener = listen(&address, &small().policy(policy)).unwrap();
    let _actor = Actor::start("sends three", &[&address.to_string()]);
    match listener.accept().unwrap() {
        Arrival::Refused(refused) => assert!(matches!(refused.error, Error::PeerRefused(_))),
        other => panic!("{other:?}"),
    }
    assert_eq!(listener.stats().refused.get("authorize"), Some(&1));
    assert_eq!(listener.stats().accepted, 0);
}

#[test]
fn publisher_and_subscriber_count_separately() {
    let (address, _keep) = fresh_address(false);
    let mut publisher = publish(&address, &small()).unwrap();
    let actor = Actor::start("subscribes", &[&address.to_string()]);
    assert_eq!(actor.next_line(), "subscribed");
    assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    for _ in 0..100 {
        publisher.send(&[7; 100]).unwrap();
    }
    let stats = publisher.stats();
    assert_eq!((stats.published, stats.bytes_published), (100, 10_000));
    assert_eq!((stats.subscribers, stats.evicted), (1, 0));
    assert!(stats.ring_used <= stats.ring_capacity, "{stats:?}");
    publisher.end();
    assert_eq!(actor.next_line(), "100 10000");
    let last = publisher.stats();
    assert_eq!((last.published, last.bytes_published), (100, 10_000));
}

#[test]
fn sleeps_and_wakeups_are_counted() {
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("sleeps on command", &[&address.to_string()]);
    let mut channel = join(&address, &small()).unwrap();
    for times in 1..=2 {
        actor.expect(&format!("asleep {times}"));
        channel.sender().send(b"wakes it").unwrap();
        assert_eq!(channel.stats().bells_rung, times);
        channel.sender().send(b"finds it awake or notified").unwrap();
        assert_eq!(channel.stats().bells_rung, times, "one wakeup per sleep");
        actor.proceed();
    }
    assert_eq!(channel.stats().sleeps, 0);
    actor.finish();
    assert_eq!(channel.receiver().receive(&mut [0; 64]).unwrap(), None);
    // The peer may have gone already. If not, this side has slept.
    let asleep = channel.stats().sleeps;
    assert!(asleep <= 1, "{asleep}");
}

#[test]
fn subscription_reports_loss_lag_and_sleeps() {
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("publishes seven", &[&address.to_string()]);
    let options = small().delivery(Delivery::Latest).wait(true);
    let mut subscription = subscribe(&address, &options).unwrap();
    actor.expect("published");
    let before = subscription.stats();
    assert_eq!((before.messages_received, before.lost, before.sleeps), (0, 0, 0));
    // Seven records of 24 bytes: a header, and the payload in whole words.
    assert_eq!(before.lag, 7 * 24);
    let mut into = [0; 64];
    assert_eq!(subscription.try_receive(&mut into).unwrap(), Some(10));
    assert_eq!(into[0], 6);
    let after = subscription.stats();
    assert_eq!((after.messages_received, after.bytes_received), (1, 10));
    assert_eq!((after.lost, after.lag), (6, 0));
    assert!(subscription.arm().unwrap(), "no message is left");
    subscription.disarm();
    assert_eq!(subscription.stats().sleeps, 1);
    actor.proceed();
}

/// Starts a process that subscribes and never reads, and waits until the publisher counts it.
fn idle_subscriber(publisher: &Publisher) -> Actor {
    let actor = Actor::start("subscribes and never reads", &[&publisher.address().to_string()]);
    assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    // Its position is reserved before the event, and counts from a moment after it.
    actor.expect("subscribed");
    actor
}

#[test]
fn publisher_counts_waits() {
    let (address, _keep) = fresh_address(false);
    let mut publisher = publish(&address, &small().stall(Duration::MAX)).unwrap();
    let _actor = idle_subscriber(&publisher);
    while publisher.try_send(&[7; 200]).unwrap() {}
    let full = publisher.stats();
    assert_eq!((full.subscribers, full.evicted, full.waits), (1, 0, 0));
    // Records of 208 bytes, as many as fit.
    assert_eq!(full.ring_used, full.published * 208);
    assert!(full.ring_used > full.ring_capacity - 416, "{full:?}");
    let soon = Instant::now() + Duration::from_millis(20);
    assert!(matches!(
        publisher.send_until(&[7; 200], soon),
        Err(Error::TimedOut)
    ));
    let stats = publisher.stats();
    assert_eq!((stats.subscribers, stats.evicted, stats.waits), (1, 0, 1));
    assert!(stats.waited_micros > 0, "{stats:?}");
    assert_eq!(stats.published, full.published);
}

/// There is room before the publisher counts the subscriber as gone.
fn expect_eviction(publisher: &Publisher) {
    assert!(matches!(
        publisher.next().unwrap(),
        PublisherEvent::Gone(_, CloseReason::Evicted)
    ));
}

#[test]
fn publisher_counts_evictions() {
    let (address, _keep) = fresh_address(false);
    let mut publisher = publish(&address, &small().stall(Duration::from_millis(1))).unwrap();
    let _actor = idle_subscriber(&publisher);
    // Records of 208 bytes: one of the last two has no room, and waits for the eviction.
    let messages = publisher.stats().ring_capacity / 208 + 1;
    for _ in 0..messages {
        publisher.send(&[7; 200]).unwrap();
    }
    expect_eviction(&publisher);
    let stats = publisher.stats();
    assert_eq!((stats.subscribers, stats.evicted, stats.waits), (0, 1, 1));
    assert_eq!(stats.published, messages);

    let _actor = idle_subscriber(&publisher);
    while publisher.try_send(&[7; 200]).unwrap() {}
    expect_eviction(&publisher);
    let stats = publisher.stats();
    assert_eq!((stats.subscribers, stats.evicted, stats.waits), (0, 2, 1));
    assert_eq!(stats.ring_used, 0, "no reader is left");
}

/// Each of these fails after an eviction, and returns no message.
type Read = fn(&mut Subscription) -> ringfence::Result<()>;

const READS: [(&str, Read); 7] = [
    ("try_receive", |subscription| {
        subscription.try_receive(&mut [0; 4096]).map(drop)
    }),
    ("receive", |subscription| {
        subscription.receive(&mut [0; 4096]).map(drop)
    }),
    ("try_receive_vec", |subscription| {
        subscription.try_receive_vec().map(drop)
    }),
    ("receive_vec", |subscription| subscription.receive_vec().map(drop)),
    ("try_receive_packed", |subscription| {
        subscription.try_receive_packed(&mut [0; 8192]).map(drop)
    }),
    ("try_receive_more_packed", |subscription| {
        subscription.try_receive_more_packed(&mut [0; 8192]).map(drop)
    }),
    ("drain", |subscription| {
        subscription
            .receive_each(|_| panic!("no message is visited"), 100)
            .map(drop)
    }),
];

#[test]
fn messages_discarded_by_an_eviction_are_not_counted() {
    for (name, read) in READS {
        let (address, _keep) = fresh_address(false);
        let mut actor = Actor::start("evicts", &[&address.to_string()]);
        let mut subscription = subscribe(&address, &small().wait(true)).unwrap();
        actor.expect("three");
        for _ in 0..3 {
            assert_eq!(subscription.receive(&mut [0; 100]).unwrap(), Some(100));
        }
        actor.proceed();
        actor.expect("evicted");
        let found = read(&mut subscription);
        assert!(matches!(found, Err(Error::Evicted)), "{name}: {found:?}");
        let stats = subscription.stats();
        assert_eq!(
            (stats.messages_received, stats.bytes_received, stats.lost),
            (3, 300, 0),
            "{name}"
        );
        assert_eq!((subscription.sequence(), subscription.lost()), (3, 0), "{name}");
        assert_eq!(subscription.close_reason(), Some(CloseReason::Evicted), "{name}");
        actor.proceed();
        actor.finish();
    }
}

#[test]
fn failed_client_is_counted_by_its_error_code() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let _actor = Actor::start("joins", &[&address.to_string()]);
    match listener.accept().unwrap() {
        Arrival::Refused(refused) => assert!(matches!(refused.error, Error::Protocol(_))),
        other => panic!("{other:?}"),
    }
    let refused: Vec<_> = listener.stats().refused.into_iter().collect();
    assert_eq!(refused, [("PROTOCOL".to_owned(), 1)]);
}
