//! Every order in which a reader and a writer may see each other's stores. The reader reads what was written,
//! and nothing is overwritten before it was read. Loom switches stacks itself, which Miri does not follow.

use loom::thread;

use crate::{
    region::copy::Readable,
    ring::message::Progress,
    ring::record::{Tag, WHOLE},
    ring::spsc::SpscReader,
    ring::spsc::SpscWriter,
    testing::loomed::Region,
};

type Writer = SpscWriter<Region, Region>;
type Reader = SpscReader<Region, Region>;

fn ends(capacity: u64) -> (Writer, Reader) {
    let (written, read) = (Region::new(capacity), Region::new(capacity));
    (
        SpscWriter::new(written.clone(), read.clone(), capacity),
        SpscReader::new(read, written, capacity, 1024),
    )
}

/// All orders with at most three preemptions. Exploring all orders takes minutes.
fn bounded() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model
}

fn send(writer: &mut Writer, word: u64) {
    while !writer.push(&word.to_le_bytes(), Tag::NONE).unwrap() {
        thread::yield_now();
    }
}

fn receive(reader: &mut Reader) -> u64 {
    loop {
        if let Some(record) = reader.next_record().unwrap() {
            assert_eq!((record.length, record.flags), (8, WHOLE));
            let mut bytes = [0; 8];
            reader.peer.copy_out(record.at, &mut bytes);
            reader.skip(record.size);
            return u64::from_le_bytes(bytes);
        }
        thread::yield_now();
    }
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn tail_publishes_the_payload() {
    loom::model(|| {
        let (mut writer, mut reader) = ends(64);
        let thread = thread::spawn(move || {
            for word in 1..=3 {
                send(&mut writer, word);
                writer.publish();
            }
        });
        for word in 1..=3 {
            assert_eq!(receive(&mut reader), word);
        }
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn records_published_together_are_visible_together() {
    loom::model(|| {
        let (mut writer, mut reader) = ends(64);
        let thread = thread::spawn(move || {
            send(&mut writer, 1);
            send(&mut writer, 2);
            writer.publish();
            send(&mut writer, 3);
            writer.publish();
        });
        assert_eq!(receive(&mut reader), 1);
        let second = reader.next_record().unwrap().expect("published with the first");
        assert_eq!(second.length, 8);
        assert_eq!(receive(&mut reader), 2);
        assert_eq!(receive(&mut reader), 3);
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn room_is_reused_only_after_the_read() {
    bounded().check(|| {
        // Two records fill it, so the third takes the place of the first.
        let (mut writer, mut reader) = ends(32);
        let thread = thread::spawn(move || {
            for word in 1..=3 {
                send(&mut writer, word);
                writer.publish();
            }
        });
        for word in 1..=3 {
            assert_eq!(receive(&mut reader), word);
            reader.publish();
        }
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "loom has stacks of its own")]
fn fragments_pass_through_a_reused_ring() {
    // 72 bytes in fragments of 16, the first preceded by the size: nine records of 24 bytes at most.
    bounded().check(|| {
        let (mut writer, mut reader) = ends(128);
        let message: [u8; 72] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let thread = thread::spawn(move || {
            let mut written = 0;
            while let Progress::Part(so_far) = writer.push_part(&message, Tag::NONE, written).unwrap() {
                written = so_far;
                thread::yield_now();
            }
        });
        let mut into = [0; 72];
        while reader.gather(&mut into).unwrap() != Some(72) {
            thread::yield_now();
        }
        assert_eq!(into, message);
        thread.join().unwrap();
    });
}
