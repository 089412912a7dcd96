//! How long something is waited for, and who may call it off.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    error::{Error, Result},
    fork::Birth,
};

/// Calls off the waiting of a [`join`](crate::join) on another thread. Clones share one state; once called off, it
/// stays so. Holds one descriptor (eventfd(2)). In a child that was forked it calls nothing off, neither here nor there.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Event>);

#[derive(Debug)]
struct Event {
    descriptor: EventFd,
    /// A child has the descriptor as well, and what it leads to is its parent's.
    birth: Birth,
}

impl CancelToken {
    /// A cancel token that has not been used. Errors with [`Error::NoSpace`] where descriptors have run out.
    pub fn new() -> Result<Self> {
        let birth = Birth::now()?;
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|descriptor| Self(Arc::new(Event { descriptor, birth })))
            .map_err(|errno| Error::system("a descriptor to call off the waiting", errno))
    }

    /// Calls off whatever waits with this cancel token, now or later. It ends with [`Error::Aborted`].
    pub fn cancel(&self) {
        if self.is_here() {
            // The only failure is a counter near its 64-bit limit, which is called off already.
            let _ = self.0.descriptor.write(1);
        }
    }

    fn is_here(&self) -> bool {
        self.0.birth.is_here()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

/// The same descriptor as a bell inside this process: rung by [`Bell::ring`], heard by waiting for it to be readable.
#[derive(Debug, Clone)]
pub(crate) struct Bell(CancelToken);

impl Bell {
    pub(crate) fn new() -> Result<Self> {
        CancelToken::new().map(Self)
    }

    pub(crate) fn ring(&self) {
        self.0.cancel();
    }

    /// Forgets what was rung so far.
    pub(crate) fn hush(&self) {
        if self.is_here() {
            // Nothing to read is what is wanted.
            let _ = self.0.0.descriptor.read();
        }
    }

    /// Whether it was made in this process, and not in one that this was forked from.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }

    /// Whether it was rung, which is forgotten by that.
    pub(crate) fn was_rung(&self) -> bool {
        self.is_here() && self.0.0.descriptor.read().is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until a descriptor (a channel's line, say) is readable or has ended: for bindings to event loops that have
/// nothing of their own. Errors with [`Error::Aborted`] when called off.
pub fn wait_readable(descriptor: impl AsFd, cancel_token: &CancelToken) -> Result<()> {
    Deadline::endless(vec![cancel_token.clone()], Duration::ZERO)
        .wait(&[(descriptor.as_fd(), PollFlags::POLLIN)])
        .map(drop)
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// One of the descriptors is ready (or has failed, which a read will tell).
    Ready,
    /// The deadline has passed.
    Late,
}

/// A deadline, and everything that may call the waiting off.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    moment: Option<Instant>,
    /// The time that the deadline stands for.
    pub(crate) allowed: Duration,
    cancel_tokens: Vec<CancelToken>,
}

impl Deadline {
    /// No deadline; errors state `allowed`.
    pub(crate) fn endless(mut cancel_tokens: Vec<CancelToken>, allowed: Duration) -> Self {
        // A parent that calls off what waits there does not mean its child's.
        cancel_tokens.retain(CancelToken::is_here);
        Self {
            moment: None,
            allowed,
            cancel_tokens,
        }
    }

    /// The same cancel tokens, with a deadline from now.
    pub(crate) fn within(&self, time: Duration) -> Self {
        Self {
            moment: Instant::now().checked_add(time),
            allowed: time,
            cancel_tokens: self.cancel_tokens.clone(),
        }
    }

    /// The same deadline, with one more cancel token.
    pub(crate) fn or(&self, cancel_token: &CancelToken) -> Self {
        let mut more = self.clone();
        more.cancel_tokens.push(cancel_token.clone());
        more
    }

    pub(crate) fn moment(&self) -> Option<Instant> {
        self.moment
    }

    /// As far as `moment`, if that is sooner.
    pub(crate) fn until(&self, moment: Option<Instant>) -> Self {
        let mut sooner = self.clone();
        sooner.moment = self.moment.into_iter().chain(moment).min();
        sooner
    }

    /// How much of the time that was allowed is over.
    pub(crate) fn elapsed(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.allowed
            .saturating_sub(self.moment.map_or(self.allowed, left))
    }

    /// Whether a descriptor is readable, or becomes so within a time. Also `true` where the waiting was called off, for
    /// whoever reads to find out.
    pub(crate) fn is_spoken_to(&self, descriptor: BorrowedFd<'_>, within: Duration) -> bool {
        let moment = Instant::now().checked_add(within);
        !matches!(
            self.until(moment).wait(&[(descriptor, PollFlags::POLLIN)]),
            Ok(Woken::Late)
        )
    }

    /// Whether the deadline has not passed yet.
    pub(crate) fn is_left(&self) -> bool {
        self.moment.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Waits until one of the descriptors is ready. Errors with [`Error::Aborted`] when called off.
    pub(crate) fn wait(&self, descriptors: &[(BorrowedFd<'_>, PollFlags)]) -> Result<Woken> {
        loop {
            let mut polled: Vec<PollFd<'_>> = self
                .cancel_tokens
                .iter()
                .map(|cancel_token| PollFd::new(cancel_token.as_fd(), PollFlags::POLLIN))
                .chain(descriptors.iter().map(|(fd, events)| PollFd::new(*fd, *events)))
                .collect();
            match poll(&mut polled, self.timeout()) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::poll("waiting for a descriptor", errno)),
                Ok(0) if self.moment.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Ok(Woken::Late);
                }
                Ok(0) => continue,
                Ok(_) => {}
            }
            if polled
                .iter()
                .take(self.cancel_tokens.len())
                .any(|fd| fd.any() == Some(true))
            {
                return Err(Error::Aborted);
            }
            return Ok(Woken::Ready);
        }
    }

    /// For work that does not wait: whether the deadline has passed. Errors with [`Error::Aborted`] when called off.
    pub(crate) fn look(&self) -> Result<Woken> {
        if self.moment.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(Woken::Late);
        }
        let now = Self {
            moment: Some(Instant::now()),
            ..self.clone()
        };
        now.wait(&[]).map(|_| Woken::Ready)
    }

    /// Waits for a time, or for being called off.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        self.within(time).wait(&[]).map(drop)
    }

    /// poll(2) counts in milliseconds: rounded up, so that a wait never ends before its deadline.
    fn timeout(&self) -> PollTimeout {
        let Some(deadline) = self.moment else {
            return PollTimeout::NONE;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    }
}

/// Which of the descriptors are readable now (or have ended).
pub(crate) fn readable<'a>(descriptors: impl Iterator<Item = BorrowedFd<'a>>) -> Vec<bool> {
    let mut polled: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // A poll that fails has seen nothing; the next one will.
    let seen = poll(&mut polled, PollTimeout::ZERO).is_ok();
    polled.iter().map(|fd| seen && fd.any() == Some(true)).collect()
}

/// The pauses between one try to reach a peer and the next.
pub(crate) struct Backoff<'a> {
    deadline: &'a Deadline,
    next: Duration,
    /// Since when each try has ended in a hang-up, and how many tries that were.
    hung_up: Option<(Instant, u32)>,
}

/// Tries that a peer must have hung up on, one after the other, before it is given up. A handshake may take long before
/// it ends so, and then few hang-ups say nothing.
const MANY_HANG_UPS: u32 = 8;

impl<'a> Backoff<'a> {
    pub(crate) fn new(deadline: &'a Deadline) -> Self {
        Self {
            deadline,
            next: Duration::from_millis(5),
            hung_up: None,
        }
    }

    /// After a try that has found the place taken, or nobody there. Longer each time, up to 100 ms.
    pub(crate) fn pause(&mut self) -> Result<()> {
        // Whoever has the place now is not the one that hung up.
        self.hung_up = None;
        self.deadline.pause(self.next)?;
        self.next = (self.next * 2).min(Duration::from_millis(100));
        Ok(())
    }

    /// After a peer that has hung up, with these last words if it had any. A peer that does so each time, for as long as a
    /// handshake may take, is given up.
    pub(crate) fn hung_up(&mut self, why: Option<Error>) -> Result<()> {
        let (since, count) = self.hung_up.get_or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        if *count >= MANY_HANG_UPS && since.elapsed() >= self.deadline.allowed {
            return Err(why.unwrap_or_else(|| {
                Error::PeerLost("whoever has the address closes each connection without an answer".into())
            }));
        }
        self.deadline.pause(Duration::from_millis(1))
    }
}

/// A number of permits, for which threads wait in no order. Holds one descriptor.
#[derive(Debug)]
pub(crate) struct Permits(Event);

/// Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Event);

impl Permits {
    pub(crate) fn new(count: usize) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        let birth = Birth::now()?;
        EventFd::from_value_and_flags(u32::try_from(count).unwrap_or(u32::MAX), flags)
            .map(|descriptor| Self(Event { descriptor, birth }))
            .map_err(|errno| Error::system("a descriptor to count permits with", errno))
    }

    /// Waits for a permit.
    pub(crate) fn acquire(&self, deadline: &Deadline) -> Result<Permit<'_>> {
        loop {
            deadline.wait(&[(self.0.descriptor.as_fd(), PollFlags::POLLIN)])?;
            match self.0.descriptor.read() {
                Ok(_) => return Ok(Permit(&self.0)),
                // Another thread was faster.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("waiting for a permit", errno)),
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.0.birth.is_here() {
            // There is room for what was taken out before.
            let _ = self.0.descriptor.write(1);
        }
    }
}
