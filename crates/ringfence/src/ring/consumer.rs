//! The reading end of a ring. It validates everything that it reads.

use std::{
    mem,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    error::{Error, Result},
    region::copy::{AHEAD, LINE},
    region::copy::{Readable, Writable},
    region::layout::{self, as_offset},
    ring::pace::{distance, pause},
    ring::record::{
        FIRST, HEADER, LAST, PADDING, Record, Tag, WHOLE, corrupt, header, largest_record, packed_size, split,
    },
    ring::tally::Tally,
};

/// A consumer streams once it has read this many bytes. Each check that finds the ring empty halves the number, so a dialog of questions
/// and answers never streams, and does not pay for the distance.
const STREAM: u64 = 4096;
/// The most bytes that count: a few checks that find nothing end a stream.
const STREAM_MEMORY: u64 = 64 * 1024;
/// While many records are read in one go, the head is published in strides: each publication takes the line from a
/// producer that waits for room.
const STRIDE: u64 = 64 * 1024;

/// Bytes of packed records that are copied before their headers are looked at: where a long one follows, no more than this
/// was copied for nothing.
const RUN: usize = 4096;

/// Bytes of a record for whose lines the ring asks. Longer ones are read in blocks, and each of those asks for what is ahead.
const SHORT: u64 = 512;

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
        self.0.get_mut(from..to).filter(|_| room >= size).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "a buffer of {room} bytes does not hold a message of {size}"
            ))
        })
    }
}

/// The messages that a caller pulls, and the kind of memory.
#[derive(Debug)]
pub(crate) struct WantedLengths {
    /// Bytes of the shortest.
    pub(crate) least: u64,
    /// Bytes of the longest.
    pub(crate) most: u64,
    /// The memory was not used lately.
    pub(crate) fresh: bool,
}

impl WantedLengths {
    const ALL: Self = Self {
        least: 0,
        most: u64::MAX,
        fresh: false,
    };

    #[inline]
    fn is_met_by(&self, length: u64) -> bool {
        self.least <= length && length <= self.most
    }
}

/// What [`Consumer::pull_packed`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// This many bytes of whole records.
    Bytes(usize),
    /// The next message does not fit the buffer, is not wanted, or comes in fragments: its size.
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
    /// The position up to which everything was read.
    pub(super) head: u64,
    /// The head that the producer can see.
    pub(super) published: u64,
    /// The last loaded tail of the producer.
    pub(super) tail: u64,
    /// The number of loads of the tail.
    looks: u64,
    /// A record that ends here or before is there, and stands where it may: the tail, or this lap's end and overhang.
    until: u64,
    /// The last tail of a producer that is gone. Another process may still write its memory.
    last: Option<u64>,
    /// The stream that is being read began here: what was read since the ring was last found empty, and half of what was remembered
    /// then. A place and no count, which each message would have to add to.
    stream: u64,
    /// The last look found less than [`distance`].
    is_close: bool,
    /// Up to here, lines have been asked for.
    fetched: u64,
    /// The message whose fragments are being read: its size, and how much of it has been read.
    gathering: Option<(usize, usize)>,
    /// The tag of that message, or of the last one that was gathered.
    tag: Tag,
    /// The size that was returned for the message at this position, and for which the caller has made room.
    told: Option<(u64, usize)>,
    /// Messages that were read since the tally was updated, and their bytes.
    messages: u64,
    bytes: u64,
    /// Messages that the last call has read and the caller has not counted, and their bytes: see [`Consumer::count`].
    unchecked: (u64, u64),
    tally: Arc<Tally>,
    /// The counts before the messages that are held: see [`Consumer::pull_held`].
    before: (u64, u64),
}

impl<O, P> Consumer<O, P> {
    /// Adds to the tally what was read since its last update.
    fn tell_tally(&mut self) {
        self.tally
            .add(mem::take(&mut self.messages), mem::take(&mut self.bytes));
    }
}

impl<O, P> Drop for Consumer<O, P> {
    fn drop(&mut self) {
        self.tell_tally();
    }
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
            stream: 0,
            is_close: false,
            fetched: 0,
            gathering: None,
            tag: Tag::NONE,
            told: None,
            messages: 0,
            bytes: 0,
            unchecked: (0, 0),
            tally: Arc::default(),
            before: (0, 0),
        }
    }

    /// Counts in this tally from now on, which counts for no other ring.
    pub(crate) fn count_in(&mut self, tally: &Arc<Tally>) {
        self.tally = Arc::clone(tally);
    }

    /// Messages that were read, and the bytes of their payloads. One in fragments counts once it is whole.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        self.tell_tally();
        self.tally.get()
    }

    /// Counts what the last call has read. To be called once that was found whole: the producer may have wiped its ring in the meantime.
    #[inline]
    pub(crate) fn count(&mut self) {
        let (messages, bytes) = mem::take(&mut self.unchecked);
        self.tally.add(messages, bytes);
    }

    /// Loads the producer's tail. A tail that goes backwards, or more than a ring ahead, is a protocol violation.
    pub(super) fn look_at_tail(&mut self) -> Result<()> {
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

    /// The number of loads of the producer's tail.
    #[inline]
    pub(crate) fn looks(&self) -> u64 {
        self.looks
    }

    /// Whether nothing has arrived since the ring was found empty: the cheapest check, for a reader that polls. Always `false` while
    /// streaming, because the reader must keep its distance. Counts as a load of the tail if nothing has arrived; otherwise
    /// [`Consumer::next_record`] loads it again, and validates it.
    #[inline]
    pub(crate) fn is_still_empty(&mut self) -> bool {
        debug_assert!(self.is_through(), "a known record is not searched");
        if self.is_close && self.streamed() >= STREAM {
            return false;
        }
        if self.peer.load(layout::TAIL, Ordering::Relaxed) == self.tail {
            self.looks += 1;
            return true;
        }
        // A short message lies in two lines: the second is asked for before the first has come.
        let at = self.place();
        self.peer.will_read(at);
        self.peer.will_read(at + LINE);
        false
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

    #[inline]
    fn streamed(&self) -> u64 {
        self.head.saturating_sub(self.stream)
    }

    fn look_again(&mut self) -> Result<bool> {
        if self.is_close && self.streamed() >= STREAM {
            pause(self.capacity);
        }
        self.look_at_tail()?;
        let there = self.tail - self.head;
        self.is_close = there < distance(self.capacity);
        if there == 0 {
            self.stream = self.head - self.streamed().min(STREAM_MEMORY) / 2;
            self.publish();
            return Ok(false);
        }
        Ok(true)
    }

    /// Tells the producer how far everything has been read. Returns whether it did not know that yet.
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
        self.look_for_record(true)
    }

    /// Offset in the region of what comes next.
    #[inline]
    fn place(&self) -> usize {
        layout::DATA + as_offset(self.head & (self.capacity - 1))
    }

    /// Prefetches lines that will soon be read, if they are written: those behind `fetched` and near `head`, the position of a record of
    /// this size. Returns the new end of prefetched lines. The copy of a long record prefetches its own lines.
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
        self.longest.min(largest_record(self.capacity))
    }

    /// As [`Consumer::next_record`], whatever comes; `further`: also behind the tail that is known. A header that it has read already
    /// is read again: only what is read here counts.
    #[inline(never)]
    fn look_for_record(&mut self, further: bool) -> Result<Option<Record>> {
        self.tell_tally();
        loop {
            if self.head == self.tail && !(further && self.look_again()?) {
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
        if self.follows(record.length, record.flags, record.tag) {
            Ok(record)
        } else {
            Err(self.unsound(record.length, record.flags | record.tag.bits()))
        }
    }

    fn follows(&self, length: usize, flags: u32, tag: Tag) -> bool {
        match (self.gathering, flags) {
            (None, WHOLE) => length as u64 <= self.whole() && tag.attachments() == 0,
            (None, FIRST) => length > 8 && tag.attachments() == 0,
            (Some((size, read)), 0) => length > 0 && length < size - read && tag == Tag::NONE,
            (Some((size, read)), LAST) => length == size - read && tag == Tag::NONE,
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
        self.fetched = self.fetched.max(self.head);
    }

    /// Goes past a record that [`Consumer::next_record`] returned.
    #[inline]
    pub(crate) fn consume(&mut self, record: Record) {
        self.skip(record.size);
    }

    /// As [`Consumer::consume`], of a whole message that is handed out.
    #[inline]
    pub(crate) fn hand_out(&mut self, record: Record) {
        self.skip(record.size);
        // Two words: to make one of them takes longer than to add to another one.
        self.messages += 1;
        self.bytes += record.length as u64;
    }

    /// Visits the whole message that [`Consumer::next_record`] returned, and those that stand behind it in a row as far
    /// as the ring is known: at most `max` of them, and not much more than a stride, after which the head is published.
    /// Gets past each once it was visited, and returns how many there were. [`Consumer::count`] counts them.
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
        let (mut count, mut payload) = (0, 0);
        loop {
            visit(&self.peer, record);
            self.head = head;
            count += 1;
            payload += record.length;
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
        self.unchecked = (count as u64, payload as u64);
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
        self.tag = record.tag;
        // The header is read again then, and must have the same size.
        self.told = Some((self.head, size));
        Ok(Some(size))
    }

    /// Copies as much of the next message as is there to its place in `into`, and publishes the head. The same
    /// buffer must be passed until the message is whole; it must be as long as [`Consumer::next_size`] said.
    pub(crate) fn gather(&mut self, into: &mut [u8]) -> Result<Gathered> {
        self.gather_in(&mut Whole(into))
    }

    /// As [`Consumer::gather`]. If there is no room, that is the error of this call alone: what has not been copied is still in
    /// the ring, and the next call goes on. [`Consumer::count`] counts the message once it is whole.
    pub(crate) fn gather_in(&mut self, into: &mut impl FragmentBuffer) -> Result<Gathered> {
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
            if self.gathering.is_none() {
                self.tag = record.tag;
            }
            if self.gathering.is_none() && told.is_some_and(|told| told != (self.head, size)) {
                return Err(corrupt(format!(
                    "a message of {size} bytes, which was told to have another size before"
                )));
            }
            let place = into.room(size, read, read + count)?;
            self.peer.copy_out_fresh(from..from + count, place, record.end);
            self.consume(record);
            self.publish();
            if record.flags & LAST != 0 {
                self.unchecked = (1, size as u64);
                self.gathering = None;
                return Ok(Gathered::Whole(size));
            }
            self.gathering = Some((size, read + count));
        }
    }

    /// Copies whole messages, packed, as many as are there and fit. [`Consumer::count`] counts them.
    ///
    /// An error behind the first message is left to the next call, which finds it again: what was copied before it is sound.
    pub(crate) fn pull_packed(&mut self, into: &mut [u8]) -> Result<Pulled> {
        let pulled = self.pull(into, &WantedLengths::ALL)?;
        self.publish();
        Ok(pulled)
    }

    /// As [`Consumer::pull_packed`], of messages of the lengths that are wanted. They are held until the
    /// next [`Consumer::publish`]: until then [`Consumer::pull_again`] returns them again. At most a quarter of the ring is held, or one
    /// message.
    pub(crate) fn pull_held(&mut self, into: &mut [u8], wanted: &WantedLengths) -> Result<Pulled> {
        self.publish();
        self.before = self.counted();
        let Some(first) = self.next_record()? else {
            return Ok(Pulled::Nothing);
        };
        let first = packed_size(first.length as u64);
        let most = as_offset(first.max(self.capacity / 4)).min(into.len());
        self.pull(&mut into[..most], wanted)
    }

    /// Copies once more what [`Consumer::pull_held`] has copied, from `passed` bytes on, as much as fits. Each header is read and
    /// checked anew, since the producer may have written there.
    pub(crate) fn pull_again(&mut self, into: &mut [u8], passed: usize) -> Result<Pulled> {
        self.head = self.published;
        // What is known of a later lap holds for no earlier one.
        self.until = self.head;
        self.tell_tally();
        self.tally.set(self.before);
        let mut left = passed;
        while left > 0 {
            let record = self.next_record()?;
            let size = |record: &Record| as_offset(packed_size(record.length as u64));
            let Some(record) = record.filter(|record| record.flags == WHOLE && size(record) <= left) else {
                return Err(corrupt("a record changed after it was read".into()));
            };
            left -= size(&record);
            self.hand_out(record);
        }
        self.pull(into, &WantedLengths::ALL)
    }

    fn pull(&mut self, into: &mut [u8], wanted: &WantedLengths) -> Result<Pulled> {
        let mut end = 0;
        self.unchecked = (0, 0);
        // Loads the tail at most once: a second load that finds nothing would publish the head, but the copied records may be held.
        // Padding can be the last known record.
        while end == 0 || self.head != self.tail {
            let next = if end == 0 {
                self.next_record()
            } else {
                self.look_for_record(false)
            };
            let pulled = match next {
                Ok(Some(record)) if can_be_pulled(record, into.len() - end, wanted) => {
                    self.pull_from(record, &mut into[end..], wanted)
                }
                Ok(Some(_)) if end == 0 => {
                    return Ok(self.next_size()?.map_or(Pulled::Nothing, Pulled::Large));
                }
                Ok(_) => break,
                Err(error) => Err(error),
            };
            match pulled {
                Ok(bytes) => end += bytes,
                Err(error) if end == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(if end > 0 {
            Pulled::Bytes(end)
        } else {
            Pulled::Nothing
        })
    }

    /// Copies this message, for which there is room, and maybe those that follow. Returns their bytes.
    #[inline]
    fn pull_from(&mut self, record: Record, into: &mut [u8], wanted: &WantedLengths) -> Result<usize> {
        if !record.aligned {
            return self.pull_run(into, record.end, wanted);
        }
        let (head, payload) = into.split_at_mut(as_offset(HEADER));
        head.copy_from_slice(&header(record.length as u64, WHOLE | record.tag.bits()).to_le_bytes());
        self.copy_packed(record.at..record.at + record.length, payload, record.end, wanted);
        self.skip(record.size);
        self.unchecked.0 += 1;
        self.unchecked.1 += record.length as u64;
        Ok(as_offset(packed_size(record.length as u64)))
    }

    /// Copies a range of the ring to the beginning of `into`.
    #[inline]
    fn copy_packed(&self, from: Range<usize>, into: &mut [u8], end: usize, wanted: &WantedLengths) {
        if wanted.fresh {
            self.peer.copy_out_fresh(from, into, end);
        } else {
            self.peer.copy_out_ahead(from.start, &mut into[..from.len()], end);
        }
    }

    /// Copies records that lie in the ring as packed ones do, headers and all, and only then looks at the headers, in the
    /// copy: what is handed over is what was checked. The first has been found to be one.
    fn pull_run(&mut self, into: &mut [u8], until: usize, wanted: &WantedLengths) -> Result<usize> {
        let place = self.head & (self.capacity - 1);
        let rest = as_offset(self.capacity - place);
        let there = as_offset(self.tail - self.head).min(rest + layout::OVERHANG);
        let count = into.len().min(there) & !7;
        let (mut copied, mut end) = (0, 0);
        let (mut messages, mut payload) = (0, 0);
        'run: while copied < count {
            let from = copied;
            copied += RUN.min(count - copied);
            let at = layout::DATA + as_offset(place);
            self.copy_packed(at + from..at + copied, &mut into[from..], until, wanted);
            while end + 8 <= copied {
                let word: [u8; 8] = into[end..end + 8].try_into().expect("eight bytes");
                let (length, flags) = split(u64::from_le_bytes(word));
                let size = packed_size(length);
                // Padding, a fragment, a long one, the overhang's far side, a record cut by the buffer or one that is not
                // wanted: that is not this run's affair, and neither is a lie.
                let tag = Tag::of(flags);
                if flags != WHOLE | tag.bits()
                    || size > (count - end) as u64
                    || end >= rest
                    || !wanted.is_met_by(length)
                {
                    break 'run;
                }
                if !self.follows(as_offset(length), WHOLE, tag) {
                    if end == 0 {
                        return Err(self.unsound(as_offset(length), flags));
                    }
                    break 'run;
                }
                if end + as_offset(size) > copied {
                    break;
                }
                end += as_offset(size);
                messages += 1;
                payload += length;
            }
        }
        if end == 0 {
            return Err(corrupt("a record changed while it was read".into()));
        }
        self.unchecked.0 += messages;
        self.unchecked.1 += payload;
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

    /// The position up to which everything was read.
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

    /// The tag of the message that [`Consumer::next_size`] has found or [`Consumer::gather`] has begun last.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    /// Bytes of the message under way that were read.
    pub(crate) fn gathered_so_far(&self) -> usize {
        self.gathering.map_or(0, |(_, read)| read)
    }

    /// The producer is gone: loads its tail for the last time, and publishes the head nowhere. The leftovers are read in its memory. A child
    /// that the producer has forked may share that memory and go on writing: the records are validated as always, and nothing behind this
    /// tail is read. An invalid tail is found at each later check.
    pub(crate) fn settle(&mut self, own: O) {
        self.last = Some(self.peer.load(layout::TAIL, Ordering::Acquire));
        self.own = own;
    }

    /// Reading is over.
    pub(crate) fn forget(&mut self, own: O, peer: P) {
        let tally = Arc::clone(&self.tally);
        *self = Self::new(own, peer, self.capacity, self.longest);
        self.tally = tally;
    }
}

/// Whether this is a whole message, for which there is room, and of a length that is wanted.
#[inline]
fn can_be_pulled(record: Record, room: usize, wanted: &WantedLengths) -> bool {
    let length = record.length as u64;
    record.flags == WHOLE && packed_size(length) <= room as u64 && wanted.is_met_by(length)
}
