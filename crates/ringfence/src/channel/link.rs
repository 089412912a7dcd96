//! What one half of a channel needs of the other process.

use crate::{
    channel::open::Opened,
    region::own::OwnRegion,
    region::peer::PeerRegion,
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
