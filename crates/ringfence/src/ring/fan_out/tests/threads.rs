//! A writer and readers of all three deliveries, concurrently on threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{Hub, Reader, SMALLEST, bytes, receive, seen, walk_packed};
use crate::{
    region::layout::as_offset,
    ring::fan_out::{Delivery, StartFrom},
    ring::read::Packed,
    ring::record::Tag,
};

const MESSAGES: u64 = if cfg!(miri) { 60 } else { 30_000 };

fn length(number: u64) -> usize {
    as_offset(number * number * 13 % 300)
}

/// The read call that a reader uses.
#[derive(Debug, Clone, Copy)]
enum By {
    One,
    Visit,
    Pull,
}

fn read_some(reader: &mut Reader, by: By) -> Vec<Vec<u8>> {
    match by {
        By::One => receive(reader).into_iter().collect(),
        By::Visit => {
            let mut found = Vec::new();
            reader.visit(100, |view| found.push(seen(&view))).unwrap();
            found
        }
        By::Pull => {
            let mut into = vec![0; 2000];
            match reader.pull_packed(&mut into).unwrap() {
                Packed::Bytes(end) => walk_packed(&into[..end]),
                Packed::Large(_) | Packed::Nothing => Vec::new(),
            }
        }
    }
}

/// Reads until the writer has ended and nothing is left, and checks each message. Returns their number.
fn read_all(mut reader: Reader, by: By, ended: &AtomicBool) -> (Reader, u64) {
    let mut count = 0;
    loop {
        let over = ended.load(Ordering::Acquire);
        let before = reader.sequence();
        let lost = reader.limit.lost;
        let found = read_some(&mut reader, by);
        count += found.len() as u64;
        assert_eq!(reader.limit.lost + count, reader.sequence(), "counted");
        // If some were lost within the call, only the numbers of the last ones are known.
        let first = reader.sequence() - found.len() as u64;
        let known = if reader.limit.lost == lost { before } else { first };
        if reader.limit.lost == lost || found.len() == 1 {
            for (number, message) in (known + 1..).zip(&found) {
                assert!(
                    *message == bytes(number, length(number)),
                    "message {number}, {by:?}"
                );
            }
        } else if let Some(last) = found.last() {
            assert!(
                *last == bytes(reader.sequence(), length(reader.sequence())),
                "{by:?}"
            );
        }
        if found.is_empty() {
            if over {
                return (reader, count);
            }
            thread::yield_now();
        }
    }
}

fn run(kinds: &[(Delivery, By)]) {
    let mut hub = Hub::new(if cfg!(miri) { SMALLEST } else { 4 * SMALLEST });
    let ended = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = kinds
        .iter()
        .map(|(delivery, by)| {
            let (_, reader) = hub.join(*delivery, StartFrom::Now);
            let (by, ended) = (*by, Arc::clone(&ended));
            thread::spawn(move || read_all(reader, by, &ended))
        })
        .collect();
    for number in 1..=MESSAGES {
        while !hub
            .writer
            .push(&bytes(number, length(number)), Tag::NONE)
            .unwrap()
        {
            hub.writer.publish();
            thread::yield_now();
            assert!(
                hub.writer.violation().is_none() && readers.iter().all(|reader| !reader.is_finished()),
                "all of them read, and none lies"
            );
        }
        if number.is_multiple_of(3) {
            hub.writer.publish();
        }
    }
    hub.writer.publish();
    ended.store(true, Ordering::Release);
    for (reader, (delivery, _)) in readers.into_iter().zip(kinds) {
        let (reader, count) = reader.join().expect("a reader");
        assert_eq!(reader.sequence(), MESSAGES);
        assert_eq!(reader.limit.lost + count, MESSAGES);
        assert!(*delivery != Delivery::Reliable || reader.limit.lost == 0);
    }
}

#[test]
fn reliable_readers_get_every_message_without_a_race() {
    let kinds = [By::One, By::Visit, By::Pull].map(|by| (Delivery::Reliable, by));
    run(&kinds);
}

#[test]
#[cfg_attr(
    miri,
    ignore = "what is read while it is written over is thrown away, which Miri takes for a race"
)]
fn overtaken_readers_get_whole_messages_and_count_losses() {
    run(&[
        (Delivery::BestEffort, By::One),
        (Delivery::BestEffort, By::Visit),
        (Delivery::BestEffort, By::Pull),
        (Delivery::Latest, By::One),
        (Delivery::Latest, By::Visit),
    ]);
    run(&[
        (Delivery::Reliable, By::Visit),
        (Delivery::BestEffort, By::Pull),
        (Delivery::Latest, By::Pull),
    ]);
}
