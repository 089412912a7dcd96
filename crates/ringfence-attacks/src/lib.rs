//! Attacks on shared-memory channels, carried out by real processes: first on a [plain program](plain) built as the
//! well-known recipe says, where each must bite, then on ringfence, where it must fail with exactly the promised
//! result. An attack that no longer bites the plain program proves nothing about ringfence, so that is a failure too.
//!
//! One executable plays all parts (`role …`), because most attackers must run the very executable of the protected
//! programs: that is what passes the check of `/proc/PID/exe`.

#[cfg(not(target_os = "linux"))]
compile_error!("these attacks are on Linux processes");

pub mod actor;
pub mod mapping;
pub mod plain;
pub mod plain_many;
pub mod post;
pub mod protocol;
pub mod stage;

mod roles;
mod rows;

use std::{fmt, path::Path};

pub use roles::play as play_role;
pub use rows::ROWS;
use stage::Stage;

/// One row of the attack table.
#[derive(Debug)]
pub struct Row {
    /// Its number in the table.
    pub number: u8,
    /// Who attacks: OU another user, SU the same user, MP a peer that passed the checks; NR the program itself runs out of
    /// something.
    pub who: &'static str,
    /// What is done.
    pub attack: &'static str,
    /// Whether it must do harm to the plain program. (Some attacks are in the table because they must fail.)
    pub bites_plain: bool,
    /// Carries it out, against both.
    pub run: fn(&Stage) -> Result<Report, Trouble>,
}

/// What came of an attack.
#[derive(Debug)]
pub struct Report {
    /// On the plain program.
    pub plain: Half,
    /// On ringfence.
    pub ringfence: Half,
    /// What stopped it there.
    pub stopped_by: &'static str,
}

/// What came of an attack on one of the two.
#[derive(Debug)]
pub struct Half {
    /// Whether it did harm.
    pub bit: bool,
    /// What was seen.
    pub seen: String,
}

impl Report {
    /// An attack that did harm to ringfence.
    fn bitten(plain: Half, seen: impl Into<String>) -> Self {
        Self {
            plain,
            ringfence: Half::bit(seen),
            stopped_by: "nothing",
        }
    }
}

impl Half {
    /// It did harm.
    pub fn bit(seen: impl Into<String>) -> Self {
        Self {
            bit: true,
            seen: seen.into(),
        }
    }

    /// It failed, in the way that was promised.
    pub fn held(seen: impl Into<String>) -> Self {
        Self {
            bit: false,
            seen: seen.into(),
        }
    }
}

/// Why a row has no report.
#[derive(Debug)]
pub enum Trouble {
    /// Something else happened than harm or the promised failure: the row fails.
    Wrong(String),
    /// The row takes another user, whom only root can play.
    NeedsRoot,
    /// The row takes something that this system does not offer.
    Skipped(String),
    /// The row is about something that ringfence does not have yet.
    Later(&'static str),
}

impl Trouble {
    /// Something unforeseen.
    pub fn wrong(what: impl Into<String>) -> Self {
        Self::Wrong(what.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(what) => write!(f, "FAILED: {what}"),
            Self::NeedsRoot => write!(f, "skipped: needs root"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Later(why) => write!(f, "not yet: {why}"),
        }
    }
}

/// Plays one row with copies of `executable`.
pub fn play(row: &Row, executable: &Path) -> Result<Report, Trouble> {
    (row.run)(&Stage::new(executable)?)
}

/// Whether a row's outcome is the promised one. Rows that could not be played are no failure, and are shown.
pub fn is_as_promised(row: &Row, outcome: &Result<Report, Trouble>) -> bool {
    match outcome {
        Ok(report) => report.plain.bit == row.bites_plain && !report.ringfence.bit,
        Err(trouble) => !matches!(trouble, Trouble::Wrong(_)),
    }
}

/// Plays the rows with these numbers (all, if none are given) and prints the table. Returns whether all went as
/// promised.
pub fn print_table(executable: &Path, numbers: &[u8]) -> bool {
    println!("| # | who | attack | plain program | ringfence | what stopped it |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for row in ROWS
        .iter()
        .filter(|row| numbers.is_empty() || numbers.contains(&row.number))
    {
        let outcome = play(row, executable);
        let Row {
            number, who, attack, ..
        } = row;
        match &outcome {
            Ok(Report {
                plain,
                ringfence,
                stopped_by,
            }) => {
                let mark = |half: &Half| if half.bit { "BITES: " } else { "" };
                let stopped_by = if ringfence.bit { "nothing" } else { stopped_by };
                println!(
                    "| {number} | {who} | {attack} | {}{} | {}{} | {stopped_by} |",
                    mark(plain),
                    plain.seen,
                    mark(ringfence),
                    ringfence.seen
                );
            }
            Err(trouble) => println!("| {number} | {who} | {attack} | {trouble} | | |"),
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
