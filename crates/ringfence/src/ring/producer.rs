//! The writing end of a ring.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    error::Result,
    region::copy::LINE,
    region::copy::{Readable, Writable},
    region::layout::{self, as_offset},
    ring::message::Progress,
    ring::pace::pause,
    ring::record::{
        ALIGNED, FIRST, HEADER, LAST, LONG, PADDING, WHOLE, corrupt, header, largest_record, packed_length,
        packed_size, padded, record_size, to_payload,
    },
    ring::tally::{STRETCH, Sum, Tally},
};

/// The writer takes lines that the reader has had back before it comes to them. Not as far ahead as [`AHEAD`](crate::region::copy::AHEAD): with a
/// full ring, the reader is not far from there.
const BEFOREHAND: u64 = 1024;

/// Bytes of a payload all of whose lines are taken back like that. Of longer ones the first alone: all of them cost more than they
/// brought where the two cores are near.
const SHORT_WRITE: u64 = 184;

/// No position of a record: those are multiples of eight.
const NOTHING: u64 = u64::MAX;

/// The writing end: in the region that this process owns.
///
/// Nothing here assumes that there is one consumer, but for [`Producer::look_at_head`], which asks the one there is;
/// several would each have a head, and the slowest would count.
#[derive(Debug)]
pub(crate) struct Producer<O, P> {
    own: O,
    pub(super) peer: P,
    pub(super) capacity: u64,
    /// Where the next record goes. Up to here the ring is written.
    pub(super) tail: u64,
    /// Where what the consumer cannot see yet begins. [`NOTHING`]: it sees all up to the tail. So a message that is published at once
    /// does not store it.
    unpublished: u64,
    /// The consumer's head when it was last looked at.
    pub(super) head: u64,
    /// A record that ends here or before has room where it stands. Never past the room that is known, nor past this
    /// lap's end and overhang.
    until: u64,
    /// The last look found no room: the next one waits a moment, to find more than one record's.
    starved: bool,
    /// Messages that were written since the tally was last told.
    sum: Sum,
    tally: Arc<Tally>,
}

impl<O, P> Drop for Producer<O, P> {
    fn drop(&mut self) {
        self.sum.tell(&self.tally);
    }
}

impl<O: Writable, P: Readable> Producer<O, P> {
    pub(crate) fn new(own: O, peer: P, capacity: u64) -> Self {
        Self {
            own,
            peer,
            capacity,
            tail: 0,
            unpublished: NOTHING,
            head: 0,
            until: 0,
            starved: false,
            sum: Sum::default(),
            tally: Arc::default(),
        }
    }

    /// Counts in this tally from now on, which counts for no other ring.
    pub(crate) fn count_in(&mut self, tally: &Arc<Tally>) {
        self.tally = Arc::clone(tally);
    }

    /// Messages that were written, and the bytes of their payloads. One in fragments counts once it is whole.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        self.sum.tell(&self.tally);
        self.tally.get()
    }

    /// Bytes of the ring that the consumer has not read, as it says now.
    pub(crate) fn used(&self) -> u64 {
        let used = self
            .tail
            .wrapping_sub(self.peer.load(layout::HEAD, Ordering::Acquire));
        // A lie is found where it matters.
        used.min(self.tail - self.head)
    }

    /// The largest payload that is ever one record.
    #[inline]
    pub(crate) const fn largest_record(&self) -> u64 {
        largest_record(self.capacity)
    }

    /// The tail that the consumer can see.
    pub(super) fn published(&self) -> u64 {
        self.tail.min(self.unpublished)
    }

    /// Looks how far the consumer has read. A head that goes backwards, or past what was published, is a lie.
    pub(super) fn look_at_head(&mut self) -> Result<()> {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        let published = self.published();
        // In unsigned arithmetic both lies come out as a distance larger than what is unread.
        if head.wrapping_sub(self.head) > published - self.head || !head.is_multiple_of(8) {
            return Err(corrupt(format!(
                "its head went from {} to {head}, and {published} was published",
                self.head
            )));
        }
        self.head = head;
        Ok(())
    }

    /// Finds room for a record, pads the ring's end if it must, and returns the offset of the payload in the region.
    /// `None`: there is no room now, and nothing was changed.
    #[inline]
    pub(crate) fn claim(&mut self, payload: u64) -> Result<Option<usize>> {
        match self.claim_known(payload) {
            Some(at) => Ok(Some(at)),
            None => self.claim_anew(payload),
        }
    }

    /// As [`Producer::claim`], where what is known suffices.
    #[expect(
        clippy::inline_always,
        reason = "its answer then stays in a register: that of `claim` lies on the stack, and each store there waits behind those to the ring"
    )]
    #[inline(always)]
    pub(crate) fn claim_known(&mut self, payload: u64) -> Option<usize> {
        debug_assert!(
            payload <= self.largest_record(),
            "a record is at most half the ring"
        );
        // All questions about the payload's length are asked here: a writer of short ones waits for each of them.
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

    /// As [`Producer::claim`], where what is known does not suffice.
    #[cold]
    #[inline(never)]
    fn claim_anew(&mut self, payload: u64) -> Result<Option<usize>> {
        self.sum.tell(&self.tally);
        let (padding, record) = self.needs(payload);
        let needed = padding + record;
        if needed > self.room() && !self.wait_for_head(needed)? {
            return Ok(None);
        }
        if padding > 0 {
            self.own
                .store(self.place(), header(padding - HEADER, PADDING), Ordering::Relaxed);
            self.is_unpublished();
            self.tail += padding;
        }
        let lap = self.tail - (self.tail & (self.capacity - 1));
        self.until = (lap + self.capacity + layout::OVERHANG as u64)
            .min(self.head + self.capacity)
            .min(self.tail + STRETCH);
        let to_payload = to_payload(self.tail, payload >= LONG);
        Ok(Some(self.place() + as_offset(to_payload)))
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

    /// Bytes that may be written, as far as is known.
    #[inline]
    fn room(&self) -> u64 {
        self.capacity - (self.tail - self.head)
    }

    #[cold]
    fn wait_for_head(&mut self, needed: u64) -> Result<bool> {
        if self.starved {
            pause(self.capacity);
        }
        self.look_at_head()?;
        self.starved = needed > self.room();
        Ok(!self.starved)
    }

    /// Writes a record without publishing it.
    #[inline]
    pub(crate) fn push(&mut self, payload: &[u8]) -> Result<bool> {
        let length = payload.len() as u64;
        let Some(at) = self.claim(length)? else {
            return Ok(false);
        };
        self.own.copy_in(at, payload);
        self.finish(at, payload.len(), payload.len());
        Ok(true)
    }

    /// As [`Producer::push`], published at once.
    #[inline]
    pub(crate) fn push_now(&mut self, payload: &[u8]) -> Result<bool> {
        let length = payload.len() as u64;
        let Some(at) = self.claim(length)? else {
            return Ok(false);
        };
        self.own.copy_in(at, payload);
        self.finish_now(at, payload.len(), payload.len());
        Ok(true)
    }

    #[inline]
    fn count(&mut self, length: u64) {
        self.sum.add(length);
    }

    /// Ends the record whose payload was claimed at `at`, for so many bytes, and has got `length` of them.
    #[inline]
    fn advance(&mut self, at: usize, claimed: u64, length: u64, flags: u32) {
        if claimed < LONG {
            let header = header(length, flags);
            self.own.store(at - as_offset(HEADER), header, Ordering::Relaxed);
            self.tail += HEADER + padded(length);
        } else {
            self.advance_long(length, flags);
        }
    }

    #[inline(never)]
    fn advance_long(&mut self, length: u64, flags: u32) {
        let header = header(length, flags | ALIGNED);
        self.own.store(self.place(), header, Ordering::Relaxed);
        self.tail += to_payload(self.tail, true) + padded(length);
    }

    /// Writes as many whole records of `packed` (records as short ones lie in the ring, one after the other) as there is
    /// room for. Returns how many bytes of it were taken. A record that is cut, not a whole message, or longer than the
    /// ring takes ends the run, and is refused when it is the first.
    pub(crate) fn push_packed(&mut self, packed: &[u8], longest: u64) -> Result<usize> {
        let mut taken = 0;
        while taken < packed.len() {
            // One run: short records, which lie one after the other in the ring as well.
            let place = self.tail & (self.capacity - 1);
            let mut room = self.room();
            let end = self.capacity - place;
            let (mut run, mut count, mut payload) = (0_u64, 0_u64, 0_u64);
            let mut blocked = None;
            while taken + as_offset(run) < packed.len() {
                let at = taken + as_offset(run);
                let length = match packed_length(packed, at, longest.min(self.largest_record())) {
                    Ok(length) => length,
                    Err(error) if at == 0 => return Err(error),
                    Err(_) => break,
                };
                let record = packed_size(length);
                if run + record > end || length >= LONG {
                    blocked = Some(length);
                    break;
                }
                if run + record > room {
                    self.wait_for_head(run + record)?;
                    room = self.room();
                    if run + record > room {
                        break;
                    }
                }
                run += record;
                count += 1;
                payload += length;
            }
            if run > 0 {
                self.tally.add(count, payload);
                self.own.copy_in(
                    layout::DATA + as_offset(place),
                    &packed[taken..taken + as_offset(run)],
                );
                self.is_unpublished();
                self.tail += run;
                taken += as_offset(run);
            }
            // A record at the ring's end, which goes behind padding, or into the overhang; or a long one.
            let Some(length) = blocked else { break };
            let start = taken + as_offset(HEADER);
            if !self.push(&packed[start..start + as_offset(length)])? {
                break;
            }
            taken += as_offset(packed_size(length));
        }
        Ok(taken)
    }

    /// Writes as much of a message as there is room for, in fragments if it must, and publishes it. `written` is what
    /// the call before returned, 0 at first.
    pub(crate) fn push_part(&mut self, message: &[u8], mut written: usize) -> Result<Progress> {
        if message.len() as u64 <= self.largest_record() {
            let pushed = self.push(message)?;
            self.publish();
            return Ok(if pushed {
                Progress::Whole
            } else {
                Progress::Part(0)
            });
        }
        // An eighth of the ring: the consumer reads one fragment while the next is written.
        let largest = as_offset(self.capacity / 8);
        while written < message.len() {
            let first = written == 0;
            // The first fragment begins with the size of the whole, so that the reader knows what it will need.
            let prefix = if first { 8 } else { 0 };
            let count = (message.len() - written).min(largest - prefix);
            let Some(at) = self.claim((prefix + count) as u64)? else {
                return Ok(Progress::Part(written));
            };
            if first {
                self.own.store(at, message.len() as u64, Ordering::Relaxed);
            }
            self.own.copy_in(at + prefix, &message[written..written + count]);
            written += count;
            let last = written == message.len();
            let length = (prefix + count) as u64;
            self.is_unpublished();
            self.advance(
                at,
                length,
                length,
                (u32::from(first) * FIRST) | (u32::from(last) * LAST),
            );
            self.publish();
        }
        self.tally.add(1, message.len() as u64);
        Ok(Progress::Whole)
    }

    /// What is written from here on is not published yet.
    #[inline]
    fn is_unpublished(&mut self) {
        if self.unpublished == NOTHING {
            self.unpublished = self.tail;
        }
    }

    /// Makes everything written so far visible to the consumer. Returns whether there was anything.
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

    /// Whether a record with this payload would find room now.
    pub(crate) fn has_room(&mut self, payload: u64) -> Result<bool> {
        let (padding, record) = self.needs(payload.min(self.largest_record()));
        let needed = padding + record;
        if needed <= self.room() {
            return Ok(true);
        }
        self.look_at_head()?;
        Ok(needed <= self.room())
    }

    /// Bytes of packed records that surely find room now, all of them, be it in one go or in several: of messages of at most
    /// `longest` bytes, whatever their sizes, and wherever the ring ends.
    pub(crate) fn packed_room(&mut self, longest: u64) -> Result<u64> {
        let longest = longest.min(self.largest_record());
        self.look_at_head()?;
        // Less than the ring goes in, so at most one record meets the ring's end, and leaves less room there than it takes.
        let room = self.room().saturating_sub(HEADER + LINE as u64 + padded(longest));
        if longest < LONG {
            return Ok(room);
        }
        // A long one takes up to a line more than it does among packed ones.
        Ok(room / (packed_size(LONG) + LINE as u64) * packed_size(LONG))
    }

    /// Ends a record that was claimed at `at` for so many bytes, with no more than those, and does not publish it.
    #[inline]
    pub(crate) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.is_unpublished();
        self.advance(at, claimed as u64, length as u64, WHOLE);
        self.count(length as u64);
    }

    /// As [`Producer::finish`], published at once, with what was not before.
    #[inline]
    pub(crate) fn finish_now(&mut self, at: usize, claimed: usize, length: usize) {
        self.advance(at, claimed as u64, length as u64, WHOLE);
        self.count(length as u64);
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
