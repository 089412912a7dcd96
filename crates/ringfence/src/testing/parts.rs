//! The results of a handshake without a peer process, for a channel whose other end is in the same test.

use std::os::fd::OwnedFd;

#[cfg(test)]
use crate::{channel::Channel, options::Options};
use crate::{
    fork::ForkMark,
    handshake::broadcast::RingPart,
    handshake::parts::{ChannelTerms, Objects, Parts, Role, Unopened},
    identity::{Credentials, Identity},
    peer::process::Peer,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    signal::inbox::{OpenInbox, TokenAddress, TokenSender},
    trace::TraceContext,
    wake::{attachments::Attachments, parking::Barriers},
};

/// Both rings have `capacity` bytes, and the longest message has `longest`.
pub(crate) fn without_a_peer(
    line: OwnedFd,
    own: OwnRegion,
    peer: PeerRegion,
    capacity: u64,
    longest: u64,
) -> Parts {
    let no_process = Credentials {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    Parts {
        role: Role::Guest,
        line,
        process: Peer::unknown(no_process),
        identity: Identity::of(no_process),
        evidence: Vec::new(),
        objects: Objects {
            own: Unopened::new(own),
            peer,
            ring: RingPart::PerSide,
            inbox: OpenInbox::unreachable(),
            token_sender: TokenSender::new(no_process.pid, TokenAddress::default()).expect("no process"),
            mark: ForkMark::new().expect("memory"),
        },
        terms: ChannelTerms {
            own_capacity: capacity,
            peer_capacity: capacity,
            attachments_in: Attachments::none(),
            attachments_out: Attachments::none(),
            longest_out: longest,
            longest_in: longest,
        },
        barriers: Barriers::Both,
        inheritance: None,
        trace: TraceContext::with("none", &Identity::of(no_process)),
    }
}

/// Both ends of a channel in this process.
#[cfg(test)]
pub(crate) fn pair(capacity: u64, longest: u64, options: &Options) -> (Channel, Channel) {
    let (one, other) = crate::sys::socket::new_line().expect("a line");
    let regions = [OwnRegion::private(capacity), OwnRegion::private(capacity)];
    let end = |line, own, peer| end(line, own, peer, (capacity, longest), options);
    (
        end(one, &regions[0], &regions[1]),
        end(other, &regions[1], &regions[0]),
    )
}

/// One end of a channel. The other end owns the second region.
#[cfg(test)]
pub(crate) fn end(
    line: OwnedFd,
    own: &OwnRegion,
    peer: &OwnRegion,
    (capacity, longest): (u64, u64),
    options: &Options,
) -> Channel {
    let mut parts = without_a_peer(line, own.clone(), peer.peer_view(), capacity, longest);
    parts.terms.attachments_in = options.attachments;
    parts.terms.attachments_out = options.attachments;
    Channel::assemble(parts, None, options)
}
