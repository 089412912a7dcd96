//! The numbers that the binding and JavaScript exchange. They stand here, or in the core; JavaScript asks for them once.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]

use napi_derive::napi;
use ringfence::{CloseReason, GoneReason, Verifier, binding};

/// `failure()` knows more.
pub(crate) const FAILED: i32 = -1;
/// A message is through.
pub(crate) const WHOLE: i32 = -2;
/// No more will come, and everything was read.
pub(crate) const ENDED: i32 = -3;
/// Another message is next than the one that memory was made for.
pub(crate) const OTHER: i32 = -4;
/// The size of a message that does not fit is told as `LARGE - size`.
pub(crate) const LARGE: i32 = -16;
/// What `pull` is told of the call: another one of the same round, or the first of a round.
pub(crate) const MORE: u32 = 1;
pub(crate) const FIRST: u32 = 2;

/// Why a channel has ended, by number: its place in [`Ended::ALL`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    /// It has not.
    No,
    Closed,
    Exited,
    Corrupt,
    Exposed,
    /// This side has closed it: a later look at the peer has refused the peer.
    Refused,
    /// A publisher has let go of a subscriber that held it up for too long.
    Evicted,
}

impl Ended {
    const ALL: [Self; 7] = [
        Self::No,
        Self::Closed,
        Self::Exited,
        Self::Corrupt,
        Self::Exposed,
        Self::Refused,
        Self::Evicted,
    ];

    /// Of what can be looked at again.
    pub(crate) fn of(reason: Option<impl Into<Self>>, verifier: impl FnOnce() -> Verifier) -> Self {
        match reason {
            None => Self::No,
            Some(_) if verifier().has_refused() => Self::Refused,
            Some(reason) => reason.into(),
        }
    }

    pub(crate) const fn number(self) -> i32 {
        self as i32
    }

    /// As JavaScript's `closed` tells it.
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::No => None,
            Self::Closed | Self::Refused => Some("closed"),
            Self::Exited => Some("exited"),
            Self::Corrupt => Some("corrupt"),
            Self::Exposed => Some("exposed"),
            Self::Evicted => Some("evicted"),
        }
    }
}

impl From<CloseReason> for Ended {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Closed => Self::Closed,
            CloseReason::Exited => Self::Exited,
            CloseReason::Corrupt => Self::Corrupt,
            _ => Self::Exposed,
        }
    }
}

impl From<GoneReason> for Ended {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Closed => Self::Closed,
            GoneReason::Exited => Self::Exited,
            GoneReason::Corrupt => Self::Corrupt,
            GoneReason::Evicted => Self::Evicted,
            _ => Self::Exposed,
        }
    }
}

/// All of them, for JavaScript.
#[napi(object, object_from_js = false)]
pub struct Answers {
    pub failed: i32,
    pub whole: i32,
    pub ended: i32,
    pub large: i32,
    pub other: i32,
    pub more: u32,
    pub first: u32,
    /// Bytes of a packed record's header.
    pub header: u32,
    /// Flags of a packed record.
    pub flags: u32,
    /// Why a channel has ended, each at its number; the first is that it has not.
    pub reasons: Vec<Option<&'static str>>,
    /// The number of the end that this side has made, since a later look has refused the peer.
    pub refused: i32,
}

/// The numbers by which the functions of a channel answer, and the layout of packed records.
#[napi]
pub fn answers() -> Answers {
    Answers {
        failed: FAILED,
        whole: WHOLE,
        ended: ENDED,
        large: LARGE,
        other: OTHER,
        more: MORE,
        first: FIRST,
        header: u32::try_from(binding::HEADER).expect("a header is small"),
        flags: binding::WHOLE,
        reasons: Ended::ALL.map(Ended::name).into(),
        refused: Ended::Refused.number(),
    }
}
