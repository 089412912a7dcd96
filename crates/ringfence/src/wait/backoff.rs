//! The pauses between the tries to reach a peer, and when such tries are given up.

use std::time::{Duration, Instant};

use crate::{
    error::{Error, Result},
    wait::deadline::Deadline,
};

/// The pauses between one try to reach a peer and the next.
pub(crate) struct Backoff<'a> {
    deadline: &'a Deadline,
    next: Duration,
    /// Since when each try has ended in a hang-up, and how many tries that were.
    hung_up: Option<(Instant, u32)>,
}

/// Tries that a peer must have hung up on, one after the other, before it is given up. A handshake may take long before
/// it ends so, and then few hang-ups say nothing.
const MANY_HANG_UPS: u32 = 8;

impl<'a> Backoff<'a> {
    pub(crate) fn new(deadline: &'a Deadline) -> Self {
        Self {
            deadline,
            next: Duration::from_millis(5),
            hung_up: None,
        }
    }

    /// After a try that has found the place taken, or no process there. Longer each time, up to 100 ms.
    pub(crate) fn pause(&mut self) -> Result<()> {
        // The process that has the place now is not the one that hung up.
        self.hung_up = None;
        self.deadline.pause(self.next)?;
        self.next = (self.next * 2).min(Duration::from_millis(100));
        Ok(())
    }

    /// After a peer that has hung up, with these last words if it had any. A peer that does so each time, for as long as a
    /// handshake may take, is given up.
    pub(crate) fn hung_up(&mut self, why: Option<Error>) -> Result<()> {
        let (since, count) = self.hung_up.get_or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        if *count >= MANY_HANG_UPS && since.elapsed() >= self.deadline.allowed {
            return Err(why.unwrap_or_else(|| {
                Error::PeerLost(
                    "the process that has the address lets go of each connection before a handshake begins: it closes, or more come than it lets wait"
                        .into(),
                )
            }));
        }
        self.deadline.pause(Duration::from_millis(1))
    }
}
