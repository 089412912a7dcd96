//! Whether the peer lives in the same namespaces as this process.
//!
//! A handshake relies on the process number in the credentials of a message (unix(7), `SCM_CREDENTIALS`). The
//! kernel lets a sender name another process there if the sender has `CAP_SYS_ADMIN` over its own pid
//! namespace. Any user gets that with `unshare -Urp`, in a new namespace below this process's namespace. From
//! there the sender can name only processes of that new namespace and of those below it.
//!
//! So only two kinds of sender can name a process of our own namespace: the process itself, and one with
//! `CAP_SYS_ADMIN` over our namespace. A process in a namespace below ours can be impersonated by every
//! process of its user.

use std::{
    ffi::OsString,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, open, readlinkat},
    sys::{
        stat::{Mode, fstat, stat},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::{
    error::{self, Error, Result},
    sys::{
        self,
        file::{MOUNTS, Mount, cgroup_mounts_in},
        uninterrupted,
    },
};

named! { all pub(crate),
    /// The namespaces in which a peer may live ([`Policy::namespace`](crate::Policy::namespace)).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum Namespace {
        /// The pid namespace of this process, and its user namespace as far as that is visible.
        #[default]
        Same => "same",
        /// Any namespace, even one whose processes are not visible from here. The kernel's statement of the
        /// peer's process number then proves nothing: every process of the same user in the peer's pid namespace,
        /// or above it, can impersonate the peer.
        Any => "any",
    }
}

parsed! { Namespace, "namespace" }

/// The properties of a peer that may be invisible to this process without a refusal.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MayHide {
    /// Its process number in this pid namespace.
    pub(crate) pid: bool,
    /// Its user in this user namespace.
    pub(crate) uid: bool,
    /// Its directory in /proc, and its credentials at the socket if a filter denies getsockopt(2) to this process.
    pub(crate) lookups: bool,
}

/// The comparison of a process's namespaces with those of this process.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent findings of one comparison"
)]
#[derive(Debug, Clone, Default)]
pub(crate) struct NamespaceComparison {
    /// All visible namespaces are the same, and the pid namespace was visible.
    pub(crate) same: bool,
    /// The pid namespace could be compared.
    pub(crate) visible: bool,
    /// The pid namespace is the same, so a process number means the same process to both.
    pub(crate) same_pid_ns: bool,
    /// The user namespace could not be compared, and this process does not live in the initial one.
    pub(crate) hides_user_namespace: bool,
    pub(crate) found: String,
}

impl NamespaceComparison {
    fn not_visible(found: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            ..Self::default()
        }
    }
}

/// The namespaces of this process and the pid namespace of a peer, read once for all comparisons of a handshake. No process ever
/// changes its own pid namespace (pid_namespaces(7)).
#[derive(Debug, Default)]
pub(crate) struct FixedNamespaces {
    own: OnceLock<Vec<i32>>,
    /// This process's user namespace. Only a process with one thread can change it, and here that thread carries out the handshake.
    user: OnceLock<LinkText>,
    /// From the peer's pidfd, which never refers to another process.
    peer: OnceLock<Vec<i32>>,
    /// Set once the links of both processes were read and lead to the same namespace.
    same: OnceLock<()>,
}

/// The kind of a namespace and its inode number, which is unique (namespaces(7)): `user:[4026531837]`.
type LinkText = OsString;

impl FixedNamespaces {
    /// Returns the numbers of this process, or why they are unknown.
    fn own(&self) -> Result<Result<&[i32], String>> {
        Ok(match self.own.get() {
            Some(own) => Ok(own),
            None => read_own_numbers()?.map(|own| &**self.own.get_or_init(|| own)),
        })
    }

    /// Returns the numbers of the peer; see [`numbers_by_pidfd`].
    fn peer(&self, pidfd: Option<&OwnedFd>) -> Result<Option<&[i32]>> {
        if let (None, Some(pidfd)) = (self.peer.get(), pidfd)
            && let Some(numbers) = numbers_by_pidfd(pidfd)?
        {
            self.peer.get_or_init(|| numbers);
        }
        Ok(self.peer.get().map(Vec::as_slice))
    }
}

/// The name of a process in the mounted /proc.
pub(crate) enum InProc {
    /// /proc lists the process under this number.
    Number(i32),
    /// /proc does not list the process: no namespace that this /proc shows contains it.
    Absent,
    /// The number is unknown, for this reason.
    Unknown(String),
}

/// Parses the numbers of a process (proc(5), `NSpid`). They run from the namespace in which /proc was mounted
/// down to the process's own. The first is 0 if the process lives outside the namespace of /proc, and
/// negative if the process was reaped.
fn numbers(text: &str) -> Option<Vec<i32>> {
    sys::file::numbers_in(text, "NSpid:").filter(|numbers: &Vec<_>| !numbers.is_empty())
}

/// Returns the numbers of this process, as /proc shows them, or why they are unknown.
fn read_own_numbers() -> Result<Result<Vec<i32>, String>> {
    const WHERE: &str = "/proc/self/status";
    let text = unless_short(WHERE, sys::file::read_whole_text(WHERE))?;
    Ok(match text.map(|text| numbers(&text)) {
        Ok(Some(numbers)) => Ok(numbers),
        Ok(None) => Err(format!(
            "this kernel does not show the pid namespace of a process ({WHERE}, NSpid)"
        )),
        Err(errno) => Err(format!("{WHERE} cannot be read: {}", errno.desc())),
    })
}

/// Reads the numbers of a process from its pidfd. This needs no permission, and no /proc that shows the
/// process. Returns `None` before Linux 5.5, and if this process may not read its own fdinfo (before 5.14,
/// while it is not dumpable).
fn numbers_by_pidfd(pidfd: &OwnedFd) -> Result<Option<Vec<i32>>> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = unless_short(&path, sys::file::read_whole_text(&path))?;
    Ok(text.ok().as_deref().and_then(numbers))
}

/// Finds the number under which the mounted /proc lists the process that is `pid` here. The two differ if
/// /proc was mounted in another pid namespace, and then /proc/`pid` is a different process.
pub(crate) fn proc_number(pid: i32, pidfd: Option<&OwnedFd>, fixed: &FixedNamespaces) -> Result<InProc> {
    if let Some(found) = fixed.peer(pidfd)? {
        return Ok(match found[0] {
            number @ 1.. => InProc::Number(number),
            _ => InProc::Absent,
        });
    }
    Ok(number_from_own(pid, read_own_numbers()?))
}

/// Derives another process's number in /proc from our own numbers. If this process has only one number, /proc
/// uses the numbers of our own namespace.
fn number_from_own(pid: i32, own: Result<Vec<i32>, String>) -> InProc {
    match own {
        _ if pid <= 0 => InProc::Absent,
        Ok(own) if own.len() == 1 => InProc::Number(pid),
        Ok(_) => InProc::Unknown("/proc was mounted in another pid namespace than this process's".into()),
        Err(why) => InProc::Unknown(why),
    }
}

/// Compares the namespaces of process `pid` with our own. The result counts only if the process is still
/// alive afterwards.
pub(crate) fn compare(
    pid: i32,
    pidfd: Option<&OwnedFd>,
    directory: Option<&OwnedFd>,
    fixed: &FixedNamespaces,
) -> Result<NamespaceComparison> {
    if pid <= 0 {
        return Ok(NamespaceComparison::not_visible(NOT_VISIBLE));
    }
    let in_status;
    let mut found = fixed.peer(pidfd)?;
    if let (None, Some(directory)) = (found, directory) {
        let status = unless_short(
            "the peer's namespace (/proc/PID/status)",
            read_text(directory, "status"),
        )?;
        in_status = status.ok().as_deref().and_then(numbers);
        found = in_status.as_deref();
    }
    let Some(found) = found else {
        return Ok(NamespaceComparison::not_visible(
            "neither its pidfd (Linux 5.5) nor /proc shows its pid namespace",
        ));
    };
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    let shown = shown.join(" ");
    let pid_link = match fixed.same.get() {
        Some(()) => NamespaceLink::Same,
        None => compare_link(PID, directory, &OnceLock::new())?,
    };
    let same_depth = if let NamespaceLink::Same = pid_link {
        fixed.same.get_or_init(|| ());
        true
    } else {
        // A process that is visible from here lives in this namespace or below it, so equal depth means the same namespace.
        match fixed.own()? {
            Ok(own) => found.len() == own.len(),
            Err(why) => return Ok(NamespaceComparison::not_visible(why)),
        }
    };
    if !same_depth || found.last() != Some(&pid) {
        let below = format!(
            "a pid namespace below this process's (NSpid {shown}), whose creator can impersonate every process in it"
        );
        return Ok(NamespaceComparison {
            visible: true,
            ..NamespaceComparison::not_visible(below)
        });
    }
    let (mut same, mut findings) = (true, vec![format!("the same pid namespace (NSpid {shown})")]);
    let mut hides_user_namespace = false;
    let user_link = compare_link(USER, directory, &fixed.user)?;
    for (link, kind, compared) in [
        (PID, "pid namespace", pid_link),
        (USER, "user namespace", user_link),
    ] {
        match compared {
            NamespaceLink::Same => findings.push(format!("the same {kind} ({link})")),
            NamespaceLink::None => {}
            NamespaceLink::NotVisible => {
                hides_user_namespace |= link == USER && !is_in_initial_user_namespace();
                findings.push(format!("{link} cannot be seen"));
            }
            NamespaceLink::Other(found) => {
                same = false;
                findings.push(format!("{kind}: {found} ({link})"));
            }
        }
    }
    Ok(NamespaceComparison {
        same,
        visible: true,
        same_pid_ns: true,
        hides_user_namespace,
        found: findings.join(", "),
    })
}

const PID: &str = "ns/pid";
/// A process with one thread can change this one, so each comparison reads the peer's.
const USER: &str = "ns/user";

/// Whether this process lives in the initial user namespace, or cannot tell.
fn is_in_initial_user_namespace() -> bool {
    /// The kernel's `PROC_USER_INIT_INO`.
    const INITIAL: u64 = 0xefff_fffd;
    uninterrupted(|| stat("/proc/self/ns/user")).map_or(true, |own| own.st_ino == INITIAL)
}

/// The finding about a peer without a process number here.
pub(crate) const NOT_VISIBLE: &str = "a pid namespace that cannot be seen from here (pid 0)";

enum NamespaceLink {
    Same,
    /// The kernel does not have this kind of namespace.
    None,
    /// Not visible: reading the link needs permission to inspect the process (ptrace(2)), and a /proc that
    /// shows it.
    NotVisible,
    Other(String),
}

/// `own`: the namespace of this process, once it was read. Reads the links and does not follow them: for a stat(2) the kernel makes an
/// inode each time.
fn compare_link(link: &str, directory: Option<&OwnedFd>, own: &OnceLock<LinkText>) -> Result<NamespaceLink> {
    let what = format!("the peer's namespace (/proc/PID/{link})");
    let own = match own.get() {
        Some(own) => own,
        None => match unless_short(
            &what,
            uninterrupted(|| readlinkat(AT_FDCWD, format!("/proc/self/{link}").as_str())),
        )? {
            Ok(found) => own.get_or_init(|| found),
            Err(Errno::ENOENT) => return Ok(NamespaceLink::None),
            Err(errno) => {
                return Ok(NamespaceLink::Other(format!(
                    "this process's own is unreadable: {}",
                    errno.desc()
                )));
            }
        },
    };
    let Some(directory) = directory else {
        return Ok(NamespaceLink::NotVisible);
    };
    Ok(
        match unless_short(&what, uninterrupted(|| readlinkat(directory, link)))? {
            Ok(found) if found == *own => NamespaceLink::Same,
            Ok(_) => NamespaceLink::Other("another".into()),
            Err(Errno::EACCES | Errno::EPERM) => NamespaceLink::NotVisible,
            Err(errno) => NamespaceLink::Other(format!("unreadable: {}", errno.desc())),
        },
    )
}

/// A value that the kernel returned, or the errno with which it refused.
pub(crate) type KernelResult<T> = Result<T, Errno>;

/// Passes on the kernel's answer, including a refusal. Fails if this process has run out of descriptors or
/// memory, because then the kernel was never asked.
pub(crate) fn unless_short<T>(what: &str, found: KernelResult<T>) -> Result<KernelResult<T>> {
    match found {
        Err(errno) if error::is_shortage(errno) => Err(Error::system(what, errno)),
        found => Ok(found),
    }
}

/// Reads a whole file of a process's directory in /proc. Bytes that are not UTF-8 are replaced, because a
/// process can put any bytes into its name.
pub(crate) fn read_text(directory: &OwnedFd, name: &str) -> KernelResult<String> {
    let bytes = sys::file::read_whole(directory, name)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the numbers of the cgroups with a given name, usually at most one, found under the mounts of the cgroup filesystem (version 2).
/// On 64-bit systems a cgroup's number is the inode number of its directory. `None`: the filesystem is not mounted where this process can
/// see it. The inner error is the reason why the lookup failed.
pub(crate) fn cgroup_numbers(name: &str) -> Result<Result<Option<Vec<u64>>, String>> {
    let mounts = match unless_short(MOUNTS, sys::file::read_whole_text(MOUNTS))? {
        Ok(mounts) => mounts,
        Err(errno) => return Ok(Err(format!("{MOUNTS} cannot be read: {}", errno.desc()))),
    };
    let found = numbers_below(&mounts, name);
    let not_visible = |errno: Errno| {
        let why = errno.desc();
        format!("the cgroup that the policy names cannot be inspected: {why}")
    };
    Ok(unless_short("the cgroup that the policy names", found)?.map_err(not_visible))
}

/// Opens the directories of the cgroups with a given name (`O_PATH`).
pub(crate) fn cgroup_directories(name: &str) -> Result<Vec<OwnedFd>, Errno> {
    let mounts = sys::file::read_whole_text(MOUNTS)?;
    open_directories_below(&mounts, name).map(Option::unwrap_or_default)
}

fn numbers_below(mounts: &str, name: &str) -> Result<Option<Vec<u64>>, Errno> {
    let Some(directories) = open_directories_below(mounts, name)? else {
        return Ok(None);
    };
    let number = |directory| uninterrupted(|| fstat(directory)).map(|found| found.st_ino);
    let mut numbers: Vec<u64> = directories.iter().map(number).collect::<Result<_, _>>()?;
    numbers.dedup();
    Ok(Some(numbers))
}

fn open_directories_below(mounts: &str, name: &str) -> Result<Option<Vec<OwnedFd>>, Errno> {
    let mut mounted = false;
    let mut found = Vec::new();
    for Mount { root, point, .. } in cgroup_mounts_in(mounts).filter(|mount| mount.kind == "cgroup2") {
        let below = name.strip_prefix(root.trim_end_matches('/'));
        let Some(below) = below.filter(|below| below.is_empty() || below.starts_with('/')) else {
            continue;
        };
        mounted = true;
        let path = Path::new(&point).join(below.trim_start_matches('/'));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let directory = match uninterrupted(|| open(&path, flags, Mode::empty())) {
            Ok(directory) => directory,
            // No cgroup has that name.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        // Another filesystem may be mounted over the cgroup's directory.
        if uninterrupted(|| fstatfs(&directory))?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            found.push(directory);
        }
    }
    Ok(mounted.then_some(found))
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Pid, getpid, getppid};

    use super::*;

    fn fresh() -> FixedNamespaces {
        FixedNamespaces::default()
    }

    #[test]
    fn nspid_is_parsed_by_name() {
        assert_eq!(numbers("Pid:\t7\nNSpid:\t7\t1\n"), Some(vec![7, 1]));
        assert_eq!(numbers("Pid:\t-1\nNSpid:\t-1\n"), Some(vec![-1]));
        for none in ["Pid:\t7\n", "NSpid:\t\n", "NSpid:\t7\tx\n"] {
            assert_eq!(numbers(none), None, "{none:?}");
        }
    }

    #[test]
    fn own_process_and_parent_share_a_namespace() {
        for pid in [getpid(), getppid()] {
            let pidfd = sys::process::pidfd_open(pid).unwrap();
            let fixed = FixedNamespaces::default();
            let namespaces = compare(pid.as_raw(), Some(&pidfd), None, &fixed).unwrap();
            assert!(namespaces.same && namespaces.same_pid_ns, "{namespaces:?}");
            assert!(matches!(
                proc_number(pid.as_raw(), Some(&pidfd), &fixed),
                Ok(InProc::Number(_))
            ));
        }
    }

    /// A lookup that failed does not count as a match.
    #[test]
    fn unknown_namespace_is_not_the_same() {
        assert!(!compare(getpid().as_raw(), None, None, &fresh()).unwrap().same);
        let pidfd = sys::process::pidfd_open(Pid::this()).unwrap();
        assert!(!compare(0, Some(&pidfd), None, &fresh()).unwrap().same);
        // The number here differs from the number in the process's own namespace.
        assert!(
            !compare(getpid().as_raw() + 1, Some(&pidfd), None, &fresh())
                .unwrap()
                .same
        );
    }
    #[test]
    fn namespace_parses_from_its_display() {
        for namespace in [Namespace::Same, Namespace::Any] {
            assert_eq!(namespace.to_string().parse::<Namespace>().unwrap(), namespace);
        }
        assert_eq!("".parse::<Namespace>().unwrap_err().code(), "INVALID_ARGUMENT");
    }

    #[test]
    fn pid_counts_without_pidfd_only_in_a_single_namespace() {
        let number = |pid, own| number_from_own(pid, Ok(own));
        assert!(matches!(number(7, vec![5]), InProc::Number(7)));
        assert!(matches!(number(7, vec![5, 1]), InProc::Unknown(_)));
        assert!(matches!(
            number_from_own(7, Err(String::new())),
            InProc::Unknown(_)
        ));
        for pid in [0, -1] {
            assert!(matches!(number(pid, vec![5]), InProc::Absent));
            assert!(matches!(proc_number(pid, None, &fresh()), Ok(InProc::Absent)));
        }
        // A reaped process no longer has a number.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = sys::process::pidfd_open(Pid::from_raw(child.id().cast_signed())).unwrap();
        child.wait().unwrap();
        if numbers_by_pidfd(&pidfd).unwrap().is_some() {
            let found = proc_number(child.id().cast_signed(), Some(&pidfd), &fresh());
            assert!(matches!(found, Ok(InProc::Absent)));
        }
    }

    #[test]
    fn different_or_unreadable_namespace_is_not_the_same() {
        let open = |path: &std::path::Path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let own = open(std::path::Path::new("/proc/self"));
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("ns")).unwrap();
        std::os::unix::fs::symlink("user:[1]", place.path().join("ns/user")).unwrap();
        let other = open(place.path());
        for link in ["ns/pid", "ns/user"] {
            assert!(matches!(
                compare_link(link, Some(&own), &OnceLock::new()),
                Ok(NamespaceLink::Same)
            ));
            assert!(matches!(
                compare_link(link, Some(&other), &OnceLock::new()),
                Ok(NamespaceLink::Other(_))
            ));
            assert!(matches!(
                compare_link(link, None, &OnceLock::new()),
                Ok(NamespaceLink::NotVisible)
            ));
        }
        assert!(matches!(
            compare_link("ns/of no kind", Some(&own), &OnceLock::new()),
            Ok(NamespaceLink::None)
        ));
        let pidfd = sys::process::pidfd_open(Pid::this()).unwrap();
        let fixed = fresh();
        let at = |directory| compare(getpid().as_raw(), Some(&pidfd), Some(directory), &fixed).unwrap();
        // A namespace that differs is read again; the same pid namespace is not, and the user namespace always is.
        for pid_namespace in ["another", "the same"] {
            let found = at(&other);
            assert!(!found.same && found.same_pid_ns, "{found:?}");
            assert!(found.found.contains("user namespace: another"), "{found:?}");
            assert_eq!(
                found.found.contains("pid namespace: "),
                pid_namespace == "another",
                "{found:?}"
            );
            assert!(at(&own).same);
        }
    }

    #[test]
    fn local_shortage_is_an_error_and_not_a_result() {
        assert_eq!(unless_short("a lookup", Ok(7)).unwrap(), Ok(7));
        assert_eq!(
            unless_short::<()>("a lookup", Err(Errno::EACCES)).unwrap(),
            Err(Errno::EACCES)
        );
        for shortage in [Errno::EMFILE, Errno::ENOMEM] {
            assert_eq!(
                unless_short::<()>("a lookup", Err(shortage)).unwrap_err().code(),
                "NO_SPACE"
            );
        }
    }

    #[test]
    fn cgroup_filesystem_is_found_at_any_mount_point() {
        let nowhere = "28 23 0:25 / /mnt rw - cgroup cgroup rw,memory\n29 23 0:26 /a /nowhere rw - cgroup2 cgroup2 rw\n";
        // The first name is inside the mount of version 2, the second beside it.
        assert_eq!(numbers_below(nowhere, "/a/b"), Ok(Some(vec![])));
        assert_eq!(numbers_below(nowhere, "/ab"), Ok(None));
        // A directory at the mount point that is not a cgroup has no number.
        assert_eq!(numbers_below(&mounted_at("/"), "/proc"), Ok(Some(vec![])));
    }

    /// The line of a hierarchy in [`MOUNTS`].
    fn mounted_at(point: &str) -> String {
        format!("29 23 0:26 / {point} rw - cgroup2 cgroup2 rw\n")
    }

    #[test]
    fn cgroup_must_be_a_directory() {
        let mounts = sys::file::read_whole_text("/proc/self/mountinfo").unwrap();
        let is_cgroup =
            |mount: &Mount| mount.kind == "cgroup2" && Path::new(&mount.point).join("cgroup.procs").exists();
        let Some(Mount { point, .. }) = cgroup_mounts_in(&mounts).find(is_cgroup) else {
            eprintln!("skipped: no cgroup filesystem (version 2) is mounted here");
            return;
        };
        let below = |point: &Path, name| {
            let mounts = mounted_at(point.to_str().unwrap());
            numbers_below(&mounts, name).unwrap().unwrap()
        };
        let number = nix::sys::stat::stat(point.as_str()).unwrap().st_ino;
        assert_eq!(below(Path::new(&point), "/"), [number]);
        assert_eq!(below(Path::new(&point), "/cgroup.procs"), [0; 0]);
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&point, elsewhere.path().join("link")).unwrap();
        assert_eq!(below(elsewhere.path(), "/link"), [0; 0]);
    }
}
