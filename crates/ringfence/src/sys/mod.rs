//! The system calls that nix has no wrapper for (or one that hides what matters here). The only file with raw
//! `libc` calls.

pub(crate) mod lock;

use std::{
    io::IoSliceMut,
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::{self, c_int, c_void},
    poll::PollFlags,
    sys::socket::UnixCredentials,
    unistd::Pid,
};

use crate::identity::Credentials;

/// What one `recvmsg` brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes written into the buffer; 0 is the end of the stream.
    pub(crate) bytes: usize,
    pub(crate) credentials: Option<Credentials>,
    /// Every descriptor that the sender passed, wanted or not: dropping them closes them.
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) control: Control,
}

/// What came of the control messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Credentials and descriptors, or less.
    Expected,
    /// One that this side has not asked for. What it installed is closed already.
    Unexpected { level: c_int, kind: c_int },
    /// `MSG_CTRUNC`: the kernel could not hand over all of them.
    Truncated,
    /// The same, though there was room for one more descriptor: so it was this process that could not have it, for want of a
    /// free number (net/core/scm.c, `scm_detach_fds`, sets the flag for either reason). That is no fault of the sender's. To
    /// try to open something now would not tell: another thread may have closed a descriptor meanwhile.
    Short,
}

/// What this process stamps its messages with: the effective ids, as `SO_PEERCRED` shows them. The kernel lets a
/// process name its own pid and any of its real, effective and saved ids (unix(7)).
pub(crate) fn effective_credentials() -> UnixCredentials {
    UnixCredentials::from(libc::ucred {
        pid: nix::unistd::getpid().as_raw(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    })
}

/// Puts a socket into the state in which frames are received from it: with the sender's credentials, and with no other
/// control message than descriptors. Errors only where the credentials are not to be had.
///
/// The options belong to the socket and not to the descriptor. A line that a peer has passed may have any of them set, an
/// accepted socket has those of the listening one, and a peer that kept a descriptor can set them again at any time. So this
/// keeps them away from an honest channel, and [`receive`] is right without it.
pub(crate) fn settle_line(socket: impl AsFd) -> Result<(), Errno> {
    /// The same numbers on every architecture that we build for (asm-generic/socket.h); libc does not name them
    /// everywhere. Linux 6.16, 6.5, 6.17, 6.14, 5.19.
    const SO_PASSRIGHTS: c_int = 83;
    const SO_PASSPIDFD: c_int = 76;
    const SO_INQ: c_int = 84;
    const SO_RCVPRIORITY: c_int = 82;
    const SO_RCVMARK: c_int = 75;
    let set = |option: c_int, value: c_int| {
        let length = libc::socklen_t::try_from(size_of::<c_int>()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the kernel reads one int, which `value` is.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast::<c_void>(),
                length,
            )
        };
        Errno::result(result).map(drop)
    };
    set(libc::SO_PASSCRED, 1)?;
    for (option, value) in [
        (SO_PASSRIGHTS, 1),
        (SO_PASSPIDFD, 0),
        (libc::SO_PASSSEC, 0),
        (SO_INQ, 0),
        // This one ends SO_TIMESTAMPNS as well.
        (libc::SO_TIMESTAMP, 0),
        (libc::SO_TIMESTAMPING, 0),
        (libc::SO_RXQ_OVFL, 0),
        (libc::SO_WIFI_STATUS, 0),
        (SO_RCVPRIORITY, 0),
        (SO_RCVMARK, 0),
        (libc::SO_PEEK_OFF, -1),
    ] {
        // What a kernel does not know it does not do, and what stays on is found by `receive`.
        let _ = set(option, value);
    }
    Ok(())
}

/// Room for credentials, for a few descriptors more than any frame has, and for what the peer may have asked for on a
/// socket that it holds as well, so that this is seen for what it is. The kernel installs as many descriptors as fit.
const CONTROL: usize = 256;

#[repr(align(8))]
struct ControlBuffer([u8; CONTROL]);

/// The descriptors in a control message. The kernel has installed them by now, so they are owned here and nowhere later.
/// One that it could not install has a negative number: nothing is there (`SCM_PIDFD`).
///
/// # Safety
///
/// `data` has `size` bytes, which the kernel has just written there: numbers of descriptors that it has installed for this
/// call.
unsafe fn own_descriptors(data: *const u8, size: usize) -> impl Iterator<Item = OwnedFd> {
    (0..size / size_of::<c_int>()).filter_map(move |index| {
        // SAFETY: as the caller promises, the number lies within the data; bytes need not be aligned.
        let number = unsafe { data.add(index * size_of::<c_int>()).cast::<[u8; 4]>().read() };
        let number = c_int::from_ne_bytes(number);
        // SAFETY: as the caller promises, the descriptor was installed for this call, and nothing else knows of it.
        (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
    })
}

/// Receives into `buffer` without blocking. nix's `recvmsg` returns an error where the ancillary data was
/// truncated, and what descriptors came with it are then lost to the caller, but installed: hence this one.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    receive_with(socket, buffer, 0)
}

/// As [`receive`], and leaves everything where it is: what descriptors there are come as copies (`MSG_PEEK`, unix(7)).
pub(crate) fn peek(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    receive_with(socket, buffer, libc::MSG_PEEK)
}

fn receive_with(socket: impl AsFd, buffer: &mut [u8], more: c_int) -> Result<Received, Errno> {
    /// Linux 6.5, and the same number everywhere; libc does not name it everywhere.
    const SCM_PIDFD: c_int = 4;
    let mut control = ControlBuffer([0; CONTROL]);
    let mut slice = IoSliceMut::new(buffer);
    // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = (&raw mut slice).cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_NOSIGNAL | more;
    let count = loop {
        // SAFETY: the header points at one iovec (IoSliceMut has its layout, as std promises) over a buffer
        // borrowed mutably for this call, and at a control buffer of the length that it states.
        let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
        match Errno::result(count) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    // A descriptor's number has 4 bytes.
    // SAFETY: CMSG_SPACE is arithmetic.
    let one_more = unsafe { libc::CMSG_SPACE(4) } as usize;
    let mut received = Received {
        bytes: count.cast_unsigned(),
        credentials: None,
        descriptors: Vec::new(),
        control: if header.msg_flags & libc::MSG_CTRUNC == 0 {
            Control::Expected
        } else if header.msg_controllen as usize + one_more <= CONTROL {
            Control::Short
        } else {
            Control::Truncated
        },
    };
    // SAFETY: the kernel filled the control buffer and set msg_controllen to what it wrote.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !cursor.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the control buffer, which
        // is aligned for it.
        let (level, kind, length) = unsafe {
            (
                (*cursor).cmsg_level,
                (*cursor).cmsg_type,
                (*cursor).cmsg_len as usize,
            )
        };
        // SAFETY: as above; the data follow the header inside the buffer.
        let data = unsafe { libc::CMSG_DATA(cursor) };
        // SAFETY: CMSG_LEN(0) is arithmetic.
        let size = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                // SAFETY: the kernel wrote `size` bytes of descriptor numbers at `data` in this call.
                received
                    .descriptors
                    .extend(unsafe { own_descriptors(data, size) });
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                // SAFETY: the kernel wrote a whole ucred at `data`.
                let ucred = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                received.credentials = Some(Credentials {
                    pid: ucred.pid,
                    uid: ucred.uid,
                    gid: ucred.gid,
                });
            }
            _ => {
                if (level, kind) == (libc::SOL_SOCKET, SCM_PIDFD) {
                    // The only other message that installs something. It is closed here.
                    // SAFETY: the kernel wrote the number of one descriptor at `data` in this call.
                    unsafe { own_descriptors(data, size) }.for_each(drop);
                }
                received.control = Control::Unexpected { level, kind };
            }
        }
        // SAFETY: header and cursor are those of this buffer.
        cursor = unsafe { libc::CMSG_NXTHDR(&raw const header, cursor) };
    }
    Ok(received)
}

/// `F_SETSIG` of fcntl(2), which libc does not name everywhere.
const F_SETSIG: c_int = 10;

/// `F_WRLCK`, whose type differs between C libraries.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const WRITE_LEASE: i16 = libc::F_WRLCK as i16;

/// Takes a write lease (fcntl(2), `F_SETLEASE`), which the kernel grants only while nobody else has the file open,
/// and has no signal sent when it is broken: the default, SIGIO, would end the process. The kernel names the taker as
/// the one to be told, so that can be undone only afterwards; until then a breaker sends SIGURG, which by default does
/// nothing.
pub(crate) fn take_lease(file: impl AsFd) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    // SAFETY: F_SETOWN takes an integer and touches no memory of ours. 0 is nobody.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETOWN, 0) })?;
    Ok(())
}

/// As [`take_lease`], and has the kernel tell one thread of this process, by a realtime signal, when somebody opens the
/// file. Directed at a thread (`F_OWNER_TID`) it is heard whatever the others block.
pub(crate) fn take_watched_lease(file: impl AsFd, thread: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    /// `F_SETOWN_EX` of fcntl(2), Linux 2.6.32, which libc does not name everywhere.
    const F_SETOWN_EX: c_int = 15;
    #[repr(C)]
    struct Owner {
        /// 0 is a thread, `F_OWNER_TID`.
        kind: c_int,
        thread: libc::pid_t,
    }
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    let owner = Owner { kind: 0, thread };
    // SAFETY: the kernel reads one f_owner_ex, which `owner` is laid out as.
    Errno::result(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // Whom to tell was said, so that the kernel leaves that alone here.
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    Ok(())
}

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
    /// Above 0 it is the kernel's alone to give, for whoever sends to another process than itself (rt_sigqueueinfo(2)).
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
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
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

/// The same to whatever a pidfd names: the thread, where [`pidfd_open_thread`] has made it (pidfd_send_signal(2)).
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

/// Whether a write lease is held on this open file description (`F_GETLEASE`).
pub(crate) fn has_write_lease(file: impl AsFd) -> Result<bool, Errno> {
    // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
    let kind = Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLEASE) })?;
    Ok(kind == c_int::from(WRITE_LEASE))
}

/// Whether the descriptor was opened for reading and writing (`F_GETFL`).
pub(crate) fn open_flags(file: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) })
}

/// Of poll(2): the other side has ended its direction, or the socket is shut for reading (`POLLRDHUP`). `POLLHUP`, the end
/// of both, is told without being asked for.
pub(crate) const HUNG_UP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// Bytes of a socket that wait to be read (`FIONREAD`).
pub(crate) fn unread(socket: impl AsFd) -> Result<usize, Errno> {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes one int, to a local.
    Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Takes an exclusive lock on an open file (flock(2)), or finds that it has it already. Errors with EWOULDBLOCK where
/// another open file has it. Not nix's guard: that gives the lock back when it is dropped, for every process that shares
/// the open file, while closing a descriptor leaves it to the others.
pub(crate) fn lock_file(file: impl AsFd) -> Result<(), Errno> {
    loop {
        // SAFETY: flock takes integers and touches no memory of ours.
        let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Gives a lock back, for everybody who shares the open file.
pub(crate) fn unlock_file(file: impl AsFd) {
    // SAFETY: flock takes integers and touches no memory of ours. It has no reason to fail on a file that was locked.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// Has this called in each child that is forked from now on, before the fork returns there (pthread_atfork(3)). Never undone.
pub(crate) fn in_each_child(called: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: it takes functions, of which `called` must do nothing that is not async-signal-safe.
    match unsafe { libc::pthread_atfork(None, None, Some(called)) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// pidfd_open(2), Linux 5.3.
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid.as_raw(), 0)
}

/// A pidfd of one thread (`PIDFD_THREAD`, Linux 6.9; EINVAL before that).
pub(crate) fn pidfd_open_thread(thread: libc::pid_t) -> Result<OwnedFd, Errno> {
    // That is its value.
    pidfd_open_with(thread, libc::O_EXCL)
}

fn pidfd_open_with(id: libc::pid_t, flags: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers.
    let number = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })?;
    let number = c_int::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just installed this descriptor, close-on-exec, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A socket option that fills a buffer of unknown size: the peer's supplementary groups (`SO_PEERGROUPS`,
/// Linux 4.13) and its security label (`SO_PEERSEC`).
fn variable_option(socket: impl AsFd, option: c_int) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0_u8; 512];
    loop {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::ERANGE)?;
        // SAFETY: the buffer is `length` bytes long, and the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                buffer.as_mut_ptr().cast::<c_void>(),
                &raw mut length,
            )
        };
        match Errno::result(result) {
            // The kernel states the length that it needs.
            Err(Errno::ERANGE) if buffer.len() < length as usize => buffer.resize(length as usize, 0),
            Err(errno) => return Err(errno),
            Ok(_) => {
                buffer.truncate(length as usize);
                return Ok(buffer);
            }
        }
    }
}

/// The supplementary groups that the peer had when it connected or listened (`SO_PEERGROUPS`).
pub(crate) fn peer_groups(socket: impl AsFd) -> Result<Vec<u32>, Errno> {
    /// The same number on every architecture that we build for; libc does not name it everywhere.
    const SO_PEERGROUPS: c_int = 59;
    let bytes = variable_option(socket, SO_PEERGROUPS)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

/// The peer's security label (`SO_PEERSEC`), without its terminating NUL.
pub(crate) fn peer_label(socket: impl AsFd) -> Result<String, Errno> {
    let bytes = variable_option(socket, libc::SO_PEERSEC)?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Random bytes (getrandom(2)): for nonces and for the names of shared objects.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the rest of the array is N - filled bytes long.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().add(filled).cast(), N - filled, 0) };
        match Errno::result(count) {
            Err(Errno::EINTR) => {}
            other => filled += other?.cast_unsigned(),
        }
    }
    Ok(bytes)
}

/// membarrier(2) commands, Linux 4.16.
const MEMBARRIER_GLOBAL_EXPEDITED: c_int = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: c_int = 1 << 2;

fn membarrier(command: c_int) -> Result<(), Errno> {
    // SAFETY: membarrier takes integers and touches no memory of ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// Registers this process to receive the barriers of others. Idempotent; the registration lasts as long as the
/// process, costs nothing until somebody issues a barrier, and is what lets a producer publish without a fence.
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

/// Whether this process is dumpable (prctl(2), `PR_GET_DUMPABLE`): 0 no, 1 yes, 2 for root alone.
pub(crate) fn dumpable() -> Result<c_int, Errno> {
    // SAFETY: PR_GET_DUMPABLE takes no argument and touches no memory of ours.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })
}

/// Has fstatat(2) answer from what this system knows of a file by now, without asking a server for it
/// (`AT_STATX_DONT_SYNC`, which fstatat hands on as statx(2) does, Linux 4.11). Device and inode never change, so for them
/// nothing is lost. The same number on every architecture.
pub(crate) const WITHOUT_SERVER: c_int = 0x4000;

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

/// What a pidfd says of its process by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PidfdInfo {
    pub(crate) pid: u32,
    /// Effective, now, in this process's user namespace.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The number of its cgroup (version 2), where the kernel has cgroups.
    pub(crate) cgroup: Option<u64>,
}

/// `PIDFD_GET_INFO`, Linux 6.13. Errors with ESRCH for a process that has been reaped.
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
    /// mask and cgroup id, 8 bytes each; then pid, tgid, ppid, ruid, rgid, euid, egid and five more, 4 bytes each.
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
    // SAFETY: the number states a struct of 64 bytes, which `info` is, borrowed mutably for this call.
    Errno::result(unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) })?;
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
