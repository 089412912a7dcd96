//! One half of a channel is awaited by an event loop, the other by a thread: a wakeup does not say which of
//! them it is for.

mod support;

use std::{
    fs,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    unistd::gettid,
};
use ringfence::{Address, Channel, Error, Receiver, Sender, Tokens, join};
use support::{Actor, TIME_LIMIT, forbid, fresh_address, join_later, small, wait_for_host};

/// The way in which a half waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In a call without a deadline.
    Thread,
    /// In a call with one.
    Until,
    /// By an event loop, which polls the line.
    Loop,
    /// By an edge-triggered event loop.
    Edge,
    /// By each of these in turn.
    Changing,
    /// By one event loop for both halves; the other half's way is ignored then.
    OneLoop,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::Thread,
        Self::Until,
        Self::Loop,
        Self::Edge,
        Self::Changing,
        Self::OneLoop,
    ];
    /// Messages before the next way is used: more than a thread polls before it reads.
    const TURN: u64 = 75;

    fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|way| format!("{way:?}") == name);
        found.expect("a way")
    }

    fn of_message(self, number: u64) -> Self {
        if self != Self::Changing {
            return self;
        }
        Self::ALL[usize::try_from(number / Self::TURN % 4).unwrap()]
    }
}

/// Waits on the line.
struct EventLoop(Option<Epoll>);

impl EventLoop {
    fn wait(&mut self, way: Way, line: &impl AsFd) {
        let found = if way == Way::Loop {
            let mut polled = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::try_from(TIME_LIMIT).unwrap()).unwrap() > 0
        } else {
            let epoll = self.0.get_or_insert_with(|| {
                let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                epoll.add(line, EpollEvent::new(flags, 0)).unwrap();
                epoll
            });
            let timeout = EpollTimeout::try_from(TIME_LIMIT).unwrap();
            epoll.wait(&mut [EpollEvent::empty()], timeout).unwrap() > 0
        };
        assert!(found, "no wakeup arrived");
    }
}

/// The system calls behind epoll_wait(2).
#[cfg(target_arch = "x86_64")]
const EPOLL: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
#[cfg(not(target_arch = "x86_64"))]
const EPOLL: &[libc::c_long] = &[libc::SYS_epoll_pwait];

fn far() -> Option<Instant> {
    Instant::now().checked_add(TIME_LIMIT)
}

/// Each message starts with its number, so that a misplaced one is detected.
fn message(number: u64, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

/// Waits for room in all the ways that a program can.
fn send_all(sender: &mut Sender, way: Way, traffic: &Traffic, progress: &AtomicU64) {
    let mut event_loop = EventLoop(None);
    for number in 0..traffic.messages {
        let message = message(number, traffic.length);
        while !sender.try_send(&message).unwrap() {
            match way.of_message(number) {
                Way::Thread => assert!(sender.wait(message.len(), None).unwrap()),
                Way::Until => assert!(sender.wait(message.len(), far()).unwrap(), "no wakeup arrived"),
                way => {
                    if sender.arm(message.len()).unwrap() {
                        event_loop.wait(way, sender);
                        sender.poll_line();
                        sender.disarm();
                    }
                }
            }
        }
        progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for messages in the same ways.
fn receive_all(receiver: &mut Receiver, way: Way, traffic: &Traffic, progress: &AtomicU64) {
    let mut event_loop = EventLoop(None);
    let mut into = vec![0; traffic.length];
    for number in 0..traffic.messages {
        loop {
            if receiver.try_receive(&mut into).unwrap().is_some() {
                assert_eq!(into[..8], number.to_le_bytes());
                break;
            }
            assert!(!receiver.is_ended().unwrap(), "the other process has failed");
            match way.of_message(number) {
                Way::Thread => assert!(receiver.wait_readable(None).unwrap()),
                Way::Until => assert!(receiver.wait_readable(far()).unwrap(), "no wakeup arrived"),
                way => {
                    if receiver.arm().unwrap() {
                        event_loop.wait(way, receiver);
                        receiver.poll_line().unwrap();
                        receiver.disarm();
                    }
                }
            }
        }
        progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for room and for messages at once.
fn exchange_in_one_loop(channel: &mut (Sender, Receiver), traffic: &Traffic, progress: &AtomicU64) {
    let (sender, receiver) = channel;
    let mut into = vec![0; traffic.length];
    let (mut sent, mut read) = (0, 0);
    while sent < traffic.messages || read < traffic.messages {
        let before = sent + read;
        while sent < traffic.messages && sender.try_send(&message(sent, traffic.length)).unwrap() {
            sent += 1;
        }
        while read < traffic.messages && receiver.try_receive(&mut into).unwrap().is_some() {
            assert_eq!(into[..8], read.to_le_bytes());
            read += 1;
        }
        progress.fetch_add(sent + read - before, Ordering::Relaxed);
        let waits_for_room = sent < traffic.messages && sender.arm(traffic.length).unwrap();
        let waits_for_message = read < traffic.messages && receiver.arm().unwrap();
        if waits_for_room == (sent < traffic.messages)
            && waits_for_message == (read < traffic.messages)
            && (waits_for_room || waits_for_message)
        {
            EventLoop(None).wait(Way::Loop, receiver);
            receiver.poll_line().unwrap();
            sender.refresh();
        }
        sender.disarm();
        receiver.disarm();
    }
}

/// Passes tokens there and back, one at a time.
fn pass_tokens(tokens: &Tokens, traffic: &Traffic, starts: bool, progress: &AtomicU64) {
    for number in 0..traffic.tokens {
        if starts {
            tokens.send(number).unwrap();
        }
        assert_eq!(tokens.token_until(far().unwrap()).unwrap(), Some(number));
        if !starts {
            tokens.send(number).unwrap();
        }
        progress.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy)]
struct Traffic {
    messages: u64,
    length: usize,
    tokens: u64,
}

/// The work of one thread. It returns the handle that it has used.
type Work = Box<dyn FnOnce(&AtomicU64) -> Box<dyn Send> + Send>;

/// Runs all parts of a channel concurrently, each on a thread. Fails if there is no more progress.
fn run(channel: Channel, [outward, inward]: [Way; 2], traffic: Traffic, starts: bool) {
    let tokens = channel.tokens();
    let (mut sender, mut receiver) = channel.split();
    let progress = Arc::new(AtomicU64::new(0));
    let (done, ended) = mpsc::channel::<Box<dyn Send>>();
    let start = |work: Work| {
        let (progress, done) = (Arc::clone(&progress), done.clone());
        thread::spawn(move || done.send(work(&progress)).unwrap());
    };
    let halves = if outward == Way::OneLoop || inward == Way::OneLoop {
        start(Box::new(move |progress| {
            let mut halves = (sender, receiver);
            exchange_in_one_loop(&mut halves, &traffic, progress);
            Box::new(halves)
        }));
        1
    } else {
        start(Box::new(move |progress| {
            send_all(&mut sender, outward, &traffic, progress);
            Box::new(sender)
        }));
        start(Box::new(move |progress| {
            receive_all(&mut receiver, inward, &traffic, progress);
            Box::new(receiver)
        }));
        2
    };
    start(Box::new(move |progress| {
        pass_tokens(&tokens, &traffic, starts, progress);
        Box::new(tokens)
    }));
    // Dropped together: the channel stays open until all parts are done.
    let mut parts = Vec::new();
    while parts.len() < halves + 1 {
        let before = progress.load(Ordering::Relaxed);
        match ended.recv_timeout(TIME_LIMIT) {
            Ok(part) => parts.push(part),
            Err(_) => assert_ne!(
                progress.load(Ordering::Relaxed),
                before,
                "no progress: sends by {outward:?}, receives by {inward:?}"
            ),
        }
    }
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "other" => {}
        "without descriptors" => return arm_without_descriptors(&address),
        "echo" => return echo(&address),
        other => unreachable!("{other}"),
    }
    let [messages, length, tokens] = [1, 2, 3].map(|index| arguments[index].parse::<u64>().unwrap());
    let ways = [4, 5].map(|index| Way::named(&arguments[index]));
    let traffic = Traffic {
        messages,
        length: length.try_into().unwrap(),
        tokens,
    };
    run(join(&address, &small()).unwrap(), ways, traffic, true);
}

/// Runs the traffic between two processes, each of whose halves waits in these ways.
fn meet(own: [Way; 2], others: [Way; 2], traffic: Traffic) {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let mut arguments = vec![
        address.to_string(),
        traffic.messages.to_string(),
        traffic.length.to_string(),
        traffic.tokens.to_string(),
    ];
    arguments.extend(others.map(|way| format!("{way:?}")));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let other = Actor::start("other", &arguments);
    run(host.join().unwrap().expect("a channel"), own, traffic, false);
    other.finish();
}

/// Two messages fill the ring, so that both halves sleep all the time.
const TRAFFIC: Traffic = Traffic {
    messages: 5000,
    length: 1500,
    tokens: 500,
};

#[test]
fn receiving_loop_and_sending_thread_miss_nothing() {
    for (receives, sends) in [(Way::Loop, Way::Thread), (Way::Edge, Way::Until)] {
        meet([sends, receives], [sends, receives], TRAFFIC);
    }
}

#[test]
fn sending_loop_and_receiving_thread_miss_nothing() {
    for (sends, receives) in [(Way::Loop, Way::Thread), (Way::Edge, Way::Until)] {
        meet([sends, receives], [sends, receives], TRAFFIC);
    }
}

#[test]
fn changing_the_way_of_waiting_misses_nothing() {
    for fixed in [Way::Thread, Way::Until] {
        meet([fixed, Way::Changing], [Way::Changing, fixed], TRAFFIC);
    }
}

fn echo(address: &Address) {
    let (mut sender, mut receiver) = join(address, &small()).unwrap().split();
    let mut into = [0; 8];
    while let Some(length) = receiver.receive(&mut into).unwrap() {
        sender.send(&into[..length]).unwrap();
    }
}

/// A thread that sleeps in a read of the line would consume the wakeup of an event loop that starts now.
fn arm_without_descriptors(address: &Address) {
    let (mut sender, mut receiver) = join(address, &small()).unwrap().split();
    let (tx, rx) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut into = [0; 8];
        tx.send(gettid()).unwrap();
        while receiver.receive(&mut into).unwrap() == Some(8) {}
        receiver
    });
    let file = format!("/proc/self/task/{}/syscall", rx.recv().unwrap());
    let end = Instant::now() + TIME_LIMIT;
    while !fs::read_to_string(&file)
        .unwrap()
        .starts_with(&format!("{} ", libc::SYS_recvmsg))
    {
        // Each answer is one more wait.
        sender.try_send(&[0; 8]).unwrap();
        assert!(Instant::now() < end, "the thread does not sleep in a read");
    }
    forbid(libc::SYS_epoll_create1, None, libc::EMFILE);
    let armed = sender.arm(1000);
    assert!(matches!(armed, Err(Error::NoSpace { .. })), "{armed:?}");
    // The channel still works. That thread sleeps in another way from now on.
    while !fs::read_to_string(&file)
        .is_ok_and(|call| EPOLL.iter().any(|epoll| call.starts_with(&format!("{epoll} "))))
    {
        sender.try_send(&[0; 8]).unwrap();
        assert!(Instant::now() < end, "the thread does not use epoll");
    }
    sender.arm(1000).unwrap();
    sender.disarm();
    sender.end();
    drop(reading.join().unwrap());
}

#[test]
fn arming_a_loop_without_descriptors_fails() {
    let (address, _keep) = fresh_address(false);
    let echo = Actor::start("echo", &[&address.to_string()]);
    wait_for_host(&address);
    Actor::start("without descriptors", &[&address.to_string()]).finish();
    echo.finish();
}

/// Four pairs of processes at a time, in random ways, for the number of seconds in `RINGFENCE_SOAK`: see
/// scripts/test.mjs.
#[test]
#[ignore = "runs for RINGFENCE_SOAK seconds"]
fn soak() {
    let seconds = std::env::var("RINGFENCE_SOAK").map_or(60, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let next = AtomicU64::new(u64::from(std::process::id()));
    let runs = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < end {
                    // The drawn values are printed on failure.
                    let mut drawn = next
                        .fetch_add(1, Ordering::Relaxed)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut draw = |among: u64| {
                        drawn = drawn.rotate_left(23).wrapping_mul(0xd134_2543_de82_ef95);
                        usize::try_from((drawn >> 33) % among).unwrap()
                    };
                    // Two event loops for one channel are not supported.
                    let mut ways = || loop {
                        let ways = [Way::ALL[draw(6)], Way::ALL[draw(6)]];
                        let threads = [Way::Thread, Way::Until];
                        if ways.contains(&Way::OneLoop) || ways.iter().any(|way| threads.contains(way)) {
                            return ways;
                        }
                    };
                    let (own, others) = (ways(), ways());
                    let traffic = Traffic {
                        messages: 3000,
                        length: [8, 300, 1024, 1500][draw(4)],
                        tokens: [0, 300][draw(2)],
                    };
                    meet(own, others, traffic);
                    runs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} pairs, each of 6,000 messages", runs.into_inner());
}
