//! One to many: a ring that one publisher writes once, and that any number of subscribers read.
//!
//! `floor` is the room for the publisher's writer, and `reader` the end of a subscriber. `readers` is the list of the subscribers, which one thread of the
//! publisher changes while another sends. `marks` tells where records begin. A record is that of a pair, and always a whole message
//! ([`largest_message`]).
//!
//! What keeps a reader from reading what is written over meanwhile:
//! 1. The *floor* is a position in the ring object. What lies before it may be written over at any moment. The writer moves it on
//!    by a part of the ring, and only then writes there: it stores the floor, makes a release fence, and writes.
//! 2. A reader copies, makes an acquire fence, and looks at the floor. What lies before it is thrown away unseen. So a reader
//!    judges nothing but what was whole, and only that can be corrupt.
//! 3. The floor never passes the head of a reliable reader, nor what has been published. A reliable reader that finds itself below
//!    the floor was evicted.
//! 4. A *mark* is the position of a record and the number of messages before it. There are [`MARKS`](crate::region::layout::MARKS)
//!    of them, a part of the ring apart, and each is written once in a lap, after the floor has passed its old place. So
//!    a mark that lies above the floor is whole, without a lock and without a version. A reader that was overtaken begins again at
//!    one, and knows exactly how many messages it has lost.
//!
//! Like all of `ring`, this blocks never, makes no system call but one (see [`readers::Readers::activate`]), and believes nothing
//! of what the other side writes.

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

/// The largest message that a publisher with this ring can send: several must find room beside each other, and beside what a
/// subscriber has not read yet.
#[inline]
pub(crate) const fn largest_message(capacity: u64) -> u64 {
    capacity / 8
}

#[cfg(test)]
mod tests;
