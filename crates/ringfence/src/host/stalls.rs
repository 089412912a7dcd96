//! The time for which each reliable subscriber has held its publisher up.
//!
//! Time counts while a message waits for room: from the call that was refused to the one that goes through. Every subscriber that
//! has not read far enough is charged in full. The watcher checks every few milliseconds in the meantime, so that a subscriber that
//! reads soon does not pay for another.
//!
//! A charge is forgotten once the subscriber has read everything that was published when it was last charged. A position only grows,
//! so the next check finds this whenever it is made: no check has to fall between the catching up and the next full ring.
//!
//! A subscriber reports its own position, and one that reports different positions to the sender and to the watcher would never be
//! charged. So the highest position that either has read is kept: a lower one is a protocol violation.
//!
//! A check costs a few steps for each reliable subscriber, and allocates nothing: the sender makes two for each message that waits.

use std::time::{Duration, Instant};

use crate::ring::fan_out::readers::slot_of;

/// The pause between two checks while a message waits.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A reliable subscriber: its number, and how far it has read.
pub(crate) type Position = (u64, u64);

/// The accounts, and the memory for the positions that a check compares them with: under one lock, so that two positions of one
/// subscriber are compared in the order in which they were read.
pub(crate) struct Charging {
    pub(crate) stalls: Stalls,
    pub(crate) positions: Vec<Position>,
}

impl Charging {
    /// `limit`: [`Duration::MAX`] is never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            stalls: Stalls::new(limit),
            positions: Vec::new(),
        }
    }
}

/// The accounts of the reliable subscribers. The sending thread reports a waiting message; the watcher evicts the subscribers whose time is
/// up.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    limit: Duration,
    waiting: Option<Waiting>,
    /// By slot.
    accounts: Vec<Account>,
    /// Subscribers whose position has gone back, until the watcher has closed their channels.
    violators: Vec<u64>,
    /// When the watcher checks again by itself.
    alarm: Option<Instant>,
}

/// The account of the last reliable subscriber that had a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    number: u64,
    /// The highest position that it has shown.
    highest: u64,
    is_violator: bool,
    /// It was in the way of the message that waits when it was last checked.
    is_behind: bool,
    /// The time for which it has delayed the publisher since it last caught up.
    charged: Duration,
    /// The publisher's tail at the last charge: there it has caught up.
    tail: u64,
}

impl Account {
    fn charge(&mut self, time: Duration, tail: u64) {
        self.charged = self.charged.saturating_add(time);
        self.tail = tail;
    }

    fn forget_if_caught_up(&mut self) {
        if self.highest >= self.tail {
            self.charged = Duration::ZERO;
        }
    }
}

/// The result of a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StallCheck {
    /// The subscribers whose time is up.
    pub(crate) over: Vec<u64>,
    /// Those whose position has gone back.
    pub(crate) violators: Vec<u64>,
    /// A message waits, and no subscriber is in its way. The sender must be woken: a subscriber that made room may not have sent a wakeup.
    pub(crate) may_proceed: bool,
    /// When to check again.
    pub(crate) next: Option<Instant>,
}

/// The reading that makes room for a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// The position up to which the subscribers must have read.
    pub(crate) position: u64,
    /// Only this subscriber must: the others hold no attachments up.
    pub(crate) only: Option<u64>,
}

impl Goal {
    fn is_behind(self, (number, head): Position) -> bool {
        head < self.position && self.only.is_none_or(|only| only == number)
    }
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    goal: Goal,
    /// The publisher's tail.
    tail: u64,
    /// Up to here the subscribers in its way were charged.
    since: Instant,
}

impl Stalls {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// A message waits until the subscribers have read up to the goal. Returns whether the watcher must be woken to check sooner than it would.
    pub(crate) fn begin(&mut self, goal: Goal, positions: &[Position], tail: u64, now: Instant) -> bool {
        if self.limit == Duration::MAX {
            return false;
        }
        let next = Waiting {
            goal,
            tail,
            since: now,
        };
        let before = self.alarm;
        self.check(positions, now, Some(next));
        before.is_none_or(|before| self.alarm.is_some_and(|after| after < before))
    }

    /// The message has found room, or is given up.
    pub(crate) fn end(&mut self, positions: &[Position], now: Instant) {
        if self.waiting.is_some() {
            let alarm = self.alarm;
            self.check(positions, now, None);
            // The watcher is not woken: it still checks at that time.
            self.alarm = alarm;
        }
    }

    /// Returns whether no check can find anything until the next message waits.
    pub(crate) fn is_idle(&mut self) -> bool {
        let is_idle = self.waiting.is_none() && self.violators.is_empty();
        if is_idle {
            self.alarm = None;
        }
        is_idle
    }

    /// The watcher's check.
    pub(crate) fn poll(&mut self, positions: &[Position], now: Instant) -> StallCheck {
        let next = self.waiting.map(|waiting| Waiting {
            since: now,
            ..waiting
        });
        let behind = self.check(positions, now, next);
        let mut over = Vec::new();
        for (number, _) in positions {
            let account = &mut self.accounts[slot_of(*number)];
            if account.is_behind && account.charged >= self.limit {
                account.charged = Duration::ZERO;
                over.push(*number);
            }
        }
        StallCheck {
            over,
            violators: std::mem::take(&mut self.violators),
            may_proceed: self.waiting.is_some() && behind == 0,
            next: self.alarm,
        }
    }

    /// Charges the subscribers that were in the way since the last check, and sets the alarm. Returns the number of subscribers that are in
    /// the way of the `next` message.
    fn check(&mut self, positions: &[Position], now: Instant, next: Option<Waiting>) -> usize {
        let last = std::mem::replace(&mut self.waiting, next);
        let (mut behind, mut left) = (0, CHECK_INTERVAL);
        for position in positions {
            let limit = self.limit;
            let account = self.account(*position);
            account.forget_if_caught_up();
            // A subscriber that has read far enough since was not in the way all the time. At the end all have, and one of them just now.
            if let Some(last) = last
                && account.is_behind
                && (next.is_none() || last.goal.is_behind(*position))
            {
                account.charge(now.saturating_duration_since(last.since), last.tail);
                account.forget_if_caught_up();
            }
            account.is_behind = next.is_some_and(|next| next.goal.is_behind(*position));
            if account.is_behind {
                behind += 1;
                left = left.min(limit.saturating_sub(account.charged));
            }
        }
        let time = if self.violators.is_empty() {
            (behind > 0).then_some(left)
        } else {
            Some(Duration::ZERO)
        };
        self.alarm = time.and_then(|time| now.checked_add(time));
        behind
    }

    /// Returns the account of a subscriber that shows this position now.
    fn account(&mut self, (number, head): Position) -> &mut Account {
        let slot = slot_of(number);
        if self.accounts.len() <= slot {
            self.accounts.resize(slot + 1, Account::default());
        }
        let account = &mut self.accounts[slot];
        if account.number != number {
            *account = Account {
                number,
                ..Account::default()
            };
        }
        if head < account.highest && !std::mem::replace(&mut account.is_violator, true) {
            self.violators.push(number);
        }
        account.highest = account.highest.max(head);
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn all(position: u64) -> Goal {
        Goal { position, only: None }
    }

    fn stalls() -> (Stalls, Instant) {
        (Stalls::new(5 * SECOND), Instant::now())
    }

    fn found(over: &[u64], next: Option<Instant>) -> StallCheck {
        StallCheck {
            over: over.to_vec(),
            violators: Vec::new(),
            may_proceed: false,
            next,
        }
    }

    fn charged(stalls: &Stalls, number: u64) -> Duration {
        stalls.accounts[slot_of(number)].charged
    }

    #[test]
    fn stalled_subscriber_is_over_at_its_limit() {
        let (mut stalls, start) = stalls();
        let positions = [(1, 0), (2, 900)];
        assert!(
            stalls.begin(all(100), &positions, 1000, start),
            "the watcher sleeps for ever"
        );
        let look = stalls.poll(&positions, start + 4 * SECOND);
        assert_eq!(look, found(&[], Some(start + 4 * SECOND + CHECK_INTERVAL)));
        let look = stalls.poll(&positions, start + 5 * SECOND);
        assert_eq!(look.over, [1]);
    }

    #[test]
    fn stall_time_accumulates_until_caught_up() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0)], 1000, start);
        stalls.end(&[(1, 100)], start + 3 * SECOND);
        assert!(stalls.is_idle(), "no message waits: that time is not counted");
        stalls.begin(all(200), &[(1, 100)], 1100, start + 60 * SECOND);
        let look = stalls.poll(&[(1, 100)], start + 61 * SECOND);
        assert_eq!(look, found(&[], Some(start + 61 * SECOND + CHECK_INTERVAL)));
        stalls.end(&[(1, 1096)], start + 61 * SECOND);
        assert_eq!(charged(&stalls, 1), 4 * SECOND, "one message is left");
        stalls.begin(all(1200), &[(1, 1100)], 2100, start + 80 * SECOND);
        assert_eq!(charged(&stalls, 1), Duration::ZERO);
        let look = stalls.poll(&[(1, 1100)], start + 84 * SECOND);
        assert_eq!(look, found(&[], Some(start + 84 * SECOND + CHECK_INTERVAL)));
        assert_eq!(charged(&stalls, 1), 4 * SECOND);
    }

    /// No check finds it with everything read: there is a full ring behind it again by the next one.
    #[test]
    fn subscriber_that_catches_up_is_never_over() {
        let (mut stalls, start) = stalls();
        for round in 0..9 {
            let now = start + round * 10 * SECOND;
            let head = 1000 * u64::from(round);
            stalls.begin(all(head + 100), &[(1, head)], head + 1000, now);
            let look = stalls.poll(&[(1, head)], now + 4 * SECOND);
            assert!(look.over.is_empty(), "{round}");
            stalls.end(&[(1, head + 100)], now + 4 * SECOND);
        }
    }

    /// The sender adds its message after that, and so is never found without one.
    #[test]
    fn reading_all_before_the_send_resets_the_charge() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0)], 1000, start);
        stalls.poll(&[(1, 0)], start + 4 * SECOND);
        stalls.end(&[(1, 1000)], start + 4 * SECOND);
        assert_eq!(charged(&stalls, 1), Duration::ZERO);
        stalls.begin(all(1100), &[(1, 1000)], 2000, start + 5 * SECOND);
        assert!(stalls.poll(&[(1, 1000)], start + 9 * SECOND).over.is_empty());
    }

    /// One that reads a little each time, just so that the message goes through, is charged each time.
    #[test]
    fn slow_trickle_is_over_eventually() {
        let (mut stalls, start) = stalls();
        for round in 0..5 {
            let now = start + round * 10 * SECOND;
            let goal = 100 * u64::from(round + 1);
            stalls.begin(all(goal), &[(1, goal - 100), (2, 900 + goal)], 900 + goal, now);
            stalls.poll(&[(1, goal - 100)], now);
            stalls.end(&[(1, goal)], now + SECOND);
        }
        assert_eq!(charged(&stalls, 1), 5 * SECOND);
        stalls.begin(all(600), &[(1, 500)], 1500, start + 60 * SECOND);
        assert_eq!(stalls.poll(&[(1, 500)], start + 60 * SECOND).over, [1]);
    }

    /// One that has read soon does not pay for another that has not.
    #[test]
    fn subscriber_that_has_read_is_not_charged() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0), (2, 0)], 1000, start);
        stalls.poll(&[(1, 0), (2, 100)], start + SECOND);
        stalls.end(&[(1, 100), (2, 100)], start + 3 * SECOND);
        assert_eq!(charged(&stalls, 1), 3 * SECOND);
        assert_eq!(charged(&stalls, 2), Duration::ZERO);
    }

    #[test]
    fn successor_in_a_slot_is_not_charged_for_the_past() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0), (2, 8)], 1000, start);
        stalls.poll(&[(1, 0), (2, 8)], start + 4 * SECOND);
        let in_its_slot = 1 + (1 << 20);
        assert_eq!(slot_of(in_its_slot), slot_of(1));
        let look = stalls.poll(&[(in_its_slot, 0), (2, 8)], start + 5 * SECOND);
        assert_eq!(look.over, [2]);
        let look = stalls.poll(&[(in_its_slot, 0)], start + 6 * SECOND);
        assert!(look.over.is_empty() && look.violators.is_empty());
        assert_eq!(charged(&stalls, in_its_slot), SECOND);
    }

    #[test]
    fn attachment_waits_charge_only_their_holder() {
        let (mut stalls, start) = stalls();
        let positions = [(1, 0), (2, 0)];
        let only = Some(2);
        stalls.begin(Goal { position: 100, only }, &positions, 1000, start);
        assert_eq!(stalls.poll(&positions, start + 5 * SECOND).over, [2]);
        assert_eq!(charged(&stalls, 1), Duration::ZERO);
    }

    #[test]
    fn no_subscriber_is_over_without_a_limit() {
        let mut stalls = Stalls::new(Duration::MAX);
        assert!(!stalls.begin(all(100), &[(1, 0)], 1000, Instant::now()));
        assert!(stalls.is_idle());
    }

    #[test]
    fn freed_room_without_a_wakeup_resumes_the_sender() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0)], 1000, start);
        let look = stalls.poll(&[(1, 100)], start + 5 * SECOND);
        assert!(look.over.is_empty() && look.may_proceed);
    }

    /// It shows the sender that it has not read, and the watcher that it has: so it would hold the one up, and be charged by neither.
    #[test]
    fn inconsistent_positions_are_a_violation() {
        let (mut stalls, start) = stalls();
        stalls.begin(all(100), &[(1, 0), (2, 0)], 1000, start);
        let look = stalls.poll(&[(1, 100), (2, 0)], start + SECOND);
        assert!(look.violators.is_empty());
        assert!(
            stalls.begin(all(100), &[(1, 0), (2, 0)], 1000, start + SECOND),
            "the watcher is told at once"
        );
        assert_eq!(stalls.poll(&[(1, 100), (2, 0)], start + SECOND).violators, [1]);
        assert!(stalls.poll(&[(2, 0)], start + SECOND).violators.is_empty());
    }

    #[test]
    fn watcher_with_an_earlier_alarm_is_not_woken() {
        let (mut stalls, start) = stalls();
        assert!(stalls.begin(all(100), &[(1, 0)], 1000, start));
        stalls.end(&[(1, 100)], start + SECOND / 100);
        // It has an alarm still, which comes sooner.
        assert!(!stalls.begin(all(200), &[(1, 100)], 1100, start + SECOND / 100));
        stalls.end(&[(1, 200)], start + SECOND / 100);
        // It has found nothing to do, and sleeps.
        assert!(stalls.is_idle());
        assert!(stalls.begin(all(300), &[(1, 200)], 1200, start + SECOND));
    }
}
