//! Calls that may hang, because they access a filesystem whose server may be gone.
//!
//! A thread in such a call reacts to no signal except SIGKILL, and in some calls not even to that. So each
//! call runs on its own thread, and the caller waits for the result only until its deadline. The thread ends
//! when the filesystem answers, or with the process.

use std::{
    os::fd::AsFd,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use nix::poll::PollFlags;

use crate::{
    error::{Error, Result},
    fork::PerProcess,
    wait::cancel::Bell,
    wait::deadline::{Deadline, Woken},
};

/// The maximum number of such calls at the same time in this process. Each holds a thread and two descriptors
/// while it hangs.
const MOST: usize = 64;

/// The number of calls that are running. Changed by the thread that starts a call, and by the call's own
/// thread when it ends.
static UNDER_WAY: PerProcess<AtomicUsize> = PerProcess::new();

/// Counts a call while this value exists, and wakes the caller when the call has ended, even by a panic.
struct Call {
    under_way: &'static AtomicUsize,
    answered: Bell,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        self.answered.ring();
    }
}

/// Runs `call` on a separate thread and waits for its result.
///
/// # Errors
///
/// [`Error::HandshakeTimeout`] after the deadline; it names `what` as the step. [`Error::Aborted`] if the
/// wait was cancelled. [`Error::NoSpace`] if no descriptor or thread is available, or if too many calls hang
/// already.
pub(crate) fn ask<T: Send + 'static>(
    what: &'static str,
    deadline: &Deadline,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let no_space = |reason: String| Error::NoSpace {
        what: format!("a thread that inspects a file ({what})"),
        reason,
    };
    let answered = Bell::new()?;
    let under_way = UNDER_WAY.get()?;
    let before = under_way.fetch_add(1, Ordering::AcqRel);
    // Dropping this on any path decrements the counter.
    let call_under_way = Call {
        under_way,
        answered: answered.clone(),
    };
    if before >= MOST {
        return Err(no_space(format!(
            "{MOST} such threads wait for filesystems that do not answer"
        )));
    }
    let (tell, told) = mpsc::channel();
    thread::Builder::new()
        .name("ringfence-look".into())
        .spawn(move || {
            let _under_way = call_under_way;
            // Without a receiver, the caller's deadline has passed.
            let _ = tell.send(call());
        })
        .map_err(|error| no_space(error.to_string()))?;
    match deadline.wait(&[(answered.as_fd(), PollFlags::POLLIN)])? {
        Woken::Ready => told.try_recv().map_err(|_| Error::Unsupported {
            what: format!("{what}: its thread has panicked"),
            source: None,
        }),
        Woken::Late => Err(Error::HandshakeTimeout {
            step: what,
            after: deadline.allowed,
        }),
    }
}
