//! The slots of an endpoint, and what is counted there: open slots by process and user, accepted and refused clients.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Weak},
};

use crate::{
    channel::Channel,
    channel::end::Shared,
    channel::stats::{ChannelStats, Counters},
    error::Error,
    identity::Credentials,
    options::SlotLimits,
};

/// The slots that are taken: in all, by process, and by user.
#[derive(Debug, Default)]
pub(crate) struct TakenSlots {
    pub(crate) all: usize,
    of_process: HashMap<i32, usize>,
    of_user: HashMap<u32, usize>,
}

impl TakenSlots {
    /// The reason why a process gets no slot now, if any. `host` names the endpoint: "service".
    pub(crate) fn refusal(&self, limits: &SlotLimits, peer: Credentials, host: &str) -> Option<String> {
        let (all, of_process, of_user) = (limits.all, limits.of_process, limits.of_user(peer.uid));
        let has = |used: Option<&usize>| used.copied().unwrap_or(0);
        if self.all >= all {
            Some(format!("the {host} is full, with {all} at once"))
        } else if has(self.of_user.get(&peer.uid)) >= of_user {
            Some(format!(
                "user {} has {of_user} of the {host}'s channels, and one user may have no more at once \
                 (max_peers_per_user)",
                peer.uid
            ))
        } else if has(self.of_process.get(&peer.pid)) >= of_process {
            Some(format!(
                "process {} has {of_process} of the {host}'s channels, and one process may have no more at once \
                 (max_peers_per_process)",
                peer.pid
            ))
        } else {
            None
        }
    }

    pub(crate) fn add(&mut self, peer: Credentials) {
        self.all += 1;
        *self.of_process.entry(peer.pid).or_default() += 1;
        *self.of_user.entry(peer.uid).or_default() += 1;
    }

    /// Reverts one [`TakenSlots::add`].
    pub(crate) fn remove(&mut self, peer: Credentials) {
        self.all -= 1;
        decrement(&mut self.of_process, peer.pid);
        decrement(&mut self.of_user, peer.uid);
    }
}

fn decrement<K: Eq + Hash>(slots: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut used) = slots.entry(key) {
        *used.get_mut() -= 1;
        if *used.get() == 0 {
            used.remove();
        }
    }
}

/// The counts of a service or a membership since it was created.
#[non_exhaustive]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Channels that are open now, including those that the program has not accepted yet.
    pub open: usize,
    /// Channels that were made.
    pub accepted: u64,
    /// Refused clients, counted by the check that failed (`uid`, `executable`, …), or if it was not a check, by the error's code
    /// ([`Error::code`]). `other` is a check of the peer's that this version does not know.
    pub refused: BTreeMap<String, u64>,
    /// The sums over all channels that were made, as each has reported them last (see [`Sender::stats`](crate::Sender::stats)).
    /// `ring_used`, `ring_capacity` and `staged` count open channels only.
    pub channels: ChannelStats,
}

/// The channels of an endpoint, and its counts.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accepted: u64,
    refused: BTreeMap<String, u64>,
    made: Vec<(Weak<Shared>, Arc<Counters>)>,
    /// The sums of the channels whose halves are dropped.
    past: ChannelStats,
}

impl Ledger {
    /// A client has a channel.
    pub(crate) fn accepted(&mut self, channel: &Channel) {
        self.accepted += 1;
        // At powers of two, so that the cost per channel stays constant.
        if self.made.len().is_power_of_two() {
            self.sum_up();
        }
        let shared = channel.shared();
        self.made
            .push((Arc::downgrade(shared), Arc::clone(&shared.counters)));
    }

    /// A client has no channel.
    pub(crate) fn refused(&mut self, error: &Error) {
        let by = match error.refusal() {
            // Not the name that a peer sends: it may invent a new one each time, and each would stay.
            Some(refusal) => refusal.check.name(),
            None => error.code(),
        };
        if let Some(count) = self.refused.get_mut(by) {
            *count += 1;
        } else {
            self.refused.insert(by.to_owned(), 1);
        }
    }

    /// The channels that were made and are not dropped.
    pub(crate) fn channels(&self) -> Vec<Arc<Shared>> {
        self.made
            .iter()
            .filter_map(|(channel, _)| channel.upgrade())
            .collect()
    }

    /// Adds the figures of dropped channels, which do not change any further, to `past`.
    fn sum_up(&mut self) {
        let Self { made, past, .. } = self;
        made.retain(|(channel, counters)| {
            let is_there = channel.strong_count() > 0;
            if !is_there {
                *past += of_ended(counters.snapshot());
            }
            is_there
        });
    }

    pub(crate) fn stats(&mut self, open: usize) -> EndpointStats {
        self.sum_up();
        let mut channels = self.past;
        for (channel, counters) in &self.made {
            let stats = counters.snapshot();
            let is_open = channel
                .upgrade()
                .is_some_and(|channel| channel.close_reason().is_none());
            channels += if is_open { stats } else { of_ended(stats) };
        }
        EndpointStats {
            open,
            accepted: self.accepted,
            refused: self.refused.clone(),
            channels,
        }
    }
}

/// Drops the figures that describe an open channel only.
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
    fn names_invented_by_a_peer_count_as_other() {
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
