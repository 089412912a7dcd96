//! Realtime signals, as the carrier of alarms and tokens.
//!
//! `claim` takes a signal number for this process, and runs the one thread that waits for it; `inbox` is where a
//! channel's tokens arrive, and the address to which the peer's are sent.
//!
//! May import `wait` and `sys`. It never interrupts a thread of the program and replaces no handler of it.

pub(crate) mod claim;
pub(crate) mod inbox;
