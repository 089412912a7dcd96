//! Realtime signals for this crate alone: a number that nothing else in the process uses, and a thread that
//! receives the signals sent to it.
//!
//! The thread blocks every signal and waits for its own (sigwaitinfo(2)). The kernel and the peers of
//! channels direct their signals at this thread. So no handler runs and no other thread is interrupted, and
//! it does not matter which signals the program blocks. A signal that is sent after the thread has ended
//! finds no thread; a signal to the whole process would terminate it. The signal-hook crate does not fit: it
//! never restores a disposition, and it receives signals sent to the whole process.
//!
//! While a number is claimed, its disposition is a handler that counts. Otherwise a signal sent to the
//! process by any process of the same user would terminate it (signal(7): the default action of realtime
//! signals).

use std::{
    cell::Cell,
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
    error::{Error, OrSystem, Result},
    fork::{OwnerProcess, PerProcess},
    signal::barriers,
    sys::lock::{Condvar, Mutex},
    sys::{self, signal::SignalInfo},
    wait::threads::mark_own_thread,
};

/// Handles signals from the kernel, on the thread that received them. Their codes are above 0, which no process
/// can set for another (rt_sigqueueinfo(2)), although a process can make the kernel send such a signal
/// (`F_SETOWN_EX`). Also called for SIGIO, which the kernel sends instead if the signal queue is full (fcntl(2),
/// `F_SETSIG`). Returns the delay after which it wants to be called again, if at all.
type Alarm = fn() -> Option<Duration>;

/// Handles signals sent by processes, on the same thread. Returns whether the signal was for a channel of this process.
type Deliver = fn(&SignalInfo) -> bool;

/// The claimed numbers of a process, and the handlers of their signals.
#[derive(Default)]
struct ClaimedSignals {
    threads: Mutex<Vec<SignalThread>>,
    alarm: OnceLock<Alarm>,
    deliver: OnceLock<Deliver>,
    strays: Strays,
}

static CLAIMED: PerProcess<ClaimedSignals> = PerProcess::new();

/// Calls the alarm handler. Returns the time at which it must be called again, if it needs another call.
fn alarm() -> Option<Instant> {
    let alarm = CLAIMED.existing().and_then(|numbers| numbers.alarm.get())?;
    Some(Instant::now() + alarm()?)
}

/// A claim on a number. Dropping the last one restores the number's disposition.
pub(crate) struct SignalClaim {
    pub(crate) number: c_int,
    /// The id of the signal thread, at which senders direct their signals.
    pub(crate) thread: libc::pid_t,
    /// Whether all data of a queued signal arrive on this system; true if unknown.
    pub(crate) carries_all: bool,
    /// Whether that was observed.
    marks_arrive: bool,
    progress: Arc<ThreadProgress>,
    /// A forked child has a copy of the claim but not the thread.
    owner: OwnerProcess,
}

struct SignalThread {
    number: c_int,
    claims: usize,
    thread: libc::pid_t,
    carries_all: bool,
    marks_arrive: bool,
    progress: Arc<ThreadProgress>,
    join: JoinHandle<()>,
}

thread_local! {
    /// Whether this is a signal thread. Two signal threads that waited for each other would deadlock.
    static IS_SIGNAL_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// The number of received signals that were for no channel, by signal number, since this process started.
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

/// Returns the number of signals with this number that were for no channel of this process.
pub(crate) fn strays(number: c_int) -> u64 {
    let count = CLAIMED.existing().and_then(|numbers| numbers.strays.of(number));
    count.map_or(0, |count| count.load(Ordering::Relaxed))
}

/// The signal handler. It may interrupt any thread at any point, so it only increments a counter
/// (signal-safety(7)). Signals for channels and alarms never reach it, because they are directed at the
/// signal thread.
extern "C" fn count_stray(number: c_int) {
    // The data that this reads exists before the handler is installed, and is never freed.
    if let Some(count) = CLAIMED.existing().and_then(|numbers| numbers.strays.of(number)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the handler's address, as sigaction(2) reports it.
fn own_handler() -> libc::sighandler_t {
    count_stray as extern "C" fn(c_int) as libc::sighandler_t
}

/// A number from the middle of the range: C libraries use the first numbers, and programs mostly use either
/// end.
const DEFAULT_NUMBER: c_int = 50;

/// The numbers to try, in this order, if none is requested.
fn candidates() -> impl Iterator<Item = c_int> {
    (DEFAULT_NUMBER..=libc::SIGRTMAX()).chain(libc::SIGRTMIN()..DEFAULT_NUMBER)
}

/// Checks that a number may be claimed, or that any may be claimed if `number` is `None`.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for a number that is not a realtime signal, or that the program uses itself.
pub(crate) fn check(number: Option<c_int>) -> Result<()> {
    let Some(number) = number else {
        return unused().map(drop);
    };
    check_range(number)?;
    check_claimable(&CLAIMED.get()?.threads.lock(), number)
}

/// Returns the number that a claim without a requested number would get now.
pub(crate) fn unused() -> Result<c_int> {
    let threads = CLAIMED.get()?.threads.lock();
    candidates()
        .find(|number| check_claimable(&threads, *number).is_ok())
        .ok_or_else(all_in_use)
}

fn check_claimable(threads: &[SignalThread], number: c_int) -> Result<()> {
    if threads.iter().any(|thread| thread.number == number) {
        return Ok(());
    }
    check_free(number)
}

fn all_in_use() -> Error {
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
    let found = sys::signal::disposition_of(number).or_system("reading a signal's handler (sigaction)")?;
    // Our own handler on a number that is not claimed here was installed by the process from which this one
    // was forked.
    if found.sa_sigaction == libc::SIG_DFL || found.sa_sigaction == own_handler() {
        return Ok(());
    }
    let how = if found.sa_sigaction == libc::SIG_IGN {
        "ignores it"
    } else {
        "has a handler for it"
    };
    Err(Error::invalid(format!(
        "signal {number} is in use: this process {how}; choose another number (realtime_signal, {} to {})",
        libc::SIGRTMIN(),
        libc::SIGRTMAX()
    )))
}

impl SignalClaim {
    /// Claims a number, or the first unused one if `number` is `None`. (For example, another copy of this
    /// crate in the same process may have the usual number.)
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] as for [`check`]. [`Error::NoSpace`] if no thread can be created.
    fn new(number: Option<c_int>) -> Result<Self> {
        let owner = OwnerProcess::current()?;
        let mut threads = CLAIMED.get()?.threads.lock();
        if let Some(number) = number {
            check_range(number)?;
            return Self::of(&mut threads, number, owner);
        }
        for number in candidates() {
            match Self::of(&mut threads, number, owner) {
                Err(Error::InvalidArgument(_)) => {}
                outcome => return outcome,
            }
        }
        Err(all_in_use())
    }

    /// As [`SignalClaim::new`], for a caller that handles signals from the kernel.
    pub(crate) fn with_alarm(number: c_int, alarm: Alarm) -> Result<Self> {
        CLAIMED.get()?.alarm.get_or_init(|| alarm);
        Self::new(Some(number))
    }

    /// As [`SignalClaim::new`], for a caller that handles signals from processes.
    pub(crate) fn with_delivery(number: Option<c_int>, deliver: Deliver) -> Result<Self> {
        CLAIMED.get()?.deliver.get_or_init(|| deliver);
        Self::new(number)
    }

    fn of(threads: &mut Vec<SignalThread>, number: c_int, owner: OwnerProcess) -> Result<Self> {
        if let Some(thread) = threads.iter_mut().find(|thread| thread.number == number) {
            return Ok(thread.claim(owner));
        }
        check_free(number)?;
        sys::signal::set_disposition(number, &sys::signal::disposition(own_handler()))
            .or_system("a handler of a realtime signal (sigaction)")?;
        match start(number) {
            Ok(mut thread) => {
                let claim = thread.claim(owner);
                threads.push(thread);
                Ok(claim)
            }
            Err(error) => {
                restore_disposition(number);
                Err(error)
            }
        }
    }

    /// Waits until the thread has handled every signal that was directed at it before this call. Returns
    /// immediately on a signal thread, because that must not wait for another one.
    pub(crate) fn catch_up(&self) {
        if IS_SIGNAL_THREAD.get() || !self.owner.is_current() {
            return;
        }
        let ticket = self.progress.request();
        // SIGIO needs no room in the queue and carries no data. Sending it fails only if the thread has
        // ended.
        if !self.queue_mark(ticket)
            && sys::signal::signal_thread(getpid().as_raw(), self.thread, libc::SIGIO).is_err()
        {
            return;
        }
        self.progress.wait_for(ticket);
    }

    /// Queues a mark, and returns whether the thread will recognize it. If this system loses part of a
    /// signal's data, a mark would be unrecognizable, and waiting for it would never end.
    fn queue_mark(&self, ticket: u64) -> bool {
        let mark = self.progress.mark(self.number, ticket);
        self.marks_arrive && sys::signal::queue_signal(getpid().as_raw(), self.thread, &mark).is_ok()
    }
}

impl SignalThread {
    fn claim(&mut self, owner: OwnerProcess) -> SignalClaim {
        self.claims += 1;
        SignalClaim {
            number: self.number,
            thread: self.thread,
            carries_all: self.carries_all,
            marks_arrive: self.marks_arrive,
            progress: Arc::clone(&self.progress),
            owner,
        }
    }
}

impl Drop for SignalClaim {
    fn drop(&mut self) {
        // In a forked child, the number may have been claimed again.
        let Some(numbers) = CLAIMED.existing().filter(|_| self.owner.is_current()) else {
            return;
        };
        let mut threads = numbers.threads.lock();
        let Some(index) = threads.iter().position(|thread| thread.number == self.number) else {
            return;
        };
        threads[index].claims -= 1;
        if threads[index].claims > 0 {
            return;
        }
        let thread = threads.swap_remove(index);
        thread.progress.stop.store(true, Ordering::Release);
        // SIGIO is not a realtime signal, so it needs no room in the queue. It is sent to that thread only.
        let signalled = sys::signal::signal_thread(getpid().as_raw(), thread.thread, libc::SIGIO);
        restore_disposition(self.number);
        drop(threads);
        // A handler that runs on a signal thread may drop the last claim of this or of another number. Then
        // the thread ends without being joined.
        if signalled.is_ok() && !IS_SIGNAL_THREAD.get() {
            // The panic of that thread was reported when it happened.
            let _ = thread.join.join();
        }
    }
}

/// Restores the default action, unless the program has installed its own handler in the meantime.
fn restore_disposition(number: c_int) {
    if sys::signal::disposition_of(number).is_ok_and(|found| found.sa_sigaction == own_handler()) {
        // A pending signal that no thread has taken yet would terminate the process. Ignoring the signal
        // first discards pending ones (sigaction(2)). The number was valid when it was claimed, so the kernel
        // has no reason to refuse.
        for handler in [libc::SIG_IGN, libc::SIG_DFL] {
            let _ = sys::signal::set_disposition(number, &sys::signal::disposition(handler));
        }
    }
}

/// The progress of a signal thread through the signals that are directed at it.
struct ThreadProgress {
    /// The key in each mark of this process, so that a signal of another process is never taken for a mark.
    key: [u8; 16],
    /// The thread must end.
    stop: AtomicBool,
    state: Mutex<ProgressState>,
    changed: Condvar,
}

#[derive(Default)]
struct ProgressState {
    requested: u64,
    reached: u64,
    /// The thread has ended.
    is_over: bool,
}

impl ThreadProgress {
    fn new() -> Result<Self> {
        let key = sys::process::bytes().or_system("random bytes")?;
        Ok(Self {
            key,
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn request(&self) -> u64 {
        let mut state = self.state.lock();
        state.requested += 1;
        state.requested
    }

    fn requested(&self) -> u64 {
        self.state.lock().requested
    }

    /// Makes a mark: a signal that only shows that the thread has reached it. A thread receives signals of
    /// one number in the order in which they were queued.
    fn mark(&self, number: c_int, ticket: u64) -> SignalInfo {
        SignalInfo {
            signal: number,
            errno: 0,
            code: libc::SI_QUEUE,
            value: ticket,
            rest: self.key,
        }
    }

    /// Returns the number of a mark, or `None` for any other signal.
    fn ticket(&self, received: &SignalInfo) -> Option<u64> {
        (*received == self.mark(received.signal, received.value)).then_some(received.value)
    }

    fn reached(&self, ticket: u64) {
        let mut state = self.state.lock();
        // Marks may be queued in another order than they were requested in. A caller with a smaller ticket is
        // satisfied too.
        state.reached = state.reached.max(ticket);
        self.changed.notify_all();
    }

    fn wait_for(&self, ticket: u64) {
        let mut state = self.state.lock();
        while state.reached < ticket && !state.is_over {
            state = self.changed.wait(state);
        }
    }
}

/// Marks the end of the thread, even after a panic, so that no caller waits for it any longer.
struct EndGuard(Arc<ThreadProgress>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.state.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

fn start(number: c_int) -> Result<SignalThread> {
    let progress = Arc::new(ThreadProgress::new()?);
    let (ready, started) = mpsc::channel();
    let end_guard = EndGuard(Arc::clone(&progress));
    let no_thread = |reason: String| Error::no_space("a thread for a realtime signal", reason);
    let join = thread::Builder::new()
        .name("ringfence-signal".into())
        .spawn(move || {
            IS_SIGNAL_THREAD.set(true);
            mark_own_thread();
            let progress = &end_guard.0;
            let begun = sys::signal::block_signals()
                .map(|()| (gettid().as_raw(), arrives_complete(&progress.mark(number, 0))));
            let fine = begun.is_ok();
            // Without a receiver, the caller no longer waits for this thread.
            let _ = ready.send(begun);
            if fine {
                // Takes up to 30 ms in a process that is not registered. Signals wait in the queue.
                barriers::register();
                listen(number, progress);
            }
        })
        .map_err(|error| no_thread(error.to_string()))?;
    let (thread, is_complete) = started
        .recv()
        .map_err(|error| no_thread(error.to_string()))?
        .or_system("blocking signals in a thread (pthread_sigmask)")?;
    Ok(SignalThread {
        number,
        claims: 0,
        thread,
        // A full queue leaves the question open. If the assumption is wrong, arriving signals do not match
        // any secret.
        carries_all: is_complete.unwrap_or_else(|errno| errno == Errno::EAGAIN),
        marks_arrive: is_complete == Ok(true),
        progress,
        join,
    })
}

/// The kernel delivers a thread's signal to itself at once; qemu-user does so a moment later.
const ARRIVAL: Duration = Duration::from_secs(1);

/// Sends a signal to this thread, which is new and blocks all signals, and compares what arrives. Some
/// systems that run Linux programs lose the bytes behind the value.
fn arrives_complete(sent: &SignalInfo) -> Result<bool, Errno> {
    sys::signal::queue_signal(getpid().as_raw(), gettid().as_raw(), sent)?;
    // Signals directed at a thread are delivered before those directed at its process.
    let arrived = sys::signal::wait_for_signal(&[sent.signal], Some(ARRIVAL));
    Ok(arrived == Ok(*sent))
}

/// Makes the same test on a temporary thread, whatever the process does with the signal.
pub(crate) fn carries_all() -> Result<bool, Errno> {
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
            arrives_complete(&sent)
        })
        .map_err(|_| Errno::EAGAIN)?;
    thread.join().unwrap_or(Err(Errno::EAGAIN))
}

fn listen(number: c_int, progress: &ThreadProgress) {
    // The time of the next call of the alarm handler. Signals are handled in the meantime.
    let mut next_alarm: Option<Instant> = None;
    loop {
        let left = next_alarm.map(|at| at.saturating_duration_since(Instant::now()));
        let received = sys::signal::wait_for_signal(&[number, libc::SIGIO], left);
        if progress.stop.load(Ordering::Acquire) {
            return;
        }
        match received {
            Ok(received) if received.signal == libc::SIGIO => {
                let requested = progress.requested();
                next_alarm = alarm();
                // Of two pending signals the lower number is delivered first, so realtime signals that were
                // queued earlier may still be pending.
                drain(number, progress, &mut next_alarm);
                progress.reached(requested);
                forward_io();
            }
            Ok(received) => handle(&received, progress, &mut next_alarm),
            Err(Errno::EAGAIN) => next_alarm = alarm(),
            // Interrupted, for example by SIGSTOP and SIGCONT.
            Err(_) => {}
        }
    }
}

fn handle(received: &SignalInfo, progress: &ThreadProgress, next_alarm: &mut Option<Instant>) {
    if received.code > 0 {
        *next_alarm = alarm();
    } else if let Some(ticket) = progress.ticket(received) {
        progress.reached(ticket);
    } else {
        let deliver = CLAIMED.existing().and_then(|numbers| numbers.deliver.get());
        if deliver.is_none_or(|deliver| !deliver(received)) {
            count_stray(received.signal);
        }
    }
}

/// Handles the signals that are queued now. The limit keeps a sender that queues continuously from blocking
/// callers.
fn drain(number: c_int, progress: &ThreadProgress, next_alarm: &mut Option<Instant>) {
    /// More than the kernel queues for one user by default, on most machines.
    const MAX_SIGNALS: usize = 1 << 17;
    for _ in 0..MAX_SIGNALS {
        match sys::signal::wait_for_signal(&[number], Some(Duration::ZERO)) {
            Ok(received) => handle(&received, progress, next_alarm),
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Passes on a SIGIO that was meant for the program. This thread may receive it if it starts to wait at that
/// moment. SIGIO only means "check your descriptors", so an extra one is harmless and a lost one is not.
fn forward_io() {
    let handler = sys::signal::disposition_of(libc::SIGIO).map(|found| found.sa_sigaction);
    if handler.is_ok_and(|handler| handler != libc::SIG_DFL && handler != libc::SIG_IGN) {
        // Sent to the whole process, to which this thread belongs.
        let _ = kill(getpid(), Signal::SIGIO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::inbox::OpenInbox;

    /// No other test in this process claims the first number, and none sends the second.
    const CLAIMED: [c_int; 2] = [62, 63];

    #[test]
    fn catch_up_tolerates_a_truncated_signal() {
        let open = OpenInbox::open(Some(CLAIMED[0])).unwrap();
        let held = open.claim().unwrap();
        drop(open);
        let mut claim = Arc::into_inner(held).unwrap();
        assert!(claim.marks_arrive && claim.carries_all);
        claim.marks_arrive = false;
        // A mark that arrives under another number is not recognized as a mark.
        claim.number = CLAIMED[1];
        let (sender, finished) = mpsc::channel();
        thread::spawn(move || {
            claim.catch_up();
            claim.number = CLAIMED[0];
            sender.send(claim)
        });
        finished
            .recv_timeout(Duration::from_secs(60))
            .expect("catch_up returns");
    }
}
