//! A service and its agents: one process listens, many connect, and each gets a channel and memory of its own.

use std::{sync::Arc, time::Instant};

use crate::{
    address::Address,
    channel::Channel,
    channel::end::ChannelState,
    error::{Error, Result},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    host::accept::Refused,
    host::admit::EndpointStats,
    host::endpoint::{
        BoundAlone, EndWithWorker, Endpoint, EndpointHandle, EndpointKind, HandleKind, IdleThread, SlotGuard,
        Worker,
    },
    host::events::End,
    identity::Credentials,
    options::Options,
    wait::threads::ThreadQuota,
};

/// The number of events that the program has not taken yet. If it is reached, clients wait in the kernel's backlog.
const MAX_PENDING: usize = ThreadQuota::TOTAL;

/// Binds an address for a service. Agents [`connect`](crate::connect) there, up to [`Options::max_peers`], and each gets a channel and memory of
/// its own.
///
/// The mode and the group of a path are set before any process can reach it. A socket that a dead service has left is replaced.
/// With [`Options::wait`], waits for an address that another process has. [`Options::cancel_token`] cancels that waiting, and
/// afterwards the listening.
///
/// Handshakes run concurrently on threads of the listener, each with the deadline of [`Options::handshake_timeout`]: a client that fails, is
/// slow or is silent does not delay the others. An open channel has no thread, and holds two descriptors: a thousand agents need
/// an `RLIMIT_NOFILE` above 3,000 (getrlimit(2)), of which 900 are for handshakes and waiting clients.
///
/// # Errors
/// [`Error::AddressOccupied`] if another process has the address, without [`Options::wait`]; [`Error::AddressInvalid`];
/// [`Error::InvalidArgument`] for options that contradict each other; [`Error::NoSpace`]; [`Error::Aborted`] when cancelled.
pub fn listen(address: &Address, options: &Options) -> Result<Listener> {
    let options = options.clone().checked()?;
    let (stated, address) = (address, address.absolute());
    let (bound, worker) = BoundAlone::new(&address, options)?;
    let endpoint = Endpoint::new(address, &bound.options, Service)?;
    let thread = IdleThread::spawn("ringfence-accept", "a thread for the listener", accept)?;
    let listener = Listener::new(stated, &endpoint, worker);
    thread.start((endpoint, bound));
    Ok(listener)
}

/// A service at its address.
///
/// ```no_run
/// use ringfence::{Address, Arrival, Options, Policy, listen};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/orders/service.sock".parse()?;
/// let options = Options::new().mode(0o666).policy(Policy::new().any_executable().uids([1001, 1002]));
/// let listener = listen(&address, &options)?;
/// loop {
///     match listener.accept()? {
///         Arrival::Accepted(channel) => {
///             std::thread::spawn(move || serve(channel));
///         }
///         Arrival::Refused(refused) => eprintln!("{}", refused.error),
///         _ => {}
///     }
/// }
/// # }
/// # fn serve(channel: ringfence::Channel) {}
/// ```
///
/// It holds at most 64 channels and refusals that the program has not taken yet. Further clients wait in the kernel's backlog, and
/// fail at their deadline with [`Error::HandshakeTimeout`].
///
/// Dropping it closes it, with [`Channels::Keep`].
pub type Listener = EndpointHandle<Service>;

/// An event of a [`Listener`].
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Arrival {
    /// A client was accepted.
    Accepted(Channel),
    /// A client was refused. The listener continues.
    Refused(Refused),
}

impl From<Refused> for Arrival {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Whether a listener that closes also closes its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Accepted channels stay open.
    Keep,
    /// Accepted channels are closed.
    Close,
}

impl Listener {
    /// The number of open channels, including those that the program has not accepted yet. A channel counts until it is closed, or a
    /// call on it has noticed that its peer is gone; a full listener checks by itself.
    pub fn size(&self) -> usize {
        self.here().map_or(0, |endpoint| endpoint.slots.lock().all)
    }

    /// The number of accepted and refused clients, and the sums over all channels.
    pub fn stats(&self) -> EndpointStats {
        self.stats_with(self.size())
    }

    /// Waits for the next arrival.
    ///
    /// # Errors
    /// [`Error::Closed`] once the listener is closed, and in a forked child; [`Error::Aborted`] once it is cancelled.
    /// [`Error::NoSpace`] or [`Error::Unsupported`] in two cases. If the wait of this call fails (poll(2)), the call can be repeated. If
    /// the listener's own wait has failed for ten seconds, this is returned once, and the listener is closed.
    pub fn accept(&self) -> Result<Arrival> {
        self.event()
    }

    /// As [`Listener::accept`]. Fails with [`Error::TimedOut`] at the deadline. No arrival is lost by that.
    ///
    /// ```no_run
    /// use std::time::{Duration, Instant};
    ///
    /// use ringfence::{Error, Options, listen};
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// let listener = listen(&"/run/orders/service.sock".parse()?, &Options::new())?;
    /// match listener.accept_until(Instant::now() + Duration::from_secs(60)) {
    ///     Ok(arrival) => println!("{arrival:?}"),
    ///     Err(Error::TimedOut) => println!("no agent for a minute"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_until(&self, deadline: Instant) -> Result<Arrival> {
        self.event_until(Some(deadline))?.ok_or(Error::TimedOut)
    }

    /// Returns the next arrival, if there is one now.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub fn try_accept(&self) -> Result<Option<Arrival>> {
        self.try_event()
    }

    /// Stops listening: the address is free when this returns. Clients with a running handshake, and agents that the program has not
    /// accepted yet, are refused or closed.
    pub fn close(&self, channels: Channels) {
        // A forked child has neither the address nor the worker.
        let Ok(endpoint) = self.here() else { return };
        endpoint.end(End::Closed);
        self.own.stop().cancel();
        self.own.wait();
        if channels == Channels::Close {
            for channel in endpoint.channels() {
                channel.finish(ChannelState::ClosedHere);
            }
        }
    }
}

/// The kind of endpoint that a [`Listener`] is the handle of.
#[derive(Debug)]
pub struct Service;

impl HandleKind for Service {
    const HANDLE: &'static str = "Listener";
    type Own = Worker;

    fn dropped(listener: &mut Listener) {
        listener.close(Channels::Keep);
    }
}

impl EndpointKind for Service {
    const MEETING: Meeting = Meeting::Service;
    const NAME: &'static str = "service";
    const CLOSED: &'static str = "the listener is closed";
    const CANCELLED: &'static str = "the service has closed";
    type State = ();
    type Event = Arrival;

    fn check_free(endpoint: &Endpoint<Self>, peer: Credentials) -> Result<()> {
        endpoint.check_slots(peer).or_else(|_| {
            // Agents may have left while no call on their channel noticed.
            for channel in endpoint.channels() {
                channel.check_peer();
            }
            endpoint.check_slots(peer)
        })
    }

    fn has_room(endpoint: &Endpoint<Self>, running: usize) -> bool {
        endpoint.events.has_room(MAX_PENDING, running, |_| true)
    }

    fn ready(endpoint: &Arc<Endpoint<Self>>, parts: Parts, slot: SlotGuard<Self>, options: &Options) {
        let channel = Channel::assemble(parts, Some(Box::new(Some(slot))), options);
        endpoint.ledger.lock().accepted(&channel);
        endpoint.events.add(Arrival::Accepted(channel));
    }
}

impl Endpoint<Service> {
    /// Ends the listening: drops the events that the program has not taken.
    fn end(&self, end: End) {
        self.events.end(end);
        self.events.discard();
    }
}

/// The worker of a listener.
fn accept((endpoint, bound): (Arc<Endpoint<Service>>, BoundAlone)) {
    let _end_guard = EndWithWorker(Arc::clone(&endpoint));
    bound.accept(&endpoint, |error, release| {
        endpoint.end(End::Failed(error));
        drop(release);
    });
}
