//! Reading what /proc shows of a process.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::{
    error::{self, Error, Result},
    sys,
};

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

/// Reads a whole file of a process's directory in /proc. The process may have put anything into its name: what is no UTF-8 there is
/// replaced.
pub(crate) fn read_text(directory: &OwnedFd, name: &str) -> Told<String> {
    let bytes = sys::file::read_whole(directory, name)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_lacks_is_an_error_of_its_own_and_no_answer() {
        assert_eq!(answered("a look", Ok(7)).unwrap(), Ok(7));
        assert_eq!(
            answered::<()>("a look", Err(Errno::EACCES)).unwrap(),
            Err(Errno::EACCES)
        );
        for shortage in [Errno::EMFILE, Errno::ENOMEM] {
            assert_eq!(
                answered::<()>("a look", Err(shortage)).unwrap_err().code(),
                "NO_SPACE"
            );
        }
    }
}
