//! Both ends of a channel in one process, with calls in every order. Even if a program drops, forgets or
//! mixes up the operations that it has started, its peer receives whole messages in order, and never a
//! corrupt ring.

mod answers;
mod ends;
mod many;
mod waits;

use std::{
    collections::VecDeque,
    mem,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{prelude::*, test_runner::Config};

use crate::{
    channel::Channel,
    channel::end::ChannelState,
    channel::receiver::Receiver,
    channel::reserve::Reserved,
    channel::sender::Sender,
    error::{Error, Result},
    options::Options,
    region::copy::Readable,
    region::layout,
    region::own::OwnRegion,
    ring::message::{Message, Progress},
    ring::read::Packed,
    ring::record::{HEADER, packed_size},
    testing::parts::{self, without_a_peer},
};

const CAPACITY: u64 = 4096;
const LONGEST: u64 = 20_000;

fn pair(options: &Options) -> (Channel, Channel) {
    pair_of(LONGEST, options)
}

/// Neither end accepts a longer message.
fn pair_of(longest: u64, options: &Options) -> (Channel, Channel) {
    parts::pair(CAPACITY, longest, options)
}

fn bytes(number: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((number * 131 + at * 7) % 251).expect("below 251"))
        .collect()
}

#[test]
fn reserved_items_are_sent_as_one_message() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let mut room = sender.reserve_items::<[u32; 3]>(5).expect("open").expect("room");
    assert_eq!(room.len(), 5);
    for (number, item) in (0..).zip(room.iter_mut()) {
        *item = [number, 7, !number];
    }
    assert_eq!(room[4], [4, 7, !4]);
    room.commit(3).expect("fewer than there is room for");
    let mut found = Vec::new();
    let visit = |message: Message<'_>| {
        assert!(message.items::<u64>().is_none(), "36 bytes are no words");
        found.extend(message.items::<[u32; 3]>().expect("a run"));
    };
    assert_eq!(receiver.receive_each(visit, 10).expect("open"), 1);
    assert_eq!(found, [[0, 7, !0], [1, 7, !1], [2, 7, !2]]);
    for many in [usize::try_from(CAPACITY).expect("small"), usize::MAX] {
        let error = sender
            .reserve_items::<[u32; 3]>(many)
            .expect_err("more than half the ring");
        assert!(matches!(error, Error::MessageTooLarge { .. }), "{error}");
    }
    for many in [6, usize::MAX] {
        let room = sender.reserve_items::<[u32; 3]>(5).expect("open").expect("room");
        let error = room.commit(many).expect_err("more than was reserved");
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
    assert_eq!(
        receiver.receive_each(|_| (), 10).expect("open"),
        0,
        "nothing else was sent"
    );
}

/// Checking a ring that was empty before takes a shortcut. It counts as a check, and every few times it is a
/// full one.
#[test]
fn polling_reader_gets_rounds_messages_and_end() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, mut back), (_unwritten, mut receiver)) = (one.split(), other.split());
    let mut into = [0; 8];
    for number in 0..20_u64 {
        for _ in 0..3 {
            receiver.begin_round();
            assert!(!receiver.is_round_over());
            assert_eq!(receiver.try_receive(&mut into).expect("open"), None);
            assert!(receiver.is_round_over());
            assert_eq!(receiver.receive_each(|_| (), 9).expect("open"), 0);
        }
        assert!(sender.try_send(&number.to_le_bytes()).expect("open"));
        if number % 2 == 0 {
            assert_eq!(receiver.try_receive(&mut into).expect("open"), Some(8));
        } else {
            let visit = |message: Message<'_>| _ = message.copy_to(&mut into);
            assert_eq!(receiver.receive_each(visit, 9).expect("open"), 1);
        }
        assert_eq!(u64::from_le_bytes(into), number);
    }
    back.close();
    drop((sender, back));
    for checks in 0.. {
        if receiver.close_reason().is_some() {
            break;
        }
        assert!(checks < 3 * 4096, "the end of the line is detected");
        assert_eq!(receiver.try_receive(&mut into).expect("nothing is lost"), None);
    }
    assert!(receiver.is_ended().expect("a peer that has gone"));
}

/// Counts the non-zero bytes of a ring.
fn left(region: &OwnRegion) -> usize {
    let mut ring = vec![0; usize::try_from(CAPACITY).expect("small") + layout::OVERHANG];
    region.copy_out(layout::DATA, &mut ring);
    ring.iter().filter(|byte| **byte != 0).count()
}

/// A sending half, the memory that it writes, and a function that simulates an alarm.
fn exposable() -> (Sender, OwnRegion, impl Fn()) {
    let (one, _other) = pair(&Options::new());
    let (sender, _unread) = one.split();
    let writing = sender.writing.as_ref().expect("open");
    let (region, shared) = (writing.ring.own().clone(), Arc::clone(&sender.shared));
    (sender, region, move || shared.finish(ChannelState::Exposed))
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn alarm_wipes_a_batch_except_the_borrowed_slice() {
    let (mut sender, region, expose) = exposable();
    let mut batch = sender.batch().expect("open");
    batch.reserve(2000).expect("open").expect("room").fill(7);
    let room = batch.reserve(64).expect("open").expect("room");
    room.fill(7);
    expose();
    assert_eq!((&room[..], left(&region)), (&[7; 64][..], 64));
    assert!(matches!(batch.reserve(64), Err(Error::ObjectExposed(_))));
    assert_eq!(left(&region), 0, "everything is wiped");
}

/// Memory that was handed out is no longer written once the next call is made, whatever that call finds.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn alarm_wipes_a_batch_that_found_no_room() {
    let (mut sender, region, expose) = exposable();
    let mut batch = sender.batch().expect("open");
    while let Some(room) = batch.reserve(1000).expect("open") {
        room.fill(7);
    }
    expose();
    assert_eq!(left(&region), 0);
    drop(batch);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn batch_writes_nothing_into_a_wiped_ring() {
    let (mut sender, region, expose) = exposable();
    let mut batch = sender.batch().expect("open");
    assert!(batch.push(&[7; 100]).expect("open"));
    expose();
    let pushed = batch.push(&[7; 100]);
    assert!(matches!(pushed, Err(Error::ObjectExposed(_))), "{pushed:?}");
    assert_eq!(left(&region), 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn batch_of_a_closed_channel_fails_with_closed() {
    let (one, _other) = pair(&Options::new());
    let (mut sender, mut receiver) = one.split();
    let mut batch = sender.batch().expect("open");
    receiver.close();
    assert!(matches!(batch.push(b"x"), Err(Error::Closed(_))));
    assert!(matches!(batch.reserve(1000), Err(Error::Closed(_))));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn panic_sends_no_reserved_message_of_a_batch() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let mut batch = sender.batch().expect("open");
        assert!(batch.push(b"pushed").expect("open"));
        batch.reserve(64).expect("open").expect("room").fill(1);
        let room = batch.reserve(64).expect("open").expect("room");
        room[..32].fill(2);
        panic!("while a message is written");
    }));
    assert!(panic.is_err());
    assert!(sender.try_send(b"next").expect("open"));
    for wanted in [&b"pushed"[..], &[1; 64], b"next"] {
        assert_eq!(receiver.try_receive_vec().expect("open").as_deref(), Some(wanted));
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn batch_of_a_destructor_is_sent_while_a_panic_unwinds() {
    struct Goodbye(Sender);
    impl Drop for Goodbye {
        fn drop(&mut self) {
            let mut batch = self.0.batch().expect("open");
            batch
                .reserve(3)
                .expect("open")
                .expect("room")
                .copy_from_slice(b"bye");
        }
    }
    let (one, other) = pair(&Options::new());
    let ((sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _goodbye = Goodbye(sender);
        panic!("of the program");
    }));
    assert!(panic.is_err());
    assert_eq!(
        receiver.try_receive_vec().expect("a message").as_deref(),
        Some(&b"bye"[..])
    );
}

/// The peer sends as fast as this side visits.
#[test]
fn drain_visits_only_messages_present_at_its_start() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let mut drain = |sender: &mut Sender, max| {
        let mut visits = 0;
        let visit = |_: Message<'_>| {
            visits += 1;
            // The limit ends a drain that would run forever, and fails the test.
            if visits < 10_000 {
                assert!(sender.try_send(&[0; 8]).expect("it is open"));
            }
        };
        let drained = receiver.receive_each(visit, max).expect("it is open");
        assert_eq!(drained, visits);
        drained
    };
    for _ in 0..5 {
        assert!(sender.try_send(&[0; 8]).expect("it is open"));
    }
    assert_eq!(drain(&mut sender, usize::MAX), 5);
    assert_eq!(drain(&mut sender, usize::MAX), 5);
    // At that moment three are known and two have been visited.
    assert_eq!(drain(&mut sender, 2), 2);
    assert_eq!(drain(&mut sender, usize::MAX), 3 + 2 + 3);
}

/// The operation that the sending half has started, tracked independently of it.
enum Pending {
    Nothing,
    Reserved(Reserved),
    /// A reservation that no call can cancel.
    Forgotten,
    Message(Vec<u8>, usize),
    Ended,
}

struct Model {
    sender: Sender,
    receiver: Receiver,
    /// Kept alive, since dropping a half ends its direction.
    _others: (Receiver, Sender),
    pending: Pending,
    /// The messages that must arrive, in this order.
    sent: VecDeque<Vec<u8>>,
    /// A message that is being read with `receive_part`.
    reading: Option<Vec<u8>>,
    number: usize,
}

impl Model {
    fn new() -> Self {
        let (one, other) = pair(&Options::new());
        let ((sender, unread), (unwritten, receiver)) = (one.split(), other.split());
        Self {
            sender,
            receiver,
            _others: (unread, unwritten),
            pending: Pending::Nothing,
            sent: VecDeque::new(),
            reading: None,
            number: 0,
        }
    }

    /// Checks the result of a call that would send something new. `None` if the call was rightly refused.
    fn check_send<T>(&self, result: Result<T>) -> Option<T> {
        match (&self.pending, result) {
            (Pending::Nothing, Ok(value)) => Some(value),
            (Pending::Ended, Err(Error::Closed(_)))
            | (
                Pending::Reserved(_) | Pending::Forgotten | Pending::Message(..),
                Err(Error::InvalidArgument(_)),
            ) => None,
            (_, Ok(_)) => panic!("sent in the middle of something else"),
            (_, Err(error)) => panic!("{error}"),
        }
    }

    fn message(&mut self, length: usize) -> Vec<u8> {
        self.number += 1;
        bytes(self.number, length)
    }

    fn send(&mut self, kind: u8, amount: usize) {
        let short = amount % 2048;
        match kind {
            0 | 1 => {
                let message = self.message(short);
                let sent = self.sender.try_send(&message);
                if self.check_send(sent) == Some(true) {
                    self.sent.push_back(message);
                }
            }
            2..=4 => self.send_part(amount, kind == 4),
            5 => {
                let reserved = self.sender.reserve_detached(short);
                if let Some(Some(mut reserved)) = self.check_send(reserved) {
                    reserved.bytes().fill(0xaa);
                    self.pending = Pending::Reserved(reserved);
                }
            }
            6 | 7 => self.end_reservation(amount),
            8 => {
                let message = self.message(short);
                let reserved = self.sender.reserve(short).map(|reserved| {
                    let Some(mut reserved) = reserved else {
                        return false;
                    };
                    reserved.copy_from_slice(&message);
                    match amount % 2 {
                        0 => reserved
                            .commit(short)
                            .map_or_else(|error| panic!("{error}"), |()| true),
                        // Dropped or forgotten: for a reservation that borrows its sender, both are the same.
                        _ => false,
                    }
                });
                if self.check_send(reserved) == Some(true) {
                    self.sent.push_back(message);
                }
            }
            9 => {
                let messages: Vec<_> = (0..amount % 5).map(|n| self.message(n * short / 5)).collect();
                let pushed = self.sender.batch().map(|mut batch| {
                    let mut pushed = 0;
                    for message in &messages {
                        let room = if amount.is_multiple_of(2) {
                            batch.push(message).unwrap()
                        } else {
                            batch
                                .reserve(message.len())
                                .unwrap()
                                .map(|room| room.copy_from_slice(message))
                                .is_some()
                        };
                        if !room {
                            break;
                        }
                        pushed += 1;
                    }
                    if amount.is_multiple_of(7) {
                        // The range that was handed out last may still be written.
                        if !amount.is_multiple_of(2) && pushed == messages.len() {
                            pushed = pushed.saturating_sub(1);
                        }
                        mem::forget(batch);
                    }
                    pushed
                });
                if let Some(pushed) = self.check_send(pushed) {
                    self.sent.extend(messages.into_iter().take(pushed));
                }
            }
            10 => {
                let messages: Vec<_> = (0..=amount % 5).map(|n| self.message(n * short / 5)).collect();
                let packed = crate::ring::lies::packed(messages.iter().map(Vec::as_slice));
                let taken = self.sender.try_send_packed(&packed);
                if let Some(mut taken) = self.check_send(taken) {
                    for message in messages {
                        if taken == 0 {
                            break;
                        }
                        taken -= usize::try_from(packed_size(message.len() as u64)).unwrap();
                        self.sent.push_back(message);
                    }
                }
            }
            11 => {
                // These checks are allowed during an unfinished message, but not during any other started
                // operation.
                let checks = [
                    self.sender.has_room(short),
                    self.sender.arm(short),
                    self.sender.wait(short, Some(Instant::now())),
                ];
                self.sender.disarm();
                for check in checks {
                    match (&self.pending, check) {
                        (Pending::Nothing | Pending::Message(..), Ok(_))
                        | (Pending::Ended, Err(Error::Closed(_)))
                        | (Pending::Reserved(_) | Pending::Forgotten, Err(Error::InvalidArgument(_))) => {}
                        (_, other) => panic!("{other:?}"),
                    }
                }
            }
            _ => self.sender.poll_line(),
        }
    }

    fn send_part(&mut self, amount: usize, wrongly: bool) {
        let before = mem::replace(&mut self.pending, Pending::Nothing);
        let (message, written) = match before {
            Pending::Message(message, written) => (message, written),
            other => {
                self.pending = other;
                (self.message(amount % 20_001), 0)
            }
        };
        if wrongly {
            // Another length or another offset: refused, without any effect.
            let under_way = self.sender.under_way();
            let mut other = message.clone();
            other.push(1);
            for (message, written) in [(&other, written), (&message, written + 8)] {
                if written > 0 && message.len() as u64 <= LONGEST {
                    let found = self.sender.send_part(message, written);
                    assert!(
                        matches!(found, Err(Error::InvalidArgument(_) | Error::Closed(_))),
                        "{found:?}"
                    );
                }
            }
            assert_eq!(self.sender.under_way(), under_way);
            if under_way.is_some() {
                self.pending = Pending::Message(message, written);
            }
            return;
        }
        let result = self.sender.send_part(&message, written);
        match self.check_send(result) {
            Some(Progress::Whole) => self.sent.push_back(message),
            Some(Progress::Part(0)) => assert_eq!(written, 0),
            Some(Progress::Part(so_far)) => {
                assert!(so_far >= written);
                assert_eq!(self.sender.under_way(), Some(so_far));
                self.pending = Pending::Message(message, so_far);
            }
            None => {}
        }
    }

    fn end_reservation(&mut self, amount: usize) {
        let mut reserved = match mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Reserved(reserved) => reserved,
            other => {
                self.pending = other;
                return;
            }
        };
        let size = reserved.size();
        let length = amount % (size + 1);
        match amount % 9 {
            0..=3 => {
                let message = self.message(length);
                reserved.bytes()[..length].copy_from_slice(&message);
                self.sender.commit(reserved, length).unwrap();
                self.sent.push_back(message);
            }
            4 => {
                let found = self.sender.commit(reserved, size + 1);
                assert!(matches!(found, Err(Error::InvalidArgument(_))), "{found:?}");
            }
            5 => self.sender.cancel(reserved).unwrap(),
            6 => drop(reserved),
            7 => drop(std::thread::spawn(move || drop(reserved)).join()),
            _ => {
                mem::forget(reserved);
                self.pending = Pending::Forgotten;
            }
        }
    }

    fn expect_next(&mut self, message: &[u8]) {
        let wanted = self.sent.pop_front().expect("something was sent");
        assert!(
            message == wanted,
            "a message of {} bytes, not {}",
            wanted.len(),
            message.len()
        );
    }

    /// A reading call during another call's message is refused. Any other call returns what was sent.
    fn check_receive<T>(result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::InvalidArgument(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn receive(&mut self, kind: u8, amount: usize) {
        match kind {
            0..=2 => {
                let mut into = vec![0; if kind == 0 { amount } else { 20_000 }];
                let received = self.receiver.try_receive(&mut into);
                if let Some(Some(length)) = Self::check_receive(received) {
                    assert!(self.reading.is_none());
                    self.expect_next(&into[..length]);
                }
            }
            3 | 4 => {
                if self.reading.is_none() {
                    let size = self.receiver.next_size().unwrap();
                    self.reading = size.map(|size| vec![0; size]);
                }
                let Some(mut into) = self.reading.take() else {
                    return;
                };
                match self.receiver.receive_part(&mut into).unwrap() {
                    Progress::Whole => self.expect_next(&into),
                    Progress::Part(0) => {}
                    Progress::Part(_) => self.reading = Some(into),
                }
            }
            5 => {
                let mut into = vec![0; amount.max(16)];
                let packed = self.receiver.try_receive_packed(&mut into);
                if let Some(Packed::Bytes(bytes)) = Self::check_receive(packed) {
                    let mut at = 0;
                    while at < bytes {
                        let length = u32::from_le_bytes(into[at..at + 4].try_into().unwrap()) as usize;
                        let start = at + usize::try_from(HEADER).unwrap();
                        self.expect_next(&into[start..start + length]);
                        at += usize::try_from(packed_size(length as u64)).unwrap();
                    }
                }
            }
            6 => {
                let mut seen = Vec::new();
                let drained = self
                    .receiver
                    .receive_each(|message| seen.push(message.try_to_vec().unwrap()), amount % 9);
                if let Some(count) = Self::check_receive(drained) {
                    assert_eq!(count, seen.len());
                    for message in seen {
                        self.expect_next(&message);
                    }
                }
            }
            7 => drop(self.receiver.has_message().unwrap()),
            8 => {
                self.receiver.arm().unwrap();
                self.receiver.disarm();
            }
            9 => self.receiver.poll_line().unwrap(),
            _ => {
                let ended = self.receiver.is_ended().unwrap();
                assert!(!ended || (matches!(self.pending, Pending::Ended) && self.sent.is_empty()));
            }
        }
    }

    /// Whatever operation was left unfinished, the end is reported after everything that was sent.
    fn end(mut self) {
        self.sender.end();
        // The remainder of an unfinished message never arrives.
        self.pending = Pending::Ended;
        let mut into = vec![0; 20_000];
        for _ in 0..10_000 {
            if self.receiver.is_ended().unwrap() {
                assert!(self.sent.is_empty(), "{} are missing", self.sent.len());
                return;
            }
            if self.reading.is_some() {
                self.receive(3, 0);
            } else if let Some(length) = self.receiver.try_receive(&mut into).unwrap() {
                let message = into[..length].to_vec();
                self.expect_next(&message);
            }
        }
        panic!("the end is never reported");
    }
}

proptest! {
    #![proptest_config(Config::with_cases(if cfg!(miri) { 2 } else { 1500 }))]

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
    fn no_call_sequence_corrupts_the_ring(
        calls in prop::collection::vec((any::<bool>(), 0..13_u8, 0..30_000_usize), 1..200),
    ) {
        let mut model = Model::new();
        for (sends, kind, amount) in calls {
            if sends {
                model.send(kind, amount);
            } else {
                model.receive(kind, amount);
            }
        }
        model.end();
    }
}

/// Puts the first half of a message into the ring.
fn under_way(sender: &mut Sender, message: &[u8]) -> usize {
    let Progress::Part(written) = sender.send_part(message, 0).unwrap() else {
        panic!("the message fits the ring");
    };
    assert!(written > 0);
    written
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn other_sends_fail_during_a_partial_message() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let message = bytes(1, 10_000);
    let mut written = under_way(&mut sender, &message);
    let refused =
        |result: Result<()>| assert!(matches!(result, Err(Error::InvalidArgument(_))), "{result:?}");
    refused(sender.try_send(b"x").map(drop));
    refused(sender.send(b"x"));
    refused(
        sender
            .try_send_packed(&crate::ring::lies::packed([&b"x"[..]]))
            .map(drop),
    );
    refused(sender.reserve(1).map(drop));
    refused(sender.reserve_detached(1).map(drop));
    refused(sender.batch().map(drop));
    let mut into = vec![0; 10_000];
    while receiver.try_receive(&mut into).unwrap().is_none() {
        if let Progress::Part(more) = sender.send_part(&message, written).unwrap() {
            written = more;
        }
    }
    assert!(into == message);
    assert!(sender.try_send(b"x").unwrap());
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(1));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn maximum_busy_poll_waits_without_a_limit() {
    let (one, other) = pair(&Options::new().busy_poll(Duration::MAX));
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let waiting = std::thread::spawn(move || {
        let mut into = [0; 8];
        receiver.receive(&mut into).unwrap();
        into
    });
    sender.send(b"at last!").unwrap();
    assert_eq!(&waiting.join().unwrap(), b"at last!");
}

/// Returns the bytes of memory that a message in fragments occupies.
fn scratch(receiver: &Receiver) -> usize {
    receiver.ring.scratch.size()
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn fragment_buffer_grows_with_the_received_bytes() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let message = bytes(1, 20_000);
    let written = under_way(&mut sender, &message);
    let mut into = vec![0; 20_000];
    assert_eq!(receiver.try_receive(&mut into).unwrap(), None);
    assert!(
        (written..=2 * written).contains(&scratch(&receiver)),
        "{} for {written}",
        scratch(&receiver)
    );
    let mut written = written;
    while let Progress::Part(more) = sender.send_part(&message, written).unwrap() {
        written = more;
        assert_eq!(receiver.try_receive(&mut into).unwrap(), None);
    }
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(20_000));
    assert!(into == message);
    assert!(scratch(&receiver) <= 20_000);
}

#[cfg(feature = "tracing")]
mod traced {
    use std::sync::{Arc, Mutex};

    use tracing::{Event, Metadata, Subscriber, span};

    use super::*;
    use crate::{
        channel::end::ChannelState,
        region::{copy::Readable, layout},
    };

    /// Calls the closure for each event.
    struct OnEvent<F>(F);

    impl<F: Fn() + 'static> Subscriber for OnEvent<F> {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {
            (self.0)();
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
    fn ring_is_wiped_before_the_alarm_is_traced() {
        let (line, _peer) = crate::sys::socket::new_line().expect("a line");
        let (own, peer) = (OwnRegion::private(CAPACITY), OwnRegion::private(CAPACITY));
        let (mut sender, _receiver) =
            parts::end(line, &own, &peer, (CAPACITY, LONGEST), &Options::new()).split();
        assert!(sender.try_send(&[7; 100]).unwrap());
        let left = move || {
            let mut ring = [7; 4096];
            own.copy_out(layout::DATA, &mut ring);
            ring.iter().filter(|byte| **byte != 0).count()
        };
        assert!(left() > 100, "the message and its header");
        let counts = Arc::new(Mutex::new(Vec::new()));
        let events_in_call = Arc::clone(&counts);
        let subscriber = OnEvent(move || events_in_call.lock().unwrap().push(left()));
        let shared = Arc::clone(&sender.shared);
        tracing::subscriber::with_default(subscriber, || shared.finish(ChannelState::Exposed));
        assert_eq!(
            *counts.lock().unwrap(),
            [0],
            "one event, after the ring was wiped"
        );
    }
}
