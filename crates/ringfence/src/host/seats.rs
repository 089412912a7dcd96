//! Slots of an endpoint that takes many: so many in all, so many of one process, and so many of one user.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

use crate::{identity::Credentials, options::SeatLimits};

/// The seats that are taken.
#[derive(Debug, Default)]
pub(crate) struct TakenSeats {
    all: usize,
    of_process: HashMap<i32, usize>,
    of_user: HashMap<u32, usize>,
}

impl TakenSeats {
    pub(crate) fn count(&self) -> usize {
        self.all
    }

    /// Why there is no seat for a process now, if there is none. `host` names the endpoint: "service".
    pub(crate) fn refusal(&self, limits: &SeatLimits, who: Credentials, host: &str) -> Option<String> {
        let (all, of_process, of_user) = (limits.all, limits.of_process, limits.of_user(who.uid));
        let has = |taken: Option<&usize>| taken.copied().unwrap_or(0);
        if self.all >= all {
            Some(format!("the {host} is full, with {all} at once"))
        } else if has(self.of_user.get(&who.uid)) >= of_user {
            Some(format!(
                "user {} has {of_user} of the {host}'s channels, and one user may have no more at once \
                 (maxPeersPerUser)",
                who.uid
            ))
        } else if has(self.of_process.get(&who.pid)) >= of_process {
            Some(format!(
                "process {} has {of_process} of the {host}'s channels, and one process may have no more at once \
                 (maxPeersPerProcess)",
                who.pid
            ))
        } else {
            None
        }
    }

    pub(crate) fn take(&mut self, who: Credentials) {
        self.all += 1;
        *self.of_process.entry(who.pid).or_default() += 1;
        *self.of_user.entry(who.uid).or_default() += 1;
    }

    /// What [`TakenSeats::take`] has counted for this process, once for each call of that.
    pub(crate) fn give_back(&mut self, who: Credentials) {
        self.all -= 1;
        give_back(&mut self.of_process, who.pid);
        give_back(&mut self.of_user, who.uid);
    }
}

fn give_back<K: Eq + Hash>(seats: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut taken) = seats.entry(key) {
        *taken.get_mut() -= 1;
        if *taken.get() == 0 {
            taken.remove();
        }
    }
}
