//! Limits the failures of a repeated call, for a thread that is the only one to do its work.

use std::{thread, time::Duration};

use crate::error::Error;

/// The default pause after a failure.
pub(crate) const RECOVERY: Duration = Duration::from_millis(100);
/// The maximum number of consecutive failures.
const FAILURES: u32 = 100;

/// The retry budget of a call that is repeated, and that may fail from a lack of something that becomes
/// available again in a moment.
#[derive(Debug)]
pub(crate) struct Patience {
    failures: u32,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self::pausing(RECOVERY)
    }
}

impl Patience {
    pub(crate) const fn pausing(pause: Duration) -> Self {
        Self { failures: 0, pause }
    }

    /// Records a success.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Whether to retry after this error. A cancellation is never retried.
    pub(crate) fn bears(&mut self, error: &Error) -> bool {
        self.failures += 1;
        !matches!(error, Error::Aborted) && self.failures <= FAILURES
    }

    /// Sleeps before the next attempt, because the failed one may have taken no time.
    pub(crate) fn pause(&self) {
        thread::sleep(self.pause);
    }
}
