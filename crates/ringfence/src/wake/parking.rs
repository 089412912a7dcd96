//! The memory orderings that prevent a lost wakeup.
//!
//! A sleeper sets a word in its own region, re-checks the ring, and then waits on the private line. The other side reads that
//! word after each publication, and sends one byte if the sleeper is parked. Each side needs a full barrier between its store
//! and its load, or both could miss each other. On the publishing side, the barrier would cost more than the message. So if
//! both processes support membarrier(2), the sleeper issues it for both. A membarrier interrupts a running publisher and costs
//! more than a hundred fences. So a publisher that wakes its peer often makes its own fences, and sets a word in its region
//! that tells the sleeper not to issue a barrier.

pub(crate) mod many;

use std::sync::atomic::{Ordering, compiler_fence};

use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::layout,
};

/// The number of publications without a sleeper after which the publisher stops making fences. One fence takes some 20 ns, the
/// sleeper's barrier 9 µs (both measured on two cores of an AMD EPYC under KVM).
const FENCE_COUNT: u32 = 64;

/// The side that makes the barrier between a publication and the read of the sleeper's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barriers {
    /// Each side makes its own, every time.
    Both,
    /// The sleeper makes one for both when it goes to sleep, unless the publisher announces its own fences.
    Sleeper,
}

impl Barriers {
    /// `has_membarrier`: both processes take membarrier(2). For a publisher's ring: the publisher does, since each reader has a value
    /// of its own.
    pub(crate) const fn by_sleeper_if(has_membarrier: bool) -> Self {
        if has_membarrier { Self::Sleeper } else { Self::Both }
    }
}

/// The words of one direction of waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParkingSpot {
    /// In the sleeper's region: odd while it sleeps or is about to.
    parked: usize,
    /// In the publisher's region: 1 while it makes a fence after each publication.
    fenced: usize,
}

impl ParkingSpot {
    /// A reader that sleeps until there is something to read.
    pub(crate) const READER: Self = Self {
        parked: layout::READER_PARKED,
        fenced: layout::TAIL_FENCED,
    };
    /// A writer that sleeps until there is room.
    pub(crate) const WRITER: Self = Self {
        parked: layout::WRITER_PARKED,
        fenced: layout::HEAD_FENCED,
    };

    /// Whether this publisher makes no fences. Acquire: the re-check that follows sees everything that the publisher published before it
    /// started making fences. One that stopped making fences unnoticed sees that this side sleeps. A hostile one only loses its own
    /// wakeup.
    fn is_unfenced(self, publisher: &impl Readable) -> bool {
        publisher.load(self.fenced, Ordering::Acquire) != 1
    }
}

/// The sleeper's side.
pub(crate) struct Sleeper<O, P> {
    own: O,
    peer: P,
    spot: ParkingSpot,
    sequence: u64,
    barriers: Barriers,
}

impl<O: Writable, P: Readable> Sleeper<O, P> {
    /// Announces that this side is about to sleep. The caller must re-check the ring afterwards, before it sleeps.
    pub(crate) fn park(&mut self) -> Result<()> {
        if self.announce() {
            self.own.barrier_for_all()?;
        }
        Ok(())
    }

    /// As [`Sleeper::park`], for a caller that sleeps on many channels. If any call returns `true`, the caller must issue one
    /// barrier for all of them ([`barrier_for_all`](Readable::barrier_for_all)) before it re-checks.
    pub(crate) fn announce(&mut self) -> bool {
        self.announce_to(|peer, spot| spot.is_unfenced(peer))
    }
}

impl<O: Writable, P> Sleeper<O, P> {
    pub(crate) fn new(own: O, peer: P, spot: ParkingSpot, barriers: Barriers) -> Self {
        Self {
            own,
            peer,
            spot,
            sequence: 0,
            barriers,
        }
    }

    /// Returns whether this side must issue a barrier. `is_unfenced`: whether a publisher makes no fences.
    fn announce_to(&mut self, is_unfenced: impl FnOnce(&P, ParkingSpot) -> bool) -> bool {
        // A new number each time, so that the peer sends one wakeup per park, and not one per message.
        self.sequence = (self.sequence + 1) | 1;
        self.own.store(self.spot.parked, self.sequence, Ordering::Release);
        self.own.full_fence();
        self.barriers == Barriers::Sleeper && is_unfenced(&self.peer, self.spot)
    }

    /// Announces that this side is awake.
    pub(crate) fn unpark(&mut self) {
        if self.sequence % 2 == 1 {
            self.sequence += 1;
            self.own.store(self.spot.parked, self.sequence, Ordering::Relaxed);
        }
    }
}

/// The publisher's side, which reads the sleeper's word.
pub(crate) struct Waker<O, P> {
    own: O,
    peer: P,
    spot: ParkingSpot,
    last_woken: u64,
    barriers: Barriers,
    /// The number of publications for which this side will still make a fence.
    fences: u32,
    /// Whether this process receives barriers now. `None` once it does.
    are_received: Option<fn() -> bool>,
}

impl<O: Writable, P: Readable> Waker<O, P> {
    pub(crate) fn new(own: O, peer: P, spot: ParkingSpot, barriers: Barriers) -> Self {
        Self {
            own,
            peer,
            spot,
            last_woken: 0,
            barriers,
            fences: 0,
            are_received: None,
        }
    }

    /// Makes this side fence each publication until the process receives the barriers of its peer. It checks that from time to time.
    pub(crate) fn fenced_until(mut self, are_received: fn() -> bool) -> Self {
        if self.barriers == Barriers::Sleeper {
            fence_for(&self.own, self.spot.fenced, &mut self.fences, FENCE_COUNT);
            self.are_received = Some(are_received);
        }
        self
    }

    /// Whether the peer sleeps and no wakeup was sent since it parked. Must be called after a publication.
    #[inline]
    pub(crate) fn must_wake(&mut self) -> bool {
        if self.barriers == Barriers::Both {
            self.peer.full_fence();
        } else if self.fences > 0 {
            self.make_fence();
        } else {
            // The publication may still be in the store buffer. The sleeper's barrier flushes it, so only the compiler must
            // keep the order.
            compiler_fence(Ordering::SeqCst);
        }
        let word = self.peer.load(self.spot.parked, Ordering::Relaxed);
        if word.is_multiple_of(2) || word == self.last_woken {
            return false;
        }
        self.last_woken = word;
        fence_for(&self.own, self.spot.fenced, &mut self.fences, FENCE_COUNT);
        true
    }

    fn make_fence(&mut self) {
        self.fences -= 1;
        if self.fences == 0 && self.may_stop_fencing() {
            // Before the fence, so that the following load sees a sleeper that does not see this store yet.
            self.own.store(self.spot.fenced, 0, Ordering::Relaxed);
        }
        self.peer.full_fence();
    }

    /// Whether this side may publish without fences now.
    #[cold]
    fn may_stop_fencing(&mut self) -> bool {
        let Some(are_received) = self.are_received else {
            return true;
        };
        if !are_received() {
            self.fences = FENCE_COUNT;
            return false;
        }
        self.are_received = None;
        if self.spot.fenced == ParkingSpot::READER.fenced {
            // This side writes the ring.
            self.own.enable_barriers();
        }
        true
    }
}

/// Makes a fence after each of this number of publications, and announces that in this word.
#[cold]
fn fence_for(own: &impl Writable, word: usize, fences: &mut u32, publications: u32) {
    if *fences == 0 {
        // Release: a process that sees this store also sees the publications that were made without a fence.
        own.store(word, 1, Ordering::Release);
    }
    *fences = publications;
}

#[cfg(test)]
mod tests;
