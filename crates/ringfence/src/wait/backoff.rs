//! The pauses between attempts to reach a peer, and the limit after which such attempts stop.

use std::time::{Duration, Instant};

use crate::{
    error::{Error, Result},
    wait::deadline::Deadline,
};

/// The pauses between attempts to reach a peer.
pub(crate) struct Backoff<'a> {
    deadline: &'a Deadline,
    next: Duration,
    /// The time since which each attempt has ended in a hang-up, and the number of those attempts.
    hung_up: Option<(Instant, u32)>,
}

/// The number of consecutive hang-ups before a peer is considered lost. A handshake may take long before it
/// ends in a hang-up, so a few hang-ups prove nothing.
const MANY_HANG_UPS: u32 = 8;

impl<'a> Backoff<'a> {
    pub(crate) fn new(deadline: &'a Deadline) -> Self {
        Self {
            deadline,
            next: Duration::from_millis(5),
            hung_up: None,
        }
    }

    /// Pauses after an attempt that found the address taken, or no process there. Each pause is longer, up to
    /// 100 ms.
    pub(crate) fn pause(&mut self) -> Result<()> {
        // The process that has the address now is not the one that hung up.
        self.hung_up = None;
        self.deadline.pause(self.next)?;
        self.next = (self.next * 2).min(Duration::from_millis(100));
        Ok(())
    }

    /// Pauses after a peer has hung up, with its reason if it gave one. Fails if the peer has hung up each
    /// time for as long as a handshake may take.
    pub(crate) fn hung_up(&mut self, why: Option<Error>) -> Result<()> {
        let (since, count) = self.hung_up.get_or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        if *count >= MANY_HANG_UPS && since.elapsed() >= self.deadline.allowed {
            return Err(why.unwrap_or_else(|| {
                Error::PeerLost(
                    "the process at the address closes each connection before a handshake starts: it is closing, or its queue is full"
                        .into(),
                )
            }));
        }
        self.deadline.pause(Duration::from_millis(1))
    }
}
