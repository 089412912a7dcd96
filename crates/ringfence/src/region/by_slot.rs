//! Values by the slot of a subscriber.

/// No value has this place: there are fewer slots.
const NOWHERE: usize = usize::MAX;

/// Values by slot. They lie next to each other, so that a walk over all of them touches nothing else, and each is found, added and
/// removed in a few steps, however many there are.
#[derive(Debug)]
pub(crate) struct BySlot<V> {
    values: Vec<(usize, V)>,
    /// By slot: the index in `values`, or [`NOWHERE`].
    places: Vec<usize>,
}

impl<V> Default for BySlot<V> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            places: Vec::new(),
        }
    }
}

impl<V> BySlot<V> {
    fn place(&self, slot: usize) -> Option<usize> {
        self.places.get(slot).copied().filter(|place| *place != NOWHERE)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut V> {
        let place = self.place(slot)?;
        Some(&mut self.values[place].1)
    }

    /// Returns the value that the slot had.
    pub(crate) fn insert(&mut self, slot: usize, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(slot) {
            return Some(std::mem::replace(known, value));
        }
        if self.places.len() <= slot {
            self.places.resize(slot + 1, NOWHERE);
        }
        self.places[slot] = self.values.len();
        self.values.push((slot, value));
        None
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<V> {
        let place = self.place(slot)?;
        self.places[slot] = NOWHERE;
        let (_, value) = self.values.swap_remove(place);
        if let Some((moved, _)) = self.values.get(place) {
            self.places[*moved] = place;
        }
        Some(value)
    }

    /// Removes any one of the values.
    pub(crate) fn pop(&mut self) -> Option<(usize, V)> {
        let (slot, value) = self.values.pop()?;
        self.places[slot] = NOWHERE;
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

    proptest! {
        #![proptest_config(Config::with_cases(if cfg!(miri) { 4 } else { 256 }))]

        #[test]
        fn a_value_is_found_by_its_slot_until_it_is_removed(
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
