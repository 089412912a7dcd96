//! One handshake, from a connection to the parts of a channel: the order of the steps. Each step is a few lines here;
//! what it does is in the module that it names.
//!
//! `frame` is the bytes, `line` is who speaks, `parts` is what comes of it; `broadcast` is the ring of a publisher, which comes
//! third. It never binds an address and makes no channel.

pub(crate) mod broadcast;
pub(crate) mod frame;
pub(crate) mod line;
pub(crate) mod parts;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, getpeername, getsockname, getsockopt, socketpair,
        sockopt,
    },
};

use crate::{
    error::{Check, Error, Refusal, Result},
    evidence::Record,
    fork::{Mark, Withheld},
    handshake::broadcast::{HeldStart, PublishedRing, RingPart},
    handshake::frame::{Frame, HARDENS, Hello, Meeting, Nonce, Offer, Refuse, TAKES_BARRIERS},
    handshake::line::Line,
    handshake::parts::{Parts, Role},
    harden,
    identity::{Credentials, Identity},
    memory::accept::{Agreed, accept},
    memory::access::Writable,
    memory::backing::Backing,
    memory::create::{SharedObject, Wanted},
    memory::layout::{as_offset, head_of, region_size, round_capacity},
    memory::peer::PeerRegion,
    options::Options,
    peer::process::Peer,
    rendezvous::address::Address,
    rendezvous::inherit::Inheritance,
    signal::inbox::{OpenInbox, TokenSender},
    sys,
    wait::deadline::Deadline,
};

/// Who may have a channel, of those who are ready for one: a pair has one place, a service has seats.
pub(crate) trait Seats {
    /// What a guest holds as long as it has its place. Dropped, the place is free again.
    type Seat;

    /// Whether there would be a place for this process now, so that a handshake is worth its while.
    fn ask(&self, who: Credentials) -> Result<()>;

    /// A place for a guest that has passed everything, a moment before it is told READY.
    fn take(&self, who: Credentials) -> Result<Self::Seat>;

    /// What is told to a guest whose handshake breaks off because the host does not go on.
    fn closed(&self) -> Error;
}

/// One side of one handshake.
pub(crate) struct Side<'a> {
    options: &'a Options,
    deadline: &'a Deadline,
    meeting: Meeting,
    address: String,
    /// What a host among members passes its guest with READY.
    shares: &'a [Arc<OwnedFd>],
    /// Where a guest among members gets that for.
    inherits: Option<&'a Address>,
    role: RingRole<'a>,
    /// This process can issue membarrier(2) and receives it, so that its peer's sleep needs no fence in its sends.
    takes_barriers: bool,
}

/// Whose ring there is.
#[derive(Clone, Copy)]
enum RingRole<'a> {
    /// Each side has one, in its object.
    Equal,
    /// This side's, which all its subscribers read.
    Publisher(&'a Arc<PublishedRing>),
    /// The other side's.
    Subscriber,
}

/// Whoever is at the other end of a connection, looked at and let in by the policy so far.
pub(crate) struct Caller {
    stream: OwnedFd,
    peer: Peer,
    pub(crate) identity: Identity,
    record: Record,
}

/// A talk on the private line, with a speaker who is known.
struct Talk {
    line: OwnedFd,
    peer: Peer,
    /// Who it was when it was first looked at.
    identity: Identity,
    own: Nonce,
    /// What the other side said of itself.
    hello: Hello,
    record: Record,
}

/// What both sides have shown each other.
struct Objects {
    own: SharedObject,
    peer: PeerRegion,
    ring: RingPart,
    /// Where the peer's tokens arrive, and where this side's go.
    inbox: OpenInbox,
    token_sender: TokenSender,
    /// For the state of the channel that is to be: what cannot be had is told before this side is ready.
    mark: Mark,
}

impl<'a> Side<'a> {
    pub(crate) fn new(
        address: &impl ToString,
        options: &'a Options,
        deadline: &'a Deadline,
        meeting: Meeting,
    ) -> Self {
        let takes_barriers = sys::accept_barriers().and_then(|()| sys::issue_barrier()).is_ok();
        Self {
            options,
            deadline,
            meeting,
            address: address.to_string(),
            shares: &[],
            inherits: None,
            role: RingRole::Equal,
            takes_barriers,
        }
    }

    /// As a host among members: with what its guest gets of the place.
    pub(crate) fn sharing(mut self, shares: &'a [Arc<OwnedFd>]) -> Self {
        self.shares = shares;
        self
    }

    /// As a guest among members, at this address.
    pub(crate) fn inheriting(mut self, address: &'a Address) -> Self {
        self.inherits = Some(address);
        self
    }

    /// As a publisher with this ring.
    pub(crate) fn publishing(mut self, ring: Option<&'a Arc<PublishedRing>>) -> Self {
        self.role = ring.map_or(self.role, RingRole::Publisher);
        self
    }

    /// As a subscriber.
    pub(crate) fn subscribing(mut self) -> Self {
        self.role = RingRole::Subscriber;
        self
    }

    /// Steps 2 and 3: whom the kernel names at the other end, and what the policy says to that. Waits for nobody.
    pub(crate) fn look_at(&self, stream: OwnedFd, mut record: Record) -> Result<Caller> {
        let looked = (|| {
            let namespace = self.options.policy.allowed_namespace();
            let peer = Peer::attest(&stream, namespace, &mut record)?;
            if peer.is_self() {
                return Err(self.occupied("this process holds it itself"));
            }
            let policy = &self.options.policy;
            let identity = policy.check(&peer, "executable", self.deadline, &mut record)?;
            Ok((peer, identity))
        })();
        match looked {
            Ok((peer, identity)) => Ok(Caller {
                stream,
                peer,
                identity,
                record,
            }),
            Err(error) => Err(refuse(&stream, error)),
        }
    }

    /// Steps 4 to 8, as the host.
    pub(crate) fn host<S: Seats>(&self, caller: Caller, seats: &S) -> Result<(Parts, S::Seat)> {
        let broken_off = |error| match error {
            Error::Aborted => seats.closed(),
            error => error,
        };
        let who = caller.peer.credentials;
        if let Err(error) = seats.ask(who) {
            return Err(refuse(&caller, error));
        }
        let talk = self.hello_of_guest(caller, broken_off)?;
        self.agree_as_host(talk, || seats.take(who), broken_off)
    }

    /// Steps 2 to 8, as the parent. The kernel names this process as the maker of both ends of the socket that the child
    /// has inherited. So who the child is, is told by what it says, and by the line that it makes and sends.
    pub(crate) fn parent(&self, stream: &OwnedFd, child: Option<i32>, mut record: Record) -> Result<Parts> {
        let result = (|| {
            let step = "the child's HELLO";
            let (speaker, frame, descriptors) =
                line::first(stream.as_fd(), self.deadline, &self.address, step)?;
            check_child(speaker, child, &mut record)?;
            let line = only_line(descriptors)?;
            check_line(&line, speaker)?;
            let policy = &self.options.policy;
            let peer = Peer::attest(&line, policy.allowed_namespace(), &mut record)?;
            let identity = policy.check(&peer, "executable", self.deadline, &mut record)?;
            let (own, hello) = self.answer(&line, &frame, speaker, &mut record)?;
            Ok(Talk {
                line,
                peer,
                identity,
                own,
                hello,
                record,
            })
        })();
        let talk = result.map_err(|error| refuse(stream, error))?;
        let (parts, ()) = self.agree_as_host(talk, || Ok(()), |error| error)?;
        Ok(parts)
    }

    /// Steps 5 to 8, as the host.
    fn agree_as_host<S>(
        &self,
        mut talk: Talk,
        take_seat: impl FnOnce() -> Result<S>,
        broken_off: impl Fn(Error) -> Error,
    ) -> Result<(Parts, S)> {
        let result = (|| {
            self.authorize(&mut talk)?;
            let objects = self.exchange(&mut talk)?;
            // Before this side waits for the other to be ready, and once more after it has said so.
            self.look_finally(&mut talk)?;
            self.expect_ready(&mut talk, 0)?;
            let identity = self.look_finally(&mut talk)?;
            if let RingPart::Publisher(start) = &objects.ring {
                start.check()?;
            }
            let seat = take_seat()?;
            self.send_ready(&mut talk)?;
            Ok((objects, identity, seat))
        })();
        match result {
            Ok((objects, identity, seat)) => {
                Ok((self.finish(Role::Host, talk, objects, identity, None), seat))
            }
            Err(error) => Err(refuse(&talk.line, broken_off(error))),
        }
    }

    /// Steps 2 to 8, as the guest. `None`: the host has gone without an answer.
    pub(crate) fn guest(&self, stream: OwnedFd, record: Record) -> Result<Option<Parts>> {
        let caller = match self.look_at(stream, record) {
            Ok(caller) => caller,
            // The last host's socket, with the host gone since.
            Err(Error::PeerLost(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(mut talk) = self.hello_of_host(caller)? else {
            return Ok(None);
        };
        let result = (|| {
            self.authorize(&mut talk)?;
            let objects = self.exchange(&mut talk)?;
            // Before this side says that it is ready, and once more after the other has said so.
            self.look_finally(&mut talk)?;
            self.send_ready(&mut talk)?;
            let inheritance = self.expect_inheritance(&mut talk)?;
            let identity = self.look_finally(&mut talk)?;
            Ok((objects, identity, inheritance))
        })();
        match result {
            Ok((objects, identity, inheritance)) => Ok(Some(self.finish(
                Role::Guest,
                talk,
                objects,
                identity,
                inheritance,
            ))),
            Err(error) => Err(refuse(&talk.line, error)),
        }
    }

    /// Step 4, the host's part: the guest's HELLO comes over the agreed socket with one end of a line, and the answer
    /// goes there. The agreed socket is somebody's who knows the address: it is closed when this returns.
    fn hello_of_guest(&self, caller: Caller, broken_off: impl Fn(Error) -> Error) -> Result<Talk> {
        let Caller {
            stream,
            peer,
            identity,
            mut record,
        } = caller;
        let result = (|| {
            let (frame, descriptors) = self.line(&stream, peer.credentials).expect("the guest's HELLO")?;
            let line = only_line(descriptors)?;
            check_line(&line, peer.credentials)?;
            let (own, hello) = self.answer(&line, &frame, peer.credentials, &mut record)?;
            Ok((line, own, hello))
        })();
        match result {
            Ok((line, own, hello)) => Ok(Talk {
                line,
                peer,
                identity,
                own,
                hello,
                record,
            }),
            Err(error) => Err(refuse(&stream, broken_off(error))),
        }
    }

    /// The host's HELLO, over the line that came with the guest's.
    fn answer(
        &self,
        line: &OwnedFd,
        frame: &Frame,
        speaker: Credentials,
        record: &mut Record,
    ) -> Result<(Nonce, Hello)> {
        settle_line(line)?;
        let hello = self.agree(frame, Nonce::default(), record)?;
        if let RingRole::Publisher(_) = self.role {
            let offered = &self.options.deliveries;
            let delivery = broadcast::check_delivery(&hello, offered, speaker)?;
            record.passed(
                "hello",
                "delivery",
                broadcast::names(offered),
                delivery.to_string(),
            );
        }
        let own = nonce()?;
        self.line(line, speaker)
            .send(&Frame::Hello(self.hello(own, hello.nonce)), &[])?;
        Ok((own, hello))
    }

    /// Step 4, the guest's part: one end of a fresh pair goes over the agreed socket, and the answer comes back on
    /// the pair, from the process that the kernel named.
    fn hello_of_host(&self, caller: Caller) -> Result<Option<Talk>> {
        let Caller {
            stream,
            peer,
            identity,
            mut record,
        } = caller;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (line, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
            .map_err(|errno| Error::system("a private line", errno))?;
        settle_line(&line)?;
        settle_line(&stream)?;
        let own = nonce()?;
        let hello = Frame::Hello(self.hello(own, Nonce::default()));
        let sent = line::send(stream.as_fd(), &hello, &[theirs.as_fd()]);
        drop(theirs);
        let door = self.line(&stream, peer.credentials);
        if let Err(errno) = sent {
            return match errno {
                Errno::EPIPE | Errno::ECONNRESET => turned_away(&door),
                errno => Err(Error::system("sending on the agreed socket", errno)),
            };
        }
        let frame = match self.line(&line, peer.credentials).expect("the host's HELLO") {
            Ok((frame, descriptors)) if descriptors.is_empty() => frame,
            Ok(_) => return Err(Error::Protocol("descriptors with the host's HELLO".into())),
            // It has closed its end of the line, or never took it: if it said why, it was at the door.
            Err(Error::PeerLost(_)) => return turned_away(&door),
            Err(error) => return Err(error),
        };
        let hello = self.agree(&frame, own, &mut record)?;
        Ok(Some(Talk {
            line,
            peer,
            identity,
            own,
            hello,
            record,
        }))
    }

    fn hello(&self, nonce: Nonce, echo: Nonce) -> Hello {
        let barriers = if self.takes_barriers { TAKES_BARRIERS } else { 0 };
        let hardens = if self.options.harden || harden::is_hardened() {
            HARDENS
        } else {
            0
        };
        let options = self.options;
        let (delivery, from) = match self.role {
            RingRole::Subscriber => (options.delivery.number(), options.from.number()),
            RingRole::Equal | RingRole::Publisher(_) => (0, 0),
        };
        Hello {
            nonce,
            echo,
            capacity: self.own_ring(),
            longest: options.longest(),
            backing: options.backing.number(),
            features: barriers | hardens,
            meeting: self.meeting.number(),
            delivery,
            from,
        }
    }

    /// Bytes of the ring that this side writes; 0: it writes none.
    fn own_ring(&self) -> u64 {
        match self.role {
            RingRole::Equal | RingRole::Publisher(_) => self.options.capacity,
            RingRole::Subscriber => 0,
        }
    }

    /// What the other side said of itself must be possible, and agree with this side.
    fn agree(&self, frame: &Frame, echo: Nonce, record: &mut Record) -> Result<Hello> {
        let Frame::Hello(hello) = frame else {
            return Err(Error::Protocol("something else than a HELLO".into()));
        };
        if hello.echo != echo {
            return Err(Error::Protocol("a HELLO that does not answer this side's".into()));
        }
        match Meeting::from_number(hello.meeting) {
            Some(meeting) if meeting == self.meeting => {}
            Some(meeting) => {
                return Err(Error::Protocol(format!(
                    "the one side is {}, the other {meeting}",
                    self.meeting
                )));
            }
            None => {
                return Err(Error::Protocol(format!(
                    "a meeting of the unknown kind {}",
                    hello.meeting
                )));
            }
        }
        let own = self.options.backing;
        match Backing::from_number(hello.backing) {
            Some(backing) if backing == own => {}
            Some(backing) => {
                return Err(Error::Protocol(format!(
                    "the backings differ: {own} on the one side, {backing} on the other"
                )));
            }
            None => {
                return Err(Error::Protocol(format!(
                    "a backing with the unknown number {}",
                    hello.backing
                )));
            }
        }
        self.agree_on_ring(hello)?;
        record.passed(
            "hello",
            "protocol",
            format!("version {}", frame::VERSION),
            "as wanted",
        );
        record.passed(
            "hello",
            "line",
            "a private line; every message with the peer's credentials",
            "as wanted",
        );
        record.passed("hello", "backing", own.to_string(), own.to_string());
        Ok(*hello)
    }

    /// The sizes that the other side has named: they are its choice, and this side would pay for them. So this comes before anything
    /// is made or mapped.
    fn agree_on_ring(&self, hello: &Hello) -> Result<()> {
        let Hello {
            capacity, longest, ..
        } = *hello;
        if !(1..=crate::options::MAX_MESSAGE_SIZE).contains(&longest) {
            return Err(Error::Protocol(format!("messages of {longest} bytes")));
        }
        let own_longest = self.options.longest();
        match self.role {
            RingRole::Equal => {}
            RingRole::Subscriber => broadcast::check_longest(longest, own_longest)?,
            RingRole::Publisher(_) => {
                broadcast::check_longest(own_longest, longest)?;
                if capacity != 0 {
                    return Err(Error::Protocol(format!(
                        "a subscriber with a ring of {capacity} bytes"
                    )));
                }
                return Ok(());
            }
        }
        if round_capacity(capacity) != Some(capacity) || capacity > 1 << 46 {
            return Err(Error::Protocol(format!("a ring of {capacity} bytes")));
        }
        let most = self.options.max_peer_capacity;
        if capacity > most {
            return Err(Error::Protocol(format!(
                "the peer's ring has {capacity} bytes, and this side takes {most} (max_peer_capacity)"
            )));
        }
        Ok(())
    }

    fn line<'b>(&'b self, socket: &'b OwnedFd, speaker: Credentials) -> Line<'b> {
        Line {
            socket: socket.as_fd(),
            speaker,
            deadline: self.deadline,
            address: &self.address,
        }
    }

    /// The end of the first look: what the policy's callback says to a peer that has passed everything else, and has shown
    /// by its HELLO that the line is its own. Nothing was shared with it.
    fn authorize(&self, talk: &mut Talk) -> Result<()> {
        let asked =
            self.options
                .policy
                .ask(&talk.identity, talk.line.as_fd(), self.deadline, &mut talk.record);
        match asked {
            // It has gone meanwhile, and may have said why.
            Err(error @ Error::PeerLost(_)) => {
                let line = self.line(&talk.line, talk.peer.credentials);
                Err(line.last_words().unwrap_or(error))
            }
            other => other,
        }
    }

    /// Steps 5 and 6: each makes its own object and passes it, and each looks at the other's. A publisher and its subscriber
    /// have a control object each, and the publisher passes its ring beside.
    fn exchange(&self, talk: &mut Talk) -> Result<Objects> {
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
        let wanted = Wanted {
            backing: options.backing,
            capacity: match self.role {
                RingRole::Equal => options.capacity,
                RingRole::Publisher(_) | RingRole::Subscriber => 0,
            },
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
        if let RingPart::Subscriber(_, start) = &ring {
            // Before READY: from that on the publisher looks at it.
            let at = head_of(as_offset(start.slot.into()));
            object.region.store(at, start.position, Ordering::Release);
        }
        object.check()?;
        let mut token_sender = TokenSender::new(peer.credentials.pid, offer.tokens)?;
        if !peer.shares_numbers() {
            // The thread that it names is another's here.
            token_sender = token_sender.out_of_reach();
        }
        Ok(Objects {
            own: object,
            peer: region,
            ring: held.map_or(ring, RingPart::Publisher),
            inbox,
            token_sender,
            mark: Mark::new()?,
        })
    }

    /// Of a publisher: the place where the new subscriber begins.
    fn hold_start(&self, hello: &Hello) -> Result<Option<HeldStart>> {
        let RingRole::Publisher(ring) = self.role else {
            return Ok(None);
        };
        let (delivery, from) = broadcast::asks(hello)?;
        ring.hold(delivery, from).map(Some)
    }

    /// This side's OFFER, with its object; a publisher's with its ring as well.
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

    /// The other side's OFFER, and its object; behind it, a publisher's ring. No child gets a copy of them, until they are mapped.
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
            return Err(Error::Protocol("something else than an OFFER".into()));
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

    /// Checks and maps what came with an OFFER. `agreed` is about the ring, where the other side has one.
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
        Ok((region, RingPart::Subscriber(ring, offer.start)))
    }

    /// Both sides have looked at each other by now, since each speaks its HELLO after its look; and there is no memory
    /// yet. So this is the moment to close this process to others of its user.
    fn close_off(&self, record: &mut Record) -> Result<()> {
        if self.options.harden {
            harden::harden()?;
            record.passed(
                "hello",
                "hardened",
                "this process, after it was looked at and before its object is made",
                "not dumpable, no core",
            );
        } else if harden::is_hardened() {
            record.not_asked("hello", "hardened", "this process: not dumpable");
        } else {
            record.not_asked("hello", "hardened", "this process: dumpable");
        }
        Ok(())
    }

    /// Step 7: the process is still there, and still who it was.
    fn look_finally(&self, talk: &mut Talk) -> Result<Identity> {
        let Talk { peer, record, .. } = talk;
        let identity = self.options.policy.check(peer, "final", self.deadline, record)?;
        record.not_asked("final", "peer hardened", peer.openness());
        Ok(identity)
    }

    /// Step 8.
    fn send_ready(&self, talk: &mut Talk) -> Result<()> {
        let shares: Vec<_> = self.shares.iter().map(|share| share.as_fd()).collect();
        self.line(&talk.line, talk.peer.credentials)
            .send(&Frame::Ready(talk.hello.nonce), &shares)?;
        talk.record
            .passed("ready", "sent", "after everything else", "sent");
        if !shares.is_empty() {
            talk.record.passed(
                "ready",
                "passed on",
                "the listening socket, and the lock beside a path",
                format!("{} descriptors", shares.len()),
            );
        }
        Ok(())
    }

    /// Among members, the host's READY, and what comes with it of the place; else READY alone.
    fn expect_inheritance(&self, talk: &mut Talk) -> Result<Option<Inheritance>> {
        let Some(address) = self.inherits else {
            self.expect_ready(talk, 0)?;
            return Ok(None);
        };
        let descriptors = self.expect_ready(talk, Inheritance::count(address))?;
        Inheritance::accept(address, descriptors, &mut talk.record).map(Some)
    }

    fn expect_ready(&self, talk: &mut Talk, count: usize) -> Result<Vec<OwnedFd>> {
        let (frame, descriptors) = self
            .line(&talk.line, talk.peer.credentials)
            .expect_with("the peer's READY", count)?;
        let Frame::Ready(echo) = frame else {
            return Err(Error::Protocol("something else than READY".into()));
        };
        if descriptors.len() != count {
            return Err(Error::ObjectUnsound {
                check: "descriptors",
                wanted: format!("{count} with READY"),
                found: descriptors.len().to_string(),
            });
        }
        check_echo(&echo, &talk.own)?;
        talk.record
            .passed("ready", "received", "after everything else", "received");
        Ok(descriptors)
    }

    fn finish(
        &self,
        role: Role,
        talk: Talk,
        objects: Objects,
        identity: Identity,
        inheritance: Option<Inheritance>,
    ) -> Parts {
        let Talk {
            line,
            peer,
            hello,
            mut record,
            ..
        } = talk;
        record.passed(
            "ready",
            "descriptors",
            "closed on this side: only the mappings are left",
            "closed",
        );
        Parts {
            role,
            line,
            process: peer.keep(),
            identity,
            evidence: record.into_list(),
            mark: objects.mark,
            own: objects.own.into_region(),
            peer: objects.peer,
            own_capacity: self.own_ring(),
            peer_capacity: hello.capacity,
            longest_out: hello.longest,
            longest_in: self.options.longest(),
            barriers: self.takes_barriers && hello.features & TAKES_BARRIERS != 0,
            inbox: objects.inbox,
            token_sender: objects.token_sender,
            inheritance,
            ring: objects.ring,
        }
    }

    fn occupied(&self, by: &str) -> Error {
        Error::AddressOccupied {
            address: self.address.clone(),
            by: by.into(),
        }
    }
}

impl AsFd for Caller {
    /// The agreed socket: readable once the guest has said something, or has left.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Tells the other side why, as far as it still listens.
pub(crate) fn refuse(socket: impl AsFd, error: Error) -> Error {
    let knows_already = match &error {
        Error::PeerLost(_) | Error::Aborted => true,
        error => error.refusal().is_some_and(|refusal| refusal.by_peer),
    };
    if !knows_already {
        // Whoever does not read it learns it from the end of the line.
        let _ = line::send(socket.as_fd(), &Frame::Refuse(Refuse::from(&error)), &[]);
    }
    error
}

/// The host closed the connection without taking the line. If it said why, that is the answer; if it has just gone, or goes,
/// or has waited too long for this side, the address is to be looked at again.
fn turned_away(door: &Line<'_>) -> Result<Option<Talk>> {
    match door.receive("the host's answer", 1) {
        Ok((Frame::Refuse(refuse), _)) if refuse.is_passing() => Ok(None),
        Ok((Frame::Refuse(refuse), _)) => Err(refuse.into_error(door.address)),
        Ok(_) => Err(Error::Protocol("an answer on the agreed socket".into())),
        Err(Error::PeerLost(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn descriptors_wanted(count: usize) -> &'static str {
    if count == 1 {
        "one descriptor, its size in a struct"
    } else {
        "two descriptors, the ring's size in a struct"
    }
}

fn check_echo(found: &Nonce, own: &Nonce) -> Result<()> {
    if found == own {
        Ok(())
    } else {
        Err(Error::Protocol(
            "a message that does not answer this side's nonce".into(),
        ))
    }
}

fn only_line(mut descriptors: Vec<OwnedFd>) -> Result<OwnedFd> {
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(line), true) => Ok(line),
        _ => Err(Error::Protocol(
            "a HELLO with no line, or with more than one descriptor".into(),
        )),
    }
}

/// Whoever speaks on an inherited socket must be the process that was started, where it is known. (Its own children
/// inherit the socket as well, until it has taken it.)
fn check_child(speaker: Credentials, child: Option<i32>, record: &mut Record) -> Result<()> {
    let found = format!("pid {}", speaker.pid);
    let Some(pid) = child else {
        record.not_asked("credentials", "child", found);
        return Ok(());
    };
    let wanted = format!("pid {pid}, the process that was started");
    if speaker.pid == pid {
        record.passed("credentials", "child", wanted, found);
        return Ok(());
    }
    Err(Refusal::new(Check::Child, wanted, found).about(speaker).into())
}

/// What the guest passed must be one end of a pair of connected stream sockets that it made itself.
fn check_line(line: &OwnedFd, speaker: Credentials) -> Result<()> {
    let stream = getsockopt(line, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    let number = line.as_raw_fd();
    let unix = getsockname::<UnixAddr>(number).is_ok();
    let maker = getsockopt(line, sockopt::PeerCredentials).map(|c| Credentials {
        pid: c.pid(),
        uid: c.uid(),
        gid: c.gid(),
    });
    let connected = getpeername::<UnixAddr>(number).is_ok();
    if stream && unix && connected && maker == Ok(speaker) {
        return Ok(());
    }
    Err(Refusal::new(
        Check::Line,
        "a Unix stream socket pair made by the process that connected",
        format!("stream: {stream}, Unix: {unix}, connected: {connected}, made by {maker:?}"),
    )
    .into())
}

/// From here on the kernel stamps what arrives with its sender's credentials (unix(7), `SO_PASSCRED`), and adds nothing else.
/// To be called before the first read.
pub(crate) fn settle_line(socket: &OwnedFd) -> Result<()> {
    sys::settle_line(socket).map_err(|errno| Error::system("SO_PASSCRED", errno))
}

fn nonce() -> Result<Nonce> {
    sys::random().map_err(|errno| Error::system("random bytes", errno))
}
