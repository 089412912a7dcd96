//! Both directions of a channel.

use std::{future::poll_fn, sync::Arc};

use crate::{
    channel,
    error::Result,
    tokio::inbound::{Receiver, poll_take_on},
    tokio::line::Line,
    tokio::sender::{Sender, send_from},
    tokio::stream::ByteStream,
};

/// Both directions between this process and its peer, awaited by tasks.
///
/// Dropping it closes it. The peer can still read what is in the ring.
#[derive(Debug)]
pub struct Channel {
    line: Arc<Line>,
    inner: channel::Channel,
}

impl Channel {
    /// Registers the channel with the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) if the runtime cannot watch one more descriptor. The channel
    /// is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(channel: channel::Channel) -> Result<Self> {
        Ok(Self {
            line: Line::new(channel.shared())?,
            inner: channel,
        })
    }

    /// Writes a message into the ring, and waits while there is no room. See [`Sender::send`], also for
    /// cancel safety: [`Channel::send_rest`] finishes a message whose `send` was cancelled half way.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        send_from(&self.line, self.inner.sender(), message, 0).await
    }

    /// Finishes a message whose [`Channel::send`] was cancelled: see [`Sender::send_rest`].
    pub async fn send_rest(&mut self, message: &[u8]) -> Result<()> {
        let sender = self.inner.sender();
        let written = sender.under_way().unwrap_or(0);
        send_from(&self.line, sender, message, written).await
    }

    /// Receives the next message into the beginning of `into`: see [`Receiver::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let Self { line, inner } = self;
        poll_fn(|cx| poll_take_on(line, inner.receiver(), cx, |receiver| receiver.try_receive(into))).await
    }

    /// Receives the next message in memory of its own size: see [`Receiver::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let Self { line, inner } = self;
        let take = channel::receiver::Receiver::try_receive_vec;
        poll_fn(|cx| poll_take_on(line, inner.receiver(), cx, take)).await
    }

    /// Turns the channel into a stream of bytes, for code that expects a socket:
    /// `tokio::io::copy_bidirectional`, hyper, tonic, tarpc, TLS.
    ///
    /// A message whose [`Channel::send`] was cancelled half way must be finished first: until then writes
    /// fail.
    pub fn into_stream(self) -> ByteStream {
        ByteStream::new(self.line, self.inner)
    }

    /// Splits the channel into its halves, which can be used on two tasks. The channel closes once both are
    /// dropped.
    pub fn split(self) -> (Sender, Receiver) {
        let (sender, receiver) = self.inner.split();
        (
            Sender::new(Arc::clone(&self.line), sender),
            Receiver::on(self.line, receiver),
        )
    }

    /// Returns the channel itself: the peer's identity, the evidence, tokens.
    pub fn get_ref(&self) -> &channel::Channel {
        &self.inner
    }

    /// Returns the channel itself, for calls that do not wait. Blocking calls hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::Channel {
        &mut self.inner
    }

    pub(super) fn into_parts(self) -> (Arc<Line>, channel::Channel) {
        (self.line, self.inner)
    }

    /// Returns the channel, and removes it from the runtime.
    pub fn into_inner(self) -> channel::Channel {
        self.inner
    }
}
