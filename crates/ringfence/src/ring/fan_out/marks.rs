//! Marks: the positions of records that the writer publishes, and how a reader evaluates them.

use std::sync::atomic::Ordering;

use crate::region::{
    copy::{Readable, Writable},
    layout::{self, MARKS, mark_of},
};

/// The position at which a record starts, and the number of messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
}

/// The writer's own copy of its marks.
#[derive(Debug)]
pub(super) struct Table {
    marks: [Mark; MARKS],
    /// The number of marks that were set. The first one marks the start of the ring. It is all zeros, so
    /// fresh memory already holds it.
    count: usize,
    /// The minimum distance between two marks, so that all of them together span a ring.
    part: u64,
}

impl Table {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            marks: [Mark::default(); MARKS],
            count: 1,
            part: capacity / MARKS as u64,
        }
    }

    /// The first record at or after the returned position gets a mark.
    pub(super) fn next(&self) -> u64 {
        self.marks[(self.count - 1) % MARKS].position + self.part
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
    pub(super) fn moves(&mut self, own: &impl Writable, from: u64, to: u64) {
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
}

impl Table {
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
pub(super) struct Seen {
    /// The data from this position on was not overwritten before the read finished.
    pub(super) floor: u64,
    /// The floor did not move during the read. Then an honest writer has a mark at or after it.
    pub(super) still: bool,
    pub(super) tail: u64,
    marks: [Mark; MARKS],
}

impl Seen {
    pub(super) fn look(ring: &impl Readable) -> Self {
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
            still: before == floor,
            tail,
            marks,
        }
    }

    /// Returns the marks that were whole and whose record can be read now or is the next one to be written.
    pub(super) fn whole(&self) -> impl Iterator<Item = Mark> {
        self.marks
            .iter()
            .copied()
            .filter(|mark| (self.floor..=self.tail).contains(&mark.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::own::OwnRegion;

    #[test]
    fn marks_lie_a_part_of_the_ring_apart_and_those_of_a_stretch_are_found() {
        let own = OwnRegion::private(4096);
        let mut table = Table::new(4096);
        assert_eq!((table.next(), table.last(4096)), (256, 0));
        for (sequence, position) in (1..).zip([256, 520, 1000]) {
            table.set(&own, Mark { position, sequence });
        }
        assert_eq!(table.next(), 1256);
        assert_eq!(
            [0, 519, 520, 999, 1000].map(|to| table.last(to)),
            [0, 256, 256, 520, 520]
        );
        assert_eq!(table.first(256, 1000), Some(256));
        assert_eq!(table.first(257, 1000), Some(520));
        // At the tail no message has been published yet.
        assert_eq!((table.first(257, 520), table.first(521, 1000)), (None, None));
        assert_eq!(
            (table.first(521, 1008), table.first(1001, 4096)),
            (Some(1000), None)
        );
    }
}
