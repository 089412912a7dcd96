//! The ring of a pair: one writer and one reader. A message that does not fit one record comes in fragments.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::Result,
    region::copy::{LINE, Readable, Writable},
    region::layout::{self, as_offset},
    ring::message::{Progress, too_small},
    ring::read::{Limit, Packed, Reader, STREAM, WantedLengths, pause},
    ring::record::{FIRST, LAST, Record, Tag, WHOLE, corrupt, header, largest_record, packed_size, split},
    ring::write::{Room, Writer, Written},
};

/// The kind of ring that one process writes and one reads.
#[derive(Debug)]
pub struct Spsc;

/// The writing end of a pair's ring.
pub(crate) type SpscWriter<O, P> = Writer<O, PeerHead<P>>;

/// The room in a pair's ring, which the peer's head limits.
pub(crate) struct PeerHead<P> {
    pub(super) peer: P,
    /// The head when it was last read.
    pub(super) head: u64,
    /// The last check found no room.
    starved: bool,
    /// Messages since the tally was last updated.
    sum: Sum,
    /// Counts for no other ring.
    pub(crate) tally: Arc<Tally>,
}

impl<P> Drop for PeerHead<P> {
    fn drop(&mut self) {
        self.sum.flush(&self.tally);
    }
}

impl<P: Readable> PeerHead<P> {
    /// Reads the peer's head. One that goes backwards, or past what was published, is a protocol violation.
    pub(super) fn read<O>(&mut self, ring: &Written<O>) -> Result<()> {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        let published = ring.published();
        // In unsigned arithmetic both violations are a distance larger than what is unread.
        if head.wrapping_sub(self.head) > published - self.head || !head.is_multiple_of(8) {
            return Err(corrupt(format!(
                "its head went from {} to {head}, and {published} was published",
                self.head
            )));
        }
        self.head = head;
        Ok(())
    }

    fn end<O>(&self, ring: &Written<O>) -> u64 {
        self.head + ring.capacity
    }
}

impl<O: Writable, P: Readable> Room<O> for PeerHead<P> {
    const CALLS: bool = true;

    #[inline]
    fn largest_record(capacity: u64) -> u64 {
        largest_record(capacity)
    }

    fn extend(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        self.sum.flush(&self.tally);
        if end <= self.end(ring) {
            return Ok(true);
        }
        if self.starved {
            pause(ring.capacity);
        }
        self.read(ring)?;
        self.starved = end > self.end(ring);
        Ok(!self.starved)
    }

    fn begin_stretch(&mut self, ring: &Written<O>) -> u64 {
        self.end(ring).min(ring.tail + STRETCH)
    }

    fn has(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        if end > self.end(ring) {
            self.read(ring)?;
        }
        Ok(end <= self.end(ring))
    }

    fn limit(&mut self, ring: &Written<O>) -> Result<u64> {
        self.read(ring)?;
        Ok(self.end(ring))
    }

    fn used(&mut self, ring: &Written<O>) -> u64 {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        // A violation is found by the next call that needs room.
        ring.tail.wrapping_sub(head).min(ring.tail - self.head)
    }

    #[inline]
    fn count(&mut self, length: u64) {
        self.sum.add(length);
    }

    fn count_all(&mut self, messages: u64, bytes: u64) {
        self.tally.add(messages, bytes);
    }
}

impl<O: Writable, P: Readable> SpscWriter<O, P> {
    pub(crate) fn new(own: O, peer: P, capacity: u64) -> Self {
        let room = PeerHead {
            peer,
            head: 0,
            starved: false,
            sum: Sum::default(),
            tally: Arc::default(),
        };
        Self::with_room(own, room, capacity)
    }

    /// Returns the number of messages that were written, and the bytes of their payloads. A message in fragments counts once it is whole.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        let PeerHead { sum, tally, .. } = &mut self.room;
        sum.flush(tally);
        tally.get()
    }

    /// Returns the positions up to which the reader has read and this side has written.
    pub(crate) fn positions(&mut self) -> Result<(u64, u64)> {
        self.room.read(&self.ring)?;
        Ok((self.room.head, self.ring.tail))
    }

    /// Writes as much of a message as there is room for, in fragments if necessary, and publishes it. `written` is what
    /// the last call returned, 0 at first.
    pub(crate) fn push_part(&mut self, message: &[u8], tag: Tag, mut written: usize) -> Result<Progress> {
        if message.len() as u64 <= self.largest_record() {
            let pushed = self.push(message, tag)?;
            self.publish();
            return Ok(if pushed {
                Progress::Whole
            } else {
                Progress::Part(0)
            });
        }
        // An eighth of the ring: the reader reads one fragment while the next is written.
        let largest = as_offset(self.ring.capacity / 8);
        while written < message.len() {
            let first = written == 0;
            // The first fragment starts with the size of the whole message, so that the reader knows how much memory it needs.
            let prefix = if first { 8 } else { 0 };
            let count = (message.len() - written).min(largest - prefix);
            let length = (prefix + count) as u64;
            let Some(at) = self.claim(length)? else {
                return Ok(Progress::Part(written));
            };
            if first {
                self.ring.own.store(at, message.len() as u64, Ordering::Relaxed);
            }
            self.ring
                .own
                .copy_in(at + prefix, &message[written..written + count]);
            written += count;
            let last = written == message.len();
            let flags = (u32::from(first) * (FIRST | tag.bits())) | (u32::from(last) * LAST);
            self.mark_unpublished();
            self.advance(at, length, length, flags);
            self.publish();
        }
        self.room.tally.add(1, message.len() as u64);
        Ok(Progress::Whole)
    }
}

/// The reading end of a pair's ring.
pub(crate) type SpscReader<O, P> = Reader<O, P, PeerTail>;

/// The limit in a pair's ring: the peer's tail.
pub(crate) struct PeerTail {
    /// The longest message that this side takes, in one record or in fragments.
    longest: u64,
    /// The most attachments that one message may have.
    pub(crate) attachments: usize,
    /// The message whose fragments are being read: its size, and how much of it has been read.
    gathering: Option<(usize, usize)>,
    /// The tag of the message that [`Reader::next_size`] has found or [`SpscReader::gather`] has begun last.
    pub(crate) tag: Tag,
    /// Whether the caller handles frames of calls.
    pub(crate) accepts_calls: bool,
    /// The size that was returned for the message at this position, and for which the caller has made room.
    reported_size: Option<(u64, usize)>,
    /// Messages that were read since the tally was updated, and their bytes.
    messages: u64,
    bytes: u64,
    /// Messages that the last call has read and the caller has not counted, and their bytes: see [`SpscReader::count`].
    unchecked: (u64, u64),
    /// Counts for no other ring.
    pub(crate) tally: Arc<Tally>,
    /// The counts before the retained messages: see [`SpscReader::pull_retained`].
    counts_before: (u64, u64),
}

impl PeerTail {
    /// Adds to the tally what was read since its last update.
    fn update_tally(&mut self) {
        self.tally
            .add(mem::take(&mut self.messages), mem::take(&mut self.bytes));
    }
}

impl Drop for PeerTail {
    fn drop(&mut self) {
        self.update_tally();
    }
}

/// Memory in which the fragments of a message are put together.
pub(crate) trait FragmentBuffer {
    /// Returns room for the bytes from one offset to another of a message of this size. The fragments come in order.
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]>;
}

/// A buffer that must hold all of the message.
struct Whole<'a>(&'a mut [u8]);

impl FragmentBuffer for Whole<'_> {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        let room = self.0.len();
        let place = self.0.get_mut(from..to).filter(|_| room >= size);
        place.ok_or_else(|| too_small(room, size))
    }
}

impl<O: Writable, P: Readable> Limit<O, P> for PeerTail {
    const RUN: usize = 4096;
    const TAGS: u32 = Tag::BITS;

    /// A tail that goes backwards, or more than a ring ahead, is a protocol violation.
    fn check_tail(reader: &SpscReader<O, P>, tail: u64) -> Result<()> {
        let room = reader.capacity - (reader.tail - reader.head);
        // In unsigned arithmetic both violations are a distance larger than the room.
        let can_be_tail = tail.wrapping_sub(reader.tail) <= room && tail.is_multiple_of(8);
        if !can_be_tail {
            return Err(corrupt(format!(
                "its tail went from {} to {tail}, and {} was read",
                reader.tail, reader.head
            )));
        }
        Ok(())
    }

    #[inline]
    fn is_plain(&self) -> bool {
        self.gathering.is_none()
    }

    fn update_counts(&mut self) {
        self.update_tally();
    }

    fn refuses(&self, tag: Tag) -> bool {
        tag.is_call() && !self.accepts_calls
    }

    fn may_follow(&self, record: &Record, longest: u64) -> bool {
        let (length, tag) = (record.length, record.tag);
        match (self.gathering, record.flags) {
            (None, WHOLE) => length as u64 <= longest && tag.attachments() <= self.attachments,
            (None, FIRST) => length > 8 && tag.attachments() <= self.attachments,
            (Some((size, read)), 0) => length > 0 && length < size - read && tag == Tag::NONE,
            (Some((size, read)), LAST) => length == size - read && tag == Tag::NONE,
            _ => false,
        }
    }

    #[inline]
    fn on_record_found(reader: &mut SpscReader<O, P>, record: Record) {
        let at = reader.offset_of(reader.head);
        let fetched = at + as_offset(reader.fetched.saturating_sub(reader.head));
        let fetched = reader.fetch(at, record.size, fetched, record.end);
        reader.fetched = reader.head + (fetched - at) as u64;
    }

    fn partial_size(&self) -> Option<usize> {
        self.gathering.map(|(size, _)| size)
    }

    /// The size of a message in fragments is checked when its first one is read.
    fn size_of(reader: &mut SpscReader<O, P>, record: Record) -> Result<Option<usize>> {
        if let Some(size) = Limit::<O, P>::partial_size(&reader.limit) {
            return Ok(Some(size));
        }
        let size = if record.flags == WHOLE {
            record.length
        } else {
            let size = reader.peer.load(record.at, Ordering::Relaxed);
            as_offset(size.min(reader.limit.longest))
        };
        reader.limit.tag = record.tag;
        // The header is read again then, and must have the same size.
        reader.limit.reported_size = Some((reader.head, size));
        Ok(Some(size))
    }

    fn count_pulled(&mut self, messages: u64, bytes: u64) {
        self.unchecked.0 += messages;
        self.unchecked.1 += bytes;
    }
}

impl<O: Writable, P: Readable> SpscReader<O, P> {
    /// `longest`: of the messages that this side takes.
    pub(crate) fn new(own: O, peer: P, capacity: u64, longest: u64) -> Self {
        let limit = PeerTail {
            longest,
            attachments: 0,
            gathering: None,
            tag: Tag::NONE,
            accepts_calls: true,
            reported_size: None,
            messages: 0,
            bytes: 0,
            unchecked: (0, 0),
            tally: Arc::default(),
            counts_before: (0, 0),
        };
        let longest = longest.min(largest_record(capacity));
        Self::with_limit((own, layout::HEAD), peer, limit, capacity, longest, 0)
    }

    /// Returns the number of messages that were read, and the bytes of their payloads. One in fragments counts once it is whole.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        self.limit.update_tally();
        self.limit.tally.get()
    }

    /// Counts what the last call has read. To be called once that was found whole: the producer may have wiped its ring in the meantime.
    #[inline]
    pub(crate) fn count(&mut self) {
        let (messages, bytes) = mem::take(&mut self.limit.unchecked);
        self.limit.tally.add(messages, bytes);
    }

    /// Whether nothing has arrived since the ring was found empty: the cheapest check, for a reader that polls. Always `false` while
    /// streaming, because the reader must keep its distance. Counts as a load of the tail if nothing has arrived; otherwise
    /// [`Reader::next_record`] loads it again, and validates it.
    #[inline]
    pub(crate) fn is_still_empty(&mut self) -> bool {
        debug_assert!(self.is_drained(), "a known record is not searched");
        if self.is_close && self.streamed() >= STREAM {
            return false;
        }
        // A short message spans two lines: prefetch the second before the first has arrived.
        let at = self.offset_of(self.head);
        self.peer.will_read(at);
        self.peer.will_read(at + LINE);
        if self.peer.load(layout::TAIL, Ordering::Relaxed) == self.tail {
            self.tail_loads += 1;
            return true;
        }
        false
    }

    /// Moves past a record that [`Reader::next_record`] returned, and counts it as a delivered message.
    #[inline]
    pub(crate) fn deliver(&mut self, record: Record) {
        self.skip(record.size);
        // Two words: to make one of them takes longer than to add to another one.
        self.limit.messages += 1;
        self.limit.bytes += record.length as u64;
    }

    /// Copies as much of the next message as is there to its place in `into`, and publishes the head. The same
    /// buffer must be passed until the message is whole; it must be as long as [`Reader::next_size`] said. Returns the length of the
    /// message once it is whole.
    pub(crate) fn gather(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.gather_in(&mut Whole(into))
    }

    /// As [`SpscReader::gather`]. If there is no room, that is the error of this call alone: what has not been copied is still in
    /// the ring, and the next call goes on. [`SpscReader::count`] counts the message once it is whole.
    pub(crate) fn gather_in(&mut self, into: &mut impl FragmentBuffer) -> Result<Option<usize>> {
        let reported = self.limit.reported_size.filter(|(at, _)| *at == self.head);
        loop {
            let Some(record) = self.next_record()? else {
                return Ok(None);
            };
            let (mut from, mut count) = (record.at, record.length);
            let (size, read) = match self.limit.gathering {
                Some(under_way) => under_way,
                None if record.flags == WHOLE => (record.length, 0),
                None => {
                    let size = self.peer.load(record.at, Ordering::Relaxed);
                    (from, count) = (from + 8, count - 8);
                    if size > self.limit.longest || size <= count as u64 {
                        return Err(corrupt(format!(
                            "a message of {size} bytes begins with {count}, and {} are the limit",
                            self.limit.longest
                        )));
                    }
                    (as_offset(size), 0)
                }
            };
            if !self.is_gathering() {
                self.limit.tag = record.tag;
            }
            if !self.is_gathering() && reported.is_some_and(|reported| reported != (self.head, size)) {
                return Err(corrupt(format!(
                    "a message of {size} bytes, which had another size before"
                )));
            }
            let place = into.room(size, read, read + count)?;
            self.peer.copy_out_fresh(from..from + count, place, record.end);
            self.skip(record.size);
            self.publish();
            if record.flags & LAST != 0 {
                self.limit.unchecked = (1, size as u64);
                self.limit.gathering = None;
                return Ok(Some(size));
            }
            self.limit.gathering = Some((size, read + count));
            // A whole message cannot follow.
            self.until = 0;
        }
    }

    /// As [`Reader::pull_packed`], of call frames of the lengths that are wanted.
    pub(crate) fn pull_calls(&mut self, into: &mut [u8], wanted: &WantedLengths) -> Result<Packed> {
        let pulled = self.pull(into, wanted)?;
        self.publish();
        Ok(pulled)
    }

    /// As [`Reader::pull_packed`], of messages of the wanted lengths. They are retained in the ring until the next [`Reader::publish`]:
    /// until then [`SpscReader::pull_again`] returns them again. At most a quarter of the ring is retained, or one message.
    pub(crate) fn pull_retained(&mut self, into: &mut [u8], wanted: &WantedLengths) -> Result<Packed> {
        self.publish();
        self.limit.counts_before = self.counted();
        let Some(first) = self.next_record()? else {
            return Ok(Packed::Nothing);
        };
        let first = packed_size(first.length as u64);
        let max = as_offset(first.max(self.capacity / 4)).min(into.len());
        self.pull(&mut into[..max], wanted)
    }

    /// Copies once more what [`SpscReader::pull_retained`] has copied, from `passed` bytes on, as much as fits. Each header is read and
    /// checked anew, since the producer may have written there.
    pub(crate) fn pull_again(&mut self, into: &mut [u8], passed: usize) -> Result<Packed> {
        self.head = self.published;
        // What is known of a later lap holds for no earlier one.
        self.until = 0;
        self.counted();
        self.limit.tally.set(self.limit.counts_before);
        let mut left = passed;
        while left > 0 {
            let record = self.next_record()?;
            let size = |record: &Record| as_offset(packed_size(record.length as u64));
            let Some(record) = record.filter(|record| record.flags == WHOLE && size(record) <= left) else {
                return Err(corrupt("a record changed after it was read".into()));
            };
            left -= size(&record);
            self.deliver(record);
        }
        self.pull(into, &WantedLengths::ALL)
    }

    /// Whether a message is under way whose end has not been read.
    #[inline]
    pub(crate) fn is_gathering(&self) -> bool {
        self.limit.gathering.is_some()
    }

    /// Bytes of the message under way that were read.
    pub(crate) fn gathered_so_far(&self) -> usize {
        self.limit.gathering.map_or(0, |(_, read)| read)
    }

    /// Ends reading: replaces the ring with an empty one. The counters stay.
    pub(crate) fn detach(&mut self, own: O, peer: P) {
        self.start_over(own, peer);
        self.limit.update_tally();
        (self.limit.gathering, self.limit.reported_size) = (None, None);
    }
}

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

/// The most bytes of records between two calls of [`Sum::flush`]: both halves of a [`Sum`] can hold the sums
/// of this many bytes.
pub(super) const STRETCH: u64 = 1 << 30;

/// The sum of the headers of whole messages: their lengths in the low half, and three per message in the high
/// half. So one addition of a word that is already in a register counts both. Its owner must publish it at
/// least once per [`STRETCH`] bytes of the ring.
#[derive(Debug, Default)]
pub(super) struct Sum(pub(super) u64);

impl Sum {
    /// Adds a message of fewer than [`STRETCH`] bytes.
    #[inline]
    pub(super) fn add(&mut self, length: u64) {
        self.0 = self.0.wrapping_add(header(length, WHOLE));
    }

    /// Publishes the sum and resets it.
    #[inline]
    pub(super) fn flush(&mut self, tally: &Tally) {
        let (bytes, three) = split(std::mem::take(&mut self.0));
        if three > 0 {
            tally.add(u64::from(three / WHOLE), bytes);
        }
    }
}
