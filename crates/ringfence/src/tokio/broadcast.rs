//! One to many.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    channel::waiting::Waits,
    endpoint,
    endpoint::broadcast::audience::PublisherEvent,
    error::{Error, Result},
    tokio::events::Audience,
    tokio::line::Line,
    tokio::reader::Reader,
    tokio::sender::copy_of,
    tokio::watched::Watched,
};

/// A publisher, both halves of which are waited for by tasks.
///
/// Dropping it ends it: see [`crate::Publisher`].
#[derive(Debug)]
pub struct Publisher {
    sender: Broadcaster,
    audience: Audience,
}

impl Publisher {
    /// Waits for what [`publish`](crate::publish) has made, in the runtime of the task that calls this.
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
    /// [`Error::NoSpace`] where the runtime cannot watch so many descriptors. The publisher is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(publisher: endpoint::broadcast::publisher::Publisher) -> Result<Self> {
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

    /// Both halves, to live on two tasks.
    pub fn split(self) -> (Broadcaster, Audience) {
        (self.sender, self.audience)
    }
}

/// The half of a publisher that sends, waited for by a task.
///
/// It is a [`Sink`] of everything that is bytes, which takes a copy of a message for which there is no room.
///
/// Dropping it ends the publisher's sending.
#[derive(Debug)]
pub struct Broadcaster {
    watched: Watched,
    inner: endpoint::broadcast::broadcaster::Broadcaster,
    /// A message that the sink has taken, and that is not in the ring.
    taken: Option<Vec<u8>>,
}

/// A message that is not sent any more, once this is dropped, counts no time against the subscribers.
struct Patience<'a>(&'a mut Broadcaster);

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        self.0.inner.give_up();
    }
}

impl Broadcaster {
    /// Waits for it in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the runtime cannot watch one more descriptor. The sending is ended then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(broadcaster: endpoint::broadcast::broadcaster::Broadcaster) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&broadcaster)?,
            inner: broadcaster,
            taken: None,
        })
    }

    /// Puts a message into the ring, and waits while there is no room. Safe to cancel: one whose future was dropped was not sent, and
    /// counts no time against the subscribers any more.
    ///
    /// # Errors
    /// As [`crate::Broadcaster::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let patience = Patience(self);
        poll_fn(|cx| {
            ready!(patience.0.poll_taken(cx))?;
            patience.0.poll_send(cx, message)
        })
        .await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        let turn = ready!(coop::poll_proceed(cx));
        let Self { watched, inner, .. } = self;
        // A try each time: one that is refused has the stall of those run on that are in the way.
        while !inner.try_send(message)? {
            if !inner.arm(message.len())? {
                continue;
            }
            let readable = ready!(watched.poll(cx))?;
            inner.poll_line();
            readable.may_be_read(&*inner);
            inner.disarm();
        }
        turn.made_progress();
        Poll::Ready(Ok(()))
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(message) = self.taken.take() {
            let sent = self.poll_send(cx, &message);
            if sent.is_pending() {
                self.taken = Some(message);
            }
            return sent;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends no more: see [`crate::Broadcaster::end`]. A message that the sink has taken, and that is not in the ring, is lost.
    pub fn end(&mut self) {
        self.inner.end();
    }

    /// The half itself.
    pub fn get_ref(&self) -> &endpoint::broadcast::broadcaster::Broadcaster {
        &self.inner
    }

    /// The half itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut endpoint::broadcast::broadcaster::Broadcaster {
        &mut self.inner
    }

    /// The half, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::broadcast::broadcaster::Broadcaster {
        self.inner
    }
}

/// Each item is a message.
impl<T: AsRef<[u8]>> Sink<T> for Broadcaster {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_taken(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<()> {
        let this = self.get_mut();
        if this.taken.is_some() {
            return Err(Error::invalid("the sink was not ready (poll_ready)"));
        }
        let message = item.as_ref();
        if !this.inner.try_send(message)? {
            this.taken = Some(copy_of(message)?);
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_taken(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_taken(cx))?;
        this.inner.end();
        Poll::Ready(Ok(()))
    }
}

/// What a subscriber has of its publisher, waited for by a task.
///
/// It is a [`Stream`] of messages in memory of their own, which ends where no more will come. An error that ends it is its last item.
/// All of it is safe to cancel.
#[derive(Debug)]
pub struct Subscription(Reader<endpoint::broadcast::subscription::Subscription>);

impl Subscription {
    /// Waits for what [`subscribe`](crate::subscribe) has made, in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the runtime cannot watch so many descriptors. The subscription is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(mut subscription: endpoint::broadcast::subscription::Subscription) -> Result<Self> {
        let line = Line::new(subscription.parking().shared)?;
        Ok(Self(Reader::new(line, subscription)))
    }

    /// The next message, into the beginning of `into`; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Subscription::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        self.0.take(|subscription| subscription.try_receive(into)).await
    }

    /// The next message, in memory of its own size; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Subscription::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let take = endpoint::broadcast::subscription::Subscription::try_receive_vec;
        self.0.take(take).await
    }

    /// Closes the subscription. What was not read is let go of.
    pub fn close(&mut self) {
        self.0.inner.close();
    }

    /// The subscription itself: what was lost, the sequence.
    pub fn get_ref(&self) -> &endpoint::broadcast::subscription::Subscription {
        &self.0.inner
    }

    /// The subscription itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut endpoint::broadcast::subscription::Subscription {
        &mut self.0.inner
    }

    /// The subscription, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::broadcast::subscription::Subscription {
        self.0.inner
    }
}

impl Stream for Subscription {
    type Item = Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_next(cx)
    }
}
