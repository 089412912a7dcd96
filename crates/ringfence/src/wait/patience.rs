//! How long a thread bears it that a call of its own fails, where nobody else does its work.

use std::{thread, time::Duration};

use crate::error::Error;

/// How long the kernel is left alone after a failure, where nothing else is asked for.
pub(crate) const RECOVERY: Duration = Duration::from_millis(100);
/// How often in a row a call may fail.
const FAILURES: u32 = 100;

/// Of a call that is made again and again, and that may fail for want of something that is there again in a moment.
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

    /// The call went well.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Whether this error is borne once more. One that calls the work off never is.
    pub(crate) fn bears(&mut self, error: &Error) -> bool {
        self.failures += 1;
        !matches!(error, Error::Aborted) && self.failures <= FAILURES
    }

    /// To be called before the next try: what has failed may have taken no time.
    pub(crate) fn pause(&self) {
        thread::sleep(self.pause);
    }
}
