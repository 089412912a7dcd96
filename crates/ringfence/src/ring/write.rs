//! The writing end of a ring, for any number of readers.
//!
//! [`Writer`] claims, finishes and publishes records. [`Room`] tells how far it may write, which depends on the readers.

use std::sync::atomic::Ordering;

use crate::{
    error::Result,
    region::copy::{LINE, Writable},
    region::layout::{self, as_offset},
    ring::record::{
        ALIGNED, HEADER, LONG, PADDING, Tag, WHOLE, header, packed_header, packed_size, padded, record_size,
        to_payload,
    },
};

/// The writer prefetches lines that the readers have had this many bytes before it gets there. This is less than
/// [`AHEAD`](crate::region::copy::AHEAD): if the ring is full, a reader is not much further ahead.
const PREFETCH_DISTANCE: u64 = 1024;

/// All lines of a record are prefetched if its payload has at most this many bytes, and only the first line of a longer one: if the two
/// cores are near each other, prefetching all of them costs more than it saves.
const SHORT_PAYLOAD: u64 = 184;

/// No position of a record: those are multiples of eight.
const ALL_PUBLISHED: u64 = u64::MAX;

/// Tells how far the writer may write, and counts what it writes. One implementation for each kind of ring.
pub(crate) trait Room<O> {
    /// Whether a message may be a call frame.
    const CALLS: bool;

    /// Returns the largest payload of one record in a ring of this capacity.
    fn largest_record(capacity: u64) -> u64;

    /// Returns whether the ring may be written up to `end`. If the known room does not suffice, reads the positions of the readers. Pauses
    /// first if the last call found no room, to find room for more than one record.
    fn extend(&mut self, ring: &Written<O>, end: u64) -> Result<bool>;

    /// Starts a stretch at the tail, which `extend` has found room behind. Returns its end: records up to there need neither `extend`
    /// nor another stretch.
    fn begin_stretch(&mut self, ring: &Written<O>) -> u64;

    /// Padding fills the ring from the tail up to `end`.
    fn pad(&mut self, _ring: &Written<O>, _end: u64) {}

    /// Returns whether the ring could be written up to `end` now. Changes nothing that a reader can see.
    fn has(&mut self, ring: &Written<O>, end: u64) -> Result<bool>;

    /// Returns the position up to which the ring could be written now.
    fn limit(&mut self, ring: &Written<O>) -> Result<u64>;

    /// Returns the number of published bytes that the slowest reader has not read, as it reports now.
    fn used(&mut self, ring: &Written<O>) -> u64;

    /// Counts one message.
    fn count(&mut self, length: u64);

    /// Counts several messages, and the bytes of their payloads.
    fn count_all(&mut self, messages: u64, bytes: u64);

    /// Called before a message is counted that is not published at once.
    fn mark_unpublished(&mut self) {}
}

/// The part of a ring that is written.
pub(crate) struct Written<O> {
    pub(super) own: O,
    pub(super) capacity: u64,
    /// The position of the next record.
    pub(super) tail: u64,
    /// The position from which on the readers see nothing yet. [`ALL_PUBLISHED`]: they see everything up to the tail. So a message that is
    /// published at once does not store it.
    unpublished: u64,
}

impl<O> Written<O> {
    /// The tail that the readers can see.
    #[inline]
    pub(super) fn published(&self) -> u64 {
        self.tail.min(self.unpublished)
    }

    /// Whether the readers can see everything that was written.
    #[inline]
    pub(super) fn is_published(&self) -> bool {
        self.unpublished == ALL_PUBLISHED
    }

    /// The offset in the ring of the next record.
    #[inline]
    fn offset(&self) -> u64 {
        self.tail & (self.capacity - 1)
    }

    /// The offset in the region of the next record.
    #[inline]
    fn place(&self) -> usize {
        layout::DATA + as_offset(self.offset())
    }

    /// The bytes before a record with this payload, which fill the ring's end, and the bytes of the record itself.
    fn needs(&self, payload: u64) -> (u64, u64) {
        let rest = self.capacity - self.offset();
        let record = record_size(self.tail, payload);
        if record > rest + layout::OVERHANG as u64 {
            (rest, record_size(self.tail + rest, payload))
        } else {
            (0, record)
        }
    }

    /// The position behind a record with this payload.
    pub(super) fn end_of(&self, payload: u64) -> u64 {
        let (padding, record) = self.needs(payload);
        self.tail + padding + record
    }
}

/// The writing end of a ring, in the region that this process owns.
pub(crate) struct Writer<O, R> {
    pub(super) ring: Written<O>,
    pub(crate) room: R,
    /// A record that ends at this position or before it has room where it is. At most the end of the known room, and the end of this
    /// lap and its overhang.
    until: u64,
}

impl<O: Writable, R: Room<O>> Writer<O, R> {
    pub(super) fn with_room(own: O, room: R, capacity: u64) -> Self {
        Self {
            ring: Written {
                own,
                capacity,
                tail: 0,
                unpublished: ALL_PUBLISHED,
            },
            room,
            until: 0,
        }
    }

    /// Bytes of the largest payload that is ever one record.
    #[inline]
    pub(crate) fn largest_record(&self) -> u64 {
        R::largest_record(self.ring.capacity)
    }

    /// The position up to which this side has written.
    pub(crate) fn tail(&self) -> u64 {
        self.ring.tail
    }

    /// See [`Room::used`].
    pub(crate) fn used(&mut self) -> u64 {
        self.room.used(&self.ring)
    }

    /// Finds room for a record, pads the ring's end if necessary, and returns the offset of the payload in the region.
    /// `None`: there is no room now, and nothing was changed.
    #[inline]
    pub(crate) fn claim(&mut self, payload: u64) -> Result<Option<usize>> {
        match self.claim_fast(payload) {
            Some(at) => Ok(Some(at)),
            None => self.claim_slow(payload),
        }
    }

    /// Claims like [`Writer::claim`], if the room that is known suffices.
    #[expect(
        clippy::inline_always,
        reason = "its answer then stays in a register: that of `claim` is on the stack, and each store there waits behind those to the ring"
    )]
    #[inline(always)]
    pub(crate) fn claim_fast(&mut self, payload: u64) -> Option<usize> {
        debug_assert!(
            payload <= self.largest_record(),
            "a record is at most a fixed part of the ring"
        );
        let Self { ring, until, .. } = self;
        // The only branch on the payload's length: a writer of short ones waits for each such branch.
        let (to_payload, ahead) = if payload <= SHORT_PAYLOAD {
            (HEADER, HEADER + padded(payload))
        } else {
            (to_payload(ring.tail, payload >= LONG), 1)
        };
        if ring.tail + to_payload + padded(payload) > *until {
            return None;
        }
        let at = ring.place();
        if ring.tail + PREFETCH_DISTANCE < *until {
            ring.own.will_write_all(at + as_offset(PREFETCH_DISTANCE), ahead);
        }
        Some(at + as_offset(to_payload))
    }

    /// Claims like [`Writer::claim`], if the room that is known does not suffice.
    #[cold]
    #[inline(never)]
    fn claim_slow(&mut self, payload: u64) -> Result<Option<usize>> {
        let (padding, record) = self.ring.needs(payload);
        if !self.room.extend(&self.ring, self.ring.tail + padding + record)? {
            return Ok(None);
        }
        if padding > 0 {
            let header = header(padding - HEADER, PADDING);
            self.ring.own.store(self.ring.place(), header, Ordering::Relaxed);
            self.mark_unpublished();
            let end = self.ring.tail + padding;
            self.room.pad(&self.ring, end);
            self.ring.tail = end;
        }
        let stretch = self.room.begin_stretch(&self.ring);
        let lap = self.ring.tail - self.ring.offset();
        self.until = stretch.min(lap + self.ring.capacity + layout::OVERHANG as u64);
        let to_payload = to_payload(self.ring.tail, payload >= LONG);
        Ok(Some(self.ring.place() + as_offset(to_payload)))
    }

    /// Writes a record without publishing it. `false`: there is no room now.
    #[inline]
    pub(crate) fn push(&mut self, payload: &[u8], tag: Tag) -> Result<bool> {
        let Some(at) = self.claim(payload.len() as u64)? else {
            return Ok(false);
        };
        self.ring.own.copy_in(at, payload);
        self.mark_unpublished();
        self.advance_whole(at, payload.len(), payload.len(), tag);
        Ok(true)
    }

    /// Writes a record like [`Writer::push`], and publishes it.
    #[inline]
    pub(crate) fn push_now(&mut self, payload: &[u8], tag: Tag) -> Result<bool> {
        let Some(at) = self.claim(payload.len() as u64)? else {
            return Ok(false);
        };
        self.ring.own.copy_in(at, payload);
        self.advance_whole(at, payload.len(), payload.len(), tag);
        self.publish_tail();
        Ok(true)
    }

    /// Finishes a record of `length` bytes that was claimed at `at` for `claimed` bytes, and does not publish it.
    #[inline]
    pub(crate) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.mark_unpublished();
        self.advance_whole(at, claimed, length, Tag::NONE);
    }

    /// Finishes a record like [`Writer::finish`], and publishes everything that was written.
    #[inline]
    pub(crate) fn finish_now(&mut self, at: usize, claimed: usize, length: usize) {
        self.advance_whole(at, claimed, length, Tag::NONE);
        self.publish_tail();
    }

    #[inline]
    fn advance_whole(&mut self, at: usize, claimed: usize, length: usize, tag: Tag) {
        self.advance(at, claimed as u64, length as u64, WHOLE | tag.bits());
        self.room.count(length as u64);
    }

    /// Writes the header of a record that was claimed at `at`, and moves the tail behind it.
    #[inline]
    pub(super) fn advance(&mut self, at: usize, claimed: u64, length: u64, flags: u32) {
        if claimed < LONG {
            let header = header(length, flags);
            self.ring
                .own
                .store(at - as_offset(HEADER), header, Ordering::Relaxed);
            self.ring.tail += HEADER + padded(length);
        } else {
            self.advance_long(length, flags);
        }
    }

    #[inline(never)]
    fn advance_long(&mut self, length: u64, flags: u32) {
        let header = header(length, flags | ALIGNED);
        self.ring.own.store(self.ring.place(), header, Ordering::Relaxed);
        self.ring.tail += to_payload(self.ring.tail, true) + padded(length);
    }

    /// Writes the whole records of `packed` (laid out one after the other, as short ones are in the ring) that there is room for.
    /// Returns how many bytes of it were written. A record that is cut, is not a whole message, or is longer than `longest` or
    /// [`Writer::largest_record`] ends the run. If it is the first, it is an error.
    pub(crate) fn push_packed(&mut self, packed: &[u8], longest: u64) -> Result<usize> {
        let longest = longest.min(self.largest_record());
        let mut pushed = 0;
        while pushed < packed.len() {
            // One run: short records, which follow each other in the ring as well, up to the end of this stretch.
            let (mut run, mut count, mut payload, mut next) = (0_u64, 0, 0, None);
            let rest = self.ring.capacity - self.ring.offset();
            let room = self.until.saturating_sub(self.ring.tail).min(rest);
            while pushed + as_offset(run) < packed.len() {
                let at = pushed + as_offset(run);
                let (length, tag) = match packed_header(packed, at, longest, R::CALLS) {
                    Ok(found) => found,
                    Err(error) if at == 0 => return Err(error),
                    Err(_) => break,
                };
                if run + packed_size(length) > room || length >= LONG {
                    next = Some((length, tag));
                    break;
                }
                run += packed_size(length);
                count += 1;
                payload += length;
            }
            if run > 0 {
                let from = &packed[pushed..pushed + as_offset(run)];
                self.ring.own.copy_in(self.ring.place(), from);
                self.mark_unpublished();
                self.ring.tail += run;
                self.room.count_all(count, payload);
                pushed += as_offset(run);
            }
            // A long record, or one that needs padding, the overhang or another stretch.
            let Some((length, tag)) = next else { break };
            let start = pushed + as_offset(HEADER);
            if !self.push(&packed[start..start + as_offset(length)], tag)? {
                break;
            }
            pushed += as_offset(packed_size(length));
        }
        Ok(pushed)
    }

    /// Marks records from the tail on as not published yet.
    #[inline]
    pub(super) fn mark_unpublished(&mut self) {
        if self.ring.is_published() {
            self.ring.unpublished = self.ring.tail;
            self.room.mark_unpublished();
        }
    }

    /// Makes everything written so far visible to the readers. Returns whether there was anything.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.ring.is_published() {
            return false;
        }
        self.publish_tail();
        true
    }

    #[inline]
    fn publish_tail(&mut self) {
        if !self.ring.is_published() {
            self.ring.unpublished = ALL_PUBLISHED;
        }
        self.ring
            .own
            .store(layout::TAIL, self.ring.tail, Ordering::Release);
    }

    /// Returns whether a record with this payload would find room now.
    pub(crate) fn has_room(&mut self, payload: u64) -> Result<bool> {
        let end = self.ring.end_of(payload.min(self.largest_record()));
        self.room.has(&self.ring, end)
    }

    /// Returns the number of bytes of packed records that certainly find room now, in one call or in several: of messages of at most
    /// `longest` bytes, whatever their sizes, and wherever the ring ends.
    pub(crate) fn packed_room(&mut self, longest: u64) -> Result<u64> {
        let longest = longest.min(self.largest_record());
        let room = self.room.limit(&self.ring)? - self.ring.tail;
        // Less than the ring fits, so at most one record meets the ring's end, and leaves less room there than it takes.
        let room = room.saturating_sub(HEADER + LINE as u64 + padded(longest));
        if longest < LONG {
            return Ok(room);
        }
        // A long record takes up to a line more than it does among packed ones.
        Ok(room / (packed_size(LONG) + LINE as u64) * packed_size(LONG))
    }

    #[inline]
    pub(crate) fn own(&self) -> &O {
        &self.ring.own
    }

    #[inline]
    pub(crate) fn own_mut(&mut self) -> &mut O {
        &mut self.ring.own
    }
}
