//! Sends and receives bytes, descriptors and credentials on a Unix socket, with and without precautions.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        UnixCredentials, bind, connect, listen, recvmsg, sendmsg, socket,
    },
};

use crate::process::TIME_LIMIT;

/// Returns the socket address of `@name` or of a path.
pub fn address(text: &str) -> Result<UnixAddr, Errno> {
    match text.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(text),
    }
}

/// Makes a stream socket, close-on-exec.
pub fn stream() -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

/// Makes a listening socket at `text`.
pub fn listen_at(text: &str) -> Result<OwnedFd, Errno> {
    let socket = stream()?;
    bind(socket.as_raw_fd(), &address(text)?)?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}

/// Connects to `text` as soon as a process listens there.
pub fn connect_to(text: &str) -> Result<OwnedFd, Errno> {
    let address = address(text)?;
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let socket = stream()?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits until a process listens at an abstract address, without connecting to it.
pub fn wait_for_listener(text: &str) -> Result<(), String> {
    let end = Instant::now() + TIME_LIMIT;
    while Instant::now() < end {
        // Bit 16 of the flags: the socket listens.
        let listens = |line: &str| line.ends_with(text) && line.contains(" 00010000 ");
        if fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.lines().any(listens)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(format!("no process listens at {text}"))
}

/// The result of one `recvmsg`.
#[derive(Debug)]
pub struct Parcel {
    /// The bytes. Empty at the end of the stream.
    pub bytes: Vec<u8>,
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// The sender, if `SO_PASSCRED` is set.
    pub sender: Option<UnixCredentials>,
}

/// Receives up to `most` bytes, with descriptors and credentials.
pub fn receive(socket: BorrowedFd<'_>, most: usize) -> Result<Parcel, Errno> {
    let mut bytes = vec![0; most];
    let mut control = cmsg_space!([RawFd; 16], UnixCredentials);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (mut descriptors, mut sender) = (Vec::new(), None);
    for item in message.cmsgs()? {
        match item {
            ControlMessageOwned::ScmRights(numbers) => {
                for number in numbers {
                    // SAFETY: the kernel has just installed this descriptor for this process, and nothing
                    // else owns it.
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials),
            _ => {}
        }
    }
    let count = message.bytes;
    bytes.truncate(count);
    Ok(Parcel {
        bytes,
        descriptors,
        sender,
    })
}

/// Receives exactly `size` bytes, or fewer at the end of the stream.
pub fn receive_exactly(socket: BorrowedFd<'_>, size: usize) -> Result<Parcel, Errno> {
    let mut whole = Parcel {
        bytes: Vec::new(),
        descriptors: Vec::new(),
        sender: None,
    };
    while whole.bytes.len() < size {
        let part = receive(socket, size - whole.bytes.len())?;
        if part.bytes.is_empty() {
            break;
        }
        whole.bytes.extend(part.bytes);
        whole.descriptors.extend(part.descriptors);
        whole.sender = part.sender.or(whole.sender);
    }
    Ok(whole)
}

/// Sends bytes with any descriptors and with the claimed credentials, which the kernel accepts or rejects.
/// Never blocks. Returns the number of bytes sent.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    claim: Option<UnixCredentials>,
) -> Result<usize, Errno> {
    let numbers: Vec<RawFd> = descriptors.iter().map(BorrowedFd::as_raw_fd).collect();
    let mut control = Vec::new();
    if !numbers.is_empty() {
        control.push(ControlMessage::ScmRights(&numbers));
    }
    if let Some(credentials) = &claim {
        control.push(ControlMessage::ScmCredentials(credentials));
    }
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None)
}
