//! Attachments of published messages, with real processes.

mod support;

use std::{
    io::Read as _,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::resource::{Resource, setrlimit},
};
use ringfence::{
    Address, AnySource, Attachment, Attachments, CloseReason, Delivery, Error, Merge, Merged, Message,
    Options, Policy, Publisher, PublisherEvent, SealedBuffer, publish, subscribe,
};
use support::{Actor, TIME_LIMIT, forbid, fresh_address, message, report, wait_for_test, wire};

const COUNT: usize = 60;

fn options() -> Options {
    Options::new().capacity(64 << 10).handshake_timeout(TIME_LIMIT)
}

fn accepting() -> Options {
    options().attachments(
        Attachments::none()
            .sealed(true)
            .descriptors(true)
            .max_count(3)
            .max_bytes(100_000),
    )
}

fn buffer(number: usize) -> SealedBuffer {
    SealedBuffer::from_bytes(&message(number, 30_000)).unwrap()
}

/// The attachments are one buffer of the message with this number.
fn check(attachments: &[Attachment], number: usize) {
    let [Attachment::Sealed(buffer)] = attachments else {
        panic!("{number}: {attachments:?}");
    };
    assert_eq!(**buffer, *message(number, 30_000));
}

/// Claims to read each message, and leaves the attachments on the line, until it is killed.
fn as_hoarder(address: &str) -> ! {
    let mut subscriber = wire::ManualSubscriber::accepting(address, 1, 1, 1);
    assert!(subscriber.ready());
    report("ready");
    // SAFETY: another process writes there concurrently. The data is read as bytes, and never relied on.
    let ring = unsafe { memmap2::Mmap::map(&subscriber.ring) }.unwrap();
    loop {
        let tail = u64::from_le_bytes(ring[128..136].try_into().unwrap());
        subscriber.store_head(tail);
        thread::yield_now();
    }
}

/// Each message has an attachment, except one that says otherwise.
fn as_checker(address: &Address) {
    let attachments = Attachments::none().descriptors(true).max_count(1024);
    let mut subscription = subscribe(address, &options().attachments(attachments)).unwrap();
    while let Some(found) = subscription.receive_vec().unwrap() {
        let expected = usize::from(found != b"alone");
        assert_eq!(subscription.attachments().len(), expected, "{found:?}");
    }
}

/// Publishes more descriptors than may be in flight.
fn as_filler(address: &Address) {
    setrlimit(Resource::RLIMIT_NOFILE, 128, 128).unwrap();
    let mut publisher = publish(address, &options()).unwrap();
    wait_for_subscribers(&publisher, 1);
    let (_, pipe) = std::io::pipe().unwrap();
    for _ in 0..30 {
        publisher.send_with(b"x", &[pipe.as_fd().into(); 10]).unwrap();
    }
    assert_eq!(publisher.stats().attachments_sent, 60);
    publisher.end();
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "reads" => {
            let mut subscription = subscribe(&address, &accepting()).unwrap();
            let mut received = 0;
            for number in 0..COUNT {
                let found = subscription.receive_vec().unwrap().expect("a message");
                assert_eq!(found, message(number, 20));
                let attachments = subscription.attachments();
                if number % 2 == 0 {
                    assert!(attachments.is_empty());
                } else {
                    check(&attachments, number);
                    received += 1;
                }
            }
            assert_eq!(subscription.receive_vec().unwrap(), None);
            assert_eq!(subscription.stats().attachments_received, received);
        }
        "visits" => {
            let mut subscription = subscribe(&address, &accepting()).unwrap();
            let mut number = 0;
            while subscription.wait_readable(None).unwrap() {
                let mut last = number;
                let visit = |found: Message<'_>| {
                    assert_eq!(found.to_vec(), message(last, 20));
                    last += 1;
                };
                let visited = subscription.receive_each(visit, 100).unwrap();
                if visited == 0 {
                    continue;
                }
                number += visited;
                let attachments = subscription.attachments();
                if number % 2 == 0 {
                    check(&attachments, number - 1);
                } else {
                    assert!(attachments.is_empty());
                }
            }
            assert_eq!(number, COUNT);
        }
        "ignores" => {
            let mut subscription = subscribe(&address, &options()).unwrap();
            let mut into = [0; 4096];
            for number in 0..COUNT {
                let length = subscription.receive(&mut into).unwrap().expect("a message");
                assert_eq!(into[..length], message(number, 20));
                assert!(subscription.attachments().is_empty());
            }
        }
        "sleeps" => {
            let options = accepting().delivery(arguments[1].parse().unwrap());
            let mut subscription = subscribe(&address, &options).unwrap();
            report("subscribed");
            wait_for_test();
            while let Some(found) = subscription.receive_vec().unwrap() {
                let number = (0..COUNT * 100).find(|number| found == message(*number, 2000));
                let attachments = subscription.attachments();
                if !attachments.is_empty() {
                    check(&attachments, number.expect("a whole message"));
                    report("got one");
                }
            }
        }
        "publishes" => {
            let mut publisher = publish(&address, &options()).unwrap();
            wait_for_subscribers(&publisher, 1);
            publisher.send_with(b"x", &[(&buffer(7)).into()]).unwrap();
            publisher.end();
        }
        "reads one" => {
            let mut subscription = subscribe(&address, &accepting()).unwrap();
            wait_for_test();
            // The publisher should wait already.
            std::thread::sleep(Duration::from_millis(100));
            subscription.receive_vec().unwrap().expect("a message");
            wait_for_test();
        }
        "reads none" => {
            let _subscription = subscribe(&address, &options()).unwrap();
            wait_for_test();
        }
        "holds" => {
            let options = accepting().delivery(arguments[1].parse().unwrap());
            let subscription = subscribe(&address, &options).unwrap();
            wait_for_test();
            drop(subscription);
        }
        "hoards" => as_hoarder(&arguments[0]),
        "checks" => as_checker(&address),
        "fills" => as_filler(&address),
        other => panic!("{other}"),
    }
}

fn start(role: &str, address: &Address, more: &[&str]) -> Actor {
    let address = address.to_string();
    Actor::start(role, &[&[address.as_str()], more].concat())
}

fn wait_for_subscribers(publisher: &Publisher, count: usize) {
    for _ in 0..count {
        assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    }
}

fn next_gone(publisher: &Publisher) -> CloseReason {
    loop {
        if let PublisherEvent::Gone(_, reason) = publisher.next().unwrap() {
            return reason;
        }
    }
}

#[test]
fn each_subscriber_gets_the_attachments_that_it_accepts() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let actors = ["reads", "visits", "ignores"].map(|role| start(role, &address, &[]));
    wait_for_subscribers(&publisher, 3);
    for number in 0..COUNT {
        let (bytes, buffer) = (message(number, 20), buffer(number));
        if number % 2 == 0 {
            publisher.send(&bytes).unwrap();
        } else {
            publisher.send_with(&bytes, &[(&buffer).into()]).unwrap();
        }
    }
    let stats = publisher.stats();
    assert_eq!(stats.attachments_sent, COUNT as u64);
    assert_eq!(stats.attachments_withheld, COUNT as u64 / 2);
    publisher.end();
    actors.into_iter().for_each(Actor::finish);
}

#[test]
fn reliable_subscriber_at_its_limit_blocks_the_publisher() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::from_millis(200))).unwrap();
    let holds = start("holds", &address, &["reliable"]);
    wait_for_subscribers(&publisher, 1);
    let (mut reader, pipe) = std::io::pipe().unwrap();
    for _ in 0..3 {
        publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    // The stall begins with this call.
    let found = publisher
        .sender()
        .send_with_until(b"x", &[pipe.as_fd().into()], Instant::now());
    assert!(matches!(found, Err(Error::TimedOut)), "{found:?}");
    publisher.send(b"a message without attachments").unwrap();
    publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    assert_eq!(next_gone(&publisher), CloseReason::Evicted);
    drop((pipe, holds));
    reader.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn disconnected_subscriber_gets_no_later_attachments() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let holds = start("holds", &address, &["reliable"]);
    let Ok(PublisherEvent::Subscriber(one)) = publisher.next() else {
        panic!("no subscriber");
    };
    let (_, pipe) = std::io::pipe().unwrap();
    for _ in 0..3 {
        publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    one.disconnect();
    // It holds as many as it accepts.
    assert!(
        publisher
            .sender()
            .try_send_with(b"x", &[pipe.as_fd().into()])
            .unwrap()
    );
    let stats = publisher.stats();
    assert_eq!((stats.attachments_sent, stats.attachments_withheld), (3, 0));
    drop(holds);
}

#[test]
fn message_above_the_kernels_limit_is_not_published() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let (_, pipe) = std::io::pipe().unwrap();
    for count in [254, 255, 256] {
        let found = publisher.send_with(b"x", &vec![pipe.as_fd().into(); count]);
        assert!(
            matches!(found, Err(Error::MessageTooLarge { limit: 253, .. })),
            "{found:?}"
        );
    }
    assert_eq!(publisher.sequence(), 0);
    publisher.send_with(b"x", &[pipe.as_fd().into(); 253]).unwrap();
}

#[test]
fn only_the_subscriber_at_its_limit_is_evicted() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::from_millis(500))).unwrap();
    let _none = start("reads none", &address, &[]);
    let mut one = start("reads one", &address, &[]);
    wait_for_subscribers(&publisher, 2);
    let (_, pipe) = std::io::pipe().unwrap();
    for _ in 0..3 {
        publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    one.proceed();
    let until = Instant::now() + TIME_LIMIT / 2;
    let two = [pipe.as_fd().into(); 2];
    publisher.sender().send_with_until(b"x", &two, until).unwrap();
    assert_eq!(next_gone(&publisher), CloseReason::Evicted);
    let stats = publisher.stats();
    assert_eq!((stats.evicted, stats.subscribers), (1, 1));
}

#[test]
fn plain_message_does_not_wait_for_earlier_attachments() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut one = start("reads one", &address, &[]);
    wait_for_subscribers(&publisher, 1);
    let (_, pipe) = std::io::pipe().unwrap();
    for _ in 0..3 {
        publisher.send_with(&[1; 8000], &[pipe.as_fd().into()]).unwrap();
    }
    let sender = publisher.sender();
    let three = [pipe.as_fd().into(); 3];
    let found = sender.send_with_until(b"x", &three, Instant::now());
    assert!(matches!(found, Err(Error::TimedOut)), "{found:?}");
    while sender.try_send(&[2; 1000]).unwrap() {}
    one.proceed();
    let until = Instant::now() + TIME_LIMIT / 2;
    sender.send_with_until(&[2; 1000], &[], until).unwrap();
}

#[test]
fn lossy_subscriber_gets_attachments_with_their_message() {
    for delivery in ["best-effort", "latest"] {
        let (address, _directory) = fresh_address(false);
        let mut publisher = publish(&address, &options()).unwrap();
        let mut sleeps = start("sleeps", &address, &[delivery]);
        wait_for_subscribers(&publisher, 1);
        sleeps.expect("subscribed");
        let mut number = 0;
        let mut send = |publisher: &mut Publisher| {
            let (bytes, buffer) = (message(number, 2000), buffer(number));
            publisher.send_with(&bytes, &[(&buffer).into()]).unwrap();
            number += 1;
        };
        // Several rings.
        for _ in 0..COUNT * 3 {
            send(&mut publisher);
        }
        assert!(publisher.stats().attachments_withheld > 0);
        sleeps.proceed();
        while sleeps.try_next_line().is_none() {
            send(&mut publisher);
        }
        publisher.end();
        sleeps.finish();
    }
}

#[test]
fn killed_subscriber_leaves_no_attachment_open() {
    for delivery in [Delivery::Reliable, Delivery::BestEffort] {
        let (address, _directory) = fresh_address(false);
        let mut publisher = publish(&address, &options()).unwrap();
        let mut holds = start("holds", &address, &[&delivery.to_string()]);
        wait_for_subscribers(&publisher, 1);
        let (mut reader, pipe) = std::io::pipe().unwrap();
        for _ in 0..3 {
            publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
        }
        holds.kill();
        while !matches!(publisher.next().unwrap(), PublisherEvent::Gone(..)) {}
        // The publisher goes on, and no copy is left on the line.
        publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
        assert_eq!(publisher.stats().attachments_sent, 3);
        drop(pipe);
        reader.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn hoarding_subscriber_does_not_block_the_publisher() {
    let (address, _directory) = fresh_address(false);
    let any = Policy::new().any_executable();
    let mut publisher = publish(&address, &options().policy(any)).unwrap();
    let hoards = start("hoards", &address, &[]);
    wait_for_subscribers(&publisher, 1);
    let (mut reader, pipe) = std::io::pipe().unwrap();
    for _ in 0..1000 {
        publisher.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    assert_eq!(next_gone(&publisher), CloseReason::Corrupt);
    drop((pipe, hoards));
    reader.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn unpublished_attachments_join_no_other_message() {
    let (address, _directory) = fresh_address(false);
    let any = Policy::new().any_executable();
    let mut publisher = publish(&address, &options().policy(any)).unwrap();
    let checks = start("checks", &address, &[]);
    wait_for_subscribers(&publisher, 1);
    let _hoards = start("hoards", &address, &[]);
    wait_for_subscribers(&publisher, 1);
    let (_, pipe) = std::io::pipe().unwrap();
    let one = [pipe.as_fd().into()];
    // The message that ends the second was passed to the first already.
    while publisher.sender().try_send_with(b"x", &one).unwrap() || publisher.subscribers().len() > 1 {}
    for _ in 0..3 {
        publisher.send(b"alone").unwrap();
        publisher.send_with(b"x", &one).unwrap();
    }
    publisher.end();
    checks.finish();
}

#[test]
fn in_flight_descriptors_to_a_slow_reader_are_limited() {
    let (address, _directory) = fresh_address(false);
    let fills = start("fills", &address, &[]);
    let attachments = Attachments::none().descriptors(true).max_count(1024);
    let options = options().delivery(Delivery::BestEffort).wait(true);
    let _subscription = subscribe(&address, &options.attachments(attachments)).unwrap();
    fills.finish();
}

#[test]
fn merge_of_subscriptions_delivers_attachments() {
    let (address, _directory) = fresh_address(false);
    let publishes = start("publishes", &address, &[]);
    let subscription = subscribe(&address, &accepting().wait(true)).unwrap();
    let mut merge: Merge<AnySource> = Merge::new().unwrap();
    merge.add(subscription.into()).unwrap();
    let mut into = [0; 100];
    let found = merge.receive(&mut into).unwrap();
    assert!(matches!(found, Some(Merged::Message { length: 1, .. })));
    check(&merge.attachments(), 7);
    publishes.finish();
}

#[test]
fn message_is_kept_if_the_line_is_unreadable() {
    let (address, _directory) = fresh_address(false);
    let publishes = start("publishes", &address, &[]);
    let mut subscription = subscribe(&address, &accepting().wait(true)).unwrap();
    // The line is read for the first time by the thread that may not.
    while subscription.lag() == 0 {
        thread::yield_now();
    }
    let denied = thread::spawn(move || {
        forbid(libc::SYS_recvmsg, None, libc::EACCES);
        (subscription.receive_vec(), subscription)
    });
    let (found, mut subscription) = denied.join().unwrap();
    assert!(matches!(found, Err(Error::Unsupported { .. })), "{found:?}");
    assert_eq!(subscription.receive_vec().unwrap().unwrap().len(), 1);
    check(&subscription.attachments(), 7);
    publishes.finish();
}
