//! What stays at an address: a service, a membership, a publisher.
//!
//! It has four parts, and [`Shared`] is what they have in common:
//! - the [`Handle`](crate::host::handle::Handle), which the program holds;
//! - the worker thread, which keeps the address bound and takes newcomers in by an
//!   [`Admission`](crate::host::admit::Admission);
//! - the threads of the handshakes;
//! - the [`Seat`] of each channel that was made there.
//!
//! An [`Endpoint`] is a kind of these: it says what its own state is, who gets a seat, and what becomes of a newcomer that has
//! passed.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    address::Address,
    channel::Channel,
    channel::end::Partner,
    error::{Error, Result},
    fork::{Birth, leave_torn},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    host::accept::Refused,
    host::events::{End, Events},
    host::ledger::{EndpointStats, Ledger},
    identity::Credentials,
    options::Options,
    sys::lock::{Mutex, MutexGuard},
    wait::deadline::Wakeup,
};

/// A kind of endpoint. The value is what such an endpoint has beside the state that changes.
pub(crate) trait Endpoint: fmt::Debug + Send + Sync + Sized + 'static {
    /// What processes meet for here.
    const MEETING: Meeting;
    /// What a call on the handle says after the end.
    const CLOSED: &'static str;
    /// What a guest is told whose handshake breaks off because the endpoint does not go on.
    const BREAKS_OFF: &'static str;

    /// What changes, under the lock of [`Shared::state`].
    type State: Default + fmt::Debug + Send;
    /// What the program is told.
    type Event: From<Refused> + fmt::Debug + Send;

    /// Whether there would be a seat for this process now, so that a handshake is worth its while.
    fn ask(shared: &Shared<Self>, who: Credentials) -> Result<()>;

    /// Takes a seat for this process, if there is one.
    fn take(shared: &Shared<Self>, who: Credentials) -> Result<()>;

    /// The seat is free again.
    fn give_back(shared: &Shared<Self>, who: Credentials);

    /// Whether the program takes its events, so that one more newcomer may be looked at besides those under way.
    fn has_room(shared: &Shared<Self>, under_way: usize) -> bool;

    /// A newcomer has passed.
    fn ready(shared: &Arc<Shared<Self>>, parts: Parts, seat: Seat<Self>, options: &Options);

    /// A newcomer has not passed, or this process could not take it in.
    fn refused(shared: &Shared<Self>, refused: Refused) {
        shared.events.add(refused.into());
    }

    /// Whether trouble on this side ends the accepting. Else it is tried again.
    fn is_final(_error: &Error) -> bool {
        false
    }

    /// The acceptor was woken, by anything: looks for ends of channels that no call has noticed.
    fn look_round(_shared: &Shared<Self>) {}

    /// Channels whose end the acceptor waits for as well.
    fn partners(_shared: &Shared<Self>) -> Vec<Partner> {
        Vec::new()
    }
}

/// What all parts of an endpoint have in common. It derefs to the endpoint's own part.
#[derive(Debug)]
pub(crate) struct Shared<E: Endpoint> {
    pub(crate) address: Address,
    state: Mutex<E::State>,
    pub(crate) events: Events<E::Event>,
    /// Rung when the worker should look again.
    pub(crate) bell: Wakeup,
    /// Written by the program, read by the worker: newcomers wait in the kernel's backlog.
    paused: AtomicBool,
    /// A child has neither the worker nor a seat.
    birth: Birth,
    ledger: Mutex<Ledger>,
    own: E,
}

impl<E: Endpoint> Shared<E> {
    pub(crate) fn new(address: Address, own: E) -> Result<Arc<Self>> {
        let bell = Wakeup::new()?;
        Ok(Arc::new(Self {
            address,
            state: Mutex::default(),
            events: Events::new(bell.clone(), E::CLOSED)?,
            bell,
            paused: AtomicBool::new(false),
            birth: Birth::now()?,
            ledger: Mutex::default(),
            own,
        }))
    }

    /// For the threads of the endpoint, which a child does not have, and for the program by [`Handle::here`](crate::host::handle::Handle::here):
    /// in a child, the thread that had the lock at the fork is not there to release it.
    pub(crate) fn state(&self) -> MutexGuard<'_, E::State> {
        self.state.lock()
    }

    /// The process that made it.
    pub(crate) fn birth(&self) -> Birth {
        self.birth
    }

    /// Whether this is the process that made it, and not a child of that.
    pub(crate) fn is_here(&self) -> bool {
        self.birth.is_here()
    }

    /// Errors with [`Error::Closed`] in a child.
    pub(crate) fn check(&self) -> Result<()> {
        self.birth.check()
    }

    /// A newcomer has this channel.
    pub(crate) fn count_accepted(&self, channel: &Channel) {
        self.ledger.lock().accepted(channel);
    }

    /// A newcomer has none.
    pub(crate) fn count_refused(&self, error: &Error) {
        self.ledger.lock().refused(error);
    }

    /// What was counted so far, where so many channels are open.
    pub(crate) fn stats(&self, open: usize) -> EndpointStats {
        self.ledger.lock().stats(open)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Lets incoming connections wait in the kernel's backlog, or accepts them again.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        if !paused {
            self.bell.signal();
        }
    }

    /// A seat for a process, until it is dropped.
    pub(crate) fn seat(self: &Arc<Self>, who: Credentials) -> Result<Seat<E>> {
        E::take(self, who)?;
        Ok(Seat {
            shared: Arc::clone(self),
            who,
        })
    }

    /// However the worker ends, by a panic as well: when this is dropped, the program that waits for events is told.
    pub(crate) fn end_with_worker(self: &Arc<Self>) -> EndWithWorker<E> {
        EndWithWorker(Arc::clone(self))
    }
}

impl<E: Endpoint> Deref for Shared<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.own
    }
}

impl<E: Endpoint> Drop for Shared<E> {
    fn drop(&mut self) {
        if !self.is_here() {
            leave_torn(&mut self.state);
            leave_torn(&mut self.ledger);
        }
    }
}

/// See [`Shared::end_with_worker`].
pub(crate) struct EndWithWorker<E: Endpoint>(Arc<Shared<E>>);

impl<E: Endpoint> Drop for EndWithWorker<E> {
    fn drop(&mut self) {
        // An end that was told before this one counts.
        self.0.events.end(End::Closed);
    }
}

/// The seat of a guest that has passed, for as long as its channel is open.
pub(crate) struct Seat<E: Endpoint> {
    shared: Arc<Shared<E>>,
    who: Credentials,
}

impl<E: Endpoint> fmt::Debug for Seat<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({})", self.shared.address)
    }
}

impl<E: Endpoint> Drop for Seat<E> {
    fn drop(&mut self) {
        if self.shared.is_here() {
            E::give_back(&self.shared, self.who);
        }
    }
}
