//! Why a channel has ended, as the program sees it.

use std::fmt;

/// Why a channel or a subscription has ended.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// One side closed it, or no side sends any more and everything was read.
    Closed,
    /// The peer's process exited without closing it.
    Exited,
    /// The peer violated the protocol.
    Corrupt,
    /// Another process tried to open the shared memory of either side. That memory is wiped, and unread messages are lost.
    Exposed,
    /// The subscriber delayed its publisher for longer than [`Options::stall`](crate::Options::stall) allows.
    Evicted,
}

impl fmt::Display for CloseReason {
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
