//! Members of an address: two processes share it, and keep it while one of them is replaced.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    channel::Channel,
    error::Result,
    handshake::parts::Role,
    host::admit::EndpointStats,
    host::endpoint::{Endpoint, EndpointHandle, HandleKind, IdleThread, Worker},
    host::membership::{Change, Member, MemberWorker, Position},
    options::Options,
    signal::barriers,
    wait::deadline::Deadline,
};

/// The time that leaving may take beyond [`Options::handshake_timeout`], which limits the wait for the partner's answer.
const LEAVE_MARGIN: Duration = Duration::from_secs(30);

/// Takes a place at an address, and keeps it while partners are replaced.
///
/// Two processes hold an address, as with [`join`](crate::join): the first is the host, the second its guest, and they have a
/// channel. When the guest leaves, the host accepts the next one. When the host leaves, by [`Membership::leave`] or because it was
/// killed, the guest becomes the host at once, and accepts the next guest; no other process can take the address in between. So
/// one of the two may be replaced at any time, while the other stays.
///
/// Returns once a place is held: for a host at once, for a guest with the channel, which is then the first [`Change`]. With
/// [`Options::wait`], waits for a place if two members hold the address already. [`Options::cancel_token`] cancels that waiting,
/// and not the membership. Members accept members only: a process that calls `join` or `connect` gets
/// [`Error::Protocol`](crate::Error::Protocol).
///
/// An accepted guest gets the listening socket, and the lock beside a path. A guest that turns hostile can therefore keep others
/// from the address. It cannot pretend to be another process.
///
/// One thread of this crate keeps the place; each running handshake has another.
///
/// # Errors
/// As [`join`](crate::join): [`AddressOccupied`](crate::Error::AddressOccupied) if two members hold the address, without
/// [`Options::wait`]; [`NoSpace`](crate::Error::NoSpace) also if no thread can be started.
pub fn member(address: &Address, options: &Options) -> Result<Membership> {
    let mut options = options.clone().checked()?;
    barriers::register_early();
    let deadline = options.deadline();
    options.cancel_token = None;
    let endpoint = Endpoint::new(address.absolute(), &options, Member::default())?;
    let (worker, release) = Worker::new()?;
    let timeout = options.handshake_timeout;
    let member_worker = MemberWorker {
        endpoint: Arc::clone(&endpoint),
        options,
        stop: Deadline::endless(vec![worker.stop().clone()], timeout),
        _release: release,
    };
    let run = |(member, position): (MemberWorker, Position)| member.run(position);
    let thread = IdleThread::spawn("ringfence-member", "a thread for the membership", run)?;
    let position = member_worker.join(&deadline);
    let own = MembershipOwn {
        worker,
        leave_timeout: timeout.saturating_add(LEAVE_MARGIN),
    };
    let membership = Membership::new(address, &endpoint, own);
    match position {
        Ok(position) => thread.start((member_worker, position)),
        Err(error) => {
            drop(member_worker);
            thread.dismiss();
            return Err(error);
        }
    };
    Ok(membership)
}

/// A place at an address, kept while partners are replaced.
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
/// A partner's channel ends like any other. Messages sent before that can still be read, also after the next partner has joined.
/// A member that closes its channel without leaving keeps its place: a host waits for the next guest, a guest joins again. The same
/// holds after a channel that was corrupt or exposed.
///
/// If the program has not taken 16 channels, no further partner is admitted. Dropping the membership leaves.
pub type Membership = EndpointHandle<Member>;

impl Membership {
    /// The role of this process now.
    pub fn role(&self) -> Role {
        let role = self.here().map(|endpoint| endpoint.state().role);
        role.ok().flatten().unwrap_or(Role::Guest)
    }

    /// Whether there is a partner now.
    pub fn has_partner(&self) -> bool {
        self.here().is_ok_and(|endpoint| endpoint.channel().is_some())
    }

    /// The number of accepted and refused partners, and the sums over all channels.
    pub fn stats(&self) -> EndpointStats {
        let open = usize::from(self.has_partner());
        self.stats_with(open)
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// Once, the error by which the place was lost: a guest that joined again may have been refused, or have found the address
    /// occupied, or this process was short of memory or descriptors for ten seconds. [`Error::Closed`](crate::Error::Closed) after
    /// that, and in a forked child. [`Error::NoSpace`](crate::Error::NoSpace) also if this call cannot wait (poll(2)): then it can be
    /// repeated.
    pub fn next(&self) -> Result<Change> {
        self.event()
    }

    /// As [`Membership::next`]. Returns `None` at the deadline.
    ///
    /// # Errors
    /// As [`Membership::next`].
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<Change>> {
        self.event_until(deadline)
    }

    /// Returns the next change, if there is one now.
    ///
    /// # Errors
    /// As [`Membership::next`].
    pub fn try_next(&self) -> Result<Option<Change>> {
        self.try_event()
    }

    /// Waits for the next partner, and drops all other changes. Returns `None` at the deadline.
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

    /// Closes the channel, if there is a partner, with a clean end, and passes the address to the partner, which is the host when this returns. The last
    /// member to leave removes the files.
    ///
    /// Waits up to [`Options::handshake_timeout`] for a partner that does not answer (its process was stopped, for example); the partner has the
    /// address once it goes on.
    pub fn leave(self) {
        drop(self);
    }

    /// Leaves like [`Membership::leave`], but without a clean end: the partner's calls that receive fail with
    /// [`Error::PeerLost`](crate::Error::PeerLost) once everything was read, unless the sending had ended before.
    pub fn destroy(self) {
        destroy_on_drop(&self);
    }
}

/// For the binding: dropping the membership destroys it.
pub fn destroy_on_drop(membership: &Membership) {
    if let Ok(endpoint) = membership.here() {
        endpoint.destroyed.store(true, Ordering::Release);
    }
}

/// The state of a membership's handle alone.
pub(crate) struct MembershipOwn {
    worker: Worker,
    /// The time limit for the worker's end, after which its accept is taken to hang.
    leave_timeout: Duration,
}

impl HandleKind for Member {
    const HANDLE: &'static str = "Membership";
    type Own = MembershipOwn;

    fn dropped(membership: &mut Membership) {
        // A forked child has neither the place nor the worker.
        let Ok(endpoint) = membership.here() else { return };
        let own = &membership.own;
        if thread::panicking() {
            endpoint.destroyed.store(true, Ordering::Release);
        }
        own.worker.stop().cancel();
        if !own.worker.wait_at_most(own.leave_timeout) {
            // The partner can make the listening socket blocking, and so make this side's accept hang.
            endpoint.shut_listener();
            own.worker.wait();
        }
        // Breaks a cycle: a channel that the program has not taken holds the endpoint, which holds the channel.
        endpoint.events.discard();
    }
}
