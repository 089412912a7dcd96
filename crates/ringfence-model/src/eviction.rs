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
    HandsOutWithoutALook,
    /// It makes no acquire fence before that check.
    LooksWithoutFence,
    /// The sender stores the floor after it has written.
    FloorAfterTheWrite,
    /// A reader that blocks the sender is identified by its slot only.
    NamesTheSlot,
    /// The sender's knowledge of a head belongs to the slot.
    HeadOfTheSlot,
    /// The sender continues to read the old reader's control object.
    ObjectOfTheSlot,
    /// The last woken number belongs to the slot.
    RungOfTheSlot,
    /// A reader is evicted, and a sender that waits for its space is not woken.
    ReleasesWithoutWaking,
    /// The sender is woken before the reader is evicted.
    WakesFirst,
    /// The sender is woken only if it sleeps already, and a sender that is about to sleep misses that.
    WakesOnlyASleeper,
    /// An observer that compares positions treats a reader without a position as if it were behind all
    /// messages.
    PositionOfNone,
}

/// The aspect that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum About {
    /// Slots: the sender polls for space.
    Places,
    /// Wakeups: the new reader sleeps. The old reader has slept, and was woken.
    Bells,
    /// Space: the sender sleeps until the ring has space.
    Room,
    /// Slots, and an observer polls the position of the new reader.
    Looks,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Eviction {
    /// The total number of messages. Two are in the ring at the start.
    pub messages: u8,
    /// The number of messages that the old reader reads.
    pub old_reads: u8,
    /// The aspect that is checked.
    pub about: About,
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
pub enum Who {
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
    Taken(Who, u8),
    /// The new reader is in its handshake.
    Held(u8),
}

impl Entry {
    fn word(self) -> u8 {
        match self {
            Self::Free => 0,
            Self::Taken(Who::Old, _) => 1,
            Self::Entered => u8::MAX,
            Self::Held(position) => 2 + 2 * position,
            Self::Taken(Who::New, position) => 3 + 2 * position,
        }
    }

    fn from_word(word: u8) -> Self {
        match word {
            0 => Self::Free,
            1 => Self::Taken(Who::Old, 0),
            u8::MAX => Self::Entered,
            word if word % 2 == 0 => Self::Held(word / 2 - 1),
            word => Self::Taken(Who::New, word / 2 - 1),
        }
    }

    fn who(self) -> Option<Who> {
        match self {
            Self::Free => None,
            Self::Taken(who, _) => Some(who),
            Self::Entered | Self::Held(_) => Some(Who::New),
        }
    }

    fn position(self) -> u8 {
        match self {
            Self::Free | Self::Entered => NEVER,
            Self::Taken(_, position) | Self::Held(position) => position,
        }
    }
}

/// The head of a reader for which the sender does not wait.
const NEVER: u8 = u8::MAX;

/// The sender's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sends {
    /// Checks whether the list has changed, and copies it.
    List,
    /// Reads the head that leaves no space.
    Head,
    /// Stores its intent.
    Intent,
    /// Reads the generation again.
    Sure,
    /// Stores the floor.
    Floor,
    /// Writes the cell.
    Write,
    /// Stores the floor late ([`Fault::FloorAfterTheWrite`]).
    LateFloor,
    /// Stores the tail, makes a fence,
    Tail,
    /// checks whether the list has changed, and copies it,
    Changed,
    /// and reads the new reader's parked word.
    Looks,
    /// Checks the list once more before it sleeps.
    Again,
    /// Reads the head once more.
    AgainHead,
    /// Sleeps.
    Sleeps,
    /// Has sent all messages.
    Done,
}

/// The watcher's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Watches {
    /// Waits until a reader leaves no space or the old one has died, or reads the position of the new reader.
    Waits,
    /// Evicts the reader that the sender has named.
    Evicts(Who),
    /// Removes the old reader, which has died.
    Buries,
    /// Sets the generation to this value.
    Tells(u8),
    /// Wakes the sender.
    Wakes,
    /// Wakes the sender before it evicts this reader ([`Fault::WakesFirst`]).
    WakesBefore(Who),
}

/// The old reader's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    /// Copies a message.
    Copies,
    /// Reads the floor.
    Checks { copied: u8 },
    /// Stores its head.
    LetsGo,
    /// It has read enough messages, has noticed its eviction, or has died.
    Done,
}

/// The next step of the new reader, or of the thread that admits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Comes {
    /// Takes the slot once it is free. That changes nothing for the sender, so the generation stays.
    Enters,
    /// Holds the position of the floor.
    Holds,
    /// Sets the generation to this value, and makes a fence.
    Tells(u8),
    /// Reads the intent again.
    Sure,
    /// Leaves the slot, and announces that.
    Leaves,
    /// Stores its starting position as its head.
    Head,
    /// Marks its entry as active.
    Activates,
    /// Sets the generation to this value.
    TellsActive(u8),
    /// Reads the tail.
    Looks,
    /// Copies a message.
    Copies,
    /// Reads the floor.
    Checks { copied: u8 },
    /// Stores its head.
    LetsGo,
    /// Announces that it sleeps, and makes a fence.
    Parks,
    /// Reads the tail once more.
    Again,
    /// Sleeps.
    Sleeps,
    /// Announces that it is awake.
    Unparks,
    /// Has read all messages, or has noticed its eviction.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sender {
    next: Sends,
    sent: u8,
    floor: u8,
    generation: u8,
    /// The slot as it knows it, the head, and the last woken number.
    entry: Entry,
    head: u8,
    rung: u8,
    /// The reader whose control object it reads.
    object: Who,
    /// The reader that it has reported as leaving no space.
    named: Option<Who>,
    /// The watcher has sent it a wakeup.
    woken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Newcomer {
    next: Comes,
    head: u8,
    tail: u8,
    number: u8,
    bell: bool,
}

/// The violation that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wrong {
    /// A message was handed out that had been overwritten.
    Torn,
    /// A reader that was not evicted is below the floor.
    Passed,
    /// An honest reader was accused of a protocol violation.
    Accused,
    /// A reader was evicted that had not blocked the sender.
    Mistaken,
}

/// The words, and the state of each thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sender: Sender,
    watcher: Watches,
    /// The position of the new reader at the watcher's last check.
    seen: Option<u8>,
    old: Reads,
    old_head: u8,
    old_lives: bool,
    new: Newcomer,
    /// The number of changes of the list. Accessed under its lock.
    changes: u8,
    /// Whether the old and the new reader were evicted.
    evicted: [bool; 2],
    wrong: Option<Wrong>,
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread takes its next step. A load reads the oldest store that it may (0), or a newer one.
    GoOn(usize, u8),
    /// The old reader is killed.
    Die,
    /// The reader that the sender has named has left no space for too long.
    Stall(Who),
    /// The watcher notices that the old reader has died.
    Hear,
    /// The watcher reads the new reader's position: the oldest head that it may read (0), or a newer one.
    Look(u8),
}

impl Eviction {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn loads(state: &State, thread: usize) -> Option<(usize, Order)> {
        use Order::{Relaxed, Synchronises};
        let head = match state.sender.object {
            Who::Old => word::OLD_HEAD,
            Who::New => word::NEW_HEAD,
        };
        match thread {
            SENDER => match state.sender.next {
                Sends::List | Sends::Sure | Sends::Changed | Sends::Again => {
                    Some((word::GENERATION, Synchronises))
                }
                Sends::Head | Sends::AgainHead => Some((head, Synchronises)),
                Sends::Looks => Some((word::NEW_PARKED, Relaxed)),
                _ => None,
            },
            OLD => match state.old {
                Reads::Copies => Some((word::cell(state.old_head), Relaxed)),
                Reads::Checks { .. } => Some((word::FLOOR, Relaxed)),
                _ => None,
            },
            NEW => match state.new.next {
                Comes::Sure => Some((word::INTENT, Relaxed)),
                Comes::Looks | Comes::Again => Some((word::TAIL, Synchronises)),
                Comes::Copies => Some((word::cell(state.new.head), Relaxed)),
                Comes::Checks { .. } => Some((word::FLOOR, Relaxed)),
                _ => None,
            },
            _ => None,
        }
    }

    fn can_go_on(state: &State, thread: usize) -> bool {
        match thread {
            SENDER => match state.sender.next {
                Sends::Sleeps => state.sender.woken,
                Sends::Done => false,
                _ => true,
            },
            WATCHER => state.watcher != Watches::Waits,
            OLD => state.old != Reads::Done,
            _ => match state.new.next {
                // The slot is free once the old reader was evicted.
                Comes::Enters => state.evicted[0],
                Comes::Sleeps => state.new.bell,
                Comes::Done => false,
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

    fn begin(self, me: &Sender) -> Sends {
        if me.sent == self.messages {
            Sends::Done
        } else if Self::goal(me) > me.floor {
            Sends::List
        } else {
            Sends::Write
        }
    }

    fn is_active(me: &Sender) -> bool {
        matches!(me.entry, Entry::Taken(..)) && me.head != NEVER
    }

    fn after_list(me: &Sender) -> Sends {
        if me.head >= Self::goal(me) {
            Sends::Intent
        } else if Self::is_active(me) {
            Sends::Head
        } else {
            Sends::List
        }
    }

    fn take_list(self, words: &mut Words, me: &mut Sender) {
        let entry = Entry::from_word(words.load_newest(SENDER, word::ENTRY));
        let known = match entry.who() {
            // The slot has no reader, so nothing is known.
            None => false,
            _ if self.has(Fault::HeadOfTheSlot) => me.head != NEVER,
            who => who == me.entry.who() && entry.position() == me.entry.position(),
        };
        let keeps = known || self.has(Fault::HeadOfTheSlot) && entry == Entry::Free;
        if !keeps {
            me.head = entry.position();
        }
        if let Some(who) = entry.who()
            && who != me.object
            && !self.has(Fault::ObjectOfTheSlot)
        {
            me.object = who;
        }
        if entry.who() == Some(Who::New)
            && me.entry.who() != Some(Who::New)
            && !self.has(Fault::RungOfTheSlot)
        {
            me.rung = 0;
        }
        me.entry = entry;
    }

    fn send(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, SENDER);
        let State {
            words,
            sender: me,
            new,
            wrong,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(SENDER, word, choice, order));
        me.next = match me.next {
            Sends::List | Sends::Changed | Sends::Again => {
                if value != me.generation {
                    me.generation = value;
                    self.take_list(words, me);
                }
                match me.next {
                    Sends::Changed if me.entry.who() == Some(Who::New) && Self::is_active(me) => Sends::Looks,
                    Sends::Changed => self.begin(me),
                    Sends::List => Self::after_list(me),
                    _ if me.head >= Self::goal(me) => Sends::Intent,
                    _ if Self::is_active(me) => Sends::AgainHead,
                    _ => Sends::Sleeps,
                }
            }
            Sends::Head | Sends::AgainHead => {
                if value < me.head || value > me.sent {
                    *wrong = Some(Wrong::Accused);
                }
                me.head = value;
                match me.next {
                    _ if value >= Self::goal(me) => Sends::Intent,
                    Sends::AgainHead => Sends::Sleeps,
                    _ => {
                        me.named = me.entry.who();
                        if self.about == About::Room {
                            Sends::Again
                        } else {
                            Sends::List
                        }
                    }
                }
            }
            Sends::Sleeps => {
                me.woken = false;
                words.load_newest(SENDER, word::WOKEN);
                Sends::List
            }
            Sends::Intent => {
                words.store(SENDER, word::INTENT, Self::goal(me), Order::Relaxed);
                words.full_fence(SENDER);
                Sends::Sure
            }
            Sends::Sure if value != me.generation => Sends::List,
            Sends::Sure if self.has(Fault::FloorAfterTheWrite) => Sends::Write,
            Sends::Sure => Sends::Floor,
            Sends::Floor | Sends::LateFloor => {
                me.floor = Self::goal(me);
                me.named = None;
                words.store(SENDER, word::FLOOR, me.floor, Order::Synchronises);
                words.release_fence(SENDER);
                if me.next == Sends::Floor {
                    Sends::Write
                } else {
                    Sends::Tail
                }
            }
            Sends::Write => {
                words.store(SENDER, word::cell(me.sent), me.sent + 1, Order::Relaxed);
                if self.has(Fault::FloorAfterTheWrite) {
                    Sends::LateFloor
                } else {
                    Sends::Tail
                }
            }
            Sends::Tail => {
                me.sent += 1;
                words.store(SENDER, word::TAIL, me.sent, Order::Synchronises);
                if self.about == About::Bells {
                    words.full_fence(SENDER);
                    Sends::Changed
                } else {
                    self.begin(me)
                }
            }
            Sends::Looks => {
                if value % 2 == 1 && value != me.rung {
                    me.rung = value;
                    new.bell = true;
                }
                self.begin(me)
            }
            Sends::Done => Sends::Done,
        };
        if me.next == Sends::Done {
            words.retire(SENDER);
        }
    }
}

/// The watcher's steps.
impl Eviction {
    fn wake(self, words: &mut Words, sender: &mut Sender) {
        sender.woken |= sender.next == Sends::Sleeps || !self.has(Fault::WakesOnlyASleeper);
        words.store(WATCHER, word::WOKEN, 1, Order::Synchronises);
    }

    fn watch(self, state: &mut State) {
        let State {
            words,
            watcher,
            changes,
            evicted,
            sender,
            wrong,
            ..
        } = state;
        *watcher = match *watcher {
            Watches::Evicts(_) | Watches::Buries => {
                let named = match *watcher {
                    Watches::Evicts(who) => who,
                    _ => Who::Old,
                };
                let entry = Entry::from_word(words.load_newest(WATCHER, word::ENTRY));
                let in_slot = entry.who();
                let slot_alone = self.has(Fault::NamesTheSlot) && *watcher != Watches::Buries;
                if in_slot == Some(named) || slot_alone && in_slot.is_some() {
                    if in_slot == Some(Who::New) && named == Who::Old {
                        *wrong = Some(Wrong::Mistaken);
                    }
                    evicted[usize::from(in_slot == Some(Who::New))] = true;
                    words.store(WATCHER, word::ENTRY, Entry::Free.word(), Order::Synchronises);
                    *changes += 1;
                    Watches::Tells(*changes)
                } else {
                    Watches::Waits
                }
            }
            Watches::Tells(generation) => {
                words.store(WATCHER, word::GENERATION, generation, Order::Synchronises);
                if self.has(Fault::ReleasesWithoutWaking) || self.has(Fault::WakesFirst) {
                    Watches::Waits
                } else {
                    Watches::Wakes
                }
            }
            Watches::Wakes => {
                self.wake(words, sender);
                Watches::Waits
            }
            Watches::WakesBefore(who) => {
                self.wake(words, sender);
                Watches::Evicts(who)
            }
            Watches::Waits => Watches::Waits,
        };
    }
}

/// The watcher's observation of the new reader.
impl Eviction {
    /// Returns the number of results that one check of the new reader may have: one for each head that may be
    /// read.
    fn looks(state: &State) -> u8 {
        let mut words = state.words.clone();
        match Entry::from_word(words.load_newest(WATCHER, word::ENTRY)) {
            Entry::Taken(Who::New, _) => words.choices(WATCHER, word::NEW_HEAD),
            Entry::Entered | Entry::Held(_) => 1,
            Entry::Free | Entry::Taken(Who::Old, _) => 0,
        }
    }

    /// Compares the position of the new reader with the previous one. A position that decreases counts as a
    /// violation.
    fn look(self, state: &mut State, choice: u8) {
        // The lock orders all stores before the entry.
        let entry = Entry::from_word(state.words.load_newest(WATCHER, word::ENTRY));
        let position = match entry {
            Entry::Taken(Who::New, _) => {
                state
                    .words
                    .load(WATCHER, word::NEW_HEAD, choice, Order::Synchronises)
            }
            Entry::Entered if !self.has(Fault::PositionOfNone) => return,
            entry => entry.position(),
        };
        if state.seen.is_some_and(|seen| position < seen) {
            state.wrong = Some(Wrong::Accused);
        }
        state.seen = Some(position);
    }
}

/// The readers' steps.
impl Eviction {
    /// Whether a copy may be handed out, given the floor after it. The preceding fence has ordered the two.
    fn may_hand_out(self, head: u8, floor: u8) -> bool {
        floor <= head || self.has(Fault::HandsOutWithoutALook)
    }

    fn fence(self, words: &mut Words, thread: usize) {
        if !self.has(Fault::LooksWithoutFence) {
            words.acquire_fence(thread);
        }
    }

    fn read(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, OLD);
        let State {
            words,
            old,
            old_head,
            evicted,
            wrong,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(OLD, word, choice, order));
        *old = match *old {
            Reads::Copies => {
                self.fence(words, OLD);
                Reads::Checks { copied: value }
            }
            Reads::Checks { copied } if self.may_hand_out(*old_head, value) => {
                if copied != *old_head + 1 {
                    *wrong = Some(Wrong::Torn);
                }
                Reads::LetsGo
            }
            Reads::Checks { .. } => {
                if !evicted[0] {
                    *wrong = Some(Wrong::Passed);
                }
                Reads::Done
            }
            Reads::LetsGo => {
                *old_head += 1;
                words.store(OLD, word::OLD_HEAD, *old_head, Order::Synchronises);
                if *old_head == self.old_reads {
                    Reads::Done
                } else {
                    Reads::Copies
                }
            }
            Reads::Done => Reads::Done,
        };
        if *old == Reads::Done {
            words.retire(OLD);
        }
    }

    fn come(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, NEW);
        let State {
            words,
            new: me,
            changes,
            evicted,
            wrong,
            ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(NEW, word, choice, order));
        let mut enter = |words: &mut Words, entry: Entry| {
            words.load_newest(NEW, word::ENTRY);
            words.store(NEW, word::ENTRY, entry.word(), Order::Synchronises);
            *changes += 1;
            *changes
        };
        me.next = match me.next {
            Comes::Enters => {
                words.load_newest(NEW, word::ENTRY);
                words.store(NEW, word::ENTRY, Entry::Entered.word(), Order::Synchronises);
                Comes::Holds
            }
            Comes::Holds => {
                me.head = words
                    .load_newest(NEW, word::FLOOR)
                    .max(words.load_newest(NEW, word::INTENT));
                Comes::Tells(enter(words, Entry::Held(me.head)))
            }
            Comes::Tells(generation) => {
                words.store(NEW, word::GENERATION, generation, Order::Synchronises);
                words.full_fence(NEW);
                Comes::Sure
            }
            Comes::Sure if value > me.head => Comes::Leaves,
            Comes::Sure => Comes::Head,
            Comes::Leaves => {
                // Behave like a failed handshake, because other models cover the retry.
                Comes::TellsActive(enter(words, Entry::Free))
            }
            Comes::Head => {
                words.store(NEW, word::NEW_HEAD, me.head, Order::Synchronises);
                Comes::Activates
            }
            Comes::Activates if evicted[1] => Comes::Done,
            Comes::Activates => Comes::TellsActive(enter(words, Entry::Taken(Who::New, me.head))),
            Comes::TellsActive(generation) => {
                words.store(NEW, word::GENERATION, generation, Order::Synchronises);
                let left = words.load_newest(NEW, word::ENTRY) == Entry::Free.word() && !evicted[1];
                if left { Comes::Done } else { Comes::Looks }
            }
            Comes::Copies => {
                self.fence(words, NEW);
                Comes::Checks { copied: value }
            }
            Comes::Checks { copied } if self.may_hand_out(me.head, value) => {
                if copied != me.head + 1 {
                    *wrong = Some(Wrong::Torn);
                }
                Comes::LetsGo
            }
            Comes::Checks { .. } => {
                if !evicted[1] {
                    *wrong = Some(Wrong::Passed);
                }
                Comes::Done
            }
            next => self.go_on(words, me, next, value),
        };
        if me.next == Comes::Done {
            words.retire(NEW);
        }
    }

    fn go_on(self, words: &mut Words, me: &mut Newcomer, next: Comes, value: u8) -> Comes {
        match next {
            Comes::LetsGo => {
                me.head += 1;
                words.store(NEW, word::NEW_HEAD, me.head, Order::Synchronises);
                if me.head == self.messages {
                    Comes::Done
                } else {
                    Comes::Looks
                }
            }
            Comes::Looks | Comes::Again => {
                me.tail = value;
                match next {
                    Comes::Again if value > me.head => Comes::Unparks,
                    Comes::Again => Comes::Sleeps,
                    _ if value > me.head => Comes::Copies,
                    _ if self.about == About::Bells => Comes::Parks,
                    _ => Comes::Looks,
                }
            }
            Comes::Parks => {
                me.number += 1;
                words.store(NEW, word::NEW_PARKED, me.number, Order::Synchronises);
                words.full_fence(NEW);
                Comes::Again
            }
            Comes::Sleeps => {
                me.bell = false;
                Comes::Unparks
            }
            Comes::Unparks => {
                me.number += 1;
                words.store(NEW, word::NEW_PARKED, me.number, Order::Relaxed);
                Comes::Looks
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
        words.store(SENDER, word::TAIL, CELLS, Order::Synchronises);
        words.store(
            SENDER,
            word::ENTRY,
            Entry::Taken(Who::Old, 0).word(),
            Order::Synchronises,
        );
        for thread in [SENDER, WATCHER, OLD, NEW] {
            words.settle(thread);
        }
        let mut sender = Sender {
            next: Sends::Done,
            sent: CELLS,
            floor: 0,
            generation: 0,
            entry: Entry::Taken(Who::Old, 0),
            head: 0,
            rung: 1,
            object: Who::Old,
            named: None,
            woken: false,
        };
        sender.next = self.begin(&sender);
        vec![State {
            words,
            sender,
            watcher: Watches::Waits,
            seen: None,
            old: if self.old_reads == 0 {
                Reads::Done
            } else {
                Reads::Copies
            },
            old_head: 0,
            old_lives: true,
            new: Newcomer {
                next: Comes::Enters,
                head: 0,
                tail: 0,
                number: 0,
                bell: false,
            },
            changes: 0,
            evicted: [false; 2],
            wrong: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // States after a violation are not explored.
        if state.wrong.is_some() {
            return;
        }
        for thread in [SENDER, WATCHER, OLD, NEW] {
            if thread == OLD && !state.old_lives || !Self::can_go_on(state, thread) {
                continue;
            }
            let choices = match Self::loads(state, thread) {
                Some((word, _)) => state.words.choices(thread, word),
                None => 1,
            };
            actions.extend((0..choices).map(|choice| Action::GoOn(thread, choice)));
        }
        if state.old_lives {
            actions.push(Action::Die);
        }
        if state.watcher == Watches::Waits {
            if let Some(who) = state.sender.named {
                actions.push(Action::Stall(who));
            }
            if !state.old_lives && !state.evicted[0] {
                actions.push(Action::Hear);
            }
            if self.about == About::Looks && !state.evicted[1] {
                actions.extend((0..Self::looks(state)).map(Action::Look));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::GoOn(SENDER, choice) => self.send(&mut state, choice),
            Action::GoOn(WATCHER, _) => self.watch(&mut state),
            Action::GoOn(OLD, choice) => self.read(&mut state, choice),
            Action::GoOn(_, choice) => self.come(&mut state, choice),
            Action::Die => {
                state.old_lives = false;
                state.words.retire(OLD);
            }
            Action::Stall(who) => {
                state.watcher = if self.has(Fault::WakesFirst) {
                    Watches::WakesBefore(who)
                } else {
                    Watches::Evicts(who)
                };
            }
            Action::Look(choice) => self.look(&mut state, choice),
            Action::Hear => {
                state.watcher = if self.has(Fault::WakesFirst) {
                    Watches::WakesBefore(Who::Old)
                } else {
                    Watches::Buries
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(WHOLE, |_, state: &State| state.wrong != Some(Wrong::Torn)),
            Property::always(KEPT, |_, state: &State| state.wrong != Some(Wrong::Passed)),
            Property::always(HONEST, |_, state: &State| state.wrong != Some(Wrong::Accused)),
            Property::always(BY_NUMBER, |_, state: &State| state.wrong != Some(Wrong::Mistaken)),
            Property::always(SENDER_WOKEN, |_, state: &State| {
                let rests = state.watcher == Watches::Waits && state.new.next == Comes::Enters;
                let stuck = state.sender.next == Sends::Sleeps && !state.sender.woken;
                !(stuck && rests && state.evicted[0])
            }),
            Property::always(RUNG, |_, state: &State| {
                let me = &state.new;
                let asleep = me.next == Comes::Sleeps && !me.bell && me.head < state.sender.sent;
                let looks = matches!(state.sender.next, Sends::Changed | Sends::Looks);
                !asleep || looks || state.evicted[1]
            }),
            Property::sometimes("a living reader is evicted", |_, state: &State| {
                state.evicted[0] && state.old_lives && state.sender.floor > state.old_head
            }),
            Property::sometimes(
                "the new reader in the slot reads the last message",
                |model: &Self, state: &State| state.new.head == model.messages,
            ),
        ];
        if self.about == About::Looks {
            properties.push(Property::sometimes(
                "the watcher sees the new reader's progress",
                |_, state: &State| state.seen.is_some_and(|seen| seen > 0 && seen < NEVER),
            ));
        }
        if self.about == About::Bells {
            properties.push(Property::sometimes(
                "the new reader is woken",
                |_, state: &State| state.new.next == Comes::Sleeps && state.new.bell,
            ));
        }
        properties
    }
}

/// For best-effort, latest and evicted readers.
pub const WHOLE: &str = "a torn message is never handed out, even to a reader that is being evicted";
/// For a reliable reader.
pub const KEPT: &str = "the floor never passes the head of a reliable reader that was not evicted";
/// Words of another reader in the same slot do not count, and neither does a word that was not stored yet.
pub const HONEST: &str = "a reader is judged only by its own words";
/// For the new reader.
pub const BY_NUMBER: &str = "a reader is never evicted for another reader's stall";
/// For the publisher.
pub const SENDER_WOKEN: &str = "a publisher does not wait for space from an evicted reader";
/// For a new reader that sleeps.
pub const RUNG: &str =
    "a new reader does not stay asleep, whatever the previous reader in its slot was woken for";
