//! An endpoint stays bound at an address: a service, a membership, or a publisher.
//!
//! An [`Endpoint`] is shared by the [`EndpointHandle`] that the program holds, the worker thread that keeps the
//! address and accepts clients by an [`Admission`], the threads of the handshakes, and the [`SlotGuard`] of
//! each channel that was made there. An [`EndpointKind`] defines the differences: the state, the assignment
//! of slots, and what happens to an admitted client.
//!
//! Each piece of state has a lock of its own: `state` (written by the kind), `slots` (by handshakes and by the ends of channels) and
//! `ledger` (by the accepting thread). A thread that holds `ledger` may take one of the others, since it may drop a channel.

#![expect(private_bounds, reason = "as in `channel/outbound.rs`")]

use std::{
    fmt,
    ops::{ControlFlow, Deref},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    address::bound::BoundAddress,
    address::{Address, election},
    channel::end::{Partner, Shared},
    error::{Error, Result},
    evidence::EvidenceLog,
    fork::{OwnerProcess, leak_if_locked},
    handshake::Slots,
    handshake::broadcast::PublishedRing,
    handshake::frame::Meeting,
    handshake::parts::Parts,
    host::accept::{Acceptor, Host, Refused},
    host::admit::{EndpointStats, Ledger, TakenSlots},
    host::events::{End, Events},
    identity::Credentials,
    options::{Options, SlotLimits},
    signal::barriers,
    sys::lock::{Mutex, MutexGuard},
    trace,
    wait::deadline::{Backoff, CancelToken, Deadline, Wakeup},
    wait::threads::{is_own_thread, mark_own_thread},
};

/// A kind of endpoint. The value is what the kind has in addition to its locked state.
pub(crate) trait EndpointKind: Send + Sync + Sized + 'static {
    const MEETING: Meeting;
    /// The name in errors: "service".
    const NAME: &'static str;
    /// The error of a call on the handle after the end.
    const CLOSED: &'static str;
    /// The error of a client whose handshake is cancelled because the endpoint closes.
    const CANCELLED: &'static str;

    /// The state under the lock of [`Endpoint::state`].
    type State: Default + Send;
    /// The events that the program takes.
    type Event: From<Refused> + Send;

    /// Checks whether there is a slot for this process now. If not, the handshake need not start.
    fn check_free(endpoint: &Endpoint<Self>, peer: Credentials) -> Result<()> {
        endpoint.check_slots(peer)
    }

    /// Takes a slot for this process.
    fn claim(endpoint: &Endpoint<Self>, peer: Credentials) -> Result<()> {
        Self::check_free(endpoint, peer)?;
        let mut slots = endpoint.slots.lock();
        endpoint.check_slots_in(&slots, peer)?;
        slots.add(peer);
        Ok(())
    }

    /// Frees a slot of this process.
    fn release(endpoint: &Endpoint<Self>, peer: Credentials) {
        endpoint.slots.lock().remove(peer);
    }

    /// Whether one more handshake may start in addition to those that run. `false` while the program does not take its events.
    fn has_room(_endpoint: &Endpoint<Self>, _under_way: usize) -> bool {
        true
    }

    /// Called when a client was admitted.
    fn ready(endpoint: &Arc<Endpoint<Self>>, parts: Parts, slot: SlotGuard<Self>, options: &Options);

    /// Called when a client was refused, or a local error keeps this process from accepting.
    fn refused(endpoint: &Endpoint<Self>, refused: Refused) {
        endpoint.events.add(refused.into());
    }

    /// Whether a local error ends the accepting. If not, it is tried again.
    fn is_final(_error: &Error) -> bool {
        false
    }

    /// Called whenever the acceptor wakes: notices ends of channels that no call has noticed.
    fn woken(_endpoint: &Endpoint<Self>) {}

    /// Channels whose end wakes the acceptor as well.
    fn partners(_endpoint: &Endpoint<Self>) -> Vec<Partner> {
        Vec::new()
    }

    /// The ring of a publisher.
    fn ring(&self) -> Option<&Arc<PublishedRing>> {
        None
    }
}

/// The part of an endpoint that its threads and channels share. It derefs to its kind.
pub(crate) struct Endpoint<K: EndpointKind> {
    pub(crate) address: Address,
    limits: SlotLimits,
    state: Mutex<K::State>,
    pub(crate) slots: Mutex<TakenSlots>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) events: Events<K::Event>,
    /// Woken when the worker must check again.
    pub(crate) wakeup: Wakeup,
    /// Written by the program, read by the worker: connections wait in the kernel's backlog.
    paused: AtomicBool,
    /// A forked child has neither the worker nor a slot.
    owner: OwnerProcess,
    kind: K,
}

impl<K: EndpointKind> Endpoint<K> {
    pub(crate) fn new(address: Address, options: &Options, kind: K) -> Result<Arc<Self>> {
        let wakeup = Wakeup::new()?;
        Ok(Arc::new(Self {
            address,
            limits: options.slots(),
            state: Mutex::default(),
            slots: Mutex::default(),
            ledger: Mutex::default(),
            events: Events::new(wakeup.clone(), K::CLOSED)?,
            wakeup,
            paused: AtomicBool::new(false),
            owner: OwnerProcess::current()?,
            kind,
        }))
    }

    /// Called by the threads of the endpoint, which a forked child does not have, and by the program through [`EndpointHandle::here`]: the
    /// thread that held the lock at the fork cannot release it in the child.
    pub(crate) fn state(&self) -> MutexGuard<'_, K::State> {
        self.state.lock()
    }

    /// The process that created the endpoint.
    pub(crate) fn owner(&self) -> OwnerProcess {
        self.owner
    }

    /// Whether this process created the endpoint, and is not a forked child of it.
    pub(crate) fn in_owner_process(&self) -> bool {
        self.owner.is_current()
    }

    /// Fails if there is no slot for a process now.
    pub(crate) fn check_slots(&self, peer: Credentials) -> Result<()> {
        self.check_slots_in(&self.slots.lock(), peer)
    }

    fn check_slots_in(&self, slots: &TakenSlots, peer: Credentials) -> Result<()> {
        let refusal = slots.refusal(&self.limits, peer, K::NAME);
        refusal.map_or(Ok(()), |by| Err(self.address.occupied(by)))
    }

    /// The channels that were accepted and are not dropped.
    pub(crate) fn channels(&self) -> Vec<Arc<Shared>> {
        self.ledger.lock().channels()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }
}

impl<K: EndpointKind> Deref for Endpoint<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.kind
    }
}

impl<K: EndpointKind> Drop for Endpoint<K> {
    fn drop(&mut self) {
        if !self.in_owner_process() {
            leak_if_locked(&mut self.state);
            leak_if_locked(&mut self.slots);
            leak_if_locked(&mut self.ledger);
        }
    }
}

/// A guard for the worker: however the worker ends, also by a panic, dropping it notifies the program.
pub(crate) struct EndWithWorker<K: EndpointKind>(pub(crate) Arc<Endpoint<K>>);

impl<K: EndpointKind> Drop for EndWithWorker<K> {
    fn drop(&mut self) {
        // An earlier end counts.
        self.0.events.end(End::Closed);
    }
}

/// The slot of an admitted client, held while its channel is open.
pub(crate) struct SlotGuard<K: EndpointKind> {
    endpoint: Arc<Endpoint<K>>,
    peer: Credentials,
}

impl<K: EndpointKind> Drop for SlotGuard<K> {
    fn drop(&mut self) {
        if self.endpoint.in_owner_process() {
            K::release(&self.endpoint, self.peer);
        }
    }
}

/// Accepts clients for an endpoint, on its worker thread.
pub(crate) struct Admission<'a, K: EndpointKind> {
    endpoint: &'a Arc<Endpoint<K>>,
    options: &'a Options,
    /// The program was notified of a local error. The acceptor retries many times a second, but notifies the
    /// program once.
    failing: AtomicBool,
}

impl<'a, K: EndpointKind> Admission<'a, K> {
    pub(crate) fn new(endpoint: &'a Arc<Endpoint<K>>, options: &'a Options) -> Self {
        Self {
            endpoint,
            options,
            failing: AtomicBool::new(false),
        }
    }

    /// See [`Acceptor::run`]. A client gets the descriptors `shares` with READY. `over` is cancelled at the end of the accepting.
    pub(crate) fn run<T>(
        &self,
        (place, record): (BoundAddress, &EvidenceLog),
        shares: &[Arc<OwnedFd>],
        over: &CancelToken,
        deadline: &Deadline,
        leave: impl FnOnce(BoundAddress, Result<Error>) -> T,
    ) -> T {
        let acceptor = Acceptor {
            address: &self.endpoint.address,
            options: self.options,
            meeting: K::MEETING,
            record,
            wakeup: &self.endpoint.wakeup,
            shares,
            ring: self.endpoint.ring(),
            over,
        };
        acceptor.run(self, place, deadline, leave)
    }
}

impl<K: EndpointKind> Slots for Admission<'_, K> {
    type Slot = SlotGuard<K>;

    fn check_free(&self, peer: Credentials) -> Result<()> {
        K::check_free(self.endpoint, peer)
    }

    fn claim(&self, peer: Credentials) -> Result<SlotGuard<K>> {
        K::claim(self.endpoint, peer)?;
        Ok(SlotGuard {
            endpoint: Arc::clone(self.endpoint),
            peer,
        })
    }

    fn closed(&self) -> Error {
        Error::Closed(K::CANCELLED)
    }
}

impl<K: EndpointKind> Host for Admission<'_, K> {
    /// A permanent local error.
    type End = Error;

    fn may_start(&self, running: usize) -> bool {
        K::has_room(self.endpoint, running) && !self.endpoint.is_paused()
    }

    fn ready(&self, parts: Parts, slot: SlotGuard<K>) -> ControlFlow<Error> {
        self.failing.store(false, Ordering::Relaxed);
        K::ready(self.endpoint, parts, slot, self.options);
        ControlFlow::Continue(())
    }

    fn refused(&self, refused: Refused) -> ControlFlow<Error> {
        self.failing.store(false, Ordering::Relaxed);
        self.endpoint.ledger.lock().refused(&refused.error);
        K::refused(self.endpoint, refused);
        ControlFlow::Continue(())
    }

    fn failed(&self, error: Error) -> ControlFlow<Error> {
        if K::is_final(&error) {
            return ControlFlow::Break(error);
        }
        if !self.failing.swap(true, Ordering::Relaxed) {
            trace::refused(&self.endpoint.address, "host", &error, None);
            K::refused(self.endpoint, Refused::local(error));
        }
        ControlFlow::Continue(())
    }

    fn partners(&self) -> Vec<Partner> {
        K::partners(self.endpoint)
    }

    fn woken(&self) {
        K::woken(self.endpoint);
    }
}

/// An address that this process alone has bound, and does not accept clients at yet.
pub(crate) struct BoundAlone {
    place: BoundAddress,
    /// The evidence of the binding.
    pub(crate) record: EvidenceLog,
    /// Cancelled by the program's token, and by [`Worker::stop`].
    pub(crate) deadline: Deadline,
    pub(crate) options: Options,
    /// Cancelled at the end of the accepting.
    over: CancelToken,
    release: ReleaseGuard,
}

impl BoundAlone {
    /// Binds an absolute address. With [`Options::wait`], waits until it is free.
    pub(crate) fn new(address: &Address, options: Options) -> Result<(Self, Worker)> {
        barriers::register_early();
        let deadline = options.deadline();
        let mut backoff = Backoff::new(&deadline);
        let mut record = EvidenceLog::default();
        let place = loop {
            match election::bind_alone(address, options.access()?, &deadline, &mut record) {
                Err(Error::AddressOccupied { .. }) if options.wait => backoff.pause()?,
                other => break other?,
            }
        };
        let (worker, release) = Worker::new()?;
        let bound = Self {
            place,
            record,
            deadline: deadline.or(worker.stop()),
            options,
            over: CancelToken::new()?,
            release,
        };
        Ok((bound, worker))
    }

    /// Accepts clients until that is cancelled or fails. `closed` is called with the error once the address is free, before unfinished
    /// handshakes are joined. [`Worker::wait`] returns once the guard is dropped.
    pub(crate) fn accept<K: EndpointKind, T>(
        self,
        endpoint: &Arc<Endpoint<K>>,
        closed: impl FnOnce(Error, ReleaseGuard) -> T,
    ) -> T {
        let admission = Admission::new(endpoint, &self.options);
        let bound = (self.place, &self.record);
        admission.run(bound, &[], &self.over, &self.deadline, |place, result| {
            drop(place);
            let (Ok(error) | Err(error)) = result;
            closed(error, self.release)
        })
    }
}

/// The handle of an address that this process serves or shares: a [`Listener`](crate::Listener), a
/// [`Membership`](crate::Membership) or the [`Audience`](crate::Audience) of a publisher.
pub struct EndpointHandle<K: HandleKind> {
    address: Address,
    /// Accessed through [`EndpointHandle::here`] only: its locks are not for a forked child.
    endpoint: Arc<Endpoint<K>>,
    pub(crate) own: K::Own,
}

/// The kind of an [`EndpointHandle`].
pub(crate) trait HandleKind: EndpointKind {
    /// The name of the handle's public type.
    const HANDLE: &'static str;
    /// The state of the handle alone.
    type Own;

    /// The program has dropped the handle.
    fn dropped(handle: &mut EndpointHandle<Self>);
}

impl<K: HandleKind> EndpointHandle<K> {
    pub(crate) fn new(address: &Address, endpoint: &Arc<Endpoint<K>>, own: K::Own) -> Self {
        Self {
            address: address.clone(),
            endpoint: Arc::clone(endpoint),
            own,
        }
    }

    /// Returns the address as the program passed it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Stops accepting clients, which then wait in the kernel's backlog. Running handshakes, at most 64, continue.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Accepts clients again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    /// Fails with [`Error::Closed`] in a forked child.
    pub(crate) fn here(&self) -> Result<&Arc<Endpoint<K>>> {
        self.endpoint.owner.check()?;
        Ok(&self.endpoint)
    }

    /// Waits for the next event. Returns `None` at the deadline. Fails in a forked child, and with the error
    /// that has ended the events.
    pub(crate) fn event_until(&self, moment: Option<Instant>) -> Result<Option<K::Event>> {
        let deadline = Deadline::endless(Vec::new(), Duration::ZERO).until(moment);
        self.here()?.events.wait(&deadline)
    }

    /// Waits for the next event.
    pub(crate) fn event(&self) -> Result<K::Event> {
        loop {
            if let Some(event) = self.event_until(None)? {
                return Ok(event);
            }
        }
    }

    /// Returns the next event, if there is one now.
    pub(crate) fn try_event(&self) -> Result<Option<K::Event>> {
        self.here()?.events.try_next()
    }

    /// Returns the counts, if `open` channels are open now.
    pub(crate) fn stats_with(&self, open: usize) -> EndpointStats {
        self.here().map_or_else(
            |_| EndpointStats::default(),
            |endpoint| endpoint.ledger.lock().stats(open),
        )
    }

    fn set_paused(&self, paused: bool) {
        if let Ok(endpoint) = self.here() {
            endpoint.paused.store(paused, Ordering::Release);
            if !paused {
                endpoint.wakeup.signal();
            }
        }
    }
}

impl<K: HandleKind> fmt::Debug for EndpointHandle<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(K::HANDLE)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl<K: HandleKind> Drop for EndpointHandle<K> {
    fn drop(&mut self) {
        K::dropped(self);
    }
}

impl<K: HandleKind> AsFd for EndpointHandle<K> {
    /// Readable when [`Listener::try_accept`](crate::Listener::try_accept), [`Membership::try_next`](crate::Membership::try_next) or
    /// [`Audience::try_next`](crate::Audience::try_next) has an event, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.events.as_fd()
    }
}

/// The thread that keeps the address, as the handle sees it.
pub(crate) struct Worker {
    stop: CancelToken,
    /// Receives nothing: it is disconnected when the worker drops its [`ReleaseGuard`].
    released: Mutex<mpsc::Receiver<()>>,
}

/// Dropped by the worker when it has released the address.
pub(crate) struct ReleaseGuard(
    #[expect(dead_code, reason = "dropping it disconnects the worker's handle")] mpsc::Sender<()>,
);

impl Worker {
    pub(crate) fn new() -> Result<(Self, ReleaseGuard)> {
        let (release, released) = mpsc::channel();
        let worker = Self {
            stop: CancelToken::new()?,
            released: Mutex::new(released),
        };
        Ok((worker, ReleaseGuard(release)))
    }

    /// Cancels the worker, if its deadline has this token.
    pub(crate) fn stop(&self) -> &CancelToken {
        &self.stop
    }

    /// Waits until the worker has released the address. Returns at once on a thread of this crate, which a tracing subscriber may be
    /// called on: the worker may be waiting for that thread.
    pub(crate) fn wait(&self) {
        if !is_own_thread() {
            let _ = self.released.lock().recv();
        }
    }

    /// As [`Worker::wait`], with a time limit. Returns `false` if it has passed.
    pub(crate) fn wait_at_most(&self, time: Duration) -> bool {
        is_own_thread() || self.released.lock().recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }
}

/// A thread that waits for its work. An endpoint starts its threads before it can be seen at its address, so that a shortage of
/// threads is an error of the call that creates it.
pub(crate) struct IdleThread<W> {
    begin: mpsc::Sender<W>,
    thread: JoinHandle<()>,
}

impl<W: Send + 'static> IdleThread<W> {
    /// `name` is the thread's, `what` describes it in an error: "a thread for ...".
    pub(crate) fn spawn(name: &str, what: &str, run: fn(W)) -> Result<Self> {
        let (begin, beginning) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                mark_own_thread();
                if let Ok(work) = beginning.recv() {
                    run(work);
                }
            })
            .map_err(|error| Error::no_space(what, error))?;
        Ok(Self { begin, thread })
    }

    pub(crate) fn start(self, work: W) -> JoinHandle<()> {
        // Cannot fail: the thread waits for it.
        let _ = self.begin.send(work);
        self.thread
    }

    /// Ends the thread without work. It has ended when this returns.
    pub(crate) fn dismiss(self) {
        drop(self.begin);
        // The thread has run nothing that could panic.
        let _ = self.thread.join();
    }
}
