//! Everything that stays bound at an address: a service, a membership, a publisher. One implementation serves all three.
//!
//! `endpoint` is what the handle, the worker thread, the handshakes and the channels of one address share. `accept` runs the
//! handshakes of an address side by side, `admit` counts slots and clients, and `events` queues events until the program takes them.
//! `membership` and `audience` are the kinds of endpoint that need more than that: members that replace each other, and the
//! subscribers of a publisher, with the threads that watch them (`watches`) and the time that they may take (`stalls`). `broadcaster`
//! is the sending half of a publisher, which passes attachments to each subscriber (`attachments`).
//!
//! May import `channel` and everything below it. The public entry points are in `api`.

pub(crate) mod accept;
pub(crate) mod admit;
pub(crate) mod attachments;
pub(crate) mod audience;
pub(crate) mod broadcaster;
pub(crate) mod endpoint;
pub(crate) mod events;
pub(crate) mod membership;
pub(crate) mod stalls;
pub(crate) mod watches;
