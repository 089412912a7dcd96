//! How long something is waited for, and who may call it off.
//!
//! `deadline` is the time and the token that calls a wait off; `aside` makes calls that may never come back on a thread
//! of their own.
//!
//! May import `fork` and `sys`, and what the whole crate shares.

pub(crate) mod aside;
pub(crate) mod deadline;
