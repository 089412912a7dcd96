//! A reader's start and continuation, its reported position and its counts: each tested alone, as a caller
//! sees it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{Hub, Reader, SMALLEST, bytes, receive, seen, walk_packed};
use crate::{
    error::Error,
    region::copy::{Readable, Writable},
    region::layout::{self, MARKS, as_offset, mark_of},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::reader::{FanOutReader, Terms, Validity, View},
    ring::fan_out::readers::ReaderSlot,
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::{Liar, Lie},
    ring::read::{Packed, TRIES},
    ring::record::{PADDING, Tag, WHOLE, header},
};

/// Sends messages that take 32 bytes each.
fn send(hub: &mut Hub, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert!(hub.send(&bytes(number, 24)));
    }
}

/// Returns a reader that holds its position, and has not started.
fn held(hub: &Hub, delivery: Delivery) -> Reader {
    let held = hub.readers.reserve_slot(delivery, StartFrom::Now).unwrap();
    let control = OwnRegion::private(0);
    let seen = control.peer_view();
    let reader = FanOutReader::new(hub.ring.peer_view(), control, (), hub.terms(delivery, held)).unwrap();
    assert!(hub.readers.activate(held.number, seen, ()));
    reader
}

#[test]
fn now_starts_at_the_given_tail_and_latest_does_not() {
    for (from, first) in [(StartFrom::Now, 3), (StartFrom::Latest, 4)] {
        let mut hub = Hub::new(SMALLEST);
        let mut reader = held(&hub, Delivery::Reliable);
        send(&mut hub, 1..=2);
        let now = hub.ring.load(layout::TAIL, Ordering::Acquire);
        send(&mut hub, 3..=4);
        reader.begin(from, now).unwrap();
        assert_eq!(reader.sequence(), first - 1, "{from}");
        assert_eq!(receive(&mut reader), Some(bytes(first, 24)), "{from}");
    }
}

#[test]
fn overtaken_reader_resumes_at_a_mark_in_the_newer_half() {
    let mut hub = Hub::new(SMALLEST);
    let (_, mut reader) = hub.join(Delivery::BestEffort, StartFrom::Now);
    send(&mut hub, 1..=400);
    // Marks are 256 bytes apart, and one is half a ring before the tail.
    let middle = 400 * 32 - SMALLEST / 2;
    assert_eq!(receive(&mut reader), Some(bytes(middle / 32 + 1, 24)));
    assert_eq!(reader.position(), middle + 32);
    assert_eq!(
        (reader.sequence(), reader.limit.lost),
        (middle / 32 + 1, middle / 32)
    );
}

#[test]
fn losses_count_once_a_later_message_is_returned() {
    let mut hub = Hub::new(SMALLEST);
    send(&mut hub, 1..=5);
    let (_, mut reader) = hub.join(Delivery::BestEffort, StartFrom::Now);
    send(&mut hub, 6..=400);
    let refused = reader.receive(&mut []);
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    assert!(reader.position() > 5 * 32, "it was overtaken");
    assert_eq!(
        (reader.sequence(), reader.limit.lost, reader.counted()),
        (5, 0, (0, 0))
    );
    let (first, second) = (receive(&mut reader).unwrap(), receive(&mut reader).unwrap());
    let number = reader.sequence();
    assert_eq!((first, second), (bytes(number - 1, 24), bytes(number, 24)));
    assert_eq!((reader.limit.lost, reader.counted()), (number - 7, (2, 48)));
}

#[test]
fn tail_loads_are_counted_and_empty_ones_publish_the_head() {
    let mut hub = Hub::new(SMALLEST);
    let (number, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    assert!(reader.is_drained());
    let before = reader.tail_loads;
    assert!(!reader.available().unwrap());
    assert_eq!(reader.tail_loads, before + 1);
    send(&mut hub, 1..=2);
    assert!(reader.available().unwrap());
    assert_eq!(reader.tail_loads, before + 2);
    assert!(!reader.is_drained());
    for _ in 0..2 {
        assert_eq!(
            hub.readers.position(number),
            Some(0),
            "no position is published yet"
        );
        assert!(reader.receive(&mut [0; 24]).unwrap().is_some());
    }
    assert!(reader.is_drained());
    send(&mut hub, 3..=3);
    assert!(reader.available().unwrap());
    assert_eq!(hub.readers.position(number), Some(0), "a message is available");
    assert!(reader.receive(&mut [0; 24]).unwrap().is_some());
    assert!(!reader.available().unwrap());
    assert_eq!(hub.readers.position(number), Some(96));
    assert!(!reader.publish(), "already published");
}

#[test]
fn padding_can_be_published_without_a_message() {
    let mut hub = Hub::new(SMALLEST);
    let (_, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    for number in 1..=127 {
        assert!(hub.send(&bytes(number, 24)));
        assert_eq!(receive(&mut reader), Some(bytes(number, 24)));
    }
    // Claimed after the padding, and cancelled.
    assert!(hub.writer.claim(512).unwrap().is_some());
    assert!(hub.writer.publish());
    assert_eq!(hub.ring.load(layout::TAIL, Ordering::Acquire), SMALLEST);
    for _ in 0..2 {
        assert_eq!(receive(&mut reader), None);
    }
    assert!(hub.send(&bytes(128, 512)));
    assert_eq!(receive(&mut reader), Some(bytes(128, 512)));
}

/// A payload that crosses the end of the ring leaves its last bytes there. A record of another lap may end
/// right before them. They are no record.
#[test]
fn bytes_past_the_rings_end_are_no_message() {
    let ghost: Vec<u8> = header(24, WHOLE).to_le_bytes().repeat(11);
    let visit = |reader: &mut Reader| {
        let mut found = Vec::new();
        while reader.available().unwrap() {
            reader.visit(usize::MAX, |view| found.push(seen(&view))).unwrap();
        }
        found
    };
    let pull = |reader: &mut Reader| {
        let (mut into, mut found) = (vec![0; 8192], Vec::new());
        while let Packed::Bytes(end) = reader.pull_packed(&mut into).unwrap() {
            found.extend(walk_packed(&into[..end]));
        }
        found
    };
    for read in [&visit as &dyn Fn(&mut Reader) -> Vec<Vec<u8>>, &pull] {
        let mut hub = Hub::new(SMALLEST);
        let (_, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
        send(&mut hub, 1..=127);
        assert_eq!(read(&mut reader).len(), 127);
        assert!(hub.send(&ghost));
        assert_eq!(read(&mut reader), [&ghost[..]]);
        // Up to the end of the ring, and then further.
        let more = 64..SMALLEST + 128;
        let count = (more.end - more.start) / 32;
        send(&mut hub, 129..=128 + count / 2);
        assert_eq!(read(&mut reader).len() as u64, count / 2);
        send(&mut hub, 129 + count / 2..=128 + count);
        let expected: Vec<_> = (129 + count / 2..=128 + count)
            .map(|number| bytes(number, 24))
            .collect();
        assert_eq!(read(&mut reader), expected);
    }
}

#[test]
fn pull_returns_everything_that_fits() {
    let mut hub = Hub::new(1 << 16);
    let (_, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    let mut into = vec![0; 1 << 16];
    assert_eq!(reader.pull_packed(&mut into).unwrap(), Packed::Nothing);
    // More than one copy operation covers.
    send(&mut hub, 1..=1000);
    assert_eq!(reader.pull_packed(&mut into).unwrap(), Packed::Bytes(32_000));
    send(&mut hub, 1001..=1001);
    assert_eq!(reader.pull_packed(&mut into[..31]).unwrap(), Packed::Large(24));
    assert_eq!(reader.pull_packed(&mut into[..32]).unwrap(), Packed::Bytes(32));
    assert_eq!(walk_packed(&into[..32]), [bytes(1001, 24)]);
}

#[test]
fn long_visit_publishes_the_head_in_strides() {
    let mut hub = Hub::new(1 << 16);
    let (number, mut reader) = hub.join(Delivery::Reliable, StartFrom::Now);
    send(&mut hub, 1..=1280);
    let mut positions = Vec::new();
    let visited = reader.visit(usize::MAX, |_| {
        positions.push(hub.readers.position(number).unwrap());
    });
    assert_eq!(visited.unwrap(), 1280);
    positions.dedup();
    // Reported every quarter of the ring, and the remainder at the end.
    assert_eq!(positions, [0, 1 << 14, 1 << 15]);
    assert_eq!(hub.readers.position(number), Some(1280 * 32));
}

#[test]
fn only_reliable_long_messages_are_visited_in_place() {
    for (delivery, length, is_in_ring) in [
        (Delivery::Reliable, 24, true),
        (Delivery::Reliable, 5000, true),
        (Delivery::BestEffort, 5000, false),
        (Delivery::Latest, 24, false),
    ] {
        let mut hub = Hub::new(1 << 16);
        let (_, mut reader) = hub.join(delivery, StartFrom::Now);
        assert!(hub.send(&bytes(1, length)));
        let visited = reader.visit(9, |view| {
            assert_eq!(
                matches!(view, View::InRing(..)),
                is_in_ring,
                "{delivery} {length}"
            );
            assert_eq!(seen(&view), bytes(1, length));
        });
        assert_eq!(visited.unwrap(), 1);
    }
}

#[test]
fn detached_reader_finds_nothing_and_keeps_its_counts() {
    let mut hub = Hub::new(SMALLEST);
    let (_, mut reader) = hub.join(Delivery::BestEffort, StartFrom::Now);
    assert_eq!(
        (reader.capacity, reader.limit.delivery),
        (SMALLEST, Delivery::BestEffort)
    );
    send(&mut hub, 1..=3);
    assert_eq!(receive(&mut reader), Some(bytes(1, 24)));
    reader.detach(OwnRegion::detached(), PeerRegion::detached());
    assert_eq!(receive(&mut reader), None);
    assert!(reader.is_drained());
    assert_eq!(
        (reader.sequence(), reader.limit.lost, reader.counted()),
        (1, 0, (1, 24))
    );
}

#[test]
fn list_assigns_slots_and_reports_unread_bytes() {
    let mut hub = Hub::new(SMALLEST);
    assert_eq!((hub.readers.lowest_position(), hub.writer.used()), (None, 0));
    let (_, mut quick) = hub.join(Delivery::Reliable, StartFrom::Now);
    let slow = hub
        .readers
        .reserve_slot(Delivery::BestEffort, StartFrom::Now)
        .unwrap();
    let third = hub
        .readers
        .reserve_slot(Delivery::Reliable, StartFrom::Now)
        .unwrap();
    assert_eq!((slow.slot, third.slot), (1, 2));
    assert!(hub.readers.has(slow.number) && hub.readers.has(third.number));
    hub.readers.release(third.number);
    assert!(hub.readers.has(slow.number) && !hub.readers.has(third.number));
    assert_eq!(
        hub.readers
            .reserve_slot(Delivery::Latest, StartFrom::Now)
            .unwrap()
            .slot,
        2
    );
    send(&mut hub, 1..=3);
    assert_eq!(hub.writer.used(), 96);
    assert_eq!(receive(&mut quick), Some(bytes(1, 24)));
    assert_eq!(hub.writer.used(), 64);
    // Data that is written but not published does not count as unread.
    assert!(hub.writer.push(&bytes(4, 24), Tag::NONE).unwrap());
    assert_eq!((hub.writer.used(), hub.readers.lowest_position()), (64, Some(0)));
}

/// The remaining messages are below the floor, or at the position of a hostile reader.
#[test]
fn lowest_position_is_never_below_the_floor() {
    let mut hub = Hub::new(SMALLEST);
    let held = hub
        .readers
        .reserve_slot(Delivery::BestEffort, StartFrom::Now)
        .unwrap();
    send(&mut hub, 1..=200);
    let floor = hub.ring.load(layout::FLOOR, Ordering::Acquire);
    assert!(floor > 0);
    assert_eq!(hub.readers.lowest_position(), Some(floor));
    let liar = OwnRegion::private(0);
    liar.store(layout::head_of(held.slot), 200 * 32 - 3, Ordering::Release);
    assert!(hub.readers.activate(held.number, liar.peer_view(), ()));
    assert_eq!(hub.readers.lowest_position(), Some(199 * 32 + 24));
}

const BEGINNING: ReaderSlot = ReaderSlot {
    number: 0,
    slot: 0,
    position: 0,
    sequence: 0,
};

/// A ring of 32-byte records whose publisher is always a whole ring ahead. After the first few, each copy is
/// overtaken, or each read of a header.
struct RunsAhead {
    capacity: u64,
    floor: Cell<u64>,
    copies: AtomicUsize,
    left_alone: usize,
    at_headers: Cell<bool>,
}

impl RunsAhead {
    fn reader(capacity: u64, left_alone: usize) -> FanOutReader<Self, OwnRegion> {
        let ring = Self {
            capacity,
            floor: Cell::new(0),
            copies: AtomicUsize::new(0),
            left_alone,
            at_headers: Cell::new(false),
        };
        let terms = Terms {
            capacity,
            longest: 200,
            delivery: Delivery::BestEffort,
            slot: BEGINNING,
        };
        FanOutReader::new(ring, OwnRegion::private(0), (), terms).unwrap()
    }

    fn copies(&self) -> usize {
        self.copies.load(Ordering::Relaxed)
    }

    fn count(&self) -> usize {
        let count = self.copies.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(count < 1000, "the reader never stops");
        count
    }

    fn run_ahead(&self) {
        self.floor.set(self.floor.get() + self.capacity);
    }
}

impl Readable for RunsAhead {
    fn load(&self, at: usize, _: Ordering) -> u64 {
        let floor = self.floor.get();
        match at {
            layout::FLOOR => floor,
            layout::TAIL => floor + self.capacity,
            layout::DATA.. => {
                if self.at_headers.get() {
                    self.count();
                    self.run_ahead();
                }
                header(24, WHOLE)
            }
            at if at % 16 == mark_of(0) % 16 => floor,
            _ => floor / 32,
        }
    }

    fn copy_out(&self, _: usize, into: &mut [u8]) {
        for word in into.chunks_mut(32) {
            word[..8].copy_from_slice(&header(24, WHOLE).to_le_bytes());
        }
        if self.count() > self.left_alone {
            self.run_ahead();
        }
    }

    /// In one piece, so that copies can be counted.
    fn copy_out_ahead(&self, at: usize, into: &mut [u8], _: usize) {
        self.copy_out(at, into);
    }
}

#[test]
fn repeatedly_overtaken_call_stops_after_its_tries() {
    let tries = TRIES as usize;
    let mut into = vec![0; 8192];
    let mut reader = RunsAhead::reader(SMALLEST, 0);
    assert_eq!(reader.visit(9, |_| panic!("none was whole")).unwrap(), 0);
    assert_eq!(reader.peer.copies(), tries);
    assert_eq!(reader.pull_packed(&mut into).unwrap(), Packed::Nothing);
    assert_eq!(reader.peer.copies(), 2 * tries);
    assert_eq!(reader.receive(&mut into).unwrap(), None);
    assert_eq!(reader.peer.copies(), 3 * tries);
    assert_eq!(reader.pull_packed(&mut into[..8]).unwrap(), Packed::Large(24));
    reader.peer.at_headers.set(true);
    assert_eq!(reader.pull_packed(&mut into[..8]).unwrap(), Packed::Nothing);
    assert_eq!(reader.peer.copies(), 4 * tries);
}

#[test]
fn pull_ends_where_messages_were_lost() {
    let mut reader = RunsAhead::reader(1 << 16, 1);
    let mut into = vec![0; 1 << 16];
    assert_eq!(reader.pull_packed(&mut into).unwrap(), Packed::Bytes(8192));
    assert_eq!((reader.sequence(), reader.limit.lost), (256, 0));
    // The second copy was overtaken, and so was the one that tried again.
    assert_eq!(reader.peer.copies(), 3);
}

/// The result of each way of reading a ring whose first record is sound, and whose second is not.
#[test]
fn invalid_second_record_is_corrupt_for_every_read() {
    type Read = fn(&mut Reader) -> Result<u64, Error>;
    let reads: [Read; 3] = [
        |reader| Ok(u64::from(reader.receive(&mut [0; 300])?.is_some())),
        |reader| reader.visit(9, |_| ()).map(|count| count as u64),
        |reader| {
            reader.next_size()?;
            reader.pull_packed(&mut [0; 300]).map(|_| 1)
        },
    ];
    for (what, tail, length, flags) in [
        ("longer than this side takes", 1024, 201, WHOLE),
        ("as long as the rest of the ring", SMALLEST, SMALLEST - 40, WHOLE),
        ("padding that is not all published", 1024, SMALLEST - 40, PADDING),
        ("padding that ends before the ring", 1024, 24, PADDING),
    ] {
        for delivery in [Delivery::Reliable, Delivery::BestEffort] {
            for read in reads {
                let ring = OwnRegion::private(SMALLEST);
                let terms = Terms {
                    capacity: SMALLEST,
                    longest: 200,
                    delivery,
                    slot: BEGINNING,
                };
                let mut reader =
                    FanOutReader::new(ring.peer_view(), OwnRegion::private(0), (), terms).unwrap();
                for (at, word) in [
                    (layout::DATA, header(24, WHOLE)),
                    (layout::DATA + 32, header(length, flags)),
                    (layout::TAIL, tail),
                ] {
                    ring.store(at, word, Ordering::Release);
                }
                let found = loop {
                    match read(&mut reader) {
                        Ok(1..) => {}
                        Ok(0) => panic!("{what}, {delivery}: nothing is there"),
                        Err(error) => break error,
                    }
                };
                assert!(
                    matches!(found, Error::RingCorrupt(_)),
                    "{what}, {delivery}: {found}"
                );
                assert_eq!(
                    (reader.sequence(), reader.position()),
                    (1, 32),
                    "{what}, {delivery}"
                );
            }
        }
    }
}

/// Considers this many copies valid, and all later ones invalid.
struct Valid(Cell<u32>);

impl Validity for Valid {
    fn check(&self) -> Result<(), Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(Error::Evicted),
        }
    }
}

/// Returns a reader of `count` messages of `length` bytes.
fn judged(count: u64, length: usize, valid: u32) -> (Hub, FanOutReader<PeerRegion, OwnRegion, Valid>) {
    let mut hub = Hub::new(1 << 16);
    for number in 1..=count {
        assert!(hub.send(&bytes(number, length)));
    }
    let terms = hub.terms(Delivery::Reliable, BEGINNING);
    let (ring, own, valid) = (
        hub.ring.peer_view(),
        OwnRegion::private(0),
        Valid(Cell::new(valid)),
    );
    let reader = FanOutReader::new(ring, own, valid, terms).unwrap();
    (hub, reader)
}

#[test]
fn invalid_copy_is_not_returned_or_counted() {
    type Read = fn(&mut FanOutReader<PeerRegion, OwnRegion, Valid>) -> Result<(), Error>;
    let reads: [(Read, usize); 5] = [
        (|reader| reader.receive(&mut [0; 600]).map(drop), 24),
        (|reader| reader.next_size().map(drop), 24),
        (|reader| reader.pull_packed(&mut [0; 600]).map(drop), 24),
        (
            |reader| {
                reader
                    .visit(9, |_| panic!("the visit must be checked first"))
                    .map(drop)
            },
            24,
        ),
        // The header is valid, but the data visited in the ring is not.
        (|reader| reader.visit(9, |_| ()).map(drop), 600),
    ];
    for (read, length) in reads {
        let (_hub, mut reader) = judged(3, length, u32::from(length > 500));
        assert!(matches!(read(&mut reader), Err(Error::Evicted)));
        assert_eq!(
            (reader.position(), reader.sequence(), reader.limit.lost),
            (0, 0, 0)
        );
        assert_eq!(reader.counted(), (0, 0));
    }
}

/// An error in the middle of a call loses no data that was copied before.
#[test]
fn messages_before_an_error_are_returned_first() {
    // Copies are 8192 bytes.
    let (_hub, mut reader) = judged(1000, 24, 2);
    let mut into = vec![0; 32_000];
    assert_eq!(reader.pull_packed(&mut into).unwrap(), Packed::Bytes(2 * 8192));
    assert_eq!(reader.counted(), (512, 512 * 24));
    assert_eq!(walk_packed(&into[..2 * 8192]).len(), 512);
    assert!(matches!(reader.pull_packed(&mut into), Err(Error::Evicted)));
    assert_eq!(reader.counted(), (512, 512 * 24));
    // One check before each row that is visited in the ring, a quarter of it, and one after it.
    let (_hub, mut reader) = judged(1000, 24, 3);
    let mut visits = 0;
    assert!(matches!(reader.visit(2000, |_| visits += 1), Err(Error::Evicted)));
    assert_eq!((visits, reader.counted()), (1000, (512, 512 * 24)));
    assert_eq!((reader.position(), reader.sequence()), (512 * 32, 512));
}

/// The result of one call of a reader at `position` that was overtaken in its first copy. While it searches
/// for a mark, its publisher reports the floor, the tail, the marks, and the floor again.
fn receive_with_changing_marks(
    held: ReaderSlot,
    floor: u64,
    mark: (u64, u64),
    then: u64,
) -> Result<Option<usize>, Error> {
    let record = || [Lie::Header(24, WHOLE), Lie::Truth, Lie::Truth, Lie::Truth];
    let mut lies = vec![Lie::Word(held.position + 64), Lie::Word(held.position)];
    lies.extend(record());
    lies.push(Lie::Word(floor));
    lies.extend([Lie::Word(floor), Lie::Word(2 * SMALLEST)]);
    for _ in 0..MARKS {
        lies.extend([Lie::Word(mark.0), Lie::Word(mark.1)]);
    }
    lies.push(Lie::Word(then));
    // The second attempt: overtaken once more, and then a mark.
    let mark = (then, then / 32);
    lies.extend(record());
    lies.extend([Lie::Word(then), Lie::Word(then), Lie::Word(2 * SMALLEST)]);
    for _ in 0..MARKS {
        lies.extend([Lie::Word(mark.0), Lie::Word(mark.1)]);
    }
    lies.push(Lie::Word(then));
    lies.extend(record());
    lies.push(Lie::Word(then));
    let ring = Liar::new(OwnRegion::private(SMALLEST), SMALLEST, lies);
    let terms = Terms {
        capacity: SMALLEST,
        longest: 200,
        delivery: Delivery::BestEffort,
        slot: held,
    };
    let mut reader = FanOutReader::new(ring, OwnRegion::private(0), (), terms).unwrap();
    reader.receive(&mut [0; 24])
}

#[test]
fn marks_overwritten_during_the_search_are_retried() {
    let gone = (0, 0);
    let found = receive_with_changing_marks(BEGINNING, SMALLEST, gone, SMALLEST + 256);
    assert_eq!(found.unwrap(), Some(24));
    let found = receive_with_changing_marks(BEGINNING, SMALLEST, gone, SMALLEST);
    assert!(matches!(found, Err(Error::RingCorrupt(_))), "{found:?}");
}

#[test]
fn mark_must_leave_room_for_its_messages() {
    let held = ReaderSlot {
        position: 64,
        sequence: 2,
        ..BEGINNING
    };
    let max = 2 + (SMALLEST - 64) / 8;
    let mut answers = [max, max + 1, 1].map(|sequence| {
        let ring = OwnRegion::private(SMALLEST);
        let terms = Terms {
            capacity: SMALLEST,
            longest: 200,
            delivery: Delivery::BestEffort,
            slot: held,
        };
        let mut reader = FanOutReader::new(ring.peer_view(), OwnRegion::private(0), (), terms).unwrap();
        let set = |at, word| ring.store(at, word, Ordering::Release);
        for place in (0..as_offset(SMALLEST)).step_by(32) {
            set(layout::DATA + place, header(24, WHOLE));
        }
        set(mark_of(0), SMALLEST);
        set(mark_of(0) + 8, sequence);
        set(layout::FLOOR, SMALLEST);
        set(layout::TAIL, 2 * SMALLEST);
        reader.receive(&mut [0; 24])
    });
    let [fits, more, fewer] = &mut answers;
    assert_eq!(fits.as_ref().unwrap(), &Some(24));
    for refused in [more, fewer] {
        assert!(matches!(refused, Err(Error::RingCorrupt(_))), "{refused:?}");
    }
}
