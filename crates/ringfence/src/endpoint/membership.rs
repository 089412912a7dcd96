//! Members of an address: two that share it, and keep it while one of them goes and another comes.
//!
//! The host passes its guest, with READY, the listening socket and the open lock file. So when the host leaves, or is
//! killed, there is no moment in which the address is free: its guest has it already, and calls listen(2) again, from
//! which moment on the kernel names it to whoever connects. A host that leaves takes nobody in any more, says so in its
//! region, and waits for the guest's answer before it lets go: whoever of the two goes last removes what is there.

use std::{
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::PollFlags;

use crate::{
    channel::Channel,
    channel::partner::Partner,
    channel::state::{ChannelState, Legacy, Shared, Tenure},
    endpoint::acceptor::{Door, Failed, Host},
    endpoint::events::{End, News},
    endpoint::service::Refused,
    error::{Check, Error, Result},
    evidence::Record,
    fork::{Birth, leave_torn},
    handshake::frame::Meeting,
    handshake::parts::{Parts, Role},
    handshake::{Seats, Side},
    identity::Credentials,
    options::Options,
    rendezvous::address::Address,
    rendezvous::election::{self, Inheritance, Met, Place},
    wait::backoff::Backoff,
    wait::cancel::{Bell, CancelToken},
    wait::deadline::Deadline,
};

/// Channels, and as many refusals, that nobody has asked for yet. With more channels than that nobody is taken in;
/// further refusals are not told.
const UNCLAIMED: usize = 16;
/// What the end of a membership may take beyond [`Options::timeout`], which it may wait for its partner's answer.
const ENOUGH: Duration = Duration::from_secs(30);

/// The token by which a host says that it leaves, the bytes "leaving" and a zero: a hint, and no more, since the guest goes by
/// what is said in the host's memory and on the line. A program that sends tokens of its own has another meaning for others.
pub const LEAVING: u64 = u64::from_le_bytes(*b"leaving\0");

/// Takes a place at an address, and keeps it while partners come and go.
///
/// Two hold an address, as with [`join`](crate::join): whoever comes first is the host, the second its guest, and they
/// have a channel. When the guest goes, the host takes the next. When the host goes, by [`Membership::leave`] or by its
/// death, the guest is the host from that moment on, and takes the next; nobody else can take the address in between. So
/// one of the two may be replaced at any time, while the other stays.
///
/// Returns once a place is held: for a host at once, for a guest with the channel, which is the first
/// [`Change`] then. Where two hold the address: [`Error::AddressOccupied`], or with [`Options::wait`], waits for a place.
/// [`Options::cancel_token`] ends that waiting; the membership is no longer tied to it. A member meets members alone: whoever
/// comes by `join` or `connect` is told (PROTOCOL).
///
/// A guest that is let in gets the listening socket, and the lock beside a path. So one that turns hostile can keep others
/// from the address; it cannot make them believe that it is another.
///
/// One thread of this crate's own keeps the place; a handshake under way has one as well.
pub fn member(address: &Address, options: &Options) -> Result<Membership> {
    let mut options = options.clone().checked()?;
    let deadline = Deadline::endless(options.cancel_token.take().into_iter().collect(), options.timeout);
    let door = Bell::new()?;
    let desk = Arc::new(Desk {
        address: address.absolute(),
        state: Mutex::default(),
        settled: Condvar::new(),
        news: News::new(door.clone(), "this process has left the address")?,
        door,
        birth: Birth::now()?,
    });
    let stop = CancelToken::new()?;
    let timeout = options.timeout;
    // Dropped when everything is let go of.
    let (held, gone) = mpsc::channel();
    let keeper = Keeper {
        desk: Arc::clone(&desk),
        options,
        stay: Deadline::endless(vec![stop.clone()], timeout),
        held,
    };
    // Before there is a place: what could not be kept is not taken, and no partner has seen this process come.
    let (begin, beginning) = mpsc::channel::<(Keeper, Footing)>();
    let thread = thread::Builder::new()
        .name("ringfence-member".into())
        .spawn(move || {
            if let Ok((keeper, footing)) = beginning.recv() {
                keeper.keep(footing);
            }
        })
        .map_err(|error| Error::NoSpace {
            what: "a thread for the membership".into(),
            reason: error.to_string(),
        })?;
    let arrived = keeper.arrive(&deadline);
    let membership = Membership {
        address: address.clone(),
        desk,
        stop,
        late: timeout.saturating_add(ENOUGH),
        gone: Mutex::new(gone),
    };
    match arrived {
        // It waits for this alone, and so it is there.
        Ok(footing) => drop(begin.send((keeper, footing))),
        Err(error) => {
            drop(begin);
            drop(keeper);
            // It has nothing to do, and no panic of its own.
            let _ = thread.join();
            return Err(error);
        }
    }
    Ok(membership)
}

/// A place at an address, kept while partners come and go.
///
/// ```no_run
/// use ringfence::{Address, Change, Options, member};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/user/1000/orders.sock".parse()?;
/// let membership = member(&address, &Options::new())?;
/// loop {
///     match membership.next()? {
///         Change::Channel(channel) => serve(channel),
///         Change::Role(role) => eprintln!("now the {role}"),
///         Change::Refused(refused) => eprintln!("{}", refused.error),
///         _ => {}
///     }
/// }
/// # }
/// # fn serve(channel: ringfence::Channel) {}
/// ```
///
/// A partner's channel ends like any other; what was sent before that is still read there, while the next partner comes.
/// Whoever closes a channel without leaving keeps its place: a host waits for the next, a guest comes anew. The same after
/// a channel that was corrupt or exposed.
///
/// Where 16 channels were not asked for, no partner is taken in until one is. Dropping it leaves.
#[derive(Debug)]
pub struct Membership {
    address: Address,
    desk: Arc<Desk>,
    stop: CancelToken,
    /// After this, whatever keeps the keeper does so for ever.
    late: Duration,
    gone: Mutex<mpsc::Receiver<()>>,
}

/// What a [`Membership`] tells.
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Change {
    /// A partner, by a channel of its own.
    Channel(Channel),
    /// This process has another part now: the guest of a host that has gone is the host.
    Role(Role),
    /// Somebody came and did not get a channel, or this process could not take the place of a host that has gone, and comes
    /// anew. The membership goes on.
    Refused(Refused),
}

impl Membership {
    /// Where the place is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Which part this process has now.
    pub fn role(&self) -> Role {
        let role = self.desk.birth.is_here().then(|| self.desk.state().role);
        role.flatten().unwrap_or(Role::Guest)
    }

    /// Whether there is a partner at present.
    pub fn has_partner(&self) -> bool {
        self.desk.birth.is_here() && self.desk.channel().is_some()
    }

    /// Waits for the next change.
    ///
    /// Errors with [`Error::Closed`] after [`Membership::leave`]. If the place was lost, with what it was lost by, once: a
    /// guest that came anew may have been refused, or found the address occupied.
    pub fn next(&self) -> Result<Change> {
        loop {
            if let Some(change) = self.next_until(None)? {
                return Ok(change);
            }
        }
    }

    /// The same, with a deadline. `None`: it has passed.
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<Change>> {
        self.desk.birth.check()?;
        let deadline = Deadline::endless(Vec::new(), Duration::ZERO).until(deadline);
        self.desk.news.wait(&deadline)
    }

    /// The next change, if there is one now. Errors as [`Membership::next`].
    pub fn try_next(&self) -> Result<Option<Change>> {
        self.desk.birth.check()?;
        self.desk.news.claim()
    }

    /// Waits for the next partner, and passes over all other changes. `None`: the deadline has passed. Errors as
    /// [`Membership::next`].
    pub fn partner(&self, deadline: Option<Instant>) -> Result<Option<Channel>> {
        loop {
            match self.next_until(deadline)? {
                Some(Change::Channel(channel)) => return Ok(Some(channel)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Lets newcomers wait in the kernel's backlog. Handshakes under way go on.
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

    /// Closes the channel, if there is a partner, and hands the address over to it: it is the host when this returns. The
    /// last to leave removes what is at the address.
    ///
    /// A partner that does not answer (its process was stopped, say) is waited for as long as [`Options::timeout`] says; it
    /// finds the address its own once it goes on.
    pub fn leave(self) {
        drop(self);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // The place is its parent's, and the keeper is not here.
        if !self.desk.birth.is_here() {
            return;
        }
        self.stop.cancel();
        let gone = self.gone.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It is never sent anything: this waits until the keeper has dropped the other end.
        if gone.recv_timeout(self.late) == Err(RecvTimeoutError::Timeout) {
            // The mode of the listening socket is its partner's to change as well, who may hang this side's accept by it.
            self.desk.shut();
            let _ = gone.recv();
        }
        // A channel that nobody has claimed has the desk, which has the channel.
        self.desk.news.discard();
    }
}

impl AsFd for Membership {
    /// Readable when [`Membership::try_next`] has a change, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.desk.news.as_fd()
    }
}

/// What the membership, its keeper and its channels share.
#[derive(Debug)]
struct Desk {
    address: Address,
    state: Mutex<State>,
    /// Told when somebody has the place beside this one, or does not have it any more.
    settled: Condvar,
    news: News<Change>,
    /// Rung when the keeper should look again.
    door: Bell,
    /// A child has no place.
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
    /// `None` until there is a place.
    role: Option<Role>,
    /// There is a channel, as far as is known.
    partner: Option<Partner>,
    /// As the host: somebody has the place beside this one, or will have it in a moment.
    taken: bool,
    /// As the guest: what the end of the channel has brought.
    parted: Option<Parted>,
    paused: bool,
    /// The listening socket, while this side takes guests.
    listener: Weak<OwnedFd>,
}

/// What has become of a guest.
#[derive(Debug)]
enum Parted {
    /// Its host is gone, and it has taken its place.
    Heir(Place),
    /// Its host is there still, or whatever became of it: its place is lost.
    Lost,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement that changes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_role(&self, role: Role) {
        let former = self.state().role.replace(role);
        if former.is_some_and(|former| former != role) {
            self.news.add(Change::Role(role));
        }
    }

    fn partner(&self) -> Option<Partner> {
        self.state().partner.clone()
    }

    /// The channel with the partner, if that is there still. Not to be called under the lock: whoever finds the end of a
    /// channel comes back with it.
    fn channel(&self) -> Option<Arc<Shared>> {
        self.partner()?.open()
    }

    /// Notices a partner that has gone without anybody's notice, whoever has its channel.
    fn look(&self) {
        let Some(partner) = self.partner() else { return };
        if partner.open().is_none() {
            // Unless the next has come meanwhile.
            let gone = self.state().partner.take_if(|now| now.is(&partner));
            drop(gone);
        }
    }

    fn welcome(&self, channel: Channel) {
        self.state().partner = Some(Partner::of(channel.shared()));
        self.settled.notify_all();
        self.news.add(Change::Channel(channel));
        // It may have ended before anybody looked for that.
        self.look();
    }

    fn part(&self, parted: Option<Parted>) {
        let mut state = self.state();
        state.partner = None;
        state.taken = false;
        state.parted = parted;
        drop(state);
        self.settled.notify_all();
        self.door.ring();
    }

    /// Tells of a newcomer without a channel, or of what kept this process from a part.
    fn refuse(&self, refused: Refused) {
        let told = |change: &Change| matches!(change, Change::Refused(_));
        if self.news.has_room(UNCLAIMED, 0, told) {
            self.news.add(Change::Refused(refused));
        }
    }

    /// Whether anybody would ask for one more channel.
    fn has_room(&self, under_way: usize) -> bool {
        let counts = |change: &Change| matches!(change, Change::Channel(_));
        self.news.has_room(UNCLAIMED, under_way, counts) && !self.state().paused
    }

    /// This side takes guests at this socket, or does so no more.
    fn hold(&self, listener: Option<&Arc<OwnedFd>>) {
        self.state().listener = listener.map_or_else(Weak::new, Arc::downgrade);
    }

    fn occupied(&self) -> Error {
        self.address.occupied("two members hold it already")
    }

    /// Ends an accept that hangs.
    fn shut(&self) {
        let listener = self.state().listener.upgrade();
        if let Some(listener) = listener {
            Place::shut(&listener);
        }
    }
}

/// The place beside the host.
struct Seat(Arc<Desk>);

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seat({})", self.0.address)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.birth.is_here() {
            self.0.part(None);
        }
    }
}

/// A guest's place, and what it holds of its host's.
struct Heir {
    desk: Arc<Desk>,
    inheritance: Option<Inheritance>,
    /// Once the host is gone: its place, or why this process could not take it.
    place: Option<Result<Place>>,
}

impl std::fmt::Debug for Heir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Heir({})", self.desk.address)
    }
}

impl Tenure for Heir {
    /// A host that has left, or is dead, or executes another program, does not take anybody in any more. One that has only
    /// closed the channel, or ended it as corrupt or exposed, does.
    fn end(&mut self, how: ChannelState) -> bool {
        let is_gone = matches!(how, ChannelState::LeftByPeer | ChannelState::PeerExited);
        let inheritance = self.inheritance.take().filter(|_| is_gone);
        self.place = inheritance.map(Inheritance::take_over);
        matches!(self.place, Some(Ok(_)))
    }
}

impl Drop for Heir {
    /// Not before the host has seen the end: it would take whoever comes anew for a third.
    fn drop(&mut self) {
        if !self.desk.birth.is_here() {
            return;
        }
        let parted = match self.place.take() {
            Some(Ok(place)) => Parted::Heir(place),
            Some(Err(error)) => {
                // Its own trouble, of which nobody else tells.
                self.desk.refuse(Refused {
                    error,
                    identity: None,
                });
                Parted::Lost
            }
            None => Parted::Lost,
        };
        self.desk.part(Some(parted));
    }
}

/// Where a member stands.
enum Footing {
    Host(Place, Record),
    Guest,
}

/// Keeps the place, on a thread of its own.
struct Keeper {
    desk: Arc<Desk>,
    options: Options,
    /// Ends with the membership.
    stay: Deadline,
    /// Last, so that it goes last.
    #[expect(dead_code, reason = "dropped, it says that everything else is let go of")]
    held: mpsc::Sender<()>,
}

impl Keeper {
    /// Comes to the address, and comes again while those there come and go.
    fn arrive(&self, deadline: &Deadline) -> Result<Footing> {
        let mut backoff = Backoff::new(deadline);
        loop {
            match self.try_to_arrive(deadline) {
                Ok(Some(footing)) => return Ok(footing),
                Ok(None) => backoff.hung_up(None)?,
                Err(error) if is_passing(&error) => backoff.hung_up(Some(error))?,
                Err(Error::AddressOccupied { .. }) if self.options.wait => backoff.pause()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// `None`: whoever was there has gone without an answer.
    fn try_to_arrive(&self, deadline: &Deadline) -> Result<Option<Footing>> {
        let Self { desk, options, .. } = self;
        let mut record = Record::default();
        let stream = match election::meet(&desk.address, options.access()?, deadline, &mut record)? {
            Met::Host(place) => {
                desk.take_role(Role::Host);
                return Ok(Some(Footing::Host(place, record)));
            }
            Met::Guest(stream) => stream,
        };
        let within = deadline.within(options.timeout);
        let side = Side::new(&desk.address, options, &within, Meeting::Membership).inheriting(&desk.address);
        let Some(mut parts) = side.guest(stream, record)? else {
            return Ok(None);
        };
        let tenure = parts.inheritance.take().map(|inheritance| {
            let desk = Arc::clone(desk);
            let inheritance = Some(inheritance);
            let heir = Heir {
                desk,
                inheritance,
                place: None,
            };
            Box::new(heir) as Box<dyn Tenure>
        });
        desk.take_role(Role::Guest);
        desk.welcome(Channel::assemble(parts, tenure, options));
        Ok(Some(Footing::Guest))
    }

    fn keep(self, mut footing: Footing) {
        // Whatever ends this thread, whoever waits for news is told.
        struct Over(Arc<Desk>);
        impl Drop for Over {
            fn drop(&mut self) {
                self.0.news.end(End::Closed);
            }
        }
        let _over = Over(Arc::clone(&self.desk));
        loop {
            let next = match footing {
                Footing::Host(place, record) => self.host(place, &record),
                Footing::Guest => self.attend(),
            };
            match next {
                Ok(Some(next)) => footing = next,
                Ok(None) => {
                    self.desk.news.end(End::Closed);
                    self.desk.news.discard();
                    break;
                }
                Err(error) => {
                    self.desk.news.end(End::Failed(error));
                    break;
                }
            }
        }
    }

    /// Takes in partners, one after the other, until this process leaves (`None`).
    fn host(&self, place: Place, record: &Record) -> Result<Option<Footing>> {
        let Self {
            desk, options, stay, ..
        } = self;
        let door = Door {
            address: &desk.address,
            options,
            meeting: Meeting::Membership,
            record,
            bell: &desk.door,
        };
        let shares = place.share();
        desk.hold(shares.first());
        let usher = Usher {
            desk,
            options,
            shares,
            hindered: AtomicBool::new(false),
        };
        let (place, result) = door.keep(&usher, place, stay, |place, result| (place, result))?;
        drop(usher);
        desk.hold(None);
        match result {
            // Called off. Everybody has been told who was not a partner by then.
            Err(Error::Aborted) => {
                self.hand_over(place);
                Ok(None)
            }
            Err(error) | Ok(error) => Err(error),
        }
    }

    /// Nobody is taken in any more. Whoever has the place beside this one takes this one.
    fn hand_over(&self, place: Place) {
        let timeout = self.options.timeout;
        let answer = Deadline::endless(Vec::new(), timeout).within(timeout);
        let legacy = self.desk.channel().map_or(Legacy::Left, |channel| {
            // Where it cannot be sent (the queue of signals is full, say), nothing is lost.
            let _ = channel.send_token(LEAVING);
            channel.leave(&answer)
        });
        match legacy {
            Legacy::Taken | Legacy::Untold => place.pass_on(),
            Legacy::Left => drop(place),
        }
    }

    /// As a guest, until the channel has ended, or this process leaves (`None`).
    fn attend(&self) -> Result<Option<Footing>> {
        let Self { desk, stay, .. } = self;
        loop {
            desk.look();
            let parted = desk.state().parted.take();
            match parted {
                Some(Parted::Heir(place)) => {
                    desk.take_role(Role::Host);
                    desk.hold(place.share().first());
                    place.send_away();
                    let mut record = Record::default();
                    record.passed(
                        "rendezvous",
                        "role",
                        "the guest of a host that has gone is the host",
                        "host: taken over",
                    );
                    return Ok(Some(Footing::Host(place, record)));
                }
                Some(Parted::Lost) => return self.come_again(),
                None => {}
            }
            let partner = desk.partner();
            let mut watched = vec![(desk.door.as_fd(), PollFlags::POLLIN)];
            watched.extend(partner.iter().flat_map(Partner::watched));
            match stay.wait(&watched) {
                Ok(_) => desk.door.hush(),
                Err(Error::Aborted) => {
                    if let Some(open) = partner.and_then(|partner| partner.open()) {
                        open.finish(ChannelState::ClosedHere);
                    }
                    return self.part();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The channel has ended, or somebody is about to end it. The host may have gone in this very moment, and left this
    /// side the last.
    fn part(&self) -> Result<Option<Footing>> {
        let Self { desk, options, .. } = self;
        let deadline = Deadline::endless(Vec::new(), options.timeout);
        loop {
            let parted = desk.state().parted.take();
            if parted.is_some() {
                return Ok(None);
            }
            deadline.wait(&[(desk.door.as_fd(), PollFlags::POLLIN)])?;
            desk.door.hush();
        }
    }

    /// As one who was a guest before.
    fn come_again(&self) -> Result<Option<Footing>> {
        let Self { desk, stay, .. } = self;
        let come = || {
            while !desk.has_room(0) {
                stay.wait(&[(desk.door.as_fd(), PollFlags::POLLIN)])?;
                desk.door.hush();
            }
            self.arrive(stay)
        };
        match come() {
            Ok(footing) => Ok(Some(footing)),
            Err(Error::Aborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a newcomer that gets this has come at a bad moment: whoever it met was on its way out, so that the lock that it
/// passed was not the one beside the path any more; or it was named one and met another, who has taken that one's place. It
/// believes neither, and comes again; a lock that is wrong each time is refused in the end.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::PeerLost(_) => true,
        Error::PeerRefused(refusal) => !refusal.by_peer && matches!(refusal.check, Check::Line | Check::Lock),
        _ => false,
    }
}

/// Shows newcomers in, as long as there is a place beside this one.
struct Usher<'a> {
    desk: &'a Arc<Desk>,
    options: &'a Options,
    shares: Vec<Arc<OwnedFd>>,
    /// Whether it was told that nobody can be taken in.
    hindered: AtomicBool,
}

impl Usher<'_> {
    fn refused(&self, refused: Refused) {
        self.desk.refuse(refused);
    }
}

impl Seats for Usher<'_> {
    type Seat = Seat;

    fn ask(&self, _who: Credentials) -> Result<()> {
        let mut state = self.desk.state();
        // Its channel is about to be made here. It may have closed it already, and come anew.
        while state.taken && state.partner.is_none() {
            state = self
                .desk
                .settled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.desk.look();
        if self.desk.state().taken {
            return Err(self.desk.occupied());
        }
        Ok(())
    }

    fn take(&self, _who: Credentials) -> Result<Seat> {
        let mut state = self.desk.state();
        if state.taken {
            return Err(self.desk.occupied());
        }
        state.taken = true;
        Ok(Seat(Arc::clone(self.desk)))
    }

    fn closed(&self) -> Error {
        Error::Closed("the host has left")
    }
}

impl Host for Usher<'_> {
    type End = Error;

    fn may_begin(&self, under_way: usize) -> bool {
        self.desk.has_room(under_way)
    }

    fn ready(&self, parts: Parts, seat: Seat) -> ControlFlow<Error> {
        self.hindered.store(false, Ordering::Relaxed);
        let channel = Channel::assemble(parts, Some(Box::new(Some(seat))), self.options);
        self.desk.welcome(channel);
        ControlFlow::Continue(())
    }

    fn failed(&self, Failed { error, identity }: Failed) -> ControlFlow<Error> {
        self.hindered.store(false, Ordering::Relaxed);
        self.refused(Refused { error, identity });
        ControlFlow::Continue(())
    }

    fn hindered(&self, error: Error) -> ControlFlow<Error> {
        if matches!(error, Error::Closed(_)) {
            return ControlFlow::Break(error);
        }
        // Tried again many times a second; told once.
        if !self.hindered.swap(true, Ordering::Relaxed) {
            self.refused(Refused {
                error,
                identity: None,
            });
        }
        ControlFlow::Continue(())
    }

    fn partner(&self) -> Option<Partner> {
        self.desk.partner()
    }

    fn look_round(&self) {
        self.desk.look();
    }

    fn shares(&self) -> &[Arc<OwnedFd>] {
        &self.shares
    }
}
