//! Sleeping until the peer has done something, and waking a peer that sleeps.
//!
//! `parking` has the orderings that keep a message and a sleeper from passing each other by; `doorbell` is the private line as a
//! bell; `exit_watch` is the thread that ends a sleeper's read when its peer's process ends.
//!
//! May import `region` (the parked words lie there), `wait`, `sys`. It knows nothing of what a message is.

pub(crate) mod doorbell;
pub(crate) mod exit_watch;
pub(crate) mod parking;
