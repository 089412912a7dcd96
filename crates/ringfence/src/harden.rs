//! Closes this process to other processes of its own user.

use nix::{
    libc,
    sys::{
        prctl::set_dumpable,
        resource::{Resource, getrlimit, setrlimit},
    },
};

use crate::{
    error::{OrSystem, Result},
    sys,
};

/// Closes this process to other processes of the same user, for as long as it runs:
///
/// - It is not dumpable (prctl(2), `PR_SET_DUMPABLE` 0). Its `/proc/PID` belongs to root, so `mem`, `fd`,
///   `maps`, `environ` and `exe` are closed (EACCES). Without `CAP_SYS_PTRACE` no process can attach to it
///   (ptrace(2), process_vm_readv(2), perf_event_open(2)) or take its descriptors (pidfd_getfd(2)); these
///   calls fail with EPERM. It leaves no core, however cores are collected.
/// - It may have no core file (`RLIMIT_CORE` 0, soft and hard). Programs that it starts inherit that.
/// - SIGUSR1 is ignored, unless the program handles it: see [`ignore_sigusr1`].
///
/// May be called at any time and more than once. It does not restrict root.
///
/// A peer of the same user cannot look up the executable of a process that is not dumpable. If a policy
/// requires the executable, as the default does, call this once all channels are made, or let the handshake
/// call it at the right moment: see [`Options::harden`](crate::Options::harden). The process also loses
/// access to those of its own files in `/proc` that only their owner may read (for example
/// `/proc/self/environ`).
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) if the kernel or a sandbox refuses one of these steps. The steps before it stay in
/// effect.
pub fn harden() -> Result<()> {
    set_dumpable(false).or_system("closing this process to others (PR_SET_DUMPABLE)")?;
    // Skip the call if the limit is already set, because a sandbox may forbid the call.
    if getrlimit(Resource::RLIMIT_CORE) != Ok((0, 0)) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0).or_system("forbidding core files (RLIMIT_CORE)")?;
    }
    if handler_of(libc::SIGUSR1)? == libc::SIG_DFL {
        ignore_sigusr1()?;
    }
    Ok(())
}

/// Ignores SIGUSR1 and replaces any handler that it has now. For programs inside a runtime that opens a
/// debugger on that signal, as Node does. A process that can connect to the debugger can read and change the
/// whole process, dumpable or not.
pub fn ignore_sigusr1() -> Result<()> {
    sys::signal::set_disposition(libc::SIGUSR1, &sys::signal::disposition(libc::SIG_IGN))
        .or_system("ignoring SIGUSR1 (sigaction)")
}

/// Whether this process is closed to others of its own user, by [`harden`] or otherwise.
pub fn is_hardened() -> bool {
    sys::process::dumpable().is_ok_and(|value| value != 1)
}

fn handler_of(signal: libc::c_int) -> Result<usize> {
    sys::signal::disposition_of(signal)
        .map(|found| found.sa_sigaction)
        .or_system("reading a signal's handler (sigaction)")
}
