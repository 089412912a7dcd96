//! A peer of ringfence that speaks the protocol by hand: it runs the genuine executable, so every check of identity
//! passes, and it does what it is told instead of what was agreed.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FallocateFlags, FcntlArg, FdFlag, OFlag, SealFlag, fallocate, fcntl, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, accept4, bind, send,
            setsockopt, socketpair, sockopt,
        },
        stat::{Mode, fchmod, fstat},
        uio::pwrite,
    },
    unistd::{ftruncate, linkat, pipe2},
};

use super::{number, serve};
use crate::{
    mapping::Mapping,
    post,
    protocol::{self, Frame, Nonce, Start, layout},
};

fn said(what: &'static str) -> impl Fn(Errno) -> String {
    move |errno| format!("{what}: {errno}")
}

/// How long an answer may take that must come, in milliseconds.
const TIME_LIMIT: u16 = 30_000;

pub(super) fn run(args: &[&str]) -> Result<(), String> {
    match args {
        [] => {
            let mut hand = Hand::default();
            serve(|order| hand.obey(order))
        }
        // What became of a peer that executed another program in the middle of its handshake.
        ["finish", line, ready] => finish(line, ready),
        ["bells", line] => bells(line),
        ["namesake", connection, gate, mine, theirs] => namesake(connection, gate, mine, theirs),
        other => Err(format!("no such hand: {other:?}")),
    }
}

/// Credentials with another process's number, which the kernel lets no process send without `CAP_SYS_ADMIN` over the sender's
/// pid namespace.
fn claim_to_be(pid: i32) -> UnixCredentials {
    UnixCredentials::from(libc::ucred {
        pid,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
    })
}

/// `SO_PASSPIDFD`, Linux 6.5: a reader of this socket gets a pidfd of the sender with each read.
pub(super) fn ask_for_pidfds(socket: &OwnedFd) -> Result<(), Errno> {
    const SO_PASSPIDFD: libc::c_int = 76;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which `on` is.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSPIDFD,
            (&raw const on).cast(),
            4,
        )
    })
    .map(drop)
}

/// Speaks over a connection in the name of the process that made it, once that has become the genuine program.
fn namesake(connection: &str, gate: &str, mine: &str, theirs: &str) -> Result<(), String> {
    let stream = super::attackers::inherited(connection)?;
    let prepared = (
        super::attackers::inherited(mine)?,
        super::attackers::inherited(theirs)?,
    );
    super::attackers::wait_for_exec(gate)?;
    let mut hand = Hand {
        stream: Some(stream),
        prepared: Some(prepared),
        claim: Some(nix::unistd::getppid().as_raw()),
        ..Hand::default()
    };
    println!("genuine");
    serve(|order| hand.obey(order))
}

#[derive(Default)]
struct Hand {
    /// The process in whose name it speaks, by its number here.
    claim: Option<i32>,
    /// Both ends of a line that another process has made.
    prepared: Option<(OwnedFd, OwnedFd)>,
    /// Frames go byte by byte.
    in_pieces: bool,
    listener: Option<OwnedFd>,
    stream: Option<OwnedFd>,
    line: Option<OwnedFd>,
    /// The other side's end of the line: an honest peer closes it as soon as it is passed.
    kept: Option<OwnedFd>,
    own_nonce: Nonce,
    peer_nonce: Nonce,
    capacity: u64,
    own: Option<OwnedFd>,
    own_map: Option<Arc<Mapping>>,
    /// A publisher's, for its subscriber.
    control: Option<Arc<Mapping>>,
    /// Where it begins, as its publisher has told.
    start: Start,
    theirs: Option<OwnedFd>,
    their_size: u64,
    storm: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
}

/// Options are `key=value`.
fn option<'a>(options: &[&'a str], key: &str) -> Option<&'a str> {
    options
        .iter()
        .find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

fn parsed<T: std::str::FromStr>(options: &[&str], key: &str, default: T) -> Result<T, String> {
    option(options, key).map_or(Ok(default), number)
}

/// Success or the name of the errno.
fn outcome<T>(result: Result<T, Errno>, success: &str) -> String {
    match result.map(drop) {
        Ok(()) => success.to_owned(),
        Err(errno) => format!("{errno:?}"),
    }
}

impl Hand {
    fn obey(&mut self, order: &[&str]) -> Result<String, String> {
        Ok(match order {
            ["connect", address] => {
                let listener = self.listener.take();
                *self = Self {
                    listener,
                    ..Self::default()
                };
                self.stream = Some(post::connect_to(address).map_err(said("connect"))?);
                "connected".into()
            }
            ["listen", address] => {
                let listener = post::listen_at(address).map_err(said("listen"))?;
                setsockopt(&listener, sockopt::PassCred, &true).map_err(said("SO_PASSCRED"))?;
                self.listener = Some(listener);
                "listening".into()
            }
            ["accept"] => {
                let listener = self.listener.as_ref().ok_or("not listening")?;
                self.stream = Some(accept4(listener, SockFlag::SOCK_CLOEXEC).map_err(said("accept"))?);
                "accepted".into()
            }
            // The guest's HELLO, as it comes to a host.
            ["take-hello"] => {
                let stream = self.stream.as_ref().ok_or("not connected")?;
                let (frame, mut descriptors) = protocol::hear(stream.as_fd(), TIME_LIMIT);
                self.line = descriptors.pop();
                self.note(&frame)
            }
            ["hello", options @ ..] => self.hello(options)?,
            // From here on the kernel installs a descriptor with everything that the other side reads on the line.
            ["ask-for-pidfds"] => outcome(ask_for_pidfds(self.kept.as_ref().ok_or("no end kept")?), "asked"),
            ["pieces"] => {
                self.in_pieces = true;
                "as told".into()
            }
            ["half-hello"] => {
                let whole = protocol::hello(&[0x5a; 32], &[0; 32], 64 * 1024, 1 << 20, 1);
                self.say(&whole[..40], &[])?
            }
            ["hear", milliseconds @ ..] => {
                let line = self
                    .line
                    .as_ref()
                    .or(self.stream.as_ref())
                    .ok_or("not connected")?;
                let within = milliseconds.first().map_or(Ok(TIME_LIMIT), |text| number(text))?;
                let (frame, mut descriptors) = protocol::hear(line.as_fd(), within);
                if let Some(object) = descriptors.pop() {
                    self.theirs = Some(object);
                }
                self.note(&frame)
            }
            // What the acceptor says, once there is a line.
            ["hear-acceptor"] => {
                let stream = self.stream.as_ref().ok_or("not connected")?;
                let (frame, _) = protocol::hear(stream.as_fd(), TIME_LIMIT);
                self.note(&frame)
            }
            ["offer", kind, options @ ..] => self.offer(kind, options)?,
            ["ready"] => self.say(&protocol::ready(&self.peer_nonce), &[])?,
            // Everything that an honest guest does, up to the channel.
            ["channel", address, options @ ..] => self.channel(address, options)?,
            ["subscribe", address, options @ ..] => self.subscribe(address, options)?,
            ["publish", options @ ..] => self.publish(options)?,
            ["head", how] => self.head(how)?,
            ["to-and-fro"] => self.to_and_fro()?,
            ["drip", record, milliseconds, how] => self.drip(record, milliseconds, how == &"rings")?,
            ["exec", program] => return self.exec(program),
            // Dies, and leaves the line to a process that goes on ringing.
            ["die-ringing"] => {
                let line = self.line.as_ref().ok_or("no line")?;
                fcntl(line, FcntlArg::F_SETFD(FdFlag::empty())).map_err(said("FD_CLOEXEC"))?;
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                let line = line.as_raw_fd().to_string();
                let mut bells = Command::new(own)
                    .args(["role", "hand", "ringfence", "bells", &line])
                    .stdout(Stdio::piped())
                    .spawn()
                    .map_err(|error| error.to_string())?;
                // It says so once it no longer dies with this process.
                let mut ready = [0; 6];
                bells
                    .stdout
                    .take()
                    .ok_or("no output")?
                    .read_exact(&mut ready)
                    .map_err(|error| error.to_string())?;
                std::process::exit(0)
            }
            ["die"] => std::process::exit(0),
            other => return self.harm(other),
        })
    }

    /// Puts down what is needed from a frame, and shows it.
    fn note(&mut self, frame: &Frame) -> String {
        match frame {
            Frame::Hello(nonce, ..) => self.peer_nonce = *nonce,
            Frame::Offer(_, size, _, start) => (self.their_size, self.start) = (*size, *start),
            _ => {}
        }
        frame.to_string()
    }

    fn say(&self, bytes: &[u8], descriptors: &[&OwnedFd]) -> Result<String, String> {
        let line = self
            .line
            .as_ref()
            .or(self.stream.as_ref())
            .ok_or("not connected")?;
        let mut borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let size = if self.in_pieces { 1 } else { bytes.len() };
        for part in bytes.chunks(size) {
            if let Err(errno) = post::send(line.as_fd(), part, &borrowed, self.claimed()) {
                return Ok(format!("{errno:?}"));
            }
            borrowed.clear();
        }
        Ok("said".into())
    }

    fn claimed(&self) -> Option<UnixCredentials> {
        self.claim.map(claim_to_be)
    }

    /// HELLO with a line of the wanted kind; with the answer of the host, if there is one at once.
    fn hello(&mut self, options: &[&str]) -> Result<String, String> {
        self.own_nonce = [0x5a; 32];
        self.capacity = parsed(options, "capacity", 64 * 1024)?;
        let longest = parsed(options, "longest", 1 << 20)?;
        let backing = parsed(options, "backing", 1)?;
        // What it has come for.
        let meeting = parsed(options, "meeting", 0)?;
        let sizes = (self.capacity, longest);
        let bytes = protocol::hello_to(meeting, &self.own_nonce, &self.peer_nonce, sizes, backing);
        if self.listener.is_some() && self.line.is_some() {
            return self.say(&bytes, &[]);
        }
        let stream = self.stream.as_ref().ok_or("not connected")?;
        let mut lines = Vec::new();
        let pair = || {
            socketpair(
                AddressFamily::Unix,
                SockType::Stream,
                None,
                SockFlag::SOCK_CLOEXEC,
            )
            .map_err(said("socketpair"))
        };
        match option(options, "line").unwrap_or("pair") {
            "pair" => {
                let (mine, theirs) = self.prepared.take().map_or_else(pair, Ok)?;
                self.line = Some(mine);
                lines.push(theirs);
            }
            "none" => {}
            "two" => {
                let ((mine, theirs), (_, other)) = (pair()?, pair()?);
                self.line = Some(mine);
                lines.extend([theirs, other]);
            }
            "many" => {
                for _ in 0..20 {
                    lines.push(pair()?.1);
                }
            }
            "file" => lines.push(
                File::open("/proc/self/status")
                    .map_err(|error| error.to_string())?
                    .into(),
            ),
            "pipe" => lines.push(pipe2(OFlag::O_CLOEXEC).map_err(said("pipe"))?.0),
            "datagram" => {
                let (mine, theirs) = socketpair(
                    AddressFamily::Unix,
                    SockType::Datagram,
                    None,
                    SockFlag::SOCK_CLOEXEC,
                )
                .map_err(said("socketpair"))?;
                self.line = Some(mine);
                lines.push(theirs);
            }
            // A stream socket of ours by every option that can be asked for, and no process at its other end.
            "listener" => {
                let listener = post::stream().map_err(said("socket"))?;
                bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).map_err(said("bind"))?;
                nix::sys::socket::listen(
                    &listener,
                    nix::sys::socket::Backlog::new(1).map_err(said("backlog"))?,
                )
                .map_err(said("listen"))?;
                lines.push(listener);
            }
            "unconnected" => lines.push(post::stream().map_err(said("socket"))?),
            other => return Err(format!("no such line: {other}")),
        }
        let claim = match option(options, "claim") {
            Some(pid) => Some(claim_to_be(number(pid)?)),
            None => self.claimed(),
        };
        let borrowed: Vec<_> = lines.iter().map(AsFd::as_fd).collect();
        let sent = post::send(stream.as_fd(), &bytes, &borrowed, claim);
        if option(options, "keep").is_some() {
            self.kept = lines.pop();
        }
        Ok(outcome(sent, "said"))
    }

    /// OFFER of an object that is sound but for what `kind` says.
    fn offer(&mut self, kind: &str, options: &[&str]) -> Result<String, String> {
        let capacity: u64 = parsed(options, "capacity", self.capacity)?;
        let size = match self.capacity {
            0 => layout::CONTROL,
            capacity => layout::DATA as u64 + capacity + layout::AFTER as u64,
        };
        let start = Start {
            position: parsed(options, "position", 0)?,
            sequence: parsed(options, "sequence", 0)?,
            slot: parsed(options, "slot", 0)?,
        };
        let bytes = protocol::offer(&self.peer_nonce, parsed(options, "size", size)?, capacity, start);
        let object = match kind {
            "directory" => File::open("/dev").map_err(|error| error.to_string())?.into(),
            "pipe" => pipe2(OFlag::O_CLOEXEC).map_err(said("pipe"))?.0,
            "socket" => post::stream().map_err(said("socket"))?,
            // A regular file on whatever filesystem the executable lies on.
            "file" => File::open("/proc/self/exe")
                .map_err(|error| error.to_string())?
                .into(),
            "device" => File::open("/dev/zero").map_err(|error| error.to_string())?.into(),
            "path" => {
                open("/dev/zero", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(said("open"))?
            }
            _ => self.memory(kind, size)?,
        };
        // A publisher's control object comes first, and then its ring.
        let control = match kind {
            "ring" => Some(self.control_of_publisher()?),
            _ => None,
        };
        let second = match kind {
            "two" => vec![pipe2(OFlag::O_CLOEXEC).map_err(said("pipe"))?.0],
            "three" => vec![
                pipe2(OFlag::O_CLOEXEC).map_err(said("pipe"))?.0,
                File::open("/dev").map_err(|error| error.to_string())?.into(),
            ],
            "many" => (0..30)
                .map(|_| File::open("/dev").map(OwnedFd::from))
                .collect::<Result<_, _>>()
                .map_err(|e| e.to_string())?,
            _ => Vec::new(),
        };
        let mut descriptors: Vec<&OwnedFd> = control.iter().chain([&object]).chain(&second).collect();
        if kind == "none" {
            descriptors.clear();
        }
        let answer = self.say(&bytes, &descriptors);
        self.own = Some(object);
        answer
    }

    fn control_of_publisher(&mut self) -> Result<OwnedFd, String> {
        let capacity = std::mem::take(&mut self.capacity);
        let ring = self.own_map.take();
        let control = self.memory("control", layout::CONTROL)?;
        self.control = std::mem::replace(&mut self.own_map, ring);
        self.capacity = capacity;
        Ok(control)
    }

    /// Everything that an honest subscriber does, up to the first message.
    fn subscribe(&mut self, address: &str, options: &[&str]) -> Result<String, String> {
        let (delivery, from) = (parsed(options, "delivery", 1)?, parsed(options, "from", 1)?);
        let meeting = format!("meeting={}", protocol::broadcast(delivery, from));
        self.steps(&[
            (&["connect", address], "connected"),
            (&["hello", "capacity=0", &meeting], "said"),
            (&["hear"], "hello"),
            (&["hear"], "offer"),
            (&["offer", "sound"], "said"),
        ])?;
        self.own_map
            .as_ref()
            .ok_or("no memory of my own")?
            .store(layout::head_of(self.start.slot), self.start.position);
        self.steps(&[(&["ready"], "said"), (&["hear"], "ready")])?;
        Ok("subscribed".into())
    }

    /// Everything that an honest publisher does, for one subscriber that comes.
    fn publish(&mut self, options: &[&str]) -> Result<String, String> {
        let meeting = format!("meeting={}", protocol::broadcast(0, 0));
        self.steps(&[
            (&["accept"], "accepted"),
            (&["take-hello"], "hello"),
            (&["hello", &meeting, "longest=8192"], "said"),
            (&[&["offer", "ring"][..], options].concat(), "said"),
            (&["hear"], "offer"),
            (&["hear"], "ready"),
            (&["ready"], "said"),
        ])?;
        Ok("published".into())
    }

    fn steps(&mut self, steps: &[(&[&str], &str)]) -> Result<(), String> {
        for (order, wanted) in steps {
            let answer = self.obey(order)?;
            if !answer.starts_with(wanted) {
                return Err(format!("{order:?} was answered by {answer:?}"));
            }
        }
        Ok(())
    }

    /// Says how far it has read: what is published, as far as is wanted, without a bell.
    fn head(&self, how: &str) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of theirs")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(said("mmap"))?;
        let own = self.own_map.as_ref().ok_or("no memory of my own")?;
        let at = layout::head_of(self.start.slot);
        let (head, tail) = (own.load(at), words.load(layout::TAIL));
        let new = match how {
            "tail" => tail,
            "past" => tail + (1 << 20),
            "unaligned" => head + 4,
            "far" => 1 << 63,
            "last" => u64::MAX,
            // What the publisher has believed, and has gone on with until it sleeps again.
            "back" => {
                let asleep = |not: u64| {
                    super::attackers::until("the publisher sleeps", || {
                        let parked = words.load(layout::WRITER_PARKED);
                        parked != not && !parked.is_multiple_of(2)
                    })
                };
                asleep(0)?;
                let (parked, tail) = (words.load(layout::WRITER_PARKED), words.load(layout::TAIL));
                own.store(at, tail);
                asleep(parked)?;
                tail - 8
            }
            other => number(other)?,
        };
        own.store(at, new);
        Ok("stored".into())
    }

    /// To and fro between what it began with and what is published, without end.
    fn to_and_fro(&self) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of theirs")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(said("mmap"))?;
        let own = Arc::clone(self.own_map.as_ref().ok_or("no memory of my own")?);
        let at = layout::head_of(self.start.slot);
        let start = self.start.position;
        thread::spawn(move || {
            loop {
                own.store(at, words.load(layout::TAIL));
                own.store(at, start);
            }
        });
        Ok("to and fro".into())
    }

    /// Reads so many bytes at a time, each time a while after the publisher has parked to wait for them.
    fn drip(&self, bytes: &str, milliseconds: &str, rings: bool) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of theirs")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(said("mmap"))?;
        let own = Arc::clone(self.own_map.as_ref().ok_or("no memory of my own")?);
        let line = self.line.as_ref().ok_or("no line")?;
        let line = line.try_clone().map_err(|error| error.to_string())?;
        let at = layout::head_of(self.start.slot);
        let (bytes, pause) = (number::<u64>(bytes)?, number(milliseconds)?);
        thread::spawn(move || {
            loop {
                while words.load(layout::WRITER_PARKED).is_multiple_of(2) {
                    thread::sleep(std::time::Duration::from_millis(1));
                }
                thread::sleep(std::time::Duration::from_millis(pause));
                own.store(at, (own.load(at) + bytes).min(words.load(layout::TAIL)));
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                if rings {
                    let _ = send(line.as_raw_fd(), &[1], flags);
                }
            }
        });
        Ok("dripping".into())
    }

    fn memory(&mut self, kind: &str, size: u64) -> Result<OwnedFd, String> {
        let mut actual = size;
        let mut seals = SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SEAL;
        match kind {
            "short" => actual = 4096,
            "empty" => actual = 0,
            "long" => actual = size + 4096,
            "unsealed" => seals = SealFlag::empty(),
            "may-shrink" => seals.remove(SealFlag::F_SEAL_SHRINK),
            "may-unseal" => seals.remove(SealFlag::F_SEAL_SEAL),
            _ => {}
        }
        let raw = memfd_create("hand", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(said("memfd"))?;
        let path = format!("/proc/self/fd/{}", raw.as_raw_fd());
        let object = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(said("reopening"))?;
        drop(raw);
        let length = i64::try_from(actual).map_err(|error| error.to_string())?;
        ftruncate(&object, length).map_err(said("ftruncate"))?;
        if kind != "sparse" && actual > 0 {
            fallocate(&object, FallocateFlags::empty(), 0, length).map_err(said("fallocate"))?;
        }
        if actual > 0 {
            let map = Mapping::new(
                &object,
                if kind == "sparse" {
                    4096
                } else {
                    usize::try_from(actual).map_err(|error| error.to_string())?
                },
                true,
            )
            .map_err(said("mmap"))?;
            let magic = if kind == "wrong-magic" {
                *b"ringfnc0"
            } else {
                layout::MAGIC
            };
            map.store(
                8,
                if kind == "wrong-capacity" {
                    self.capacity * 2
                } else {
                    self.capacity
                },
            );
            map.store(0, u64::from_le_bytes(magic));
            self.own_map = Some(Arc::new(map));
        }
        fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).map_err(said("seals"))?;
        lease(&object, libc::F_WRLCK).map_err(said("lease"))?;
        Ok(object)
    }

    fn channel(&mut self, address: &str, options: &[&str]) -> Result<String, String> {
        let mut step = |order: &[&str], wanted: &str| {
            let answer = self.obey(order)?;
            if answer.starts_with(wanted) {
                Ok(())
            } else {
                Err(format!("{order:?} was answered by {answer:?}"))
            }
        };
        step(&["connect", address], "connected")?;
        step(&[&["hello"][..], options].concat(), "said")?;
        step(&["hear"], "hello")?;
        step(&["hear"], "offer")?;
        step(&["offer", option(options, "object").unwrap_or("sound")], "said")?;
        step(&["ready"], "said")?;
        step(&["hear"], "ready")?;
        Ok("channel".into())
    }

    /// Becomes another program, with the line.
    fn exec(&self, program: &str) -> Result<String, String> {
        let line = self.line.as_ref().ok_or("no line")?;
        fcntl(line, FcntlArg::F_SETFD(FdFlag::empty())).map_err(said("FD_CLOEXEC"))?;
        let ready = protocol::ready(&self.peer_nonce);
        let ready: Vec<String> = ready.iter().map(|byte| format!("{byte:02x}")).collect();
        let ready = ready.concat();
        let line = line.as_raw_fd().to_string();
        Err(Command::new(program)
            .args(["role", "hand", "ringfence", "finish", &line, &ready])
            .exec()
            .to_string())
    }

    /// What an honest peer does not do to a channel, its own memory and the other's.
    fn harm(&mut self, order: &[&str]) -> Result<String, String> {
        let own = || self.own.as_ref().ok_or("no object of my own");
        let own_map = || self.own_map.as_ref().ok_or("no memory of my own");
        let theirs = || self.theirs.as_ref().ok_or("no object of theirs");
        Ok(match order {
            ["store", at, value] => {
                own_map()?.store(number(at)?, number(value)?);
                "stored".into()
            }
            ["load", at] => own_map()?.load(number(at)?).to_string(),
            ["write", at, text] => {
                own_map()?.write(number(at)?, text.as_bytes());
                "written".into()
            }
            // One whole message at the ring's beginning.
            ["message", text] => {
                let map = own_map()?;
                let length = text.len() as u64;
                map.store(
                    layout::DATA,
                    length | u64::from(layout::FIRST | layout::LAST) << 32,
                );
                map.write(layout::DATA + 8, text.as_bytes());
                map.store(layout::TAIL, 8 + length.next_multiple_of(8));
                self.ring()
            }
            // As many whole messages of so many bytes (a multiple of eight) as the ring holds.
            ["fill", length] => {
                let map = own_map()?;
                let length: u64 = number(length)?;
                let count = self.capacity / (8 + length);
                for index in 0..count {
                    let at = index * (8 + length);
                    map.store(
                        layout::DATA + usize::try_from(at).map_err(|error| error.to_string())?,
                        length | u64::from(layout::FIRST | layout::LAST) << 32,
                    );
                }
                map.store(layout::TAIL, count * (8 + length));
                format!("filled {count}")
            }
            ["ring"] => self.ring(),
            ["store-control", at, value] => {
                let control = self.control.as_ref().ok_or("no control object of my own")?;
                control.store(number(at)?, number(value)?);
                "stored".into()
            }
            ["fan-storm", seed] => {
                let (map, stop, seed) = (
                    Arc::clone(own_map()?),
                    Arc::new(AtomicBool::new(false)),
                    number(seed)?,
                );
                let over = Arc::clone(&stop);
                self.storm = Some((stop, thread::spawn(move || fan_storm(&map, seed, &over))));
                "storming".into()
            }
            ["blocks"] => (fstat(own()?).map_err(said("fstat"))?.st_blocks * 512).to_string(),
            ["shrink-own"] => outcome(ftruncate(own()?, 0), "shrunk"),
            ["hang-up"] => {
                self.line = None;
                self.kept = None;
                self.stream = None;
                "hung up".into()
            }
            ["flip", at, count] => {
                let (map, at) = (own_map()?, number::<usize>(at)?);
                let flipped: Vec<u8> = map.read(at, number(count)?).iter().map(|byte| byte ^ 1).collect();
                map.write(at, &flipped);
                "flipped".into()
            }
            ["storm", seed] => {
                let (map, stop, seed) = (
                    Arc::clone(own_map()?),
                    Arc::new(AtomicBool::new(false)),
                    number(seed)?,
                );
                let over = Arc::clone(&stop);
                let their_words = Mapping::new(theirs()?, layout::DATA, false).map_err(said("mmap"))?;
                self.storm = Some((
                    stop,
                    thread::spawn(move || storm(&map, &their_words, seed, &over)),
                ));
                "storming".into()
            }
            ["calm"] => {
                let (stop, thread) = self.storm.take().ok_or("no storm")?;
                stop.store(true, Ordering::Relaxed);
                thread.join().map_err(|_| "the storm ended badly")?;
                "calm".into()
            }
            other => return self.harm_their_object(other),
        })
    }

    /// To the memory that the other side owns.
    fn harm_their_object(&self, order: &[&str]) -> Result<String, String> {
        let theirs = || self.theirs.as_ref().ok_or("no object of theirs");
        let their_size = usize::try_from(self.their_size).map_err(|error| error.to_string())?;
        Ok(match order {
            ["shrink-theirs"] => outcome(ftruncate(theirs()?, 0), "shrunk"),
            ["grow-theirs"] => outcome(ftruncate(theirs()?, i64::MAX >> 20), "grown"),
            ["punch-theirs"] => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                outcome(fallocate(theirs()?, flags, 0, 4096), "punched")
            }
            ["write-theirs"] => outcome(pwrite(theirs()?, &[0xff; 8], 0), "written"),
            ["map-theirs"] => outcome(Mapping::new(theirs()?, their_size, true), "mapped"),
            ["reopen-theirs"] => {
                // A new open file of the same object, so that what the descriptor may do no longer matters.
                let path = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                match open(path.as_str(), flags, Mode::empty()) {
                    Ok(again) => outcome(Mapping::new(again, their_size, true), "mapped"),
                    Err(errno) => format!("{errno:?}"),
                }
            }
            // As its owner may, whatever its mode.
            ["expose-theirs"] => {
                let path = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let opened = fchmod(theirs()?, Mode::S_IRUSR | Mode::S_IWUSR).and_then(|()| {
                    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                    open(path.as_str(), flags, Mode::empty())
                });
                outcome(opened, "opened")
            }
            ["protect-theirs"] => {
                let map = Mapping::new(theirs()?, their_size, false).map_err(said("mmap"))?;
                outcome(map.make_writable(), "writable")
            }
            ["unseal-theirs"] => outcome(
                fcntl(theirs()?, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)),
                "sealed",
            ),
            ["find-theirs", text] => {
                let map = Mapping::new(theirs()?, their_size, false).map_err(said("mmap"))?;
                if map.find(text.as_bytes()).is_some() {
                    "found"
                } else {
                    "absent"
                }
                .into()
            }
            // A name for an object that has none.
            ["link-theirs", path] => {
                let source = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let result = linkat(
                    nix::fcntl::AT_FDCWD,
                    source.as_str(),
                    nix::fcntl::AT_FDCWD,
                    *path,
                    AtFlags::AT_SYMLINK_FOLLOW,
                );
                outcome(result, "linked")
            }
            other => return self.harm_line(other),
        })
    }

    /// To the line, both of whose ends a guest has made.
    fn harm_line(&self, order: &[&str]) -> Result<String, String> {
        Ok(match order {
            ["nonblock"] => {
                // The descriptor that the other side holds shares its flags with the one that was kept.
                let flags = OFlag::from_bits_retain(
                    fcntl(self.kept.as_ref().ok_or("nothing kept")?, FcntlArg::F_GETFL)
                        .map_err(said("F_GETFL"))?,
                );
                let flags = flags ^ OFlag::O_NONBLOCK;
                fcntl(
                    self.kept.as_ref().ok_or("nothing kept")?,
                    FcntlArg::F_SETFL(flags),
                )
                .map_err(said("F_SETFL"))?;
                if flags.contains(OFlag::O_NONBLOCK) {
                    "non-blocking"
                } else {
                    "blocking"
                }
                .into()
            }
            // Until the kernel takes no more: the other side's own end is written too, so that its buffer is full.
            ["fill"] => {
                let mut count = 0;
                for socket in [self.line.as_ref(), self.kept.as_ref()].into_iter().flatten() {
                    while let Ok(sent) = send(
                        socket.as_raw_fd(),
                        &[0x99; 4096],
                        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    ) {
                        count += sent;
                    }
                }
                format!("filled {count}")
            }
            ["garbage", count] => {
                let line = self.line.as_ref().ok_or("no line")?;
                let bytes = vec![0xee; number(count)?];
                outcome(
                    send(
                        line.as_raw_fd(),
                        &bytes,
                        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    ),
                    "sent",
                )
            }
            // Garbage that brings a descriptor: a careless reader keeps it.
            ["parcel"] => {
                let line = self.line.as_ref().ok_or("no line")?;
                let pipe = pipe2(OFlag::O_CLOEXEC).map_err(said("pipe"))?;
                outcome(
                    post::send(line.as_fd(), b"!", &[pipe.0.as_fd(), pipe.1.as_fd()], None),
                    "sent",
                )
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    }

    fn ring(&self) -> String {
        let Some(line) = &self.line else {
            return "no line".into();
        };
        outcome(
            send(
                line.as_raw_fd(),
                &[1],
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ),
            "rung",
        )
    }
}

fn lease(object: &OwnedFd, kind: i32) -> Result<(), Errno> {
    /// The same number on every architecture that Rust's Linux targets have, and missing in libc.
    const F_SETSIG: i32 = 10;
    // A process that opens it meanwhile must not end this process: SIGURG is ignored where it is not handled.
    // SAFETY: F_SETSIG takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// Lies at random, in places and with values that a reader would believe at first sight, as fast as it can. In
/// between it tells the truth, so that the reader goes on, and keeps to the room that the reader makes: whole
/// messages and fragmented ones, whose words change, and mostly change back, while they are there to be read.
fn storm(map: &Mapping, theirs: &Mapping, seed: u64, stop: &AtomicBool) {
    let capacity = map.load(8);
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    // One message in so many is lied about.
    let rate = [2, 16, 128, 1024][usize::try_from(seed % 4).unwrap_or(0)];
    // Some storms are about sizes of fragmented messages alone, which are read twice: once to make room, and once
    // to fill it.
    let sizes = seed.is_multiple_of(5);
    let at = |position: u64| layout::DATA + usize::try_from(position % capacity).unwrap_or(0);
    let whole = layout::FIRST | layout::LAST;
    let mut tail = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        // At most 600 bytes follow, padding aside.
        if tail + 1200 > theirs.load(layout::HEAD) + capacity {
            continue;
        }
        let rest = capacity - tail % capacity;
        if rest < 600 {
            map.store(at(tail), header(rest - 8, layout::PADDING));
            tail += rest;
        }
        let begin = tail;
        let (one, two) = (random(200), 1 + random(200));
        let mut honest = if random(4) > 0 && !sizes {
            map.store(at(tail), header(one, whole));
            tail += record(one);
            vec![(begin, header(one, whole))]
        } else {
            let (first, last) = (begin, begin + record(9 + one));
            map.store(at(first), header(9 + one, layout::FIRST));
            map.store(at(first) + 8, 1 + one + two);
            map.store(at(last), header(two, layout::LAST));
            tail = last + record(two);
            // Its reader may have to wait for the rest of it.
            if random(2) == 0 {
                map.store(layout::TAIL, last);
            }
            vec![
                (first, header(9 + one, layout::FIRST)),
                (first + 8, 1 + one + two),
                (last, header(two, layout::LAST)),
            ]
        };
        map.store(layout::TAIL, tail);
        if sizes {
            honest = vec![honest[1]];
        }
        if random(rate) == 0 || sizes {
            let (place, truth) = honest[usize::try_from(random(honest.len() as u64)).unwrap_or(0)];
            let flags = [
                whole,
                whole,
                layout::FIRST,
                layout::LAST,
                0,
                layout::PADDING,
                8,
                3,
            ][usize::try_from(random(8)).unwrap_or(0)];
            let length = match random(8) {
                0 => u64::from(u32::MAX),
                1 => capacity - 8,
                2 => 0,
                3 => rest.saturating_sub(8),
                _ => random(600),
            };
            // The word after a header is a message's size: a larger one that would still be taken.
            let lie = if place == begin + 8 {
                random(1 << 20)
            } else {
                header(length, flags)
            };
            for _ in 0..random(50) {
                map.store(at(place), lie);
                map.store(at(place), truth);
            }
        }
        if random(rate * 16_384) == 0 {
            map.store(layout::TAIL, tail ^ (1 << random(64)));
            map.store(layout::TAIL, tail);
        }
        if random(rate * 16_384) == 0 {
            map.store(layout::HEAD, random(1 << 20));
        }
        map.store(layout::READER_PARKED, random(3));
        map.store(layout::WRITER_PARKED, random(3));
    }
}

/// Publishes as an honest publisher that waits for none would, and lies in between: in headers, tail, floor and marks, for a moment or
/// for good.
fn fan_storm(map: &Mapping, seed: u64, stop: &AtomicBool) {
    let capacity = map.load(8);
    let mut state = seed | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let rate = [4, 64, 1024, 65_536][usize::try_from(seed % 4).unwrap_or(0)];
    let at = |position: u64| layout::DATA + usize::try_from(position % capacity).unwrap_or(0);
    let (mut tail, mut floor, mut sent, mut marks, mut marked) = (0_u64, 0_u64, 0_u64, 0_usize, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let length = random(120);
        let rest = capacity - tail % capacity;
        if rest < 200 {
            map.store(at(tail), header(rest - 8, layout::PADDING));
            tail += rest;
        }
        if tail >= marked || marks == 0 {
            let place = layout::mark_of(marks);
            map.store(place + 8, sent);
            map.store(place, tail);
            (marks, marked) = (marks + 1, tail + capacity / 16);
        }
        if tail + 200 > floor + capacity {
            floor = (tail + 200 - capacity / 2).min(tail);
            map.store(layout::FLOOR, floor);
        }
        map.store(at(tail), header(length, layout::FIRST | layout::LAST));
        let begin = tail;
        tail += record(length);
        sent += 1;
        map.store(layout::TAIL, tail);
        if random(rate) == 0 {
            let far = [tail + 8, 0, u64::MAX, tail + capacity, random(1 << 62), tail ^ 8];
            let lie = far[usize::try_from(random(6)).unwrap_or(0)];
            let (place, truth) = match random(5) {
                0 => (layout::TAIL, tail),
                1 => (layout::FLOOR, floor),
                2 => (layout::mark_of(marks), 0),
                3 => (layout::mark_of(marks) + 8, 0),
                _ => (at(begin), header(length, layout::FIRST | layout::LAST)),
            };
            for _ in 0..=random(20) {
                map.store(place, lie);
                map.store(place, truth);
            }
        }
        map.store(layout::WRITER_PARKED, random(3));
    }
}

/// A record's header.
fn header(length: u64, flags: u32) -> u64 {
    length | u64::from(flags) << 32
}

/// Bytes that a record takes.
fn record(length: u64) -> u64 {
    8 + length.next_multiple_of(8)
}

/// Rings without end, until the line is closed.
fn bells(line: &str) -> Result<(), String> {
    // The process that it was started by is about to end.
    prctl::set_pdeathsig(None).map_err(said("PR_SET_PDEATHSIG"))?;
    let number: RawFd = number(line)?;
    // SAFETY: this descriptor was left open for this program by the one that started it, and is used here only.
    let line = unsafe { OwnedFd::from_raw_fd(number) };
    println!("ready");
    loop {
        match send(
            line.as_raw_fd(),
            &[1; 64],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(_) => return Ok(()),
        }
    }
}

fn finish(line: &str, ready: &str) -> Result<(), String> {
    let number: RawFd = number(line)?;
    // SAFETY: this descriptor was left open for this program by the one that executed it, and is used here only.
    let line = unsafe { OwnedFd::from_raw_fd(number) };
    let bytes: Vec<u8> = (0..ready.len() / 2)
        .filter_map(|index| u8::from_str_radix(ready.get(index * 2..index * 2 + 2)?, 16).ok())
        .collect();
    println!("{}", outcome(post::send(line.as_fd(), &bytes, &[], None), "said"));
    let (frame, descriptors) = protocol::hear(line.as_fd(), TIME_LIMIT);
    println!("{frame}, {} descriptors", descriptors.len());
    Ok(())
}
