//! The state that the owner of a region announces, and the order in which it may change.
//!
//! This file knows nothing of memory, locks or processes, and imports nothing: the model of a channel's end
//! (`crates/ringfence-model`) includes this source file. `OwnPhase` in `channel/end.rs` documents who
//! may change the word, and under which lock.

/// The step at which the owner of a region is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub(crate) enum Step {
    /// It has the channel.
    Open = 0,
    /// It has closed the channel deliberately.
    Closed = 2,
    /// Another process tried to open this region's object, and the object was wiped.
    Exposed = 3,
    /// It has left the address of the membership, and will release it when the peer has answered.
    Left = 4,
    /// The answer: it has taken over from a peer that has left or ended.
    Succeeds = 5,
    /// Set by a publisher: the subscriber that reads this region has delayed it for too long and is evicted.
    Evicted = 6,
}

/// The phase of a region: one word that its owner writes and its peer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Phase {
    pub(crate) step: Step,
    /// It has ended its sending: the data before its tail is complete. This is never revoked. An exposed
    /// region does not report it, because nothing in it can be read, and neither does one whose reader is
    /// evicted.
    pub(crate) ended: bool,
}

/// Added to the other steps: the owner had already ended its sending.
const ENDED_BEFORE: u64 = 8;

impl Phase {
    pub(crate) const OPEN: Self = Self::new(Step::Open, false);
    /// It has ended its sending, and still reads.
    pub(crate) const ENDED: Self = Self::new(Step::Open, true);
    pub(crate) const EXPOSED: Self = Self::new(Step::Exposed, false);
    pub(crate) const EVICTED: Self = Self::new(Step::Evicted, false);

    const fn new(step: Step, ended: bool) -> Self {
        Self { step, ended }
    }

    /// Returns the word that encodes this phase.
    pub(crate) const fn word(self) -> u64 {
        match (self.step, self.ended) {
            (Step::Open, ended) => ended as u64,
            (Step::Exposed | Step::Evicted, _) | (_, false) => self.step as u64,
            (_, true) => self.step as u64 | ENDED_BEFORE,
        }
    }

    /// Decodes a word. Returns `None` for a word that no correct owner writes.
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        use Step::{Closed, Evicted, Exposed, Left, Open, Succeeds};
        [Open, Closed, Exposed, Left, Succeeds, Evicted]
            .into_iter()
            .flat_map(|step| [Self::new(step, false), Self::new(step, true)])
            .find(|phase| phase.word() == word)
    }

    /// Whether more data may follow, according to this word.
    pub(crate) fn is_open(self) -> bool {
        self == Self::OPEN
    }

    /// Returns the phase after the owner ends its sending. `None` if it already has, or if no phase can
    /// follow.
    pub(crate) fn ending(self) -> Option<Self> {
        (self == Self::OPEN).then_some(Self::ENDED)
    }

    /// Returns the phase after the owner takes this step. `None` if the step may not follow.
    ///
    /// The end of sending stays announced. A step is final with one exception: a host that has left the
    /// address and waits for the answer still has its region, and wipes it if the region is opened. That does
    /// not revoke the leaving, because the host stays silent and admits no other guest.
    pub(crate) fn then(self, step: Step) -> Option<Self> {
        use Step::{Closed, Evicted, Exposed, Left, Open, Succeeds};
        match (self.step, step) {
            (Open, Closed | Left | Succeeds) => Some(Self::new(step, self.ended)),
            (Open | Left, Exposed) => Some(Self::EXPOSED),
            (Open, Evicted) => Some(Self::EVICTED),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Phase,
        Step::{Closed, Evicted, Exposed, Left, Open, Succeeds},
    };

    #[test]
    fn phase_words_round_trip_and_others_are_invalid() {
        let words = [
            (0, Phase::OPEN),
            (1, Phase::ENDED),
            (2, Phase::new(Closed, false)),
            (3, Phase::EXPOSED),
            (4, Phase::new(Left, false)),
            (5, Phase::new(Succeeds, false)),
            (6, Phase::EVICTED),
            (10, Phase::new(Closed, true)),
            (12, Phase::new(Left, true)),
            (13, Phase::new(Succeeds, true)),
        ];
        for word in (0..64).chain([u64::MAX, 1 << 32]) {
            let phase = words
                .iter()
                .find(|(known, _)| *known == word)
                .map(|(_, phase)| *phase);
            assert_eq!(Phase::from_word(word), phase, "{word}");
            assert!(phase.is_none_or(|phase| phase.word() == word), "{word}");
        }
    }

    #[test]
    fn end_of_sending_and_final_steps_are_permanent() {
        let steps = [Open, Closed, Exposed, Left, Succeeds, Evicted];
        for (from, ended) in steps.into_iter().flat_map(|step| [(step, false), (step, true)]) {
            let phase = Phase::new(from, ended);
            assert_eq!(phase.is_open(), from == Open && !ended);
            let ending = (from == Open && !ended).then_some(Phase::ENDED);
            assert_eq!(phase.ending(), ending, "{phase:?}");
            for to in steps {
                let then = match (from, to) {
                    (Open, Closed | Left | Succeeds) => Some(Phase::new(to, ended)),
                    (Open, Exposed | Evicted) | (Left, Exposed) => Some(Phase::new(to, false)),
                    _ => None,
                };
                assert_eq!(phase.then(to), then, "{phase:?}, then {to:?}");
            }
        }
    }
}
