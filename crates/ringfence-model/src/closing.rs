//! The end of sending and the close of a channel, from both sides at the same time, with messages in the
//! ring.
//!
//! Each side has a thread that sends and then announces the end of its sending, and a thread that reads until
//! it is notified of the end. A side that has done both closes. Either side may also close earlier, or be
//! killed.

use stateright::{Model, Property};

use crate::memory::{Memory, Order};

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A reader that finds that the peer has ended does not read the tail once more.
    NoTailRecheck,
    /// A sender announces the end of its sending, and publishes its last message afterwards.
    EndBeforePublish,
    /// The phase is stored relaxed.
    PhaseStoredRelaxed,
    /// The phase is read relaxed.
    PhaseLoadedRelaxed,
    /// A sender that ends wakes no sleeper.
    EndWithoutWakeup,
    /// A side that closes forgets that it had ended its sending.
    CloseOverwritesEnd,
    /// A reader that finds its peer gone does not read the tail a last time.
    NoLastTailCheck,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Closing {
    /// The number of messages that each side sends.
    pub messages: [u8; 2],
    /// Readers sleep when nothing is there, instead of polling.
    pub sleeps: bool,
    /// A side may close before it has sent or read everything.
    pub early_closes: bool,
    /// A side may be killed.
    pub kills: bool,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    pub(super) const fn tail(side: usize) -> usize {
        4 * side
    }
    pub(super) const fn phase(side: usize) -> usize {
        4 * side + 1
    }
    pub(super) const fn parked(side: usize) -> usize {
        4 * side + 2
    }
    /// The line, which the kernel provides: this side has hung up.
    pub(super) const fn line(side: usize) -> usize {
        4 * side + 3
    }
    pub(super) const ALL: usize = 8;
}

type Words = Memory<{ word::ALL }, 4>;

/// The phase: 1 is ended, 2 is closed.
const ENDED: u8 = 1;
const CLOSED: u8 = 2;

const fn sender(side: usize) -> usize {
    2 * side
}

const fn reader(side: usize) -> usize {
    2 * side + 1
}

/// The next step of a sending thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SenderStep {
    /// Publishes a message, or ends.
    Publish,
    CheckParked,
    /// Under the lock.
    End,
    CheckParkedAfterEnd,
    /// Closes if the other half has finished too.
    CheckReceiver,
    Close,
    Shutdown,
    Done,
}

/// The next step of a reading thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReaderStep {
    CheckLine,
    LoadTail { parked: bool },
    LoadPhase { parked: bool },
    RecheckTail { parked: bool, phase: u8 },
    Park,
    Sleep,
    Unpark,
    // The peer is gone.
    LoadLastPhase,
    LoadLastTail { phase: u8 },
    Ended { cut: bool },
    Close,
    Shutdown,
    Done,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and the checker tries all combinations"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Side {
    sender_step: SenderStep,
    reader_step: ReaderStep,
    sent: u8,
    read: u8,
    park_number: u8,
    wakeup: bool,
    /// The flags of both halves, by which the second half to finish closes.
    sending_ended: bool,
    receiving_ended: bool,
    /// It has announced that it has sent everything.
    has_ended: bool,
    /// It has closed before both halves had finished.
    has_closed: bool,
    is_alive: bool,
}

/// The words, and both sides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sides: [Side; 2],
    /// A reader was notified of the end before it had read everything.
    missed: bool,
    /// A reader was notified of a cut although its peer had sent everything, or the other way round.
    misreported: bool,
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The sending thread of a side takes its next step. A load reads the oldest store that it may (0), or a
    /// newer one.
    Send(usize, u8),
    /// The reading thread of a side takes its next step.
    Read(usize, u8),
    /// A side closes before it has finished.
    Close(usize),
    /// A process is killed.
    Kill(usize),
}

impl Closing {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn loads(self, state: &State, side: usize, reads: bool) -> Option<(usize, Order)> {
        let peer = 1 - side;
        let phase = if self.has(Fault::PhaseLoadedRelaxed) {
            Order::Relaxed
        } else {
            Order::AcqRel
        };
        if reads {
            return match state.sides[side].reader_step {
                ReaderStep::LoadTail { .. }
                | ReaderStep::RecheckTail { .. }
                | ReaderStep::LoadLastTail { .. } => Some((word::tail(peer), Order::AcqRel)),
                ReaderStep::LoadPhase { .. } | ReaderStep::LoadLastPhase => Some((word::phase(peer), phase)),
                _ => None,
            };
        }
        match state.sides[side].sender_step {
            SenderStep::CheckParked | SenderStep::CheckParkedAfterEnd => {
                Some((word::parked(peer), Order::Relaxed))
            }
            _ => None,
        }
    }

    /// Adds a bit to the phase, under the lock of its side.
    fn store_phase(self, words: &mut Words, thread: usize, side: usize, flag: u8) {
        let now = words.load_newest(thread, word::phase(side));
        let order = if self.has(Fault::PhaseStoredRelaxed) {
            Order::Relaxed
        } else {
            Order::AcqRel
        };
        if now >= CLOSED || now & flag != 0 {
            return;
        }
        let base = if self.has(Fault::CloseOverwritesEnd) {
            0
        } else {
            now
        };
        words.store(thread, word::phase(side), base | flag, order);
    }

    fn step_sender(self, state: &mut State, side: usize, choice: u8) {
        let thread = sender(side);
        let loaded = self.loads(state, side, false);
        let State { words, sides, .. } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        let total = self.messages[side];
        let me = &mut sides[side];
        let late = self.has(Fault::EndBeforePublish);
        let (mut next, mut wakes) = (me.sender_step, false);
        match me.sender_step {
            SenderStep::Publish if late && me.sent + 1 == total && !me.has_ended => next = SenderStep::End,
            SenderStep::Publish if me.sent < total => {
                me.sent += 1;
                words.store(thread, word::tail(side), me.sent, Order::AcqRel);
                if self.sleeps {
                    words.full_fence(thread);
                    next = SenderStep::CheckParked;
                }
            }
            SenderStep::Publish if me.has_ended => next = SenderStep::CheckReceiver,
            SenderStep::Publish => next = SenderStep::End,
            SenderStep::CheckParked => {
                wakes = value % 2 == 1;
                next = SenderStep::Publish;
            }
            SenderStep::End => {
                self.store_phase(words, thread, side, ENDED);
                me.has_ended = true;
                if self.sleeps {
                    words.full_fence(thread);
                    next = SenderStep::CheckParkedAfterEnd;
                } else {
                    me.sending_ended = true;
                    next = Self::after_end(late);
                }
            }
            SenderStep::CheckParkedAfterEnd => {
                wakes = value % 2 == 1 && !self.has(Fault::EndWithoutWakeup);
                me.sending_ended = true;
                next = Self::after_end(late);
            }
            SenderStep::CheckReceiver => {
                next = if me.receiving_ended {
                    SenderStep::Close
                } else {
                    SenderStep::Done
                }
            }
            SenderStep::Close => {
                self.store_phase(words, thread, side, CLOSED);
                next = SenderStep::Shutdown;
            }
            SenderStep::Shutdown => {
                Self::shutdown(words, thread, side);
                next = SenderStep::Done;
            }
            SenderStep::Done => {}
        }
        me.sender_step = next;
        if next == SenderStep::Done {
            words.retire(thread);
        }
        sides[1 - side].wakeup |= wakes;
    }

    fn after_end(late: bool) -> SenderStep {
        if late {
            SenderStep::Publish
        } else {
            SenderStep::CheckReceiver
        }
    }

    fn shutdown(words: &mut Words, thread: usize, side: usize) {
        words.load_newest(thread, word::line(side));
        words.store(thread, word::line(side), 1, Order::AcqRel);
    }

    fn step_reader(self, state: &mut State, side: usize, choice: u8) {
        let thread = reader(side);
        let peer = 1 - side;
        let loaded = self.loads(state, side, true);
        let State { words, sides, .. } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        let me = &mut sides[side];
        let has_message = value > me.read;
        let next = match me.reader_step {
            ReaderStep::CheckLine if words.load_newest(thread, word::line(peer)) == 1 => {
                ReaderStep::LoadLastPhase
            }
            ReaderStep::CheckLine => ReaderStep::LoadTail { parked: false },
            ReaderStep::LoadTail { parked } | ReaderStep::RecheckTail { parked, .. } if has_message => {
                me.read += 1;
                if parked {
                    ReaderStep::Unpark
                } else {
                    ReaderStep::CheckLine
                }
            }
            ReaderStep::LoadTail { parked } => ReaderStep::LoadPhase { parked },
            ReaderStep::LoadPhase { .. } if value == 0 && !self.sleeps => ReaderStep::CheckLine,
            ReaderStep::LoadPhase { parked } if value == 0 => {
                if parked {
                    ReaderStep::Sleep
                } else {
                    ReaderStep::Park
                }
            }
            ReaderStep::LoadPhase { .. } if self.has(Fault::NoTailRecheck) => ReaderStep::Ended {
                cut: value & ENDED == 0,
            },
            ReaderStep::LoadPhase { parked } => ReaderStep::RecheckTail { parked, phase: value },
            ReaderStep::RecheckTail { phase, .. } | ReaderStep::LoadLastTail { phase } if !has_message => {
                ReaderStep::Ended {
                    cut: phase & ENDED == 0,
                }
            }
            ReaderStep::Park => {
                me.park_number += 1;
                words.store(thread, word::parked(side), me.park_number, Order::AcqRel);
                words.full_fence(thread);
                ReaderStep::LoadTail { parked: true }
            }
            ReaderStep::Sleep => {
                me.wakeup = false;
                ReaderStep::Unpark
            }
            ReaderStep::Unpark => {
                me.park_number += 1;
                words.store(thread, word::parked(side), me.park_number, Order::Relaxed);
                ReaderStep::CheckLine
            }
            ReaderStep::LoadLastPhase if self.has(Fault::NoLastTailCheck) => ReaderStep::Ended {
                cut: value & ENDED == 0,
            },
            ReaderStep::LoadLastPhase => ReaderStep::LoadLastTail { phase: value },
            ReaderStep::RecheckTail { .. } | ReaderStep::LoadLastTail { .. } => {
                me.read += 1;
                me.reader_step
            }
            ReaderStep::Ended { .. } => {
                me.receiving_ended = true;
                if me.sending_ended {
                    ReaderStep::Close
                } else {
                    ReaderStep::Done
                }
            }
            ReaderStep::Close => {
                self.store_phase(words, thread, side, CLOSED);
                ReaderStep::Shutdown
            }
            ReaderStep::Shutdown => {
                Self::shutdown(words, thread, side);
                ReaderStep::Done
            }
            ReaderStep::Done => ReaderStep::Done,
        };
        me.reader_step = next;
        self.check_report(state, side);
        if state.sides[side].reader_step == ReaderStep::Done {
            state.words.retire(thread);
        }
    }

    /// Compares the result with facts that the reader cannot know.
    fn check_report(self, state: &mut State, side: usize) {
        let ReaderStep::Ended { cut } = state.sides[side].reader_step else {
            return;
        };
        let (me, peer) = (state.sides[side], state.sides[1 - side]);
        // Messages that a stopped peer had not sent yet are not missed.
        state.missed |= me.read < peer.sent || !cut && me.read < self.messages[1 - side];
        state.misreported |= cut && peer.has_ended || !cut && !peer.has_ended;
    }
}

impl Model for Closing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let side = Side {
            sender_step: SenderStep::Publish,
            reader_step: ReaderStep::CheckLine,
            sent: 0,
            read: 0,
            park_number: 0,
            wakeup: false,
            sending_ended: false,
            receiving_ended: false,
            has_ended: false,
            has_closed: false,
            is_alive: true,
        };
        let uses = |side: usize, reads: bool| {
            let peer = 1 - side;
            let both = 1 << word::phase(side) | 1 << word::line(side);
            if reads {
                let of_peer = 1 << word::tail(peer) | 1 << word::phase(peer) | 1 << word::line(peer);
                // The thread that closes sees its own side's tail with the lock.
                both | of_peer | 1 << word::parked(side) | 1 << word::tail(side)
            } else {
                both | 1 << word::tail(side) | 1 << word::parked(peer)
            }
        };
        vec![State {
            words: Words::new([uses(0, false), uses(0, true), uses(1, false), uses(1, true)]),
            sides: [side; 2],
            missed: false,
            misreported: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.missed || state.misreported {
            return;
        }
        for (at, side) in state.sides.iter().enumerate() {
            if !side.is_alive {
                continue;
            }
            let choices = |reads| match self.loads(state, at, reads) {
                Some((word, _)) => {
                    let thread = if reads { reader(at) } else { sender(at) };
                    state.words.choices(thread, word)
                }
                None => 1,
            };
            if side.sender_step != SenderStep::Done {
                actions.extend((0..choices(false)).map(|choice| Action::Send(at, choice)));
            }
            // A closed line wakes a reader as a wakeup does. The kernel reports it, so the newest value
            // counts.
            let is_connected = state.sides[1 - at].is_alive && {
                let mut words = state.words.clone();
                words.load_newest(reader(at), word::line(1 - at)) == 0
            };
            let sleeps = side.reader_step == ReaderStep::Sleep && !side.wakeup && is_connected;
            if side.reader_step != ReaderStep::Done && !sleeps {
                actions.extend((0..choices(true)).map(|choice| Action::Read(at, choice)));
            }
            let has_finished = side.sending_ended && side.receiving_ended;
            if self.early_closes
                && !side.has_closed
                && !has_finished
                && side.sender_step == SenderStep::Publish
            {
                actions.push(Action::Close(at));
            }
            if self.kills && state.sides[1 - at].is_alive {
                actions.push(Action::Kill(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(side, choice) => self.step_sender(&mut state, side, choice),
            Action::Read(side, choice) => self.step_reader(&mut state, side, choice),
            Action::Close(side) => {
                let me = &mut state.sides[side];
                me.has_closed = true;
                me.sender_step = SenderStep::Close;
                me.reader_step = ReaderStep::Done;
                state.words.retire(reader(side));
            }
            Action::Kill(side) => {
                let me = &mut state.sides[side];
                (me.is_alive, me.sender_step, me.reader_step) = (false, SenderStep::Done, ReaderStep::Done);
                // Published messages stay available, and the kernel closes the line.
                state.words.store_by_kernel(word::line(side), 1);
                state.words.retire(sender(side));
                state.words.retire(reader(side));
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ALL_READ, |_, state: &State| !state.missed),
            Property::always(CUT_OFF_REPORTED, |_, state: &State| !state.misreported),
            Property::always(WOKEN, |_, state: &State| {
                [0, 1].into_iter().all(|at| {
                    let (me, peer) = (&state.sides[at], &state.sides[1 - at]);
                    let asleep = me.reader_step == ReaderStep::Sleep && !me.wakeup && peer.is_alive;
                    let at_rest = peer.sender_step == SenderStep::Done;
                    !(asleep && at_rest && (peer.has_ended || me.read < peer.sent))
                        || peer.receiving_ended && peer.sending_ended
                        || peer.has_closed
                })
            }),
            Property::sometimes(
                "both have read all messages and were notified of the end",
                |model: &Self, state: &State| {
                    [0, 1].into_iter().all(|at| {
                        state.sides[at].receiving_ended && state.sides[at].read == model.messages[1 - at]
                    })
                },
            ),
        ];
        if self.sleeps {
            properties.push(Property::sometimes(
                "a sleeping reader is woken",
                |_, state: &State| {
                    let woken = |side: &Side| side.reader_step == ReaderStep::Sleep && side.wakeup;
                    state.sides.iter().any(woken)
                },
            ));
        }
        if self.early_closes || self.kills {
            properties.push(Property::sometimes(
                "a reader is notified that it was cut off",
                |_, state: &State| {
                    let cut = |side: &Side| side.reader_step == ReaderStep::Ended { cut: true };
                    state.sides.iter().any(cut)
                },
            ));
        }
        properties
    }
}

/// For messages that were sent.
pub const ALL_READ: &str =
    "every message published before an end, a close or a kill is read before the end is reported";
/// For a stream.
pub const CUT_OFF_REPORTED: &str = "a stream that was cut off is distinguished from one that has ended";
/// For a reader that sleeps.
pub const WOKEN: &str = "no reader stays asleep when its peer ends the sending";
