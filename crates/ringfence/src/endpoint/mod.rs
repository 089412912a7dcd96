//! The places at which processes meet: what a program calls to get a channel.
//!
//! `pair` is two equals at an address, `service` one host and many agents, `membership` two of whom one may be
//! replaced, `child` a parent and a process that it starts. `acceptor` runs the handshakes of one address side by side;
//! `events` keeps what has happened until the program asks for it.
//!
//! May import every folder below it. Nothing below imports an endpoint: a channel does not know how its two ends met.

pub(crate) mod acceptor;
pub(crate) mod child;
pub(crate) mod events;
pub(crate) mod membership;
pub(crate) mod pair;
pub(crate) mod service;
