//! Signals: what a realtime signal carries, sending and taking one, and what else happens on one.

use std::{
    mem,
    os::fd::{AsFd, AsRawFd},
    ptr,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::{self, c_int},
};

/// Blocks every signal in this thread.
pub(crate) fn block_signals() -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid set of signals.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: fills the set, which is ours.
    Errno::result(unsafe { libc::sigfillset(&raw mut all) })?;
    // SAFETY: reads the set; the mask of this thread alone changes.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// What comes with a realtime signal.
///
/// The kernel's own siginfo has 48 bytes. With a signal that a process queues (`SI_QUEUE`) they reach the other side as
/// they were given, those behind the value too, which have no meaning there (kernel/signal.c, `copy_siginfo_from_user`
/// and `copy_siginfo_to_user`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalInfo {
    pub(crate) signal: c_int,
    /// `si_errno`, of which the kernel makes nothing.
    pub(crate) errno: c_int,
    /// Above 0 it is the kernel's alone to give, for a process that sends to another (rt_sigqueueinfo(2)).
    pub(crate) code: c_int,
    pub(crate) value: u64,
    /// What lies behind the value.
    pub(crate) rest: [u8; 16],
}

/// The part of a siginfo that depends on its code, for signals with a value. It begins at byte 16 wherever pointers have 64
/// bits.
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
    /// As a process says it of itself. Who it is, it could make up.
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
        // SAFETY: as asserted above, that many bytes of the siginfo are there, and they are plain integers.
        let place = unsafe { (&raw mut info).cast::<u8>().add(QUEUED_AT) };
        // SAFETY: as above.
        unsafe { place.cast::<Queued>().write_unaligned(queued) };
        info
    }

    fn from_kernel(info: &libc::siginfo_t) -> Self {
        // SAFETY: as asserted above, that many bytes of the siginfo are there.
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
        // SAFETY: adds to the set, which is ours.
        Errno::result(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    Ok(set)
}

/// Waits for one of these signals, all of which this thread blocks (sigwaitinfo(2)).
pub(crate) fn wait_for_signal(signals: &[c_int], at_most: Option<Duration>) -> Result<SignalInfo, Errno> {
    let set = set_of(signals)?;
    // SAFETY: all-zero bytes are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let limit = at_most.map(|time| libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: reads the set and the time, where there is one, and writes one siginfo.
    Errno::result(unsafe { libc::sigtimedwait(&raw const set, &raw mut info, limit) })?;
    Ok(SignalInfo::from_kernel(&info))
}

/// Takes this signal, which this thread blocks, if there is one now; EAGAIN if not (sigtimedwait(2)).
pub(crate) fn take_signal(signal: c_int) -> Result<SignalInfo, Errno> {
    let set = set_of(&[signal])?;
    // SAFETY: all-zero bytes are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: reads the set and the time, and writes one siginfo.
    Errno::result(unsafe { libc::sigtimedwait(&raw const set, &raw mut info, &raw const at_once) })?;
    Ok(SignalInfo::from_kernel(&info))
}

/// Queues a signal to one thread of a process (rt_tgsigqueueinfo(2)). EAGAIN where the queue is full, ESRCH where the
/// process has no such thread.
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

/// The same to whatever a pidfd names: the thread, where `pidfd_open_thread` has made it (pidfd_send_signal(2)).
pub(crate) fn pidfd_queue_signal(pidfd: impl AsFd, info: &SignalInfo) -> Result<(), Errno> {
    let (number, raw) = (info.signal, info.to_kernel());
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one siginfo; no flags.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, number, &raw const raw, 0) };
    Errno::result(result).map(drop)
}

/// Whether this process could send a signal to that thread of that process now; sends none (tgkill(2), signal 0).
pub(crate) fn may_signal(process: libc::pid_t, thread: libc::pid_t) -> Result<(), Errno> {
    // SAFETY: tgkill takes three integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, 0) }).map(drop)
}

/// Sends a signal to one thread of this process (tgkill(2)).
pub(crate) fn signal_thread(thread: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    let process = nix::unistd::getpid().as_raw();
    // SAFETY: tgkill takes three integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) }).map(drop)
}

/// What happens on a signal (sigaction(2)).
pub(crate) fn disposition_of(signal: c_int) -> Result<libc::sigaction, Errno> {
    let mut found = disposition(libc::SIG_DFL);
    // SAFETY: the kernel writes one sigaction, and changes nothing without a new one.
    Errno::result(unsafe { libc::sigaction(signal, ptr::null(), &raw mut found) })?;
    Ok(found)
}

/// A disposition with this handler, which blocks no other signal and restarts what it interrupts.
pub(crate) fn disposition(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all-zero bytes are a valid sigaction: no handler, an empty set of signals.
    let mut wanted: libc::sigaction = unsafe { mem::zeroed() };
    wanted.sa_sigaction = handler;
    wanted.sa_flags = libc::SA_RESTART;
    wanted
}

/// Sets what happens on a signal. A handler must do nothing that is not async-signal-safe (signal-safety(7)).
pub(crate) fn set_disposition(signal: c_int, wanted: &libc::sigaction) -> Result<(), Errno> {
    // SAFETY: the kernel reads one sigaction; its handler is SIG_DFL, SIG_IGN, one that this process had before, or
    // one of ours that adds to a counter and does nothing else.
    Errno::result(unsafe { libc::sigaction(signal, wanted, ptr::null_mut()) }).map(drop)
}
