//! A limit for threads that work in parallel. The wait for a permit has a deadline and can be cancelled.

use std::os::fd::AsFd;

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    error::{Error, Result},
    fork::Birth,
    wait::{cancel::Event, deadline::Deadline},
};

/// A number of permits. Waiting threads have no order. Holds one descriptor.
#[derive(Debug)]
pub(crate) struct Permits(Event);

/// A permit, returned when dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Event);

impl Permits {
    pub(crate) fn new(count: usize) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        let birth = Birth::now()?;
        EventFd::from_value_and_flags(u32::try_from(count).unwrap_or(u32::MAX), flags)
            .map(|descriptor| Self(Event { descriptor, birth }))
            .map_err(|errno| Error::system("a descriptor to count permits with", errno))
    }

    /// Waits for a permit.
    pub(crate) fn acquire(&self, deadline: &Deadline) -> Result<Permit<'_>> {
        loop {
            deadline.wait(&[(self.0.descriptor.as_fd(), PollFlags::POLLIN)])?;
            match self.0.descriptor.read() {
                Ok(_) => return Ok(Permit(&self.0)),
                // Another thread was faster.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("waiting for a permit", errno)),
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.0.birth.is_here() {
            // Cannot fail: acquiring the permit has decremented the counter.
            let _ = self.0.descriptor.write(1);
        }
    }
}
