//! Memory barriers that one process issues for all others (membarrier(2)).

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

/// Commands of membarrier(2), Linux 4.16.
const MEMBARRIER_GLOBAL_EXPEDITED: c_int = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: c_int = 1 << 2;

fn membarrier(command: c_int) -> Result<(), Errno> {
    // SAFETY: membarrier takes integers and touches no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// Registers this process to receive the barriers of other processes. Idempotent. The registration lasts as
/// long as the process and costs nothing until a process issues a barrier. It lets a producer publish without
/// a fence.
pub(crate) fn accept_barriers() -> Result<(), Errno> {
    membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED)
}

/// Issues a full memory barrier on every running thread of every registered process.
pub(crate) fn issue_barrier() -> Result<(), Errno> {
    membarrier(MEMBARRIER_GLOBAL_EXPEDITED)
}

/// Whether the kernel supports the barriers that this crate uses (membarrier(2), `MEMBARRIER_CMD_QUERY`).
pub(crate) fn knows_barriers() -> Result<bool, Errno> {
    const QUERY: c_int = 0;
    // SAFETY: membarrier takes integers and touches no memory of ours.
    let known = Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) })?;
    let wanted = i64::from(MEMBARRIER_GLOBAL_EXPEDITED | MEMBARRIER_REGISTER_GLOBAL_EXPEDITED);
    Ok(known & wanted == wanted)
}
