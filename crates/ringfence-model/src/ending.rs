//! The end of a channel between two members of an address, a host and its guest.
//!
//! Each side has a writing half that ends its sending, a reading half, any number of threads that close the
//! channel, a verifier that refuses the peer, a tripwire, and a process that can die between any two steps.
//! The host can also leave the address, and the guest can take it over.

use stateright::{Model, Property};

#[path = "../../ringfence/src/region/phase.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the model uses only a part of the included code")
)]
mod phase;

use phase::{Phase, Step};

/// The index of the host.
pub const HOST: usize = 0;
/// The index of the guest.
pub const GUEST: usize = 1;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The writing half stores phase 1 without the channel's lock, and so overwrites any phase.
    EndWithoutLock,
    /// The line is closed before the phase is stored.
    ShutdownBeforePhase,
    /// Unread messages are wiped if the peer is refused.
    WipeUnreadOnRefusal,
    /// A region is wiped before its phase announces it.
    WipeBeforePhase,
    /// A reader does not check its own side's state again after it has copied.
    NoOwnEndCheck,
    /// The reader checks the state instead of its own side's phase. The state is stored later, when the peer
    /// may already know.
    OwnStateCheckedOnly,
    /// A guest takes over on every end of its channel.
    TakeOverOnEveryEnd,
    /// A leaving host removes the address although it got no answer.
    RemoveWithoutAnswer,
}

/// The way in which a side's channel ends: the states of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// This side closes it. A corrupt ring ends it in the same way.
    Local,
    /// The verifier refuses the peer.
    Refused,
    /// The tripwire has raised an alarm.
    Exposed,
    /// The peer has closed it.
    ByPeer,
    /// The peer has left the address.
    Left,
    /// The peer's memory was exposed.
    ExposedAtPeer,
    /// The peer's process has ended without announcing it.
    Exited,
}

impl End {
    /// Whether unread messages stay available to the peer.
    fn keeps_unread(self, fault: Option<Fault>) -> bool {
        match self {
            Self::Local => true,
            Self::Refused => fault != Some(Fault::WipeUnreadOnRefusal),
            _ => false,
        }
    }

    /// Whether messages from the peer may still be read.
    fn allows_reading(self) -> bool {
        matches!(self, Self::ByPeer | Self::Left | Self::Exited)
    }
}

/// The line, as this side has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// No direction was shut.
    Open,
    /// This side has ended its direction: the peer sees an end, and can still answer by ending its own.
    WriteShut,
    /// Both directions were shut.
    Shut,
}

/// The holder of the channel's lock, and its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    /// No thread.
    Free,
    /// The thread that ends the channel.
    Ending(End, Stage),
    /// The thread that leaves, before it waits for the answer.
    Leaving(Stage),
    /// The alarm, at a side that has left.
    Wiping,
}

/// The steps of an end. The peer sees each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Shared resources are released. A guest takes over, if the end calls for it.
    Release,
    /// The phase is stored.
    Phase,
    /// The ring is wiped.
    Wipe,
    /// The state is stored for the threads of this side.
    State,
    /// The line is shut and the lock released.
    Shutdown,
}

/// The writing half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// It may send more.
    Open,
    /// It has found the channel open, and is about to announce the end of its sending
    /// ([`Fault::EndWithoutLock`]).
    FoundOpen,
    /// It has announced that, or has found no peer to notify.
    Done,
}

/// The reading half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reader {
    /// Between two messages.
    Awake,
    /// It has copied the unread messages; zeros if `wiped`.
    Copied {
        /// Whether the copied memory was wiped.
        wiped: bool,
    },
}

/// One side, and its region.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and the checker tries all combinations"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// Its process is alive.
    pub alive: bool,
    /// The phase word of its region.
    pub word: u64,
    /// It has announced the end of its sending, in a phase that the peer could see.
    pub has_ended: bool,
    /// Its ring was wiped, including unread messages.
    pub wiped: bool,
    /// The state of its end of the line.
    pub line: Line,
    /// The channel's lock.
    pub lock: Lock,
    /// The resources that are released at the end are still held.
    pub holds_resources: bool,
    /// The end of the channel, as the threads of this side see it.
    pub state: Option<End>,
    /// The end of the peer that a thread has noticed and will handle next.
    pub noticed: Option<End>,
    /// The writing half.
    pub writer: Writer,
    /// The reading half.
    pub reader: Reader,
    /// The last value that it has seen in the peer's phase word.
    pub last_word: u64,
    /// It accepts clients at the address.
    pub accepts: bool,
    /// It has announced to its threads that it leaves, and waits for the peer's answer.
    pub awaits_answer: bool,
}

impl Side {
    fn new(accepts: bool) -> Self {
        Self {
            alive: true,
            word: Phase::OPEN.word(),
            has_ended: false,
            wiped: false,
            line: Line::Open,
            lock: Lock::Free,
            holds_resources: true,
            state: None,
            noticed: None,
            writer: Writer::Open,
            reader: Reader::Awake,
            last_word: Phase::OPEN.word(),
            accepts,
            awaits_answer: false,
        }
    }

    fn phase(&self) -> Phase {
        Phase::from_word(self.word).expect("a valid phase")
    }

    /// Stores the next phase. Returns `false` if there is none.
    fn set_phase(&mut self, next: Option<Phase>) -> bool {
        next.is_some_and(|next| {
            self.word = next.word();
            true
        })
    }

    fn is_past_open(&self) -> bool {
        self.phase().step != Step::Open
    }

    /// Whether the peer finds this side gone.
    fn seems_gone(&self) -> bool {
        !self.alive || self.line != Line::Open
    }

    fn may_read(&self) -> bool {
        self.state.is_none_or(End::allows_reading)
    }
}

/// Both sides, and violations.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and the checker tries all combinations"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The host and its guest.
    pub sides: [Side; 2],
    /// The files at the address were removed.
    pub removed: bool,
    /// A reader received zeros.
    pub handed_out_zeros: bool,
    /// A reader saw a phase that cannot follow the previous one.
    pub phase_went_back: bool,
    /// A host that had left found that its guest has taken over.
    pub handed_over: bool,
    /// A copy of wiped memory was discarded.
    pub discarded_zeros: bool,
}

/// One step of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Its process is killed, or executes another program.
    Kill(usize),
    /// The writing half ends its sending, or takes the first of two steps.
    EndSending(usize),
    /// A thread starts to end the channel.
    StartEnd(usize, End),
    /// The thread that holds the lock takes its next step.
    Step(usize),
    /// A thread checks how the peer has ended.
    CheckPeer(usize),
    /// The thread that has noticed it handles it.
    HandlePeerEnd(usize),
    /// The reading half copies the unread messages.
    Copy(usize),
    /// The reading half checks whether it may hand out the copy.
    HandOut(usize),
    /// The host leaves the address.
    Leave,
    /// The host has an answer, or stops waiting.
    StopWaiting {
        /// Whether the line or the guest's process has ended.
        is_gone: bool,
    },
}

/// The model, with at most one fault.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// The fault, if any.
    pub fault: Option<Fault>,
}

/// Whether one phase may follow another, in any number of steps.
fn follows(from: u64, to: u64) -> bool {
    let Some(phase) = Phase::from_word(from) else {
        return false;
    };
    if from == to {
        return true;
    }
    let steps = [Step::Closed, Step::Exposed, Step::Left, Step::Succeeds];
    let next = steps.into_iter().filter_map(|step| phase.then(step));
    next.chain(phase.ending())
        .any(|next| next != phase && follows(next.word(), to))
}

impl Ending {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether a reader does not wait for other threads of its side.
    fn skips_own_end_check(self) -> bool {
        self.has(Fault::NoOwnEndCheck) || self.has(Fault::OwnStateCheckedOnly)
    }

    fn start_end(side: &mut Side, end: End) {
        if side.is_past_open() {
            // Only the alarm still has work to do. The thread that waits for the answer releases everything
            // else.
            side.lock = Lock::Wiping;
        } else {
            side.lock = Lock::Ending(end, Stage::Release);
        }
    }

    /// The next step of a thread that ends the channel.
    fn step_end(self, side: &mut Side, is_guest: bool, end: End, stage: Stage) {
        let shutdown = |side: &mut Side| side.line = Line::Shut;
        let next = match stage {
            Stage::Release => {
                let succeeds = matches!(end, End::Left | End::Exited)
                    || self.has(Fault::TakeOverOnEveryEnd) && end != End::Local;
                if is_guest && succeeds {
                    side.accepts = true;
                }
                if self.has(Fault::ShutdownBeforePhase) {
                    shutdown(side);
                }
                if self.has(Fault::WipeBeforePhase) && end == End::Exposed {
                    side.wiped = true;
                }
                Stage::Phase
            }
            Stage::Phase => {
                let step = match end {
                    End::Exposed => Step::Exposed,
                    _ if is_guest && side.accepts => Step::Succeeds,
                    _ => Step::Closed,
                };
                let next = side.phase().then(step);
                side.set_phase(next);
                if end == End::Exposed {
                    Stage::Wipe
                } else {
                    Stage::State
                }
            }
            Stage::Wipe => {
                side.wiped = true;
                Stage::State
            }
            Stage::State => {
                side.state = Some(end);
                Stage::Shutdown
            }
            Stage::Shutdown => {
                shutdown(side);
                side.holds_resources = false;
                side.lock = Lock::Free;
                // The mapping is dropped and wiped.
                side.wiped |= !end.keeps_unread(self.fault);
                return;
            }
        };
        side.lock = Lock::Ending(end, next);
    }

    fn step_lock(self, side: &mut Side, is_guest: bool) {
        match side.lock {
            Lock::Free => {}
            Lock::Ending(end, stage) => self.step_end(side, is_guest, end, stage),
            Lock::Leaving(Stage::State) => {
                side.state = Some(End::Local);
                side.lock = Lock::Leaving(Stage::Phase);
            }
            Lock::Leaving(Stage::Phase) => {
                let next = side.phase().then(Step::Left);
                side.set_phase(next);
                side.lock = Lock::Leaving(Stage::Shutdown);
            }
            Lock::Leaving(_) => {
                side.line = Line::WriteShut;
                side.awaits_answer = true;
                side.lock = Lock::Free;
            }
            Lock::Wiping => {
                // Announces and wipes: two steps.
                let next = side.phase().then(Step::Exposed);
                if !side.set_phase(next) {
                    side.wiped |= side.phase().step == Step::Exposed;
                    side.lock = Lock::Free;
                }
            }
        }
    }
}

impl Model for Ending {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            sides: [Side::new(true), Side::new(false)],
            removed: false,
            handed_out_zeros: false,
            phase_went_back: false,
            handed_over: false,
            discarded_zeros: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in [HOST, GUEST] {
            let (side, peer) = (&state.sides[at], &state.sides[1 - at]);
            if !side.alive {
                continue;
            }
            actions.push(Action::Kill(at));
            let free = side.lock == Lock::Free;
            let open = free && side.holds_resources && !side.is_past_open();
            match side.writer {
                Writer::Open if self.has(Fault::EndWithoutLock) => actions.push(Action::EndSending(at)),
                Writer::Open if free => actions.push(Action::EndSending(at)),
                Writer::FoundOpen => actions.push(Action::EndSending(at)),
                _ => {}
            }
            if open {
                actions.push(Action::StartEnd(at, End::Local));
                actions.push(Action::StartEnd(at, End::Refused));
            }
            if open || (free && side.holds_resources && side.phase().step == Step::Left) {
                actions.push(Action::StartEnd(at, End::Exposed));
            }
            if !free {
                actions.push(Action::Step(at));
            }
            if side.holds_resources && side.noticed.is_none() && side.state.is_none() {
                actions.push(Action::CheckPeer(at));
            }
            if side.noticed.is_some() && free {
                actions.push(Action::HandlePeerEnd(at));
            }
            match side.reader {
                Reader::Awake if side.may_read() => actions.push(Action::Copy(at)),
                Reader::Awake => {}
                // A reader whose own phase is past open waits for the thread that ends the channel.
                Reader::Copied { .. } if !free && side.is_past_open() && !self.skips_own_end_check() => {}
                Reader::Copied { .. } => actions.push(Action::HandOut(at)),
            }
            if at == HOST && open && side.state.is_none() {
                actions.push(Action::Leave);
            }
            if side.awaits_answer && free {
                actions.push(Action::StopWaiting {
                    is_gone: peer.seems_gone(),
                });
                // The host may also stop waiting.
                actions.push(Action::StopWaiting { is_gone: false });
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Kill(at) => {
                let side = &mut state.sides[at];
                side.alive = false;
                side.line = Line::Shut;
                // These no longer matter.
                side.noticed = None;
                side.reader = Reader::Awake;
            }
            Action::EndSending(at) => {
                let side = &mut state.sides[at];
                if self.has(Fault::EndWithoutLock) {
                    if side.writer == Writer::Open {
                        side.writer = match side.state {
                            None => Writer::FoundOpen,
                            Some(_) => Writer::Done,
                        };
                    } else {
                        side.word = Phase::ENDED.word();
                        side.has_ended = true;
                        side.writer = Writer::Done;
                    }
                } else {
                    if side.holds_resources && !side.is_past_open() {
                        let next = side.phase().ending();
                        side.has_ended |= side.set_phase(next);
                    }
                    side.writer = Writer::Done;
                }
            }
            Action::StartEnd(at, end) => Self::start_end(&mut state.sides[at], end),
            Action::Step(at) => self.step_lock(&mut state.sides[at], at == GUEST),
            Action::CheckPeer(at) => {
                let peer = &state.sides[1 - at];
                let (word, gone) = (peer.word, peer.seems_gone());
                let side = &mut state.sides[at];
                state.phase_went_back |= !follows(side.last_word, word);
                side.last_word = word;
                side.noticed = match Phase::from_word(word).expect("a valid phase").step {
                    // The reading half sees it before the line ends, if the ring is empty.
                    Step::Closed | Step::Succeeds => Some(End::ByPeer),
                    Step::Left => Some(End::Left),
                    Step::Exposed => Some(End::ExposedAtPeer),
                    Step::Open if gone => Some(End::Exited),
                    // Members never evict each other.
                    Step::Open | Step::Evicted => None,
                };
            }
            Action::HandlePeerEnd(at) => {
                let side = &mut state.sides[at];
                let end = side.noticed.take()?;
                if side.holds_resources && !side.is_past_open() {
                    Self::start_end(side, end);
                }
            }
            Action::Copy(at) => {
                let wiped = state.sides[1 - at].wiped;
                state.sides[at].reader = Reader::Copied { wiped };
            }
            Action::HandOut(at) => {
                let exposed = state.sides[1 - at].phase().step == Step::Exposed;
                let side = &mut state.sides[at];
                let hands_out = !exposed && (side.may_read() || self.has(Fault::NoOwnEndCheck));
                let wiped = side.reader == Reader::Copied { wiped: true };
                side.reader = Reader::Awake;
                state.handed_out_zeros |= hands_out && wiped;
                state.discarded_zeros |= wiped && !hands_out;
            }
            Action::Leave => {
                let side = &mut state.sides[HOST];
                side.accepts = false;
                side.lock = Lock::Leaving(Stage::State);
            }
            Action::StopWaiting { is_gone } => {
                let phase = state.sides[GUEST].phase();
                let side = &mut state.sides[HOST];
                side.awaits_answer = false;
                side.holds_resources = false;
                side.line = Line::Shut;
                if phase.step == Step::Succeeds {
                    state.handed_over = true;
                } else if is_gone || self.has(Fault::RemoveWithoutAnswer) {
                    state.removed = true;
                }
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two hosts", |_, state: &State| {
                !state.sides.iter().all(|side| side.alive && side.accepts)
            }),
            Property::always(
                "the address of a living host is not removed",
                |_, state: &State| {
                    let guest = &state.sides[GUEST];
                    !(state.removed && guest.alive && guest.accepts)
                },
            ),
            Property::always(
                "a living process is never reported as ended",
                |_, state: &State| {
                    [HOST, GUEST]
                        .into_iter()
                        .all(|at| state.sides[at].state != Some(End::Exited) || !state.sides[1 - at].alive)
                },
            ),
            Property::always("wiped bytes are not handed out", |_, state: &State| {
                !state.handed_out_zeros
            }),
            Property::always(
                "a channel that has ended is not seen open again",
                |_, state: &State| !state.phase_went_back,
            ),
            Property::always(
                "a peer that had sent everything is not reported as cut off",
                |_, state: &State| {
                    [HOST, GUEST].into_iter().all(|at| {
                        let (side, peer) = (&state.sides[at], &state.sides[1 - at]);
                        let is_reported = side.state.is_some_and(End::allows_reading);
                        !is_reported
                            || peer.phase().ended == peer.has_ended
                            || peer.phase().step == Step::Exposed
                    })
                },
            ),
            Property::sometimes("a guest takes over from a host that died", |_, state: &State| {
                state.sides[GUEST].state == Some(End::Exited) && state.sides[GUEST].accepts
            }),
            Property::sometimes("a host hands over", |_, state: &State| state.handed_over),
            Property::sometimes("the last to leave removes the address", |_, state: &State| {
                state.removed
            }),
            Property::sometimes("a close is reported", |_, state: &State| {
                state.sides[HOST].state == Some(End::ByPeer)
            }),
            Property::sometimes("an exposure is reported", |_, state: &State| {
                state.sides[HOST].state == Some(End::ExposedAtPeer)
            }),
            Property::sometimes("a copy of zeros is discarded", |_, state: &State| {
                state.discarded_zeros
            }),
            Property::sometimes("a side that has left is exposed", |_, state: &State| {
                let host = &state.sides[HOST];
                host.awaits_answer && host.wiped
            }),
        ]
    }
}
