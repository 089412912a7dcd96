//! The list of checks made on the way to a channel, with what each found.

/// One check: for the log, the audit and the demo. A channel exists only if every one of them passed, apart from
/// those that say that something was not looked at.
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
    /// Whether it passed.
    pub passed: bool,
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
        self.0.push(Evidence {
            step,
            check,
            wanted: wanted.into(),
            found: found.into(),
            passed: true,
        });
    }

    /// Notes something that this kernel or policy leaves unlooked at, so that nobody takes it for checked.
    pub(crate) fn unchecked(&mut self, step: &'static str, check: &'static str, why: impl Into<String>) {
        self.0.push(Evidence {
            step,
            check,
            wanted: "not asked for".into(),
            found: why.into(),
            passed: true,
        });
    }

    pub(crate) fn into_list(self) -> Vec<Evidence> {
        self.0
    }
}
