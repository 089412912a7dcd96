//! The list of the readers. The thread that admits changes it while another one sends.
//!
//! The sending thread keeps what it needs of each reader. It takes the lock only after the generation has said that the list has changed,
//! and copies only the slots that did: a change costs it the same, however many readers there are.
//!
//! A position that is handed out must not be written over from then on, though nothing stops the sender meanwhile. So each side stores
//! its own word and then looks at the other's, with a full fence in between: the one who admits enters the position,
//! moves the generation, and looks at the intent; the sender stores its intent, which is where it will put the floor, and looks at
//! the generation. At least one sees the other. The one who admits then begins again, further on; the sender then keeps to the position.

use std::sync::atomic::Ordering;

use super::marks::{Mark, Seen};
use crate::{
    error::{Error, Result},
    region::{
        copy::{Readable, Writable},
        layout::{self, as_offset, head_of},
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

/// The low bits of a reader's number are its slot, so that the number finds the entry without a search. The bits above count the
/// readers that there ever were: a slot is reused, a number is not.
const SLOT_BITS: u32 = 20;

/// The largest number of readers that a list can have.
pub(crate) const MOST_READERS: usize = 1 << SLOT_BITS;

/// The slot of the reader with this number.
#[inline]
pub(crate) const fn slot_of(number: u64) -> usize {
    as_offset(number) & (MOST_READERS - 1)
}

/// Slots that one turn of a walk reads: a walk over all of them must not keep the sending thread from the lock.
const AT_ONCE: usize = 64;

/// A reader, as the list has it.
#[derive(Debug, Clone)]
pub(super) struct Entry<P, T> {
    pub(super) number: u64,
    pub(super) delivery: Delivery,
    /// The position at which it began. [`NOWHERE`] until that is found.
    pub(super) position: u64,
    /// Its control object, and what the caller has attached; `None` during the handshake.
    pub(super) active: Option<(P, T)>,
}

impl<P: Readable, T> Entry<P, T> {
    /// The position up to which the reader has read, as it says; during its handshake the position at which it will begin.
    fn head(&self) -> u64 {
        match &self.active {
            Some((control, _)) => control.load(head_of(slot_of(self.number)), Ordering::Acquire),
            None => self.position,
        }
    }
}

/// A slot that has changed, and the reader that has it now.
pub(super) type Change<P, T> = (usize, Option<Entry<P, T>>);

#[derive(Debug)]
struct Slot<P, T> {
    entry: Option<Entry<P, T>>,
    /// The sending thread has yet to take the last change.
    changed: bool,
}

#[derive(Debug)]
struct List<P, T> {
    slots: Vec<Slot<P, T>>,
    /// The slots without a reader.
    free: Vec<usize>,
    /// The slots that have changed, each of them once, however long the sending thread takes none.
    changed: Vec<usize>,
    /// Readers that there ever were.
    count: u64,
    changes: u64,
}

impl<P, T> List<P, T> {
    fn entry(&self, number: u64) -> Option<&Entry<P, T>> {
        let slot = self.slots.get(slot_of(number))?;
        slot.entry.as_ref().filter(|entry| entry.number == number)
    }
}

/// The readers of one ring. `O` is the publisher's view of it, `P` that of a reader's control object, and `T` is what the caller wants
/// to have beside each.
#[derive(Debug)]
pub(crate) struct Readers<O, P, T> {
    ring: O,
    /// Memory of this process alone, for [`GENERATION`] and [`INTENT`].
    words: O,
    /// The largest number of readers.
    most: usize,
    list: Mutex<List<P, T>>,
}

impl<O: Writable, P: Readable + Clone, T: Clone> Readers<O, P, T> {
    /// `words`: memory of this process alone that is all zeros, as long as the first page of a region. `most`: the largest number of
    /// readers, at most [`MOST_READERS`].
    pub(crate) fn new(ring: O, words: O, most: usize) -> Self {
        Self {
            ring,
            words,
            most: most.min(MOST_READERS),
            list: Mutex::new(List {
                slots: Vec::new(),
                free: Vec::new(),
                changed: Vec::new(),
                count: 0,
                changes: 0,
            }),
        }
    }

    fn list(&self) -> MutexGuard<'_, List<P, T>> {
        self.list.lock()
    }

    /// Changes the entry of a reader, and moves the generation. `None`: the reader was released. Two threads may store their generations in
    /// the wrong order: each store is a change to the sending thread.
    fn change<R>(&self, number: u64, change: impl FnOnce(&mut Option<Entry<P, T>>) -> R) -> Option<R> {
        let mut guard = self.list();
        guard.entry(number)?;
        let list = &mut *guard;
        let slot = slot_of(number);
        let Slot { entry, changed } = &mut list.slots[slot];
        let result = change(entry);
        if entry.is_none() {
            list.free.push(slot);
        }
        if !std::mem::replace(changed, true) {
            list.changed.push(slot);
        }
        list.changes += 1;
        let generation = list.changes;
        drop(guard);
        self.words.store(GENERATION, generation, Ordering::Release);
        Some(result)
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

    /// A new entry, which keeps nothing yet: the sending thread need not know of it.
    fn enter(&self, delivery: Delivery) -> Result<(u64, usize)> {
        let list = &mut *self.list();
        let slot = match list.free.pop() {
            Some(slot) => slot,
            None if list.slots.len() < self.most => {
                list.slots.push(Slot {
                    entry: None,
                    changed: false,
                });
                list.slots.len() - 1
            }
            None => {
                return Err(Error::NoSpace {
                    what: "a place for one more subscriber".into(),
                    reason: format!("all {} are taken", self.most),
                });
            }
        };
        list.count += 1;
        let number = list.count << SLOT_BITS | slot as u64;
        list.slots[slot].entry = Some(Entry {
            number,
            delivery,
            position: NOWHERE,
            active: None,
        });
        Ok((number, slot))
    }

    /// Enters the position. `false`: the floor may have passed it.
    fn keep(&self, number: u64, position: u64) -> bool {
        self.change(number, |entry| {
            if let Some(entry) = entry {
                entry.position = position;
            }
        });
        self.words.full_fence();
        self.words.load(INTENT, Ordering::Relaxed) <= position
    }

    /// The handshake is through: from now on the reader's own word says how far it has read. `attached` is handed to the sending thread
    /// with it.
    ///
    /// `false`: it was released before.
    pub(crate) fn activate(&self, number: u64, control: P, attached: T) -> bool {
        self.change(number, |entry| {
            if let Some(entry) = entry {
                entry.active = Some((control, attached));
            }
        })
        .is_some()
    }

    /// Whether the reader is in the list.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.list().entry(number).is_some()
    }

    /// Replaces the content of `into` by the number and the position of each reliable reader. A reader whose place is not found yet is left
    /// out: its later positions could not be compared with this one.
    pub(crate) fn reliable(&self, into: &mut Vec<(u64, u64)>) {
        into.clear();
        let mut from = 0;
        loop {
            let list = self.list();
            let Some(slots) = list.slots.get(from..) else {
                return;
            };
            let entries = slots.iter().take(AT_ONCE).filter_map(|slot| slot.entry.as_ref());
            into.extend(
                entries
                    .filter(|entry| entry.delivery == Delivery::Reliable && entry.position != NOWHERE)
                    .map(|entry| (entry.number, entry.head())),
            );
            from += AT_ONCE;
        }
    }

    /// Nothing is kept for this reader any longer, and its slot is free.
    pub(crate) fn release(&self, number: u64) {
        self.change(number, Option::take);
    }

    /// As [`Readers::release`], for a reader whose handshake is not through. `false`: it is through, or the reader was released before.
    pub(crate) fn release_inactive(&self, number: u64) -> bool {
        let released = self.change(number, |entry| entry.take_if(|entry| entry.active.is_none()));
        released.flatten().is_some()
    }

    /// The position up to which a reader has read, as it says: nothing relies on it. `None`: it was released, or its handshake is not through.
    pub(crate) fn position(&self, number: u64) -> Option<u64> {
        let list = self.list();
        let entry = list.entry(number).filter(|entry| entry.active.is_some())?;
        Some(entry.head())
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
        let entries = list.slots.iter().filter_map(|slot| slot.entry.as_ref());
        let positions = entries.map(Entry::head);
        // A liar's may be no position at all, and must cost the others nothing.
        positions.min().map(|position| position.max(floor) & !7)
    }

    /// Moves with each change of the list.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.words.load(GENERATION, Ordering::Acquire)
    }

    /// Moves what has changed to the sending thread. To be called after it has read the generation, which then belongs to this state of
    /// the list or to an earlier one.
    pub(super) fn take_changes(&self, into: &mut Vec<Change<P, T>>) {
        let List { slots, changed, .. } = &mut *self.list();
        into.extend(changed.drain(..).map(|slot| {
            slots[slot].changed = false;
            (slot, slots[slot].entry.clone())
        }));
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
        region::{own::OwnRegion, peer::PeerRegion},
        ring::fan_out::floor::FanOutWriter,
    };

    /// Who compares positions with those that come after them would take it for a reader that has gone back.
    #[test]
    fn a_reader_of_which_nothing_is_kept_yet_has_no_position() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::<_, PeerRegion, ()>::new(ring, OwnRegion::nowhere(), 1);
        let (number, _) = readers.enter(Delivery::Reliable).unwrap();
        let mut positions = Vec::new();
        readers.reliable(&mut positions);
        assert_eq!(positions, []);
        assert!(readers.keep(number, 64));
        readers.reliable(&mut positions);
        assert_eq!(positions, [(number, 64)]);
    }

    /// An eviction that finds no channel releases the reader. A reader that became active in the meantime has a channel, which must end.
    #[test]
    fn an_active_reader_is_not_released_as_one_in_its_handshake() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::new(ring, OwnRegion::nowhere(), 2);
        let [early, late] = [(); 2].map(|()| {
            let held = readers.hold(Delivery::Reliable, StartFrom::Now).unwrap();
            held.number
        });
        let control = OwnRegion::private(0).seen_by_peer();
        assert!(readers.activate(late, control.clone(), ()));
        assert!(readers.release_inactive(early) && !readers.release_inactive(late));
        assert!(!readers.release_inactive(early), "it is released already");
        assert!(!readers.has(early) && readers.has(late));
        assert!(!readers.activate(early, control, ()));
    }

    #[test]
    fn a_slot_is_reused_and_a_number_is_not() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::<_, PeerRegion, ()>::new(ring, OwnRegion::nowhere(), 2);
        let enter = || readers.enter(Delivery::BestEffort);
        let [(first, _), (second, _)] = [(); 2].map(|()| enter().unwrap());
        assert_eq!([slot_of(first), slot_of(second)], [0, 1]);
        assert_eq!(enter().unwrap_err().code(), "NO_SPACE");
        readers.release(first);
        let (third, slot) = enter().unwrap();
        assert_eq!((slot, slot_of(third)), (0, 0));
        assert!(third != first && !readers.has(first) && readers.has(third));
        readers.release(first);
        assert!(readers.has(third), "it was released before");
        assert!(enter().is_err());
    }

    /// The writer may take the list while a reader looks for its place.
    #[test]
    fn a_reader_whose_place_is_found_after_the_writer_has_taken_the_list_is_kept_from_there() {
        let ring = OwnRegion::private(4096);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::nowhere(), 1));
        let mut writer = FanOutWriter::<_, PeerRegion, ()>::new(ring, Arc::clone(&readers), 4096);
        let (number, _) = readers.enter(Delivery::Reliable).unwrap();
        assert_eq!(writer.changes().count(), 0);
        assert!(readers.keep(number, 0));
        assert_eq!(writer.changes().count(), 1);
        let sent = (0..400)
            .take_while(|_| writer.push_now(&[7; 24]).unwrap())
            .count();
        assert!(sent <= 128, "the ring has no more: {sent}");
        assert_eq!(writer.used(), sent as u64 * 32);
    }
}
