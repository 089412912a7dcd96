//! How two processes find each other at an address, before either knows who the other is.
//!
//! `address` is the name; `election` decides which process binds it and which connects; `files` are the directory and the lock of
//! a path; `place` is an address that is bound; `inherit` is what a guest among members holds of its host's place.
//!
//! May import `wait`, `fork`, `sys` and what the whole crate shares. It never looks at a peer, and never reads or writes a frame.

pub(crate) mod address;
pub(crate) mod election;
mod files;
pub(crate) mod inherit;
pub(crate) mod place;
