//! The room in a publisher's ring: how far the writer may write.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Delivery, Mark, MarkTable, largest_message,
    readers::{Change, Entry, NO_POSITION, Readers, slot_of},
};
use crate::{
    error::{Error, Result},
    region::{
        copy::{Readable, Writable},
        layout::{self, BySlot, head_of},
    },
    ring::{
        read::pause,
        record::corrupt,
        write::{Room, Writer, Written},
    },
};

/// The writing end of a publisher's ring, owned by the thread that sends. It reports a reader's protocol
/// violation by [`FanOutWriter::violation`], and never fails because of one.
pub(crate) type FanOutWriter<O, P, T> = Writer<O, Floor<O, P, T>>;

/// A reader with an impossible head. The writer no longer waits for it.
pub(crate) struct Violation {
    /// Its number in the list.
    pub(crate) number: u64,
    pub(crate) error: Error,
}

/// A reliable reader, as the writer knows it.
struct Reliable<P> {
    number: u64,
    /// The position at which it started.
    position: u64,
    /// Its position when its word was last read. [`NO_POSITION`]: its start position is not found yet.
    head: u64,
    /// `None` during its handshake.
    control: Option<P>,
}

/// The room in a publisher's ring. The writer may overwrite data before the floor, and advances the floor as
/// far as the reliable readers have read.
pub(crate) struct Floor<O, P, T> {
    readers: Arc<Readers<O, P, T>>,
    /// Data before this position may be overwritten.
    position: u64,
    marks: MarkTable,
    /// The messages before the tail, and the bytes of their payloads.
    written: (u64, u64),
    /// The same for published messages, while others are not published yet.
    published: (u64, u64),
    generation: u64,
    /// The reliable readers, which can delay the writer, without those that violated the protocol.
    reliable: BySlot<Reliable<P>>,
    /// The slots that have changed since the last call of [`FanOutWriter::changes`], each with its reader if
    /// the reader's handshake is complete.
    unreported: BySlot<Option<(P, T)>>,
    /// Empty between two calls; kept for its memory.
    changes: Vec<Change<P, T>>,
    /// No head of a reliable reader is smaller. The value may be too low. It is exact after
    /// [`Floor::read_heads`].
    slowest: u64,
    violations: Vec<Violation>,
    /// The last check found no room.
    starved: bool,
}

impl<O: Writable, P: Readable + Clone, T: Clone> Floor<O, P, T> {
    /// Returns the position that the floor must reach so that the ring can be written up to `end`, and the
    /// first mark of a published message at or after that position. The readers keep messages from that mark
    /// on, so the last message stays until there is a newer one. `None` for the mark: unpublished data is in
    /// the way.
    fn goal(&self, ring: &Written<O>, end: u64) -> (u64, Option<u64>) {
        let goal = end.saturating_sub(ring.capacity);
        (goal, self.marks.first(goal, ring.published()))
    }

    #[inline]
    fn update_list(&mut self) {
        let generation = self.readers.generation();
        if generation != self.generation {
            self.read_list(generation);
        }
    }

    #[cold]
    fn read_list(&mut self, generation: u64) {
        self.readers.drain_changes(&mut self.changes);
        while let Some((slot, entry)) = self.changes.pop() {
            let active = if let Some(entry) = entry {
                self.add(slot, entry)
            } else {
                self.reliable.remove(slot);
                None
            };
            self.unreported.insert(slot, active);
        }
        if self.reliable.is_empty() {
            self.slowest = NO_POSITION;
        }
        self.generation = generation;
    }

    fn add(&mut self, slot: usize, entry: Entry<P, T>) -> Option<(P, T)> {
        let Entry {
            number,
            delivery,
            position,
            active,
        } = entry;
        if delivery != Delivery::Reliable {
            self.reliable.remove(slot);
            return active;
        }
        let control = active.as_ref().map(|(control, _)| control.clone());
        match self.reliable.get_mut(slot) {
            // Its head stays: the reader may have read since.
            Some(known) if (known.number, known.position) == (number, position) => known.control = control,
            _ => {
                let reader = Reliable {
                    number,
                    position,
                    head: position,
                    control,
                };
                self.reliable.insert(slot, reader);
                self.slowest = self.slowest.min(position);
            }
        }
        active
    }

    /// Reads the heads of the reliable readers. A head that goes backwards, or past the published tail, is a
    /// protocol violation.
    fn read_heads(&mut self, ring: &Written<O>) {
        let published = ring.published();
        let known = self.violations.len();
        self.slowest = NO_POSITION;
        for (slot, reader) in self.reliable.iter_mut() {
            if let Some(control) = &reader.control {
                let head = control.load(head_of(slot), Ordering::Acquire);
                // In unsigned arithmetic both violations are a distance larger than the unread part.
                if head.wrapping_sub(reader.head) > published - reader.head || !head.is_multiple_of(8) {
                    self.violations.push(Violation {
                        number: reader.number,
                        error: corrupt(format!(
                            "its head went from {} to {head}, and {published} was published",
                            reader.head
                        )),
                    });
                    continue;
                }
                reader.head = head;
            }
            self.slowest = self.slowest.min(reader.head);
        }
        for violation in &self.violations[known..] {
            self.reliable.remove(slot_of(violation.number));
        }
    }
}

impl<O: Writable, P: Readable + Clone, T: Clone> Room<O> for Floor<O, P, T> {
    const CALLS: bool = false;

    #[inline]
    fn largest_record(capacity: u64) -> u64 {
        largest_message(capacity)
    }

    /// Moves the floor. `false`: a reliable reader has not read that far.
    fn extend(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        let (goal, mark) = self.goal(ring, end);
        if goal <= self.position {
            return Ok(true);
        }
        let Some(mark) = mark else { return Ok(false) };
        loop {
            self.update_list();
            if mark > self.slowest {
                if self.starved {
                    pause(ring.capacity);
                }
                self.read_heads(ring);
                self.starved = goal > self.slowest;
                if self.starved {
                    return Ok(false);
                }
            }
            let floor = mark.min(self.slowest);
            if self.readers.announce_floor(floor) == self.generation {
                self.position = floor;
                // Release: a reliable reader that finds itself below it finds that it was evicted.
                ring.own.store(layout::FLOOR, floor, Ordering::Release);
                // Data written from now on is not visible before the floor is.
                ring.own.release_fence();
                return Ok(true);
            }
        }
    }

    fn begin_stretch(&mut self, ring: &Written<O>) -> u64 {
        if ring.tail >= self.marks.next() {
            let mark = Mark {
                position: ring.tail,
                sequence: self.written.0,
            };
            self.marks.set(&ring.own, mark);
        }
        // The first record after this position gets the next mark.
        self.marks.next().min(self.position + ring.capacity)
    }

    fn pad(&mut self, ring: &Written<O>, end: u64) {
        self.marks.move_last(&ring.own, ring.tail, end);
    }

    /// If there is no room and no reader is in the way, the unpublished data must be published first.
    fn has(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        let (goal, mark) = self.goal(ring, end);
        if goal <= self.position || mark.is_none() {
            return Ok(goal <= self.position);
        }
        self.update_list();
        if goal > self.slowest {
            self.read_heads(ring);
        }
        Ok(goal <= self.slowest)
    }

    fn limit(&mut self, ring: &Written<O>) -> Result<u64> {
        self.update_list();
        self.read_heads(ring);
        // The floor can go as far as this.
        let last = self.marks.last(ring.published());
        Ok(last.min(self.slowest).max(self.position) + ring.capacity)
    }

    /// 0 if no reader is reliable.
    fn used(&mut self, ring: &Written<O>) -> u64 {
        self.update_list();
        self.read_heads(ring);
        ring.published().saturating_sub(self.slowest)
    }

    #[inline]
    fn count(&mut self, length: u64) {
        self.count_all(1, length);
    }

    #[inline]
    fn count_all(&mut self, messages: u64, bytes: u64) {
        self.written.0 += messages;
        self.written.1 += bytes;
    }

    #[inline]
    fn mark_unpublished(&mut self) {
        self.published = self.written;
    }
}

impl<O: Writable, P: Readable + Clone, T: Clone> FanOutWriter<O, P, T> {
    pub(crate) fn new(own: O, readers: Arc<Readers<O, P, T>>, capacity: u64) -> Self {
        let room = Floor {
            readers,
            position: 0,
            marks: MarkTable::new(capacity),
            written: (0, 0),
            published: (0, 0),
            // Differs from the generation of an empty list, so that the first check reads the list.
            generation: u64::MAX,
            reliable: BySlot::default(),
            unreported: BySlot::default(),
            changes: Vec::new(),
            slowest: NO_POSITION,
            violations: Vec::new(),
            starved: false,
        };
        Self::with_room(own, room, capacity)
    }

    /// Returns the number of messages that were published, and the bytes of their payloads.
    #[inline]
    pub(crate) fn counted(&self) -> (u64, u64) {
        if self.ring.is_published() {
            self.room.written
        } else {
            self.room.published
        }
    }

    /// See [`Readers::generation`].
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.room.readers.generation()
    }

    /// Returns the slots of the list of readers that have changed since the last call, each with its reader
    /// if the reader's handshake is complete.
    pub(crate) fn changes(&mut self) -> impl Iterator<Item = (usize, Option<(P, T)>)> {
        self.room.update_list();
        std::iter::from_fn(|| self.room.unreported.pop())
    }

    /// Whether [`FanOutWriter::violation`] returns a reader.
    #[inline]
    pub(crate) fn has_violation(&self) -> bool {
        !self.room.violations.is_empty()
    }

    /// Returns a reader that has violated the protocol. The caller must release its slot.
    pub(crate) fn violation(&mut self) -> Option<Violation> {
        self.room.violations.pop()
    }

    /// Returns the position that every reliable reader must reach so that there is room for a message of this
    /// size. `None`: there is room, or the unpublished data must be published first.
    pub(crate) fn awaited(&mut self, payload: u64) -> Option<u64> {
        let end = self.ring.end_of(payload.min(self.largest_record()));
        let Self { ring, room, .. } = self;
        let (goal, mark) = room.goal(ring, end);
        room.update_list();
        if goal <= room.position || mark.is_none() {
            return None;
        }
        room.read_heads(ring);
        (room.slowest < goal).then_some(goal)
    }

    /// Returns the control objects of the readers that can make room, as the list is now.
    pub(crate) fn reliable_controls(&mut self) -> impl Iterator<Item = &P> {
        self.room.update_list();
        let readers = self.room.reliable.iter();
        readers.filter_map(|(_, reader)| reader.control.as_ref())
    }
}
