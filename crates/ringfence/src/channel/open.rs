//! Opens a channel from the parts that a handshake returns. The halves are made from what is opened.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use crate::{
    channel::end::{AtomicState, OnEnd, OwnPhase, Resources, Shared},
    channel::stats::Counters,
    channel::verify::{KnownPeer, Verifier},
    fork::ProcessMutex,
    handshake::parts::{ChannelTerms, Parts},
    options::Options,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    signal::{barriers, inbox::TokenInbox},
    wake::doorbell::Doorbell,
    wake::parking::{Barriers, ParkingSpot, Sleeper, Waker},
};

/// A half that only polls checks the line after this many calls that found nothing, so that it notices the end of its peer
/// without a system call each time.
pub(crate) const POLLS_PER_LINE_CHECK: u32 = 4096;

/// An open channel, and what its halves are made of.
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) known: KnownPeer,
    pub(crate) inbox: Arc<TokenInbox>,
    pub(crate) own: OwnRegion,
    pub(crate) peer: PeerRegion,
    pub(crate) barriers: Barriers,
    /// This process was registered for barriers before the channel was opened.
    pub(crate) process_registered: bool,
    pub(crate) terms: ChannelTerms,
}

/// Opens a channel. The peer has this side's object already: from now on the tripwire ends the channel.
pub(crate) fn open(parts: Parts, on_end: Option<Box<dyn OnEnd>>, options: &Options) -> Opened {
    let objects = parts.objects;
    let (own, peer) = (objects.own.open(), objects.peer);
    let inbox = Arc::clone(objects.inbox.inbox());
    let process_registered = barriers::is_registered();
    let subscribes = parts.terms.own_capacity == 0;
    let (process, owner) = (parts.process.pidfd(), objects.mark.owner());
    let doorbell = Doorbell::new(parts.line, process, parts.terms.attachments_in, subscribes, owner);
    let resources = Resources {
        own: own.clone(),
        phase: OwnPhase::of(&own),
        peer: peer.clone(),
        inbox: objects.inbox,
        token_sender: objects.token_sender,
        on_end,
    };
    let shared = Arc::new(Shared {
        role: parts.role,
        peer: parts.identity.pid,
        subscribes,
        counters: Counters::new(doorbell.wakeups_sent(), parts.terms.own_capacity),
        doorbell: Arc::new(doorbell),
        state: AtomicState(objects.mark),
        sending_ended: AtomicBool::new(false),
        receiving_ended: AtomicBool::new(false),
        lost: AtomicBool::new(false),
        violation: OnceLock::new(),
        resources: ProcessMutex::new(Some(resources), owner),
        busy_poll: options.busy_poll,
        trace: parts.trace,
    });
    own.in_use(parts.barriers == Barriers::Sleeper && process_registered);
    shared.opened(&own);
    let verifier = Verifier::new(parts.process, options, &shared);
    Opened {
        known: KnownPeer::new(verifier, parts.identity, parts.evidence),
        shared,
        inbox,
        own,
        peer,
        barriers: parts.barriers,
        process_registered,
        terms: parts.terms,
    }
}

/// One half's means to sleep, and to wake the peer's other half.
pub(crate) struct Link {
    pub(crate) sleeper: Sleeper<OwnRegion, PeerRegion>,
    pub(crate) waker: Waker<OwnRegion, PeerRegion>,
    /// Calls of a sending half that found no room since it last checked the line.
    pub(super) empty_polls: u32,
}

impl Link {
    /// `sleeper` is the spot of this half, `waker` that of the peer's other half, whose words lie in the region `peer`.
    pub(crate) fn new(opened: &Opened, peer: PeerRegion, sleeper: ParkingSpot, waker: ParkingSpot) -> Self {
        let barriers = opened.barriers;
        let mut waker = Waker::new(opened.own.clone(), peer.clone(), waker, barriers);
        if !opened.process_registered {
            waker = waker.fenced_until(barriers::is_registered);
        }
        Self {
            sleeper: Sleeper::new(opened.own.clone(), peer, sleeper, barriers),
            waker,
            empty_polls: 0,
        }
    }

    /// A call has found no room. Returns whether the line must be checked now: see [`POLLS_PER_LINE_CHECK`].
    pub(crate) fn must_check_line(&mut self) -> bool {
        self.empty_polls = (self.empty_polls + 1) % POLLS_PER_LINE_CHECK;
        self.empty_polls == 0
    }
}
