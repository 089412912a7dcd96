//! A pair: the first of two processes is the host, the second its guest.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    address::Address,
    address::bound::BoundAddress,
    address::election::{self, MeetOutcome},
    channel::Channel,
    error::{Error, Result},
    evidence::EvidenceLog,
    handshake::Slots,
    handshake::frame::Meeting,
    handshake::parts::{Parts, Side},
    host::accept::{Acceptor, Host, Refused},
    identity::Credentials,
    options::Options,
    signal::barriers,
    wait::deadline::{Backoff, CancelToken, Deadline, Wakeup},
};

/// Meets another process at an address, and opens a channel between the two.
///
/// The first process binds the address and waits, as the host; the second finds it bound and connects, as the guest. Each checks
/// the other, passes it an object of its own to read, and checks it again before it trusts the channel. A third process gets
/// [`Error::AddressOccupied`].
///
/// Blocks until a partner has passed; [`Options::cancel_token`] cancels that. A client that fails, or takes longer than
/// [`Options::handshake_timeout`], is refused. Other clients are served in the meantime and afterwards.
///
/// ```no_run
/// use ringfence::{Address, Options, join};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/user/1000/orders.sock".parse()?;
/// let channel = join(&address, &Options::new())?;
/// println!("the {} of process {}", channel.role(), channel.peer().pid);
/// for check in channel.evidence() {
///     println!("{}: {}", check.step, check.check);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::AddressOccupied`] if two processes share the address, without [`Options::wait`]; [`Error::AddressInvalid`];
/// [`Error::InvalidArgument`] for options that contradict each other. As a guest also [`Error::PeerRefused`] (either side's policy
/// has refused), [`Error::HandshakeTimeout`], [`Error::Protocol`], [`Error::PeerLost`] and [`Error::ObjectUnsound`]. Local errors:
/// [`Error::NoSpace`], [`Error::Unsupported`], [`Error::ObjectExposed`]; [`Error::Aborted`] when cancelled.
pub fn join(address: &Address, options: &Options) -> Result<Channel> {
    join_reporting(address, options, &|_| {})
}

/// As [`join`]. Calls `on_refused` for each guest that this process refuses as the host, on a thread that must not be blocked.
///
/// # Errors
/// As [`join`].
pub fn join_reporting(
    address: &Address,
    options: &Options,
    on_refused: &(dyn Fn(&Refused) + Sync),
) -> Result<Channel> {
    let options = &options.clone().checked()?;
    let address = &address.absolute();
    barriers::register_early();
    let deadline = options.deadline();
    let mut backoff = Backoff::new(&deadline);
    loop {
        match join_once(address, options, &deadline, on_refused) {
            Ok(Some(channel)) => return Ok(channel),
            // The host hung up without an answer: the first process to try again is the next host.
            Ok(None) => backoff.hung_up(None)?,
            // The host closed after its answer. A process that waits for a place tries again.
            Err(error @ Error::PeerLost(_)) if options.wait => backoff.hung_up(Some(error))?,
            Err(Error::AddressOccupied { .. }) if options.wait => backoff.pause()?,
            Err(error) => return Err(error),
        }
    }
}

fn join_once(
    address: &Address,
    options: &Options,
    deadline: &Deadline,
    on_refused: &(dyn Fn(&Refused) + Sync),
) -> Result<Option<Channel>> {
    let mut record = EvidenceLog::default();
    match election::meet(address, options.access()?, deadline, &mut record)? {
        MeetOutcome::Host(place) => host(address, options, deadline, (place, &record), on_refused).map(Some),
        MeetOutcome::Guest(stream) => {
            let within = deadline.within(options.handshake_timeout);
            let parts = Side::new(address, options, &within, Meeting::Pair).guest(stream, record)?;
            Ok(parts.map(|parts| Channel::assemble(parts, None, options)))
        }
    }
}

/// Holds the address until a guest has passed. The first guest that is ready gets the place.
fn host(
    address: &Address,
    options: &Options,
    deadline: &Deadline,
    (place, record): (BoundAddress, &EvidenceLog),
    on_refused: &(dyn Fn(&Refused) + Sync),
) -> Result<Channel> {
    let acceptor = Acceptor {
        address,
        options,
        meeting: Meeting::Pair,
        record,
        wakeup: &Wakeup::new()?,
        shares: &[],
        ring: None,
        over: &CancelToken::new()?,
    };
    let pair = Pair {
        address,
        is_taken: &AtomicBool::new(false),
        on_refused,
    };
    // The slot is kept until all other clients are refused.
    let (parts, _slot, place) = acceptor.run(&pair, place, deadline, |place, result| {
        let (parts, slot) = result??;
        place.close(|stream| {
            let error = address.occupied("two processes share it already");
            acceptor.reject(&pair, stream, deadline, error);
        })?;
        Ok::<_, Error>((parts, slot, place))
    })?;
    Ok(Channel::assemble(parts, Some(Box::new(Some(place))), options))
}

/// The host of a pair, which has one slot.
struct Pair<'a> {
    address: &'a Address,
    is_taken: &'a AtomicBool,
    on_refused: &'a (dyn Fn(&Refused) + Sync),
}

struct OnlySlot<'a>(&'a AtomicBool);

impl Drop for OnlySlot<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Pair<'_> {
    fn occupied_error(&self) -> Error {
        self.address.occupied("another was ready first")
    }
}

impl<'a> Slots for Pair<'a> {
    type Slot = OnlySlot<'a>;

    fn check_free(&self, _who: Credentials) -> Result<()> {
        if self.is_taken.load(Ordering::Acquire) {
            return Err(self.occupied_error());
        }
        Ok(())
    }

    fn claim(&self, _who: Credentials) -> Result<OnlySlot<'a>> {
        if self.is_taken.swap(true, Ordering::AcqRel) {
            return Err(self.occupied_error());
        }
        Ok(OnlySlot(self.is_taken))
    }

    fn closed(&self) -> Error {
        if self.is_taken.load(Ordering::Acquire) {
            self.occupied_error()
        } else {
            Error::Aborted
        }
    }
}

impl<'a> Host for Pair<'a> {
    type End = Result<(Parts, OnlySlot<'a>)>;

    fn may_start(&self, _running: usize) -> bool {
        true
    }

    fn ready(&self, parts: Parts, slot: OnlySlot<'a>) -> ControlFlow<Self::End> {
        ControlFlow::Break(Ok((parts, slot)))
    }

    fn refused(&self, refused: Refused) -> ControlFlow<Self::End> {
        match refused.error {
            // Local errors, which the next client would meet as well.
            error @ (Error::NoSpace { .. }
            | Error::Unsupported { .. }
            | Error::InvalidArgument(_)
            | Error::ObjectExposed(_)) => self.failed(error),
            _ => ControlFlow::Continue(()),
        }
    }

    fn failed(&self, error: Error) -> ControlFlow<Self::End> {
        ControlFlow::Break(Err(error))
    }

    fn on_refused(&self, refused: &Refused) {
        (self.on_refused)(refused);
    }
}
