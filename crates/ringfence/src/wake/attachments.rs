//! Attachments on the line: how they travel, and those whose message was not read yet.
//!
//! The sender of a message with attachments first sends one *parcel*: the byte [`PARCEL`], the number of attachments,
//! and one word for each: the size of a sealed buffer, or [`DESCRIPTOR`]. Their descriptors are passed with it
//! (`SCM_RIGHTS`). On the line of a subscriber, which may miss messages, the number of the message stands before the
//! words, and a parcel without attachments withdraws the one before it. All other bytes on the line are wakeups. The reader takes parcels off the line in
//! [`Parcels::read`], the only function that reads a line on which attachments may arrive; the lock of the doorbell's
//! state guards it.

use std::{
    collections::{BTreeMap, VecDeque},
    io::IoSlice,
    ops::Deref,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{
        ControlMessage, MsgFlags, Shutdown, SockType, UnixAddr, getsockname, getsockopt, sendmsg, shutdown,
        sockopt,
    },
};

use crate::{
    error::{Error, Result},
    fork::{OwnerProcess, PerProcess},
    region::sealed::SealedBuffer,
    sys::{
        self,
        lock::Mutex,
        socket::{ControlStatus, Received},
        uninterrupted,
    },
};

/// The most attachments of one message: the most descriptors that the kernel passes at once (`SCM_MAX_FD`).
pub(crate) const MAX_COUNT: usize = 253;
/// The most attachments that a receiver may hold unread. Their parcels fit the line's buffer.
pub(crate) const MAX_UNREAD: u32 = 1024;
/// The first byte of a parcel. A wakeup has another value.
const PARCEL: u8 = 2;
/// The word of an attachment that is not a sealed buffer.
const DESCRIPTOR: u64 = u64::MAX;
/// Bytes of a parcel without attachments on the line of a subscriber, which withdraws the parcel before it.
const WITHDRAWAL: usize = 2 + 8;
/// Bytes of the buffer for one read. No parcel is longer.
const READ_SIZE: usize = 4096;
/// The number of attempts to see the descriptors of a parcel: without memory the kernel shows none, and reports no error.
const MAX_PEEKS: u32 = 8;

/// The attachments that one side accepts. None by default.
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

    /// Sets whether open descriptors of any kind are accepted. Through a directory, a confined process reaches
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
        if (1..=MAX_UNREAD).contains(&self.max_count) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "attachments: max_count must be 1 to {MAX_UNREAD}, not {}",
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
    /// An open file, socket or any other descriptor. Its kind is not checked.
    Descriptor(OwnedFd),
}

/// An attachment to send. The peer gets a copy of the descriptor, and the sender keeps its own.
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
pub(super) fn post(
    line: BorrowedFd<'_>,
    attachments: &[AttachmentRef<'_>],
    number: Option<u64>,
) -> Result<(), Errno> {
    let mut parcel = Vec::with_capacity(2 + 8 * (1 + attachments.len()));
    parcel.extend([PARCEL, u8::try_from(attachments.len()).map_err(|_| Errno::E2BIG)?]);
    parcel.extend(number.into_iter().flat_map(u64::to_le_bytes));
    for attachment in attachments {
        parcel.extend(attachment.word().to_le_bytes());
    }
    let numbers: Vec<RawFd> = attachments
        .iter()
        .map(|attachment| attachment.as_fd().as_raw_fd())
        .collect();
    let (slices, control) = ([IoSlice::new(&parcel)], [ControlMessage::ScmRights(&numbers)]);
    let control = if numbers.is_empty() { &[][..] } else { &control };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // The kernel takes a parcel whole or not at all: it fits one buffer.
    uninterrupted(|| sendmsg::<()>(line.as_raw_fd(), &slices, control, flags, None)).map(drop)
}

/// The attachments of one message.
#[derive(Debug)]
pub(super) struct Parcel {
    /// The number of the message if its sender is a publisher, else 0.
    number: u64,
    /// The word and the descriptor of each attachment.
    parts: Vec<(u64, OwnedFd)>,
}

impl Parcel {
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The bytes of its sealed buffers. [`Parcels::check`] has found that they do not overflow.
    fn bytes(&self) -> u64 {
        let sizes = self.parts.iter().map(|(word, _)| *word);
        sizes.filter(|word| *word != DESCRIPTOR).sum()
    }

    pub(super) fn descriptors(self) -> impl Iterator<Item = OwnedFd> {
        self.parts.into_iter().map(|(_, descriptor)| descriptor)
    }
}

/// Attachments that were read from the line, and whose message was not read yet.
#[derive(Debug)]
pub(super) struct Parcels {
    /// The key of its descriptors in [`UNCLOSED`].
    line: u64,
    accepts: Attachments,
    /// The peer is a publisher, so parcels have the numbers of their messages.
    pub(super) numbered: bool,
    /// This side reads no message before this one; its parcels are dropped.
    next: u64,
    queue: VecDeque<Parcel>,
    count: u64,
    bytes: u64,
    /// The first protocol violation on the line. After it, nothing more is read.
    pub(super) violation: Option<String>,
}

impl Parcels {
    pub(super) fn new(accepts: Attachments, numbered: bool) -> Self {
        Self {
            line: NEXT_LINE.fetch_add(1, Ordering::Relaxed),
            accepts,
            numbered,
            next: 0,
            queue: VecDeque::new(),
            count: 0,
            bytes: 0,
            violation: None,
        }
    }

    /// Reads some of the line, as recv(2) does. Returns the number of bytes, 0 at its end.
    ///
    /// It peeks first, and has descriptors installed only for a parcel that this side accepts. A parcel for which there are no
    /// descriptor numbers (EMFILE) stays on the line whole.
    pub(super) fn read(&mut self, line: BorrowedFd<'_>) -> Result<usize, Errno> {
        if self.violation.is_some() {
            return Ok(0);
        }
        let mut bytes = [0; READ_SIZE];
        let peeked = sys::socket::peek_with_descriptors(line, &mut bytes, 0);
        let peeked = match peeked {
            // Only this function reads the line, so a line that was readable before is not empty now.
            Err(Errno::EAGAIN) if sys::is_ready(&line, PollFlags::POLLIN)? => {
                match sys::socket::peek_with_descriptors(line, &mut bytes, 0) {
                    Err(Errno::EAGAIN) => {
                        self.violation = Some("bytes on the line that no read returns (MSG_OOB)".into());
                        return Ok(0);
                    }
                    other => other,
                }
            }
            other => other,
        }?;
        // Empty, unless the peer has turned off the credentials of this socket: a descriptor may then fill their room.
        self.discard(peeked.descriptors);
        let mut head = &bytes[..peeked.bytes];
        let wakeups = head.iter().take_while(|byte| **byte != PARCEL).count();
        if wakeups > 0 && (wakeups < head.len() || peeked.control == ControlStatus::Expected) {
            return consume(line, wakeups);
        }
        if head.is_empty() {
            return Ok(0);
        }
        if self.numbered
            && let [PARCEL, 0, ..] = head
        {
            // The kernel joins bytes without descriptors with those behind them.
            head = head.get(..WITHDRAWAL).unwrap_or(head);
        }
        let parcel = self.peek_parcel(line, head).map_err(not_empty)?;
        let consumed = consume(line, head.len());
        match parcel {
            Ok(parcel) if consumed.is_ok() => self.add(parcel),
            // It stays on the line, and the next call reads it again.
            Ok(parcel) => self.discard(parcel.descriptors()),
            Err(violation) => self.violation = Some(violation),
        }
        consumed
    }

    /// Gets the descriptors of a parcel that was peeked at the head of the line, or finds a violation.
    fn peek_parcel(&mut self, line: BorrowedFd<'_>, head: &[u8]) -> Result<Result<Parcel, String>, Errno> {
        let Some((number, words)) = parse_parcel(head, self.numbered) else {
            return Ok(Err(format!(
                "{} bytes on the line are no parcel of attachments",
                head.len()
            )));
        };
        if let Err(violation) = self.check(number, &words) {
            return Ok(Err(violation));
        }
        if words.is_empty() || self.is_missed(number) {
            // The kernel closes what is not received.
            return Ok(Ok(Parcel {
                number,
                parts: Vec::new(),
            }));
        }
        for _ in 0..MAX_PEEKS {
            let Received {
                descriptors, control, ..
            } = sys::socket::peek_with_descriptors(line, &mut [0], words.len())?;
            let is_short = descriptors.len() < words.len();
            match control {
                ControlStatus::Expected if descriptors.len() == words.len() => {
                    let parts = words.into_iter().zip(descriptors).collect();
                    return Ok(Ok(Parcel { number, parts }));
                }
                // The kernel had no memory for the copies, or the peer has sent none.
                ControlStatus::Expected if descriptors.is_empty() => {}
                ControlStatus::Short | ControlStatus::Truncated if is_short => {
                    self.discard(descriptors);
                    return Err(Errno::EMFILE);
                }
                _ => {
                    let found = descriptors.len();
                    self.discard(descriptors);
                    return Ok(Err(format!(
                        "a parcel of {} attachments with {found} descriptors or more",
                        words.len()
                    )));
                }
            }
        }
        Ok(Err(format!(
            "a parcel of {} attachments without descriptors",
            words.len()
        )))
    }

    /// Checks whether this side accepts the attachments of a parcel in addition to the unread ones.
    fn check(&mut self, number: u64, words: &[u64]) -> Result<(), String> {
        let sealed = words.iter().filter(|word| **word != DESCRIPTOR);
        let (sealed, bytes) = sealed.fold((0, Some(0_u64)), |(count, sum), word| {
            (count + 1, sum.and_then(|sum| sum.checked_add(*word)))
        });
        if !((self.accepts.sealed || sealed == 0) && (self.accepts.descriptors || sealed == words.len())) {
            return Err("an attachment of a kind that this side does not accept".into());
        }
        let last = self.queue.back().map_or(0, |parcel| parcel.number);
        if number < last {
            return Err(format!(
                "attachments of message {number} after those of message {last}"
            ));
        }
        let more = words.len() as u64;
        if self.is_missed(number) {
            return Ok(());
        }
        if self.numbered {
            if number == last
                && let Some(replaced) = self.queue.pop_back()
            {
                // The publisher has not published that message.
                self.subtract(&replaced);
                self.discard(replaced.descriptors());
            }
            // This side has missed the messages of the oldest.
            while !self.fits(more, bytes) && self.drop_oldest() {}
        }
        if self.fits(more, bytes) {
            return Ok(());
        }
        let bytes = bytes.and_then(|bytes| self.bytes.checked_add(bytes));
        Err(format!(
            "{} unread attachments of {} bytes, and this side holds {} of {}",
            self.count + more,
            bytes.unwrap_or(u64::MAX),
            self.accepts.max_count,
            self.accepts.max_bytes
        ))
    }

    /// Whether this side accepts `more` attachments, with sealed buffers of `bytes` in all. `None`: the sum overflows.
    fn fits(&self, more: u64, bytes: Option<u64>) -> bool {
        let bytes = bytes.and_then(|bytes| self.bytes.checked_add(bytes));
        self.count + more <= self.accepts.max_count.into()
            && bytes.is_some_and(|bytes| bytes <= self.accepts.max_bytes)
    }

    /// Adds a parcel that was checked.
    fn add(&mut self, parcel: Parcel) {
        if parcel.len() > 0 {
            self.count += parcel.len() as u64;
            self.bytes += parcel.bytes();
            self.queue.push_back(parcel);
        }
    }

    fn is_missed(&self, number: u64) -> bool {
        self.numbered && number < self.next
    }

    /// Drops the parcels of the messages before the next one, which has this number: this side has missed them.
    pub(super) fn drop_missed(&mut self, next: u64) {
        self.next = next;
        while self
            .queue
            .front()
            .is_some_and(|first| self.is_missed(first.number))
        {
            self.drop_oldest();
        }
    }

    /// Removes the parcel of the message that is read next, which has this number if its sender is a publisher. `None`: there is none.
    pub(super) fn pop_next(&mut self, number: u64) -> Option<Parcel> {
        let first = self.queue.front()?;
        (!self.numbered || first.number == number).then(|| self.pop())?
    }

    /// Returns whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let dropped = self.pop();
        let found = dropped.is_some();
        self.discard(dropped.into_iter().flat_map(Parcel::descriptors));
        found
    }

    /// Closes descriptors of the peer. Never blocks.
    fn discard(&mut self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        if close_on_threads(self.line, 1, descriptors) > MAX_UNREAD as usize {
            self.violation = Some("descriptors that do not close".into());
        }
    }

    fn pop(&mut self) -> Option<Parcel> {
        let parcel = self.queue.pop_front()?;
        self.subtract(&parcel);
        Some(parcel)
    }

    fn subtract(&mut self, parcel: &Parcel) {
        self.count -= parcel.len() as u64;
        self.bytes -= parcel.bytes();
    }

    /// Restores the oldest parcel, whose message was not read.
    pub(super) fn put_back(&mut self, parcel: Parcel) {
        self.count += parcel.len() as u64;
        self.bytes += parcel.bytes();
        self.queue.push_front(parcel);
    }
}

impl Drop for Parcels {
    fn drop(&mut self) {
        let descriptors = self.queue.drain(..).flat_map(Parcel::descriptors);
        close_on_threads(self.line, 1, descriptors);
    }
}

/// Checks the sealed buffers of a parcel, all before it makes the first. Returns the parcel if one of them fails.
pub(super) fn unpack(parcel: Parcel) -> Result<Vec<Attachment>, (Error, Parcel)> {
    let maps = parcel.parts.iter().map(|(word, object)| match *word {
        DESCRIPTOR => Ok(None),
        stated => SealedBuffer::inspect(object, stated),
    });
    let maps = match maps.collect::<Result<Vec<_>>>() {
        Ok(maps) => maps,
        Err(error) => return Err((error, parcel)),
    };
    let unpacked = parcel
        .parts
        .into_iter()
        .zip(maps)
        .map(|((word, descriptor), map)| match word {
            DESCRIPTOR => Attachment::Descriptor(descriptor),
            _ => Attachment::Sealed(SealedBuffer::new(descriptor, map)),
        });
    Ok(unpacked.collect())
}

/// Returns the number and the words of a parcel that is exactly this long. `None` if it is malformed.
fn parse_parcel(parcel: &[u8], numbered: bool) -> Option<(u64, Vec<u64>)> {
    let [PARCEL, count, words @ ..] = parcel else {
        return None;
    };
    let (words, []) = words.as_chunks::<8>() else {
        return None;
    };
    let (number, words, fewest) = match words {
        [number, words @ ..] if numbered => (u64::from_le_bytes(*number), words, 0),
        words => (0, words, 1),
    };
    let is_whole = usize::from(*count) == words.len() && (fewest..=MAX_COUNT).contains(&words.len());
    is_whole.then(|| {
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        (number, words.collect())
    })
}

/// The number of threads that close descriptors of the program.
const MAX_CLOSERS: usize = 16;
/// The key of [`UNCLOSED`] for descriptors that belong to no line.
const NO_LINE: u64 = 0;
/// The key for those of handshakes.
const HANDSHAKES: u64 = 1;
static NEXT_LINE: AtomicU64 = AtomicU64::new(HANDSHAKES + 1);

/// Descriptors that no thread has closed yet.
#[derive(Debug, Default)]
struct Unclosed {
    descriptors: Vec<OwnedFd>,
    /// The number of threads that close them.
    closers: usize,
}

/// Keyed by line, so that a peer whose descriptors never close does not use up the threads of other lines.
static UNCLOSED: PerProcess<Mutex<BTreeMap<u64, Unclosed>>> = PerProcess::new();

/// Closes descriptors of the peer on separate threads, because closing a file of a filesystem that the peer serves may never
/// return. If no thread can be started, the thread of a later call closes them. Never blocks.
pub fn discard(descriptors: impl IntoIterator<Item = OwnedFd>) {
    close_on_threads(NO_LINE, MAX_CLOSERS, descriptors);
}

/// A descriptor that a peer has passed in a handshake, and whose kind was not checked. Dropping it never blocks.
#[derive(Debug)]
pub(crate) struct UncheckedFd(Option<OwnedFd>);

impl UncheckedFd {
    pub(crate) const fn new(descriptor: OwnedFd) -> Self {
        Self(Some(descriptor))
    }

    /// Returns the descriptor, which the caller closes.
    pub(crate) fn into_checked(mut self) -> OwnedFd {
        self.0.take().expect("it is there until this call")
    }
}

impl Deref for UncheckedFd {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        self.0.as_ref().expect("it is there until `into_checked`")
    }
}

impl Drop for UncheckedFd {
    fn drop(&mut self) {
        close_on_threads(HANDSHAKES, MAX_CLOSERS, self.0.take());
    }
}

/// The socket of a connection. The kernel closes it together with the descriptors that the peer has sent and this side has not received, which
/// may never return: a TCP socket may linger (`SO_LINGER`, socket(7)). Dropping this never blocks.
#[derive(Debug)]
pub(crate) struct PeerSocket {
    socket: UncheckedFd,
    /// `None` if other processes use the socket as well.
    owner: Option<OwnerProcess>,
}

impl PeerSocket {
    /// For a socket that only this process uses.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, Errno> {
        let owner = Some(OwnerProcess::try_current()?);
        let socket = UncheckedFd::new(socket);
        Ok(Self { socket, owner })
    }

    /// For the line of a child, which other processes may have too. Only its parent sends on it, and could stop the child anyway.
    pub(crate) const fn inherited(socket: OwnedFd) -> Self {
        let socket = UncheckedFd::new(socket);
        Self { socket, owner: None }
    }
}

impl Deref for PeerSocket {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.socket
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        if self.owner.is_some_and(OwnerProcess::is_current) && !shut(self) {
            // An honest guest has sent its HELLO with a line, and may wait for the end of that.
            let hello = sys::socket::receive(&*self, &mut [0; READ_SIZE]);
            for descriptor in hello.into_iter().flat_map(|hello| hello.descriptors) {
                let line = UncheckedFd::new(descriptor);
                if is_line(&line) && shut(&line) {
                    drop(line.into_checked());
                }
            }
            if !shut(self) {
                return;
            }
        }
        drop(self.socket.0.take());
    }
}

/// Ends both directions of a Unix stream socket: nothing arrives after this. Returns whether nothing is unread.
fn shut(socket: &OwnedFd) -> bool {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    sys::socket::unread(socket) == Ok(0)
}

/// Whether this is a Unix stream socket that does not listen.
fn is_line(socket: &OwnedFd) -> bool {
    getsockname::<UnixAddr>(socket.as_raw_fd()).is_ok()
        && getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(socket, sockopt::AcceptConn) == Ok(false)
}

/// Returns how many descriptors of this line wait to be closed. 0 if that is not the peer's fault.
fn close_on_threads(line: u64, max: usize, descriptors: impl IntoIterator<Item = OwnedFd>) -> usize {
    let mut descriptors = descriptors.into_iter().peekable();
    if descriptors.peek().is_none() {
        return 0;
    }
    // Cannot fail here: a process that has received descriptors has its fork mark.
    let Ok(lines) = UNCLOSED.get() else { return 0 };
    let mut locked = lines.lock();
    let unclosed = locked.entry(line).or_default();
    unclosed.descriptors.extend(descriptors);
    let waiting = unclosed.descriptors.len();
    if unclosed.closers < max {
        unclosed.closers += 1;
        let named = thread::Builder::new().name("ringfence-close".into());
        // The new thread waits for the lock, which this thread holds.
        if named.spawn(move || close_all(lines, line)).is_err() {
            unclosed.closers -= 1;
        }
    }
    // Without a thread, the peer is not to blame.
    if unclosed.closers == 0 { 0 } else { waiting }
}

fn close_all(lines: &Mutex<BTreeMap<u64, Unclosed>>, mut line: u64) {
    let mut next = || {
        let mut locked = lines.lock();
        let mut next = locked.get_mut(&line)?.descriptors.pop();
        if next.is_none() {
            locked.get_mut(&line)?.closers -= 1;
            // Then those for which no thread could be started. They may never close, so this thread counts for their line.
            let mut orphans = locked.iter_mut().filter(|(_, other)| other.closers == 0);
            if let Some((key, orphan)) = orphans.find(|(_, other)| !other.descriptors.is_empty()) {
                (line, orphan.closers, next) = (*key, 1, orphan.descriptors.pop());
            }
        }
        locked.retain(|_, each| each.closers > 0 || !each.descriptors.is_empty());
        next
    };
    // Closed without the lock.
    while let Some(descriptor) = next() {
        drop(descriptor);
    }
}

/// The error of a call on a line that is not empty: EAGAIN then comes from a filter, and not from the line.
fn not_empty(errno: Errno) -> Errno {
    if errno == Errno::EAGAIN { Errno::EIO } else { errno }
}

/// Reads this many bytes, which have been peeked on the line, without their descriptors.
fn consume(line: BorrowedFd<'_>, count: usize) -> Result<usize, Errno> {
    if count == 0 {
        return Ok(0);
    }
    let mut bytes = [0; READ_SIZE];
    uninterrupted(|| sys::socket::receive_bytes(line, &mut bytes[..count])).map_err(not_empty)
}

#[cfg(any(test, fuzzing))]
#[path = "../testing/fuzzing/parcels.rs"]
#[expect(clippy::missing_panics_doc, reason = "a panic is a finding")]
pub(crate) mod parcels;

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
    };

    use nix::{
        libc::linger,
        sys::socket::{setsockopt, sockopt},
    };

    use super::*;

    /// A socket that does not close until the second one is dropped.
    pub(crate) fn stuck_socket() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stuck = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (unread, _) = listener.accept().unwrap();
        stuck.set_nonblocking(true).unwrap();
        while stuck.write(&[0; 1 << 12]).is_ok() {}
        let lingers = linger {
            l_onoff: 1,
            l_linger: 600,
        };
        setsockopt(&stuck, sockopt::Linger, &lingers).unwrap();
        (stuck, unread)
    }

    #[test]
    fn closing_thread_counts_for_the_line_of_its_descriptors() {
        let (stuck, unread) = stuck_socket();
        let orphan = Unclosed {
            descriptors: vec![stuck.into()],
            closers: 0,
        };
        let own = Unclosed {
            descriptors: Vec::new(),
            closers: 1,
        };
        let lines = Mutex::new(BTreeMap::from([(1, own), (2, orphan)]));
        thread::scope(|scope| {
            scope.spawn(|| close_all(&lines, 1));
            while lines
                .lock()
                .get(&2)
                .is_some_and(|orphan| !orphan.descriptors.is_empty())
            {
                thread::yield_now();
            }
            assert!(!lines.lock().contains_key(&1), "another thread may close for it");
            assert_eq!(lines.lock()[&2].closers, 1);
            drop(unread);
        });
        assert!(lines.lock().is_empty());
    }
}
