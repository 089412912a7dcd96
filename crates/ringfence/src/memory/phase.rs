//! What the owner of a region says that it will still do, and which word may follow which.
//!
//! This file knows nothing of memory, locks or processes, and imports nothing: the model of a channel's end
//! (`crates/ringfence-model`) is built from this very text. Who may change the word, and under which lock, is said at
//! `OwnPhase` in `shared.rs`.

/// How far the owner of a region is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub(crate) enum Step {
    /// It has the channel.
    Open = 0,
    /// It has closed the channel on purpose.
    Closed = 2,
    /// Another process tried to open this region's object: it was wiped.
    Exposed = 3,
    /// It has left the address that both are members of, and lets go of it once the peer has answered.
    Left = 4,
    /// The answer: it has taken the place of a peer that has left, or has ended.
    Succeeds = 5,
    /// Of a publisher: the subscriber that reads this has held it up for too long, and is let go of.
    Evicted = 6,
}

/// The phase of a region: one word, which its owner writes and its peer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Phase {
    pub(crate) step: Step,
    /// It has said that it sends no more: what lies before its tail is all that it wanted to send. Never unsaid; of an
    /// exposed region, where nothing can be read any more, it is not told, and neither of one whose reader is evicted.
    pub(crate) ended: bool,
}

/// Beside the other steps: the owner had ended its sending before.
const ENDED_BEFORE: u64 = 8;

impl Phase {
    pub(crate) const OPEN: Self = Self::new(Step::Open, false);
    /// It sends no more, and still reads.
    pub(crate) const ENDED: Self = Self::new(Step::Open, true);
    pub(crate) const EXPOSED: Self = Self::new(Step::Exposed, false);
    pub(crate) const EVICTED: Self = Self::new(Step::Evicted, false);

    const fn new(step: Step, ended: bool) -> Self {
        Self { step, ended }
    }

    /// As it stands in the region.
    pub(crate) const fn word(self) -> u64 {
        match (self.step, self.ended) {
            (Step::Open, ended) => ended as u64,
            (Step::Exposed | Step::Evicted, _) | (_, false) => self.step as u64,
            (_, true) => self.step as u64 | ENDED_BEFORE,
        }
    }

    /// `None` for what no owner that keeps to the protocol writes.
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        use Step::{Closed, Evicted, Exposed, Left, Open, Succeeds};
        [Open, Closed, Exposed, Left, Succeeds, Evicted]
            .into_iter()
            .flat_map(|step| [Self::new(step, false), Self::new(step, true)])
            .find(|phase| phase.word() == word)
    }

    /// More may come, as far as this word says.
    pub(crate) fn is_open(self) -> bool {
        self == Self::OPEN
    }

    /// The phase after this one, where the owner ends its sending now. `None`: it has, or nothing can follow.
    pub(crate) fn ending(self) -> Option<Self> {
        (self == Self::OPEN).then_some(Self::ENDED)
    }

    /// The phase after this one, where the owner takes this step. `None`: this step does not follow.
    ///
    /// What has been said of the sending stays said. A step is final, but for one: a host that has left the address and
    /// waits for the answer still has its region, and wipes it when that is opened. That does not take the leaving back,
    /// since the host stays silent and admits no other guest.
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
