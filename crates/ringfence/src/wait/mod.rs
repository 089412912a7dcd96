//! Waiting with a deadline and with cancellation.
//!
//! `deadline` is the time limit and the wait itself. `cancel` is the token that cancels a wait. `backoff` has
//! the pauses between attempts to reach a peer. `patience` limits how often a repeated call may fail.
//! `permits` limits how many threads work in parallel. `aside` makes calls that may hang on a separate
//! thread. `own` marks the threads of this crate, which must not wait for each other.
//!
//! May import `fork` and `sys`, and the modules that the whole crate shares.

pub(crate) mod aside;
pub(crate) mod backoff;
pub(crate) mod cancel;
pub(crate) mod deadline;
pub(crate) mod own;
pub(crate) mod patience;
pub(crate) mod permits;
