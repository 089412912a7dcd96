//! The reading half of a channel.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::task::coop;

use crate::{
    channel,
    channel::reason::CloseReason,
    error::Result,
    tokio::line::{Half, Line},
};

/// The reading half of a channel, waited for by a task.
///
/// It is a [`Stream`] of messages in memory of their own, which ends where no more will come. An error that ends the channel is its last
/// item. All of it is safe to cancel.
#[derive(Debug)]
pub struct Receiver {
    line: Arc<Line>,
    inner: channel::receiver::Receiver,
    /// The stream has told what the channel has failed with.
    failed: bool,
}

impl Receiver {
    pub(super) fn new(line: Arc<Line>, inner: channel::receiver::Receiver) -> Self {
        Self {
            line,
            inner,
            failed: false,
        }
    }

    /// The next message, into the beginning of `into`; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel: what was not received is there for the next call.
    ///
    /// # Errors
    /// As [`crate::Receiver::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let Self { line, inner, .. } = self;
        poll_fn(|cx| poll_take(line, inner, cx, |receiver| receiver.try_receive(into))).await
    }

    /// The next message, in memory of its own size; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Receiver::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        poll_fn(|cx| self.poll_vec(cx)).await
    }

    /// Waits until there is something to read, for a caller that reads it where it lies ([`crate::Receiver::drain`], by
    /// [`Receiver::get_mut`]). `false`: no more will come. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Receiver::wait`].
    pub async fn readable(&mut self) -> Result<bool> {
        let Self { line, inner, .. } = self;
        let there = |receiver: &mut channel::receiver::Receiver| {
            let there = receiver.has_message()?;
            Ok(there.then_some(()))
        };
        let there = poll_fn(|cx| poll_take(line, inner, cx, there)).await?;
        Ok(there.is_some())
    }

    fn poll_vec(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>>> {
        let take = channel::receiver::Receiver::try_receive_vec;
        poll_take(&self.line, &mut self.inner, cx, take)
    }

    /// Closes the whole channel from this half. What was not read is let go of.
    pub fn close(&mut self) {
        self.inner.close();
    }

    /// Why the channel has ended; `None` while it has not. What the peer left may still be there to read.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.close_reason()
    }

    /// The half itself.
    pub fn get_ref(&self) -> &channel::receiver::Receiver {
        &self.inner
    }

    /// The half itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::receiver::Receiver {
        &mut self.inner
    }

    /// The half, no longer waited for by the runtime.
    pub fn into_inner(self) -> channel::receiver::Receiver {
        self.inner
    }
}

impl Stream for Receiver {
    type Item = Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let found = ready!(this.poll_vec(cx));
        this.failed = found.is_err() && this.inner.close_reason().is_some();
        Poll::Ready(found.transpose())
    }
}

/// What `take` finds, once it finds something. `None`: no more will come.
pub(super) fn poll_take<T>(
    line: &Line,
    receiver: &mut channel::receiver::Receiver,
    cx: &mut Context<'_>,
    mut take: impl FnMut(&mut channel::receiver::Receiver) -> Result<Option<T>>,
) -> Poll<Result<Option<T>>> {
    let turn = ready!(coop::poll_proceed(cx));
    loop {
        let taken = take(receiver)?;
        if taken.is_some() || receiver.is_ended()? {
            turn.made_progress();
            return Poll::Ready(Ok(taken));
        }
        ready!(poll_readable(line, receiver, cx))?;
    }
}

/// Until there is something to read, or no more will come.
fn poll_readable(
    line: &Line,
    receiver: &mut channel::receiver::Receiver,
    cx: &Context<'_>,
) -> Poll<Result<()>> {
    let shared = Arc::clone(&receiver.shared);
    loop {
        let generation = shared.doorbell.generation();
        if !receiver.arm()? {
            return Poll::Ready(Ok(()));
        }
        let heard = ready!(line.poll_heard(cx, Half::Receiver, &shared.doorbell, generation))?;
        let read = line.hear(heard, Half::Receiver, &shared, || receiver.poll_line());
        receiver.disarm();
        read.transpose()?;
    }
}
