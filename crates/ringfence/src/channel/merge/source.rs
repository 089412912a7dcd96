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

/// Evaluates an expression for whichever source it is.
macro_rules! of_either {
    ($any:expr, $source:ident => $what:expr) => {
        match $any {
            AnySource::Receiver($source) => $what,
            AnySource::Subscription($source) => $what,
        }
    };
}

/// Declares the calls with which a merge reads a source, for both kinds of a receiving half and for any of them.
macro_rules! reading {
    ($($(#[$about:meta])* fn $name:ident(&mut self $(, $value:ident: $kind:ty)*) -> $result:ty;)+) => {
        /// The calls with which a merge reads a source. In a private module, so that no other crate can make a source.
        pub trait Reading: Waits<For = ()> {
            $($(#[$about])* fn $name(&mut self $(, $value: $kind)*) -> $result;)+

            /// The reason why its channel has ended; `None` while it has not, also if the peer has ended its sending.
            fn end_reason(&mut self) -> Option<CloseReason> {
                self.parking().shared.close_reason()
            }

            /// Reads the line after a descriptor became readable.
            fn on_readable(&mut self, polled: PolledFd) {
                if polled == PolledFd::Process {
                    self.parking().shared.doorbell.check_peer();
                }
                // The next read reports an error again.
                let _ = self.read_line();
                self.unpark();
            }

            /// The descriptors to wait for. They stay open as long as the source.
            fn poll_fds(&mut self) -> [Option<(BorrowedFd<'_>, PolledFd)>; 2] {
                let Parking { shared, .. } = self.parking();
                let process = shared.doorbell.pidfd();
                [
                    Some((shared.doorbell.line(), PolledFd::Line)),
                    process.map(|pidfd| (pidfd, PolledFd::Process)),
                ]
            }
        }

        impl<R: Inlet> Reading for Inbound<R> {
            $(#[inline] fn $name(&mut self $(, $value: $kind)*) -> $result {
                Inbound::$name(self $(, $value)*)
            })+
        }

        impl Reading for AnySource {
            $(#[inline] fn $name(&mut self $(, $value: $kind)*) -> $result {
                of_either!(self, source => source.$name($($value),*))
            })+
        }
    };
}

reading! {
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
    fn has_attachments(&mut self) -> bool;
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
    fn is_available(&mut self, (): ()) -> Result<bool> {
        of_either!(self, source => source.has_message())
    }

    fn is_over(&mut self) -> Result<bool> {
        of_either!(self, source => source.is_ended())
    }

    fn counted(&mut self) -> (u64, u64) {
        of_either!(self, source => source.counted())
    }
}

/// For the binding: the descriptor that its event loop polls. Readable once the peer has sent a wakeup, has disconnected, or has died.
/// Errors with [`Error::NoSpace`](crate::error::Error::NoSpace) if there is no descriptor or thread to notice the death with.
pub fn line(source: &mut impl Source) -> Result<BorrowedFd<'_>> {
    let shared = source.parking().shared;
    shared.doorbell.poll_line_only()?;
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
    source.spin_until((), None, || false)
}
