//! The state of a channel, and what each end means to a call.

use std::sync::atomic::Ordering;

use crate::{
    channel::reason::CloseReason,
    error::{Error, Result},
    fork::{Mark, inherited},
};

/// The state of a channel. Each end but the first two tells who ended it, and why.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelState {
    /// The channel belongs to the process that this one was forked from.
    Inherited = Mark::INHERITED,
    Open = Mark::FRESH,
    ClosedHere = 1,
    ClosedByPeer,
    PeerExited,
    Corrupt,
    Refused,
    Exposed,
    ExposedAtPeer,
    LeftByPeer,
    /// At a publisher: its subscriber is let go of.
    Evicted,
    /// At a subscriber.
    EvictedByPeer,
}

impl ChannelState {
    const ALL: [Self; 12] = [
        Self::Inherited,
        Self::Open,
        Self::ClosedHere,
        Self::ClosedByPeer,
        Self::PeerExited,
        Self::Corrupt,
        Self::Refused,
        Self::Exposed,
        Self::ExposedAtPeer,
        Self::LeftByPeer,
        Self::Evicted,
        Self::EvictedByPeer,
    ];

    /// What a program is told of the end of a channel. `None`: there is none.
    pub(crate) fn close_reason(self) -> Option<CloseReason> {
        match self {
            Self::Open => None,
            Self::ClosedHere | Self::ClosedByPeer | Self::LeftByPeer | Self::Refused | Self::Inherited => {
                Some(CloseReason::Closed)
            }
            Self::PeerExited => Some(CloseReason::Exited),
            Self::Exposed | Self::ExposedAtPeer => Some(CloseReason::Exposed),
            Self::Corrupt => Some(CloseReason::Corrupt),
            // The peer of a pair never evicts. A hostile peer that stores this phase ends its channel with it.
            Self::Evicted | Self::EvictedByPeer => Some(CloseReason::Evicted),
        }
    }

    /// What a call on an ended channel gets.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Open => Ok(()),
            Self::Inherited => Err(inherited()),
            Self::ClosedHere => Err(Error::Closed("the channel is closed")),
            Self::ClosedByPeer => Err(Error::PeerLost("it has closed the channel".into())),
            Self::LeftByPeer => Err(Error::PeerLost("it has left the address".into())),
            // The line closes by itself when its process ends, and when it executes another program.
            Self::PeerExited => Err(Error::PeerLost(
                "its process has ended, or executes another program now".into(),
            )),
            Self::Refused => Err(Error::Closed(
                "the channel was closed: its peer is no longer who the policy asks for",
            )),
            Self::Exposed => Err(Error::ObjectExposed(
                "another process tried to open this side's memory, which was wiped; the channel is closed".into(),
            )),
            Self::ExposedAtPeer => Err(Error::ObjectExposed(
                "as the peer says, another process tried to open its memory, which it has wiped; the channel is closed"
                    .into(),
            )),
            Self::Corrupt => Err(Error::RingCorrupt("as was found before".into())),
            Self::Evicted => Err(Error::Closed("the subscriber was evicted")),
            Self::EvictedByPeer => Err(Error::Evicted),
        }
    }
}

/// A [`ChannelState`] in one byte, which every call looks at. It reads as [`ChannelState::Inherited`] in a child.
#[derive(Debug)]
pub(crate) struct AtomicState(Mark);

impl AtomicState {
    /// Of a channel that is open.
    pub(crate) fn open(mark: Mark) -> Self {
        Self(mark)
    }

    #[inline]
    pub(crate) fn is(&self, state: ChannelState, ordering: Ordering) -> bool {
        self.0.load(ordering) == state as u8
    }

    pub(crate) fn get(&self) -> ChannelState {
        let byte = self.0.load(Ordering::Acquire);
        ChannelState::ALL
            .into_iter()
            .find(|state| *state as u8 == byte)
            .expect("nothing but a state is stored")
    }

    pub(crate) fn set(&self, state: ChannelState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{ChannelState as State, *};

    #[test]
    fn each_end_has_its_reason_and_its_error() {
        let (closed, exited) = (Some(CloseReason::Closed), Some(CloseReason::Exited));
        let (exposed, corrupt) = (Some(CloseReason::Exposed), Some(CloseReason::Corrupt));
        let evicted = Some(CloseReason::Evicted);
        for (state, reason, code) in [
            (State::Inherited, closed, "CLOSED"),
            (State::Open, None, ""),
            (State::ClosedHere, closed, "CLOSED"),
            (State::ClosedByPeer, closed, "PEER_LOST"),
            (State::PeerExited, exited, "PEER_LOST"),
            (State::Corrupt, corrupt, "RING_CORRUPT"),
            (State::Refused, closed, "CLOSED"),
            (State::Exposed, exposed, "OBJECT_EXPOSED"),
            (State::ExposedAtPeer, exposed, "OBJECT_EXPOSED"),
            (State::LeftByPeer, closed, "PEER_LOST"),
            (State::Evicted, evicted, "CLOSED"),
            (State::EvictedByPeer, evicted, "EVICTED"),
        ] {
            assert_eq!(state.close_reason(), reason, "{state:?}");
            let checked = state.check();
            assert_eq!(checked.err().map_or("", |error| error.code()), code, "{state:?}");
        }
    }

    #[test]
    fn a_state_is_what_was_set_last_and_no_other() {
        let atomic = AtomicState::open(Mark::new().unwrap());
        assert_eq!(atomic.get(), State::Open);
        for state in State::ALL {
            atomic.set(state);
            assert_eq!(atomic.get(), state);
            for other in State::ALL {
                assert_eq!(atomic.is(other, Ordering::Acquire), other == state);
            }
        }
    }
}
