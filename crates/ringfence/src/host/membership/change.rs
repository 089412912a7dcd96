//! What a membership tells the program.

use crate::{channel::Channel, handshake::parts::Role, host::accept::Refused};

/// What a [`Membership`](crate::Membership) tells.
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Change {
    /// A partner, by a channel of its own.
    Channel(Channel),
    /// This process has another part now: the guest of a host that has gone is the host.
    Role(Role),
    /// A newcomer did not get a channel, or this process could not take the place of a host that has gone, and comes anew.
    /// The membership goes on.
    Refused(Refused),
}

impl From<Refused> for Change {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
