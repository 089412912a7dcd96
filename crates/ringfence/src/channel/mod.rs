//! A channel: both directions between two processes.
//!
//! `open` makes a channel from the parts of a handshake. `end` holds the state that both halves share, and every way in which it
//! ends. `outbound` is the sending half over either kind of ring: that of a pair (`sender`) and that of a publisher
//! (`host/broadcaster.rs`). `reserve` has further ways to send. `inbound` is the receiving half over either kind of ring: that of a pair
//! (`receiver`) and that of a publisher (`subscription`). `waiting` is how
//! the halves sleep, `scratch` is memory for a message in fragments, `stats` counts, `held` reads for the binding. `tokens` and
//! `verify` outlive the halves and keep no channel open. `merge` reads from the receiving halves of many channels.
//!
//! May import everything below: `handshake` (its parts), `ring`, `region`, `wake`, `signal`. It never searches for a
//! peer, and knows no address.

pub(crate) mod end;
pub(crate) mod held;
pub(crate) mod inbound;
pub(crate) mod merge;
pub(crate) mod open;
pub(crate) mod outbound;
pub(crate) mod receiver;
pub(crate) mod reserve;
pub(crate) mod scratch;
pub(crate) mod sender;
pub(crate) mod stats;
pub(crate) mod subscription;
pub(crate) mod tokens;
pub(crate) mod verify;
pub(crate) mod waiting;

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use crate::{
    channel::end::{ChannelState, OnEnd, Shared},
    channel::open::{Link, Opened, open},
    channel::outbound::Writing,
    channel::receiver::Receiver,
    channel::sender::Sender,
    channel::stats::ChannelStats,
    channel::tokens::Tokens,
    channel::verify::{KnownPeer, Verifier},
    error::Result,
    evidence::Evidence,
    handshake::parts::{Parts, Role},
    identity::Identity,
    options::Options,
    ring::consumer::Consumer,
    ring::spsc::SpscWriter,
    wake::parking::ParkingSpot,
};

/// Both directions between this process and its peer.
///
/// Dropping it closes it. What is in the ring then stays readable to the peer.
#[derive(Debug)]
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
    known: KnownPeer,
    tokens: Tokens,
}

impl Channel {
    pub(crate) fn assemble(parts: Parts, on_end: Option<Box<dyn OnEnd>>, options: &Options) -> Self {
        let opened = open(parts, on_end, options);
        let reading = Link::new(&opened, ParkingSpot::READER, ParkingSpot::WRITER);
        let writing = Link::new(&opened, ParkingSpot::WRITER, ParkingSpot::READER);
        let Opened {
            shared,
            verifier,
            inbox,
            identity,
            evidence,
            own,
            peer,
            own_capacity,
            peer_capacity,
            longest_out,
            longest_in,
            ..
        } = opened;
        let mut ring = SpscWriter::new(own.clone(), peer.clone(), own_capacity);
        ring.count_in(&shared.counters.sent);
        shared.counters.set_capacity(own_capacity);
        let mut consumer = Consumer::new(own, peer, peer_capacity, longest_in);
        consumer.count_in(&shared.counters.received);
        let tokens = Tokens::new(&shared, inbox);
        let writing = Writing {
            ring,
            link: writing,
            shared: Arc::clone(&shared),
        };
        let sender = Sender::new(writing, own_capacity, longest_out, ());
        let known = KnownPeer::new(verifier, identity, evidence);
        let peer = Arc::clone(known.identity());
        Self {
            sender,
            receiver: Receiver::new(consumer, peer, reading, longest_in, shared),
            known,
            tokens,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.sender.shared
    }

    /// Which part this process had at the rendezvous.
    pub fn role(&self) -> Role {
        self.sender.shared.role
    }

    /// The peer as it was when it was last looked at.
    pub fn peer(&self) -> &Identity {
        self.known.identity()
    }

    /// Every check that was made on the way, in order; after [`Channel::verify`], those of the last one as well.
    pub fn evidence(&self) -> &[Evidence] {
        self.known.evidence()
    }

    /// Looks at the peer again, now, and compares what it finds with the policy that this channel was made with
    /// (its callback is not asked again). [`Channel::peer`] and [`Channel::evidence`] then tell of this look.
    ///
    /// Blocks no longer than it takes to read the executable, where the policy pins its content: for that it has
    /// [`Options::timeout`].
    ///
    /// # Errors
    /// As [`Verifier::verify`]. After [`Error::PeerRefused`](crate::Error::PeerRefused) the channel is closed.
    pub fn verify(&mut self) -> Result<&Identity> {
        self.known.verify()
    }

    /// What looks at the peer again from another thread, and after [`Channel::split`].
    pub fn verifier(&self) -> Verifier {
        self.known.verifier()
    }

    /// What sends the peer tokens, and takes those that come from it, from any thread and after [`Channel::split`].
    pub fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// What has gone through so far, and how full the ring is. The last figures stay after the end.
    ///
    /// After [`Channel::split`] each half tells its own: [`Sender::stats`], [`Receiver::stats`].
    pub fn stats(&mut self) -> ChannelStats {
        self.receiver.stats();
        self.sender.stats()
    }

    /// How long a wait spins before it sleeps, as the options said: for bindings that wait in a way of their own.
    pub fn busy_poll(&self) -> Duration {
        self.sender.shared.busy_poll
    }

    /// The writing half.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The reading half.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Both halves, to live on two threads. The channel closes once both are dropped.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Closes the channel: the peer reads what is in the ring, and then its end. The address is free when this
    /// returns.
    pub fn close(self) {
        self.sender.shared.finish(ChannelState::ClosedHere);
    }
}

impl AsFd for Channel {
    /// The private line: readable when the peer has rung, has gone, or has died. See [`Receiver`]'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

#[cfg(test)]
mod tests;
