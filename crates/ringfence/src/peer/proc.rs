//! Reading what /proc shows of a process.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::read,
};

use crate::error::{self, Error, Result};

/// What the kernel has answered, a refusal to tell included. Errors where it was not asked, since this process has run out
/// of descriptors or memory.
pub(crate) fn answered<T>(what: &str, found: Result<T, Errno>) -> Result<Result<T, Errno>> {
    match found {
        Err(errno) if error::is_shortage(errno) => Err(Error::system(what, errno)),
        found => Ok(found),
    }
}

pub(crate) fn read_text(directory: &OwnedFd, name: &str) -> Result<String, Errno> {
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
