//! What one read of a socket brings beside its bytes: the sender's credentials, and descriptors.

use std::{
    io::IoSliceMut,
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{self, c_int},
    sys::socket::UnixCredentials,
};

use crate::{identity::Credentials, sys::uninterrupted};

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
    let mut control = ControlBuffer([0; CONTROL]);
    let mut slice = IoSliceMut::new(buffer);
    // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = (&raw mut slice).cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_NOSIGNAL | more;
    let count = uninterrupted(|| {
        // SAFETY: the header points at one iovec (IoSliceMut has its layout, as std promises) over a buffer
        // borrowed mutably for this call, and at a control buffer of the length that it states.
        Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) })
    })?;
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
    // SAFETY: the kernel has just filled the buffer that the header points at, and set msg_controllen to what it wrote there.
    unsafe { take_control(&header, &mut received) };
    Ok(received)
}

/// Takes what the control messages of one `recvmsg` brought. What they installed has an owner when this returns.
///
/// # Safety
///
/// The header points at a control buffer, aligned for its messages, which `recvmsg` has just filled, and states how much it wrote
/// there. This is called once for each call of it: what descriptors it installed are owned here.
unsafe fn take_control(header: &libc::msghdr, received: &mut Received) {
    /// Linux 6.5, and the same number everywhere; libc does not name it everywhere.
    const SCM_PIDFD: c_int = 4;
    // SAFETY: as the caller promises, the kernel has filled the buffer and said how far.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(header) };
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
        cursor = unsafe { libc::CMSG_NXTHDR(header, cursor) };
    }
}
