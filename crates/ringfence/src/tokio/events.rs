//! What brings news of processes that come and go.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use crate::{
    channel::Channel,
    endpoint,
    endpoint::broadcast::audience::PublisherEvent,
    endpoint::membership::change::Change,
    endpoint::service::Arrival,
    error::{Error, Result},
    tokio::watched::Watched,
};

/// The next event, for any number of tasks. Safe to cancel.
async fn next<T>(watched: &Watched, try_next: impl Fn() -> Result<Option<T>>) -> Result<T> {
    loop {
        if let Some(event) = try_next()? {
            return Ok(event);
        }
        let readable = watched.readable().await?;
        // Between the two: an event that comes after this look is news.
        if let Some(event) = try_next()? {
            return Ok(event);
        }
        readable.was_read();
    }
}

/// The same as an item of a stream, which ends where all is over. Any other error is told, once.
fn poll_next<T>(
    (watched, failed): (&Watched, &mut bool),
    cx: &mut Context<'_>,
    try_next: impl Fn() -> Result<Option<T>>,
) -> Poll<Option<Result<T>>> {
    if *failed {
        return Poll::Ready(None);
    }
    let found = loop {
        if let Some(found) = try_next().transpose() {
            break found;
        }
        let readable = ready!(watched.poll(cx));
        match readable.and_then(|readable| Ok((readable, try_next()?))) {
            Ok((_, Some(event))) => break Ok(event),
            Ok((readable, None)) => readable.was_read(),
            Err(error) => break Err(error),
        }
    };
    *failed = found.is_err();
    Poll::Ready(match found {
        Err(Error::Closed(_)) => None,
        found => Some(found),
    })
}

/// A service at its address, whose arrivals tasks wait for. It is a [`Stream`] of them, which ends when it has closed.
///
/// Dropping it closes it: see [`crate::Listener`].
#[derive(Debug)]
pub struct Listener {
    watched: Watched,
    inner: endpoint::service::Listener,
    failed: bool,
}

impl Listener {
    /// Waits for the arrivals of what [`listen`](crate::listen) has made, in the runtime of the task that calls this.
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
    /// [`Error::NoSpace`] where the runtime cannot watch one more descriptor. The listener is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(listener: endpoint::service::Listener) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&listener)?,
            inner: listener,
            failed: false,
        })
    }

    /// Waits for the next arrival. Safe to cancel: no arrival is lost. Tasks that wait side by side get one each.
    ///
    /// # Errors
    /// As [`crate::Listener::accept`].
    pub async fn accept(&self) -> Result<Arrival> {
        next(&self.watched, || self.inner.try_accept()).await
    }

    /// The listener itself. Its waiting calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &endpoint::service::Listener {
        &self.inner
    }

    /// The listener, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::service::Listener {
        self.inner
    }
}

impl Stream for Listener {
    type Item = Result<Arrival>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self {
            watched,
            inner,
            failed,
        } = self.get_mut();
        poll_next((watched, failed), cx, || inner.try_accept())
    }
}

/// A place at an address, whose changes tasks wait for. It is a [`Stream`] of them.
///
/// Dropping it leaves, and holds up the thread meanwhile: [`Membership::leave`] does so elsewhere.
#[derive(Debug)]
pub struct Membership {
    watched: Watched,
    inner: endpoint::membership::Membership,
    failed: bool,
}

impl Membership {
    /// Waits for the changes of what [`member()`](crate::member()) has made, in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the runtime cannot watch one more descriptor. The place is left then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(membership: endpoint::membership::Membership) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&membership)?,
            inner: membership,
            failed: false,
        })
    }

    /// Waits for the next change. Safe to cancel: no change is lost.
    ///
    /// # Errors
    /// As [`crate::Membership::next`].
    pub async fn next(&self) -> Result<Change> {
        next(&self.watched, || self.inner.try_next()).await
    }

    /// Waits for the next partner, and passes over all other changes. Safe to cancel.
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

    /// Leaves: see [`crate::Membership::leave`]. Where the future is dropped, it is left all the same.
    pub async fn leave(self) {
        let Self { watched, inner, .. } = self;
        drop(watched);
        // It does not panic; and where the runtime ends, what has not begun is dropped, which leaves as well.
        let _ = tokio::task::spawn_blocking(move || inner.leave()).await;
    }

    /// The membership itself. Its waiting calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &endpoint::membership::Membership {
        &self.inner
    }

    /// The membership, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::membership::Membership {
        self.inner
    }
}

impl Stream for Membership {
    type Item = Result<Change>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self {
            watched,
            inner,
            failed,
        } = self.get_mut();
        poll_next((watched, failed), cx, || inner.try_next())
    }
}

/// The half of a publisher that sees who comes and goes, waited for by tasks. It is a [`Stream`] of what it sees.
///
/// Dropping it closes the publisher.
#[derive(Debug)]
pub struct Audience {
    watched: Watched,
    inner: endpoint::broadcast::publisher::Audience,
    failed: bool,
}

impl Audience {
    /// Waits for its events in the runtime of the task that calls this.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the runtime cannot watch one more descriptor. The publisher is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(audience: endpoint::broadcast::publisher::Audience) -> Result<Self> {
        Ok(Self {
            watched: Watched::copy_of(&audience)?,
            inner: audience,
            failed: false,
        })
    }

    /// Waits for the next event. Safe to cancel: no event is lost.
    ///
    /// # Errors
    /// As [`crate::Audience::next`].
    pub async fn next(&self) -> Result<PublisherEvent> {
        next(&self.watched, || self.inner.try_next()).await
    }

    /// The half itself. Its waiting calls hold up the runtime's thread.
    pub fn get_ref(&self) -> &endpoint::broadcast::publisher::Audience {
        &self.inner
    }

    /// The half, no longer waited for by the runtime.
    pub fn into_inner(self) -> endpoint::broadcast::publisher::Audience {
        self.inner
    }
}

impl Stream for Audience {
    type Item = Result<PublisherEvent>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self {
            watched,
            inner,
            failed,
        } = self.get_mut();
        poll_next((watched, failed), cx, || inner.try_next())
    }
}
