//! A shared object that is mapped into this process.

use std::{
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::{
    error::{Error, Result, errno},
    fork::Hole,
    region::layout::region_size,
};

/// A mapping of a shared object from its start. Dropping it unmaps the object.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: ManuallyDrop<MmapRaw>,
    hole: Hole,
}

impl Mapping {
    /// Maps and populates the whole object, so that no later page fault can fail.
    ///
    /// Only the two processes of the channel may see the bytes. So core dumps exclude them and forked
    /// children do not inherit them: madvise(2), `MADV_DONTDUMP` and `MADV_DONTFORK`.
    pub(crate) fn new(object: impl AsFd, length: usize, writable: bool) -> Result<Self, Errno> {
        let descriptor = object.as_fd().as_raw_fd();
        let mut options = MmapOptions::new();
        let options = options.len(length).populate();
        let map = if writable {
            options.map_raw(descriptor)
        } else {
            options.map_raw_read_only(descriptor)
        }
        .map_err(|error| errno(&error))?;
        for advice in [Advice::DontDump, Advice::DontFork] {
            map.advise(advice).map_err(|error| errno(&error))?;
        }
        Ok(Self {
            hole: Hole::at(map.as_mut_ptr(), length)?,
            map: ManuallyDrop::new(map),
        })
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether this process made the mapping. A forked child has no share in it.
    pub(crate) fn is_here(&self) -> bool {
        self.hole.birth.is_here()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child, something else may be mapped at this address.
        if self.is_here() {
            // Before another mapping can use the same address.
            self.hole.close();
            // SAFETY: the mapping is no longer used, and it is dropped only here.
            unsafe { ManuallyDrop::drop(&mut self.map) }
        }
    }
}

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
    let size = usize::try_from(size).map_err(|_| {
        Error::no_space(
            format!("a mapping of {size} bytes"),
            "it exceeds the address space",
        )
    })?;
    Mapping::new(object, size, writable).map_err(|errno| Error::system(what, errno))
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn a_mapping_is_excluded_from_core_dumps_and_forks_and_ends_when_dropped() {
        let object = memfd_create("ringfence-mapping-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&object, 8192).unwrap();
        let found = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (_, of_this) = maps.split_once("/memfd:ringfence-mapping-test")?;
            let flags = of_this.lines().find_map(|line| line.strip_prefix("VmFlags:"))?;
            Some(flags.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        for writable in [true, false] {
            let mapping = Mapping::new(&object, 8192, writable).unwrap();
            assert!(mapping.is_here());
            assert_eq!(mapping.len(), 8192);
            let flags = found().expect("the mapping");
            // From proc(5): writable, not dumped, not inherited by a fork.
            for (flag, wanted) in [("wr", writable), ("dd", true), ("dc", true)] {
                assert_eq!(flags.iter().any(|has| has == flag), wanted, "{flag}: {flags:?}");
            }
            drop(mapping);
            assert_eq!(found(), None);
        }
    }
}
