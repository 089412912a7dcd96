//! A publisher: one process writes each message once, and any number of processes read it.

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Weak, atomic::Ordering},
    thread::JoinHandle,
    time::Instant,
};

use crate::{
    address::Address,
    channel::end::{AtomicState, ChannelState, CloseReason},
    error::{Error, Result},
    evidence::IN_FLIGHT,
    fork::ForkMark,
    handshake::broadcast::PublishedRing,
    host::accept::Refused,
    host::audience::{Broadcast, PublisherEvent, Subscriber, watch},
    host::broadcaster::Broadcaster,
    host::endpoint::{BoundAlone, Endpoint, EndpointHandle, HandleKind, IdleThread, Worker},
    host::events::End,
    host::stalls::Charging,
    host::watches::Watches,
    options::Options,
    region::create::{InFlightDescriptor, ObjectSpec, SharedObject},
    region::own::OwnRegion,
    ring::fan_out::readers::{MAX_READERS, Readers},
    signal::{barriers, claim},
    sys::lock::Mutex,
    wait::threads::is_own_thread,
    wake::parking::Barriers,
};

/// Binds an address to publish there. Up to [`Options::max_peers`] processes [`subscribe`](crate::subscribe), each by the same
/// handshake as an agent of a service.
///
/// The publisher writes one ring of [`Options::capacity`] bytes, once for all subscribers. A subscriber owns a small object with its
/// position in the ring, and can write nothing else: it can misreport its own position only, and can neither see the others nor
/// delay them beyond [`Options::stall`].
///
/// If another process has the address, fails with [`Error::AddressOccupied`], or with [`Options::wait`], waits until it is free.
/// [`Options::cancel_token`] cancels that waiting, and afterwards the publishing. Fails with [`Error::InvalidArgument`] for
/// [`Backing::Shm`](crate::Backing::Shm), and for a [`Options::max_message_size`] above an eighth of the ring; with
/// [`Error::NoSpace`] if there is no memory for the ring, or no descriptor.
///
/// A publisher has two threads: one keeps the address, the other watches subscribers. Each subscriber takes two descriptors.
pub fn publish(address: &Address, options: &Options) -> Result<Publisher> {
    let options = options.clone().checked_to_publish()?;
    let (stated, address) = (address, address.absolute());
    let (mut bound, worker) = BoundAlone::new(&address, options)?;
    let broadcast = broadcast(&address, worker, &mut bound)?;
    let endpoint = Endpoint::new(address, &bound.options, broadcast)?;
    let weak = Arc::downgrade(&endpoint);
    if let Some(tripwire) = endpoint.region.tripwire() {
        let publisher = weak.clone();
        tripwire.on_alarm(move || publisher.upgrade().map(Endpoint::expose));
    }
    let thread = IdleThread::spawn("ringfence-accept", "a thread for the publisher", accept)?;
    let watcher = IdleThread::spawn(
        "ringfence-watch",
        "a thread that watches subscribers",
        |(watches, publisher): (Arc<Watches>, Weak<_>)| watch(&watches, &publisher),
    )?;
    let watcher = watcher.start((Arc::clone(&endpoint.watches), weak));
    let publisher = Publisher {
        sender: Broadcaster::publishing(&endpoint, bound.options.longest(), bound.options.busy_poll),
        audience: Audience::new(stated, &endpoint, Some(watcher)),
    };
    thread.start((endpoint, bound));
    Ok(publisher)
}

/// Creates the ring object, and what the threads of the publisher share in addition to it.
fn broadcast(address: &Address, worker: Worker, bound: &mut BoundAlone) -> Result<Broadcast> {
    let (record, options) = (&mut bound.record, &bound.options);
    let supports_barriers = barriers::register() && barriers::is_offered();
    // Without subscribers, only the name tells a publisher's ring from that of a pair in /proc.
    let name = [b"ringfence-published:".as_slice(), &address.bound_name()].concat();
    let wanted = ObjectSpec {
        backing: options.backing,
        name: &name,
        capacity: options.capacity,
        signal: match options.realtime_signal {
            Some(number) => number,
            None => claim::unused()?,
        },
        peer: nix::unistd::geteuid().as_raw(),
    };
    let object = SharedObject::create(&wanted, &bound.deadline.within(options.handshake_timeout), record)?;
    object.remove_permissions(record)?;
    let fd = InFlightDescriptor::new(&object)?;
    record.met(IN_FLIGHT, "a socket of the publisher's own");
    let region = object.region.clone();
    // From here on it is in no table of descriptors.
    drop(object);
    region.in_use(supports_barriers);
    let readers = Arc::new(Readers::new(region.clone(), OwnRegion::detached(), MAX_READERS));
    let watches = Arc::new(Watches::new()?);
    let sender = Arc::clone(&watches);
    Ok(Broadcast {
        ring: Arc::new(PublishedRing::new(readers, fd, move || sender.wake_sender())?),
        region,
        capacity: options.capacity,
        barriers: Barriers::by_sleeper_if(supports_barriers),
        state: AtomicState(ForkMark::new()?),
        ended: false.into(),
        sealed: false.into(),
        watches,
        charging: Mutex::new(Charging::new(options.stall)),
        worker,
        evicted: 0.into(),
    })
}

/// A publisher at its address: the sending half, to which it dereferences, and the audience.
///
/// ```no_run
/// use ringfence::{Address, Options, publish};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = "/run/user/1000/ticks.sock".parse()?;
/// let mut publisher = publish(&address, &Options::new().capacity(1 << 20))?;
/// loop {
///     publisher.send(b"tick")?; // sleeps while the slowest reliable subscriber is a ring behind
///     # break;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # What blocks
/// [`Broadcaster::send`], [`Broadcaster::wait`] and [`Publisher::next`] block, and [`Publisher::seal`] until the running handshakes are
/// cancelled. Everything else returns at once.
///
/// # Disconnected and slow subscribers
/// A subscriber that has died is released within 10 ms, also while the publisher sleeps in a send. A subscriber that delays the
/// publisher for longer than [`Options::stall`] is evicted.
///
/// Dropping the publisher ends it: subscribers read what is in the ring, and then a clean end. If it is dropped while its thread
/// panics, it is destroyed ([`Broadcaster::destroy`]).
#[derive(Debug)]
pub struct Publisher {
    sender: Broadcaster,
    audience: Audience,
}

impl Publisher {
    /// Both halves, to live on two threads.
    pub fn split(self) -> (Broadcaster, Audience) {
        (self.sender, self.audience)
    }

    /// The half that sends.
    pub fn sender(&mut self) -> &mut Broadcaster {
        &mut self.sender
    }

    /// The half that is notified of subscribers.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// The address at which it publishes.
    pub fn address(&self) -> &Address {
        self.audience.address()
    }

    /// See [`Audience::subscribers`].
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.audience.subscribers()
    }

    /// See [`Audience::next`].
    pub fn next(&self) -> Result<PublisherEvent> {
        self.audience.next()
    }

    /// See [`Audience::try_next`].
    pub fn try_next(&self) -> Result<Option<PublisherEvent>> {
        self.audience.try_next()
    }

    /// See [`Audience::seal`].
    pub fn seal(&self) {
        self.audience.seal();
    }

    /// See [`Audience::close`].
    pub fn close(&self) {
        self.audience.close();
    }
}

impl Deref for Publisher {
    type Target = Broadcaster;

    fn deref(&self) -> &Broadcaster {
        &self.sender
    }
}

impl DerefMut for Publisher {
    #[inline]
    fn deref_mut(&mut self) -> &mut Broadcaster {
        &mut self.sender
    }
}

impl AsFd for Publisher {
    /// Readable when [`Publisher::try_next`] has an event, or the end. The descriptor that wakes a sender is that of
    /// [`Publisher::sender`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.audience.as_fd()
    }
}

/// The half of a [`Publisher`] that is notified of subscribers, on any thread.
///
/// A program need not take the events. The last 4,096 that it does not take are kept.
///
/// Dropping it closes the publisher.
pub type Audience = EndpointHandle<Broadcast>;

impl Audience {
    /// The connected subscribers, in no particular order.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.here().map_or_else(|_| Vec::new(), Endpoint::subscribers)
    }

    /// Waits for the next event. Fails with [`Error::Closed`] once the publisher is closed, or has ended and the last subscriber has
    /// disconnected, with [`Error::Aborted`] once it is cancelled, and with [`Error::NoSpace`] if this call cannot wait (poll(2)): then
    /// it can be repeated.
    pub fn next(&self) -> Result<PublisherEvent> {
        self.event()
    }

    /// As [`Audience::next`]. Returns `None` at the deadline.
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<PublisherEvent>> {
        self.event_until(deadline)
    }

    /// Returns the next event, if there is one now. Fails as [`Audience::next`].
    pub fn try_next(&self) -> Result<Option<PublisherEvent>> {
        self.try_event()
    }

    /// Admits no further subscribers: running handshakes are cancelled. When this returns, the address is free, and no descriptor of the
    /// ring is left in this process. Connected subscribers stay.
    pub fn seal(&self) {
        if let Ok(endpoint) = self.here() {
            endpoint.seal();
        }
    }

    /// Closes the publisher. Subscribers can still read what is in the ring, and then get a clean end. The address is free when this
    /// returns. A message that another thread sends at this moment may be lost.
    pub fn close(&self) {
        self.finish(ChannelState::ClosedHere);
    }

    /// Closes the publisher like [`Audience::close`], but without a clean end: see [`Broadcaster::destroy`].
    pub fn destroy(&self) {
        self.finish(ChannelState::DestroyedHere);
    }

    fn finish(&self, how: ChannelState) {
        if let Ok(endpoint) = self.here() {
            endpoint.close(how);
        }
    }

    /// The reason why the publisher has ended; `None` while it has not. After [`Broadcaster::end`], it ends once the last subscriber
    /// has read everything or disconnected.
    pub fn close_reason(&self) -> Option<CloseReason> {
        let endpoint = self.here();
        endpoint.map_or(Some(CloseReason::Closed), |endpoint| {
            endpoint.state.get().close_reason()
        })
    }
}

impl HandleKind for Broadcast {
    const HANDLE: &'static str = "Audience";
    /// The thread that watches the subscribers.
    type Own = Option<JoinHandle<()>>;

    fn dropped(audience: &mut Audience) {
        let Ok(endpoint) = audience.here() else { return };
        endpoint.close(ChannelState::dropped());
        endpoint.events.discard();
        if let Some(watcher) = audience.own.take()
            && !is_own_thread()
        {
            // A panic of that thread was reported where it happened.
            let _ = watcher.join();
        }
    }
}

/// The worker of a publisher.
fn accept((endpoint, bound): (Arc<Endpoint<Broadcast>>, BoundAlone)) {
    let (error, release) = bound.accept(&endpoint, |error, release| (error, release));
    // The handshakes are over, and with them their copies of the ring's descriptor.
    drop(release);
    if endpoint.sealed.load(Ordering::Acquire) {
        return;
    }
    match error {
        // Cancelled by the program.
        Error::Aborted => {
            endpoint.events.end(End::Failed(Error::Aborted));
            endpoint.close(ChannelState::ClosedHere);
        }
        // No further clients are accepted. The connected subscribers lose nothing.
        error => {
            endpoint.ring.seal();
            endpoint
                .events
                .add(PublisherEvent::Refused(Refused::local(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no sockets")]
    fn dropped_publisher_leaves_no_thread_or_address() {
        let address = Address::abstract_name(format!("ringfence-unit-{}", std::process::id())).unwrap();
        let options = Options::new().capacity(4096);
        for _ in 0..3 {
            let publisher = publish(&address, &options).unwrap();
            assert_eq!(publisher.shared_state(), ChannelState::Open);
        }
    }

    impl Publisher {
        fn shared_state(&self) -> ChannelState {
            self.audience.here().unwrap().state.get()
        }
    }
}
