//! A shared object, mapped into this process.

use std::{
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd},
};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::{error::errno, fork::Hole};

/// A mapping of a shared object from its beginning; unmapped when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: ManuallyDrop<MmapRaw>,
    hole: Hole,
}

impl Mapping {
    /// Maps all of it now, so that no later page fault can fail.
    ///
    /// Only two processes may see the bytes. So a core dump does not hold them, and a forked child does not get them: madvise(2),
    /// `MADV_DONTDUMP` and `MADV_DONTFORK`.
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

    /// Whether this process made the mapping. A forked child has no part in it.
    pub(crate) fn is_here(&self) -> bool {
        self.hole.birth.is_here()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child something else may be mapped there.
        if self.is_here() {
            // Before another mapping can take the place.
            self.hole.close();
            // SAFETY: the mapping is not used any more, and this happens once.
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
    fn a_mapping_is_in_no_core_dump_and_in_no_child_and_ends_with_its_holder() {
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
            // Of proc(5): written to, not dumped, not copied by a fork.
            for (flag, wanted) in [("wr", writable), ("dd", true), ("dc", true)] {
                assert_eq!(flags.iter().any(|has| has == flag), wanted, "{flag}: {flags:?}");
            }
            drop(mapping);
            assert_eq!(found(), None);
        }
    }
}
