//! The phase word of this side's region, and the order in which it may change.

use std::sync::atomic::Ordering;

use crate::{
    region::access::Writable,
    region::layout,
    region::own::OwnRegion,
    region::phase::{Phase, Step},
};

/// The one owner of the phase word of this side's region. It lies in [`Held`](crate::channel::shared::Held), under the lock of
/// that, and nothing but this writes the word: of two threads that end the channel in different ways, the second finds what the first
/// has said, and what may not follow that is not written. (Before there is a channel, and where none comes of a handshake:
/// [`Unopened`](crate::handshake::parts::Unopened).)
#[derive(Debug)]
pub(crate) struct OwnPhase {
    region: OwnRegion,
    now: Phase,
}

impl OwnPhase {
    /// Of a region in which nothing has been said yet.
    pub(crate) fn of(region: &OwnRegion) -> Self {
        Self {
            region: region.clone(),
            now: Phase::OPEN,
        }
    }

    pub(crate) fn step(&self) -> Step {
        self.now.step
    }

    /// Says that no more will be sent. `false`: that was said before, or cannot be said any more.
    pub(crate) fn end_sending(&mut self) -> bool {
        self.become_(self.now.ending())
    }

    /// Takes this step. `false`: it does not follow, and nothing was written.
    pub(crate) fn take(&mut self, step: Step) -> bool {
        self.become_(self.now.then(step))
    }

    fn become_(&mut self, next: Option<Phase>) -> bool {
        let Some(next) = next else { return false };
        self.now = next;
        // Release: a peer that sees it sees what was published before.
        self.region.store(layout::PHASE, next.word(), Ordering::Release);
        true
    }
}
