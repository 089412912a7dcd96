//! The stores, fences and barriers of each call. A missing one loses a wakeup in an order that a test may not meet, and an
//! additional one costs more than the message.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::Ordering,
};

use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::layout,
    wake::parking::{Barriers, FENCE_COUNT, ParkingSpot, Sleeper, Waker},
};

/// The polled words of a region, for one thread.
#[derive(Clone, Default)]
pub(in crate::wake::parking) struct Words(Rc<Counted>);

#[derive(Default)]
struct Counted {
    words: RefCell<BTreeMap<usize, u64>>,
    fences: Cell<u32>,
    barriers: Cell<u32>,
    receivers: Cell<u32>,
}

impl Words {
    pub(in crate::wake::parking) fn get(&self, at: usize) -> u64 {
        self.load(at, Ordering::Relaxed)
    }

    pub(in crate::wake::parking) fn set(&self, at: usize, value: u64) {
        self.store(at, value, Ordering::Relaxed);
    }

    /// Returns the number since the last call.
    pub(in crate::wake::parking) fn fences(&self) -> u32 {
        self.0.fences.take()
    }

    /// As [`Words::fences`].
    pub(in crate::wake::parking) fn barriers(&self) -> u32 {
        self.0.barriers.take()
    }

    /// Counts calls of [`Writable::enable_barriers`], as [`Words::fences`].
    fn receivers(&self) -> u32 {
        self.0.receivers.take()
    }
}

impl Readable for Words {
    fn load(&self, at: usize, _: Ordering) -> u64 {
        self.0.words.borrow().get(&at).copied().unwrap_or_default()
    }

    fn copy_out(&self, _: usize, _: &mut [u8]) {
        unreachable!("no ring");
    }

    fn full_fence(&self) {
        self.0.fences.set(self.0.fences.get() + 1);
    }

    fn barrier_for_all(&self) -> Result<()> {
        self.0.barriers.set(self.0.barriers.get() + 1);
        Ok(())
    }
}

impl Writable for Words {
    fn store(&self, at: usize, value: u64, _: Ordering) {
        self.0.words.borrow_mut().insert(at, value);
    }

    fn copy_in(&self, _: usize, _: &[u8]) {
        unreachable!("no ring");
    }

    fn enable_barriers(&self) {
        self.0.receivers.set(self.0.receivers.get() + 1);
    }
}

/// A reader and its writer's waker: what each writes, and the two.
fn reader(barriers: Barriers) -> (Words, Words, Sleeper<Words, Words>, Waker<Words, Words>) {
    let (own, peer) = (Words::default(), Words::default());
    let sleeper = Sleeper::new(own.clone(), peer.clone(), ParkingSpot::READER, barriers);
    let waker = Waker::new(peer.clone(), own.clone(), ParkingSpot::READER, barriers);
    (own, peer, sleeper, waker)
}

#[test]
fn each_sleep_gets_one_wakeup() {
    for barriers in [Barriers::Both, Barriers::Sleeper] {
        let (own, _, mut sleeper, mut waker) = reader(barriers);
        for _ in 0..3 {
            assert!(!waker.must_wake(), "it is awake");
            sleeper.park().unwrap();
            assert_eq!(own.get(layout::READER_PARKED) % 2, 1);
            assert!(waker.must_wake());
            assert!(!waker.must_wake(), "already woken");
            // As after a spurious wakeup.
            sleeper.park().unwrap();
            assert!(waker.must_wake(), "it parked again");
            sleeper.unpark();
            assert_eq!(own.get(layout::READER_PARKED) % 2, 0);
            let awake = own.get(layout::READER_PARKED);
            sleeper.unpark();
            assert_eq!(
                own.get(layout::READER_PARKED),
                awake,
                "a second unpark stores nothing"
            );
        }
    }
}

#[test]
fn publisher_announces_fences_for_a_while_after_a_wakeup() {
    let (words, own, mut sleeper, mut waker) = reader(Barriers::Sleeper);
    for _ in 0..3 {
        assert!(!waker.must_wake());
        assert_eq!((words.fences(), own.get(layout::TAIL_FENCED)), (0, 0));
        sleeper.park().unwrap();
        assert!(waker.must_wake());
        sleeper.unpark();
        words.fences();
        for left in (0..FENCE_COUNT).rev() {
            assert_eq!(own.get(layout::TAIL_FENCED), 1);
            assert!(!waker.must_wake());
            assert_eq!(words.fences(), 1, "{left} follow");
        }
        assert_eq!(own.get(layout::TAIL_FENCED), 0);
    }
}

thread_local! {
    static ARE_RECEIVED: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn publisher_fences_until_its_process_receives_barriers() {
    for (spot, word) in [
        (ParkingSpot::READER, layout::TAIL_FENCED),
        (ParkingSpot::WRITER, layout::HEAD_FENCED),
    ] {
        let (own, peer) = (Words::default(), Words::default());
        let made = Waker::new(own.clone(), peer.clone(), spot, Barriers::Sleeper);
        ARE_RECEIVED.set(false);
        let mut waker = made.fenced_until(|| ARE_RECEIVED.get());
        let mut sleeper = Sleeper::new(peer.clone(), own.clone(), spot, Barriers::Sleeper);
        for _ in 0..3 * FENCE_COUNT {
            assert!(!waker.must_wake());
            assert_eq!((peer.fences(), own.get(word)), (1, 1));
        }
        sleeper.park().unwrap();
        assert!(waker.must_wake());
        sleeper.unpark();
        assert_eq!(peer.barriers(), 0, "a barrier would not reach the publisher");
        peer.fences();
        ARE_RECEIVED.set(true);
        for _ in 0..FENCE_COUNT {
            assert_eq!((own.receivers(), own.get(word)), (0, 1));
            assert!(!waker.must_wake());
            assert_eq!(peer.fences(), 1);
        }
        // Only the half that writes the ring has ranges that an alarm must skip.
        assert_eq!(own.receivers(), u32::from(word == layout::TAIL_FENCED));
        assert!(!waker.must_wake());
        assert_eq!((peer.fences(), own.get(word)), (0, 0));
        sleeper.park().unwrap();
        assert_eq!(peer.barriers(), 1);
    }
}

#[test]
fn sleeper_issues_the_barrier_if_the_publisher_does_not_fence() {
    for (barriers, fenced, made) in [
        (Barriers::Both, 0, 0),
        (Barriers::Both, 1, 0),
        (Barriers::Sleeper, 0, 1),
        (Barriers::Sleeper, 1, 0),
        // A hostile peer's value.
        (Barriers::Sleeper, 2, 1),
    ] {
        let (own, peer, mut sleeper, mut waker) = reader(barriers);
        peer.set(layout::TAIL_FENCED, fenced);
        sleeper.park().unwrap();
        assert_eq!(own.fences(), 1, "between its store and the re-check");
        assert_eq!(own.barriers(), made, "{barriers:?}, {fenced}");
        assert!(waker.must_wake());
        assert_eq!(own.fences(), u32::from(barriers == Barriers::Both));
        sleeper.unpark();
        let must = sleeper.announce();
        assert_eq!(
            (u32::from(must), own.barriers()),
            (
                if peer.get(layout::TAIL_FENCED) == 1 {
                    0
                } else {
                    made
                },
                0
            )
        );
    }
}
