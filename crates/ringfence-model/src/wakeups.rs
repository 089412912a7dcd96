//! One line that wakes two halves of a channel: the program waits for one half in an event loop and for the
//! other in a thread.
//!
//! A wakeup does not say for which half it is meant. So both halves learn about each one. A thread next to a
//! loop sleeps in an edge-triggered epoll and leaves the loop one wakeup on the line. The loop passes on what
//! it has read. A thread that went to sleep before the loop existed sleeps in a read or a poll, and only a
//! wakeup on the line can wake it. So the loop leaves wakeups to that thread. If the thread would take the
//! loop's wakeup, the loop polls another descriptor.
//!
//! Everything that the doorbell does under its lock is a single step. The orderings of the parked words are covered by
//! [`parking`](crate::parking). Here a store is visible immediately.

use stateright::{Model, Property};

/// A mistake that the checker must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The former code: the thread polls the line next to the loop. The loop empties the line and notifies
    /// only the thread's next wait.
    LoopTakesTheBell,
    /// The former code: before it parks, the thread empties the line, including the loop's wakeup.
    ThreadTakesTheBell,
    /// The thread sleeps in a read although there is a loop.
    ReadsBesideALoop,
    /// The loop polls the line although a thread sleeps in a read of it.
    PollsWhatIsRead,
    /// The thread that has taken a wakeup in its read does not notify the loop.
    ReaderTellsNone,
    /// The loop reads the line although a thread polls it that went to sleep before the loop existed.
    ReadsFromAPoller,
    /// The loop passes on no wakeup if threads were notified before, even if new ones have arrived since.
    TellsOfNothingKnown,
    /// The loop arms its half, and reads the leftovers of the line afterwards.
    ReadsAfterArming,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Bells {
    /// The number of messages for each half.
    pub messages: u8,
    /// The loop is notified of each wakeup once (`EPOLLET`), and not for as long as it is on the line.
    pub edge: bool,
    /// The loop may leave a wakeup on the line until it arms a half.
    pub later: bool,
    /// The fault, if any.
    pub fault: Option<Fault>,
}

/// The half that the loop waits for.
const LOOP: usize = 0;
/// The half that the thread waits for.
const THREAD: usize = 1;

/// The way in which the thread waits on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Watch {
    Reads,
    Polls,
    Beside,
}

/// The known leftovers on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Left {
    Nothing,
    Bells,
    ForLoop,
}

/// The descriptor that the loop was given to poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lent {
    Nothing,
    Line,
    /// An epoll of the line and of a descriptor with which a reader announces what it has taken.
    Apart,
}

/// The state under the doorbell's lock, and the descriptors.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and the checker tries all combinations"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Doorbell {
    /// The number of wakeups on the line.
    line: u8,
    watch: Option<Watch>,
    /// A wakeup arrived since the thread last asked.
    heard: bool,
    left: Left,
    looped: bool,
    lent: Lent,
    /// A reader has taken a wakeup, and notifies the loop.
    taken: bool,
    /// The thread's epoll for use next to a loop, once it exists.
    thread_poll: bool,
    /// A pending event of that epoll: for the line,
    line_event: bool,
    /// and for the loop's notification.
    told: bool,
    /// A pending event of the loop's own epoll.
    loop_event: bool,
}

/// The next step of a half's waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Waits {
    /// Takes what is ready.
    Takes,
    /// Reads the leftovers of the line.
    CatchesUp,
    /// Announces that it sleeps.
    Parks,
    /// Checks once more.
    Looks,
    /// Reads the leftovers of the line ([`Fault::ReadsAfterArming`]).
    CatchesUpLate,
    /// Chooses how to sleep.
    Chooses,
    /// Sleeps.
    Sleeps,
    /// The thread was woken, by a wakeup on the line or not.
    Woken { rung: bool },
    /// The loop reads the line.
    Reads,
    /// Announces that it is awake.
    Unparks,
}

/// One half and its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Half {
    next: Waits,
    /// The number of messages that are ready.
    ready: u8,
    /// The number of messages that are still to come.
    to_come: u8,
    parked: bool,
    rung: bool,
    /// The peer has published, and has not checked yet whether it must send a wakeup.
    peer_looks: bool,
}

/// Both halves and the doorbell.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    bell: Doorbell,
    halves: [Half; 2],
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The peer publishes a message for this half.
    Publish(usize),
    /// The peer checks whether that half sleeps, and wakes it.
    Look(usize),
    /// The loop takes its next step.
    Loop,
    /// The loop leaves the wakeup on the line.
    LeaveBells,
    /// The thread takes its next step.
    Thread,
    /// The thread sleeps in a read instead of a poll.
    ThreadReads,
}

impl Doorbell {
    /// Records a wakeup and notifies the thread.
    fn note(&mut self) {
        self.heard = true;
        if self.watch == Some(Watch::Beside) {
            self.told = true;
        }
    }

    fn ring(&mut self) {
        self.line += 1;
        self.loop_event = true;
        self.line_event |= self.thread_poll;
    }

    fn lend(&mut self, fault: Option<Fault>) {
        if self.lent == Lent::Nothing {
            let apart = self.watch == Some(Watch::Reads) && fault != Some(Fault::PollsWhatIsRead);
            self.lent = if apart { Lent::Apart } else { Lent::Line };
            self.loop_event |= self.line > 0;
        }
    }

    /// Whether the watching thread went to sleep when there was no loop.
    fn is_watched_alone(&self, fault: Option<Fault>) -> bool {
        match self.watch {
            Some(Watch::Reads) => true,
            Some(Watch::Polls) => {
                fault != Some(Fault::ReadsFromAPoller) && fault != Some(Fault::LoopTakesTheBell)
            }
            _ => false,
        }
    }

    fn read_all(&mut self, fault: Option<Fault>) {
        let known =
            self.left == Left::ForLoop && (self.line == 1 || fault == Some(Fault::TellsOfNothingKnown));
        self.line = 0;
        self.left = Left::Nothing;
        if !known {
            self.note();
        }
    }

    fn read_bells(&mut self, fault: Option<Fault>) {
        self.taken = false;
        if self.is_watched_alone(fault) {
            self.note();
        } else {
            self.read_all(fault);
        }
    }

    fn leave_bells(&mut self, fault: Option<Fault>) {
        if self.left == Left::Bells {
            return self.read_bells(fault);
        }
        self.taken = false;
        self.left = Left::Bells;
        self.note();
    }

    /// The loop arms a half.
    fn arm(&mut self, fault: Option<Fault>) {
        self.looped = true;
        self.lend(fault);
        if self.left != Left::Nothing && !self.is_watched_alone(fault) {
            self.read_all(fault);
        }
    }

    /// The thread catches up before it parks.
    fn catch_up(&mut self, fault: Option<Fault>) {
        if self.left != Left::Bells || self.watch.is_some() {
            return;
        }
        if self.looped && fault != Some(Fault::ThreadTakesTheBell) {
            self.left = if self.line > 0 {
                Left::ForLoop
            } else {
                Left::Nothing
            };
            self.line = self.line.min(1);
            self.note();
        } else {
            self.read_all(fault);
        }
    }

    /// Whether the loop's poll ends.
    fn wakes_loop(&self, edge: bool) -> bool {
        let readable = self.line > 0 || self.taken && self.lent == Lent::Apart;
        readable && (self.loop_event || !edge)
    }

    /// Whether the thread's sleep ends.
    fn wakes_thread(&self) -> bool {
        match self.watch {
            Some(Watch::Reads | Watch::Polls) => self.line > 0,
            Some(Watch::Beside) => self.told || self.line_event && self.line > 0,
            None => true,
        }
    }
}

impl Bells {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn sleeps_alone(self, bell: &Doorbell) -> bool {
        !bell.looped || self.has(Fault::ReadsBesideALoop) || self.has(Fault::LoopTakesTheBell)
    }

    fn go_on(self, state: &mut State, at: usize, action: Action) {
        let State { bell, halves } = state;
        let me = &mut halves[at];
        me.next = match me.next {
            Waits::Takes if me.ready > 0 => {
                me.ready -= 1;
                Waits::Takes
            }
            Waits::Takes => Waits::CatchesUp,
            Waits::CatchesUp => {
                if at == THREAD {
                    bell.catch_up(self.fault);
                    // Forget the wakeups that arrived so far.
                    bell.heard = false;
                } else if self.has(Fault::ReadsAfterArming) {
                    bell.looped = true;
                    bell.lend(self.fault);
                } else {
                    bell.arm(self.fault);
                }
                Waits::Parks
            }
            Waits::Parks => {
                me.parked = true;
                me.rung = false;
                Waits::Looks
            }
            Waits::Looks if me.ready > 0 => Waits::Unparks,
            Waits::Looks if at == THREAD => Waits::Chooses,
            Waits::Looks if self.has(Fault::ReadsAfterArming) => Waits::CatchesUpLate,
            Waits::CatchesUpLate => {
                bell.arm(self.fault);
                Waits::Sleeps
            }
            Waits::Looks => Waits::Sleeps,
            Waits::Unparks => {
                me.parked = false;
                Waits::Takes
            }
            next if at == LOOP => self.loop_goes_on(bell, next, action),
            next => self.thread_goes_on(bell, next, action),
        };
    }

    fn loop_goes_on(self, bell: &mut Doorbell, next: Waits, action: Action) -> Waits {
        if next == Waits::Sleeps {
            bell.loop_event = false;
            return Waits::Reads;
        }
        if action == Action::LeaveBells {
            bell.leave_bells(self.fault);
        } else {
            bell.read_bells(self.fault);
        }
        Waits::Unparks
    }

    fn thread_goes_on(self, bell: &mut Doorbell, next: Waits, action: Action) -> Waits {
        match next {
            Waits::Chooses if bell.heard => Waits::Unparks,
            Waits::Chooses => {
                bell.watch = Some(if !self.sleeps_alone(bell) {
                    if !bell.thread_poll {
                        bell.thread_poll = true;
                        bell.line_event = bell.line > 0;
                    }
                    Watch::Beside
                } else if action == Action::ThreadReads {
                    bell.left = Left::Nothing;
                    Watch::Reads
                } else {
                    Watch::Polls
                });
                Waits::Sleeps
            }
            Waits::Sleeps => {
                let rung = match bell.watch {
                    Some(Watch::Reads) => {
                        bell.line = 0;
                        true
                    }
                    Some(Watch::Beside) => {
                        let rung = bell.line_event && bell.line > 0;
                        bell.line_event = false;
                        bell.told = false;
                        rung
                    }
                    _ => true,
                };
                Waits::Woken { rung }
            }
            Waits::Woken { rung } => {
                let watch = bell.watch.take();
                bell.heard |= rung;
                if rung && watch == Some(Watch::Reads) {
                    if bell.lent == Lent::Apart && !self.has(Fault::ReaderTellsNone) {
                        bell.taken = true;
                        bell.loop_event = true;
                    }
                } else if rung {
                    bell.left = Left::Bells;
                }
                Waits::Chooses
            }
            other => other,
        }
    }
}

impl Model for Bells {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let half = Half {
            next: Waits::Takes,
            ready: 0,
            to_come: self.messages,
            parked: false,
            rung: false,
            peer_looks: false,
        };
        vec![State {
            bell: Doorbell {
                line: 0,
                watch: None,
                heard: false,
                left: Left::Nothing,
                looped: false,
                lent: Lent::Nothing,
                taken: false,
                thread_poll: false,
                line_event: false,
                told: false,
                loop_event: false,
            },
            halves: [half; 2],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { bell, halves } = state;
        for (at, half) in halves.iter().enumerate() {
            if half.peer_looks {
                actions.push(Action::Look(at));
            } else if half.to_come > 0 {
                actions.push(Action::Publish(at));
            }
        }
        let sleeps = |at: usize| halves[at].next == Waits::Sleeps;
        if !sleeps(LOOP) || bell.wakes_loop(self.edge) {
            actions.push(Action::Loop);
        }
        if halves[LOOP].next == Waits::Reads && self.later {
            actions.push(Action::LeaveBells);
        }
        if !sleeps(THREAD) || bell.wakes_thread() {
            actions.push(Action::Thread);
        }
        if halves[THREAD].next == Waits::Chooses && self.sleeps_alone(bell) {
            // In the former code, a thread polled as well once a loop had asked for the line.
            let polls = self.has(Fault::LoopTakesTheBell) && bell.looped;
            if !polls {
                actions.push(Action::ThreadReads);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Publish(at) => {
                let half = &mut state.halves[at];
                half.to_come -= 1;
                half.ready += 1;
                half.peer_looks = true;
            }
            Action::Look(at) => {
                let half = &mut state.halves[at];
                half.peer_looks = false;
                if half.parked && !half.rung {
                    half.rung = true;
                    state.bell.ring();
                }
            }
            Action::Loop | Action::LeaveBells => self.go_on(&mut state, LOOP, action),
            Action::Thread | Action::ThreadReads => self.go_on(&mut state, THREAD, action),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_STANDSTILL, |model: &Self, state: &State| {
                let State { bell, halves } = state;
                let rests = halves
                    .iter()
                    .all(|half| half.next == Waits::Sleeps && !half.peer_looks);
                let asleep = !bell.wakes_loop(model.edge) && !bell.wakes_thread();
                let waits = halves.iter().any(|half| half.ready > 0);
                !(rests && asleep && waits)
            }),
            Property::sometimes("both halves have received all messages", |_, state: &State| {
                state
                    .halves
                    .iter()
                    .all(|half| half.ready == 0 && half.to_come == 0 && half.next == Waits::Sleeps)
            }),
            Property::sometimes("the thread sleeps next to the loop", |_, state: &State| {
                state.bell.watch == Some(Watch::Beside)
            }),
            Property::sometimes(
                "the loop polls apart from a thread that reads",
                |_, state: &State| state.bell.lent == Lent::Apart && state.bell.taken,
            ),
        ]
    }
}

/// For a channel whose halves are awaited in two ways.
pub const NO_STANDSTILL: &str =
    "neither half stays asleep when a message arrives for it, whether a thread or an event loop waits";
