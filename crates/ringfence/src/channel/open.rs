//! Opens a channel from the parts that a handshake returns. The halves are made from what is opened.

use std::sync::Arc;

use crate::{
    channel::end::{LineParts, OnEnd, OwnPhase, Resources, Shared},
    channel::verify::Verifier,
    evidence::Evidence,
    handshake::parts::Parts,
    identity::Identity,
    options::Options,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    signal::{barriers, inbox::TokenInbox},
    wake::attachments::Attachments,
    wake::parking::{Barriers, ParkingSpot, Sleeper, Waker},
};

/// A half that only polls checks the line after this many calls that found nothing, so that it notices the end of its peer
/// without a system call each time.
pub(crate) const LOOKS_PER_GLANCE: u32 = 4096;

/// An open channel, and what its halves are made of.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) verifier: Verifier,
    pub(crate) inbox: Arc<TokenInbox>,
    pub(crate) identity: Identity,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) own: OwnRegion,
    pub(crate) peer: PeerRegion,
    pub(crate) barriers: Barriers,
    /// This process was registered for barriers before the channel was opened.
    pub(crate) receives_barriers: bool,
    /// Bytes of this side's ring and of the peer's. 0 if there is none.
    pub(crate) own_capacity: u64,
    pub(crate) peer_capacity: u64,
    /// Bytes of the longest message that the peer accepts, and that this side accepts.
    pub(crate) longest_out: u64,
    pub(crate) attachments_out: Attachments,
    pub(crate) longest_in: u64,
}

/// Opens a channel. The peer has this side's object already: from now on the tripwire ends the channel.
pub(crate) fn open(parts: Parts, on_end: Option<Box<dyn OnEnd>>, options: &Options) -> Opened {
    let (own, peer) = (parts.own.open(), parts.peer);
    let inbox = Arc::clone(parts.inbox.inbox());
    let receives_barriers = barriers::are_accepted();
    let line = LineParts {
        role: parts.role,
        peer: parts.identity.pid,
        subscribes: parts.own_capacity == 0,
        socket: parts.line,
        pidfd: parts.process.pidfd(),
        accepts: parts.attachments_in,
        barriers: parts.barriers && receives_barriers,
        tie: parts.tie,
    };
    let held = Resources {
        own: own.clone(),
        phase: OwnPhase::of(&own),
        peer: peer.clone(),
        inbox: parts.inbox,
        token_sender: parts.token_sender,
        on_end,
    };
    let shared = Shared::open(line, parts.mark, held, options.busy_poll);
    Opened {
        verifier: Verifier::new(parts.process, options, &shared),
        shared,
        inbox,
        identity: parts.identity,
        evidence: parts.evidence,
        own,
        peer,
        barriers: if parts.barriers {
            Barriers::Sleeper
        } else {
            Barriers::Both
        },
        receives_barriers,
        own_capacity: parts.own_capacity,
        peer_capacity: parts.peer_capacity,
        longest_out: parts.longest_out,
        attachments_out: parts.attachments_out,
        longest_in: parts.longest_in,
    }
}

/// One half's means to sleep, and to wake the peer's other half.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sleeper: Sleeper<OwnRegion, PeerRegion>,
    pub(crate) waker: Waker<OwnRegion, PeerRegion>,
    /// Calls of a sending half that found no room since it last checked the line.
    pub(super) fruitless: u32,
}

impl Link {
    /// `sleeper` is the spot of this half, `waker` that of the peer's other half.
    pub(crate) fn new(opened: &Opened, sleeper: ParkingSpot, waker: ParkingSpot) -> Self {
        Self::between(opened, opened.peer.clone(), sleeper, waker)
    }

    /// As [`Link::new`], with the region in which the words of the peer's other half lie.
    pub(crate) fn between(
        opened: &Opened,
        peer: PeerRegion,
        sleeper: ParkingSpot,
        waker: ParkingSpot,
    ) -> Self {
        let barriers = opened.barriers;
        let mut waker = Waker::new(opened.own.clone(), peer.clone(), waker, barriers);
        if !opened.receives_barriers {
            waker = waker.fenced_until(barriers::are_accepted);
        }
        Self {
            sleeper: Sleeper::new(opened.own.clone(), peer, sleeper, barriers),
            waker,
            fruitless: 0,
        }
    }

    /// A call has found no room. Returns whether the line must be checked now: see [`LOOKS_PER_GLANCE`].
    pub(crate) fn must_check_line(&mut self) -> bool {
        self.fruitless = (self.fruitless + 1) % LOOKS_PER_GLANCE;
        self.fruitless == 0
    }
}
