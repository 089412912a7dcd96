//! The registration of this process for the barriers of other processes (membarrier(2)).
//!
//! In a process with several threads, the kernel takes 10 to 30 ms for the first registration: it waits until every
//! processor has switched tasks. So the signal thread registers the process. Until it has, each publisher of this process
//! makes its own fences.

use std::sync::OnceLock;

use crate::{fork::PerProcess, sys::process};

/// Whether the kernel has accepted the registration.
static ACCEPTED: PerProcess<OnceLock<bool>> = PerProcess::new();

/// Registers a process with one thread, unless it is registered already. The kernel does not wait in that case, and would if there
/// was a second thread.
pub(crate) fn register_early() {
    if ACCEPTED.get().is_ok_and(|accepted| accepted.get().is_none()) && process::has_one_thread() {
        register();
    }
}

/// Registers the process, and returns whether it is registered. Waits for the kernel.
pub(crate) fn register() -> bool {
    let Ok(accepted) = ACCEPTED.get() else {
        return false;
    };
    *accepted.get_or_init(|| process::accept_barriers().is_ok())
}

/// Whether the process is registered now.
pub(crate) fn is_registered() -> bool {
    ACCEPTED.existing().and_then(OnceLock::get) == Some(&true)
}

/// Whether this process has issued a barrier.
static ISSUED: PerProcess<OnceLock<()>> = PerProcess::new();

/// Whether this process can issue barriers, and receives them or will. The program may have installed a filter that denies membarrier(2)
/// in the meantime, so each handshake queries it. Only the first one also issues a barrier, which a filter may deny by itself: a barrier
/// interrupts each processor that runs a registered process.
pub(crate) fn is_offered() -> bool {
    let accepted = ACCEPTED.existing().and_then(OnceLock::get);
    if accepted == Some(&false) || process::supports_barriers() != Ok(true) {
        return false;
    }
    let Ok(issued) = ISSUED.get() else { return false };
    let can_issue = issued.get().is_some() || process::issue_barrier().is_ok();
    if can_issue {
        issued.get_or_init(|| ());
    }
    can_issue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multithreaded_process_is_registered_after_the_wait() {
        let known = process::supports_barriers().unwrap();
        // The test runs beside the thread that has started it.
        assert!(!process::has_one_thread());
        register_early();
        assert_eq!(is_offered(), known);
        assert_eq!(register(), known);
        assert_eq!((is_registered(), is_offered()), (known, known));
        register_early();
        assert_eq!(register(), known);
    }
}
