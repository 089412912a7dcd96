//! Both directions of a channel.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    channel,
    channel::receiver,
    error::{Error, Result},
    region::layout::as_offset,
    tokio::inbound::{Receiver, poll_receive_on},
    tokio::line::Line,
    tokio::sender::{Sender, poll_send},
};

/// Both directions between this process and its peer, awaited by tasks.
///
/// Dropping it closes it. The peer can still read what is in the ring.
pub struct Channel {
    pub(super) line: Arc<Line>,
    pub(super) inner: channel::Channel,
}

opaque! { [] Channel; }

impl Channel {
    /// Registers the channel with the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the runtime cannot watch one more descriptor. The channel
    /// is closed then.
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn new(channel: channel::Channel) -> Result<Self> {
        Ok(Self {
            line: Line::new(channel.shared())?,
            inner: channel,
        })
    }

    /// Writes a message into the ring, and waits while there is no room. See [`Sender::send`], also for
    /// cancel safety: [`Channel::send_rest`] finishes a message whose `send` was cancelled half way.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_from(message, 0).await
    }

    /// Finishes a message whose [`Channel::send`] was cancelled: see [`Sender::send_rest`].
    pub async fn send_rest(&mut self, message: &[u8]) -> Result<()> {
        let written = self.inner.sender().under_way().unwrap_or(0);
        self.send_from(message, written).await
    }

    async fn send_from(&mut self, message: &[u8], mut written: usize) -> Result<()> {
        let Self { line, inner } = self;
        poll_fn(|cx| poll_send(line, inner.sender(), cx, (message, &mut written))).await
    }

    /// Receives the next message into the beginning of `into`: see [`Receiver::receive`].
    pub async fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let Self { line, inner } = self;
        poll_fn(|cx| poll_receive_on(line, inner.receiver(), cx, |receiver| receiver.try_receive(into))).await
    }

    /// Receives the next message in memory of its own size: see [`Receiver::receive_vec`].
    pub async fn receive_vec(&mut self) -> Result<Option<Vec<u8>>> {
        let Self { line, inner } = self;
        let try_receive = receiver::Receiver::try_receive_vec;
        poll_fn(|cx| poll_receive_on(line, inner.receiver(), cx, try_receive)).await
    }

    /// Turns the channel into a stream of bytes, for code that expects a socket:
    /// `tokio::io::copy_bidirectional`, hyper, tonic, tarpc, TLS.
    ///
    /// A message whose [`Channel::send`] was cancelled half way must be finished first: until then writes
    /// fail.
    pub fn into_stream(mut self) -> ByteStream {
        let sender = self.inner.sender();
        // The size of a fragment, so that the peer reads one piece while the next is written.
        let piece = as_offset((sender.capacity() / 8).min(sender.max_at_once()));
        ByteStream {
            line: self.line,
            inner: self.inner,
            unread: Unread::default(),
            piece: piece.max(1),
        }
    }

    /// Splits the channel into its halves, which can be used on two tasks. The channel closes once both are
    /// dropped.
    pub fn split(self) -> (Sender, Receiver) {
        let (sender, receiver) = self.inner.split();
        (
            Sender::with_line(Arc::clone(&self.line), sender),
            Receiver::on(self.line, receiver),
        )
    }

    /// Returns the channel itself: the peer's identity, the evidence, tokens.
    pub fn get_ref(&self) -> &channel::Channel {
        &self.inner
    }

    /// Returns the channel itself, for calls that do not wait. Blocking calls hold up the runtime's thread.
    pub fn get_mut(&mut self) -> &mut channel::Channel {
        &mut self.inner
    }

    /// Returns the channel, and removes it from the runtime.
    pub fn into_inner(self) -> channel::Channel {
        self.inner
    }
}

/// The most memory in bytes that is kept to buffer a later message that is longer than the reader's buffer.
const KEPT: usize = 1 << 20;

/// A channel as a stream of bytes, made by [`Channel::into_stream`](crate::tokio::Channel::into_stream).
///
/// hyper, tarpc, TLS libraries and others accept it as they accept a `TcpStream`. Message boundaries are not
/// kept. The peer may be such a stream as well, or the duplex of a Node process, or it may send messages: a
/// message is its bytes, and an empty one is skipped.
///
/// ```no_run
/// use ringfence::{Options, tokio::join};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # async fn run() -> std::io::Result<()> {
/// let address = "/run/user/1000/orders.sock".parse()?;
/// let mut stream = join(&address, &Options::new()).await?.into_stream();
/// stream.write_all(b"hello").await?;
/// stream.shutdown().await?; // no more will come: the peer reads the end of the stream
/// let mut answer = Vec::new();
/// stream.read_to_end(&mut answer).await?; // fails if the peer is lost before its own `shutdown`
/// # Ok(())
/// # }
/// ```
///
/// # The end, and a lost peer
/// Reads first return everything that the peer has written. After that:
///
/// | the peer | a read returns | a write returns |
/// | --- | --- | --- |
/// | ended its sending (`shutdown`, [`Sender::end`](crate::Sender::end), a dropped [`Sender`](crate::Sender)), still open | end of file | bytes |
/// | ended its sending, then closed the channel or exited | end of file | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
/// | was killed, crashed or exited before that | [`ConnectionReset`](io::ErrorKind::ConnectionReset) | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
/// | destroyed the channel before that, or dropped its stream | [`ConnectionReset`](io::ErrorKind::ConnectionReset) | [`BrokenPipe`](io::ErrorKind::BrokenPipe) |
///
/// So a peer that is killed never looks like one that has finished. The [`Error`] is behind
/// [`io::Error::get_ref`]: [`Error::PeerLost`] for a lost peer. Other errors become an [`io::Error`] as `?`
/// converts them.
///
/// `poll_shutdown` ends this direction. **A stream that is dropped without it is a lost peer to the other
/// side**, also if its task panics or is aborted.
///
/// # Cancel safety
/// Reads and writes lose nothing if they are cancelled, as those of a `TcpStream`: a write that was not ready
/// has written nothing.
///
/// # Servers of tonic
/// `tonic::transport::Server` requires its own trait `Connected`, which no other crate can implement for this
/// type. Wrap the stream in a type of your own, or serve tonic's `Routes` with hyper. A client accepts the
/// stream through `Endpoint::connect_with_connector`.
pub struct ByteStream {
    line: Arc<Line>,
    inner: channel::Channel,
    unread: Unread,
    /// The most bytes that one write puts into the ring.
    piece: usize,
}

opaque! { [] ByteStream; }

/// The remainder of a message that was longer than the reader's buffer.
#[derive(Debug, Default)]
struct Unread {
    message: Vec<u8>,
    /// Number of its bytes that were returned to the reader.
    read: usize,
}

impl Unread {
    /// Copies buffered bytes to the reader. Returns whether there were any.
    fn hand_out(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let left = &self.message[self.read..];
        let count = left.len().min(into.remaining());
        into.put_slice(&left[..count]);
        self.read += count;
        if self.read == self.message.len() && self.message.capacity() > KEPT {
            *self = Self::default();
        }
        count > 0
    }

    /// Moves the next message to the reader, or as much of it as fits. Returns the number of bytes. `None`:
    /// there is no message.
    fn hand_out_next(
        &mut self,
        receiver: &mut receiver::Receiver,
        into: &mut ReadBuf<'_>,
    ) -> Result<Option<usize>> {
        let Some(size) = receiver.next_size()? else {
            return Ok(None);
        };
        let before = into.filled().len();
        if size <= into.remaining() {
            let Some(length) = receiver.try_receive(into.initialize_unfilled_to(size))? else {
                return Ok(None);
            };
            into.advance(length);
        } else {
            let filled = receiver.try_receive_into(&mut self.message);
            self.read = 0;
            if !matches!(filled, Ok(true)) {
                self.message.clear();
            }
            if !filled? {
                return Ok(None);
            }
            self.hand_out(into);
        }
        Ok(Some(into.filled().len() - before))
    }

    /// Moves all available bytes that fit. `None`: there are none.
    fn fill(&mut self, receiver: &mut receiver::Receiver, into: &mut ReadBuf<'_>) -> Result<Option<()>> {
        let mut found = self.hand_out(into);
        while into.remaining() > 0 {
            match self.hand_out_next(receiver, into) {
                Ok(Some(0)) => return Ok(Some(())),
                Ok(Some(_)) => found = true,
                Ok(None) => break,
                // The reader gets these bytes first. The next call meets the error again.
                Err(_) if found => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found.then_some(()))
    }
}

impl ByteStream {
    /// Returns the channel: the peer's identity, the evidence, tokens, the reason of its end.
    pub fn get_ref(&self) -> &channel::Channel {
        &self.inner
    }

    /// Returns the channel, for calls that do not wait: blocking calls hold up the runtime's thread. Messages
    /// that are received through it are missing from the stream, and messages that are sent through it appear
    /// in the middle of it.
    pub fn get_mut(&mut self) -> &mut channel::Channel {
        &mut self.inner
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (receiver, unread) = (this.inner.receiver(), &mut this.unread);
        let before = into.filled().len();
        // An empty message must not look like the end. Each round consumes a unit of the task's cooperative
        // budget.
        while into.remaining() > 0 && into.filled().len() == before {
            let fill = |receiver: &mut receiver::Receiver| unread.fill(receiver, into);
            if ready!(poll_receive_on(&this.line, receiver, cx, fill))?.is_none() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        // The piece is written whole or not at all, so nothing is under way if this is not ready.
        let piece = &bytes[..bytes.len().min(this.piece)];
        let sent = ready!(poll_send(&this.line, this.inner.sender(), cx, (piece, &mut 0)));
        Poll::Ready(sent.map(|()| piece.len()).map_err(|error| match error {
            Error::PeerLost(_) => io::Error::new(io::ErrorKind::BrokenPipe, error),
            other => other.into(),
        }))
    }

    /// Does nothing: written bytes are in the ring already.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction. The other one stays open.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().inner.sender().end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        // The channel's own drop would end the sending, as if everything had been written.
        let sender = self.inner.sender();
        if !sender.shared.sending_ended.load(Ordering::Acquire) {
            sender.destroy();
        }
    }
}
