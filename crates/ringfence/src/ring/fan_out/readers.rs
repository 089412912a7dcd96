//! The list of the readers. The thread that admits changes it while another one sends.
//!
//! The sending thread keeps a copy of what it needs of each reader. It takes the lock only if the generation
//! shows that the list has changed, and copies only the slots that changed. So a change costs the same with
//! any number of readers.
//!
//! A position that was handed out must not be overwritten from then on, although the sender is never paused.
//! So each side stores its own word and then loads the other's, with a full fence in between. The admitting
//! thread enters the position, moves the generation, and loads the intent. The sender stores its intent,
//! which is the next floor, and loads the generation. At least one of them sees the other's store. If it is
//! the admitting thread, it tries again with a later position. If it is the sender, it respects the position.

use std::sync::atomic::Ordering;

use super::{Mark, MarkSnapshot};
use crate::{
    error::{Error, Result},
    region::{
        copy::{Readable, Writable},
        layout::{self, as_offset, head_of},
    },
    ring::fan_out::{Delivery, StartFrom},
    sys::lock::Mutex,
};

/// A reader whose handshake is complete.
pub(crate) struct ActiveReader<T> {
    pub(crate) number: u64,
    pub(crate) delivery: Delivery,
    /// The position up to which it claims to have read.
    pub(crate) head: u64,
    /// The caller's attachment.
    pub(crate) attached: T,
}

/// Changes with each change of the list. The thread that has changed the list stores it, after the change.
const GENERATION: usize = layout::TAIL;
/// The position to which the sending thread will move the floor.
const INTENT: usize = layout::FLOOR;

/// The position of a reader that does not delay the writer, and of one whose start position is not found yet. Real positions never reach
/// this value.
pub(super) const NO_POSITION: u64 = u64::MAX;

/// A slot among the readers, and the position at which its reader starts. A reader that starts with messages
/// sent from now on, or with the last message, moves on from there itself: see
/// [`FanOutReader::begin`](super::reader::FanOutReader::begin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderSlot {
    /// The reader's number in the list, never reused. A subscriber does not know its own: 0.
    pub(crate) number: u64,
    pub(crate) slot: usize,
    pub(crate) position: u64,
    /// The number of messages before that position.
    pub(crate) sequence: u64,
}

/// The low bits of a reader's number are its slot, so that the number finds the entry without a search. The
/// bits above count all readers ever entered: a slot is reused, a number is not.
const SLOT_BITS: u32 = 20;

/// The largest number of readers that a list can have.
pub(crate) const MAX_READERS: usize = 1 << SLOT_BITS;

/// Returns the slot of the reader with this number.
#[inline]
pub(crate) const fn slot_of(number: u64) -> usize {
    as_offset(number) & (MAX_READERS - 1)
}

/// Slots read per turn of a walk: a walk over all of them must not keep the sending thread from the lock.
const SLOTS_PER_LOCK: usize = 64;

/// A reader's entry in the list.
#[derive(Debug, Clone)]
pub(super) struct Entry<P, T> {
    pub(super) number: u64,
    pub(super) delivery: Delivery,
    /// The position at which it started. [`NO_POSITION`] until that is found.
    pub(super) position: u64,
    /// The reader's control object, and the caller's attachment. `None` during the handshake.
    pub(super) active: Option<(P, T)>,
}

impl<P: Readable, T> Entry<P, T> {
    /// Returns the position up to which the reader claims to have read. During its handshake: the position at
    /// which it will start.
    fn head(&self) -> u64 {
        match &self.active {
            Some((control, _)) => control.load(head_of(slot_of(self.number)), Ordering::Acquire),
            None => self.position,
        }
    }
}

/// A slot that has changed, and its current reader.
pub(super) type Change<P, T> = (usize, Option<Entry<P, T>>);

struct Slot<P, T> {
    entry: Option<Entry<P, T>>,
    /// The sending thread has not taken the last change yet.
    changed: bool,
}

struct List<P, T> {
    slots: Vec<Slot<P, T>>,
    /// The slots without a reader.
    free: Vec<usize>,
    /// The slots that have changed. Each is listed once, even if the sending thread takes no changes for a
    /// long time.
    changed: Vec<usize>,
    /// The number of readers ever entered.
    count: u64,
    changes: u64,
}

impl<P, T> List<P, T> {
    fn entry(&self, number: u64) -> Option<&Entry<P, T>> {
        let slot = self.slots.get(slot_of(number))?;
        slot.entry.as_ref().filter(|entry| entry.number == number)
    }
}

/// The readers of one ring. `O` is the publisher's view of it, `P` that of a reader's control object, and `T`
/// is the caller's attachment to each reader.
pub(crate) struct Readers<O, P, T> {
    ring: O,
    /// Memory private to this process, for [`GENERATION`] and [`INTENT`].
    words: O,
    /// The largest number of readers.
    max: usize,
    list: Mutex<List<P, T>>,
}

impl<O: Writable, P: Readable + Clone, T: Clone> Readers<O, P, T> {
    /// `words`: memory private to this process, all zeros, as long as the first page of a region. `max`: the
    /// largest number of readers, at most [`MAX_READERS`].
    pub(crate) fn new(ring: O, words: O, max: usize) -> Self {
        Self {
            ring,
            words,
            max: max.min(MAX_READERS),
            list: Mutex::new(List {
                slots: Vec::new(),
                free: Vec::new(),
                changed: Vec::new(),
                count: 0,
                changes: 0,
            }),
        }
    }

    /// Changes the entry of a reader, and moves the generation. `None`: the reader was released. Two threads
    /// may store their generations in the wrong order: the sending thread treats each store as a change.
    fn change<R>(&self, number: u64, change: impl FnOnce(&mut Option<Entry<P, T>>) -> R) -> Option<R> {
        let mut guard = self.list.lock();
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

    /// Assigns a slot and a start position to a new reader. The position is protected from now on if the
    /// reader is reliable. `None` for the slot: all are taken.
    ///
    /// 'now' and 'latest' start at the last mark, and 'oldest' at the first. Tries again as long as the
    /// sender advances by more than half a ring within a try.
    pub(crate) fn reserve_slot(&self, delivery: Delivery, from: StartFrom) -> Result<ReaderSlot> {
        let (number, slot) = self.add_entry(delivery)?;
        loop {
            let seen = MarkSnapshot::read(&self.ring);
            let intent = self.words.load(INTENT, Ordering::Relaxed);
            let marks = seen.valid_marks().filter(|mark| mark.position >= intent);
            let mark = match from {
                StartFrom::Oldest => marks.min_by_key(|mark| mark.position),
                // A mark at the tail has no last message after it.
                StartFrom::Now | StartFrom::Latest => {
                    marks.max_by_key(|mark| (mark.position < seen.tail, mark.position))
                }
            };
            if let Some(Mark { position, sequence }) = mark
                && self.set_position(number, position)
            {
                return Ok(ReaderSlot {
                    number,
                    slot,
                    position,
                    sequence,
                });
            }
        }
    }

    /// Adds an entry without a position, so the sending thread need not read it yet.
    fn add_entry(&self, delivery: Delivery) -> Result<(u64, usize)> {
        let list = &mut *self.list.lock();
        let slot = match list.free.pop() {
            Some(slot) => slot,
            None if list.slots.len() < self.max => {
                list.slots.push(Slot {
                    entry: None,
                    changed: false,
                });
                list.slots.len() - 1
            }
            None => {
                return Err(Error::no_space(
                    "a place for one more subscriber",
                    format!("all {} are taken", self.max),
                ));
            }
        };
        list.count += 1;
        let number = list.count << SLOT_BITS | slot as u64;
        list.slots[slot].entry = Some(Entry {
            number,
            delivery,
            position: NO_POSITION,
            active: None,
        });
        Ok((number, slot))
    }

    /// Sets the start position. `false`: the floor may have passed it.
    fn set_position(&self, number: u64, position: u64) -> bool {
        self.change(number, |entry| {
            if let Some(entry) = entry {
                entry.position = position;
            }
        });
        self.words.full_fence();
        self.words.load(INTENT, Ordering::Relaxed) <= position
    }

    /// Completes the handshake: from now on the reader's own word says how far it has read. The sending
    /// thread receives `attached` with the change.
    ///
    /// `false`: the reader was released before.
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
        self.list.lock().entry(number).is_some()
    }

    /// Replaces the content of `into` with the number and the position of each reliable reader. Leaves out a
    /// reader whose start position is not found yet, because its later positions could not be compared with
    /// it.
    pub(crate) fn reliable(&self, into: &mut Vec<(u64, u64)>) {
        into.clear();
        let mut from = 0;
        loop {
            let list = self.list.lock();
            let Some(slots) = list.slots.get(from..) else {
                return;
            };
            let entries = slots
                .iter()
                .take(SLOTS_PER_LOCK)
                .filter_map(|slot| slot.entry.as_ref());
            into.extend(
                entries
                    .filter(|entry| entry.delivery == Delivery::Reliable && entry.position != NO_POSITION)
                    .map(|entry| (entry.number, entry.head())),
            );
            from += SLOTS_PER_LOCK;
        }
    }

    /// Returns the readers whose handshake is complete.
    pub(crate) fn active(&self) -> Vec<ActiveReader<T>> {
        let list = self.list.lock();
        let entries = list.slots.iter().filter_map(|slot| slot.entry.as_ref());
        let active = entries.filter_map(|entry| {
            Some(ActiveReader {
                number: entry.number,
                delivery: entry.delivery,
                head: entry.head(),
                attached: entry.active.as_ref()?.1.clone(),
            })
        });
        active.collect()
    }

    /// Releases the reader: its position is no longer protected, and its slot is free.
    pub(crate) fn release(&self, number: u64) {
        self.change(number, Option::take);
    }

    /// As [`Readers::release`], for a reader whose handshake is not complete. `false`: it is complete, or the
    /// reader was released before.
    pub(crate) fn release_inactive(&self, number: u64) -> bool {
        let released = self.change(number, |entry| entry.take_if(|entry| entry.active.is_none()));
        released.flatten().is_some()
    }

    /// Returns the position up to which a reader claims to have read. Nothing relies on it. `None`: the
    /// reader was released, or its handshake is not complete.
    pub(crate) fn position(&self, number: u64) -> Option<u64> {
        let list = self.list.lock();
        let entry = list.entry(number).filter(|entry| entry.active.is_some())?;
        Some(entry.head())
    }

    /// Returns the number of published bytes that this reader claims not to have read. 0 if it was released.
    pub(crate) fn lag(&self, number: u64) -> u64 {
        let position = self.position(number);
        let tail = self.ring.load(layout::TAIL, Ordering::Acquire);
        position.map_or(0, |position| tail.saturating_sub(position))
    }

    /// Returns the lowest position at which a reader may still read, of any delivery, also during its
    /// handshake. `None`: there is no reader.
    pub(crate) fn lowest_position(&self) -> Option<u64> {
        let list = self.list.lock();
        let floor = self.ring.load(layout::FLOOR, Ordering::Acquire);
        let entries = list.slots.iter().filter_map(|slot| slot.entry.as_ref());
        let positions = entries.map(Entry::head);
        // A hostile reader's head may be no valid position, and must not affect the others.
        positions.min().map(|position| position.max(floor) & !7)
    }

    /// Returns the generation, which changes with each change of the list.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.words.load(GENERATION, Ordering::Acquire)
    }

    /// Moves the changes to the sending thread. Call it after reading the generation, which then belongs to
    /// this state of the list or to an earlier one.
    pub(super) fn drain_changes(&self, into: &mut Vec<Change<P, T>>) {
        let List { slots, changed, .. } = &mut *self.list.lock();
        into.extend(changed.drain(..).map(|slot| {
            slots[slot].changed = false;
            (slot, slots[slot].entry.clone())
        }));
    }

    /// Announces that the sender will move the floor to this position. Returns the generation. It shows
    /// whether a reader has been entered in the meantime that the new floor would pass.
    pub(super) fn announce_floor(&self, floor: u64) -> u64 {
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
        ring::record::Tag,
    };

    /// A caller that compares positions over time would see such a reader go backwards.
    #[test]
    fn reader_without_a_position_is_not_listed() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::<_, PeerRegion, ()>::new(ring, OwnRegion::detached(), 1);
        let (number, _) = readers.add_entry(Delivery::Reliable).unwrap();
        let mut positions = Vec::new();
        readers.reliable(&mut positions);
        assert_eq!(positions, []);
        assert!(readers.set_position(number, 64));
        readers.reliable(&mut positions);
        assert_eq!(positions, [(number, 64)]);
    }

    /// An eviction that finds no channel releases the reader. A reader that became active in the meantime has
    /// a channel, which must end.
    #[test]
    fn active_reader_is_not_released_as_inactive() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::new(ring, OwnRegion::detached(), 2);
        let [early, late] = [(); 2].map(|()| {
            let held = readers.reserve_slot(Delivery::Reliable, StartFrom::Now).unwrap();
            held.number
        });
        let control = OwnRegion::private(0).peer_view();
        assert!(readers.activate(late, control.clone(), ()));
        assert!(readers.release_inactive(early) && !readers.release_inactive(late));
        assert!(!readers.release_inactive(early), "it is released already");
        assert!(!readers.has(early) && readers.has(late));
        assert!(!readers.activate(early, control, ()));
    }

    #[test]
    fn slots_are_reused_and_numbers_are_not() {
        let ring = OwnRegion::private(4096);
        let readers = Readers::<_, PeerRegion, ()>::new(ring, OwnRegion::detached(), 2);
        let enter = || readers.add_entry(Delivery::BestEffort);
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
    fn position_set_after_a_list_update_is_respected() {
        let ring = OwnRegion::private(4096);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::detached(), 1));
        let mut writer = FanOutWriter::<_, PeerRegion, ()>::new(ring, Arc::clone(&readers), 4096);
        let (number, _) = readers.add_entry(Delivery::Reliable).unwrap();
        assert_eq!(writer.changes().count(), 0);
        assert!(readers.set_position(number, 0));
        assert_eq!(writer.changes().count(), 1);
        let sent = (0..400)
            .take_while(|_| writer.push_now(&[7; 24], Tag::NONE).unwrap())
            .count();
        assert!(sent <= 128, "the ring has no more: {sent}");
        assert_eq!(writer.used(), sent as u64 * 32);
    }
}
