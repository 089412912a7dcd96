//! A shared object as it lies in this process's memory.

use std::os::fd::{AsFd, AsRawFd};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::error::errno;

/// Maps an object from its beginning, all of it now: nothing is left for a later fault to find wanting.
///
/// A core dump must not hold what only two processes may see, and a forked child is not one of the two: madvise(2),
/// `MADV_DONTDUMP` and `MADV_DONTFORK`.
pub(crate) fn map(object: impl AsFd, length: usize, writable: bool) -> Result<MmapRaw, Errno> {
    let descriptor = object.as_fd().as_raw_fd();
    let mut options = MmapOptions::new();
    let options = options.len(length).populate();
    let mapping = if writable {
        options.map_raw(descriptor)
    } else {
        options.map_raw_read_only(descriptor)
    }
    .map_err(|error| errno(&error))?;
    for advice in [Advice::DontDump, Advice::DontFork] {
        mapping.advise(advice).map_err(|error| errno(&error))?;
    }
    Ok(mapping)
}
