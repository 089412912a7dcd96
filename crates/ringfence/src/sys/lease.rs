//! Write leases: the kernel tells their holder when another process opens the file (fcntl(2), "Leases").

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

use crate::sys::uninterrupted;

/// `F_SETSIG` of fcntl(2), which libc does not name everywhere.
const F_SETSIG: c_int = 10;

/// `F_WRLCK`, whose type differs between C libraries.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const WRITE_LEASE: i16 = libc::F_WRLCK as i16;

/// Takes a write lease (fcntl(2), `F_SETLEASE`), which the kernel grants only while no other process has the file open,
/// and has no signal sent when it is broken: the default, SIGIO, would end the process. The kernel names the taker as
/// the one to be told, so that can be undone only afterwards; until then a breaker sends SIGURG, which by default does
/// nothing.
pub(crate) fn take_lease(file: impl AsFd) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    // SAFETY: F_SETOWN takes an integer and touches no memory of ours. 0 names no process.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETOWN, 0) })?;
    Ok(())
}

/// As [`take_lease`], and has the kernel tell one thread of this process, by a realtime signal, when another process opens the
/// file. Directed at a thread (`F_OWNER_TID`) it is heard whatever the others block.
pub(crate) fn take_watched_lease(file: impl AsFd, thread: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    /// `F_SETOWN_EX` of fcntl(2), Linux 2.6.32, which libc does not name everywhere.
    const F_SETOWN_EX: c_int = 15;
    #[repr(C)]
    struct Owner {
        /// 0 is a thread, `F_OWNER_TID`.
        kind: c_int,
        thread: libc::pid_t,
    }
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    let owner = Owner { kind: 0, thread };
    // SAFETY: the kernel reads one f_owner_ex, which `owner` is laid out as.
    Errno::result(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // Whom to tell was said, so that the kernel leaves that alone here.
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    Ok(())
}

/// Whether a write lease is held on this open file description (`F_GETLEASE`).
pub(crate) fn has_write_lease(file: impl AsFd) -> Result<bool, Errno> {
    let number = file.as_fd().as_raw_fd();
    // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
    let kind = uninterrupted(|| Errno::result(unsafe { libc::fcntl(number, libc::F_GETLEASE) }))?;
    Ok(kind == c_int::from(WRITE_LEASE))
}
