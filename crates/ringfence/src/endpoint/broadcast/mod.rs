//! One to many: one process publishes, and any number subscribe.
//!
//! `broadcaster` is the sending half of a publisher; `room` and `batch` are further ways to send.
//!
//! The publisher writes one ring, once, however many read it. Between it and each subscriber there is a channel without a ring: a
//! private line, and a control object of each side. So every subscriber is found dead, exposed, corrupt or closed as the peer of a
//! channel is, by the same code, and can lie about itself alone.

pub(crate) mod batch;
pub(crate) mod broadcaster;
pub(crate) mod room;
