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

mod bells;
mod beside;

use bells::PeerWaker;
use beside::{Heard, LoopPoll, ThreadPoll};

use crate::{
    error::{Error, Result, is_shortage},
    fork::{Birth, ProcessMutex},
    sys,
    sys::lock::{Condvar, MutexGuard},
    wait::deadline::ready_by,
    wake::attachments::{
        Arrived, Attachment, AttachmentRef, Attachments, MOST_UNREAD, Parcel, discard, post, unpack,
    },
    wake::exit_watch::ExitWatch,
};

/// The number of waits that poll before later waits read instead. A read saves 1.4 µs. The exit watch that it needs costs
/// 60 to 210 µs for its thread, and 1.5 µs for each further channel (measured on the same two cores).
const POLLS_BEFORE_A_READ: u32 = 32;

/// The number of reads of the line at once. The buffer of an honest line holds less than [`MOST_UNREAD`] of them.
const READS: u32 = 16;

/// Memory for 80 wakeups. An honest peer leaves a few.
const MOST_FOR_WAKEUPS: usize = 64 << 10;

/// The time for which a wait for a token may miss a hang-up in a process that may not call shutdown(2).
const RECHECK: Duration = Duration::from_millis(50);

/// The line, shared by all waiters of this process: threads in a call, and the program's event loop.
///
/// A wakeup does not name the half of the channel that it is for. So every waiter is notified of each wakeup: threads by
/// `generation`, the loop by the byte, which stays on the line until the loop has read it or a half is armed next.
///
/// A forked child must neither read nor end its parent's line. There each method does nothing and reports that the peer is gone, or
/// fails with [`Error::Closed`].
#[derive(Debug)]
pub(crate) struct Doorbell {
    line: Arc<OwnedFd>,
    /// This process may call shutdown(2). Otherwise no waiter may sleep on the line itself, because
    /// [`Doorbell::hang_up`] could not end that sleep.
    shuts: bool,
    bells: Arc<PeerWaker>,
    pidfd: Option<Arc<OwnedFd>>,
    /// Guards reads of the line too, except the read of a thread that sleeps in it ([`WatchMode::Reads`]).
    state: ProcessMutex<DoorbellState>,
    changed: Condvar,
    /// The descriptor that the program's event loop polls; `None` is the line. Set once, under the lock of the state, because the loop
    /// keeps it.
    lent: OnceLock<Option<LoopPoll>>,
    /// The descriptor on which threads sleep once a loop exists. Set once, in the same way.
    thread_poll: OnceLock<ThreadPoll>,
}

/// Each field is written under the lock.
#[derive(Debug, Default)]
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
    left: Left,
    /// The peer has closed its end or died, or this side has shut the line. Never reset.
    gone: bool,
    /// Written by the thread that is about to park, and by the one whose read has failed.
    sleep: Sleep,
    /// The program waits for a half in an event loop, or has done so. Written by the loop, never reset.
    looped: bool,
    /// The loop polls only the line, so the peer's death must end the line. Written as `looped`.
    polled_alone: bool,
    /// Ends the line on the peer's death, for a thread in a read and for a loop. Written by whichever needs it first.
    exit_watch: Option<ExitWatch>,
    /// The attachments that have arrived. `None` if this side accepts none: a descriptor on the line is then dropped. Written by
    /// whichever reads the line, and by the receiving half.
    arrived: Option<Arrived>,
}

/// The way in which a thread watches the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchMode {
    /// In a plain read, which consumes the wakeup.
    Reads,
    /// In poll(2), which returns while a wakeup is on the line.
    Polls,
    /// In the epoll that threads use while a loop exists.
    Beside,
}

/// The known content of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Left {
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
        birth: Birth,
    ) -> Self {
        let line = Arc::new(line);
        let state = DoorbellState {
            arrived: accepts.any().then(|| Arrived::new(accepts, numbered)),
            ..DoorbellState::default()
        };
        Self {
            bells: PeerWaker::new(&line, birth),
            shuts: sys::socket::may_shut_down(&*line),
            line,
            pidfd,
            state: ProcessMutex::new(state, birth),
            changed: Condvar::new(),
            lent: OnceLock::new(),
            thread_poll: OnceLock::new(),
        }
    }

    /// The descriptor that an event loop polls, if it polls the [`Doorbell::pidfd`] as well. Fails with [`Error::NoSpace`] if
    /// there is no descriptor to notify the loop of a wakeup that another reader consumes.
    pub(crate) fn try_line(&self) -> Result<BorrowedFd<'_>> {
        let mut state = self.state.lock()?;
        state.looped = true;
        self.lend(&state)
    }

    /// As [`Doorbell::try_line`], for a caller that handles no error.
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        let Ok(mut state) = self.state.lock() else {
            return self.line.as_fd();
        };
        state.looped = true;
        // Without descriptors, a read may consume the loop's wakeup. `arm` fails while that can happen.
        self.lend(&state).unwrap_or_else(|_| {
            let _ = self.lent.set(None);
            self.line.as_fd()
        })
    }

    /// Makes the [`Doorbell::line`] readable once the peer's process has ended, for an event loop that polls nothing else.
    /// If this fails with [`Error::NoSpace`], [`Doorbell::arm`] tries again.
    pub(crate) fn poll_line_alone(&self) -> Result<()> {
        let mut state = self.state.lock()?;
        state.polled_alone = true;
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
            && self.shuts
            && let Some(pidfd) = &self.pidfd
        {
            state.exit_watch = Some(ExitWatch::over(&self.line, pidfd)?);
        }
        Ok(state.exit_watch.is_some())
    }

    /// Wakes the threads that wait for a change.
    fn wake(&self, state: &DoorbellState) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        if state.watch == Some(WatchMode::Beside)
            && let Some(thread_poll) = self.thread_poll.get()
        {
            thread_poll.tell();
        }
    }

    /// Whether the line may fail to notify a loop, which then needs a [`LoopPoll`]: a thread or the receiving half may read the
    /// loop's wakeup, or a hang-up may not end the line.
    fn must_be_told(&self, state: &DoorbellState) -> bool {
        state.watch == Some(WatchMode::Reads) || state.arrived.is_some() || !self.shuts
    }

    /// Returns the descriptor for the loop to poll, which never changes after the first call.
    fn lend(&self, state: &DoorbellState) -> Result<BorrowedFd<'_>> {
        if self.lent.get().is_none() {
            let lent = if self.must_be_told(state) {
                // The peer's death cannot end a line that this process may not shut.
                let pidfd = self.pidfd().filter(|_| !self.shuts);
                Some(LoopPoll::new(self.line.as_fd(), pidfd)?)
            } else {
                None
            };
            let _ = self.lent.set(lent);
        }
        Ok(self.apart().map_or(self.line.as_fd(), LoopPoll::as_fd))
    }

    fn apart(&self) -> Option<&LoopPoll> {
        self.lent.get()?.as_ref()
    }

    /// Records a wakeup or the end of the line.
    fn note(&self, state: &mut DoorbellState, gone: bool) {
        state.gone |= gone;
        state.generation += 1;
        self.wake(state);
    }

    /// Wakes the peer. Does not block: see [`PeerWaker::ring`].
    #[cold]
    pub(crate) fn ring(&self) {
        self.bells.ring();
    }

    /// The number of wakeups that this side has sent.
    pub(crate) fn rung(&self) -> &Arc<AtomicU64> {
        self.bells.rung()
    }

    /// Prepares the loop's wait for a half: reads old wakeups, because after the half has parked, a wakeup on the line may be
    /// the expected one. Returns whether anything was read.
    ///
    /// Fails with [`Error::NoSpace`] if no descriptor is available to notify the loop of a wakeup that a thread consumes, or of
    /// the peer's death.
    pub(crate) fn arm(&self) -> Result<bool> {
        let mut state = self.state.lock()?;
        state.looped = true;
        if state.polled_alone {
            self.end_line_on_exit(&mut state)?;
        }
        if self.must_be_told(&state) {
            self.lend(&state)?;
            if self.apart().is_none() {
                return Err(Error::system(
                    "an event loop beside a thread that reads the line",
                    Errno::EMFILE,
                ));
            }
        }
        // A thread that watches as if no loop existed is woken by the leftover wakeup.
        if state.left == Left::Nothing || matches!(state.watch, Some(WatchMode::Reads | WatchMode::Polls)) {
            return Ok(false);
        }
        self.read_all(&mut state, false);
        Ok(true)
    }

    /// For the loop: reads all wakeups and returns whether the peer still exists. The values of the bytes mean nothing.
    pub(crate) fn read_bells(&self) -> bool {
        self.state
            .lock()
            .is_ok_and(|mut state| self.read_bells_with(&mut state))
    }

    fn read_bells_with(&self, state: &mut DoorbellState) -> bool {
        if let Some(loop_poll) = self.apart() {
            loop_poll.heard();
        }
        if matches!(state.watch, Some(WatchMode::Reads | WatchMode::Polls)) {
            // That thread sleeps as if no loop existed. Only a wakeup on the line wakes it, so it gets this one.
            let gone = self.has_ended();
            self.note(state, gone);
        } else {
            // Read to the end of the line: an event loop may report the end only once (libuv stops watching a descriptor that
            // has failed, as a line whose peer left wakeups unread does), and wakeups may precede the end.
            self.read_all(state, true);
        }
        !state.gone
    }

    /// Reads the line and notifies the threads, unless they are already notified.
    fn read_all(&self, state: &mut DoorbellState, to_its_end: bool) -> Emptied {
        let read = self.empty_line(state, to_its_end);
        if let Some(loop_poll) = self.apart() {
            // After a local error the line stays readable, which must not wake the loop forever.
            loop_poll.watch_line(self.line.as_fd(), read.failure.is_some());
        }
        let known = state.left == Left::ForLoop && read.bells == 1 && !read.ended;
        state.left = Left::Nothing;
        if !known {
            self.note(state, read.ended);
        }
        read
    }

    /// As [`Doorbell::read_bells`], but leaves the wakeup on the line until a half is armed, so that an answer need not wait
    /// for the read. If a wakeup was left before, or if the loop is woken only once for each, it reads.
    pub(crate) fn leave_bells(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        if state.left == Left::Wakeup || self.apart().is_some_and(LoopPoll::is_on_change) {
            self.read_bells_with(&mut state);
            return;
        }
        if let Some(loop_poll) = self.apart() {
            loop_poll.heard();
        }
        state.left = Left::Wakeup;
        self.note(&mut state, false);
    }

    /// For a thread, before it parks: reads old wakeups. Leaves one if a loop may need it. Returns whether anything was done.
    pub(crate) fn catch_up(&self) -> bool {
        let Ok(mut state) = self.state.lock() else {
            return false;
        };
        // The thread that watches the line waits for a wakeup anyway, and notices this one immediately.
        if state.left != Left::Wakeup || state.watch.is_some() {
            return false;
        }
        if state.looped && state.arrived.is_none() {
            self.read_all_but_one(&mut state);
        } else {
            self.read_all(&mut state, false);
            self.tell_the_loop();
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
    pub(crate) fn look(&self) {
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
            self.peers_process(),
        ];
        // A failed poll has seen nothing. The next one will.
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Becomes ready once the peer's process has ended. The line alone is not enough, because another process may hold the
    /// peer's end open. Without a pidfd this is the line again, because a list of a fixed length needs no allocation.
    fn peers_process(&self) -> PollFd<'_> {
        match &self.pidfd {
            Some(pidfd) => PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            None => PollFd::new(self.line.as_fd(), PollFlags::empty()),
        }
    }

    /// Leaves one wakeup, which keeps the line readable. The following wait finds the end of the line.
    fn read_all_but_one(&self, state: &mut DoorbellState) {
        let mut bells = [0_u8; 512];
        for _ in 0..16 {
            // If the count is unknown, nothing is read. The next call tries again.
            let Ok(count) = sys::socket::unread(&*self.line) else {
                break;
            };
            if count <= 1 {
                state.left = if count == 1 { Left::ForLoop } else { Left::Nothing };
                break;
            }
            let surplus = (count - 1).min(bells.len());
            match sys::socket::receive_bytes(&*self.line, &mut bells[..surplus]) {
                Ok(1..) | Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        self.note(state, false);
    }

    /// Reads all wakeups. Unless `to_its_end` is set, it stops after a read that did not fill the buffer, which may miss the end
    /// of the line.
    fn empty_line(&self, state: &mut DoorbellState, to_its_end: bool) -> Emptied {
        let mut bells = [0_u8; 512];
        let mut emptied = Emptied::default();
        // Bounded, so that a peer that sends faster than this reads cannot keep this thread here. The line stays readable.
        for _ in 0..READS {
            let read = match &mut state.arrived {
                None => sys::socket::receive_bytes(&*self.line, &mut bells),
                Some(arrived) => arrived.read(self.line.as_fd()),
            };
            match read {
                Ok(0) => emptied.ended = true,
                Ok(count) => {
                    emptied.bells += count;
                    // A read of attachments stops behind each parcel.
                    if count == bells.len() || to_its_end || state.arrived.is_some() {
                        continue;
                    }
                }
                Err(Errno::EINTR) => continue,
                // Nothing was read. The loop may have been woken by the peer's death.
                Err(Errno::EAGAIN) => emptied.ended = !self.shuts && self.has_ended(),
                // This does not concern the peer. The line stays readable, and its end may follow.
                Err(errno) if is_shortage(errno) => {
                    emptied.failure = Some(errno);
                    emptied.ended = to_its_end && self.has_ended();
                }
                // A peer that left wakeups unread resets the line. A filter or a security module on this side may also forbid the read.
                Err(errno) => {
                    emptied.ended = self.has_ended();
                    emptied.failure = Some(errno).filter(|errno| !is_gone(*errno));
                }
            }
            emptied.ended |= violation(state).is_some();
            return emptied;
        }
        // The line holds more than an honest peer sends, and its end may follow.
        emptied.ended = to_its_end && self.has_ended();
        emptied
    }

    /// Puts the attachments of one message on the line, all or none. Fails with [`Error::NoSpace`] if the line is full or too many
    /// descriptors of this user are in flight.
    pub(crate) fn post(&self, attachments: &[AttachmentRef<'_>]) -> Result<()> {
        self.state.birth().check()?;
        self.try_post(attachments, None)
            .map_err(|errno| not_passed(errno, attachments.len()))
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

    /// Whether the peer has read all that this side has put on the line, as the kernel says.
    pub(crate) fn is_line_read(&self) -> bool {
        sys::socket::unreceived(&*self.line) == Ok(0)
    }

    /// Whether the peer leaves more on the line than wakeups and parcels of this much memory: if it has read all messages, it has not
    /// received their attachments.
    pub(crate) fn is_hoarded(&self, parcels: usize) -> bool {
        sys::socket::unreceived(&*self.line).is_ok_and(|memory| memory > MOST_FOR_WAKEUPS + parcels)
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
        let mut parcel = if numbered { None } else { take(&mut state, number)? };
        let mut failure = None;
        if parcel.is_none() {
            failure = self.read_to_the_last(&mut state);
            parcel = take(&mut state, number)?;
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
    /// stay on the line for want of descriptor numbers or memory.
    fn read_attachments(&self) -> bool {
        let Ok(mut state) = self.state.lock() else {
            return true;
        };
        state.arrived.is_none() || self.read_to_the_last(&mut state).is_none()
    }

    /// Reads all that an honest peer may have sent. Returns the local error that ended the reading. Each waiter is notified, because the
    /// wakeups that are read here may be for any of them.
    fn read_to_the_last(&self, state: &mut DoorbellState) -> Option<Errno> {
        let (mut failure, mut found) = (None, false);
        for _ in 0..MOST_UNREAD / READS {
            let read = self.read_all(state, false);
            found |= read.bells > 0 || read.ended;
            failure = read.failure;
            if read.bells == 0 || failure.is_some() {
                break;
            }
        }
        if found {
            self.tell_the_loop();
        }
        failure
    }

    /// Drops the attachments of the messages before the next one of the publisher, also those that are still on the line.
    pub(crate) fn drop_missed(&self, next: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        if let Some(arrived) = &mut state.arrived {
            arrived.drop_missed(next);
            // A local shortage leaves the others on the line.
            self.read_to_the_last(&mut state);
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
            self.read_to_the_last(&mut state);
        }
    }

    /// Returns whether the peer has sent what no honest peer sends on the line.
    pub(crate) fn is_violated(&self) -> bool {
        self.state.lock().is_ok_and(|state| violation(&state).is_some())
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
                state = self.wait_for_the_watch(state, deadline);
                continue;
            }
            let (watch, thread_poll) = self.choose(&mut state, deadline)?;
            state.watch = Some(watch);
            drop(state);
            let found = match thread_poll {
                Some(thread_poll) => thread_poll.sleep(deadline),
                None if watch == WatchMode::Reads => Ok(self.read()),
                None => self.poll(deadline),
            };
            state = self.state.lock()?;
            state.watch = None;
            if let Ok(found) = &found {
                state.gone |= found.gone;
                state.generation += u64::from(found.rung);
                // Only a read takes the wakeup from the line.
                match watch {
                    WatchMode::Reads if found.rung => self.tell_the_loop(),
                    WatchMode::Polls | WatchMode::Beside if found.rung => state.left = Left::Wakeup,
                    _ => {}
                }
            }
            // The threads that wait for this one re-check now, and one of them takes over the line.
            self.wake(&state);
            found?;
        }
    }

    fn wait_for_the_watch<'a>(
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

    /// Notifies the loop of a wakeup that this thread has consumed. There was no loop when the thread parked, but `lend` or
    /// `arm` may have created one since.
    fn tell_the_loop(&self) {
        if let Some(loop_poll) = self.apart() {
            loop_poll.tell();
        }
    }

    /// Chooses the way in which this thread watches the line, and the epoll if a loop exists.
    fn choose(
        &self,
        state: &mut DoorbellState,
        deadline: Option<Instant>,
    ) -> Result<(WatchMode, Option<&ThreadPoll>)> {
        // A thread in poll(2) would miss a wakeup that the receiving half reads with the attachments.
        if state.looped || state.arrived.is_some() || !self.shuts {
            if self.thread_poll.get().is_none() {
                let _ = self
                    .thread_poll
                    .set(ThreadPoll::new(self.line.as_fd(), self.pidfd())?);
            }
            return Ok((WatchMode::Beside, self.thread_poll.get()));
        }
        if deadline.is_none() && self.may_read(state) {
            // A later call that leaves a wakeup records that again.
            state.left = Left::Nothing;
            return Ok((WatchMode::Reads, None));
        }
        Ok((WatchMode::Polls, None))
    }

    /// Whether a wait may sleep in a read: the peer's death ends the read, and no other waiter needs the wakeup.
    fn may_read(&self, state: &mut DoorbellState) -> bool {
        match state.sleep {
            Sleep::Reading => return true,
            Sleep::Polling => return false,
            Sleep::NotYet(0) => {}
            Sleep::NotYet(polls) => {
                state.sleep = Sleep::NotYet(polls - 1);
                return false;
            }
        }
        let reads = self.may_block().is_some() && matches!(self.end_line_on_exit(state), Ok(true));
        state.sleep = if reads { Sleep::Reading } else { Sleep::Polling };
        reads
    }

    /// Makes reads of the line block. All other calls on the line pass MSG_DONTWAIT.
    fn may_block(&self) -> Option<()> {
        let flags = fcntl(&*self.line, FcntlArg::F_GETFL).ok()?;
        let blocking = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&*self.line, FcntlArg::F_SETFL(blocking)).ok().map(drop)
    }

    /// Sleeps in a read: one system call instead of the two of poll(2), and a shorter way to sleep and wake in the kernel.
    fn read(&self) -> Heard {
        let mut bells = [0_u8; 64];
        let (rung, gone) = match sys::socket::wait_for_bytes(&*self.line, &mut bells) {
            Ok(0) => (false, true),
            Ok(_) => (true, false),
            Err(Errno::EINTR) => (false, false),
            Err(errno) if errno == Errno::EAGAIN || is_shortage(errno) => {
                // The guest made the line, and may have changed the mode or the timeout of the open file that both share. Or the
                // kernel is short of memory, which does not concern the peer.
                self.read_no_more();
                (false, false)
            }
            // As in `empty_line`.
            Err(_) => {
                self.read_no_more();
                (false, self.has_ended())
            }
        };
        Heard { rung, gone }
    }

    /// Makes later waits poll the line.
    fn read_no_more(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.sleep = Sleep::Polling;
        }
    }

    fn poll(&self, deadline: Option<Instant>) -> Result<Heard> {
        let mut polled = [
            PollFd::new(self.line.as_fd(), PollFlags::POLLIN | sys::socket::HUNG_UP),
            self.peers_process(),
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
                Ok(Heard {
                    rung: found(0).contains(PollFlags::POLLIN),
                    // A wakeup is no sign of life: another process may hold a dead peer's end of the line.
                    gone: !(found(0) - PollFlags::POLLIN).is_empty() || !found(1).is_empty(),
                })
            }
            Err(errno) => Err(Error::poll("waiting on the line", errno)),
        }
    }

    /// Waits until `other` is readable, or the peer is gone, or the deadline has passed (`false`). Reads no wakeup. Returns
    /// immediately if the peer is already gone, because the caller may not know.
    pub(crate) fn wait_beside(&self, other: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
        self.state.birth().check()?;
        loop {
            // A hang-up does not end this poll if this process may not shut the line, so check again soon.
            let soon = (!self.shuts).then(|| Instant::now() + RECHECK);
            let until = [deadline, soon].into_iter().flatten().min();
            // POLLHUP is reported without being requested.
            let mut polled = [
                PollFd::new(other, PollFlags::POLLIN),
                PollFd::new(self.line.as_fd(), PollFlags::empty()),
                self.peers_process(),
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
    pub(crate) fn fall_silent(&self) {
        self.shut(Shutdown::Write);
    }

    /// Shuts the line in both directions. The peer notices, and so do the waiting threads of this process.
    pub(crate) fn hang_up(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        if !self.state.birth().is_here() {
            return;
        }
        if self.shuts {
            // A line that is no longer connected has already ended.
            let _ = shutdown(self.line.as_raw_fd(), how);
        } else if how == Shutdown::Both && self.read_attachments() {
            // If there is no descriptor for it, the line ends once this side drops it.
            let _ = sys::socket::replace_with_dead_end(&self.line);
        }
        // The loop looks at this once it wakes up.
        self.set_gone();
        if !self.shuts && how == Shutdown::Both {
            self.tell_the_loop();
        }
    }
}

/// Whether sending has failed because the peer's end is closed.
pub(crate) const fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN)
}

/// The error of a call that could not put `count` attachments on the line.
pub(crate) fn not_passed(errno: Errno, count: usize) -> Error {
    match errno {
        Errno::EAGAIN | Errno::ETOOMANYREFS => Error::no_space(
            format!("passing {count} attachments"),
            "too many are on their way: send again once the peer has read some",
        ),
        errno if is_gone(errno) => Error::PeerLost("its end of the line is closed".into()),
        // A ring of io_uring, or what a security module or a filter forbids. Other messages can still be sent.
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

fn take(state: &mut DoorbellState, number: u64) -> Result<Option<Parcel>> {
    let arrived = state.arrived.as_mut();
    let parcel = arrived.and_then(|arrived| arrived.take(number));
    match violation(state) {
        Some(what) if parcel.is_none() => Err(Error::RingCorrupt(what.clone())),
        _ => Ok(parcel),
    }
}

/// As [`Doorbell::wait_beside`], once the peer is known to be gone.
pub(crate) fn wait_for(descriptor: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    poll_for_token(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], deadline)
}

fn poll_for_token(polled: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    let ready = ready_by(deadline, |timeout| poll(polled, timeout).map(|ready| ready > 0));
    ready.map_err(|errno| Error::poll("waiting for a token", errno))
}

/// The result of reading the line.
#[derive(Debug, Default)]
struct Emptied {
    bells: usize,
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
