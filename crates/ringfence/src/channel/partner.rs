//! The end of a channel, seen from outside of it: what a service or a membership keeps of each channel that it has made.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Weak},
};

use nix::poll::PollFlags;

use crate::{channel::shared::Shared, wake::doorbell::Ends};

/// The end of a channel, for an owner that has none of its halves and does not keep it open.
#[derive(Debug, Clone)]
pub(crate) struct Partner {
    shared: Weak<Shared>,
    ends: Ends,
}

impl Partner {
    pub(crate) fn of(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            ends: shared.doorbell.ends(),
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.shared, &other.shared)
    }

    /// What becomes ready when the channel ends, and stays so.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.ends.watched()
    }

    /// The channel, if it has not ended by now.
    pub(crate) fn open(&self) -> Option<Arc<Shared>> {
        let shared = self.shared.upgrade()?;
        shared.doorbell.look();
        shared.notice();
        shared.close_reason().is_none().then_some(shared)
    }
}
