//! Wakes the threads of a publisher when a subscriber disconnects or sends a wakeup.
//!
//! Two epoll instances watch the same lines. The watcher's instance reports only ends, so it takes no wakeup
//! from the sender. The sender's instance reports wakeups. A program's event loop can wait for it, since an
//! epoll instance can itself be polled.

use std::{
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::{
    error::{Error, OrSystem, Result},
    wait::deadline::{RetryBudget, Wakeup, ready_by},
    wake::doorbell::LineEnds,
};

/// The key of the descriptor with which this process wakes itself. No subscriber has this number.
const WAKEUP_KEY: u64 = 0;
/// The largest number of events that one wait returns.
const MAX_EVENTS: usize = 32;

/// The number of attempts to add a subscriber, and the pause after a failure.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Names the operation in errors.
const WATCHING: &str = "watching a subscriber (epoll)";

/// The numbers of the subscribers that a wait has found. An array, since a sender waits for each message that finds no room.
#[derive(Debug, Default)]
pub(crate) struct SubscriberNumbers {
    list: [u64; MAX_EVENTS],
    count: usize,
}

impl Deref for SubscriberNumbers {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.list[..self.count]
    }
}

/// An epoll instance, and a descriptor that wakes it.
struct EpollWatch {
    epoll: Epoll,
    /// Signalled by threads of this process.
    wakeup: Wakeup,
}

impl EpollWatch {
    fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_system(WATCHING)?;
        let wakeup = Wakeup::new()?;
        let watch = Self { epoll, wakeup };
        watch.add(watch.wakeup.as_fd(), EpollFlags::EPOLLIN, WAKEUP_KEY)?;
        Ok(watch)
    }

    fn add(&self, descriptor: BorrowedFd<'_>, flags: EpollFlags, number: u64) -> Result<()> {
        let added = self.epoll.add(descriptor, EpollEvent::new(flags, number));
        added.or_system(WATCHING)
    }

    /// Waits for events. Returns the numbers of their subscribers, or `None` if the deadline has passed.
    fn wait(&self, until: Option<Instant>) -> Result<Option<SubscriberNumbers>> {
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        let mut count = 0;
        let ready = ready_by(until, |timeout| {
            count = self.epoll.wait(&mut events, timeout)?;
            Ok(count > 0)
        });
        if !ready.map_err(|errno| Error::poll("waiting for subscribers", errno))? {
            return Ok(None);
        }
        let mut numbers = SubscriberNumbers::default();
        for event in &events[..count] {
            if event.data() == WAKEUP_KEY {
                self.wakeup.clear();
            } else if !numbers.contains(&event.data()) {
                numbers.list[numbers.count] = event.data();
                numbers.count += 1;
            }
        }
        Ok(Some(numbers))
    }
}

/// Both epoll instances of a publisher.
pub(crate) struct Watches {
    ends: EpollWatch,
    room: EpollWatch,
    over: AtomicBool,
}

impl Watches {
    /// Fails with [`Error::NoSpace`] if descriptors have run out.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            ends: EpollWatch::new()?,
            room: EpollWatch::new()?,
            over: AtomicBool::new(false),
        })
    }

    /// Watches a subscriber. If it has disconnected already, the watcher wakes at once. The subscriber has
    /// received READY, so a transient shortage must not end it.
    pub(crate) fn add_with_retries(&self, number: u64, ends: &LineEnds) -> Result<()> {
        for _ in 1..TRIES {
            if self.add(number, ends).is_ok() {
                return Ok(());
            }
            self.remove(ends);
            thread::sleep(PAUSE);
        }
        self.add(number, ends)
    }

    fn add(&self, number: u64, ends: &LineEnds) -> Result<()> {
        let (line, pidfd) = ends.descriptors();
        // Without wakeups.
        self.ends.add(line, EpollFlags::EPOLLRDHUP, number)?;
        if let Some(pidfd) = pidfd {
            self.ends.add(pidfd, EpollFlags::EPOLLIN, number)?;
        }
        self.room
            .add(line, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, number)
    }

    /// Stops watching a subscriber, also one that was not added completely.
    pub(crate) fn remove(&self, ends: &LineEnds) {
        let (line, pidfd) = ends.descriptors();
        let _ = self.room.epoll.delete(line);
        let _ = self.ends.epoll.delete(line);
        if let Some(pidfd) = pidfd {
            let _ = self.ends.epoll.delete(pidfd);
        }
    }

    /// Called by the watcher: waits for subscribers that may have disconnected. `None` once the publisher has
    /// ended.
    pub(crate) fn wait_for_ends(&self, until: Option<Instant>) -> Option<SubscriberNumbers> {
        // Retries: without a watcher, a publisher would never notice an end again. A wait fails for good only if the program has closed
        // the descriptor.
        let mut retries = RetryBudget::pausing(PAUSE);
        loop {
            if self.over.load(Ordering::Acquire) {
                return None;
            }
            match self.ends.wait(until) {
                Ok(numbers) => {
                    return (!self.over.load(Ordering::Acquire)).then(|| numbers.unwrap_or_default());
                }
                Err(error) if retries.should_retry(&error) => retries.pause(),
                Err(_) => return None,
            }
        }
    }

    /// Called by the sender: waits for subscribers that have sent a wakeup or disconnected. `None` if the
    /// deadline has passed.
    pub(crate) fn wait_for_room(&self, until: Option<Instant>) -> Result<Option<SubscriberNumbers>> {
        self.room.wait(until)
    }

    /// Makes the watcher check again.
    pub(crate) fn wake_watcher(&self) {
        self.ends.wakeup.signal();
    }

    /// Makes the sender check again.
    pub(crate) fn wake_sender(&self) {
        self.room.wakeup.signal();
    }

    /// Ends the watcher.
    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::Release);
        self.ends.wakeup.signal();
    }
}

impl AsFd for Watches {
    /// Readable when the sender must check again.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.room.epoll.0.as_fd()
    }
}
