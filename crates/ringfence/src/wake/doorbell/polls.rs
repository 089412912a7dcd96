//! Additional descriptors for a channel whose line both threads and an event loop wait for.
//!
//! An event loop polls the line itself, and wakes while a wakeup is on it. A thread must not consume a wakeup that the loop
//! may need, and must not spin on one that stays. So it sleeps in an epoll that reports each wakeup once (EPOLLET). The
//! thread could miss a wakeup that the loop reads before the thread runs, so the loop notifies it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};

use crate::{
    error::{OrSystem, Result},
    wait::deadline::ready_by,
};

/// The source of an epoll event.
const LINE: u64 = 0;
const PEER: u64 = 1;
const NOTIFIED: u64 = 2;

/// Makes an epoll that reports this event of the line, these of the descriptor that it returns, and the end of the peer's process.
/// The line alone is not enough, because another process may hold the peer's end open.
fn new_epoll(
    line: BorrowedFd<'_>,
    line_event: EpollEvent,
    notified_events: EpollFlags,
    pidfd: Option<BorrowedFd<'_>>,
) -> Result<(Epoll, EventFd), Errno> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let notified = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    epoll.add(line, line_event)?;
    epoll.add(&notified, EpollEvent::new(notified_events, NOTIFIED))?;
    if let Some(pidfd) = pidfd {
        epoll.add(pidfd, EpollEvent::new(EpollFlags::EPOLLIN, PEER))?;
    }
    Ok((epoll, notified))
}

/// `edge`: each change of the line is reported once. Otherwise it is reported as long as the line is readable.
fn line_event(edge: bool) -> EpollEvent {
    let mut events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    events.set(EpollFlags::EPOLLET, edge);
    EpollEvent::new(events, LINE)
}

/// The epoll of a thread that leaves every wakeup on the line.
pub(super) struct ThreadPoll {
    epoll: Epoll,
    /// Written to wake the thread that sleeps here, and never read: each write is an event.
    notified: EventFd,
}

impl ThreadPoll {
    /// Fails with [`Error::NoSpace`](crate::error::Error::NoSpace) if the two descriptors are not available.
    pub(super) fn new(line: BorrowedFd<'_>, pidfd: Option<BorrowedFd<'_>>) -> Result<Self> {
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let (epoll, notified) =
            new_epoll(line, line_event(true), once, pidfd).or_system("waiting beside an event loop")?;
        Ok(Self { epoll, notified })
    }

    /// Wakes the thread that sleeps here, or the next one.
    pub(super) fn notify(&self) {
        // A failed write to a full eventfd would still be an event.
        let _ = self.notified.write(1);
    }

    /// Sleeps until a new event or the deadline.
    pub(super) fn sleep(&self, deadline: Option<Instant>) -> Result<LineEvents> {
        let mut polled = [EpollEvent::empty(); 3];
        let mut count = 0;
        ready_by(deadline, |timeout| {
            count = self.epoll.wait(&mut polled, timeout)?;
            Ok(count > 0)
        })
        .or_system("waiting on the line (epoll_wait)")?;
        let mut events = LineEvents::default();
        for event in &polled[..count] {
            match event.data() {
                LINE => {
                    events.wakeup = event.events().contains(EpollFlags::EPOLLIN);
                    // A wakeup is no sign of life.
                    events.gone |= !(event.events() - EpollFlags::EPOLLIN).is_empty();
                }
                PEER => events.gone = true,
                _ => {}
            }
        }
        Ok(events)
    }
}

/// The events of one sleep.
#[derive(Debug, Default)]
pub(super) struct LineEvents {
    pub(super) wakeup: bool,
    pub(super) gone: bool,
}

/// The epoll that an event loop polls instead of the line if a thread already sleeps in a read of the line. Only a wakeup
/// ends that read, which consumes it, and it may be the loop's.
pub(super) struct LoopPoll {
    epoll: Epoll,
    /// Written by the thread that has consumed a wakeup. It stays readable until the loop reads it.
    notified: EventFd,
    /// Only a change of the line wakes the loop.
    edge: AtomicBool,
}

impl LoopPoll {
    pub(super) fn new(line: BorrowedFd<'_>, pidfd: Option<BorrowedFd<'_>>) -> Result<Self> {
        let (epoll, notified) = new_epoll(line, line_event(false), EpollFlags::EPOLLIN, pidfd)
            .or_system("an event loop beside a thread that reads the line")?;
        Ok(Self {
            epoll,
            notified,
            edge: AtomicBool::new(false),
        })
    }

    /// Wakes the loop while the line is readable, or only on each change of it. Called under the lock of the line's state.
    pub(super) fn watch_line(&self, line: BorrowedFd<'_>, edge: bool) {
        if self.is_edge() != edge && self.epoll.modify(line, &mut line_event(edge)).is_ok() {
            self.edge.store(edge, Ordering::Relaxed);
        }
    }

    pub(super) fn is_edge(&self) -> bool {
        self.edge.load(Ordering::Relaxed)
    }

    /// Notifies the loop of a consumed wakeup, which may be the loop's.
    pub(super) fn notify(&self) {
        // As above.
        let _ = self.notified.write(1);
    }

    /// Clears the notification. To be called before the line is read.
    pub(super) fn clear(&self) {
        if self.is_edge() {
            // The loop polls the epoll, which is readable until it has reported the change (EPOLLET).
            let _ = self.epoll.wait(&mut [EpollEvent::empty(); 3], EpollTimeout::ZERO);
        }
        // The read fails if there is no notification.
        let _ = self.notified.read();
    }
}

impl AsFd for LoopPoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
