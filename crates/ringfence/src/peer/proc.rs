//! Reading what /proc shows of a process.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::read,
};

use crate::error::{self, Error, Result};

/// What the kernel tells of something, or the errno by which it refuses to tell.
pub(crate) type Told<T> = Result<T, Errno>;

/// What the kernel has answered, a refusal to tell included. Errors where this process has run out of descriptors or memory:
/// then the kernel was not asked.
pub(crate) fn answered<T>(what: &str, found: Told<T>) -> Result<Told<T>> {
    match found {
        Err(errno) if error::is_shortage(errno) => Err(Error::system(what, errno)),
        found => Ok(found),
    }
}

/// Reads a whole file of a process's directory in /proc.
pub(crate) fn read_text(directory: &OwnedFd, name: &str) -> Told<String> {
    let file = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut chunk = [0_u8; 1024];
    loop {
        match read(&file, &mut chunk) {
            Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
