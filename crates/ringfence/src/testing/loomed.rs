//! A region as loom sees it, for the models of the ring's and the doorbell's orderings: every order in which memory
//! may let two threads see each other's stores is tried.

use std::sync::atomic::Ordering;

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, fence},
    },
};

use nix::errno::Errno;

use crate::{
    memory::access::{Readable, Writable},
    memory::layout::{self, as_offset},
};

/// The polled words are atomics. Those of the ring itself are plain memory: loom reports whoever touches one of them
/// without having been told, by the tail or the head, that it is its turn.
#[derive(Clone)]
pub(crate) struct Region {
    shared: Arc<Shared>,
    /// Whether a full fence is one: a model in which it is not must find the wake-up that is lost.
    fences: bool,
}

struct Shared {
    polled: Vec<AtomicU64>,
    ring: Vec<UnsafeCell<u64>>,
    /// A publisher that needs the sleeper's barrier has published all that it will.
    over: (Mutex<bool>, Condvar),
}

const POLLED: [usize; 7] = [
    layout::TAIL,
    layout::HEAD,
    layout::READER_PARKED,
    layout::WRITER_PARKED,
    layout::PHASE,
    layout::TAIL_FENCED,
    layout::HEAD_FENCED,
];

impl Region {
    pub(crate) fn new(capacity: u64) -> Self {
        let words = (as_offset(capacity) + layout::OVERHANG) / 8;
        Self {
            shared: Arc::new(Shared {
                polled: POLLED.iter().map(|_| AtomicU64::new(0)).collect(),
                ring: (0..words).map(|_| UnsafeCell::new(0)).collect(),
                over: (Mutex::new(false), Condvar::new()),
            }),
            fences: true,
        }
    }

    /// The same memory, for a thread whose fences are none.
    pub(crate) fn without_fences(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            fences: false,
        }
    }

    /// Nothing more is published: see [`Readable::barrier_for_all`].
    pub(crate) fn is_over(&self) {
        *self.shared.over.0.lock().unwrap() = true;
        self.shared.over.1.notify_all();
    }

    fn polled(&self, at: usize) -> &AtomicU64 {
        let index = POLLED.iter().position(|word| *word == at);
        &self.shared.polled[index.expect("a word that the ring or the doorbell uses")]
    }

    fn read(&self, index: usize) -> u64 {
        // SAFETY: loom runs one thread at a time, and fails the test where two could have met here.
        self.shared.ring[index].with(|word| unsafe { *word })
    }

    fn write(&self, index: usize, value: u64) {
        // SAFETY: as above.
        self.shared.ring[index].with_mut(|word| unsafe { *word = value });
    }
}

fn index(at: usize) -> usize {
    (at - layout::DATA) / 8
}

impl Readable for Region {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        if at >= layout::DATA {
            return self.read(index(at));
        }
        // As a peer's region is read: see its implementation.
        let value = self.polled(at).load(Ordering::Relaxed);
        if !matches!(order, Ordering::Relaxed) {
            fence(Ordering::Acquire);
        }
        value
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        for (offset, word) in into.chunks_mut(8).enumerate() {
            word.copy_from_slice(&self.read(index(at) + offset).to_le_bytes()[..word.len()]);
        }
    }

    fn full_fence(&self) {
        if self.fences {
            fence(Ordering::SeqCst);
        }
    }

    /// Loom has no barrier that one thread makes for another. What has ended is seen as what a barrier has flushed out is,
    /// so this waits for that: the model is of those who find that they need no barrier.
    fn barrier_for_all(&self) -> Result<(), Errno> {
        let mut over = self.shared.over.0.lock().unwrap();
        while !*over {
            over = self.shared.over.1.wait(over).unwrap();
        }
        Ok(())
    }
}

impl Writable for Region {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        if at >= layout::DATA {
            self.write(index(at), value);
        } else {
            self.polled(at).store(value, order);
        }
    }

    fn copy_in(&self, at: usize, from: &[u8]) {
        for (offset, word) in from.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            self.write(index(at) + offset, u64::from_le_bytes(bytes));
        }
    }
}
