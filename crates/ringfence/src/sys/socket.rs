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
    settle_new_line(&socket)?;
    for (option, value) in AT_BIRTH {
        // What a kernel does not know it does not do, and what stays on is found by `receive`.
        let _ = set(&socket, option, value);
    }
    Ok(())
}

/// The same for a socket that this process has just made, and that no other has had: all but the credentials is so from birth.
pub(crate) fn settle_new_line(socket: impl AsFd) -> Result<(), Errno> {
    set(socket, libc::SO_PASSCRED, 1)
}

/// The same numbers on every architecture that we build for (asm-generic/socket.h); libc does not name them
/// everywhere. Linux 6.16, 6.5, 6.17, 6.14, 5.19.
const SO_PASSRIGHTS: c_int = 83;
const SO_PASSPIDFD: c_int = 76;
const SO_INQ: c_int = 84;
const SO_RCVPRIORITY: c_int = 82;
const SO_RCVMARK: c_int = 75;

/// What says which control messages come beside descriptors and credentials, and where a read begins, as a new socket has it.
const AT_BIRTH: [(c_int, c_int); 11] = [
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

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    use super::*;

    fn get(socket: impl AsFd, option: c_int) -> Result<c_int, Errno> {
        let mut value: c_int = 0;
        let mut length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap();
        // SAFETY: the kernel writes one int at most, to a local.
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

    /// What [`settle_new_line`] leaves alone. On a kernel where this fails, each socket must be settled in full.
    #[test]
    fn a_new_socket_has_what_a_settled_one_has_but_for_the_credentials() {
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
    fn what_was_set_before_is_put_back() {
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
            // Some can be set and not be asked for.
            .filter(|(option, value)| get(&line, *option).is_ok_and(|found| found != *value))
            .collect();
        assert!(known.len() >= 3, "{known:?}");
        settle_line(&line).unwrap();
        for (option, value) in known {
            assert_eq!(get(&line, option), Ok(value), "option {option}");
        }
    }
}
