//! One direction of a channel: a ring of bytes, which one process writes in its own region.
//!
//! `record` is the only file that knows the layout of a record. `write` writes records, and asks a `Room` how
//! far it may write. `read` checks and reads records, and asks a `Limit` how far it may read. `spsc` is the room
//! and the limit in the ring of a pair, and `fan_out` contains those in the ring of a publisher, with a subscriber's
//! requests. `message` is a record as the caller sees it, and `items` are the values in it. `lies`, in the folder of the test support, is a hostile peer.
//!
//! Positions are 64 bits wide and only grow. The offset of a position in the ring is its remainder by the
//! capacity. Decisions are made on private copies: the writer keeps its tail and the last head that it read,
//! the reader its head and the last tail that it read. A shared word is read once into a local and checked
//! there.
//!
//! May import `region` and `error`. It never blocks, never makes a system call, and does not know the peer's
//! identity.

pub(crate) mod fan_out;
pub(crate) mod items;
#[cfg(any(test, fuzzing))]
#[path = "../testing/lies.rs"]
pub(crate) mod lies;
pub(crate) mod message;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod spsc;
pub(crate) mod write;

#[cfg(test)]
mod tests;
