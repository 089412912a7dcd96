//! Who takes part, in what, and why not where not.

#[cfg(feature = "iceoryx2")]
mod iceoryx;
mod redis;
mod ringfence;
#[cfg(feature = "ringfire")]
mod ringfire;
#[cfg(feature = "zmq")]
mod zeromq;

use anyhow::Result;

pub use self::ringfence::idle;
use super::blocked::blocked;
use super::driver::{Job, Outcome, publisher, subscriber};

pub struct Rival {
    pub id: &'static str,
    pub version: &'static str,
    /// One line for the table's legend.
    pub note: &'static str,
    /// Of that many bytes, in batches or not; `Err` is the reason why the cell stays empty.
    pub takes: fn(usize, bool) -> Result<(), &'static str>,
    /// It has a word to say on subscribers that die or stop.
    pub is_blocked: bool,
    pub publish: fn(&Job) -> Result<Outcome>,
    pub subscribe: fn(&Job) -> Result<()>,
    pub blocked: fn(&Job) -> Result<()>,
}

/// A visit of a long message may see it overwritten, and is not counted then: what is checked here is each visit.
fn takes_lossy(size: usize, batch: bool) -> Result<(), &'static str> {
    match (size, batch) {
        (..=1024, false) => Ok(()),
        _ => Err("short messages, one at a time"),
    }
}

pub fn all() -> Vec<Rival> {
    vec![
        Rival {
            id: "ringfence",
            version: "this tree",
            note: "reserve or batch in place, drain by words; reliable; stall of 1 s where a subscriber is stopped",
            takes: |_, _| Ok(()),
            is_blocked: true,
            publish: publisher::<::ringfence::Publisher>,
            subscribe: subscriber::<::ringfence::Subscription>,
            blocked: blocked::<::ringfence::Publisher>,
        },
        Rival {
            id: "ringfence-run",
            version: "this tree",
            note: "records of one size, a batch of them one message: reserve_items, and Message::items",
            takes: |size, batch| match (size, batch) {
                (64, true) => Ok(()),
                _ => Err("only batches of 64 B"),
            },
            is_blocked: false,
            publish: publisher::<ringfence::Runs<8>>,
            subscribe: subscriber::<ringfence::RunReader<8>>,
            blocked: blocked::<ringfence::Runs<8>>,
        },
        Rival {
            id: "ringfence-best-effort",
            version: "this tree",
            note: "as ringfence; the publisher waits for none, and a subscriber loses what is overwritten before it has read it",
            takes: takes_lossy,
            is_blocked: false,
            publish: publisher::<::ringfence::Publisher>,
            subscribe: subscriber::<ringfence::Lossy<false>>,
            blocked: blocked::<::ringfence::Publisher>,
        },
        Rival {
            id: "ringfence-latest",
            version: "this tree",
            note: "as best-effort, and each call skips to the newest message",
            takes: takes_lossy,
            is_blocked: false,
            publish: publisher::<::ringfence::Publisher>,
            subscribe: subscriber::<ringfence::Lossy<true>>,
            blocked: blocked::<::ringfence::Publisher>,
        },
        Rival {
            id: "pairs",
            version: "this tree",
            note: "a ringfence channel to each subscriber; the message is filled into each of them",
            takes: |_, _| Ok(()),
            is_blocked: false,
            publish: publisher::<ringfence::Pairs>,
            subscribe: subscriber::<ringfence::Pair>,
            blocked: blocked::<ringfence::Pairs>,
        },
        #[cfg(feature = "ringfire")]
        Rival {
            id: "ringfire",
            version: "0.5",
            note: "lossless ring of elements of one size, read 256 at a time; from 16 KiB its blobs, held back by the readers' positions",
            takes: ringfire::takes,
            is_blocked: true,
            publish: ringfire::publish,
            subscribe: ringfire::subscribe,
            blocked: blocked::<ringfire::Ring<8>>,
        },
        #[cfg(feature = "iceoryx2")]
        Rival {
            id: "iceoryx2",
            version: "0.10",
            note: "loaned and read in place, no overflow, retry until delivered",
            takes: iceoryx::takes,
            is_blocked: true,
            publish: publisher::<iceoryx::Out>,
            subscribe: subscriber::<iceoryx::In>,
            blocked: blocked::<iceoryx::Out>,
        },
        #[cfg(feature = "zmq")]
        Rival {
            id: "zeromq",
            version: "libzmq 4",
            note: "XPUB and SUB, ipc transport, no drop; its threads of the publisher may have either core",
            takes: zeromq::takes,
            is_blocked: true,
            publish: publisher::<zeromq::Out>,
            subscribe: subscriber::<zeromq::In>,
            blocked: blocked::<zeromq::Out>,
        },
        Rival {
            id: "redis",
            version: "redis-server on the PATH",
            note: "PUBLISH, pipelined, through a local server on a Unix socket, which may have either core; its queues are not bounded",
            takes: redis::takes,
            is_blocked: true,
            publish: publisher::<redis::Out>,
            subscribe: subscriber::<redis::In>,
            blocked: blocked::<redis::Out>,
        },
    ]
}
