//! What a program calls to publish.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Instant,
};

use bytemuck::Pod;

use crate::{
    address::Address,
    channel::end::{AtomicState, CloseReason},
    channel::reserved::Reserved,
    endpoint::broadcast::batch::BroadcastBatch,
    endpoint::broadcast::broadcaster::{Broadcaster, PublisherStats},
    endpoint::broadcast::room::Room,
    error::{Error, Result},
    fork::ForkMark,
    handshake::broadcast::PublishedRing,
    host::accept::{Acceptor, Refused},
    host::admit::Admission,
    host::audience::{Broadcast, PublisherEvent, Subscriber, watch},
    host::endpoint::{Endpoint, Shared},
    host::events::End,
    host::handle::{Handle, Idle, Worker},
    host::stalls::Charging,
    host::standing::Standing,
    host::watches::Watches,
    options::Options,
    region::create::InFlightDescriptor,
    region::create::{ObjectSpec, SharedObject},
    region::own::OwnRegion,
    ring::fan_out::readers::{MOST_READERS, Readers},
    ring::items::ReservedItems,
    signal::claim,
    sys,
    sys::lock::Mutex,
    wait::threads::{begin_own_thread, is_own_thread},
    wake::parking::Barriers,
};

/// Binds an address to publish there. Any number of processes [`subscribe`](crate::subscribe), as many as
/// [`Options::max_peers`] allows, and each is let in by the same handshake as an agent of a service.
///
/// The publisher writes one ring of [`Options::capacity`] bytes, once, however many read it. A subscriber owns a small object with its
/// position in the ring, and can write nothing else: it can lie about itself alone, and can neither see the others nor slow them
/// beyond [`Options::stall`].
///
/// Where another process has the address: [`Error::AddressOccupied`], or with [`Options::wait`], waits until it is free.
/// [`Options::cancel_token`] ends that waiting, and afterwards the publishing. Errors with [`Error::InvalidArgument`] for
/// [`Backing::Shm`](crate::Backing::Shm), and for a [`Options::max_message_size`] above an eighth of the ring; with
/// [`Error::NoSpace`] where there is no memory for the ring, or no descriptor.
///
/// Beside the thread that keeps the address, a publisher has one that lets go of subscribers. Each subscriber takes two
/// descriptors.
pub fn publish(address: &Address, options: &Options) -> Result<Publisher> {
    let options = options.clone().checked_to_publish()?;
    let (given, address) = (address, &address.absolute());
    let (mut standing, worker) = Standing::take(address, &options)?;
    let own = broadcast(address, &options, worker, &mut standing)?;
    let shared = Shared::new(address.clone(), own)?;
    let weak = Arc::downgrade(&shared);
    if let Some(tripwire) = shared.region.tripwire() {
        let publisher = weak.clone();
        tripwire.on_alarm(move || publisher.upgrade().map(Shared::expose));
    }
    let thread = Idle::spawn("ringfence-accept", "a thread for the publisher", Admitting::run)?;
    let wakers = Arc::clone(&shared.watches);
    let watcher = thread::Builder::new()
        .name("ringfence-watch".into())
        .spawn(move || {
            begin_own_thread();
            watch(&wakers, &weak);
        })
        .map_err(|error| Error::NoSpace {
            what: "a thread that lets go of subscribers".into(),
            reason: error.to_string(),
        })?;
    let publisher = Publisher {
        sender: Broadcaster::new(&shared, options.longest(), options.busy_poll),
        audience: Audience {
            handle: Handle::new(given, &shared),
            watcher: Some(watcher),
        },
    };
    thread.start(Admitting {
        shared,
        options,
        standing,
    });
    Ok(publisher)
}

/// The ring object, and what the threads of the publisher share beside it.
fn broadcast(
    address: &Address,
    options: &Options,
    worker: Worker,
    standing: &mut Standing,
) -> Result<Broadcast> {
    let Standing { record, deadline, .. } = standing;
    let takes_barriers = sys::process::accept_barriers()
        .and_then(|()| sys::process::issue_barrier())
        .is_ok();
    // Without subscribers, nothing else in /proc tells a publisher's ring from that of a pair.
    let name = [b"ringfence-published:".as_slice(), &address.bound_name()].concat();
    let wanted = ObjectSpec {
        backing: options.backing,
        name: &name,
        capacity: options.capacity,
        signal: match options.signal_number {
            Some(number) => number,
            None => claim::unused()?,
        },
        peer: nix::unistd::geteuid().as_raw(),
    };
    let object = SharedObject::create(&wanted, &deadline.within(options.timeout), record)?;
    object.close_to_openers(record)?;
    let kept = InFlightDescriptor::keep(&object)?;
    record.passed(
        "object",
        "kept",
        "in flight, in no table of descriptors",
        "a socket of the publisher's own",
    );
    // From here on it is in no table.
    let region = object.into_region();
    region.in_use(takes_barriers);
    let readers = Arc::new(Readers::new(region.clone(), OwnRegion::nowhere(), MOST_READERS));
    let watches = Arc::new(Watches::new()?);
    let sender = Arc::clone(&watches);
    Ok(Broadcast {
        limits: options.seats(),
        ring: Arc::new(PublishedRing::new(readers, kept, move || sender.wake_sender())?),
        region,
        capacity: options.capacity,
        barriers: if takes_barriers {
            Barriers::Sleeper
        } else {
            Barriers::Both
        },
        state: AtomicState::open(ForkMark::new()?),
        ended: false.into(),
        sealed: false.into(),
        watches,
        charging: Mutex::new(Charging::new(options.stall)),
        worker,
        evicted: 0.into(),
    })
}

/// One that publishes at an address: both halves together.
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
/// [`Publisher::send`], [`Publisher::wait`] and [`Publisher::next`] block, and [`Publisher::seal`] until the handshakes under way
/// have broken off. Everything else returns at once.
///
/// # Who is let go of
/// A subscriber that has died is let go of within 10 ms, also while the publisher sleeps in a send. One that holds the publisher up
/// for longer than [`Options::stall`] is evicted.
///
/// Dropping it ends it: what is in the ring stays readable to the subscribers.
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

    /// The half that sees the subscribers.
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Where it publishes.
    pub fn address(&self) -> &Address {
        self.audience.address()
    }

    /// See [`Broadcaster::capacity`].
    pub fn capacity(&self) -> u64 {
        self.sender.capacity()
    }

    /// See [`Broadcaster::max_message_size`].
    pub fn max_message_size(&self) -> u64 {
        self.sender.max_message_size()
    }

    /// See [`Broadcaster::sequence`].
    pub fn sequence(&self) -> u64 {
        self.sender.sequence()
    }

    /// See [`Broadcaster::stats`].
    pub fn stats(&mut self) -> PublisherStats {
        self.sender.stats()
    }

    /// See [`Broadcaster::try_send`].
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<bool> {
        self.sender.try_send(message)
    }

    /// See [`Broadcaster::send`].
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.sender.send(message)
    }

    /// See [`Broadcaster::send_until`].
    pub fn send_until(&mut self, message: &[u8], deadline: Instant) -> Result<()> {
        self.sender.send_until(message, deadline)
    }

    /// See [`Broadcaster::reserve`].
    #[inline]
    pub fn reserve(&mut self, size: usize) -> Result<Option<Room<'_>>> {
        self.sender.reserve(size)
    }

    /// See [`Broadcaster::reserve_items`].
    #[inline]
    pub fn reserve_items<T: Pod>(&mut self, count: usize) -> Result<Option<ReservedItems<Room<'_>, T>>> {
        self.sender.reserve_items(count)
    }

    /// See [`Broadcaster::reserve_detached`].
    pub fn reserve_detached(&mut self, size: usize) -> Result<Option<Reserved>> {
        self.sender.reserve_detached(size)
    }

    /// See [`Broadcaster::batch`].
    pub fn batch(&mut self) -> Result<BroadcastBatch<'_>> {
        self.sender.batch()
    }

    /// See [`Broadcaster::wait`].
    pub fn wait(&mut self, size: usize, deadline: Option<Instant>) -> Result<bool> {
        self.sender.wait(size, deadline)
    }

    /// See [`Broadcaster::end`].
    pub fn end(&mut self) {
        self.sender.end();
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

    /// See [`Audience::close_reason`].
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.audience.close_reason()
    }
}

impl AsFd for Publisher {
    /// Readable when [`Publisher::try_next`] has an event, or the end. What wakes a sender that waits for room is
    /// [`Publisher::sender`]'s.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.audience.as_fd()
    }
}

/// The half of a [`Publisher`] that sees who comes and goes, on any thread.
///
/// A program need not take the events: of those that it does not take, the last 4,096 are kept.
///
/// Dropping it closes the publisher.
#[derive(Debug)]
pub struct Audience {
    handle: Handle<Broadcast>,
    watcher: Option<JoinHandle<()>>,
}

impl Audience {
    /// Where it publishes.
    pub fn address(&self) -> &Address {
        self.handle.address()
    }

    /// Those that are subscribed now, in no order.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.handle
            .here()
            .map_or_else(|_| Vec::new(), Shared::subscribers)
    }

    /// Waits for the next event. Errors with [`Error::Closed`] once the publisher is closed, or has ended and the last subscriber
    /// has gone, with [`Error::Aborted`] once it was called off, and with [`Error::NoSpace`] where this call cannot wait (poll(2)): then it
    /// can be made again.
    pub fn next(&self) -> Result<PublisherEvent> {
        self.handle.next()
    }

    /// As [`Audience::next`]. `None`: the deadline has passed.
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<PublisherEvent>> {
        self.handle.next_until(deadline)
    }

    /// The next event, if there is one now. Errors as [`Audience::next`].
    pub fn try_next(&self) -> Result<Option<PublisherEvent>> {
        self.handle.try_next()
    }

    /// Lets newcomers wait in the kernel's backlog. Handshakes under way, 64 at most, go on.
    pub fn pause(&self) {
        self.handle.set_paused(true);
    }

    /// Takes newcomers in again.
    pub fn resume(&self) {
        self.handle.set_paused(false);
    }

    /// Lets no further subscriber in, for good: handshakes under way break off, and the address is free. No descriptor of the ring is left in
    /// this process when this returns. Those that are subscribed go on.
    pub fn seal(&self) {
        if let Ok(shared) = self.handle.here() {
            shared.seal();
        }
    }

    /// Ends the publisher. What is in the ring stays readable to the subscribers, which then get their end. The address is free
    /// when this returns.
    pub fn close(&self) {
        if let Ok(shared) = self.handle.here() {
            shared.close();
        }
    }

    /// Why the publisher has ended; `None` while it has not. One that has sent its last is over once the last subscriber has read
    /// all of it, or has gone.
    pub fn close_reason(&self) -> Option<CloseReason> {
        let shared = self.handle.here();
        shared.map_or(Some(CloseReason::Closed), |shared| {
            shared.state.get().close_reason()
        })
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        let Ok(shared) = self.handle.here() else { return };
        shared.close();
        shared.events.discard();
        if let Some(watcher) = self.watcher.take()
            && !is_own_thread()
        {
            // A panic of that thread has been told where it happened.
            let _ = watcher.join();
        }
    }
}

impl AsFd for Audience {
    /// Readable when [`Audience::try_next`] has an event, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// What the worker takes newcomers in with.
struct Admitting {
    shared: Arc<Shared<Broadcast>>,
    options: Options,
    standing: Standing,
}

impl Admitting {
    fn run(self) {
        let Self {
            shared,
            options,
            standing,
        } = self;
        let Standing {
            place,
            record,
            deadline,
            over,
            hold,
        } = standing;
        let acceptor = Acceptor {
            address: &shared.address,
            options: &options,
            meeting: Broadcast::MEETING,
            record: &record,
            bell: &shared.bell,
            shares: &[],
            ring: Some(&shared.ring),
            over: &over,
        };
        let admission = Admission::new(&shared, &options);
        let error = acceptor.run(&admission, place, &deadline, |place, result| {
            drop(place);
            let (Ok(error) | Err(error)) = result;
            error
        });
        // The handshakes are over, and with them their copies of the ring's descriptor.
        drop(hold);
        if shared.sealed.load(Ordering::Acquire) {
            return;
        }
        match error {
            // Called off by the program.
            Error::Aborted => {
                shared.events.end(End::Failed(Error::Aborted));
                shared.close();
            }
            // Newcomers are let in no more. Those that are here lose nothing.
            error => {
                shared.ring.seal();
                shared.events.add(PublisherEvent::Refused(Refused {
                    error,
                    identity: None,
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::end::ChannelState;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no sockets")]
    fn what_is_dropped_leaves_no_thread_and_no_address() {
        let address = Address::abstract_name(format!("ringfence-unit-{}", std::process::id())).unwrap();
        let options = Options::new().capacity(4096);
        for _ in 0..3 {
            let publisher = publish(&address, &options).unwrap();
            assert_eq!(publisher.shared_state(), ChannelState::Open);
        }
    }

    impl Publisher {
        fn shared_state(&self) -> ChannelState {
            self.audience.handle.here().unwrap().state.get()
        }
    }
}
