//! Calls that may hang, because they access a filesystem whose server may be gone.
//!
//! A thread in such a call reacts to no signal except SIGKILL, and in some calls not even to that. So each
//! call runs on its own thread, and the caller waits for the result only until its deadline. The thread ends
//! when the filesystem answers, or with the process.

use std::{
    cell::Cell,
    os::fd::AsFd,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    error::{Error, OrSystem, Result},
    fork::{OwnerProcess, PerProcess},
    identity::Credentials,
    wait::{
        deadline::Deadline,
        deadline::{Event, Wakeup},
    },
};

/// The maximum number of such calls at the same time in this process. Each holds a thread and two descriptors
/// while it hangs.
const MAX_THREADS: usize = 64;

/// The number of calls that are running. Changed by the thread that starts a call, and by the call's own
/// thread when it ends.
static RUNNING: PerProcess<AtomicUsize> = PerProcess::new();

/// Counts a call while this value exists, and wakes the caller when the call has ended, even by a panic.
struct CallInFlight {
    running: &'static AtomicUsize,
    answered: Wakeup,
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.answered.signal();
    }
}

/// Runs `call` on a separate thread and waits for its result.
///
/// # Errors
///
/// [`Error::HandshakeTimeout`] after the deadline; it names `what` as the step. [`Error::Aborted`] if the
/// wait was cancelled. [`Error::NoSpace`] if no descriptor or thread is available, or if too many calls hang
/// already.
pub(crate) fn run<T: Send + 'static>(
    what: &'static str,
    deadline: &Deadline,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let no_space =
        |reason: String| Error::no_space(format!("a thread that inspects a file ({what})"), reason);
    let answered = Wakeup::new()?;
    let running = RUNNING.get()?;
    let before = running.fetch_add(1, Ordering::AcqRel);
    // Dropping this on any path decrements the counter.
    let call_in_flight = CallInFlight {
        running,
        answered: answered.clone(),
    };
    if before >= MAX_THREADS {
        return Err(no_space(format!(
            "{MAX_THREADS} such threads wait for filesystems that do not answer"
        )));
    }
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("ringfence-probe".into())
        .spawn(move || {
            let _running = call_in_flight;
            // Without a receiver, the caller's deadline has passed.
            let _ = sender.send(call());
        })
        .map_err(|error| no_space(error.to_string()))?;
    deadline.wait_at(what, &[(answered.as_fd(), PollFlags::POLLIN)])?;
    receiver
        .try_recv()
        .map_err(|_| Error::unsupported(format!("{what}: its thread has panicked")))
}

/// A number of permits. Waiting threads have no order. Holds one descriptor.
pub(crate) struct Permits(Event);

/// A permit, returned when dropped.
pub(crate) struct Permit<'a>(&'a Event);

impl Permits {
    pub(crate) fn new(count: usize) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        let owner = OwnerProcess::current()?;
        EventFd::from_value_and_flags(u32::try_from(count).unwrap_or(u32::MAX), flags)
            .map(|descriptor| Self(Event { descriptor, owner }))
            .or_system("a descriptor to count permits with")
    }

    /// Waits for a permit.
    pub(crate) fn acquire(&self, deadline: &Deadline) -> Result<Permit<'_>> {
        loop {
            deadline.wait(&[(self.0.descriptor.as_fd(), PollFlags::POLLIN)])?;
            match self.0.descriptor.read() {
                Ok(_) => return Ok(Permit(&self.0)),
                // Another thread was faster.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("waiting for a permit", errno)),
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.0.owner.is_current() {
            // Cannot fail: acquiring the permit has decremented the counter.
            let _ = self.0.descriptor.write(1);
        }
    }
}

// The threads of this crate that call the program: its subscriber, with the feature `tracing`.
//
// The program may call back into this crate, and may drop a value that such a thread works for. So these
// threads never wait for each other: a thread could end up waiting for itself.

/// The threads that run for other processes, limited per process, per user and in total.
#[derive(Debug, Default)]
pub(crate) struct ThreadQuota(pub(crate) Vec<Credentials>);

impl ThreadQuota {
    pub(crate) const TOTAL: usize = 64;
    /// The remainder is for other users.
    pub(crate) const PER_USER: usize = 48;
    pub(crate) const PER_PROCESS: usize = 16;

    /// Whether one more thread may run for this process.
    pub(crate) fn allows(&self, peer: Credentials) -> bool {
        let count = |is_same: fn(&Credentials, &Credentials) -> bool| {
            self.0.iter().filter(|other| is_same(other, &peer)).count()
        };
        self.0.len() < Self::TOTAL
            && count(|one, other| one.uid == other.uid) < Self::PER_USER
            && count(|one, other| one.pid == other.pid) < Self::PER_PROCESS
    }

    pub(crate) fn acquire(&mut self, peer: Credentials) {
        self.0.push(peer);
    }

    pub(crate) fn release(&mut self, peer: Credentials) {
        if let Some(index) = self.0.iter().position(|other| *other == peer) {
            self.0.swap_remove(index);
        }
    }
}

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Marks a thread of this crate. Must be called first on that thread.
pub(crate) fn mark_own_thread() {
    IS_OWN.set(true);
}

/// Whether this is a thread of this crate.
pub(crate) fn is_own_thread() -> bool {
    IS_OWN.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_limited_per_process_user_and_in_total() {
        let mut quota = ThreadQuota::default();
        let peer = |pid, uid| Credentials { pid, uid, gid: 0 };
        for pid in 0..16 {
            assert!(quota.allows(peer(1, 1)), "{pid}");
            quota.acquire(peer(1, 1));
        }
        assert!(!quota.allows(peer(1, 1)) && !quota.allows(peer(1, 2)));
        for pid in 16..48 {
            assert!(quota.allows(peer(pid, 1)), "{pid}");
            quota.acquire(peer(pid, 1));
        }
        assert!(!quota.allows(peer(50, 1)));
        for pid in 50..66 {
            assert!(quota.allows(peer(pid, 2)), "{pid}");
            quota.acquire(peer(pid, 2));
        }
        assert!(!quota.allows(peer(70, 3)));
    }
}
