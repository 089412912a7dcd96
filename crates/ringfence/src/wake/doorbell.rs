//! The private line as a doorbell: a byte on it wakes a peer that sleeps, and the threads of this process wait on it. Its
//! end shows the peer's death.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Shutdown, shutdown},
};

mod peer_waker;
mod polls;

use peer_waker::PeerWaker;
use polls::{LineEvents, LoopPoll, ThreadPoll};

use crate::{
    error::{Error, Result, is_shortage},
    fork::{OwnerProcess, ProcessMutex},
    sys,
    sys::lock::{Condvar, MutexGuard},
    wait::deadline::ready_by,
    wake::attachments::{
        Attachment, AttachmentRef, Attachments, MAX_UNREAD, Parcel, Parcels, discard, post, unpack,
    },
    wake::exit_watch::ExitWatch,
};

/// The number of waits that poll before later waits read instead. A read saves 1.4 µs. The exit watch that it needs costs
/// 60 to 210 µs for its thread, and 1.5 µs for each further channel (measured on the same two cores).
const POLLS_BEFORE_A_READ: u32 = 32;

/// The number of reads of the line at once. The buffer of an honest line holds less than [`MAX_UNREAD`] of them.
const MAX_READS: u32 = 16;

/// Memory for 80 wakeups. An honest peer leaves a few.
const WAKEUP_MEMORY: usize = 64 << 10;

/// The time for which a wait for a token may miss a hang-up in a process that may not call shutdown(2).
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The line, shared by all waiters of this process: threads in a call, and the program's event loop.
///
/// A wakeup does not name the half of the channel that it is for. So every waiter is notified of each wakeup: threads by
/// `generation`, the loop by the byte, which stays on the line until the loop has read it or a half is armed next.
///
/// A forked child must neither read nor end its parent's line. There each method does nothing and reports that the peer is gone, or
/// fails with [`Error::Closed`].
pub(crate) struct Doorbell {
    line: Arc<OwnedFd>,
    /// This process may call shutdown(2). Otherwise no waiter may sleep on the line itself, because
    /// [`Doorbell::shut_both`] could not end that sleep.
    can_shut: bool,
    peer_waker: Arc<PeerWaker>,
    pidfd: Option<Arc<OwnedFd>>,
    /// Guards reads of the line too, except the read of a thread that sleeps in it ([`WatchMode::Read`]).
    state: ProcessMutex<DoorbellState>,
    changed: Condvar,
    /// The descriptor that the program's event loop polls; `None` is the line. Set once, under the lock of the state, because the loop
    /// keeps it.
    loop_poll: OnceLock<Option<LoopPoll>>,
    /// The descriptor on which threads sleep once a loop exists. Set once, in the same way.
    thread_poll: OnceLock<ThreadPoll>,
}

/// Each field is written under the lock.
#[derive(Default)]
struct DoorbellState {
    /// The mode of the one thread that waits on the line; all others wait for that thread. Only that thread writes it, when
    /// it parks and when it wakes.
    watch: Option<WatchMode>,
    /// The number of threads that wait for it. Notifying no thread would also cost a system call.
    waiting: usize,
    /// Grows with each wakeup that arrives, so that no thread sleeps through one that another thread has read. Written by
    /// the thread that received it, and by the loop.
    generation: u64,
    /// Written by the thread or loop that leaves or reads it.
    leftover: Leftover,
    /// The peer has closed its end or died, or this side has shut the line. Never reset.
    gone: bool,
    /// Written by the thread that is about to park, and by the one whose read has failed.
    sleep: Sleep,
    /// The program waits for a half in an event loop, or has done so. Written by the loop, never reset.
    has_loop: bool,
    /// The loop polls only the line, so the peer's death must end the line. Written as `has_loop`.
    polls_line_only: bool,
    /// Ends the line on the peer's death, for a thread in a read and for a loop. Written by whichever needs it first.
    exit_watch: Option<ExitWatch>,
    /// The attachments that have arrived. `None` if this side accepts none: a descriptor on the line is then dropped. Written by
    /// whichever reads the line, and by the receiving half.
    arrived: Option<Parcels>,
}

/// The way in which a thread watches the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchMode {
    /// In a plain read, which consumes the wakeup.
    Read,
    /// In poll(2), which returns while a wakeup is on the line.
    Poll,
    /// In the epoll that threads use while a loop exists.
    Epoll,
}

/// The known content of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Leftover {
    #[default]
    Nothing,
    /// A wakeup that was noticed and not read, because the woken thread handles the message first.
    Wakeup,
    /// A wakeup that is left for the loop. All threads are already notified.
    ForLoop,
}

/// The way in which the watching thread sleeps while there is no loop.
#[derive(Debug, Clone, Copy)]
enum Sleep {
    /// In poll(2), for this number of waits.
    NotYet(u32),
    /// In a plain read if there is no deadline. A read sees only the line.
    Reading,
    /// In poll(2), from now on.
    Polling,
}

impl Default for Sleep {
    fn default() -> Self {
        Self::NotYet(POLLS_BEFORE_A_READ)
    }
}

impl Doorbell {
    /// `numbered`: the peer is a publisher, and numbers the attachments that this side accepts.
    pub(crate) fn new(
        line: OwnedFd,
        pidfd: Option<Arc<OwnedFd>>,
        accepts: Attachments,
        numbered: bool,
        owner: OwnerProcess,
    ) -> Self {
        let line = Arc::new(line);
        let state = DoorbellState {
            arrived: accepts.any().then(|| Parcels::new(accepts, numbered)),
            ..DoorbellState::default()
        };
        Self {
            peer_waker: PeerWaker::new(&line, owner),
            can_shut: sys::socket::may_shut_down(&*line),
            line,
            pidfd,
            state: ProcessMutex::new(state, owner),
            changed: Condvar::new(),
            loop_poll: OnceLock::new(),
            thread_poll: OnceLock::new(),
        }
    }

    /// The descriptor that an event loop polls, if it polls the [`Doorbell::pidfd`] as well. Fails with [`Error::NoSpace`] if
    /// there is no descriptor to notify the loop of a wakeup that another reader consumes.
    pub(crate) fn try_line(&self) -> Result<BorrowedFd<'_>> {
        let mut state = self.state.lock()?;
        state.has_loop = true;
        self.loop_descriptor(&state)
    }

    /// As [`Doorbell::try_line`], for a caller that handles no error.
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        let Ok(mut state) = self.state.lock() else {
            return self.line.as_fd();
        };
        state.has_loop = true;
        // Without descriptors, a read may consume the loop's wakeup. `arm` fails while that can happen.
        self.loop_descriptor(&state).unwrap_or_else(|_| {
            let _ = self.loop_poll.set(None);
            self.line.as_fd()
        })
    }

    /// Makes the [`Doorbell::line`] readable once the peer's process has ended, for an event loop that polls nothing else.
    /// If this fails with [`Error::NoSpace`], [`Doorbell::arm`] tries again.
    pub(crate) fn poll_line_only(&self) -> Result<()> {
        let mut state = self.state.lock()?;
        state.polls_line_only = true;
        self.end_line_on_exit(&mut state).map(drop)
    }

    /// Readable once the peer's process has ended. `None` if this system has no pidfds.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|pidfd| pidfd.as_fd())
    }

    /// Makes the peer's death end the line, even if another process holds the peer's end of it open. Returns `false` if this
    /// system has no pidfds, or this process may not shut the line: a [`LoopPoll`] then watches the peer. Fails with [`Error::NoSpace`] if there is no descriptor or thread for the watch.
    fn end_line_on_exit(&self, state: &mut DoorbellState) -> Result<bool> {
        if state.exit_watch.is_none()
            && self.can_shut
            && let Some(pidfd) = &self.pidfd
        {
            state.exit_watch = Some(ExitWatch::new(&self.line, pidfd)?);
        }
        Ok(state.exit_watch.is_some())
    }

    /// Wakes the threads that wait for a change.
    fn wake(&self, state: &DoorbellState) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        if state.watch == Some(WatchMode::Epoll)
            && let Some(thread_poll) = self.thread_poll.get()
        {
            thread_poll.notify();
        }
    }

    /// Whether the line may fail to notify a loop, which then needs a [`LoopPoll`]: a thread or the receiving half may read the
    /// loop's wakeup, or a hang-up may not end the line.
    fn needs_loop_poll(&self, state: &DoorbellState) -> bool {
        state.watch == Some(WatchMode::Read) || state.arrived.is_some() || !self.can_shut
    }

    /// Returns the descriptor for the loop to poll, which never changes after the first call.
    fn loop_descriptor(&self, state: &DoorbellState) -> Result<BorrowedFd<'_>> {
        if self.loop_poll.get().is_none() {
            let loop_poll = if self.needs_loop_poll(state) {
                // The peer's death cannot end a line that this process may not shut.
                let pidfd = self.pidfd().filter(|_| !self.can_shut);
                Some(LoopPoll::new(self.line.as_fd(), pidfd)?)
            } else {
                None
            };
            let _ = self.loop_poll.set(loop_poll);
        }
        Ok(self.loop_poll().map_or(self.line.as_fd(), LoopPoll::as_fd))
    }

    fn loop_poll(&self) -> Option<&LoopPoll> {
        self.loop_poll.get()?.as_ref()
    }

    /// Records a wakeup or the end of the line.
    fn record(&self, state: &mut DoorbellState, gone: bool) {
        state.gone |= gone;
        state.generation += 1;
        self.wake(state);
    }

    /// Wakes the peer. Does not block: see [`PeerWaker::wake_peer`].
    #[cold]
    pub(crate) fn wake_peer(&self) {
        self.peer_waker.wake_peer();
    }

    /// The number of wakeups that this side has sent.
    pub(crate) fn wakeups_sent(&self) -> &Arc<AtomicU64> {
        self.peer_waker.wakeups_sent()
    }

    /// Prepares the loop's wait for a half: reads old wakeups, because after the half has parked, a wakeup on the line may be
    /// the expected one. Returns whether anything was read.
    ///
    /// Fails with [`Error::NoSpace`] if no descriptor is available to notify the loop of a wakeup that a thread consumes, or of
    /// the peer's death.
    pub(crate) fn arm(&self) -> Result<bool> {
        let mut state = self.state.lock()?;
        state.has_loop = true;
        if state.polls_line_only {
            self.end_line_on_exit(&mut state)?;
        }
        if self.needs_loop_poll(&state) {
            self.loop_descriptor(&state)?;
            if self.loop_poll().is_none() {
                return Err(Error::system(
                    "an event loop beside a thread that reads the line",
                    Errno::EMFILE,
                ));
            }
        }
        // A thread that watches as if no loop existed is woken by the leftover wakeup.
        if state.leftover == Leftover::Nothing
            || matches!(state.watch, Some(WatchMode::Read | WatchMode::Poll))
        {
            return Ok(false);
        }
        self.read_all(&mut state, false);
        Ok(true)
    }

    /// For the loop: reads all wakeups and returns whether the peer still exists. The values of the bytes mean nothing.
    pub(crate) fn read_wakeups(&self) -> bool {
        self.state
            .lock()
            .is_ok_and(|mut state| self.read_wakeups_locked(&mut state))
    }

    fn read_wakeups_locked(&self, state: &mut DoorbellState) -> bool {
        if let Some(loop_poll) = self.loop_poll() {
            loop_poll.clear();
        }
        if matches!(state.watch, Some(WatchMode::Read | WatchMode::Poll)) {
            // That thread sleeps as if no loop existed. Only a wakeup on the line wakes it, so it gets this one.
            let gone = self.has_ended();
            self.record(state, gone);
        } else {
            // Read to the end of the line: an event loop may report the end only once (libuv stops watching a descriptor that
            // has failed, as a line whose peer left wakeups unread does), and wakeups may precede the end.
            self.read_all(state, true);
        }
        !state.gone
    }

    /// Reads the line and notifies the threads, unless they are already notified.
    fn read_all(&self, state: &mut DoorbellState, to_its_end: bool) -> DrainResult {
        let read = self.drain_line(state, to_its_end);
        if let Some(loop_poll) = self.loop_poll() {
            // After a local error the line stays readable, which must not wake the loop forever.
            loop_poll.watch_line(self.line.as_fd(), read.failure.is_some());
        }
        let known = state.leftover == Leftover::ForLoop && read.bytes == 1 && !read.ended;
        state.leftover = Leftover::Nothing;
        if !known {
            self.record(state, read.ended);
        }
        read
    }

    /// As [`Doorbell::read_wakeups`], but leaves the wakeup on the line until a half is armed, so that an answer need not wait
    /// for the read. If a wakeup was left before, or if the loop is woken only once for each, it reads.
    pub(crate) fn defer_wakeups(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        if state.leftover == Leftover::Wakeup || self.loop_poll().is_some_and(LoopPoll::is_edge) {
            self.read_wakeups_locked(&mut state);
            return;
        }
        if let Some(loop_poll) = self.loop_poll() {
            loop_poll.clear();
        }
        state.leftover = Leftover::Wakeup;
        self.record(&mut state, false);
    }

    /// For a thread, before it parks: reads old wakeups. Leaves one if a loop may need it. Returns whether anything was done.
    pub(crate) fn catch_up(&self) -> bool {
        let Ok(mut state) = self.state.lock() else {
            return false;
        };
        // The thread that watches the line waits for a wakeup anyway, and notices this one immediately.
        if state.leftover != Leftover::Wakeup || state.watch.is_some() {
            return false;
        }
        if state.has_loop && state.arrived.is_none() {
            self.read_all_but_one(&mut state);
        } else {
            self.read_all(&mut state, false);
            self.notify_loop();
        }
        true
    }

    /// The descriptors that show only the peer's end, for a caller that waits for nothing else.
    pub(crate) fn ends(&self) -> LineEnds {
        LineEnds {
            line: Arc::clone(&self.line),
            pidfd: self.pidfd.clone(),
        }
    }

    /// Checks whether the peer is gone. Reads no wakeup, because a thread may be waiting for it.
    pub(crate) fn check_peer(&self) {
        if self.has_ended() {
            self.set_gone();
        }
    }

    fn set_gone(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.gone = true;
            self.wake(&state);
        }
    }

    fn has_ended(&self) -> bool {
        let mut polled = [
            PollFd::new(self.line.as_fd(), sys::socket::HUNG_UP),
            self.peer_exit(),
        ];
        // A failed poll has seen nothing. The next one will.
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Becomes ready once the peer's process has ended. The line alone is not enough, because another process may hold the
    /// peer's end open. Without a pidfd this is the line again, because a list of a fixed length needs no allocation.
    fn peer_exit(&self) -> PollFd<'_> {
        match &self.pidfd {
            Some(pidfd) => PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            None => PollFd::new(self.line.as_fd(), PollFlags::empty()),
        }
    }

    /// Leaves one wakeup, which keeps the line readable. The following wait finds the end of the line.
    fn read_all_but_one(&self, state: &mut DoorbellState) {
        let mut bytes = [0_u8; 512];
        for _ in 0..16 {
            // If the count is unknown, nothing is read. The next call tries again.
            let Ok(count) = sys::socket::unread(&*self.line) else {
                break;
            };
            if count <= 1 {
                state.leftover = if count == 1 {
                    Leftover::ForLoop
                } else {
                    Leftover::Nothing
                };
                break;
            }
            let surplus = (count - 1).min(bytes.len());
            match sys::socket::receive_bytes(&*self.line, &mut bytes[..surplus]) {
                Ok(1..) | Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        self.record(state, false);
    }

    /// Reads all wakeups. Unless `to_its_end` is set, it stops after a read that did not fill the buffer, which may miss the end
    /// of the line.
    fn drain_line(&self, state: &mut DoorbellState, to_its_end: bool) -> DrainResult {
        let mut bytes = [0_u8; 512];
        let mut drained = DrainResult::default();
        // Bounded, so that a peer that sends faster than this reads cannot keep this thread here. The line stays readable.
        for _ in 0..MAX_READS {
            let read = match &mut state.arrived {
                None => sys::socket::receive_bytes(&*self.line, &mut bytes),
                Some(arrived) => arrived.read(self.line.as_fd()),
            };
            match read {
                Ok(0) => drained.ended = true,
                Ok(count) => {
                    drained.bytes += count;
                    // A read of attachments stops behind each parcel.
                    if count == bytes.len() || to_its_end || state.arrived.is_some() {
                        continue;
                    }
                }
                Err(Errno::EINTR) => continue,
                // The loop may have been woken by the peer's death.
                Err(Errno::EAGAIN) => {
                    drained.emptied = true;
                    drained.ended = !self.can_shut && self.has_ended();
                }
                // This does not concern the peer. The line stays readable, and its end may follow.
                Err(errno) if is_shortage(errno) => {
                    drained.failure = Some(errno);
                    drained.ended = to_its_end && self.has_ended();
                }
                // A peer that left wakeups unread resets the line. A filter or a security module on this side may also forbid the read.
                Err(errno) => {
                    drained.ended = self.has_ended();
                    drained.failure = Some(errno).filter(|errno| !is_gone(*errno));
                }
            }
            drained.ended |= violation(state).is_some();
            return drained;
        }
        // The line holds more than an honest peer sends, and its end may follow.
        drained.ended = to_its_end && self.has_ended();
        drained
    }

    /// Puts the attachments of one message on the line, all or none. Fails with [`Error::NoSpace`] if the line is full or too many
    /// descriptors of this user are in flight.
    pub(crate) fn post(&self, attachments: &[AttachmentRef<'_>]) -> Result<()> {
        self.state.owner().check()?;
        self.try_post(attachments, None)
            .map_err(|errno| passing_failed(errno, attachments.len()))
    }

    /// As [`Doorbell::post`], at a publisher with the number of the message, for a caller that handles the errors of the system call.
    pub(crate) fn try_post(
        &self,
        attachments: &[AttachmentRef<'_>],
        number: Option<u64>,
    ) -> Result<(), Errno> {
        let posted = post(self.line.as_fd(), attachments, number);
        if posted.is_err_and(is_gone) {
            self.set_gone();
        }
        posted
    }

    /// Whether the kernel reports that the peer has read all that this side has put on the line.
    pub(crate) fn is_line_read(&self) -> bool {
        sys::socket::unreceived(&*self.line) == Ok(0)
    }

    /// Whether the peer leaves more on the line than wakeups and parcels of this much memory: if it has read all messages, it has not
    /// received their attachments.
    pub(crate) fn is_hoarded(&self, parcels: usize) -> bool {
        sys::socket::unreceived(&*self.line).is_ok_and(|memory| memory > WAKEUP_MEMORY + parcels)
    }

    /// Returns the attachments of the next message that has any, of which its record announces this number. The record was
    /// published after they were sent, so they are on the line, or were read from it before. Fails with [`Error::NoSpace`] if
    /// there are no descriptor numbers for them: they stay on the line.
    ///
    /// At a publisher, `number` is that of the message. It returns none if the publisher did not pass any to this side.
    pub(crate) fn collect(&self, count: usize, number: u64) -> Result<Vec<Attachment>> {
        let mut state = self.state.lock()?;
        let numbered = state.arrived.as_mut().is_some_and(|arrived| {
            arrived.drop_missed(number);
            arrived.numbered
        });
        // A later parcel on the line may replace one that has arrived.
        let mut parcel = if numbered { None } else { pop(&mut state, number)? };
        let mut failure = None;
        if parcel.is_none() {
            failure = self.read_all_unread(&mut state);
            parcel = pop(&mut state, number)?;
        }
        // Descriptors are inspected without the lock, since that may take long.
        drop(state);
        let found = match (parcel, failure) {
            (Some(parcel), _) if parcel.len() == count => {
                return unpack(parcel).map_err(|(error, parcel)| {
                    self.put_back(parcel);
                    error
                });
            }
            (Some(parcel), _) => {
                let found = parcel.len();
                discard(parcel.descriptors());
                found
            }
            (None, Some(errno)) => {
                return Err(Error::system(format!("receiving {count} attachments"), errno));
            }
            (None, None) if numbered => return Ok(Vec::new()),
            (None, None) => 0,
        };
        Err(Error::RingCorrupt(format!(
            "a record announces {count} attachments, and {found} arrived"
        )))
    }

    /// Reads the attachments on a line that is about to be replaced: their messages stay readable. Returns `false` if some
    /// stay on the line because descriptor numbers or memory are exhausted.
    fn read_attachments(&self) -> bool {
        let Ok(mut state) = self.state.lock() else {
            return true;
        };
        state.arrived.is_none() || self.read_all_unread(&mut state).is_none()
    }

    /// Reads all that an honest peer may have sent. Returns the local error that ended the reading. Each waiter is notified, because the
    /// wakeups that are read here may be for any of them.
    fn read_all_unread(&self, state: &mut DoorbellState) -> Option<Errno> {
        let (mut failure, mut found) = (None, false);
        for _ in 0..MAX_UNREAD / MAX_READS {
            let read = self.read_all(state, false);
            found |= read.bytes > 0 || read.ended;
            failure = read.failure;
            if read.bytes == 0 || read.emptied || failure.is_some() {
                break;
            }
        }
        if found {
            self.notify_loop();
        }
        failure
    }

    /// Drops the attachments of the messages before the next one of the publisher, also those that are still on the line.
    pub(crate) fn drop_missed(&self, next: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        if let Some(arrived) = &mut state.arrived {
            arrived.drop_missed(next);
            // A local shortage leaves the others on the line.
            self.read_all_unread(&mut state);
        }
    }

    fn put_back(&self, parcel: Parcel) {
        if let Ok(mut state) = self.state.lock()
            && let Some(arrived) = &mut state.arrived
        {
            arrived.put_back(parcel);
        }
    }

    /// Closes the unread attachments. Later ones are refused.
    pub(crate) fn drop_attachments(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        if state.arrived.take().is_some() {
            // The kernel closes those that are still on the line. The other half may wait for a wakeup among them.
            self.read_all_unread(&mut state);
        }
    }

    /// Returns what the peer has sent that no honest peer sends on the line.
    pub(crate) fn violation(&self) -> Option<String> {
        violation(&*self.state.lock().ok()?).cloned()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state.lock().map_or(true, |state| state.gone)
    }

    /// The current generation. Must be read before parking, and passed to [`Doorbell::wait`].
    pub(crate) fn generation(&self) -> u64 {
        self.state.lock().map_or(0, |state| state.generation)
    }

    /// Waits until a wakeup arrives after `generation`, or the peer is gone, or the deadline has passed (`false`). If the
    /// thread does not sleep in a read, it leaves the wakeup on the line for [`Doorbell::catch_up`].
    ///
    /// Fails with [`Error::NoSpace`] if no descriptors are available for the wait.
    pub(crate) fn wait(&self, generation: u64, deadline: Option<Instant>) -> Result<bool> {
        let mut state = self.state.lock()?;
        loop {
            if state.gone || state.generation != generation {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
            if state.watch.is_some() {
                state = self.wait_for_watcher(state, deadline);
                continue;
            }
            let (watch, thread_poll) = self.choose_watch_mode(&mut state, deadline)?;
            state.watch = Some(watch);
            drop(state);
            let found = match thread_poll {
                Some(thread_poll) => thread_poll.sleep(deadline),
                None if watch == WatchMode::Read => Ok(self.read()),
                None => self.poll(deadline),
            };
            state = self.state.lock()?;
            state.watch = None;
            if let Ok(found) = &found {
                state.gone |= found.gone;
                state.generation += u64::from(found.wakeup);
                // Only a read takes the wakeup from the line.
                match watch {
                    WatchMode::Read if found.wakeup => self.notify_loop(),
                    WatchMode::Poll | WatchMode::Epoll if found.wakeup => state.leftover = Leftover::Wakeup,
                    _ => {}
                }
            }
            // The threads that wait for this one re-check now, and one of them takes over the line.
            self.wake(&state);
            found?;
        }
    }

    fn wait_for_watcher<'a>(
        &self,
        mut state: MutexGuard<'a, DoorbellState>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, DoorbellState> {
        state.waiting += 1;
        let mut state = match deadline {
            None => self.changed.wait(state),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left)
            }
        };
        state.waiting -= 1;
        state
    }

    /// Notifies the loop of a wakeup that this thread has consumed. There was no loop when the thread parked, but `loop_descriptor` or
    /// `arm` may have created one since.
    fn notify_loop(&self) {
        if let Some(loop_poll) = self.loop_poll() {
            loop_poll.notify();
        }
    }

    /// Chooses the way in which this thread watches the line, and the epoll if a loop exists.
    fn choose_watch_mode(
        &self,
        state: &mut DoorbellState,
        deadline: Option<Instant>,
    ) -> Result<(WatchMode, Option<&ThreadPoll>)> {
        // A thread in poll(2) would miss a wakeup that the receiving half reads with the attachments.
        if state.has_loop || state.arrived.is_some() || !self.can_shut {
            if self.thread_poll.get().is_none() {
                let _ = self
                    .thread_poll
                    .set(ThreadPoll::new(self.line.as_fd(), self.pidfd())?);
            }
            return Ok((WatchMode::Epoll, self.thread_poll.get()));
        }
        if deadline.is_none() && self.may_sleep_in_read(state) {
            // A later call that leaves a wakeup records that again.
            state.leftover = Leftover::Nothing;
            return Ok((WatchMode::Read, None));
        }
        Ok((WatchMode::Poll, None))
    }

    /// Whether a wait may sleep in a read: the peer's death ends the read, and no other waiter needs the wakeup.
    fn may_sleep_in_read(&self, state: &mut DoorbellState) -> bool {
        match state.sleep {
            Sleep::Reading => return true,
            Sleep::Polling => return false,
            Sleep::NotYet(0) => {}
            Sleep::NotYet(polls) => {
                state.sleep = Sleep::NotYet(polls - 1);
                return false;
            }
        }
        let reads = self.make_blocking().is_some() && matches!(self.end_line_on_exit(state), Ok(true));
        state.sleep = if reads { Sleep::Reading } else { Sleep::Polling };
        reads
    }

    /// Makes reads of the line block. All other calls on the line pass MSG_DONTWAIT.
    fn make_blocking(&self) -> Option<()> {
        let flags = fcntl(&*self.line, FcntlArg::F_GETFL).ok()?;
        let blocking = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&*self.line, FcntlArg::F_SETFL(blocking)).ok().map(drop)
    }

    /// Sleeps in a read: one system call instead of the two of poll(2), and a shorter way to sleep and wake in the kernel.
    fn read(&self) -> LineEvents {
        let mut bytes = [0_u8; 64];
        let (wakeup, gone) = match sys::socket::wait_for_bytes(&*self.line, &mut bytes) {
            Ok(0) => (false, true),
            Ok(_) => (true, false),
            Err(Errno::EINTR) => (false, false),
            Err(errno) if errno == Errno::EAGAIN || is_shortage(errno) => {
                // The guest made the line, and may have changed the mode or the timeout of the open file that both share. Or the
                // kernel is short of memory, which does not concern the peer.
                self.stop_reading_blocking();
                (false, false)
            }
            // As in `drain_line`.
            Err(_) => {
                self.stop_reading_blocking();
                (false, self.has_ended())
            }
        };
        LineEvents { wakeup, gone }
    }

    /// Makes later waits poll the line.
    fn stop_reading_blocking(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.sleep = Sleep::Polling;
        }
    }

    fn poll(&self, deadline: Option<Instant>) -> Result<LineEvents> {
        let mut polled = [
            PollFd::new(self.line.as_fd(), PollFlags::POLLIN | sys::socket::HUNG_UP),
            self.peer_exit(),
        ];
        match ready_by(deadline, |timeout| {
            poll(&mut polled, timeout).map(|ready| ready > 0)
        }) {
            Ok(_) => {
                // nix does not know POLLRDHUP, and returns `None` if it is set.
                let found = |index: usize| {
                    let found: Option<_> = polled[index].revents();
                    found.unwrap_or(PollFlags::POLLIN | sys::socket::HUNG_UP)
                };
                Ok(LineEvents {
                    wakeup: found(0).contains(PollFlags::POLLIN),
                    // A wakeup is no sign of life: another process may hold a dead peer's end of the line.
                    gone: !(found(0) - PollFlags::POLLIN).is_empty() || !found(1).is_empty(),
                })
            }
            Err(errno) => Err(Error::poll("waiting on the line", errno)),
        }
    }

    /// Waits until `other` is readable, or the peer is gone, or the deadline has passed (`false`). Reads no wakeup. Returns
    /// immediately if the peer is already gone, because the caller may not know.
    pub(crate) fn wait_for_token(&self, other: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
        self.state.owner().check()?;
        loop {
            // A hang-up does not end this poll if this process may not shut the line, so check again soon.
            let soon = (!self.can_shut).then(|| Instant::now() + RECHECK_INTERVAL);
            let until = [deadline, soon].into_iter().flatten().min();
            // POLLHUP is reported without being requested.
            let mut polled = [
                PollFd::new(other, PollFlags::POLLIN),
                PollFd::new(self.line.as_fd(), PollFlags::empty()),
                self.peer_exit(),
            ];
            if !poll_for_token(&mut polled, until)? {
                if until == deadline {
                    return Ok(false);
                }
                continue;
            }
            if polled[1..].iter().any(|fd| fd.any() == Some(true)) {
                self.set_gone();
            }
            return Ok(true);
        }
    }

    /// Shuts the line for writing: the peer sees its end, and can still end it from its side as an answer.
    pub(crate) fn shut_write(&self) {
        self.shut(Shutdown::Write);
    }

    /// Shuts the line in both directions. The peer notices, and so do the waiting threads of this process.
    pub(crate) fn shut_both(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        if !self.state.owner().is_current() {
            return;
        }
        if self.can_shut {
            // A line that is no longer connected has already ended.
            let _ = shutdown(self.line.as_raw_fd(), how);
        } else if how == Shutdown::Both && self.read_attachments() {
            // If there is no descriptor for it, the line ends once this side drops it.
            let _ = sys::socket::replace_with_dead_end(&self.line);
        }
        // The loop checks this once it wakes up.
        self.set_gone();
        if !self.can_shut && how == Shutdown::Both {
            self.notify_loop();
        }
    }
}

/// Whether sending has failed because the peer's end is closed.
pub(crate) const fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN)
}

/// The error of a call that could not put `count` attachments on the line.
pub(crate) fn passing_failed(errno: Errno, count: usize) -> Error {
    match errno {
        Errno::EAGAIN | Errno::ETOOMANYREFS => Error::no_space(
            format!("passing {count} attachments"),
            "too many are on their way: send again once the peer has read some",
        ),
        errno if is_gone(errno) => Error::PeerLost("its end of the line is closed".into()),
        // An io_uring, or a descriptor that a security module or a filter forbids. Other messages can still be sent.
        Errno::EINVAL | Errno::EPERM | Errno::EACCES => Error::invalid(format!(
            "attachments: the system does not let this process pass one of them: {}",
            errno.desc()
        )),
        errno => Error::system("passing attachments", errno),
    }
}

fn violation(state: &DoorbellState) -> Option<&String> {
    state.arrived.as_ref()?.violation.as_ref()
}

fn pop(state: &mut DoorbellState, number: u64) -> Result<Option<Parcel>> {
    let arrived = state.arrived.as_mut();
    let parcel = arrived.and_then(|arrived| arrived.pop_next(number));
    match violation(state) {
        Some(what) if parcel.is_none() => Err(Error::RingCorrupt(what.clone())),
        _ => Ok(parcel),
    }
}

/// As [`Doorbell::wait_for_token`], once the peer is known to be gone.
pub(crate) fn wait_for_last_token(descriptor: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    poll_for_token(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], deadline)
}

fn poll_for_token(polled: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    let ready = ready_by(deadline, |timeout| poll(polled, timeout).map(|ready| ready > 0));
    ready.map_err(|errno| Error::poll("waiting for a token", errno))
}

/// The result of reading the line.
#[derive(Debug, Default)]
struct DrainResult {
    bytes: usize,
    /// The reading ended with EAGAIN: all was read.
    emptied: bool,
    ended: bool,
    /// The local error that ended the reading.
    failure: Option<Errno>,
}

/// See [`Doorbell::ends`]. Keeps the line open even if no call uses it.
#[derive(Debug, Clone)]
pub(crate) struct LineEnds {
    line: Arc<OwnedFd>,
    pidfd: Option<Arc<OwnedFd>>,
}

impl LineEnds {
    /// The line, and the pidfd of the peer's process.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        let pidfd = self.pidfd.as_ref();
        (self.line.as_fd(), pidfd.map(|pidfd| pidfd.as_fd()))
    }

    /// The descriptors and events to poll. Wakeups do not make them ready, so a thread that waits here takes none from others.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // Also ready if the peer has ended only its direction, as a leaving peer does.
        let line = (self.line.as_fd(), sys::socket::HUNG_UP);
        let (_, pidfd) = self.descriptors();
        let pidfd = pidfd.map(|pidfd| (pidfd, PollFlags::POLLIN));
        std::iter::once(line).chain(pidfd)
    }
}

#[cfg(test)]
mod tests;
