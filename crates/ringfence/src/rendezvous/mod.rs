//! How two processes find each other at an address, before either knows who the other is.
//!
//! `address` is the name. `election` decides which process binds it and which connects. `files` holds the
//! directory and the lock of a path. `place` is a bound address. `inherit` is the share of the host's place
//! that the guest of a membership holds.
//!
//! May import `wait`, `fork`, `sys` and the modules that the whole crate shares. It never inspects a peer,
//! and never reads or writes a frame.

pub(crate) mod address;
pub(crate) mod election;
mod files;
pub(crate) mod inherit;
pub(crate) mod place;
