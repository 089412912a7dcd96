//! What holds the bytes of a region: a mapping, or private memory.

use std::{os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64};

use crate::{
    error::{Error, Result},
    memory::layout::region_size,
    memory::mapping::Mapping,
};

const _: () = assert!(
    align_of::<AtomicU64>() == align_of::<u64>(),
    "ringfence needs a 64-bit target"
);

#[derive(Debug)]
pub(super) enum Storage {
    /// Of an object: the peer's, or this process's own.
    Mapped(Mapping),
    /// Memory of this process alone, for a half of a channel that reads or writes nothing any more.
    Private(PrivateWords),
}

impl Storage {
    /// Private memory, all zeros.
    pub(super) fn private(bytes: usize) -> Self {
        Self::Private(PrivateWords::zeroed(bytes))
    }

    pub(super) fn base(&self) -> *mut u8 {
        match self {
            Self::Mapped(map) => map.as_mut_ptr(),
            Self::Private(words) => words.0.as_ptr().cast(),
        }
    }

    /// Whether the memory is this process's: a mapping is not, in a child that was forked since.
    pub(super) fn is_here(&self) -> bool {
        match self {
            Self::Mapped(map) => map.is_here(),
            Self::Private(_) => true,
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Mapped(map) => map.len(),
            Self::Private(words) => words.0.len() * 8,
        }
    }
}

/// Zeros that take no memory before they are touched. The owner holds a raw pointer, as a mapping does: a box would claim
/// with each move or look that no other pointer leads there.
#[derive(Debug)]
pub(super) struct PrivateWords(NonNull<[u64]>);

impl PrivateWords {
    fn zeroed(bytes: usize) -> Self {
        let words = vec![0_u64; bytes.div_ceil(8)].into_boxed_slice();
        Self(NonNull::from(Box::leak(words)))
    }
}

// SAFETY: memory that the pointer owns, as good on one thread as on another; it is written only atomically, or by the
// one producer, as a mapping is.
unsafe impl Send for PrivateWords {}
// SAFETY: as above.
unsafe impl Sync for PrivateWords {}

impl Drop for PrivateWords {
    fn drop(&mut self) {
        // SAFETY: it was a box when it was made, and each region that points into it keeps it alive.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Maps an object that holds a ring of this capacity. `what` names the deed in the error.
pub(super) fn map(what: &str, object: impl AsFd, capacity: u64, writable: bool) -> Result<Mapping> {
    let size = region_size(capacity);
    let size = usize::try_from(size).map_err(|_| Error::NoSpace {
        what: format!("a mapping of {size} bytes"),
        reason: "it exceeds the address space".into(),
    })?;
    Mapping::new(object, size, writable).map_err(|errno| Error::system(what, errno))
}
