//! What a probe says, and the small things that several probes need.

use std::fmt;

use crate::{options::Options, region::layout::region_size, sys};

/// Whether the promises that rest on something hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// They do.
    Good,
    /// They hold in part: the finding's meaning says which.
    Limited,
    /// They do not hold here.
    Missing,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Limited => "limited",
            Self::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name for programs: small letters and hyphens. Names are kept from version to version.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Whether the promises that rest on it hold.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for the promises, and what can be done about it.
    pub meaning: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.status)
    }
}

/// A finding with its constant parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
}

impl About {
    pub(super) fn is(self, status: Status, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        Finding {
            name: self.name,
            title: self.title,
            status,
            found: found.into(),
            meaning: meaning.into(),
        }
    }

    pub(super) fn good(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Good, found, meaning)
    }

    pub(super) fn limited(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Limited, found, meaning)
    }

    pub(super) fn missing(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Missing, found, meaning)
    }
}

pub(super) fn bytes(count: u64) -> String {
    match count {
        0..=1023 => format!("{count} bytes"),
        1024..=1_048_575 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// The region of a ring with the default capacity.
pub(super) fn default_region() -> u64 {
    region_size(Options::default().capacity)
}

/// A line of /proc/self/status.
pub(super) fn status_line(name: &str) -> Option<String> {
    let text = sys::file::read_whole_text("/proc/self/status").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

pub(super) fn number_in(path: &str) -> Option<u64> {
    sys::file::read_whole_text(path).ok()?.trim().parse().ok()
}
