//! The events of an endpoint that the program has not taken yet, in order. The end is last.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
};

use nix::poll::PollFlags;

use crate::{
    error::{Error, Result},
    fork::{OwnerProcess, ProcessMutex},
    wait::deadline::{Deadline, Wakeup},
};

/// A queue of events. Threads of this crate add events, and the program takes them.
pub(crate) struct Events<T> {
    queue: ProcessMutex<EventQueue<T>>,
    /// Readable while there is an event, or the end.
    wakeup: Wakeup,
    /// Woken when an event is taken after [`Events::has_room`] returned `false`.
    room: Wakeup,
    /// The error of a call after the end.
    closed: &'static str,
}

struct EventQueue<T> {
    pending: VecDeque<T>,
    /// A thread waits for an event to be taken.
    wants_room: bool,
    end: Option<End>,
}

/// The reason why no further events follow.
pub(crate) enum End {
    Closed,
    Failed(Error),
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self {
            pending: VecDeque::new(),
            wants_room: false,
            end: None,
        }
    }
}

impl<T> Events<T> {
    /// `room` wakes the thread that adds events, `closed` is the error of a call after the end.
    pub(crate) fn new(room: Wakeup, closed: &'static str) -> Result<Self> {
        Ok(Self {
            queue: ProcessMutex::new(EventQueue::default(), OwnerProcess::current()?),
            wakeup: Wakeup::new()?,
            room,
            closed,
        })
    }

    /// Returns the next event, if there is one now. After the last event, fails with [`Error::Closed`], or once with the error that
    /// ended the events.
    pub(crate) fn try_next(&self) -> Result<Option<T>> {
        let mut queue = self.queue.lock()?;
        let event = queue.pending.pop_front();
        if event.is_some() {
            if std::mem::take(&mut queue.wants_room) {
                self.room.signal();
            }
            return Ok(event);
        }
        match &mut queue.end {
            None => {
                self.wakeup.clear();
                Ok(None)
            }
            // An error cannot be cloned, so it is returned once.
            Some(end) => Err(match std::mem::replace(end, End::Closed) {
                End::Closed => Error::Closed(self.closed),
                End::Failed(Error::Aborted) => {
                    *end = End::Failed(Error::Aborted);
                    Error::Aborted
                }
                End::Failed(error) => error,
            }),
        }
    }

    /// Waits for the next event. Returns `None` at the deadline.
    pub(crate) fn wait(&self, deadline: &Deadline) -> Result<Option<T>> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            if !deadline.wait(&[(self.wakeup.as_fd(), PollFlags::POLLIN)])? {
                return Ok(None);
            }
        }
    }

    /// Adds an event. After the end, it is dropped.
    pub(crate) fn add(&self, event: T) {
        self.add_at_most(event, usize::MAX, |_| (), |_| true);
    }

    /// As [`Events::add`], for events that a program need not take. If `max` events are pending, `forget` removes some. After that, and
    /// under the same lock, an event that is not `wanted` is dropped.
    pub(crate) fn add_at_most<D>(
        &self,
        event: T,
        max: usize,
        forget: impl FnOnce(&mut VecDeque<T>) -> D,
        wanted: impl FnOnce(&T) -> bool,
    ) {
        let Ok(mut queue) = self.queue.lock() else { return };
        let forgotten = (queue.pending.len() >= max).then(|| forget(&mut queue.pending));
        let unwanted = if queue.end.is_none() && wanted(&event) {
            queue.pending.push_back(event);
            None
        } else {
            Some(event)
        };
        drop(queue);
        if unwanted.is_none() {
            self.wakeup.signal();
        }
        // Dropped without the lock, as in `discard`.
        drop((forgotten, unwanted));
    }

    /// Whether one more event may be added in addition to those that are `expected`, if at most `max` that
    /// count may be pending. If not, `room` is woken once an event is taken.
    pub(crate) fn has_room(&self, max: usize, expected: usize, counts: impl Fn(&T) -> bool) -> bool {
        let Ok(mut queue) = self.queue.lock() else {
            return false;
        };
        let pending = queue.pending.iter().filter(|event| counts(event)).count();
        queue.wants_room |= pending + expected >= max;
        pending + expected < max
    }

    /// Ends the events. The first end counts.
    pub(crate) fn end(&self, end: End) {
        let Ok(mut queue) = self.queue.lock() else { return };
        queue.end.get_or_insert(end);
        drop(queue);
        self.wakeup.signal();
    }

    /// Drops the pending events, which the program will not take.
    pub(crate) fn discard(&self) {
        let pending = self
            .queue
            .lock()
            .map(|mut queue| std::mem::take(&mut queue.pending));
        // Dropped without the lock: dropping a channel may add an event.
        drop(pending);
    }
}

impl<T> AsFd for Events<T> {
    /// Readable when [`Events::try_next`] has an event, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}
