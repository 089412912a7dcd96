//! Protected shared-memory channels between two processes on one Linux host.
//!
//! Two instances [`join`] at an [`Address`]; what comes back is a [`Channel`] whose other end is proven to be who the
//! [`Policy`] says, over memory that nobody else can reach. Each process owns the region that it writes, and can only
//! read its peer's.
//!
//! ```no_run
//! use ringfence::{Address, Options, join};
//!
//! # fn main() -> ringfence::Result<()> {
//! let address: Address = "/run/user/1000/orders.sock".parse()?;
//! let (mut sender, mut receiver) = join(&address, &Options::new())?.split();
//! sender.send(b"hello")?;                          // sleeps while the ring is full
//! let mut message = vec![0; 65536];
//! while let Some(length) = receiver.receive(&mut message)? {
//!     println!("{} bytes", message[..length].len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A service [`listen`]s, and its agents [`connect`]: each gets a channel and memory of its own. Of two [`member`]s of an
//! address one may go while the other stays, and has the address from then on.
//!
//! # What blocks, what allocates, what happens when it is full
//! [`join`], [`connect`], [`member`], [`Listener::accept`], [`Membership::next`], [`Membership::leave`], [`Sender::send`],
//! [`Sender::wait`], [`Receiver::receive`], [`Receiver::wait`] and [`Tokens::token`] block, and [`listen`] where it is to wait
//! for the address. Everything else returns at once. Sending and receiving allocate nothing, but for messages above half the
//! ring, which are put together in memory that grows with what has come; where there is none, that is [`Error::NoSpace`] of that
//! call, and the message stays.
//! A full ring makes `try_send` and `reserve` say so, and `send` wait.
//!
//! # After a fork
//! A child that is forked, and executes no other program, has no part in what its parent has made. There each call says
//! [`Error::Closed`], and dropping a handle does nothing to the parent. What the child makes itself works as anywhere.
//! `docs/promises.md` has the details.
//!
//! # What is promised, against whom
//! Against **another uid**: the kernel keeps it out. Against **the same uid**: asking for the same executable is no
//! boundary, since the same user can make the genuine executable run other code (`LD_PRELOAD`, ptrace, and with an
//! interpreter simply another script). Against **a peer that has passed and turns hostile**: with the
//! memfd backing it can write nothing but its own region, and lies there end the channel with
//! [`Error::RingCorrupt`]; with [`Backing::Shm`] it can also write and cut this side's. Root and the kernel are trusted.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!("ringfence is for 64-bit little-endian Linux");

mod address;
mod aside;
mod authorize;
mod channel;
mod digest;
mod doctor;
mod door;
mod doorbell;
mod error;
mod evidence;
mod family;
mod fork;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod handshake;
mod harden;
mod identity;
mod join;
#[cfg(test)]
mod loomed;
mod mailbox;
mod mapping;
mod message;
mod namespace;
mod news;
mod object;
mod options;
mod patience;
mod phase;
mod policy;
mod receiver;
mod region;
mod rendezvous;
mod ring;
mod scratch;
mod sender;
mod service;
mod shared;
mod signal;
mod sys;
mod tokens;
mod tripwire;
mod verify;
mod vigil;
mod wire;

pub use address::Address;
pub use authorize::Decision;
pub use channel::Channel;
pub use digest::Digest;
pub use doctor::{Diagnosis, Finding, Status, doctor};
pub use error::{Error, Refusal, Result};
pub use evidence::Evidence;
pub use family::{ChildLine, LINE_VARIABLE, ParentLine, from_parent, private_line, spawn};
pub use handover::{Change, LEAVING, Membership, member};
pub use harden::{harden, ignore_sigusr1, is_hardened};
pub use identity::{Executable, Identity};
pub use join::join;
pub use message::{Message, Words};
pub use namespace::Namespace;
pub use object::Backing;
pub use options::{MAX_MESSAGE_SIZE, Options};
pub use patience::{Canceller, wait_readable};
pub use policy::{Policy, Program};
pub use receiver::{Packed, Receiver};
pub use region::CAPACITY_MIN;
pub use ring::Progress;
pub use sender::{Batch, Keeper, Reservation, Reserved, Sender};
pub use service::{Arrival, Channels, Listener, Refused, connect, listen};
pub use shared::{CloseReason, Role};
pub use tokens::Tokens;
pub use verify::{Verified, Verifier};
