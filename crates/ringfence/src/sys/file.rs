//! Open files: how they were opened, and who has them locked. And the files in which the kernel tells something, read whole.

use std::os::fd::{AsFd, AsRawFd};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    libc::{self, c_int},
    sys::stat::Mode,
    unistd::read,
};

use crate::sys::uninterrupted;

/// Reads a whole file in /proc or /sys, named from a directory.
///
/// The standard library asks such a file for its size, which is 0, and then reads it in pieces that begin with 32 bytes. Nearly all
/// that is read here fits the first piece. A read that brings less than there was room for is no end: the kernel may stop wherever
/// one of its buffers ends. So only a read that brings nothing ends the file.
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

/// Reads a whole file in /proc or /sys, named by its path. What is no UTF-8 is no text (EINVAL).
pub(crate) fn read_whole_text(path: &str) -> Result<String, Errno> {
    String::from_utf8(read_whole(AT_FDCWD, path)?).map_err(|_| Errno::EINVAL)
}

/// Whether the descriptor was opened for reading and writing (`F_GETFL`).
pub(crate) fn open_flags(file: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    uninterrupted(|| Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) }))
}

/// Takes an exclusive lock on an open file (flock(2)), or finds that it has it already. Errors with EWOULDBLOCK where
/// another open file has it. Not nix's guard: that gives the lock back when it is dropped, for every process that shares
/// the open file, while closing a descriptor leaves it to the others.
pub(crate) fn lock_file(file: impl AsFd) -> Result<(), Errno> {
    uninterrupted(|| {
        // SAFETY: flock takes integers and touches no memory of ours.
        let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        Errno::result(result).map(drop)
    })
}

/// Gives a lock back, for all processes that share the open file.
pub(crate) fn unlock_file(file: impl AsFd) {
    // SAFETY: flock takes integers and touches no memory of ours. It has no reason to fail on a file that was locked.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// Has fstatat(2) answer from what this system knows of a file by now, without asking a server for it
/// (`AT_STATX_DONT_SYNC`, which fstatat hands on as statx(2) does, Linux 4.11). Device and inode never change, so for them
/// nothing is lost. The same number on every architecture.
pub(crate) const WITHOUT_SERVER: c_int = 0x4000;

#[cfg(test)]
mod tests {
    use nix::unistd::{pipe2, write};

    use super::*;

    /// A read of such a pipe brings one of the pieces, however much room there is.
    fn read_in_pieces(pieces: &[&[u8]]) -> Result<String, Errno> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
        for piece in pieces {
            assert_eq!(write(&writer, piece), Ok(piece.len()));
        }
        drop(writer);
        read_whole_text(&format!("/proc/self/fd/{}", reader.as_raw_fd()))
    }

    #[test]
    fn a_short_read_is_not_the_end_and_what_fills_the_room_is_not_either() {
        // The second fills the room that there is at first, the third what there is then.
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
    fn what_is_no_text_is_an_error() {
        assert_eq!(read_in_pieces(&[b"NSpid:", b"\xff"]), Err(Errno::EINVAL));
        assert_eq!(read_whole_text("/proc/self/no such file"), Err(Errno::ENOENT));
    }
}
