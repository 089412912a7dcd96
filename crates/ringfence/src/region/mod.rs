//! Memory that two processes share: making, checking and mapping an object, and the rules for access to its
//! words.
//!
//! `backing` is the kind of memory, `seals` are the seals of a memfd, and `room` checks whether memory is
//! available (`cgroup` by the limits of cgroups). `create` makes an object, and `accept` checks an object that
//! the peer made. `map` maps an object into this process. `layout` has the offsets of its words, `phase`
//! the meaning of one of them, and `by_slot` the state kept for each subscriber.
//!
//! `own` is the region that this process writes. `peer` is the region that it can only read. `access`, `copy`
//! and `storage` are their tools. `exposure` limits what another process could read, and `kept` keeps a descriptor where no
//! process can open it.
//!
//! The numbered rules of hostile memory:
//! 1. No reference points into a peer's region. Loads are volatile or atomic, and copies go through raw
//!    pointers.
//! 2. A shared word is read once into a local, and only the local is checked and used.
//! 3. Each word has one writer: the owner of its region.
//!
//! May import `signal`, `wait`, `sys`. It knows nothing of messages.

pub(crate) mod accept;
pub(crate) mod access;
pub(crate) mod backing;
pub(crate) mod by_slot;
mod cgroup;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod exposure;
pub(crate) mod kept;
pub(crate) mod layout;
pub(crate) mod map;
pub(crate) mod own;
pub(crate) mod peer;
pub(crate) mod phase;
pub(crate) mod room;
pub(crate) mod seals;
mod storage;
