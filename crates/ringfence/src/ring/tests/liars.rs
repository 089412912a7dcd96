//! A hostile peer: random protocol violations, and each violation on its own.

use std::{cell::Cell, sync::atomic::Ordering};

use proptest::prelude::*;

use super::{SMALLEST, header};
use crate::{
    error::Error,
    region::copy::{Readable, Writable},
    region::layout::{self, as_offset},
    region::own::OwnRegion,
    ring::lies::{Lie, MAX_LENGTH, MAX_LOADS, Read, Write, read_lies, write_among_lies},
    ring::read::{Packed, WantedLengths},
    ring::record::{ALIGNED, FIRST, HEADER, LAST, PADDING, Tag, WHOLE, packed_size},
    ring::spsc::SpscReader,
    ring::spsc::SpscWriter,
    testing::chance::cases,
};

/// One strategy of plain numbers, as in the model: Miri would spend its time in proptest's choices.
fn lie() -> impl Strategy<Value = Lie> {
    (0..21_u8, any::<u64>()).prop_map(|(kind, word)| match kind {
        0..=5 => Lie::Truth,
        6..=11 => Lie::Further(word % (SMALLEST / 8 + 1) * 8),
        12..=15 => Lie::Header(word % 64, (word >> 32) as u32 % 17),
        16..=18 => Lie::Header(
            word % (SMALLEST + 1),
            ((word >> 32) as u32 % 5) | ((word >> 40) as u32 & ALIGNED),
        ),
        19 => Lie::Flip((word >> 32) as u32 % 64),
        _ => Lie::Word(word),
    })
}

fn read() -> impl Strategy<Value = Read> {
    (0..16_u8, 0..5000_usize).prop_map(|(kind, room)| match kind {
        0..=3 => Read::Receive,
        4..=7 => Read::Gather,
        8..=9 => Read::Strides,
        10..=11 => Read::Pull(room),
        12 => Read::Size,
        13..=14 => Read::Hold(room),
        _ => Read::Salvage,
    })
}

proptest! {
    #![proptest_config(cases(32, 6))]

    #[test]
    fn hostile_producer_yields_corruption_or_bounded_messages(
        lies in prop::collection::vec(lie(), 1..60),
        reads in prop::collection::vec(read(), 1..60),
    ) {
        read_lies(lies, reads);
    }

    #[test]
    fn hostile_consumer_cannot_expose_unread_records(
        lies in prop::collection::vec(lie(), 1..40),
        writes in prop::collection::vec((0..=SMALLEST / 2, 0..5_u8), 1..60),
    ) {
        let writes = writes.into_iter().map(|(size, kind)| Write { size, kind });
        write_among_lies(lies, writes);
    }
}

/// A region whose words the test sets.
struct Words {
    region: OwnRegion,
    victim: SpscReader<OwnRegion, crate::region::peer::PeerRegion>,
}

fn words() -> Words {
    let region = OwnRegion::private(SMALLEST);
    let victim = SpscReader::new(
        OwnRegion::private(SMALLEST),
        region.peer_view(),
        SMALLEST,
        MAX_LENGTH,
    );
    Words { region, victim }
}

impl Words {
    fn tail(&self, tail: u64) {
        self.region.store(layout::TAIL, tail, Ordering::Release);
    }

    fn record(&self, place: u64, length: u64, flags: u32) {
        self.region.store(
            layout::DATA + as_offset(place),
            header(length, flags),
            Ordering::Relaxed,
        );
    }

    fn word(&self, place: u64, word: u64) {
        self.region
            .store(layout::DATA + as_offset(place), word, Ordering::Relaxed);
    }
}

#[test]
fn invalid_tails_are_corrupt() {
    for (first, second) in [
        (8, 0),
        (64, 56),
        (SMALLEST + 8, 0),
        (u64::MAX, 0),
        (u64::MAX - 7, 0),
        (4, 0),
        (16, 17),
        (16, SMALLEST + 32),
        (16, 1 << 63),
    ] {
        let mut words = words();
        words.record(0, 8, WHOLE);
        words.tail(first);
        let first_check = words.victim.available();
        words.tail(second);
        let found = first_check.and_then(|_| words.victim.load_tail());
        assert!(
            matches!(found, Err(Error::RingCorrupt(_))),
            "{first} then {second}: {found:?}"
        );
    }
}

#[test]
fn invalid_heads_are_corrupt() {
    for (first, second) in [
        (32, 0),
        (0, 100_000),
        (0, u64::MAX),
        (4, 0),
        (16, 8),
        (40, 0),
        (0, 48),
    ] {
        let reader = OwnRegion::private(SMALLEST);
        let mut producer = SpscWriter::new(OwnRegion::private(SMALLEST), reader.peer_view(), SMALLEST);
        // 32 bytes are published. 16 more are written, which no reader can have read.
        assert!(producer.push(&[0; 24], Tag::NONE).unwrap());
        producer.publish();
        assert!(producer.push(&[0; 8], Tag::NONE).unwrap());
        reader.store(layout::HEAD, first, Ordering::Release);
        let first_check = producer.packed_room(0).map(drop);
        reader.store(layout::HEAD, second, Ordering::Release);
        let found = first_check.and_then(|()| producer.packed_room(0).map(drop));
        assert!(
            matches!(found, Err(Error::RingCorrupt(_))),
            "{first} then {second}: {found:?}"
        );
    }
}

#[test]
fn invalid_records_are_corrupt() {
    let half = SMALLEST / 2;
    for (what, tail, length, flags) in [
        ("more than is published", 32, 25, WHOLE),
        ("more than half the ring", SMALLEST, half + 8, WHOLE),
        ("the longest length", SMALLEST, 0xffff_ffff, WHOLE),
        ("a middle without a beginning", 32, 24, 0),
        ("an end without a beginning", 32, 24, LAST),
        ("a beginning without a size", 32, 8, FIRST),
        ("a beginning of nothing", 32, 0, FIRST),
        ("unknown flags", 32, 24, 32),
        ("attachments, before there are any", 32, 24, WHOLE | 0x100),
        ("a middle that is a call frame", 32, 24, 16),
        ("padding that is a call frame", 32, 24, PADDING | 16),
        ("all flags", 32, 24, u32::MAX),
        ("padding that is a message too", 32, 24, PADDING | WHOLE),
        ("padding that begins at a line", 32, 24, PADDING | ALIGNED),
        ("a middle without a beginning, from a line on", 96, 24, ALIGNED),
        ("more than is published, from a line on", 96, 33, WHOLE | ALIGNED),
        (
            "the longest length from a line on",
            SMALLEST,
            0xffff_ffff,
            WHOLE | ALIGNED,
        ),
        (
            "more than half the ring from a line on",
            SMALLEST,
            half + 8,
            WHOLE | ALIGNED,
        ),
        ("padding that ends before the ring", 32, 24, PADDING),
        ("padding of a whole ring", SMALLEST, SMALLEST - HEADER, PADDING),
    ] {
        let mut words = words();
        words.record(0, length, flags);
        words.tail(tail);
        let found = words.victim.next_record();
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{what}: {found:?}");
    }
}

#[test]
fn out_of_order_fragments_are_corrupt() {
    for (what, size, length, flags) in [
        ("another message within this one", 100, 24, WHOLE),
        ("another beginning", 100, 24, FIRST),
        ("an end too early", 100, 24, LAST),
        ("more than was stated", 40, 48, 0),
        ("all that was stated, and no end", 40, 32, 0),
        ("a fragment of nothing", 100, 0, 0),
        ("an end of nothing", 100, 0, LAST),
        ("unknown flags", 100, 24, 32),
        ("a middle that is a call frame", 100, 24, 16),
        ("an end that is a call frame", 100, 84, LAST | 16),
    ] {
        let mut words = words();
        words.record(0, 16, FIRST);
        words.word(8, size);
        words.record(24, length, flags);
        words.tail(24 + packed_size(length));
        let mut into = vec![0; 100];
        let found = words.victim.gather(&mut into);
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{what}: {found:?}");
    }
}

#[test]
fn invalid_sizes_are_corrupt() {
    for size in [0, 7, 8, MAX_LENGTH + 1, 1 << 32, u64::MAX] {
        for told in [false, true] {
            let mut words = words();
            words.record(0, 16, FIRST);
            words.word(8, size);
            words.tail(24);
            if told {
                let told = words.victim.next_size().unwrap().unwrap();
                assert!(told as u64 <= MAX_LENGTH, "what is to be allocated");
            }
            let found = words.victim.gather(&mut vec![0; as_offset(MAX_LENGTH)]);
            assert!(matches!(found, Err(Error::RingCorrupt(_))), "{size}: {found:?}");
        }
    }
}

#[test]
fn size_must_not_change_after_it_was_reported() {
    // The reader has made room for the size that was reported. A longer message would overflow that room, and
    // a shorter one would leave stale bytes in it.
    for (what, length, flags, size) in [
        ("a longer one", 16, FIRST, 200),
        ("a shorter one", 16, FIRST, 50),
        ("a whole one", 90, WHOLE, 0),
    ] {
        let mut words = words();
        words.record(0, 16, FIRST);
        words.word(8, 100);
        words.tail(24 + 104);
        assert_eq!(words.victim.next_size().unwrap(), Some(100));
        words.record(0, length, flags);
        words.word(8, size);
        let found = words.victim.gather(&mut [0; 1000]);
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{what}: {found:?}");
    }
}

#[test]
fn reported_size_holds_across_padding() {
    let mut words = words();
    words.record(0, 16, WHOLE);
    words.record(24, 16, FIRST);
    words.word(32, 100);
    words.tail(SMALLEST);
    let record = words.victim.next_record().unwrap().unwrap();
    words.victim.skip(record.size);
    assert_eq!(words.victim.next_size().unwrap(), Some(100));
    words.record(24, SMALLEST - 24 - HEADER, PADDING);
    words.record(0, 10, WHOLE);
    words.tail(SMALLEST + 24);
    words.victim.load_tail().unwrap();
    let found = words.victim.gather(&mut [0; 1000]);
    assert!(matches!(found, Err(Error::RingCorrupt(_))), "{found:?}");
}

#[test]
fn record_past_the_rings_end_is_corrupt() {
    let lengths = [(24, true), (32, true), (88, true), (89, false), (96, false)];
    // The published data ends there too, or continues after it.
    for ((length, sound), tail) in lengths.into_iter().flat_map(|case| [(case, 64), (case, 256)]) {
        let mut words = words();
        words.record(0, 24, WHOLE);
        words.record(32, SMALLEST / 2, WHOLE);
        words.record(40 + SMALLEST / 2, SMALLEST / 2 - 80, WHOLE);
        let last = SMALLEST - 32;
        words.record(last, length, WHOLE);
        words.tail(last);
        while let Some(record) = words.victim.next_record().unwrap() {
            words.victim.skip(record.size);
        }
        words.tail(SMALLEST + tail);
        let found = words.victim.next_record();
        assert_eq!(found.is_ok(), sound, "{length} of {tail}: {found:?}");
    }
}

#[test]
fn padding_that_misses_the_end_is_corrupt() {
    let rest = SMALLEST - 32;
    for length in [0, 8, rest - HEADER - 8, rest - HEADER + 8] {
        let mut words = words();
        words.record(0, 24, WHOLE);
        words.record(32, length, PADDING);
        // The record after it is a record like any other.
        words.record((32 + packed_size(length)) % SMALLEST, 0, WHOLE);
        words.tail(SMALLEST);
        let record = words.victim.next_record().unwrap().unwrap();
        words.victim.skip(record.size);
        words.victim.publish();
        words.tail(SMALLEST + 32);
        words.victim.load_tail().unwrap();
        let found = words.victim.next_record();
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{length}: {found:?}");
    }
}

#[test]
fn invalid_record_after_valid_ones_is_corrupt() {
    for (what, longest, length, flags, packed) in [
        ("half the ring", MAX_LENGTH, SMALLEST / 2 + 8, WHOLE, true),
        ("half the ring", MAX_LENGTH, SMALLEST / 2 + 8, WHOLE, false),
        ("the limit", 100, 104, WHOLE, true),
        ("the limit", 100, 104, WHOLE, false),
        ("zeros", MAX_LENGTH, 0, 0, true),
        ("zeros", MAX_LENGTH, 0, 0, false),
    ] {
        let region = OwnRegion::private(SMALLEST);
        let mut words = Words {
            victim: SpscReader::new(
                OwnRegion::private(SMALLEST),
                region.peer_view(),
                SMALLEST,
                longest,
            ),
            region,
        };
        words.record(0, 8, WHOLE);
        words.record(16, length, flags);
        words.tail(16 + packed_size(length.max(8)));
        let found = if packed {
            // The record before it is sound, and is handed out.
            assert_eq!(
                words.victim.pull_packed(&mut [0; 8192]).unwrap(),
                Packed::Bytes(16),
                "{what}"
            );
            words.victim.pull_packed(&mut [0; 8192]).map(drop)
        } else {
            let first = words.victim.next_record().unwrap().unwrap();
            assert_eq!(words.victim.visit_in_row(first, 10, |_, _| ()), 1, "{what}");
            words.victim.next_record().map(drop)
        };
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{what}: {found:?}");
    }
}

#[test]
fn endless_padding_does_not_hang_the_reader() {
    /// Adds another ring of padding each time that one has been read.
    struct Padder {
        tail: Cell<u64>,
        read: Cell<bool>,
    }

    impl Readable for Padder {
        fn load(&self, at: usize, _: Ordering) -> u64 {
            if at != layout::TAIL {
                self.read.set(true);
                return header(SMALLEST - HEADER, PADDING);
            }
            if self.read.take() {
                self.tail.set(self.tail.get() + SMALLEST);
            }
            assert!(
                self.tail.get() < SMALLEST * u64::from(MAX_LOADS),
                "the reader never stops"
            );
            self.tail.get()
        }

        fn copy_out(&self, _: usize, _: &mut [u8]) {}
    }

    let padder = Padder {
        tail: Cell::new(0),
        read: Cell::new(true),
    };
    let mut victim = SpscReader::new(OwnRegion::private(SMALLEST), padder, SMALLEST, MAX_LENGTH);
    let found = victim.next_record();
    assert!(matches!(found, Err(Error::RingCorrupt(_))), "{found:?}");
}

#[test]
fn payload_changed_after_the_copy_has_no_effect() {
    let mut words = words();
    words.record(0, 8, WHOLE);
    words.word(8, u64::from_le_bytes(*b"original"));
    words.tail(16);
    let mut into = vec![0; 64];
    assert_eq!(words.victim.pull_packed(&mut into).unwrap(), Packed::Bytes(16));
    words.word(8, u64::from_le_bytes(*b"replaced"));
    words.record(0, u64::from(u32::MAX), WHOLE);
    assert_eq!(&into[8..16], b"original");
    assert_eq!(&into[..8], header(8, WHOLE).to_le_bytes());
}

#[test]
fn invalid_final_tail_is_corrupt_after_known_records() {
    for lie in [0, 8, 33, u64::MAX, 32 + SMALLEST + 8] {
        let mut words = words();
        words.record(0, 8, WHOLE);
        words.record(16, 8, WHOLE);
        words.tail(32);
        let first = words.victim.next_record().unwrap().unwrap();
        words.victim.skip(first.size);
        words.tail(lie);
        words.victim.freeze_tail(OwnRegion::detached());
        // The tail that another process writes to the same memory no longer has any effect.
        words.tail(32);
        let second = words.victim.next_record().unwrap().unwrap();
        words.victim.skip(second.size);
        for _ in 0..2 {
            let found = words.victim.next_record();
            assert!(matches!(found, Err(Error::RingCorrupt(_))), "{lie}: {found:?}");
        }
    }
}

#[test]
fn records_changed_before_a_second_pull_are_checked() {
    let wanted = WantedLengths {
        min: 0,
        max: 64,
        fresh: true,
        calls: false,
    };
    for (length, flags, wrong) in [
        (8, WHOLE, false),
        (0, WHOLE, true),
        (40, WHOLE, true),
        (8, PADDING, true),
        (9, WHOLE, true),
    ] {
        let mut words = words();
        for place in [0, 16, 32] {
            words.record(place, 8, WHOLE);
            words.word(place + 8, place);
        }
        words.tail(48);
        let mut into = vec![0; 64];
        assert_eq!(
            words.victim.pull_retained(&mut into, &wanted).unwrap(),
            Packed::Bytes(48)
        );
        words.record(0, length, flags);
        words.word(24, 7);
        let again = words.victim.pull_again(&mut into, 16);
        if wrong {
            assert!(
                matches!(again, Err(Error::RingCorrupt(_))),
                "{length} {flags}: {again:?}"
            );
        } else {
            assert_eq!(again.unwrap(), Packed::Bytes(32));
            assert_eq!(into[8..16], [7, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
}

#[test]
fn second_pull_rejects_a_record_past_its_lap() {
    const LENGTH: u64 = 904;
    let wanted = WantedLengths {
        min: 0,
        max: 1024,
        fresh: true,
        calls: false,
    };
    for (length, flags) in [(LENGTH, WHOLE), (LENGTH, WHOLE | ALIGNED)] {
        let mut words = words();
        // Each record ends at most 16 bytes before the end of the lap.
        for (place, length) in [(0, 2032), (2040, 2024), (4072, 0)] {
            words.record(place, length, WHOLE);
            words.tail(place + packed_size(length));
            assert!(matches!(
                words.victim.pull_packed(&mut [0; 3000]),
                Ok(Packed::Bytes(_))
            ));
        }
        words.record(4080, 8, WHOLE);
        words.record(0, LENGTH, WHOLE);
        words.tail(SMALLEST + packed_size(LENGTH));
        let mut into = vec![0; 2000];
        let all = as_offset(16 + packed_size(LENGTH));
        assert_eq!(
            words.victim.pull_retained(&mut into, &wanted).unwrap(),
            Packed::Bytes(all)
        );
        words.record(4080, length, flags);
        let again = words.victim.pull_again(&mut into, 0);
        assert!(
            matches!(again, Err(Error::RingCorrupt(_))),
            "{flags:#x}: {again:?}"
        );
    }
}
