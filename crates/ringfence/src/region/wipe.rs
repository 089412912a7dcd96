//! When a ring is wiped, and which parts of it.
//!
//! A ring contains the messages of two processes. So its owner fills it with zeros before the memory is
//! released, and immediately if another process opens its object. Two parts are skipped: data that the peer
//! has not read yet, and the range that the producer has handed out as a slice.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
    },
    thread,
    time::Duration,
};

use crate::{
    region::{
        copy::opaque_wipe,
        layout::{self, as_offset},
        map::Storage,
        tripwire::Tripwire,
    },
    sys,
};

/// Not a valid position of a record, because those are multiples of eight.
const NOTHING_UNREAD: u64 = u64::MAX;

/// The memory of a region that this process owns. It is wiped before it is released.
pub(crate) struct OwnStorage {
    /// The first field, so that it is dropped first: the lease that it watches ends with the mapping.
    tripwire: OnceLock<Tripwire>,
    storage: Arc<Storage>,
    /// The capacity of the ring. 0 means that there is no ring and nothing to wipe.
    capacity: u64,
    /// The peer may still read the ring from this position on. [`NOTHING_UNREAD`]: it no longer reads.
    unread_from: AtomicU64,
    /// The peer has received the region, so the ring may contain data.
    used: AtomicBool,
    protected: ProtectedRange,
}

impl OwnStorage {
    pub(in crate::region) fn new(storage: Storage, capacity: u64) -> Self {
        Self {
            tripwire: OnceLock::new(),
            storage: Arc::new(storage),
            capacity,
            unread_from: AtomicU64::new(NOTHING_UNREAD),
            used: AtomicBool::new(false),
            protected: ProtectedRange::default(),
        }
    }

    pub(in crate::region) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    fn base(&self) -> *mut u8 {
        self.storage.base()
    }

    pub(crate) fn size(&self) -> usize {
        self.storage.size()
    }

    /// Keeps the watch on this region's object while it is mapped.
    pub(crate) fn guard(&self, tripwire: Tripwire) {
        // A region has one object, and one lease on it, so this is set once.
        let _ = self.tripwire.set(tripwire);
    }

    pub(crate) fn tripwire(&self) -> Option<&Tripwire> {
        self.tripwire.get()
    }

    /// Records that the peer has the region. The whole ring is wiped when this mapping is dropped.
    /// `barriers`: this process receives membarrier(2) and can issue it. If that becomes true later, the producer calls this again
    /// and makes a full fence: either the alarm finds that it must make a barrier, or the producer finds the flag.
    pub(crate) fn in_use(&self, barriers: bool) {
        self.protected.has_barriers.store(barriers, Ordering::Relaxed);
        self.used.store(true, Ordering::Release);
    }

    /// Keeps the data from `head` on, because the peer may still read it. Only the rest is wiped when this
    /// mapping is dropped.
    pub(crate) fn retain_from(&self, head: u64) {
        self.unread_from.store(head, Ordering::Release);
    }

    /// Protects a range from being wiped. The producer calls this before it hands out the range as a slice.
    /// The protection ends with [`OwnStorage::unprotect`], or when the next range replaces this one. Only one
    /// range is protected at a time. Returns `false` if the ring is being wiped or was wiped; then nothing
    /// may be handed out.
    #[inline]
    pub(crate) fn protect(&self, at: usize, length: usize) -> bool {
        if !ProtectedRange::is_short(length) {
            return self.protect_long(at, length);
        }
        let previous = self.protected.replace(at, length);
        if self.protected.is_wiped() {
            self.wipe_skipped(previous);
            self.unprotect();
            return false;
        }
        true
    }

    #[cold]
    fn protect_long(&self, at: usize, length: usize) -> bool {
        self.unprotect();
        // Check before the length is stored: an alarm that still reads the word of the previous long range
        // must read that range's length.
        if self.protected.is_wiped() {
            return false;
        }
        self.protected.set_long(at, length);
        if self.protected.is_wiped() {
            self.unprotect();
            return false;
        }
        true
    }

    /// Ends the protection of [`OwnStorage::protect`], after the slice was dropped.
    #[inline]
    pub(crate) fn unprotect(&self) {
        let previous = self.protected.clear();
        if previous != 0 && self.protected.is_wiped() {
            self.wipe_skipped(previous);
        }
    }

    /// Wipes the range of a [`ProtectedRange`] word, which the wipe may have skipped.
    #[cold]
    fn wipe_skipped(&self, word: u64) {
        if let Some((at, length)) = self.protected.read(word)
            && self.storage.in_owner_process()
        {
            self.fill(at, at + length);
        }
    }

    /// Wipes the ring now, even while the peer reads it, and again when this mapping is dropped. The range
    /// that the producer has handed out is wiped when the producer releases it.
    pub(crate) fn wipe(&self) {
        self.unread_from.store(NOTHING_UNREAD, Ordering::Release);
        let protected = self.protected.alarm();
        if self.capacity == 0 {
            return;
        }
        let end = self.size();
        let (at, length) = protected.unwrap_or((end, 0));
        self.fill(layout::DATA, at);
        self.fill(at + length, end);
    }

    /// Writes zeros from one offset to another.
    fn fill(&self, from: usize, to: usize) {
        assert!(from <= to && to <= self.size(), "the range lies in the region");
        // SAFETY: in bounds, and this process may write the memory.
        unsafe { opaque_wipe(self.base().add(from), to - from) }
    }
}

impl Drop for OwnStorage {
    fn drop(&mut self) {
        let head = *self.unread_from.get_mut();
        if *self.used.get_mut() && self.capacity > 0 && self.storage.in_owner_process() {
            // SAFETY: a word of the mapping, to which no other reference in this process exists any longer.
            let tail = unsafe { AtomicU64::from_ptr(self.base().add(layout::TAIL).cast()) };
            // With shm the peer may have written this word. Any value only selects parts of the ring. Their
            // ends depend on the capacity, which is not read from the mapping.
            let tail = tail.load(Ordering::Acquire);
            for (from, to) in consumed_parts(self.capacity, head, tail) {
                self.fill(from, to);
            }
        }
    }
}

/// Returns the parts of a ring, as offsets in its region, that the peer no longer reads once it has read up
/// to `head`. Returns the whole ring if `head` is not a valid position.
fn consumed_parts(capacity: u64, head: u64, tail: u64) -> Vec<(usize, usize)> {
    let end = capacity + layout::OVERHANG as u64;
    let unread = tail.wrapping_sub(head);
    let (from, to) = (head & (capacity - 1), tail & (capacity - 1));
    let parts = if unread == 0 || unread > capacity || !head.is_multiple_of(8) {
        vec![(0, end)]
    } else if from < to {
        vec![(0, from), (to, end)]
    } else {
        // The overhang holds the end of a record that starts before it.
        vec![(to, from)]
    };
    parts
        .into_iter()
        .map(|(from, to)| (layout::DATA + as_offset(from), layout::DATA + as_offset(to)))
        .collect()
}

// The range that the producer has handed out as a slice, and the flag that says that the ring was wiped.
//
// A slice that changes while its holder uses it would be undefined behaviour. So the wipe skips that range,
// and the producer wipes it when it releases it.
//
// Only the producer writes the range word, or the thread that drops its reservation, while the producer
// writes nothing. Only the alarm writes the flag. Each side stores its own word and then loads the other's,
// with a full barrier in between, so at least one side sees the other's store. If the kernel supports it,
// the alarm makes the producer's barrier as well (membarrier(2)), as a sleeper does for a publisher. Then a
// reservation costs no fence.
//
// A range is a single word, and the next range replaces it. It is stored once or twice per message, behind
// stores to a cache line of the ring that the reader had. Each additional store costs a nanosecond between
// near cores. The replaced range is no longer stored, but the wipe may have skipped it. So a producer that
// finds the flag wipes both ranges.

/// The number of bits for the length of a short range.
const LENGTH_BITS: u32 = 20;
/// The value of those bits for a longer range, whose length has a word of its own.
const LONG: usize = (1 << LENGTH_BITS) - 1;

/// The range and the flag, as described above. A range is an offset in the region, a multiple of eight, and a
/// length in bytes.
#[derive(Debug, Default)]
pub(super) struct ProtectedRange {
    /// The offset divided by eight, above [`LENGTH_BITS`] bits of the length. 0 means no range, because no ring
    /// starts at offset 0.
    range: AtomicU64,
    /// The length of a long range. It is stored before the range, while there is no range.
    length: AtomicUsize,
    wiped: AtomicBool,
    /// The alarm can make the producer's barrier.
    has_barriers: AtomicBool,
}

impl ProtectedRange {
    #[inline]
    pub(super) fn is_short(length: usize) -> bool {
        length < LONG
    }

    #[inline]
    fn store(&self, at: usize, length: usize) {
        debug_assert!(
            at.is_multiple_of(8) && at > 0,
            "a valid start of a record's bytes"
        );
        // Offsets have 47 bits, because a ring has at most 2^46 bytes.
        let word = ((at as u64) << (LENGTH_BITS - 3)) | length as u64;
        self.range.store(word, Ordering::Release);
        self.fence_of_producer();
    }

    /// Called by the producer: sets a short range. Returns the previous word, for [`ProtectedRange::read`].
    #[inline]
    pub(super) fn replace(&self, at: usize, length: usize) -> u64 {
        let previous = self.range.load(Ordering::Relaxed);
        self.store(at, length);
        previous
    }

    /// Called by the producer: sets a long range. No range may be set.
    pub(super) fn set_long(&self, at: usize, length: usize) {
        self.length.store(length, Ordering::Relaxed);
        self.store(at, LONG);
    }

    /// Called by the producer: removes the range. Returns the previous word for [`ProtectedRange::read`], or 0 if there
    /// was none.
    #[inline]
    pub(super) fn clear(&self) -> u64 {
        let previous = self.range.load(Ordering::Relaxed);
        if previous != 0 {
            self.range.store(0, Ordering::Release);
            self.fence_of_producer();
        }
        previous
    }

    /// Called by the producer after each change of the range: whether the ring was wiped.
    #[inline]
    pub(super) fn is_wiped(&self) -> bool {
        self.wiped.load(Ordering::Acquire)
    }

    /// Called by the alarm: sets the flag and returns the range that the wipe must skip. From then on the
    /// producer hands out nothing more, and wipes the range itself.
    pub(super) fn alarm(&self) -> Option<(usize, usize)> {
        self.wiped.store(true, Ordering::Release);
        self.fence_of_alarm();
        self.range()
    }

    #[inline]
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        self.read(self.range.load(Ordering::Acquire))
    }

    /// Decodes a range word. The length of a long range stays valid until the next long range is set.
    #[inline]
    pub(super) fn read(&self, word: u64) -> Option<(usize, usize)> {
        if word == 0 {
            return None;
        }
        let length = as_offset(word) & LONG;
        let at = as_offset(word >> LENGTH_BITS << 3);
        if length == LONG {
            return Some((at, self.length.load(Ordering::Relaxed)));
        }
        Some((at, length))
    }

    #[inline]
    fn fence_of_producer(&self) {
        if self.has_barriers.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    fn fence_of_alarm(&self) {
        /// A processor completes its pending stores in far less time.
        const STORE_DRAIN: Duration = Duration::from_millis(100);
        fence(Ordering::SeqCst);
        // The barrier fails if the kernel has no memory for it, or if a system call filter was installed
        // later.
        if self.has_barriers.load(Ordering::Relaxed) && sys::process::issue_barrier().is_err() {
            thread::sleep(STORE_DRAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        sys::{
            memfd::{MFdFlags, memfd_create},
            uio::pread,
        },
        unistd::ftruncate,
    };

    use crate::region::{
        copy::{Readable, Writable},
        layout::{self, region_size},
        own::OwnRegion,
    };

    use super::*;

    fn object() -> OwnedFd {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&object, i64::try_from(region_size(4096)).unwrap()).unwrap();
        object
    }

    #[test]
    fn only_read_data_is_wiped() {
        let data = layout::DATA;
        let end = 4096 + layout::OVERHANG;
        for (head, tail, wiped) in [
            // All data was read; and positions that no peer can have.
            (64, 64, vec![(0, end)]),
            (128, 64, vec![(0, end)]),
            (0, 8192, vec![(0, end)]),
            (4, 64, vec![(0, end)]),
            (NOTHING_UNREAD, 64, vec![(0, end)]),
            // Data in the middle, across the end, up to the exact end, and a full ring.
            (8, 64, vec![(0, 8), (64, end)]),
            (4000, 4200, vec![(104, 4000)]),
            (4000, 4096, vec![(0, 4000)]),
            (8, 4104, vec![(8, 8)]),
        ] {
            let wiped: Vec<_> = wiped
                .into_iter()
                .map(|(from, to)| (data + from, data + to))
                .collect();
            assert_eq!(consumed_parts(4096, head, tail), wiped, "{head} {tail}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn wipe_skips_the_borrowed_range() {
        const AT: usize = layout::DATA + 80;
        let mut own = OwnRegion::map(object(), 4096).unwrap();
        own.in_use(false);
        own.copy_in(layout::DATA, &[7; 4104]);
        let found = |own: &OwnRegion| {
            let mut bytes = vec![1; 4104];
            own.copy_out(layout::DATA, &mut bytes);
            bytes
        };
        // A range that was released no longer counts.
        assert!(own.protect(layout::DATA, 8));
        own.unprotect();
        assert!(own.protect(AT, 100));
        let alarm = own.clone();
        // SAFETY: the range lies in the ring, and no other reference to it exists.
        let slice = unsafe { own.claimed(AT, 100) };
        alarm.wipe();
        assert_eq!(slice, [7; 100]);
        let mut wanted = vec![0; 4104];
        wanted[80..180].fill(7);
        assert_eq!(found(&own), wanted);
        assert!(
            !own.protect(layout::DATA, 8),
            "nothing is handed out after a wipe"
        );
        own.unprotect();
        assert_eq!(found(&own), [0; 4104]);
    }

    /// Makes a mapped ring filled with sevens, and a function that returns its content.
    fn full(capacity: u64) -> (OwnRegion, impl Fn(&OwnRegion) -> Vec<u8>) {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&object, i64::try_from(region_size(capacity)).unwrap()).unwrap();
        let own = OwnRegion::map(object, capacity).unwrap();
        own.in_use(false);
        let length = as_offset(capacity) + layout::OVERHANG;
        own.copy_in(layout::DATA, &vec![7; length]);
        let found = move |own: &OwnRegion| {
            let mut bytes = vec![1; length];
            own.copy_out(layout::DATA, &mut bytes);
            bytes
        };
        (own, found)
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn new_range_replaces_the_previous_one() {
        let (own, found) = full(4096);
        assert!(own.protect(layout::DATA + 8, 100));
        assert!(own.protect(layout::DATA + 120, 16));
        own.wipe();
        let mut wanted = vec![0; 4096 + layout::OVERHANG];
        wanted[120..136].fill(7);
        assert_eq!(found(&own), wanted, "only the last range is skipped");
        assert!(!own.protect(layout::DATA + 144, 8));
        assert!(
            found(&own).iter().all(|byte| *byte == 0),
            "the replaced range is wiped"
        );
        own.unprotect();
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn long_range_is_skipped() {
        const MIB: usize = 1 << 20;
        for (at, length) in [
            (8, MIB - 2),
            (8, MIB - 1),
            (8, MIB),
            (64, 2 * MIB),
            (8 * MIB - 64, 3 * MIB + 5),
        ] {
            let (own, found) = full(16 << 20);
            assert!(own.protect(layout::DATA + 16, 3 * MIB), "a previous long range");
            assert!(own.protect(layout::DATA + at, length));
            own.wipe();
            let left = found(&own);
            // Compared as slices: a debug build takes seconds to visit the bytes one by one.
            let mut wanted = vec![0; left.len()];
            wanted[at..at + length].fill(7);
            assert!(left == wanted, "{at} {length}");
            own.unprotect();
            assert!(found(&own) == vec![0; left.len()], "{at} {length}");
            assert!(
                !own.protect(layout::DATA + 16, 3 * MIB),
                "nothing is handed out after a wipe"
            );
        }
    }

    /// With shm, the peer holds a descriptor that can write to this side's region.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn peers_header_does_not_prevent_wiping() {
        for capacity in [0, 1, 8, 8192, 1 << 62, u64::MAX] {
            for tail in [0, 64, 4200, u64::MAX] {
                let object = object();
                let own = OwnRegion::map(&object, 4096).unwrap();
                own.copy_in(layout::DATA, &[7; 4104]);
                own.in_use(false);
                own.retain_from(8);
                own.store(layout::CAPACITY, capacity, Ordering::Relaxed);
                own.store(layout::TAIL, tail, Ordering::Relaxed);
                drop(own);
                let mut left = [1; 4104];
                assert_eq!(
                    pread(&object, &mut left, i64::try_from(layout::DATA).unwrap()),
                    Ok(4104)
                );
                // Computed with the true capacity and that tail.
                let wiped = consumed_parts(4096, 8, tail);
                for (at, byte) in (layout::DATA..).zip(left) {
                    let is_wiped = wiped.iter().any(|(from, to)| (*from..*to).contains(&at));
                    assert_eq!(byte == 0, is_wiped, "{capacity} {tail}, at {at}");
                }
            }
        }
    }
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn only_regions_in_use_are_wiped_before_release() {
        const FROM: usize = layout::DATA;
        let found = |object: &OwnedFd| {
            let mut bytes = [0; 64];
            assert_eq!(pread(object, &mut bytes, i64::try_from(FROM).unwrap()), Ok(64));
            bytes
        };
        for (capacity, used, wiped) in [(4096, true, true), (4096, false, false), (0, true, false)] {
            // A control object has the same size.
            let object = object();
            let own = OwnRegion::map(&object, capacity).unwrap();
            own.copy_in(FROM, &[7; 64]);
            if used {
                own.in_use(false);
            }
            drop(own);
            assert_eq!(
                found(&object),
                [if wiped { 0 } else { 7 }; 64],
                "{capacity} {used}"
            );
        }
    }

    #[test]
    fn range_encoding_round_trips() {
        let hold = ProtectedRange::default();
        assert_eq!(hold.range(), None);
        for at in [8, layout::DATA + 8, (1 << 46) + layout::DATA + 56] {
            for length in [0, 1, 64, LONG - 1] {
                assert!(ProtectedRange::is_short(length));
                hold.replace(at, length);
                assert_eq!(hold.range(), Some((at, length)));
            }
            for length in [LONG, LONG + 1, 1 << 45] {
                assert!(!ProtectedRange::is_short(length));
                hold.clear();
                hold.set_long(at, length);
                assert_eq!(hold.range(), Some((at, length)));
            }
        }
        assert_ne!(hold.clear(), 0);
        assert_eq!((hold.clear(), hold.range()), (0, None));
    }
}
