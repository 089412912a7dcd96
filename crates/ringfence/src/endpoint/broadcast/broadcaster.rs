//! The half of a publisher that sends. What it reserves is in `room`, and what it publishes at once in `batch`.
#![expect(
    clippy::inline_always,
    reason = "in a program that publishes at two places the compiler would make a call of it: 2.5 ns of 10 for each message"
)]

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    channel::end::{ChannelState, CloseReason},
    channel::waiting::{Slept, SpinThenPark},
    error::{Error, Result},
    fork::inherited,
    handshake::broadcast::ReaderBell,
    host::audience::Broadcast,
    host::endpoint::Endpoint,
    region::layout::as_offset,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::floor::FanOutWriter,
    wake::doorbell::Doorbell,
    wake::parking::many::{FanWaker, RoomSleeper, SleepingReader},
};

/// What a publisher has done since it was made, and how full its ring is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Messages that were published.
    pub published: u64,
    /// Bytes of their payloads.
    pub bytes_published: u64,
    /// Those that are subscribed now.
    pub subscribers: usize,
    /// Subscribers that were let go of since they had held it up for longer than [`Options::stall`](crate::Options::stall).
    pub evicted: u64,
    /// Calls of [`Broadcaster::send`] that had to wait for room.
    pub waits: u64,
    /// How long they waited, in microseconds.
    pub waited_micros: u64,
    /// Bytes of the ring that the slowest reliable subscriber has not read; 0 where there is none. After the end: as it was then.
    pub ring_used: u64,
    /// Bytes of the ring.
    pub ring_capacity: u64,
}

/// A program that tries again and again, without a wait, has those in its way looked at no more often than this.
const CHARGED_AGAIN: Duration = Duration::from_millis(5);

/// The half of a [`Publisher`](crate::Publisher) that sends. It can live on another thread than the other half, the
/// [`Audience`](crate::Audience), as newcomers are let in beside it.
///
/// A message is written once, whatever the number of subscribers. Sending allocates nothing, unless the first message after a change of
/// the list of subscribers needs room for a longer one.
#[derive(Debug)]
pub struct Broadcaster {
    pub(super) shared: Arc<Endpoint<Broadcast>>,
    /// `None` once nothing more is sent.
    pub(super) writing: Option<Writing>,
    pub(super) longest: u64,
    busy_poll: Duration,
    /// Messages, once there is no ring to ask.
    sequence: u64,
    /// Bytes of these, and of the ring that were not read.
    bytes: u64,
    used: u64,
    waits: u64,
    waited: Duration,
    /// A message was refused, and none has gone through since: where all must have read to, so that it finds room; and when that was last
    /// looked at.
    stalled: Option<(u64, Instant)>,
    /// Whether there is a [`Reserved`](crate::channel::reserved::Reserved) that may be written. It stores `false` when it is dropped.
    pub(super) reservation: Arc<AtomicBool>,
    pub(super) reserved: bool,
}

#[derive(Debug)]
pub(super) struct Writing {
    pub(super) ring: FanOutWriter<OwnRegion, PeerRegion, ReaderBell>,
    waker: FanWaker<OwnRegion, PeerRegion, Weak<Doorbell>>,
    sleeper: RoomSleeper<OwnRegion>,
    /// The generation of the list of readers that the waker has.
    known: u64,
}

impl Writing {
    /// Wakes the readers that sleep, after a publication.
    #[inline]
    fn wake(&mut self, shared: &Endpoint<Broadcast>) {
        let Self {
            ring, waker, known, ..
        } = self;
        let update = |waker: &mut FanWaker<_, _, _>| {
            let generation = shared.ring.readers.generation();
            if generation != *known {
                *known = generation;
                update_waker(waker, ring);
            }
        };
        waker.wake(update, wake_reader);
    }
}

#[cold]
fn update_waker(
    waker: &mut FanWaker<OwnRegion, PeerRegion, Weak<Doorbell>>,
    ring: &mut FanOutWriter<OwnRegion, PeerRegion, ReaderBell>,
) {
    for (slot, active) in ring.changes() {
        let watched = active.map(|(control, bell)| SleepingReader {
            control,
            barriers: bell.barriers,
            bell: bell.doorbell,
        });
        waker.watch(slot, watched);
    }
}

#[cold]
fn wake_reader(doorbell: &Weak<Doorbell>) {
    if let Some(doorbell) = doorbell.upgrade() {
        doorbell.ring();
    }
}

impl Broadcaster {
    pub(crate) fn new(shared: &Arc<Endpoint<Broadcast>>, longest: u64, busy_poll: Duration) -> Self {
        let (region, barriers) = (&shared.region, shared.barriers);
        Self {
            writing: Some(Writing {
                ring: FanOutWriter::new(region.clone(), Arc::clone(&shared.ring.readers), shared.capacity),
                waker: FanWaker::new(region.clone(), barriers),
                sleeper: RoomSleeper::new(region.clone(), barriers),
                known: 0,
            }),
            shared: Arc::clone(shared),
            longest,
            busy_poll,
            sequence: 0,
            bytes: 0,
            used: 0,
            waits: 0,
            waited: Duration::ZERO,
            stalled: None,
            reservation: Arc::default(),
            reserved: false,
        }
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.shared.capacity
    }

    /// Bytes of the longest message: at most an eighth of the ring.
    pub fn max_message_size(&self) -> u64 {
        self.longest
    }

    /// Messages that were published.
    pub fn sequence(&self) -> u64 {
        self.writing
            .as_ref()
            .map_or(self.sequence, |writing| writing.ring.counted().0)
    }

    /// What was published so far, and for how long it had to wait. The last figures stay after the end.
    pub fn stats(&mut self) -> PublisherStats {
        if let Some(writing) = &mut self.writing
            && self.shared.is_here()
        {
            self.bytes = writing.ring.counted().1;
            self.used = writing.ring.used();
            if let Some(lie) = writing.ring.violation() {
                self.told_a_lie(lie);
            }
        }
        let (subscribers, evicted) = self.shared.counts();
        PublisherStats {
            published: self.sequence(),
            bytes_published: self.bytes,
            subscribers,
            evicted,
            waits: self.waits,
            waited_micros: u64::try_from(self.waited.as_micros()).unwrap_or(u64::MAX),
            ring_used: self.used,
            ring_capacity: self.shared.capacity,
        }
    }

    /// Lets go of the ring. What is known of it by then stays.
    fn keep_counts(&mut self, writing: &mut Writing) {
        self.sequence = writing.ring.counted().0;
        self.bytes = writing.ring.counted().1;
        // In a child the ring is not there.
        if self.shared.is_here() {
            self.used = writing.ring.used();
        }
    }

    #[inline]
    pub(super) fn check_size(&self, size: usize) -> Result<()> {
        if size as u64 <= self.longest {
            return Ok(());
        }
        Err(Error::MessageTooLarge {
            size,
            limit: self.longest,
            reason: "what the publisher was made for: an eighth of its ring, or its max_message_size",
        })
    }

    /// The ring, if something may be sent now.
    #[inline]
    pub(super) fn writing(&mut self) -> Result<&mut Writing> {
        if !self.is_open() {
            return Err(self.why_not());
        }
        if self.reserved {
            self.must_be_given_back()?;
        }
        self.writing.as_mut().ok_or_else(ended)
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.shared.state.is(ChannelState::Open, Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn why_not(&mut self) -> Error {
        let state = self.shared.state.get();
        if let (ChannelState::Open | ChannelState::ClosedHere | ChannelState::Exposed, Some(mut writing)) =
            (state, self.writing.take())
        {
            self.keep_counts(&mut writing);
        }
        match state {
            ChannelState::Inherited => inherited(),
            ChannelState::Exposed => Error::ObjectExposed(
                "another process tried to open the publisher's ring, which was wiped; the publisher is closed"
                    .into(),
            ),
            _ => Error::Closed("the publisher is closed"),
        }
    }

    #[cold]
    fn must_be_given_back(&mut self) -> Result<()> {
        // Acquire: what was written there was written before the bytes are given to another.
        if self.reservation.load(Ordering::Acquire) {
            return Err(Error::invalid(
                "a reservation is open: commit or cancel it first (one that was forgotten keeps this publisher from sending)",
            ));
        }
        self.reserved = false;
        Ok(())
    }

    /// Puts a message into the ring. `false`: there is no room now, since a reliable subscriber has not read far enough. From then
    /// on, until a message goes through, time counts against those that are in the way ([`Options::stall`](crate::Options::stall)).
    ///
    /// Errors: [`Error::MessageTooLarge`] above [`Broadcaster::max_message_size`]; [`Error::Closed`] after [`Broadcaster::end`] or
    /// close; [`Error::ObjectExposed`] where another process has tried to open the ring.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        self.check_size(message.len())?;
        let writing = self.writing()?;
        if !writing.ring.push_now(message)? {
            return Ok(self.refused(message.len()));
        }
        self.sent();
        Ok(true)
    }

    /// Publishes what was written.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self
            .writing
            .as_mut()
            .is_some_and(|writing| writing.ring.publish())
        {
            self.sent();
        }
    }

    /// Looks after what a sender must that has published something.
    #[inline(always)]
    pub(super) fn sent(&mut self) {
        let Self { shared, writing, .. } = self;
        let Some(writing) = writing else { return };
        writing.wake(shared);
        if let Some(lie) = writing.ring.violation() {
            self.told_a_lie(lie);
        }
        if self.stalled.is_some() {
            self.give_up();
        }
    }

    /// There was no room: answers `false`.
    #[cold]
    pub(super) fn refused(&mut self, size: usize) -> bool {
        let Some(writing) = &mut self.writing else {
            return false;
        };
        let goal = writing.ring.awaited(size as u64);
        let lie = writing.ring.violation();
        if let Some(lie) = lie {
            self.told_a_lie(lie);
        }
        // A longer one than before waits for more.
        if let Some(goal) = goal
            && self
                .stalled
                .is_none_or(|(before, at)| goal > before || at.elapsed() >= CHARGED_AGAIN)
        {
            self.charge(goal);
        }
        false
    }

    /// Those that are in the way pay for the time. To be called while this half is awake, each time that it has found no room: one that
    /// shows a sleeping sender, and so the watcher, that it has read is found by what it shows now.
    fn charge(&mut self, goal: u64) {
        let goal = self.stalled.map_or(goal, |(before, _)| before.max(goal));
        self.stalled = Some((goal, Instant::now()));
        self.shared.begin_stall(goal);
    }

    /// A subscriber has said of itself what cannot be: that ends its channel, and concerns no other.
    #[cold]
    fn told_a_lie(&mut self, first: crate::ring::fan_out::floor::Violation) {
        let mut next = Some(first);
        while let Some(lie) = next {
            if let Some(link) = self.shared.link(lie.number) {
                // It is told how it ended.
                let _ = link.judge::<()>(Err(lie.error));
            }
            next = self.writing.as_mut().and_then(|writing| writing.ring.violation());
        }
    }

    /// The message that was refused is not to be sent any more, so that no time counts against the subscribers.
    #[cold]
    pub fn give_up(&mut self) {
        if self.stalled.take().is_some() && self.shared.is_here() {
            self.shared.end_stall();
        }
    }

    /// Puts a message into the ring, and sleeps while there is no room. Errors as [`Broadcaster::try_send`].
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        if self.try_send(message)? {
            return Ok(());
        }
        self.send_late(message, None)
    }

    /// There was no room, and is waited for.
    #[cold]
    fn send_late(&mut self, message: &[u8], deadline: Option<Instant>) -> Result<()> {
        let since = Instant::now();
        let sent = self.send_once_there_is_room(message, deadline);
        if sent.is_err() {
            self.give_up();
        }
        self.waits += 1;
        self.waited += since.elapsed();
        sent
    }

    fn send_once_there_is_room(&mut self, message: &[u8], deadline: Option<Instant>) -> Result<()> {
        loop {
            if !self.wait(message.len(), deadline)? {
                return Err(Error::TimedOut);
            }
            if self.try_send(message)? {
                return Ok(());
            }
        }
    }

    /// As [`Broadcaster::send`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing was sent then.
    pub fn send_until(&mut self, message: &[u8], deadline: Instant) -> Result<()> {
        if self.try_send(message)? {
            return Ok(());
        }
        self.send_late(message, Some(deadline))
    }

    /// Puts whole messages into the ring, laid out as [`Sender::try_send_packed`](crate::Sender::try_send_packed) has them: one
    /// publication for all. Returns how many bytes of `packed` were taken; the rest found no room.
    ///
    /// Errors as [`Broadcaster::try_send`], and [`Error::InvalidArgument`] for what is not laid out so: where that is not the
    /// first, those before it are taken, and the next call refuses it.
    pub fn try_send_packed(&mut self, packed: &[u8]) -> Result<usize> {
        let longest = self.longest;
        let writing = self.writing()?;
        let taken = writing.ring.push_packed(packed, longest);
        let taken = taken.inspect(|taken| {
            if *taken > 0 {
                self.publish();
            }
        })?;
        if taken < packed.len() {
            let next = packed[taken..].first_chunk::<4>();
            let size = next.map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
            self.refused(size.min(as_offset(longest)));
        }
        Ok(taken)
    }

    /// Whether a message of `size` bytes would find room now. Errors as [`Broadcaster::try_send`].
    pub fn has_room(&mut self, size: usize) -> Result<bool> {
        self.check_size(size)?;
        let writing = self.writing()?;
        let has_room = writing.ring.has_room(size as u64)?;
        if let Some(lie) = writing.ring.violation() {
            self.told_a_lie(lie);
            return self.has_room(size);
        }
        Ok(has_room)
    }

    /// Bytes of packed records of messages of at most `longest` bytes each that surely find room now: see
    /// [`Sender::packed_room`](crate::Sender::packed_room). A reliable subscriber that comes later and begins with the oldest message
    /// keeps what the ring holds, so that there is less room from then on, and maybe none: what does not go in then is told as ever.
    pub fn packed_room(&mut self, longest: usize) -> Result<usize> {
        let writing = self.writing()?;
        let room = writing.ring.packed_room(longest as u64)?;
        if let Some(lie) = writing.ring.violation() {
            self.told_a_lie(lie);
            return self.packed_room(longest);
        }
        Ok(as_offset(room))
    }

    /// Sleeps until [`Broadcaster::has_room`] of that size. `false`: the deadline has passed. Errors as [`Broadcaster::try_send`].
    pub fn wait(&mut self, size: usize, deadline: Option<Instant>) -> Result<bool> {
        self.wait_until(size, deadline)
    }

    /// Looks at the subscribers that have rung, or gone. Whether any was awaited.
    fn look_at(&self, found: Option<&[u64]>) -> bool {
        for number in found.into_iter().flatten() {
            self.shared.look_at(*number, true);
        }
        found.is_some()
    }

    /// For event loops: says that this half sleeps until a message of `size` bytes finds room. `true`: it does not now; wait for
    /// the descriptor ([`AsFd`]) to be readable, then call [`Broadcaster::poll_line`] and [`Broadcaster::disarm`]. `false`: there is
    /// room. Errors as [`Broadcaster::try_send`].
    pub fn arm(&mut self, size: usize) -> Result<bool> {
        let writing = self.writing()?;
        let Writing { ring, sleeper, .. } = writing;
        sleeper.park(ring.reliable_controls())?;
        let room = self.has_room(size);
        if !matches!(room, Ok(false)) {
            self.disarm();
        }
        room.map(|room| !room)
    }

    /// Says that this half is awake.
    pub fn disarm(&mut self) {
        if let Some(writing) = &mut self.writing
            && self.shared.is_here()
        {
            writing.sleeper.unpark();
        }
    }

    /// Hears who has rung, and lets go of those that have gone.
    pub fn poll_line(&mut self) {
        if self.shared.is_here() {
            // A look that fails has seen nothing. What it has not seen stays.
            let found = self.shared.watches.wait_for_room(Some(Instant::now()));
            self.look_at(found.unwrap_or_default().as_deref());
        }
    }

    /// Sends no more: each subscriber gets all that was sent, and then its end. The address is free when this returns.
    pub fn end(&mut self) {
        if !self.shared.is_here() {
            return;
        }
        self.give_up();
        if let Some(mut writing) = self.writing.take() {
            if writing.ring.publish() {
                writing.wake(&self.shared);
            }
            self.keep_counts(&mut writing);
        }
        self.shared.end();
    }

    /// Why the publisher has ended; `None` while it has not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.state.get().close_reason()
    }
}

/// The watcher notices subscribers that have died, and their room is free then: a thread that spins sees that in the ring.
impl SpinThenPark for Broadcaster {
    type For = usize;

    fn spin_time(&mut self) -> Duration {
        self.busy_poll
    }

    fn is_found(&mut self, size: usize) -> Result<bool> {
        self.has_room(size)
    }

    fn park_until(&mut self, size: usize, deadline: Option<Instant>) -> Result<Slept> {
        if !self.arm(size)? {
            return Ok(Slept::Ready);
        }
        let found = self.shared.watches.wait_for_room(deadline);
        self.disarm();
        let woken = found.map(|found| self.look_at(found.as_deref()));
        if self.has_room(size)? {
            return Ok(Slept::Ready);
        }
        if let Some((goal, _)) = self.stalled {
            self.charge(goal);
        }
        Ok(if woken? { Slept::Woken } else { Slept::Late })
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsFd for Broadcaster {
    /// Readable when a subscriber has rung since it has made room, or one has gone. For [`Broadcaster::arm`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.watches.as_fd()
    }
}

#[cold]
pub(super) fn ended() -> Error {
    Error::Closed("the publisher has ended: it sends no more")
}
