//! The ring of a pair, as the receiving half of a channel reads it: message by message, in fragments, and for the binding in blocks.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use memmap2::{MmapMut, RemapOptions};

use crate::{
    channel::end::Shared,
    channel::inbound::{ALL_AVAILABLE, Inbound, Inlet, check_phases, make_room},
    channel::open::{Link, POLLS_PER_LINE_CHECK},
    channel::stats::ChannelStats,
    error::{Error, Result},
    identity::Identity,
    region::copy::Readable,
    region::layout::{self, as_offset},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::message::{Message, Progress, too_small},
    ring::read::{Packed, WantedLengths},
    ring::record::{Record, Tag, WHOLE, packed_size},
    ring::spsc::{FragmentBuffer, PeerTail, SpscReader},
};

/// Bytes of memory for messages in fragments that are kept for the next such message.
const SCRATCH_LIMIT: usize = 16 << 20;
/// The same, if nothing is left to read.
const SCRATCH_LIMIT_IDLE: usize = 1 << 20;

/// The receiving half of a channel.
pub type Receiver = Inbound<PairInlet>;

/// The ring of a pair.
#[derive(Debug)]
pub struct PairInlet {
    peer: Arc<Identity>,
    /// The fragments of a message, if the caller's buffer cannot take them one by one.
    pub(super) scratch: Scratch,
    /// A message is being gathered in a buffer of the caller, through [`Receiver::receive_part`].
    gathered: bool,
    /// The position at which the ring was last found empty, and [`Inbound::on_empty`] called. Until this half reads on, it is enough to
    /// check the peer's tail.
    empty_at: Option<u64>,
}

impl Receiver {
    pub(super) fn new(
        reader: SpscReader<OwnRegion, PeerRegion>,
        peer: Arc<Identity>,
        link: Link,
        longest: u64,
        shared: Arc<Shared>,
    ) -> Self {
        let ring = PairInlet {
            peer,
            scratch: Scratch::default(),
            gathered: false,
            empty_at: None,
        };
        Self::over(reader, ring, link, longest, shared)
    }

    /// Returns the peer's identity in the handshake. [`Channel::peer`](crate::Channel::peer) returns that of the last check.
    pub fn peer(&self) -> &Identity {
        &self.ring.peer
    }

    /// Returns what this half has received, and what the other half last reported: it reports once in a lap of its ring, whenever it
    /// sleeps, and when it is asked itself. The last figures stay after the end.
    pub fn stats(&mut self) -> ChannelStats {
        self.reader.counted();
        self.shared.counters.snapshot()
    }

    /// Copies as much of the next message as is there to its place in `into`, for callers that wait in their own way. The same buffer,
    /// at least [`next_size`](Inbound::next_size) long, must be passed until the message is whole.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn receive_part(&mut self, into: &mut [u8]) -> Result<Progress> {
        self.check()?;
        if !self.collect_next()? {
            self.check_copies()?;
            return Ok(Progress::Part(0));
        }
        let so_far = self.reader.gathered_so_far();
        if so_far > 0 && !self.ring.gathered {
            // Another call has started the message, and has not waited for its end.
            let room = into.len();
            let place = into.get_mut(..so_far).ok_or_else(|| too_small(room, so_far))?;
            place.copy_from_slice(self.ring.scratch.bytes(so_far));
        }
        let gathered = self.reader.gather(into);
        let whole = self.judge_gathered(gathered)?;
        self.ring.gathered = self.reader.is_gathering();
        Ok(match whole {
            Some(_) => Progress::Whole,
            None => Progress::Part(self.reader.gathered_so_far()),
        })
    }

    /// Returns the tag of the next message, or of the one that is being gathered. `None`: nothing is there now.
    #[doc(hidden)]
    pub fn next_tag(&mut self) -> Result<Option<Tag>> {
        let size = self.next_size()?;
        Ok(size.map(|_| self.reader.limit.tag))
    }

    /// From now on this half receives frames of calls, and the caller handles them. Before, they are refused.
    #[doc(hidden)]
    pub fn accept_calls(&mut self) {
        self.reader.limit.accepts_calls = true;
    }

    /// Returns the tag of the message that [`receive_part`](Receiver::receive_part) has begun last.
    #[doc(hidden)]
    pub fn tag(&self) -> Tag {
        self.reader.limit.tag
    }

    #[inline]
    fn check_not_gathering(&self) -> Result<()> {
        if self.ring.gathered {
            return Err(gathering_error());
        }
        Ok(())
    }

    /// Copies a message that is one record, and consumes it. The record's header was read once: the peer may have changed it.
    #[inline]
    fn copy_whole(&mut self, record: Record, place: &mut [u8]) -> Result<()> {
        self.collect(record)?;
        self.reader.peer.copy_out_ahead(record.at, place, record.end);
        self.check_copies()?;
        self.reader.deliver(record);
        self.publish_and_wake();
        Ok(())
    }

    /// Whether nothing has arrived since the ring was last found empty. Returns `false` every [`POLLS_PER_LINE_CHECK`] calls, so that
    /// the line is read.
    #[inline]
    fn is_still_empty(&mut self) -> bool {
        // First what a reader that has more to read checks anyhow.
        if !self.reader.is_drained()
            || self.ring.empty_at != Some(self.reader.position())
            || self.empty_polls + 1 >= POLLS_PER_LINE_CHECK
            || !self.reader.is_still_empty()
        {
            return false;
        }
        self.empty_polls += 1;
        true
    }

    /// Handles an empty ring, or the error of a read.
    #[cold]
    fn on_no_record<T>(&mut self, found: Result<Option<T>>) -> Result<()> {
        self.judge(found)?;
        self.on_empty()
    }

    fn receive_fragments(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.check_not_gathering()?;
        let Some(size) = self.size_of_next()? else {
            return Ok(None);
        };
        if size > into.len() {
            return Err(too_small(into.len(), size));
        }
        let Some(length) = self.gather_in_scratch()? else {
            return Ok(None);
        };
        into[..length].copy_from_slice(self.ring.scratch.bytes(length));
        self.shrink(SCRATCH_LIMIT);
        Ok(Some(length))
    }

    fn gather_in_scratch(&mut self) -> Result<Option<usize>> {
        if !self.collect_next()? {
            return Ok(None);
        }
        let gathered = self.reader.gather_in(&mut self.ring.scratch);
        self.judge_gathered(gathered)
    }

    /// Returns the size of a message whose last fragment was copied. It counts once that was found whole.
    fn judge_gathered(&mut self, gathered: Result<Option<usize>>) -> Result<Option<usize>> {
        self.wake_if_published();
        let gathered = self.judge(gathered)?;
        self.check_copies()?;
        if gathered.is_some() {
            self.reader.count();
            self.mark_gathered();
        }
        Ok(gathered)
    }

    fn gather_into(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        if !self.collect_next()? {
            return Ok(false);
        }
        let scratch = &mut self.ring.scratch;
        let gathered = self.reader.gather_in(&mut WithRoom { scratch, into });
        let Some(length) = self.judge_gathered(gathered)? else {
            return Ok(false);
        };
        into.extend_from_slice(self.ring.scratch.bytes(length));
        self.shrink(SCRATCH_LIMIT);
        Ok(true)
    }

    #[inline]
    pub(super) fn receive_records(
        &mut self,
        pull: impl FnOnce(&mut SpscReader<OwnRegion, PeerRegion>) -> Result<Packed>,
    ) -> Result<Packed> {
        self.check()?;
        self.check_not_gathering()?;
        if self.reader.is_gathering() {
            return Ok(self.reader.next_size()?.map_or(Packed::Nothing, Packed::Large));
        }
        let pulled = pull(&mut self.reader);
        let pulled = self.judge(pulled)?;
        self.check_copies()?;
        match pulled {
            Packed::Bytes(_) => self.reader.count(),
            Packed::Large(_) => {}
            Packed::Nothing => self.on_empty()?,
        }
        Ok(pulled)
    }

    /// Visits a message that comes in fragments, if all of it is there.
    #[cold]
    fn visit_gathered(&mut self, visit: &mut dyn FnMut(Message<'_>)) -> Result<bool> {
        if self.next_size()?.is_none() {
            return Ok(false);
        }
        let Some(length) = self.gather_in_scratch()? else {
            return Ok(false);
        };
        let message = Message::gathered(self.ring.scratch.bytes(length));
        visit(message.tagged(self.reader.limit.tag));
        self.shrink(SCRATCH_LIMIT);
        Ok(true)
    }

    /// Keeps no more than this for messages in fragments, unless one is being gathered.
    fn shrink(&mut self, limit: usize) {
        if self.ring.scratch.size() > limit && !self.reader.is_gathering() {
            self.ring.scratch.release();
        }
    }
}

impl Inlet for PairInlet {
    const NAME: &'static str = "Receiver";
    type Limit = PeerTail;

    fn counted(half: &mut Receiver) -> (u64, u64) {
        half.reader.counted()
    }

    #[inline]
    fn phase_word(half: &Receiver) -> u64 {
        half.reader.peer.load(layout::PHASE, Ordering::Acquire)
    }

    #[inline]
    fn check_copies(half: &Receiver) -> Result<()> {
        fence(Ordering::Acquire);
        let peers = half.reader.peer.load(layout::PHASE, Ordering::Relaxed);
        let own = half.reader.own.load(layout::PHASE, Ordering::Relaxed);
        check_phases::<false>(&half.shared, peers, own)
    }

    fn release_own(half: &mut Receiver) {
        half.reader.freeze_tail(OwnRegion::detached());
    }

    fn release_all(half: &mut Receiver) {
        if !half.reader.peer.is_detached() {
            half.reader.detach(OwnRegion::detached(), PeerRegion::detached());
            half.ring.scratch.release();
        }
    }

    fn shrink_idle(half: &mut Receiver) {
        half.ring.empty_at = Some(half.reader.position());
        half.shrink(SCRATCH_LIMIT_IDLE);
    }

    #[inline]
    fn try_receive(half: &mut Receiver, into: &mut [u8]) -> Result<Option<usize>> {
        let record = if let Some(record) = half.reader.known_record() {
            record
        } else {
            if half.reader.is_gathering() || half.ring.gathered {
                return half.receive_fragments(into);
            }
            if half.is_still_empty() {
                return Ok(None);
            }
            match half.reader.next_record() {
                Ok(Some(record)) if record.flags == WHOLE => record,
                Ok(Some(_)) => return half.receive_fragments(into),
                other => return half.on_no_record(other).map(|()| None),
            }
        };
        let Some(place) = into.get_mut(..record.length) else {
            return Err(too_small(into.len(), record.length));
        };
        half.copy_whole(record, place)?;
        Ok(Some(record.length))
    }

    #[inline]
    fn try_receive_into(half: &mut Receiver, into: &mut Vec<u8>) -> Result<bool> {
        half.check_not_gathering()?;
        if half.reader.is_gathering() {
            return half.gather_into(into);
        }
        match half.reader.next_record() {
            Ok(Some(record)) if record.flags == WHOLE => {
                make_room(into, record.length)?;
                into.resize(record.length, 0);
                half.copy_whole(record, into)?;
                Ok(true)
            }
            Ok(Some(_)) => half.gather_into(into),
            other => half.on_no_record(other).map(|()| false),
        }
    }

    fn receive_packed(half: &mut Receiver, into: &mut [u8]) -> Result<Packed> {
        half.receive_records(|consumer| consumer.pull_packed(into))
    }

    #[inline]
    fn visit(
        half: &mut Receiver,
        whole: &mut usize,
        mut visit: impl FnMut(Message<'_>),
        max: usize,
        bytes: u64,
    ) -> Result<bool> {
        half.check_not_gathering()?;
        if max > 0 && !half.reader.is_gathering() && half.is_still_empty() {
            return Ok(true);
        }
        let start = half.reader.position();
        let mut count = 0;
        let mut empty = false;
        let loads = half.reader.tail_loads;
        while count < max {
            let consumer = &mut half.reader;
            let is_over = consumer.is_drained() && consumer.tail_loads != loads;
            if bytes == ALL_AVAILABLE && is_over {
                break;
            }
            let spent = consumer.position() - start;
            if spent >= bytes {
                break;
            }
            let record = if let Some(record) = consumer.known_record() {
                record
            } else {
                match consumer.next_record() {
                    Ok(Some(record)) => record,
                    other => {
                        half.on_no_record(other)?;
                        empty = true;
                        break;
                    }
                }
            };
            let mut attached = record.tag.attachments() > 0;
            if record.flags == WHOLE {
                half.collect(record)?;
                let consumer = &mut half.reader;
                let row = if attached {
                    1
                } else if bytes == ALL_AVAILABLE {
                    max - count
                } else {
                    // As many as fit if all are as long as the first.
                    let fitting =
                        usize::try_from((bytes - spent).div_ceil(packed_size(record.length as u64)))
                            .unwrap_or(usize::MAX);
                    fitting.min(max - count)
                };
                count += consumer.visit_in_row(record, row, |peer, record| {
                    let message = Message::in_ring(peer, record.at, record.length, record.end);
                    visit(message.tagged(record.tag));
                });
                consumer.publish_stride();
                half.check_copies()?;
                half.reader.count();
                half.wake_if_worthwhile();
            } else {
                if !half.visit_gathered(&mut visit)? {
                    empty = true;
                    break;
                }
                attached = half.reader.limit.tag.attachments() > 0;
                count += 1;
            }
            *whole = count;
            // The caller takes them before the next message.
            if attached {
                break;
            }
        }
        half.publish_and_wake();
        Ok(empty)
    }
}

/// Puts a message together, and makes room in a `Vec` for all of it before the last piece is consumed: if there is none, that piece is
/// still in the ring.
struct WithRoom<'a> {
    scratch: &'a mut Scratch,
    into: &'a mut Vec<u8>,
}

impl FragmentBuffer for WithRoom<'_> {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        if to == size {
            make_room(self.into, size)?;
        }
        self.scratch.room(size, from, to)
    }
}

#[cold]
fn gathering_error() -> Error {
    Error::invalid("a message is being gathered with receive_part: finish it first")
}

/// The messages that [`pull_again`] can return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// Each of them.
    Each,
    /// All unless it is a single one, which the caller hands out before any program runs.
    Several,
}

/// Like [`Receiver::try_receive_packed`], only for messages of `lengths`, into memory that was not used lately. They are held until
/// [`release`], or until the next call that receives: until then [`pull_again`] returns them. At most a quarter of the ring is held, or
/// one message.
pub fn pull_retained(
    receiver: &mut Receiver,
    into: &mut [u8],
    lengths: RangeInclusive<usize>,
    retain: Retain,
) -> Result<Packed> {
    release(receiver);
    let wanted = WantedLengths::fresh(&lengths, false);
    let packed = receiver.receive_records(|consumer| consumer.pull_retained(into, &wanted))?;
    if retain == Retain::Several && packed == Packed::Bytes(first_record_size(into)) {
        release(receiver);
    }
    Ok(packed)
}

/// Like [`Receiver::try_receive_packed`], for call frames of `lengths`, into memory that was not used lately. [`Packed::Large`]: the next one
/// does not fit or has another length, or a message is next.
pub fn pull_calls(
    receiver: &mut Receiver,
    into: &mut [u8],
    lengths: RangeInclusive<usize>,
) -> Result<Packed> {
    let wanted = WantedLengths::fresh(&lengths, true);
    receiver.receive_records(|consumer| consumer.pull_calls(into, &wanted))
}

/// Copies the held messages again, without the first `passed` bytes: whole messages, as many as fit. Errors as
/// [`Receiver::try_receive`], and with [`Error::RingCorrupt`] if the peer has overwritten them.
pub fn pull_again(receiver: &mut Receiver, into: &mut [u8], passed: usize) -> Result<Packed> {
    receiver.receive_records(|consumer| consumer.pull_again(into, passed))
}

/// Publishes that the held messages were read, and wakes a peer that waits for room.
pub fn release(receiver: &mut Receiver) {
    if !receiver.shared.is_inherited() && receiver.reader.publish() {
        receiver.wake_if_parked();
    }
}

/// Bytes of the first of some records.
fn first_record_size(packed: &[u8]) -> usize {
    let length = packed
        .first_chunk()
        .map_or(0, |length| u32::from_le_bytes(*length));
    as_offset(packed_size(length.into()))
}

/// Memory in which a message in fragments is assembled.
///
/// The peer chooses its size. A peer that announces a size and sends nothing more must not cause that much memory to be allocated. So it
/// grows with the bytes received. It is a separate mapping instead of a `Vec`: it grows without a copy, a shortage is an error and no abort,
/// and released memory returns to the system rather than to the allocator.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<MmapMut>);

impl Scratch {
    /// Returns the number of bytes that are mapped. Pages use memory once they are written.
    pub(crate) fn size(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// Returns the first `length` bytes of the message. The caller has made room for them.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| &map[..length])
    }

    pub(crate) fn release(&mut self) {
        self.0 = None;
    }

    fn grow(&mut self, size: usize) -> std::io::Result<()> {
        match &mut self.0 {
            None => self.0 = Some(MmapMut::map_anon(size)?),
            // ThreadSanitizer does not track mremap(2): it would take a moved mapping for another thread's
            // memory.
            Some(map) if cfg!(ringfence_tsan) => {
                let mut larger = MmapMut::map_anon(size)?;
                larger[..map.len()].copy_from_slice(map);
                *map = larger;
            }
            // SAFETY: the mapping belongs to this value, no other code has a reference into it (this takes an
            // exclusive one), and it is anonymous, so that there is memory behind all of the new size.
            Some(map) => unsafe { map.remap(size, RemapOptions::new().may_move(true)) }?,
        }
        Ok(())
    }
}

impl FragmentBuffer for Scratch {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        let mapped = self.size();
        if mapped < to {
            // Double the size for fewer calls. If that fails, only what is needed.
            let wanted = to.max(2 * mapped).min(size);
            self.grow(wanted)
                .or_else(|_| self.grow(to))
                .map_err(|error| Error::no_space(format!("{to} of the {size} bytes of a message"), error))?;
        }
        match &mut self.0 {
            Some(map) => Ok(&mut map[from..to]),
            None => Ok(&mut []),
        }
    }
}
