//! Random calls of a writer and of readers that join and leave, checked against a list of all messages ever
//! sent.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{Hub, Reader, SMALLEST, bytes, seen, walk_packed};
use crate::{
    region::copy::Readable,
    region::layout::{self, as_offset},
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::packed,
    ring::read::Packed,
    ring::record::{Tag, packed_size},
    testing::chance::cases,
};

/// A current reader, by its index.
type Which = usize;

#[derive(Debug, Clone)]
enum Call {
    /// Written, but not published.
    Push(u64),
    /// This many messages of the size, which may be more than the ring takes.
    Batch(u64, usize),
    Send(u64),
    Packed(Vec<u64>),
    /// Reserved, and then committed with that many thousandths of it, or cancelled.
    Reserve(u64, Option<u64>),
    Publish,
    Ask(u64),
    PackedRoom(u64),
    Join(Delivery, StartFrom),
    Leave(Which),
    Evict(Which),
    /// Reads what the writer has published so far, and nothing more.
    End(Which),
    Settle(Which),
    Receive(Which, usize),
    Visit(Which, usize),
    Pull(Which, usize),
    Size(Which),
}

/// Derives a size from two numbers: most are short, some the longest, and some as long as a payload that
/// starts at a cache line.
fn size(shape: u64, amount: u64) -> u64 {
    match shape % 8 {
        0..=4 => amount % 80,
        5 => 1_000_000 - amount % 24,
        6 => amount * 1000,
        _ => amount % 600,
    }
}

/// One strategy of plain numbers, as in the model of a pair: Miri would spend its time in proptest's choices.
fn call() -> impl Strategy<Value = Call> {
    (0..45_u8, 0..1000_u64, 0..1000_u64, 0..8_usize, 0..6000_usize).prop_map(
        |(kind, shape, amount, which, room)| {
            let size = size(shape, amount);
            let many = || {
                (0..amount % 12)
                    .map(|index| self::size(shape + index * 5, amount * (index + 1) % 1000))
                    .collect()
            };
            match kind {
                0..=3 => Call::Push(size),
                4..=11 => Call::Send(size),
                12..=14 => Call::Packed(many()),
                15..=16 => Call::Reserve(size, (which > 1).then_some(room as u64 % 1001)),
                17 => Call::Publish,
                18 => Call::Ask(size),
                19 => Call::PackedRoom(size),
                20..=22 => Call::Join(
                    Delivery::ALL[as_offset(shape) % 3],
                    StartFrom::ALL[as_offset(amount) % 3],
                ),
                23 => Call::Leave(which),
                24 => Call::Evict(which),
                25 if shape < 200 => Call::End(which),
                26 if shape < 200 => Call::Settle(which),
                25..=33 => Call::Receive(which, room % 8),
                34..=38 => Call::Visit(which, room % 30),
                39..=42 => Call::Pull(which, room),
                43 => Call::Batch(size, room % 200),
                _ => Call::Size(which),
            }
        },
    )
}

/// A reader, and what it must find according to the list.
struct Case {
    number: u64,
    reader: Reader,
    delivery: Delivery,
    began: u64,
    handed_out: u64,
    /// The last message that it may find, if its range is limited.
    last: Option<u64>,
    evicted: bool,
}

struct Rig {
    hub: Hub,
    /// The length of each message that was written. The first is number 1.
    written: Vec<usize>,
    published: u64,
    floor: u64,
    cases: Vec<Case>,
}

impl Rig {
    fn new(capacity: u64) -> Self {
        Self {
            hub: Hub::new(capacity),
            written: Vec::new(),
            published: 0,
            floor: 0,
            cases: Vec::new(),
        }
    }

    /// Converts a size to bytes: a small `size` is in bytes, a large one in millionths of the largest.
    fn length(&self, size: u64) -> usize {
        let largest = self.hub.writer.largest_record();
        as_offset(if size < 1000 {
            size.min(largest)
        } else {
            (largest * size / 1_000_000).min(largest)
        })
    }

    fn message(&self, size: u64) -> Vec<u8> {
        bytes(self.written.len() as u64 + 1, self.length(size))
    }

    fn word(&self, at: usize) -> u64 {
        self.hub.ring.load(at, Ordering::Acquire)
    }

    /// Whether everything that was written is published, and was read by each reliable reader.
    fn is_idle(&self) -> bool {
        let through = |case: &Case| {
            case.delivery != Delivery::Reliable
                || case.evicted
                || self.hub.readers.position(case.number) == Some(self.word(layout::TAIL))
        };
        self.published == self.written.len() as u64 && self.cases.iter().all(through)
    }

    fn push(&mut self, message: &[u8]) -> bool {
        let must = self.is_idle();
        let there = self.hub.writer.has_room(message.len() as u64).unwrap();
        let awaited = self.hub.writer.awaited(message.len() as u64);
        let pushed = self.hub.writer.push(message, Tag::NONE).unwrap();
        assert_eq!(pushed, there, "{} bytes", message.len());
        assert!(pushed || !must, "{} bytes find room", message.len());
        if pushed {
            assert_eq!(awaited, None);
            self.written.push(message.len());
        } else if let Some(awaited) = awaited {
            let slow = self.hub.reliable();
            assert!(slow.iter().any(|(_, position)| *position < awaited));
        } else {
            // Only unpublished data may be in the way.
            assert!(self.published < self.written.len() as u64);
        }
        pushed
    }

    fn publish(&mut self) {
        self.hub.writer.publish();
        self.published = self.written.len() as u64;
        assert_eq!(self.hub.writer.counted().0, self.published);
    }

    fn push_packed(&mut self, sizes: Vec<u64>) {
        let first = self.written.len() as u64 + 1;
        let messages: Vec<_> = (first..)
            .zip(sizes)
            .map(|(number, size)| bytes(number, self.length(size)))
            .collect();
        let packed = packed(messages.iter().map(Vec::as_slice));
        let mut taken = self.hub.writer.push_packed(&packed, u64::MAX).unwrap();
        let all = taken == packed.len();
        for message in &messages {
            if taken == 0 {
                assert!(all || !self.hub.writer.has_room(message.len() as u64).unwrap());
                break;
            }
            taken -= as_offset(packed_size(message.len() as u64));
            self.written.push(message.len());
        }
        self.publish();
    }

    fn reserve(&mut self, size: u64, commit: Option<u64>) {
        let message = self.message(size);
        let Some(at) = self.hub.writer.claim(message.len() as u64).unwrap() else {
            return;
        };
        // SAFETY: the writer has just claimed the range, and claims nothing else before this borrow ends.
        unsafe { self.hub.writer.own_mut().claimed(at, message.len()) }.copy_from_slice(&message);
        if let Some(part) = commit {
            let length = message.len() * as_offset(part) / 1000;
            self.hub.writer.finish(at, message.len(), length);
            self.written.push(length);
        }
        self.publish();
    }

    fn packed_room(&mut self, size: u64) {
        let longest = self.length(size);
        let mut left = self.hub.writer.packed_room(longest as u64).unwrap();
        let mut set = Vec::new();
        while left >= packed_size(longest as u64) {
            let length = [longest, longest / 3, longest.saturating_sub(9)][set.len() % 3];
            set.push(bytes(self.written.len() as u64 + 1, length));
            self.written.push(length);
            left -= packed_size(length as u64);
        }
        let packed = packed(set.iter().map(Vec::as_slice));
        let taken = self.hub.writer.push_packed(&packed, longest as u64).unwrap();
        assert_eq!(taken, packed.len(), "of at most {longest} bytes each");
        self.publish();
    }

    fn join(&mut self, delivery: Delivery, from: StartFrom) {
        if self.cases.len() >= 6 {
            return;
        }
        let (number, reader) = self.hub.join(delivery, from);
        let began = reader.sequence();
        match from {
            StartFrom::Now => assert_eq!(began, self.published),
            StartFrom::Latest => assert_eq!(began, self.published.saturating_sub(1)),
            StartFrom::Oldest => self.held_at_least(began, reader.position()),
        }
        assert_eq!(reader.limit.lost, 0);
        self.cases.push(Case {
            number,
            reader,
            delivery,
            began,
            handed_out: 0,
            last: None,
            evicted: false,
        });
    }

    /// Checks the guarantee of 'oldest'.
    fn held_at_least(&self, began: u64, position: u64) {
        if began == 0 {
            return;
        }
        let capacity = self.hub.capacity;
        let short = self.written.iter().all(|length| (*length as u64) < capacity / 16);
        let least = if short { capacity * 3 / 4 } else { capacity / 2 };
        // Data that is written and not published takes up room as well.
        let unpublished: u64 = self.written[as_offset(self.published)..]
            .iter()
            .map(|length| packed_size(*length as u64) + 64)
            .sum();
        let held = self.word(layout::TAIL) - position;
        assert!(
            held + unpublished * 2 + 64 >= least,
            "{held} of {capacity} bytes, and {unpublished} are not published"
        );
    }

    fn leave(&mut self, which: Which) {
        if which < self.cases.len() {
            let case = self.cases.swap_remove(which);
            self.hub.readers.release(case.number);
        }
    }

    /// Evicts a reader: it no longer delays the writer, and notices when it is overtaken.
    fn evict(&mut self, which: Which) {
        if let Some(case) = self.cases.get_mut(which)
            && !case.evicted
        {
            self.hub.readers.release(case.number);
            case.evicted = true;
            // It is no longer in the list.
            case.number = 0;
        }
    }

    fn end(&mut self, which: Which) {
        let (tail, published) = (self.word(layout::TAIL), self.published);
        if let Some(case) = self.cases.get_mut(which).filter(|case| case.last.is_none()) {
            case.reader.end_at(tail);
            case.last = Some(published);
        }
    }

    fn settle(&mut self, which: Which) {
        self.evict(which);
        let published = self.published;
        if let Some(case) = self.cases.get_mut(which) {
            case.reader.freeze_tail(super::OwnRegion::detached());
            case.last = case.last.or(Some(published));
        }
    }

    /// Checks the messages that a reader was handed, or that it may find none.
    fn check(&mut self, which: Which, found: crate::error::Result<Vec<Vec<u8>>>, all: bool) {
        let published = self.published;
        let floor = self.word(layout::FLOOR);
        let case = &mut self.cases[which];
        let last = case.last.unwrap_or(published);
        let messages = match found {
            Ok(messages) => messages,
            Err(crate::Error::Evicted) => {
                assert!(case.evicted && case.delivery == Delivery::Reliable);
                assert!(case.reader.position() < floor);
                self.cases.swap_remove(which);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let before = case.began + case.handed_out + case.reader.limit.lost;
        case.handed_out += messages.len() as u64;
        assert_eq!(
            case.reader.sequence(),
            before + messages.len() as u64,
            "handed out and lost"
        );
        // The messages of one call are consecutive, unless the reader was overtaken within the call, which
        // does not happen here.
        let first = case.reader.sequence() + 1 - messages.len() as u64;
        for (number, message) in (first..).zip(&messages) {
            assert!(
                *message == bytes(number, self.written[as_offset(number) - 1]),
                "message {number}"
            );
            assert!(number <= last);
        }
        match case.delivery {
            Delivery::Reliable => assert_eq!(case.reader.limit.lost, 0),
            Delivery::BestEffort => {}
            Delivery::Latest => {
                assert!(messages.len() <= 1, "the last is one");
                assert!(messages.is_empty() || case.reader.sequence() == last);
            }
        }
        if all && messages.is_empty() && (case.last.is_none() || case.delivery == Delivery::Reliable) {
            assert_eq!(case.reader.sequence(), last, "there is nothing more");
        }
        if all && messages.is_empty() {
            assert!(!case.reader.available().unwrap(), "it does not say that there is");
        }
    }

    fn receive(&mut self, which: Which, count: usize) {
        for _ in 0..count {
            let Some(case) = self.cases.get_mut(which) else {
                return;
            };
            let mut into = vec![0; as_offset(self.hub.capacity)];
            let found = case.reader.receive(&mut into).map(|length| {
                let message = length.map(|length| into[..length].to_vec());
                message.into_iter().collect()
            });
            case.reader.publish();
            self.check(which, found, true);
        }
    }

    fn visit(&mut self, which: Which, max: usize) {
        let Some(case) = self.cases.get_mut(which) else {
            return;
        };
        let mut visited = Vec::new();
        let count = case.reader.visit(max, |view| visited.push(seen(&view)));
        let found = count.map(|count| {
            assert_eq!(count, visited.len());
            assert!(count <= max);
            visited
        });
        self.check(which, found, max > 0);
    }

    fn pull(&mut self, which: Which, room: usize) {
        let Some(case) = self.cases.get_mut(which) else {
            return;
        };
        let mut into = vec![0; room];
        let found = match case.reader.pull_packed(&mut into) {
            Ok(Packed::Bytes(end)) => Ok(walk_packed(&into[..end])),
            Ok(Packed::Nothing) => Ok(Vec::new()),
            Ok(Packed::Large(size)) => {
                assert!(as_offset(packed_size(size as u64)) > room);
                return;
            }
            Err(error) => Err(error),
        };
        self.check(which, found, true);
    }

    fn size(&mut self, which: Which) {
        let Some(case) = self.cases.get_mut(which) else {
            return;
        };
        match case.reader.next_size() {
            Ok(Some(size)) => {
                let mut into = vec![0; size];
                let length = case.reader.receive(&mut into).unwrap();
                assert_eq!(length, Some(size));
                case.reader.publish();
                self.check(which, Ok(vec![into]), true);
            }
            Ok(None) => self.check(which, Ok(Vec::new()), true),
            Err(error) => self.check(which, Err(error), true),
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Push(size) => {
                let message = self.message(size);
                self.push(&message);
            }
            Call::Batch(size, count) => {
                for _ in 0..count {
                    let message = self.message(size);
                    if !self.push(&message) {
                        break;
                    }
                }
            }
            Call::Send(size) => {
                let message = self.message(size);
                if !self.push(&message) {
                    self.publish();
                    self.push(&message);
                }
                self.publish();
            }
            Call::Packed(sizes) => self.push_packed(sizes),
            Call::Reserve(size, commit) => self.reserve(size, commit),
            Call::Publish => self.publish(),
            Call::Ask(size) => {
                let length = self.length(size) as u64;
                let there = self.hub.writer.has_room(length).unwrap();
                assert!(there || !self.is_idle());
            }
            Call::PackedRoom(size) => self.packed_room(size),
            Call::Join(delivery, from) => self.join(delivery, from),
            Call::Leave(which) => self.leave(which),
            Call::Evict(which) => self.evict(which),
            Call::End(which) => self.end(which),
            Call::Settle(which) => self.settle(which),
            Call::Receive(which, count) => self.receive(which, count),
            Call::Visit(which, max) => self.visit(which, max),
            Call::Pull(which, room) => self.pull(which, room),
            Call::Size(which) => self.size(which),
        }
        self.is_sound();
    }

    /// Checks the invariants between two calls.
    fn is_sound(&mut self) {
        let (floor, tail) = (self.word(layout::FLOOR), self.word(layout::TAIL));
        assert!(self.floor <= floor && floor <= tail && tail - floor <= self.hub.capacity);
        self.floor = floor;
        for case in &self.cases {
            if case.delivery == Delivery::Reliable && !case.evicted {
                let head = self.hub.readers.position(case.number).unwrap();
                assert!(floor <= head, "the floor is {floor}, and a head {head}");
                assert!(self.hub.readers.lowest_position().unwrap() <= head);
            }
        }
        assert!(self.hub.writer.violation().is_none(), "no reader lies");
    }

    /// Reads everything that is left.
    fn finish(mut self) {
        self.publish();
        while !self.cases.is_empty() {
            let before = self.cases.len();
            self.visit(0, usize::MAX);
            if self.cases.len() == before {
                self.receive(0, 1);
                self.leave(0);
            }
        }
        self.call(Call::Send(1_000_000));
    }
}

proptest! {
    #![proptest_config(cases(1, 4))]

    #[test]
    fn any_call_sequence_keeps_each_delivery_guarantee(
        doublings in 0..=if cfg!(miri) { 0 } else { 4_u32 },
        calls in prop::collection::vec(call(), 0..if cfg!(miri) { 60 } else { 300 }),
    ) {
        let mut rig = Rig::new(SMALLEST << doublings);
        for call in calls {
            rig.call(call);
        }
        rig.finish();
    }
}

/// The second reservation exceeds the rest of the lap, so it leaves padding there, after the mark that the
/// first one has set.
#[test]
fn latest_message_is_found_before_cancelled_padding() {
    let calls = [
        Call::Push(1_000_000),
        Call::Push(1_000_000),
        Call::Packed(vec![999_992, 552]),
        Call::Push(1_000_000),
        Call::Packed(vec![9, 999_989]),
        Call::Push(1_000_000),
        Call::Push(1_000_000),
        Call::Push(543_000),
        Call::Packed(vec![35, 30, 999_999, 20, 175, 10, 45]),
        Call::Packed(vec![25, 650_000, 75, 60, 999_995, 70, 175, 40, 25]),
        Call::Join(Delivery::Latest, StartFrom::Oldest),
        Call::Send(999_999),
        Call::Reserve(19, None),
        Call::Reserve(999_978, None),
    ];
    let mut rig = Rig::new(SMALLEST);
    for call in calls {
        rig.call(call);
    }
    rig.finish();
}
