//! Every order in which a writer and its readers may see each other's stores.

#![expect(
    clippy::arc_with_non_send_sync,
    reason = "the threads of the model run one at a time"
)]

use std::sync::Arc;

use loom::thread;

use super::super::{
    floor::FanOutWriter,
    reader::{FanOutReader, Terms},
    readers::{ReaderSlot, Readers},
};
use crate::{
    ring::fan_out::{Delivery, StartFrom},
    ring::record::Tag,
    testing::loomed::Region,
};

type Writer = FanOutWriter<Region, Region, ()>;
type Reader = FanOutReader<Region, Region>;

/// Four records of one word each.
const CAPACITY: u64 = 64;

struct Hub {
    ring: Region,
    readers: Arc<Readers<Region, Region, ()>>,
}

impl Hub {
    fn new(racy: bool) -> Self {
        let ring = Region::of_publisher(CAPACITY, racy);
        let words = Region::of_publisher(0, false);
        Self {
            readers: Arc::new(Readers::new(ring.clone(), words, 4)),
            ring,
        }
    }

    fn writer(&self) -> Writer {
        FanOutWriter::new(self.ring.clone(), Arc::clone(&self.readers), CAPACITY)
    }

    fn read_by(&self, ring: Region, control: Region, (delivery, held): (Delivery, ReaderSlot)) -> Reader {
        let terms = Terms {
            capacity: CAPACITY,
            longest: 8,
            delivery,
            slot: held,
        };
        let reader = FanOutReader::new(ring, control.clone(), (), terms).unwrap();
        assert!(self.readers.activate(held.number, control, ()));
        reader
    }

    /// `control` must be made before there is a second thread, as loom does not see the list's lock.
    fn join(&self, control: Region, delivery: Delivery) -> Reader {
        let held = self.readers.reserve_slot(delivery, StartFrom::Oldest).unwrap();
        self.read_by(self.ring.clone(), control, (delivery, held))
    }
}

/// All orders with at most this many preemptions.
fn bounded(preemptions: usize) -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model
}

fn send(writer: &mut Writer, number: u64) {
    while !writer.push(&number.to_le_bytes(), Tag::NONE).unwrap() {
        thread::yield_now();
    }
    writer.publish();
}

fn receive(reader: &mut Reader) -> Option<u64> {
    let mut bytes = [0; 8];
    let length = reader.receive(&mut bytes).expect("an honest publisher")?;
    assert_eq!(length, 8);
    reader.publish();
    Some(u64::from_le_bytes(bytes))
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn room_is_reused_only_after_the_reliable_read() {
    bounded(2).check(|| {
        let hub = Hub::new(false);
        let mut reader = hub.join(Region::of_subscriber(0), Delivery::Reliable);
        let mut writer = hub.writer();
        (1..=3).for_each(|number| send(&mut writer, number));
        // The fifth takes the place of the first.
        let thread = thread::spawn(move || (4..=5).for_each(|number| send(&mut writer, number)));
        for number in 1..=5 {
            loop {
                if let Some(found) = receive(&mut reader) {
                    assert_eq!(found, number);
                    break;
                }
                thread::yield_now();
            }
        }
        assert_eq!((reader.sequence(), reader.limit.lost), (5, 0));
        thread.join().unwrap();
    });
}

/// A reader that the writer does not wait for reads while it is overtaken. The closures return the ring as
/// seen by writer and reader.
fn overtaken(
    publishes: impl Fn(&Region) -> Region + Copy + Send + Sync + 'static,
    reads: impl Fn(&Region) -> Region + Copy + Send + Sync + 'static,
    delivery: Delivery,
) {
    bounded(2).check(move || {
        let hub = Hub::new(true);
        let mut writer = FanOutWriter::new(publishes(&hub.ring), Arc::clone(&hub.readers), CAPACITY);
        (1..=4).for_each(|number| send(&mut writer, number));
        let held = hub.readers.reserve_slot(delivery, StartFrom::Oldest).unwrap();
        let control = Region::of_subscriber(held.slot);
        let mut reader = hub.read_by(reads(&hub.ring), control, (delivery, held));
        // It takes the place of the first.
        let thread = thread::spawn(move || send(&mut writer, 5));
        if let Some(number) = receive(&mut reader) {
            assert_eq!(number, reader.sequence(), "whole, and counted");
            assert_eq!(reader.limit.lost + 1, number);
        }
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn overtaken_reader_gets_whole_messages_and_counts_losses() {
    overtaken(Region::clone, Region::clone, Delivery::BestEffort);
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn latest_reader_gets_whole_messages_and_counts_losses() {
    overtaken(Region::clone, Region::clone, Delivery::Latest);
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "whole, and counted")]
fn missing_reader_fence_returns_torn_messages() {
    overtaken(Region::clone, Region::without_fences, Delivery::BestEffort);
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "whole, and counted")]
fn missing_writer_fence_returns_torn_messages() {
    overtaken(Region::without_fences, Region::clone, Delivery::BestEffort);
}

/// A position that is handed out while the writer continues is kept from then on.
fn held(words: impl Fn(&Region) -> Region + Copy + Send + Sync + 'static) {
    bounded(2).check(move || {
        let ring = Region::of_publisher(CAPACITY, true);
        let readers = Arc::new(Readers::new(
            ring.clone(),
            words(&Region::of_publisher(0, false)),
            4,
        ));
        let hub = Hub { ring, readers };
        let mut writer = hub.writer();
        (1..=4).for_each(|number| send(&mut writer, number));
        let control = Region::of_subscriber(0);
        // The writer has the empty list.
        assert_eq!(writer.changes().count(), 0);
        let thread = thread::spawn(move || {
            // If the reader enters first, there is no room.
            writer.push(&5_u64.to_le_bytes(), Tag::NONE).unwrap();
            writer.publish();
        });
        let mut reader = hub.join(control, Delivery::Reliable);
        let first = reader.sequence() + 1;
        assert_eq!(receive(&mut reader), Some(first), "it was kept");
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn position_granted_during_writes_is_kept() {
    held(Region::clone);
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
#[should_panic(expected = "an honest publisher")]
fn missing_fences_overwrite_a_granted_position() {
    held(Region::without_fences);
}
