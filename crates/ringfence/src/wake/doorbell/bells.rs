//! Sending bells to the peer, also those for which the kernel had no memory at first.
//!
//! A bell is rung once for each time that the peer parks. If one got lost, the peer would sleep with a message before
//! it, and this side, which has said all it has to say, would wait for the answer. So a bell that could not be sent is
//! owed, until it was sent or the line has ended. A few tries are made at once. Then a thread goes on with it, since the
//! sender may be an event loop, which must not wait.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};

use crate::{
    error::Result,
    fork::{Birth, ProcessMutex},
    sys::lock::MutexGuard,
};

/// Tries of the call that rings, before a thread goes on.
const TRIES: u32 = 16;
/// The pauses of that thread: the shortest, which doubles each time, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(10)];

/// The bells of one line.
#[derive(Debug)]
pub(super) struct PeerWaker {
    line: Arc<OwnedFd>,
    /// Written by a call that could not ring, and by the thread that rings for it; each under this lock alone.
    owed: ProcessMutex<Owed>,
    /// How often this side has rung.
    rung: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Owed {
    /// How often a bell could not be sent. A call that sends one afterwards has made up for all that there were before.
    failures: u64,
    /// There is a thread that will send one.
    carried: bool,
}

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendResult {
    /// The peer hears it, or there is no peer to hear it.
    Done,
    /// The kernel had no memory for it.
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

    /// Wakes the peer. Does not wait for the peer, and waits for memory only if no thread can be started to do that. Does
    /// nothing in a child: the peer is its parent's.
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
        let Ok(mut owed) = self.owed() else { return };
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

    fn owed(&self) -> Result<MutexGuard<'_, Owed>> {
        self.owed.lock()
    }

    /// Sends what is owed. This ends: the kernel gets memory, or either side ends the line, which `close` does as well.
    fn carry(&self) {
        let [mut pause, longest] = PAUSES;
        // Never an error: a child does not have this thread.
        while let Ok(failures) = self.owed().map(|owed| owed.failures) {
            if self.try_once() == SendResult::Again {
                thread::sleep(pause);
                pause = (pause * 2).min(longest);
                continue;
            }
            let Ok(mut owed) = self.owed() else { return };
            // A call that has failed since may have published after this bell was heard.
            if owed.failures == failures {
                owed.carried = false;
                return;
            }
        }
    }

    /// The flag is per call, because the peer made the line and could change the mode of the descriptor that both share.
    fn try_once(&self) -> SendResult {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(self.line.as_raw_fd(), &[1], flags) {
                Err(Errno::EINTR) => {}
                // A full buffer (EAGAIN) holds bells that the peer has not heard yet. A peer that is gone is noticed where
                // it matters: by the thread that waits, or reads the line.
                Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    return SendResult::Done;
                }
                // The kernel has no memory, or a security module says no for now: the peer sleeps on, and nothing else wakes it.
                Err(_) => return SendResult::Again,
            }
        }
    }
}
