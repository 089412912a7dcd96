//! The writing half of a channel.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    channel,
    channel::end::{ChannelState, CloseReason, Shared},
    channel::inbound::make_room,
    error::{Error, Result},
    ring::message::Progress,
    tokio::line::{Half, Line},
};

/// The writing half of a channel, for tasks.
///
/// It is a [`Sink`] of everything that is bytes. The sink accepts a message (`feed` returns `Ok`) after every check has passed, and
/// keeps a copy of it if the ring has no room. A refused message is not kept: its error is returned once, and the next call works.
/// Every method that sends, and [`Sender::room`], first sends the message that the sink keeps.
///
/// Dropping a sender ends the sending, as [`Sender::end`] does. If the sink still keeps a message, dropping closes the channel instead:
/// to the peer it must not look as if all had been sent. `flush` or `close` first.
///
/// # Cancel safety
/// A future that is dropped before it is ready leaves this behind:
///
/// | call | what happens to its message |
/// | --- | --- |
/// | [`send`](Sender::send), up to [`max_at_once`](crate::Sender::max_at_once) bytes | nothing was sent |
/// | [`send`](Sender::send) of a longer one | nothing was sent, or it is under way: see [`Sender::under_way`] |
/// | [`send_rest`](Sender::send_rest) | as of `send`; one that was under way still is |
/// | `feed` | it was not accepted |
/// | `SinkExt::send` | it was not accepted, or the sink keeps it |
/// | `flush`, `close`, [`room`](Sender::room) | the sink keeps the message that it had |
///
/// While a message of `send` is under way:
///
/// | call | result |
/// | --- | --- |
/// | [`send_rest`](Sender::send_rest) of the same message | finishes it |
/// | `send`, `try_send` and `feed`, and `send_rest` of a message of another length | [`Error::InvalidArgument`]; nothing else changes |
/// | `flush` | `Ok`: the sink keeps no message |
/// | `close`, [`end`](Sender::end) | the sending ends; the peer never gets the message |
///
/// The sink keeps its message through local errors: [`Error::NoSpace`] and [`Error::Unsupported`], and [`Error::InvalidArgument`]
/// while a reservation is open. If the sending has ended, or the channel has, the next call that would send the kept message drops it
/// and returns the error.
#[derive(Debug)]
pub struct Sender {
    line: Arc<Line>,
    /// Before `inner`, whose drop would end the sending.
    kept: Kept,
    inner: channel::sender::Sender,
}

/// The message that the sink keeps. Set by `start_send` alone, after the crate's half has accepted the message, so that it refuses no
/// part of it later. Only `poll_kept` and `try_kept` put more of it into the ring and clear this. A message of `send` is never here,
/// and is begun only while there is none here.
#[derive(Debug)]
struct Kept {
    /// Its bytes, and how many of them are in the ring.
    message: Option<(Vec<u8>, usize)>,
    shared: Arc<Shared>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.message.is_some() && !self.shared.sending_ended.load(Ordering::Acquire) {
            self.shared.finish(ChannelState::ClosedHere);
        }
    }
}

impl Sender {
    pub(super) fn new(line: Arc<Line>, inner: channel::sender::Sender) -> Self {
        Self {
            line,
            kept: Kept {
                message: None,
                shared: Arc::clone(&inner.shared),
            },
            inner,
        }
    }

    /// Puts a message into the ring, in fragments if necessary. Waits while there is no room.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, nothing of a message of up to [`max_at_once`](crate::Sender::max_at_once) bytes was
    /// sent. A longer message may be under way: [`Sender::under_way`] tells, and [`Sender::send_rest`] finishes it. Other messages are
    /// refused until then.
    ///
    /// # Errors
    /// As [`crate::Sender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_kept().await?;
        send_from(&self.line, &mut self.inner, message, 0).await
    }

    /// Finishes a message whose [`Sender::send`] was cancelled. Pass the same message. If none of it is in the ring, this sends all of
    /// it.
    ///
    /// # Cancel safety
    /// As [`Sender::send`]: call it again with the same message.
    ///
    /// # Errors
    /// As [`Sender::send`], and [`Error::InvalidArgument`] for a message of another length than the one under way.
    pub async fn send_rest(&mut self, message: &[u8]) -> Result<()> {
        self.send_kept().await?;
        // After the sink's own message, whose progress this would be.
        let written = self.inner.under_way().unwrap_or(0);
        send_from(&self.line, &mut self.inner, message, written).await
    }

    /// Returns the number of bytes in the ring of a message whose [`Sender::send`] was cancelled, or `None` if nothing of it was sent.
    /// ([`crate::Sender::under_way`] counts the message that the sink keeps as well.)
    pub fn under_way(&self) -> Option<usize> {
        match self.kept.message {
            Some(_) => None,
            None => self.inner.under_way(),
        }
    }

    /// Puts a message into the ring. `false`: there is no room now, or none for the message that the sink keeps.
    ///
    /// # Errors
    /// As [`crate::Sender::try_send`].
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        Ok(self.try_kept()? && self.inner.try_send(message)?)
    }

    /// Waits until a message of `size` bytes finds room, for a caller that writes it in place
    /// ([`crate::Sender::reserve`], by [`Sender::get_mut`]) or in a batch. For a message that travels in fragments, waits until the
    /// next fragment finds room. Cancel safe.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn room(&mut self, size: usize) -> Result<()> {
        self.send_kept().await?;
        poll_fn(|cx| self.line.poll_ready(Half::Sender, &mut self.inner, cx, size)).await
    }

    async fn send_kept(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_kept(cx)).await
    }

    /// Sends the message that the sink keeps, as far as there is room. Whether all of it is in the ring.
    fn try_kept(&mut self) -> Result<bool> {
        while let Some((message, written)) = &mut self.kept.message {
            match self.inner.send_part(message, *written) {
                Ok(Progress::Part(bytes)) if bytes > *written => *written = bytes,
                Ok(Progress::Part(_)) => return Ok(false),
                sent => self.finish_kept(sent.map(drop))?,
            }
        }
        Ok(true)
    }

    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some((message, written)) = &mut self.kept.message else {
            return Poll::Ready(Ok(()));
        };
        let sent = ready!(poll_send(&self.line, &mut self.inner, cx, (message, written)));
        Poll::Ready(self.finish_kept(sent))
    }

    /// After a local error the sink keeps its message: its first fragments may be in the ring.
    fn finish_kept(&mut self, sent: Result<()>) -> Result<()> {
        if !sent.as_ref().is_err_and(Error::is_local) {
            self.kept.message = None;
        }
        sent
    }

    /// Ends the sending; the other direction goes on. See [`crate::Sender::end`]. A message that the sink keeps is lost, and the next
    /// `flush` or `close` says so with [`Error::Closed`]: use `close` of the [`Sink`] instead, which sends it first.
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

    /// The crate's own half.
    pub fn get_ref(&self) -> &channel::sender::Sender {
        &self.inner
    }

    /// The crate's own half, for calls that do not wait: those that wait block the runtime's thread. A message that is sent through it
    /// overtakes one that the sink keeps, or is refused if that is under way: `flush` first.
    pub fn get_mut(&mut self) -> &mut channel::sender::Sender {
        &mut self.inner
    }

    /// The crate's own half, which the runtime no longer watches. A message that the sink keeps is lost: `flush` first. If that message
    /// is under way, the half refuses others until [`crate::Sender::send_part`] has finished it.
    pub fn into_inner(mut self) -> channel::sender::Sender {
        self.kept.message = None;
        self.inner
    }
}

/// Each item is a message.
impl<T: AsRef<[u8]>> Sink<T> for Sender {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_kept(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<()> {
        let this = self.get_mut();
        if this.kept.message.is_some() {
            return Err(Error::invalid("the sink was not ready (poll_ready)"));
        }
        let message = item.as_ref();
        let at_once = message.len() as u64 <= this.inner.max_at_once();
        if at_once && this.inner.try_send(message)? {
            return Ok(());
        }
        // A message that is too large is refused before it is copied, and none is in the ring before there is a copy of it.
        this.inner.has_room(message.len())?;
        let copy = copy_of(message)?;
        if let Progress::Part(written) = this.inner.send_part(&copy, 0)? {
            this.kept.message = Some((copy, written));
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

/// The copy of a message that a sink keeps while there is no room.
pub(super) fn copy_of(message: &[u8]) -> Result<Vec<u8>> {
    let mut copy = Vec::new();
    make_room(&mut copy, message.len())?;
    copy.extend_from_slice(message);
    Ok(copy)
}

/// Sends a message from the byte `written` on: the first ones are in the ring.
pub(super) async fn send_from(
    line: &Line,
    sender: &mut channel::sender::Sender,
    message: &[u8],
    mut written: usize,
) -> Result<()> {
    poll_fn(|cx| poll_send(line, sender, cx, (message, &mut written))).await
}

/// As [`send_from`], for a caller that keeps the message.
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

#[cfg(test)]
mod tests;
