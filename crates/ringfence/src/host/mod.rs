//! Everything that stays bound at an address: a service, a membership, a publisher. One implementation serves all three.
//!
//! `endpoint` is what the handle, the worker thread, the handshakes and the channels of one address share. `accept` runs the
//! handshakes of an address side by side, `admit` decides which client gets a seat, and `events` queues events until the program
//! asks for them. `membership` and `audience` are the two kinds that need more than that: members that replace each other, and
//! the subscribers of a publisher. `connect` is the other side: it connects to a host that stays.
//!
//! May import `channel` and everything below it. The public entry points are in `api`.

pub(crate) mod accept;
pub(crate) mod admit;
pub(crate) mod audience;
pub(crate) mod connect;
pub(crate) mod endpoint;
pub(crate) mod events;
pub(crate) mod handle;
pub(crate) mod ledger;
pub(crate) mod membership;
pub(crate) mod seats;
pub(crate) mod stalls;
pub(crate) mod standing;
pub(crate) mod watches;
