//! What calls a wait off, from another thread: a descriptor that becomes readable (eventfd(2)).

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    error::{Error, Result},
    fork::Birth,
};

/// Calls off the waiting of a [`join`](crate::join) on another thread. Clones share one state; once called off, it
/// stays so. Holds one descriptor (eventfd(2)). In a child that was forked it calls nothing off, neither here nor there.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Event>);

#[derive(Debug)]
pub(super) struct Event {
    pub(super) descriptor: EventFd,
    /// A child has the descriptor as well, and what it leads to is its parent's.
    pub(super) birth: Birth,
}

impl CancelToken {
    /// A cancel token that has not been used. Errors with [`Error::NoSpace`] where descriptors have run out.
    pub fn new() -> Result<Self> {
        let birth = Birth::now()?;
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| Self(Arc::new(Event { descriptor, birth })))
            .map_err(|errno| Error::system("a descriptor to call off the waiting", errno))
    }

    /// Calls off whatever waits with this cancel token, now or later. It ends with [`Error::Aborted`].
    pub fn cancel(&self) {
        if self.is_here() {
            // The only failure is a counter near its 64-bit limit, which is called off already.
            let _ = self.0.descriptor.write(1);
        }
    }

    pub(super) fn is_here(&self) -> bool {
        self.0.birth.is_here()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

/// The same descriptor as a bell inside this process: rung by [`Bell::ring`], heard by waiting for it to be readable.
#[derive(Debug, Clone)]
pub(crate) struct Bell(CancelToken);

impl Bell {
    pub(crate) fn new() -> Result<Self> {
        CancelToken::new().map(Self)
    }

    pub(crate) fn ring(&self) {
        self.0.cancel();
    }

    /// Forgets what was rung so far.
    pub(crate) fn hush(&self) {
        if self.is_here() {
            // Nothing to read is what is wanted.
            let _ = self.0.0.descriptor.read();
        }
    }

    /// Whether it was made in this process, and not in one that this was forked from.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }

    /// Whether it was rung, which is forgotten by that.
    pub(crate) fn was_rung(&self) -> bool {
        self.is_here() && self.0.0.descriptor.read().is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
