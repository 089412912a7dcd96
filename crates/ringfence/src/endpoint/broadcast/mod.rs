//! One to many: one process publishes, and any number subscribe.
//!
//! `publisher` is what a program calls to publish, `broadcaster` the half of it that sends (`room` and `batch` are
//! further ways to send), and `subscription` what a subscriber has. `audience` is the list of the subscribers, as the publisher's
//! threads share it: the acceptor, which lets newcomers in, the sending thread, and a watcher, which lets go of those that have gone.
//! `watches` is what wakes the watcher and a sender that waits for room; `merged` is a subscription as a source of a merge;
//! `stalls` counts for how long each subscriber has held the publisher up.
//!
//! The publisher writes one ring, once, however many read it. Between it and each subscriber there is a channel without a ring: a
//! private line, and a control object of each side. So every subscriber is found dead, exposed, corrupt or closed as the peer of a
//! channel is, by the same code, and can lie about itself alone.

pub(crate) mod audience;
pub(crate) mod batch;
pub(crate) mod broadcaster;
pub(crate) mod merged;
pub(crate) mod publisher;
pub(crate) mod room;
pub(crate) mod stalls;
pub(crate) mod subscription;
pub(crate) mod watches;
