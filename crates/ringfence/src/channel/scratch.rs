//! Memory in which a message is put together that comes in fragments.
//!
//! Its size is the peer's word: one that names a size and sends no more must not have that much taken here. So it grows with
//! what has come. It is a mapping of its own and no `Vec`: it grows without a copy, a shortage is an error and no abort, and what
//! is given back is the system's again, and not the allocator's.

use memmap2::{MmapMut, RemapOptions};

use crate::{
    error::{Error, Result},
    ring::consumer::FragmentBuffer,
};

#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<MmapMut>);

impl Scratch {
    /// Bytes that are held, or would be once they are written.
    pub(crate) fn size(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// The first `length` bytes of the message, for which there was room made.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| &map[..length])
    }

    pub(crate) fn give_back(&mut self) {
        self.0 = None;
    }

    fn grow(&mut self, size: usize) -> std::io::Result<()> {
        match &mut self.0 {
            None => self.0 = Some(MmapMut::map_anon(size)?),
            // ThreadSanitizer sees no mremap(2): what has moved would be another thread's memory to it.
            Some(map) if cfg!(ringfence_tsan) => {
                let mut larger = MmapMut::map_anon(size)?;
                larger[..map.len()].copy_from_slice(map);
                *map = larger;
            }
            // SAFETY: the mapping is this one's own, no other code has a reference into it (this takes an exclusive one), and it is
            // anonymous, so that there is memory behind all of the new size.
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
