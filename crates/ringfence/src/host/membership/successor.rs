//! What a guest among members does when its channel ends: it takes its host's place, or comes anew.

use std::{fmt, mem, sync::Arc};

use crate::{
    address::bound::BoundAddress,
    address::inherit::Inheritance,
    channel::end::{ChannelState, OnEnd},
    error::Error,
    host::accept::Refused,
    host::endpoint::{Endpoint, Shared},
    host::membership::member::{Member, Parted},
};

/// A guest that takes its host's place once the host is gone.
pub(crate) struct Successor {
    shared: Arc<Shared<Member>>,
    succession: Succession,
}

/// What the guest has of its host's place.
enum Succession {
    /// The host is there, as far as is known. This is what the guest needs to go on in its place.
    Waiting(Inheritance),
    /// The host is gone, and this process has its place.
    Taken(BoundAddress),
    /// The host is gone, and this process could not take its place.
    Failed(Error),
    /// The channel has ended, and the host takes newcomers in.
    Over,
}

impl Successor {
    pub(crate) fn new(shared: &Arc<Shared<Member>>, inheritance: Inheritance) -> Self {
        Self {
            shared: Arc::clone(shared),
            succession: Succession::Waiting(inheritance),
        }
    }
}

impl fmt::Debug for Successor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Successor({})", self.shared.address)
    }
}

impl OnEnd for Successor {
    /// A host that has left, or is dead, or executes another program, takes no newcomer in any more. One that has only closed
    /// the channel, or ended it as corrupt or exposed, does.
    fn end(&mut self, how: ChannelState) -> bool {
        let is_gone = matches!(how, ChannelState::LeftByPeer | ChannelState::PeerExited);
        self.succession = match mem::replace(&mut self.succession, Succession::Over) {
            Succession::Waiting(inheritance) if is_gone => match inheritance.take_over() {
                Ok(place) => Succession::Taken(place),
                Err(error) => Succession::Failed(error),
            },
            _ => Succession::Over,
        };
        matches!(self.succession, Succession::Taken(_))
    }
}

impl Drop for Successor {
    /// Not before the host has seen the end: a guest that came anew earlier would be a third to it.
    fn drop(&mut self) {
        if !self.shared.is_here() {
            return;
        }
        let parted = match mem::replace(&mut self.succession, Succession::Over) {
            Succession::Taken(place) => Parted::Successor(place),
            Succession::Failed(error) => {
                // Trouble of this side, which is told here alone.
                let identity = None;
                Member::refused(&self.shared, Refused { error, identity });
                Parted::Lost
            }
            Succession::Waiting(_) | Succession::Over => Parted::Lost,
        };
        self.shared.part(Some(parted));
    }
}
