//! What a channel has where threads and an event loop wait for the same line, and no other channel has.
//!
//! An event loop polls the line itself, and is woken as long as a bell lies there. So a thread beside it takes no bell that the
//! loop may need, and must not spin on one that stays: it sleeps in an epoll that tells of each bell once. In turn it would
//! sleep through a bell that the loop takes before this thread has a core: so the loop says what it has taken.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
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
};

/// What an event of an epoll is about.
const LINE: u64 = 0;
const PEER: u64 = 1;
const TOLD: u64 = 2;

fn counter() -> Result<EventFd, Errno> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
}

/// Where a thread sleeps that leaves every bell where it is.
#[derive(Debug)]
pub(super) struct ThreadPoll {
    epoll: Epoll,
    /// Written by a thread that has something to tell the one that sleeps here, and never read: each write is an event.
    told: EventFd,
}

impl ThreadPoll {
    /// Errors with [`Error::NoSpace`] where the two descriptors are not to be had.
    pub(super) fn new(line: BorrowedFd<'_>, pidfd: Option<BorrowedFd<'_>>) -> Result<Self> {
        let made = || -> Result<Self, Errno> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let told = counter()?;
            let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(line, EpollEvent::new(once | EpollFlags::EPOLLRDHUP, LINE))?;
            epoll.add(&told, EpollEvent::new(once, TOLD))?;
            // The line ends with the peer, unless another process holds the peer's end of it open.
            if let Some(pidfd) = pidfd {
                epoll.add(pidfd, EpollEvent::new(EpollFlags::EPOLLIN, PEER))?;
            }
            Ok(Self { epoll, told })
        };
        made().map_err(|errno| Error::system("waiting beside an event loop", errno))
    }

    /// Wakes the thread that sleeps here, or the next one.
    pub(super) fn tell(&self) {
        // It is full after 2^64 times, and an event all the same.
        let _ = self.told.write(1);
    }

    /// Sleeps until something happens that has not been heard yet, or the time is over.
    pub(super) fn sleep(&self, deadline: Option<Instant>) -> Result<Heard> {
        let mut events = [EpollEvent::empty(); 3];
        let mut count = 0;
        ready_by(deadline, |timeout| {
            count = self.epoll.wait(&mut events, timeout)?;
            Ok(count > 0)
        })
        .map_err(|errno| Error::system("waiting on the line (epoll_wait)", errno))?;
        let mut heard = Heard::default();
        for event in &events[..count] {
            match event.data() {
                LINE => {
                    heard.rung = event.events().contains(EpollFlags::EPOLLIN);
                    // A bell is no sign of life.
                    heard.gone |= !(event.events() - EpollFlags::EPOLLIN).is_empty();
                }
                PEER => heard.gone = true,
                _ => {}
            }
        }
        Ok(heard)
    }
}

/// What a sleep has heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) rung: bool,
    pub(super) gone: bool,
}

/// What an event loop polls instead of the line, where a thread slept in a read of that before there was a loop: nothing ends
/// such a read but a bell, which it takes, and which may be the loop's.
#[derive(Debug)]
pub(super) struct LoopPoll {
    epoll: Epoll,
    /// Written by the thread that has taken a bell, and read by the loop: it is readable until then.
    taken: EventFd,
}

impl LoopPoll {
    pub(super) fn new(line: BorrowedFd<'_>) -> Result<Self> {
        let made = || -> Result<Self, Errno> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let taken = counter()?;
            let readable = EpollFlags::EPOLLIN;
            epoll.add(line, EpollEvent::new(readable | EpollFlags::EPOLLRDHUP, LINE))?;
            epoll.add(&taken, EpollEvent::new(readable, TOLD))?;
            Ok(Self { epoll, taken })
        };
        made().map_err(|errno| Error::system("an event loop beside a thread that reads the line", errno))
    }

    /// A bell was taken that may be the loop's.
    pub(super) fn tell(&self) {
        // As above.
        let _ = self.taken.write(1);
    }

    /// The loop has heard of what was taken.
    pub(super) fn heard(&self) {
        // Nothing was taken, where this fails.
        let _ = self.taken.read();
    }
}

impl AsFd for LoopPoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
