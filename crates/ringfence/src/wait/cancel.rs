//! Cancels a wait from another thread: a descriptor that becomes readable (eventfd(2)).

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

/// The number of attempts to write to a descriptor of this process.
const TRIES: u32 = 64;

/// Cancels the waiting of a [`join`](crate::join) on another thread. Clones share one state, and a cancelled
/// token stays cancelled. It holds one descriptor (eventfd(2)). In a forked child it cancels nothing, neither
/// in the child nor in its parent.
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
    /// Whether it was cancelled, for a wait that cannot poll its descriptors (poll(2) may fail for lack of
    /// memory).
    off: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) descriptor: EventFd,
    /// A forked child has the descriptor too, but its event belongs to the parent.
    pub(super) birth: Birth,
}

impl CancelToken {
    /// Makes a cancel token that is not cancelled.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if no descriptor is available.
    pub fn new() -> Result<Self> {
        let birth = Birth::now()?;
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| {
                let event = Event { descriptor, birth };
                let off = AtomicBool::new(false);
                Self(Arc::new(Called { event, off }))
            })
            .map_err(|errno| Error::system("a descriptor for cancelling a wait", errno))
    }

    /// Cancels each wait with this token, now or later. The wait fails with [`Error::Aborted`].
    pub fn cancel(&self) {
        // The kernel has no reason to refuse the write, but a system call filter may. A wait that is never
        // cancelled would last forever, so retry.
        if !self.is_here() {
            return;
        }
        self.0.off.store(true, Ordering::Release);
        let mut left = TRIES;
        while left > 0 && self.0.event.descriptor.write(1).is_err() {
            left -= 1;
        }
    }

    /// Whether it was cancelled, without reading its descriptor.
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

/// A wakeup between threads of this process, built on the same descriptor. [`Bell::ring`] makes it readable.
#[derive(Debug, Clone)]
pub(crate) struct Bell(CancelToken);

impl Bell {
    pub(crate) fn new() -> Result<Self> {
        CancelToken::new().map(Self)
    }

    pub(crate) fn ring(&self) {
        self.0.cancel();
    }

    /// Clears the wakeup.
    pub(crate) fn hush(&self) {
        if self.is_here() {
            // The read fails if nothing was signalled, which is fine.
            let _ = self.0.0.event.descriptor.read();
        }
    }

    /// Whether it was made in this process, and not in a process from which this one was forked.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }

    /// Whether it was signalled. Clears the wakeup.
    pub(crate) fn was_rung(&self) -> bool {
        self.is_here() && self.0.0.event.descriptor.read().is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
