//! Both ends concurrently, on two threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{Pair, SMALLEST, bytes, packed, pair};
use crate::{
    region::copy::Readable,
    region::layout::as_offset,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::message::Progress,
    ring::read::Packed,
    ring::record::{Tag, WHOLE, packed_size},
    ring::spsc::SpscWriter,
};

/// The writer on its thread, and whether it has ended. Once `ended` is set, everything that it published is
/// visible. (A thread's own `is_finished` guarantees no such order.)
struct Writer {
    thread: JoinHandle<()>,
    ended: Arc<AtomicBool>,
}

impl Writer {
    fn start(write: impl FnOnce() + Send + 'static) -> Self {
        struct Ends(Arc<AtomicBool>);

        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }

        let ended = Arc::new(AtomicBool::new(false));
        let ends = Ends(Arc::clone(&ended));
        let thread = thread::spawn(move || {
            let _ends = ends;
            write();
        });
        Self { thread, ended }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

const MESSAGES: usize = if cfg!(miri) { 60 } else { 20_000 };

fn length(number: usize) -> usize {
    number * number * 13 % if cfg!(miri) { 500 } else { 900 }
}

/// Every seventh message is sent alone in fragments, every fifth in a packet of three.
fn produce(mut producer: SpscWriter<OwnRegion, PeerRegion>) {
    let mut number = 0;
    while number < MESSAGES {
        if number.is_multiple_of(7) && number + 3 <= MESSAGES {
            let three: Vec<_> = (number..number + 3).map(|n| bytes(n, length(n))).collect();
            let packed = packed(three.iter().map(Vec::as_slice));
            let mut taken = 0;
            while taken < packed.len() {
                taken += producer.push_packed(&packed[taken..], SMALLEST).unwrap();
                producer.publish();
                thread::yield_now();
            }
            number += 3;
            continue;
        }
        let message = bytes(number, length(number));
        while !producer.push(&message, Tag::NONE).unwrap() {
            producer.publish();
            thread::yield_now();
        }
        if number.is_multiple_of(3) {
            producer.publish();
        }
        number += 1;
    }
    producer.publish();
}

#[test]
fn two_threads_exchange_messages_without_a_race() {
    let Pair {
        producer,
        mut consumer,
    } = pair(SMALLEST, SMALLEST);
    let writer = Writer::start(move || produce(producer));
    let mut number = 0;
    let mut into = vec![0; 4096];
    while number < MESSAGES {
        let ended = writer.has_ended();
        if number.is_multiple_of(2) {
            let Packed::Bytes(end) = consumer.pull_packed(&mut into).unwrap() else {
                assert!(!ended, "the writer has ended after {number} messages");
                thread::yield_now();
                continue;
            };
            let mut at = 0;
            while at < end {
                let expected = bytes(number, length(number));
                assert!(
                    into[at + 8..at + 8 + expected.len()] == expected,
                    "message {number}"
                );
                at += as_offset(packed_size(expected.len() as u64));
                number += 1;
            }
            continue;
        }
        let Some(record) = consumer.next_record().unwrap() else {
            assert!(!ended, "the writer has ended after {number} messages");
            thread::yield_now();
            continue;
        };
        assert_eq!(record.flags, WHOLE);
        consumer.peer.copy_out(record.at, &mut into[..record.length]);
        assert!(
            into[..record.length] == bytes(number, length(number)),
            "message {number}"
        );
        consumer.skip(record.size);
        consumer.publish();
        number += 1;
    }
    writer.thread.join().unwrap();
    assert_eq!(consumer.next_record().unwrap(), None);
}

#[test]
fn two_threads_exchange_a_message_larger_than_the_ring() {
    let size = if cfg!(miri) { 12_000 } else { 1 << 20 };
    let Pair {
        mut producer,
        mut consumer,
    } = pair(SMALLEST, size as u64);
    let message = bytes(1, size);
    let sent = message.clone();
    let writer = Writer::start(move || {
        let mut written = 0;
        while let Progress::Part(so_far) = producer.push_part(&sent, Tag::NONE, written).unwrap() {
            written = so_far;
            thread::yield_now();
        }
    });
    let mut into = vec![0; size];
    loop {
        let ended = writer.has_ended();
        if consumer.gather(&mut into).unwrap() == Some(size) {
            break;
        }
        assert!(!ended, "the writer has ended before its message");
        thread::yield_now();
    }
    writer.thread.join().unwrap();
    assert!(into == message, "its bytes are those that were sent");
}
