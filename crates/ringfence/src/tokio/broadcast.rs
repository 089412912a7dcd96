//! The publisher for tasks.

use crate::{
    api, error::Result, host::audience::PublisherEvent, tokio::events::Audience, tokio::sender::Broadcaster,
};

/// A publisher whose calls are awaited by tasks.
///
/// Dropping it ends it: see [`crate::Publisher`].
#[derive(Debug)]
pub struct Publisher {
    sender: Broadcaster,
    audience: Audience,
}

impl Publisher {
    /// Registers the publisher that [`publish`](crate::publish) returned with the runtime of the calling
    /// task.
    ///
    /// ```no_run
    /// use ringfence::{Options, publish, tokio::Publisher};
    ///
    /// # async fn run() -> ringfence::Result<()> {
    /// let publisher = publish(&"/run/user/1000/ticks.sock".parse()?, &Options::new())?;
    /// let (mut sender, audience) = Publisher::new(publisher)?.split();
    /// tokio::spawn(async move {
    ///     while let Ok(event) = audience.next().await {
    ///         println!("{event:?}");
    ///     }
    /// });
    /// sender.send(b"tick").await // waits while the slowest reliable subscriber is a ring behind
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) if the runtime cannot watch the descriptors. The publisher
    /// is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(publisher: api::publish::Publisher) -> Result<Self> {
        let (sender, audience) = publisher.split();
        Ok(Self {
            sender: Broadcaster::new(sender)?,
            audience: Audience::new(audience)?,
        })
    }

    /// See [`Broadcaster::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message).await
    }

    /// See [`Audience::next`].
    pub async fn next(&self) -> Result<PublisherEvent> {
        self.audience.next().await
    }

    /// See [`crate::Broadcaster::end`].
    pub fn end(&mut self) {
        self.sender.end();
    }

    /// Splits the publisher into its halves, which can be used on two tasks.
    pub fn split(self) -> (Broadcaster, Audience) {
        (self.sender, self.audience)
    }
}
