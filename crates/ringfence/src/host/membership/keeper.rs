//! The worker of a membership: it takes a place at the address, and keeps it while partners come and go.

use std::{os::fd::AsFd, sync::Arc};

use nix::poll::PollFlags;

use crate::{
    address::bound::BoundAddress,
    address::election::{self, MeetOutcome},
    channel::Channel,
    channel::end::{ChannelState, Handover, OnEnd, Partner},
    error::{Check, Error, Result},
    evidence::EvidenceLog,
    handshake::parts::Role,
    handshake::parts::Side,
    host::accept::Acceptor,
    host::admit::Admission,
    host::endpoint::{Endpoint, Shared},
    host::events::End,
    host::handle::Hold,
    host::membership::member::{Member, Parted},
    host::membership::successor::Successor,
    options::Options,
    wait::deadline::CancelToken,
    wait::deadline::Deadline,
    wait::retry::Backoff,
    wait::retry::RetryBudget,
};

/// The token by which a host says that it leaves, the bytes "leaving" and a zero: a hint, and no more, since the guest goes by
/// what is said in the host's memory and on the line. A program that sends tokens of its own has another meaning for others.
pub const LEAVING: u64 = u64::from_le_bytes(*b"leaving\0");

/// Which part a member has, and what it holds of the address.
pub(crate) enum Position {
    Host(BoundAddress, EvidenceLog),
    Guest,
}

/// Keeps the place, on a thread of its own.
pub(crate) struct Keeper {
    pub(crate) shared: Arc<Shared<Member>>,
    pub(crate) options: Options,
    /// Ends with the membership.
    pub(crate) stay: Deadline,
    /// The last field, so that it is dropped when all else is let go of.
    pub(crate) _hold: Hold,
}

impl Keeper {
    /// Comes to the address, and comes again while those there come and go.
    pub(crate) fn arrive(&self, deadline: &Deadline) -> Result<Position> {
        let mut backoff = Backoff::new(deadline);
        loop {
            match self.try_to_arrive(deadline) {
                Ok(Some(position)) => return Ok(position),
                Ok(None) => backoff.hung_up(None)?,
                Err(error) if is_passing(&error) => backoff.hung_up(Some(error))?,
                Err(Error::AddressOccupied { .. }) if self.options.wait => backoff.pause()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// `None`: the host that was there has gone without an answer.
    fn try_to_arrive(&self, deadline: &Deadline) -> Result<Option<Position>> {
        let Self { shared, options, .. } = self;
        let mut record = EvidenceLog::default();
        let stream = match election::meet(&shared.address, options.access()?, deadline, &mut record)? {
            MeetOutcome::Host(place) => {
                shared.take_role(Role::Host);
                return Ok(Some(Position::Host(place, record)));
            }
            MeetOutcome::Guest(stream) => stream,
        };
        let within = deadline.within(options.timeout);
        let side = Side::new(&shared.address, options, &within, Member::MEETING).inheriting(&shared.address);
        let Some(mut parts) = side.guest(stream, record)? else {
            return Ok(None);
        };
        let successor = parts.inheritance.take();
        let on_end = successor.map(|inheritance| {
            let successor = Successor::new(shared, inheritance);
            Box::new(successor) as Box<dyn OnEnd>
        });
        shared.take_role(Role::Guest);
        shared.welcome(Channel::assemble(parts, on_end, options));
        Ok(Some(Position::Guest))
    }

    pub(crate) fn keep(self, mut position: Position) {
        let _told = self.shared.end_with_worker();
        loop {
            let next = match position {
                Position::Host(place, record) => self.host(place, &record),
                Position::Guest => self.attend(),
            };
            match next {
                Ok(Some(next)) => position = next,
                Ok(None) => {
                    self.shared.events.end(End::Closed);
                    self.shared.events.discard();
                    break;
                }
                Err(error) => {
                    self.shared.events.end(End::Failed(error));
                    break;
                }
            }
        }
    }

    /// Takes in partners, one after the other, until this process leaves (`None`).
    fn host(&self, place: BoundAddress, record: &EvidenceLog) -> Result<Option<Position>> {
        let Self {
            shared,
            options,
            stay,
            ..
        } = self;
        let over = match patiently(stay, CancelToken::new) {
            Ok(over) => over,
            Err(Error::Aborted) => {
                self.hand_over(place);
                return Ok(None);
            }
            // No partner has come by this place yet.
            Err(error) => return Err(error),
        };
        let shares = place.share();
        shared.set_listener(shares.first());
        let acceptor = Acceptor {
            address: &shared.address,
            options,
            meeting: Member::MEETING,
            record,
            bell: &shared.bell,
            shares: &shares,
            ring: None,
            over: &over,
        };
        let admission = Admission::new(shared, options);
        let (place, result) = acceptor.run(&admission, place, stay, |place, result| (place, result));
        drop(shares);
        shared.set_listener(None);
        match result {
            // Called off. Each newcomer that was not a partner by then has been told.
            Err(Error::Aborted) => {
                self.hand_over(place);
                Ok(None)
            }
            // Trouble of this side. The partner's channel goes on, and the partner takes the place once it ends.
            Err(error) => {
                if shared.partner().is_some() {
                    place.pass_on();
                }
                Err(error)
            }
            // The partner has shut the socket: the lock is not left to it.
            Ok(error) => Err(error),
        }
    }

    /// No newcomer is taken in any more. The guest, if there is one, takes this place.
    fn hand_over(&self, place: BoundAddress) {
        let timeout = self.options.timeout;
        let answer = Deadline::endless(Vec::new(), timeout).within(timeout);
        let handover = self.shared.channel().map_or(Handover::NoSuccessor, |channel| {
            // Where it cannot be sent (the queue of signals is full, say), nothing is lost.
            let _ = channel.send_token(LEAVING);
            channel.leave(&answer)
        });
        match handover {
            Handover::Taken | Handover::Unanswered => place.pass_on(),
            Handover::NoSuccessor => drop(place),
        }
    }

    /// As a guest, until the channel has ended, or this process leaves (`None`).
    fn attend(&self) -> Result<Option<Position>> {
        let Self { shared, stay, .. } = self;
        let mut retries = RetryBudget::default();
        loop {
            shared.notice_end();
            let parted = shared.state().parted.take();
            match parted {
                Some(Parted::Successor(place)) => {
                    shared.take_role(Role::Host);
                    shared.set_listener(place.share().first());
                    place.send_away();
                    let mut record = EvidenceLog::default();
                    record.passed(
                        "rendezvous",
                        "role",
                        "the guest of a host that has gone is the host",
                        "host: taken over",
                    );
                    return Ok(Some(Position::Host(place, record)));
                }
                Some(Parted::Lost) => return self.come_again(),
                None => {}
            }
            let partner = shared.partner();
            let mut watched = vec![(shared.bell.as_fd(), PollFlags::POLLIN)];
            watched.extend(partner.iter().flat_map(Partner::watched));
            match stay.wait(&watched) {
                Ok(_) => {
                    retries.renew();
                    shared.bell.clear();
                }
                Err(Error::Aborted) => {
                    if let Some(open) = partner.and_then(|partner| partner.open()) {
                        open.finish(ChannelState::ClosedHere);
                    }
                    return self.part();
                }
                Err(error) if retries.should_retry(&error) => retries.pause(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The channel has ended, or another thread is about to end it. The host may have gone in this very moment, and left this
    /// side the last.
    fn part(&self) -> Result<Option<Position>> {
        let Self { shared, options, .. } = self;
        let deadline = Deadline::endless(Vec::new(), options.timeout);
        loop {
            let parted = shared.state().parted.take();
            if parted.is_some() {
                return Ok(None);
            }
            deadline.wait(&[(shared.bell.as_fd(), PollFlags::POLLIN)])?;
            shared.bell.clear();
        }
    }

    /// After this side was a guest. What this process lacks for a moment ends no membership.
    fn come_again(&self) -> Result<Option<Position>> {
        let Self { shared, stay, .. } = self;
        let come = || {
            while !Member::has_room(shared, 0) || shared.is_paused() {
                stay.wait(&[(shared.bell.as_fd(), PollFlags::POLLIN)])?;
                shared.bell.clear();
            }
            self.arrive(stay)
        };
        match patiently(stay, come) {
            Ok(position) => Ok(Some(position)),
            Err(Error::Aborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Makes a call again that fails for want of what may be there in a moment, as long as that is borne, and as this side stays.
fn patiently<T>(stay: &Deadline, call: impl Fn() -> Result<T>) -> Result<T> {
    let mut retries = RetryBudget::default();
    loop {
        match stay.look().and_then(|_| call()) {
            Err(error @ Error::NoSpace { .. }) if retries.should_retry(&error) => retries.pause(),
            told => return told,
        }
    }
}

/// Whether a guest that gets this error has come at a bad moment. Either the host that it met was about to leave, so that the
/// lock that came was not the one beside the path any more. Or the kernel named one process, and another, which has taken that
/// one's place, answered. The guest believes neither, and comes again; a lock that is wrong each time is refused in the end.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::PeerLost(_) => true,
        Error::PeerRefused(refusal) => !refusal.by_peer && matches!(refusal.check, Check::Line | Check::Lock),
        _ => false,
    }
}
