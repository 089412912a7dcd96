//! The subscribers of a publisher, as its threads share them.
//!
//! Each subscriber is a channel without a ring. Whatever ends that channel (its death, a lie, an eviction, this side's close, on
//! whatever thread) drops its [`Place`], and that lets go of all that the publisher has of it: so there is one way out. The place is
//! dropped after the subscriber's control object says how it ended, and only then may what it has not read be overwritten.
//!
//! Who writes what: the list and the seats, each thread, under the lock of the endpoint's state. The state of the publisher as a whole,
//! each thread that ends it, under the same lock. What the subscribers are charged, the sender and the watcher, under a lock of
//! its own.

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
    channel::end::{self as channel, AtomicState, ChannelState, CloseReason, OnEnd, Untold},
    channel::open::open,
    channel::verify::{Verified, Verifier, WeakVerifier},
    error::{Error, Result},
    evidence::Evidence,
    fork::ProcessMutex,
    handshake::broadcast::{HeldStart, PublishedRing, ReaderBell, RingPart},
    handshake::frame::Meeting,
    handshake::parts::Parts,
    host::accept::Refused,
    host::endpoint::{Endpoint, Seat, Shared},
    host::events::End,
    host::handle::Worker,
    host::seats::TakenSeats,
    host::stalls::Charging,
    host::watches::Watches,
    identity::{Credentials, Identity},
    options::{Options, SeatLimits},
    region::copy::Readable,
    region::exposure::tripwire::Aftermath,
    region::layout,
    region::own::OwnRegion,
    ring::delivery::Delivery,
    sys::lock::Mutex,
    wake::doorbell::LineEnds,
    wake::parking::Barriers,
    wake::parking::many::admit,
};

/// Events that the program has not taken: beyond that, those are forgotten that it can do without ([`forget_oldest`]).
const MOST_PENDING: usize = 4096;

/// One to many.
#[derive(Debug)]
pub(crate) struct Broadcast {
    pub(crate) limits: SeatLimits,
    pub(crate) ring: Arc<PublishedRing>,
    /// The ring object, as its owner sees it.
    pub(crate) region: OwnRegion,
    pub(crate) capacity: u64,
    /// What this process can do.
    pub(crate) barriers: Barriers,
    /// Of the publisher as a whole. Read by each call that sends.
    pub(crate) state: AtomicState,
    /// Nothing more will be sent.
    pub(crate) ended: AtomicBool,
    /// Newcomers are not let in any more, as the program wishes.
    pub(crate) sealed: AtomicBool,
    pub(crate) watches: Arc<Watches>,
    pub(crate) charging: Mutex<Charging>,
    /// The thread that keeps the address.
    pub(crate) worker: Worker,
    /// Subscribers that were too slow.
    pub(crate) evicted: AtomicU64,
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        if self.state.is(ChannelState::Inherited, Ordering::Relaxed) {
            // In a child: another thread of the parent may have been changing these at the moment of the fork.
            let nothing = Charging::new(Duration::MAX);
            mem::forget(mem::replace(self.charging.get_mut(), nothing));
            mem::forget(Arc::clone(&self.ring));
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    seats: TakenSeats,
    /// By number.
    list: BTreeMap<u64, Seated>,
    /// Subscribers that were listed, and whose end the program was not told yet.
    untold_ends: usize,
    /// The publisher has ended, and so have the channels with all that were listed then.
    is_over: bool,
}

/// A subscriber whose channel has not ended.
#[derive(Debug)]
struct Seated {
    member: Arc<Member>,
    link: Arc<channel::Shared>,
    /// Not the member's: a program may keep that one for long, and this keeps a descriptor of the subscriber's process.
    _verifier: Verifier,
}

/// What is known of a subscriber, also after its end.
#[derive(Debug)]
struct Member {
    /// Of this subscriber and no other of the publisher's.
    number: u64,
    delivery: Delivery,
    /// As it was in the handshake.
    identity: Identity,
    /// As the last [`Subscriber::verify`] found it.
    verified: ProcessMutex<Option<Identity>>,
    evidence: Vec<Evidence>,
    verifier: WeakVerifier,
    link: Weak<channel::Shared>,
    gone: OnceLock<CloseReason>,
    /// The program is not told of it any more: that it has come was forgotten.
    untold: AtomicBool,
}

/// A subscriber, as its publisher sees it. Clones are the same subscriber. It does not keep the subscriber, nor the publisher open.
#[derive(Debug, Clone)]
pub struct Subscriber {
    member: Arc<Member>,
    publisher: Weak<Shared<Broadcast>>,
}

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

    /// What it has asked for.
    pub fn delivery(&self) -> Delivery {
        self.member.delivery
    }

    /// Bytes that are published and that it has not read, as it says. 0 once it has gone.
    pub fn lag(&self) -> u64 {
        match self.publisher() {
            Some(publisher) if self.gone().is_none() => publisher.ring.readers.lag(self.member.number),
            _ => 0,
        }
    }

    /// Why it has gone; `None` while it has not.
    pub fn gone(&self) -> Option<CloseReason> {
        self.member.gone.get().copied()
    }

    /// Whether both are the same subscriber.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.member, &other.member)
    }

    /// Looks at its process again, and compares what it finds with the publisher's policy. Errors as
    /// [`Verifier::verify`](crate::Verifier::verify): one that is not any more who it must be is let go of.
    pub fn verify(&self) -> Result<Identity> {
        if self.member.gone.get().is_some() {
            return Err(Error::Closed("the subscriber has gone"));
        }
        let verifier = self.member.verifier.upgrade();
        let verifier = verifier.ok_or(Error::Closed("the subscriber has gone"))?;
        let Verified { identity, .. } = verifier.verify()?;
        *self.member.verified.lock()? = Some(identity.clone());
        Ok(identity)
    }

    /// Lets go of it: 'closed' on both sides. What was published before is still read there: until it is, a reliable one can hold the
    /// publisher up, for its [`Options::stall`](crate::Options::stall), and its seat is taken.
    pub fn disconnect(&self) {
        if let Some(publisher) = self.publisher() {
            publisher.end_one(&self.member);
            // One that has ended otherwise, and is not told as gone yet, has that reason.
            let link = self.member.link.upgrade();
            let reason = link
                .and_then(|link| link.close_reason())
                .unwrap_or(CloseReason::Closed);
            publisher.gone(&self.member, reason);
        }
    }

    /// `None` once the publisher has gone, and in a child.
    fn publisher(&self) -> Option<Arc<Shared<Broadcast>>> {
        self.publisher.upgrade().filter(|publisher| publisher.is_here())
    }
}

/// What has happened at a [`Publisher`](crate::Publisher).
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "refusals are rare, and each event is moved twice at most"
)]
#[derive(Debug)]
pub enum PublisherEvent {
    /// A subscriber has come.
    Subscriber(Subscriber),
    /// It has gone.
    Gone(Subscriber, CloseReason),
    /// A newcomer was not let in. The publisher goes on.
    Refused(Refused),
}

impl From<Refused> for PublisherEvent {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Takes out the oldest of the events that a program can do without: a refusal, or that a subscriber has come and has gone. Not that one
/// has come which is there still, nor that one has gone which the program knows: of those there are no more than there were at a time.
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
    subscriber.member.untold.store(true, Ordering::Relaxed);
    let end = pending
        .iter()
        .position(|event| matches!(event, PublisherEvent::Gone(gone, _) if gone.is(subscriber)));
    let end = end.and_then(|at| pending.remove(at));
    (forgotten, end)
}

/// Not the end of a subscriber whose coming was forgotten. Under the lock of the events, as the forgetting is.
fn is_of_a_known_one(event: &PublisherEvent) -> bool {
    match event {
        PublisherEvent::Gone(subscriber, _) => !subscriber.member.untold.load(Ordering::Relaxed),
        PublisherEvent::Subscriber(_) | PublisherEvent::Refused(_) => true,
    }
}

impl Endpoint for Broadcast {
    const MEETING: Meeting = Meeting::Broadcast;
    const CLOSED: &'static str = "the publisher is closed";
    const BREAKS_OFF: &'static str = "the publisher lets no more subscribers in";
    type State = State;
    type Event = PublisherEvent;

    fn ask(shared: &Shared<Self>, who: Credentials) -> Result<()> {
        shared.check_seats(&shared.state(), who)
    }

    fn take(shared: &Shared<Self>, who: Credentials) -> Result<()> {
        let mut state = shared.state();
        shared.check_seats(&state, who)?;
        state.seats.take(who);
        Ok(())
    }

    fn give_back(shared: &Shared<Self>, who: Credentials) {
        shared.state().seats.give_back(who);
    }

    fn has_room(_shared: &Shared<Self>, _under_way: usize) -> bool {
        // A program need not take its events: see `MOST_PENDING`.
        true
    }

    fn ready(shared: &Arc<Shared<Self>>, mut parts: Parts, seat: Seat<Self>, options: &Options) {
        // A handshake as a publisher has no other.
        if let RingPart::Publisher(start) = mem::replace(&mut parts.ring, RingPart::Equal) {
            shared.let_in(parts, start, seat, options);
        }
    }

    fn refused(shared: &Shared<Self>, refused: Refused) {
        shared.tell(refused.into());
    }
}

impl Shared<Broadcast> {
    fn check_seats(&self, state: &State, who: Credentials) -> Result<()> {
        let refusal = state.seats.refusal(&self.limits, who, "publisher");
        refusal.map_or(Ok(()), |by| Err(self.address.occupied(by)))
    }

    fn tell(&self, event: PublisherEvent) {
        self.events
            .add_at_most(event, MOST_PENDING, forget_oldest, is_of_a_known_one);
    }

    /// A newcomer was told READY.
    fn let_in(self: &Arc<Self>, parts: Parts, start: HeldStart, seat: Seat<Broadcast>, options: &Options) {
        let (number, delivery) = (start.held.number, start.delivery);
        let opened = open(parts, None, options);
        let (link, control, barriers) = (opened.shared, opened.peer, opened.barriers);
        let member = Arc::new(Member {
            number,
            delivery,
            identity: opened.identity,
            verified: ProcessMutex::new(None, self.birth()),
            evidence: opened.evidence,
            verifier: opened.verifier.downgrade(),
            link: Arc::downgrade(&link),
            gone: OnceLock::new(),
            untold: AtomicBool::new(false),
        });
        let seated = Seated {
            member: Arc::clone(&member),
            link: Arc::clone(&link),
            _verifier: opened.verifier,
        };
        {
            let mut state = self.state();
            state.list.insert(number, seated);
            state.untold_ends += 1;
        }
        self.tell(PublisherEvent::Subscriber(self.handle(&member)));
        let ends = link.doorbell.ends();
        let bell = ReaderBell {
            doorbell: Arc::downgrade(&link.doorbell),
            barriers,
        };
        let active = start.activate(control, bell);
        // One that was evicted before may find that out by itself and hang up: it is not watched, since it was evicted all the same.
        let watched = if active {
            self.watches.add_patiently(number, &ends)
        } else {
            Ok(())
        };
        let admitted = admit(&self.region, self.barriers, barriers);
        // It may have parked before the sender knew of it, and may have made room since: the sender has seen neither.
        link.doorbell.ring();
        self.watches.wake_sender();
        let place = Place {
            publisher: Arc::clone(self),
            member: Arc::clone(&member),
            ends,
            start: Some(start),
            seat: Some(seat),
            end: ChannelState::ClosedHere,
        };
        // From here on, whatever ends the channel lets go of all this. Where something has ended it already, that is now.
        link.keep(Box::new(place));
        match self.state.get() {
            ChannelState::Open if !active => link.finish(ChannelState::Evicted),
            // One whose end nothing would tell of is not kept.
            ChannelState::Open if watched.is_err() || admitted.is_err() => {
                link.finish(ChannelState::ClosedHere);
            }
            ChannelState::Open => {}
            end => link.finish(end),
        }
        if self.ended.load(Ordering::Acquire) {
            self.end_one(&member);
        }
    }

    fn handle(self: &Arc<Self>, member: &Arc<Member>) -> Subscriber {
        Subscriber {
            member: Arc::clone(member),
            publisher: Arc::downgrade(self),
        }
    }

    /// Those that have come and not gone.
    pub(crate) fn subscribers(self: &Arc<Self>) -> Vec<Subscriber> {
        let state = self.state();
        let members = state.list.values().map(|seated| &seated.member);
        members
            .filter(|member| member.gone.get().is_none())
            .map(|member| self.handle(member))
            .collect()
    }

    /// How many are subscribed, and how many were evicted.
    pub(crate) fn counts(&self) -> (usize, u64) {
        let evicted = self.evicted.load(Ordering::Relaxed);
        if !self.is_here() {
            return (0, evicted);
        }
        let state = self.state();
        let members = state.list.values().map(|seated| &seated.member);
        (
            members.filter(|member| member.gone.get().is_none()).count(),
            evicted,
        )
    }

    fn links(&self) -> Vec<Arc<channel::Shared>> {
        let state = self.state();
        state
            .list
            .values()
            .map(|seated| Arc::clone(&seated.link))
            .collect()
    }

    /// The channel of a subscriber, if that has not ended.
    pub(crate) fn link(&self, number: u64) -> Option<Arc<channel::Shared>> {
        let state = self.state();
        state.list.get(&number).map(|seated| Arc::clone(&seated.link))
    }

    /// Has a look whether a subscriber has gone. `rung`: takes its bells from the line.
    pub(crate) fn look_at(&self, number: u64, rung: bool) {
        if let Some(link) = self.link(number) {
            if rung {
                link.doorbell.read_bells();
            } else {
                link.doorbell.look();
            }
            link.notice();
        }
    }

    /// How far everything is published.
    fn tail(&self) -> u64 {
        self.region.load(layout::TAIL, Ordering::Acquire)
    }

    /// A subscriber gets what is published by now, and then its end.
    fn end_one(&self, member: &Member) {
        if let Some(link) = member.link.upgrade() {
            link.end_reading_at(self.tail());
            if link.end_sending() {
                link.doorbell.ring();
            }
        }
    }

    /// Each subscriber gets what is published by now, and then its end. The address is free when this returns.
    pub(crate) fn end(&self) {
        if !self.is_here() || self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.seal();
        let members: Vec<_> = {
            let state = self.state();
            state
                .list
                .values()
                .map(|seated| Arc::clone(&seated.member))
                .collect()
        };
        for member in members {
            self.end_one(&member);
        }
        self.finish_if_over();
    }

    /// Lets no further subscriber in. The address is free, and no descriptor of the ring is left, when this returns.
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
        self.worker.stop().cancel();
        self.worker.wait();
        self.ring.seal();
    }

    /// LineEnds all, once.
    pub(crate) fn close(&self) {
        self.seal();
        self.finish(ChannelState::ClosedHere);
    }

    /// Another process tries to open the ring: all subscribers can see it, and it is wiped, when this returns. What does the
    /// rest is returned.
    pub(crate) fn expose(self: Arc<Self>) -> Aftermath {
        self.sealed.store(true, Ordering::Release);
        // Not waited for, as this is the thread that hears alarms.
        self.worker.stop().cancel();
        self.ring.seal();
        let untold = self.end_channels(ChannelState::Exposed);
        self.region.wipe();
        Box::new(move || {
            if let Some(untold) = untold {
                self.finish_telling(untold);
            }
        })
    }

    fn finish(&self, end: ChannelState) {
        if let Some(untold) = self.end_channels(end) {
            self.finish_telling(untold);
        }
    }

    /// LineEnds the channel with each subscriber, once.
    fn end_channels(&self, end: ChannelState) -> Option<Vec<Untold>> {
        {
            let _state = self.state();
            if !self.state.is(ChannelState::Open, Ordering::Acquire) {
                return None;
            }
            self.state.set(end);
        }
        // What they have not read stays; an alarm wipes it all the same.
        if let Some(kept) = self.ring.readers.kept_from() {
            self.region.keep_from(kept);
        }
        let ends = self.links().into_iter().filter_map(|link| {
            if end == ChannelState::ClosedHere {
                link.end_reading_at(self.tail());
            }
            link.end(end)
        });
        Some(ends.collect())
    }

    fn finish_telling(&self, untold: Vec<Untold>) {
        drop(untold);
        self.end_events_once_told(|state| state.is_over = true);
        self.watches.stop();
        self.watches.wake_sender();
    }

    /// Changes what is left to be told, and ends the events where that is nothing. Another thread may be letting a subscriber in, or
    /// ending one, as the publisher ends: then the events end with what it tells.
    fn end_events_once_told(&self, change: impl FnOnce(&mut State)) {
        let is_told = {
            let mut state = self.state();
            change(&mut state);
            state.is_over && state.untold_ends == 0
        };
        if is_told {
            self.events.end(End::Closed);
        }
    }

    /// Nothing more is sent, and the last has read it or gone.
    fn finish_if_over(&self) {
        if self.ended.load(Ordering::Acquire) && self.state().list.is_empty() {
            self.finish(ChannelState::ClosedHere);
        }
    }

    /// The program is told, once.
    fn gone(self: &Arc<Self>, member: &Arc<Member>, reason: CloseReason) {
        if member.gone.set(reason).is_ok() {
            if reason == CloseReason::Evicted {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            self.tell(PublisherEvent::Gone(self.handle(member), reason));
        }
    }

    fn let_go(self: &Arc<Self>, member: &Arc<Member>, reason: CloseReason) {
        let seated = self.state().list.remove(&member.number);
        // Not under the lock.
        drop(seated);
        self.gone(member, reason);
        self.end_events_once_told(|state| state.untold_ends -= 1);
        self.watches.wake_sender();
        self.finish_if_over();
    }

    /// A message waits until all have read up to the goal.
    pub(crate) fn begin_stall(&self, goal: u64) {
        let mut guard = self.charging.lock();
        let Charging { stalls, positions } = &mut *guard;
        self.ring.readers.reliable(positions);
        let sooner = stalls.begin(goal, positions, self.tail(), Instant::now());
        drop(guard);
        if sooner {
            self.watches.wake_watcher();
        }
    }

    /// It has found room, or is given up.
    pub(crate) fn end_stall(&self) {
        let Charging { stalls, positions } = &mut *self.charging.lock();
        self.ring.readers.reliable(positions);
        stalls.end(positions, Instant::now());
    }

    /// Evicts the subscribers that have held the publisher up for too long. Returns when to check again.
    fn evict(&self) -> Option<Instant> {
        let mut guard = self.charging.lock();
        let Charging { stalls, positions } = &mut *guard;
        if stalls.is_idle() {
            return None;
        }
        self.ring.readers.reliable(positions);
        let found = stalls.look(positions, Instant::now());
        let stall = stalls.limit();
        drop(guard);
        for link in found.liars.iter().filter_map(|number| self.link(*number)) {
            let what = "it has shown two positions, of which the later one is lower";
            // It is told how it ended.
            let _ = link.judge::<()>(Err(Error::RingCorrupt(what.into())));
        }
        for number in &found.over {
            self.evict_one(*number, stall);
        }
        if found.may_go_on || !found.over.is_empty() || !found.liars.is_empty() {
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
            link.tie.evicted(lag, stall);
        }
    }
}

/// The watcher: lets go of subscribers that have gone, or are too slow. It ends with the publisher.
pub(crate) fn watch(watches: &Watches, publisher: &Weak<Shared<Broadcast>>) {
    let mut until = None;
    while let Some(numbers) = watches.wait_for_ends(until) {
        let Some(publisher) = publisher.upgrade() else {
            return;
        };
        for number in numbers.iter() {
            publisher.look_at(*number, false);
        }
        until = publisher.evict();
    }
}

/// All that the publisher has of a subscriber, as long as its channel is open.
#[derive(Debug)]
struct Place {
    publisher: Arc<Shared<Broadcast>>,
    member: Arc<Member>,
    ends: LineEnds,
    start: Option<HeldStart>,
    seat: Option<Seat<Broadcast>>,
    /// How its channel has ended.
    end: ChannelState,
}

impl OnEnd for Place {
    fn end(&mut self, state: ChannelState) -> bool {
        self.end = state;
        false
    }
}

impl Drop for Place {
    /// The subscriber can see by now how it has ended: what it has not read may be overwritten.
    fn drop(&mut self) {
        if !self.publisher.is_here() {
            return;
        }
        drop(self.start.take());
        // Before the program is told: it may expect the next one at once.
        drop(self.seat.take());
        self.publisher.watches.remove(&self.ends);
        let reason = self.end.close_reason().unwrap_or(CloseReason::Closed);
        self.publisher.let_go(&self.member, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fork::Birth, host::events::Events, wait::deadline::Wakeup};

    fn subscriber(number: u64) -> Subscriber {
        let member = Member {
            number,
            delivery: Delivery::Reliable,
            identity: Identity::of(Credentials {
                pid: 1,
                uid: 1,
                gid: 1,
            }),
            verified: ProcessMutex::new(None, Birth::now().unwrap()),
            evidence: Vec::new(),
            verifier: WeakVerifier::default(),
            link: Weak::new(),
            gone: OnceLock::new(),
            untold: AtomicBool::new(false),
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
    fn whole_stays_and_refusals_are_forgotten_and_nothing_else() {
        let come = |one: &Subscriber| PublisherEvent::Subscriber(one.clone());
        let gone = |one: &Subscriber| {
            let _ = one.member.gone.set(CloseReason::Closed);
            PublisherEvent::Gone(one.clone(), CloseReason::Closed)
        };
        let refused = Refused {
            error: Error::Aborted,
            identity: None,
        };
        // The program was told before that the first has come; the second is there.
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
        assert!(short.member.untold.load(Ordering::Relaxed));
        for _ in 0..2 {
            drop(forget_oldest(&mut pending));
            assert_eq!(numbers(&pending), [('-', 1), ('+', 2)]);
        }
        // Its end may come a moment after it is known.
        let _ = there.member.gone.set(CloseReason::Exited);
        drop(forget_oldest(&mut pending));
        assert_eq!(numbers(&pending), [('-', 1)]);
        assert!(there.member.untold.load(Ordering::Relaxed), "its end is not told");
    }

    #[test]
    fn the_end_of_one_whose_coming_is_forgotten_as_it_goes_is_not_told() {
        let events = Events::new(Wakeup::new().unwrap(), "closed").unwrap();
        let add = |event, most| events.add_at_most(event, most, forget_oldest, is_of_a_known_one);
        let [first, second] = [1, 2].map(subscriber);
        for one in [&first, &second] {
            add(PublisherEvent::Subscriber(one.clone()), 2);
        }
        // As each goes: that it has gone can be seen before it is told.
        for one in [&first, &second] {
            one.member.gone.set(CloseReason::Closed).unwrap();
        }
        add(PublisherEvent::Gone(first, CloseReason::Closed), 2);
        add(PublisherEvent::Gone(second, CloseReason::Closed), 2);
        let told: VecDeque<_> = std::iter::from_fn(|| events.try_next().unwrap()).collect();
        assert_eq!(numbers(&told), [('+', 2), ('-', 2)]);
    }
}
