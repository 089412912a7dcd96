//! What both halves of a channel share within this process: its state, its line, and what is let go of at its end.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::{Duration, Instant},
};

use nix::poll::PollFlags;

use crate::{
    error::{Error, Result},
    evidence::Evidence,
    fork::{Mark, inherited, leave_torn},
    identity::Identity,
    memory::access::{Readable, Writable},
    memory::layout,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    memory::phase::{Phase, Step},
    peer::process::Peer,
    rendezvous::election::Inheritance,
    signal::claim::Claim,
    signal::inbox::{OpenInbox, TokenSender},
    wait::deadline::{Deadline, Woken},
    wake::doorbell::{Barriers, Doorbell, Ends, ParkingSpot, Sleeper, Waker},
};

/// Which part this process had at the rendezvous. Both have the same rights afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It bound the address, or has it from a host that left it.
    Host,
    /// It found the address bound, and connected.
    Guest,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

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
    /// Somebody tried to open the shared memory, of this side or of the peer: what was in it is wiped, and what was not
    /// read before is lost.
    Exposed,
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

/// What a handshake leaves behind.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) role: Role,
    pub(crate) line: OwnedFd,
    pub(crate) process: Peer,
    pub(crate) identity: Identity,
    pub(crate) evidence: Vec<Evidence>,
    /// What the channel's [`state`] will be.
    pub(crate) state: Mark,
    pub(crate) own: OwnRegion,
    pub(crate) peer: PeerRegion,
    pub(crate) own_capacity: u64,
    pub(crate) peer_capacity: u64,
    /// The longest message that the peer takes.
    pub(crate) longest_out: u64,
    /// The longest message that this side takes.
    pub(crate) longest_in: u64,
    /// Both processes take membarrier(2).
    pub(crate) barriers: bool,
    /// Where the peer's tokens arrive.
    pub(crate) inbox: OpenInbox,
    /// Where this side's go.
    pub(crate) token_sender: TokenSender,
    /// What this side holds of its peer's place, as the guest among members.
    pub(crate) inheritance: Option<Inheritance>,
}

/// The states of a channel, as one byte that every call looks at.
pub(crate) mod state {
    use crate::fork::Mark;

    /// Of a channel of the process that this one was forked from.
    pub(crate) const INHERITED: u8 = Mark::INHERITED;
    pub(crate) const OPEN: u8 = u8::MAX;
    pub(crate) const CLOSED_HERE: u8 = 1;
    pub(crate) const CLOSED_BY_PEER: u8 = 2;
    pub(crate) const PEER_EXITED: u8 = 3;
    pub(crate) const CORRUPT: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    pub(crate) const EXPOSED: u8 = 6;
    pub(crate) const EXPOSED_AT_PEER: u8 = 7;
    pub(crate) const LEFT_BY_PEER: u8 = 8;
}

/// What both halves of a channel share within this process.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) role: Role,
    /// Also held by whoever waits for tokens, which keeps no channel open.
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) state: Mark,
    pub(crate) sending_ended: AtomicBool,
    pub(crate) receiving_ended: AtomicBool,
    /// What is let go of when the channel ends. Whoever changes the phase of this side's region, or the number of its tokens,
    /// has this lock.
    pub(crate) held: Mutex<Option<Held>>,
    pub(crate) busy_poll: Duration,
}

/// What others may have once the channel has ended: the address of a pair's host, a seat of a service.
pub(crate) trait Tenure: fmt::Debug + Send {
    /// The channel ends, in one of these [`state`]s, and nobody has been told yet: lets go of what others may have. Whether
    /// this side goes on in its peer's place. Dropped once the peer can see the end.
    fn end(&mut self, state: u8) -> bool;
}

/// What is let go of, whatever the end.
impl<T: fmt::Debug + Send> Tenure for Option<T> {
    fn end(&mut self, _state: u8) -> bool {
        *self = None;
        false
    }
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) own: OwnRegion,
    pub(crate) phase: OwnPhase,
    pub(crate) peer: PeerRegion,
    pub(crate) inbox: OpenInbox,
    pub(crate) token_sender: TokenSender,
    /// Dropped before anything says that the channel has ended: whoever hears of it may join anew at once.
    pub(crate) tenure: Option<Box<dyn Tenure>>,
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
            // Whoever copies what is wiped next finds the phase changed after that.
            fence(Ordering::SeqCst);
            self.own.wipe();
        }
    }
}

/// The one owner of the phase word of this side's region. It lies in [`Held`], so that whoever has it has the lock, and
/// nothing but this writes the word: of two threads that end the channel in different ways, the second finds what the first
/// has said, and what may not follow that is not written.
#[derive(Debug)]
pub(crate) struct OwnPhase {
    region: OwnRegion,
    now: Phase,
}

impl OwnPhase {
    /// Of a region in which nothing has been said yet.
    pub(crate) fn of(region: &OwnRegion) -> Self {
        Self {
            region: region.clone(),
            now: Phase::OPEN,
        }
    }

    pub(crate) fn step(&self) -> Step {
        self.now.step
    }

    /// Says that no more will be sent. `false`: that was said before, or cannot be said any more.
    pub(crate) fn end_sending(&mut self) -> bool {
        self.become_(self.now.ending())
    }

    /// Takes this step. `false`: it does not follow, and nothing was written.
    pub(crate) fn take(&mut self, step: Step) -> bool {
        self.become_(self.now.then(step))
    }

    fn become_(&mut self, next: Option<Phase>) -> bool {
        let Some(next) = next else { return false };
        self.now = next;
        // Release: whoever sees it sees what was published before.
        self.region.store(layout::PHASE, next.word(), Ordering::Release);
        true
    }
}

/// What became of a place that this side has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Legacy {
    /// The peer has it.
    Taken,
    /// The peer has it, or will: it has not said anything yet.
    Untold,
    /// There is nobody to take it.
    Left,
}

impl Shared {
    /// What a call on an ended channel gets.
    pub(crate) fn check(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            state::OPEN => Ok(()),
            state::INHERITED => Err(inherited()),
            state::CLOSED_HERE => Err(Error::Closed("the channel is closed")),
            state::CLOSED_BY_PEER => Err(Error::PeerLost("it has closed the channel".into())),
            state::LEFT_BY_PEER => Err(Error::PeerLost("it has left the address".into())),
            // The line closes by itself when its process ends, and when it executes another program.
            state::PEER_EXITED => Err(Error::PeerLost(
                "its process has ended, or executes another program now".into(),
            )),
            state::REFUSED => Err(Error::Closed(
                "the channel was closed: its peer is no longer who the policy asks for",
            )),
            state::EXPOSED => Err(Error::ObjectExposed(
                "somebody tried to open this side's memory, which was wiped; the channel is closed".into(),
            )),
            state::EXPOSED_AT_PEER => Err(Error::ObjectExposed(
                "as the peer says, somebody tried to open its memory, which it has wiped; the channel is closed"
                    .into(),
            )),
            _ => Err(Error::RingCorrupt("as was found before".into())),
        }
    }

    /// Whether this process was forked from the one whose channel it is.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.load(Ordering::Relaxed) == state::INHERITED
    }

    /// For whoever takes something from the line. Errors in a child, whose parent's it is.
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
            self.state.load(Ordering::Acquire),
            state::CLOSED_BY_PEER | state::PEER_EXITED | state::LEFT_BY_PEER
        )
    }

    /// Ends the channel, once. The address is free, and the line closed to both sides, when this returns.
    pub(crate) fn finish(&self, end: u8) {
        if self.is_inherited() {
            return;
        }
        match end {
            // Not waited for: what the peer sends to a side that closes is lost in any case, and the thread that has heard
            // the alarm is the one that would be waited for.
            state::CLOSED_HERE | state::REFUSED | state::EXPOSED => {}
            // It may have been killed between a token and the word of how many there are.
            state::PEER_EXITED => self.hear_all(),
            _ => self.hear_out(),
        }
        let mut guard = self.held();
        if let Some(held) = guard.as_mut().filter(|held| held.has_left()) {
            // All else is let go of by whoever waits for the answer.
            if end == state::EXPOSED {
                held.expose();
            }
            return;
        }
        let Some(mut held) = guard.take() else { return };
        let mut tenure = held.tenure.take();
        let succeeds = tenure.as_mut().is_some_and(|tenure| tenure.end(end));
        if end == state::EXPOSED {
            held.expose();
        } else {
            if matches!(end, state::CLOSED_HERE | state::REFUSED | state::CORRUPT) {
                held.keep_what_is_unread();
            }
            held.phase
                .take(if succeeds { Step::Succeeds } else { Step::Closed });
        }
        self.state.store(end, Ordering::Release);
        self.doorbell.hang_up();
        drop(guard);
        drop(tenure);
        // The last of a region or of a mailbox waits for the thread that hears alarms, and that may be waiting here.
        drop(held);
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        // Valid after every statement that changes it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
        let tenure = self.held().as_mut().and_then(|held| held.tenure.take());
        drop(tenure);
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
    /// as `deadline` allows. Whoever sends or reads here meanwhile is told that the channel is closed.
    pub(crate) fn leave(&self, deadline: &Deadline) -> Legacy {
        let mut guard = self.held();
        let Some(held) = guard.as_mut().filter(|held| !held.has_left()) else {
            return Legacy::Left;
        };
        let mut tenure = held.tenure.take();
        if let Some(tenure) = &mut tenure {
            tenure.end(state::CLOSED_HERE);
        }
        held.keep_what_is_unread();
        self.state.store(state::CLOSED_HERE, Ordering::Release);
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
        drop((held, tenure));
        match phase.map(|phase| phase.step) {
            Some(Step::Succeeds) => Legacy::Taken,
            _ if answered => Legacy::Left,
            _ => Legacy::Untold,
        }
    }

    /// The phase of the peer's region, while this side has that.
    fn phase_of_peer(&self) -> Option<Phase> {
        let held = self.held();
        Phase::from_word(held.as_ref()?.peer.load(layout::PHASE, Ordering::Acquire))
    }

    /// Reads what was left on the line, before somebody lies down: see [`Doorbell::catch_up`].
    pub(crate) fn catch_up(&self) {
        if !self.is_inherited() && self.doorbell.catch_up() {
            self.notice();
        }
    }

    /// Notices what the line says: a peer that is gone ends the channel.
    pub(crate) fn notice(&self) {
        if self.is_inherited() || !self.doorbell.is_gone() {
            return;
        }
        // An honest peer says that it closes before it hangs up. A dead one has not said anything.
        self.finish(match self.phase_of_peer().map(|phase| phase.step) {
            Some(Step::Closed | Step::Succeeds) => state::CLOSED_BY_PEER,
            Some(Step::Left) => state::LEFT_BY_PEER,
            Some(Step::Exposed) => state::EXPOSED_AT_PEER,
            Some(Step::Open) | None => state::PEER_EXITED,
        });
    }

    pub(crate) fn finish_if_both_ended(&self) {
        let both = self.sending_ended.load(Ordering::Acquire) && self.receiving_ended.load(Ordering::Acquire);
        if both && !self.is_inherited() {
            self.hear_out();
            self.finish(state::CLOSED_HERE);
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
            if self.phase_of_peer() == Some(Phase::EXPOSED) {
                self.finish(state::EXPOSED_AT_PEER);
                self.check()?;
            }
            self.wait_for_end();
            if !self.peer_is_gone() {
                self.check()?;
            }
            self.finish(state::CORRUPT);
        }
        result
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        match self.state.load(Ordering::Acquire) {
            state::OPEN => None,
            state::CLOSED_HERE
            | state::CLOSED_BY_PEER
            | state::LEFT_BY_PEER
            | state::REFUSED
            | state::INHERITED => Some(CloseReason::Closed),
            state::PEER_EXITED => Some(CloseReason::Exited),
            state::EXPOSED | state::EXPOSED_AT_PEER => Some(CloseReason::Exposed),
            _ => Some(CloseReason::Corrupt),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_inherited() {
            leave_torn(&mut self.held);
        }
        self.finish(state::CLOSED_HERE);
    }
}

/// The end of a channel, for whoever has none of its halves and does not keep it open.
#[derive(Debug, Clone)]
pub(crate) struct Partner {
    shared: Weak<Shared>,
    ends: Ends,
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

    /// What becomes ready when the channel ends, and stays so.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.ends.watched()
    }

    /// The channel, if it has not ended by now.
    pub(crate) fn open(&self) -> Option<Arc<Shared>> {
        let shared = self.shared.upgrade()?;
        shared.doorbell.look();
        shared.notice();
        shared.close_reason().is_none().then_some(shared)
    }
}

/// After this many looks that found nothing, a half that only ever polls looks at the line as well, so that it
/// notices its peer's end without a system call each time.
pub(crate) const LOOKS_PER_GLANCE: u32 = 4096;

/// What one half needs of the other process: gone with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sleeper: Sleeper<OwnRegion, PeerRegion>,
    pub(crate) waker: Waker<OwnRegion, PeerRegion>,
}

impl Link {
    /// `sleeper`: what this half sleeps for; `waker`: what the peer's other half does.
    pub(crate) fn new(parts: &Parts, sleeper: ParkingSpot, waker: ParkingSpot) -> Self {
        let barriers = if parts.barriers {
            Barriers::Sleeper
        } else {
            Barriers::Both
        };
        Self {
            sleeper: Sleeper::new(parts.own.clone(), parts.peer.clone(), sleeper, barriers),
            waker: Waker::new(parts.own.clone(), parts.peer.clone(), waker, barriers),
        }
    }
}

/// Spins until `done`, for at most `time`.
pub(crate) fn spin(time: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    if time.is_zero() {
        return Ok(false);
    }
    // A time that the clock cannot count has no end.
    let end = Instant::now().checked_add(time);
    loop {
        // The clock costs as much as many looks.
        for _ in 0..64 {
            if done()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}
