//! For how long each reliable subscriber has held its publisher up.
//!
//! Time counts while a message waits for room: from the call that was refused to the one that goes through. Every subscriber that
//! has not read far enough is charged in full. The watcher looks every few milliseconds meanwhile, so that one that has read soon does
//! not pay for another. What it was charged is forgotten once it is less than half the ring behind.
//!
//! A position is the subscriber's own word, and one that shows the sender another than the watcher would never be charged. So the highest
//! that either has seen is kept: a lower one is a lie.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Between two looks: while a message waits, or a subscriber that was charged moves; and at most, where none of them does.
const LOOKS: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// A reliable subscriber: its number, and how far it has read.
pub(super) type Position = (u64, u64);

/// What the subscribers are charged. The sending thread says when a message waits; the watcher lets go of those whose time is up.
#[derive(Debug)]
pub(super) struct Stalls {
    limit: Duration,
    half: u64,
    waiting: Option<Waiting>,
    charged: HashMap<u64, Duration>,
    /// The highest position that each has shown.
    highest: HashMap<u64, u64>,
    /// Those that have gone back, until the watcher has let go of them.
    liars: Vec<u64>,
    /// What the last look has found, and the pause after it.
    last: Vec<Position>,
    pause: Duration,
    /// When the watcher looks again by itself.
    alarm: Option<Instant>,
}

/// What a look has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The subscribers whose time is up.
    pub(super) over: Vec<u64>,
    /// Those whose position has gone back.
    pub(super) liars: Vec<u64>,
    /// A message waits, and no subscriber is in its way. A subscriber that has made room, and has not said so by its bell, would let the sender
    /// sleep.
    pub(super) may_go_on: bool,
    /// When to look again.
    pub(super) next: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    /// Where every subscriber must have read to.
    goal: u64,
    /// Up to here it was charged.
    since: Instant,
    /// The subscribers that had not read that far then.
    behind: Vec<u64>,
}

impl Waiting {
    fn is_behind(&self, (_, head): &Position) -> bool {
        *head < self.goal
    }

    fn all_behind(&self, positions: &[Position]) -> Vec<u64> {
        let behind = positions.iter().filter(|position| self.is_behind(position));
        behind.map(|(number, _)| *number).collect()
    }
}

impl Stalls {
    /// `limit`: [`Duration::MAX`] is never.
    pub(super) fn new(limit: Duration, capacity: u64) -> Self {
        Self {
            limit,
            half: capacity / 2,
            waiting: None,
            charged: HashMap::new(),
            highest: HashMap::new(),
            liars: Vec::new(),
            last: Vec::new(),
            pause: LOOKS[0],
            alarm: None,
        }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// A message waits until all have read up to the goal. Whether the watcher must be woken to look sooner than it would.
    pub(super) fn begin(&mut self, goal: u64, positions: &[Position], tail: u64, now: Instant) -> bool {
        if self.limit == Duration::MAX {
            return false;
        }
        self.note(positions);
        self.charge(positions, now);
        let mut waiting = Waiting {
            goal,
            since: now,
            behind: Vec::new(),
        };
        waiting.behind = waiting.all_behind(positions);
        self.waiting = Some(waiting);
        self.forget(positions, tail);
        let before = self.alarm;
        let after = self.arm(positions, now);
        before.is_none_or(|before| after.is_some_and(|after| after < before))
    }

    /// The message has found room, or is given up.
    pub(super) fn end(&mut self, positions: &[Position], tail: u64, now: Instant) {
        if let Some(waiting) = self.waiting.take() {
            // They were in its way, and one of them to the last.
            let time = now.saturating_duration_since(waiting.since);
            self.add(&waiting.behind, time);
        }
        self.forget(positions, tail);
    }

    /// A look at all subscribers.
    pub(super) fn look(&mut self, positions: &[Position], tail: u64, now: Instant) -> Found {
        self.note(positions);
        self.charge(positions, now);
        self.forget(positions, tail);
        self.pause = if self.last == positions {
            (self.pause * 2).min(LOOKS[1])
        } else {
            LOOKS[0]
        };
        self.last = positions.to_vec();
        let over: Vec<_> = self
            .waiting
            .iter()
            .flat_map(|waiting| waiting.all_behind(positions))
            .filter(|number| self.charged.get(number).is_some_and(|time| *time >= self.limit))
            .collect();
        for number in &over {
            self.charged.remove(number);
        }
        Found {
            over,
            liars: std::mem::take(&mut self.liars),
            may_go_on: self
                .waiting
                .as_ref()
                .is_some_and(|waiting| waiting.all_behind(positions).is_empty()),
            next: self.arm(positions, now),
        }
    }

    /// Keeps how far each has come. The positions were read under the lock of all this: one that was seen later is no older.
    fn note(&mut self, positions: &[Position]) {
        self.highest
            .retain(|number, _| positions.iter().any(|(other, _)| other == number));
        for (number, head) in positions {
            let highest = self.highest.entry(*number).or_insert(*head);
            if *head < *highest && !self.liars.contains(number) {
                self.liars.push(*number);
            }
            *highest = (*highest).max(*head);
        }
    }

    /// Charges those that are in the way of the message still: so they were all the time since the last look.
    fn charge(&mut self, positions: &[Position], now: Instant) {
        let Some(waiting) = &mut self.waiting else { return };
        let time = now.saturating_duration_since(waiting.since);
        waiting.since = now;
        waiting.behind = waiting.all_behind(positions);
        let behind = waiting.behind.clone();
        self.add(&behind, time);
    }

    fn add(&mut self, numbers: &[u64], time: Duration) {
        for number in numbers {
            let charged = self.charged.entry(*number).or_default();
            *charged = charged.saturating_add(time);
        }
    }

    /// Those that are less than half the ring behind begin anew.
    fn forget(&mut self, positions: &[Position], tail: u64) {
        self.charged.retain(|number, _| {
            let head = positions.iter().find(|(other, _)| other == number);
            head.is_some_and(|(_, head)| tail.saturating_sub(*head) >= self.half)
        });
    }

    /// When the watcher must look next.
    fn arm(&mut self, positions: &[Position], now: Instant) -> Option<Instant> {
        let left = |number: &u64| {
            let charged = self.charged.get(number).copied().unwrap_or_default();
            self.limit.saturating_sub(charged)
        };
        let time = match &self.waiting {
            Some(waiting) => {
                let behind = waiting.all_behind(positions);
                behind.iter().map(left).min().map(|left| left.min(LOOKS[0]))
            }
            None if self.charged.is_empty() => None,
            None => Some(self.pause),
        };
        let time = if self.liars.is_empty() {
            time
        } else {
            Some(Duration::ZERO)
        };
        self.alarm = time.and_then(|time| now.checked_add(time));
        self.alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stalls() -> (Stalls, Instant) {
        (Stalls::new(5 * SECOND, 1000), Instant::now())
    }

    fn found(over: &[u64], next: Option<Instant>) -> Found {
        Found {
            over: over.to_vec(),
            liars: Vec::new(),
            may_go_on: false,
            next,
        }
    }

    #[test]
    fn one_that_does_not_read_is_over_when_its_time_is() {
        let (mut stalls, start) = stalls();
        let positions = [(1, 0), (2, 900)];
        assert!(
            stalls.begin(100, &positions, 1000, start),
            "the watcher sleeps for ever"
        );
        let look = stalls.look(&positions, 1000, start + 4 * SECOND);
        assert_eq!(look, found(&[], Some(start + 4 * SECOND + LOOKS[0])));
        let look = stalls.look(&positions, 1000, start + 5 * SECOND);
        assert_eq!(look.over, [1]);
    }

    #[test]
    fn time_counts_in_all_until_it_is_less_than_half_the_ring_behind() {
        let (mut stalls, start) = stalls();
        stalls.begin(100, &[(1, 0)], 1000, start);
        stalls.end(&[(1, 100)], 1000, start + 3 * SECOND);
        // No message waits: that time is not counted.
        let look = stalls.look(&[(1, 100)], 1100, start + 60 * SECOND);
        assert!(look.over.is_empty() && look.next.is_some() && !look.may_go_on);
        stalls.begin(200, &[(1, 100)], 1100, start + 60 * SECOND);
        let look = stalls.look(&[(1, 100)], 1100, start + 61 * SECOND);
        assert_eq!(look, found(&[], Some(start + 61 * SECOND + LOOKS[0])));
        // It has caught up, and begins anew.
        assert_eq!(stalls.charged[&1], 4 * SECOND);
        stalls.end(&[(1, 700)], 1100, start + 61 * SECOND);
        let look = stalls.look(&[(1, 700)], 1100, start + 70 * SECOND);
        assert_eq!(look, found(&[], None));
        stalls.begin(800, &[(1, 700)], 1700, start + 80 * SECOND);
        let look = stalls.look(&[(1, 700)], 1700, start + 84 * SECOND);
        assert_eq!(look, found(&[], Some(start + 84 * SECOND + LOOKS[0])));
        assert_eq!(stalls.charged[&1], 4 * SECOND);
    }

    /// One that reads a little each time, just so that the message goes through, is charged each time.
    #[test]
    fn one_that_drips_is_over_as_well() {
        let (mut stalls, start) = stalls();
        for round in 0..5 {
            let now = start + round * 10 * SECOND;
            let goal = 100 * u64::from(round + 1);
            stalls.begin(goal, &[(1, goal - 100), (2, 900 + goal)], 900 + goal, now);
            stalls.look(&[(1, goal - 100)], 900 + goal, now);
            stalls.end(&[(1, goal)], 900 + goal, now + SECOND);
        }
        assert_eq!(stalls.charged[&1], 5 * SECOND);
        stalls.begin(600, &[(1, 500)], 1500, start + 60 * SECOND);
        assert_eq!(stalls.look(&[(1, 500)], 1500, start + 60 * SECOND).over, [1]);
    }

    /// One that has read soon does not pay for another that has not.
    #[test]
    fn one_that_has_read_meanwhile_is_charged_no_more() {
        let (mut stalls, start) = stalls();
        stalls.begin(100, &[(1, 0), (2, 0)], 1000, start);
        stalls.look(&[(1, 0), (2, 100)], 1000, start + SECOND);
        stalls.end(&[(1, 100), (2, 100)], 1000, start + 3 * SECOND);
        assert_eq!(stalls.charged.get(&1), Some(&(3 * SECOND)));
        assert_eq!(stalls.charged.get(&2), None);
    }

    #[test]
    fn two_are_charged_in_full_and_one_that_has_gone_is_forgotten() {
        let (mut stalls, start) = stalls();
        stalls.begin(100, &[(1, 0), (2, 8)], 1000, start);
        stalls.look(&[(1, 0), (2, 8)], 1000, start + 4 * SECOND);
        let look = stalls.look(&[(2, 8)], 1000, start + 5 * SECOND);
        assert_eq!(look.over, [2]);
        assert!(stalls.charged.is_empty());
    }

    #[test]
    fn without_a_limit_nothing_is_ever_over() {
        let mut stalls = Stalls::new(Duration::MAX, 1000);
        let start = Instant::now();
        assert!(!stalls.begin(100, &[(1, 0)], 1000, start));
        let look = stalls.look(&[(1, 0)], 1000, start + 1_000_000 * SECOND);
        assert_eq!(look, found(&[], None));
    }

    #[test]
    fn one_that_has_made_room_without_a_bell_keeps_the_sender_no_longer_than_its_time() {
        let (mut stalls, start) = stalls();
        stalls.begin(100, &[(1, 0)], 1000, start);
        let look = stalls.look(&[(1, 100)], 1000, start + 5 * SECOND);
        assert!(look.over.is_empty() && look.may_go_on);
    }

    /// It shows the sender that it has not read, and the watcher that it has: so it would hold the one up, and be charged by neither.
    #[test]
    fn one_that_shows_two_positions_is_found_by_the_lower_one() {
        let (mut stalls, start) = stalls();
        stalls.begin(100, &[(1, 0), (2, 0)], 1000, start);
        let look = stalls.look(&[(1, 100), (2, 0)], 1000, start + SECOND);
        assert!(look.liars.is_empty());
        assert!(
            stalls.begin(100, &[(1, 0), (2, 0)], 1000, start + SECOND),
            "the watcher is told at once"
        );
        assert_eq!(stalls.look(&[(1, 100), (2, 0)], 1000, start + SECOND).liars, [1]);
        assert!(stalls.look(&[(2, 0)], 1000, start + SECOND).liars.is_empty());
    }

    #[test]
    fn a_watcher_that_will_look_in_time_is_not_woken() {
        let (mut stalls, start) = stalls();
        assert!(stalls.begin(100, &[(1, 0)], 1000, start));
        stalls.end(&[(1, 100)], 1000, start + SECOND / 100);
        // It has an alarm still, which comes sooner.
        assert!(!stalls.begin(200, &[(1, 100)], 1100, start + SECOND / 100));
    }
}
