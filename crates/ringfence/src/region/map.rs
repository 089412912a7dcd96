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
pub(crate) struct Mapping {
    map: ManuallyDrop<MmapRaw>,
    hole: Hole,
}

impl Mapping {
    /// Maps and populates the whole object, so that later accesses do not wait for page faults.
    ///
    /// Only the two processes of the channel may see the bytes. So core dumps exclude them and forked
    /// children do not inherit them: madvise(2), `MADV_DONTDUMP` and `MADV_DONTFORK`.
    pub(crate) fn new(object: impl AsFd, length: usize, writable: bool) -> Result<Self, Errno> {
        let descriptor = object.as_fd().as_raw_fd();
        let mut options = MmapOptions::new();
        let options = options.len(length);
        let map = if writable {
            options.map_raw(descriptor)
        } else {
            options.map_raw_read_only(descriptor)
        }
        .map_err(|error| errno(&error))?;
        for advice in [Advice::DontDump, Advice::DontFork] {
            map.advise(advice).map_err(|error| errno(&error))?;
        }
        populate(&map, writable);
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
    pub(crate) fn in_owner_process(&self) -> bool {
        self.hole.owner.is_current()
    }
}

/// Has the kernel map all pages of a mapping, whose memory is reserved already. `MAP_POPULATE` takes half as long again for
/// pages to write, and three times as long for pages to read.
fn populate(map: &MmapRaw, writable: bool) {
    /// The least size of a page.
    const PAGE: usize = 4096;
    /// A read also maps the neighbours of its page, by default all in 64 KiB at a multiple of 64 KiB.
    const FAULT_AROUND: usize = 16 * PAGE;
    let step = match writable {
        false => FAULT_AROUND,
        true if map.advise(Advice::PopulateWrite).is_ok() => return,
        // Before Linux 5.14, or denied by a filter.
        true => PAGE,
    };
    for at in (0..map.len()).step_by(step).chain([map.len() - 1]) {
        // SAFETY: the mapping has `map.len()` bytes. Volatile, so that the compiler keeps the accesses. No one uses a mapping to write
        // before this returns, so what is written back is what was there.
        unsafe {
            let byte = map.as_mut_ptr().add(at);
            let found = byte.read_volatile();
            if writable {
                byte.write_volatile(found);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child, something else may be mapped at this address.
        if self.in_owner_process() {
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

pub(super) enum Storage {
    /// A mapping of an object, the peer's or this process's own.
    Mapped(Mapping),
    /// Private memory, for a half of a channel that no longer reads or writes.
    Private(PrivateWords),
}

impl Storage {
    /// Makes private memory, all zeros.
    pub(super) fn private(bytes: usize) -> Self {
        let words = vec![0_u64; bytes.div_ceil(8)].into_boxed_slice();
        Self::Private(PrivateWords(NonNull::from(Box::leak(words))))
    }

    pub(super) fn base(&self) -> *mut u8 {
        match self {
            Self::Mapped(map) => map.as_mut_ptr(),
            Self::Private(words) => words.0.as_ptr().cast(),
        }
    }

    /// Whether the memory belongs to this process. A mapping does not belong to a child that was forked
    /// later.
    pub(super) fn in_owner_process(&self) -> bool {
        match self {
            Self::Mapped(map) => map.in_owner_process(),
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
pub(super) struct PrivateWords(NonNull<[u64]>);

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
    use std::sync::atomic::{AtomicU8, Ordering};

    use nix::{
        fcntl::{FallocateFlags, fallocate},
        sys::{
            memfd::{MFdFlags, memfd_create},
            resource::{UsageWho, getrusage},
        },
        unistd::ftruncate,
    };

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn mapping_is_excluded_from_dumps_and_forks_until_drop() {
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
            assert!(mapping.in_owner_process());
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

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn mapped_object_causes_no_page_faults() {
        const PAGES: usize = 256;
        let size = i64::try_from(PAGES * 4096).unwrap();
        let object = memfd_create("ringfence-faults-test", MFdFlags::MFD_CLOEXEC).unwrap();
        fallocate(&object, FallocateFlags::empty(), 0, size).unwrap();
        let own = Mapping::new(&object, PAGES * 4096, true).unwrap();
        let peers = Mapping::new(&object, PAGES * 4096, false).unwrap();
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let byte = |map: &Mapping, page: usize| {
            // SAFETY: inside the mapping.
            let byte = unsafe { map.as_mut_ptr().add(page * 4096) };
            // SAFETY: both mappings exist until the end of the test.
            unsafe { AtomicU8::from_ptr(byte) }
        };
        let before = faults();
        for page in 0..PAGES {
            byte(&own, page).store(1, Ordering::Relaxed);
        }
        let written = faults();
        for page in 0..PAGES {
            assert_eq!(byte(&peers, page).load(Ordering::Relaxed), 1);
        }
        // The kernel may have taken some pages away in the meantime.
        let (written, read) = (written - before, faults() - written);
        assert!(written < 16 && read < 16, "{written} and {read} faults");
    }
}
