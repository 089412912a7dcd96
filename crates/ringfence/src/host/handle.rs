//! The program's side of an endpoint, and the worker thread behind it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    error::{Error, Result},
    host::endpoint::{Endpoint, Shared},
    host::ledger::EndpointStats,
    sys::lock::Mutex,
    wait::deadline::CancelToken,
    wait::deadline::Deadline,
    wait::threads::{begin_own_thread, is_own_thread},
};

/// The program's handle of an endpoint. The public types ([`Listener`](crate::Listener), say) wrap it, and add what ends their
/// threads.
#[derive(Debug)]
pub(crate) struct Handle<E: Endpoint> {
    /// As the program gave it.
    address: Address,
    /// Reached through [`Handle::here`] alone: its locks are not for a child.
    shared: Arc<Shared<E>>,
}

impl<E: Endpoint> Handle<E> {
    pub(crate) fn new(address: &Address, shared: &Arc<Shared<E>>) -> Self {
        Self {
            address: address.clone(),
            shared: Arc::clone(shared),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Errors with [`Error::Closed`] in a child.
    pub(crate) fn here(&self) -> Result<&Arc<Shared<E>>> {
        self.shared.check()?;
        Ok(&self.shared)
    }

    /// Waits for the next event. `None`: the moment has passed. Errors in a child, and with what has ended the events.
    pub(crate) fn next_until(&self, moment: Option<Instant>) -> Result<Option<E::Event>> {
        let deadline = Deadline::endless(Vec::new(), Duration::ZERO).until(moment);
        self.here()?.events.wait(&deadline)
    }

    /// Waits for the next event.
    pub(crate) fn next(&self) -> Result<E::Event> {
        loop {
            if let Some(event) = self.next_until(None)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if there is one now.
    pub(crate) fn try_next(&self) -> Result<Option<E::Event>> {
        self.here()?.events.try_next()
    }

    /// What was counted so far, if `open` channels are open now.
    pub(crate) fn stats(&self, open: usize) -> EndpointStats {
        self.here()
            .map_or_else(|_| EndpointStats::default(), |shared| shared.stats(open))
    }

    /// Lets incoming connections wait in the kernel's backlog, or accepts them again.
    pub(crate) fn set_paused(&self, paused: bool) {
        if let Ok(shared) = self.here() {
            shared.set_paused(paused);
        }
    }
}

impl<E: Endpoint> AsFd for Handle<E> {
    /// Readable when [`Handle::try_next`] has an event, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }
}

/// The thread that keeps the address, as the handle sees it.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: CancelToken,
    /// Nothing is ever sent: it is disconnected once the worker has dropped its [`Hold`].
    released: Mutex<mpsc::Receiver<()>>,
}

/// What the worker drops when it has let go of the address.
#[derive(Debug)]
pub(crate) struct Hold(
    #[expect(dead_code, reason = "dropped, it says that the address is let go of")] mpsc::Sender<()>,
);

impl Worker {
    pub(crate) fn new() -> Result<(Self, Hold)> {
        let (hold, released) = mpsc::channel();
        let worker = Self {
            stop: CancelToken::new()?,
            released: Mutex::new(released),
        };
        Ok((worker, Hold(hold)))
    }

    /// Calls the worker off, where its deadline has this token.
    pub(crate) fn stop(&self) -> &CancelToken {
        &self.stop
    }

    /// Waits until the worker has let go of the address. Where the program's subscriber calls back, on a thread of this crate's own, it has
    /// once that goes on.
    pub(crate) fn wait(&self) {
        if !is_own_thread() {
            let _ = self.released.lock().recv();
        }
    }

    /// The same, for so long at most. `false`: it has not.
    pub(crate) fn wait_at_most(&self, time: Duration) -> bool {
        is_own_thread() || self.released.lock().recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }
}

/// A thread that waits for its work. So an endpoint can have its thread before it takes an address: what could not be kept is
/// not taken.
pub(crate) struct Idle<W> {
    begin: mpsc::Sender<W>,
    thread: JoinHandle<()>,
}

impl<W: Send + 'static> Idle<W> {
    /// `name` is the thread's, `what` is what it is for, in an error: "a thread for ...".
    pub(crate) fn spawn(name: &str, what: &str, run: fn(W)) -> Result<Self> {
        let (begin, beginning) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                begin_own_thread();
                if let Ok(work) = beginning.recv() {
                    run(work);
                }
            })
            .map_err(|error| Error::NoSpace {
                what: what.into(),
                reason: error.to_string(),
            })?;
        Ok(Self { begin, thread })
    }

    pub(crate) fn start(self, work: W) {
        // The thread waits for this alone, and so it is there.
        let _ = self.begin.send(work);
    }

    /// There is no work. The thread has ended when this returns.
    pub(crate) fn dismiss(self) {
        drop(self.begin);
        // It has done nothing, and has no panic of its own.
        let _ = self.thread.join();
    }
}
