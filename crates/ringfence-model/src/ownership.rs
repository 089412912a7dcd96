//! The ownership of an address, while members join, leave, are killed, and are stopped for any time.
//!
//! Two members hold the address, a host and its guest. The guest has the listening socket and the open lock
//! file from READY on, so it can continue when its host has gone. The state of the kernel is modelled in
//! detail:
//!
//! - files and their inodes;
//! - a lock, which belongs to an open file and lasts while one process has that file open;
//! - a listening socket, which names the last process that called listen(2);
//! - the connections in its queue, each of which was given a name.
//!
//! The reporting of a channel's end is a single step here; [`ending`](crate::ending) covers it.

use stateright::{Model, Property};

/// The maximum number of members in a model.
pub const MEMBERS: usize = 4;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A client that has locked the file does not check whether the file is still at its path.
    LocksWithoutALook,
    /// The last member unlocks before it removes the files.
    UnlocksFirst,
    /// A host that leaves removes the files although it got no answer.
    RemovesWithoutAnAnswer,
    /// A host that leaves does not wait for an answer, and removes nothing.
    LeavesWithoutWaiting,
    /// A host leaves while a guest has READY but is not registered as its guest yet.
    LeavesBeforeItsWelcome,
    /// A guest takes over on every end of its channel.
    TakesOverOnEveryEnd,
    /// A guest gets the listening socket but not the lock.
    PassesNoLock,
    /// A guest continues without calling listen(2).
    GoesOnUnnamed,
    /// A client accepts an answer from any process, and a guest that takes over keeps the connections in the
    /// queue.
    BelievesTheAnswer,
    /// A host accepts a guest although it has one.
    LetsAThirdIn,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Holding {
    /// The number of members that join.
    pub members: usize,
    /// The maximum number of members that are killed.
    pub deaths: u8,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

/// The next step of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// Has not joined yet.
    Out,
    /// Opens the lock file, or creates it.
    Opens,
    /// Tries to lock it.
    Locks,
    /// Checks whether the file is still at its path.
    Looks,
    /// Has the lock: removes a socket at which no process answers.
    Clears,
    /// Binds.
    Binds,
    /// Listens.
    Listens,
    /// Accepts guests.
    Host,
    /// Did not get the lock: connects.
    Connects,
    /// Waits in the queue of this socket, and was given this name.
    Queued { socket: u8, named: u8 },
    /// Has received this host's READY, and checks what came with it.
    Greeted { host: u8 },
    /// Has a channel with this host. A closed channel does not mean that the host has left.
    Guest { host: u8, closed: bool },
    /// Its host has gone: calls listen(2),
    TakesOver { host: u8 },
    /// answers its host,
    Answers { host: u8 },
    /// and closes the connections in the queue.
    SendsAway,
    /// A host that accepts no more guests, and waits for this guest's answer.
    Leaves { guest: u8 },
    /// Removes the socket,
    RemovesSocket,
    /// the lock file,
    RemovesLock,
    /// and unlocks that.
    Unlocks,
    /// Closes its descriptors.
    Closes,
    /// Has left, or was killed.
    Gone,
}

/// What a leaving host has learned about its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    None,
    Succeeds,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Member {
    at: At,
    /// The open lock file, identified by the member that has opened it.
    lock: Option<u8>,
    /// The listening socket, identified by the member that has bound it.
    socket: Option<u8>,
    /// The answer of its guest.
    answer: Answer,
}

/// The members, and the state of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    members: [Member; MEMBERS],
    /// The inode of the lock file at its path.
    lock_file: Option<u8>,
    /// The number of lock files ever created.
    inodes: u8,
    /// The listening socket whose file is at the path.
    socket_file: Option<u8>,
    /// For each open lock file: its inode, and whether it is locked.
    locks: [(u8, bool); MEMBERS],
    /// For each listening socket: the last process that called listen(2).
    callers: [Option<u8>; MEMBERS],
    deaths: u8,
    /// A host has left without an answer.
    untold: bool,
    /// A member has a channel with a process other than the one that the kernel has named to it.
    mistaken: bool,
}

/// One step of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The member joins.
    Come(usize),
    /// The member takes its next step.
    GoOn(usize),
    /// A host accepts this member from the queue.
    Accept(usize, usize),
    /// A host or a guest leaves.
    Leave(usize),
    /// A host closes its channel, and stays.
    CloseChannel(usize),
    /// A leaving host stops waiting for an answer.
    GiveUp(usize),
    /// The process is killed.
    Die(usize),
}

fn narrow(at: usize) -> u8 {
    u8::try_from(at).expect("a model has few members")
}

impl State {
    fn is_locked(&self, inode: u8) -> bool {
        (0..MEMBERS).any(|open| {
            let held = self
                .members
                .iter()
                .any(|member| member.lock == Some(narrow(open)));
            held && self.locks[open] == (inode, true)
        })
    }

    fn is_listening(&self, socket: u8) -> bool {
        let open = self.members.iter().any(|member| member.socket == Some(socket));
        open && self.callers[usize::from(socket)].is_some()
    }

    /// Returns the guest of this host, unless the guest knows that its channel was closed.
    fn guest_of(&self, host: usize) -> Option<usize> {
        let host = narrow(host);
        (0..MEMBERS).find(|at| match self.members[*at].at {
            At::Guest { host: of, closed } => of == host && !closed,
            At::TakesOver { host: of } | At::Answers { host: of } => of == host,
            _ => false,
        })
    }

    fn has_greeted(&self, host: usize) -> bool {
        let greeted = At::Greeted { host: narrow(host) };
        self.members.iter().any(|member| member.at == greeted)
    }

    /// Closes all descriptors, and starts over.
    fn come_again(&mut self, at: usize) {
        let me = &mut self.members[at];
        (me.lock, me.socket, me.at) = (None, None, At::Opens);
    }

    /// The host learns what its guest has done.
    fn tell(&mut self, host: u8, answer: Answer) {
        self.members[usize::from(host)].answer = answer;
    }

    /// Whether this host is dead or has left.
    fn has_gone(&self, host: u8) -> bool {
        use At::{Closes, Gone, Leaves};
        matches!(self.members[usize::from(host)].at, Gone | Leaves { .. } | Closes)
    }

    fn beside(&self, member: Member) -> bool {
        let locked = member.lock.is_some_and(|open| {
            let (inode, locked) = self.locks[usize::from(open)];
            locked && self.lock_file == Some(inode)
        });
        locked && member.socket.is_some() && self.socket_file == member.socket
    }
}

impl Holding {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The steps of a joining member.
    fn arrive(self, state: &mut State, at: usize) {
        let own = narrow(at);
        let next = match state.members[at].at {
            At::Opens => {
                let inode = *state.lock_file.get_or_insert_with(|| {
                    state.inodes += 1;
                    state.inodes
                });
                state.locks[at] = (inode, false);
                state.members[at].lock = Some(own);
                At::Locks
            }
            At::Locks => {
                let (inode, _) = state.locks[at];
                if state.is_locked(inode) {
                    state.members[at].lock = None;
                    At::Connects
                } else {
                    state.locks[at].1 = true;
                    if self.has(Fault::LocksWithoutALook) {
                        At::Clears
                    } else {
                        At::Looks
                    }
                }
            }
            At::Looks if state.lock_file == Some(state.locks[at].0) => At::Clears,
            At::Looks => return state.come_again(at),
            At::Clears => match state.socket_file {
                // Possibly a program that ignores the lock, so connect to it.
                Some(socket) if state.is_listening(socket) => {
                    state.lock_file = None;
                    state.members[at].lock = None;
                    At::Connects
                }
                _ => {
                    state.socket_file = None;
                    At::Binds
                }
            },
            At::Binds => {
                state.socket_file = Some(own);
                state.members[at].socket = Some(own);
                At::Listens
            }
            At::Listens => {
                state.callers[at] = Some(own);
                At::Host
            }
            At::Connects => match state.socket_file {
                Some(socket) if state.is_listening(socket) => {
                    let named = state.callers[usize::from(socket)].expect("it listens");
                    At::Queued { socket, named }
                }
                _ => At::Opens,
            },
            // The socket was closed, and the kernel closes the connection.
            At::Queued { .. } => At::Opens,
            other => other,
        };
        state.members[at].at = next;
    }

    /// The steps of a host or guest.
    fn hold(self, state: &mut State, at: usize) {
        let next = match state.members[at].at {
            At::Greeted { host } => {
                let member = state.members[at];
                let good = state.beside(member) || self.has(Fault::PassesNoLock);
                if !good {
                    return state.come_again(at);
                }
                At::Guest { host, closed: false }
            }
            At::Guest { host, closed } => {
                let gone = !closed && state.has_gone(host);
                if gone || self.has(Fault::TakesOverOnEveryEnd) {
                    At::TakesOver { host }
                } else {
                    return state.come_again(at);
                }
            }
            At::TakesOver { host } => {
                if !self.has(Fault::GoesOnUnnamed)
                    && let Some(socket) = state.members[at].socket
                {
                    state.callers[usize::from(socket)] = Some(narrow(at));
                }
                At::Answers { host }
            }
            At::Answers { host } => {
                state.tell(host, Answer::Succeeds);
                At::SendsAway
            }
            At::SendsAway => {
                let mine = state.members[at].socket;
                for other in 0..MEMBERS {
                    if self.has(Fault::BelievesTheAnswer) {
                        break;
                    }
                    if let At::Queued { socket, named } = state.members[other].at
                        && Some(socket) == mine
                        && named != narrow(at)
                    {
                        state.members[other].at = At::Opens;
                    }
                }
                // The answer was given to its host, and its own guest has given none.
                state.members[at].answer = Answer::None;
                At::Host
            }
            _ => return self.go(state, at),
        };
        state.members[at].at = next;
    }

    /// The steps of a leaving member.
    fn go(self, state: &mut State, at: usize) {
        let member = state.members[at];
        let inode = member.lock.map(|open| state.locks[usize::from(open)].0);
        let next = match member.at {
            At::Leaves { .. } => match member.answer {
                Answer::Ended => self.first_removal(),
                _ => At::Closes,
            },
            At::RemovesSocket => {
                if state.socket_file == member.socket {
                    state.socket_file = None;
                }
                At::RemovesLock
            }
            At::RemovesLock => {
                if state.lock_file == inode {
                    state.lock_file = None;
                }
                if self.has(Fault::UnlocksFirst) {
                    At::Closes
                } else {
                    At::Unlocks
                }
            }
            At::Unlocks => {
                if let Some(open) = member.lock {
                    state.locks[usize::from(open)].1 = false;
                }
                if self.has(Fault::UnlocksFirst) {
                    At::RemovesSocket
                } else {
                    At::Closes
                }
            }
            At::Closes => {
                let me = &mut state.members[at];
                (me.lock, me.socket) = (None, None);
                At::Gone
            }
            other => other,
        };
        state.members[at].at = next;
    }

    fn first_removal(self) -> At {
        if self.has(Fault::UnlocksFirst) {
            At::Unlocks
        } else {
            At::RemovesSocket
        }
    }

    fn accept(self, state: &mut State, host: usize, newcomer: usize) {
        let At::Queued { named, .. } = state.members[newcomer].at else {
            return;
        };
        let taken = state.guest_of(host).is_some() || state.has_greeted(host);
        let is_named = usize::from(named) == host;
        if taken && !self.has(Fault::LetsAThirdIn) || !is_named && !self.has(Fault::BelievesTheAnswer) {
            state.members[newcomer].at = At::Opens;
            return;
        }
        state.mistaken |= !is_named;
        let (lock, socket) = (state.members[host].lock, state.members[host].socket);
        let guest = &mut state.members[newcomer];
        guest.lock = lock.filter(|_| !self.has(Fault::PassesNoLock));
        guest.socket = socket;
        guest.at = At::Greeted { host: narrow(host) };
        state.members[host].answer = Answer::None;
    }

    fn leave(self, state: &mut State, at: usize) {
        if let At::Guest { host, closed } = state.members[at].at {
            if !closed {
                state.tell(host, Answer::Ended);
            }
            let me = &mut state.members[at];
            (me.lock, me.socket, me.at) = (None, None, At::Gone);
            return;
        }
        state.members[at].at = match state.guest_of(at) {
            _ if self.has(Fault::LeavesWithoutWaiting) => At::Closes,
            Some(guest) => At::Leaves { guest: narrow(guest) },
            None => self.first_removal(),
        };
    }

    fn die(state: &mut State, at: usize) {
        state.deaths += 1;
        if let At::Guest { host, closed: false } | At::TakesOver { host } | At::Answers { host } =
            state.members[at].at
        {
            state.tell(host, Answer::Ended);
        }
        let me = &mut state.members[at];
        (me.lock, me.socket, me.at) = (None, None, At::Gone);
    }

    fn can_go_on(state: &State, at: usize) -> bool {
        match state.members[at].at {
            At::Out | At::Host | At::Gone => false,
            At::Queued { socket, .. } => !state.is_listening(socket),
            At::Guest { host, closed } => closed || state.has_gone(host),
            At::Leaves { .. } => state.members[at].answer != Answer::None,
            _ => true,
        }
    }
}

impl Model for Holding {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let member = Member {
            at: At::Out,
            lock: None,
            socket: None,
            answer: Answer::None,
        };
        vec![State {
            members: [member; MEMBERS],
            lock_file: None,
            inodes: 0,
            socket_file: None,
            locks: [(0, false); MEMBERS],
            callers: [None; MEMBERS],
            deaths: 0,
            untold: false,
            mistaken: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // The members are alike, so the first to join has the first number.
        let next = (0..self.members).find(|at| state.members[*at].at == At::Out);
        actions.extend(next.map(Action::Come));
        for at in 0..self.members {
            let member = &state.members[at];
            if Self::can_go_on(state, at) {
                actions.push(Action::GoOn(at));
            }
            if !matches!(member.at, At::Out | At::Gone) && state.deaths < self.deaths {
                actions.push(Action::Die(at));
            }
            match member.at {
                At::Host => {
                    let waiting = (0..self.members).filter(|other| match state.members[*other].at {
                        At::Queued { socket, .. } => Some(socket) == member.socket,
                        _ => false,
                    });
                    actions.extend(waiting.map(|other| Action::Accept(at, other)));
                    if !state.has_greeted(at) || self.has(Fault::LeavesBeforeItsWelcome) {
                        actions.push(Action::Leave(at));
                    }
                    if state.guest_of(at).is_some() {
                        actions.push(Action::CloseChannel(at));
                    }
                }
                At::Guest { .. } => actions.push(Action::Leave(at)),
                At::Leaves { .. } => actions.push(Action::GiveUp(at)),
                _ => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Come(at) => state.members[at].at = At::Opens,
            Action::GoOn(at) => match state.members[at].at {
                At::Opens
                | At::Locks
                | At::Looks
                | At::Clears
                | At::Binds
                | At::Listens
                | At::Connects
                | At::Queued { .. } => self.arrive(&mut state, at),
                _ => self.hold(&mut state, at),
            },
            Action::Accept(host, newcomer) => self.accept(&mut state, host, newcomer),
            Action::Leave(at) => self.leave(&mut state, at),
            Action::CloseChannel(at) => {
                let guest = state.guest_of(at)?;
                if let At::Guest { closed, .. } = &mut state.members[guest].at {
                    *closed = true;
                }
            }
            Action::GiveUp(at) => {
                state.untold = true;
                state.members[at].at = if self.has(Fault::RemovesWithoutAnAnswer) {
                    At::RemovesSocket
                } else {
                    At::Closes
                };
            }
            Action::Die(at) => Self::die(&mut state, at),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_HOST, |_, state: &State| {
                let hosts = state.members.iter().filter(|member| member.at == At::Host);
                hosts.count() <= 1
            }),
            Property::always(NEVER_FREE, |_, state: &State| {
                state.members.iter().all(|member| match member.at {
                    At::Host | At::TakesOver { .. } | At::Answers { .. } | At::SendsAway => {
                        state.beside(*member)
                    }
                    At::Guest { closed, .. } => closed || state.beside(*member),
                    _ => true,
                })
            }),
            Property::always(NAMED, |_, state: &State| {
                let named = state.members.iter().enumerate().all(|(at, member)| {
                    let caller = member
                        .socket
                        .and_then(|socket| state.callers[usize::from(socket)]);
                    member.at != At::Host || caller == Some(narrow(at))
                });
                named && !state.mistaken
            }),
            Property::always(TWO, |_, state: &State| {
                (0..MEMBERS).all(|host| {
                    let of = |member: &&Member| match member.at {
                        At::Guest { host: of, closed } => usize::from(of) == host && !closed,
                        _ => false,
                    };
                    state.members.iter().filter(of).count() <= 1
                })
            }),
            Property::always(NOTHING_LEFT, |_, state: &State| {
                let all = state
                    .members
                    .iter()
                    .all(|member| matches!(member.at, At::Gone | At::Out));
                let orderly = state.deaths == 0 && !state.untold;
                !(all && orderly) || state.lock_file.is_none() && state.socket_file.is_none()
            }),
            Property::sometimes("a guest follows a host that has left", |_, state: &State| {
                let follows = |member: &Member| member.at == At::SendsAway;
                state.deaths == 0 && state.members.iter().any(follows)
            }),
            Property::sometimes(
                "a host that has taken over accepts a guest",
                |_, state: &State| {
                    (0..MEMBERS).any(|at| {
                        let me = &state.members[at];
                        let taken_over = me.socket.is_some_and(|socket| usize::from(socket) != at);
                        taken_over && me.at == At::Host && state.guest_of(at).is_some()
                    })
                },
            ),
            Property::sometimes("the last member has removed the files", |_, state: &State| {
                state.inodes > 0 && state.lock_file.is_none() && state.members[1].at == At::Gone
            }),
        ]
    }
}

/// For members.
pub const ONE_HOST: &str = "never two hosts at an address";
/// For members.
pub const NEVER_FREE: &str = "the address is never free while a member lives";
/// For a new member.
pub const NAMED: &str =
    "a new member's channel leads to the process that the kernel has named, which is the host";
/// For a third member.
pub const TWO: &str = "a host has one guest at a time";
/// For the last member.
pub const NOTHING_LEFT: &str = "the last member to leave removes the files";
