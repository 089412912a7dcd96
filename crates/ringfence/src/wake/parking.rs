//! The orderings that keep a message and a sleeper from passing each other by.
//!
//! A sleeper says so in a word of its own region, looks once more, and then waits on the private line.
//! The other side looks at that word after each publication, and sends one byte if it finds the sleeper there. Between
//! the two stores and the two looks there must be a full barrier on both sides, or both could miss each other. On
//! the side that publishes, that barrier would cost more than the message: so where both processes take
//! membarrier(2), the sleeper can issue it for both. That in turn interrupts a publisher that is running, and costs more
//! than a hundred fences; so a publisher that has to ring often makes its own fences, and says so in a word of its
//! region, where the sleeper finds that there is nothing for it to issue.

pub(crate) mod many;

use std::sync::atomic::{Ordering, compiler_fence};

use crate::{
    error::{Error, Result},
    region::copy::{Readable, Writable},
    region::layout,
};

/// Publications without a sleeper after which the publisher makes no fences any more. One fence takes some 20 ns, the
/// sleeper's barrier 9 µs (both measured on two cores of an AMD EPYC under KVM).
const FENCED_AFTER_A_BELL: u32 = 64;

/// Who makes the barrier between a publication and the look at the sleeper's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barriers {
    /// Each side its own, every time.
    Both,
    /// The sleeper, for both, when it goes to sleep; unless the publisher says that it makes its own.
    Sleeper,
}

/// What is slept for, and where the two sides tell each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParkingSpot {
    /// In the sleeper's region: odd while it sleeps, or is about to.
    parked: usize,
    /// In the publisher's: 1 while it makes a fence after each publication.
    fenced: usize,
}

impl ParkingSpot {
    /// A reader sleeps, until there is something to read.
    pub(crate) const READER: Self = Self {
        parked: layout::READER_PARKED,
        fenced: layout::TAIL_FENCED,
    };
    /// A writer sleeps, until there is room.
    pub(crate) const WRITER: Self = Self {
        parked: layout::WRITER_PARKED,
        fenced: layout::HEAD_FENCED,
    };
}

/// The sleeper's side.
#[derive(Debug)]
pub(crate) struct Sleeper<O, P> {
    own: O,
    peer: P,
    spot: ParkingSpot,
    sequence: u64,
    barriers: Barriers,
}

impl<O: Writable, P: Readable> Sleeper<O, P> {
    pub(crate) fn new(own: O, peer: P, spot: ParkingSpot, barriers: Barriers) -> Self {
        Self {
            own,
            peer,
            spot,
            sequence: 0,
            barriers,
        }
    }

    /// Says that this side is about to sleep. After this, and before sleeping, it must look once more.
    pub(crate) fn park(&mut self) -> Result<()> {
        if self.announce() {
            self.own
                .barrier_for_all()
                .map_err(|errno| Error::system("a memory barrier (membarrier)", errno))?;
        }
        Ok(())
    }

    /// As [`Sleeper::park`], for a caller that sleeps for many at once: where this answers `true`, one barrier must be made for all of
    /// them ([`barrier_for_all`](Readable::barrier_for_all)) before it looks once more.
    pub(crate) fn announce(&mut self) -> bool {
        // A new number each time, so that the bell is rung once for each time, and not for each message.
        self.sequence = (self.sequence + 1) | 1;
        self.own.store(self.spot.parked, self.sequence, Ordering::Release);
        self.own.full_fence();
        // Acquire: what the peer published before it began to make fences is seen by the look that follows. A peer that
        // stops making them, and is not seen to, sees that this side sleeps. A lie costs the liar alone its bell.
        self.barriers == Barriers::Sleeper && self.peer.load(self.spot.fenced, Ordering::Acquire) != 1
    }

    /// Says that this side is awake.
    pub(crate) fn unpark(&mut self) {
        if self.sequence % 2 == 1 {
            self.sequence += 1;
            self.own.store(self.spot.parked, self.sequence, Ordering::Relaxed);
        }
    }
}

/// The publisher's side: looks at the sleeper's word.
#[derive(Debug)]
pub(crate) struct Waker<O, P> {
    own: O,
    peer: P,
    spot: ParkingSpot,
    rung: u64,
    barriers: Barriers,
    /// Publications for which this side will still make a fence.
    fences: u32,
}

impl<O: Writable, P: Readable> Waker<O, P> {
    pub(crate) fn new(own: O, peer: P, spot: ParkingSpot, barriers: Barriers) -> Self {
        Self {
            own,
            peer,
            spot,
            rung: 0,
            barriers,
            fences: 0,
        }
    }

    /// Whether the peer sleeps and has not been rung for since it parked. To be asked after a publication.
    #[inline]
    pub(crate) fn must_ring(&mut self) -> bool {
        if self.barriers == Barriers::Both {
            self.peer.full_fence();
        } else if self.fences > 0 {
            self.make_fence();
        } else {
            // The processor may still be holding the publication back: the sleeper's barrier flushes it out. Only
            // the compiler must keep the order.
            compiler_fence(Ordering::SeqCst);
        }
        let word = self.peer.load(self.spot.parked, Ordering::Relaxed);
        if word.is_multiple_of(2) || word == self.rung {
            return false;
        }
        self.rung = word;
        self.fence_for(FENCED_AFTER_A_BELL);
        true
    }

    fn make_fence(&mut self) {
        self.fences -= 1;
        if self.fences == 0 {
            // Before the fence: a sleeper that does not see it yet is seen by the look that follows.
            self.own.store(self.spot.fenced, 0, Ordering::Relaxed);
        }
        self.peer.full_fence();
    }

    /// Makes a fence after each of so many publications, and says so.
    #[cold]
    fn fence_for(&mut self, publications: u32) {
        if self.fences == 0 {
            // Release: a process that sees it sees what was published without a fence.
            self.own.store(self.spot.fenced, 1, Ordering::Release);
        }
        self.fences = publications;
    }
}

#[cfg(test)]
mod tests;
