//! How a half of a channel, or a subscription, sleeps until there is something for it: a message, or room for one.
//!
//! Two orders must be kept. The look that finds nothing comes behind the word that says that this side sleeps, with a barrier between
//! them (`wake::parking`). And what is heard on the line counts from before that look: a bell that another thread takes from the line
//! ends the sleep as well (`wake::doorbell`). Both are kept here, for threads; `tokio/line.rs` does it for tasks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    channel::shared::Shared,
    error::{Error, Result},
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    wake::parking::Sleeper,
};

/// What sleeps on a channel's line. Not to be named outside of this crate, as the sources that build on it.
pub trait Waits {
    /// What it sleeps for. Of a message there is no more to be said; of room, for how many bytes.
    type For: Copy;

    fn parking(&mut self) -> Parking<'_>;

    /// What is in the way of any sleep: the end, or a lie.
    fn check(&mut self) -> Result<()>;

    /// Whether there is now what it sleeps for.
    fn is_there(&mut self, what: Self::For) -> Result<bool>;

    /// Whether there never will be, and that is no error.
    fn is_over(&mut self) -> Result<bool>;

    /// Messages that went through it by now, and the bytes of their payloads. The other half of the channel can see them from here on.
    fn counted(&mut self) -> (u64, u64);

    #[inline]
    fn is_ready(&mut self, what: Self::For) -> Result<bool> {
        Ok(self.is_there(what)? || self.is_over()?)
    }

    /// Sleeps until it is ready. `false`: the deadline has passed.
    fn wait_for(&mut self, what: Self::For, deadline: Option<Instant>) -> Result<bool> {
        let time = self.busy_poll();
        if spin(time, || self.is_there(what))? {
            return Ok(true);
        }
        let shared = Arc::clone(self.parking().shared);
        loop {
            shared.catch_up();
            let generation = shared.doorbell.generation();
            if !self.park_for(what)? {
                return Ok(true);
            }
            let woken = shared.doorbell.wait(generation, deadline);
            self.unpark();
            shared.notice();
            if self.is_ready(what)? {
                return Ok(true);
            }
            if !woken? {
                return Ok(false);
            }
        }
    }

    /// Says that this side sleeps. `true`: it is not ready, and the peer will ring.
    fn arm_for(&mut self, what: Self::For) -> Result<bool> {
        self.parking().shared.arm()?;
        self.park_for(what)
    }

    /// As [`Waits::arm_for`], for a caller who has caught up.
    fn park_for(&mut self, what: Self::For) -> Result<bool> {
        self.check()?;
        let Some(sleeper) = self.parking().sleeper else {
            return Ok(false);
        };
        sleeper.park()?;
        self.look_parked(what)
    }

    /// The first half of [`Waits::arm_for`], for a caller that arms many. `true`: one barrier for all of them must be made before the
    /// second half, [`Waits::look_parked`].
    fn announce(&mut self) -> Result<bool> {
        self.parking().shared.arm()?;
        self.check()?;
        Ok(self.parking().sleeper.is_some_and(Sleeper::announce))
    }

    /// The second half of [`Waits::arm_for`], and answers as that does.
    fn look_parked(&mut self, what: Self::For) -> Result<bool> {
        self.check()?;
        if self.parking().sleeper.is_none() {
            return Ok(false);
        }
        let ready = self.is_ready(what);
        if matches!(ready, Ok(false)) {
            self.parking().shared.counters.slept();
            self.counted();
        } else {
            self.unpark();
        }
        ready.map(|ready| !ready)
    }

    /// Says that this side is awake.
    fn unpark(&mut self) {
        let Parking { shared, sleeper } = self.parking();
        if let Some(sleeper) = sleeper
            && !shared.is_inherited()
        {
            sleeper.unpark();
        }
    }

    /// Reads whatever has come over the line, and notices a peer that is gone.
    fn read_line(&mut self) -> Result<()> {
        let shared = self.parking().shared;
        shared.doorbell_here()?.read_bells();
        shared.notice();
        self.check()
    }

    /// As [`Waits::read_line`], but the line is read when this side is armed next, or by the next call.
    fn leave_line(&mut self) -> Result<()> {
        let shared = self.parking().shared;
        shared.doorbell_here()?.leave_bells();
        shared.notice();
        self.check()
    }

    /// How long a wait spins before it sleeps.
    fn busy_poll(&mut self) -> Duration {
        self.parking().shared.busy_poll
    }
}

/// What one needs to sleep.
#[derive(Debug)]
pub struct Parking<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    /// `None` once the peer is gone, or the channel has ended: nobody would ring.
    pub(crate) sleeper: Option<&'a mut Sleeper<OwnRegion, PeerRegion>>,
}

/// What is read until it ends: one ring, or many.
pub(crate) trait Awaited {
    /// Whether no more will come, and everything was read.
    fn is_through(&mut self) -> Result<bool>;

    /// Sleeps until there is something to read, or no more will come. `false`: the deadline has passed.
    fn sleep_until(&mut self, deadline: Option<Instant>) -> Result<bool>;

    /// What `take` finds, once it finds something. `None`: no more will come.
    #[inline]
    fn take_by<T>(
        &mut self,
        deadline: Option<Instant>,
        mut take: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        loop {
            if let Some(taken) = take(self)? {
                return Ok(Some(taken));
            }
            if self.is_through()? {
                return Ok(None);
            }
            if !self.sleep_until(deadline)? {
                return Err(Error::TimedOut);
            }
        }
    }
}

impl<R: Waits<For = ()>> Awaited for R {
    fn is_through(&mut self) -> Result<bool> {
        self.is_over()
    }

    fn sleep_until(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.wait_for((), deadline)
    }
}

/// Spins until `done`, for at most `time`.
pub(crate) fn spin(time: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    if time.is_zero() {
        return Ok(false);
    }
    // A time that the clock cannot count has no end.
    let end = Instant::now().checked_add(time);
    loop {
        // The clock costs as much as many looks.
        for _ in 0..64 {
            if done()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}
