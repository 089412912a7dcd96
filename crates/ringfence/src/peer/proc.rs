//! Reads a process's files in /proc.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::{
    error::{self, Error, Result},
    sys,
};

/// A value that the kernel returned, or the errno with which it refused.
pub(crate) type Told<T> = Result<T, Errno>;

/// Passes on the kernel's answer, including a refusal. Fails if this process has run out of descriptors or
/// memory, because then the kernel was never asked.
pub(crate) fn answered<T>(what: &str, found: Told<T>) -> Result<Told<T>> {
    match found {
        Err(errno) if error::is_shortage(errno) => Err(Error::system(what, errno)),
        found => Ok(found),
    }
}

/// Reads a whole file of a process's directory in /proc. Bytes that are not UTF-8 are replaced, because a
/// process can put any bytes into its name.
pub(crate) fn read_text(directory: &OwnedFd, name: &str) -> Told<String> {
    let bytes = sys::file::read_whole(directory, name)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_shortage_is_an_error_and_not_an_answer() {
        assert_eq!(answered("a lookup", Ok(7)).unwrap(), Ok(7));
        assert_eq!(
            answered::<()>("a lookup", Err(Errno::EACCES)).unwrap(),
            Err(Errno::EACCES)
        );
        for shortage in [Errno::EMFILE, Errno::ENOMEM] {
            assert_eq!(
                answered::<()>("a lookup", Err(shortage)).unwrap_err().code(),
                "NO_SPACE"
            );
        }
    }
}
