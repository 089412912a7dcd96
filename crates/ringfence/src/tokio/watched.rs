//! A descriptor in the runtime's event loop.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

use crate::{
    channel::end::Shared,
    error::{Error, Result, errno},
    fork::Birth,
    wait::deadline::readable,
};

/// A descriptor, and the value that keeps it open.
#[derive(Debug)]
struct Kept {
    number: RawFd,
    _by: Keeper,
}

#[derive(Debug)]
enum Keeper {
    /// The descriptor belongs to a channel, and stays open as long as the channel's state is in memory.
    Channel {
        _shared: Arc<Shared>,
    },
    Copy {
        _own: OwnedFd,
    },
}

impl AsRawFd for Kept {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

/// A descriptor that the runtime watches.
#[derive(Debug)]
pub(super) struct Watched {
    registered: ManuallyDrop<AsyncFd<Kept>>,
    birth: Birth,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A forked child shares the event loop's epoll instance with its parent: deregistering here would
        // silence the parent.
        if self.birth.is_here() {
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.registered) }
        }
    }
}

impl Watched {
    /// Watches the line of a channel.
    pub(super) fn line_of(shared: &Arc<Shared>) -> Result<Self> {
        let number = shared.doorbell.try_line()?.as_raw_fd();
        Self::new(Kept {
            number,
            _by: Keeper::Channel {
                _shared: Arc::clone(shared),
            },
        })
    }

    /// Watches the pidfd of the peer's process, if the kernel has pidfds.
    pub(super) fn process_of(shared: &Arc<Shared>) -> Result<Option<Self>> {
        let pidfd = shared.doorbell.pidfd();
        let kept = pidfd.map(|pidfd| Kept {
            number: pidfd.as_raw_fd(),
            _by: Keeper::Channel {
                _shared: Arc::clone(shared),
            },
        });
        kept.map(Self::new).transpose()
    }

    /// Watches a copy of any other descriptor, since its owner may be replaced or dropped before this. The
    /// copy becomes readable with the original.
    pub(super) fn copy_of(descriptor: impl AsFd) -> Result<Self> {
        let own = descriptor.as_fd().try_clone_to_owned();
        let own = own.map_err(|error| Error::system("a descriptor for the runtime", errno(&error)))?;
        Self::new(Kept {
            number: own.as_raw_fd(),
            _by: Keeper::Copy { _own: own },
        })
    }

    fn new(kept: Kept) -> Result<Self> {
        let birth = Birth::now()?;
        // SAFETY: the number is that of an open descriptor. The keeper keeps it open, and is dropped together
        // with the registration. A channel has one line and one pidfd, and neither is closed or replaced
        // before the channel is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(kept, Interest::READABLE) };
        let registered = registered.map_err(|error| {
            let (_kept, error) = error.into_parts();
            Error::system("the runtime's event loop", errno(&error))
        })?;
        Ok(Self {
            registered: ManuallyDrop::new(registered),
            birth,
        })
    }

    /// Polls until the descriptor is readable. Only the task that polled last is woken.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Readable<'_>>> {
        let guard = ready!(self.registered.poll_read_ready(cx));
        Poll::Ready(guard.map(Readable).map_err(|error| is_over(&error)))
    }

    /// Waits until the descriptor is readable. Any number of tasks may wait.
    pub(super) async fn readable(&self) -> Result<Readable<'_>> {
        let guard = self.registered.readable().await;
        guard.map(Readable).map_err(|error| is_over(&error))
    }
}

/// A descriptor that was readable. The runtime reports changes only, so it considers the descriptor readable
/// until readiness is cleared.
#[derive(Debug)]
pub(super) struct Readable<'a>(AsyncFdReadyGuard<'a, Kept>);

impl Readable<'_> {
    /// Clears readiness once everything was read. Call it after reading: an event that arrives in between is
    /// a change, and this does not clear it.
    pub(super) fn was_read(mut self) {
        self.0.clear_ready();
    }

    /// As [`Readable::was_read`], if `descriptor` is no longer readable. `descriptor` is the one that was
    /// read.
    pub(super) fn may_be_read(self, descriptor: impl AsFd) {
        if readable(std::iter::once(descriptor.as_fd())) == [false] {
            self.was_read();
        }
    }
}

/// Builds the error for a runtime that no longer reports events.
#[cold]
fn is_over(error: &io::Error) -> Error {
    Error::Unsupported {
        what: "a runtime of Tokio, which has ended".into(),
        source: Some(io::Error::new(error.kind(), error.to_string())),
    }
}
