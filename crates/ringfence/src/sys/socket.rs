//! Sockets: options, properties of the peer, and the number of unread bytes.

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    libc::{self, c_int, c_void},
    poll::PollFlags,
};

/// Prepares a socket for receiving frames: with the sender's credentials, and with no other control message
/// except descriptors. Fails only if credentials cannot be enabled.
///
/// The options belong to the socket and not to the descriptor. A line that a peer has passed may have any of
/// them set. An accepted socket inherits those of the listening socket. And a peer that kept a descriptor can
/// set them again at any time. So this function only helps honest peers, and `receive` is correct without it.
pub(crate) fn settle_line(socket: impl AsFd) -> Result<(), Errno> {
    settle_new_line(&socket)?;
    for (option, value) in AT_BIRTH {
        // A kernel ignores an option that it does not know, and `receive` detects an option that stays on.
        let _ = set(&socket, option, value);
    }
    Ok(())
}

/// Does the same for a socket that this process has just made and that no other process has had. All options
/// except the credentials have the right value from creation.
pub(crate) fn settle_new_line(socket: impl AsFd) -> Result<(), Errno> {
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
const AT_BIRTH: [(c_int, c_int); 11] = [
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

/// For poll(2): the peer has closed its sending direction, or the socket is shut for reading (`POLLRDHUP`).
/// `POLLHUP`, the end of both directions, is reported without being requested.
pub(crate) const HUNG_UP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// Returns the number of bytes that wait in a socket (`FIONREAD`).
pub(crate) fn unread(socket: impl AsFd) -> Result<usize, Errno> {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes one int, to a local.
    Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

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

    /// The assumption of [`settle_new_line`]. On a kernel where this fails, each socket needs
    /// [`settle_line`].
    #[test]
    fn a_new_socket_has_the_options_of_a_settled_one_except_credentials() {
        let new = || {
            socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap()
        };
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        for socket in [new(), one, other] {
            for (option, value) in AT_BIRTH {
                match get(&socket, option) {
                    Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {}
                    found => assert_eq!(found, Ok(value), "option {option}"),
                }
            }
            assert_eq!(get(&socket, libc::SO_PASSCRED), Ok(0));
            settle_new_line(&socket).unwrap();
            assert_eq!(get(&socket, libc::SO_PASSCRED), Ok(1));
        }
    }

    #[test]
    fn settling_a_line_resets_its_options() {
        let (line, _other) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let known: Vec<_> = AT_BIRTH
            .into_iter()
            .filter(|(option, value)| set(&line, *option, i32::from(*value == 0)).is_ok())
            // Some options can be set but not read.
            .filter(|(option, value)| get(&line, *option).is_ok_and(|found| found != *value))
            .collect();
        assert!(known.len() >= 3, "{known:?}");
        settle_line(&line).unwrap();
        for (option, value) in known {
            assert_eq!(get(&line, option), Ok(value), "option {option}");
        }
    }
}
