//! The list of checks made on the way to a channel, with what each found.

use std::fmt;

use crate::trace;

/// One check, for logs and audits. A channel exists only if every check that the policy asks for has passed.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The step of the handshake that the check belongs to: `rendezvous`, `credentials`, `executable`,
    /// `hello`, `offer`, `object`, `final`, `ready`; or `verify`, for a later look.
    pub step: &'static str,
    /// What was looked at.
    pub check: &'static str,
    /// What it had to be.
    pub wanted: String,
    /// What it was.
    pub found: String,
    /// How the check came out.
    pub outcome: Outcome,
}

/// How a check came out. There is no third outcome: a check that fails is an [`Error`](crate::Error), and there is no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was found is what was wanted.
    Passed,
    /// It was noted and not compared, since the policy or this kernel leaves it open.
    NotAsked,
}

impl Outcome {
    /// Its name, for logs and for programs: `passed` or `not-asked`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NotAsked => "not-asked",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Collects [`Evidence`] in the order of the steps.
#[derive(Debug, Default, Clone)]
pub(crate) struct Record(Vec<Evidence>);

impl Record {
    pub(crate) fn passed(
        &mut self,
        step: &'static str,
        check: &'static str,
        wanted: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.note(Evidence {
            step,
            check,
            wanted: wanted.into(),
            found: found.into(),
            outcome: Outcome::Passed,
        });
    }

    /// Notes what this kernel or policy leaves open, so that a reader does not take it for checked.
    pub(crate) fn not_asked(&mut self, step: &'static str, check: &'static str, found: impl Into<String>) {
        self.note(Evidence {
            step,
            check,
            wanted: "not asked for".into(),
            found: found.into(),
            outcome: Outcome::NotAsked,
        });
    }

    fn note(&mut self, evidence: Evidence) {
        let Evidence {
            step,
            check,
            wanted,
            found,
            outcome,
        } = &evidence;
        trace::step(step, check, wanted, found, outcome.as_str());
        self.0.push(evidence);
    }

    pub(crate) fn into_list(self) -> Vec<Evidence> {
        self.0
    }
}
