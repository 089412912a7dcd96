//! The reading half of a channel.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::Instant,
};

use crate::{
    channel::end::{ChannelState, CloseReason, Shared},
    channel::open::{LOOKS_PER_GLANCE, Link},
    channel::scratch::Scratch,
    channel::stats::ChannelStats,
    channel::waiting::{Awaited, Parking, SpinThenPark, Waits},
    error::{Error, Result},
    identity::Identity,
    region::copy::Readable,
    region::layout,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::{Phase, Step},
    ring::consumer::{Consumer, Gathered, Place, Pulled},
    ring::message::{Message, Progress, too_small},
    ring::record::{Record, WHOLE, packed_size},
};

/// Memory for messages in fragments that is kept for the next such message.
const SCRATCH_KEPT: usize = 16 << 20;
/// The same, where nothing is left to read.
const SCRATCH_KEPT_IDLE: usize = 1 << 20;

/// In place of a number of bytes: what was there when a visit began.
const ALL_THAT_IS_THERE: u64 = u64::MAX;

/// The reading half of a channel.
#[derive(Debug)]
pub struct Receiver {
    pub(crate) consumer: Consumer<OwnRegion, PeerRegion>,
    /// `None` once the peer is gone, or the channel has ended.
    pub(crate) link: Option<Link>,
    /// The peer was gone before it had said that no more would come; known once there is no link.
    pub(crate) cut: bool,
    pub(crate) longest: u64,
    pub(crate) peer: Arc<Identity>,
    /// The fragments of a message, where the caller's buffer cannot take them one by one.
    pub(crate) scratch: Scratch,
    /// A message is being gathered in a buffer of the caller's, through [`Receiver::receive_part`].
    pub(crate) gathered: bool,
    pub(crate) fruitless: u32,
    /// How far this half had read when it last found nothing and did all that follows on that: until it reads on, to look is enough.
    pub(crate) dry_at: Option<u64>,
    /// How far this half had read when it last looked whether the peer sleeps.
    pub(crate) woken: u64,
    /// How often the peer's tail had been looked at when the caller's round began.
    pub(crate) round: u64,
    /// Behind the consumer, which tells its last figures when it is dropped: what is told counts until this is gone.
    pub(crate) shared: Arc<Shared>,
}

impl Receiver {
    /// Who the peer was in the handshake. [`Channel::peer`](crate::Channel::peer) tells of a later look.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Bytes of the longest message that this side takes.
    pub fn max_message_size(&self) -> u64 {
        self.longest
    }

    /// What this half has received by now, and what the other half has told last: once in a lap of its ring, and each time that it sleeps
    /// or is asked itself. The last figures stay after the end.
    pub fn stats(&mut self) -> ChannelStats {
        self.consumer.counted();
        self.shared.counters.told()
    }

    /// What keeps this half from reading: this side's own close, or a lie. A peer that is gone does not: what it
    /// has left is still read.
    #[inline]
    fn check(&mut self) -> Result<()> {
        if self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            Ok(())
        } else {
            self.check_ended()
        }
    }

    #[cold]
    fn check_ended(&mut self) -> Result<()> {
        if self.shared.peer_is_gone() {
            self.settle();
            if self.shared.receiving_ended.load(Ordering::Acquire) {
                self.let_go();
            }
            return Ok(());
        }
        let ended = self.shared.check();
        self.let_go();
        match ended {
            // Everything was read before the channel closed: that is an end, not an error.
            Err(Error::Closed(_)) if self.shared.has_read_all() => Ok(()),
            other => other,
        }
    }

    /// Lets go of this side's region. The peer's stays mapped until what it left was read: this half is the last that has it.
    fn settle(&mut self) {
        if self.link.take().is_some() {
            self.cut = self.seems_cut();
            self.consumer.settle(OwnRegion::nowhere());
        }
    }

    /// Lets go of both regions; there is nothing more to read.
    fn let_go(&mut self) {
        self.link = None;
        if !self.consumer.peer().is_nowhere() {
            self.consumer.forget(OwnRegion::nowhere(), PeerRegion::nowhere());
            self.scratch.give_back();
        }
    }

    /// What the peer's region says: that it may have meant to send more.
    fn seems_cut(&self) -> bool {
        let word = self.consumer.peer().load(layout::PHASE, Ordering::Acquire);
        Phase::from_word(word).is_none_or(|phase| !phase.ended)
    }

    /// What was copied out of the peer's memory since the last look is what it had sent: a peer whose memory is exposed
    /// says so before it wipes it. And where this side has ended the channel, on another thread, the peer wipes what this half
    /// would have read, but not before this side's own phase has told it.
    #[inline]
    fn must_be_whole(&mut self) -> Result<()> {
        fence(Ordering::Acquire);
        let peers = self.consumer.peer().load(layout::PHASE, Ordering::Relaxed);
        if peers == Phase::EXPOSED.word() {
            return self.exposed();
        }
        let own = self.consumer.own().load(layout::PHASE, Ordering::Relaxed);
        if own > Phase::ENDED.word() {
            return self.ended_meanwhile();
        }
        Ok(())
    }

    #[cold]
    fn ended_meanwhile(&mut self) -> Result<()> {
        self.shared.wait_for_end();
        self.check()
    }

    #[cold]
    fn exposed(&self) -> Result<()> {
        self.shared.finish(ChannelState::ExposedAtPeer);
        self.shared.check()
    }

    #[inline]
    fn must_not_be_gathering(&self) -> Result<()> {
        if self.gathered {
            return Err(still_gathering());
        }
        Ok(())
    }

    /// The next message, into the beginning of `into`. `None`: nothing is there now (see [`Receiver::is_ended`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the message is longer than `into` (it stays there), or is being read with
    /// [`Receiver::receive_part`]; [`Error::NoSpace`] where there is no memory to put the fragments of a message together: the
    /// channel lives, the message stays, and the next call goes on with it (or [`Receiver::receive_part`], in memory of the
    /// caller's own); [`Error::RingCorrupt`]; [`Error::ObjectExposed`] where another process has tried to open the memory of
    /// either side; [`Error::Closed`] after this side's close.
    #[inline]
    pub fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.check()?;
        if self.consumer.is_gathering() || self.gathered {
            return self.try_receive_fragments(into);
        }
        if self.is_still_dry() {
            return Ok(None);
        }
        let record = match self.consumer.next_record() {
            Ok(Some(record)) if record.flags == WHOLE => record,
            Ok(Some(_)) => return self.try_receive_fragments(into),
            other => return self.not_received(other),
        };
        let Some(place) = into.get_mut(..record.length) else {
            return Err(too_small(into.len(), record.length));
        };
        self.take_whole(record, place)?;
        Ok(Some(record.length))
    }

    /// Copies a message that is one record, and gets past it. The record was read once: its header may be another by now.
    #[inline]
    fn take_whole(&mut self, record: Record, place: &mut [u8]) -> Result<()> {
        self.consumer.peer().copy_out_ahead(record.at, place, record.end);
        self.must_be_whole()?;
        self.consumer.hand_out(record);
        self.tell();
        Ok(())
    }

    /// Whether nothing has come since the last look, after which the peer was told and rung for all that it may wait for. Now and
    /// then this answers `false` all the same, so that the line is looked at.
    #[inline]
    fn is_still_dry(&mut self) -> bool {
        // First what a reader that has more to read must look at anyhow.
        if !self.consumer.is_through()
            || self.dry_at != Some(self.consumer.position())
            || self.fruitless + 1 >= LOOKS_PER_GLANCE
            || !self.consumer.is_still_empty()
        {
            return false;
        }
        self.fruitless += 1;
        true
    }

    /// What follows on a look that found nothing, or a lie.
    #[cold]
    fn not_received(&mut self, result: Result<Option<Record>>) -> Result<Option<usize>> {
        self.shared.judge(result)?;
        self.ring_if_published();
        self.dry_at = Some(self.consumer.position());
        self.give_back(SCRATCH_KEPT_IDLE);
        self.fruitless += 1;
        if self.fruitless >= LOOKS_PER_GLANCE {
            self.fruitless = 0;
            self.shared.doorbell.look();
            self.shared.notice();
            self.check()?;
        }
        Ok(None)
    }

    /// Publishes the head and wakes a peer that waits for room.
    #[inline]
    fn tell(&mut self) {
        self.consumer.publish();
        self.wake_at_once();
    }

    #[inline]
    fn ring_if_published(&mut self) {
        if self.link.as_mut().is_some_and(|link| link.waker.must_ring()) {
            self.shared.doorbell.ring();
        }
    }

    fn try_receive_fragments(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.must_not_be_gathering()?;
        let Some(size) = self.next_size()? else {
            return Ok(None);
        };
        if size > into.len() {
            return Err(too_small(into.len(), size));
        }
        let Some(length) = self.gather_in_scratch()? else {
            return Ok(None);
        };
        into[..length].copy_from_slice(self.scratch.bytes(length));
        self.give_back(SCRATCH_KEPT);
        Ok(Some(length))
    }

    /// Keeps no more memory for messages in fragments than this, unless one is under way.
    fn give_back(&mut self, kept: usize) {
        if self.scratch.size() > kept && !self.consumer.is_gathering() {
            self.scratch.give_back();
        }
    }

    fn gather_in_scratch(&mut self) -> Result<Option<usize>> {
        let gathered = self.consumer.gather_in(&mut self.scratch);
        self.judge_gathered(gathered)
    }

    /// The size of a message whose last fragment was copied; it counts once that is found whole.
    fn judge_gathered(&mut self, gathered: Result<Gathered>) -> Result<Option<usize>> {
        self.ring_if_published();
        let gathered = self.shared.judge(gathered)?;
        self.must_be_whole()?;
        match gathered {
            Gathered::Whole(size) => {
                self.consumer.count();
                Ok(Some(size))
            }
            Gathered::Part | Gathered::Nothing => Ok(None),
        }
    }

    fn gather_into(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        let mut place = WithRoom {
            scratch: &mut self.scratch,
            into,
        };
        let gathered = self.consumer.gather_in(&mut place);
        let Some(length) = self.judge_gathered(gathered)? else {
            return Ok(false);
        };
        into.extend_from_slice(self.scratch.bytes(length));
        self.give_back(SCRATCH_KEPT);
        Ok(true)
    }

    /// The size of the next message, in bytes, once its beginning is there. `None`: nothing is there now.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn next_size(&mut self) -> Result<Option<usize>> {
        self.check()?;
        let size = self.consumer.next_size();
        let size = self.shared.judge(size)?;
        if size.is_none() {
            self.not_received(Ok(None))?;
        }
        Ok(size)
    }

    /// The next message, into the beginning of `into`; sleeps until there is one. `None`: no more will come, and everything was
    /// read.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.take_by(None, |receiver| receiver.try_receive(into))
    }

    /// As [`Receiver::receive`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    ///
    /// ```no_run
    /// use std::time::{Duration, Instant};
    ///
    /// use ringfence::ErrorKind;
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (_sender, mut receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut message = [0; 1024];
    /// match receiver.receive_until(&mut message, Instant::now() + Duration::from_secs(1)) {
    ///     Ok(Some(length)) => println!("{length} bytes"),
    ///     Ok(None) => println!("the peer has ended"),
    ///     Err(error) if error.kind() == ErrorKind::TimedOut => println!("nothing for a second"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn receive_until(&mut self, into: &mut [u8], deadline: Instant) -> Result<Option<usize>> {
        self.take_by(Some(deadline), |receiver| receiver.try_receive(into))
    }

    /// The next message, in memory of its own size. `None`: nothing is there now (see [`Receiver::is_ended`]).
    ///
    /// # Errors
    /// As [`Receiver::try_receive`], and [`Error::NoSpace`] where there is no memory for it: the channel lives, and the message stays.
    pub fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        Ok(self.try_receive_into(&mut message)?.then_some(message))
    }

    /// As [`Receiver::try_receive_vec`], for a caller that uses the same memory again. After `false`, `into` has nothing of a message.
    #[inline]
    pub(crate) fn try_receive_into(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        self.check()?;
        self.must_not_be_gathering()?;
        if self.consumer.is_gathering() {
            return self.gather_into(into);
        }
        match self.consumer.next_record() {
            Ok(Some(record)) if record.flags == WHOLE => {
                make_room(into, record.length)?;
                into.resize(record.length, 0);
                self.take_whole(record, into)?;
                Ok(true)
            }
            Ok(Some(_)) => self.gather_into(into),
            other => self.not_received(other).map(|_| false),
        }
    }

    /// The next message, in memory of its own size; sleeps until there is one. `None`: no more will come, and everything was read.
    ///
    /// A message longer than half the peer's ring is put together first, in memory that grows with what has come: a peer that
    /// names a size and sends no more takes none by that.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (_sender, mut receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut all = Vec::new();
    /// while let Some(message) = receiver.receive_vec()? {
    ///     all.push(message); // a Vec<u8> of its own
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Receiver::try_receive_vec`].
    pub fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        self.take_by(None, Self::try_receive_vec)
    }

    /// As [`Receiver::receive_vec`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    pub fn receive_vec_until(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        self.take_by(Some(deadline), Self::try_receive_vec)
    }

    /// Copies as much of the next message as is there to its place in `into`, for callers that wait in a way of their own. The
    /// same buffer, at least [`Receiver::next_size`] long, must be passed until the message is whole.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn receive_part(&mut self, into: &mut [u8]) -> Result<Progress> {
        self.check()?;
        let so_far = self.consumer.gathered_so_far();
        if so_far > 0 && !self.gathered {
            // Another call has begun it, and has not waited for its end.
            let room = into.len();
            let place = into.get_mut(..so_far).ok_or_else(|| too_small(room, so_far))?;
            place.copy_from_slice(self.scratch.bytes(so_far));
        }
        let gathered = self.consumer.gather(into);
        let whole = self.judge_gathered(gathered)?;
        self.gathered = self.consumer.is_gathering();
        Ok(match whole {
            Some(_) => Progress::Whole,
            None => Progress::Part(self.consumer.gathered_so_far()),
        })
    }

    /// Copies whole messages, laid out as the ring has short ones (see
    /// [`Sender::try_send_packed`](crate::Sender::try_send_packed)), as many as are there and fit.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn try_receive_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = self.receive_packed(into);
        self.wake_at_once();
        packed
    }

    /// As [`Receiver::try_receive_packed`], for a caller who will call again at once: a peer that sleeps for want of room
    /// is woken only where there is much of it (a quarter of the ring), or nothing left to read, since a waking costs
    /// both sides more than many messages. A caller that stops before that must call [`Receiver::wake`].
    pub fn try_receive_more_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = self.receive_packed(into);
        self.wake_if_worthwhile();
        packed
    }

    /// For callers who read until nothing is there, and are to stop however fast the peer sends: a round begins, whose
    /// messages are those that are there now. It ends when [`Receiver::is_round_over`] says so.
    pub fn begin_round(&mut self) {
        self.round = self.consumer.looks();
    }

    /// Whether everything was read that was there when the round began. Does not look whether more has come: that is for
    /// the next round.
    pub fn is_round_over(&self) -> bool {
        self.consumer.is_through() && self.consumer.looks() != self.round
    }

    #[inline]
    fn wake_if_worthwhile(&mut self) {
        if self.consumer.position().saturating_sub(self.woken) >= self.consumer.capacity() / 4 {
            self.wake_at_once();
        }
    }

    /// Wakes a peer that sleeps until there is room, if anything was read since it parked.
    pub fn wake(&mut self) {
        // Here, and not in what follows on each message: those calls have let go of a parent's ring by then.
        if !self.shared.is_inherited() {
            self.wake_at_once();
        }
    }

    #[inline]
    pub(super) fn wake_at_once(&mut self) {
        self.woken = self.consumer.position();
        self.ring_if_published();
    }

    fn receive_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        self.receive_records(|consumer| consumer.pull_packed(into))
    }

    #[inline]
    pub(super) fn receive_records(
        &mut self,
        pull: impl FnOnce(&mut Consumer<OwnRegion, PeerRegion>) -> Result<Pulled>,
    ) -> Result<Packed> {
        self.check()?;
        self.must_not_be_gathering()?;
        if self.consumer.is_gathering() {
            return Ok(self.consumer.next_size()?.map_or(Packed::Nothing, Packed::Large));
        }
        let pulled = pull(&mut self.consumer);
        let pulled = self.shared.judge(pulled)?;
        self.must_be_whole()?;
        match pulled {
            Pulled::Bytes(bytes) => {
                self.consumer.count();
                Ok(Packed::Bytes(bytes))
            }
            Pulled::Large(size) => Ok(Packed::Large(size)),
            Pulled::Nothing => {
                self.not_received(Ok(None))?;
                Ok(Packed::Nothing)
            }
        }
    }

    /// Visits the messages that are there, where they lie, at most `max`, and returns how many. It ends with those that were there
    /// when it was called, however fast the peer sends. (Where an earlier call has left some that it knew of, it visits these, and
    /// then what is there by then, once.)
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (_sender, mut receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut bytes = 0;
    /// while receiver.wait(None)? && !receiver.is_ended()? {
    ///     receiver.drain(|message| bytes += message.len(), 1000)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Receiver::try_receive`]. With [`Error::ObjectExposed`], or [`Error::Closed`] if this side was closed on another thread, the
    /// last visits may have seen zeros: the peer has wiped its memory in the meantime. Discard what they saw; [`Receiver::stats`] does
    /// not count them.
    #[inline]
    pub fn drain(&mut self, visit: impl FnMut(Message<'_>), max: usize) -> Result<usize> {
        let Visited { count, dry } = self.visit(visit, max, ALL_THAT_IS_THERE);
        dry.map(|_| count)
    }

    /// As [`Receiver::drain`], for about `bytes` bytes, which need not be there yet: a row of messages is as long as that allows if
    /// all are like its first.
    #[inline]
    pub(crate) fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        let mut count = 0;
        let dry = self.visit_counting(&mut count, visit, max, bytes);
        Visited { count, dry }
    }

    #[inline]
    fn visit_counting(
        &mut self,
        whole: &mut usize,
        mut visit: impl FnMut(Message<'_>),
        max: usize,
        bytes: u64,
    ) -> Result<bool> {
        self.check()?;
        self.must_not_be_gathering()?;
        if max > 0 && !self.consumer.is_gathering() && self.is_still_dry() {
            return Ok(true);
        }
        let began = self.consumer.position();
        let mut count = 0;
        let mut dry = false;
        let looks = self.consumer.looks();
        while count < max {
            let is_over = self.consumer.is_through() && self.consumer.looks() != looks;
            if bytes == ALL_THAT_IS_THERE && is_over {
                break;
            }
            let spent = self.consumer.position() - began;
            if spent >= bytes {
                break;
            }
            let record = match self.consumer.next_record() {
                Ok(Some(record)) => record,
                other => {
                    self.not_received(other)?;
                    self.must_be_whole()?;
                    dry = true;
                    break;
                }
            };
            if record.flags == WHOLE {
                let row = if bytes == ALL_THAT_IS_THERE {
                    max - count
                } else {
                    let fitting =
                        usize::try_from((bytes - spent).div_ceil(packed_size(record.length as u64)))
                            .unwrap_or(usize::MAX);
                    fitting.min(max - count)
                };
                count += self.consumer.visit_in_row(record, row, |peer, record| {
                    visit(Message::in_ring(peer, record.at, record.length, record.end));
                });
                self.must_be_whole()?;
                self.consumer.count();
                self.wake_if_worthwhile();
            } else {
                if !self.visit_gathered(&mut visit)? {
                    dry = true;
                    break;
                }
                count += 1;
            }
            *whole = count;
        }
        self.tell();
        Ok(dry)
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
        visit(Message::gathered(self.scratch.bytes(length)));
        self.give_back(SCRATCH_KEPT);
        Ok(true)
    }

    /// Whether there is something to read now (for a message in fragments, its beginning or its next).
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn has_message(&mut self) -> Result<bool> {
        self.check()?;
        let available = self.consumer.available();
        self.shared.judge(available)
    }

    /// Whether no more will come, and everything was read.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn is_ended(&mut self) -> Result<bool> {
        if self.shared.has_read_all() {
            return Ok(true);
        }
        if self.has_message()? {
            return Ok(false);
        }
        if self.link.is_none() {
            // The peer has gone, and all that it left was read. What its region says now counts no more.
            self.shared.receiving_ended.store(true, Ordering::Release);
            self.let_go();
            return Ok(true);
        }
        let word = self.consumer.peer().load(layout::PHASE, Ordering::Acquire);
        let phase = Phase::from_word(word).ok_or_else(|| Error::RingCorrupt(format!("its phase is {word}")));
        let phase = self.shared.judge(phase)?;
        // What was published before the peer said that it ends is seen by a look after that.
        if phase.is_open() || self.has_message()? {
            return Ok(false);
        }
        self.must_be_whole()?;
        self.shared.hear_out();
        self.shared.receiving_ended.store(true, Ordering::Release);
        match phase.step {
            Step::Closed | Step::Succeeds => self.shared.finish(ChannelState::ClosedByPeer),
            Step::Left => self.shared.finish(ChannelState::LeftByPeer),
            Step::Evicted => self.shared.finish(ChannelState::EvictedByPeer),
            Step::Open | Step::Exposed => {}
        }
        self.shared.finish_if_both_ended();
        // A program may keep this half for long, and call it no more.
        if !self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            self.settle();
            self.let_go();
        }
        Ok(true)
    }

    /// Sleeps until there is something to read, or no more will come. `false`: the deadline has passed.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.wait_until((), deadline)
    }

    /// For event loops: says that this half sleeps until there is something to read. `true`: there is nothing now; wait for the
    /// line ([`AsFd`]) to be readable, then call [`Receiver::poll_line`] and [`Receiver::disarm`]. `false`: there is something,
    /// or no more will come.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`], with [`Error::NoSpace`] also where another thread sleeps in a call since before there was
    /// a loop, and the descriptors to tell the loop with have run out.
    pub fn arm(&mut self) -> Result<bool> {
        self.arm_for(())
    }

    /// Says that this half is awake.
    pub fn disarm(&mut self) {
        self.unpark();
    }

    /// Reads whatever has come over the line, and notices a peer that is gone. What it has left can be read still, and its
    /// memory stays mapped until then.
    ///
    /// # Errors
    /// As [`Receiver::try_receive`].
    pub fn poll_line(&mut self) -> Result<()> {
        self.read_line()
    }

    /// As [`Receiver::poll_line`], where the line is readable and nothing says that it has ended: it is read when either half
    /// is armed next, so that an answer can go first. Where that has not happened by the next call, that one reads. A line
    /// that is not read stays readable.
    pub fn poll_line_later(&mut self) -> Result<()> {
        self.leave_line()
    }

    /// Whether the peer is gone without having said that no more would come: it may have meant to send more.
    ///
    /// It says so by [`Sender::end`](crate::Sender::end), and by dropping its [`Sender`](crate::Sender) while the channel is
    /// open. Its process may have ended before that, or it has closed the channel, or left the address;
    /// [`Receiver::close_reason`] tells which: [`CloseReason::Exited`] or [`CloseReason::Closed`]. `false` while the channel is
    /// open, and after this side's own close. [`Receiver::receive`] answers `None` in either case, once everything was read.
    pub fn is_cut(&self) -> bool {
        self.shared.peer_is_gone()
            && if self.link.is_some() {
                self.seems_cut()
            } else {
                self.cut
            }
    }

    /// Closes the whole channel from this half. What was not read is let go of.
    pub fn close(&mut self) {
        self.shared.finish(ChannelState::ClosedHere);
        self.let_go();
    }

    /// Why the channel has ended; `None` while it has not. What the peer left may still be there to read.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }
}

impl Waits for Receiver {
    type For = ();

    fn parking(&mut self) -> Parking<'_> {
        Parking {
            shared: &self.shared,
            sleeper: self.link.as_mut().map(|link| &mut link.sleeper),
        }
    }

    fn check(&mut self) -> Result<()> {
        Receiver::check(self)
    }

    #[inline]
    fn is_there(&mut self, (): ()) -> Result<bool> {
        self.has_message()
    }

    fn is_over(&mut self) -> Result<bool> {
        self.is_ended()
    }

    fn counted(&mut self) -> (u64, u64) {
        self.consumer.counted()
    }
}

/// Room for all of a message of `size` bytes.
pub(crate) fn make_room(into: &mut Vec<u8>, size: usize) -> Result<()> {
    let more = size.saturating_sub(into.len());
    into.try_reserve_exact(more).map_err(|error| Error::NoSpace {
        what: format!("a message of {size} bytes"),
        reason: error.to_string(),
    })
}

/// Puts a message together, and makes room in a `Vec` for all of it before its last piece is taken: where there is none, that piece
/// is still in the ring.
struct WithRoom<'a> {
    scratch: &'a mut Scratch,
    into: &'a mut Vec<u8>,
}

impl Place for WithRoom<'_> {
    fn room(&mut self, size: usize, from: usize, to: usize) -> Result<&mut [u8]> {
        if to == size {
            make_room(self.into, size)?;
        }
        self.scratch.room(size, from, to)
    }
}

#[cold]
fn still_gathering() -> Error {
    Error::invalid("a message is being gathered with receive_part: finish it first")
}

impl AsFd for Receiver {
    /// For an event loop: readable when the peer has rung, has gone, or has died. For the last of these one thread of the process
    /// watches, for all channels: another process may hold a copy of the dead peer's socket.
    ///
    /// This is the private line, and both halves have the same:
    /// one event loop waits for both, or for one of them while a thread waits for the other (such as in
    /// [`Sender::wait`](crate::Sender::wait)). Threads beside a loop cost the channel two descriptors, made when the first of
    /// them waits; where a thread slept in a call when the loop began, the loop gets an epoll of its own for the line (two more).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.line_alone()
    }
}

/// The outcome of visits to several messages.
#[derive(Debug)]
pub struct Visited {
    /// Visited messages that were found whole. The visitor may have seen more if the visits failed.
    pub(crate) count: usize,
    /// Whether the visits stopped because nothing more is there.
    pub(crate) dry: Result<bool>,
}

/// What [`Receiver::try_receive_packed`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// This many bytes of whole messages were copied.
    Bytes(usize),
    /// The next message does not fit the buffer, is not wanted, or comes in fragments: its size, for [`Receiver::receive_part`].
    Large(usize),
    /// Nothing is there.
    Nothing,
}
