//! The same as `parking`, for a publisher with several readers: one word says that it makes fences, one barrier serves all of its readers,
//! and each reader's word has its own place.

use std::sync::atomic::{Ordering, compiler_fence};

use super::{Barriers, FENCED_AFTER_A_BELL, ParkingSpot};
use crate::{
    error::{Error, Result},
    region::copy::{Readable, Writable},
    region::layout,
    region::layout::BySlot,
};

impl ParkingSpot {
    /// The reader in this place among several sleeps. The publisher's word is one for all of them.
    pub(crate) const fn reader_in(slot: usize) -> Self {
        Self {
            parked: layout::reader_parked_of(slot),
            fenced: layout::TAIL_FENCED,
        }
    }
}

/// One of several readers that may sleep, as their publisher knows it.
#[derive(Debug)]
pub(crate) struct SleepingReader<P, B> {
    /// Its control object.
    pub(crate) control: P,
    /// The barriers that its process and this one can make together.
    pub(crate) barriers: Barriers,
    /// Passed to the caller to wake the reader.
    pub(crate) bell: B,
}

/// The publisher's side, where several readers may sleep: it makes one barrier for a publication, and one look at each reader.
///
/// # New readers
/// The list of readers is read after the barrier, as their words are. So if a new reader did not find a publication before it slept, the
/// publisher reads the new list after that publication. The barrier that the reader issues ensures this. For a reader that issues none, see
/// [`admit`]: then there is a fence before the new list is read.
#[derive(Debug)]
pub(crate) struct FanWaker<O, P, B> {
    own: O,
    /// The barriers that this process can make.
    barriers: Barriers,
    /// The slots of the readers that can issue no barrier.
    without_barriers: BySlot<()>,
    /// A fence after each publication: this process can make no barrier, or one of the readers cannot.
    always: bool,
    /// Publications for which this side will still make a fence.
    fences: u32,
    readers: BySlot<Row<P, B>>,
}

#[derive(Debug)]
struct Row<P, B> {
    control: P,
    parked: usize,
    rung: u64,
    bell: B,
}

impl<O: Writable, P: Readable, B> FanWaker<O, P, B> {
    /// `barriers`: [`Barriers::Sleeper`] where this process takes membarrier(2).
    pub(crate) fn new(own: O, barriers: Barriers) -> Self {
        Self {
            own,
            barriers,
            without_barriers: BySlot::default(),
            always: barriers == Barriers::Both,
            fences: 0,
            readers: BySlot::default(),
        }
    }

    /// Calls `ring` with the bell of each reader that sleeps and has not been woken since it parked. To be called after a publication.
    /// `update` is called once before that, and passes on the changes of the list of readers ([`FanWaker::watch`]).
    #[inline]
    pub(crate) fn wake(&mut self, update: impl FnOnce(&mut Self), mut ring: impl FnMut(&B)) {
        if self.always {
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
            if word.is_multiple_of(2) || word == row.rung {
                continue;
            }
            row.rung = word;
            fence_for(own, fences, FENCED_AFTER_A_BELL);
            ring(&row.bell);
        }
    }

    /// The reader that has this slot from now on; `None`: no reader that is through its handshake.
    #[cold]
    pub(crate) fn watch(&mut self, slot: usize, reader: Option<SleepingReader<P, B>>) {
        match &reader {
            Some(reader) if reader.barriers == Barriers::Both => self.without_barriers.insert(slot, ()),
            _ => self.without_barriers.remove(slot),
        };
        self.always = self.barriers == Barriers::Both || !self.without_barriers.is_empty();
        let Some(SleepingReader { control, bell, .. }) = reader else {
            self.readers.remove(slot);
            return;
        };
        if self.always {
            // For the publication before this call: it was made without, and a new reader makes its own alone.
            self.own.full_fence();
            // The others need not issue a barrier then.
            fence_for(&self.own, &mut self.fences, FENCED_AFTER_A_BELL);
        }
        let row = Row {
            control,
            parked: layout::reader_parked_of(slot),
            rung: 0,
            bell,
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

/// Makes a fence after each of this number of publications, and says so.
#[cold]
fn fence_for(own: &impl Writable, fences: &mut u32, publications: u32) {
    if *fences == 0 {
        own.store(layout::TAIL_FENCED, 1, Ordering::Release);
    }
    *fences = publications;
}

/// A reader has been entered in the list of a [`FanWaker`], and is told so only after this. Where it cannot issue a barrier, this
/// process does once: what was published before it is what the reader finds, and what is published after it is followed by
/// a look at the new list.
pub(crate) fn admit(own: &impl Readable, ours: Barriers, readers: Barriers) -> Result<()> {
    if ours == Barriers::Both || readers == Barriers::Sleeper {
        return Ok(());
    }
    own.barrier_for_all()
        .map_err(|errno| Error::system("a memory barrier (membarrier)", errno))
}

/// A publisher that sleeps until its readers have made room: one word, which all of them look at, and one barrier.
#[derive(Debug)]
pub(crate) struct RoomSleeper<O> {
    own: O,
    sequence: u64,
    barriers: Barriers,
}

impl<O: Writable> RoomSleeper<O> {
    /// `barriers`: [`Barriers::Sleeper`] where this process takes membarrier(2).
    pub(crate) fn new(own: O, barriers: Barriers) -> Self {
        Self {
            own,
            sequence: 0,
            barriers,
        }
    }

    /// Says that this side is about to sleep. After this, and before sleeping, it must look once more. `readers`: the control objects
    /// of those that can make room.
    pub(crate) fn park<'a, P: Readable + 'a>(
        &mut self,
        readers: impl IntoIterator<Item = &'a P>,
    ) -> Result<()> {
        self.sequence = (self.sequence + 1) | 1;
        self.own
            .store(layout::WRITER_PARKED, self.sequence, Ordering::Release);
        self.own.full_fence();
        // Acquire: as where there is one peer.
        let issue = self.barriers == Barriers::Sleeper
            && readers
                .into_iter()
                .any(|reader| reader.load(layout::HEAD_FENCED, Ordering::Acquire) != 1);
        if issue {
            self.own
                .barrier_for_all()
                .map_err(|errno| Error::system("a memory barrier (membarrier)", errno))?;
        }
        Ok(())
    }

    /// Says that this side is awake.
    pub(crate) fn unpark(&mut self) {
        if self.sequence % 2 == 1 {
            self.sequence += 1;
            self.own
                .store(layout::WRITER_PARKED, self.sequence, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
