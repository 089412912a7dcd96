//! A hostile publisher or subscriber: random protocol violations, and each violation on its own.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{Hub, SMALLEST, bytes, seen};
use crate::{
    error::Error,
    region::copy::Writable,
    region::layout::{self, MARKS, as_offset, head_of, mark_of},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::lies::{Call, Claims, publish_among_lies, read_lies},
    ring::fan_out::reader::{FanOutReader, Terms},
    ring::fan_out::readers::ReaderSlot,
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::{Lie, Write},
    ring::read::Packed,
    ring::record::{ALIGNED, FIRST, LAST, PADDING, WHOLE, header},
    testing::chance::cases,
};

/// As in the model, one strategy of plain numbers.
fn lie() -> impl Strategy<Value = Lie> {
    (0..24_u8, any::<u64>()).prop_map(|(kind, word)| match kind {
        0..=8 => Lie::Truth,
        9..=14 => Lie::Further(word % (SMALLEST / 8 + 1) * 8),
        15..=17 => Lie::Header(word % 64, (word >> 32) as u32 % 17),
        18..=19 => Lie::Header(
            word % (SMALLEST + 1),
            ((word >> 32) as u32 % 5) | ((word >> 40) as u32 & ALIGNED),
        ),
        20 => Lie::Flip((word >> 32) as u32 % 64),
        21 => Lie::Word((word % (4 * SMALLEST)) & !7),
        _ => Lie::Word(word),
    })
}

fn read() -> impl Strategy<Value = Call> {
    (0..16_u8, 0..5000_usize).prop_map(|(kind, room)| match kind {
        0..=1 => Call::Begin(StartFrom::ALL[room % 3]),
        2..=6 => Call::Receive(room % 600),
        7..=9 => Call::Visit(room % 50),
        10..=12 => Call::Pull(room),
        13 => Call::Size,
        14 => Call::End(room as u64),
        _ => Call::Settle,
    })
}

/// A zero header claims that its record takes no room. It appears after the reader has found a sound header,
/// and before it copies the record.
#[test]
fn header_zeroed_before_the_copy_is_corrupt() {
    for call in [Call::Pull(4096), Call::Visit(usize::MAX)] {
        let mut lies = vec![Lie::Word(64), Lie::Word(0), Lie::Truth];
        lies.resize(60, Lie::Word(0));
        let claims = Claims {
            position: 0,
            sequence: 0,
            lies,
        };
        let found = read_lies(Delivery::BestEffort, claims, [call]);
        assert!(
            matches!(&found, Some(Error::RingCorrupt(_))),
            "{call:?}: {found:?}"
        );
    }
}

proptest! {
    #![proptest_config(cases(16, 6))]

    #[test]
    fn hostile_publisher_yields_corruption_or_bounded_messages(
        delivery in 0..3_usize,
        position in 0..3 * SMALLEST / 8,
        lies in prop::collection::vec(lie(), 1..60),
        calls in prop::collection::vec(read(), 1..60),
    ) {
        let claims = Claims { position: position * 8, sequence: position / 3, lies };
        let _ = read_lies(Delivery::ALL[delivery], claims, calls);
    }

    #[test]
    fn hostile_subscriber_does_not_affect_another(
        lies in prop::collection::vec(lie(), 1..40),
        writes in prop::collection::vec((0..=SMALLEST / 8, 0..5_u8), 1..60),
    ) {
        let writes = writes.into_iter().map(|(size, kind)| Write { size, kind });
        publish_among_lies(lies, writes);
    }
}

/// A ring whose words the test sets.
struct Words {
    ring: OwnRegion,
    victim: FanOutReader<PeerRegion, OwnRegion>,
}

fn words(delivery: Delivery, held: ReaderSlot) -> Words {
    let ring = OwnRegion::private(SMALLEST);
    let terms = Terms {
        capacity: SMALLEST,
        longest: 200,
        delivery,
        slot: held,
    };
    let victim = FanOutReader::new(ring.peer_view(), OwnRegion::private(0), (), terms).unwrap();
    Words { ring, victim }
}

const BEGINNING: ReaderSlot = ReaderSlot {
    number: 0,
    slot: 0,
    position: 0,
    sequence: 0,
};

impl Words {
    fn set(&self, at: usize, word: u64) {
        self.ring.store(at, word, Ordering::Release);
    }

    fn record(&self, place: u64, length: u64, flags: u32) {
        self.set(layout::DATA + as_offset(place), header(length, flags));
    }
}

fn is_corrupt<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::RingCorrupt(_)))
}

#[test]
fn invalid_start_positions_are_corrupt() {
    for (position, sequence) in [(4, 0), (8, 2), (!7, 0), (64, u64::MAX), (1 << 63, 1)] {
        let terms = Terms {
            capacity: SMALLEST,
            longest: 200,
            delivery: Delivery::BestEffort,
            slot: ReaderSlot {
                number: 0,
                slot: 0,
                position,
                sequence,
            },
        };
        let ring = OwnRegion::private(SMALLEST).peer_view();
        let reader = FanOutReader::new(ring, OwnRegion::private(0), (), terms);
        assert!(is_corrupt(&reader), "{position} {sequence}");
    }
}

#[test]
fn invalid_tails_and_floors_are_corrupt() {
    for delivery in Delivery::ALL {
        for (first, second, floor) in [
            (64, 32, 0),
            (64, 65, 0),
            (64, SMALLEST + 8, 0),
            (64, SMALLEST + 64, 32),
            (64, !7, !7),
            (64, 1 << 63, 1 << 63),
        ] {
            let mut words = words(delivery, BEGINNING);
            for place in [0, 32] {
                words.record(place, 24, WHOLE);
            }
            words.set(layout::TAIL, first);
            assert!(words.victim.available().unwrap());
            let mut into = [0; 200];
            while words.victim.receive(&mut into).unwrap().is_some() {}
            words.set(layout::TAIL, second);
            words.set(layout::FLOOR, floor);
            let found = words.victim.available();
            assert!(is_corrupt(&found), "{delivery}: {first} then {second}, {floor}");
        }
    }
}

#[test]
fn invalid_records_are_corrupt_for_every_read() {
    for (what, tail, length, flags) in [
        ("more than is published", 32, 25, WHOLE),
        ("longer than this side takes", 1024, 201, WHOLE),
        ("the longest length", SMALLEST, 0xffff_ffff, WHOLE),
        (
            "the longest length from a line on",
            SMALLEST,
            0xffff_ffff,
            WHOLE | ALIGNED,
        ),
        ("a fragment", 32, 24, 0),
        ("a beginning", 32, 24, FIRST),
        ("an end", 32, 24, LAST),
        ("unknown flags", 32, 24, 32),
        ("a call frame", 32, 24, WHOLE | 16),
        (
            "padding at the beginning of the ring",
            SMALLEST,
            SMALLEST - 8,
            PADDING,
        ),
        ("padding that ends before the ring", 32, 24, PADDING),
        ("padding that begins at a line", 96, 24, PADDING | ALIGNED),
    ] {
        for delivery in Delivery::ALL {
            let fresh = || {
                let words = words(delivery, BEGINNING);
                words.record(0, length, flags);
                words.set(layout::TAIL, tail);
                words
            };
            let mut into = [0; 300];
            assert!(
                is_corrupt(&fresh().victim.receive(&mut into)),
                "{what}, {delivery}"
            );
            assert!(
                is_corrupt(&fresh().victim.pull_packed(&mut into)),
                "{what}, {delivery}"
            );
            assert!(is_corrupt(&fresh().victim.next_size()), "{what}, {delivery}");
            let visited = fresh().victim.visit(9, |_| panic!("{what} is no message"));
            assert!(is_corrupt(&visited), "{what}, {delivery}");
            for from in [StartFrom::Now, StartFrom::Latest] {
                assert!(
                    is_corrupt(&fresh().victim.begin(from, u64::MAX)),
                    "{what}, {delivery}, {from}"
                );
            }
        }
    }
}

#[test]
fn invalid_record_after_a_valid_one_is_corrupt() {
    let mut words = words(Delivery::Reliable, BEGINNING);
    words.record(0, 24, WHOLE);
    words.record(32, 24, 5);
    words.set(layout::TAIL, 64);
    let mut visited = 0;
    let found = words.victim.visit(9, |_| visited += 1);
    assert!(is_corrupt(&found) && visited == 1);
    assert_eq!(words.victim.sequence(), 1);
}

/// The result of a read that was overtaken, with the floor at 4096, the tail at 8192, and these marks.
fn overtaken(delivery: Delivery, marks: &[(u64, u64)]) -> Result<Option<usize>, Error> {
    let mut words = words(delivery, BEGINNING);
    for place in (0..SMALLEST).step_by(32) {
        words.record(place, 24, WHOLE);
    }
    for (number, (position, sequence)) in marks.iter().enumerate() {
        words.set(mark_of(number), *position);
        words.set(mark_of(number) + 8, *sequence);
    }
    words.set(layout::FLOOR, SMALLEST);
    words.set(layout::TAIL, 2 * SMALLEST);
    words.victim.receive(&mut [0; 200])
}

#[test]
fn invalid_marks_are_corrupt() {
    for delivery in [Delivery::BestEffort, Delivery::Latest] {
        assert_eq!(overtaken(delivery, &[(SMALLEST, 128)]).unwrap(), Some(24));
        for (what, marks) in [
            ("none", &[][..]),
            ("one below the floor", &[(SMALLEST - 32, 127)]),
            ("one behind the tail", &[(2 * SMALLEST + 32, 129)]),
            ("one within a word", &[(SMALLEST + 4, 128)]),
            ("more messages than have room", &[(SMALLEST, SMALLEST / 8 + 1)]),
            ("messages without end", &[(SMALLEST, u64::MAX)]),
        ] {
            assert!(is_corrupt(&overtaken(delivery, marks)), "{what}, {delivery}");
        }
    }
    let found = overtaken(Delivery::Reliable, &[(SMALLEST, 128)]);
    assert!(matches!(found, Err(Error::Evicted)), "{found:?}");
}

#[test]
fn decreasing_message_number_is_corrupt() {
    let held = ReaderSlot {
        number: 0,
        slot: 0,
        position: 64,
        sequence: 2,
    };
    let mut words = words(Delivery::BestEffort, held);
    for number in 0..MARKS {
        words.set(mark_of(number), SMALLEST);
        words.set(mark_of(number) + 8, 1);
    }
    words.set(layout::FLOOR, SMALLEST);
    words.set(layout::TAIL, 2 * SMALLEST);
    assert!(is_corrupt(&words.victim.receive(&mut [0; 200])));
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes minutes there, by code that other tests of this file pass"
)]
fn ever_rising_floor_does_not_hang_a_call() {
    let claims = Claims {
        position: 0,
        sequence: 0,
        lies: vec![Lie::Further(64)],
    };
    for call in [Call::Receive(600), Call::Visit(50), Call::Pull(5000), Call::Size] {
        for delivery in Delivery::ALL {
            // The liar counts the loads.
            read_lies(delivery, claims.clone(), [Call::Begin(StartFrom::Latest), call]);
        }
    }
}

/// The number of messages after which a writer has checked its readers' heads.
const CALLS: u64 = 400;

#[test]
#[cfg_attr(
    miri,
    ignore = "takes minutes there, by code that other tests of this file pass"
)]
fn invalid_head_is_reported_once_and_stops_blocking() {
    for (first, second) in [
        (32, 0),
        (0, 100_000),
        (0, u64::MAX),
        (4, 0),
        (16, 8),
        (0, 1 << 63),
    ] {
        let mut hub = Hub::new(SMALLEST);
        let held = hub
            .readers
            .reserve_slot(Delivery::Reliable, StartFrom::Now)
            .unwrap();
        let liar = OwnRegion::private(0);
        assert!(hub.readers.activate(held.number, liar.peer_view(), ()));
        let (_, mut honest) = hub.join(Delivery::Reliable, StartFrom::Now);
        let (mut sent, mut got, mut lies) = (0, 0, 0);
        let mut tell = |hub: &mut Hub, head, honest: &mut super::Reader| {
            liar.store(head_of(held.slot), head, Ordering::Release);
            for _ in 0..CALLS {
                sent += u64::from(hub.send(&bytes(sent, 24)));
                honest
                    .visit(9, |message| {
                        assert_eq!(seen(&message), bytes(got, 24));
                        got += 1;
                    })
                    .unwrap();
                if let Some(lie) = hub.writer.violation() {
                    assert_eq!(lie.number, held.number);
                    assert!(matches!(lie.error, Error::RingCorrupt(_)));
                    lies += 1;
                }
            }
        };
        tell(&mut hub, first, &mut honest);
        tell(&mut hub, second, &mut honest);
        assert_eq!(lies, 1, "{first} then {second}");
        assert!(
            sent > CALLS && got == sent,
            "{first} then {second}: {got} of {sent}"
        );
    }
}

#[test]
fn record_changed_after_the_copy_has_no_effect() {
    let mut words = words(Delivery::BestEffort, BEGINNING);
    words.record(0, 8, WHOLE);
    words.set(layout::DATA + 8, u64::from_le_bytes(*b"original"));
    words.set(layout::TAIL, 16);
    let mut into = vec![0; 64];
    assert_eq!(words.victim.pull_packed(&mut into).unwrap(), Packed::Bytes(16));
    words.set(layout::DATA + 8, u64::from_le_bytes(*b"replaced"));
    words.record(0, u64::from(u32::MAX), WHOLE);
    assert_eq!(&into[8..16], b"original");
    assert_eq!(&into[..8], header(8, WHOLE).to_le_bytes());
}
