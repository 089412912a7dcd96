//! A ring that is wiped while its producer has handed out a slice of it.
//!
//! The producer announces in one word which range is handed out, and the next range replaces it. A long range
//! has its length in a second word. The alarm announces that it wipes, and skips that range. Each side stores
//! its own word and then reads the other's. The producer itself wipes the parts that the alarm may have
//! skipped: when it releases a slice, and when it finds that it may hand out nothing more.
//!
//! The ring consists of six pieces, all of which contain old data. A slice has one or two pieces, and no two
//! slices start at the same piece.

use stateright::{Model, Property};

use crate::memory::{Membarrier, Memory, Order};

/// No thread wipes a slice that is being written.
pub const NOT_TOUCHED: &str = "a slice is not wiped while it is handed out";
/// The producer wipes what the alarm skips.
pub const ALL_WIPED: &str = "once an alarm is over, the ring contains only slices that are handed out";

/// The side that makes the barrier between a producer's store and its check of the alarm's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barriers {
    /// Each side makes its own.
    Both,
    /// The alarm makes it for both sides.
    Alarm,
}

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The producer checks whether the ring was wiped before it announces the slice.
    LooksFirst,
    /// The producer makes no fence although it must.
    ProducerWithoutFence,
    /// The alarm makes no barrier for the producer.
    AlarmWithoutBarrier,
    /// A producer that may hand out nothing more wipes the new range, but not the one that it has replaced.
    ForgetsWhatWasReplaced,
    /// A producer that releases a slice does not check whether the ring was wiped.
    LetsGoWithoutALook,
    /// A long slice replaces another long one directly, and overwrites its length.
    LongInPlaceOfLong,
    /// A producer that finds, before it hands out a long slice, that the ring was wiped still stores the
    /// length.
    GoesOnAfterALook,
    /// The length of a long slice is stored after the word that refers to it.
    LengthLast,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Wiping {
    /// The number of slices that are handed out, at most three.
    pub slices: u8,
    /// The side that makes the barriers.
    pub barriers: Barriers,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

const PIECES: u8 = 6;
const PRODUCER: usize = 0;
const ALARM: usize = 1;

mod word {
    pub(super) const RANGE: usize = 0;
    pub(super) const LENGTH: usize = 1;
    pub(super) const WIPED: usize = 2;
}

type Words = Memory<3, 2>;

/// A slice, or the content of a range word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slice {
    at: u8,
    length: u8,
    long: bool,
}

impl Slice {
    /// Returns a bit for each of its pieces.
    fn pieces(self) -> u8 {
        (0..self.length).map(|piece| 1 << (self.at + piece)).sum()
    }

    fn word(self) -> u8 {
        let length = if self.long { 3 } else { self.length };
        (self.at + 1) << 2 | length
    }
}

/// Decodes a range word. A length of `None` means that it is in the other word.
fn read(word: u8) -> Option<(u8, Option<u8>)> {
    let at = (word >> 2).checked_sub(1)?;
    let length = word & 3;
    Some((at, (length < 3).then_some(length)))
}

/// The producer's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Produces {
    /// No call is running. A slice may be handed out.
    Idle,
    /// Clears the range: before a long slice, or for good.
    Clears(Option<Slice>),
    ClearFences(Option<Slice>, Option<Slice>),
    LooksAfterClearing(Option<Slice>, Option<Slice>),
    StoresLength(Slice),
    /// Stores the word of a slice, which replaces another.
    Stores(Slice, Option<Slice>),
    StoresLengthLate(Slice, Option<Slice>),
    Fences(Slice, Option<Slice>),
    Looks(Slice, Option<Slice>),
    LooksEarly(Slice, Option<Slice>),
    Done,
}

/// The alarm's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Alarm {
    Begins,
    Fences,
    Barrier(Membarrier),
    Looks,
    LooksAtLength(u8),
    /// Wipes this piece, unless it is in the skipped ones (one bit each).
    Wipes(u8, u8),
    Done,
}

/// The words, the pieces, and the state of both threads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    producer: Produces,
    alarm: Alarm,
    /// The number of slices that were handed out.
    count: u8,
    /// The content of the producer's word.
    held: Option<Slice>,
    /// The slice that may be written.
    out: Option<Slice>,
    /// The pieces that contain data.
    dirty: u8,
    touched: bool,
}

/// One step of one thread or of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The program requests the next slice.
    Reserve(Slice),
    /// The program writes the slice.
    Write,
    /// The program releases the slice.
    LetGo,
    /// A thread takes its next step. A load skips this many of the stores that it may read.
    GoOn(usize, u8),
    /// The alarm's barrier interrupts the producer.
    Interrupt,
}

impl Wiping {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Returns the word that a thread loads next.
    fn loads(state: &State, thread: usize) -> Option<usize> {
        if thread == PRODUCER {
            use Produces::{Looks, LooksAfterClearing, LooksEarly};
            let looks = matches!(
                state.producer,
                Looks(..) | LooksAfterClearing(..) | LooksEarly(..)
            );
            return looks.then_some(word::WIPED);
        }
        match state.alarm {
            Alarm::Looks => Some(word::RANGE),
            Alarm::LooksAtLength(_) => Some(word::LENGTH),
            _ => None,
        }
    }

    /// Returns the first step of announcing a slice.
    fn holds(self, state: &State, slice: Slice) -> Produces {
        match state.held {
            held if !slice.long || self.has(Fault::LongInPlaceOfLong) => {
                Self::begins(slice, held, self.fault)
            }
            Some(_) => Produces::Clears(Some(slice)),
            None => Produces::LooksAfterClearing(None, Some(slice)),
        }
    }

    fn begins(slice: Slice, before: Option<Slice>, fault: Option<Fault>) -> Produces {
        match fault {
            Some(Fault::LooksFirst) => Produces::LooksEarly(slice, before),
            _ if slice.long && fault != Some(Fault::LengthLast) => Produces::StoresLength(slice),
            _ => Produces::Stores(slice, before),
        }
    }

    /// The producer wipes the slice that the alarm may have skipped.
    fn wipe_late(state: &mut State, slice: Option<Slice>) {
        state.dirty &= !slice.map_or(0, Slice::pieces);
    }

    fn hand_out(state: &mut State, slice: Slice) {
        state.out = Some(slice);
        state.producer = Produces::Idle;
    }

    fn produce(self, state: &mut State, choice: u8) {
        use Produces::{
            ClearFences, Clears, Done, Fences, Idle, Looks, LooksAfterClearing, LooksEarly, Stores,
            StoresLength, StoresLengthLate,
        };
        let words = &mut state.words;
        let mut looks = || words.load(PRODUCER, word::WIPED, choice, Order::Synchronises) == 1;
        state.producer = match state.producer {
            Clears(next) => {
                words.store(PRODUCER, word::RANGE, 0, Order::Synchronises);
                ClearFences(state.held.take(), next)
            }
            ClearFences(before, next) => {
                self.fence(words);
                if self.has(Fault::LetsGoWithoutALook) {
                    next.map_or(Idle, |slice| Self::begins(slice, None, self.fault))
                } else {
                    LooksAfterClearing(before, next)
                }
            }
            LooksAfterClearing(before, next) => {
                let is_wiped = looks();
                if is_wiped {
                    Self::wipe_late(state, before);
                }
                match next {
                    Some(_) if is_wiped && !self.has(Fault::GoesOnAfterALook) => {
                        state.count = u8::MAX;
                        Idle
                    }
                    Some(slice) => Self::begins(slice, None, self.fault),
                    None => Idle,
                }
            }
            StoresLength(slice) => {
                words.store(PRODUCER, word::LENGTH, slice.length, Order::Relaxed);
                Stores(slice, state.held)
            }
            Stores(slice, before) => {
                words.store(PRODUCER, word::RANGE, slice.word(), Order::Synchronises);
                state.held = Some(slice);
                if slice.long && self.has(Fault::LengthLast) {
                    StoresLengthLate(slice, before)
                } else if self.has(Fault::LooksFirst) {
                    return Self::hand_out(state, slice);
                } else {
                    Fences(slice, before)
                }
            }
            StoresLengthLate(slice, before) => {
                words.store(PRODUCER, word::LENGTH, slice.length, Order::Relaxed);
                Fences(slice, before)
            }
            Fences(slice, before) => {
                self.fence(words);
                Looks(slice, before)
            }
            Looks(slice, before) => {
                if !looks() {
                    return Self::hand_out(state, slice);
                }
                if !self.has(Fault::ForgetsWhatWasReplaced) {
                    Self::wipe_late(state, before);
                }
                // It releases the new range like any other, because the alarm may have skipped it.
                state.count = u8::MAX;
                Clears(None)
            }
            LooksEarly(slice, before) => {
                if looks() {
                    Self::wipe_late(state, before);
                    state.count = u8::MAX;
                    Clears(None)
                } else if slice.long {
                    StoresLength(slice)
                } else {
                    Stores(slice, before)
                }
            }
            Idle | Done => Done,
        };
    }

    fn fence(self, words: &mut Words) {
        if self.barriers == Barriers::Both && !self.has(Fault::ProducerWithoutFence) {
            words.full_fence(PRODUCER);
        }
    }

    fn wipe(self, state: &mut State, choice: u8) {
        let words = &mut state.words;
        state.alarm = match state.alarm {
            Alarm::Begins => {
                words.store(ALARM, word::WIPED, 1, Order::Synchronises);
                Alarm::Fences
            }
            Alarm::Fences if self.barriers == Barriers::Alarm && !self.has(Fault::AlarmWithoutBarrier) => {
                Alarm::Barrier(Membarrier::begin(words, ALARM, 1 << PRODUCER))
            }
            Alarm::Fences => {
                words.full_fence(ALARM);
                Alarm::Looks
            }
            Alarm::Looks => {
                let range = words.load(ALARM, word::RANGE, choice, Order::Synchronises);
                match read(range) {
                    None => Alarm::Wipes(0, 0),
                    Some((at, None)) => Alarm::LooksAtLength(at),
                    Some((at, Some(length))) => Self::leaves_out(at, length),
                }
            }
            Alarm::LooksAtLength(at) => {
                let length = words.load(ALARM, word::LENGTH, choice, Order::Relaxed);
                Self::leaves_out(at, length)
            }
            Alarm::Wipes(piece, left_out) => {
                if left_out & 1 << piece == 0 {
                    state.dirty &= !(1 << piece);
                    state.touched |= state.out.is_some_and(|slice| slice.pieces() & 1 << piece != 0);
                }
                if piece + 1 < PIECES {
                    Alarm::Wipes(piece + 1, left_out)
                } else {
                    Alarm::Done
                }
            }
            waits @ (Alarm::Barrier(_) | Alarm::Done) => waits,
        };
    }

    fn leaves_out(at: u8, length: u8) -> Alarm {
        let long = false;
        Alarm::Wipes(0, Slice { at, length, long }.pieces())
    }
}

impl Model for Wiping {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            words: Words::new([0b111, 0b111]),
            producer: Produces::Idle,
            alarm: Alarm::Begins,
            count: 0,
            held: None,
            out: None,
            dirty: (1 << PIECES) - 1,
            touched: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.producer == Produces::Idle {
            if state.count < self.slices {
                for (length, long) in [(1, false), (2, false), (1, true), (2, true)] {
                    let at = state.count * 2;
                    actions.push(Action::Reserve(Slice { at, length, long }));
                }
            }
            if let Some(slice) = state.out {
                if state.dirty & slice.pieces() != slice.pieces() {
                    actions.push(Action::Write);
                }
                actions.push(Action::LetGo);
            }
        }
        for thread in [PRODUCER, ALARM] {
            let can_go_on = match thread {
                PRODUCER => !matches!(state.producer, Produces::Idle | Produces::Done),
                _ => !matches!(state.alarm, Alarm::Barrier(_) | Alarm::Done),
            };
            if can_go_on {
                let choices = Self::loads(state, thread).map_or(1, |word| state.words.choices(thread, word));
                actions.extend((0..choices).map(|choice| Action::GoOn(thread, choice)));
            }
        }
        if matches!(state.alarm, Alarm::Barrier(_)) {
            actions.push(Action::Interrupt);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Reserve(slice) => {
                // The borrow of the previous slice has ended.
                state.out = None;
                state.count += 1;
                state.producer = self.holds(&state, slice);
            }
            Action::Write => state.dirty |= state.out?.pieces(),
            Action::LetGo => {
                state.out = None;
                state.producer = Produces::Clears(None);
            }
            Action::GoOn(PRODUCER, choice) => self.produce(&mut state, choice),
            Action::GoOn(_, choice) => self.wipe(&mut state, choice),
            Action::Interrupt => {
                let Alarm::Barrier(mut barrier) = state.alarm else {
                    return None;
                };
                barrier.interrupt(&mut state.words, ALARM, PRODUCER);
                state.alarm = Alarm::Looks;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_TOUCHED, |_, state: &State| !state.touched),
            Property::always(ALL_WIPED, |_, state: &State| {
                let is_over = state.alarm == Alarm::Done && state.producer == Produces::Idle;
                let handed_out = state.out.map_or(0, Slice::pieces);
                !is_over || state.dirty & !handed_out == 0
            }),
            Property::sometimes("a slice outlives the alarm", |_, state: &State| {
                let writes = |slice: Slice| state.dirty & slice.pieces() == slice.pieces();
                state.alarm == Alarm::Done && state.out.is_some_and(writes)
            }),
            Property::sometimes("the producer stops handing out slices", |_, state: &State| {
                state.alarm == Alarm::Done && state.count == u8::MAX
            }),
        ]
    }
}
