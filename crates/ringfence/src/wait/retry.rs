//! The pauses between attempts to reach a peer, and the limit after which such attempts stop.

use std::{
    thread,
    time::{Duration, Instant},
};

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

/// The default pause after a failure.
pub(crate) const RECOVERY: Duration = Duration::from_millis(100);
/// The maximum number of consecutive failures.
const FAILURES: u32 = 100;

/// The retry budget of a call that is repeated, and that may fail from a lack of something that becomes
/// available again in a moment.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    failures: u32,
    pause: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::pausing(RECOVERY)
    }
}

impl RetryBudget {
    pub(crate) const fn pausing(pause: Duration) -> Self {
        Self { failures: 0, pause }
    }

    /// Records a success.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Whether to retry after this error. A cancellation is never retried.
    pub(crate) fn should_retry(&mut self, error: &Error) -> bool {
        self.failures += 1;
        !matches!(error, Error::Aborted) && self.failures <= FAILURES
    }

    /// Sleeps before the next attempt, because the failed one may have taken no time.
    pub(crate) fn pause(&self) {
        thread::sleep(self.pause);
    }
}
