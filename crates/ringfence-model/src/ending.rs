//! The end of a channel between two members of an address, a host and its guest.
//!
//! Each side has a writing half that ends its sending, a reading half, any number of threads that close the channel, a verifier
//! that refuses the peer, a tripwire, and a process that can die between any two steps. The host can also leave the address; the
//! guest can take it over.

use stateright::{Model, Property};

#[path = "../../ringfence/src/memory/phase.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the code itself, of which a model needs a part")
)]
mod phase;

use phase::{Phase, Step};

/// Which of the two.
pub const HOST: usize = 0;
/// The other one.
pub const GUEST: usize = 1;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The writing half stores phase 1 without the channel's lock, and so over whatever is there.
    EndsWithoutLock,
    /// The line is hung up before the phase is stored.
    HangsUpFirst,
    /// What the peer has not read is wiped where the peer is refused.
    WipesWhatTheRefusedHasNotRead,
    /// A region is wiped before its phase says so.
    WipesBeforeItSaysSo,
    /// A reader does not look again at how its own side stands after it has copied.
    ForgetsItsOwnEnd,
    /// It looks at the state, which is stored after the peer may have been told, and not at its own side's phase.
    LooksAtItsStateAlone,
    /// A guest takes the place over on every end of its channel.
    TakesOverWhateverTheEnd,
    /// A host that leaves removes the address although it was not answered.
    RemovesWithoutAnAnswer,
}

/// How a side's channel ends: the states of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// This side closes it. A ring that is found corrupt ends it in the same way.
    Here,
    /// The verifier refuses the peer.
    Refused,
    /// The tripwire has heard an alarm.
    Exposed,
    /// The peer has closed it.
    ByPeer,
    /// The peer has left the address.
    Left,
    /// The peer's memory was exposed.
    ExposedAtPeer,
    /// The peer's process has ended without a word.
    Exited,
}

impl End {
    /// What was not read stays for the peer.
    fn keeps(self, fault: Option<Fault>) -> bool {
        match self {
            Self::Here => true,
            Self::Refused => fault != Some(Fault::WipesWhatTheRefusedHasNotRead),
            _ => false,
        }
    }

    /// What the peer has left is still read.
    fn lets_read(self) -> bool {
        matches!(self, Self::ByPeer | Self::Left | Self::Exited)
    }
}

/// The line, from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// Nothing was shut.
    Open,
    /// This side has ended its half: the peer sees an end, and can still answer by its own.
    Silent,
    /// Both halves.
    HungUp,
}

/// Who has the channel's lock, and how far that thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    /// No thread.
    Free,
    /// The one that ends the channel.
    Ending(End, Stage),
    /// The one that leaves, before it waits for the answer.
    Leaving(Stage),
    /// The alarm, at a side that has left.
    Wiping,
}

/// The steps of an end, of which the peer sees each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// What others may have is let go of; a guest takes the place over, if that is how it is.
    Place,
    /// The phase is stored.
    Phase,
    /// The ring is wiped.
    Wipe,
    /// The state is stored, for the threads of this side.
    State,
    /// The line is shut, and the lock free.
    Line,
}

/// The writing half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// It may send more.
    Sends,
    /// It has found the channel open, and is about to say that it sends no more ([`Fault::EndsWithoutLock`]).
    Looked,
    /// It has said so, or has found that there is no peer to tell.
    Done,
}

/// The reading half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reader {
    /// Between two messages.
    Awake,
    /// It has made a copy of what is unread; of zeros, if `wiped`.
    Copied {
        /// Whether the copy is one of wiped memory.
        wiped: bool,
    },
}

/// One side, and what it has mapped.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each may hold or not, whatever the others do: the checker tries them all"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// Its process lives.
    pub alive: bool,
    /// The phase word of its region.
    pub word: u64,
    /// It has said at some time that it sends no more, and has been heard.
    pub has_ended: bool,
    /// Its ring was wiped, what the peer has not read included.
    pub wiped: bool,
    /// How it is connected.
    pub line: Line,
    /// The channel's lock.
    pub lock: Lock,
    /// What is let go of at the end is still there.
    pub held: bool,
    /// How the channel has ended, to the threads of this side.
    pub state: Option<End>,
    /// What a thread has found out about the peer's end, and does next.
    pub noticed: Option<End>,
    /// The writing half.
    pub writer: Writer,
    /// The reading half.
    pub reader: Reader,
    /// What it has last seen in the peer's phase word.
    pub seen: u64,
    /// It takes in those who come to the address.
    pub accepts: bool,
    /// It has told its threads that it leaves, and waits for the peer's answer.
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
        Phase::from_word(self.word).expect("written here")
    }

    /// Stores a phase that follows. `false`: it does not.
    fn become_(&mut self, next: Option<Phase>) -> bool {
        next.is_some_and(|next| {
            self.word = next.word();
            true
        })
    }

    fn is_past_the_sending(&self) -> bool {
        self.phase().step != Step::Open
    }

    /// As its peer finds it.
    fn seems_gone(&self) -> bool {
        !self.alive || self.line != Line::Open
    }

    fn may_read(&self) -> bool {
        self.state.is_none_or(End::lets_read)
    }
}

/// Both sides, and what must never be.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each may hold or not, whatever the others do: the checker tries them all"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The host and its guest.
    pub sides: [Side; 2],
    /// What lies at the address was removed.
    pub removed: bool,
    /// A reader was handed zeros.
    pub handed_out_zeros: bool,
    /// A reader saw a phase after one that it cannot follow.
    pub saw_a_phase_go_back: bool,
    /// A host found its place taken over when it had left.
    pub handed_over: bool,
    /// A copy of wiped memory was thrown away.
    pub threw_away: bool,
}

/// One step of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Its process is killed, or executes another program.
    Die(usize),
    /// The writing half ends its sending, or takes the first of two steps to that.
    EndSending(usize),
    /// A thread begins to end the channel.
    Begin(usize, End),
    /// The thread with the lock goes on.
    GoOn(usize),
    /// A thread looks at how the peer has ended.
    Notice(usize),
    /// The thread that has looked tells its side of it.
    Tell(usize),
    /// The reading half copies what is unread.
    Copy(usize),
    /// The reading half looks whether it may hand that out.
    Look(usize),
    /// The host leaves the address.
    Leave,
    /// The host has an answer, or has waited for long enough.
    Answered {
        /// Whether the end of the line, or of the guest's process, has come.
        heard: bool,
    },
}

/// The model, with one fault or none.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// What the code does wrong.
    pub fault: Option<Fault>,
}

/// Every phase that may come after this one, in however many steps.
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

    /// A reader waits for no other thread of its side.
    fn is_hasty(self) -> bool {
        self.has(Fault::ForgetsItsOwnEnd) || self.has(Fault::LooksAtItsStateAlone)
    }

    fn begin(side: &mut Side, end: End) {
        if side.is_past_the_sending() {
            // Only the alarm has something to do: the rest is let go of by the thread that waits for the answer.
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
                // The mapping goes, and is wiped.
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
                // Says so, and wipes: two steps.
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
                // One that finds its own phase past the sending waits for the thread that ends the channel.
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
                // Or it is not waited for any longer.
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
                // Nothing of these matters any more.
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
                side.noticed = match Phase::from_word(word).expect("written here").step {
                    // Seen by the reading half before the line says it, where the ring is empty.
                    Step::Closed | Step::Succeeds => Some(End::ByPeer),
                    Step::Left => Some(End::Left),
                    Step::Exposed => Some(End::ExposedAtPeer),
                    Step::Open if gone => Some(End::Exited),
                    // No member evicts the other.
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
                "a process that lives is not told to have ended",
                |_, state: &State| {
                    [HOST, GUEST]
                        .into_iter()
                        .all(|at| state.sides[at].state != Some(End::Exited) || !state.sides[1 - at].alive)
                },
            ),
            Property::always("wiped bytes are not handed out", |_, state: &State| {
                !state.handed_out_zeros
            }),
            Property::always("what has ended is not seen open again", |_, state: &State| {
                !state.saw_a_phase_go_back
            }),
            Property::always(
                "a peer that had sent all is not told to be cut",
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
            Property::sometimes("a close is told", |_, state: &State| {
                state.sides[HOST].state == Some(End::ByPeer)
            }),
            Property::sometimes("an exposure is told", |_, state: &State| {
                state.sides[HOST].state == Some(End::ExposedAtPeer)
            }),
            Property::sometimes("a copy of zeros is thrown away", |_, state: &State| {
                state.threw_away
            }),
            Property::sometimes("a side that has left is exposed", |_, state: &State| {
                let host = &state.sides[HOST];
                host.waits && host.wiped
            }),
        ]
    }
}
