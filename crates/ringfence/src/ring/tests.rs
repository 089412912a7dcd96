//! The ring on plain memory: against a model, against a hostile peer, and in every order that the memory
//! model allows.

mod liars;
mod model;
mod orderings;
mod reader;
mod threads;
mod writer;

use std::sync::atomic::Ordering;

use super::{
    lies::packed,
    message::Progress,
    read::{Packed, WantedLengths},
    record::{ALIGNED, HEADER, LONG, Tag, WHOLE, header, packed_size},
    spsc::{STRETCH, SpscReader, SpscWriter, Sum, Tally},
};
use crate::{
    region::copy::Writable,
    region::layout::{self, as_offset},
    region::own::OwnRegion,
    region::peer::PeerRegion,
};

/// Both ends of one direction, on private memory.
struct Pair {
    producer: SpscWriter<OwnRegion, PeerRegion>,
    consumer: SpscReader<OwnRegion, PeerRegion>,
}

/// The smallest region, which is enough for a head.
const SMALLEST: u64 = 4096;

fn pair(capacity: u64, longest: u64) -> Pair {
    let (writer, reader) = (OwnRegion::private(capacity), OwnRegion::private(SMALLEST));
    let (written, read) = (writer.peer_view(), reader.peer_view());
    Pair {
        producer: SpscWriter::new(writer, read, capacity),
        consumer: SpscReader::new(reader, written, capacity, longest),
    }
}

/// Bytes that differ by message, position and length: their period is prime.
fn bytes(number: usize, length: usize) -> Vec<u8> {
    const PERIOD: usize = 251;
    let mut bytes: Vec<u8> = (0..PERIOD.min(length))
        .map(|at| u8::try_from((number * 131 + length * 17 + at * 7) % PERIOD).expect("below 251"))
        .collect();
    bytes = bytes.repeat(length.div_ceil(PERIOD));
    bytes.truncate(length);
    bytes
}

impl Pair {
    fn take(&mut self) -> Option<Vec<u8>> {
        let record = self.consumer.next_record().expect("an honest ring")?;
        assert_eq!(record.flags, WHOLE, "a whole message");
        let mut into = vec![0; record.length];
        crate::region::copy::Readable::copy_out(&self.consumer.peer, record.at, &mut into);
        self.consumer.skip(record.size);
        self.consumer.publish();
        Some(into)
    }

    fn send(&mut self, message: &[u8]) -> bool {
        let pushed = self.producer.push(message, Tag::NONE).expect("an honest ring");
        self.producer.publish();
        pushed
    }

    /// Moves both positions to a place in the ring. The ring is empty before and after.
    fn move_to(&mut self, place: u64) {
        let goal = self
            .producer
            .ring
            .tail
            .next_multiple_of(self.producer.ring.capacity)
            + place;
        let mut steps = 0;
        while self.producer.ring.tail != goal {
            let left = goal - self.producer.ring.tail;
            // Near the goal, one record of the remaining bytes. Before that, a quarter of a ring, which fits
            // at any position and does not start at a cache line.
            let payload = (left - HEADER).min(self.producer.ring.capacity / 4).min(LONG - 8);
            let before = self.producer.ring.tail;
            assert!(self.send(&vec![1; as_offset(payload)]));
            assert!(self.take().is_some());
            assert!(
                self.producer.ring.tail > before && self.producer.ring.tail <= goal,
                "the goal is not passed"
            );
            steps += 1;
            assert!(steps < 100);
        }
    }
}

#[test]
fn half_a_ring_fits_at_every_position() {
    let capacity = SMALLEST;
    let step = if cfg!(miri) { 8 * 51 } else { 8 };
    for place in (0..capacity).step_by(step) {
        let mut pair = pair(capacity, capacity);
        pair.move_to(place);
        let half = bytes(as_offset(place), as_offset(capacity / 2));
        assert!(pair.producer.has_room(capacity / 2).unwrap(), "at {place}");
        assert!(pair.send(&half), "at {place}");
        assert_eq!(pair.take(), Some(half), "at {place}");
        assert_eq!(pair.take(), None, "at {place}");
    }
}

#[test]
fn packed_and_single_records_work_at_every_position() {
    let capacity = SMALLEST;
    let step = if cfg!(miri) { 8 * 61 } else { 8 };
    for place in (0..capacity).step_by(step) {
        let mut pair = pair(capacity, capacity);
        pair.move_to(place);
        let messages: Vec<_> = [0, 1, 8, 9, 700, 16, 1000]
            .map(|length| bytes(as_offset(place), length))
            .into();
        let packed = packed(messages.iter().map(Vec::as_slice));
        assert_eq!(
            pair.producer.push_packed(&packed, capacity).unwrap(),
            packed.len(),
            "at {place}"
        );
        pair.producer.publish();
        let mut pulled = vec![0; packed.len()];
        let mut filled = 0;
        while filled < packed.len() {
            match pair.consumer.pull_packed(&mut pulled[filled..]).unwrap() {
                Packed::Bytes(bytes) => filled += bytes,
                other => panic!("{other:?} at {place} after {filled}"),
            }
        }
        // Padding bytes are whatever was there before. Headers and payloads are what was sent.
        let mut at = 0;
        for message in &messages {
            assert_eq!(
                &pulled[at..at + 8],
                header(message.len() as u64, WHOLE).to_le_bytes()
            );
            assert_eq!(&pulled[at + 8..at + 8 + message.len()], message);
            at += as_offset(packed_size(message.len() as u64));
        }
        assert_eq!(pair.consumer.pull_packed(&mut pulled).unwrap(), Packed::Nothing);
    }
}

#[test]
fn row_ends_at_the_published_tail() {
    let mut pair = pair(SMALLEST, SMALLEST);
    for number in 0..4 {
        assert!(pair.producer.push(&bytes(number, 64), Tag::NONE).unwrap());
    }
    let tail = pair.producer.ring.tail;
    // A hostile peer claims two and a half messages.
    let own = pair.producer.own();
    own.store(layout::TAIL, tail - 2 * 72 + 40, Ordering::Release);
    let mut visited = Vec::new();
    let first = pair.consumer.next_record().unwrap().expect("the first");
    let count = pair.consumer.visit_in_row(first, 10, |peer, record| {
        let mut into = vec![0; record.length];
        crate::region::copy::Readable::copy_out(peer, record.at, &mut into);
        visited.push(into);
    });
    assert_eq!((count, visited), (2, vec![bytes(0, 64), bytes(1, 64)]));
    assert_eq!(pair.consumer.next_record().unwrap_err().code(), "RING_CORRUPT");
}

#[test]
fn dropped_reservation_leaves_nothing_to_read() {
    let mut pair = pair(SMALLEST, SMALLEST);
    // The claim is near the end of the ring, so it must fill that end with padding. The padding stays.
    pair.move_to(SMALLEST - 64);
    assert!(pair.producer.claim(2000).unwrap().is_some());
    pair.producer.publish();
    assert_eq!(pair.take(), None);
    assert!(pair.send(b"after"));
    assert_eq!(pair.take().as_deref(), Some(&b"after"[..]));
}

/// A reservation near the end of the ring that was cancelled leaves padding after the last message.
#[test]
fn retained_messages_stay_before_trailing_padding() {
    let mut pair = pair(SMALLEST, SMALLEST);
    pair.move_to(SMALLEST - 64);
    let head = pair.consumer.published;
    assert!(pair.send(b"one") && pair.send(b"two"));
    assert!(pair.producer.claim(2000).unwrap().is_some());
    assert!(pair.producer.publish());
    let wanted = WantedLengths {
        min: 0,
        max: 64,
        fresh: true,
        calls: false,
    };
    let mut into = [0; 64];
    assert_eq!(
        pair.consumer.pull_retained(&mut into, &wanted).unwrap(),
        Packed::Bytes(32)
    );
    for passed in [0, 16, 0] {
        assert_eq!(pair.consumer.published, head, "the head is not published yet");
        let left = pair.consumer.pull_again(&mut into, passed).unwrap();
        assert_eq!(left, Packed::Bytes(32 - passed));
        assert_eq!(into[32 - passed - 8..][..3], *b"two");
    }
    assert!(pair.consumer.publish());
    assert_eq!(pair.take(), None);
    assert!(pair.send(b"after"));
    assert_eq!(pair.take().as_deref(), Some(&b"after"[..]));
}

#[test]
fn packed_records_are_sent_up_to_the_first_invalid_one() {
    let good = packed([&b"one"[..], b"two"]);
    let mut cut = good.clone();
    cut.truncate(good.len() - 8);
    let mut flags = good.clone();
    flags[16 + 4] = 1;
    let long = [&good[..16], &packed([&[0; 3000][..]])].concat();
    let tail = [&good[..], &[3, 0, 0]].concat();
    for (what, bad, before, code) in [
        ("a record cut", cut, 16, "INVALID_ARGUMENT"),
        ("a fragment", flags, 16, "INVALID_ARGUMENT"),
        ("more than half the ring", long, 16, "MESSAGE_TOO_LARGE"),
        ("a header cut", tail, 32, "INVALID_ARGUMENT"),
    ] {
        let mut pair = pair(SMALLEST, SMALLEST);
        assert_eq!(
            pair.producer.push_packed(&bad, SMALLEST).unwrap(),
            before,
            "{what}"
        );
        let error = pair.producer.push_packed(&bad[before..], SMALLEST).unwrap_err();
        assert_eq!(error.code(), code, "{what}");
        pair.producer.publish();
        assert_eq!(pair.take().as_deref(), Some(&b"one"[..]), "{what}");
    }
}

#[test]
fn message_larger_than_the_ring_passes_in_fragments() {
    let mut pair = pair(SMALLEST, 1 << 20);
    let message = bytes(3, if cfg!(miri) { 9000 } else { 100_000 });
    let mut into = vec![0; message.len()];
    let mut written = 0;
    loop {
        let progress = pair.producer.push_part(&message, Tag::NONE, written).unwrap();
        assert_eq!(pair.consumer.next_size().unwrap(), Some(message.len()));
        let gathered = pair.consumer.gather(&mut into).unwrap();
        match progress {
            Progress::Part(so_far) => {
                assert!(so_far > written, "an emptied ring takes more");
                assert_eq!(gathered, None);
                assert_eq!(pair.consumer.gathered_so_far(), so_far);
                written = so_far;
            }
            Progress::Whole => {
                assert_eq!(gathered, Some(message.len()));
                break;
            }
        }
    }
    assert!(into == message, "its bytes are those that were sent");
}

#[test]
fn bytes_past_the_rings_end_are_no_record() {
    let mut pair = pair(SMALLEST, SMALLEST);
    // A message that crosses the end of the ring, and whose last bytes look like the header of an empty
    // message.
    pair.move_to(SMALLEST - 32);
    let disguised = [[0; 24].as_slice(), &header(0, WHOLE).to_le_bytes()].concat();
    assert!(pair.send(&disguised));
    assert_eq!(pair.take(), Some(disguised));
    // One lap later, a message ends exactly there, and another follows it. No message in between crosses the
    // end, so that header stays.
    for size in [2024, 2032] {
        assert!(pair.send(&vec![1; size - as_offset(HEADER)]) && pair.take().is_some());
    }
    assert_eq!(pair.producer.ring.tail, 2 * SMALLEST - 32);
    assert!(
        pair.producer.push(&[1; 24], Tag::NONE).unwrap() && pair.producer.push(&[2; 16], Tag::NONE).unwrap()
    );
    pair.producer.publish();
    let mut into = [0; 200];
    assert_eq!(pair.consumer.pull_packed(&mut into).unwrap(), Packed::Bytes(56));
    assert_eq!(into[8..32], [1; 24]);
    assert_eq!(into[40..56], [2; 16]);
}

#[test]
fn long_payload_starts_at_a_cache_line() {
    let capacity = 4 * SMALLEST;
    let (long, short) = (as_offset(LONG), as_offset(LONG) - 1);
    let step = if cfg!(miri) { 8 * 151 } else { 8 };
    for place in (0..128).chain(capacity - 3000..capacity).step_by(step) {
        let mut pair = pair(capacity, capacity);
        pair.move_to(place);
        for (number, length) in [long, short, long + 1, 3, long].into_iter().enumerate() {
            let at = pair.producer.claim(length as u64).unwrap().unwrap();
            assert!(length < long || at.is_multiple_of(64), "at {at}, from {place}");
            let message = bytes(number, length);
            // SAFETY: the producer has just claimed the range, and claims nothing else before this borrow
            // ends.
            unsafe { pair.producer.own_mut().claimed(at, length) }.copy_from_slice(&message);
            // A long record whose message became short stays in its place.
            let sent = if number == 2 { 5 } else { length };
            pair.producer.finish(at, length, sent);
            pair.producer.publish();
            assert_eq!(pair.take().unwrap(), message[..sent], "from {place}");
        }
    }
}

#[test]
fn empty_alignment_gap_is_valid() {
    // Another implementation may set the flag for a payload that starts at a cache line anyway.
    let mut pair = pair(SMALLEST, SMALLEST);
    pair.move_to(56);
    assert!(pair.producer.push(b"payload", Tag::NONE).unwrap());
    let header = header(7, WHOLE | ALIGNED);
    let at = layout::DATA + 56;
    pair.producer.own_mut().store(at, header, Ordering::Relaxed);
    pair.producer.publish();
    let mut into = [0; 64];
    assert_eq!(pair.consumer.pull_packed(&mut into).unwrap(), Packed::Bytes(16));
    assert_eq!(into[..15], packed([&b"payload"[..]])[..15]);
}

#[test]
fn packed_room_is_sufficient_at_every_position() {
    let capacity = 2 * SMALLEST;
    let step = if cfg!(miri) { 8 * 409 } else { 8 };
    for place in (0..capacity).step_by(step) {
        let sizes = [0, 24, 700, LONG, capacity / 2];
        // Under Miri, a ring full of the smallest messages takes minutes.
        for longest in sizes.into_iter().skip(if cfg!(miri) { 2 } else { 0 }) {
            let mut pair = pair(capacity, capacity);
            pair.move_to(place);
            for kept in 0..3 {
                let before = pair.producer.packed_room(longest).unwrap();
                // Two calls use up the room that was reported once.
                let mut left = before;
                let mut number = as_offset(place);
                let mut sets = [Vec::new(), Vec::new()];
                while left >= packed_size(longest) {
                    let length =
                        [longest, longest / 3, longest.min(LONG), longest.saturating_sub(9)][number % 4];
                    sets[usize::from(left < before / 2)].push(bytes(number, as_offset(length)));
                    left -= packed_size(length);
                    number += 1;
                }
                for set in &sets {
                    let packed = packed(set.iter().map(Vec::as_slice));
                    let taken = pair.producer.push_packed(&packed, longest).unwrap();
                    assert_eq!(taken, packed.len(), "{longest} bytes at {place}, {kept} kept");
                    pair.producer.publish();
                }
                // All but a few are read. The next round finds those in its way.
                for message in sets.concat().iter().skip(kept) {
                    pair.take().unwrap_or_else(|| panic!("{} bytes", message.len()));
                }
            }
        }
    }
}

#[test]
fn every_read_distinguishes_call_frames() {
    const CALLS: WantedLengths = WantedLengths {
        calls: true,
        ..WantedLengths::ALL
    };
    let mut pair = pair(SMALLEST, SMALLEST);
    let call = bytes(1, 20);
    let mut packed = packed([call.as_slice(), &bytes(2, 30)]);
    packed[4] |= 16;
    let read_all = |consumer: &mut SpscReader<_, _>| {
        let mut seen = Vec::new();
        while let Some(record) = consumer.next_record().unwrap() {
            consumer.visit_in_row(record, 10, |_, record| seen.push((record.length, record.tag)));
        }
        seen
    };
    let sent = [(20, Tag::CALL), (30, Tag::NONE)];

    assert!(pair.producer.push(&call, Tag::CALL).unwrap());
    assert!(pair.producer.push_now(&bytes(2, 30), Tag::NONE).unwrap());
    assert_eq!(read_all(&mut pair.consumer), sent);
    assert_eq!(
        pair.producer.push_packed(&packed, SMALLEST).unwrap(),
        packed.len()
    );
    pair.producer.publish();
    assert_eq!(read_all(&mut pair.consumer), sent);

    // Packed records are read as they were written, also long ones, which lie differently in the ring.
    pair.consumer.publish();
    let long = bytes(3, 2048);
    for message in [&call, &long] {
        assert!(pair.producer.push_now(message, Tag::CALL).unwrap());
        let mut into = vec![0; 4096];
        let size = packed_size(message.len() as u64);
        // A call frame is no message.
        assert_eq!(
            pair.consumer.pull_packed(&mut into).unwrap(),
            Packed::Large(message.len())
        );
        assert!(pair.consumer.limit.tag.is_call());
        assert_eq!(
            pair.consumer.pull_calls(&mut into, &CALLS).unwrap(),
            Packed::Bytes(as_offset(size))
        );
        assert_eq!(into[..8], header(message.len() as u64, WHOLE | 16).to_le_bytes());
    }

    // The tag of a message in fragments is known before all of it is there.
    let message = bytes(4, as_offset(SMALLEST));
    let mut into = vec![0; message.len()];
    let mut written = 0;
    for tag in [Tag::CALL, Tag::NONE] {
        let mut progress = pair.producer.push_part(&message, tag, 0).unwrap();
        assert_eq!(pair.consumer.next_size().unwrap(), Some(message.len()));
        assert_eq!(pair.consumer.limit.tag, tag);
        while let Progress::Part(so_far) = progress {
            assert!(so_far > written, "a reader makes room");
            written = so_far;
            assert_eq!(pair.consumer.gather(&mut into).unwrap(), None);
            progress = pair.producer.push_part(&message, tag, so_far).unwrap();
        }
        written = 0;
        assert_eq!(pair.consumer.gather(&mut into).unwrap(), Some(message.len()));
        assert_eq!((&into, pair.consumer.limit.tag), (&message, tag));
    }
}

#[test]
fn tally_separates_messages_and_bytes() {
    let (mut sum, tally) = (Sum::default(), Tally::default());
    for length in [0, 1, 64, 2047, 0] {
        sum.add(length);
    }
    assert_eq!(tally.get(), (0, 0), "nothing is published before a flush");
    sum.flush(&tally);
    sum.flush(&tally);
    assert_eq!(tally.get(), (5, 2112));
}

#[test]
fn sum_holds_the_maximum_of_both_counts() {
    let (mut sum, tally) = (Sum::default(), Tally::default());
    sum.0 = STRETCH / 8 * header(0, WHOLE) + STRETCH;
    sum.flush(&tally);
    assert_eq!(tally.get(), (1 << 27, 1 << 30));
}
