//! The system calls that nix has no wrapper for, or one that hides what matters here. Each room has one family of them.
//!
//! `ancillary` is what comes with a message on a socket, `socket` its options; `file` has locks and flags of open files, and
//! reads those in which the kernel tells something; `lease` has the leases that a tripwire is made of; `signal` sends and takes
//! signals; `process` has pidfds; `barrier` has memory barriers of the whole system; `random` has random bytes. `lock` is no system
//! call: it is the standard library's lock without its poison.
//!
//! May import `identity` (credentials are plain data). Raw `libc` calls are made here and nowhere else. It decides nothing: an error
//! is handed on as the kernel has told it.

use nix::errno::Errno;

pub(crate) mod ancillary;
pub(crate) mod barrier;
pub(crate) mod file;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod signal;
pub(crate) mod socket;

/// Makes a call again that a signal has cut short (EINTR, signal(7)): it has told nothing of what it was about.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            told => return told,
        }
    }
}
