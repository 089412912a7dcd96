//! A time limit for waiting.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    error::{Error, OrSystem, Result},
    fork::OwnerProcess,
};

/// Waits until a descriptor (a channel's line, for example) is readable or has ended. For bindings to event
/// loops that lack such a call.
///
/// # Errors
/// [`Error::Aborted`] if cancelled.
pub fn wait_readable(descriptor: impl AsFd, cancel_token: &CancelToken) -> Result<()> {
    Deadline::endless(vec![cancel_token.clone()], Duration::ZERO)
        .wait(&[(descriptor.as_fd(), PollFlags::POLLIN)])
        .map(drop)
}

/// A deadline, and the tokens that cancel the wait.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    /// The duration of the deadline, for errors.
    pub(crate) allowed: Duration,
    cancel_tokens: Vec<CancelToken>,
}

impl Deadline {
    /// Makes a deadline that never passes. Errors report `allowed`.
    pub(crate) fn endless(mut cancel_tokens: Vec<CancelToken>, allowed: Duration) -> Self {
        // The tokens of a parent do not apply in a forked child.
        cancel_tokens.retain(CancelToken::in_owner_process);
        Self {
            at: None,
            allowed,
            cancel_tokens,
        }
    }

    /// Makes a deadline from now on with the same cancel tokens.
    pub(crate) fn within(&self, time: Duration) -> Self {
        Self {
            at: Instant::now().checked_add(time),
            allowed: time,
            cancel_tokens: self.cancel_tokens.clone(),
        }
    }

    /// Adds a cancel token to the same deadline.
    pub(crate) fn or(&self, cancel_token: &CancelToken) -> Self {
        let mut more = self.clone();
        more.cancel_tokens.push(cancel_token.clone());
        more
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Moves the deadline to `moment`, if that is earlier.
    pub(crate) fn until(&self, moment: Option<Instant>) -> Self {
        let mut sooner = self.clone();
        sooner.at = self.at.into_iter().chain(moment).min();
        sooner
    }

    /// Returns how much of the allowed time has passed.
    pub(crate) fn elapsed(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.allowed.saturating_sub(self.at.map_or(self.allowed, left))
    }

    /// Whether a descriptor becomes readable within a time. Also `true` if the wait was cancelled, because
    /// the following read reports that.
    pub(crate) fn becomes_readable(&self, descriptor: BorrowedFd<'_>, within: Duration) -> bool {
        let sooner = self.until(Instant::now().checked_add(within));
        sooner.wait(&[(descriptor, PollFlags::POLLIN)]).unwrap_or(true)
    }

    /// The error of a handshake that is at this step when its deadline passes.
    pub(crate) fn timed_out(&self, step: &'static str) -> Error {
        Error::HandshakeTimeout {
            step,
            after: self.allowed,
        }
    }

    /// As [`Deadline::wait`]. The deadline is an error.
    pub(crate) fn wait_at(
        &self,
        step: &'static str,
        descriptors: &[(BorrowedFd<'_>, PollFlags)],
    ) -> Result<()> {
        if self.wait(descriptors)? {
            Ok(())
        } else {
            Err(self.timed_out(step))
        }
    }

    /// Checks without waiting, for long computations. The deadline is an error. Fails with [`Error::Aborted`]
    /// if cancelled.
    pub(crate) fn check_at(&self, step: &'static str) -> Result<()> {
        if !self.has_time_left() {
            return Err(self.timed_out(step));
        }
        self.check_cancelled()
    }

    /// Fails with [`Error::Aborted`] if cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancel_tokens.is_empty() {
            return Ok(());
        }
        self.until(Some(Instant::now())).wait(&[]).map(drop)
    }

    /// Whether the deadline has not passed yet.
    pub(crate) fn has_time_left(&self) -> bool {
        self.at.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Waits until one of the descriptors is ready, or has failed, which the next read reports. Returns `false`
    /// if the deadline has passed. Fails with [`Error::Aborted`] if cancelled.
    pub(crate) fn wait(&self, descriptors: &[(BorrowedFd<'_>, PollFlags)]) -> Result<bool> {
        let mut polled: Vec<PollFd<'_>> = self
            .cancel_tokens
            .iter()
            .map(|cancel_token| PollFd::new(cancel_token.as_fd(), PollFlags::POLLIN))
            .chain(descriptors.iter().map(|(fd, events)| PollFd::new(*fd, *events)))
            .collect();
        let waited = ready_by(self.at, |timeout| {
            poll(&mut polled, timeout).map(|ready| ready > 0)
        });
        let mut tokens = polled.iter().take(self.cancel_tokens.len());
        // A caller that retries after a failed wait must still be cancelled.
        let is_cancelled = match waited {
            Ok(_) => tokens.any(|fd| fd.any() == Some(true)),
            Err(_) => self.cancel_tokens.iter().any(CancelToken::is_cancelled),
        };
        if is_cancelled {
            return Err(Error::Aborted);
        }
        waited.map_err(|errno| Error::poll("waiting for a descriptor", errno))
    }

    /// Sleeps for a time, or until cancelled.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        self.within(time).wait(&[]).map(drop)
    }
}

/// Calls `wait`, which is poll(2) or epoll_wait(2), until something is ready. Returns `false` if the deadline has
/// passed.
///
/// One call can wait for [`i32::MAX`] milliseconds, 25 days, and a signal may end it. Neither ends the wait.
pub(crate) fn ready_by(
    deadline: Option<Instant>,
    mut wait: impl FnMut(PollTimeout) -> Result<bool, Errno>,
) -> Result<bool, Errno> {
    loop {
        match wait(timeout(deadline)) {
            Ok(false) | Err(Errno::EINTR) => {}
            found => return found,
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(false);
        }
    }
}

/// Milliseconds until the deadline, rounded up, so that a wait never ends before it.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    })
}

/// Returns which of the descriptors are readable now, or have ended.
pub(crate) fn readable<'a>(descriptors: impl Iterator<Item = BorrowedFd<'a>>) -> Vec<bool> {
    let mut polled: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // A failed poll reports nothing. The next one will.
    let seen = poll(&mut polled, PollTimeout::ZERO).is_ok();
    polled.iter().map(|fd| seen && fd.any() == Some(true)).collect()
}

/// The number of attempts to write to a descriptor of this process.
const WRITE_TRIES: u32 = 64;

/// Cancels the waiting of a [`join`](crate::join) on another thread. Clones share one state, and a cancelled
/// token stays cancelled. It holds one descriptor (eventfd(2)). In a forked child it cancels nothing, neither
/// in the child nor in its parent.
///
/// ```
/// use ringfence::{Address, CancelToken, Error, Options, join};
///
/// # fn main() -> ringfence::Result<()> {
/// let address: Address = format!("@example-{}", std::process::id()).parse()?;
/// let cancel = CancelToken::new()?;
/// let options = Options::new().cancel_token(cancel.clone());
/// let waiting = std::thread::spawn(move || join(&address, &options));
/// cancel.cancel();
/// assert!(matches!(waiting.join().expect("no panic"), Err(Error::Aborted)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<CancelState>);

#[derive(Debug)]
struct CancelState {
    event: Event,
    /// Whether it was cancelled, for a wait that cannot poll its descriptors (poll(2) may fail for lack of
    /// memory).
    cancelled: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) descriptor: EventFd,
    /// A forked child has the descriptor too, but its event belongs to the parent.
    pub(super) owner: OwnerProcess,
}

impl CancelToken {
    /// Makes a cancel token that is not cancelled.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if no descriptor is available.
    pub fn new() -> Result<Self> {
        let owner = OwnerProcess::current()?;
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| {
                let event = Event { descriptor, owner };
                let cancelled = AtomicBool::new(false);
                Self(Arc::new(CancelState { event, cancelled }))
            })
            .or_system("a descriptor for cancelling a wait")
    }

    /// Cancels each wait with this token, now or later. The wait fails with [`Error::Aborted`].
    pub fn cancel(&self) {
        // The kernel has no reason to refuse the write, but a system call filter may. A wait that is never
        // cancelled would last forever, so retry.
        if !self.in_owner_process() {
            return;
        }
        self.0.cancelled.store(true, Ordering::Release);
        let mut left = WRITE_TRIES;
        while left > 0 && self.0.event.descriptor.write(1).is_err() {
            left -= 1;
        }
    }

    /// Whether it was cancelled, without reading its descriptor.
    pub(super) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    pub(crate) fn in_owner_process(&self) -> bool {
        self.0.event.owner.is_current()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.descriptor.as_fd()
    }
}

/// A wakeup between threads of this process, built on the same descriptor. [`Wakeup::signal`] makes it readable.
#[derive(Debug, Clone)]
pub(crate) struct Wakeup(CancelToken);

impl Wakeup {
    pub(crate) fn new() -> Result<Self> {
        CancelToken::new().map(Self)
    }

    pub(crate) fn signal(&self) {
        self.0.cancel();
    }

    /// Whether it was made in this process, and not in a process from which this one was forked.
    pub(crate) fn in_owner_process(&self) -> bool {
        self.0.in_owner_process()
    }

    /// Clears the wakeup. Returns whether it was signalled.
    pub(crate) fn clear(&self) -> bool {
        self.in_owner_process() && self.0.0.event.descriptor.read().is_ok()
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The pauses between attempts to reach a peer.
pub(crate) struct Backoff<'a> {
    deadline: &'a Deadline,
    next: Duration,
    /// The time since which each attempt has ended in a hang-up, and the number of those attempts.
    hung_up: Option<(Instant, u32)>,
}

/// The number of consecutive hang-ups before a peer is considered lost. A handshake may take long before it
/// ends in a hang-up, so a few hang-ups prove nothing.
const MAX_HANG_UPS: u32 = 8;

impl<'a> Backoff<'a> {
    pub(crate) fn new(deadline: &'a Deadline) -> Self {
        Self {
            deadline,
            next: Duration::from_millis(5),
            hung_up: None,
        }
    }

    /// Pauses after an attempt that found the address taken, or no process there. Each pause is longer, up to
    /// 100 ms.
    pub(crate) fn pause(&mut self) -> Result<()> {
        // The process that has the address now is not the one that hung up.
        self.hung_up = None;
        self.deadline.pause(self.next)?;
        self.next = (self.next * 2).min(Duration::from_millis(100));
        Ok(())
    }

    /// Pauses after a peer has hung up, with its reason if it gave one. Fails if the peer has hung up each
    /// time for as long as a handshake may take.
    pub(crate) fn hung_up(&mut self, why: Option<Error>) -> Result<()> {
        let (since, count) = self.hung_up.get_or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        if *count >= MAX_HANG_UPS && since.elapsed() >= self.deadline.allowed {
            return Err(why.unwrap_or_else(|| {
                Error::PeerLost(
                    "the process at the address closes each connection before a handshake starts: it is closing, or its queue is full"
                        .into(),
                )
            }));
        }
        self.deadline.pause(Duration::from_millis(1))
    }
}

/// The default pause after a failure.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The maximum number of consecutive failures.
const MAX_FAILURES: u32 = 100;

/// The retry budget of a call that is repeated, and that may fail from a lack of something that becomes
/// available again in a moment.
pub(crate) struct RetryBudget {
    failures: u32,
    pause: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::pausing(RETRY_PAUSE)
    }
}

impl RetryBudget {
    pub(crate) const fn pausing(pause: Duration) -> Self {
        Self { failures: 0, pause }
    }

    /// Records a success.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Whether to retry after this error. A cancellation is never retried.
    pub(crate) fn should_retry(&mut self, error: &Error) -> bool {
        self.failures += 1;
        !matches!(error, Error::Aborted) && self.failures <= MAX_FAILURES
    }

    /// Sleeps before the next attempt, because the failed one may have taken no time.
    pub(crate) fn pause(&self) {
        thread::sleep(self.pause);
    }
}
