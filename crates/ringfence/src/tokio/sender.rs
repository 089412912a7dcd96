//! The sending half of a channel or of a publisher, for tasks.
#![expect(
    private_bounds,
    reason = "programs use the kinds of a ring that this crate has"
)]

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    channel::end::{ChannelState, CloseReason},
    channel::inbound::make_room,
    channel::outbound::{self, Outlet},
    channel::{self, sender},
    error::{Error, Result},
    host::broadcaster,
    ring::fan_out::FanOut,
    ring::message::Progress,
    ring::record::Tag,
    ring::spsc::Spsc,
    tokio::line::{Half, Line, Watched},
    wake::attachments::AttachmentRef,
};

/// The sending half of a channel ([`Sender`]) or of a publisher ([`Broadcaster`]), for tasks.
///
/// It is a [`Sink`] of everything that is bytes. The sink accepts a message (`feed` returns `Ok`) after every
/// check has passed, and keeps a copy of it if the ring has no room. A refused message is not buffered: its error
/// is returned once, and the next call works. Every method that sends, and [`Outbound::room`], first sends
/// the message that the sink has buffered.
///
/// The sink keeps its message through local errors: [`Error::NoSpace`] and [`Error::Unsupported`], and
/// [`Error::InvalidArgument`] while a reservation is open. If the sending has ended, or the channel has, the
/// next call that would send the buffered message drops it and returns the error.
///
/// Dropping it ends the sending, as [`Outbound::end`] does. If the sink of a channel still has a buffered message,
/// dropping destroys the channel instead: the peer must not see a clean end. The sink of a
/// publisher loses its message then. Call `flush` or `close` first.
///
/// # Cancel safety
/// A publisher publishes each message whole: if `send` is cancelled, its message was not published, and no
/// longer counts time against the subscribers. At a channel, a future that is dropped before it is ready
/// leaves this behind:
///
/// | call | what happens to its message |
/// | --- | --- |
/// | [`send`](Sender::send), up to [`max_at_once`](crate::Sender::max_at_once) bytes | nothing was sent |
/// | [`send`](Sender::send) of a longer one | nothing was sent, or it is under way: see [`Sender::under_way`] |
/// | [`send_with`](Sender::send_with) | as of `send`; the attachments of one that is under way were sent |
/// | [`send_rest`](Sender::send_rest) | as of `send`; one that was under way still is |
/// | `feed` | it was not accepted |
/// | `SinkExt::send` | it was not accepted, or the sink has buffered it |
/// | `flush`, `close`, [`room`](Sender::room) | a buffered message stays buffered |
///
/// While a message of `send` is under way:
///
/// | call | result |
/// | --- | --- |
/// | [`send_rest`](Sender::send_rest) of the same message | finishes it |
/// | `send`, `try_send` and `feed`, and `send_rest` of a message of another length | [`Error::InvalidArgument`]; nothing else changes |
/// | `flush` | `Ok`: the sink has no buffered message |
/// | `close`, [`end`](Sender::end) | the sending ends; the peer never gets the message |
pub struct Outbound<R: TaskOutlet> {
    line: R::Line,
    /// Before `inner`, whose drop would end the sending.
    buffered: Buffered<R>,
    inner: outbound::Outbound<R>,
}

opaque! { [R: TaskOutlet] Outbound<R>; }

/// The sending half of a channel, for tasks.
pub type Sender = Outbound<Spsc>;

/// The sending half of a publisher, for tasks.
pub type Broadcaster = Outbound<FanOut>;

/// A kind of ring, as a sending task needs it.
pub(super) trait TaskOutlet: Outlet {
    /// The line that wakes the task.
    type Line;

    /// Waits until a message of `size` bytes may find room.
    fn poll_room(
        line: &Self::Line,
        inner: &mut outbound::Outbound<Self>,
        cx: &mut Context<'_>,
        size: usize,
    ) -> Poll<Result<()>>;

    /// Gives up the message that waits for room: it is not sent.
    fn give_up(inner: &mut outbound::Outbound<Self>);

    /// Records that the message of the sink is lost.
    fn lose(shared: &Self::Shared);
}

impl TaskOutlet for Spsc {
    type Line = Arc<Line>;

    fn poll_room(
        line: &Arc<Line>,
        inner: &mut sender::Sender,
        cx: &mut Context<'_>,
        size: usize,
    ) -> Poll<Result<()>> {
        line.poll_ready(Half::Sender, inner, cx, size)
    }

    fn give_up(_inner: &mut sender::Sender) {}

    fn lose(shared: &channel::end::Shared) {
        if !shared.sending_ended.load(Ordering::Acquire) {
            shared.finish(ChannelState::DestroyedHere);
        }
    }
}

impl TaskOutlet for FanOut {
    type Line = Watched;

    /// Returns after each wakeup: a refused attempt charges the subscribers that are in the way.
    fn poll_room(
        line: &Watched,
        inner: &mut broadcaster::Broadcaster,
        cx: &mut Context<'_>,
        size: usize,
    ) -> Poll<Result<()>> {
        if inner.arm(size)? {
            let readable = ready!(line.poll(cx))?;
            inner.poll_line();
            readable.clear_if_drained(&*inner);
            inner.disarm();
        }
        Poll::Ready(Ok(()))
    }

    fn give_up(inner: &mut broadcaster::Broadcaster) {
        inner.give_up();
    }

    fn lose(_shared: &Self::Shared) {}
}

/// The message that the sink has buffered. Only `start_send` sets it, after the crate's half has accepted the
/// message, so that it refuses no part of it later. Only `poll_buffered` and `try_buffered` put more of it into the
/// ring and clear this. A message of `send` is never here, and is begun only while there is none here.
struct Buffered<R: TaskOutlet> {
    /// Its bytes, and how many of them are in the ring.
    message: Option<(Vec<u8>, usize)>,
    shared: Arc<R::Shared>,
}

impl<R: TaskOutlet> Drop for Buffered<R> {
    fn drop(&mut self) {
        if self.message.is_some() {
            R::lose(&self.shared);
        }
    }
}

/// Unparks the half when this is dropped, so that a cancelled call causes no wakeup.
struct Parked<'a, R: TaskOutlet>(&'a mut Outbound<R>);

impl<R: TaskOutlet> Drop for Parked<'_, R> {
    fn drop(&mut self) {
        self.0.inner.disarm();
    }
}

/// When this is dropped, the message of a `send` no longer waits. The message of the sink still does.
struct Waiting<'a, R: TaskOutlet>(Parked<'a, R>);

impl<R: TaskOutlet> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        let Parked(outbound) = &mut self.0;
        if outbound.buffered.message.is_none() {
            R::give_up(&mut outbound.inner);
        }
    }
}

impl<R: TaskOutlet> Outbound<R> {
    pub(super) fn with_line(line: R::Line, inner: outbound::Outbound<R>) -> Self {
        Self {
            line,
            buffered: Buffered {
                message: None,
                shared: Arc::clone(&inner.shared),
            },
            inner,
        }
    }

    /// Puts a message into the ring, in fragments if necessary. Waits while there is no room.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, nothing of a message of up to
    /// [`max_at_once`](crate::Sender::max_at_once) bytes was sent. A longer message may be under way:
    /// [`Sender::under_way`] tells, and [`Sender::send_rest`] finishes it. Other messages are refused until
    /// then. A publisher has no such messages.
    ///
    /// # Errors
    /// As [`crate::Sender::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_from(message, |_, _, _| Poll::Ready(Ok(Progress::Part(0))))
            .await
    }

    /// Sends the buffered message, and then this one, once `begin` has found how much of it is in the ring.
    async fn send_from(
        &mut self,
        message: &[u8],
        mut begin: impl FnMut(&R::Line, &mut outbound::Outbound<R>, &mut Context<'_>) -> Poll<Result<Progress>>,
    ) -> Result<()> {
        let waiting = Waiting(Parked(self));
        poll_fn(|cx| waiting.0.0.poll_buffered(cx)).await?;
        // Only after the sink's own message is sent: before, this would be the progress of that one.
        let progress = poll_fn(|cx| {
            let Self { line, inner, .. } = &mut *waiting.0.0;
            begin(line, inner, cx)
        });
        let Progress::Part(mut written) = progress.await? else {
            return Ok(());
        };
        poll_fn(|cx| {
            let Self { line, inner, .. } = &mut *waiting.0.0;
            poll_send(line, inner, cx, (message, &mut written))
        })
        .await
    }

    /// Puts a message into the ring. `false`: there is no room now, or none for the message that the sink
    /// keeps.
    ///
    /// # Errors
    /// As [`crate::Sender::try_send`].
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        Ok(self.try_buffered()? && self.inner.try_send(message)?)
    }

    /// Waits until a message of `size` bytes finds room, for a caller that writes it in place
    /// ([`crate::Sender::reserve`], by [`Outbound::get_mut`]) or in a batch. For a message that travels in
    /// fragments, waits until the next fragment finds room. Cancel safe.
    ///
    /// # Errors
    /// As [`Outbound::send`].
    pub async fn room(&mut self, size: usize) -> Result<()> {
        let parked = Parked(self);
        poll_fn(|cx| parked.0.poll_buffered(cx)).await?;
        let Self { line, inner, .. } = &mut *parked.0;
        poll_fn(|cx| {
            inner.disarm();
            while !inner.has_room(size)? {
                ready!(R::poll_room(line, inner, cx, size))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Sends the message that the sink has buffered, as far as there is room. Returns whether all of it is in the
    /// ring.
    fn try_buffered(&mut self) -> Result<bool> {
        while let Some((message, written)) = &mut self.buffered.message {
            match R::send_part(&mut self.inner, message, Tag::NONE, *written) {
                Ok(Progress::Part(bytes)) if bytes > *written => *written = bytes,
                Ok(Progress::Part(_)) => return Ok(false),
                sent => self.finish_buffered(sent.map(drop))?,
            }
        }
        Ok(true)
    }

    fn poll_buffered(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some((message, written)) = &mut self.buffered.message else {
            return Poll::Ready(Ok(()));
        };
        let sent = ready!(poll_send(&self.line, &mut self.inner, cx, (message, written)));
        Poll::Ready(self.finish_buffered(sent))
    }

    /// After a local error the sink keeps its message: its first fragments may be in the ring.
    fn finish_buffered(&mut self, sent: Result<()>) -> Result<()> {
        if !sent.as_ref().is_err_and(Error::is_local) {
            self.buffered.message = None;
        }
        sent
    }

    /// Ends the sending. See [`crate::Sender::end`]. A message that the sink has buffered is lost, and the next
    /// `flush` or `close` fails with [`Error::Closed`]: use `close` of the [`Sink`] instead, which sends it
    /// first.
    pub fn end(&mut self) {
        self.inner.end();
    }

    /// Why the channel or the publisher has ended; `None` while it has not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.close_reason()
    }

    /// Returns the crate's own half.
    pub fn get_ref(&self) -> &outbound::Outbound<R> {
        &self.inner
    }

    /// Returns the crate's own half, for calls that do not wait: blocking calls hold up the runtime's thread.
    /// A message that is sent through it overtakes one that the sink has buffered, or is refused if that one is
    /// under way: `flush` first.
    pub fn get_mut(&mut self) -> &mut outbound::Outbound<R> {
        &mut self.inner
    }

    /// Returns the crate's own half, and removes it from the runtime. A message that the sink has buffered is lost:
    /// `flush` first. If that message is under way, the half refuses others until
    /// [`crate::Sender::send_part`] has finished it.
    pub fn into_inner(mut self) -> outbound::Outbound<R> {
        self.buffered.message = None;
        self.inner
    }
}

impl Sender {
    /// Finishes a message whose [`Sender::send`] was cancelled. Pass the same message. If none of it is in
    /// the ring, this sends all of it.
    ///
    /// # Cancel safety
    /// As [`Sender::send`]: call it again with the same message.
    ///
    /// # Errors
    /// As [`Sender::send`], and [`Error::InvalidArgument`] for a message of another length than the one under
    /// way.
    pub async fn send_rest(&mut self, message: &[u8]) -> Result<()> {
        let begin = |_: &Arc<Line>, inner: &mut sender::Sender, _: &mut Context<'_>| {
            Poll::Ready(Ok(Progress::Part(inner.under_way().unwrap_or(0))))
        };
        self.send_from(message, begin).await
    }

    /// Sends a message with attachments. Waits also while the peer holds as many unread attachments as it accepts.
    ///
    /// # Cancel safety
    /// As [`Sender::send`]. A message that is under way has passed its attachments: [`Sender::send_rest`] finishes it.
    ///
    /// # Errors
    /// As [`crate::Sender::send_with`].
    pub async fn send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<()> {
        let begin = |line: &Arc<Line>, inner: &mut sender::Sender, cx: &mut Context<'_>| {
            poll_begin(line, inner, cx, (message, attachments))
        };
        self.send_from(message, begin).await
    }

    /// Returns the number of bytes in the ring of a message whose [`Sender::send`] was cancelled, or `None`
    /// if nothing of it was sent. ([`crate::Sender::under_way`] counts the message that the sink has buffered as
    /// well.)
    pub fn under_way(&self) -> Option<usize> {
        match self.buffered.message {
            Some(_) => None,
            None => self.inner.under_way(),
        }
    }

    /// Closes the whole channel from this half. The peer gets a clean end, unless the sink keeps a message: then
    /// this is as [`crate::Sender::destroy`], since that message is lost.
    pub fn close(&mut self) {
        if self.buffered.message.is_some() {
            self.inner.destroy();
        } else {
            self.inner.close();
        }
    }
}

impl Broadcaster {
    /// Registers the half with the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The sending is ended then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(broadcaster: broadcaster::Broadcaster) -> Result<Self> {
        Ok(Self::with_line(Watched::copy_of(&broadcaster)?, broadcaster))
    }
}

/// Each item is a message.
impl<R: TaskOutlet, T: AsRef<[u8]>> Sink<T> for Outbound<R>
where
    Self: Unpin,
{
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_buffered(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<()> {
        let Self { buffered, inner, .. } = self.get_mut();
        if buffered.message.is_some() {
            return Err(Error::invalid("the sink was not ready (poll_ready)"));
        }
        let message = item.as_ref();
        let at_once = message.len() as u64 <= inner.limits.at_once;
        if at_once && inner.try_send(message)? {
            return Ok(());
        }
        // A message that is too large is refused before it is copied, and none is in the ring before there is
        // a copy of it.
        inner.has_room(message.len())?;
        // A message that cannot be buffered must not wait.
        let mut copy = Vec::new();
        make_room(&mut copy, message.len()).inspect_err(|_| R::give_up(inner))?;
        copy.extend_from_slice(message);
        if let Progress::Part(written) = R::send_part(inner, &copy, Tag::NONE, 0)? {
            buffered.message = Some((copy, written));
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_buffered(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_buffered(cx))?;
        this.inner.end();
        Poll::Ready(Ok(()))
    }
}

/// Sends a message from the byte `written` on: the earlier bytes are in the ring.
pub(super) fn poll_send<R: TaskOutlet>(
    line: &R::Line,
    inner: &mut outbound::Outbound<R>,
    cx: &mut Context<'_>,
    (message, written): (&[u8], &mut usize),
) -> Poll<Result<()>> {
    let turn = ready!(coop::poll_proceed(cx));
    inner.disarm();
    loop {
        match R::send_part(inner, message, Tag::NONE, *written)? {
            Progress::Whole => {
                turn.made_progress();
                return Poll::Ready(Ok(()));
            }
            Progress::Part(bytes) => *written = bytes,
        }
        ready!(R::poll_room(line, inner, cx, message.len()))?;
    }
}

/// Starts a message with attachments.
fn poll_begin(
    line: &Line,
    inner: &mut sender::Sender,
    cx: &mut Context<'_>,
    (message, attachments): (&[u8], &[AttachmentRef<'_>]),
) -> Poll<Result<Progress>> {
    let turn = ready!(coop::poll_proceed(cx));
    loop {
        let sent = inner.send_part_with(message, attachments)?;
        if sent != Progress::Part(0) {
            turn.made_progress();
            return Poll::Ready(Ok(sent));
        }
        let wait = |inner: &mut _| line.poll_ready(Half::Sender, inner, cx, message.len());
        ready!(inner.wait_with(attachments, wait)?)?;
    }
}

#[cfg(test)]
mod tests;
