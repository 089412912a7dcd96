//! One side of one handshake: what it knows before it begins, and what it learns of the other.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use crate::{
    error::Error,
    evidence::Record,
    handshake::broadcast::PublishedRing,
    handshake::frame::{Hello, Meeting, Nonce},
    handshake::line::Line,
    identity::{Credentials, Identity},
    options::Options,
    peer::process::Peer,
    rendezvous::address::Address,
    sys,
    wait::deadline::Deadline,
};

/// One side of one handshake.
pub(crate) struct Side<'a> {
    pub(super) options: &'a Options,
    pub(super) deadline: &'a Deadline,
    pub(super) meeting: Meeting,
    pub(super) address: String,
    /// What a host among members passes its guest with READY.
    pub(super) shares: &'a [Arc<OwnedFd>],
    /// Where a guest among members gets that for.
    pub(super) inherits: Option<&'a Address>,
    pub(super) role: RingRole<'a>,
    /// This process can issue membarrier(2) and receives it, so that its peer's sleep needs no fence in its sends.
    pub(super) takes_barriers: bool,
}

/// Which side has a ring.
#[derive(Clone, Copy)]
pub(super) enum RingRole<'a> {
    /// Each side has one, in its object.
    Equal,
    /// This side's, which all its subscribers read.
    Publisher(&'a Arc<PublishedRing>),
    /// The other side's.
    Subscriber,
}

/// The process at the other end of a connection, looked at and let in by the policy so far.
pub(crate) struct Caller {
    pub(super) stream: OwnedFd,
    pub(super) peer: Peer,
    pub(crate) identity: Identity,
    pub(super) record: Record,
}

/// A talk on the private line, with a process that is known.
pub(super) struct Talk {
    pub(super) line: OwnedFd,
    pub(super) peer: Peer,
    /// The peer as it was when it was first looked at.
    pub(super) identity: Identity,
    pub(super) own: Nonce,
    /// What the other side said of itself.
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

    /// As a host among members: with what its guest gets of the place.
    pub(crate) fn sharing(mut self, shares: &'a [Arc<OwnedFd>]) -> Self {
        self.shares = shares;
        self
    }

    /// As a guest among members, at this address.
    pub(crate) fn inheriting(mut self, address: &'a Address) -> Self {
        self.inherits = Some(address);
        self
    }

    /// As a publisher with this ring.
    pub(crate) fn publishing(mut self, ring: Option<&'a Arc<PublishedRing>>) -> Self {
        self.role = ring.map_or(self.role, RingRole::Publisher);
        self
    }

    /// As a subscriber.
    pub(crate) fn subscribing(mut self) -> Self {
        self.role = RingRole::Subscriber;
        self
    }

    /// Bytes of the ring that this side writes; 0: it writes none.
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
    /// The agreed socket: readable once the guest has said something, or has left.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
