//! The memory behind a region: a mapping or private memory.

use std::{os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64};

use crate::{
    error::{Error, Result},
    region::layout::region_size,
    region::map::Mapping,
};

const _: () = assert!(
    align_of::<AtomicU64>() == align_of::<u64>(),
    "ringfence needs a 64-bit target"
);

#[derive(Debug)]
pub(super) enum Storage {
    /// A mapping of an object, the peer's or this process's own.
    Mapped(Mapping),
    /// Private memory, for a half of a channel that no longer reads or writes.
    Private(PrivateWords),
}

impl Storage {
    /// Makes private memory, all zeros.
    pub(super) fn private(bytes: usize) -> Self {
        Self::Private(PrivateWords::zeroed(bytes))
    }

    pub(super) fn base(&self) -> *mut u8 {
        match self {
            Self::Mapped(map) => map.as_mut_ptr(),
            Self::Private(words) => words.0.as_ptr().cast(),
        }
    }

    /// Whether the memory belongs to this process. A mapping does not belong to a child that was forked
    /// later.
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

/// Zeros that use no physical memory until they are touched. The owner holds a raw pointer, as a mapping
/// does. A box would assert, with each move or access, that no other pointer to the memory exists.
#[derive(Debug)]
pub(super) struct PrivateWords(NonNull<[u64]>);

impl PrivateWords {
    fn zeroed(bytes: usize) -> Self {
        let words = vec![0_u64; bytes.div_ceil(8)].into_boxed_slice();
        Self(NonNull::from(Box::leak(words)))
    }
}

// SAFETY: this value owns the memory behind the pointer, and the memory is valid on every thread. It is
// written only atomically, or by the single producer, as a mapping is.
unsafe impl Send for PrivateWords {}
// SAFETY: as above.
unsafe impl Sync for PrivateWords {}

impl Drop for PrivateWords {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box, and every region that points into the memory keeps this value
        // alive.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Maps an object that holds a ring of this capacity. `what` names the operation in errors.
pub(super) fn map(what: &str, object: impl AsFd, capacity: u64, writable: bool) -> Result<Mapping> {
    let size = region_size(capacity);
    let size = usize::try_from(size).map_err(|_| Error::NoSpace {
        what: format!("a mapping of {size} bytes"),
        reason: "it exceeds the address space".into(),
    })?;
    Mapping::new(object, size, writable).map_err(|errno| Error::system(what, errno))
}
