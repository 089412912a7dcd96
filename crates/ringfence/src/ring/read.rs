//! The reading end of a ring, for either kind of ring. It validates everything that it reads.
//!
//! [`Reader`] paces itself, finds and checks records, and copies whole messages out. [`Limit`] tells which records may be read and
//! whether a copy is valid, which depends on the kind of ring.

use std::{
    hint, mem,
    ops::{Range, RangeInclusive},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    region::copy::{AHEAD, LINE, Readable, Writable},
    region::layout::{self, as_offset},
    ring::record::{
        HEADER, PADDING, Record, Tag, WHOLE, cold_path, corrupt, header, packed_size, padded, split,
    },
};

/// A reader streams once it has read this many bytes. Each check that finds the ring empty halves the number, so a dialog of questions
/// and answers never streams, and does not pay for the distance.
pub(super) const STREAM: u64 = 4096;
/// The most bytes that count: a few checks that find nothing end a stream.
const STREAM_MAX: u64 = 64 * 1024;
/// While many records are read in one go, the head is published in strides: each publication takes the line from a
/// writer that waits for room.
const STRIDE: u64 = 64 * 1024;

/// The distance of a reader from the writer. A reader in a steady stream that finds less than this pauses before it checks
/// again, and so reads lines that the writer has finished. Closer, it would take each line from the
/// writer while the writer writes there, and both would be slow.
const DISTANCE: u64 = 32 * 1024;
/// The length of the pause, in spin-loop hints.
const PAUSE_SPINS: u64 = 128;

/// Returns [`DISTANCE`], or less in a small ring: the other side must not wait.
pub(super) fn distance(capacity: u64) -> u64 {
    DISTANCE.min(capacity / 4)
}

/// Pauses for about as long as the other side needs to advance by the distance.
pub(super) fn pause(capacity: u64) {
    for _ in 0..PAUSE_SPINS * distance(capacity) / DISTANCE {
        hint::spin_loop();
    }
}

/// Bytes of a record for whose lines the reader asks. Longer ones are read in blocks, and each of those asks for what is ahead.
const SHORT_RECORD: u64 = 512;

/// Bytes of a message for which the reader chooses whether to prefetch. A row of visits ends after one of this size.
const LONG_VISIT: usize = 64 * 1024;

/// Chooses whether the visits of long messages prefetch. On some cores that makes them faster; on others it is in the way of the
/// processor's own prefetching. So of each [`Self::PERIOD`] messages one is visited the other way, and timed beside the next one.
#[derive(Debug, Default)]
pub(super) struct Prefetching {
    chosen: bool,
    /// The number of this message in the period.
    number: u32,
    /// Nanoseconds and bytes of the visit with the other choice.
    other: (u128, u128),
    /// Comparisons that the other choice has won, less those that it has lost: from -[`Self::LEAD`] to [`Self::LEAD`].
    lead: i32,
}

impl Prefetching {
    pub(super) const PERIOD: u32 = 32;
    /// A smaller lead may be chance: a process that loses the processor during one visit.
    const LEAD: i32 = 3;

    /// Whether the next visit prefetches, and whether it is timed.
    pub(super) fn next(&mut self) -> (bool, bool) {
        self.number = (self.number + 1) % Self::PERIOD;
        let is_other = self.number == 0;
        (self.chosen != is_other, self.number <= 1)
    }

    /// Takes the time of a visit that is timed.
    pub(super) fn visited(&mut self, time: Duration, bytes: usize) {
        let (nanos, bytes) = (time.as_nanos(), bytes as u128);
        if self.number == 0 {
            self.other = (nanos, bytes);
            return;
        }
        let (other_nanos, other_bytes) = mem::take(&mut self.other);
        let lead = if other_nanos * bytes < nanos * other_bytes {
            1
        } else {
            -1
        };
        self.lead = (self.lead + lead).max(-Self::LEAD);
        if self.lead == Self::LEAD {
            self.chosen = !self.chosen;
            self.lead = 0;
        }
    }
}

/// The number of restarts after the writer has overtaken a call. Then the call returns that the ring is empty, and the next call
/// continues: a fast publisher must not block it forever.
pub(crate) const TRIES: u32 = 16;

/// Tells which records a reader may read, and counts those that it has read. One implementation for each kind of ring.
pub(crate) trait Limit<O, P>: Sized {
    /// Bytes of packed records that are copied before their headers are checked. If a long record follows, at most this many bytes were
    /// copied for nothing.
    const RUN: usize;

    /// Checks a tail that was just loaded. Fails if no correct writer stores it.
    fn check_tail(reader: &Reader<O, P, Self>, tail: u64) -> Result<()>;

    /// The allowed tag bits of a record.
    const TAGS: u32;

    /// Whether the caller does not handle messages with this tag.
    #[inline]
    fn refuses(&self, _tag: Tag) -> bool {
        false
    }

    /// Returns the position at which reading ends, though the writer may go on for other readers.
    #[inline]
    fn end(&self) -> u64 {
        u64::MAX
    }

    /// Whether any whole message may come next. If not, each record goes through [`Limit::prepare`] and is copied by itself.
    fn is_plain(&self) -> bool;

    /// Publishes the counts. Called before the tail is loaded.
    #[inline]
    fn update_counts(&mut self) {}

    /// Called before the record at the head is parsed; may move the head. `false`: the reader was overtaken, and has moved.
    #[inline]
    fn prepare(_reader: &mut Reader<O, P, Self>) -> Result<bool> {
        Ok(true)
    }

    /// Whether a record with a tag that is allowed may come next. `longest` is the longest whole message.
    fn may_follow(&self, record: &Record, longest: u64) -> bool;

    /// Called when a whole message was found at the head.
    #[inline]
    fn on_record_found(_reader: &mut Reader<O, P, Self>, _record: Record) {}

    /// Whether what was read from position `from` on was not overwritten in the meantime. Starts with an acquire fence if it can be.
    #[inline]
    fn is_whole(_reader: &Reader<O, P, Self>, _from: u64) -> Result<bool> {
        Ok(true)
    }

    /// Moves a reader that was overtaken to a position that can be read, if there is one.
    #[cold]
    fn restart(_reader: &mut Reader<O, P, Self>) -> Result<()> {
        Ok(())
    }

    /// Returns the size of a message that was read in part.
    #[inline]
    fn partial_size(&self) -> Option<usize> {
        None
    }

    /// Returns the size of the message that starts with this record, which is at the head. `None`: the reader was overtaken.
    fn size_of(reader: &mut Reader<O, P, Self>, record: Record) -> Result<Option<usize>>;

    /// Whether messages were lost since the last one that was handed out.
    #[inline]
    fn has_gap(&self) -> bool {
        false
    }

    /// Counts messages that are handed out, and the bytes of their payloads.
    fn count_pulled(&mut self, messages: u64, bytes: u64);
}

/// The lengths of the messages that a caller pulls, and the kind of memory.
pub(crate) struct WantedLengths {
    /// Bytes of the shortest.
    pub(crate) min: u64,
    /// Bytes of the longest.
    pub(crate) max: u64,
    /// The memory was not used recently, so it is in no cache.
    pub(crate) fresh: bool,
    /// Whether the caller pulls call frames, or messages.
    pub(crate) calls: bool,
}

impl WantedLengths {
    pub(super) const ALL: Self = Self {
        min: 0,
        max: u64::MAX,
        fresh: false,
        calls: false,
    };

    /// Messages or calls of these lengths, into memory that was not used recently.
    pub(crate) fn fresh(lengths: &RangeInclusive<usize>, calls: bool) -> Self {
        Self {
            min: *lengths.start() as u64,
            max: *lengths.end() as u64,
            fresh: true,
            calls,
        }
    }

    /// The tag of the messages.
    #[inline]
    fn tag(&self) -> Tag {
        if self.calls { Tag::CALL } else { Tag::NONE }
    }

    #[inline]
    fn is_met_by(&self, length: u64, tag: Tag) -> bool {
        self.min <= length && length <= self.max && tag == self.tag()
    }
}

/// The outcome of [`Receiver::try_receive_packed`](crate::Receiver::try_receive_packed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// Whole messages were copied: this many bytes.
    Bytes(usize),
    /// The next message does not fit the buffer, is not wanted, or comes in fragments. Its size, for
    /// [`Receiver::receive_part`](crate::Receiver::receive_part).
    Large(usize),
    /// Nothing is there.
    Nothing,
}

/// The error for a call frame in a channel without calls. The message stays in the ring.
#[cold]
fn call_refused() -> Error {
    Error::Protocol("it has made a call; only a channel that was made with `into_calls` answers calls".into())
}

/// The content of the ring at a position. Invalid unless [`Limit::is_whole`] holds afterwards.
pub(super) enum Parsed {
    Record(Record),
    /// Padding of this many bytes.
    Padding(u64),
    /// No correct writer writes a header like this.
    Unsound {
        length: u64,
        flags: u32,
    },
}

/// The reading end: `P` is the ring, which the peer owns, `O` is this side's region, which holds its head.
pub(crate) struct Reader<O, P, L> {
    pub(crate) own: O,
    pub(crate) peer: P,
    pub(crate) limit: L,
    /// The offset of the head in this side's region.
    head_at: usize,
    pub(crate) capacity: u64,
    /// The longest message that may come in one record.
    pub(super) longest: u64,
    /// The position up to which everything was read.
    pub(super) head: u64,
    /// The start and the end of the last skipped padding.
    padding: (u64, u64),
    /// The head that the writer can see.
    pub(super) published: u64,
    /// Up to this position, lines have been prefetched.
    pub(super) fetched: u64,
    /// The last loaded tail of the writer.
    pub(super) tail: u64,
    /// The number of loads of the tail.
    pub(crate) tail_loads: u64,
    /// A record at the head that ends here or before is published, and its position is valid. At most the end and overhang of the head's lap.
    /// 0: unknown.
    pub(super) until: u64,
    /// The last tail of a writer that is gone. Another process may still write its memory.
    pub(super) last: Option<u64>,
    /// The position at which the current stream started: half of the stream before the ring was last found empty counts too. A position
    /// rather than a count, to which each message would have to add.
    stream: u64,
    /// The last load of the tail found less than [`distance`].
    pub(super) is_close: bool,
    /// The last check found nothing at all.
    was_empty: bool,
    prefetching: Prefetching,
}

impl<O: Writable, P: Readable, L: Limit<O, P>> Reader<O, P, L> {
    /// Starts at position `head`. `longest`: of a message in one record.
    pub(super) fn with_limit(
        (own, head_at): (O, usize),
        peer: P,
        limit: L,
        capacity: u64,
        longest: u64,
        head: u64,
    ) -> Self {
        Self {
            own,
            peer,
            limit,
            head_at,
            capacity,
            longest,
            head,
            padding: (head, head),
            published: head,
            fetched: head,
            tail: head,
            tail_loads: 0,
            until: 0,
            last: None,
            stream: head,
            is_close: false,
            was_empty: false,
            prefetching: Prefetching::default(),
        }
    }

    /// Loads the writer's tail. One that no correct writer stores is a protocol violation.
    pub(super) fn load_tail(&mut self) -> Result<()> {
        let tail = match self.last {
            None => self.peer.load(layout::TAIL, Ordering::Acquire),
            Some(tail) => tail,
        };
        L::check_tail(self, tail)?;
        self.tail = tail;
        self.tail_loads += 1;
        Ok(())
    }

    /// The position up to which there is something to read, as far as is known.
    #[inline]
    pub(super) fn visible(&self) -> u64 {
        self.tail.min(self.limit.end())
    }

    /// The bytes that are known to be there.
    #[inline]
    fn unread(&self) -> u64 {
        self.visible().saturating_sub(self.head)
    }

    /// Whether everything was read that is known to be there. Does not load the writer's tail.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.head >= self.visible()
    }

    /// Whether there is something to read. Loads the writer's tail if nothing is known to be there.
    #[inline]
    pub(crate) fn available(&mut self) -> Result<bool> {
        if !self.is_drained() {
            return Ok(true);
        }
        self.reload_tail()
    }

    #[inline]
    pub(super) fn streamed(&self) -> u64 {
        self.head.saturating_sub(self.stream)
    }

    fn reload_tail(&mut self) -> Result<bool> {
        let distance = distance(self.capacity);
        let must_pause = self.is_close && self.streamed() >= STREAM;
        // The program may have left the processor to others after a check that found nothing, and the writer may be far ahead by now.
        if !must_pause || self.was_empty {
            self.load_tail()?;
        }
        if must_pause && self.unread() < distance {
            pause(self.capacity);
            self.load_tail()?;
        }
        let unread = self.unread();
        self.is_close = unread < distance;
        self.was_empty = unread == 0;
        if unread == 0 {
            self.stream = self.head - self.streamed().min(STREAM_MAX) / 2;
            self.publish();
        }
        Ok(unread > 0)
    }

    /// Publishes the head to the writer. Returns whether it has changed.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.head {
            return false;
        }
        self.published = self.head;
        self.own.store(self.head_at, self.head, Ordering::Release);
        true
    }

    /// The bytes after which a reader that continues publishes its head.
    #[inline]
    pub(super) fn stride(&self) -> u64 {
        STRIDE.min(self.capacity / 4)
    }

    /// Publishes the head if it is a stride ahead of the one that the writer can see.
    #[inline]
    pub(crate) fn publish_stride(&mut self) {
        if self.head - self.published >= self.stride() {
            self.publish();
        }
    }

    /// Offset in the region of this position.
    #[inline]
    pub(super) fn offset_of(&self, position: u64) -> usize {
        layout::DATA + as_offset(position & (self.capacity - 1))
    }

    /// The position at which the lap of this position starts.
    #[inline]
    pub(super) fn lap_of(&self, position: u64) -> u64 {
        position - (position & (self.capacity - 1))
    }

    /// Returns the next record, checked; skips padding. `None`: the ring is empty. A publisher may have overwritten the record: see
    /// [`Limit::is_whole`].
    #[inline]
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>> {
        self.next(true)
    }

    /// As [`Reader::next_record`]; `further`: also loads the tail if everything before the last one was read.
    #[inline]
    fn next(&mut self, further: bool) -> Result<Option<Record>> {
        match self.known_record() {
            Some(record) => Ok(Some(record)),
            None => self.find_record(further),
        }
    }

    /// Returns the next record if it is a whole message without a tag, and known to be there. Callers that read short messages try this
    /// first: the result stays in registers, and that of [`Reader::next_record`] goes through the stack.
    #[inline]
    pub(crate) fn known_record(&mut self) -> Option<Record> {
        if self.head >= self.until {
            return None;
        }
        let at = self.offset_of(self.head);
        let (length, flags) = split(self.peer.load(at, Ordering::Relaxed));
        let end = at + as_offset(self.until - self.head);
        let record = Record::whole(at, length, flags, end)?;
        if self.head + record.size > self.until || length > self.longest {
            return None;
        }
        L::on_record_found(self, record);
        Some(record)
    }

    /// As [`Reader::next`], for any record. Reads the header again, even if it was read before: only the second value is used.
    #[inline(never)]
    fn find_record(&mut self, further: bool) -> Result<Option<Record>> {
        self.limit.update_counts();
        for _ in 0..TRIES {
            if self.is_drained() && !(further && self.reload_tail()?) {
                return Ok(None);
            }
            if !L::prepare(self)? || self.is_drained() {
                continue;
            }
            match self.parse(self.head) {
                Parsed::Record(record) => {
                    if self.limit.refuses(record.tag) {
                        return Err(call_refused());
                    }
                    self.until = 0;
                    if self.limit.is_plain() {
                        self.until = self.lap_of(self.head) + (record.end - layout::DATA) as u64;
                    }
                    return Ok(Some(record));
                }
                Parsed::Padding(size) => {
                    if self.is_whole_or_restart()? {
                        self.padding = (self.head, self.head + size);
                        self.skip(size);
                    }
                }
                Parsed::Unsound { length, flags } => {
                    if self.is_whole_or_restart()? {
                        return Err(self.unsound(self.head, length, flags));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Returns the content of the ring at a position before [`Reader::visible`].
    #[inline]
    pub(super) fn parse(&self, position: u64) -> Parsed {
        let lap = self.lap_of(position);
        let rest = lap + self.capacity - position;
        let until = (lap + self.capacity + layout::OVERHANG as u64).min(self.visible());
        let at = self.offset_of(position);
        let (length, flags) = split(self.peer.load(at, Ordering::Relaxed));
        let record = Record::new(at, length, flags, layout::DATA + as_offset(until - lap));
        if position + record.size <= until {
            // Padding goes before a record that starts the next lap. A lap of padding alone could go on for ever.
            if flags == PADDING && record.size == rest && rest < self.capacity {
                return Parsed::Padding(record.size);
            }
            let allowed = record.tag.bits() & !L::TAGS == 0;
            if allowed && self.limit.may_follow(&record, self.longest) {
                return Parsed::Record(record);
            }
        }
        Parsed::Unsound { length, flags }
    }

    /// The error for an unsound header. Not called for an overwritten one, which also occurs with correct peers, and must not allocate.
    #[cold]
    #[inline(never)]
    pub(super) fn unsound(&self, position: u64, length: u64, flags: u32) -> Error {
        corrupt(format!(
            "a record of {length} bytes with flags {flags:#x} cannot stand where {} bytes are published and {} are left in the ring of {} (longest message in one record: {})",
            self.visible() - position,
            self.capacity - (position & (self.capacity - 1)),
            self.capacity,
            self.longest
        ))
    }

    /// Like [`Limit::is_whole`], from the head on. If it was not whole, begins again.
    #[inline]
    pub(super) fn is_whole_or_restart(&mut self) -> Result<bool> {
        if L::is_whole(self, self.head)? {
            return Ok(true);
        }
        L::restart(self)?;
        Ok(false)
    }

    /// Moves the head past this many bytes that were read.
    #[inline]
    pub(crate) fn skip(&mut self, size: u64) {
        self.head += size;
    }

    /// Moves the head to a position, past bytes that were not read.
    pub(super) fn jump(&mut self, position: u64) {
        self.stream += position - self.head;
        self.head = position;
    }

    /// Returns the size of the next message, once its beginning is there, or of the one of which a part was read.
    pub(crate) fn next_size(&mut self) -> Result<Option<usize>> {
        if let Some(size) = self.limit.partial_size() {
            return Ok(Some(size));
        }
        for _ in 0..TRIES {
            let Some(record) = self.next_record()? else {
                return Ok(None);
            };
            if let Some(size) = L::size_of(self, record)? {
                return Ok(Some(size));
            }
        }
        Ok(None)
    }

    /// Copies whole messages, packed, up to the end of the ring's content or of `into`. They are consecutive: no message between them was
    /// lost.
    ///
    /// An error behind the first message is returned by the next call, which finds it again.
    pub(crate) fn pull_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let pulled = self.pull(into, &WantedLengths::ALL)?;
        self.publish();
        Ok(pulled)
    }

    /// Copies like [`Reader::pull_packed`], messages of the lengths that are wanted, and does not publish the head.
    pub(super) fn pull(&mut self, into: &mut [u8], wanted: &WantedLengths) -> Result<Packed> {
        let (mut end, mut overtaken) = (0, 0);
        // Reloads the tail at most once: a second reload that finds nothing would publish the head, but the copied records may be held.
        // Padding can be the last known record.
        while (end == 0 || !self.is_drained()) && overtaken < TRIES {
            let pulled = match self.next(end == 0) {
                Ok(Some(_)) if end > 0 && self.limit.has_gap() => break,
                Ok(Some(record)) if can_be_pulled(record, into.len() - end, wanted) => {
                    self.pull_from(record, &mut into[end..], wanted)
                }
                Ok(Some(record)) if end == 0 => match L::size_of(self, record)? {
                    Some(size) => return Ok(Packed::Large(size)),
                    None => Ok(0),
                },
                Ok(_) => break,
                Err(error) => Err(error),
            };
            match pulled {
                Ok(0) => overtaken += 1,
                Ok(bytes) => end += bytes,
                Err(error) if end == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(if end > 0 {
            Packed::Bytes(end)
        } else {
            Packed::Nothing
        })
    }

    /// Copies this message, for which there is room, and maybe those that follow. Returns their bytes. 0: the reader was overtaken.
    #[inline]
    fn pull_from(&mut self, record: Record, into: &mut [u8], wanted: &WantedLengths) -> Result<usize> {
        if !self.is_single(record) {
            return self.pull_run(record, into, wanted);
        }
        let (head, payload) = into.split_at_mut(as_offset(HEADER));
        head.copy_from_slice(&header(record.length as u64, WHOLE | record.tag.bits()).to_le_bytes());
        self.copy_packed(record.at..record.at + record.length, payload, record.end, wanted);
        if !self.is_whole_or_restart()? {
            return Ok(0);
        }
        self.skip(record.size);
        self.limit.count_pulled(1, record.length as u64);
        Ok(as_offset(packed_size(record.length as u64)))
    }

    /// Prefetches lines that will soon be read, if they are written: those from `fetched` to `end` and near `at`, the offset of a record of
    /// this size. Returns the new end of prefetched lines. The copy of a long record prefetches its own lines.
    #[inline]
    pub(super) fn fetch(&self, at: usize, size: u64, mut fetched: usize, end: usize) -> usize {
        debug_assert!(fetched >= at, "no line is prefetched that was read");
        if size > SHORT_RECORD {
            return at + as_offset(size);
        }
        while fetched < at + AHEAD && fetched < end {
            self.peer.will_read(fetched);
            fetched += LINE;
        }
        fetched
    }

    /// Visits the whole message that [`Reader::next_record`] returned, and those that stand behind it in a row as far as the ring is known:
    /// at most `max` of them, and not much more than a stride. Gets past each once it was visited, also if a later visit panics, and
    /// returns how many there were.
    #[inline]
    pub(crate) fn visit_in_row(
        &mut self,
        first: Record,
        max: usize,
        mut visit: impl FnMut(&P, Record),
    ) -> usize {
        // Offsets in the region, since up to `end` the records stand in a row. In locals, since the way from one record to the next is what
        // a reader of short ones waits for.
        let start = self.offset_of(self.head);
        let (longest, end) = (self.longest, first.end);
        let stride = as_offset((self.published + self.stride()).saturating_sub(self.head));
        // No record begins where the ring ends, or behind it.
        let stop = end
            .min(layout::DATA + as_offset(self.capacity))
            .min(start + stride);
        let mut fetched = start + as_offset(self.fetched.saturating_sub(self.head).max(first.size));
        let mut record = first;
        let mut started = None;
        if first.length >= LONG_VISIT {
            let (prefetches, timed) = self.prefetching.next();
            if !prefetches {
                record.end = record.at;
            }
            started = timed.then(Instant::now);
        }
        let mut known = NO_HEADER;
        let mut row = VisitedRow {
            reader: self,
            start,
            at: start,
            messages: 0,
            payload: 0,
        };
        loop {
            visit(&row.reader.peer, record);
            row.at = record.at + as_offset(padded(record.length as u64));
            row.messages += 1;
            row.payload += record.length as u64;
            if row.messages >= max as u64 || row.at >= stop {
                break;
            }
            let word = row.reader.peer.load(row.at, Ordering::Relaxed);
            if word == known {
                if word == NO_HEADER {
                    break;
                }
                record.at = row.at + as_offset(HEADER);
            } else {
                // A branch rather than a conditional move: if sizes are alike, the way to the next record waits for no header.
                cold_path();
                let (length, flags) = split(word);
                match Record::whole(row.at, length, flags, end) {
                    Some(next) if length <= longest => record = next,
                    _ => break,
                }
                known = if record.aligned { NO_HEADER } else { word };
            }
            if row.at + as_offset(record.size) > end {
                break;
            }
            fetched = row.reader.fetch(row.at, record.size, fetched, end);
        }
        row.reader.fetched = row.reader.head + (fetched - start) as u64;
        if let Some(started) = started {
            row.reader.prefetching.visited(started.elapsed(), first.length);
        }
        as_offset(row.messages)
    }

    /// Whether this record is copied by itself, and not with those that follow.
    #[inline]
    pub(super) fn is_single(&self, record: Record) -> bool {
        record.aligned || !self.limit.is_plain()
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

    /// Copies records that lie in the ring as packed ones do, headers and all, and only then checks the headers, in the
    /// copy: what is handed over is what was checked. The first has been found to be one.
    fn pull_run(&mut self, first: Record, into: &mut [u8], wanted: &WantedLengths) -> Result<usize> {
        let at = first.at - as_offset(HEADER);
        let count = into.len().min(first.end - at) & !7;
        let rest = layout::DATA + as_offset(self.capacity) - at;
        let mut run = Run::new(wanted.min..=self.longest.min(wanted.max), wanted.tag());
        let mut copied = 0;
        while copied < count {
            let from = copied;
            copied += L::RUN.min(count - copied);
            self.copy_packed(at + from..at + copied, &mut into[from..], first.end, wanted);
            match L::is_whole(self, self.head + run.bytes as u64) {
                Ok(true) => {}
                Err(error) if run.messages == 0 => return Err(error),
                Ok(false) if run.messages == 0 => {
                    L::restart(self)?;
                    return Ok(0);
                }
                _ => break,
            }
            let copy = &into[..copied];
            while run.bytes < rest && run.next(copy).is_some() {
                run.pass();
            }
            // No record starts where the ring ends, or behind it.
            if run.is_over || run.bytes >= rest || run.bytes + run.size > count {
                break;
            }
        }
        if run.messages == 0 {
            return Err(corrupt("a record changed while it was read".into()));
        }
        self.skip(run.bytes as u64);
        self.limit.count_pulled(run.messages, run.payload);
        Ok(run.bytes)
    }

    /// The end of the message that was read last: the position without padding behind that message.
    #[inline]
    pub(crate) fn end_of_last(&self) -> u64 {
        match self.padding {
            (start, end) if end == self.head => start,
            _ => self.head,
        }
    }

    /// The position up to which everything was read.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.head
    }

    /// The writer is gone: loads its tail for the last time, and publishes the head nowhere. The leftovers are read in its memory. A child
    /// that the writer has forked may share that memory and go on writing: the records are validated as always, and nothing behind this
    /// tail is read. An invalid tail is found at each later check.
    pub(crate) fn freeze_tail(&mut self, own: O) {
        if self.last.is_none() {
            self.last = Some(self.peer.load(layout::TAIL, Ordering::Acquire));
        }
        (self.own, self.head_at) = (own, layout::HEAD);
    }

    /// Reading is over: continues with an empty ring.
    pub(super) fn start_over(&mut self, own: O, peer: P) {
        (self.own, self.peer, self.head_at) = (own, peer, layout::HEAD);
        (self.head, self.published, self.tail, self.until) = (0, 0, 0, 0);
        self.fetched = 0;
        (self.stream, self.last) = (0, None);
        (self.is_close, self.was_empty) = (false, false);
    }
}

/// No header of a message.
const NO_HEADER: u64 = 0;

/// Messages that are being visited in the ring. Dropping it moves the reader past them.
struct VisitedRow<'a, O: Writable, P: Readable, L: Limit<O, P>> {
    reader: &'a mut Reader<O, P, L>,
    /// Their offset in the region, and the one behind them.
    start: usize,
    at: usize,
    messages: u64,
    payload: u64,
}

impl<O: Writable, P: Readable, L: Limit<O, P>> Drop for VisitedRow<'_, O, P, L> {
    #[inline]
    fn drop(&mut self) {
        self.reader.skip((self.at - self.start) as u64);
        self.reader.limit.count_pulled(self.messages, self.payload);
    }
}

/// Whether this is a whole message, for which there is room, and of a length that is wanted.
#[inline]
fn can_be_pulled(record: Record, room: usize, wanted: &WantedLengths) -> bool {
    let length = record.length as u64;
    record.flags == WHOLE
        && record.tag.attachments() == 0
        && packed_size(length) <= room as u64
        && wanted.is_met_by(length, record.tag)
}

/// A walk over whole messages in a copy, which lie there as packed ones do.
pub(super) struct Run {
    min: u64,
    max: u64,
    flags: u32,
    /// The last header that was found sound, and the size of its record.
    known: u64,
    length: usize,
    size: usize,
    /// Something else than a whole message follows, or one of another length.
    is_over: bool,
    /// The bytes that were walked over.
    pub(super) bytes: usize,
    pub(super) messages: u64,
    /// Bytes of their payloads.
    pub(super) payload: u64,
}

impl Run {
    /// Walks over messages of these lengths, in bytes, that all have this tag.
    #[inline]
    pub(super) fn new(lengths: RangeInclusive<u64>, tag: Tag) -> Self {
        let (min, max) = lengths.into_inner();
        let flags = WHOLE | tag.bits();
        debug_assert!(min <= max, "the first record has such a length");
        // Starts with the header of a message that can stand here: a size of 0 would be walked over for ever.
        Self {
            min,
            max,
            flags,
            known: header(min, flags),
            length: as_offset(min),
            size: as_offset(packed_size(min)),
            is_over: false,
            bytes: 0,
            messages: 0,
            payload: 0,
        }
    }

    /// Returns the payload of the next message. `None`: the copy ends, maybe in the middle of a record, or what follows is no such message.
    #[expect(
        clippy::inline_always,
        reason = "the walk then stays in registers, and the way from one record to the next is what a reader of short ones waits for"
    )]
    #[inline(always)]
    pub(super) fn next<'a>(&mut self, copy: &'a [u8]) -> Option<&'a [u8]> {
        let word = copy.get(self.bytes..self.bytes + 8)?;
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        if word != self.known {
            // A branch rather than a conditional move: if sizes are alike, the way to the next record waits for none.
            cold_path();
            let (length, flags) = split(word);
            if flags != self.flags || length > self.max || length < self.min {
                self.is_over = true;
                return None;
            }
            (self.known, self.length) = (word, as_offset(length));
            self.size = as_offset(packed_size(length));
        }
        if self.bytes + self.size > copy.len() {
            return None;
        }
        let from = self.bytes + as_offset(HEADER);
        copy.get(from..from + self.length)
    }

    /// Moves behind the message that [`Run::next`] returned last.
    #[inline]
    pub(super) fn pass(&mut self) {
        self.bytes += self.size;
        self.messages += 1;
        self.payload += self.length as u64;
    }
}
