//! The writing half of a channel. What it reserves is in `reservation`, and what it publishes at once in `batch`.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::{
    channel::end::{ChannelState, CloseReason, Shared},
    channel::open::{LOOKS_PER_GLANCE, Link},
    channel::stats::ChannelStats,
    channel::waiting::{Parking, SpinThenPark, Waits},
    error::{Error, Result},
    region::layout::as_offset,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::message::Progress,
    ring::spsc::SpscWriter,
};

/// The writing half of a channel.
#[derive(Debug)]
pub struct Sender {
    pub(crate) shared: Arc<Shared>,
    /// `None` once the channel has ended.
    pub(crate) writing: Option<Writing>,
    pub(crate) capacity: u64,
    pub(crate) longest: u64,
    /// See [`Sender::max_at_once`].
    pub(crate) at_once: u64,
    pub(crate) begun: Begun,
    /// Whether there is a [`Reserved`](crate::channel::reserved::Reserved) that may be written. It stores `false` when it is dropped.
    pub(crate) reservation: Arc<AtomicBool>,
    pub(crate) fruitless: u32,
}

/// What was begun and must come to its end before anything else is sent: the ring's next bytes belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Nothing,
    /// A [`Reserved`](crate::channel::reserved::Reserved), which may have been dropped meanwhile.
    Reservation,
    /// A message of so many bytes, of which as many are in the ring as the second number says.
    Message(usize, usize),
}

#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) producer: SpscWriter<OwnRegion, PeerRegion>,
    pub(crate) link: Link,
    /// Here as well, so that a [`Reservation`](crate::Reservation) and a [`Batch`](crate::Batch) need no pointer but the one to this.
    pub(crate) shared: Arc<Shared>,
}

impl Writing {
    /// Sends a message that was claimed and filled.
    #[inline]
    pub(super) fn finish(&mut self, at: usize, claimed: usize, length: usize) {
        self.producer.finish_now(at, claimed, length);
        self.wake();
    }

    /// A batch or a reservation may outlive its channel: nothing more is written into a ring that an alarm has wiped, or that nobody
    /// reads.
    #[inline]
    pub(super) fn check_open(&self) -> Result<()> {
        if self.shared.state.is(ChannelState::Open, Ordering::Relaxed) {
            return Ok(());
        }
        Err(self.shared.check().err().unwrap_or_else(ended))
    }

    /// Wakes the reader, if it sleeps.
    #[inline]
    pub(super) fn wake(&mut self) {
        if self.link.waker.must_ring() {
            self.shared.doorbell.ring();
        }
    }
}

impl Sender {
    /// Bytes of the ring that this half writes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of the longest message that the peer takes.
    pub fn max_message_size(&self) -> u64 {
        self.longest
    }

    /// Bytes of the longest message that can be put into the ring at once: half the capacity, or what the peer
    /// takes, if that is less. Longer ones travel in fragments, through [`Sender::send`].
    #[inline]
    pub fn max_at_once(&self) -> u64 {
        self.at_once
    }

    #[inline]
    pub(super) fn check_size(&self, size: usize, at_once: bool) -> Result<()> {
        let limit = if at_once { self.max_at_once() } else { self.longest };
        if size as u64 <= limit {
            return Ok(());
        }
        Err(self.too_large(size, at_once))
    }

    #[cold]
    fn too_large(&self, size: usize, at_once: bool) -> Error {
        let (limit, reason) = if at_once && self.capacity / 2 < self.longest {
            (
                self.capacity / 2,
                "half the ring; send takes longer ones, in fragments",
            )
        } else {
            (self.longest, "what the peer takes")
        };
        Error::MessageTooLarge { size, limit, reason }
    }

    /// The ring, if something new may be sent now.
    #[inline]
    pub(super) fn writing(&mut self) -> Result<&mut Writing> {
        if self.begun != Begun::Nothing && self.is_open() {
            self.must_have_ended(false)?;
        }
        self.writing_on()
    }

    /// The ring, if this half may still write: also to go on with a message that is under way.
    #[inline]
    fn writing_on(&mut self) -> Result<&mut Writing> {
        if !self.is_open() {
            return Err(self.why_not());
        }
        if self.begun == Begun::Reservation {
            self.must_have_ended(true)?;
        }
        match &mut self.writing {
            Some(writing) => Ok(writing),
            None => Err(ended()),
        }
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.shared.state.is(ChannelState::Open, Ordering::Relaxed) && self.writing.is_some()
    }

    /// What was begun must be over, but for a message that the caller `goes_on` with.
    #[cold]
    fn must_have_ended(&mut self, goes_on: bool) -> Result<()> {
        match self.begun {
            // Acquire: what was written there was written before the bytes are given to another.
            Begun::Reservation if self.reservation.load(Ordering::Acquire) => Err(still_reserved()),
            Begun::Message(size, written) if !goes_on => Err(still_under_way(size, written)),
            Begun::Message(..) => Ok(()),
            Begun::Nothing | Begun::Reservation => {
                self.begun = Begun::Nothing;
                Ok(())
            }
        }
    }

    /// What this half has sent by now, and what the other half has told last: once in a lap of its ring, and each time that it sleeps or
    /// is asked itself. The last figures stay after the end.
    pub fn stats(&mut self) -> ChannelStats {
        let Self { shared, writing, .. } = self;
        // In a child the ring is not there.
        if let Some(Writing { producer, .. }) = writing
            && !shared.is_inherited()
        {
            producer.counted();
            shared.counters.set_used(producer.used());
        }
        let mut stats = shared.counters.told();
        if let (Begun::Message(size, written), Some(_)) = (self.begun, &self.writing) {
            stats.staged = (size - written) as u64;
        }
        stats
    }

    /// Lets go of the ring. What is known of it by then stays.
    fn let_go(&mut self) {
        if let Some(mut writing) = self.writing.take()
            && !self.shared.is_inherited()
        {
            self.shared.counters.set_used(writing.producer.used());
        }
    }

    #[cold]
    fn why_not(&mut self) -> Error {
        let was_ended = self.shared.sending_ended.load(Ordering::Acquire);
        let error = self.shared.check().err().unwrap_or_else(ended);
        self.let_go();
        // A sender that has ended its sending is told so, whatever the peer did since.
        if was_ended && !matches!(error, Error::RingCorrupt(_) | Error::ObjectExposed(_)) {
            ended()
        } else {
            error
        }
    }

    /// Puts a message into the ring. `false`: there is no room now.
    ///
    /// # Errors
    /// [`Error::MessageTooLarge`] above [`Sender::max_at_once`]; [`Error::PeerLost`] once the peer is known to be gone;
    /// [`Error::Closed`] after [`Sender::end`] or close; [`Error::RingCorrupt`]; [`Error::ObjectExposed`] where another process
    /// has tried to open the memory of either side.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        self.check_size(message.len(), true)?;
        let writing = self.writing()?;
        match writing.producer.push_now(message) {
            Ok(true) => {
                writing.wake();
                Ok(true)
            }
            other => self.not_sent(other),
        }
    }

    /// What follows on a look that found no room, or a lie.
    #[cold]
    pub(super) fn not_sent(&mut self, result: Result<bool>) -> Result<bool> {
        if !self.shared.judge(result)? {
            self.fruitless += 1;
            if self.fruitless >= LOOKS_PER_GLANCE {
                self.fruitless = 0;
                self.shared.doorbell.look();
                self.shared.notice();
                self.writing_on()?;
            }
        }
        Ok(false)
    }

    /// Puts a message into the ring, in fragments if it must, and sleeps while there is no room.
    ///
    /// # Errors
    /// As [`Sender::try_send`], but [`Error::MessageTooLarge`] only above [`Sender::max_message_size`]. If the peer goes while
    /// the message is under way, none of it counts as sent. Where the waiting fails ([`Error::NoSpace`]), the message may be
    /// under way: [`Sender::under_way`] tells, and [`Sender::send_part`] goes on with it.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_by(message, None)
    }

    /// As [`Sender::send`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing was sent then, unless
    /// [`Sender::under_way`] says that a part of the message is in the ring, which happens to none of at most
    /// [`Sender::max_at_once`] bytes: [`Sender::send_part`] goes on with such a one, and nothing else is sent before.
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
        self.send_by(message, Some(deadline))
    }

    fn send_by(&mut self, message: &[u8], deadline: Option<Instant>) -> Result<()> {
        let Progress::Part(written) = self.send_part(message, 0)? else {
            return Ok(());
        };
        let since = Instant::now();
        let sent = self.send_rest(message, written, deadline);
        self.shared.counters.waited(since);
        sent
    }

    fn send_rest(&mut self, message: &[u8], mut written: usize, deadline: Option<Instant>) -> Result<()> {
        loop {
            if !self.wait(message.len(), deadline)? {
                return Err(Error::TimedOut);
            }
            match self.send_part(message, written)? {
                Progress::Whole => return Ok(()),
                Progress::Part(bytes) => written = bytes,
            }
        }
    }

    /// Puts as much of a message into the ring as there is room for now, and says how far it got: for callers that wait in a
    /// way of their own. Until it is whole, the same message must be passed with what the call before returned (0 at first).
    /// Every other call that sends is refused meanwhile, with [`Error::InvalidArgument`], and so is one that goes on with
    /// another length or from another place. [`Sender::end`] and close are not: the peer then never gets the message.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_part(&mut self, message: &[u8], written: usize) -> Result<Progress> {
        self.check_size(message.len(), false)?;
        let begun = self.begun;
        let Writing { producer, link, .. } = self.writing_on()?;
        let goes_on = match begun {
            Begun::Message(size, so_far) => (size, so_far) == (message.len(), written),
            Begun::Nothing | Begun::Reservation => written == 0,
        };
        if !goes_on {
            return Err(not_next(begun, message.len(), written));
        }
        let result = producer.push_part(message, written);
        if link.waker.must_ring() {
            self.shared.doorbell.ring();
        }
        self.begun = match result {
            Ok(Progress::Part(written)) if written > 0 => Begun::Message(message.len(), written),
            _ => Begun::Nothing,
        };
        self.shared.judge(result)
    }

    /// How many bytes of a message are in the ring whose rest is still to be passed to [`Sender::send_part`]. `None`: no message
    /// is under way.
    pub fn under_way(&self) -> Option<usize> {
        match self.begun {
            Begun::Message(_, written) => Some(written),
            _ => None,
        }
    }

    /// Puts whole messages into the ring, laid out as the ring has short ones: each an eight-byte header (length u32, and
    /// the flags 3 as u32, little-endian), its bytes, and zeros up to a multiple of eight. One publication for all.
    /// Returns how many bytes of `packed` were taken; the rest found no room.
    ///
    /// # Errors
    /// As [`Sender::try_send`], and [`Error::InvalidArgument`] for what is not laid out so: where that is not the first, those
    /// before it are taken, and the next call refuses it.
    pub fn try_send_packed(&mut self, packed: &[u8]) -> Result<usize> {
        let longest = self.longest;
        let Writing { producer, link, .. } = self.writing()?;
        let result = producer.push_packed(packed, longest);
        if producer.publish() && link.waker.must_ring() {
            self.shared.doorbell.ring();
        }
        let taken = self.shared.judge(result)?;
        if taken == 0 {
            self.not_sent(Ok(false))?;
        }
        Ok(taken)
    }

    /// Whether a message of `size` bytes would find room now; one that travels in fragments, room for its next.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn has_room(&mut self, size: usize) -> Result<bool> {
        self.check_size(size, false)?;
        let capacity = self.capacity;
        let Writing { producer, .. } = self.writing_on()?;
        let result = producer.has_room(room_wanted(size, capacity));
        self.shared.judge(result)
    }

    /// Bytes of packed records (see [`Sender::try_send_packed`]), of messages of at most `longest` bytes each, that surely find
    /// room now: so many are taken to the last, in one call or in several, as long as nothing else is sent in between. For
    /// callers that promise for many messages at once.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    pub fn packed_room(&mut self, longest: usize) -> Result<usize> {
        let Writing { producer, .. } = self.writing()?;
        let room = producer.packed_room(longest as u64);
        self.shared.judge(room).map(as_offset)
    }

    /// Sleeps until [`Sender::has_room`] of that size. `false`: the deadline has passed.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn wait(&mut self, size: usize, deadline: Option<Instant>) -> Result<bool> {
        self.wait_until(size, deadline)
    }

    /// For event loops: says that this half sleeps until a message of `size` bytes finds room. `true`: it does not now; wait
    /// for the line ([`AsFd`]) to be readable, then call [`Sender::poll_line`] and [`Sender::disarm`]. `false`: there is room.
    ///
    /// # Errors
    /// As [`Sender::send`], with [`Error::NoSpace`] also where another thread sleeps in a call since before there was a loop,
    /// and the descriptors to tell the loop with have run out.
    pub fn arm(&mut self, size: usize) -> Result<bool> {
        self.arm_for(size)
    }

    /// Says that this half is awake.
    pub fn disarm(&mut self) {
        self.unpark();
    }

    /// Reads whatever has come over the line, and notices a peer that is gone: see [`Sender::close_reason`].
    pub fn poll_line(&mut self) {
        self.shared.doorbell.read_bells();
        self.shared.notice();
        self.refresh();
    }

    /// As [`Sender::poll_line`], for a caller that has just polled the line with the other half ([`Receiver::poll_line`](crate::Receiver::poll_line)).
    pub fn refresh(&mut self) {
        if !self.shared.state.is(ChannelState::Open, Ordering::Acquire) {
            self.let_go();
        }
    }

    /// Sends no more; the other direction goes on. Messages in the ring stay readable. Once both sides have ended
    /// and this one has read everything, the channel closes by itself.
    pub fn end(&mut self) {
        if self.shared.is_inherited() {
            return;
        }
        if self.shared.sending_ended.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(mut writing) = self.writing.take() {
            writing.producer.publish();
            self.shared.counters.set_used(writing.producer.used());
            if self.shared.end_sending() && writing.link.waker.must_ring() {
                self.shared.doorbell.ring();
            }
        }
        self.shared.finish_if_both_ended();
    }

    /// Gives the address of a pair's host back before its time, with the files beside a path, and changes nothing else: for
    /// a process that is about to end without a word to its peer, which then finds that it has exited, and that is to leave no
    /// files behind. Others may have the address from here on. Does nothing for a guest, or on a channel that has ended.
    pub fn vacate(&self) {
        self.shared.vacate();
    }

    /// Closes the whole channel from this half.
    pub fn close(&mut self) {
        self.shared.finish(ChannelState::ClosedHere);
        self.let_go();
    }

    /// Why the channel has ended; `None` while it has not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }
}

/// What `has_room` must find for a message: all of it, or a fragment's worth.
fn room_wanted(size: usize, capacity: u64) -> u64 {
    let size = size as u64;
    if size <= capacity / 2 { size } else { capacity / 8 }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end();
    }
}

impl Waits for Sender {
    type For = usize;

    fn parking(&mut self) -> Parking<'_> {
        let writing = self.writing.as_mut();
        Parking {
            shared: &self.shared,
            sleeper: writing.map(|writing| &mut writing.link.sleeper),
        }
    }

    fn check(&mut self) -> Result<()> {
        self.writing_on().map(drop)
    }

    #[inline]
    fn is_there(&mut self, size: usize) -> Result<bool> {
        self.has_room(size)
    }

    /// A sender that will never find room is told why.
    fn is_over(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn counted(&mut self) -> (u64, u64) {
        let writing = self.writing.as_mut();
        writing.map_or((0, 0), |writing| writing.producer.counted())
    }
}

impl AsFd for Sender {
    /// For an event loop: readable when the peer has rung, has gone, or has died. For the last of these one thread of the process
    /// watches, for all channels: another process may hold a copy of the dead peer's socket.
    ///
    /// This is the private line, and both halves have the same:
    /// one event loop waits for both, or for one of them while a thread waits for the other (such as in
    /// [`Receiver::wait_readable`](crate::Receiver::wait_readable)). Threads beside a loop cost the channel two descriptors, made when the first of
    /// them waits; where a thread slept in a call when the loop began, the loop gets an epoll of its own for the line (two more).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.line_alone()
    }
}

#[cold]
pub(super) fn ended() -> Error {
    Error::Closed("this side has ended its sending")
}

#[cold]
fn still_reserved() -> Error {
    Error::invalid(
        "a reservation is open: commit or cancel it first (one that was forgotten keeps this half from sending until it ends)",
    )
}

#[cold]
fn still_under_way(size: usize, written: usize) -> Error {
    Error::invalid(format!(
        "a message of {size} bytes is under way, {written} of which are in the ring: go on with it (send_part)"
    ))
}

#[cold]
fn not_next(begun: Begun, size: usize, written: usize) -> Error {
    match begun {
        Begun::Message(size, written) => still_under_way(size, written),
        Begun::Nothing | Begun::Reservation => Error::invalid(format!(
            "no message is under way: one of {size} bytes begins with 0, not with {written}"
        )),
    }
}
