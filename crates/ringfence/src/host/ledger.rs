//! What has come to an address so far, and what became of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use crate::{
    channel::Channel,
    channel::end::Shared,
    channel::stats::{ChannelStats, Counters},
    error::Error,
};

/// What a service or a membership has taken in and turned away since it was made.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Channels that are open now, those that the program has not taken yet included.
    pub open: usize,
    /// Channels that were made.
    pub accepted: u64,
    /// Newcomers that got no channel: how many, by the check that failed (`uid`, `executable`, …), or where it was no check by the
    /// error's code ([`Error::code`]); `other` for a check of the peer's that this version does not know.
    pub refused: BTreeMap<String, u64>,
    /// The sums of all channels that were made, as each has told them last (see [`Sender::stats`](crate::Sender::stats)); `ring_used`,
    /// `ring_capacity` and `staged` of those alone that are open.
    pub channels: ChannelStats,
}

/// What is counted at an address.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accepted: u64,
    refused: BTreeMap<String, u64>,
    made: Vec<(Weak<Shared>, Arc<Counters>)>,
    /// The sums of those that are over.
    past: ChannelStats,
}

impl Ledger {
    /// A newcomer has a channel.
    pub(crate) fn accepted(&mut self, channel: &Channel) {
        self.accepted += 1;
        // Each that is over is looked at once.
        if self.made.len().is_power_of_two() {
            self.add_up();
        }
        let shared = channel.shared();
        self.made
            .push((Arc::downgrade(shared), Arc::clone(&shared.counters)));
    }

    /// A newcomer got none.
    pub(crate) fn refused(&mut self, error: &Error) {
        let by = match error.refusal() {
            // Not the name that a peer gives: it may make up another one each time, and each would stay.
            Some(refusal) => refusal.check.name(),
            None => error.code(),
        };
        if let Some(count) = self.refused.get_mut(by) {
            *count += 1;
        } else {
            self.refused.insert(by.to_owned(), 1);
        }
    }

    /// Adds those up whose halves are gone: they count no more.
    fn add_up(&mut self) {
        let Self { made, past, .. } = self;
        made.retain(|(channel, counters)| {
            let is_there = channel.strong_count() > 0;
            if !is_there {
                *past += of_ended(counters.told());
            }
            is_there
        });
    }

    pub(crate) fn stats(&mut self, open: usize) -> EndpointStats {
        self.add_up();
        let mut channels = self.past;
        for (channel, counters) in &self.made {
            let told = counters.told();
            let is_open = channel
                .upgrade()
                .is_some_and(|channel| channel.close_reason().is_none());
            channels += if is_open { told } else { of_ended(told) };
        }
        EndpointStats {
            open,
            accepted: self.accepted,
            refused: self.refused.clone(),
            channels,
        }
    }
}

/// Without what an ended channel does not have any more.
fn of_ended(stats: ChannelStats) -> ChannelStats {
    ChannelStats {
        ring_used: 0,
        ring_capacity: 0,
        staged: 0,
        ..stats
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;
    use crate::error::{Check, Error, Refusal};

    #[test]
    fn a_peer_makes_up_no_names_to_count_by() {
        let mut ledger = Ledger::default();
        for number in 0..1000 {
            let said = Refusal::by_peer(format!("made up {number}"), String::new(), String::new());
            ledger.refused(&said.into());
        }
        ledger.refused(&Refusal::by_peer("uid".into(), String::new(), String::new()).into());
        ledger.refused(&Refusal::new(Check::Uid, "1000", "1001").into());
        ledger.refused(&Error::Aborted);
        let refused: Vec<_> = ledger.stats(0).refused.into_iter().collect();
        let expected = [("ABORTED", 1), ("other", 1000), ("uid", 2)];
        assert_eq!(refused, expected.map(|(by, count)| (by.to_owned(), count)));
    }
}
