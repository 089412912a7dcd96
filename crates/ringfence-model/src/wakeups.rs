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
    LoopConsumesWakeup,
    /// The former code: before it parks, the thread empties the line, including the loop's wakeup.
    ThreadConsumesWakeup,
    /// The thread sleeps in a read although there is a loop.
    ReadAlongsideLoop,
    /// The loop polls the line although a thread sleeps in a read of it.
    LoopPollsLineBeingRead,
    /// The thread that has taken a wakeup in its read does not notify the loop.
    NoNotifyAfterRead,
    /// The loop reads the line although a thread polls it that went to sleep before the loop existed.
    LoopReadsLineBeingPolled,
    /// The loop passes on no wakeup if threads were notified before, even if new ones have arrived since.
    NewWakeupsSkipped,
    /// The loop arms its half, and reads the leftovers of the line afterwards.
    ReadAfterArming,
}

/// The configuration of the model.
#[derive(Debug, Clone, Copy)]
pub struct Wakeups {
    /// The number of messages for each half.
    pub messages: u8,
    /// The loop is notified of each wakeup once (`EPOLLET`), and not for as long as it is on the line.
    pub edge_triggered: bool,
    /// The loop may leave a wakeup on the line until it arms a half.
    pub may_defer: bool,
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
    Read,
    Poll,
    OwnEpoll,
}

/// The known leftovers on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Leftover {
    None,
    Wakeups,
    ForLoop,
}

/// The descriptor that the loop was given to poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LoopFd {
    None,
    Line,
    /// An epoll of the line and of a descriptor with which a reader announces what it has taken.
    Epoll,
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
    observed: bool,
    leftover: Leftover,
    has_loop: bool,
    loop_fd: LoopFd,
    /// A reader has taken a wakeup, and notifies the loop.
    read_by_thread: bool,
    /// The thread's epoll for use next to a loop, once it exists.
    thread_poll: bool,
    /// A pending event of that epoll: for the line,
    line_event: bool,
    /// and for the loop's notification.
    notified: bool,
    /// A pending event of the loop's own epoll.
    loop_event: bool,
}

/// The next step of a half's waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum WaitStep {
    // Takes the messages that are ready.
    Consume,
    // Reads the leftovers of the line.
    CatchUp,
    Park,
    Recheck,
    // `Fault::ReadAfterArming`.
    CatchUpLate,
    ChooseWait,
    Sleep,
    Woken { by_line: bool },
    // Only the loop.
    ReadLine,
    Unpark,
}

/// One half and its waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Half {
    next: WaitStep,
    /// The number of messages that are ready.
    ready: u8,
    /// The number of messages that are still to come.
    unpublished: u8,
    parked: bool,
    woken: bool,
    /// The peer has published, and has not checked yet whether it must send a wakeup.
    peer_check_pending: bool,
}

/// Both halves and the doorbell.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    doorbell: Doorbell,
    halves: [Half; 2],
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The peer publishes a message for this half.
    Publish(usize),
    /// The peer checks whether that half sleeps, and wakes it.
    CheckParked(usize),
    /// The loop takes its next step.
    StepLoop,
    /// The loop leaves the wakeup on the line.
    DeferWakeups,
    /// The thread takes its next step.
    StepThread,
    /// The thread sleeps in a read instead of a poll.
    StepThreadByRead,
}

impl Doorbell {
    /// Records a wakeup and notifies the thread.
    fn observe(&mut self) {
        self.observed = true;
        if self.watch == Some(Watch::OwnEpoll) {
            self.notified = true;
        }
    }

    fn wake(&mut self) {
        self.line += 1;
        self.loop_event = true;
        self.line_event |= self.thread_poll;
    }

    fn open_loop_fd(&mut self, fault: Option<Fault>) {
        if self.loop_fd == LoopFd::None {
            let epoll = self.watch == Some(Watch::Read) && fault != Some(Fault::LoopPollsLineBeingRead);
            self.loop_fd = if epoll { LoopFd::Epoll } else { LoopFd::Line };
            self.loop_event |= self.line > 0;
        }
    }

    /// Whether the watching thread went to sleep when there was no loop.
    fn is_watched_alone(&self, fault: Option<Fault>) -> bool {
        match self.watch {
            Some(Watch::Read) => true,
            Some(Watch::Poll) => {
                fault != Some(Fault::LoopReadsLineBeingPolled) && fault != Some(Fault::LoopConsumesWakeup)
            }
            _ => false,
        }
    }

    fn read_all(&mut self, fault: Option<Fault>) {
        let known =
            self.leftover == Leftover::ForLoop && (self.line == 1 || fault == Some(Fault::NewWakeupsSkipped));
        self.line = 0;
        self.leftover = Leftover::None;
        if !known {
            self.observe();
        }
    }

    fn read_wakeups(&mut self, fault: Option<Fault>) {
        self.read_by_thread = false;
        if self.is_watched_alone(fault) {
            self.observe();
        } else {
            self.read_all(fault);
        }
    }

    fn defer_wakeups(&mut self, fault: Option<Fault>) {
        if self.leftover == Leftover::Wakeups {
            return self.read_wakeups(fault);
        }
        self.read_by_thread = false;
        self.leftover = Leftover::Wakeups;
        self.observe();
    }

    /// The loop arms a half.
    fn arm(&mut self, fault: Option<Fault>) {
        self.has_loop = true;
        self.open_loop_fd(fault);
        if self.leftover != Leftover::None && !self.is_watched_alone(fault) {
            self.read_all(fault);
        }
    }

    /// The thread catches up before it parks.
    fn catch_up(&mut self, fault: Option<Fault>) {
        if self.leftover != Leftover::Wakeups || self.watch.is_some() {
            return;
        }
        if self.has_loop && fault != Some(Fault::ThreadConsumesWakeup) {
            self.leftover = if self.line > 0 {
                Leftover::ForLoop
            } else {
                Leftover::None
            };
            self.line = self.line.min(1);
            self.observe();
        } else {
            self.read_all(fault);
        }
    }

    /// Whether the loop's poll ends.
    fn wakes_loop(&self, edge_triggered: bool) -> bool {
        let readable = self.line > 0 || self.read_by_thread && self.loop_fd == LoopFd::Epoll;
        readable && (self.loop_event || !edge_triggered)
    }

    /// Whether the thread's sleep ends.
    fn wakes_thread(&self) -> bool {
        match self.watch {
            Some(Watch::Read | Watch::Poll) => self.line > 0,
            Some(Watch::OwnEpoll) => self.notified || self.line_event && self.line > 0,
            None => true,
        }
    }
}

impl Wakeups {
    fn has(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn may_sleep_alone(self, doorbell: &Doorbell) -> bool {
        !doorbell.has_loop || self.has(Fault::ReadAlongsideLoop) || self.has(Fault::LoopConsumesWakeup)
    }

    fn step(self, state: &mut State, at: usize, action: Action) {
        let State { doorbell, halves } = state;
        let me = &mut halves[at];
        me.next = match me.next {
            WaitStep::Consume if me.ready > 0 => {
                me.ready -= 1;
                WaitStep::Consume
            }
            WaitStep::Consume => WaitStep::CatchUp,
            WaitStep::CatchUp => {
                if at == THREAD {
                    doorbell.catch_up(self.fault);
                    // Forget the wakeups that arrived so far.
                    doorbell.observed = false;
                } else if self.has(Fault::ReadAfterArming) {
                    doorbell.has_loop = true;
                    doorbell.open_loop_fd(self.fault);
                } else {
                    doorbell.arm(self.fault);
                }
                WaitStep::Park
            }
            WaitStep::Park => {
                me.parked = true;
                me.woken = false;
                WaitStep::Recheck
            }
            WaitStep::Recheck if me.ready > 0 => WaitStep::Unpark,
            WaitStep::Recheck if at == THREAD => WaitStep::ChooseWait,
            WaitStep::Recheck if self.has(Fault::ReadAfterArming) => WaitStep::CatchUpLate,
            WaitStep::CatchUpLate => {
                doorbell.arm(self.fault);
                WaitStep::Sleep
            }
            WaitStep::Recheck => WaitStep::Sleep,
            WaitStep::Unpark => {
                me.parked = false;
                WaitStep::Consume
            }
            next if at == LOOP => self.step_loop(doorbell, next, action),
            next => self.step_thread(doorbell, next, action),
        };
    }

    fn step_loop(self, doorbell: &mut Doorbell, next: WaitStep, action: Action) -> WaitStep {
        if next == WaitStep::Sleep {
            doorbell.loop_event = false;
            return WaitStep::ReadLine;
        }
        if action == Action::DeferWakeups {
            doorbell.defer_wakeups(self.fault);
        } else {
            doorbell.read_wakeups(self.fault);
        }
        WaitStep::Unpark
    }

    fn step_thread(self, doorbell: &mut Doorbell, next: WaitStep, action: Action) -> WaitStep {
        match next {
            WaitStep::ChooseWait if doorbell.observed => WaitStep::Unpark,
            WaitStep::ChooseWait => {
                doorbell.watch = Some(if !self.may_sleep_alone(doorbell) {
                    if !doorbell.thread_poll {
                        doorbell.thread_poll = true;
                        doorbell.line_event = doorbell.line > 0;
                    }
                    Watch::OwnEpoll
                } else if action == Action::StepThreadByRead {
                    doorbell.leftover = Leftover::None;
                    Watch::Read
                } else {
                    Watch::Poll
                });
                WaitStep::Sleep
            }
            WaitStep::Sleep => {
                let by_line = match doorbell.watch {
                    Some(Watch::Read) => {
                        doorbell.line = 0;
                        true
                    }
                    Some(Watch::OwnEpoll) => {
                        let by_line = doorbell.line_event && doorbell.line > 0;
                        doorbell.line_event = false;
                        doorbell.notified = false;
                        by_line
                    }
                    _ => true,
                };
                WaitStep::Woken { by_line }
            }
            WaitStep::Woken { by_line } => {
                let watch = doorbell.watch.take();
                doorbell.observed |= by_line;
                if by_line && watch == Some(Watch::Read) {
                    if doorbell.loop_fd == LoopFd::Epoll && !self.has(Fault::NoNotifyAfterRead) {
                        doorbell.read_by_thread = true;
                        doorbell.loop_event = true;
                    }
                } else if by_line {
                    doorbell.leftover = Leftover::Wakeups;
                }
                WaitStep::ChooseWait
            }
            other => other,
        }
    }
}

impl Model for Wakeups {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let half = Half {
            next: WaitStep::Consume,
            ready: 0,
            unpublished: self.messages,
            parked: false,
            woken: false,
            peer_check_pending: false,
        };
        vec![State {
            doorbell: Doorbell {
                line: 0,
                watch: None,
                observed: false,
                leftover: Leftover::None,
                has_loop: false,
                loop_fd: LoopFd::None,
                read_by_thread: false,
                thread_poll: false,
                line_event: false,
                notified: false,
                loop_event: false,
            },
            halves: [half; 2],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { doorbell, halves } = state;
        for (at, half) in halves.iter().enumerate() {
            if half.peer_check_pending {
                actions.push(Action::CheckParked(at));
            } else if half.unpublished > 0 {
                actions.push(Action::Publish(at));
            }
        }
        let sleeps = |at: usize| halves[at].next == WaitStep::Sleep;
        if !sleeps(LOOP) || doorbell.wakes_loop(self.edge_triggered) {
            actions.push(Action::StepLoop);
        }
        if halves[LOOP].next == WaitStep::ReadLine && self.may_defer {
            actions.push(Action::DeferWakeups);
        }
        if !sleeps(THREAD) || doorbell.wakes_thread() {
            actions.push(Action::StepThread);
        }
        if halves[THREAD].next == WaitStep::ChooseWait && self.may_sleep_alone(doorbell) {
            // In the former code, a thread polled as well once a loop had asked for the line.
            let polls = self.has(Fault::LoopConsumesWakeup) && doorbell.has_loop;
            if !polls {
                actions.push(Action::StepThreadByRead);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Publish(at) => {
                let half = &mut state.halves[at];
                half.unpublished -= 1;
                half.ready += 1;
                half.peer_check_pending = true;
            }
            Action::CheckParked(at) => {
                let half = &mut state.halves[at];
                half.peer_check_pending = false;
                if half.parked && !half.woken {
                    half.woken = true;
                    state.doorbell.wake();
                }
            }
            Action::StepLoop | Action::DeferWakeups => self.step(&mut state, LOOP, action),
            Action::StepThread | Action::StepThreadByRead => self.step(&mut state, THREAD, action),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_HALF_ASLEEP, |model: &Self, state: &State| {
                let State { doorbell, halves } = state;
                let rests = halves
                    .iter()
                    .all(|half| half.next == WaitStep::Sleep && !half.peer_check_pending);
                let asleep = !doorbell.wakes_loop(model.edge_triggered) && !doorbell.wakes_thread();
                let waits = halves.iter().any(|half| half.ready > 0);
                !(rests && asleep && waits)
            }),
            Property::sometimes("both halves have received all messages", |_, state: &State| {
                state
                    .halves
                    .iter()
                    .all(|half| half.ready == 0 && half.unpublished == 0 && half.next == WaitStep::Sleep)
            }),
            Property::sometimes("the thread sleeps next to the loop", |_, state: &State| {
                state.doorbell.watch == Some(Watch::OwnEpoll)
            }),
            Property::sometimes(
                "the loop polls apart from a thread that reads",
                |_, state: &State| state.doorbell.loop_fd == LoopFd::Epoll && state.doorbell.read_by_thread,
            ),
        ]
    }
}

/// For a channel whose halves are awaited in two ways.
pub const NO_HALF_ASLEEP: &str =
    "neither half stays asleep when a message arrives for it, whether a thread or an event loop waits";
