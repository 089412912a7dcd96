//! What has happened and nobody has asked for yet, in order; the end comes last.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::poll::PollFlags;

use crate::{
    error::{Error, Result},
    fork::leave_torn,
    wait::cancel::Bell,
    wait::deadline::{Deadline, Woken},
};

/// Brought by threads of this crate's own, claimed by whoever asks.
pub(crate) struct News<T> {
    state: Mutex<State<T>>,
    /// Readable while there is something to claim, or the end.
    bell: Bell,
    /// Rung when something was claimed, after somebody had found no room.
    room: Bell,
    /// What is said after the end.
    over: &'static str,
}

struct State<T> {
    unclaimed: VecDeque<T>,
    /// Somebody waits until something is claimed.
    crowded: bool,
    end: Option<End>,
}

/// Why no more will come.
#[derive(Debug)]
pub(crate) enum End {
    Closed,
    Failed(Error),
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            unclaimed: VecDeque::new(),
            crowded: false,
            end: None,
        }
    }
}

impl<T> fmt::Debug for News<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("News")
            .field("unclaimed", &state.unclaimed.len())
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

impl<T> News<T> {
    pub(crate) fn new(room: Bell, over: &'static str) -> Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: Bell::new()?,
            room,
            over,
        })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // The state is valid after every statement that changes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next, if there is one now. After the last one, the end: [`Error::Closed`], or what it was, once.
    pub(crate) fn claim(&self) -> Result<Option<T>> {
        let mut state = self.state();
        let news = state.unclaimed.pop_front();
        if news.is_some() {
            if std::mem::take(&mut state.crowded) {
                self.room.ring();
            }
            return Ok(news);
        }
        match &mut state.end {
            None => {
                self.bell.hush();
                Ok(None)
            }
            // What cannot be said twice is said once.
            Some(end) => Err(match std::mem::replace(end, End::Closed) {
                End::Closed => Error::Closed(self.over),
                End::Failed(Error::Aborted) => {
                    *end = End::Failed(Error::Aborted);
                    Error::Aborted
                }
                End::Failed(error) => error,
            }),
        }
    }

    /// Waits for the next. `None`: the time is over.
    pub(crate) fn wait(&self, deadline: &Deadline) -> Result<Option<T>> {
        loop {
            if let Some(news) = self.claim()? {
                return Ok(Some(news));
            }
            if deadline.wait(&[(self.bell.as_fd(), PollFlags::POLLIN)])? == Woken::Late {
                return Ok(None);
            }
        }
    }

    pub(crate) fn add(&self, news: T) {
        let mut state = self.state();
        if state.end.is_none() {
            state.unclaimed.push_back(news);
            drop(state);
            self.bell.ring();
        }
    }

    /// Whether there is room for one more, besides those that are `coming`, where `most` that count may be unclaimed. If
    /// not, the bell that was given rings once something is claimed.
    pub(crate) fn has_room(&self, most: usize, coming: usize, counts: impl Fn(&T) -> bool) -> bool {
        let mut state = self.state();
        let there = state.unclaimed.iter().filter(|news| counts(news)).count();
        state.crowded |= there + coming >= most;
        there + coming < most
    }

    /// No more will come. The first end counts.
    pub(crate) fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.bell.ring();
    }

    /// Nobody will claim what nobody has claimed.
    pub(crate) fn discard(&self) {
        let unclaimed = std::mem::take(&mut self.state().unclaimed);
        // Not under the lock: what goes may look here.
        drop(unclaimed);
    }
}

impl<T> Drop for News<T> {
    fn drop(&mut self) {
        if !self.bell.is_here() {
            leave_torn(&mut self.state);
        }
    }
}

impl<T> AsFd for News<T> {
    /// Readable when [`News::claim`] has something, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
