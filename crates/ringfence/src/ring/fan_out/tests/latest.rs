//! A reader of the last message, when the writer leaves other records after that message.

use std::{cell::RefCell, sync::atomic::Ordering};

use super::{Hub, SMALLEST, bytes, receive};
use crate::{
    region::copy::{Readable, Writable},
    region::layout::{self, mark_of},
    region::own::OwnRegion,
    ring::fan_out::reader::FanOutReader,
    ring::fan_out::{Delivery, StartFrom},
    ring::record::Tag,
};

/// A ring whose writer continues while the first payload is copied.
struct Meanwhile<F> {
    ring: OwnRegion,
    writer: RefCell<Option<F>>,
}

impl<F: FnOnce()> Readable for Meanwhile<F> {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.ring.load(at, order)
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        self.ring.copy_out(at, into);
        if let Some(writer) = self.writer.take() {
            writer();
        }
    }
}

/// The batch may be of any length: a reader that starts with the last message, or falls behind, finds it.
#[test]
fn unpublished_batch_keeps_the_latest_message() {
    for delivery in [Delivery::BestEffort, Delivery::Latest] {
        let mut hub = Hub::new(SMALLEST);
        let (_, mut reader) = hub.join(delivery, StartFrom::Now);
        for number in 1..=200 {
            assert!(hub.send(&bytes(number, 24)));
        }
        let mut last = 200;
        while hub.writer.push(&bytes(last + 1, 24), Tag::NONE).unwrap() {
            last += 1;
        }
        let (_, mut newcomer) = hub.join(delivery, StartFrom::Latest);
        assert_eq!(receive(&mut newcomer), Some(bytes(200, 24)));
        while receive(&mut reader).is_some() {}
        assert_eq!(reader.sequence(), 200);
        assert!(hub.writer.publish());
        assert_eq!(hub.writer.counted().0, last);
        let next = if delivery == Delivery::Latest { last } else { 201 };
        assert_eq!(receive(&mut reader), Some(bytes(next, 24)));
    }
}

#[test]
fn message_with_collected_attachments_is_not_skipped() {
    let mut hub = Hub::new(SMALLEST);
    let (_, mut reader) = hub.join(Delivery::Latest, StartFrom::Now);
    let mut send = |number| {
        let tag = Tag::with_attachments(1);
        assert!(hub.writer.push_now(&bytes(number, 24), tag).unwrap());
    };
    send(1);
    assert_eq!(reader.next_tagged().unwrap().expect("a message").1, 1);
    send(2);
    reader.mark_collected();
    send(3);
    assert_eq!(receive(&mut reader), Some(bytes(1, 24)));
    assert_eq!(reader.next_tagged().unwrap().expect("a message").1, 3);
}

/// Another implementation may drop all published records for unpublished ones: the only mark is then that of
/// the next message.
#[test]
fn single_mark_at_the_tail_is_valid() {
    for delivery in [Delivery::BestEffort, Delivery::Latest] {
        let mut hub = Hub::new(SMALLEST);
        let (_, mut reader) = hub.join(delivery, StartFrom::Now);
        for number in 1..=8 {
            assert!(hub.send(&bytes(number, 24)));
        }
        for (at, word) in [(mark_of(1) + 8, 8), (mark_of(1), 256), (layout::FLOOR, 256)] {
            hub.ring.store(at, word, Ordering::Release);
        }
        assert_eq!(receive(&mut reader), None);
        assert_eq!((reader.position(), reader.sequence()), (256, 0));
        assert!(hub.send(&bytes(9, 24)));
        assert_eq!(receive(&mut reader), Some(bytes(9, 24)));
        assert_eq!((reader.sequence(), reader.limit.lost), (9, 8));
    }
}

/// As below, but the last message follows no mark except an older one.
#[test]
fn latest_start_finds_the_message_before_padding() {
    let mut hub = Hub::new(SMALLEST);
    for number in 1..=120 {
        assert!(hub.send(&bytes(number, 24)));
    }
    for payload in [8, 500] {
        assert!(hub.writer.claim(payload).unwrap().is_some());
        hub.writer.publish();
    }
    for delivery in Delivery::ALL {
        let (_, mut reader) = hub.join(delivery, StartFrom::Latest);
        assert_eq!(receive(&mut reader), Some(bytes(120, 24)), "{delivery}");
        assert_eq!((reader.sequence(), reader.limit.lost), (120, 0));
    }
}

/// Two reservations are cancelled: the first sets a mark, and the second leaves padding after that mark.
#[test]
fn overtaken_reader_finds_the_message_before_padding() {
    let mut hub = Hub::new(SMALLEST);
    for number in 1..=100 {
        assert!(hub.send(&bytes(number, 24)));
    }
    let held = hub
        .readers
        .reserve_slot(Delivery::Latest, StartFrom::Oldest)
        .unwrap();
    let control = OwnRegion::private(0);
    hub.readers.activate(held.number, control.peer_view(), ());
    let (ring, terms) = (hub.ring.clone(), hub.terms(Delivery::Latest, held));
    let goes_on = || {
        for number in 101..=504 {
            assert!(hub.send(&bytes(number, 24)));
        }
        // Marks are 256 bytes apart, and the next one is due here.
        assert_eq!(504 * 32 % 256, 0);
        for payload in [8, 500] {
            assert!(hub.writer.claim(payload).unwrap().is_some());
            hub.writer.publish();
        }
        assert_eq!(hub.writer.counted().0, 504);
    };
    let ring = Meanwhile {
        ring,
        writer: RefCell::new(Some(goes_on)),
    };
    let mut reader = FanOutReader::new(ring, control, (), terms).unwrap();
    let mut into = [0; 24];
    assert_eq!(reader.receive(&mut into).unwrap(), Some(24));
    assert_eq!((reader.sequence(), into.to_vec()), (504, bytes(504, 24)));
}
