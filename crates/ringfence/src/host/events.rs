//! What has happened at an endpoint and the program has not asked for yet, in order. The end comes last.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, BorrowedFd},
};

use nix::poll::PollFlags;

use crate::{
    error::{Error, Result},
    fork::{Birth, ProcessMutex},
    sys::lock::MutexGuard,
    wait::deadline::Wakeup,
    wait::deadline::{Deadline, Woken},
};

/// A queue of events. Threads of this crate add to it, and the program takes from it.
pub(crate) struct Events<T> {
    state: ProcessMutex<State<T>>,
    /// Readable while there is an event to take, or the end.
    bell: Wakeup,
    /// Rung when an event was taken after [`Events::has_room`] had found no room.
    room: Wakeup,
    /// What a call says after the end.
    closed: &'static str,
}

struct State<T> {
    pending: VecDeque<T>,
    /// A thread waits until an event is taken.
    is_room_wanted: bool,
    end: Option<End>,
}

/// Why no more events will come.
#[derive(Debug)]
pub(crate) enum End {
    Closed,
    Failed(Error),
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            pending: VecDeque::new(),
            is_room_wanted: false,
            end: None,
        }
    }
}

impl<T> fmt::Debug for Events<T> {
    /// Takes no lock: a thread that formats a handle may hold one, and in a child there may be none to release it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("bell", &self.bell)
            .finish_non_exhaustive()
    }
}

impl<T> Events<T> {
    /// `room` is the bell of the thread that adds events; `closed` is what a call says after the end.
    pub(crate) fn new(room: Wakeup, closed: &'static str) -> Result<Self> {
        Ok(Self {
            state: ProcessMutex::new(State::default(), Birth::now()?),
            bell: Wakeup::new()?,
            room,
            closed,
        })
    }

    /// Errors in a child: the events are its parent's.
    fn state(&self) -> Result<MutexGuard<'_, State<T>>> {
        self.state.lock()
    }

    /// The next event, if there is one now. After the last one, the end: [`Error::Closed`], or once the error that it was.
    pub(crate) fn try_next(&self) -> Result<Option<T>> {
        let mut state = self.state()?;
        let event = state.pending.pop_front();
        if event.is_some() {
            if std::mem::take(&mut state.is_room_wanted) {
                self.room.signal();
            }
            return Ok(event);
        }
        match &mut state.end {
            None => {
                self.bell.clear();
                Ok(None)
            }
            // An error cannot be cloned, so it is told once.
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

    /// Waits for the next event. `None`: the deadline has passed.
    pub(crate) fn wait(&self, deadline: &Deadline) -> Result<Option<T>> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            if deadline.wait(&[(self.bell.as_fd(), PollFlags::POLLIN)])? == Woken::Late {
                return Ok(None);
            }
        }
    }

    /// After the end, the event is dropped.
    pub(crate) fn add(&self, event: T) {
        self.add_at_most(event, usize::MAX, |_| (), |_| true);
    }

    /// As [`Events::add`]. Where so many are pending already, `forget` takes some out: for what a program need not take. After that, and
    /// under the same lock, an event that is not `wanted` is dropped.
    pub(crate) fn add_at_most<D>(
        &self,
        event: T,
        most: usize,
        forget: impl FnOnce(&mut VecDeque<T>) -> D,
        wanted: impl FnOnce(&T) -> bool,
    ) {
        let Ok(mut state) = self.state() else { return };
        let forgotten = (state.pending.len() >= most).then(|| forget(&mut state.pending));
        let unwanted = if state.end.is_none() && wanted(&event) {
            state.pending.push_back(event);
            None
        } else {
            Some(event)
        };
        drop(state);
        if unwanted.is_none() {
            self.bell.signal();
        }
        // Not under the lock, as in `discard`.
        drop((forgotten, unwanted));
    }

    /// Whether one more event may come, besides those that are `coming`, where at most `most` that count may be pending. If
    /// not, the bell `room` rings once an event was taken.
    pub(crate) fn has_room(&self, most: usize, coming: usize, counts: impl Fn(&T) -> bool) -> bool {
        let Ok(mut state) = self.state() else { return false };
        let pending = state.pending.iter().filter(|event| counts(event)).count();
        state.is_room_wanted |= pending + coming >= most;
        pending + coming < most
    }

    /// No more events will come. The first end counts.
    pub(crate) fn end(&self, end: End) {
        let Ok(mut state) = self.state() else { return };
        state.end.get_or_insert(end);
        drop(state);
        self.bell.signal();
    }

    /// Drops the events that are pending: the program will not take them.
    pub(crate) fn discard(&self) {
        let pending = self.state().map(|mut state| std::mem::take(&mut state.pending));
        // Not under the lock: a channel that is dropped here may come back to these events.
        drop(pending);
    }
}

impl<T> AsFd for Events<T> {
    /// Readable when [`Events::try_next`] has an event, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
