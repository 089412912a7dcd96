//! No call that sends or receives allocates: with a sleeping receiver, with a full ring, and while both sides
//! wait for each other. Only the calling thread is counted.

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringfence::{
    Address, Broadcaster, Merge, Options, Progress, Publisher, PublisherEvent, Receiver, Sender,
    Subscription, join, publish, subscribe,
};
use support::{Actor, TIME_LIMIT, fresh_address, report, wait_for_test};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // The counter of an exiting thread may already be gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: each call is forwarded to the system's allocator with the caller's guarantees, and the counter
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller guarantees.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller guarantees. `alloc` returned the memory from the same allocator.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller guarantees. `alloc` returned the memory from the same allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Counts the allocations of this thread during a call.
fn allocations(call: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    call();
    COUNT.get() - before
}

/// A call, by its name.
type Call<T> = (&'static str, fn(&mut T));

const MESSAGE: &[u8] = &[7; 100];
const ROUNDS: u32 = 20;
/// Number of messages in a long run.
const MANY: u64 = 20_000;

/// A message, packed.
fn packed() -> [u8; 112] {
    let mut packed = [7; 112];
    packed[..8].copy_from_slice(&(0x64_u64 | 0x3 << 32).to_le_bytes());
    packed[108..].fill(0);
    packed
}

/// Longer than any call takes.
fn far() -> Instant {
    Instant::now() + TIME_LIMIT
}

/// A deadline before which no message arrives.
fn soon() -> Instant {
    Instant::now() + Duration::from_millis(1)
}

fn small() -> Options {
    Options::new()
        .capacity(4096)
        .stall(Duration::from_secs(3600))
        .handshake_timeout(TIME_LIMIT)
}

fn options_with(arguments: &[String]) -> Options {
    small().delivery(arguments[1].parse().unwrap())
}

fn wait_for(descriptor: impl AsFd) {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    assert!(poll(&mut polled, PollTimeout::NONE).unwrap() > 0);
}

/// Reads until the end. It reports each time that it goes to sleep, and only a wakeup wakes it.
macro_rules! sleep_and_read {
    ($reader:expr) => {
        let mut into = [0; 4096];
        while !$reader.is_ended().unwrap() {
            while $reader.try_receive(&mut into).unwrap().is_some() {}
            if $reader.arm().unwrap() {
                report("asleep");
                wait_for(&*$reader);
                $reader.poll_line().unwrap();
                $reader.disarm();
            }
        }
    };
}

/// The other processes.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let mut into = [0; 4096];
    match role.as_str() {
        "sleeps" => {
            let mut channel = join(&address, &small()).unwrap();
            let reader = channel.receiver();
            sleep_and_read!(reader);
        }
        "idles" => {
            let _channel = join(&address, &small()).unwrap();
            wait_for_test();
        }
        "reads" => {
            let mut channel = join(&address, &small()).unwrap();
            while channel.receiver().receive(&mut into).unwrap().is_some() {}
        }
        // Sends two for each message that it receives, a moment later.
        "answers" => {
            let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
            while receiver.receive(&mut into).unwrap().is_some() {
                thread::sleep(Duration::from_millis(1));
                for _ in 0..2 {
                    sender.send(MESSAGE).unwrap();
                }
            }
        }
        "subscriber sleeps" => {
            let mut subscription = subscribe(&address, &options_with(&arguments)).unwrap();
            let reader = &mut subscription;
            sleep_and_read!(reader);
        }
        "subscriber idles" => {
            let _subscription = subscribe(&address, &options_with(&arguments)).unwrap();
            wait_for_test();
        }
        "subscriber reads" => {
            let mut subscription = subscribe(&address, &options_with(&arguments)).unwrap();
            while subscription.receive(&mut into).unwrap().is_some() {}
        }
        // Sends two at a time, until it is killed.
        "publishes" => {
            let mut publisher = publish(&address, &small()).unwrap();
            report("publishes");
            loop {
                for _ in 0..2 {
                    publisher.send(MESSAGE).unwrap();
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        // Each time that the test asks, sends more than the ring holds.
        "overtakes" => {
            let mut publisher = publish(&address, &small()).unwrap();
            for count in 40.. {
                report("published");
                wait_for_test();
                for _ in 0..count {
                    publisher.send(MESSAGE).unwrap();
                }
            }
        }
        other => panic!("no role {other}"),
    }
}

/// The calls that have allocated, and how often.
#[derive(Default)]
struct Table(Vec<(String, u64)>);

impl Table {
    fn count(&mut self, of: &str, call: impl FnOnce()) {
        let count = allocations(call);
        if count > 0 {
            self.0.push((of.to_owned(), count));
        }
    }

    fn check(&self) {
        assert!(self.0.is_empty(), "allocations: {:?}", self.0);
    }
}

/// Makes a pair with another process.
fn pair(role: &str) -> (Sender, Receiver, Actor) {
    let (address, _) = fresh_address(false);
    let actor = Actor::start(role, &[&address.to_string()]);
    let (sender, receiver) = join(&address, &small().wait(true)).unwrap().split();
    (sender, receiver, actor)
}

/// A publisher, and subscribers of each delivery, each in another process.
fn publisher(role: &str) -> (Publisher, Vec<Actor>) {
    let (address, _) = fresh_address(false);
    let publisher = publish(&address, &small()).unwrap();
    let deliveries = ["reliable", "best-effort", "latest", "reliable"];
    let actors = deliveries.map(|delivery| Actor::start(role, &[&address.to_string(), delivery]));
    for _ in deliveries {
        assert!(matches!(publisher.next(), Ok(PublisherEvent::Subscriber(_))));
    }
    (publisher, actors.into())
}

/// Sends until `ready`, and until the sender knows each subscriber: it learns of a subscriber a moment after
/// the program does.
fn send_until_known(publisher: &mut Publisher, mut ready: impl FnMut(&mut Publisher) -> bool) {
    let mut unknown = publisher.subscribers();
    while !ready(publisher) || !unknown.is_empty() {
        unknown.retain(|subscriber| subscriber.lag() == 0);
    }
}

/// Each sends one message.
const SENDS: [Call<Sender>; 9] = [
    ("send", |sender| sender.send(MESSAGE).unwrap()),
    ("send_until", |sender| sender.send_until(MESSAGE, far()).unwrap()),
    ("try_send", |sender| assert!(sender.try_send(MESSAGE).unwrap())),
    ("send_part", |sender| {
        assert_eq!(sender.send_part(MESSAGE, 0).unwrap(), Progress::Whole);
    }),
    ("try_send_packed", |sender| {
        assert_eq!(sender.try_send_packed(&packed()).unwrap(), 112);
    }),
    ("reserve", |sender| {
        sender.reserve(100).unwrap().unwrap().commit(100).unwrap();
    }),
    ("reserve_items", |sender| {
        let items = sender.reserve_items::<u64>(12).unwrap().unwrap();
        items.commit(12).unwrap();
    }),
    ("reserve_detached", |sender| {
        let reserved = sender.reserve_detached(100).unwrap().unwrap();
        sender.commit(reserved, 100).unwrap();
    }),
    ("batch", |sender| {
        let mut batch = sender.batch().unwrap();
        assert!(batch.push(MESSAGE).unwrap());
        batch.reserve(100).unwrap().unwrap().fill(7);
    }),
];

/// Each finds no room.
const FULL_RING_SENDS: [Call<Sender>; 10] = [
    ("send_until", |sender| {
        sender.send_until(MESSAGE, soon()).unwrap_err();
    }),
    // At intervals, the call also polls the line.
    ("try_send", |sender| {
        assert!((0..10_000).all(|_| !sender.try_send(MESSAGE).unwrap()));
    }),
    ("send_part", |sender| {
        assert_eq!(sender.send_part(MESSAGE, 0).unwrap(), Progress::Part(0));
    }),
    ("try_send_packed", |sender| {
        assert_eq!(sender.try_send_packed(&packed()).unwrap(), 0);
    }),
    ("reserve", |sender| {
        assert!(sender.reserve(100).unwrap().is_none());
    }),
    ("reserve_detached", |sender| {
        assert!(sender.reserve_detached(100).unwrap().is_none());
    }),
    ("batch", |sender| {
        assert!(!sender.batch().unwrap().push(MESSAGE).unwrap());
    }),
    ("wait", |sender| assert!(!sender.wait(100, Some(soon())).unwrap())),
    ("arm", |sender| {
        assert!(sender.arm(100).unwrap());
        sender.poll_line();
        sender.disarm();
    }),
    ("has_room, packed_room, stats", |sender| {
        assert!(!sender.has_room(100).unwrap());
        assert!(sender.packed_room(100).unwrap() < 112);
        sender.stats();
    }),
];

#[test]
fn sender_does_not_allocate() {
    let mut table = Table::default();
    let (mut sender, receiver, actor) = pair("sleeps");
    for round in 0..ROUNDS {
        for (name, call) in SENDS {
            actor.expect("asleep");
            let wakeups = sender.stats().bells_rung;
            table.count(&format!("{name} to one that sleeps"), || call(&mut sender));
            assert_eq!(sender.stats().bells_rung, wakeups + 1, "{name}, {round}");
        }
    }
    actor.expect("asleep");
    sender.end();
    actor.finish();
    drop(receiver);
    let (mut sender, _receiver, _actor) = pair("idles");
    while sender.try_send(MESSAGE).unwrap() {}
    for (name, call) in FULL_RING_SENDS {
        table.count(&format!("{name} into a full ring"), || call(&mut sender));
    }
    table.check();
}

#[test]
fn waiting_sender_does_not_allocate() {
    let mut table = Table::default();
    let (mut sender, _receiver, _actor) = pair("reads");
    // The first waits of a channel allocate memory that later ones reuse.
    while sender.stats().waits < 200 {
        sender.send(MESSAGE).unwrap();
    }
    table.count("send", || {
        for _ in 0..MANY {
            sender.send(MESSAGE).unwrap();
        }
    });
    table.count("send_until", || {
        for _ in 0..MANY {
            sender.send_until(MESSAGE, far()).unwrap();
        }
    });
    table.check();
}

/// Each sends one message.
const PUBLICATIONS: [Call<Broadcaster>; 8] = [
    ("send", |sender| sender.send(MESSAGE).unwrap()),
    ("send_until", |sender| sender.send_until(MESSAGE, far()).unwrap()),
    ("try_send", |sender| assert!(sender.try_send(MESSAGE).unwrap())),
    ("try_send_packed", |sender| {
        assert_eq!(sender.try_send_packed(&packed()).unwrap(), 112);
    }),
    ("reserve", |sender| {
        sender.reserve(100).unwrap().unwrap().commit(100).unwrap();
    }),
    ("reserve_items", |sender| {
        let items = sender.reserve_items::<u64>(12).unwrap().unwrap();
        items.commit(12).unwrap();
    }),
    ("reserve_detached", |sender| {
        let reserved = sender.reserve_detached(100).unwrap().unwrap();
        sender.commit(reserved, 100).unwrap();
    }),
    ("batch", |sender| {
        let mut batch = sender.batch().unwrap();
        assert!(batch.push(MESSAGE).unwrap());
        batch.reserve(100).unwrap().unwrap().fill(7);
    }),
];

/// Each finds no room.
const FULL_RING_PUBLICATIONS: [Call<Broadcaster>; 9] = [
    ("send_until", |sender| {
        sender.send_until(MESSAGE, soon()).unwrap_err();
    }),
    ("try_send", |sender| {
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            assert!(!sender.try_send(MESSAGE).unwrap());
        }
    }),
    ("try_send_packed", |sender| {
        assert_eq!(sender.try_send_packed(&packed()).unwrap(), 0);
    }),
    ("reserve", |sender| {
        assert!(sender.reserve(100).unwrap().is_none());
    }),
    ("reserve_detached", |sender| {
        assert!(sender.reserve_detached(100).unwrap().is_none());
    }),
    ("batch", |sender| {
        assert!(!sender.batch().unwrap().push(MESSAGE).unwrap());
    }),
    ("wait", |sender| assert!(!sender.wait(100, Some(soon())).unwrap())),
    ("arm", |sender| {
        assert!(sender.arm(100).unwrap());
        sender.poll_line();
        sender.disarm();
    }),
    ("has_room, packed_room, stats, give_up", |sender| {
        assert!(!sender.has_room(100).unwrap());
        assert!(sender.packed_room(100).unwrap() < 112);
        sender.stats();
        sender.give_up();
    }),
];

#[test]
fn publisher_does_not_allocate() {
    let mut table = Table::default();
    let (mut publisher, actors) = publisher("subscriber sleeps");
    let asleep = || actors.iter().for_each(|actor| actor.expect("asleep"));
    // A subscriber that sleeps a second time was woken, and so is known to the sender.
    for _ in 0..2 {
        asleep();
        publisher.send(MESSAGE).unwrap();
    }
    for _ in 0..ROUNDS {
        for (name, call) in PUBLICATIONS {
            asleep();
            table.count(&format!("{name} to some that sleep"), || call(publisher.sender()));
        }
    }
    drop(actors);
    let (mut publisher, _actors) = self::publisher("subscriber idles");
    send_until_known(&mut publisher, |publisher| !publisher.try_send(MESSAGE).unwrap());
    for (name, call) in FULL_RING_PUBLICATIONS {
        table.count(&format!("{name} into a full ring"), || call(publisher.sender()));
    }
    table.check();
}

#[test]
fn waiting_publisher_does_not_allocate() {
    let mut table = Table::default();
    let (mut publisher, _actors) = publisher("subscriber reads");
    send_until_known(&mut publisher, |publisher| {
        publisher.send(MESSAGE).unwrap();
        publisher.stats().waits > 20
    });
    table.count("send", || {
        for _ in 0..MANY {
            publisher.send(MESSAGE).unwrap();
        }
    });
    table.check();
}

/// The reading calls of a receiver and of a subscription: each takes one message or more, and most wait for
/// it.
macro_rules! reads {
    ($reader:ty) => {
        [
            ("receive", |reader| {
                reader.receive(&mut [0; 4096]).unwrap().unwrap();
            }),
            ("receive_until", |reader| {
                reader.receive_until(&mut [0; 4096], far()).unwrap().unwrap();
            }),
            ("receive_until, too late", |reader| {
                while reader.receive_until(&mut [0; 4096], Instant::now()).is_ok() {}
            }),
            ("try_receive", |reader| {
                while reader.try_receive(&mut [0; 4096]).unwrap().is_none() {}
            }),
            (
                "next_size",
                |reader| while reader.next_size().unwrap().is_none() {},
            ),
            ("wait", |reader| {
                assert!(reader.wait_readable(Some(far())).unwrap())
            }),
            ("drain", |reader| {
                let mut sum = 0;
                while reader.receive_each(|message| sum += message.len(), 10).unwrap() == 0 {}
                assert!(sum > 0);
            }),
            ("try_receive_packed", |reader| {
                while !matches!(
                    reader.try_receive_packed(&mut [0; 4096]).unwrap(),
                    ringfence::Packed::Bytes(_)
                ) {}
            }),
            ("arm", |reader| {
                while reader.try_receive(&mut [0; 4096]).unwrap().is_some() {}
                if reader.arm().unwrap() {
                    reader.poll_line().unwrap();
                    reader.disarm();
                }
            }),
            ("has_message, is_ended, stats", |reader| {
                while !reader.has_message().unwrap() {}
                assert!(!reader.is_ended().unwrap());
                reader.stats();
            }),
        ] as [Call<$reader>; 10]
    };
}

#[test]
fn receiver_does_not_allocate() {
    let mut table = Table::default();
    let (mut sender, mut receiver, _actor) = pair("answers");
    let mut into = [0; 4096];
    // The first waits of a channel allocate memory that later ones reuse.
    while receiver.stats().sleeps < 200 {
        sender.send(MESSAGE).unwrap();
        receiver.receive(&mut into).unwrap();
        while receiver.try_receive(&mut into).unwrap().is_some() {}
    }
    for _ in 0..ROUNDS {
        for (name, call) in reads!(Receiver) {
            // The call waits for the answer to its own message.
            while receiver.stats().messages_received < 2 * sender.stats().messages_sent {
                receiver.receive(&mut into).unwrap();
            }
            table.count(name, || {
                sender.send(MESSAGE).unwrap();
                call(&mut receiver);
            });
        }
    }
    table.check();
}

#[test]
fn subscription_does_not_allocate() {
    let mut table = Table::default();
    let (address, _) = fresh_address(false);
    let publisher = Actor::start("publishes", &[&address.to_string()]);
    publisher.expect("publishes");
    let mut into = [0; 4096];
    for delivery in ["reliable", "best-effort", "latest"] {
        let mut subscription = subscribe(&address, &small().delivery(delivery.parse().unwrap())).unwrap();
        while subscription.stats().sleeps < 200 {
            subscription.receive(&mut into).unwrap();
        }
        // The buffer in which messages are visited is allocated once.
        while subscription.receive_each(|_| (), 1).unwrap() == 0 {}
        for _ in 0..ROUNDS {
            for (name, call) in reads!(Subscription) {
                table.count(&format!("{delivery}, {name}"), || call(&mut subscription));
            }
        }
    }
    table.check();
}

#[test]
fn overtaken_subscription_does_not_allocate() {
    let mut table = Table::default();
    for delivery in ["best-effort", "latest"] {
        let (address, _) = fresh_address(false);
        let mut publisher = Actor::start("overtakes", &[&address.to_string()]);
        publisher.expect("published");
        let mut subscription = subscribe(&address, &small().delivery(delivery.parse().unwrap())).unwrap();
        let mut overtake = || {
            publisher.proceed();
            publisher.expect("published");
        };
        overtake();
        // The buffer in which messages are visited is allocated once.
        while subscription.receive_each(|_| (), 1).unwrap() == 0 {}
        for _ in 0..ROUNDS {
            for (name, call) in reads!(Subscription) {
                // The reader finds payload where it expects a header.
                overtake();
                table.count(&format!("{delivery}, {name}"), || call(&mut subscription));
            }
        }
        assert!(subscription.lost() > 0);
    }
    table.check();
}

#[test]
fn merge_does_not_allocate() {
    let mut table = Table::default();
    let (address, _) = fresh_address(false);
    let publisher = Actor::start("publishes", &[&address.to_string()]);
    publisher.expect("publishes");
    let mut merge = Merge::new().unwrap();
    for delivery in ["reliable", "best-effort"] {
        let options = small().delivery(delivery.parse().unwrap());
        merge.add(subscribe(&address, &options).unwrap()).unwrap();
    }
    let mut into = [0; 4096];
    for _ in 0..200 {
        merge.receive(&mut into).unwrap();
        merge.receive_each(|_, _| (), 1).unwrap();
    }
    for _ in 0..100 {
        table.count("receive", || {
            merge.receive(&mut into).unwrap();
        });
        table.count("receive_until", || {
            merge.receive_until(&mut into, far()).unwrap();
        });
        table.count("wait, drain", || {
            assert!(merge.wait_readable(Some(far())).unwrap());
            merge.receive_each(|_, _| (), 10).unwrap();
        });
    }
    table.check();
}
