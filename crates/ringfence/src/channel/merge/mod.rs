//! Many to one: reads from many sources, in turns, and waits for all of them at once.
//!
//! `source` is what can be read, `turns` is the order; this file reads, and waits. One epoll(7) instance has the line of each source,
//! and the pidfd of each peer. All idle sources are parked at once: between the store that announces the sleep and the last check, each needs a memory
//! barrier, and one barrier serves all of them.

pub(crate) mod source;
mod turns;

use std::{
    collections::VecDeque,
    error, fmt,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
};

use crate::{
    channel::end::CloseReason,
    channel::open::POLLS_PER_LINE_CHECK,
    channel::receiver::Receiver,
    channel::waiting::{Parking, Slept, SpinPacer, SpinThenPark},
    error::{Error, OrSystem, Result},
    fork::OwnerProcess,
    region::copy::barrier,
    ring::message::Message,
    ring::record::packed_size,
    wait::deadline::ready_by,
    wake::attachments::Attachment,
};

use source::{PolledFd, Reading, Source};
use turns::{SourceQueue, Turns};

/// The number of idle sources of each kind that are checked after each turn.
const CHECKS_PER_TURN: usize = 4;
/// Messages that are visited at once, before the turn is checked.
const VISITS: usize = 128;
/// Events that are taken from the kernel at a time.
const EVENTS: usize = 64;
/// In an event's word, behind the key: it is the pidfd that is readable.
const PROCESS: u64 = 1 << 63;

/// Names a source in its [`Merge`], and no other one that ever was in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    fn new(place: usize, generation: u32) -> Self {
        Self(u64::from(generation & 0x7fff_ffff) << 32 | place as u64)
    }

    fn place(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).expect("a place is below 2^32")
    }
}

/// A message or an end that a [`Merge`] has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// A message, in the beginning of the buffer.
    Message {
        /// The source of the message.
        from: Key,
        /// Its bytes.
        length: usize,
    },
    /// A source has ended, and has left the merge, after its last message.
    Ended {
        /// The source that it was.
        from: Key,
        /// Why. [`CloseReason::Closed`] as well where the peer has ended its sending alone.
        reason: CloseReason,
    },
}

/// Like [`Merged`], with the message in memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergedVec {
    /// A message.
    Message {
        /// The source of the message.
        from: Key,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A source has ended, and has left the merge, after its last message: as [`Merged::Ended`].
    Ended {
        /// The source that it was.
        from: Key,
        /// Why.
        reason: CloseReason,
    },
}

/// Counts of a [`Merge`] since it was made.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeStats {
    /// Sources in it now.
    pub sources: usize,
    /// Messages that it has handed out, of whichever source.
    pub messages_received: u64,
    /// Bytes of their payloads.
    pub bytes_received: u64,
}

/// A source that could not be added, and the reason. The source is returned.
#[derive(Debug)]
pub struct NotAdded<S> {
    /// The source.
    pub source: S,
    /// The reason.
    pub error: Error,
}

impl<S> fmt::Display for NotAdded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S: fmt::Debug> error::Error for NotAdded<S> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        error::Error::source(&self.error)
    }
}

impl<S> From<Box<NotAdded<S>>> for Error {
    fn from(not: Box<NotAdded<S>>) -> Self {
        not.error
    }
}

/// Reads from many sources as one: from the [`Receiver`]s of many channels, or from subscriptions, or from both
/// ([`AnySource`](crate::AnySource)).
///
/// ```no_run
/// use ringfence::{Address, Arrival, Merge, Merged, Options, listen};
///
/// # fn main() -> ringfence::Result<()> {
/// let listener = listen(&"/run/orders/service.sock".parse()?, &Options::new())?;
/// let mut merge = Merge::new()?;
/// for _ in 0..2 {
///     if let Arrival::Accepted(channel) = listener.accept()? {
///         let (sender, receiver) = channel.split();
///         merge.add(receiver)?;
///         # drop(sender);
///     }
/// }
/// let mut message = vec![0; 65536];
/// while let Some(merged) = merge.receive(&mut message)? {
///     match merged {
///         Merged::Message { from, length } => {
///             let pid = merge.source(from).map(|source| source.peer().pid);
///             println!("{length} bytes of process {pid:?}");
///         }
///         Merged::Ended { from, reason } => println!("{from:?} has ended: {reason}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Fairness
/// The sources take turns of about 16 KiB, or half a millisecond, so that one that floods holds up no other; one that was quiet has its
/// turn next. The messages of each source stay in their order.
///
/// # Closing
/// A source that has ended leaves after its last message, and [`Merged::Ended`] tells why. So does one whose peer violated the protocol
/// ([`CloseReason::Corrupt`]) or has made a call, which no merge answers: that costs the others nothing. Once every source has ended or was removed, and each end was
/// returned, [`Merge::receive`] returns `None`; a merge that never had a source waits. Dropping a merge drops its sources.
///
/// # After a fork
/// In a child each call that can fail fails with [`Error::Closed`], and dropping it does nothing to the parent.
pub struct Merge<S = Receiver> {
    slots: Vec<SourceSlot<S>>,
    free: Vec<usize>,
    turns: Turns,
    epoll: Epoll,
    owner: OwnerProcess,
    ends: VecDeque<(Key, CloseReason)>,
    size: usize,
    had_source: bool,
    /// Counts of the sources that have left.
    left_counts: (u64, u64),
    /// Checks of all sources that found nothing.
    empty_polls: u32,
    /// The source of the message that was received last.
    last: Option<Key>,
    spins: SpinPacer,
}

opaque! { [S] Merge<S>; }

/// A slot for a source.
struct SourceSlot<S> {
    source: Option<S>,
    /// Its counts when it was added.
    before: (u64, u64),
    /// The number of sources that have had this slot: part of the key.
    generation: u32,
}

impl<S: Source> Merge<S> {
    /// An empty merge. Errors with [`Error::NoSpace`] where no descriptor is left.
    pub fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .or_system("a descriptor for a merge (epoll_create1)")?;
        Ok(Self {
            slots: Vec::new(),
            free: Vec::new(),
            turns: Turns::default(),
            epoll,
            owner: OwnerProcess::current()?,
            ends: VecDeque::new(),
            size: 0,
            had_source: false,
            left_counts: (0, 0),
            empty_polls: 0,
            last: None,
            spins: SpinPacer::default(),
        })
    }

    /// Adds a source, or returns it with the error. Fails with [`Error::NoSpace`] if the kernel has no
    /// memory for it, or the user has reached its limit of watched descriptors (/proc/sys/fs/epoll/max_user_watches).
    pub fn add(&mut self, mut source: S) -> std::result::Result<Key, Box<NotAdded<S>>> {
        if let Err(error) = self.owner.check() {
            return Err(Box::new(NotAdded { source, error }));
        }
        let place = self.free.last().copied().unwrap_or(self.slots.len());
        let generation = self.slots.get(place).map_or(0, |slot| slot.generation);
        let key = Key::new(place, generation);
        if let Err(errno) = watch(&self.epoll, &mut source, key) {
            unwatch(&self.epoll, &mut source);
            let error = Error::system("waiting for one more source (epoll_ctl)", errno);
            return Err(Box::new(NotAdded { source, error }));
        }
        let before = source.counted();
        let slot = SourceSlot {
            source: Some(source),
            before,
            generation,
        };
        match self.free.pop() {
            Some(place) => self.slots[place] = slot,
            None => self.slots.push(slot),
        }
        self.size += 1;
        self.had_source = true;
        self.turns.push(SourceQueue::Fresh, place);
        Ok(key)
    }

    /// Hands a source back, open: what was not received is there to read. `None`: it has ended, or was removed before.
    pub fn remove(&mut self, key: Key) -> Option<S> {
        // The kernel's list of descriptors is the parent's as well.
        if !self.owner.is_current() {
            return None;
        }
        self.source(key)?;
        let mut source = self.remove_at(key.place())?;
        source.unpark();
        Some(source)
    }

    fn remove_at(&mut self, place: usize) -> Option<S> {
        let slot = self.slots.get_mut(place)?;
        let mut source = slot.source.take()?;
        self.left_counts = sum(self.left_counts, since(slot.before, source.counted()));
        slot.generation = slot.generation.wrapping_add(1);
        self.turns.remove(place);
        self.free.push(place);
        self.size -= 1;
        unwatch(&self.epoll, &mut source);
        Some(source)
    }

    /// A source that is in it.
    pub fn source(&self, key: Key) -> Option<&S> {
        let slot = self.slots.get(key.place())?;
        slot.source.as_ref().filter(|_| self.key(key.place()) == key)
    }

    fn key(&self, place: usize) -> Key {
        Key::new(place, self.slots[place].generation)
    }

    /// Returns its counts so far, over all sources that are or were in it.
    pub fn stats(&mut self) -> MergeStats {
        let mut all = self.left_counts;
        for slot in &mut self.slots {
            if let Some(source) = &mut slot.source {
                all = sum(all, since(slot.before, source.counted()));
            }
        }
        MergeStats {
            sources: self.size,
            messages_received: all.0,
            bytes_received: all.1,
        }
    }

    /// Returns the number of sources.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether no source is in it.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Returns whether no more will come: there was a source, every source has ended or was removed, and each end was returned.
    pub fn is_ended(&self) -> bool {
        self.had_source && self.size == 0 && self.ends.is_empty()
    }

    fn source_mut(&mut self, place: usize) -> &mut S {
        self.slots[place]
            .source
            .as_mut()
            .expect("a queued source has a slot")
    }

    /// The next message, into the beginning of `into`, or the end of a source. `None`: nothing is there now (see
    /// [`Merge::is_ended`]).
    ///
    /// Errors with [`Error::InvalidArgument`] if the message is longer than `into`: it is the next one still ([`Merge::next_size`]);
    /// [`Error::NoSpace`] where there is no memory to put it together: it stays, and is tried again in its source's next turn.
    #[inline]
    pub fn try_receive(&mut self, into: &mut [u8]) -> Result<Option<Merged>> {
        self.try_with(|merge| merge.receive_ready(into))
    }

    /// As [`Merge::try_receive`], a message in memory of its own size. Errors with [`Error::NoSpace`] where there is none.
    pub fn try_receive_vec(&mut self) -> Result<Option<MergedVec>> {
        self.try_with(Self::receive_ready_vec)
    }

    #[inline]
    fn try_with<T>(&mut self, mut receive: impl FnMut(&mut Self) -> Result<Option<T>>) -> Result<Option<T>> {
        loop {
            let received = receive(self)?;
            if received.is_some() || !self.check_all()? {
                return Ok(received);
            }
        }
    }

    /// The next message, into the beginning of `into`, or the end of a source; sleeps until there is one. `None`: no more will come
    /// ([`Merge::is_ended`]). Errors as [`Merge::try_receive`], and as [`Merge::wait_readable`].
    #[inline]
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<Merged>> {
        self.poll_until(None, |merge| merge.receive_ready(into))
    }

    /// As [`Merge::receive`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    pub fn receive_until(&mut self, into: &mut [u8], deadline: Instant) -> Result<Option<Merged>> {
        self.poll_until(Some(deadline), |merge| merge.receive_ready(into))
    }

    /// As [`Merge::receive`], a message in memory of its own size. Errors with [`Error::NoSpace`] where there is none.
    pub fn receive_vec(&mut self) -> Result<Option<MergedVec>> {
        self.poll_until(None, Self::receive_ready_vec)
    }

    /// As [`Merge::try_receive`], but only from ready sources: the others are parked next, and checked then.
    #[inline]
    fn receive_ready(&mut self, into: &mut [u8]) -> Result<Option<Merged>> {
        let received = self.receive_from_ready(|source| source.try_receive(into), |length| *length)?;
        Ok(received.map(|received| match received {
            Ok((from, length)) => Merged::Message { from, length },
            Err((from, reason)) => Merged::Ended { from, reason },
        }))
    }

    fn receive_ready_vec(&mut self) -> Result<Option<MergedVec>> {
        let received = self.receive_from_ready(Reading::try_receive_vec, Vec::len)?;
        Ok(received.map(|received| match received {
            Ok((from, bytes)) => MergedVec::Message { from, bytes },
            Err((from, reason)) => MergedVec::Ended { from, reason },
        }))
    }

    /// Returns what `receive` finds at the source whose turn it is, with its key, or an end that was not returned yet.
    #[inline]
    #[expect(clippy::type_complexity, reason = "for the two functions above alone")]
    fn receive_from_ready<T>(
        &mut self,
        mut receive: impl FnMut(&mut S) -> Result<Option<T>>,
        length: impl Fn(&T) -> usize,
    ) -> Result<Option<std::result::Result<(Key, T), (Key, CloseReason)>>> {
        self.owner.check()?;
        loop {
            if let Some(end) = self.ends.pop_front() {
                return Ok(Some(Err(end)));
            }
            let Some(place) = self.turns.next() else {
                return Ok(None);
            };
            match receive(self.source_mut(place)) {
                Ok(Some(received)) => {
                    let from = self.key(place);
                    self.last = Some(from);
                    self.spend(1, packed_size(length(&received) as u64));
                    return Ok(Some(Ok((from, received))));
                }
                Ok(None) => self.found_empty(place)?,
                Err(error) => self.failed(place, error)?,
            }
        }
    }

    /// Takes the attachments of the message that was received last, like [`Receiver::attachments`]. [`Merge::receive_each`] returns after
    /// a message with attachments.
    pub fn attachments(&mut self) -> Vec<Attachment> {
        let place = self
            .last
            .filter(|key| self.source(*key).is_some())
            .map(Key::place);
        place.map_or_else(Vec::new, |place| self.source_mut(place).attachments())
    }

    /// Returns the source of the next message and its size, once its start is there. `None`: there is none
    /// now. The message stays the next one until it is received. Errors as [`Merge::try_receive`].
    pub fn next_size(&mut self) -> Result<Option<(Key, usize)>> {
        self.owner.check()?;
        loop {
            let Some(place) = self.turns.next() else {
                if self.check_all()? {
                    continue;
                }
                return Ok(None);
            };
            match self.source_mut(place).next_size() {
                Ok(Some(size)) => return Ok(Some((self.key(place), size))),
                Ok(None) => self.found_empty(place)?,
                Err(error) => self.failed(place, error)?,
            }
        }
    }

    /// Visits the available messages in place, each source in its turn, at most `max`. Returns their number.
    /// The ends of sources are returned by [`Merge::next_end`] and [`Merge::try_receive`].
    ///
    /// # Errors
    /// As [`Receiver::receive_each`], but the end of a source is an error only if it may have spoiled a
    /// visit. With [`Error::Evicted`], [`Error::ObjectExposed`] or [`Error::Closed`], the last visits, all of
    /// one source, may have seen messages that were overwritten or wiped in the meantime. Discard what they
    /// saw; [`Merge::stats`] does not count them. That source has left the merge, and the next call continues
    /// with the others.
    pub fn receive_each(&mut self, mut visit: impl FnMut(Key, Message<'_>), max: usize) -> Result<usize> {
        self.owner.check()?;
        let mut count = 0;
        while count < max {
            let Some(place) = self.turns.next() else {
                if self.check_all()? {
                    continue;
                }
                break;
            };
            let (from, left) = (self.key(place), self.turns.left());
            let (mut visits, mut bytes) = (0_usize, 0);
            let visitor = |message: Message<'_>| {
                visits += 1;
                bytes += packed_size(message.len() as u64);
                visit(from, message);
            };
            let visited = self
                .source_mut(place)
                .visit(visitor, VISITS.min(max - count), left);
            count += visits;
            match visited.empty {
                Ok(_) if self.source_mut(place).has_attachments() => {
                    self.last = Some(from);
                    self.spend(visits, bytes);
                    return Ok(count);
                }
                Ok(true) => self.found_empty(place)?,
                Ok(false) => self.spend(visits, bytes),
                // The visitor has seen messages that must be discarded.
                Err(error) if visits > visited.count => {
                    self.leave(place);
                    return Err(error);
                }
                Err(error) => self.failed(place, error)?,
            }
        }
        Ok(count)
    }

    /// The next end of a source that was not returned yet, for a caller that reads with [`Merge::receive_each`]. `None` in a child.
    pub fn next_end(&mut self) -> Option<(Key, CloseReason)> {
        self.ends.pop_front().filter(|_| self.owner.is_current())
    }

    /// Waits until there is something to read, or the end of a source to return. `false`: no more will come ([`Merge::is_ended`]).
    ///
    /// # Errors
    /// [`Error::TimedOut`] at the deadline. [`Error::NoSpace`] or [`Error::Unsupported`] if the kernel refuses to wait, which is a
    /// local error.
    pub fn wait_readable(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let found = self.poll_until(deadline, |merge| {
            Ok((merge.spin_check(())? && !merge.is_ended()).then_some(()))
        })?;
        Ok(found.is_some())
    }

    /// For event loops: parks every idle source, so that its peer sends a wakeup. `true`: nothing is there; wait until the descriptor
    /// ([`AsFd`]) is readable, then call [`Merge::poll`]. `false`: there is something to read, or an end to return, or no more will
    /// come. Errors as [`Merge::wait_readable`].
    pub fn arm(&mut self) -> Result<bool> {
        self.owner.check()?;
        if self.has_ready()? {
            return Ok(false);
        }
        let mut needs_barrier = false;
        let mut next = self.turns.first(SourceQueue::Resting);
        while let Some(place) = next {
            next = self.turns.behind(place);
            match self.source_mut(place).announce() {
                Ok(needs) => needs_barrier |= needs,
                Err(error) => self.failed(place, error)?,
            }
        }
        if needs_barrier {
            barrier()?;
        }
        let mut next = self.turns.first(SourceQueue::Resting);
        while let Some(place) = next {
            next = self.turns.behind(place);
            match self.source_mut(place).check_parked(()) {
                Ok(true) => self.turns.push(SourceQueue::Armed, place),
                Ok(false) => self.turns.wake(place),
                Err(error) => self.failed(place, error)?,
            }
        }
        Ok(!self.has_ready()?)
    }

    /// For event loops: reads the lines that are readable. Errors as [`Merge::wait_readable`].
    pub fn poll(&mut self) -> Result<()> {
        self.owner.check()?;
        self.poll_lines(Some(Instant::now())).map(drop)
    }

    /// Waits until a line is readable, and reads it. `false`: the deadline has passed.
    fn poll_lines(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut count = 0;
        ready_by(deadline, |timeout| {
            count = self.epoll.wait(&mut events, timeout)?;
            Ok(count > 0)
        })
        .or_system("waiting for the sources of a merge (epoll_wait)")?;
        for event in &events[..count] {
            let key = Key(event.data() & !PROCESS);
            // An event before this one may have removed it.
            if self.source(key).is_none() {
                continue;
            }
            let polled = if event.data() & PROCESS == 0 {
                PolledFd::Line
            } else {
                PolledFd::Process
            };
            self.source_mut(key.place()).on_readable(polled);
            self.turns.wake(key.place());
        }
        Ok(count > 0)
    }

    /// Whether there is an end to return, or a ready source has something to read. The other ready sources rest after this.
    fn has_ready(&mut self) -> Result<bool> {
        self.owner.check()?;
        while let Some(place) = self.turns.next() {
            match self.source_mut(place).is_available(()) {
                Ok(true) => return Ok(true),
                Ok(false) => self.found_empty(place)?,
                Err(error) => self.failed(place, error)?,
            }
        }
        Ok(!self.ends.is_empty() || self.is_ended())
    }

    /// Follows a turn of a source that had nothing: it rests, or has ended.
    fn found_empty(&mut self, place: usize) -> Result<()> {
        match self.source_mut(place).is_over() {
            Ok(true) => self.leave(place),
            Ok(false) => self.turns.found_empty(place),
            Err(error) => self.failed(place, error)?,
        }
        Ok(())
    }

    /// An error that ends a source is not an error of the merge.
    #[cold]
    fn failed(&mut self, place: usize, error: Error) -> Result<()> {
        match error {
            // Its turn continues: a caller with more room gets the same message.
            Error::InvalidArgument(_) => Err(error),
            Error::NoSpace { .. } => {
                self.turns.end_turn();
                Err(error)
            }
            _ if self.source_mut(place).end_reason().is_some() => {
                self.leave(place);
                Ok(())
            }
            // The call would stay the next message for ever, and an error of the merge does not name its source.
            Error::Protocol(what) => {
                let Parking { shared, .. } = self.source_mut(place).parking();
                // Fails with this very error.
                let _ = shared.judge::<()>(Err(Error::RingCorrupt(what)));
                self.leave(place);
                Ok(())
            }
            _ => {
                self.turns.end_turn();
                Err(error)
            }
        }
    }

    fn leave(&mut self, place: usize) {
        let key = self.key(place);
        let Some(mut source) = self.remove_at(place) else {
            return;
        };
        let reason = source.end_reason().unwrap_or(CloseReason::Closed);
        self.ends.push_back((key, reason));
    }

    /// Charges the current turn for received messages. At the end of the turn, checks some idle sources.
    #[inline]
    fn spend(&mut self, messages: usize, bytes: u64) {
        if self
            .turns
            .spend(u32::try_from(messages).unwrap_or(u32::MAX), bytes)
        {
            self.check_some();
        }
    }

    /// Checks a few of the idle sources.
    fn check_some(&mut self) {
        for line in [SourceQueue::Resting, SourceQueue::Armed] {
            for _ in 0..CHECKS_PER_TURN {
                let Some(place) = self.turns.first(line) else {
                    break;
                };
                if self.check_ready(place) {
                    self.turns.wake(place);
                } else {
                    self.turns.push(line, place);
                }
            }
        }
    }

    /// Checks all idle sources, because none is ready. Returns whether one has something.
    fn check_all(&mut self) -> Result<bool> {
        self.empty_polls += 1;
        let checks_lines = self.empty_polls >= POLLS_PER_LINE_CHECK;
        if checks_lines {
            // So a caller that only ever polls notices an end.
            self.empty_polls = 0;
            self.poll_lines(Some(Instant::now()))?;
        }
        for line in [SourceQueue::Resting, SourceQueue::Armed] {
            let mut next = self.turns.first(line);
            while let Some(place) = next {
                next = self.turns.behind(place);
                if self.check_ready(place) {
                    self.turns.wake(place);
                }
            }
        }
        Ok(self.turns.next().is_some())
    }

    /// Whether a source that had nothing has a message, or has ended. Its next turn returns its error.
    fn check_ready(&mut self, place: usize) -> bool {
        self.source_mut(place).is_ready(()).unwrap_or(true)
    }
}

impl<S: Source> SpinThenPark for Merge<S> {
    type For = ();

    fn spin_time(&mut self) -> Duration {
        let sources = self.slots.iter_mut().filter_map(|slot| slot.source.as_mut());
        sources.map(S::spin_time).max().unwrap_or(Duration::ZERO)
    }

    fn spin_pacer(&mut self) -> &mut SpinPacer {
        &mut self.spins
    }

    fn spin_check(&mut self, (): ()) -> Result<bool> {
        Ok(self.has_ready()? || self.check_all()?)
    }

    fn is_finished(&mut self) -> Result<bool> {
        Ok(self.is_ended())
    }

    fn check_line(&mut self) -> Result<()> {
        self.poll_lines(Some(Instant::now())).map(drop)
    }

    fn park_until(&mut self, (): (), deadline: Option<Instant>) -> Result<Slept> {
        if !self.arm()? {
            return Ok(Slept::Ready);
        }
        Ok(if self.poll_lines(deadline)? {
            Slept::Woken
        } else {
            Slept::Late
        })
    }
}

impl<S> AsFd for Merge<S> {
    /// Readable when a source's peer has sent a wakeup, or has disconnected. See [`Merge::arm`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

fn watch(epoll: &Epoll, source: &mut impl Source, key: Key) -> std::result::Result<(), Errno> {
    for (descriptor, polled) in source.poll_fds().into_iter().flatten() {
        let (flags, word) = match polled {
            PolledFd::Line => (EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, key.0),
            PolledFd::Process => (EpollFlags::EPOLLIN, key.0 | PROCESS),
        };
        epoll.add(descriptor, EpollEvent::new(flags, word))?;
    }
    Ok(())
}

fn unwatch(epoll: &Epoll, source: &mut impl Source) {
    for (descriptor, _) in source.poll_fds().into_iter().flatten() {
        // Fails if it was not added.
        let _ = epoll.delete(descriptor);
    }
}

fn since(before: (u64, u64), now: (u64, u64)) -> (u64, u64) {
    (now.0 - before.0, now.1 - before.1)
}

fn sum(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (one.0 + other.0, one.1 + other.1)
}
