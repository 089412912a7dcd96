//! The rivals, the cells in which each takes part, and why not in the others.

#[cfg(feature = "iceoryx2")]
mod iceoryx;
mod ringfence;
#[cfg(feature = "ringfire")]
mod ringfire;
#[cfg(feature = "zmq")]
mod zeromq;

use anyhow::Result;

pub use self::ringfence::idle;
use super::blocked::blocked;
use super::driver::{Job, Outcome, Publish, Subscribe, publisher, subscriber};

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

fn rival<P: Publish, S: Subscribe>(
    id: &'static str,
    version: &'static str,
    note: &'static str,
    takes: fn(usize, bool) -> Result<(), &'static str>,
    is_blocked: bool,
) -> Rival {
    Rival {
        id,
        version,
        note,
        takes,
        is_blocked,
        publish: publisher::<P>,
        subscribe: subscriber::<S>,
        blocked: blocked::<P>,
    }
}

pub fn all() -> Vec<Rival> {
    vec![
        rival::<::ringfence::Publisher, ::ringfence::Subscription>(
            "ringfence",
            "this tree",
            "reserve or batch in place, drain by words; reliable; stall of 1 s where a subscriber is stopped",
            |_, _| Ok(()),
            true,
        ),
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
        rival::<::ringfence::Publisher, ringfence::Lossy<false>>(
            "ringfence-best-effort",
            "this tree",
            "as ringfence; the publisher waits for none, and a subscriber loses what is overwritten before it has read it",
            takes_lossy,
            false,
        ),
        rival::<::ringfence::Publisher, ringfence::Lossy<true>>(
            "ringfence-latest",
            "this tree",
            "as best-effort, and each call skips to the newest message",
            takes_lossy,
            false,
        ),
        rival::<ringfence::Pairs, ringfence::Pair>(
            "pairs",
            "this tree",
            "a ringfence channel to each subscriber; the message is filled into each of them",
            |_, _| Ok(()),
            false,
        ),
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
        rival::<iceoryx::Out, iceoryx::In>(
            "iceoryx2",
            "0.10",
            "loaned and read in place, no overflow, retry until delivered",
            iceoryx::takes,
            true,
        ),
        #[cfg(feature = "zmq")]
        rival::<zeromq::Out, zeromq::In>(
            "zeromq",
            "libzmq 4",
            "XPUB and SUB, ipc transport, no drop; its threads of the publisher may have either core",
            zeromq::takes,
            true,
        ),
    ]
}
