//! One to many: `publisher` and `subscription` as plain JavaScript objects of functions, as a channel is one; `subscriber` is what a
//! publisher knows of one that has come.

pub(crate) mod publisher;
mod subscriber;
pub(crate) mod subscription;
