//! The sources of a merge.

use std::{os::fd::BorrowedFd, sync::atomic::Ordering};

use crate::{
    channel::end::{ChannelState, CloseReason},
    channel::inbound::{Inbound, Inlet, Visited},
    channel::receiver::Receiver,
    channel::subscription::Subscription,
    channel::waiting::{Parking, SpinThenPark, Waits},
    error::Result,
    ring::message::Message,
    wake::attachments::Attachment,
};

/// A source of a [`Merge`](crate::Merge): a [`Receiver`], a [`Subscription`], or [`AnySource`] for both in one. No other crate makes
/// sources.
pub trait Source: Reading {}

impl<R: Inlet> Source for Inbound<R> {}

/// A descriptor that a merge waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolledFd {
    /// Readable once the peer has sent a wakeup, or has disconnected.
    Line,
    /// Readable once the peer's process has exited.
    Process,
}

/// The calls with which a merge reads a source. In a private module, so that no other crate can make a source.
pub trait Reading: Waits<For = ()> {
    /// See [`Inbound::try_receive`].
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>>;

    /// See [`Inbound::try_receive_vec`].
    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>>;

    /// Visits at most `max` messages, and stops once about `bytes` bytes were visited. See [`Inbound::receive_each`].
    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited;

    /// See [`Inbound::next_size`].
    fn next_size(&mut self) -> Result<Option<usize>>;

    /// See [`Inbound::attachments`].
    fn attachments(&mut self) -> Vec<Attachment>;

    /// Whether the message that was received last has attachments that were not taken.
    fn has_attachments(&self) -> bool;

    /// The reason why its channel has ended; `None` while it has not, also if the peer has ended its sending.
    fn end_reason(&self) -> Option<CloseReason>;

    /// Reads the line after a descriptor became readable.
    fn hear(&mut self, waited: PolledFd) {
        if waited == PolledFd::Process {
            self.parking().shared.doorbell.look();
        }
        // The next read reports an error again.
        let _ = self.read_line();
        self.unpark();
    }

    /// The descriptors to wait for. They stay open as long as the source.
    fn waited(&mut self) -> [Option<(BorrowedFd<'_>, PolledFd)>; 2] {
        let Parking { shared, .. } = self.parking();
        let process = shared.doorbell.pidfd();
        [
            Some((shared.line(), PolledFd::Line)),
            process.map(|pidfd| (pidfd, PolledFd::Process)),
        ]
    }
}

impl<R: Inlet> Reading for Inbound<R> {
    #[inline]
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        Inbound::try_receive(self, into)
    }

    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        Inbound::try_receive_vec(self)
    }

    #[inline]
    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        Inbound::visit(self, visit, max, bytes)
    }

    fn next_size(&mut self) -> Result<Option<usize>> {
        Inbound::next_size(self)
    }

    fn attachments(&mut self) -> Vec<Attachment> {
        Inbound::attachments(self)
    }

    #[inline]
    fn has_attachments(&self) -> bool {
        Inbound::has_attachments(self)
    }

    fn end_reason(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }
}

/// A source of a [`Merge`](crate::Merge) of channels and subscriptions.
///
/// ```no_run
/// use ringfence::{AnySource, Merge, Options, join, subscribe};
///
/// # fn main() -> ringfence::Result<()> {
/// let mut merge: Merge<AnySource> = Merge::new()?;
/// let (sender, receiver) = join(&"/run/orders/pair.sock".parse()?, &Options::new())?.split();
/// merge.add(receiver.into())?;
/// merge.add(subscribe(&"/run/orders/prices.sock".parse()?, &Options::new())?.into())?;
/// # drop(sender);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum AnySource {
    /// The receiving half of a channel.
    Receiver(Receiver),
    /// The receiving half of a broadcast.
    Subscription(Subscription),
}

impl From<Receiver> for AnySource {
    fn from(receiver: Receiver) -> Self {
        Self::Receiver(receiver)
    }
}

impl From<Subscription> for AnySource {
    fn from(subscription: Subscription) -> Self {
        Self::Subscription(subscription)
    }
}

/// Evaluates an expression for whichever source it is.
macro_rules! of_either {
    ($any:expr, $source:ident => $what:expr) => {
        match $any {
            AnySource::Receiver($source) => $what,
            AnySource::Subscription($source) => $what,
        }
    };
}

impl Source for AnySource {}

impl Waits for AnySource {
    type For = ();

    fn parking(&mut self) -> Parking<'_> {
        of_either!(self, source => source.parking())
    }

    fn check(&mut self) -> Result<()> {
        of_either!(self, source => Waits::check(source))
    }

    #[inline]
    fn is_there(&mut self, (): ()) -> Result<bool> {
        of_either!(self, source => source.has_message())
    }

    fn is_over(&mut self) -> Result<bool> {
        of_either!(self, source => source.is_ended())
    }

    fn counted(&mut self) -> (u64, u64) {
        of_either!(self, source => source.counted())
    }
}

impl Reading for AnySource {
    #[inline]
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        of_either!(self, source => source.try_receive(into))
    }

    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        of_either!(self, source => source.try_receive_vec())
    }

    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        of_either!(self, source => source.visit(visit, max, bytes))
    }

    fn next_size(&mut self) -> Result<Option<usize>> {
        of_either!(self, source => source.next_size())
    }

    fn attachments(&mut self) -> Vec<Attachment> {
        of_either!(self, source => source.attachments())
    }

    fn has_attachments(&self) -> bool {
        of_either!(self, source => source.has_attachments())
    }

    fn end_reason(&self) -> Option<CloseReason> {
        of_either!(self, source => source.end_reason())
    }
}

/// For the binding: the descriptor that its event loop polls. Readable once the peer has sent a wakeup, has disconnected, or has died.
/// Errors with [`Error::NoSpace`] if there is no descriptor or thread to notice the death with.
pub fn line(source: &mut impl Source) -> Result<BorrowedFd<'_>> {
    let shared = source.parking().shared;
    shared.doorbell.poll_line_alone()?;
    shared.doorbell.try_line()
}

/// For the binding: whether the peer itself has closed or destroyed the channel. `false` if its process has ended instead.
pub fn was_closed_by_peer(source: &mut impl Source) -> bool {
    let state = &source.parking().shared.state;
    state.is(ChannelState::ClosedByPeer, Ordering::Acquire)
}

/// For the binding, which sleeps in an event loop: spins as long as the options of the channel allow. Returns whether there is something
/// to read, or never will be.
pub fn spin(source: &mut impl Source) -> Result<bool> {
    source.spin_until((), None)
}

/// For the binding, whose sources are many objects: the first half of parking. Returns whether this source needs a barrier before
/// the second half ([`look_parked`]); one serves all sources.
pub fn announce(source: &mut impl Source) -> Result<bool> {
    source.announce()
}

/// See [`announce`]. `true`: nothing is there, and the peer will send a wakeup.
pub fn look_parked(source: &mut impl Source) -> Result<bool> {
    source.look_parked(())
}
