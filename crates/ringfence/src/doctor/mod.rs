//! What this kernel, this machine and this process offer, found out by trying.
//!
//! Each probe does what a channel does, on objects of its own that are gone when it returns. What it finds is said
//! in a sentence about the promises: a machine is not good or bad, but some promises rest on things that it lacks.
//!
//! `finding` is what a probe says. `memfd` and `lease` try the objects, `peers` what is known of a peer, `proc` what is seen of
//! others, `room` the memory, `openness` who may look into this process, `identity` who it is, `limits` what it may have,
//! `surroundings` its filter and its container.
//!
//! May import everything. Nothing imports it.

mod finding;
mod identity;
mod lease;
mod limits;
mod memfd;
mod openness;
mod peers;
mod proc;
mod room;
mod surroundings;

pub use finding::{Finding, Status};

use crate::sys;

/// What [`doctor`] found.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kernel's name and version.
    pub kernel: String,
    /// One for each thing that the promises rest on, in an order that is kept.
    pub findings: Vec<Finding>,
}

/// Tries what this kernel offers to this process, and says what that means for the promises.
///
/// Harmless, and leaves nothing behind: no descriptor, no mapping, no file, no state of the process. Takes a few
/// milliseconds. What is missing is a finding, never an error.
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
        findings: vec![
            memfd::memfd_seals(),
            memfd::memfd_noexec(),
            lease::memfd_lease(),
            lease::shm_lease(),
            lease::tripwire(),
            peers::pidfd(),
            peers::peer_pidfd(),
            peers::peer_groups(),
            peers::pidfd_information(),
            peers::membarrier(),
            proc::proc(),
            proc::pid_namespace(),
            room::shared_memory(),
            room::memory(),
            openness::ptrace_scope(),
            openness::dumpable(),
            identity::user(),
            identity::label(),
            identity::executable(),
            limits::file_size(),
            limits::descriptors(),
            limits::signals(),
            limits::tokens(),
            openness::core(),
            surroundings::seccomp(),
            surroundings::container(),
        ],
    }
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
    fn every_finding_is_there_once_and_says_something() {
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
        assert_eq!(
            titles.len(),
            names.len(),
            "a title tells one finding from the others"
        );
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

    /// What a channel of the default backing cannot do without: a machine on which the other tests pass has it.
    #[test]
    fn what_the_default_needs_is_good_where_channels_can_be_made() {
        let diagnosis = doctor();
        for name in ["memfd-seals", "memfd-lease", "tripwire"] {
            let found = finding(&diagnosis, name);
            assert_eq!(found.status, Status::Good, "{found:?}");
        }
    }

    /// Alone in a process: other tests open and close things meanwhile.
    #[test]
    fn nothing_is_left_behind() {
        const ALONE: &str = "RINGFENCE_DOCTOR_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let status = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "doctor::tests::nothing_is_left_behind",
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
            // The directory that is being read is itself one of them.
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
