//! The registration of this process for the barriers of other processes (membarrier(2)).
//!
//! In a process with several threads, the kernel takes 10 to 30 ms for the first registration: it waits until every
//! processor has switched tasks. So a thread registers the process while the call looks for its peer.

use std::{
    sync::OnceLock,
    thread::{self, JoinHandle},
};

use crate::{
    fork::PerProcess,
    sys::{lock::Mutex, process},
};

#[derive(Debug, Default)]
struct Registration {
    /// The thread that registers the process, until it is joined.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether the kernel has accepted it. Set by the first thread that asks for it; the others wait.
    accepted: OnceLock<bool>,
}

static REGISTRATION: PerProcess<Registration> = PerProcess::new();

impl Registration {
    fn complete(&self) -> bool {
        *self.accepted.get_or_init(|| process::accept_barriers().is_ok())
    }
}

/// Starts the registration, unless it was started before. Best effort: [`are_usable`] completes it.
pub(crate) fn begin() {
    let Ok(registration) = REGISTRATION.get() else {
        return;
    };
    let mut thread = registration.thread.lock();
    if thread.is_some() || registration.accepted.get().is_some() {
        return;
    }
    // A process with one thread is registered at once, and a second thread would change that.
    if process::has_one_thread() {
        registration.complete();
        return;
    }
    let register = || {
        registration.complete();
    };
    let named = thread::Builder::new().name("ringfence-barriers".into());
    *thread = named.spawn(register).ok();
}

/// Whether this process receives the barriers of other processes, and can issue them now: a filter that the program has
/// installed in the meantime may deny that. Waits for the registration.
pub(crate) fn are_usable() -> bool {
    let Ok(registration) = REGISTRATION.get() else {
        return false;
    };
    let accepted = registration.complete();
    // The end of the thread makes calls that a filter may deny, so it is over before there is any channel. The thread takes no lock.
    let mut thread = registration.thread.lock();
    if let Some(thread) = thread.take() {
        // It does not panic.
        let _ = thread.join();
    }
    drop(thread);
    accepted && process::issue_barrier().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_completes_whether_or_not_it_was_started() {
        let known = process::knows_barriers().unwrap();
        // The test runs beside the thread that has started it.
        assert!(!process::has_one_thread());
        begin();
        begin();
        assert_eq!(are_usable(), known);
        assert!(REGISTRATION.get().unwrap().thread.lock().is_none());
        begin();
        assert_eq!(are_usable(), known);
    }
}
