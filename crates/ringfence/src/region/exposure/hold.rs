//! The range that the producer has handed out as a slice, and the flag that says that the ring was wiped.
//!
//! A slice that changes while its holder uses it would be undefined behaviour. So the wipe skips that range,
//! and the producer wipes it when it releases it.
//!
//! Only the producer writes the range word, or the thread that drops its reservation, while the producer
//! writes nothing. Only the alarm writes the flag. Each side stores its own word and then loads the other's,
//! with a full barrier in between, so at least one side sees the other's store. If the kernel supports it,
//! the alarm makes the producer's barrier as well (membarrier(2)), as a sleeper does for a publisher. Then a
//! reservation costs no fence.
//!
//! A range is a single word, and the next range replaces it. It is stored once or twice per message, behind
//! stores to a cache line of the ring that the reader had. Each additional store costs a nanosecond between
//! near cores. The replaced range is no longer stored, but the wipe may have skipped it. So a producer that
//! finds the flag wipes both ranges.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
    thread,
    time::Duration,
};

use crate::{region::layout::as_offset, sys};

/// The number of bits for the length of a short range.
const LENGTH: u32 = 20;
/// The value of those bits for a longer range, whose length has a word of its own.
const LONG: usize = (1 << LENGTH) - 1;

/// The range and the flag, as described above. A range is an offset in the region, a multiple of eight, and a
/// length in bytes.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The offset divided by eight, above [`LENGTH`] bits of the length. 0 means no range, because no ring
    /// starts at offset 0.
    range: AtomicU64,
    /// The length of a long range. It is stored before the range, while there is no range.
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
        debug_assert!(
            at.is_multiple_of(8) && at > 0,
            "a valid start of a record's bytes"
        );
        // Offsets have 47 bits, because a ring has at most 2^46 bytes.
        let word = ((at as u64) << (LENGTH - 3)) | length as u64;
        self.range.store(word, Ordering::Release);
        self.fence_of_producer();
    }

    /// Called by the producer: sets a short range. Returns the previous word, for [`Hold::read`].
    #[inline]
    pub(super) fn replace(&self, at: usize, length: usize) -> u64 {
        let before = self.range.load(Ordering::Relaxed);
        self.store(at, length);
        before
    }

    /// Called by the producer: sets a long range. No range may be set.
    pub(super) fn set_long(&self, at: usize, length: usize) {
        self.length.store(length, Ordering::Relaxed);
        self.store(at, LONG);
    }

    /// Called by the producer: removes the range. Returns the previous word for [`Hold::read`], or 0 if there
    /// was none.
    #[inline]
    pub(super) fn clear(&self) -> u64 {
        let before = self.range.load(Ordering::Relaxed);
        if before != 0 {
            self.range.store(0, Ordering::Release);
            self.fence_of_producer();
        }
        before
    }

    /// Called by the producer after each change of the range: whether the ring was wiped.
    #[inline]
    pub(super) fn is_wiped(&self) -> bool {
        self.wiped.load(Ordering::Acquire)
    }

    /// Called by the alarm: sets the flag and returns the range that the wipe must skip. From then on the
    /// producer hands out nothing more, and wipes the range itself.
    pub(super) fn alarm(&self) -> Option<(usize, usize)> {
        self.wiped.store(true, Ordering::Release);
        self.fence_of_alarm();
        self.range()
    }

    #[inline]
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        self.read(self.range.load(Ordering::Acquire))
    }

    /// Decodes a range word. The length of a long range stays valid until the next long range is set.
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
        /// A processor completes its pending stores in far less time.
        const STORES_ARE_OUT: Duration = Duration::from_millis(100);
        fence(Ordering::SeqCst);
        // The barrier fails if the kernel has no memory for it, or if a system call filter was installed
        // later.
        if self.has_barriers.load(Ordering::Relaxed) && sys::barrier::issue_barrier().is_err() {
            thread::sleep(STORES_ARE_OUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::layout;

    #[test]
    fn a_range_survives_encoding_and_decoding() {
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
