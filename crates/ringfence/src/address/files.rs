//! The files of a named address: its directory, its socket, and the lock file next to it.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, lstat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::{
    address::Address,
    error::{Error, Result},
    sys::{self, uninterrupted},
};

/// The identity of a file, independent of its name: device and inode.
pub(super) type Inode = (u64, u64);

/// The directory of a named address, and the file names in it. The directory is held as a descriptor, because
/// its path may later lead to a different one: this process may change its working directory, or the
/// directory may be renamed and replaced.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: OwnedFd,
    pub(super) socket: OsString,
    pub(super) lock: OsString,
}

/// The result of trying to lock an address.
pub(super) enum Lock {
    /// This process has the lock, through this open file.
    Held(Files, OwnedFd),
    /// Another process has the lock.
    Busy,
    /// Unknown: this process may not open the directory, or the lock file in it.
    Forbidden(Errno),
}

impl Lock {
    /// Tries to lock the file next to a path. Creates the file if it is missing. Fails if a lock on that file
    /// would have no meaning.
    pub(super) fn take(address: &Address, path: &Path) -> Result<Self> {
        let files = match Files::of(path) {
            Ok(files) => files,
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => return Ok(Self::Forbidden(errno)),
            Err(errno) => return Err(cannot_open_directory(address, errno)),
        };
        loop {
            let file = match files.open_lock() {
                Ok(file) => file,
                Err(errno @ (Errno::EACCES | Errno::EPERM | Errno::EROFS)) => {
                    return Ok(Self::Forbidden(errno));
                }
                Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                    return Err(cannot_open_directory(address, errno));
                }
                Err(errno @ Errno::ELOOP) => {
                    return Err(address.invalid("its lock file is a symbolic link", Some(errno)));
                }
                Err(errno) => return Err(address.invalid("its lock file cannot be opened", Some(errno))),
            };
            match sys::file::lock_file(&file) {
                Ok(()) => {}
                Err(Errno::EWOULDBLOCK) => return Ok(Self::Busy),
                Err(errno) => return Err(address.invalid("its lock file cannot be locked", Some(errno))),
            }
            let unseen = |errno| address.invalid("its lock file cannot be inspected", Some(errno));
            let stat = uninterrupted(|| fstat(&file)).map_err(unseen)?;
            if !is_kind(&stat, SFlag::S_IFREG) {
                return Err(address.invalid("its lock file is not a regular file", None));
            }
            // The previous holder may have removed the file between our open and our lock. Then this lock
            // protects nothing.
            if files.which(&files.lock).map_err(unseen)? == Some(inode(&stat)) {
                return Ok(Self::Held(files, file));
            }
        }
    }
}

/// Makes the error for a directory that cannot be opened.
pub(super) fn cannot_open_directory(address: &Address, errno: Errno) -> Error {
    let reason = match errno {
        Errno::ENOENT | Errno::ENOTDIR => "its directory does not exist",
        Errno::EISDIR => "it names a directory",
        _ => "its directory cannot be opened",
    };
    let errno = if errno == Errno::ENOTDIR {
        Errno::ENOENT
    } else {
        errno
    };
    address.invalid(reason, Some(errno))
}

impl Files {
    /// Opens the directory. Fails with `EISDIR` if the path has no file name, otherwise with the errno of
    /// open(2).
    pub(super) fn of(path: &Path) -> Result<Self, Errno> {
        let bytes = path.as_os_str().as_bytes();
        let (directory, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
            None => (&b"."[..], bytes),
            Some(at) => (&bytes[..=at], &bytes[at + 1..]),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::EISDIR);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = uninterrupted(|| open(OsStr::from_bytes(directory), flags, Mode::empty()))?;
        let socket = OsStr::from_bytes(name).to_owned();
        let mut lock = socket.clone();
        lock.push(".lock");
        Ok(Self {
            directory,
            socket,
            lock,
        })
    }

    fn open_lock(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        uninterrupted(|| openat(&self.directory, &*self.lock, flags, mode))
    }

    pub(super) fn look_at(&self, name: &OsStr) -> Result<FileStat, Errno> {
        uninterrupted(|| fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    /// Returns the identity of the file with this name, or `None` if there is none. Fails if that is unknown.
    pub(super) fn which(&self, name: &OsStr) -> Result<Option<Inode>, Errno> {
        if_there(self.look_at(name))
    }

    /// Removes the file if its name still leads to `which`.
    pub(super) fn remove(&self, name: &OsStr, which: Inode) -> Result<(), Errno> {
        if self.which(name)? != Some(which) {
            return Ok(());
        }
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

pub(super) fn inode(stat: &FileStat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Does the same as [`Files::which`], for a path.
pub(super) fn which(path: &Path) -> Result<Option<Inode>, Errno> {
    if_there(uninterrupted(|| lstat(path)))
}

fn if_there(looked: Result<FileStat, Errno>) -> Result<Option<Inode>, Errno> {
    match looked {
        Ok(stat) => Ok(Some(inode(&stat))),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_inspected_does_not_count_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::of(&folder.path().join("socket")).unwrap();
        std::fs::write(folder.path().join("socket"), "").unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        let there = files.which(&files.socket).unwrap();
        assert!(there.is_some());
        assert_eq!(which(&folder.path().join("socket")), Ok(there));
        assert_eq!(files.which(&files.lock), Ok(None));
        assert_eq!(which(&folder.path().join("socket/under a file")), Ok(None));
        let long = "x".repeat(300);
        assert_eq!(files.which(OsStr::new(&long)), Err(Errno::ENAMETOOLONG));
        assert_eq!(which(&folder.path().join("circle/socket")), Err(Errno::ELOOP));
        // The file is unknown, so it must not be removed, and that is not a success.
        let removed = files.remove(OsStr::new(&long), there.unwrap());
        assert_eq!(removed, Err(Errno::ENAMETOOLONG));
    }
}
