//! Processes: pidfds, the information that they give, and properties of this process.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    libc::{self, c_int},
    sys::stat::stat,
    unistd::Pid,
};

use crate::sys::uninterrupted;

/// Registers a function that each child forked from now on calls before the fork returns in the child
/// (pthread_atfork(3)). It cannot be removed.
pub(crate) fn in_each_child(called: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: pthread_atfork takes functions. The caller guarantees that `called` is async-signal-safe.
    match unsafe { libc::pthread_atfork(None, None, Some(called)) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// Opens a process (pidfd_open(2), Linux 5.3).
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid.as_raw(), 0)
}

/// Opens one thread (`PIDFD_THREAD`, Linux 6.9; EINVAL before that).
pub(crate) fn pidfd_open_thread(thread: libc::pid_t) -> Result<OwnedFd, Errno> {
    // `PIDFD_THREAD` has the value of `O_EXCL`.
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

/// Returns the dumpable attribute of this process (prctl(2), `PR_GET_DUMPABLE`): 0 no, 1 yes, 2 only for
/// root.
pub(crate) fn dumpable() -> Result<c_int, Errno> {
    // SAFETY: PR_GET_DUMPABLE takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })
}

/// Whether this process was started with more rights than its starter has: setuid, setgid or by file
/// capabilities (getauxval(3), `AT_SECURE`). Also `true` if the kernel does not report it.
pub(crate) fn is_privileged_execution() -> bool {
    Errno::clear();
    // SAFETY: getauxval takes an integer and reads memory that stays the same for the life of the process.
    let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) };
    is_secure != 0 || Errno::last() == Errno::ENOENT
}

/// The information that a pidfd gives about its process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PidfdInfo {
    pub(crate) pid: u32,
    /// The current effective uid, in this process's user namespace.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The number of its cgroup (version 2), if the kernel supports cgroups.
    pub(crate) cgroup: Option<u64>,
}

/// Queries a pidfd (`PIDFD_GET_INFO`, Linux 6.13). Fails with ESRCH for a process that was reaped.
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
    /// The mask and the cgroup id, 8 bytes each. Then pid, tgid, ppid, ruid, rgid, euid, egid and five more
    /// words, 4 bytes each.
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

/// Whether an open user namespace descends from this process's (ioctl_ns(2), `NS_GET_PARENT`, Linux 4.9). The
/// kernel names the parent of a namespace only if that parent is this process's own or descends from it.
pub(crate) fn is_user_namespace_below(namespace: impl AsFd) -> Result<bool, Errno> {
    /// _IO(0xb7, 2).
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    let number = uninterrupted(|| {
        // SAFETY: NS_GET_PARENT takes no argument and touches no memory of ours.
        Errno::result(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT) })
    });
    match number {
        Ok(number) => {
            // SAFETY: the kernel has just installed this descriptor for us. It is closed here.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
            Ok(true)
        }
        Err(Errno::EPERM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Commands of membarrier(2), Linux 4.16.
const MEMBARRIER_GLOBAL_EXPEDITED: c_int = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: c_int = 1 << 2;

fn membarrier(command: c_int) -> Result<i64, Errno> {
    // SAFETY: membarrier takes integers and touches no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) })
}

/// Registers this process to receive the barriers of other processes. Idempotent. The registration lasts as
/// long as the process and costs nothing until a process issues a barrier. It lets a producer publish without
/// a fence.
pub(crate) fn accept_barriers() -> Result<(), Errno> {
    membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED).map(drop)
}

/// Whether this process has only one thread. `false` if /proc does not show its threads.
pub(crate) fn has_one_thread() -> bool {
    // The directory has a link for each thread's directory in it, and two of its own.
    stat("/proc/self/task").is_ok_and(|task| task.st_nlink == 3)
}

/// Issues a full memory barrier on every running thread of every registered process.
pub(crate) fn issue_barrier() -> Result<(), Errno> {
    membarrier(MEMBARRIER_GLOBAL_EXPEDITED).map(drop)
}

/// Whether the kernel supports the barriers that this crate uses (membarrier(2), `MEMBARRIER_CMD_QUERY`).
pub(crate) fn supports_barriers() -> Result<bool, Errno> {
    const QUERY: c_int = 0;
    let known = membarrier(QUERY)?;
    let wanted = i64::from(MEMBARRIER_GLOBAL_EXPEDITED | MEMBARRIER_REGISTER_GLOBAL_EXPEDITED);
    Ok(known & wanted == wanted)
}

/// Returns random bytes (getrandom(2)), for nonces, secrets and the names of shared objects.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the array has N - filled bytes left from there on.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().add(filled).cast(), N - filled, 0) };
        match Errno::result(count) {
            Err(Errno::EINTR) => {}
            other => filled += other?.cast_unsigned(),
        }
    }
    Ok(bytes)
}
