//! A reliable reader that is evicted because it is too slow or has died, and a new reader in its slot.
//!
//! The old reader may be copying at that moment, and may still store its head afterwards. Three threads of
//! the publisher take part: the sender, which has a copy of the list, the watcher, and the admitting thread.
//! A *slot* is reused. Each reader has its own number and its own control object.
//!
//! The new reader and the thread that admits it are one thread here, as in [`admission`](crate::admission).

use stateright::{Model, Property};

use crate::memory::{Memory, Order};

const SENDER: usize = 0;
const WATCHER: usize = 1;
const OLD: usize = 2;
const NEW: usize = 3;
/// The number of cells of the ring, which is full at the start.
const CELLS: u8 = 2;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The old reader does not check the floor after it has copied.
    NoFloorCheck,
    /// It makes no acquire fence before that check.
    NoFenceBeforeFloorCheck,
    /// The sender stores the floor after it has written.
    FloorAfterWrite,
    /// A reader that blocks the sender is identified by its slot only.
    BlockerBySlot,
    /// The sender's knowledge of a head belongs to the slot.
    HeadPerSlot,
    /// The sender continues to read the old reader's control object.
    ObjectPerSlot,
    /// The last woken number belongs to the slot.
    WokenNumberPerSlot,
    /// A reader is evicted, and a sender that waits for its space is not woken.
    EvictionWithoutWakeup,
    /// The sender is woken before the reader is evicted.
    WakeupBeforeEviction,
    /// The sender is woken only if it sleeps already, and a sender that is about to sleep misses that.
    WakeupOnlyIfAsleep,
    /// An observer that compares positions treats a reader without a position as if it were behind all
    /// messages.
    MissingPositionIsMax,
}

/// The aspect that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aspect {
    /// Slots: the sender polls for space.
    Slots,
    /// Wakeups: the new reader sleeps. The old reader has slept, and was woken.
    Wakeups,
    /// Space: the sender sleeps until the ring has space.
    Space,
    /// Slots, and an observer polls the position of the new reader.
    Position,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Eviction {
    /// The total number of messages. Two are in the ring at the start.
    pub messages: u8,
    /// The number of messages that the old reader reads.
    pub old_reads: u8,
    /// The aspect that is checked.
    pub aspect: Aspect,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    use super::CELLS;

    pub(super) const TAIL: usize = 0;
    pub(super) const FLOOR: usize = 1;
    pub(super) const INTENT: usize = 2;
    pub(super) const GENERATION: usize = 3;
    /// The slot's entry. Accessed under the lock only.
    pub(super) const ENTRY: usize = 4;
    pub(super) const OLD_HEAD: usize = 5;
    pub(super) const NEW_HEAD: usize = 6;
    pub(super) const NEW_PARKED: usize = 7;
    /// Written by the watcher to wake the sender, like an eventfd.
    pub(super) const WOKEN: usize = 8;
    pub(super) const fn cell(position: u8) -> usize {
        9 + (position % CELLS) as usize
    }
    pub(super) const ALL: usize = 9 + CELLS as usize;
}

type Words = Memory<{ word::ALL }, 4>;

/// One of the two readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReaderId {
    /// The reader that is evicted.
    Old,
    /// The new reader.
    New,
}

/// The slot, in the list or in the sender's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    Free,
    /// The new reader is in the list, but without a position.
    Entered,
    /// This reader has the slot from this position on, and its own word has its read position.
    Active(ReaderId, u8),
    /// The new reader is in its handshake.
    Reserved(u8),
}

impl Entry {
    fn word(self) -> u8 {
        match self {
            Self::Free => 0,
            Self::Active(ReaderId::Old, _) => 1,
            Self::Entered => u8::MAX,
            Self::Reserved(position) => 2 + 2 * position,
            Self::Active(ReaderId::New, position) => 3 + 2 * position,
        }
    }

    fn from_word(word: u8) -> Self {
        match word {
            0 => Self::Free,
            1 => Self::Active(ReaderId::Old, 0),
            u8::MAX => Self::Entered,
            word if word % 2 == 0 => Self::Reserved(word / 2 - 1),
            word => Self::Active(ReaderId::New, word / 2 - 1),
        }
    }

    fn who(self) -> Option<ReaderId> {
        match self {
            Self::Free => None,
            Self::Active(who, _) => Some(who),
            Self::Entered | Self::Reserved(_) => Some(ReaderId::New),
        }
    }

    fn position(self) -> u8 {
        match self {
            Self::Free | Self::Entered => NEVER,
            Self::Active(_, position) | Self::Reserved(position) => position,
        }
    }
}

/// The head of a reader for which the sender does not wait.
const NEVER: u8 = u8::MAX;

/// The sender's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SenderStep {
    /// Copies the list if it has changed.
    CheckList,
    /// The head that leaves no space.
    LoadHead,
    StoreIntent,
    RecheckGeneration,
    StoreFloor,
    WriteCell,
    /// [`Fault::FloorAfterWrite`].
    StoreFloorLate,
    /// Includes a fence if the new reader sleeps.
    StoreTail,
    CheckListAfterTail,
    /// The new reader's parked word.
    LoadParked,
    RecheckList,
    RecheckHead,
    Sleep,
    Done,
}

/// The watcher's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum WatcherStep {
    /// For a reader that leaves no space, or for the death of the old one. Polls the position of the new reader.
    Wait,
    Evict(ReaderId),
    RemoveDead,
    /// Sets the generation to this value.
    StoreGeneration(u8),
    WakeSender,
    /// [`Fault::WakeupBeforeEviction`].
    WakeSenderFirst(ReaderId),
}

/// The old reader's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum OldStep {
    Copy,
    CheckFloor { copied: u8 },
    StoreHead,
    // Has read enough messages, has noticed its eviction, or has died.
    Done,
}

/// The next step of the new reader, or of the thread that admits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum NewStep {
    // Takes the slot once it is free. The generation stays, because nothing changes for the sender.
    Enter,
    // At the position of the floor.
    Reserve,
    // Sets the generation to this value. Includes a fence.
    PublishReservation(u8),
    RecheckIntent,
    Leave,
    StoreFirstHead,
    Activate,
    // Sets the generation to this value.
    PublishActivation(u8),
    Poll,
    Copy,
    CheckFloor { copied: u8 },
    StoreHead,
    // Includes a fence.
    Park,
    Recheck,
    Sleep,
    Unpark,
    // Has read all messages, or has noticed its eviction.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sender {
    next: SenderStep,
    sent: u8,
    floor: u8,
    generation: u8,
    /// The slot as it knows it, the head, and the last woken number.
    entry: Entry,
    head: u8,
    woken_number: u8,
    /// The reader whose control object it reads.
    object: ReaderId,
    /// The reader that it has reported as leaving no space.
    blocker: Option<ReaderId>,
    /// The watcher has sent it a wakeup.
    woken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NewReader {
    next: NewStep,
    head: u8,
    tail: u8,
    park_number: u8,
    wakeup: bool,
}

/// The violation that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Violation {
    /// A message was handed out that had been overwritten.
    Torn,
    /// A reader that was not evicted is below the floor.
    Passed,
    /// An honest reader was accused of a protocol violation.
    FalseAccusation,
    /// A reader was evicted that had not blocked the sender.
    Mistaken,
}

/// The words, and the state of each thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sender: Sender,
    watcher: WatcherStep,
    /// The position of the new reader at the watcher's last check.
    last_position: Option<u8>,
    old: OldStep,
    old_head: u8,
    old_is_alive: bool,
    new: NewReader,
    /// The number of changes of the list. Accessed under its lock.
    changes: u8,
    /// Whether the old and the new reader were evicted.
    evicted: [bool; 2],
    violation: Option<Violation>,
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread takes its next step. A load reads the oldest store that it may (0), or a newer one.
    Step(usize, u8),
    /// The old reader is killed.
    Kill,
    /// The reader that the sender has named has left no space for too long.
    Stall(ReaderId),
    /// The watcher notices that the old reader has died.
    NoticeDeath,
    /// The watcher reads the new reader's position: the oldest head that it may read (0), or a newer one.
    PollPosition(u8),
}

impl Eviction {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn loads(state: &State, thread: usize) -> Option<(usize, Order)> {
        use Order::{AcqRel, Relaxed};
        let head = match state.sender.object {
            ReaderId::Old => word::OLD_HEAD,
            ReaderId::New => word::NEW_HEAD,
        };
        match thread {
            SENDER => match state.sender.next {
                SenderStep::CheckList
                | SenderStep::RecheckGeneration
                | SenderStep::CheckListAfterTail
                | SenderStep::RecheckList => Some((word::GENERATION, AcqRel)),
                SenderStep::LoadHead | SenderStep::RecheckHead => Some((head, AcqRel)),
                SenderStep::LoadParked => Some((word::NEW_PARKED, Relaxed)),
                _ => None,
            },
            OLD => match state.old {
                OldStep::Copy => Some((word::cell(state.old_head), Relaxed)),
                OldStep::CheckFloor { .. } => Some((word::FLOOR, Relaxed)),
                _ => None,
            },
            NEW => match state.new.next {
                NewStep::RecheckIntent => Some((word::INTENT, Relaxed)),
                NewStep::Poll | NewStep::Recheck => Some((word::TAIL, AcqRel)),
                NewStep::Copy => Some((word::cell(state.new.head), Relaxed)),
                NewStep::CheckFloor { .. } => Some((word::FLOOR, Relaxed)),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_runnable(state: &State, thread: usize) -> bool {
        match thread {
            SENDER => match state.sender.next {
                SenderStep::Sleep => state.sender.woken,
                SenderStep::Done => false,
                _ => true,
            },
            WATCHER => state.watcher != WatcherStep::Wait,
            OLD => state.old != OldStep::Done,
            _ => match state.new.next {
                // The slot is free once the old reader was evicted.
                NewStep::Enter => state.evicted[0],
                NewStep::Sleep => state.new.wakeup,
                NewStep::Done => false,
                _ => true,
            },
        }
    }
}

/// The sender's steps.
impl Eviction {
    fn goal(me: &Sender) -> u8 {
        (me.sent + 1).saturating_sub(CELLS)
    }

    fn next_message(self, me: &Sender) -> SenderStep {
        if me.sent == self.messages {
            SenderStep::Done
        } else if Self::goal(me) > me.floor {
            SenderStep::CheckList
        } else {
            SenderStep::WriteCell
        }
    }

    fn is_active(me: &Sender) -> bool {
        matches!(me.entry, Entry::Active(..)) && me.head != NEVER
    }

    fn after_list(me: &Sender) -> SenderStep {
        if me.head >= Self::goal(me) {
            SenderStep::StoreIntent
        } else if Self::is_active(me) {
            SenderStep::LoadHead
        } else {
            SenderStep::CheckList
        }
    }

    fn copy_list(self, words: &mut Words, me: &mut Sender) {
        let entry = Entry::from_word(words.load_newest(SENDER, word::ENTRY));
        let known = match entry.who() {
            // The slot has no reader, so nothing is known.
            None => false,
            _ if self.has(Fault::HeadPerSlot) => me.head != NEVER,
            who => who == me.entry.who() && entry.position() == me.entry.position(),
        };
        let keeps = known || self.has(Fault::HeadPerSlot) && entry == Entry::Free;
        if !keeps {
            me.head = entry.position();
        }
        if let Some(who) = entry.who()
            && who != me.object
            && !self.has(Fault::ObjectPerSlot)
        {
            me.object = who;
        }
        if entry.who() == Some(ReaderId::New)
            && me.entry.who() != Some(ReaderId::New)
            && !self.has(Fault::WokenNumberPerSlot)
        {
            me.woken_number = 0;
        }
        me.entry = entry;
    }

    fn step_sender(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, SENDER);
        let State {
            words,
            sender: me,
            new,
            violation,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(SENDER, word, choice, order));
        me.next = match me.next {
            SenderStep::CheckList | SenderStep::CheckListAfterTail | SenderStep::RecheckList => {
                if value != me.generation {
                    me.generation = value;
                    self.copy_list(words, me);
                }
                match me.next {
                    SenderStep::CheckListAfterTail
                        if me.entry.who() == Some(ReaderId::New) && Self::is_active(me) =>
                    {
                        SenderStep::LoadParked
                    }
                    SenderStep::CheckListAfterTail => self.next_message(me),
                    SenderStep::CheckList => Self::after_list(me),
                    _ if me.head >= Self::goal(me) => SenderStep::StoreIntent,
                    _ if Self::is_active(me) => SenderStep::RecheckHead,
                    _ => SenderStep::Sleep,
                }
            }
            SenderStep::LoadHead | SenderStep::RecheckHead => {
                if value < me.head || value > me.sent {
                    *violation = Some(Violation::FalseAccusation);
                }
                me.head = value;
                match me.next {
                    _ if value >= Self::goal(me) => SenderStep::StoreIntent,
                    SenderStep::RecheckHead => SenderStep::Sleep,
                    _ => {
                        me.blocker = me.entry.who();
                        if self.aspect == Aspect::Space {
                            SenderStep::RecheckList
                        } else {
                            SenderStep::CheckList
                        }
                    }
                }
            }
            SenderStep::Sleep => {
                me.woken = false;
                words.load_newest(SENDER, word::WOKEN);
                SenderStep::CheckList
            }
            SenderStep::StoreIntent => {
                words.store(SENDER, word::INTENT, Self::goal(me), Order::Relaxed);
                words.full_fence(SENDER);
                SenderStep::RecheckGeneration
            }
            SenderStep::RecheckGeneration if value != me.generation => SenderStep::CheckList,
            SenderStep::RecheckGeneration if self.has(Fault::FloorAfterWrite) => SenderStep::WriteCell,
            SenderStep::RecheckGeneration => SenderStep::StoreFloor,
            SenderStep::StoreFloor | SenderStep::StoreFloorLate => {
                me.floor = Self::goal(me);
                me.blocker = None;
                words.store(SENDER, word::FLOOR, me.floor, Order::AcqRel);
                words.release_fence(SENDER);
                if me.next == SenderStep::StoreFloor {
                    SenderStep::WriteCell
                } else {
                    SenderStep::StoreTail
                }
            }
            SenderStep::WriteCell => {
                words.store(SENDER, word::cell(me.sent), me.sent + 1, Order::Relaxed);
                if self.has(Fault::FloorAfterWrite) {
                    SenderStep::StoreFloorLate
                } else {
                    SenderStep::StoreTail
                }
            }
            SenderStep::StoreTail => {
                me.sent += 1;
                words.store(SENDER, word::TAIL, me.sent, Order::AcqRel);
                if self.aspect == Aspect::Wakeups {
                    words.full_fence(SENDER);
                    SenderStep::CheckListAfterTail
                } else {
                    self.next_message(me)
                }
            }
            SenderStep::LoadParked => {
                if value % 2 == 1 && value != me.woken_number {
                    me.woken_number = value;
                    new.wakeup = true;
                }
                self.next_message(me)
            }
            SenderStep::Done => SenderStep::Done,
        };
        if me.next == SenderStep::Done {
            words.retire(SENDER);
        }
    }
}

/// The watcher's steps.
impl Eviction {
    fn wake_sender(self, words: &mut Words, sender: &mut Sender) {
        sender.woken |= sender.next == SenderStep::Sleep || !self.has(Fault::WakeupOnlyIfAsleep);
        words.store(WATCHER, word::WOKEN, 1, Order::AcqRel);
    }

    fn step_watcher(self, state: &mut State) {
        let State {
            words,
            watcher,
            changes,
            evicted,
            sender,
            violation,
            ..
        } = state;
        *watcher = match *watcher {
            WatcherStep::Evict(_) | WatcherStep::RemoveDead => {
                let blocker = match *watcher {
                    WatcherStep::Evict(who) => who,
                    _ => ReaderId::Old,
                };
                let entry = Entry::from_word(words.load_newest(WATCHER, word::ENTRY));
                let in_slot = entry.who();
                let slot_alone = self.has(Fault::BlockerBySlot) && *watcher != WatcherStep::RemoveDead;
                if in_slot == Some(blocker) || slot_alone && in_slot.is_some() {
                    if in_slot == Some(ReaderId::New) && blocker == ReaderId::Old {
                        *violation = Some(Violation::Mistaken);
                    }
                    evicted[usize::from(in_slot == Some(ReaderId::New))] = true;
                    words.store(WATCHER, word::ENTRY, Entry::Free.word(), Order::AcqRel);
                    *changes += 1;
                    WatcherStep::StoreGeneration(*changes)
                } else {
                    WatcherStep::Wait
                }
            }
            WatcherStep::StoreGeneration(generation) => {
                words.store(WATCHER, word::GENERATION, generation, Order::AcqRel);
                if self.has(Fault::EvictionWithoutWakeup) || self.has(Fault::WakeupBeforeEviction) {
                    WatcherStep::Wait
                } else {
                    WatcherStep::WakeSender
                }
            }
            WatcherStep::WakeSender => {
                self.wake_sender(words, sender);
                WatcherStep::Wait
            }
            WatcherStep::WakeSenderFirst(who) => {
                self.wake_sender(words, sender);
                WatcherStep::Evict(who)
            }
            WatcherStep::Wait => WatcherStep::Wait,
        };
    }
}

/// The watcher's observation of the new reader.
impl Eviction {
    /// Returns the number of results that one check of the new reader may have: one for each head that may be
    /// read.
    fn position_choices(state: &State) -> u8 {
        let mut words = state.words.clone();
        match Entry::from_word(words.load_newest(WATCHER, word::ENTRY)) {
            Entry::Active(ReaderId::New, _) => words.choices(WATCHER, word::NEW_HEAD),
            Entry::Entered | Entry::Reserved(_) => 1,
            Entry::Free | Entry::Active(ReaderId::Old, _) => 0,
        }
    }

    /// Compares the position of the new reader with the previous one. A position that decreases counts as a
    /// violation.
    fn poll_position(self, state: &mut State, choice: u8) {
        // The lock orders all stores before the entry.
        let entry = Entry::from_word(state.words.load_newest(WATCHER, word::ENTRY));
        let position = match entry {
            Entry::Active(ReaderId::New, _) => {
                state.words.load(WATCHER, word::NEW_HEAD, choice, Order::AcqRel)
            }
            Entry::Entered if !self.has(Fault::MissingPositionIsMax) => return,
            entry => entry.position(),
        };
        if state.last_position.is_some_and(|seen| position < seen) {
            state.violation = Some(Violation::FalseAccusation);
        }
        state.last_position = Some(position);
    }
}

/// The readers' steps.
impl Eviction {
    /// Whether a copy may be handed out, given the floor after it. The preceding fence has ordered the two.
    fn may_hand_out(self, head: u8, floor: u8) -> bool {
        floor <= head || self.has(Fault::NoFloorCheck)
    }

    fn fence(self, words: &mut Words, thread: usize) {
        if !self.has(Fault::NoFenceBeforeFloorCheck) {
            words.acquire_fence(thread);
        }
    }

    fn step_old(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, OLD);
        let State {
            words,
            old,
            old_head,
            evicted,
            violation,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(OLD, word, choice, order));
        *old = match *old {
            OldStep::Copy => {
                self.fence(words, OLD);
                OldStep::CheckFloor { copied: value }
            }
            OldStep::CheckFloor { copied } if self.may_hand_out(*old_head, value) => {
                if copied != *old_head + 1 {
                    *violation = Some(Violation::Torn);
                }
                OldStep::StoreHead
            }
            OldStep::CheckFloor { .. } => {
                if !evicted[0] {
                    *violation = Some(Violation::Passed);
                }
                OldStep::Done
            }
            OldStep::StoreHead => {
                *old_head += 1;
                words.store(OLD, word::OLD_HEAD, *old_head, Order::AcqRel);
                if *old_head == self.old_reads {
                    OldStep::Done
                } else {
                    OldStep::Copy
                }
            }
            OldStep::Done => OldStep::Done,
        };
        if *old == OldStep::Done {
            words.retire(OLD);
        }
    }

    fn step_admission(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, NEW);
        let State {
            words,
            new: me,
            changes,
            evicted,
            violation,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(NEW, word, choice, order));
        let mut set_entry = |words: &mut Words, entry: Entry| {
            words.load_newest(NEW, word::ENTRY);
            words.store(NEW, word::ENTRY, entry.word(), Order::AcqRel);
            *changes += 1;
            *changes
        };
        me.next = match me.next {
            NewStep::Enter => {
                words.load_newest(NEW, word::ENTRY);
                words.store(NEW, word::ENTRY, Entry::Entered.word(), Order::AcqRel);
                NewStep::Reserve
            }
            NewStep::Reserve => {
                me.head = words
                    .load_newest(NEW, word::FLOOR)
                    .max(words.load_newest(NEW, word::INTENT));
                NewStep::PublishReservation(set_entry(words, Entry::Reserved(me.head)))
            }
            NewStep::PublishReservation(generation) => {
                words.store(NEW, word::GENERATION, generation, Order::AcqRel);
                words.full_fence(NEW);
                NewStep::RecheckIntent
            }
            NewStep::RecheckIntent if value > me.head => NewStep::Leave,
            NewStep::RecheckIntent => NewStep::StoreFirstHead,
            NewStep::Leave => {
                // Behave like a failed handshake, because other models cover the retry.
                NewStep::PublishActivation(set_entry(words, Entry::Free))
            }
            NewStep::StoreFirstHead => {
                words.store(NEW, word::NEW_HEAD, me.head, Order::AcqRel);
                NewStep::Activate
            }
            NewStep::Activate if evicted[1] => NewStep::Done,
            NewStep::Activate => {
                NewStep::PublishActivation(set_entry(words, Entry::Active(ReaderId::New, me.head)))
            }
            NewStep::PublishActivation(generation) => {
                words.store(NEW, word::GENERATION, generation, Order::AcqRel);
                let left = words.load_newest(NEW, word::ENTRY) == Entry::Free.word() && !evicted[1];
                if left { NewStep::Done } else { NewStep::Poll }
            }
            NewStep::Copy => {
                self.fence(words, NEW);
                NewStep::CheckFloor { copied: value }
            }
            NewStep::CheckFloor { copied } if self.may_hand_out(me.head, value) => {
                if copied != me.head + 1 {
                    *violation = Some(Violation::Torn);
                }
                NewStep::StoreHead
            }
            NewStep::CheckFloor { .. } => {
                if !evicted[1] {
                    *violation = Some(Violation::Passed);
                }
                NewStep::Done
            }
            next => self.step_reading(words, me, next, value),
        };
        if me.next == NewStep::Done {
            words.retire(NEW);
        }
    }

    fn step_reading(self, words: &mut Words, me: &mut NewReader, next: NewStep, value: u8) -> NewStep {
        match next {
            NewStep::StoreHead => {
                me.head += 1;
                words.store(NEW, word::NEW_HEAD, me.head, Order::AcqRel);
                if me.head == self.messages {
                    NewStep::Done
                } else {
                    NewStep::Poll
                }
            }
            NewStep::Poll | NewStep::Recheck => {
                me.tail = value;
                match next {
                    NewStep::Recheck if value > me.head => NewStep::Unpark,
                    NewStep::Recheck => NewStep::Sleep,
                    _ if value > me.head => NewStep::Copy,
                    _ if self.aspect == Aspect::Wakeups => NewStep::Park,
                    _ => NewStep::Poll,
                }
            }
            NewStep::Park => {
                me.park_number += 1;
                words.store(NEW, word::NEW_PARKED, me.park_number, Order::AcqRel);
                words.full_fence(NEW);
                NewStep::Recheck
            }
            NewStep::Sleep => {
                me.wakeup = false;
                NewStep::Unpark
            }
            NewStep::Unpark => {
                me.park_number += 1;
                words.store(NEW, word::NEW_PARKED, me.park_number, Order::Relaxed);
                NewStep::Poll
            }
            other => other,
        }
    }
}

impl Model for Eviction {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let all = (1 << word::ALL) - 1;
        let list = 1 << word::ENTRY | 1 << word::GENERATION;
        let watch = list | 1 << word::WOKEN | 1 << word::NEW_HEAD;
        let ring = 1 << word::FLOOR | 1 << word::cell(0) | 1 << word::cell(1);
        let own = 1 << word::NEW_HEAD | 1 << word::NEW_PARKED;
        let new = list | ring | own | 1 << word::TAIL | 1 << word::INTENT;
        let mut words = Words::new([all, watch, ring | 1 << word::OLD_HEAD, new]);
        for position in 0..CELLS {
            words.store(SENDER, word::cell(position), position + 1, Order::Relaxed);
        }
        words.store(SENDER, word::TAIL, CELLS, Order::AcqRel);
        words.store(
            SENDER,
            word::ENTRY,
            Entry::Active(ReaderId::Old, 0).word(),
            Order::AcqRel,
        );
        for thread in [SENDER, WATCHER, OLD, NEW] {
            words.settle(thread);
        }
        let mut sender = Sender {
            next: SenderStep::Done,
            sent: CELLS,
            floor: 0,
            generation: 0,
            entry: Entry::Active(ReaderId::Old, 0),
            head: 0,
            woken_number: 1,
            object: ReaderId::Old,
            blocker: None,
            woken: false,
        };
        sender.next = self.next_message(&sender);
        vec![State {
            words,
            sender,
            watcher: WatcherStep::Wait,
            last_position: None,
            old: if self.old_reads == 0 {
                OldStep::Done
            } else {
                OldStep::Copy
            },
            old_head: 0,
            old_is_alive: true,
            new: NewReader {
                next: NewStep::Enter,
                head: 0,
                tail: 0,
                park_number: 0,
                wakeup: false,
            },
            changes: 0,
            evicted: [false; 2],
            violation: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // States after a violation are not explored.
        if state.violation.is_some() {
            return;
        }
        for thread in [SENDER, WATCHER, OLD, NEW] {
            if thread == OLD && !state.old_is_alive || !Self::is_runnable(state, thread) {
                continue;
            }
            let choices = match Self::loads(state, thread) {
                Some((word, _)) => state.words.choices(thread, word),
                None => 1,
            };
            actions.extend((0..choices).map(|choice| Action::Step(thread, choice)));
        }
        if state.old_is_alive {
            actions.push(Action::Kill);
        }
        if state.watcher == WatcherStep::Wait {
            if let Some(who) = state.sender.blocker {
                actions.push(Action::Stall(who));
            }
            if !state.old_is_alive && !state.evicted[0] {
                actions.push(Action::NoticeDeath);
            }
            if self.aspect == Aspect::Position && !state.evicted[1] {
                actions.extend((0..Self::position_choices(state)).map(Action::PollPosition));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(SENDER, choice) => self.step_sender(&mut state, choice),
            Action::Step(WATCHER, _) => self.step_watcher(&mut state),
            Action::Step(OLD, choice) => self.step_old(&mut state, choice),
            Action::Step(_, choice) => self.step_admission(&mut state, choice),
            Action::Kill => {
                state.old_is_alive = false;
                state.words.retire(OLD);
            }
            Action::Stall(who) => {
                state.watcher = if self.has(Fault::WakeupBeforeEviction) {
                    WatcherStep::WakeSenderFirst(who)
                } else {
                    WatcherStep::Evict(who)
                };
            }
            Action::PollPosition(choice) => self.poll_position(&mut state, choice),
            Action::NoticeDeath => {
                state.watcher = if self.has(Fault::WakeupBeforeEviction) {
                    WatcherStep::WakeSenderFirst(ReaderId::Old)
                } else {
                    WatcherStep::RemoveDead
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NEVER_TORN, |_, state: &State| {
                state.violation != Some(Violation::Torn)
            }),
            Property::always(FLOOR_BELOW_HEAD, |_, state: &State| {
                state.violation != Some(Violation::Passed)
            }),
            Property::always(OWN_WORDS_ONLY, |_, state: &State| {
                state.violation != Some(Violation::FalseAccusation)
            }),
            Property::always(OWN_STALL_ONLY, |_, state: &State| {
                state.violation != Some(Violation::Mistaken)
            }),
            Property::always(SENDER_WOKEN, |_, state: &State| {
                let rests = state.watcher == WatcherStep::Wait && state.new.next == NewStep::Enter;
                let stuck = state.sender.next == SenderStep::Sleep && !state.sender.woken;
                !(stuck && rests && state.evicted[0])
            }),
            Property::always(WOKEN, |_, state: &State| {
                let me = &state.new;
                let asleep = me.next == NewStep::Sleep && !me.wakeup && me.head < state.sender.sent;
                let looks = matches!(
                    state.sender.next,
                    SenderStep::CheckListAfterTail | SenderStep::LoadParked
                );
                !asleep || looks || state.evicted[1]
            }),
            Property::sometimes("a living reader is evicted", |_, state: &State| {
                state.evicted[0] && state.old_is_alive && state.sender.floor > state.old_head
            }),
            Property::sometimes(
                "the new reader in the slot reads the last message",
                |model: &Self, state: &State| state.new.head == model.messages,
            ),
        ];
        if self.aspect == Aspect::Position {
            properties.push(Property::sometimes(
                "the watcher sees the new reader's progress",
                |_, state: &State| state.last_position.is_some_and(|seen| seen > 0 && seen < NEVER),
            ));
        }
        if self.aspect == Aspect::Wakeups {
            properties.push(Property::sometimes(
                "the new reader is woken",
                |_, state: &State| state.new.next == NewStep::Sleep && state.new.wakeup,
            ));
        }
        properties
    }
}

/// For best-effort, latest and evicted readers.
pub const NEVER_TORN: &str = "a torn message is never handed out, even to a reader that is being evicted";
/// For a reliable reader.
pub const FLOOR_BELOW_HEAD: &str =
    "the floor never passes the head of a reliable reader that was not evicted";
/// Words of another reader in the same slot do not count, and neither does a word that was not stored yet.
pub const OWN_WORDS_ONLY: &str = "a reader is judged only by its own words";
/// For the new reader.
pub const OWN_STALL_ONLY: &str = "a reader is never evicted for another reader's stall";
/// For the publisher.
pub const SENDER_WOKEN: &str = "a publisher does not wait for space from an evicted reader";
/// For a new reader that sleeps.
pub const WOKEN: &str =
    "a new reader does not stay asleep, whatever the previous reader in its slot was woken for";
