//! Memory that two processes share: how an object is made, looked at and mapped, and who may touch which word.
//!
//! `backing` is the choice of the kind, `seals` what a memfd is sealed with, `room` whether there is memory for it; `create` makes
//! an object, and `accept` checks the one that the peer made. `mapping` places an object in this process; `layout` says where its
//! words lie, and `phase` what one of them means. `own` is the region that this process writes, `peer` the one that it can only
//! read; `access`, `copy` and `storage` are their means. `wipe` removes what was said, but for what `hold` says is being
//! written, and `tripwire` tells when another process opens the object. `kept` holds a descriptor where no process can open it.
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
mod hold;
pub(crate) mod kept;
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
