//! No wake-up is lost where several readers sleep, in whatever order memory lets them and their publisher see each other. As in the tests of
//! a pair, a lost one leaves the threads of the model waiting for ever.

use std::sync::atomic::Ordering;

use loom::thread;

use super::{FanWaker, RoomSleeper, SleepingReader, admit, fence_for};
use crate::{
    region::copy::{Readable, Writable},
    region::layout::{self, head_of},
    testing::loomed::Region,
    wake::parking::{
        Barriers, FENCE_COUNT, ParkingSpot, Sleeper, Waker,
        tests::{Line, bounded, counted::Words, sleep_until},
    },
};

const READERS: usize = 2;

/// A publisher that publishes once, and readers each of which sleeps until it finds that. `fenced`: it makes its own fences, and the
/// readers rely on that.
fn publication(ring: &Region, publisher: &Region, reader: impl Fn(&Region) -> Region, fenced: bool) {
    let barriers = if fenced { Barriers::Sleeper } else { Barriers::Both };
    let controls: Vec<_> = (0..READERS).map(Region::of_subscriber).collect();
    let lines: Vec<_> = (0..READERS).map(|_| Line::new()).collect();
    let mut waker = FanWaker::new(publisher.clone(), barriers);
    for slot in 0..READERS {
        let reader = SleepingReader {
            control: controls[slot].clone(),
            barriers,
            waker: lines[slot].clone(),
        };
        waker.watch(slot, Some(reader));
    }
    if fenced {
        // As after a wakeup, which the model cannot distinguish from this.
        let FanWaker { own, fences, .. } = &mut waker;
        fence_for(own, layout::TAIL_FENCED, fences, 2);
    }
    let reader_thread = |slot: usize| {
        let spot = ParkingSpot::reader_in(slot);
        let mut sleeper = Sleeper::new(reader(&controls[slot]), ring.clone(), spot, barriers);
        let (ring, line) = (ring.clone(), lines[slot].clone());
        move || {
            sleep_until(&mut sleeper, &line, || {
                ring.load(layout::TAIL, Ordering::Acquire) == 8
            });
        }
    };
    let mut others: Vec<_> = (1..READERS)
        .map(|slot| thread::spawn(reader_thread(slot)))
        .collect();
    let own = ring.clone();
    others.push(thread::spawn(move || {
        own.store(layout::TAIL, 8, Ordering::Release);
        waker.wake(|_| (), Line::send_wakeup);
        own.is_over();
    }));
    reader_thread(0)();
    for other in others {
        other.join().unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn every_sleeping_reader_is_woken() {
    for fenced in [false, true] {
        bounded().check(move || {
            let ring = Region::of_publisher(64, false);
            publication(&ring, &ring, Region::clone, fenced);
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn missing_publisher_fence_loses_a_wakeup() {
    bounded().check(|| {
        let ring = Region::of_publisher(64, false);
        publication(&ring, &ring.without_fences(), Region::clone, false);
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn missing_reader_fence_loses_a_wakeup() {
    bounded().check(|| {
        let ring = Region::of_publisher(64, false);
        publication(&ring, &ring, Region::without_fences, false);
    });
}

/// A publisher that sleeps until each of its readers has made room.
fn room(publisher: &Region, reader: impl Fn(&Region) -> Region) {
    let line = Line::new();
    let controls: Vec<_> = (0..READERS).map(Region::of_subscriber).collect();
    let readers: Vec<_> = (0..READERS)
        .map(|slot| {
            let own = controls[slot].clone();
            let mut waker = Waker::new(
                reader(&own),
                reader(publisher),
                ParkingSpot::WRITER,
                Barriers::Both,
            );
            let line = line.clone();
            thread::spawn(move || {
                own.store(head_of(slot), 8, Ordering::Release);
                if waker.must_wake() {
                    line.send_wakeup();
                }
            })
        })
        .collect();
    let mut sleeper = RoomSleeper::new(publisher.clone(), (), ParkingSpot::WRITER, Barriers::Both);
    let has_room = || (0..READERS).all(|slot| controls[slot].load(head_of(slot), Ordering::Acquire) == 8);
    while !has_room() {
        sleeper.park_for_room(&controls).unwrap();
        if has_room() {
            sleeper.unpark();
            break;
        }
        line.wait();
        sleeper.unpark();
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn sleeping_publisher_is_woken_once_all_readers_made_room() {
    bounded().check(|| room(&Region::of_publisher(64, false), Region::clone));
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn missing_reader_fences_lose_the_publishers_wakeup() {
    bounded().check(|| room(&Region::of_publisher(64, false), Region::without_fences));
}

/// A reader in each slot, whose waker is the number of the slot.
fn watch(waker: &mut FanWaker<Words, Words, usize>, controls: &[Words], barriers: Barriers) {
    for (slot, control) in controls.iter().enumerate() {
        let reader = SleepingReader {
            control: control.clone(),
            barriers,
            waker: slot,
        };
        waker.watch(slot, Some(reader));
    }
}

#[test]
fn each_sleep_of_a_reader_gets_one_wakeup() {
    for barriers in [Barriers::Both, Barriers::Sleeper] {
        let ring = Words::default();
        let controls = [Words::default(), Words::default()];
        let mut waker = FanWaker::new(ring.clone(), barriers);
        waker.wake(
            |waker| watch(waker, &controls, barriers),
            |slot| panic!("{slot} is awake"),
        );
        let mut sleepers = [0, 1].map(|slot| {
            let spot = ParkingSpot::reader_in(slot);
            Sleeper::new(controls[slot].clone(), ring.clone(), spot, barriers)
        });
        let mut wake = || {
            let mut slots = Vec::new();
            waker.wake(|_| (), |slot| slots.push(*slot));
            slots
        };
        for _ in 0..3 {
            sleepers[1].park().unwrap();
            assert_eq!(wake(), [1]);
            assert_eq!(wake(), []);
            sleepers[0].park().unwrap();
            sleepers[1].park().unwrap();
            assert_eq!(wake(), [0, 1]);
            sleepers[0].unpark();
            sleepers[1].unpark();
            assert_eq!(wake(), []);
        }
    }
}

#[test]
fn reader_without_barriers_keeps_the_publisher_fencing() {
    let ring = Words::default();
    let controls = [Words::default(), Words::default()];
    let fences = |waker: &mut FanWaker<Words, Words, usize>| {
        waker.wake(|_| (), |_| ());
        ring.fences()
    };
    let mut both = FanWaker::new(ring.clone(), Barriers::Both);
    assert_eq!(fences(&mut both), 1, "this process issues no barriers");
    watch(&mut both, &controls, Barriers::Sleeper);
    ring.fences();
    assert!((0..=2 * FENCE_COUNT).all(|_| fences(&mut both) == 1));
    let mut waker = FanWaker::new(ring.clone(), Barriers::Sleeper);
    watch(&mut waker, &controls, Barriers::Sleeper);
    assert_eq!((ring.fences(), fences(&mut waker)), (0, 0));
    ring.set(layout::TAIL_FENCED, 0);
    watch(&mut waker, &controls[..1], Barriers::Both);
    assert_eq!(ring.fences(), 1, "for what was published before");
    assert_eq!(ring.get(layout::TAIL_FENCED), 1);
    assert!((0..=2 * FENCE_COUNT).all(|_| fences(&mut waker) == 1));
    // Another reader, which can make them, has its slot.
    watch(&mut waker, &controls[..1], Barriers::Sleeper);
    assert_eq!(ring.get(layout::TAIL_FENCED), 1);
    ring.fences();
    for _ in 0..FENCE_COUNT {
        assert_eq!(ring.get(layout::TAIL_FENCED), 1);
        assert_eq!(fences(&mut waker), 1, "still fencing as announced");
    }
    assert_eq!((ring.get(layout::TAIL_FENCED), fences(&mut waker)), (0, 0));
    watch(&mut waker, &controls[..1], Barriers::Both);
    assert!((0..=2 * FENCE_COUNT).all(|_| fences(&mut waker) > 0));
    // It has gone.
    waker.watch(0, None);
    for _ in 0..FENCE_COUNT {
        assert_eq!((ring.get(layout::TAIL_FENCED), fences(&mut waker)), (1, 1));
    }
    assert_eq!((ring.get(layout::TAIL_FENCED), fences(&mut waker)), (0, 0));
}

#[test]
fn reader_without_barriers_is_admitted_behind_one() {
    use Barriers::{Both, Sleeper};
    for (ours, readers, made) in [
        (Both, Both, 0),
        (Both, Sleeper, 0),
        (Sleeper, Sleeper, 0),
        (Sleeper, Both, 1),
    ] {
        let own = Words::default();
        admit(&own, ours, readers).unwrap();
        assert_eq!(own.barriers(), made, "{ours:?}, {readers:?}");
    }
}

#[test]
fn parking_publisher_announces_it_and_issues_barriers() {
    for (barriers, fenced, made) in [
        (Barriers::Both, [0, 0], 0),
        (Barriers::Sleeper, [1, 1], 0),
        (Barriers::Sleeper, [1, 0], 1),
        (Barriers::Sleeper, [0, 0], 1),
    ] {
        let own = Words::default();
        let controls = fenced.map(|word| {
            let control = Words::default();
            control.set(layout::HEAD_FENCED, word);
            control
        });
        let mut waker = Waker::new(controls[0].clone(), own.clone(), ParkingSpot::WRITER, barriers);
        let mut sleeper = RoomSleeper::new(own.clone(), (), ParkingSpot::WRITER, barriers);
        for _ in 0..3 {
            controls[0].set(layout::HEAD_FENCED, fenced[0]);
            own.fences();
            sleeper.park_for_room(&controls).unwrap();
            assert_eq!(
                (own.fences(), own.barriers()),
                (1, made),
                "{barriers:?}, {fenced:?}"
            );
            assert!(waker.must_wake());
            assert!(!waker.must_wake(), "already woken");
            sleeper.park_for_room(&controls).unwrap();
            assert!(waker.must_wake(), "it parked again");
            sleeper.unpark();
            assert!(!waker.must_wake(), "it is awake");
            let awake = own.get(layout::WRITER_PARKED);
            assert_eq!(awake % 2, 0);
            sleeper.unpark();
            assert_eq!(
                own.get(layout::WRITER_PARKED),
                awake,
                "a second unpark stores nothing"
            );
            own.barriers();
        }
    }
}
