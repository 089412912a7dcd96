//! A socket: its options, what its peer is, and what waits in it.

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    libc::{self, c_int, c_void},
    poll::PollFlags,
};

/// Puts a socket into the state in which frames are received from it: with the sender's credentials, and with no other
/// control message than descriptors. Errors only where the credentials are not to be had.
///
/// The options belong to the socket and not to the descriptor. A line that a peer has passed may have any of them set, an
/// accepted socket has those of the listening one, and a peer that kept a descriptor can set them again at any time. So this
/// keeps them away from an honest channel, and `receive` is right without it.
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
            Err(Errno::EINTR) => {}
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
