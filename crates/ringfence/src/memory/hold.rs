//! The range that the producer has handed out as a slice, and whether the ring was wiped.
//!
//! A slice that changes under its holder would be undefined behaviour. So the wipe leaves that range out, and the producer wipes
//! it when it lets go of it.
//!
//! The producer alone writes the range, or the thread on which its reservation is dropped, while the producer writes nothing. The alarm
//! alone writes the flag. Each stores its own word and then loads the other's, with a full barrier in between: at least one of the
//! two sees the other. Where the kernel can, the alarm makes the producer's barrier as well (membarrier(2)), as a sleeper does for a
//! publisher: then a reservation costs no fence.
//!
//! A range is one word, and the next one takes its place. For each message this is stored once or twice, behind stores to the ring
//! that wait for a cache line which the reader has had: each more costs a nanosecond between near cores. What is replaced is
//! gone, but the wipe may have left it out: so a producer that finds the flag wipes both.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
    thread,
    time::Duration,
};

use crate::{memory::layout::as_offset, sys};

/// Bits of the word that are the length of a short range.
const LENGTH: u32 = 20;
/// In their place, the length of a range that is not short: it stands in a word of its own.
const LONG: usize = (1 << LENGTH) - 1;

/// See the head of this file. A range is its offset in the region, a multiple of eight, and its length in bytes.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Eighths of the offset, above [`LENGTH`] bits of the length. 0: there is none, as no ring begins at offset 0.
    range: AtomicU64,
    /// Of a range that is not short. Stored before it, while there is none.
    length: AtomicUsize,
    wiped: AtomicBool,
    /// The alarm can make the producer's barrier.
    has_barriers: AtomicBool,
}

impl Hold {
    pub(super) fn use_barriers(&self, can: bool) {
        self.has_barriers.store(can, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_short(length: usize) -> bool {
        length < LONG
    }

    #[inline]
    fn store(&self, at: usize, length: usize) {
        debug_assert!(at.is_multiple_of(8) && at > 0, "where a record's bytes begin");
        // Offsets have 47 bits: a ring has at most 2^46 bytes.
        let word = ((at as u64) << (LENGTH - 3)) | length as u64;
        self.range.store(word, Ordering::Release);
        self.fence_of_producer();
    }

    /// By the producer: a short range. Returns the one before, for [`Hold::read`].
    #[inline]
    pub(super) fn replace(&self, at: usize, length: usize) -> u64 {
        let before = self.range.load(Ordering::Relaxed);
        self.store(at, length);
        before
    }

    /// By the producer: one that is not short, where there is none.
    pub(super) fn set_long(&self, at: usize, length: usize) {
        self.length.store(length, Ordering::Relaxed);
        self.store(at, LONG);
    }

    /// By the producer: there is none. Returns the one before, for [`Hold::read`]; 0 where nothing has changed.
    #[inline]
    pub(super) fn clear(&self) -> u64 {
        let before = self.range.load(Ordering::Relaxed);
        if before != 0 {
            self.range.store(0, Ordering::Release);
            self.fence_of_producer();
        }
        before
    }

    /// By the producer, after each change of the range.
    #[inline]
    pub(super) fn is_wiped(&self) -> bool {
        self.wiped.load(Ordering::Acquire)
    }

    /// By the alarm: what of the ring it leaves out. The producer wipes that, and hands out nothing more.
    pub(super) fn alarm(&self) -> Option<(usize, usize)> {
        self.wiped.store(true, Ordering::Release);
        self.fence_of_alarm();
        self.range()
    }

    #[inline]
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        self.read(self.range.load(Ordering::Acquire))
    }

    /// The range that such a word means. What it says of one that is not short is true until the next such range is set.
    #[inline]
    pub(super) fn read(&self, word: u64) -> Option<(usize, usize)> {
        if word == 0 {
            return None;
        }
        let length = as_offset(word) & LONG;
        let at = as_offset(word >> LENGTH << 3);
        if length == LONG {
            return Some((at, self.length.load(Ordering::Relaxed)));
        }
        Some((at, length))
    }

    #[inline]
    fn fence_of_producer(&self) {
        if self.has_barriers.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    fn fence_of_alarm(&self) {
        /// A processor writes out its stores in far less time.
        const STORES_ARE_OUT: Duration = Duration::from_millis(100);
        fence(Ordering::SeqCst);
        // The barrier fails where the kernel has no memory left for it, or where a filter of system calls came later.
        if self.has_barriers.load(Ordering::Relaxed) && sys::barrier::issue_barrier().is_err() {
            thread::sleep(STORES_ARE_OUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout;

    #[test]
    fn a_range_is_read_as_it_was_stored() {
        let hold = Hold::default();
        assert_eq!(hold.range(), None);
        for at in [8, layout::DATA + 8, (1 << 46) + layout::DATA + 56] {
            for length in [0, 1, 64, LONG - 1] {
                assert!(Hold::is_short(length));
                hold.replace(at, length);
                assert_eq!(hold.range(), Some((at, length)));
            }
            for length in [LONG, LONG + 1, 1 << 45] {
                assert!(!Hold::is_short(length));
                hold.clear();
                hold.set_long(at, length);
                assert_eq!(hold.range(), Some((at, length)));
            }
        }
        assert_ne!(hold.clear(), 0);
        assert_eq!((hold.clear(), hold.range()), (0, None));
    }
}
