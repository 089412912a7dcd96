//! Steps 4 to 8 of a handshake: the HELLOs, which agree on everything except the objects, and the private line,
//! which carries all later frames; the objects; the last check and READY.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::socket::{SockType, UnixAddr, getpeername, getsockname, getsockopt, sockopt},
    unistd::getpid,
};

use crate::{
    address::bound::Inheritance,
    error::{Check, Error, OrSystem, Refusal, Result, is_denied},
    evidence::{
        CHILD_MEMORY, CLOSED, EvidenceLog, HARDENED, PASSED_ON, PRIVATE_LINE, RECEIVED_LAST, SENT_LAST,
    },
    fork::{CloseOnForkFd, ForkMark},
    handshake::{
        broadcast::{self, ReportedStart, ReservedStart, RingPart},
        frame::{
            self, ACCEPTS_DESCRIPTORS, ACCEPTS_SEALED, BARRIERS, Frame, HARDENS, Hello, LACKS_MEMORY,
            Meeting, Nonce, Offer, check_echo,
        },
        line::{self, FrameLine, prepare_new_socket, prepare_socket, refuse},
        parts::{ChannelTerms, Objects, Parts, Role, Unopened},
        parts::{Connection, ExpectedChild, OwnObject, PeerSession, RingRole, Side},
    },
    harden,
    identity::{Credentials, Identity},
    options::MAX_MESSAGE_SIZE,
    peer::process::Peer,
    region::{
        accept::{Agreed, accept, accept_blank, seals_of},
        copy::{Readable, Writable},
        create::{Backing, Blank, ObjectSpec, SharedObject},
        layout::{TAIL, as_offset, head_of, region_size, round_capacity},
        peer::PeerRegion,
    },
    signal::inbox::{OpenInbox, TokenAddress, TokenSender},
    sys,
    trace::TraceContext,
    wake::{
        attachments::{Attachments, UncheckedFd},
        parking::Barriers,
    },
};

impl Side<'_> {
    /// Runs step 4 as the host. The guest's HELLO arrives over the agreed socket with one end of a line, and
    /// the answer is sent on that line. The agreed socket is closed when this returns, because any process
    /// that knows the address can have it.
    pub(super) fn hello_of_guest(
        &self,
        mut connection: Connection,
        map_abort: impl Fn(Error) -> Error,
    ) -> Result<PeerSession> {
        let agreed = self.line(&connection.stream, connection.peer.credentials);
        let result = (|| {
            let (frame, descriptors) = agreed.next_frame("the guest's HELLO", 1)?;
            let [line] = exactly(descriptors)?;
            let line = check_line(line, connection.peer.credentials)?;
            prepare_socket(&line)?;
            let socket = self.line(&line, connection.peer.credentials);
            let (own, hello) = self.answer(&socket, &[], &frame, &mut connection.record)?;
            Ok((line, own, hello))
        })();
        let (line, own, hello) = result.map_err(|error| refuse(&connection.stream, map_abort(error)))?;
        Ok(connection.into_session(line, own, hello, None))
    }

    /// Runs step 4 as the guest. One end of a fresh socketpair is sent over the agreed socket. The answer
    /// arrives on the pair, from the process that the kernel named.
    pub(super) fn hello_of_host(&self, mut connection: Connection) -> Result<Option<PeerSession>> {
        let is_child = self.meeting == Meeting::Family;
        let sent = (|| {
            let line = match sys::socket::new_line() {
                // The parent makes the line instead.
                Err(errno) if is_child && is_denied(errno) => None,
                made => Some(made.or_system(NEW_LINE)?),
            };
            let mut passed = Vec::new();
            if let Some((line, theirs)) = &line {
                passed.push(theirs.as_fd());
                if is_child {
                    // The parent sets the options of both ends: this process may not be allowed to.
                    passed.push(line.as_fd());
                } else {
                    prepare_new_socket(line)?;
                    prepare_new_socket(&connection.stream)?;
                }
            }
            let own = nonce()?;
            let hello = Frame::Hello(self.hello(own, Nonce::default()));
            let sent = match line::send(connection.stream.as_fd(), &hello, &passed) {
                Ok(()) => true,
                Err(Errno::EPIPE | Errno::ECONNRESET) => false,
                Err(errno) => return Err(Error::system("sending on the agreed socket (sendmsg)", errno)),
            };
            Ok((line.map(|(line, _theirs)| line), own, sent))
        })();
        // Otherwise the host would see only that this side has disconnected.
        let (line, own, sent) = sent.map_err(|error| refuse(&connection.stream, error))?;
        let sender = connection.peer.credentials;
        let agreed = self.line(&connection.stream, sender);
        if !sent {
            return read_rejection(&agreed);
        }
        let prepare = || self.own_object(&connection.peer, self.open_inbox()?, None);
        let prepared = self.may_prepare().then(prepare);
        let answer = match &line {
            Some(line) => self.line(line, sender).next_frame("the host's HELLO", 1),
            None => receive_answer(&agreed),
        };
        let (frame, descriptors) = match answer {
            Ok((Frame::Refuse(refuse), _)) => return Err(refuse.into_error(agreed.address)),
            // The host has closed its end of the line, or never received it. If it gave a reason, the reason
            // is on the agreed socket.
            Err(Error::PeerLost(_)) => return read_rejection(&agreed),
            answer => answer?,
        };
        let line = if let Some(line) = line {
            let [] = exactly(descriptors)?;
            line
        } else {
            let [line] = exactly(descriptors)?;
            line.into_checked()
        };
        let hello = self.agree(Role::Guest, &frame, own, &mut connection.record)?;
        if is_child && hello.features & LACKS_MEMORY != 0 {
            return Err(Error::Protocol("a parent that asks for memory".into()));
        }
        Ok(Some(connection.into_session(line, own, hello, prepared)))
    }

    /// Checks the guest's HELLO and sends the host's, with these descriptors, over the line that the guest has passed.
    pub(super) fn answer(
        &self,
        socket: &FrameLine<'_>,
        passed: &[BorrowedFd<'_>],
        frame: &Frame,
        record: &mut EvidenceLog,
    ) -> Result<(Nonce, Hello)> {
        let hello = self.agree(Role::Host, frame, Nonce::default(), record)?;
        if let RingRole::Publisher(_) = self.role {
            let offered = &self.options.deliveries;
            let delivery = broadcast::check_delivery(&hello, offered, socket.sender)?;
            record.passed(
                "hello",
                "delivery",
                broadcast::names(offered),
                delivery.to_string(),
            );
        }
        let own = nonce()?;
        socket.send(&Frame::Hello(self.hello(own, hello.nonce)), passed)?;
        Ok((own, hello))
    }

    fn hello(&self, nonce: Nonce, echo: Nonce) -> Hello {
        let options = self.options;
        let (delivery, from) = match self.role {
            RingRole::Subscriber => (options.delivery.number(), options.from.number()),
            RingRole::PerSide | RingRole::Publisher(_) => (0, 0),
        };
        let accepted = self.accepted();
        let features = [
            (self.supports_barriers, BARRIERS),
            (options.harden || harden::is_hardened(), HARDENS),
            (accepted.sealed, ACCEPTS_SEALED),
            (accepted.descriptors, ACCEPTS_DESCRIPTORS),
            (self.lacks_memory, LACKS_MEMORY),
        ];
        Hello {
            nonce,
            echo,
            capacity: self.own_ring(),
            longest: options.longest(),
            backing: options.backing.number(),
            features: features.into_iter().map(|(has, bit)| bit * u32::from(has)).sum(),
            meeting: self.meeting.number(),
            delivery,
            from,
            max_attachments: accepted.max_count,
            reserved: 0,
            max_attached_bytes: accepted.max_bytes,
        }
    }

    /// The attachments that this side accepts. A publisher receives none.
    fn accepted(&self) -> Attachments {
        match self.role {
            RingRole::PerSide | RingRole::Subscriber => self.options.attachments,
            RingRole::Publisher(_) => Attachments::none(),
        }
    }

    /// Checks that the peer's HELLO is valid and agrees with this side's options.
    fn agree(&self, role: Role, frame: &Frame, echo: Nonce, record: &mut EvidenceLog) -> Result<Hello> {
        let Frame::Hello(hello) = frame else {
            return Err(Error::Protocol("expected a HELLO, received another frame".into()));
        };
        check_echo("a HELLO", &hello.echo, &echo)?;
        agree_on_meeting(self.meeting, role, hello.meeting)?;
        let own = self.options.backing;
        agree_on_backing(own, hello.backing)?;
        self.agree_on_ring(hello)?;
        record.passed(
            "hello",
            "protocol",
            format!("version {}", frame::VERSION),
            "as wanted",
        );
        record.met(PRIVATE_LINE, "as wanted");
        record.passed("hello", "backing", own.to_string(), own.to_string());
        Ok(*hello)
    }

    /// Checks the sizes that the peer has chosen. This side would pay for them, so the check comes before
    /// anything is created or mapped.
    fn agree_on_ring(&self, hello: &Hello) -> Result<()> {
        let Hello {
            capacity, longest, ..
        } = *hello;
        if !(1..=MAX_MESSAGE_SIZE).contains(&longest) {
            return Err(Error::Protocol(format!("messages of {longest} bytes")));
        }
        let own_longest = self.options.longest();
        match self.role {
            RingRole::PerSide => {}
            RingRole::Subscriber => broadcast::check_limits(longest, own_longest)?,
            RingRole::Publisher(_) => {
                broadcast::check_limits(own_longest, longest)?;
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
        let max = self.options.max_peer_capacity;
        if capacity > max {
            return Err(Error::Protocol(format!(
                "the peer's ring has {capacity} bytes, and this side takes {max} (max_peer_capacity)"
            )));
        }
        Ok(())
    }

    /// Ends the first inspection with the policy's callback. The peer has passed all other checks, and its
    /// HELLO has proved that it holds the line. Nothing has been shared with it yet.
    pub(super) fn authorize(&self, session: &mut PeerSession) -> Result<()> {
        let authorized = self.options.policy.run_callback(
            &session.identity,
            session.line.as_fd(),
            self.deadline,
            &mut session.record,
        );
        self.or_refusal(session, authorized)
    }

    /// Returns the reason that a peer has sent before it disconnected, if it is lost.
    fn or_refusal<T>(&self, session: &PeerSession, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::PeerLost(_)) => {
                // Its last frame has arrived already. Another process may hold its end open.
                let now = self.deadline.until(Some(Instant::now()));
                let line = FrameLine {
                    deadline: &now,
                    ..self.line(&session.line, session.peer.credentials)
                };
                Err(line.read_refusal().unwrap_or(error))
            }
            other => other,
        }
    }
}

/// Returns the name of the call with which a process gets this role.
const fn call_of(meeting: Meeting, role: Role) -> &'static str {
    match (meeting, role) {
        (Meeting::Pair, _) => "join",
        (Meeting::Service, Role::Host) => "listen",
        (Meeting::Service, Role::Guest) => "connect",
        (Meeting::Family, Role::Host) => "spawn",
        (Meeting::Family, Role::Guest) => "from_parent",
        (Meeting::Membership, _) => "member",
        (Meeting::Broadcast, Role::Host) => "publish",
        (Meeting::Broadcast, Role::Guest) => "subscribe",
    }
}

/// The error also goes to the peer, so it names both processes by what they did.
fn agree_on_meeting(own: Meeting, role: Role, number: u32) -> Result<()> {
    let Some(peers) = Meeting::from_number(number) else {
        return Err(Error::Protocol(format!("an unknown kind of meeting, {number}")));
    };
    if peers == own {
        return Ok(());
    }
    let (host, guest) = match role {
        Role::Host => (own, peers),
        Role::Guest => (peers, own),
    };
    Err(Error::Protocol(format!(
        "the process that holds the address called `{}`, and the process that connected called `{}`: the latter must call `{}`, or \
         use another address",
        call_of(host, Role::Host),
        call_of(guest, Role::Guest),
        call_of(host, Role::Guest),
    )))
}

fn agree_on_backing(own: Backing, number: u32) -> Result<()> {
    match Backing::from_number(number) {
        Some(backing) if backing == own => Ok(()),
        Some(backing) => Err(Error::Protocol(format!(
            "the backings differ: {own} on one side, {backing} on the other"
        ))),
        None => Err(Error::Protocol(format!(
            "a backing with the unknown number {number}"
        ))),
    }
}

/// Receives the host's first frame on the agreed socket.
fn receive_answer(agreed: &FrameLine<'_>) -> Result<(Frame, Vec<UncheckedFd>)> {
    const ANSWER: &str = "the host's answer";
    match agreed.receive(ANSWER, 1) {
        // On the line of a child, the mark precedes it.
        Ok((line::MARK, _)) => agreed.receive(ANSWER, 1),
        other => other,
    }
}

/// Names the operation in errors.
pub(super) const NEW_LINE: &str = "a private line (socketpair)";

/// Reads the reason why the host closed the connection without taking the line. Returns `None` if the host
/// has ended, is about to end, or has waited too long for this side. Then the caller retries the address.
fn read_rejection(agreed: &FrameLine<'_>) -> Result<Option<PeerSession>> {
    match receive_answer(agreed) {
        Ok((Frame::Refuse(refuse), _)) if refuse.is_transient() => Ok(None),
        Ok((Frame::Refuse(refuse), _)) => Err(refuse.into_error(agreed.address)),
        Ok(_) => Err(Error::Protocol("an unexpected frame on the agreed socket".into())),
        Err(Error::PeerLost(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the line that came with a HELLO. A child passes its own end as well.
pub(super) fn exactly<const N: usize>(descriptors: Vec<UncheckedFd>) -> Result<[UncheckedFd; N]> {
    descriptors.try_into().map_err(|found: Vec<_>| {
        Error::Protocol(format!("a HELLO with {} descriptors instead of {N}", found.len()))
    })
}

/// Checks that the process that sends on an inherited socket is one that the parent admits. (The children of the
/// process that was started inherit the socket too, until it has taken the socket.)
pub(super) fn check_child(
    sender: Credentials,
    expected: ExpectedChild<'_>,
    record: &mut EvidenceLog,
) -> Result<()> {
    let found = format!("pid {}", sender.pid);
    let (passed, wanted, advice) = match expected {
        ExpectedChild::Unknown => {
            record.not_asked("credentials", "child", found);
            return Ok(());
        }
        ExpectedChild::Process(pid, _) => (
            sender.pid == pid,
            format!("pid {pid}, the process that was started"),
            "; `admit` can be 'descendant' if the command is a launcher that forks",
        ),
        // This process has made sockets for its children's output, too, and a child could pass one of those.
        ExpectedChild::Descendant => (
            sender.pid != getpid().as_raw(),
            "the first process that answers, other than this one".to_owned(),
            "",
        ),
    };
    if passed {
        record.passed("credentials", "child", wanted, found);
        return Ok(());
    }
    let refusal = Refusal::new(Check::Child, wanted, found + advice);
    Err(refusal.about(sender).into())
}

/// Checks that the guest has passed one end of a pair of connected stream sockets that the guest itself
/// created.
pub(super) fn check_line(line: UncheckedFd, sender: Credentials) -> Result<OwnedFd> {
    const LINE: &str = "inspecting the line that the peer has passed";
    const WANTED: &str = "a Unix stream socket pair made by the process that connected";
    fn ask<'a, T>(line: &'a OwnedFd, call: impl Fn(BorrowedFd<'a>) -> Result<T, Errno>) -> Result<T> {
        sys::uninterrupted(|| call(line.as_fd()))
            .map_err(|errno| Refusal::of_lookup(LINE, Check::Line, WANTED, errno))
    }
    let kind = ask(&line, |line| getsockopt(&line, sockopt::SockType))?;
    ask(&line, |line| getsockname::<UnixAddr>(line.as_raw_fd()))?;
    ask(&line, |line| getpeername::<UnixAddr>(line.as_raw_fd()))?;
    let creator = ask(&line, |line| sys::socket::peer_credentials(&line))?;
    if kind == SockType::Stream && creator == sender {
        return Ok(line.into_checked());
    }
    let found = format!("{kind:?}, made by {creator:?}");
    Err(Refusal::new(Check::Line, WANTED, found).into())
}

fn nonce() -> Result<Nonce> {
    sys::process::bytes().or_system("random bytes")
}

impl Side<'_> {
    /// Whether a guest makes its object while it waits for the host's HELLO. A larger one takes longer than the host
    /// needs for that, and would delay a refusal. A process that hardens itself does so before it makes its object. One that asks its
    /// program about the peer makes none before the answer.
    fn may_prepare(&self) -> bool {
        const MAX_PREPARED: u64 = 128 * 1024;
        let is_small = self.own_ring() <= MAX_PREPARED && !self.lacks_memory;
        is_small && !self.options.harden && !self.options.policy.has_callback()
    }

    fn open_inbox(&self) -> Result<OpenInbox> {
        OpenInbox::open(self.options.realtime_signal)
    }

    /// Makes this side's object, in memory that the parent has made if there is any: both descriptors of it.
    fn own_object(
        &self,
        peer: &Peer,
        inbox: OpenInbox,
        memory: Option<[CloseOnForkFd; 2]>,
    ) -> Result<OwnObject> {
        let mut record = EvidenceLog::default();
        // A control object is as large as the smallest ring: its name tells them apart.
        let (name, capacity): (&[u8], _) = match self.role {
            RingRole::PerSide => (b"ringfence", self.options.capacity),
            RingRole::Publisher(_) | RingRole::Subscriber => (b"ringfence-control", 0),
        };
        let wanted = ObjectSpec {
            backing: self.options.backing,
            name,
            capacity,
            signal: inbox.number(),
            peer: peer.credentials.uid,
        };
        let object = match memory {
            Some([raw, mapped]) => {
                let blank = accept_blank(raw, mapped, wanted.capacity, &mut record)?;
                SharedObject::seal(blank, &wanted, &mut record)?
            }
            None => SharedObject::create(&wanted, self.deadline, &mut record)?,
        };
        Ok(OwnObject {
            object,
            inbox,
            record,
        })
    }

    /// Runs steps 5 and 6: makes this side's object, if it is not made yet, and passes it; receives the peer's object, checks
    /// and maps it. The peer is checked again while it makes its object. In a broadcast both objects are control objects, and the
    /// publisher passes its ring in addition.
    pub(super) fn exchange(&self, session: &mut PeerSession) -> Result<(Objects, Identity)> {
        session.peer.hardens = session.hello.features & HARDENS != 0;
        self.harden(&mut session.record)?;
        let peers_memory = self.child_memory(session)?;
        let mut received = None;
        let mut own = match session.prepared.take() {
            Some(prepared) => prepared?,
            None if self.lacks_memory => {
                // A signal that is in use fails here, not once the peer has sent its OFFER.
                let inbox = self.open_inbox()?;
                let (offer, mut descriptors) = self.receive_offer(session)?;
                let [raw, mapped] = [descriptors.pop(), descriptors.pop()]
                    .map(|descriptor| descriptor.ok_or_else(missing_object));
                received = Some((offer, descriptors));
                self.own_object(&session.peer, inbox, Some([raw?, mapped?]))?
            }
            None => self.own_object(&session.peer, self.open_inbox()?, None)?,
        };
        session.record.append(&mut own.record);
        let reserved = self.reserve_start(&session.hello)?;
        let offer = Offer {
            echo: session.hello.nonce,
            size: region_size(self.own_ring()),
            capacity: self.own_ring(),
            tokens: own.inbox.address(),
            start: reserved.as_ref().map(ReservedStart::start).unwrap_or_default(),
        };
        self.send_offer(session, offer, &own.object, peers_memory.as_ref())?;
        drop(peers_memory);
        let inspected = self.final_check(session);
        let identity = self.or_refusal(session, inspected)?;
        let (offer, descriptors) = match received {
            Some(received) => received,
            None => self.receive_offer(session)?,
        };
        let agreed = Agreed {
            backing: self.options.backing,
            capacity: session.hello.capacity,
            stated: offer.size,
            owner: session.peer.credentials.uid,
        };
        let (peers_region, ring) = accept_objects(&descriptors, agreed, &offer, &mut session.record)?;
        // Its descriptor is closed here: the peer's copy is on the line or with it.
        let OwnObject { object, inbox, .. } = own;
        if let RingPart::Subscriber(_, ReportedStart { start, .. }) = &ring {
            // Before READY, because the publisher reads it from then on.
            let at = head_of(as_offset(start.slot.into()));
            object.region.store(at, start.position, Ordering::Release);
        }
        object.check()?;
        let objects = Objects {
            own: Unopened::new(object.region.clone()),
            peer: peers_region,
            inbox,
            ring: reserved.map_or(ring, RingPart::Publisher),
            token_sender: token_sender(&session.peer, &offer)?,
            mark: ForkMark::new()?,
        };
        Ok((objects, identity))
    }

    /// Hardens this process if the options ask for it. Both sides have inspected each other by this point,
    /// because each sends its HELLO after its check. And no shared memory exists yet. So this is the moment
    /// to close this process to others of its user.
    fn harden(&self, record: &mut EvidenceLog) -> Result<()> {
        if self.options.harden {
            harden::harden()?;
            record.met(HARDENED, "not dumpable, no core");
        } else if harden::is_hardened() {
            record.not_asked("hello", "hardened", "this process: not dumpable");
        } else {
            record.not_asked("hello", "hardened", "this process: dumpable");
        }
        Ok(())
    }

    /// Creates the memory of the peer's object, if the peer is a child that asks for it.
    fn child_memory(&self, session: &mut PeerSession) -> Result<Option<Blank>> {
        let PeerSession {
            peer, hello, record, ..
        } = session;
        let is_requested = self.meeting == Meeting::Family && hello.features & LACKS_MEMORY != 0;
        if !is_requested {
            return Ok(None);
        }
        if self.options.backing != Backing::Memfd {
            return Err(Error::Protocol(
                "a child that asks for memory, though the backing is not memfd".into(),
            ));
        }
        let blank = Blank::for_child(hello.capacity, peer.credentials.uid, self.deadline)?;
        record.met(CHILD_MEMORY, format!("{} bytes", region_size(hello.capacity)));
        Ok(Some(blank))
    }

    /// Reserves the starting position of a new subscriber, if this side is a publisher.
    fn reserve_start(&self, hello: &Hello) -> Result<Option<ReservedStart>> {
        let RingRole::Publisher(ring) = self.role else {
            return Ok(None);
        };
        let (delivery, from) = broadcast::requested(hello)?;
        ring.reserve(delivery, from).map(Some)
    }

    /// Sends this side's OFFER with its object. A publisher passes its ring as well, and a parent the memory for a child
    /// that asks for it.
    fn send_offer(
        &self,
        session: &mut PeerSession,
        offer: Offer,
        object: &SharedObject,
        peers_memory: Option<&Blank>,
    ) -> Result<()> {
        let line = self.line(&session.line, session.peer.credentials);
        let size = offer.size;
        let offer = Frame::Offer(offer);
        let count = if let RingRole::Publisher(ring) = self.role {
            ring.pass(self.deadline, |copy| {
                line.send(&offer, &[object.as_fd(), copy.as_fd()])
            })?;
            2
        } else {
            let mut passed = vec![object.as_fd()];
            passed.extend(peers_memory.into_iter().flat_map(Blank::descriptors));
            line.send(&offer, &passed)?;
            1
        };
        let sent = format!("{size} bytes");
        session
            .record
            .passed("offer", "sent", descriptors_text(count), sent);
        Ok(())
    }

    /// Receives the peer's OFFER with its object and, from a publisher, the ring. Until they are mapped,
    /// forked children do not inherit the descriptors.
    fn receive_offer(&self, session: &mut PeerSession) -> Result<(Offer, Vec<CloseOnForkFd>)> {
        let line = self.line(&session.line, session.peer.credentials);
        let wanted = match self.role {
            RingRole::Subscriber => 2,
            // The peer's object, and both descriptors of this side's.
            RingRole::PerSide if self.lacks_memory => 3,
            RingRole::PerSide | RingRole::Publisher(_) => 1,
        };
        let (frame, descriptors) = line.next_frame("the peer's OFFER", wanted)?;
        let Frame::Offer(offer) = frame else {
            return Err(Error::Protocol(
                "expected an OFFER, received another frame".into(),
            ));
        };
        check_echo("an OFFER", &offer.echo, &session.own)?;
        let found = descriptors.len();
        if found != wanted {
            return Err(Error::unsound("descriptors", wanted, found));
        }
        let take = |object: UncheckedFd| {
            seals_of(&object)?;
            CloseOnForkFd::new(object.into_checked())
        };
        let descriptors: Result<_> = descriptors.into_iter().map(take).collect();
        let (capacity, agreed) = (offer.capacity, session.hello.capacity);
        if capacity != agreed {
            return Err(Error::Protocol(format!(
                "an OFFER of {capacity} bytes after a HELLO of {agreed}"
            )));
        }
        let size = format!("{} bytes", offer.size);
        session
            .record
            .passed("offer", "received", descriptors_text(wanted), size);
        Ok((offer, descriptors?))
    }
}

fn missing_object() -> Error {
    Error::Protocol("an OFFER without an object".into())
}

/// Checks and maps the objects of an OFFER: one, or of a publisher its control object and its ring. `agreed` describes the peer's
/// ring, if it has one.
fn accept_objects(
    descriptors: &[CloseOnForkFd],
    agreed: Agreed,
    offer: &Offer,
    record: &mut EvidenceLog,
) -> Result<(PeerRegion, RingPart)> {
    match descriptors {
        [object] => Ok((accept(object, &agreed, record)?, RingPart::PerSide)),
        [control, ring] => {
            let terms = Agreed {
                capacity: 0,
                stated: region_size(0),
                ..agreed
            };
            let region = accept(control, &terms, record)?;
            let ring = accept(ring, &agreed, record)?;
            let reported = ReportedStart {
                start: offer.start,
                tail: ring.load(TAIL, Ordering::Acquire),
            };
            Ok((region, RingPart::Subscriber(ring, reported)))
        }
        _ => Err(missing_object()),
    }
}

fn token_sender(peer: &Peer, offer: &Offer) -> Result<TokenSender> {
    let mut sender = TokenSender::new(peer.credentials.pid, offer.tokens)?;
    if !peer.shares_pid_ns() {
        // The number of the peer's thread would name a different thread here.
        sender.address = TokenAddress::default();
    }
    Ok(sender)
}

fn descriptors_text(count: usize) -> &'static str {
    if count == 1 {
        "one descriptor, its size in a struct"
    } else {
        "two descriptors, the ring's size in a struct"
    }
}

impl Side<'_> {
    /// Runs step 7: checks that the process still exists and still satisfies the policy.
    pub(super) fn final_check(&self, session: &mut PeerSession) -> Result<Identity> {
        let PeerSession { peer, record, .. } = session;
        let identity = self.options.policy.check(peer, "final", self.deadline, record)?;
        record.not_asked("final", "peer hardened", peer.hardening());
        Ok(identity)
    }

    /// Runs step 8.
    pub(super) fn send_ready(&self, session: &mut PeerSession) -> Result<()> {
        let shares: Vec<_> = self.shares.iter().map(|share| share.as_fd()).collect();
        self.line(&session.line, session.peer.credentials)
            .send(&Frame::Ready(session.hello.nonce), &shares)?;
        session.record.met(SENT_LAST, "sent");
        if !shares.is_empty() {
            session
                .record
                .met(PASSED_ON, format!("{} descriptors", shares.len()));
        }
        Ok(())
    }

    /// Waits for the host's READY. In a membership, READY carries the guest's share of the place.
    pub(super) fn receive_inheritance(&self, session: &mut PeerSession) -> Result<Option<Inheritance>> {
        let Some(address) = self.inherits else {
            self.receive_ready(session, 0)?;
            return Ok(None);
        };
        let descriptors = self.receive_ready(session, Inheritance::count(address))?;
        Inheritance::accept(address, descriptors, &mut session.record).map(Some)
    }

    pub(super) fn receive_ready(&self, session: &mut PeerSession, count: usize) -> Result<Vec<UncheckedFd>> {
        let line = self.line(&session.line, session.peer.credentials);
        let (frame, descriptors) = line.receive("the peer's READY", count)?;
        let echo = match frame {
            Frame::Ready(echo) => echo,
            // Only a publisher can evict this side, so the word counts only for a subscriber.
            Frame::Refuse(refuse) if matches!(self.role, RingRole::Subscriber) && refuse.is_eviction() => {
                return Err(Error::Evicted);
            }
            Frame::Refuse(refuse) => return Err(refuse.into_error(line.address)),
            _ => return Err(Error::Protocol("expected READY, received another frame".into())),
        };
        if descriptors.len() != count {
            let wanted = format!("{count} with READY");
            return Err(Error::unsound("descriptors", wanted, descriptors.len()));
        }
        check_echo("a READY", &echo, &session.own)?;
        session.record.met(RECEIVED_LAST, "received");
        Ok(descriptors)
    }

    pub(super) fn finish(
        &self,
        role: Role,
        session: PeerSession,
        objects: Objects,
        identity: Identity,
        inheritance: Option<Inheritance>,
    ) -> Parts {
        let (hello, mut record) = (session.hello, session.record);
        // A child may run under a filter that kills it for setsockopt(2).
        let is_child = self.meeting == Meeting::Family && role == Role::Guest;
        if !is_child && !self.accepted().any() {
            sys::socket::refuse_descriptors(&session.line);
        }
        record.met(CLOSED, "closed");
        Parts {
            role,
            line: session.line,
            process: session.peer.into_open(),
            trace: TraceContext::with(&self.address, &identity),
            identity,
            evidence: record.into_list(),
            objects,
            terms: ChannelTerms {
                own_capacity: self.own_ring(),
                peer_capacity: hello.capacity,
                attachments_in: self.accepted(),
                attachments_out: hello.attachments(),
                longest_out: hello.longest,
                longest_in: self.options.longest(),
            },
            barriers: Barriers::by_sleeper_if(self.supports_barriers && hello.features & BARRIERS != 0),
            inheritance,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::{
        sys::socket::{AddressFamily, Backlog, SockFlag, bind, listen, socket, socketpair},
        unistd::pipe,
    };

    use super::*;
    use crate::{options::Options, wait::deadline::Deadline};

    fn made(kind: SockType) -> OwnedFd {
        let (line, _other) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        line
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn line_must_be_a_unix_stream_pair_made_by_the_sender() {
        let (line, _other) = sys::socket::new_line().unwrap();
        let own = sys::socket::peer_credentials(&line).unwrap();
        let line = check_line(UncheckedFd::new(line), own).unwrap();
        // A listening socket reports its creator like a connected one, but has no other end.
        let listener = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let (no_socket, _end) = pipe().unwrap();
        let other = Credentials {
            pid: own.pid + 1,
            ..own
        };
        for (what, line, sender) in [
            ("of another process", line, other),
            ("of messages", made(SockType::SeqPacket), own),
            ("of datagrams", made(SockType::Datagram), own),
            ("that listens", listener, own),
            ("that is a pipe", no_socket, own),
        ] {
            let refused = check_line(UncheckedFd::new(line), sender).expect_err(what);
            let refusal = refused.refusal().expect(what);
            assert_eq!(refusal.check, Check::Line, "{what}");
        }
    }

    #[test]
    fn hello_must_have_one_descriptor() {
        let passed = |_| UncheckedFd::new(made(SockType::Stream));
        let descriptors = |count| (0..count).map(passed).collect();
        assert!(exactly::<1>(descriptors(1)).is_ok());
        for count in [0, 2, 3] {
            assert_eq!(exactly::<1>(descriptors(count)).unwrap_err().code(), "PROTOCOL");
        }
    }

    #[test]
    fn peer_sizes_must_be_valid_and_within_limits() {
        const FAR: u64 = 1 << 62;
        let said = |capacity, longest| Hello {
            nonce: [1; 32],
            echo: [2; 32],
            capacity,
            longest,
            ..Hello::default()
        };
        let deadline = Deadline::endless(Vec::new(), Duration::from_secs(60));
        let agreed = |max, role, capacity, longest| {
            let options = Options::new().max_peer_capacity(max).max_message_size(100);
            let side = Side {
                options: &options,
                deadline: &deadline,
                meeting: Meeting::Service,
                address: String::new(),
                shares: &[],
                inherits: None,
                destroyed: None,
                role,
                supports_barriers: false,
                lacks_memory: false,
            };
            let agreed = side.agree_on_ring(&said(capacity, longest));
            if let Err(error) = &agreed {
                assert_eq!(error.code(), "PROTOCOL");
            }
            agreed.is_ok()
        };
        let per_side = RingRole::PerSide;
        for (max, capacity, is_right) in [
            (8192, 4096, true),
            (8192, 8192, true),
            (8192, 16384, false),
            (8192, 32768, false),
            (FAR, 1 << 46, true),
            (FAR, 1 << 47, false),
            (FAR, 1 << 48, false),
            (FAR, 0, false),
            (FAR, 2048, false),
            (FAR, 4097, false),
            (FAR, 12288, false),
            (FAR, u64::MAX, false),
        ] {
            assert_eq!(
                agreed(max, per_side, capacity, 1),
                is_right,
                "{capacity} of {max}"
            );
            assert_eq!(agreed(max, RingRole::Subscriber, capacity, 1), is_right);
        }
        for (longest, is_right) in [
            (0, false),
            (MAX_MESSAGE_SIZE, true),
            (MAX_MESSAGE_SIZE + 1, false),
        ] {
            assert_eq!(agreed(FAR, per_side, 4096, longest), is_right, "{longest}");
        }
        // For the publisher's messages, this side's own limit counts.
        assert!(agreed(FAR, RingRole::Subscriber, 4096, 100));
        assert!(!agreed(FAR, RingRole::Subscriber, 4096, 101));
    }
}
