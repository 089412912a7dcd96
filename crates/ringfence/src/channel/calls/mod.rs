//! Calls with deadlines, in both directions of one channel, for threads.
//!
//! `envelope` is a frame in bytes, with the errors that travel. `state` is the state machine of both sides, which makes
//! no system call. `driver` connects it with the rings. This file waits in threads; `tokio/calls.rs` waits in tasks.

pub(crate) mod driver;
pub(crate) mod envelope;
pub(crate) mod state;

use std::{
    cell::OnceCell,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use nix::poll::PollFlags;

use crate::{
    channel::Channel,
    channel::calls::driver::{Core, Locked},
    channel::calls::envelope::{CallError, RemoteError},
    channel::calls::state::{CallEvent, Place, Request, State, Ticket, WaitKey},
    channel::receiver::Receiver,
    channel::stats::ChannelStats,
    channel::tokens::Tokens,
    channel::verify::Verifier,
    channel::waiting::SpinThenPark,
    error::{Error, Result},
    evidence::Evidence,
    identity::Identity,
    wait::deadline::{Deadline, Wakeup},
};

impl Channel {
    /// Turns the channel into one for calls, in both directions. It still carries messages: see [`Calls`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a message or a reservation is under way, or if the peer accepts only messages that are too
    /// short for calls. [`Error::NoSpace`] if no descriptor is available. The channel is closed then.
    pub fn into_calls(self) -> Result<Calls> {
        let wakeup = Wakeup::new()?;
        let is_woken = AtomicBool::new(false);
        let driver = Threads {
            waker: Arc::new(DriverWaker { wakeup, is_woken }),
        };
        Ok(Calls::new(Arc::new(Core::new(self)?), driver))
    }
}

/// A channel that carries calls: a request of one side, and the reply of the other side's handler. Both sides may call and
/// serve, any number of calls may be in flight, and replies arrive in any order. The peer may be a Node.js process.
///
/// Clones share one channel, and all methods take `&self`. The channel closes once the last clone is dropped.
///
/// ```no_run
/// use std::time::{Duration, Instant};
///
/// use ringfence::{CallError, ErrorKind, Options, RemoteError, connect};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let calls = connect(&"/run/orders.sock".parse()?, &Options::new())?.into_calls()?;
/// match calls.call_until(b"order 17", Instant::now() + Duration::from_secs(1)) {
///     Ok(reply) => println!("{} bytes", reply.len()),
///     Err(CallError::Remote(error)) => println!("the handler failed: {error}"),
///     Err(CallError::Channel(error)) if error.kind() == ErrorKind::TimedOut => println!("too late"),
///     Err(error) => return Err(error.into()),
/// }
///
/// // The other process:
/// # let calls = connect(&"/run/orders.sock".parse()?, &Options::new())?.into_calls()?;
/// calls.serve(|request, _context| {
///     if request.is_empty() {
///         return Err(RemoteError::new("no order is named").with_code("E_EMPTY"));
///     }
///     Ok(request)
/// })?;
/// # Ok(())
/// # }
/// ```
///
/// # Reading
/// Threads that wait in a method of this type read the ring, one at a time, and wake the others. So frames are handled while at
/// least one thread waits in a call, in [`serve`](Calls::serve) or in [`receive`](Calls::receive), and no thread is started.
///
/// # Messages
/// [`send`](Calls::send) and [`receive`](Calls::receive) exchange messages beside the calls, in order with them. Messages that
/// are read before the program asks for them are kept, up to 1 MiB or 4,096 of them. If more arrive, nothing is read until the
/// program has received some: the calls behind them wait.
///
/// # Bounds
/// A caller has at most 16,384 requests and 16 MiB unanswered. Its further calls wait on its own side. A peer that sends twice as
/// many, or that violates the protocol in another way, ends the channel with [`Error::RingCorrupt`].
pub type Calls = DrivenCalls<Threads>;

/// The calls of a channel, whose ring is read by threads ([`Calls`]) or by tasks ([`tokio::Calls`](crate::tokio::Calls)): use it by these
/// names.
pub struct DrivenCalls<D>(pub(crate) Arc<CallsHandle<D>>);

opaque! { [D] DrivenCalls<D>; }

impl<D> Clone for DrivenCalls<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The state that clones share. Closes the channel when it is dropped.
pub(crate) struct CallsHandle<D> {
    pub(crate) core: Arc<Core>,
    driver: D,
}

impl<D> Drop for CallsHandle<D> {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.core.lock() {
            inner.is_abandoned = true;
            if thread::panicking() {
                inner.destroy();
            } else {
                inner.close();
            }
        }
    }
}

/// The threads that wait for one channel.
pub struct Threads {
    waker: Arc<DriverWaker>,
}

/// Wakes the thread that drives.
struct DriverWaker {
    /// Ends its sleep on the line.
    wakeup: Wakeup,
    /// Ends its spinning, before which the thread clears this.
    is_woken: AtomicBool,
}

impl Wake for DriverWaker {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Relaxed);
        self.wakeup.signal();
    }
}

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn current_thread_waker() -> Waker {
    thread_local! {
        static WAKER: OnceCell<Waker> = const { OnceCell::new() };
    }
    let make = || Waker::from(Arc::new(ThreadWaker(thread::current())));
    // A destructor of a thread may call after the waker of that thread was destroyed.
    WAKER
        .try_with(|waker| waker.get_or_init(make).clone())
        .unwrap_or_else(|_| make())
}

/// A call that was started. Dropping it cancels the call: the handler is notified, and a later reply is dropped.
#[must_use = "dropping a call cancels it"]
pub struct PendingCall {
    threads: Arc<CallsHandle<Threads>>,
    ticket: Ticket,
    deadline: Option<Instant>,
}

opaque! { [] PendingCall; }

impl PendingCall {
    /// Waits for the reply.
    ///
    /// # Errors
    /// As [`Calls::call_until`].
    pub fn wait(self) -> Result<Vec<u8>, CallError> {
        self.threads.block(self.deadline, |state, _, waker| {
            state.poll_call(self.ticket, waker)
        })?
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.threads.core.lock() {
            inner.cancel(self.ticket);
        }
    }
}

/// The request that a handler answers.
pub struct CallContext {
    core: Arc<Core>,
    id: u64,
    deadline: Option<Instant>,
}

opaque! { [] CallContext; }

impl CallContext {
    pub(crate) fn new(core: Arc<Core>, id: u64, deadline: Option<Instant>) -> Self {
        Self { core, id, deadline }
    }

    /// Returns the time by which the caller needs the reply.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns whether the answer is no longer needed: the caller has cancelled the call or has gone, or the deadline has passed. A
    /// handler that runs for long checks this now and then. It does not block.
    pub fn is_cancelled(&self) -> bool {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return true;
        }
        let Ok(mut inner) = self.core.lock() else {
            return true;
        };
        // If no thread waits, no thread has read the cancellation, or has noticed the end of the channel.
        if let Some(mut receiver) = inner.receiver.take() {
            self.core.shared.check_peer();
            // A local error leaves the answer to the cancellation in the queue.
            let _ = inner.read(&mut receiver).and_then(|_| inner.flush());
            inner.receiver = Some(receiver);
        }
        inner.state.is_cancelled(self.id)
    }

    /// Returns the peer, as found by the handshake.
    pub fn peer(&self) -> &Identity {
        &self.core.known.identity
    }
}

impl Calls {
    /// Calls the peer, and waits for the reply without a deadline. A peer that never answers makes this wait until it is gone.
    ///
    /// # Errors
    /// As [`Calls::call_until`].
    pub fn call(&self, request: &[u8]) -> Result<Vec<u8>, CallError> {
        self.start(request, None)?.wait()
    }

    /// Calls the peer, and waits for the reply until a deadline, which the handler can see.
    ///
    /// # Errors
    /// - [`CallError::Remote`] if the handler fails.
    /// - [`Error::TimedOut`] at the deadline. The call is cancelled then.
    /// - [`Error::PeerLost`] if the peer is gone, or has ended its sending.
    /// - [`Error::MessageTooLarge`] if the request and 16 bytes are more than the peer accepts.
    /// - [`Error::Closed`] after this side's end or close, [`Error::RingCorrupt`], [`Error::ObjectExposed`].
    /// - [`Error::NoSpace`] if there is no memory for a message or no descriptor to wait with.
    pub fn call_until(&self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, CallError> {
        self.start(request, Some(deadline))?.wait()
    }

    /// Starts a call, and does not wait, so that one thread can have many calls in flight. The request is sent now if there is
    /// room, and otherwise while a thread waits.
    ///
    /// # Errors
    /// As [`Calls::call_until`], for the request.
    pub fn start(&self, request: &[u8], deadline: Option<Instant>) -> Result<PendingCall> {
        Ok(PendingCall {
            ticket: self.0.core.lock()?.start(request, deadline)?,
            threads: Arc::clone(&self.0),
            deadline,
        })
    }

    /// Answers the peer's calls on this thread, one after the other, until the peer has ended its sending or this side closes the
    /// channel. Several threads may serve one channel: then as many handlers run at a time. Requests that no thread serves wait.
    ///
    /// The caller gets an error as a [`RemoteError`]. A handler that panics is an error, too, and the next request is served. A
    /// request whose deadline has passed before its turn is answered without the handler, and one whose handler returns after the
    /// deadline as late.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if the peer was killed or has crashed, or the error that has ended the channel. [`Error::NoSpace`] if
    /// there is no memory for a message or no descriptor to wait with: the channel stays open.
    pub fn serve<B: AsRef<[u8]>, E: Into<RemoteError>>(
        &self,
        mut handler: impl FnMut(Vec<u8>, &CallContext) -> Result<B, E>,
    ) -> Result<()> {
        while let Some(Request { id, body, due }) = self.0.block(None, State::poll_request)?? {
            let context = CallContext::new(Arc::clone(&self.0.core), id, due);
            let is_late = || due.is_some_and(|due| due <= Instant::now());
            if is_late() {
                self.answer(id, Err(timeout_error()))?;
                continue;
            }
            // The conversions and the destructors of the outcome may panic as well.
            let answered = catch_unwind(AssertUnwindSafe(|| {
                let outcome = handler(body, &context).map_err(E::into);
                let answer = outcome.as_ref().map(AsRef::as_ref).map_err(RemoteError::clone);
                // The caller accepts a reply that is in the ring at its deadline, and this one may arrive before the caller checks.
                self.answer(id, if is_late() { Err(timeout_error()) } else { answer })
            }));
            // Does nothing if the panic followed the answer.
            answered.unwrap_or_else(|_| self.answer(id, Err(panic_error())))?;
        }
        Ok(())
    }

    /// Sends the answer. Returns once it is in the ring, or never will be.
    fn answer(&self, id: u64, outcome: Result<&[u8], RemoteError>) -> Result<()> {
        let place = self.0.core.answer(id, outcome)?;
        let Some(place) = place else { return Ok(()) };
        match self.wait_flushed(place)? {
            Err(error) if error.is_local() => Err(error),
            // The next request reports the end of the channel.
            _ => Ok(()),
        }
    }

    /// Waits until everything up to this place is in the ring. The inner error is that of the sending.
    fn wait_flushed(&self, place: Place) -> Result<Result<()>> {
        self.0
            .block(None, |state, wait, waker| state.poll_flushed(place, wait, waker))
    }

    /// Sends a message beside the calls, and waits until it is in the ring.
    ///
    /// # Errors
    /// As [`Sender::send`](crate::Sender::send). If the waiting fails ([`Error::NoSpace`]), the message is not sent, unless it has started
    /// to enter the ring.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        let place = self.0.core.lock()?.state.send(message)?;
        let sent = self.wait_flushed(place);
        if sent.is_err() {
            self.0.core.lock()?.retract(place);
        }
        sent?
    }

    /// Waits for the next message beside the calls. `None`: the peer has ended its sending.
    ///
    /// # Errors
    /// As [`Receiver::receive_vec`](crate::Receiver::receive_vec).
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        self.0.block(None, State::poll_message)?
    }

    /// As [`Calls::receive`], with a deadline.
    ///
    /// # Errors
    /// As [`Calls::receive`], and [`Error::TimedOut`] at the deadline.
    pub fn receive_until(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        self.0.block(Some(deadline), State::poll_message)?
    }

    /// Ends the sending, after everything that was queued before. Then this side can neither call nor answer, and its pending calls
    /// still get their replies.
    ///
    /// # Errors
    /// As [`Calls::send`].
    pub fn end(&self) -> Result<()> {
        let last = self.0.core.lock()?.state.last_place();
        if let Some(place) = last {
            self.wait_flushed(place)??;
        }
        self.0.core.lock()?.end();
        Ok(())
    }
}

impl<D> DrivenCalls<D> {
    pub(crate) fn new(core: Arc<Core>, driver: D) -> Self {
        Self(Arc::new(CallsHandle { core, driver }))
    }

    /// Closes the channel: the peer reads what is in the ring, and then a clean end. Pending calls fail with [`Error::Closed`].
    pub fn close(&self) {
        if let Ok(mut inner) = self.0.core.lock() {
            inner.close();
        }
    }

    /// Closes the channel at once: the peer's calls fail with [`Error::PeerLost`].
    pub fn destroy(&self) {
        if let Ok(mut inner) = self.0.core.lock() {
            inner.destroy();
        }
    }

    /// Returns the peer, as found by the handshake.
    pub fn peer(&self) -> &Identity {
        &self.0.core.known.identity
    }

    /// Returns every check that the handshake made, in order.
    pub fn evidence(&self) -> &[Evidence] {
        &self.0.core.known.evidence
    }

    /// Returns a handle that checks the peer again.
    pub fn verifier(&self) -> Verifier {
        self.0.core.known.verifier.clone()
    }

    /// Returns a handle that exchanges tokens with the peer.
    pub fn tokens(&self) -> Tokens {
        self.0.core.tokens.clone()
    }

    /// Returns the number of calls of this side that wait for their outcome.
    pub fn in_flight(&self) -> usize {
        self.0.core.lock().map_or(0, |inner| inner.state.in_flight)
    }

    /// Returns the number of replies that arrived after their call was cancelled, and were dropped.
    pub fn late_replies(&self) -> u64 {
        self.0.core.lock().map_or(0, |inner| inner.state.late_replies)
    }

    /// Returns the channel's statistics. Frames of calls count as messages.
    pub fn stats(&self) -> ChannelStats {
        let Core { shared, .. } = &*self.0.core;
        let stats = |mut inner: Locked<'_>| inner.sender.stats();
        self.0
            .core
            .lock()
            .map_or_else(|_| shared.counters.snapshot(), stats)
    }
}

impl CallsHandle<Threads> {
    /// Waits until `poll` is ready. Drives the channel unless another thread does.
    fn block<T>(
        &self,
        deadline: Option<Instant>,
        mut poll: impl FnMut(&mut State, &mut Option<WaitKey>, &Waker) -> Poll<T>,
    ) -> Result<T> {
        let waker = current_thread_waker();
        let mut wait = None;
        let mut last_read = None;
        let mut inner = self.core.lock()?;
        let outcome = loop {
            let flushed = inner.flush();
            if inner.receiver.is_some() {
                // The following poll sees all earlier changes.
                inner.state.take_nudge();
            }
            let polled = match flushed {
                Ok(()) => poll(&mut inner.state, &mut wait, &waker).map(Ok),
                Err(error) => Poll::Ready(Err(error)),
            };
            let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            match polled {
                Poll::Ready(outcome) => break outcome,
                // The outcome may have arrived in time, and nothing has read it.
                Poll::Pending if is_late && inner.state.poll_last_read(&mut last_read, &waker).is_ready() => {
                    break Err(Error::TimedOut);
                }
                Poll::Pending => {}
            }
            if let Some(mut receiver) = inner.receiver.take() {
                drop(inner);
                let driven = self.drive(&mut receiver, deadline);
                inner = self.core.lock()?;
                inner.driver = None;
                inner.receiver = Some(receiver);
                if let Err(error) = driven {
                    break Err(error);
                }
            } else {
                let mut turn = None;
                inner.state.register(CallEvent::Drive, &mut turn, &waker);
                drop(inner);
                // The driver soon wakes a thread that is late.
                park(deadline.filter(|_| !is_late));
                inner = self.core.lock()?;
                inner.state.remove_wait(turn);
            }
        };
        inner.state.remove_wait(wait);
        inner.state.remove_wait(last_read);
        // This thread stops waiting: another one drives from now on.
        if inner.receiver.is_some() {
            inner.state.wake_next_driver();
        }
        outcome
    }

    /// Reads what is there, or sleeps once. Fails only for local reasons.
    fn drive(&self, receiver: &mut Receiver, deadline: Option<Instant>) -> Result<()> {
        let mut inner = self.core.lock()?;
        // Another thread may have changed the state since the last poll.
        if inner.read(receiver)? || inner.state.take_nudge() {
            return Ok(());
        }
        let reads = inner.must_read(receiver);
        let spins = reads && inner.unsent().is_none() && !self.core.shared.busy_poll.is_zero();
        if spins {
            self.driver.waker.is_woken.store(false, Ordering::Relaxed);
            inner.driver = Some(Waker::from(Arc::clone(&self.driver.waker)));
        }
        drop(inner);
        if spins {
            let is_woken = || self.driver.waker.is_woken.load(Ordering::Relaxed);
            // The end of the channel is found by the next read.
            if receiver.spin_until((), deadline, is_woken).unwrap_or(true) {
                return Ok(());
            }
        }
        if reads {
            match receiver.arm() {
                Ok(true) => {}
                Err(error) if error.is_local() => return Err(error),
                _ => return Ok(()),
            }
        }
        let slept = self.sleep(receiver, reads, deadline);
        receiver.disarm();
        slept
    }

    /// Sleeps until the line is readable, another thread has changed the state, or the deadline has passed.
    fn sleep(&self, receiver: &mut Receiver, reads: bool, deadline: Option<Instant>) -> Result<()> {
        let mut inner = self.core.lock()?;
        inner.waits_for_room = true;
        let flushed = inner.flush();
        // Unless this thread sleeps, the next one that finds no room must wake it.
        inner.waits_for_room = false;
        flushed?;
        if inner.state.take_nudge() {
            return Ok(());
        }
        let unsent = inner.unsent();
        if let Some(size) = unsent {
            match inner.sender.arm(size) {
                Ok(true) => inner.waits_for_room = true,
                Err(error) if error.is_local() => return Err(error),
                _ => return Ok(()),
            }
        }
        inner.driver = Some(Waker::from(Arc::clone(&self.driver.waker)));
        let awaits_end = inner.state.awaits_end();
        drop(inner);
        let waited = self.wait(receiver, reads || unsent.is_some(), awaits_end, deadline);
        let mut inner = self.core.lock()?;
        inner.driver = None;
        inner.waits_for_room = false;
        if unsent.is_some() {
            inner.sender.disarm();
        }
        drop(inner);
        self.driver.waker.wakeup.clear();
        if reads || unsent.is_some() {
            // The next read reports an error again.
            let _ = receiver.poll_line();
        } else if awaits_end {
            self.core.shared.check_peer();
        }
        waited
    }

    fn wait(
        &self,
        receiver: &Receiver,
        line: bool,
        awaits_end: bool,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let ends = self.core.shared.doorbell.ends();
        let mut watched = vec![(self.driver.waker.wakeup.as_fd(), PollFlags::POLLIN)];
        if line {
            watched.push((receiver.as_fd(), PollFlags::POLLIN));
        } else if awaits_end {
            watched.extend(ends.watched());
        }
        Deadline::endless(Vec::new(), Duration::ZERO)
            .until(deadline)
            .wait(&watched)
            .map(drop)
    }
}

/// Sleeps until this thread is woken or the deadline has passed. The caller checks its condition and its clock afterwards.
fn park(deadline: Option<Instant>) {
    match deadline {
        None => thread::park(),
        Some(deadline) => thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
    }
}

pub(crate) fn timeout_error() -> RemoteError {
    RemoteError::from(Error::TimedOut)
}

pub(crate) fn panic_error() -> RemoteError {
    RemoteError::new("the handler has panicked")
}

#[cfg(test)]
mod tests;
