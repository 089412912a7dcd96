//! A producer's counts, and the room that it reports.

use std::sync::{Arc, atomic::Ordering};

use super::{Pair, SMALLEST, bytes, pair};
use crate::{
    region::copy::Writable,
    region::layout,
    region::own::OwnRegion,
    ring::lies::packed,
    ring::message::Progress,
    ring::record::{LONG, Tag},
    ring::spsc::{SpscWriter, Tally},
};

#[test]
fn every_write_counts_messages_and_bytes() {
    let (own, peer) = (OwnRegion::private(SMALLEST), OwnRegion::private(SMALLEST));
    let mut producer = SpscWriter::new(own, peer.peer_view(), SMALLEST);
    let tally = Arc::new(Tally::default());
    producer.room.tally = Arc::clone(&tally);
    assert!(producer.push(&[7; 100], Tag::NONE).unwrap());
    assert!(producer.push_now(&[7; 50], Tag::NONE).unwrap());
    assert_eq!(producer.counted(), (2, 150));
    let set = packed([&[7; 20][..], &[7; 30], &[7; 3]]);
    assert_eq!(producer.push_packed(&set, SMALLEST).unwrap(), set.len());
    assert_eq!(producer.counted(), (5, 203));
    let at = producer.claim(40).unwrap().unwrap();
    producer.finish(at, 40, 13);
    assert_eq!(producer.counted(), (6, 216));
    // A message in fragments counts once, when it is complete.
    let (message, mut written) = (bytes(1, 6000), 0);
    while let Progress::Part(now) = producer.push_part(&message, Tag::NONE, written).unwrap() {
        written = now;
        assert_eq!(producer.counted(), (6, 216));
        peer.store(layout::HEAD, producer.ring.published(), Ordering::Release);
    }
    assert!(written > 0);
    assert_eq!(producer.counted(), (7, 6216));
    assert_eq!(tally.get(), (7, 6216));
}

#[test]
fn dropped_producer_publishes_its_counts() {
    let tally = Arc::new(Tally::default());
    let Pair { mut producer, .. } = pair(SMALLEST, SMALLEST);
    producer.room.tally = Arc::clone(&tally);
    for _ in 0..3 {
        assert!(producer.push_now(&[7; 10], Tag::NONE).unwrap());
    }
    drop(producer);
    assert_eq!(tally.get(), (3, 30));
}

#[test]
fn used_bytes_are_unread_bytes() {
    let (own, peer) = (OwnRegion::private(SMALLEST), OwnRegion::private(SMALLEST));
    let mut producer = SpscWriter::new(own, peer.peer_view(), SMALLEST);
    assert_eq!(producer.used(), 0);
    for _ in 0..3 {
        assert!(producer.push_now(&[7; 24], Tag::NONE).unwrap());
    }
    assert_eq!(producer.used(), 96);
    peer.store(layout::HEAD, 32, Ordering::Release);
    assert_eq!(producer.used(), 64);
    assert!(producer.has_room(24).unwrap());
    producer.packed_room(0).unwrap();
    // Invalid heads, which another call will report.
    for head in [0, 8, 128, u64::MAX] {
        peer.store(layout::HEAD, head, Ordering::Release);
        assert_eq!(producer.used(), 64, "{head}");
    }
}

#[test]
fn packed_room_excludes_padding_and_alignment() {
    const CAPACITY: u64 = 1 << 16;
    let Pair { mut producer, .. } = pair(CAPACITY, CAPACITY);
    // A record of the longest size may follow padding. The others are long records, each preceded by up to a
    // cache line.
    let long = |longest: u64| (CAPACITY - 72 - longest) / (LONG + 8 + 64) * (LONG + 8);
    for (longest, room) in [
        (24, CAPACITY - 72 - 24),
        (LONG - 1, CAPACITY - 72 - LONG),
        (LONG, long(LONG)),
        (CAPACITY, long(CAPACITY / 2)),
    ] {
        assert_eq!(producer.packed_room(longest).unwrap(), room, "{longest}");
    }
}

#[test]
fn packed_push_without_room_writes_nothing() {
    let mut pair = pair(SMALLEST, SMALLEST);
    assert_eq!(pair.producer.push_packed(&[], SMALLEST).unwrap(), 0);
    assert!(!pair.producer.publish());
    while pair.send(&[7; 504]) {}
    for length in [24, 2000] {
        let set = packed([&vec![7; length][..]]);
        assert_eq!(pair.producer.push_packed(&set, SMALLEST).unwrap(), 0);
        assert!(!pair.producer.publish(), "{length}");
    }
}
