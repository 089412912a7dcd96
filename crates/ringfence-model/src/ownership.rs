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
    NoPathCheckAfterLock,
    /// The last member unlocks before it removes the files.
    UnlockBeforeRemoval,
    /// A host that leaves removes the files although it got no answer.
    RemoveWithoutAnswer,
    /// A host that leaves does not wait for an answer, and removes nothing.
    LeaveWithoutWaiting,
    /// A host leaves while a guest has READY but is not registered as its guest yet.
    LeaveBeforeRegistration,
    /// A guest takes over on every end of its channel.
    TakeOverOnEveryEnd,
    /// A guest gets the listening socket but not the lock.
    LockNotPassed,
    /// A guest continues without calling listen(2).
    TakeOverWithoutListen,
    /// A client accepts an answer from any process, and a guest that takes over keeps the connections in the
    /// queue.
    NoIdentityCheck,
    /// A host accepts a guest although it has one.
    AcceptSecondGuest,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Ownership {
    /// The number of members that join.
    pub members: usize,
    /// The maximum number of members that are killed.
    pub kills: u8,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

/// The next step of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    NotJoined,
    // Opens the lock file, or creates it.
    OpenLock,
    Lock,
    // Checks whether the locked file is still at its path.
    CheckPath,
    // Removes a socket at which no process answers.
    RemoveStaleSocket,
    Bind,
    Listen,
    // Accepts guests.
    Host,
    // After it did not get the lock.
    Connect,
    // Waits in the queue of this socket. The kernel named this process as its owner.
    Queued { socket: u8, named: u8 },
    // Checks what came with READY.
    ReadyReceived { host: u8 },
    // Has a channel with this host. A closed channel does not mean that the host has left.
    Guest { host: u8, closed: bool },
    // Its host has gone: calls listen(2).
    TakeOver { host: u8 },
    // Reports the takeover to its host.
    Answer { host: u8 },
    // Closes the connections in the queue.
    CloseQueue,
    // Accepts no more guests, and waits for this guest's answer.
    Leave { guest: u8 },
    RemoveSocket,
    RemoveLock,
    Unlock,
    // Closes its descriptors.
    Close,
    // Has left, or was killed.
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
    step: Step,
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
    kills: u8,
    /// A host has left without an answer.
    left_without_answer: bool,
    /// A member has a channel with a process other than the one that the kernel has named to it.
    wrong_peer: bool,
}

/// One step of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The member joins.
    Join(usize),
    /// The member takes its next step.
    Step(usize),
    /// A host accepts this member from the queue.
    Accept(usize, usize),
    /// A host or a guest leaves.
    Leave(usize),
    /// A host closes its channel, and stays.
    CloseChannel(usize),
    /// A leaving host stops waiting for an answer.
    StopWaiting(usize),
    /// The process is killed.
    Kill(usize),
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
        (0..MEMBERS).find(|at| match self.members[*at].step {
            Step::Guest { host: of, closed } => of == host && !closed,
            Step::TakeOver { host: of } | Step::Answer { host: of } => of == host,
            _ => false,
        })
    }

    fn has_pending_guest(&self, host: usize) -> bool {
        let pending = Step::ReadyReceived { host: narrow(host) };
        self.members.iter().any(|member| member.step == pending)
    }

    /// Closes all descriptors, and starts over.
    fn come_again(&mut self, at: usize) {
        let me = &mut self.members[at];
        (me.lock, me.socket, me.step) = (None, None, Step::OpenLock);
    }

    /// The host learns what its guest has done.
    fn set_answer(&mut self, host: u8, answer: Answer) {
        self.members[usize::from(host)].answer = answer;
    }

    /// Whether this host is dead or has left.
    fn has_gone(&self, host: u8) -> bool {
        use Step::{Close, Gone, Leave};
        matches!(self.members[usize::from(host)].step, Gone | Leave { .. } | Close)
    }

    fn holds_address(&self, member: Member) -> bool {
        let locked = member.lock.is_some_and(|open| {
            let (inode, locked) = self.locks[usize::from(open)];
            locked && self.lock_file == Some(inode)
        });
        locked && member.socket.is_some() && self.socket_file == member.socket
    }
}

impl Ownership {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The steps of a joining member.
    fn step_joining(self, state: &mut State, at: usize) {
        let own = narrow(at);
        let next = match state.members[at].step {
            Step::OpenLock => {
                let inode = *state.lock_file.get_or_insert_with(|| {
                    state.inodes += 1;
                    state.inodes
                });
                state.locks[at] = (inode, false);
                state.members[at].lock = Some(own);
                Step::Lock
            }
            Step::Lock => {
                let (inode, _) = state.locks[at];
                if state.is_locked(inode) {
                    state.members[at].lock = None;
                    Step::Connect
                } else {
                    state.locks[at].1 = true;
                    if self.has(Fault::NoPathCheckAfterLock) {
                        Step::RemoveStaleSocket
                    } else {
                        Step::CheckPath
                    }
                }
            }
            Step::CheckPath if state.lock_file == Some(state.locks[at].0) => Step::RemoveStaleSocket,
            Step::CheckPath => return state.come_again(at),
            Step::RemoveStaleSocket => match state.socket_file {
                // Possibly a program that ignores the lock, so connect to it.
                Some(socket) if state.is_listening(socket) => {
                    state.lock_file = None;
                    state.members[at].lock = None;
                    Step::Connect
                }
                _ => {
                    state.socket_file = None;
                    Step::Bind
                }
            },
            Step::Bind => {
                state.socket_file = Some(own);
                state.members[at].socket = Some(own);
                Step::Listen
            }
            Step::Listen => {
                state.callers[at] = Some(own);
                Step::Host
            }
            Step::Connect => match state.socket_file {
                Some(socket) if state.is_listening(socket) => {
                    let named = state.callers[usize::from(socket)].expect("it listens");
                    Step::Queued { socket, named }
                }
                _ => Step::OpenLock,
            },
            // The socket was closed, and the kernel closes the connection.
            Step::Queued { .. } => Step::OpenLock,
            other => other,
        };
        state.members[at].step = next;
    }

    /// The steps of a host or guest.
    fn step_member(self, state: &mut State, at: usize) {
        let next = match state.members[at].step {
            Step::ReadyReceived { host } => {
                let member = state.members[at];
                let good = state.holds_address(member) || self.has(Fault::LockNotPassed);
                if !good {
                    return state.come_again(at);
                }
                Step::Guest { host, closed: false }
            }
            Step::Guest { host, closed } => {
                let gone = !closed && state.has_gone(host);
                if gone || self.has(Fault::TakeOverOnEveryEnd) {
                    Step::TakeOver { host }
                } else {
                    return state.come_again(at);
                }
            }
            Step::TakeOver { host } => {
                if !self.has(Fault::TakeOverWithoutListen)
                    && let Some(socket) = state.members[at].socket
                {
                    state.callers[usize::from(socket)] = Some(narrow(at));
                }
                Step::Answer { host }
            }
            Step::Answer { host } => {
                state.set_answer(host, Answer::Succeeds);
                Step::CloseQueue
            }
            Step::CloseQueue => {
                let mine = state.members[at].socket;
                for other in 0..MEMBERS {
                    if self.has(Fault::NoIdentityCheck) {
                        break;
                    }
                    if let Step::Queued { socket, named } = state.members[other].step
                        && Some(socket) == mine
                        && named != narrow(at)
                    {
                        state.members[other].step = Step::OpenLock;
                    }
                }
                // The answer was given to its host, and its own guest has given none.
                state.members[at].answer = Answer::None;
                Step::Host
            }
            _ => return self.step_leaving(state, at),
        };
        state.members[at].step = next;
    }

    /// The steps of a leaving member.
    fn step_leaving(self, state: &mut State, at: usize) {
        let member = state.members[at];
        let inode = member.lock.map(|open| state.locks[usize::from(open)].0);
        let next = match member.step {
            Step::Leave { .. } => match member.answer {
                Answer::Ended => self.first_removal(),
                _ => Step::Close,
            },
            Step::RemoveSocket => {
                if state.socket_file == member.socket {
                    state.socket_file = None;
                }
                Step::RemoveLock
            }
            Step::RemoveLock => {
                if state.lock_file == inode {
                    state.lock_file = None;
                }
                if self.has(Fault::UnlockBeforeRemoval) {
                    Step::Close
                } else {
                    Step::Unlock
                }
            }
            Step::Unlock => {
                if let Some(open) = member.lock {
                    state.locks[usize::from(open)].1 = false;
                }
                if self.has(Fault::UnlockBeforeRemoval) {
                    Step::RemoveSocket
                } else {
                    Step::Close
                }
            }
            Step::Close => {
                let me = &mut state.members[at];
                (me.lock, me.socket) = (None, None);
                Step::Gone
            }
            other => other,
        };
        state.members[at].step = next;
    }

    fn first_removal(self) -> Step {
        if self.has(Fault::UnlockBeforeRemoval) {
            Step::Unlock
        } else {
            Step::RemoveSocket
        }
    }

    fn accept(self, state: &mut State, host: usize, client: usize) {
        let Step::Queued { named, .. } = state.members[client].step else {
            return;
        };
        let taken = state.guest_of(host).is_some() || state.has_pending_guest(host);
        let is_named = usize::from(named) == host;
        if taken && !self.has(Fault::AcceptSecondGuest) || !is_named && !self.has(Fault::NoIdentityCheck) {
            state.members[client].step = Step::OpenLock;
            return;
        }
        state.wrong_peer |= !is_named;
        let (lock, socket) = (state.members[host].lock, state.members[host].socket);
        let guest = &mut state.members[client];
        guest.lock = lock.filter(|_| !self.has(Fault::LockNotPassed));
        guest.socket = socket;
        guest.step = Step::ReadyReceived { host: narrow(host) };
        state.members[host].answer = Answer::None;
    }

    fn leave(self, state: &mut State, at: usize) {
        if let Step::Guest { host, closed } = state.members[at].step {
            if !closed {
                state.set_answer(host, Answer::Ended);
            }
            let me = &mut state.members[at];
            (me.lock, me.socket, me.step) = (None, None, Step::Gone);
            return;
        }
        state.members[at].step = match state.guest_of(at) {
            _ if self.has(Fault::LeaveWithoutWaiting) => Step::Close,
            Some(guest) => Step::Leave { guest: narrow(guest) },
            None => self.first_removal(),
        };
    }

    fn kill(state: &mut State, at: usize) {
        state.kills += 1;
        if let Step::Guest { host, closed: false } | Step::TakeOver { host } | Step::Answer { host } =
            state.members[at].step
        {
            state.set_answer(host, Answer::Ended);
        }
        let me = &mut state.members[at];
        (me.lock, me.socket, me.step) = (None, None, Step::Gone);
    }

    fn is_runnable(state: &State, at: usize) -> bool {
        match state.members[at].step {
            Step::NotJoined | Step::Host | Step::Gone => false,
            Step::Queued { socket, .. } => !state.is_listening(socket),
            Step::Guest { host, closed } => closed || state.has_gone(host),
            Step::Leave { .. } => state.members[at].answer != Answer::None,
            _ => true,
        }
    }
}

impl Model for Ownership {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let member = Member {
            step: Step::NotJoined,
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
            kills: 0,
            left_without_answer: false,
            wrong_peer: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // The members are alike, so the first to join has the first number.
        let next = (0..self.members).find(|at| state.members[*at].step == Step::NotJoined);
        actions.extend(next.map(Action::Join));
        for at in 0..self.members {
            let member = &state.members[at];
            if Self::is_runnable(state, at) {
                actions.push(Action::Step(at));
            }
            if !matches!(member.step, Step::NotJoined | Step::Gone) && state.kills < self.kills {
                actions.push(Action::Kill(at));
            }
            match member.step {
                Step::Host => {
                    let waiting = (0..self.members).filter(|other| match state.members[*other].step {
                        Step::Queued { socket, .. } => Some(socket) == member.socket,
                        _ => false,
                    });
                    actions.extend(waiting.map(|other| Action::Accept(at, other)));
                    if !state.has_pending_guest(at) || self.has(Fault::LeaveBeforeRegistration) {
                        actions.push(Action::Leave(at));
                    }
                    if state.guest_of(at).is_some() {
                        actions.push(Action::CloseChannel(at));
                    }
                }
                Step::Guest { .. } => actions.push(Action::Leave(at)),
                Step::Leave { .. } => actions.push(Action::StopWaiting(at)),
                _ => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Join(at) => state.members[at].step = Step::OpenLock,
            Action::Step(at) => match state.members[at].step {
                Step::OpenLock
                | Step::Lock
                | Step::CheckPath
                | Step::RemoveStaleSocket
                | Step::Bind
                | Step::Listen
                | Step::Connect
                | Step::Queued { .. } => self.step_joining(&mut state, at),
                _ => self.step_member(&mut state, at),
            },
            Action::Accept(host, client) => self.accept(&mut state, host, client),
            Action::Leave(at) => self.leave(&mut state, at),
            Action::CloseChannel(at) => {
                let guest = state.guest_of(at)?;
                if let Step::Guest { closed, .. } = &mut state.members[guest].step {
                    *closed = true;
                }
            }
            Action::StopWaiting(at) => {
                state.left_without_answer = true;
                state.members[at].step = if self.has(Fault::RemoveWithoutAnswer) {
                    Step::RemoveSocket
                } else {
                    Step::Close
                };
            }
            Action::Kill(at) => Self::kill(&mut state, at),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_HOST, |_, state: &State| {
                let hosts = state.members.iter().filter(|member| member.step == Step::Host);
                hosts.count() <= 1
            }),
            Property::always(NEVER_FREE, |_, state: &State| {
                state.members.iter().all(|member| match member.step {
                    Step::Host | Step::TakeOver { .. } | Step::Answer { .. } | Step::CloseQueue => {
                        state.holds_address(*member)
                    }
                    Step::Guest { closed, .. } => closed || state.holds_address(*member),
                    _ => true,
                })
            }),
            Property::always(PEER_IS_NAMED_HOST, |_, state: &State| {
                let named = state.members.iter().enumerate().all(|(at, member)| {
                    let caller = member
                        .socket
                        .and_then(|socket| state.callers[usize::from(socket)]);
                    member.step != Step::Host || caller == Some(narrow(at))
                });
                named && !state.wrong_peer
            }),
            Property::always(ONE_GUEST, |_, state: &State| {
                (0..MEMBERS).all(|host| {
                    let of = |member: &&Member| match member.step {
                        Step::Guest { host: of, closed } => usize::from(of) == host && !closed,
                        _ => false,
                    };
                    state.members.iter().filter(of).count() <= 1
                })
            }),
            Property::always(FILES_REMOVED, |_, state: &State| {
                let all = state
                    .members
                    .iter()
                    .all(|member| matches!(member.step, Step::Gone | Step::NotJoined));
                let orderly = state.kills == 0 && !state.left_without_answer;
                !(all && orderly) || state.lock_file.is_none() && state.socket_file.is_none()
            }),
            Property::sometimes("a guest follows a host that has left", |_, state: &State| {
                let follows = |member: &Member| member.step == Step::CloseQueue;
                state.kills == 0 && state.members.iter().any(follows)
            }),
            Property::sometimes(
                "a host that has taken over accepts a guest",
                |_, state: &State| {
                    (0..MEMBERS).any(|at| {
                        let me = &state.members[at];
                        let taken_over = me.socket.is_some_and(|socket| usize::from(socket) != at);
                        taken_over && me.step == Step::Host && state.guest_of(at).is_some()
                    })
                },
            ),
            Property::sometimes("the last member has removed the files", |_, state: &State| {
                state.inodes > 0 && state.lock_file.is_none() && state.members[1].step == Step::Gone
            }),
        ]
    }
}

/// For members.
pub const ONE_HOST: &str = "never two hosts at an address";
/// For members.
pub const NEVER_FREE: &str = "the address is never free while a member lives";
/// For a new member.
pub const PEER_IS_NAMED_HOST: &str =
    "a new member's channel leads to the process that the kernel has named, which is the host";
/// For a third member.
pub const ONE_GUEST: &str = "a host has one guest at a time";
/// For the last member.
pub const FILES_REMOVED: &str = "the last member to leave removes the files";
