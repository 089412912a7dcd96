//! The kind of endpoint behind a [`Publisher`](crate::Publisher): the subscribers, as the threads of the publisher share them.
//!
//! Each subscriber is a channel without a ring. Anything that ends that channel, on any thread (the subscriber's death, a protocol
//! violation, an eviction, this side's close), drops its [`SubscriberGuard`], which releases everything that the publisher has of
//! the subscriber. The guard is dropped after the subscriber's control object shows the end, and only then may its unread messages
//! be overwritten.
//!
//! Owners: any thread writes the list, under the lock of the endpoint's state. Any thread that ends the publisher writes its
//! state as a whole, under the same lock. The sender and the watcher write the charges, under a lock of their own.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    channel::end::{self as channel, AtomicState, ChannelState, CloseReason, OnEnd, UnreportedEnd},
    channel::open::open,
    channel::verify::{Verification, Verified, Verifier},
    error::{Error, Result},
    evidence::Evidence,
    fork::ProcessMutex,
    handshake::broadcast::{PublishedRing, ReaderLink, ReservedStart, RingPart},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    host::accept::Refused,
    host::endpoint::{Endpoint, EndpointKind, SlotGuard, Worker},
    host::events::End,
    host::stalls::{Charging, Goal},
    host::watches::Watches,
    identity::Identity,
    options::Options,
    region::copy::Readable,
    region::layout,
    region::own::OwnRegion,
    region::tripwire::AfterAlarm,
    ring::fan_out::Delivery,
    ring::fan_out::readers::ActiveReader,
    sys::lock::Mutex,
    wake::doorbell::LineEnds,
    wake::parking::Barriers,
    wake::parking::many::admit,
};

/// The number of events that the program has not taken. If it is reached, [`forget_oldest`] drops an event that it can do without.
const MAX_PENDING: usize = 4096;

/// The kind of endpoint that a [`Publisher`](crate::Publisher) is the handle of.
pub struct Broadcast {
    pub(crate) ring: Arc<PublishedRing>,
    /// The ring object, mapped by its owner.
    pub(crate) region: OwnRegion,
    pub(crate) capacity: u64,
    /// Whether this process supports membarrier(2).
    pub(crate) barriers: Barriers,
    /// The state of the publisher as a whole. Read by each call that sends.
    pub(crate) state: AtomicState,
    /// Nothing more will be sent.
    pub(crate) ended: AtomicBool,
    /// The program has closed the publisher to further subscribers.
    pub(crate) sealed: AtomicBool,
    pub(crate) watches: Arc<Watches>,
    pub(crate) charging: Mutex<Charging>,
    /// The thread that keeps the address.
    pub(crate) worker: Worker,
    /// The number of evicted subscribers.
    pub(crate) evicted: AtomicU64,
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        if self.state.is(ChannelState::Inherited, Ordering::Relaxed) {
            // In a forked child: another thread of the parent may have been changing these at the fork.
            let nothing = Charging::new(Duration::MAX);
            mem::forget(mem::replace(self.charging.get_mut(), nothing));
            mem::forget(Arc::clone(&self.ring));
        }
    }
}

#[derive(Default)]
pub(crate) struct AudienceState {
    /// By number.
    list: BTreeMap<u64, ConnectedSubscriber>,
    /// The number of subscribers that were listed, and whose end was not reported to the program yet.
    unreported_ends: usize,
    /// The publisher has ended, and so have the channels of all subscribers that were listed then.
    is_over: bool,
}

/// A subscriber whose channel has not ended.
struct ConnectedSubscriber {
    member: Arc<SubscriberRecord>,
    link: Arc<channel::Shared>,
    /// Not in the record, which a program may keep for long: this keeps a descriptor of the subscriber's process.
    _verifier: Verifier,
}

/// The properties of a subscriber, also after its end.
struct SubscriberRecord {
    /// Unique among the publisher's subscribers.
    number: u64,
    delivery: Delivery,
    /// The identity in the handshake.
    identity: Identity,
    /// The identity at the last [`Subscriber::verify`].
    verified: ProcessMutex<Option<Identity>>,
    evidence: Vec<Evidence>,
    verifier: Weak<Verification>,
    link: Weak<channel::Shared>,
    gone: OnceLock<CloseReason>,
    /// The event of its connection was dropped, so its end is not reported either.
    unreported: AtomicBool,
}

/// A subscriber, as its publisher sees it. Clones are the same subscriber. It keeps neither the subscriber nor the publisher open.
#[derive(Clone)]
pub struct Subscriber {
    member: Arc<SubscriberRecord>,
    publisher: Weak<Endpoint<Broadcast>>,
}

opaque! { [] Subscriber; }

impl Subscriber {
    /// Its identity at the last check: at [`Subscriber::verify`], or in the handshake. In a forked child: in the handshake.
    pub fn peer(&self) -> Identity {
        let verified = self.member.verified.lock().ok();
        verified
            .and_then(|verified| verified.clone())
            .unwrap_or_else(|| self.member.identity.clone())
    }

    /// Every check of its handshake, in order.
    pub fn evidence(&self) -> &[Evidence] {
        &self.member.evidence
    }

    /// The delivery that it has asked for.
    pub fn delivery(&self) -> Delivery {
        self.member.delivery
    }

    /// The number of published bytes that it has not read, as it reports. 0 once it has disconnected.
    pub fn lag(&self) -> u64 {
        match self.publisher() {
            Some(publisher) if self.gone().is_none() => publisher.ring.readers.lag(self.member.number),
            _ => 0,
        }
    }

    /// The reason why it has disconnected; `None` while it is connected.
    pub fn gone(&self) -> Option<CloseReason> {
        self.member.gone.get().copied()
    }

    /// Whether both are the same subscriber.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.member, &other.member)
    }

    /// Checks its process against the publisher's policy again. Fails as [`Verifier::verify`](crate::Verifier::verify): a subscriber
    /// that no longer passes is disconnected.
    pub fn verify(&self) -> Result<Identity> {
        if self.member.gone.get().is_some() {
            return Err(Error::Closed("the subscriber has gone"));
        }
        let verifier = self.member.verifier.upgrade();
        let verifier = verifier.ok_or(Error::Closed("the subscriber has gone"))?;
        let Verified { identity, .. } = Verifier(verifier).verify()?;
        *self.member.verified.lock()? = Some(identity.clone());
        Ok(identity)
    }

    /// Disconnects it: 'closed' on both sides, at once. It can still read what was published before. Until it has, it still occupies a
    /// slot, and a reliable subscriber can delay the publisher for up to [`Options::stall`](crate::Options::stall).
    pub fn disconnect(&self) {
        if let Some(publisher) = self.publisher() {
            // An end that is not reported yet counts. One that follows this call does not, since the subscriber may close in any way.
            let link = self.member.link.upgrade();
            let reason = link.as_ref().and_then(|link| link.close_reason());
            let reason = reason.unwrap_or(CloseReason::Closed);
            if let Some(link) = link {
                // Before the end is reported: a message that is sent then leaves out this subscriber's attachments.
                link.end_reading_at(publisher.tail());
            }
            publisher.report_gone(&self.member, reason);
            publisher.end_one(&self.member);
        }
    }

    /// `None` once the publisher is dropped, and in a forked child.
    fn publisher(&self) -> Option<Arc<Endpoint<Broadcast>>> {
        self.publisher
            .upgrade()
            .filter(|publisher| publisher.in_owner_process())
    }
}

/// An event of a [`Publisher`](crate::Publisher).
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "refusals are rare, and each event is moved twice at most"
)]
#[derive(Debug)]
pub enum PublisherEvent {
    /// A subscriber has connected.
    Subscriber(Subscriber),
    /// A subscriber has disconnected.
    Gone(Subscriber, CloseReason),
    /// A client was refused. The publisher continues.
    Refused(Refused),
}

impl From<Refused> for PublisherEvent {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Removes the oldest event that a program can do without: a refusal, or the two events of a subscriber that has connected and
/// disconnected. The connection of a subscriber that is still connected stays, and so does the end of one that the program knows:
/// their number is limited by the number of subscribers.
fn forget_oldest(pending: &mut VecDeque<PublisherEvent>) -> (Option<PublisherEvent>, Option<PublisherEvent>) {
    let oldest = pending.iter().position(|event| match event {
        PublisherEvent::Subscriber(subscriber) => subscriber.gone().is_some(),
        PublisherEvent::Gone(..) => false,
        PublisherEvent::Refused(_) => true,
    });
    let forgotten = oldest.and_then(|at| pending.remove(at));
    let Some(PublisherEvent::Subscriber(subscriber)) = &forgotten else {
        return (forgotten, None);
    };
    subscriber.member.unreported.store(true, Ordering::Relaxed);
    let end = pending
        .iter()
        .position(|event| matches!(event, PublisherEvent::Gone(gone, _) if gone.is(subscriber)));
    let end = end.and_then(|at| pending.remove(at));
    (forgotten, end)
}

/// `false` for the end of a subscriber whose connection was dropped. Called under the lock of the events, as [`forget_oldest`] is.
fn is_wanted(event: &PublisherEvent) -> bool {
    match event {
        PublisherEvent::Gone(subscriber, _) => !subscriber.member.unreported.load(Ordering::Relaxed),
        PublisherEvent::Subscriber(_) | PublisherEvent::Refused(_) => true,
    }
}

impl EndpointKind for Broadcast {
    const MEETING: Meeting = Meeting::Broadcast;
    const NAME: &'static str = "publisher";
    const CLOSED: &'static str = "the publisher is closed";
    const CANCELLED: &'static str = "the publisher lets no more subscribers in";
    type State = AudienceState;
    type Event = PublisherEvent;

    fn ready(endpoint: &Arc<Endpoint<Self>>, mut parts: Parts, slot: SlotGuard<Self>, options: &Options) {
        // The handshake of a publisher returns no other part.
        if let RingPart::Publisher(start) = mem::replace(&mut parts.objects.ring, RingPart::PerSide) {
            endpoint.admit(parts, start, slot, options);
        }
    }

    fn refused(endpoint: &Endpoint<Self>, refused: Refused) {
        endpoint.report(refused.into());
    }

    fn ring(&self) -> Option<&Arc<PublishedRing>> {
        Some(&self.ring)
    }
}

impl Endpoint<Broadcast> {
    fn report(&self, event: PublisherEvent) {
        self.events
            .add_at_most(event, MAX_PENDING, forget_oldest, is_wanted);
    }

    /// A client has got READY.
    fn admit(
        self: &Arc<Self>,
        parts: Parts,
        start: ReservedStart,
        slot: SlotGuard<Broadcast>,
        options: &Options,
    ) {
        let (number, delivery) = (start.slot.number, start.delivery);
        let opened = open(parts, None, options);
        let (link, control, barriers) = (opened.shared, opened.peer, opened.barriers);
        let (accepts, known) = (opened.terms.attachments_out, opened.known);
        let member = Arc::new(SubscriberRecord {
            number,
            delivery,
            identity: (*known.identity).clone(),
            verified: ProcessMutex::new(None, self.owner()),
            evidence: known.evidence,
            verifier: Arc::downgrade(&known.verifier.0),
            link: Arc::downgrade(&link),
            gone: OnceLock::new(),
            unreported: AtomicBool::new(false),
        });
        let entry = ConnectedSubscriber {
            member: Arc::clone(&member),
            link: Arc::clone(&link),
            _verifier: known.verifier,
        };
        {
            let mut state = self.state();
            state.list.insert(number, entry);
            state.unreported_ends += 1;
        }
        let ends = link.doorbell.ends();
        let reader = ReaderLink {
            doorbell: Arc::downgrade(&link.doorbell),
            barriers,
            accepts,
        };
        let active = start.activate(control, reader);
        // Only now: a message that is published after this has its attachments for the subscriber.
        self.report(PublisherEvent::Subscriber(self.handle(&member)));
        // A subscriber that was evicted before this may have hung up already, so it is not watched.
        let watched = if active {
            self.watches.add_with_retries(number, &ends)
        } else {
            Ok(())
        };
        let admitted = admit(&self.region, self.barriers, barriers);
        // It may have parked or made room before the sender knew of it.
        link.doorbell.wake_peer();
        self.watches.wake_sender();
        let guard = SubscriberGuard {
            publisher: Arc::clone(self),
            member: Arc::clone(&member),
            ends,
            start: Some(start),
            slot: Some(slot),
            end: ChannelState::ClosedHere,
        };
        // From here on, the end of the channel releases all this. If the channel has ended already, that is now.
        link.set_on_end(Box::new(guard));
        match self.state.get() {
            ChannelState::Open if !active => link.finish(ChannelState::Evicted),
            // Without a watch, its end would go unnoticed.
            ChannelState::Open if watched.is_err() || admitted.is_err() => {
                link.finish(ChannelState::DestroyedHere);
            }
            ChannelState::Open => {}
            end => link.finish(end),
        }
        if self.ended.load(Ordering::Acquire) {
            self.end_one(&member);
        }
    }

    fn handle(self: &Arc<Self>, member: &Arc<SubscriberRecord>) -> Subscriber {
        Subscriber {
            member: Arc::clone(member),
            publisher: Arc::downgrade(self),
        }
    }

    /// The connected subscribers.
    pub(crate) fn subscribers(self: &Arc<Self>) -> Vec<Subscriber> {
        let state = self.state();
        let members = state.list.values().map(|entry| &entry.member);
        members
            .filter(|member| member.gone.get().is_none())
            .map(|member| self.handle(member))
            .collect()
    }

    /// The number of connected and of evicted subscribers.
    pub(crate) fn counts(&self) -> (usize, u64) {
        let evicted = self.evicted.load(Ordering::Relaxed);
        if !self.in_owner_process() {
            return (0, evicted);
        }
        let state = self.state();
        let members = state.list.values().map(|entry| &entry.member);
        (
            members.filter(|member| member.gone.get().is_none()).count(),
            evicted,
        )
    }

    /// Returns a part of each subscriber, without the lock.
    fn map_subscribers<T>(&self, part: impl FnMut(&ConnectedSubscriber) -> T) -> Vec<T> {
        self.state().list.values().map(part).collect()
    }

    /// The channel of a subscriber, if that has not ended.
    pub(crate) fn link(&self, number: u64) -> Option<Arc<channel::Shared>> {
        let state = self.state();
        state.list.get(&number).map(|entry| Arc::clone(&entry.link))
    }

    /// Drops the subscribers whose end was reported.
    pub(crate) fn drop_gone(&self, readers: &mut Vec<ActiveReader<ReaderLink>>) {
        let state = self.state();
        readers.retain(|reader| {
            let entry = state.list.get(&reader.number);
            entry.is_some_and(|entry| entry.member.gone.get().is_none())
        });
    }

    /// Checks whether a subscriber has disconnected. `woken`: reads its wakeups from the line.
    pub(crate) fn check_subscriber(&self, number: u64, woken: bool) {
        if let Some(link) = self.link(number) {
            if woken {
                link.doorbell.read_wakeups();
            } else {
                link.doorbell.check_peer();
            }
            link.end_if_gone();
        }
    }

    /// The position up to which everything is published.
    fn tail(&self) -> u64 {
        self.region.load(layout::TAIL, Ordering::Acquire)
    }

    /// Ends one subscriber after what is published now.
    fn end_one(&self, member: &SubscriberRecord) {
        if let Some(link) = member.link.upgrade() {
            link.end_reading_at(self.tail());
            if link.end_sending() {
                link.doorbell.wake_peer();
            }
        }
    }

    /// Ends each subscriber after what is published now. The address is free when this returns.
    pub(crate) fn end(&self) {
        if !self.in_owner_process() || self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.seal();
        for member in self.map_subscribers(|entry| Arc::clone(&entry.member)) {
            self.end_one(&member);
        }
        self.finish_if_over();
    }

    /// Admits no further subscribers. When this returns, the address is free and no descriptor of the ring is left.
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
        self.worker.stop().cancel();
        self.worker.wait();
        self.ring.seal();
    }

    /// Closes the publisher, once, cleanly or not.
    pub(crate) fn close(&self, how: ChannelState) {
        self.seal();
        self.finish(how);
    }

    /// Called when another process tries to open the ring. When this returns, all subscribers can see that, and the ring is wiped.
    /// Returns a function that notifies the program.
    pub(crate) fn expose(self: Arc<Self>) -> AfterAlarm {
        self.sealed.store(true, Ordering::Release);
        // Does not wait for it: this is the thread that handles alarms.
        self.worker.stop().cancel();
        self.ring.seal();
        let unreported = self.end_channels(ChannelState::Exposed);
        self.region.wipe();
        Box::new(move || {
            if let Some(unreported) = unreported {
                self.finish_reporting(unreported);
            }
        })
    }

    fn finish(&self, end: ChannelState) {
        if let Some(unreported) = self.end_channels(end) {
            self.finish_reporting(unreported);
        }
    }

    /// Ends the channel with each subscriber, once.
    fn end_channels(&self, end: ChannelState) -> Option<Vec<UnreportedEnd>> {
        {
            let _state = self.state();
            if !self.state.is(ChannelState::Open, Ordering::Acquire) {
                return None;
            }
            self.state.set(end);
        }
        // Keeps what they have not read. An alarm wipes it all the same.
        if let Some(position) = self.ring.readers.lowest_position() {
            self.region.retain_from(position);
        }
        let ends = self
            .map_subscribers(|entry| Arc::clone(&entry.link))
            .into_iter()
            .filter_map(|link| {
                if end != ChannelState::Exposed {
                    link.end_reading_at(self.tail());
                }
                link.end(end)
            });
        Some(ends.collect())
    }

    fn finish_reporting(&self, unreported: Vec<UnreportedEnd>) {
        drop(unreported);
        self.end_events_once_reported(|state| state.is_over = true);
        self.watches.stop();
        self.watches.wake_sender();
    }

    /// Changes what is still to be reported, and ends the events if that is nothing. If another thread is admitting or ending a
    /// subscriber while the publisher ends, the events end after its report.
    fn end_events_once_reported(&self, change: impl FnOnce(&mut AudienceState)) {
        let is_reported = {
            let mut state = self.state();
            change(&mut state);
            state.is_over && state.unreported_ends == 0
        };
        if is_reported {
            self.events.end(End::Closed);
        }
    }

    /// Ends the publisher once nothing more is sent and the last subscriber has read everything or disconnected.
    fn finish_if_over(&self) {
        if self.ended.load(Ordering::Acquire) && self.state().list.is_empty() {
            self.finish(ChannelState::ClosedHere);
        }
    }

    /// Reports the end of a subscriber to the program, once.
    fn report_gone(self: &Arc<Self>, member: &Arc<SubscriberRecord>, reason: CloseReason) {
        if member.gone.set(reason).is_ok() {
            if reason == CloseReason::Evicted {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            self.report(PublisherEvent::Gone(self.handle(member), reason));
        }
    }

    fn release(self: &Arc<Self>, member: &Arc<SubscriberRecord>, reason: CloseReason) {
        let entry = self.state().list.remove(&member.number);
        // Dropped without the lock.
        drop(entry);
        self.report_gone(member, reason);
        self.end_events_once_reported(|state| state.unreported_ends -= 1);
        self.watches.wake_sender();
        self.finish_if_over();
    }

    /// A message waits until the subscribers have read up to the goal.
    pub(crate) fn begin_stall(&self, goal: Goal) {
        let mut guard = self.charging.lock();
        let Charging { stalls, positions } = &mut *guard;
        self.ring.readers.reliable(positions);
        let sooner = stalls.begin(goal, positions, self.tail(), Instant::now());
        drop(guard);
        if sooner {
            self.watches.wake_watcher();
        }
    }

    /// The message has found room, or is given up.
    pub(crate) fn end_stall(&self) {
        let Charging { stalls, positions } = &mut *self.charging.lock();
        self.ring.readers.reliable(positions);
        stalls.end(positions, Instant::now());
    }

    /// Evicts the subscribers that have delayed the publisher for too long. Returns when to check again.
    fn evict(&self) -> Option<Instant> {
        let mut guard = self.charging.lock();
        let Charging { stalls, positions } = &mut *guard;
        if stalls.is_idle() {
            return None;
        }
        self.ring.readers.reliable(positions);
        let found = stalls.poll(positions, Instant::now());
        let stall = stalls.limit();
        drop(guard);
        for link in found.violators.iter().filter_map(|number| self.link(*number)) {
            let what = "it has shown two positions, of which the later one is lower";
            // Ends the channel with this reason.
            let _ = link.judge::<()>(Err(Error::RingCorrupt(what.into())));
        }
        for number in &found.over {
            self.evict_one(*number, stall);
        }
        if found.may_proceed || !found.over.is_empty() || !found.violators.is_empty() {
            self.watches.wake_sender();
        }
        found.next
    }

    fn evict_one(&self, number: u64, stall: Duration) {
        let readers = &self.ring.readers;
        // A subscriber that is not listed is still in its handshake, which then fails. If the handshake ends at this moment, the reader is
        // active, and the subscriber was listed before that.
        let mut link = self.link(number);
        if link.is_none() && !readers.release_inactive(number) {
            link = self.link(number);
        }
        let Some(link) = link else { return };
        let lag = readers.lag(number);
        link.finish(ChannelState::Evicted);
        // Another end may have come first.
        if link.state.get() == ChannelState::Evicted {
            link.trace.evicted(lag, stall);
        }
    }
}

/// The watcher: notices subscribers that have disconnected, and evicts those that are too slow. It ends with the publisher.
pub(crate) fn watch(watches: &Watches, publisher: &Weak<Endpoint<Broadcast>>) {
    let mut until = None;
    while let Some(numbers) = watches.wait_for_ends(until) {
        let Some(publisher) = publisher.upgrade() else {
            return;
        };
        for number in numbers.iter() {
            publisher.check_subscriber(*number, false);
        }
        until = publisher.evict();
    }
}

/// Everything that the publisher has of a subscriber while its channel is open.
struct SubscriberGuard {
    publisher: Arc<Endpoint<Broadcast>>,
    member: Arc<SubscriberRecord>,
    ends: LineEnds,
    start: Option<ReservedStart>,
    slot: Option<SlotGuard<Broadcast>>,
    /// The final state of its channel.
    end: ChannelState,
}

impl OnEnd for SubscriberGuard {
    fn end(&mut self, state: ChannelState) -> bool {
        self.end = state;
        false
    }
}

impl Drop for SubscriberGuard {
    /// The subscriber can see the end already, so its unread messages may be overwritten.
    fn drop(&mut self) {
        if !self.publisher.in_owner_process() {
            return;
        }
        drop(self.start.take());
        // Before the program is notified, which may expect the next subscriber at once.
        drop(self.slot.take());
        self.publisher.watches.remove(&self.ends);
        let link = self.member.link.upgrade();
        let reason = link.map_or_else(|| self.end.close_reason(), |link| link.close_reason());
        let reason = reason.unwrap_or(CloseReason::Closed);
        self.publisher.release(&self.member, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fork::OwnerProcess, host::events::Events, identity::Credentials, wait::deadline::Wakeup};

    fn subscriber(number: u64) -> Subscriber {
        let member = SubscriberRecord {
            number,
            delivery: Delivery::Reliable,
            identity: Identity::of(Credentials {
                pid: 1,
                uid: 1,
                gid: 1,
            }),
            verified: ProcessMutex::new(None, OwnerProcess::current().unwrap()),
            evidence: Vec::new(),
            verifier: Weak::new(),
            link: Weak::new(),
            gone: OnceLock::new(),
            unreported: AtomicBool::new(false),
        };
        Subscriber {
            member: Arc::new(member),
            publisher: Weak::new(),
        }
    }

    fn numbers(pending: &VecDeque<PublisherEvent>) -> Vec<(char, u64)> {
        let number = |event: &PublisherEvent| match event {
            PublisherEvent::Subscriber(one) => ('+', one.member.number),
            PublisherEvent::Gone(one, _) => ('-', one.member.number),
            PublisherEvent::Refused(_) => ('!', 0),
        };
        pending.iter().map(number).collect()
    }

    #[test]
    fn only_admissions_and_refusals_are_dropped_when_full() {
        let come = |one: &Subscriber| PublisherEvent::Subscriber(one.clone());
        let gone = |one: &Subscriber| {
            let _ = one.member.gone.set(CloseReason::Closed);
            PublisherEvent::Gone(one.clone(), CloseReason::Closed)
        };
        let refused = Refused {
            error: Error::Aborted,
            identity: None,
        };
        // The connection of the first was reported before; the second is still connected.
        let [known, there, short] = [1, 2, 3].map(subscriber);
        let mut pending = VecDeque::from([
            gone(&known),
            come(&there),
            come(&short),
            refused.into(),
            gone(&short),
        ]);
        drop(forget_oldest(&mut pending));
        assert_eq!(numbers(&pending), [('-', 1), ('+', 2), ('!', 0)]);
        assert!(short.member.unreported.load(Ordering::Relaxed));
        for _ in 0..2 {
            drop(forget_oldest(&mut pending));
            assert_eq!(numbers(&pending), [('-', 1), ('+', 2)]);
        }
        // Its end may come a moment after it is known.
        let _ = there.member.gone.set(CloseReason::Lost);
        drop(forget_oldest(&mut pending));
        assert_eq!(numbers(&pending), [('-', 1)]);
        assert!(
            there.member.unreported.load(Ordering::Relaxed),
            "its end is not told"
        );
    }

    #[test]
    fn end_of_a_dropped_admission_is_not_reported() {
        let events = Events::new(Wakeup::new().unwrap(), "closed").unwrap();
        let add = |event, most| events.add_at_most(event, most, forget_oldest, is_wanted);
        let [first, second] = [1, 2].map(subscriber);
        for one in [&first, &second] {
            add(PublisherEvent::Subscriber(one.clone()), 2);
        }
        // Each disconnects: this can be seen before it is reported.
        for one in [&first, &second] {
            one.member.gone.set(CloseReason::Closed).unwrap();
        }
        add(PublisherEvent::Gone(first, CloseReason::Closed), 2);
        add(PublisherEvent::Gone(second, CloseReason::Closed), 2);
        let told: VecDeque<_> = std::iter::from_fn(|| events.try_next().unwrap()).collect();
        assert_eq!(numbers(&told), [('+', 2), ('-', 2)]);
    }
}
