//! A subscriber's end of the ring. It validates everything that it reads, after it has checked that the copy was whole.

use std::{mem, sync::atomic::Ordering};

use super::{
    largest_message,
    marks::{Mark, Seen},
    readers::Held,
};
use crate::{
    error::{Error, Result},
    region::{
        copy::{Readable, Writable},
        layout::{self, as_offset, head_of},
    },
    ring::{
        consumer::Pulled,
        delivery::{Delivery, StartFrom},
        message::too_small,
        pace::{distance, pause},
        record::{HEADER, PADDING, Record, Tag, WHOLE, corrupt, header, packed_size, split},
    },
};

/// As in the reader of a pair: it streams once it has read this many bytes. Each check that finds nothing halves the number.
const STREAM: u64 = 4096;
/// The most bytes that count.
const STREAM_MEMORY: u64 = 64 * 1024;
/// While many records are read in one go, the head is published in strides.
const STRIDE: u64 = 64 * 1024;

/// Bytes of records that are copied at once, before the floor and their headers are checked.
const RUN: usize = 8192;

/// The number of times that a call starts again after it was overtaken. Then it returns that nothing is there, and the next call goes on:
/// a fast publisher must not block it forever.
pub(super) const TRIES: u32 = 16;

/// No position is as far as this: at 10 GB/s a ring would get there in 14 years. So no sum of two of them overflows.
const FARTHEST: u64 = 1 << 62;

/// Records larger than this are visited where they lie, if their reader is a reliable one: to copy them first costs more than it brings.
const IN_PLACE: u64 = 512;

/// A message as it is visited.
#[derive(Debug, Clone, Copy)]
pub(crate) enum View<'a, R> {
    /// A copy that was whole.
    Copy(&'a [u8]),
    /// A record in the ring, which may change during the visit.
    InRing(&'a R, Record),
}

/// Judges copies by more than the ring itself says. The floor shows whether a message was overwritten; whether the ring was wiped, or this
/// reader evicted, is known outside of the ring.
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
    pub(crate) held: Held,
}

/// The content of the ring at a position. Invalid unless [`FanIn::is_whole`] holds afterwards.
enum Scanned {
    /// A message, and the position of its record.
    Message(u64, Record),
    /// Padding at most, up to here.
    Nothing(u64),
    /// No correct writer writes this.
    Unsound(String),
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
/// A message counts, and the head moves past it, only once its copy was checked ([`FanIn::is_whole`]): the counters
/// are right also after a call that fails.
#[derive(Debug)]
pub(crate) struct FanIn<R, C, V = ()> {
    ring: R,
    validity: V,
    /// `None` once the writer is gone.
    own: Option<C>,
    head_at: usize,
    delivery: Delivery,
    capacity: u64,
    longest: u64,
    /// The position up to which everything was read.
    head: u64,
    /// Messages before the head.
    passed: u64,
    /// The head that the publisher can see.
    published: u64,
    /// The last loaded tail of the publisher.
    tail: u64,
    /// The last tail of a publisher that is gone.
    last: Option<u64>,
    /// The end of reading, though the publisher may go on for others.
    end: u64,
    /// The number of loads of the tail.
    looks: u64,
    /// A record at the head that ends here or before is there, and stands where it may. At most the end and overhang of the head's lap. 0: unknown.
    until: u64,
    /// Messages that were lost, up to the last that was handed out.
    lost: u64,
    /// Messages that were passed over since.
    passed_over: u64,
    /// Messages before those that were handed out first.
    began: u64,
    /// Bytes of the messages that were handed out.
    bytes: u64,
    /// Bytes read since the ring was last found empty.
    streamed: u64,
    /// The last look found less than [`distance`].
    is_close: bool,
    /// Copies of records, before they are visited.
    window: Vec<u8>,
}

impl<R: Readable, C: Writable, V: Validity> FanIn<R, C, V> {
    /// Errors with [`Error::RingCorrupt`] if the publisher says what cannot be. To be followed by [`FanIn::begin`].
    pub(crate) fn new(ring: R, own: C, validity: V, terms: Terms) -> Result<Self> {
        let Held {
            slot,
            position,
            sequence,
            ..
        } = terms.held;
        if !position.is_multiple_of(8) || position > FARTHEST || sequence > position / HEADER {
            return Err(corrupt(format!(
                "it lets this side begin at {position}, after {sequence} messages"
            )));
        }
        own.store(head_of(slot), position, Ordering::Release);
        Ok(Self {
            ring,
            validity,
            own: Some(own),
            head_at: head_of(slot),
            delivery: terms.delivery,
            capacity: terms.capacity,
            longest: terms.longest.min(largest_message(terms.capacity)),
            head: position,
            passed: sequence,
            published: position,
            tail: position,
            last: None,
            end: FARTHEST,
            looks: 0,
            until: 0,
            lost: 0,
            passed_over: 0,
            began: sequence,
            bytes: 0,
            streamed: 0,
            is_close: false,
            window: Vec::new(),
        })
    }

    /// Goes to where the caller wants to begin, from the position that was held for it. To be called once the publisher has this
    /// reader in its list. `now` is the publisher's tail at the moment at which what is sent from then on is for this reader.
    pub(crate) fn begin(&mut self, from: StartFrom, now: u64) -> Result<()> {
        if from != StartFrom::Oldest {
            let until = if from == StartFrom::Now { now } else { FARTHEST };
            for _ in 0..TRIES {
                self.look_at_tail()?;
                if let Some(walk) = self.walk(true, until)? {
                    let last = walk.last.filter(|_| from == StartFrom::Latest);
                    self.go_to(last.unwrap_or(walk.end));
                    break;
                }
            }
        }
        (self.lost, self.passed_over) = (0, 0);
        self.began = self.passed;
        self.publish();
        Ok(())
    }

    fn go_to(&mut self, mark: Mark) {
        self.passed_over += mark.sequence - self.passed;
        (self.head, self.passed) = (mark.position, mark.sequence);
    }

    /// Number of the last message that was handed out, as the publisher counts; before that, of the one after which this reader began.
    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.passed - self.passed_over
    }

    /// Messages since this reader began that will never be handed out: up to the last that was.
    #[inline]
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Messages that were handed out, and the bytes of their payloads.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.sequence() - self.began - self.lost, self.bytes)
    }

    /// Loads the publisher's tail. A tail that goes backwards, or more than a ring past the floor, is a protocol violation.
    fn look_at_tail(&mut self) -> Result<()> {
        let tail = match self.last {
            None => self.ring.load(layout::TAIL, Ordering::Acquire),
            Some(tail) => tail,
        };
        // After the tail: the floor only grows.
        let floor = self.ring.load(layout::FLOOR, Ordering::Acquire);
        self.looks += 1;
        self.set_tail(tail, floor)
    }

    fn set_tail(&mut self, tail: u64, floor: u64) -> Result<()> {
        let can_be = tail >= self.tail && tail <= FARTHEST && tail.is_multiple_of(8);
        if !can_be || tail.saturating_sub(floor) > self.capacity {
            return Err(corrupt(format!(
                "its tail went from {} to {tail}, and its floor is {floor}",
                self.tail
            )));
        }
        self.tail = tail;
        Ok(())
    }

    /// Up to here there is something to read, as far as is known.
    #[inline]
    fn visible(&self) -> u64 {
        self.tail.min(self.end)
    }

    /// Whether there is something to read; looks at the publisher's tail if nothing is known to be there.
    #[inline]
    pub(crate) fn available(&mut self) -> Result<bool> {
        if self.head < self.visible() {
            return Ok(true);
        }
        self.look_again()
    }

    fn look_again(&mut self) -> Result<bool> {
        if self.is_close && self.streamed >= STREAM {
            pause(self.capacity);
        }
        self.look_at_tail()?;
        let there = self.visible().saturating_sub(self.head);
        self.is_close = there < distance(self.capacity);
        if there == 0 {
            self.streamed = self.streamed.min(STREAM_MEMORY) / 2;
            self.publish();
        }
        Ok(there > 0)
    }

    /// The number of loads of the publisher's tail.
    #[inline]
    pub(crate) fn looks(&self) -> u64 {
        self.looks
    }

    /// Whether everything was read that is known to be there, without a look at the publisher's tail.
    #[inline]
    pub(crate) fn is_through(&self) -> bool {
        self.head >= self.visible()
    }

    /// Tells the publisher how far everything has been read. Returns whether it did not know that yet.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.head {
            return false;
        }
        self.published = self.head;
        if let Some(own) = &self.own {
            own.store(self.head_at, self.head, Ordering::Release);
        }
        true
    }

    /// Whether what was read from the head on was whole while it was read. Errors with [`Error::Evicted`] if the publisher has
    /// overwritten what a reliable reader has not read, and as [`Validity::check`].
    #[inline]
    fn is_whole(&self) -> Result<bool> {
        self.ring.acquire_fence();
        let floor = self.ring.load(layout::FLOOR, Ordering::Relaxed);
        if floor <= self.head {
            self.validity.check()?;
            return Ok(true);
        }
        self.overtaken()
    }

    #[cold]
    fn overtaken(&self) -> Result<bool> {
        match self.delivery {
            Delivery::Reliable => Err(Error::Evicted),
            Delivery::BestEffort | Delivery::Latest => Ok(false),
        }
    }

    /// Like [`FanIn::is_whole`]. If it was not whole, goes to a mark, if there is one.
    #[inline]
    fn is_whole_or_begin_again(&mut self) -> Result<bool> {
        if self.is_whole()? {
            return Ok(true);
        }
        self.begin_again(self.delivery == Delivery::Latest)?;
        Ok(false)
    }

    /// Goes to a mark: the last one, or one in the middle of what is there, so that it is not overtaken at once. Stays where it is, if
    /// the marks were written over during the look.
    #[cold]
    fn begin_again(&mut self, last: bool) -> Result<()> {
        let seen = Seen::look(&self.ring);
        self.set_tail(self.last.unwrap_or(seen.tail), seen.floor)?;
        let middle = self.visible().saturating_sub(self.capacity / 2);
        let newest = self.marks(&seen).max_by_key(|mark| mark.position);
        let behind_middle = self
            .marks(&seen)
            .filter(|mark| mark.position >= middle)
            .min_by_key(|mark| mark.position);
        match newest.map(|newest| behind_middle.filter(|_| !last).unwrap_or(newest)) {
            Some(mark) => self.jump_to(mark),
            None => self.without_a_mark(&seen),
        }
    }

    /// Those marks behind the head behind which something is there.
    fn marks(&self, seen: &Seen) -> impl Iterator<Item = Mark> {
        let (head, end) = (self.head, self.visible());
        seen.whole()
            .filter(move |mark| mark.position > head && mark.position < end)
    }

    /// Goes to a mark, if it can be one.
    fn jump_to(&mut self, mark: Mark) -> Result<()> {
        let messages = mark.sequence.wrapping_sub(self.passed);
        if !mark.position.is_multiple_of(8) || messages > (mark.position - self.head) / HEADER {
            return Err(corrupt(format!(
                "{} messages before {}, where {} were before {}",
                mark.sequence, mark.position, self.passed, self.head
            )));
        }
        self.go_to(mark);
        Ok(())
    }

    #[cold]
    fn without_a_mark(&mut self, seen: &Seen) -> Result<()> {
        if !seen.still || seen.floor <= self.head {
            return Ok(());
        }
        // Messages that are not published yet have taken the room of all that were: the first of them has the mark.
        let next = seen.whole().find(|mark| mark.position == self.visible());
        if let Some(mark) = next {
            return self.jump_to(mark);
        }
        if self.end >= self.tail && self.last.is_none() {
            return Err(corrupt(format!(
                "no mark between its floor, {}, and its tail, {}",
                seen.floor, self.tail
            )));
        }
        // All that was left for this reader was written over.
        self.head = self.visible().max(self.head);
        Ok(())
    }

    /// Returns the content of the ring at this position.
    #[inline]
    fn find(&self, mut at: u64) -> Scanned {
        let end = self.visible();
        while at < end {
            let place = at & (self.capacity - 1);
            let lap = at - place;
            let rest = self.capacity - place;
            let until = (lap + self.capacity + layout::OVERHANG as u64).min(end);
            let offset = layout::DATA + as_offset(place);
            let (length, flags) = split(self.ring.load(offset, Ordering::Relaxed));
            let record = Record::new(offset, length, flags, layout::DATA + as_offset(until - lap));
            let fits = at + record.size <= until;
            if fits && record.flags == WHOLE && record.tag == Tag::NONE && length <= self.longest {
                return Scanned::Message(at, record);
            }
            // Padding goes before a record that begins the next lap, and never lies at its beginning.
            if !fits || flags != PADDING || record.size != rest || place == 0 {
                return Scanned::Unsound(format!(
                    "a record of {length} bytes with flags {flags:#x}, where {} are published and {rest} are left (longest message {})",
                    end - at,
                    self.longest
                ));
            }
            at += record.size;
        }
        Scanned::Nothing(at)
    }

    /// Walks from the head over the records up to `until`. `None`: it was overtaken, and has gone to a mark (`last`: the last one).
    fn walk(&mut self, last: bool, until: u64) -> Result<Option<Walk>> {
        let end = self.visible().min(until);
        if end.saturating_sub(self.head) > self.capacity {
            return self.not_walked(last, "more than a ring is there");
        }
        let mut walk = Walk {
            end: Mark {
                position: self.head,
                sequence: self.passed,
            },
            last: None,
        };
        while walk.end.position < end {
            match self.find(walk.end.position) {
                Scanned::Message(at, record) => {
                    walk.last = Some(Mark {
                        position: at,
                        ..walk.end
                    });
                    walk.end = Mark {
                        position: at + record.size,
                        sequence: walk.end.sequence + 1,
                    };
                }
                Scanned::Nothing(at) => walk.end.position = at,
                Scanned::Unsound(what) => return self.not_walked(last, &what),
            }
        }
        if self.is_whole()? {
            return Ok(Some(walk));
        }
        self.begin_again(last)?;
        Ok(None)
    }

    #[cold]
    fn not_walked(&mut self, last: bool, what: &str) -> Result<Option<Walk>> {
        if self.is_whole()? {
            return Err(corrupt(what.into()));
        }
        self.begin_again(last)?;
        Ok(None)
    }

    /// The next message, and the position of its record: not to be believed before [`FanIn::is_whole`]. `None`: nothing is there.
    #[inline]
    fn next(&mut self) -> Result<Option<(u64, Record)>> {
        if self.head < self.until {
            let place = self.head & (self.capacity - 1);
            let at = layout::DATA + as_offset(place);
            let (length, flags) = split(self.ring.load(at, Ordering::Relaxed));
            let end = layout::DATA + as_offset(self.until - (self.head - place));
            debug_assert!(
                end <= layout::DATA + as_offset(self.capacity) + layout::OVERHANG,
                "in the ring"
            );
            if let Some(record) = Record::whole(at, length, flags, end)
                && self.head + record.size <= self.until
                && length <= self.longest
            {
                return Ok(Some((self.head, record)));
            }
        }
        self.look_for_next()
    }

    #[inline(never)]
    fn look_for_next(&mut self) -> Result<Option<(u64, Record)>> {
        for _ in 0..TRIES {
            if !self.available()? {
                return Ok(None);
            }
            if self.delivery == Delivery::Latest && !self.skip_to_last()? {
                continue;
            }
            match self.find(self.head) {
                Scanned::Message(at, record) => {
                    // Of the lap in which the head is: padding may lie between them.
                    self.until = 0;
                    if self.delivery != Delivery::Latest && at == self.head {
                        let lap = at - (at & (self.capacity - 1));
                        self.until = lap + (record.end - layout::DATA) as u64;
                    }
                    return Ok(Some((at, record)));
                }
                Scanned::Nothing(at) => {
                    if self.is_whole_or_begin_again()? {
                        self.head = at;
                    }
                }
                Scanned::Unsound(what) => {
                    if self.is_whole_or_begin_again()? {
                        return Err(corrupt(what));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Skips all messages except the last. `false`: it was overtaken.
    fn skip_to_last(&mut self) -> Result<bool> {
        self.look_at_tail()?;
        if self.visible() - self.head > self.capacity / 8 {
            // To walk over all of it would take long.
            let seen = Seen::look(&self.ring);
            if let Some(mark) = self.marks(&seen).max_by_key(|mark| mark.position) {
                self.jump_to(mark)?;
            }
        }
        let Some(walk) = self.walk(true, FARTHEST)? else {
            return Ok(false);
        };
        self.go_to(walk.last.unwrap_or(walk.end));
        Ok(true)
    }

    /// Gets past a message that is handed out.
    #[inline]
    fn hand_out(&mut self, at: u64, record: Record) {
        self.streamed += at + record.size - self.head;
        self.head = at + record.size;
        self.passed += 1;
        self.bytes += record.length as u64;
        self.count_lost();
    }

    /// Counts what was passed over before a message that is handed out now.
    #[inline]
    fn count_lost(&mut self) {
        if self.passed_over > 0 {
            self.lost += mem::take(&mut self.passed_over);
        }
    }

    /// The size of the next message. `None`: nothing is there. A reader that is not reliable may find another one when it receives.
    pub(crate) fn next_size(&mut self) -> Result<Option<usize>> {
        for _ in 0..TRIES {
            let Some((_, record)) = self.next()? else {
                return Ok(None);
            };
            if self.is_whole_or_begin_again()? {
                return Ok(Some(record.length));
            }
        }
        Ok(None)
    }

    /// The next message, into the beginning of `into`. `None`: nothing is there. Errors with [`Error::InvalidArgument`] where it is
    /// longer than `into`, and stays.
    #[inline]
    pub(crate) fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        for _ in 0..TRIES {
            let Some((at, record)) = self.next()? else {
                return Ok(None);
            };
            let room = into.len();
            let Some(place) = into.get_mut(..record.length) else {
                if self.is_whole_or_begin_again()? {
                    return Err(too_small(room, record.length));
                }
                continue;
            };
            self.ring.copy_out_ahead(record.at, place, record.end);
            if self.is_whole_or_begin_again()? {
                self.hand_out(at, record);
                return Ok(Some(record.length));
            }
        }
        Ok(None)
    }

    /// Visits the messages that are there, at most `max`, and returns how many there were.
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
        let stride = STRIDE.min(self.capacity / 4);
        let (mut count, mut overtaken) = (0, 0);
        while count < max && overtaken < TRIES {
            let Some((at, record)) = self.next()? else { break };
            match self.visit_from(at, record, max - count, &mut visit)? {
                0 => overtaken += 1,
                visited => count += visited,
            }
            if self.head - self.published >= stride {
                self.publish();
            }
        }
        Ok(count)
    }

    /// Visits this message, and maybe those that follow. 0: it was overtaken.
    #[inline]
    fn visit_from(
        &mut self,
        at: u64,
        record: Record,
        max: usize,
        visit: &mut impl FnMut(View<'_, R>),
    ) -> Result<usize> {
        if self.delivery == Delivery::Reliable && record.size > IN_PLACE {
            self.is_whole()?;
            visit(View::InRing(&self.ring, record));
            self.is_whole()?;
            self.hand_out(at, record);
            return Ok(1);
        }
        let single = self.is_single(record);
        let (from, bytes) = if single {
            (record.at, record.length)
        } else {
            (record.at - as_offset(HEADER), run(record, RUN))
        };
        let mut window = self.take_window(bytes)?;
        self.ring.copy_out_ahead(from, &mut window[..bytes], record.end);
        let visited = match self.is_whole_or_begin_again() {
            Ok(true) if single => {
                self.hand_out(at, record);
                visit(View::Copy(&window[..bytes]));
                Ok(1)
            }
            Ok(true) => self.visit_run(at, &window[..bytes], max, |message| visit(View::Copy(message))),
            Ok(false) => Ok(0),
            Err(error) => Err(error),
        };
        self.window = window;
        visited
    }

    /// Whether this record is copied by itself, and not with those that follow.
    #[inline]
    fn is_single(&self, record: Record) -> bool {
        record.aligned || record.size > RUN as u64 / 2 || self.delivery == Delivery::Latest
    }

    /// Room for a copy. It grows with the messages, of which the longest is known.
    #[inline]
    fn take_window(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut window = mem::take(&mut self.window);
        if window.len() < bytes.max(RUN) {
            let missing = bytes.max(RUN) - window.len();
            window
                .try_reserve_exact(missing)
                .map_err(|error| Error::NoSpace {
                    what: format!("a copy of a message of {bytes} bytes"),
                    reason: error.to_string(),
                })?;
            window.resize(bytes.max(RUN), 0);
        }
        Ok(window)
    }

    /// Visits the messages of a run, which was copied from this position and is whole.
    #[inline]
    fn visit_run(&mut self, at: u64, run: &[u8], max: usize, mut visit: impl FnMut(&[u8])) -> Result<usize> {
        let longest = self.longest;
        // No record begins where the ring ends, or behind it.
        let rest = as_offset(self.capacity - (at & (self.capacity - 1)));
        let mut passing = Passing {
            reader: self,
            at,
            bytes: 0,
            count: 0,
            payload: 0,
        };
        // An empty message, so that what is known is a header that can stand here: one of a size of 0 would be passed for ever.
        let (mut known, mut length, mut size) = (header(0, WHOLE), 0, as_offset(packed_size(0)));
        while passing.count < max && passing.bytes < rest {
            let Some(word) = run.get(passing.bytes..passing.bytes + 8) else {
                break;
            };
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            if word != known {
                // A branch, and no conditional move: where sizes are alike, the way to the next record waits for none.
                another_header();
                let (found, flags) = split(word);
                if flags != WHOLE || found > longest {
                    break;
                }
                (known, length, size) = (word, as_offset(found), as_offset(packed_size(found)));
            }
            let from = passing.bytes + as_offset(HEADER);
            let Some(message) = run.get(from..from + length) else {
                break;
            };
            if passing.bytes + size > run.len() {
                break;
            }
            visit(message);
            passing.bytes += size;
            passing.count += 1;
            passing.payload += length;
        }
        let count = passing.count;
        drop(passing);
        if count == 0 {
            return Err(corrupt("a record changed while it was read".into()));
        }
        Ok(count)
    }

    /// Copies whole messages, packed, as many as are there and fit. They follow each other: what was lost, was lost before the first.
    ///
    /// An error behind the first message is left to the next call, which finds it again: what was copied before it is whole.
    pub(crate) fn pull_packed(&mut self, into: &mut [u8]) -> Result<Pulled> {
        let (mut end, mut overtaken) = (0, 0);
        // Loads the tail once, and leaves later messages to the next call.
        while (end == 0 || !self.is_through()) && overtaken < TRIES {
            match self.pull_next(&mut into[end..], end == 0) {
                Ok(Pulled::Bytes(0)) => overtaken += 1,
                Ok(Pulled::Bytes(bytes)) => end += bytes,
                Ok(large @ Pulled::Large(_)) => return Ok(large),
                Err(error) if end == 0 => return Err(error),
                Ok(Pulled::Nothing) | Err(_) => break,
            }
        }
        self.publish();
        Ok(if end > 0 {
            Pulled::Bytes(end)
        } else {
            Pulled::Nothing
        })
    }

    /// One step of [`FanIn::pull_packed`]: copies the next message, and maybe those that follow. No bytes: it was overtaken.
    #[inline]
    fn pull_next(&mut self, into: &mut [u8], is_first: bool) -> Result<Pulled> {
        let Some((at, record)) = self.next()? else {
            return Ok(Pulled::Nothing);
        };
        if !is_first && self.passed_over > 0 {
            return Ok(Pulled::Nothing);
        }
        if as_offset(packed_size(record.length as u64)) <= into.len() {
            return self.pull(at, record, into).map(Pulled::Bytes);
        }
        Ok(match is_first {
            false => Pulled::Nothing,
            true if self.is_whole_or_begin_again()? => Pulled::Large(record.length),
            true => Pulled::Bytes(0),
        })
    }

    /// Copies this message, for which there is room, and maybe those that follow. 0: it was overtaken.
    fn pull(&mut self, at: u64, record: Record, into: &mut [u8]) -> Result<usize> {
        if self.is_single(record) {
            let (head, payload) = into.split_at_mut(as_offset(HEADER));
            head.copy_from_slice(&header(record.length as u64, WHOLE).to_le_bytes());
            self.ring
                .copy_out_ahead(record.at, &mut payload[..record.length], record.end);
            if !self.is_whole_or_begin_again()? {
                return Ok(0);
            }
            self.hand_out(at, record);
            return Ok(as_offset(packed_size(record.length as u64)));
        }
        let bytes = run(record, RUN.min(into.len()));
        let run = &mut into[..bytes];
        self.ring
            .copy_out_ahead(record.at - as_offset(HEADER), run, record.end);
        if !self.is_whole_or_begin_again()? {
            return Ok(0);
        }
        let before = self.head;
        self.visit_run(at, run, usize::MAX, |_| ())?;
        // Padding before the run is no part of it.
        Ok(as_offset(self.head - before.max(at)))
    }

    #[inline]
    pub(crate) fn ring(&self) -> &R {
        &self.ring
    }

    #[inline]
    pub(crate) fn validity(&self) -> &V {
        &self.validity
    }

    pub(crate) fn validity_mut(&mut self) -> &mut V {
        &mut self.validity
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

    #[inline]
    pub(crate) fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Reading ends at this position, as the publisher says, though it may go on for others.
    pub(crate) fn end_at(&mut self, position: u64) {
        // Records end at multiples of eight. Nothing else depends on this position.
        self.end = position & !7;
        self.until = 0;
    }

    /// The publisher has gone: looks at its tail for the last time, and tells no process any more how far everything was read.
    /// What is there is read where it lies, and nothing behind this tail.
    pub(crate) fn settle(&mut self) {
        if self.last.is_none() {
            self.last = Some(self.ring.load(layout::TAIL, Ordering::Acquire));
        }
        self.own = None;
    }

    /// Reading is over. `nothing`: a ring in which all words are 0. The counters stay.
    pub(crate) fn forget(&mut self, nothing: R) {
        self.ring = nothing;
        self.own = None;
        self.last = None;
        self.window = Vec::new();
        // As an empty ring has them.
        (self.head, self.tail, self.published, self.end) = (0, 0, 0, 0);
        self.until = 0;
    }
}

/// Returns how many bytes to copy from this record's header on, at most `most`: as many records as fit if all have its size.
#[inline]
fn run(record: Record, most: usize) -> usize {
    let bytes = (record.end - (record.at - as_offset(HEADER))).min(most);
    bytes - bytes % as_offset(record.size)
}

#[cold]
#[inline(never)]
fn another_header() {}

/// Messages of a run that are being handed out. The reader gets past them when this is dropped, also by a visit that panics.
struct Passing<'a, R: Readable, C: Writable, V: Validity> {
    reader: &'a mut FanIn<R, C, V>,
    /// The position of the run.
    at: u64,
    bytes: usize,
    count: usize,
    /// Bytes of their payloads.
    payload: usize,
}

impl<R: Readable, C: Writable, V: Validity> Drop for Passing<'_, R, C, V> {
    fn drop(&mut self) {
        if self.count > 0 {
            let reader = &mut *self.reader;
            let head = self.at + self.bytes as u64;
            reader.streamed += head - reader.head;
            reader.head = head;
            reader.passed += self.count as u64;
            reader.bytes += self.payload as u64;
            reader.count_lost();
        }
    }
}
