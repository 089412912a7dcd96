//! Memory that two processes share: making, checking and mapping an object, and the rules for access to its
//! words.
//!
//! `create` makes an object of one of the backings, `room` checks whether memory is available for it, and
//! `accept` checks an object that the peer made. `map` maps an object into this process. `layout` has the
//! offsets of its words, and `phase` the meaning of one of them.
//!
//! `sealed` is memory that no process can write, to be passed beside messages.
//!
//! `own` is the region that this process writes. `peer` is the region that it can only read. `copy` is the
//! interface of both. `tripwire` detects that another process opens the object, and `wipe` erases consumed messages, except a range
//! that is being written.
//!
//! The numbered rules of hostile memory:
//! 1. No reference points into a peer's region. Loads are volatile or atomic, and copies go through raw
//!    pointers.
//! 2. A shared word is read once into a local, and only the local is checked and used.
//! 3. Each word has one writer: the owner of its region.
//!
//! May import `signal`, `wait`, `sys`. It knows nothing of messages.

pub(crate) mod accept;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod layout;
pub(crate) mod map;
pub(crate) mod own;
pub(crate) mod peer;
pub(crate) mod phase;
pub(crate) mod room;
pub(crate) mod sealed;
pub(crate) mod tripwire;
mod wipe;
