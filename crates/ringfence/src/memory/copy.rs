//! How bytes are copied between a region and memory of this process, and how the processor's caches are asked for them.
//!
//! A peer's region may change while it is read, so no function here makes a reference to it: each loads through a raw pointer,
//! by instructions that the compiler cannot see through, and yields the bytes that it finds.

use std::{mem, ptr};

use nix::libc;

/// Bytes of a cache line. Where lines are longer, some are asked for twice.
pub(crate) const LINE: usize = 64;

/// Readers ask for what lies this far ahead. Only the end of one record tells where the next begins, so a reader would wait for
/// the lines of each in turn; and the processor's own prefetching ends at each page.
pub(crate) const AHEAD: usize = 8192;

/// What is written to memory that was not used lately is asked for this far ahead: memory is as far away as the ring, but lines
/// that wait for their stores in the first cache are in the way of what is read just then.
pub(crate) const AHEAD_OF_STORES: usize = 1024;

/// Bytes of one copy: few, so that the reader asks for lines at the pace at which they come.
pub(crate) const BLOCK: usize = 512;

/// Up to here a copy word by word is faster than a call.
pub(crate) const SMALL: usize = 128;

/// Bytes of four wide loads.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) const ROW: usize = 4 * 32;

/// Whether [`load_row`] may be called.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) fn has_wide_loads() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

/// Loads two words, which may have been stored by one wide store: a reader that loads both at once need not wait for that
/// store to reach the cache.
///
/// # Safety
/// Sixteen bytes at `from` are readable.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) unsafe fn load_pair(from: *const u8) -> [u8; 16] {
    let pair: std::arch::x86_64::__m128i;
    // SAFETY: the caller promises the bytes; to the compiler this is foreign code that yields some sixteen bytes, whatever
    // another process writes there meanwhile. Every x86-64 processor has the instruction.
    unsafe {
        std::arch::asm!("movdqu {}, [{}]", out(xmm_reg) pair, in(reg) from, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: sixteen bytes either way, all of which are valid as either.
    unsafe { mem::transmute(pair) }
}

/// Loads words in a row by the widest loads that most processors have: a tenth of the instructions that it takes word by word,
/// and no call in between, as a copy would take.
///
/// # Safety
/// [`ROW`] bytes at `from` are readable, and the processor has AVX2: see [`has_wide_loads`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn load_row(from: *const u8) -> [u64; ROW / 8] {
    use std::arch::{asm, x86_64::__m256i};

    let (a, b, c, d): (__m256i, __m256i, __m256i, __m256i);
    // SAFETY: the caller promises that the bytes are there, and that the processor has the instruction; to the
    // compiler this is foreign code that yields some bytes, whatever another process writes there meanwhile.
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
    // SAFETY: as many bytes either way, all of which are valid as either.
    unsafe { mem::transmute::<[__m256i; 4], [u64; ROW / 8]>([a, b, c, d]) }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Cache {
    First,
    Second,
}

/// Asks for a cache line before it is needed. A hint: it changes nothing, whatever the address.
#[inline]
pub(crate) fn prefetch(at: *const u8, to: Cache) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults and has no effect that a program could see; every x86-64 processor takes it.
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

/// Asks for a cache line before it is written: as [`prefetch`], and no other processor has it then.
#[inline]
pub(crate) fn prefetch_for_writing(at: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as for `prefetch`; where the processor knows no such instruction, it does nothing (Intel's manual, volume
    // 2, PREFETCHW).
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// memset(3) through a pointer that the compiler cannot see through: it cannot remove the writes as useless, though
/// the memory goes next. Where another thread of this process writes the same bytes at that moment, the machine decides what
/// they become, as with another process's writes to shared memory, and the result is thrown away.
///
/// # Safety
/// `to` is writable for `length` bytes.
pub(crate) unsafe fn opaque_wipe(to: *mut u8, length: usize) {
    type Fill = unsafe extern "C" fn(*mut libc::c_void, libc::c_int, usize) -> *mut libc::c_void;
    static FILL: Fill = libc::memset;
    // SAFETY: a static that is never written.
    let fill = unsafe { ptr::read_volatile(&raw const FILL) };
    // SAFETY: the caller promises the range.
    unsafe { fill(to.cast(), 0, length) };
}

/// memcpy(3) through a pointer that the compiler cannot see through: to it this is foreign code that fills the
/// destination, with no promise about the source that a concurrent writer could break.
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, and they do not overlap.
pub(crate) unsafe fn opaque_copy(from: *const u8, to: *mut u8, length: usize) {
    type Copy = unsafe extern "C" fn(*mut libc::c_void, *const libc::c_void, usize) -> *mut libc::c_void;
    static COPY: Copy = libc::memcpy;
    // SAFETY: a static that is never written.
    let copy = unsafe { ptr::read_volatile(&raw const COPY) };
    // SAFETY: the caller promises both ranges.
    unsafe { copy(to.cast(), from.cast(), length) };
}

const _: () = assert!(mem::size_of::<u64>() == 8);
