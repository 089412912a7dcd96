//! Room in a ring that is reserved without a borrow: for callers that cannot hold one, such as the binding. A channel and a
//! publisher both hand it out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{error::Error, region::own::OwnRegion};

/// Room in the ring that is not tied to its [`Sender`](crate::Sender) by a borrow. The region stays mapped while this lives. Dropping it
/// without a commit sends nothing, on whatever thread.
#[derive(Debug)]
pub struct Reserved {
    region: OwnRegion,
    at: usize,
    size: usize,
    open: Arc<AtomicBool>,
}

impl Reserved {
    /// The range must be claimed and held for this alone (see [`OwnRegion::hold`]); `open` says `true` until this is dropped.
    pub(crate) fn new(region: OwnRegion, at: usize, size: usize, open: &Arc<AtomicBool>) -> Self {
        open.store(true, Ordering::Relaxed);
        Self {
            region,
            at,
            size,
            open: Arc::clone(open),
        }
    }

    /// Gives back the range: where it lies, and how long it is. `None`: it was reserved elsewhere.
    pub(crate) fn give_back(self, open: &Arc<AtomicBool>) -> Option<(usize, usize)> {
        Arc::ptr_eq(&self.open, open).then_some((self.at, self.size))
    }

    /// The bytes to fill.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the producer claimed this range for this reservation, hands out no other before it is committed
        // or cancelled (which consume this), and this borrow is exclusive. A channel that is closed meanwhile
        // leaves the mapping alone: `region` holds it.
        unsafe { self.region.claimed(self.at, self.size) }
    }

    /// Something that keeps the memory mapped after this is gone: for bindings that show it to another language.
    pub fn keeper(&self) -> Keeper {
        Keeper {
            _region: self.region.clone(),
        }
    }

    /// Bytes reserved.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.region.let_go();
        // Release: see `Sender::must_have_ended`.
        self.open.store(false, Ordering::Release);
    }
}

/// Keeps the memory of a [`Reserved`] mapped.
#[derive(Debug, Clone)]
pub struct Keeper {
    _region: OwnRegion,
}

/// Why a reservation cannot be committed.
#[cold]
pub(crate) fn too_long(length: usize, size: usize) -> Error {
    Error::invalid(format!("{length} bytes committed of a reservation of {size}"))
}
