//! Tasks of [Tokio](https://docs.rs/tokio) that wait for channels, in place of threads: the feature `tokio`, which is off by default.
//!
//! Each type here has one of the crate's within it, and waits for it on the runtime's own event loop: no thread waits for an open
//! channel. [`join`], [`connect`], [`member`] and [`subscribe`] make one; what [`listen`](crate::listen) and
//! [`publish`](crate::publish) return goes into [`Listener::new`] and [`Publisher::new`], and each accepted channel into
//! [`Channel::new`]. What does not wait is the crate's own type's, behind `get_ref` and `get_mut`.
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
//! # What is safe to cancel
//! A future that is dropped before it is ready, as `select!` and `timeout` do, loses nothing: a message was received or is there
//! still, was sent or was not, and the next call goes on. With one exception, which each function names: a message longer than
//! [`Sender::max_at_once`](crate::Sender::max_at_once) travels in fragments, and one whose `send` was dropped half way is under way.
//! Its [`Sink`](futures_sink::Sink) keeps a message until it is whole, and has no such case. One of [`join`], [`connect`], [`member`]
//! and [`subscribe`] that is dropped is called off.
//!
//! # Both halves
//! The halves of a channel may be on two tasks. Both wait for one line, which is registered with the runtime in which the
//! [`Channel`] was made: they can be polled in another one, as long as that goes on.
//!
//! # What it costs
//! No thread and no descriptor for each channel. (The call that makes one has a thread of the runtime's for blocking calls meanwhile;
//! a listener, a membership, a merge and each half of a publisher take one descriptor more.) A task that always finds a message gives the others their turn, as Tokio's own types do (`tokio::task::coop`). A wait does not
//! spin: [`Options::busy_poll`](crate::Options::busy_poll) is for threads.
//!
//! # Panics
//! What makes one of these types panics outside of a runtime of Tokio, or in one without I/O (`enable_io`), as Tokio's own
//! sockets do.
//!
//! # The parts
//! `watched` is a descriptor in the runtime's event loop, `line` that of a channel, for both of its halves; `reader` takes what is there
//! to read; `meet` makes channels; `channel`, `sender` and `receiver`, `broadcast`, `merge` and `events` are the types. May import everything; nothing imports it.

mod broadcast;
mod channel;
mod events;
mod line;
mod meet;
mod merge;
mod reader;
mod receiver;
mod sender;
mod stream;
mod watched;

pub use broadcast::{Broadcaster, Publisher, Subscription};
pub use channel::Channel;
pub use events::{Audience, Listener, Membership};
pub use meet::{connect, join, member, subscribe};
pub use merge::Merge;
pub use receiver::Receiver;
pub use sender::Sender;
pub use stream::ByteStream;
