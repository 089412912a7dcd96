//! One side of a handshake: its state at the start, and what it learns about the peer.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use crate::{
    address::Address,
    error::Error,
    evidence::Record,
    handshake::broadcast::PublishedRing,
    handshake::frame::{Hello, Meeting, Nonce},
    handshake::line::Line,
    identity::{Credentials, Identity},
    options::Options,
    peer::process::Peer,
    sys,
    wait::deadline::Deadline,
};

/// One side of a handshake.
pub(crate) struct Side<'a> {
    pub(super) options: &'a Options,
    pub(super) deadline: &'a Deadline,
    pub(super) meeting: Meeting,
    pub(super) address: String,
    /// The descriptors that the host of a membership passes with READY.
    pub(super) shares: &'a [Arc<OwnedFd>],
    /// The address for which the guest of a membership receives those descriptors.
    pub(super) inherits: Option<&'a Address>,
    pub(super) role: RingRole<'a>,
    /// This process can issue membarrier(2) and receives it, so a peer that goes to sleep costs no fence in
    /// this side's sends.
    pub(super) takes_barriers: bool,
}

/// Which side has a ring.
#[derive(Clone, Copy)]
pub(super) enum RingRole<'a> {
    /// Each side has one, in its object.
    Equal,
    /// This side has one, which all its subscribers read.
    Publisher(&'a Arc<PublishedRing>),
    /// The other side has one.
    Subscriber,
}

/// The process at the other end of a connection, which has passed the policy's first check.
pub(crate) struct Caller {
    pub(super) stream: OwnedFd,
    pub(super) peer: Peer,
    pub(crate) identity: Identity,
    pub(super) record: Record,
}

/// A conversation on the private line with an identified process.
pub(super) struct Talk {
    pub(super) line: OwnedFd,
    pub(super) peer: Peer,
    /// The peer at its first inspection.
    pub(super) identity: Identity,
    pub(super) own: Nonce,
    /// The peer's HELLO.
    pub(super) hello: Hello,
    pub(super) record: Record,
}

impl<'a> Side<'a> {
    pub(crate) fn new(
        address: &impl ToString,
        options: &'a Options,
        deadline: &'a Deadline,
        meeting: Meeting,
    ) -> Self {
        let takes_barriers = sys::barrier::accept_barriers()
            .and_then(|()| sys::barrier::issue_barrier())
            .is_ok();
        Self {
            options,
            deadline,
            meeting,
            address: address.to_string(),
            shares: &[],
            inherits: None,
            role: RingRole::Equal,
            takes_barriers,
        }
    }

    /// Makes this the host of a membership, which passes these descriptors to its guest.
    pub(crate) fn sharing(mut self, shares: &'a [Arc<OwnedFd>]) -> Self {
        self.shares = shares;
        self
    }

    /// Makes this the guest of a membership at this address.
    pub(crate) fn inheriting(mut self, address: &'a Address) -> Self {
        self.inherits = Some(address);
        self
    }

    /// Makes this a publisher with this ring.
    pub(crate) fn publishing(mut self, ring: Option<&'a Arc<PublishedRing>>) -> Self {
        self.role = ring.map_or(self.role, RingRole::Publisher);
        self
    }

    /// Makes this a subscriber.
    pub(crate) fn subscribing(mut self) -> Self {
        self.role = RingRole::Subscriber;
        self
    }

    /// Returns the capacity of the ring that this side writes, or 0 if it writes none.
    pub(super) fn own_ring(&self) -> u64 {
        match self.role {
            RingRole::Equal | RingRole::Publisher(_) => self.options.capacity,
            RingRole::Subscriber => 0,
        }
    }

    pub(super) fn line<'b>(&'b self, socket: &'b OwnedFd, speaker: Credentials) -> Line<'b> {
        Line {
            socket: socket.as_fd(),
            speaker,
            deadline: self.deadline,
            address: &self.address,
        }
    }

    pub(super) fn occupied(&self, by: &str) -> Error {
        Error::AddressOccupied {
            address: self.address.clone(),
            by: by.into(),
        }
    }
}

impl AsFd for Caller {
    /// The agreed socket. It is readable once the guest has sent something or has disconnected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
