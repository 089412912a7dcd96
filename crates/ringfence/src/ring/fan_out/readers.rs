//! The list of the readers. The thread that admits changes it while another one sends.
//!
//! The sending thread has a copy. It takes the lock only after a look at the generation has said that the list has changed.
//!
//! A position that is handed out must not be written over from then on, though nothing stops the sender meanwhile. So each side stores
//! its own word and then looks at the other's, with a full fence in between: the one who admits enters the position,
//! moves the generation, and looks at the intent; the sender stores its intent, which is where it will put the floor, and looks at
//! the generation. At least one sees the other. The one who admits then begins again, further on; the sender then keeps to the position.

use std::sync::atomic::Ordering;

use super::marks::{Mark, Seen};
use crate::{
    error::{Error, Result},
    memory::{
        access::{Readable, Writable},
        layout::{self, head_of},
    },
    ring::delivery::{Delivery, StartFrom},
    sys::lock::{Mutex, MutexGuard},
};

/// Moves with each change of the list; stored by the thread that has changed it, after the change.
const GENERATION: usize = layout::TAIL;
/// Where the sending thread will put the floor.
const INTENT: usize = layout::FLOOR;

/// The position of a reader of which nothing is kept yet: positions end far before this one.
const NOWHERE: u64 = u64::MAX;

/// A place among the readers, and where its reader begins. A reader that is to begin with what is sent from now on, or with the last
/// message, goes on from there by itself: see [`FanIn::begin`](super::reader::FanIn::begin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// Of this reader in the list, and of no other at any time. A subscriber does not know its own: 0.
    pub(crate) number: u64,
    pub(crate) slot: usize,
    pub(crate) position: u64,
    /// Messages before that position.
    pub(crate) sequence: u64,
}

/// A reader, as the list has it.
#[derive(Debug, Clone)]
pub(super) struct Entry<P, T> {
    /// Of this reader alone; a slot is used again.
    pub(super) number: u64,
    pub(super) slot: usize,
    pub(super) delivery: Delivery,
    /// Where it began. [`NOWHERE`] until that is found.
    pub(super) position: u64,
    /// Its control object, and what the caller has attached; `None` during the handshake.
    pub(super) active: Option<(P, T)>,
}

#[derive(Debug)]
struct List<P, T> {
    entries: Vec<Entry<P, T>>,
    /// Readers that there ever were.
    count: u64,
    changes: u64,
}

/// The readers of one ring. `O` is the publisher's view of it, `P` that of a reader's control object, and `T` is what the caller wants
/// to have beside each.
#[derive(Debug)]
pub(crate) struct Readers<O, P, T> {
    ring: O,
    /// Memory of this process alone, for [`GENERATION`] and [`INTENT`].
    words: O,
    /// The largest number of readers.
    slots: usize,
    list: Mutex<List<P, T>>,
}

impl<O: Writable, P: Readable + Clone, T: Clone> Readers<O, P, T> {
    /// `words`: memory of this process alone that is all zeros, as long as the first page of a region.
    pub(crate) fn new(ring: O, words: O, slots: usize) -> Self {
        Self {
            ring,
            words,
            slots,
            list: Mutex::new(List {
                entries: Vec::new(),
                count: 0,
                changes: 0,
            }),
        }
    }

    fn list(&self) -> MutexGuard<'_, List<P, T>> {
        self.list.lock()
    }

    /// Changes the list, and says so. A number that another thread's overtakes on the way is a change as well.
    fn change<R>(&self, change: impl FnOnce(&mut List<P, T>) -> R) -> R {
        let (result, generation) = {
            let list = &mut *self.list();
            list.changes += 1;
            (change(list), list.changes)
        };
        self.words.store(GENERATION, generation, Ordering::Release);
        result
    }

    /// Gives a new reader a slot and a place to begin, which is kept from now on if the reader is a reliable one. `None` for the slot:
    /// all are taken.
    ///
    /// 'now' and 'latest' begin at the last mark, and 'oldest' at the first. It is tried again for as long as the sender goes
    /// on by more than half a ring within a try.
    pub(crate) fn hold(&self, delivery: Delivery, from: StartFrom) -> Result<Held> {
        let (number, slot) = self.enter(delivery)?;
        loop {
            let seen = Seen::look(&self.ring);
            let intent = self.words.load(INTENT, Ordering::Relaxed);
            let marks = seen.whole().filter(|mark| mark.position >= intent);
            let mark = match from {
                StartFrom::Oldest => marks.min_by_key(|mark| mark.position),
                // Behind one at the tail, there is no last message.
                StartFrom::Now | StartFrom::Latest => {
                    marks.max_by_key(|mark| (mark.position < seen.tail, mark.position))
                }
            };
            if let Some(Mark { position, sequence }) = mark
                && self.keep(number, position)
            {
                return Ok(Held {
                    number,
                    slot,
                    position,
                    sequence,
                });
            }
        }
    }

    /// A new entry, which keeps nothing yet.
    fn enter(&self, delivery: Delivery) -> Result<(u64, usize)> {
        let list = &mut *self.list();
        let slot = (0..self.slots)
            .find(|slot| list.entries.iter().all(|entry| entry.slot != *slot))
            .ok_or_else(|| Error::NoSpace {
                what: "a place for one more subscriber".into(),
                reason: format!("all {} are taken", self.slots),
            })?;
        list.count += 1;
        list.entries.push(Entry {
            number: list.count,
            slot,
            delivery,
            position: NOWHERE,
            active: None,
        });
        Ok((list.count, slot))
    }

    /// Enters the position. `false`: the floor may have passed it.
    fn keep(&self, number: u64, position: u64) -> bool {
        self.change(|list| {
            if let Some(entry) = list.entries.iter_mut().find(|entry| entry.number == number) {
                entry.position = position;
            }
        });
        self.words.full_fence();
        self.words.load(INTENT, Ordering::Relaxed) <= position
    }

    /// The handshake is through: from now on the reader's own word says how far it has read. `attached` is told to the
    /// sending thread with it.
    ///
    /// `false`: it was released before.
    pub(crate) fn activate(&self, number: u64, control: P, attached: T) -> bool {
        self.change(|list| {
            let entry = list.entries.iter_mut().find(|entry| entry.number == number);
            entry
                .map(|entry| entry.active = Some((control, attached)))
                .is_some()
        })
    }

    /// Whether the reader is in the list.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.list().entries.iter().any(|entry| entry.number == number)
    }

    /// How far each reliable reader has read, as it says, or where it will begin: by number. One of which that is not known yet has no
    /// position that a later one could be compared with.
    pub(crate) fn reliable(&self) -> Vec<(u64, u64)> {
        let list = self.list();
        let reliable = list
            .entries
            .iter()
            .filter(|entry| entry.delivery == Delivery::Reliable && entry.position != NOWHERE);
        reliable
            .map(|entry| {
                let position = match &entry.active {
                    Some((control, _)) => control.load(head_of(entry.slot), Ordering::Acquire),
                    None => entry.position,
                };
                (entry.number, position)
            })
            .collect()
    }

    /// Nothing is kept for this reader any more, and its slot is free.
    pub(crate) fn release(&self, number: u64) {
        self.change(|list| list.entries.retain(|entry| entry.number != number));
    }

    /// How far a reader has read, as it says: believed by nothing. `None`: it was released, or its handshake is not through.
    pub(crate) fn position(&self, number: u64) -> Option<u64> {
        let list = self.list();
        let entry = list.entries.iter().find(|entry| entry.number == number)?;
        let (control, _) = entry.active.as_ref()?;
        Some(control.load(head_of(entry.slot), Ordering::Acquire))
    }

    /// Bytes that are published and that this reader has not read, as it says. 0 where it was released.
    pub(crate) fn lag(&self, number: u64) -> u64 {
        let position = self.position(number);
        let tail = self.ring.load(layout::TAIL, Ordering::Acquire);
        position.map_or(0, |position| tail.saturating_sub(position))
    }

    /// The lowest position that a reader may still read at: of any delivery, also during its handshake. `None`: there is none.
    pub(crate) fn kept_from(&self) -> Option<u64> {
        let list = self.list();
        let floor = self.ring.load(layout::FLOOR, Ordering::Acquire);
        let positions = list.entries.iter().map(|entry| match &entry.active {
            Some((control, _)) => control.load(head_of(entry.slot), Ordering::Acquire),
            None => entry.position,
        });
        // A liar's may be no position at all, and must cost the others nothing.
        positions.min().map(|position| position.max(floor) & !7)
    }

    /// Moves with each change of the list.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.words.load(GENERATION, Ordering::Acquire)
    }

    /// The list as it is now. To be taken after a look at the generation, which then belongs to it or to one before it.
    pub(super) fn snapshot(&self) -> Vec<Entry<P, T>> {
        self.list().entries.clone()
    }

    /// The sender will put the floor here. Returns the generation, which says whether a reader has come meanwhile that this would
    /// overtake.
    pub(super) fn intend(&self, floor: u64) -> u64 {
        self.words.store(INTENT, floor, Ordering::Relaxed);
        self.words.full_fence();
        self.generation()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        memory::{own::OwnRegion, peer::PeerRegion},
        ring::fan_out::writer::FanOut,
    };

    /// Who compares positions with those that come after them would take it for a reader that has gone back.
    #[test]
    fn a_reader_of_which_nothing_is_kept_yet_has_no_position() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::<_, PeerRegion, ()>::new(ring, OwnRegion::nowhere(), 1);
        let (number, _) = readers.enter(Delivery::Reliable).unwrap();
        assert_eq!(readers.reliable(), []);
        assert!(readers.keep(number, 64));
        assert_eq!(readers.reliable(), [(number, 64)]);
    }

    /// The writer may take the list while a reader looks for its place.
    #[test]
    fn a_reader_whose_place_is_found_after_the_writer_has_taken_the_list_is_kept_from_there() {
        let ring = OwnRegion::private(4096);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::nowhere(), 1));
        let mut writer = FanOut::<_, PeerRegion, ()>::new(ring, Arc::clone(&readers), 4096);
        let (number, _) = readers.enter(Delivery::Reliable).unwrap();
        assert!(writer.refresh());
        assert!(readers.keep(number, 0));
        assert!(writer.refresh());
        let sent = (0..400).take_while(|_| writer.push_now(&[7; 24])).count();
        assert!(sent <= 128, "the ring has no more: {sent}");
        assert_eq!(writer.used(), sent as u64 * 32);
    }
}
