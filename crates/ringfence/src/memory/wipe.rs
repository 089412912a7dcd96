//! When a ring is wiped, and which parts of it.
//!
//! A ring holds what two processes have told each other. So its owner writes zeros over it before the memory goes, and at once
//! when another process opens its object. Two parts are left out: what the peer has not read yet, and what the producer
//! has handed out as a slice.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
    },
    thread,
    time::Duration,
};

use crate::{
    memory::copy::opaque_wipe,
    memory::layout::{self, as_offset},
    memory::mapping::Mapping,
    memory::tripwire::Tripwire,
    sys,
};

/// No position of a record: those are multiples of eight.
const NOTHING_KEPT: u64 = u64::MAX;

/// A mapping of this process's own object, wiped before it goes.
#[derive(Debug)]
pub(super) struct OwnMapping {
    /// The first field, so that it is dropped first: the lease that it watches goes with the mapping.
    tripwire: OnceLock<Tripwire>,
    map: Mapping,
    /// Of the ring. 0: there is none, and nothing to wipe.
    capacity: u64,
    /// The peer may still read the ring from this position on. [`NOTHING_KEPT`]: it reads no more.
    kept_from: AtomicU64,
    /// The peer has got the region, so there was something to read.
    used: AtomicBool,
    hold: Hold,
}

impl OwnMapping {
    pub(super) fn new(map: Mapping, capacity: u64) -> Self {
        Self {
            tripwire: OnceLock::new(),
            map,
            capacity,
            kept_from: AtomicU64::new(NOTHING_KEPT),
            used: AtomicBool::new(false),
            hold: Hold::default(),
        }
    }

    pub(super) fn map(&self) -> &Mapping {
        &self.map
    }

    /// Keeps the tripwire for as long as the object is mapped.
    pub(super) fn guard(&self, tripwire: Tripwire) {
        // There is one object, and one lease on it.
        let _ = self.tripwire.set(tripwire);
    }

    pub(super) fn tripwire(&self) -> Option<&Tripwire> {
        self.tripwire.get()
    }

    /// The peer has the region from now on. `barriers`: this process receives and can issue membarrier(2).
    pub(super) fn in_use(&self, barriers: bool) {
        self.hold.has_barriers.store(barriers, Ordering::Relaxed);
        self.used.store(true, Ordering::Release);
    }

    /// The peer may still read what lies behind this position, its head.
    pub(super) fn keep_from(&self, head: u64) {
        self.kept_from.store(head, Ordering::Release);
    }

    /// Keeps the wipe away from a range that the producer hands out as a slice. `false`: the ring is being wiped, or was.
    #[inline]
    pub(super) fn hold(&self, at: usize, length: usize) -> bool {
        let hold = &self.hold;
        // Before the stores: an alarm that still sees the last range must see its length, too.
        if hold.wiped.load(Ordering::Relaxed) {
            return false;
        }
        hold.length.store(length, Ordering::Relaxed);
        hold.at.store(at, Ordering::Release);
        hold.fence_of_producer();
        if hold.wiped.load(Ordering::Relaxed) {
            self.let_go(at, length);
            return false;
        }
        true
    }

    /// The slice of [`OwnMapping::hold`] is gone.
    #[inline]
    pub(super) fn let_go(&self, at: usize, length: usize) {
        self.hold.at.store(0, Ordering::Release);
        self.hold.fence_of_producer();
        if self.hold.wiped.load(Ordering::Acquire) {
            self.wipe_late(at, length);
        }
    }

    /// What the wipe has left out.
    #[cold]
    fn wipe_late(&self, at: usize, length: usize) {
        if self.map.is_here() {
            self.fill(at, at + length);
        }
    }

    /// Wipes the ring now, also while the peer reads it.
    pub(super) fn wipe(&self) {
        self.kept_from.store(NOTHING_KEPT, Ordering::Release);
        self.hold.wiped.store(true, Ordering::Release);
        self.hold.fence_of_alarm();
        if self.capacity == 0 {
            return;
        }
        let end = self.map.len();
        let (from, to) = self.hold.range().unwrap_or((end, end));
        self.fill(layout::DATA, from);
        self.fill(to, end);
    }

    /// Writes zeros from one offset to another.
    fn fill(&self, from: usize, to: usize) {
        assert!(from <= to && to <= self.map.len(), "the range lies in the region");
        // SAFETY: in bounds, and mapped for writing.
        unsafe { opaque_wipe(self.map.as_mut_ptr().add(from), to - from) }
    }
}

impl Drop for OwnMapping {
    fn drop(&mut self) {
        let head = *self.kept_from.get_mut();
        if *self.used.get_mut() && self.capacity > 0 && self.map.is_here() {
            // SAFETY: a word of the mapping, to which no other reference of this process leads any more.
            let tail = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(layout::TAIL).cast()) };
            // With shm the peer may have written this word. Whatever it says, nothing but parts of the ring follow from it.
            // The capacity, on which their ends depend, is not read there.
            let tail = tail.load(Ordering::Acquire);
            for (from, to) in read_already(self.capacity, head, tail) {
                self.fill(from, to);
            }
        }
    }
}

/// The range that the producer has handed out as a slice, and whether the ring was wiped.
///
/// A slice that changes under its holder would be undefined behaviour. So the wipe leaves that range out, and the producer wipes
/// it when it lets go of it.
///
/// The producer alone writes the range. The alarm writes the flag, under the channel's lock. Each stores its own word and then
/// loads the other's, with a full barrier in between: at least one of the two sees the other. Where the kernel can, the
/// alarm makes the producer's barrier as well (membarrier(2)), as a sleeper does for a publisher: then a reservation costs no
/// fence.
#[derive(Debug, Default)]
struct Hold {
    /// Offset of the range; 0: there is none. Stored after its length.
    at: AtomicUsize,
    length: AtomicUsize,
    wiped: AtomicBool,
    /// The alarm can make the producer's barrier.
    has_barriers: AtomicBool,
}

impl Hold {
    fn fence_of_producer(&self) {
        if self.has_barriers.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    fn fence_of_alarm(&self) {
        /// A processor writes out its stores in far less time.
        const STORES_ARE_OUT: Duration = Duration::from_millis(100);
        fence(Ordering::SeqCst);
        // The barrier fails where the kernel has no memory left for it, or where a filter of system calls came later.
        if self.has_barriers.load(Ordering::Relaxed) && sys::barrier::issue_barrier().is_err() {
            thread::sleep(STORES_ARE_OUT);
        }
    }

    fn range(&self) -> Option<(usize, usize)> {
        let at = self.at.load(Ordering::Acquire);
        (at != 0).then(|| (at, at + self.length.load(Ordering::Relaxed)))
    }
}

/// The parts of a ring, as offsets in its region, that are read no more once the peer has read up to `head`.
/// All of it where `head` is no position that a peer can have.
fn read_already(capacity: u64, head: u64, tail: u64) -> Vec<(usize, usize)> {
    let end = capacity + layout::OVERHANG as u64;
    let unread = tail.wrapping_sub(head);
    let (from, to) = (head & (capacity - 1), tail & (capacity - 1));
    let parts = if unread == 0 || unread > capacity || !head.is_multiple_of(8) {
        vec![(0, end)]
    } else if from < to {
        vec![(0, from), (to, end)]
    } else {
        // The overhang holds the end of a record that begins before it.
        vec![(to, from)]
    };
    parts
        .into_iter()
        .map(|(from, to)| (layout::DATA + as_offset(from), layout::DATA + as_offset(to)))
        .collect()
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

    use super::*;
    use crate::memory::layout::region_size;
    use crate::memory::{
        access::{Readable, Writable},
        own::OwnRegion,
    };

    fn object() -> OwnedFd {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&object, i64::try_from(region_size(4096)).unwrap()).unwrap();
        object
    }

    #[test]
    fn only_what_was_read_is_wiped() {
        let data = layout::DATA;
        let end = 4096 + layout::OVERHANG;
        for (head, tail, wiped) in [
            // All was read; and a head that no peer has.
            (64, 64, vec![(0, end)]),
            (128, 64, vec![(0, end)]),
            (0, 8192, vec![(0, end)]),
            (4, 64, vec![(0, end)]),
            (NOTHING_KEPT, 64, vec![(0, end)]),
            // In the middle, over the end, to the very end, and a full ring.
            (8, 64, vec![(0, 8), (64, end)]),
            (4000, 4200, vec![(104, 4000)]),
            (4000, 4096, vec![(0, 4000)]),
            (8, 4104, vec![(8, 8)]),
        ] {
            let wiped: Vec<_> = wiped
                .into_iter()
                .map(|(from, to)| (data + from, data + to))
                .collect();
            assert_eq!(read_already(4096, head, tail), wiped, "{head} {tail}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn a_wipe_leaves_out_what_the_producer_has_handed_out() {
        const AT: usize = layout::DATA + 80;
        let mut own = OwnRegion::map(object(), 4096).unwrap();
        own.in_use(false);
        own.copy_in(layout::DATA, &[7; 4104]);
        let found = |own: &OwnRegion| {
            let mut bytes = vec![1; 4104];
            own.copy_out(layout::DATA, &mut bytes);
            bytes
        };
        // One that was let go of counts no more.
        assert!(own.hold(layout::DATA, 8));
        own.let_go(layout::DATA, 8);
        assert!(own.hold(AT, 100));
        let alarm = own.clone();
        // SAFETY: a range of the ring, to which no other reference leads.
        let slice = unsafe { own.claimed(AT, 100) };
        alarm.wipe();
        assert_eq!(slice, [7; 100]);
        let mut wanted = vec![0; 4104];
        wanted[80..180].fill(7);
        assert_eq!(found(&own), wanted);
        assert!(!own.hold(layout::DATA, 8), "nothing more is handed out");
        own.let_go(AT, 100);
        assert_eq!(found(&own), [0; 4104]);
    }

    /// With shm, the peer holds a descriptor that can write this side's region.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn whatever_a_peer_writes_in_the_head_words_what_was_read_is_wiped() {
        for capacity in [0, 1, 8, 8192, 1 << 62, u64::MAX] {
            for tail in [0, 64, 4200, u64::MAX] {
                let object = object();
                let own = OwnRegion::map(&object, 4096).unwrap();
                own.copy_in(layout::DATA, &[7; 4104]);
                own.in_use(false);
                own.keep_from(8);
                own.store(layout::CAPACITY, capacity, Ordering::Relaxed);
                own.store(layout::TAIL, tail, Ordering::Relaxed);
                drop(own);
                let mut left = [1; 4104];
                assert_eq!(
                    pread(&object, &mut left, i64::try_from(layout::DATA).unwrap()),
                    Ok(4104)
                );
                // The true capacity, and that tail.
                let wiped = read_already(4096, 8, tail);
                for (at, byte) in (layout::DATA..).zip(left) {
                    let is_wiped = wiped.iter().any(|(from, to)| (*from..*to).contains(&at));
                    assert_eq!(byte == 0, is_wiped, "{capacity} {tail}, at {at}");
                }
            }
        }
    }
}
