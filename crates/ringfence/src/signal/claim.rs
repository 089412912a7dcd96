//! Realtime signals for this crate alone: a number that nothing else in the process uses, and a thread that takes what
//! is sent to it.
//!
//! The thread blocks every signal and waits for its own (sigwaitinfo(2)), and what has something to say, the kernel or
//! the peer of a channel, directs it at that very thread. So nothing is ever said to a handler and no other thread is
//! interrupted, and a program that blocks signals everywhere, or on no thread, changes nothing. What comes after the thread
//! has ended finds no thread, where a signal to the process would end that. The signal-hook crate was not taken: it never
//! gives a disposition back, and it hears what is sent to the whole process.
//!
//! The number's disposition is a handler that counts, as long as it is claimed, so that one which some process of
//! the same user sends to the process is no death sentence (signal(7): the default of a realtime signal is to end it).

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::{self, c_int},
    sys::signal::{Signal, kill},
    unistd::{getpid, gettid},
};

use crate::{
    error::{Error, Result},
    fork::{Birth, PerProcess},
    sys::lock::{Condvar, Mutex, MutexGuard},
    sys::{self, signal::SignalInfo},
    wait::own::begin_own_thread,
};

/// Who is told what the thread of any number hears, on that thread: one of each kind in a process.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// Of what the kernel says: its codes are above 0, which no process can give to another (rt_sigqueueinfo(2)), but which it
    /// can have the kernel say (`F_SETOWN_EX`). Also where SIGIO comes: the kernel sends it in the number's stead where the
    /// queue of signals is full (fcntl(2), `F_SETSIG`). Answers after how long it wants to be called again, if at all.
    Alarm(Alarm),
    /// Of what some process has said. Answers whether a channel of this process was to hear that.
    Queued(fn(&SignalInfo) -> bool),
}

type Alarm = fn() -> Option<Duration>;

/// What a process has of numbers, and whom it tells.
#[derive(Default)]
struct Numbers {
    threads: Mutex<Vec<SignalThread>>,
    alarms: OnceLock<Alarm>,
    queued: OnceLock<fn(&SignalInfo) -> bool>,
    strays: Strays,
}

static NUMBERS: PerProcess<Numbers> = PerProcess::new();

/// Has the alarm looked into. When to do so again, if that has not told enough.
fn alarm() -> Option<Instant> {
    let alarm = NUMBERS.existing().and_then(|numbers| numbers.alarms.get())?;
    Some(Instant::now() + alarm()?)
}

/// A hold on a number. The last one gives the number back as it was.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) number: c_int,
    /// The thread's id, for a sender that directs a signal at it.
    pub(crate) thread: libc::pid_t,
    /// Whether all that a process sends with a signal arrives with it here, as far as is known.
    pub(crate) carries_all: bool,
    /// That it does was seen.
    hears_marks: bool,
    progress: Arc<Progress>,
    /// A child has a copy of this, and no such thread.
    birth: Birth,
}

struct SignalThread {
    number: c_int,
    claims: usize,
    thread: libc::pid_t,
    carries_all: bool,
    hears_marks: bool,
    over: Arc<AtomicBool>,
    progress: Arc<Progress>,
    join: JoinHandle<()>,
}

thread_local! {
    /// This is the thread of a number. Two of those that wait for each other would do so for ever.
    static HEARS: Cell<bool> = const { Cell::new(false) };
}

impl Numbers {
    fn threads(&self) -> MutexGuard<'_, Vec<SignalThread>> {
        self.threads.lock()
    }
}

/// Signals of each number that no channel was to hear, since this process began.
struct Strays([AtomicU64; 65]);

impl Default for Strays {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 65])
    }
}

impl Strays {
    fn of(&self, number: c_int) -> Option<&AtomicU64> {
        usize::try_from(number).ok().and_then(|at| self.0.get(at))
    }
}

/// How many signals of this number have come to this process that no channel was to hear.
pub(crate) fn strays(number: c_int) -> u64 {
    let count = NUMBERS.existing().and_then(|numbers| numbers.strays.of(number));
    count.map_or(0, |count| count.load(Ordering::Relaxed))
}

/// The handler: it may interrupt any thread in the middle of anything, so it adds to a counter and does nothing else
/// (signal-safety(7)). What has something to say to this process does not say it to this.
extern "C" fn count_stray(number: c_int) {
    // What it looks through is there before the handler is, and stays.
    if let Some(count) = NUMBERS.existing().and_then(|numbers| numbers.strays.of(number)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The handler's address, as the kernel tells it.
fn own_handler() -> libc::sighandler_t {
    count_stray as extern "C" fn(c_int) as libc::sighandler_t
}

/// Of the realtime signals, one from the middle: C libraries take from the beginning, programs mostly from either end.
const USUAL: c_int = 50;

/// The numbers to claim one of, where none is asked for; in the order in which they are tried.
fn candidates() -> impl Iterator<Item = c_int> {
    (USUAL..=libc::SIGRTMAX()).chain(libc::SIGRTMIN()..USUAL)
}

/// Whether a number may be claimed, or any where there is none. Errors with [`Error::InvalidArgument`] for one that is no
/// realtime signal, or that the process uses itself.
pub(crate) fn check(number: Option<c_int>) -> Result<()> {
    let Some(number) = number else {
        return unused().map(drop);
    };
    check_range(number)?;
    check_claimable(&NUMBERS.get()?.threads(), number)
}

/// The number that a claim of any would get now.
pub(crate) fn unused() -> Result<c_int> {
    let threads = NUMBERS.get()?.threads();
    candidates()
        .find(|number| check_claimable(&threads, *number).is_ok())
        .ok_or_else(none_free)
}

fn check_claimable(threads: &[SignalThread], number: c_int) -> Result<()> {
    if threads.iter().any(|thread| thread.number == number) {
        return Ok(());
    }
    check_free(number)
}

fn none_free() -> Error {
    Error::invalid("every realtime signal is in use: this process has handlers for all, or ignores them")
}

fn check_range(number: c_int) -> Result<()> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    if !(first..=last).contains(&number) {
        return Err(Error::invalid(format!(
            "the signal number must be that of a realtime signal, {first} to {last}, not {number}"
        )));
    }
    Ok(())
}

fn check_free(number: c_int) -> Result<()> {
    let found = sys::signal::disposition_of(number)
        .map_err(|errno| Error::system("looking at a signal's handler (sigaction)", errno))?;
    // Ours, and not claimed here: by the process that this one was forked from.
    if found.sa_sigaction == libc::SIG_DFL || found.sa_sigaction == own_handler() {
        return Ok(());
    }
    let how = if found.sa_sigaction == libc::SIG_IGN {
        "ignores it"
    } else {
        "has a handler for it"
    };
    Err(Error::invalid(format!(
        "signal {number} is in use: this process {how}; give another number (signalNumber, {} to {})",
        libc::SIGRTMIN(),
        libc::SIGRTMAX()
    )))
}

impl Claim {
    /// Claims a number, or the first that the process does not use where none is asked for (another copy of this crate in
    /// the same process has the usual one, say), and has the listener told from now on.
    ///
    /// Errors with [`Error::InvalidArgument`] as [`check`], and with [`Error::NoSpace`] where there can be no thread.
    pub(crate) fn new(number: Option<c_int>, listener: Handler) -> Result<Self> {
        let birth = Birth::now()?;
        let numbers = NUMBERS.get()?;
        // The one that was first is of the same kind, and so the same.
        let _ = match listener {
            Handler::Alarm(alarm) => numbers.alarms.set(alarm).is_ok(),
            Handler::Queued(hear) => numbers.queued.set(hear).is_ok(),
        };
        let mut threads = numbers.threads();
        if let Some(number) = number {
            check_range(number)?;
            return Self::of(&mut threads, number, birth);
        }
        for number in candidates() {
            match Self::of(&mut threads, number, birth) {
                Err(Error::InvalidArgument(_)) => {}
                outcome => return outcome,
            }
        }
        Err(none_free())
    }

    fn of(threads: &mut Vec<SignalThread>, number: c_int, birth: Birth) -> Result<Self> {
        if let Some(thread) = threads.iter_mut().find(|thread| thread.number == number) {
            return Ok(thread.claim(birth));
        }
        check_free(number)?;
        sys::signal::set_disposition(number, &sys::signal::disposition(own_handler()))
            .map_err(|errno| Error::system("a handler of a realtime signal (sigaction)", errno))?;
        match start(number) {
            Ok(mut thread) => {
                let claim = thread.claim(birth);
                threads.push(thread);
                Ok(claim)
            }
            Err(error) => {
                give_back(number);
                Err(error)
            }
        }
    }

    /// Waits until the thread has heard everything that was directed at it before this call. On the thread of a number, which
    /// waits for none, returns at once.
    pub(crate) fn catch_up(&self) {
        if HEARS.get() || !self.birth.is_here() {
            return;
        }
        let ticket = self.progress.ask();
        // SIGIO takes no place in the queue, and carries nothing. Only a thread that has ended does not get it.
        if !self.queue_mark(ticket) && sys::signal::signal_thread(self.thread, libc::SIGIO).is_err() {
            return;
        }
        self.progress.wait_for(ticket);
    }

    /// Whether the thread will hear a mark. One of which the half is lost on the way would be none, and be waited for for ever.
    fn queue_mark(&self, ticket: u64) -> bool {
        let mark = self.progress.mark(self.number, ticket);
        self.hears_marks && sys::signal::queue_signal(getpid().as_raw(), self.thread, &mark).is_ok()
    }
}

impl SignalThread {
    fn claim(&mut self, birth: Birth) -> Claim {
        self.claims += 1;
        Claim {
            number: self.number,
            thread: self.thread,
            carries_all: self.carries_all,
            hears_marks: self.hears_marks,
            progress: Arc::clone(&self.progress),
            birth,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In a child the number may be claimed anew.
        let Some(numbers) = NUMBERS.existing().filter(|_| self.birth.is_here()) else {
            return;
        };
        let mut threads = numbers.threads();
        let Some(index) = threads.iter().position(|thread| thread.number == self.number) else {
            return;
        };
        threads[index].claims -= 1;
        if threads[index].claims > 0 {
            return;
        }
        let thread = threads.swap_remove(index);
        thread.over.store(true, Ordering::Release);
        // Not a realtime signal, for which there may be no room; and it can come to that thread alone.
        let told = sys::signal::signal_thread(thread.thread, libc::SIGIO);
        give_back(self.number);
        drop(threads);
        // What a thread hears may end the last claim, its own or another number's: then that one ends by itself.
        if told.is_ok() && !HEARS.get() {
            // A panic of that thread has been told where it happened.
            let _ = thread.join.join();
        }
    }
}

/// Puts the default back, unless the program has taken the number meanwhile.
fn give_back(number: c_int) {
    if sys::signal::disposition_of(number).is_ok_and(|found| found.sa_sigaction == own_handler()) {
        // What some process has sent, and no thread has taken yet, would end this one. To ignore a signal throws away what
        // is pending (sigaction(2)). The number was good when it was claimed, so the kernel has no reason to refuse.
        for handler in [libc::SIG_IGN, libc::SIG_DFL] {
            let _ = sys::signal::set_disposition(number, &sys::signal::disposition(handler));
        }
    }
}

/// How far the thread is in what is directed at it.
struct Progress {
    /// What a mark of this process's own carries, so that no other process's signal is taken for one.
    key: [u8; 16],
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: u64,
    reached: u64,
    /// The thread has ended, and reaches nothing more.
    over: bool,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl Progress {
    fn new() -> Result<Self> {
        let key = sys::random::bytes().map_err(|errno| Error::system("random bytes", errno))?;
        Ok(Self {
            key,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn ask(&self) -> u64 {
        let mut state = self.state();
        state.asked += 1;
        state.asked
    }

    fn asked(&self) -> u64 {
        self.state().asked
    }

    /// A signal that says no more than that the thread has come to it. Signals of one number reach a thread in the order
    /// in which they were queued.
    fn mark(&self, number: c_int, ticket: u64) -> SignalInfo {
        SignalInfo {
            signal: number,
            errno: 0,
            code: libc::SI_QUEUE,
            value: ticket,
            rest: self.key,
        }
    }

    /// The number of a mark; `None` for what is none.
    fn ticket(&self, heard: &SignalInfo) -> Option<u64> {
        (*heard == self.mark(heard.signal, heard.value)).then_some(heard.value)
    }

    fn reached(&self, ticket: u64) {
        let mut state = self.state();
        // Marks may be queued in another order than they were asked for. A thread that asked before had asked for no more.
        state.reached = state.reached.max(ticket);
        self.changed.notify_all();
    }

    fn wait_for(&self, ticket: u64) {
        let mut state = self.state();
        while state.reached < ticket && !state.over {
            state = self.changed.wait(state);
        }
    }
}

/// However the thread ends: no other waits for it then.
struct Ending(Arc<Progress>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.changed.notify_all();
    }
}

fn start(number: c_int) -> Result<SignalThread> {
    let over = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(Progress::new()?);
    let (ready, started) = mpsc::channel();
    let told = Arc::clone(&over);
    let ending = Ending(Arc::clone(&progress));
    let no_thread = |reason: String| Error::NoSpace {
        what: "a thread for a realtime signal".into(),
        reason,
    };
    let join = thread::Builder::new()
        .name("ringfence-signal".into())
        .spawn(move || {
            HEARS.set(true);
            begin_own_thread();
            let progress = &ending.0;
            let begun = sys::signal::block_signals()
                .map(|()| (gettid().as_raw(), arrives_whole(&progress.mark(number, 0))));
            let fine = begun.is_ok();
            // Without a receiver, no caller waits for this thread any more.
            let _ = ready.send(begun);
            if fine {
                listen(number, &told, progress);
            }
        })
        .map_err(|error| no_thread(error.to_string()))?;
    let (thread, whole) = started
        .recv()
        .map_err(|error| no_thread(error.to_string()))?
        .map_err(|errno| Error::system("blocking signals in a thread (pthread_sigmask)", errno))?;
    Ok(SignalThread {
        number,
        claims: 0,
        thread,
        // A full queue tells nothing. Where it was wrong to hope, what comes is not matched.
        carries_all: whole.unwrap_or_else(|errno| errno == Errno::EAGAIN),
        hears_marks: whole == Ok(true),
        over,
        progress,
        join,
    })
}

/// Sends this thread, which is new and blocks all signals, this one, and looks at what has arrived of it: not everything
/// that runs Linux programs hands on what lies behind the value.
fn arrives_whole(sent: &SignalInfo) -> Result<bool, Errno> {
    sys::signal::queue_signal(getpid().as_raw(), gettid().as_raw(), sent)?;
    // A thread's own signals come before those of its process.
    Ok(sys::signal::take_signal(sent.signal) == Ok(*sent))
}

/// The same on a thread that is over when this returns, whatever the process does with the signal.
pub(crate) fn carry_all() -> Result<bool, Errno> {
    let sent = SignalInfo {
        signal: libc::SIGRTMAX(),
        errno: 1,
        code: libc::SI_QUEUE,
        value: u64::MAX,
        rest: *b"behind the value",
    };
    let thread = thread::Builder::new()
        .spawn(move || {
            sys::signal::block_signals()?;
            arrives_whole(&sent)
        })
        .map_err(|_| Errno::EAGAIN)?;
    thread.join().unwrap_or(Err(Errno::EAGAIN))
}

fn listen(number: c_int, over: &AtomicBool, progress: &Progress) {
    // When the alarm is looked into again. What comes meanwhile is heard as ever.
    let mut again: Option<Instant> = None;
    loop {
        let left = again.map(|at| at.saturating_duration_since(Instant::now()));
        let heard = sys::signal::wait_for_signal(&[number, libc::SIGIO], left);
        if over.load(Ordering::Acquire) {
            return;
        }
        match heard {
            Ok(heard) if heard.signal == libc::SIGIO => {
                let asked = progress.asked();
                again = alarm();
                // Of two signals the lower number comes first, so what was queued before may still be there.
                empty(number, progress, &mut again);
                progress.reached(asked);
                forward_io();
            }
            Ok(heard) => hear(&heard, progress, &mut again),
            Err(Errno::EAGAIN) => again = alarm(),
            // Interrupted, by a stop and a continuation for instance.
            Err(_) => {}
        }
    }
}

fn hear(heard: &SignalInfo, progress: &Progress, again: &mut Option<Instant>) {
    if heard.code > 0 {
        *again = alarm();
    } else if let Some(ticket) = progress.ticket(heard) {
        progress.reached(ticket);
    } else {
        let queued = NUMBERS.existing().and_then(|numbers| numbers.queued.get());
        if queued.is_none_or(|hear| !hear(heard)) {
            count_stray(heard.signal);
        }
    }
}

/// Hears what is queued now. A sender that goes on queuing more keeps no caller waiting.
fn empty(number: c_int, progress: &Progress, again: &mut Option<Instant>) {
    /// More than the kernel queues for a user by default, on most machines.
    const MOST: usize = 1 << 17;
    for _ in 0..MOST {
        match sys::signal::take_signal(number) {
            Ok(heard) => hear(&heard, progress, again),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// A SIGIO that was meant for the program may come here, if this thread begins to wait just then. It says no more than
/// "look at your descriptors": once too often does no harm, once too few does.
fn forward_io() {
    let handler = sys::signal::disposition_of(libc::SIGIO).map(|found| found.sa_sigaction);
    if handler.is_ok_and(|handler| handler != libc::SIG_DFL && handler != libc::SIG_IGN) {
        // To the process, of which this is one.
        let _ = kill(getpid(), Signal::SIGIO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::inbox::OpenInbox;

    /// No other test in this process claims the first, and none sends the second.
    const NUMBERS: [c_int; 2] = [62, 63];

    #[test]
    fn where_half_of_a_signal_is_lost_on_the_way_a_thread_is_still_known_to_have_caught_up() {
        let open = OpenInbox::open(Some(NUMBERS[0])).unwrap();
        let held = open.claim().unwrap();
        drop(open);
        let mut claim = Arc::into_inner(held).unwrap();
        assert!(claim.hears_marks && claim.carries_all);
        claim.hears_marks = false;
        // What comes by another number is a mark that does not arrive as one.
        claim.number = NUMBERS[1];
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            claim.catch_up();
            claim.number = NUMBERS[0];
            tell.send(claim)
        });
        told.recv_timeout(Duration::from_secs(60))
            .expect("it has caught up");
    }
}
