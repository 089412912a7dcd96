//! A malicious peer that speaks ringfence's protocol by hand. It runs the genuine executable, so every
//! identity check passes, and it executes orders instead of the protocol.
//!
//! This module covers the handshake. `channel` covers the attacks on an open channel, and `storm` the malformed
//! data that it writes as fast as it can.

mod channel;
mod storm;

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, FdFlag, OFlag, SealFlag, fallocate, fcntl, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, accept4, bind, send,
            setsockopt, socketpair, sockopt,
        },
        stat::Mode,
    },
    unistd::{ftruncate, pipe2},
};

use super::{number, serve};
use crate::{
    failed,
    mapping::Mapping,
    protocol::{self, Frame, Nonce, Start, layout},
    socket,
};

/// Timeout for an answer that must arrive, in milliseconds.
const TIME_LIMIT: u16 = 30_000;

pub(super) fn run(args: &[&str]) -> Result<(), String> {
    match args {
        [] => {
            let mut hostile = HostilePeer::default();
            serve(|order| hostile.execute(order))
        }
        // The end of a handshake in the middle of which the peer executed another program.
        ["finish", line, ready] => finish(line, ready),
        ["wake-forever", line] => wake_forever(line),
        ["pid-forger", connection, gate, mine, theirs] => forge_pid(connection, gate, mine, theirs),
        other => Err(format!("no such hostile peer: {other:?}")),
    }
}

/// Returns credentials with another process's pid. The kernel rejects them unless the sender has
/// `CAP_SYS_ADMIN` over its pid namespace.
fn claim_to_be(pid: i32) -> UnixCredentials {
    UnixCredentials::from(libc::ucred {
        pid,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
    })
}

/// Sets `SO_PASSPIDFD` (Linux 6.5): each read on this socket also installs a pidfd of the sender.
pub(super) fn set_passpidfd(socket: &OwnedFd) -> Result<(), Errno> {
    const SO_PASSPIDFD: libc::c_int = 76;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which is `on`.
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

/// Speaks over a connection in the name of the process that created it, once that process runs the genuine
/// program.
fn forge_pid(connection: &str, gate: &str, mine: &str, theirs: &str) -> Result<(), String> {
    let stream = super::attackers::inherited(connection)?;
    let prepared = (
        super::attackers::inherited(mine)?,
        super::attackers::inherited(theirs)?,
    );
    super::attackers::wait_for_exec(gate)?;
    let mut hostile = HostilePeer {
        stream: Some(stream),
        prepared: Some(prepared),
        claim: Some(nix::unistd::getppid().as_raw()),
        ..HostilePeer::default()
    };
    println!("genuine");
    serve(|order| hostile.execute(order))
}

#[derive(Default)]
struct HostilePeer {
    /// The process in whose name it speaks, as its pid here.
    claim: Option<i32>,
    /// Both ends of a line that another process created.
    prepared: Option<(OwnedFd, OwnedFd)>,
    /// Whether frames are sent byte by byte.
    byte_by_byte: bool,
    listener: Option<OwnedFd>,
    stream: Option<OwnedFd>,
    line: Option<OwnedFd>,
    /// The peer's end of the line. An honest peer closes it as soon as it is passed.
    kept: Option<OwnedFd>,
    own_nonce: Nonce,
    peer_nonce: Nonce,
    capacity: u64,
    own: Option<OwnedFd>,
    own_map: Option<Arc<Mapping>>,
    /// The control object of a publisher, for its subscriber.
    control: Option<Arc<Mapping>>,
    /// Position at which the subscription starts, as the publisher sent it.
    start: Start,
    theirs: Option<OwnedFd>,
    their_size: u64,
    storm: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
}

/// Returns the value of an option of the form `key=value`.
fn option<'a>(options: &[&'a str], key: &str) -> Option<&'a str> {
    options
        .iter()
        .find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

fn parsed<T: std::str::FromStr>(options: &[&str], key: &str, default: T) -> Result<T, String> {
    option(options, key).map_or(Ok(default), number)
}

/// Returns `success` or the name of the errno.
fn outcome<T>(result: Result<T, Errno>, success: &str) -> String {
    match result.map(drop) {
        Ok(()) => success.to_owned(),
        Err(errno) => format!("{errno:?}"),
    }
}

impl HostilePeer {
    fn execute(&mut self, order: &[&str]) -> Result<String, String> {
        Ok(match order {
            ["connect", address] => self.connect(address)?,
            ["listen", address] => {
                let listener = socket::listen_at(address).map_err(failed("listen"))?;
                setsockopt(&listener, sockopt::PassCred, &true).map_err(failed("SO_PASSCRED"))?;
                self.listener = Some(listener);
                "listening".into()
            }
            ["accept"] => {
                let listener = self.listener.as_ref().ok_or("not listening")?;
                self.stream = Some(accept4(listener, SockFlag::SOCK_CLOEXEC).map_err(failed("accept"))?);
                "accepted".into()
            }
            // The guest's HELLO, as a host receives it.
            ["receive-hello"] => {
                let stream = self.stream.as_ref().ok_or("not connected")?;
                let (frame, mut descriptors) = protocol::receive_frame(stream.as_fd(), TIME_LIMIT);
                self.line = descriptors.pop();
                self.note(&frame)
            }
            ["hello", options @ ..] => self.hello(options)?,
            // From here on, each read of the peer on the line installs a descriptor.
            ["set-passpidfd"] => outcome(set_passpidfd(self.kept.as_ref().ok_or("no end kept")?), "set"),
            ["byte-by-byte"] => {
                self.byte_by_byte = true;
                "ok".into()
            }
            ["half-hello"] => {
                let whole = protocol::hello(&[0x5a; 32], &[0; 32], 64 * 1024, 1 << 20, 1);
                self.send_order(&whole[..40], &[])?
            }
            ["receive"] => self.receive_frame(TIME_LIMIT)?,
            ["receive", milliseconds] => self.receive_frame(number(milliseconds)?)?,
            // An answer of the acceptor, which arrives on the connection even if there is a line.
            ["receive-from-acceptor"] => {
                let stream = self.stream.as_ref().ok_or("not connected")?;
                let (frame, _) = protocol::receive_frame(stream.as_fd(), TIME_LIMIT);
                self.note(&frame)
            }
            ["offer", kind, options @ ..] => self.offer(kind, options)?,
            ["ready"] => self.send_order(&protocol::ready(&self.peer_nonce), &[])?,
            ["channel", address, options @ ..] => self.channel(address, options)?,
            ["subscribe", address, options @ ..] => self.subscribe(address, options)?,
            ["publish", options @ ..] => self.publish(options)?,
            ["head", how] => self.head(how)?,
            ["oscillate-head"] => self.oscillate_head()?,
            ["read-slowly", record, milliseconds, how] => {
                self.read_slowly(record, milliseconds, how == &"wakes")?
            }
            ["exec", program] => return self.exec(program),
            ["exit-waking"] => return self.exit_waking(),
            ["die"] => std::process::exit(0),
            other => return self.attack(other),
        })
    }

    /// Starts anew, as a guest.
    fn connect(&mut self, address: &str) -> Result<String, String> {
        let listener = self.listener.take();
        *self = Self {
            listener,
            ..Self::default()
        };
        self.stream = Some(socket::connect_to(address).map_err(failed("connect"))?);
        Ok("connected".into())
    }

    /// Returns the socket to speak on: the line, or the connection if there is no line yet.
    fn speaking(&self) -> Result<&OwnedFd, String> {
        let line = self.line.as_ref().or(self.stream.as_ref());
        line.ok_or_else(|| "not connected".into())
    }

    fn receive_frame(&mut self, within: u16) -> Result<String, String> {
        let (frame, mut descriptors) = protocol::receive_frame(self.speaking()?.as_fd(), within);
        if let Some(object) = descriptors.pop() {
            self.theirs = Some(object);
        }
        Ok(self.note(&frame))
    }

    /// Stores what later frames need from a frame, and returns its text.
    fn note(&mut self, frame: &Frame) -> String {
        match frame {
            Frame::Hello(nonce, ..) => self.peer_nonce = *nonce,
            Frame::Offer(_, size, _, start) => (self.their_size, self.start) = (*size, *start),
            _ => {}
        }
        frame.to_string()
    }

    fn send_order(&self, bytes: &[u8], descriptors: &[&OwnedFd]) -> Result<String, String> {
        let line = self.speaking()?;
        let mut borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let size = if self.byte_by_byte { 1 } else { bytes.len() };
        for part in bytes.chunks(size) {
            if let Err(errno) = socket::send(line.as_fd(), part, &borrowed, self.claimed()) {
                return Ok(format!("{errno:?}"));
            }
            borrowed.clear();
        }
        Ok("sent".into())
    }

    fn claimed(&self) -> Option<UnixCredentials> {
        self.claim.map(claim_to_be)
    }

    /// Sends HELLO, for a guest with a line of the kind in the options.
    fn hello(&mut self, options: &[&str]) -> Result<String, String> {
        self.own_nonce = [0x5a; 32];
        self.capacity = parsed(options, "capacity", 64 * 1024)?;
        let longest = parsed(options, "longest", 1 << 20)?;
        let backing = parsed(options, "backing", 1)?;
        // The kind of meeting that the client asks for: a channel or a broadcast.
        let meeting = parsed(options, "meeting", 0)?;
        let sizes = (self.capacity, longest);
        let bytes = protocol::hello_to(meeting, &self.own_nonce, &self.peer_nonce, sizes, backing);
        if self.listener.is_some() && self.line.is_some() {
            return self.send_order(&bytes, &[]);
        }
        let mut lines = self.lines(option(options, "line").unwrap_or("pair"))?;
        let stream = self.stream.as_ref().ok_or("not connected")?;
        let claim = match option(options, "claim") {
            Some(pid) => Some(claim_to_be(number(pid)?)),
            None => self.claimed(),
        };
        let borrowed: Vec<_> = lines.iter().map(AsFd::as_fd).collect();
        let sent = socket::send(stream.as_fd(), &bytes, &borrowed, claim);
        if option(options, "keep").is_some() {
            self.kept = lines.pop();
        }
        Ok(outcome(sent, "sent"))
    }

    /// Returns the descriptors to send with HELLO: the other end of a line, or something that is not a line.
    fn lines(&mut self, kind: &str) -> Result<Vec<OwnedFd>, String> {
        let pair = |kind| {
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).map_err(failed("socketpair"))
        };
        Ok(match kind {
            "pair" => {
                let prepared = self.prepared.take();
                let (mine, theirs) = prepared.map_or_else(|| pair(SockType::Stream), Ok)?;
                self.line = Some(mine);
                vec![theirs]
            }
            "none" => Vec::new(),
            "two" => {
                let ((mine, theirs), (_, other)) = (pair(SockType::Stream)?, pair(SockType::Stream)?);
                self.line = Some(mine);
                vec![theirs, other]
            }
            "many" => (0..20)
                .map(|_| Ok(pair(SockType::Stream)?.1))
                .collect::<Result<_, String>>()?,
            "file" => vec![
                File::open("/proc/self/status")
                    .map_err(|error| error.to_string())?
                    .into(),
            ],
            "pipe" => vec![pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?.0],
            "datagram" => {
                let (mine, theirs) = pair(SockType::Datagram)?;
                self.line = Some(mine);
                vec![theirs]
            }
            // A stream socket of this user in every socket option, but with no process at its other end.
            "listener" => {
                let listener = socket::stream().map_err(failed("socket"))?;
                bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).map_err(failed("bind"))?;
                nix::sys::socket::listen(
                    &listener,
                    nix::sys::socket::Backlog::new(1).map_err(failed("backlog"))?,
                )
                .map_err(failed("listen"))?;
                vec![listener]
            }
            "unconnected" => vec![socket::stream().map_err(failed("socket"))?],
            other => return Err(format!("no such line: {other}")),
        })
    }

    /// Sends OFFER with an object that is valid except for what `kind` names.
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
            "pipe" => pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?.0,
            "socket" => socket::stream().map_err(failed("socket"))?,
            // A regular file on the filesystem of the executable.
            "file" => File::open("/proc/self/exe")
                .map_err(|error| error.to_string())?
                .into(),
            "device" => File::open("/dev/zero").map_err(|error| error.to_string())?.into(),
            "path" => {
                open("/dev/zero", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open"))?
            }
            _ => self.memory(kind, size)?,
        };
        // A publisher sends its control object first, and then its ring.
        let control = match kind {
            "ring" => Some(self.control_of_publisher()?),
            _ => None,
        };
        let second = match kind {
            "two" => vec![pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?.0],
            "three" => vec![
                pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?.0,
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
        let answer = self.send_order(&bytes, &descriptors);
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

    /// Does everything that an honest subscriber does, up to the first message.
    fn subscribe(&mut self, address: &str, options: &[&str]) -> Result<String, String> {
        let (delivery, from) = (parsed(options, "delivery", 1)?, parsed(options, "from", 1)?);
        let meeting = format!("meeting={}", protocol::broadcast(delivery, from));
        self.steps(&[
            (&["connect", address], "connected"),
            (&["hello", "capacity=0", &meeting], "sent"),
            (&["receive"], "hello"),
            (&["receive"], "offer"),
            (&["offer", "sound"], "sent"),
        ])?;
        self.own_map
            .as_ref()
            .ok_or("no own memory")?
            .store(layout::head_of(self.start.slot), self.start.position);
        self.steps(&[(&["ready"], "sent"), (&["receive"], "ready")])?;
        Ok("subscribed".into())
    }

    /// Does everything that an honest publisher does, for one subscriber.
    fn publish(&mut self, options: &[&str]) -> Result<String, String> {
        let meeting = format!("meeting={}", protocol::broadcast(0, 0));
        self.steps(&[
            (&["accept"], "accepted"),
            (&["receive-hello"], "hello"),
            (&["hello", &meeting, "longest=8192"], "sent"),
            (&[&["offer", "ring"][..], options].concat(), "sent"),
            (&["receive"], "offer"),
            (&["receive"], "ready"),
            (&["ready"], "sent"),
        ])?;
        Ok("published".into())
    }

    fn steps(&mut self, steps: &[(&[&str], &str)]) -> Result<(), String> {
        for (order, wanted) in steps {
            let answer = self.execute(order)?;
            if !answer.starts_with(wanted) {
                return Err(format!("{order:?} was answered by {answer:?}"));
            }
        }
        Ok(())
    }

    /// Stores a head, honest or not, without a wakeup.
    fn head(&self, how: &str) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of the peer")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(failed("mmap"))?;
        let own = self.own_map.as_ref().ok_or("no own memory")?;
        let at = layout::head_of(self.start.slot);
        let (head, tail) = (own.load(at), words.load(layout::TAIL));
        let new = match how {
            "tail" => tail,
            "past" => tail + (1 << 20),
            "unaligned" => head + 4,
            "far" => 1 << 63,
            "last" => u64::MAX,
            // A head that moves backwards: first one that the publisher believes and continues with, until it
            // sleeps again.
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

    /// Moves the head between its start and the published tail, without end.
    fn oscillate_head(&self) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of the peer")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(failed("mmap"))?;
        let own = Arc::clone(self.own_map.as_ref().ok_or("no own memory")?);
        let at = layout::head_of(self.start.slot);
        let start = self.start.position;
        thread::spawn(move || {
            loop {
                own.store(at, words.load(layout::TAIL));
                own.store(at, start);
            }
        });
        Ok("oscillating".into())
    }

    /// Reads `bytes` at a time, each time `milliseconds` after the publisher has parked for room.
    fn read_slowly(&self, bytes: &str, milliseconds: &str, wakes: bool) -> Result<String, String> {
        let theirs = self.theirs.as_ref().ok_or("no ring of the peer")?;
        let words = Mapping::new(theirs, layout::DATA, false).map_err(failed("mmap"))?;
        let own = Arc::clone(self.own_map.as_ref().ok_or("no own memory")?);
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
                if wakes {
                    let _ = send(line.as_raw_fd(), &[1], flags);
                }
            }
        });
        Ok("reading slowly".into())
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
        let raw = memfd_create("hostile", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(failed("memfd"))?;
        let path = format!("/proc/self/fd/{}", raw.as_raw_fd());
        let object = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("reopening"))?;
        drop(raw);
        let length = i64::try_from(actual).map_err(|error| error.to_string())?;
        ftruncate(&object, length).map_err(failed("ftruncate"))?;
        if kind != "sparse" && actual > 0 {
            fallocate(&object, FallocateFlags::empty(), 0, length).map_err(failed("fallocate"))?;
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
            .map_err(failed("mmap"))?;
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
        fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("seals"))?;
        lease(&object, libc::F_WRLCK).map_err(failed("lease"))?;
        Ok(object)
    }

    /// Does everything that an honest guest does, up to the channel.
    fn channel(&mut self, address: &str, options: &[&str]) -> Result<String, String> {
        self.steps(&[
            (&["connect", address], "connected"),
            (&[&["hello"][..], options].concat(), "sent"),
            (&["receive"], "hello"),
            (&["receive"], "offer"),
            (&["offer", option(options, "object").unwrap_or("sound")], "sent"),
            (&["ready"], "sent"),
            (&["receive"], "ready"),
        ])?;
        Ok("channel".into())
    }

    /// Exits, and leaves the line to a process that keeps sending wakeups.
    fn exit_waking(&self) -> Result<String, String> {
        let line = self.line.as_ref().ok_or("no line")?;
        fcntl(line, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("FD_CLOEXEC"))?;
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let line = line.as_raw_fd().to_string();
        let mut wake_forever = Command::new(own)
            .args(["role", "hostile", "ringfence", "wake-forever", &line])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        // The process prints "ready" once it no longer dies with this one.
        let mut ready = [0; 6];
        wake_forever
            .stdout
            .take()
            .ok_or("no output")?
            .read_exact(&mut ready)
            .map_err(|error| error.to_string())?;
        std::process::exit(0)
    }

    /// Becomes another program that keeps the line.
    fn exec(&self, program: &str) -> Result<String, String> {
        let line = self.line.as_ref().ok_or("no line")?;
        fcntl(line, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("FD_CLOEXEC"))?;
        let ready = protocol::ready(&self.peer_nonce);
        let ready: Vec<String> = ready.iter().map(|byte| format!("{byte:02x}")).collect();
        let ready = ready.concat();
        let line = line.as_raw_fd().to_string();
        Err(Command::new(program)
            .args(["role", "hostile", "ringfence", "finish", &line, &ready])
            .exec()
            .to_string())
    }
}

fn lease(object: &OwnedFd, kind: i32) -> Result<(), Errno> {
    /// The same number on every architecture with a Linux target of Rust; libc does not define it.
    const F_SETSIG: i32 = 10;
    // A process that opens the object in the meantime must not kill this process: SIGURG is ignored by
    // default. SAFETY: F_SETSIG takes an integer and touches no memory of this process.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), F_SETSIG, libc::SIGURG) })?;
    // SAFETY: F_SETLEASE takes an integer and touches no memory of this process.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// Sends wakeups without end, until the line is closed.
fn wake_forever(line: &str) -> Result<(), String> {
    // The process that started this one is about to exit.
    prctl::set_pdeathsig(None).map_err(failed("PR_SET_PDEATHSIG"))?;
    let number: RawFd = number(line)?;
    // SAFETY: the program that started this one left this descriptor open for it, and only this call takes
    // it.
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
    // SAFETY: the program that executed this one left this descriptor open for it, and only this call takes
    // it.
    let line = unsafe { OwnedFd::from_raw_fd(number) };
    let bytes: Vec<u8> = (0..ready.len() / 2)
        .filter_map(|index| u8::from_str_radix(ready.get(index * 2..index * 2 + 2)?, 16).ok())
        .collect();
    println!(
        "{}",
        outcome(socket::send(line.as_fd(), &bytes, &[], None), "sent")
    );
    let (frame, descriptors) = protocol::receive_frame(line.as_fd(), TIME_LIMIT);
    println!("{frame}, {} descriptors", descriptors.len());
    Ok(())
}
