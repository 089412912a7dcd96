//! A subscription as a source of a merge, alone or beside channels.

use crate::{
    channel::end::CloseReason,
    channel::merge::source::{Reading, Source},
    channel::receiver::{Receiver, Visited},
    channel::waiting::{Parking, Waits},
    endpoint::broadcast::subscription::Subscription,
    error::Result,
    ring::message::Message,
    ring::record::packed_size,
};

/// Messages that are visited in one go: each is a copy, and the bytes are counted between two goes.
const VISITS: usize = 4;

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

impl Source for Subscription {}

impl Reading for Subscription {
    #[inline]
    fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        Subscription::try_receive(self, into)
    }

    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        Subscription::try_receive_vec(self)
    }

    fn visit(&mut self, mut visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        let mut spent = 0;
        let mut all = Visited {
            count: 0,
            dry: Ok(false),
        };
        while all.count < max && spent < bytes && matches!(all.dry, Ok(false)) {
            let visitor = |message: Message<'_>| {
                spent += packed_size(message.len() as u64);
                visit(message);
            };
            let visited = Subscription::visit(self, visitor, VISITS.min(max - all.count));
            all.count += visited.count;
            all.dry = visited.dry;
        }
        all
    }

    fn next_size(&mut self) -> Result<Option<usize>> {
        Subscription::next_size(self)
    }

    fn end_reason(&self) -> Option<CloseReason> {
        self.gone()
    }
}

/// The same of whichever it is.
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
        of_either!(self, source => Reading::try_receive(source, into))
    }

    fn try_receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        of_either!(self, source => Reading::try_receive_vec(source))
    }

    fn visit(&mut self, visit: impl FnMut(Message<'_>), max: usize, bytes: u64) -> Visited {
        of_either!(self, source => Reading::visit(source, visit, max, bytes))
    }

    fn next_size(&mut self) -> Result<Option<usize>> {
        of_either!(self, source => Reading::next_size(source))
    }

    fn end_reason(&self) -> Option<CloseReason> {
        of_either!(self, source => Reading::end_reason(source))
    }
}
