//! Makes system calls of this process fail. A seccomp(2) filter stops each call of interest. A thread that
//! started before the filter, and so has none, decides: either the kernel makes the call, or the caller gets
//! an error.
//!
//! The thread allocates nothing and takes no lock, because the waiting caller may hold any lock.

use std::{
    io, mem, ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst},
    thread,
    time::Duration,
};

use libc::{c_int, c_long, c_uint, seccomp_data, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};

use crate::calls::{CALLS, row_of};

/// The calls of a process that fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Row of the table. Without one, the calls are counted and none fails.
    pub(crate) row: Option<usize>,
    /// The errno that the caller gets, or 0 to delay the call.
    pub(crate) errno: c_int,
    /// Number of the row's first call that fails, from 1 on.
    pub(crate) first: u32,
    /// Number of calls that fail.
    pub(crate) times: u32,
}

const DELAY: Duration = Duration::from_millis(50);

/// Calls of each row, and calls that were answered in place of the kernel.
static COUNTS: [AtomicU32; CALLS.len()] = [const { AtomicU32::new(0) }; CALLS.len()];
static HITS: AtomicU32 = AtomicU32::new(0);
/// Calls that no row covers, by number.
static UNCOVERED: [AtomicU32; 512] = [const { AtomicU32::new(0) }; 512];
/// Only calls between `arm` and `disarm` count, because the harness makes calls of its own.
static ARMED: AtomicBool = AtomicBool::new(false);
static CANCELED: AtomicBool = AtomicBool::new(false);
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// Whether the answering thread has started. It allocates while it starts, and never again.
static ANSWERING: AtomicBool = AtomicBool::new(false);

pub(crate) fn arm() {
    ARMED.store(true, SeqCst);
}

pub(crate) fn disarm() {
    ARMED.store(false, SeqCst);
}

/// Ends the planned fault, even if it has not happened yet.
pub(crate) fn cancel_fault() {
    CANCELED.store(true, SeqCst);
}

/// Returns the number of calls that were answered in place of the kernel.
pub(crate) fn hits() -> u32 {
    HITS.load(SeqCst)
}

/// Returns each row that was called, with its number of calls.
pub(crate) fn counts() -> impl Iterator<Item = (usize, u32)> {
    COUNTS
        .iter()
        .map(|count| count.load(SeqCst))
        .enumerate()
        .filter(|&(_, count)| count > 0)
}

/// Returns the numbers of the calls that no row covers.
pub(crate) fn uncovered() -> impl Iterator<Item = c_long> {
    let seen = |&(_, count): &(usize, &AtomicU32)| count.load(SeqCst) > 0;
    UNCOVERED
        .iter()
        .enumerate()
        .filter(seen)
        .map(|(number, _)| number as c_long)
}

/// Installs the filter. It stays for the life of the process, and its children inherit it; their calls are
/// always made.
pub(crate) fn install(plan: Plan) -> io::Result<()> {
    // SAFETY: a signal set is plain data, which sigfillset fills.
    let mut all = unsafe { mem::zeroed() };
    // SAFETY: the set belongs to this frame.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: as above. All signals are blocked in the new thread, because a handler must not run while a
    // caller waits for it.
    let mut before = unsafe { mem::zeroed() };
    // SAFETY: both sets belong to this frame.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    thread::Builder::new()
        .name("injector".into())
        .spawn(move || handle_notifications(plan))?;
    // SAFETY: the set is the mask that was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    while !ANSWERING.load(SeqCst) {
        thread::yield_now();
    }
    LISTENER.store(install_filter(plan.row.map(|row| CALLS[row].number))?, SeqCst);
    Ok(())
}

/// Installs the filter: a call with this number, or every call except futex(2), waits for an answer.
fn install_filter(number: Option<c_long>) -> io::Result<c_int> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let (compared, equal, other) = match number {
        Some(number) => (number, libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW),
        None => (
            libc::SYS_futex,
            libc::SECCOMP_RET_ALLOW,
            libc::SECCOMP_RET_USER_NOTIF,
        ),
    };
    let mut program = [
        step(LOAD, mem::offset_of!(seccomp_data, nr) as u32, 0, 0),
        step(EQUAL, compared as u32, 0, 1),
        step(RETURN, equal, 0, 0),
        step(RETURN, other, 0, 0),
    ];
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: prctl takes no pointers here.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program lives until the call returns, and the kernel copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as c_uint,
            &raw const program,
        )
    };
    if listener < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(listener as c_int)
    }
}

/// The body of the answering thread, which runs until the process ends.
fn handle_notifications(plan: Plan) {
    ANSWERING.store(true, SeqCst);
    let listener = loop {
        let listener = LISTENER.load(SeqCst);
        if listener >= 0 {
            break listener;
        }
        thread::yield_now();
    };
    loop {
        // SAFETY: plain data; the kernel requires zeros.
        let mut call: seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one notification there.
        if unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
            // The caller was killed or interrupted in the meantime.
            continue;
        }
        let errno = decide(plan, &call);
        let mut response = seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: errno.map_or(0, |errno| -errno),
            flags: if errno.is_none() {
                libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32
            } else {
                0
            },
        };
        // SAFETY: the kernel reads one response there. A caller that is gone needs none.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    }
}

/// Returns the errno that a caller gets in place of the kernel's answer, or `None` to let the kernel answer.
fn decide(plan: Plan, call: &seccomp_notif) -> Option<c_int> {
    let number = c_long::from(call.data.nr);
    if !ARMED.load(SeqCst) || !is_own_thread(call.pid) {
        return None;
    }
    let Some(row) = row_of(number, &call.data.args) else {
        if let Some(other) = UNCOVERED.get(number as usize) {
            other.fetch_add(1, SeqCst);
        }
        return None;
    };
    let count = COUNTS[row].fetch_add(1, SeqCst) + 1;
    if plan.row != Some(row)
        || CANCELED.load(SeqCst)
        || count < plan.first
        || count - plan.first >= plan.times
    {
        return None;
    }
    HITS.fetch_add(1, SeqCst);
    if plan.errno == 0 {
        thread::sleep(DELAY);
        return None;
    }
    if number == libc::SYS_close {
        // As Linux does: the descriptor is closed even if close(2) fails. SAFETY: the caller closes this very
        // descriptor, and waits here.
        unsafe { libc::close(call.data.args[0] as c_int) };
    }
    Some(plan.errno)
}

/// Returns whether a thread belongs to this process: children inherit the filter.
fn is_own_thread(thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread as c_int, 0) == 0 }
}
