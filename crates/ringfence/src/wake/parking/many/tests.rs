//! No wake-up is lost where several readers sleep, in whatever order memory lets them and their publisher see each other. As in the tests of
//! a pair, a lost one leaves the threads of the model waiting for ever.

use std::sync::atomic::Ordering;

use loom::thread;

use super::{FanWaker, RoomSleeper, Watched};
use crate::{
    memory::access::{Readable, Writable},
    memory::layout::{self, head_of},
    testing::loomed::Region,
    wake::parking::{
        Barriers, ParkingSpot, Sleeper, Waker,
        tests::{Line, bounded, sleep_until},
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
    waker.watch(
        (0..READERS)
            .map(|slot| Watched {
                slot,
                control: controls[slot].clone(),
                barriers,
            })
            .collect(),
    );
    if fenced {
        // As after a bell, which the model has no way to tell from this.
        waker.fence_for(2);
    }
    let sleeps = |slot: usize| {
        let spot = ParkingSpot::reader_in(slot);
        let mut sleeper = Sleeper::new(reader(&controls[slot]), ring.clone(), spot, barriers);
        let (ring, line) = (ring.clone(), lines[slot].clone());
        move || {
            sleep_until(&mut sleeper, &line, || {
                ring.load(layout::TAIL, Ordering::Acquire) == 8
            });
        }
    };
    let mut others: Vec<_> = (1..READERS).map(|slot| thread::spawn(sleeps(slot))).collect();
    let (own, bells) = (ring.clone(), lines.clone());
    others.push(thread::spawn(move || {
        own.store(layout::TAIL, 8, Ordering::Release);
        waker.wake(|| None, |slot| bells[slot].ring());
        own.is_over();
    }));
    sleeps(0)();
    for other in others {
        other.join().unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn each_reader_that_sleeps_is_woken() {
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
fn without_the_publishers_fence_a_reader_would_sleep_for_ever() {
    bounded().check(|| {
        let ring = Region::of_publisher(64, false);
        publication(&ring, &ring.without_fences(), Region::clone, false);
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn without_a_readers_fence_it_would_sleep_for_ever() {
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
            let bell = line.clone();
            thread::spawn(move || {
                own.store(head_of(slot), 8, Ordering::Release);
                if waker.must_ring() {
                    bell.ring();
                }
            })
        })
        .collect();
    let mut sleeper = RoomSleeper::new(publisher.clone(), Barriers::Both);
    let there = || (0..READERS).all(|slot| controls[slot].load(head_of(slot), Ordering::Acquire) == 8);
    while !there() {
        sleeper.park(&controls).unwrap();
        if there() {
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
fn a_publisher_that_sleeps_is_woken_once_all_of_its_readers_have_made_room() {
    bounded().check(|| room(&Region::of_publisher(64, false), Region::clone));
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn without_the_fences_of_its_readers_a_publisher_would_sleep_for_ever() {
    bounded().check(|| room(&Region::of_publisher(64, false), Region::without_fences));
}
