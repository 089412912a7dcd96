//! Reading from many channels or subscriptions as one.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use crate::{
    channel::merge,
    channel::merge::source::Source,
    channel::merge::{Merged, MergedVec},
    channel::receiver::Receiver,
    error::Result,
    tokio::inbound::poll_take,
    tokio::watched::Watched,
};

/// Reads from many sources as one, awaited by a task. Its sources are the crate's own types
/// ([`crate::Receiver`] and [`crate::Subscription`]), not those of this module, because the merge itself
/// waits for them. [`Merge::get_mut`] adds and removes sources.
///
/// It is a [`Stream`], which ends once every source has ended. All calls are safe to cancel.
#[derive(Debug)]
pub struct Merge<S = Receiver> {
    watched: Watched,
    inner: merge::Merge<S>,
}

impl<S: Source> Merge<S> {
    /// Registers a merge with the runtime of the calling task.
    ///
    /// ```no_run
    /// use ringfence::{MergedVec, Merge};
    ///
    /// # async fn run(channels: Vec<ringfence::Channel>) -> ringfence::Result<()> {
    /// let mut merge = ringfence::tokio::Merge::new(Merge::new()?)?;
    /// for channel in channels {
    ///     let (sender, receiver) = channel.split();
    ///     merge.get_mut().add(receiver)?;
    ///     # drop(sender);
    /// }
    /// while let Some(merged) = merge.receive_vec().await? {
    ///     if let MergedVec::Message { from, bytes } = merged {
    ///         println!("{} bytes from {from:?}", bytes.len());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) if the runtime cannot watch one more descriptor. The sources
    /// are dropped then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(merge: merge::Merge<S>) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&merge)?,
            inner: merge,
        })
    }

    /// Copies the next message to the start of `into`, or reports the end of a source. Waits until there is
    /// one of the two. `None`: every source has ended. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Merge::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<Merged>> {
        poll_fn(|cx| self.poll_take(cx, |merge| merge.try_receive(into))).await
    }

    /// As [`Merge::receive`], but returns the message in memory of its own size. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Merge::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<MergedVec>> {
        poll_fn(|cx| self.poll_take(cx, merge::Merge::try_receive_vec)).await
    }

    fn poll_take<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&mut merge::Merge<S>) -> Result<Option<T>>,
    ) -> Poll<Result<Option<T>>> {
        let Self { watched, inner } = self;
        poll_take(inner, cx, take, |inner, cx| {
            while inner.arm()? {
                let readable = ready!(watched.poll(cx))?;
                inner.poll()?;
                // One poll handles a limited number of events, so some may be left.
                readable.may_be_read(&*inner);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Returns the merge itself.
    pub fn get_ref(&self) -> &merge::Merge<S> {
        &self.inner
    }

    /// Returns the merge itself, to add and remove sources. Its blocking calls hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut merge::Merge<S> {
        &mut self.inner
    }

    /// Returns the merge, and removes it from the runtime.
    pub fn into_inner(self) -> merge::Merge<S> {
        self.inner
    }
}

impl<S: Source + Unpin> Stream for Merge<S> {
    type Item = Result<MergedVec>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let found = ready!(self.get_mut().poll_take(cx, merge::Merge::try_receive_vec));
        Poll::Ready(found.transpose())
    }
}
