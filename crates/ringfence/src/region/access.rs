//! The interface through which the ring and the doorbell read and write a region.
//!
//! Both views of a mapped object implement it, and so do the models that the tests use.

use std::{
    ops::Range,
    sync::atomic::{Ordering, fence},
};

use nix::errno::Errno;

use crate::{
    region::copy::{AHEAD, AHEAD_OF_STORES, BLOCK, LINE, SMALL, prefetch_for_writing},
    sys,
};

/// A region that the ring reads. Offsets are in bytes from the region's start. Offsets of words are multiples
/// of eight. Implemented by both views of a mapping, and by the models that the ring's tests use.
pub(crate) trait Readable {
    fn load(&self, at: usize, order: Ordering) -> u64;
    /// Copies `into.len()` bytes out. `at` is a multiple of eight.
    fn copy_out(&self, at: usize, into: &mut [u8]);
    /// Copies like [`Readable::copy_out`], for a reader that will continue behind the range. Data is written
    /// up to `end`, which limits the prefetching.
    #[expect(
        clippy::inline_always,
        reason = "of several callers the compiler would make a call of it: 1.8 ns of 14 for a message of 64 bytes"
    )]
    #[inline(always)]
    fn copy_out_ahead(&self, at: usize, into: &mut [u8], end: usize) {
        if into.len() <= SMALL {
            return self.copy_out(at, into);
        }
        self.copy_out_blocks(at, into, end);
    }
    /// Copies like [`Readable::copy_out_ahead`], for ranges that are not small.
    #[inline]
    fn copy_out_blocks(&self, at: usize, into: &mut [u8], end: usize) {
        for (index, block) in into.chunks_mut(BLOCK).enumerate() {
            let at = at + index * BLOCK;
            self.will_read_on(at, block.len(), end);
            self.copy_out(at, block);
        }
    }
    /// Copies like [`Readable::copy_out_ahead`] to the start of memory that was not used recently. Prefetches
    /// the lines of the destination too, so that the stores do not wait for each of them.
    #[inline]
    fn copy_out_fresh(&self, range: Range<usize>, into: &mut [u8], end: usize) {
        let length = range.len();
        if length <= SMALL {
            return self.copy_out(range.start, &mut into[..length]);
        }
        for from in (0..length).step_by(BLOCK) {
            let to = (from + BLOCK).min(length);
            let lines = (from + AHEAD_OF_STORES).min(into.len())..(to + AHEAD_OF_STORES).min(into.len());
            for line in into[lines].chunks_mut(LINE) {
                prefetch_for_writing(line.as_mut_ptr());
            }
            self.will_read_on(range.start + from, to - from, end);
            self.copy_out(range.start + from, &mut into[from..to]);
        }
    }
    /// Announces that the caller reads `length` bytes at `at` now. Prefetches the same number of bytes
    /// further on, up to `end`.
    #[inline]
    fn will_read_on(&self, at: usize, length: usize, end: usize) {
        let from = at + AHEAD;
        if length == BLOCK && from + BLOCK <= end {
            // A constant count lets the compiler unroll the loop. A computed count made the loop as slow as
            // reading the block.
            for line in 0..BLOCK / LINE {
                self.will_read_later(from + line * LINE);
            }
            return;
        }
        for line in (from..(from + length).min(end)).step_by(LINE) {
            self.will_read_later(line);
        }
    }
    /// Prefetches the cache line at `at` for reading.
    #[inline]
    fn will_read(&self, at: usize) {
        let _ = at;
    }
    /// Prefetches into the second-level cache, because much other data will be read first.
    #[inline]
    fn will_read_later(&self, at: usize) {
        let _ = at;
    }
    /// Makes a sequentially consistent fence. The memory models override it.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
    /// Makes an acquire fence: loads before it happen before loads after it.
    #[inline]
    fn acquire_fence(&self) {
        fence(Ordering::Acquire);
    }
    /// Makes a full fence on every processor that runs a registered process (membarrier(2)).
    fn barrier_for_all(&self) -> std::result::Result<(), Errno> {
        sys::barrier::issue_barrier()
    }
}

/// A region that its owner writes.
pub(crate) trait Writable: Readable {
    fn store(&self, at: usize, value: u64, order: Ordering);
    fn copy_in(&self, at: usize, from: &[u8]);
    /// Makes a release fence: stores before it become visible before stores after it.
    #[inline]
    fn release_fence(&self) {
        fence(Ordering::Release);
    }
    /// Prefetches the cache line at `at` for writing.
    #[inline]
    fn will_write(&self, at: usize) {
        let _ = at;
    }
    /// Prefetches each line of a short record for writing. The writer would wait for any line that is left
    /// out. It has at most three lines, listed one by one, because a loop takes longer than the prefetches.
    #[inline]
    fn will_write_all(&self, at: usize, bytes: u64) {
        debug_assert!(bytes <= 3 * LINE as u64, "a short record");
        self.will_write(at);
        if bytes > LINE as u64 {
            self.will_write(at + LINE);
        }
        if bytes > 2 * LINE as u64 {
            self.will_write(at + 2 * LINE);
        }
    }
}
