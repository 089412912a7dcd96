//! Broadcasts: `publisher` and `subscription` as plain JavaScript objects of functions, like a channel.
//! `subscriber` is the publisher's view of a subscriber.

pub(crate) mod publisher;
mod subscriber;
pub(crate) mod subscription;
