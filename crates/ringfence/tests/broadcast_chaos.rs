//! Broadcasts under failures: processes are killed in the middle of an operation, a thousand subscribers
//! connect, and one is evicted while it reads.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{Address, Delivery, Error, Options, Publisher, Subscription, publish, subscribe};
use support::{
    Actor, TIME_LIMIT, fresh_address, report,
    wire::{ManualSubscriber, receive},
};

const CAPACITY: u64 = 64 << 10;
/// Size of a message in bytes.
const LENGTH: usize = 200;

fn options() -> Options {
    Options::new().capacity(CAPACITY).handshake_timeout(TIME_LIMIT)
}

fn message(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(LENGTH / 8)
}

/// Reads the next message, which must be whole and directly follow the last one.
fn next_in_order(subscription: &mut Subscription) -> Result<bool, Error> {
    let mut into = [0; LENGTH];
    let expected = subscription.sequence() + 1;
    Ok(match subscription.receive(&mut into)? {
        Some(length) => {
            assert_eq!(into[..length], message(expected));
            assert_eq!((subscription.sequence(), subscription.lost()), (expected, 0));
            true
        }
        None => false,
    })
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends this many more messages, and returns the number of the last.
fn send(publisher: &mut Publisher, count: u64) -> u64 {
    for _ in 0..count {
        let number = publisher.sequence() + 1;
        publisher.send(&message(number)).unwrap();
    }
    publisher.sequence()
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        // Reads everything in order, until the end.
        "honest" => {
            let mut subscription = subscribe(&address, &options()).unwrap();
            report("in");
            while next_in_order(&mut subscription).unwrap() {}
            report(format!("read up to {}", subscription.sequence()));
        }
        // Subscribes, reads a little and leaves, forever.
        "churns" => {
            report("started");
            for round in 0_u64.. {
                let delivery = [Delivery::Reliable, Delivery::BestEffort][usize::from(round % 2 == 1)];
                if let Ok(mut subscription) = subscribe(&address, &options().delivery(delivery)) {
                    let mut into = [0; LENGTH];
                    for _ in 0..round % 7 {
                        if subscription.receive(&mut into).is_err() {
                            break;
                        }
                    }
                }
            }
        }
        // Publishes forever.
        "publishes" => {
            let mut publisher = publish(&address, &options()).unwrap();
            report("out");
            loop {
                send(&mut publisher, 1);
            }
        }
        // Holds a hundred subscriptions, each of which reads the same messages.
        "hundred" => {
            raise_limit();
            let kinds = [Delivery::Reliable, Delivery::BestEffort];
            let mut all: Vec<_> = (0..100)
                .map(|number| subscribe(&address, &options().delivery(kinds[number % 2])).unwrap())
                .collect();
            report("in");
            for subscription in &mut all {
                while next_in_order(subscription).unwrap() {}
                assert_eq!(subscription.sequence(), 50);
            }
            report("each read 50");
        }
        "extra" => report(subscribe(&address, &options()).unwrap_err().code()),
        // Reads more slowly than the publisher sends.
        "slow" => {
            let mut subscription = subscribe(&address, &options()).unwrap();
            report("in");
            let end = loop {
                match next_in_order(&mut subscription) {
                    Ok(true) => thread::sleep(Duration::from_micros(300)),
                    Ok(false) => break "end".to_owned(),
                    Err(error) => break error.code().to_owned(),
                }
            };
            report(format!("{end}, {}", subscription.close_reason().unwrap()));
        }
        "offered" => {
            let mut subscriber = ManualSubscriber::offered(&arguments[0], 1, 1);
            report("offered");
            // REFUSE.
            let refused = receive(&mut subscriber.line).is_ok_and(|(kind, _)| kind == 4);
            report(if refused { "refused" } else { "something else" });
        }
        other => panic!("{other}"),
    }
}

fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
fn subscribers_killed_at_random_do_not_affect_others() {
    let (address, _directory) = fresh_address(false);
    let name = address.to_string();
    let mut publisher = publish(&address, &options()).unwrap();
    let honest = Actor::start("honest", &[&name]);
    honest.expect("in");
    wait_until("the honest subscriber is admitted", || {
        publisher.subscribers().len() == 1
    });
    // Each round kills at another moment, and the machine adds its own variation.
    for round in 0_u64..30 {
        let mut churning: Vec<_> = (0..2).map(|_| Actor::start("churns", &[&name])).collect();
        for one in &churning {
            one.expect("started");
        }
        let end = Instant::now() + Duration::from_micros(round * 700);
        while Instant::now() < end {
            send(&mut publisher, 20);
        }
        for one in &mut churning {
            one.kill();
        }
        send(&mut publisher, 500);
    }
    wait_until("the killed subscribers are gone", || {
        publisher.subscribers().len() == 1
    });
    let last = send(&mut publisher, 1);
    publisher.end();
    honest.expect(&format!("read up to {last}"));
    honest.finish();
}

#[test]
fn publisher_killed_at_random_leaves_whole_messages() {
    for round in 0_u64..25 {
        let (address, _directory) = fresh_address(round % 2 == 0);
        let name = address.to_string();
        let mut publisher = Actor::start("publishes", &[&name]);
        publisher.expect("out");
        let reading = thread::spawn(move || {
            let mut subscription = match subscribe(&address, &options()) {
                Ok(subscription) => subscription,
                Err(error) => return error.code().to_owned(),
            };
            loop {
                match next_in_order(&mut subscription) {
                    Ok(true) => {}
                    Ok(false) => return "a clean end".to_owned(),
                    Err(error) => return error.code().to_owned(),
                }
            }
        });
        thread::sleep(Duration::from_micros(round * 400));
        publisher.kill();
        let end = reading.join().unwrap();
        assert_eq!(end, "PEER_LOST");
    }
}

#[test]
fn thousand_subscribers_get_every_message() {
    raise_limit();
    let (address, _directory) = fresh_address(false);
    let name = address.to_string();
    let options = options().max_peers(1000).stall(Duration::MAX);
    let mut publisher = publish(&address, &options).unwrap();
    let mut hundreds: Vec<_> = (0..10).map(|_| Actor::start("hundred", &[&name])).collect();
    for hundred in &hundreds {
        hundred.expect("in");
    }
    wait_until("all are admitted", || publisher.subscribers().len() == 1000);
    // One more subscriber gets an error, without other effects.
    let extra = Actor::start("extra", &[&name]);
    extra.expect("ADDRESS_OCCUPIED");
    send(&mut publisher, 50);
    publisher.end();
    for hundred in hundreds.drain(..) {
        hundred.expect("each read 50");
        hundred.finish();
    }
    wait_until("all are gone", || publisher.subscribers().is_empty());
}

#[test]
fn evicted_reader_got_only_whole_messages_in_order() {
    let (address, _directory) = fresh_address(false);
    let name = address.to_string();
    let mut publisher = publish(&address, &options().stall(Duration::from_millis(3))).unwrap();
    for _ in 0..8 {
        let slow = Actor::start("slow", &[&name]);
        slow.expect("in");
        wait_until("the subscriber is admitted", || {
            publisher.subscribers().len() == 1
        });
        wait_until("the subscriber is evicted", || {
            send(&mut publisher, 100);
            publisher.subscribers().is_empty()
        });
        slow.expect("EVICTED, evicted");
        slow.finish();
    }
}

#[test]
fn seal_refuses_pending_handshakes_and_frees_the_address() {
    let (address, _directory) = fresh_address(false);
    let name = address.to_string();
    let mut publisher = publish(&address, &options()).unwrap();
    let honest = Actor::start("honest", &[&name]);
    honest.expect("in");
    let late: Vec<_> = (0..3).map(|_| Actor::start("offered", &[&name])).collect();
    for one in &late {
        one.expect("offered");
    }
    publisher.seal();
    for one in &late {
        one.expect("refused");
    }
    assert_eq!(publisher.subscribers().len(), 1);
    let other = publish(&address, &options()).unwrap();
    let last = send(&mut publisher, 1000);
    publisher.end();
    honest.expect(&format!("read up to {last}"));
    other.close();
}

#[test]
fn calls_after_end_or_close_fail_with_closed() {
    let (address, _directory) = fresh_address(false);
    for close in [false, true] {
        let mut publisher = publish(&address, &options()).unwrap();
        send(&mut publisher, 3);
        if close {
            publisher.close();
        } else {
            publisher.end();
        }
        for _ in 0..2 {
            assert_eq!(publisher.try_send(b"late").unwrap_err().code(), "CLOSED");
            assert_eq!(publisher.send(b"late").unwrap_err().code(), "CLOSED");
            assert_eq!(publisher.reserve(4).map(drop).unwrap_err().code(), "CLOSED");
            assert_eq!(publisher.batch().map(drop).unwrap_err().code(), "CLOSED");
            assert_eq!(publisher.wait(4, None).unwrap_err().code(), "CLOSED");
            publisher.end();
            publisher.seal();
            publisher.close();
        }
        assert_eq!(publisher.sequence(), 3);
        assert_eq!(subscribe(&address, &options()).unwrap_err().code(), "PEER_LOST");
    }
}
