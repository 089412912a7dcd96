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
pub const NEWCOMERS: usize = 2;
const SENDER: usize = 0;
/// The number of cells of the ring.
const CELLS: u8 = 2;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The admitting thread makes no fence between its entry and its check of the intent.
    EntersWithoutFence,
    /// It checks the intent only before it has entered the position, and not after.
    LooksFirst,
    /// It increments the generation before it has entered the position.
    TellsFirst,
    /// The sender makes no fence between its intent and its check of the generation.
    IntendsWithoutFence,
    /// The sender checks the generation, and then stores its intent.
    IntendsLate,
    /// The sender copies the list, and then records the generation.
    TakesTheListFirst,
    /// The new reader is listed as active before it has stored its starting position.
    ActiveBeforeItsHead,
    /// The new reader stores its head before it has copied the message.
    LetsGoFirst,
    /// 'Now' means the time of the first check instead of the time of the admission.
    BeginsAtTheFirstLook,
    /// The floor's copy of the list and the wakeups share one record of the generation.
    OneNoteOfTheGeneration,
    /// The sender checks for a changed list before its fence instead of after.
    ListBeforeTheFence,
    /// A new reader that cannot issue a barrier is admitted without the publisher's barrier.
    AdmitsWithoutBarrier,
    /// The first check of a list with such a reader has no fence.
    FirstLookWithoutFence,
}

/// The starting point of the new reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum From {
    /// The next message that is sent.
    Now,
    /// The oldest message in the ring.
    Oldest,
    /// The last message.
    Latest,
}

/// Whether new readers sleep, and the side that makes the fences in that case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bells {
    /// They poll.
    None,
    /// The publisher makes a fence after each publication.
    Fences,
    /// The new reader issues a membarrier.
    Membarrier,
    /// The new reader cannot issue one, though the publisher could. So the publisher makes fences from the
    /// new reader's admission on.
    FencesFromNowOn,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// The number of new readers. The second one only changes the list: it enters at the start of the ring,
    /// and leaves if that was overwritten.
    pub newcomers: usize,
    /// The total number of messages.
    pub messages: u8,
    /// The number of messages that the ring contains at the start.
    pub before: u8,
    /// The starting point of the new readers.
    pub from: From,
    /// Whether new readers sleep.
    pub bells: Bells,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    use super::{CELLS, NEWCOMERS};

    pub(super) const TAIL: usize = 0;
    pub(super) const FLOOR: usize = 1;
    pub(super) const INTENT: usize = 2;
    pub(super) const GENERATION: usize = 3;
    pub(super) const fn cell(position: u8) -> usize {
        4 + (position % CELLS) as usize
    }
    /// The new reader's entry in the list. Accessed under the lock only.
    pub(super) const fn entry(newcomer: usize) -> usize {
        4 + CELLS as usize + newcomer
    }
    pub(super) const fn head(newcomer: usize) -> usize {
        4 + CELLS as usize + NEWCOMERS + newcomer
    }
    pub(super) const fn parked(newcomer: usize) -> usize {
        4 + CELLS as usize + 2 * NEWCOMERS + newcomer
    }
    pub(super) const ALL: usize = 4 + CELLS as usize + 3 * NEWCOMERS;
}

type Words = Memory<{ word::ALL }, { 1 + NEWCOMERS }>;

/// An entry, decoded from its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    /// No entry.
    None,
    /// An entry that keeps no position yet.
    Entered,
    /// The floor must not pass this position.
    Held(u8),
    /// The same, and the reader's own word has its read position.
    Active(u8),
}

impl Entry {
    fn word(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Entered => 1,
            Self::Held(position) => 2 + 2 * position,
            Self::Active(position) => 3 + 2 * position,
        }
    }

    fn from_word(word: u8) -> Self {
        match word {
            0 => Self::None,
            1 => Self::Entered,
            word if word % 2 == 0 => Self::Held(word / 2 - 1),
            word => Self::Active(word / 2 - 1),
        }
    }
}

/// The head of a reader for which the sender does not wait.
const NEVER: u8 = u8::MAX;

/// A reader, as the sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Seat {
    entry: Entry,
    head: u8,
}

/// The sender's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sends {
    /// Reads the generation, before it moves the floor.
    Generation,
    /// Copies the list.
    List,
    /// Records the generation after that ([`Fault::TakesTheListFirst`]).
    LateGeneration,
    /// Reads this reader's head.
    Head(u8),
    /// Stores its intent, and makes a fence.
    Intent,
    /// Reads the generation again.
    Sure,
    /// Stores its intent after that ([`Fault::IntendsLate`]).
    LateIntent,
    /// Stores the floor.
    Floor,
    /// Writes the cell.
    Write,
    /// Stores the tail.
    Tail,
    /// Makes a fence, if it must.
    Fence,
    /// Checks whether the list has changed.
    Changed,
    /// Copies the list for the wakeups.
    WakersList,
    /// Makes the fence for a list that needs one.
    ListFence,
    /// Reads this reader's parked word.
    Looks(u8),
    /// Wakes this reader.
    Rings(u8),
    /// Has sent all messages.
    Done,
}

/// The next step of the new reader, or of the thread that admits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Comes {
    /// Enters the list.
    Enters,
    /// Reads the floor,
    Floor,
    /// the tail,
    Tail,
    /// and the intent, and chooses a position.
    Intent,
    /// Enters the position.
    Holds,
    /// Sets the generation to this value.
    Tells(u8),
    /// Reads the intent again.
    Sure,
    /// Stores its starting position as its head.
    Head,
    /// Marks its entry as active.
    Activates,
    /// Sets the generation to this value.
    TellsActive(u8),
    /// Issues the publisher's barrier.
    AdmitBarrier,
    /// Is in membarrier(2), to be admitted.
    Admitting(Membarrier),
    /// Reads the tail, and moves to its starting point.
    Begins,
    /// Stores its head.
    BeginsHead,
    /// Reads the tail.
    Looks,
    /// Copies a message.
    Copies,
    /// Stores its head.
    LetsGo,
    /// Announces that it sleeps, and makes a fence.
    Parks,
    /// Issues a barrier, if it must.
    Barrier,
    /// Is in membarrier(2).
    Waits(Membarrier),
    /// Reads the tail once more.
    Again,
    /// Sleeps.
    Sleeps,
    /// Announces that it is awake.
    Unparks,
    /// Has read all messages.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sender {
    next: Sends,
    sent: u8,
    floor: u8,
    goal: u8,
    /// The generation of its copy of the list.
    generation: u8,
    seats: [Seat; NEWCOMERS],
    /// The generation up to which the wakeups know the list.
    told: u8,
    /// The readers that may need a wakeup, one bit each.
    watched: u8,
    rung: [u8; NEWCOMERS],
    /// It makes a fence after each publication.
    always: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Newcomer {
    next: Comes,
    floor: u8,
    tail: u8,
    /// Its starting position, and then its read position.
    head: u8,
    number: u8,
    bell: bool,
    /// The number of messages whose sending had started when it was admitted.
    begun: Option<u8>,
}

/// The violation that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wrong {
    /// A message was overwritten before it was read.
    WrittenOver,
    /// An honest reader was accused of a protocol violation.
    Accused,
    /// A message that was sent after the admission is missing.
    Missing,
}

/// The words, and the state of each thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    sender: Sender,
    newcomers: [Newcomer; NEWCOMERS],
    /// The number of changes of the list. Accessed under its lock.
    changes: u8,
    wrong: Option<Wrong>,
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread takes its next step. A load reads the oldest store that it may (0), or a newer one.
    GoOn(usize, u8),
    /// The new reader's membarrier interrupts the sender.
    Interrupt(usize),
}

impl Admission {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Returns the word that the thread loads next, and the load's ordering.
    fn loads(state: &State, thread: usize) -> Option<(usize, Order)> {
        use Order::{Relaxed, Synchronises};
        if thread == SENDER {
            return match state.sender.next {
                Sends::Generation | Sends::Sure | Sends::LateGeneration | Sends::Changed => {
                    Some((word::GENERATION, Synchronises))
                }
                Sends::Head(at) => Some((word::head(at.into()), Synchronises)),
                Sends::Looks(at) => Some((word::parked(at.into()), Relaxed)),
                _ => None,
            };
        }
        let me = &state.newcomers[thread - 1];
        match me.next {
            Comes::Floor => Some((word::FLOOR, Synchronises)),
            Comes::Tail | Comes::Begins | Comes::Looks | Comes::Again => Some((word::TAIL, Synchronises)),
            Comes::Intent | Comes::Sure => Some((word::INTENT, Relaxed)),
            Comes::Copies => Some((word::cell(me.head), Relaxed)),
            _ => None,
        }
    }

    fn can_go_on(state: &State, thread: usize) -> bool {
        if thread == SENDER {
            return state.sender.next != Sends::Done;
        }
        let me = &state.newcomers[thread - 1];
        match me.next {
            Comes::Sleeps => me.bell,
            Comes::Done | Comes::Admitting(_) | Comes::Waits(_) => false,
            _ => true,
        }
    }
}

/// The sender's steps.
impl Admission {
    /// Returns the first step for the next message.
    fn begin(self, me: &mut Sender) -> Sends {
        if me.sent == self.messages {
            return Sends::Done;
        }
        me.goal = (me.sent + 1).saturating_sub(CELLS);
        if me.goal <= me.floor {
            Sends::Write
        } else if self.has(Fault::TakesTheListFirst) {
            Sends::List
        } else {
            Sends::Generation
        }
    }

    /// Returns the step after the list is known: reads the heads if the known ones leave no space.
    fn after_list(self, me: &Sender) -> Sends {
        if me.seats.iter().all(|seat| seat.head >= me.goal) {
            return self.intent();
        }
        let active = |at: usize| matches!(me.seats[at].entry, Entry::Active(_)) && me.seats[at].head != NEVER;
        match (0..NEWCOMERS).find(|at| active(*at)) {
            Some(at) => Sends::Head(narrow(at)),
            None => self.wait(),
        }
    }

    /// Returns the step after no space was found: checks again.
    fn wait(self) -> Sends {
        if self.has(Fault::TakesTheListFirst) {
            Sends::List
        } else {
            Sends::Generation
        }
    }

    fn intent(self) -> Sends {
        if self.has(Fault::IntendsLate) {
            Sends::Sure
        } else {
            Sends::Intent
        }
    }

    fn send(self, state: &mut State, choice: u8) {
        let loaded = Self::loads(state, SENDER);
        let State {
            words, sender: me, ..
        } = state;
        let value = loaded.map_or(0, |(word, order)| words.load(SENDER, word, choice, order));
        me.next = match me.next {
            Sends::Generation if value == me.generation => self.after_list(me),
            Sends::Generation => {
                me.generation = value;
                Sends::List
            }
            Sends::List => {
                Self::take_list(words, me);
                if self.has(Fault::TakesTheListFirst) {
                    Sends::LateGeneration
                } else {
                    self.after_list(me)
                }
            }
            Sends::LateGeneration => {
                me.generation = value;
                self.after_list(me)
            }
            Sends::Head(at) => {
                let seat = &mut me.seats[usize::from(at)];
                if value < seat.head || value > me.sent {
                    state.wrong = Some(Wrong::Accused);
                }
                seat.head = value;
                let known = |at: &usize| matches!(me.seats[*at].entry, Entry::Active(_));
                match (usize::from(at) + 1..NEWCOMERS).find(known) {
                    Some(at) => Sends::Head(narrow(at)),
                    None if me.seats.iter().all(|seat| seat.head >= me.goal) => self.intent(),
                    None => self.wait(),
                }
            }
            Sends::Intent | Sends::LateIntent => {
                words.store(SENDER, word::INTENT, me.goal, Order::Relaxed);
                if !self.has(Fault::IntendsWithoutFence) {
                    words.full_fence(SENDER);
                }
                if me.next == Sends::Intent {
                    Sends::Sure
                } else {
                    Sends::Floor
                }
            }
            Sends::Sure if value != me.generation => self.wait(),
            Sends::Sure if self.has(Fault::IntendsLate) => Sends::LateIntent,
            Sends::Sure => Sends::Floor,
            Sends::Floor => {
                me.floor = me.goal;
                words.store(SENDER, word::FLOOR, me.floor, Order::Synchronises);
                words.release_fence(SENDER);
                Sends::Write
            }
            Sends::Write => {
                words.store(SENDER, word::cell(me.sent), me.sent + 1, Order::Relaxed);
                Sends::Tail
            }
            _ => return self.wake(state, value),
        };
        Self::end(state);
    }

    fn end(state: &mut State) {
        if state.sender.next == Sends::Done {
            state.words.retire(SENDER);
        }
    }

    fn take_list(words: &mut Words, me: &mut Sender) {
        for at in 0..NEWCOMERS {
            let entry = Entry::from_word(words.load_newest(SENDER, word::entry(at)));
            let seat = &mut me.seats[at];
            let place = |entry| match entry {
                Entry::Held(position) | Entry::Active(position) => position,
                Entry::None | Entry::Entered => NEVER,
            };
            if place(entry) != place(seat.entry) {
                seat.head = place(entry);
            }
            seat.entry = entry;
        }
    }

    /// The steps after a publication.
    fn wake(self, state: &mut State, value: u8) {
        let State {
            words, sender: me, ..
        } = state;
        me.next = match me.next {
            Sends::Tail => {
                me.sent += 1;
                words.store(SENDER, word::TAIL, me.sent, Order::Synchronises);
                if self.bells == Bells::None {
                    self.begin(me)
                } else if self.has(Fault::ListBeforeTheFence) {
                    Sends::Changed
                } else {
                    self.fence(me)
                }
            }
            Sends::Fence => {
                words.full_fence(SENDER);
                if self.has(Fault::ListBeforeTheFence) {
                    Self::look(me, 0)
                } else {
                    Sends::Changed
                }
            }
            Sends::Changed => {
                let known = if self.has(Fault::OneNoteOfTheGeneration) {
                    me.generation
                } else {
                    me.told
                };
                if value == known {
                    self.after_changed(me)
                } else {
                    me.generation = value;
                    me.told = value;
                    Sends::WakersList
                }
            }
            Sends::WakersList => {
                Self::take_list(words, me);
                let active = |at: &usize| matches!(me.seats[*at].entry, Entry::Active(_));
                me.watched = (0..NEWCOMERS).filter(active).map(|at| 1 << at).sum();
                // Wake all of them once more instead of tracking whether each is the same reader as before.
                me.rung = [0; NEWCOMERS];
                let needs = self.bells == Bells::FencesFromNowOn && me.watched != 0;
                if needs && !me.always {
                    me.always = true;
                    Sends::ListFence
                } else {
                    self.after_changed(me)
                }
            }
            Sends::ListFence => {
                if !self.has(Fault::FirstLookWithoutFence) {
                    words.full_fence(SENDER);
                }
                self.after_changed(me)
            }
            Sends::Looks(at) => {
                let number = usize::from(at);
                if value % 2 == 1 && value != me.rung[number] {
                    me.rung[number] = value;
                    Sends::Rings(at)
                } else {
                    Self::look(me, number + 1)
                }
            }
            Sends::Rings(at) => {
                state.newcomers[usize::from(at)].bell = true;
                Self::look(me, usize::from(at) + 1)
            }
            other => other,
        };
        if me.next == Sends::Done && self.bells != Bells::None {
            me.next = self.begin(me);
        }
        Self::end(state);
    }

    fn fence(self, me: &Sender) -> Sends {
        if self.bells == Bells::Fences || me.always {
            Sends::Fence
        } else if self.has(Fault::ListBeforeTheFence) {
            Self::look(me, 0)
        } else {
            Sends::Changed
        }
    }

    fn after_changed(self, me: &Sender) -> Sends {
        if self.has(Fault::ListBeforeTheFence) {
            self.fence(me)
        } else {
            Self::look(me, 0)
        }
    }

    /// Returns the step for the next reader to check, or `Done` after the last.
    fn look(me: &Sender, from: usize) -> Sends {
        let next = (from..NEWCOMERS).find(|at| me.watched & (1 << at) != 0);
        next.map_or(Sends::Done, |at| Sends::Looks(narrow(at)))
    }
}

fn narrow(at: usize) -> u8 {
    u8::try_from(at).expect("a model has few readers")
}

/// Changes an entry of the list under the lock that protects all changes. Returns the new generation.
fn enter(words: &mut Words, changes: &mut u8, at: usize, entry: Entry) -> u8 {
    for other in 0..NEWCOMERS {
        words.load_newest(1 + at, word::entry(other));
    }
    words.store(1 + at, word::entry(at), entry.word(), Order::Synchronises);
    *changes += 1;
    *changes
}

/// The new reader's steps.
impl Admission {
    fn come(self, state: &mut State, at: usize, choice: u8) {
        let thread = 1 + at;
        let loaded = Self::loads(state, thread);
        let State {
            words,
            newcomers,
            changes,
            ..
        } = state;
        let me = &mut newcomers[at];
        let value = loaded.map_or(0, |(word, order)| words.load(thread, word, choice, order));
        me.next = match me.next {
            Comes::Enters => {
                words.store(
                    thread,
                    word::entry(at),
                    Entry::Entered.word(),
                    Order::Synchronises,
                );
                Comes::Floor
            }
            Comes::Floor => {
                me.floor = value;
                Comes::Tail
            }
            Comes::Tail => {
                me.tail = value;
                Comes::Intent
            }
            Comes::Intent => {
                let place = match self.from {
                    From::Oldest => me.floor.max(value),
                    From::Now | From::Latest => me.tail,
                };
                // Otherwise no mark fits, and it checks again.
                if place >= value && place >= me.floor && place <= me.tail {
                    me.head = place;
                    Comes::Holds
                } else {
                    Comes::Floor
                }
            }
            Comes::Holds => {
                let head = me.head;
                if self.has(Fault::TellsFirst) {
                    words.store(thread, word::GENERATION, *changes + 1, Order::Synchronises);
                    enter(words, changes, at, Entry::Held(head));
                    Comes::Sure
                } else {
                    Comes::Tells(enter(words, changes, at, Entry::Held(head)))
                }
            }
            Comes::Tells(generation) => {
                words.store(thread, word::GENERATION, generation, Order::Synchronises);
                if !self.has(Fault::EntersWithoutFence) {
                    words.full_fence(thread);
                }
                Comes::Sure
            }
            Comes::Sure if value > me.head && !self.has(Fault::LooksFirst) => Comes::Floor,
            Comes::Sure if at > 0 && value > 0 => Comes::TellsActive(enter(words, changes, at, Entry::None)),
            Comes::Sure if at > 0 => Comes::Done,
            Comes::Sure if self.has(Fault::ActiveBeforeItsHead) => Comes::Activates,
            Comes::Sure => Comes::Head,
            Comes::Head => {
                words.store(thread, word::head(at), me.head, Order::Synchronises);
                if self.has(Fault::ActiveBeforeItsHead) {
                    Comes::Begins
                } else {
                    Comes::Activates
                }
            }
            Comes::Activates => Comes::TellsActive(enter(words, changes, at, Entry::Active(me.head))),
            Comes::TellsActive(generation) => {
                words.store(thread, word::GENERATION, generation, Order::Synchronises);
                if at > 0 {
                    Comes::Done
                } else if self.has(Fault::ActiveBeforeItsHead) {
                    Comes::Head
                } else if self.bells == Bells::FencesFromNowOn && !self.has(Fault::AdmitsWithoutBarrier) {
                    Comes::AdmitBarrier
                } else {
                    Comes::Begins
                }
            }
            Comes::AdmitBarrier => match Membarrier::begin(words, thread, 1 << SENDER) {
                Membarrier { left: 0 } => Comes::Begins,
                barrier => Comes::Admitting(barrier),
            },
            _ => return self.read(state, at, value),
        };
        if me.next == Comes::Done {
            words.retire(thread);
        }
    }

    fn read(self, state: &mut State, at: usize, value: u8) {
        let thread = 1 + at;
        let State {
            words,
            newcomers,
            sender,
            ..
        } = state;
        let me = &mut newcomers[at];
        me.next = match me.next {
            Comes::Begins => {
                // A message that is being sent when the admission returns was started before.
                let writing = matches!(sender.next, Sends::Write | Sends::Tail) || sender.goal > sender.floor;
                me.begun = Some(sender.sent + u8::from(writing && sender.sent < self.messages));
                me.tail = value;
                match self.from {
                    From::Now if self.has(Fault::BeginsAtTheFirstLook) => {}
                    From::Now => me.head = value,
                    From::Latest => me.head = me.head.max(value.saturating_sub(1)),
                    From::Oldest => {}
                }
                Comes::BeginsHead
            }
            Comes::BeginsHead => {
                words.store(thread, word::head(at), me.head, Order::Synchronises);
                Comes::Looks
            }
            Comes::Looks | Comes::Again => {
                me.tail = value;
                if self.has(Fault::BeginsAtTheFirstLook) && me.number == 0 && me.head < value {
                    me.head = value;
                    // Only once.
                    me.number = 2;
                    if me.begun.is_some_and(|begun| value > begun) {
                        state.wrong = Some(Wrong::Missing);
                    }
                }
                match me.next {
                    Comes::Again if me.tail > me.head => Comes::Unparks,
                    Comes::Again => Comes::Sleeps,
                    _ if me.tail > me.head => self.take(),
                    _ if self.bells == Bells::None => Comes::Looks,
                    _ => Comes::Parks,
                }
            }
            Comes::Copies => {
                let expected = me.head + 1 - u8::from(self.has(Fault::LetsGoFirst));
                if value != expected {
                    state.wrong = Some(Wrong::WrittenOver);
                }
                if self.has(Fault::LetsGoFirst) {
                    self.after_reading(words, me, thread)
                } else {
                    me.head += 1;
                    Comes::LetsGo
                }
            }
            Comes::LetsGo => {
                if self.has(Fault::LetsGoFirst) {
                    me.head += 1;
                }
                words.store(thread, word::head(at), me.head, Order::Synchronises);
                if self.has(Fault::LetsGoFirst) {
                    Comes::Copies
                } else {
                    self.after_reading(words, me, thread)
                }
            }
            next => self.sleep(words, me, at, next),
        };
    }

    fn take(self) -> Comes {
        if self.has(Fault::LetsGoFirst) {
            Comes::LetsGo
        } else {
            Comes::Copies
        }
    }

    fn after_reading(self, words: &mut Words, me: &Newcomer, thread: usize) -> Comes {
        if me.head == self.messages {
            words.retire(thread);
            Comes::Done
        } else {
            Comes::Looks
        }
    }

    fn sleep(self, words: &mut Words, me: &mut Newcomer, at: usize, next: Comes) -> Comes {
        let thread = 1 + at;
        match next {
            Comes::Parks => {
                me.number += 1;
                words.store(thread, word::parked(at), me.number, Order::Synchronises);
                Comes::Barrier
            }
            Comes::Barrier if self.bells != Bells::Membarrier => {
                words.full_fence(thread);
                Comes::Again
            }
            Comes::Barrier => match Membarrier::begin(words, thread, 1 << SENDER) {
                Membarrier { left: 0 } => Comes::Again,
                barrier => Comes::Waits(barrier),
            },
            Comes::Sleeps => {
                me.bell = false;
                Comes::Unparks
            }
            Comes::Unparks => {
                me.number += 1;
                words.store(thread, word::parked(at), me.number, Order::Relaxed);
                if me.tail > me.head {
                    self.take()
                } else {
                    Comes::Looks
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
        let uses = |newcomer: usize| {
            let own = 1 << word::head(newcomer) | 1 << word::parked(newcomer);
            if newcomer < self.newcomers { own } else { 0 }
        };
        let lists: u32 = (0..NEWCOMERS).map(|at| 1 << word::entry(at)).sum();
        let shared = ((1 << word::entry(0)) - 1) | lists;
        let seat = Seat {
            entry: Entry::None,
            head: NEVER,
        };
        let mut sender = Sender {
            next: Sends::Done,
            sent: self.before,
            floor: 0,
            goal: 0,
            generation: 0,
            seats: [seat; NEWCOMERS],
            told: 0,
            watched: 0,
            rung: [0; NEWCOMERS],
            always: false,
        };
        sender.next = self.begin(&mut sender);
        let newcomer = |at| Newcomer {
            next: if at < self.newcomers {
                Comes::Enters
            } else {
                Comes::Done
            },
            floor: 0,
            tail: 0,
            head: 0,
            number: 0,
            bell: false,
            begun: None,
        };
        let come = |at: usize| if at < self.newcomers { uses(at) | shared } else { 0 };
        let mut words = Words::new([uses(0) | uses(1) | shared, come(0), come(1)]);
        for position in 0..self.before {
            words.store(SENDER, word::cell(position), position + 1, Order::Relaxed);
        }
        words.store(SENDER, word::TAIL, self.before, Order::Synchronises);
        for thread in 0..=self.newcomers {
            words.settle(thread);
        }
        vec![State {
            words,
            sender,
            newcomers: [newcomer(0), newcomer(1)],
            changes: 0,
            wrong: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // States after a violation are not explored.
        if state.wrong.is_some() {
            return;
        }
        for thread in 0..=self.newcomers {
            if Self::can_go_on(state, thread) {
                let choices = match Self::loads(state, thread) {
                    Some((word, _)) => state.words.choices(thread, word),
                    None => 1,
                };
                actions.extend((0..choices).map(|choice| Action::GoOn(thread, choice)));
            }
        }
        for (at, newcomer) in state.newcomers.iter().enumerate() {
            if let Comes::Admitting(_) | Comes::Waits(_) = newcomer.next {
                actions.push(Action::Interrupt(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::GoOn(SENDER, choice) => self.send(&mut state, choice),
            Action::GoOn(thread, choice) => self.come(&mut state, thread - 1, choice),
            Action::Interrupt(at) => {
                let State { words, newcomers, .. } = &mut state;
                let me = &mut newcomers[at];
                me.next = match me.next {
                    Comes::Admitting(mut barrier) => {
                        barrier.interrupt(words, 1 + at, SENDER);
                        Comes::Begins
                    }
                    Comes::Waits(mut barrier) => {
                        barrier.interrupt(words, 1 + at, SENDER);
                        Comes::Again
                    }
                    _ => return None,
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(KEPT, |_, state: &State| state.wrong != Some(Wrong::WrittenOver)),
            Property::always(COMPLETE, |_, state: &State| state.wrong != Some(Wrong::Missing)),
            Property::always(HONEST, |_, state: &State| state.wrong != Some(Wrong::Accused)),
            Property::always(RUNG, |_, state: &State| {
                let asleep =
                    |me: &Newcomer| me.next == Comes::Sleeps && !me.bell && me.head < state.sender.sent;
                let looks = matches!(
                    state.sender.next,
                    Sends::Fence
                        | Sends::Changed
                        | Sends::WakersList
                        | Sends::ListFence
                        | Sends::Looks(_)
                        | Sends::Rings(_)
                );
                looks || !state.newcomers.iter().any(asleep)
            }),
            Property::sometimes(
                "the first has read the last message",
                |model: &Self, state: &State| state.newcomers[0].head == model.messages,
            ),
        ];
        if self.bells != Bells::None {
            properties.push(Property::sometimes(
                "a sleeping new reader is woken",
                |_, state: &State| {
                    let rung = |me: &Newcomer| me.next == Comes::Sleeps && me.bell;
                    state.newcomers.iter().any(rung)
                },
            ));
        }
        if self.messages > CELLS {
            properties.push(Property::sometimes(
                "a new reader finds that the floor may have passed it",
                |_, state: &State| {
                    let again = |at: usize| {
                        let me = &state.newcomers[at];
                        me.next == Comes::Floor && me.tail > 0
                    };
                    (0..NEWCOMERS).any(again)
                },
            ));
            properties.push(Property::sometimes(
                "the sender finds a new reader after it has stored its intent",
                |_, state: &State| {
                    let me = &state.sender;
                    me.next == Sends::List && me.goal > me.floor && state.changes > 0
                },
            ));
        }
        properties
    }
}

/// For a reliable reader.
pub const KEPT: &str = "the first message of a reliable reader is not overwritten before it is read";
/// For a reader that starts now.
pub const COMPLETE: &str = "a new reader gets each message whose sending started after its admission";
/// The publisher accepts the position that the reader reports.
pub const HONEST: &str = "a correct reader is never accused of a violation";
/// For a reader that sleeps.
pub const RUNG: &str = "a new reader does not stay asleep when a message is published";
