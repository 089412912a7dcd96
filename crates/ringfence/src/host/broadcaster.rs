//! The sending half of a publisher.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    channel::end::{AtomicState, ChannelState},
    channel::outbound::{Outbound, Outlet, Writing},
    channel::unread::PassedAttachments,
    channel::waiting::{Slept, SpinPacer, SpinThenPark},
    error::{Error, Result},
    fork::inherited,
    handshake::broadcast::ReaderLink,
    host::audience::Broadcast,
    host::endpoint::Endpoint,
    host::stalls::Goal,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::FanOut,
    ring::fan_out::floor::{FanOutWriter, Floor},
    ring::message::Progress,
    ring::record::Tag,
    wake::attachments::AttachmentRef,
    wake::doorbell::Doorbell,
    wake::parking::ParkingSpot,
    wake::parking::many::{FanWaker, RoomSleeper, SleepingReader},
};

/// The counters of a publisher since it was made, and the state of its ring.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Messages that were published.
    pub published: u64,
    /// Bytes of their payloads.
    pub bytes_published: u64,
    /// Current subscribers.
    pub subscribers: usize,
    /// Subscribers that were evicted because they had held the publisher up for longer than [`Options::stall`](crate::Options::stall).
    pub evicted: u64,
    /// Calls of [`Broadcaster::send`] that had to wait for room.
    pub waits: u64,
    /// The time that they waited, in microseconds.
    pub waited_micros: u64,
    /// Bytes of the ring that the slowest reliable subscriber has not read; 0 if there is none. After the end: as it was then.
    pub ring_used: u64,
    /// Bytes of the ring.
    pub ring_capacity: u64,
    /// Attachments that were passed: one for each subscriber that got it.
    pub attachments_sent: u64,
    /// Attachments that a subscriber did not get with its message: it does not accept them, or is not reliable and holds too many.
    pub attachments_withheld: u64,
}

/// A program that tries in a loop, without a wait, has the subscribers in its way charged no more often than this.
const CHARGE_INTERVAL: Duration = Duration::from_millis(5);

/// The half of a [`Publisher`](crate::Publisher) that sends. It can live on another thread than the other half, the
/// [`Audience`](crate::Audience): subscribers are accepted concurrently.
///
/// A message is written once, whatever the number of subscribers. Sending allocates nothing, unless the first message after a change of
/// the list of subscribers needs memory for a longer one.
pub type Broadcaster = Outbound<FanOut>;

/// Wakes the subscribers that sleep, and charges those that are in the way.
pub(crate) struct FanLink {
    waker: FanWaker<OwnRegion, PeerRegion, Weak<Doorbell>>,
    sleeper: RoomSleeper<OwnRegion>,
    /// The generation of the list of readers that the waker has.
    known: u64,
    /// A message was refused, and none has been sent since: what must have been read, so that it finds room, and the time of the last
    /// charge.
    stalled: Option<(Goal, Instant)>,
}

/// State of a broadcaster beside its ring.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    busy_poll: Duration,
    /// The published messages and the bytes of their payloads, as last known.
    published: (u64, u64),
    /// Unread bytes of the ring, as last known.
    used: u64,
    waits: u64,
    waited: Duration,
    pub(super) attached: PassedAttachments,
}

impl Outlet for FanOut {
    const NAME: &'static str = "Broadcaster";
    type Shared = Endpoint<Broadcast>;
    type Room = Floor<OwnRegion, PeerRegion, ReaderLink>;
    type Link = FanLink;
    type Own = Figures;

    const ENDED: &'static str = "the publisher has ended: it sends no more";
    const TOO_LONG: &'static str =
        "what the publisher was made for: an eighth of its ring, or its max_message_size";
    const PUBLISHING_MAKES_ROOM: bool = true;

    #[inline]
    fn state(shared: &Endpoint<Broadcast>) -> &AtomicState {
        &shared.state
    }

    fn check(shared: &Endpoint<Broadcast>) -> Result<()> {
        match shared.state.get() {
            ChannelState::Open => Ok(()),
            ChannelState::Inherited => Err(inherited()),
            ChannelState::Exposed => Err(Error::ObjectExposed(
                "another process tried to open the publisher's ring, which was wiped; the publisher is closed"
                    .into(),
            )),
            _ => Err(Error::Closed("the publisher is closed")),
        }
    }

    #[expect(
        clippy::inline_always,
        reason = "in a program that publishes at two places the compiler would make a call of it: 2.5 ns of 10 for each message"
    )]
    #[inline(always)]
    fn wake_readers(writing: &mut Writing<Self>) {
        let Writing { ring, link, .. } = writing;
        let FanLink { waker, known, .. } = link;
        let update = |waker: &mut FanWaker<_, _, _>| {
            let generation = ring.generation();
            if generation != *known {
                *known = generation;
                update_waker(waker, ring);
            }
        };
        waker.wake(update, wake_reader);
        if writing.ring.has_violation() {
            end_violators(writing);
        }
        if writing.link.stalled.is_some() {
            give_up(writing);
        }
    }

    fn judge<T>(writing: &mut Writing<Self>, result: Result<T>) -> Result<T> {
        end_violators(writing);
        result
    }

    fn on_full(writing: &mut Writing<Self>, size: usize) {
        let goal = writing.ring.awaited(size as u64);
        end_violators(writing);
        // A message that is longer than the one before waits for more.
        if let Some(position) = goal
            && writing.link.stalled.is_none_or(|(before, at)| {
                before.only.is_some() || position > before.position || at.elapsed() >= CHARGE_INTERVAL
            })
        {
            let only = None;
            charge(writing, Goal { position, only });
        }
    }

    fn send_part(outbound: &mut Broadcaster, message: &[u8], tag: Tag, _written: usize) -> Result<Progress> {
        let sent = outbound.try_send_tagged(message, tag)?;
        Ok(if sent { Progress::Whole } else { Progress::Part(0) })
    }

    fn send_part_with(
        outbound: &mut Broadcaster,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
    ) -> Result<Progress> {
        let sent = outbound.try_send_with(message, attachments)?;
        Ok(if sent { Progress::Whole } else { Progress::Part(0) })
    }

    fn await_room_for(outbound: &mut Broadcaster, attachments: &[AttachmentRef<'_>]) -> Result<()> {
        let attached = &mut outbound.own.attached;
        attached.awaited = attached.full.filter(|_| !attachments.is_empty());
        Ok(())
    }

    fn arm(outbound: &mut Broadcaster, size: usize) -> Result<bool> {
        let Writing { ring, link, .. } = outbound.writing()?;
        link.sleeper.park_for_room(ring.reliable_controls())?;
        let room = outbound.spin_check(size);
        if !matches!(room, Ok(false)) {
            outbound.disarm();
        }
        room.map(|room| !room)
    }

    fn disarm(outbound: &mut Broadcaster) {
        if let Some(writing) = &mut outbound.writing
            && outbound.shared.in_owner_process()
        {
            writing.link.sleeper.unpark();
        }
    }

    fn count_wait(outbound: &mut Broadcaster, since: Instant, failed: bool) {
        if failed {
            outbound.give_up();
        }
        outbound.own.waits += 1;
        outbound.own.waited += since.elapsed();
    }

    fn release(outbound: &mut Broadcaster) {
        // In a forked child the ring is not mapped.
        if outbound.shared.in_owner_process() {
            outbound.give_up();
            outbound.read_figures();
            outbound.writing = None;
        }
    }

    fn end(outbound: &mut Broadcaster) {
        if outbound.shared.in_owner_process() {
            if let Some(writing) = &mut outbound.writing {
                give_up(writing);
                writing.publish();
            }
            Self::release(outbound);
            outbound.shared.end();
        }
    }

    fn destroy(outbound: &mut Broadcaster) {
        if outbound.shared.in_owner_process() {
            Self::release(outbound);
            outbound.shared.close(ChannelState::DestroyedHere);
        }
    }
}

#[cold]
fn update_waker(
    waker: &mut FanWaker<OwnRegion, PeerRegion, Weak<Doorbell>>,
    ring: &mut FanOutWriter<OwnRegion, PeerRegion, ReaderLink>,
) {
    for (slot, active) in ring.changes() {
        let watched = active.map(|(control, link)| SleepingReader {
            control,
            barriers: link.barriers,
            waker: link.doorbell,
        });
        waker.watch(slot, watched);
    }
}

#[cold]
fn wake_reader(doorbell: &Weak<Doorbell>) {
    if let Some(doorbell) = doorbell.upgrade() {
        doorbell.wake_peer();
    }
}

/// Ends the channel of each subscriber that has violated the protocol. This concerns no other subscriber.
#[cold]
fn end_violators(writing: &mut Writing<FanOut>) {
    while let Some(violation) = writing.ring.violation() {
        if let Some(link) = writing.shared.link(violation.number) {
            // The subscriber gets the reason of its end.
            let _ = link.judge::<()>(Err(violation.error));
        }
    }
}

/// Charges the subscribers that are in the way. To be called while this half is awake, each time that it has found no room: a subscriber
/// that shows a sleeping sender, and so the watcher, that it has read is judged by what it shows now.
pub(super) fn charge(writing: &mut Writing<FanOut>, mut goal: Goal) {
    if let Some((before, _)) = writing.link.stalled
        && before.only == goal.only
    {
        goal.position = goal.position.max(before.position);
    }
    writing.link.stalled = Some((goal, Instant::now()));
    writing.shared.begin_stall(goal);
}

#[cold]
fn give_up(writing: &mut Writing<FanOut>) {
    if writing.link.stalled.take().is_some() && writing.shared.in_owner_process() {
        writing.shared.end_stall();
    }
}

impl Broadcaster {
    pub(crate) fn publishing(shared: &Arc<Endpoint<Broadcast>>, longest: u64, busy_poll: Duration) -> Self {
        let (region, barriers, capacity) = (&shared.region, shared.barriers, shared.capacity);
        let writing = Writing {
            ring: FanOutWriter::new(region.clone(), Arc::clone(&shared.ring.readers), capacity),
            link: FanLink {
                waker: FanWaker::new(region.clone(), barriers),
                sleeper: RoomSleeper::new(region.clone(), (), ParkingSpot::WRITER, barriers),
                known: 0,
                stalled: None,
            },
            shared: Arc::clone(shared),
        };
        let figures = Figures {
            busy_poll,
            ..Figures::default()
        };
        Self::new(writing, capacity, longest, figures)
    }

    /// Messages that were published.
    pub fn sequence(&self) -> u64 {
        let writing = self.writing.as_ref();
        let (messages, _) = writing.map_or(self.own.published, |writing| writing.ring.counted());
        messages
    }

    /// Returns the counters so far. The last figures stay after the end.
    pub fn stats(&mut self) -> PublisherStats {
        if self.shared.in_owner_process() {
            self.read_figures();
        }
        let (subscribers, evicted) = self.shared.counts();
        let own = &self.own;
        PublisherStats {
            published: self.sequence(),
            bytes_published: own.published.1,
            subscribers,
            evicted,
            waits: own.waits,
            waited_micros: u64::try_from(own.waited.as_micros()).unwrap_or(u64::MAX),
            ring_used: own.used,
            ring_capacity: self.capacity(),
            attachments_sent: own.attached.sent,
            attachments_withheld: own.attached.withheld,
        }
    }

    fn read_figures(&mut self) {
        if let Some(writing) = &mut self.writing {
            self.own.published = writing.ring.counted();
            self.own.used = writing.ring.used();
            end_violators(writing);
        }
    }

    /// Gives up the message that was refused, so that no time counts against the subscribers.
    pub fn give_up(&mut self) {
        if let Some(writing) = &mut self.writing {
            give_up(writing);
        }
    }

    /// Whether the subscriber that this half waits for has read enough, or has gone.
    fn has_awaited_read(&self) -> bool {
        let Some((number, goal)) = self.own.attached.awaited else {
            return true;
        };
        let head = self.shared.ring.readers.position(number);
        head.is_none_or(|head| head >= goal)
    }

    /// Checks the subscribers that have woken this half, or have gone. Returns whether any was awaited.
    fn check_subscribers(&self, found: Option<&[u64]>) -> bool {
        for number in found.into_iter().flatten() {
            self.shared.check_subscriber(*number, true);
        }
        found.is_some()
    }

    /// Reads the wakeups of the subscribers, and releases those that have gone.
    pub fn poll_line(&mut self) {
        if self.shared.in_owner_process() {
            // If this fails, nothing was read, and the wakeups stay.
            let found = self.shared.watches.wait_for_room(Some(Instant::now()));
            self.check_subscribers(found.unwrap_or_default().as_deref());
        }
    }
}

/// The watcher notices subscribers that have died, and then their room is free: a thread that spins finds it in the ring.
impl SpinThenPark for Broadcaster {
    type For = usize;

    fn spin_time(&mut self) -> Duration {
        self.own.busy_poll
    }

    fn spin_pacer(&mut self) -> &mut SpinPacer {
        &mut self.spins
    }

    fn spin_check(&mut self, size: usize) -> Result<bool> {
        Ok(self.has_room(size)? && self.has_awaited_read())
    }

    fn park_until(&mut self, size: usize, deadline: Option<Instant>) -> Result<Slept> {
        if !self.arm(size)? {
            return Ok(Slept::Ready);
        }
        let found = self.shared.watches.wait_for_room(deadline);
        self.disarm();
        let woken = found.map(|found| self.check_subscribers(found.as_deref()));
        if self.spin_check(size)? {
            return Ok(Slept::Ready);
        }
        if let Some(writing) = &mut self.writing
            && let Some((goal, _)) = writing.link.stalled
        {
            charge(writing, goal);
        }
        Ok(if woken? { Slept::Woken } else { Slept::Late })
    }
}

impl AsFd for Broadcaster {
    /// Readable when a subscriber has made room and woken this half, or one has gone. For [`Broadcaster::arm`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.watches.as_fd()
    }
}
