//! Memory barriers that one process makes for all (membarrier(2)).

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

/// membarrier(2) commands, Linux 4.16.
const MEMBARRIER_GLOBAL_EXPEDITED: c_int = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: c_int = 1 << 2;

fn membarrier(command: c_int) -> Result<(), Errno> {
    // SAFETY: membarrier takes integers and touches no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// Registers this process to receive the barriers of others. Idempotent; the registration lasts as long as the
/// process, costs nothing until a process issues a barrier, and is what lets a producer publish without a fence.
pub(crate) fn accept_barriers() -> Result<(), Errno> {
    membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED)
}

/// A full memory barrier on every running thread of every process that accepts them.
pub(crate) fn issue_barrier() -> Result<(), Errno> {
    membarrier(MEMBARRIER_GLOBAL_EXPEDITED)
}

/// Which barriers the kernel knows (membarrier(2), `MEMBARRIER_CMD_QUERY`): whether it knows those used here.
pub(crate) fn knows_barriers() -> Result<bool, Errno> {
    const QUERY: c_int = 0;
    // SAFETY: membarrier takes integers and touches no memory of ours.
    let known = Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) })?;
    let wanted = i64::from(MEMBARRIER_GLOBAL_EXPEDITED | MEMBARRIER_REGISTER_GLOBAL_EXPEDITED);
    Ok(known & wanted == wanted)
}
