//! A whole handshake with a child that sends and passes anything. This side is the parent, or a publisher.

use std::{
    fs::File,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair},
};

use super::{
    beside::judge,
    object::{Drawn, odd},
};
use crate::{
    evidence::EvidenceLog,
    handshake::broadcast::PublishedRing,
    handshake::frame::{Code, Frame, Hello, LACKS_MEMORY, Meeting, Nonce, Offer, Refuse, Start},
    handshake::line::{self, FrameLine, prepare_new_socket},
    handshake::parts::{ExpectedChild, Side},
    identity::Credentials,
    options::{MAX_MESSAGE_SIZE, Options},
    region::create::{Backing, InFlightDescriptor},
    region::layout::{CAPACITY_MIN, round_capacity},
    region::own::OwnRegion,
    ring::fan_out::readers::Readers,
    ring::fan_out::{Delivery, StartFrom},
    signal::inbox::{Secret, TokenAddress},
    sys,
    wait::deadline::Deadline,
    wake::attachments::UncheckedFd,
};

pub(super) const OWN: Nonce = [5; 32];

/// Runs a handshake with a fuzzed child. If everything that the child sends and passes is sound there is a
/// channel, and otherwise none, whatever else is wrong.
pub fn handshake(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    let Ok(publishes) = script.int_in_range(0..=1).map(|drawn| drawn == 1) else {
        return;
    };
    let Ok(Some(child)) = Guest::take(&mut script, Meeting::Family, publishes) else {
        return;
    };
    let (options, ring) = what_a_host_has(publishes, child.backing);
    // The deadline never expires: the child closes its ends once it has finished.
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let side = Side::new(&"@address", &options, &deadline, Meeting::Family).publishing(ring.as_ref());
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).expect("a line");
    prepare_new_socket(&ours).expect("SO_PASSCRED");
    let (wrong, made) = thread::scope(|scope| {
        let wrong = child.wrong;
        let talk = scope.spawn(move || child.talk(&theirs, own_pid()));
        let made = side
            .parent(ours, ExpectedChild::Unknown, &mut None, EvidenceLog::default())
            .map(drop);
        // The scope waits only for the closure's end, not until the thread has released its memory.
        talk.join().expect("the child");
        (wrong, made)
    });
    judge(&made.map(Some), wrong, "a child");
}

/// Returns the options of a parent or another host, and its ring if it publishes.
pub(super) fn what_a_host_has(publishes: bool, backing: Backing) -> (Options, Option<Arc<PublishedRing>>) {
    let options = Options::new().capacity(CAPACITY_MIN).backing(backing);
    let options = if publishes {
        options.checked_to_publish()
    } else {
        options.checked()
    };
    let ring = publishes.then(|| Arc::new(published()));
    (options.expect("options"), ring)
}

fn published() -> PublishedRing {
    let object = memfd_create("fuzzed", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let readers = Readers::new(OwnRegion::private(CAPACITY_MIN), OwnRegion::private(0), 4);
    let kept = InFlightDescriptor::new(object).expect("a descriptor in flight");
    PublishedRing::new(Arc::new(readers), kept, || ()).expect("memory")
}

/// The content of a message: a frame, or bytes instead of one.
pub(super) enum Said {
    Frame(Frame),
    Bytes(Vec<u8>),
}

/// Everything that a child or another guest will send, except for the nonce that it must echo.
pub(super) struct Guest {
    pub(super) backing: Backing,
    hello: Said,
    offer: Said,
    ready: Said,
    /// Whether OFFER and READY echo the host's nonce.
    answers: [bool; 2],
    /// A child passes both ends of the line with HELLO, another guest one.
    is_child: bool,
    /// The descriptors sent with HELLO in place of those.
    instead: Option<Vec<OwnedFd>>,
    /// Both ends of the line, if the other side makes it.
    line: Option<[OwnedFd; 2]>,
    object: Drawn,
    /// The number of times that the object is passed.
    objects: usize,
    /// The guest disconnects after this many frames.
    leaves: usize,
    pub(super) wrong: Option<&'static str>,
}

impl Guest {
    /// Draws a guest for a host that publishes, or that has one ring per side. `None`: this kernel supports
    /// no such object.
    pub(super) fn take(
        script: &mut Unstructured<'_>,
        meeting: Meeting,
        publishes: bool,
    ) -> Result<Option<Self>> {
        let backing = if publishes {
            Backing::Memfd
        } else {
            *script.choose(&[Backing::Memfd, Backing::Shm])?
        };
        let capacity = if publishes { 0 } else { CAPACITY_MIN };
        let Some(object) = Drawn::of(script, backing, capacity)? else {
            return Ok(None);
        };
        let mut wrong = object.wrong;
        let mut judge = |sound: bool, what| {
            if !sound {
                wrong = wrong.or(Some(what));
            }
        };
        let hello = hello(script, capacity, backing, meeting)?;
        judge(hello.echo == Nonce::default(), "HELLO's echo");
        // The capacity in HELLO must also match the ring that it passes.
        judge(hello.capacity == capacity, "HELLO's capacity");
        let least = if publishes { CAPACITY_MIN / 8 } else { 1 };
        judge(
            (least..=MAX_MESSAGE_SIZE).contains(&hello.longest),
            "its longest message",
        );
        judge(hello.backing == backing.number(), "its backing");
        judge(hello.meeting == meeting.number(), "its meeting");
        let asks_for_memory = meeting == Meeting::Family && hello.features & LACKS_MEMORY != 0;
        judge(
            !asks_for_memory || backing == Backing::Memfd,
            "the memory that it asks for",
        );
        let asks =
            Delivery::from_number(hello.delivery).is_some() && StartFrom::from_number(hello.from).is_some();
        judge(!publishes || asks, "what it asks for");
        let offer = offer(script, capacity, object.agreed.stated)?;
        judge(offer.capacity == capacity, "OFFER's capacity");
        let TokenAddress { number, thread, .. } = offer.tokens;
        let reached = (32..=64).contains(&number) && (1..=i32::MAX.cast_unsigned()).contains(&thread);
        judge(number == 0 || reached, "its tokens");
        let mut answers = [true; 2];
        if odd(script)? {
            answers[script.int_in_range(0..=1_usize)?] = false;
        }
        judge(answers == [true; 2], "an echo");
        let mut frames = [
            Frame::Hello(hello),
            Frame::Offer(offer),
            Frame::Ready(Nonce::default()),
        ]
        .map(Said::Frame);
        if odd(script)? {
            let at = script.int_in_range(0..=2_usize)?;
            frames[at] = other(script, at)?;
            judge(false, "a frame");
        }
        let instead = if odd(script)? {
            Some(no_line(script)?)
        } else {
            None
        };
        judge(instead.is_none(), "its line");
        let objects = if odd(script)? {
            script.int_in_range(0..=3)?
        } else {
            1
        };
        judge(objects == 1, "how many objects it passes");
        let leaves = if odd(script)? {
            script.int_in_range(0..=2)?
        } else {
            3
        };
        judge(leaves == 3, "when it leaves");
        let [hello, offer, ready] = frames;
        Ok(Some(Self {
            backing,
            hello,
            offer,
            ready,
            answers,
            instead,
            line: None,
            object,
            objects,
            leaves,
            wrong,
            is_child: meeting == Meeting::Family,
        }))
    }

    /// Uses these two ends as its line.
    pub(super) fn speaks_on(&mut self, ends: Vec<OwnedFd>) {
        self.line = ends.try_into().ok();
    }

    /// Sends everything to this process.
    pub(super) fn talk(mut self, agreed: &OwnedFd, host: i32) {
        let [line, theirs] = self.line.take().unwrap_or_else(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (line, theirs) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, flags).expect("a line");
            [line, theirs]
        });
        prepare_new_socket(&line).expect("SO_PASSCRED");
        if self.leaves == 0 {
            return;
        }
        let is_child = self.is_child;
        let passed = self.instead.take().unwrap_or_else(|| {
            let own = is_child.then(|| line.try_clone().expect("a descriptor"));
            [theirs].into_iter().chain(own).collect()
        });
        say(
            agreed,
            &self.hello,
            &passed.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
        );
        // The end of the line is seen only after the host has closed its copy.
        drop(passed);
        let Some(nonce) = nonce_of_host(&line, host) else {
            return;
        };
        for said in [&mut self.offer, &mut self.ready] {
            let answer = if self.answers[usize::from(matches!(said, Said::Frame(Frame::Ready(_))))] {
                nonce
            } else {
                OWN
            };
            match said {
                Said::Frame(Frame::Offer(offer)) => offer.echo = answer,
                Said::Frame(Frame::Ready(echo)) => *echo = answer,
                _ => {}
            }
        }
        if self.leaves > 1 {
            let objects = vec![self.object.object.as_fd(); self.objects];
            say(&line, &self.offer, &objects);
        }
        if self.leaves > 2 {
            say(&line, &self.ready, &[]);
        }
        // The guest sends nothing more, and reads until the host is done.
        let _ = shutdown(line.as_raw_fd(), Shutdown::Write);
        while frame_on(&line, host).is_some() {}
    }
}

/// Draws a HELLO in which one field may be wrong.
pub(super) fn hello(
    script: &mut Unstructured<'_>,
    capacity: u64,
    backing: Backing,
    meeting: Meeting,
) -> Result<Hello> {
    let mut hello = Hello {
        nonce: OWN,
        echo: Nonce::default(),
        capacity,
        longest: 1 << 20,
        backing: backing.number(),
        features: script.int_in_range(0..=15)?,
        meeting: meeting.number(),
        delivery: script.choose(&Delivery::ALL)?.number(),
        from: script.choose(&StartFrom::ALL)?.number(),
        max_attachments: script.arbitrary()?,
        reserved: 0,
        max_attached_bytes: script.arbitrary()?,
    };
    if odd(script)? {
        match script.int_in_range(0..=7)? {
            0 => hello.echo = script.arbitrary()?,
            1 => hello.capacity = number(script)?,
            2 => hello.longest = number(script)?,
            3 => hello.backing = script.int_in_range(0..=3)?,
            4 => hello.meeting = script.int_in_range(0..=6)?,
            5 => hello.delivery = script.int_in_range(0..=4)?,
            6 => hello.from = script.int_in_range(0..=4)?,
            _ => hello.features = script.arbitrary()?,
        }
    }
    Ok(hello)
}

/// Draws an OFFER in which one field may be wrong, besides the size of the object.
pub(super) fn offer(script: &mut Unstructured<'_>, capacity: u64, size: u64) -> Result<Offer> {
    let mut offer = Offer {
        echo: Nonce::default(),
        size,
        capacity,
        tokens: TokenAddress::default(),
        start: Start::default(),
    };
    if odd(script)? {
        match script.int_in_range(0..=2)? {
            0 => offer.capacity = number(script)?,
            1 => {
                offer.tokens = TokenAddress {
                    number: script.int_in_range(0..=70)?,
                    thread: script.arbitrary()?,
                    mailbox: script.arbitrary()?,
                    reserved: 0,
                    secret: Secret(script.arbitrary()?),
                }
            }
            _ => offer.start.position = script.arbitrary()?,
        }
    }
    Ok(offer)
}

/// Receives the host's first frame. `None`: it is no HELLO.
fn nonce_of_host(line: &OwnedFd, host: i32) -> Option<Nonce> {
    match frame_on(line, host)?.0 {
        Frame::Hello(hello) => Some(hello.nonce),
        _ => None,
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// Receives the next frame of this process and its descriptors.
pub(super) fn frame_on(line: &OwnedFd, pid: i32) -> Option<(Frame, Vec<UncheckedFd>)> {
    let own = sys::socket::effective_credentials();
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let line = FrameLine {
        socket: line.as_fd(),
        sender: Credentials {
            pid,
            uid: own.uid(),
            gid: own.gid(),
        },
        deadline: &deadline,
        address: "@address",
    };
    // With an OFFER, a child may get three descriptors.
    line.receive("what the other side says", 3).ok()
}

pub(super) fn say(socket: &OwnedFd, said: &Said, descriptors: &[BorrowedFd<'_>]) {
    // A parent that has exited receives nothing.
    let _ = match said {
        Said::Frame(frame) => line::send(socket.as_fd(), frame, descriptors),
        Said::Bytes(bytes) => {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(socket.as_raw_fd(), bytes, flags).map(drop)
        }
    };
}

/// Draws another frame than the expected one, or none.
pub(super) fn other(script: &mut Unstructured<'_>, at: usize) -> Result<Said> {
    let mut text = || Ok(String::from_utf8_lossy(script.bytes(script.len().min(20))?).into_owned());
    let refuse = Frame::Refuse(Refuse {
        code: Code::Peer,
        check: text()?,
        wanted: text()?,
        found: text()?,
    });
    Ok(match script.int_in_range(0..=2)? {
        0 => Said::Frame(refuse),
        1 if at == 2 => Said::Frame(Frame::Hello(Hello::default())),
        1 => Said::Frame(Frame::Ready(Nonce::default())),
        _ => Said::Bytes(script.bytes(script.len().min(200))?.to_vec()),
    })
}

/// Draws descriptors that are no line between the two.
fn no_line(script: &mut Unstructured<'_>) -> Result<Vec<OwnedFd>> {
    let pair = |kind| {
        let pair = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC);
        pair.map_or_else(|_| Vec::new(), |(one, other)| vec![one, other])
    };
    Ok(match script.int_in_range(0..=5)? {
        0 => Vec::new(),
        1 => pair(SockType::Stream),
        2 => pair(SockType::Datagram).split_off(1),
        3 => pair(SockType::SeqPacket).split_off(1),
        4 => UdpSocket::bind("127.0.0.1:0").map_or_else(|_| Vec::new(), |socket| vec![socket.into()]),
        _ => File::open("/dev/null").map_or_else(|_| Vec::new(), |file| vec![file.into()]),
    })
}

/// Draws a power of two, a neighbour of one, or any number.
fn number(script: &mut Unstructured<'_>) -> Result<u64> {
    let power: u64 = 1 << script.int_in_range(0..=63)?;
    Ok(match script.int_in_range(0..=3)? {
        0 => power,
        1 => power - 1,
        2 => round_capacity(power).unwrap_or(0) + 8,
        _ => script.arbitrary()?,
    })
}
