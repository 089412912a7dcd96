//! The sending half of a channel or of a publisher: [`Outbound`], for every kind of ring.
//!
//! `reserve` has further ways to send. An [`Outlet`] is one kind of ring: it waits for room and wakes the readers. `sender` does so
//! for a pair, `host/broadcaster.rs` for a publisher.
#![expect(
    private_bounds,
    reason = "programs use the kinds of a ring that this crate has"
)]

use std::{
    fmt::{self, Debug, Formatter},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    channel::end::{AtomicState, ChannelState, CloseReason},
    channel::waiting::{SpinPacer, SpinThenPark},
    error::{Error, Result},
    region::layout::as_offset,
    region::own::OwnRegion,
    ring::message::Progress,
    ring::record::Tag,
    ring::write::{Room, Writer},
    wake::attachments::AttachmentRef,
};

/// The sending half of a channel ([`Sender`](crate::Sender)) or of a publisher ([`Broadcaster`](crate::Broadcaster)).
///
/// "No room" means that the peer, or a reliable subscriber, has not read far enough. At a publisher, time then counts against the
/// subscribers in the way ([`Options::stall`](crate::Options::stall)), until a message finds room.
pub struct Outbound<R: Outlet> {
    pub(crate) shared: Arc<R::Shared>,
    /// `None` once this half has ended.
    pub(crate) writing: Option<Writing<R>>,
    pub(crate) limits: Limits,
    pub(super) in_progress: InProgress,
    /// Whether there is a [`Reserved`](crate::channel::reserve::Reserved) that may be written. It stores `false` when it is dropped.
    pub(super) reservation: Arc<AtomicBool>,
    pub(crate) spins: SpinPacer,
    pub(crate) own: R::Own,
}

/// The writing end of one kind of ring.
pub(crate) trait Outlet: Sized {
    /// The name of the half's public type.
    const NAME: &'static str;
    /// The state that this half shares with the rest of its channel or publisher.
    type Shared;
    /// The room for new records.
    type Room: Room<OwnRegion>;
    /// Wakes the readers, and waits for them.
    type Link;
    /// State of this half alone, also after its end.
    type Own;

    /// The error after the end of this half.
    const ENDED: &'static str;
    /// The reason why a message is longer than the longest.
    const TOO_LONG: &'static str;
    /// Publishing a batch may make room for more of it.
    const PUBLISHING_MAKES_ROOM: bool;

    fn state(shared: &Self::Shared) -> &AtomicState;

    /// See [`Outbound::close_reason`].
    fn close_reason(shared: &Self::Shared) -> Option<CloseReason> {
        Self::state(shared).get().close_reason()
    }

    /// Returns the error of a call if the channel has ended.
    fn check(shared: &Self::Shared) -> Result<()>;

    /// Waits until a thread that is about to end the channel has done so.
    fn wait_for_end(_shared: &Self::Shared) {}

    /// Wakes the readers that sleep, after a publication.
    fn wake_readers(writing: &mut Writing<Self>);

    /// Ends the channel of a reader that has violated the protocol.
    fn judge<T>(writing: &mut Writing<Self>, result: Result<T>) -> Result<T>;

    /// A message of this size has found no room.
    fn on_full(writing: &mut Writing<Self>, size: usize);

    /// Writes a message, or as much of it as there is room for.
    fn send_part(outbound: &mut Outbound<Self>, message: &[u8], tag: Tag, written: usize)
    -> Result<Progress>;

    /// Begins a message with attachments, or writes all of it. `Part(0)`: there is no room yet for it, or for its attachments.
    fn send_part_with(
        outbound: &mut Outbound<Self>,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
    ) -> Result<Progress>;

    /// Sets the attachments for which a wait for room waits as well. None: it waits for room alone.
    fn await_room_for(outbound: &mut Outbound<Self>, attachments: &[AttachmentRef<'_>]) -> Result<()>;

    /// See [`Outbound::arm`].
    fn arm(outbound: &mut Outbound<Self>, size: usize) -> Result<bool>;

    /// See [`Outbound::disarm`].
    fn disarm(outbound: &mut Outbound<Self>);

    /// A call has waited for room since then. `failed`: its message is given up.
    fn count_wait(outbound: &mut Outbound<Self>, since: Instant, failed: bool);

    /// Drops the ring. The figures that are known of it stay.
    fn release(outbound: &mut Outbound<Self>);

    /// See [`Outbound::end`].
    fn end(outbound: &mut Outbound<Self>);

    /// See [`Outbound::destroy`].
    fn destroy(outbound: &mut Outbound<Self>);
}

/// Any `Outlet`, for the Node.js binding: it cannot name that trait, whose types are private.
pub trait AnyOutlet: Outlet {}

impl<R: Outlet> AnyOutlet for R {}

/// The bytes of the ring and of its messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) capacity: u64,
    /// Of the longest message.
    pub(crate) longest: u64,
    /// Of the longest message that is one record.
    pub(crate) at_once: u64,
    /// See [`Outlet::TOO_LONG`].
    too_long: &'static str,
}

impl Limits {
    fn new<R: Outlet>(capacity: u64, longest: u64) -> Self {
        Self {
            capacity,
            longest,
            at_once: longest.min(R::Room::largest_record(capacity)),
            too_long: R::TOO_LONG,
        }
    }

    #[inline]
    pub(super) fn check(&self, size: usize, limit: u64) -> Result<()> {
        if size as u64 <= limit {
            return Ok(());
        }
        Err(self.too_large(size, limit))
    }

    #[cold]
    fn too_large(&self, size: usize, limit: u64) -> Error {
        let reason = if limit < self.longest {
            "half the ring; send takes longer ones, in fragments"
        } else {
            self.too_long
        };
        Error::too_large(size, limit, reason)
    }
}

/// An operation that must be finished before anything else is sent, because the ring's next bytes belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InProgress {
    Nothing,
    /// A [`Reserved`](crate::channel::reserve::Reserved), which may have been dropped already.
    Reservation,
    /// A message of the first number of bytes. The second number of them are in the ring.
    Message(usize, usize),
}

/// The ring, and everything that a [`Reservation`](crate::Reservation) and a [`Batch`](crate::Batch) need: they have no other pointer.
pub(crate) struct Writing<R: Outlet> {
    pub(crate) ring: Writer<OwnRegion, R::Room>,
    pub(crate) link: R::Link,
    pub(crate) shared: Arc<R::Shared>,
}

impl<R: Outlet> Writing<R> {
    /// Publishes what was written.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.ring.publish() {
            R::wake_readers(self);
        }
    }

    /// Sends a message that was claimed and filled.
    #[inline]
    pub(super) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.ring.finish_now(at, claimed, length);
        R::wake_readers(self);
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        R::state(&self.shared).is(ChannelState::Open, Ordering::Relaxed)
    }

    /// A batch or a reservation may outlive its channel: it then writes nothing into a ring that an alarm has wiped, or that has
    /// no reader.
    #[inline]
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        Err(refusal::<R>(&self.shared))
    }

    /// Protects the range that was claimed from a wipe while the caller writes it. Fails if the ring is wiped.
    #[inline]
    pub(super) fn protect(&self, at: usize, size: usize) -> Result<()> {
        if self.ring.own().protect(at, size) {
            return Ok(());
        }
        Err(exposed::<R>(&self.shared))
    }
}

/// The error if nothing can be sent.
#[cold]
pub(super) fn refusal<R: Outlet>(shared: &R::Shared) -> Error {
    R::check(shared).err().unwrap_or_else(closed::<R>)
}

/// Returns the error after this half's end. A function, because an eager `ok_or` makes and drops an `Error` for each message, which costs a
/// third of the time of a short one.
#[cold]
pub(super) fn closed<R: Outlet>() -> Error {
    Error::Closed(R::ENDED)
}

#[cold]
fn exposed<R: Outlet>(shared: &R::Shared) -> Error {
    R::wait_for_end(shared);
    refusal::<R>(shared)
}

impl<R: Outlet> Debug for Outbound<R> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct(R::NAME).finish_non_exhaustive()
    }
}

impl<R: Outlet> Outbound<R> {
    pub(crate) fn new(writing: Writing<R>, capacity: u64, longest: u64, own: R::Own) -> Self {
        Self {
            shared: Arc::clone(&writing.shared),
            writing: Some(writing),
            limits: Limits::new::<R>(capacity, longest),
            in_progress: InProgress::Nothing,
            reservation: Arc::default(),
            spins: SpinPacer::default(),
            own,
        }
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.limits.capacity
    }

    /// Bytes of the longest message: what the peer accepts; at a publisher, at most an eighth of the ring.
    pub fn max_message_size(&self) -> u64 {
        self.limits.longest
    }

    /// The ring, if something new may be sent now.
    #[inline]
    pub(crate) fn writing(&mut self) -> Result<&mut Writing<R>> {
        if self.in_progress != InProgress::Nothing && self.is_open() {
            self.check_in_progress(false)?;
        }
        self.writing_more()
    }

    /// The ring, if this half may still write: also to continue a message that is under way.
    #[inline]
    pub(super) fn writing_more(&mut self) -> Result<&mut Writing<R>> {
        if !self.is_open() {
            return Err(self.refusal());
        }
        if self.in_progress == InProgress::Reservation {
            self.check_in_progress(true)?;
        }
        self.writing.as_mut().ok_or_else(closed::<R>)
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        R::state(&self.shared).is(ChannelState::Open, Ordering::Relaxed) && self.writing.is_some()
    }

    /// Checks that the operation that was begun is finished. A message that the caller `continues` need not be.
    #[cold]
    fn check_in_progress(&mut self, continues: bool) -> Result<()> {
        match self.in_progress {
            // Acquire: what was written there was written before the bytes belong to another message.
            InProgress::Reservation if self.reservation.load(Ordering::Acquire) => Err(reserved_error()),
            InProgress::Message(size, written) if !continues => Err(in_progress_error(size, written)),
            InProgress::Message(..) => Ok(()),
            InProgress::Nothing | InProgress::Reservation => {
                self.in_progress = InProgress::Nothing;
                Ok(())
            }
        }
    }

    #[cold]
    pub(super) fn refusal(&mut self) -> Error {
        R::release(self);
        refusal::<R>(&self.shared)
    }

    /// Puts a message into the ring. `false`: there is no room now.
    ///
    /// # Errors
    /// [`Error::MessageTooLarge`] above [`Sender::max_at_once`](crate::Sender::max_at_once), at a publisher above
    /// [`Outbound::max_message_size`]; [`Error::PeerLost`] once the peer is known to be gone; [`Error::Closed`] after
    /// [`Outbound::end`] or close; [`Error::RingCorrupt`]; [`Error::ObjectExposed`] if another process has tried to open the memory of
    /// either side.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        self.try_send_tagged(message, Tag::NONE)
    }

    /// Sends like [`Outbound::try_send`]. A publisher sends no call frames.
    #[doc(hidden)]
    #[inline]
    pub fn try_send_tagged(&mut self, message: &[u8], tag: Tag) -> Result<bool> {
        debug_assert!(R::Room::CALLS || !tag.is_call(), "a subscriber answers no calls");
        self.limits.check(message.len(), self.limits.at_once)?;
        let writing = self.writing()?;
        match writing.ring.push_now(message, tag) {
            Ok(true) => {
                R::wake_readers(writing);
                Ok(true)
            }
            other => self.on_no_room(other, message.len()),
        }
    }

    /// The ring had no room for a message of this size, or a reader has violated the protocol.
    #[cold]
    pub(crate) fn on_no_room(&mut self, result: Result<bool>, size: usize) -> Result<bool> {
        if let Some(writing) = &mut self.writing {
            R::judge(writing, result)?;
            R::on_full(writing, size);
        }
        // The peer may be known to be gone since.
        if self.is_open() {
            return Ok(false);
        }
        Err(self.refusal())
    }

    /// Puts whole messages into the ring, laid out as short ones are there: each an eight-byte header (length u32, and
    /// the flags 3 as u32, or 19 for a call frame, little-endian), its bytes, and zeros up to a multiple of eight. One publication for all.
    /// Returns how many bytes of `packed` were sent; the remainder found no room.
    ///
    /// # Errors
    /// As [`Outbound::try_send`], and [`Error::InvalidArgument`] for bytes in another layout. If these are not the first, the messages
    /// before them are sent, and the next call fails.
    pub fn try_send_packed(&mut self, packed: &[u8]) -> Result<usize> {
        let longest = self.limits.longest;
        let writing = self.writing()?;
        let result = writing.ring.push_packed(packed, longest);
        writing.publish();
        let sent = R::judge(writing, result)?;
        if sent < packed.len() {
            let next = packed[sent..].first_chunk::<4>();
            let size = next.map_or(0, |length| as_offset(u32::from_le_bytes(*length).into()));
            R::on_full(writing, size.min(as_offset(longest)));
            if sent == 0 && !self.is_open() {
                return Err(self.refusal());
            }
        }
        Ok(sent)
    }

    /// Returns whether a message of `size` bytes would find room now. Of a message that travels in fragments, whether its next fragment
    /// would.
    ///
    /// # Errors
    /// As [`Outbound::send`].
    pub fn has_room(&mut self, size: usize) -> Result<bool> {
        self.limits.check(size, self.limits.longest)?;
        let is_one_record = size as u64 <= self.limits.at_once;
        let wanted = if is_one_record {
            size as u64
        } else {
            self.limits.capacity / 8
        };
        let writing = self.writing_more()?;
        let result = writing.ring.has_room(wanted);
        R::judge(writing, result)
    }

    /// Returns the number of bytes of packed records (see [`Outbound::try_send_packed`]), of messages of at most `longest` bytes each,
    /// that certainly find room now: all of them are sent, in one call or in several, as long as nothing else is sent in between. For
    /// callers that promise for many messages at once.
    ///
    /// A reliable subscriber that connects later and starts at the oldest message keeps the messages in the ring. Then there is less
    /// room, and `try_send_packed` returns as much.
    ///
    /// # Errors
    /// As [`Outbound::try_send`].
    pub fn packed_room(&mut self, longest: usize) -> Result<usize> {
        let writing = self.writing()?;
        let room = writing.ring.packed_room(longest as u64);
        R::judge(writing, room).map(as_offset)
    }

    /// Sends as much of a message as there is room for now, like [`Sender::send_part`](crate::Sender::send_part). The tag must be the
    /// same in each call for one message. A publisher sends a message whole or not at all.
    #[doc(hidden)]
    pub fn send_part_tagged(&mut self, message: &[u8], tag: Tag, written: usize) -> Result<Progress> {
        R::send_part(self, message, tag, written)
    }

    /// For event loops: reports that this half sleeps until a message of `size` bytes finds room. `true`: it does not now; wait for the
    /// descriptor ([`AsFd`](std::os::fd::AsFd)) to be readable, then call `poll_line` and [`disarm`](Outbound::disarm). `false`: there is room.
    ///
    /// # Errors
    /// As [`Outbound::try_send`]; at a channel [`Error::NoSpace`] also if another thread has slept in a call since before there was a
    /// loop, and there are no descriptors left to notify the loop.
    pub fn arm(&mut self, size: usize) -> Result<bool> {
        R::arm(self, size)
    }

    /// Reports that this half is awake.
    pub fn disarm(&mut self) {
        R::disarm(self);
    }

    /// Reports that this half sleeps, like [`Outbound::arm`], until a message of `size` bytes with these attachments, which was refused,
    /// finds room.
    ///
    /// # Errors
    /// As [`Outbound::arm`] and [`Outbound::send_with`].
    pub fn arm_with(&mut self, size: usize, attachments: &[AttachmentRef<'_>]) -> Result<bool> {
        self.wait_with(attachments, |outbound| R::arm(outbound, size))?
    }

    /// Calls a function that waits for room, which then also waits until these attachments are accepted.
    pub(crate) fn wait_with<T>(
        &mut self,
        attachments: &[AttachmentRef<'_>],
        wait: impl FnOnce(&mut Self) -> T,
    ) -> Result<T> {
        R::await_room_for(self, attachments)?;
        let waited = wait(self);
        R::await_room_for(self, &[])?;
        Ok(waited)
    }

    /// Ends the sending. Messages in the ring stay readable.
    ///
    /// At a channel, the other direction continues. Once both sides have ended and this one has read everything, the channel closes by
    /// itself. At a publisher, each subscriber gets all that was sent, and then its end; the address is free when this returns.
    pub fn end(&mut self) {
        R::end(self);
    }

    /// Closes the channel or the publisher at once. Readers get what is in the ring, and then fail with [`Error::PeerLost`] unless the
    /// sending had ended before.
    pub fn destroy(&mut self) {
        R::destroy(self);
    }

    /// Why the channel or the publisher has ended; `None` while it has not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        R::close_reason(&self.shared)
    }
}

impl<R: Outlet> Outbound<R>
where
    Self: SpinThenPark<For = usize>,
{
    /// Puts a message into the ring, in fragments if necessary, and sleeps while there is no room.
    ///
    /// # Errors
    /// As [`Outbound::try_send`], but [`Error::MessageTooLarge`] only above [`Outbound::max_message_size`]. If the peer is lost while
    /// the message is under way, none of it counts as sent. If the waiting fails ([`Error::NoSpace`]), the message may be
    /// under way: [`Sender::under_way`](crate::Sender::under_way) tells, and [`Sender::send_part`](crate::Sender::send_part) continues it.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_all(message, &[], Tag::NONE, None)
    }

    /// Sends like [`Outbound::send`], up to a deadline, and then fails with [`Error::TimedOut`]. Nothing was sent then, unless
    /// [`Sender::under_way`](crate::Sender::under_way) reports that a part of the message is in the ring, which never happens to one of at
    /// most [`Sender::max_at_once`](crate::Sender::max_at_once) bytes: [`Sender::send_part`](crate::Sender::send_part) continues it, and
    /// nothing else is sent before.
    ///
    /// ```no_run
    /// use std::time::{Duration, Instant};
    ///
    /// use ringfence::Error;
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// match sender.send_until(b"hello", Instant::now() + Duration::from_millis(100)) {
    ///     Err(Error::TimedOut) => println!("the peer does not read, and its ring is full"),
    ///     other => other?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_until(&mut self, message: &[u8], deadline: Instant) -> Result<()> {
        self.send_all(message, &[], Tag::NONE, Some(deadline))
    }

    /// Sends a message with attachments like [`Outbound::send`].
    ///
    /// At a channel it waits also while the peer holds as many unread attachments as it accepts. At a publisher it waits also while a
    /// reliable subscriber does. A subscriber gets the message without its attachments if it does not accept them
    /// ([`Options::attachments`](crate::Options::attachments)); if it is not a reliable one, also while it holds too many.
    /// [`PublisherStats::attachments_withheld`](crate::PublisherStats) counts them. A message that is sent before a
    /// [`PublisherEvent::Subscriber`](crate::PublisherEvent) may also reach that subscriber without its attachments.
    ///
    /// # Errors
    /// As [`Outbound::send`]. Nothing was sent then:
    /// - [`Error::InvalidArgument`] if the peer of a channel does not accept attachments of these kinds.
    /// - [`Error::MessageTooLarge`] if it never accepts this number of them, or this size; at a publisher for more than 253.
    /// - [`Error::NoSpace`] if the kernel does not pass them to the peer, or to a reliable subscriber.
    ///
    /// ```no_run
    /// use ringfence::SealedBuffer;
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@frames".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let frame = SealedBuffer::create(1 << 24, |bytes| bytes.fill(255))?;
    /// sender.send_with(b"a white frame", &[(&frame).into()])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<()> {
        self.send_all(message, attachments, Tag::NONE, None)
    }

    /// Sends like [`Outbound::send_with`], up to a deadline: see [`Outbound::send_until`].
    ///
    /// # Errors
    /// As [`Outbound::send_with`], and [`Error::TimedOut`].
    pub fn send_with_until(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        deadline: Instant,
    ) -> Result<()> {
        self.send_all(message, attachments, Tag::NONE, Some(deadline))
    }

    /// Sends like [`Outbound::send_with_until`]. `None`: without a deadline.
    #[inline]
    pub(crate) fn send_all(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        tag: Tag,
        deadline: Option<Instant>,
    ) -> Result<()> {
        match self.send_more(message, attachments, tag, 0)? {
            Progress::Whole => Ok(()),
            Progress::Part(written) => self.send_after_wait(message, attachments, tag, written, deadline),
        }
    }

    /// Sends a message from the byte `written` on, as far as there is room. A message with attachments has no tag.
    #[inline]
    fn send_more(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        tag: Tag,
        written: usize,
    ) -> Result<Progress> {
        if written > 0 || attachments.is_empty() {
            R::send_part(self, message, tag, written)
        } else {
            R::send_part_with(self, message, attachments)
        }
    }

    /// Waits for room, after there was none.
    #[cold]
    fn send_after_wait(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        tag: Tag,
        written: usize,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let since = Instant::now();
        let sent = self.send_rest(message, attachments, tag, written, deadline);
        R::count_wait(self, since, sent.is_err());
        sent
    }

    fn send_rest(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        tag: Tag,
        mut written: usize,
        deadline: Option<Instant>,
    ) -> Result<()> {
        loop {
            let unsent = if written == 0 { attachments } else { &[] };
            if !self.wait_with(unsent, |outbound| outbound.wait(message.len(), deadline))?? {
                return Err(Error::TimedOut);
            }
            match self.send_more(message, attachments, tag, written)? {
                Progress::Whole => return Ok(()),
                Progress::Part(bytes) => written = bytes,
            }
        }
    }

    /// Sleeps until [`Outbound::has_room`] of that size. `false`: the deadline has passed.
    ///
    /// # Errors
    /// As [`Outbound::send`].
    pub fn wait(&mut self, size: usize, deadline: Option<Instant>) -> Result<bool> {
        self.wait_until(size, deadline)
    }
}

impl<R: Outlet> Drop for Outbound<R> {
    fn drop(&mut self) {
        // The thread may have meant to send more.
        if thread::panicking() {
            self.destroy();
        } else {
            self.end();
        }
    }
}

#[cold]
fn reserved_error() -> Error {
    Error::invalid(
        "a reservation is open: commit or cancel it first (one that was forgotten keeps this half from sending until it ends)",
    )
}

#[cold]
pub(super) fn in_progress_error(size: usize, written: usize) -> Error {
    Error::invalid(format!(
        "a message of {size} bytes is under way, {written} of which are in the ring: go on with it (send_part)"
    ))
}
