//! One publisher and the readers of its ring, each of which sleeps when it has nothing to do.
//!
//! A sleeper announces that in a word of its own, checks once more, and sleeps. The other side reads that
//! word after each publication and sends a wakeup. Between the store and the check there is a full fence on
//! each side, or one membarrier(2) at the sleeper. The publisher announces in *one* word for all readers
//! whether it makes fences. A publisher without space in the ring sleeps until all slow readers have read,
//! with a single membarrier.

use stateright::{Model, Property};

use crate::memory::{Membarrier, Memory, Order};

/// The maximum number of readers in a model.
pub const READERS: usize = 3;
/// The publisher's thread. The readers are the threads after it.
const PUBLISHER: usize = 0;

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A reader makes no fence after it has announced that it sleeps.
    ReaderWithoutFence,
    /// A reader issues no membarrier, though the publisher makes no fences.
    ReaderWithoutMembarrier,
    /// A reader sleeps without checking once more.
    SleepsWithoutALook,
    /// A reader empties its line between its check and its sleep.
    EmptiesTheLineLate,
    /// The publisher makes no fence, though its word promises one.
    PublisherWithoutFence,
    /// The publisher revokes its promise of fences after its last fence instead of before.
    TakesBackAfterTheFence,
    /// The promise of fences is stored relaxed, so messages published without a fence may be invisible to a
    /// reader that sees the promise.
    PromisesRelaxed,
    /// The promise is read relaxed.
    ReadsThePromiseRelaxed,
    /// The publisher checks for sleepers before it stores its tail.
    LooksBeforeItPublishes,
    /// The publisher counts fences per reader, but has one word for all.
    CountsForEachReader,
    /// The publisher remembers one number for all readers.
    RemembersOneNumber,
    /// A reader parks with the same number each time.
    ParksWithOneNumber,
    /// A publisher that sleeps for space takes one reader's promise of fences for the promise of all.
    AsksOneReader,
    /// A publisher that sleeps for space checks only the first reader again.
    LooksAtOneReader,
    /// A publisher that sleeps for space makes no fence.
    SleeperForRoomWithoutFence,
    /// A reader makes no fence after it has freed space, though its word promises one.
    RoomWithoutFence,
}

/// The side that makes the fence between a publication and the check of the sleeper's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Barriers {
    /// Each side makes its own fence.
    Both,
    /// The sleeper makes it for both sides, unless the publisher announces that it makes its own.
    Sleeper,
}

/// The sides that sleep when they have nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sleepers {
    /// The readers, until a message is published. The ring has space for all messages.
    Readers,
    /// The publisher, until the ring has space.
    Publisher,
    /// Both.
    All,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Parking {
    /// The number of readers.
    pub readers: usize,
    /// The number of messages that are published.
    pub messages: u8,
    /// The number of messages that the ring holds.
    pub room: u8,
    /// The sides that sleep. The other side polls.
    pub sleepers: Sleepers,
    /// The side that makes fences.
    pub barriers: Barriers,
    /// The number of publications with a fence after a wakeup.
    pub fences: u8,
    /// The number of publications for which fences are promised at the start.
    pub promised: u8,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

mod word {
    use super::READERS;

    pub(super) const TAIL: usize = 0;
    pub(super) const TAIL_FENCED: usize = 1;
    pub(super) const WRITER_PARKED: usize = 2;
    /// The readers' words, one after the other.
    pub(super) const fn parked(reader: usize) -> usize {
        3 + reader
    }
    pub(super) const fn head(reader: usize) -> usize {
        3 + READERS + reader
    }
    pub(super) const fn head_fenced(reader: usize) -> usize {
        3 + 2 * READERS + reader
    }
    pub(super) const ALL: usize = 3 + 3 * READERS;
}

type Words = Memory<{ word::ALL }, { 1 + READERS }>;

/// The state of a side that checks for sleepers and wakes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Waker {
    /// The number of publications that still get a fence; per reader with [`Fault::CountsForEachReader`].
    fences: [u8; READERS],
    /// The parked numbers that were last woken.
    rung: [u8; READERS],
}

/// The publisher's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Publishes {
    /// Checks for space, and publishes or reads a head.
    Begins,
    /// Loads this reader's head.
    Heads(u8),
    /// Revokes its promise of fences.
    TakesBack,
    /// Makes a fence, if it must.
    Fences,
    /// Makes a fence for this reader ([`Fault::CountsForEachReader`]).
    FencesFor(u8),
    /// Reads this reader's parked word.
    Looks(u8),
    /// Promises fences, and continues with the reader after this one.
    Promises(u8),
    /// Wakes the sleepers that it has found.
    Rings,
    /// Stores the tail after all that ([`Fault::LooksBeforeItPublishes`]).
    Late,
    /// Announces that it sleeps.
    Parks,
    /// Makes its fence.
    ParkFence,
    /// Reads whether this reader makes fences.
    Asks(u8),
    /// Is in membarrier(2).
    Barrier(Membarrier),
    /// Reads this reader's head once more.
    Again(u8),
    /// Sleeps.
    Sleeps,
    /// Announces that it is awake.
    Unparks,
    /// Has published all messages.
    Done,
}

/// A reader's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    /// Loads the tail.
    Looks,
    /// Announces that it sleeps.
    Parks,
    /// Makes its fence.
    ParkFence,
    /// Reads whether the publisher makes fences.
    Asks,
    /// Is in membarrier(2).
    Barrier(Membarrier),
    /// Reads the tail once more.
    Again,
    /// Empties its line ([`Fault::EmptiesTheLineLate`]).
    Empties,
    /// Sleeps.
    Sleeps,
    /// Announces that it is awake.
    Unparks,
    /// Stores its head.
    MakesRoom,
    /// Revokes its promise of fences.
    TakesBack,
    /// Makes a fence, if it must.
    Fences,
    /// Reads the publisher's parked word.
    LooksAtWriter,
    /// Promises fences.
    Promises,
    /// Wakes the publisher.
    Rings,
    /// Has read all messages.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Publisher {
    next: Publishes,
    sent: u8,
    waker: Waker,
    /// The readers to wake, one bit each.
    asleep: u8,
    /// The heads as it last read them.
    heads: [u8; READERS],
    number: u8,
    /// A reader has sent a wakeup.
    bell: bool,
    /// A slow reader makes no fences, so the publisher must issue a membarrier.
    must_issue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    next: Reads,
    /// The tail as it last read it.
    tail: u8,
    read: u8,
    number: u8,
    /// The publisher has sent a wakeup.
    bell: bool,
    waker: Waker,
}

/// The words, and the state of each thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    publisher: Publisher,
    readers: [Reader; READERS],
}

/// One step of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread takes its next step. A load reads the oldest store that it may (0), or a newer one.
    GoOn(usize, u8),
    /// The membarrier of the first thread interrupts the second.
    Interrupt(usize, usize),
}

impl Waker {
    fn new() -> Self {
        Self {
            fences: [0; READERS],
            rung: [0; READERS],
        }
    }

    fn makes_fence(self) -> bool {
        self.fences.iter().any(|&left| left > 0)
    }

    /// Whether the next fence is the last one that was promised.
    fn is_last(self) -> bool {
        self.fences.iter().all(|&left| left <= 1) && self.makes_fence()
    }

    fn count_down(&mut self) {
        for left in &mut self.fences {
            *left = left.saturating_sub(1);
        }
    }

    /// Whether a sleeper with this word must be woken. Remembers the number if so.
    fn must_wake(&mut self, at: usize, parked: u8) -> bool {
        let asleep = parked % 2 == 1 && parked != self.rung[at];
        if asleep {
            self.rung[at] = parked;
        }
        asleep
    }
}

impl Parking {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn has_room(self, publisher: &Publisher) -> bool {
        (0..self.readers).all(|at| !self.is_in_the_way(publisher, at))
    }

    fn is_in_the_way(self, publisher: &Publisher, at: usize) -> bool {
        publisher.sent - publisher.heads[at] >= self.room
    }

    /// Returns the first reader from here on that leaves no space.
    fn in_the_way(self, publisher: &Publisher, from: usize) -> Option<u8> {
        (from..self.readers)
            .find(|&at| self.is_in_the_way(publisher, at))
            .map(narrow)
    }

    /// Returns the words that a thread reads or writes.
    fn uses(self, thread: usize) -> u32 {
        let of = |reader: usize| {
            1 << word::parked(reader) | 1 << word::head(reader) | 1 << word::head_fenced(reader)
        };
        let shared = 1 << word::TAIL | 1 << word::TAIL_FENCED | 1 << word::WRITER_PARKED;
        match thread {
            PUBLISHER => (0..self.readers).map(of).sum::<u32>() | shared,
            thread if thread <= self.readers => of(thread - 1) | shared,
            _ => 0,
        }
    }

    /// Returns the word that the thread loads next, if it loads one.
    fn loads(state: &State, thread: usize) -> Option<usize> {
        if thread == PUBLISHER {
            return match state.publisher.next {
                Publishes::Heads(at) | Publishes::Again(at) => Some(word::head(at.into())),
                Publishes::Looks(at) => Some(word::parked(at.into())),
                Publishes::Asks(at) => Some(word::head_fenced(at.into())),
                _ => None,
            };
        }
        match state.readers[thread - 1].next {
            Reads::Looks | Reads::Again => Some(word::TAIL),
            Reads::Asks => Some(word::TAIL_FENCED),
            Reads::LooksAtWriter => Some(word::WRITER_PARKED),
            _ => None,
        }
    }

    fn can_go_on(state: &State, thread: usize) -> bool {
        if thread == PUBLISHER {
            return match state.publisher.next {
                Publishes::Sleeps => state.publisher.bell,
                Publishes::Done | Publishes::Barrier(_) => false,
                _ => true,
            };
        }
        let reader = &state.readers[thread - 1];
        match reader.next {
            Reads::Sleeps => reader.bell,
            Reads::Done | Reads::Barrier(_) => false,
            _ => true,
        }
    }

    fn barrier(state: &State, thread: usize) -> Option<Membarrier> {
        if thread == PUBLISHER {
            return match state.publisher.next {
                Publishes::Barrier(barrier) => Some(barrier),
                _ => None,
            };
        }
        match state.readers[thread - 1].next {
            Reads::Barrier(barrier) => Some(barrier),
            _ => None,
        }
    }

    /// Returns the ordering of a sleeper's load of the promise. It acquires, so that earlier publications are
    /// visible too.
    fn asks(self) -> Order {
        if self.has(Fault::ReadsThePromiseRelaxed) {
            Order::Relaxed
        } else {
            Order::Synchronises
        }
    }

    fn promises(self) -> Order {
        if self.has(Fault::PromisesRelaxed) {
            Order::Relaxed
        } else {
            Order::Synchronises
        }
    }

    /// Whether the promise must be revoked now, before the last fence after a publication.
    fn after_publishing(self, waker: Waker) -> bool {
        self.barriers == Barriers::Sleeper
            && waker.is_last()
            && !self.has(Fault::TakesBackAfterTheFence)
            && !self.has(Fault::CountsForEachReader)
    }
}

fn narrow(at: usize) -> u8 {
    u8::try_from(at).expect("a model has few readers")
}

/// The publisher's steps.
impl Parking {
    fn publish(self, state: &mut State, choice: u8) {
        let State {
            words, publisher: me, ..
        } = state;
        me.next = match me.next {
            Publishes::Begins if me.sent == self.messages => {
                words.retire(PUBLISHER);
                Publishes::Done
            }
            Publishes::Begins => match self.in_the_way(me, 0) {
                Some(at) => Publishes::Heads(at),
                None => self.store_tail(words, me),
            },
            Publishes::Heads(at) => {
                me.heads[usize::from(at)] =
                    words.load(PUBLISHER, word::head(at.into()), choice, Order::Synchronises);
                match self.in_the_way(me, usize::from(at) + 1) {
                    Some(at) => Publishes::Heads(at),
                    None if self.has_room(me) => self.store_tail(words, me),
                    None => Publishes::Parks,
                }
            }
            Publishes::Sleeps => {
                me.bell = false;
                Publishes::Unparks
            }
            Publishes::Unparks => {
                me.number += 1;
                words.store(PUBLISHER, word::WRITER_PARKED, me.number, Order::Relaxed);
                Publishes::Begins
            }
            Publishes::Late => {
                words.store(PUBLISHER, word::TAIL, me.sent, Order::Synchronises);
                Publishes::Begins
            }
            next @ (Publishes::Parks | Publishes::ParkFence | Publishes::Asks(_) | Publishes::Again(_)) => {
                self.park_for_room(words, me, next, choice)
            }
            next => return self.look_for_sleepers(state, next, choice),
        };
    }

    fn store_tail(self, words: &mut Words, me: &mut Publisher) -> Publishes {
        me.sent += 1;
        if !self.has(Fault::LooksBeforeItPublishes) {
            words.store(PUBLISHER, word::TAIL, me.sent, Order::Synchronises);
        }
        if self.sleepers == Sleepers::Publisher {
            return Publishes::Begins;
        }
        if self.after_publishing(me.waker) {
            Publishes::TakesBack
        } else if me.waker.makes_fence()
            || self.barriers == Barriers::Both
            || self.has(Fault::CountsForEachReader)
        {
            Publishes::Fences
        } else {
            Publishes::Looks(0)
        }
    }

    fn looks(self, at: u8) -> Publishes {
        if self.has(Fault::CountsForEachReader) {
            Publishes::FencesFor(at)
        } else {
            Publishes::Looks(at)
        }
    }

    fn after_look(self, at: u8) -> Publishes {
        if usize::from(at) + 1 < self.readers {
            self.looks(at + 1)
        } else {
            Publishes::Rings
        }
    }

    /// Records that this reader must be woken and that fences are made from now on.
    fn found_asleep(self, me: &mut Publisher, at: u8) -> Publishes {
        me.asleep |= 1 << at;
        let counted = if self.has(Fault::CountsForEachReader) {
            usize::from(at)
        } else {
            0
        };
        let promised = me.waker.fences[counted] > 0;
        me.waker.fences[counted] = self.fences;
        if promised || self.fences == 0 || self.barriers == Barriers::Both {
            self.after_look(at)
        } else {
            Publishes::Promises(at)
        }
    }

    fn look_for_sleepers(self, state: &mut State, next: Publishes, choice: u8) {
        let State {
            words, publisher: me, ..
        } = state;
        me.next = match next {
            Publishes::TakesBack => {
                words.store(PUBLISHER, word::TAIL_FENCED, 0, Order::Relaxed);
                Publishes::Fences
            }
            Publishes::Fences => {
                let own = me.waker.makes_fence() && !self.has(Fault::CountsForEachReader);
                if (own || self.barriers == Barriers::Both) && !self.has(Fault::PublisherWithoutFence) {
                    words.full_fence(PUBLISHER);
                }
                if own && me.waker.is_last() && self.has(Fault::TakesBackAfterTheFence) {
                    words.store(PUBLISHER, word::TAIL_FENCED, 0, Order::Relaxed);
                }
                if !self.has(Fault::CountsForEachReader) {
                    me.waker.count_down();
                }
                self.looks(0)
            }
            Publishes::FencesFor(at) => {
                let left = &mut me.waker.fences[usize::from(at)];
                if *left > 0 {
                    *left -= 1;
                    words.full_fence(PUBLISHER);
                }
                Publishes::Looks(at)
            }
            Publishes::Looks(at) => {
                let reader = usize::from(at);
                let parked = words.load(PUBLISHER, word::parked(reader), choice, Order::Relaxed);
                let number = if self.has(Fault::RemembersOneNumber) {
                    0
                } else {
                    reader
                };
                if me.waker.must_wake(number, parked) {
                    self.found_asleep(me, at)
                } else {
                    self.after_look(at)
                }
            }
            Publishes::Promises(at) => {
                words.store(PUBLISHER, word::TAIL_FENCED, 1, self.promises());
                self.after_look(at)
            }
            Publishes::Rings if me.asleep != 0 => {
                let at = me.asleep.trailing_zeros();
                me.asleep &= !(1 << at);
                state.readers[at as usize].bell = true;
                Publishes::Rings
            }
            Publishes::Rings if self.has(Fault::LooksBeforeItPublishes) => Publishes::Late,
            _ => Publishes::Begins,
        };
    }

    fn park_for_room(self, words: &mut Words, me: &mut Publisher, next: Publishes, choice: u8) -> Publishes {
        let first = self.in_the_way(me, 0).expect("it parks only without space");
        match next {
            Publishes::Parks => {
                me.number += 1;
                me.must_issue = false;
                words.store(PUBLISHER, word::WRITER_PARKED, me.number, Order::Synchronises);
                Publishes::ParkFence
            }
            Publishes::ParkFence => {
                if !self.has(Fault::SleeperForRoomWithoutFence) {
                    words.full_fence(PUBLISHER);
                }
                match self.barriers {
                    Barriers::Both => Publishes::Again(first),
                    Barriers::Sleeper => Publishes::Asks(first),
                }
            }
            Publishes::Asks(at) => {
                let fenced = words.load(PUBLISHER, word::head_fenced(at.into()), choice, self.asks());
                me.must_issue |= fenced != 1;
                match self.in_the_way(me, usize::from(at) + 1) {
                    Some(at) if !self.has(Fault::AsksOneReader) => Publishes::Asks(at),
                    _ if me.must_issue => {
                        Publishes::Barrier(Membarrier::begin(words, PUBLISHER, !(1 << PUBLISHER)))
                    }
                    _ => Publishes::Again(first),
                }
            }
            Publishes::Again(at) => {
                me.heads[usize::from(at)] =
                    words.load(PUBLISHER, word::head(at.into()), choice, Order::Synchronises);
                match self.in_the_way(me, usize::from(at) + 1) {
                    Some(at) if !self.has(Fault::LooksAtOneReader) => Publishes::Again(at),
                    _ if self.has_room(me) => Publishes::Unparks,
                    _ => Publishes::Sleeps,
                }
            }
            other => other,
        }
    }
}

/// A reader's steps.
impl Parking {
    fn read(self, state: &mut State, at: usize, choice: u8) {
        let thread = 1 + at;
        let State { words, readers, .. } = state;
        let me = &mut readers[at];
        me.next = match me.next {
            Reads::Looks => {
                me.tail = words.load(thread, word::TAIL, choice, Order::Synchronises);
                if me.tail > me.read {
                    self.consume(words, me, thread)
                } else if self.sleepers == Sleepers::Publisher {
                    Reads::Looks
                } else {
                    Reads::Parks
                }
            }
            Reads::Parks => {
                me.number = if self.has(Fault::ParksWithOneNumber) {
                    1
                } else {
                    me.number + 1
                };
                words.store(thread, word::parked(at), me.number, Order::Synchronises);
                Reads::ParkFence
            }
            Reads::ParkFence => {
                if !self.has(Fault::ReaderWithoutFence) {
                    words.full_fence(thread);
                }
                match self.barriers {
                    Barriers::Both => Reads::Again,
                    Barriers::Sleeper => Reads::Asks,
                }
            }
            Reads::Asks => {
                let fenced = words.load(thread, word::TAIL_FENCED, choice, self.asks());
                if fenced == 1 || self.has(Fault::ReaderWithoutMembarrier) {
                    Reads::Again
                } else {
                    match Membarrier::begin(words, thread, 1 << PUBLISHER) {
                        // The publisher has ended.
                        Membarrier { left: 0 } => Reads::Again,
                        barrier => Reads::Barrier(barrier),
                    }
                }
            }
            Reads::Again => {
                me.tail = words.load(thread, word::TAIL, choice, Order::Synchronises);
                if me.tail > me.read && !self.has(Fault::SleepsWithoutALook) {
                    Reads::Unparks
                } else if self.has(Fault::EmptiesTheLineLate) {
                    Reads::Empties
                } else {
                    Reads::Sleeps
                }
            }
            Reads::Empties => {
                me.bell = false;
                Reads::Sleeps
            }
            Reads::Sleeps => {
                me.bell = false;
                Reads::Unparks
            }
            Reads::Unparks => {
                if self.has(Fault::ParksWithOneNumber) {
                    me.number = 0;
                } else {
                    me.number += 1;
                }
                words.store(thread, word::parked(at), me.number, Order::Relaxed);
                if me.tail > me.read {
                    self.consume(words, me, thread)
                } else {
                    Reads::Looks
                }
            }
            next => return self.make_room(state, at, next, choice),
        };
    }

    /// Reads one message. Announces the free space if the publisher can run out of it.
    fn consume(self, words: &mut Words, me: &mut Reader, thread: usize) -> Reads {
        me.read += 1;
        if self.sleepers == Sleepers::Readers {
            self.after_reading(words, me, thread)
        } else {
            Reads::MakesRoom
        }
    }

    fn after_reading(self, words: &mut Words, me: &Reader, thread: usize) -> Reads {
        if me.read == self.messages {
            words.retire(thread);
            Reads::Done
        } else {
            Reads::Looks
        }
    }

    fn make_room(self, state: &mut State, at: usize, next: Reads, choice: u8) {
        let thread = 1 + at;
        let State { words, readers, .. } = state;
        let me = &mut readers[at];
        me.next = match next {
            Reads::MakesRoom => {
                words.store(thread, word::head(at), me.read, Order::Synchronises);
                if self.after_publishing(me.waker) {
                    Reads::TakesBack
                } else {
                    Reads::Fences
                }
            }
            Reads::TakesBack => {
                words.store(thread, word::head_fenced(at), 0, Order::Relaxed);
                Reads::Fences
            }
            Reads::Fences => {
                let makes = me.waker.makes_fence() || self.barriers == Barriers::Both;
                if makes && !self.has(Fault::RoomWithoutFence) {
                    words.full_fence(thread);
                }
                if me.waker.is_last() && self.has(Fault::TakesBackAfterTheFence) {
                    words.store(thread, word::head_fenced(at), 0, Order::Relaxed);
                }
                me.waker.count_down();
                Reads::LooksAtWriter
            }
            Reads::LooksAtWriter => {
                let parked = words.load(thread, word::WRITER_PARKED, choice, Order::Relaxed);
                if me.waker.must_wake(0, parked) {
                    let promised = me.waker.fences[0] > 0;
                    me.waker.fences[0] = self.fences;
                    if promised || self.fences == 0 || self.barriers == Barriers::Both {
                        Reads::Rings
                    } else {
                        Reads::Promises
                    }
                } else {
                    self.after_reading(words, me, thread)
                }
            }
            Reads::Promises => {
                words.store(thread, word::head_fenced(at), 1, self.promises());
                Reads::Rings
            }
            _ => {
                state.publisher.bell = true;
                self.after_reading(words, me, thread)
            }
        };
    }
}

impl State {
    /// Whether the publisher has checked every sleeper since its last publication, and has sent all wakeups.
    fn owes_no_bell(&self) -> bool {
        use Publishes::{Again, Asks, Barrier, Begins, Done, Heads, ParkFence, Parks, Sleeps, Unparks};
        matches!(
            self.publisher.next,
            Begins | Heads(_) | Parks | ParkFence | Asks(_) | Barrier(_) | Again(_) | Sleeps | Unparks | Done
        )
    }

    /// Whether the reader has checked the publisher's word since it freed space, and has sent its wakeup.
    fn owes_no_room(reader: &Reader) -> bool {
        use Reads::{Fences, LooksAtWriter, MakesRoom, Promises, Rings, TakesBack};
        !matches!(
            reader.next,
            MakesRoom | TakesBack | Fences | LooksAtWriter | Promises | Rings
        )
    }
}

impl Model for Parking {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut words = Words::new([0, 1, 2, 3].map(|thread| self.uses(thread)));
        let mut waker = Waker::new();
        if self.promised > 0 {
            waker.fences[0] = self.promised;
            words.store(PUBLISHER, word::TAIL_FENCED, 1, Order::Synchronises);
            for at in 0..self.readers {
                words.store(1 + at, word::head_fenced(at), 1, Order::Synchronises);
            }
        }
        let reader = |at| Reader {
            next: if at < self.readers {
                Reads::Looks
            } else {
                Reads::Done
            },
            tail: 0,
            read: 0,
            number: 0,
            bell: false,
            waker,
        };
        vec![State {
            words,
            publisher: Publisher {
                next: Publishes::Begins,
                sent: 0,
                waker,
                asleep: 0,
                heads: [0; READERS],
                number: 0,
                bell: false,
                must_issue: false,
            },
            readers: [0, 1, 2].map(reader),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for thread in 0..=self.readers {
            if Self::can_go_on(state, thread) {
                let choices = match Self::loads(state, thread) {
                    Some(word) => state.words.choices(thread, word),
                    None => 1,
                };
                actions.extend((0..choices).map(|choice| Action::GoOn(thread, choice)));
            }
            if let Some(barrier) = Self::barrier(state, thread) {
                let left = (0..=self.readers).filter(|other| barrier.left & (1 << other) != 0);
                actions.extend(left.map(|other| Action::Interrupt(thread, other)));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::GoOn(PUBLISHER, choice) => self.publish(&mut state, choice),
            Action::GoOn(thread, choice) => self.read(&mut state, thread - 1, choice),
            Action::Interrupt(thread, other) => {
                let mut barrier = Self::barrier(&state, thread)?;
                barrier.interrupt(&mut state.words, thread, other);
                let is_over = barrier.left == 0;
                if thread == PUBLISHER {
                    let first = self.in_the_way(&state.publisher, 0)?;
                    state.publisher.next = if is_over {
                        Publishes::Again(first)
                    } else {
                        Publishes::Barrier(barrier)
                    };
                } else {
                    state.readers[thread - 1].next = if is_over {
                        Reads::Again
                    } else {
                        Reads::Barrier(barrier)
                    };
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NO_READER, |_, state: &State| {
                let lost = |reader: &Reader| {
                    reader.next == Reads::Sleeps && !reader.bell && reader.read < state.publisher.sent
                };
                !(state.owes_no_bell() && state.readers.iter().any(lost))
            }),
            Property::always(NO_PUBLISHER, |model: &Self, state: &State| {
                let publisher = &state.publisher;
                let readers = &state.readers[..model.readers];
                let room = readers
                    .iter()
                    .all(|reader| publisher.sent - reader.read < model.room);
                let told = readers.iter().all(State::owes_no_room);
                !(publisher.next == Publishes::Sleeps && !publisher.bell && room && told)
            }),
            Property::sometimes("all messages are read", |_, state: &State| {
                state.readers.iter().all(|reader| reader.next == Reads::Done)
            }),
        ];
        if self.sleepers != Sleepers::Publisher {
            properties.push(Property::sometimes(
                "a sleeping reader is woken",
                |_, state: &State| {
                    let rung = |reader: &Reader| reader.next == Reads::Sleeps && reader.bell;
                    state.readers.iter().any(rung)
                },
            ));
        }
        if self.sleepers != Sleepers::Readers {
            properties.push(Property::sometimes(
                "a sleeping publisher is woken",
                |_, state: &State| state.publisher.next == Publishes::Sleeps && state.publisher.bell,
            ));
        }
        let is_counted_out = |fences| fences > 0 && fences <= self.messages;
        let promised = is_counted_out(self.promised) || self.fences > 0 && self.fences < self.messages;
        if self.barriers == Barriers::Sleeper && promised {
            properties.push(Property::sometimes(
                "a promise of fences is revoked",
                |_, state: &State| {
                    let reader = |reader: &Reader| reader.next == Reads::TakesBack;
                    state.publisher.next == Publishes::TakesBack || state.readers.iter().any(reader)
                },
            ));
        }
        properties
    }
}

/// The promise in docs/internals/promises.md: a sleeping peer is woken.
pub const NO_READER: &str = "no reader stays asleep when a message is published";
/// The same promise for a publisher.
pub const NO_PUBLISHER: &str = "no publisher stays asleep when the ring has space";
