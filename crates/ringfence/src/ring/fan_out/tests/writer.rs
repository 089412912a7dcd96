//! A publisher's counts, refusals and waits, and its handling of a list that changes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    super::{floor::FanOutWriter, readers::Readers},
    Hub, SMALLEST, bytes, receive,
};
use crate::{
    error::Error,
    region::copy::{Readable, Writable},
    region::layout::head_of,
    region::own::OwnRegion,
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::packed,
    ring::record::{FIRST, LONG, Tag, header},
};

#[test]
fn packed_messages_count_up_to_the_first_invalid_one() {
    let mut hub = Hub::new(SMALLEST);
    let good = packed([&[7; 20][..], &[7; 3]]);
    assert_eq!(hub.writer.push_packed(&good, SMALLEST).unwrap(), good.len());
    assert_eq!(hub.writer.push_packed(&[], SMALLEST).unwrap(), 0);
    hub.writer.publish();
    assert_eq!(hub.writer.counted(), (2, 23));
    let cut = &packed([&[7; 20][..]])[..16];
    let part = header(0, FIRST).to_le_bytes();
    let long = packed([&[7; 101][..]]);
    for bad in [cut, &part, &long, &[1]] {
        let refused = hub.writer.push_packed(bad, 100);
        let is_right = matches!(
            refused,
            Err(Error::InvalidArgument(_)
                | Error::MessageTooLarge {
                    size: 101,
                    limit: 100,
                    ..
                })
        );
        assert!(is_right, "{refused:?}");
        assert!(!hub.writer.publish(), "nothing was written");
        let row = [&good[..], bad].concat();
        assert_eq!(hub.writer.push_packed(&row, 100).unwrap(), good.len());
        assert!(hub.writer.publish());
    }
    assert_eq!(hub.writer.counted(), (10, 5 * 23));
}

#[test]
fn unpublished_batch_waits_for_no_reader() {
    let mut hub = Hub::new(SMALLEST);
    let (_, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    while hub.writer.push(&[7; 24], Tag::NONE).unwrap() {}
    assert!(!hub.writer.has_room(24).unwrap());
    assert_eq!(hub.writer.awaited(24), None);
    assert!(hub.writer.publish());
    let awaited = hub.writer.awaited(24).expect("a reader is in the way");
    // A record of another size has no room either, and writes nothing.
    for length in [24, 512] {
        let set = packed([&vec![7; length][..]]);
        assert_eq!(hub.writer.push_packed(&set, SMALLEST).unwrap(), 0);
        assert!(!hub.writer.publish(), "{length}");
    }
    while reader.position() < awaited {
        assert!(receive(&mut reader).is_some());
    }
    assert_eq!(hub.writer.awaited(24), None);
}

#[test]
fn packed_room_excludes_padding_and_alignment() {
    const CAPACITY: u64 = 1 << 16;
    let mut hub = Hub::new(CAPACITY);
    let long = |longest: u64| (CAPACITY - 72 - longest) / (LONG + 8 + 64) * (LONG + 8);
    for (longest, room) in [
        (24, CAPACITY - 72 - 24),
        (LONG - 1, CAPACITY - 72 - LONG),
        (LONG, long(LONG)),
        (CAPACITY, long(CAPACITY / 8)),
    ] {
        assert_eq!(hub.writer.packed_room(longest).unwrap(), room, "{longest}");
    }
}

#[test]
fn each_list_change_is_reported_once() {
    let mut hub = Hub::new(SMALLEST);
    let reported = |hub: &mut Hub| -> Vec<_> {
        let changes = hub.writer.changes();
        changes.map(|(slot, active)| (slot, active.is_some())).collect()
    };
    assert_eq!(reported(&mut hub), []);
    let (number, _reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    assert_eq!(
        (reported(&mut hub), reported(&mut hub)),
        (vec![(0, true)], vec![])
    );
    let held = hub
        .readers
        .reserve_slot(Delivery::Reliable, StartFrom::Now)
        .unwrap();
    assert_eq!(reported(&mut hub), [(1, false)], "it is in its handshake");
    hub.readers.release(number);
    hub.readers.release(held.number);
    // Another call applies the change, and it is still reported.
    assert_eq!(hub.writer.used(), 0);
    let mut changes = reported(&mut hub);
    changes.sort_unstable();
    assert_eq!(changes, [(0, false), (1, false)]);
    // However often a slot has changed, its current state is reported.
    for _ in 0..3 {
        let (number, _reader) = hub.join(Delivery::BestEffort, StartFrom::Now);
        assert_eq!(hub.writer.used(), 0);
        hub.readers.release(number);
    }
    assert_eq!((reported(&mut hub).len(), reported(&mut hub)), (1, vec![]));
}

#[test]
fn head_past_the_tail_is_a_violation_despite_list_changes() {
    let mut hub = Hub::new(SMALLEST);
    let held = hub
        .readers
        .reserve_slot(Delivery::Reliable, StartFrom::Now)
        .unwrap();
    let liar = OwnRegion::private(0);
    assert!(hub.readers.activate(held.number, liar.peer_view(), ()));
    assert!(hub.send(&[7; 24]) && hub.send(&[7; 24]));
    liar.store(head_of(held.slot), 32, Ordering::Release);
    assert_eq!(hub.writer.used(), 32);
    assert!(hub.writer.violation().is_none());
    liar.store(head_of(held.slot), 72, Ordering::Release);
    assert_eq!(hub.writer.used(), 0, "no other reader exists");
    assert_eq!(hub.writer.violation().expect("a violation").number, held.number);
    let (number, mut honest) = hub.join(Delivery::Reliable, StartFrom::Now);
    for message in 0..400 {
        assert!(hub.send(&bytes(message, 24)));
        assert_eq!(receive(&mut honest), Some(bytes(message, 24)));
    }
    assert!(hub.writer.violation().is_none(), "reported once");
    // The progress of the honest reader remains known, however the list changes.
    hub.readers.release(held.number);
    assert_eq!(hub.writer.used(), 0);
    assert!(hub.readers.has(number));
}

/// A control object that counts how often it is copied or read.
struct Counted(Arc<AtomicU64>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Readable for Counted {
    fn load(&self, _: usize, _: Ordering) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed);
        0
    }

    fn copy_out(&self, _: usize, _: &mut [u8]) {
        unreachable!("nothing is copied out of a control object");
    }
}

#[test]
fn list_change_cost_is_independent_of_reader_count() {
    let readers_there = if cfg!(miri) { 40 } else { 4000 };
    for delivery in Delivery::ALL {
        let ring = OwnRegion::private(SMALLEST);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::detached(), 1 << 20));
        let mut writer = FanOutWriter::new(ring, Arc::clone(&readers), SMALLEST);
        let steps = Arc::new(AtomicU64::new(0));
        let join = || {
            let held = readers.reserve_slot(delivery, StartFrom::Now).unwrap();
            assert!(readers.activate(held.number, Counted(Arc::clone(&steps)), ()));
            held.number
        };
        for _ in 0..readers_there {
            join();
        }
        assert_eq!(writer.changes().count(), readers_there);
        steps.store(0, Ordering::Relaxed);
        for _ in 0..10 {
            let number = join();
            assert_eq!(writer.changes().count(), 1);
            readers.release(number);
            assert_eq!(writer.changes().count(), 1);
        }
        // Two copies of the new reader's, and none of the others'.
        assert!(steps.load(Ordering::Relaxed) <= 20, "{steps:?}");
    }
}
