//! Sleeping until the peer has done something, and waking a peer that sleeps.
//!
//! `parking` has the memory orderings that prevent a lost wakeup. `doorbell` sends and receives wakeups on the private
//! line. `exit_watch` is the thread that ends a sleeper's read when the peer's process ends.
//!
//! May import `region` (the parked words lie there), `wait`, `sys`. It knows nothing of what a message is.

pub(crate) mod attachments;
pub(crate) mod doorbell;
pub(crate) mod exit_watch;
pub(crate) mod parking;
