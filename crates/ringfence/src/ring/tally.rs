//! Counts of the messages and bytes that have passed through a ring. Each end counts in plain memory, and
//! publishes its counts from time to time.
//!
//! Each message costs its end one addition. The end publishes its sum to the [`Tally`], which other threads
//! can read: once per lap of the ring, and before its own counts are read or it is dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use super::record::{WHOLE, header, split};

/// Messages and bytes, as last published by one end of a ring. One thread writes them, any thread may read
/// them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Only the end of the ring may call this, so that no update is lost between the load and the store. A
    /// locked addition would cost as much as a short message.
    #[inline]
    pub(super) fn add(&self, messages: u64, bytes: u64) {
        let (before, sum) = self.get();
        self.set((before + messages, sum + bytes));
    }

    #[inline]
    pub(super) fn set(&self, (messages, bytes): (u64, u64)) {
        self.messages.store(messages, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the number of messages, and the number of bytes in their payloads.
    #[inline]
    pub(crate) fn get(&self) -> (u64, u64) {
        (
            self.messages.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// The most bytes of records between two calls of [`Sum::tell`]: both halves of a [`Sum`] can hold the sums
/// of this many bytes.
pub(super) const STRETCH: u64 = 1 << 30;

/// The sum of the headers of whole messages: their lengths in the low half, and three per message in the high
/// half. So one addition of a word that is already in a register counts both. Its owner must publish it at
/// least once per [`STRETCH`] bytes of the ring.
#[derive(Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds a message of fewer than [`STRETCH`] bytes.
    #[inline]
    pub(super) fn add(&mut self, length: u64) {
        self.0 = self.0.wrapping_add(header(length, WHOLE));
    }

    /// Publishes the sum and resets it.
    #[inline]
    pub(super) fn tell(&mut self, tally: &Tally) {
        let (bytes, three) = split(std::mem::take(&mut self.0));
        if three > 0 {
            tally.add(u64::from(three / WHOLE), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_bytes_are_told_apart() {
        let (mut sum, tally) = (Sum::default(), Tally::default());
        for length in [0, 1, 64, 2047, 0] {
            sum.add(length);
        }
        assert_eq!(tally.get(), (0, 0), "nothing is told before it is asked for");
        sum.tell(&tally);
        sum.tell(&tally);
        assert_eq!(tally.get(), (5, 2112));
    }

    #[test]
    fn a_stretch_of_either_kind_fits() {
        let (mut sum, tally) = (Sum::default(), Tally::default());
        sum.0 = STRETCH / 8 * header(0, WHOLE) + STRETCH;
        sum.tell(&tally);
        assert_eq!(tally.get(), (1 << 27, 1 << 30));
    }
}
