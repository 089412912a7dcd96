//! The public entry points, one file each, in the order in which a user meets them: `pair`, `service`, `publish`, `subscribe`,
//! `member`, `child`.
//!
//! May import every folder below it. Nothing below imports an entry point: a channel does not know how its two ends met.

pub(crate) mod child;
pub(crate) mod member;
pub(crate) mod pair;
pub(crate) mod publish;
pub(crate) mod service;
pub(crate) mod subscribe;
