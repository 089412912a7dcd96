//! The publisher's end of the ring.

use std::sync::{Arc, atomic::Ordering};

use super::{
    largest_message,
    marks::{Mark, Table},
    readers::{Change, Entry, Readers, slot_of},
};
use crate::{
    error::{Error, Result},
    region::{
        copy::LINE,
        copy::{Readable, Writable},
        layout::BySlot,
        layout::{self, as_offset, head_of},
    },
    ring::{
        delivery::Delivery,
        pace::pause,
        record::{
            ALIGNED, HEADER, LONG, PADDING, WHOLE, corrupt, header, packed_length, packed_size, padded,
            record_size, to_payload,
        },
    },
};

/// As the writer of a pair: it takes lines that the readers have had before it comes to them.
const BEFOREHAND: u64 = 1024;
/// Bytes of a payload all of whose lines are taken back like that.
const SHORT_WRITE: u64 = 184;

/// No position of a record: those are multiples of eight.
const NOTHING: u64 = u64::MAX;

/// No reader holds the writer up. Positions end far before this one, which is also that of a reader whose place is not found yet.
const NEVER: u64 = u64::MAX;

/// A reader whose head is impossible. The writer no longer waits for it.
#[derive(Debug)]
pub(crate) struct Lie {
    /// Its number in the list.
    pub(crate) number: u64,
    pub(crate) error: Error,
}

/// A reliable reader, as the writer knows it.
#[derive(Debug)]
struct Reliable<P> {
    number: u64,
    /// The position at which it began.
    position: u64,
    /// Its position when its word was last read. [`NEVER`]: its place is not found yet.
    head: u64,
    /// `None` during its handshake.
    control: Option<P>,
}

/// The writing end, owned by the thread that sends.
///
/// No call errs: what a reader does wrong is told by [`FanOut::lie`], and is its own affair.
#[derive(Debug)]
pub(crate) struct FanOut<O, P, T> {
    own: O,
    readers: Arc<Readers<O, P, T>>,
    capacity: u64,
    /// Where the next record goes. Up to here the ring is written.
    tail: u64,
    /// Messages before the tail.
    written: u64,
    /// Where what the readers cannot see yet begins, how many messages are before it, and how many bytes those have. [`NOTHING`]: they
    /// see all up to the tail. So a message that is published at once does not store this.
    unpublished: u64,
    sequence: u64,
    bytes_shown: u64,
    /// Bytes of the messages before the tail.
    bytes: u64,
    /// What lies before it may be written over.
    floor: u64,
    /// A record that ends here or before has room where it stands, and gets no mark. Never past the floor and a ring, this lap's end
    /// and overhang, and the place of the next mark.
    until: u64,
    marks: Table,
    generation: u64,
    /// The reliable readers, which hold the writer up, without those that violated the protocol.
    reliable: BySlot<Reliable<P>>,
    /// The slots that have changed since the last call of [`FanOut::changes`], each with its reader if that is through its handshake.
    untold: BySlot<Option<(P, T)>>,
    /// Empty between two calls; kept for its memory.
    changes: Vec<Change<P, T>>,
    /// No head of a reliable reader is smaller. It may be too small: it is exact after [`FanOut::look_at_heads`].
    slowest: u64,
    lies: Vec<Lie>,
    /// The last look found no room: the next one waits a moment, to find more than one record's.
    starved: bool,
}

impl<O: Writable, P: Readable + Clone, T: Clone> FanOut<O, P, T> {
    pub(crate) fn new(own: O, readers: Arc<Readers<O, P, T>>, capacity: u64) -> Self {
        let marks = Table::new(capacity);
        Self {
            own,
            readers,
            capacity,
            tail: 0,
            written: 0,
            unpublished: NOTHING,
            sequence: 0,
            bytes_shown: 0,
            bytes: 0,
            floor: 0,
            until: marks.next(),
            marks,
            // Not that of an empty list, so that the first look takes it.
            generation: u64::MAX,
            reliable: BySlot::default(),
            untold: BySlot::default(),
            changes: Vec::new(),
            slowest: NEVER,
            lies: Vec::new(),
            starved: false,
        }
    }

    /// Bytes of the largest message.
    #[inline]
    pub(crate) const fn largest_message(&self) -> u64 {
        largest_message(self.capacity)
    }

    /// Messages that were published.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        if self.unpublished == NOTHING {
            self.written
        } else {
            self.sequence
        }
    }

    /// The tail that the readers can see.
    #[inline]
    fn published(&self) -> u64 {
        self.tail.min(self.unpublished)
    }

    /// Bytes of the messages that were published.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        if self.unpublished == NOTHING {
            self.bytes
        } else {
            self.bytes_shown
        }
    }

    /// Bytes of the ring that the slowest reliable reader has not read, as it says now. 0 where there is none.
    pub(crate) fn used(&mut self) -> u64 {
        self.take_list_if_changed();
        self.look_at_heads();
        self.published().saturating_sub(self.slowest)
    }

    /// Finds room for a record, pads the ring's end if it must, and returns the offset of the payload in the region.
    /// `None`: there is no room now.
    #[inline]
    pub(crate) fn claim(&mut self, payload: u64) -> Option<usize> {
        self.claim_known(payload).or_else(|| self.claim_anew(payload))
    }

    /// As [`FanOut::claim`], where what is known suffices.
    #[inline]
    pub(crate) fn claim_known(&mut self, payload: u64) -> Option<usize> {
        debug_assert!(
            payload <= self.largest_message(),
            "a message is at most an eighth of the ring"
        );
        // As the writer of a pair does: all questions about the payload's length are asked here.
        let (to_payload, ahead) = if payload <= SHORT_WRITE {
            (HEADER, HEADER + padded(payload))
        } else {
            (to_payload(self.tail, payload >= LONG), 1)
        };
        if self.tail + to_payload + padded(payload) > self.until {
            return None;
        }
        let at = self.place();
        if self.tail + BEFOREHAND < self.until {
            self.own.will_write_all(at + as_offset(BEFOREHAND), ahead);
        }
        Some(at + as_offset(to_payload))
    }

    /// Offset in the region of what comes next.
    #[inline]
    fn place(&self) -> usize {
        layout::DATA + as_offset(self.tail & (self.capacity - 1))
    }

    /// As [`FanOut::claim`], where what is known does not suffice.
    #[cold]
    #[inline(never)]
    fn claim_anew(&mut self, payload: u64) -> Option<usize> {
        let (padding, record) = self.needs(payload);
        if !self.make_room(self.tail + padding + record) {
            return None;
        }
        if padding > 0 {
            self.own
                .store(self.place(), header(padding - HEADER, PADDING), Ordering::Relaxed);
            self.is_unpublished();
            self.marks.moves(&self.own, self.tail, self.tail + padding);
            self.tail += padding;
        }
        if self.tail >= self.marks.next() {
            let mark = Mark {
                position: self.tail,
                sequence: self.written,
            };
            self.marks.set(&self.own, mark);
        }
        let lap = self.tail - (self.tail & (self.capacity - 1));
        self.until = (lap + self.capacity + layout::OVERHANG as u64)
            .min(self.floor + self.capacity)
            .min(self.marks.next());
        let to_payload = to_payload(self.tail, payload >= LONG);
        Some(self.place() + as_offset(to_payload))
    }

    /// What goes before a record with this payload, to fill the ring's end, and the record itself.
    fn needs(&self, payload: u64) -> (u64, u64) {
        let rest = self.capacity - (self.tail & (self.capacity - 1));
        let record = record_size(self.tail, payload);
        if record > rest + layout::OVERHANG as u64 {
            (rest, record_size(self.tail + rest, payload))
        } else {
            (0, record)
        }
    }

    /// Where the floor must be at least, for the ring to be written up to `end`; and the mark of a published message there or behind it,
    /// which the readers must be left: so the last message stays until there is a newer one. `None` for the mark: what is not published yet is
    /// in the way.
    fn goal(&self, end: u64) -> (u64, Option<u64>) {
        let goal = end.saturating_sub(self.capacity);
        (goal, self.marks.first(goal, self.published()))
    }

    /// Moves the floor so far that the ring can be written up to `end`. `false`: a reliable reader has not read that far.
    fn make_room(&mut self, end: u64) -> bool {
        let (goal, mark) = self.goal(end);
        if goal <= self.floor {
            return true;
        }
        let Some(mark) = mark else { return false };
        loop {
            self.take_list_if_changed();
            if mark > self.slowest {
                if self.starved {
                    pause(self.capacity);
                }
                self.look_at_heads();
                self.starved = goal > self.slowest;
                if self.starved {
                    return false;
                }
            }
            let floor = mark.min(self.slowest);
            if self.readers.intend(floor) == self.generation {
                self.floor = floor;
                // Release: a reliable reader that finds itself below it finds that it was evicted.
                self.own.store(layout::FLOOR, floor, Ordering::Release);
                // What is written from now on is not seen before the floor is.
                self.own.release_fence();
                return true;
            }
        }
    }

    /// Takes what has changed in the list of readers: the slots that have since this was last called, each with its reader if that is
    /// through its handshake.
    pub(crate) fn changes(&mut self) -> impl Iterator<Item = (usize, Option<(P, T)>)> {
        self.take_list_if_changed();
        std::iter::from_fn(|| self.untold.pop())
    }

    #[inline]
    fn take_list_if_changed(&mut self) {
        let generation = self.readers.generation();
        if generation != self.generation {
            self.take_list(generation);
        }
    }

    #[cold]
    fn take_list(&mut self, generation: u64) {
        self.readers.take_changes(&mut self.changes);
        while let Some((slot, entry)) = self.changes.pop() {
            let active = if let Some(entry) = entry {
                self.take_entry(slot, entry)
            } else {
                self.reliable.remove(slot);
                None
            };
            self.untold.insert(slot, active);
        }
        if self.reliable.is_empty() {
            self.slowest = NEVER;
        }
        self.generation = generation;
    }

    fn take_entry(&mut self, slot: usize, entry: Entry<P, T>) -> Option<(P, T)> {
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

    /// Reads the heads of the reliable readers. A head that goes backwards, or past the published tail, is a protocol violation.
    fn look_at_heads(&mut self) {
        let published = self.published();
        let known = self.lies.len();
        self.slowest = NEVER;
        for (slot, reader) in self.reliable.iter_mut() {
            if let Some(control) = &reader.control {
                let head = control.load(head_of(slot), Ordering::Acquire);
                // In unsigned arithmetic both lies come out as a distance larger than what is unread.
                if head.wrapping_sub(reader.head) > published - reader.head || !head.is_multiple_of(8) {
                    self.lies.push(Lie {
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
        for lie in &self.lies[known..] {
            self.reliable.remove(slot_of(lie.number));
        }
    }

    /// A reader that has violated the protocol, and whose slot the caller must release. It no longer holds the writer up.
    #[inline]
    pub(crate) fn lie(&mut self) -> Option<Lie> {
        self.lies.pop()
    }

    /// The position that every reliable reader must reach, so that there is room for a message of this size. `None`: there is
    /// room, or what was written must be published first.
    pub(crate) fn awaited(&mut self, payload: u64) -> Option<u64> {
        let (padding, record) = self.needs(payload.min(self.largest_message()));
        let (goal, mark) = self.goal(self.tail + padding + record);
        self.take_list_if_changed();
        if goal <= self.floor || mark.is_none() {
            return None;
        }
        self.look_at_heads();
        (self.slowest < goal).then_some(goal)
    }

    /// The control objects of the readers that can make room, as the list is now.
    pub(crate) fn reliable_controls(&mut self) -> impl Iterator<Item = &P> {
        self.take_list_if_changed();
        self.reliable
            .iter()
            .filter_map(|(_, reader)| reader.control.as_ref())
    }

    /// Writes a message without publishing it. `false`: there is no room now. Where no reader is in the way ([`FanOut::awaited`]),
    /// there will be once what was written is published.
    #[inline]
    pub(crate) fn push(&mut self, payload: &[u8]) -> bool {
        let length = payload.len() as u64;
        let Some(at) = self.claim(length) else {
            return false;
        };
        self.own.copy_in(at, payload);
        self.finish(at, payload.len(), payload.len());
        true
    }

    /// As [`FanOut::push`], published at once.
    #[inline]
    pub(crate) fn push_now(&mut self, payload: &[u8]) -> bool {
        let length = payload.len() as u64;
        let Some(at) = self.claim(length) else {
            return false;
        };
        self.own.copy_in(at, payload);
        self.finish_now(at, payload.len(), payload.len());
        true
    }

    /// Ends the record whose payload was claimed at `at`, for so many bytes, and has got `length` of them.
    #[inline]
    fn advance(&mut self, at: usize, claimed: u64, length: u64) {
        if claimed < LONG {
            self.own
                .store(at - as_offset(HEADER), header(length, WHOLE), Ordering::Relaxed);
            self.tail += HEADER + padded(length);
        } else {
            self.advance_long(length);
        }
        self.written += 1;
        self.bytes += length;
    }

    #[inline(never)]
    fn advance_long(&mut self, length: u64) {
        self.own
            .store(self.place(), header(length, WHOLE | ALIGNED), Ordering::Relaxed);
        self.tail += to_payload(self.tail, true) + padded(length);
    }

    /// Writes as many whole records of `packed` (records as short ones lie in the ring, one after the other) as there is
    /// room for. Returns how many bytes of it were taken. A record that is cut, not a whole message, or longer than `longest` or
    /// [`FanOut::largest_message`] ends the run, and is refused when it is the first.
    pub(crate) fn push_packed(&mut self, packed: &[u8], longest: u64) -> Result<usize> {
        let longest = longest.min(self.largest_message());
        let mut taken = 0;
        while taken < packed.len() {
            // One run: short records, which lie one after the other in the ring as well, as far as they need no mark.
            let (mut run, mut count, mut payload, mut next) = (0_u64, 0, 0, None);
            let place = self.tail & (self.capacity - 1);
            let room = self.until.saturating_sub(self.tail).min(self.capacity - place);
            while taken + as_offset(run) < packed.len() {
                let at = taken + as_offset(run);
                let length = match packed_length(packed, at, longest) {
                    Ok(length) => length,
                    Err(error) if at == 0 => return Err(error),
                    Err(_) => break,
                };
                if run + packed_size(length) > room || length >= LONG {
                    next = Some(length);
                    break;
                }
                run += packed_size(length);
                count += 1;
                payload += length;
            }
            if run > 0 {
                let from = &packed[taken..taken + as_offset(run)];
                self.own.copy_in(self.place(), from);
                self.is_unpublished();
                self.tail += run;
                self.written += count;
                self.bytes += payload;
                taken += as_offset(run);
            }
            let Some(length) = next else { break };
            let start = taken + as_offset(HEADER);
            if !self.push(&packed[start..start + as_offset(length)]) {
                break;
            }
            taken += as_offset(packed_size(length));
        }
        Ok(taken)
    }

    /// What is written from here on is not published yet.
    #[inline]
    fn is_unpublished(&mut self) {
        if self.unpublished == NOTHING {
            self.unpublished = self.tail;
            self.sequence = self.written;
            self.bytes_shown = self.bytes;
        }
    }

    /// Makes everything written so far visible to the readers. Returns whether there was anything.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.unpublished == NOTHING {
            return false;
        }
        self.show_tail();
        true
    }

    #[inline]
    fn show_tail(&mut self) {
        if self.unpublished != NOTHING {
            self.unpublished = NOTHING;
        }
        self.own.store(layout::TAIL, self.tail, Ordering::Release);
    }

    /// Whether a message of this size would find room now. Where it would not, and no reader is in the way, what was written must
    /// be published first.
    pub(crate) fn has_room(&mut self, payload: u64) -> bool {
        let (padding, record) = self.needs(payload.min(self.largest_message()));
        let (goal, mark) = self.goal(self.tail + padding + record);
        if goal <= self.floor {
            return true;
        }
        if mark.is_none() {
            return false;
        }
        self.take_list_if_changed();
        if goal > self.slowest {
            self.look_at_heads();
        }
        goal <= self.slowest
    }

    /// Bytes of packed records that surely find room now, all of them, be it in one go or in several: of messages of at most
    /// `longest` bytes, whatever their sizes, and wherever the ring ends.
    pub(crate) fn packed_room(&mut self, longest: u64) -> u64 {
        let longest = longest.min(self.largest_message());
        self.take_list_if_changed();
        self.look_at_heads();
        // The floor can go as far as this.
        let last = self.marks.last(self.published());
        let end = last.min(self.slowest).max(self.floor) + self.capacity;
        // Less than the ring goes in, so at most one record meets the ring's end, and leaves less room there than it takes.
        let room = (end - self.tail).saturating_sub(HEADER + LINE as u64 + padded(longest));
        if longest < LONG {
            return room;
        }
        // A long one takes up to a line more than it does among packed ones.
        room / (packed_size(LONG) + LINE as u64) * packed_size(LONG)
    }

    /// Ends a record that was claimed at `at` for so many bytes, with no more than those, and does not publish it.
    #[inline]
    pub(crate) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.is_unpublished();
        self.advance(at, claimed as u64, length as u64);
    }

    /// As [`FanOut::finish`], published at once, with what was not before.
    #[inline]
    pub(crate) fn finish_now(&mut self, at: usize, claimed: usize, length: usize) {
        self.advance(at, claimed as u64, length as u64);
        self.show_tail();
    }

    #[inline]
    pub(crate) fn own(&self) -> &O {
        &self.own
    }

    #[inline]
    pub(crate) fn own_mut(&mut self) -> &mut O {
        &mut self.own
    }
}
