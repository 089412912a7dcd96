//! Attacks on shared-memory channels, carried out by real processes.
//!
//! Each attack first runs against a [plain program](plain) that follows the well-known recipe, and must harm it.
//! Then it runs against ringfence, and must fail with exactly the promised result. An attack that no longer harms
//! the plain program proves nothing about ringfence, so that is a failure too.
//!
//! One executable has all roles (`role …`), because most attackers must run the same executable as the
//! protected programs: that passes the check of `/proc/PID/exe`.

#[cfg(not(target_os = "linux"))]
compile_error!("ringfence-attacks runs on Linux only");

pub mod mapping;
pub mod plain;
pub mod plain_broadcast;
pub mod process;
pub mod protocol;
pub mod setup;
pub mod socket;

mod roles;
mod rows;

use std::{fmt, path::Path};

pub use roles::run as run_role;
pub use rows::ROWS;
use setup::Setup;

/// One row of the attack table.
#[derive(Debug)]
pub struct Row {
    /// Its number in the table.
    pub number: u8,
    /// The attacker: OU another user, SU the same user, MP a peer that passed the checks, NR no attacker, but
    /// the program itself runs out of something.
    pub who: &'static str,
    /// A description of the attack.
    pub attack: &'static str,
    /// Whether it must harm the plain program. (Some attacks are in the table because they must fail.)
    pub harms_plain: bool,
    /// Carries out the attack on both programs.
    pub run: fn(&Setup) -> Result<Report, RowError>,
}

/// The outcome of an attack.
#[derive(Debug)]
pub struct Report {
    /// On the plain program.
    pub plain: Outcome,
    /// On ringfence.
    pub ringfence: Outcome,
    /// The defence that stopped it in ringfence.
    pub stopped_by: &'static str,
}

/// The outcome of an attack on one of the two programs.
#[derive(Debug)]
pub struct Outcome {
    /// Whether it did harm.
    pub succeeded: bool,
    /// The observation.
    pub seen: String,
}

impl Report {
    /// Makes the report of an attack that harmed ringfence.
    fn with_harm(plain: Outcome, seen: impl Into<String>) -> Self {
        Self {
            plain,
            ringfence: Outcome::succeeded(seen),
            stopped_by: "nothing",
        }
    }
}

impl Outcome {
    /// Makes an outcome with harm.
    pub fn succeeded(seen: impl Into<String>) -> Self {
        Self {
            succeeded: true,
            seen: seen.into(),
        }
    }

    /// Makes an outcome without harm: the attack failed as promised.
    pub fn failed(seen: impl Into<String>) -> Self {
        Self {
            succeeded: false,
            seen: seen.into(),
        }
    }
}

/// The reason why a row has no report.
#[derive(Debug)]
pub enum RowError {
    /// Neither harm nor the promised failure happened, so the row fails.
    Wrong(String),
    /// The row needs another user, which only root can provide.
    NeedsRoot,
    /// The row needs a feature that this system lacks.
    Skipped(String),
    /// The row concerns a feature that ringfence does not have yet.
    Later(&'static str),
}

impl RowError {
    /// Makes the error for an unexpected result.
    pub fn wrong(what: impl Into<String>) -> Self {
        Self::Wrong(what.into())
    }
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(what) => write!(f, "FAILED: {what}"),
            Self::NeedsRoot => write!(f, "skipped: needs root"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Later(why) => write!(f, "not yet: {why}"),
        }
    }
}

/// Returns a function that names the failed call in front of its errno.
fn failed(what: &'static str) -> impl Fn(nix::Error) -> String {
    move |errno| format!("{what}: {errno}")
}

/// Runs one row with copies of `executable`.
pub fn run_row(row: &Row, executable: &Path) -> Result<Report, RowError> {
    (row.run)(&Setup::new(executable)?)
}

/// Whether a row's outcome is the promised one. Rows that could not run are shown, and are no failure.
pub fn is_as_promised(row: &Row, outcome: &Result<Report, RowError>) -> bool {
    match outcome {
        Ok(report) => report.plain.succeeded == row.harms_plain && !report.ringfence.succeeded,
        Err(error) => !matches!(error, RowError::Wrong(_)),
    }
}

/// Runs the rows with these numbers (all, if none are given) and prints the table. Returns whether all
/// outcomes were as promised.
pub fn print_table(executable: &Path, numbers: &[u8]) -> bool {
    println!("| # | who | attack | plain program | ringfence | what stopped it |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for row in ROWS
        .iter()
        .filter(|row| numbers.is_empty() || numbers.contains(&row.number))
    {
        let outcome = run_row(row, executable);
        let Row {
            number, who, attack, ..
        } = row;
        match &outcome {
            Ok(Report {
                plain,
                ringfence,
                stopped_by,
            }) => {
                let mark = |outcome: &Outcome| if outcome.succeeded { "HARMED: " } else { "" };
                let stopped_by = if ringfence.succeeded {
                    "nothing"
                } else {
                    stopped_by
                };
                println!(
                    "| {number} | {who} | {attack} | {}{} | {}{} | {stopped_by} |",
                    mark(plain),
                    plain.seen,
                    mark(ringfence),
                    ringfence.seen
                );
            }
            Err(error) => println!("| {number} | {who} | {attack} | {error} | | |"),
        }
        match (&outcome, is_as_promised(row, &outcome)) {
            (_, false) => failed += 1,
            (Ok(_), true) => passed += 1,
            (Err(_), true) => skipped += 1,
        }
    }
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}
