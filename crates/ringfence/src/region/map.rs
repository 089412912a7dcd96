//! A shared object that is mapped into this process.

use std::{
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd},
};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::{error::errno, fork::Hole};

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
