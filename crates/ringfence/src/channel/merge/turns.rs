//! The order in which a merge reads its sources. This file reads none of them.
//!
//! A source that may have something is ready, and the ready sources take turns, limited in bytes and in time. A source that was found
//! empty rests and is checked once in a while, or it is armed and its peer sends a wakeup. A source that has something again is fresh: it
//! has the next turn, once. A fresh source that is empty again joins the end of the ready ones and does not rest. So a source that sends
//! a little each time cannot always be the first (fq_codel treats the flows of a network alike).

use std::time::{Duration, Instant};

/// The approximate number of bytes of a turn: it ends with the message that reaches this.
const TURN_BYTES: u64 = 16 * 1024;
/// A turn also ends after this time, because a visit of a short message may take long.
const MAX_TURN_TIME: Duration = Duration::from_micros(500);
/// Number of messages between two reads of the clock, which take as long as several messages.
const MESSAGES_PER_CLOCK: u32 = 16;

/// The queue of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceQueue {
    Fresh,
    Ready,
    /// Found empty. Its peer sends no wakeup.
    Resting,
    /// Found empty. Its peer sends a wakeup.
    Armed,
}

const QUEUES: usize = 4;

/// The position of one source: in one queue, or in none.
#[derive(Debug, Clone, Copy, Default)]
struct QueueNode {
    queue: Option<SourceQueue>,
    before: Option<usize>,
    behind: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct QueueEnds {
    first: Option<usize>,
    last: Option<usize>,
}

/// The current turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    place: usize,
    left: u64,
    /// The first read of the clock.
    start: Option<Instant>,
    until_clock: u32,
}

/// The order of the sources, each by the number of its place.
#[derive(Debug, Default)]
pub(super) struct Turns {
    places: Vec<QueueNode>,
    queues: [QueueEnds; QUEUES],
    turn: Option<Turn>,
}

impl Turns {
    /// Returns the source whose turn it is. `None`: no source may have anything.
    #[inline]
    pub(super) fn next(&mut self) -> Option<usize> {
        let next = self
            .first(SourceQueue::Fresh)
            .or(self.first(SourceQueue::Ready))?;
        if self.turn.is_none_or(|turn| turn.place != next) {
            self.turn = Some(Turn {
                place: next,
                left: TURN_BYTES,
                start: None,
                until_clock: MESSAGES_PER_CLOCK,
            });
        }
        Some(next)
    }

    /// Returns the number of bytes that are left of the turn.
    pub(super) fn left(&self) -> u64 {
        self.turn.map_or(0, |turn| turn.left)
    }

    /// Charges the turn for messages that were returned. Returns whether the turn is over.
    #[inline]
    pub(super) fn spend(&mut self, messages: u32, bytes: u64) -> bool {
        let Some(turn) = &mut self.turn else { return false };
        turn.left = turn.left.saturating_sub(bytes);
        turn.until_clock = turn.until_clock.saturating_sub(messages);
        if turn.left > 0 && (turn.until_clock > 0 || !has_timed_out(turn)) {
            return false;
        }
        self.end_turn();
        true
    }

    pub(super) fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take()
            && self.is_ready(turn.place)
        {
            self.push(SourceQueue::Ready, turn.place);
        }
    }

    /// Gives the next turn to a source that was empty and may have messages now.
    pub(super) fn wake(&mut self, place: usize) {
        if !self.is_ready(place) {
            self.push(SourceQueue::Fresh, place);
        }
    }

    /// Ends the turn of a source that was found empty.
    pub(super) fn found_empty(&mut self, place: usize) {
        self.cancel_turn(place);
        let is_fresh = self.queue_of(place) == Some(SourceQueue::Fresh);
        let queue = if is_fresh && self.first(SourceQueue::Ready).is_some() {
            SourceQueue::Ready
        } else {
            SourceQueue::Resting
        };
        self.push(queue, place);
    }

    pub(super) fn remove(&mut self, place: usize) {
        self.cancel_turn(place);
        self.unlink(place);
    }

    fn cancel_turn(&mut self, place: usize) {
        if self.turn.is_some_and(|turn| turn.place == place) {
            self.turn = None;
        }
    }

    pub(super) fn is_ready(&self, place: usize) -> bool {
        matches!(
            self.queue_of(place),
            Some(SourceQueue::Fresh | SourceQueue::Ready)
        )
    }

    pub(super) fn first(&self, queue: SourceQueue) -> Option<usize> {
        self.queues[queue as usize].first
    }

    /// Returns the next source in the same queue.
    pub(super) fn behind(&self, place: usize) -> Option<usize> {
        self.places[place].behind
    }

    /// Moves a source to the end of a queue.
    pub(super) fn push(&mut self, queue: SourceQueue, place: usize) {
        if self.places.len() <= place {
            self.places.resize(place + 1, QueueNode::default());
        }
        self.unlink(place);
        let before = self.queues[queue as usize].last.replace(place);
        match before {
            Some(before) => self.places[before].behind = Some(place),
            None => self.queues[queue as usize].first = Some(place),
        }
        self.places[place] = QueueNode {
            queue: Some(queue),
            before,
            behind: None,
        };
    }

    fn queue_of(&self, place: usize) -> Option<SourceQueue> {
        self.places.get(place).and_then(|place| place.queue)
    }

    fn unlink(&mut self, place: usize) {
        let Some(queue) = self.queue_of(place) else { return };
        let QueueNode { before, behind, .. } = std::mem::take(&mut self.places[place]);
        match before {
            Some(before) => self.places[before].behind = behind,
            None => self.queues[queue as usize].first = behind,
        }
        match behind {
            Some(behind) => self.places[behind].before = before,
            None => self.queues[queue as usize].last = before,
        }
    }
}

/// Whether the turn has taken too long.
#[cold]
fn has_timed_out(turn: &mut Turn) -> bool {
    turn.until_clock = MESSAGES_PER_CLOCK;
    let now = Instant::now();
    let start = *turn.start.get_or_insert(now);
    now.duration_since(start) >= MAX_TURN_TIME
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn of(sources: usize) -> Turns {
        let mut turns = Turns::default();
        for place in 0..sources {
            turns.push(SourceQueue::Ready, place);
        }
        turns
    }

    #[test]
    fn turn_is_limited_in_bytes() {
        let mut turns = of(2);
        for place in [0, 1, 0] {
            assert_eq!(turns.next(), Some(place));
            assert_eq!(turns.left(), TURN_BYTES);
            // One message, too few for reading the clock.
            assert!(!turns.spend(1, TURN_BYTES - 1));
            assert_eq!((turns.next(), turns.left()), (Some(place), 1));
            assert!(turns.spend(1, 100));
        }
    }

    /// Short messages that are read quickly are not worth changing the source every few messages.
    #[test]
    fn turn_of_short_messages_is_limited_in_time() {
        for messages in [1, 2 * MESSAGES_PER_CLOCK] {
            let quick = || {
                let mut turns = of(2);
                turns.next();
                (0..4 * MESSAGES_PER_CLOCK).all(|_| !turns.spend(messages, 16))
            };
            // A turn may take long anyway if this thread waits for a processor.
            assert!((0..10_000).any(|_| quick()));
        }
        let mut turns = of(2);
        turns.next();
        turns.spend(MESSAGES_PER_CLOCK, 16);
        thread::sleep(MAX_TURN_TIME);
        // The turn is over now, if it was not before.
        turns.spend(2 * MESSAGES_PER_CLOCK, 16);
        assert_eq!(turns.next(), Some(1));
    }

    /// Otherwise a new source would continue the turn of the source that had its index before.
    #[test]
    fn rejoining_source_gets_a_full_turn() {
        for leaves in [
            |turns: &mut Turns| turns.found_empty(0),
            |turns: &mut Turns| turns.remove(0),
        ] {
            let mut turns = of(1);
            assert_eq!(turns.next(), Some(0));
            assert!(!turns.spend(1, 1000));
            leaves(&mut turns);
            assert_eq!(turns.next(), None);
            turns.wake(0);
            assert_eq!((turns.next(), turns.left()), (Some(0), TURN_BYTES));
        }
    }

    #[test]
    fn removing_a_source_keeps_the_turn_of_another() {
        for leaves in [
            |turns: &mut Turns| turns.found_empty(1),
            |turns: &mut Turns| turns.remove(1),
        ] {
            let mut turns = of(3);
            assert_eq!(turns.next(), Some(0));
            assert!(!turns.spend(1, 1000));
            leaves(&mut turns);
            assert_eq!((turns.next(), turns.left()), (Some(0), TURN_BYTES - 1000));
        }
    }
}
