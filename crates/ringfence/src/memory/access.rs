//! How a region is read and written: what the ring and the doorbell ask of memory.
//!
//! The two views of a mapped object implement this, and so do the models that the tests run on.

use std::{
    ops::Range,
    sync::atomic::{Ordering, fence},
};

use nix::errno::Errno;

use crate::{
    memory::copy::{AHEAD, AHEAD_OF_STORES, BLOCK, LINE, SMALL, prefetch_for_writing},
    sys,
};

/// A region as the ring reads it. Offsets are in bytes from the region's start; those of words are multiples of
/// eight. Implemented by the two views of a mapping, and by the models that the ring's tests run on.
pub(crate) trait Readable {
    fn load(&self, at: usize, order: Ordering) -> u64;
    /// Copies `into.len()` bytes out. `at` is a multiple of eight.
    fn copy_out(&self, at: usize, into: &mut [u8]);
    /// As [`Readable::copy_out`], for a reader that reads on behind the range; something is written up to `end`.
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
    /// As [`Readable::copy_out_ahead`], of what is not small.
    #[inline]
    fn copy_out_blocks(&self, at: usize, into: &mut [u8], end: usize) {
        for (index, block) in into.chunks_mut(BLOCK).enumerate() {
            let at = at + index * BLOCK;
            self.will_read_on(at, block.len(), end);
            self.copy_out(at, block);
        }
    }
    /// As [`Readable::copy_out_ahead`], to the beginning of memory that was not used lately: its lines are asked for as well, so that
    /// the stores do not wait for each.
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
    /// The caller reads so many bytes at `at` now. Fetches as many that lie further on, as far as something is written, up to `end`.
    #[inline]
    fn will_read_on(&self, at: usize, length: usize, end: usize) {
        let from = at + AHEAD;
        if length == BLOCK && from + BLOCK <= end {
            // A constant number, so that the compiler unrolls the loop: to count the lines took as long as to read the block.
            for line in 0..BLOCK / LINE {
                self.will_read_later(from + line * LINE);
            }
            return;
        }
        for line in (from..(from + length).min(end)).step_by(LINE) {
            self.will_read_later(line);
        }
    }
    /// Fetches the cache line at `at` ahead of its reading.
    #[inline]
    fn will_read(&self, at: usize) {
        let _ = at;
    }
    /// As [`Readable::will_read`], but to the second cache: much more will be read before.
    #[inline]
    fn will_read_later(&self, at: usize) {
        let _ = at;
    }
    /// A sequentially consistent fence. The models of memory have one of their own.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
    /// An acquire fence: what was loaded before it is loaded before what follows.
    #[inline]
    fn acquire_fence(&self) {
        fence(Ordering::Acquire);
    }
    /// The same on each processor that runs a process which has asked for it: membarrier(2).
    fn barrier_for_all(&self) -> std::result::Result<(), Errno> {
        sys::barrier::issue_barrier()
    }
}

/// A region as its owner writes it.
pub(crate) trait Writable: Readable {
    fn store(&self, at: usize, value: u64, order: Ordering);
    fn copy_in(&self, at: usize, from: &[u8]);
    /// A release fence: what was stored before it is seen before what is stored after it.
    #[inline]
    fn release_fence(&self) {
        fence(Ordering::Release);
    }
    /// Fetches the cache line at `at` ahead of its writing.
    #[inline]
    fn will_write(&self, at: usize) {
        let _ = at;
    }
    /// As [`Writable::will_write`], of each line of a short record: the writer would wait for those that are passed over. Of three at
    /// most, one by one: to count the lines takes longer than to ask for them.
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
