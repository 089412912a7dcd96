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

/// A source of events. In a private module, so that no other crate implements it.
pub trait EventSource: AsFd {
    type Event;

    /// Returns the next event, if there is one now.
    fn try_event(&self) -> Result<Option<Self::Event>>;
}

impl EventSource for api::service::Listener {
    type Event = Arrival;

    fn try_event(&self) -> Result<Option<Arrival>> {
        self.try_accept()
    }
}

impl EventSource for api::member::Membership {
    type Event = Change;

    fn try_event(&self) -> Result<Option<Change>> {
        self.try_next()
    }
}

impl EventSource for api::publish::Audience {
    type Event = PublisherEvent;

    fn try_event(&self) -> Result<Option<PublisherEvent>> {
        self.try_next()
    }
}

/// A [`Listener`], a [`Membership`] or an [`Audience`], whose events are awaited by tasks. It is a [`Stream`] of events, which
/// ends when the source has closed.
pub struct Events<S> {
    watched: Watched,
    source: S,
    /// The stream has returned the error that ended the events.
    failed: bool,
}

opaque! { [S] Events<S>; }

/// A service at its address, whose arrivals are awaited by tasks.
///
/// Dropping it closes it: see [`crate::Listener`].
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
pub type Listener = Events<api::service::Listener>;

/// A membership of an address, whose changes are awaited by tasks.
///
/// Dropping it leaves, which blocks the thread. [`Membership::leave`] does that on another thread.
pub type Membership = Events<api::member::Membership>;

/// The half of a publisher that reports its subscribers' connects and disconnects, awaited by tasks.
///
/// Dropping it closes the publisher.
pub type Audience = Events<api::publish::Audience>;

impl<S: EventSource> Events<S> {
    /// Registers a source with the runtime of the calling task: what [`listen`](crate::listen), [`member()`](crate::member()) or
    /// [`Publisher::split`](crate::Publisher::split) returned.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The source is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(source: S) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&source)?,
            source,
            failed: false,
        })
    }

    async fn next_event(&self) -> Result<S::Event> {
        loop {
            if let Some(event) = self.source.try_event()? {
                return Ok(event);
            }
            let readable = self.watched.readable().await?;
            // Re-check: an event that arrives after this check makes the descriptor readable again.
            if let Some(event) = self.source.try_event()? {
                return Ok(event);
            }
            readable.clear();
        }
    }

    /// Returns the source itself. Its blocking calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &S {
        &self.source
    }

    /// Returns the source, and removes it from the runtime.
    pub fn into_inner(self) -> S {
        self.source
    }
}

impl Listener {
    /// Waits for the next arrival. Safe to cancel: no arrival is lost. If several tasks wait, each arrival
    /// goes to one of them.
    ///
    /// # Errors
    /// As [`crate::Listener::accept`].
    pub async fn accept(&self) -> Result<Arrival> {
        self.next_event().await
    }
}

impl Membership {
    /// Waits for the next change. Safe to cancel: no change is lost.
    ///
    /// # Errors
    /// As [`crate::Membership::next`].
    pub async fn next(&self) -> Result<Change> {
        self.next_event().await
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
        let Self { watched, source, .. } = self;
        drop(watched);
        // `leave` does not panic. If the runtime shuts down first, the closure is dropped, which leaves as
        // well.
        let _ = tokio::task::spawn_blocking(move || source.leave()).await;
    }
}

impl Audience {
    /// Waits for the next event. Safe to cancel: no event is lost.
    ///
    /// # Errors
    /// As [`crate::Audience::next`].
    pub async fn next(&self) -> Result<PublisherEvent> {
        self.next_event().await
    }
}

/// Its last item is the error that ended the source, unless the source has closed.
impl<S: EventSource + Unpin> Stream for Events<S> {
    type Item = Result<S::Event>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let found = loop {
            if let Some(found) = this.source.try_event().transpose() {
                break found;
            }
            let readable = ready!(this.watched.poll(cx));
            match readable.and_then(|readable| Ok((readable, this.source.try_event()?))) {
                Ok((_, Some(event))) => break Ok(event),
                Ok((readable, None)) => readable.clear(),
                Err(error) => break Err(error),
            }
        };
        this.failed = found.is_err();
        Poll::Ready(match found {
            Err(Error::Closed(_)) => None,
            found => Some(found),
        })
    }
}

/// A publisher whose calls are awaited by tasks.
///
/// Dropping it ends it: see [`crate::Publisher`].
pub struct Publisher {
    sender: Broadcaster,
    audience: Audience,
}

opaque! { [] Publisher; }

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
    /// [`Error::NoSpace`] if the runtime cannot watch the descriptors. The publisher
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
