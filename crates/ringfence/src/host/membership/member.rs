//! The state of a membership, and the one seat beside its host.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak},
};

use crate::{
    address::bound::BoundAddress,
    channel::Channel,
    channel::end::{self, Partner},
    error::{Error, Result},
    handshake::frame::Meeting,
    handshake::parts::{Parts, Role},
    host::accept::Refused,
    host::endpoint::{Endpoint, Seat, Shared},
    host::membership::change::Change,
    identity::Credentials,
    options::Options,
    sys::lock::Condvar,
};

/// Channels that the program has not asked for yet. With more than that no client is admitted.
const MOST_PENDING: usize = 16;
/// The same of refusals, of which a burst is pending while the program is busy. Further ones are dropped: a program need not take them.
const MOST_REFUSALS: usize = 1024;

/// The kind of endpoint that a [`Membership`](crate::Membership) is the handle of.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// Told when the seat has been given to a guest, or is free again.
    settled: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// `None` until there is a place.
    pub(crate) role: Option<Role>,
    /// There is a channel, as far as is known.
    partner: Option<Partner>,
    /// As the host: a guest has the seat, or will have it in a moment.
    taken: bool,
    /// As the guest: what the end of the channel has brought.
    pub(crate) parted: Option<Parted>,
    /// The listening socket, while this side takes guests.
    listener: Weak<OwnedFd>,
}

/// What has become of a guest.
#[derive(Debug)]
pub(crate) enum Parted {
    /// Its host is gone, and the guest has the host's place.
    Successor(BoundAddress),
    /// Its host is there still, or the host's place could not be taken: the guest has no place.
    Lost,
}

impl Endpoint for Member {
    const MEETING: Meeting = Meeting::Membership;
    const CLOSED: &'static str = "this process has left the address";
    const BREAKS_OFF: &'static str = "the host has left";
    type State = State;
    type Event = Change;

    fn ask(shared: &Shared<Self>, _who: Credentials) -> Result<()> {
        let mut state = shared.state();
        // The guest's channel is about to be made here. The guest may have closed it already, and come anew.
        while state.taken && state.partner.is_none() {
            state = shared.settled.wait(state);
        }
        drop(state);
        shared.notice_end();
        if shared.state().taken {
            return Err(shared.occupied());
        }
        Ok(())
    }

    fn take(shared: &Shared<Self>, _who: Credentials) -> Result<()> {
        let mut state = shared.state();
        if state.taken {
            return Err(shared.occupied());
        }
        state.taken = true;
        Ok(())
    }

    fn give_back(shared: &Shared<Self>, _who: Credentials) {
        shared.part(None);
    }

    fn has_room(shared: &Shared<Self>, _under_way: usize) -> bool {
        let counts = |change: &Change| matches!(change, Change::Channel(_));
        // Not those under way: one of them may get the seat, and one process may have as many of them.
        shared.events.has_room(MOST_PENDING, 0, counts)
    }

    fn ready(shared: &Arc<Shared<Self>>, parts: Parts, seat: Seat<Self>, options: &Options) {
        let channel = Channel::assemble(parts, Some(Box::new(Some(seat))), options);
        shared.welcome(channel);
    }

    fn refused(shared: &Shared<Self>, refused: Refused) {
        let counts = |change: &Change| matches!(change, Change::Refused(_));
        if shared.events.has_room(MOST_REFUSALS, 0, counts) {
            shared.events.add(Change::Refused(refused));
        }
    }

    /// The partner, who has the listening socket as well, has shut it.
    fn is_final(error: &Error) -> bool {
        matches!(error, Error::Closed(_))
    }

    fn look_round(shared: &Shared<Self>) {
        shared.notice_end();
    }

    fn partners(shared: &Shared<Self>) -> Vec<Partner> {
        shared.partner().into_iter().collect()
    }
}

impl Shared<Member> {
    pub(crate) fn take_role(&self, role: Role) {
        let former = self.state().role.replace(role);
        if former.is_some_and(|former| former != role) {
            self.events.add(Change::Role(role));
        }
    }

    pub(crate) fn partner(&self) -> Option<Partner> {
        self.state().partner.clone()
    }

    /// The channel with the partner, if that is there still. Not to be called under the lock: a call that finds the end of the
    /// channel comes back with the lock.
    pub(crate) fn channel(&self) -> Option<Arc<end::Shared>> {
        self.partner()?.open()
    }

    /// Looks for the end of the channel, which no call on it may be there to notice.
    pub(crate) fn notice_end(&self) {
        let Some(partner) = self.partner() else { return };
        if partner.open().is_none() {
            // Unless the next has come meanwhile.
            let gone = self.state().partner.take_if(|now| now.is(&partner));
            drop(gone);
        }
    }

    pub(crate) fn welcome(&self, channel: Channel) {
        self.count_accepted(&channel);
        self.state().partner = Some(Partner::of(channel.shared()));
        self.settled.notify_all();
        self.events.add(Change::Channel(channel));
        // It may have ended before this side waited for its end.
        self.notice_end();
    }

    pub(crate) fn part(&self, parted: Option<Parted>) {
        let mut state = self.state();
        state.partner = None;
        state.taken = false;
        state.parted = parted;
        drop(state);
        self.settled.notify_all();
        self.bell.signal();
    }

    /// This side takes guests at this socket, or does so no more.
    pub(crate) fn set_listener(&self, listener: Option<&Arc<OwnedFd>>) {
        self.state().listener = listener.map_or_else(Weak::new, Arc::downgrade);
    }

    /// Ends an accept that hangs.
    pub(crate) fn shut_listener(&self) {
        let listener = self.state().listener.upgrade();
        if let Some(listener) = listener {
            BoundAddress::shut(&listener);
        }
    }

    fn occupied(&self) -> Error {
        self.address.occupied("two members hold it already")
    }
}
