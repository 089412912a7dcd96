//! Whether the kernel confines the peer, as /proc shows it to this process.
//!
//! `no_new_privs`, seccomp filters, capabilities and the network namespace belong to a thread and not to a
//! process. So a peer is confined only if each of its threads is.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstat, fstatat, stat},
};

use crate::{
    error::{Result, errno},
    identity::Confinement,
    peer::namespace::{KernelResult, read_text, unless_short},
    sys::{self, uninterrupted},
    wait::deadline::Deadline,
};

/// The number of times that the threads of a peer are read, before a peer that keeps starting threads is
/// refused.
const PASSES: usize = 16;

/// Names the operation in errors about this process's own resources.
const READING: &str = "the confinement of the peer's threads (/proc/PID/task)";

/// The names of the namespaces in /proc/PID/ns.
const USER: &str = "user";
const NETWORK: &str = "net";

/// A restriction and what was found of it. `Err`: the check has failed.
pub(crate) type ConfinementCheck = (Confinement, Result<String, String>);

/// The same reason why no check can be made.
pub(crate) fn fail_all(wanted: &[Confinement], why: &str) -> Vec<ConfinementCheck> {
    let fail = |confinement: &Confinement| (*confinement, Err(why.to_owned()));
    wanted.iter().map(fail).collect()
}

impl Confinement {
    /// Describes the requirement, for the evidence.
    pub(crate) const fn wanted(self) -> &'static str {
        match self {
            Self::NoNewPrivs => "no_new_privs in every thread",
            Self::Seccomp => "a seccomp filter in every thread",
            Self::NoCapabilities => "no capabilities that count in this process's user namespace",
            Self::UserNamespace => "a user namespace below this process's",
            Self::NetworkNamespace => "another network namespace than this process's",
        }
    }
}

parsed! { Confinement, "a confinement" }

/// Checks every thread of the process that this directory in /proc describes. The result counts only if the
/// process is still alive afterwards.
///
/// A thread that executes a program takes the number of the first thread and ends all others. So a number that
/// was read once may belong to another thread later, and each pass reads all threads again. A pass counts if
/// it found the same threads as the one before, none of them ended during it, and the kernel counts as many.
pub(crate) fn inspect(
    wanted: &[Confinement],
    directory: Option<&OwnedFd>,
    deadline: &Deadline,
) -> Result<Vec<ConfinementCheck>> {
    let Some(directory) = directory else {
        return Ok(fail_all(
            wanted,
            "not visible: /proc does not show the peer to this process",
        ));
    };
    let unknown = |confinement: &Confinement| (*confinement, Ok(String::new()));
    let mut findings: Vec<ConfinementCheck> = wanted.iter().map(unknown).collect();
    let mut previous = None;
    for _ in 0..PASSES {
        let mut is_complete = true;
        let threads = match unless_short(READING, threads(directory))? {
            Ok(threads) => threads,
            Err(errno) => {
                let why = format!("not visible in /proc/PID/task: {}", errno.desc());
                return Ok(fail_all(wanted, &why));
            }
        };
        for number in &threads {
            deadline.check_at(READING)?;
            let Some(thread) = Thread::read(directory, *number, wanted)? else {
                is_complete = false;
                continue;
            };
            for (confinement, found) in findings.iter_mut().filter(|(_, found)| found.is_ok()) {
                let compared = thread.compare(*confinement);
                *found = compared.map_err(|found| format!("{found} (thread {number})"));
            }
        }
        is_complete &= unless_short(READING, count(directory))? == Ok(threads.len());
        let threads = Some(threads);
        let has_failed = findings.iter().all(|(_, found)| found.is_err());
        if has_failed || is_complete && threads == previous {
            return Ok(findings);
        }
        previous = threads;
    }
    let why = "its threads start and end faster than they can be checked";
    Ok(fail_all(wanted, why))
}

/// Returns the number of threads. Besides one link for each of them, their directory has two of its own.
fn count(directory: &OwnedFd) -> KernelResult<usize> {
    let links = uninterrupted(|| fstatat(directory, "task", AtFlags::empty()))?.st_nlink;
    usize::try_from(links).map_or(Err(Errno::EINVAL), |links| Ok(links.saturating_sub(2)))
}

fn threads(directory: &OwnedFd) -> KernelResult<BTreeSet<i32>> {
    let path = format!("/proc/self/fd/{}/task", directory.as_raw_fd());
    let entries = fs::read_dir(path).map_err(|error| errno(&error))?;
    entries
        .map(|entry| {
            let name = entry.map_err(|error| errno(&error))?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            number.ok_or(Errno::EINVAL)
        })
        .collect()
}

/// The confinement of one thread.
struct Thread {
    /// The text of its status file.
    status: KernelResult<String>,
    /// Compared only if required.
    user_namespace: KernelResult<Relation>,
    network_namespace: KernelResult<Relation>,
}

/// A namespace of the peer, compared with that of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Own,
    /// A user namespace that descends from this process's.
    Below,
    Other,
}

impl Thread {
    /// Returns `None` if the thread has ended.
    fn read(directory: &OwnedFd, number: i32, wanted: &[Confinement]) -> Result<Option<Self>> {
        let status = read_text(directory, &format!("task/{number}/status"));
        let namespace = |kind, needed_by: &[Confinement]| {
            if wanted.iter().any(|confinement| needed_by.contains(confinement)) {
                compare(directory, number, kind)
            } else {
                Err(Errno::ENODATA)
            }
        };
        let needed_by = [Confinement::UserNamespace, Confinement::NoCapabilities];
        let user_namespace = namespace(USER, &needed_by);
        let network_namespace = namespace(NETWORK, &[Confinement::NetworkNamespace]);
        let errors = [
            status.as_ref().err(),
            user_namespace.as_ref().err(),
            network_namespace.as_ref().err(),
        ];
        for errno in errors.into_iter().flatten() {
            if let Err(Errno::ENOENT | Errno::ESRCH) = unless_short::<()>(READING, Err(*errno))? {
                return Ok(None);
            }
        }
        Ok(Some(Self {
            status,
            user_namespace,
            network_namespace,
        }))
    }

    fn compare(&self, confinement: Confinement) -> Result<String, String> {
        let (passed, found) = match confinement {
            Confinement::NoNewPrivs => match self.number_in("NoNewPrivs:", 10)? {
                1 => (true, "set in every thread"),
                _ => (false, "not set"),
            },
            Confinement::Seccomp => match self.number_in("Seccomp:", 10)? {
                1 | 2 => (true, "a filter in every thread"),
                _ => (false, "no filter"),
            },
            Confinement::NoCapabilities => return self.capabilities(),
            Confinement::UserNamespace => match visible(self.user_namespace)? {
                Relation::Below => (true, "a user namespace below this process's"),
                Relation::Own => (false, "this process's own"),
                Relation::Other => (false, "a user namespace that is not below this process's"),
            },
            Confinement::NetworkNamespace => match visible(self.network_namespace)? {
                Relation::Own => (false, "this process's own"),
                Relation::Below | Relation::Other => (true, "another network namespace"),
            },
        };
        if passed {
            Ok(found.to_owned())
        } else {
            Err(found.to_owned())
        }
    }

    /// Compares the permitted capabilities, which include the effective ones: a thread can make each of them
    /// effective at any time.
    fn capabilities(&self) -> Result<String, String> {
        let effective = self.number_in("CapEff:", 16)?;
        let permitted = self.number_in("CapPrm:", 16)?;
        if permitted | effective == 0 {
            return Ok("none".to_owned());
        }
        let shown = format!("CapEff {effective:016x}, CapPrm {permitted:016x}");
        match visible(self.user_namespace)? {
            Relation::Below => Ok(format!(
                "{shown} in a user namespace below this process's, which do not count in this process's"
            )),
            Relation::Own | Relation::Other => Err(shown),
        }
    }

    /// Returns a number of the status file.
    fn number_in(&self, name: &str, radix: u32) -> Result<u64, String> {
        let text = match &self.status {
            Ok(text) => text,
            Err(errno) => return Err(format!("not visible in /proc: {}", errno.desc())),
        };
        sys::file::value_in(text, name)
            .and_then(|number| u64::from_str_radix(number, radix).ok())
            .ok_or_else(|| format!("not visible: this kernel does not show {name} in /proc/PID/status"))
    }
}

fn visible(relation: KernelResult<Relation>) -> Result<Relation, String> {
    relation.map_err(|errno| {
        format!(
            "not visible: this process may not inspect the peer's namespaces ({})",
            errno.desc()
        )
    })
}

/// Compares a namespace of a thread with this process's.
fn compare(directory: &OwnedFd, thread: i32, kind: &str) -> KernelResult<Relation> {
    // ENOENT of the peer's link means that the thread has ended.
    let own = uninterrupted(|| stat(format!("/proc/self/ns/{kind}").as_str())).map_err(|_| Errno::ENOSYS)?;
    let path = format!("task/{thread}/ns/{kind}");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let namespace = uninterrupted(|| openat(directory, path.as_str(), flags, Mode::empty()))?;
    let found = fstat(&namespace)?;
    if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) {
        return Ok(Relation::Own);
    }
    let is_below = kind == USER && sys::process::is_user_namespace_below(&namespace)?;
    Ok(if is_below {
        Relation::Below
    } else {
        Relation::Other
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;

    fn time() -> Deadline {
        Deadline::endless(Vec::new(), Duration::ZERO).within(Duration::from_secs(60))
    }

    fn own() -> OwnedFd {
        fs::File::open("/proc/self").unwrap().into()
    }

    #[test]
    fn confinement_parses_from_its_name() {
        for confinement in Confinement::ALL {
            assert_eq!(
                confinement.to_string().parse::<Confinement>().unwrap(),
                confinement
            );
        }
        assert_eq!(
            "seccomp".parse::<Confinement>().unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
    }

    #[test]
    fn own_process_is_in_its_own_namespaces() {
        let wanted = [Confinement::UserNamespace, Confinement::NetworkNamespace];
        for (_, found) in inspect(&wanted, Some(&own()), &time()).unwrap() {
            let found = found.unwrap_err();
            assert!(found.starts_with("this process's own (thread "), "{found}");
        }
    }

    #[test]
    fn invisible_process_passes_no_check() {
        let elsewhere = tempfile::tempdir().unwrap();
        let elsewhere = fs::File::open(elsewhere.path()).unwrap().into();
        for directory in [None, Some(&elsewhere)] {
            let findings = inspect(&Confinement::ALL, directory, &time()).unwrap();
            assert_eq!(findings.len(), Confinement::ALL.len());
            for (_, found) in findings {
                let found = found.unwrap_err();
                assert!(found.starts_with("not visible"), "{found}");
            }
        }
    }

    #[test]
    fn thread_that_reuses_a_number_is_read() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir_all(path("task/1")).unwrap();
        // This thread has ended once it is read.
        fs::create_dir_all(path("task/2")).unwrap();
        let status = path("task/1/status");
        nix::unistd::mkfifo(&status, Mode::S_IRWXU).unwrap();
        fs::write(path("status"), "NoNewPrivs:\t0\n").unwrap();
        let directory = fs::File::open(place.path()).unwrap().into();
        let findings = std::thread::scope(|scope| {
            let inspect = scope.spawn(|| inspect(&[Confinement::NoNewPrivs], Some(&directory), &time()));
            // The first reading ends only once the writer is closed.
            let mut writer = fs::File::options().write(true).open(&status).unwrap();
            writer.write_all(b"NoNewPrivs:\t1\n").unwrap();
            fs::rename(path("status"), &status).unwrap();
            drop(writer);
            inspect.join().unwrap().unwrap()
        });
        assert_eq!(findings[0].1, Err("not set (thread 1)".into()));
    }

    #[test]
    fn only_a_pass_over_every_thread_counts() {
        let place = tempfile::tempdir().unwrap();
        let directory = fs::File::open(place.path()).unwrap().into();
        let inspect = |deadline| inspect(&[Confinement::NoNewPrivs], Some(&directory), &deadline);
        let thread = place.path().join("task/1");
        fs::create_dir_all(&thread).unwrap();
        assert!(
            inspect(time()).unwrap()[0].1.is_err(),
            "its thread cannot be read"
        );
        fs::write(thread.join("status"), "NoNewPrivs:\t1\n").unwrap();
        assert!(inspect(time()).unwrap()[0].1.is_ok());
        let late = inspect(time().within(Duration::ZERO)).unwrap_err();
        assert_eq!(late.code(), "HANDSHAKE_TIMEOUT");
    }

    #[test]
    fn thread_status_is_compared() {
        let thread = |status: &str, user_namespace| Thread {
            status: Ok(status.to_owned()),
            user_namespace,
            network_namespace: Err(Errno::EACCES),
        };
        let none = Err(Errno::EACCES);
        for (status, user_namespace, confinement, passed) in [
            ("NoNewPrivs:\t1\n", none, Confinement::NoNewPrivs, true),
            ("NoNewPrivs:\t0\n", none, Confinement::NoNewPrivs, false),
            ("NoNewPrivs:\t2\n", none, Confinement::NoNewPrivs, false),
            ("", none, Confinement::NoNewPrivs, false),
            ("Seccomp:\t1\n", none, Confinement::Seccomp, true),
            (
                "Seccomp:\t2\nSeccomp_filters:\t1\n",
                none,
                Confinement::Seccomp,
                true,
            ),
            (
                "Seccomp:\t0\nSeccomp_filters:\t1\n",
                none,
                Confinement::Seccomp,
                false,
            ),
            ("Seccomp_filters:\t1\n", none, Confinement::Seccomp, false),
            (
                "CapPrm:\t0\nCapEff:\t0\n",
                none,
                Confinement::NoCapabilities,
                true,
            ),
            (
                "CapPrm:\t8\nCapEff:\t0\n",
                none,
                Confinement::NoCapabilities,
                false,
            ),
            (
                "CapPrm:\t0\nCapEff:\t8\n",
                none,
                Confinement::NoCapabilities,
                false,
            ),
            ("CapEff:\t0\n", none, Confinement::NoCapabilities, false),
            (
                "CapPrm:\tf\nCapEff:\tf\n",
                Ok(Relation::Below),
                Confinement::NoCapabilities,
                true,
            ),
            (
                "CapPrm:\tf\nCapEff:\tf\n",
                Ok(Relation::Own),
                Confinement::NoCapabilities,
                false,
            ),
            (
                "CapPrm:\tf\nCapEff:\tf\n",
                Ok(Relation::Other),
                Confinement::NoCapabilities,
                false,
            ),
            ("", Ok(Relation::Below), Confinement::UserNamespace, true),
            ("", Ok(Relation::Other), Confinement::UserNamespace, false),
            ("", none, Confinement::UserNamespace, false),
            ("", none, Confinement::NetworkNamespace, false),
        ] {
            let found = thread(status, user_namespace).compare(confinement);
            assert_eq!(found.is_ok(), passed, "{status:?}: {found:?}");
        }
    }
}
