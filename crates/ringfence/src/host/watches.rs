//! What wakes a publisher's threads: the ends of its subscribers, and their bells.
//!
//! Two epolls look at the same lines. That of the watcher hears of ends alone, so it takes no bell from the sender. That of the
//! sender hears bells; a program's event loop can wait for it, since an epoll can be polled itself.

use std::{
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};

use crate::{
    error::{Error, Result},
    wait::deadline::ready_by,
    wait::retry::RetryBudget,
    wake::doorbell::LineEnds,
};

/// The key of the descriptor that this process rings itself. No subscriber has this number.
const OWN: u64 = 0;
/// The largest number of events that one wait returns.
const AT_ONCE: usize = 32;

/// How often a subscriber is added and a bell rung, and how long the kernel is left alone after a failure.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The numbers of the subscribers that a wait has found. An array, since a sender waits for each message that finds no room.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    list: [u64; AT_ONCE],
    count: usize,
}

impl Deref for Numbers {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.list[..self.count]
    }
}

/// One of the two.
#[derive(Debug)]
struct Watch {
    epoll: Epoll,
    /// Rung from within this process.
    bell: EventFd,
}

impl Watch {
    fn new() -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, OWN))?;
        Ok(Self { epoll, bell })
    }

    fn ring(&self) {
        // The kernel has no reason to refuse, but what filters system calls may have one, and a sleeper that is not rung for sleeps
        // on.
        let mut left = TRIES;
        while left > 0 && self.bell.write(1).is_err() {
            left -= 1;
        }
    }

    /// Waits for events. Returns the numbers of their subscribers, or `None` if the deadline has passed.
    fn wait(&self, until: Option<Instant>) -> Result<Option<Numbers>> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        let mut count = 0;
        let ready = ready_by(until, |timeout| {
            count = self.epoll.wait(&mut events, timeout)?;
            Ok(count > 0)
        });
        if !ready.map_err(|errno| Error::poll("waiting for subscribers", errno))? {
            return Ok(None);
        }
        let mut numbers = Numbers::default();
        for event in &events[..count] {
            if event.data() == OWN {
                // An error means that nothing is left to read.
                let _ = self.bell.read();
            } else if !numbers.contains(&event.data()) {
                numbers.list[numbers.count] = event.data();
                numbers.count += 1;
            }
        }
        Ok(Some(numbers))
    }
}

/// Both, of one publisher.
#[derive(Debug)]
pub(crate) struct Watches {
    ends: Watch,
    room: Watch,
    over: AtomicBool,
}

impl Watches {
    /// Errors with [`Error::NoSpace`] where descriptors have run out.
    pub(crate) fn new() -> Result<Self> {
        let new = || Watch::new().map_err(|errno| Error::system("what wakes a publisher (epoll)", errno));
        Ok(Self {
            ends: new()?,
            room: new()?,
            over: AtomicBool::new(false),
        })
    }

    /// From now on this subscriber wakes the threads. One that has gone already wakes the watcher at once. It has been told that
    /// it was let in, so a shortage that is over in a moment must not end it.
    pub(crate) fn add_patiently(&self, number: u64, ends: &LineEnds) -> Result<()> {
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
        let failed = |errno| Error::system("watching a subscriber (epoll)", errno);
        let (line, pidfd) = ends.descriptors();
        // Asked for no bells.
        let hung_up = EpollFlags::EPOLLRDHUP;
        self.ends
            .epoll
            .add(line, EpollEvent::new(hung_up, number))
            .map_err(failed)?;
        if let Some(pidfd) = pidfd {
            self.ends
                .epoll
                .add(pidfd, EpollEvent::new(EpollFlags::EPOLLIN, number))
                .map_err(failed)?;
        }
        let bells = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.room
            .epoll
            .add(line, EpollEvent::new(bells, number))
            .map_err(failed)
    }

    /// What was not added is not there to be taken out.
    pub(crate) fn remove(&self, ends: &LineEnds) {
        let (line, pidfd) = ends.descriptors();
        let _ = self.room.epoll.delete(line);
        let _ = self.ends.epoll.delete(line);
        if let Some(pidfd) = pidfd {
            let _ = self.ends.epoll.delete(pidfd);
        }
    }

    /// For the watcher: subscribers that may have gone. `None`: it has no more to do.
    pub(crate) fn wait_for_ends(&self, until: Option<Instant>) -> Option<Numbers> {
        // A wait that fails has seen nothing, and without a watcher a publisher would never hear of an end again. One that goes
        // on failing does so because the program has closed what is not its own.
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

    /// For the sender: subscribers that have rung, or gone. `None`: the moment has passed.
    pub(crate) fn wait_for_room(&self, until: Option<Instant>) -> Result<Option<Numbers>> {
        self.room.wait(until)
    }

    /// Has the watcher look again.
    pub(crate) fn wake_watcher(&self) {
        self.ends.ring();
    }

    /// Has the sender look again.
    pub(crate) fn wake_sender(&self) {
        self.room.ring();
    }

    /// The watcher has no more to do.
    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::Release);
        self.ends.ring();
    }
}

impl AsFd for Watches {
    /// Readable when the sender is to look again.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.room.epoll.0.as_fd()
    }
}
