//! How long something is waited for, and what may call it off.
//!
//! `deadline` is the time, and the waiting itself; `cancel` is the token that calls a wait off; `backoff` has the pauses between
//! tries, and `patience` says how often a call of this side's own may fail; `permits` bounds what threads do side by side; `aside` makes
//! calls that may never come back on a thread of their own; `own` tells the threads of this crate's own, which do not wait for each other.
//!
//! May import `fork` and `sys`, and what the whole crate shares.

pub(crate) mod aside;
pub(crate) mod backoff;
pub(crate) mod cancel;
pub(crate) mod deadline;
pub(crate) mod own;
pub(crate) mod patience;
pub(crate) mod permits;
