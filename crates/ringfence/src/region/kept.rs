//! A descriptor that this process keeps where no path leads to it: in flight, in a socket of its own.
//!
//! A publisher passes its ring to each new subscriber as long as it accepts any. If the descriptor were in
//! the table, every process of the same user could open it again through `/proc/PID/fd`. A descriptor that
//! was sent on a socket and not received is in no table, and a socket cannot be opened through /proc.
//!
//! recvmsg(2) with `MSG_PEEK` installs a copy and leaves the message in the queue. Receiving it and sending
//! it back could lose it, if no descriptor is available in between.

use std::{
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
};

use crate::{
    error::{Error, Result},
    fork::Withheld,
    sys::{self, ancillary::Control, uninterrupted},
};

/// The kept descriptor. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct KeptDescriptor {
    /// Its queue holds one message, which is never received. No other end is open. A forked child closes its
    /// copy.
    socket: Withheld,
}

impl KeptDescriptor {
    /// Keeps a copy of a descriptor, which counts against the user's limit of descriptors in flight
    /// (unix(7)).
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if that limit is reached, or if no descriptor is available for the socket.
    pub(crate) fn keep(descriptor: impl AsFd) -> Result<Self> {
        const WHAT: &str = "keeping a descriptor for new subscribers";
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (sending, receiving) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags)
            .map_err(|errno| Error::system(WHAT, errno))?;
        let (sending, socket) = (Withheld::new(sending)?, Withheld::new(receiving)?);
        let raw = [descriptor.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&raw)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        uninterrupted(|| sendmsg::<()>(sending.as_raw_fd(), &[IoSlice::new(&[1])], &control, flags, None))
            .map_err(|errno| Error::system(WHAT, errno))?;
        // The message stays in the queue although its sender is closed.
        drop(sending);
        Ok(Self { socket })
    }

    /// Returns a copy, which is in this process's table until it is dropped. Fails with [`Error::NoSpace`] if
    /// no descriptor is available now; a later call may succeed.
    pub(crate) fn copy(&self) -> Result<OwnedFd> {
        const WHAT: &str = "a copy of the descriptor that is kept for new subscribers";
        let mut byte = [0];
        let received =
            sys::ancillary::peek(&*self.socket, &mut byte).map_err(|errno| Error::system(WHAT, errno))?;
        let mut descriptors = received.descriptors;
        match (received.control, descriptors.pop()) {
            (Control::Expected, Some(copy)) => Ok(copy),
            (Control::Short, _) => Err(Error::system(WHAT, Errno::EMFILE)),
            // No other message was ever sent there.
            _ => Err(Error::system(WHAT, Errno::EBADMSG)),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        sys::{
            memfd::{MFdFlags, memfd_create},
            resource::{Resource, getrlimit, setrlimit},
            stat::fstat,
        },
    };

    use super::*;

    fn object() -> OwnedFd {
        memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap()
    }

    /// Whether any descriptor of this process refers to that file.
    fn is_open(inode: u64) -> bool {
        std::fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
            let path = entry.unwrap().path();
            std::fs::metadata(path).is_ok_and(|found| std::os::unix::fs::MetadataExt::ino(&found) == inode)
        })
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn a_kept_descriptor_is_in_no_table_and_can_be_copied_repeatedly() {
        let object = object();
        let inode = fstat(&object).unwrap().st_ino;
        let kept = KeptDescriptor::keep(&object).unwrap();
        drop(object);
        let flags = fcntl(&kept.socket, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        for _ in 0..3 {
            assert!(!is_open(inode));
            let copy = kept.copy().unwrap();
            assert_eq!(fstat(&copy).unwrap().st_ino, inode);
            assert!(is_open(inode));
        }
        // Two copies at the same time.
        let copies = [kept.copy().unwrap(), kept.copy().unwrap()];
        assert_ne!(copies[0].as_raw_fd(), copies[1].as_raw_fd());
    }

    /// In a separate process, because the limit applies to the whole process, including other tests.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no fork")]
    fn a_kept_descriptor_survives_a_shortage_of_descriptors() {
        use nix::{
            sys::wait::WaitStatus,
            sys::wait::waitpid,
            unistd::{ForkResult, fork},
        };
        // SAFETY: the child makes only system calls and calls this crate's own code, and exits without
        // returning.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let kept = KeptDescriptor::keep(object()).unwrap();
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
                let short = kept.copy().is_err_and(|error| error.code() == "NO_SPACE");
                setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
                let again = kept.copy().is_ok();
                // SAFETY: _exit only ends this process.
                unsafe { nix::libc::_exit(i32::from(!(short && again))) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
    }
}
