//! The state that both halves of a channel share, and every way in which a channel ends.
//!
//! A channel ends by a call on this side, by what the peer reports or does, or by what this side detects. Each of these calls
//! [`Shared::finish`] or [`Shared::leave`], and the first call decides. The state has these owners:
//! - [`Shared::resources`]: any thread, under its own lock. It is emptied at the end, once.
//! - the phase word of this side's region: [`OwnPhase`] alone, which lies in [`Resources`] and so under the same lock.
//! - [`Shared::state`]: under that lock, after the phase word. Calls read it without the lock.

use std::{
    cell::RefCell,
    os::fd::BorrowedFd,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread,
    time::Duration,
};

use nix::poll::PollFlags;

use crate::{
    channel::stats::Counters,
    error::{Error, Result},
    fork::{ForkMark, ProcessMutex, inherited},
    handshake::parts::Role,
    region::copy::{Readable, Writable},
    region::layout,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::{Phase, Step},
    signal::inbox::{OpenInbox, TokenSender},
    trace::TraceContext,
    wait::deadline::Deadline,
    wake::doorbell::{Doorbell, LineEnds},
};

/// Flag in the word that holds the position at which a subscriber stops reading: the position is set. Positions are multiples
/// of eight.
pub(crate) const END_ANNOUNCED: u64 = 1;

named! {
    /// Why a channel or a subscription has ended.
    #[non_exhaustive]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum CloseReason {
        /// One side closed it after it had ended its sending, or no side sends any more and everything was read.
        Closed => "closed",
        /// The peer's process exited before it had ended its sending, or the peer destroyed it.
        Lost => "lost",
        /// The peer violated the protocol.
        Corrupt => "corrupt",
        /// Another process tried to open the shared memory of either side. That memory is wiped, and unread messages are lost.
        Exposed => "exposed",
        /// The subscriber delayed its publisher for longer than [`Options::stall`](crate::Options::stall) allows.
        Evicted => "evicted",
        /// A later check found that the peer no longer satisfies the policy: see [`Verifier::verify`](crate::Verifier::verify).
        Refused => "refused",
    }
}

listed! { pub(crate),
    /// The state of a channel. Every state except the first two says which side ended the channel, and why.
    #[repr(u8)]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum ChannelState {
        /// The channel belongs to the process that this one was forked from.
        Inherited = ForkMark::INHERITED,
        Open = ForkMark::FRESH,
        /// After the end of this side's sending.
        ClosedHere = 1,
        /// Without the end of this side's sending: the peer's reader finds that this side is lost.
        DestroyedHere,
        ClosedByPeer,
        PeerExited,
        Corrupt,
        Refused,
        Exposed,
        ExposedAtPeer,
        LeftByPeer,
        /// At a publisher.
        Evicted,
        /// At a subscriber.
        EvictedByPeer,
    }
}

impl ChannelState {
    /// The state after a handle of this side was dropped: a thread that panics may have meant to send more.
    pub(crate) fn dropped() -> Self {
        if thread::panicking() {
            Self::DestroyedHere
        } else {
            Self::ClosedHere
        }
    }

    /// The reason that the program gets. `None` while the channel is open.
    pub(crate) fn close_reason(self) -> Option<CloseReason> {
        match self {
            Self::Open => None,
            Self::ClosedHere
            | Self::DestroyedHere
            | Self::ClosedByPeer
            | Self::LeftByPeer
            | Self::Inherited => Some(CloseReason::Closed),
            Self::PeerExited => Some(CloseReason::Lost),
            Self::Exposed | Self::ExposedAtPeer => Some(CloseReason::Exposed),
            Self::Corrupt => Some(CloseReason::Corrupt),
            Self::Evicted | Self::EvictedByPeer => Some(CloseReason::Evicted),
            Self::Refused => Some(CloseReason::Refused),
        }
    }

    /// The error of a call on an ended channel, whose peer is this process. Whether it was lost: see [`Shared::is_lost`].
    pub(crate) fn check(self, peer: i32, is_lost: bool) -> Result<()> {
        Err(match self {
            Self::Open => return Ok(()),
            Self::Inherited => inherited(),
            Self::ClosedHere | Self::DestroyedHere => Error::Closed("the channel is closed"),
            Self::ClosedByPeer if is_lost => peer_lost(
                peer,
                "has destroyed the channel, or closed it before everything was sent",
            ),
            Self::ClosedByPeer => peer_lost(peer, "has closed the channel"),
            Self::LeftByPeer => peer_lost(peer, "has left the address"),
            // The kernel closes the line when its process ends, and when the process executes another program.
            Self::PeerExited => peer_lost(peer, "has ended, or executes another program now"),
            Self::Refused => {
                Error::Closed("the channel was closed: its peer is no longer who the policy asks for")
            }
            Self::Exposed => Error::ObjectExposed(
                "another process tried to open this side's memory, which was wiped; the channel is closed".into(),
            ),
            Self::ExposedAtPeer => Error::ObjectExposed(
                "as the peer says, another process tried to open its memory, which it has wiped; the channel is closed"
                    .into(),
            ),
            Self::Corrupt => Error::RingCorrupt("as was found before".into()),
            Self::Evicted => Error::Closed("the subscriber was evicted"),
            Self::EvictedByPeer => Error::Evicted,
        })
    }
}

/// The number of a process in another pid namespace is 0.
fn peer_lost(peer: i32, how: &str) -> Error {
    let process = match peer {
        0 => "its process".to_owned(),
        pid => format!("process {pid}"),
    };
    Error::PeerLost(format!("{process} {how}; open a new channel to continue"))
}

/// A [`ChannelState`] in one byte, which every call reads. It reads as [`ChannelState::Inherited`] in a forked child.
pub(crate) struct AtomicState(pub(crate) ForkMark);

impl AtomicState {
    #[inline]
    pub(crate) fn is(&self, state: ChannelState, ordering: Ordering) -> bool {
        self.0.load(ordering) == state as u8
    }

    pub(crate) fn get(&self) -> ChannelState {
        let byte = self.0.load(Ordering::Acquire);
        ChannelState::ALL
            .into_iter()
            .find(|state| *state as u8 == byte)
            .expect("only states are stored")
    }

    pub(crate) fn set(&self, state: ChannelState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

/// The only writer of the phase word of this side's region. Of two threads that end the channel in different ways, the second
/// finds the step of the first, and does not write a step that may not follow it. (Before the channel is open, and after a failed
/// handshake, the writer is [`Unopened`](crate::handshake::parts::Unopened).)
pub(crate) struct OwnPhase {
    region: OwnRegion,
    pub(super) current: Phase,
}

impl OwnPhase {
    /// The phase of a region whose word was never written.
    pub(crate) fn of(region: &OwnRegion) -> Self {
        Self {
            region: region.clone(),
            current: Phase::OPEN,
        }
    }

    /// Announces that nothing more will be sent. Returns `false` if that was announced before or may not follow.
    pub(crate) fn end_sending(&mut self) -> bool {
        self.write(self.current.ending())
    }

    /// Announces this step. Returns `false` and writes nothing if the step may not follow.
    pub(crate) fn advance(&mut self, step: Step) -> bool {
        self.write(self.current.then(step))
    }

    fn write(&mut self, next: Option<Phase>) -> bool {
        let Some(next) = next else { return false };
        self.current = next;
        // Release: a peer that reads it also reads what was published before.
        self.region.store(layout::PHASE, next.word(), Ordering::Release);
        true
    }
}

/// The state that both halves of a channel share within this process.
pub(crate) struct Shared {
    pub(crate) role: Role,
    /// The number of the peer's process, for messages.
    pub(super) peer: i32,
    /// This side subscribes: no other peer may evict it.
    pub(super) subscribes: bool,
    /// Also held by a thread that waits for tokens, which does not keep the channel open.
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) state: AtomicState,
    pub(crate) sending_ended: AtomicBool,
    pub(crate) receiving_ended: AtomicBool,
    /// The peer was gone before it had ended its sending. Set once, with the state, under the lock of `resources` and before the state.
    pub(super) lost: AtomicBool,
    /// The first protocol violation of the peer. Set before [`ChannelState::Corrupt`].
    pub(super) violation: OnceLock<String>,
    /// Released when the channel ends. Its lock also guards the phase word of this side's region and the number of its tokens.
    pub(crate) resources: ProcessMutex<Option<Resources>>,
    pub(crate) busy_poll: Duration,
    /// Also held by the endpoint that adds up the figures of its channels.
    pub(crate) counters: Arc<Counters>,
    pub(crate) trace: TraceContext,
}

/// A resource that a channel reserves until it ends, such as a pair's address or a slot of a service.
pub(crate) trait OnEnd: Send {
    /// Releases what other processes may have. Called with the final state, before the program and the peer are notified. Returns
    /// whether this side continues in its peer's place. The value is dropped once the peer can see the end.
    fn end(&mut self, state: ChannelState) -> bool;
}

/// A value that is dropped, however the channel ends.
impl<T: Send> OnEnd for Option<T> {
    fn end(&mut self, _state: ChannelState) -> bool {
        *self = None;
        false
    }
}

/// The resources that a channel releases when it ends.
pub(crate) struct Resources {
    pub(crate) own: OwnRegion,
    pub(crate) phase: OwnPhase,
    pub(crate) peer: PeerRegion,
    pub(crate) inbox: OpenInbox,
    pub(crate) token_sender: TokenSender,
    /// Ended before the end can be seen: a process that sees it may join again at once.
    pub(crate) on_end: Option<Box<dyn OnEnd>>,
}

impl Resources {
    /// Whether this side has left and waits for the peer's answer. After any other end, the lock holds nothing.
    pub(super) fn has_left(&self) -> bool {
        self.phase.current.step != Step::Open
    }

    /// Keeps what the peer has not read. The head that it shows never runs ahead of its reading.
    fn retain_unread(&self) {
        self.own
            .retain_from(self.peer.load(layout::HEAD, Ordering::Acquire));
    }

    /// Announces that another process tries to open this side's object, and wipes it.
    fn expose(&mut self) {
        if self.phase.advance(Step::Exposed) {
            // A reader that copies wiped bytes finds the changed phase afterwards.
            fence(Ordering::SeqCst);
            self.own.wipe();
        }
    }
}

/// An end that is not reported yet. Dropping it notifies the tracing subscriber first, and then the program.
pub(crate) struct UnreportedEnd {
    trace: TraceContext,
    reason: Option<CloseReason>,
    /// Dropped in this order, and not under the lock: dropping the last handle of a region or of a mailbox waits for the thread
    /// that handles alarms, and that thread may wait for the lock.
    _on_end: Option<Box<dyn OnEnd>>,
    _resources: Resources,
}

impl Drop for UnreportedEnd {
    fn drop(&mut self) {
        if let Some(reason) = &self.reason {
            self.trace.closed(reason);
        }
    }
}

thread_local! {
    /// The ends that this thread reports later. `None` unless it defers them.
    static DEFERRED: RefCell<Option<Vec<UnreportedEnd>>> = const { RefCell::new(None) };
}

/// Called by a thread that has taken a lock for which a tracing subscriber may wait: until [`report_deferred`], what
/// [`Shared::finish`] ends on this thread is not reported.
pub(crate) fn defer_reports() {
    // A thread that exits has destroyed the list. It reports at once.
    let _ = DEFERRED.try_with(|deferred| {
        deferred.borrow_mut().get_or_insert_default();
    });
}

/// Reports the ends that this thread has deferred.
pub(crate) fn report_deferred() {
    drop(DEFERRED.try_with(RefCell::take));
}

/// The owner of the place of a member that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The peer has it.
    Taken,
    /// The peer has it or will have it: it has not answered yet.
    Unanswered,
    /// There is no peer to take it.
    NoSuccessor,
}

impl Shared {
    /// Reports the channel as open, and sets the alarm that ends it.
    pub(super) fn opened(self: &Arc<Self>, own: &OwnRegion) {
        // Before the alarm is set, which may end the channel at once.
        self.trace.opened(&self.role);
        if let Some(tripwire) = own.tripwire() {
            let shared = Arc::downgrade(self);
            tripwire.on_alarm(move || {
                let unreported = shared.upgrade()?.end(ChannelState::Exposed)?;
                Some(Box::new(move || drop(unreported)))
            });
        }
    }

    /// The error of a call on an ended channel.
    pub(crate) fn check(&self) -> Result<()> {
        let checked = self.state.get().check(self.peer, self.is_lost());
        checked.map_err(|error| match (error, self.violation.get()) {
            (Error::RingCorrupt(_), Some(what)) => Error::RingCorrupt(what.clone()),
            (error, _) => error,
        })
    }

    /// Ends the channel for a protocol violation of the peer, which each later call then reports.
    pub(super) fn finish_corrupt(&self, what: String) {
        let _ = self.violation.set(what);
        self.finish(ChannelState::Corrupt);
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        match self.state.get() {
            _ if self.is_lost() => Some(CloseReason::Lost),
            // The peer exited after the end of its sending.
            ChannelState::PeerExited => Some(CloseReason::Closed),
            state => state.close_reason(),
        }
    }

    /// Whether the peer is gone and had not ended its sending: it may have meant to send more.
    pub(crate) fn is_lost(&self) -> bool {
        self.peer_is_gone() && self.lost.load(Ordering::Relaxed)
    }

    /// Whether the channel belongs to the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.is(ChannelState::Inherited, Ordering::Relaxed)
    }

    /// Whether the peer has ended sending and everything was read. Never in a forked child, which has read nothing.
    pub(crate) fn has_read_all(&self) -> bool {
        self.receiving_ended.load(Ordering::Acquire) && !self.is_inherited()
    }

    /// The line, for an event loop that watches nothing else.
    pub(crate) fn line_only(&self) -> BorrowedFd<'_> {
        // `arm` reports an error of this.
        let _ = self.doorbell.poll_line_only();
        self.doorbell.line()
    }

    /// Keeps this until the channel ends. If the channel has ended already, `on_end` is called at once.
    pub(crate) fn set_on_end(&self, mut on_end: Box<dyn OnEnd>) {
        if let Ok(mut guard) = self.resources.lock()
            && let Some(resources) = guard.as_mut()
        {
            resources.on_end = Some(on_end);
            return;
        }
        on_end.end(self.state.get());
    }

    /// Announces the end of sending. Returns `false` if the channel has ended already.
    pub(crate) fn end_sending(&self) -> bool {
        self.with_resources(|resources| resources.phase.end_sending())
            .unwrap_or(false)
    }

    /// Calls a function under the lock, unless the channel has ended.
    pub(super) fn with_resources<T>(&self, call: impl FnOnce(&mut Resources) -> T) -> Option<T> {
        self.resources.lock().ok()?.as_mut().map(call)
    }

    /// Frees the address, and nothing else: see [`Sender::vacate`](crate::Sender::vacate).
    pub(crate) fn vacate(&self) {
        // Dropped outside the lock, which the drop may take.
        drop(self.with_resources(|resources| resources.on_end.take()));
    }

    /// The phase of the peer's region. `None` once this side has released the region.
    pub(super) fn phase_of_peer(&self) -> Option<Phase> {
        let word = self.with_resources(|resources| resources.peer.load(layout::PHASE, Ordering::Acquire));
        Phase::from_word(word?)
    }

    /// Called before a thread parks: see [`Doorbell::catch_up`].
    pub(crate) fn catch_up(&self) {
        if self.doorbell.catch_up() {
            self.end_if_gone();
        }
    }

    /// Called before an event loop waits: see [`Doorbell::arm`].
    pub(crate) fn arm(&self) -> Result<()> {
        if self.doorbell.arm()? {
            self.end_if_gone();
        }
        Ok(())
    }

    /// Ends the channel, once, and reports that, now or in [`report_deferred`]. When this returns, the address is free, and the line
    /// is closed to both sides.
    pub(crate) fn finish(&self, end: ChannelState) {
        let mut unreported = self.end(end);
        if unreported.is_some() {
            let _ = DEFERRED.try_with(|deferred| {
                if let Some(ends) = &mut *deferred.borrow_mut() {
                    ends.extend(unreported.take());
                }
            });
        }
    }

    /// As [`Shared::finish`]. Returns the error of the state in which the channel is then.
    #[cold]
    pub(super) fn end_as(&self, end: ChannelState) -> Result<()> {
        self.finish(end);
        self.check()
    }

    /// As [`Shared::finish`], but does not yet notify the program. When this returns, the ring is wiped if it was exposed, and the
    /// peer is disconnected. Returns `None` if there is nothing to report.
    pub(crate) fn end(&self, end: ChannelState) -> Option<UnreportedEnd> {
        match end {
            // Does not wait for the peer's tokens: they are lost to a side that closes, and the wait would be for the thread that
            // handles the alarm, which may be this one.
            ChannelState::ClosedHere
            | ChannelState::DestroyedHere
            | ChannelState::Refused
            | ChannelState::Exposed
            | ChannelState::Evicted => {}
            // The peer may have been killed between a token and the update of their number.
            ChannelState::PeerExited => self.drain_unannounced_tokens(),
            ChannelState::ClosedByPeer
            | ChannelState::LeftByPeer
            | ChannelState::ExposedAtPeer
            | ChannelState::EvictedByPeer
            | ChannelState::Corrupt => self.drain_tokens(),
            // Not ends.
            ChannelState::Open | ChannelState::Inherited => return None,
        }
        let mut guard = self.resources.lock().ok()?;
        if let Some(resources) = guard.as_mut().filter(|resources| resources.has_left()) {
            // `leave` releases everything else.
            if end == ChannelState::Exposed {
                resources.expose();
            }
            return None;
        }
        let mut resources = guard.take()?;
        let mut on_end = resources.on_end.take();
        let succeeds = on_end.as_mut().is_some_and(|on_end| on_end.end(end));
        if end == ChannelState::Exposed {
            resources.expose();
        } else {
            if matches!(
                end,
                ChannelState::ClosedHere
                    | ChannelState::DestroyedHere
                    | ChannelState::Refused
                    | ChannelState::Corrupt
            ) {
                resources.retain_unread();
            }
            if end == ChannelState::ClosedHere {
                resources.phase.end_sending();
            }
            resources.phase.advance(match end {
                ChannelState::Evicted => Step::Evicted,
                _ if succeeds => Step::Succeeds,
                _ => Step::Closed,
            });
        }
        // The phase of a peer that is gone is final.
        let peers = Phase::from_word(resources.peer.load(layout::PHASE, Ordering::Acquire));
        self.lost
            .store(!peers.is_some_and(|phase| phase.ended), Ordering::Relaxed);
        self.state.set(end);
        self.doorbell.shut_both();
        drop(guard);
        Some(UnreportedEnd {
            trace: self.trace.clone(),
            reason: self.close_reason(),
            _on_end: on_end,
            _resources: resources,
        })
    }

    /// As [`Shared::finish`], for a member that leaves its place to its peer: announces that, and waits for the answer until
    /// `deadline`. In the meantime calls that send or receive here fail as on a closed channel.
    pub(crate) fn leave(&self, deadline: &Deadline) -> Handover {
        let Ok(mut guard) = self.resources.lock() else {
            return Handover::NoSuccessor;
        };
        let Some(resources) = guard.as_mut().filter(|resources| !resources.has_left()) else {
            return Handover::NoSuccessor;
        };
        let mut on_end = resources.on_end.take();
        if let Some(on_end) = &mut on_end {
            on_end.end(ChannelState::ClosedHere);
        }
        resources.retain_unread();
        self.state.set(ChannelState::ClosedHere);
        resources.phase.advance(Step::Left);
        let peer = resources.peer.clone();
        self.doorbell.shut_write();
        drop(guard);
        let ends = self.doorbell.ends();
        let watched: Vec<_> = ends.watched().collect();
        // A failed wait counts as one that timed out.
        let answered = deadline.wait(&watched).unwrap_or(false);
        let phase = Phase::from_word(peer.load(layout::PHASE, Ordering::Acquire));
        self.doorbell.shut_both();
        // Kept until now for the alarm, which wipes it.
        let resources = self.resources.lock().map(|mut resources| resources.take());
        // The tracing subscriber is notified before the program.
        if let Some(reason) = self.close_reason() {
            self.trace.closed(&reason);
        }
        drop((resources, on_end));
        match phase.map(|phase| phase.step) {
            Some(Step::Succeeds) => Handover::Taken,
            _ if answered => Handover::NoSuccessor,
            _ => Handover::Unanswered,
        }
    }

    /// Notices a peer that is gone, although nothing is read.
    pub(crate) fn check_peer(&self) {
        self.doorbell.check_peer();
        self.end_if_gone();
    }

    /// Ends the channel if the line shows that the peer is gone.
    pub(crate) fn end_if_gone(&self) {
        if self.is_inherited() || !self.doorbell.is_gone() {
            return;
        }
        if let Some(what) = self.doorbell.violation() {
            self.finish_corrupt(what);
            return;
        }
        // An honest peer announces that it closes before it hangs up. A killed one has announced nothing.
        let announced = self.phase_of_peer().and_then(|phase| self.end_by(phase.step));
        self.finish(announced.unwrap_or(ChannelState::PeerExited));
    }

    /// The end that the peer announces by this step. The peer of a pair that claims an eviction has closed the channel.
    pub(crate) fn end_by(&self, step: Step) -> Option<ChannelState> {
        Some(match step {
            Step::Open => return None,
            Step::Left => ChannelState::LeftByPeer,
            Step::Exposed => ChannelState::ExposedAtPeer,
            Step::Evicted if self.subscribes => ChannelState::EvictedByPeer,
            Step::Closed | Step::Succeeds | Step::Evicted => ChannelState::ClosedByPeer,
        })
    }

    pub(crate) fn finish_if_both_ended(&self) {
        let both = self.sending_ended.load(Ordering::Acquire) && self.receiving_ended.load(Ordering::Acquire);
        if both && !self.is_inherited() {
            self.drain_tokens();
            self.finish(ChannelState::ClosedHere);
        }
    }

    /// Ends the channel if the result is a protocol violation of the peer.
    pub(crate) fn judge<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::RingCorrupt(what)) = &result {
            if self.is_inherited() {
                return Err(inherited());
            }
            // A peer wipes its memory when that was exposed, or when another thread of this side has ended the channel. What is read
            // from wiped memory is no violation.
            // A publisher overwrites what an evicted subscriber has not read.
            let announced = self.phase_of_peer().and_then(|phase| self.end_by(phase.step));
            if let Some(end @ (ChannelState::ExposedAtPeer | ChannelState::EvictedByPeer)) = announced {
                self.end_as(end)?;
            }
            self.wait_for_end();
            if !self.peer_is_gone() {
                self.check()?;
            }
            self.finish_corrupt(what.clone());
        }
        result
    }

    /// Waits until a thread that is ending the channel has done so: the peer may see the end before the threads of this side do.
    pub(crate) fn wait_for_end(&self) {
        drop(self.resources.lock());
    }

    pub(crate) fn peer_is_gone(&self) -> bool {
        matches!(
            self.state.get(),
            ChannelState::ClosedByPeer | ChannelState::PeerExited | ChannelState::LeftByPeer
        )
    }

    /// Called by a publisher: this subscriber stops reading at this position of the ring, whatever is sent to the others. Must precede
    /// the phase that announces the end to the subscriber.
    pub(crate) fn end_reading_at(&self, position: u64) {
        self.with_resources(|Resources { own, .. }| {
            // The first position counts. Nothing else in this process writes the word.
            if own.load(layout::TAIL, Ordering::Relaxed) & END_ANNOUNCED == 0 {
                own.store(layout::TAIL, position | END_ANNOUNCED, Ordering::Release);
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.finish(ChannelState::dropped());
    }
}

/// A reference to a channel for a service or a membership, which does not keep the channel open.
#[derive(Debug, Clone)]
pub(crate) struct Partner {
    shared: Weak<Shared>,
    ends: LineEnds,
}

impl Partner {
    pub(crate) fn of(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            ends: shared.doorbell.ends(),
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.shared, &other.shared)
    }

    /// The descriptors that become ready when the channel ends, and stay ready.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.ends.watched()
    }

    /// The channel, if it is still open.
    pub(crate) fn open(&self) -> Option<Arc<Shared>> {
        let shared = self.shared.upgrade()?;
        shared.check_peer();
        shared.close_reason().is_none().then_some(shared)
    }
}

#[cfg(test)]
mod tests {
    use super::{ChannelState as State, *};

    #[test]
    fn each_state_has_a_reason_and_an_error() {
        let (closed, lost) = (Some(CloseReason::Closed), Some(CloseReason::Lost));
        let (exposed, corrupt) = (Some(CloseReason::Exposed), Some(CloseReason::Corrupt));
        let evicted = Some(CloseReason::Evicted);
        for (state, reason, code) in [
            (State::Inherited, closed, "CLOSED"),
            (State::Open, None, ""),
            (State::ClosedHere, closed, "CLOSED"),
            (State::DestroyedHere, closed, "CLOSED"),
            (State::ClosedByPeer, closed, "PEER_LOST"),
            (State::PeerExited, lost, "PEER_LOST"),
            (State::Corrupt, corrupt, "RING_CORRUPT"),
            (State::Refused, Some(CloseReason::Refused), "CLOSED"),
            (State::Exposed, exposed, "OBJECT_EXPOSED"),
            (State::ExposedAtPeer, exposed, "OBJECT_EXPOSED"),
            (State::LeftByPeer, closed, "PEER_LOST"),
            (State::Evicted, evicted, "CLOSED"),
            (State::EvictedByPeer, evicted, "EVICTED"),
        ] {
            assert_eq!(state.close_reason(), reason, "{state:?}");
            let checked = state.check(7, false);
            assert_eq!(checked.err().map_or("", |error| error.code()), code, "{state:?}");
        }
    }

    #[test]
    fn peer_lost_error_names_process_cause_and_advice() {
        let text = |state: State, peer, is_lost| state.check(peer, is_lost).unwrap_err().to_string();
        assert_eq!(
            text(State::PeerExited, 7, true),
            "the peer is gone: process 7 has ended, or executes another program now; open a new channel to continue"
        );
        assert!(text(State::ClosedByPeer, 7, false).contains("process 7 has closed"));
        assert!(text(State::ClosedByPeer, 7, true).contains("process 7 has destroyed"));
        assert!(text(State::LeftByPeer, 0, false).contains("its process has left"));
    }

    #[test]
    fn state_reads_as_last_set() {
        let atomic = AtomicState(ForkMark::new().unwrap());
        assert_eq!(atomic.get(), State::Open);
        for state in State::ALL {
            atomic.set(state);
            assert_eq!(atomic.get(), state);
            for other in State::ALL {
                assert_eq!(atomic.is(other, Ordering::Acquire), other == state);
            }
        }
    }
}
