//! Channels for tasks of [Tokio](https://docs.rs/tokio): the feature `tokio`, which is off by default.
//!
//! Each type here wraps one of the crate's types, and waits for it on the runtime's own event loop: no thread
//! waits for an open channel. [`join`], [`connect`], [`member`] and [`subscribe`] make one. [`Listener::new`]
//! and [`Publisher::new`] take what [`listen`](crate::listen) and [`publish`](crate::publish) return, and
//! [`Channel::new`] takes an accepted channel. Calls that do not wait are those of the crate's own type,
//! behind `get_ref` and `get_mut`.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use ringfence::{Options, tokio::join};
//!
//! # async fn run() -> ringfence::Result<()> {
//! let address = "/run/user/1000/orders.sock".parse()?;
//! let (mut sender, mut receiver) = join(&address, &Options::new()).await?.split();
//! let reading = tokio::spawn(async move {
//!     while let Some(message) = receiver.next().await {
//!         println!("{} bytes", message?.len()); // a Vec<u8> of its own
//!     }
//!     ringfence::Result::Ok(())
//! });
//! sender.send(b"hello").await?; // waits while the ring is full
//! sender.end();
//! reading.await.expect("no panic")
//! # }
//! ```
//!
//! # Messages or bytes
//! [`Receiver`] and [`Subscription`] are a `Stream` of messages, [`Sender`] and [`Broadcaster`] a `Sink`. For
//! what takes a socket (`copy_bidirectional`, hyper, tonic, tarpc, TLS), [`Channel::into_stream`] returns a
//! [`ByteStream`], which is `AsyncRead` and `AsyncWrite`. A peer that was killed is
//! [`Error::PeerLost`] after the last message, and `ConnectionReset` after the last
//! byte.
//!
//! # Calls
//! [`Channel::into_calls`] returns [`Calls`]: requests with deadlines and replies, in both directions. It is a `tower::Service`.
//!
//! # Cancel safety
//! A future that is dropped before it is ready, as by `select!` and `timeout`, loses nothing: a message was
//! received or is still there, was sent or was not, and the next call works. There is one exception, which
//! each function names. A message longer than [`Sender::max_at_once`](crate::Sender::max_at_once) travels in
//! fragments, and may be under way after its `send` was cancelled: [`Sender::send_rest`] finishes it. The
//! sink has no such case: it keeps the message until it is whole. [`Sender`] has the whole table. If one of
//! [`join`], [`connect`], [`member`] and [`subscribe`] is dropped, the call is cancelled. The next of these calls at the
//! same address waits until the cancelled one has ended.
//!
//! # Both halves
//! The halves of a channel may be on two tasks. Both wait on one line, which is registered with the runtime
//! in which the [`Channel`] was made. They can be polled in another runtime, as long as the first one keeps
//! running.
//!
//! # Cost
//! An open channel needs no thread and no descriptor of its own. (While a channel is being made, the call
//! occupies one of the runtime's blocking threads. A listener, a membership, a merge and each half of a
//! publisher use one more descriptor.) A task that always finds a message yields to the others, as with
//! Tokio's own types (`tokio::task::coop`). A wait does not spin:
//! [`Options::busy_poll`](crate::Options::busy_poll) is for threads.
//!
//! # Panics
//! The constructors of these types panic outside of a Tokio runtime, or in one without I/O (`enable_io`), as
//! Tokio's own sockets do.
//!
//! # Modules
//! This file has the calls that make a channel. `line` has a descriptor in the runtime's event loop, and the line of a
//! channel, which both of its halves share. `channel` (also as a stream of bytes), `sender`, `inbound` (also of a merge),
//! `calls` and `events` are the types. May import everything; nothing imports it.

use std::{panic::resume_unwind, sync::mpsc};

use tokio::task::spawn_blocking;

use crate::{
    address::Address,
    api,
    error::{Error, Result},
    fork::PerProcess,
    options::Options,
    sys::lock::Mutex,
    wait::deadline::CancelToken,
};

mod calls;
mod channel;
mod events;
mod inbound;
mod line;
mod sender;

pub use calls::{CallRequest, Calls, PendingCall};
pub use channel::{ByteStream, Channel};
pub use events::{Audience, Events, Listener, Membership, Publisher};
pub use inbound::{Inbound, Merge, Receiver, Subscription};
pub use sender::{Broadcaster, Outbound, Sender};

/// As [`crate::join`]. Dropping the future cancels the wait, unless [`Options::cancel_token`] is set: then
/// only that [`CancelToken`] cancels it.
///
/// # Errors
/// As [`crate::join`], and as [`Channel::new`].
pub async fn join(address: &Address, options: &Options) -> Result<Channel> {
    Channel::new(on_blocking_thread(address, options, api::pair::join).await?)
}

/// As [`crate::connect`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::connect`], and as [`Channel::new`].
pub async fn connect(address: &Address, options: &Options) -> Result<Channel> {
    Channel::new(on_blocking_thread(address, options, api::connect::connect).await?)
}

/// As [`crate::member()`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::member()`], and as [`Membership::new`].
pub async fn member(address: &Address, options: &Options) -> Result<Membership> {
    Membership::new(on_blocking_thread(address, options, api::member::member).await?)
}

/// As [`crate::subscribe`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::subscribe`], and as [`Subscription::new`].
pub async fn subscribe(address: &Address, options: &Options) -> Result<Subscription> {
    Subscription::new(on_blocking_thread(address, options, api::connect::subscribe).await?)
}

/// The address of a call, and a receiver that is disconnected once the call has ended.
type Running = (Address, mpsc::Receiver<()>);

/// Calls whose futures were dropped. A cancelled call may still hold its address.
static DROPPED: PerProcess<Mutex<Vec<Running>>> = PerProcess::new();

/// Cancels the call when it is dropped.
struct CancelOnDrop {
    cancel_token: CancelToken,
    call: Option<Running>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // In a forked child: the call is the parent's, and its end is never seen here.
        if !self.cancel_token.in_owner_process() {
            return;
        }
        self.cancel_token.cancel();
        if let (Ok(dropped), Some(call)) = (DROPPED.get(), self.call.take()) {
            let mut dropped = dropped.lock();
            dropped.push(call);
            // This one as well, if its future was awaited to the end.
            dropped.retain(|(_, ended)| ended.try_recv() == Err(mpsc::TryRecvError::Empty));
        }
    }
}

/// Runs a call on one of the runtime's blocking threads, because a handshake reads files and inspects processes.
async fn on_blocking_thread<T: Send + 'static>(
    address: &Address,
    options: &Options,
    call: fn(&Address, &Options) -> Result<T>,
) -> Result<T> {
    let (address, mut options) = (address.absolute(), options.clone());
    let earlier: Vec<_> = DROPPED
        .get()?
        .lock()
        .extract_if(.., |(held, _)| *held == address)
        .collect();
    let (running, ended) = mpsc::channel();
    let mut cancel_on_drop = None;
    if options.cancel_token.is_none() {
        let cancel_token = CancelToken::new()?;
        options = options.cancel_token(cancel_token.clone());
        cancel_on_drop = Some(CancelOnDrop {
            cancel_token,
            call: Some((address.clone(), ended)),
        });
    }
    let called = spawn_blocking(move || {
        for (_, ended) in earlier {
            // Only a callback of the program can make it take that long.
            let _ = ended.recv_timeout(options.handshake_timeout);
        }
        // If the future was dropped, the result is dropped before `running`.
        (call(&address, &options), running)
    });
    let called = called.await.map(|(made, _running)| made);
    drop(cancel_on_drop);
    match called.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(made) => made,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down.
        Err(Err(_)) => Err(Error::Aborted),
    }
}
