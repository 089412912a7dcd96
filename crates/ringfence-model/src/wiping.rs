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
pub const SLICE_INTACT: &str = "a slice is not wiped while it is handed out";
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
    CheckBeforeAnnouncement,
    /// The producer makes no fence although it must.
    NoProducerFence,
    /// The alarm makes no barrier for the producer.
    NoAlarmBarrier,
    /// A producer that may hand out nothing more wipes the new range, but not the one that it has replaced.
    ReplacedRangeNotWiped,
    /// A producer that releases a slice does not check whether the ring was wiped.
    NoCheckOnRelease,
    /// A long slice replaces another long one directly, and overwrites its length.
    LongReplacesLong,
    /// A producer that finds, before it hands out a long slice, that the ring was wiped still stores the
    /// length.
    LengthStoredAfterWipe,
    /// The length of a long slice is stored after the word that refers to it.
    LengthAfterRange,
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
fn decode(word: u8) -> Option<(u8, Option<u8>)> {
    let at = (word >> 2).checked_sub(1)?;
    let length = word & 3;
    Some((at, (length < 3).then_some(length)))
}

/// The producer's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ProducerStep {
    /// No call is running. A slice may be handed out.
    Idle,
    /// Before a long slice, or for good.
    ClearRange(Option<Slice>),
    FenceAfterClear(Option<Slice>, Option<Slice>),
    CheckAfterClear(Option<Slice>, Option<Slice>),
    StoreLength(Slice),
    /// Stores the word of a slice, which replaces another.
    StoreRange(Slice, Option<Slice>),
    StoreLengthLate(Slice, Option<Slice>),
    Fence(Slice, Option<Slice>),
    CheckWiped(Slice, Option<Slice>),
    CheckEarly(Slice, Option<Slice>),
    Done,
}

/// The alarm's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AlarmStep {
    StoreWiped,
    Fence,
    Barrier(Membarrier),
    LoadRange,
    LoadLength(u8),
    /// Wipes this piece, unless it is in the skipped ones (one bit each).
    WipePiece(u8, u8),
    Done,
}

/// The words, the pieces, and the state of both threads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    producer: ProducerStep,
    alarm: AlarmStep,
    /// The number of slices that were handed out.
    count: u8,
    /// The content of the producer's word.
    announced: Option<Slice>,
    /// The slice that may be written.
    handed_out: Option<Slice>,
    /// The pieces that contain data.
    dirty: u8,
    wiped_while_handed_out: bool,
}

/// One step of one thread or of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The program requests the next slice.
    Reserve(Slice),
    /// The program writes the slice.
    Write,
    /// The program releases the slice.
    Release,
    /// A thread takes its next step. A load skips this many of the stores that it may read.
    Step(usize, u8),
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
            use ProducerStep::{CheckAfterClear, CheckEarly, CheckWiped};
            let checks = matches!(
                state.producer,
                CheckWiped(..) | CheckAfterClear(..) | CheckEarly(..)
            );
            return checks.then_some(word::WIPED);
        }
        match state.alarm {
            AlarmStep::LoadRange => Some(word::RANGE),
            AlarmStep::LoadLength(_) => Some(word::LENGTH),
            _ => None,
        }
    }

    /// Returns the first step of announcing a slice.
    fn announce(self, state: &State, slice: Slice) -> ProducerStep {
        match state.announced {
            announced if !slice.long || self.has(Fault::LongReplacesLong) => {
                Self::first_store(slice, announced, self.fault)
            }
            Some(_) => ProducerStep::ClearRange(Some(slice)),
            None => ProducerStep::CheckAfterClear(None, Some(slice)),
        }
    }

    fn first_store(slice: Slice, before: Option<Slice>, fault: Option<Fault>) -> ProducerStep {
        match fault {
            Some(Fault::CheckBeforeAnnouncement) => ProducerStep::CheckEarly(slice, before),
            _ if slice.long && fault != Some(Fault::LengthAfterRange) => ProducerStep::StoreLength(slice),
            _ => ProducerStep::StoreRange(slice, before),
        }
    }

    /// The producer wipes the slice that the alarm may have skipped.
    fn wipe_late(state: &mut State, slice: Option<Slice>) {
        state.dirty &= !slice.map_or(0, Slice::pieces);
    }

    fn hand_out(state: &mut State, slice: Slice) {
        state.handed_out = Some(slice);
        state.producer = ProducerStep::Idle;
    }

    fn step_producer(self, state: &mut State, choice: u8) {
        use ProducerStep::{
            CheckAfterClear, CheckEarly, CheckWiped, ClearRange, Done, Fence, FenceAfterClear, Idle,
            StoreLength, StoreLengthLate, StoreRange,
        };
        let words = &mut state.words;
        let mut is_wiped = || words.load(PRODUCER, word::WIPED, choice, Order::AcqRel) == 1;
        state.producer = match state.producer {
            ClearRange(next) => {
                words.store(PRODUCER, word::RANGE, 0, Order::AcqRel);
                FenceAfterClear(state.announced.take(), next)
            }
            FenceAfterClear(before, next) => {
                self.fence(words);
                if self.has(Fault::NoCheckOnRelease) {
                    next.map_or(Idle, |slice| Self::first_store(slice, None, self.fault))
                } else {
                    CheckAfterClear(before, next)
                }
            }
            CheckAfterClear(before, next) => {
                let wiped = is_wiped();
                if wiped {
                    Self::wipe_late(state, before);
                }
                match next {
                    Some(_) if wiped && !self.has(Fault::LengthStoredAfterWipe) => {
                        state.count = u8::MAX;
                        Idle
                    }
                    Some(slice) => Self::first_store(slice, None, self.fault),
                    None => Idle,
                }
            }
            StoreLength(slice) => {
                words.store(PRODUCER, word::LENGTH, slice.length, Order::Relaxed);
                StoreRange(slice, state.announced)
            }
            StoreRange(slice, before) => {
                words.store(PRODUCER, word::RANGE, slice.word(), Order::AcqRel);
                state.announced = Some(slice);
                if slice.long && self.has(Fault::LengthAfterRange) {
                    StoreLengthLate(slice, before)
                } else if self.has(Fault::CheckBeforeAnnouncement) {
                    return Self::hand_out(state, slice);
                } else {
                    Fence(slice, before)
                }
            }
            StoreLengthLate(slice, before) => {
                words.store(PRODUCER, word::LENGTH, slice.length, Order::Relaxed);
                Fence(slice, before)
            }
            Fence(slice, before) => {
                self.fence(words);
                CheckWiped(slice, before)
            }
            CheckWiped(slice, before) => {
                if !is_wiped() {
                    return Self::hand_out(state, slice);
                }
                if !self.has(Fault::ReplacedRangeNotWiped) {
                    Self::wipe_late(state, before);
                }
                // It releases the new range like any other, because the alarm may have skipped it.
                state.count = u8::MAX;
                ClearRange(None)
            }
            CheckEarly(slice, before) => {
                if is_wiped() {
                    Self::wipe_late(state, before);
                    state.count = u8::MAX;
                    ClearRange(None)
                } else if slice.long {
                    StoreLength(slice)
                } else {
                    StoreRange(slice, before)
                }
            }
            Idle | Done => Done,
        };
    }

    fn fence(self, words: &mut Words) {
        if self.barriers == Barriers::Both && !self.has(Fault::NoProducerFence) {
            words.full_fence(PRODUCER);
        }
    }

    fn step_alarm(self, state: &mut State, choice: u8) {
        let words = &mut state.words;
        state.alarm = match state.alarm {
            AlarmStep::StoreWiped => {
                words.store(ALARM, word::WIPED, 1, Order::AcqRel);
                AlarmStep::Fence
            }
            AlarmStep::Fence if self.barriers == Barriers::Alarm && !self.has(Fault::NoAlarmBarrier) => {
                AlarmStep::Barrier(Membarrier::start(words, ALARM, 1 << PRODUCER))
            }
            AlarmStep::Fence => {
                words.full_fence(ALARM);
                AlarmStep::LoadRange
            }
            AlarmStep::LoadRange => {
                let range = words.load(ALARM, word::RANGE, choice, Order::AcqRel);
                match decode(range) {
                    None => AlarmStep::WipePiece(0, 0),
                    Some((at, None)) => AlarmStep::LoadLength(at),
                    Some((at, Some(length))) => Self::skip(at, length),
                }
            }
            AlarmStep::LoadLength(at) => {
                let length = words.load(ALARM, word::LENGTH, choice, Order::Relaxed);
                Self::skip(at, length)
            }
            AlarmStep::WipePiece(piece, skipped) => {
                if skipped & 1 << piece == 0 {
                    state.dirty &= !(1 << piece);
                    state.wiped_while_handed_out |= state
                        .handed_out
                        .is_some_and(|slice| slice.pieces() & 1 << piece != 0);
                }
                if piece + 1 < PIECES {
                    AlarmStep::WipePiece(piece + 1, skipped)
                } else {
                    AlarmStep::Done
                }
            }
            waits @ (AlarmStep::Barrier(_) | AlarmStep::Done) => waits,
        };
    }

    fn skip(at: u8, length: u8) -> AlarmStep {
        let long = false;
        AlarmStep::WipePiece(0, Slice { at, length, long }.pieces())
    }
}

impl Model for Wiping {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            words: Words::new([0b111, 0b111]),
            producer: ProducerStep::Idle,
            alarm: AlarmStep::StoreWiped,
            count: 0,
            announced: None,
            handed_out: None,
            dirty: (1 << PIECES) - 1,
            wiped_while_handed_out: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.producer == ProducerStep::Idle {
            if state.count < self.slices {
                for (length, long) in [(1, false), (2, false), (1, true), (2, true)] {
                    let at = state.count * 2;
                    actions.push(Action::Reserve(Slice { at, length, long }));
                }
            }
            if let Some(slice) = state.handed_out {
                if state.dirty & slice.pieces() != slice.pieces() {
                    actions.push(Action::Write);
                }
                actions.push(Action::Release);
            }
        }
        for thread in [PRODUCER, ALARM] {
            let is_runnable = match thread {
                PRODUCER => !matches!(state.producer, ProducerStep::Idle | ProducerStep::Done),
                _ => !matches!(state.alarm, AlarmStep::Barrier(_) | AlarmStep::Done),
            };
            if is_runnable {
                let choices = Self::loads(state, thread).map_or(1, |word| state.words.choices(thread, word));
                actions.extend((0..choices).map(|choice| Action::Step(thread, choice)));
            }
        }
        if matches!(state.alarm, AlarmStep::Barrier(_)) {
            actions.push(Action::Interrupt);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Reserve(slice) => {
                // The borrow of the previous slice has ended.
                state.handed_out = None;
                state.count += 1;
                state.producer = self.announce(&state, slice);
            }
            Action::Write => state.dirty |= state.handed_out?.pieces(),
            Action::Release => {
                state.handed_out = None;
                state.producer = ProducerStep::ClearRange(None);
            }
            Action::Step(PRODUCER, choice) => self.step_producer(&mut state, choice),
            Action::Step(_, choice) => self.step_alarm(&mut state, choice),
            Action::Interrupt => {
                let AlarmStep::Barrier(mut barrier) = state.alarm else {
                    return None;
                };
                barrier.interrupt(&mut state.words, ALARM, PRODUCER);
                state.alarm = AlarmStep::LoadRange;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SLICE_INTACT, |_, state: &State| !state.wiped_while_handed_out),
            Property::always(ALL_WIPED, |_, state: &State| {
                let is_over = state.alarm == AlarmStep::Done && state.producer == ProducerStep::Idle;
                let handed_out_pieces = state.handed_out.map_or(0, Slice::pieces);
                !is_over || state.dirty & !handed_out_pieces == 0
            }),
            Property::sometimes("a slice outlives the alarm", |_, state: &State| {
                let writes = |slice: Slice| state.dirty & slice.pieces() == slice.pieces();
                state.alarm == AlarmStep::Done && state.handed_out.is_some_and(writes)
            }),
            Property::sometimes("the producer stops handing out slices", |_, state: &State| {
                state.alarm == AlarmStep::Done && state.count == u8::MAX
            }),
        ]
    }
}
