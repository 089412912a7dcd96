//! The same as `parking`, for a publisher with several readers. One word announces its fences, one barrier serves all
//! readers, and each reader has its own word.

use std::sync::atomic::{Ordering, compiler_fence};

use super::{Barriers, FENCE_COUNT, ParkingSpot, Sleeper, fence_for};
use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::layout,
    region::layout::BySlot,
};

impl ParkingSpot {
    /// One of several readers, in this slot. They share the publisher's word.
    pub(crate) const fn reader_in(slot: usize) -> Self {
        Self {
            parked: layout::reader_parked_of(slot),
            fenced: layout::TAIL_FENCED,
        }
    }
}

/// The publisher's record of one reader that may sleep.
pub(crate) struct SleepingReader<P, B> {
    /// Its control object.
    pub(crate) control: P,
    /// The barriers that its process and this one can make together.
    pub(crate) barriers: Barriers,
    /// Passed to the caller to wake the reader.
    pub(crate) waker: B,
}

/// The publisher's side for several readers: one barrier per publication, and one load per reader.
///
/// # New readers
/// The list of readers is read after the barrier, as their words are. So if a new reader did not find a publication before it slept, the
/// publisher reads the new list after that publication. The barrier that the reader issues ensures this. For a reader that issues none, see
/// [`admit`]: then there is a fence before the new list is read.
pub(crate) struct FanWaker<O, P, B> {
    own: O,
    /// The barriers that this process can make.
    barriers: Barriers,
    /// The slots of the readers that can issue no barrier.
    without_barriers: BySlot<()>,
    /// A fence after each publication: this process can make no barrier, or one of the readers cannot.
    always_fence: bool,
    /// Publications for which this side will still make a fence.
    fences: u32,
    readers: BySlot<ReaderRow<P, B>>,
}

struct ReaderRow<P, B> {
    control: P,
    parked: usize,
    last_woken: u64,
    waker: B,
}

impl<O: Writable, P: Readable, B> FanWaker<O, P, B> {
    /// `barriers`: [`Barriers::Sleeper`] where this process takes membarrier(2).
    pub(crate) fn new(own: O, barriers: Barriers) -> Self {
        Self {
            own,
            barriers,
            without_barriers: BySlot::default(),
            always_fence: barriers == Barriers::Both,
            fences: 0,
            readers: BySlot::default(),
        }
    }

    /// Calls `wake_reader` for each reader that sleeps and was not woken since it parked. Must be called after a publication.
    /// `update` is called once before that, and passes on the changes of the list of readers ([`FanWaker::watch`]).
    #[inline]
    pub(crate) fn wake(&mut self, update: impl FnOnce(&mut Self), mut wake_reader: impl FnMut(&B)) {
        if self.always_fence {
            self.own.full_fence();
        } else if self.fences > 0 {
            self.make_fence();
        } else {
            compiler_fence(Ordering::SeqCst);
        }
        update(self);
        let Self {
            own, fences, readers, ..
        } = self;
        for (_, row) in readers.iter_mut() {
            let word = row.control.load(row.parked, Ordering::Relaxed);
            if word.is_multiple_of(2) || word == row.last_woken {
                continue;
            }
            row.last_woken = word;
            fence_for(own, layout::TAIL_FENCED, fences, FENCE_COUNT);
            wake_reader(&row.waker);
        }
    }

    /// Sets the reader of this slot. `None` means that no reader has finished its handshake.
    #[cold]
    pub(crate) fn watch(&mut self, slot: usize, reader: Option<SleepingReader<P, B>>) {
        match &reader {
            Some(reader) if reader.barriers == Barriers::Both => self.without_barriers.insert(slot, ()),
            _ => self.without_barriers.remove(slot),
        };
        self.always_fence = self.barriers == Barriers::Both || !self.without_barriers.is_empty();
        let Some(SleepingReader { control, waker, .. }) = reader else {
            self.readers.remove(slot);
            return;
        };
        if self.always_fence {
            // For the publication before this call, which was made without a fence. A new reader makes only its own barrier.
            self.own.full_fence();
            // The other readers then need not issue a barrier.
            fence_for(&self.own, layout::TAIL_FENCED, &mut self.fences, FENCE_COUNT);
        }
        let row = ReaderRow {
            control,
            parked: layout::reader_parked_of(slot),
            last_woken: 0,
            waker,
        };
        self.readers.insert(slot, row);
    }

    fn make_fence(&mut self) {
        self.fences -= 1;
        if self.fences == 0 {
            // As a waker of one does.
            self.own.store(layout::TAIL_FENCED, 0, Ordering::Relaxed);
        }
        self.own.full_fence();
    }
}

/// Must be called after a reader was added to the list of a [`FanWaker`], and before the reader is notified of that. If the
/// reader cannot issue a barrier, this process issues one: the reader finds everything that was published before it, and the
/// publisher reads the new list after everything that it publishes later.
pub(crate) fn admit(own: &impl Readable, ours: Barriers, readers: Barriers) -> Result<()> {
    if ours == Barriers::Both || readers == Barriers::Sleeper {
        return Ok(());
    }
    own.barrier_for_all()
}

/// A publisher that sleeps until its readers have made room: one word, which all readers load, and one barrier.
pub(crate) type RoomSleeper<O> = Sleeper<O, ()>;

impl<O: Writable> RoomSleeper<O> {
    /// As [`Sleeper::park`]. `readers` are the control objects of the readers that can make room.
    pub(crate) fn park_for_room<'a, P: Readable + 'a>(
        &mut self,
        readers: impl IntoIterator<Item = &'a P>,
    ) -> Result<()> {
        let is_unfenced =
            |(): &(), spot: ParkingSpot| readers.into_iter().any(|reader| spot.is_unfenced(reader));
        if self.announce_to(is_unfenced) {
            self.own.barrier_for_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
