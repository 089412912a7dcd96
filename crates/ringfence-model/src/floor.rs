//! A reader that may be overtaken, and the publisher that overtakes it.
//!
//! The publisher stores the *floor*, makes a release fence, and only then overwrites the cells below it. The
//! reader copies, makes an acquire fence, reads the floor, and discards copies from below the floor. An
//! overtaken reader restarts at a *mark*: the position of a record and the number of messages before it. A
//! mark consists of two words without a lock, and each is stored once per lap.
//!
//! A record has one or two cells. Each cell contains the number of its message. So the model sees what the
//! reader cannot see: that a message is torn, or that it differs from the one that the reader counts.

use stateright::{Model, Property};

use crate::memory::{Memory, Order};

const PUBLISHER: usize = 0;
const READER: usize = 1;

/// The number of cells of the ring.
const CELLS: u8 = 4;
/// The number of marks. The ring has as many parts.
const MARKS: usize = 2;
/// The minimum distance between marks.
const PART: u8 = CELLS / 2;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The publisher makes no release fence after it has stored the floor.
    NoFenceAfterFloor,
    /// It writes before it stores the floor.
    WriteBeforeFloor,
    /// The reader makes no acquire fence before it reads the floor.
    NoFenceBeforeFloorCheck,
    /// The reader reads the floor only before it copies, and not after.
    FloorCheckBeforeCopy,
    /// The reader does not check whether a mark was overwritten in the meantime.
    NoMarkRecheck,
    /// The reader restarts at a mark below the floor.
    MarkBelowFloor,
    /// The publisher stores a mark's position before its number.
    PositionBeforeNumber,
    /// The position of a mark is stored relaxed.
    MarkStoredRelaxed,
    /// The position of a mark is read relaxed.
    MarkLoadedRelaxed,
    /// A mark is written before the floor has passed the previous mark in the same place.
    MarkBeforeFloor,
    /// The floor moves to the tail, and leaves the reader no mark.
    FloorPastMarks,
    /// The reader judges a header before it has read the floor.
    HeaderCheckBeforeFloor,
    /// The reader reads the floor before the tail.
    FloorBeforeTail,
    /// The floor is stored relaxed, so a mark above it may be invisible.
    FloorRelaxed,
}

/// The messages that the reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Every message that it can read in time.
    BestEffort,
    /// Only the last message.
    Latest,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// The sizes of the messages, in cells.
    pub sizes: &'static [u8],
    /// The messages that the reader wants.
    pub delivery: Delivery,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    use super::{CELLS, MARKS};

    pub(super) const TAIL: usize = 0;
    pub(super) const FLOOR: usize = 1;
    pub(super) const fn position(mark: usize) -> usize {
        2 + 2 * mark
    }
    pub(super) const fn number(mark: usize) -> usize {
        3 + 2 * mark
    }
    pub(super) const fn cell(at: u8) -> usize {
        2 + 2 * MARKS + (at % CELLS) as usize
    }
    pub(super) const ALL: usize = 2 + 2 * MARKS + CELLS as usize;
}

type Words = Memory<{ word::ALL }, 2>;

/// The publisher's next step for the current message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PublisherStep {
    /// If it must move.
    StoreFloor,
    StoreMark(MarkWord),
    WriteCell(u8),
    /// [`Fault::WriteBeforeFloor`], [`Fault::MarkBeforeFloor`].
    StoreFloorLate,
    StoreTail,
    /// Has published all messages, or was killed.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum MarkWord {
    Number,
    Position,
}

/// A position, and the number of messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mark {
    position: u8,
    number: u8,
}

/// The reader's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReaderStep {
    LoadTail,
    // To check that the tail is plausible.
    LoadFloor,
    // Loads the header at `at`, `passed` messages behind the head, on the way to the last record.
    Walk { at: u8, passed: u8 },
    // Reads the floor after reaching the last record.
    CheckWalk { last: u8, passed: u8 },
    LoadHeader,
    LoadSecondCell { first: u8 },
    // Reads the floor, and hands out the copy.
    Validate { first: u8, second: u8 },
    // Reads the floor after an implausible value.
    CheckImplausible,
    RestartFloor,
    RestartTail,
    RestartMark(usize, MarkWord),
    // Reads the floor once more, and moves to a mark.
    RestartCheck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Publisher {
    next: PublisherStep,
    /// The number of messages that were published.
    sent: u8,
    tail: u8,
    floor: u8,
    marks: [Mark; MARKS],
    /// The number of marks that were set.
    count: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    next: ReaderStep,
    head: u8,
    /// The number of messages before the head, as it counts.
    passed: u8,
    tail: u8,
    /// The floor as it last read it.
    floor: u8,
    marks: [Mark; MARKS],
    /// The number of restarts since the settling.
    restarts: u8,
}

/// The violation that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Violation {
    /// The reader handed out a torn message, or one other than the one that it counts.
    Torn,
    /// It reported the ring as corrupt.
    FalseAccusation,
    /// Its count of messages before its head is wrong.
    Miscounted,
}

/// The words, and the state of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    publisher: Publisher,
    reader: Reader,
    /// The publisher has stopped, and all its stores are visible.
    settled: bool,
    violation: Option<Violation>,
    /// The last message was handed out.
    handed_out_last: bool,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The publisher takes its next step.
    Publish,
    /// The publisher is killed.
    Kill,
    /// The reader takes its next step. A load reads the oldest store that it may (0), or a newer one.
    Read(u8),
    /// The stores of a stopped publisher become visible.
    Settle,
}

/// Returns the content of a record's cell: the message's number, its size, and the index of the cell.
const fn cell(number: u8, size: u8, nth: u8) -> u8 {
    number << 2 | (size - 1) << 1 | nth
}

/// Returns the size in a header, or `None` if it is no header.
const fn size_in(header: u8) -> Option<u8> {
    if header < 4 || header & 1 == 1 {
        return None;
    }
    Some((header >> 1 & 1) + 1)
}

impl Floor {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Returns the number of messages before a position at which a record starts.
    fn number_at(self, position: u8) -> Option<u8> {
        let mut at = 0;
        for (number, size) in (0..).zip(self.sizes) {
            if at == position {
                return Some(number);
            }
            at += size;
        }
        (at == position).then(|| u8::try_from(self.sizes.len()).expect("few messages"))
    }
}

/// The publisher's steps.
impl Floor {
    /// Returns the new floor that the next message needs, if it must move.
    fn goal(self, me: &Publisher) -> Option<u8> {
        let end = me.tail + self.sizes[usize::from(me.sent)];
        let goal = end.saturating_sub(CELLS);
        if goal <= me.floor {
            return None;
        }
        if self.has(Fault::FloorPastMarks) {
            return Some(me.tail);
        }
        let marks = me.marks.iter().map(|mark| mark.position);
        let first = marks.filter(|at| (goal..=me.tail).contains(at)).min();
        Some(first.expect("each part has a mark"))
    }

    fn needs_mark(me: &Publisher) -> bool {
        me.tail >= me.marks[usize::from(me.count - 1) % MARKS].position + PART
    }

    /// Returns the step after the floor.
    fn after_floor(self, me: &Publisher) -> PublisherStep {
        if !Self::needs_mark(me) {
            PublisherStep::WriteCell(0)
        } else if self.has(Fault::PositionBeforeNumber) {
            PublisherStep::StoreMark(MarkWord::Position)
        } else {
            PublisherStep::StoreMark(MarkWord::Number)
        }
    }

    /// Returns the first step for the next message.
    fn next_message(self, me: &Publisher) -> PublisherStep {
        if usize::from(me.sent) == self.sizes.len() {
            PublisherStep::Done
        } else if self.goal(me).is_some()
            && !self.has(Fault::WriteBeforeFloor)
            && !self.has(Fault::MarkBeforeFloor)
        {
            PublisherStep::StoreFloor
        } else {
            self.after_floor(me)
        }
    }

    fn move_floor(self, words: &mut Words, me: &mut Publisher) {
        let Some(floor) = self.goal(me) else { return };
        me.floor = floor;
        let order = if self.has(Fault::FloorRelaxed) {
            Order::Relaxed
        } else {
            Order::AcqRel
        };
        words.store(PUBLISHER, word::FLOOR, floor, order);
        if !self.has(Fault::NoFenceAfterFloor) {
            words.release_fence(PUBLISHER);
        }
    }

    fn step_publisher(self, words: &mut Words, me: &mut Publisher) {
        let size = self.sizes.get(usize::from(me.sent)).copied().unwrap_or(0);
        me.next = match me.next {
            PublisherStep::StoreFloor => {
                self.move_floor(words, me);
                self.after_floor(me)
            }
            PublisherStep::StoreMark(which) => return self.store_mark(words, me, which),
            PublisherStep::WriteCell(nth) => {
                let value = cell(me.sent + 1, size, nth);
                words.store(PUBLISHER, word::cell(me.tail + nth), value, Order::Relaxed);
                if nth + 1 < size {
                    PublisherStep::WriteCell(nth + 1)
                } else if self.has(Fault::WriteBeforeFloor) && self.goal(me).is_some() {
                    PublisherStep::StoreFloorLate
                } else {
                    PublisherStep::StoreTail
                }
            }
            PublisherStep::StoreFloorLate => {
                self.move_floor(words, me);
                if self.has(Fault::MarkBeforeFloor) {
                    PublisherStep::WriteCell(0)
                } else {
                    PublisherStep::StoreTail
                }
            }
            PublisherStep::StoreTail => {
                me.tail += size;
                me.sent += 1;
                words.store(PUBLISHER, word::TAIL, me.tail, Order::AcqRel);
                self.next_message(me)
            }
            PublisherStep::Done => PublisherStep::Done,
        };
        if me.next == PublisherStep::Done {
            words.retire(PUBLISHER);
        }
    }

    fn store_mark(self, words: &mut Words, me: &mut Publisher, which: MarkWord) {
        let slot = usize::from(me.count) % MARKS;
        let is_last = match which {
            MarkWord::Number => {
                words.store(PUBLISHER, word::number(slot), me.sent, Order::Relaxed);
                self.has(Fault::PositionBeforeNumber)
            }
            MarkWord::Position => {
                let order = if self.has(Fault::MarkStoredRelaxed) {
                    Order::Relaxed
                } else {
                    Order::AcqRel
                };
                words.store(PUBLISHER, word::position(slot), me.tail, order);
                !self.has(Fault::PositionBeforeNumber)
            }
        };
        me.next = match which {
            _ if is_last => {
                me.marks[slot] = Mark {
                    position: me.tail,
                    number: me.sent,
                };
                me.count += 1;
                if self.has(Fault::MarkBeforeFloor) && self.goal(me).is_some() {
                    PublisherStep::StoreFloorLate
                } else {
                    PublisherStep::WriteCell(0)
                }
            }
            MarkWord::Number => PublisherStep::StoreMark(MarkWord::Position),
            MarkWord::Position => PublisherStep::StoreMark(MarkWord::Number),
        };
    }
}

/// The reader's steps.
impl Floor {
    /// Returns the word that it loads next, and the load's ordering.
    fn loads(self, me: &Reader) -> (usize, Order) {
        match me.next {
            ReaderStep::LoadTail | ReaderStep::RestartTail => (word::TAIL, Order::AcqRel),
            ReaderStep::LoadFloor | ReaderStep::RestartFloor => (word::FLOOR, Order::AcqRel),
            ReaderStep::Walk { at, .. } => (word::cell(at), Order::Relaxed),
            ReaderStep::LoadHeader => (word::cell(me.head), Order::Relaxed),
            ReaderStep::LoadSecondCell { .. } => (word::cell(me.head + 1), Order::Relaxed),
            ReaderStep::CheckWalk { .. }
            | ReaderStep::Validate { .. }
            | ReaderStep::CheckImplausible
            | ReaderStep::RestartCheck => (word::FLOOR, Order::Relaxed),
            ReaderStep::RestartMark(mark, MarkWord::Position) if self.has(Fault::MarkLoadedRelaxed) => {
                (word::position(mark), Order::Relaxed)
            }
            ReaderStep::RestartMark(mark, MarkWord::Position) => (word::position(mark), Order::AcqRel),
            ReaderStep::RestartMark(mark, MarkWord::Number) => (word::number(mark), Order::Relaxed),
        }
    }

    /// Whether this step reads the floor and then judges the copy.
    fn is_check(next: ReaderStep) -> bool {
        matches!(
            next,
            ReaderStep::CheckWalk { .. }
                | ReaderStep::Validate { .. }
                | ReaderStep::CheckImplausible
                | ReaderStep::RestartCheck
        )
    }

    fn step_reader(self, state: &mut State, choice: u8) {
        let State {
            words, reader: me, ..
        } = state;
        let (word, order) = self.loads(me);
        let value = words.load(READER, word, choice, order);
        match me.next {
            ReaderStep::LoadTail if self.has(Fault::FloorBeforeTail) => {
                me.tail = value;
                self.check_tail(state);
            }
            ReaderStep::LoadTail => {
                me.tail = value;
                me.next = ReaderStep::LoadFloor;
            }
            ReaderStep::LoadFloor => {
                me.floor = value;
                if self.has(Fault::FloorBeforeTail) {
                    me.next = ReaderStep::LoadTail;
                } else {
                    self.check_tail(state);
                }
            }
            ReaderStep::Walk { .. } | ReaderStep::CheckWalk { .. } => self.step_walk(state, value),
            ReaderStep::LoadHeader
            | ReaderStep::LoadSecondCell { .. }
            | ReaderStep::Validate { .. }
            | ReaderStep::CheckImplausible => {
                self.step_copy(state, value);
            }
            _ => self.step_restart(state, value),
        }
        // The fence comes before the load that judges, and no other thread sees it. So it is not a separate
        // step.
        if Self::is_check(state.reader.next) && !self.has(Fault::NoFenceBeforeFloorCheck) {
            state.words.acquire_fence(READER);
        }
    }

    /// Judges the tail. One that is more than a ring above the floor is invalid.
    fn check_tail(self, state: &mut State) {
        let me = &mut state.reader;
        if me.tail.saturating_sub(me.floor) > CELLS {
            state.violation = Some(Violation::FalseAccusation);
        }
        me.next = match self.delivery {
            _ if me.head >= me.tail => self.first_step(),
            Delivery::BestEffort => ReaderStep::LoadHeader,
            Delivery::Latest => ReaderStep::Walk {
                at: me.head,
                passed: 0,
            },
        };
    }

    fn first_step(self) -> ReaderStep {
        if self.has(Fault::FloorBeforeTail) {
            ReaderStep::LoadFloor
        } else {
            ReaderStep::LoadTail
        }
    }

    fn step_walk(self, state: &mut State, value: u8) {
        let me = &mut state.reader;
        match me.next {
            ReaderStep::Walk { at, passed } => {
                me.next = match size_in(value) {
                    Some(size) if at + size == me.tail => ReaderStep::CheckWalk { last: at, passed },
                    Some(size) if at + size < me.tail => ReaderStep::Walk {
                        at: at + size,
                        passed: passed + 1,
                    },
                    _ => ReaderStep::CheckImplausible,
                }
            }
            ReaderStep::CheckWalk { last, passed } => {
                if value <= me.head {
                    me.head = last;
                    me.passed += passed;
                    me.next = ReaderStep::LoadHeader;
                } else {
                    me.next = ReaderStep::RestartFloor;
                }
                self.check_count(state);
            }
            _ => {}
        }
    }

    fn step_copy(self, state: &mut State, value: u8) {
        let me = &mut state.reader;
        match me.next {
            ReaderStep::LoadHeader => {
                me.next = match size_in(value) {
                    Some(size) if me.head + size > me.tail => ReaderStep::CheckImplausible,
                    Some(1) => ReaderStep::Validate {
                        first: value,
                        second: value | 1,
                    },
                    Some(_) => ReaderStep::LoadSecondCell { first: value },
                    None => ReaderStep::CheckImplausible,
                };
                if me.next == ReaderStep::CheckImplausible && self.has(Fault::HeaderCheckBeforeFloor) {
                    state.violation = Some(Violation::FalseAccusation);
                }
            }
            ReaderStep::LoadSecondCell { first } => me.next = ReaderStep::Validate { first, second: value },
            ReaderStep::Validate { first, second } => {
                let floor = if self.has(Fault::FloorCheckBeforeCopy) {
                    me.floor
                } else {
                    value
                };
                if floor <= me.head {
                    self.hand_out(state, first, second);
                } else {
                    me.next = ReaderStep::RestartFloor;
                }
            }
            _ if value <= me.head => state.violation = Some(Violation::FalseAccusation),
            _ => me.next = ReaderStep::RestartFloor,
        }
    }

    fn hand_out(self, state: &mut State, first: u8, second: u8) {
        let me = &mut state.reader;
        let size = size_in(first).expect("checked before");
        let expected = me.passed + 1;
        if first != cell(expected, size, 0) || second != cell(expected, size, 1) {
            state.violation = Some(Violation::Torn);
        }
        me.head += size;
        me.passed += 1;
        me.next = self.first_step();
        state.handed_out_last = usize::from(me.passed) == self.sizes.len();
        self.check_count(state);
    }

    fn check_count(self, state: &mut State) {
        let me = &state.reader;
        if state.violation.is_none() && self.number_at(me.head) != Some(me.passed) {
            state.violation = Some(Violation::Miscounted);
        }
    }

    fn step_restart(self, state: &mut State, value: u8) {
        let me = &mut state.reader;
        me.next = match me.next {
            ReaderStep::RestartFloor => {
                me.floor = value;
                me.restarts += u8::from(state.settled);
                ReaderStep::RestartTail
            }
            ReaderStep::RestartTail => {
                me.tail = value;
                ReaderStep::RestartMark(0, MarkWord::Position)
            }
            ReaderStep::RestartMark(mark, MarkWord::Position) => {
                me.marks[mark].position = value;
                ReaderStep::RestartMark(mark, MarkWord::Number)
            }
            ReaderStep::RestartMark(mark, MarkWord::Number) => {
                me.marks[mark].number = value;
                if mark + 1 < MARKS {
                    ReaderStep::RestartMark(mark + 1, MarkWord::Position)
                } else {
                    ReaderStep::RestartCheck
                }
            }
            _ => {
                self.go_to_mark(state, value);
                return;
            }
        };
    }

    fn go_to_mark(self, state: &mut State, value: u8) {
        let me = &mut state.reader;
        let floor = if self.has(Fault::NoMarkRecheck) {
            me.floor
        } else {
            value
        };
        let (head, tail) = (me.head, me.tail);
        let any = self.has(Fault::MarkBelowFloor);
        let is_whole = |mark: &&Mark| (any || mark.position >= floor) && mark.position <= tail;
        let whole = me
            .marks
            .iter()
            .filter(is_whole)
            .filter(|mark| mark.position > head);
        let mark = match self.delivery {
            Delivery::BestEffort => whole.min_by_key(|mark| mark.position),
            Delivery::Latest => whole.max_by_key(|mark| mark.position),
        };
        if let Some(mark) = mark {
            (me.head, me.passed) = (mark.position, mark.number);
            self.check_count(state);
        } else if me.floor == value && value > head {
            // The floor did not move, so an honest publisher has a mark above it.
            state.violation = Some(Violation::FalseAccusation);
        }
        let me = &mut state.reader;
        me.next = self.first_step();
        // Values of this attempt are not used later.
        me.floor = 0;
        me.marks = [Mark {
            position: 0,
            number: 0,
        }; MARKS];
    }
}

impl Model for Floor {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mark = Mark {
            position: 0,
            number: 0,
        };
        let mut publisher = Publisher {
            next: PublisherStep::Done,
            sent: 0,
            tail: 0,
            floor: 0,
            marks: [mark; MARKS],
            // The first is the mark of the ring's start, which words of zeros already represent.
            count: 1,
        };
        publisher.next = self.next_message(&publisher);
        let all = (1 << word::ALL) - 1;
        vec![State {
            words: Words::new([all, all]),
            publisher,
            reader: Reader {
                next: self.first_step(),
                head: 0,
                passed: 0,
                tail: 0,
                floor: 0,
                marks: [mark; MARKS],
                restarts: 0,
            },
            settled: false,
            violation: None,
            handed_out_last: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // States after a violation are not explored.
        if state.violation.is_some() {
            return;
        }
        if state.publisher.next != PublisherStep::Done {
            actions.extend([Action::Publish, Action::Kill]);
        } else if !state.settled {
            actions.push(Action::Settle);
        }
        let (word, _) = self.loads(&state.reader);
        actions.extend((0..state.words.choices(READER, word)).map(Action::Read));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Publish => self.step_publisher(&mut state.words, &mut state.publisher),
            Action::Kill => {
                state.publisher.next = PublisherStep::Done;
                state.words.retire(PUBLISHER);
            }
            Action::Read(choice) => self.step_reader(&mut state, choice),
            Action::Settle => {
                state.words.settle(READER);
                state.settled = true;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TORN, |_, state: &State| {
                state.violation != Some(Violation::Torn)
            }),
            Property::always(EXACT_COUNT, |_, state: &State| {
                state.violation != Some(Violation::Miscounted)
            }),
            Property::always(NO_FALSE_ACCUSATION, |_, state: &State| {
                state.violation != Some(Violation::FalseAccusation)
            }),
            Property::always(PROGRESS, |_, state: &State| state.reader.restarts <= 1),
            Property::sometimes("an overtaken reader continues", |model: &Self, state: &State| {
                let from = model.sizes.iter().map(|size| i32::from(*size)).sum::<i32>() - 1;
                state.reader.next == ReaderStep::RestartFloor && i32::from(state.publisher.tail) >= from
            }),
            Property::sometimes("the last message is handed out", |_, state: &State| {
                state.handed_out_last
            }),
        ]
    }
}

/// For best-effort and latest readers.
pub const NEVER_TORN: &str = "a torn message is never handed out";
/// For their count.
pub const EXACT_COUNT: &str = "messages received and lost add up to the sequence number minus the start";
/// For an honest publisher.
pub const NO_FALSE_ACCUSATION: &str = "an honest publisher's ring is never reported as corrupt";
/// Past events do not prevent a reader from reading.
pub const PROGRESS: &str = "once the publisher has stopped, a reader restarts at most once";
