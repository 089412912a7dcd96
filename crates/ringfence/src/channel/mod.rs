//! A channel: both directions between two processes.
//!
//! `open` makes a channel from the results of a handshake. `end` holds the state that both halves share, and
//! every way in which a channel ends. `outbound` is the sending half over either kind of ring: that of a pair
//! (`sender`) and that of a publisher (`host/broadcaster.rs`). `reserve` has further ways to send. `inbound`
//! is the receiving half over either kind of ring: that of a pair (`receiver`) and that of a publisher
//! (`subscription`). `attachments` sends and receives sealed buffers and descriptors with a message, and
//! `unread` counts those that were not read. `waiting` is how the halves sleep, and `stats` counts. `tokens` and `verify` outlive the
//! halves and keep no channel open. `merge` reads from the receiving halves of many channels. `calls`
//! turns a channel into one that carries requests and replies.
//!
//! May import everything below: `handshake` (its results), `ring`, `region`, `wake`, `signal`. It never
//! searches for a peer, and knows no address.

pub(crate) mod attachments;
pub(crate) mod calls;
pub(crate) mod end;
pub(crate) mod inbound;
pub(crate) mod merge;
pub(crate) mod open;
pub(crate) mod outbound;
pub(crate) mod receiver;
pub(crate) mod reserve;
pub(crate) mod sender;
pub(crate) mod stats;
pub(crate) mod subscription;
pub(crate) mod tokens;
pub(crate) mod unread;
pub(crate) mod verify;
pub(crate) mod waiting;

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use crate::{
    channel::end::{OnEnd, Shared},
    channel::open::{Link, open},
    channel::outbound::Writing,
    channel::receiver::Receiver,
    channel::sender::Sender,
    channel::stats::ChannelStats,
    channel::tokens::Tokens,
    channel::unread::Outgoing,
    channel::verify::{KnownPeer, Verifier},
    error::Result,
    evidence::Evidence,
    handshake::parts::{Parts, Role},
    identity::Identity,
    options::Options,
    ring::spsc::{SpscReader, SpscWriter},
    wake::attachments::MAX_COUNT,
    wake::parking::ParkingSpot,
};

/// Both directions between this process and its peer.
///
/// Dropping it closes it: the peer reads what is in the ring, and then a clean end. If it is dropped while its
/// thread panics, it is destroyed ([`Channel::destroy`]).
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
    known: KnownPeer,
    tokens: Tokens,
}

opaque! { [] Channel; }

impl Channel {
    pub(crate) fn assemble(parts: Parts, on_end: Option<Box<dyn OnEnd>>, options: &Options) -> Self {
        let opened = open(parts, on_end, options);
        let link = |sleeper, waker| Link::new(&opened, opened.peer.clone(), sleeper, waker);
        let reading = link(ParkingSpot::READER, ParkingSpot::WRITER);
        let writing = link(ParkingSpot::WRITER, ParkingSpot::READER);
        let (own, peer, terms) = (opened.own, opened.peer, opened.terms);
        let (shared, known) = (opened.shared, opened.known);
        let mut ring = SpscWriter::new(own.clone(), peer.clone(), terms.own_capacity);
        ring.room.tally = Arc::clone(&shared.counters.sent);
        let mut consumer = SpscReader::new(own, peer, terms.peer_capacity, terms.longest_in);
        let accepts = options.attachments;
        if accepts.any() {
            consumer.limit.attachments = MAX_COUNT.min(accepts.max_count as usize);
        }
        consumer.limit.tally = Arc::clone(&shared.counters.received);
        consumer.limit.accepts_calls = false;
        let tokens = Tokens::new(&shared, opened.inbox);
        let writing = Writing {
            ring,
            link: writing,
            shared: Arc::clone(&shared),
        };
        let outgoing = Outgoing::new(terms.attachments_out);
        let sender = Sender::new(writing, terms.own_capacity, terms.longest_out, outgoing);
        let peer = Arc::clone(&known.identity);
        Self {
            sender,
            receiver: Receiver::new(consumer, peer, reading, terms.longest_in, shared),
            known,
            tokens,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.sender.shared
    }

    /// Returns the role of this process at the rendezvous.
    pub fn role(&self) -> Role {
        self.sender.shared.role
    }

    /// Returns the peer as found by the last check.
    pub fn peer(&self) -> &Identity {
        &self.known.identity
    }

    /// Returns every check that was made, in order: those of the handshake, and after [`Channel::verify`]
    /// those of the last one as well.
    pub fn evidence(&self) -> &[Evidence] {
        &self.known.evidence
    }

    /// Checks the peer again, now, against the policy that this channel was made with (without calling its
    /// callback again). [`Channel::peer`] and [`Channel::evidence`] then return the results of this check.
    ///
    /// If the policy pins the executable's content, this blocks while it reads the executable, for up to
    /// [`Options::handshake_timeout`].
    ///
    /// # Errors
    /// As [`Verifier::verify`]. After [`Error::PeerRefused`](crate::Error::PeerRefused) the channel is
    /// closed.
    pub fn verify(&mut self) -> Result<&Identity> {
        self.known.verify()
    }

    /// Returns a handle that checks the peer again from another thread, also after [`Channel::split`].
    pub fn verifier(&self) -> Verifier {
        self.known.verifier.clone()
    }

    /// Returns a handle that exchanges tokens with the peer from any thread, also after [`Channel::split`].
    pub fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// Returns the channel's statistics. The last figures remain available after the end.
    ///
    /// After [`Channel::split`] each half reports its own: [`Sender::stats`], [`Receiver::stats`].
    pub fn stats(&mut self) -> ChannelStats {
        self.receiver.stats();
        self.sender.stats()
    }

    /// Returns how long a wait spins before it sleeps, as set in the options. For bindings that implement
    /// their own wait.
    pub fn busy_poll(&self) -> Duration {
        self.sender.shared.busy_poll
    }

    /// Returns the sending half.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Returns the receiving half.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Splits the channel into its halves, which can be used on two threads. The channel closes once both are
    /// dropped.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Closes the channel: the peer reads what is in the ring, and then a clean end. The address is free when
    /// this returns.
    pub fn close(mut self) {
        self.sender.close();
    }

    /// Closes the channel at once. The peer reads what is in the ring, and then fails with
    /// [`Error::PeerLost`](crate::Error::PeerLost), unless the sending had ended before.
    pub fn destroy(mut self) {
        self.sender.destroy();
    }
}

impl AsFd for Channel {
    /// The private line: readable when the peer has sent a wakeup, has gone, or has died. See [`Receiver`]'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

#[cfg(test)]
mod tests;
