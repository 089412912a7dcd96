//! Who the peer must be.

use std::{
    fmt,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use nix::unistd::{geteuid, getuid};

use crate::{
    error::{self, Error, Refusal, Result},
    evidence::Record,
    identity::{Digest, Executable, Identity},
    peer::authorize::{self, Authorize, Decision},
    peer::namespace::Namespace,
    peer::process::{self, Look, Peer, SAME_NAMESPACE},
    wait::deadline::Deadline,
};

/// Which users are let in.
#[derive(Debug, Clone)]
enum Users {
    /// The peer's uid equals this process's real and effective uid.
    Same,
    OneOf(Vec<u32>),
}

/// An executable that a [`Policy`] lets in: this process's own, a file, a content, or a file with a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    file: Which,
    sha256: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Any,
    Same,
    Path(PathBuf),
}

impl Program {
    /// The very file that this process executes (device and inode).
    pub const fn same() -> Self {
        Self {
            file: Which::Same,
            sha256: None,
        }
    }

    /// The file that has this path at the time of the check (device and inode). A path that is not absolute is
    /// [`Error::InvalidArgument`] of the call that takes the policy.
    pub fn path(path: impl AsRef<Path>) -> Self {
        Self {
            file: Which::Path(path.as_ref().to_owned()),
            sha256: None,
        }
    }

    /// Whatever file has this content, as it is read through /proc/PID/exe, which takes permission to read that file
    /// as well. A file served by a process (FUSE) is refused.
    pub const fn content(sha256: Digest) -> Self {
        Self {
            file: Which::Any,
            sha256: Some(sha256),
        }
    }

    /// The same file, and only with this content, read as [`Program::content`] says.
    #[must_use]
    pub const fn with_content(mut self, sha256: Digest) -> Self {
        self.sha256 = Some(sha256);
        self
    }

    /// Errors where this process cannot look at its own executable, or has run out of what a look takes. A path that does
    /// not exist allows nobody; it takes nothing from the others.
    fn has_file(&self, found: &Executable, deadline: &Deadline) -> Result<bool, Failed> {
        let short = |errno| {
            let what = "looking at the executables that the policy names";
            Failed::CalledOff(Error::system(what, errno))
        };
        Ok(match &self.file {
            Which::Any => true,
            Which::Same => match process::own_executable() {
                Ok(own) => own.is_same_file(found),
                Err(errno) if error::is_shortage(errno) => return Err(short(errno)),
                Err(errno) => {
                    let found = format!("/proc/self/exe cannot be read: {}", errno.desc());
                    return Err(Failed::executable(std::slice::from_ref(self), found));
                }
            },
            Which::Path(path) => {
                match process::named_executable(path, deadline).map_err(Failed::CalledOff)? {
                    Ok(named) => named.is_same_file(found),
                    Err(errno) if error::is_shortage(errno) => return Err(short(errno)),
                    Err(_) => false,
                }
            }
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Which::Any => f.write_str("any file")?,
            Which::Same => match process::own_executable() {
                Ok(own) => write!(f, "this process's own, {own}")?,
                Err(_) => f.write_str("this process's own")?,
            },
            Which::Path(path) => write!(f, "{}", path.display())?,
        }
        match self.sha256 {
            Some(sha256) => write!(f, " with the SHA-256 {sha256}"),
            None => Ok(()),
        }
    }
}

/// What an [`Identity`] must satisfy before anything is shared. All checks must hold; one that cannot be made is a
/// refusal that says so, never a pass.
///
/// [`Policy::default`] asks for the same uid and the same executable. [`Policy::new`] asks for the same uid alone,
/// and grows by what it is told: whatever it does not name is not looked at, and the evidence says so. The one exception is
/// the namespace: every policy asks for the same one, until [`Policy::namespace`] says otherwise.
///
/// Against another uid this is a boundary that the kernel keeps. Within one uid it is not: a process of the same
/// user can be made to run the same executable with other code in it. See the crate's page for what helps.
///
/// | check | can be made of | else ask for |
/// | --- | --- | --- |
/// | uid | anybody who connects | |
/// | namespace | anybody (Linux 5.5; before that, whomever /proc shows) | |
/// | gid | anybody who connects; a supplementary group where /proc shows the process (not with `hidepid`) | |
/// | executable, content | a process of the same user, with no other groups and no more capabilities than this one has, that is dumpable (not hardened, not started setuid or setgid); with `CAP_SYS_PTRACE`, anybody | uid, gid, cgroup, label |
/// | cgroup | anybody (Linux 6.13, and the cgroup filesystem mounted here); before that, whomever /proc shows | uid, gid |
/// | label | anybody, where a security module labels sockets | uid, gid, cgroup |
/// | authorize | anybody who has passed the rest | |
#[derive(Debug, Clone)]
pub struct Policy {
    users: Users,
    namespace: Namespace,
    groups: Option<Vec<u32>>,
    executables: Option<Vec<Program>>,
    cgroup: Option<String>,
    label: Option<String>,
    authorize: Option<Authorize>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new().same_executable()
    }
}

impl Policy {
    /// The same uid and the same namespaces, and nothing else.
    pub fn new() -> Self {
        Self {
            users: Users::Same,
            namespace: Namespace::Same,
            groups: None,
            executables: None,
            cgroup: None,
            label: None,
            authorize: None,
        }
    }

    /// The peer's effective uid must be one of these.
    #[must_use]
    pub fn uids(mut self, uids: impl Into<Vec<u32>>) -> Self {
        self.users = Users::OneOf(uids.into());
        self
    }

    /// In which namespaces the peer may live ([`Namespace::Same`]: in this process's own). The kernel stamps each message of
    /// a handshake with its sender's process number, which whoever has `CAP_SYS_ADMIN` over the sender's pid namespace may make
    /// up; any user has that in a namespace that it makes (`unshare -Urp`).
    #[must_use]
    pub const fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    pub(crate) const fn allowed_namespace(&self) -> Namespace {
        self.namespace
    }

    /// One of these must be the peer's effective gid, or among its supplementary groups. Those count only where they can be
    /// seen at each look.
    #[must_use]
    pub fn gids(mut self, gids: impl Into<Vec<u32>>) -> Self {
        self.groups = Some(gids.into());
        self
    }

    /// The peer must execute the very file that this process executes (device and inode).
    #[must_use]
    pub fn same_executable(self) -> Self {
        self.programs([Program::same()])
    }

    /// The peer must execute one of these files, compared by device and inode at the time of the check. Their paths must be
    /// absolute, as [`Program::path`] says.
    #[must_use]
    pub fn executables<P: AsRef<Path>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        self.programs(paths.into_iter().map(Program::path))
    }

    /// The peer must execute one of these. Replaces what was asked of its executable before.
    #[must_use]
    pub fn programs(mut self, programs: impl IntoIterator<Item = Program>) -> Self {
        self.executables = Some(programs.into_iter().collect());
        self
    }

    /// The peer must be in this very cgroup (version 2, not one below it), named as /proc/PID/cgroup does:
    /// `/system.slice/orders.service`.
    #[must_use]
    pub fn cgroup(mut self, path: impl Into<String>) -> Self {
        self.cgroup = Some(path.into());
        self
    }

    /// The peer must have had this security label when it connected or listened (`SO_PEERSEC`).
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Asked last, about a peer that has passed everything else, and before anything is shared with it; both a host's
    /// guest and a guest's host. `Ok(true)` lets it in. `Ok(false)` and an error refuse it, and so does a panic. The
    /// refusal has the error as its `source`.
    ///
    /// It runs on a thread of its own, once for each handshake, and has the handshake's deadline
    /// ([`Options::timeout`](crate::Options::timeout)): later it is [`Error::HandshakeTimeout`], and the answer counts
    /// no more. [`verify`](crate::Verifier::verify) does not ask it again.
    ///
    /// A callback that never returns keeps its thread. At most 64 calls of a policy and its clones run at a time: 48 of them
    /// about one user's processes, 16 about one process. A handshake beyond that waits for one to return, up to its deadline
    /// ([`Error::HandshakeTimeout`]). Where the system gives no thread, that is [`Error::NoSpace`].
    #[must_use]
    pub fn authorize<E>(
        mut self,
        decide: impl Fn(&Identity) -> Result<bool, E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.authorize = Some(Authorize::now(decide));
        self
    }

    /// As [`Policy::authorize`], for an answer that is given later, on any thread, by the [`Decision`]. `ask` may return
    /// before that. A panic in it refuses the peer.
    #[must_use]
    pub fn authorize_later(mut self, ask: impl Fn(Identity, Decision) + Send + Sync + 'static) -> Self {
        self.authorize = Some(Authorize::later(ask));
        self
    }

    /// Whether all that it lets in are of one user.
    pub(crate) fn is_for_one_user(&self) -> bool {
        match &self.users {
            Users::Same => true,
            Users::OneOf(uids) => uids.iter().all(|uid| uid == &uids[0]),
        }
    }

    /// Errors with [`Error::InvalidArgument`] for an executable whose path is relative: which file that is would depend on the
    /// working directory of each look.
    pub(crate) fn check_paths(&self) -> Result<()> {
        for program in self.executables.iter().flatten() {
            if let Which::Path(path) = &program.file
                && !path.is_absolute()
            {
                return Err(Error::invalid(format!(
                    "the path of an executable must be absolute, not {:?}",
                    path.display().to_string()
                )));
            }
        }
        Ok(())
    }

    /// What can be looked at again at any time: everything but the callback.
    pub(crate) fn without_callback(&self) -> Self {
        Self {
            authorize: None,
            ..self.clone()
        }
    }

    /// Looks at the peer and compares. Every finding goes into the record; the first that does not hold is the
    /// refusal. What takes longest, the content of the executable, has `deadline`.
    pub(crate) fn check(
        &self,
        peer: &Peer,
        step: &'static str,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<Identity> {
        let mut look = peer.look(deadline)?;
        let compared = self.compare(&mut look, step, deadline, record);
        // Of a process that has ended meanwhile nothing was found out. One that has not is who was looked at.
        peer.check_alive()?;
        match compared {
            Ok(()) => {
                peer.remember(&look.identity);
                Ok(look.identity)
            }
            Err(Failed::Refused(mut refusal)) => {
                refusal.identity = Some(look.identity);
                Err(Error::PeerRefused(refusal))
            }
            Err(Failed::CalledOff(error)) => Err(error),
        }
    }

    /// Asks the callback, which comes last. `connection` is the one to the peer.
    pub(crate) fn ask(
        &self,
        identity: &Identity,
        connection: BorrowedFd<'_>,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<()> {
        let Some(authorize) = &self.authorize else {
            record.unchecked(authorize::STEP, authorize::CHECK, "no callback");
            return Ok(());
        };
        authorize.ask(identity, connection, deadline, record)
    }

    fn compare(
        &self,
        look: &mut Look,
        step: &'static str,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<(), Failed> {
        let identity = &look.identity;
        let uid = identity.uid;
        match &self.users {
            Users::Same => {
                let (real, effective) = (getuid().as_raw(), geteuid().as_raw());
                let wanted = if real == effective {
                    format!("{real}, this process's own")
                } else {
                    format!("{real} and {effective}, this process's real and effective uid, which differ")
                };
                let passed = uid == real && uid == effective;
                hold(record, step, "uid", wanted, uid.to_string(), passed)?;
            }
            Users::OneOf(uids) => {
                let passed = uids.contains(&uid);
                hold(
                    record,
                    step,
                    "uid",
                    format!("one of {uids:?}"),
                    uid.to_string(),
                    passed,
                )?;
            }
        }
        match self.namespace {
            Namespace::Any => record.unchecked(step, "namespace", look.standing.found.clone()),
            Namespace::Same => {
                let mut found = look.standing.found.clone();
                let passed = look.standing.same;
                if !passed {
                    found.push_str(
                        "; let the two share both namespaces, or let it in by the policy's `namespace`: any",
                    );
                }
                hold(record, step, "namespace", SAME_NAMESPACE.into(), found, passed)?;
            }
        }
        match &self.groups {
            None => record.unchecked(step, "gid", identity.gid.to_string()),
            Some(gids) => {
                let groups = identity.groups.as_deref();
                let found = match (groups, &look.groups) {
                    (Some(groups), _) => format!("{} with {groups:?}", identity.gid),
                    (None, Err(why)) => format!("{}, and {why}", identity.gid),
                    (None, Ok(())) => identity.gid.to_string(),
                };
                let passed = gids
                    .iter()
                    .any(|gid| identity.gid == *gid || groups.is_some_and(|groups| groups.contains(gid)));
                hold(record, step, "gid", format!("one of {gids:?}"), found, passed)?;
            }
        }
        match &self.cgroup {
            None => record.unchecked(step, "cgroup", look.cgroup_shown()),
            Some(wanted) => {
                let (wanted, found, passed) = look.compare_cgroup(wanted).map_err(Failed::CalledOff)?;
                hold(record, step, "cgroup", wanted, found, passed)?;
            }
        }
        match &self.label {
            None => record.unchecked(step, "label", look.label_shown()),
            Some(wanted) => {
                let passed = identity.label.as_ref() == Some(wanted);
                hold(record, step, "label", wanted.clone(), look.label_shown(), passed)?;
            }
        }
        // Last, since a content takes long to read.
        match (&self.executables, &identity.executable) {
            (None, found) => record.unchecked(
                step,
                "executable",
                found
                    .as_ref()
                    .map_or_else(|| look.executable_unreadable(), ToString::to_string),
            ),
            (Some(wanted), None) => {
                return Err(Failed::executable(wanted, look.executable_unreadable()));
            }
            (Some(wanted), Some(found)) => {
                let found = found.clone();
                compare_executable(wanted, &found, look, step, deadline, record)?;
            }
        }
        Ok(())
    }
}

/// Why a comparison did not come to a good end.
enum Failed {
    Refused(Box<Refusal>),
    /// This side cannot go on, whoever the peer is.
    CalledOff(Error),
}

impl Failed {
    fn executable(wanted: &[Program], found: impl Into<String>) -> Self {
        Self::Refused(Box::new(Refusal::new("executable", one_of(wanted), found)))
    }
}

fn one_of(programs: &[Program]) -> String {
    let all: Vec<String> = programs.iter().map(ToString::to_string).collect();
    match &*all {
        [one] => one.clone(),
        _ => format!("one of: {}", all.join("; ")),
    }
}

fn compare_executable(
    wanted: &[Program],
    found: &Executable,
    look: &mut Look,
    step: &'static str,
    deadline: &Deadline,
    record: &mut Record,
) -> Result<(), Failed> {
    let mut contents = Vec::new();
    let mut passed = false;
    for program in wanted {
        if program.has_file(found, deadline)? {
            match program.sha256 {
                None => passed = true,
                Some(sha256) => contents.push(sha256),
            }
        }
    }
    let mut shown = found.to_string();
    // What is let in for its file needs no reading, and what has the wrong file is not read.
    if !passed && !contents.is_empty() {
        match look.digest(deadline) {
            Ok(digest) => {
                passed = contents.contains(&digest);
                shown = format!("{} with the SHA-256 {digest}", found.path.display());
            }
            Err(Ok(why)) => return Err(Failed::executable(wanted, format!("{found}: {why}"))),
            Err(Err(error)) => return Err(Failed::CalledOff(error)),
        }
    }
    hold(record, step, "executable", one_of(wanted), shown, passed)
}

fn hold(
    record: &mut Record,
    step: &'static str,
    check: &'static str,
    wanted: String,
    found: String,
    passed: bool,
) -> Result<(), Failed> {
    if passed {
        record.passed(step, check, wanted, found);
        Ok(())
    } else {
        Err(Failed::Refused(Box::new(Refusal::new(check, wanted, found))))
    }
}
