//! The receiving half of a broadcast.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    channel::end::{ChannelState, CloseReason, END_TOLD, Shared},
    channel::open::{LOOKS_PER_GLANCE, Opened, open},
    channel::receiver::{Packed, Visited, make_room},
    channel::verify::{Verified, Verifier},
    channel::waiting::{Awaited, Parking, SpinThenPark, Waits},
    error::{Error, Result},
    evidence::Evidence,
    handshake::broadcast::{Beginning, RingPart},
    handshake::frame::Meeting,
    handshake::parts::Side,
    host::connect::call,
    identity::Identity,
    options::Options,
    region::copy::Readable,
    region::layout::{self, as_offset},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::{Phase, Step},
    ring::consumer::Pulled,
    ring::delivery::Delivery,
    ring::fan_out::reader::{FanIn, Terms, Validity, View},
    ring::fan_out::readers::Held,
    ring::message::Message,
    wake::parking::{ParkingSpot, Sleeper, Waker},
};

/// Subscribes to the publisher at an address. [`Options::delivery`] says how messages come, and [`Options::from`] where to begin.
///
/// Where no process publishes: [`Error::PeerLost`], or with [`Options::wait`], waits for the publisher to come. Where it is full:
/// [`Error::AddressOccupied`], or waits for a seat. A delivery that it does not offer is [`Error::PeerRefused`], check `delivery`; a
/// publisher that sends longer messages than [`Options::max_message_size`] is [`Error::Protocol`], and so is a host that does not
/// publish. [`Options::cancel_token`] ends the waiting.
///
/// A reliable subscriber that begins with [`StartFrom::Now`](crate::StartFrom::Now) gets every message whose sending began after this
/// has returned.
pub fn subscribe(address: &Address, options: &Options) -> Result<Subscription> {
    let options = options.clone().checked_to_subscribe()?;
    let address = &address.absolute();
    let mut parts = call(
        address,
        &options,
        ("publishes", "publisher"),
        |stream, record, deadline| {
            Side::new(address, &options, deadline, Meeting::Broadcast)
                .subscribing()
                .guest(stream, record)
        },
    )?;
    match std::mem::replace(&mut parts.ring, RingPart::Equal) {
        RingPart::Subscriber(ring, beginning) => {
            let opened = open(parts, None, &options);
            Subscription::begin(opened, ring, beginning, &options)
        }
        RingPart::Equal | RingPart::Publisher(_) => {
            Err(Error::Protocol("a handshake without a publisher's ring".into()))
        }
    }
}

/// The receiving half of a broadcast: reads as a [`Receiver`](crate::Receiver) does.
///
/// Dropping it closes it.
///
/// # Lagging
/// A reliable subscription gets every message, and holds its publisher up where it is a ring behind; one that does so for too long
/// is evicted ([`Error::Evicted`]). With [`Delivery::BestEffort`] and [`Delivery::Latest`] what was overwritten, or passed over, is
/// counted by [`Subscription::lost`]: messages handed out and lost together are [`Subscription::sequence`], less what it was at the
/// beginning.
///
/// # Closing
/// Once the publisher has ended the subscription, closed or died, [`Subscription::close_reason`] says which it was. The messages that it left
/// can still be read, and then comes the end; those of an evicted subscription are lost.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    reader: FanIn<PeerRegion, OwnRegion, Controls>,
    /// `None` once the publisher is gone, or the subscription has ended.
    bells: Option<Bells>,
    /// The publisher's phase was not [`Phase::OPEN`] at the last check, and this side knows where reading ends.
    end_known: bool,
    /// That phase was the orderly end: what is there is all that the publisher sends to this subscriber. Never taken back, whatever a hostile
    /// publisher stores later.
    ended: bool,
    /// The publisher was gone before it had said that no more would come; known once there are no bells.
    cut: bool,
    verifier: Verifier,
    identity: Identity,
    /// Of the handshake, so many; then of the last verification.
    evidence: Vec<Evidence>,
    of_handshake: usize,
    longest: u64,
    fruitless: u32,
    /// How far this side had read when it last looked whether the publisher sleeps.
    woken: u64,
    /// How often the publisher's tail had been looked at when the caller's round began.
    round: u64,
    /// The lag, once there is no ring to look at.
    last_lag: u64,
}

/// What a subscription has done since it was made, and how far behind it is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Messages that were handed out.
    pub messages_received: u64,
    /// Bytes of their payloads.
    pub bytes_received: u64,
    /// See [`Subscription::lost`].
    pub lost: u64,
    /// Bytes that are published and not read. After the end: as it was when it was last known.
    pub lag: u64,
    /// How often this side has gone to sleep, for want of messages.
    pub sleeps: u64,
}

/// The control objects of both sides, whose phases say whether the ring still holds what was sent.
#[derive(Debug)]
struct Controls {
    shared: Arc<Shared>,
    /// Mapped as long as the publisher is there.
    own: OwnRegion,
    /// The publisher's, of this subscriber. Mapped as long as something is read.
    publishers: PeerRegion,
}

impl Controls {
    #[cold]
    fn finish(&self, end: ChannelState) -> Result<()> {
        self.shared.finish(end);
        self.shared.check()
    }

    /// Another thread has ended the subscription, or has noticed that the publisher is gone. What a publisher has left stays as it is.
    #[cold]
    fn ended_meanwhile(&self) -> Result<()> {
        self.shared.wait_for_end();
        if self.shared.peer_is_gone() {
            return Ok(());
        }
        self.shared.check()
    }
}

impl Validity for Controls {
    /// Before the publisher wipes its ring, or overwrites what an evicted subscriber has not read, it stores that in its phase. If this side
    /// has ended the subscription on another thread, the publisher may do so as well, but only after this side's own phase says so.
    #[inline]
    fn check(&self) -> Result<()> {
        let publishers = self.publishers.load(layout::PHASE, Ordering::Relaxed);
        if publishers == Phase::EXPOSED.word() {
            return self.finish(ChannelState::ExposedAtPeer);
        }
        if publishers == Phase::EVICTED.word() {
            return self.finish(ChannelState::EvictedByPeer);
        }
        if self.own.load(layout::PHASE, Ordering::Relaxed) > Phase::ENDED.word() {
            return self.ended_meanwhile();
        }
        Ok(())
    }
}

/// How this side sleeps, and wakes a publisher that waits for room.
#[derive(Debug)]
struct Bells {
    sleeper: Sleeper<OwnRegion, PeerRegion>,
    waker: Waker<OwnRegion, PeerRegion>,
}

impl Subscription {
    fn begin(opened: Opened, ring: PeerRegion, beginning: Beginning, options: &Options) -> Result<Self> {
        let Beginning { start, now } = beginning;
        let Opened {
            shared,
            own,
            peer: publishers,
            barriers,
            peer_capacity: capacity,
            longest_out: longest,
            ..
        } = opened;
        // It has no sending to end.
        shared.sending_ended.store(true, Ordering::Release);
        let held = Held {
            number: 0,
            slot: as_offset(start.slot.into()),
            position: start.position,
            sequence: start.sequence,
        };
        let terms = Terms {
            capacity,
            longest,
            delivery: options.delivery,
            held,
        };
        let controls = Controls {
            shared: Arc::clone(&shared),
            own: own.clone(),
            publishers,
        };
        let reader = FanIn::new(ring.clone(), own.clone(), controls, terms);
        let mut reader = shared.judge(reader)?;
        let began = reader.begin(options.from, now);
        shared.judge(began)?;
        let spot = ParkingSpot::reader_in(held.slot);
        Ok(Self {
            bells: Some(Bells {
                sleeper: Sleeper::new(own.clone(), ring.clone(), spot, barriers),
                waker: Waker::new(own, ring, ParkingSpot::WRITER, barriers),
            }),
            reader,
            end_known: false,
            ended: false,
            cut: false,
            shared,
            verifier: opened.verifier,
            identity: opened.identity,
            of_handshake: opened.evidence.len(),
            evidence: opened.evidence,
            longest,
            fruitless: 0,
            woken: 0,
            round: 0,
            last_lag: 0,
        })
    }

    /// Who the publisher was when it was last looked at.
    pub fn peer(&self) -> &Identity {
        &self.identity
    }

    /// Every check that was made on the way, in order; after [`Subscription::verify`], those of the last one as well.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// How messages come.
    pub fn delivery(&self) -> Delivery {
        self.reader.delivery()
    }

    /// Bytes of the publisher's ring.
    pub fn capacity(&self) -> u64 {
        self.reader.capacity()
    }

    /// Bytes of the longest message that the publisher sends.
    pub fn max_message_size(&self) -> u64 {
        self.longest
    }

    /// Messages that were published since it began and that will never be handed out: counted when the next one is.
    pub fn lost(&self) -> u64 {
        self.reader.lost()
    }

    /// Number of the last message that was handed out, as the publisher counts; the first is 1. Before that, the number of the message
    /// after which the subscription began.
    pub fn sequence(&self) -> u64 {
        self.reader.sequence()
    }

    /// Bytes that are published and not read. 0 once nothing more is read, and in a child that has inherited the subscription.
    pub fn lag(&self) -> u64 {
        if self.shared.is_inherited() {
            return 0;
        }
        let tail = self.reader.ring().load(layout::TAIL, Ordering::Acquire);
        tail.saturating_sub(self.reader.position())
    }

    /// What has come so far. The last figures stay after the end.
    pub fn stats(&self) -> SubscriptionStats {
        let (messages_received, bytes_received) = self.reader.counted();
        let over = self.controls().publishers.is_nowhere();
        SubscriptionStats {
            messages_received,
            bytes_received,
            lost: self.reader.lost(),
            lag: if over { self.last_lag } else { self.lag() },
            sleeps: self.shared.counters.sleeps(),
        }
    }

    /// How long a wait spins before it sleeps, as the options said: for bindings that wait in a way of their own.
    pub fn busy_poll(&self) -> Duration {
        self.shared.busy_poll
    }

    /// Looks at the publisher again, as [`Channel::verify`](crate::Channel::verify) does.
    pub fn verify(&mut self) -> Result<&Identity> {
        let Verified { identity, evidence } = self.verifier.verify()?;
        self.identity = identity;
        self.evidence.truncate(self.of_handshake);
        self.evidence.extend(evidence);
        Ok(&self.identity)
    }

    /// What looks at the publisher again from another thread.
    pub fn verifier(&self) -> Verifier {
        self.verifier.clone()
    }

    #[inline]
    fn controls(&self) -> &Controls {
        self.reader.validity()
    }

    /// Errors if nothing may be read any more: after this side's own close, an eviction, or a protocol violation. What a publisher that is
    /// gone has left is still read.
    #[inline]
    fn check(&mut self) -> Result<()> {
        if !self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            return self.check_ended();
        }
        // A disconnected subscription gets what was published before, and no more, though the publisher goes on.
        if !self.end_known && self.phase_word() != Phase::OPEN.word() {
            self.end_where_told();
        }
        Ok(())
    }

    #[cold]
    fn check_ended(&mut self) -> Result<()> {
        if self.shared.peer_is_gone() {
            self.settle();
            return Ok(());
        }
        let ended = self.shared.check();
        self.let_go();
        match ended {
            // Everything was read before it closed: that is an end, not an error.
            Err(Error::Closed(_)) if self.shared.has_read_all() => Ok(()),
            other => other,
        }
    }

    /// Stops telling the publisher how far this side has read. The ring stays mapped until what the publisher left was read.
    fn settle(&mut self) {
        if self.bells.take().is_some() {
            let phase = self.phase();
            self.cut = !phase.is_ok_and(|phase| phase.ended);
            self.end_where_told();
            self.reader.settle();
            self.reader.validity_mut().own = OwnRegion::nowhere();
        }
    }

    /// Releases all objects; there is nothing more to read.
    fn let_go(&mut self) {
        self.bells = None;
        if !self.controls().publishers.is_nowhere() {
            self.last_lag = self.lag();
            self.reader.forget(PeerRegion::nowhere());
            let controls = self.reader.validity_mut();
            controls.own = OwnRegion::nowhere();
            controls.publishers = PeerRegion::nowhere();
        }
    }

    #[inline]
    fn phase_word(&self) -> u64 {
        self.controls().publishers.load(layout::PHASE, Ordering::Acquire)
    }

    /// What the publisher says that it will still do.
    fn phase(&self) -> Result<Phase> {
        let word = self.phase_word();
        Phase::from_word(word).ok_or_else(|| Error::RingCorrupt(format!("its phase is {word}")))
    }

    /// Reading ends where the publisher has said, if it has: it may go on for others. To be called after its phase was found to have
    /// changed.
    #[cold]
    fn end_where_told(&mut self) {
        self.end_known = true;
        self.ended |= self.phase().is_ok_and(|phase| phase.ended);
        let word = self.controls().publishers.load(layout::TAIL, Ordering::Acquire);
        if word & END_TOLD != 0 {
            self.reader.end_at(word & !END_TOLD);
        }
    }

    /// As [`Validity::check`], after a read that found no message.
    fn must_be_whole(&self) -> Result<()> {
        fence(Ordering::Acquire);
        self.controls().check()
    }

    /// What the reader has found.
    #[inline]
    fn judge<T>(&mut self, found: Result<T>) -> Result<T> {
        match found {
            Ok(found) => Ok(found),
            Err(error) => self.judge_error(error),
        }
    }

    #[cold]
    fn judge_error<T>(&mut self, error: Error) -> Result<T> {
        if matches!(error, Error::Evicted) {
            // The ring is overwritten, whether or not the publisher has said so.
            self.shared.wait_for_end();
            if let Ok(Phase::EXPOSED) = self.phase() {
                self.controls().finish(ChannelState::ExposedAtPeer)?;
            }
            self.controls().finish(ChannelState::EvictedByPeer)?;
        }
        self.shared.judge(Err(error))
    }

    /// The next message, into the beginning of `into`. `None`: nothing is there now (see [`Subscription::is_ended`]).
    ///
    /// Errors: [`Error::InvalidArgument`] if the message is longer than `into` (it stays there); [`Error::Evicted`];
    /// [`Error::RingCorrupt`]; [`Error::ObjectExposed`] where another process has tried to open the memory of either side;
    /// [`Error::Closed`] after this side's close.
    #[inline]
    pub fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.check()?;
        let received = self.reader.receive(into);
        let received = self.judge(received)?;
        if received.is_some() {
            self.tell();
        } else {
            self.not_received()?;
        }
        Ok(received)
    }

    /// Follows a read that found nothing.
    #[cold]
    fn not_received(&mut self) -> Result<()> {
        self.must_be_whole()?;
        self.tell();
        self.fruitless += 1;
        if self.fruitless >= LOOKS_PER_GLANCE {
            self.fruitless = 0;
            self.shared.doorbell.look();
            self.shared.notice();
            self.check()?;
        }
        Ok(())
    }

    /// Publishes how far this side has read, and wakes a publisher that waits for room.
    #[inline]
    fn tell(&mut self) {
        self.reader.publish();
        self.woken = self.reader.position();
        if self.bells.as_mut().is_some_and(|bells| bells.waker.must_ring()) {
            self.shared.doorbell.ring();
        }
    }

    /// The next message, into the beginning of `into`; sleeps until there is one. `None`: no more will come, and everything was
    /// read. Errors as [`Subscription::try_receive`].
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.take_by(None, |subscription| subscription.try_receive(into))
    }

    /// As [`Subscription::receive`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    pub fn receive_until(&mut self, into: &mut [u8], deadline: Instant) -> Result<Option<usize>> {
        self.take_by(Some(deadline), |subscription| subscription.try_receive(into))
    }

    /// The next message, in memory of its own size. `None`: nothing is there now. Errors as [`Subscription::try_receive`], and with
    /// [`Error::NoSpace`] where there is no memory for it: the message stays, as long as this delivery keeps it.
    pub fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        while let Some(size) = self.next_size()? {
            if size > message.len() {
                make_room(&mut message, size)?;
                message.resize(size, 0);
            }
            match self.try_receive(&mut message) {
                Ok(received) => {
                    return Ok(received.map(|length| {
                        message.truncate(length);
                        message
                    }));
                }
                // It was overwritten meanwhile, and a longer one is the next.
                Err(Error::InvalidArgument(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The next message, in memory of its own size; sleeps until there is one. `None`: no more will come, and everything was read.
    /// Errors as [`Subscription::try_receive_vec`].
    ///
    /// ```no_run
    /// use ringfence::{Delivery, Options, subscribe};
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// let address = "/run/user/1000/ticks.sock".parse()?;
    /// let mut ticks = subscribe(&address, &Options::new().delivery(Delivery::Latest))?;
    /// while let Some(tick) = ticks.receive_vec()? {
    ///     println!("{} bytes, the latest", tick.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        self.take_by(None, Self::try_receive_vec)
    }

    /// As [`Subscription::receive_vec`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    pub fn receive_vec_until(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        self.take_by(Some(deadline), Self::try_receive_vec)
    }

    /// The size of the next message, in bytes. `None`: nothing is there now. One that is not reliable may find another message when it
    /// receives. Errors as [`Subscription::try_receive`].
    pub fn next_size(&mut self) -> Result<Option<usize>> {
        self.check()?;
        let size = self.reader.next_size();
        let size = self.judge(size)?;
        if size.is_none() {
            self.not_received()?;
        }
        Ok(size)
    }

    /// Visits the messages that are there, at most `max`, and returns how many.
    ///
    /// Messages of up to some 500 bytes, and all messages of a subscription that is not reliable, are copied and checked before their visit.
    /// A reliable subscription is shown longer ones in the publisher's ring, and checks them after the visit.
    ///
    /// # Errors
    /// As [`Subscription::try_receive`]. With [`Error::Evicted`], [`Error::ObjectExposed`] or [`Error::Closed`] the last visit may have
    /// been of a message in the ring that was overwritten or wiped in the meantime: discard what it saw. [`Subscription::stats`] does not
    /// count that message; those before it were whole, and count.
    pub fn drain(&mut self, visit: impl FnMut(Message<'_>), max: usize) -> Result<usize> {
        let Visited { count, dry } = self.visit(visit, max);
        dry.map(|_| count)
    }

    /// As [`Subscription::drain`]; `dry` says whether fewer than `max` were there.
    pub(super) fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize) -> Visited {
        let before = self.reader.counted().0;
        let dry = self.visit_all(visit, max);
        let count = usize::try_from(self.reader.counted().0 - before).unwrap_or(usize::MAX);
        Visited { count, dry }
    }

    fn visit_all(&mut self, mut visit: impl FnMut(Message<'_>), max: usize) -> Result<bool> {
        self.check()?;
        let visited = self.reader.visit(max, |view| {
            visit(match view {
                View::Copy(bytes) => Message::gathered(bytes),
                View::InRing(ring, record) => Message::in_ring(ring, record.at, record.length, record.end),
            });
        });
        let count = self.judge(visited).inspect_err(|_| self.tell())?;
        if count == 0 {
            self.not_received()?;
        } else {
            self.tell();
        }
        Ok(count < max)
    }

    /// Copies whole messages, laid out as the ring has short ones, as many as are there and fit. Errors as
    /// [`Subscription::try_receive`].
    pub fn try_receive_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = self.receive_packed(into);
        self.wake();
        packed
    }

    /// As [`Subscription::try_receive_packed`], for a caller who will call again at once: see
    /// [`Receiver::try_receive_more_packed`](crate::Receiver::try_receive_more_packed). A caller that stops before must
    /// call [`Subscription::wake`].
    pub fn try_receive_more_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        let packed = self.receive_packed(into);
        if self.reader.position().saturating_sub(self.woken) >= self.reader.capacity() / 4 {
            self.wake();
        }
        packed
    }

    /// Wakes a publisher that sleeps until there is room, if anything was read since it parked.
    pub fn wake(&mut self) {
        if !self.shared.is_inherited() {
            self.tell();
        }
    }

    fn receive_packed(&mut self, into: &mut [u8]) -> Result<Packed> {
        self.check()?;
        let pulled = self.reader.pull_packed(into);
        let pulled = self.judge(pulled)?;
        Ok(match pulled {
            Pulled::Bytes(bytes) => Packed::Bytes(bytes),
            Pulled::Large(size) => Packed::Large(size),
            Pulled::Nothing => {
                self.not_received()?;
                Packed::Nothing
            }
        })
    }

    /// For callers who read until nothing is there: see [`Receiver::begin_round`](crate::Receiver::begin_round).
    pub fn begin_round(&mut self) {
        self.round = self.reader.looks();
    }

    /// See [`Receiver::is_round_over`](crate::Receiver::is_round_over).
    pub fn is_round_over(&self) -> bool {
        self.reader.is_through() && self.reader.looks() != self.round
    }

    /// Whether there is something to read now. Errors as [`Subscription::try_receive`].
    pub fn has_message(&mut self) -> Result<bool> {
        self.check()?;
        let available = self.reader.available();
        self.judge(available)
    }

    /// Whether no more will come, and everything was read. Errors as [`Subscription::try_receive`].
    pub fn is_ended(&mut self) -> Result<bool> {
        if self.shared.has_read_all() {
            return Ok(true);
        }
        if self.has_message()? {
            return Ok(false);
        }
        if self.bells.is_none() {
            // The publisher has gone, and all that it left was read. What its object says now counts no more.
            self.shared.receiving_ended.store(true, Ordering::Release);
            self.let_go();
            return Ok(true);
        }
        let phase = self.phase();
        let phase = self.shared.judge(phase)?;
        if phase.is_open() && !self.ended {
            return Ok(false);
        }
        self.end_where_told();
        // Check again: the publisher may have published more before it stored its phase.
        if self.has_message()? {
            return Ok(false);
        }
        self.must_be_whole()?;
        self.shared.hear_out();
        self.shared.receiving_ended.store(true, Ordering::Release);
        match phase.step {
            Step::Closed | Step::Succeeds => self.shared.finish(ChannelState::ClosedByPeer),
            Step::Left => self.shared.finish(ChannelState::LeftByPeer),
            Step::Open | Step::Exposed | Step::Evicted => {}
        }
        self.shared.finish_if_both_ended();
        // A program may keep this for long, and call it no more.
        if !self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            self.settle();
            self.let_go();
        }
        Ok(true)
    }

    /// Sleeps until there is something to read, or no more will come. `false`: the deadline has passed. Errors as
    /// [`Subscription::try_receive`].
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.wait_until((), deadline)
    }

    /// For event loops: says that this side sleeps until there is something to read. `true`: there is nothing now; wait for the line
    /// ([`AsFd`]) to be readable, then call [`Subscription::poll_line`] and [`Subscription::disarm`]. `false`: there is something, or
    /// no more will come.
    ///
    /// # Errors
    /// As [`Subscription::try_receive`], with [`Error::NoSpace`] also where another thread sleeps in a call since before there was
    /// a loop, and the descriptors to tell the loop with have run out.
    pub fn arm(&mut self) -> Result<bool> {
        self.arm_for(())
    }

    /// Says that this side is awake.
    pub fn disarm(&mut self) {
        self.unpark();
    }

    /// Reads whatever has come over the line, and notices a publisher that is gone. Errors as [`Subscription::try_receive`].
    pub fn poll_line(&mut self) -> Result<()> {
        self.read_line()
    }

    /// As [`Subscription::poll_line`], where the line is readable and nothing says that it has ended: see
    /// [`Receiver::poll_line_later`](crate::Receiver::poll_line_later).
    pub fn poll_line_later(&mut self) -> Result<()> {
        self.leave_line()
    }

    /// Whether the publisher is gone without having said that no more would come: it may have meant to send more. See
    /// [`Receiver::is_cut`](crate::Receiver::is_cut).
    pub fn is_cut(&self) -> bool {
        self.shared.peer_is_gone()
            && if self.bells.is_some() {
                !self.phase().is_ok_and(|phase| phase.ended)
            } else {
                self.cut
            }
    }

    /// Closes the subscription. What was not read is let go of.
    pub fn close(&mut self) {
        self.shared.finish(ChannelState::ClosedHere);
        self.let_go();
    }

    /// Why it has ended; `None` while it has not. What the publisher left may still be there to read.
    ///
    /// Known once a call that reads, waits or polls the line has noticed it. [`CloseReason::Closed`] also if the publisher has disconnected
    /// this subscription, or has ended, and waits until its last messages are read.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.gone().or(self.ended.then_some(CloseReason::Closed))
    }

    /// Why the channel with the publisher has ended. `None` while the publisher waits until its last messages are read.
    pub(super) fn gone(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }
}

impl AsFd for Subscription {
    /// The private line: readable when the publisher has rung, has gone, or has died. See [`Receiver`](crate::Receiver)'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.line_alone()
    }
}

impl Waits for Subscription {
    type For = ();

    fn parking(&mut self) -> Parking<'_> {
        Parking {
            shared: &self.shared,
            sleeper: self.bells.as_mut().map(|bells| &mut bells.sleeper),
        }
    }

    fn check(&mut self) -> Result<()> {
        Subscription::check(self)
    }

    #[inline]
    fn is_there(&mut self, (): ()) -> Result<bool> {
        self.has_message()
    }

    fn is_over(&mut self) -> Result<bool> {
        self.is_ended()
    }

    fn counted(&mut self) -> (u64, u64) {
        self.reader.counted()
    }
}
