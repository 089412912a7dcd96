//! A shared object as it lies in this process's memory.

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
    /// Maps all of it now: nothing is left for a later fault to find wanting.
    ///
    /// A core dump must not hold what only two processes may see, and a forked child is not one of the two: madvise(2),
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

    /// Whether this process has it; a child of the one that has made it has not.
    pub(crate) fn is_here(&self) -> bool {
        self.hole.birth.is_here()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a child something else may be mapped there.
        if self.is_here() {
            // Before the place can be another's.
            self.hole.close();
            // SAFETY: it is looked at no more, and this happens once.
            unsafe { ManuallyDrop::drop(&mut self.map) }
        }
    }
}
