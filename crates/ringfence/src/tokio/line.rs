//! The line of a channel in the runtime's event loop, for both halves.
//!
//! A wakeup does not say which half it is for. A half that reads the line consumes wakeups for the other half
//! too, including those that the runtime has not reported yet and now will not report. So a half that has
//! read the line wakes the other half. A half that was about to wait, and had no waker registered yet, sees
//! that `Doorbell::generation` has changed since it parked.

use std::{
    any::Any,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

use crate::{
    channel::end::Shared,
    channel::waiting::Waits,
    error::{Error, OrSystem, Result, errno},
    fork::OwnerProcess,
    wait::deadline::readable,
};

/// The half that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Sender = 0,
    Receiver = 1,
}

/// The line, and the peer's process.
pub(super) struct Line {
    bell: Watched,
    /// The line alone does not suffice: it stays open while another process holds the peer's end.
    exit: Option<Watched>,
    half_wakers: Arc<HalfWakers>,
    /// Wakes the tasks of both halves.
    waker: Waker,
}

/// The tasks in which the halves wait.
#[derive(Debug, Default)]
struct HalfWakers(Mutex<[Option<Waker>; 2]>);

impl HalfWakers {
    fn set(&self, half: Half, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut wakers[half as usize] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn wake_other(&self, half: Half) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = wakers[1 - half as usize].take();
        drop(wakers);
        if let Some(other) = other {
            other.wake();
        }
    }
}

impl Wake for HalfWakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Line {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Arc<Self>> {
        let half_wakers = Arc::new(HalfWakers::default());
        // Linux before 5.3 has no pidfds.
        let pidfd = shared.doorbell.pidfd();
        Ok(Arc::new(Self {
            bell: Watched::of(shared, shared.doorbell.try_line()?)?,
            exit: pidfd.map(|pidfd| Watched::of(shared, pidfd)).transpose()?,
            waker: Waker::from(Arc::clone(&half_wakers)),
            half_wakers,
        }))
    }

    /// Polls until the half's condition holds, or can no longer hold.
    pub(super) fn poll_ready<W: Waits>(
        &self,
        half: Half,
        waits: &mut W,
        cx: &Context<'_>,
        what: W::For,
    ) -> Poll<Result<()>> {
        loop {
            let generation = waits.parking().shared.doorbell.generation();
            if !waits.arm_for(what)? {
                return Poll::Ready(Ok(()));
            }
            let polled = ready!(self.poll_event(half, waits, cx, generation));
            waits.unpark();
            polled?;
        }
    }

    /// Polls until an event has arrived, for a half that cannot read now.
    pub(super) fn poll_line<W: Waits>(
        &self,
        half: Half,
        waits: &mut W,
        cx: &Context<'_>,
    ) -> Poll<Result<()>> {
        let generation = waits.parking().shared.doorbell.generation();
        self.poll_event(half, waits, cx, generation)
    }

    /// Polls until an event has arrived after `generation`: the line is readable or has ended, the peer's process has exited, or the
    /// other half has read the line. Handles it on behalf of this half.
    fn poll_event<W: Waits>(
        &self,
        half: Half,
        waits: &mut W,
        cx: &Context<'_>,
        generation: u64,
    ) -> Poll<Result<()>> {
        self.half_wakers.set(half, cx.waker());
        // tokio keeps only the most recent waker, so register a shared one.
        let cx = &mut Context::from_waker(&self.waker);
        let bell = ready_now(self.bell.poll(cx))?;
        let exit = match &self.exit {
            Some(exit) => ready_now(exit.poll(cx))?,
            None => None,
        };
        let shared = waits.parking().shared;
        if bell.is_none() && exit.is_none() {
            // Check after registering the waker. A half that has read the line earlier has already moved the
            // generation, and one that reads the line later finds the waker.
            if shared.doorbell.generation() == generation && !shared.doorbell.is_gone() {
                return Poll::Pending;
            }
            shared.end_if_gone();
            return Poll::Ready(Ok(()));
        }
        if let Some(exit) = exit {
            shared.doorbell.check_peer();
            if shared.doorbell.is_gone() {
                exit.clear();
            }
        }
        let read = waits.read_line();
        if let Some(bell) = bell {
            bell.clear();
        }
        // Wake only after the generation has moved.
        self.half_wakers.wake_other(half);
        Poll::Ready(read)
    }
}

/// Returns the result of a poll, or `None` if it is pending.
fn ready_now<T>(polled: Poll<Result<T>>) -> Result<Option<T>> {
    match polled {
        Poll::Ready(found) => found.map(Some),
        Poll::Pending => Ok(None),
    }
}

/// A descriptor, and the value that keeps it open: a copy, or the state of the channel that it belongs to.
struct RetainedFd {
    number: RawFd,
    _owner: Box<dyn Any + Send + Sync>,
}

impl AsRawFd for RetainedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

/// A descriptor that the runtime watches.
pub(super) struct Watched {
    registered: ManuallyDrop<AsyncFd<RetainedFd>>,
    owner: OwnerProcess,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A forked child shares the event loop's epoll instance with its parent: deregistering here would
        // silence the parent.
        if self.owner.is_current() {
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.registered) }
        }
    }
}

impl Watched {
    /// Watches a descriptor that lives as long as this channel.
    fn of(shared: &Arc<Shared>, descriptor: BorrowedFd<'_>) -> Result<Self> {
        Self::new(RetainedFd {
            number: descriptor.as_raw_fd(),
            _owner: Box::new(Arc::clone(shared)),
        })
    }

    /// Watches a copy of any other descriptor, since its owner may be replaced or dropped before this. The
    /// copy becomes readable with the original.
    pub(super) fn copy_of(descriptor: impl AsFd) -> Result<Self> {
        let own = descriptor.as_fd().try_clone_to_owned();
        let own = own.or_system("a descriptor for the runtime")?;
        Self::new(RetainedFd {
            number: own.as_raw_fd(),
            _owner: Box::new(own),
        })
    }

    fn new(retained: RetainedFd) -> Result<Self> {
        let owner = OwnerProcess::current()?;
        // SAFETY: the number is that of an open descriptor. `_owner` keeps it open, and is dropped together
        // with the registration. A channel has one line and one pidfd, and neither is closed or replaced
        // before the channel is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(retained, Interest::READABLE) };
        let registered = registered.map_err(|error| {
            let (_retained, error) = error.into_parts();
            Error::system("the runtime's event loop", errno(&error))
        })?;
        Ok(Self {
            registered: ManuallyDrop::new(registered),
            owner,
        })
    }

    /// Polls until the descriptor is readable. Only the task that polled last is woken.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Readable<'_>>> {
        let guard = ready!(self.registered.poll_read_ready(cx));
        Poll::Ready(guard.map(Readable).map_err(|error| runtime_has_ended(&error)))
    }

    /// Waits until the descriptor is readable. Any number of tasks may wait.
    pub(super) async fn readable(&self) -> Result<Readable<'_>> {
        let guard = self.registered.readable().await;
        guard.map(Readable).map_err(|error| runtime_has_ended(&error))
    }
}

/// A descriptor that was readable. The runtime reports changes only, so it considers the descriptor readable
/// until readiness is cleared.
pub(super) struct Readable<'a>(AsyncFdReadyGuard<'a, RetainedFd>);

impl Readable<'_> {
    /// Clears readiness once everything was read. Call it after reading: an event that arrives in between is
    /// a change, and this does not clear it.
    pub(super) fn clear(mut self) {
        self.0.clear_ready();
    }

    /// As [`Readable::clear`], if `descriptor` is no longer readable. `descriptor` is the one that was
    /// read.
    pub(super) fn clear_if_drained(self, descriptor: impl AsFd) {
        if readable(std::iter::once(descriptor.as_fd())) == [false] {
            self.clear();
        }
    }
}

/// Builds the error for a runtime that no longer reports events.
#[cold]
fn runtime_has_ended(error: &io::Error) -> Error {
    Error::Unsupported {
        what: "a runtime of Tokio, which has ended".into(),
        source: Some(io::Error::new(error.kind(), error.to_string())),
    }
}
