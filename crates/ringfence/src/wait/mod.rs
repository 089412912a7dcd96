//! Waiting with a deadline and with cancellation.
//!
//! `deadline` has the time limit, the wait itself, the token that cancels it, the pauses between attempts, and
//! the limit on how often a call may fail. `threads` makes calls that may hang on separate
//! threads, limits how many threads work in parallel, and marks the threads of this crate.
//!
//! May import `fork` and `sys`, and the modules that the whole crate shares.

pub(crate) mod deadline;
pub(crate) mod threads;
