//! Connects to a host that stays at its address: a client to its service, a subscriber to its publisher.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Weak},
};

use nix::errno::Errno;

use crate::{
    address::{Address, election},
    channel::Channel,
    channel::open::open,
    channel::subscription::Subscription,
    error::{Error, Result},
    evidence::EvidenceLog,
    fork::PerProcess,
    handshake::broadcast::RingPart,
    handshake::frame::Meeting,
    handshake::parts::{Parts, Side},
    options::Options,
    signal::barriers,
    sys::lock::Mutex,
    wait::deadline::{Backoff, Deadline},
    wait::threads::{Permits, ThreadQuota},
};

/// Connects to the service at an address, which it never binds. A process may connect several times, and gets a channel
/// each time.
///
/// With [`Options::wait`], waits for a service to listen, and for a slot if the service is full. [`Options::cancel_token`]
/// cancels the waiting.
///
/// One process runs at most 16 handshakes with one address at a time. A further call waits for its turn, and
/// [`Options::handshake_timeout`] counts from there.
///
/// ```no_run
/// use ringfence::{Address, Options, connect};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/orders/service.sock".parse()?;
/// // Waits for the service to listen, and for a slot.
/// let (mut sender, _receiver) = connect(&address, &Options::new().wait(true))?.split();
/// sender.send(b"hello")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Without [`Options::wait`]: [`Error::PeerLost`] if no process listens, [`Error::AddressOccupied`] if the service is full. In
/// any case [`Error::AddressInvalid`] for what waiting cannot fix (a missing directory, a socket that this process may not connect
/// to); otherwise as the guest of [`join`](crate::join).
pub fn connect(address: &Address, options: &Options) -> Result<Channel> {
    let options = options.clone().checked()?;
    let address = &address.absolute();
    let parts = connect_with(address, &options, Meeting::Service, ("listens", "service"))?;
    Ok(Channel::assemble(parts, None, &options))
}

/// Subscribes to the publisher at an address. [`Options::delivery`] selects which messages arrive, and [`Options::from`] the first one.
///
/// A reliable subscriber that starts from [`StartFrom::Now`](crate::StartFrom::Now) gets every message whose sending began after this has
/// returned. [`Options::cancel_token`] ends the waiting.
///
/// # Errors
/// - [`Error::PeerLost`] if no process publishes at the address. With [`Options::wait`], the call waits for a publisher instead.
/// - [`Error::AddressOccupied`] if the publisher is full. With [`Options::wait`], the call waits for a slot.
/// - [`Error::PeerRefused`], check `delivery`, if the publisher does not offer the delivery.
/// - [`Error::Protocol`] if the publisher's messages may be longer than [`Options::max_message_size`], or the host does not publish.
pub fn subscribe(address: &Address, options: &Options) -> Result<Subscription> {
    let options = options.clone().checked_to_subscribe()?;
    let address = &address.absolute();
    let mut parts = connect_with(address, &options, Meeting::Broadcast, ("publishes", "publisher"))?;
    match mem::replace(&mut parts.objects.ring, RingPart::PerSide) {
        RingPart::Subscriber(ring, beginning) => {
            let opened = open(parts, None, &options);
            Subscription::begin(opened, ring, beginning, &options)
        }
        RingPart::PerSide | RingPart::Publisher(_) => {
            Err(Error::Protocol("a handshake without a publisher's ring".into()))
        }
    }
}

/// Connects to an address until a handshake is complete. `verb` and `host` appear in an error: "listens", "service".
///
/// With [`Options::wait`], waits for a host that is missing, full or about to close.
fn connect_with(
    address: &Address,
    options: &Options,
    meeting: Meeting,
    (verb, host): (&str, &str),
) -> Result<Parts> {
    barriers::register_early();
    let deadline = options.deadline();
    let mut backoff = Backoff::new(&deadline);
    loop {
        match try_connect(address, options, meeting, &deadline) {
            Ok(ConnectAttempt::Ready(parts)) => return Ok(*parts),
            // The host is closing, and the next attempt finds no host.
            Ok(ConnectAttempt::HungUp) => backoff.hung_up(None)?,
            // The host closed or exited during the handshake. The next host may be there already.
            Err(error @ Error::PeerLost(_)) if options.wait => backoff.hung_up(Some(error))?,
            Ok(ConnectAttempt::NoHost) | Err(Error::AddressOccupied { .. }) if options.wait => {
                backoff.pause()?;
            }
            Ok(ConnectAttempt::NoHost) => return Err(no_host(address, verb, host)),
            Err(error) => return Err(error),
        }
    }
}

enum ConnectAttempt {
    Ready(Box<Parts>),
    /// No process owns the address.
    NoHost,
    /// The host hung up without an answer.
    HungUp,
}

fn try_connect(
    address: &Address,
    options: &Options,
    meeting: Meeting,
    deadline: &Deadline,
) -> Result<ConnectAttempt> {
    let permits = permits(address)?;
    let _permit = permits.acquire(deadline)?;
    let within = &deadline.within(options.handshake_timeout);
    let mut record = EvidenceLog::default();
    let Some(stream) = election::find(address, within, &mut record)? else {
        return Ok(ConnectAttempt::NoHost);
    };
    let parts = Side::new(address, options, within, meeting).guest(stream, record)?;
    Ok(parts.map_or(ConnectAttempt::HungUp, |parts| {
        ConnectAttempt::Ready(Box::new(parts))
    }))
}

/// Limits the handshakes that this process runs as a guest at an address: a host refuses a process that runs more. Each address
/// has its own limit, since another host may be slow or silent.
fn permits(address: &Address) -> Result<Arc<Permits>> {
    static PERMITS: PerProcess<Mutex<HashMap<Address, Weak<Permits>>>> = PerProcess::new();
    let all = PERMITS.get()?;
    let mut all = all.lock();
    if let Some(permits) = all.get(address).and_then(Weak::upgrade) {
        return Ok(permits);
    }
    // Removes the permits that no call uses.
    all.retain(|_, permits| permits.strong_count() > 0);
    let permits = Arc::new(Permits::new(ThreadQuota::PER_PROCESS)?);
    all.insert(address.clone(), Arc::downgrade(&permits));
    Ok(permits)
}

fn no_host(address: &Address, verb: &str, host: &str) -> Error {
    let directory = address.place().and_then(|path| path.parent());
    if directory.is_some_and(|directory| !directory.as_os_str().is_empty() && !directory.exists()) {
        return address.invalid("its directory does not exist", Some(Errno::ENOENT));
    }
    Error::PeerLost(format!(
        "no process {verb} at {:?}; the `wait` option waits for the {host}",
        address.to_string()
    ))
}
