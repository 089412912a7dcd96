//! Members of an address: two that share it, and keep it while one of them goes and another comes.
//!
//! The host passes its guest, with READY, the listening socket and the open lock file. So when the host leaves, or is
//! killed, there is no moment in which the address is free: its guest has it already, and calls listen(2) again, from
//! which moment on the kernel names the guest to a process that connects. A host that leaves takes no newcomer in any more, says
//! so in its region, and waits for the guest's answer before it lets go: the last of the two to go removes what is there.
//!
//! `member` is the state and the one seat, `keeper` the worker, `successor` a guest that takes its host's place, `change` what
//! the program is told.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    channel::Channel,
    error::Result,
    handshake::parts::Role,
    host::endpoint::Shared,
    host::handle::{Handle, Idle, Worker},
    host::ledger::EndpointStats,
    host::membership::change::Change,
    host::membership::keeper::{Keeper, Position},
    host::membership::member::Member,
    options::Options,
    wait::deadline::Deadline,
};

/// What the end of a membership may take beyond [`Options::timeout`], which it may wait for its partner's answer.
const ENOUGH: Duration = Duration::from_secs(30);

/// Takes a place at an address, and keeps it while partners come and go.
///
/// Two hold an address, as with [`join`](crate::join): the first to come is the host, the second its guest, and they
/// have a channel. When the guest goes, the host takes the next. When the host goes, by [`Membership::leave`] or by its
/// death, the guest is the host from that moment on, and takes the next; no other process can take the address in between. So
/// one of the two may be replaced at any time, while the other stays.
///
/// Returns once a place is held: for a host at once, for a guest with the channel, which is the first
/// [`Change`] then. With [`Options::wait`] it waits for a place where two hold the address already.
/// [`Options::cancel_token`] ends that waiting; the membership is no longer tied to it. A member meets members alone: a process
/// that comes by `join` or `connect` gets [`Error::Protocol`](crate::Error::Protocol).
///
/// A guest that is let in gets the listening socket, and the lock beside a path. So one that turns hostile can keep others
/// from the address; it cannot make them believe that it is another.
///
/// One thread of this crate's own keeps the place; a handshake under way has one as well.
///
/// # Errors
/// As [`join`](crate::join): [`AddressOccupied`](crate::Error::AddressOccupied) where two hold the address, without
/// [`Options::wait`]; [`NoSpace`](crate::Error::NoSpace) also where there is no thread for it.
pub fn member(address: &Address, options: &Options) -> Result<Membership> {
    let mut options = options.clone().checked()?;
    let deadline = Deadline::endless(options.cancel_token.take().into_iter().collect(), options.timeout);
    let shared = Shared::new(address.absolute(), Member::default())?;
    let (worker, hold) = Worker::new()?;
    let timeout = options.timeout;
    let keeper = Keeper {
        shared: Arc::clone(&shared),
        options,
        stay: Deadline::endless(vec![worker.stop().clone()], timeout),
        _hold: hold,
    };
    // Before there is a place: what could not be kept is not taken, and no partner has seen this process come.
    let run = |(keeper, position): (Keeper, Position)| keeper.keep(position);
    let thread = Idle::spawn("ringfence-member", "a thread for the membership", run)?;
    let arrived = keeper.arrive(&deadline);
    let membership = Membership {
        handle: Handle::new(address, &shared),
        worker,
        late: timeout.saturating_add(ENOUGH),
    };
    match arrived {
        Ok(position) => thread.start((keeper, position)),
        Err(error) => {
            drop(keeper);
            thread.dismiss();
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
/// A member that closes its channel without leaving keeps its place: a host waits for the next, a guest comes anew. The same
/// holds after a channel that was corrupt or exposed.
///
/// While 16 channels wait to be taken from it, no further partner is let in. Dropping it leaves.
#[derive(Debug)]
pub struct Membership {
    handle: Handle<Member>,
    worker: Worker,
    /// After this, what keeps the worker does so for ever.
    late: Duration,
}

impl Membership {
    /// Where the place is.
    pub fn address(&self) -> &Address {
        self.handle.address()
    }

    /// Which part this process has now.
    pub fn role(&self) -> Role {
        let role = self.handle.here().map(|shared| shared.state().role);
        role.ok().flatten().unwrap_or(Role::Guest)
    }

    /// Whether there is a partner at present.
    pub fn has_partner(&self) -> bool {
        self.handle.here().is_ok_and(|shared| shared.channel().is_some())
    }

    /// What has come so far, and what went through the channels with all partners.
    pub fn stats(&self) -> EndpointStats {
        let open = usize::from(self.has_partner());
        self.handle.stats(open)
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// If the place was lost, with what it was lost by, once: a guest that came anew may have been refused, or have found the
    /// address occupied, or this process has lacked memory or descriptors for ten seconds. [`Error::Closed`](crate::Error::Closed) after
    /// that, and in a forked child. [`Error::NoSpace`](crate::Error::NoSpace) also where this call cannot wait (poll(2)): then it can be made again.
    pub fn next(&self) -> Result<Change> {
        self.handle.next()
    }

    /// The same, with a deadline. `None`: the deadline has passed.
    ///
    /// # Errors
    /// As [`Membership::next`].
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<Change>> {
        self.handle.next_until(deadline)
    }

    /// The next change, if there is one now.
    ///
    /// # Errors
    /// As [`Membership::next`].
    pub fn try_next(&self) -> Result<Option<Change>> {
        self.handle.try_next()
    }

    /// Waits for the next partner, and passes over all other changes. `None`: the deadline has passed.
    ///
    /// # Errors
    /// As [`Membership::next`].
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
        self.handle.set_paused(true);
    }

    /// Takes newcomers in again.
    pub fn resume(&self) {
        self.handle.set_paused(false);
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
        let Self { handle, worker, .. } = self;
        // In a child: the place is its parent's, and the worker is not here.
        let Ok(shared) = handle.here() else { return };
        worker.stop().cancel();
        if !worker.wait_at_most(self.late) {
            // The mode of the listening socket is its partner's to change as well, who may hang this side's accept by it.
            shared.shut_listener();
            worker.wait();
        }
        // A channel that the program has not taken holds `shared`, which holds the channel.
        shared.events.discard();
    }
}

impl AsFd for Membership {
    /// Readable when [`Membership::try_next`] has a change, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
