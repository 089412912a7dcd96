//! A ring with one writer and many readers: the publisher writes it once, and any number of subscribers read
//! it.
//!
//! `floor` provides room to the publisher's writer, and `reader` is the subscriber's end. `readers` is the
//! list of subscribers: one thread of the publisher changes it while another sends. `marks` publishes where
//! records start. A record has the same layout as in a pair, and is always a whole message
//! ([`largest_message`]).
//!
//! These rules keep a reader from using data that the writer overwrites during the read:
//! 1. The *floor* is a position in the ring object. Data before it may be overwritten at any moment. The
//!    writer advances it by a part of the ring before it writes there: it stores the floor, issues a release
//!    fence, and writes.
//! 2. A reader copies, issues an acquire fence, and checks the floor. It discards data before the floor
//!    without inspecting it. So a reader only judges data that was whole, and only such data can be corrupt.
//! 3. The floor never passes the head of a reliable reader, nor the end of the published data. A reliable
//!    reader that finds itself below the floor was evicted.
//! 4. A *mark* is the position of a record and the number of messages before it. There are
//!    [`MARKS`](crate::region::layout::MARKS) of them, a part of the ring apart. The writer rewrites each
//!    once per lap, after the floor has passed its old position. So a mark above the floor is whole, without
//!    a lock and without a version. A reader that was overtaken restarts at a mark, and knows exactly how
//!    many messages it has lost.
//!
//! Like all of `ring`, this never blocks, makes only one system call (see [`readers::Readers::activate`]),
//! and trusts nothing that the other side writes.

pub(crate) mod floor;
#[cfg(any(test, fuzzing))]
#[path = "../../testing/fan_out_lies.rs"]
pub(crate) mod lies;
pub(crate) mod marks;
pub(crate) mod reader;
pub(crate) mod readers;

/// The kind of ring that a publisher writes and its subscribers read.
#[derive(Debug)]
pub struct FanOut;

/// Returns the largest message that a publisher with this ring can send. Several messages must fit side by
/// side, along with the data that a subscriber has not read yet.
#[inline]
pub(crate) const fn largest_message(capacity: u64) -> u64 {
    capacity / 8
}

#[cfg(test)]
mod tests;
