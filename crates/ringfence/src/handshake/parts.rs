//! What comes of a handshake: everything that a channel is made of.

use std::{fmt, os::fd::OwnedFd, sync::atomic::Ordering};

use crate::{
    evidence::Evidence,
    fork::Mark,
    handshake::broadcast::RingPart,
    identity::Identity,
    memory::access::Writable,
    memory::layout,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    memory::phase::{Phase, Step},
    peer::process::Peer,
    rendezvous::inherit::Inheritance,
    signal::inbox::{OpenInbox, TokenSender},
    trace::Tie,
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

/// What a handshake leaves behind.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) role: Role,
    pub(crate) line: OwnedFd,
    pub(crate) process: Peer,
    pub(crate) identity: Identity,
    pub(crate) evidence: Vec<Evidence>,
    /// Where the channel will keep its state: memory that cannot be had must fail before this side is ready.
    pub(crate) mark: Mark,
    pub(crate) own: Unopened,
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
    /// What the guest of a membership holds of its host's place.
    pub(crate) inheritance: Option<Inheritance>,
    /// What a publisher or a subscriber has beside the control objects, which `own` and `peer` are then.
    pub(crate) ring: RingPart,
    /// Where the two met, for those who watch the process.
    pub(crate) tie: Tie,
}

/// This side's region, over which no channel was opened yet. Where none will be, it says so as it goes: once the other side was told
/// READY it may have a channel, and would take this process for dead.
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

    /// For a channel, which says itself how it ends.
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
    use crate::memory::access::Readable;

    #[test]
    fn a_region_that_no_channel_was_opened_over_says_that_it_is_closed() {
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
