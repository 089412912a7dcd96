//! The options of a process for a channel.

use std::time::Duration;

use crate::{
    address::bound::Access,
    error::{Error, Result},
    peer::policy::Policy,
    region::create::Backing,
    region::layout::{CAPACITY_MIN, region_size, round_capacity},
    region::room::check_room,
    ring::fan_out::{Delivery, StartFrom},
    signal::claim,
    wait::deadline::{CancelToken, Deadline},
    wake::attachments::Attachments,
};

/// The maximum message size, 2 GiB. It is well below the 4 GiB that one header can describe, so that no sum
/// of lengths overflows.
pub const MAX_MESSAGE_SIZE: u64 = 1 << 31;

/// The options of a process for a channel: a builder in which every value has a default.
///
/// ```
/// use ringfence::{Backing, Options};
/// let options = Options::new().capacity(1 << 20).backing(Backing::Memfd);
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) backing: Backing,
    pub(crate) capacity: u64,
    /// The requested value: see [`Options::longest`].
    pub(crate) max_message_size: Option<u64>,
    pub(crate) max_peer_capacity: u64,
    pub(crate) policy: Policy,
    pub(crate) mode: u32,
    pub(crate) group: Option<Group>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) wait: bool,
    pub(crate) max_peers: Option<usize>,
    pub(crate) max_peers_per_process: Option<usize>,
    pub(crate) max_peers_per_user: Option<usize>,
    pub(crate) busy_poll: Duration,
    pub(crate) harden: bool,
    pub(crate) realtime_signal: Option<i32>,
    pub(crate) cancel_token: Option<CancelToken>,
    pub(crate) stall: Duration,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) delivery: Delivery,
    pub(crate) from: StartFrom,
    pub(crate) attachments: Attachments,
}

/// The number of slots of a service: in total, per process and per user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotLimits {
    pub(crate) all: usize,
    pub(crate) of_process: usize,
    own_user: usize,
    other_user: usize,
}

impl SlotLimits {
    pub(crate) fn of_user(&self, uid: u32) -> usize {
        if uid == nix::unistd::geteuid().as_raw() {
            self.own_user
        } else {
            self.other_user
        }
    }
}

/// A group, as the program named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Group {
    Id(u32),
    Name(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backing: Backing::Memfd,
            capacity: 4 << 20,
            max_message_size: None,
            max_peer_capacity: 1 << 30,
            policy: Policy::new(),
            mode: 0o600,
            group: None,
            handshake_timeout: Duration::from_secs(5),
            wait: false,
            max_peers: None,
            max_peers_per_process: None,
            max_peers_per_user: None,
            busy_poll: Duration::from_micros(50),
            harden: false,
            realtime_signal: None,
            cancel_token: None,
            stall: Duration::from_secs(5),
            deliveries: Delivery::ALL.to_vec(),
            delivery: Delivery::Reliable,
            from: StartFrom::Now,
            attachments: Attachments::none(),
        }
    }
}

impl Options {
    /// Makes options with the default values, which each setter documents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of slots of a service: in total, per process and per user.
    pub(crate) fn slots(&self) -> SlotLimits {
        let all = self.max_peers.unwrap_or(usize::MAX);
        let (own_user, other_user) = match self.max_peers_per_user {
            Some(count) => (count, count),
            None if self.policy.is_for_one_user() => (all, all),
            None => (all, all - all / 4),
        };
        SlotLimits {
            all,
            of_process: self.max_peers_per_process.unwrap_or(all - all / 8),
            own_user,
            other_user,
        }
    }

    /// Returns the limit of a wait for a peer: none but its cancellation. A handshake is limited by its timeout.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::endless(
            self.cancel_token.iter().cloned().collect(),
            self.handshake_timeout,
        )
    }

    /// Returns the size in bytes of the longest message that this side receives, or that it sends as a
    /// publisher.
    pub(crate) fn longest(&self) -> u64 {
        self.max_message_size.unwrap_or(64 << 20)
    }

    /// Returns the mode and group of a named address.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a group that does not exist on this system.
    pub(crate) fn access(&self) -> Result<Access> {
        let group = match &self.group {
            None => None,
            Some(Group::Id(gid)) => Some(*gid),
            Some(Group::Name(name)) => match nix::unistd::Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                Ok(None) => {
                    return Err(Error::invalid(format!(
                        "there is no group {name:?} on this system"
                    )));
                }
                Err(errno) => return Err(Error::system(format!("looking up the group {name:?}"), errno)),
            },
        };
        Ok(Access {
            mode: self.mode,
            group,
        })
    }

    /// Checks the ranges, and that memory for the ring is available now. Failing before a peer connects is
    /// better than failing afterwards.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let capacity = self.capacity;
        if capacity == 0 {
            return Err(Error::invalid("capacity must be at least 1 byte, not 0"));
        }
        self.capacity = round_capacity(capacity)
            .filter(|rounded| rounded.checked_add(1 << 20).is_some())
            .ok_or_else(|| {
                Error::no_space(
                    format!("a ring of {capacity} bytes"),
                    "it exceeds the address space",
                )
            })?;
        let longest = self.longest();
        if !(1..=MAX_MESSAGE_SIZE).contains(&longest) {
            return Err(Error::invalid(format!(
                "max_message_size must be 1 to {MAX_MESSAGE_SIZE} bytes, not {longest}"
            )));
        }
        if self.max_peer_capacity < CAPACITY_MIN {
            return Err(Error::invalid(format!(
                "max_peer_capacity must be at least {CAPACITY_MIN} bytes, not {}",
                self.max_peer_capacity
            )));
        }
        self.attachments.check()?;
        if self.mode & !0o777 != 0 {
            return Err(Error::invalid(format!(
                "mode must be permission bits, 0 to 0o777, not {:#o}",
                self.mode
            )));
        }
        // The kernel takes it for the wish to leave the group alone.
        if self.group == Some(Group::Id(u32::MAX)) {
            return Err(Error::invalid(format!(
                "group must be 0 to {}, not {}",
                u32::MAX - 1,
                u32::MAX
            )));
        }
        for (name, count) in [
            ("max_peers", self.max_peers),
            ("max_peers_per_process", self.max_peers_per_process),
            ("max_peers_per_user", self.max_peers_per_user),
        ] {
            if count == Some(0) {
                return Err(Error::invalid(format!("{name} must be at least 1, not 0")));
            }
        }
        if self.handshake_timeout.is_zero() {
            return Err(Error::invalid("handshake_timeout must be longer than 0"));
        }
        self.policy.check_paths()?;
        claim::check(self.realtime_signal)?;
        check_room(region_size(self.capacity))?;
        Ok(self)
    }

    /// Does the same as [`Options::checked`] for a publisher, and sets the longest message that it sends.
    pub(crate) fn checked_to_publish(self) -> Result<Self> {
        self.check_backing()?;
        if self.deliveries.is_empty() {
            return Err(Error::invalid(
                "deliveries must name at least one of 'reliable', 'best-effort' and 'latest'",
            ));
        }
        let mut options = self.checked()?;
        let most = (options.capacity / 8).min(MAX_MESSAGE_SIZE);
        let longest = options.max_message_size.unwrap_or(most);
        if longest > most {
            return Err(Error::invalid(format!(
                "max_message_size of a publisher is at most an eighth of its ring of {} bytes: {most} bytes, not {longest}; a \
                 larger capacity allows longer messages",
                options.capacity
            )));
        }
        options.max_message_size = Some(longest);
        Ok(options)
    }

    /// Does the same as [`Options::checked`] for a subscriber, which writes no ring.
    pub(crate) fn checked_to_subscribe(self) -> Result<Self> {
        self.check_backing()?;
        self.capacity(CAPACITY_MIN).checked()
    }

    /// Checks that the readers of a shared ring cannot write to it.
    fn check_backing(&self) -> Result<()> {
        match self.backing {
            Backing::Memfd => Ok(()),
            Backing::Shm => Err(Error::invalid(
                "a publisher's ring must be a memfd (backing 'memfd'): every subscriber could write to a shm object that the others read",
            )),
        }
    }
}

setters! { Options {
    /// Sets the kind of the shared memory ([`Backing::Memfd`]). Both sides must choose the same.
    backing(backing: Backing) => backing = backing;

    /// Sets the size in bytes of the ring that this side writes (4 MiB). It is rounded up to a power of two
    /// of at least 4096. Each side chooses its own. The memory is reserved when the channel is made.
    capacity(bytes: u64) => capacity = bytes;

    /// Sets the size in bytes of the longest message that this side accepts (64 MiB), at most
    /// [`MAX_MESSAGE_SIZE`]. The peer learns the limit, and its sends of longer messages fail on its side.
    ///
    /// For a [`Publisher`](crate::Publisher) this is the longest message that it sends. The default is the
    /// maximum, an eighth of the ring. A subscriber that accepts only shorter messages is refused with
    /// [`Error::Protocol`], which names both numbers.
    max_message_size(bytes: u64) => max_message_size = Some(bytes);

    /// Sets the size in bytes of the largest ring that the peer may have (1 GiB), at least [`CAPACITY_MIN`].
    /// This side maps that ring, so the peer's choice costs address space and page tables here. A peer with a
    /// larger ring is refused before anything is shared: [`Error::Protocol`], which names both numbers.
    max_peer_capacity(bytes: u64) => max_peer_capacity = bytes;

    /// Sets the attachments that this side accepts ([`Attachments::none`]).
    attachments(accepted: Attachments) => attachments = accepted;

    /// Sets the requirements on the peer ([`Policy::default`]: the same uid and the same executable).
    policy(policy: Policy) => policy = policy;

    /// Sets the permission bits of a named socket's file (0600). The umask does not apply. Abstract addresses
    /// have no mode.
    mode(mode: u32) => mode = mode;

    /// Sets the group of a named socket's file (the process's own group).
    group(gid: u32) => group = Some(Group::Id(gid));

    /// Sets the group by name. The name is looked up when the address is bound (getgrnam(3)).
    group_name(name: impl Into<String>) => group = Some(Group::Name(name.into()));

    /// Sets the maximum duration of one handshake with a connected peer (5 s). Waiting for a peer to connect
    /// has no limit except a [`CancelToken`]. [`Membership::leave`](crate::Membership::leave) waits up to
    /// this time for its partner's answer.
    handshake_timeout(timeout: Duration) => handshake_timeout = timeout;

    /// Makes the call wait instead of failing (off). It waits
    ///
    /// - if two processes already share the address, or the service is full (instead of
    ///   [`Error::AddressOccupied`]);
    /// - if no process listens, or the service ends during a handshake.
    ///
    /// The call still fails with [`Error::PeerLost`] if a peer hangs up on each attempt for
    /// [`Options::handshake_timeout`].
    wait(wait: bool) => wait = wait;

    /// Sets the maximum number of channels that a [`Listener`](crate::Listener) has open at the same time (no
    /// limit). Further agents are refused with [`Error::AddressOccupied`] until one disconnects.
    max_peers(count: usize) => max_peers = Some(count);

    /// Sets how many of these channels one process may have, so that no agent can take all slots. The default
    /// is seven eighths of [`Options::max_peers`], rounded up, so all of them if that is below 8; without
    /// `max_peers` there is no limit. Further channels are refused with [`Error::AddressOccupied`].
    max_peers_per_process(count: usize) => max_peers_per_process = Some(count);

    /// Sets how many of these channels the processes of one user may have. This also applies to this
    /// process's own user. Further channels are refused with [`Error::AddressOccupied`].
    ///
    /// The default is no limit for this process's own user, and three quarters of [`Options::max_peers`],
    /// rounded up, for another user. Another user may have all of them if `max_peers` is below 4, or if the
    /// policy accepts one user only. Without `max_peers` there is no limit.
    max_peers_per_user(count: usize) => max_peers_per_user = Some(count);

    /// Sets how long a thread that waits on the channel may spin before it sleeps (50 µs). A thread that
    /// sleeps adds some 20 µs to a message. Its deadline, the peer's end and the peer's death end the spinning
    /// sooner. After waits that spun for nothing, most waits sleep at once, and one in 64 tries again.
    ///
    /// With zero the thread never spins: for a machine with fewer cores than busy threads. Tasks of the `tokio`
    /// feature never do.
    busy_poll(time: Duration) => busy_poll = time;

    /// Makes the handshake close this process to other processes of its user (off; see
    /// [`harden`](crate::harden())). That happens after both sides have checked each other's executable, and
    /// before the shared memory is made. It is permanent, whatever the outcome of the handshake. A later peer
    /// cannot look up this process's executable, and its policy refuses this process if it requires the
    /// executable.
    harden(harden: bool) => harden = harden;

    /// Sets the realtime signal that this process uses. The default is the first number from 50 on that this
    /// process does not use. Most C libraries allow 34 to 64. The kernel sends the signal if another process
    /// tries to open this side's memory, and the peer sends its [tokens](crate::Tokens) with it.
    ///
    /// The signal is directed at a thread of this crate, so no handler of the program is changed. The number
    /// is in use while a channel exists. A number that the process uses itself is [`Error::InvalidArgument`].
    realtime_signal(number: i32) => realtime_signal = Some(number);

    /// Sets the token that can cancel the wait for a channel. The open channel no longer depends on it.
    cancel_token(cancel_token: CancelToken) => cancel_token = Some(cancel_token);

    /// Sets how long one reliable subscriber may delay a [`Publisher`](crate::Publisher) in total (5 s) before it is
    /// evicted. Time counts while a message waits for space in the ring. The total is reset once the subscriber has
    /// read everything that was published when it last delayed the publisher. [`Duration::MAX`]: never.
    stall(time: Duration) => stall = time;

    /// Sets the deliveries that subscribers of a [`Publisher`](crate::Publisher) may request (all three). A
    /// subscriber that requests another [`Delivery`] is refused: [`Error::PeerRefused`], check `delivery`.
    deliveries(deliveries: impl IntoIterator<Item = Delivery>) => deliveries = deliveries.into_iter().collect();

    /// Sets how messages reach a subscriber ([`Delivery::Reliable`]).
    delivery(delivery: Delivery) => delivery = delivery;

    /// Sets the first message that a subscriber receives ([`StartFrom::Now`]).
    from(from: StartFrom) => from = from;
} }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_service_reserves_slots_and_small_one_does_not() {
        let own = nix::unistd::geteuid().as_raw();
        let of = |options: Options| {
            let slots = options.slots();
            (slots.of_process, slots.of_user(own), slots.of_user(own + 1))
        };
        let several = || Options::new().policy(Policy::new().any_executable().uids([own, own + 1]));
        for (peers, wanted) in [
            (1, (1, 1, 1)),
            (3, (3, 3, 3)),
            (4, (4, 4, 3)),
            (8, (7, 8, 6)),
            (1000, (875, 1000, 750)),
        ] {
            assert_eq!(of(several().max_peers(peers)), wanted, "{peers}");
        }
        // The policy accepts no other user, so no slot needs to be reserved.
        assert_eq!(of(Options::new().max_peers(1000)), (875, 1000, 1000));
        assert_eq!(
            of(several()
                .max_peers(1000)
                .policy(Policy::new().any_executable().uids([own + 1])))
            .2,
            1000
        );
        // Requested limits override the defaults.
        let asked = several()
            .max_peers(1000)
            .max_peers_per_process(1000)
            .max_peers_per_user(10);
        assert_eq!(of(asked), (1000, 10, 10));
        // Without `max_peers` there is no limit.
        assert!(of(several()).0 > 1 << 60);
    }
}
