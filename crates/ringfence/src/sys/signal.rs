//! Signals: the data of a realtime signal, sending and receiving, and dispositions.

use std::{
    mem,
    os::fd::{AsFd, AsRawFd},
    ptr,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::{self, c_int},
    sys::signal::SigSet,
};

/// Blocks every signal in this thread. nix's `thread_block` drops the error: it expects -1, and pthread_sigmask(3) returns a number.
pub(crate) fn block_signals() -> Result<(), Errno> {
    let all = SigSet::all();
    // SAFETY: pthread_sigmask reads the set. Only the mask of this thread changes.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ref(), ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// The data of a realtime signal.
///
/// The kernel's own siginfo uses 48 bytes. If a process queues a signal (`SI_QUEUE`), all 48 bytes reach the
/// receiver unchanged, including those behind the value, which have no meaning there (kernel/signal.c,
/// `copy_siginfo_from_user` and `copy_siginfo_to_user`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalInfo {
    pub(crate) signal: c_int,
    /// `si_errno`, which the kernel does not interpret.
    pub(crate) errno: c_int,
    /// `si_code`. Only the kernel can send a code above 0 to another process (rt_sigqueueinfo(2)).
    pub(crate) code: c_int,
    pub(crate) value: u64,
    /// The bytes behind the value.
    pub(crate) rest: [u8; 16],
}

/// The part of a siginfo that depends on its code, for signals with a value. It starts at byte 16 on every
/// 64-bit architecture.
#[repr(C)]
#[derive(Clone, Copy)]
struct Queued {
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: u64,
    rest: [u8; 16],
}

const QUEUED_AT: usize = 16;
const _: () = assert!(QUEUED_AT + size_of::<Queued>() == 48 && size_of::<libc::siginfo_t>() == 128);

impl SignalInfo {
    /// Encodes the signal for the kernel. The sender's ids are self-reported and can be forged.
    fn to_kernel(self) -> libc::siginfo_t {
        // SAFETY: all-zero bytes are a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        info.si_signo = self.signal;
        info.si_errno = self.errno;
        info.si_code = self.code;
        let queued = Queued {
            pid: nix::unistd::getpid().as_raw(),
            uid: nix::unistd::getuid().as_raw(),
            value: self.value,
            rest: self.rest,
        };
        // SAFETY: the assertion above proves that the siginfo has that many bytes, and they are plain
        // integers.
        let place = unsafe { (&raw mut info).cast::<u8>().add(QUEUED_AT) };
        // SAFETY: as above.
        unsafe { place.cast::<Queued>().write_unaligned(queued) };
        info
    }

    fn from_kernel(info: &libc::siginfo_t) -> Self {
        // SAFETY: the assertion above proves that the siginfo has that many bytes.
        let place = unsafe { ptr::from_ref(info).cast::<u8>().add(QUEUED_AT) };
        // SAFETY: as above, and any bytes are valid integers.
        let queued = unsafe { place.cast::<Queued>().read_unaligned() };
        Self {
            signal: info.si_signo,
            errno: info.si_errno,
            code: info.si_code,
            value: queued.value,
            rest: queued.rest,
        }
    }
}

fn set_of(signals: &[c_int]) -> Result<libc::sigset_t, Errno> {
    // SAFETY: all-zero bytes are a valid set of signals.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    for signal in signals {
        // SAFETY: sigaddset writes the set, a local variable.
        Errno::result(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    Ok(set)
}

/// Waits for one of these signals, which this thread must block. Fails with EAGAIN if none is pending in time (sigtimedwait(2)).
pub(crate) fn wait_for_signal(signals: &[c_int], at_most: Option<Duration>) -> Result<SignalInfo, Errno> {
    let set = set_of(signals)?;
    // SAFETY: all-zero bytes are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let limit = at_most.map(|time| libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: sigtimedwait reads the set and the time, if there is one, and writes one siginfo.
    Errno::result(unsafe { libc::sigtimedwait(&raw const set, &raw mut info, limit) })?;
    Ok(SignalInfo::from_kernel(&info))
}

/// Queues a signal to one thread of a process (rt_tgsigqueueinfo(2)). Fails with EAGAIN if the queue is full,
/// and with ESRCH if the process has no such thread.
pub(crate) fn queue_signal(
    process: libc::pid_t,
    thread: libc::pid_t,
    info: &SignalInfo,
) -> Result<(), Errno> {
    let (number, raw) = (info.signal, info.to_kernel());
    // SAFETY: the kernel reads one siginfo.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            number,
            &raw const raw,
        )
    };
    Errno::result(result).map(drop)
}

/// Sends a signal, with data if there are any, to the target of a pidfd: a process, or one thread if
/// `pidfd_open_thread` has opened it (pidfd_send_signal(2), Linux 5.1).
pub(crate) fn pidfd_signal(pidfd: impl AsFd, signal: c_int, info: Option<&SignalInfo>) -> Result<(), Errno> {
    let raw = info.map(|info| info.to_kernel());
    let info = raw.as_ref().map_or(ptr::null(), ptr::from_ref);
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one siginfo, if there is one; the flags are 0.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, info, 0) };
    Errno::result(result).map(drop)
}

/// Sends a signal to one thread of a process (tgkill(2)). Signal 0 only checks whether this process may.
pub(crate) fn signal_thread(process: libc::pid_t, thread: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    // SAFETY: tgkill takes three integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) }).map(drop)
}

/// Returns the disposition of a signal (sigaction(2)).
pub(crate) fn disposition_of(signal: c_int) -> Result<libc::sigaction, Errno> {
    let mut found = disposition(libc::SIG_DFL);
    // SAFETY: the kernel writes one sigaction. Without a new one it changes nothing.
    Errno::result(unsafe { libc::sigaction(signal, ptr::null(), &raw mut found) })?;
    Ok(found)
}

/// Makes a disposition with this handler. It blocks no other signal, and interrupted calls restart.
pub(crate) fn disposition(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all-zero bytes are a valid sigaction: no handler, an empty set of signals.
    let mut wanted: libc::sigaction = unsafe { mem::zeroed() };
    wanted.sa_sigaction = handler;
    wanted.sa_flags = libc::SA_RESTART;
    wanted
}

/// Sets the disposition of a signal. A handler must be async-signal-safe (signal-safety(7)).
pub(crate) fn set_disposition(signal: c_int, wanted: &libc::sigaction) -> Result<(), Errno> {
    // SAFETY: the kernel reads one sigaction. Its handler is SIG_DFL, SIG_IGN, a previous handler of this
    // process, or ours, which only increments a counter.
    Errno::result(unsafe { libc::sigaction(signal, wanted, ptr::null_mut()) }).map(drop)
}
