//! Closing this process to others of its own user.

use nix::{
    libc,
    sys::{
        prctl::set_dumpable,
        resource::{Resource, getrlimit, setrlimit},
    },
};

use crate::{
    error::{Error, Result},
    sys,
};

/// Closes this process, for as long as it runs, to other processes of the same user:
///
/// - It is not dumpable (prctl(2), `PR_SET_DUMPABLE` 0). Its `/proc/PID` belongs to root, so `mem`, `fd`, `maps`,
///   `environ` and `exe` are closed (EACCES); no process attaches to it (ptrace(2), process_vm_readv(2),
///   perf_event_open(2)) or takes its descriptors (pidfd_getfd(2)) without `CAP_SYS_PTRACE` (EPERM); and it leaves no core,
///   however cores are collected.
/// - It may have no core file (`RLIMIT_CORE` 0, soft and hard); programs that it starts inherit that.
/// - SIGUSR1 is ignored, unless the program handles it: see [`ignore_sigusr1`].
///
/// May be called at any time and more than once. What root may do, root may do still.
///
/// A peer of the same user cannot look up the executable of a process that is not dumpable. So where a policy asks for
/// it, as the default does, call this once all channels are made, or let the handshake do it at the right moment: see
/// [`Options::harden`](crate::Options::harden). The process itself finds those of its own files in `/proc` closed
/// that only their owner may read (`/proc/self/environ`, for instance).
///
/// # Errors
/// [`Error::Unsupported`] where the kernel or a sandbox refuses one of these; those before it are done.
pub fn harden() -> Result<()> {
    set_dumpable(false)
        .map_err(|errno| Error::system("closing this process to others (PR_SET_DUMPABLE)", errno))?;
    // A limit that is there already need not be set: a sandbox may forbid the call.
    if getrlimit(Resource::RLIMIT_CORE) != Ok((0, 0)) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)
            .map_err(|errno| Error::system("forbidding core files (RLIMIT_CORE)", errno))?;
    }
    if handler_of(libc::SIGUSR1)? == libc::SIG_DFL {
        ignore_sigusr1()?;
    }
    Ok(())
}

/// Ignores SIGUSR1, in place of any handler that it has now: for programs that run inside of a runtime which opens a debugger on that
/// signal, as Node does. A process that can connect to the debugger reads and changes all of the process, dumpable or not.
pub fn ignore_sigusr1() -> Result<()> {
    sys::signal::set_disposition(libc::SIGUSR1, &sys::signal::disposition(libc::SIG_IGN))
        .map_err(|errno| Error::system("ignoring SIGUSR1 (sigaction)", errno))
}

/// Whether this process is closed to others of its own user, by [`harden`] or otherwise.
pub fn is_hardened() -> bool {
    sys::process::dumpable().is_ok_and(|value| value != 1)
}

fn handler_of(signal: libc::c_int) -> Result<usize> {
    sys::signal::disposition_of(signal)
        .map(|found| found.sa_sigaction)
        .map_err(|errno| Error::system("looking at a signal's handler (sigaction)", errno))
}
