//! The private line as a bell: rung for a peer that sleeps, waited on by the threads of this process. It also tells of the
//! peer's death.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, Shutdown, recv, shutdown},
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
    wake::exit_watch::ExitWatch,
};

/// Waits that poll, before those that follow read instead. A read saves 1.4 µs; the thread that it takes costs 60 to 210 µs,
/// begun and ended, and 1.5 µs for each further channel (measured on the same two cores).
const POLLS_BEFORE_A_READ: u32 = 32;

/// The line itself: shared by all that wait in this process, which are threads in a call, and an event loop of the program's.
///
/// A bell does not say for which half of the channel it is. So each bell is told to all: to threads by `generation`, to the
/// loop by lying on the line until it has read it, or a half is armed next.
///
/// A forked child must neither read nor end its parent's line. There each method does nothing and reports that the peer is gone, or
/// fails with [`Error::Closed`].
#[derive(Debug)]
pub(crate) struct Doorbell {
    line: Arc<OwnedFd>,
    bells: Arc<PeerWaker>,
    pidfd: Option<Arc<OwnedFd>>,
    /// The line is read with this lock, but for a thread that sleeps in a read ([`WatchMode::Reads`]).
    state: ProcessMutex<DoorbellState>,
    changed: Condvar,
    /// What the loop polls. Set once, by the thread that has the lock of the state, since the loop keeps it.
    lent: OnceLock<Lent>,
    /// Where threads sleep from the moment at which there is a loop. Set once, in the same way.
    thread_poll: OnceLock<ThreadPoll>,
}

/// Each word is written under the lock.
#[derive(Debug, Default)]
struct DoorbellState {
    /// One thread waits on the line for all; the others wait for it. Written by that thread alone, when it parks and
    /// when it is awake again.
    watch: Option<WatchMode>,
    /// How many those are: to wake none is a system call as well.
    waiting: usize,
    /// Grows with everything that came over the line, so that no thread sleeps through what another has read. Written by
    /// the thread that has heard it, and by the loop.
    generation: u64,
    /// Written by the thread or loop that leaves or reads it.
    left: Left,
    /// The peer has closed its end, or is dead, or this side has shut the line. Never taken back.
    gone: bool,
    /// Written by the thread that is about to park, and by the one whose read has failed.
    sleep: Sleep,
    /// The program waits for a half in an event loop, or has done so. Written by the loop, never taken back.
    looped: bool,
    /// That loop polls nothing but the line, so the peer's death must end it. Written as `looped`.
    polled_alone: bool,
    /// Ends the line on the peer's death, for a thread in a read and for a loop. Written by whichever needs it first.
    exit_watch: Option<ExitWatch>,
}

/// How a thread watches the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchMode {
    /// In a plain read, which takes the bell.
    Reads,
    /// In poll(2), which ends as long as a bell lies there.
    Polls,
    /// In the epoll that threads have beside a loop.
    Beside,
}

/// What is on the line, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Left {
    #[default]
    Nothing,
    /// A bell was heard and left there: the one that was woken has something better to do first.
    PeerWaker,
    /// One that all threads have been told of, for the loop.
    ForLoop,
}

/// What the program's event loop was given to poll.
#[derive(Debug)]
enum Lent {
    Line,
    Apart(LoopPoll),
}

/// How the thread that watches the line sleeps while there is no loop.
#[derive(Debug, Clone, Copy)]
enum Sleep {
    /// In poll(2), so many times still.
    NotYet(u32),
    /// In a plain read where there is no deadline, which sees no more than the line.
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
    pub(crate) fn new(line: OwnedFd, pidfd: Option<Arc<OwnedFd>>, birth: Birth) -> Self {
        let line = Arc::new(line);
        Self {
            bells: PeerWaker::new(&line, birth),
            line,
            pidfd,
            state: ProcessMutex::new(DoorbellState::default(), birth),
            changed: Condvar::new(),
            lent: OnceLock::new(),
            thread_poll: OnceLock::new(),
        }
    }

    /// The descriptor that an event loop polls, if it polls the [`Doorbell::pidfd`] as well.
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        let Ok(mut state) = self.state() else {
            return self.line.as_fd();
        };
        state.looped = true;
        // Where descriptors have run out, the read that is under way may take the loop's bell: `arm` errors until it has ended.
        self.lend(&state).unwrap_or_else(|_| {
            let _ = self.lent.set(Lent::Line);
            self.line.as_fd()
        })
    }

    /// From now on the [`Doorbell::line`] is readable as well once the peer's process has ended: for an event loop that polls nothing
    /// else. Errors with [`Error::NoSpace`]; then [`Doorbell::arm`] tries again.
    pub(crate) fn poll_line_alone(&self) -> Result<()> {
        let mut state = self.state()?;
        state.polled_alone = true;
        self.end_line_on_exit(&mut state).map(drop)
    }

    /// Readable once the peer's process has ended. `None` if this system has no pidfds.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|pidfd| pidfd.as_fd())
    }

    fn state(&self) -> Result<MutexGuard<'_, DoorbellState>> {
        self.state.lock()
    }

    /// Has the peer's death end the line, also if another process holds the peer's end of it open. `false`: this system has no
    /// pidfds. Errors with [`Error::NoSpace`] if there is no descriptor or thread for that.
    fn end_line_on_exit(&self, state: &mut DoorbellState) -> Result<bool> {
        if state.exit_watch.is_none()
            && let Some(pidfd) = &self.pidfd
        {
            state.exit_watch = Some(ExitWatch::over(&self.line, pidfd)?);
        }
        Ok(state.exit_watch.is_some())
    }

    /// Wakes the threads that wait for what has changed.
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

    /// What the loop polls: from the first time on the same.
    fn lend(&self, state: &DoorbellState) -> Result<BorrowedFd<'_>> {
        if self.lent.get().is_none() {
            let lent = match state.watch {
                Some(WatchMode::Reads) => Lent::Apart(LoopPoll::new(self.line.as_fd())?),
                _ => Lent::Line,
            };
            let _ = self.lent.set(lent);
        }
        Ok(self.apart().map_or(self.line.as_fd(), LoopPoll::as_fd))
    }

    fn apart(&self) -> Option<&LoopPoll> {
        match self.lent.get() {
            Some(Lent::Apart(loop_poll)) => Some(loop_poll),
            Some(Lent::Line) | None => None,
        }
    }

    /// Something was heard, or the end.
    fn note(&self, state: &mut DoorbellState, gone: bool) {
        state.gone |= gone;
        state.generation += 1;
        self.wake(state);
    }

    /// Wakes the peer. Does not wait: see [`PeerWaker::ring`].
    #[cold]
    pub(crate) fn ring(&self) {
        self.bells.ring();
    }

    /// How often this side has rung.
    pub(crate) fn rung(&self) -> &Arc<AtomicU64> {
        self.bells.rung()
    }

    /// For the loop, before it waits for a half: reads what was left on the line, since after the half has parked the line may
    /// hold the bell that is waited for. Whether anything was read.
    ///
    /// Errors with [`Error::NoSpace`] if a thread would take that bell and there is no descriptor to tell the loop with, or if the
    /// loop would not be told of the peer's death.
    pub(crate) fn arm(&self) -> Result<bool> {
        let mut state = self.state()?;
        state.looped = true;
        if state.polled_alone {
            self.end_line_on_exit(&mut state)?;
        }
        if state.watch == Some(WatchMode::Reads) {
            self.lend(&state)?;
            if self.apart().is_none() {
                return Err(Error::system(
                    "an event loop beside a thread that reads the line",
                    Errno::EMFILE,
                ));
            }
        }
        // A thread that watches as if there was no loop is woken by what lies there.
        if state.left == Left::Nothing || matches!(state.watch, Some(WatchMode::Reads | WatchMode::Polls)) {
            return Ok(false);
        }
        self.read_all(&mut state, false);
        Ok(true)
    }

    /// For the loop: reads whatever came over the line and returns whether the peer is still there. What the bytes say does
    /// not matter: they are bells.
    pub(crate) fn read_bells(&self) -> bool {
        self.state()
            .is_ok_and(|mut state| self.read_bells_with(&mut state))
    }

    fn read_bells_with(&self, state: &mut DoorbellState) -> bool {
        if let Some(loop_poll) = self.apart() {
            loop_poll.heard();
        }
        if matches!(state.watch, Some(WatchMode::Reads | WatchMode::Polls)) {
            // That thread has gone to sleep as if there was no loop. Nothing but a bell wakes it, so it gets this one.
            let gone = self.has_ended();
            self.note(state, gone);
        } else {
            // To its end: an event loop may tell of that once only (libuv stops to watch what has failed, as a line does whose
            // peer has left bells unread), and a bell may lie before it.
            self.read_all(state, true);
        }
        !state.gone
    }

    /// Reads what is on the line, and tells the threads, unless they know of it.
    fn read_all(&self, state: &mut DoorbellState, to_its_end: bool) {
        let read = self.empty_line(to_its_end);
        let known = state.left == Left::ForLoop && read.bells == 1 && !read.ended;
        state.left = Left::Nothing;
        if !known {
            self.note(state, read.ended);
        }
    }

    /// As [`Doorbell::read_bells`], but leaves the bell on the line until a half is armed, so that an answer need not wait
    /// for that. Where one was left there before, it reads.
    pub(crate) fn leave_bells(&self) {
        let Ok(mut state) = self.state() else { return };
        if state.left == Left::PeerWaker {
            self.read_bells_with(&mut state);
            return;
        }
        if let Some(loop_poll) = self.apart() {
            loop_poll.heard();
        }
        state.left = Left::PeerWaker;
        self.note(&mut state, false);
    }

    /// For a thread, before it parks: reads what was left on the line, but for one bell where a loop may need that. Whether
    /// anything was done.
    pub(crate) fn catch_up(&self) -> bool {
        let Ok(mut state) = self.state() else { return false };
        // The thread that watches the line does so with a bell of its own to wait for, and hears this one at once.
        if state.left != Left::PeerWaker || state.watch.is_some() {
            return false;
        }
        if state.looped {
            self.read_all_but_one(&mut state);
        } else {
            self.read_all(&mut state, false);
        }
        true
    }

    /// What tells of the peer's end and of nothing else, for a caller that waits for that alone.
    pub(crate) fn ends(&self) -> LineEnds {
        LineEnds {
            line: Arc::clone(&self.line),
            pidfd: self.pidfd.clone(),
        }
    }

    /// Notices a peer that is gone, and leaves every bell where it is: a thread may be waiting for it.
    pub(crate) fn look(&self) {
        if self.has_ended() {
            self.set_gone();
        }
    }

    fn set_gone(&self) {
        if let Ok(mut state) = self.state() {
            state.gone = true;
            self.wake(&state);
        }
    }

    fn has_ended(&self) -> bool {
        let mut polled = [
            PollFd::new(self.line.as_fd(), sys::socket::HUNG_UP),
            self.peers_process(),
        ];
        // A poll that fails has seen nothing; the next one will.
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Ready once the peer's process has ended: the line ends with it, unless another process holds the peer's end of that open. Without a
    /// pidfd, the line once more, since a list of a fixed length needs no allocation.
    fn peers_process(&self) -> PollFd<'_> {
        match &self.pidfd {
            Some(pidfd) => PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            None => PollFd::new(self.line.as_fd(), PollFlags::empty()),
        }
    }

    /// Leaves one bell, since a line that holds one is readable. The end of the line is found by the wait that follows.
    fn read_all_but_one(&self, state: &mut DoorbellState) {
        let mut bells = [0_u8; 512];
        for _ in 0..16 {
            // Where it cannot be told, nothing is read, and the next one sees to that.
            let Ok(count) = sys::socket::unread(&*self.line) else {
                break;
            };
            if count <= 1 {
                state.left = if count == 1 { Left::ForLoop } else { Left::Nothing };
                break;
            }
            let surplus = (count - 1).min(bells.len());
            match recv(
                self.line.as_raw_fd(),
                &mut bells[..surplus],
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(1..) | Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        self.note(state, false);
    }

    /// Where the line's end need not be known, what is left after a read that was not full is the next one's affair.
    fn empty_line(&self, to_its_end: bool) -> Emptied {
        let mut bells = [0_u8; 512];
        let mut emptied = Emptied::default();
        // A peer that rings faster than this reads does not keep this thread here: the line stays readable.
        for _ in 0..16 {
            // recv, not recvmsg: what descriptors a hostile peer attaches are dropped by the kernel uninstalled.
            match recv(self.line.as_raw_fd(), &mut bells, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => emptied.ended = true,
                Ok(count) => {
                    emptied.bells += count;
                    if count == bells.len() || to_its_end {
                        continue;
                    }
                }
                Err(Errno::EINTR) => continue,
                // Nothing was read, and nothing is known of the peer. The line stays readable.
                Err(errno) if errno == Errno::EAGAIN || is_shortage(errno) => {}
                // A peer that has left bells unread resets the line, and a security module of this side's may forbid the read.
                Err(_) => emptied.ended = self.has_ended(),
            }
            return emptied;
        }
        // More lies there than an honest peer rings, and the end may be behind it.
        emptied.ended = to_its_end && self.has_ended();
        emptied
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state().map_or(true, |state| state.gone)
    }

    /// What has been heard so far: to be asked before parking, and given to [`Doorbell::wait`].
    pub(crate) fn generation(&self) -> u64 {
        self.state().map_or(0, |state| state.generation)
    }

    /// Waits until something is heard after `generation`, or the peer is gone, or the deadline has passed (`false`). Where it does
    /// not read, it leaves the bell on the line, for [`Doorbell::catch_up`].
    ///
    /// Errors with [`Error::NoSpace`] where there are not the descriptors to wait with.
    pub(crate) fn wait(&self, generation: u64, deadline: Option<Instant>) -> Result<bool> {
        let mut state = self.state()?;
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
                Some(thread_poll) => thread_poll.sleep(deadline).map(WaitResult::from),
                None if watch == WatchMode::Reads => Ok(self.read()),
                None => self.poll(deadline),
            };
            state = self.state()?;
            state.watch = None;
            if let Ok(found) = &found {
                state.gone |= found.gone;
                state.generation += u64::from(found.rung);
                if found.left {
                    state.left = Left::PeerWaker;
                }
                if found.rung && watch == WatchMode::Reads {
                    self.tell_the_loop();
                }
            }
            // The threads that wait for this one look for themselves now, and one of them takes over the line.
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

    /// This thread has taken a bell that may be the loop's, if there is one by now. There was none when it parked, and
    /// `lend` and `arm` have found it asleep since.
    fn tell_the_loop(&self) {
        if let Some(loop_poll) = self.apart() {
            loop_poll.tell();
        }
    }

    /// How this thread watches the line, and where, beside a loop.
    fn choose(
        &self,
        state: &mut DoorbellState,
        deadline: Option<Instant>,
    ) -> Result<(WatchMode, Option<&ThreadPoll>)> {
        if state.looped {
            if self.thread_poll.get().is_none() {
                let pidfd = self.pidfd.as_ref().map(|pidfd| pidfd.as_fd());
                let _ = self.thread_poll.set(ThreadPoll::new(self.line.as_fd(), pidfd)?);
            }
            return Ok((WatchMode::Beside, self.thread_poll.get()));
        }
        if deadline.is_none() && self.may_read(state) {
            // A call that leaves a bell there from now on says so again.
            state.left = Left::Nothing;
            return Ok((WatchMode::Reads, None));
        }
        Ok((WatchMode::Polls, None))
    }

    /// Whether a wait may sleep in a read: the peer's death ends that, and no other waiter wants the bell.
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

    /// Lets a read of the line wait. Every other call on the line says for itself that it does not.
    fn may_block(&self) -> Option<()> {
        let flags = fcntl(&*self.line, FcntlArg::F_GETFL).ok()?;
        let blocking = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&*self.line, FcntlArg::F_SETFL(blocking)).ok().map(drop)
    }

    /// One system call where poll(2) takes two, and in the kernel the shorter way to sleep and to wake.
    fn read(&self) -> WaitResult {
        let mut bells = [0_u8; 64];
        let (rung, gone) = match recv(self.line.as_raw_fd(), &mut bells, MsgFlags::empty()) {
            Ok(0) => (false, true),
            Ok(_) => (true, false),
            Err(Errno::EINTR) => (false, false),
            Err(errno) if errno == Errno::EAGAIN || is_shortage(errno) => {
                // The guest, which made the line, may have kept what both share, and has changed its mode or given it a timeout. Or
                // the kernel is short of memory, and says nothing of the peer.
                self.read_no_more();
                (false, false)
            }
            // As in `empty_line`.
            Err(_) => {
                self.read_no_more();
                (false, self.has_ended())
            }
        };
        WaitResult {
            rung,
            left: false,
            gone,
        }
    }

    /// From now on, threads that wait poll the line.
    fn read_no_more(&self) {
        if let Ok(mut state) = self.state() {
            state.sleep = Sleep::Polling;
        }
    }

    fn poll(&self, deadline: Option<Instant>) -> Result<WaitResult> {
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
                let rung = found(0).contains(PollFlags::POLLIN);
                Ok(WaitResult {
                    rung,
                    left: rung,
                    // A bell is no sign of life: another process may hold the end of the line of a peer that is dead.
                    gone: !(found(0) - PollFlags::POLLIN).is_empty() || !found(1).is_empty(),
                })
            }
            Err(errno) => Err(Error::poll("waiting on the line", errno)),
        }
    }

    /// Waits until `other` is readable, or the peer is gone, or the deadline has passed (`false`). Leaves every bell where it
    /// is. Returns at once where the peer is gone, however that was found: the caller may not have been told.
    pub(crate) fn wait_beside(&self, other: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
        self.state.birth().check()?;
        // POLLHUP is told without being asked for.
        let mut polled = [
            PollFd::new(other, PollFlags::POLLIN),
            PollFd::new(self.line.as_fd(), PollFlags::empty()),
            self.peers_process(),
        ];
        if !poll_for_token(&mut polled, deadline)? {
            return Ok(false);
        }
        if polled[1..].iter().any(|fd| fd.any() == Some(true)) {
            self.set_gone();
        }
        Ok(true)
    }

    /// Says no more on the line: the peer sees its end, and can still answer by ending it from its side.
    pub(crate) fn fall_silent(&self) {
        self.shut(Shutdown::Write);
    }

    /// Ends the line from this side: the peer sees it, and so do the threads that wait in this process.
    pub(crate) fn hang_up(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        if self.state.birth().is_here() {
            // A line that is not connected any more is hung up already.
            let _ = shutdown(self.line.as_raw_fd(), how);
            self.set_gone();
        }
    }
}

/// As [`Doorbell::wait_beside`], for what is waited for once the peer is known to be gone.
pub(crate) fn wait_for(descriptor: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    poll_for_token(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], deadline)
}

fn poll_for_token(polled: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    let ready = ready_by(deadline, |timeout| poll(polled, timeout).map(|ready| ready > 0));
    ready.map_err(|errno| Error::poll("waiting for a token", errno))
}

/// What was read of the line.
#[derive(Debug, Default)]
struct Emptied {
    bells: usize,
    ended: bool,
}

/// See [`Doorbell::ends`]. Holds the line open, though no call uses it any more.
#[derive(Debug, Clone)]
pub(crate) struct LineEnds {
    line: Arc<OwnedFd>,
    pidfd: Option<Arc<OwnedFd>>,
}

impl LineEnds {
    /// The line, and what tells of the end of the peer's process.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        let pidfd = self.pidfd.as_ref();
        (self.line.as_fd(), pidfd.map(|pidfd| pidfd.as_fd()))
    }

    /// To be polled. No bell makes any of this ready, so that a thread that waits here takes none from another.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // Also where the peer has ended its direction alone, as one does that leaves.
        let line = (self.line.as_fd(), sys::socket::HUNG_UP);
        let pidfd = self
            .pidfd
            .as_ref()
            .map(|pidfd| (pidfd.as_fd(), PollFlags::POLLIN));
        std::iter::once(line).chain(pidfd)
    }
}

/// What a wait has found.
#[derive(Debug)]
struct WaitResult {
    rung: bool,
    /// The bell is on the line still.
    left: bool,
    gone: bool,
}

impl From<Heard> for WaitResult {
    fn from(Heard { rung, gone }: Heard) -> Self {
        Self {
            rung,
            left: rung,
            gone,
        }
    }
}

#[cfg(test)]
mod tests;
