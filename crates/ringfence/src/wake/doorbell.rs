//! The private line as a bell: rung for a peer that sleeps, waited on by the threads of this process. It also tells of the
//! peer's death.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, Shutdown, recv, shutdown},
};

mod bells;

use bells::Bells;

use crate::{
    error::{Error, Result, is_shortage},
    sys,
    sys::lock::{Condvar, Mutex, MutexGuard},
    wake::exit_watch::ExitWatch,
};

/// Waits that poll, before those that follow read instead. A read saves 1.4 µs; the thread that it takes costs 60 to 210 µs,
/// begun and ended, and 1.5 µs for each further channel (measured on the same two cores).
const POLLS_BEFORE_A_READ: u32 = 32;

/// The line itself: shared by whoever waits in this process.
#[derive(Debug)]
pub(crate) struct Doorbell {
    line: Arc<OwnedFd>,
    bells: Arc<Bells>,
    pidfd: Option<Arc<OwnedFd>>,
    state: Mutex<State>,
    changed: Condvar,
    /// What ends a read on the peer's death; or that this cannot be had.
    exit_watch: OnceLock<Option<ExitWatch>>,
}

#[derive(Debug, Default)]
struct State {
    /// One thread waits on the line for all; the others wait for it.
    watched: bool,
    /// How many those are: to wake nobody is a system call as well.
    waiting: usize,
    /// Grows with everything that came over the line, so that nobody sleeps through what another has read.
    generation: u64,
    /// A bell was heard and left on the line: whoever is woken has something better to do first.
    unread: bool,
    /// The peer has closed its end, or is dead, or this side has shut the line.
    gone: bool,
    sleep: Sleep,
}

/// How whoever watches the line without a deadline sleeps.
#[derive(Debug, Clone, Copy)]
enum Sleep {
    /// In poll(2), so many times still.
    NotYet(u32),
    /// In a plain read, which sees no more than the line.
    Reading,
    /// In poll(2), from now on.
    Polling,
}

impl Default for Sleep {
    fn default() -> Self {
        Self::NotYet(POLLS_BEFORE_A_READ)
    }
}

impl AsFd for Doorbell {
    /// For an event loop of the program's, which is to find the bell of one half on the line, though a thread waits for
    /// the other.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state().sleep = Sleep::Polling;
        self.line.as_fd()
    }
}

impl Doorbell {
    pub(crate) fn new(line: OwnedFd, pidfd: Option<Arc<OwnedFd>>) -> Self {
        let line = Arc::new(line);
        Self {
            bells: Bells::new(&line),
            line,
            pidfd,
            state: Mutex::default(),
            changed: Condvar::new(),
            exit_watch: OnceLock::new(),
        }
    }

    /// The line, for whoever takes nothing from it.
    pub(crate) fn line(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Wakes the threads that wait for what has changed.
    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Something was heard, or the end.
    fn note(&self, state: &mut State, gone: bool) {
        state.gone |= gone;
        state.generation += 1;
        self.wake(state);
    }

    /// Wakes the peer. Does not wait: see [`Bells::ring`].
    #[cold]
    pub(crate) fn ring(&self) {
        self.bells.ring();
    }

    /// Reads whatever came over the line and returns whether the peer is still there. What the bytes say does not
    /// matter: they are bells.
    pub(crate) fn read_bells(&self) -> bool {
        self.state().unread = false;
        // To its end: an event loop may tell of that once only (libuv stops to watch what has failed, as a line does whose peer
        // has left bells unread), and a bell may lie before it.
        let gone = self.empty_line(true);
        let mut state = self.state();
        self.note(&mut state, gone);
        !state.gone
    }

    /// As [`Doorbell::read_bells`], but leaves the bell on the line until [`Doorbell::catch_up`], so that an answer need not wait
    /// for that. Where one was left there before, it reads.
    pub(crate) fn leave_bells(&self) {
        let mut state = self.state();
        if state.unread {
            drop(state);
            self.read_bells();
            return;
        }
        state.unread = true;
        self.note(&mut state, false);
    }

    /// Reads what was left on the line, if anything was. Before lying down, and not after: then the line may hold the bell
    /// that is waited for.
    pub(crate) fn catch_up(&self) -> bool {
        let mut state = self.state();
        // Whoever watches the line does so with a bell of its own to wait for, and hears this one at once.
        if !state.unread || state.watched {
            return false;
        }
        state.unread = false;
        // Nobody begins to watch meanwhile: a bell that is rung now and read here is told by `generation`.
        state.watched = true;
        drop(state);
        let gone = self.empty_line(false);
        let mut state = self.state();
        state.watched = false;
        self.note(&mut state, gone);
        true
    }

    /// What tells of the peer's end and of nothing else, for whoever waits for that alone.
    pub(crate) fn ends(&self) -> Ends {
        Ends {
            line: Arc::clone(&self.line),
            pidfd: self.pidfd.clone(),
        }
    }

    /// Notices a peer that is gone, and leaves every bell where it is: somebody may be waiting for it.
    pub(crate) fn look(&self) {
        let ends = self.ends();
        let mut polled: Vec<_> = ends
            .watched()
            .map(|(descriptor, flags)| PollFd::new(descriptor, flags))
            .collect();
        // A poll that fails has seen nothing; the next one will.
        if poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            let mut state = self.state();
            state.gone = true;
            self.wake(&state);
        }
    }

    /// Whether the line has ended. Where that need not be known, what is left after a read that was not full is the next
    /// one's affair.
    fn empty_line(&self, to_its_end: bool) -> bool {
        let mut bells = [0_u8; 512];
        // A peer that rings faster than this reads keeps nobody here: the line stays readable.
        for _ in 0..16 {
            // recv, not recvmsg: what descriptors a hostile peer attaches are dropped by the kernel uninstalled.
            match recv(self.line.as_raw_fd(), &mut bells, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return true,
                Ok(count) if count < bells.len() && !to_its_end => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                // Nothing was read, and nothing is known of the peer. The line stays readable.
                Err(errno) if is_shortage(errno) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// What has been heard so far: to be asked before lying down, and given to [`Doorbell::wait`].
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Waits until something is heard after `generation`, or the peer is gone, or the deadline has passed (`false`). Where it polls,
    /// it leaves the bell on the line, for [`Doorbell::catch_up`].
    pub(crate) fn wait(&self, generation: u64, deadline: Option<Instant>) -> Result<bool> {
        let mut state = self.state();
        loop {
            if state.gone || state.generation != generation {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
            if state.watched {
                state.waiting += 1;
                state = match deadline {
                    None => self.changed.wait(state),
                    Some(deadline) => {
                        let left = deadline.saturating_duration_since(Instant::now());
                        self.changed.wait_timeout(state, left)
                    }
                };
                state.waiting -= 1;
                continue;
            }
            state.watched = true;
            let found = if deadline.is_none() && self.may_read(&mut state) {
                // Whoever leaves a bell there from now on says so again.
                state.unread = false;
                drop(state);
                Ok(self.read())
            } else {
                drop(state);
                self.poll(deadline)
            };
            state = self.state();
            state.watched = false;
            if let Ok(found) = &found {
                state.gone |= found.gone;
                state.generation += u64::from(found.rung);
                state.unread |= found.left;
            }
            // Whoever waits for this thread looks for itself now, and one of them takes over the line.
            self.wake(&state);
            found?;
        }
    }

    /// Whether a wait may sleep in a read: the peer's death ends that, and nobody else wants the bell.
    fn may_read(&self, state: &mut State) -> bool {
        match state.sleep {
            Sleep::Reading => return true,
            Sleep::Polling => return false,
            Sleep::NotYet(0) => {}
            Sleep::NotYet(polls) => {
                state.sleep = Sleep::NotYet(polls - 1);
                return false;
            }
        }
        let exit_watch = self.exit_watch.get_or_init(|| self.watch_for_exit());
        state.sleep = if exit_watch.is_some() {
            Sleep::Reading
        } else {
            Sleep::Polling
        };
        exit_watch.is_some()
    }

    fn watch_for_exit(&self) -> Option<ExitWatch> {
        let pidfd = self.pidfd.as_ref()?;
        // Every other call on the line says for itself that it does not wait.
        let flags = fcntl(&*self.line, FcntlArg::F_GETFL).ok()?;
        let blocking = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&*self.line, FcntlArg::F_SETFL(blocking)).ok()?;
        ExitWatch::over(&self.line, pidfd)
    }

    /// One system call where poll(2) takes two, and in the kernel the shorter way to sleep and to wake.
    fn read(&self) -> Found {
        let mut bells = [0_u8; 64];
        let (rung, gone) = match recv(self.line.as_raw_fd(), &mut bells, MsgFlags::empty()) {
            Ok(0) => (false, true),
            Ok(_) => (true, false),
            Err(Errno::EINTR) => (false, false),
            Err(errno) if errno == Errno::EAGAIN || is_shortage(errno) => {
                // Whoever made the line may have kept what both share, and has changed its mode or given it a timeout. Or
                // the kernel is short of memory, and says nothing of the peer.
                self.state().sleep = Sleep::Polling;
                (false, false)
            }
            Err(_) => (false, true),
        };
        Found {
            rung,
            left: false,
            gone,
        }
    }

    fn poll(&self, deadline: Option<Instant>) -> Result<Found> {
        let mut polled = vec![PollFd::new(self.line.as_fd(), PollFlags::POLLIN | sys::HUNG_UP)];
        // The line ends with the peer, unless somebody else holds the peer's end of it open.
        polled.extend(
            self.pidfd
                .as_ref()
                .map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut polled, timeout(deadline)) {
            Ok(_) | Err(Errno::EINTR) => {
                let found = |index: usize| match polled.get(index) {
                    // nix does not know POLLRDHUP, and answers with nothing where it is among what was found.
                    Some(fd) => fd.revents().unwrap_or(PollFlags::POLLIN | sys::HUNG_UP),
                    None => PollFlags::empty(),
                };
                let rung = found(0).contains(PollFlags::POLLIN);
                Ok(Found {
                    rung,
                    left: rung,
                    // A bell is no sign of life: somebody else may hold the end of the line of a peer that is dead.
                    gone: !(found(0) - PollFlags::POLLIN).is_empty() || !found(1).is_empty(),
                })
            }
            Err(errno) => Err(Error::poll("waiting on the line", errno)),
        }
    }

    /// Waits until `other` is readable, or the peer is gone, or the deadline has passed (`false`). Leaves every bell where it
    /// is. Once the peer is gone, `other` alone is waited for.
    pub(crate) fn wait_beside(&self, other: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
        let mut polled = vec![PollFd::new(other, PollFlags::POLLIN)];
        if !self.is_gone() {
            // POLLHUP is told without being asked for.
            polled.push(PollFd::new(self.line.as_fd(), PollFlags::empty()));
            let pidfd = self.pidfd.as_ref();
            polled.extend(pidfd.map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut polled, timeout(deadline)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            // Whoever waits looks again.
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(Error::poll("waiting for a token", errno)),
        }
        if polled[1..].iter().any(|fd| fd.any() == Some(true)) {
            let mut state = self.state();
            state.gone = true;
            self.wake(&state);
        }
        Ok(true)
    }

    /// Says no more on the line: the peer sees its end, and can still answer by ending it from its side.
    pub(crate) fn fall_silent(&self) {
        self.shut(Shutdown::Write);
    }

    /// Ends the line from this side: the peer sees it, and so does whoever waits in this process.
    pub(crate) fn hang_up(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        // A line that is not connected any more is hung up already.
        let _ = shutdown(self.line.as_raw_fd(), how);
        let mut state = self.state();
        state.gone = true;
        self.wake(&state);
    }
}

/// What is left until a deadline.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    })
}

/// See [`Doorbell::ends`]. Holds the line open, though nobody may use it any more.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    line: Arc<OwnedFd>,
    pidfd: Option<Arc<OwnedFd>>,
}

impl Ends {
    /// To be polled. No bell makes any of this ready, so that whoever waits here takes none from anybody.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // Also where the peer has ended its direction alone, as one does that leaves.
        let line = (self.line.as_fd(), sys::HUNG_UP);
        let pidfd = self
            .pidfd
            .as_ref()
            .map(|pidfd| (pidfd.as_fd(), PollFlags::POLLIN));
        std::iter::once(line).chain(pidfd)
    }
}

/// What a wait has found.
#[derive(Debug)]
struct Found {
    rung: bool,
    /// The bell is on the line still.
    left: bool,
    gone: bool,
}

#[cfg(test)]
mod tests;
