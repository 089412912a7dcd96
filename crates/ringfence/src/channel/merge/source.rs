//! What a merge can read.

use std::os::fd::BorrowedFd;

use crate::{
    channel::end::CloseReason,
    channel::receiver::{Receiver, Visited},
    channel::waiting::{Parking, SpinThenPark, Waits},
    error::{Error, Result},
    ring::message::Message,
    sys,
};

/// What a [`Merge`](crate::Merge) can read: a [`Receiver`], a [`Subscription`](crate::Subscription), and
/// [`AnySource`](crate::AnySource) for both in one. No other crate makes sources.
pub trait Source: Reading {}

impl Source for Receiver {}

/// A descriptor that a merge waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Readable once the peer has rung, or has gone.
    Line,
    /// Readable once the peer's process has ended.
    Process,
}

/// How a merge reads a source. Not to be named outside of this crate, so that no other crate can make a source.
pub trait Reading: Waits<For = ()> {
    /// As [`Receiver::try_receive`].
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>>;

    /// As [`Receiver::try_receive_vec`].
    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>>;

    /// As [`Receiver::drain`], and stops as well once about `bytes` bytes were visited.
    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited;

    /// As [`Receiver::next_size`].
    fn next_size(&mut self) -> Result<Option<usize>>;

    /// Why its channel has ended; `None` while it has not, also if the peer has ended its sending.
    fn end_reason(&self) -> Option<CloseReason>;

    /// What the line says is heard: a bell, or the end. `Process`: the peer's process has ended, as its pidfd says.
    fn hear(&mut self, waited: Waited) {
        if waited == Waited::Process {
            self.parking().shared.doorbell.look();
        }
        // What the reader finds wrong is told when it reads.
        let _ = self.read_line();
        self.unpark();
    }

    /// What is waited for. Stays open as long as the source.
    fn waited(&mut self) -> [Option<(BorrowedFd<'_>, Waited)>; 2] {
        let Parking { shared, .. } = self.parking();
        let process = shared.doorbell.pidfd();
        [
            Some((shared.line(), Waited::Line)),
            process.map(|pidfd| (pidfd, Waited::Process)),
        ]
    }
}

impl Reading for Receiver {
    #[inline]
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        Receiver::try_receive(self, into)
    }

    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        Receiver::try_receive_vec(self)
    }

    #[inline]
    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        Receiver::visit(self, visit, max, bytes)
    }

    fn next_size(&mut self) -> Result<Option<usize>> {
        Receiver::next_size(self)
    }

    fn end_reason(&self) -> Option<CloseReason> {
        self.close_reason()
    }
}

/// For the binding: the descriptor that its event loop polls. Readable once the peer has rung, or has gone, or has died. Errors with
/// [`Error::NoSpace`] if there is no descriptor or thread for the last of these.
pub fn line(source: &mut impl Source) -> Result<BorrowedFd<'_>> {
    let shared = source.parking().shared;
    shared.doorbell.poll_line_alone()?;
    Ok(shared.line())
}

/// For the binding, which sleeps in an event loop: spins as long as the options of the channel say. Whether there is something to
/// read by now, or never will be.
pub fn spin(source: &mut impl Source) -> Result<bool> {
    source.spin_until((), None)
}

/// For the binding, whose sources stand in many objects: parks in two halves, with one barrier between those of all. Whether this
/// one needs it.
pub fn announce(source: &mut impl Source) -> Result<bool> {
    source.announce()
}

/// See [`announce`].
pub fn barrier() -> Result<()> {
    sys::process::issue_barrier().map_err(|errno| Error::system("a memory barrier (membarrier)", errno))
}

/// See [`announce`]: `true` where there is nothing, and the peer will ring.
pub fn look_parked(source: &mut impl Source) -> Result<bool> {
    source.look_parked(())
}
