//! A thread that sleeps in a plain read of the line, and the watcher thread that watches for the peer's
//! death. These tests have their own process.

mod support;

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, gettid, pause},
};
use ringfence::{Address, CloseReason, Receiver, Sender, join};
use support::{
    Actor, POLL, TIME_LIMIT, fresh_address, join_later, report, small, threads_named, wait_for_host,
};

/// One test at a time inspects the threads and the descriptors of this process.
static ALONE: Mutex<()> = Mutex::new(());

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
    match role.as_str() {
        "answers" => {
            // SAFETY: the child does nothing but sleep.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => loop {
                    pause();
                },
                ForkResult::Parent { child } => report(child.to_string()),
            }
            let mut into = [0; 8];
            while let Some(length) = receiver.receive(&mut into).unwrap() {
                sender.send(&into[..length]).unwrap();
            }
        }
        "forks and joins" => {
            let waiting = receive_asleep(&mut sender, receiver);
            // SAFETY: the other threads of this process sleep, and hold no lock.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let address: Address = arguments[1].parse().unwrap();
                    let (mut sender, receiver) = join(&address, &small()).unwrap().split();
                    let waiting = receive_asleep(&mut sender, receiver);
                    report("asleep");
                    drop((join_woken(waiting), sender));
                    wait_until_unwatched();
                    // SAFETY: only ends this process, and touches nothing of its parent.
                    unsafe { libc::_exit(0) };
                }
                ForkResult::Parent { child } => {
                    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                }
            }
            // The child has only released its own resources. A thread has its name once it runs.
            let end = Instant::now() + TIME_LIMIT;
            while !is_watched() {
                assert!(Instant::now() < end, "no watcher thread runs");
                thread::yield_now();
            }
            report("the child has ended");
            join_woken(waiting);
        }
        other => unreachable!("{other}"),
    }
}

/// A process that answers, whose end of the line is also held by another process.
struct Partner {
    actor: Actor,
    holder: Pid,
}

impl Partner {
    fn meet() -> (Self, Sender, Receiver) {
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &small());
        wait_for_host(&address);
        let partner = Self::of(Actor::start("answers", &[&address.to_string()]));
        let (sender, receiver) = host.join().unwrap().expect("a channel").split();
        (partner, sender, receiver)
    }

    fn of(actor: Actor) -> Self {
        let holder = Pid::from_raw(actor.next_line().parse().unwrap());
        Self { actor, holder }
    }

    /// Kills the partner, while the other process lives on.
    fn kill(&mut self) {
        self.actor.kill();
        assert!(kill(self.holder, None).is_ok());
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        // Nothing else would end it.
        let _ = kill(self.holder, Signal::SIGKILL);
    }
}

/// Receives on a thread until the end. When this returns, that thread has slept often enough to sleep in a
/// read.
fn receive_asleep(sender: &mut Sender, mut receiver: Receiver) -> JoinHandle<Receiver> {
    let (tx, rx) = mpsc::channel();
    let waiting = thread::spawn(move || {
        tx.send(gettid()).unwrap();
        while let Ok(Some(_)) = receiver.receive(&mut [0; 8]) {}
        receiver
    });
    let file = format!("/proc/self/task/{}/syscall", rx.recv().unwrap());
    let end = Instant::now() + TIME_LIMIT;
    let mut reads = || {
        let call = fs::read_to_string(&file).unwrap();
        let number = call.split(' ').next().unwrap();
        assert!(
            Instant::now() < end,
            "the thread does not sleep in a read: {call}"
        );
        if number == libc::SYS_recvmsg.to_string() {
            return true;
        }
        if number == POLL.to_string() {
            sender.send(b"again").unwrap();
        }
        false
    };
    while !reads() {
        thread::yield_now();
    }
    waiting
}

/// Joins the thread. A thread that is never woken fails the test instead of hanging it.
fn join_woken(waiting: JoinHandle<Receiver>) -> Receiver {
    let end = Instant::now() + TIME_LIMIT;
    while !waiting.is_finished() {
        assert!(Instant::now() < end, "the thread is not woken");
        thread::yield_now();
    }
    waiting.join().unwrap()
}

/// Returns the path of the watcher thread in /proc.
fn watcher() -> Option<PathBuf> {
    let watching = threads_named(std::process::id().cast_signed(), "ringfence-exits");
    assert!(watching.len() <= 1, "one watcher for all channels");
    watching
        .first()
        .map(|thread| format!("/proc/self/task/{thread}").into())
}

/// The system calls behind epoll_wait(2).
#[cfg(target_arch = "x86_64")]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
#[cfg(not(target_arch = "x86_64"))]
const WAITS: &[libc::c_long] = &[libc::SYS_epoll_pwait];

/// Whether there is a watcher thread. A thread has its name from its first moment on a core, and not before.
fn is_watched() -> bool {
    watcher().is_some()
}

/// Waits until there is no watcher thread. A thread is listed for a moment after it was joined.
fn wait_until_unwatched() {
    let end = Instant::now() + TIME_LIMIT;
    while is_watched() {
        assert!(Instant::now() < end, "the watcher thread does not end");
        thread::yield_now();
    }
}

/// Returns how often the watcher thread has run and for how long, as soon as it sleeps.
fn runs_of_the_watcher() -> String {
    let watcher = watcher().expect("a thread");
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let call = fs::read_to_string(watcher.join("syscall")).unwrap();
        if WAITS.iter().any(|wait| call.starts_with(&format!("{wait} "))) {
            return fs::read_to_string(watcher.join("schedstat")).unwrap();
        }
        assert!(Instant::now() < end, "the thread does not sleep: {call}");
        thread::yield_now();
    }
}

/// Returns the targets of the descriptors, except for files and the pipes between the processes.
fn descriptors() -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string()))
        .filter(|target| target.starts_with("anon_inode:") || target.starts_with("socket:"))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn peer_exit_ends_the_sleep_and_the_watcher_stops() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors();
    let (mut partner, mut sender, receiver) = Partner::meet();
    let (_other, mut others_sender, others_receiver) = Partner::meet();
    assert!(!is_watched(), "the watcher starts after some sleeps");
    let waiting = receive_asleep(&mut sender, receiver);
    let others = receive_asleep(&mut others_sender, others_receiver);
    partner.kill();
    let receiver = join_woken(waiting);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    // A death is reported once, although its channel still exists.
    let runs = runs_of_the_watcher();
    drop(Partner::meet());
    assert_eq!(runs_of_the_watcher(), runs);
    drop((sender, receiver));
    assert!(is_watched(), "for the other channel");
    assert_eq!(others_sender.close_reason(), None);
    // The partner reads to its end, and closes.
    others_sender.end();
    let others_receiver = join_woken(others);
    assert_eq!(others_receiver.close_reason(), Some(CloseReason::Closed));
    drop((others_sender, others_receiver));
    wait_until_unwatched();
    assert_eq!(descriptors(), before);
}

#[test]
fn forked_child_has_its_own_watcher() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let addresses = [(); 2].map(|()| fresh_address(false).0);
    let [parents, childs] = &addresses;
    let partners = addresses.each_ref().map(|address| {
        let actor = Actor::start("answers", &[&address.to_string()]);
        wait_for_host(address);
        actor
    });
    let forks = Actor::start("forks and joins", &[&parents.to_string(), &childs.to_string()]);
    let [mut parents_partner, mut childs_partner] = partners.map(Partner::of);
    forks.expect("asleep");
    childs_partner.kill();
    forks.expect("the child has ended");
    parents_partner.kill();
    forks.finish();
}
