//! What happens here, told to the subscriber of the crate `tracing`: a feature, off by default.
//!
//! Without the feature, `off` has the same names, and each is nothing: no field, no call. With it, `on` tells:
//!
//! | target | level | what | fields |
//! | --- | --- | --- | --- |
//! | `ringfence::handshake` | DEBUG | the span `handshake`, one for each | `address`, `role`, and at a host `peer_pid`, `peer_uid` |
//! | `ringfence::handshake` | DEBUG | each check, as it is made | `step`, `check`, `wanted`, `found`, `outcome` |
//! | `ringfence::channel` | INFO | `open`, `closed` | `address`, `peer_pid`, `peer_uid`; `role`; `reason` |
//! | `ringfence::refused` | WARN | a process got no channel | `address`, `role`, `code`, `error`; of a process that is known `peer_pid`, `peer_uid`, `peer_gid`, `executable`; of a check `check`, `wanted`, `found`, `by_peer` |
//! | `ringfence::evicted` | WARN | a subscriber was too slow | `address`, `peer_pid`, `peer_uid`, `lag` (bytes), `stall_millis` |
//!
//! It imports `error` and what is below. A subscriber that panics is not heard by the caller: it must not end a thread of ours.

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Handshake, Tie, refused, step};
#[cfg(feature = "tracing")]
pub(crate) use on::{Handshake, Tie, refused, step};
