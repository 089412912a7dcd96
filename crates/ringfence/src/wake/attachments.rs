//! Attachments on the line: how they travel, and those whose message was not read yet.
//!
//! The sender of a message with attachments first sends one *parcel*: the byte [`PARCEL`], the number of attachments,
//! and one word for each: the size of a sealed buffer, or [`DESCRIPTOR`]. Their descriptors come with it
//! (`SCM_RIGHTS`). All other bytes on the line are wakeups. The reader takes parcels off the line in
//! [`Arrived::read`], the only function that reads a line on which attachments may come; the lock of the doorbell's
//! state guards it.

use std::{
    collections::VecDeque,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use crate::{
    error::{Error, Result},
    region::sealed::SealedBuffer,
    sys::{
        self,
        socket::{ControlStatus, Received},
        uninterrupted,
    },
};

/// The most attachments of one message: the most descriptors that the kernel passes at once (`SCM_MAX_FD`).
pub(crate) const MOST: usize = 253;
/// The most attachments that a receiver may hold unread. Their parcels fit the line's buffer.
pub(crate) const MOST_UNREAD: u32 = 1024;
/// The first byte of a parcel. A wakeup has another value.
const PARCEL: u8 = 2;
/// In place of a size: the attachment is no sealed buffer.
const DESCRIPTOR: u64 = u64::MAX;
/// Longer than a parcel.
const READ: usize = 4096;

/// The attachments that one side accepts: none, unless it says so.
///
/// ```
/// use ringfence::{Attachments, Options};
/// let options = Options::new().attachments(Attachments::none().sealed(true).max_bytes(1 << 20));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachments {
    pub(crate) sealed: bool,
    pub(crate) descriptors: bool,
    pub(crate) max_count: u32,
    pub(crate) max_bytes: u64,
}

impl Default for Attachments {
    fn default() -> Self {
        Self::none()
    }
}

impl Attachments {
    /// Accepts no attachments. Peers that send one get [`Error::InvalidArgument`].
    pub const fn none() -> Self {
        Self {
            sealed: false,
            descriptors: false,
            max_count: 64,
            max_bytes: 1 << 30,
        }
    }

    /// Sets whether sealed buffers are accepted.
    #[must_use]
    pub const fn sealed(mut self, accepted: bool) -> Self {
        self.sealed = accepted;
        self
    }

    /// Sets whether open descriptors of any kind are accepted. Through one of a directory a confined process reaches
    /// the directories above it (`openat(..)`).
    #[must_use]
    pub const fn descriptors(mut self, accepted: bool) -> Self {
        self.descriptors = accepted;
        self
    }

    /// Sets how many attachments may be unread (64), at most 1024. The sender waits at the limit.
    #[must_use]
    pub const fn max_count(mut self, count: u32) -> Self {
        self.max_count = count;
        self
    }

    /// Sets how many bytes of sealed buffers may be unread (1 GiB). The sender waits at the limit.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Whether anything is accepted.
    pub(crate) const fn any(self) -> bool {
        self.sealed || self.descriptors
    }

    pub(crate) fn check(&self) -> Result<()> {
        if (1..=MOST_UNREAD).contains(&self.max_count) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "attachments: max_count must be 1 to {MOST_UNREAD}, not {}",
            self.max_count
        )))
    }
}

/// A received attachment.
#[non_exhaustive]
#[derive(Debug)]
pub enum Attachment {
    /// Memory that no process can change.
    Sealed(SealedBuffer),
    /// An open file, socket or any other descriptor. Nothing is known of it.
    Descriptor(OwnedFd),
}

/// An attachment to send. The peer gets a descriptor of its own; the sender keeps its one.
#[derive(Debug, Clone, Copy)]
pub enum AttachmentRef<'a> {
    /// Memory that no process can change.
    Sealed(&'a SealedBuffer),
    /// Any open descriptor.
    Descriptor(BorrowedFd<'a>),
}

impl<'a> From<&'a SealedBuffer> for AttachmentRef<'a> {
    fn from(buffer: &'a SealedBuffer) -> Self {
        Self::Sealed(buffer)
    }
}

impl<'a> From<BorrowedFd<'a>> for AttachmentRef<'a> {
    fn from(descriptor: BorrowedFd<'a>) -> Self {
        Self::Descriptor(descriptor)
    }
}

impl AttachmentRef<'_> {
    /// Bytes that count against [`Attachments::max_bytes`].
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Sealed(buffer) => buffer.len() as u64,
            Self::Descriptor(_) => 0,
        }
    }

    fn word(&self) -> u64 {
        match self {
            Self::Sealed(buffer) => buffer.len() as u64,
            Self::Descriptor(_) => DESCRIPTOR,
        }
    }
}

impl AsFd for AttachmentRef<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Sealed(buffer) => buffer.as_fd(),
            Self::Descriptor(descriptor) => *descriptor,
        }
    }
}

/// Puts the attachments of one message on the line, all or none. Passes MSG_DONTWAIT, since the peer could change the
/// mode of the open file that both share.
pub(super) fn post(line: BorrowedFd<'_>, attachments: &[AttachmentRef<'_>]) -> Result<(), Errno> {
    let mut parcel = Vec::with_capacity(2 + 8 * attachments.len());
    parcel.extend([PARCEL, u8::try_from(attachments.len()).map_err(|_| Errno::E2BIG)?]);
    for attachment in attachments {
        parcel.extend(attachment.word().to_le_bytes());
    }
    let numbers: Vec<RawFd> = attachments
        .iter()
        .map(|attachment| attachment.as_fd().as_raw_fd())
        .collect();
    let (slices, control) = ([IoSlice::new(&parcel)], [ControlMessage::ScmRights(&numbers)]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // The kernel takes a parcel whole or not at all: it fits one buffer.
    uninterrupted(|| sendmsg::<()>(line.as_raw_fd(), &slices, &control, flags, None)).map(drop)
}

/// The attachments of one message: a word and a descriptor for each.
pub(super) type Parcel = Vec<(u64, OwnedFd)>;

/// Attachments that were read from the line, and whose message was not read yet.
#[derive(Debug)]
pub(super) struct Arrived {
    accepts: Attachments,
    parcels: VecDeque<Parcel>,
    count: u64,
    bytes: u64,
    /// The first protocol violation on the line. After it, nothing more is read.
    pub(super) violation: Option<String>,
    /// The descriptors that came with it. They are closed without the lock, since the peer may have made one whose close blocks.
    rejected: Vec<OwnedFd>,
}

impl Arrived {
    pub(super) fn new(accepts: Attachments) -> Self {
        Self {
            accepts,
            parcels: VecDeque::new(),
            count: 0,
            bytes: 0,
            violation: None,
            rejected: Vec::new(),
        }
    }

    /// Reads some of the line, as recv(2) does. Returns the number of bytes, 0 at its end.
    ///
    /// It peeks first: a parcel for which there are no descriptor numbers (EMFILE) stays on the line whole. What is then read
    /// without room for descriptors is dropped, since they were installed by the peek.
    pub(super) fn read(&mut self, line: BorrowedFd<'_>) -> Result<usize, Errno> {
        if self.violation.is_some() {
            return Ok(0);
        }
        let mut bytes = [0; READ];
        let Received {
            bytes: count,
            descriptors,
            control,
            ..
        } = sys::socket::peek_parcel(line, &mut bytes)?;
        let seen = &bytes[..count];
        let wakeups = seen.iter().take_while(|byte| **byte != PARCEL).count();
        let parcel = &seen[wakeups..];
        if parcel.is_empty() && descriptors.is_empty() && control == ControlStatus::Expected {
            return consume(line, count);
        }
        if control == ControlStatus::Short {
            return if wakeups > 0 {
                consume(line, wakeups)
            } else {
                Err(Errno::EMFILE)
            };
        }
        // The kernel ends a read behind a descriptor. So if the parcel is cut, there are many wakeups before it.
        let cut = count == READ && wakeups > 0;
        match words(parcel, descriptors.len()) {
            Some(words) if control == ControlStatus::Expected => {
                self.add(words.zip(descriptors).collect());
            }
            _ if cut => return consume(line, wakeups),
            _ => {
                self.violation = Some(format!(
                    "{} bytes and {} descriptors on the line are no parcel of attachments",
                    parcel.len(),
                    descriptors.len()
                ));
                self.rejected = descriptors;
            }
        }
        consume(line, count)
    }

    fn add(&mut self, parcel: Parcel) {
        let sealed = parcel.iter().filter(|(word, _)| *word != DESCRIPTOR).count();
        let allowed =
            (self.accepts.sealed || sealed == 0) && (self.accepts.descriptors || sealed == parcel.len());
        self.count += parcel.len() as u64;
        self.bytes = self.bytes.saturating_add(bytes_of(&parcel));
        if !allowed {
            self.violation = Some("an attachment of a kind that this side does not accept".into());
        } else if self.count > u64::from(self.accepts.max_count) || self.bytes > self.accepts.max_bytes {
            self.violation = Some(format!(
                "{} unread attachments of {} bytes, and this side holds {} of {}",
                self.count, self.bytes, self.accepts.max_count, self.accepts.max_bytes
            ));
        }
        if self.violation.is_none() {
            self.parcels.push_back(parcel);
        } else {
            self.rejected = parcel.into_iter().map(|(_, descriptor)| descriptor).collect();
        }
    }

    /// Removes the oldest parcel. `None`: there is none.
    pub(super) fn take(&mut self) -> Option<Parcel> {
        let parcel = self.parcels.pop_front()?;
        self.count -= parcel.len() as u64;
        self.bytes -= bytes_of(&parcel);
        Some(parcel)
    }

    /// Takes the oldest parcel back: its message was not read.
    pub(super) fn put_back(&mut self, parcel: Parcel) {
        self.count += parcel.len() as u64;
        self.bytes = self.bytes.saturating_add(bytes_of(&parcel));
        self.parcels.push_front(parcel);
    }
}

/// Checks the sealed buffers of a parcel, all before it makes the first. Returns the parcel if one of them fails.
pub(super) fn unpack(parcel: Parcel) -> Result<Vec<Attachment>, (Error, Parcel)> {
    let maps = parcel.iter().map(|(word, object)| match *word {
        DESCRIPTOR => Ok(None),
        stated => SealedBuffer::inspect(object, stated),
    });
    let maps = match maps.collect::<Result<Vec<_>>>() {
        Ok(maps) => maps,
        Err(error) => return Err((error, parcel)),
    };
    let unpacked = parcel
        .into_iter()
        .zip(maps)
        .map(|((word, descriptor), map)| match word {
            DESCRIPTOR => Attachment::Descriptor(descriptor),
            _ => Attachment::Sealed(SealedBuffer::new(descriptor, map)),
        });
    Ok(unpacked.collect())
}

/// The bytes of its sealed buffers.
fn bytes_of(parcel: &Parcel) -> u64 {
    let sizes = parcel.iter().map(|(word, _)| *word);
    sizes
        .filter(|word| *word != DESCRIPTOR)
        .fold(0, u64::saturating_add)
}

/// The words of a parcel that is exactly this long. `None`: it is none.
fn words(parcel: &[u8], descriptors: usize) -> Option<impl Iterator<Item = u64>> {
    let [PARCEL, count, words @ ..] = parcel else {
        return None;
    };
    let (words, []) = words.as_chunks::<8>() else {
        return None;
    };
    let is_whole = usize::from(*count) == words.len() && words.len() == descriptors && descriptors > 0;
    is_whole.then(|| words.iter().map(|word| u64::from_le_bytes(*word)))
}

/// Reads this many bytes, which have been seen on the line, without their descriptors.
fn consume(line: BorrowedFd<'_>, count: usize) -> Result<usize, Errno> {
    if count == 0 {
        return Ok(0);
    }
    let mut bytes = [0; READ];
    uninterrupted(|| sys::socket::receive_bytes(line, &mut bytes[..count]))
}
