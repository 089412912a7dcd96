//! What a program is told of the end of a channel.

use std::fmt;

/// Why a channel has ended.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// One side closed it, or both had ended their sending and everything was read.
    Closed,
    /// The peer's process ended without closing it.
    Exited,
    /// The peer wrote what no honest peer writes.
    Corrupt,
    /// Another process tried to open the shared memory, of this side or of the peer: what was in it is wiped, and what was not
    /// read before is lost.
    Exposed,
}

/// Why a subscriber is gone from its publisher, and a subscription has ended: as of a channel, or that it was evicted.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// One side closed it, or the publisher has ended and everything was read.
    Closed,
    /// The other process ended without closing it.
    Exited,
    /// The other process wrote what no honest one writes.
    Corrupt,
    /// Another process tried to open the shared memory, of this side or of the other: what was in it is wiped.
    Exposed,
    /// The subscriber has held its publisher up for longer than [`Options::stall`](crate::Options::stall) allows.
    Evicted,
}

impl From<CloseReason> for GoneReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Closed => Self::Closed,
            CloseReason::Exited => Self::Exited,
            CloseReason::Corrupt => Self::Corrupt,
            CloseReason::Exposed => Self::Exposed,
        }
    }
}

impl fmt::Display for GoneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Exited => "exited",
            Self::Corrupt => "corrupt",
            Self::Exposed => "exposed",
            Self::Evicted => "evicted",
        })
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Exited => "exited",
            Self::Corrupt => "corrupt",
            Self::Exposed => "exposed",
        })
    }
}
