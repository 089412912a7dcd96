//! Numbers that the binding and JavaScript exchange. Rust defines all of them; JavaScript reads them once.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]

use napi_derive::napi;
use ringfence::{CloseReason, binding};

/// The call failed: `failure()` returns the error.
pub(crate) const FAILED: i32 = -1;
/// A message is complete.
pub(crate) const WHOLE: i32 = -2;
/// No more messages will arrive, and all were read.
pub(crate) const ENDED: i32 = -3;
/// The next message is not the one that the memory was allocated for, or no call frame.
pub(crate) const MISMATCH: i32 = -4;
/// The next message is a call frame.
pub(crate) const CALL_NEXT: i32 = -5;
/// As `WHOLE`, and the message has attachments.
pub(crate) const ATTACHED: i32 = -6;
/// `TOO_LARGE - size` answers that a message of `size` bytes does not fit.
pub(crate) const TOO_LARGE: i32 = -16;
/// Argument of `pull`: a further call of the same round, or the first call of a round.
pub(crate) const MORE: u32 = 1;
pub(crate) const FIRST: u32 = 2;

/// Reason why a channel has ended, by number: its index in [`EndReason::ALL`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum EndReason {
    /// The channel is open.
    Open,
    Closed,
    Lost,
    Corrupt,
    Exposed,
    /// This side has closed the channel, because a later check refused the peer.
    Refused,
    /// The publisher evicted a slow subscriber.
    Evicted,
}

impl EndReason {
    const ALL: [Self; 7] = [
        Self::Open,
        Self::Closed,
        Self::Lost,
        Self::Corrupt,
        Self::Exposed,
        Self::Refused,
        Self::Evicted,
    ];

    pub(crate) const fn number(self) -> i32 {
        self as i32
    }

    /// The name in JavaScript's `closed` promise.
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::Open => None,
            Self::Closed => Some("closed"),
            Self::Lost => Some("lost"),
            Self::Corrupt => Some("corrupt"),
            Self::Exposed => Some("exposed"),
            Self::Refused => Some("refused"),
            Self::Evicted => Some("evicted"),
        }
    }
}

impl From<Option<CloseReason>> for EndReason {
    fn from(reason: Option<CloseReason>) -> Self {
        let Some(reason) = reason else { return Self::Open };
        match reason {
            CloseReason::Closed => Self::Closed,
            CloseReason::Lost => Self::Lost,
            CloseReason::Corrupt => Self::Corrupt,
            CloseReason::Evicted => Self::Evicted,
            CloseReason::Refused => Self::Refused,
            _ => Self::Exposed,
        }
    }
}

/// All of these numbers, for JavaScript.
#[napi(object, object_from_js = false)]
pub struct Answers {
    pub failed: i32,
    pub whole: i32,
    pub ended: i32,
    pub too_large: i32,
    pub mismatch: i32,
    pub call_next: i32,
    pub attached: i32,
    pub more: u32,
    pub first: u32,
    /// Length of a packed record's header in bytes.
    pub header: u32,
    /// Flags of a packed record.
    pub flags: u32,
    /// The further flag of a call frame.
    pub call: u32,
    /// Reasons why a channel has ended, by number; the first means that it is open.
    pub reasons: Vec<Option<&'static str>>,
}

/// Returns the numbers with which a channel's functions answer, and the layout of packed records.
#[napi]
pub fn answers() -> Answers {
    Answers {
        failed: FAILED,
        whole: WHOLE,
        ended: ENDED,
        too_large: TOO_LARGE,
        mismatch: MISMATCH,
        call_next: CALL_NEXT,
        attached: ATTACHED,
        more: MORE,
        first: FIRST,
        header: u32::try_from(binding::HEADER).expect("a header is small"),
        flags: binding::WHOLE,
        call: binding::Tag::CALL.bits(),
        reasons: EndReason::ALL.map(EndReason::name).into(),
    }
}
