//! A publisher that lies to its reader, and a reader that lies to its publisher, in every word and at any
//! moment. The tests draw the lies at random; the fuzzer evolves them by coverage.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use super::{
    floor::FanOutWriter,
    largest_message,
    reader::{FanOutReader, Terms, View},
    readers::{ReaderSlot, Readers},
};
use crate::{
    error::{Error, Result},
    region::copy::{Readable, Writable},
    region::layout::{self, CAPACITY_MIN as SMALLEST, as_offset},
    region::own::OwnRegion,
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::{Liar, Lie, Write, packed},
    ring::read::Packed,
    ring::record::{Tag, WHOLE, header, packed_size},
};

/// The claims of a hostile publisher in OFFER, and then in its ring.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
    pub(crate) lies: Vec<Lie>,
}

/// One call of a reader.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Begin(StartFrom),
    Receive(usize),
    Visit(usize),
    Pull(usize),
    Size,
    End(u64),
    Settle,
}

/// The loads that one call of a reader may make. It restarts a few times, and each time walks over a ring of
/// the smallest records.
const MAX_LOADS: u32 = 40_000;

/// The longest message that the reader accepts: below the ring's own limit, so that both limits are tested.
const MAX_LENGTH: u64 = 510;

type Victim = FanOutReader<Liar, OwnRegion>;

/// Makes one call. `Ok`: nothing, or messages within the limits.
fn call(victim: &mut Victim, call: Call) -> Result<()> {
    victim.peer.begin();
    match call {
        Call::Begin(from) => victim.begin(from, u64::MAX)?,
        Call::Receive(room) => {
            let mut into = vec![0; room];
            match victim.receive(&mut into) {
                Ok(length) => assert!(length.is_none_or(|length| length <= room)),
                Err(Error::InvalidArgument(_)) => assert!((room as u64) < MAX_LENGTH, "the message fits"),
                Err(error) => return Err(error),
            }
        }
        Call::Visit(max) => {
            let mut visited = 0;
            let count = victim.visit(max, |view| {
                let length = match view {
                    View::Copy(bytes) => bytes.len(),
                    View::InRing(ring, record) => {
                        ring.copy_out(record.at, &mut vec![0; record.length]);
                        record.length
                    }
                };
                assert!(length as u64 <= MAX_LENGTH);
                visited += 1;
            })?;
            assert!(count == visited && count <= max);
        }
        Call::Pull(room) => {
            let mut into = vec![0; room];
            match victim.pull_packed(&mut into)? {
                Packed::Bytes(end) => {
                    // Handed-out records were checked in the copy, so they can be walked without checks.
                    let mut at = 0;
                    while at < end {
                        let word = u64::from_le_bytes(into[at..at + 8].try_into().expect("eight bytes"));
                        assert_eq!(word >> 32, u64::from(WHOLE));
                        assert!(word & 0xffff_ffff <= MAX_LENGTH);
                        at += as_offset(packed_size(word & 0xffff_ffff));
                    }
                    assert!(at == end && end <= room);
                }
                Packed::Large(size) => assert!(size as u64 <= MAX_LENGTH),
                Packed::Nothing => {}
            }
        }
        Call::Size => {
            let size = victim.next_size()?;
            assert!(size.is_none_or(|size| size as u64 <= MAX_LENGTH));
        }
        Call::End(position) => victim.end_at(position),
        Call::Settle => victim.freeze_tail(OwnRegion::detached()),
    }
    Ok(())
}

/// Reads from a lying publisher. Every call returns messages within the limits or nothing, or finds the ring
/// corrupt or itself evicted. Either ends the run and is returned. Anything else panics.
pub(crate) fn read_lies(
    delivery: Delivery,
    claims: Claims,
    calls: impl IntoIterator<Item = Call>,
) -> Option<Error> {
    let region = OwnRegion::private(SMALLEST);
    // The true content: small records throughout.
    let mut at = layout::DATA;
    while at < layout::DATA + as_offset(SMALLEST) {
        region.store(at, header(24, WHOLE), Ordering::Relaxed);
        at += 32;
    }
    let mut liar = Liar::new(region, SMALLEST, claims.lies);
    liar.limit_loads(MAX_LOADS);
    let terms = Terms {
        capacity: SMALLEST,
        longest: MAX_LENGTH,
        delivery,
        slot: ReaderSlot {
            number: 0,
            slot: 3,
            position: claims.position,
            sequence: claims.sequence,
        },
    };
    let mut victim = match FanOutReader::new(liar, OwnRegion::private(0), (), terms) {
        Ok(victim) => victim,
        Err(error) => return Some(error),
    };
    let (mut sequence, mut lost) = (0, 0);
    for each in calls {
        match call(&mut victim, each) {
            Ok(()) => {}
            Err(error @ Error::RingCorrupt(_)) => return Some(error),
            Err(error @ Error::Evicted) => {
                assert_eq!(delivery, Delivery::Reliable);
                return Some(error);
            }
            Err(other) => panic!("{other}"),
        }
        if !matches!(each, Call::Begin(_)) {
            assert!(
                victim.sequence() >= sequence && victim.limit.lost >= lost,
                "both only grow"
            );
        }
        (sequence, lost) = (victim.sequence(), victim.limit.lost);
    }
    None
}

/// The control object of a lying subscriber.
#[derive(Clone)]
struct Control(Rc<Liar>);

impl Readable for Control {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0.load(at, order)
    }

    fn copy_out(&self, _: usize, _: &mut [u8]) {
        unreachable!("nothing is copied out of a control object");
    }
}

/// A publisher with two subscribers: a liar, and an honest one that reads everything.
struct Stage {
    publisher: FanOutWriter<OwnRegion, Control, ()>,
    readers: Arc<Readers<OwnRegion, Control, ()>>,
    liar: (ReaderSlot, Rc<Liar>),
    honest: FanOutReader<OwnRegion, OwnRegion>,
    /// The publisher's view of the honest subscriber.
    truth: (ReaderSlot, Rc<Liar>),
    sent: u64,
    claims: bool,
}

impl Stage {
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the publisher takes an Arc, and there is one thread"
    )]
    fn new(lies: impl IntoIterator<Item = Lie>) -> Self {
        let ring = OwnRegion::private(SMALLEST);
        let readers = Arc::new(Readers::new(ring.clone(), OwnRegion::private(0), 2));
        let join = |liar: Liar| {
            let liar = Rc::new(liar);
            let held = readers
                .reserve_slot(Delivery::Reliable, StartFrom::Now)
                .expect("a slot");
            readers.activate(held.number, Control(Rc::clone(&liar)), ());
            (held, liar)
        };
        let liar = join(Liar::of_control(lies));
        let truth = join(Liar::of_control([]));
        let terms = Terms {
            capacity: SMALLEST,
            longest: SMALLEST,
            delivery: Delivery::Reliable,
            slot: truth.0,
        };
        let honest =
            FanOutReader::new(ring.clone(), OwnRegion::private(0), (), terms).expect("an honest publisher");
        Self {
            publisher: FanOutWriter::new(ring, Arc::clone(&readers), SMALLEST),
            readers,
            liar,
            honest,
            truth,
            sent: 0,
            claims: false,
        }
    }

    fn write(&mut self, size: u64, kind: u8) {
        let payload = vec![u8::try_from(self.sent % 251).expect("below 251"); as_offset(size)];
        let there = self.publisher.has_room(size).expect("its own ring");
        match kind {
            0 => self.sent += u64::from(self.publisher.push(&payload, Tag::NONE).expect("its own ring")),
            1 => {
                let packed = packed([payload.as_slice()]);
                let taken = self.publisher.push_packed(&packed, SMALLEST);
                self.sent += u64::from(taken.expect("whole records") > 0);
            }
            2 => drop(self.publisher.packed_room(size).expect("its own ring")),
            3 => {
                let awaited = self.publisher.awaited(size);
                assert!(!there || awaited.is_none());
            }
            _ => {
                if let Some(at) = self.publisher.claim(size).expect("its own ring") {
                    self.publisher.own_mut().copy_in(at, &payload);
                    self.publisher.finish(at, as_offset(size), as_offset(size));
                    self.sent += 1;
                }
            }
        }
        self.publisher.publish();
    }

    /// The liar is reported once, and ignored after that.
    fn judge(&mut self) {
        if let Some(lie) = self.publisher.violation() {
            assert!(!self.claims && lie.number == self.liar.0.number, "the liar, once");
            assert!(matches!(lie.error, Error::RingCorrupt(_)));
            self.claims = true;
            self.readers.release(lie.number);
        }
        assert!(self.publisher.violation().is_none(), "nothing else is a lie");
    }

    fn read(&mut self) {
        let mut number = self.honest.sequence();
        let count = self.honest.visit(usize::MAX, |view| {
            let is_right = |byte: &u8| u64::from(*byte) == number % 251;
            match view {
                View::Copy(bytes) => assert!(bytes.iter().all(is_right)),
                View::InRing(ring, record) => {
                    let mut bytes = vec![0; record.length];
                    ring.copy_out(record.at, &mut bytes);
                    assert!(bytes.iter().all(is_right));
                }
            }
            number += 1;
        });
        count.expect("an honest publisher");
        assert_eq!((self.honest.sequence(), self.honest.limit.lost), (self.sent, 0));
        let (held, visited) = &self.truth;
        visited.set_truth(layout::head_of(held.slot), self.honest.position());
    }
}

/// Publishes to a lying subscriber and to an honest one. The honest one receives every message, whatever the
/// other claims.
pub(crate) fn publish_among_lies(
    lies: impl IntoIterator<Item = Lie>,
    writes: impl IntoIterator<Item = Write>,
) {
    let mut stage = Stage::new(lies);
    for Write { size, kind } in writes {
        stage.liar.1.begin();
        stage.write(size.min(largest_message(SMALLEST)), kind);
        stage.judge();
        stage.read();
    }
}
