//! What one half of a channel needs of the other process, and how it waits before it sleeps.

use std::time::{Duration, Instant};

use crate::{
    channel::open::Opened,
    error::Result,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    wake::parking::{ParkingSpot, Sleeper, Waker},
};

/// After this many looks that found nothing, a half that only ever polls looks at the line as well, so that it
/// notices its peer's end without a system call each time.
pub(crate) const LOOKS_PER_GLANCE: u32 = 4096;

/// What one half needs of the other process: gone with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sleeper: Sleeper<OwnRegion, PeerRegion>,
    pub(crate) waker: Waker<OwnRegion, PeerRegion>,
}

impl Link {
    /// `sleeper`: what this half sleeps for; `waker`: what the peer's other half does.
    pub(crate) fn new(opened: &Opened, sleeper: ParkingSpot, waker: ParkingSpot) -> Self {
        let barriers = opened.barriers;
        Self {
            sleeper: Sleeper::new(opened.own.clone(), opened.peer.clone(), sleeper, barriers),
            waker: Waker::new(opened.own.clone(), opened.peer.clone(), waker, barriers),
        }
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
