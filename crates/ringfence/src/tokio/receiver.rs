//! The reading half of a channel.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{channel, channel::end::CloseReason, error::Result, tokio::line::Line, tokio::reader::Reader};

/// The reading half of a channel, for tasks.
///
/// It is a [`Stream`] of messages in memory of their own, which ends after the last message. An error that ends the channel is its last
/// item; after a local error ([`Error::NoSpace`](crate::Error::NoSpace)) it goes on. It ends the same way if the peer was killed:
/// [`crate::Receiver::is_cut`] tells. For bytes, use [`Channel::into_stream`](crate::tokio::Channel::into_stream), which reports a
/// killed peer as an error, rather than a `StreamReader` over this.
///
/// Every method is cancel safe.
#[derive(Debug)]
pub struct Receiver(Reader<channel::receiver::Receiver>);

impl Receiver {
    pub(super) fn new(line: Arc<Line>, inner: channel::receiver::Receiver) -> Self {
        Self(Reader::new(line, inner))
    }

    /// The next message, into the beginning of `into`; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel: what was not received is there for the next call.
    ///
    /// # Errors
    /// As [`crate::Receiver::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.0.take(|receiver| receiver.try_receive(into)).await
    }

    /// The next message, in memory of its own size; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Receiver::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        self.0.take(channel::receiver::Receiver::try_receive_vec).await
    }

    /// Waits until there is something to read, for a caller that reads it where it lies ([`crate::Receiver::drain`], by
    /// [`Receiver::get_mut`]). `false`: no more will come. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Receiver::wait`].
    pub async fn readable(&mut self) -> Result<bool> {
        let there = self.0.take(|receiver| Ok(receiver.has_message()?.then_some(())));
        Ok(there.await?.is_some())
    }

    /// Closes the whole channel from this half. What was not read is let go of.
    pub fn close(&mut self) {
        self.0.inner.close();
    }

    /// Why the channel has ended; `None` while it has not. What the peer left may still be there to read.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0.inner.close_reason()
    }

    /// The half itself.
    pub fn get_ref(&self) -> &channel::receiver::Receiver {
        &self.0.inner
    }

    /// The half itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::receiver::Receiver {
        &mut self.0.inner
    }

    /// The half, no longer waited for by the runtime.
    pub fn into_inner(self) -> channel::receiver::Receiver {
        self.0.inner
    }
}

impl Stream for Receiver {
    type Item = Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_next(cx)
    }
}
