//! A service and its agents: one process listens, many connect, and each gets a channel and memory of its own.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Weak},
    time::Instant,
};

use crate::{
    address::Address,
    channel::end::ChannelState,
    channel::{self, Channel},
    error::{Error, Result},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    handshake::parts::Side,
    host::accept::{Acceptor, Refused, SIDE_BY_SIDE},
    host::admit::Admission,
    host::connect::call,
    host::endpoint::{Endpoint, Seat, Shared},
    host::events::End,
    host::handle::{Handle, Idle, Worker},
    host::ledger::EndpointStats,
    host::seats::TakenSeats,
    host::standing::Standing,
    identity::Credentials,
    options::{Options, SeatLimits},
};

/// Events that the program has not asked for yet: beyond that, newcomers wait in the kernel's backlog.
const MOST_PENDING: usize = SIDE_BY_SIDE;

/// Binds an address for a service. Agents [`connect`] there, as many as [`Options::max_peers`] allows, and each gets a
/// channel and memory of its own.
///
/// The mode and the group of a path are set before any process can reach it. A socket that a dead service has left is taken
/// over. With [`Options::wait`] it waits for an address that another process has. [`Options::cancel_token`] ends that waiting,
/// and afterwards the listening.
///
/// Handshakes run on threads of the listener's, side by side, each with the deadline of [`Options::timeout`]: a newcomer that
/// fails, is slow or says nothing costs the others nothing. An open channel has no thread, and holds two descriptors: a thousand
/// agents take an `RLIMIT_NOFILE` above 3,000 (getrlimit(2)), of which 900 are for handshakes and newcomers.
///
/// # Errors
/// [`Error::AddressOccupied`] where another process has the address, without [`Options::wait`]; [`Error::AddressInvalid`];
/// [`Error::InvalidArgument`] for options that contradict each other; [`Error::NoSpace`]; [`Error::Aborted`] when called off.
pub fn listen(address: &Address, options: &Options) -> Result<Listener> {
    let options = options.clone().checked()?;
    let (given, address) = (address, &address.absolute());
    let (standing, worker) = Standing::take(address, &options)?;
    let own = Service {
        limits: options.seats(),
    };
    let shared = Shared::new(address.clone(), own)?;
    let thread = Idle::spawn("ringfence-accept", "a thread for the listener", Listening::run)?;
    let listener = Listener {
        handle: Handle::new(given, &shared),
        worker,
    };
    thread.start(Listening {
        shared,
        options,
        standing,
    });
    Ok(listener)
}

/// Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
/// each time.
///
/// With [`Options::wait`] it waits for a service to come, and for a seat where the service is full. [`Options::cancel_token`] ends
/// the waiting.
///
/// At most 16 handshakes of one process with one address are under way at a time. A call beyond that waits for its turn, and
/// [`Options::timeout`] counts from there.
///
/// ```no_run
/// use ringfence::{Address, Options, connect};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/orders/service.sock".parse()?;
/// // Waits for the service to come, and for a seat.
/// let (mut sender, _receiver) = connect(&address, &Options::new().wait(true))?.split();
/// sender.send(b"hello")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Without [`Options::wait`]: [`Error::PeerLost`] where no process listens, [`Error::AddressOccupied`] where the service is full. In
/// any case [`Error::AddressInvalid`] for what waiting does not mend (a directory that is missing, a socket that this process may
/// not connect to); else as the guest of [`join`](crate::join).
pub fn connect(address: &Address, options: &Options) -> Result<Channel> {
    let options = options.clone().checked()?;
    let address = &address.absolute();
    let parts = call(
        address,
        &options,
        ("listens", "service"),
        |stream, record, deadline| {
            Side::new(address, &options, deadline, Meeting::Service).guest(stream, record)
        },
    )?;
    Ok(Channel::assemble(parts, None, &options))
}

/// A service at its address.
///
/// ```no_run
/// use ringfence::{Address, Arrival, Options, Policy, listen};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/orders/service.sock".parse()?;
/// let options = Options::new().mode(0o666).policy(Policy::new().uids([1001, 1002]));
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
/// It holds at most 64 channels and refusals that the program has not taken yet. Beyond that newcomers wait in the kernel's
/// backlog, and one that is not taken in fails at its deadline with [`Error::HandshakeTimeout`].
///
/// Dropping it closes it, with [`Channels::Keep`].
#[derive(Debug)]
pub struct Listener {
    handle: Handle<Service>,
    worker: Worker,
}

/// What became of a process that came to a [`Listener`].
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Arrival {
    /// An agent has passed.
    Accepted(Channel),
    /// A newcomer has not passed. The listener goes on.
    Refused(Refused),
}

impl From<Refused> for Arrival {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// What becomes of a listener's channels when it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Those that were accepted go on.
    Keep,
    /// They are closed.
    Close,
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.handle.address()
    }

    /// Channels that are open now, those that the program has not accepted yet included. A channel counts until it was closed, or
    /// a call on it has noticed that its peer is gone; a full listener looks for itself.
    pub fn size(&self) -> usize {
        let size = self.handle.here().map(|shared| shared.state().seats.count());
        size.unwrap_or(0)
    }

    /// What has come so far, and what went through all of its channels.
    pub fn stats(&self) -> EndpointStats {
        self.handle.stats(self.size())
    }

    /// Waits for the next arrival.
    ///
    /// # Errors
    /// [`Error::Closed`] once the listener was closed, and in a forked child; [`Error::Aborted`] once it was called off; once
    /// [`Error::NoSpace`] or [`Error::Unsupported`] where its own wait has failed for ten seconds, after which it is closed. The same where
    /// this call cannot wait (poll(2)): then it can be made again.
    pub fn accept(&self) -> Result<Arrival> {
        self.handle.next()
    }

    /// As [`Listener::accept`], up to a deadline, when it errors with [`Error::TimedOut`]. No arrival is lost by that.
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
        self.handle.next_until(Some(deadline))?.ok_or(Error::TimedOut)
    }

    /// The next arrival, if there is one now.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub fn try_accept(&self) -> Result<Option<Arrival>> {
        self.handle.try_next()
    }

    /// Lets newcomers wait in the kernel's backlog. Handshakes under way, 64 at most, go on.
    pub fn pause(&self) {
        self.handle.set_paused(true);
    }

    /// Takes newcomers in again.
    pub fn resume(&self) {
        self.handle.set_paused(false);
    }

    /// Listens no more: the address is free when this returns. Newcomers with a handshake under way, and agents that the program
    /// has not accepted yet, are told so, and their channels are closed.
    pub fn close(&self, channels: Channels) {
        let Self { handle, worker } = self;
        // In a child: the address is its parent's, and the worker that would say that it is free is not here.
        let Ok(shared) = handle.here() else { return };
        shared.end(End::Closed);
        worker.stop().cancel();
        worker.wait();
        if channels == Channels::Close {
            for channel in shared.open_channels() {
                channel.finish(ChannelState::ClosedHere);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close(Channels::Keep);
    }
}

impl AsFd for Listener {
    /// Readable when [`Listener::try_accept`] has an arrival, or the listener has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// The kind of endpoint that a [`Listener`] is the handle of.
#[derive(Debug)]
pub(crate) struct Service {
    limits: SeatLimits,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Channels that were made; some of them are over.
    made: Vec<Weak<channel::end::Shared>>,
    seats: TakenSeats,
}

impl Endpoint for Service {
    const MEETING: Meeting = Meeting::Service;
    const CLOSED: &'static str = "the listener is closed";
    const BREAKS_OFF: &'static str = "the service has closed";
    type State = State;
    type Event = Arrival;

    fn ask(shared: &Shared<Self>, who: Credentials) -> Result<()> {
        if shared.check_seats(who).is_err() {
            shared.notice_ends();
        }
        shared.check_seats(who)
    }

    fn take(shared: &Shared<Self>, who: Credentials) -> Result<()> {
        Self::ask(shared, who)?;
        let mut state = shared.state();
        shared.check_seats_in(&state, who)?;
        state.seats.take(who);
        Ok(())
    }

    fn give_back(shared: &Shared<Self>, who: Credentials) {
        shared.state().seats.give_back(who);
    }

    fn has_room(shared: &Shared<Self>, under_way: usize) -> bool {
        shared.events.has_room(MOST_PENDING, under_way, |_| true)
    }

    fn ready(shared: &Arc<Shared<Self>>, parts: Parts, seat: Seat<Self>, options: &Options) {
        let channel = Channel::assemble(parts, Some(Box::new(Some(seat))), options);
        shared.remember(&channel);
        shared.count_accepted(&channel);
        shared.events.add(Arrival::Accepted(channel));
    }
}

impl Shared<Service> {
    /// Errors where there is no seat for a process now.
    fn check_seats(&self, who: Credentials) -> Result<()> {
        self.check_seats_in(&self.state(), who)
    }

    fn check_seats_in(&self, state: &State, who: Credentials) -> Result<()> {
        let refusal = state.seats.refusal(&self.limits, who, "service");
        refusal.map_or(Ok(()), |by| Err(self.address.occupied(by)))
    }

    fn remember(&self, channel: &Channel) {
        let mut state = self.state();
        if state.made.len() > 2 * state.seats.count() + 16 {
            state.made.retain(|channel| channel.strong_count() > 0);
        }
        state.made.push(Arc::downgrade(channel.shared()));
    }

    fn open_channels(&self) -> Vec<Arc<channel::end::Shared>> {
        self.state().made.iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks for agents that have left while no call on their channel was there to notice.
    fn notice_ends(&self) {
        for channel in self.open_channels() {
            channel.doorbell.look();
            channel.notice();
        }
    }

    /// The listening is over: the program takes no more of what has come, and nothing more comes.
    fn end(&self, end: End) {
        self.events.end(end);
        self.events.discard();
    }
}

/// What the worker takes newcomers in with.
struct Listening {
    shared: Arc<Shared<Service>>,
    options: Options,
    standing: Standing,
}

impl Listening {
    fn run(self) {
        let Self {
            shared,
            options,
            standing,
        } = self;
        let Standing {
            place,
            record,
            deadline,
            over,
            hold,
        } = standing;
        let _told = shared.end_with_worker();
        let acceptor = Acceptor {
            address: &shared.address,
            options: &options,
            meeting: Service::MEETING,
            record: &record,
            bell: &shared.bell,
            shares: &[],
            ring: None,
            over: &over,
        };
        let admission = Admission::new(&shared, &options);
        acceptor.run(&admission, place, &deadline, |place, result| {
            drop(place);
            let (Ok(error) | Err(error)) = result;
            shared.end(End::Failed(error));
            drop(hold);
        });
    }
}
