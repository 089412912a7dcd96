//! Makes system calls of this process fail. A filter of seccomp(2) stops each call that is asked about, and a thread that began
//! before the filter, and so has none, says what becomes of it: the kernel makes the call, or its caller gets an error.
//!
//! The thread allocates nothing and takes no lock: the caller that waits for it may hold any.

use std::{
    io, mem, ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst},
    thread,
    time::Duration,
};

use libc::{c_int, c_long, c_uint, seccomp_data, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};

use crate::calls::{CALLS, row_of};

/// What a process does to its own calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The row of the table; without one, the calls are counted and all of them are made.
    pub(crate) row: Option<usize>,
    /// What the caller gets; 0 for a call that is made late.
    pub(crate) errno: c_int,
    /// Which call of that row it begins with, from 1 on.
    pub(crate) first: u32,
    /// How many of them fail.
    pub(crate) times: u32,
}

const DELAY: Duration = Duration::from_millis(50);

/// How often each row was called, and how often a call was answered in the kernel's place.
static COUNTS: [AtomicU32; CALLS.len()] = [const { AtomicU32::new(0) }; CALLS.len()];
static HITS: AtomicU32 = AtomicU32::new(0);
/// Calls that no row covers, by number.
static OTHERS: [AtomicU32; 512] = [const { AtomicU32::new(0) }; 512];
/// Only calls between `arm` and `disarm` count: what the harness does besides is its own.
static ARMED: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// The answering thread has begun. As it begins it allocates, and then never again.
static ANSWERS: AtomicBool = AtomicBool::new(false);

pub(crate) fn arm() {
    ARMED.store(true, SeqCst);
}

pub(crate) fn disarm() {
    ARMED.store(false, SeqCst);
}

/// What was planned is over, also where it has not happened yet.
pub(crate) fn forget() {
    OVER.store(true, SeqCst);
}

/// How many calls were answered in the kernel's place.
pub(crate) fn hits() -> u32 {
    HITS.load(SeqCst)
}

/// Each row that was called, with how often.
pub(crate) fn counts() -> impl Iterator<Item = (usize, u32)> {
    COUNTS
        .iter()
        .map(|count| count.load(SeqCst))
        .enumerate()
        .filter(|&(_, count)| count > 0)
}

/// The numbers of calls that no row covers.
pub(crate) fn others() -> impl Iterator<Item = c_long> {
    let seen = |&(_, count): &(usize, &AtomicU32)| count.load(SeqCst) > 0;
    OTHERS
        .iter()
        .enumerate()
        .filter(seen)
        .map(|(number, _)| number as c_long)
}

/// Begins. The filter stays for the life of the process, and its children have it too; their calls are always made.
pub(crate) fn begin(plan: Plan) -> io::Result<()> {
    // SAFETY: a set of signals is plain data, which sigfillset writes.
    let mut all = unsafe { mem::zeroed() };
    // SAFETY: the set is this frame's.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: as above. What a signal would have this thread do must not depend on what it is waited for with.
    let mut before = unsafe { mem::zeroed() };
    // SAFETY: both sets are this frame's.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    thread::Builder::new()
        .name("injector".into())
        .spawn(move || answer(plan))?;
    // SAFETY: the set that was in force.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    while !ANSWERS.load(SeqCst) {
        thread::yield_now();
    }
    LISTENER.store(install(plan.row.map(|row| CALLS[row].number))?, SeqCst);
    Ok(())
}

/// The filter: a call of this number, or every call but futex(2), waits for an answer.
fn install(number: Option<c_long>) -> io::Result<c_int> {
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
    // SAFETY: no pointers.
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

/// The thread that answers, until the process ends.
fn answer(plan: Plan) {
    ANSWERS.store(true, SeqCst);
    let listener = loop {
        let listener = LISTENER.load(SeqCst);
        if listener >= 0 {
            break listener;
        }
        thread::yield_now();
    };
    loop {
        // SAFETY: plain data; the kernel asks for zeros.
        let mut call: seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one notification there.
        if unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
            // A caller that was killed or interrupted meanwhile is not there any more.
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
        // SAFETY: the kernel reads one answer there. A caller that has gone needs none.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    }
}

/// What a caller gets in place of what the kernel would say; nothing where the kernel is to say it.
fn decide(plan: Plan, call: &seccomp_notif) -> Option<c_int> {
    let number = c_long::from(call.data.nr);
    if !ARMED.load(SeqCst) || !is_own(call.pid) {
        return None;
    }
    let Some(row) = row_of(number, &call.data.args) else {
        if let Some(other) = OTHERS.get(number as usize) {
            other.fetch_add(1, SeqCst);
        }
        return None;
    };
    let count = COUNTS[row].fetch_add(1, SeqCst) + 1;
    if plan.row != Some(row) || OVER.load(SeqCst) || count < plan.first || count - plan.first >= plan.times {
        return None;
    }
    HITS.fetch_add(1, SeqCst);
    if plan.errno == 0 {
        thread::sleep(DELAY);
        return None;
    }
    if number == libc::SYS_close {
        // As Linux does: whatever it says, the descriptor is closed.
        // SAFETY: the caller closes this very number, and waits here.
        unsafe { libc::close(call.data.args[0] as c_int) };
    }
    Some(plan.errno)
}

/// Whether a thread is one of this process: a child has the filter too.
fn is_own(thread: u32) -> bool {
    // SAFETY: signal 0 is none.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread as c_int, 0) == 0 }
}
