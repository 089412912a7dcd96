//! The additions of a broadcast to a handshake: the ring that all subscribers of a publisher read.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    error::{Check, Error, Refusal, Result},
    fork::{CloseOnForkFd, OwnerProcess},
    handshake::frame::{Hello, Start},
    identity::Credentials,
    region::create::InFlightDescriptor,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::fan_out::readers::{ReaderSlot, Readers},
    ring::fan_out::{Delivery, StartFrom},
    sys::lock::Mutex,
    wait::deadline::Deadline,
    wake::attachments::Attachments,
    wake::doorbell::Doorbell,
    wake::parking::Barriers,
};

/// The sending thread's way to wake a subscriber.
#[derive(Debug, Clone)]
pub(crate) struct ReaderLink {
    /// Weak: the end of the subscriber is noticed elsewhere, and after that there is nothing to wake.
    pub(crate) doorbell: Weak<Doorbell>,
    /// The barriers that both processes support.
    pub(crate) barriers: Barriers,
    /// The attachments that the subscriber accepts.
    pub(crate) accepts: Attachments,
}

/// The readers of a publisher's ring, each with the means to wake it.
pub(crate) type RingReaders = Readers<OwnRegion, PeerRegion, ReaderLink>;

/// The pause between two attempts to pass on the ring while descriptors are short.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(5);

/// A publisher's ring, as handshakes pass it on.
pub(crate) struct PublishedRing {
    pub(crate) readers: Arc<RingReaders>,
    /// `None` once no more subscribers are accepted.
    fd: Mutex<Option<Arc<InFlightDescriptor>>>,
    /// In a forked child, a thread that does not exist there may hold the lock of the readers.
    owner: OwnerProcess,
    /// Wakes the sending thread, which may wait for the room that a released position kept.
    on_release: Box<dyn Fn() + Send + Sync>,
}

impl PublishedRing {
    /// Calls `on_release` whenever a subscriber's position is released. Fails as [`OwnerProcess::current`] does.
    pub(crate) fn new(
        readers: Arc<RingReaders>,
        fd: InFlightDescriptor,
        on_release: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self {
            readers,
            fd: Mutex::new(Some(Arc::new(fd))),
            owner: OwnerProcess::current()?,
            on_release: Box::new(on_release),
        })
    }

    /// Releases the descriptor permanently. Copies that handshakes have made are closed by those handshakes.
    pub(crate) fn seal(&self) {
        let fd = self.fd.lock().take();
        drop(fd);
    }

    /// Calls `send` with a copy of the ring's descriptor, as soon as one is available.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if descriptors are short until the deadline.
    pub(super) fn pass(
        &self,
        deadline: &Deadline,
        send: impl Fn(&CloseOnForkFd) -> Result<()>,
    ) -> Result<()> {
        loop {
            let fd = self.fd.lock().clone();
            let fd = fd.ok_or(Error::Closed("the publisher lets no more subscribers in"))?;
            let result = fd
                .copy()
                .and_then(CloseOnForkFd::new)
                .and_then(|copy| send(&copy));
            match result {
                // Another thread may close a descriptor, or a receiver may take some that are in flight.
                Err(Error::NoSpace { .. }) if deadline.has_time_left() => deadline.pause(DESCRIPTOR_PAUSE)?,
                other => return other,
            }
        }
    }

    /// Reserves the starting position of a new subscriber until the result is dropped.
    pub(super) fn reserve(self: &Arc<Self>, delivery: Delivery, from: StartFrom) -> Result<ReservedStart> {
        Ok(ReservedStart {
            slot: self.readers.reserve_slot(delivery, from)?,
            delivery,
            ring: Arc::clone(self),
        })
    }
}

/// The starting position of a new subscriber. While this value exists, the ring is not overwritten from there
/// on, unless the subscriber is evicted before its handshake is complete.
pub(crate) struct ReservedStart {
    pub(crate) slot: ReaderSlot,
    pub(crate) delivery: Delivery,
    ring: Arc<PublishedRing>,
}

impl ReservedStart {
    pub(super) fn start(&self) -> Start {
        Start {
            position: self.slot.position,
            sequence: self.slot.sequence,
            slot: u32::try_from(self.slot.slot).unwrap_or(u32::MAX),
            reserved: 0,
        }
    }

    /// Completes the subscriber's handshake: from now on its own word says how far it has read. Returns
    /// `false` if it was already evicted.
    pub(crate) fn activate(&self, control: PeerRegion, link: ReaderLink) -> bool {
        self.ring.readers.activate(self.slot.number, control, link)
    }

    /// Fails with [`Error::Evicted`] if the position is no longer kept because the handshake has delayed the
    /// publisher for too long.
    pub(super) fn check(&self) -> Result<()> {
        if self.ring.readers.has(self.slot.number) {
            Ok(())
        } else {
            Err(Error::Evicted)
        }
    }
}

impl Drop for ReservedStart {
    fn drop(&mut self) {
        if self.ring.owner.is_current() {
            self.ring.readers.release(self.slot.number);
            (self.ring.on_release)();
        }
    }
}

/// The ring of a broadcast, as part of a handshake's result.
pub(crate) enum RingPart {
    /// No broadcast: each side has its own ring.
    PerSide,
    /// The starting position of the new subscriber.
    Publisher(ReservedStart),
    /// The publisher's ring, and the starting position of this side.
    Subscriber(PeerRegion, ReportedStart),
}

/// The starting position of a subscriber, as reported by its publisher and not checked yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReportedStart {
    pub(crate) start: Start,
    /// The publisher's tail before this side's READY. The publisher announces a new subscriber after that,
    /// and the subscriber must receive every message sent from then on.
    pub(crate) tail: u64,
}

/// Decodes the requests of a subscriber.
pub(super) fn requested(hello: &Hello) -> Result<(Delivery, StartFrom)> {
    let Hello { delivery, from, .. } = *hello;
    match (Delivery::from_number(delivery), StartFrom::from_number(from)) {
        (Some(delivery), Some(from)) => Ok((delivery, from)),
        _ => Err(Error::Protocol(format!(
            "a subscriber requests an unknown delivery or start ({delivery}, {from})"
        ))),
    }
}

/// Checks that the requested delivery is one of those offered.
pub(super) fn check_delivery(hello: &Hello, offered: &[Delivery], sender: Credentials) -> Result<Delivery> {
    let (wanted, _) = requested(hello)?;
    if offered.contains(&wanted) {
        return Ok(wanted);
    }
    Err(Refusal::new(Check::Delivery, names(offered), wanted.to_string())
        .about(sender)
        .into())
}

pub(super) fn names(offered: &[Delivery]) -> String {
    let names: Vec<_> = offered.iter().map(ToString::to_string).collect();
    names.join(" or ")
}

/// Checks the message limits of both sides. The subscriber could not receive a longer message than it has
/// announced.
pub(super) fn check_limits(sent: u64, accepted: u64) -> Result<()> {
    if sent <= accepted {
        return Ok(());
    }
    Err(Error::Protocol(format!(
        "the publisher sends messages of up to {sent} bytes, but the subscriber accepts {accepted} (max_message_size)"
    )))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Instant};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn ring() -> PublishedRing {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        let readers = Readers::new(OwnRegion::private(4096), OwnRegion::detached(), 4);
        PublishedRing::new(Arc::new(readers), InFlightDescriptor::new(object).unwrap(), || ()).unwrap()
    }

    fn deadline(time: Duration) -> Deadline {
        Deadline::endless(Vec::new(), time).within(time)
    }

    fn short() -> Error {
        Error::no_space("a descriptor in flight", "the limit is reached")
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn descriptor_shortage_is_retried_until_the_deadline() {
        let ring = ring();
        let tries = Cell::new(0);
        let passed = ring.pass(&deadline(Duration::from_secs(60)), |_| {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(short()) } else { Ok(()) }
        });
        assert!(passed.is_ok() && tries.get() == 4);
        let start = Instant::now();
        let failed = ring.pass(&deadline(Duration::from_millis(20)), |_| Err(short()));
        assert_eq!(failed.unwrap_err().code(), "NO_SPACE");
        assert!(start.elapsed() >= Duration::from_millis(20));
        // Other errors are returned immediately.
        let failed = ring.pass(&deadline(Duration::from_secs(60)), |_| Err(Error::Evicted));
        assert_eq!(failed.unwrap_err().code(), "EVICTED");
        ring.seal();
        let failed = ring.pass(&deadline(Duration::from_secs(60)), |_| Ok(()));
        assert_eq!(failed.unwrap_err().code(), "CLOSED");
    }

    fn hello(delivery: Delivery, from: StartFrom) -> Hello {
        Hello {
            nonce: [1; 32],
            echo: [2; 32],
            longest: 1,
            delivery: delivery.number(),
            from: from.number(),
            ..Hello::default()
        }
    }

    #[test]
    fn subscriber_gets_the_requested_delivery_if_offered() {
        let sender = Credentials {
            pid: 1,
            uid: 2,
            gid: 3,
        };
        for delivery in Delivery::ALL {
            for from in StartFrom::ALL {
                let hello = hello(delivery, from);
                assert_eq!(requested(&hello).unwrap(), (delivery, from));
                assert_eq!(check_delivery(&hello, &[delivery], sender).unwrap(), delivery);
                let others: Vec<_> = Delivery::ALL
                    .into_iter()
                    .filter(|other| *other != delivery)
                    .collect();
                let refused = check_delivery(&hello, &others, sender).unwrap_err();
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
            assert_eq!(
                requested(&hello).unwrap_err().code(),
                "PROTOCOL",
                "{delivery} {from}"
            );
            assert!(check_delivery(&hello, &Delivery::ALL, sender).is_err());
        }
    }

    #[test]
    fn publisher_respects_its_subscribers_message_limit() {
        assert!(check_limits(9, 10).is_ok() && check_limits(10, 10).is_ok());
        assert_eq!(check_limits(11, 10).unwrap_err().code(), "PROTOCOL");
    }
}
