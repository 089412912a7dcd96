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
    fork::OwnerProcess,
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
        Doorbell::new(
            own,
            None,
            Attachments::none(),
            false,
            OwnerProcess::current().unwrap(),
        ),
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
        let (tx, rx) = mpsc::channel();
        let thread = scope.spawn(move || {
            tx.send(gettid()).unwrap();
            assert!(doorbell.wait(generation, None).unwrap());
        });
        (Self { doorbell, thread }, rx.recv().unwrap())
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

    fn expect_woken(&self) {
        let end = Instant::now() + FAR;
        while !self.thread.is_finished() {
            assert!(Instant::now() < end, "the thread is not woken");
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

fn send_wakeup(peer: &OwnedFd) {
    assert_eq!(send(peer.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT), Ok(1));
}

#[test]
fn wakeup_before_the_wait_is_not_lost() {
    let (doorbell, peer) = line();
    let generation = doorbell.generation();
    send_wakeup(&peer);
    assert!(doorbell.wait(generation, far()).unwrap());
    // Nor is a wakeup lost that another thread has read in the meantime.
    let generation = doorbell.generation();
    send_wakeup(&peer);
    assert!(doorbell.read_wakeups());
    assert!(doorbell.wait(generation, far()).unwrap());
    assert!(!doorbell.is_gone());
}

#[test]
fn passed_deadline_is_not_a_wakeup() {
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
fn line_end_wakes_and_is_permanent() {
    let (doorbell, peer) = line();
    // The wakeup before the end is read, and then the end is noticed.
    send_wakeup(&peer);
    drop(peer);
    while !doorbell.is_gone() {
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    }
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(!doorbell.read_wakeups());
    doorbell.wake_peer();
}

/// The line has failed then (ECONNRESET), which libuv reports once.
#[test]
fn end_behind_a_wakeup_is_found_on_a_reset_line() {
    let (doorbell, peer) = line();
    doorbell.wake_peer();
    send_wakeup(&peer);
    close(peer, &doorbell);
    assert!(!doorbell.read_wakeups());
}

#[test]
fn token_wait_reports_an_end_seen_by_another_thread() {
    let (doorbell, peer) = line();
    let (silent, _writer) = nix::unistd::pipe().unwrap();
    close(peer, &doorbell);
    // As a sending thread does, which may not have notified the waiters yet.
    doorbell.check_peer();
    assert!(doorbell.is_gone());
    assert!(
        doorbell.wait_for_token(silent.as_fd(), far()).unwrap(),
        "the wait lasted to the deadline"
    );
}

#[test]
fn shutdown_wakes_waiters_on_both_sides() {
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
fn one_wakeup_wakes_every_waiting_thread() {
    let (doorbell, peer) = line();
    let generation = doorbell.generation();
    let (woken, count) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..4 {
            let woken = woken.clone();
            let doorbell = &doorbell;
            scope.spawn(move || woken.send(doorbell.wait(generation, far()).unwrap()).unwrap());
        }
        send_wakeup(&peer);
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
fn wakeup_stays_on_the_line_until_a_half_parks() {
    let (doorbell, peer) = line();
    send_wakeup(&peer);
    assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    assert!(unread(&doorbell));
    assert!(doorbell.catch_up());
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up(), "nothing is left");
    // The same for an event loop, which comes again where no half parks.
    send_wakeup(&peer);
    let generation = doorbell.generation();
    doorbell.defer_wakeups();
    assert!(unread(&doorbell));
    assert!(
        doorbell.wait(generation, None).unwrap(),
        "the wakeup was reported"
    );
    doorbell.defer_wakeups();
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up());
    // An unread wakeup does not hide the end.
    send_wakeup(&peer);
    doorbell.defer_wakeups();
    drop(peer);
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(doorbell.is_gone());
}

#[test]
fn waiters_do_not_steal_wakeups() {
    let (doorbell, end) = line();
    exchange_between_two_waiters(&doorbell, &end, [far(), far()]);
    let peer = Peer::new();
    for deadlines in [[None, None], [None, far()]] {
        let (doorbell, end) = peer.line_to_read();
        exchange_between_two_waiters(&doorbell, &end, deadlines);
    }
}

/// Two halves of a channel wait on two threads, each for its own; a wakeup that one of them reads may be for the other.
fn exchange_between_two_waiters(doorbell: &Doorbell, peer: &OwnedFd, deadlines: [Option<Instant>; 2]) {
    const TURNS: u64 = 20_000;
    let halves = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 2];
    thread::scope(|scope| {
        let (done, both) = mpsc::channel();
        for ((sent_turn, parked), deadline) in halves.iter().zip(deadlines) {
            let done = done.clone();
            scope.spawn(move || {
                let mut sleeps = 1;
                for turn in 1..=TURNS {
                    while sent_turn.load(Ordering::SeqCst) < turn {
                        doorbell.catch_up();
                        let generation = doorbell.generation();
                        sleeps += 2;
                        parked.store(sleeps, Ordering::SeqCst);
                        if sent_turn.load(Ordering::SeqCst) < turn {
                            let woken = doorbell.wait(generation, deadline).unwrap();
                            assert!(woken && !doorbell.is_gone(), "a wakeup was lost");
                        }
                        parked.store(0, Ordering::SeqCst);
                    }
                }
                done.send(()).unwrap();
            });
        }
        let mut last_sleep = [0; 2];
        for turn in 1..=TURNS {
            for ((sent_turn, parked), last_sleep) in halves.iter().zip(&mut last_sleep) {
                sent_turn.store(turn, Ordering::SeqCst);
                let sleeps = parked.load(Ordering::SeqCst);
                if sleeps != 0 && sleeps != *last_sleep {
                    *last_sleep = sleeps;
                    send_wakeup(peer);
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
fn peer_that_never_reads_blocks_no_call() {
    let (doorbell, peer) = line();
    // The peer made the pair, and can change the mode of what both share.
    set_mode(&*doorbell.line, true);
    for _ in 0..1_000_000 / 64 {
        doorbell.wake_peer();
    }
    let mut wakeups = vec![0; 1 << 20];
    assert!(recv(peer.as_raw_fd(), &mut wakeups, MsgFlags::MSG_DONTWAIT).unwrap() > 0);
    // An empty line in that mode blocks no call either.
    assert!(doorbell.read_wakeups());
}

#[test]
fn endless_wakeups_do_not_hang_a_call() {
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
fn frequent_waits_read_the_line_directly() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line();
    for _ in 0..POLLS_BEFORE_A_READ {
        assert!(!matches!(doorbell.state.lock().unwrap().sleep, Sleep::Reading));
        send_wakeup(&end);
        assert!(doorbell.wait(doorbell.generation(), None).unwrap());
        assert!(doorbell.catch_up());
    }
    thread::scope(|scope| {
        let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        send_wakeup(&end);
        waiting.expect_woken();
    });
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up());
    assert!(!doorbell.is_gone());
    // With a deadline it is as before.
    send_wakeup(&end);
    assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    assert!(unread(&doorbell));
    // The leftover wakeup is reported once more, and then consumed.
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(!doorbell.catch_up());
}

#[test]
fn peer_exit_ends_a_read_despite_a_copy_of_the_line() {
    let mut peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    let (unwatched, _end) = peer.line_to_read();
    let other = Peer::new();
    let (unharmed, others_end) = other.line_to_read();
    thread::scope(|scope| {
        let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        let others = Sleeper::asleep(scope, &unharmed, libc::SYS_recvmsg);
        peer.kill();
        waiting.expect_woken();
        assert!(doorbell.is_gone());
        send_wakeup(&others_end);
        others.expect_woken();
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
    thread::scope(|scope| Sleeper::new(scope, &unwatched).0.expect_woken());
    assert!(unwatched.is_gone());
}

#[test]
fn line_end_and_shutdown_end_a_read() {
    let peer = Peer::new();
    for shuts_down in [true, false] {
        let (doorbell, end) = peer.line_to_read();
        thread::scope(|scope| {
            let reads = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
            let waits = Sleeper::asleep(scope, &doorbell, libc::SYS_futex);
            if shuts_down {
                doorbell.shut_both();
            } else {
                // The peer left a wakeup unread: then the line ends with an error.
                doorbell.wake_peer();
                drop(end);
            }
            reads.expect_woken();
            waits.expect_woken();
        });
        assert!(doorbell.is_gone());
    }
}

#[test]
fn reading_thread_wakes_the_other_waiters() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    thread::scope(|scope| {
        let reads = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
        let waits = Sleeper::asleep(scope, &doorbell, libc::SYS_futex);
        send_wakeup(&end);
        reads.expect_woken();
        waits.expect_woken();
    });
    assert!(!doorbell.is_gone());
}

/// The guest, which made the line, may have kept a descriptor of what it passed on.
#[test]
fn changed_socket_mode_falls_back_to_polling() {
    let peer = Peer::new();
    let changes: [fn(&OwnedFd); 2] = [
        |line| set_mode(line, false),
        |line| setsockopt(line, sockopt::ReceiveTimeout, &TimeVal::new(0, 1000)).unwrap(),
    ];
    for change in changes {
        // While no thread waits.
        let (doorbell, end) = peer.line_to_read();
        send_wakeup(&end);
        assert!(doorbell.wait(doorbell.generation(), None).unwrap());
        change(&doorbell.line);
        thread::scope(|scope| {
            let waiting = Sleeper::asleep(scope, &doorbell, POLL);
            send_wakeup(&end);
            waiting.expect_woken();
        });
        assert!(
            doorbell.catch_up(),
            "the wakeup is on the line, as after any poll"
        );
        // While one does, which is not disturbed.
        let (doorbell, end) = peer.line_to_read();
        thread::scope(|scope| {
            let waiting = Sleeper::asleep(scope, &doorbell, libc::SYS_recvmsg);
            change(&doorbell.line);
            send_wakeup(&end);
            waiting.expect_woken();
            let waiting = Sleeper::asleep(scope, &doorbell, POLL);
            send_wakeup(&end);
            waiting.expect_woken();
        });
        assert!(!doorbell.is_gone());
    }
}

#[test]
fn event_loop_finds_the_wakeup_on_the_line() {
    let peer = Peer::new();
    let (doorbell, end) = peer.line_to_read();
    let _ = doorbell.line();
    send_wakeup(&end);
    assert!(doorbell.wait(doorbell.generation(), None).unwrap());
    assert!(unread(&doorbell));
}

#[test]
fn waits_without_a_pidfd_only_poll() {
    let (doorbell, end) = line();
    doorbell.state.lock().unwrap().sleep = Sleep::NotYet(0);
    send_wakeup(&end);
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
fn loop_detects_peer_exit_without_shutdown_rights() {
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
fn wakeup_consumed_by_a_loop_wakes_the_thread() {
    let (doorbell, peer) = line();
    assert!(!doorbell.arm().unwrap());
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        // Sent and consumed in one moment from the thread's view: it does not run in between, or finds the line empty.
        let state = doorbell.state.lock().unwrap();
        send_wakeup(&peer);
        drop(state);
        assert!(doorbell.read_wakeups());
        sleeper.expect_woken();
    });
    // If the loop was faster, the thread assumes that it has left a wakeup there.
    assert!(doorbell.read_wakeups());
    // Only the loop's notification.
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        doorbell.defer_wakeups();
        sleeper.expect_woken();
    });
    assert!(doorbell.arm().unwrap());
    // The loop consumes it before the thread has slept.
    let generation = doorbell.generation();
    send_wakeup(&peer);
    assert!(doorbell.read_wakeups());
    assert!(doorbell.wait(generation, None).unwrap());
}

#[test]
fn thread_leaves_the_loop_exactly_one_wakeup() {
    let (doorbell, peer) = line();
    let polled = doorbell.line();
    for _ in 0..3 {
        send_wakeup(&peer);
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
        assert!(doorbell.catch_up());
        assert!(readable(polled));
        assert_eq!(sys::socket::unread(polled), Ok(1), "the line does not fill");
        // The leftover wakeup does not wake it again.
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
    send_wakeup(&peer);
    assert!(doorbell.wait(generation, far()).unwrap());
    assert!(doorbell.catch_up());
    assert!(doorbell.arm().unwrap());
    assert!(!readable(polled));
    // An unread wakeup does not hide the end.
    send_wakeup(&peer);
    drop(peer);
    while !doorbell.is_gone() {
        doorbell.catch_up();
        assert!(doorbell.wait(doorbell.generation(), far()).unwrap());
    }
    assert!(readable(polled));
}

/// The thread went to sleep when there was no loop, and only a wakeup ends its sleep.
#[test]
fn loop_started_beside_a_sleeper_shares_wakeups() {
    let peer = Peer::new();
    for (starts_with_arm, reads) in [(true, true), (false, true), (true, false), (false, false)] {
        let (doorbell, end) = if reads { peer.line_to_read() } else { peer.line() };
        let call = if reads { libc::SYS_recvmsg } else { POLL };
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep(scope, &doorbell, call);
            if starts_with_arm {
                assert!(!doorbell.arm().unwrap());
            }
            let polled = doorbell.line();
            assert_eq!(polled.as_raw_fd() != doorbell.line.as_raw_fd(), reads);
            assert!(!readable(polled));
            if !starts_with_arm {
                assert!(!doorbell.arm().unwrap());
            }
            // It may be for either. The loop is notified although the thread consumes it.
            send_wakeup(&end);
            sleeper.expect_woken();
            assert!(readable(polled));
            assert!(doorbell.read_wakeups());
            assert!(!readable(polled));
        });
        // The same if the loop polls first.
        let (doorbell, end) = if reads { peer.line_to_read() } else { peer.line() };
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep(scope, &doorbell, call);
            assert!(!doorbell.arm().unwrap());
            let state = doorbell.state.lock().unwrap();
            send_wakeup(&end);
            drop(state);
            assert!(doorbell.read_wakeups());
            sleeper.expect_woken();
        });
        // If the thread was first, it has left the wakeup there.
        assert!(doorbell.read_wakeups());
        // From now on threads sleep in epoll.
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
            send_wakeup(&end);
            sleeper.expect_woken();
        });
    }
}

#[test]
fn peer_exit_and_shutdown_wake_a_thread_beside_a_loop() {
    let mut peer = Peer::new();
    // The end of the line is held by another process than the peer.
    let (doorbell, _end) = peer.line();
    let _ = doorbell.line();
    thread::scope(|scope| {
        let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
        peer.kill();
        sleeper.expect_woken();
    });
    assert!(doorbell.is_gone());
    for write_only in [false, true] {
        let (doorbell, _peer) = line();
        let _ = doorbell.line();
        thread::scope(|scope| {
            let sleeper = Sleeper::asleep_in_one_of(scope, &doorbell, EPOLL);
            if write_only {
                doorbell.shut_write();
            } else {
                doorbell.shut_both();
            }
            sleeper.expect_woken();
        });
    }
}

#[test]
fn single_way_of_waiting_needs_no_extra_descriptors() {
    let (threads, peer) = line();
    send_wakeup(&peer);
    assert!(threads.wait(threads.generation(), far()).unwrap());
    assert!(threads.catch_up());
    let (looped, peer) = line();
    assert!(!looped.arm().unwrap());
    send_wakeup(&peer);
    assert!(readable(looped.line()));
    assert!(looped.read_wakeups());
    for doorbell in [threads, looped] {
        assert!(doorbell.loop_poll().is_none());
        assert!(doorbell.thread_poll.get().is_none());
    }
}

#[test]
fn wakeups_are_sent_once_and_counted() {
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
fn end_behind_garbage_is_found_by_one_poll() {
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
