//! Realtime signals, which carry alarms and tokens.
//!
//! `claim` claims a signal number for this process and runs the only thread that waits for it. `inbox` holds
//! the tokens that a channel has received, and the address to which the peer's tokens are sent. `barriers` registers the process for
//! the memory barriers of sleeping peers.
//!
//! May import `wait` and `sys`. It never interrupts a thread of the program and never replaces a handler of
//! the program.

pub(crate) mod barriers;
pub(crate) mod claim;
pub(crate) mod inbox;
