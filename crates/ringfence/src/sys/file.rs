//! Open files: their flags and locks, and reading of the kernel's text files.

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    libc::{self, c_int},
    sys::stat::Mode,
    unistd::read,
};

use crate::sys::uninterrupted;

/// Reads a whole file in /proc or /sys, named relative to a directory.
///
/// The standard library asks such a file for its size, which is 0, and then reads it in small pieces,
/// starting with 32 bytes. Here nearly every file fits the first read. A short read is not the end, because
/// the kernel may stop wherever one of its buffers ends. Only a read that returns nothing ends the file.
pub(crate) fn read_whole(directory: impl AsFd, name: &str) -> Result<Vec<u8>, Errno> {
    const FIRST: usize = 4096;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = uninterrupted(|| openat(&directory, name, flags, Mode::empty()))?;
    let mut bytes = vec![0; FIRST];
    let mut filled = 0;
    loop {
        match uninterrupted(|| read(&file, &mut bytes[filled..]))? {
            0 => break,
            count => filled += count,
        }
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads a whole file in /proc or /sys, named by its path. Fails with EINVAL if the content is not UTF-8.
pub(crate) fn read_whole_text(path: &str) -> Result<String, Errno> {
    String::from_utf8(read_whole(AT_FDCWD, path)?).map_err(|_| Errno::EINVAL)
}

/// Returns the status flags of an open file (`F_GETFL`), which include its access mode.
pub(crate) fn open_flags(file: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    uninterrupted(|| Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) }))
}

/// Takes an exclusive lock on an open file (flock(2)); succeeds if it already has the lock. Fails with
/// EWOULDBLOCK if another open file has it. nix's guard does not fit: dropping it releases the lock for every
/// process that shares the open file, while closing a descriptor leaves the lock to the others.
pub(crate) fn lock_file(file: impl AsFd) -> Result<(), Errno> {
    uninterrupted(|| {
        // SAFETY: flock takes integers and touches no memory of ours.
        let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        Errno::result(result).map(drop)
    })
}

/// Releases a lock, for all processes that share the open file.
pub(crate) fn unlock_file(file: impl AsFd) {
    // SAFETY: flock takes integers and touches no memory of ours.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// Makes fstatat(2) answer from the attributes that this system has cached, without asking a server
/// (`AT_STATX_DONT_SYNC`, which fstatat passes on as statx(2) does, Linux 4.11). Device and inode never
/// change, so cached values are correct. The number is the same on every architecture.
pub(crate) const WITHOUT_SERVER: c_int = 0x4000;

#[cfg(test)]
mod tests {
    use nix::unistd::{pipe2, write};

    use super::*;

    /// Reads pieces from a packet-mode pipe, where each read returns one piece regardless of the buffer size.
    fn read_in_pieces(pieces: &[&[u8]]) -> Result<String, Errno> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
        for piece in pieces {
            assert_eq!(write(&writer, piece), Ok(piece.len()));
        }
        drop(writer);
        read_whole_text(&format!("/proc/self/fd/{}", reader.as_raw_fd()))
    }

    #[test]
    fn neither_a_short_read_nor_a_full_buffer_is_the_end() {
        // The second piece ends at the initial buffer size, the third at the next one.
        let pieces = [
            vec![b'a'; 1000],
            vec![b'b'; 3096],
            vec![b'c'; 4096],
            vec![b'd'; 3],
        ];
        let all = read_in_pieces(&pieces.each_ref().map(Vec::as_slice)).unwrap();
        assert_eq!(all.into_bytes(), pieces.concat());
        assert_eq!(read_in_pieces(&[]), Ok(String::new()));
    }

    #[test]
    fn a_file_that_is_not_utf8_is_an_error() {
        assert_eq!(read_in_pieces(&[b"NSpid:", b"\xff"]), Err(Errno::EINVAL));
        assert_eq!(read_whole_text("/proc/self/no such file"), Err(Errno::ENOENT));
    }
}
