//! What both halves of a channel share within this process: its state, its line, and what is let go of at its end.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::Duration,
};

use crate::{
    channel::own_phase::OwnPhase,
    error::{Error, Result},
    fork::{Mark, inherited, leave_torn},
    handshake::parts::Role,
    memory::access::{Readable, Writable},
    memory::layout,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    memory::phase::{Phase, Step},
    signal::claim::Claim,
    signal::inbox::{OpenInbox, TokenSender},
    sys::lock::{Mutex, MutexGuard},
    wait::deadline::{Deadline, Woken},
    wake::doorbell::Doorbell,
};

/// Why a channel has ended.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// One side closed it, or both had ended their sending and everything was read.
    Closed,
    /// The peer's process ended without closing it.
    Exited,
    /// The peer wrote what no honest peer writes.
    Corrupt,
    /// Another process tried to open the shared memory, of this side or of the peer: what was in it is wiped, and what was not
    /// read before is lost.
    Exposed,
}

/// Why a subscriber is gone from its publisher, and a subscription has ended: as of a channel, or that it was evicted.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// One side closed it, or the publisher has ended and everything was read.
    Closed,
    /// The other process ended without closing it.
    Exited,
    /// The other process wrote what no honest one writes.
    Corrupt,
    /// Another process tried to open the shared memory, of this side or of the other: what was in it is wiped.
    Exposed,
    /// The subscriber has held its publisher up for longer than [`Options::stall`](crate::Options::stall) allows.
    Evicted,
}

impl From<CloseReason> for GoneReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Closed => Self::Closed,
            CloseReason::Exited => Self::Exited,
            CloseReason::Corrupt => Self::Corrupt,
            CloseReason::Exposed => Self::Exposed,
        }
    }
}

impl fmt::Display for GoneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Exited => "exited",
            Self::Corrupt => "corrupt",
            Self::Exposed => "exposed",
            Self::Evicted => "evicted",
        })
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Exited => "exited",
            Self::Corrupt => "corrupt",
            Self::Exposed => "exposed",
        })
    }
}

/// The state of a channel. Each end but the first two tells who ended it, and why.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelState {
    /// The channel belongs to the process that this one was forked from.
    Inherited = Mark::INHERITED,
    Open = Mark::FRESH,
    ClosedHere = 1,
    ClosedByPeer,
    PeerExited,
    Corrupt,
    Refused,
    Exposed,
    ExposedAtPeer,
    LeftByPeer,
    /// At a publisher: its subscriber is let go of.
    Evicted,
    /// At a subscriber.
    EvictedByPeer,
}

impl ChannelState {
    const ALL: [Self; 12] = [
        Self::Inherited,
        Self::Open,
        Self::ClosedHere,
        Self::ClosedByPeer,
        Self::PeerExited,
        Self::Corrupt,
        Self::Refused,
        Self::Exposed,
        Self::ExposedAtPeer,
        Self::LeftByPeer,
        Self::Evicted,
        Self::EvictedByPeer,
    ];
}

impl ChannelState {
    /// What a program is told of the end of a channel. `None`: there is none.
    pub(crate) fn close_reason(self) -> Option<CloseReason> {
        match self {
            Self::Open => None,
            Self::ClosedHere
            | Self::ClosedByPeer
            | Self::LeftByPeer
            | Self::Refused
            | Self::Inherited
            // A pair has no such end. A peer that says so all the same ends its channel by that.
            | Self::Evicted
            | Self::EvictedByPeer => Some(CloseReason::Closed),
            Self::PeerExited => Some(CloseReason::Exited),
            Self::Exposed | Self::ExposedAtPeer => Some(CloseReason::Exposed),
            Self::Corrupt => Some(CloseReason::Corrupt),
        }
    }

    /// As [`ChannelState::close_reason`], where one side publishes.
    pub(crate) fn gone_reason(self) -> Option<GoneReason> {
        match self {
            Self::Evicted | Self::EvictedByPeer => Some(GoneReason::Evicted),
            other => other.close_reason().map(GoneReason::from),
        }
    }
}

/// A [`ChannelState`] in one byte, which every call looks at. It reads as [`ChannelState::Inherited`] in a child.
#[derive(Debug)]
pub(crate) struct AtomicState(Mark);

impl AtomicState {
    /// Of a channel that is open.
    pub(crate) fn open(mark: Mark) -> Self {
        Self(mark)
    }

    #[inline]
    pub(crate) fn is(&self, state: ChannelState, ordering: Ordering) -> bool {
        self.0.load(ordering) == state as u8
    }

    pub(crate) fn get(&self) -> ChannelState {
        let byte = self.0.load(Ordering::Acquire);
        ChannelState::ALL
            .into_iter()
            .find(|state| *state as u8 == byte)
            .expect("nothing but a state is stored")
    }

    pub(crate) fn set(&self, state: ChannelState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

/// In the word that says where a subscriber's reading ends: it was said. Positions are multiples of eight.
pub(crate) const END_TOLD: u64 = 1;

/// What both halves of a channel share within this process.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) role: Role,
    /// Also held by a thread that waits for tokens, which keeps no channel open.
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) state: AtomicState,
    pub(crate) sending_ended: AtomicBool,
    pub(crate) receiving_ended: AtomicBool,
    /// What is let go of when the channel ends. A thread that changes the phase of this side's region, or the number of its tokens,
    /// has this lock.
    pub(crate) held: Mutex<Option<Held>>,
    pub(crate) busy_poll: Duration,
}

/// What a channel keeps from others until it ends: the address of a pair's host, a seat of a service.
pub(crate) trait OnEnd: fmt::Debug + Send {
    /// The channel ends, in this [`ChannelState`], and neither the program nor the peer has been told yet: lets go of what others may
    /// have. Answers whether this side goes on in its peer's place. Dropped once the peer can see the end.
    fn end(&mut self, state: ChannelState) -> bool;
}

/// A value that is dropped, however the channel ends.
impl<T: fmt::Debug + Send> OnEnd for Option<T> {
    fn end(&mut self, _state: ChannelState) -> bool {
        *self = None;
        false
    }
}

/// The private line of a channel, and the process at its other end.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) role: Role,
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: Option<Arc<OwnedFd>>,
    /// Both processes take membarrier(2).
    pub(crate) barriers: bool,
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) own: OwnRegion,
    pub(crate) phase: OwnPhase,
    pub(crate) peer: PeerRegion,
    pub(crate) inbox: OpenInbox,
    pub(crate) token_sender: TokenSender,
    /// Dropped before anything says that the channel has ended: a process that hears of the end may join anew at once.
    pub(crate) on_end: Option<Box<dyn OnEnd>>,
}

impl Held {
    /// The channel has ended here, and the peer's answer is waited for: every other end takes all of this out of its lock.
    fn has_left(&self) -> bool {
        self.phase.step() != Step::Open
    }

    /// The peer may be reading still. Its head lags behind, if anything.
    fn keep_what_is_unread(&self) {
        self.own
            .keep_from(self.peer.load(layout::HEAD, Ordering::Acquire));
    }

    /// Another process tries to open this side's object: says so, and wipes it.
    fn expose(&mut self) {
        if self.phase.take(Step::Exposed) {
            // A reader that copies what is wiped next finds the phase changed after that.
            fence(Ordering::SeqCst);
            self.own.wipe();
        }
    }
}

/// What became of the place of a member that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The peer has it.
    Taken,
    /// The peer has it, or will have it: it has not answered yet.
    Unanswered,
    /// No peer is there to take it.
    NoSuccessor,
}

impl Shared {
    /// A channel whose peer has this side's object already. From now on the tripwire ends it.
    pub(crate) fn open(line: Line, mark: Mark, held: Held, busy_poll: Duration) -> Arc<Self> {
        let own = held.own.clone();
        let shared = Arc::new(Self {
            role: line.role,
            doorbell: Arc::new(Doorbell::new(line.socket, line.pidfd)),
            state: AtomicState::open(mark),
            sending_ended: AtomicBool::new(false),
            receiving_ended: AtomicBool::new(false),
            held: Mutex::new(Some(held)),
            busy_poll,
        });
        own.in_use(line.barriers);
        if let Some(tripwire) = own.tripwire() {
            let shared = Arc::downgrade(&shared);
            tripwire.on_alarm(move || {
                if let Some(shared) = shared.upgrade() {
                    shared.finish(ChannelState::Exposed);
                }
            });
        }
        shared
    }

    /// What a call on an ended channel gets.
    pub(crate) fn check(&self) -> Result<()> {
        match self.state.get() {
            ChannelState::Open => Ok(()),
            ChannelState::Inherited => Err(inherited()),
            ChannelState::ClosedHere => Err(Error::Closed("the channel is closed")),
            ChannelState::ClosedByPeer => Err(Error::PeerLost("it has closed the channel".into())),
            ChannelState::LeftByPeer => Err(Error::PeerLost("it has left the address".into())),
            // The line closes by itself when its process ends, and when it executes another program.
            ChannelState::PeerExited => Err(Error::PeerLost(
                "its process has ended, or executes another program now".into(),
            )),
            ChannelState::Refused => Err(Error::Closed(
                "the channel was closed: its peer is no longer who the policy asks for",
            )),
            ChannelState::Exposed => Err(Error::ObjectExposed(
                "somebody tried to open this side's memory, which was wiped; the channel is closed".into(),
            )),
            ChannelState::ExposedAtPeer => Err(Error::ObjectExposed(
                "as the peer says, somebody tried to open its memory, which it has wiped; the channel is closed"
                    .into(),
            )),
            ChannelState::Corrupt => Err(Error::RingCorrupt("as was found before".into())),
            ChannelState::Evicted => Err(Error::Closed("the subscriber was evicted")),
            ChannelState::EvictedByPeer => Err(Error::Evicted),
        }
    }

    /// Whether this process was forked from the one whose channel it is.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.is(ChannelState::Inherited, Ordering::Relaxed)
    }

    /// For a call that takes something from the line. Errors in a child: the line is its parent's.
    pub(crate) fn doorbell_here(&self) -> Result<&Doorbell> {
        if self.is_inherited() {
            return Err(inherited());
        }
        Ok(&self.doorbell)
    }

    /// For an event loop of the program's.
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        // What a lock guards is looked at by no child: the thread that had it may be its parent's alone.
        if self.is_inherited() {
            return self.doorbell.line();
        }
        self.doorbell.as_fd()
    }

    pub(crate) fn peer_is_gone(&self) -> bool {
        matches!(
            self.state.get(),
            ChannelState::ClosedByPeer | ChannelState::PeerExited | ChannelState::LeftByPeer
        )
    }

    /// Ends the channel, once. The address is free, and the line closed to both sides, when this returns.
    pub(crate) fn finish(&self, end: ChannelState) {
        if self.is_inherited() {
            return;
        }
        match end {
            // Not waited for: what the peer sends to a side that closes is lost in any case, and the thread that has heard
            // the alarm is the one that would be waited for.
            ChannelState::ClosedHere
            | ChannelState::Refused
            | ChannelState::Exposed
            | ChannelState::Evicted => {}
            // It may have been killed between a token and the word of how many there are.
            ChannelState::PeerExited => self.hear_all(),
            ChannelState::ClosedByPeer
            | ChannelState::LeftByPeer
            | ChannelState::ExposedAtPeer
            | ChannelState::EvictedByPeer
            | ChannelState::Corrupt => self.hear_out(),
            // No end: see `ChannelState`.
            ChannelState::Open | ChannelState::Inherited => return,
        }
        let mut guard = self.held();
        if let Some(held) = guard.as_mut().filter(|held| held.has_left()) {
            // The thread that waits for the answer lets go of all else.
            if end == ChannelState::Exposed {
                held.expose();
            }
            return;
        }
        let Some(mut held) = guard.take() else { return };
        let mut on_end = held.on_end.take();
        let succeeds = on_end.as_mut().is_some_and(|on_end| on_end.end(end));
        if end == ChannelState::Exposed {
            held.expose();
        } else {
            if matches!(
                end,
                ChannelState::ClosedHere | ChannelState::Refused | ChannelState::Corrupt
            ) {
                held.keep_what_is_unread();
            }
            held.phase.take(match end {
                ChannelState::Evicted => Step::Evicted,
                _ if succeeds => Step::Succeeds,
                _ => Step::Closed,
            });
        }
        self.state.set(end);
        self.doorbell.hang_up();
        drop(guard);
        drop(on_end);
        // The last of a region or of a mailbox waits for the thread that hears alarms, and that may be waiting here.
        drop(held);
    }

    /// The channel has this until it ends. Where it has ended already, how it has is told at once.
    pub(crate) fn keep(&self, mut on_end: Box<dyn OnEnd>) {
        let mut guard = self.held();
        if let Some(held) = guard.as_mut() {
            held.on_end = Some(on_end);
            return;
        }
        drop(guard);
        on_end.end(self.state.get());
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock()
    }

    /// Waits until a thread that is about to end the channel has done so: the peer may have been told before the threads of this
    /// side are.
    pub(crate) fn wait_for_end(&self) {
        // In a child no such thread is there to give the lock back.
        if !self.is_inherited() {
            drop(self.held());
        }
    }

    /// Says that this side sends no more. `false`: the channel has ended already, and the peer was told of that.
    pub(crate) fn end_sending(&self) -> bool {
        if self.is_inherited() {
            return false;
        }
        let mut guard = self.held();
        guard.as_mut().is_some_and(|held| held.phase.end_sending())
    }

    /// Gives the address back, and nothing else: see [`Sender::vacate`](crate::Sender::vacate).
    pub(crate) fn vacate(&self) {
        if self.is_inherited() {
            return;
        }
        let on_end = self.held().as_mut().and_then(|held| held.on_end.take());
        drop(on_end);
    }

    /// What the peer has announced has come when this returns. Before any end is told: the peer announces nothing after it
    /// has said how it ends.
    pub(crate) fn hear_out(&self) {
        self.catch_up_with(|Held { inbox, peer, .. }| {
            inbox.lags_behind(peer.load(layout::TOKENS, Ordering::Acquire))
        });
    }

    /// As [`Shared::hear_out`], also what was sent and not announced.
    fn hear_all(&self) {
        self.catch_up_with(|held| held.inbox.claim());
    }

    fn catch_up_with(&self, late: impl FnOnce(&Held) -> Option<Arc<Claim>>) {
        if self.is_inherited() {
            return;
        }
        let held = self.held();
        let late = held.as_ref().and_then(late);
        // As in `finish`.
        drop(held);
        if let Some(claim) = late {
            claim.catch_up();
        }
    }

    /// Sends the peer a token.
    pub(crate) fn send_token(&self, token: u64) -> Result<()> {
        let doorbell = self.doorbell_here()?;
        let is_there = || {
            doorbell.look();
            !doorbell.is_gone()
        };
        if !is_there() {
            self.notice();
        }
        self.check()?;
        // This side does not end meanwhile, so that the word of how many there are is there to be written.
        let mut guard = self.held();
        let Some(held) = guard.as_mut().filter(|held| !held.has_left()) else {
            drop(guard);
            return self.check();
        };
        let sent = held.token_sender.send(token, is_there)?;
        held.own.store(layout::TOKENS, sent, Ordering::Release);
        Ok(())
    }

    /// As [`Shared::finish`], for a member that leaves its place to its peer: says so, and waits for the answer, as long
    /// as `deadline` allows. A call that sends or reads here meanwhile is told that the channel is closed.
    pub(crate) fn leave(&self, deadline: &Deadline) -> Handover {
        let mut guard = self.held();
        let Some(held) = guard.as_mut().filter(|held| !held.has_left()) else {
            return Handover::NoSuccessor;
        };
        let mut on_end = held.on_end.take();
        if let Some(on_end) = &mut on_end {
            on_end.end(ChannelState::ClosedHere);
        }
        held.keep_what_is_unread();
        self.state.set(ChannelState::ClosedHere);
        held.phase.take(Step::Left);
        let peer = held.peer.clone();
        self.doorbell.fall_silent();
        drop(guard);
        let ends = self.doorbell.ends();
        let watched: Vec<_> = ends.watched().collect();
        // A wait that fails has heard nothing, as one that was too long.
        let answered = matches!(deadline.wait(&watched), Ok(Woken::Ready));
        let phase = Phase::from_word(peer.load(layout::PHASE, Ordering::Acquire));
        self.doorbell.hang_up();
        // Until now for the alarm, which wipes.
        let held = self.held().take();
        drop((held, on_end));
        match phase.map(|phase| phase.step) {
            Some(Step::Succeeds) => Handover::Taken,
            _ if answered => Handover::NoSuccessor,
            _ => Handover::Unanswered,
        }
    }

    /// The phase of the peer's region, while this side has that.
    fn phase_of_peer(&self) -> Option<Phase> {
        let held = self.held();
        Phase::from_word(held.as_ref()?.peer.load(layout::PHASE, Ordering::Acquire))
    }

    /// Before a thread lies down: see [`Doorbell::catch_up`].
    pub(crate) fn catch_up(&self) {
        if !self.is_inherited() && self.doorbell.catch_up() {
            self.notice();
        }
    }

    /// Before an event loop waits: see [`Doorbell::arm`].
    pub(crate) fn arm(&self) -> Result<()> {
        if !self.is_inherited() && self.doorbell.arm()? {
            self.notice();
        }
        Ok(())
    }

    /// Notices what the line says: a peer that is gone ends the channel.
    pub(crate) fn notice(&self) {
        if self.is_inherited() || !self.doorbell.is_gone() {
            return;
        }
        // An honest peer says that it closes before it hangs up. A dead one has not said anything.
        self.finish(match self.phase_of_peer().map(|phase| phase.step) {
            Some(Step::Closed | Step::Succeeds) => ChannelState::ClosedByPeer,
            Some(Step::Left) => ChannelState::LeftByPeer,
            Some(Step::Exposed) => ChannelState::ExposedAtPeer,
            Some(Step::Evicted) => ChannelState::EvictedByPeer,
            Some(Step::Open) | None => ChannelState::PeerExited,
        });
    }

    pub(crate) fn finish_if_both_ended(&self) {
        let both = self.sending_ended.load(Ordering::Acquire) && self.receiving_ended.load(Ordering::Acquire);
        if both && !self.is_inherited() {
            self.hear_out();
            self.finish(ChannelState::ClosedHere);
        }
    }

    /// A lie of the peer's ends the channel.
    pub(crate) fn judge<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::RingCorrupt(_)) = &result {
            if self.is_inherited() {
                return Err(inherited());
            }
            // Where the peer has wiped its memory, what is found there is no lie: when that was exposed, or once this side has
            // ended the channel, on another thread, and so reads no more.
            match self.phase_of_peer().map(|phase| phase.step) {
                Some(Step::Exposed) => {
                    self.finish(ChannelState::ExposedAtPeer);
                    self.check()?;
                }
                // A publisher overwrites what a subscriber that it has let go of has not read.
                Some(Step::Evicted) => {
                    self.finish(ChannelState::EvictedByPeer);
                    self.check()?;
                }
                _ => {}
            }
            self.wait_for_end();
            if !self.peer_is_gone() {
                self.check()?;
            }
            self.finish(ChannelState::Corrupt);
        }
        result
    }

    /// Of a publisher, to one subscriber: its reading ends at this position of the ring, whatever is sent to the others. To be said
    /// before the phase that tells the subscriber of the end.
    pub(crate) fn end_reading_at(&self, position: u64) {
        if self.is_inherited() {
            return;
        }
        if let Some(held) = self.held().as_ref() {
            // What was said first counts. Nothing else of this process writes the word.
            if held.own.load(layout::TAIL, Ordering::Relaxed) & END_TOLD == 0 {
                held.own
                    .store(layout::TAIL, position | END_TOLD, Ordering::Release);
            }
        }
    }

    /// As [`Shared::close_reason`], of a publisher or a subscription.
    pub(crate) fn gone_reason(&self) -> Option<GoneReason> {
        self.state.get().gone_reason()
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.state.get().close_reason()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_inherited() {
            leave_torn(&mut self.held);
        }
        self.finish(ChannelState::ClosedHere);
    }
}
