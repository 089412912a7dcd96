//! What both halves of a channel share within this process: its state, its line, and what is let go of at its end.

use std::{
    fmt,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    channel::own_phase::OwnPhase,
    channel::reason::CloseReason,
    channel::state::{AtomicState, ChannelState},
    channel::stats::Counters,
    error::Result,
    fork::{Mark, ProcessMutex},
    handshake::parts::Role,
    region::access::Readable,
    region::layout,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::Phase,
    signal::inbox::{OpenInbox, TokenSender},
    sys::lock::MutexGuard,
    trace::Tie,
    wake::doorbell::Doorbell,
};

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
    pub(crate) held: ProcessMutex<Option<Held>>,
    pub(crate) busy_poll: Duration,
    /// Also held by what sums the channels of an address up.
    pub(crate) counters: Arc<Counters>,
    pub(crate) tie: Tie,
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
    pub(crate) tie: Tie,
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

impl Shared {
    /// A channel whose peer has this side's object already. From now on the tripwire ends it.
    pub(crate) fn open(line: Line, mark: Mark, held: Held, busy_poll: Duration) -> Arc<Self> {
        let own = held.own.clone();
        let birth = mark.birth();
        let doorbell = Arc::new(Doorbell::new(line.socket, line.pidfd, birth));
        let shared = Arc::new(Self {
            role: line.role,
            counters: Counters::new(doorbell.rung()),
            doorbell,
            state: AtomicState::open(mark),
            sending_ended: AtomicBool::new(false),
            receiving_ended: AtomicBool::new(false),
            held: ProcessMutex::new(Some(held), birth),
            busy_poll,
            tie: line.tie,
        });
        // Before the alarm, which may end it at once.
        shared.tie.opened(&shared.role);
        own.in_use(line.barriers);
        if let Some(tripwire) = own.tripwire() {
            let shared = Arc::downgrade(&shared);
            tripwire.on_alarm(move || {
                let untold = shared.upgrade()?.end(ChannelState::Exposed)?;
                Some(Box::new(move || drop(untold)))
            });
        }
        shared
    }

    /// What a call on an ended channel gets.
    pub(crate) fn check(&self) -> Result<()> {
        self.state.get().check()
    }

    /// Whether this process was forked from the one whose channel it is.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.is(ChannelState::Inherited, Ordering::Relaxed)
    }

    /// Whether no more will come, and everything was read. Never in a child: it has read nothing.
    pub(crate) fn has_read_all(&self) -> bool {
        self.receiving_ended.load(Ordering::Acquire) && !self.is_inherited()
    }

    /// For an event loop that watches the peer's process as well: see [`Doorbell::line`].
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        self.doorbell.line()
    }

    /// For an event loop that watches nothing else.
    pub(crate) fn line_alone(&self) -> BorrowedFd<'_> {
        // What is missing for that, `arm` reports.
        let _ = self.doorbell.poll_line_alone();
        self.doorbell.line()
    }

    /// The channel has this until it ends. If it has ended already, `on_end` is called at once.
    pub(crate) fn keep(&self, mut on_end: Box<dyn OnEnd>) {
        if let Ok(mut guard) = self.held()
            && let Some(held) = guard.as_mut()
        {
            held.on_end = Some(on_end);
            return;
        }
        on_end.end(self.state.get());
    }

    /// What the channel has until it ends. Errors in a child, which has nothing of it.
    pub(super) fn held(&self) -> Result<MutexGuard<'_, Option<Held>>> {
        self.held.lock()
    }

    /// Says that this side sends no more. `false`: the channel has ended already, and the peer was told of that.
    pub(crate) fn end_sending(&self) -> bool {
        let Ok(mut guard) = self.held() else { return false };
        guard.as_mut().is_some_and(|held| held.phase.end_sending())
    }

    /// Frees the address, and nothing else: see [`Sender::vacate`](crate::Sender::vacate).
    pub(crate) fn vacate(&self) {
        if let Ok(mut guard) = self.held() {
            let on_end = guard.as_mut().and_then(|held| held.on_end.take());
            // What is dropped may come back with this lock.
            drop(guard);
            drop(on_end);
        }
    }

    /// The phase of the peer's region, while this side has that.
    pub(super) fn phase_of_peer(&self) -> Option<Phase> {
        let held = self.held().ok()?;
        Phase::from_word(held.as_ref()?.peer.load(layout::PHASE, Ordering::Acquire))
    }

    /// Before a thread parks: see [`Doorbell::catch_up`].
    pub(crate) fn catch_up(&self) {
        if self.doorbell.catch_up() {
            self.notice();
        }
    }

    /// Before an event loop waits: see [`Doorbell::arm`].
    pub(crate) fn arm(&self) -> Result<()> {
        if self.doorbell.arm()? {
            self.notice();
        }
        Ok(())
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.state.get().close_reason()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.finish(ChannelState::ClosedHere);
    }
}
