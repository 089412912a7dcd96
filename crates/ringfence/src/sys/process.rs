//! Processes: descriptors of them, what those tell, and what is true of this one.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    libc::{self, c_int},
    unistd::Pid,
};

use crate::sys::uninterrupted;

/// Has this called in each child that is forked from now on, before the fork returns there (pthread_atfork(3)). Never undone.
pub(crate) fn in_each_child(called: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: it takes functions, of which `called` must do nothing that is not async-signal-safe.
    match unsafe { libc::pthread_atfork(None, None, Some(called)) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// pidfd_open(2), Linux 5.3.
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid.as_raw(), 0)
}

/// A pidfd of one thread (`PIDFD_THREAD`, Linux 6.9; EINVAL before that).
pub(crate) fn pidfd_open_thread(thread: libc::pid_t) -> Result<OwnedFd, Errno> {
    // That is its value.
    pidfd_open_with(thread, libc::O_EXCL)
}

fn pidfd_open_with(id: libc::pid_t, flags: c_int) -> Result<OwnedFd, Errno> {
    let number = uninterrupted(|| {
        // SAFETY: pidfd_open takes two integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })
    })?;
    let number = c_int::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just installed this descriptor, close-on-exec, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether this process is dumpable (prctl(2), `PR_GET_DUMPABLE`): 0 no, 1 yes, 2 for root alone.
pub(crate) fn dumpable() -> Result<c_int, Errno> {
    // SAFETY: PR_GET_DUMPABLE takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })
}

/// What a pidfd says of its process by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PidfdInfo {
    pub(crate) pid: u32,
    /// Effective, now, in this process's user namespace.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The number of its cgroup (version 2), where the kernel has cgroups.
    pub(crate) cgroup: Option<u64>,
}

/// `PIDFD_GET_INFO`, Linux 6.13. Errors with ESRCH for a process that has been reaped.
pub(crate) fn pidfd_info(pidfd: impl AsFd) -> Result<PidfdInfo, Errno> {
    /// _IOWR(0xff, 11, struct pidfd_info), whose first version has 64 bytes.
    #[cfg(not(target_env = "musl"))]
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    #[cfg(target_env = "musl")]
    const PIDFD_GET_INFO: c_int = 0xc040_ff0b_u32.cast_signed();
    /// `PIDFD_INFO_PID` and `PIDFD_INFO_CREDS`.
    const IDS: u64 = 0b11;
    /// `PIDFD_INFO_CGROUPID`.
    const CGROUP: u64 = 0b100;
    /// mask and cgroup id, 8 bytes each; then pid, tgid, ppid, ruid, rgid, euid, egid and five more, 4 bytes each.
    #[repr(C, align(8))]
    struct Info {
        mask: u64,
        cgroup: u64,
        words: [u32; 12],
    }
    let mut info = Info {
        mask: IDS | CGROUP,
        cgroup: 0,
        words: [0; 12],
    };
    uninterrupted(|| {
        // SAFETY: the number states a struct of 64 bytes, which `info` is, borrowed mutably for this call.
        Errno::result(unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) })
    })?;
    if info.mask & IDS != IDS {
        return Err(Errno::ENODATA);
    }
    Ok(PidfdInfo {
        pid: info.words[0],
        uid: info.words[5],
        gid: info.words[6],
        cgroup: (info.mask & CGROUP != 0).then_some(info.cgroup),
    })
}
