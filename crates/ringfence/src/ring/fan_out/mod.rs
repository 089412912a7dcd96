//! A ring with one writer and many readers: the publisher writes it once, and any number of subscribers read
//! it.
//!
//! `floor` provides room to the publisher's writer, and `reader` is the subscriber's end. `readers` is the
//! list of subscribers: one thread of the publisher changes it while another sends. A [`Mark`] publishes where
//! a record starts. A record has the same layout as in a pair, and is always a whole message
//! ([`largest_message`]).
//!
//! These rules keep a reader from using data that the writer overwrites during the read:
//! 1. The *floor* is a position in the ring object. Data before it may be overwritten at any moment. The
//!    writer advances it by a part of the ring before it writes there: it stores the floor, issues a release
//!    fence, and writes.
//! 2. A reader copies, issues an acquire fence, and checks the floor. It discards data before the floor
//!    without inspecting it. So a reader only judges data that was whole, and only such data can be corrupt.
//! 3. The floor never passes the head of a reliable reader, nor the end of the published data. A reliable
//!    reader that finds itself below the floor was evicted.
//! 4. A *mark* is the position of a record and the number of messages before it. There are
//!    [`MARKS`] of them, a part of the ring apart. The writer rewrites each
//!    once per lap, after the floor has passed its old position. So a mark above the floor is whole, without
//!    a lock and without a version. A reader that was overtaken restarts at a mark, and knows exactly how
//!    many messages it has lost.
//!
//! Like all of `ring`, this never blocks, makes only one system call (see [`readers::Readers::activate`]),
//! and trusts nothing that the other side writes.

use std::sync::atomic::Ordering;

use crate::{
    region::copy::{Readable, Writable},
    region::layout::{self, MARKS, mark_of},
};

pub(crate) mod floor;
#[cfg(any(test, fuzzing))]
#[path = "../../testing/fan_out_lies.rs"]
pub(crate) mod lies;
pub(crate) mod reader;
pub(crate) mod readers;

/// The kind of ring that a publisher writes and its subscribers read.
#[derive(Debug)]
pub struct FanOut;

/// Returns the largest message that a publisher with this ring can send. Several messages must fit side by
/// side, along with the data that a subscriber has not read yet.
#[inline]
pub(crate) const fn largest_message(capacity: u64) -> u64 {
    capacity / 8
}

/// The position at which a record starts, and the number of messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
}

/// The writer's own copy of its marks.
pub(super) struct MarkTable {
    marks: [Mark; MARKS],
    /// The number of marks that were set. The first one marks the start of the ring. It is all zeros, so
    /// fresh memory already holds it.
    count: usize,
    /// The minimum distance between two marks, so that all of them together span a ring.
    spacing: u64,
}

impl MarkTable {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            marks: [Mark::default(); MARKS],
            count: 1,
            spacing: capacity / MARKS as u64,
        }
    }

    /// The first record at or after the returned position gets a mark.
    pub(super) fn next(&self) -> u64 {
        self.marks[(self.count - 1) % MARKS].position + self.spacing
    }

    /// Sets a mark. It replaces one that is a ring older, and lies below the floor.
    pub(super) fn set(&mut self, own: &impl Writable, mark: Mark) {
        let at = mark_of(self.count);
        // The order matters. A reader that sees the position sees this number or a newer one, and if newer,
        // then also a floor above the mark.
        own.store(at + 8, mark.sequence, Ordering::Relaxed);
        own.store(at, mark.position, Ordering::Release);
        self.marks[self.count % MARKS] = mark;
        self.count += 1;
    }

    /// Moves the last mark from the record at `from` to the one at `to`: the writer gave up the message at
    /// `from` and wrote padding there. Both positions follow the same number of messages, so a reader may see
    /// either.
    pub(super) fn move_last(&mut self, own: &impl Writable, from: u64, to: u64) {
        let last = self.count - 1;
        let mark = &mut self.marks[last % MARKS];
        if mark.position == from {
            mark.position = to;
            own.store(mark_of(last), to, Ordering::Release);
        }
    }

    /// Returns the first mark at or after `from` if its message is published, that is, if it lies before
    /// `published`.
    pub(super) fn first(&self, from: u64, published: u64) -> Option<u64> {
        self.marks
            .iter()
            .map(|mark| mark.position)
            .filter(|position| (from..published).contains(position))
            .min()
    }

    /// Returns the last mark of a published message, or the start of the ring if there is none.
    pub(super) fn last(&self, published: u64) -> u64 {
        let positions = self.marks.iter().map(|mark| mark.position);
        positions
            .filter(|position| *position < published)
            .max()
            .unwrap_or(0)
    }
}

/// The result of reading all marks once.
pub(super) struct MarkSnapshot {
    /// The data from this position on was not overwritten before the read finished.
    pub(super) floor: u64,
    /// The floor did not move during the read. Then an honest writer has a mark at or after it.
    pub(super) is_stable: bool,
    pub(super) tail: u64,
    marks: [Mark; MARKS],
}

impl MarkSnapshot {
    pub(super) fn read(ring: &impl Readable) -> Self {
        // Load the floor first. Then the tail, which is loaded later, is not before the mark that the floor
        // preserves.
        let before = ring.load(layout::FLOOR, Ordering::Acquire);
        let tail = ring.load(layout::TAIL, Ordering::Acquire);
        let marks = std::array::from_fn(|number| Mark {
            position: ring.load(mark_of(number), Ordering::Acquire),
            sequence: ring.load(mark_of(number) + 8, Ordering::Relaxed),
        });
        ring.acquire_fence();
        let floor = ring.load(layout::FLOOR, Ordering::Relaxed);
        Self {
            floor,
            is_stable: before == floor,
            tail,
            marks,
        }
    }

    /// Returns the marks that were whole and whose record can be read now or is the next one to be written.
    pub(super) fn valid_marks(&self) -> impl Iterator<Item = Mark> {
        self.marks
            .iter()
            .copied()
            .filter(|mark| (self.floor..=self.tail).contains(&mark.position))
    }
}

named! { all pub,
    /// The kind of delivery that a subscriber requests.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub enum Delivery {
        /// Every message, in order. The publisher waits for a subscriber that is a whole ring behind, for as long
        /// as [`Options::stall`](crate::Options::stall) allows, and then evicts it.
        #[default]
        Reliable = 1 => "reliable",
        /// Messages that the publisher has overwritten before the subscriber read them are skipped, and counted.
        /// Never delays the publisher.
        BestEffort = 2 => "best-effort",
        /// Only the newest message that the subscriber has not seen. Skipped messages are counted. Never delays
        /// the publisher.
        Latest = 3 => "latest",
    }
}

numbered! { Delivery as u16 }
parsed! { Delivery, "delivery" }

named! { all pub,
    /// The message at which a subscriber starts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub enum StartFrom {
        /// The next message to be sent.
        #[default]
        Now = 1 => "now",
        /// The oldest message that the ring still holds.
        Oldest = 2 => "oldest",
        /// The last message that was sent, if the ring still holds it.
        Latest = 3 => "latest",
    }
}

numbered! { StartFrom as u16 }
parsed! { StartFrom, "from" }

#[cfg(test)]
mod tests;
