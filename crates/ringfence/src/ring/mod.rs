//! One direction of a channel: a ring of bytes, which one producer writes in its own region and one consumer reads.
//!
//! `record` is the one place that knows the layout of a record; `producer` writes records, `consumer` checks and reads them;
//! `fan_out` is the ring of a publisher, which many read, and `delivery` is what a subscriber of it asks for; `pace` says when a side
//! waits a moment; `message` is what the caller gets to see of a record, and `items` the values in it; `tally` counts what has gone through. `lies` is a hostile peer for the tests and the fuzzer.
//!
//! Positions are 64 bits wide and only grow; a position's place is its remainder by the capacity. What decides is private: the
//! producer keeps its tail and the last head that it saw, the consumer its head and the last tail that it saw. A shared word is
//! read once into a local and checked there.
//!
//! May import `region` and `error`. It never blocks, never makes a system call, and knows nothing of who the peer is.

pub(crate) mod consumer;
pub(crate) mod delivery;
pub(crate) mod fan_out;
pub(crate) mod items;
#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
pub(crate) mod message;
mod pace;
pub(crate) mod producer;
pub(crate) mod record;
pub(crate) mod tally;
#[cfg(test)]
mod tests;
