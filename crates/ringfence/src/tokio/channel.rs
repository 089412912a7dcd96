//! Both directions.

use std::{future::poll_fn, sync::Arc};

use crate::{
    channel,
    error::Result,
    tokio::line::Line,
    tokio::reader::poll_take_on,
    tokio::receiver::Receiver,
    tokio::sender::{Sender, poll_send},
};

/// Both directions between this process and its peer, waited for by tasks.
///
/// Dropping it closes it. What is in the ring then stays readable to the peer.
#[derive(Debug)]
pub struct Channel {
    line: Arc<Line>,
    inner: channel::Channel,
}

impl Channel {
    /// Waits for this channel in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) where the runtime cannot watch one more descriptor. The channel is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(channel: channel::Channel) -> Result<Self> {
        Ok(Self {
            line: Line::new(channel.shared())?,
            inner: channel,
        })
    }

    /// Puts a message into the ring, and waits while there is no room. See [`Sender::send`], also for what is safe to cancel.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut written = 0;
        let Self { line, inner } = self;
        poll_fn(|cx| poll_send(line, inner.sender(), cx, (message, &mut written))).await
    }

    /// The next message, into the beginning of `into`: see [`Receiver::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let Self { line, inner } = self;
        poll_fn(|cx| poll_take_on(line, inner.receiver(), cx, |receiver| receiver.try_receive(into))).await
    }

    /// The next message, in memory of its own size: see [`Receiver::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let Self { line, inner } = self;
        let take = channel::receiver::Receiver::try_receive_vec;
        poll_fn(|cx| poll_take_on(line, inner.receiver(), cx, take)).await
    }

    /// Both halves, to live on two tasks. The channel closes once both are dropped.
    pub fn split(self) -> (Sender, Receiver) {
        let (sender, receiver) = self.inner.split();
        (
            Sender::new(Arc::clone(&self.line), sender),
            Receiver::new(self.line, receiver),
        )
    }

    /// The channel itself: who the peer is, the evidence, tokens.
    pub fn get_ref(&self) -> &channel::Channel {
        &self.inner
    }

    /// The channel itself, for calls that do not wait. Those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::Channel {
        &mut self.inner
    }

    /// The channel, no longer waited for by the runtime.
    pub fn into_inner(self) -> channel::Channel {
        self.inner
    }
}
