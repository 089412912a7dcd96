//! Protected shared-memory channels between two processes on one Linux host.
//!
//! Two instances [`join`] at an [`Address`]. Each gets a [`Channel`] whose peer was checked against the
//! [`Policy`], over memory that no other process can reach. Each process owns the region that it writes, and
//! can only read the region of its peer.
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
//! A service [`listen`]s, and its clients [`connect`]: each gets a channel and memory of its own. If one of
//! two [`member()`]s of an address leaves, the other stays and owns the address from then on. A [`Merge`]
//! reads from the [`Receiver`]s of many channels as one. One process [`publish`]es, and any number
//! [`subscribe`]: each message is written once, however many subscribers read it. [`Channel::into_calls`] makes
//! a channel of requests with deadlines and replies, in both directions.
//!
//! # Blocking, allocation, a full ring
//! [`join`], [`connect`], [`member()`], [`Listener::accept`], [`Membership::next`], [`Membership::leave`],
//! [`Sender::send`], [`Sender::wait`], [`Broadcaster::send`], [`Subscription::receive`],
//! [`Receiver::receive`], [`Receiver::wait_readable`], [`Merge::receive`], [`Merge::wait_readable`],
//! [`Tokens::token`], [`Calls::call`], [`Calls::serve`], [`Calls::send`], [`Calls::receive`] and [`Calls::end`] block. So does [`listen`] if it is to wait for the address. All other calls return at
//! once.
//!
//! Sending and receiving allocate nothing per message, except for calls. A channel allocates once what it needs to sleep and to
//! visit messages, on first use. A publisher grows its list of subscribers as they connect. Two kinds of call
//! allocate each time: those that return a `Vec`, and those that receive a message above half the ring. Such
//! a message is assembled in memory that grows with the bytes received. If there is no memory for a message,
//! the call fails with [`Error::NoSpace`], and the message stays in the ring.
//!
//! If the ring is full, `try_send` and `reserve` report it, and `send` waits.
//!
//! # After a fork
//! A forked child that has not executed another program has no part in the objects of its parent. There, each
//! call on them fails with [`Error::Closed`], and dropping a handle does not affect the parent. Objects that
//! the child creates itself work as usual. `docs/internals/promises.md` has the details.
//!
//! # Security guarantees
//! - Against **another uid**: the kernel keeps it out.
//! - Against **the same uid**: requiring the same executable is no boundary. The same user can make the
//!   genuine executable run other code (`LD_PRELOAD`, ptrace, or another script if it is an interpreter).
//! - Against **an admitted peer that turns hostile**: with the memfd backing it can write only to its own
//!   region, and malformed data there ends the channel with [`Error::RingCorrupt`]. With [`Backing::Shm`] it
//!   can also write and truncate the region of this side.
//!
//! Root and the kernel are trusted.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!("ringfence is for 64-bit little-endian Linux");

/// Internal API for the Node.js binding: no part of what this crate promises.
#[doc(hidden)]
pub mod binding {
    pub use crate::api::member::destroy_on_drop;
    pub use crate::api::pair::join_reporting;
    pub use crate::channel::inbound::AnyInlet;
    pub use crate::channel::merge::source::{line, spin, was_closed_by_peer};
    pub use crate::channel::outbound::AnyOutlet;
    pub use crate::channel::receiver::PairInlet;
    pub use crate::channel::receiver::{Retain, pull_again, pull_calls, pull_retained, release};
    pub use crate::channel::reserve::{Keeper, Reserved};
    pub use crate::channel::subscription::BroadcastInlet;
    pub use crate::channel::waiting::Waits;
    pub use crate::harden::ignore_sigusr1;
    pub use crate::region::copy::barrier;
    pub use crate::region::sealed::{Draft, DraftMemory, copy_on_write};
    pub use crate::ring::record::{HEADER, Tag, WHOLE};
    pub use crate::sys::file::file_type;
    pub use crate::wake::attachments::discard;
}

/// Declares an enum with a list of its variants.
macro_rules! listed {
    ($list:vis, $(#[$meta:meta])* $vis:vis enum $kind:ident {
        $($(#[$about:meta])* $variant:ident $(= $number:expr)?,)+
    }) => {
        $(#[$meta])*
        $vis enum $kind {
            $($(#[$about])* $variant $(= $number)?,)+
        }

        impl $kind {
            /// Every value, in the order of the declaration.
            $list const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];
        }
    };
}

/// Gives a listed enum the numbers with which it travels.
macro_rules! numbered {
    ($kind:ident as $number:ty) => {
        impl $kind {
            pub(crate) const fn number(self) -> $number {
                self as $number
            }

            pub(crate) fn from_number(number: $number) -> Option<Self> {
                Self::ALL.into_iter().find(|value| value.number() == number)
            }
        }
    };
}

/// Parses a named enum from its names. `$option` names it in the error.
macro_rules! parsed {
    ($kind:ident, $option:literal) => {
        impl std::str::FromStr for $kind {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<Self> {
                $crate::error::parse_named($option, &Self::ALL, text)
            }
        }
    };
}

/// Declares an enum whose variants have names, for logs and for programs. `all` adds a list of the variants.
macro_rules! named {
    (all $list:vis, $(#[$meta:meta])* $vis:vis enum $kind:ident {
        $($(#[$about:meta])* $variant:ident $(= $number:literal)? => $name:literal,)+
    }) => {
        listed! { $list, $(#[$meta])* $vis enum $kind { $($(#[$about])* $variant $(= $number)?,)+ } }
        named! { names $kind { $($variant => $name,)+ } }
    };
    ($(#[$meta:meta])* $vis:vis enum $kind:ident {
        $($(#[$about:meta])* $variant:ident $(= $number:literal)? => $name:literal,)+
    }) => {
        $(#[$meta])*
        $vis enum $kind {
            $($(#[$about])* $variant $(= $number)?,)+
        }

        named! { names $kind { $($variant => $name,)+ } }
    };
    (names $kind:ident { $($variant:ident => $name:literal,)+ }) => {
        impl $kind {
            /// Returns its name, for logs and for programs.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// Declares the setters of a struct with options: each takes the value and returns the struct.
macro_rules! setters {
    ($options:ident { $(
        $(#[$about:meta])*
        $setter:ident($($value:ident: $kind:ty)?) => $field:ident = $set:expr;
    )+ }) => {
        impl $options {
            $(
                $(#[$about])*
                #[must_use]
                pub fn $setter(mut self, $($value: $kind)?) -> Self {
                    self.$field = $set;
                    self
                }
            )+
        }
    };
}

/// Prints a handle by the name of its type: what it holds would fill pages.
macro_rules! opaque {
    ($([$($generics:tt)*] $kind:ident $(<$($argument:tt),+>)?;)+) => {$(
        impl<$($generics)*> std::fmt::Debug for $kind $(<$($argument),+>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($kind)).finish_non_exhaustive()
            }
        }
    )+};
}

mod address;
mod api;
mod channel;
mod doctor;
mod error;
mod evidence;
mod fork;
mod handshake;
mod harden;
mod host;
mod identity;
mod options;
mod peer;
mod region;
mod ring;
mod signal;
mod sys;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod testing;
#[cfg(feature = "tokio")]
pub mod tokio;
mod trace;
mod wait;
mod wake;

pub use address::Address;
pub use api::child::{
    Admit, ChildLine, LINE_VARIABLE, LinePlace, ParentLine, from_parent, private_line, spawn, spawn_with,
};
pub use api::connect::{connect, subscribe};
pub use api::member::{Membership, member};
pub use api::pair::join;
pub use api::publish::{Audience, Publisher, publish};
pub use api::service::{Arrival, Channels, Listener, listen};
/// The traits of plain data ([`Message::items`], [`Sender::reserve_items`]).
pub use bytemuck;
pub use channel::Channel;
pub use channel::calls::envelope::{CallError, RemoteError};
pub use channel::calls::{CallContext, Calls, DrivenCalls, PendingCall};
pub use channel::end::CloseReason;
pub use channel::inbound::Inbound;
pub use channel::merge::source::{AnySource, Source};
pub use channel::merge::{Key, Merge, MergeStats, Merged, MergedVec, NotAdded};
pub use channel::outbound::Outbound;
pub use channel::receiver::Receiver;
pub use channel::reserve::{Batch, Reservation};
pub use channel::sender::Sender;
pub use channel::stats::ChannelStats;
pub use channel::subscription::{Subscription, SubscriptionStats};
pub use channel::tokens::Tokens;
pub use channel::verify::{Verified, Verifier};
pub use doctor::{Diagnosis, Finding, Status, doctor};
pub use error::{Check, Error, ErrorKind, Refusal, Result};
pub use evidence::{Evidence, Outcome};
pub use handshake::parts::Role;
pub use harden::{harden, is_hardened};
pub use host::accept::Refused;
pub use host::admit::EndpointStats;
pub use host::audience::{PublisherEvent, Subscriber};
pub use host::broadcaster::{Broadcaster, PublisherStats};
pub use host::endpoint::EndpointHandle;
pub use host::membership::{Change, LEAVING};
pub use identity::{Confinement, Digest, Executable, Identity};
pub use options::{MAX_MESSAGE_SIZE, Options};
pub use peer::authorize::Decision;
pub use peer::family::ChildProcesses;
pub use peer::namespace::Namespace;
pub use peer::policy::{Policy, Program};
pub use region::create::Backing;
pub use region::layout::CAPACITY_MIN;
pub use region::sealed::SealedBuffer;
pub use ring::fan_out::FanOut;
pub use ring::fan_out::{Delivery, StartFrom};
pub use ring::items::{Items, ReservedItems};
pub use ring::message::{Message, Progress, Words};
pub use ring::read::Packed;
pub use ring::spsc::Spsc;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use testing::fuzzing;
pub use wait::deadline::CancelToken;
pub use wait::deadline::wait_readable;
pub use wake::attachments::{Attachment, AttachmentRef, Attachments};

/// The programs of the pages: `cargo test --doc` compiles them.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/quick-start.md")]
    struct QuickStart;
    #[doc = include_str!("../../../docs/guide/calls.md")]
    struct CallsGuide;
}
