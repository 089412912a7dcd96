//! What a handshake of a broadcast has beside that of two equals: the ring that all subscribers of a publisher read.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    error::{Check, Error, Refusal, Result},
    fork::{Birth, Withheld},
    handshake::frame::{Hello, Start},
    identity::Credentials,
    memory::kept::KeptDescriptor,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    ring::delivery::{Delivery, StartFrom},
    ring::fan_out::readers::{Held, Readers},
    sys::lock::Mutex,
    wait::deadline::Deadline,
    wake::doorbell::Doorbell,
    wake::parking::Barriers,
};

/// What the sending thread has of a subscriber, beside its control object.
#[derive(Debug, Clone)]
pub(crate) struct ReaderBell {
    /// Its end is noticed elsewhere, and then nothing is rung.
    pub(crate) doorbell: Weak<Doorbell>,
    /// What its process and this one can do together.
    pub(crate) barriers: Barriers,
}

/// The readers of a publisher's ring, each with what the sending thread rings for it.
pub(crate) type RingReaders = Readers<OwnRegion, PeerRegion, ReaderBell>;

/// A pause between two tries to pass the ring on, where descriptors are short.
const SHORT_OF_DESCRIPTORS: Duration = Duration::from_millis(5);

/// A publisher's ring, as its handshakes pass it on.
#[derive(Debug)]
pub(crate) struct PublishedRing {
    pub(crate) readers: Arc<RingReaders>,
    /// `None` once no more subscribers are let in.
    kept: Mutex<Option<Arc<KeptDescriptor>>>,
    /// In a child a thread that is not there may hold the lock of the readers.
    birth: Birth,
}

impl PublishedRing {
    /// Errors as [`Birth::now`].
    pub(crate) fn new(readers: Arc<RingReaders>, kept: KeptDescriptor) -> Result<Self> {
        Ok(Self {
            readers,
            kept: Mutex::new(Some(Arc::new(kept))),
            birth: Birth::now()?,
        })
    }

    /// Lets go of the descriptor for good. Copies that handshakes have made go with those.
    pub(crate) fn seal(&self) {
        let kept = self.kept.lock().take();
        drop(kept);
    }

    /// Passes the ring on by `send`, as soon as there is a descriptor for it. A want of descriptors that does not end before the
    /// deadline is [`Error::NoSpace`].
    pub(super) fn pass_on(&self, deadline: &Deadline, send: impl Fn(&Withheld) -> Result<()>) -> Result<()> {
        loop {
            let kept = self.kept.lock().clone();
            let kept = kept.ok_or(Error::Closed("the publisher lets no more subscribers in"))?;
            let result = kept.copy().and_then(Withheld::new).and_then(|copy| send(&copy));
            match result {
                // Another thread may give one back, and the messages of others that hold some may be received.
                Err(Error::NoSpace { .. }) if deadline.is_left() => deadline.pause(SHORT_OF_DESCRIPTORS)?,
                other => return other,
            }
        }
    }

    /// Keeps the place where a new subscriber begins, until the answer is dropped.
    pub(super) fn hold(self: &Arc<Self>, delivery: Delivery, from: StartFrom) -> Result<HeldStart> {
        Ok(HeldStart {
            held: self.readers.hold(delivery, from)?,
            delivery,
            ring: Arc::clone(self),
        })
    }
}

/// Where a new subscriber begins. The ring is not overwritten from there on, as long as this lives; unless the subscriber, whose
/// handshake dawdles, was let go of meanwhile.
#[derive(Debug)]
pub(crate) struct HeldStart {
    pub(crate) held: Held,
    pub(crate) delivery: Delivery,
    ring: Arc<PublishedRing>,
}

impl HeldStart {
    pub(super) fn start(&self) -> Start {
        Start {
            position: self.held.position,
            sequence: self.held.sequence,
            slot: u32::try_from(self.held.slot).unwrap_or(u32::MAX),
        }
    }

    /// The subscriber is through: from now on its own word says how far it has read. `false`: it was let go of before.
    pub(crate) fn activate(&self, control: PeerRegion, bell: ReaderBell) -> bool {
        self.ring.readers.activate(self.held.number, control, bell)
    }

    /// Whether the place is kept still.
    pub(super) fn check(&self) -> Result<()> {
        if self.ring.readers.has(self.held.number) {
            return Ok(());
        }
        Err(Error::Closed(
            "the subscriber has held the publisher up for too long by its handshake",
        ))
    }
}

impl Drop for HeldStart {
    fn drop(&mut self) {
        if self.ring.birth.is_here() {
            self.ring.readers.release(self.held.number);
        }
    }
}

/// What comes of a handshake beside what two equals have.
#[derive(Debug)]
pub(crate) enum RingPart {
    /// Each has a ring of its own.
    Equal,
    /// The place of the new subscriber.
    Publisher(HeldStart),
    /// The publisher's ring, and where this side begins.
    Subscriber(PeerRegion, Beginning),
}

/// Where a subscriber begins, as its publisher says. Not checked yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    pub(crate) start: Start,
    /// The publisher's tail before this side's READY. The publisher tells of a new subscriber after that, and what it sends from then
    /// on must come.
    pub(crate) now: u64,
}

/// What a subscriber asks for.
pub(super) fn asks(hello: &Hello) -> Result<(Delivery, StartFrom)> {
    let Hello { delivery, from, .. } = *hello;
    match (Delivery::from_number(delivery), StartFrom::from_number(from)) {
        (Some(delivery), Some(from)) => Ok((delivery, from)),
        _ => Err(Error::Protocol(format!(
            "a subscriber that asks for the unknown delivery {delivery}, from {from}"
        ))),
    }
}

/// A subscriber gets no delivery but one of these.
pub(super) fn check_delivery(hello: &Hello, offered: &[Delivery], speaker: Credentials) -> Result<Delivery> {
    let (wanted, _) = asks(hello)?;
    if offered.contains(&wanted) {
        return Ok(wanted);
    }
    Err(Refusal::new(Check::Delivery, names(offered), wanted.to_string())
        .about(speaker)
        .into())
}

pub(super) fn names(offered: &[Delivery]) -> String {
    let names: Vec<_> = offered.iter().map(ToString::to_string).collect();
    names.join(" or ")
}

/// Of the longest messages, which the publisher sends and the subscriber takes: neither would know what to do with a longer one.
pub(super) fn check_longest(sent: u64, taken: u64) -> Result<()> {
    if sent <= taken {
        return Ok(());
    }
    Err(Error::Protocol(format!(
        "the publisher sends messages of up to {sent} bytes, and the subscriber takes {taken} (max_message_size)"
    )))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Instant};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn ring() -> PublishedRing {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        let readers = Readers::new(OwnRegion::private(4096), OwnRegion::nowhere(), 4);
        PublishedRing::new(Arc::new(readers), KeptDescriptor::keep(object).unwrap()).unwrap()
    }

    fn deadline(time: Duration) -> Deadline {
        Deadline::endless(Vec::new(), time).within(time)
    }

    fn short() -> Error {
        Error::NoSpace {
            what: "a descriptor in flight".into(),
            reason: "as many as may be".into(),
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn a_want_of_descriptors_is_waited_out_and_no_longer_than_the_handshake_may_take() {
        let ring = ring();
        let tries = Cell::new(0);
        let passed = ring.pass_on(&deadline(Duration::from_secs(60)), |_| {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(short()) } else { Ok(()) }
        });
        assert!(passed.is_ok() && tries.get() == 4);
        let start = Instant::now();
        let failed = ring.pass_on(&deadline(Duration::from_millis(20)), |_| Err(short()));
        assert_eq!(failed.unwrap_err().code(), "NO_SPACE");
        assert!(start.elapsed() >= Duration::from_millis(20));
        // What is not for want of descriptors is told at once.
        let failed = ring.pass_on(&deadline(Duration::from_secs(60)), |_| Err(Error::Evicted));
        assert_eq!(failed.unwrap_err().code(), "EVICTED");
        ring.seal();
        let failed = ring.pass_on(&deadline(Duration::from_secs(60)), |_| Ok(()));
        assert_eq!(failed.unwrap_err().code(), "CLOSED");
    }

    fn hello(delivery: Delivery, from: StartFrom) -> Hello {
        Hello {
            nonce: [1; 32],
            echo: [2; 32],
            capacity: 0,
            longest: 1,
            backing: 0,
            features: 0,
            meeting: 0,
            delivery: delivery.number(),
            from: from.number(),
        }
    }

    #[test]
    fn a_subscriber_gets_what_it_asks_for_where_that_is_offered_and_nothing_else() {
        let speaker = Credentials {
            pid: 1,
            uid: 2,
            gid: 3,
        };
        for delivery in Delivery::ALL {
            for from in StartFrom::ALL {
                let hello = hello(delivery, from);
                assert_eq!(asks(&hello).unwrap(), (delivery, from));
                assert_eq!(check_delivery(&hello, &[delivery], speaker).unwrap(), delivery);
                let others: Vec<_> = Delivery::ALL
                    .into_iter()
                    .filter(|other| *other != delivery)
                    .collect();
                let refused = check_delivery(&hello, &others, speaker).unwrap_err();
                let refusal = refused.refusal().expect("a refusal");
                assert_eq!(refusal.wanted, format!("{} or {}", others[0], others[1]));
                assert_eq!(refusal.found, delivery.to_string());
            }
        }
        for (delivery, from) in [(0, 1), (1, 0), (99, 1), (1, 99)] {
            let hello = Hello {
                delivery,
                from,
                ..hello(Delivery::Reliable, StartFrom::Now)
            };
            assert_eq!(asks(&hello).unwrap_err().code(), "PROTOCOL", "{delivery} {from}");
            assert!(check_delivery(&hello, &Delivery::ALL, speaker).is_err());
        }
    }

    #[test]
    fn a_publisher_sends_no_longer_messages_than_its_subscriber_takes() {
        assert!(check_longest(9, 10).is_ok() && check_longest(10, 10).is_ok());
        assert_eq!(check_longest(11, 10).unwrap_err().code(), "PROTOCOL");
    }
}
