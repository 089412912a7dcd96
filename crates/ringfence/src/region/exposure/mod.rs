//! Limits the time for which messages stay readable, and the processes that can read them: `tripwire` detects
//! that another process opens the object, and `wipe` erases consumed messages, except a range that `hold` marks
//! as being written.

pub(crate) mod tripwire;
pub(super) mod wipe;
