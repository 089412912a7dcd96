//! A reader that subscribes while the publisher continues.
//!
//! The publisher's sending thread takes no lock. It has a copy of the list of readers, and refreshes it when
//! the generation has changed. The admitting thread enters a position, increments the generation, makes a
//! full fence, and reads the *intent*. The sending thread stores its intent (the next position of the floor),
//! makes a full fence, and reads the generation. So at least one of the two sees the other.
//!
//! The admitting thread and the new reader alternate by the messages of the handshake, which synchronize
//! them. So they are one thread here.
//!
//! All messages have the size of one cell, so a position is also a sequence number, and each record has a
//! mark.

use stateright::{Model, Property};

use crate::memory::{Membarrier, Memory, Order};

/// The maximum number of new readers.
pub const MAX_READERS: usize = 2;
const SENDER: usize = 0;
/// The number of cells of the ring.
const CELLS: u8 = 2;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The admitting thread makes no fence between its entry and its check of the intent.
    NoFenceAfterEntry,
    /// It checks the intent only before it has entered the position, and not after.
    IntentCheckedBeforeEntry,
    /// It increments the generation before it has entered the position.
    GenerationBeforeEntry,
    /// The sender makes no fence between its intent and its check of the generation.
    NoFenceAfterIntent,
    /// The sender checks the generation, and then stores its intent.
    IntentAfterGenerationCheck,
    /// The sender copies the list, and then records the generation.
    ListBeforeGeneration,
    /// The new reader is listed as active before it has stored its starting position.
    ActiveBeforeHead,
    /// The new reader stores its head before it has copied the message.
    HeadBeforeCopy,
    /// 'Now' means the time of the first check instead of the time of the admission.
    StartAtFirstCheck,
    /// The floor's copy of the list and the wakeups share one record of the generation.
    SharedGeneration,
    /// The sender checks for a changed list before its fence instead of after.
    ListCheckBeforeFence,
    /// A new reader that cannot issue a barrier is admitted without the publisher's barrier.
    NoAdmissionBarrier,
    /// The first check of a list with such a reader has no fence.
    NoFenceAtFirstCheck,
}

/// The starting point of the new reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StartFrom {
    /// The next message that is sent.
    Now,
    /// The oldest message in the ring.
    Oldest,
    /// The last message.
    Latest,
}

/// Whether new readers sleep, and the side that makes the fences in that case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeScheme {
    /// They poll.
    None,
    /// The publisher makes a fence after each publication.
    PublisherFences,
    /// The new reader issues a membarrier.
    ReaderMembarrier,
    /// The new reader cannot issue one, though the publisher could. So the publisher makes fences from the
    /// new reader's admission on.
    FencesSinceAdmission,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// The number of new readers. The second one only changes the list: it enters at the start of the ring,
    /// and leaves if that was overwritten.
    pub new_readers: usize,
    /// The total number of messages.
    pub messages: u8,
    /// The number of messages that the ring contains at the start.
    pub before: u8,
    /// The starting point of the new readers.
    pub from: StartFrom,
    /// Whether new readers sleep.
    pub wake_scheme: WakeScheme,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    use super::{CELLS, MAX_READERS};

    pub(super) const TAIL: usize = 0;
    pub(super) const FLOOR: usize = 1;
    pub(super) const INTENT: usize = 2;
    pub(super) const GENERATION: usize = 3;
    pub(super) const fn cell(position: u8) -> usize {
        4 + (position % CELLS) as usize
    }
    /// The new reader's entry in the list. Accessed under the lock only.
    pub(super) const fn entry(reader: usize) -> usize {
        4 + CELLS as usize + reader
    }
    pub(super) const fn head(reader: usize) -> usize {
        4 + CELLS as usize + MAX_READERS + reader
    }
    pub(super) const fn parked(reader: usize) -> usize {
        4 + CELLS as usize + 2 * MAX_READERS + reader
    }
    pub(super) const ALL: usize = 4 + CELLS as usize + 3 * MAX_READERS;
}

type Words = Memory<{ word::ALL }, { 1 + MAX_READERS }>;

/// An entry, decoded from its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    /// No entry.
    None,
    /// An entry that keeps no position yet.
    Entered,
    /// The floor must not pass this position.
    Reserved(u8),
    /// The same, and the reader's own word has its read position.
    Active(u8),
}

impl Entry {
    fn word(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Entered => 1,
            Self::Reserved(position) => 2 + 2 * position,
            Self::Active(position) => 3 + 2 * position,
        }
    }

    fn from_word(word: u8) -> Self {
        match word {
            0 => Self::None,
            1 => Self::Entered,
            word if word % 2 == 0 => Self::Reserved(word / 2 - 1),
            word => Self::Active(word / 2 - 1),
        }
    }
}

/// The head of a reader for which the sender does not wait.
const NEVER: u8 = u8::MAX;

/// A reader, as the sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct KnownReader {
    entry: Entry,
    head: u8,
}

/// The sender's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SenderStep {
    /// Before the floor moves.
    LoadGeneration,
    CopyList,
    /// [`Fault::ListBeforeGeneration`].
    LoadGenerationLate,
    LoadHead(u8),
    /// Includes a fence.
    StoreIntent,
    RecheckGeneration,
    /// [`Fault::IntentAfterGenerationCheck`].
    StoreIntentLate,
    StoreFloor,
    WriteCell,
    StoreTail,
    /// If the readers need one.
    Fence,
    CheckList,
    CopyWakerList,
    /// For the first list that needs fences.
    FenceAfterList,
    LoadParked(u8),
    Wake(u8),
    Done,
}

/// The next step of the new reader, or of the thread that admits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReaderStep {
    Enter,
    LoadFloor,
    LoadTail,
    /// Also chooses a position.
    LoadIntent,
    Reserve,
    /// Sets the generation to this value.
    PublishReservation(u8),
    RecheckIntent,
    /// The head is the reserved position.
    StoreFirstHead,
    Activate,
    /// Sets the generation to this value.
    PublishActivation(u8),
    /// The publisher's barrier for a reader that cannot issue one.
    AdmitBarrier,
    InAdmitBarrier(Membarrier),
    /// Reads the tail, and moves to the starting point.
    LoadStart,
    StoreStart,
    Poll,
    Copy,
    StoreHead,
    /// Includes a fence.
    Park,
    /// A fence or a membarrier.
    Barrier,
    InBarrier(Membarrier),
    Recheck,
    Sleep,
    Unpark,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sender {
    next: SenderStep,
    sent: u8,
    floor: u8,
    goal: u8,
    /// The generation of its copy of the list.
    generation: u8,
    /// Its copy of the list.
    known: [KnownReader; MAX_READERS],
    /// The generation up to which the wakeups know the list.
    wakers_generation: u8,
    /// The readers that may need a wakeup, one bit each.
    candidates: u8,
    woken: [u8; MAX_READERS],
    /// It makes a fence after each publication.
    always_fences: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    next: ReaderStep,
    floor: u8,
    tail: u8,
    /// Its starting position, and then its read position.
    head: u8,
    park_number: u8,
    wakeup: bool,
    /// The number of messages whose sending had started when it was admitted.
    sent_at_admission: Option<u8>,
}

/// The violation that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Violation {
    /// A message was overwritten before it was read.
    Overwritten,
    /// An honest reader was accused of a protocol violation.
    FalseAccusation,
    /// A message that was sent after the admission is missing.
    Missing,
}

/// The words, and the state of each thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sender: Sender,
    readers: [Reader; MAX_READERS],
    /// The number of changes of the list. Accessed under its lock.
    changes: u8,
    violation: Option<Violation>,
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread takes its next step. A load reads the oldest store that it may (0), or a newer one.
    Step(usize, u8),
    /// The new reader's membarrier interrupts the sender.
    Interrupt(usize),
}

impl Admission {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Returns the word that the thread loads next, and the load's ordering.
    fn loads(state: &State, thread: usize) -> Option<(usize, Order)> {
        use Order::{AcqRel, Relaxed};
        if thread == SENDER {
            return match state.sender.next {
                SenderStep::LoadGeneration
                | SenderStep::RecheckGeneration
                | SenderStep::LoadGenerationLate
                | SenderStep::CheckList => Some((word::GENERATION, AcqRel)),
                SenderStep::LoadHead(at) => Some((word::head(at.into()), AcqRel)),
                SenderStep::LoadParked(at) => Some((word::parked(at.into()), Relaxed)),
                _ => None,
            };
        }
        let me = &state.readers[thread - 1];
        match me.next {
            ReaderStep::LoadFloor => Some((word::FLOOR, AcqRel)),
            ReaderStep::LoadTail | ReaderStep::LoadStart | ReaderStep::Poll | ReaderStep::Recheck => {
                Some((word::TAIL, AcqRel))
            }
            ReaderStep::LoadIntent | ReaderStep::RecheckIntent => Some((word::INTENT, Relaxed)),
            ReaderStep::Copy => Some((word::cell(me.head), Relaxed)),
            _ => None,
        }
    }

    fn is_runnable(state: &State, thread: usize) -> bool {
        if thread == SENDER {
            return state.sender.next != SenderStep::Done;
        }
        let me = &state.readers[thread - 1];
        match me.next {
            ReaderStep::Sleep => me.wakeup,
            ReaderStep::Done | ReaderStep::InAdmitBarrier(_) | ReaderStep::InBarrier(_) => false,
            _ => true,
        }
    }
}

/// The sender's steps.
impl Admission {
    /// Returns the first step for the next message.
    fn next_message(self, me: &mut Sender) -> SenderStep {
        if me.sent == self.messages {
            return SenderStep::Done;
        }
        me.goal = (me.sent + 1).saturating_sub(CELLS);
        if me.goal <= me.floor {
            SenderStep::WriteCell
        } else if self.has(Fault::ListBeforeGeneration) {
            SenderStep::CopyList
        } else {
            SenderStep::LoadGeneration
        }
    }

    /// Returns the step after the list is known: reads the heads if the known ones leave no space.
    fn after_list(self, me: &Sender) -> SenderStep {
        if me.known.iter().all(|reader| reader.head >= me.goal) {
            return self.intent();
        }
        let active = |at: usize| matches!(me.known[at].entry, Entry::Active(_)) && me.known[at].head != NEVER;
        match (0..MAX_READERS).find(|at| active(*at)) {
            Some(at) => SenderStep::LoadHead(narrow(at)),
            None => self.retry(),
        }
    }

    /// Returns the step after no space was found: checks again.
    fn retry(self) -> SenderStep {
        if self.has(Fault::ListBeforeGeneration) {
            SenderStep::CopyList
        } else {
            SenderStep::LoadGeneration
        }
    }

    fn intent(self) -> SenderStep {
        if self.has(Fault::IntentAfterGenerationCheck) {
            SenderStep::RecheckGeneration
        } else {
            SenderStep::StoreIntent
        }
    }

    fn step_sender(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, SENDER);
        let State {
            words, sender: me, ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(SENDER, word, choice, order));
        me.next = match me.next {
            SenderStep::LoadGeneration if value == me.generation => self.after_list(me),
            SenderStep::LoadGeneration => {
                me.generation = value;
                SenderStep::CopyList
            }
            SenderStep::CopyList => {
                Self::copy_list(words, me);
                if self.has(Fault::ListBeforeGeneration) {
                    SenderStep::LoadGenerationLate
                } else {
                    self.after_list(me)
                }
            }
            SenderStep::LoadGenerationLate => {
                me.generation = value;
                self.after_list(me)
            }
            SenderStep::LoadHead(at) => {
                let reader = &mut me.known[usize::from(at)];
                if value < reader.head || value > me.sent {
                    state.violation = Some(Violation::FalseAccusation);
                }
                reader.head = value;
                let active = |at: &usize| matches!(me.known[*at].entry, Entry::Active(_));
                match (usize::from(at) + 1..MAX_READERS).find(active) {
                    Some(at) => SenderStep::LoadHead(narrow(at)),
                    None if me.known.iter().all(|reader| reader.head >= me.goal) => self.intent(),
                    None => self.retry(),
                }
            }
            SenderStep::StoreIntent | SenderStep::StoreIntentLate => {
                words.store(SENDER, word::INTENT, me.goal, Order::Relaxed);
                if !self.has(Fault::NoFenceAfterIntent) {
                    words.full_fence(SENDER);
                }
                if me.next == SenderStep::StoreIntent {
                    SenderStep::RecheckGeneration
                } else {
                    SenderStep::StoreFloor
                }
            }
            SenderStep::RecheckGeneration if value != me.generation => self.retry(),
            SenderStep::RecheckGeneration if self.has(Fault::IntentAfterGenerationCheck) => {
                SenderStep::StoreIntentLate
            }
            SenderStep::RecheckGeneration => SenderStep::StoreFloor,
            SenderStep::StoreFloor => {
                me.floor = me.goal;
                words.store(SENDER, word::FLOOR, me.floor, Order::AcqRel);
                words.release_fence(SENDER);
                SenderStep::WriteCell
            }
            SenderStep::WriteCell => {
                words.store(SENDER, word::cell(me.sent), me.sent + 1, Order::Relaxed);
                SenderStep::StoreTail
            }
            _ => return self.step_wakeups(state, value),
        };
        Self::retire_if_done(state);
    }

    fn retire_if_done(state: &mut State) {
        if state.sender.next == SenderStep::Done {
            state.words.retire(SENDER);
        }
    }

    fn copy_list(words: &mut Words, me: &mut Sender) {
        for at in 0..MAX_READERS {
            let entry = Entry::from_word(words.load_newest(SENDER, word::entry(at)));
            let reader = &mut me.known[at];
            let position_of = |entry| match entry {
                Entry::Reserved(position) | Entry::Active(position) => position,
                Entry::None | Entry::Entered => NEVER,
            };
            if position_of(entry) != position_of(reader.entry) {
                reader.head = position_of(entry);
            }
            reader.entry = entry;
        }
    }

    /// The steps after a publication.
    fn step_wakeups(self, state: &mut State, value: u8) {
        let State {
            words, sender: me, ..
        } = state;
        me.next = match me.next {
            SenderStep::StoreTail => {
                me.sent += 1;
                words.store(SENDER, word::TAIL, me.sent, Order::AcqRel);
                if self.wake_scheme == WakeScheme::None {
                    self.next_message(me)
                } else if self.has(Fault::ListCheckBeforeFence) {
                    SenderStep::CheckList
                } else {
                    self.fence(me)
                }
            }
            SenderStep::Fence => {
                words.full_fence(SENDER);
                if self.has(Fault::ListCheckBeforeFence) {
                    Self::next_candidate(me, 0)
                } else {
                    SenderStep::CheckList
                }
            }
            SenderStep::CheckList => {
                let known = if self.has(Fault::SharedGeneration) {
                    me.generation
                } else {
                    me.wakers_generation
                };
                if value == known {
                    self.after_changed(me)
                } else {
                    me.generation = value;
                    me.wakers_generation = value;
                    SenderStep::CopyWakerList
                }
            }
            SenderStep::CopyWakerList => {
                Self::copy_list(words, me);
                let active = |at: &usize| matches!(me.known[*at].entry, Entry::Active(_));
                me.candidates = (0..MAX_READERS).filter(active).map(|at| 1 << at).sum();
                // Wake all of them once more instead of tracking whether each is the same reader as before.
                me.woken = [0; MAX_READERS];
                let needs = self.wake_scheme == WakeScheme::FencesSinceAdmission && me.candidates != 0;
                if needs && !me.always_fences {
                    me.always_fences = true;
                    SenderStep::FenceAfterList
                } else {
                    self.after_changed(me)
                }
            }
            SenderStep::FenceAfterList => {
                if !self.has(Fault::NoFenceAtFirstCheck) {
                    words.full_fence(SENDER);
                }
                self.after_changed(me)
            }
            SenderStep::LoadParked(at) => {
                let reader = usize::from(at);
                if value % 2 == 1 && value != me.woken[reader] {
                    me.woken[reader] = value;
                    SenderStep::Wake(at)
                } else {
                    Self::next_candidate(me, reader + 1)
                }
            }
            SenderStep::Wake(at) => {
                state.readers[usize::from(at)].wakeup = true;
                Self::next_candidate(me, usize::from(at) + 1)
            }
            other => other,
        };
        if me.next == SenderStep::Done && self.wake_scheme != WakeScheme::None {
            me.next = self.next_message(me);
        }
        Self::retire_if_done(state);
    }

    fn fence(self, me: &Sender) -> SenderStep {
        if self.wake_scheme == WakeScheme::PublisherFences || me.always_fences {
            SenderStep::Fence
        } else if self.has(Fault::ListCheckBeforeFence) {
            Self::next_candidate(me, 0)
        } else {
            SenderStep::CheckList
        }
    }

    fn after_changed(self, me: &Sender) -> SenderStep {
        if self.has(Fault::ListCheckBeforeFence) {
            self.fence(me)
        } else {
            Self::next_candidate(me, 0)
        }
    }

    /// Returns the step for the next reader to check, or `Done` after the last.
    fn next_candidate(me: &Sender, from: usize) -> SenderStep {
        let next = (from..MAX_READERS).find(|at| me.candidates & (1 << at) != 0);
        next.map_or(SenderStep::Done, |at| SenderStep::LoadParked(narrow(at)))
    }
}

fn narrow(at: usize) -> u8 {
    u8::try_from(at).expect("a model has few readers")
}

/// Changes an entry of the list under the lock that protects all changes. Returns the new generation.
fn set_entry(words: &mut Words, changes: &mut u8, at: usize, entry: Entry) -> u8 {
    for other in 0..MAX_READERS {
        words.load_newest(1 + at, word::entry(other));
    }
    words.store(1 + at, word::entry(at), entry.word(), Order::AcqRel);
    *changes += 1;
    *changes
}

/// The new reader's steps.
impl Admission {
    fn step_admission(self, state: &mut State, at: usize, choice: u8) {
        let thread = 1 + at;
        let loaded = Self::loads(state, thread);
        let State {
            words,
            readers,
            changes,
            ..
        } = state;
        let me = &mut readers[at];
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        me.next = match me.next {
            ReaderStep::Enter => {
                words.store(thread, word::entry(at), Entry::Entered.word(), Order::AcqRel);
                ReaderStep::LoadFloor
            }
            ReaderStep::LoadFloor => {
                me.floor = value;
                ReaderStep::LoadTail
            }
            ReaderStep::LoadTail => {
                me.tail = value;
                ReaderStep::LoadIntent
            }
            ReaderStep::LoadIntent => {
                let position = match self.from {
                    StartFrom::Oldest => me.floor.max(value),
                    StartFrom::Now | StartFrom::Latest => me.tail,
                };
                // Otherwise no mark fits, and it checks again.
                if position >= value && position >= me.floor && position <= me.tail {
                    me.head = position;
                    ReaderStep::Reserve
                } else {
                    ReaderStep::LoadFloor
                }
            }
            ReaderStep::Reserve => {
                let head = me.head;
                if self.has(Fault::GenerationBeforeEntry) {
                    words.store(thread, word::GENERATION, *changes + 1, Order::AcqRel);
                    set_entry(words, changes, at, Entry::Reserved(head));
                    ReaderStep::RecheckIntent
                } else {
                    ReaderStep::PublishReservation(set_entry(words, changes, at, Entry::Reserved(head)))
                }
            }
            ReaderStep::PublishReservation(generation) => {
                words.store(thread, word::GENERATION, generation, Order::AcqRel);
                if !self.has(Fault::NoFenceAfterEntry) {
                    words.full_fence(thread);
                }
                ReaderStep::RecheckIntent
            }
            ReaderStep::RecheckIntent if value > me.head && !self.has(Fault::IntentCheckedBeforeEntry) => {
                ReaderStep::LoadFloor
            }
            ReaderStep::RecheckIntent if at > 0 && value > 0 => {
                ReaderStep::PublishActivation(set_entry(words, changes, at, Entry::None))
            }
            ReaderStep::RecheckIntent if at > 0 => ReaderStep::Done,
            ReaderStep::RecheckIntent if self.has(Fault::ActiveBeforeHead) => ReaderStep::Activate,
            ReaderStep::RecheckIntent => ReaderStep::StoreFirstHead,
            ReaderStep::StoreFirstHead => {
                words.store(thread, word::head(at), me.head, Order::AcqRel);
                if self.has(Fault::ActiveBeforeHead) {
                    ReaderStep::LoadStart
                } else {
                    ReaderStep::Activate
                }
            }
            ReaderStep::Activate => {
                ReaderStep::PublishActivation(set_entry(words, changes, at, Entry::Active(me.head)))
            }
            ReaderStep::PublishActivation(generation) => {
                words.store(thread, word::GENERATION, generation, Order::AcqRel);
                if at > 0 {
                    ReaderStep::Done
                } else if self.has(Fault::ActiveBeforeHead) {
                    ReaderStep::StoreFirstHead
                } else if self.wake_scheme == WakeScheme::FencesSinceAdmission
                    && !self.has(Fault::NoAdmissionBarrier)
                {
                    ReaderStep::AdmitBarrier
                } else {
                    ReaderStep::LoadStart
                }
            }
            ReaderStep::AdmitBarrier => match Membarrier::start(words, thread, 1 << SENDER) {
                Membarrier { pending: 0 } => ReaderStep::LoadStart,
                barrier => ReaderStep::InAdmitBarrier(barrier),
            },
            _ => return self.step_reading(state, at, value),
        };
        if me.next == ReaderStep::Done {
            words.retire(thread);
        }
    }

    fn step_reading(self, state: &mut State, at: usize, value: u8) {
        let thread = 1 + at;
        let State {
            words,
            readers,
            sender,
            ..
        } = state;
        let me = &mut readers[at];
        me.next = match me.next {
            ReaderStep::LoadStart => {
                // A message that is being sent when the admission returns was started before.
                let writing = matches!(sender.next, SenderStep::WriteCell | SenderStep::StoreTail)
                    || sender.goal > sender.floor;
                me.sent_at_admission = Some(sender.sent + u8::from(writing && sender.sent < self.messages));
                me.tail = value;
                match self.from {
                    StartFrom::Now if self.has(Fault::StartAtFirstCheck) => {}
                    StartFrom::Now => me.head = value,
                    StartFrom::Latest => me.head = me.head.max(value.saturating_sub(1)),
                    StartFrom::Oldest => {}
                }
                ReaderStep::StoreStart
            }
            ReaderStep::StoreStart => {
                words.store(thread, word::head(at), me.head, Order::AcqRel);
                ReaderStep::Poll
            }
            ReaderStep::Poll | ReaderStep::Recheck => {
                me.tail = value;
                if self.has(Fault::StartAtFirstCheck) && me.park_number == 0 && me.head < value {
                    me.head = value;
                    // Only once.
                    me.park_number = 2;
                    if me
                        .sent_at_admission
                        .is_some_and(|sent_at_admission| value > sent_at_admission)
                    {
                        state.violation = Some(Violation::Missing);
                    }
                }
                match me.next {
                    ReaderStep::Recheck if me.tail > me.head => ReaderStep::Unpark,
                    ReaderStep::Recheck => ReaderStep::Sleep,
                    _ if me.tail > me.head => self.read_next(),
                    _ if self.wake_scheme == WakeScheme::None => ReaderStep::Poll,
                    _ => ReaderStep::Park,
                }
            }
            ReaderStep::Copy => {
                let expected = me.head + 1 - u8::from(self.has(Fault::HeadBeforeCopy));
                if value != expected {
                    state.violation = Some(Violation::Overwritten);
                }
                if self.has(Fault::HeadBeforeCopy) {
                    self.after_reading(words, me, thread)
                } else {
                    me.head += 1;
                    ReaderStep::StoreHead
                }
            }
            ReaderStep::StoreHead => {
                if self.has(Fault::HeadBeforeCopy) {
                    me.head += 1;
                }
                words.store(thread, word::head(at), me.head, Order::AcqRel);
                if self.has(Fault::HeadBeforeCopy) {
                    ReaderStep::Copy
                } else {
                    self.after_reading(words, me, thread)
                }
            }
            next => self.step_parking(words, me, at, next),
        };
    }

    fn read_next(self) -> ReaderStep {
        if self.has(Fault::HeadBeforeCopy) {
            ReaderStep::StoreHead
        } else {
            ReaderStep::Copy
        }
    }

    fn after_reading(self, words: &mut Words, me: &Reader, thread: usize) -> ReaderStep {
        if me.head == self.messages {
            words.retire(thread);
            ReaderStep::Done
        } else {
            ReaderStep::Poll
        }
    }

    fn step_parking(self, words: &mut Words, me: &mut Reader, at: usize, next: ReaderStep) -> ReaderStep {
        let thread = 1 + at;
        match next {
            ReaderStep::Park => {
                me.park_number += 1;
                words.store(thread, word::parked(at), me.park_number, Order::AcqRel);
                ReaderStep::Barrier
            }
            ReaderStep::Barrier if self.wake_scheme != WakeScheme::ReaderMembarrier => {
                words.full_fence(thread);
                ReaderStep::Recheck
            }
            ReaderStep::Barrier => match Membarrier::start(words, thread, 1 << SENDER) {
                Membarrier { pending: 0 } => ReaderStep::Recheck,
                barrier => ReaderStep::InBarrier(barrier),
            },
            ReaderStep::Sleep => {
                me.wakeup = false;
                ReaderStep::Unpark
            }
            ReaderStep::Unpark => {
                me.park_number += 1;
                words.store(thread, word::parked(at), me.park_number, Order::Relaxed);
                if me.tail > me.head {
                    self.read_next()
                } else {
                    ReaderStep::Poll
                }
            }
            other => other,
        }
    }
}

impl Model for Admission {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let uses = |reader: usize| {
            let own = 1 << word::head(reader) | 1 << word::parked(reader);
            if reader < self.new_readers { own } else { 0 }
        };
        let lists: u32 = (0..MAX_READERS).map(|at| 1 << word::entry(at)).sum();
        let shared = ((1 << word::entry(0)) - 1) | lists;
        let reader = KnownReader {
            entry: Entry::None,
            head: NEVER,
        };
        let mut sender = Sender {
            next: SenderStep::Done,
            sent: self.before,
            floor: 0,
            goal: 0,
            generation: 0,
            known: [reader; MAX_READERS],
            wakers_generation: 0,
            candidates: 0,
            woken: [0; MAX_READERS],
            always_fences: false,
        };
        sender.next = self.next_message(&mut sender);
        let reader = |at| Reader {
            next: if at < self.new_readers {
                ReaderStep::Enter
            } else {
                ReaderStep::Done
            },
            floor: 0,
            tail: 0,
            head: 0,
            park_number: 0,
            wakeup: false,
            sent_at_admission: None,
        };
        let all_uses = |at: usize| {
            if at < self.new_readers {
                uses(at) | shared
            } else {
                0
            }
        };
        let mut words = Words::new([uses(0) | uses(1) | shared, all_uses(0), all_uses(1)]);
        for position in 0..self.before {
            words.store(SENDER, word::cell(position), position + 1, Order::Relaxed);
        }
        words.store(SENDER, word::TAIL, self.before, Order::AcqRel);
        for thread in 0..=self.new_readers {
            words.settle(thread);
        }
        vec![State {
            words,
            sender,
            readers: [reader(0), reader(1)],
            changes: 0,
            violation: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // States after a violation are not explored.
        if state.violation.is_some() {
            return;
        }
        for thread in 0..=self.new_readers {
            if Self::is_runnable(state, thread) {
                let choices = match Self::loads(state, thread) {
                    Some((word, _)) => state.words.choices(thread, word),
                    None => 1,
                };
                actions.extend((0..choices).map(|choice| Action::Step(thread, choice)));
            }
        }
        for (at, reader) in state.readers.iter().enumerate() {
            if let ReaderStep::InAdmitBarrier(_) | ReaderStep::InBarrier(_) = reader.next {
                actions.push(Action::Interrupt(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(SENDER, choice) => self.step_sender(&mut state, choice),
            Action::Step(thread, choice) => self.step_admission(&mut state, thread - 1, choice),
            Action::Interrupt(at) => {
                let State { words, readers, .. } = &mut state;
                let me = &mut readers[at];
                me.next = match me.next {
                    ReaderStep::InAdmitBarrier(mut barrier) => {
                        barrier.interrupt(words, 1 + at, SENDER);
                        ReaderStep::LoadStart
                    }
                    ReaderStep::InBarrier(mut barrier) => {
                        barrier.interrupt(words, 1 + at, SENDER);
                        ReaderStep::Recheck
                    }
                    _ => return None,
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NOT_OVERWRITTEN, |_, state: &State| {
                state.violation != Some(Violation::Overwritten)
            }),
            Property::always(COMPLETE, |_, state: &State| {
                state.violation != Some(Violation::Missing)
            }),
            Property::always(NO_FALSE_ACCUSATION, |_, state: &State| {
                state.violation != Some(Violation::FalseAccusation)
            }),
            Property::always(WOKEN, |_, state: &State| {
                let asleep =
                    |me: &Reader| me.next == ReaderStep::Sleep && !me.wakeup && me.head < state.sender.sent;
                let looks = matches!(
                    state.sender.next,
                    SenderStep::Fence
                        | SenderStep::CheckList
                        | SenderStep::CopyWakerList
                        | SenderStep::FenceAfterList
                        | SenderStep::LoadParked(_)
                        | SenderStep::Wake(_)
                );
                looks || !state.readers.iter().any(asleep)
            }),
            Property::sometimes(
                "the first has read the last message",
                |model: &Self, state: &State| state.readers[0].head == model.messages,
            ),
        ];
        if self.wake_scheme != WakeScheme::None {
            properties.push(Property::sometimes(
                "a sleeping new reader is woken",
                |_, state: &State| {
                    let woken = |me: &Reader| me.next == ReaderStep::Sleep && me.wakeup;
                    state.readers.iter().any(woken)
                },
            ));
        }
        if self.messages > CELLS {
            properties.push(Property::sometimes(
                "a new reader finds that the floor may have passed it",
                |_, state: &State| {
                    let again = |at: usize| {
                        let me = &state.readers[at];
                        me.next == ReaderStep::LoadFloor && me.tail > 0
                    };
                    (0..MAX_READERS).any(again)
                },
            ));
            properties.push(Property::sometimes(
                "the sender finds a new reader after it has stored its intent",
                |_, state: &State| {
                    let me = &state.sender;
                    me.next == SenderStep::CopyList && me.goal > me.floor && state.changes > 0
                },
            ));
        }
        properties
    }
}

/// For a reliable reader.
pub const NOT_OVERWRITTEN: &str =
    "the first message of a reliable reader is not overwritten before it is read";
/// For a reader that starts now.
pub const COMPLETE: &str = "a new reader gets each message whose sending started after its admission";
/// The publisher accepts the position that the reader reports.
pub const NO_FALSE_ACCUSATION: &str = "a correct reader is never accused of a violation";
/// For a reader that sleeps.
pub const WOKEN: &str = "a new reader does not stay asleep when a message is published";
