//! As `parking`, where one publisher has several readers: one word says that it makes fences, one barrier serves all of its readers, and a
//! reader's word has a place of its own.

use std::sync::atomic::{Ordering, compiler_fence};

use super::{Barriers, FENCED_AFTER_A_BELL, ParkingSpot};
use crate::{
    error::{Error, Result},
    memory::access::{Readable, Writable},
    memory::layout,
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
#[derive(Debug, Clone)]
pub(crate) struct Watched<P> {
    pub(crate) slot: usize,
    /// Its control object.
    pub(crate) control: P,
    /// What its process and this one can do together.
    pub(crate) barriers: Barriers,
}

/// The publisher's side, where several readers may sleep: it makes one barrier for a publication, and one look at each reader.
///
/// # A reader that comes
/// The list of readers is asked for after the barrier, as their words are. So a publication that a new reader's last look did not
/// find is followed by a look at the new list. A reader that issues the barrier itself brings this about. For one that does
/// not, see [`admit`]; the look at the new list then has a fence before it.
#[derive(Debug)]
pub(crate) struct FanWaker<O, P> {
    own: O,
    /// What this process can do.
    barriers: Barriers,
    /// A fence after each publication, as long as this is so: one of the readers can issue no barrier.
    always: bool,
    /// Publications for which this side will still make a fence.
    fences: u32,
    readers: Vec<Row<P>>,
}

#[derive(Debug)]
struct Row<P> {
    control: P,
    parked: usize,
    rung: u64,
    slot: usize,
}

impl<O: Writable, P: Readable> FanWaker<O, P> {
    /// `barriers`: [`Barriers::Sleeper`] where this process takes membarrier(2).
    pub(crate) fn new(own: O, barriers: Barriers) -> Self {
        Self {
            own,
            barriers,
            always: barriers == Barriers::Both,
            fences: 0,
            readers: Vec::new(),
        }
    }

    /// Calls `ring` with the slot of each reader that sleeps and has not been rung for since it parked. To be called after a
    /// publication. `changed` is asked once, and answers the list of readers if that is not the last one any more.
    #[inline]
    pub(crate) fn wake(
        &mut self,
        changed: impl FnOnce() -> Option<Vec<Watched<P>>>,
        mut ring: impl FnMut(usize),
    ) {
        if self.always {
            self.own.full_fence();
        } else if self.fences > 0 {
            self.make_fence();
        } else {
            compiler_fence(Ordering::SeqCst);
        }
        if let Some(readers) = changed() {
            self.watch(readers);
        }
        for index in 0..self.readers.len() {
            let row = &mut self.readers[index];
            let word = row.control.load(row.parked, Ordering::Relaxed);
            if word.is_multiple_of(2) || word == row.rung {
                continue;
            }
            row.rung = word;
            let slot = row.slot;
            self.fence_for(FENCED_AFTER_A_BELL);
            ring(slot);
        }
    }

    #[cold]
    fn watch(&mut self, readers: Vec<Watched<P>>) {
        self.always =
            self.barriers == Barriers::Both || readers.iter().any(|reader| reader.barriers == Barriers::Both);
        if self.always {
            // For the publication that has brought this about: it was made without, and a new reader makes its own alone.
            self.own.full_fence();
            // The others need not issue a barrier then.
            self.fence_for(FENCED_AFTER_A_BELL);
        }
        // One that was rung for already is rung for once more. That is no error, and to know it would take more than its slot, which
        // another reader may have by now.
        self.readers = readers
            .into_iter()
            .map(|reader| Row {
                control: reader.control,
                parked: layout::reader_parked_of(reader.slot),
                rung: 0,
                slot: reader.slot,
            })
            .collect();
    }

    fn make_fence(&mut self) {
        self.fences -= 1;
        if self.fences == 0 {
            // As a waker of one does.
            self.own.store(layout::TAIL_FENCED, 0, Ordering::Relaxed);
        }
        self.own.full_fence();
    }

    #[cold]
    fn fence_for(&mut self, publications: u32) {
        if self.fences == 0 {
            self.own.store(layout::TAIL_FENCED, 1, Ordering::Release);
        }
        self.fences = publications;
    }
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
