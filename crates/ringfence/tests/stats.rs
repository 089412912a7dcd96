//! What can be seen of a channel, a service, a publisher and a merge: exact, and the last figures stay.

mod support;

use ringfence::{
    Address, Arrival, Channel, ChannelStats, Error, Listener, Merge, Policy, PublisherEvent, connect, join,
    listen, publish, subscribe,
};
use support::{Actor, fresh_address, say, small, wait_for_test};

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
            say("joined");
            wait_for_test();
            let mut into = vec![0; 1 << 16];
            while channel.receiver().receive(&mut into).unwrap().is_some() {}
            let stats = channel.stats();
            say(format!("{} {}", stats.messages_received, stats.bytes_received));
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
            say("subscribed");
            let mut into = vec![0; 1 << 16];
            while subscription.receive(&mut into).unwrap().is_some() {}
            let stats = subscription.stats();
            say(format!("{} {}", stats.messages_received, stats.bytes_received));
            wait_for_test();
        }
        other => panic!("no role {other}"),
    }
}

fn told(stats: &ChannelStats) -> [u64; 4] {
    [
        stats.messages_sent,
        stats.bytes_sent,
        stats.messages_received,
        stats.bytes_received,
    ]
}

#[test]
fn each_way_to_send_counts_once_it_is_in_the_ring() {
    let (address, _kept) = fresh_address(false);
    let mut actor = Actor::start("reads all", &[&address.to_string()]);
    let mut channel = join(&address, &small()).unwrap();
    assert_eq!(actor.hear(), "joined");
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
    assert_eq!(told(&before), [6, 143, 0, 0]);
    assert_eq!((before.waits, before.ring_capacity), (0, 4096));
    assert!(before.ring_used >= 143, "{before:?}");
    // More than the ring: in fragments, which wait for room.
    actor.go_on();
    channel.sender().send(&vec![6; 50_000]).unwrap();
    let after = channel.stats();
    assert_eq!(told(&after), [7, 50_143, 0, 0]);
    assert!(after.waits == 1 && after.waited_micros > 0, "{after:?}");
    channel.sender().end();
    assert_eq!(actor.hear(), "7 50143");
    let last = channel.stats();
    assert_eq!(told(&last), [7, 50_143, 0, 0]);
    channel.sender().close();
    assert_eq!(told(&channel.stats()), [7, 50_143, 0, 0], "the last figures stay");
}

fn next_of(listener: &Listener) -> Channel {
    match listener.accept().unwrap() {
        Arrival::Accepted(channel) => channel,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_sums_up_its_channels_also_those_that_are_over() {
    let (address, _kept) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let actors: Vec<_> = (0..2)
        .map(|_| Actor::start("sends three", &[&address.to_string()]))
        .collect();
    let mut merge = Merge::new().unwrap();
    let mut channels = Vec::new();
    for _ in &actors {
        let (sender, receiver) = next_of(&listener).split();
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
    // The reader tells what it has counted when it sleeps, or is asked.
    assert_eq!(told(&listener.stats().channels), [0, 0, 6, 26]);
    assert_eq!((listener.stats().open, listener.stats().accepted), (2, 2));
    drop(merge);
    drop(channels);
    let stats = listener.stats();
    assert_eq!((stats.open, stats.accepted), (0, 2));
    assert_eq!(told(&stats.channels), [0, 0, 6, 26]);
    assert_eq!(stats.channels.ring_capacity, 0, "of those that are open");
}

#[test]
fn a_refusal_is_counted_by_its_check() {
    let (address, _kept) = fresh_address(false);
    let policy = Policy::default().authorize(|_| Ok::<_, Error>(false));
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
fn a_publisher_and_its_subscriber_count_each_on_its_side() {
    let (address, _kept) = fresh_address(false);
    let mut publisher = publish(&address, &small()).unwrap();
    let actor = Actor::start("subscribes", &[&address.to_string()]);
    assert_eq!(actor.hear(), "subscribed");
    assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    for _ in 0..100 {
        publisher.send(&[7; 100]).unwrap();
    }
    let stats = publisher.stats();
    assert_eq!((stats.published, stats.bytes_published), (100, 10_000));
    assert_eq!((stats.subscribers, stats.evicted), (1, 0));
    assert!(stats.ring_used <= stats.ring_capacity, "{stats:?}");
    publisher.end();
    assert_eq!(actor.hear(), "100 10000");
    let last = publisher.stats();
    assert_eq!((last.published, last.bytes_published), (100, 10_000));
}
