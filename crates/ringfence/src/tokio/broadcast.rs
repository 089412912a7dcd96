//! One to many.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    api, endpoint,
    error::{Error, Result},
    host::audience::PublisherEvent,
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

    /// Both halves, to live on two tasks.
    pub fn split(self) -> (Broadcaster, Audience) {
        (self.sender, self.audience)
    }
}

/// The sending half of a publisher, for tasks.
///
/// It is a [`Sink`] of everything that is bytes. The sink accepts a message (`feed` returns `Ok`) after every check has passed, and
/// keeps a copy of it if the ring has no room. A refused message is not kept: its error is returned once, and the next call works.
/// `send` and the calls of the sink first send the message that the sink keeps.
///
/// Dropping it ends the publisher's sending. A message that the sink keeps is lost then: `flush` or `close` first.
///
/// # Cancel safety
/// No message is ever under way: each is published whole. If `send` is cancelled, its message was not published. If `feed` is
/// cancelled, its message was not accepted. If `flush` or `close` is cancelled, the sink keeps the message that it had. It also keeps
/// it through local errors: [`Error::NoSpace`] and [`Error::Unsupported`], and [`Error::InvalidArgument`] while a reservation is open.
/// If the publisher has ended, the next call that would send the kept message drops it and returns the error.
#[derive(Debug)]
pub struct Broadcaster {
    watched: Watched,
    inner: endpoint::broadcast::broadcaster::Broadcaster,
    /// The message that the sink keeps. Set by `start_send` alone, after `inner` has accepted it; cleared by `poll_kept` alone.
    kept: Option<Vec<u8>>,
}

/// When this is dropped, the message of a `send` no longer counts time against the subscribers. The message of the sink still does.
struct RetryBudget<'a>(&'a mut Broadcaster);

impl Drop for RetryBudget<'_> {
    fn drop(&mut self) {
        self.0.inner.disarm();
        if self.0.kept.is_none() {
            self.0.inner.give_up();
        }
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
            kept: None,
        })
    }

    /// Puts a message into the ring, and waits while there is no room. Cancel safe: if the future is dropped before it is ready, the
    /// message was not sent, and no longer counts time against the subscribers.
    ///
    /// # Errors
    /// As [`crate::Broadcaster::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let retries = RetryBudget(self);
        poll_fn(|cx| {
            ready!(retries.0.poll_kept(cx))?;
            retries.0.poll_send(cx, message)
        })
        .await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        let turn = ready!(coop::poll_proceed(cx));
        let Self { watched, inner, .. } = self;
        // This half is awake from here on. The poll before this one left it parked.
        inner.disarm();
        // A try each time: one that is refused charges the subscribers that are in the way.
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

    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(message) = self.kept.take() else {
            return Poll::Ready(Ok(()));
        };
        let sent = self.poll_send(cx, &message);
        let goes_on = match &sent {
            Poll::Pending => true,
            Poll::Ready(sent) => sent.as_ref().is_err_and(Error::is_local),
        };
        self.kept = goes_on.then_some(message);
        sent
    }

    /// Ends the sending: see [`crate::Broadcaster::end`]. A message that the sink keeps is lost, and the next `flush` or `close` says so
    /// with [`Error::Closed`]: use `close` of the [`Sink`] instead, which sends it first.
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
        self.get_mut().poll_kept(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<()> {
        let this = self.get_mut();
        if this.kept.is_some() {
            return Err(Error::invalid("the sink was not ready (poll_ready)"));
        }
        let message = item.as_ref();
        if !this.inner.try_send(message)? {
            // A message that cannot be kept does not wait.
            let kept = copy_of(message).inspect_err(|_| this.inner.give_up())?;
            this.kept = Some(kept);
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_kept(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_kept(cx))?;
        this.inner.end();
        Poll::Ready(Ok(()))
    }
}
