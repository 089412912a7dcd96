//! Sends wakeups to the peer, and retries those that the kernel had no memory for.
//!
//! One wakeup is sent each time that the peer parks. If it were lost, the peer would sleep although it has a message, and
//! this side would wait for the answer. So a failed send is retried until it succeeds or the line has ended. A
//! few attempts are made immediately. Then a thread continues, because the sender may be an event loop, which must not
//! block.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::errno::Errno;

use crate::{
    fork::{OwnerProcess, ProcessMutex},
    sys,
};

/// The number of attempts that the calling thread makes.
const TRIES: u32 = 16;
/// The pauses of the retry thread: the first, which doubles each time, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(10)];

/// The sender of wakeups on one line.
pub(super) struct PeerWaker {
    line: Arc<OwnedFd>,
    /// Written under this lock by a call that failed to send, and by the retry thread.
    failed: ProcessMutex<FailedSends>,
    /// The number of wakeups that this side has sent.
    wakeups_sent: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct FailedSends {
    /// The number of failed sends. One later wakeup makes up for all of them.
    count: u64,
    /// A retry thread is running.
    retrying: bool,
}

impl PeerWaker {
    pub(super) fn new(line: &Arc<OwnedFd>, owner: OwnerProcess) -> Arc<Self> {
        Arc::new(Self {
            line: Arc::clone(line),
            failed: ProcessMutex::new(FailedSends::default(), owner),
            wakeups_sent: Arc::default(),
        })
    }

    /// Wakes the peer. Never waits for the peer, and waits for memory only if no retry thread can be started. Does nothing in
    /// a forked child, because the peer belongs to its parent.
    #[cold]
    pub(super) fn wake_peer(self: &Arc<Self>) {
        if !self.failed.owner().is_current() {
            return;
        }
        self.wakeups_sent.fetch_add(1, Ordering::Relaxed);
        for _ in 0..TRIES {
            if self.try_once() {
                return;
            }
            thread::yield_now();
        }
        let Ok(mut failed) = self.failed.lock() else {
            return;
        };
        failed.count += 1;
        if failed.retrying {
            return;
        }
        failed.retrying = true;
        drop(failed);
        let waker = Arc::clone(self);
        let named = thread::Builder::new().name("ringfence-waker".into());
        if named.spawn(move || waker.retry()).is_err() {
            self.retry();
        }
    }

    pub(super) fn wakeups_sent(&self) -> &Arc<AtomicU64> {
        &self.wakeups_sent
    }

    /// Sends a wakeup for the failed ones. Terminates, because the kernel gets memory or either side ends the line, as `close` does.
    fn retry(&self) {
        let [mut pause, longest] = PAUSES;
        // Never fails, because a forked child does not have this thread.
        while let Ok(count) = self.failed.lock().map(|failed| failed.count) {
            if !self.try_once() {
                thread::sleep(pause);
                pause = (pause * 2).min(longest);
                continue;
            }
            let Ok(mut failed) = self.failed.lock() else {
                return;
            };
            // A call that has failed since then may have published after the peer received this wakeup.
            if failed.count == count {
                failed.retrying = false;
                return;
            }
        }
    }

    /// Returns `false` if the kernel had no memory. Otherwise the wakeup was sent, or the peer is gone.
    fn try_once(&self) -> bool {
        match sys::uninterrupted(|| sys::socket::send(&*self.line, &[1])) {
            // A full buffer (EAGAIN) holds wakeups that the peer has not read yet. The thread that waits on the line or
            // reads it notices a peer that is gone.
            Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => true,
            // The kernel has no memory, or a security module refuses for now: the peer still sleeps, and nothing else wakes it.
            Err(_) => false,
        }
    }
}
