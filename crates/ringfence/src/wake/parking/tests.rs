//! No wakeup is lost in any order that the memory model allows. If one were lost, both threads of the model would wait
//! forever, which loom reports. Loom switches stacks itself, which Miri does not support.

pub(super) mod counted;

use std::sync::atomic::Ordering;

use loom::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use crate::{
    region::copy::{Readable, Writable},
    region::layout,
    region::phase::Phase,
    ring::record::Tag,
    ring::spsc::SpscReader,
    ring::spsc::SpscWriter,
    testing::loomed::Region,
    wake::parking::{Barriers, ParkingSpot, Sleeper, Waker, fence_for},
};

/// A model of the private line: bytes that stay until they are read.
#[derive(Clone)]
pub(super) struct Line(Arc<(Mutex<u32>, Condvar)>);

impl Line {
    pub(super) fn new() -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new())))
    }

    pub(super) fn send_wakeup(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_one();
    }

    pub(super) fn wait(&self) {
        let mut wakeups = self.0.0.lock().unwrap();
        while *wakeups == 0 {
            wakeups = self.0.1.wait(wakeups).unwrap();
        }
        *wakeups = 0;
    }
}

/// Waits as both halves of a channel do: parks, re-checks, and only then sleeps.
pub(super) fn sleep_until(
    sleeper: &mut Sleeper<Region, Region>,
    line: &Line,
    mut check: impl FnMut() -> bool,
) {
    while !check() {
        sleeper.park().unwrap();
        if check() {
            sleeper.unpark();
            return;
        }
        line.wait();
        sleeper.unpark();
    }
}

/// All orders with at most three preemptions. Exploring all orders takes long.
pub(super) fn bounded() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model
}

const CAPACITY: u64 = 64;

/// A reader that sleeps whenever it finds nothing, and a writer that sends a wakeup whenever it must. Both directions' words
/// have places of their own, so one region serves both; each thread sees it through fences of its own.
fn stream(region: &Region, reader: &Region, writer: &Region, messages: u64, barriers: Barriers, fences: u32) {
    let line = Line::new();
    let mut producer = SpscWriter::new(region.clone(), region.clone(), CAPACITY);
    let mut waker = Waker::new(writer.clone(), writer.clone(), ParkingSpot::READER, barriers);
    if fences > 0 {
        fence_for(&waker.own, waker.spot.fenced, &mut waker.fences, fences);
    }
    let bell = line.clone();
    let over = region.clone();
    let writer = thread::spawn(move || {
        for word in 0..messages {
            let pushed = producer.push(&word.to_le_bytes(), Tag::NONE).unwrap();
            assert!(pushed, "there is room for all");
            producer.publish();
            if waker.must_wake() {
                bell.send_wakeup();
            }
        }
        over.is_over();
    });
    let mut consumer = SpscReader::new(region.clone(), region.clone(), CAPACITY, CAPACITY);
    let mut sleeper = Sleeper::new(reader.clone(), reader.clone(), ParkingSpot::READER, barriers);
    for word in 0..messages {
        sleep_until(&mut sleeper, &line, || consumer.available().unwrap());
        let record = consumer.next_record().unwrap().expect("an available message");
        let mut bytes = [0; 8];
        consumer.peer.copy_out(record.at, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), word);
        consumer.skip(record.size);
    }
    writer.join().unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn sleeping_reader_is_woken_for_each_message() {
    bounded().check(|| {
        let region = Region::new(CAPACITY);
        stream(&region, &region, &region, 2, Barriers::Both, 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn missing_sleeper_fence_loses_a_wakeup() {
    loom::model(|| {
        let region = Region::new(CAPACITY);
        stream(&region, &region.without_fences(), &region, 1, Barriers::Both, 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn missing_waker_fence_loses_a_wakeup() {
    loom::model(|| {
        let region = Region::new(CAPACITY);
        stream(&region, &region, &region.without_fences(), 1, Barriers::Both, 0);
    });
}

/// A writer that stops making its own fences meets a reader that relies on them.
#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn reader_relying_on_writer_fences_is_woken() {
    for fences in [1, 2] {
        bounded().check(move || {
            let region = Region::new(CAPACITY);
            stream(&region, &region, &region, 2, Barriers::Sleeper, fences);
        });
    }
}

/// The same from no fences to fences: what was published without is seen by a writer that sees the promise.
#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn publications_before_the_first_fence_are_seen() {
    bounded().check(|| {
        let region = Region::new(CAPACITY);
        let line = Line::new();
        let mut producer = SpscWriter::new(region.clone(), region.clone(), CAPACITY);
        let mut waker = Waker::new(
            region.clone(),
            region.clone(),
            ParkingSpot::READER,
            Barriers::Sleeper,
        );
        let (bell, over) = (line.clone(), region.clone());
        let writer = thread::spawn(move || {
            for turn in 0..2 {
                assert!(producer.push(&[0; 8], Tag::NONE).unwrap());
                producer.publish();
                if waker.must_wake() {
                    bell.send_wakeup();
                }
                if turn == 0 {
                    // As after a wakeup, which the model cannot distinguish from this.
                    fence_for(&waker.own, waker.spot.fenced, &mut waker.fences, 2);
                }
            }
            over.is_over();
        });
        let mut consumer = SpscReader::new(region.clone(), region.clone(), CAPACITY, CAPACITY);
        let mut sleeper = Sleeper::new(region.clone(), region, ParkingSpot::READER, Barriers::Sleeper);
        for _ in 0..2 {
            sleep_until(&mut sleeper, &line, || consumer.available().unwrap());
            let record = consumer.next_record().unwrap().expect("an available message");
            consumer.skip(record.size);
        }
        writer.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "deadlock")]
fn relying_on_absent_fences_loses_a_wakeup() {
    loom::model(|| {
        let region = Region::new(CAPACITY);
        stream(
            &region,
            &region,
            &region.without_fences(),
            2,
            Barriers::Sleeper,
            3,
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn sleeping_writer_is_woken_once_there_is_room() {
    bounded().check(|| {
        // Two records fill it.
        let region = Region::new(32);
        let line = Line::new();
        let mut producer = SpscWriter::new(region.clone(), region.clone(), 32);
        assert!(producer.push(&[0; 8], Tag::NONE).unwrap() && producer.push(&[1; 8], Tag::NONE).unwrap());
        producer.publish();
        let mut consumer = SpscReader::new(region.clone(), region.clone(), 32, 32);
        let mut waker = Waker::new(
            region.clone(),
            region.clone(),
            ParkingSpot::WRITER,
            Barriers::Both,
        );
        let bell = line.clone();
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let record = consumer.next_record().unwrap().expect("published before");
                consumer.skip(record.size);
                consumer.publish();
                if waker.must_wake() {
                    bell.send_wakeup();
                }
            }
        });
        let mut sleeper = Sleeper::new(region.clone(), region, ParkingSpot::WRITER, Barriers::Both);
        for word in 2..4 {
            sleep_until(&mut sleeper, &line, || producer.has_room(8).unwrap());
            assert!(producer.push(&[word; 8], Tag::NONE).unwrap());
            producer.publish();
        }
        reader.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn end_wakes_a_sleeping_reader() {
    loom::model(|| {
        let region = Region::new(32);
        let line = Line::new();
        let mut waker = Waker::new(
            region.clone(),
            region.clone(),
            ParkingSpot::READER,
            Barriers::Both,
        );
        let (bell, own) = (line.clone(), region.clone());
        let writer = thread::spawn(move || {
            own.store(layout::PHASE, Phase::ENDED.word(), Ordering::Release);
            if waker.must_wake() {
                bell.send_wakeup();
            }
        });
        let mut sleeper = Sleeper::new(
            region.clone(),
            region.clone(),
            ParkingSpot::READER,
            Barriers::Both,
        );
        sleep_until(&mut sleeper, &line, || {
            region.load(layout::PHASE, Ordering::Acquire) == Phase::ENDED.word()
        });
        writer.join().unwrap();
    });
}
