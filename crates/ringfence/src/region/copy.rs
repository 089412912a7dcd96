//! Copying bytes between a region and private memory, and prefetching them into the processor's caches.
//!
//! A peer's region may change while it is read, so no function here makes a reference to it. Each loads
//! through a raw pointer, with instructions that are opaque to the compiler, and returns the bytes that it
//! finds.

use std::{
    mem,
    ops::Range,
    ptr,
    sync::atomic::{Ordering, fence},
};

use nix::libc;

use crate::{
    error::{OrSystem, Result},
    sys,
};

/// The size of a cache line in bytes. With longer lines, some are prefetched twice.
pub(crate) const LINE: usize = 64;

/// The distance at which readers prefetch. Only the end of one record shows where the next starts, so without
/// prefetching a reader would wait for the lines of each record in turn. The processor's own prefetching
/// stops at each page.
pub(crate) const AHEAD: usize = 8192;

/// The distance at which lines that will be written are prefetched, if the memory was not used recently.
/// Memory is as far away as the ring, but lines that wait for their stores in the first-level cache displace
/// lines that are about to be read.
pub(crate) const AHEAD_OF_STORES: usize = 1024;

/// The size of one copy in bytes. It is small, so that prefetching keeps pace with the arriving lines.
pub(crate) const BLOCK: usize = 512;

/// The largest size for which copying word by word is faster than a call.
pub(crate) const SMALL: usize = 128;

/// The size of four wide loads in bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) const ROW: usize = 4 * 32;

/// Whether [`load_row`] may be called.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) fn has_wide_loads() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

/// Loads two words that one wide store may have written. A reader that loads both together need not wait for
/// that store to reach the cache.
///
/// # Safety
/// Sixteen bytes at `from` are readable.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) unsafe fn load_pair(from: *const u8) -> [u8; 16] {
    let pair: std::arch::x86_64::__m128i;
    // SAFETY: the caller guarantees that the bytes are readable. To the compiler this is foreign code that
    // returns sixteen arbitrary bytes, even if another process writes there concurrently. Every x86-64
    // processor has the instruction.
    unsafe {
        std::arch::asm!("movdqu {}, [{}]", out(xmm_reg) pair, in(reg) from, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: both types have sixteen bytes, and all bytes are valid for both.
    unsafe { mem::transmute(pair) }
}

/// Loads a line of words, two at a time as [`load_pair`] does.
///
/// # Safety
/// [`LINE`] bytes at `from` are readable.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) unsafe fn load_line(from: *const u8) -> [u64; LINE / 8] {
    use std::arch::{asm, x86_64::__m128i};

    let (a, b, c, d): (__m128i, __m128i, __m128i, __m128i);
    // SAFETY: as for `load_pair`.
    unsafe {
        asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            from = in(reg) from,
            a = out(xmm_reg) a,
            b = out(xmm_reg) b,
            c = out(xmm_reg) c,
            d = out(xmm_reg) d,
            options(nostack, preserves_flags, readonly)
        );
    }
    // SAFETY: both types have the same size, and all bytes are valid for both.
    unsafe { mem::transmute::<[__m128i; 4], [u64; LINE / 8]>([a, b, c, d]) }
}

/// Loads consecutive words with the widest loads that most processors have. This takes a tenth of the
/// instructions of a copy word by word, and no call.
///
/// # Safety
/// [`ROW`] bytes at `from` are readable, and the processor has AVX2: see [`has_wide_loads`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn load_row(from: *const u8) -> [u64; ROW / 8] {
    use std::arch::{asm, x86_64::__m256i};

    let (a, b, c, d): (__m256i, __m256i, __m256i, __m256i);
    // SAFETY: the caller guarantees that the bytes are readable and that the processor has the instruction.
    // To the compiler this is foreign code that returns arbitrary bytes, even if another process writes there
    // concurrently.
    unsafe {
        asm!(
            "vmovdqu {a}, [{from}]",
            "vmovdqu {b}, [{from} + 32]",
            "vmovdqu {c}, [{from} + 64]",
            "vmovdqu {d}, [{from} + 96]",
            from = in(reg) from,
            a = out(ymm_reg) a,
            b = out(ymm_reg) b,
            c = out(ymm_reg) c,
            d = out(ymm_reg) d,
            options(nostack, preserves_flags, readonly)
        );
    }
    // SAFETY: both types have the same size, and all bytes are valid for both.
    unsafe { mem::transmute::<[__m256i; 4], [u64; ROW / 8]>([a, b, c, d]) }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Cache {
    First,
    Second,
}

/// Prefetches a cache line. It is only a hint, and has no effect on the program for any address.
#[inline]
pub(crate) fn prefetch(at: *const u8, to: Cache) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults and has no effect that a program can observe. Every x86-64
        // processor accepts it.
        unsafe {
            match to {
                Cache::First => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                Cache::Second => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            }
        };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (at, to);
}

/// Prefetches a cache line for writing: it is then exclusive to this processor.
#[inline]
pub(crate) fn prefetch_for_writing(at: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as for `prefetch`. A processor without the instruction does nothing (Intel's manual, volume 2,
    // PREFETCHW).
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Fills memory with zeros, by memset(3) through a pointer that is opaque to the compiler: it cannot remove
/// the writes as useless, although the memory is about to be released. If another thread of this process
/// writes the same bytes concurrently, the machine decides the result, as with another process's writes to
/// shared memory. The result is discarded.
///
/// # Safety
/// `to` is writable for `length` bytes.
pub(crate) unsafe fn opaque_wipe(to: *mut u8, length: usize) {
    type Fill = unsafe extern "C" fn(*mut libc::c_void, libc::c_int, usize) -> *mut libc::c_void;
    static FILL: Fill = libc::memset;
    // SAFETY: the static is never written.
    let fill = unsafe { ptr::read_volatile(&raw const FILL) };
    // SAFETY: the caller guarantees the range.
    unsafe { fill(to.cast(), 0, length) };
}

/// Copies memory, by memcpy(3) through a pointer that is opaque to the compiler. To the compiler this is
/// foreign code that fills the destination, without any assumption about the source that a concurrent writer
/// could violate.
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, and they do not overlap.
pub(crate) unsafe fn opaque_copy(from: *const u8, to: *mut u8, length: usize) {
    type Copy = unsafe extern "C" fn(*mut libc::c_void, *const libc::c_void, usize) -> *mut libc::c_void;
    static COPY: Copy = libc::memcpy;
    // SAFETY: the static is never written.
    let copy = unsafe { ptr::read_volatile(&raw const COPY) };
    // SAFETY: the caller guarantees both ranges.
    unsafe { copy(to.cast(), from.cast(), length) };
}

const _: () = assert!(mem::size_of::<u64>() == 8);

// The interface through which the ring and the doorbell read and write a region.
//
// Both views of a mapped object implement it, and so do the models that the tests use.

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
    fn barrier_for_all(&self) -> Result<()> {
        barrier()
    }
}

/// Makes a full fence on every processor that runs a registered process. For a caller that sleeps on many channels: one serves all.
pub fn barrier() -> Result<()> {
    sys::process::issue_barrier().or_system("a memory barrier (membarrier)")
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
    /// From now on this process receives the barriers of others. The producer calls this, and makes a full fence afterwards.
    fn enable_barriers(&self) {}
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
