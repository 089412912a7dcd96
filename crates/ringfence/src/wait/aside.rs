//! Calls that may not come back: those that ask a filesystem whose server may be gone.
//!
//! A thread that waits in such a call hears no signal but SIGKILL, and of some calls not even that. So the call is made on a
//! thread of its own, and its caller waits for the answer no longer than its deadline allows. The thread ends once the
//! filesystem answers, or with its process.

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

/// Such calls under way at a time in this process. Each holds a thread and two descriptors, for as long as it hangs.
const MOST: usize = 64;

/// How many there are. Written by the thread that begins one, and by its thread when that ends.
static UNDER_WAY: PerProcess<AtomicUsize> = PerProcess::new();

/// Counts a call as long as this lives, and tells its caller when it is over, by a panic as well.
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

/// Makes a call on a thread of its own, and waits for what it answers. `what` is waited for, in the words of
/// [`Error::HandshakeTimeout`].
///
/// Errors with that once the deadline has passed, with [`Error::Aborted`] when called off, and with [`Error::NoSpace`] where
/// there is no descriptor or thread for it, or as many calls hang already as may.
pub(crate) fn ask<T: Send + 'static>(
    what: &'static str,
    deadline: &Deadline,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let no_space = |reason: String| Error::NoSpace {
        what: format!("a thread that looks at a file ({what})"),
        reason,
    };
    let answered = Bell::new()?;
    let under_way = UNDER_WAY.get()?;
    let before = under_way.fetch_add(1, Ordering::AcqRel);
    // However this ends, it is counted no more then.
    let call_under_way = Call {
        under_way,
        answered: answered.clone(),
    };
    if before >= MOST {
        return Err(no_space(format!(
            "{MOST} of them wait for filesystems that do not answer"
        )));
    }
    let (tell, told) = mpsc::channel();
    thread::Builder::new()
        .name("ringfence-look".into())
        .spawn(move || {
            let _under_way = call_under_way;
            // Without a receiver, its time was over.
            let _ = tell.send(call());
        })
        .map_err(|error| no_space(error.to_string()))?;
    match deadline.wait(&[(answered.as_fd(), PollFlags::POLLIN)])? {
        Woken::Ready => told.try_recv().map_err(|_| Error::Unsupported {
            what: format!("{what}: the thread that looked has panicked"),
            source: None,
        }),
        Woken::Late => Err(Error::HandshakeTimeout {
            step: what,
            after: deadline.allowed,
        }),
    }
}
