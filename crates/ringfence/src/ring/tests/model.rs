//! Random calls at both ends, checked against a queue that predicts each result.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{Pair, SMALLEST, bytes, packed, pair};
use crate::{
    region::copy::Readable,
    region::layout::{self, as_offset},
    ring::message::Progress,
    ring::read::{Packed, WantedLengths},
    ring::record::{Tag, WHOLE, packed_size, padded, record_size},
    testing::chance::cases,
};

/// A size, expressed independently of the capacity.
#[derive(Debug, Clone, Copy)]
enum Size {
    Small(u64),
    /// This many bytes less than half the ring.
    NearHalf(u64),
    /// Thousandths of half the ring.
    OfHalf(u64),
    /// Thousandths of the ring, more than half: such a message is sent in fragments.
    Rings(u64),
}

impl Size {
    fn of(self, capacity: u64) -> usize {
        as_offset(match self {
            Self::Small(size) => size,
            Self::NearHalf(less) => capacity / 2 - less,
            Self::OfHalf(part) => capacity / 2 * part / 1000,
            Self::Rings(part) => capacity * part / 1000,
        })
    }
}

#[derive(Debug, Clone)]
enum Call {
    /// Written, but not published.
    Push(Size),
    Send(Size),
    Packed(Vec<Size>),
    Part(Size),
    /// Reserved, and then committed with that many thousandths of it, or cancelled.
    Reserve(Size, Option<usize>),
    Batch(Vec<Size>),
    Publish,
    HasRoom(Size),
    Receive,
    Gather,
    Drain(usize),
    Pull(usize),
    Hold(usize),
    NextSize,
    Count,
}

/// Derives a size that is sent in one piece from two numbers.
fn at_once(shape: u64, amount: u64) -> Size {
    match shape % 9 {
        0..=5 => Size::Small(amount % 80),
        6 => Size::NearHalf(amount % 24),
        _ => Size::OfHalf(amount),
    }
}

fn any_size(shape: u64, amount: u64) -> Size {
    // Under Miri, one and a half rings must suffice.
    let max = if cfg!(miri) { 1 } else { 9 };
    match shape % 3 {
        0 => at_once(shape / 3, amount),
        _ => Size::Rings(500 + amount * (shape % max + 1)),
    }
}

/// One strategy of plain numbers instead of one for each kind of call: Miri would spend its time in
/// proptest's choices.
fn call() -> impl Strategy<Value = Call> {
    (0..31_u8, 0..1000_u64, 0..=1000_u64, 0..12_usize, 0..9000_usize).prop_map(
        |(kind, shape, amount, count, room)| {
            let size = at_once(shape, amount);
            let many = || {
                (0..count as u64)
                    .map(|index| at_once(shape + index * 5, amount * (index + 1) % 1001))
                    .collect()
            };
            match kind {
                0..=3 => Call::Receive,
                4..=6 => Call::Push(size),
                7..=9 => Call::Send(size),
                10..=12 => Call::Part(any_size(shape, amount)),
                13..=15 => Call::Gather,
                16..=17 => Call::Packed(many()),
                18..=19 => Call::Batch(many()),
                20..=21 => Call::Reserve(size, (count > 3).then_some(room % 1001)),
                22..=23 => Call::Drain(count * 2),
                24..=26 => Call::Pull(room),
                27..=28 => Call::Hold(room),
                29 => Call::HasRoom(any_size(shape, amount)),
                _ if count < 5 => Call::Publish,
                _ if count < 9 => Call::NextSize,
                _ => Call::Count,
            }
        },
    )
}

/// A message that is being sent.
struct Sent {
    bytes: Vec<u8>,
    /// The number of its bytes that are in the ring, or were.
    written: usize,
    read: usize,
}

/// The expected behaviour of the ring, modelled without one.
struct Model {
    capacity: u64,
    queue: VecDeque<Sent>,
    /// The number of queued messages that the reader can see.
    visible: usize,
    tail: u64,
    published: u64,
    /// Messages that were read, and their bytes.
    counted: (u64, u64),
}

impl Model {
    /// Returns the padding needed before a record: except for the overhang, a record never wraps.
    fn padding(&self, size: usize) -> u64 {
        let rest = self.capacity - self.tail % self.capacity;
        if record_size(self.tail, size as u64) > rest + layout::OVERHANG as u64 {
            rest
        } else {
            0
        }
    }

    /// Returns the tail after a record with this many bytes.
    fn behind(&self, size: usize) -> u64 {
        let at = self.tail + self.padding(size);
        at + record_size(at, size as u64)
    }

    fn fits(&self, size: usize, head: u64) -> bool {
        self.behind(size) - head <= self.capacity
    }

    fn wrote(&mut self, size: usize) {
        self.tail = self.behind(size);
    }

    fn whole(&mut self, bytes: Vec<u8>) {
        let written = bytes.len();
        self.wrote(written);
        self.queue.push_back(Sent {
            bytes,
            written,
            read: 0,
        });
    }

    fn publish(&mut self) {
        self.visible = self.queue.len();
        self.published = self.tail;
    }

    /// Returns the message of which something can be read, if there is one.
    fn front(&self) -> Option<&Sent> {
        let front = self.queue.front().filter(|_| self.visible > 0)?;
        let whole = front.written == front.bytes.len() && front.read == 0;
        (whole || front.read < front.written).then_some(front)
    }

    fn pop(&mut self) {
        let read = self.queue.pop_front().expect("a message");
        self.visible -= 1;
        self.counted.0 += 1;
        self.counted.1 += read.bytes.len() as u64;
    }

    /// Whether the last message is in fragments and its end has not been written.
    fn under_way(&self) -> bool {
        self.queue
            .back()
            .is_some_and(|last| last.written < last.bytes.len())
    }
}

struct Rig {
    pair: Pair,
    model: Model,
    /// The buffer of the message whose fragments are being read.
    gathering: Vec<u8>,
    number: usize,
}

impl Rig {
    fn new(capacity: u64) -> Self {
        Self {
            pair: pair(capacity, capacity * 10),
            model: Model {
                capacity,
                queue: VecDeque::new(),
                visible: 0,
                tail: 0,
                published: 0,
                counted: (0, 0),
            },
            gathering: Vec::new(),
            number: 0,
        }
    }

    fn message(&mut self, size: Size) -> Vec<u8> {
        self.number += 1;
        bytes(self.number, size.of(self.model.capacity))
    }

    /// Returns the reader's position as far as the producer can know it.
    fn head(&self) -> u64 {
        self.pair
            .producer
            .room
            .peer
            .load(layout::HEAD, std::sync::atomic::Ordering::Acquire)
    }

    fn push(&mut self, message: Vec<u8>) -> bool {
        let fits = self.model.fits(message.len(), self.head());
        assert_eq!(
            self.pair.producer.push(&message, Tag::NONE).unwrap(),
            fits,
            "{} bytes",
            message.len()
        );
        if fits {
            self.model.whole(message);
        }
        fits
    }

    fn publish(&mut self) {
        let moved = self.model.published != self.model.tail;
        assert_eq!(self.pair.producer.publish(), moved);
        self.model.publish();
    }

    fn push_packed(&mut self, sizes: Vec<Size>) {
        let messages: Vec<_> = sizes.into_iter().map(|size| self.message(size)).collect();
        let packed = packed(messages.iter().map(Vec::as_slice));
        let taken = self
            .pair
            .producer
            .push_packed(&packed, self.pair.producer.largest_record())
            .unwrap();
        let head = self.head();
        let mut left = taken;
        for message in messages {
            let record = as_offset(packed_size(message.len() as u64));
            let fits = self.model.fits(message.len(), head);
            assert_eq!(
                left > 0,
                fits,
                "as many as fit, and {left} of {taken} bytes are left"
            );
            if !fits {
                break;
            }
            left = left.checked_sub(record).expect("whole records");
            self.model.whole(message);
        }
        assert_eq!(left, 0);
        self.publish();
    }

    /// Starts or continues a message that may be sent in fragments.
    fn push_part(&mut self, size: Size) {
        let capacity = self.model.capacity;
        if !self.model.under_way() {
            let bytes = self.message(size);
            if bytes.len() as u64 <= capacity / 2 {
                let fits = self.model.fits(bytes.len(), self.head());
                let progress = self.pair.producer.push_part(&bytes, Tag::NONE, 0).unwrap();
                assert_eq!(progress, if fits { Progress::Whole } else { Progress::Part(0) });
                if fits {
                    self.model.whole(bytes);
                }
                self.model.publish();
                return;
            }
            self.model.queue.push_back(Sent {
                bytes,
                written: 0,
                read: 0,
            });
        }
        let head = self.head();
        let mut sent = self.model.queue.pop_back().expect("the message under way");
        let progress = self
            .pair
            .producer
            .push_part(&sent.bytes, Tag::NONE, sent.written)
            .unwrap();
        let written = match progress {
            Progress::Whole => sent.bytes.len(),
            Progress::Part(written) => written,
        };
        // Fragments are an eighth of the ring. The first one is preceded by the size of the whole message.
        let began = sent.written;
        while sent.written < sent.bytes.len() {
            let prefix = if sent.written == 0 { 8 } else { 0 };
            let count = (sent.bytes.len() - sent.written).min(as_offset(capacity / 8) - prefix);
            if !self.model.fits(prefix + count, head) {
                break;
            }
            self.model.wrote(prefix + count);
            sent.written += count;
        }
        assert_eq!(written, sent.written, "of {} bytes", sent.bytes.len());
        let wrote = sent.written > began;
        if sent.written > 0 {
            self.model.queue.push_back(sent);
        }
        if wrote {
            self.model.publish();
        }
    }

    fn reserve(&mut self, size: Size, commit: Option<usize>) {
        let message = self.message(size);
        let fits = self.model.fits(message.len(), self.head());
        let Some(at) = self.pair.producer.claim(message.len() as u64).unwrap() else {
            assert!(!fits);
            return;
        };
        assert!(fits);
        // The padding stays, whether the reservation is committed or cancelled.
        self.model.tail += self.model.padding(message.len());
        let began = self.model.tail;
        // SAFETY: the producer has just claimed the range, and claims nothing else before this borrow ends.
        let room = unsafe { self.pair.producer.own_mut().claimed(at, message.len()) };
        room.copy_from_slice(&message);
        if let Some(part) = commit {
            let length = message.len() * part / 1000;
            self.pair.producer.finish(at, message.len(), length);
            self.model.whole(message[..length].to_vec());
            // It starts where the full-length record would have started.
            let size = |length: usize| record_size(began, length as u64) - padded(length as u64);
            self.model.tail += size(message.len()) - size(length);
            self.publish();
        }
    }

    fn receive(&mut self) {
        if self.pair.consumer.is_gathering() {
            return self.gather();
        }
        let record = self.pair.consumer.next_record().unwrap();
        let Some(front) = self.model.front() else {
            assert_eq!(record, None);
            return;
        };
        let record = record.expect("a message");
        if record.flags != WHOLE {
            return self.gather();
        }
        let mut into = vec![0; record.length];
        self.pair.consumer.peer.copy_out(record.at, &mut into);
        assert!(into == front.bytes, "the oldest message, byte by byte");
        self.pair.consumer.deliver(record);
        self.pair.consumer.publish();
        self.model.pop();
    }

    fn gather(&mut self) {
        let expected = self.model.front().map(|front| front.bytes.len());
        let size = self.pair.consumer.next_size().unwrap();
        if !self.pair.consumer.is_gathering() {
            assert_eq!(size, expected);
            self.gathering = vec![0; size.unwrap_or(0)];
        }
        let gathered = self.pair.consumer.gather(&mut self.gathering).unwrap();
        let Some(front) = self.model.queue.front_mut().filter(|_| self.model.visible > 0) else {
            assert_eq!(gathered, None);
            assert!(!self.pair.consumer.is_gathering(), "nothing is there");
            return;
        };
        front.read = front.written;
        if front.written < front.bytes.len() {
            assert_eq!(gathered, None);
            assert!(self.pair.consumer.is_gathering(), "part of it is there");
            assert_eq!(self.pair.consumer.gathered_so_far(), front.written);
            return;
        }
        self.pair.consumer.count();
        assert_eq!(gathered, Some(front.bytes.len()));
        assert!(self.gathering == front.bytes, "the message as it was sent");
        self.model.pop();
    }

    fn drain(&mut self, max: usize) {
        let mut seen = 0;
        while seen < max {
            let Some(record) = self.pair.consumer.next_record().unwrap() else {
                assert!(self.model.front().is_none());
                break;
            };
            if record.flags != WHOLE {
                self.gather();
                seen += 1;
                continue;
            }
            let model = &mut self.model;
            let visited = self
                .pair
                .consumer
                .visit_in_row(record, max - seen, |peer, record| {
                    let mut into = vec![0; record.length];
                    peer.copy_out(record.at, &mut into);
                    assert!(
                        into == model.front().expect("a message").bytes,
                        "the oldest message"
                    );
                    model.pop();
                });
            self.pair.consumer.count();
            assert!((1..=max - seen).contains(&visited));
            seen += visited;
        }
        self.pair.consumer.publish();
    }

    fn pull(&mut self, room: usize) {
        let mut into = vec![0; room];
        let pulled = self.pair.consumer.pull_packed(&mut into).unwrap();
        self.pair.consumer.count();
        if let Some(end) = self.pulled(pulled, room, usize::MAX) {
            self.pop_packed(&into[..end]);
        }
    }

    /// Pulls messages up to a length, pulls all but the first again, and only then releases the room to the
    /// producer.
    fn hold(&mut self, room: usize) {
        // The receiver asks for no records before a fragmented message is complete.
        if self.pair.consumer.is_gathering() {
            return;
        }
        let wanted = WantedLengths {
            min: 0,
            max: room as u64 / 2,
            fresh: true,
            calls: false,
        };
        let mut into = vec![0; room];
        let pulled = self.pair.consumer.pull_retained(&mut into, &wanted).unwrap();
        self.pair.consumer.count();
        let published = self.pair.consumer.published;
        let Some(end) = self.pulled(pulled, room, room / 2) else {
            return;
        };
        let first = as_offset(packed_size(
            self.model.front().expect("a message").bytes.len() as u64
        ));
        assert!(
            end <= first.max(as_offset(self.model.capacity / 4)),
            "it holds little of the ring"
        );
        let mut again = vec![0; end - first];
        if end > first {
            let pulled = self.pair.consumer.pull_again(&mut again, first).unwrap();
            self.pair.consumer.count();
            assert_eq!(pulled, Packed::Bytes(again.len()));
        }
        assert_eq!(
            self.pair.consumer.published, published,
            "the head is not published yet"
        );
        self.pop_packed(&[&into[..first], &again].concat());
        self.pair.consumer.publish();
    }

    /// Checks the result of a pull of messages up to `longest`. Returns the number of bytes of records.
    fn pulled(&self, pulled: Packed, room: usize, longest: usize) -> Option<usize> {
        let fragments = self.pair.consumer.is_gathering();
        let Some(front) = self.model.front() else {
            assert_eq!(pulled, Packed::Nothing);
            return None;
        };
        let longest = longest.min(as_offset(self.model.capacity / 2));
        let size = front.bytes.len();
        if fragments || size > longest || as_offset(packed_size(size as u64)) > room {
            assert_eq!(pulled, Packed::Large(size));
            return None;
        }
        let Packed::Bytes(end) = pulled else {
            panic!("{pulled:?}")
        };
        assert!(end > 0 && end <= room);
        Some(end)
    }

    /// Removes the oldest messages, given as records.
    fn pop_packed(&mut self, records: &[u8]) {
        let mut at = 0;
        while at < records.len() {
            let message = &self.model.front().expect("no more than was sent").bytes;
            let record = as_offset(packed_size(message.len() as u64));
            let expected = packed([message.as_slice()]);
            assert!(
                records[at..at + 8 + message.len()] == expected[..8 + message.len()],
                "header and bytes"
            );
            at += record;
            self.model.pop();
        }
        assert_eq!(at, records.len(), "whole records");
    }

    fn call(&mut self, call: Call) {
        let sends = matches!(
            call,
            Call::Push(_) | Call::Send(_) | Call::Packed(_) | Call::Reserve(..) | Call::Batch(_)
        );
        if sends && self.model.under_way() {
            // Nothing else may be sent before the unfinished message.
            return self.push_part(Size::Small(0));
        }
        match call {
            Call::Push(size) => {
                let message = self.message(size);
                self.push(message);
            }
            Call::Send(size) => {
                let message = self.message(size);
                if self.push(message) {
                    self.publish();
                }
            }
            Call::Packed(sizes) => self.push_packed(sizes),
            Call::Part(size) => self.push_part(size),
            Call::Reserve(size, commit) => self.reserve(size, commit),
            Call::Batch(sizes) => {
                for size in sizes {
                    let message = self.message(size);
                    if !self.push(message) {
                        break;
                    }
                }
                self.publish();
            }
            Call::Publish => self.publish(),
            Call::HasRoom(size) => {
                let max = as_offset(self.model.capacity / 2);
                let size = size.of(self.model.capacity);
                let fits = self.model.fits(size.min(max), self.head());
                assert_eq!(self.pair.producer.has_room(size as u64).unwrap(), fits);
            }
            Call::Receive => self.receive(),
            Call::Gather => self.gather(),
            Call::Drain(max) => self.drain(max),
            Call::Pull(room) => self.pull(room),
            Call::Hold(room) => self.hold(room),
            Call::NextSize => {
                let size = self.pair.consumer.next_size().unwrap();
                if self.pair.consumer.is_gathering() {
                    assert_eq!(size, Some(self.gathering.len()));
                } else {
                    assert_eq!(size, self.model.front().map(|front| front.bytes.len()));
                }
            }
            Call::Count => assert_eq!(self.pair.consumer.counted(), self.model.counted),
        }
        let own = self.pair.producer.own_mut();
        let tail = own.load(layout::TAIL, std::sync::atomic::Ordering::Acquire);
        assert_eq!(tail, self.model.published, "what the reader can see");
        assert_eq!(self.pair.producer.ring.tail, self.model.tail, "what is written");
        assert!(self.head() <= tail && self.model.tail - self.head() <= self.model.capacity);
    }

    /// Sends and reads everything unfinished, and checks that the ring is then empty and usable.
    fn finish(mut self) {
        if !self.model.under_way() {
            self.publish();
        }
        let mut rounds = 0;
        while self.model.under_way() || !self.model.queue.is_empty() {
            if self.model.under_way() {
                self.push_part(Size::Small(0));
            }
            self.receive();
            rounds += 1;
            assert!(rounds < 100_000, "it comes to an end");
        }
        self.receive();
        assert_eq!(self.head(), self.model.tail, "all of it is free again");
        assert_eq!(self.pair.consumer.counted(), self.model.counted);
        self.call(Call::Send(Size::NearHalf(0)));
        assert_eq!(self.model.queue.len(), 1, "half a ring fits an empty one");
        self.receive();
    }
}

proptest! {
    #![proptest_config(cases(1, 4))]

    #[test]
    fn any_call_sequence_preserves_messages(
        doublings in 0..=if cfg!(miri) { 0 } else { 4_u32 },
        calls in prop::collection::vec(call(), 0..if cfg!(miri) { 60 } else { 250 }),
    ) {
        let mut rig = Rig::new(SMALLEST << doublings);
        for call in calls {
            rig.call(call);
        }
        rig.finish();
    }
}
