//! Where records begin: what the writer tells, and what a reader makes of it.

use std::sync::atomic::Ordering;

use crate::region::{
    copy::{Readable, Writable},
    layout::{self, MARKS, mark_of},
};

/// The position at which a record begins, and how many messages lie before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
}

/// The writer's own copy of its marks.
#[derive(Debug)]
pub(super) struct Table {
    marks: [Mark; MARKS],
    /// How many were set. The first is that of the ring's beginning, which memory full of zeros says by itself.
    count: usize,
    /// The marks lie at least this far apart, so that all of them are a ring.
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

    /// The first record from here on gets a mark.
    pub(super) fn next(&self) -> u64 {
        self.marks[(self.count - 1) % MARKS].position + self.part
    }

    /// Sets a mark. It takes the place of one that is a ring older, and lies below the floor.
    pub(super) fn set(&mut self, own: &impl Writable, mark: Mark) {
        let at = mark_of(self.count);
        // In this order: a reader that sees the position sees this number, or a newer one, and then also a floor above.
        own.store(at + 8, mark.sequence, Ordering::Relaxed);
        own.store(at, mark.position, Ordering::Release);
        self.marks[self.count % MARKS] = mark;
        self.count += 1;
    }

    /// The last mark is that of a record at `to`, where it was set at `from`: what was to begin there was given up, and padding is there
    /// instead. Both are the same number of messages from the beginning, so a reader may see either.
    pub(super) fn moves(&mut self, own: &impl Writable, from: u64, to: u64) {
        let last = self.count - 1;
        let mark = &mut self.marks[last % MARKS];
        if mark.position == from {
            mark.position = to;
            own.store(mark_of(last), to, Ordering::Release);
        }
    }

    /// The first of these at `from` or behind it, where it is that of a published message: of what is published up to `published`.
    pub(super) fn first(&self, from: u64, published: u64) -> Option<u64> {
        self.marks
            .iter()
            .map(|mark| mark.position)
            .filter(|position| (from..published).contains(position))
            .min()
    }
}

impl Table {
    /// The last of them that is that of a published message; the ring's beginning where there is none.
    pub(super) fn last(&self, published: u64) -> u64 {
        let positions = self.marks.iter().map(|mark| mark.position);
        positions
            .filter(|position| *position < published)
            .max()
            .unwrap_or(0)
    }
}

/// What one look at the marks has found.
pub(super) struct Seen {
    /// Nothing from here on was written over before the look was over.
    pub(super) floor: u64,
    /// The floor did not move meanwhile: an honest writer has a mark from there on.
    pub(super) still: bool,
    pub(super) tail: u64,
    marks: [Mark; MARKS],
}

impl Seen {
    pub(super) fn look(ring: &impl Readable) -> Self {
        // The floor first: a tail that is looked at after it is not before the mark that the floor leaves.
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

    /// Those that were whole, and whose record can be read or is the next to come.
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
