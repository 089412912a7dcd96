//! Reading from many sources as one: fairness, sources that end, waiting, and a merge in a forked child.

mod support;

use std::{
    collections::BTreeMap,
    fmt, fs, mem,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, alarm, fork, geteuid, pause},
};
use ringfence::{
    Address, AnySource, CloseReason, Error, Key, Listener, Merge, Merged, Message, PublisherEvent, Receiver,
    Sender, Subscription, connect, listen, publish, subscribe,
};
use support::{
    Actor, TIME_LIMIT, accepted, address_in, fresh_address, join_later, report, small, wait_for_host,
    wait_for_test, wire,
};

/// The most bytes of a ring that one turn may take, including the record that crosses the limit.
const TURN: usize = 16 * 1024 + 1024;
/// The size from which a reliable subscription exposes a message in the ring itself.
const IN_PLACE: usize = 512;
/// Bytes of the ring of a flood.
const FLOOD: u64 = 1 << 20;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = || address_in(&arguments);
    match role.as_str() {
        "flood" => as_flood(&arguments),
        "numbers" => as_numbers(&arguments),
        "many" => as_many(&arguments),
        "liar" => as_liar(&arguments),
        "echo" => as_echo(&arguments),
        "has a child" => as_parent(&arguments),
        "publisher" => as_publisher(&arguments),
        "overwrites" => as_overwrites(&arguments),
        "is exposed" => as_exposed(&arguments),
        "reader" => read_asleep(&address()),
        "reads what is wiped" => read_what_is_wiped(&arguments[0]),
        "counts barriers" => count_barriers(&address()),
        "forks" => fork_with_merge(&address()),
        "short" => exhaust_descriptors(&address()),
        other => unreachable!("{other}"),
    }
}

/// Fills its ring each time.
fn as_flood(arguments: &[String]) {
    let mut channel = connect(&address_in(arguments), &small().capacity(FLOOD)).unwrap();
    let message = vec![7; arguments[1].parse().unwrap()];
    loop {
        while channel.sender().try_send(&message).unwrap() {}
        report("full");
        wait_for_test();
    }
}

/// Sends one word each time.
fn as_numbers(arguments: &[String]) {
    let mut channel = connect(&address_in(arguments), &small()).unwrap();
    for number in 0_u32.. {
        wait_for_test();
        channel.sender().send(&number.to_le_bytes()).unwrap();
        report("sent number");
    }
}

/// Makes many channels, each with numbered messages and then its end.
fn as_many(arguments: &[String]) {
    let [count, each] = [1, 2].map(|index: usize| arguments[index].parse::<u32>().unwrap());
    let mut channels: Vec<_> = (0..count)
        .map(|_| connect(&address_in(arguments), &small()).unwrap())
        .collect();
    for (own, channel) in (0_u32..).zip(&mut channels) {
        for number in 0..each {
            channel.sender().send(&payload(own, number)).unwrap();
        }
    }
    report("sent");
    wait_for_test();
    for (own, mut channel) in channels.into_iter().enumerate() {
        match own % 2 {
            0 => channel.close(),
            _ => channel.sender().end(),
        }
    }
    report("ended");
    wait_for_test();
}

fn as_liar(arguments: &[String]) {
    let peer = wire::ManualGuest::guest(&arguments[0]);
    // A tail that no honest producer writes.
    peer.write(128, 12_345);
    peer.send_wakeup();
    report("violated");
    wait_for_test();
}

fn as_echo(arguments: &[String]) {
    let (mut sender, mut receiver) = connect(&address_in(arguments), &small()).unwrap().split();
    let mut room = [0; 4096];
    while let Some(length) = receiver.receive(&mut room).unwrap() {
        sender.send(&room[..length]).unwrap();
    }
    sender.end();
    wait_for_test();
}

/// Connects, and forks a child that holds the line as well and outlives this process.
fn as_parent(arguments: &[String]) {
    let _channel = connect(&address_in(arguments), &small()).unwrap();
    // SAFETY: the child does nothing but sleep.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => loop {
            pause();
        },
        ForkResult::Parent { child } => report(child.to_string()),
    }
    wait_for_test();
}

/// Publishes numbers to one subscriber: `count` of them, or until the subscriber is gone.
fn as_publisher(arguments: &[String]) {
    let [count, stall] = [1, 2].map(|index: usize| arguments[index].parse::<u64>().unwrap());
    let options = small().stall(Duration::from_millis(stall));
    let mut publisher = publish(&address_in(arguments), &options).unwrap();
    report("publishing");
    let subscriber = match publisher.next().unwrap() {
        PublisherEvent::Subscriber(subscriber) => subscriber,
        other => panic!("{other:?}"),
    };
    wait_for_test();
    for number in 0..count {
        if subscriber.gone().is_some() {
            break;
        }
        publisher.send(&number.to_le_bytes()).unwrap();
    }
    report("published");
    publisher.end();
    wait_for_test();
}

/// Publishes one long message, and overwrites it on command, once its subscriber is evicted.
fn as_overwrites(arguments: &[String]) {
    let options = small().stall(Duration::from_millis(1));
    let mut publisher = publish(&address_in(arguments), &options).unwrap();
    report("publishing");
    assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    publisher.send(&[1; IN_PLACE]).unwrap();
    report("published");
    wait_for_test();
    for number in 2..=50 {
        publisher.send(&[number; IN_PLACE]).unwrap();
    }
    report("overwritten");
    wait_for_test();
}

/// Sends one long message, and reports when its memory was opened and wiped.
fn as_exposed(arguments: &[String]) {
    let address = address_in(arguments);
    if arguments[1] == "channel" {
        let (mut sender, mut receiver) = connect(&address, &small()).unwrap().split();
        sender.send(&[1; IN_PLACE]).unwrap();
        report("sent");
        let ended = receiver.receive(&mut [0; 8]);
        assert!(matches!(ended, Err(Error::ObjectExposed(_))), "{ended:?}");
    } else {
        let mut publisher = publish(&address, &small()).unwrap();
        report("publishing");
        assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
        publisher.send(&[1; IN_PLACE]).unwrap();
        report("sent");
        while publisher.next().is_ok() {}
    }
    report("wiped");
    wait_for_test();
}

fn payload(own: u32, number: u32) -> Vec<u8> {
    [own.to_le_bytes(), number.to_le_bytes()].concat()
}

/// A service and its clients, in the order in which they connected.
struct Scene {
    listener: Listener,
    address: Address,
    senders: Vec<Sender>,
}

impl Scene {
    fn new() -> Self {
        let (address, _) = fresh_address(false);
        let listener = listen(&address, &small()).unwrap();
        Self {
            listener,
            address,
            senders: Vec::new(),
        }
    }

    fn start(&mut self, merge: &mut Merge, role: &str, arguments: &[&str]) -> (Actor, Key) {
        let address = self.address.to_string();
        let actor = Actor::start(role, &[&[&address[..]], arguments].concat());
        let key = merge.add(self.accept()).unwrap();
        (actor, key)
    }

    fn accept(&mut self) -> Receiver {
        let (sender, receiver) = accepted(&self.listener).split();
        self.senders.push(sender);
        receiver
    }
}

fn send_number(client: &mut Actor) {
    client.proceed();
    client.expect("sent number");
}

/// Returns the next message or end, which must arrive.
fn next(merge: &mut Merge, room: &mut [u8]) -> Merged {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(merged) = merge.try_receive(room).unwrap() {
            return merged;
        }
        assert!(merge.wait_readable(Some(end)).unwrap(), "nothing arrives");
    }
}

/// Returns the bytes of other sources that are delivered before the first message of this source.
fn bytes_before(merge: &mut Merge, wanted: Key, way: &str) -> usize {
    let mut bytes = 0;
    if way == "drain" {
        let mut before = None;
        let visit = |key, message: Message<'_>| {
            if key == wanted {
                before.get_or_insert(bytes);
            }
            bytes += message.len() + 8;
        };
        merge.receive_each(visit, 100_000).unwrap();
        return before.expect("the message was visited");
    }
    let mut room = [0; 2048];
    loop {
        match next(merge, &mut room) {
            Merged::Message { from, .. } if from == wanted => return bytes,
            Merged::Message { length, .. } => bytes += length + 8,
            other @ Merged::Ended { .. } => panic!("{other:?}"),
        }
    }
}

#[test]
fn flooding_source_gets_one_turn_at_a_time() {
    for (size, way) in [
        ("64", "receive"),
        ("1000", "receive"),
        ("64", "drain"),
        ("1000", "drain"),
    ] {
        let mut scene = Scene::new();
        let mut merge = Merge::new().unwrap();
        let (mut flood, flooding) = scene.start(&mut merge, "flood", &[size]);
        flood.expect("full");
        let (mut client, quiet) = scene.start(&mut merge, "numbers", &[]);
        send_number(&mut client);
        let before = bytes_before(&mut merge, quiet, way);
        assert!(before <= TURN, "{size} {way}: {before} bytes came before it");
        for _ in 0..3 {
            // It was found empty, and has messages again.
            flood.proceed();
            flood.expect("full");
            let Merged::Message { from, .. } = next(&mut merge, &mut [0; 2048]) else {
                panic!("an end");
            };
            assert_eq!(from, flooding);
            send_number(&mut client);
            let before = bytes_before(&mut merge, quiet, way);
            assert!(before <= 2 * TURN, "{size} {way}: {before} bytes came before it");
        }
    }
}

#[test]
fn turn_is_limited_in_time() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (flood, _) = scene.start(&mut merge, "flood", &["64"]);
    flood.expect("full");
    let (mut client, quiet) = scene.start(&mut merge, "numbers", &[]);
    let mut room = [0; 64];
    // It has been found empty.
    for _ in 0..1000 {
        next(&mut merge, &mut room);
    }
    send_number(&mut client);
    let mut count = 0;
    while !matches!(next(&mut merge, &mut room), Merged::Message { from, .. } if from == quiet) {
        let end = Instant::now() + Duration::from_millis(1);
        while Instant::now() < end {}
        count += 1;
    }
    // If turns were limited by bytes, it would be about 200.
    assert!(
        count <= 64,
        "{count} messages of a millisecond each came before it"
    );
}

#[test]
fn each_source_keeps_its_order_and_ends_last() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let mut actors: Vec<_> = (0..5)
        .map(|_| Actor::start("many", &[&scene.address.to_string(), "20", "30"]))
        .collect();
    let mut pids = BTreeMap::new();
    for _ in 0..100 {
        let receiver = scene.accept();
        let pid = receiver.peer().pid;
        pids.insert(merge.add(receiver).unwrap(), pid);
    }
    for actor in &actors {
        actor.expect("sent");
    }
    assert_eq!(merge.len(), 100);
    // Two are killed while all of their messages are unread. The others close, or only end their sending.
    for actor in &mut actors[..2] {
        actor.kill();
    }
    for actor in &mut actors[2..] {
        actor.proceed();
        actor.expect("ended");
    }
    let killed: Vec<_> = actors[..2].iter().map(Actor::pid).collect();
    let mut read: BTreeMap<Key, (u32, u32)> = BTreeMap::new();
    let mut room = [0; 64];
    let mut ends = 0;
    while ends < 100 {
        match next(&mut merge, &mut room) {
            Merged::Message { from, length } => {
                let own = u32::from_le_bytes(room[..4].try_into().unwrap());
                let (wanted, number) = read.entry(from).or_insert((own, 0));
                assert_eq!(room[..length], payload(*wanted, *number));
                *number += 1;
            }
            Merged::Ended { from, reason } => {
                assert_eq!(read[&from].1, 30, "it leaves after its last message");
                let was_killed = killed.contains(&pids[&from]);
                let wanted = if was_killed {
                    CloseReason::Lost
                } else {
                    CloseReason::Closed
                };
                assert_eq!(reason, wanted);
                assert!(merge.source(from).is_none() && merge.remove(from).is_none());
                ends += 1;
            }
        }
    }
    assert!(merge.is_ended() && merge.is_empty());
    assert_eq!(merge.receive(&mut room).unwrap(), None);
}

#[test]
fn corrupt_source_is_removed_without_affecting_others() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (address, _) = fresh_address(false);
    let joining = join_later(&address, &small());
    wait_for_host(&address);
    let liar = Actor::start("liar", &[&address.to_string()]);
    let (_sender, receiver) = joining.join().unwrap().unwrap().split();
    let corrupt = merge.add(receiver).unwrap();
    let (mut client, honest) = scene.start(&mut merge, "numbers", &[]);
    liar.expect("violated");
    let mut room = [0; 64];
    let reason = CloseReason::Corrupt;
    assert_eq!(
        next(&mut merge, &mut room),
        Merged::Ended {
            from: corrupt,
            reason
        }
    );
    send_number(&mut client);
    let wanted = Merged::Message {
        from: honest,
        length: 4,
    };
    assert_eq!(next(&mut merge, &mut room), wanted);
}

#[test]
fn removed_source_stays_open_and_its_key_is_not_reused() {
    let mut scene = Scene::new();
    let mut merge: Merge = Merge::new().unwrap();
    assert!(!merge.is_ended(), "it never had one");
    assert!(matches!(
        merge.wait_readable(Some(Instant::now())),
        Err(Error::TimedOut)
    ));
    let (mut first, key) = scene.start(&mut merge, "numbers", &[]);
    for _ in 0..3 {
        send_number(&mut first);
    }
    let mut room = [0; 64];
    assert_eq!(
        next(&mut merge, &mut room),
        Merged::Message { from: key, length: 4 }
    );
    let mut receiver = merge.remove(key).unwrap();
    assert!(merge.is_ended());
    assert!(!merge.wait_readable(None).unwrap());
    assert_eq!(merge.receive(&mut room).unwrap(), None);
    assert_eq!(receiver.receive(&mut room).unwrap(), Some(4));
    assert_eq!(room[..4], 1_u32.to_le_bytes());
    // The receiver's own calls are woken again.
    let reading = thread::spawn(move || {
        receiver.receive(&mut [0; 64]).unwrap();
        receiver.receive(&mut [0; 64]).unwrap();
        receiver
    });
    send_number(&mut first);
    let receiver = reading.join().unwrap();

    let (mut second, other) = scene.start(&mut merge, "numbers", &[]);
    assert_ne!(key, other);
    assert!(merge.source(key).is_none() && merge.remove(key).is_none());
    let again = merge.add(receiver).unwrap();
    send_number(&mut first);
    send_number(&mut second);
    let mut found: Vec<_> = (0..2).map(|_| next(&mut merge, &mut room)).collect();
    found.sort_by_key(|merged| matches!(merged, Merged::Message { from, .. } if *from == again));
    assert_eq!(
        found,
        [other, again].map(|from| Merged::Message { from, length: 4 })
    );
}

#[test]
fn message_larger_than_the_buffer_is_kept() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (flood, key) = scene.start(&mut merge, "flood", &["1000"]);
    flood.expect("full");
    let (mut client, _) = scene.start(&mut merge, "numbers", &[]);
    send_number(&mut client);
    for _ in 0..3 {
        let error = merge.try_receive(&mut [0; 10]).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        assert_eq!(merge.next_size().unwrap(), Some((key, 1000)));
    }
    let wanted = Merged::Message {
        from: key,
        length: 1000,
    };
    assert_eq!(merge.try_receive(&mut [0; 1000]).unwrap(), Some(wanted));
}

#[test]
fn merge_descriptor_signals_messages_and_ends() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (mut client, key) = scene.start(&mut merge, "numbers", &[]);
    let is_readable = |merge: &Merge, timeout| {
        let mut polled = [PollFd::new(merge.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, timeout).unwrap() == 1
    };
    assert!(merge.arm().unwrap());
    assert!(!is_readable(&merge, PollTimeout::ZERO));
    send_number(&mut client);
    assert!(is_readable(&merge, PollTimeout::MAX));
    merge.poll().unwrap();
    let mut visited = Vec::new();
    assert_eq!(
        merge
            .receive_each(|from, message| visited.push((from, message.len())), 10)
            .unwrap(),
        1
    );
    assert_eq!(visited, [(key, 4)]);
    assert!(merge.arm().unwrap());
    assert!(!is_readable(&merge, PollTimeout::ZERO));
    client.kill();
    assert!(is_readable(&merge, PollTimeout::MAX));
    merge.poll().unwrap();
    assert!(!merge.arm().unwrap());
    assert_eq!(merge.receive_each(|_, _| (), 10).unwrap(), 0);
    assert_eq!(merge.next_end(), Some((key, CloseReason::Lost)));
    assert!(merge.is_ended() && !is_readable(&merge, PollTimeout::ZERO));
}

/// The line does not end with the process, so only its pidfd reports the exit.
#[test]
fn exited_source_ends_even_if_its_child_holds_the_line() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (mut client, other) = scene.start(&mut merge, "numbers", &[]);
    let (mut parent, key) = scene.start(&mut merge, "has a child", &[]);
    let child = Pid::from_raw(parent.next_line().parse().unwrap());
    let waits = |merge: &mut Merge| {
        assert!(merge.arm().unwrap());
        let mut polled = [PollFd::new(merge.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::MAX), Ok(1));
        merge.poll().unwrap();
    };
    parent.kill();
    waits(&mut merge);
    let merged = merge.try_receive(&mut [0; 8]).unwrap();
    // Nothing else ends the child, whatever was reported.
    kill(child, Signal::SIGKILL).unwrap();
    let (from, reason) = (key, CloseReason::Lost);
    assert_eq!(merged, Some(Merged::Ended { from, reason }));
    // The other source wakes the merge, and is read as before.
    send_number(&mut client);
    waits(&mut merge);
    let (from, length) = (other, 4);
    assert_eq!(
        merge.try_receive(&mut [0; 8]).unwrap(),
        Some(Merged::Message { from, length })
    );
    assert!(merge.arm().unwrap(), "no event is left");
    let mut polled = [PollFd::new(merge.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, PollTimeout::ZERO), Ok(0));
}

#[test]
fn polling_alone_detects_an_end() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (mut client, key) = scene.start(&mut merge, "numbers", &[]);
    send_number(&mut client);
    client.kill();
    let end = Instant::now() + TIME_LIMIT;
    let mut found = Vec::new();
    while !merge.is_ended() {
        found.extend(merge.try_receive(&mut [0; 64]).unwrap());
        assert!(Instant::now() < end, "the end is not detected");
    }
    let reason = CloseReason::Lost;
    assert_eq!(
        found,
        [
            Merged::Message { from: key, length: 4 },
            Merged::Ended { from: key, reason }
        ]
    );
}

#[test]
fn closing_a_source_on_another_thread_ends_only_it() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (_first, closed) = scene.start(&mut merge, "numbers", &[]);
    let (_second, _) = scene.start(&mut merge, "numbers", &[]);
    let mut sender = scene.senders.remove(0);
    let closing = thread::spawn(move || sender.close());
    let merged = next(&mut merge, &mut [0; 64]);
    let reason = CloseReason::Closed;
    assert_eq!(merged, Merged::Ended { from: closed, reason });
    assert_eq!(merge.len(), 1);
    closing.join().unwrap();
}

#[test]
fn sender_can_wait_for_room_while_merge_reads() {
    let mut scene = Scene::new();
    let mut merge = Merge::new().unwrap();
    let (mut echo, key) = scene.start(&mut merge, "echo", &[]);
    let mut sender = scene.senders.remove(0);
    let count = 2000_u32;
    let sending = thread::spawn(move || {
        for number in 0..count {
            // More than the ring holds: this sometimes waits for room, while the merge waits for answers.
            let message = number.to_le_bytes().repeat(100);
            sender.send(&message).unwrap();
        }
        sender.end();
    });
    let mut room = [0; 4096];
    for number in 0..count {
        let wanted = Merged::Message {
            from: key,
            length: 400,
        };
        assert_eq!(next(&mut merge, &mut room), wanted);
        assert_eq!(room[..4], number.to_le_bytes());
    }
    sending.join().unwrap();
    let reason = CloseReason::Closed;
    assert_eq!(next(&mut merge, &mut room), Merged::Ended { from: key, reason });
    echo.proceed();
    echo.finish();
}

/// Returns a subscription to its own publisher.
fn subscribed(count: &str, stall: &str) -> (Actor, Subscription) {
    let (address, _) = fresh_address(false);
    let publisher = Actor::start("publisher", &[&address.to_string(), count, stall]);
    publisher.expect("publishing");
    let subscription = subscribe(&address, &small()).unwrap();
    (publisher, subscription)
}

#[test]
fn subscriptions_and_channels_can_be_merged() {
    let mut merge: Merge<AnySource> = Merge::new().unwrap();
    let (address, _) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let mut client = Actor::start("numbers", &[&address.to_string()]);
    let (_sender, receiver) = accepted(&listener).split();
    let from_channel = merge.add(receiver.into()).unwrap();
    let (mut publisher, subscription) = subscribed("3000", "60000");
    let from_publisher = merge.add(subscription.into()).unwrap();
    let (mut stalled, subscription) = subscribed("1000000", "1");
    // It is not read, since it was not added.
    stalled.proceed();
    stalled.expect("published");
    let evicted = merge.add(subscription.into()).unwrap();

    let end = Instant::now() + TIME_LIMIT;
    let mut room = [0; 64];
    let mut next = |merge: &mut Merge<AnySource>, way: u64| loop {
        let mut visited = None;
        if way.is_multiple_of(2) {
            let visit = |key, message: Message<'_>| visited = Some((key, message.to_vec()));
            if merge.receive_each(visit, 1).unwrap() == 1 {
                let (key, message) = visited.expect("it was visited");
                return (key, Ok(message));
            }
        }
        match merge.try_receive(&mut room).unwrap() {
            Some(Merged::Message { from, length }) => return (from, Ok(room[..length].to_vec())),
            Some(Merged::Ended { from, reason }) => return (from, Err(reason)),
            None => assert!(merge.wait_readable(Some(end)).unwrap(), "nothing arrives"),
        }
    };
    // Nothing was received before, and a ring that is overwritten is not read.
    assert_eq!(next(&mut merge, 1), (evicted, Err(CloseReason::Evicted)));
    publisher.proceed();
    for number in 0..3000_u64 {
        if number % 1000 == 500 {
            send_number(&mut client);
        }
        let mut found = next(&mut merge, number);
        if found.0 == from_channel {
            assert!(found.1.is_ok());
            found = next(&mut merge, number);
        }
        assert_eq!(found, (from_publisher, Ok(number.to_le_bytes().to_vec())));
    }
    let mut last = next(&mut merge, 1);
    while last.0 == from_channel {
        last = next(&mut merge, 1);
    }
    assert_eq!(last, (from_publisher, Err(CloseReason::Closed)));
    assert_eq!(merge.len(), 1);
}

/// Returns what the merge drains while `disturb` runs in the first visit, with the bytes that the visitor saw
/// after that.
fn drain_disturbed<S: ringfence::Source>(
    merge: &mut Merge<S>,
    mut disturb: impl FnMut(),
) -> (ringfence::Result<usize>, Vec<u8>) {
    let mut seen = Vec::new();
    let visit = |_, message: Message<'_>| {
        disturb();
        seen = message.to_vec();
    };
    (merge.receive_each(visit, 100), seen)
}

/// Returns a subscription with one message, and the publisher that overwrites the message on command.
fn to_be_overwritten() -> (Actor, Subscription) {
    let (address, _) = fresh_address(false);
    let publisher = Actor::start("overwrites", &[&address.to_string()]);
    publisher.expect("publishing");
    let subscription = subscribe(&address, &small()).unwrap();
    publisher.expect("published");
    (publisher, subscription)
}

/// Overwrites the message that a merge of this source visits.
fn is_overwritten<S: ringfence::Source + fmt::Debug>(mut publisher: Actor, source: S) {
    let mut merge = Merge::new().unwrap();
    let from = merge.add(source).unwrap();
    let (drained, seen) = drain_disturbed(&mut merge, || {
        publisher.proceed();
        publisher.expect("overwritten");
    });
    assert!(seen[0] > 1, "the first message is overwritten");
    assert!(matches!(drained, Err(Error::Evicted)), "{drained:?}");
    assert_eq!(merge.stats().messages_received, 0);
    assert_eq!(merge.next_end(), Some((from, CloseReason::Evicted)));
    assert_eq!(
        merge.receive_each(|_, _| panic!("nothing is left"), 100).unwrap(),
        0
    );
    publisher.proceed();
    publisher.finish();
}

#[test]
fn message_overwritten_during_visit_is_an_error() {
    let (publisher, subscription) = to_be_overwritten();
    is_overwritten(publisher, subscription);
    let (publisher, subscription) = to_be_overwritten();
    is_overwritten(publisher, AnySource::from(subscription));
}

/// Opens the ring of the peer, which this process has mapped to read.
fn open_peers_ring() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ring = maps
        .lines()
        .find(|line| {
            line.contains(" r--s ") && line.contains("/memfd:ringfence") && !line.contains("control")
        })
        .expect("the peer's ring");
    let path = format!("/proc/self/map_files/{}", ring.split(' ').next().unwrap());
    let opened = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty());
    assert_eq!(opened.unwrap_err(), Errno::EWOULDBLOCK);
}

#[test]
fn message_wiped_during_visit_is_an_error() {
    if !geteuid().is_root() {
        eprintln!("skipped: it takes root to open what a process has mapped");
        return;
    }
    // In a separate process: the memory of other tests must stay closed.
    for kind in ["channel", "subscription"] {
        let reader = Actor::start("reads what is wiped", &[kind]);
        reader.expect("OBJECT_EXPOSED, 0 received, exposed");
        reader.finish();
    }
}

/// In another process: wipes the message during its visit, and reports the result of the merge.
fn read_what_is_wiped(kind: &str) {
    let (address, _) = fresh_address(false);
    let mut merge: Merge<AnySource> = Merge::new().unwrap();
    let (peer, from, _sender);
    if kind == "channel" {
        let listener = listen(&address, &small()).unwrap();
        peer = Actor::start("is exposed", &[&address.to_string(), kind]);
        let (sender, receiver) = accepted(&listener).split();
        from = merge.add(receiver.into()).unwrap();
        _sender = Some(sender);
    } else {
        peer = Actor::start("is exposed", &[&address.to_string(), kind]);
        peer.expect("publishing");
        let subscription = subscribe(&address, &small()).unwrap();
        from = merge.add(subscription.into()).unwrap();
        _sender = None;
    }
    peer.expect("sent");
    let (drained, seen) = drain_disturbed(&mut merge, || {
        open_peers_ring();
        peer.expect("wiped");
    });
    assert_eq!(seen, [0; IN_PLACE]);
    let code = drained.map_or_else(
        |error| error.code().to_owned(),
        |count| format!("{count} visited"),
    );
    let (key, reason) = merge.next_end().unwrap();
    assert_eq!(key, from);
    report(format!(
        "{code}, {} received, {reason}",
        merge.stats().messages_received
    ));
}

/// In another process: reads asleep, and reports what arrives.
fn read_asleep(address: &Address) {
    let listener = listen(address, &small()).unwrap();
    let mut merge = Merge::new().unwrap();
    let mut senders = Vec::new();
    for _ in 0..20 {
        let (sender, receiver) = accepted(&listener).split();
        senders.push(sender);
        merge.add(receiver).unwrap();
    }
    // SAFETY: gettid takes nothing and touches no memory.
    report(format!("{}", unsafe { libc::syscall(libc::SYS_gettid) }));
    let mut room = [0; 64];
    let mut count = 0;
    while let Some(merged) = merge.receive(&mut room).unwrap() {
        if let Merged::Message { .. } = merged {
            count += 1;
            report(format!("message {count}"));
        }
    }
    report("over");
}

#[test]
fn waiting_merge_has_no_spurious_wakeups() {
    let (address, _) = fresh_address(false);
    let reader = Actor::start("reader", &[&address.to_string()]);
    wait_for_host(&address);
    let mut agents: Vec<_> = (0..20).map(|_| connect(&address, &small()).unwrap()).collect();
    let thread = reader.next_line();
    let status = format!("/proc/{}/task/{thread}/status", reader.pid());
    let slept = || {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary")).unwrap();
        (
            line.rsplit_once('\t').unwrap().1.parse::<u64>().unwrap(),
            status.contains("State:\tS"),
        )
    };
    let settled = || {
        let end = Instant::now() + TIME_LIMIT;
        loop {
            let before = slept();
            thread::sleep(Duration::from_millis(20));
            if before.1 && before == slept() {
                return before.0;
            }
            assert!(Instant::now() < end, "it does not sleep");
        }
    };
    let before = settled();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(slept().0, before, "idle: no wake-up");
    for (number, agent) in (1..).zip(&mut agents) {
        agent.sender().send(b"now").unwrap();
        reader.expect(&format!("message {number}"));
    }
    drop(agents);
    reader.expect("over");
}

/// In another process: counts the barriers needed to park 20 sources.
fn count_barriers(address: &Address) {
    let listener = listen(address, &small()).unwrap();
    let mut merge = Merge::new().unwrap();
    let mut senders = Vec::new();
    report("listening");
    for _ in 0..20 {
        let (sender, receiver) = accepted(&listener).split();
        senders.push(sender);
        merge.add(receiver).unwrap();
    }
    support::count_barriers();
    assert!(merge.arm().unwrap());
    report(support::barriers().to_string());
    // Parked sources are not parked again.
    assert!(merge.arm().unwrap());
    report(support::barriers().to_string());
    // A channel alone, to check that its barriers are counted.
    let (mut sender, mut receiver) = accepted(&listener).split();
    assert!(receiver.arm().unwrap());
    report(support::barriers().to_string());
    // The last client checks this process once more.
    wait_for_test();
    sender.close();
}

#[test]
fn parking_20_sources_costs_one_barrier() {
    if !support::has_barriers() {
        eprintln!("skipped: this system has no barriers");
        return;
    }
    let (address, _) = fresh_address(false);
    let reader = Actor::start("counts barriers", &[&address.to_string()]);
    reader.expect("listening");
    // A publisher is made once this process is registered. Until then its channels need no barriers: they make fences.
    let (registered, _) = fresh_address(false);
    drop(publish(&registered, &small()).unwrap());
    let agents: Vec<_> = (0..21).map(|_| connect(&address, &small()).unwrap()).collect();
    let counts = [(); 3].map(|()| reader.next_line());
    drop(agents);
    reader.finish();
    assert_eq!(counts, ["1", "1", "2"]);
}

/// Makes every call of a merge, in a child.
fn use_inherited(mut merge: Merge, key: Key) {
    let is_closed = |error: Option<Error>| assert!(matches!(error, Some(Error::Closed(_))));
    is_closed(merge.try_receive(&mut [0; 64]).err());
    is_closed(merge.next_size().err());
    is_closed(merge.receive_each(|_, _| (), 1).err());
    is_closed(merge.arm().err());
    is_closed(merge.wait_readable(None).err());
    is_closed(merge.poll().err());
    assert!(merge.remove(key).is_none());
}

/// In another process: forks a child that uses the merge, which continues to work here.
fn fork_with_merge(address: &Address) {
    let listener = listen(address, &small()).unwrap();
    let mut merge: Merge = Merge::new().unwrap();
    let mut senders = Vec::new();
    let mut keys = Vec::new();
    report("listening");
    for _ in 0..2 {
        let (sender, receiver) = accepted(&listener).split();
        senders.push(sender);
        keys.push(merge.add(receiver).unwrap());
    }
    assert!(merge.arm().unwrap());
    // SAFETY: the child is the subject of this test, and the C library's own locks are consistent in it.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // A child that hangs has failed.
            alarm::set(60);
            let used = catch_unwind(AssertUnwindSafe(|| use_inherited(merge, keys[0])));
            mem::forget((listener, senders));
            // SAFETY: only ends the process.
            unsafe { libc::_exit(i32::from(used.is_err())) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    report("the child is gone");
    let mut room = [0; 64];
    for _ in 0..2 {
        assert!(matches!(next(&mut merge, &mut room), Merged::Message { .. }));
    }
    report("both arrived");
}

#[test]
fn forked_child_does_not_affect_the_parents_merge() {
    let (address, _) = fresh_address(false);
    let reader = Actor::start("forks", &[&address.to_string()]);
    reader.expect("listening");
    let mut agents: Vec<_> = (0..2).map(|_| connect(&address, &small()).unwrap()).collect();
    reader.expect("the child is gone");
    for agent in &mut agents {
        agent.sender().send(b"here").unwrap();
    }
    reader.expect("both arrived");
    reader.finish();
}

/// In another process: exhausts the descriptors.
fn exhaust_descriptors(address: &Address) {
    let channel = connect(address, &small()).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let error = Merge::<Receiver>::new().unwrap_err();
    assert_eq!(error.code(), "NO_SPACE", "{error}");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let (mut sender, receiver) = channel.split();
    let mut merge = Merge::new().unwrap();
    merge.add(receiver).unwrap();
    sender.send(b"still open").unwrap();
    assert!(matches!(
        merge.receive(&mut [0; 64]).unwrap(),
        Some(Merged::Message { length: 2, .. })
    ));
}

#[test]
fn merge_without_descriptors_is_no_space() {
    let (address, _) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let short = Actor::start("short", &[&address.to_string()]);
    let mut channel = accepted(&listener);
    assert_eq!(channel.receiver().receive(&mut [0; 64]).unwrap(), Some(10));
    channel.sender().send(b"ok").unwrap();
    short.finish();
}
