//! One writer and several readers on plain memory: against a model, against hostile peers, on threads, and in
//! every order that the memory model allows.

mod latest;
mod liars;
mod model;
mod orderings;
mod reader;
mod speed;
mod threads;
mod writer;

use std::sync::Arc;

use super::{
    Mark, MarkTable,
    floor::FanOutWriter,
    reader::{FanOutReader, Terms, View},
    readers::{ReaderSlot, Readers},
};
use crate::{
    region::copy::Readable,
    region::layout::as_offset,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::{Delivery, StartFrom},
    ring::record::{Tag, WHOLE, packed_size},
};

type Writer = FanOutWriter<OwnRegion, PeerRegion, ()>;
type Reader = FanOutReader<PeerRegion, OwnRegion>;

const SMALLEST: u64 = 4096;

/// A publisher and its shared state.
struct Hub {
    writer: Writer,
    readers: Arc<Readers<OwnRegion, PeerRegion, ()>>,
    ring: OwnRegion,
    capacity: u64,
}

impl Hub {
    fn new(capacity: u64) -> Self {
        let ring = OwnRegion::private(capacity);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::detached(), 70));
        Self {
            writer: FanOutWriter::new(ring.clone(), Arc::clone(&readers), capacity),
            readers,
            ring,
            capacity,
        }
    }

    fn terms(&self, delivery: Delivery, held: ReaderSlot) -> Terms {
        Terms {
            capacity: self.capacity,
            longest: self.capacity,
            delivery,
            slot: held,
        }
    }

    /// Adds a reader whose handshake completes at once.
    fn join(&self, delivery: Delivery, from: StartFrom) -> (u64, Reader) {
        let held = self.readers.reserve_slot(delivery, from).unwrap();
        let control = OwnRegion::private(0);
        let seen = control.peer_view();
        let terms = self.terms(delivery, held);
        let mut reader = FanOutReader::new(self.ring.peer_view(), control, (), terms).unwrap();
        self.readers.activate(held.number, seen, ());
        reader.begin(from, u64::MAX).unwrap();
        (held.number, reader)
    }

    fn reliable(&self) -> Vec<(u64, u64)> {
        let mut positions = Vec::new();
        self.readers.reliable(&mut positions);
        positions
    }

    fn send(&mut self, message: &[u8]) -> bool {
        let pushed = self.writer.push(message, Tag::NONE).unwrap();
        self.writer.publish();
        pushed
    }
}

fn receive(reader: &mut Reader) -> Option<Vec<u8>> {
    let mut into = vec![0; 100_000];
    let length = reader.receive(&mut into).expect("an honest ring")?;
    reader.publish();
    into.truncate(length);
    Some(into)
}

/// Returns the bytes that were visited.
fn seen(view: &View<'_, impl Readable>) -> Vec<u8> {
    match *view {
        View::Copy(bytes) => bytes.to_vec(),
        View::InRing(ring, record) => {
            let mut bytes = vec![0; record.length];
            ring.copy_out(record.at, &mut bytes);
            bytes
        }
    }
}

/// Returns a message of this number and length.
fn bytes(number: u64, length: usize) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(length).collect()
}

/// Splits packed messages.
fn walk_packed(packed: &[u8]) -> Vec<Vec<u8>> {
    let (mut messages, mut at) = (Vec::new(), 0);
    while at < packed.len() {
        let word = u64::from_le_bytes(packed[at..at + 8].try_into().expect("a header"));
        assert_eq!(word >> 32, u64::from(WHOLE));
        let length = as_offset(word & 0xffff_ffff);
        messages.push(packed[at + 8..at + 8 + length].to_vec());
        at += as_offset(packed_size(length as u64));
    }
    assert_eq!(at, packed.len(), "whole records");
    messages
}

#[test]
fn reliable_reader_gets_everything_and_blocks_the_writer() {
    let (rings, messages) = if cfg!(miri) {
        (&[SMALLEST][..], &[60, 500][..])
    } else {
        (&[SMALLEST, 1 << 16][..], &[0, 1, 8, 60, 256, 500][..])
    };
    for &capacity in rings {
        for &length in messages {
            let mut hub = Hub::new(capacity);
            let (number, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
            let (mut sent, mut received) = (0, 0);
            for round in 0..if cfg!(miri) { 3 } else { 20 } {
                while hub.send(&bytes(sent, length)) {
                    sent += 1;
                }
                let awaited = hub.writer.awaited(length as u64).unwrap();
                let [(found, position)] = hub.reliable()[..] else {
                    panic!("there is one")
                };
                assert!(found == number && position < awaited, "{length}");
                assert!(hub.readers.lag(number) > capacity * 3 / 4 - length as u64 * 2);
                for _ in 0..=round.min(sent - received - 1) {
                    assert_eq!(
                        receive(&mut reader).unwrap(),
                        bytes(received, length),
                        "{received}"
                    );
                    received += 1;
                    assert_eq!((reader.sequence(), reader.limit.lost), (received, 0));
                }
            }
            while let Some(message) = receive(&mut reader) {
                assert_eq!(message, bytes(received, length));
                received += 1;
            }
            assert_eq!(received, sent);
            assert_eq!(hub.writer.counted().0, sent);
            assert_eq!(hub.readers.lag(number), 0);
            assert_eq!(hub.writer.awaited(length as u64), None);
        }
    }
}

#[test]
fn only_published_messages_count() {
    let mut hub = Hub::new(SMALLEST);
    let counted = |writer: &Writer| writer.counted();
    assert!(hub.send(&[7; 100]));
    assert!(hub.writer.push(&[7; 50], Tag::NONE).unwrap() && hub.writer.push(&[7; 30], Tag::NONE).unwrap());
    assert_eq!(counted(&hub.writer), (1, 100), "a batch is under way");
    assert!(hub.writer.publish());
    assert_eq!(counted(&hub.writer), (3, 180));
    assert!(
        hub.writer.push(&[7; 20], Tag::NONE).unwrap() && hub.writer.push_now(&[7; 10], Tag::NONE).unwrap()
    );
    assert_eq!(counted(&hub.writer), (5, 210));
}

#[test]
fn lossy_readers_never_block_and_count_losses() {
    for length in [8, 60, 500] {
        let mut hub = Hub::new(SMALLEST);
        let (_, mut best) = hub.join(Delivery::BestEffort, StartFrom::Now);
        let (_, mut latest) = hub.join(Delivery::Latest, StartFrom::Now);
        let (mut sent, mut best_got, mut latest_got) = (0, 0, 0);
        for round in 0..if cfg!(miri) { 8 } else { 200 } {
            for _ in 0..round {
                sent += 1;
                assert!(hub.send(&bytes(sent, length)));
            }
            if round > 0 {
                let newest = receive(&mut latest).expect("one is there");
                latest_got += 1;
                assert_eq!(newest, bytes(sent, length));
                assert_eq!((latest.sequence(), latest.limit.lost), (sent, sent - latest_got));
                assert_eq!(receive(&mut latest), None);
            }
            for _ in 0..round / 2 {
                let Some(message) = receive(&mut best) else { break };
                best_got += 1;
                assert_eq!(message, bytes(best.sequence(), length));
                assert_eq!(best.limit.lost, best.sequence() - best_got);
            }
        }
        while let Some(message) = receive(&mut best) {
            best_got += 1;
            assert_eq!(message, bytes(best.sequence(), length));
        }
        assert_eq!(best.sequence(), sent);
        assert_eq!(best.limit.lost, sent - best_got);
        assert!(best.limit.lost > 0 || cfg!(miri), "the ring is small");
    }
}

#[test]
fn marks_are_evenly_spaced_and_found() {
    let own = OwnRegion::private(4096);
    let mut table = MarkTable::new(4096);
    assert_eq!((table.next(), table.last(4096)), (256, 0));
    for (sequence, position) in (1..).zip([256, 520, 1000]) {
        table.set(&own, Mark { position, sequence });
    }
    assert_eq!(table.next(), 1256);
    assert_eq!(
        [0, 519, 520, 999, 1000].map(|to| table.last(to)),
        [0, 256, 256, 520, 520]
    );
    assert_eq!(table.first(256, 1000), Some(256));
    assert_eq!(table.first(257, 1000), Some(520));
    // At the tail no message has been published yet.
    assert_eq!((table.first(257, 520), table.first(521, 1000)), (None, None));
    assert_eq!(
        (table.first(521, 1008), table.first(1001, 4096)),
        (Some(1000), None)
    );
}

#[test]
fn delivery_numbers_and_names_match_the_protocol() {
    assert_eq!(Delivery::ALL.map(Delivery::number), [1, 2, 3]);
    assert_eq!(StartFrom::ALL.map(StartFrom::number), [1, 2, 3]);
    for delivery in Delivery::ALL {
        assert_eq!(Delivery::from_number(delivery.number()), Some(delivery));
    }
    for from in StartFrom::ALL {
        assert_eq!(StartFrom::from_number(from.number()), Some(from));
    }
    assert_eq!((Delivery::from_number(0), Delivery::from_number(4)), (None, None));
    assert_eq!(
        (StartFrom::from_number(0), StartFrom::from_number(4)),
        (None, None)
    );
    for (delivery, name) in Delivery::ALL
        .into_iter()
        .zip(["reliable", "best-effort", "latest"])
    {
        assert_eq!(delivery.to_string(), name);
        assert_eq!(name.parse::<Delivery>().unwrap(), delivery);
    }
    for (from, name) in StartFrom::ALL.into_iter().zip(["now", "oldest", "latest"]) {
        assert_eq!(from.to_string(), name);
        assert_eq!(name.parse::<StartFrom>().unwrap(), from);
    }
    assert_eq!(
        "Latest".parse::<Delivery>().unwrap_err().code(),
        "INVALID_ARGUMENT"
    );
    assert_eq!("".parse::<StartFrom>().unwrap_err().code(), "INVALID_ARGUMENT");
}
