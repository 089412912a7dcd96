//! What calls a wait off, from another thread: a descriptor that becomes readable (eventfd(2)).

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    error::{Error, Result},
    fork::Birth,
};

/// How often a write to a descriptor of this process's own is tried.
const TRIES: u32 = 64;

/// Calls off the waiting of a [`join`](crate::join) on another thread. Clones share one state, which stays called off. It holds
/// one descriptor (eventfd(2)). In a forked child it calls nothing off, neither in the child nor in its parent.
///
/// ```
/// use ringfence::{Address, CancelToken, Error, Options, join};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = format!("@example-{}", std::process::id()).parse()?;
/// let cancel = CancelToken::new()?;
/// let options = Options::new().cancel_token(cancel.clone());
/// let waiting = std::thread::spawn(move || join(&address, &options));
/// cancel.cancel();
/// assert!(matches!(waiting.join().expect("no panic"), Err(Error::Aborted)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Called>);

#[derive(Debug)]
struct Called {
    event: Event,
    /// It was called off: for a wait that can look at no descriptor (poll(2) fails for want of memory, say).
    off: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) descriptor: EventFd,
    /// A child has the descriptor as well, and what it leads to is its parent's.
    pub(super) birth: Birth,
}

impl CancelToken {
    /// A cancel token that has not been used.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where descriptors have run out.
    pub fn new() -> Result<Self> {
        let birth = Birth::now()?;
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| {
                let event = Event { descriptor, birth };
                let off = AtomicBool::new(false);
                Self(Arc::new(Called { event, off }))
            })
            .map_err(|errno| Error::system("a descriptor to call off the waiting", errno))
    }

    /// Calls off each wait with this cancel token, now or later. The wait ends with [`Error::Aborted`].
    pub fn cancel(&self) {
        // The kernel has no reason to refuse, but what filters system calls may have one, and a wait that is never called off
        // lasts for ever.
        if !self.is_here() {
            return;
        }
        self.0.off.store(true, Ordering::Release);
        let mut left = TRIES;
        while left > 0 && self.0.event.descriptor.write(1).is_err() {
            left -= 1;
        }
    }

    /// Whether it was used, as is known without a look at its descriptor.
    pub(super) fn is_used(&self) -> bool {
        self.0.off.load(Ordering::Acquire)
    }

    pub(super) fn is_here(&self) -> bool {
        self.0.event.birth.is_here()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.descriptor.as_fd()
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
            let _ = self.0.0.event.descriptor.read();
        }
    }

    /// Whether it was made in this process, and not in one that this was forked from.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }

    /// Whether it was rung, which is forgotten by that.
    pub(crate) fn was_rung(&self) -> bool {
        self.is_here() && self.0.0.event.descriptor.read().is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
