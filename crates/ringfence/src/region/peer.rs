//! The region that the peer owns. This process can only read it.
//!
//! Nothing here becomes a Rust reference to memory that the peer writes. The region is read only through
//! volatile accesses and opaque copies. It lies outside every Rust allocation, so such a read returns some
//! bytes whatever the peer writes concurrently (see `ptr::read_volatile`). The reader checks the bytes that
//! it got.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::region::copy::{BLOCK, ROW, load_line, load_pair, load_row};
use crate::{
    error::{Error, Result},
    region::copy::Readable,
    region::copy::{Cache, LINE, SMALL, opaque_copy, prefetch},
    region::layout::{self, MAGIC},
    region::map::{Storage, map},
    region::own::OwnRegion,
};

/// The region that the peer owns, mapped for reading. Its content may change at any time, and must not be
/// trusted.
#[derive(Clone)]
pub(crate) struct PeerRegion {
    base: *const u8,
    /// That of the mapping, which is there as long as this.
    size: usize,
    _memory: Arc<Storage>,
}

// SAFETY: as for OwnRegion. This region is never written at all.
unsafe impl Send for PeerRegion {}
// SAFETY: as above.
unsafe impl Sync for PeerRegion {}

impl PeerRegion {
    /// Maps the peer's object for reading, and checks its header words.
    pub(crate) fn map(object: impl AsFd, capacity: u64) -> Result<Self> {
        let map = map("mapping the peer's object", object, capacity, false)?;
        let region = Self {
            base: map.as_mut_ptr(),
            size: map.len(),
            _memory: Arc::new(Storage::Mapped(map)),
        };
        for (check, at, wanted) in [
            ("layout", layout::MAGIC_AT, MAGIC),
            ("capacity", layout::CAPACITY, capacity),
        ] {
            let found = region.load(at, Ordering::Acquire);
            if found != wanted {
                let (wanted, found) = (format!("{wanted:#x}"), format!("{found:#x}"));
                return Err(Error::unsound(check, wanted, found));
            }
        }
        Ok(region)
    }

    /// Makes an empty ring in private memory, for a half of a channel that no longer reads.
    pub(crate) fn detached() -> Self {
        Self::from(&OwnRegion::detached())
    }

    /// Whether this is an empty ring: see [`PeerRegion::detached`].
    pub(crate) fn is_detached(&self) -> bool {
        self.size == layout::DATA
    }

    /// Reads the word at a multiple of eight, even while the peer writes it. For payloads.
    #[inline]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "the base is a page or a slice of words, and `at` a multiple of eight"
    )]
    pub(crate) fn peek(&self, at: usize) -> u64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.size,
            "a word of the region"
        );
        // SAFETY: in bounds and aligned. The memory is a mapping of another process's object and lies outside
        // every Rust allocation (or it is private memory that is no longer written). So a volatile read is
        // defined and returns some eight bytes.
        unsafe { self.base.add(at).cast::<u64>().read_volatile() }
    }

    /// Reads a line of words like [`PeerRegion::peek`]. To the compiler they are values of this process: it may add up two at a time, for
    /// example, which it may not for words that it reads one by one.
    #[inline]
    pub(crate) fn peek_line(&self, at: usize) -> [u64; LINE / 8] {
        debug_assert!(
            at.is_multiple_of(8) && at + LINE <= self.size,
            "a line of the region"
        );
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: in bounds.
        unsafe {
            load_line(self.base.add(at))
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        std::array::from_fn(|index| self.peek(at + index * 8))
    }

    /// Reads two words like [`PeerRegion::peek`], in one access.
    #[inline]
    fn peek_pair(&self, at: usize) -> [u8; 16] {
        debug_assert!(
            at.is_multiple_of(8) && at + 16 <= self.size,
            "two words of the region"
        );
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: in bounds.
        unsafe {
            load_pair(self.base.add(at))
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            let mut pair = [0; 16];
            pair[..8].copy_from_slice(&self.peek(at).to_ne_bytes());
            pair[8..].copy_from_slice(&self.peek(at + 8).to_ne_bytes());
            pair
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
impl PeerRegion {
    /// Reads consecutive words with wide loads.
    ///
    /// # Safety
    /// The row lies in the region, and the processor has AVX2: see [`has_wide_loads`](crate::region::copy::has_wide_loads).
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(crate) unsafe fn peek_row(&self, at: usize) -> [u64; ROW / 8] {
        debug_assert!(at + ROW <= self.size, "a row of the region");
        // SAFETY: the caller guarantees the row and AVX2.
        unsafe { load_row(self.base.wrapping_add(at)) }
    }

    /// Reads a block like [`PeerRegion::peek_row`].
    ///
    /// # Safety
    /// The block lies in the region, and the processor has AVX2.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(crate) unsafe fn peek_block(&self, at: usize) -> [u64; BLOCK / 8] {
        let mut rows = [[0; ROW / 8]; BLOCK / ROW];
        for (index, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller guarantees the block, which includes the row, and AVX2.
            *row = unsafe { self.peek_row(at + index * ROW) };
        }
        // SAFETY: an array of arrays has the same layout as a flat array.
        unsafe { std::mem::transmute::<[[u64; ROW / 8]; BLOCK / ROW], [u64; BLOCK / 8]>(rows) }
    }
}

impl Readable for PeerRegion {
    #[inline]
    fn will_read(&self, at: usize) {
        prefetch(self.base.wrapping_add(at), Cache::First);
    }

    #[inline]
    fn will_read_later(&self, at: usize) {
        prefetch(self.base.wrapping_add(at), Cache::Second);
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.size,
            "a word of the region"
        );
        // SAFETY: in bounds and aligned. The owner accesses these words only atomically. If it violates that,
        // it does so outside Rust's memory model, where an atomic load is a plain machine load of eight
        // bytes.
        let word = unsafe { AtomicU64::from_ptr(self.base.add(at).cast_mut().cast()) };
        // ThreadSanitizer does not understand fences. Its tests use writable memory of this process.
        if cfg!(ringfence_tsan) {
            return word.load(order);
        }
        // The mapping may be read-only, and std::sync::atomic supports only relaxed loads there. Hence the
        // fence.
        let value = word.load(Ordering::Relaxed);
        if !matches!(order, Ordering::Relaxed) {
            fence(Ordering::Acquire);
        }
        value
    }

    #[inline]
    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= self.size, "the range lies in the region");
        if into.len() <= SMALL || cfg!(miri) {
            let mut from = at;
            let mut lines = into.chunks_exact_mut(LINE);
            for line in &mut lines {
                line.copy_from_slice(bytemuck::bytes_of(&self.peek_line(from)));
                from += LINE;
            }
            let mut pairs = lines.into_remainder().chunks_exact_mut(16);
            for pair in &mut pairs {
                pair.copy_from_slice(&self.peek_pair(from));
                from += 16;
            }
            let mut words = pairs.into_remainder().chunks_exact_mut(8);
            for word in &mut words {
                word.copy_from_slice(&self.peek(from).to_ne_bytes());
                from += 8;
            }
            let rest = words.into_remainder();
            if !rest.is_empty() {
                // The region's size is a multiple of eight, so the last word is complete.
                let bytes = self.peek(from).to_ne_bytes();
                rest.copy_from_slice(&bytes[..rest.len()]);
            }
        } else {
            // SAFETY: in bounds on both sides, and only this thread uses the destination.
            unsafe { opaque_copy(self.base.add(at), into.as_mut_ptr(), into.len()) }
        }
    }
}

/// The peer's view of a region in private memory.
impl From<&OwnRegion> for PeerRegion {
    fn from(own: &OwnRegion) -> Self {
        Self {
            base: own.base,
            size: own.memory.size(),
            _memory: Arc::clone(own.memory.storage()),
        }
    }
}

#[cfg(test)]
impl OwnRegion {
    /// Returns the peer's view of this region, for tests on plain memory.
    pub(crate) fn peer_view(&self) -> PeerRegion {
        PeerRegion::from(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::copy::Writable;

    #[test]
    fn copies_are_exact_for_every_length_and_offset() {
        let own = OwnRegion::private(4096);
        let bytes: Vec<u8> = (0..4096_u32).map(|n| (n * 7 % 251) as u8).collect();
        own.copy_in(layout::DATA, &bytes);
        let peer = own.peer_view();
        let lengths: Vec<usize> = if cfg!(miri) {
            vec![0, 1, 7, 8, 9, 130]
        } else {
            (0..300).chain([1000, 2047, 4096 - 32]).collect()
        };
        for at in [0, 8, 16, 32] {
            for &length in &lengths {
                let mut out = vec![0xaa; length];
                peer.copy_out(layout::DATA + at, &mut out);
                assert_eq!(out, bytes[at..at + length], "{at} {length}");
                let from = layout::DATA + at;
                // The result does not depend on the bytes behind the range or on how far data is written.
                for end in [from + length, layout::DATA + 4096] {
                    let mut ahead = vec![0xaa; length];
                    peer.copy_out_ahead(from, &mut ahead, end);
                    assert_eq!(ahead, out, "{at} {length}");
                    let mut fresh = vec![0xaa; length + 40];
                    peer.copy_out_fresh(from..from + length, &mut fresh, end);
                    assert_eq!(fresh, [&*out, &[0xaa; 40]].concat(), "{at} {length}");
                }
                // Copying in writes exactly the given bytes.
                let other = OwnRegion::private(4096);
                other.copy_in(from, &out);
                let found: Vec<u8> = (0..at + length + 8)
                    .step_by(8)
                    .flat_map(|word| other.load(layout::DATA + word, Ordering::Relaxed).to_ne_bytes())
                    .collect();
                assert_eq!(found[..at], [0; 32][..at]);
                assert_eq!(found[at..at + length], out, "{at} {length}");
                assert!(
                    found[at + length..].iter().all(|&byte| byte == 0),
                    "{at} {length}"
                );
            }
        }
    }

    #[test]
    fn peer_reads_the_owners_words_and_nowhere_is_empty() {
        let own = OwnRegion::private(4096);
        let peer = own.peer_view();
        for value in [2, u64::MAX] {
            own.store(layout::TAIL, value, Ordering::Release);
            for order in [Ordering::Relaxed, Ordering::Acquire] {
                assert_eq!(
                    [own.load(layout::TAIL, order), peer.load(layout::TAIL, order)],
                    [value; 2]
                );
            }
        }
        assert!(!peer.is_detached() && PeerRegion::detached().is_detached());
    }
}
