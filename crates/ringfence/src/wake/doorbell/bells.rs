//! Sends wakeups to the peer, and retries those that the kernel had no memory for.
//!
//! One wakeup is sent each time that the peer parks. If it were lost, the peer would sleep although it has a message, and
//! this side would wait for the answer. So a wakeup that could not be sent is owed until it is sent or the line has ended. A
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
    fork::{Birth, ProcessMutex},
    sys,
};

/// The number of attempts that the calling thread makes.
const TRIES: u32 = 16;
/// The pauses of the retry thread: the first, which doubles each time, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(10)];

/// The sender of wakeups on one line.
#[derive(Debug)]
pub(super) struct PeerWaker {
    line: Arc<OwnedFd>,
    /// Written under this lock by a call that failed to send, and by the retry thread.
    owed: ProcessMutex<Owed>,
    /// The number of wakeups that this side has sent.
    rung: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Owed {
    /// The number of failed sends. One later wakeup makes up for all of them.
    failures: u64,
    /// A retry thread is running.
    carried: bool,
}

/// The result of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendResult {
    /// The wakeup was sent, or the peer is gone.
    Done,
    /// The kernel had no memory.
    Again,
}

impl PeerWaker {
    pub(super) fn new(line: &Arc<OwnedFd>, birth: Birth) -> Arc<Self> {
        Arc::new(Self {
            line: Arc::clone(line),
            owed: ProcessMutex::new(Owed::default(), birth),
            rung: Arc::default(),
        })
    }

    /// Wakes the peer. Never waits for the peer, and waits for memory only if no retry thread can be started. Does nothing in
    /// a forked child, because the peer belongs to its parent.
    #[cold]
    pub(super) fn ring(self: &Arc<Self>) {
        if !self.owed.birth().is_here() {
            return;
        }
        self.rung.fetch_add(1, Ordering::Relaxed);
        for _ in 0..TRIES {
            if self.try_once() == SendResult::Done {
                return;
            }
            thread::yield_now();
        }
        let Ok(mut owed) = self.owed.lock() else { return };
        owed.failures += 1;
        if owed.carried {
            return;
        }
        owed.carried = true;
        drop(owed);
        let bells = Arc::clone(self);
        let named = thread::Builder::new().name("ringfence-bell".into());
        if named.spawn(move || bells.carry()).is_err() {
            self.carry();
        }
    }

    pub(super) fn rung(&self) -> &Arc<AtomicU64> {
        &self.rung
    }

    /// Sends the owed wakeup. Terminates, because the kernel gets memory or either side ends the line, as `close` does.
    fn carry(&self) {
        let [mut pause, longest] = PAUSES;
        // Never fails, because a forked child does not have this thread.
        while let Ok(failures) = self.owed.lock().map(|owed| owed.failures) {
            if self.try_once() == SendResult::Again {
                thread::sleep(pause);
                pause = (pause * 2).min(longest);
                continue;
            }
            let Ok(mut owed) = self.owed.lock() else { return };
            // A call that has failed since then may have published after the peer received this wakeup.
            if owed.failures == failures {
                owed.carried = false;
                return;
            }
        }
    }

    fn try_once(&self) -> SendResult {
        loop {
            match sys::socket::send(&*self.line, &[1]) {
                Err(Errno::EINTR) => {}
                // A full buffer (EAGAIN) holds wakeups that the peer has not read yet. The thread that waits on the line or
                // reads it notices a peer that is gone.
                Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    return SendResult::Done;
                }
                // The kernel has no memory, or a security module says no for now: the peer sleeps on, and nothing else wakes it.
                Err(_) => return SendResult::Again,
            }
        }
    }
}
