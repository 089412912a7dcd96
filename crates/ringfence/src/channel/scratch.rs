//! Memory in which a message in fragments is assembled.
//!
//! The peer chooses its size. A peer that announces a size and sends nothing more must not cause that much
//! memory to be allocated. So it grows with the bytes received. It is a separate mapping instead of a `Vec`:
//! it grows without a copy, a shortage is an error and no abort, and released memory returns to the system
//! rather than to the allocator.

use memmap2::{MmapMut, RemapOptions};

use crate::{
    error::{Error, Result},
    ring::spsc::FragmentBuffer,
};

#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<MmapMut>);

impl Scratch {
    /// Returns the number of bytes that are mapped. Pages use memory once they are written.
    pub(crate) fn size(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// Returns the first `length` bytes of the message. The caller has made room for them.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| &map[..length])
    }

    pub(crate) fn give_back(&mut self) {
        self.0 = None;
    }

    fn grow(&mut self, size: usize) -> std::io::Result<()> {
        match &mut self.0 {
            None => self.0 = Some(MmapMut::map_anon(size)?),
            // ThreadSanitizer does not track mremap(2): it would take a moved mapping for another thread's
            // memory.
            Some(map) if cfg!(ringfence_tsan) => {
                let mut larger = MmapMut::map_anon(size)?;
                larger[..map.len()].copy_from_slice(map);
                *map = larger;
            }
            // SAFETY: the mapping belongs to this value, no other code has a reference into it (this takes an
            // exclusive one), and it is anonymous, so that there is memory behind all of the new size.
            Some(map) => unsafe { map.remap(size, RemapOptions::new().may_move(true)) }?,
        }
        Ok(())
    }
}

impl FragmentBuffer for Scratch {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        let there = self.size();
        if there < to {
            // Double the size for fewer calls. If that fails, only what is needed.
            let wanted = to.max(2 * there).min(size);
            self.grow(wanted)
                .or_else(|_| self.grow(to))
                .map_err(|error| Error::NoSpace {
                    what: format!("{to} of the {size} bytes of a message"),
                    reason: error.to_string(),
                })?;
        }
        match &mut self.0 {
            Some(map) => Ok(&mut map[from..to]),
            None => Ok(&mut []),
        }
    }
}
