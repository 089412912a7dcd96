//! Write leases: the kernel notifies the holder when another process opens the file (fcntl(2), "Leases").

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

use crate::sys::uninterrupted;

/// `F_SETSIG` of fcntl(2), which libc does not define everywhere.
const F_SETSIG: c_int = 10;

/// `F_WRLCK`, whose type differs between C libraries.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const WRITE_LEASE: i16 = libc::F_WRLCK as i16;

/// Takes a write lease (fcntl(2), `F_SETLEASE`). The kernel grants it only while no other process has the
/// file open. Breaking the lease must send no signal, because the default, SIGIO, would terminate the
/// process. The kernel makes the caller the signal's recipient, and that can be changed only afterwards.
/// Until then breaking the lease sends SIGURG, which is ignored by default.
pub(crate) fn take_lease(file: impl AsFd) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    // SAFETY: F_SETOWN takes an integer and touches no memory of ours. 0 means no recipient.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETOWN, 0) })?;
    Ok(())
}

/// Takes a write lease like [`take_lease`], and makes the kernel send a realtime signal to one thread of this
/// process when another process opens the file. Because the signal is directed at a thread (`F_OWNER_TID`),
/// it does not matter what other threads block.
pub(crate) fn take_watched_lease(file: impl AsFd, thread: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    /// `F_SETOWN_EX` of fcntl(2), Linux 2.6.32, which libc does not define everywhere.
    const F_SETOWN_EX: c_int = 15;
    #[repr(C)]
    struct Owner {
        /// 0 means a thread, `F_OWNER_TID`.
        kind: c_int,
        thread: libc::pid_t,
    }
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    let owner = Owner { kind: 0, thread };
    // SAFETY: the kernel reads one f_owner_ex, and `owner` has its layout.
    Errno::result(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // The recipient is set already, so F_SETLEASE does not change it.
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    Ok(())
}

/// Whether this open file description has a write lease (`F_GETLEASE`).
pub(crate) fn has_write_lease(file: impl AsFd) -> Result<bool, Errno> {
    let number = file.as_fd().as_raw_fd();
    // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
    let kind = uninterrupted(|| Errno::result(unsafe { libc::fcntl(number, libc::F_GETLEASE) }))?;
    Ok(kind == c_int::from(WRITE_LEASE))
}
