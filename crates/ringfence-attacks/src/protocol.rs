//! ringfence's frames, implemented from their description for peers that may violate it.

use std::{
    fmt,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::socket;

/// The offsets of words in a region.
pub mod layout {
    /// The owner's write position.
    pub const TAIL: usize = 128;
    /// The owner's read position in the other ring.
    pub const HEAD: usize = 256;
    /// Odd while the owner sleeps until data arrives.
    pub const READER_PARKED: usize = 384;
    /// Odd while the owner sleeps until the ring has space.
    pub const WRITER_PARKED: usize = 512;
    /// 0: more may follow, 1: it sends no more, 2: it has closed.
    pub const PHASE: usize = 640;
    /// In a publisher's ring object: data before this position may be overwritten.
    pub const FLOOR: usize = 1152;
    /// The size of an object without a ring in bytes.
    pub const CONTROL: u64 = 12_288;
    /// The ring.
    pub const DATA: usize = 4096;
    /// Returns the offset of a publisher's mark: a position, and the number of messages before it.
    pub const fn mark_of(number: usize) -> usize {
        2048 + 16 * (number % 16)
    }
    /// Returns the offset of the read position of the subscriber in this slot.
    pub const fn head_of(slot: u32) -> usize {
        4096 + 64 * (slot as usize % 64)
    }
    /// The number of bytes after the ring.
    pub const AFTER: usize = 4096;
    /// The first word.
    pub const MAGIC: [u8; 8] = *b"ringfnc2";
    /// The record is the start of a message.
    pub const FIRST: u32 = 1;
    /// The record is the end of a message.
    pub const LAST: u32 = 2;
    /// The record is not a message.
    pub const PADDING: u32 = 4;
    /// The message is a frame of a call.
    pub const CALL: u32 = 16;
}

/// 32 random bytes from one side.
pub type Nonce = [u8; 32];

/// The starting position of a subscriber, as its publisher states it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// The position in the ring.
    pub position: u64,
    /// The number of messages before that position.
    pub sequence: u64,
    /// The slot, which determines the offsets of its words.
    pub slot: u32,
}

/// A decoded frame, or another result of receiving one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Nonce, echo, capacity, longest message, backing, features.
    Hello(Nonce, Nonce, u64, u64, u32, u32),
    /// Echo, size, capacity, and a subscriber's start.
    Offer(Nonce, u64, u64, Start),
    /// Echo.
    Ready(Nonce),
    /// Code, check, wanted, found.
    Refuse(u16, String, String, String),
    /// The other end was closed.
    End,
    /// Nothing arrived in time.
    Silence,
    /// Bytes that are no frame.
    Garbage(Vec<u8>),
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(_, _, capacity, longest, backing, _) => {
                write!(f, "hello {capacity} {longest} {backing}")
            }
            Self::Offer(_, size, capacity, _) => write!(f, "offer {size} {capacity}"),
            Self::Ready(_) => write!(f, "ready"),
            Self::Refuse(code, check, wanted, found) => {
                write!(f, "refuse {code} {check} | {wanted} | {found}")
            }
            Self::End => write!(f, "end"),
            Self::Silence => write!(f, "silence"),
            Self::Garbage(bytes) => write!(f, "garbage {bytes:02x?}"),
        }
    }
}

/// Encodes a frame with any kind and body.
pub fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"ringfnce".to_vec();
    bytes.extend(3_u16.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Encodes a HELLO.
pub fn hello(nonce: &Nonce, echo: &Nonce, capacity: u64, longest: u64, backing: u32) -> Vec<u8> {
    hello_to(0, nonce, echo, (capacity, longest), backing)
}

/// Returns the fields of a HELLO in a broadcast: the kind of meeting, and the requests of a subscriber.
pub const fn broadcast(delivery: u16, from: u16) -> u64 {
    4 | (delivery as u64) << 32 | (from as u64) << 48
}

/// Encodes a HELLO for any kind of meeting.
pub fn hello_to(
    meeting: u64,
    nonce: &Nonce,
    echo: &Nonce,
    (capacity, longest): (u64, u64),
    backing: u32,
) -> Vec<u8> {
    let mut body = nonce.to_vec();
    body.extend(echo);
    body.extend(capacity.to_le_bytes());
    body.extend(longest.to_le_bytes());
    body.extend(backing.to_le_bytes());
    // No barriers: then the other side makes every fence.
    body.extend(0_u32.to_le_bytes());
    body.extend(meeting.to_le_bytes());
    // No attachments.
    body.extend([0; 16]);
    frame(1, &body)
}

/// Encodes an OFFER.
pub fn offer(echo: &Nonce, size: u64, capacity: u64, start: Start) -> Vec<u8> {
    let mut body = echo.to_vec();
    body.extend(size.to_le_bytes());
    body.extend(capacity.to_le_bytes());
    // This side receives no tokens.
    body.extend([0; 32]);
    body.extend(start.position.to_le_bytes());
    body.extend(start.sequence.to_le_bytes());
    body.extend(start.slot.to_le_bytes());
    body.extend([0; 4]);
    frame(2, &body)
}

/// Encodes a READY.
pub fn ready(echo: &Nonce) -> Vec<u8> {
    frame(3, echo)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.take().map(u16::from_le_bytes)?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

fn parse(kind: u16, body: &[u8]) -> Option<Frame> {
    let mut fields = Fields(body);
    Some(match kind {
        1 => Frame::Hello(
            fields.take()?,
            fields.take()?,
            fields.u64()?,
            fields.u64()?,
            fields.take().map(u32::from_le_bytes)?,
            fields.take().map(u32::from_le_bytes)?,
        ),
        2 => {
            let (echo, size, capacity) = (fields.take()?, fields.u64()?, fields.u64()?);
            // The address of its tokens.
            let _: [u8; 32] = fields.take()?;
            let start = Start {
                position: fields.u64()?,
                sequence: fields.u64()?,
                slot: fields.take().map(u32::from_le_bytes)?,
            };
            Frame::Offer(echo, size, capacity, start)
        }
        3 => Frame::Ready(fields.take()?),
        4 => Frame::Refuse(
            fields.take().map(u16::from_le_bytes)?,
            fields.text()?,
            fields.text()?,
            fields.text()?,
        ),
        _ => return None,
    })
}

/// Whether something can be read within this many milliseconds.
pub fn readable(socket: BorrowedFd<'_>, milliseconds: u16) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Err(Errno::EINTR) => {}
            other => return other.is_ok_and(|count| count > 0),
        }
    }
}

/// Receives the next frame, with its descriptors.
pub fn receive_frame(socket: BorrowedFd<'_>, milliseconds: u16) -> (Frame, Vec<OwnedFd>) {
    receive_frame_after(socket, milliseconds, Vec::new())
}

/// Receives a frame whose first bytes were already read.
pub fn receive_frame_after(
    socket: BorrowedFd<'_>,
    milliseconds: u16,
    mut bytes: Vec<u8>,
) -> (Frame, Vec<OwnedFd>) {
    let mut descriptors = Vec::new();
    let mut wanted = 16;
    while bytes.len() < wanted {
        if !readable(socket.as_fd(), milliseconds) {
            return (Frame::Silence, descriptors);
        }
        let parcel = match socket::receive(socket, wanted - bytes.len()) {
            Ok(parcel) => parcel,
            Err(Errno::EAGAIN) => continue,
            Err(_) => return (Frame::End, descriptors),
        };
        if parcel.bytes.is_empty() {
            return (Frame::End, descriptors);
        }
        bytes.extend(parcel.bytes);
        descriptors.extend(parcel.descriptors);
        if bytes.len() == 16 {
            let length: [u8; 4] = [bytes[12], bytes[13], bytes[14], bytes[15]];
            wanted = 16 + (u32::from_le_bytes(length) as usize).min(4096);
        }
    }
    let kind = u16::from_le_bytes([bytes[10], bytes[11]]);
    let frame = if bytes.starts_with(b"ringfnce") {
        parse(kind, &bytes[16..])
    } else {
        None
    };
    (frame.unwrap_or(Frame::Garbage(bytes)), descriptors)
}
