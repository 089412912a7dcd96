//! A subscriber's end of the ring. It validates everything that it reads, after it has checked that the copy was whole.

use std::{mem, sync::atomic::Ordering};

use super::{Delivery, Mark, MarkSnapshot, StartFrom, largest_message, readers::ReaderSlot};
use crate::{
    error::{Error, Result},
    region::{
        copy::{Readable, Writable},
        layout::{self, as_offset, head_of},
    },
    ring::{
        message::too_small,
        read::{Limit, Parsed, Reader, Run, TRIES},
        record::{HEADER, Record, Tag, WHOLE, corrupt},
    },
};

/// Bytes of records that are copied at once, before the floor and their headers are checked.
const RUN: usize = 8192;

/// No position is as far as this: at 10 GB/s a ring would get there in 14 years. So no sum of two of them overflows.
const FARTHEST: u64 = 1 << 62;

/// A message as it is visited.
#[derive(Debug, Clone, Copy)]
pub(crate) enum View<'a, R> {
    /// A copy that was whole.
    Copy(&'a [u8]),
    /// A record in the ring, which may change during the visit.
    InRing(&'a R, Record),
}

/// Validates copies beyond the floor, which shows only whether a message was overwritten: the ring may have been wiped, or this reader
/// evicted.
pub(crate) trait Validity {
    /// Checks that what was just copied is what the publisher sent. Called behind an acquire fence, before the copy is handed out or
    /// counted.
    fn check(&self) -> Result<()>;
}

/// Of a ring that is never wiped.
impl Validity for () {
    #[inline]
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// The result of the handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) capacity: u64,
    /// The longest message that this side takes.
    pub(crate) longest: u64,
    pub(crate) delivery: Delivery,
    /// Announced by the publisher, and validated here.
    pub(crate) slot: ReaderSlot,
}

/// The result of a walk over the records, validated.
struct Walk {
    /// The position behind it, and the messages before that.
    end: Mark,
    /// The position of the last message, and the messages before it.
    last: Option<Mark>,
}

/// The reading end: `R` is the publisher's ring object, `C` this reader's control object, and `V` judges the copies.
///
/// A message counts, and the head moves past it, only once its copy was checked ([`Limit::is_whole`]): the counters
/// are right also after a call that fails.
pub(crate) type FanOutReader<R, C, V = ()> = Reader<C, R, FloorLimit<V>>;

/// The limit in a publisher's ring: its tail, its floor, and the end of this subscription.
pub(crate) struct FloorLimit<V> {
    pub(crate) validity: V,
    pub(crate) delivery: Delivery,
    /// The end of reading, though the publisher may go on for others.
    end: u64,
    /// Messages before the head.
    head_sequence: u64,
    /// Messages that were lost, up to the last delivered one.
    pub(crate) lost: u64,
    /// Messages that were skipped since.
    skipped: u64,
    /// Messages before the first delivered one.
    start_sequence: u64,
    /// Bytes of the delivered messages.
    bytes: u64,
    /// Copies of records before they are visited.
    buffer: Vec<u8>,
    /// If the caller collects attachments: the position of the one message with attachments that it may read.
    collected: Option<u64>,
    /// The last call stopped at a message whose attachments were not collected.
    stopped: bool,
}

impl<R: Readable, C: Writable, V: Validity> Limit<C, R> for FloorLimit<V> {
    const RUN: usize = RUN;
    /// A publisher sends no call frames.
    const TAGS: u32 = Tag::ATTACHMENTS;

    fn check_tail(reader: &FanOutReader<R, C, V>, tail: u64) -> Result<()> {
        // After the tail: the floor only grows.
        let floor = reader.peer.load(layout::FLOOR, Ordering::Acquire);
        reader.check_tail_and_floor(tail, floor)
    }

    #[inline]
    fn end(&self) -> u64 {
        self.end
    }

    #[inline]
    fn is_plain(&self) -> bool {
        self.delivery != Delivery::Latest
    }

    fn prepare(reader: &mut FanOutReader<R, C, V>) -> Result<bool> {
        // A message whose attachments were collected is handed out, though a later one may have arrived since.
        if reader.limit.delivery == Delivery::Latest && reader.limit.collected != Some(reader.head) {
            return reader.skip_to_last();
        }
        Ok(true)
    }

    #[inline]
    fn may_follow(&self, record: &Record, longest: u64) -> bool {
        record.flags == WHOLE && record.length as u64 <= longest
    }

    /// Errors with [`Error::Evicted`] if the publisher has overwritten what a reliable reader has not read, and as [`Validity::check`].
    #[inline]
    fn is_whole(reader: &FanOutReader<R, C, V>, from: u64) -> Result<bool> {
        reader.peer.acquire_fence();
        let floor = reader.peer.load(layout::FLOOR, Ordering::Relaxed);
        if floor <= from {
            reader.limit.validity.check()?;
            return Ok(true);
        }
        reader.overtaken()
    }

    fn restart(reader: &mut FanOutReader<R, C, V>) -> Result<()> {
        reader.go_to_mark(reader.limit.delivery == Delivery::Latest)
    }

    fn size_of(reader: &mut FanOutReader<R, C, V>, record: Record) -> Result<Option<usize>> {
        Ok(reader.is_whole_or_restart()?.then_some(record.length))
    }

    #[inline]
    fn has_gap(&self) -> bool {
        self.skipped > 0
    }

    /// Also counts what was passed over before.
    #[inline]
    fn count_pulled(&mut self, messages: u64, bytes: u64) {
        self.head_sequence += messages;
        self.bytes += bytes;
        if self.skipped > 0 {
            self.lost += mem::take(&mut self.skipped);
        }
    }
}

impl<R: Readable, C: Writable, V: Validity> FanOutReader<R, C, V> {
    /// Fails with [`Error::RingCorrupt`] if the publisher's terms are impossible. Call [`FanOutReader::begin`] next.
    pub(crate) fn new(ring: R, own: C, validity: V, terms: Terms) -> Result<Self> {
        let (slot, position, sequence) = (terms.slot.slot, terms.slot.position, terms.slot.sequence);
        if !position.is_multiple_of(8) || position > FARTHEST || sequence > position / HEADER {
            return Err(corrupt(format!(
                "it lets this side begin at {position}, after {sequence} messages"
            )));
        }
        own.store(head_of(slot), position, Ordering::Release);
        let limit = FloorLimit {
            validity,
            delivery: terms.delivery,
            end: FARTHEST,
            head_sequence: sequence,
            lost: 0,
            skipped: 0,
            start_sequence: sequence,
            bytes: 0,
            buffer: Vec::new(),
            collected: None,
            stopped: false,
        };
        let longest = terms.longest.min(largest_message(terms.capacity));
        let own = (own, head_of(slot));
        Ok(Self::with_limit(
            own,
            ring,
            limit,
            terms.capacity,
            longest,
            position,
        ))
    }

    /// Moves from the reserved position to the one at which the caller starts. Call it once the publisher has this reader in its list.
    /// `now` is the publisher's tail when it added this reader.
    pub(crate) fn begin(&mut self, from: StartFrom, now: u64) -> Result<()> {
        if from != StartFrom::Oldest {
            let until = if from == StartFrom::Now { now } else { FARTHEST };
            for _ in 0..TRIES {
                self.load_tail()?;
                if let Some(walk) = self.walk(true, until)? {
                    let last = walk.last.filter(|_| from == StartFrom::Latest);
                    self.go_to(last.unwrap_or(walk.end));
                    break;
                }
            }
        }
        (self.limit.lost, self.limit.skipped) = (0, 0);
        self.limit.start_sequence = self.limit.head_sequence;
        self.publish();
        Ok(())
    }

    fn go_to(&mut self, mark: Mark) {
        self.limit.skipped += mark.sequence - self.limit.head_sequence;
        self.limit.head_sequence = mark.sequence;
        self.jump(mark.position);
    }

    /// Number of the last message that was handed out, as the publisher counts; before that, of the one after which this reader began.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.limit.head_sequence - self.limit.skipped
    }

    /// Messages that were handed out, and the bytes of their payloads.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (
            self.sequence() - self.limit.start_sequence - self.limit.lost,
            self.limit.bytes,
        )
    }

    /// A tail that goes backwards, or more than a ring past the floor, is a protocol violation.
    fn check_tail_and_floor(&self, tail: u64, floor: u64) -> Result<()> {
        let can_be = tail >= self.tail && tail <= FARTHEST && tail.is_multiple_of(8);
        if !can_be || tail.saturating_sub(floor) > self.capacity {
            return Err(corrupt(format!(
                "its tail went from {} to {tail}, and its floor is {floor}",
                self.tail
            )));
        }
        Ok(())
    }

    #[cold]
    fn overtaken(&self) -> Result<bool> {
        match self.limit.delivery {
            Delivery::Reliable => Err(Error::Evicted),
            Delivery::BestEffort | Delivery::Latest => Ok(false),
        }
    }

    /// Moves to a mark: the last one, or one in the middle of the unread data, so that the reader is not overtaken at once. Does not move
    /// if the marks were overwritten while they were read.
    #[cold]
    fn go_to_mark(&mut self, last: bool) -> Result<()> {
        let seen = MarkSnapshot::read(&self.peer);
        let tail = self.last.unwrap_or(seen.tail);
        self.check_tail_and_floor(tail, seen.floor)?;
        self.tail = tail;
        let middle = self.visible().saturating_sub(self.capacity / 2);
        let newest = self.marks(&seen).max_by_key(|mark| mark.position);
        let behind_middle = self
            .marks(&seen)
            .filter(|mark| mark.position >= middle)
            .min_by_key(|mark| mark.position);
        match newest.map(|newest| behind_middle.filter(|_| !last).unwrap_or(newest)) {
            Some(mark) => self.jump_to_mark(mark),
            None => self.handle_missing_mark(&seen),
        }
    }

    /// Returns the marks between the head and the end of the readable data.
    fn marks(&self, seen: &MarkSnapshot) -> impl Iterator<Item = Mark> {
        let (head, end) = (self.head, self.visible());
        seen.valid_marks()
            .filter(move |mark| mark.position > head && mark.position < end)
    }

    /// Moves to a mark after validating it.
    fn jump_to_mark(&mut self, mark: Mark) -> Result<()> {
        let messages = mark.sequence.wrapping_sub(self.limit.head_sequence);
        if !mark.position.is_multiple_of(8) || messages > (mark.position - self.head) / HEADER {
            return Err(corrupt(format!(
                "{} messages before {}, where {} were before {}",
                mark.sequence, mark.position, self.limit.head_sequence, self.head
            )));
        }
        self.go_to(mark);
        Ok(())
    }

    #[cold]
    fn handle_missing_mark(&mut self, seen: &MarkSnapshot) -> Result<()> {
        if !seen.is_stable || seen.floor <= self.head {
            return Ok(());
        }
        // Messages that are not published yet have taken the room of all that were: the first of them has the mark.
        let next = seen.valid_marks().find(|mark| mark.position == self.visible());
        if let Some(mark) = next {
            return self.jump_to_mark(mark);
        }
        if self.limit.end >= self.tail && self.last.is_none() {
            return Err(corrupt(format!(
                "no mark between its floor, {}, and its tail, {}",
                seen.floor, self.tail
            )));
        }
        // All that was left for this reader was written over.
        self.jump(self.visible().max(self.head));
        Ok(())
    }

    /// Walks from the head over the records up to `until`. `None`: it was overtaken, and has gone to a mark (`last`: the last one).
    fn walk(&mut self, last: bool, until: u64) -> Result<Option<Walk>> {
        let end = self.visible().min(until);
        if end.saturating_sub(self.head) > self.capacity {
            return self.walk_failed(last, |_| corrupt("more than a ring is there".into()));
        }
        let mut walk = Walk {
            end: Mark {
                position: self.head,
                sequence: self.limit.head_sequence,
            },
            last: None,
        };
        while walk.end.position < end {
            let position = walk.end.position;
            match self.parse(position) {
                Parsed::Record(record) => {
                    walk.last = Some(walk.end);
                    walk.end.position += record.size;
                    walk.end.sequence += 1;
                }
                Parsed::Padding(size) => walk.end.position += size,
                Parsed::Unsound { length, flags } => {
                    return self.walk_failed(last, |reader| reader.unsound(position, length, flags));
                }
            }
        }
        if FloorLimit::is_whole(self, self.head)? {
            return Ok(Some(walk));
        }
        self.go_to_mark(last)?;
        Ok(None)
    }

    #[cold]
    fn walk_failed(&mut self, last: bool, error: impl FnOnce(&Self) -> Error) -> Result<Option<Walk>> {
        if FloorLimit::is_whole(self, self.head)? {
            return Err(error(self));
        }
        self.go_to_mark(last)?;
        Ok(None)
    }

    /// Skips all messages except the last. `false`: it was overtaken.
    fn skip_to_last(&mut self) -> Result<bool> {
        self.load_tail()?;
        if self.visible() - self.head > self.capacity / 8 {
            // To walk over all of it would take long.
            let seen = MarkSnapshot::read(&self.peer);
            if let Some(mark) = self.marks(&seen).max_by_key(|mark| mark.position) {
                self.jump_to_mark(mark)?;
            }
        }
        let Some(walk) = self.walk(true, FARTHEST)? else {
            return Ok(false);
        };
        self.go_to(walk.last.unwrap_or(walk.end));
        Ok(true)
    }

    /// Moves past a message and counts it as delivered.
    #[inline]
    fn deliver(&mut self, record: Record) {
        self.skip(record.size);
        Limit::<C, R>::count_pulled(&mut self.limit, 1, record.length as u64);
    }

    /// The next message, if it has no attachments, is known to be there, fits and was found whole. `None`: [`FanOutReader::receive`] returns
    /// it, or why it cannot be received.
    #[inline]
    pub(crate) fn receive_known(&mut self, into: &mut [u8]) -> Option<usize> {
        let record = self.known_record()?;
        let place = into.get_mut(..record.length)?;
        self.peer.copy_out_ahead(record.at, place, record.end);
        if !matches!(FloorLimit::is_whole(self, self.head), Ok(true)) {
            return None;
        }
        self.deliver(record);
        Some(record.length)
    }

    /// The next message, into the beginning of `into`. `None`: nothing is there. Errors with [`Error::InvalidArgument`] where it is
    /// longer than `into`, and stays.
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        for _ in 0..TRIES {
            let Some(record) = self.next_record()? else {
                return Ok(None);
            };
            if record.tag != Tag::NONE && self.must_stop() {
                return Ok(None);
            }
            let room = into.len();
            let Some(place) = into.get_mut(..record.length) else {
                if self.is_whole_or_restart()? {
                    return Err(too_small(room, record.length));
                }
                continue;
            };
            self.peer.copy_out_ahead(record.at, place, record.end);
            if self.is_whole_or_restart()? {
                self.deliver(record);
                return Ok(Some(record.length));
            }
        }
        Ok(None)
    }

    /// The record of the next message with its number, if it has attachments. From now on, other messages with attachments are not
    /// read before this is called for them: [`FanOutReader::has_stopped`].
    pub(crate) fn next_tagged(&mut self) -> Result<Option<(Record, u64)>> {
        self.limit.collected = Some(FARTHEST);
        for _ in 0..TRIES {
            let Some(record) = self.next_record()? else { break };
            if record.tag == Tag::NONE {
                break;
            }
            let number = self.next_number();
            if self.is_whole_or_restart()? {
                return Ok(Some((record, number)));
            }
        }
        Ok(None)
    }

    /// Number of the message at the head.
    pub(crate) fn next_number(&self) -> u64 {
        self.limit.head_sequence + 1
    }

    /// Messages that will never be handed out, also those behind the last that was.
    pub(crate) fn missed(&self) -> u64 {
        self.limit.lost + self.limit.skipped
    }

    /// Records that the attachments of the message at the head were collected.
    pub(crate) fn mark_collected(&mut self) {
        self.limit.collected = Some(self.head);
    }

    /// Whether the last call stopped at a message with attachments that were not collected.
    pub(crate) fn has_stopped(&mut self) -> bool {
        mem::take(&mut self.limit.stopped)
    }

    /// Whether the attachments of this record, which is at the head, must be collected first.
    #[cold]
    fn must_stop(&mut self) -> bool {
        self.limit.stopped = self.limit.collected.is_some_and(|position| position != self.head);
        self.limit.stopped
    }

    /// Visits the messages that are there, at most `max`, and returns how many there were. A message with attachments is visited by
    /// itself.
    ///
    /// A copy is visited once it was found whole. A message in the ring is checked after its visit: if that fails, the visit may have seen
    /// other bytes, the message is not counted, and the error is returned.
    pub(crate) fn visit(&mut self, max: usize, visit: impl FnMut(View<'_, R>)) -> Result<usize> {
        let visited = self.visit_up_to(max, visit);
        // Also after an error: what was visited before it needs no room any longer.
        self.publish();
        visited
    }

    fn visit_up_to(&mut self, max: usize, mut visit: impl FnMut(View<'_, R>)) -> Result<usize> {
        let (mut count, mut overtaken) = (0, 0);
        while count < max && overtaken < TRIES {
            let Some(record) = self.next_record()? else { break };
            let is_alone = record.tag != Tag::NONE;
            if is_alone && (count > 0 || self.must_stop()) {
                break;
            }
            match self.visit_from(record, max - count, &mut visit)? {
                0 => overtaken += 1,
                visited => count += visited,
            }
            self.publish_stride();
            if is_alone && count > 0 {
                break;
            }
        }
        Ok(count)
    }

    /// Visits this message, and maybe those that follow. 0: it was overtaken.
    #[inline]
    fn visit_from(
        &mut self,
        record: Record,
        max: usize,
        visit: &mut impl FnMut(View<'_, R>),
    ) -> Result<usize> {
        if self.limit.delivery == Delivery::Reliable {
            self.visit_in_place(record, max, visit)
        } else {
            self.visit_copies(record, max, visit)
        }
    }

    /// As [`FanOutReader::visit_from`], of a reader that may be overtaken. A function of its own, so that the visit in place is inlined.
    #[inline(never)]
    fn visit_copies(
        &mut self,
        record: Record,
        max: usize,
        visit: &mut impl FnMut(View<'_, R>),
    ) -> Result<usize> {
        let single = self.is_single(record) || record.size > RUN as u64 / 2 || record.tag != Tag::NONE;
        let (from, bytes) = if single {
            (record.at, record.length)
        } else {
            (record.at - as_offset(HEADER), run_length(record))
        };
        let mut buffer = self.take_buffer(bytes)?;
        self.peer.copy_out_ahead(from, &mut buffer[..bytes], record.end);
        let visited = match self.is_whole_or_restart() {
            Ok(true) if single => {
                self.deliver(record);
                visit(View::Copy(&buffer[..bytes]));
                Ok(1)
            }
            Ok(true) => self.visit_run(&buffer[..bytes], max, |message| visit(View::Copy(message))),
            Ok(false) => Ok(0),
            Err(error) => Err(error),
        };
        self.limit.buffer = buffer;
        visited
    }

    /// Visits messages where they lie: the publisher does not overwrite what a reliable reader has not read, unless it evicts the reader.
    #[inline]
    fn visit_in_place(
        &mut self,
        record: Record,
        max: usize,
        visit: &mut impl FnMut(View<'_, R>),
    ) -> Result<usize> {
        FloorLimit::is_whole(self, self.head)?;
        let (head, passed, bytes) = (self.head, self.limit.head_sequence, self.limit.bytes);
        let max = if record.tag == Tag::NONE { max } else { 1 };
        let count = self.visit_in_row(record, max, |ring, record| visit(View::InRing(ring, record)));
        if let Err(error) = FloorLimit::is_whole(self, head) {
            (self.head, self.limit.head_sequence, self.limit.bytes) = (head, passed, bytes);
            return Err(error);
        }
        Ok(count)
    }

    /// Takes the copy buffer, grown to `bytes`. The handshake limits the longest message.
    #[inline]
    fn take_buffer(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = mem::take(&mut self.limit.buffer);
        if buffer.len() < bytes.max(RUN) {
            let missing = bytes.max(RUN) - buffer.len();
            buffer
                .try_reserve_exact(missing)
                .map_err(|error| Error::no_space(format!("a copy of a message of {bytes} bytes"), error))?;
            buffer.resize(bytes.max(RUN), 0);
        }
        Ok(buffer)
    }

    /// Visits the messages of a run, which was copied from the head on and is whole.
    #[inline]
    fn visit_run(&mut self, copy: &[u8], max: usize, mut visit: impl FnMut(&[u8])) -> Result<usize> {
        // No record begins where the ring ends, or behind it.
        let rest = as_offset(self.lap_of(self.head) + self.capacity - self.head);
        let mut guard = RunGuard {
            run: Run::new(0..=self.longest, Tag::NONE),
            reader: self,
        };
        let run = &mut guard.run;
        while run.messages < max as u64 && run.bytes < rest {
            let Some(message) = run.next(copy) else { break };
            visit(message);
            run.pass();
        }
        let count = run.messages;
        drop(guard);
        if count == 0 {
            return Err(corrupt("a record changed while it was read".into()));
        }
        Ok(as_offset(count))
    }

    /// Ends reading at this position, which the publisher has announced. It may continue for others.
    pub(crate) fn end_at(&mut self, position: u64) {
        // Records end at multiples of eight. Nothing else depends on this position.
        self.limit.end = position & !7;
        self.until = 0;
    }

    /// Ends reading: replaces the ring with `nothing`, in which all words are 0. The counters stay.
    pub(crate) fn detach(&mut self, own: C, nothing: R) {
        self.start_over(own, nothing);
        self.limit.buffer = Vec::new();
        self.limit.end = 0;
    }
}

/// Returns how many bytes to copy from this record's header on, at most [`RUN`]: as many records as fit if all have its size.
#[inline]
fn run_length(record: Record) -> usize {
    let bytes = (record.end - (record.at - as_offset(HEADER))).min(RUN);
    bytes - bytes % as_offset(record.size)
}

/// Delivered messages of a run. Dropping it moves the reader past them, also if a visit panics.
struct RunGuard<'a, R: Readable, C: Writable, V: Validity> {
    reader: &'a mut FanOutReader<R, C, V>,
    run: Run,
}

impl<R: Readable, C: Writable, V: Validity> Drop for RunGuard<'_, R, C, V> {
    fn drop(&mut self) {
        if self.run.messages > 0 {
            self.reader.skip(self.run.bytes as u64);
            let limit = &mut self.reader.limit;
            Limit::<C, R>::count_pulled(limit, self.run.messages, self.run.payload);
        }
    }
}
