//! A manual implementation of the protocol in docs/internals/protocol.md, for peers that violate it.

use std::{
    io::{IoSlice, IoSliceMut, Read},
    mem::ManuallyDrop,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::MmapRaw;
use nix::{
    fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    libc,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            UnixCredentials, recvmsg, sendmsg, setsockopt, socketpair, sockopt,
        },
        stat::Mode,
        uio::pread,
    },
};

pub const CAPACITY: u64 = 4096;
/// Header page, ring, overhang rounded to a page.
const SIZE: u64 = 4096 + CAPACITY + 4096;

pub fn frame(magic: [u8; 8], version: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = magic.to_vec();
    frame.extend_from_slice(&version.to_le_bytes());
    frame.extend_from_slice(&kind.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

pub fn good(kind: u16, body: &[u8]) -> Vec<u8> {
    frame(*b"ringfnce", 3, kind, body)
}

pub fn hello(echo: &[u8]) -> Vec<u8> {
    hello_for(0, echo)
}

/// The purposes that a HELLO can state.
pub const SERVICE: u32 = 1;
pub const MEMBERSHIP: u32 = 3;

pub fn hello_for(meeting: u32, echo: &[u8]) -> Vec<u8> {
    hello_of(meeting, 0, echo)
}

/// As `hello_for`, with these features.
fn hello_of(meeting: u32, features: u32, echo: &[u8]) -> Vec<u8> {
    let mut body = vec![7; 32];
    body.extend_from_slice(echo);
    body.extend_from_slice(&CAPACITY.to_le_bytes());
    body.extend_from_slice(&65536_u64.to_le_bytes());
    body.extend_from_slice(&1_u32.to_le_bytes());
    body.extend_from_slice(&features.to_le_bytes());
    body.extend_from_slice(&meeting.to_le_bytes());
    body.extend_from_slice(&[0; 20]);
    good(1, &body)
}

pub fn offer(echo: &[u8]) -> Vec<u8> {
    let mut body = echo.to_vec();
    body.extend_from_slice(&SIZE.to_le_bytes());
    body.extend_from_slice(&CAPACITY.to_le_bytes());
    // It accepts no tokens, and has no subscriber.
    body.extend_from_slice(&[0; 56]);
    good(2, &body)
}

/// Sends bytes with this process's credentials, and a descriptor.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) {
    send_with(socket, bytes, descriptor.as_slice());
}

/// As `send`, with several descriptors.
pub fn send_with(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let credentials = UnixCredentials::new();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = vec![ControlMessage::ScmCredentials(&credentials)];
    if !raw.is_empty() {
        control.push(ControlMessage::ScmRights(&raw));
    }
    let socket = socket.as_fd().as_raw_fd();
    let sent = sendmsg::<()>(
        socket,
        &[IoSlice::new(bytes)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

/// Reads one frame's body. The kernel drops any descriptors sent with it.
pub fn receive(line: &mut UnixStream) -> std::io::Result<(u16, Vec<u8>)> {
    let mut head = [0; 16];
    line.read_exact(&mut head)?;
    let kind = u16::from_le_bytes([head[10], head[11]]);
    let length = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let mut body = vec![0; length as usize];
    line.read_exact(&mut body)?;
    Ok((kind, body))
}

pub fn connect(address: &str) -> UnixStream {
    try_connect(address).expect("a process listens")
}

pub fn try_connect(address: &str) -> std::io::Result<UnixStream> {
    let name = address.strip_prefix('@').expect("an abstract address");
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    UnixStream::connect_addr(&address)
}

pub fn listen(address: &str) -> UnixListener {
    let name = address.strip_prefix('@').expect("an abstract address");
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).expect("an address"))
        .expect("a listener");
    setsockopt(&listener, sockopt::PassCred, &true).expect("SO_PASSCRED");
    listener
}

/// Makes both ends of a private line.
pub fn line() -> (UnixStream, OwnedFd) {
    let (mine, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a line");
    (UnixStream::from(mine), theirs)
}

/// Makes the kernel install a pidfd of the sender with all data read from this socket (`SO_PASSPIDFD`, Linux
/// 6.5). The option belongs to the socket, so it holds for every process that has a descriptor of it.
/// `false`: this kernel does not support it.
pub fn request_pidfds(socket: impl AsFd) -> bool {
    const SO_PASSPIDFD: libc::c_int = 76;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which `on` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSPIDFD,
            (&raw const on).cast(),
            4,
        )
    };
    result == 0
}

/// Sends a frame byte by byte, each with this process's credentials. The descriptor is sent with the first
/// byte. Stops once the other side no longer reads.
pub fn send_in_pieces(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) {
    let credentials = UnixCredentials::new();
    let raw: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    for (at, byte) in bytes.iter().enumerate() {
        let mut control = vec![ControlMessage::ScmCredentials(&credentials)];
        if at == 0 && !raw.is_empty() {
            control.push(ControlMessage::ScmRights(&raw));
        }
        let slices = [IoSlice::new(std::slice::from_ref(byte))];
        let number = socket.as_fd().as_raw_fd();
        if sendmsg::<()>(number, &slices, &control, MsgFlags::MSG_NOSIGNAL, None).is_err() {
            return;
        }
    }
}

/// Makes a sound object, with its owner's mapping.
pub fn object() -> (OwnedFd, MmapRaw) {
    object_of(CAPACITY, SIZE)
}

/// As `object`, with a ring of this capacity, or without one.
pub fn object_of(capacity: u64, size: u64) -> (OwnedFd, MmapRaw) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let raw = memfd_create("by hand", flags).expect("a memfd");
    let path = format!("/proc/self/fd/{}", raw.as_raw_fd());
    let object = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).expect("reopened");
    drop(raw);
    fallocate(&object, FallocateFlags::empty(), 0, size.try_into().unwrap()).expect("room");
    let mut words = b"ringfnc2".to_vec();
    words.extend_from_slice(&capacity.to_le_bytes());
    nix::sys::uio::pwrite(&object, &words, 0).expect("written");
    let mapping = MmapRaw::map_raw(&object).expect("mapped");
    let seals = SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
    // SAFETY: F_SETLEASE takes an integer.
    let leased = unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(leased, 0);
    (object, mapping)
}

/// The steps of a guest. A guest may stop after any of them.
pub const GUEST_STEPS: [&str; 6] = ["connected", "half a HELLO", "HELLO", "answered", "OFFER", "READY"];

/// Runs a manual guest that stops after a step, or completes the handshake. `in_pieces`: sends each byte of
/// HELLO separately.
pub fn guest(address: &str, stop_at: &str, in_pieces: bool, stopped: impl FnMut()) {
    guest_for(0, address, stop_at, in_pieces, stopped);
}

/// As `guest`, for the purpose that it states.
pub fn guest_for(meeting: u32, address: &str, stop_at: &str, in_pieces: bool, mut stopped: impl FnMut()) {
    let stream = connect(address);
    let mut stop = |step: &str| {
        if step == stop_at {
            stopped();
        }
    };
    stop("connected");
    let (mut mine, theirs) = line();
    let hello = hello_for(meeting, &[0; 32]);
    if stop_at == "half a HELLO" {
        send(&stream, &hello[..hello.len() / 2], Some(theirs.as_fd()));
        stop("half a HELLO");
    }
    if in_pieces {
        for (at, byte) in hello.iter().enumerate() {
            send(&stream, &[*byte], (at == 0).then(|| theirs.as_fd()));
        }
    } else {
        send(&stream, &hello, Some(theirs.as_fd()));
    }
    drop(theirs);
    stop("HELLO");
    let (kind, body) = receive(&mut mine).expect("the host's HELLO");
    assert_eq!(kind, 1);
    let nonce = &body[..32];
    stop("answered");
    let (object, _mapping) = object();
    send(&mine, &offer(nonce), Some(object.as_fd()));
    assert_eq!(receive(&mut mine).expect("the host's OFFER").0, 2);
    stop("OFFER");
    send(&mine, &good(3, nonce), None);
    assert_eq!(receive(&mut mine).expect("the host's READY").0, 3);
    // From here on the host has a channel with this guest.
    stop("READY");
    // The line stays open until the host hangs up.
    let _ = mine.read(&mut [0; 16]);
}

/// A manual guest that has completed the handshake. From here on it may write anything into its region.
pub struct ManualGuest {
    pub line: UnixStream,
    /// The features that the host has announced.
    pub features: u32,
    mapping: MmapRaw,
}

impl ManualGuest {
    pub fn guest(address: &str) -> Self {
        Self::guest_with(address, 0)
    }

    /// As `guest`, but announces these features.
    pub fn guest_with(address: &str, features: u32) -> Self {
        let stream = connect(address);
        let (mut line, theirs) = line();
        send(&stream, &hello_of(0, features, &[0; 32]), Some(theirs.as_fd()));
        drop(theirs);
        let (_, body) = receive(&mut line).expect("the host's HELLO");
        let nonce = &body[..32];
        let features = u32::from_le_bytes(body[84..88].try_into().unwrap());
        let (object, mapping) = object();
        send(&line, &offer(nonce), Some(object.as_fd()));
        assert_eq!(receive(&mut line).expect("the host's OFFER").0, 2);
        send(&line, &good(3, nonce), None);
        assert_eq!(receive(&mut line).expect("the host's READY").0, 3);
        Self {
            line,
            features,
            mapping,
        }
    }

    /// Writes a word at an offset of its region.
    pub fn write(&self, at: usize, word: u64) {
        assert!(at.is_multiple_of(8) && at + 8 <= self.mapping.len());
        // SAFETY: in bounds.
        let word_at = unsafe { self.mapping.as_mut_ptr().add(at) };
        // SAFETY: aligned, since the mapping is whole pages; only atomics and the peer's process touch it.
        unsafe { AtomicU64::from_ptr(word_at.cast()) }.store(word, Ordering::Release);
    }

    pub fn send_wakeup(&self) {
        send(&self.line, &[1], None);
    }
}

/// The steps of a host. A host may stop after any of them.
pub const HOST_STEPS: [&str; 7] = [
    "listening",
    "accepted",
    "HELLO",
    "answered",
    "OFFER",
    "ready",
    "READY",
];

/// Runs a manual host that stops after a step.
pub fn host(address: &str, stop_at: &str, mut stopped: impl FnMut()) {
    let mut stop = |step: &str| {
        if step == stop_at {
            stopped();
        }
    };
    let listener = listen(address);
    stop("listening");
    let (stream, _) = listener.accept().expect("a guest");
    stop("accepted");
    let (hello_of_guest, line) = receive_hello(&stream);
    stop("HELLO");
    let nonce = &hello_of_guest[16..48];
    let mut line = UnixStream::from(line);
    line.set_nonblocking(false).expect("blocking mode");
    send(&line, &hello(nonce), None);
    stop("answered");
    let (object, _mapping) = object();
    send(&line, &offer(nonce), Some(object.as_fd()));
    assert_eq!(receive(&mut line).expect("the guest's OFFER").0, 2);
    stop("OFFER");
    assert_eq!(receive(&mut line).expect("the guest's READY").0, 3);
    stop("ready");
    send(&line, &good(3, nonce), None);
    stop("READY");
}

/// Runs a manual host for this purpose that has a channel once the guest is ready, and calls `ready` then in place of the last step.
/// Returns the phase word in the guest's region after the guest has hung up.
pub fn host_of_a_guest_that_fails(
    listener: &UnixListener,
    meeting: u32,
    ready: impl FnOnce(&UnixStream),
) -> u64 {
    let (stream, _) = listener.accept().expect("a guest");
    let (hello_of_guest, line) = receive_hello(&stream);
    let nonce = &hello_of_guest[16..48];
    let mut line = UnixStream::from(line);
    line.set_nonblocking(false).expect("blocking mode");
    send(&line, &hello_for(meeting, nonce), None);
    let (object, _mapping) = self::object();
    send(&line, &offer(nonce), Some(object.as_fd()));
    let (_, objects) = receive_with_descriptors(&line, 16 + 104);
    assert_eq!(receive(&mut line).expect("the guest's READY").0, 3);
    ready(&line);
    line.read_to_end(&mut Vec::new()).expect("the line's end");
    let mut word = [0; 8];
    let read = pread(&objects[0], &mut word, 640);
    assert_eq!(read, Ok(8));
    u64::from_le_bytes(word)
}

/// Builds a refusal: its code (5: the sender cannot continue), the check, and the wanted and found values.
pub fn refusal(code: u16, texts: [&str; 3]) -> Vec<u8> {
    let mut body = code.to_le_bytes().to_vec();
    for text in texts {
        body.extend_from_slice(&u16::try_from(text.len()).unwrap().to_le_bytes());
        body.extend_from_slice(text.as_bytes());
    }
    good(4, &body)
}

/// Sends the first reply of a member host, and reads the guest's reply, if any.
pub fn answer(stream: &UnixStream) {
    answer_with(stream, MEMBERSHIP, &[]);
}

/// As `answer`, for a host of any kind, with these descriptors.
pub fn answer_with(stream: &UnixStream, meeting: u32, descriptors: &[BorrowedFd<'_>]) {
    stream.set_nonblocking(false).expect("blocking mode");
    let (hello_of_guest, line) = receive_hello(stream);
    let mut line = UnixStream::from(line);
    line.set_nonblocking(false).expect("blocking mode");
    send_with(&line, &hello_for(meeting, &hello_of_guest[16..48]), descriptors);
    let _ = receive(&mut line);
}

/// Receives a guest's HELLO, and refuses it with this code and check.
pub fn refuse_client(stream: &UnixStream, code: u16, check: &str) {
    let (_, line) = receive_hello(stream);
    let found = format!("{check}, as reported");
    send(stream, &refusal(code, [check, "", &found]), None);
    drop(line);
}

/// Runs a manual member host, which passes the given descriptors with its READY. Returns the guest's
/// reply.
pub fn member_host(
    address: &str,
    listening: impl FnOnce(),
    passed: impl FnOnce(&UnixListener) -> Vec<OwnedFd>,
) -> String {
    let listener = listen(address);
    listening();
    member_host_at(&listener, passed)
}

/// As `member_host`, with a socket that is already listening.
pub fn member_host_at(listener: &UnixListener, passed: impl FnOnce(&UnixListener) -> Vec<OwnedFd>) -> String {
    let (stream, _) = listener.accept().expect("a guest");
    let (hello_of_guest, line) = receive_hello(&stream);
    let nonce = &hello_of_guest[16..48];
    let mut line = UnixStream::from(line);
    line.set_nonblocking(false).expect("blocking mode");
    send(&line, &hello_for(MEMBERSHIP, nonce), None);
    let (object, _mapping) = object();
    send(&line, &offer(nonce), Some(object.as_fd()));
    assert_eq!(receive(&mut line).expect("the guest's OFFER").0, 2);
    assert_eq!(receive(&mut line).expect("the guest's READY").0, 3);
    // Not closed: the test may pass a file that does not close.
    let passed = ManuallyDrop::new(passed(listener));
    let descriptors: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
    send_with(&line, &good(3, nonce), &descriptors);
    match receive(&mut line) {
        Ok((4, body)) => format!(
            "REFUSE {}",
            String::from_utf8_lossy(&body[2..]).replace(char::is_control, " ")
        ),
        Ok((kind, _)) => format!("a frame of kind {kind}"),
        Err(error) => format!("nothing: {error}"),
    }
}

/// Receives the guest's complete HELLO, and the line that was passed with its first byte.
fn receive_hello(stream: &UnixStream) -> (Vec<u8>, OwnedFd) {
    let (mut hello, mut line) = (vec![0; 112], None);
    let mut filled = 0;
    while filled < hello.len() {
        let mut slices = [IoSliceMut::new(&mut hello[filled..])];
        let mut control = nix::cmsg_space!(UnixCredentials, [RawFd; 1]);
        let received = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .expect("a HELLO");
        for message in received.cmsgs().expect("whole control messages") {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                for raw in descriptors {
                    // SAFETY: the kernel has just installed it for this process.
                    line = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
        }
        assert!(received.bytes > 0, "the guest has disconnected");
        filled += received.bytes;
    }
    (hello, line.expect("a line passed with the HELLO"))
}

/// A manual subscriber: the state received with the publisher's OFFER.
pub struct ManualSubscriber {
    pub line: UnixStream,
    /// The ring object, which an honest subscriber maps and closes.
    pub ring: OwnedFd,
    pub capacity: u64,
    /// The position at which the subscriber starts, and its number.
    pub position: u64,
    pub slot: u32,
    nonce: Vec<u8>,
    mapping: MmapRaw,
}

/// Size of a control object in bytes.
const CONTROL: u64 = 3 * 4096;

impl ManualSubscriber {
    /// Completes the handshake up to both OFFERs. `delivery` and `from` are numbers of the wire.
    pub fn offered(address: &str, delivery: u16, from: u16) -> Self {
        Self::accepting(address, delivery, from, 0)
    }

    /// The same, and accepts this number of descriptors.
    pub fn accepting(address: &str, delivery: u16, from: u16, count: u32) -> Self {
        let stream = connect(address);
        let (mut line, theirs) = line();
        let mut body = vec![7; 32];
        body.extend_from_slice(&[0; 32]);
        body.extend_from_slice(&0_u64.to_le_bytes());
        body.extend_from_slice(&(1_u64 << 20).to_le_bytes());
        body.extend_from_slice(&1_u32.to_le_bytes());
        body.extend_from_slice(&(if count > 0 { 8_u32 } else { 0 }).to_le_bytes());
        body.extend_from_slice(&4_u32.to_le_bytes());
        body.extend_from_slice(&delivery.to_le_bytes());
        body.extend_from_slice(&from.to_le_bytes());
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(&[0; 12]);
        send(&stream, &good(1, &body), Some(theirs.as_fd()));
        drop(theirs);
        let (kind, body) = receive(&mut line).expect("the publisher's HELLO");
        assert_eq!(kind, 1);
        let nonce = body[..32].to_vec();
        let (object, mapping) = object_of(0, CONTROL);
        let mut body = nonce.clone();
        body.extend_from_slice(&CONTROL.to_le_bytes());
        body.extend_from_slice(&[0; 64]);
        send(&line, &good(2, &body), Some(object.as_fd()));
        let (body, mut descriptors) = receive_with_descriptors(&line, 16 + 104);
        assert_eq!(descriptors.len(), 2, "the control object and the ring");
        let word = |at: usize| u64::from_le_bytes(body[16 + at..24 + at].try_into().unwrap());
        Self {
            line,
            ring: descriptors.pop().unwrap(),
            capacity: word(40),
            position: word(80),
            slot: u32::from_le_bytes(body[16 + 96..16 + 100].try_into().unwrap()),
            nonce,
            mapping,
        }
    }

    /// Sends READY. Returns whether the publisher sends it as well.
    pub fn ready(&mut self) -> bool {
        self.store_head(self.position);
        send(&self.line, &good(3, &self.nonce), None);
        receive(&mut self.line).is_ok_and(|(kind, _)| kind == 3)
    }

    /// Stores the position up to which the subscriber claims to have read.
    pub fn store_head(&self, position: u64) {
        let at = 4096 + 64 * (self.slot as usize % 64);
        // SAFETY: in bounds: a page behind the first.
        let word_at = unsafe { self.mapping.as_mut_ptr().add(at) };
        // SAFETY: aligned, since the mapping is whole pages; only atomics and the peer's process touch it.
        unsafe { AtomicU64::from_ptr(word_at.cast()) }.store(position, Ordering::Release);
    }

    /// Waits until the publisher has hung up.
    pub fn wait_for_end(&mut self) {
        let mut wakeups = [0; 64];
        while self.line.read(&mut wakeups).is_ok_and(|count| count > 0) {}
    }
}

/// Receives this many bytes, and the descriptors sent with them.
fn receive_with_descriptors(line: &UnixStream, count: usize) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; count];
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while filled < count {
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut slices = [std::io::IoSliceMut::new(&mut bytes[filled..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(line.as_raw_fd(), &mut slices, Some(&mut room), flags).expect("a part");
        for message in received.cmsgs().expect("control messages") {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                // SAFETY: the kernel has just installed them for this call, and no other code knows them.
                descriptors.extend(
                    numbers
                        .into_iter()
                        .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
                );
            }
        }
        assert!(received.bytes > 0, "the line has ended");
        filled += received.bytes;
    }
    (bytes, descriptors)
}
