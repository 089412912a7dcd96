//! The region that this process owns: it alone writes there.

use std::{
    os::fd::AsFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::Result,
    memory::access::{Readable, Writable},
    memory::copy::{SMALL, prefetch_for_writing},
    memory::layout,
    memory::storage::{Storage, map},
    memory::tripwire::Tripwire,
    memory::wipe::OwnStorage,
};

/// The region that this process owns: mapped for reading and writing here, and nowhere else.
#[derive(Debug, Clone)]
pub(crate) struct OwnRegion {
    pub(super) base: *mut u8,
    pub(super) keep: Arc<OwnStorage>,
}

// SAFETY: the pointer is to the mapping that `keep` holds, which is as good on one thread as on another; all access
// is through atomics, or to parts of the ring that the one producer has claimed.
unsafe impl Send for OwnRegion {}
// SAFETY: as above; nothing is written through a shared reference but atomics and what the one producer claimed.
unsafe impl Sync for OwnRegion {}

impl OwnRegion {
    fn new(storage: Storage, capacity: u64) -> Self {
        Self {
            base: storage.base(),
            keep: Arc::new(OwnStorage::new(storage, capacity)),
        }
    }

    /// Maps a new object of `region_size(capacity)` bytes, prefaulted, and writes its head words.
    pub(crate) fn map(object: impl AsFd, capacity: u64) -> Result<Self> {
        let map = map("mapping the shared object", object, capacity, true)?;
        Ok(Self::initialised(Storage::Mapped(map), capacity))
    }

    /// Keeps the watch on this region's object for as long as it is mapped.
    pub(crate) fn guard(&self, tripwire: Tripwire) {
        self.keep.guard(tripwire);
    }

    pub(crate) fn tripwire(&self) -> Option<&Tripwire> {
        self.keep.tripwire()
    }

    /// The peer has the region now: when this mapping goes, all of the ring is wiped. `barriers`: this process receives and can
    /// issue membarrier(2).
    pub(crate) fn in_use(&self, barriers: bool) {
        self.keep.in_use(barriers);
    }

    /// The producer calls this before it hands out a range as a slice: no wipe touches the range until [`OwnRegion::let_go`], or until
    /// the next range takes its place. It can have one at a time. `false`: the ring is being wiped, or was, and nothing may be
    /// handed out.
    #[inline]
    pub(crate) fn hold(&self, at: usize, length: usize) -> bool {
        self.keep.hold(at, length)
    }

    /// The slice of [`OwnRegion::hold`] is gone.
    #[inline]
    pub(crate) fn let_go(&self) {
        self.keep.let_go();
    }

    /// The peer may still read what lies behind this position, its head: only the rest is wiped when this mapping goes.
    pub(crate) fn keep_from(&self, head: u64) {
        self.keep.keep_from(head);
    }

    /// Wipes the ring now, also while the peer reads it, and once more when this mapping goes. What the producer has handed out
    /// is wiped when the producer lets go of it.
    pub(crate) fn wipe(&self) {
        self.keep.wipe();
    }

    /// The head words alone, in private memory: for a reader that tells no peer any more how far it has read.
    pub(crate) fn nowhere() -> Self {
        Self::new(Storage::private(layout::DATA), 0)
    }

    /// A region in private memory, for tests of the ring on plain memory (and under Miri).
    #[cfg(any(test, fuzzing))]
    pub(crate) fn private(capacity: u64) -> Self {
        let size = layout::as_offset(layout::region_size(capacity));
        Self::initialised(Storage::private(size), capacity)
    }

    fn initialised(storage: Storage, capacity: u64) -> Self {
        let region = Self::new(storage, capacity);
        region.store(layout::CAPACITY, capacity, Ordering::Relaxed);
        region.store(layout::MAGIC_AT, layout::MAGIC, Ordering::Release);
        region
    }

    /// The bytes of a record that the producer has claimed and not yet published.
    ///
    /// # Safety
    /// The range lies in the ring (its overhang included), and the caller is its one producer, has claimed the
    /// range, and hands out no second reference to it while this one lives.
    #[inline]
    pub(crate) unsafe fn claimed(&mut self, at: usize, length: usize) -> &mut [u8] {
        debug_assert!(at + length <= self.keep.size(), "the range lies in the region");
        // SAFETY: the caller promises the range and that it is alone; no other process can write here, since this
        // is the only writable mapping, and what another process reads is outside Rust's memory model.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), length) }
    }

    /// As [`OwnRegion::claimed`], for reading.
    ///
    /// # Safety
    /// As there, but other shared references may live meanwhile.
    #[inline]
    pub(crate) unsafe fn claimed_for_reading(&self, at: usize, length: usize) -> &[u8] {
        debug_assert!(at + length <= self.keep.size(), "the range lies in the region");
        // SAFETY: the caller promises the range, and that it is not written while the reference lives.
        unsafe { std::slice::from_raw_parts(self.base.add(at), length) }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.keep.size(),
            "a word of the region"
        );
        // SAFETY: in bounds and aligned (the base is a page, or a slice of u64); the word is only ever
        // accessed atomically, or under `claimed`, whose caller is the only one to touch it then.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }
}

impl Readable for OwnRegion {
    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.word(at).load(order)
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(
            at + into.len() <= self.keep.size(),
            "the range lies in the region"
        );
        // SAFETY: in bounds, and this process alone writes here.
        unsafe { ptr::copy_nonoverlapping(self.base.add(at), into.as_mut_ptr(), into.len()) }
    }
}

impl Writable for OwnRegion {
    #[inline]
    fn will_write(&self, at: usize) {
        prefetch_for_writing(self.base.wrapping_add(at));
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.word(at).store(value, order);
    }

    #[inline]
    fn copy_in(&self, at: usize, from: &[u8]) {
        debug_assert!(
            at + from.len() <= self.keep.size(),
            "the range lies in the region"
        );
        if from.len() <= SMALL {
            // Word by word, as most callers have just written it: a wider load of narrower stores waits until they have
            // reached the cache. Atomically, or the compiler makes a call of it, which loads as widely as it can.
            let (words, rest) = from.as_chunks::<8>();
            for (index, word) in words.iter().enumerate() {
                self.store(at + index * 8, u64::from_ne_bytes(*word), Ordering::Relaxed);
            }
            if !rest.is_empty() {
                let done = words.len() * 8;
                // SAFETY: as below.
                unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), self.base.add(at + done), rest.len()) };
            }
            return;
        }
        // SAFETY: in bounds: the ring claims only ranges inside the region, and has claimed this one, so no other code
        // of this process reads or writes it; no other process can write it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(at), from.len()) }
    }
}
