//! System calls without a wrapper in nix, or whose wrapper hides something that matters here. Each module has
//! one family of calls.
//!
//! `socket` sets the options of a socket and reads its control messages. `file` has locks, flags and leases of
//! open files, and reads the kernel's text files. `signal` sends and receives signals. `process` has pidfds,
//! memory barriers and random bytes. `lock` makes no system call: it is the standard library's lock without
//! poisoning.
//!
//! May import `identity` (credentials are plain data). Raw `libc` calls are made here and nowhere else. This
//! module makes no decisions: it returns errors as the kernel reported them.

use std::os::fd::{AsFd, BorrowedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

pub(crate) mod file;
pub(crate) mod lock;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod socket;

/// Repeats a call that a signal has interrupted (EINTR, signal(7)), because an interrupted call has no
/// result. A filter or a tracer may interrupt a call each time, so this does not go on forever.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    const MOST: usize = 10_000;
    for _ in 1..MOST {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
    call()
}

/// A descriptor that is never open: the kernel allows no number as high (`fs.nr_open`). Unlike `AT_FDCWD`, it reaches the kernel: C
/// libraries fail fstat(2) of a negative number themselves.
// SAFETY: no descriptor has this number, so none is closed while this value exists.
pub(crate) const NOT_OPEN: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(i32::MAX) };

/// Whether the descriptor is ready for one of these events now, or has failed.
pub(crate) fn is_ready(descriptor: &impl AsFd, events: PollFlags) -> Result<bool, Errno> {
    let mut polled = [PollFd::new(descriptor.as_fd(), events)];
    uninterrupted(|| poll(&mut polled, PollTimeout::ZERO)).map(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_that_is_always_interrupted_fails() {
        assert_eq!(uninterrupted(|| Err::<(), _>(Errno::EINTR)), Err(Errno::EINTR));
    }
}
