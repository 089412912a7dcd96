//! A service and its agents: one process listens, many connect, and each gets a channel and memory of its own.

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    channel::Channel,
    channel::state::{ChannelState, Shared},
    endpoint::acceptor::{Door, Failed, Host, OF_ONE_PROCESS, SIDE_BY_SIDE},
    endpoint::events::{End, News},
    error::{Error, Result},
    evidence::Record,
    fork::{Birth, PerProcess, leave_torn},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    handshake::{Seats, Side},
    identity::{Credentials, Identity},
    options::{Options, SeatLimits},
    rendezvous::address::Address,
    rendezvous::election::{self, Place},
    wait::backoff::Backoff,
    wait::cancel::{Bell, CancelToken},
    wait::deadline::Deadline,
    wait::permits::Permits,
};

/// News that nobody has asked for yet: beyond that, newcomers wait in the kernel's backlog.
const UNCLAIMED: usize = SIDE_BY_SIDE;

/// Binds an address for a service. Agents [`connect`] there, as many as [`Options::max_peers`] allows, and each gets a
/// channel and memory of its own.
///
/// The mode and the group of a path are set before anybody can reach it. A socket that a dead service has left is taken
/// over. Where somebody has the address: [`Error::AddressOccupied`], or with [`Options::wait`], waits until it is free.
/// [`Options::cancel_token`] ends that waiting, and afterwards the listening.
///
/// Handshakes run on threads of the listener's, side by side, each with the deadline of [`Options::timeout`]: who fails,
/// dawdles or says nothing costs the others nothing. An open channel has no thread, and holds two descriptors: a thousand
/// agents take an `RLIMIT_NOFILE` above 3,000 (getrlimit(2)), of which 900 are for handshakes and newcomers.
pub fn listen(address: &Address, options: &Options) -> Result<Listener> {
    let options = options.clone().checked()?;
    let (given, address) = (address, &address.absolute());
    let deadline = Deadline::endless(options.cancel_token.iter().cloned().collect(), options.timeout);
    let mut backoff = Backoff::new(&deadline);
    let mut record = Record::default();
    let place = loop {
        match election::bind_alone(address, options.access()?, &mut record) {
            Err(Error::AddressOccupied { .. }) if options.wait => backoff.pause()?,
            other => break other?,
        }
    };
    let door = Bell::new()?;
    let desk = Arc::new(Desk {
        address: address.clone(),
        limits: options.seats(),
        state: Mutex::default(),
        news: News::new(door.clone(), "the listener is closed")?,
        door,
        birth: Birth::now()?,
    });
    let stop = CancelToken::new()?;
    let deadline = deadline.or(&stop);
    // Dropped when the address is free.
    let (bound, gone) = mpsc::channel();
    let reception = Reception {
        desk: Arc::clone(&desk),
        options,
        record,
        bound,
    };
    thread::Builder::new()
        .name("ringfence-door".into())
        .spawn(move || reception.keep(place, &deadline))
        .map_err(|error| Error::NoSpace {
            what: "a thread for the door".into(),
            reason: error.to_string(),
        })?;
    Ok(Listener {
        address: given.clone(),
        desk,
        stop,
        gone: Mutex::new(gone),
    })
}

/// Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
/// each time.
///
/// Where nobody listens: [`Error::PeerLost`], or with [`Options::wait`], waits for the service to come. Where the
/// service is full: [`Error::AddressOccupied`], or waits for a seat. What waiting does not mend (a directory that is
/// missing, a socket that this process may not connect to) is [`Error::AddressInvalid`]. [`Options::cancel_token`] ends the
/// waiting.
///
/// At most 16 handshakes of one process with one address are under way at a time; whoever calls from more threads waits for
/// its turn, and [`Options::timeout`] counts from there.
pub fn connect(address: &Address, options: &Options) -> Result<Channel> {
    let options = options.clone().checked()?;
    let address = &address.absolute();
    let deadline = Deadline::endless(options.cancel_token.iter().cloned().collect(), options.timeout);
    let mut backoff = Backoff::new(&deadline);
    loop {
        match connect_once(address, &options, &deadline) {
            Ok(Tried::Open(channel)) => return Ok(*channel),
            // It closes, and the next look finds nobody.
            Ok(Tried::HungUp) => backoff.hung_up(None)?,
            // It has closed, or ended, in the middle of the handshake. The next service may be there already.
            Err(error @ Error::PeerLost(_)) if options.wait => backoff.hung_up(Some(error))?,
            Ok(Tried::Nobody) | Err(Error::AddressOccupied { .. }) if options.wait => backoff.pause()?,
            Ok(Tried::Nobody) => return Err(nobody(address)),
            Err(error) => return Err(error),
        }
    }
}

enum Tried {
    Open(Box<Channel>),
    /// Nobody listens.
    Nobody,
    /// Somebody hung up without an answer.
    HungUp,
}

fn connect_once(address: &Address, options: &Options, deadline: &Deadline) -> Result<Tried> {
    let permits = permits(address)?;
    let _permit = permits.acquire(deadline)?;
    let within = &deadline.within(options.timeout);
    let mut record = Record::default();
    let Some(stream) = election::find(address, within, &mut record)? else {
        return Ok(Tried::Nobody);
    };
    let parts = Side::new(address, options, within, Meeting::Service).guest(stream, record)?;
    Ok(parts.map_or(Tried::HungUp, |parts| {
        Tried::Open(Box::new(Channel::assemble(parts, None, options)))
    }))
}

/// The turns of this process's handshakes as an agent at an address: a service refuses a process that has more under way.
/// Another address has its own, since its service may be slow, or may not answer at all.
fn permits(address: &Address) -> Result<Arc<Permits>> {
    static PERMITS: PerProcess<Mutex<HashMap<Address, Weak<Permits>>>> = PerProcess::new();
    let all = PERMITS.get()?;
    // The map is valid after every statement that changes it.
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(permits) = all.get(address).and_then(Weak::upgrade) {
        return Ok(permits);
    }
    // Those at which nobody calls any more.
    all.retain(|_, permits| permits.strong_count() > 0);
    let made = Arc::new(Permits::new(OF_ONE_PROCESS)?);
    all.insert(address.clone(), Arc::downgrade(&made));
    Ok(made)
}

fn nobody(address: &Address) -> Error {
    let directory = address.place().and_then(|path| path.parent());
    if directory.is_some_and(|directory| !directory.as_os_str().is_empty() && !directory.exists()) {
        return address.invalid("its directory does not exist", Some(nix::errno::Errno::ENOENT));
    }
    Error::PeerLost(format!(
        "nobody listens at {:?}; the `wait` option waits for the service",
        address.to_string()
    ))
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
/// What nobody has asked for yet is held: at most 64 channels and refusals. Beyond that newcomers wait in the kernel's
/// backlog, and whom nobody takes in fails at its deadline with [`Error::HandshakeTimeout`].
///
/// Dropping it closes it, with [`Channels::Keep`].
#[derive(Debug)]
pub struct Listener {
    address: Address,
    desk: Arc<Desk>,
    stop: CancelToken,
    gone: Mutex<mpsc::Receiver<()>>,
}

/// What became of somebody who came to a [`Listener`].
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Arrival {
    /// An agent has passed.
    Accepted(Channel),
    /// Somebody has not. The listener goes on.
    Refused(Refused),
}

/// Somebody who came to a [`Listener`] and did not get a channel.
#[non_exhaustive]
#[derive(Debug)]
pub struct Refused {
    /// Why: [`Error::PeerRefused`] (with the check, what was wanted and what was found), [`Error::HandshakeTimeout`],
    /// [`Error::Protocol`], [`Error::PeerLost`], [`Error::AddressOccupied`] where the service is full, or what kept this
    /// process from it, such as [`Error::NoSpace`].
    pub error: Error,
    /// As much as was learned of it: at least pid, uid and gid. `None` where it was not about one newcomer.
    pub identity: Option<Identity>,
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
        &self.address
    }

    /// Channels that are open now, those that nobody has accepted yet included. A channel counts until it was closed, or
    /// a call on it has noticed that its peer is gone; a full listener looks for itself.
    pub fn size(&self) -> usize {
        if self.desk.birth.is_here() {
            self.desk.state().taken
        } else {
            0
        }
    }

    /// Waits for the next news. Errors with [`Error::Closed`] once the listener was closed, and [`Error::Aborted`] once it
    /// was called off.
    pub fn accept(&self) -> Result<Arrival> {
        self.desk.birth.check()?;
        let deadline = Deadline::endless(Vec::new(), Duration::ZERO);
        loop {
            if let Some(arrival) = self.desk.news.wait(&deadline)? {
                return Ok(arrival);
            }
        }
    }

    /// The next news, if there are any now. Errors as [`Listener::accept`].
    pub fn try_accept(&self) -> Result<Option<Arrival>> {
        self.desk.birth.check()?;
        self.desk.news.claim()
    }

    /// Lets newcomers wait in the kernel's backlog. Handshakes under way, 64 at most, go on.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Takes newcomers in again.
    pub fn resume(&self) {
        self.set_paused(false);
        self.desk.door.ring();
    }

    fn set_paused(&self, paused: bool) {
        if self.desk.birth.is_here() {
            self.desk.state().paused = paused;
        }
    }

    /// Listens no more: the address is free when this returns. Whoever has a handshake under way or was not accepted yet
    /// is told, and their channels are closed.
    pub fn close(&self, channels: Channels) {
        // The door is its parent's, and the thread that would say that it is shut is not here.
        if !self.desk.birth.is_here() {
            return;
        }
        self.desk.end(End::Closed);
        self.stop.cancel();
        // It is never sent anything: this waits until the door has dropped the other end.
        let _ = self.gone.lock().unwrap_or_else(PoisonError::into_inner).recv();
        if channels == Channels::Close {
            for channel in self.desk.open() {
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
    /// Readable when [`Listener::try_accept`] has news, or the listener has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.desk.news.as_fd()
    }
}

/// What the listener and its door share.
#[derive(Debug)]
struct Desk {
    address: Address,
    limits: SeatLimits,
    state: Mutex<State>,
    news: News<Arrival>,
    /// Rung when newcomers may be taken in again.
    door: Bell,
    /// A child has neither the door nor a seat.
    birth: Birth,
}

impl Drop for Desk {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            leave_torn(&mut self.state);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Channels that were made; some of them are over.
    made: Vec<Weak<Shared>>,
    /// Seats that are taken: all of them, and those of each process and of each user.
    taken: usize,
    of_process: HashMap<i32, usize>,
    of_user: HashMap<u32, usize>,
    paused: bool,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement that changes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in mind that there is a channel.
    fn note(&self, channel: &Channel) {
        let mut state = self.state();
        if state.made.len() > 2 * state.taken + 16 {
            state.made.retain(|channel| channel.strong_count() > 0);
        }
        state.made.push(Arc::downgrade(channel.shared()));
    }

    fn open(&self) -> Vec<Arc<Shared>> {
        self.state().made.iter().filter_map(Weak::upgrade).collect()
    }

    /// Why there is no seat for a process now, if there is none.
    fn refusal(&self, state: &State, who: Credentials) -> Option<Error> {
        let SeatLimits { all, .. } = self.limits;
        let (of_process, of_user) = (self.limits.of_process, self.limits.of_user(who.uid));
        let has = |taken: Option<&usize>| taken.copied().unwrap_or(0);
        let by = if state.taken >= all {
            format!("the service is full, with {all} at once")
        } else if has(state.of_user.get(&who.uid)) >= of_user {
            format!(
                "user {} has {of_user} of the service's channels, and one user may have no more at once \
                 (maxPeersPerUser)",
                who.uid
            )
        } else if has(state.of_process.get(&who.pid)) >= of_process {
            format!(
                "process {} has {of_process} of the service's channels, and one process may have no more at once \
                 (maxPeersPerProcess)",
                who.pid
            )
        } else {
            return None;
        };
        Some(self.address.occupied(by))
    }

    /// Looks for seats whose agents have left without anybody's notice.
    fn look_round(&self) {
        for channel in self.open() {
            channel.doorbell.look();
            channel.notice();
        }
    }

    /// The listening is over: nobody will claim what nobody has claimed, and nothing more will come.
    fn end(&self, end: End) {
        self.news.end(end);
        self.news.discard();
    }
}

/// An agent's seat, for as long as its channel is open.
struct Seat {
    desk: Arc<Desk>,
    who: Credentials,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seat({})", self.desk.address)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.desk.birth.is_here() {
            return;
        }
        let mut state = self.desk.state();
        state.taken -= 1;
        give_back(&mut state.of_process, self.who.pid);
        give_back(&mut state.of_user, self.who.uid);
    }
}

fn give_back<K: Eq + std::hash::Hash>(seats: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut taken) = seats.entry(key) {
        *taken.get_mut() -= 1;
        if *taken.get() == 0 {
            taken.remove();
        }
    }
}

/// What the thread at the door works with.
struct Reception {
    desk: Arc<Desk>,
    options: Options,
    record: Record,
    bound: mpsc::Sender<()>,
}

impl Reception {
    fn keep(self, place: Place, deadline: &Deadline) {
        // Whatever ends this thread, whoever waits for news is told.
        struct Over(Arc<Desk>);
        impl Drop for Over {
            fn drop(&mut self) {
                self.0.end(End::Closed);
            }
        }
        let _over = Over(Arc::clone(&self.desk));
        let door = Door {
            address: &self.desk.address,
            options: &self.options,
            meeting: Meeting::Service,
            record: &self.record,
            bell: &self.desk.door,
        };
        let clerk = Clerk {
            desk: &self.desk,
            options: &self.options,
            hindered: AtomicBool::new(false),
        };
        let bound = self.bound;
        let kept = door.keep(&clerk, place, deadline, |place, result| {
            drop(place);
            let Err(error) = result;
            self.desk.end(End::Failed(error));
            drop(bound);
        });
        if let Err(error) = kept {
            self.desk.end(End::Failed(error));
        }
    }
}

/// Decides who gets a seat, and brings the news to the desk.
struct Clerk<'a> {
    desk: &'a Arc<Desk>,
    options: &'a Options,
    /// Whether it was told that nobody can be taken in.
    hindered: AtomicBool,
}

impl Seats for Clerk<'_> {
    type Seat = Seat;

    fn ask(&self, who: Credentials) -> Result<()> {
        let refusal = || self.desk.refusal(&self.desk.state(), who);
        if refusal().is_some() {
            self.desk.look_round();
        }
        refusal().map_or(Ok(()), Err)
    }

    fn take(&self, who: Credentials) -> Result<Seat> {
        self.ask(who)?;
        let mut state = self.desk.state();
        if let Some(refusal) = self.desk.refusal(&state, who) {
            return Err(refusal);
        }
        state.taken += 1;
        *state.of_process.entry(who.pid).or_default() += 1;
        *state.of_user.entry(who.uid).or_default() += 1;
        drop(state);
        let desk = Arc::clone(self.desk);
        Ok(Seat { desk, who })
    }

    fn closed(&self) -> Error {
        Error::Closed("the service has closed")
    }
}

impl Host for Clerk<'_> {
    type End = Infallible;

    fn may_begin(&self, under_way: usize) -> bool {
        self.desk.news.has_room(UNCLAIMED, under_way, |_| true) && !self.desk.state().paused
    }

    fn ready(&self, parts: Parts, seat: Seat) -> ControlFlow<Infallible> {
        self.hindered.store(false, Ordering::Relaxed);
        let channel = Channel::assemble(parts, Some(Box::new(Some(seat))), self.options);
        self.desk.note(&channel);
        self.desk.news.add(Arrival::Accepted(channel));
        ControlFlow::Continue(())
    }

    fn failed(&self, Failed { error, identity }: Failed) -> ControlFlow<Infallible> {
        self.hindered.store(false, Ordering::Relaxed);
        self.desk.news.add(Arrival::Refused(Refused { error, identity }));
        ControlFlow::Continue(())
    }

    fn hindered(&self, error: Error) -> ControlFlow<Infallible> {
        // Tried again many times a second; told once.
        if !self.hindered.swap(true, Ordering::Relaxed) {
            self.desk.news.add(Arrival::Refused(Refused {
                error,
                identity: None,
            }));
        }
        ControlFlow::Continue(())
    }
}
