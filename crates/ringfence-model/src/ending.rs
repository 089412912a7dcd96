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
    EndsWithoutLock,
    /// The line is closed before the phase is stored.
    HangsUpFirst,
    /// Unread messages are wiped if the peer is refused.
    WipesWhatTheRefusedHasNotRead,
    /// A region is wiped before its phase announces it.
    WipesBeforeItSaysSo,
    /// A reader does not check its own side's state again after it has copied.
    ForgetsItsOwnEnd,
    /// The reader checks the state instead of its own side's phase. The state is stored later, when the peer
    /// may already know.
    LooksAtItsStateAlone,
    /// A guest takes over on every end of its channel.
    TakesOverWhateverTheEnd,
    /// A leaving host removes the address although it got no answer.
    RemovesWithoutAnAnswer,
}

/// The way in which a side's channel ends: the states of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// This side closes it. A corrupt ring ends it in the same way.
    Here,
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
    fn keeps(self, fault: Option<Fault>) -> bool {
        match self {
            Self::Here => true,
            Self::Refused => fault != Some(Fault::WipesWhatTheRefusedHasNotRead),
            _ => false,
        }
    }

    /// Whether messages from the peer may still be read.
    fn lets_read(self) -> bool {
        matches!(self, Self::ByPeer | Self::Left | Self::Exited)
    }
}

/// The line, as this side has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// No direction was shut.
    Open,
    /// This side has ended its direction: the peer sees an end, and can still answer by ending its own.
    Silent,
    /// Both directions were shut.
    HungUp,
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
    Place,
    /// The phase is stored.
    Phase,
    /// The ring is wiped.
    Wipe,
    /// The state is stored for the threads of this side.
    State,
    /// The line is shut and the lock released.
    Line,
}

/// The writing half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// It may send more.
    Sends,
    /// It has found the channel open, and is about to announce the end of its sending
    /// ([`Fault::EndsWithoutLock`]).
    Looked,
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
    pub held: bool,
    /// The end of the channel, as the threads of this side see it.
    pub state: Option<End>,
    /// The end of the peer that a thread has noticed and will handle next.
    pub noticed: Option<End>,
    /// The writing half.
    pub writer: Writer,
    /// The reading half.
    pub reader: Reader,
    /// The last value that it has seen in the peer's phase word.
    pub seen: u64,
    /// It accepts clients at the address.
    pub accepts: bool,
    /// It has announced to its threads that it leaves, and waits for the peer's answer.
    pub waits: bool,
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
            held: true,
            state: None,
            noticed: None,
            writer: Writer::Sends,
            reader: Reader::Awake,
            seen: Phase::OPEN.word(),
            accepts,
            waits: false,
        }
    }

    fn phase(&self) -> Phase {
        Phase::from_word(self.word).expect("a valid phase")
    }

    /// Stores the next phase. Returns `false` if there is none.
    fn become_(&mut self, next: Option<Phase>) -> bool {
        next.is_some_and(|next| {
            self.word = next.word();
            true
        })
    }

    fn is_past_the_sending(&self) -> bool {
        self.phase().step != Step::Open
    }

    /// Whether the peer finds this side gone.
    fn seems_gone(&self) -> bool {
        !self.alive || self.line != Line::Open
    }

    fn may_read(&self) -> bool {
        self.state.is_none_or(End::lets_read)
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
    pub saw_a_phase_go_back: bool,
    /// A host that had left found that its guest has taken over.
    pub handed_over: bool,
    /// A copy of wiped memory was discarded.
    pub threw_away: bool,
}

/// One step of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Its process is killed, or executes another program.
    Die(usize),
    /// The writing half ends its sending, or takes the first of two steps.
    EndSending(usize),
    /// A thread starts to end the channel.
    Begin(usize, End),
    /// The thread that holds the lock takes its next step.
    GoOn(usize),
    /// A thread checks how the peer has ended.
    Notice(usize),
    /// The thread that has noticed it handles it.
    Tell(usize),
    /// The reading half copies the unread messages.
    Copy(usize),
    /// The reading half checks whether it may hand out the copy.
    Look(usize),
    /// The host leaves the address.
    Leave,
    /// The host has an answer, or stops waiting.
    Answered {
        /// Whether the line or the guest's process has ended.
        heard: bool,
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
    fn is_hasty(self) -> bool {
        self.has(Fault::ForgetsItsOwnEnd) || self.has(Fault::LooksAtItsStateAlone)
    }

    fn begin(side: &mut Side, end: End) {
        if side.is_past_the_sending() {
            // Only the alarm still has work to do. The thread that waits for the answer releases everything
            // else.
            side.lock = Lock::Wiping;
        } else {
            side.lock = Lock::Ending(end, Stage::Place);
        }
    }

    /// The next step of a thread that ends the channel.
    fn end(self, side: &mut Side, is_guest: bool, end: End, stage: Stage) {
        let hang_up = |side: &mut Side| side.line = Line::HungUp;
        let next = match stage {
            Stage::Place => {
                let succeeds = matches!(end, End::Left | End::Exited)
                    || self.has(Fault::TakesOverWhateverTheEnd) && end != End::Here;
                if is_guest && succeeds {
                    side.accepts = true;
                }
                if self.has(Fault::HangsUpFirst) {
                    hang_up(side);
                }
                if self.has(Fault::WipesBeforeItSaysSo) && end == End::Exposed {
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
                side.become_(next);
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
                Stage::Line
            }
            Stage::Line => {
                hang_up(side);
                side.held = false;
                side.lock = Lock::Free;
                // The mapping is dropped and wiped.
                side.wiped |= !end.keeps(self.fault);
                return;
            }
        };
        side.lock = Lock::Ending(end, next);
    }

    fn go_on(self, side: &mut Side, is_guest: bool) {
        match side.lock {
            Lock::Free => {}
            Lock::Ending(end, stage) => self.end(side, is_guest, end, stage),
            Lock::Leaving(Stage::State) => {
                side.state = Some(End::Here);
                side.lock = Lock::Leaving(Stage::Phase);
            }
            Lock::Leaving(Stage::Phase) => {
                let next = side.phase().then(Step::Left);
                side.become_(next);
                side.lock = Lock::Leaving(Stage::Line);
            }
            Lock::Leaving(_) => {
                side.line = Line::Silent;
                side.waits = true;
                side.lock = Lock::Free;
            }
            Lock::Wiping => {
                // Announces and wipes: two steps.
                let next = side.phase().then(Step::Exposed);
                if !side.become_(next) {
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
            saw_a_phase_go_back: false,
            handed_over: false,
            threw_away: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in [HOST, GUEST] {
            let (side, peer) = (&state.sides[at], &state.sides[1 - at]);
            if !side.alive {
                continue;
            }
            actions.push(Action::Die(at));
            let free = side.lock == Lock::Free;
            let open = free && side.held && !side.is_past_the_sending();
            match side.writer {
                Writer::Sends if self.has(Fault::EndsWithoutLock) => actions.push(Action::EndSending(at)),
                Writer::Sends if free => actions.push(Action::EndSending(at)),
                Writer::Looked => actions.push(Action::EndSending(at)),
                _ => {}
            }
            if open {
                actions.push(Action::Begin(at, End::Here));
                actions.push(Action::Begin(at, End::Refused));
            }
            if open || (free && side.held && side.phase().step == Step::Left) {
                actions.push(Action::Begin(at, End::Exposed));
            }
            if !free {
                actions.push(Action::GoOn(at));
            }
            if side.held && side.noticed.is_none() && side.state.is_none() {
                actions.push(Action::Notice(at));
            }
            if side.noticed.is_some() && free {
                actions.push(Action::Tell(at));
            }
            match side.reader {
                Reader::Awake if side.may_read() => actions.push(Action::Copy(at)),
                Reader::Awake => {}
                // A reader whose own phase is past open waits for the thread that ends the channel.
                Reader::Copied { .. } if !free && side.is_past_the_sending() && !self.is_hasty() => {}
                Reader::Copied { .. } => actions.push(Action::Look(at)),
            }
            if at == HOST && open && side.state.is_none() {
                actions.push(Action::Leave);
            }
            if side.waits && free {
                actions.push(Action::Answered {
                    heard: peer.seems_gone(),
                });
                // The host may also stop waiting.
                actions.push(Action::Answered { heard: false });
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Die(at) => {
                let side = &mut state.sides[at];
                side.alive = false;
                side.line = Line::HungUp;
                // These no longer matter.
                side.noticed = None;
                side.reader = Reader::Awake;
            }
            Action::EndSending(at) => {
                let side = &mut state.sides[at];
                if self.has(Fault::EndsWithoutLock) {
                    if side.writer == Writer::Sends {
                        side.writer = match side.state {
                            None => Writer::Looked,
                            Some(_) => Writer::Done,
                        };
                    } else {
                        side.word = Phase::ENDED.word();
                        side.has_ended = true;
                        side.writer = Writer::Done;
                    }
                } else {
                    if side.held && !side.is_past_the_sending() {
                        let next = side.phase().ending();
                        side.has_ended |= side.become_(next);
                    }
                    side.writer = Writer::Done;
                }
            }
            Action::Begin(at, end) => Self::begin(&mut state.sides[at], end),
            Action::GoOn(at) => self.go_on(&mut state.sides[at], at == GUEST),
            Action::Notice(at) => {
                let peer = &state.sides[1 - at];
                let (word, gone) = (peer.word, peer.seems_gone());
                let side = &mut state.sides[at];
                state.saw_a_phase_go_back |= !follows(side.seen, word);
                side.seen = word;
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
            Action::Tell(at) => {
                let side = &mut state.sides[at];
                let end = side.noticed.take()?;
                if side.held && !side.is_past_the_sending() {
                    Self::begin(side, end);
                }
            }
            Action::Copy(at) => {
                let wiped = state.sides[1 - at].wiped;
                state.sides[at].reader = Reader::Copied { wiped };
            }
            Action::Look(at) => {
                let exposed = state.sides[1 - at].phase().step == Step::Exposed;
                let side = &mut state.sides[at];
                let hands_out = !exposed && (side.may_read() || self.has(Fault::ForgetsItsOwnEnd));
                let wiped = side.reader == Reader::Copied { wiped: true };
                side.reader = Reader::Awake;
                state.handed_out_zeros |= hands_out && wiped;
                state.threw_away |= wiped && !hands_out;
            }
            Action::Leave => {
                let side = &mut state.sides[HOST];
                side.accepts = false;
                side.lock = Lock::Leaving(Stage::State);
            }
            Action::Answered { heard } => {
                let phase = state.sides[GUEST].phase();
                let side = &mut state.sides[HOST];
                side.waits = false;
                side.held = false;
                side.line = Line::HungUp;
                if phase.step == Step::Succeeds {
                    state.handed_over = true;
                } else if heard || self.has(Fault::RemovesWithoutAnAnswer) {
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
                |_, state: &State| !state.saw_a_phase_go_back,
            ),
            Property::always(
                "a peer that had sent everything is not reported as cut off",
                |_, state: &State| {
                    [HOST, GUEST].into_iter().all(|at| {
                        let (side, peer) = (&state.sides[at], &state.sides[1 - at]);
                        let told = side.state.is_some_and(End::lets_read);
                        !told || peer.phase().ended == peer.has_ended || peer.phase().step == Step::Exposed
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
                state.threw_away
            }),
            Property::sometimes("a side that has left is exposed", |_, state: &State| {
                let host = &state.sides[HOST];
                host.waits && host.wiped
            }),
        ]
    }
}
