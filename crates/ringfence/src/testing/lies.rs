//! A hostile peer that changes its own region at any moment, within a call as well as between calls. The
//! tests draw its values at random; the fuzzer evolves them by coverage.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    sync::atomic::Ordering,
};

use super::{
    message::Progress,
    read::{Packed, WantedLengths},
    record::{Record, Tag, WHOLE, header, packed_size},
    spsc::{SpscReader, SpscWriter},
};
use crate::{
    error::Error,
    region::copy::{Readable, Writable},
    region::layout::{self, CAPACITY_MIN as SMALLEST, as_offset},
    region::own::OwnRegion,
};

/// The answer to one load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lie {
    /// An arbitrary word.
    Word(u64),
    /// The true word with one bit flipped.
    Flip(u32),
    /// This many bytes after the last position that was reported.
    Further(u64),
    /// A header of a plausible length and flags.
    Header(u64, u32),
    /// The true word.
    Truth,
}

/// No call loads more often than this, whatever its peer does.
pub(super) const MAX_LOADS: u32 = 5000;

/// The region of a peer that answers each load with the next lie. A load outside of the region, or not
/// aligned to its words, fails the test, and so does an endless series of loads.
pub(super) struct Liar {
    region: OwnRegion,
    /// The end of the ring and its overhang. Memory after it belongs to neither side.
    end: usize,
    lies: RefCell<VecDeque<Lie>>,
    position: Cell<u64>,
    loads: Cell<u32>,
    max: u32,
    /// Words below this offset report positions.
    words: usize,
}

impl Liar {
    pub(super) fn new(region: OwnRegion, capacity: u64, lies: impl IntoIterator<Item = Lie>) -> Self {
        Self {
            region,
            end: layout::DATA + as_offset(capacity) + layout::OVERHANG,
            lies: RefCell::new(lies.into_iter().collect()),
            position: Cell::new(0),
            loads: Cell::new(0),
            max: MAX_LOADS,
            words: layout::DATA,
        }
    }

    /// A liar whose words all report positions, as in a control object.
    pub(super) fn of_control(lies: impl IntoIterator<Item = Lie>) -> Self {
        let mut liar = Self::new(OwnRegion::private(0), SMALLEST, lies);
        liar.words = liar.end;
        liar
    }

    /// Allows this many loads per call.
    pub(super) fn limit_loads(&mut self, loads: u32) {
        self.max = loads;
    }

    /// Sets the word that is reported when the answer is the truth.
    pub(super) fn set_truth(&self, at: usize, word: u64) {
        self.region.store(at, word, Ordering::Release);
    }

    /// Starts a call.
    pub(super) fn begin(&self) {
        self.loads.set(0);
    }

    fn answer(&self, at: usize, truth: u64) -> u64 {
        self.loads.set(self.loads.get() + 1);
        assert!(self.loads.get() < self.max, "it looks again and again");
        let mut lies = self.lies.borrow_mut();
        let Some(lie) = lies.pop_front() else { return truth };
        // Lies repeat, so that a long run does not end in truths.
        lies.push_back(lie);
        let answer = match lie {
            Lie::Word(word) => word,
            Lie::Flip(bit) => truth ^ (1 << bit),
            Lie::Further(bytes) => self.position.get().wrapping_add(bytes),
            Lie::Header(length, flags) => header(length, flags),
            Lie::Truth => truth,
        };
        if at < self.words && !matches!(lie, Lie::Word(_) | Lie::Flip(_) | Lie::Header(..)) {
            self.position.set(answer);
        }
        answer
    }
}

impl Readable for Liar {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.end,
            "a look outside, at {at}"
        );
        self.answer(at, self.region.load(at, order))
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(
            at.is_multiple_of(8) && at >= layout::DATA && at + into.len() <= self.end,
            "a copy of {} bytes outside, at {at}",
            into.len()
        );
        for (index, word) in into.chunks_mut(8).enumerate() {
            let lied = self
                .answer(at, self.region.load(at + index * 8, Ordering::Relaxed))
                .to_le_bytes();
            word.copy_from_slice(&lied[..word.len()]);
            self.loads.set(0);
        }
    }
}

type Victim = SpscReader<OwnRegion, Liar>;

/// The longest message that the victim accepts.
pub(super) const MAX_LENGTH: u64 = 3 * SMALLEST;

fn victim(lies: impl IntoIterator<Item = Lie>) -> Victim {
    let region = OwnRegion::private(SMALLEST);
    // The true content: small records throughout.
    let mut at = layout::DATA;
    while at < layout::DATA + as_offset(SMALLEST) {
        region.store(at, header(24, WHOLE), Ordering::Relaxed);
        at += 32;
    }
    let liar = Liar::new(region, SMALLEST, lies);
    SpscReader::new(OwnRegion::private(SMALLEST), liar, SMALLEST, MAX_LENGTH)
}

/// One call of a reader.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Read {
    Receive,
    Gather,
    Strides,
    Pull(usize),
    /// Pulls, holds the result, and pulls it again.
    Hold(usize),
    Size,
    Salvage,
}

/// Handed-out records were checked in the copy, so they can be walked without checks. Returns the size of the
/// first record.
fn check_pulled(into: &[u8], pulled: &Packed) -> Option<usize> {
    match *pulled {
        Packed::Bytes(end) => {
            let (mut at, mut first) = (0, None);
            while at < end {
                let word = u64::from_le_bytes(into[at..at + 8].try_into().expect("eight bytes"));
                assert_eq!((word >> 32) as u32 & !Tag::CALL.bits(), WHOLE);
                assert!(word & 0xffff_ffff <= SMALLEST / 2);
                at += as_offset(packed_size(word & 0xffff_ffff));
                first.get_or_insert(at);
            }
            assert!(at == end && end <= into.len());
            first
        }
        Packed::Large(size) => {
            assert!(size as u64 <= MAX_LENGTH);
            None
        }
        Packed::Nothing => None,
    }
}

/// Makes one call as [`crate::Receiver`] does. `Ok`: nothing, or a message (or part of one) within the
/// limits.
fn call(victim: &mut Victim, read: Read, buffer: &mut Vec<u8>) -> Result<(), Error> {
    victim.peer.begin();
    match read {
        Read::Receive | Read::Strides => {
            let Some(record) = victim.next_record()? else {
                return Ok(());
            };
            assert!(record.length as u64 <= SMALLEST);
            if record.flags != WHOLE {
                return call(victim, Read::Gather, buffer);
            }
            let copy = |peer: &Liar, record: Record| {
                assert!(record.length as u64 <= MAX_LENGTH.min(SMALLEST / 2));
                peer.copy_out(record.at, &mut vec![0; record.length]);
            };
            if matches!(read, Read::Strides) {
                let max = 3;
                assert!((1..=max).contains(&victim.visit_in_row(record, max, copy)));
            } else {
                copy(&victim.peer, record);
                victim.skip(record.size);
                victim.publish();
            }
        }
        Read::Gather => {
            let began = victim.is_gathering();
            let Some(size) = victim.next_size()? else {
                return Ok(());
            };
            assert!(size as u64 <= MAX_LENGTH);
            if !began {
                buffer.clear();
                buffer.resize(size, 0);
            }
            // The buffer is as long as was reported, so only a lie can make it too short.
            match victim.gather(buffer)? {
                Some(length) => assert_eq!(length, buffer.len(), "as long as was said"),
                None => assert!(!victim.is_gathering() || victim.gathered_so_far() < buffer.len()),
            }
        }
        Read::Pull(room) => {
            let mut into = vec![0; room];
            let pulled = victim.pull_packed(&mut into)?;
            check_pulled(&into, &pulled);
        }
        Read::Hold(room) => {
            // The receiver asks for no records before a fragmented message is complete.
            if victim.is_gathering() {
                return Ok(());
            }
            let wanted = WantedLengths {
                min: 0,
                max: MAX_LENGTH / 2,
                fresh: true,
                calls: false,
            };
            let mut into = vec![0; room];
            let pulled = victim.pull_retained(&mut into, &wanted)?;
            if let Some(first) = check_pulled(&into, &pulled) {
                let pulled = victim.pull_again(&mut into, first)?;
                check_pulled(&into, &pulled);
            }
        }
        Read::Size => {
            if let Some(size) = victim.next_size()? {
                assert!(size as u64 <= MAX_LENGTH);
            }
        }
        Read::Salvage => {
            victim.available()?;
            victim.load_tail()?;
        }
    }
    assert!(victim.tail - victim.head <= SMALLEST && victim.published <= victim.head);
    assert!(victim.head.is_multiple_of(8) && victim.tail.is_multiple_of(8));
    Ok(())
}

/// Reads from a lying producer. Every call returns a message within the limits or nothing, or finds the ring
/// corrupt, which ends the run. Anything else panics.
pub(crate) fn read_lies(lies: impl IntoIterator<Item = Lie>, reads: impl IntoIterator<Item = Read>) {
    let mut victim = victim(lies);
    let mut buffer = Vec::new();
    for read in reads {
        match call(&mut victim, read, &mut buffer) {
            Ok(()) => {}
            Err(Error::RingCorrupt(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
}

/// One call of a writer: the size of a message, and how it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write {
    /// At most half of [`SMALLEST`].
    pub(crate) size: u64,
    pub(crate) kind: u8,
}

/// Writes into a ring whose consumer lies. Data that the consumer has not reported as read is never
/// overwritten. An impossible report ends the run.
pub(crate) fn write_among_lies(lies: impl IntoIterator<Item = Lie>, writes: impl IntoIterator<Item = Write>) {
    /// Longer than the ring, so it is sent in fragments.
    const LONG: [u8; 10_000] = [9; 10_000];
    let liar = Liar::new(OwnRegion::private(SMALLEST), SMALLEST, lies);
    let mut producer = SpscWriter::new(OwnRegion::private(SMALLEST), liar, SMALLEST);
    let mut part = None;
    for Write { size, kind } in writes {
        producer.room.peer.begin();
        let payload = vec![7; as_offset(size)];
        let result = match (kind, part) {
            (3, _) | (_, Some(_)) => {
                producer
                    .push_part(&LONG, Tag::NONE, part.unwrap_or(0))
                    .map(|progress| {
                        part = match progress {
                            Progress::Part(written) if written > 0 => Some(written),
                            _ => None,
                        };
                    })
            }
            (0, _) => producer.push(&payload, Tag::NONE).map(drop),
            (1, _) => producer.has_room(size).map(drop),
            (2, _) => producer
                .push_packed(&packed([payload.as_slice(); 5]), SMALLEST)
                .map(drop),
            _ => producer.claim(size).map(|claimed| {
                if let Some(at) = claimed {
                    producer.finish(at, as_offset(size), as_offset(size / 2));
                }
            }),
        };
        if kind % 2 == 0 || result.is_err() {
            producer.publish();
        }
        assert!(
            producer.ring.tail - producer.room.head <= SMALLEST,
            "never more than a ring ahead"
        );
        assert!(
            producer.room.head <= producer.ring.published()
                && producer.ring.published() <= producer.ring.tail
        );
        match result {
            Ok(()) => {}
            Err(Error::RingCorrupt(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Packs messages, in the layout of short records in the ring.
pub(crate) fn packed<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut packed = Vec::new();
    for message in messages {
        packed.extend_from_slice(&header(message.len() as u64, WHOLE).to_le_bytes());
        packed.extend_from_slice(message);
        packed.resize(packed.len().next_multiple_of(8), 0);
    }
    packed
}
