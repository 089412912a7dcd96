//! The receiving half of a channel or of a broadcast.
#![expect(private_bounds, reason = "as in `channel/inbound.rs`")]

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::task::coop;

use crate::{
    channel::end::CloseReason,
    channel::inbound::{self, Inlet},
    channel::merge::source::{Reading, Source},
    channel::merge::{self, Merged, MergedVec},
    channel::receiver::{self, PairInlet},
    channel::subscription::BroadcastInlet,
    channel::waiting::{SpinThenPark, Waits},
    error::{Error, Result},
    tokio::line::{Half, Line, Watched},
};

/// The receiving half of a channel, for tasks. See [`Inbound`].
pub type Receiver = Inbound<PairInlet>;

/// The receiving half of a broadcast, for tasks. See [`Inbound`].
pub type Subscription = Inbound<BroadcastInlet>;

/// The receiving half of a channel ([`Receiver`]) or of a broadcast ([`Subscription`]), for tasks.
///
/// It is a [`Stream`] of messages in memory of their own, which ends after the last message. An error is its
/// last item, such as [`Error::PeerLost`] if the peer was killed, unless it can pass:
/// after [`Error::NoSpace`] the stream continues. For bytes, use
/// [`Channel::into_stream`](crate::tokio::Channel::into_stream) rather than a `StreamReader` over this.
///
/// Every method is cancel safe.
pub struct Inbound<R: Inlet> {
    line: Arc<Line>,
    inner: inbound::Inbound<R>,
    /// The stream has returned the error that ended it.
    failed: bool,
}

opaque! { [R: Inlet] Inbound<R>; }

impl Subscription {
    /// Registers the subscription that [`subscribe`](crate::subscribe) returned with the runtime of the
    /// calling task.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch the descriptors. The
    /// subscription is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(mut subscription: crate::channel::subscription::Subscription) -> Result<Self> {
        let line = Line::new(subscription.parking().shared)?;
        Ok(Self::on(line, subscription))
    }
}

impl<R: Inlet> Inbound<R> {
    pub(super) fn on(line: Arc<Line>, inner: inbound::Inbound<R>) -> Self {
        Self {
            line,
            inner,
            failed: false,
        }
    }

    /// Waits for the next message, and copies it to the start of `into`. `None`: the peer sends nothing more,
    /// and everything was read. Cancel safe: an unread message remains for the next call.
    ///
    /// # Errors
    /// As [`receive`](crate::Inbound::receive).
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.receive_with(|half| half.try_receive(into)).await
    }

    /// Waits for the next message, and returns it in memory of its own. `None`: the peer sends nothing more,
    /// and everything was read. Cancel safe.
    ///
    /// # Errors
    /// As [`receive_vec`](crate::Inbound::receive_vec).
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        self.receive_with(inbound::Inbound::try_receive_vec).await
    }

    /// Waits until there is something to read, for a caller that reads it in the peer's memory
    /// ([`receive_each`](crate::Inbound::receive_each), through [`get_mut`](Inbound::get_mut)). `false`: the
    /// peer sends nothing more. Cancel safe.
    ///
    /// # Errors
    /// As [`wait_readable`](crate::Inbound::wait_readable).
    pub async fn wait_readable(&mut self) -> Result<bool> {
        let there = self.receive_with(|half| Ok(half.has_message()?.then_some(())));
        Ok(there.await?.is_some())
    }

    /// Waits until `try_receive` returns something. `None`: the peer sends nothing more.
    async fn receive_with<T>(
        &mut self,
        mut try_receive: impl FnMut(&mut inbound::Inbound<R>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Self { line, inner, .. } = self;
        poll_fn(|cx| poll_receive_on(line, inner, cx, &mut try_receive)).await
    }

    /// Closes the whole channel from this half. Unread messages are dropped.
    pub fn close(&mut self) {
        self.inner.close();
    }

    /// Returns why the channel has ended; `None` while it has not. Unread messages of the peer may remain.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.close_reason()
    }

    /// Returns the half itself.
    pub fn get_ref(&self) -> &inbound::Inbound<R> {
        &self.inner
    }

    /// Returns the half itself, for calls that do not wait: blocking calls hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut inbound::Inbound<R> {
        &mut self.inner
    }

    /// Returns the half, and removes it from the runtime.
    pub fn into_inner(self) -> inbound::Inbound<R> {
        self.inner
    }
}

impl<R: Inlet + Unpin> Stream for Inbound<R> {
    type Item = Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { line, inner, failed } = self.get_mut();
        if *failed {
            return Poll::Ready(None);
        }
        let found = ready!(poll_receive_on(line, inner, cx, Reading::try_receive_vec));
        *failed = found.as_ref().is_err_and(would_repeat);
        Poll::Ready(found.transpose())
    }
}

/// Whether a stream would return this error again and again.
fn would_repeat(error: &Error) -> bool {
    // The message stays in the ring until there is memory for it, or until a `receive_part` has finished it.
    !matches!(error, Error::NoSpace { .. } | Error::InvalidArgument(_))
}

/// Like [`poll_receive`], for a half that waits on a line.
pub(super) fn poll_receive_on<R: Waits<For = ()>, T>(
    line: &Line,
    reader: &mut R,
    cx: &mut Context<'_>,
    try_receive: impl FnMut(&mut R) -> Result<Option<T>>,
) -> Poll<Result<Option<T>>> {
    let poll_ready = |reader: &mut R, cx: &mut Context<'_>| line.poll_ready(Half::Receiver, reader, cx, ());
    poll_receive(reader, cx, try_receive, poll_ready)
}

/// Polls until `try_receive` returns something. `None`: the peer sends nothing more.
pub(super) fn poll_receive<R: SpinThenPark, T>(
    reader: &mut R,
    cx: &mut Context<'_>,
    mut try_receive: impl FnMut(&mut R) -> Result<Option<T>>,
    mut poll_ready: impl FnMut(&mut R, &mut Context<'_>) -> Poll<Result<()>>,
) -> Poll<Result<Option<T>>> {
    let turn = ready!(coop::poll_proceed(cx));
    loop {
        let received = try_receive(reader)?;
        if received.is_some() || reader.is_finished()? {
            turn.made_progress();
            return Poll::Ready(Ok(received));
        }
        ready!(poll_ready(reader, cx))?;
    }
}

/// Reads from many sources as one, awaited by a task. Its sources are the crate's own types
/// ([`crate::Receiver`] and [`crate::Subscription`]), not those of this module, because the merge itself
/// waits for them. [`Merge::get_mut`] adds and removes sources.
///
/// It is a [`Stream`], which ends once every source has ended, or after an error that cannot pass, as that of
/// an [`Inbound`]. All calls are safe to cancel.
pub struct Merge<S = receiver::Receiver> {
    watched: Watched,
    inner: merge::Merge<S>,
    /// The stream has returned the error that ended it.
    failed: bool,
}

opaque! { [S] Merge<S>; }

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
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The sources
    /// are dropped then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(merge: merge::Merge<S>) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&merge)?,
            inner: merge,
            failed: false,
        })
    }

    /// Copies the next message to the start of `into`, or reports the end of a source. Waits until there is
    /// one of the two. `None`: every source has ended. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Merge::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<Merged>> {
        poll_fn(|cx| self.poll_receive(cx, |merge| merge.try_receive(into))).await
    }

    /// As [`Merge::receive`], but returns the message in memory of its own size. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Merge::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<MergedVec>> {
        poll_fn(|cx| self.poll_receive(cx, merge::Merge::try_receive_vec)).await
    }

    fn poll_receive<T>(
        &mut self,
        cx: &mut Context<'_>,
        try_receive: impl FnMut(&mut merge::Merge<S>) -> Result<Option<T>>,
    ) -> Poll<Result<Option<T>>> {
        let Self { watched, inner, .. } = self;
        poll_receive(inner, cx, try_receive, |inner, cx| {
            while inner.arm()? {
                let readable = ready!(watched.poll(cx))?;
                inner.poll()?;
                // One poll handles a limited number of events, so events may remain.
                readable.clear_if_drained(&*inner);
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
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let found = ready!(this.poll_receive(cx, merge::Merge::try_receive_vec));
        this.failed = found.as_ref().is_err_and(would_repeat);
        Poll::Ready(found.transpose())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::runtime::Builder;

    use crate::{
        error::Error, options::Options, ring::message::Progress, testing::parts, tokio::Channel, tokio::Merge,
    };

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn stream_continues_after_a_local_error() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let (own, peer) = parts::pair(4096, 20_000, &Options::new());
        let (_sender, mut receiver) = Channel::new(own).unwrap().split();
        let (mut sender, unread) = peer.split();
        let (long, mut into, mut written) = ([7; 9000], [0; 9000], 0);
        while let Progress::Part(bytes) = sender.send_part(&long, written).unwrap() {
            written = bytes;
            receiver.get_mut().receive_part(&mut into).unwrap();
        }
        assert!(sender.try_send(b"the next").unwrap());
        drop((sender, unread));
        receiver.get_mut().poll_line().unwrap();
        assert!(receiver.close_reason().is_some());
        let refused = receiver.next().now_or_never().unwrap().unwrap();
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
        assert_eq!(
            receiver.get_mut().receive_part(&mut into).unwrap(),
            Progress::Whole
        );
        let next = receiver.next().now_or_never().unwrap().transpose().unwrap();
        assert_eq!(next.as_deref(), Some(&b"the next"[..]));
        assert!(receiver.next().now_or_never().unwrap().is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn stream_ends_after_an_error_that_would_repeat() {
        let pair = || parts::pair(4096, 20_000, &Options::new());
        let runtime = || Builder::new_current_thread().enable_io().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let _inside = first.enter();
        let (own, peer) = pair();
        let (_sender, mut receiver) = Channel::new(own).unwrap().split();
        let calls = peer.into_calls().unwrap();
        let _call = calls.start(b"a", None).unwrap();
        let refused = receiver.next().now_or_never().unwrap().unwrap();
        assert!(matches!(refused, Err(Error::Protocol(_))), "{refused:?}");
        assert!(receiver.next().now_or_never().unwrap().is_none());

        let inside = second.enter();
        let ((own, _peer), (merged, _other)) = (pair(), pair());
        let (_sender, mut receiver) = Channel::new(own).unwrap().split();
        let mut merge = crate::Merge::new().unwrap();
        merge.add(merged.split().1).unwrap();
        let mut merge = Merge::new(merge).unwrap();
        drop(inside);
        drop(second);
        let failed = receiver.next().now_or_never().unwrap().unwrap();
        assert!(matches!(failed, Err(Error::Unsupported { .. })), "{failed:?}");
        assert!(receiver.next().now_or_never().unwrap().is_none());
        let failed = merge.next().now_or_never().unwrap().unwrap();
        assert!(matches!(failed, Err(Error::Unsupported { .. })), "{failed:?}");
        assert!(merge.next().now_or_never().unwrap().is_none());
    }
}
