//! Attacks of a hostile subscriber on its publisher and on the other subscribers, carried out manually on the
//! wire.

mod support;

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use memmap2::{Mmap, MmapMut};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{Signal, kill},
};
use ringfence::{
    Address, CloseReason, Error, Options, Policy, Publisher, PublisherEvent, publish, subscribe,
};
use support::{
    Actor, OTHER_UID, OtherUsers, TIME_LIMIT, fresh_address, report, wait_for_test,
    wire::{self, ManualSubscriber},
};

const CAPACITY: u64 = 16 << 10;
/// Offsets of words in the ring object, from docs/internals/protocol.md.
const TAIL: usize = 128;
const WRITER_PARKED: usize = 512;

fn options() -> Options {
    Options::new().capacity(CAPACITY).handshake_timeout(TIME_LIMIT)
}

/// Reads a command of the test, in a role.
fn read_command() -> String {
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("a line of the test");
    line.trim().to_owned()
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = || arguments[0].parse::<Address>().unwrap();
    match role.as_str() {
        // An honest subscriber, which reports in the end what it received.
        "honest" => {
            let any_user = Policy::new().any_executable().uids([0, OTHER_UID]);
            let options = options().policy(any_user);
            let mut subscription = subscribe(&address(), &options).unwrap();
            report("in");
            let mut into = vec![0; 4096];
            let mut count = 0;
            let end = loop {
                match subscription.receive(&mut into) {
                    Ok(Some(_)) => count += 1,
                    Ok(None) => break "end".to_owned(),
                    Err(error) => break error.code().to_owned(),
                }
            };
            report(format!(
                "{count}, {end}, {}",
                subscription.close_reason().unwrap()
            ));
        }
        // Holds the maximum number of connections per process, and connects again as soon as one more is
        // rejected.
        "floods" => {
            let _streams: Vec<_> = (0..32).map(|_| wire::connect(&arguments[0])).collect();
            report("floods");
            while wire::try_connect(&arguments[0]).is_ok() {}
        }
        // Follows the test's commands manually.
        "manual" => as_manual(&arguments[0]),
        "seals" => {
            let (mut sender, audience) = publish(&address(), &options()).unwrap().split();
            report("out");
            // The admission is complete once the publisher has reported it.
            assert!(matches!(audience.next(), Ok(PublisherEvent::Subscriber(_))));
            report(format!("{} objects", objects()));
            wait_for_test();
            audience.seal();
            let count = audience.subscribers().len();
            report(format!("{} objects, {count} subscriber", objects()));
            wait_for_test();
            sender.send(b"still").unwrap();
            sender.end();
            while audience.next().is_ok() {}
        }
        // Publishes, and exhausts its descriptors on command.
        "short" => {
            let mut publisher = publish(&address(), &options()).unwrap();
            report("out");
            assert!(matches!(publisher.next(), Ok(PublisherEvent::Subscriber(_))));
            // By the limit, which is lifted for all descriptors at once.
            let first = File::open("/dev/null").unwrap().as_raw_fd();
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, first.try_into().unwrap(), hard).unwrap();
            report("short");
            let PublisherEvent::Refused(refused) = publisher.next().unwrap() else {
                panic!("a local error")
            };
            assert!(refused.identity.is_none());
            report(refused.error.code());
            publisher.send(b"to the first").unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            assert!(matches!(publisher.next(), Ok(PublisherEvent::Subscriber(_))));
            wait_for_test();
            publisher.send(b"to both").unwrap();
            publisher.end();
            while publisher.next().is_ok() {}
        }
        other => panic!("{other}"),
    }
}

fn as_manual(address: &str) {
    let mut subscriber = ManualSubscriber::offered(address, 1, 1);
    // Mapped as an honest subscriber maps it.
    // SAFETY: another process writes there concurrently. The data is read as bytes, and never relied on.
    let ring = unsafe { Mmap::map(&subscriber.ring) }.unwrap();
    report("offered");
    loop {
        let command = read_command();
        let mut words = command.split(' ');
        match (words.next(), words.next()) {
            (Some("ready"), _) => {
                report(if subscriber.ready() { "ready" } else { "refused" });
            }
            (Some("head"), Some(position)) => {
                let further = position
                    .strip_prefix('+')
                    .map(|more| more.parse::<u64>().unwrap());
                subscriber.store_head(
                    further.map_or_else(|| position.parse().unwrap(), |more| subscriber.position + more),
                );
                report("stored");
            }
            // While the sender sleeps, this subscriber claims to have read everything. Once the sender
            // checks, it claims to have read nothing.
            (Some("two-faced"), _) => {
                report("two-faced");
                let load = |at: usize| {
                    // SAFETY: a word of the mapped ring, which its publisher writes only by atomics.
                    unsafe { AtomicU64::from_ptr(ring.as_ptr().add(at).cast_mut().cast()) }
                        .load(Ordering::Acquire)
                };
                loop {
                    let sleeps = load(WRITER_PARKED) % 2 == 1;
                    subscriber.store_head(if sleeps { load(TAIL) } else { subscriber.position });
                }
            }
            // The attacks that its descriptor of the ring permits.
            (Some("write"), _) => {
                // SAFETY: as above. The mapping is refused.
                let mapped = unsafe { MmapMut::map_mut(&subscriber.ring) }.is_ok();
                let written = nix::sys::uio::pwrite(&subscriber.ring, b"data", 4096);
                let cut = nix::unistd::ftruncate(&subscriber.ring, 0);
                report(format!("mapped {mapped}, written {written:?}, cut {cut:?}"));
            }
            (Some("open"), _) => {
                let path = format!("/proc/self/fd/{}", subscriber.ring.as_raw_fd());
                let opened = nix::fcntl::open(
                    path.as_str(),
                    nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK,
                    nix::sys::stat::Mode::empty(),
                );
                report(opened.map_or_else(|errno| format!("{errno:?}"), |_| "opened".into()));
            }
            (Some("sees"), Some(text)) => {
                let found = ring.windows(text.len()).any(|bytes| bytes == text.as_bytes());
                report(if found { "seen" } else { "not seen" });
            }
            (Some("wait"), _) => {
                subscriber.wait_for_end();
                report("disconnected");
            }
            _ => return,
        }
    }
}

struct ManualActor(Actor);

impl ManualActor {
    fn offered(address: &Address) -> Self {
        let actor = Actor::start("manual", &[&address.to_string()]);
        actor.expect("offered");
        Self(actor)
    }

    fn ready(address: &Address) -> Self {
        let mut manual = Self::offered(address);
        manual.ask("ready", "ready");
        manual
    }

    fn ask(&mut self, command: &str, wanted: &str) {
        self.0.send_line(command);
        self.0.expect(wanted);
    }
}

fn honest(address: &Address) -> Actor {
    let actor = Actor::start("honest", &[&address.to_string()]);
    actor.expect("in");
    actor
}

/// Returns the next subscriber that is reported as gone, and why.
fn next_gone(publisher: &Publisher) -> (i32, CloseReason) {
    loop {
        match publisher.next().unwrap() {
            PublisherEvent::Gone(subscriber, reason) => return (subscriber.peer().pid, reason),
            PublisherEvent::Subscriber(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Counts the descriptors of this process that lead to a memfd: shared objects.
fn objects() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter(|entry| {
            let link = std::fs::read_link(entry.as_ref().unwrap().path());
            link.is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:ringfence"))
        })
        .count()
}

/// Fills the ring, so that the publisher must check how far its subscribers are.
fn fill(publisher: &mut Publisher, sent: &mut u64) {
    for _ in 0..2 * CAPACITY / 256 {
        publisher.send(&[7; 248]).unwrap();
        *sent += 1;
    }
}

fn send_half(publisher: &mut Publisher, sent: &mut u64) {
    for _ in 0..CAPACITY / 512 {
        publisher.send(&[7; 248]).unwrap();
        *sent += 1;
    }
}

#[test]
fn invalid_head_ends_only_its_own_subscriber() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::MAX)).unwrap();
    let witness = honest(&address);
    let mut count = 0;
    // Beyond what is published; no multiple of eight; the largest value.
    for head in ["8000000", "+12", "18446744073709551608"] {
        let mut liar = ManualActor::ready(&address);
        liar.ask(&format!("head {head}"), "stored");
        fill(&mut publisher, &mut count);
        assert_eq!(
            next_gone(&publisher),
            (liar.0.pid(), CloseReason::Corrupt),
            "{head}"
        );
        liar.ask("wait", "disconnected");
    }
    // Backwards, after it has reported a later position.
    let mut liar = ManualActor::ready(&address);
    send_half(&mut publisher, &mut count);
    liar.ask("head +8192", "stored");
    send_half(&mut publisher, &mut count);
    // Without a check there is no room, and with one there is.
    for _ in 0..CAPACITY / 1024 {
        publisher.send(&[7; 248]).unwrap();
        count += 1;
    }
    liar.ask("head +0", "stored");
    fill(&mut publisher, &mut count);
    assert_eq!(next_gone(&publisher), (liar.0.pid(), CloseReason::Corrupt));
    publisher.end();
    witness.expect(&format!("{count}, end, closed"));
}

/// It shows the sender a position that leaves no room. To the watcher, which measures the stall, it shows one
/// that does.
#[test]
fn two_faced_position_cannot_exceed_the_stall_limit() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::from_secs(2))).unwrap();
    let witness = honest(&address);
    let mut liar = ManualActor::ready(&address);
    for _ in [&witness, &liar.0] {
        assert!(matches!(publisher.next(), Ok(PublisherEvent::Subscriber(_))));
    }
    liar.ask("two-faced", "two-faced");
    let mut count = 0;
    // It may show the sender the higher position by mistake, and so make room: then the next round catches
    // it.
    while publisher.subscribers().len() > 1 {
        fill(&mut publisher, &mut count);
    }
    let (pid, reason) = next_gone(&publisher);
    assert_eq!(pid, liar.0.pid());
    assert!(
        matches!(reason, CloseReason::Corrupt | CloseReason::Evicted),
        "{reason}"
    );
    publisher.end();
    witness.expect(&format!("{count}, end, closed"));
}

#[test]
fn subscriber_cannot_write_or_truncate_the_ring() {
    let (address, _directory) = fresh_address(false);
    let publisher = publish(&address, &options()).unwrap();
    let mut manual = ManualActor::ready(&address);
    manual.ask("write", "mapped false, written Err(EPERM), cut Err(EPERM)");
    assert_eq!(publisher.close_reason(), None);
}

#[test]
fn stalled_handshake_is_evicted_like_a_subscriber() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options().stall(Duration::from_millis(100))).unwrap();
    let mut manual = ManualActor::offered(&address);
    let start = Instant::now();
    let mut count = 0;
    fill(&mut publisher, &mut count);
    assert!(
        start.elapsed() < TIME_LIMIT / 2,
        "the whole handshake was waited for"
    );
    assert_eq!(publisher.subscribers().len(), 0);
    manual.ask("ready", "refused");
    // It is refused, and not admitted at a position that is overwritten.
    let refused = publisher.next().unwrap();
    assert!(
        matches!(&refused, PublisherEvent::Refused(refused) if refused.error.code() == "EVICTED"),
        "{refused:?}"
    );
    // The slot is free for the next subscriber.
    let witness = honest(&address);
    publisher.send(b"x").unwrap();
    publisher.end();
    witness.expect("1, end, closed");
}

#[test]
fn opening_the_ring_wipes_it_and_ends_all_channels() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the object has mode 0, so that it takes root to open it");
        return;
    }
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut manual = ManualActor::ready(&address);
    let witness = honest(&address);
    // The subscribers know that they are admitted a moment before the publisher does.
    for _ in [&witness, &manual.0] {
        assert!(matches!(publisher.next(), Ok(PublisherEvent::Subscriber(_))));
    }
    publisher.send(b"the-secret").unwrap();
    manual.ask("sees the-secret", "seen");
    // The lease blocks the open.
    manual.ask("open", "EAGAIN");
    // It may have read the message before.
    let reply = witness.next_line();
    assert!(reply.ends_with(", OBJECT_EXPOSED, exposed"), "{reply}");
    manual.ask("wait", "disconnected");
    let mut gone = [next_gone(&publisher), next_gone(&publisher)];
    gone.sort_unstable_by_key(|(pid, _)| *pid == manual.0.pid());
    assert_eq!(
        gone,
        [
            (witness.pid(), CloseReason::Exposed),
            (manual.0.pid(), CloseReason::Exposed)
        ]
    );
    assert_eq!(publisher.close_reason(), Some(CloseReason::Exposed));
    assert!(matches!(
        publisher.try_send(b"more"),
        Err(Error::ObjectExposed(_))
    ));
    manual.ask("sees the-secret", "not seen");
}

/// The last memory that a batch has handed out is no longer written once the next call is made, whatever that
/// call finds.
#[test]
fn alarm_wipes_the_last_slice_of_a_full_batch() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the object has mode 0, so that it takes root to open it");
        return;
    }
    let (address, _directory) = fresh_address(false);
    let (mut sender, audience) = publish(&address, &options()).unwrap().split();
    // It reads nothing.
    let mut manual = ManualActor::ready(&address);
    let mut batch = sender.batch().unwrap();
    let mut number = 0;
    while let Some(room) = batch.reserve(1000).unwrap() {
        number += 1;
        room.copy_from_slice(&format!("the-secret-{number:02}-").repeat(100).as_bytes()[..1000]);
        assert!(number < 99, "the ring never fills");
    }
    let last = format!("sees the-secret-{number:02}-");
    manual.ask(&last, "seen");
    manual.ask("open", "EAGAIN");
    // The end of the events is reported only after the ring is wiped and all subscribers were reported as
    // gone, including one that is admitted at that very moment.
    let (mut admitted, mut gone) = (0, 0);
    while let Ok(event) = audience.next() {
        match event {
            PublisherEvent::Subscriber(_) => admitted += 1,
            PublisherEvent::Gone(..) => gone += 1,
            _ => {}
        }
    }
    assert_eq!(admitted, gone, "each admitted subscriber is reported as gone");
    assert_eq!(audience.close_reason(), Some(CloseReason::Exposed));
    manual.ask(&last, "not seen");
    drop(batch);
}

#[test]
fn other_users_open_fails_and_raises_no_alarm() {
    let Some(others) = OtherUsers::new() else { return };
    let (address, _directory) = fresh_address(false);
    let any_user = Policy::new().any_executable().uids([0, OTHER_UID]);
    let mut publisher = publish(&address, &options().policy(any_user)).unwrap();
    let manual = others.start("manual", &address);
    manual.expect("offered");
    let mut manual = ManualActor(manual);
    manual.ask("ready", "ready");
    manual.ask("open", "EACCES");
    manual.ask("write", "mapped false, written Err(EPERM), cut Err(EPERM)");
    publisher.send(b"x").unwrap();
    assert_eq!(publisher.close_reason(), None);
}

#[test]
fn closing_the_publisher_wipes_read_messages() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let mut manual = ManualActor::ready(&address);
    publisher.send(b"old-secret").unwrap();
    manual.ask("head 24", "stored");
    publisher.send(b"new-secret").unwrap();
    manual.ask("sees old-secret", "seen");
    drop(publisher);
    manual.ask("wait", "disconnected");
    // The memory is released with the last thread that uses it.
    wait_until(|| {
        manual.0.send_line("sees old-secret");
        manual.0.next_line() == "not seen"
    });
    // Messages that it has not read remain readable to it.
    manual.ask("sees new-secret", "seen");
}

#[test]
fn ring_has_no_descriptor_and_seal_admits_no_subscriber() {
    let (address, _directory) = fresh_address(false);
    // A process with no other shared objects.
    let mut publisher = Actor::start("seals", &[&address.to_string()]);
    publisher.expect("out");
    let witness = honest(&address);
    publisher.expect("0 objects");
    let mut manual = ManualActor::offered(&address);
    publisher.proceed();
    publisher.expect("0 objects, 1 subscriber");
    manual.ask("wait", "disconnected");
    // Another process may take the address, and the admitted subscribers continue.
    let next = publish(&address, &options()).unwrap();
    publisher.proceed();
    witness.expect("1, end, closed");
    publisher.finish();
    drop(next);
}

#[test]
fn publisher_recovers_from_a_descriptor_shortage() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = Actor::start("short", &[&address.to_string()]);
    publisher.expect("out");
    let first = honest(&address);
    publisher.expect("short");
    let second = Actor::start("honest", &[&address.to_string()]);
    publisher.expect("NO_SPACE");
    second.expect("in");
    publisher.proceed();
    first.expect("2, end, closed");
    second.expect("1, end, closed");
    publisher.finish();
}

#[test]
fn stopped_subscriber_is_evicted_and_zombie_is_removed() {
    let (address, _directory) = fresh_address(false);
    // Long enough that the witness never takes as long, even on a busy machine.
    let stall = Duration::from_secs(2);
    let mut publisher = publish(&address, &options().stall(stall)).unwrap();
    let stopped = honest(&address);
    let zombie = honest(&address);
    let witness = honest(&address);
    stopped.stop();
    // Its parent does not wait for it, so it stays as a zombie.
    kill(nix::unistd::Pid::from_raw(zombie.pid()), Signal::SIGKILL).unwrap();
    // The publisher makes no call in the meantime.
    assert_eq!(next_gone(&publisher), (zombie.pid(), CloseReason::Lost));
    let mut count = 0;
    fill(&mut publisher, &mut count);
    assert_eq!(next_gone(&publisher), (stopped.pid(), CloseReason::Evicted));
    publisher.end();
    witness.expect(&format!("{count}, end, closed"));
    stopped.resume();
    let reply = stopped.next_line();
    assert!(reply.ends_with("EVICTED, evicted"), "{reply}");
}

#[test]
fn opening_a_subscribers_object_ends_only_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: it takes root to open what another process has mapped");
        return;
    }
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let opened = honest(&address);
    let witness = honest(&address);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", opened.pid())).unwrap();
    // It can write to one object: its own.
    let own = maps
        .lines()
        .find(|line| line.contains(" rw-s ") && line.contains("/memfd:ringfence"))
        .expect("its control object");
    let range = own.split(' ').next().unwrap();
    let path = format!("/proc/{}/map_files/{range}", opened.pid());
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK;
    let found = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
    assert_eq!(found.unwrap_err(), nix::errno::Errno::EWOULDBLOCK);
    assert_eq!(next_gone(&publisher), (opened.pid(), CloseReason::Exposed));
    let reply = opened.next_line();
    assert!(reply.ends_with("OBJECT_EXPOSED, exposed"), "{reply}");
    publisher.send(b"on").unwrap();
    publisher.end();
    witness.expect("1, end, closed");
}

/// The program does not take its events: the address stays open, and the number of kept events is bounded.
#[test]
fn admission_flood_does_not_disturb_subscribers() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let witness = honest(&address);
    let flood = thread::spawn({
        let address = address.clone();
        move || {
            for _ in 0..300 {
                drop(support::wire::connect(&address.to_string()));
            }
        }
    });
    for _ in 0..1000 {
        publisher.send(b"on and on").unwrap();
    }
    flood.join().unwrap();
    publisher.end();
    witness.expect("1000, end, closed");
    wait_until(|| publisher.close_reason().is_some());
}

/// It is rejected as fast as it connects, so there is always one more connection.
#[test]
fn connection_flood_blocks_no_subscriber_and_no_end() {
    let (address, _directory) = fresh_address(false);
    let mut publisher = publish(&address, &options()).unwrap();
    let flood = Actor::start("floods", &[&address.to_string()]);
    flood.expect("floods");
    let witness = honest(&address);
    publisher.send(b"x").unwrap();
    publisher.end();
    // The flood stops when nothing listens any longer.
    flood.finish();
    witness.expect("1, end, closed");
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "the condition did not become true");
        thread::yield_now();
    }
}
