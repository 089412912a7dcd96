//! How a channel ends: by a call here, by what the peer says or does, and by what this side finds. Each end goes through
//! [`Shared::finish`] or [`Shared::leave`], once.

use std::sync::atomic::{Ordering, fence};

use crate::{
    channel::reason::CloseReason,
    channel::shared::{Held, OnEnd, Shared},
    channel::state::ChannelState,
    error::{Error, Result},
    fork::inherited,
    region::access::{Readable, Writable},
    region::layout,
    region::phase::{Phase, Step},
    trace::Tie,
    wait::deadline::{Deadline, Woken},
};

/// In the word that says where a subscriber's reading ends: it was said. Positions are multiples of eight.
pub(crate) const END_TOLD: u64 = 1;

/// What became of the place of a member that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The peer has it.
    Taken,
    /// The peer has it, or will have it: it has not answered yet.
    Unanswered,
    /// No peer is there to take it.
    NoSuccessor,
}

impl Held {
    /// The channel has ended here, and the peer's answer is waited for: every other end takes all of this out of its lock.
    pub(super) fn has_left(&self) -> bool {
        self.phase.step() != Step::Open
    }

    /// The peer may be reading still. Its head lags behind, if anything.
    fn keep_what_is_unread(&self) {
        self.own
            .keep_from(self.peer.load(layout::HEAD, Ordering::Acquire));
    }

    /// Another process tries to open this side's object: says so, and wipes it.
    fn expose(&mut self) {
        if self.phase.take(Step::Exposed) {
            // A reader that copies what is wiped next finds the phase changed after that.
            fence(Ordering::SeqCst);
            self.own.wipe();
        }
    }
}

/// An end that is not told yet. When this is dropped, those who watch the process hear of it, and the program after them.
#[derive(Debug)]
pub(crate) struct Untold {
    tie: Tie,
    reason: Option<CloseReason>,
    /// These are dropped in this order. Not under the lock: the last of a region or of a mailbox waits for the thread that hears alarms,
    /// and that may wait for the lock.
    _on_end: Option<Box<dyn OnEnd>>,
    _held: Held,
}

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some(reason) = &self.reason {
            self.tie.closed(reason);
        }
    }
}

impl Shared {
    /// Ends the channel, once. The address is free, and the line closed to both sides, when this returns.
    pub(crate) fn finish(&self, end: ChannelState) {
        drop(self.end(end));
    }

    /// As [`Shared::finish`], before anybody in this process is told: where the ring is to be wiped or the peer to be cut off, it is
    /// when this returns. `None`: nothing is left to be told here.
    pub(crate) fn end(&self, end: ChannelState) -> Option<Untold> {
        match end {
            // Not waited for: what the peer sends to a side that closes is lost in any case, and the thread that has heard
            // the alarm is the one that would be waited for.
            ChannelState::ClosedHere
            | ChannelState::Refused
            | ChannelState::Exposed
            | ChannelState::Evicted => {}
            // It may have been killed between a token and the word of how many there are.
            ChannelState::PeerExited => self.hear_all(),
            ChannelState::ClosedByPeer
            | ChannelState::LeftByPeer
            | ChannelState::ExposedAtPeer
            | ChannelState::EvictedByPeer
            | ChannelState::Corrupt => self.hear_out(),
            // No end: see `ChannelState`.
            ChannelState::Open | ChannelState::Inherited => return None,
        }
        let mut guard = self.held().ok()?;
        if let Some(held) = guard.as_mut().filter(|held| held.has_left()) {
            // The thread that waits for the answer lets go of all else.
            if end == ChannelState::Exposed {
                held.expose();
            }
            return None;
        }
        let mut held = guard.take()?;
        let mut on_end = held.on_end.take();
        let succeeds = on_end.as_mut().is_some_and(|on_end| on_end.end(end));
        if end == ChannelState::Exposed {
            held.expose();
        } else {
            if matches!(
                end,
                ChannelState::ClosedHere | ChannelState::Refused | ChannelState::Corrupt
            ) {
                held.keep_what_is_unread();
            }
            held.phase.take(match end {
                ChannelState::Evicted => Step::Evicted,
                _ if succeeds => Step::Succeeds,
                _ => Step::Closed,
            });
        }
        self.state.set(end);
        self.doorbell.hang_up();
        drop(guard);
        Some(Untold {
            tie: self.tie.clone(),
            reason: self.close_reason(),
            _on_end: on_end,
            _held: held,
        })
    }

    /// Those who watch the process hear of an end before the program does.
    fn tell_end(&self) {
        if let Some(reason) = self.close_reason() {
            self.tie.closed(&reason);
        }
    }

    /// As [`Shared::finish`], for a member that leaves its place to its peer: says so, and waits for the answer, as long
    /// as `deadline` allows. A call that sends or reads here meanwhile is told that the channel is closed.
    pub(crate) fn leave(&self, deadline: &Deadline) -> Handover {
        let Ok(mut guard) = self.held() else {
            return Handover::NoSuccessor;
        };
        let Some(held) = guard.as_mut().filter(|held| !held.has_left()) else {
            return Handover::NoSuccessor;
        };
        let mut on_end = held.on_end.take();
        if let Some(on_end) = &mut on_end {
            on_end.end(ChannelState::ClosedHere);
        }
        held.keep_what_is_unread();
        self.state.set(ChannelState::ClosedHere);
        held.phase.take(Step::Left);
        let peer = held.peer.clone();
        self.doorbell.fall_silent();
        drop(guard);
        let ends = self.doorbell.ends();
        let watched: Vec<_> = ends.watched().collect();
        // A wait that fails has heard nothing, as one that was too long.
        let answered = matches!(deadline.wait(&watched), Ok(Woken::Ready));
        let phase = Phase::from_word(peer.load(layout::PHASE, Ordering::Acquire));
        self.doorbell.hang_up();
        // Until now for the alarm, which wipes.
        let held = self.held().map(|mut held| held.take());
        self.tell_end();
        drop((held, on_end));
        match phase.map(|phase| phase.step) {
            Some(Step::Succeeds) => Handover::Taken,
            _ if answered => Handover::NoSuccessor,
            _ => Handover::Unanswered,
        }
    }

    /// Notices what the line says: a peer that is gone ends the channel.
    pub(crate) fn notice(&self) {
        if self.is_inherited() || !self.doorbell.is_gone() {
            return;
        }
        // An honest peer says that it closes before it hangs up. A dead one has not said anything.
        self.finish(match self.phase_of_peer().map(|phase| phase.step) {
            Some(Step::Closed | Step::Succeeds) => ChannelState::ClosedByPeer,
            Some(Step::Left) => ChannelState::LeftByPeer,
            Some(Step::Exposed) => ChannelState::ExposedAtPeer,
            Some(Step::Evicted) => ChannelState::EvictedByPeer,
            Some(Step::Open) | None => ChannelState::PeerExited,
        });
    }

    pub(crate) fn finish_if_both_ended(&self) {
        let both = self.sending_ended.load(Ordering::Acquire) && self.receiving_ended.load(Ordering::Acquire);
        if both && !self.is_inherited() {
            self.hear_out();
            self.finish(ChannelState::ClosedHere);
        }
    }

    /// A lie of the peer's ends the channel.
    pub(crate) fn judge<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::RingCorrupt(_)) = &result {
            if self.is_inherited() {
                return Err(inherited());
            }
            // Where the peer has wiped its memory, what is found there is no lie: when that was exposed, or once this side has
            // ended the channel, on another thread, and so reads no more.
            match self.phase_of_peer().map(|phase| phase.step) {
                Some(Step::Exposed) => {
                    self.finish(ChannelState::ExposedAtPeer);
                    self.check()?;
                }
                // A publisher overwrites what a subscriber that it has let go of has not read.
                Some(Step::Evicted) => {
                    self.finish(ChannelState::EvictedByPeer);
                    self.check()?;
                }
                _ => {}
            }
            self.wait_for_end();
            if !self.peer_is_gone() {
                self.check()?;
            }
            self.finish(ChannelState::Corrupt);
        }
        result
    }

    /// Waits until a thread that is about to end the channel has done so: the peer may have been told before the threads of this
    /// side are.
    pub(crate) fn wait_for_end(&self) {
        drop(self.held());
    }

    pub(crate) fn peer_is_gone(&self) -> bool {
        matches!(
            self.state.get(),
            ChannelState::ClosedByPeer | ChannelState::PeerExited | ChannelState::LeftByPeer
        )
    }

    /// Of a publisher, to one subscriber: its reading ends at this position of the ring, whatever is sent to the others. To be said
    /// before the phase that tells the subscriber of the end.
    pub(crate) fn end_reading_at(&self, position: u64) {
        if let Ok(guard) = self.held()
            && let Some(held) = guard.as_ref()
        {
            // What was said first counts. Nothing else of this process writes the word.
            if held.own.load(layout::TAIL, Ordering::Relaxed) & END_TOLD == 0 {
                held.own
                    .store(layout::TAIL, position | END_TOLD, Ordering::Release);
            }
        }
    }
}
