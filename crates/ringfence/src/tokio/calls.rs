//! Calls in both directions of one channel, for tasks.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinSet, coop},
    time::{Sleep, sleep_until},
};
use tower_service::Service;

use crate::{
    channel::calls::driver::{Core, Inner},
    channel::calls::envelope::{CallError, RemoteError},
    channel::calls::state::{Place, Request, State, Ticket, WaitKey},
    channel::calls::{self, CallContext, CallsHandle, panic_error, timeout_error},
    channel::receiver::Receiver,
    error::{Error, Result},
    tokio::channel::Channel,
    tokio::line::{Half, Line},
};

impl Channel {
    /// Turns the channel into one for calls, in both directions. It still carries messages: see [`Calls`]. A task of the runtime
    /// reads the ring from now on.
    ///
    /// # Errors
    /// As [`crate::Channel::into_calls`].
    ///
    /// # Panics
    /// See [the module](crate::tokio#panics).
    pub fn into_calls(self) -> Result<Calls> {
        let Self { line, inner: channel } = self;
        let core = Arc::new(Core::new(channel)?);
        let receiver = core.lock()?.receiver.take().expect("no driver has it");
        tokio::spawn(Driver {
            core: Arc::clone(&core),
            line,
            receiver,
        });
        Ok(Calls::new(core, Tasks))
    }
}

/// A channel that carries calls, for tasks: a request of one side, and the reply of the other side's handler. See
/// [`crate::Calls`], also for the bounds and for messages beside the calls.
///
/// Clones share one channel, which closes once the last clone and the last [`PendingCall`] are dropped. If something that was
/// queued is lost then, the peer finds that this side is lost: [`Calls::end`] waits until all is sent.
///
/// It is a [`Service`] of tower: `Timeout`, `ConcurrencyLimit` and other layers can be put around it. A dropped call is cancelled
/// at the peer.
///
/// ```no_run
/// use std::time::{Duration, Instant};
///
/// use ringfence::{Options, RemoteError, tokio::connect};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let calls = connect(&"/run/orders.sock".parse()?, &Options::new()).await?.into_calls()?;
/// let reply = calls.call_until(b"order 17", Instant::now() + Duration::from_secs(1)).await?;
/// println!("{} bytes", reply.len());
///
/// // The other process, with at most 100 handlers at a time:
/// # let calls = connect(&"/run/orders.sock".parse()?, &Options::new()).await?.into_calls()?;
/// calls.serve(100, |request, _context| async move { Ok::<_, RemoteError>(request) }).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// A call with a deadline panics in a runtime without a clock (`enable_time`), as Tokio's own timers do.
pub type Calls = calls::DrivenCalls<Tasks>;

/// A task reads the ring.
#[derive(Debug)]
pub struct Tasks;

/// The task that reads the ring, and sends frames that had no room earlier.
struct Driver {
    core: Arc<Core>,
    line: Arc<Line>,
    receiver: Receiver,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { core, line, receiver } = &mut *self;
        loop {
            let turn = ready!(coop::poll_proceed(cx));
            let Ok(mut inner) = core.lock() else {
                return Poll::Ready(());
            };
            if inner.is_abandoned {
                return Poll::Ready(());
            }
            inner.driver = None;
            match turn_of(&mut inner, line, receiver, cx) {
                Ok(true) => turn.made_progress(),
                Ok(false) => {
                    inner.waits_for_room = inner.unsent().is_some();
                    inner.driver = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Err(error) => {
                    inner.fail(error);
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The runtime may end while calls are pending.
        if let Ok(mut inner) = self.core.lock()
            && !inner.is_abandoned
            && !inner.state.has_ended()
        {
            inner.fail(Error::unsupported("a runtime of Tokio, which has ended"));
        }
    }
}

/// Sends and reads as much as possible. `false`: the task must wait. Fails only for local reasons.
fn turn_of(inner: &mut Inner, line: &Line, receiver: &mut Receiver, cx: &Context<'_>) -> Result<bool> {
    inner.waits_for_room = true;
    inner.flush()?;
    if inner.read(receiver)? || inner.state.take_nudge() {
        return Ok(true);
    }
    let must_read = inner.must_read(receiver);
    let room = match inner.unsent() {
        Some(size) => line.poll_ready(Half::Sender, &mut inner.sender, cx, size),
        None => Poll::Pending,
    };
    let polled = match room {
        Poll::Pending if must_read => line.poll_ready(Half::Receiver, receiver, cx, ()),
        // The program must receive messages or answer requests first. The peer may die until then.
        Poll::Pending if inner.state.awaits_end() => line.poll_line(Half::Receiver, receiver, cx),
        ready => ready,
    };
    match polled {
        Poll::Ready(Err(error)) if error.is_local() => Err(error),
        polled => Ok(polled.is_ready()),
    }
}

/// A request, and the time by which its caller needs the reply: the request of the [`Service`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRequest {
    /// The bytes that the handler gets.
    pub body: Vec<u8>,
    /// The deadline of the call, which the handler can see.
    pub deadline: Option<Instant>,
}

impl<B: Into<Vec<u8>>> From<B> for CallRequest {
    fn from(body: B) -> Self {
        Self {
            body: body.into(),
            deadline: None,
        }
    }
}

/// A call that was started: a future of the reply. Dropping it cancels the call.
#[must_use = "dropping a call cancels it"]
pub struct PendingCall {
    handle: Arc<CallsHandle<Tasks>>,
    /// The error of a call that could not be started. It is returned once.
    ticket: Result<Ticket, Option<Error>>,
    late: Option<Pin<Box<Sleep>>>,
    /// Set after the deadline.
    last_read: Option<WaitKey>,
}

opaque! { [] PendingCall; }

impl Future for PendingCall {
    type Output = Result<Vec<u8>, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let ticket = match &mut this.ticket {
            Ok(ticket) => *ticket,
            Err(error) => {
                let again = || Error::invalid("the outcome of this call was taken before");
                return Poll::Ready(Err(error.take().unwrap_or_else(again).into()));
            }
        };
        let turn = ready!(coop::poll_proceed(cx));
        let mut polled = this.handle.core.lock()?.state.poll_call(ticket, cx.waker());
        if polled.is_pending() && is_over(this.late.as_mut(), cx) {
            let mut inner = this.handle.core.lock()?;
            if inner
                .state
                .poll_last_read(&mut this.last_read, cx.waker())
                .is_ready()
            {
                // The reply may have arrived in time, and may have been read since.
                polled = inner.state.poll_call(ticket, cx.waker());
                if polled.is_pending() {
                    // A later drop finds nothing to cancel.
                    inner.cancel(ticket);
                    this.ticket = Err(None);
                    polled = Poll::Ready(Err(Error::TimedOut.into()));
                }
            }
        }
        if polled.is_ready() {
            turn.made_progress();
        }
        polled
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if let Ok(ticket) = self.ticket
            && let Ok(mut inner) = self.handle.core.lock()
        {
            inner.state.remove_wait(self.last_read);
            inner.cancel(ticket);
        }
    }
}

fn is_over(timer: Option<&mut Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> bool {
    timer.is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
}

fn timer(deadline: Option<Instant>) -> Option<Pin<Box<Sleep>>> {
    // tokio rounds up to milliseconds, and panics if the clock has no such instant.
    let deadline = deadline.filter(|deadline| deadline.checked_add(Duration::from_millis(1)).is_some());
    deadline.map(|deadline| Box::pin(sleep_until(deadline.into())))
}

impl Calls {
    /// Calls the peer, and waits for the reply without a deadline. Dropping the future cancels the call.
    ///
    /// # Errors
    /// As [`crate::Calls::call_until`].
    pub async fn call(&self, request: &[u8]) -> Result<Vec<u8>, CallError> {
        self.start(request, None).await
    }

    /// Calls the peer, and waits for the reply until a deadline, which the handler can see. Dropping the future cancels the call.
    ///
    /// # Errors
    /// As [`crate::Calls::call_until`].
    pub async fn call_until(&self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, CallError> {
        self.start(request, Some(deadline)).await
    }

    /// Starts a call. The request is sent now if there is room, and otherwise by the task that reads the ring. An error is returned
    /// by the future.
    pub fn start(&self, request: &[u8], deadline: Option<Instant>) -> PendingCall {
        let inner = self.0.core.lock();
        let started = inner.and_then(|mut inner| inner.start(request, deadline));
        PendingCall {
            handle: Arc::clone(&self.0),
            ticket: started.map_err(Some),
            late: timer(deadline),
            last_read: None,
        }
    }

    /// Answers the peer's calls, each on a task of its own and at most `concurrency` at a time, until the peer has ended its sending
    /// or this side closes the channel. Further requests wait.
    ///
    /// A handler's error reaches the caller as a [`RemoteError`], and so does a panic. When the caller cancels the call, or its
    /// deadline passes, the future of the handler is dropped. If the future of `serve` is dropped, the calls that it has not answered
    /// fail at the peer.
    ///
    /// # Errors
    /// As [`crate::Calls::serve`].
    pub async fn serve<F, B, E>(
        &self,
        concurrency: usize,
        handler: impl Fn(Vec<u8>, CallContext) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<B, E>> + Send + 'static,
        B: AsRef<[u8]> + 'static,
        E: Into<RemoteError> + 'static,
    {
        let core = &self.0.core;
        let mut running = JoinSet::new();
        while let Some(Request { id, body, due }) = wait_for(core, State::poll_request).await? {
            let unanswered = Unanswered {
                core: Arc::clone(core),
                id,
            };
            if due.is_some_and(|due| due <= Instant::now()) {
                core.answer(id, Err(timeout_error()))?;
                continue;
            }
            let context = CallContext::new(Arc::clone(core), id, due);
            match catch_unwind(AssertUnwindSafe(|| handler(body, context))) {
                Ok(future) => drop(running.spawn(answer(unanswered, due, future))),
                Err(_) => {
                    core.answer(id, Err(panic_error()))?;
                }
            }
            while running.try_join_next().is_some() {}
            while running.len() >= concurrency.max(1) {
                running.join_next().await;
            }
        }
        Ok(())
    }

    /// Sends a message beside the calls, and waits until it is in the ring. If the future is dropped, the message is not sent, unless
    /// it has started to enter the ring.
    ///
    /// # Errors
    /// As [`crate::Sender::send`].
    pub async fn send(&self, message: &[u8]) -> Result<()> {
        let core = &self.0.core;
        let place = {
            let mut inner = core.lock()?;
            let place = inner.state.send(message)?;
            inner.flush()?;
            place
        };
        let waiting = WaitingMessage(core, place);
        let sent = flushed(core, place).await;
        std::mem::forget(waiting);
        sent
    }

    /// Waits for the next message beside the calls. `None`: the peer has ended its sending. Cancel safe.
    ///
    /// # Errors
    /// As [`crate::Receiver::receive_vec`].
    pub async fn receive(&self) -> Result<Option<Vec<u8>>> {
        wait_for(&self.0.core, State::poll_message).await
    }

    /// Ends the sending, after everything that was queued before. See [`crate::Calls::end`]. Cancel safe.
    ///
    /// # Errors
    /// As [`crate::Sender::send`].
    pub async fn end(&self) -> Result<()> {
        let last = self.0.core.lock()?.state.last_place();
        if let Some(place) = last {
            flushed(&self.0.core, place).await?;
        }
        self.0.core.lock()?.end();
        Ok(())
    }
}

impl<R: Into<CallRequest>> Service<R> for Calls {
    type Response = Vec<u8>;
    type Error = CallError;
    type Future = PendingCall;

    /// Ready while calls can be started. Calls beyond the channel's bounds wait inside.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(self.0.core.lock()?.state.check_calling().map_err(CallError::from))
    }

    fn call(&mut self, request: R) -> PendingCall {
        let CallRequest { body, deadline } = request.into();
        self.start(&body, deadline)
    }
}

/// A message that waits for room.
struct WaitingMessage<'a>(&'a Core, Place);

impl Drop for WaitingMessage<'_> {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.0.lock() {
            inner.retract(self.1);
        }
    }
}

/// Waits until everything up to this place is in the ring.
async fn flushed(core: &Core, place: Place) -> Result<()> {
    wait_for(core, |state, wait, waker| state.poll_flushed(place, wait, waker)).await
}

/// A wait whose waker may be registered.
struct RegisteredWait<'a>(&'a Core, Option<WaitKey>);

impl Drop for RegisteredWait<'_> {
    fn drop(&mut self) {
        if self.1.is_some()
            && let Ok(mut inner) = self.0.lock()
        {
            inner.state.remove_wait(self.1);
        }
    }
}

/// Waits until `poll` is ready. A task that never has to wait still yields to others now and then.
async fn wait_for<T>(
    core: &Core,
    mut poll: impl FnMut(&mut State, &mut Option<WaitKey>, &Waker) -> Poll<Result<T>>,
) -> Result<T> {
    let mut wait = RegisteredWait(core, None);
    poll_fn(|cx| {
        let turn = ready!(coop::poll_proceed(cx));
        let polled = poll(&mut core.lock()?.state, &mut wait.1, cx.waker());
        if polled.is_ready() {
            turn.made_progress();
        }
        polled
    })
    .await
}

/// A request that must be answered.
struct Unanswered {
    core: Arc<Core>,
    id: u64,
}

impl Drop for Unanswered {
    /// Does nothing if the request was answered.
    fn drop(&mut self) {
        let error = if thread::panicking() {
            panic_error()
        } else {
            RemoteError::new("the server has stopped before it answered")
        };
        let _ = self.core.answer(self.id, Err(error));
    }
}

/// Runs a handler, and sends the answer. Returns once the answer is in the ring, or never will be.
async fn answer<B: AsRef<[u8]>, E: Into<RemoteError>>(
    unanswered: Unanswered,
    due: Option<Instant>,
    handler: impl Future<Output = Result<B, E>>,
) {
    let mut late = timer(due);
    let place = {
        let mut handler = pin!(handler);
        let outcome = poll_fn(|cx| {
            let is_cancelled = match unanswered.core.lock() {
                Ok(mut inner) => inner.state.poll_cancelled(unanswered.id, cx.waker()).is_ready(),
                Err(_) => true,
            };
            if is_cancelled {
                return Poll::Ready(None);
            }
            if is_over(late.as_mut(), cx) {
                return Poll::Ready(Some(Err(timeout_error())));
            }
            handler
                .as_mut()
                .poll(cx)
                .map(|outcome| Some(outcome.map_err(E::into)))
        })
        .await;
        let Some(outcome) = outcome else { return };
        let answer = outcome.as_ref().map(AsRef::as_ref).map_err(RemoteError::clone);
        unanswered.core.answer(unanswered.id, answer)
    };
    if let Ok(Some(place)) = place {
        // The next request reports the end of the channel.
        let _ = flushed(&unanswered.core, place).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        runtime::Builder,
        sync::mpsc,
        task::{spawn_blocking, yield_now},
        time::timeout,
    };

    use super::*;
    use crate::{error::ErrorKind, options::Options, testing::parts};

    const SOON: Duration = Duration::from_secs(60);

    /// Runs a test with both ends of a channel in one runtime.
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Calls, Calls) -> F) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (one, other) = parts::pair(4096, 20_000, &Options::new());
            let [one, other] = [one, other].map(|end| Channel::new(end).unwrap().into_calls().unwrap());
            test(one, other).await;
        });
    }

    async fn double(request: Vec<u8>, _context: CallContext) -> Result<Vec<u8>, RemoteError> {
        match &request[..] {
            b"fail" => Err(RemoteError::new("not today").with_code("E_NO")),
            b"panic" => panic!("expected by the test"),
            _ => Ok([&request[..], &request[..]].concat()),
        }
    }

    fn kind_of(outcome: Result<Vec<u8>, CallError>) -> ErrorKind {
        match outcome.unwrap_err() {
            CallError::Channel(error) => error.kind(),
            CallError::Remote(error) => panic!("{error}"),
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn thousands_of_calls_in_flight_alongside_messages() {
        run(|one, other| async move {
            let serving = [&one, &other].map(|calls| {
                let calls = calls.clone();
                tokio::spawn(async move { calls.serve(100, double).await })
            });
            let calls: Vec<_> = (0..20_000_u32)
                .map(|number| {
                    let side = if number % 2 == 0 { &one } else { &other };
                    side.start(&number.to_le_bytes(), None)
                })
                .collect();
            assert_eq!(one.in_flight() + other.in_flight(), 20_000);
            one.send(b"beside them").await.unwrap();
            for (number, call) in (0..20_000_u32).zip(calls) {
                let number = number.to_le_bytes();
                assert_eq!(call.await.unwrap(), [number, number].concat());
            }
            for size in [0, 2032, 2033, 4096, 9992 - 8] {
                assert_eq!(one.call(&vec![1; size]).await.unwrap(), vec![1; 2 * size]);
            }
            assert_eq!(
                other.receive().await.unwrap().as_deref(),
                Some(&b"beside them"[..])
            );
            let failed = one.call(b"fail").await.unwrap_err();
            assert_eq!(failed.remote().and_then(RemoteError::code), Some("E_NO"));
            let failed = one.call(b"panic").await.unwrap_err();
            assert_eq!(failed.to_string(), "Error: the handler has panicked");
            one.end().await.unwrap();
            other.end().await.unwrap();
            for serving in serving {
                serving.await.unwrap().unwrap();
            }
            assert_eq!(other.receive().await.unwrap(), None);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn dropped_or_late_call_drops_its_handlers_future() {
        struct Dropped(mpsc::UnboundedSender<bool>, bool);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.send(self.1);
            }
        }
        run(|one, other| async move {
            let (dropped, mut was_dropped) = mpsc::unbounded_channel();
            let (started, mut was_started) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                let handler = |request: Vec<u8>, context: CallContext| {
                    let guard = Dropped(dropped.clone(), context.deadline().is_some());
                    started.send(()).unwrap();
                    async move {
                        if request == b"hang" {
                            pending::<()>().await;
                        }
                        drop(guard);
                        Ok::<_, RemoteError>(request)
                    }
                };
                other.serve(2, handler).await
            });
            let call = one.start(b"hang", None);
            was_started.recv().await.unwrap();
            drop(call);
            assert_eq!(was_dropped.recv().await, Some(false));
            let late = one.call_until(b"hang", Instant::now() + Duration::from_millis(20));
            assert_eq!(kind_of(late.await), ErrorKind::TimedOut);
            assert_eq!(was_dropped.recv().await, Some(true));
            assert_eq!(one.call(b"echo").await.unwrap(), b"echo");
            assert_eq!(one.in_flight(), 0);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn available_reply_is_returned_at_the_deadline() {
        run_without_a_reader(|one, other| async move {
            let deadline = Instant::now() + Duration::from_millis(50);
            let mut call = pin!(one.start(b"a", Some(deadline)));
            assert!(
                poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx)))
                    .await
                    .is_pending()
            );
            one.end().await.unwrap();
            // The call's timer fires no later than this one. The reply follows before any task runs.
            sleep_until((deadline + Duration::from_millis(1)).into()).await;
            let other = other.into_calls().unwrap();
            other.serve(|request, _| Ok::<_, RemoteError>(request)).unwrap();
            assert_eq!(call.await.unwrap(), b"a");
            assert_eq!(one.0.core.lock().unwrap().state.count_waits(), 0);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn last_instant_of_the_clock_is_a_deadline() {
        run(|one, other| async move {
            tokio::spawn(async move { other.serve(1, double).await });
            let mut deadline = Instant::now();
            for power in (0..64).rev() {
                let step = Duration::from_secs(1 << power);
                deadline = deadline.checked_add(step).unwrap_or(deadline);
            }
            for power in (0..30).rev() {
                let step = Duration::from_nanos(1 << power);
                deadline = deadline.checked_add(step).unwrap_or(deadline);
            }
            assert_eq!(one.call_until(b"ab", deadline).await.unwrap(), b"abab");
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn calls_implement_tower_service() {
        run(|one, other| async move {
            tokio::spawn(async move { other.serve(1, double).await });
            let mut service = one.clone();
            poll_fn(|cx| Service::<Vec<u8>>::poll_ready(&mut service, cx))
                .await
                .unwrap();
            assert_eq!(Service::call(&mut service, "ab").await.unwrap(), b"abab");
            let request = CallRequest {
                body: b"fail".into(),
                deadline: Instant::now().checked_add(Duration::from_secs(60)),
            };
            let failed = Service::call(&mut service, request).await.unwrap_err();
            assert!(failed.remote().is_some());
            one.close();
            let ready = poll_fn(|cx| Service::<&str>::poll_ready(&mut service, cx)).await;
            assert!(
                matches!(ready, Err(CallError::Channel(Error::Closed(_)))),
                "{ready:?}"
            );
            assert_eq!(
                kind_of(Service::call(&mut service, "ab").await),
                ErrorKind::Closed
            );
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn calls_fail_if_the_peer_or_its_server_is_gone() {
        run(|one, other| async move {
            let (started, mut was_started) = mpsc::unbounded_channel();
            let server = other.clone();
            let serving = tokio::spawn(async move {
                let handler = |_, _| {
                    started.send(()).unwrap();
                    pending::<Result<Vec<u8>, RemoteError>>()
                };
                server.serve(2, handler).await
            });
            let calls = [
                one.start(b"a", None),
                one.start(b"b", None),
                one.start(b"waits", None),
            ];
            was_started.recv().await.unwrap();
            was_started.recv().await.unwrap();
            serving.abort();
            let [first, second, third] = calls;
            for call in [first, second] {
                let failed = call.await.unwrap_err();
                let text = failed.to_string();
                assert_eq!(text, "Error: the server has stopped before it answered");
            }
            drop((serving.await, other));
            assert_eq!(kind_of(third.await), ErrorKind::PeerLost);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn lost_peer_is_detected_despite_a_full_message_queue() {
        run(|one, other| async move {
            let sending = tokio::spawn(async move {
                for number in 0..6000_u32 {
                    other.send(&number.to_le_bytes()).await.unwrap();
                }
                other.destroy();
            });
            let call = one.start(b"a", None);
            // The messages beyond the bound wait in the ring, and in their sender.
            for _ in 0..100 {
                yield_now().await;
            }
            for number in 0..6000_u32 {
                let message = one.receive().await.unwrap();
                assert_eq!(message.as_deref(), Some(&number.to_le_bytes()[..]));
            }
            sending.await.unwrap();
            assert_eq!(kind_of(call.await), ErrorKind::PeerLost);
            assert_eq!(one.receive().await.unwrap_err().kind(), ErrorKind::PeerLost);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn send_dropped_before_its_start_sends_nothing() {
        run(|one, other| async move {
            for _ in 0..4 {
                one.send(&[0; 1000]).await.ok();
                if one.0.core.lock().unwrap().unsent().is_some() {
                    break;
                }
                yield_now().await;
            }
            let long = [1; 9000];
            let begun = one.send(&long);
            let mut begun = pin!(begun);
            let first = poll_fn(|cx| Poll::Ready(begun.as_mut().poll(cx))).await;
            assert!(first.is_pending());
            {
                let mut never = pin!(one.send(b"never"));
                let polled = poll_fn(|cx| Poll::Ready(never.as_mut().poll(cx))).await;
                assert!(polled.is_pending());
            }
            begun.await.unwrap();
            one.send(b"last").await.unwrap();
            loop {
                let message = other.receive().await.unwrap().expect("a message");
                assert_ne!(message, b"never");
                if message == b"last" {
                    break;
                }
            }
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn callers_close_drops_handlers_and_ends_serve() {
        for ends_first in [false, true] {
            run(|one, other| async move {
                let (started, mut was_started) = mpsc::unbounded_channel();
                let serving = tokio::spawn(async move {
                    let handler = |_, _| {
                        started.send(()).unwrap();
                        pending::<Result<Vec<u8>, RemoteError>>()
                    };
                    other.serve(2, handler).await
                });
                let call = one.start(b"a", None);
                was_started.recv().await.unwrap();
                if ends_first {
                    one.end().await.unwrap();
                    for _ in 0..100 {
                        yield_now().await;
                    }
                    assert!(!serving.is_finished());
                }
                one.close();
                timeout(SOON, serving).await.unwrap().unwrap().unwrap();
                drop(call);
            });
        }
    }

    /// Counts the polls of a future.
    async fn counted<F: Future>(polls: Arc<AtomicUsize>, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Sends until a message waits for room, and polls once more messages that wait behind it.
    async fn fill(calls: &Calls) {
        while calls.0.core.lock().unwrap().unsent().is_none() {
            let calls = calls.clone();
            tokio::spawn(async move { calls.send(&[0; 1000]).await });
            yield_now().await;
        }
    }

    /// A channel of a task, and one whose ring nothing reads until the test does.
    fn run_without_a_reader<F: Future<Output = ()>>(test: impl FnOnce(Calls, crate::Channel) -> F) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (one, other) = parts::pair(4096, 20_000, &Options::new());
            test(Channel::new(one).unwrap().into_calls().unwrap(), other).await;
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn end_returns_after_the_last_message_was_retracted() {
        run_without_a_reader(|one, mut other| async move {
            fill(&one).await;
            let last = one.clone();
            let sending = tokio::spawn(async move { last.send(b"never").await });
            yield_now().await;
            let ending = tokio::spawn(async move { one.end().await });
            yield_now().await;
            sending.abort();
            assert!(sending.await.unwrap_err().is_cancelled());
            let reading = spawn_blocking(move || {
                while let Some(message) = other.receiver().receive_vec().unwrap() {
                    assert_ne!(message, b"never");
                }
            });
            timeout(SOON, ending).await.unwrap().unwrap().unwrap();
            reading.await.unwrap();
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn waiting_tasks_are_polled_once_when_it_is_sent() {
        run_without_a_reader(|one, mut other| async move {
            fill(&one).await;
            let polls = Arc::new(AtomicUsize::new(0));
            let (sender, ender) = (one.clone(), one);
            let sending = tokio::spawn(counted(
                Arc::clone(&polls),
                async move { sender.send(b"last").await },
            ));
            yield_now().await;
            let ending = tokio::spawn(counted(Arc::clone(&polls), async move { ender.end().await }));
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(polls.load(Ordering::Relaxed), 2, "each once");
            let reading = spawn_blocking(move || while other.receiver().receive_vec().unwrap().is_some() {});
            timeout(SOON, sending).await.unwrap().unwrap().unwrap();
            timeout(SOON, ending).await.unwrap().unwrap().unwrap();
            reading.await.unwrap();
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn dropped_wait_leaves_no_waker() {
        run(|one, other| async move {
            let waits = |calls: &Calls| calls.0.core.lock().unwrap().state.count_waits();
            for _ in 0..10 {
                let [receiver, server] = [one.clone(), one.clone()];
                let receiving = tokio::spawn(async move { receiver.receive().await.map(drop) });
                let serving = tokio::spawn(async move { server.serve(1, double).await });
                while waits(&one) < 2 {
                    yield_now().await;
                }
                for waiting in [receiving, serving] {
                    waiting.abort();
                    assert!(waiting.await.unwrap_err().is_cancelled());
                }
            }
            assert_eq!(waits(&one), 0);
            drop(other);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn busy_receiver_yields_to_other_tasks() {
        run(|one, other| async move {
            for number in 0..1000_u32 {
                other.send(&number.to_le_bytes()).await.unwrap();
            }
            other.end().await.unwrap();
            while !one.0.core.lock().unwrap().state.has_ended() {
                yield_now().await;
            }
            let beside = tokio::spawn(async {});
            for _ in 0..1000 {
                assert!(one.receive().await.unwrap().is_some());
            }
            assert!(beside.is_finished());
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn calls_fail_if_the_reading_runtime_has_ended() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (one, _other) = parts::pair(4096, 20_000, &Options::new());
        let calls = runtime.block_on(async { Channel::new(one).unwrap().into_calls().unwrap() });
        let call = calls.start(b"a", None);
        drop(runtime);
        let other = Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(kind_of(other.block_on(call)), ErrorKind::Unsupported);
        let again = other.block_on(calls.send(b"b")).unwrap_err();
        assert_eq!(
            again.to_string(),
            "this system does not offer what is needed: a runtime of Tokio, which has ended"
        );
    }
}
