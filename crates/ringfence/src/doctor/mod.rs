//! Tests what this kernel, this machine and this process offer, by trying it.
//!
//! Each probe does what a channel does, on its own objects, which it releases before it returns. Its finding says which promises
//! hold, because some depend on features that a machine may lack.
//!
//! `objects` tests shared memory. `process` tests the properties and rights of this process, and what it can read about others.
//!
//! May import everything. Nothing imports it.

mod objects;
mod process;

use std::fmt;

use crate::{options::Options, region::layout::region_size, sys};

/// The result of [`doctor`].
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kernel's name and version.
    pub kernel: String,
    /// One finding for each feature that the promises need, in a stable order.
    pub findings: Vec<Finding>,
}

/// Runs probes in this order: the name and the title of the finding, and the probe.
macro_rules! findings {
    ($($name:literal $title:literal $probe:path;)*) => {
        vec![$({
            let (status, found, meaning) = $probe();
            Finding { name: $name, title: $title, status, found, meaning }
        }),*]
    };
}

/// Tests what this kernel offers to this process, and reports which promises hold.
///
/// It leaves nothing behind: no descriptor, mapping, file or state of the process. Takes a few
/// milliseconds. A missing feature is a finding, never an error.
pub fn doctor() -> Diagnosis {
    let read =
        |name: &str| sys::file::read_whole_text(&format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let kernel = format!("{} {}", read("ostype").trim(), read("osrelease").trim());
    Diagnosis {
        kernel: if kernel.trim().is_empty() {
            "unknown: /proc cannot be read".into()
        } else {
            kernel
        },
        findings: findings! {
            "memfd-seals" "Sealed memory (memfd)" objects::memfd_seals;
            "memfd-noexec" "Non-executable memory (MFD_NOEXEC_SEAL)" objects::memfd_noexec;
            "memfd-lease" "Write lease on a memfd" objects::memfd_lease;
            "shm-lease" "Write lease on a shm_open object" objects::shm_lease;
            "tripwire" "Alarm when a shared object is opened" objects::tripwire;
            "pidfd" "Process handles (pidfd_open)" process::pidfd;
            "peer-pidfd" "The peer's process from its socket (SO_PEERPIDFD)" process::peer_pidfd;
            "peer-groups" "The peer's groups from its socket (SO_PEERGROUPS)" process::peer_groups;
            "pidfd-info" "Process details from a pidfd (PIDFD_GET_INFO)" process::pidfd_information;
            "membarrier" "Memory barriers for other processes (membarrier)" process::membarrier;
            "proc" "Process inspection (/proc)" process::proc;
            "pid-namespace" "Process numbers (pid namespace)" process::pid_namespace;
            "dev-shm" "Space in /dev/shm" objects::shared_memory;
            "memory" "Memory for a ring" objects::memory;
            "ptrace-scope" "Tracing by the same user (Yama)" process::ptrace_scope;
            "dumpable" "Access by the same user (dumpable)" process::dumpable;
            "user" "The user this process runs as" process::user;
            "label" "Security label (SO_PEERSEC)" process::label;
            "executable" "Meaning of \"the same executable\"" process::executable;
            "limit-file-size" "Largest file (RLIMIT_FSIZE)" process::file_size;
            "limit-descriptors" "Open files (RLIMIT_NOFILE)" process::descriptors;
            "limit-signals" "Queued signals (RLIMIT_SIGPENDING)" process::signals;
            "tokens" "Tokens (data of a realtime signal)" process::tokens;
            "limit-core" "Core dumps (RLIMIT_CORE)" process::core;
            "seccomp" "System call filter (seccomp)" process::seccomp;
            "container" "Container" process::container;
        },
    }
}

named! {
    /// Whether the promises that depend on a feature hold.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Status {
        /// They hold.
        Good => "good",
        /// Some hold: the finding's meaning says which.
        Limited => "limited",
        /// They do not hold here.
        Missing => "missing",
    }
}

/// The result of one probe.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name for programs: lowercase letters and hyphens. Names are stable across versions.
    pub name: &'static str,
    /// The name for people.
    pub title: &'static str,
    /// Whether the promises that depend on it hold.
    pub status: Status,
    /// The observation.
    pub found: String,
    /// The meaning for the promises, and what can be done about it.
    pub meaning: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.status)
    }
}

/// The status, the observation and the meaning of a [`Finding`].
type Judgement = (Status, String, String);

impl Status {
    fn with(self, found: impl Into<String>, meaning: impl Into<String>) -> Judgement {
        (self, found.into(), meaning.into())
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

pub(super) fn number_in(path: &str) -> Option<u64> {
    sys::file::read_whole_text(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, process::Command};

    use super::*;

    fn finding<'a>(diagnosis: &'a Diagnosis, name: &str) -> &'a Finding {
        diagnosis
            .findings
            .iter()
            .find(|finding| finding.name == name)
            .unwrap()
    }

    #[test]
    fn findings_are_unique_and_described() {
        let diagnosis = doctor();
        assert!(diagnosis.kernel.starts_with("Linux "), "{}", diagnosis.kernel);
        let names: Vec<_> = diagnosis.findings.iter().map(|finding| finding.name).collect();
        assert_eq!(
            names,
            [
                "memfd-seals",
                "memfd-noexec",
                "memfd-lease",
                "shm-lease",
                "tripwire",
                "pidfd",
                "peer-pidfd",
                "peer-groups",
                "pidfd-info",
                "membarrier",
                "proc",
                "pid-namespace",
                "dev-shm",
                "memory",
                "ptrace-scope",
                "dumpable",
                "user",
                "label",
                "executable",
                "limit-file-size",
                "limit-descriptors",
                "limit-signals",
                "tokens",
                "limit-core",
                "seccomp",
                "container",
            ]
        );
        let titles: BTreeSet<_> = diagnosis.findings.iter().map(|finding| finding.title).collect();
        assert_eq!(titles.len(), names.len(), "duplicate titles");
        for Finding {
            name, found, meaning, ..
        } in &diagnosis.findings
        {
            assert!(!found.is_empty() && !meaning.is_empty(), "{name}");
            assert!(
                !meaning.contains("  ") && !meaning.ends_with('.'),
                "{name}: {meaning:?}"
            );
        }
    }

    /// The default backing needs these features, so a machine on which the other tests pass has them.
    #[test]
    fn default_requirements_are_met_where_channels_work() {
        let diagnosis = doctor();
        for name in ["memfd-seals", "memfd-lease", "tripwire"] {
            let found = finding(&diagnosis, name);
            assert_eq!(found.status, Status::Good, "{found:?}");
        }
    }

    /// In a separate process, because other tests open and close descriptors concurrently.
    #[test]
    fn doctor_leaves_nothing_behind() {
        const ALONE: &str = "RINGFENCE_DOCTOR_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let status = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "doctor::tests::doctor_leaves_nothing_behind",
                    "--test-threads=1",
                ])
                .env(ALONE, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        let open = || -> BTreeSet<_> {
            let links = fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            // Excludes the descriptor of /proc/self/fd itself.
            links.filter(|link| !link.starts_with("/proc")).collect()
        };
        let objects = || -> usize {
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines()
                .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
                .count()
        };
        let names = || -> usize {
            let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
            entries
                .filter(|entry| {
                    entry
                        .file_name()
                        .to_string_lossy()
                        .starts_with("ringfence-doctor")
                })
                .count()
        };
        let before = (open(), objects(), names());
        for _ in 0..10 {
            doctor();
        }
        assert_eq!((open(), objects(), names()), before);
    }
}
