//! Handshakes side by side at a bound address. Whoever comes is looked at at once; whoever then says nothing, or
//! dawdles, takes nothing from the next.
//!
//! A handshake under way has a thread, of which there is a bound. A guest that has said nothing yet has none: it waits in
//! a room of its own kind, and where that is full, who has been silent longest gives way. No process and no user can have
//! all threads to itself. Who finds no room waits in the kernel's backlog.

use std::{
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::PollFlags,
    sys::socket::{getsockopt, sockopt},
};

use crate::{
    channel::partner::Partner,
    error::{Error, Result},
    evidence::Record,
    handshake::frame::Meeting,
    handshake::parts::Parts,
    handshake::{Caller, Seats, Side},
    identity::{Credentials, Identity},
    options::Options,
    rendezvous::address::Address,
    rendezvous::election::Place,
    wait::cancel::{Bell, CancelToken},
    wait::deadline::{self, Deadline},
};

/// Handshakes under way at a time, each with a thread.
pub(crate) const SIDE_BY_SIDE: usize = 64;
/// Of these, with one user's processes: the rest is for the others.
const OF_ONE_USER: usize = 48;
/// Of these, with one process. `connect` has no more under way in its process.
pub(crate) const OF_ONE_PROCESS: usize = 16;
/// Connections of one process that wait or shake hands. An honest process stays far below.
const AT_MOST_OF_ONE_PROCESS: usize = 32;
/// Connections in the waiting room, with up to three descriptors each.
const ROOM: usize = 128;
/// How long a handshake's thread waits for the guest's first word. An honest guest speaks as soon as it has looked at the
/// host.
const GRACE: Duration = Duration::from_millis(50);
/// When this process can take nobody in (for want of descriptors, say), it tries again this much later.
const RECOVERY: Duration = Duration::from_millis(100);

/// A newcomer that did not get a channel.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// As much as is known of it.
    pub(crate) identity: Option<Identity>,
}

/// Who holds the door: decides who gets a channel, and hears what became of everybody.
pub(crate) trait Host: Seats<Seat: Send> + Sync {
    /// What ends the keeping of the door.
    type End;

    /// Whether one more handshake may begin, besides those under way.
    fn may_begin(&self, under_way: usize) -> bool;

    /// A guest has passed.
    fn ready(&self, parts: Parts, seat: Self::Seat) -> ControlFlow<Self::End>;

    /// One has not.
    fn failed(&self, failed: Failed) -> ControlFlow<Self::End>;

    /// This process cannot take anybody in just now.
    fn hindered(&self, error: Error) -> ControlFlow<Self::End>;

    /// Whose end is waited for as well.
    fn partner(&self) -> Option<Partner> {
        None
    }

    /// Which may have come: anything may have happened.
    fn look_round(&self) {}

    /// What a guest gets with READY.
    fn shares(&self) -> &[Arc<OwnedFd>] {
        &[]
    }
}

/// A bound address, and how handshakes are carried on there.
pub(crate) struct Door<'a> {
    pub(crate) address: &'a Address,
    pub(crate) options: &'a Options,
    pub(crate) meeting: Meeting,
    /// What is in each channel's evidence before anybody has come.
    pub(crate) record: &'a Record,
    /// Rung when [`Host::may_begin`] may answer otherwise.
    pub(crate) bell: &'a Bell,
}

/// What has become of a newcomer on its thread.
enum Outcome<S> {
    /// It has passed the policy, and has not said anything yet.
    Silent(Waiting),
    Ready(Box<(Parts, S)>),
    Failed(Box<Failed>),
}

/// Somebody in the waiting room.
struct Waiting {
    who: Credentials,
    state: State,
    /// Until its handshake must be over.
    deadline: Deadline,
}

enum State {
    /// Nobody has looked at it.
    Fresh(OwnedFd),
    /// It is its turn to speak.
    Silent(Box<Caller>),
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.state {
            State::Fresh(stream) => stream.as_fd(),
            State::Silent(caller) => caller.as_fd(),
        }
    }
}

/// Who waits, and who has a handshake under way.
#[derive(Default)]
struct Room {
    waiting: Vec<Waiting>,
    under_way: Vec<Credentials>,
}

impl Room {
    fn may_begin(&self, who: Credentials) -> bool {
        let count = |same: fn(&Credentials, &Credentials) -> bool| {
            self.under_way.iter().filter(|other| same(other, &who)).count()
        };
        self.under_way.len() < SIDE_BY_SIDE
            && count(|one, other| one.uid == other.uid) < OF_ONE_USER
            && count(|one, other| one.pid == other.pid) < OF_ONE_PROCESS
    }

    fn has_too_many(&self, who: Credentials) -> bool {
        let all = self
            .waiting
            .iter()
            .map(|waiting| &waiting.who)
            .chain(&self.under_way);
        all.filter(|other| other.pid == who.pid).count() >= AT_MOST_OF_ONE_PROCESS
    }

    fn has_ended(&mut self, who: Credentials) {
        if let Some(index) = self.under_way.iter().position(|other| *other == who) {
            self.under_way.swap_remove(index);
        }
    }

    /// Takes out the first that a handshake may begin with: one that is to be looked at, or that has spoken.
    fn next(&mut self) -> Option<Waiting> {
        let spoken = self.spoken();
        let index = self.waiting.iter().zip(&spoken).position(|(waiting, spoken)| {
            (*spoken || matches!(waiting.state, State::Fresh(_))) && self.may_begin(waiting.who)
        })?;
        Some(self.waiting.remove(index))
    }

    /// Takes out whoever has been silent for longest.
    fn most_silent(&mut self) -> Option<Waiting> {
        let spoken = self.spoken();
        let index = self
            .waiting
            .iter()
            .zip(&spoken)
            .position(|(waiting, spoken)| !spoken && matches!(waiting.state, State::Silent(_)))?;
        Some(self.waiting.remove(index))
    }

    /// Takes out those whose time is over.
    fn late(&mut self) -> Vec<Waiting> {
        self.waiting
            .extract_if(.., |waiting| !waiting.deadline.is_left())
            .collect()
    }

    fn spoken(&self) -> Vec<bool> {
        deadline::readable(self.waiting.iter().map(AsFd::as_fd))
    }
}

impl Door<'_> {
    /// Keeps the door until the host has what it wants, or the waiting is called off. Then `leave` says what becomes of
    /// the place, before those are waited for whose handshakes break off.
    pub(crate) fn keep<H: Host, T>(
        &self,
        host: &H,
        place: Place,
        deadline: &Deadline,
        leave: impl FnOnce(Place, Result<H::End>) -> T,
    ) -> Result<T> {
        let over = CancelToken::new()?;
        Ok(thread::scope(|scope| {
            let (results, outcomes) = mpsc::channel();
            let mut stand = Stand {
                door: self,
                host,
                scope,
                deadline: deadline.or(&over),
                results,
                outcomes,
                room: Room::default(),
                recovered: Instant::now(),
            };
            let result = loop {
                if let Err(error) = stand.wait(&place, deadline) {
                    break Err(error);
                }
                self.bell.hush();
                if let ControlFlow::Break(end) = stand.look(&place) {
                    break Ok(end);
                }
            };
            // Those who have not got a place are told so, and end.
            over.cancel();
            for waiting in stand.room.waiting.drain(..) {
                waiting.turn_away(host.closed());
            }
            let left = leave(place, result);
            // Who was told READY has a channel, though nobody waits for it any more.
            drop(stand.results);
            for (_, outcome) in stand.outcomes {
                if let Outcome::Ready(passed) = outcome {
                    let (parts, seat) = *passed;
                    let _ = host.ready(parts, seat);
                }
            }
            left
        }))
    }

    /// On a thread of its own: looks at the newcomer, and goes through the handshake once it speaks.
    fn shake_hands<H: Host>(&self, waiting: Waiting, host: &H) -> Outcome<H::Seat> {
        let Waiting { who, state, deadline } = waiting;
        let side = Side::new(self.address, self.options, &deadline, self.meeting).sharing(host.shares());
        let caller = match state {
            State::Silent(caller) => caller,
            State::Fresh(stream) => match side.look_at(stream, self.record.clone()) {
                Err(error) => return failed(error, Identity::of(who)),
                Ok(caller) if deadline.is_spoken_to(caller.as_fd(), GRACE) => Box::new(caller),
                Ok(caller) => {
                    let state = State::Silent(Box::new(caller));
                    return Outcome::Silent(Waiting { who, state, deadline });
                }
            },
        };
        let identity = caller.identity.clone();
        match side.host(*caller, host) {
            Ok(passed) => Outcome::Ready(Box::new(passed)),
            Err(error) => failed(error, identity),
        }
    }
}

/// The keeping of a door under way.
struct Stand<'scope, 'env, H: Host> {
    door: &'env Door<'env>,
    host: &'env H,
    scope: &'scope thread::Scope<'scope, 'env>,
    /// Of newcomers: ends with the keeping.
    deadline: Deadline,
    results: mpsc::Sender<(Credentials, Outcome<H::Seat>)>,
    outcomes: mpsc::Receiver<(Credentials, Outcome<H::Seat>)>,
    room: Room,
    /// When to try again, after this process could not take anybody in.
    recovered: Instant,
}

impl<H: Host> Stand<'_, '_, H> {
    /// Waits for news: a newcomer, a first word, an outcome, or the end of somebody's time.
    fn wait(&self, place: &Place, deadline: &Deadline) -> Result<()> {
        let room = &self.room;
        let mut watched = vec![(self.door.bell.as_fd(), PollFlags::POLLIN)];
        let partner = self.host.partner();
        watched.extend(partner.iter().flat_map(Partner::watched));
        let mut until = room
            .waiting
            .iter()
            .filter_map(|waiting| waiting.deadline.moment())
            .min();
        if !self.has_recovered() {
            until = Some(until.map_or(self.recovered, |until| until.min(self.recovered)));
        } else if self.host.may_begin(room.under_way.len()) {
            if room.waiting.len() < ROOM {
                watched.push((place.as_fd(), PollFlags::POLLIN));
            }
            let may_speak = room.waiting.iter().filter(|waiting| room.may_begin(waiting.who));
            watched.extend(may_speak.map(|waiting| (waiting.as_fd(), PollFlags::POLLIN)));
        }
        deadline.until(until).wait(&watched).map(drop)
    }

    /// Looks at everything that may have changed.
    fn look(&mut self, place: &Place) -> ControlFlow<H::End> {
        self.host.look_round();
        while let Ok((who, outcome)) = self.outcomes.try_recv() {
            self.room.has_ended(who);
            match outcome {
                Outcome::Silent(waiting) => self.room.waiting.push(waiting),
                Outcome::Ready(passed) => {
                    let (parts, seat) = *passed;
                    self.host.ready(parts, seat)?;
                }
                Outcome::Failed(failed) => self.host.failed(*failed)?,
            }
        }
        for late in self.room.late() {
            let after = late.deadline.allowed;
            let step = match late.state {
                State::Fresh(_) => "a thread of the host's for the handshake",
                State::Silent(_) => "the guest's HELLO",
            };
            self.host.failed(late.give_up(step, after))?;
        }
        self.let_in(place)?;
        self.begin()?;
        if self.room.waiting.len() >= ROOM
            && let Some(silent) = self.room.most_silent()
        {
            let after = silent.deadline.elapsed();
            self.host
                .failed(silent.give_up("the guest's HELLO, while others wait", after))?;
        }
        ControlFlow::Continue(())
    }

    /// Lets newcomers into the waiting room.
    fn let_in(&mut self, place: &Place) -> ControlFlow<H::End> {
        while self.room.waiting.len() < ROOM
            && self.has_recovered()
            && self.host.may_begin(self.room.under_way.len())
        {
            match place.accept() {
                Ok(Some(stream)) => match self.admit(stream) {
                    Ok(waiting) => self.room.waiting.push(waiting),
                    Err(failed) => self.host.failed(*failed)?,
                },
                Ok(None) => break,
                Err(error) => self.hindered(error)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// Lets somebody into the waiting room, unless its process has too many there.
    fn admit(&self, stream: OwnedFd) -> Result<Waiting, Box<Failed>> {
        let who = credentials(&stream).map_err(|error| {
            Box::new(Failed {
                error,
                identity: None,
            })
        })?;
        let waiting = Waiting {
            who,
            state: State::Fresh(stream),
            deadline: self.deadline.within(self.door.options.timeout),
        };
        if self.room.has_too_many(who) {
            let error = self.door.address.occupied(format!(
                "process {} has {AT_MOST_OF_ONE_PROCESS} handshakes under way already",
                who.pid
            ));
            return Err(Box::new(waiting.turn_away(error)));
        }
        Ok(waiting)
    }

    /// Begins the handshakes that may begin.
    fn begin(&mut self) -> ControlFlow<H::End> {
        while self.has_recovered()
            && self.host.may_begin(self.room.under_way.len())
            && let Some(waiting) = self.room.next()
        {
            let who = waiting.who;
            let (door, host) = (self.door, self.host);
            let (results, bell) = (self.results.clone(), door.bell.clone());
            // A closure that gets no thread is dropped, and what it holds with it: the newcomer is handed over afterwards.
            let (hand_over, handed) = mpsc::sync_channel::<Waiting>(1);
            let newcomer =
                thread::Builder::new()
                    .name("ringfence-host".into())
                    .spawn_scoped(self.scope, move || {
                        let Ok(waiting) = handed.recv() else { return };
                        // A thread that is gone without an outcome would keep its place for ever.
                        let outcome = catch_unwind(AssertUnwindSafe(|| door.shake_hands(waiting, host)))
                            .unwrap_or_else(|_| failed(defect(), Identity::of(who)));
                        // Without a receiver, nobody wants the outcome any more.
                        let _ = results.send((who, outcome));
                        bell.ring();
                    });
            match newcomer {
                Ok(_) => {
                    self.room.under_way.push(who);
                    // It waits for this alone, and so it is there.
                    let _ = hand_over.send(waiting);
                }
                Err(error) => {
                    // Its turn comes again, as long as its time is not over.
                    self.room.waiting.insert(0, waiting);
                    return self.hindered(Error::NoSpace {
                        what: "a thread for a handshake".into(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether it is time to try again, after this process could not take anybody in.
    fn has_recovered(&self) -> bool {
        Instant::now() >= self.recovered
    }

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

fn failed<S>(error: Error, identity: Identity) -> Outcome<S> {
    let looked = error.refusal().and_then(|refusal| refusal.identity.clone());
    Outcome::Failed(Box::new(Failed {
        error,
        identity: Some(looked.unwrap_or(identity)),
    }))
}

/// Whom the kernel names at the other end: enough to count its connections by.
fn credentials(stream: &OwnedFd) -> Result<Credentials> {
    getsockopt(stream, sockopt::PeerCredentials)
        .map(|c| Credentials {
            pid: c.pid(),
            uid: c.uid(),
            gid: c.gid(),
        })
        .map_err(|errno| Error::system("SO_PEERCRED of a newcomer", errno))
}

impl Waiting {
    fn give_up(self, step: &'static str, after: Duration) -> Failed {
        self.turn_away(Error::HandshakeTimeout { step, after })
    }

    fn turn_away(self, error: Error) -> Failed {
        let identity = match &self.state {
            State::Fresh(_) => Identity::of(self.who),
            State::Silent(caller) => caller.identity.clone(),
        };
        let error = crate::handshake::refuse(self.as_fd(), error);
        Failed {
            error,
            identity: Some(identity),
        }
    }
}
