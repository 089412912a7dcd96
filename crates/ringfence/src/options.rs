//! What a process wants of a channel.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    memory::backing::Backing,
    memory::layout::{CAPACITY_MIN, region_size, round_capacity},
    memory::room::check_room,
    peer::policy::Policy,
    rendezvous::place::Access,
    ring::delivery::{Delivery, StartFrom},
    signal::claim,
    wait::cancel::CancelToken,
};

/// The longest message that one header can describe is cut well below 4 GiB, so that no sum of lengths overflows
/// anywhere: 2 GiB.
pub const MAX_MESSAGE_SIZE: u64 = 1 << 31;

/// What a process wants of a channel: a builder, all of whose values have defaults.
///
/// ```
/// use ringfence::{Backing, Options};
/// let options = Options::new().capacity(1 << 20).backing(Backing::Memfd);
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) backing: Backing,
    pub(crate) capacity: u64,
    /// As it was asked for: see [`Options::longest`].
    pub(crate) max_message_size: Option<u64>,
    pub(crate) max_peer_capacity: u64,
    pub(crate) policy: Policy,
    pub(crate) mode: u32,
    pub(crate) group: Option<Group>,
    pub(crate) timeout: Duration,
    pub(crate) wait: bool,
    pub(crate) max_peers: Option<usize>,
    pub(crate) max_peers_per_process: Option<usize>,
    pub(crate) max_peers_per_user: Option<usize>,
    pub(crate) busy_poll: Duration,
    pub(crate) harden: bool,
    pub(crate) signal_number: Option<i32>,
    pub(crate) cancel_token: Option<CancelToken>,
    pub(crate) stall: Duration,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) delivery: Delivery,
    pub(crate) from: StartFrom,
}

/// How many seats a service has, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeatLimits {
    pub(crate) all: usize,
    pub(crate) of_process: usize,
    own_user: usize,
    other_user: usize,
}

impl SeatLimits {
    pub(crate) fn of_user(&self, uid: u32) -> usize {
        if uid == nix::unistd::geteuid().as_raw() {
            self.own_user
        } else {
            self.other_user
        }
    }
}

/// A group, as it was named.
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
            policy: Policy::default(),
            mode: 0o600,
            group: None,
            timeout: Duration::from_secs(5),
            wait: false,
            max_peers: None,
            max_peers_per_process: None,
            max_peers_per_user: None,
            busy_poll: Duration::ZERO,
            harden: false,
            signal_number: None,
            cancel_token: None,
            stall: Duration::from_secs(5),
            deliveries: Delivery::ALL.to_vec(),
            delivery: Delivery::Reliable,
            from: StartFrom::Now,
        }
    }
}

impl Options {
    /// The defaults, each named at its setter.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the shared memory is made of ([`Backing::Memfd`]). Both sides must choose the same.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Bytes of the ring that this side writes (4 MiB), rounded up to a power of two of at least 4096. Each side
    /// chooses its own. All of it is reserved when the channel is made.
    #[must_use]
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = bytes;
        self
    }

    /// Bytes of the longest message that this side will receive (64 MiB), at most [`MAX_MESSAGE_SIZE`]. The peer is
    /// told, and its sends of longer ones fail there.
    ///
    /// Of a [`Publisher`](crate::Publisher): bytes of the longest message that it will send (an eighth of the ring, which is the
    /// most as well). A subscriber that takes shorter ones alone is refused: [`Error::Protocol`], which names both numbers.
    #[must_use]
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.max_message_size = Some(bytes);
        self
    }

    /// Bytes of the largest ring that the peer may bring (1 GiB), at least [`CAPACITY_MIN`]. This side maps that ring, so the
    /// peer's choice takes address space and page tables here. A peer whose ring is larger is refused before anything is
    /// shared: [`Error::Protocol`], which names both numbers.
    #[must_use]
    pub fn max_peer_capacity(mut self, bytes: u64) -> Self {
        self.max_peer_capacity = bytes;
        self
    }

    /// Who the peer must be ([`Policy::default`]: the same uid and the same executable).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Permission bits of a named socket's file (0600), whatever the umask. Abstract addresses have none.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// The group of a named socket's file (the process's own).
    #[must_use]
    pub fn group(mut self, gid: u32) -> Self {
        self.group = Some(Group::Id(gid));
        self
    }

    /// The same by name, looked up when the address is bound (getgrnam(3)).
    #[must_use]
    pub fn group_name(mut self, name: impl Into<String>) -> Self {
        self.group = Some(Group::Name(name.into()));
        self
    }

    /// How long one handshake may take with a partner that has come (5 s). Waiting for a partner to come has no end
    /// but a [`CancelToken`]. [`Membership::leave`](crate::Membership::leave) waits as long for its partner's answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Wait where two share the address already, or a service is full, instead of failing with
    /// [`Error::AddressOccupied`]; and where no process listens, or the service ends in the middle of a handshake, for the
    /// service to come (off). A peer that hangs up each time, for as long as [`Options::timeout`] says, is
    /// [`Error::PeerLost`] all the same.
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Channels that a [`Listener`](crate::Listener) has open at a time (no limit). Further agents are refused with
    /// [`Error::AddressOccupied`] until one leaves.
    #[must_use]
    pub fn max_peers(mut self, count: usize) -> Self {
        self.max_peers = Some(count);
        self
    }

    /// Of these, channels with one process (seven eighths of [`Options::max_peers`], rounded up: all where that is below 8; no
    /// limit without it). So no agent can take all seats. Its next one is refused with [`Error::AddressOccupied`].
    #[must_use]
    pub fn max_peers_per_process(mut self, count: usize) -> Self {
        self.max_peers_per_process = Some(count);
        self
    }

    /// Of these, channels with the processes of one user, this process's own included. By default, all for this process's
    /// own user, and for another user three quarters of [`Options::max_peers`], rounded up: all where that is below 4, or where
    /// the policy lets in one user alone; no limit without it. The next one is refused with [`Error::AddressOccupied`].
    #[must_use]
    pub fn max_peers_per_user(mut self, count: usize) -> Self {
        self.max_peers_per_user = Some(count);
        self
    }

    /// How many seats a service has, and for whom.
    pub(crate) fn seats(&self) -> SeatLimits {
        let all = self.max_peers.unwrap_or(usize::MAX);
        let (own_user, other_user) = match self.max_peers_per_user {
            Some(count) => (count, count),
            None if self.policy.is_for_one_user() => (all, all),
            None => (all, all - all / 4),
        };
        SeatLimits {
            all,
            of_process: self.max_peers_per_process.unwrap_or(all - all / 8),
            own_user,
            other_user,
        }
    }

    /// How long a wait on the channel may spin before it sleeps (0).
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = time;
        self
    }

    /// Close this process to others of its user (see [`harden`](crate::harden())) within the handshake: after both
    /// sides have looked at each other's executable, before the shared memory is made (off). From then on it stays so,
    /// whatever becomes of the handshake: a peer that comes later cannot look up this process's executable, and a policy
    /// that asks for it refuses.
    #[must_use]
    pub fn harden(mut self, harden: bool) -> Self {
        self.harden = harden;
        self
    }

    /// The realtime signal by which the kernel tells that another process tries to open this side's memory, and by which the peer's
    /// [tokens](crate::Tokens) come (the first from 50 on that this process does not use); 34 to 64 with most C libraries. It
    /// goes to a thread of this crate's own; no handler of the program's is touched. While there is a channel, the number is
    /// taken; one that the process uses itself is [`Error::InvalidArgument`].
    #[must_use]
    pub fn signal_number(mut self, number: i32) -> Self {
        self.signal_number = Some(number);
        self
    }

    /// What can call the waiting for a channel off. The channel itself is no longer tied to it.
    #[must_use]
    pub fn cancel_token(mut self, cancel_token: CancelToken) -> Self {
        self.cancel_token = Some(cancel_token);
        self
    }

    /// How long one reliable subscriber may hold a [`Publisher`](crate::Publisher) up (5 s), in all, since it was last less than
    /// half the ring behind; then it is evicted. Time counts while a message waits for room. [`Duration::MAX`]: never.
    #[must_use]
    pub fn stall(mut self, time: Duration) -> Self {
        self.stall = time;
        self
    }

    /// What subscribers of a [`Publisher`](crate::Publisher) may ask for (all three). A subscriber that asks for another
    /// [`Delivery`] is refused: [`Error::PeerRefused`], check `delivery`.
    #[must_use]
    pub fn deliveries(mut self, deliveries: impl IntoIterator<Item = Delivery>) -> Self {
        self.deliveries = deliveries.into_iter().collect();
        self
    }

    /// How messages reach a subscriber ([`Delivery::Reliable`]).
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Where a subscriber begins ([`StartFrom::Now`]).
    #[must_use]
    pub fn from(mut self, from: StartFrom) -> Self {
        self.from = from;
        self
    }

    /// Bytes of the longest message that this side receives, or as a publisher sends.
    pub(crate) fn longest(&self) -> u64 {
        self.max_message_size.unwrap_or(64 << 20)
    }

    /// Who may connect to a named address. Errors with [`Error::InvalidArgument`] for a group that this system does not know.
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

    /// Checks the ranges, and that the ring would find room now: better told before a partner comes than after.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let capacity = self.capacity;
        if capacity == 0 {
            return Err(Error::invalid("capacity must be at least 1 byte, not 0"));
        }
        self.capacity = round_capacity(capacity)
            .filter(|rounded| rounded.checked_add(1 << 20).is_some())
            .ok_or_else(|| Error::NoSpace {
                what: format!("a ring of {capacity} bytes"),
                reason: "it exceeds the address space".into(),
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
        if self.mode & !0o777 != 0 {
            return Err(Error::invalid(format!(
                "mode must be permission bits, 0 to 0o777, not {:#o}",
                self.mode
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
        if self.timeout.is_zero() {
            return Err(Error::invalid("timeout must be longer than 0"));
        }
        self.policy.check_paths()?;
        claim::check(self.signal_number)?;
        check_room(region_size(self.capacity))?;
        Ok(self)
    }

    /// As [`Options::checked`], for one that publishes: the longest message that it sends is known then.
    pub(crate) fn checked_to_publish(self) -> Result<Self> {
        self.check_backing("a publisher's ring")?;
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
                 larger capacity takes longer messages",
                options.capacity
            )));
        }
        options.max_message_size = Some(longest);
        Ok(options)
    }

    /// As [`Options::checked`], for one that subscribes: it writes no ring.
    pub(crate) fn checked_to_subscribe(self) -> Result<Self> {
        self.check_backing("a publisher's ring")?;
        self.capacity(CAPACITY_MIN).checked()
    }

    /// An object that is read by many must be one that its readers cannot write.
    fn check_backing(&self, what: &str) -> Result<()> {
        match self.backing {
            Backing::Memfd => Ok(()),
            Backing::Shm => Err(Error::invalid(format!(
                "{what} must be a memfd: every subscriber could write a shm object, and so what the others read (backing 'memfd')"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_service_has_all_its_seats_for_any_agent_and_a_large_one_some_for_others() {
        let own = nix::unistd::geteuid().as_raw();
        let of = |options: Options| {
            let seats = options.seats();
            (seats.of_process, seats.of_user(own), seats.of_user(own + 1))
        };
        let several = || Options::new().policy(Policy::new().uids([own, own + 1]));
        for (peers, wanted) in [
            (1, (1, 1, 1)),
            (3, (3, 3, 3)),
            (4, (4, 4, 3)),
            (8, (7, 8, 6)),
            (1000, (875, 1000, 750)),
        ] {
            assert_eq!(of(several().max_peers(peers)), wanted, "{peers}");
        }
        // No other user is let in, so that no seat need be kept.
        assert_eq!(of(Options::new().max_peers(1000)), (875, 1000, 1000));
        assert_eq!(
            of(several().max_peers(1000).policy(Policy::new().uids([own + 1]))).2,
            1000
        );
        // What was asked for counts.
        let asked = several()
            .max_peers(1000)
            .max_peers_per_process(1000)
            .max_peers_per_user(10);
        assert_eq!(of(asked), (1000, 10, 10));
        // Without a limit there is nothing to keep.
        assert!(of(several()).0 > 1 << 60);
    }
}
