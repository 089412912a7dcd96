//! Memory that two processes share: how an object is made, looked at and mapped, and who may touch which word.
//!
//! `object` makes an object that no other process has, and looks at the one that a peer made; `mapping` places it in this
//! process; `phase` is what a region says of its owner's end; `region` is the layout and the two views of it, one's own (read and write) and the peer's (read only);
//! `tripwire` keeps the lease and tells when another process opens the object.
//!
//! The numbered rules of hostile memory:
//! 1. No reference points into a peer's region. Loads are volatile or atomic, copies go through raw pointers.
//! 2. A shared word is read once, into a local, and the local is checked and used.
//! 3. Each word has one writer: the owner of its region.
//!
//! May import `signal`, `wait`, `sys`. It knows nothing of messages.

pub(crate) mod accept;
pub(crate) mod access;
pub(crate) mod backing;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod layout;
pub(crate) mod mapping;
pub(crate) mod own;
pub(crate) mod peer;
pub(crate) mod phase;
pub(crate) mod room;
pub(crate) mod seals;
mod storage;
pub(crate) mod tripwire;
mod wipe;
