//! One direction: records of variable length in a ring of bytes, written by one producer in its own region and read
//! by a consumer that believes nothing.
//!
//! A record is a header of eight bytes (length in the low half, flags in the high half, little-endian) and its
//! payload, padded to a multiple of eight; a long payload begins at the next cache line. It never wraps: where it would, a
//! padding record fills the ring's end.
//! Positions are 64 bits wide and only grow; a position's place is its remainder by the capacity.
//!
//! Everything that decides anything is private: the producer keeps its tail and the last head that it saw, the
//! consumer its head and the last tail that it saw. A shared word is read once into a local and checked there.

pub(crate) mod message;

use std::{hint, sync::atomic::Ordering};

use crate::{
    error::{Error, Result},
    memory::access::{Readable, Writable},
    memory::copy::{AHEAD, LINE},
    memory::layout::{self, as_offset},
};

/// Bytes of a record's header.
pub(crate) const HEADER: u64 = 8;

/// The record begins a message.
pub(crate) const FIRST: u32 = 1;
/// The record ends a message.
pub(crate) const LAST: u32 = 2;
/// The record is no message: it fills the ring's end.
pub(crate) const PADDING: u32 = 4;
/// The payload begins at the first cache line behind the header.
pub(crate) const ALIGNED: u32 = 8;
/// A record that is a whole message.
pub(crate) const WHOLE: u32 = FIRST | LAST;

/// Payloads of at least this many bytes are written [`ALIGNED`]: whoever reads or writes them by wide loads and stores would
/// touch two lines with every second one.
const LONG: u64 = 2048;

/// The consumer's distance: where it has found less than this, a consumer in full stream lets a moment pass before it looks
/// again, so that it reads lines that the producer is done with. On its heels, it would take each line from the producer
/// while that is being written, and both would crawl.
const DISTANCE: u64 = 32 * 1024;
/// How long that moment is, in spin-loop hints.
const MOMENT: u64 = 128;
/// A consumer is in full stream once it has read this much, of which every look that finds the ring empty takes back
/// half: a conversation of questions and answers never comes near it, and must not pay for the distance.
const STREAM: u64 = 4096;
/// What is remembered of a stream: it is forgotten after a few empty looks.
const STREAM_MEMORY: u64 = 64 * 1024;
/// While many records are read in one go, the head is published in strides: each publication takes the line from a
/// producer that waits for room.
const STRIDE: u64 = 64 * 1024;

/// Bytes of packed records that are copied before their headers are looked at: where a long one follows, no more than this
/// was copied for nothing.
const RUN: usize = 4096;

/// Bytes of a record for whose lines the ring asks. Longer ones are read in blocks, and each of those asks for what is ahead.
const SHORT: u64 = 512;

/// The writer takes lines that the reader has had back before it comes to them. Not as far ahead as [`AHEAD`]: with a
/// full ring, the reader is not far from there.
const BEFOREHAND: u64 = 1024;

/// Bytes of a payload all of whose lines are taken back like that. Of longer ones the first alone: all of them cost more than they
/// brought where the two cores are near.
const SHORT_WRITE: u64 = 184;

/// A multiple of eight. Of a length of 32 bits, or of half a ring: without a look whether it is one already, which the way
/// from one record to the next would wait for.
#[inline]
const fn padded(length: u64) -> u64 {
    (length + 7) & !7
}

/// Bytes from the beginning of a record to its payload. `at` is its position, or its offset in the region: they differ by
/// whole lines.
#[inline]
fn to_payload(at: u64, aligned: bool) -> u64 {
    if aligned {
        // A branch, and no conditional move: nobody is to wait for this who has a short record.
        rare();
        HEADER + (at + HEADER).wrapping_neg() % LINE as u64
    } else {
        HEADER
    }
}

#[cold]
#[inline(never)]
fn rare() {}

/// Bytes that a record at this position takes, as this side writes it.
#[inline]
pub(crate) fn record_size(at: u64, payload: u64) -> u64 {
    to_payload(at, payload >= LONG) + padded(payload)
}

/// [`DISTANCE`], and in a small ring less: the other side must not be kept waiting.
fn distance(capacity: u64) -> u64 {
    DISTANCE.min(capacity / 4)
}

/// Lets a moment pass, in which the other side gets about as far.
fn pause(capacity: u64) {
    for _ in 0..MOMENT * distance(capacity) / DISTANCE {
        hint::spin_loop();
    }
}

/// Bytes that a message takes among packed ones.
#[inline]
pub(crate) const fn packed_size(length: u64) -> u64 {
    HEADER + padded(length)
}

#[inline]
const fn header(length: u64, flags: u32) -> u64 {
    length | ((flags as u64) << 32)
}

#[inline]
const fn split(header: u64) -> (u64, u32) {
    (header & 0xffff_ffff, (header >> 32) as u32)
}

#[cold]
#[inline(never)]
fn corrupt(what: String) -> Error {
    Error::RingCorrupt(what)
}

/// How far a message has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of it is through.
    Whole,
    /// This many bytes of it are.
    Part(usize),
}

/// A record found in the ring, checked against everything that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Offset of the payload in the region.
    pub(crate) at: usize,
    /// Bytes of payload.
    pub(crate) length: usize,
    /// But for [`ALIGNED`].
    pub(crate) flags: u32,
    aligned: bool,
    /// Bytes from its header to the next.
    size: u64,
    /// Offset in the region up to which records stand in a row.
    pub(crate) end: usize,
}

impl Record {
    /// The record at this offset in the region.
    #[inline]
    fn new(at: usize, length: u64, flags: u32, end: usize) -> Self {
        let aligned = flags & ALIGNED != 0;
        let to_payload = to_payload(at as u64, aligned);
        Self {
            at: at + as_offset(to_payload),
            length: as_offset(length),
            flags: flags & !ALIGNED,
            aligned,
            size: to_payload + padded(length),
            end,
        }
    }

    /// As [`Record::new`], if it is a whole message.
    #[inline]
    fn whole(at: usize, length: u64, flags: u32, end: usize) -> Option<Self> {
        const WHOLE_ALIGNED: u32 = WHOLE | ALIGNED;
        // One comparison of all flags comes first: to ask for one of them before took a reader of short ones 12 %.
        match flags {
            WHOLE => Some(Self::new(at, length, WHOLE, end)),
            WHOLE_ALIGNED => Some(Self::new(at, length, WHOLE_ALIGNED, end)),
            _ => None,
        }
    }
}

/// The writing end: in the region that this process owns.
///
/// Nothing here assumes that there is one consumer, but for [`Producer::look_at_head`], which asks the one there is;
/// several would each have a head, and the slowest would count.
#[derive(Debug)]
pub(crate) struct Producer<O, P> {
    own: O,
    peer: P,
    capacity: u64,
    /// Where the next record goes. Up to here the ring is written.
    tail: u64,
    /// The tail that the consumer can see.
    published: u64,
    /// The consumer's head when it was last looked at.
    head: u64,
    /// A record that ends here or before has room where it stands. Never past the room that is known, nor past this
    /// lap's end and overhang.
    until: u64,
    /// The last look found no room: the next one waits a moment, to find more than one record's.
    starved: bool,
}

impl<O: Writable, P: Readable> Producer<O, P> {
    pub(crate) fn new(own: O, peer: P, capacity: u64) -> Self {
        Self {
            own,
            peer,
            capacity,
            tail: 0,
            published: 0,
            head: 0,
            until: 0,
            starved: false,
        }
    }

    /// The largest payload that is ever one record: half the ring, so that it fits an empty one wherever it starts.
    #[inline]
    pub(crate) const fn largest_record(&self) -> u64 {
        self.capacity / 2
    }

    /// Looks how far the consumer has read. A head that goes backwards, or past what was published, is a lie.
    fn look_at_head(&mut self) -> Result<()> {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        // In unsigned arithmetic both lies come out as a distance larger than what is unread.
        if head.wrapping_sub(self.head) > self.published - self.head || !head.is_multiple_of(8) {
            return Err(corrupt(format!(
                "its head went from {} to {head}, and {} was published",
                self.head, self.published
            )));
        }
        self.head = head;
        Ok(())
    }

    /// Finds room for a record, pads the ring's end if it must, and returns the offset of the payload in the region.
    /// `None`: there is no room now, and nothing was changed.
    #[inline]
    fn claim(&mut self, payload: u64) -> Result<Option<usize>> {
        debug_assert!(
            payload <= self.largest_record(),
            "a record is at most half the ring"
        );
        // All of what is asked about a payload's length is asked here: whoever writes short ones waits for each question.
        let (to_payload, ahead) = if payload <= SHORT_WRITE {
            (HEADER, HEADER + padded(payload))
        } else {
            (to_payload(self.tail, payload >= LONG), 1)
        };
        if self.tail + to_payload + padded(payload) <= self.until {
            let at = self.place();
            if self.tail + BEFOREHAND < self.until {
                // Each line of a short one: the writer would wait for those that are passed over.
                for line in (BEFOREHAND..BEFOREHAND + ahead).step_by(LINE) {
                    self.own.will_write(at + as_offset(line));
                }
            }
            return Ok(Some(at + as_offset(to_payload)));
        }
        self.claim_anew(payload)
    }

    /// Offset in the region of what comes next.
    #[inline]
    fn place(&self) -> usize {
        layout::DATA + as_offset(self.tail & (self.capacity - 1))
    }

    /// As [`Producer::claim`], where what is known does not suffice.
    #[inline(never)]
    fn claim_anew(&mut self, payload: u64) -> Result<Option<usize>> {
        let (padding, record) = self.needs(payload);
        let needed = padding + record;
        if needed > self.room() && !self.wait_for_head(needed)? {
            return Ok(None);
        }
        if padding > 0 {
            self.own
                .store(self.place(), header(padding - HEADER, PADDING), Ordering::Relaxed);
            self.tail += padding;
        }
        let lap = self.tail - (self.tail & (self.capacity - 1));
        self.until = (lap + self.capacity + layout::OVERHANG as u64).min(self.head + self.capacity);
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
        self.advance(at, length, length, WHOLE);
        Ok(true)
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
            let mut run = 0_u64;
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
            }
            if run > 0 {
                self.own.copy_in(
                    layout::DATA + as_offset(place),
                    &packed[taken..taken + as_offset(run)],
                );
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
            self.advance(
                at,
                length,
                length,
                (u32::from(first) * FIRST) | (u32::from(last) * LAST),
            );
            self.publish();
        }
        Ok(Progress::Whole)
    }

    /// Makes everything written so far visible to the consumer. Returns whether there was anything.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        self.own.store(layout::TAIL, self.tail, Ordering::Release);
        true
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

    /// A claimed record: the offset of its payload in the region, to be finished by [`Producer::finish`].
    #[inline]
    pub(crate) fn claim_record(&mut self, payload: u64) -> Result<Option<usize>> {
        self.claim(payload)
    }

    /// Ends a record that was claimed at `at` for so many bytes, with no more than those.
    #[inline]
    pub(crate) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.advance(at, claimed as u64, length as u64, WHOLE);
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

/// Length of the packed record at `at`, checked: whole, a message by itself, and not too long.
fn packed_length(packed: &[u8], at: usize, longest: u64) -> Result<u64> {
    let refused = |what: &str| {
        Err(Error::InvalidArgument(format!(
            "packed records: {what} at byte {at}"
        )))
    };
    let Some(bytes) = packed.get(at..at + 8) else {
        return refused("a header is cut");
    };
    let (length, flags) = split(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    if flags != WHOLE {
        return refused("a record is not a whole message");
    }
    if length > longest {
        return Err(Error::MessageTooLarge {
            size: as_offset(length),
            limit: longest,
            reason: "half the ring, and what the peer takes",
        });
    }
    if ((packed.len() - at) as u64) < packed_size(length) {
        return refused("a record is cut");
    }
    Ok(length)
}

/// What [`Consumer::gather`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// The message is whole; this is its length.
    Whole(usize),
    /// More of it is still to come; this much is there.
    Part,
    /// Nothing is there.
    Nothing,
}

/// Where the pieces of a message are put together.
pub(crate) trait Place {
    /// Room for the bytes from one offset to another of a message of this size. The pieces come in order.
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]>;
}

/// A buffer that must hold all of the message.
struct Whole<'a>(&'a mut [u8]);

impl Place for Whole<'_> {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        let room = self.0.len();
        self.0.get_mut(from..to).filter(|_| room >= size).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "a buffer of {room} bytes does not hold a message of {size}"
            ))
        })
    }
}

/// What [`Consumer::pull_packed`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// This many bytes of whole records.
    Bytes(usize),
    /// The next message does not fit the buffer, or comes in fragments: its size.
    Large(usize),
    /// Nothing is there.
    Nothing,
}

/// The reading end: of the region that the peer owns.
#[derive(Debug)]
pub(crate) struct Consumer<O, P> {
    own: O,
    peer: P,
    capacity: u64,
    /// The longest message that this side takes.
    longest: u64,
    /// How far everything has been read.
    head: u64,
    /// The head that the producer can see.
    published: u64,
    /// The producer's tail when it was last looked at.
    tail: u64,
    /// How often the tail was looked at.
    looks: u64,
    /// A record that ends here or before is there, and stands where it may: the tail, or this lap's end and overhang.
    until: u64,
    /// The last word of a producer that has gone, in place of its tail, which another process may still write.
    last: Option<u64>,
    /// Bytes read since the ring was last found empty.
    streamed: u64,
    /// The last look found less than [`distance`].
    is_close: bool,
    /// Up to here, lines have been asked for.
    fetched: u64,
    /// The message whose fragments are being read: its size, and how much of it has been read.
    gathering: Option<(usize, usize)>,
    /// The size that the reader was told of the message at this position, and has made room for.
    told: Option<(u64, usize)>,
}

impl<O: Writable, P: Readable> Consumer<O, P> {
    pub(crate) fn new(own: O, peer: P, capacity: u64, longest: u64) -> Self {
        Self {
            own,
            peer,
            capacity,
            longest,
            head: 0,
            published: 0,
            tail: 0,
            looks: 0,
            until: 0,
            last: None,
            streamed: 0,
            is_close: false,
            fetched: 0,
            gathering: None,
            told: None,
        }
    }

    /// Looks how far the producer has written. A tail that goes backwards, or more than a ring ahead, is a lie.
    fn look_at_tail(&mut self) -> Result<()> {
        let tail = match self.last {
            None => self.peer.load(layout::TAIL, Ordering::Acquire),
            Some(tail) => tail,
        };
        if !self.can_be_tail(tail) {
            return Err(corrupt(format!(
                "its tail went from {} to {tail}, and {} was read",
                self.tail, self.head
            )));
        }
        self.tail = tail;
        self.looks += 1;
        Ok(())
    }

    /// How often the producer's tail was looked at.
    #[inline]
    pub(crate) fn looks(&self) -> u64 {
        self.looks
    }

    /// Whether everything was read that is known to be there, without a look at the producer's tail.
    #[inline]
    pub(crate) fn is_through(&self) -> bool {
        self.head == self.tail
    }

    #[inline]
    fn can_be_tail(&self, tail: u64) -> bool {
        tail.wrapping_sub(self.tail) <= self.capacity - (self.tail - self.head) && tail.is_multiple_of(8)
    }

    /// Whether there is something to read; looks at the producer's tail if nothing is known to be there.
    #[inline]
    pub(crate) fn available(&mut self) -> Result<bool> {
        if self.head != self.tail {
            return Ok(true);
        }
        self.look_again()
    }

    fn look_again(&mut self) -> Result<bool> {
        if self.is_close && self.streamed >= STREAM {
            pause(self.capacity);
        }
        self.look_at_tail()?;
        let there = self.tail - self.head;
        self.is_close = there < distance(self.capacity);
        if there == 0 {
            self.streamed = self.streamed.min(STREAM_MEMORY) / 2;
            self.publish();
            return Ok(false);
        }
        Ok(true)
    }

    /// Tells the producer how far everything has been read. Returns whether that was news.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.head {
            return false;
        }
        self.published = self.head;
        self.own.store(layout::HEAD, self.head, Ordering::Release);
        true
    }

    /// The next record, checked; padding is passed over. `None`: the ring is empty.
    #[inline]
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>> {
        if self.head < self.until && self.gathering.is_none() {
            let at = self.place();
            let (length, flags) = split(self.peer.load(at, Ordering::Relaxed));
            let lap = self.head - (self.head & (self.capacity - 1));
            let end = layout::DATA + as_offset(self.until - lap);
            if let Some(record) = Record::whole(at, length, flags, end)
                && self.head + record.size <= self.until
                && length <= self.whole()
            {
                self.fetched = self.fetch(self.head, record.size, self.fetched, lap);
                return Ok(Some(record));
            }
        }
        self.look_for_record()
    }

    /// Offset in the region of what comes next.
    #[inline]
    fn place(&self) -> usize {
        layout::DATA + as_offset(self.head & (self.capacity - 1))
    }

    /// Asks for lines that will soon be read, if they are written: those behind `fetched`, and not far from `head`,
    /// where a record of this size stands. Returns how far that went. Of long records, those who read them ask.
    #[inline]
    fn fetch(&self, head: u64, size: u64, mut fetched: u64, lap: u64) -> u64 {
        debug_assert!(fetched >= head, "nothing is asked for that was read");
        if size > SHORT {
            return head + size;
        }
        while fetched < head + AHEAD as u64 && fetched < self.until {
            // Up to `until`, a lap's places lie in a row.
            self.peer.will_read(layout::DATA + as_offset(fetched - lap));
            fetched += LINE as u64;
        }
        fetched
    }

    /// The longest message that comes in one record.
    #[inline]
    fn whole(&self) -> u64 {
        self.longest.min(self.capacity / 2)
    }

    /// As [`Consumer::next_record`], whatever comes. A header that it has read already is read again: only what is
    /// read here counts.
    #[inline(never)]
    fn look_for_record(&mut self) -> Result<Option<Record>> {
        loop {
            if !self.available()? {
                return Ok(None);
            }
            let place = self.head & (self.capacity - 1);
            let lap = self.head - place;
            self.until = (lap + self.capacity + layout::OVERHANG as u64).min(self.tail);
            let at = layout::DATA + as_offset(place);
            let (length, flags) = split(self.peer.load(at, Ordering::Relaxed));
            let rest = self.capacity - place;
            let end = layout::DATA + as_offset(self.until - lap);
            let record = Record::new(at, length, flags, end);
            let size = record.size;
            if self.head + size > self.until {
                return Err(corrupt(format!(
                    "a record of {length} bytes, where {} are published and {rest} are left",
                    self.tail - self.head
                )));
            }
            if flags != PADDING {
                return self.check_flags(record).map(Some);
            }
            // Padding goes before a record that begins the next lap. A lap of padding alone could go on for ever.
            if size != rest || place == 0 {
                return Err(corrupt(format!(
                    "padding of {length} bytes, {rest} before the end"
                )));
            }
            self.skip(size);
        }
    }

    /// Checks what the record says of itself against what came before it.
    fn check_flags(&self, record: Record) -> Result<Record> {
        if self.follows(record.length, record.flags) {
            Ok(record)
        } else {
            Err(self.unsound(record.length, record.flags))
        }
    }

    fn follows(&self, length: usize, flags: u32) -> bool {
        match (self.gathering, flags) {
            (None, WHOLE) => length as u64 <= self.whole(),
            (None, FIRST) => length > 8,
            (Some((size, read)), 0) => length > 0 && length < size - read,
            (Some((size, read)), LAST) => length == size - read,
            _ => false,
        }
    }

    #[cold]
    #[inline(never)]
    fn unsound(&self, length: usize, flags: u32) -> Error {
        corrupt(format!(
            "a record of {length} bytes with flags {flags:#x} does not follow (message under way: {:?}, longest message {}, ring {})",
            self.gathering, self.longest, self.capacity
        ))
    }

    #[inline]
    fn skip(&mut self, size: u64) {
        self.head += size;
        self.streamed += size;
        self.fetched = self.fetched.max(self.head);
    }

    /// Goes past a record that [`Consumer::next_record`] returned.
    #[inline]
    pub(crate) fn consume(&mut self, record: Record) {
        self.skip(record.size);
    }

    /// Visits the whole message that [`Consumer::next_record`] returned, and those that stand behind it in a row as far
    /// as the ring is known: at most `max` of them, and not much more than a stride, after which the head is published.
    /// Gets past each once it was visited, and returns how many there were.
    #[inline]
    pub(crate) fn visit_in_row(
        &mut self,
        first: Record,
        max: usize,
        mut visit: impl FnMut(&P, Record),
    ) -> usize {
        let (start, until, longest) = (self.head, self.until, self.whole());
        let stride = STRIDE.min(self.capacity / 4);
        let stop = until.min(self.published + stride);
        // Up to `until`, a lap's places lie in a row.
        let lap = self.head - (self.head & (self.capacity - 1));
        // In locals, since the way from one record to the next is what a reader of short ones waits for. The head is that
        // behind the record.
        let (mut head, mut record) = (start + first.size, first);
        let mut fetched = self.fetched.max(head);
        let mut count = 0;
        loop {
            visit(&self.peer, record);
            self.head = head;
            count += 1;
            if count >= max || head >= stop {
                break;
            }
            let at = layout::DATA + as_offset(head - lap);
            let (length, flags) = split(self.peer.load(at, Ordering::Relaxed));
            let Some(next) = Record::whole(at, length, flags, first.end) else {
                break;
            };
            if head + next.size > until || length > longest {
                break;
            }
            fetched = self.fetch(head, next.size, fetched, lap);
            head += next.size;
            record = next;
        }
        self.fetched = fetched;
        self.streamed += head - start;
        if head - self.published >= stride {
            self.publish();
        }
        count
    }

    /// The size of the next message, once its beginning is there, or of the one under way.
    pub(crate) fn next_size(&mut self) -> Result<Option<usize>> {
        if let Some((size, _)) = self.gathering {
            return Ok(Some(size));
        }
        let Some(record) = self.next_record()? else {
            return Ok(None);
        };
        let size = if record.flags == WHOLE {
            record.length
        } else {
            // Checked when the message is begun.
            as_offset(self.peer.load(record.at, Ordering::Relaxed).min(self.longest))
        };
        // It is read again then: what was told here is what it must be.
        self.told = Some((self.head, size));
        Ok(Some(size))
    }

    /// Copies as much of the next message as is there to its place in `into`, and publishes the head. The same
    /// buffer must be passed until the message is whole; it must be as long as [`Consumer::next_size`] said.
    pub(crate) fn gather(&mut self, into: &mut [u8]) -> Result<Gathered> {
        self.gather_in(&mut Whole(into))
    }

    /// As [`Consumer::gather`]. Where there is no room, that is the error of this call alone: what has not been copied is still in
    /// the ring, and the next call goes on.
    pub(crate) fn gather_in(&mut self, into: &mut impl Place) -> Result<Gathered> {
        let told = self.told.filter(|(at, _)| *at == self.head);
        loop {
            let Some(record) = self.next_record()? else {
                return Ok(if self.gathering.is_some() {
                    Gathered::Part
                } else {
                    Gathered::Nothing
                });
            };
            let (mut from, mut count) = (record.at, record.length);
            let (size, read) = match self.gathering {
                Some(under_way) => under_way,
                None if record.flags == WHOLE => (record.length, 0),
                None => {
                    let size = self.peer.load(record.at, Ordering::Relaxed);
                    (from, count) = (from + 8, count - 8);
                    if size > self.longest || size <= count as u64 {
                        return Err(corrupt(format!(
                            "a message of {size} bytes begins with {count}, and {} are the limit",
                            self.longest
                        )));
                    }
                    (as_offset(size), 0)
                }
            };
            if self.gathering.is_none() && told.is_some_and(|told| told != (self.head, size)) {
                return Err(corrupt(format!(
                    "a message of {size} bytes, which was told to have another size before"
                )));
            }
            let place = into.room(size, read, read + count)?;
            self.peer.copy_out_ahead(from, place, record.end);
            self.consume(record);
            self.publish();
            if record.flags & LAST != 0 {
                self.gathering = None;
                return Ok(Gathered::Whole(size));
            }
            self.gathering = Some((size, read + count));
        }
    }

    /// Copies whole messages, packed, as many as are there and fit.
    pub(crate) fn pull_packed(&mut self, into: &mut [u8]) -> Result<Pulled> {
        let mut end = 0;
        // Looks for what is published once, and not again for what has come meanwhile.
        while end == 0 || self.head != self.tail {
            let Some(record) = self.next_record()? else {
                break;
            };
            let packed = as_offset(packed_size(record.length as u64));
            let left = &mut into[end..];
            if record.flags != WHOLE || packed > left.len() {
                if end == 0 {
                    return Ok(self.next_size()?.map_or(Pulled::Nothing, Pulled::Large));
                }
                break;
            }
            if record.aligned {
                let (head, payload) = left.split_at_mut(as_offset(HEADER));
                head.copy_from_slice(&header(record.length as u64, WHOLE).to_le_bytes());
                self.peer
                    .copy_out_ahead(record.at, &mut payload[..record.length], record.end);
                self.consume(record);
                end += packed;
            } else {
                end += self.pull_run(left, record.end)?;
            }
        }
        self.publish();
        Ok(if end > 0 {
            Pulled::Bytes(end)
        } else {
            Pulled::Nothing
        })
    }

    /// Copies records that lie in the ring as packed ones do, headers and all, and only then looks at the headers, in the
    /// copy: what is handed over is what was checked. The first has been found to be one.
    fn pull_run(&mut self, into: &mut [u8], until: usize) -> Result<usize> {
        let place = self.head & (self.capacity - 1);
        let rest = as_offset(self.capacity - place);
        let there = as_offset(self.tail - self.head).min(rest + layout::OVERHANG);
        let count = into.len().min(there) & !7;
        let (mut copied, mut end) = (0, 0);
        'run: while copied < count {
            let from = copied;
            copied += RUN.min(count - copied);
            self.peer.copy_out_ahead(
                layout::DATA + as_offset(place) + from,
                &mut into[from..copied],
                until,
            );
            while end + 8 <= copied {
                let word: [u8; 8] = into[end..end + 8].try_into().expect("eight bytes");
                let (length, flags) = split(u64::from_le_bytes(word));
                let size = packed_size(length);
                // Padding, a fragment, a long one, the overhang's far side or a record cut by the buffer: that is not this
                // run's affair, and neither is a lie.
                if flags != WHOLE || size > (count - end) as u64 || end >= rest {
                    break 'run;
                }
                if !self.follows(as_offset(length), flags) {
                    return Err(self.unsound(as_offset(length), flags));
                }
                if end + as_offset(size) > copied {
                    break;
                }
                end += as_offset(size);
            }
        }
        if end == 0 {
            return Err(corrupt("a record changed while it was read".into()));
        }
        self.skip(end as u64);
        Ok(end)
    }

    #[inline]
    pub(crate) fn own(&self) -> &O {
        &self.own
    }

    #[inline]
    pub(crate) fn peer(&self) -> &P {
        &self.peer
    }

    /// How far everything has been read.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.head
    }

    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether a message is under way whose end has not been read.
    #[inline]
    pub(crate) fn is_gathering(&self) -> bool {
        self.gathering.is_some()
    }

    /// How much of the message under way has been read.
    pub(crate) fn gathered_so_far(&self) -> usize {
        self.gathering.map_or(0, |(_, read)| read)
    }

    /// The producer has gone: looks at its tail for the last time, and tells nobody any more how far everything was read.
    /// What is there is read where it lies. A child that the producer has forked may have the same memory and go on
    /// writing there: the records are checked as ever, and nothing is read behind this tail. A tail that is a lie is found
    /// behind what was known to be there, each time that somebody looks.
    pub(crate) fn settle(&mut self, own: O) {
        self.last = Some(self.peer.load(layout::TAIL, Ordering::Acquire));
        self.own = own;
    }

    /// Reads nothing any more.
    pub(crate) fn forget(&mut self, own: O, peer: P) {
        *self = Self::new(own, peer, self.capacity, self.longest);
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
#[cfg(test)]
mod tests;
