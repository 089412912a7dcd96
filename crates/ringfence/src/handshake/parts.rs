//! The state of one side of a handshake, and the result: everything that a channel is made of.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    address::{Address, bound::Inheritance},
    error::Result,
    evidence::{Evidence, EvidenceLog},
    fork::ForkMark,
    handshake::{
        broadcast::{PublishedRing, RingPart},
        frame::{Hello, Meeting, Nonce},
        line::FrameLine,
    },
    identity::{Credentials, Identity},
    options::Options,
    peer::process::Peer,
    region::{
        copy::Writable,
        create::{Backing, Blank, SharedObject},
        layout,
        own::OwnRegion,
        peer::PeerRegion,
        phase::{Phase, Step},
    },
    signal::barriers,
    signal::inbox::{OpenInbox, TokenSender},
    sys,
    trace::TraceContext,
    wait::deadline::Deadline,
    wake::attachments::{Attachments, PeerSocket},
    wake::parking::Barriers,
};

named! {
    /// The role of this process at the rendezvous. Both roles have the same rights afterwards.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Role {
        /// It bound the address, or took it over from a host that left it.
        Host => "host",
        /// It found the address bound, and connected.
        Guest => "guest",
    }
}

/// The terms of both sides for their messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChannelTerms {
    /// Bytes of this side's ring and of the peer's. 0 if there is none.
    pub(crate) own_capacity: u64,
    pub(crate) peer_capacity: u64,
    /// The attachments that this side accepts.
    pub(crate) attachments_in: Attachments,
    /// The attachments that the peer accepts.
    pub(crate) attachments_out: Attachments,
    /// Bytes of the longest message that the peer receives.
    pub(crate) longest_out: u64,
    /// Bytes of the longest message that this side receives.
    pub(crate) longest_in: u64,
}

/// The result of a handshake.
pub(crate) struct Parts {
    pub(crate) role: Role,
    pub(crate) line: OwnedFd,
    pub(crate) process: Peer,
    pub(crate) identity: Identity,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) objects: Objects,
    pub(crate) terms: ChannelTerms,
    /// The barriers that both processes support.
    pub(crate) barriers: Barriers,
    /// The share of the host's place, held by the guest of a membership.
    pub(crate) inheritance: Option<Inheritance>,
    /// The address and the peer, for tracing.
    pub(crate) trace: TraceContext,
}

/// The objects that both sides have exchanged, and what belongs to them.
pub(crate) struct Objects {
    pub(crate) own: Unopened,
    pub(crate) peer: PeerRegion,
    /// The ring of a broadcast. In a broadcast, `own` and `peer` are the control objects.
    pub(crate) ring: RingPart,
    /// Receives the peer's tokens.
    pub(crate) inbox: OpenInbox,
    /// Sends this side's tokens.
    pub(crate) token_sender: TokenSender,
    /// For the state of the future channel. It is allocated before this side is ready, so that a lack of
    /// memory fails the handshake.
    pub(crate) mark: ForkMark,
}

/// This side's region while no channel is open over it. If none will be, dropping it marks the region as
/// closed. Otherwise a peer that has received READY could have a channel already, and would take this process
/// for dead.
pub(crate) struct Unopened {
    region: Option<OwnRegion>,
    has_given_up: bool,
}

impl Unopened {
    pub(crate) fn new(region: OwnRegion) -> Self {
        Self {
            region: Some(region),
            has_given_up: false,
        }
    }

    /// The program no longer wants the channel. If the peer has it already, it ends cleanly: nothing was sent.
    pub(super) fn give_up(&mut self) {
        self.has_given_up = true;
    }

    /// Returns the region to a channel, which marks its own end.
    pub(crate) fn open(mut self) -> OwnRegion {
        self.region.take().expect("it is opened once, and dropped then")
    }
}

impl Drop for Unopened {
    fn drop(&mut self) {
        if let Some(region) = &self.region {
            let closed = Phase {
                step: Step::Closed,
                ended: self.has_given_up,
            };
            region.store(layout::PHASE, closed.word(), Ordering::Release);
        }
    }
}

/// One side of a handshake.
pub(crate) struct Side<'a> {
    pub(crate) options: &'a Options,
    pub(crate) deadline: &'a Deadline,
    pub(crate) meeting: Meeting,
    pub(crate) address: String,
    /// The descriptors that the host of a membership passes with READY.
    pub(crate) shares: &'a [Arc<OwnedFd>],
    /// The address for which the guest of a membership receives those descriptors.
    pub(crate) inherits: Option<&'a Address>,
    /// Whether the guest of a membership was destroyed, and must not end cleanly.
    pub(crate) destroyed: Option<&'a AtomicBool>,
    pub(crate) role: RingRole<'a>,
    /// This process can issue membarrier(2) and receives it, or will, so a peer that goes to sleep costs no fence in
    /// this side's sends.
    pub(crate) supports_barriers: bool,
    /// This process may not create memory, and its parent does it.
    pub(crate) lacks_memory: bool,
}

/// The process that may answer on the line that a child has inherited.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ExpectedChild<'a> {
    /// The process that was started. Its number is its own until this process has waited for it, which its pidfd shows.
    /// No pidfd before Linux 5.3.
    Process(i32, Option<BorrowedFd<'a>>),
    /// Any one process that has the line from it.
    Descendant,
    /// The program has not said which process it started.
    Unknown,
}

/// Which side has a ring.
#[derive(Clone, Copy)]
pub(crate) enum RingRole<'a> {
    /// Each side has one, in its object.
    PerSide,
    /// This side has one, which all its subscribers read.
    Publisher(&'a Arc<PublishedRing>),
    /// The other side has one.
    Subscriber,
}

/// The process at the other end of a connection, which has passed the policy's first check.
pub(crate) struct Connection {
    pub(super) stream: PeerSocket,
    pub(super) peer: Peer,
    pub(crate) identity: Identity,
    pub(super) record: EvidenceLog,
}

/// A conversation on the private line with an identified process.
pub(super) struct PeerSession {
    pub(super) line: OwnedFd,
    pub(super) peer: Peer,
    /// The peer at its first inspection.
    pub(super) identity: Identity,
    pub(super) own: Nonce,
    /// The peer's HELLO.
    pub(super) hello: Hello,
    /// This side's object, if it was made while this side waited for the peer's HELLO.
    pub(super) prepared: Option<Result<OwnObject>>,
    pub(super) record: EvidenceLog,
}

/// This side's object, and the receiver of the peer's tokens.
pub(super) struct OwnObject {
    pub(super) object: SharedObject,
    pub(super) inbox: OpenInbox,
    /// The checks of the object.
    pub(super) record: EvidenceLog,
}

impl<'a> Side<'a> {
    pub(crate) fn new(
        address: &impl ToString,
        options: &'a Options,
        deadline: &'a Deadline,
        meeting: Meeting,
    ) -> Self {
        Self {
            options,
            deadline,
            meeting,
            address: address.to_string(),
            shares: &[],
            inherits: None,
            destroyed: None,
            role: match meeting {
                // A publisher sets its ring.
                Meeting::Broadcast => RingRole::Subscriber,
                _ => RingRole::PerSide,
            },
            supports_barriers: barriers::is_offered(),
            lacks_memory: false,
        }
    }

    /// Makes this a child, which asks its parent for memory if it may not create any. A process with more rights than
    /// its starter does not ask: the starter could keep access to that memory.
    pub(crate) fn of_child(mut self) -> Self {
        let is_needed = self.options.backing == Backing::Memfd && !sys::process::is_privileged_execution();
        self.lacks_memory = is_needed && !Blank::is_allowed(self.deadline);
        self
    }

    pub(super) fn is_destroyed(&self) -> bool {
        self.destroyed
            .is_some_and(|destroyed| destroyed.load(Ordering::Acquire))
    }

    /// Makes this a publisher with this ring.
    pub(crate) fn publishing(mut self, ring: Option<&'a Arc<PublishedRing>>) -> Self {
        self.role = ring.map_or(self.role, RingRole::Publisher);
        self
    }

    /// Returns the capacity of the ring that this side writes, or 0 if it writes none.
    pub(super) fn own_ring(&self) -> u64 {
        match self.role {
            RingRole::PerSide | RingRole::Publisher(_) => self.options.capacity,
            RingRole::Subscriber => 0,
        }
    }

    pub(super) fn line<'b>(&'b self, socket: &'b OwnedFd, sender: Credentials) -> FrameLine<'b> {
        FrameLine {
            socket: socket.as_fd(),
            sender,
            deadline: self.deadline,
            address: &self.address,
        }
    }
}

impl Connection {
    /// Continues on the private line, and closes the agreed socket.
    pub(super) fn into_session(
        self,
        line: OwnedFd,
        own: Nonce,
        hello: Hello,
        prepared: Option<Result<OwnObject>>,
    ) -> PeerSession {
        PeerSession {
            line,
            peer: self.peer,
            identity: self.identity,
            own,
            hello,
            prepared,
            record: self.record,
        }
    }
}

impl AsFd for Connection {
    /// The agreed socket. It is readable once the guest has sent something or has disconnected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::copy::Readable;

    #[test]
    fn region_without_a_channel_is_marked_closed() {
        for (opened, phase) in [(true, Phase::OPEN.word()), (false, 2)] {
            let region = OwnRegion::private(4096);
            let seen = region.peer_view();
            let unopened = Unopened::new(region);
            assert_eq!(seen.load(layout::PHASE, Ordering::Acquire), Phase::OPEN.word());
            let kept = opened.then(|| unopened.open());
            assert_eq!(seen.load(layout::PHASE, Ordering::Acquire), phase);
            drop(kept);
        }
    }
}
