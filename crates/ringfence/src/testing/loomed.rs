//! A region that loom can track, for the models of the ring's and the doorbell's orderings. Loom tries every
//! order in which two threads may see each other's stores.

use std::sync::{Arc, atomic::Ordering};

use loom::{
    cell::UnsafeCell,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, fence},
    },
};

use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::layout::{self, MARKS, as_offset, head_of, mark_of, reader_parked_of},
};

/// The polled words are atomics. The words of the ring itself are plain memory: loom reports a thread that
/// accesses one of them before the tail or the head has handed it over. If readers read data that may be
/// overwritten concurrently, those words are atomics as well.
#[derive(Clone)]
pub(crate) struct Region {
    shared: Arc<Shared>,
    /// Whether a full fence takes effect. A model without it must find the lost wakeup.
    fences: bool,
}

struct Shared {
    /// The offsets of the polled words.
    places: Vec<usize>,
    polled: Vec<AtomicU64>,
    ring: Ring,
    /// Set when a publisher that needs the sleeper's barrier has published everything.
    over: (Mutex<bool>, Condvar),
}

enum Ring {
    Plain(Vec<UnsafeCell<u64>>),
    Racy(Vec<AtomicU64>),
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
        let ring = Ring::Plain((0..words(capacity)).map(|_| UnsafeCell::new(0)).collect());
        Self::with(POLLED.into(), ring)
    }

    /// The ring object of a publisher. `racy`: its readers read without waiting for their turn.
    pub(crate) fn of_publisher(capacity: u64, racy: bool) -> Self {
        let marks = (0..MARKS).flat_map(|mark| [mark_of(mark), mark_of(mark) + 8]);
        let mut places = vec![
            layout::TAIL,
            layout::FLOOR,
            layout::TAIL_FENCED,
            layout::WRITER_PARKED,
        ];
        places.extend(marks);
        let words = 0..words(capacity);
        let ring = if racy {
            Ring::Racy(words.map(|_| AtomicU64::new(0)).collect())
        } else {
            Ring::Plain(words.map(|_| UnsafeCell::new(0)).collect())
        };
        Self::with(places, ring)
    }

    /// The control object of a subscriber.
    pub(crate) fn of_subscriber(slot: usize) -> Self {
        let places = vec![head_of(slot), reader_parked_of(slot), layout::HEAD_FENCED];
        Self::with(places, Ring::Plain(Vec::new()))
    }

    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the threads of the model run one at a time"
    )]
    fn with(places: Vec<usize>, ring: Ring) -> Self {
        Self {
            shared: Arc::new(Shared {
                polled: places.iter().map(|_| AtomicU64::new(0)).collect(),
                places,
                ring,
                over: (Mutex::new(false), Condvar::new()),
            }),
            fences: true,
        }
    }

    /// The same memory, for a thread whose fences have no effect.
    pub(crate) fn without_fences(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            fences: false,
        }
    }

    /// Marks the end of publishing: see [`Readable::barrier_for_all`].
    pub(crate) fn is_over(&self) {
        *self.shared.over.0.lock().unwrap() = true;
        self.shared.over.1.notify_all();
    }

    /// Returns a polled word, or `None` for a word of the ring.
    fn polled(&self, at: usize) -> Option<&AtomicU64> {
        let index = self.shared.places.iter().position(|word| *word == at);
        assert!(
            index.is_some() || at >= layout::DATA,
            "a word of the region, at {at}"
        );
        index.map(|index| &self.shared.polled[index])
    }

    fn read(&self, index: usize) -> u64 {
        match &self.shared.ring {
            // SAFETY: loom runs one thread at a time, and fails the test if two could have met here.
            Ring::Plain(words) => words[index].with(|word| unsafe { *word }),
            Ring::Racy(words) => words[index].load(Ordering::Relaxed),
        }
    }

    fn write(&self, index: usize, value: u64) {
        match &self.shared.ring {
            // SAFETY: as above.
            Ring::Plain(words) => words[index].with_mut(|word| unsafe { *word = value }),
            Ring::Racy(words) => words[index].store(value, Ordering::Relaxed),
        }
    }
}

fn words(capacity: u64) -> usize {
    (as_offset(capacity) + layout::OVERHANG) / 8
}

fn index(at: usize) -> usize {
    (at - layout::DATA) / 8
}

impl Readable for Region {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        let Some(word) = self.polled(at) else {
            return self.read(index(at));
        };
        // The order of accesses is that of a peer's region: see its implementation.
        let value = word.load(Ordering::Relaxed);
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

    fn acquire_fence(&self) {
        if self.fences {
            fence(Ordering::Acquire);
        }
    }

    /// Loom has no barrier that one thread issues for another. Stores of a thread that has ended are visible,
    /// as after a barrier. So this waits until the publisher has ended. Only readers that find that they need
    /// no barrier are modelled.
    fn barrier_for_all(&self) -> Result<()> {
        let mut over = self.shared.over.0.lock().unwrap();
        while !*over {
            over = self.shared.over.1.wait(over).unwrap();
        }
        Ok(())
    }
}

impl Writable for Region {
    fn release_fence(&self) {
        if self.fences {
            fence(Ordering::Release);
        }
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        match self.polled(at) {
            Some(word) => word.store(value, order),
            None => self.write(index(at), value),
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
