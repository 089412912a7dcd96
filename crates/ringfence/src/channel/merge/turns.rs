//! Whose turn it is among the sources of a merge. No source is read here: this file has the order alone.
//!
//! A source that may have something is ready, and the ready ones take turns: so many bytes, or so long. One that was found empty
//! rests, and is looked at now and then, or rings (it is armed). One that has something again has its turn next, once: it is fresh. A
//! fresh source that is empty again joins the end of the ready ones, not those that rest, so that one which sends a little each
//! time cannot always come first (as fq_codel does with the flows of a network).

use std::time::{Duration, Instant};

/// Bytes of a turn, about: it ends with the message that reaches it.
const TURN: u64 = 16 * 1024;
/// A turn ends after this time as well: where each message takes long, few bytes are many.
const LONG: Duration = Duration::from_micros(500);
/// Messages between two looks at the clock, which takes as long as several messages.
const PER_LOOK: u32 = 16;

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Fresh,
    Ready,
    /// Found empty, and will not ring.
    Resting,
    /// Found empty, and will ring.
    Armed,
}

const LINES: usize = 4;

/// One source's place: in one line, or in none.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    line: Option<Line>,
    before: Option<usize>,
    behind: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    first: Option<usize>,
    last: Option<usize>,
}

/// The turn that is under way.
#[derive(Debug, Clone, Copy)]
struct Turn {
    place: usize,
    left: u64,
    /// When the clock was first looked at.
    began: Option<Instant>,
    until_look: u32,
}

/// The order of the sources, each by the number of its place.
#[derive(Debug, Default)]
pub(super) struct Turns {
    places: Vec<Place>,
    lines: [Ends; LINES],
    turn: Option<Turn>,
}

impl Turns {
    /// Whose turn it is. `None`: no source may have anything.
    #[inline]
    pub(super) fn next(&mut self) -> Option<usize> {
        let next = self.first(Line::Fresh).or(self.first(Line::Ready))?;
        if self.turn.is_none_or(|turn| turn.place != next) {
            self.turn = Some(Turn {
                place: next,
                left: TURN,
                began: None,
                until_look: PER_LOOK,
            });
        }
        Some(next)
    }

    /// Bytes that are left of the turn.
    pub(super) fn left(&self) -> u64 {
        self.turn.map_or(0, |turn| turn.left)
    }

    /// The source whose turn it is has handed out so many messages of so many bytes in all. Whether its turn is over.
    #[inline]
    pub(super) fn spend(&mut self, messages: u32, bytes: u64) -> bool {
        let Some(turn) = &mut self.turn else {
            return false;
        };
        turn.left = turn.left.saturating_sub(bytes);
        turn.until_look = turn.until_look.saturating_sub(messages);
        if turn.left > 0 && (turn.until_look > 0 || !is_long(turn)) {
            return false;
        }
        self.end_turn();
        true
    }

    pub(super) fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take()
            && self.is_ready(turn.place)
        {
            self.push(Line::Ready, turn.place);
        }
    }

    /// It may have something, which was not so: it comes next.
    pub(super) fn wake(&mut self, place: usize) {
        if !self.is_ready(place) {
            self.push(Line::Fresh, place);
        }
    }

    /// The source whose turn it is was found empty.
    pub(super) fn found_empty(&mut self, place: usize, is_armed: bool) {
        self.forget_turn_of(place);
        let is_fresh = self.line_of(place) == Some(Line::Fresh);
        if is_fresh && self.first(Line::Ready).is_some() {
            self.push(Line::Ready, place);
        } else {
            self.rest(place, is_armed);
        }
    }

    /// It has nothing.
    pub(super) fn rest(&mut self, place: usize, is_armed: bool) {
        self.forget_turn_of(place);
        self.push(if is_armed { Line::Armed } else { Line::Resting }, place);
    }

    pub(super) fn remove(&mut self, place: usize) {
        self.forget_turn_of(place);
        self.take_out(place);
    }

    fn forget_turn_of(&mut self, place: usize) {
        if self.turn.is_some_and(|turn| turn.place == place) {
            self.turn = None;
        }
    }

    pub(super) fn is_ready(&self, place: usize) -> bool {
        matches!(self.line_of(place), Some(Line::Fresh | Line::Ready))
    }

    pub(super) fn first(&self, line: Line) -> Option<usize> {
        self.lines[line as usize].first
    }

    /// The one behind, in the same line.
    pub(super) fn behind(&self, place: usize) -> Option<usize> {
        self.places[place].behind
    }

    /// To the end of a line, from wherever it stood.
    pub(super) fn push(&mut self, line: Line, place: usize) {
        if self.places.len() <= place {
            self.places.resize(place + 1, Place::default());
        }
        self.take_out(place);
        let before = self.lines[line as usize].last.replace(place);
        match before {
            Some(before) => self.places[before].behind = Some(place),
            None => self.lines[line as usize].first = Some(place),
        }
        self.places[place] = Place {
            line: Some(line),
            before,
            behind: None,
        };
    }

    fn line_of(&self, place: usize) -> Option<Line> {
        self.places.get(place).and_then(|place| place.line)
    }

    fn take_out(&mut self, place: usize) {
        let Some(line) = self.line_of(place) else { return };
        let Place { before, behind, .. } = std::mem::take(&mut self.places[place]);
        match before {
            Some(before) => self.places[before].behind = behind,
            None => self.lines[line as usize].first = behind,
        }
        match behind {
            Some(behind) => self.places[behind].before = before,
            None => self.lines[line as usize].last = before,
        }
    }
}

/// Whether the turn has taken long.
#[cold]
fn is_long(turn: &mut Turn) -> bool {
    turn.until_look = PER_LOOK;
    let now = Instant::now();
    let began = *turn.began.get_or_insert(now);
    now.duration_since(began) >= LONG
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn of(sources: usize) -> Turns {
        let mut turns = Turns::default();
        for place in 0..sources {
            turns.push(Line::Ready, place);
        }
        turns
    }

    #[test]
    fn each_source_has_so_many_bytes_before_the_next_one() {
        let mut turns = of(2);
        for place in [0, 1, 0] {
            assert_eq!(turns.next(), Some(place));
            assert_eq!(turns.left(), TURN);
            // One message, which is not long enough to look at the clock for.
            assert!(!turns.spend(1, TURN - 1));
            assert_eq!((turns.next(), turns.left()), (Some(place), 1));
            assert!(turns.spend(1, 100));
        }
    }

    /// Short messages that are read quickly are not worth a change for each few of them.
    #[test]
    fn many_short_messages_are_one_turn_unless_they_take_long() {
        for messages in [1, 2 * PER_LOOK] {
            let quick = || {
                let mut turns = of(2);
                turns.next();
                (0..4 * PER_LOOK).all(|_| !turns.spend(messages, 16))
            };
            // It takes long all the same where this thread has to wait for a processor.
            assert!((0..10_000).any(|_| quick()));
        }
        let mut turns = of(2);
        turns.next();
        turns.spend(PER_LOOK, 16);
        thread::sleep(LONG);
        // By now it is over, if it was not before.
        turns.spend(2 * PER_LOOK, 16);
        assert_eq!(turns.next(), Some(1));
    }

    /// Otherwise a new source would get what another one, which had the place before, has left over.
    #[test]
    fn a_source_that_comes_anew_has_a_whole_turn() {
        for leaves in [
            |turns: &mut Turns| turns.found_empty(0, false),
            |turns: &mut Turns| turns.rest(0, true),
            |turns: &mut Turns| turns.remove(0),
        ] {
            let mut turns = of(1);
            assert_eq!(turns.next(), Some(0));
            assert!(!turns.spend(1, 1000));
            leaves(&mut turns);
            assert_eq!(turns.next(), None);
            turns.wake(0);
            assert_eq!((turns.next(), turns.left()), (Some(0), TURN));
        }
    }

    #[test]
    fn what_becomes_of_one_source_does_not_end_the_turn_of_another() {
        for leaves in [
            |turns: &mut Turns| turns.rest(1, true),
            |turns: &mut Turns| turns.remove(1),
        ] {
            let mut turns = of(3);
            assert_eq!(turns.next(), Some(0));
            assert!(!turns.spend(1, 1000));
            leaves(&mut turns);
            assert_eq!((turns.next(), turns.left()), (Some(0), TURN - 1000));
        }
    }
}
