//! The kind of endpoint behind a [`Membership`](crate::Membership): two members share an address, and keep it while one of them
//! is replaced.
//!
//! The host passes its guest, with READY, the listening socket and the open lock file. So when the host leaves or is killed, the
//! address is never free: the guest has it already, and calls listen(2) again, and from then on the kernel names the guest to a
//! process that connects. A host that leaves stops accepting clients, announces that in its region, and waits for the guest's answer
//! before it releases the address. The last member to leave removes the files.
//!
//! [`MemberWorker`] owns the place and moves between the two roles. [`MemberState`] is written under the lock of the endpoint: by the
//! worker, by handshakes, and by the end of the channel, which [`Successor`] handles on a guest.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::poll::PollFlags;

use crate::{
    address::bound::{BoundAddress, Inheritance},
    address::election::{self, MeetOutcome},
    channel::Channel,
    channel::end::{ChannelState, Handover, OnEnd, Partner, Shared},
    error::{Check, Error, Result},
    evidence::{EvidenceLog, SUCCESSION},
    handshake::frame::Meeting,
    handshake::parts::{Parts, Role, Side},
    host::accept::Refused,
    host::endpoint::{Admission, EndWithWorker, Endpoint, EndpointKind, ReleaseGuard, SlotGuard},
    host::events::End,
    identity::Credentials,
    options::Options,
    sys::lock::Condvar,
    wait::deadline::{Backoff, CancelToken, Deadline, RetryBudget},
};

/// The token by which a host announces that it leaves: the bytes "leaving" and a zero. It is a hint only: the guest relies on the
/// host's memory and on the line. A program that sends tokens of its own must not use this value for anything else.
pub const LEAVING: u64 = u64::from_le_bytes(*b"leaving\0");

/// The number of channels that the program has not taken yet. If it is exceeded, no client is admitted.
const MAX_PENDING: usize = 16;
/// The number of refusals that the program has not taken yet. Further ones are dropped, since a program need not take them.
const MAX_REFUSALS: usize = 1024;

/// An event of a [`Membership`](crate::Membership).
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "most are channels, and each is moved twice at most"
)]
#[derive(Debug)]
pub enum Change {
    /// A partner has joined, over this channel.
    Channel(Channel),
    /// This process has another role: the guest of a host that has gone is the host.
    Role(Role),
    /// A client was refused, or this process could not take the place of a host that has gone, and joins again. The membership
    /// goes on.
    Refused(Refused),
}

impl From<Refused> for Change {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// The kind of endpoint that a [`Membership`](crate::Membership) is the handle of.
#[derive(Debug, Default)]
pub struct Member {
    /// Notified when the slot is given to a guest, and when it is free again.
    slot_changed: Condvar,
    /// The program leaves without ending its sending cleanly. Set before the worker is stopped.
    pub(crate) destroyed: AtomicBool,
}

#[derive(Default)]
pub(crate) struct MemberState {
    /// `None` until there is a place.
    pub(crate) role: Option<Role>,
    /// The channel, unless its end was noticed.
    partner: Option<Partner>,
    /// As the host: a guest has the slot, or is about to get it.
    is_taken: bool,
    /// As the guest: the result of the channel's end.
    outcome: Option<GuestOutcome>,
    /// The listening socket, while this side accepts guests.
    listener: Weak<OwnedFd>,
}

/// The situation of a guest whose channel has ended.
enum GuestOutcome {
    /// Its host is gone, and the guest has the host's place.
    Successor(BoundAddress),
    /// Its host is still there, or the host's place could not be taken: the guest has no place.
    Lost,
}

impl EndpointKind for Member {
    const MEETING: Meeting = Meeting::Membership;
    const NAME: &'static str = "membership";
    const CLOSED: &'static str = "this process has left the address";
    const CANCELLED: &'static str = "the host has left";
    type State = MemberState;
    type Event = Change;

    fn check_free(endpoint: &Endpoint<Self>, _who: Credentials) -> Result<()> {
        let mut state = endpoint.state();
        // The channel of the last guest is being opened here. The guest may have closed it already, and joined again.
        while state.is_taken && state.partner.is_none() {
            state = endpoint.slot_changed.wait(state);
        }
        drop(state);
        endpoint.notice_end();
        if endpoint.state().is_taken {
            return Err(endpoint.occupied());
        }
        Ok(())
    }

    fn claim(endpoint: &Endpoint<Self>, _who: Credentials) -> Result<()> {
        let mut state = endpoint.state();
        if state.is_taken {
            return Err(endpoint.occupied());
        }
        state.is_taken = true;
        Ok(())
    }

    fn release(endpoint: &Endpoint<Self>, _who: Credentials) {
        endpoint.clear_channel(None);
    }

    fn has_room(endpoint: &Endpoint<Self>, _under_way: usize) -> bool {
        let counts = |change: &Change| matches!(change, Change::Channel(_));
        // Running handshakes do not count: at most one of them gets the slot.
        endpoint.events.has_room(MAX_PENDING, 0, counts)
    }

    fn ready(endpoint: &Arc<Endpoint<Self>>, parts: Parts, slot: SlotGuard<Self>, options: &Options) {
        let channel = Channel::assemble(parts, Some(Box::new(Some(slot))), options);
        endpoint.set_channel(channel);
    }

    fn refused(endpoint: &Endpoint<Self>, refused: Refused) {
        let counts = |change: &Change| matches!(change, Change::Refused(_));
        if endpoint.events.has_room(MAX_REFUSALS, 0, counts) {
            endpoint.events.add(Change::Refused(refused));
        }
    }

    /// The partner, which has the listening socket as well, has shut it down.
    fn is_final(error: &Error) -> bool {
        matches!(error, Error::Closed(_))
    }

    fn woken(endpoint: &Endpoint<Self>) {
        endpoint.notice_end();
    }

    fn partners(endpoint: &Endpoint<Self>) -> Vec<Partner> {
        endpoint.partner().into_iter().collect()
    }
}

impl Endpoint<Member> {
    fn set_role(&self, role: Role) {
        let former = self.state().role.replace(role);
        if former.is_some_and(|former| former != role) {
            self.events.add(Change::Role(role));
        }
    }

    fn partner(&self) -> Option<Partner> {
        self.state().partner.clone()
    }

    /// The channel with the partner, if it is open. Must not be called under the lock: a call that notices the end of the channel takes
    /// the lock.
    pub(crate) fn channel(&self) -> Option<Arc<Shared>> {
        self.partner()?.open()
    }

    /// Notices the end of the channel, if no call on it has.
    fn notice_end(&self) {
        let Some(partner) = self.partner() else { return };
        if partner.open().is_none() {
            // Unless the next partner has joined in the meantime.
            let gone = self.state().partner.take_if(|now| now.is(&partner));
            drop(gone);
        }
    }

    fn set_channel(&self, channel: Channel) {
        self.ledger.lock().accepted(&channel);
        self.state().partner = Some(Partner::of(channel.shared()));
        self.slot_changed.notify_all();
        self.events.add(Change::Channel(channel));
        // The channel may have ended before this side watched it.
        self.notice_end();
    }

    fn clear_channel(&self, outcome: Option<GuestOutcome>) {
        let mut state = self.state();
        state.partner = None;
        state.is_taken = false;
        state.outcome = outcome;
        drop(state);
        self.slot_changed.notify_all();
        self.wakeup.signal();
    }

    /// Sets the socket at which this side accepts guests.
    fn set_listener(&self, listener: Option<&Arc<OwnedFd>>) {
        self.state().listener = listener.map_or_else(Weak::new, Arc::downgrade);
    }

    /// Ends an accept that hangs.
    pub(crate) fn shut_listener(&self) {
        let listener = self.state().listener.upgrade();
        if let Some(listener) = listener {
            BoundAddress::shut_down(&listener);
        }
    }

    fn occupied(&self) -> Error {
        self.address.occupied("two members hold it already")
    }
}

/// The role of a member, and what it holds of the address.
pub(crate) enum Position {
    Host(BoundAddress, EvidenceLog),
    Guest,
}

/// The worker of a membership: takes a place at the address, and keeps it while partners are replaced.
pub(crate) struct MemberWorker {
    pub(crate) endpoint: Arc<Endpoint<Member>>,
    pub(crate) options: Options,
    /// Cancelled with the membership.
    pub(crate) stop: Deadline,
    /// The last field, so that it is dropped after everything else is released.
    pub(crate) _release: ReleaseGuard,
}

impl MemberWorker {
    /// Takes a place, and retries while other members are replaced.
    pub(crate) fn join(&self, deadline: &Deadline) -> Result<Position> {
        let mut backoff = Backoff::new(deadline);
        loop {
            match self.try_join(deadline) {
                Ok(Some(position)) => return Ok(position),
                Ok(None) => backoff.hung_up(None)?,
                Err(error) if is_transient(&error) => backoff.hung_up(Some(error))?,
                Err(Error::AddressOccupied { .. }) if self.options.wait => backoff.pause()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns `None` if the host hung up without an answer.
    fn try_join(&self, deadline: &Deadline) -> Result<Option<Position>> {
        let (endpoint, options) = (&self.endpoint, &self.options);
        let mut record = EvidenceLog::default();
        let stream = match election::meet(&endpoint.address, options.access()?, deadline, &mut record)? {
            MeetOutcome::Host(place) => {
                endpoint.set_role(Role::Host);
                return Ok(Some(Position::Host(place, record)));
            }
            MeetOutcome::Guest(stream) => stream,
        };
        let within = deadline.within(options.handshake_timeout);
        let side = Side {
            inherits: Some(&endpoint.address),
            destroyed: Some(&endpoint.destroyed),
            ..Side::new(&endpoint.address, options, &within, Member::MEETING)
        };
        let Some(mut parts) = side.guest(stream, record)? else {
            return Ok(None);
        };
        let on_end = parts.inheritance.take().map(|inheritance| {
            let successor = Successor {
                endpoint: Arc::clone(endpoint),
                inheritance: Some(inheritance),
                place: None,
            };
            Box::new(successor) as Box<dyn OnEnd>
        });
        endpoint.set_role(Role::Guest);
        endpoint.set_channel(Channel::assemble(parts, on_end, options));
        Ok(Some(Position::Guest))
    }

    pub(crate) fn run(self, mut position: Position) {
        let _end_guard = EndWithWorker(Arc::clone(&self.endpoint));
        loop {
            let next = match position {
                Position::Host(place, record) => self.run_as_host(place, &record),
                Position::Guest => self.run_as_guest(),
            };
            let events = &self.endpoint.events;
            position = match next {
                Ok(Some(next)) => next,
                Ok(None) => {
                    events.end(End::Closed);
                    return events.discard();
                }
                Err(error) => return events.end(End::Failed(error)),
            };
        }
    }

    /// Accepts one partner after the other until this process leaves, and then returns `None`.
    fn run_as_host(&self, place: BoundAddress, record: &EvidenceLog) -> Result<Option<Position>> {
        let Self { endpoint, stop, .. } = self;
        let over = match with_retries(stop, CancelToken::new) {
            Ok(over) => over,
            Err(Error::Aborted) => {
                self.hand_over(place);
                return Ok(None);
            }
            // No partner has joined at this place yet.
            Err(error) => return Err(error),
        };
        let shares = place.share();
        endpoint.set_listener(shares.first());
        let admission = Admission::new(endpoint, &self.options);
        let (place, result) = admission.run((place, record), &shares, &over, stop, |place, result| {
            (place, result)
        });
        drop(shares);
        endpoint.set_listener(None);
        match result {
            // Cancelled. Each client that was not a partner has been refused.
            Err(Error::Aborted) => {
                self.hand_over(place);
                Ok(None)
            }
            // A local error. The partner's channel continues, and the partner takes the place when it ends.
            Err(error) => {
                if endpoint.partner().is_some() {
                    place.hand_over();
                }
                Err(error)
            }
            // The partner has shut the socket down, so it does not get the lock.
            Ok(error) => Err(error),
        }
    }

    /// Passes the place to the guest, if there is one. No client is accepted any longer.
    fn hand_over(&self, place: BoundAddress) {
        let timeout = self.options.handshake_timeout;
        let answer = Deadline::endless(Vec::new(), timeout).within(timeout);
        let handover = self.endpoint.channel().map_or(Handover::NoSuccessor, |channel| {
            // If it cannot be sent (the queue of signals is full, for example), nothing is lost.
            let _ = channel.send_token(LEAVING);
            self.end_sending(&channel);
            channel.leave(&answer)
        });
        match handover {
            Handover::Taken | Handover::Unanswered => place.hand_over(),
            Handover::NoSuccessor => drop(place),
        }
    }

    /// Ends the sending, so that the partner gets a clean end, unless the program has called `destroy`. Everything that was sent is in the ring.
    fn end_sending(&self, channel: &Shared) {
        if !self.endpoint.destroyed.load(Ordering::Acquire) {
            channel.end_sending();
        }
    }

    /// Stays a guest until the channel has ended, or this process leaves, and then returns `None`.
    fn run_as_guest(&self) -> Result<Option<Position>> {
        let Self { endpoint, stop, .. } = self;
        let mut retries = RetryBudget::default();
        loop {
            endpoint.notice_end();
            let outcome = endpoint.state().outcome.take();
            match outcome {
                Some(GuestOutcome::Successor(place)) => {
                    endpoint.set_role(Role::Host);
                    endpoint.set_listener(place.share().first());
                    place.drop_queued();
                    let mut record = EvidenceLog::default();
                    record.met(SUCCESSION, "host: taken over");
                    return Ok(Some(Position::Host(place, record)));
                }
                Some(GuestOutcome::Lost) => return self.rejoin(),
                None => {}
            }
            let partner = endpoint.partner();
            let mut watched = vec![(endpoint.wakeup.as_fd(), PollFlags::POLLIN)];
            watched.extend(partner.iter().flat_map(Partner::watched));
            match stop.wait(&watched) {
                Ok(_) => {
                    retries.renew();
                    endpoint.wakeup.clear();
                }
                Err(Error::Aborted) => {
                    if let Some(open) = partner.and_then(|partner| partner.open()) {
                        self.end_sending(&open);
                        open.finish(ChannelState::DestroyedHere);
                    }
                    return self.wait_for_channel_end();
                }
                Err(error) if retries.should_retry(&error) => retries.pause(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the end of the channel, which another thread may be about to end: the host may have left at this moment, which makes
    /// this side the last member.
    fn wait_for_channel_end(&self) -> Result<Option<Position>> {
        let endpoint = &self.endpoint;
        let deadline = Deadline::endless(Vec::new(), self.options.handshake_timeout);
        loop {
            let outcome = endpoint.state().outcome.take();
            if outcome.is_some() {
                return Ok(None);
            }
            deadline.wait(&[(endpoint.wakeup.as_fd(), PollFlags::POLLIN)])?;
            endpoint.wakeup.clear();
        }
    }

    /// Takes a place after this side was a guest. Transient local errors do not end the membership.
    fn rejoin(&self) -> Result<Option<Position>> {
        let Self { endpoint, stop, .. } = self;
        let join = || {
            while !Member::has_room(endpoint, 0) || endpoint.is_paused() {
                stop.wait(&[(endpoint.wakeup.as_fd(), PollFlags::POLLIN)])?;
                endpoint.wakeup.clear();
            }
            self.join(stop)
        };
        match with_retries(stop, join) {
            Ok(position) => Ok(Some(position)),
            Err(Error::Aborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Retries transient errors until the limit is reached or the membership is cancelled.
fn with_retries<T>(stop: &Deadline, call: impl Fn() -> Result<T>) -> Result<T> {
    let mut retries = RetryBudget::default();
    loop {
        match stop.check_cancelled().and_then(|()| call()) {
            Err(error @ Error::NoSpace { .. }) if retries.should_retry(&error) => retries.pause(),
            result => return result,
        }
    }
}

/// Whether a guest got this error because its host was being replaced. Either the host was about to leave, and the lock that it
/// passed is no longer the one beside the path. Or the kernel named one process, and its successor answered. The guest trusts
/// neither, and joins again; a lock that is wrong each time is refused in the end.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::PeerLost(_) => true,
        Error::PeerRefused(refusal) => !refusal.by_peer && matches!(refusal.check, Check::Line | Check::Lock),
        _ => false,
    }
}

/// A guest that takes its host's place once the host is gone.
struct Successor {
    endpoint: Arc<Endpoint<Member>>,
    /// The guest's share of its host's place, until the channel ends.
    inheritance: Option<Inheritance>,
    /// The place of a host that is gone, or the reason why this process could not take it.
    place: Option<Result<BoundAddress>>,
}

impl OnEnd for Successor {
    /// A host that has left, was killed, or executes another program accepts no clients. A host that has only closed the channel, or
    /// ended it as corrupt or exposed, does.
    fn end(&mut self, how: ChannelState) -> bool {
        let is_gone = matches!(how, ChannelState::LeftByPeer | ChannelState::PeerExited);
        let inheritance = self.inheritance.take().filter(|_| is_gone);
        self.place = inheritance.map(Inheritance::take_over);
        matches!(self.place, Some(Ok(_)))
    }
}

impl Drop for Successor {
    /// Runs after the host can see the end: a guest that joined again before that would be a third member to the host.
    fn drop(&mut self) {
        if !self.endpoint.in_owner_process() {
            return;
        }
        self.inheritance = None;
        let outcome = match self.place.take() {
            Some(Ok(place)) => GuestOutcome::Successor(place),
            Some(Err(error)) => {
                // A local error, which is reported here only.
                Member::refused(&self.endpoint, Refused::local(error));
                GuestOutcome::Lost
            }
            None => GuestOutcome::Lost,
        };
        self.endpoint.clear_channel(Some(outcome));
    }
}
