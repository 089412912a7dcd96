//! Waiting of a half of a channel, or of a subscription, for a message or for room.
//!
//! Two orders must be kept. The check that finds nothing comes after the store that announces the sleep, with
//! a barrier between them (`wake::parking`). And every event on the line counts from before that check: a
//! wakeup that another thread takes from the line ends the sleep as well (`wake::doorbell`). This file keeps
//! both orders for threads, and `tokio/line.rs` for tasks.
//!
//! Before it sleeps, a thread may spin ([`SpinThenPark`]), as a merge and a broadcaster do by the same code. Either way it notices its
//! deadline, the end of what it waits for, and the death of its peer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    channel::end::Shared,
    error::{Error, Result},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    wake::parking::Sleeper,
};

/// A half that sleeps on a channel's line. No API: public for the binding alone, whose halves are those of this crate.
pub trait Waits {
    /// The thing that it sleeps for: a message, or room for a number of bytes.
    type For: Copy;

    /// Returns the parts that it needs to sleep.
    fn parking(&mut self) -> Parking<'_>;

    /// Errors if the channel has ended or is corrupt.
    fn check(&mut self) -> Result<()>;

    /// Whether the thing that it sleeps for is there now.
    fn is_available(&mut self, what: Self::For) -> Result<bool>;

    /// Whether the thing will never be there, and that is no error.
    fn is_over(&mut self) -> Result<bool>;

    /// Returns the messages that went through this half so far, and the bytes of their payloads. Publishes
    /// both to the other half of the channel.
    fn counted(&mut self) -> (u64, u64);

    /// Whether a wait for the thing is over.
    #[inline]
    fn is_ready(&mut self, what: Self::For) -> Result<bool> {
        Ok(self.is_available(what)? || self.is_over()?)
    }

    /// Announces that this side sleeps. `true`: it is not ready, and the peer will send a wakeup.
    fn arm_for(&mut self, what: Self::For) -> Result<bool> {
        self.parking().shared.arm()?;
        self.park_for(what)
    }

    /// Like [`Waits::arm_for`], for a caller that has caught up.
    fn park_for(&mut self, what: Self::For) -> Result<bool> {
        self.check()?;
        let Some(sleeper) = self.parking().sleeper else {
            return Ok(false);
        };
        sleeper.park()?;
        self.check_parked(what)
    }

    /// The first half of [`Waits::arm_for`], for a caller that arms many. `true`: one barrier for all of them must be made before the
    /// second half, [`Waits::check_parked`].
    fn announce(&mut self) -> Result<bool> {
        self.parking().shared.arm()?;
        self.check()?;
        Ok(self.parking().sleeper.is_some_and(Sleeper::announce))
    }

    /// The second half of [`Waits::arm_for`]. Returns the same.
    fn check_parked(&mut self, what: Self::For) -> Result<bool> {
        self.check()?;
        if self.parking().sleeper.is_none() {
            return Ok(false);
        }
        let ready = self.is_ready(what);
        if matches!(ready, Ok(false)) {
            self.parking()
                .shared
                .counters
                .sleeps
                .fetch_add(1, Ordering::Relaxed);
            self.counted();
        } else {
            self.unpark();
        }
        ready.map(|ready| !ready)
    }

    /// Announces that this side is awake.
    fn unpark(&mut self) {
        let Parking { shared, sleeper, .. } = self.parking();
        if let Some(sleeper) = sleeper
            && !shared.is_inherited()
        {
            sleeper.unpark();
        }
    }

    /// Reads everything that has arrived on the line, and notices a peer that is gone.
    fn read_line(&mut self) -> Result<()> {
        let shared = self.parking().shared;
        shared.doorbell.read_wakeups();
        shared.end_if_gone();
        self.check()
    }
}

/// The parts of a half that it needs to sleep.
pub struct Parking<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    /// `None` once the peer is gone, or the channel has ended: no wakeup would arrive.
    pub(crate) sleeper: Option<&'a mut Sleeper<OwnRegion, PeerRegion>>,
    pub(crate) spins: &'a mut SpinPacer,
}

opaque! { [] Parking<'_>; }

/// The most checks between two reads of the clock, which costs as much as many of them.
const MAX_CHECKS_PER_CLOCK: u32 = 64;
/// If the checks between two reads of the clock take longer, as with many sources or subscribers, the clock is read after each one.
const SLOW_CHECKS: Duration = Duration::from_micros(5);
/// The interval at which a wait that spins asks the kernel whether the peer has died. The call costs a thousandth of that time.
const LINE_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// A wait that spins first and then sleeps. Each thread that waits on a ring does so by [`SpinThenPark::wait_until`].
pub(crate) trait SpinThenPark {
    /// See [`Waits::For`].
    type For: Copy;

    /// The time for which a wait spins before it sleeps.
    fn spin_time(&mut self) -> Duration;

    /// Decides whether this wait spins.
    fn spin_pacer(&mut self) -> &mut SpinPacer;

    /// Whether the thing is there now. Called in a tight loop, so it makes no system call.
    fn spin_check(&mut self, what: Self::For) -> Result<bool>;

    /// Whether the thing will never be there, according to the peer's memory. Called as often as the clock is
    /// read.
    fn is_finished(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Notices a peer that has died or hung up. Called once per [`LINE_CHECK_INTERVAL`].
    fn check_line(&mut self) -> Result<()> {
        Ok(())
    }

    /// Parks, checks once more, and sleeps until it is woken or the deadline has passed.
    fn park_until(&mut self, what: Self::For, deadline: Option<Instant>) -> Result<Slept>;

    /// Waits until the thing is there, or never will be. `false`: the deadline has passed.
    fn wait_until(&mut self, what: Self::For, deadline: Option<Instant>) -> Result<bool> {
        if self.spin_until(what, deadline, || false)? {
            return Ok(true);
        }
        loop {
            match self.park_until(what, deadline)? {
                Slept::Ready => return Ok(true),
                Slept::Woken => {}
                Slept::Late => return Ok(false),
            }
        }
    }

    /// Waits until `take` returns something. `None`: it never will.
    #[inline]
    fn poll_until<T>(
        &mut self,
        deadline: Option<Instant>,
        mut take: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<Option<T>>
    where
        Self: SpinThenPark<For = ()>,
    {
        loop {
            if let Some(found) = take(self)? {
                return Ok(Some(found));
            }
            if self.is_finished()? {
                return Ok(None);
            }
            if !self.wait_until((), deadline)? {
                return Err(Error::TimedOut);
            }
        }
    }

    /// The first part of [`SpinThenPark::wait_until`]. `false`: the time for it is over. `is_woken`: whether another thread has
    /// ended it.
    fn spin_until(
        &mut self,
        what: Self::For,
        deadline: Option<Instant>,
        is_woken: impl Fn() -> bool,
    ) -> Result<bool> {
        let time = self.spin_time();
        if time.is_zero() || !self.spin_pacer().must_spin() {
            return Ok(false);
        }
        let start = Instant::now();
        let mut now = start;
        // A time that overflows the clock has no end.
        let end = start.checked_add(time).into_iter().chain(deadline).min();
        let mut last_check = start;
        let mut checks = 1;
        loop {
            for _ in 0..checks {
                if is_woken() || self.spin_check(what)? {
                    self.spin_pacer().hit();
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            let took = now.elapsed();
            now += took;
            checks = if took > SLOW_CHECKS {
                1
            } else {
                MAX_CHECKS_PER_CLOCK.min(4 * checks)
            };
            if now.duration_since(last_check) >= LINE_CHECK_INTERVAL {
                last_check = now;
                self.check_line()?;
            }
            if self.is_finished()? {
                return Ok(true);
            }
            if end.is_some_and(|end| now >= end) {
                self.spin_pacer().spun_for_nothing(now - start, time);
                return Ok(false);
            }
        }
    }
}

/// Decides which waits of a half spin.
///
/// A wait that spun for the whole time and then slept has used CPU for nothing, and so would the next ones while the peer stays slow. So the
/// next wait does not spin, after another such wait the next three, up to [`MAX_SKIPS`]. A wait that finds something while it spins
/// resets this. Waits that end at their deadlines count as one once they have spun for the whole time together.
#[derive(Debug, Default)]
pub(crate) struct SpinPacer {
    /// The time of the waits that spun for nothing since the last skips.
    spent: Duration,
    /// Waits that are still to be skipped.
    skips: u32,
    /// Waits that are skipped after the next one that spins for nothing.
    next_skips: u32,
}

/// The most waits that do not spin before one tries again.
const MAX_SKIPS: u32 = 63;

impl SpinPacer {
    /// Whether this wait spins.
    fn must_spin(&mut self) -> bool {
        let must_spin = self.skips == 0;
        self.skips = self.skips.saturating_sub(1);
        must_spin
    }

    fn hit(&mut self) {
        *self = Self::default();
    }

    /// Counts a wait that spun for nothing. `whole`: the time for which a wait spins unless its deadline ends it.
    fn spun_for_nothing(&mut self, time: Duration, whole: Duration) {
        self.spent += time;
        if self.spent < whole {
            return;
        }
        self.spent = Duration::ZERO;
        self.next_skips = (2 * self.next_skips + 1).min(MAX_SKIPS);
        self.skips = self.next_skips;
    }
}

/// The reason why a wait has stopped sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slept {
    /// The thing is there, or never will be.
    Ready,
    /// An event has arrived. The thing may be there now.
    Woken,
    /// The deadline has passed.
    Late,
}

impl<W: Waits> SpinThenPark for W {
    type For = W::For;

    fn spin_time(&mut self) -> Duration {
        self.parking().shared.busy_poll
    }

    fn spin_pacer(&mut self) -> &mut SpinPacer {
        self.parking().spins
    }

    #[inline]
    fn spin_check(&mut self, what: W::For) -> Result<bool> {
        self.is_available(what)
    }

    fn is_finished(&mut self) -> Result<bool> {
        self.is_over()
    }

    fn check_line(&mut self) -> Result<()> {
        self.parking().shared.check_peer();
        Ok(())
    }

    fn park_until(&mut self, what: W::For, deadline: Option<Instant>) -> Result<Slept> {
        let shared = Arc::clone(self.parking().shared);
        shared.catch_up();
        let generation = shared.doorbell.generation();
        if !self.park_for(what)? {
            return Ok(Slept::Ready);
        }
        let woken = shared.doorbell.wait(generation, deadline);
        self.unpark();
        shared.end_if_gone();
        if self.is_ready(what)? {
            return Ok(Slept::Ready);
        }
        Ok(if woken? { Slept::Woken } else { Slept::Late })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A half whose peer answers while it spins, or only once it sleeps.
    struct Half {
        spin_time: Duration,
        peer_is_fast: bool,
        checks: u32,
        check_time: Duration,
        spins: SpinPacer,
    }

    impl Half {
        fn spinning_for(spin_time: Duration) -> Self {
            Self {
                spin_time,
                peer_is_fast: false,
                checks: 0,
                check_time: Duration::ZERO,
                spins: SpinPacer::default(),
            }
        }

        /// Waits once, and returns whether it spun.
        fn wait(&mut self, peer_is_fast: bool) -> bool {
            (self.peer_is_fast, self.checks) = (peer_is_fast, 0);
            assert!(self.wait_until((), None).unwrap());
            self.checks > 0
        }
    }

    impl SpinThenPark for Half {
        type For = ();

        fn spin_time(&mut self) -> Duration {
            self.spin_time
        }

        fn spin_pacer(&mut self) -> &mut SpinPacer {
            &mut self.spins
        }

        fn spin_check(&mut self, (): ()) -> Result<bool> {
            self.checks += 1;
            if !self.check_time.is_zero() {
                std::thread::sleep(self.check_time);
            }
            Ok(self.peer_is_fast)
        }

        fn park_until(&mut self, (): (), _deadline: Option<Instant>) -> Result<Slept> {
            Ok(Slept::Ready)
        }
    }

    #[test]
    fn half_with_a_slow_peer_spins_less_and_less() {
        let mut half = Half::spinning_for(Duration::from_nanos(1));
        let spun: Vec<_> = (0..300).filter(|_| half.wait(false)).collect();
        assert_eq!(spun, [0, 2, 6, 14, 30, 62, 126, 190, 254]);
    }

    #[test]
    fn half_spins_at_each_wait_once_its_peer_is_fast() {
        let mut half = Half::spinning_for(Duration::from_nanos(1));
        while half.spins.next_skips < MAX_SKIPS {
            half.wait(false);
        }
        let slept = (0..=MAX_SKIPS).take_while(|_| !half.wait(true)).count();
        assert_eq!(slept, MAX_SKIPS as usize);
        assert!((0..100).all(|_| half.wait(true)));
        assert!(half.wait(false) && !half.wait(false) && half.wait(false));
    }

    #[test]
    fn wait_that_ends_soon_at_its_deadline_is_no_evidence_of_a_slow_peer() {
        let mut half = Half::spinning_for(Duration::from_secs(3600));
        let past = Instant::now();
        for _ in 0..10 {
            assert!(!half.spin_until((), Some(past), || false).unwrap());
        }
        assert!(half.wait(true));
    }

    #[test]
    fn waits_that_end_at_their_deadlines_do_not_spin_forever() {
        let mut half = Half::spinning_for(Duration::from_micros(50));
        let past = Instant::now();
        let skips = (0..10_000).any(|_| {
            half.checks = 0;
            assert!(!half.spin_until((), Some(past), || false).unwrap());
            half.checks == 0
        });
        assert!(skips);
    }

    #[test]
    fn slow_checks_do_not_spin_for_longer() {
        let mut half = Half::spinning_for(Duration::from_millis(4));
        half.check_time = Duration::from_millis(1);
        assert!(half.wait(false) && half.checks <= 4, "{}", half.checks);
    }
}
