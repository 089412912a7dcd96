//! Steps 5 and 6 of a handshake: the OFFERs, which pass each side's object, and the checks of the peer's
//! object.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use crate::{
    error::{Error, Result},
    evidence::Record,
    fork::{Mark, Withheld},
    handshake::broadcast::{self, Beginning, HeldStart, RingPart},
    handshake::frame::{Frame, HARDENS, Hello, Nonce, Offer, check_echo},
    handshake::line::Line,
    handshake::parts::Unopened,
    handshake::side::{RingRole, Side, Talk},
    harden,
    peer::process::Peer,
    region::accept::{Agreed, accept},
    region::access::{Readable, Writable},
    region::create::{SharedObject, Wanted},
    region::layout::{TAIL, as_offset, head_of, region_size},
    region::peer::PeerRegion,
    signal::inbox::{OpenInbox, TokenSender},
};

/// The objects that both sides have exchanged.
pub(super) struct Objects {
    pub(super) own: SharedObject,
    pub(super) region: Unopened,
    pub(super) peer: PeerRegion,
    pub(super) ring: RingPart,
    /// The receiver of the peer's tokens, and the sender of this side's.
    pub(super) inbox: OpenInbox,
    pub(super) token_sender: TokenSender,
    /// For the state of the future channel. It is allocated before this side is ready, so that a lack of
    /// memory fails the handshake.
    pub(super) mark: Mark,
}

impl Side<'_> {
    /// Runs steps 5 and 6: each side makes and passes its own object, and checks the peer's. In a broadcast
    /// both objects are control objects, and the publisher passes its ring in addition.
    pub(super) fn exchange(&self, talk: &mut Talk) -> Result<Objects> {
        let Talk {
            line,
            peer,
            own,
            hello,
            record,
            ..
        } = talk;
        let options = self.options;
        let line = self.line(line, peer.credentials);
        peer.hardens = hello.features & HARDENS != 0;
        self.close_off(record)?;
        let inbox = OpenInbox::open(options.signal_number)?;
        // A control object is as large as the smallest ring: its name tells them apart.
        let (name, capacity): (&[u8], _) = match self.role {
            RingRole::Equal => (b"ringfence", options.capacity),
            RingRole::Publisher(_) | RingRole::Subscriber => (b"ringfence-control", 0),
        };
        let wanted = Wanted {
            backing: options.backing,
            name,
            capacity,
            signal: inbox.number(),
            peer: peer.credentials.uid,
        };
        let object = SharedObject::create(&wanted, self.deadline, record)?;
        let held = self.hold_start(hello)?;
        let offer = Offer {
            echo: hello.nonce,
            size: region_size(self.own_ring()),
            capacity: self.own_ring(),
            tokens: inbox.address(),
            start: held.as_ref().map(HeldStart::start).unwrap_or_default(),
        };
        self.send_offer(&line, offer, &object, record)?;
        let (offer, descriptors) = self.expect_offer(&line, own, hello, record)?;
        let agreed = Agreed {
            backing: options.backing,
            capacity: hello.capacity,
            stated: offer.size,
            owner: peer.credentials.uid,
        };
        let (region, ring) = self.accept_objects(&descriptors, agreed, &offer, record)?;
        if let RingPart::Subscriber(_, Beginning { start, .. }) = &ring {
            // Before READY, because the publisher reads it from then on.
            let at = head_of(as_offset(start.slot.into()));
            object.region.store(at, start.position, Ordering::Release);
        }
        object.check()?;
        Ok(Objects {
            region: Unopened::new(object.region.clone()),
            own: object,
            peer: region,
            ring: held.map_or(ring, RingPart::Publisher),
            inbox,
            token_sender: token_sender(peer, &offer)?,
            mark: Mark::new()?,
        })
    }

    /// Hardens this process if the options ask for it. Both sides have inspected each other by this point,
    /// because each sends its HELLO after its check. And no shared memory exists yet. So this is the moment
    /// to close this process to others of its user.
    fn close_off(&self, record: &mut Record) -> Result<()> {
        if self.options.harden {
            harden::harden()?;
            record.passed(
                "hello",
                "hardened",
                "this process, after its inspection and before it makes its object",
                "not dumpable, no core",
            );
        } else if harden::is_hardened() {
            record.not_asked("hello", "hardened", "this process: not dumpable");
        } else {
            record.not_asked("hello", "hardened", "this process: dumpable");
        }
        Ok(())
    }

    /// Reserves the starting position of a new subscriber, if this side is a publisher.
    fn hold_start(&self, hello: &Hello) -> Result<Option<HeldStart>> {
        let RingRole::Publisher(ring) = self.role else {
            return Ok(None);
        };
        let (delivery, from) = broadcast::asks(hello)?;
        ring.hold(delivery, from).map(Some)
    }

    /// Sends this side's OFFER with its object. A publisher passes its ring as well.
    fn send_offer(
        &self,
        line: &Line<'_>,
        offer: Offer,
        object: &SharedObject,
        record: &mut Record,
    ) -> Result<()> {
        let size = offer.size;
        let offer = Frame::Offer(offer);
        let count = if let RingRole::Publisher(ring) = self.role {
            ring.pass_on(self.deadline, |copy| {
                line.send(&offer, &[object.as_fd(), copy.as_fd()])
            })?;
            2
        } else {
            line.send(&offer, &[object.as_fd()])?;
            1
        };
        record.passed(
            "offer",
            "sent",
            descriptors_wanted(count),
            format!("{size} bytes"),
        );
        Ok(())
    }

    /// Receives the peer's OFFER with its object and, from a publisher, the ring. Until they are mapped,
    /// forked children do not inherit the descriptors.
    fn expect_offer(
        &self,
        line: &Line<'_>,
        own: &Nonce,
        hello: &Hello,
        record: &mut Record,
    ) -> Result<(Offer, Vec<Withheld>)> {
        let wanted = match self.role {
            RingRole::Subscriber => 2,
            RingRole::Equal | RingRole::Publisher(_) => 1,
        };
        let (frame, descriptors) = line.expect_with("the peer's OFFER", wanted)?;
        let Frame::Offer(offer) = frame else {
            return Err(Error::Protocol(
                "expected an OFFER, received another frame".into(),
            ));
        };
        check_echo(&offer.echo, own)?;
        let found = descriptors.len();
        if found != wanted {
            return Err(Error::ObjectUnsound {
                check: "descriptors",
                wanted: wanted.to_string(),
                found: found.to_string(),
            });
        }
        let descriptors = descriptors
            .into_iter()
            .map(Withheld::new)
            .collect::<Result<_>>()?;
        if offer.capacity != hello.capacity {
            return Err(Error::Protocol(format!(
                "an OFFER of {} bytes after a HELLO of {}",
                offer.capacity, hello.capacity
            )));
        }
        record.passed(
            "offer",
            "received",
            descriptors_wanted(wanted),
            format!("{} bytes", offer.size),
        );
        Ok((offer, descriptors))
    }

    /// Checks and maps the objects of an OFFER. `agreed` describes the peer's ring, if it has one.
    fn accept_objects(
        &self,
        descriptors: &[Withheld],
        agreed: Agreed,
        offer: &Offer,
        record: &mut Record,
    ) -> Result<(PeerRegion, RingPart)> {
        let missing = || Error::Protocol("an OFFER without an object".into());
        let first = descriptors.first().ok_or_else(missing)?;
        let RingRole::Subscriber = self.role else {
            return Ok((accept(first, &agreed, record)?, RingPart::Equal));
        };
        let second = descriptors.get(1).ok_or_else(missing)?;
        let control = Agreed {
            capacity: 0,
            stated: region_size(0),
            ..agreed
        };
        let region = accept(first, &control, record)?;
        let ring = accept(second, &agreed, record)?;
        let beginning = Beginning {
            start: offer.start,
            now: ring.load(TAIL, Ordering::Acquire),
        };
        Ok((region, RingPart::Subscriber(ring, beginning)))
    }
}

fn token_sender(peer: &Peer, offer: &Offer) -> Result<TokenSender> {
    let sender = TokenSender::new(peer.credentials.pid, offer.tokens)?;
    // In another pid namespace, the number of the peer's thread would name a different thread here.
    Ok(if peer.shares_numbers() {
        sender
    } else {
        sender.out_of_reach()
    })
}

fn descriptors_wanted(count: usize) -> &'static str {
    if count == 1 {
        "one descriptor, its size in a struct"
    } else {
        "two descriptors, the ring's size in a struct"
    }
}
