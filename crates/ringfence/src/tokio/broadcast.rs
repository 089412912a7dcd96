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
    endpoint,
    endpoint::broadcast::audience::PublisherEvent,
    error::{Error, Result},
    tokio::events::Audience,
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
pub struct Subscription {
    bell: Watched,
    exit: Option<Watched>,
    inner: endpoint::broadcast::subscription::Subscription,
    failed: bool,
}

impl Subscription {
    /// Waits for what [`subscribe`](crate::subscribe) has made, in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the runtime cannot watch so many descriptors. The subscription is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(subscription: endpoint::broadcast::subscription::Subscription) -> Result<Self> {
        Ok(Self {
            bell: Watched::line_of(subscription.shared())?,
            exit: Watched::process_of(subscription.shared())?,
            inner: subscription,
            failed: false,
        })
    }

    /// The next message, into the beginning of `into`; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Subscription::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        poll_fn(|cx| self.poll_take(cx, |inner| inner.try_receive(into))).await
    }

    /// The next message, in memory of its own size; waits until there is one. `None`: no more will come, and everything was read.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Subscription::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        poll_fn(|cx| self.poll_vec(cx)).await
    }

    fn poll_vec(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>>> {
        self.poll_take(
            cx,
            endpoint::broadcast::subscription::Subscription::try_receive_vec,
        )
    }

    fn poll_take<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut endpoint::broadcast::subscription::Subscription) -> Result<Option<T>>,
    ) -> Poll<Result<Option<T>>> {
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            let taken = take(&mut self.inner)?;
            if taken.is_some() || self.inner.is_ended()? {
                turn.made_progress();
                return Poll::Ready(Ok(taken));
            }
            ready!(self.poll_readable(cx))?;
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Self {
            bell, exit, inner, ..
        } = self;
        while inner.arm()? {
            let mut exited = None;
            if let Some(exit) = exit
                && let Poll::Ready(readable) = exit.poll(cx)
            {
                exited = Some(readable?);
            }
            let rung = match bell.poll(cx) {
                Poll::Ready(readable) => Some(readable?),
                Poll::Pending if exited.is_none() => return Poll::Pending,
                Poll::Pending => None,
            };
            if exited.is_some() {
                // It stays readable, as the process does not come back.
                inner.look_at_publisher();
            }
            let read = inner.poll_line();
            if let Some(rung) = rung {
                rung.was_read();
            }
            inner.disarm();
            read?;
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the subscription. What was not read is let go of.
    pub fn close(&mut self) {
        self.inner.close();
    }

    /// The subscription itself: what was lost, the sequence.
    pub fn get_ref(&self) -> &endpoint::broadcast::subscription::Subscription {
        &self.inner
    }

    /// The subscription itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut endpoint::broadcast::subscription::Subscription {
        &mut self.inner
    }

    /// The subscription, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::broadcast::subscription::Subscription {
        self.inner
    }
}

impl Stream for Subscription {
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
