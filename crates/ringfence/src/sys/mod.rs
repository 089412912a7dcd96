//! System calls without a wrapper in nix, or whose wrapper hides something that matters here. Each module has
//! one family of calls.
//!
//! `ancillary` reads the control messages of a socket, and `socket` sets its options. `file` has locks and
//! flags of open files, and reads the kernel's text files. `lease` has the leases used by the tripwire.
//! `signal` sends and receives signals. `process` has pidfds, `barrier` has system-wide memory barriers, and
//! `random` has random bytes. Two modules make no system calls: `lock` is the standard library's lock without
//! poisoning, and `mounts` parses the kernel's list of mounts.
//!
//! May import `identity` (credentials are plain data). Raw `libc` calls are made here and nowhere else. This
//! module makes no decisions: it returns errors as the kernel reported them.

use nix::errno::Errno;

pub(crate) mod ancillary;
pub(crate) mod barrier;
pub(crate) mod file;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod mounts;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod signal;
pub(crate) mod socket;

/// Repeats a call that a signal has interrupted (EINTR, signal(7)), because an interrupted call has no
/// result.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            told => return told,
        }
    }
}
