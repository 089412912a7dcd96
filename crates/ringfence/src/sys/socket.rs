//! Sockets: options, properties of the peer, and the number of unread bytes.

use std::{
    io::{IoSlice, IoSliceMut},
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{self, c_int, c_void},
    poll::PollFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixCredentials, getsockopt, socketpair, sockopt},
};

use crate::{identity::Credentials, sys::uninterrupted};

/// Prepares a socket for receiving frames: with the sender's credentials, and with no other control message
/// except descriptors. Fails only if credentials cannot be enabled.
///
/// The options belong to the socket and not to the descriptor. A line that a peer has passed may have any of
/// them set. An accepted socket inherits those of the listening socket. And a peer that kept a descriptor can
/// set them again at any time. So this function only helps honest peers, and `receive` is correct without it.
pub(crate) fn prepare_socket(socket: impl AsFd) -> Result<(), Errno> {
    prepare_new_socket(&socket)?;
    for (option, value) in DEFAULT_OPTIONS {
        // A kernel ignores an option that it does not know, and `receive` detects an option that stays on.
        let _ = set(&socket, option, value);
    }
    Ok(())
}

/// Does the same for a socket that this process has just made and that no other process has had. All options
/// except the credentials have the right value from creation.
pub(crate) fn prepare_new_socket(socket: impl AsFd) -> Result<(), Errno> {
    set(socket, libc::SO_PASSCRED, 1)
}

/// The numbers are the same on every architecture that we build for (asm-generic/socket.h); libc does not
/// define them everywhere. Linux 6.16, 6.5, 6.17, 6.14, 5.19.
const SO_PASSRIGHTS: c_int = 83;
const SO_PASSPIDFD: c_int = 76;
const SO_INQ: c_int = 84;
const SO_RCVPRIORITY: c_int = 82;
const SO_RCVMARK: c_int = 75;

/// The options that add control messages or move the start of a read, with the values of a new socket.
const DEFAULT_OPTIONS: [(c_int, c_int); 11] = [
    (SO_PASSRIGHTS, 1),
    (SO_PASSPIDFD, 0),
    (libc::SO_PASSSEC, 0),
    (SO_INQ, 0),
    // Turning this off turns off SO_TIMESTAMPNS too.
    (libc::SO_TIMESTAMP, 0),
    (libc::SO_TIMESTAMPING, 0),
    (libc::SO_RXQ_OVFL, 0),
    (libc::SO_WIFI_STATUS, 0),
    (SO_RCVPRIORITY, 0),
    (SO_RCVMARK, 0),
    (libc::SO_PEEK_OFF, -1),
];

fn set(socket: impl AsFd, option: c_int, value: c_int) -> Result<(), Errno> {
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
}

/// Makes the kernel refuse descriptors that the peer sends to this socket, if the kernel can (Linux 6.16).
pub(crate) fn refuse_descriptors(socket: impl AsFd) {
    // Without it, a receiver that reads no descriptors drops them.
    let _ = set(socket, SO_PASSRIGHTS, 0);
}

/// For poll(2): the peer has closed its sending direction, or the socket is shut for reading (`POLLRDHUP`).
/// `POLLHUP`, the end of both directions, is reported without being requested.
pub(crate) const HUNG_UP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// Returns the number of bytes that wait in a socket (`FIONREAD`).
pub(crate) fn unread(socket: impl AsFd) -> Result<usize, Errno> {
    count(socket, libc::FIONREAD)
}

/// Returns the bytes of memory of what was sent and the peer has not received (`SIOCOUTQ`).
pub(crate) fn unreceived(socket: impl AsFd) -> Result<usize, Errno> {
    count(socket, libc::TIOCOUTQ)
}

fn count(socket: impl AsFd, request: libc::Ioctl) -> Result<usize, Errno> {
    let mut count: c_int = 0;
    // SAFETY: both requests have the kernel write one int, to a local.
    Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sends bytes without blocking and without SIGPIPE. The mode of the socket does not matter, which the peer
/// could change. Sandboxes that deny sendto(2) allow sendmsg(2).
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    let slice = IoSlice::new(bytes);
    // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = (&raw const slice).cast_mut().cast();
    header.msg_iovlen = 1;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points at one iovec (std guarantees that IoSlice has that layout) over bytes that the
    // kernel only reads.
    let count = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    Errno::result(count).map(isize::cast_unsigned)
}

/// Receives bytes without blocking, whatever the mode of the socket.
pub(crate) fn receive_bytes(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    receive_bytes_with(socket, buffer, libc::MSG_DONTWAIT)
}

/// Receives bytes, and blocks until there are some if the socket is in blocking mode.
pub(crate) fn wait_for_bytes(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    receive_bytes_with(socket, buffer, 0)
}

/// The kernel drops descriptors that a hostile peer attaches, and installs none, because there is no room for
/// them.
fn receive_bytes_with(socket: impl AsFd, buffer: &mut [u8], flags: c_int) -> Result<usize, Errno> {
    let mut slice = IoSliceMut::new(buffer);
    // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = (&raw mut slice).cast();
    header.msg_iovlen = 1;
    // SAFETY: the header points at one iovec over a buffer that is mutably borrowed for this call (std
    // guarantees that IoSliceMut has that layout), and at no control buffer.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    Errno::result(count).map(isize::cast_unsigned)
}

/// Whether this process may call shutdown(2), which some sandboxes deny. The call has no effect, because no
/// direction has this number.
pub(crate) fn may_shut_down(socket: impl AsFd) -> bool {
    const NO_DIRECTION: c_int = 3;
    // SAFETY: shutdown takes integers and touches no memory of ours.
    let result = unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), NO_DIRECTION) };
    Errno::result(result) == Err(Errno::EINVAL)
}

/// Ends a line for a process that may not call shutdown(2): puts a socket whose other end is closed in its
/// place. Threads and event loops that already sleep on the line do not notice.
pub(crate) fn replace_with_dead_end(line: &OwnedFd) -> Result<(), Errno> {
    let (dead_end, other) = new_line()?;
    drop(other);
    let (new, old) = (dead_end.as_raw_fd(), line.as_raw_fd());
    // SAFETY: dup3 takes integers. The number stays that of an open descriptor, and its owner stays the same.
    Errno::result(unsafe { libc::dup3(new, old, libc::O_CLOEXEC) }).map(drop)
}

/// Returns the credentials of the process at the other end (`SO_PEERCRED`).
pub(crate) fn peer_credentials(socket: &impl AsFd) -> Result<Credentials, Errno> {
    let found = uninterrupted(|| getsockopt(socket, sockopt::PeerCredentials))?;
    let (pid, uid, gid) = (found.pid(), found.uid(), found.gid());
    Ok(Credentials { pid, uid, gid })
}

/// Makes a private line. Its ends do not block.
pub(crate) fn new_line() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
}

/// Reads a socket option of unknown size: the peer's supplementary groups (`SO_PEERGROUPS`, Linux 4.13) or
/// its security label (`SO_PEERSEC`).
fn variable_option(socket: impl AsFd, option: c_int) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0_u8; 512];
    loop {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::ERANGE)?;
        // SAFETY: the buffer has `length` bytes, and the kernel writes no more.
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
            // The kernel returns the length that it needs.
            Err(Errno::ERANGE) if buffer.len() < length as usize => buffer.resize(length as usize, 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                buffer.truncate(length as usize);
                return Ok(buffer);
            }
        }
    }
}

/// Returns the supplementary groups that the peer had when it connected or listened (`SO_PEERGROUPS`).
pub(crate) fn peer_groups(socket: impl AsFd) -> Result<Vec<u32>, Errno> {
    /// The number is the same on every architecture that we build for; libc does not define it everywhere.
    const SO_PEERGROUPS: c_int = 59;
    let bytes = variable_option(socket, SO_PEERGROUPS)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

/// Returns the peer's security label (`SO_PEERSEC`), without its terminating NUL.
pub(crate) fn peer_label(socket: impl AsFd) -> Result<String, Errno> {
    let bytes = variable_option(socket, libc::SO_PEERSEC)?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The result of one `recvmsg`.
pub(crate) struct Received {
    /// The number of bytes written into the buffer. 0 is the end of the stream.
    pub(crate) bytes: usize,
    pub(crate) credentials: Option<Credentials>,
    /// Every descriptor that the sender passed, expected or not. Dropping them closes them.
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) control: ControlStatus,
}

/// The kind of control messages that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlStatus {
    /// At most credentials and descriptors.
    Expected,
    /// A message that this side has not requested. Any descriptor that it installed is already closed.
    Unexpected { level: c_int, kind: c_int },
    /// `MSG_CTRUNC`: the kernel could not deliver all of them.
    Truncated,
    /// `MSG_CTRUNC`, though the buffer had room for one more descriptor. So this process could not receive
    /// it, because no descriptor number was free (net/core/scm.c: `scm_detach_fds` sets the flag for either
    /// reason). That is not the sender's fault. Trying to open something now would not prove it: another
    /// thread may have closed a descriptor in the meantime.
    Short,
}

/// Returns the credentials for this process's messages: the effective ids, as `SO_PEERCRED` shows them. The
/// kernel lets a process name its own pid and any of its real, effective and saved ids (unix(7)).
pub(crate) fn effective_credentials() -> UnixCredentials {
    UnixCredentials::from(libc::ucred {
        pid: nix::unistd::getpid().as_raw(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    })
}

/// Room for credentials, for the most descriptors that the kernel passes at once (253), and for messages that the peer may have enabled
/// on a socket that it also holds, so that they are recognized. A descriptor without room would be closed within the call, which may
/// block.
const CONTROL: usize = 1280;

/// Room for credentials (three numbers of 4 bytes), and for nothing beside them.
// SAFETY: CMSG_SPACE only calculates.
const CREDENTIALS_CONTROL: usize = unsafe { libc::CMSG_SPACE(12) } as usize;
const _: () = assert!(size_of::<libc::ucred>() == 12);

#[repr(align(8))]
struct ControlBuffer([u8; CONTROL]);

/// Takes ownership of the descriptors in a control message. The kernel has already installed them, so nothing
/// else owns them. A descriptor that the kernel could not install has a negative number (`SCM_PIDFD`) and is
/// skipped.
///
/// # Safety
///
/// The kernel has just written `size` bytes at `data`: the numbers of descriptors that it has installed for
/// this call.
unsafe fn own_descriptors(data: *const u8, size: usize) -> impl Iterator<Item = OwnedFd> {
    (0..size / size_of::<c_int>()).filter_map(move |index| {
        // SAFETY: the caller guarantees that the number lies within the data. Bytes need no alignment.
        let number = unsafe { data.add(index * size_of::<c_int>()).cast::<[u8; 4]>().read() };
        let number = c_int::from_ne_bytes(number);
        // SAFETY: the caller guarantees that the descriptor was installed for this call, and nothing else
        // owns it.
        (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
    })
}

/// Receives into `buffer` without blocking. nix's `recvmsg` fails if the control data was truncated, and then
/// the caller cannot close the descriptors that were installed. Hence this function.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    receive_with(socket, buffer, CONTROL, 0)
}

/// Does the same as [`receive`] without consuming the data: descriptors arrive as copies (`MSG_PEEK`,
/// unix(7)).
pub(crate) fn peek(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    receive_with(socket, buffer, CONTROL, libc::MSG_PEEK)
}

/// Does the same as [`peek`], with room for this number of descriptors, at most 253. If more are there, the status is not
/// [`ControlStatus::Expected`]. A peer that turns off the credentials of this socket gets a few more installed.
pub(crate) fn peek_with_descriptors(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: usize,
) -> Result<Received, Errno> {
    let bytes = u32::try_from(descriptors * size_of::<c_int>()).map_err(|_| Errno::E2BIG)?;
    let space = match bytes {
        0 => 0,
        // SAFETY: CMSG_SPACE only calculates.
        bytes => unsafe { libc::CMSG_SPACE(bytes) as usize },
    };
    receive_with(socket, buffer, CREDENTIALS_CONTROL + space, libc::MSG_PEEK)
}

fn receive_with(socket: impl AsFd, buffer: &mut [u8], room: usize, more: c_int) -> Result<Received, Errno> {
    let mut control = ControlBuffer([0; CONTROL]);
    let room = room.min(CONTROL);
    let mut slice = IoSliceMut::new(buffer);
    // SAFETY: all-zero bytes are a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = (&raw mut slice).cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = room as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_NOSIGNAL | more;
    let count = uninterrupted(|| {
        // SAFETY: the header points at one iovec over a buffer that is mutably borrowed for this call (std
        // guarantees that IoSliceMut has that layout), and at a control buffer of the stated length.
        Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) })
    })?;
    // A descriptor number has 4 bytes.
    // SAFETY: CMSG_SPACE only calculates.
    let one_more = unsafe { libc::CMSG_SPACE(4) } as usize;
    let mut received = Received {
        bytes: count.cast_unsigned(),
        credentials: None,
        descriptors: Vec::new(),
        control: if header.msg_flags & libc::MSG_CTRUNC == 0 {
            ControlStatus::Expected
        } else if header.msg_controllen as usize + one_more <= room {
            ControlStatus::Short
        } else {
            ControlStatus::Truncated
        },
    };
    // SAFETY: the kernel has just filled the buffer that the header points at, and set msg_controllen to the
    // number of bytes that it wrote.
    unsafe { read_control_messages(&header, &mut received) };
    Ok(received)
}

/// Processes the control messages of one `recvmsg`. Every descriptor that they installed has an owner when
/// this returns.
///
/// # Safety
///
/// The header points at a control buffer, aligned for its messages, which `recvmsg` has just filled, and
/// states the number of bytes written there. This is called once per `recvmsg`, because it takes ownership of
/// the installed descriptors.
unsafe fn read_control_messages(header: &libc::msghdr, received: &mut Received) {
    /// Linux 6.5. The number is the same on every architecture; libc does not define it everywhere.
    const SCM_PIDFD: c_int = 4;
    // SAFETY: the caller guarantees that the kernel has filled the buffer and stated the length.
    let mut cursor = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !cursor.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a pointer to a whole header inside the control
        // buffer, which is aligned for it.
        let (level, kind, length) = unsafe {
            (
                (*cursor).cmsg_level,
                (*cursor).cmsg_type,
                (*cursor).cmsg_len as usize,
            )
        };
        // SAFETY: as above; the data follows the header inside the buffer.
        let data = unsafe { libc::CMSG_DATA(cursor) };
        // SAFETY: CMSG_LEN only calculates.
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
                    // The only other message that installs a descriptor, which is closed here.
                    // SAFETY: the kernel wrote the number of one descriptor at `data` in this call.
                    unsafe { own_descriptors(data, size) }.for_each(drop);
                }
                received.control = ControlStatus::Unexpected { level, kind };
            }
        }
        // SAFETY: header and cursor belong to this buffer.
        cursor = unsafe { libc::CMSG_NXTHDR(header, cursor) };
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    fn get(socket: impl AsFd, option: c_int) -> Result<c_int, Errno> {
        let mut value: c_int = 0;
        let mut length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap();
        // SAFETY: the kernel writes at most one int, to a local variable.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw mut value).cast::<c_void>(),
                &raw mut length,
            )
        };
        Errno::result(result).map(|_| value)
    }

    /// The assumption of [`prepare_new_socket`]. On a kernel where this fails, each socket needs
    /// [`prepare_socket`].
    #[test]
    fn new_socket_has_reset_options_except_credentials() {
        let new = || {
            socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap()
        };
        let (one, other) = new_line().unwrap();
        for socket in [new(), one, other] {
            for (option, value) in DEFAULT_OPTIONS {
                match get(&socket, option) {
                    Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
                    found => assert_eq!(found, Ok(value), "option {option}"),
                }
            }
            assert_eq!(get(&socket, libc::SO_PASSCRED), Ok(0));
            prepare_new_socket(&socket).unwrap();
            assert_eq!(get(&socket, libc::SO_PASSCRED), Ok(1));
        }
    }

    #[test]
    fn prepare_socket_resets_options() {
        let (line, _other) = new_line().unwrap();
        let known: Vec<_> = DEFAULT_OPTIONS
            .into_iter()
            .filter(|(option, value)| set(&line, *option, i32::from(*value == 0)).is_ok())
            // Some options can be set but not read.
            .filter(|(option, value)| get(&line, *option).is_ok_and(|found| found != *value))
            .collect();
        assert!(known.len() >= 3, "{known:?}");
        prepare_socket(&line).unwrap();
        for (option, value) in known {
            assert_eq!(get(&line, option), Ok(value), "option {option}");
        }
    }
}
