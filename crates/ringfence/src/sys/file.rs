//! Open files: how they were opened, and who has them locked.

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

/// Whether the descriptor was opened for reading and writing (`F_GETFL`).
pub(crate) fn open_flags(file: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Takes an exclusive lock on an open file (flock(2)), or finds that it has it already. Errors with EWOULDBLOCK where
/// another open file has it. Not nix's guard: that gives the lock back when it is dropped, for every process that shares
/// the open file, while closing a descriptor leaves it to the others.
pub(crate) fn lock_file(file: impl AsFd) -> Result<(), Errno> {
    loop {
        // SAFETY: flock takes integers and touches no memory of ours.
        let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Gives a lock back, for all processes that share the open file.
pub(crate) fn unlock_file(file: impl AsFd) {
    // SAFETY: flock takes integers and touches no memory of ours. It has no reason to fail on a file that was locked.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// Has fstatat(2) answer from what this system knows of a file by now, without asking a server for it
/// (`AT_STATX_DONT_SYNC`, which fstatat hands on as statx(2) does, Linux 4.11). Device and inode never change, so for them
/// nothing is lost. The same number on every architecture.
pub(crate) const WITHOUT_SERVER: c_int = 0x4000;
