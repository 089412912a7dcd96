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
    BelievesTheEmptyRing,
    /// A sender announces the end of its sending, and publishes its last message afterwards.
    EndsBeforeItPublishes,
    /// The phase is stored relaxed.
    EndsRelaxed,
    /// The phase is read relaxed.
    ReadsThePhaseRelaxed,
    /// A sender that ends wakes no sleeper.
    EndsInSilence,
    /// A side that closes forgets that it had ended its sending.
    ClosesOverTheEnd,
    /// A reader that finds its peer gone does not read the tail a last time.
    ForgetsTheLastLook,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Closing {
    /// The number of messages that each side sends.
    pub messages: [u8; 2],
    /// Readers sleep when nothing is there, instead of polling.
    pub sleeps: bool,
    /// A side may close before it has sent or read everything.
    pub closes: bool,
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
enum Sends {
    /// Publishes a message, or ends.
    Publishes,
    /// Checks whether the peer sleeps.
    Looks,
    /// Announces the end of its sending, under the lock.
    Ends,
    /// Checks whether the peer sleeps.
    EndLooks,
    /// Closes, if the other half has finished too.
    Through,
    /// Closes: stores the phase,
    Closes,
    /// and hangs up.
    HangsUp,
    Done,
}

/// The next step of a reading thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    /// Checks the line.
    Line,
    /// Reads the tail,
    Tail { parked: bool },
    /// then the phase,
    Phase { parked: bool },
    /// and the tail again.
    Again { parked: bool, phase: u8 },
    /// Announces that it sleeps.
    Parks,
    /// Sleeps.
    Sleeps,
    /// Announces that it is awake.
    Unparks,
    /// The peer is gone: reads whether it had ended,
    LastPhase,
    /// and its tail.
    LastTail { phase: u8 },
    /// Was notified of the end.
    Told { cut: bool },
    /// Closes: stores the phase,
    Closes,
    /// and hangs up.
    HangsUp,
    /// Its side has closed.
    Done,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and the checker tries all combinations"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Side {
    sends: Sends,
    reads: Reads,
    sent: u8,
    read: u8,
    number: u8,
    bell: bool,
    /// The flags of both halves, by which the second half to finish closes.
    sending_ended: bool,
    receiving_ended: bool,
    /// It has announced that it has sent everything.
    has_ended: bool,
    /// It has closed before both halves had finished.
    has_closed: bool,
    lives: bool,
}

/// The words, and both sides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sides: [Side; 2],
    /// A reader was notified of the end before it had read everything.
    missed: bool,
    /// A reader was notified of a cut although its peer had sent everything, or the other way round.
    mistold: bool,
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
    Die(usize),
}

impl Closing {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn loads(self, state: &State, side: usize, reads: bool) -> Option<(usize, Order)> {
        let peer = 1 - side;
        let phase = if self.has(Fault::ReadsThePhaseRelaxed) {
            Order::Relaxed
        } else {
            Order::Synchronises
        };
        if reads {
            return match state.sides[side].reads {
                Reads::Tail { .. } | Reads::Again { .. } | Reads::LastTail { .. } => {
                    Some((word::tail(peer), Order::Synchronises))
                }
                Reads::Phase { .. } | Reads::LastPhase => Some((word::phase(peer), phase)),
                _ => None,
            };
        }
        match state.sides[side].sends {
            Sends::Looks | Sends::EndLooks => Some((word::parked(peer), Order::Relaxed)),
            _ => None,
        }
    }

    /// Adds a bit to the phase, under the lock of its side.
    fn say(self, words: &mut Words, thread: usize, side: usize, what: u8) {
        let now = words.load_newest(thread, word::phase(side));
        let order = if self.has(Fault::EndsRelaxed) {
            Order::Relaxed
        } else {
            Order::Synchronises
        };
        if now >= CLOSED || now & what != 0 {
            return;
        }
        let kept = if self.has(Fault::ClosesOverTheEnd) { 0 } else { now };
        words.store(thread, word::phase(side), kept | what, order);
    }

    fn send(self, state: &mut State, side: usize, choice: u8) {
        let thread = sender(side);
        let loaded = self.loads(state, side, false);
        let State { words, sides, .. } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        let total = self.messages[side];
        let me = &mut sides[side];
        let late = self.has(Fault::EndsBeforeItPublishes);
        let (mut next, mut rings) = (me.sends, false);
        match me.sends {
            Sends::Publishes if late && me.sent + 1 == total && !me.has_ended => next = Sends::Ends,
            Sends::Publishes if me.sent < total => {
                me.sent += 1;
                words.store(thread, word::tail(side), me.sent, Order::Synchronises);
                if self.sleeps {
                    words.full_fence(thread);
                    next = Sends::Looks;
                }
            }
            Sends::Publishes if me.has_ended => next = Sends::Through,
            Sends::Publishes => next = Sends::Ends,
            Sends::Looks => {
                rings = value % 2 == 1;
                next = Sends::Publishes;
            }
            Sends::Ends => {
                self.say(words, thread, side, ENDED);
                me.has_ended = true;
                if self.sleeps {
                    words.full_fence(thread);
                    next = Sends::EndLooks;
                } else {
                    me.sending_ended = true;
                    next = Self::after_end(late);
                }
            }
            Sends::EndLooks => {
                rings = value % 2 == 1 && !self.has(Fault::EndsInSilence);
                me.sending_ended = true;
                next = Self::after_end(late);
            }
            Sends::Through => {
                next = if me.receiving_ended {
                    Sends::Closes
                } else {
                    Sends::Done
                }
            }
            Sends::Closes => {
                self.say(words, thread, side, CLOSED);
                next = Sends::HangsUp;
            }
            Sends::HangsUp => {
                Self::hang_up(words, thread, side);
                next = Sends::Done;
            }
            Sends::Done => {}
        }
        me.sends = next;
        if next == Sends::Done {
            words.retire(thread);
        }
        sides[1 - side].bell |= rings;
    }

    fn after_end(late: bool) -> Sends {
        if late { Sends::Publishes } else { Sends::Through }
    }

    fn hang_up(words: &mut Words, thread: usize, side: usize) {
        words.load_newest(thread, word::line(side));
        words.store(thread, word::line(side), 1, Order::Synchronises);
    }

    fn read(self, state: &mut State, side: usize, choice: u8) {
        let thread = reader(side);
        let peer = 1 - side;
        let loaded = self.loads(state, side, true);
        let State { words, sides, .. } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        let me = &mut sides[side];
        let there = value > me.read;
        let next = match me.reads {
            Reads::Line if words.load_newest(thread, word::line(peer)) == 1 => Reads::LastPhase,
            Reads::Line => Reads::Tail { parked: false },
            Reads::Tail { parked } | Reads::Again { parked, .. } if there => {
                me.read += 1;
                if parked { Reads::Unparks } else { Reads::Line }
            }
            Reads::Tail { parked } => Reads::Phase { parked },
            Reads::Phase { .. } if value == 0 && !self.sleeps => Reads::Line,
            Reads::Phase { parked } if value == 0 => {
                if parked {
                    Reads::Sleeps
                } else {
                    Reads::Parks
                }
            }
            Reads::Phase { .. } if self.has(Fault::BelievesTheEmptyRing) => Reads::Told {
                cut: value & ENDED == 0,
            },
            Reads::Phase { parked } => Reads::Again { parked, phase: value },
            Reads::Again { phase, .. } | Reads::LastTail { phase } if !there => Reads::Told {
                cut: phase & ENDED == 0,
            },
            Reads::Parks => {
                me.number += 1;
                words.store(thread, word::parked(side), me.number, Order::Synchronises);
                words.full_fence(thread);
                Reads::Tail { parked: true }
            }
            Reads::Sleeps => {
                me.bell = false;
                Reads::Unparks
            }
            Reads::Unparks => {
                me.number += 1;
                words.store(thread, word::parked(side), me.number, Order::Relaxed);
                Reads::Line
            }
            Reads::LastPhase if self.has(Fault::ForgetsTheLastLook) => Reads::Told {
                cut: value & ENDED == 0,
            },
            Reads::LastPhase => Reads::LastTail { phase: value },
            Reads::Again { .. } | Reads::LastTail { .. } => {
                me.read += 1;
                me.reads
            }
            Reads::Told { .. } => {
                me.receiving_ended = true;
                if me.sending_ended {
                    Reads::Closes
                } else {
                    Reads::Done
                }
            }
            Reads::Closes => {
                self.say(words, thread, side, CLOSED);
                Reads::HangsUp
            }
            Reads::HangsUp => {
                Self::hang_up(words, thread, side);
                Reads::Done
            }
            Reads::Done => Reads::Done,
        };
        me.reads = next;
        self.judge(state, side);
        if state.sides[side].reads == Reads::Done {
            state.words.retire(thread);
        }
    }

    /// Compares the result with facts that the reader cannot know.
    fn judge(self, state: &mut State, side: usize) {
        let Reads::Told { cut } = state.sides[side].reads else {
            return;
        };
        let (me, peer) = (state.sides[side], state.sides[1 - side]);
        // Messages that a stopped peer had not sent yet are not missed.
        state.missed |= me.read < peer.sent || !cut && me.read < self.messages[1 - side];
        state.mistold |= cut && peer.has_ended || !cut && !peer.has_ended;
    }
}

impl Model for Closing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let side = Side {
            sends: Sends::Publishes,
            reads: Reads::Line,
            sent: 0,
            read: 0,
            number: 0,
            bell: false,
            sending_ended: false,
            receiving_ended: false,
            has_ended: false,
            has_closed: false,
            lives: true,
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
            mistold: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.missed || state.mistold {
            return;
        }
        for (at, side) in state.sides.iter().enumerate() {
            if !side.lives {
                continue;
            }
            let choices = |reads| match self.loads(state, at, reads) {
                Some((word, _)) => {
                    let thread = if reads { reader(at) } else { sender(at) };
                    state.words.choices(thread, word)
                }
                None => 1,
            };
            if side.sends != Sends::Done {
                actions.extend((0..choices(false)).map(|choice| Action::Send(at, choice)));
            }
            // A closed line wakes a reader as a wakeup does. The kernel reports it, so the newest value
            // counts.
            let is_connected = state.sides[1 - at].lives && {
                let mut words = state.words.clone();
                words.load_newest(reader(at), word::line(1 - at)) == 0
            };
            let sleeps = side.reads == Reads::Sleeps && !side.bell && is_connected;
            if side.reads != Reads::Done && !sleeps {
                actions.extend((0..choices(true)).map(|choice| Action::Read(at, choice)));
            }
            let is_through = side.sending_ended && side.receiving_ended;
            if self.closes && !side.has_closed && !is_through && side.sends == Sends::Publishes {
                actions.push(Action::Close(at));
            }
            if self.kills && state.sides[1 - at].lives {
                actions.push(Action::Die(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(side, choice) => self.send(&mut state, side, choice),
            Action::Read(side, choice) => self.read(&mut state, side, choice),
            Action::Close(side) => {
                let me = &mut state.sides[side];
                me.has_closed = true;
                me.sends = Sends::Closes;
                me.reads = Reads::Done;
                state.words.retire(reader(side));
            }
            Action::Die(side) => {
                let me = &mut state.sides[side];
                (me.lives, me.sends, me.reads) = (false, Sends::Done, Reads::Done);
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
            Property::always(NOT_MISTOLD, |_, state: &State| !state.mistold),
            Property::always(RUNG, |_, state: &State| {
                [0, 1].into_iter().all(|at| {
                    let (me, peer) = (&state.sides[at], &state.sides[1 - at]);
                    let asleep = me.reads == Reads::Sleeps && !me.bell && peer.lives;
                    let at_rest = peer.sends == Sends::Done;
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
                    let rung = |side: &Side| side.reads == Reads::Sleeps && side.bell;
                    state.sides.iter().any(rung)
                },
            ));
        }
        if self.closes || self.kills {
            properties.push(Property::sometimes(
                "a reader is notified that it was cut off",
                |_, state: &State| {
                    let cut = |side: &Side| side.reads == Reads::Told { cut: true };
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
pub const NOT_MISTOLD: &str = "a stream that was cut off is distinguished from one that has ended";
/// For a reader that sleeps.
pub const RUNG: &str = "no reader stays asleep when its peer ends the sending";
