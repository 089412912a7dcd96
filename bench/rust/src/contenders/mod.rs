//! The contenders, the measures in which each takes part, and why not in the others.

pub mod baseline;
#[cfg(feature = "iceoryx2")]
pub mod iceoryx;
#[cfg(feature = "ipc-channel")]
pub mod ipc_channel;
#[cfg(feature = "ringfire")]
pub mod ringfire;
#[cfg(feature = "rtrb")]
pub mod rtrb;
#[cfg(feature = "shmem-ipc")]
pub mod shmem_ipc;
#[cfg(feature = "tachyon")]
pub mod tachyon;
#[cfg(feature = "tarpc")]
pub mod tarpc;
pub mod unix;

use anyhow::Result;

use crate::driver::{Contender, Job, Measure, Outcome, run_a, run_b};

pub struct Entry {
    pub id: &'static str,
    pub version: &'static str,
    /// One line for the table's legend.
    pub note: &'static str,
    /// `Err` is the reason why this cell stays empty.
    pub takes: fn(Measure, usize) -> Result<(), &'static str>,
    pub a: fn(&Job) -> Result<Outcome>,
    pub b: fn(&Job) -> Result<()>,
}

/// Messages of contenders whose elements are Rust types of a fixed size: those that were compiled in.
#[allow(unused_macros, reason = "used by the contenders of some features only")]
macro_rules! fixed_sizes {
    ($run:ident, $type:ident, $job:expr) => {
        match $job.size {
            8 => $run::<$type<1>>($job),
            64 => $run::<$type<8>>($job),
            256 => $run::<$type<32>>($job),
            1024 => $run::<$type<128>>($job),
            4096 => $run::<$type<512>>($job),
            16_384 => $run::<$type<2048>>($job),
            65_536 => $run::<$type<8192>>($job),
            262_144 => $run::<$type<32_768>>($job),
            1_048_576 => $run::<$type<131_072>>($job),
            16_777_216 => $run::<$type<2_097_152>>($job),
            _ => anyhow::bail!("not one of the sizes compiled in"),
        }
    };
}
#[allow(unused_imports, reason = "used by the contenders of some features only")]
pub(crate) use fixed_sizes;

pub fn is_fixed_size(size: usize) -> Result<(), &'static str> {
    match size {
        8 | 64 | 256 | 1024 | 4096 | 16_384 | 65_536 | 262_144 | 1_048_576 | 16_777_216 => Ok(()),
        _ => Err("elements of a fixed size; this one is not compiled in"),
    }
}

fn entry<C: Contender + 'static>(
    id: &'static str,
    version: &'static str,
    note: &'static str,
    takes: fn(Measure, usize) -> Result<(), &'static str>,
) -> Entry {
    Entry {
        id,
        version,
        note,
        takes,
        a: run_a::<C>,
        b: run_b::<C>,
    }
}

fn only(measure: Measure, asked: Measure, why: &'static str) -> Result<(), &'static str> {
    if measure == asked { Ok(()) } else { Err(why) }
}

pub fn all() -> Vec<Entry> {
    vec![
        #[cfg(feature = "ringfence")]
        entry::<crate::ringfence::Side>(
            "ringfence",
            "this tree",
            "two processes; reserve or batch in place, drain by words; copy: try_send and try_receive",
            |_, _| Ok(()),
        ),
        #[cfg(feature = "ringfence")]
        Entry {
            id: "ringfence-run",
            version: "this tree",
            note: "records of one size in runs of 16 KiB, each run one message: reserve_items, and Message::items",
            takes: crate::ringfence::takes_run,
            a: crate::ringfence::a_run,
            b: crate::ringfence::b_run,
        },
        entry::<unix::Side>(
            "unix",
            "kernel",
            "stream socket, length before each message; one: a write each; batch: 64 KiB a write",
            unix::takes,
        ),
        #[cfg(feature = "iceoryx2")]
        entry::<iceoryx::Side>(
            "iceoryx2",
            "0.10",
            "publish-subscribe, loaned and read in place, no overflow; parked: its event service",
            iceoryx::takes,
        ),
        #[cfg(feature = "shmem-ipc")]
        Entry {
            id: "shmem-ipc",
            version: "0.3",
            note: "elements of one fixed size, in place; polled without its eventfds, parked with them",
            takes: shmem_ipc::takes,
            a: shmem_ipc::a,
            b: shmem_ipc::b,
        },
        #[cfg(feature = "shmem-ipc")]
        Entry {
            id: "shmem-ipc-run",
            version: "0.3",
            note: "the same, each publish as long as the free run allows",
            takes: shmem_ipc::takes_run,
            a: shmem_ipc::a_run,
            b: shmem_ipc::b_run,
        },
        #[cfg(feature = "ipc-channel")]
        entry::<ipc_channel::Side>("ipc-channel", "0.23", "bytes channel", ipc_channel::takes),
        #[cfg(feature = "ringfire")]
        Entry {
            id: "ringfire",
            version: "0.5",
            note: "lossless ring of fixed-size elements; from 16 KiB its blobs in place, held back by the reader's position",
            takes: ringfire::takes,
            a: ringfire::a,
            b: ringfire::b,
        },
        #[cfg(feature = "tachyon")]
        entry::<tachyon::Side>(
            "tachyon",
            "0.5",
            "records written and read in place, up to 256 a read; polled: its polling mode, parked: its futex; a ring of 64 messages at least",
            tachyon::takes,
        ),
        #[cfg(feature = "tarpc")]
        entry::<tarpc::Side>(
            "tarpc",
            "0.38",
            "a call over a Unix socket, bincode, tokio's runtime of one thread on each side",
            tarpc::takes,
        ),
        #[cfg(feature = "rtrb")]
        entry::<rtrb::Side>(
            "rtrb",
            "0.4",
            "ceiling: two threads of one process, which trust each other; push and pop, chunks for batches and from 1 KiB",
            rtrb::takes,
        ),
        entry::<baseline::CacheLine>(
            "cache-line",
            "machine",
            "limit: one word to and fro between two cores",
            |measure, _| only(Measure::RttPolled, measure, "only a polled round trip"),
        ),
        entry::<baseline::EventFd>(
            "eventfd",
            "kernel",
            "limit: two sleeping processes wake each other through two eventfds, no message",
            |measure, _| only(Measure::RttParked, measure, "only a parked round trip"),
        ),
        entry::<baseline::Futex>(
            "futex",
            "kernel",
            "limit: the same through a futex in shared memory",
            |measure, _| only(Measure::RttParked, measure, "only a parked round trip"),
        ),
    ]
}
