//! What a guest among members does when its channel ends: it takes its host's place, or comes anew.

use std::{fmt, sync::Arc};

use crate::{
    channel::state::{ChannelState, Tenure},
    endpoint::acceptor::Refused,
    endpoint::membership::member::{Member, Parted},
    endpoint::shared::{Endpoint, Shared},
    error::Result,
    rendezvous::inherit::Inheritance,
    rendezvous::place::Place,
};

/// A guest that takes its host's place once the host is gone.
pub(super) struct Successor {
    shared: Arc<Shared<Member>>,
    /// What the guest holds of the host's place.
    inheritance: Option<Inheritance>,
    /// Once the host is gone: its place, or why this process could not take it.
    place: Option<Result<Place>>,
}

impl Successor {
    pub(super) fn new(shared: &Arc<Shared<Member>>, inheritance: Inheritance) -> Self {
        Self {
            shared: Arc::clone(shared),
            inheritance: Some(inheritance),
            place: None,
        }
    }
}

impl fmt::Debug for Successor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Successor({})", self.shared.address)
    }
}

impl Tenure for Successor {
    /// A host that has left, or is dead, or executes another program, takes no newcomer in any more. One that has only closed
    /// the channel, or ended it as corrupt or exposed, does.
    fn end(&mut self, how: ChannelState) -> bool {
        let is_gone = matches!(how, ChannelState::LeftByPeer | ChannelState::PeerExited);
        let inheritance = self.inheritance.take().filter(|_| is_gone);
        self.place = inheritance.map(Inheritance::take_over);
        matches!(self.place, Some(Ok(_)))
    }
}

impl Drop for Successor {
    /// Not before the host has seen the end: a guest that came anew earlier would be a third to it.
    fn drop(&mut self) {
        if !self.shared.is_here() {
            return;
        }
        let parted = match self.place.take() {
            Some(Ok(place)) => Parted::Successor(place),
            Some(Err(error)) => {
                // Trouble of this side, which is told here alone.
                let identity = None;
                Member::refused(&self.shared, Refused { error, identity });
                Parted::Lost
            }
            None => Parted::Lost,
        };
        self.shared.part(Some(parted));
    }
}
