//! The peer process, as the kernel describes it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlink, readlinkat},
    poll::PollFlags,
    sys::{
        socket::{getsockopt, sockopt},
        stat::{Mode, fstat, fstatat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
    unistd::{Pid, getegid, geteuid, getpid},
};

use crate::{
    error::{Check, Error, OrSystem, Refusal, Result, is_denied},
    evidence::{ALIVE, EvidenceLog, Outcome, VISIBLE},
    fork::PerProcess,
    identity::{Credentials, Executable, Identity},
    peer::executable::{self, Content},
    peer::namespace::{self, FixedNamespaces, InProc, MayHide, NamespaceComparison},
    peer::namespace::{KernelResult, read_text, unless_short},
    sys::{self, uninterrupted},
    wait::deadline::Deadline,
    wait::threads,
};

/// How this side knows which process the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// By the kernel, for a socket (`SO_PEERCRED`).
    Socket,
    /// It is the process that was started.
    Start,
    /// By the credentials of its message. The kernel checks the user that they name; with `CAP_SYS_ADMIN` over its pid
    /// namespace, a process can name another process there.
    Message,
}

/// The peer process. While this value exists, every lookup refers to the process that connected (or
/// listened), and never to a later process with the same pid.
pub(crate) struct Peer {
    pub(crate) credentials: Credentials,
    /// A reference to the process itself. It comes from the socket since Linux 6.5, before that from the pid.
    pidfd: Option<Arc<OwnedFd>>,
    /// The process's directory in /proc. An open directory becomes invalid when the process ends, and never
    /// refers to another process. Kept during the handshake, and afterwards only if there is no pidfd.
    directory: Option<Arc<OwnedFd>>,
    groups: Option<Vec<u32>>,
    label: KernelResult<String>,
    /// The executable that the policy first accepted.
    accepted: OnceLock<Executable>,
    /// The peer has announced that it hardens itself: other processes of its user can no longer inspect it,
    /// so a later check cannot see its executable.
    /// [`Peer::into_open`] sets this too.
    pub(crate) hardens: bool,
    /// Whether the peer lives in this process's pid namespace; unset before the first inspection. A process
    /// never changes its pid namespace.
    same_pid_ns: OnceLock<bool>,
    /// Its user is mapped in this user namespace.
    is_mapped: bool,
    /// What this process cannot see in /proc is no reason to refuse the peer.
    may_hide_directory: bool,
    named_by: NamedBy,
    /// `None` after the handshake: each later inspection reads everything.
    fixed: Option<Fixed>,
}

/// Values that the inspections of one handshake read once, because nothing that the peer does can change them.
#[derive(Debug, Default)]
struct Fixed {
    /// This process's own executable.
    own: OnceLock<KernelResult<Executable>>,
    namespaces: FixedNamespaces,
    /// The peer's cgroup: its number and its name. The name of a number does not change.
    cgroup: OnceLock<(u64, String)>,
}

/// The result of one inspection of the peer: the values that could be read, and the reasons for the others.
pub(crate) struct Inspection {
    pub(crate) identity: Identity,
    /// The peer's namespaces, compared with ours.
    pub(crate) namespaces: NamespaceComparison,
    /// Its user is mapped in this user namespace.
    pub(crate) is_mapped: bool,
    pub(crate) named_by: NamedBy,
    /// Its supplementary groups, or why they are unknown.
    pub(crate) groups: Result<Vec<u32>, String>,
    /// `None` if /proc does not show the process to this one (`hidepid`, proc(5)).
    pub(crate) directory: Option<Arc<OwnedFd>>,
    /// This process's own executable, to compare with.
    pub(crate) own: KernelResult<Executable>,
    executable: KernelResult<()>,
    cgroup: KernelResult<()>,
    /// The number of the peer's cgroup, from its pidfd. Unlike a name it cannot be reused by another cgroup.
    /// `None` before Linux 6.13.
    pub(crate) cgroup_number: KernelResult<Option<u64>>,
    label: KernelResult<()>,
}

/// The requirement of `namespace: 'same'`, for the evidence.
pub(crate) const SAME_NAMESPACE: &str = "this process's own pid and user namespace";

/// The file that shows whether the process is a zombie.
const STAT: &str = "the peer's state (/proc/PID/stat)";

fn refuse(check: Check, wanted: impl Into<String>, found: impl Into<String>) -> Error {
    Refusal::new(check, wanted, found).into()
}

/// Makes a refusal from a failed lookup, or a local error if this process has run out of a resource. In the
/// latter case the peer was not inspected.
fn lookup_error(check: Check, wanted: &str, errno: Errno) -> Error {
    Refusal::of_lookup(format!("inspecting the peer ({wanted})"), check, wanted, errno)
}

/// Returns the credentials that the kernel has stored for the other end, and how they are known: if this process may not ask,
/// and the peer is the parent, the credentials are those of the parent's first message.
fn socket_credentials(
    socket: BorrowedFd<'_>,
    may_hide: MayHide,
    record: &mut EvidenceLog,
) -> Result<(Credentials, NamedBy)> {
    const WANTED: &str = "SO_PEERCRED of the peer (getsockopt)";
    let errno = match sys::socket::peer_credentials(&socket) {
        Ok(credentials) => return Ok((credentials, NamedBy::Socket)),
        Err(errno) => errno,
    };
    let may_ask_message = is_denied(errno) && may_hide.lookups;
    let message = may_ask_message
        .then(|| sys::socket::peek(socket, &mut [0]).ok())
        .flatten();
    let named = message.and_then(|message| message.credentials);
    let named = named.ok_or_else(|| lookup_error(Check::Credentials, WANTED, errno))?;
    let found = format!("denied ({}); its message names pid {}", errno.desc(), named.pid);
    record.note(
        "credentials",
        Check::Credentials.name(),
        WANTED,
        found,
        Outcome::NotVisible,
    );
    Ok((named, NamedBy::Message))
}

/// Checks the credentials of the peer. Returns whether its user is mapped here. Unless it may hide them, they must name a process
/// with a number here, and a mapped user.
fn check_credentials(credentials: Credentials, may_hide: MayHide, record: &mut EvidenceLog) -> Result<bool> {
    let Credentials { pid, uid, .. } = credentials;
    match (pid, may_hide.pid) {
        (1.., _) => {
            record.met(VISIBLE, pid.to_string());
        }
        (0, true) => record.not_asked("credentials", "pid", namespace::NOT_VISIBLE),
        _ => {
            let refusal = Refusal::new(Check::Namespace, SAME_NAMESPACE, namespace::NOT_VISIBLE);
            return Err(refusal.about(credentials).into());
        }
    }
    let overflow = match overflow_uid() {
        Err(Error::PeerRefused(_)) if may_hide.uid => DEFAULT_OVERFLOW_UID,
        found => found?,
    };
    if uid == overflow {
        let wanted = "a uid that is mapped in this user namespace";
        let found = format!("{uid}, the overflow uid, which every unmapped user has here");
        if may_hide.uid {
            record.note("credentials", "uid mapped", wanted, found, Outcome::NotVisible);
            return Ok(false);
        }
        return Err(refuse(Check::Uid, wanted, found));
    }
    record.passed(
        "credentials",
        "uid mapped",
        format!("not the overflow uid {overflow}"),
        uid.to_string(),
    );
    Ok(true)
}

/// A process that neither a pidfd nor its directory in /proc holds, for the evidence.
const PID_ONLY: &str = "the pid alone";

/// Returns a descriptor of the process at the other end, and its source for the evidence. `None` before Linux
/// 5.3, or if filters deny both ways to get one.
fn pidfd(socket: BorrowedFd<'_>, pid: i32, named_by: NamedBy) -> Result<(Option<OwnedFd>, &'static str)> {
    match uninterrupted(|| getsockopt(&socket, sockopt::PeerPidfd)) {
        Ok(pidfd) => Ok((Some(pidfd), "SO_PEERPIDFD")),
        Err(errno) if named_by == NamedBy::Message && is_denied(errno) => pidfd_by_number(pid),
        Err(Errno::ENOPROTOOPT) if pid == 0 => Err(refuse(
            Check::Pidfd,
            "SO_PEERPIDFD of a peer that has no process number here",
            "this kernel is older than 6.5",
        )),
        // Before Linux 6.5.
        Err(Errno::ENOPROTOOPT) => pidfd_by_number(pid),
        // The errors for a process that was already reaped: EINVAL since Linux 6.5, later ESRCH.
        Err(Errno::EINVAL | Errno::ESRCH | Errno::ENODATA) => Err(ended(pid)),
        Err(errno) => Err(lookup_error(Check::Pidfd, "SO_PEERPIDFD of the peer", errno)),
    }
}

/// Opens a process by its number. Another process could have the number now. It would also have to send the later
/// messages, because their credentials carry that number too.
fn pidfd_by_number(pid: i32) -> Result<(Option<OwnedFd>, &'static str)> {
    if pid == 0 {
        return Ok((None, PID_ONLY));
    }
    match sys::process::pidfd_open(Pid::from_raw(pid)) {
        Ok(pidfd) => Ok((Some(pidfd), "pidfd_open")),
        Err(errno) if is_denied(errno) => Ok((None, PID_ONLY)),
        Err(errno) => {
            let what = "a descriptor of the peer's process (pidfd_open)";
            Err(Error::unless_short(what, errno, |_| ended(pid)))
        }
    }
}

fn ended(pid: i32) -> Error {
    Error::PeerLost(format!("process {pid} ended before it could be inspected"))
}

/// Returns a descriptor of the process that made a socket pair. `None` before Linux 6.5, or if it was reaped.
pub(crate) fn creator_pidfd(line: &OwnedFd) -> Option<OwnedFd> {
    uninterrupted(|| getsockopt(line, sockopt::PeerPidfd)).ok()
}

impl Peer {
    /// Asks the kernel which process is at the other end of a connected socket.
    pub(crate) fn attest(socket: impl AsFd, may_hide: MayHide, record: &mut EvidenceLog) -> Result<Self> {
        let socket = socket.as_fd();
        let (credentials, named_by) = socket_credentials(socket, may_hide, record)?;
        let is_mapped = check_credentials(credentials, may_hide, record)?;
        let (pidfd, source) = pidfd(socket, credentials.pid, named_by)?;
        let peer = Self {
            pidfd: pidfd.map(Arc::new),
            groups: unless_short("SO_PEERGROUPS of the peer", sys::socket::peer_groups(socket))?.ok(),
            label: unless_short("SO_PEERSEC of the peer", sys::socket::peer_label(socket))?,
            is_mapped,
            may_hide_directory: may_hide.lookups,
            named_by,
            ..Self::unknown(credentials)
        };
        peer.open(source, record)
    }

    /// Inspects a child that cannot make a socket pair. `started` is the pidfd of the process that was started, if that must
    /// be the child.
    pub(crate) fn named_by_message(
        credentials: Credentials,
        started: Option<BorrowedFd<'_>>,
        may_hide: MayHide,
        record: &mut EvidenceLog,
    ) -> Result<Self> {
        let found = format!(
            "none: it may not call socketpair; its message names pid {}",
            credentials.pid
        );
        record.note(
            "credentials",
            Check::Line.name(),
            "a socket pair that the child has made",
            found,
            Outcome::NotVisible,
        );
        let is_mapped = check_credentials(credentials, may_hide, record)?;
        let named_by = match started {
            Some(_) => NamedBy::Start,
            None => NamedBy::Message,
        };
        let (pidfd, source) = match started.map(|started| started.try_clone_to_owned()) {
            Some(started) => (
                Some(started.or_system("a copy of the child's pidfd (fcntl)")?),
                "the start",
            ),
            None => pidfd_by_number(credentials.pid)?,
        };
        let peer = Self {
            pidfd: pidfd.map(Arc::new),
            is_mapped,
            named_by,
            ..Self::unknown(credentials)
        };
        peer.open(source, record)
    }

    /// A peer without a pidfd and a directory.
    pub(crate) fn unknown(credentials: Credentials) -> Self {
        Self {
            credentials,
            pidfd: None,
            directory: None,
            groups: None,
            label: Err(Errno::ENOPROTOOPT),
            accepted: OnceLock::new(),
            hardens: false,
            same_pid_ns: OnceLock::new(),
            is_mapped: true,
            may_hide_directory: false,
            named_by: NamedBy::Socket,
            fixed: None,
        }
    }

    fn open(mut self, source: &str, record: &mut EvidenceLog) -> Result<Self> {
        let fixed = Fixed::default();
        self.directory = self.open_directory(&fixed)?;
        self.fixed = Some(fixed);
        // The directory was opened after the pidfd. If the process is still alive, the directory belongs to
        // it.
        self.check_alive()?;
        let Credentials { pid, gid, .. } = self.credentials;
        record.met(ALIVE, format!("pid {pid}, gid {gid}, by {source}"));
        Ok(self)
    }

    pub(crate) fn is_self(&self) -> bool {
        self.credentials.pid == getpid().as_raw()
    }

    fn gone(&self) -> Error {
        Error::PeerLost(format!("process {} has ended", self.credentials.pid))
    }

    /// Returns the process's directory in /proc. Values read there count only if the process is alive
    /// afterwards. Returns `None` if /proc hides the process from this one (`hidepid`, or a /proc of other
    /// namespaces). Then only its pidfd can tell.
    fn open_directory(&self, fixed: &Fixed) -> Result<Option<Arc<OwnedFd>>> {
        let directory = match &self.directory {
            Some(directory) => Arc::clone(directory),
            None => match self.find_directory(fixed)? {
                Some(directory) => Arc::new(directory),
                None => return Ok(None),
            },
        };
        // With hidepid=1 and hidepid=2 the directory can be opened but no file in it, even if the files could
        // be opened earlier.
        match unless_short(
            STAT,
            uninterrupted(|| fstatat(&directory, "stat", AtFlags::empty())),
        )? {
            Ok(_) => Ok(Some(directory)),
            Err(Errno::ENOENT | Errno::ESRCH | Errno::EACCES | Errno::EPERM) if self.pidfd.is_some() => {
                Ok(None)
            }
            Err(Errno::ENOENT | Errno::ESRCH) => Err(self.gone()),
            Err(errno) => Err(refuse(Check::Proc, "the peer's directory in /proc", errno.desc())),
        }
    }

    fn find_directory(&self, fixed: &Fixed) -> Result<Option<OwnedFd>> {
        let number =
            match namespace::proc_number(self.credentials.pid, self.pidfd.as_deref(), &fixed.namespaces)? {
                InProc::Number(number) => number,
                InProc::Absent if self.pidfd.is_some() => return Ok(None),
                // Its message names no number here, and its socket could not be asked.
                InProc::Absent if self.named_by == NamedBy::Message && self.credentials.pid == 0 => {
                    return Ok(None);
                }
                InProc::Absent => return Err(self.gone()),
                InProc::Unknown(_) if self.may_hide_directory => return Ok(None),
                InProc::Unknown(why) => return Err(refuse(Check::Proc, "a /proc that shows the peer", why)),
            };
        let path = format!("/proc/{number}");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match uninterrupted(|| open(path.as_str(), flags, Mode::empty())) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ESRCH) if self.pidfd.is_some() => return Ok(None),
            Err(Errno::ENOENT | Errno::ESRCH) => return Err(self.gone()),
            Err(errno) => return Err(lookup_error(Check::Proc, &path, errno)),
        };
        let kind = uninterrupted(|| fstatfs(&directory))
            .map_err(|errno| lookup_error(Check::Proc, "a mounted /proc", errno))?
            .filesystem_type();
        match kind {
            PROC_SUPER_MAGIC => Ok(Some(directory)),
            _ if self.may_hide_directory => Ok(None),
            _ => Err(refuse(
                Check::Proc,
                "the kernel's /proc",
                "another filesystem mounted there",
            )),
        }
    }

    /// Waits for the end of a process of which an inspection has found nothing: its memory goes before its number. Returns `false`
    /// if the process lives on.
    pub(crate) fn wait_for_exit(&self, deadline: &Deadline) -> Result<bool> {
        // Without a pidfd, nothing proves it: the state in /proc is that of the first thread, which others can outlive.
        let Some(pidfd) = &self.pidfd else {
            return Ok(false);
        };
        deadline.wait(&[(pidfd.as_fd(), PollFlags::POLLIN)])
    }

    /// Fails if the process has ended. A pidfd polls readable after the end, whether the process was reaped
    /// or not. (Signal 0 succeeds on a zombie.) Without a pidfd, its state in /proc shows the end.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if let Some(pidfd) = &self.pidfd {
            return match sys::is_ready(pidfd, PollFlags::POLLIN) {
                Ok(false) => Ok(()),
                Ok(true) => Err(self.gone()),
                Err(errno) => Err(Error::poll("whether the peer is alive", errno)),
            };
        }
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        match unless_short(STAT, read_text(directory, "stat"))? {
            // The directory of a zombie still exists, but its state letter identifies it.
            Ok(stat) => match stat
                .rsplit_once(") ")
                .and_then(|(_, fields)| fields.chars().next())
            {
                None | Some('Z' | 'X' | 'x') => Err(self.gone()),
                Some(_) => Ok(()),
            },
            Err(Errno::ENOENT | Errno::ESRCH) => Err(self.gone()),
            Err(errno) => Err(refuse(Check::Proc, "the peer's state in /proc", errno.desc())),
        }
    }

    /// Reads everything about the process that is readable now. A filesystem that does not answer is waited
    /// for until `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] if the process has ended. [`Error::PeerRefused`] if its user or group has changed
    /// since it was attested.
    pub(crate) fn inspect(&self, deadline: &Deadline) -> Result<Inspection> {
        self.check_alive()?;
        let fresh = Fixed::default();
        let fixed = self.fixed.as_ref().unwrap_or(&fresh);
        let directory = self.open_directory(fixed)?;
        let own = fixed.own.get_or_init(own_executable);
        let (executable, executable_readable) = self.executable(directory.as_ref(), own, deadline)?;
        let info = self.pidfd_info()?;
        let namespaces = namespace::compare(
            self.credentials.pid,
            self.pidfd.as_deref(),
            directory.as_deref(),
            &fixed.namespaces,
        )?;
        // Skip the file if the pidfd reports the ids and the peer was attested without supplementary groups:
        // then nothing in it is needed. Treat it as unreadable.
        let status = if matches!(info, Ok(Some(_))) && self.groups.as_ref().is_none_or(Vec::is_empty) {
            Err(Errno::ENODATA)
        } else {
            let found = directory
                .as_deref()
                .map_or(Err(Errno::ENOENT), |directory| read_text(directory, "status"));
            unless_short("the peer's ids (/proc/PID/status)", found)?
        };
        let cgroup = self.cgroup(directory.as_deref(), fixed, cgroup_number(&info))?;
        // Values read between two checks that found the process alive belong to that process.
        self.check_alive()?;
        let Credentials { pid, uid, gid } = self.credentials;
        self.same_pid_ns.get_or_init(|| namespaces.same_pid_ns);
        let now = match info {
            Ok(Some(info)) => Some((info.uid, info.gid)),
            // If the pidfd gave no answer, /proc has the same values.
            Ok(None) | Err(_) => effective(&status, "Uid:").zip(effective(&status, "Gid:")),
        };
        let groups = self.current_groups(&status);
        let inspection = Inspection {
            identity: Identity {
                pid,
                uid,
                gid,
                groups: groups.clone().ok(),
                executable,
                cgroup: cgroup.as_ref().ok().cloned(),
                label: self.label.clone().ok().filter(|label| !label.is_empty()),
            },
            namespaces,
            is_mapped: self.is_mapped,
            named_by: self.named_by,
            groups,
            directory,
            own: own.clone(),
            executable: executable_readable,
            cgroup: cgroup.map(drop),
            cgroup_number: info.map(|info| info.and_then(|info| info.cgroup)),
            label: self.label.as_ref().map(drop).map_err(|errno| *errno),
        };
        self.check_ids(now, &inspection.identity)?;
        Ok(inspection)
    }

    /// Returns the executable, and the reason if it cannot be read now. In that case the executable is the
    /// one accepted earlier, if the peer still runs it.
    fn executable(
        &self,
        directory: Option<&Arc<OwnedFd>>,
        own: &KernelResult<Executable>,
        deadline: &Deadline,
    ) -> Result<(Option<Executable>, KernelResult<()>)> {
        let Some(directory) = directory else {
            return Ok((None, Err(Errno::ENOENT)));
        };
        match executable_of(directory, own, deadline)? {
            Ok(executable) => Ok((Some(executable), Ok(()))),
            // Its memory is gone: the process is about to end, though neither the pidfd nor its state says so
            // yet.
            Err(Errno::ENOENT | Errno::ESRCH) => Err(self.gone()),
            // Executing another program makes a process dumpable again, unless it may not read that program
            // or its ids change. So while the peer is not dumpable, it still executes the program that was
            // seen before.
            Err(errno) => {
                let is_hardened = self.hardens && self.is_dumpable(directory) == Ok(false);
                Ok((self.accepted.get().filter(|_| is_hardened).cloned(), Err(errno)))
            }
        }
    }

    /// Queries the pidfd. Returns `Ok(Ok(None))` before Linux 6.13, and for a process without a number here.
    fn pidfd_info(&self) -> Result<KernelResult<Option<sys::process::PidfdInfo>>> {
        match self.pidfd.as_deref().map(sys::process::pidfd_info) {
            Some(Err(Errno::ESRCH | Errno::EREMOTE)) if self.credentials.pid == 0 => Ok(Ok(None)),
            Some(Err(Errno::ESRCH)) => Err(self.gone()),
            None | Some(Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP)) => Ok(Ok(None)),
            Some(found) => {
                Ok(unless_short("the peer's process information (PIDFD_GET_INFO)", found)?.map(Some))
            }
        }
    }

    /// Returns the name of the peer's cgroup. It is not read again if the peer is still in the cgroup with the same number.
    fn cgroup(
        &self,
        directory: Option<&OwnedFd>,
        fixed: &Fixed,
        number: Option<u64>,
    ) -> Result<KernelResult<String>> {
        if let Some((known, name)) = fixed.cgroup.get()
            && number == Some(*known)
        {
            return Ok(Ok(name.clone()));
        }
        let text = directory.map_or(Err(Errno::ENOENT), |directory| read_text(directory, "cgroup"));
        let name = unless_short("the peer's cgroup (/proc/PID/cgroup)", text)?.and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("0::").map(str::to_owned))
                .ok_or(Errno::ENODATA)
        });
        // The peer may have moved while its cgroup was read.
        if let (Ok(name), Some(number)) = (&name, number)
            && cgroup_number(&self.pidfd_info()?) == Some(number)
        {
            fixed.cgroup.get_or_init(|| (number, name.clone()));
        }
        Ok(name)
    }

    /// Refuses a process whose effective user or group `now` differs from the attested one.
    fn check_ids(&self, now: Option<(u32, u32)>, identity: &Identity) -> Result<()> {
        let Credentials { pid, uid, gid } = self.credentials;
        for (check, then, now) in [
            (Check::Uid, uid, now.map(|(uid, _)| uid)),
            (Check::Gid, gid, now.map(|(_, gid)| gid)),
        ] {
            let found = match now {
                Some(now) if now == then => continue,
                Some(now) => format!("{now} now"),
                // The policy accepts a peer about which nothing can be looked up.
                None if pid == 0 || self.may_hide_directory => continue,
                None => "its current id cannot be read in /proc, and the kernel is older than 6.13".into(),
            };
            let mut refusal = Refusal::new(check, format!("{then}, as first attested"), found);
            refusal.identity = Some(identity.clone());
            return Err(refusal.into());
        }
        Ok(())
    }

    /// Returns the supplementary groups that the peer had when it was attested and still has, or the reason
    /// why they are unknown.
    fn current_groups(&self, status: &KernelResult<String>) -> Result<Vec<u32>, String> {
        let attested = self
            .groups
            .as_ref()
            .ok_or("the kernel does not report the supplementary groups")?;
        if attested.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(errno) = status {
            return Err(format!(
                "which supplementary groups it has now cannot be read in /proc: {}",
                errno.desc()
            ));
        }
        let now =
            numbers(status, "Groups:").ok_or("/proc does not show which supplementary groups it has now")?;
        Ok(attested
            .iter()
            .filter(|group| now.contains(group))
            .copied()
            .collect())
    }

    /// Whether a process number means the same process to the peer and to this process. `false` before the
    /// first inspection.
    pub(crate) fn shares_pid_ns(&self) -> bool {
        self.same_pid_ns.get() == Some(&true)
    }

    /// Remembers the executable with which the policy accepted the peer; used by [`Peer::inspect`].
    pub(crate) fn set_accepted(&self, identity: &Identity) {
        if let Some(executable) = &identity.executable {
            self.accepted.get_or_init(|| executable.clone());
        }
    }

    /// Whether other processes of its user may inspect the peer. If not, the files in its directory belong to
    /// root (proc(5)). For root's own processes this is unknown, and they count as dumpable.
    fn is_dumpable(&self, directory: &OwnedFd) -> KernelResult<bool> {
        files_belong_to(directory, self.credentials.uid)
    }

    /// Describes, for the evidence, whether the peer is hardened.
    pub(crate) fn hardening(&self) -> String {
        let reported = if self.hardens {
            "the peer reports it, which proves nothing"
        } else {
            "the peer does not report it"
        };
        let directory = self.directory.as_deref();
        let shown = match directory.map(|directory| self.is_dumpable(directory)) {
            Some(Ok(false)) => "not dumpable, as the owner of its files in /proc shows",
            Some(Ok(true)) if self.credentials.uid == 0 => {
                "whether it is dumpable is not visible: it is root's"
            }
            Some(Ok(true)) => "dumpable, as the owner of its files in /proc shows",
            Some(Err(_)) | None => "its files in /proc cannot be inspected",
        };
        // Reading the link needs the same permission as following it, and does not access the executable's
        // filesystem.
        let is_unreadable =
            || directory.is_some_and(|directory| uninterrupted(|| readlinkat(directory, "exe")).is_err());
        let executable_note = if self.hardens && self.accepted.get().is_some() && is_unreadable() {
            "; its executable is unchanged"
        } else {
            ""
        };
        format!("{reported}; {shown}{executable_note}")
    }

    /// Returns the pidfd, used to wait for the peer's end.
    pub(crate) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.clone()
    }

    /// Reduces the peer to what an open channel keeps: with a pidfd the directory can be opened again.
    pub(crate) fn into_open(mut self) -> Self {
        self.fixed = None;
        if self.pidfd.is_some() {
            self.directory = None;
        }
        // From now on the peer may harden itself at any time without announcing it: see `executable`.
        self.hardens = true;
        self
    }
}

/// Returns the number of the cgroup in a process's information.
fn cgroup_number(info: &KernelResult<Option<sys::process::PidfdInfo>>) -> Option<u64> {
    info.as_ref().ok()?.as_ref()?.cgroup
}

/// Whether the files in a directory of /proc belong to this user.
fn files_belong_to(directory: &OwnedFd, user: u32) -> KernelResult<bool> {
    let file = uninterrupted(|| fstatat(directory, "stat", AtFlags::empty()))?;
    Ok(file.st_uid == user)
}

impl Inspection {
    /// Whether the sandbox of this process can be the reason why it cannot inspect the peer: a namespace, a /proc that it may
    /// not read, or a Landlock domain, from which no process outside can be inspected.
    pub(crate) fn is_behind_sandbox(&self) -> bool {
        let is_out_of_namespace =
            self.identity.pid <= 0 || !self.is_mapped || self.namespaces.hides_user_namespace;
        let Some(directory) = &self.directory else {
            return true;
        };
        // Without a sandbox, a process may inspect a dumpable one of its user and group, unless that has more capabilities or, for root, is
        // not dumpable: this cannot tell those from a sandbox.
        let is_denied = matches!(self.executable, Err(Errno::EACCES | Errno::EPERM))
            && self.identity.gid == getegid().as_raw();
        let own = geteuid().as_raw();
        is_out_of_namespace
            || is_denied && self.identity.uid == own && files_belong_to(directory, own) == Ok(true)
    }

    /// Explains why the executable is unknown, and what to require instead.
    pub(crate) fn describe_unreadable_executable(&self) -> String {
        let Identity { pid, uid, .. } = self.identity;
        match self.executable {
            Err(Errno::EACCES | Errno::EPERM) if uid != geteuid().as_raw() => format!(
                "unreadable: process {pid} is another user's (uid {uid}), whose executable is visible only with CAP_SYS_PTRACE; \
                 let the policy's executable be any, and ask for uid, gid, cgroup or label instead"
            ),
            Err(Errno::EACCES | Errno::EPERM) => format!(
                "unreadable: process {pid} is hardened (not dumpable), or has other groups or more capabilities than \
                 this one, so seeing its executable takes CAP_SYS_PTRACE; ask for uid, gid, cgroup or label instead"
            ),
            _ if self.directory.is_none() => format!(
                "unreadable: /proc does not show process {pid} to this one (it is mounted with hidepid, or a sandbox \
                 denies it); ask for uid, gid, cgroup or label instead"
            ),
            Err(errno) => format!("unreadable: {}", errno.desc()),
            Ok(()) => "unreadable".into(),
        }
    }

    /// Returns the SHA-256 of the peer's executable. It is read through /proc/PID/exe, which is the executed
    /// file even if its name now belongs to another file.
    pub(crate) fn content(&mut self, deadline: &Deadline) -> Result<Content> {
        let (Some(directory), Some(executable)) = (&self.directory, &mut self.identity.executable) else {
            return executable::unreadable(Errno::ENOENT);
        };
        // The peer hardened itself after the content was read, so it still executes the same program.
        if let (Err(_), Some(digest)) = (self.executable, executable.sha256) {
            return Ok(Ok(digest));
        }
        let (directory, within) = (Arc::clone(directory), deadline.clone());
        let wanted = (executable.device, executable.inode);
        let read = move || hash_executable(&directory, wanted, &within);
        let content = threads::run(executable::READING, deadline, read)??;
        if let Ok(digest) = content {
            executable.sha256 = Some(digest);
        }
        Ok(content)
    }

    /// Returns the cgroup, or why it is unknown.
    pub(crate) fn describe_cgroup(&self) -> String {
        match (&self.identity.cgroup, self.cgroup) {
            (Some(cgroup), _) => cgroup.clone(),
            (None, Err(Errno::ENODATA)) => "none of version 2".into(),
            (None, Err(errno)) => format!("unreadable in /proc: {}", errno.desc()),
            (None, Ok(())) => "none".into(),
        }
    }

    /// Returns the label, or why there is none.
    pub(crate) fn describe_label(&self) -> String {
        match (&self.identity.label, self.label) {
            (Some(label), _) => label.clone(),
            (None, Err(Errno::ENOPROTOOPT)) => {
                "none: no security module of this kernel labels sockets".into()
            }
            (None, Err(errno)) => format!("unreadable (SO_PEERSEC): {}", errno.desc()),
            (None, Ok(())) => "none".into(),
        }
    }
}

/// Hashes the file that the process of this /proc directory executes. The file must be `wanted` (device and
/// inode).
fn hash_executable(directory: &OwnedFd, wanted: (u64, u64), deadline: &Deadline) -> Result<Content> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let opened = uninterrupted(|| openat(directory, "exe", flags, Mode::empty()));
    let (file, found) =
        match opened.and_then(|file| uninterrupted(|| fstat(&file)).map(|found| (file, found))) {
            Ok(opened) => opened,
            Err(errno) => return executable::unreadable(errno),
        };
    if (found.st_dev, found.st_ino) != wanted {
        let why = "it executed another file during the check".into();
        return Ok(Err(why));
    }
    executable::hash(&file, &found, deadline)
}

/// Inspects the executed file, with a time limit: following a link to a network mount whose server is gone
/// can hang.
///
/// The common case is a peer whose executable has the same name as this process's own. It is inspected
/// without a thread, which saves some 100 µs. The peer can forge that name, but it cannot make the call hang.
/// The call skips filesystems that a user serves (FUSE; see [`sys::file::WITHOUT_SERVER`]). Mounting any
/// other filesystem needs root, and root can hang this process anyway.
fn executable_of(
    directory: &Arc<OwnedFd>,
    own: &KernelResult<Executable>,
    deadline: &Deadline,
) -> Result<KernelResult<Executable>> {
    let named = match unless_short(
        "the peer's executable",
        uninterrupted(|| readlinkat(&**directory, "exe")),
    )? {
        Ok(path) => PathBuf::from(path),
        // The path is longer than a page.
        Err(Errno::ENAMETOOLONG) => PathBuf::from("(unnamed)"),
        Err(errno) => return Ok(Err(errno)),
    };
    let found = if own.as_ref().is_ok_and(|own| own.path == named) {
        executable_at(directory, named)
    } else {
        let directory = Arc::clone(directory);
        threads::run("inspecting the peer's executable", deadline, move || {
            executable_at(&directory, named)
        })?
    };
    unless_short("the peer's executable", found)
}

/// Inspects the file behind `exe`. The kernel follows this link to the executed file even if that was
/// renamed, replaced or unlinked (proc(5)).
fn executable_at(directory: &OwnedFd, path: PathBuf) -> KernelResult<Executable> {
    let flags = AtFlags::from_bits_retain(sys::file::WITHOUT_SERVER);
    let file = uninterrupted(|| fstatat(directory, "exe", flags))?;
    Ok(Executable::of(path, &file))
}

/// Returns the numbers of a line of /proc/PID/status.
fn numbers(status: &KernelResult<String>, name: &str) -> Option<Vec<u32>> {
    sys::file::numbers_in(status.as_ref().ok()?, name)
}

/// Returns the effective id: the second of real, effective, saved and filesystem id.
fn effective(status: &KernelResult<String>, name: &str) -> Option<u32> {
    numbers(status, name)?.get(1).copied()
}

/// Returns this process's own executable, to compare with. It is read without a time limit: if this process
/// runs from a mount whose server is gone, it cannot continue anyway.
pub(crate) fn own_executable() -> KernelResult<Executable> {
    let flags = AtFlags::from_bits_retain(sys::file::WITHOUT_SERVER);
    let file = uninterrupted(|| fstatat(AT_FDCWD, "/proc/self/exe", flags))?;
    let path = uninterrupted(|| readlink("/proc/self/exe"))
        .map_or_else(|_| PathBuf::from("(unnamed)"), PathBuf::from);
    Ok(Executable::of(path, &file))
}

/// Returns the executable at a path that the policy names. Waits until `deadline`, because each directory of
/// the path may lie on a mount whose server is gone.
pub(crate) fn named_executable(path: &Path, deadline: &Deadline) -> Result<KernelResult<Executable>> {
    let path = path.to_owned();
    threads::run(
        "inspecting an executable that the policy names",
        deadline,
        move || {
            let file = uninterrupted(|| open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()))?;
            let found = uninterrupted(|| fstat(&file))?;
            Ok(Executable::of(path, &found))
        },
    )
}

/// The kernel's default for [`overflow_uid`].
const DEFAULT_OVERFLOW_UID: u32 = 65534;

/// Returns the uid that the kernel shows for users that are not mapped here (user_namespaces(7)). Each process reads it once: root
/// alone can change it.
fn overflow_uid() -> Result<u32> {
    const WHERE: &str = "/proc/sys/kernel/overflowuid";
    static CACHE: PerProcess<OnceLock<u32>> = PerProcess::new();
    let cache = CACHE.get()?;
    if let Some(uid) = cache.get() {
        return Ok(*uid);
    }
    let text = unless_short(WHERE, sys::file::read_whole_text(WHERE))?;
    let uid = text
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            refuse(
                Check::Uid,
                "a uid that is mapped in this user namespace",
                format!("{WHERE} cannot be read, so an unmapped uid cannot be recognized"),
            )
        })?;
    Ok(*cache.get_or_init(|| uid))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixStream,
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use nix::{fcntl::FcntlArg, fcntl::FdFlag, fcntl::fcntl};

    use super::*;

    fn time() -> Deadline {
        Deadline::endless(Vec::new(), Duration::ZERO).within(Duration::from_secs(60))
    }

    /// This process, as seen from the other end of a socket.
    fn myself() -> Peer {
        let (near, _far) = UnixStream::pair().unwrap();
        Peer::attest(&near, MayHide::default(), &mut EvidenceLog::default()).unwrap()
    }

    /// Starts a child that runs until its standard input ends.
    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Makes a peer from a child, with its pidfd and directory.
    fn peer_of(child: &Child) -> Peer {
        let Credentials { uid, gid, .. } = myself().credentials;
        let pid = child.id().cast_signed();
        let mut peer = Peer::unknown(Credentials { pid, uid, gid });
        peer.pidfd = Some(Arc::new(sys::process::pidfd_open(Pid::from_raw(pid)).unwrap()));
        peer.directory = peer.open_directory(&Fixed::default()).unwrap();
        assert!(peer.directory.is_some());
        peer
    }

    #[test]
    fn cgroup_is_reread_if_its_number_has_changed() {
        let me = myself();
        let first = me.inspect(&time()).unwrap();
        let fixed = me.fixed.as_ref().unwrap();
        let Some((number, name)) = fixed.cgroup.get().cloned() else {
            eprintln!("left out: Linux before 6.13, or no cgroups of version 2");
            return;
        };
        assert_eq!(first.identity.cgroup, Some(name.clone()));
        for (known, wanted) in [(number, "the known one"), (number + 1, name.as_str())] {
            let fixed = Fixed::default();
            fixed.cgroup.set((known, "the known one".into())).unwrap();
            let peer = Peer {
                fixed: Some(fixed),
                ..myself()
            };
            let found = peer.inspect(&time()).unwrap();
            assert_eq!(found.identity.cgroup.as_deref(), Some(wanted));
        }
    }

    fn is_gone<T: std::fmt::Debug>(result: Result<T>) {
        assert_eq!(result.unwrap_err().code(), "PEER_LOST");
    }

    #[test]
    fn proc_directory_descriptor_is_close_on_exec() {
        let me = myself();
        assert!(me.is_self());
        let parent = Credentials {
            pid: nix::unistd::getppid().as_raw(),
            ..me.credentials
        };
        assert!(!Peer::unknown(parent).is_self());
        let directory = me.directory.as_ref().unwrap();
        let flags = FdFlag::from_bits_retain(fcntl(directory, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        // `O_PATH`: no file in it is open, and the filesystem is not accessed.
        let flags = OFlag::from_bits_retain(fcntl(directory, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_PATH | OFlag::O_DIRECTORY), "{flags:?}");
        assert!(me.pidfd().is_some());
        let found = me.inspect(&time()).unwrap();
        assert_eq!(found.identity.executable, Some(own_executable().unwrap()));
        assert!(me.shares_pid_ns() && !Peer::unknown(parent).shares_pid_ns());
        assert_eq!(found.namespaces.same, found.directory.is_some());
        assert!(me.into_open().directory.is_none());
        let without = Peer::unknown(parent);
        assert!(!without.hardens && without.into_open().hardens);
    }

    #[test]
    fn exited_process_is_reported_for_every_reference() {
        let mut cat = child();
        let whole = peer_of(&cat);
        let mut by_directory = peer_of(&cat);
        by_directory.pidfd = None;
        let mut by_number = Peer::unknown(whole.credentials);
        for peer in [&whole, &by_directory, &by_number] {
            peer.check_alive().unwrap();
            assert!(peer.open_directory(&Fixed::default()).unwrap().is_some());
            let found = peer.inspect(&time()).unwrap();
            assert!(found.identity.executable.is_some());
        }
        drop(cat.stdin.take());
        // Ended but not reaped: a zombie.
        let ended = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        let pid = Pid::from_raw(whole.credentials.pid);
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), ended).unwrap();
        for peer in [&whole, &by_directory] {
            is_gone(peer.check_alive());
            is_gone(peer.inspect(&time()).map(drop));
            is_gone(
                peer.executable(peer.directory.as_ref(), &own_executable(), &time())
                    .map(drop),
            );
        }
        cat.wait().unwrap();
        for peer in [&whole, &by_directory] {
            is_gone(peer.check_alive());
        }
        // With a pidfd it is known that the number in /proc now belongs to another process. Without a pidfd,
        // a missing entry means that the process is gone.
        assert!(whole.open_directory(&Fixed::default()).unwrap().is_none());
        assert!(whole.find_directory(&Fixed::default()).unwrap().is_none());
        is_gone(by_directory.open_directory(&Fixed::default()));
        is_gone(by_number.open_directory(&Fixed::default()));
        by_number.credentials.pid = 0;
        is_gone(by_number.find_directory(&Fixed::default()));
        if sys::process::pidfd_info(myself().pidfd().unwrap()).is_ok() {
            is_gone(whole.pidfd_info());
            // A peer that never had a number here cannot be queried.
            let mut unseen = Peer::unknown(by_number.credentials);
            unseen.pidfd = whole.pidfd();
            assert!(matches!(unseen.pidfd_info().unwrap(), Ok(None)));
            let me = myself();
            let info = me.pidfd_info().unwrap().unwrap().unwrap();
            assert_eq!((info.uid, info.gid), (me.credentials.uid, me.credentials.gid));
        }
    }

    #[test]
    fn unreadable_state_is_a_refusal_and_not_an_exit() {
        let mut me = myself();
        let strange = tempfile::tempdir().unwrap();
        me.directory = Some(Arc::new(std::fs::File::open(strange.path()).unwrap().into()));
        // The file is missing, and without a pidfd that means that the process is gone.
        let pidfd = me.pidfd.take();
        is_gone(me.check_alive());
        // Reading a directory fails with an errno that does not mean "gone".
        std::fs::create_dir(strange.path().join("stat")).unwrap();
        assert_eq!(me.check_alive().unwrap_err().code(), "PEER_REFUSED");
        // A pidfd shows the end by itself.
        me.pidfd = pidfd;
        me.check_alive().unwrap();
    }

    #[test]
    fn only_immutable_properties_are_read_once() {
        let mut me = myself();
        let first = me.inspect(&time()).unwrap();
        // What is known is used, so a wrong value is found again. The handshake's end forgets it.
        let fixed = me.fixed.take().unwrap();
        assert!(fixed.own.get().is_some());
        me.fixed = Some(Fixed {
            own: OnceLock::from(Err(Errno::EACCES)),
            ..fixed
        });
        let second = me.inspect(&time()).unwrap();
        assert_eq!(second.own, Err(Errno::EACCES));
        assert_eq!(second.identity.executable, first.identity.executable);
        assert_eq!(second.identity.cgroup, first.identity.cgroup);
        let open = me.into_open();
        assert!(open.fixed.is_none());
        assert_eq!(open.inspect(&time()).unwrap().own, first.own);
        assert!(open.fixed.is_none());
    }

    #[test]
    fn changed_or_unknown_ids_are_refused() {
        let credentials = |pid| Credentials { pid, uid: 2, gid: 3 };
        let peer = Peer::unknown(credentials(1));
        let checked = |peer: &Peer, now| {
            let identity = Identity::of(peer.credentials);
            let checked = peer.check_ids(now, &identity);
            checked.err().map(|error| error.refusal().unwrap().check.clone())
        };
        for (now, refused) in [
            (Some((2, 3)), None),
            (Some((9, 3)), Some(Check::Uid)),
            (Some((2, 9)), Some(Check::Gid)),
            (None, Some(Check::Uid)),
        ] {
            assert_eq!(checked(&peer, now), refused, "{now:?}");
        }
        // A peer without a number here, about which nothing can be looked up.
        let unseen = Peer::unknown(credentials(0));
        assert_eq!(checked(&unseen, None), None);
        assert_eq!(checked(&unseen, Some((9, 3))), Some(Check::Uid));
    }

    #[test]
    fn only_attested_and_current_groups_count() {
        let mut peer = myself();
        let status: KernelResult<String> = Ok("Groups:\t9 10 \n".into());
        peer.groups = None;
        assert!(peer.current_groups(&status).is_err());
        for (attested, now) in [(vec![], vec![]), (vec![10, 11], vec![10]), (vec![11], vec![])] {
            peer.groups = Some(attested);
            assert_eq!(peer.current_groups(&status), Ok(now));
        }
        assert!(peer.current_groups(&Ok("Uid:\t1\n".into())).is_err());
        assert!(peer.current_groups(&Err(Errno::EACCES)).is_err());
        // Groups are read if the peer was attested with one, even if the pidfd reports the ids.
        peer.groups = Some(vec![u32::MAX - 1]);
        let found = peer.inspect(&time()).unwrap();
        assert_eq!((found.identity.groups, found.groups), (Some(vec![]), Ok(vec![])));
    }

    #[test]
    fn empty_label_is_none() {
        let mut peer = myself();
        for (label, known) in [
            (Ok("a".to_owned()), Some("a")),
            (Ok(String::new()), None),
            (Err(Errno::EACCES), None),
        ] {
            peer.label = label;
            let mut found = peer.inspect(&time()).unwrap();
            assert_eq!(found.identity.label.as_deref(), known);
            let shown = found.describe_label();
            found.label = Err(Errno::ENOPROTOOPT);
            let without = found.describe_label();
            match (known, &peer.label) {
                (Some(label), _) => assert_eq!((&*shown, &*without), (label, label)),
                (None, Ok(_)) => assert_eq!(shown, "none"),
                (None, Err(_)) => assert!(shown.starts_with("unreadable"), "{shown}"),
            }
            assert!(
                known.is_some() || without.contains("no security module"),
                "{without}"
            );
        }
    }

    #[test]
    fn findings_explain_unknown_values() {
        let mut found = myself().inspect(&time()).unwrap();
        let own = found.identity.uid;
        found.identity.cgroup = Some("/a".into());
        assert_eq!(found.describe_cgroup(), "/a");
        found.identity.cgroup = None;
        for (cgroup, shown) in [
            (Ok(()), "none"),
            (Err(Errno::ENODATA), "none of version 2"),
            (Err(Errno::EACCES), "unreadable in /proc: Permission denied"),
        ] {
            found.cgroup = cgroup;
            assert_eq!(found.describe_cgroup(), shown);
        }
        for (executable, uid, says) in [
            (Err(Errno::EACCES), own + 1, "another user's"),
            (Err(Errno::EPERM), own, "hardened"),
            (Err(Errno::EACCES), own, "hardened"),
            (Err(Errno::EIO), own, "unreadable: I/O error"),
            (Ok(()), own, "unreadable"),
        ] {
            (found.executable, found.identity.uid) = (executable, uid);
            let shown = found.describe_unreadable_executable();
            assert!(shown.contains(says) && !shown.contains("hidepid"), "{shown}");
        }
        assert_eq!(found.describe_unreadable_executable(), "unreadable");
        found.directory = None;
        found.executable = Err(Errno::ENOENT);
        let shown = found.describe_unreadable_executable();
        assert!(shown.contains("hidepid"), "{shown}");
    }

    #[test]
    fn own_sandbox_can_hide_a_peer() {
        let mut found = myself().inspect(&time()).unwrap();
        for (executable, is_behind) in [
            (Ok(()), false),
            (Err(Errno::EIO), false),
            (Err(Errno::EACCES), true),
        ] {
            found.executable = executable;
            assert_eq!(found.is_behind_sandbox(), is_behind, "{executable:?}");
        }
        found.identity.uid += 1;
        assert!(!found.is_behind_sandbox());
        found.directory = None;
        assert!(found.is_behind_sandbox());
    }

    #[test]
    fn seen_executable_is_retained_with_its_file() {
        let me = myself();
        let mut found = me.inspect(&time()).unwrap();
        me.set_accepted(&found.identity);
        assert_eq!(me.accepted.get(), found.identity.executable.as_ref());
        let directory = found.directory.clone().unwrap();
        let own = found.identity.executable.clone().unwrap();
        for wanted in [(own.device + 1, own.inode), (own.device, own.inode + 1)] {
            let content = hash_executable(&directory, wanted, &time()).unwrap();
            assert!(matches!(content, Err(why) if why.contains("another file")));
        }
        let Ok(digest) = found.content(&time()).unwrap() else {
            panic!("the content of this process's own executable");
        };
        assert_eq!(found.identity.executable.as_ref().unwrap().sha256, Some(digest));
        // The peer is hardened now, so it still executes the same program.
        found.executable = Err(Errno::EACCES);
        found.directory = Some(Arc::new(std::fs::File::open("/").unwrap().into()));
        assert!(matches!(found.content(&time()), Ok(Ok(found)) if found == digest));
        found.identity.executable = None;
        assert!(matches!(found.content(&time()), Ok(Err(_))));
    }

    #[test]
    fn seen_executable_counts_only_for_a_hardened_peer() {
        let mut me = myself();
        let own = me.credentials.uid;
        let seen = own_executable().unwrap();
        me.accepted.set(seen.clone()).unwrap();
        // `exe` is a plain file and not a link, so the executable is unreadable.
        let unreadable = tempfile::tempdir().unwrap();
        for name in ["exe", "stat"] {
            std::fs::write(unreadable.path().join(name), "").unwrap();
        }
        let directory: Arc<OwnedFd> = Arc::new(std::fs::File::open(unreadable.path()).unwrap().into());
        for (hardens, uid, found) in [
            (true, own + 1, Some(&seen)),
            (true, own, None),
            (false, own + 1, None),
            (false, own, None),
        ] {
            (me.hardens, me.credentials.uid) = (hardens, uid);
            let executable = me
                .executable(Some(&directory), &own_executable(), &time())
                .unwrap();
            assert_eq!(
                executable,
                (found.cloned(), Err(Errno::EINVAL)),
                "{hardens} {uid}"
            );
        }
    }

    #[test]
    fn hardening_is_visible_in_proc_ownership() {
        let mut me = myself();
        let Credentials { uid, .. } = me.credentials;
        let directory = me.directory.clone().unwrap();
        let seen = me.inspect(&time()).unwrap().identity;
        assert_eq!(me.is_dumpable(&directory), Ok(true));
        let open = if uid == 0 {
            "it is root's"
        } else {
            "report it; dumpable"
        };
        assert!(me.hardening().contains(open), "{}", me.hardening());
        assert!(me.hardening().starts_with("the peer does not report it; "));
        // For users other than root, the owner shows it.
        let directory_of_7 = tempfile::tempdir().unwrap();
        let stat = directory_of_7.path().join("stat");
        std::fs::write(&stat, "").unwrap();
        if uid == 0 {
            std::os::unix::fs::chown(&stat, Some(7), None).unwrap();
            me.credentials.uid = 7;
            me.directory = Some(Arc::new(
                std::fs::File::open(directory_of_7.path()).unwrap().into(),
            ));
            let shown = me.hardening();
            assert!(
                shown.starts_with("the peer does not report it; dumpable, as"),
                "{shown}"
            );
            me.directory = Some(Arc::clone(&directory));
        }
        // Make the files look as if they belonged to another user.
        me.credentials.uid = uid + 1;
        assert_eq!(me.is_dumpable(&directory), Ok(false));
        assert!(me.hardening().contains("not dumpable, as"), "{}", me.hardening());
        me.hardens = true;
        me.set_accepted(&seen);
        assert!(
            me.hardening()
                .starts_with("the peer reports it, which proves nothing; ")
        );
        assert!(!me.hardening().contains("is unchanged"), "it can be read");
        me.directory = None;
        assert!(
            me.hardening().contains("cannot be inspected"),
            "{}",
            me.hardening()
        );
        assert!(!me.hardening().contains("is unchanged"), "{}", me.hardening());
        // A directory without any readable file of a process.
        me.directory = Some(Arc::new(std::fs::File::open("/").unwrap().into()));
        assert!(
            me.hardening().ends_with("; its executable is unchanged"),
            "{}",
            me.hardening()
        );
        me.hardens = false;
        assert!(!me.hardening().contains("is unchanged"));
        me.hardens = true;
        me.accepted = OnceLock::new();
        assert!(!me.hardening().contains("is unchanged"));
    }

    #[test]
    fn overflow_uid_is_read_from_the_kernel() {
        let text = std::fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap();
        assert_eq!(overflow_uid().unwrap().to_string(), text.trim());
    }

    #[test]
    fn proc_status_ids_are_parsed_by_name() {
        let status: KernelResult<String> =
            Ok("Name:\tUid: 7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nShdPnd:\t0\n".into());
        assert_eq!(
            (effective(&status, "Uid:"), effective(&status, "Gid:")),
            (Some(2), Some(6))
        );
        assert_eq!(numbers(&status, "Groups:"), Some(vec![9, 10]));
        let none: KernelResult<String> = Ok("Groups:\t\n".into());
        assert_eq!(
            (numbers(&none, "Groups:"), effective(&none, "Uid:")),
            (Some(vec![]), None)
        );
    }
}
