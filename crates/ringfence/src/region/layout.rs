//! The offsets of words in a region, and the region's size.
//!
//! Both sides of a channel must agree on this layout. A change of it is a change of the protocol, and needs a
//! new name in [`MAGIC`]. Every word that one side writes and the other polls has 128 bytes of its own,
//! because processors fetch cache lines in pairs.
//!
//! One table of words serves three kinds of object:
//!
//! - The object of a pair has the words of its owner's two halves, and a ring.
//! - The *ring object* of a publisher has a ring, the publisher's words about it, [`FLOOR`] and [`mark_of`].
//!   All subscribers map it.
//! - A *control object* has no ring (its capacity is 0). The publisher has one for each subscriber, and each
//!   subscriber has one, with [`head_of`] and [`reader_parked_of`].

/// [`MAGIC`] as a little-endian word.
pub(crate) const MAGIC_AT: usize = 0;
/// The capacity of the ring, in bytes.
pub(crate) const CAPACITY: usize = 8;
/// The owner's write position: the position after its last published record.
pub(crate) const TAIL: usize = 128;
/// The owner's read position in the peer's ring.
pub(crate) const HEAD: usize = 256;
/// Odd while the owner sleeps until data arrives.
pub(crate) const READER_PARKED: usize = 384;
/// Odd while the owner sleeps until the ring has space.
pub(crate) const WRITER_PARKED: usize = 512;
/// The owner's state: see [`Phase`](crate::region::phase::Phase).
pub(crate) const PHASE: usize = 640;
/// The number of tokens that the owner has sent.
pub(crate) const TOKENS: usize = 768;
/// 1 while the owner makes a full fence between each store of its tail and its load of the peer's
/// [`READER_PARKED`].
pub(crate) const TAIL_FENCED: usize = 896;
/// The same for its head and the peer's [`WRITER_PARKED`].
pub(crate) const HEAD_FENCED: usize = 1024;
/// In a ring object: data before this position may be overwritten at any time.
pub(crate) const FLOOR: usize = 1152;
/// The number of marks in a ring object.
pub(crate) const MARKS: usize = 16;
/// The ring itself.
pub(crate) const DATA: usize = 4096;
/// The number of bytes by which a record may extend beyond the ring's end. It lets a message of exactly half
/// the capacity fit an empty ring, whatever its header and the padding to the next cache line take.
pub(crate) const OVERHANG: usize = 64;

/// The first word of every region: the name and version of the layout.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"ringfnc2");

/// A page: regions consist of whole pages. Other page sizes divide it or are multiples of it, and only the
/// size matters here.
const PAGE: u64 = 4096;

/// Returns the offset of a mark in a ring object. A mark is the position of a record, followed by a word with
/// the number of messages before it.
pub(crate) const fn mark_of(number: usize) -> usize {
    2048 + 16 * (number % MARKS)
}

/// Returns the offset of a subscriber's read position, which is like [`HEAD`], in its control object.
///
/// A publisher reads this word of each subscriber, and the first-level cache holds few lines with the same
/// page offset. So each slot has a different offset, until all lines of a page are in use.
pub(crate) const fn head_of(slot: usize) -> usize {
    4096 + LINE_OF_SLOT * (slot % SLOTS_OF_PAGE)
}

/// Returns the offset of a subscriber's parked word, which is like [`READER_PARKED`], in its control object.
/// See [`head_of`].
pub(crate) const fn reader_parked_of(slot: usize) -> usize {
    8192 + LINE_OF_SLOT * (slot % SLOTS_OF_PAGE)
}

const LINE_OF_SLOT: usize = 64;
const SLOTS_OF_PAGE: usize = 64;

/// The size of a control object in bytes: one page each for the words, the heads and the parked words.
const CONTROL: u64 = 3 * PAGE;

/// The smallest ring, in bytes.
pub const CAPACITY_MIN: u64 = 4096;

/// Rounds a requested capacity up to a valid one: a power of two of at least [`CAPACITY_MIN`]. Returns `None`
/// for 0 and for values that do not fit 63 bits.
pub(crate) fn round_capacity(wanted: u64) -> Option<u64> {
    if wanted == 0 || wanted > 1 << 62 {
        return None;
    }
    Some(wanted.next_power_of_two().max(CAPACITY_MIN))
}

/// Returns the size in bytes of a region with this capacity. Capacity 0 means a control object.
pub(crate) const fn region_size(capacity: u64) -> u64 {
    if capacity == 0 {
        CONTROL
    } else {
        DATA as u64 + capacity + PAGE
    }
}

/// Converts a position to an offset. A position inside a ring is less than the region's size, which was a
/// usize when it was mapped.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by the size of an existing mapping"
)]
pub(crate) const fn as_offset(position: u64) -> usize {
    position as usize
}

/// No value has this place: there are fewer slots.
const VACANT: usize = usize::MAX;

/// Values by slot. They lie next to each other, so that a walk over all of them touches nothing else, and each is found, added and
/// removed in a few steps, however many there are.
pub(crate) struct BySlot<V> {
    values: Vec<(usize, V)>,
    /// By slot: the index in `values`, or [`VACANT`].
    indices: Vec<usize>,
}

impl<V> Default for BySlot<V> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            indices: Vec::new(),
        }
    }
}

impl<V> BySlot<V> {
    fn index(&self, slot: usize) -> Option<usize> {
        self.indices.get(slot).copied().filter(|index| *index != VACANT)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut V> {
        let index = self.index(slot)?;
        Some(&mut self.values[index].1)
    }

    /// Returns the value that the slot had.
    pub(crate) fn insert(&mut self, slot: usize, value: V) -> Option<V> {
        if let Some(current) = self.get_mut(slot) {
            return Some(std::mem::replace(current, value));
        }
        if self.indices.len() <= slot {
            self.indices.resize(slot + 1, VACANT);
        }
        self.indices[slot] = self.values.len();
        self.values.push((slot, value));
        None
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<V> {
        let index = self.index(slot)?;
        self.indices[slot] = VACANT;
        let (_, value) = self.values.swap_remove(index);
        if let Some((moved, _)) = self.values.get(index) {
            self.indices[*moved] = index;
        }
        Some(value)
    }

    /// Removes any one of the values.
    pub(crate) fn pop(&mut self) -> Option<(usize, V)> {
        let (slot, value) = self.values.pop()?;
        self.indices[slot] = VACANT;
        Some((slot, value))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &V)> {
        self.values.iter().map(|(slot, value)| (*slot, value))
    }

    #[inline]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut V)> {
        self.values.iter_mut().map(|(slot, value)| (*slot, value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{prelude::*, test_runner::Config};

    use super::*;

    #[test]
    fn capacities_round_up_to_powers_of_two() {
        for (wanted, got) in [
            (0, None),
            (1, Some(4096)),
            (4096, Some(4096)),
            (4097, Some(8192)),
            (1 << 62, Some(1 << 62)),
            ((1 << 62) + 1, None),
            (u64::MAX, None),
        ] {
            assert_eq!(round_capacity(wanted), got, "{wanted}");
        }
    }

    #[test]
    fn object_words_do_not_overlap() {
        let mut words = vec![MAGIC_AT, CAPACITY, TAIL, HEAD, READER_PARKED, WRITER_PARKED];
        words.extend([PHASE, TOKENS, TAIL_FENCED, HEAD_FENCED, FLOOR]);
        words.extend((0..MARKS).flat_map(|mark| [mark_of(mark), mark_of(mark) + 8]));
        assert!(words.iter().all(|at| at + 8 <= DATA));
        words.extend((0..SLOTS_OF_PAGE).flat_map(|slot| [head_of(slot), reader_parked_of(slot)]));
        assert!(words.iter().all(|at| at + 8 <= as_offset(region_size(0))));
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
        // Cache sets: no two of 64 subscribers share one.
        let mut lines: Vec<_> = (0..64).map(|slot| reader_parked_of(slot) % 4096 / 64).collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 64);
    }

    #[test]
    fn offsets_match_the_protocol() {
        assert_eq!(MAGIC.to_le_bytes(), *b"ringfnc2");
        let marks = [0, 1, 15, 16, 33].map(mark_of);
        assert_eq!(marks, [2048, 2064, 2288, 2048, 2064]);
        let heads = [0, 1, 63, 64, 130].map(head_of);
        assert_eq!(heads, [4096, 4160, 8128, 4096, 4224]);
        let parked = [0, 1, 63, 64, 130].map(reader_parked_of);
        assert_eq!(parked, [8192, 8256, 12224, 8192, 8320]);
        // One page before the ring, and one after it for records that extend beyond the end.
        let sizes = [0, 4096, 1 << 20].map(region_size);
        assert_eq!(sizes, [3 * 4096, 3 * 4096, (1 << 20) + 2 * 4096]);
    }

    proptest! {
        #![proptest_config(Config::with_cases(if cfg!(miri) { 4 } else { 256 }))]

        #[test]
        fn value_is_found_by_its_slot_until_removed(
            steps in prop::collection::vec((0_u8..4, 0_usize..8), 0..60)
        ) {
            let (mut found, mut wanted) = (BySlot::default(), BTreeMap::new());
            for (step, (kind, slot)) in steps.into_iter().enumerate() {
                match kind {
                    0 | 1 => prop_assert_eq!(found.insert(slot, step), wanted.insert(slot, step)),
                    2 => prop_assert_eq!(found.remove(slot), wanted.remove(&slot)),
                    _ => match found.pop() {
                        Some((slot, value)) => prop_assert_eq!(wanted.remove(&slot), Some(value)),
                        None => prop_assert!(wanted.is_empty()),
                    },
                }
                prop_assert_eq!(found.is_empty(), wanted.is_empty());
                for slot in 0..9 {
                    prop_assert_eq!(found.get_mut(slot), wanted.get_mut(&slot));
                }
                let all: BTreeMap<_, _> = found.iter().map(|(slot, value)| (slot, *value)).collect();
                prop_assert_eq!(&all, &wanted);
                let all: BTreeMap<_, _> = found.iter_mut().map(|(slot, value)| (slot, *value)).collect();
                prop_assert_eq!(&all, &wanted);
            }
        }
    }
}
