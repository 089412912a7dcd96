//! Ends the line when the peer's process ends, for waiters that watch only the line: a thread in a plain read, and an event
//! loop. Without this, the line would stay open if another process holds the peer's end.
//!
//! One thread of the process sleeps on the pidfds of all such peers. When one dies, the thread shuts its line for reading. That
//! ends the read, and makes the line readable, as the end of the line does. So the thread does not need to know the waiters. It starts with
//! the first line, and is joined when the last one is dropped.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        signal::{SigSet, Signal},
        socket::{Shutdown, shutdown},
    },
};

use crate::{
    error::{Error, Result},
    fork::PerProcess,
    sys::lock::Mutex,
};

/// A line that ends with its peer, until this is dropped.
pub(crate) struct ExitWatch {
    key: u64,
    pidfd: Arc<OwnedFd>,
}

struct Watcher {
    epoll: Arc<Epoll>,
    stop: EventFd,
    lines: BTreeMap<u64, Arc<OwnedFd>>,
    join: JoinHandle<()>,
}

static WATCHER: PerProcess<Mutex<Option<Watcher>>> = PerProcess::new();

/// The next key. Keys are never reused, unlike descriptor numbers, so an event of a line that was just dropped is never
/// attributed to another line.
static NEXT_KEY: AtomicU64 = AtomicU64::new(STOP_KEY + 1);

/// The key of the descriptor that ends the thread.
const STOP_KEY: u64 = 0;

/// The maximum number of consecutive failures of the thread's wait.
const MAX_FAILURES: u32 = 100;
const RETRY_PAUSE: Duration = Duration::from_millis(10);

impl ExitWatch {
    /// Makes the end of that process end the line, immediately if the process has already ended. Fails with
    /// [`Error::NoSpace`] if no descriptor or thread is available.
    pub(crate) fn new(line: &Arc<OwnedFd>, pidfd: &Arc<OwnedFd>) -> Result<Self> {
        let failed = |errno| Error::system("watching for the end of the peer's process", errno);
        let mut guard = WATCHER.get()?.lock();
        let watcher = match guard.take() {
            Some(watcher) => watcher,
            None => Watcher::new().map_err(failed)?,
        };
        let watcher = guard.insert(watcher);
        let exit_watch = Self {
            key: NEXT_KEY.fetch_add(1, Ordering::Relaxed),
            pidfd: Arc::clone(pidfd),
        };
        // A pidfd stays readable, so request one event only.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let added = watcher
            .epoll
            .add(&**pidfd, EpollEvent::new(flags, exit_watch.key));
        // Also after a failure: dropping it without the lock ends a thread that has nothing else to watch.
        watcher.lines.insert(exit_watch.key, Arc::clone(line));
        drop(guard);
        added.map(|()| exit_watch).map_err(failed)
    }
}

impl Drop for ExitWatch {
    fn drop(&mut self) {
        let Some(mut guard) = WATCHER.existing().map(Mutex::lock) else {
            return;
        };
        let Some(watcher) = guard.as_mut() else { return };
        // A forked child's lines are never registered here.
        if watcher.lines.remove(&self.key).is_none() {
            return;
        }
        // Fails if it was not added.
        let _ = watcher.epoll.delete(&*self.pidfd);
        if !watcher.lines.is_empty() {
            return;
        }
        let Some(watcher) = guard.take() else { return };
        drop(guard);
        if watcher.stop.write(1).is_ok() {
            // The panic hook has already reported a panic of that thread.
            let _ = watcher.join.join();
        }
    }
}

impl Watcher {
    fn new() -> Result<Self, Errno> {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP_KEY))?;
        let watched = Arc::clone(&epoll);
        let join = thread::Builder::new()
            .name("ringfence-exits".into())
            .spawn(move || watch(&watched))
            .map_err(|_| Errno::EAGAIN)?;
        Ok(Self {
            epoll,
            stop,
            lines: BTreeMap::new(),
            join,
        })
    }
}

fn watch(epoll: &Epoll) {
    // Best effort: the program's signal handlers should not run on this thread. Realtime signals stay unblocked,
    // because a blocked one that another process sends to this thread would stay queued and count against
    // RLIMIT_SIGPENDING.
    let _ = Signal::iterator().collect::<SigSet>().thread_block();
    let mut events = [EpollEvent::empty(); 16];
    let mut failures = 0;
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            // Retry, because without this thread no death would be noticed again. A wait that keeps failing does so because the
            // program has closed a descriptor of this crate.
            Err(_) if failures < MAX_FAILURES => {
                failures += 1;
                thread::sleep(RETRY_PAUSE);
                continue;
            }
            Err(_) => return,
        };
        failures = 0;
        let Some(guard) = WATCHER.existing().map(Mutex::lock) else {
            return;
        };
        for event in &events[..count] {
            if event.data() == STOP_KEY {
                return;
            }
            let line = guard
                .as_ref()
                .and_then(|watcher| watcher.lines.get(&event.data()));
            if let Some(line) = line {
                // A line that is no longer connected has already ended. Earlier wakeups are read first.
                let _ = shutdown(line.as_raw_fd(), Shutdown::Read);
            }
        }
    }
}

#[cfg(test)]
mod tests;
