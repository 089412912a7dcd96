//! Puts the queue of a [`State`] into the ring, and the frames of the ring into the state.
//!
//! One thread or task at a time is the driver: it has the receiving half and sleeps on the line. Every other thread and task puts
//! its own frames into the ring, changes the state under the lock, and wakes the driver if that must act: if the ring has no room,
//! or if the driver waits for what has changed.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::Arc,
    task::Waker,
    time::Instant,
};

use crate::{
    channel::Channel,
    channel::calls::envelope::RemoteError,
    channel::calls::state::{MAX_REQUESTS, Place, State, Ticket},
    channel::end::{CloseReason, Shared, defer_reports, report_deferred},
    channel::receiver::Receiver,
    channel::sender::Sender,
    channel::tokens::Tokens,
    channel::verify::KnownPeer,
    error::{Error, Result},
    fork::ProcessMutex,
    ring::message::Progress,
    sys::lock::MutexGuard,
};

/// Frames and messages that are read before the lock is released.
const BATCH: usize = 64;

const CLOSED: Error = Error::Closed("the channel is closed");

/// The state that all handles of the calls of one channel share.
pub(crate) struct Core {
    /// `None` only for a moment in a forked child. See [`ProcessMutex`].
    inner: ProcessMutex<Option<Inner>>,
    pub(crate) known: KnownPeer,
    pub(crate) tokens: Tokens,
    pub(super) shared: Arc<Shared>,
}

/// The state that one lock guards.
pub(crate) struct Inner {
    pub(crate) state: State,
    pub(crate) sender: Sender,
    /// Bytes of the front of the queue that are in the ring.
    pub(crate) written: usize,
    /// `None` while a driver has it.
    pub(crate) receiver: Option<Receiver>,
    /// Wakes the driver, which sets this before it spins or sleeps and clears it afterwards.
    pub(crate) driver: Option<Waker>,
    /// The driver waits for room as well.
    pub(crate) waits_for_room: bool,
    /// No handle is left.
    pub(crate) is_abandoned: bool,
}

impl Core {
    pub(crate) fn new(channel: Channel) -> Result<Self> {
        let (mut sender, mut receiver) = (channel.sender, channel.receiver);
        // Fails if a message or a reservation is under way.
        sender.writing()?;
        receiver.accept_calls();
        let state = State::new(sender.max_message_size())?;
        let shared = Arc::clone(&sender.shared);
        let owner = shared.resources.owner();
        let inner = Inner {
            state,
            sender,
            written: 0,
            receiver: Some(receiver),
            driver: None,
            waits_for_room: false,
            is_abandoned: false,
        };
        Ok(Self {
            inner: ProcessMutex::new(Some(inner), owner),
            known: channel.known,
            tokens: channel.tokens,
            shared,
        })
    }

    /// Queues the answer to a request, and reports the error of its handler. Returns the answer's place, unless it is no longer needed.
    pub(crate) fn answer(&self, id: u64, outcome: Result<&[u8], RemoteError>) -> Result<Option<Place>> {
        // The caller reports its own deadline.
        let failed = outcome.as_ref().err().filter(|error| !error.is_late()).cloned();
        let mut inner = self.lock()?;
        let Some(place) = inner.state.answer(id, outcome) else {
            return Ok(None);
        };
        if let Some(error) = failed {
            // Before the flush, with which the peer has the error. A tracing subscriber runs without the lock.
            drop(inner);
            let trace = &self.shared.trace;
            trace.call_failed(error.name(), error.code(), error.message());
            inner = self.lock()?;
        }
        // A local error leaves the answer in the queue.
        let _ = inner.flush();
        Ok(Some(place))
    }

    /// Fails in a forked child.
    pub(crate) fn lock(&self) -> Result<Locked<'_>> {
        let guard = self.inner.lock()?;
        defer_reports();
        Ok(Locked(Some(guard)))
    }
}

/// The locked state. Dropping it releases the lock, and then reports the channel's end, calls the wakers, and drops those that were
/// replaced.
pub(crate) struct Locked<'a>(Option<MutexGuard<'a, Option<Inner>>>);

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        let inner = self.0.as_ref().and_then(|guard| guard.as_ref());
        inner.expect("it stays until the lock is dropped")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        let inner = self.0.as_mut().and_then(|guard| guard.as_mut());
        inner.expect("it stays until the lock is dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let must_nudge = !self.state.woken.is_empty() || self.state.nudged;
        let driver = if must_nudge { self.driver.take() } else { None };
        let State { woken, discarded, .. } = &mut self.state;
        let (woken, discarded) = (mem::take(woken), mem::take(discarded));
        self.0 = None;
        report_deferred();
        drop(discarded);
        woken.into_iter().chain(driver).for_each(Waker::wake);
    }
}

impl Inner {
    /// Starts a call, and sends its request if there is room.
    pub(crate) fn start(&mut self, request: &[u8], deadline: Option<Instant>) -> Result<Ticket> {
        let ticket = self.state.start(request, deadline)?;
        let flushed = self.flush();
        flushed.inspect_err(|_| self.state.abandon(ticket))?;
        Ok(ticket)
    }

    /// Cancels a call.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        self.state.abandon(ticket);
        // A local error leaves the cancellation in the queue.
        let _ = self.flush();
    }

    /// Removes a message whose sender has stopped waiting, unless it has started to enter the ring.
    pub(crate) fn retract(&mut self, place: Place) {
        self.state.retract(place, self.written > 0);
    }

    /// Puts the queue into the ring, as far as there is room. Fails only for local reasons.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some((bytes, tag)) = self.state.front(self.written == 0) {
            match self.sender.send_part_tagged(bytes, tag, self.written) {
                Ok(Progress::Whole) => {
                    self.written = 0;
                    self.state.pop_flushed();
                }
                Ok(Progress::Part(written)) => {
                    self.written = written;
                    if !self.waits_for_room {
                        self.state.nudged = true;
                    }
                    break;
                }
                Err(error) if error.is_local() => return Err(error),
                // Answers that the peer left behind are still read.
                Err(error) => {
                    self.written = 0;
                    self.state.stop_sending(error);
                }
            }
        }
        Ok(())
    }

    /// Bytes of the front of the queue, for which there was no room.
    pub(crate) fn unsent(&mut self) -> Option<usize> {
        self.state.front(false).map(|(bytes, _)| bytes.len())
    }

    /// Whether the driver must read.
    pub(crate) fn must_read(&self, receiver: &Receiver) -> bool {
        // The leftovers of a peer that is gone are finite.
        let is_full = self.state.is_full() && receiver.close_reason().is_none();
        !is_full && !self.state.has_ended()
    }

    /// Reads frames and messages that are there. Returns whether anything has changed. Fails only for local reasons.
    pub(crate) fn read(&mut self, receiver: &mut Receiver) -> Result<bool> {
        // All answers may be there, and the one that has to be read now may be the last.
        let max = if self.state.awaits_read() {
            MAX_REQUESTS
        } else {
            BATCH
        };
        let read = self.try_read(receiver, max);
        self.state.on_read();
        match read {
            Err(error) if !error.is_local() => {
                match self.sender.close_reason() {
                    Some(CloseReason::Closed) if matches!(error, Error::Closed(_)) => self.state.close(error),
                    _ => self.state.finish(error),
                }
                Ok(true)
            }
            other => other,
        }
    }

    fn try_read(&mut self, receiver: &mut Receiver, max: usize) -> Result<bool> {
        let mut count = 0;
        while count < max && self.must_read(receiver) {
            let Some(tag) = receiver.next_tag()? else { break };
            let Some(bytes) = receiver.try_receive_vec()? else {
                break;
            };
            if tag.is_call() {
                let result = self.state.on_frame(bytes);
                receiver.judge(result)?;
            } else {
                self.state.push_message(bytes);
            }
            count += 1;
        }
        if count == 0 && self.must_read(receiver) && receiver.is_ended()? {
            self.state.peer_ended();
            count = 1;
        }
        Ok(self.end_handlers() || count > 0)
    }

    /// Cancels the requests of a peer that has ended its sending, once the channel has ended too. Returns whether it has.
    fn end_handlers(&mut self) -> bool {
        let shared = &self.sender.shared;
        if !self.state.serves_after_end() {
            return false;
        }
        match (shared.close_reason(), shared.check()) {
            (None, _) => return false,
            // A peer that closes or exits after the end of its sending does so in order.
            (Some(CloseReason::Closed), _) | (_, Ok(())) => self.state.drop_requests(),
            (Some(_), Err(error)) => self.state.finish_after_end(error),
        }
        true
    }

    /// Ends the sending.
    pub(crate) fn end(&mut self) {
        self.sender.end();
        self.state
            .stop_sending(Error::Closed("this side has ended its sending"));
    }

    /// Closes the channel. The peer must not see a clean end if frames are unsent.
    pub(crate) fn close(&mut self) {
        if self.state.has_unsent() {
            self.sender.destroy();
        } else {
            self.sender.close();
        }
        self.state.close(CLOSED);
    }

    pub(crate) fn destroy(&mut self) {
        self.sender.destroy();
        self.state.close(CLOSED);
    }

    /// Ends the channel because this side can no longer drive it.
    #[cfg(feature = "tokio")]
    pub(crate) fn fail(&mut self, error: Error) {
        self.sender.destroy();
        self.state.finish(error);
    }
}
