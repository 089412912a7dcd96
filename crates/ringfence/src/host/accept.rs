//! Runs handshakes side by side at a bound address. A peer that stays silent never delays the others.
//!
//! A handshake under way has a thread, of which there is a bound. A newcomer that has said nothing yet has none: it waits in
//! a queue, and where that is full, the one that has been silent for longest gives way. No process and no user can have all
//! threads to itself. A newcomer that finds the queue full waits in the kernel's backlog.

mod queue;

use std::{
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::poll::PollFlags;

use crate::{
    address::Address,
    address::bound::BoundAddress,
    channel::end::Partner,
    error::{Error, Result},
    evidence::EvidenceLog,
    handshake::Slots,
    handshake::broadcast::PublishedRing,
    handshake::frame::Meeting,
    handshake::parts::Parts,
    handshake::parts::Side,
    identity::{Credentials, Identity},
    options::Options,
    trace,
    wait::deadline::Deadline,
    wait::deadline::{CancelToken, Wakeup},
    wait::retry::{RECOVERY, RetryBudget},
    wait::threads::begin_own_thread,
};

pub use queue::Refused;
use queue::{Newcomer, Queue, Stage};
pub(crate) use queue::{OF_ONE_PROCESS, SIDE_BY_SIDE};

/// Newcomers that one look takes from the kernel's backlog. One who comes again as soon as it was turned away fills that as fast as it is
/// emptied, and meanwhile nobody would hear of outcomes, of who is late, and of the end.
const AT_ONE_LOOK: usize = SIDE_BY_SIDE;
/// How long a handshake's thread waits for the guest's first word. An honest guest speaks as soon as it has looked at the
/// host.
const GRACE: Duration = Duration::from_millis(50);

/// What has the address: decides which newcomer gets a channel, and hears what became of each.
pub(crate) trait Host: Slots<Slot: Send> + Sync {
    /// What ends the accepting.
    type End;

    /// Whether one more handshake may begin, besides those under way.
    fn may_begin(&self, under_way: usize) -> bool;

    /// A guest has passed.
    fn ready(&self, parts: Parts, seat: Self::Slot) -> ControlFlow<Self::End>;

    /// A newcomer has not passed.
    fn refused(&self, refused: Refused) -> ControlFlow<Self::End>;

    /// This process cannot take newcomers in just now.
    fn hindered(&self, error: Error) -> ControlFlow<Self::End>;

    /// A client got no channel. Called once for each, on the accepting thread, also for those that come too late for [`Host::refused`].
    fn notice(&self, _refused: &Refused) {}

    /// Channels whose end wakes the acceptor as well.
    fn partners(&self) -> Vec<Partner> {
        Vec::new()
    }

    /// The acceptor was woken, by anything.
    fn look_round(&self) {}
}

/// A bound address, and how handshakes are made there.
pub(crate) struct Acceptor<'a> {
    pub(crate) address: &'a Address,
    pub(crate) options: &'a Options,
    pub(crate) meeting: Meeting,
    /// What is in each channel's evidence before its newcomer has come.
    pub(crate) record: &'a EvidenceLog,
    /// Rung when [`Host::may_begin`] may answer otherwise.
    pub(crate) bell: &'a Wakeup,
    /// What a guest gets with READY.
    pub(crate) shares: &'a [Arc<OwnedFd>],
    /// Of a publisher.
    pub(crate) ring: Option<&'a Arc<PublishedRing>>,
    /// Cancelled once the accepting is over. Made before the address is kept: without it no newcomer could be let in.
    pub(crate) over: &'a CancelToken,
}

/// What has become of a newcomer on its thread.
enum Outcome<S> {
    /// It has passed the policy, and has not said anything yet.
    Silent(Newcomer),
    Ready(Box<(Parts, S)>),
    Refused(Box<Refused>),
}

impl Acceptor<'_> {
    /// Takes newcomers in until the host has what it wants, or the waiting is called off. Then `leave` says what becomes of
    /// the place, before the handshakes are waited for that break off.
    pub(crate) fn run<H: Host, T>(
        &self,
        host: &H,
        place: BoundAddress,
        deadline: &Deadline,
        leave: impl FnOnce(BoundAddress, Result<H::End>) -> T,
    ) -> T {
        thread::scope(|scope| {
            let (results, outcomes) = mpsc::channel();
            let mut accepting = Accepting {
                acceptor: self,
                host,
                scope,
                deadline: deadline.or(self.over),
                results,
                outcomes,
                queue: Queue::default(),
                recovered: Instant::now(),
            };
            let mut retries = RetryBudget::default();
            let result = loop {
                match accepting.wait(&place, deadline) {
                    Ok(()) => retries.renew(),
                    // A wait that has failed has seen nothing, and took no time. What it lacked may be there again in a moment, and nobody
                    // else lets newcomers in.
                    Err(error) if retries.should_retry(&error) => {
                        if let ControlFlow::Break(end) = accepting.hindered(error) {
                            break Ok(end);
                        }
                        retries.pause();
                    }
                    Err(error) => break Err(error),
                }
                self.bell.clear();
                if let ControlFlow::Break(end) = accepting.look(&place) {
                    break Ok(end);
                }
            };
            // Newcomers that have not got a seat are told so, and end.
            self.over.cancel();
            for newcomer in accepting.queue.waiting.drain(..) {
                self.tell(host, &newcomer.turn_away(host.closed()));
            }
            let left = leave(place, result);
            // A guest that was told READY has a channel, though this side takes no more newcomers in.
            drop(accepting.results);
            for (_, outcome) in accepting.outcomes {
                match outcome {
                    Outcome::Ready(passed) => {
                        let (parts, seat) = *passed;
                        let _ = host.ready(parts, seat);
                    }
                    Outcome::Refused(refused) => self.tell(host, &refused),
                    Outcome::Silent(newcomer) => self.tell(host, &newcomer.turn_away(host.closed())),
                }
            }
            left
        })
    }

    /// Refuses a connection whose handshake does not begin.
    pub(crate) fn turn_away<H: Host>(&self, host: &H, stream: OwnedFd, deadline: &Deadline, error: Error) {
        let refused = match Newcomer::new(stream, deadline.clone(), self.address) {
            Ok(newcomer) => newcomer.turn_away(error),
            // The client learns it from the end of its connection.
            Err(error) => Refused {
                error,
                identity: None,
            },
        };
        self.tell(host, &refused);
    }

    /// A client got no channel.
    fn tell<H: Host>(&self, host: &H, refused: &Refused) {
        trace::refused(self.address, "host", &refused.error, refused.identity.as_ref());
        host.notice(refused);
    }

    /// On a thread of its own: looks at the newcomer, and goes through the handshake once it speaks.
    fn shake_hands<H: Host>(&self, newcomer: Newcomer, host: &H) -> Outcome<H::Slot> {
        let Newcomer {
            who,
            stage,
            deadline,
            handshake,
        } = newcomer;
        let side = Side::new(self.address, self.options, &deadline, self.meeting)
            .sharing(self.shares)
            .publishing(self.ring);
        let caller = match stage {
            Stage::Silent(caller) => caller,
            Stage::Fresh(stream) => match handshake.within(|| side.look_at(stream, self.record.clone())) {
                Err(error) => return refused(error, Identity::of(who)),
                Ok(caller) if deadline.is_spoken_to(caller.as_fd(), GRACE) => Box::new(caller),
                Ok(caller) => {
                    return Outcome::Silent(Newcomer {
                        who,
                        stage: Stage::Silent(Box::new(caller)),
                        deadline,
                        handshake,
                    });
                }
            },
        };
        let identity = caller.identity.clone();
        match handshake.within(|| side.host(*caller, host)) {
            Ok(passed) => Outcome::Ready(Box::new(passed)),
            Err(error) => refused(error, identity),
        }
    }
}

/// The state of [`Acceptor::run`].
struct Accepting<'scope, 'env, H: Host> {
    acceptor: &'env Acceptor<'env>,
    host: &'env H,
    scope: &'scope thread::Scope<'scope, 'env>,
    /// Of newcomers: ends with the accepting.
    deadline: Deadline,
    results: mpsc::Sender<(Credentials, Outcome<H::Slot>)>,
    outcomes: mpsc::Receiver<(Credentials, Outcome<H::Slot>)>,
    queue: Queue,
    /// When to try again, after this process could not take newcomers in.
    recovered: Instant,
}

impl<H: Host> Accepting<'_, '_, H> {
    /// Waits for a newcomer, a first word, an outcome, the end of a partner, or the end of a newcomer's time.
    fn wait(&self, place: &BoundAddress, deadline: &Deadline) -> Result<()> {
        let queue = &self.queue;
        let mut watched = vec![(self.acceptor.bell.as_fd(), PollFlags::POLLIN)];
        let partners = self.host.partners();
        watched.extend(partners.iter().flat_map(Partner::watched));
        let mut until = queue
            .waiting
            .iter()
            .filter_map(|newcomer| newcomer.deadline.moment())
            .min();
        if !self.has_recovered() {
            until = Some(until.map_or(self.recovered, |until| until.min(self.recovered)));
        } else if self.host.may_begin(queue.under_way()) {
            if !queue.is_full() {
                watched.push((place.as_fd(), PollFlags::POLLIN));
            }
            let may_speak = queue
                .waiting
                .iter()
                .filter(|newcomer| queue.may_begin(newcomer.who));
            watched.extend(may_speak.map(|newcomer| (newcomer.as_fd(), PollFlags::POLLIN)));
        }
        deadline.until(until).wait(&watched).map(drop)
    }

    /// Looks at everything that may have changed.
    fn look(&mut self, place: &BoundAddress) -> ControlFlow<H::End> {
        self.host.look_round();
        while let Ok((who, outcome)) = self.outcomes.try_recv() {
            self.queue.has_ended(who);
            match outcome {
                Outcome::Silent(newcomer) => self.queue.waiting.push(newcomer),
                Outcome::Ready(passed) => {
                    let (parts, seat) = *passed;
                    self.host.ready(parts, seat)?;
                }
                Outcome::Refused(refused) => self.refused(*refused)?,
            }
        }
        for late in self.queue.late() {
            let after = late.deadline.allowed;
            let step = match late.stage {
                Stage::Fresh(_) => "a thread of the host's for the handshake",
                Stage::Silent(_) => "the guest's HELLO",
            };
            self.refused(late.give_up(step, after))?;
        }
        // Those who are in come first: one more might have no descriptor, each time, and they would wait until their time is over.
        self.begin()?;
        self.accept(place)?;
        self.begin()?;
        // One look may have brought many of them: until there is room, nobody looks at who else has come.
        while self.queue.is_full()
            && let Some(silent) = self.queue.most_silent()
        {
            let after = silent.deadline.elapsed();
            self.refused(silent.give_up("the guest's HELLO, while others wait", after))?;
        }
        ControlFlow::Continue(())
    }

    /// Takes newcomers from the kernel's backlog into the queue.
    fn accept(&mut self, place: &BoundAddress) -> ControlFlow<H::End> {
        for _ in 0..AT_ONE_LOOK {
            if self.queue.is_full() || !self.has_recovered() || !self.host.may_begin(self.queue.under_way()) {
                break;
            }
            match place.accept() {
                Ok(Some(stream)) => match self.admit(stream) {
                    Ok(newcomer) => self.queue.waiting.push(newcomer),
                    Err(refused) => self.refused(*refused)?,
                },
                Ok(None) => break,
                Err(error) => self.hindered(error)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// A newcomer for the queue, unless its process has too many there.
    fn admit(&self, stream: OwnedFd) -> Result<Newcomer, Box<Refused>> {
        let deadline = self.deadline.within(self.acceptor.options.timeout);
        let newcomer = Newcomer::new(stream, deadline, self.acceptor.address).map_err(|error| {
            let identity = None;
            Box::new(Refused { error, identity })
        })?;
        match self.queue.refusal(newcomer.who) {
            Some(by) => Err(Box::new(newcomer.turn_away(self.acceptor.address.occupied(by)))),
            None => Ok(newcomer),
        }
    }

    /// Begins the handshakes that may begin.
    fn begin(&mut self) -> ControlFlow<H::End> {
        while self.has_recovered()
            && self.host.may_begin(self.queue.under_way())
            && let Some(newcomer) = self.queue.next()
        {
            let who = newcomer.who;
            let (acceptor, host) = (self.acceptor, self.host);
            let (results, bell) = (self.results.clone(), acceptor.bell.clone());
            // A closure that gets no thread is dropped, and what it holds with it: the newcomer is handed over afterwards.
            let (hand_over, handed) = mpsc::sync_channel::<Newcomer>(1);
            let thread =
                thread::Builder::new()
                    .name("ringfence-host".into())
                    .spawn_scoped(self.scope, move || {
                        begin_own_thread();
                        let Ok(newcomer) = handed.recv() else { return };
                        // A thread that is gone without an outcome would count as under way for ever.
                        let outcome = catch_unwind(AssertUnwindSafe(|| acceptor.shake_hands(newcomer, host)))
                            .unwrap_or_else(|_| refused(defect(), Identity::of(who)));
                        // Without a receiver, the accepting is over, and the outcome is dropped.
                        let _ = results.send((who, outcome));
                        bell.signal();
                    });
            match thread {
                Ok(_) => {
                    self.queue.has_begun(who);
                    // The thread waits for this alone, and so it is there.
                    let _ = hand_over.send(newcomer);
                }
                Err(error) => {
                    // Its turn comes again, as long as its time is not over.
                    self.queue.waiting.insert(0, newcomer);
                    return self.hindered(Error::NoSpace {
                        what: "a thread for a handshake".into(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether it is time to try again, after this process could not take newcomers in.
    fn has_recovered(&self) -> bool {
        Instant::now() >= self.recovered
    }

    /// A newcomer has not passed.
    fn refused(&self, refused: Refused) -> ControlFlow<H::End> {
        self.acceptor.tell(self.host, &refused);
        self.host.refused(refused)
    }

    /// This process can take no newcomer in (for want of descriptors, say). It tries again a little later.
    fn hindered(&mut self, error: Error) -> ControlFlow<H::End> {
        self.recovered = Instant::now() + RECOVERY;
        self.host.hindered(error)
    }
}

/// A handshake has panicked, which no peer can make it do.
fn defect() -> Error {
    Error::Unsupported {
        what: "a defect of ringfence itself, please report it (a handshake has panicked)".into(),
        source: None,
    }
}

fn refused<S>(error: Error, identity: Identity) -> Outcome<S> {
    let looked = error.refusal().and_then(|refusal| refusal.identity.clone());
    Outcome::Refused(Box::new(Refused {
        error,
        identity: Some(looked.unwrap_or(identity)),
    }))
}
