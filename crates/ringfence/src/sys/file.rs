//! Open files: their locks and leases, and reading of the kernel's text files.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd},
    str::FromStr,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    libc::{self, c_int},
    sys::stat::{Mode, SFlag},
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

/// Returns what follows a name at the start of a line in one of the kernel's text files.
pub(crate) fn value_in<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// Returns the numbers in such a line, between blanks.
pub(crate) fn numbers_in<T: FromStr>(text: &str, name: &str) -> Option<Vec<T>> {
    let numbers = value_in(text, name)?.split_whitespace();
    numbers.map(|number| number.parse().ok()).collect()
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

/// Returns the kind, the device and the inode of an open file. Never waits for a server. Not with fstatat: since Linux 6.13 it
/// ignores [`WITHOUT_SERVER`] if the path is empty.
pub(crate) fn identify(file: impl AsFd) -> Result<(SFlag, (u64, u64)), Errno> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (number, flags) = (file.as_fd().as_raw_fd(), libc::AT_EMPTY_PATH | WITHOUT_SERVER);
    let wanted = libc::STATX_TYPE | libc::STATX_INO;
    // SAFETY: the kernel reads an empty path, and writes one `statx` at most.
    let result = uninterrupted(|| unsafe {
        Errno::result(libc::syscall(
            libc::SYS_statx,
            number,
            c"".as_ptr(),
            flags,
            wanted,
            found.as_mut_ptr(),
        ))
    });
    result?;
    // SAFETY: it consists of integers, so that zeros are valid.
    let found = unsafe { found.assume_init() };
    let kind = SFlag::from_bits_truncate(u32::from(found.stx_mode) & SFlag::S_IFMT.bits());
    let device = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
    Ok((kind, (device, found.stx_ino)))
}

/// Returns the kind of an open file. Never waits for a server.
pub fn file_type(file: impl AsFd) -> Result<SFlag, Errno> {
    identify(file).map(|(kind, _)| kind)
}

/// `F_SETSIG` of fcntl(2), which libc does not define everywhere.
const F_SETSIG: c_int = 10;

/// `F_WRLCK`, whose type differs between C libraries.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const WRITE_LEASE: i16 = libc::F_WRLCK as i16;

/// Takes a write lease (fcntl(2), `F_SETLEASE`). The kernel grants it only while no other process has the
/// file open. Breaking the lease must send no signal, because the default, SIGIO, would terminate the
/// process. The kernel makes the caller the signal's recipient, and that can be changed only afterwards.
/// Until then breaking the lease sends SIGURG, which is ignored by default.
pub(crate) fn acquire_lease(file: impl AsFd) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    // SAFETY: F_SETOWN takes an integer and touches no memory of ours. 0 means no recipient.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETOWN, 0) })?;
    Ok(())
}

/// Takes a write lease like [`acquire_lease`], and makes the kernel send a realtime signal to one thread of this
/// process when another process opens the file. Because the signal is directed at a thread (`F_OWNER_TID`),
/// it does not matter what other threads block.
pub(crate) fn acquire_watched_lease(
    file: impl AsFd,
    thread: libc::pid_t,
    signal: c_int,
) -> Result<(), Errno> {
    /// `F_SETOWN_EX` of fcntl(2), Linux 2.6.32, which libc does not define everywhere.
    const F_SETOWN_EX: c_int = 15;
    #[repr(C)]
    struct Owner {
        /// 0 means a thread, `F_OWNER_TID`.
        kind: c_int,
        thread: libc::pid_t,
    }
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, signal) })?;
    let owner = Owner { kind: 0, thread };
    // SAFETY: the kernel reads one f_owner_ex, and `owner` has its layout.
    Errno::result(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // The recipient is set already, so F_SETLEASE does not change it.
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, c_int::from(WRITE_LEASE)) })?;
    Ok(())
}

/// Whether this open file description has a write lease (`F_GETLEASE`).
pub(crate) fn has_write_lease(file: impl AsFd) -> Result<bool, Errno> {
    let number = file.as_fd().as_raw_fd();
    // SAFETY: F_GETLEASE takes no argument and touches no memory of ours.
    let kind = uninterrupted(|| Errno::result(unsafe { libc::fcntl(number, libc::F_GETLEASE) }))?;
    Ok(kind == c_int::from(WRITE_LEASE))
}

/// One line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The directory of the filesystem that lies at the mount point.
    pub(crate) root: String,
    pub(crate) point: String,
    /// The type of the filesystem.
    pub(crate) kind: String,
    /// Options of the filesystem, separated by commas.
    pub(crate) options: String,
}

pub(crate) const MOUNTS: &str = "/proc/self/mountinfo";

/// The cgroup hierarchies among the mounts in the text of [`MOUNTS`].
pub(crate) fn cgroup_mounts_in(text: &str) -> impl Iterator<Item = Mount> {
    text.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next().filter(|kind| kind.starts_with("cgroup"))?;
        let mut mount = mount.split(' ').skip(3).map(unescape);
        Some(Mount {
            root: mount.next()?,
            point: mount.next()?,
            kind: kind.to_owned(),
            options: filesystem.nth(1)?.to_owned(),
        })
    })
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, character)| {
            text.replace(code, character)
        })
}

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
    fn short_reads_and_full_buffers_are_not_the_end() {
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
    fn non_utf8_file_is_an_error() {
        assert_eq!(read_in_pieces(&[b"NSpid:", b"\xff"]), Err(Errno::EINVAL));
        assert_eq!(read_whole_text("/proc/self/no such file"), Err(Errno::ENOENT));
    }

    #[test]
    fn mountinfo_line_is_parsed_by_position() {
        let text = "29 23 0:26 /a\\040b /mnt/c\\134d rw,nosuid shared:4 - cgroup2 cgroup2 rw\n\
                30 23 0:27 / /mnt rw - cgroup cgroup rw,cpu,memory\n\
                32 23 0:28 / /tmp rw - tmpfs tmpfs rw\n\
                31 23 0:27 / /mnt rw\n";
        let mount = |root: &str, point: &str, kind: &str, options: &str| Mount {
            root: root.into(),
            point: point.into(),
            kind: kind.into(),
            options: options.into(),
        };
        assert_eq!(
            cgroup_mounts_in(text).collect::<Vec<_>>(),
            [
                mount("/a b", "/mnt/c\\d", "cgroup2", "rw"),
                mount("/", "/mnt", "cgroup", "rw,cpu,memory"),
            ]
        );
    }
}
