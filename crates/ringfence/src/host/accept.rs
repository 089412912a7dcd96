//! Accepts clients at a bound address, and runs their handshakes side by side. A silent client never delays the others.
//!
//! Each running handshake has a thread, and the number of these is limited. The thread of one that has ended waits for the next: a new
//! one takes longer to start. A client that has sent nothing yet has no thread: it waits in a queue, and if the queue is full, the client
//! that has been silent for longest is dropped. No process and no user can occupy all threads. If the queue has no room, clients wait in
//! the kernel's backlog.

use std::{
    ffi::CStr,
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{poll::PollFlags, sys::prctl};

use crate::{
    address::Address,
    address::bound::BoundAddress,
    channel::end::Partner,
    error::{Error, OrSystem, Result},
    evidence::EvidenceLog,
    handshake::Slots,
    handshake::broadcast::PublishedRing,
    handshake::frame::Meeting,
    handshake::line::refuse,
    handshake::parts::{Connection, Parts, Side},
    identity::{Credentials, Identity},
    options::Options,
    sys::socket::peer_credentials,
    trace::{self, Handshake},
    wait::deadline::{self, CancelToken, Deadline, RETRY_PAUSE, RetryBudget, Wakeup},
    wait::threads::{ThreadQuota, mark_own_thread},
    wake::attachments::PeerSocket,
};

/// The number of connections of one process that wait or run a handshake. An honest process stays far below.
const MAX_PER_PROCESS: usize = 32;
/// The number of connections that wait, with up to three descriptors each.
const MAX_WAITING: usize = 128;
/// The number of connections accepted in one turn. A client that reconnects in a loop refills the backlog as fast as it is emptied,
/// and must not starve outcomes, deadlines and the end.
const ACCEPTS_PER_TURN: usize = ThreadQuota::TOTAL;
/// The time that a handshake's thread waits for the client's first frame. An honest client sends it as soon as it has checked the host.
const GRACE: Duration = Duration::from_millis(50);

/// The name of a thread between two handshakes.
const SPARE: &CStr = c"ringfence-spare";

/// A client that did not get a channel, or a local error that keeps this process from accepting clients.
#[non_exhaustive]
#[derive(Debug)]
pub struct Refused {
    /// The reason: [`Error::PeerRefused`] (with the check, the expected and the found value), [`Error::HandshakeTimeout`],
    /// [`Error::Protocol`], [`Error::PeerLost`], [`Error::AddressOccupied`] if the service is full, or a local error such as
    /// [`Error::NoSpace`].
    pub error: Error,
    /// What is known of the client: at least pid, uid and gid. `None` for a local error that concerns no client.
    pub identity: Option<Identity>,
}

impl Refused {
    /// A local error that concerns no client.
    pub(crate) fn local(error: Error) -> Self {
        Self {
            error,
            identity: None,
        }
    }
}

/// The owner of an address: decides which client gets a channel, and is notified of each outcome.
pub(crate) trait Host: Slots<Slot: Send> + Sync {
    /// The result that ends the accepting.
    type End;

    /// Whether one more handshake may start, in addition to those that run.
    fn may_start(&self, running: usize) -> bool;

    /// A client has passed.
    fn ready(&self, parts: Parts, slot: Self::Slot) -> ControlFlow<Self::End>;

    /// A client was refused.
    fn refused(&self, refused: Refused) -> ControlFlow<Self::End>;

    /// A local error keeps this process from accepting clients at present.
    fn failed(&self, error: Error) -> ControlFlow<Self::End>;

    /// A client got no channel. Called once for each, on the accepting thread, also for those that are too late for
    /// [`Host::refused`].
    fn on_refused(&self, _refused: &Refused) {}

    /// Channels whose end wakes the acceptor as well.
    fn partners(&self) -> Vec<Partner> {
        Vec::new()
    }

    /// Called whenever the acceptor wakes.
    fn woken(&self) {}
}

/// A bound address, and how handshakes are made there.
pub(crate) struct Acceptor<'a> {
    pub(crate) address: &'a Address,
    pub(crate) options: &'a Options,
    pub(crate) meeting: Meeting,
    /// The evidence that each channel starts with.
    pub(crate) record: &'a EvidenceLog,
    /// Signalled when [`Host::may_start`] may have changed.
    pub(crate) wakeup: &'a Wakeup,
    /// Descriptors that a client gets with READY.
    pub(crate) shares: &'a [Arc<OwnedFd>],
    /// The ring of a publisher.
    pub(crate) ring: Option<&'a Arc<PublishedRing>>,
    /// Cancelled at the end of the accepting. Created before the address is bound, so that this cannot fail later.
    pub(crate) over: &'a CancelToken,
}

/// A thread for handshakes, which ends once this value is dropped. While it runs one, it holds this value itself.
struct HandshakeThread(mpsc::SyncSender<(Client, HandshakeThread)>);

impl HandshakeThread {
    fn start(self, client: Client) {
        let job_sender = self.0.clone();
        // Cannot fail: the thread waits for it.
        let _ = job_sender.send((client, self));
    }
}

/// A handshake that has ended.
struct Ended<S> {
    peer: Credentials,
    result: Attempt<S>,
    /// `None` for a pair that has its guest, and needs no further thread.
    thread: Option<HandshakeThread>,
}

/// The result of a handshake's thread.
enum Attempt<S> {
    /// The client has passed the policy, and has sent nothing yet.
    Silent(Client),
    Ready(Box<(Parts, S)>),
    Refused(Box<Refused>),
}

impl<S> Attempt<S> {
    fn refused(error: Error, identity: Identity) -> Self {
        let checked = error.refusal().and_then(|refusal| refusal.identity.clone());
        Self::Refused(Box::new(Refused {
            error,
            identity: Some(checked.unwrap_or(identity)),
        }))
    }
}

impl Acceptor<'_> {
    /// Accepts clients until the host ends it, or the waiting is cancelled. Then calls `leave` with the bound place and the result,
    /// before unfinished handshakes are joined.
    pub(crate) fn run<H: Host, T>(
        &self,
        host: &H,
        place: BoundAddress,
        deadline: &Deadline,
        leave: impl FnOnce(BoundAddress, Result<H::End>) -> T,
    ) -> T {
        thread::scope(|scope| {
            let (results, outcomes) = mpsc::channel();
            let mut accepting = Accepting {
                acceptor: self,
                host,
                scope,
                deadline: deadline.or(self.over),
                results,
                outcomes,
                spare: None,
                queue: Queue::default(),
                recovered: Instant::now(),
            };
            let mut retries = RetryBudget::default();
            let result = loop {
                match accepting.wait(&place, deadline) {
                    Ok(()) => retries.renew(),
                    // Retries transient errors: nothing else accepts clients here.
                    Err(error) if retries.should_retry(&error) => {
                        if let ControlFlow::Break(end) = accepting.failed(error) {
                            break Ok(end);
                        }
                        retries.pause();
                    }
                    Err(error) => break Err(error),
                }
                self.wakeup.clear();
                if let ControlFlow::Break(end) = accepting.turn(&place) {
                    break Ok(end);
                }
            };
            // Handshakes without a slot fail with `Slots::closed`.
            self.over.cancel();
            for client in accepting.queue.waiting.drain(..) {
                self.report(host, &client.refuse(host.closed()));
            }
            let left = leave(place, result);
            // A client that got READY has a channel, although this side accepts no further clients.
            drop((accepting.results, accepting.spare));
            for ended in accepting.outcomes {
                match ended.result {
                    Attempt::Ready(passed) => {
                        let (parts, slot) = *passed;
                        let _ = host.ready(parts, slot);
                    }
                    Attempt::Refused(refused) => self.report(host, &refused),
                    Attempt::Silent(client) => self.report(host, &client.refuse(host.closed())),
                }
            }
            left
        })
    }

    /// Refuses a connection without a handshake.
    pub(crate) fn reject<H: Host>(&self, host: &H, stream: PeerSocket, deadline: &Deadline, error: Error) {
        let refused = match Client::new(stream, deadline.clone(), self.address) {
            Ok(client) => client.refuse(error),
            // The client notices the end of its connection.
            Err(error) => Refused::local(error),
        };
        self.report(host, &refused);
    }

    fn report<H: Host>(&self, host: &H, refused: &Refused) {
        trace::refused(self.address, "host", &refused.error, refused.identity.as_ref());
        host.on_refused(refused);
    }

    /// On a thread of its own: checks the client's process, and runs the handshake once the client has sent something.
    fn run_handshake<H: Host>(&self, client: Client, host: &H) -> Attempt<H::Slot> {
        let side = Side {
            shares: self.shares,
            ..Side::new(self.address, self.options, &client.deadline, self.meeting).publishing(self.ring)
        };
        let handshake = &client.handshake;
        let connection = match client.stage {
            ClientStage::Silent(connection) => connection,
            ClientStage::Fresh(stream) => {
                match handshake.within(|| side.inspect(stream, self.record.clone())) {
                    Err(error) => return Attempt::refused(error, Identity::of(client.peer)),
                    Ok(connection) if client.deadline.becomes_readable(connection.as_fd(), GRACE) => {
                        Box::new(connection)
                    }
                    Ok(connection) => {
                        let stage = ClientStage::Silent(Box::new(connection));
                        return Attempt::Silent(Client { stage, ..client });
                    }
                }
            }
        };
        let identity = connection.identity.clone();
        match handshake.within(|| side.host(*connection, host)) {
            Ok(passed) => Attempt::Ready(Box::new(passed)),
            Err(error) => Attempt::refused(error, identity),
        }
    }
}

/// The state of [`Acceptor::run`], owned by the accepting thread.
struct Accepting<'scope, 'env, H: Host> {
    acceptor: &'env Acceptor<'env>,
    host: &'env H,
    scope: &'scope thread::Scope<'scope, 'env>,
    /// The deadline of clients, which ends with the accepting.
    deadline: Deadline,
    results: mpsc::Sender<Ended<H::Slot>>,
    outcomes: mpsc::Receiver<Ended<H::Slot>>,
    /// Waits for the next handshake.
    spare: Option<HandshakeThread>,
    queue: Queue,
    /// When to accept again after a local error.
    recovered: Instant,
}

impl<H: Host> Accepting<'_, '_, H> {
    /// Waits for a connection, a first frame, an outcome, the end of a partner, or a client's deadline.
    fn wait(&mut self, place: &BoundAddress, deadline: &Deadline) -> Result<()> {
        // The caller of a pair waits for its guest, so the thread can start now. An endpoint starts none after its call has returned,
        // unless a client connects: a program may fork, and a child inherits the lock under which another thread is just starting one.
        let is_idle = self.spare.is_none() && self.queue.running() == 0;
        if self.acceptor.meeting == Meeting::Pair && is_idle && self.has_recovered() {
            // If it cannot be started now, the handshake tries again.
            self.spare = self.thread().ok();
        }
        let queue = &self.queue;
        let mut watched = vec![(self.acceptor.wakeup.as_fd(), PollFlags::POLLIN)];
        let partners = self.host.partners();
        watched.extend(partners.iter().flat_map(Partner::watched));
        let deadlines = queue.waiting.iter().filter_map(|client| client.deadline.at());
        let mut until = deadlines.min();
        if !self.has_recovered() {
            until = Some(until.map_or(self.recovered, |until| until.min(self.recovered)));
        } else if self.host.may_start(queue.running()) {
            if !queue.is_full() {
                watched.push((place.as_fd(), PollFlags::POLLIN));
            }
            let may_send = queue
                .waiting
                .iter()
                .filter(|client| queue.running.allows(client.peer));
            watched.extend(may_send.map(|client| (client.as_fd(), PollFlags::POLLIN)));
        }
        deadline.until(until).wait(&watched).map(drop)
    }

    /// Handles everything that may have changed.
    fn turn(&mut self, place: &BoundAddress) -> ControlFlow<H::End> {
        self.host.woken();
        while let Ok(ended) = self.outcomes.try_recv() {
            self.queue.running.release(ended.peer);
            self.spare = self.spare.take().or(ended.thread);
            match ended.result {
                Attempt::Silent(client) => self.queue.waiting.push(client),
                Attempt::Ready(passed) => {
                    let (parts, slot) = *passed;
                    self.host.ready(parts, slot)?;
                }
                Attempt::Refused(refused) => self.refused(*refused)?,
            }
        }
        for late in self.queue.late() {
            let after = late.deadline.allowed;
            let step = match late.stage {
                ClientStage::Fresh(_) => "a thread of the host's for the handshake",
                ClientStage::Silent(_) => "the guest's HELLO",
            };
            self.refused(late.time_out(step, after))?;
        }
        // Start queued handshakes before accepting more: descriptors may be short, and a new connection must not take them each time.
        self.start_handshakes()?;
        self.accept(place)?;
        self.start_handshakes()?;
        // A full queue accepts nothing, so make room.
        while self.queue.is_full()
            && let Some(silent) = self.queue.most_silent()
        {
            let after = silent.deadline.elapsed();
            self.refused(silent.time_out("the guest's HELLO, while others wait", after))?;
        }
        ControlFlow::Continue(())
    }

    /// Moves connections from the kernel's backlog into the queue.
    fn accept(&mut self, place: &BoundAddress) -> ControlFlow<H::End> {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.queue.is_full() || !self.has_recovered() || !self.host.may_start(self.queue.running()) {
                break;
            }
            match place.accept() {
                Ok(Some(stream)) => match self.enqueue(stream) {
                    Ok(client) => self.queue.waiting.push(client),
                    Err(refused) => self.refused(*refused)?,
                },
                Ok(None) => break,
                Err(error) => self.failed(error)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// Refuses a process that has too many connections in the queue.
    fn enqueue(&self, stream: PeerSocket) -> Result<Client, Box<Refused>> {
        let deadline = self.deadline.within(self.acceptor.options.handshake_timeout);
        let client = Client::new(stream, deadline, self.acceptor.address)
            .map_err(|error| Box::new(Refused::local(error)))?;
        match self.queue.refusal(client.peer) {
            Some(by) => Err(Box::new(client.refuse(self.acceptor.address.occupied(by)))),
            None => Ok(client),
        }
    }

    /// Starts the handshakes that may start.
    fn start_handshakes(&mut self) -> ControlFlow<H::End> {
        while self.has_recovered()
            && self.host.may_start(self.queue.running())
            && let Some(client) = self.queue.next()
        {
            let peer = client.peer;
            match self.spare.take().map_or_else(|| self.thread(), Ok) {
                Ok(thread) => {
                    self.queue.running.acquire(peer);
                    thread.start(client);
                }
                Err(error) => {
                    // It is tried again until its deadline.
                    self.queue.waiting.insert(0, client);
                    return self.failed(Error::no_space("a thread for a handshake", error));
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Starts a thread for handshakes.
    fn thread(&self) -> io::Result<HandshakeThread> {
        let (acceptor, host) = (self.acceptor, self.host);
        let (results, wakeup) = (self.results.clone(), acceptor.wakeup.clone());
        let (job_sender, jobs) = mpsc::sync_channel::<(Client, HandshakeThread)>(1);
        let run = move || {
            mark_own_thread();
            while let Ok((client, thread)) = jobs.recv() {
                let peer = client.peer;
                // The names tell an operator how many handshakes run.
                let _ = prctl::set_name(c"ringfence-host");
                // A thread that ended without an outcome would count as running for ever.
                let result = catch_unwind(AssertUnwindSafe(|| acceptor.run_handshake(client, host)))
                    .unwrap_or_else(|_| Attempt::refused(defect(), Identity::of(peer)));
                let _ = prctl::set_name(SPARE);
                let is_last = acceptor.meeting == Meeting::Pair && matches!(result, Attempt::Ready(_));
                let thread = (!is_last).then_some(thread);
                // If the accepting is over, nothing receives the outcome, and it is dropped.
                let _ = results.send(Ended { peer, result, thread });
                if is_last {
                    break;
                }
                wakeup.signal();
            }
            // Before the acceptor wakes, because it waits for all senders of results.
            drop(results);
            wakeup.signal();
        };
        thread::Builder::new()
            .name(SPARE.to_string_lossy().into_owned())
            .spawn_scoped(self.scope, run)?;
        Ok(HandshakeThread(job_sender))
    }

    /// Whether enough time has passed since the last local error.
    fn has_recovered(&self) -> bool {
        Instant::now() >= self.recovered
    }

    fn refused(&self, refused: Refused) -> ControlFlow<H::End> {
        self.acceptor.report(self.host, &refused);
        self.host.refused(refused)
    }

    /// A local error (no descriptors, for example) keeps this process from accepting. It tries again a little later.
    fn failed(&mut self, error: Error) -> ControlFlow<H::End> {
        self.recovered = Instant::now() + RETRY_PAUSE;
        self.host.failed(error)
    }
}

/// The error of a handshake that has panicked, which no peer can cause.
fn defect() -> Error {
    Error::unsupported("a defect of ringfence itself, please report it (a handshake has panicked)")
}

/// A process that has connected, and has no thread.
struct Client {
    peer: Credentials,
    stage: ClientStage,
    /// The deadline of its handshake.
    deadline: Deadline,
    handshake: Handshake,
}

/// The progress of a client's handshake.
enum ClientStage {
    /// Its process was not checked yet.
    Fresh(PeerSocket),
    /// Its process has passed, and its HELLO has not arrived.
    Silent(Box<Connection>),
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            ClientStage::Fresh(stream) => stream.as_fd(),
            ClientStage::Silent(connection) => connection.as_fd(),
        }
    }
}

impl Client {
    /// Asks the kernel for the process at the other end: enough to count its connections.
    fn new(stream: PeerSocket, deadline: Deadline, address: &Address) -> Result<Self> {
        let peer = peer_credentials(&stream).or_system("SO_PEERCRED of a client")?;
        Ok(Self {
            peer,
            stage: ClientStage::Fresh(stream),
            deadline,
            handshake: Handshake::begin(address, "host", Some(peer)),
        })
    }

    fn time_out(self, step: &'static str, after: Duration) -> Refused {
        self.refuse(Error::HandshakeTimeout { step, after })
    }

    /// Sends the client the error, if it still listens.
    fn refuse(self, error: Error) -> Refused {
        let identity = match &self.stage {
            ClientStage::Fresh(_) => Identity::of(self.peer),
            ClientStage::Silent(connection) => connection.identity.clone(),
        };
        Refused {
            error: refuse(self.as_fd(), error),
            identity: Some(identity),
        }
    }
}

/// The clients whose handshake has not started, and the processes with which handshakes run.
#[derive(Default)]
struct Queue {
    waiting: Vec<Client>,
    /// The handshakes that run, each with a thread.
    running: ThreadQuota,
}

impl Queue {
    fn running(&self) -> usize {
        self.running.0.len()
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// The reason why this process may have no further connection here, if any.
    fn refusal(&self, peer: Credentials) -> Option<String> {
        let waiting = self.waiting.iter().map(|client| &client.peer);
        let all = waiting.chain(&self.running.0);
        let has = all.filter(|other| other.pid == peer.pid).count();
        (has >= MAX_PER_PROCESS).then(|| {
            format!(
                "process {} has {MAX_PER_PROCESS} handshakes under way already",
                peer.pid
            )
        })
    }

    /// Removes the first client whose handshake may start: its process is still to be checked, or it has sent something.
    fn next(&mut self) -> Option<Client> {
        let readable = self.readable();
        let index = self
            .waiting
            .iter()
            .zip(&readable)
            .position(|(client, readable)| {
                (*readable || matches!(client.stage, ClientStage::Fresh(_)))
                    && self.running.allows(client.peer)
            })?;
        Some(self.waiting.remove(index))
    }

    /// Removes the client that has been silent for longest.
    fn most_silent(&mut self) -> Option<Client> {
        let readable = self.readable();
        let mut clients = self.waiting.iter().zip(&readable);
        let index = clients
            .position(|(client, readable)| !readable && matches!(client.stage, ClientStage::Silent(_)))?;
        Some(self.waiting.remove(index))
    }

    /// Removes the clients whose deadline has passed.
    fn late(&mut self) -> Vec<Client> {
        self.waiting
            .extract_if(.., |client| !client.deadline.has_time_left())
            .collect()
    }

    fn readable(&self) -> Vec<bool> {
        deadline::readable(self.waiting.iter().map(AsFd::as_fd))
    }
}
