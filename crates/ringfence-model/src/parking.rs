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
    NoReaderFence,
    /// A reader issues no membarrier, though the publisher makes no fences.
    NoReaderMembarrier,
    /// A reader sleeps without checking once more.
    NoRecheckBeforeSleep,
    /// A reader empties its line between its check and its sleep.
    LineDrainedAfterRecheck,
    /// The publisher makes no fence, though its word promises one.
    NoPublisherFence,
    /// The publisher revokes its promise of fences after its last fence instead of before.
    RevokedAfterFence,
    /// The promise of fences is stored relaxed, so messages published without a fence may be invisible to a
    /// reader that sees the promise.
    PromiseStoredRelaxed,
    /// The promise is read relaxed.
    PromiseLoadedRelaxed,
    /// The publisher checks for sleepers before it stores its tail.
    CheckBeforePublish,
    /// The publisher counts fences per reader, but has one word for all.
    FenceCountPerReader,
    /// The publisher remembers one number for all readers.
    OneWokenNumber,
    /// A reader parks with the same number each time.
    ConstantParkNumber,
    /// A publisher that sleeps for space takes one reader's promise of fences for the promise of all.
    PromiseOfOneReader,
    /// A publisher that sleeps for space checks only the first reader again.
    RecheckOfOneReader,
    /// A publisher that sleeps for space makes no fence.
    NoPublisherSleepFence,
    /// A reader makes no fence after it has freed space, though its word promises one.
    NoFenceAfterFreeing,
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
    pub capacity: u8,
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
    /// The number of publications that still get a fence; per reader with [`Fault::FenceCountPerReader`].
    fences: [u8; READERS],
    /// The parked numbers that were last woken.
    woken: [u8; READERS],
}

/// The publisher's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PublisherStep {
    /// Publishes, or reads a head.
    CheckSpace,
    LoadHead(u8),
    RevokePromise,
    /// If it must make one.
    Fence,
    /// [`Fault::FenceCountPerReader`].
    FenceFor(u8),
    LoadParked(u8),
    /// Continues with the reader after this one.
    StorePromise(u8),
    /// Wakes the sleepers that it has found.
    Wake,
    /// [`Fault::CheckBeforePublish`].
    StoreTailLate,
    Park,
    ParkFence,
    /// Reads whether this reader makes fences.
    LoadPromise(u8),
    Barrier(Membarrier),
    RecheckHead(u8),
    Sleep,
    Unpark,
    Done,
}

/// A reader's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReaderStep {
    LoadTail,
    Park,
    ParkFence,
    /// Reads whether the publisher makes fences.
    LoadPromise,
    Barrier(Membarrier),
    RecheckTail,
    /// [`Fault::LineDrainedAfterRecheck`].
    DrainLine,
    Sleep,
    Unpark,
    StoreHead,
    RevokePromise,
    /// If it must make one.
    Fence,
    LoadWriterParked,
    StorePromise,
    WakePublisher,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Publisher {
    next: PublisherStep,
    sent: u8,
    waker: Waker,
    /// The readers to wake, one bit each.
    asleep: u8,
    /// The heads as it last read them.
    heads: [u8; READERS],
    park_number: u8,
    /// A reader has sent a wakeup.
    wakeup: bool,
    /// A slow reader makes no fences, so the publisher must issue a membarrier.
    must_issue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    next: ReaderStep,
    /// The tail as it last read it.
    tail: u8,
    read: u8,
    park_number: u8,
    /// The publisher has sent a wakeup.
    wakeup: bool,
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
    Step(usize, u8),
    /// The membarrier of the first thread interrupts the second.
    Interrupt(usize, usize),
}

impl Waker {
    fn new() -> Self {
        Self {
            fences: [0; READERS],
            woken: [0; READERS],
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
        let asleep = parked % 2 == 1 && parked != self.woken[at];
        if asleep {
            self.woken[at] = parked;
        }
        asleep
    }
}

impl Parking {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn has_space(self, publisher: &Publisher) -> bool {
        (0..self.readers).all(|at| !self.is_blocking(publisher, at))
    }

    fn is_blocking(self, publisher: &Publisher, at: usize) -> bool {
        publisher.sent - publisher.heads[at] >= self.capacity
    }

    /// Returns the first reader from here on that leaves no space.
    fn next_blocking(self, publisher: &Publisher, from: usize) -> Option<u8> {
        (from..self.readers)
            .find(|&at| self.is_blocking(publisher, at))
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
                PublisherStep::LoadHead(at) | PublisherStep::RecheckHead(at) => Some(word::head(at.into())),
                PublisherStep::LoadParked(at) => Some(word::parked(at.into())),
                PublisherStep::LoadPromise(at) => Some(word::head_fenced(at.into())),
                _ => None,
            };
        }
        match state.readers[thread - 1].next {
            ReaderStep::LoadTail | ReaderStep::RecheckTail => Some(word::TAIL),
            ReaderStep::LoadPromise => Some(word::TAIL_FENCED),
            ReaderStep::LoadWriterParked => Some(word::WRITER_PARKED),
            _ => None,
        }
    }

    fn is_runnable(state: &State, thread: usize) -> bool {
        if thread == PUBLISHER {
            return match state.publisher.next {
                PublisherStep::Sleep => state.publisher.wakeup,
                PublisherStep::Done | PublisherStep::Barrier(_) => false,
                _ => true,
            };
        }
        let reader = &state.readers[thread - 1];
        match reader.next {
            ReaderStep::Sleep => reader.wakeup,
            ReaderStep::Done | ReaderStep::Barrier(_) => false,
            _ => true,
        }
    }

    fn barrier(state: &State, thread: usize) -> Option<Membarrier> {
        if thread == PUBLISHER {
            return match state.publisher.next {
                PublisherStep::Barrier(barrier) => Some(barrier),
                _ => None,
            };
        }
        match state.readers[thread - 1].next {
            ReaderStep::Barrier(barrier) => Some(barrier),
            _ => None,
        }
    }

    /// Returns the ordering of a sleeper's load of the promise. It acquires, so that earlier publications are
    /// visible too.
    fn promise_load_order(self) -> Order {
        if self.has(Fault::PromiseLoadedRelaxed) {
            Order::Relaxed
        } else {
            Order::AcqRel
        }
    }

    fn promise_store_order(self) -> Order {
        if self.has(Fault::PromiseStoredRelaxed) {
            Order::Relaxed
        } else {
            Order::AcqRel
        }
    }

    /// Whether the promise must be revoked now, before the last fence after a publication.
    fn must_revoke(self, waker: Waker) -> bool {
        self.barriers == Barriers::Sleeper
            && waker.is_last()
            && !self.has(Fault::RevokedAfterFence)
            && !self.has(Fault::FenceCountPerReader)
    }
}

fn narrow(at: usize) -> u8 {
    u8::try_from(at).expect("a model has few readers")
}

/// The publisher's steps.
impl Parking {
    fn step_publisher(self, state: &mut State, choice: u8) {
        let State {
            words, publisher: me, ..
        } = state;
        me.next = match me.next {
            PublisherStep::CheckSpace if me.sent == self.messages => {
                words.retire(PUBLISHER);
                PublisherStep::Done
            }
            PublisherStep::CheckSpace => match self.next_blocking(me, 0) {
                Some(at) => PublisherStep::LoadHead(at),
                None => self.store_tail(words, me),
            },
            PublisherStep::LoadHead(at) => {
                me.heads[usize::from(at)] =
                    words.load(PUBLISHER, word::head(at.into()), choice, Order::AcqRel);
                match self.next_blocking(me, usize::from(at) + 1) {
                    Some(at) => PublisherStep::LoadHead(at),
                    None if self.has_space(me) => self.store_tail(words, me),
                    None => PublisherStep::Park,
                }
            }
            PublisherStep::Sleep => {
                me.wakeup = false;
                PublisherStep::Unpark
            }
            PublisherStep::Unpark => {
                me.park_number += 1;
                words.store(PUBLISHER, word::WRITER_PARKED, me.park_number, Order::Relaxed);
                PublisherStep::CheckSpace
            }
            PublisherStep::StoreTailLate => {
                words.store(PUBLISHER, word::TAIL, me.sent, Order::AcqRel);
                PublisherStep::CheckSpace
            }
            next @ (PublisherStep::Park
            | PublisherStep::ParkFence
            | PublisherStep::LoadPromise(_)
            | PublisherStep::RecheckHead(_)) => self.step_parking(words, me, next, choice),
            next => return self.step_checks(state, next, choice),
        };
    }

    fn store_tail(self, words: &mut Words, me: &mut Publisher) -> PublisherStep {
        me.sent += 1;
        if !self.has(Fault::CheckBeforePublish) {
            words.store(PUBLISHER, word::TAIL, me.sent, Order::AcqRel);
        }
        if self.sleepers == Sleepers::Publisher {
            return PublisherStep::CheckSpace;
        }
        if self.must_revoke(me.waker) {
            PublisherStep::RevokePromise
        } else if me.waker.makes_fence()
            || self.barriers == Barriers::Both
            || self.has(Fault::FenceCountPerReader)
        {
            PublisherStep::Fence
        } else {
            PublisherStep::LoadParked(0)
        }
    }

    fn check_reader(self, at: u8) -> PublisherStep {
        if self.has(Fault::FenceCountPerReader) {
            PublisherStep::FenceFor(at)
        } else {
            PublisherStep::LoadParked(at)
        }
    }

    fn after_check(self, at: u8) -> PublisherStep {
        if usize::from(at) + 1 < self.readers {
            self.check_reader(at + 1)
        } else {
            PublisherStep::Wake
        }
    }

    /// Records that this reader must be woken and that fences are made from now on.
    fn record_sleeper(self, me: &mut Publisher, at: u8) -> PublisherStep {
        me.asleep |= 1 << at;
        let counted = if self.has(Fault::FenceCountPerReader) {
            usize::from(at)
        } else {
            0
        };
        let promised = me.waker.fences[counted] > 0;
        me.waker.fences[counted] = self.fences;
        if promised || self.fences == 0 || self.barriers == Barriers::Both {
            self.after_check(at)
        } else {
            PublisherStep::StorePromise(at)
        }
    }

    fn step_checks(self, state: &mut State, next: PublisherStep, choice: u8) {
        let State {
            words, publisher: me, ..
        } = state;
        me.next = match next {
            PublisherStep::RevokePromise => {
                words.store(PUBLISHER, word::TAIL_FENCED, 0, Order::Relaxed);
                PublisherStep::Fence
            }
            PublisherStep::Fence => {
                let own = me.waker.makes_fence() && !self.has(Fault::FenceCountPerReader);
                if (own || self.barriers == Barriers::Both) && !self.has(Fault::NoPublisherFence) {
                    words.full_fence(PUBLISHER);
                }
                if own && me.waker.is_last() && self.has(Fault::RevokedAfterFence) {
                    words.store(PUBLISHER, word::TAIL_FENCED, 0, Order::Relaxed);
                }
                if !self.has(Fault::FenceCountPerReader) {
                    me.waker.count_down();
                }
                self.check_reader(0)
            }
            PublisherStep::FenceFor(at) => {
                let left = &mut me.waker.fences[usize::from(at)];
                if *left > 0 {
                    *left -= 1;
                    words.full_fence(PUBLISHER);
                }
                PublisherStep::LoadParked(at)
            }
            PublisherStep::LoadParked(at) => {
                let reader = usize::from(at);
                let parked = words.load(PUBLISHER, word::parked(reader), choice, Order::Relaxed);
                let number = if self.has(Fault::OneWokenNumber) {
                    0
                } else {
                    reader
                };
                if me.waker.must_wake(number, parked) {
                    self.record_sleeper(me, at)
                } else {
                    self.after_check(at)
                }
            }
            PublisherStep::StorePromise(at) => {
                words.store(PUBLISHER, word::TAIL_FENCED, 1, self.promise_store_order());
                self.after_check(at)
            }
            PublisherStep::Wake if me.asleep != 0 => {
                let at = me.asleep.trailing_zeros();
                me.asleep &= !(1 << at);
                state.readers[at as usize].wakeup = true;
                PublisherStep::Wake
            }
            PublisherStep::Wake if self.has(Fault::CheckBeforePublish) => PublisherStep::StoreTailLate,
            _ => PublisherStep::CheckSpace,
        };
    }

    fn step_parking(
        self,
        words: &mut Words,
        me: &mut Publisher,
        next: PublisherStep,
        choice: u8,
    ) -> PublisherStep {
        let first = self.next_blocking(me, 0).expect("it parks only without space");
        match next {
            PublisherStep::Park => {
                me.park_number += 1;
                me.must_issue = false;
                words.store(PUBLISHER, word::WRITER_PARKED, me.park_number, Order::AcqRel);
                PublisherStep::ParkFence
            }
            PublisherStep::ParkFence => {
                if !self.has(Fault::NoPublisherSleepFence) {
                    words.full_fence(PUBLISHER);
                }
                match self.barriers {
                    Barriers::Both => PublisherStep::RecheckHead(first),
                    Barriers::Sleeper => PublisherStep::LoadPromise(first),
                }
            }
            PublisherStep::LoadPromise(at) => {
                let fenced = words.load(
                    PUBLISHER,
                    word::head_fenced(at.into()),
                    choice,
                    self.promise_load_order(),
                );
                me.must_issue |= fenced != 1;
                match self.next_blocking(me, usize::from(at) + 1) {
                    Some(at) if !self.has(Fault::PromiseOfOneReader) => PublisherStep::LoadPromise(at),
                    _ if me.must_issue => {
                        PublisherStep::Barrier(Membarrier::start(words, PUBLISHER, !(1 << PUBLISHER)))
                    }
                    _ => PublisherStep::RecheckHead(first),
                }
            }
            PublisherStep::RecheckHead(at) => {
                me.heads[usize::from(at)] =
                    words.load(PUBLISHER, word::head(at.into()), choice, Order::AcqRel);
                match self.next_blocking(me, usize::from(at) + 1) {
                    Some(at) if !self.has(Fault::RecheckOfOneReader) => PublisherStep::RecheckHead(at),
                    _ if self.has_space(me) => PublisherStep::Unpark,
                    _ => PublisherStep::Sleep,
                }
            }
            other => other,
        }
    }
}

/// A reader's steps.
impl Parking {
    fn step_reader(self, state: &mut State, at: usize, choice: u8) {
        let thread = 1 + at;
        let State { words, readers, .. } = state;
        let me = &mut readers[at];
        me.next = match me.next {
            ReaderStep::LoadTail => {
                me.tail = words.load(thread, word::TAIL, choice, Order::AcqRel);
                if me.tail > me.read {
                    self.consume(words, me, thread)
                } else if self.sleepers == Sleepers::Publisher {
                    ReaderStep::LoadTail
                } else {
                    ReaderStep::Park
                }
            }
            ReaderStep::Park => {
                me.park_number = if self.has(Fault::ConstantParkNumber) {
                    1
                } else {
                    me.park_number + 1
                };
                words.store(thread, word::parked(at), me.park_number, Order::AcqRel);
                ReaderStep::ParkFence
            }
            ReaderStep::ParkFence => {
                if !self.has(Fault::NoReaderFence) {
                    words.full_fence(thread);
                }
                match self.barriers {
                    Barriers::Both => ReaderStep::RecheckTail,
                    Barriers::Sleeper => ReaderStep::LoadPromise,
                }
            }
            ReaderStep::LoadPromise => {
                let fenced = words.load(thread, word::TAIL_FENCED, choice, self.promise_load_order());
                if fenced == 1 || self.has(Fault::NoReaderMembarrier) {
                    ReaderStep::RecheckTail
                } else {
                    match Membarrier::start(words, thread, 1 << PUBLISHER) {
                        // The publisher has ended.
                        Membarrier { pending: 0 } => ReaderStep::RecheckTail,
                        barrier => ReaderStep::Barrier(barrier),
                    }
                }
            }
            ReaderStep::RecheckTail => {
                me.tail = words.load(thread, word::TAIL, choice, Order::AcqRel);
                if me.tail > me.read && !self.has(Fault::NoRecheckBeforeSleep) {
                    ReaderStep::Unpark
                } else if self.has(Fault::LineDrainedAfterRecheck) {
                    ReaderStep::DrainLine
                } else {
                    ReaderStep::Sleep
                }
            }
            ReaderStep::DrainLine => {
                me.wakeup = false;
                ReaderStep::Sleep
            }
            ReaderStep::Sleep => {
                me.wakeup = false;
                ReaderStep::Unpark
            }
            ReaderStep::Unpark => {
                if self.has(Fault::ConstantParkNumber) {
                    me.park_number = 0;
                } else {
                    me.park_number += 1;
                }
                words.store(thread, word::parked(at), me.park_number, Order::Relaxed);
                if me.tail > me.read {
                    self.consume(words, me, thread)
                } else {
                    ReaderStep::LoadTail
                }
            }
            next => return self.step_freeing(state, at, next, choice),
        };
    }

    /// Reads one message. Announces the free space if the publisher can run out of it.
    fn consume(self, words: &mut Words, me: &mut Reader, thread: usize) -> ReaderStep {
        me.read += 1;
        if self.sleepers == Sleepers::Readers {
            self.after_reading(words, me, thread)
        } else {
            ReaderStep::StoreHead
        }
    }

    fn after_reading(self, words: &mut Words, me: &Reader, thread: usize) -> ReaderStep {
        if me.read == self.messages {
            words.retire(thread);
            ReaderStep::Done
        } else {
            ReaderStep::LoadTail
        }
    }

    fn step_freeing(self, state: &mut State, at: usize, next: ReaderStep, choice: u8) {
        let thread = 1 + at;
        let State { words, readers, .. } = state;
        let me = &mut readers[at];
        me.next = match next {
            ReaderStep::StoreHead => {
                words.store(thread, word::head(at), me.read, Order::AcqRel);
                if self.must_revoke(me.waker) {
                    ReaderStep::RevokePromise
                } else {
                    ReaderStep::Fence
                }
            }
            ReaderStep::RevokePromise => {
                words.store(thread, word::head_fenced(at), 0, Order::Relaxed);
                ReaderStep::Fence
            }
            ReaderStep::Fence => {
                let makes = me.waker.makes_fence() || self.barriers == Barriers::Both;
                if makes && !self.has(Fault::NoFenceAfterFreeing) {
                    words.full_fence(thread);
                }
                if me.waker.is_last() && self.has(Fault::RevokedAfterFence) {
                    words.store(thread, word::head_fenced(at), 0, Order::Relaxed);
                }
                me.waker.count_down();
                ReaderStep::LoadWriterParked
            }
            ReaderStep::LoadWriterParked => {
                let parked = words.load(thread, word::WRITER_PARKED, choice, Order::Relaxed);
                if me.waker.must_wake(0, parked) {
                    let promised = me.waker.fences[0] > 0;
                    me.waker.fences[0] = self.fences;
                    if promised || self.fences == 0 || self.barriers == Barriers::Both {
                        ReaderStep::WakePublisher
                    } else {
                        ReaderStep::StorePromise
                    }
                } else {
                    self.after_reading(words, me, thread)
                }
            }
            ReaderStep::StorePromise => {
                words.store(thread, word::head_fenced(at), 1, self.promise_store_order());
                ReaderStep::WakePublisher
            }
            _ => {
                state.publisher.wakeup = true;
                self.after_reading(words, me, thread)
            }
        };
    }
}

impl State {
    /// Whether the publisher has checked every sleeper since its last publication, and has sent all wakeups.
    fn has_sent_wakeups(&self) -> bool {
        use PublisherStep::{
            Barrier, CheckSpace, Done, LoadHead, LoadPromise, Park, ParkFence, RecheckHead, Sleep, Unpark,
        };
        matches!(
            self.publisher.next,
            CheckSpace
                | LoadHead(_)
                | Park
                | ParkFence
                | LoadPromise(_)
                | Barrier(_)
                | RecheckHead(_)
                | Sleep
                | Unpark
                | Done
        )
    }

    /// Whether the reader has checked the publisher's word since it freed space, and has sent its wakeup.
    fn has_announced_space(reader: &Reader) -> bool {
        use ReaderStep::{Fence, LoadWriterParked, RevokePromise, StoreHead, StorePromise, WakePublisher};
        !matches!(
            reader.next,
            StoreHead | RevokePromise | Fence | LoadWriterParked | StorePromise | WakePublisher
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
            words.store(PUBLISHER, word::TAIL_FENCED, 1, Order::AcqRel);
            for at in 0..self.readers {
                words.store(1 + at, word::head_fenced(at), 1, Order::AcqRel);
            }
        }
        let reader = |at| Reader {
            next: if at < self.readers {
                ReaderStep::LoadTail
            } else {
                ReaderStep::Done
            },
            tail: 0,
            read: 0,
            park_number: 0,
            wakeup: false,
            waker,
        };
        vec![State {
            words,
            publisher: Publisher {
                next: PublisherStep::CheckSpace,
                sent: 0,
                waker,
                asleep: 0,
                heads: [0; READERS],
                park_number: 0,
                wakeup: false,
                must_issue: false,
            },
            readers: [0, 1, 2].map(reader),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for thread in 0..=self.readers {
            if Self::is_runnable(state, thread) {
                let choices = match Self::loads(state, thread) {
                    Some(word) => state.words.choices(thread, word),
                    None => 1,
                };
                actions.extend((0..choices).map(|choice| Action::Step(thread, choice)));
            }
            if let Some(barrier) = Self::barrier(state, thread) {
                let left = (0..=self.readers).filter(|other| barrier.pending & (1 << other) != 0);
                actions.extend(left.map(|other| Action::Interrupt(thread, other)));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(PUBLISHER, choice) => self.step_publisher(&mut state, choice),
            Action::Step(thread, choice) => self.step_reader(&mut state, thread - 1, choice),
            Action::Interrupt(thread, other) => {
                let mut barrier = Self::barrier(&state, thread)?;
                barrier.interrupt(&mut state.words, thread, other);
                let is_over = barrier.pending == 0;
                if thread == PUBLISHER {
                    let first = self.next_blocking(&state.publisher, 0)?;
                    state.publisher.next = if is_over {
                        PublisherStep::RecheckHead(first)
                    } else {
                        PublisherStep::Barrier(barrier)
                    };
                } else {
                    state.readers[thread - 1].next = if is_over {
                        ReaderStep::RecheckTail
                    } else {
                        ReaderStep::Barrier(barrier)
                    };
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(READER_WOKEN, |_, state: &State| {
                let lost = |reader: &Reader| {
                    reader.next == ReaderStep::Sleep && !reader.wakeup && reader.read < state.publisher.sent
                };
                !(state.has_sent_wakeups() && state.readers.iter().any(lost))
            }),
            Property::always(PUBLISHER_WOKEN, |model: &Self, state: &State| {
                let publisher = &state.publisher;
                let readers = &state.readers[..model.readers];
                let has_space = readers
                    .iter()
                    .all(|reader| publisher.sent - reader.read < model.capacity);
                let announced = readers.iter().all(State::has_announced_space);
                !(publisher.next == PublisherStep::Sleep && !publisher.wakeup && has_space && announced)
            }),
            Property::sometimes("all messages are read", |_, state: &State| {
                state.readers.iter().all(|reader| reader.next == ReaderStep::Done)
            }),
        ];
        if self.sleepers != Sleepers::Publisher {
            properties.push(Property::sometimes(
                "a sleeping reader is woken",
                |_, state: &State| {
                    let woken = |reader: &Reader| reader.next == ReaderStep::Sleep && reader.wakeup;
                    state.readers.iter().any(woken)
                },
            ));
        }
        if self.sleepers != Sleepers::Readers {
            properties.push(Property::sometimes(
                "a sleeping publisher is woken",
                |_, state: &State| state.publisher.next == PublisherStep::Sleep && state.publisher.wakeup,
            ));
        }
        let is_counted_out = |fences| fences > 0 && fences <= self.messages;
        let promised = is_counted_out(self.promised) || self.fences > 0 && self.fences < self.messages;
        if self.barriers == Barriers::Sleeper && promised {
            properties.push(Property::sometimes(
                "a promise of fences is revoked",
                |_, state: &State| {
                    let reader = |reader: &Reader| reader.next == ReaderStep::RevokePromise;
                    state.publisher.next == PublisherStep::RevokePromise || state.readers.iter().any(reader)
                },
            ));
        }
        properties
    }
}

/// The promise in docs/internals/promises.md: a sleeping peer is woken.
pub const READER_WOKEN: &str = "no reader stays asleep when a message is published";
/// The same promise for a publisher.
pub const PUBLISHER_WOKEN: &str = "no publisher stays asleep when the ring has space";
