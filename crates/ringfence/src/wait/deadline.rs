//! How long something is waited for.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    error::{Error, Result},
    wait::cancel::CancelToken,
};

/// Waits until a descriptor (a channel's line, say) is readable or has ended: for bindings to event loops that have nothing of
/// their own.
///
/// # Errors
/// [`Error::Aborted`] when called off.
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

/// A deadline, and the tokens that call the waiting off.
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

    /// Whether a descriptor is readable, or becomes so within a time. Also `true` where the waiting was called off:
    /// the read that follows finds out.
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
                // Who tries again after a failed wait is called off all the same.
                Err(_) if self.cancel_tokens.iter().any(CancelToken::is_used) => return Err(Error::Aborted),
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
        if self.cancel_tokens.is_empty() {
            return Ok(Woken::Ready);
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
