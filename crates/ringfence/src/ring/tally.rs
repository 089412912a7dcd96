//! What has gone through a ring: its end counts in plain memory, and tells from time to time what it has counted.
//!
//! Each message costs its end one addition. What was added up is told to the [`Tally`], which other threads can read, once in a
//! lap of the ring, and before the end itself is asked or is gone.

use std::sync::atomic::{AtomicU64, Ordering};

use super::record::{WHOLE, header, split};

/// Messages and bytes, as the end of a ring has told them last. One thread writes it, any may read it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// By the end of the ring alone, so that nothing is lost between the look and the store: a locked addition costs as much as
    /// a short message.
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

    /// Messages, and the bytes of their payloads.
    #[inline]
    pub(crate) fn get(&self) -> (u64, u64) {
        (
            self.messages.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// Bytes of records between two tellings: of so many, both halves of a [`Sum`] hold what is added up.
pub(super) const STRETCH: u64 = 1 << 30;

/// Headers of whole messages, added up: the lengths in the low half, and three for each message in the high one. So both are
/// counted by one addition of a word that is in a register already. It must be told once in each [`STRETCH`] of the ring.
#[derive(Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds a message of fewer than [`STRETCH`] bytes.
    #[inline]
    pub(super) fn add(&mut self, length: u64) {
        self.0 = self.0.wrapping_add(header(length, WHOLE));
    }

    /// Tells what was added up, and begins anew.
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
