//! The private state of the reading end: how often it has checked, whether it is in a stream, and its counts.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Packed, Pair, SMALLEST, Tag, WHOLE, header, packed_size, pair};
use crate::{
    region::{copy::Readable, layout::as_offset, own::OwnRegion},
    ring::read::{Prefetching, WantedLengths},
    ring::spsc::Tally,
};

impl Pair {
    /// Publishes and reads this many messages of 64 bytes one by one: each check finds one of them.
    fn pass(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.send(&[0; 64]) && self.take().is_some());
        }
    }
}

#[test]
fn tail_loads_are_counted_and_correct() {
    let mut pair = pair(SMALLEST, SMALLEST);
    assert_eq!(pair.consumer.tail_loads, 0);
    assert_eq!(pair.take(), None);
    assert_eq!(pair.consumer.tail_loads, 1);
    assert!(pair.consumer.is_still_empty() && pair.consumer.is_still_empty());
    assert_eq!(pair.consumer.tail_loads, 3);
    assert!(pair.send(b"one") && pair.send(b"two"));
    assert!(!pair.consumer.is_still_empty());
    assert_eq!(pair.consumer.tail_loads, 3, "the next call loads the tail");
    assert!(pair.take().is_some());
    assert_eq!(pair.consumer.tail_loads, 4);
    assert!(!pair.consumer.is_drained() && pair.consumer.available().unwrap());
    assert!(pair.take().is_some());
    assert_eq!(pair.consumer.tail_loads, 4, "known records need no load");
    assert!(pair.consumer.is_drained());
}

#[test]
fn streaming_reader_looks_before_it_pauses_after_an_empty_check() {
    // A quarter of the ring is far enough. Otherwise it pauses, and loads the tail again.
    for (unread, loads) in [(1024, 1), (72, 2)] {
        let mut pair = pair(SMALLEST, SMALLEST);
        // Half of the stream is left after an empty check.
        pair.pass(2 * 57);
        assert_eq!(pair.take(), None);
        let before = pair.consumer.tail_loads;
        assert!(pair.send(&vec![0; unread - 8]) && pair.take().is_some());
        assert_eq!(pair.consumer.tail_loads - before, loads, "{unread} bytes");
    }
}

#[test]
fn streaming_reader_skips_the_empty_shortcut() {
    let mut pair = pair(SMALLEST, SMALLEST);
    // The messages take 72 bytes with their header, so 56 of them are one less than 4096 bytes.
    pair.pass(56);
    assert!(pair.consumer.is_still_empty());
    pair.pass(1);
    assert!(!pair.consumer.is_still_empty());
    // A reader that finds a quarter of the ring is not close behind the writer, however long the stream is.
    assert!(pair.send(&[0; 1024 - 8]) && pair.take().is_some());
    assert!(pair.consumer.is_still_empty());
    assert!(pair.send(&[0; 1024 - 16]) && pair.take().is_some());
    assert!(!pair.consumer.is_still_empty());
    // In a large ring the limit is 32 KiB.
    for (bytes, close) in [(32 * 1024 - 8, true), (32 * 1024, false)] {
        let mut pair = super::pair(64 * SMALLEST, 64 * SMALLEST);
        assert!(pair.send(&vec![0; bytes / 2 - 8]) && pair.take().is_some());
        let mut left = bytes;
        while left > 0 {
            assert!(
                pair.producer
                    .push(&vec![0; left.min(1024) - 8], Tag::NONE)
                    .unwrap()
            );
            left -= left.min(1024);
        }
        pair.producer.publish();
        while pair.take().is_some_and(|_| !pair.consumer.is_drained()) {}
        assert_eq!(pair.consumer.is_still_empty(), !close, "{bytes}");
    }
}

#[test]
fn empty_poll_halves_the_stream_length() {
    let mut pair = pair(SMALLEST, SMALLEST);
    for rings in [16, 32] {
        pair.pass(rings * as_offset(SMALLEST) / 72 + 1);
        // At most 64 KiB are remembered: 32, 16, 8, 4, and then too little for a stream.
        for _ in 0..4 {
            assert_eq!(pair.take(), None);
            assert!(!pair.consumer.is_still_empty(), "{rings} rings");
        }
        assert_eq!(pair.take(), None);
        assert!(pair.consumer.is_still_empty(), "{rings} rings");
    }
}

#[test]
fn head_is_published_after_each_stride() {
    // A quarter of the ring, and never more than 64 KiB.
    for (capacity, stride) in [(16 * SMALLEST, 4 * SMALLEST), (128 * SMALLEST, 16 * SMALLEST)] {
        let mut pair = pair(capacity, capacity);
        while pair.producer.push(&[0; 256 - 8], Tag::NONE).unwrap() {}
        pair.producer.publish();
        let mut read = 0;
        while let Some(first) = pair.consumer.next_record().unwrap() {
            assert_eq!(
                pair.consumer.visit_in_row(first, usize::MAX, |_, _| ()),
                as_offset(stride / 256)
            );
            pair.consumer.publish_stride();
            read += stride;
            assert_eq!((pair.consumer.head, pair.consumer.published), (read, read));
        }
        assert_eq!(read, capacity);
    }
    // Less than a stride is published when the position is queried.
    let mut pair = pair(16 * SMALLEST, SMALLEST);
    assert!(pair.send(&[0; 256]) && pair.send(&[0; 256]));
    let first = pair.consumer.next_record().unwrap().expect("the first");
    assert_eq!(pair.consumer.visit_in_row(first, 1, |_, _| ()), 1);
    pair.consumer.publish_stride();
    assert_eq!((pair.consumer.head, pair.consumer.published), (264, 0));
    assert_eq!(
        (pair.consumer.position(), pair.consumer.capacity),
        (264, 16 * SMALLEST)
    );
}

/// The last bytes of a payload that crosses the end of the ring lie there until another record crosses it. They are no record.
#[test]
fn row_ends_at_the_rings_end() {
    let ghost: Vec<u8> = header(24, WHOLE).to_le_bytes().repeat(11);
    let mut pair = pair(SMALLEST, SMALLEST);
    for _ in 0..127 {
        assert!(pair.send(&[0; 24]) && pair.take().is_some());
    }
    assert!(pair.send(&ghost) && pair.take() == Some(ghost));
    // Up to the end of the ring, and then further.
    let count = (SMALLEST - 64) / 32 + 2;
    let numbers = 0..count;
    let mut found = Vec::new();
    for number in numbers.clone() {
        assert!(
            pair.producer
                .push(&number.to_le_bytes().repeat(3), Tag::NONE)
                .unwrap()
        );
        if number % 40 == 39 || number == count - 1 {
            pair.producer.publish();
            while let Some(first) = pair.consumer.next_record().unwrap() {
                pair.consumer.visit_in_row(first, usize::MAX, |peer, record| {
                    found.push(peer.load(record.at, Ordering::Relaxed));
                });
            }
        }
    }
    assert!(found.into_iter().eq(numbers));
}

#[test]
fn counts_are_published_on_empty_poll_and_at_end() {
    let mut pair = pair(SMALLEST, SMALLEST);
    let tally = Arc::<Tally>::default();
    pair.consumer.limit.tally = Arc::clone(&tally);
    let deliver = |pair: &mut Pair| {
        let record = pair.consumer.next_record().unwrap().expect("a message");
        pair.consumer.deliver(record);
    };
    for length in [3, 5, 7] {
        assert!(pair.producer.push(&[0; 7][..length], Tag::NONE).unwrap());
    }
    pair.producer.publish();
    deliver(&mut pair);
    deliver(&mut pair);
    assert_eq!(tally.get(), (0, 0), "counts are not published per message");
    deliver(&mut pair);
    assert_eq!(pair.take(), None);
    assert_eq!(tally.get(), (3, 15));
    assert!(pair.send(&[0; 10]));
    deliver(&mut pair);
    // A successor takes over and continues with the tally.
    let seen = mem::replace(pair.producer.own_mut(), OwnRegion::detached()).peer_view();
    pair.consumer.detach(OwnRegion::detached(), seen);
    assert_eq!(tally.get(), (4, 25));
    assert_eq!(pair.consumer.counted(), (4, 25));
}

#[test]
fn pull_fills_the_buffer_with_whole_records() {
    let capacity = 4 * SMALLEST;
    // A run is 4096 bytes. Test less than one run, exactly one, and several with a remainder.
    for records in [1, 50, 51, 52, 64, 103, 120] {
        for rest in [0, 8, 72] {
            let mut pair = pair(capacity, capacity);
            while pair.producer.push(&[7; 72], Tag::NONE).unwrap() {}
            pair.producer.publish();
            let mut into = vec![0; records * 80 + rest];
            let pulled = pair.consumer.pull_packed(&mut into).unwrap();
            assert_eq!(pulled, Packed::Bytes(records * 80), "and {rest} bytes");
            assert_eq!(pair.consumer.counted(), (0, 0), "counted only after validation");
            pair.consumer.count();
            assert_eq!(pair.consumer.counted(), (records as u64, records as u64 * 72));
            for record in into[..records * 80].chunks(80) {
                assert_eq!(record[..8], header(72, WHOLE).to_le_bytes());
                assert_eq!(record[8..], [7; 72]);
            }
        }
    }
}

#[test]
fn pull_ends_before_an_unwanted_length() {
    for (lengths, min, max) in [([8, 16, 33, 8], 0, 32), ([40, 16, 15, 16], 16, u64::MAX)] {
        let mut pair = pair(SMALLEST, SMALLEST);
        for length in lengths {
            assert!(pair.producer.push(&vec![1; length], Tag::NONE).unwrap());
        }
        pair.producer.publish();
        let wanted = WantedLengths {
            min,
            max,
            fresh: true,
            calls: false,
        };
        let mut into = [0; 400];
        let two = lengths[..2]
            .iter()
            .map(|length| packed_size(*length as u64))
            .sum();
        let pulled = pair.consumer.pull_retained(&mut into, &wanted).unwrap();
        assert_eq!(pulled, Packed::Bytes(as_offset(two)));
        let pulled = pair.consumer.pull_retained(&mut into, &wanted).unwrap();
        assert_eq!(pulled, Packed::Large(lengths[2]));
    }
}

/// Visits for this many periods. A visit takes `with` nanoseconds with prefetching, else `without`. Returns how many prefetched.
fn visits_that_prefetch(state: &mut Prefetching, periods: u32, with: u64, without: u64) -> u32 {
    let mut count = 0;
    for _ in 0..periods * Prefetching::PERIOD {
        let (prefetches, timed) = state.next();
        count += u32::from(prefetches);
        if timed {
            let nanos = if prefetches { with } else { without };
            state.visited(Duration::from_nanos(nanos), 1 << 20);
        }
    }
    count
}

#[test]
fn long_visits_prefetch_where_that_is_faster() {
    let mut state = Prefetching::default();
    assert_eq!(visits_that_prefetch(&mut state, 10, 200, 100), 10);
    visits_that_prefetch(&mut state, 10, 100, 200);
    let most = 10 * (Prefetching::PERIOD - 1);
    assert_eq!(visits_that_prefetch(&mut state, 10, 100, 200), most);
    assert_eq!(
        visits_that_prefetch(&mut state, 10, 100, 100),
        most,
        "no change without a gain"
    );
    visits_that_prefetch(&mut state, 10, 200, 100);
    assert_eq!(visits_that_prefetch(&mut state, 10, 200, 100), 10);
}

#[test]
fn one_long_visit_of_a_period_prefetches() {
    let capacity = 64 * SMALLEST;
    let long = vec![0; as_offset(capacity / 4)];
    let mut pair = pair(capacity, capacity);
    let mut prefetched = Vec::new();
    for number in 1..=Prefetching::PERIOD {
        // A record that follows would make the row longer if it could.
        assert!(pair.send(&long) && pair.send(&[0; 64]));
        let first = pair.consumer.next_record().unwrap().expect("a long message");
        let count = pair.consumer.visit_in_row(first, usize::MAX, |_, record| {
            if record.end > record.at {
                prefetched.push(number);
            }
        });
        assert_eq!(count, 1, "a long message ends the row");
        assert!(pair.take().is_some());
    }
    assert_eq!(prefetched, [Prefetching::PERIOD]);
}

#[test]
fn long_visits_are_compared_by_the_byte() {
    let mut state = Prefetching::default();
    for _ in 0..10 * Prefetching::PERIOD {
        let (prefetches, timed) = state.next();
        // A longer message takes longer, and is no reason to choose.
        let bytes = if prefetches { 1 << 16 } else { 1 << 20 };
        assert!(timed || !prefetches);
        if timed {
            state.visited(Duration::from_nanos(bytes as u64), bytes);
        }
    }
}
