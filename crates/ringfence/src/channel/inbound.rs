//! The receiving half of a channel or of a broadcast, over either kind of ring.
//!
//! [`Inbound`] has what both kinds share: how a half waits, wakes the peer, notices the end and releases the memory. An [`Inlet`] is one
//! kind of ring: `receiver` has that of a pair, `subscription` that of a publisher.
#![expect(
    private_bounds,
    reason = "programs use the kinds of a ring that this crate has"
)]

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Instant,
};

use crate::{
    channel::end::{ChannelState, CloseReason, Shared},
    channel::open::{Link, POLLS_PER_LINE_CHECK},
    channel::unread::Incoming,
    channel::waiting::{Parking, SpinPacer, SpinThenPark, Waits},
    error::{Error, Result},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::{Phase, Step},
    ring::message::Message,
    ring::read::{Limit, Packed, Reader},
};

/// In place of a number of bytes: everything that is in the ring when a visit starts.
pub(super) const ALL_AVAILABLE: u64 = u64::MAX;

/// The reading end of one kind of ring.
pub(crate) trait Inlet: Sized {
    /// The name of the half's public type.
    const NAME: &'static str;

    /// The limit of the reader of this kind of ring.
    type Limit: Limit<OwnRegion, PeerRegion> + Unpin;

    /// Messages that were handed out, and the bytes of their payloads.
    fn counted(half: &mut Inbound<Self>) -> (u64, u64);

    /// The phase word of the peer, loaded with acquire ordering.
    fn phase_word(half: &Inbound<Self>) -> u64;

    /// Checks that what was copied from the ring since the last check is what the peer sent, and was not wiped or overwritten before.
    /// Starts with an acquire fence.
    fn check_copies(half: &Inbound<Self>) -> Result<()>;

    /// Notices that the peer has ended this direction. Called before each read, so it must be cheap.
    #[inline]
    fn notice_end(_half: &mut Inbound<Self>) {}

    /// Reads no further than where the peer ended this direction, if it did.
    fn end_at_announced(_half: &mut Inbound<Self>) {}

    /// Whether the peer ended this direction in an orderly way, whatever it stores later.
    #[inline]
    fn has_ended(&self) -> bool {
        false
    }

    /// The peer is gone: loads its tail for the last time, and releases this side's memory.
    fn release_own(half: &mut Inbound<Self>);

    /// Releases both sides' memory: reading is over.
    fn release_all(half: &mut Inbound<Self>);

    /// Nothing is there to read. Called after the peer was woken.
    fn shrink_idle(_half: &mut Inbound<Self>) {}

    /// See [`Inbound::try_receive`]. The channel was checked.
    fn try_receive(half: &mut Inbound<Self>, into: &mut [u8]) -> Result<Option<usize>>;

    /// See `Inbound::try_receive_into`. The channel was checked.
    fn try_receive_into(half: &mut Inbound<Self>, into: &mut Vec<u8>) -> Result<bool>;

    /// See [`Inbound::try_receive_packed`]. Checks the channel first.
    fn receive_packed(half: &mut Inbound<Self>, into: &mut [u8]) -> Result<Packed>;

    /// See `Inbound::visit`. Sets `count` to the number of visited messages that were found whole.
    fn visit(
        half: &mut Inbound<Self>,
        count: &mut usize,
        visit: impl FnMut(Message<'_>),
        max: usize,
        bytes: u64,
    ) -> Result<bool>;
}

/// Any `Inlet`, for the binding.
pub trait AnyInlet: Inlet {}

impl<R: Inlet> AnyInlet for R {}

/// The receiving half of a channel ([`Receiver`](crate::Receiver)) or of a broadcast ([`Subscription`](crate::Subscription)).
pub struct Inbound<R: Inlet> {
    pub(super) reader: Reader<OwnRegion, PeerRegion, R::Limit>,
    pub(super) ring: R,
    /// `None` once the peer is gone, or the channel has ended.
    pub(super) link: Option<Link>,
    pub(super) longest: u64,
    /// Reads that found nothing since the line was last read.
    pub(super) empty_polls: u32,
    /// The position at which this half last checked whether the peer sleeps.
    woken_at: u64,
    /// The value of [`Reader::tail_loads`] when the caller's round started.
    round_start: u64,
    pub(super) incoming: Incoming,
    spins: SpinPacer,
    /// Declared after the reader: that of a pair reports its last counts when it is dropped, and they count until this is dropped.
    pub(crate) shared: Arc<Shared>,
}

impl<R: Inlet> fmt::Debug for Inbound<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(R::NAME).finish_non_exhaustive()
    }
}

impl<R: Inlet> Inbound<R> {
    pub(super) fn over(
        reader: Reader<OwnRegion, PeerRegion, R::Limit>,
        ring: R,
        link: Link,
        longest: u64,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            reader,
            ring,
            link: Some(link),
            longest,
            empty_polls: 0,
            woken_at: 0,
            round_start: 0,
            incoming: Incoming::default(),
            spins: SpinPacer::default(),
            shared,
        }
    }

    /// Returns the size of the longest message that can arrive, in bytes.
    pub fn max_message_size(&self) -> u64 {
        self.longest
    }

    /// Errors after this side's own close, an eviction, or a protocol violation, and if the peer is lost. The leftovers of a peer that is
    /// gone are read first.
    #[inline]
    pub(super) fn check(&mut self) -> Result<()> {
        if !self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            return self.check_ended();
        }
        R::notice_end(self);
        Ok(())
    }

    #[cold]
    fn check_ended(&mut self) -> Result<()> {
        if self.shared.peer_is_gone() {
            self.release_own();
            let unread = self.reader.available();
            if self.shared.has_read_all() || !self.judge(unread)? {
                self.shared.receiving_ended.store(true, Ordering::Release);
                self.release_all();
                self.check_lost()?;
            }
            return Ok(());
        }
        let readable = check_readable(&self.shared);
        self.release_all();
        readable
    }

    /// Everything was read: errors if the peer is gone and may have meant to send more.
    fn check_lost(&self) -> Result<()> {
        if self.shared.is_lost() {
            self.shared.check()?;
        }
        Ok(())
    }

    /// Releases this side's memory. The peer's stays mapped until everything in it was read.
    fn release_own(&mut self) {
        if self.link.take().is_some() {
            R::release_own(self);
        }
    }

    /// Releases both sides' memory; there is nothing more to read.
    fn release_all(&mut self) {
        self.link = None;
        self.incoming = Incoming::default();
        self.shared.doorbell.drop_attachments();
        R::release_all(self);
    }

    /// The state that the peer announces.
    fn phase(&self) -> Result<Phase> {
        let word = R::phase_word(self);
        Phase::from_word(word).ok_or_else(|| Error::RingCorrupt(format!("its phase is {word}")))
    }

    #[inline]
    pub(super) fn check_copies(&self) -> Result<()> {
        R::check_copies(self)
    }

    /// Ends the channel if the ring was found corrupt, or this half was evicted.
    #[inline]
    pub(super) fn judge<T>(&self, found: Result<T>) -> Result<T> {
        match found {
            Ok(found) => Ok(found),
            Err(error) => self.judge_error(error),
        }
    }

    #[cold]
    fn judge_error<T>(&self, error: Error) -> Result<T> {
        if matches!(error, Error::Evicted) {
            // The ring is overwritten, whether or not the publisher has stored that.
            self.shared.wait_for_end();
            if let Ok(Phase::EXPOSED) = self.phase() {
                self.shared.end_as(ChannelState::ExposedAtPeer)?;
            }
            self.shared.end_as(ChannelState::EvictedByPeer)?;
        }
        self.shared.judge(Err(error))
    }

    /// Follows a read that found nothing: wakes a peer that waits for room, and reads the line once in a while.
    #[cold]
    pub(super) fn on_empty(&mut self) -> Result<()> {
        // The memory of a peer that is gone is not checked again: everything that it left was copied and checked.
        if self.link.is_some() {
            self.check_copies()?;
        }
        self.wake_if_parked();
        R::shrink_idle(self);
        self.empty_polls += 1;
        if self.empty_polls >= POLLS_PER_LINE_CHECK {
            self.empty_polls = 0;
            self.shared.check_peer();
            self.check()?;
        }
        Ok(())
    }

    /// Publishes the position up to which everything was read, and wakes a peer that waits for room.
    #[inline]
    pub(super) fn publish_and_wake(&mut self) {
        self.reader.publish();
        self.wake_if_parked();
    }

    #[inline]
    pub(super) fn wake_if_parked(&mut self) {
        self.woken_at = self.reader.position();
        self.wake_if_published();
    }

    #[inline]
    pub(super) fn wake_if_published(&mut self) {
        if self.link.as_mut().is_some_and(|link| link.waker.must_wake()) {
            self.shared.doorbell.wake_peer();
        }
    }

    /// Wakes the peer only if there is much room since it was last checked.
    #[inline]
    pub(super) fn wake_if_worthwhile(&mut self) {
        if self.reader.position().saturating_sub(self.woken_at) >= self.reader.capacity / 4 {
            self.wake_if_parked();
        }
    }

    /// Copies the next message to the beginning of `into`, and returns its length. `None`: nothing is there now (see
    /// [`is_ended`](Inbound::is_ended)).
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the message is longer than `into`, or is being read with `receive_part`. The message stays.
    /// - [`Error::NoSpace`] if there is no memory to put the fragments of a message together. The message stays: the next call continues
    ///   with it, and so does `receive_part`, in the caller's memory.
    /// - [`Error::Protocol`] if the peer has made a call. The call stays: [`Channel::into_calls`](crate::Channel::into_calls) makes a
    ///   channel that answers calls.
    /// - [`Error::RingCorrupt`] if the peer violated the protocol.
    /// - [`Error::ObjectExposed`] if another process tried to open the memory of either side.
    /// - [`Error::Evicted`] if this subscription delayed its publisher for too long.
    /// - [`Error::PeerLost`] once everything was read, if the peer was killed or crashed, or has destroyed the channel.
    /// - [`Error::Closed`] after this side's close.
    #[inline]
    pub fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.check()?;
        R::try_receive(self, into)
    }

    /// Waits for the next message, and copies it to the beginning of `into`. `None`: the peer has ended its sending or closed the channel,
    /// and everything was read. A peer that was killed first is [`Error::PeerLost`].
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.poll_until(None, |half| half.try_receive(into))
    }

    /// Like [`receive`](Inbound::receive), with a deadline.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive), and [`Error::TimedOut`] at the deadline. No message is lost then.
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
        self.poll_until(Some(deadline), |half| half.try_receive(into))
    }

    /// Returns the next message in memory of its own. `None`: nothing is there now (see [`is_ended`](Inbound::is_ended)).
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive), and [`Error::NoSpace`] if there is no memory for the message, which stays.
    pub fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        Ok(self.try_receive_into(&mut message)?.then_some(message))
    }

    /// Like [`try_receive_vec`](Inbound::try_receive_vec), for a caller that reuses its memory. After `false`, the content of `into` is
    /// unspecified.
    #[inline]
    pub(crate) fn try_receive_into(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        self.check()?;
        R::try_receive_into(self, into)
    }

    /// Waits for the next message, and returns it in memory of its own. `None`: no more will come, and everything was read.
    ///
    /// A message longer than half of a pair's ring is put together first, in memory that grows with what has arrived. So a peer cannot
    /// make this side allocate memory by announcing a long message.
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
    /// As [`try_receive_vec`](Inbound::try_receive_vec).
    pub fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        self.poll_until(None, Self::try_receive_vec)
    }

    /// Like [`receive_vec`](Inbound::receive_vec), with a deadline.
    ///
    /// # Errors
    /// As [`try_receive_vec`](Inbound::try_receive_vec), and [`Error::TimedOut`] at the deadline. No message is lost then.
    pub fn receive_vec_until(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        self.poll_until(Some(deadline), Self::try_receive_vec)
    }

    /// Returns the size of the next message in bytes, once its beginning is there. `None`: nothing is there now. A subscription that is
    /// not reliable may receive another message next.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn next_size(&mut self) -> Result<Option<usize>> {
        self.check()?;
        self.size_of_next()
    }

    /// See [`Inbound::next_size`]. The channel was checked.
    pub(super) fn size_of_next(&mut self) -> Result<Option<usize>> {
        let size = self.reader.next_size();
        let size = self.judge(size)?;
        if size.is_none() {
            self.on_empty()?;
        }
        Ok(size)
    }

    /// Visits the messages that are there, at most `max`, and returns how many there were. Messages that arrive during the call are
    /// left to the next call, so it returns however fast the peer sends. A call that follows an earlier one with a smaller `max` may
    /// visit messages of two checks.
    ///
    /// Messages are visited in the peer's memory, without a copy. A subscription that is not reliable copies them first.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (_sender, mut receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut bytes = 0;
    /// while receiver.wait_readable(None)? {
    ///     receiver.receive_each(|message| bytes += message.len(), 1000)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive). With [`Error::ObjectExposed`], [`Error::Evicted`] or [`Error::Closed`] (this side was
    /// closed on another thread), the last visits may have been of memory that was wiped or overwritten in the meantime. Discard what
    /// they saw; `stats` does not count them.
    #[inline]
    pub fn receive_each(&mut self, visit: impl FnMut(Message<'_>), max: usize) -> Result<usize> {
        let Visited { count, empty } = self.visit(visit, max, ALL_AVAILABLE);
        empty.map(|_| count)
    }

    /// Like [`receive_each`](Inbound::receive_each), for about `bytes` bytes, which may arrive during the call.
    #[inline]
    pub(crate) fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        let mut count = 0;
        let empty = match self.check() {
            Ok(()) => R::visit(self, &mut count, visit, max, bytes),
            Err(error) => Err(error),
        };
        Visited { count, empty }
    }

    /// Copies whole messages as packed records (see [`Sender::try_send_packed`](crate::Sender::try_send_packed)), as many as are there
    /// and fit.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn try_receive_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = R::receive_packed(self, into);
        self.wake_if_parked();
        packed
    }

    /// Like [`try_receive_packed`](Inbound::try_receive_packed), for a caller that calls again at once. A peer that sleeps until there is
    /// room is woken only if a quarter of the ring is free or nothing is left to read, because a wakeup costs both sides more than many
    /// messages. A caller that stops before that must call [`wake`](Inbound::wake).
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn try_receive_more_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = R::receive_packed(self, into);
        self.wake_if_worthwhile();
        packed
    }

    /// Starts a round, for callers that read until nothing is there: it has the messages that are there now, however fast the peer
    /// sends. [`is_round_over`](Inbound::is_round_over) returns when it is over.
    pub fn begin_round(&mut self) {
        self.round_start = self.reader.tail_loads;
    }

    /// Returns whether everything was read that was there when the round began. Does not check whether more has arrived.
    pub fn is_round_over(&self) -> bool {
        self.reader.is_drained() && self.reader.tail_loads != self.round_start
    }

    /// Wakes a peer that sleeps until there is room, if anything was read since it parked.
    pub fn wake(&mut self) {
        // Only here: each other call has dropped an inherited link in its check.
        if !self.shared.is_inherited() {
            self.wake_if_parked();
        }
    }

    /// Returns whether there is something to read now: a message, or the next fragment of a message.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn has_message(&mut self) -> Result<bool> {
        self.check()?;
        let available = self.reader.available();
        self.judge(available)
    }

    /// Returns whether no more will come, and everything was read.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn is_ended(&mut self) -> Result<bool> {
        if self.shared.has_read_all() {
            return self.check_lost().map(|()| true);
        }
        if self.has_message()? {
            return Ok(false);
        }
        if self.link.is_none() {
            // The peer is gone, and everything that it left was read.
            return Ok(true);
        }
        let phase = self.phase();
        let phase = self.judge(phase)?;
        if phase.is_open() && !self.ring.has_ended() {
            return Ok(false);
        }
        R::end_at_announced(self);
        // Check again: the peer may have published more before it stored its phase.
        if self.has_message()? {
            return Ok(false);
        }
        self.check_copies()?;
        self.shared.drain_tokens();
        self.shared.receiving_ended.store(true, Ordering::Release);
        if phase.step != Step::Exposed
            && let Some(end) = self.shared.end_by(phase.step)
        {
            self.shared.finish(end);
        }
        self.shared.finish_if_both_ended();
        // A program may keep this half for long without calling it again.
        if !self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            self.release_own();
            self.release_all();
        }
        self.check_lost().map(|()| true)
    }

    /// Waits until there is something to read. `false`: the peer has ended its sending or closed the channel, and everything was read.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive), and [`Error::TimedOut`] at the deadline.
    pub fn wait_readable(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let found = self.poll_until(deadline, |half| Ok(half.has_message()?.then_some(())))?;
        Ok(found.is_some())
    }

    /// For event loops: announces that this half sleeps until there is something to read. `true`: nothing is there; wait until the line
    /// ([`AsFd`]) is readable, then call [`poll_line`](Inbound::poll_line) and [`disarm`](Inbound::disarm). `false`: there is
    /// something, or no more will come.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive). [`Error::NoSpace`] also if another thread has slept in a call since before there was
    /// an event loop, and no descriptor is left to notify the loop with.
    pub fn arm(&mut self) -> Result<bool> {
        self.arm_for(())
    }

    /// Announces that this half is awake.
    pub fn disarm(&mut self) {
        self.unpark();
    }

    /// Reads whatever has arrived on the line, and notices a peer that is gone. Its leftovers can still be read, and its memory stays
    /// mapped until then.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn poll_line(&mut self) -> Result<()> {
        self.read_line()
    }

    /// Like [`poll_line`](Inbound::poll_line), if the line is readable and did not report that it has ended: the line is read when
    /// either half is armed next, so that an answer can go first, or by the next call of this. A line that is not read stays readable.
    ///
    /// # Errors
    /// As [`try_receive`](Inbound::try_receive).
    pub fn poll_line_later(&mut self) -> Result<()> {
        self.shared.doorbell.defer_wakeups();
        self.shared.end_if_gone();
        self.check()
    }

    /// Closes the whole channel from this half: the peer reads what is in the ring, and then a clean end. Unread messages are dropped. A
    /// message that another thread sends at this moment may be lost.
    pub fn close(&mut self) {
        self.shared.finish(ChannelState::ClosedHere);
        self.release_all();
    }

    /// Closes the whole channel like [`close`](Inbound::close), but without a clean end: the peer's calls that receive fail with
    /// [`Error::PeerLost`] once everything was read.
    pub fn destroy(&mut self) {
        self.shared.finish(ChannelState::DestroyedHere);
        self.release_all();
    }

    /// Returns why the channel has ended, once a call that reads, waits or polls the line has noticed it. `None`: it has not. Unread
    /// messages of the peer may remain.
    ///
    /// A subscription returns [`CloseReason::Closed`] also while a publisher that has ended, or has disconnected it, waits until the
    /// last messages are read.
    pub fn close_reason(&self) -> Option<CloseReason> {
        let ended = self.ring.has_ended().then_some(CloseReason::Closed);
        self.shared.close_reason().or(ended)
    }
}

impl<R: Inlet> Waits for Inbound<R> {
    type For = ();

    fn parking(&mut self) -> Parking<'_> {
        Parking {
            shared: &self.shared,
            sleeper: self.link.as_mut().map(|link| &mut link.sleeper),
            spins: &mut self.spins,
        }
    }

    fn check(&mut self) -> Result<()> {
        Inbound::check(self)
    }

    #[inline]
    fn is_available(&mut self, (): ()) -> Result<bool> {
        self.has_message()
    }

    fn is_over(&mut self) -> Result<bool> {
        self.is_ended()
    }

    fn counted(&mut self) -> (u64, u64) {
        R::counted(self)
    }
}

impl<R: Inlet> Drop for Inbound<R> {
    fn drop(&mut self) {
        // The other half may keep the channel open.
        self.shared.doorbell.drop_attachments();
        // The thread may have meant to receive more, and the peer must not take the end of the other half for a clean end.
        if thread::panicking() {
            // Reports the last counts before the program is notified of the end.
            R::counted(self);
            self.shared.finish(ChannelState::DestroyedHere);
        }
    }
}

impl<R: Inlet> AsFd for Inbound<R> {
    /// For an event loop: readable once the peer has sent a wakeup, has disconnected, or has died. One thread of the process watches for
    /// the death of all peers, because another process may hold a copy of a dead peer's socket.
    ///
    /// This is the private line. Both halves of a channel have the same one: one event loop waits for both, or for one of them while a
    /// thread waits for the other (as in [`Sender::wait`](crate::Sender::wait)). Threads beside a loop cost the channel two descriptors,
    /// created when the first of them waits. If a thread slept in a call when the loop started, the loop gets an epoll instance of its
    /// own for the line (two more).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.line_only()
    }
}

/// Errors if the channel has ended in a way that forbids reading. The leftovers of a peer that is gone are still read. If everything was
/// read before this side closed, that is the end and no error.
fn check_readable(shared: &Shared) -> Result<()> {
    if shared.peer_is_gone() {
        return Ok(());
    }
    match shared.check() {
        Err(Error::Closed(_)) if shared.has_read_all() => Ok(()),
        other => other,
    }
}

/// Compares the phases of both sides after a copy was made. `CAN_EVICT`: the peer can be a publisher.
///
/// Before the peer wipes its ring, or overwrites what an evicted subscriber has not read, it stores that in its phase. If another thread
/// has ended the channel here, the peer may wipe its ring as well, but only after this side's own phase has changed.
#[inline]
pub(super) fn check_phases<const CAN_EVICT: bool>(shared: &Shared, peers: u64, own: u64) -> Result<()> {
    if peers == Phase::EXPOSED.word() {
        return shared.end_as(ChannelState::ExposedAtPeer);
    }
    if CAN_EVICT && peers == Phase::EVICTED.word() {
        return shared.end_as(ChannelState::EvictedByPeer);
    }
    if own > Phase::ENDED.word() {
        return ended_concurrently(shared);
    }
    Ok(())
}

/// Another thread has ended the channel, or has noticed that the peer is gone.
#[cold]
fn ended_concurrently(shared: &Shared) -> Result<()> {
    shared.wait_for_end();
    check_readable(shared)
}

/// Makes room for all of a message of `size` bytes.
pub(crate) fn make_room(into: &mut Vec<u8>, size: usize) -> Result<()> {
    let more = size.saturating_sub(into.len());
    into.try_reserve_exact(more)
        .map_err(|error| Error::no_space(format!("a message of {size} bytes"), error))
}

/// The outcome of visits to several messages.
#[derive(Debug)]
pub struct Visited {
    /// Visited messages that were found whole. The visitor may have seen more if the visits failed.
    pub(crate) count: usize,
    /// Whether the visits stopped because nothing more is there.
    pub(crate) empty: Result<bool>,
}
