//! The writing half of a channel.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    channel,
    channel::reason::CloseReason,
    channel::receiver::make_room,
    error::{Error, Result},
    ring::message::Progress,
    tokio::line::{Half, Line},
};

/// The writing half of a channel, waited for by a task.
///
/// It is a [`Sink`] of everything that is bytes. The sink takes a copy of a message for which there is no room, and sends that first,
/// whatever is called next.
///
/// Dropping it ends the sending, as [`Sender::end`] does.
#[derive(Debug)]
pub struct Sender {
    line: Arc<Line>,
    inner: channel::sender::Sender,
    /// A message that the sink has taken, and how much of it is in the ring. `None`: all of them are.
    taken: Option<(Vec<u8>, usize)>,
}

impl Sender {
    pub(super) fn new(line: Arc<Line>, inner: channel::sender::Sender) -> Self {
        Self {
            line,
            inner,
            taken: None,
        }
    }

    /// Puts a message into the ring, in fragments if it must, and waits while there is no room.
    ///
    /// # Cancel safety
    /// Where the future is dropped before it is ready, nothing of a message of at most [`Sender::max_at_once`](crate::Sender::max_at_once)
    /// bytes was sent. A longer one may be under way: [`crate::Sender::under_way`] tells, [`Sender::send_rest`] goes on with it, and
    /// every other message is refused before that, with [`Error::InvalidArgument`].
    ///
    /// # Errors
    /// As [`crate::Sender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_from(message, 0).await
    }

    /// Goes on with a message whose [`Sender::send`] was dropped: the same one. One of which nothing is in the ring is sent from its
    /// beginning.
    ///
    /// # Errors
    /// As [`Sender::send`], and [`Error::InvalidArgument`] for a message of another length than the one under way.
    pub async fn send_rest(&mut self, message: &[u8]) -> Result<()> {
        let written = self.inner.under_way().unwrap_or(0);
        self.send_from(message, written).await
    }

    async fn send_from(&mut self, message: &[u8], mut written: usize) -> Result<()> {
        poll_fn(|cx| {
            ready!(self.poll_taken(cx))?;
            poll_send(&self.line, &mut self.inner, cx, (message, &mut written))
        })
        .await
    }

    /// Puts a message into the ring. `false`: there is no room now, or a message of the sink's is not in the ring yet.
    ///
    /// # Errors
    /// As [`crate::Sender::try_send`].
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        Ok(self.try_taken()? && self.inner.try_send(message)?)
    }

    /// Waits until a message of `size` bytes finds room, for a caller that writes it in place
    /// ([`crate::Sender::reserve`], by [`Sender::get_mut`]) or in a batch. One that travels in fragments: until its next finds room.
    /// Safe to cancel.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn room(&mut self, size: usize) -> Result<()> {
        poll_fn(|cx| {
            ready!(self.poll_taken(cx))?;
            self.line.poll_ready(Half::Sender, &mut self.inner, cx, size)
        })
        .await
    }

    /// Sends what the sink has taken. Whether all of it is in the ring.
    fn try_taken(&mut self) -> Result<bool> {
        while let Some((message, written)) = &mut self.taken {
            match self.inner.send_part(message, *written)? {
                Progress::Whole => self.taken = None,
                Progress::Part(bytes) if bytes > *written => *written = bytes,
                Progress::Part(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while let Some((message, written)) = &mut self.taken {
            ready!(poll_send(&self.line, &mut self.inner, cx, (message, written)))?;
            self.taken = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends no more; the other direction goes on. See [`crate::Sender::end`]. A message that the sink has taken, and that is not in
    /// the ring, is lost: [`Sink::poll_close`] sends it first.
    pub fn end(&mut self) {
        self.inner.end();
    }

    /// Closes the whole channel from this half.
    pub fn close(&mut self) {
        self.inner.close();
    }

    /// Why the channel has ended; `None` while it has not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.close_reason()
    }

    /// The half itself.
    pub fn get_ref(&self) -> &channel::sender::Sender {
        &self.inner
    }

    /// The half itself, for calls that do not wait: those that wait hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::sender::Sender {
        &mut self.inner
    }

    /// The half, no longer waited for by the runtime. A message that the sink has taken and not sent is lost.
    pub fn into_inner(self) -> channel::sender::Sender {
        self.inner
    }
}

/// Each item is a message.
impl<T: AsRef<[u8]>> Sink<T> for Sender {
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
        if message.len() as u64 <= this.inner.max_at_once() && this.inner.try_send(message)? {
            return Ok(());
        }
        // Before anything of it is in the ring: a message is taken or is not.
        this.taken = Some((copy_of(message)?, 0));
        this.try_taken().map(drop)
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

/// What a sink keeps of a message for which there is no room.
pub(super) fn copy_of(message: &[u8]) -> Result<Vec<u8>> {
    let mut copy = Vec::new();
    make_room(&mut copy, message.len())?;
    copy.extend_from_slice(message);
    Ok(copy)
}

/// Sends a message, of which so many bytes are in the ring.
pub(super) fn poll_send(
    line: &Line,
    sender: &mut channel::sender::Sender,
    cx: &mut Context<'_>,
    (message, written): (&[u8], &mut usize),
) -> Poll<Result<()>> {
    let turn = ready!(coop::poll_proceed(cx));
    loop {
        match sender.send_part(message, *written)? {
            Progress::Whole => {
                turn.made_progress();
                return Poll::Ready(Ok(()));
            }
            Progress::Part(bytes) => *written = bytes,
        }
        ready!(line.poll_ready(Half::Sender, sender, cx, message.len()))?;
    }
}
