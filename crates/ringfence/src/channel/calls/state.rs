//! The calls of one channel, in both directions, and the order of everything that it sends.
//!
//! Each request is answered exactly once, a cancelled one as well. So each side knows which answers are still to come, and any
//! other answer is a violation of the protocol.
//!
//! [`State`] never blocks and makes no system call. One lock guards it ([`Core`](super::driver::Core)). The wakers that it has
//! woken are called after that lock is released, because a waker may drop a future that needs the lock.

#[cfg(any(test, fuzzing))]
#[path = "../../testing/call_state.rs"]
mod check;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map::Entry},
    ops::Range,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    channel::calls::envelope::{
        CallError, FrameKind, HEAD, Head, MIN_MESSAGE, RemoteError, corrupt, error_frame, read_error,
    },
    error::{Error, Result},
    ring::record::Tag,
};

/// Requests that a caller may have unanswered, and their bytes unless it is a single one. Further calls wait in the caller.
pub(super) const MAX_REQUESTS: usize = 16 * 1024;
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// The server may learn late that answers are in the ring, so it tolerates this many times the caller's limits.
const SLACK: usize = 2;
/// Messages that are kept for the program while calls are read, and their bytes. Beyond, reading pauses.
const MAX_MESSAGES: usize = 4096;
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The number of a call in this process, in the order of the calls.
pub(crate) type Ticket = u64;

/// The position of a frame or a message among all that were queued for sending.
pub(crate) type Place = u64;

/// The event that a task or a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CallEvent {
    /// The receiver is free: one of the threads that wait may drive.
    Drive,
    /// A request of the peer, or the end of all requests.
    Request,
    /// A message of the peer, or the end of all messages.
    Message,
    /// Everything up to this place is in the ring, or never will be.
    Flushed(Place),
    /// The driver has read the ring once more. The last of the events: see [`State::awaits_read`].
    Read,
}

/// The key of a registered waker. Each wait has its own, so that a dropped wait removes no other.
pub(crate) type WaitKey = (CallEvent, u64);

/// A call of this side.
#[derive(Debug, Default)]
struct Call {
    /// Its request, until that may be sent.
    frame: Vec<u8>,
    due: Option<Instant>,
    /// The number of its request, once that may be sent.
    id: Option<u64>,
    outcome: Option<Result<Vec<u8>, CallError>>,
    waker: Option<Waker>,
}

/// A request of this side that was not answered.
struct Sent {
    size: usize,
    /// `None`: the caller has stopped waiting.
    ticket: Option<Ticket>,
}

/// A request of the peer whose answer is not in the ring yet.
struct OpenRequest {
    size: usize,
    is_answered: bool,
    /// Waits for the cancellation.
    waker: Option<Waker>,
}

/// A request of the peer that no handler has.
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) due: Option<Instant>,
}

/// The meaning of a queued frame or message to this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendKind {
    Request(u64),
    Answer(u64),
    Cancel,
    Message,
}

/// A frame or a message that is queued for sending.
struct QueuedSend {
    place: Place,
    bytes: Vec<u8>,
    kind: SendKind,
    /// Of a request: its deadline.
    due: Option<Instant>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct State {
    /// Bytes of the longest message that the peer accepts.
    longest: usize,

    calls: HashMap<Ticket, Call>,
    next_ticket: Ticket,
    /// Calls that wait until fewer are unanswered.
    waiting: BTreeSet<Ticket>,
    sent: HashMap<u64, Sent>,
    sent_bytes: usize,
    next_call: u64,
    /// Calls without an outcome.
    pub(crate) in_flight: usize,
    /// Answers that have arrived after the caller had stopped waiting.
    pub(super) late_replies: u64,
    /// Why no more answers will arrive.
    answers_error: Option<Error>,

    open: HashMap<u64, OpenRequest>,
    open_bytes: usize,
    next_request: u64,
    /// In the order in which they were sent.
    requests: BTreeMap<u64, Request>,

    messages: VecDeque<Vec<u8>>,
    message_bytes: usize,

    queue: VecDeque<QueuedSend>,
    next_place: Place,
    /// Everything before this place is in the ring, or never will be.
    flushed: Place,
    /// Why nothing more can be sent.
    send_error: Option<Error>,

    /// Nothing more will be read: the peer has ended its sending, or the channel has ended.
    end: Option<Result<()>>,
    /// This side has closed the channel.
    is_closed: bool,
    /// A wait adds its waker and removes it. An event removes the wakers that it wakes.
    waits: BTreeMap<WaitKey, Waker>,
    next_wait: u64,
    /// To be called once the lock is released.
    pub(super) woken: Vec<Waker>,
    /// To be dropped once the lock is released: that may drop a future which needs the lock.
    pub(super) discarded: Vec<Waker>,
    /// The driver must check the state again before it sleeps.
    pub(super) nudged: bool,
}

impl State {
    /// Fails with [`Error::InvalidArgument`] if the longest message is too short for calls.
    pub(crate) fn new(longest: u64) -> Result<Self> {
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        if longest < MIN_MESSAGE {
            return Err(Error::invalid(format!(
                "calls need a peer that accepts messages of at least {MIN_MESSAGE} bytes, not {longest}"
            )));
        }
        Ok(Self {
            longest,
            ..Self::default()
        })
    }

    pub(crate) fn take_nudge(&mut self) -> bool {
        std::mem::take(&mut self.nudged)
    }

    pub(crate) fn wake(&mut self, waker: Waker) {
        self.nudged = true;
        self.woken.push(waker);
    }

    fn wake_all(&mut self, wakers: impl IntoIterator<Item = Waker>) {
        for waker in wakers {
            self.wake(waker);
        }
    }

    /// Replaces the waker of a single wait.
    fn replace_waker(discarded: &mut Vec<Waker>, known: &mut Option<Waker>, new: &Waker) {
        if known.as_ref().is_none_or(|known| !known.will_wake(new)) {
            discarded.extend(known.replace(new.clone()));
        }
    }

    /// Wakes the waiter on its next event. The same `wait` must be passed until [`State::remove_wait`].
    pub(super) fn register(&mut self, event: CallEvent, wait: &mut Option<WaitKey>, waker: &Waker) {
        let next = &mut self.next_wait;
        let key = *wait.get_or_insert_with(|| {
            *next += 1;
            (event, *next)
        });
        match self.waits.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(waker.clone())),
            Entry::Occupied(mut known) if !known.get().will_wake(waker) => {
                self.discarded.push(known.insert(waker.clone()));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// The wait is over or was dropped.
    pub(crate) fn remove_wait(&mut self, wait: Option<WaitKey>) {
        self.discarded
            .extend(wait.and_then(|key| self.waits.remove(&key)));
    }

    /// Wakes all that wait for an event of this range.
    fn wake_waits(&mut self, events: Range<CallEvent>) {
        let keys = (events.start, 0)..(events.end, 0);
        while let Some((&key, _)) = self.waits.range(keys.clone()).next() {
            if let Some(waker) = self.waits.remove(&key) {
                self.wake(waker);
            }
        }
    }

    /// Wakes the thread that has waited longest to drive.
    pub(super) fn wake_next_driver(&mut self) {
        let keys = (CallEvent::Drive, 0)..(CallEvent::Request, 0);
        let first = self.waits.range(keys).next().map(|(key, _)| *key);
        if let Some(waker) = first.and_then(|key| self.waits.remove(&key)) {
            self.wake(waker);
        }
    }

    fn wake_servers(&mut self) {
        self.wake_waits(CallEvent::Request..CallEvent::Message);
    }

    fn wake_readers(&mut self) {
        self.wake_waits(CallEvent::Message..CallEvent::Flushed(0));
    }

    // Sending.

    fn push(&mut self, bytes: Vec<u8>, kind: SendKind, due: Option<Instant>) -> Place {
        let place = self.next_place;
        self.next_place += 1;
        self.queue.push_back(QueuedSend {
            place,
            bytes,
            kind,
            due,
        });
        place
    }

    /// Queues a frame without a body.
    fn push_head(&mut self, frame: FrameKind, id: u64, kind: SendKind) {
        self.push(Head::new(frame, id).frame(&[]), kind, None);
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, message: &[u8]) -> Result<Place> {
        self.check_size(message.len())?;
        self.check_sending()?;
        Ok(self.push(message.to_vec(), SendKind::Message, None))
    }

    fn check_size(&self, size: usize) -> Result<()> {
        if size <= self.longest {
            return Ok(());
        }
        Err(Error::too_large(size, self.longest as u64, "what the peer takes"))
    }

    pub(crate) fn check_sending(&self) -> Result<()> {
        self.send_error.as_ref().map_or(Ok(()), |error| Err(copy(error)))
    }

    /// Whether everything up to this place is in the ring, or was retracted. Fails if it never will be.
    pub(crate) fn poll_flushed(
        &mut self,
        place: Place,
        wait: &mut Option<WaitKey>,
        waker: &Waker,
    ) -> Poll<Result<()>> {
        if place < self.flushed {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = self.check_sending() {
            return Poll::Ready(Err(error));
        }
        self.register(CallEvent::Flushed(place), wait, waker);
        Poll::Pending
    }

    /// The place behind everything that is queued; `None` if nothing is.
    pub(crate) fn last_place(&self) -> Option<Place> {
        self.queue.back().map(|queued| queued.place)
    }

    /// Removes a message whose sender has stopped waiting, unless it is the front and has started to enter the ring.
    pub(super) fn retract(&mut self, place: Place, has_started: bool) {
        if let Ok(at) = self.queue.binary_search_by_key(&place, |queued| queued.place)
            && (at > 0 || !has_started)
        {
            self.queue.remove(at);
            self.advance_flushed();
        }
    }

    /// The front of the queue has changed.
    fn advance_flushed(&mut self) {
        let front = self.queue.front();
        self.flushed = front.map_or(self.next_place, |queued| queued.place);
        self.wake_waits(CallEvent::Flushed(0)..CallEvent::Flushed(self.flushed));
    }

    /// The next frame or message to put into the ring. `begins`: nothing of it is there yet.
    pub(crate) fn front(&mut self, begins: bool) -> Option<(&[u8], Tag)> {
        let queued = self.queue.front_mut()?;
        if begins && let (SendKind::Request(id), Some(due)) = (queued.kind, queued.due) {
            let left = due.saturating_duration_since(Instant::now());
            let remaining = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
            let head = Head {
                remaining: remaining.max(1),
                ..Head::new(FrameKind::Request, id)
            };
            queued.bytes[..HEAD].copy_from_slice(&head.encode());
        }
        let tag = if queued.kind == SendKind::Message {
            Tag::NONE
        } else {
            Tag::CALL
        };
        Some((&queued.bytes, tag))
    }

    /// The front of the queue is in the ring.
    pub(crate) fn pop_flushed(&mut self) {
        let Some(queued) = self.queue.pop_front() else {
            return;
        };
        self.advance_flushed();
        if let SendKind::Answer(id) = queued.kind {
            self.close_request(id);
        }
    }

    fn close_request(&mut self, id: u64) {
        let Some(open) = self.open.remove(&id) else { return };
        self.open_bytes -= open.size;
        if self.open.is_empty() && self.end.is_some() {
            self.wake_servers();
        }
    }

    /// Whether something is queued whose loss the peer would not notice.
    pub(crate) fn has_unsent(&self) -> bool {
        self.queue.iter().any(|queued| queued.kind != SendKind::Cancel)
    }

    /// Nothing more can be sent.
    pub(crate) fn stop_sending(&mut self, error: Error) {
        for queued in std::mem::take(&mut self.queue) {
            match queued.kind {
                SendKind::Request(id) => self.fail_unsent(id, &error),
                SendKind::Answer(id) => self.close_request(id),
                SendKind::Cancel | SendKind::Message => {}
            }
        }
        for ticket in std::mem::take(&mut self.waiting) {
            self.complete(ticket, Err(copy(&error).into()));
        }
        self.send_error.get_or_insert(error);
        self.wake_waits(CallEvent::Flushed(0)..CallEvent::Read);
        self.nudged = true;
    }

    /// The request will never be in the ring.
    fn fail_unsent(&mut self, id: u64, error: &Error) {
        let Some(sent) = self.sent.remove(&id) else { return };
        self.sent_bytes -= sent.size;
        if let Some(ticket) = sent.ticket {
            self.complete(ticket, Err(copy(error).into()));
        }
    }

    // This side calls.

    /// Fails once no further call can be started.
    pub(crate) fn check_calling(&self) -> Result<()> {
        match self.answers_error.as_ref().or(self.send_error.as_ref()) {
            Some(error) => Err(copy(error)),
            None => Ok(()),
        }
    }

    /// Starts a call.
    pub(crate) fn start(&mut self, request: &[u8], due: Option<Instant>) -> Result<Ticket> {
        self.check_calling()?;
        let size = HEAD + request.len();
        self.check_size(size)?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        // The number is set when the request may be sent.
        let frame = Head::new(FrameKind::Request, 0).frame(request);
        let call = Call {
            frame,
            due,
            ..Call::default()
        };
        self.calls.insert(ticket, call);
        self.in_flight += 1;
        self.waiting.insert(ticket);
        self.start_waiting();
        Ok(ticket)
    }

    fn start_waiting(&mut self) {
        while let Some(&ticket) = self.waiting.first() {
            let Some(call) = self.calls.get_mut(&ticket) else {
                self.waiting.pop_first();
                continue;
            };
            let size = call.frame.len();
            if !fits_limits(self.sent.len(), self.sent_bytes, size, 1) {
                break;
            }
            self.waiting.pop_first();
            let (id, due) = (self.next_call, call.due);
            let mut frame = std::mem::take(&mut call.frame);
            frame[..HEAD].copy_from_slice(&Head::new(FrameKind::Request, id).encode());
            call.id = Some(id);
            self.next_call += 1;
            self.sent_bytes += size;
            let ticket = Some(ticket);
            self.sent.insert(id, Sent { size, ticket });
            self.push(frame, SendKind::Request(id), due);
        }
    }

    /// Returns the outcome of a call, once.
    pub(crate) fn poll_call(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Result<Vec<u8>, CallError>> {
        let Some(call) = self.calls.get_mut(&ticket) else {
            return Poll::Ready(Err(
                Error::invalid("the outcome of this call was taken before").into()
            ));
        };
        if call.outcome.is_none() {
            Self::replace_waker(&mut self.discarded, &mut call.waker, waker);
            return Poll::Pending;
        }
        let outcome = self.calls.remove(&ticket).and_then(|call| call.outcome);
        Poll::Ready(outcome.expect("as was just seen"))
    }

    /// The caller stops waiting: frees the call, and cancels its request.
    pub(crate) fn abandon(&mut self, ticket: Ticket) {
        let Some(call) = self.calls.remove(&ticket) else {
            return;
        };
        self.discarded.extend(call.waker);
        if call.outcome.is_some() {
            return;
        }
        self.in_flight -= 1;
        self.waiting.remove(&ticket);
        if let Some(id) = call.id
            && let Some(sent) = self.sent.get_mut(&id)
        {
            sent.ticket = None;
            self.push_head(FrameKind::Cancel, id, SendKind::Cancel);
        }
    }

    fn complete(&mut self, ticket: Ticket, outcome: Result<Vec<u8>, CallError>) {
        let Some(call) = self.calls.get_mut(&ticket) else {
            return;
        };
        if call.outcome.is_some() {
            return;
        }
        // The deadline of the handler is that of the caller.
        let is_late = call.due.is_some_and(|due| due <= Instant::now())
            && matches!(&outcome, Err(CallError::Remote(error)) if error.is_late());
        call.outcome = Some(if is_late {
            Err(Error::TimedOut.into())
        } else {
            outcome
        });
        call.frame = Vec::new();
        self.in_flight -= 1;
        if let Some(waker) = call.waker.take() {
            self.wake(waker);
        }
    }

    fn complete_all(&mut self, error: &Error) {
        self.sent.clear();
        self.sent_bytes = 0;
        self.waiting.clear();
        let tickets: Vec<Ticket> = self.calls.keys().copied().collect();
        for ticket in tickets {
            self.complete(ticket, Err(copy(error).into()));
        }
    }

    fn on_answer(&mut self, head: Head, mut frame: Vec<u8>) -> Result<()> {
        let Head { kind, id, .. } = head;
        let sent = self.sent.get(&id).map(|sent| (sent.size, sent.ticket));
        let (size, ticket) = match sent {
            Some((_, Some(_))) if kind == FrameKind::Cancelled => None,
            sent => sent,
        }
        .ok_or_else(|| {
            corrupt(&format!(
                "an answer of kind {kind:?} to call {id}, which does not wait for it"
            ))
        })?;
        let outcome = if kind == FrameKind::Error {
            Err(read_error(&frame[HEAD..])?.into())
        } else {
            frame.drain(..HEAD);
            Ok(frame)
        };
        self.sent.remove(&id);
        self.sent_bytes -= size;
        match ticket {
            Some(ticket) => self.complete(ticket, outcome),
            None if kind != FrameKind::Cancelled => self.late_replies += 1,
            None => {}
        }
        self.start_waiting();
        Ok(())
    }

    // This side serves.

    fn on_request(&mut self, head: Head, mut frame: Vec<u8>) -> Result<()> {
        let Head { id, remaining, .. } = head;
        if id != self.next_request {
            return Err(corrupt(&format!(
                "request {id} in place of {}",
                self.next_request
            )));
        }
        let size = frame.len();
        if !fits_limits(self.open.len(), self.open_bytes, size, SLACK) {
            let (count, bytes) = (self.open.len(), self.open_bytes);
            return Err(corrupt(&format!(
                "{count} requests of {bytes} bytes are unanswered"
            )));
        }
        self.next_request += 1;
        self.open_bytes += size;
        let open = OpenRequest {
            size,
            is_answered: false,
            waker: None,
        };
        self.open.insert(id, open);
        frame.drain(..HEAD);
        let left = (remaining > 0).then(|| Duration::from_millis(remaining.into()));
        let request = Request {
            id,
            body: frame,
            due: left.and_then(|left| Instant::now().checked_add(left)),
        };
        self.requests.insert(id, request);
        self.wake_servers();
        Ok(())
    }

    fn on_cancel(&mut self, id: u64) -> Result<()> {
        if id >= self.next_request {
            return Err(corrupt(&format!("request {id} was cancelled before it was sent")));
        }
        // The answer and the cancellation may have crossed.
        let Some(open) = self.open.get_mut(&id).filter(|open| !open.is_answered) else {
            return Ok(());
        };
        open.is_answered = true;
        let waker = open.waker.take();
        self.wake_all(waker);
        self.requests.remove(&id);
        self.push_head(FrameKind::Cancelled, id, SendKind::Answer(id));
        Ok(())
    }

    /// Returns the next request of the peer. `None`: no more will arrive, and each one was answered.
    pub(crate) fn poll_request(
        &mut self,
        wait: &mut Option<WaitKey>,
        waker: &Waker,
    ) -> Poll<Result<Option<Request>>> {
        if let Some((_, request)) = self.requests.pop_first() {
            return Poll::Ready(Ok(Some(request)));
        }
        match &self.end {
            Some(_) if self.is_closed => return Poll::Ready(Ok(None)),
            Some(Err(error)) => return Poll::Ready(Err(copy(error))),
            Some(Ok(())) if self.open.is_empty() => return Poll::Ready(Ok(None)),
            _ => {}
        }
        self.register(CallEvent::Request, wait, waker);
        Poll::Pending
    }

    /// Queues the answer to a request. `None`: the request was cancelled, or the channel has ended.
    pub(crate) fn answer(&mut self, id: u64, outcome: Result<&[u8], RemoteError>) -> Option<Place> {
        let open = self.open.get_mut(&id).filter(|open| !open.is_answered)?;
        open.is_answered = true;
        self.discarded.extend(open.waker.take());
        let sound = outcome.and_then(|reply| {
            self.check_size(HEAD + reply.len())?;
            Ok(Head::new(FrameKind::Reply, id).frame(reply))
        });
        let frame = sound.unwrap_or_else(|error| error_frame(id, &error, self.longest));
        if self.send_error.is_some() {
            self.close_request(id);
            return None;
        }
        Some(self.push(frame, SendKind::Answer(id), None))
    }

    /// Whether a request no longer needs an answer.
    pub(crate) fn is_cancelled(&self, id: u64) -> bool {
        self.open.get(&id).is_none_or(|open| open.is_answered)
    }

    /// As [`State::is_cancelled`], and wakes the waker once it is.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll_cancelled(&mut self, id: u64, waker: &Waker) -> Poll<()> {
        let Some(open) = self.open.get_mut(&id).filter(|open| !open.is_answered) else {
            return Poll::Ready(());
        };
        Self::replace_waker(&mut self.discarded, &mut open.waker, waker);
        Poll::Pending
    }

    // Messages beside the calls.

    /// Keeps a message for the program.
    pub(crate) fn push_message(&mut self, message: Vec<u8>) {
        self.message_bytes += message.len();
        self.messages.push_back(message);
        self.wake_readers();
    }

    /// Whether the program must receive messages before more is read.
    pub(crate) fn is_full(&self) -> bool {
        self.messages.len() >= MAX_MESSAGES || self.message_bytes >= MAX_MESSAGE_BYTES
    }

    /// Returns the next message of the peer. `None`: no more will arrive.
    pub(crate) fn poll_message(
        &mut self,
        wait: &mut Option<WaitKey>,
        waker: &Waker,
    ) -> Poll<Result<Option<Vec<u8>>>> {
        let was_full = self.is_full();
        if let Some(message) = self.messages.pop_front() {
            self.message_bytes -= message.len();
            self.nudged |= was_full;
            return Poll::Ready(Ok(Some(message)));
        }
        match &self.end {
            Some(Ok(())) => Poll::Ready(Ok(None)),
            Some(Err(error)) => Poll::Ready(Err(copy(error))),
            None => {
                self.register(CallEvent::Message, wait, waker);
                Poll::Pending
            }
        }
    }

    // Both.

    /// Handles a frame of the peer. Fails with [`Error::RingCorrupt`] if the peer has violated the protocol.
    pub(crate) fn on_frame(&mut self, frame: Vec<u8>) -> Result<()> {
        let head = Head::decode(&frame)?;
        match head.kind {
            FrameKind::Request => self.on_request(head, frame),
            FrameKind::Cancel => self.on_cancel(head.id),
            FrameKind::Reply | FrameKind::Error | FrameKind::Cancelled => self.on_answer(head, frame),
        }
    }

    /// Waits until the driver has read the ring once more: a deadline has passed, and the outcome may have arrived in time.
    pub(crate) fn poll_last_read(&mut self, wait: &mut Option<WaitKey>, waker: &Waker) -> Poll<()> {
        let has_read = wait.is_some_and(|key| !self.waits.contains_key(&key));
        if has_read || self.end.is_some() {
            return Poll::Ready(());
        }
        self.nudged |= wait.is_none();
        self.register(CallEvent::Read, wait, waker);
        Poll::Pending
    }

    /// Whether a caller waits for what is in the ring now.
    pub(crate) fn awaits_read(&self) -> bool {
        // The last of the keys.
        self.waits
            .keys()
            .next_back()
            .is_some_and(|key| key.0 == CallEvent::Read)
    }

    /// The driver has read what was in the ring.
    pub(crate) fn on_read(&mut self) {
        while self.awaits_read()
            && let Some((_, waker)) = self.waits.pop_last()
        {
            self.wake(waker);
        }
    }

    /// Whether nothing more will be read.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the end of the channel would change anything: more is read, or handlers run.
    pub(crate) fn awaits_end(&self) -> bool {
        self.end.is_none() || !self.open.is_empty()
    }

    /// Whether handlers run although nothing more is read. Then only the line shows that the channel has ended.
    pub(crate) fn serves_after_end(&self) -> bool {
        self.end.is_some() && !self.open.is_empty()
    }

    /// The peer has ended its sending in an orderly way: no more answers and requests will arrive.
    pub(crate) fn peer_ended(&mut self) {
        let error = Error::PeerLost("it has ended its sending, and has not answered".into());
        self.complete_all(&error);
        self.answers_error.get_or_insert(error);
        self.end.get_or_insert(Ok(()));
        self.wake_servers();
        self.wake_readers();
        self.nudged = true;
    }

    /// No more answers are needed: cancels every request.
    pub(crate) fn drop_requests(&mut self) {
        self.requests.clear();
        self.open_bytes = 0;
        for open in std::mem::take(&mut self.open).into_values() {
            self.wake_all(open.waker);
        }
        self.wake_servers();
        self.nudged = true;
    }

    /// This side has closed the channel.
    pub(crate) fn close(&mut self, error: Error) {
        // The first end counts.
        self.is_closed |= !matches!(self.end, Some(Err(_)));
        self.finish(error);
    }

    /// The channel has ended.
    pub(crate) fn finish(&mut self, error: Error) {
        self.complete_all(&error);
        self.stop_sending(copy(&error));
        self.answers_error.get_or_insert(copy(&error));
        self.end.get_or_insert(Err(error));
        self.drop_requests();
        self.wake_readers();
    }

    /// The channel has ended with an error after the peer's sending.
    pub(crate) fn finish_after_end(&mut self, error: Error) {
        self.end = Some(Err(copy(&error)));
        self.finish(error);
    }
}

/// Whether one more request may be unanswered.
fn fits_limits(count: usize, bytes: usize, size: usize, slack: usize) -> bool {
    count == 0 || (count < slack * MAX_REQUESTS && bytes + size <= slack * MAX_REQUEST_BYTES)
}

/// The same error for one more caller.
fn copy(error: &Error) -> Error {
    match error {
        Error::PeerLost(what) => Error::PeerLost(what.clone()),
        Error::RingCorrupt(what) => Error::RingCorrupt(what.clone()),
        Error::ObjectExposed(what) => Error::ObjectExposed(what.clone()),
        Error::Closed(what) => Error::Closed(what),
        Error::NoSpace { what, reason } => Error::no_space(what.clone(), reason.clone()),
        Error::Unsupported { what, .. } => Error::unsupported(what.clone()),
        other => Error::unsupported(other.to_string()),
    }
}
