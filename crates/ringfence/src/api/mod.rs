//! The public entry points, one file each, in the order in which a user meets them: `pair`, `service`, `publish`, `connect`
//! (to a service, or to a publisher as a subscriber), `member`, `child`.
//!
//! May import every folder below it. Nothing below imports an entry point: a channel does not know how its two ends met.

pub(crate) mod child;
pub(crate) mod connect;
pub(crate) mod member;
pub(crate) mod pair;
pub(crate) mod publish;
pub(crate) mod service;
