//! The work that every contender does: every word written by the producer, every word read and summed by the
//! consumer. A contender that only moved a pointer would look fast and carry nothing.

use aligned_vec::{AVec, ConstAlign, avec};
use anyhow::Result;

/// One stretch of a measurement, known to both sides before it starts.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Bytes in a message, a multiple of 8.
    pub size: usize,
    /// `size / 8`.
    pub words: usize,
    /// Messages to send; a multiple of [`BATCH`].
    pub count: u64,
}

/// The place of a message that is sent or received by copy: the beginning of a cache line, for all contenders. The place that an
/// allocator gives a vector is a matter of luck, and a message of 4 KiB goes at half the speed from a place 16 bytes further on.
pub type Buffer = AVec<u8, ConstAlign<64>>;

/// A [`Buffer`] of zeros.
pub fn buffer(bytes: usize) -> Buffer {
    avec![[64]| 0; bytes]
}

/// Records per publish in the batched measure.
pub const BATCH: usize = 32;

impl Work {
    pub fn new(size: usize, count: u64) -> Self {
        Self {
            size,
            words: size / 8,
            count: count.next_multiple_of(BATCH as u64),
        }
    }

    /// The first word of message `n`: the words of the whole stretch count up from 0 without a gap, so that a
    /// message lost, doubled or torn changes the sum.
    #[inline(always)]
    pub fn first_word(&self, n: u64) -> u64 {
        n * self.words as u64
    }

    /// The sum of a single message whose first word is `start`.
    pub fn message_sum(&self, start: u64) -> u64 {
        let words = self.words as u64;
        start
            .wrapping_mul(words)
            .wrapping_add(words * words.saturating_sub(1) / 2)
    }

    /// The sum of all messages.
    pub fn expected_sum(&self) -> u64 {
        let words = u128::from(self.count) * self.words as u128;
        (words * words.saturating_sub(1) / 2) as u64
    }
}

/// Writes `words` words counting up from `start`.
///
/// # Safety
/// `dst` must be valid for writes of `words * 8` bytes; alignment is not needed.
#[inline(always)]
pub unsafe fn fill(dst: *mut u8, words: usize, start: u64) {
    // The common small message gets straight-line code; a loop of unknown length costs more than its eight stores.
    if words == 8 {
        // SAFETY: as the caller promises.
        unsafe { fill_plain(dst, 8, start) };
    } else if words >= 64 {
        // SAFETY: as the caller promises.
        unsafe { fill_long(dst, words, start) };
    } else {
        // SAFETY: as the caller promises.
        unsafe { fill_plain(dst, words, start) };
    }
}

/// Sums `words` words.
///
/// # Safety
/// `src` must be valid for reads of `words * 8` bytes; alignment is not needed.
#[inline(always)]
pub unsafe fn sum(src: *const u8, words: usize) -> u64 {
    if words == 8 {
        // SAFETY: as the caller promises.
        unsafe { sum_plain(src, 8) }
    } else if words >= 64 {
        // SAFETY: as the caller promises.
        unsafe { sum_long(src, words) }
    } else {
        // SAFETY: as the caller promises.
        unsafe { sum_plain(src, words) }
    }
}

#[inline(always)]
unsafe fn fill_plain(dst: *mut u8, words: usize, start: u64) {
    for i in 0..words {
        // SAFETY: as the caller promises.
        unsafe {
            dst.cast::<u64>()
                .add(i)
                .write_unaligned(start.wrapping_add(i as u64))
        };
    }
}

#[inline(always)]
unsafe fn sum_plain(src: *const u8, words: usize) -> u64 {
    let mut total = 0u64;
    for i in 0..words {
        // SAFETY: as the caller promises.
        total = total.wrapping_add(unsafe { src.cast::<u64>().add(i).read_unaligned() });
    }
    total
}

// Long messages are written and summed with the widest vectors at hand, whatever the build's baseline is: the
// harness's own work must not be what a figure shows.
#[inline(always)]
unsafe fn fill_long(dst: *mut u8, words: usize, start: u64) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it, as was just asked; the rest as the caller promises.
        return unsafe { fill_avx2(dst, words, start) };
    }
    // SAFETY: as the caller promises.
    unsafe { fill_plain(dst, words, start) };
}

#[inline(always)]
unsafe fn sum_long(src: *const u8, words: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it, as was just asked; the rest as the caller promises.
        return unsafe { sum_avx2(src, words) };
    }
    // SAFETY: as the caller promises.
    unsafe { sum_plain(src, words) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn fill_avx2(dst: *mut u8, words: usize, start: u64) {
    // SAFETY: as the caller promises.
    unsafe { fill_plain(dst, words, start) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2(src: *const u8, words: usize) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { sum_plain(src, words) }
}

/// [`fill`] for a slice whose length is the message.
#[inline(always)]
pub fn fill_bytes(bytes: &mut [u8], start: u64) {
    // SAFETY: the slice has that many words.
    unsafe { fill(bytes.as_mut_ptr(), bytes.len() / 8, start) };
}

/// [`sum`] for a slice whose length is the message.
#[inline(always)]
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    // SAFETY: the slice has that many words.
    unsafe { sum(bytes.as_ptr(), bytes.len() / 8) }
}

/// [`fill`] for an element of a fixed size.
#[inline(always)]
pub fn fill_item<const W: usize>(item: &mut [u64; W], start: u64) {
    // SAFETY: an array of that many words.
    unsafe { fill(item.as_mut_ptr().cast(), W, start) };
}

/// [`sum`] for an element of a fixed size.
#[inline(always)]
pub fn sum_item<const W: usize>(item: &[u64; W]) -> u64 {
    // SAFETY: an array of that many words.
    unsafe { sum(item.as_ptr().cast(), W) }
}

/// [`sum_item`] of all of them.
#[inline(always)]
pub fn sum_items<const W: usize>(items: &[[u64; W]]) -> u64 {
    items.iter().map(sum_item).fold(0, u64::wrapping_add)
}

/// Polls until `count` messages have come, and returns the sum of their words. `poll(left)` returns how many it has read, and their sum;
/// `idle` is called if that is none.
#[inline(always)]
pub fn poll_sum(count: u64, idle: fn(), mut poll: impl FnMut(u64) -> Result<(u64, u64)>) -> Result<u64> {
    let (mut n, mut total) = (0, 0u64);
    while n < count {
        let (seen, sum) = poll(count - n)?;
        n += seen;
        total = total.wrapping_add(sum);
        if seen == 0 {
            idle();
        }
    }
    Ok(total)
}

/// The result of `poll` of [`poll_sum`] for one message, or for none.
#[inline(always)]
pub fn one_or_none(sum: Option<u64>) -> (u64, u64) {
    sum.map_or((0, 0), |sum| (1, sum))
}

/// Polls until there is an answer.
#[inline(always)]
pub fn poll<T>(mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::hint::spin_loop();
    }
}
