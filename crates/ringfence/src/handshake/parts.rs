//! The result of a handshake: everything that a channel is made of.

use std::{fmt, os::fd::OwnedFd, sync::atomic::Ordering};

use crate::{
    address::inherit::Inheritance,
    evidence::Evidence,
    fork::Mark,
    handshake::broadcast::RingPart,
    identity::Identity,
    peer::process::Peer,
    region::access::Writable,
    region::layout,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::phase::{Phase, Step},
    signal::inbox::{OpenInbox, TokenSender},
    trace::Tie,
};

/// The role of this process at the rendezvous. Both roles have the same rights afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It bound the address, or took it over from a host that left it.
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

/// The result of a handshake.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) role: Role,
    pub(crate) line: OwnedFd,
    pub(crate) process: Peer,
    pub(crate) identity: Identity,
    pub(crate) evidence: Vec<Evidence>,
    /// For the state of the future channel. It is allocated before this side is ready, so that a lack of
    /// memory fails the handshake.
    pub(crate) mark: Mark,
    pub(crate) own: Unopened,
    pub(crate) peer: PeerRegion,
    pub(crate) own_capacity: u64,
    pub(crate) peer_capacity: u64,
    /// The longest message that the peer receives.
    pub(crate) longest_out: u64,
    /// The longest message that this side receives.
    pub(crate) longest_in: u64,
    /// Both processes support membarrier(2).
    pub(crate) barriers: bool,
    /// Receives the peer's tokens.
    pub(crate) inbox: OpenInbox,
    /// Sends this side's tokens.
    pub(crate) token_sender: TokenSender,
    /// The share of the host's place, held by the guest of a membership.
    pub(crate) inheritance: Option<Inheritance>,
    /// The ring of a broadcast. In a broadcast, `own` and `peer` are the control objects.
    pub(crate) ring: RingPart,
    /// The address and the peer, for tracing.
    pub(crate) tie: Tie,
}

/// This side's region while no channel is open over it. If none will be, dropping it marks the region as
/// closed. Otherwise a peer that has received READY could have a channel already, and would take this process
/// for dead.
#[derive(Debug)]
pub(crate) struct Unopened {
    region: OwnRegion,
    opened: bool,
}

impl Unopened {
    pub(crate) fn new(region: OwnRegion) -> Self {
        Self {
            region,
            opened: false,
        }
    }

    /// Returns the region to a channel, which marks its own end.
    pub(crate) fn open(mut self) -> OwnRegion {
        self.opened = true;
        self.region.clone()
    }
}

impl Drop for Unopened {
    fn drop(&mut self) {
        if !self.opened {
            let closed = Phase {
                step: Step::Closed,
                ended: false,
            };
            self.region.store(layout::PHASE, closed.word(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::access::Readable;

    #[test]
    fn a_region_without_a_channel_is_marked_as_closed() {
        for (opened, phase) in [(true, Phase::OPEN.word()), (false, 2)] {
            let region = OwnRegion::private(4096);
            let seen = region.seen_by_peer();
            let unopened = Unopened::new(region);
            assert_eq!(seen.load(layout::PHASE, Ordering::Acquire), Phase::OPEN.word());
            let kept = opened.then(|| unopened.open());
            assert_eq!(seen.load(layout::PHASE, Ordering::Acquire), phase);
            drop(kept);
        }
    }
}
