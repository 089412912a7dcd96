//! How two processes find each other at an address, before either knows who the other is.
//!
//! `address` is the name; `election` decides who binds it and who connects, and keeps it bound.
//!
//! May import `wait`, `sys` and what the whole crate shares. It never looks at a peer, and never reads a frame.

pub(crate) mod address;
pub(crate) mod election;
