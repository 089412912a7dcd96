//! Sources of connection events: listeners, memberships and the audience of a publisher.

use std::{
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use crate::{
    api,
    api::service::Arrival,
    channel::Channel,
    error::{Error, Result},
    host::audience::PublisherEvent,
    host::membership::Change,
    tokio::line::Watched,
    tokio::sender::Broadcaster,
};

/// A source of events, watched by the runtime.
#[derive(Debug)]
struct Events<S> {
    watched: Watched,
    source: S,
    /// The stream has returned the error that ended the events.
    failed: bool,
}

impl<S: AsFd> Events<S> {
    fn new(source: S) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&source)?,
            source,
            failed: false,
        })
    }

    /// Returns the next event. Any number of tasks may wait. Safe to cancel.
    async fn next<T>(&self, try_next: impl Fn(&S) -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(event) = try_next(&self.source)? {
                return Ok(event);
            }
            let readable = self.watched.readable().await?;
            // Re-check: an event that arrives after this check makes the descriptor readable again.
            if let Some(event) = try_next(&self.source)? {
                return Ok(event);
            }
            readable.was_read();
        }
    }

    /// Returns the next event as an item of a stream. The stream ends once the source has closed, and after
    /// it has returned any other error once.
    fn poll_next<T>(
        &mut self,
        cx: &mut Context<'_>,
        try_next: impl Fn(&S) -> Result<Option<T>>,
    ) -> Poll<Option<Result<T>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let found = loop {
            if let Some(found) = try_next(&self.source).transpose() {
                break found;
            }
            let readable = ready!(self.watched.poll(cx));
            match readable.and_then(|readable| Ok((readable, try_next(&self.source)?))) {
                Ok((_, Some(event))) => break Ok(event),
                Ok((readable, None)) => readable.was_read(),
                Err(error) => break Err(error),
            }
        };
        self.failed = found.is_err();
        Poll::Ready(match found {
            Err(Error::Closed(_)) => None,
            found => Some(found),
        })
    }
}

/// A service at its address, whose arrivals are awaited by tasks. It is a [`Stream`] of arrivals, which ends
/// when the listener has closed.
///
/// Dropping it closes it: see [`crate::Listener`].
#[derive(Debug)]
pub struct Listener {
    events: Events<api::service::Listener>,
}

impl Listener {
    /// Registers the listener that [`listen`](crate::listen) returned with the runtime of the calling task.
    ///
    /// ```no_run
    /// use ringfence::{Arrival, Options, listen, tokio::{Channel, Listener}};
    ///
    /// # async fn run() -> ringfence::Result<()> {
    /// let listener = Listener::new(listen(&"/run/orders/service.sock".parse()?, &Options::new())?)?;
    /// loop {
    ///     if let Arrival::Accepted(channel) = listener.accept().await? {
    ///         let mut channel = Channel::new(channel)?;
    ///         tokio::spawn(async move {
    ///             while let Some(question) = channel.receive_vec().await? {
    ///                 channel.send(&question).await?;
    ///             }
    ///             Ok::<(), ringfence::Error>(())
    ///         });
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The listener is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(listener: api::service::Listener) -> Result<Self> {
        Ok(Self {
            events: Events::new(listener)?,
        })
    }

    /// Waits for the next arrival. Safe to cancel: no arrival is lost. If several tasks wait, each arrival
    /// goes to one of them.
    ///
    /// # Errors
    /// As [`crate::Listener::accept`].
    pub async fn accept(&self) -> Result<Arrival> {
        self.events.next(api::service::Listener::try_accept).await
    }

    /// Returns the listener itself. Its blocking calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &api::service::Listener {
        &self.events.source
    }

    /// Returns the listener, and removes it from the runtime.
    pub fn into_inner(self) -> api::service::Listener {
        self.events.source
    }
}

impl Stream for Listener {
    type Item = Result<Arrival>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = &mut self.get_mut().events;
        events.poll_next(cx, api::service::Listener::try_accept)
    }
}

/// A membership of an address, whose changes are awaited by tasks. It is a [`Stream`] of changes.
///
/// Dropping it leaves, which blocks the thread. [`Membership::leave`] does that on another thread.
#[derive(Debug)]
pub struct Membership {
    events: Events<api::member::Membership>,
}

impl Membership {
    /// Registers the membership that [`member()`](crate::member()) returned with the runtime of the calling
    /// task.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The membership is left then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(membership: api::member::Membership) -> Result<Self> {
        Ok(Self {
            events: Events::new(membership)?,
        })
    }

    /// Waits for the next change. Safe to cancel: no change is lost.
    ///
    /// # Errors
    /// As [`crate::Membership::next`].
    pub async fn next(&self) -> Result<Change> {
        self.events.next(api::member::Membership::try_next).await
    }

    /// Waits for the next partner, and skips all other changes. Safe to cancel.
    ///
    /// # Errors
    /// As [`crate::Membership::next`].
    pub async fn partner(&self) -> Result<Channel> {
        loop {
            if let Change::Channel(channel) = self.next().await? {
                return Ok(channel);
            }
        }
    }

    /// Leaves: see [`crate::Membership::leave`]. Dropping the future leaves as well.
    pub async fn leave(self) {
        let Events { watched, source, .. } = self.events;
        drop(watched);
        // `leave` does not panic. If the runtime shuts down first, the closure is dropped, which leaves as
        // well.
        let _ = tokio::task::spawn_blocking(move || source.leave()).await;
    }

    /// Returns the membership itself. Its blocking calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &api::member::Membership {
        &self.events.source
    }

    /// Returns the membership, and removes it from the runtime.
    pub fn into_inner(self) -> api::member::Membership {
        self.events.source
    }
}

impl Stream for Membership {
    type Item = Result<Change>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = &mut self.get_mut().events;
        events.poll_next(cx, api::member::Membership::try_next)
    }
}

/// The half of a publisher that reports its subscribers' connects and disconnects, awaited by tasks. It is a
/// [`Stream`] of events.
///
/// Dropping it closes the publisher.
#[derive(Debug)]
pub struct Audience {
    events: Events<api::publish::Audience>,
}

impl Audience {
    /// Registers the half with the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The publisher is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(audience: api::publish::Audience) -> Result<Self> {
        Ok(Self {
            events: Events::new(audience)?,
        })
    }

    /// Waits for the next event. Safe to cancel: no event is lost.
    ///
    /// # Errors
    /// As [`crate::Audience::next`].
    pub async fn next(&self) -> Result<PublisherEvent> {
        self.events.next(api::publish::Audience::try_next).await
    }

    /// Returns the half itself. Its blocking calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &api::publish::Audience {
        &self.events.source
    }

    /// Returns the half, and removes it from the runtime.
    pub fn into_inner(self) -> api::publish::Audience {
        self.events.source
    }
}

impl Stream for Audience {
    type Item = Result<PublisherEvent>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = &mut self.get_mut().events;
        events.poll_next(cx, api::publish::Audience::try_next)
    }
}

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
