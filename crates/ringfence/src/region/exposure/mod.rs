//! How long messages stay readable, and to whom: `tripwire` detects that another process opens the object, and
//! `wipe` erases consumed messages, except a range that `hold` marks as being written.

pub(crate) mod tripwire;
pub(super) mod wipe;
