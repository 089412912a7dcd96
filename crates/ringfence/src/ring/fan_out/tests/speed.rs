//! The time that a message takes, compared with a pair. A measurement, not a test: run it by hand, with
//! `cargo test --release -p ringfence --lib fan_out::tests::speed -- --ignored --nocapture`.

#![expect(clippy::cast_precision_loss, reason = "the numbers are small")]

use std::{hint::black_box, sync::Arc, thread, time::Instant};

use super::{Hub, Reader, View, Writer};
use crate::{
    region::copy::Readable,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::readers::Readers,
    ring::fan_out::{Delivery, StartFrom},
    ring::message::Message,
    ring::read::Packed,
    ring::record::Tag,
    ring::spsc::{SpscReader, SpscWriter},
    wake::parking::many::{FanWaker, SleepingReader},
    wake::parking::{Barriers, ParkingSpot, Waker},
};

const CAPACITY: u64 = 1 << 20;
const ROUNDS: usize = 60;

/// Returns the time of the fastest round, in nanoseconds per item.
fn quickest(count: usize, mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        round();
        began.elapsed().as_secs_f64() * 1e9 / count as f64
    });
    times.fold(f64::INFINITY, f64::min)
}

/// A waker, and the generation of its copy of the list of readers, as a publisher has them.
type Waking = (FanWaker<OwnRegion, PeerRegion, ()>, u64);

fn waker(hub: &Hub) -> Waking {
    (FanWaker::new(hub.ring.clone(), Barriers::Sleeper), 0)
}

fn wake(hub: &mut Hub, (waker, known): &mut Waking) {
    let update = |waker: &mut FanWaker<_, _, _>| {
        let generation = hub.readers.generation();
        if generation != *known {
            *known = generation;
            update(waker, &mut hub.writer);
        }
    };
    waker.wake(update, |()| unreachable!("no reader sleeps"));
}

#[cold]
fn update(waker: &mut FanWaker<OwnRegion, PeerRegion, ()>, writer: &mut Writer) {
    for (slot, active) in writer.changes() {
        let watched = active.map(|(control, bell)| SleepingReader {
            control,
            barriers: Barriers::Sleeper,
            waker: bell,
        });
        waker.watch(slot, watched);
    }
}

/// Measures a publication with this many readers that have room, on one thread.
fn published(readers: usize, batch: usize, size: usize) -> f64 {
    let mut hub = Hub::new(CAPACITY);
    let mut all: Vec<Reader> = (0..readers)
        .map(|_| hub.join(Delivery::Reliable, StartFrom::Now).1)
        .collect();
    let mut waker = waker(&hub);
    let message = vec![7; size];
    let count = 200_000 / size.max(8);
    let mut into = vec![0; 1 << 20];
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for number in 1..=count {
            assert!(hub.writer.push(black_box(&message), Tag::NONE).unwrap());
            if number.is_multiple_of(batch) {
                hub.writer.publish();
                wake(&mut hub, &mut waker);
            }
        }
        best = best.min(began.elapsed().as_secs_f64() * 1e9 / count as f64);
        hub.writer.publish();
        for reader in &mut all {
            while reader.available().unwrap() {
                reader.pull_packed(&mut into).unwrap();
            }
            reader.publish();
        }
    }
    best
}

fn pair() -> (
    SpscWriter<OwnRegion, PeerRegion>,
    SpscReader<OwnRegion, PeerRegion>,
    Waker<OwnRegion, PeerRegion>,
) {
    let (writer, reader) = (OwnRegion::private(CAPACITY), OwnRegion::private(4096));
    let (written, read) = (writer.peer_view(), reader.peer_view());
    (
        SpscWriter::new(writer.clone(), read.clone(), CAPACITY),
        SpscReader::new(reader, written, CAPACITY, CAPACITY),
        Waker::new(writer, read, ParkingSpot::READER, Barriers::Sleeper),
    )
}

fn sum(view: &View<'_, PeerRegion>) -> u64 {
    let bytes = match *view {
        View::Copy(bytes) => bytes,
        View::InRing(ring, record) => {
            let message = Message::in_ring(ring, record.at, record.length, record.end);
            return message.words().fold(0, u64::wrapping_add);
        }
    };
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

#[test]
#[ignore = "a measurement"]
fn publish_on_one_thread() {
    for (size, batch) in [(64, 1), (64, 32), (1024, 1)] {
        let (mut producer, mut consumer, mut waker) = pair();
        let message = vec![7; size];
        let count = 200_000 / size;
        let mut into = vec![0; 1 << 20];
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for number in 1..=count {
                assert!(producer.push(black_box(&message), Tag::NONE).unwrap());
                if number.is_multiple_of(batch) {
                    producer.publish();
                    assert!(!waker.must_wake());
                }
            }
            best = best.min(began.elapsed().as_secs_f64() * 1e9 / count as f64);
            producer.publish();
            while consumer.available().unwrap() {
                consumer.pull_packed(&mut into).unwrap();
            }
        }
        println!("{size} B, {batch} at a time: pair {best:.2} ns a message");
        for readers in [0, 1, 2, 4, 8, 16, 64] {
            let ns = published(readers, batch, size);
            println!("{size} B, {batch} at a time: {readers} readers {ns:.2} ns a message");
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn read_on_one_thread() {
    for size in [16, 64, 256, 1024, 8000] {
        let count = 600_000 / (size + 8);
        let message = vec![7; size];
        let (mut producer, mut consumer, _) = pair();
        let mut total = 0;
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            for _ in 0..count {
                assert!(producer.push(&message, Tag::NONE).unwrap());
            }
            producer.publish();
            let began = Instant::now();
            while let Some(record) = consumer.next_record().unwrap() {
                consumer.visit_in_row(record, usize::MAX, |peer, record| {
                    let message = Message::in_ring(peer, record.at, record.length, record.end);
                    total = message.words().fold(total, u64::wrapping_add);
                });
            }
            best = best.min(began.elapsed().as_secs_f64() * 1e9 / count as f64);
            consumer.publish();
        }
        println!("{size} B: pair, visited {best:.2} ns a message");
        let mut into = vec![0; size];
        let pair_received = quickest(count, || {
            for _ in 0..count {
                assert!(producer.push(&message, Tag::NONE).unwrap());
            }
            producer.publish();
            while let Some(record) = consumer.next_record().unwrap() {
                consumer.peer.copy_out_ahead(record.at, &mut into, record.end);
                consumer.skip(record.size);
                consumer.publish();
            }
        });
        println!("{size} B: pair, written and received {pair_received:.2} ns a message");
        let mut block = vec![0; 1 << 16];
        let pair_packed = quickest(count, || {
            for _ in 0..count {
                assert!(producer.push(&message, Tag::NONE).unwrap());
            }
            producer.publish();
            while consumer.pull_packed(&mut block).unwrap() != Packed::Nothing {}
        });
        println!("{size} B: pair, written and packed {pair_packed:.2} ns a message");
        for delivery in [Delivery::Reliable, Delivery::BestEffort] {
            let mut hub = Hub::new(CAPACITY);
            let (_, mut reader) = hub.join(delivery, StartFrom::Now);
            let mut best = f64::INFINITY;
            for _ in 0..ROUNDS {
                for _ in 0..count {
                    assert!(hub.writer.push(&message, Tag::NONE).unwrap());
                }
                hub.writer.publish();
                let began = Instant::now();
                let visited = reader.visit(usize::MAX, |message| total = total.wrapping_add(sum(&message)));
                assert_eq!(visited.unwrap(), count);
                best = best.min(began.elapsed().as_secs_f64() * 1e9 / count as f64);
            }
            println!("{size} B: {delivery}, visited {best:.2} ns a message");
            let received = quickest(count, || {
                for _ in 0..count {
                    assert!(hub.writer.push(&message, Tag::NONE).unwrap());
                }
                hub.writer.publish();
                while reader.receive(&mut into).unwrap().is_some() {
                    reader.publish();
                }
            });
            println!("{size} B: {delivery}, written and received {received:.2} ns a message");
            let packed = quickest(count, || {
                for _ in 0..count {
                    assert!(hub.writer.push(&message, Tag::NONE).unwrap());
                }
                hub.writer.publish();
                while reader.pull_packed(&mut block).unwrap() != Packed::Nothing {}
            });
            println!("{size} B: {delivery}, written and packed {packed:.2} ns a message");
        }
        black_box(total);
    }
}

/// Measures a writer on its thread and readers on another one: delivered messages per second, best of a few
/// rounds.
fn streamed(readers: usize, batch: usize, size: usize) -> (f64, f64) {
    const MESSAGES: usize = 1_000_000;
    let (mut best, mut writing) = (0.0_f64, f64::INFINITY);
    for _ in 0..5 {
        let mut hub = Hub::new(CAPACITY);
        let mut all: Vec<Reader> = (0..readers)
            .map(|_| hub.join(Delivery::Reliable, StartFrom::Now).1)
            .collect();
        let _keep: Arc<Readers<OwnRegion, PeerRegion, ()>> = Arc::clone(&hub.readers);
        let thread = thread::spawn(move || {
            let mut waker = waker(&hub);
            let message = vec![7; size];
            let began = Instant::now();
            for number in 1..=MESSAGES {
                while !hub.writer.push(&message, Tag::NONE).unwrap() {
                    hub.writer.publish();
                    thread::yield_now();
                }
                if number.is_multiple_of(batch) {
                    hub.writer.publish();
                    wake(&mut hub, &mut waker);
                }
            }
            hub.writer.publish();
            began.elapsed().as_secs_f64() * 1e9 / MESSAGES as f64
        });
        let (mut total, mut got) = (0_u64, 0);
        let began = Instant::now();
        while got < MESSAGES * readers {
            let before = got;
            for reader in &mut all {
                got += reader
                    .visit(4096, |message| total = total.wrapping_add(sum(&message)))
                    .unwrap();
            }
            if got == before {
                thread::yield_now();
            }
        }
        let delivered = (MESSAGES * readers) as f64 / began.elapsed().as_secs_f64() / 1e6;
        black_box(total);
        writing = writing.min(thread.join().unwrap());
        best = best.max(delivered);
    }
    (best, writing)
}

#[test]
#[ignore = "a measurement"]
fn stream_on_two_threads() {
    for (size, batch) in [(64, 1), (64, 32), (1024, 1)] {
        for readers in [1, 4, 16] {
            let (delivered, writing) = streamed(readers, batch, size);
            println!(
                "{size} B, {batch} at a time, {readers} readers: {delivered:.0} M/s delivered, {writing:.1} ns a message written"
            );
        }
    }
}
