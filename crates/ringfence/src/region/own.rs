//! The region that this process owns. Only this process writes to it.

use std::{
    ops::Deref,
    os::fd::AsFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::copy::{SMALL, prefetch_for_writing},
    region::layout,
    region::map::{Storage, map},
    region::wipe::OwnStorage,
};

/// The region that this process owns. It is mapped for reading and writing here and nowhere else.
#[derive(Clone)]
pub(crate) struct OwnRegion {
    pub(super) base: *mut u8,
    pub(super) memory: Arc<OwnStorage>,
}

// SAFETY: the pointer leads to the mapping that `memory` owns, which is valid on every thread. All access is
// through atomics, or to parts of the ring that the single producer has claimed.
unsafe impl Send for OwnRegion {}
// SAFETY: as above. Through a shared reference, only atomics and the range claimed by the single producer are
// written.
unsafe impl Sync for OwnRegion {}

impl Deref for OwnRegion {
    type Target = OwnStorage;

    #[inline]
    fn deref(&self) -> &OwnStorage {
        &self.memory
    }
}

impl OwnRegion {
    fn new(storage: Storage, capacity: u64) -> Self {
        Self {
            base: storage.base(),
            memory: Arc::new(OwnStorage::new(storage, capacity)),
        }
    }

    /// Maps a new object of `region_size(capacity)` bytes, populates it, and writes its first words.
    pub(crate) fn map(object: impl AsFd, capacity: u64) -> Result<Self> {
        let map = map("mapping the shared object", object, capacity, true)?;
        Ok(Self::initialised(Storage::Mapped(map), capacity))
    }

    /// Makes a region with only the header words, in private memory. For a reader that no longer reports its
    /// position to a peer.
    pub(crate) fn detached() -> Self {
        Self::new(Storage::private(layout::DATA), 0)
    }

    /// Makes a region in private memory, for tests of the ring on plain memory (and under Miri).
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

    /// Returns the bytes of a record that the producer has claimed and not published yet.
    ///
    /// # Safety
    /// The range lies in the ring, including its overhang. The caller is the single producer, has claimed the
    /// range, and creates no second reference to it while this one exists.
    #[inline]
    pub(crate) unsafe fn claimed(&mut self, at: usize, length: usize) -> &mut [u8] {
        debug_assert!(at + length <= self.memory.size(), "the range lies in the region");
        // SAFETY: the caller guarantees the range and exclusive access to it. No other process can write
        // here, because this is the only writable mapping. Reads by another process are outside Rust's memory
        // model.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), length) }
    }

    /// Returns the bytes like [`OwnRegion::claimed`], for reading.
    ///
    /// # Safety
    /// As for [`OwnRegion::claimed`], but other shared references may exist at the same time.
    #[inline]
    pub(crate) unsafe fn claimed_for_reading(&self, at: usize, length: usize) -> &[u8] {
        debug_assert!(at + length <= self.memory.size(), "the range lies in the region");
        // SAFETY: the caller guarantees the range, and that it is not written while the reference exists.
        unsafe { std::slice::from_raw_parts(self.base.add(at), length) }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.memory.size(),
            "a word of the region"
        );
        // SAFETY: in bounds and aligned (the base is a page, or a slice of u64). The word is only accessed
        // atomically, or under `claimed`, whose caller then has exclusive access to it.
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
            at + into.len() <= self.memory.size(),
            "the range lies in the region"
        );
        // SAFETY: in bounds, and only this process writes here.
        unsafe { ptr::copy_nonoverlapping(self.base.add(at), into.as_mut_ptr(), into.len()) }
    }
}

impl Writable for OwnRegion {
    fn enable_barriers(&self) {
        self.memory.in_use(true);
    }

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
            at + from.len() <= self.memory.size(),
            "the range lies in the region"
        );
        if from.len() <= SMALL {
            // Copy word by word, because most callers have just written the source: a load that is wider than
            // the preceding stores waits until they have reached the cache. The stores are atomic, because
            // otherwise the compiler emits a call, which loads as widely as it can.
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
        // SAFETY: in bounds, because the ring claims only ranges inside the region. The ring has claimed this
        // one, so no other code of this process reads or writes it. No other process can write it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(at), from.len()) }
    }
}
