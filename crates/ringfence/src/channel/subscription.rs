//! The ring of a publisher, as a subscription reads it.

use std::{
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::Duration,
};

use crate::{
    channel::end::{END_ANNOUNCED, Shared},
    channel::inbound::{ALL_AVAILABLE, Inbound, Inlet, check_phases, make_room},
    channel::open::{Link, Opened},
    channel::verify::{KnownPeer, Verifier},
    error::{Error, Result},
    evidence::Evidence,
    handshake::broadcast::ReportedStart,
    identity::Identity,
    options::Options,
    region::copy::Readable,
    region::layout::{self, as_offset},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::Phase,
    ring::fan_out::Delivery,
    ring::fan_out::reader::{FanOutReader, FloorLimit, Terms, Validity, View},
    ring::fan_out::readers::ReaderSlot,
    ring::message::Message,
    ring::read::{Packed, TRIES},
    ring::record::HEADER,
    wake::parking::ParkingSpot,
};

/// Messages that are visited at once if a number of bytes was asked for: the bytes are counted in between.
const VISITS: usize = 4;

/// The receiving half of a broadcast: reads as a [`Receiver`](crate::Receiver) does.
///
/// Dropping it closes it.
///
/// # Lagging
/// A reliable subscription gets every message, and delays its publisher if it is a ring behind; one that does so for too long is evicted
/// ([`Error::Evicted`]). With [`Delivery::BestEffort`] and [`Delivery::Latest`], messages that were overwritten or skipped are
/// counted by [`Subscription::lost`]: messages handed out and lost together are [`Subscription::sequence`], less its first value.
///
/// # Closing
/// Once the publisher has ended the subscription, closed or died, [`close_reason`](Inbound::close_reason) returns which it was. The
/// messages that it left can still be read, and then comes the end; those of an evicted subscription are lost.
pub type Subscription = Inbound<BroadcastInlet>;

/// Counts of a subscription since it was made, and its lag.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Messages that were handed out.
    pub messages_received: u64,
    /// Bytes of their payloads.
    pub bytes_received: u64,
    /// See [`Subscription::lost`].
    pub lost: u64,
    /// Bytes that are published and not read. After the end: the last known value.
    pub lag: u64,
    /// The number of times that this side has gone to sleep because there was no message.
    pub sleeps: u64,
    /// Attachments that were received.
    pub attachments_received: u64,
}

/// The ring of a publisher.
pub struct BroadcastInlet {
    /// The publisher's phase was not [`Phase::OPEN`] at the last check, and this side knows where reading ends.
    end_known: bool,
    /// That phase was the orderly end: what is there is all that the publisher sends to this subscriber. Never revoked, whatever a
    /// hostile publisher stores later.
    ended: bool,
    known: KnownPeer,
    /// This side accepts attachments.
    pub(super) collects: bool,
    /// The missed messages whose attachments were dropped.
    pub(super) missed: u64,
    /// The lag when the ring was unmapped.
    last_lag: u64,
}

/// The control objects of both sides. Their phases tell whether the ring still holds what was sent.
pub(crate) struct Controls {
    shared: Arc<Shared>,
    /// Mapped while the publisher is there.
    own: OwnRegion,
    /// The publisher's, of this subscriber. Mapped until everything was read.
    publishers: PeerRegion,
}

impl Validity for Controls {
    #[inline]
    fn check(&self) -> Result<()> {
        let publishers = self.publishers.load(layout::PHASE, Ordering::Relaxed);
        let own = self.own.load(layout::PHASE, Ordering::Relaxed);
        check_phases::<true>(&self.shared, publishers, own)
    }
}

impl Subscription {
    pub(crate) fn begin(
        opened: Opened,
        ring: PeerRegion,
        beginning: ReportedStart,
        options: &Options,
    ) -> Result<Self> {
        let ReportedStart { start, tail } = beginning;
        let spot = ParkingSpot::reader_in(as_offset(start.slot.into()));
        let link = Link::new(&opened, ring.clone(), spot, ParkingSpot::WRITER);
        let (shared, own, longest) = (opened.shared, opened.own, opened.terms.longest_out);
        // It never sends.
        shared.sending_ended.store(true, Ordering::Release);
        let reader_slot = ReaderSlot {
            number: 0,
            slot: as_offset(start.slot.into()),
            position: start.position,
            sequence: start.sequence,
        };
        let terms = Terms {
            capacity: opened.terms.peer_capacity,
            longest,
            delivery: options.delivery,
            slot: reader_slot,
        };
        let controls = Controls {
            shared: Arc::clone(&shared),
            own: own.clone(),
            publishers: opened.peer,
        };
        let reader = FanOutReader::new(ring, own, controls, terms);
        let mut reader = shared.judge(reader)?;
        let began = reader.begin(options.from, tail);
        shared.judge(began)?;
        let ring = BroadcastInlet {
            end_known: false,
            ended: false,
            known: opened.known,
            collects: options.attachments.any(),
            missed: 0,
            last_lag: 0,
        };
        Ok(Self::over(reader, ring, link, longest, shared))
    }

    /// Returns the publisher's identity at the last check.
    pub fn peer(&self) -> &Identity {
        &self.ring.known.identity
    }

    /// Returns the checks of the handshake, in order, and those of the last [`Subscription::verify`].
    pub fn evidence(&self) -> &[Evidence] {
        &self.ring.known.evidence
    }

    /// Returns which messages arrive.
    pub fn delivery(&self) -> Delivery {
        self.reader.limit.delivery
    }

    /// Returns the size of the publisher's ring in bytes.
    pub fn capacity(&self) -> u64 {
        self.reader.capacity
    }

    /// Returns how many messages were published since the subscription began and will never be handed out. A lost message counts once a
    /// later one is handed out.
    pub fn lost(&self) -> u64 {
        self.reader.limit.lost
    }

    /// Returns the number of the last message that was handed out, as the publisher counts; the first is 1. Before that, the number of
    /// the message after which the subscription began.
    pub fn sequence(&self) -> u64 {
        self.reader.sequence()
    }

    /// Returns how many bytes are published and not read. 0 once nothing more is read, and in a forked child.
    pub fn lag(&self) -> u64 {
        if self.shared.is_inherited() {
            return 0;
        }
        let tail = self.reader.peer.load(layout::TAIL, Ordering::Acquire);
        tail.saturating_sub(self.reader.position())
    }

    /// Returns what was received so far. The last figures stay after the end.
    pub fn stats(&self) -> SubscriptionStats {
        let (messages_received, bytes_received) = self.reader.counted();
        let over = self.reader.limit.validity.publishers.is_detached();
        SubscriptionStats {
            messages_received,
            bytes_received,
            lost: self.reader.limit.lost,
            lag: if over { self.ring.last_lag } else { self.lag() },
            sleeps: self.shared.counters.sleeps.load(Ordering::Relaxed),
            attachments_received: self.shared.counters.attachments_received.load(Ordering::Relaxed),
        }
    }

    /// Returns how long a wait spins before it sleeps ([`Options::busy_poll`]), for bindings that wait in their own way.
    pub fn busy_poll(&self) -> Duration {
        self.shared.busy_poll
    }

    /// Checks the publisher again, as [`Channel::verify`](crate::Channel::verify) does.
    ///
    /// # Errors
    /// As [`Verifier::verify`].
    pub fn verify(&mut self) -> Result<&Identity> {
        self.ring.known.verify()
    }

    /// Returns a handle that checks the publisher again from another thread.
    pub fn verifier(&self) -> Verifier {
        self.ring.known.verifier.clone()
    }

    /// Receives the next message, whatever it is.
    #[inline(never)]
    fn receive_any(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let mut received = None;
        for _ in 0..TRIES {
            if self.ring.collects {
                self.collect_next_tagged()?;
            }
            let found = self.reader.receive(into);
            received = self.judge(found)?;
            if received.is_some() || !self.reader.has_stopped() {
                break;
            }
        }
        if received.is_some() {
            self.drop_missed();
            self.publish_and_wake();
        } else {
            self.on_empty()?;
        }
        Ok(received)
    }
}

impl Inlet for BroadcastInlet {
    const NAME: &'static str = "Subscription";
    type Limit = FloorLimit<Controls>;

    fn counted(half: &mut Subscription) -> (u64, u64) {
        half.reader.counted()
    }

    #[inline]
    fn phase_word(half: &Subscription) -> u64 {
        let Controls { publishers, .. } = &half.reader.limit.validity;
        publishers.load(layout::PHASE, Ordering::Acquire)
    }

    #[inline]
    fn check_copies(half: &Subscription) -> Result<()> {
        fence(Ordering::Acquire);
        half.reader.limit.validity.check()
    }

    /// A disconnected subscription reads up to the position where the publisher ended it, though the publisher continues.
    #[inline]
    fn notice_end(half: &mut Subscription) {
        if !half.ring.end_known && Self::phase_word(half) != Phase::OPEN.word() {
            Self::end_at_announced(half);
        }
    }

    #[cold]
    fn end_at_announced(half: &mut Subscription) {
        half.ring.end_known = true;
        half.ring.ended |= Phase::from_word(Self::phase_word(half)).is_some_and(|phase| phase.ended);
        let Controls { publishers, .. } = &half.reader.limit.validity;
        let word = publishers.load(layout::TAIL, Ordering::Acquire);
        if word & END_ANNOUNCED != 0 {
            half.reader.end_at(word & !END_ANNOUNCED);
        }
    }

    #[inline]
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn release_own(half: &mut Subscription) {
        Self::end_at_announced(half);
        half.reader.freeze_tail(OwnRegion::detached());
        half.reader.limit.validity.own = OwnRegion::detached();
    }

    fn release_all(half: &mut Subscription) {
        if half.reader.limit.validity.publishers.is_detached() {
            return;
        }
        half.ring.last_lag = half.lag();
        half.reader.detach(OwnRegion::detached(), PeerRegion::detached());
        let controls = &mut half.reader.limit.validity;
        controls.own = OwnRegion::detached();
        controls.publishers = PeerRegion::detached();
    }

    #[inline]
    fn try_receive(half: &mut Subscription, into: &mut [u8]) -> Result<Option<usize>> {
        if !half.ring.collects
            && let Some(length) = half.reader.receive_known(into)
        {
            half.publish_and_wake();
            return Ok(Some(length));
        }
        half.receive_any(into)
    }

    fn try_receive_into(half: &mut Subscription, into: &mut Vec<u8>) -> Result<bool> {
        while let Some(size) = half.next_size()? {
            make_room(into, size)?;
            into.resize(size, 0);
            match half.try_receive(into) {
                Ok(received) => {
                    into.truncate(received.unwrap_or(0));
                    return Ok(received.is_some());
                }
                // It was overwritten in the meantime, and the next message is longer.
                Err(Error::InvalidArgument(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn receive_packed(half: &mut Subscription, into: &mut [u8]) -> Result<Packed> {
        half.check()?;
        let pulled = half.reader.pull_packed(into);
        let pulled = half.judge(pulled)?;
        if pulled == Packed::Nothing {
            half.on_empty()?;
        }
        Ok(pulled)
    }

    fn visit(
        half: &mut Subscription,
        count: &mut usize,
        mut visit: impl FnMut(Message<'_>),
        max: usize,
        bytes: u64,
    ) -> Result<bool> {
        let (before, bytes_before) = half.reader.counted();
        let batch = if bytes == ALL_AVAILABLE { max } else { VISITS };
        let mut stops = 0;
        loop {
            let attached = half.ring.collects && half.collect_next_tagged()?;
            let at_once = if attached { 1 } else { batch }.min(max - *count);
            let visited = half.reader.visit(at_once, |view| {
                visit(match view {
                    View::Copy(bytes) => Message::gathered(bytes),
                    View::InRing(ring, record) => {
                        Message::in_ring(ring, record.at, record.length, record.end)
                    }
                });
            });
            let (messages, payload) = half.reader.counted();
            *count = usize::try_from(messages - before).unwrap_or(usize::MAX);
            half.drop_missed();
            let visited = half.judge(visited).inspect_err(|_| half.publish_and_wake())?;
            let stopped = half.reader.has_stopped();
            if visited == 0 && !stopped {
                half.on_empty()?;
            } else {
                half.publish_and_wake();
            }
            let spent = payload - bytes_before + (messages - before) * HEADER;
            // A visit also stops at a message with attachments.
            let empty = !stopped && (visited == 0 || (visited < at_once && half.reader.is_drained()));
            // The caller takes them before the next message.
            stops += u32::from(stopped && visited == 0);
            if empty || (attached && visited > 0) || *count >= max || spent >= bytes || stops >= TRIES {
                return Ok(empty);
            }
            // The publisher may have ended the subscription since: what it publishes later is not read.
            half.check()?;
        }
    }
}
