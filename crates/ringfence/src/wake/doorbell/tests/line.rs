//! The line itself, on real sockets.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt},
        time::TimeVal,
    },
    unistd::{Pid, gettid},
};

use crate::{
    fork::Birth,
    sys,
    wake::attachments::Attachments,
    wake::doorbell::{Doorbell, POLLS_BEFORE_A_READ, Sleep},
};

/// Ends a test that has failed already.
const FAR: Duration = Duration::from_secs(60);

fn line() -> (Doorbell, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (own, peer) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    (
        Doorbell::new(own, None, Attachments::none(), false, Birth::now().unwrap()),
        peer,
    )
}

/// Closes the peer's end, and waits until the line has ended: a child that another test starts has a copy until it executes its program.
fn close(peer: OwnedFd, doorbell: &Doorbell) {
    drop(peer);
    let line = doorbell.line.as_fd();
    let limit = PollTimeout::try_from(FAR).unwrap();
    // POLLHUP is reported without being requested.
    assert_eq!(poll(&mut [PollFd::new(line, PollFlags::empty())], limit), Ok(1));
}

/// The process at the other end of a line: it does nothing, until it is killed.
struct Peer(Child);

impl Peer {
    fn new() -> Self {
        // It waits for the end of its input.
        Self(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap())
    }

    /// A line to it. Its end is held here, as another process may hold that of a process that is dead.
    fn line(&self) -> (Doorbell, OwnedFd) {
        let (doorbell, end) = line();
        let pidfd = sys::process::pidfd_open(Pid::from_raw(self.0.id().cast_signed())).unwrap();
        let doorbell = Doorbell {
            pidfd: Some(Arc::new(pidfd)),
            ..doorbell
        };
        (doorbell, end)
    }

    /// The same, where every wait without a deadline reads.
    fn line_to_read(&self) -> (Doorbell, OwnedFd) {
        let (doorbell, end) = self.line();
        doorbell.state.lock().unwrap().sleep = Sleep::NotYet(0);
        (doorbell, end)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A thread that waits without a deadline. A test that fails wakes it, and so does not hang.
struct Sleeper<'scope> {
    doorbell: &'scope Doorbell,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl<'scope> Sleeper<'scope> {
    fn new(scope: &'scope thread::Scope<'scope, '_>, doorbell: &'scope Doorbell) -> (Self, Pid) {
        let generation = doorbell.generation();
        let (tell, told) = mpsc::channel();
        let thread = scope.spawn(move || {
            tell.send(gettid()).unwrap();
            assert!(doorbell.wait(generation, None).unwrap());
        });
        (Self { doorbell, thread }, told.recv().unwrap())
    }

    /// Asleep in this system call when it returns.
    fn asleep(
        scope: &'scope thread::Scope<'scope, '_>,
        doorbell: &'scope Doorbell,
        call: libc::c_long,
    ) -> Self {
        Self::asleep_in_one_of(scope, doorbell, &[call])
    }

    fn asleep_in_one_of(
        scope: &'scope thread::Scope<'scope, '_>,
        doorbell: &'scope Doorbell,
        calls: &[libc::c_long],
    ) -> Self {
        let (sleeper, id) = Self::new(scope, doorbell);
        let file = format!("/proc/self/task/{id}/syscall");
        let sleeps = |found: String| calls.iter().any(|call| found.starts_with(&format!("{call} ")));
        let end = Instant::now() + FAR;
        while !std::fs::read_to_string(&file).is_ok_and(sleeps) {
            let sleeps = !sleeper.thread.is_finished() && Instant::now() < end;
            assert!(sleeps, "not in that call");
            thread::yield_now();
        }
        sleeper
    }

    fn must_wake(&self) {
        let end = Instant::now() + FAR;
        while !self.thread.is_finished() {
            assert!(Instant::now() < end, "it is not woken");
            thread::yield_now();
        }
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.doorbell.shut_both();
        }
    }
}

/// The system call of poll(2). Some kernels have only ppoll(2) (arm64).
#[cfg(target_arch = "x86_64")]
const POLL: libc::c_long = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
const POLL: libc::c_long = libc::SYS_ppoll;

/// The system calls of epoll_wait(2).
#[cfg(target_arch = "x86_64")]
const EPOLL: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
#[cfg(not(target_arch = "x86_64"))]
const EPOLL: &[libc::c_long] = &[libc::SYS_epoll_pwait];

fn set_mode(end: impl AsFd, blocks: bool) {
    let flags = fcntl(&end, FcntlArg::F_GETFL)
        .map(OFlag::from_bits_retain)
        .unwrap();
    let flags = if blocks {
        flags - OFlag::O_NONBLOCK
    } else {
        flags | OFlag::O_NONBLOCK
    };
    fcntl(&end, FcntlArg::F_SETFL(flags)).unwrap();
}

fn far() -> Option<Instant> {
    Instant::now().checked_add(FAR)
}

fn ring(peer: &OwnedFd) {
    assert_eq!(send(peer.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT), Ok(1));
}

#[test]
fn a_bell_rung_before_the_wait_is_not_slept_through() {
    let (doorbell, peer) = line();
    let generation = doorbell.generation();
    ring(&peer);
    assert!(doorbell.wait(generation, far()).unwrap());
    // Nor is a wakeup lost that another thread has read in the meantime.
    let generation = doorbell.generation();
    ring(&peer);
    assert!(doorbell.read_wakeups());
    assert!(doorbell.wait(generation, far()).unwrap());
    assert!(!doorbell.is_gone());
}

#[test]
fn a_deadline_that_passes_is_no_bell() {
    let (doorbell, _peer) = line();
    let before = Instant::now();
    let deadline = before.checked_add(Duration::from_millis(20));
    assert!(!doorbell.wait(doorbell.generation(), deadline).unwrap());
    assert!(before.elapsed() >= Duration::from_millis(20));
    assert!(
        !doorbell.wait(doorbell.generation(), Some(before)).unwrap(),
        "long past"
    );
}

#[test]
fn an_end_of_the_line_wakes_and_stays() {
    let (doorbell, peer) = line();
    // The wakeup before the end is read, and then the end is noticed.
    ring(&peer);
    drop(peer);
    while !doorbell.is_gone() {
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    }
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(!doorbell.read_wakeups());
    doorbell.wake_peer();
}

/// The line has failed then (ECONNRESET), which libuv tells once.
#[test]
fn an_end_behind_a_bell_is_found_at_once_though_the_peer_has_left_bells_unread() {
    let (doorbell, peer) = line();
    doorbell.wake_peer();
    ring(&peer);
    close(peer, &doorbell);
    assert!(!doorbell.read_wakeups());
}

#[test]
fn a_wait_beside_the_line_tells_of_an_end_that_another_thread_has_seen() {
    let (doorbell, peer) = line();
    let (silent, _kept) = nix::unistd::pipe().unwrap();
    close(peer, &doorbell);
    // As a sending thread does, which may not have notified the waiters yet.
    doorbell.check_peer();
    assert!(doorbell.is_gone());
    assert!(
        doorbell.wait_for_token(silent.as_fd(), far()).unwrap(),
        "it waited to the deadline"
    );
}

#[test]
fn hanging_up_wakes_the_waiters_of_both_sides() {
    let (doorbell, peer) = line();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| doorbell.wait(doorbell.generation(), far()).unwrap()))
            .collect();
        doorbell.shut_both();
        for thread in waiting {
            assert!(thread.join().unwrap());
        }
    });
    assert!(doorbell.is_gone());
    assert_eq!(recv(peer.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Ok(0));
}

#[test]
fn one_bell_wakes_every_thread_that_waits() {
    let (doorbell, peer) = line();
    let generation = doorbell.generation();
    let (woken, count) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..4 {
            let woken = woken.clone();
            let doorbell = &doorbell;
            scope.spawn(move || woken.send(doorbell.wait(generation, far()).unwrap()).unwrap());
        }
        ring(&peer);
        for _ in 0..4 {
            assert!(count.recv().unwrap(), "not the deadline");
        }
    });
}

fn unread(peer_of: &Doorbell) -> bool {
    let mut byte = [0];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    recv(peer_of.line.as_raw_fd(), &mut byte, flags) == Ok(1)
}

#[test]
fn a_bell_is_left_on_the_line_until_a_half_parks_again() {
    let (doorbell, peer) = line();
    ring(&peer);
    assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    assert!(unread(&doorbell));
    assert!(doorbell.catch_up());
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up(), "nothing is left");
    // The same for an event loop, which comes again where no half parks.
    ring(&peer);
    let generation = doorbell.generation();
    doorbell.defer_wakeups();
    assert!(unread(&doorbell));
    assert!(doorbell.wait(generation, None).unwrap(), "it was heard");
    doorbell.defer_wakeups();
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up());
    // What is left there does not hide the end.
    ring(&peer);
    doorbell.defer_wakeups();
    drop(peer);
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(doorbell.is_gone());
}

#[test]
fn two_that_wait_take_no_bell_from_each_other() {
    let (doorbell, end) = line();
    two_wait(&doorbell, &end, [far(), far()]);
    let peer = Peer::new();
    for deadlines in [[None, None], [None, far()]] {
        let (doorbell, end) = peer.line_to_read();
        two_wait(&doorbell, &end, deadlines);
    }
}

/// Two halves of a channel wait on two threads, each for its own; a bell that one of them reads may be the other's.
fn two_wait(doorbell: &Doorbell, peer: &OwnedFd, deadlines: [Option<Instant>; 2]) {
    const TURNS: u64 = 20_000;
    let halves = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 2];
    thread::scope(|scope| {
        let (done, both) = mpsc::channel();
        for ((said, parked), deadline) in halves.iter().zip(deadlines) {
            let done = done.clone();
            scope.spawn(move || {
                let mut sleeps = 1;
                for turn in 1..=TURNS {
                    while said.load(Ordering::SeqCst) < turn {
                        doorbell.catch_up();
                        let generation = doorbell.generation();
                        sleeps += 2;
                        parked.store(sleeps, Ordering::SeqCst);
                        if said.load(Ordering::SeqCst) < turn {
                            let woken = doorbell.wait(generation, deadline).unwrap();
                            assert!(woken && !doorbell.is_gone(), "a bell was lost");
                        }
                        parked.store(0, Ordering::SeqCst);
                    }
                }
                done.send(()).unwrap();
            });
        }
        let mut rung = [0; 2];
        for turn in 1..=TURNS {
            for ((said, parked), rung) in halves.iter().zip(&mut rung) {
                said.store(turn, Ordering::SeqCst);
                let sleeps = parked.load(Ordering::SeqCst);
                if sleeps != 0 && sleeps != *rung {
                    *rung = sleeps;
                    ring(peer);
                }
                if turn % 7 == 0 {
                    thread::yield_now();
                }
            }
        }
        for _ in 0..2 {
            if both.recv_timeout(FAR).is_err() {
                // A thread that waits without a deadline would wait for ever.
                doorbell.shut_both();
            }
        }
    });
}

#[test]
fn a_peer_that_never_reads_blocks_no_call() {
    let (doorbell, peer) = line();
    // The peer made the pair, and can change the mode of what both share.
    set_mode(&*doorbell.line, true);
    for _ in 0..1_000_000 / 64 {
        doorbell.wake_peer();
    }
    let mut bells = vec![0; 1 << 20];
    assert!(recv(peer.as_raw_fd(), &mut bells, MsgFlags::MSG_DONTWAIT).unwrap() > 0);
    // An empty line in that mode blocks no call either.
    assert!(doorbell.read_wakeups());
}

#[test]
fn a_peer_whose_bells_have_no_end_keeps_no_call() {
    let (doorbell, peer) = line();
    while send(peer.as_raw_fd(), &[7; 4096], MsgFlags::MSG_DONTWAIT).is_ok() {}
    let generation = doorbell.generation();
    assert!(doorbell.wait(generation, far()).unwrap());
    for _ in 0..1000 {
        assert!(doorbell.read_wakeups());
    }
    let deadline = Instant::now().checked_add(Duration::from_millis(1));
    assert!(
        !doorbell.wait(doorbell.generation(), deadline).unwrap(),
        "all was read"
    );
}

#[test]
fn a_thread_that_waits_often_reads_the_bell_at_once() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line();
    for _ in 0..POLLS_BEFORE_A_READ {
        assert!(!matches!(doorbell.state.lock().unwrap().sleep, Sleep::Reading));
        ring(&end);
        assert!(doorbell.wait(doorbell.generation(), None).unwrap());
        assert!(doorbell.catch_up());
    }
    thread::scope(|scope| {
        let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        ring(&end);
        waiting.must_wake();
    });
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up());
    assert!(!doorbell.is_gone());
    // With a deadline it is as before.
    ring(&end);
    assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    assert!(unread(&doorbell));
    // The leftover wakeup is reported once more, and then consumed.
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(!doorbell.catch_up());
}

#[test]
fn a_death_ends_a_read_though_another_process_holds_the_end_of_the_line() {
    let mut peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    let (unwatched, _end) = peer.line_to_read();
    let other = Peer::new();
    let (unharmed, others_end) = other.line_to_read();
    thread::scope(|scope| {
        let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        let others = Sleeper::asleep(scope, &unharmed, libc::SYS_recvmsg);
        peer.kill();
        waiting.must_wake();
        assert!(doorbell.is_gone());
        ring(&others_end);
        others.must_wake();
        assert!(!unharmed.is_gone());
    });
    assert_eq!(
        send(
            end.as_raw_fd(),
            &[1],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL
        ),
        Err(Errno::EPIPE),
        "the process that holds the end wakes no thread with it"
    );
    // It was dead before any thread watched.
    thread::scope(|scope| Sleeper::new(scope, &unwatched).0.must_wake());
    assert!(unwatched.is_gone());
}

#[test]
fn an_end_of_the_line_and_hanging_up_end_a_read() {
    let peer = Peer::new();
    for hangs_up in [true, false] {
        let (doorbell, end) = peer.line_to_read();
        thread::scope(|scope| {
            let reads = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
            let waits = Sleeper::asleep(scope, &doorbell, libc::SYS_futex);
            if hangs_up {
                doorbell.shut_both();
            } else {
                // What this side has rung was not read: then it ends with an error.
                doorbell.wake_peer();
                drop(end);
            }
            reads.must_wake();
            waits.must_wake();
        });
        assert!(doorbell.is_gone());
    }
}

#[test]
fn one_that_reads_wakes_those_that_wait_for_it() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    thread::scope(|scope| {
        let reads = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        let waits = Sleeper::asleep(scope, &doorbell, libc::SYS_futex);
        ring(&end);
        reads.must_wake();
        waits.must_wake();
    });
    assert!(!doorbell.is_gone());
}

/// The guest, which made the line, may have kept a descriptor of what it passed on.
#[test]
fn a_peer_that_changes_the_mode_of_the_line_is_polled_for() {
    let peer = Peer::new();
    let harms: [fn(&OwnedFd); 2] = [
        |line| set_mode(line, false),
        |line| setsockopt(line, sockopt::ReceiveTimeout, &TimeVal::new(0, 1000)).unwrap(),
    ];
    for harm in harms {
        // While no thread waits.
        let (doorbell, end) = peer.line_to_read();
        ring(&end);
        assert!(doorbell.wait(doorbell.generation(), None).unwrap());
        harm(&doorbell.line);
        thread::scope(|scope| {
            let waiting = Sleeper::asleep(scope, &doorbell, POLL);
            ring(&end);
            waiting.must_wake();
        });
        assert!(doorbell.catch_up(), "the bell is on the line, as after any poll");
        // While one does, which is not disturbed.
        let (doorbell, end) = peer.line_to_read();
        thread::scope(|scope| {
            let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
            harm(&doorbell.line);
            ring(&end);
            waiting.must_wake();
            let waiting = Sleeper::asleep(scope, &doorbell, POLL);
            ring(&end);
            waiting.must_wake();
        });
        assert!(!doorbell.is_gone());
    }
}

#[test]
fn an_event_loop_finds_the_bell_on_the_line() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    let _ = doorbell.line();
    ring(&end);
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(unread(&doorbell));
}

#[test]
fn without_a_pidfd_no_wait_reads() {
    let (doorbell, end) = line();
    doorbell.state.lock().unwrap().sleep = Sleep::NotYet(0);
    ring(&end);
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(unread(&doorbell));
    assert!(matches!(doorbell.state.lock().unwrap().sleep, Sleep::Polling));
}

/// Whether an event loop is woken.
fn readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
}

#[test]
fn a_loop_finds_the_peers_death_though_this_process_may_not_shut_the_line() {
    let mut peer = Peer::new();
    let (doorbell, _end) = peer.line();
    let doorbell = Doorbell {
        can_shut: false,
        ..doorbell
    };
    doorbell.poll_line_only().unwrap();
    let polled = doorbell.try_line().unwrap();
    assert!(!doorbell.arm().unwrap() && !readable(polled) && doorbell.read_wakeups());
    peer.kill();
    assert!(readable(polled) && !doorbell.read_wakeups());
}

#[test]
fn a_bell_that_a_loop_takes_wakes_the_thread_beside_it() {
    let (doorbell, peer) = line();
    assert!(!doorbell.arm().unwrap());
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        // Sent and consumed in one moment from the thread's view: it does not run in between, or finds the line empty.
        let state = doorbell.state.lock().unwrap();
        ring(&peer);
        drop(state);
        assert!(doorbell.read_wakeups());
        sleeper.must_wake();
    });
    // If the loop was faster, the thread assumes that it has left a wakeup there.
    assert!(doorbell.read_wakeups());
    // Nothing but the loop's word.
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        doorbell.defer_wakeups();
        sleeper.must_wake();
    });
    assert!(doorbell.arm().unwrap());
    // The loop takes it, and the thread has not slept yet.
    let generation = doorbell.generation();
    ring(&peer);
    assert!(doorbell.read_wakeups());
    assert!(doorbell.wait(generation, None).unwrap());
}

#[test]
fn a_thread_leaves_a_loop_one_bell_and_hears_each_that_follows() {
    let (doorbell, peer) = line();
    let polled = doorbell.line();
    for _ in 0..3 {
        ring(&peer);
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
        assert!(doorbell.catch_up());
        assert!(readable(polled));
        assert_eq!(sys::socket::unread(polled), Ok(1), "the line does not fill");
        // It is not woken again by what stays there.
        assert!(!doorbell.catch_up());
        let soon = Instant::now().checked_add(Duration::from_millis(1));
        assert!(!doorbell.wait(doorbell.generation(), soon).unwrap());
    }
    // Nor where the loop takes that one: the thread knows of it.
    let generation = doorbell.generation();
    assert!(doorbell.read_wakeups());
    assert_eq!(doorbell.generation(), generation);
    assert!(!readable(polled));
    // A half that is armed finds the line empty as well.
    ring(&peer);
    assert!(doorbell.wait(generation, far()).unwrap());
    assert!(doorbell.catch_up());
    assert!(doorbell.arm().unwrap());
    assert!(!readable(polled));
    // The end is not hidden by what stays.
    ring(&peer);
    drop(peer);
    while !doorbell.is_gone() {
        doorbell.catch_up();
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    }
    assert!(readable(polled));
}

/// The thread went to sleep when there was no loop, and nothing but a bell wakes it.
#[test]
fn a_loop_that_begins_beside_a_thread_that_sleeps_gets_its_bell_and_leaves_the_thread_one() {
    let peer = Peer::new();
    for (begins_with_arm, reads) in [(true, true), (false, true), (true, false), (false, false)] {
        let (doorbell, end) = if reads { peer.line_to_read() } else { peer.line() };
        let call = if reads { libc::SYS_recvmsg } else { POLL };
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep(scope, &doorbell, call);
            if begins_with_arm {
                assert!(!doorbell.arm().unwrap());
            }
            let polled = doorbell.line();
            assert_eq!(polled.as_raw_fd() != doorbell.line.as_raw_fd(), reads);
            assert!(!readable(polled));
            if !begins_with_arm {
                assert!(!doorbell.arm().unwrap());
            }
            // It may be for either. The loop is notified although the thread consumes it.
            ring(&end);
            sleeper.must_wake();
            assert!(readable(polled));
            assert!(doorbell.read_wakeups());
            assert!(!readable(polled));
        });
        // The same where the loop is first.
        let (doorbell, end) = if reads { peer.line_to_read() } else { peer.line() };
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep(scope, &doorbell, call);
            assert!(!doorbell.arm().unwrap());
            let state = doorbell.state.lock().unwrap();
            ring(&end);
            drop(state);
            assert!(doorbell.read_wakeups());
            sleeper.must_wake();
        });
        // If the thread was first, it has left the wakeup there.
        assert!(doorbell.read_wakeups());
        // From now on no thread sleeps so.
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
            ring(&end);
            sleeper.must_wake();
        });
    }
}

#[test]
fn a_death_and_hanging_up_wake_a_thread_beside_a_loop() {
    let mut peer = Peer::new();
    // The end of the line is held by another process than the peer.
    let (doorbell, _end) = peer.line();
    let _ = doorbell.line();
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        peer.kill();
        sleeper.must_wake();
    });
    assert!(doorbell.is_gone());
    for silently in [false, true] {
        let (doorbell, _peer) = line();
        let _ = doorbell.line();
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
            if silently {
                doorbell.shut_write();
            } else {
                doorbell.shut_both();
            }
            sleeper.must_wake();
        });
    }
}

#[test]
fn a_line_that_is_waited_for_in_one_way_has_no_descriptors_of_its_own() {
    let (threads, peer) = line();
    ring(&peer);
    assert!(threads.wait(threads.generation(), far()).unwrap());
    assert!(threads.catch_up());
    let (looped, peer) = line();
    assert!(!looped.arm().unwrap());
    ring(&peer);
    assert!(readable(looped.line()));
    assert!(looped.read_wakeups());
    for doorbell in [threads, looped] {
        assert!(doorbell.loop_poll().is_none());
        assert!(doorbell.thread_poll.get().is_none());
    }
}

#[test]
fn a_bell_is_rung_once_and_counted() {
    let (doorbell, end) = line();
    for count in 1..=3 {
        doorbell.wake_peer();
        assert_eq!(sys::socket::unread(&end), Ok(count));
        assert_eq!(doorbell.wakeups_sent().load(Ordering::Relaxed), count as u64);
    }
}

/// An event loop reports a reset line only once. A line is reset if the peer left a wakeup unread. Before the end lies more
/// than an honest peer ever sends.
#[test]
fn the_end_behind_much_that_is_no_bell_is_found_by_one_look() {
    for (pieces, reset) in [(1, false), (1, true), (40, false), (40, true)] {
        let (doorbell, peer) = line();
        if reset {
            doorbell.wake_peer();
        }
        for _ in 0..pieces {
            assert_eq!(send(peer.as_raw_fd(), &[7; 512], MsgFlags::MSG_DONTWAIT), Ok(512));
        }
        assert!(doorbell.read_wakeups(), "it is there");
        for _ in 0..pieces {
            assert_eq!(send(peer.as_raw_fd(), &[7; 512], MsgFlags::MSG_DONTWAIT), Ok(512));
        }
        close(peer, &doorbell);
        assert!(!doorbell.read_wakeups(), "{pieces} pieces, reset: {reset}");
    }
}
