//! The requirements on the peer, and their comparison with the findings.

use std::{
    fmt,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use nix::unistd::{geteuid, getuid};

use crate::{
    error::{Check, Error, Refusal, Result},
    evidence::{EvidenceLog, NOT_ASKED, Outcome},
    identity::{Confinement, Digest, Executable, Identity},
    peer::authorize::{self, Authorize, Decision},
    peer::confinement::{self, ConfinementCheck},
    peer::namespace::{self, KernelResult, MayHide, Namespace, NamespaceComparison, unless_short},
    peer::process::{self, Inspection, NamedBy, Peer, SAME_NAMESPACE},
    sys,
    wait::deadline::Deadline,
};

/// The users that the policy accepts.
#[derive(Debug, Clone)]
enum Users {
    /// The peer's uid equals this process's real and effective uid.
    Same,
    OneOf(Vec<u32>),
    Any,
}

/// The executables that the policy accepts.
#[derive(Debug, Clone)]
enum Executables {
    OneOf(Vec<Program>),
    Any,
}

/// An executable that a [`Policy`] accepts: this process's own, a file, a content, or a file with a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    file: ProgramFile,
    sha256: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ProgramFile {
    Any,
    Same,
    Path(PathBuf),
}

impl Program {
    /// The same file that this process executes (device and inode).
    pub const fn same() -> Self {
        Self::of(ProgramFile::Same, None)
    }

    const fn of(file: ProgramFile, sha256: Option<Digest>) -> Self {
        Self { file, sha256 }
    }

    /// The file that has this path at the time of the check (device and inode). The call that receives the
    /// policy fails with [`Error::InvalidArgument`] if the path is relative.
    pub fn path(path: impl AsRef<Path>) -> Self {
        Self::of(ProgramFile::Path(path.as_ref().to_owned()), None)
    }

    /// Any file with this content. The content is read through /proc/PID/exe, which also needs read
    /// permission for that file. A file served by a process (FUSE) is refused.
    pub const fn content(sha256: Digest) -> Self {
        Self::of(ProgramFile::Any, Some(sha256))
    }

    /// Requires this content in addition, read as in [`Program::content`].
    #[must_use]
    pub const fn with_content(mut self, sha256: Digest) -> Self {
        self.sha256 = Some(sha256);
        self
    }

    /// Describes it for the evidence.
    fn describe(&self, own: &OwnExecutable) -> String {
        let file = match (&self.file, own) {
            (ProgramFile::Any, _) => "any file".to_owned(),
            (ProgramFile::Same, Ok(own)) => format!("this process's own, {own}"),
            (ProgramFile::Same, Err(_)) => "this process's own".to_owned(),
            (ProgramFile::Path(path), _) => path.display().to_string(),
        };
        match self.sha256 {
            Some(sha256) => format!("{file} with the SHA-256 {sha256}"),
            None => file,
        }
    }

    /// Compares the peer's file with the required one. A path that does not exist matches no peer, and the
    /// policy's other programs still count. Fails if this process lacks the resources for the check. The inner error is the reason
    /// why this process cannot inspect its own executable.
    fn compare_file(
        &self,
        found: &Executable,
        own: &OwnExecutable,
        deadline: &Deadline,
    ) -> Result<Result<bool, String>> {
        let required = match &self.file {
            ProgramFile::Any => return Ok(Ok(true)),
            ProgramFile::Same => match unless_short(INSPECTING, own.clone())? {
                Ok(own) => Ok(own),
                Err(errno) => {
                    let why = format!("/proc/self/exe cannot be read: {}", errno.desc());
                    return Ok(Err(why));
                }
            },
            ProgramFile::Path(path) => unless_short(INSPECTING, process::named_executable(path, deadline)?)?,
        };
        Ok(Ok(required.is_ok_and(|file| file.is_same_file(found))))
    }
}

/// Names the operation in errors about files that the policy names.
const INSPECTING: &str = "inspecting the executables that the policy names";

/// This process's own executable. The evidence names exactly the file that was compared.
type OwnExecutable = KernelResult<Executable>;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(&process::own_executable()))
    }
}

/// The requirements that a peer's [`Identity`] must satisfy before anything is shared. All checks must pass.
/// A check that cannot be made is a refusal that says so, never a pass.
///
/// [`Policy::new`] requires the same uid, the same namespaces and the same executable. Each method replaces one
/// requirement or adds one. Only [`Policy::any_executable`] and [`Namespace::Any`] drop a requirement. A property
/// without a requirement is not checked, and the evidence records that.
///
/// Between different uids the kernel enforces this boundary. Within one uid it does not: a process of the
/// same user can be made to run the same executable with other code in it. The crate's front page lists what
/// helps.
///
/// | check | works for | otherwise require |
/// | --- | --- | --- |
/// | uid | any process that connects | |
/// | namespace | any process (Linux 5.5; before that, one that /proc shows) | |
/// | gid | any process that connects; a supplementary group only if /proc shows the process (not with `hidepid`) | |
/// | executable, content | a process of the same user, with no other groups and no more capabilities than this one has, that is dumpable (not hardened, not started setuid or setgid); with `CAP_SYS_PTRACE`, any process | uid, gid, cgroup, label |
/// | cgroup | any process (Linux 6.13, and the cgroup filesystem mounted here); before that, one that /proc shows | uid, gid |
/// | label | any process, if a security module labels sockets | uid, gid, cgroup |
/// | confined | a process that /proc shows; its namespaces only if this process may inspect it, as for executable, or has created its user namespace | |
/// | authorize | a process that has passed all other checks | |
///
/// ```
/// use ringfence::{Options, Policy};
///
/// // Two users, one program, and a last word of this program's own.
/// let policy = Policy::new()
///     .uids([1001, 1002])
///     .executables(["/usr/lib/app/worker"])
///     .authorize(|peer| Ok::<_, std::convert::Infallible>(peer.gid != 0));
/// let options = Options::new().policy(policy);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// These three have a default, which is `None` here. In a child, a default refuses nothing that the child cannot see of its parent.
    users: Option<Users>,
    namespace: Option<Namespace>,
    executables: Option<Executables>,
    groups: Option<Vec<u32>>,
    cgroup: Option<String>,
    label: Option<String>,
    confined: Vec<Confinement>,
    authorize: Option<Authorize>,
    /// The peer is the parent of this process, which the inherited line proves.
    is_parent: bool,
}

impl Policy {
    /// Requires the same uid, the same namespaces, and the same executable (device and inode).
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the namespaces in which the peer may live. [`Namespace::Same`] means this process's own. The
    /// kernel stamps each message of a handshake with the sender's process number. A process with
    /// `CAP_SYS_ADMIN` over the sender's pid namespace can forge that number, and any user has that
    /// capability in a namespace that the user creates (`unshare -Urp`).
    #[must_use]
    pub const fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Applies the defaults for a descendant of a child: it may live in any namespace, since a launcher often makes new ones.
    #[must_use]
    pub(crate) fn for_descendant(mut self) -> Self {
        self.namespace.get_or_insert(Namespace::Any);
        self
    }

    /// Applies the defaults for the parent of this process. The line that this process has inherited proves the parent, since
    /// only the process that started this one could place it. So a default check that cannot be made from this process's
    /// sandbox refuses nothing.
    #[must_use]
    pub(crate) fn for_parent(mut self) -> Self {
        self.is_parent = true;
        self
    }

    pub(crate) fn may_hide(&self) -> MayHide {
        MayHide {
            pid: self.namespace == Some(Namespace::Any) || self.is_parent && self.namespace.is_none(),
            uid: self.is_parent && matches!(self.users, None | Some(Users::Any)),
            lookups: self.is_parent,
        }
    }

    /// Turns the comparison of an invisible property into [`Outcome::NotVisible`], if the peer is the parent and the
    /// program has not named this check. What is known of a peer that has named itself is no proof.
    fn unless_not_visible(
        &self,
        mut compared: Comparison,
        is_named: bool,
        is_visible: bool,
        inspection: &Inspection,
    ) -> Comparison {
        let proves = inspection.named_by != NamedBy::Message;
        let is_hidden = !is_visible || !proves && !sys::process::is_privileged_execution();
        if compared.outcome == Some(Outcome::NotAsked) {
            return compared;
        }
        if self.is_parent && !is_named && is_hidden {
            compared.outcome = Some(Outcome::NotVisible);
        } else if !proves && compared.outcome.take().is_some() {
            compared.found = format!("{}, not provable: {}", compared.found, self.unproven_reason());
        }
        compared
    }

    /// The reason why the peer is known by its messages alone, and what to do.
    fn unproven_reason(&self) -> &'static str {
        if self.is_parent {
            "a filter of this process denies getsockopt"
        } else {
            "the peer has no socket that names it; allow it socketpair, or drop the check"
        }
    }

    /// Requires the peer to execute one of these files, compared by device and inode at the time of the
    /// check. The paths must be absolute, as for [`Program::path`].
    #[must_use]
    pub fn executables<P: AsRef<Path>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        self.programs(paths.into_iter().map(Program::path))
    }

    /// Adds a callback that decides last: the peer has passed all other checks, and nothing is shared with it
    /// yet. Both sides call it, a host about its guest and a guest about its host. `Ok(true)` accepts the
    /// peer. `Ok(false)`, an error and a panic refuse it. The refusal has the error as its `source`.
    ///
    /// The callback runs on its own thread, once per handshake. It must finish before the handshake's
    /// deadline ([`Options::handshake_timeout`](crate::Options::handshake_timeout)). Otherwise the handshake fails with
    /// [`Error::HandshakeTimeout`], and the answer is ignored. [`verify`](crate::Verifier::verify) does not
    /// call it again.
    ///
    /// A callback that never returns keeps its thread. At most 64 calls of a policy and its clones run at the
    /// same time: up to 48 about one user's processes, and up to 16 about one process. A handshake beyond
    /// these limits waits until a call returns, or fails with [`Error::HandshakeTimeout`] at its deadline. If
    /// the system cannot create a thread, the handshake fails with [`Error::NoSpace`].
    #[must_use]
    pub fn authorize<E>(
        mut self,
        decide: impl Fn(&Identity) -> Result<bool, E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.authorize = Some(Authorize::direct(decide));
        self
    }

    pub(crate) fn cgroup_name(&self) -> Option<&str> {
        self.cgroup.as_deref()
    }

    /// Whether all accepted peers belong to one user.
    pub(crate) fn is_for_one_user(&self) -> bool {
        match &self.users {
            None | Some(Users::Same) => true,
            Some(Users::OneOf(uids)) => uids.iter().all(|uid| uid == &uids[0]),
            Some(Users::Any) => false,
        }
    }

    /// Checks that the paths of all executables are absolute.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a relative path, which would name a different file for each working
    /// directory.
    pub(crate) fn check_paths(&self) -> Result<()> {
        let Some(Executables::OneOf(programs)) = &self.executables else {
            return Ok(());
        };
        for program in programs {
            if let ProgramFile::Path(path) = &program.file
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

    /// Returns the checks that can be repeated at any time: everything except the callback.
    pub(crate) fn without_callback(&self) -> Self {
        Self {
            authorize: None,
            ..self.clone()
        }
    }

    /// Inspects the peer and compares. Every finding goes into the record. The first failed check is the
    /// refusal. `deadline` bounds the reading of the executable's content, which takes longest.
    pub(crate) fn check(
        &self,
        peer: &Peer,
        step: &'static str,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<Identity> {
        let mut inspection = peer.inspect(deadline)?;
        let mut compared = self.compare(&mut inspection, step, deadline, record);
        // The findings count only if the process is still alive: then they describe the process that
        // connected.
        peer.check_alive()?;
        if let Err(Error::PeerRefused(refusal)) = &mut compared {
            refusal.identity = Some(inspection.identity.clone());
        }
        compared?;
        peer.set_accepted(&inspection.identity);
        Ok(inspection.identity)
    }

    /// Whether the program is asked about a peer.
    pub(crate) fn has_callback(&self) -> bool {
        self.authorize.is_some()
    }

    /// Calls the callback, which comes last. `connection` leads to the peer.
    pub(crate) fn run_callback(
        &self,
        identity: &Identity,
        connection: BorrowedFd<'_>,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<()> {
        let Some(authorize) = &self.authorize else {
            record.not_asked(authorize::STEP, Check::Authorize.name(), "no callback");
            return Ok(());
        };
        authorize.call(identity, connection, deadline, record)
    }

    /// Compares the findings with the requirements, one check after the other.
    fn compare(
        &self,
        inspection: &mut Inspection,
        step: &'static str,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<()> {
        let mut note = |check: Check, compared: Comparison| {
            let Some(outcome) = compared.outcome else {
                return Err(Error::from(Refusal::new(check, compared.wanted, compared.found)));
            };
            record.note(step, check.name(), compared.wanted, compared.found, outcome);
            Ok(())
        };
        let (real, effective) = (getuid().as_raw(), geteuid().as_raw());
        let users = self.users.as_ref().unwrap_or(&Users::Same);
        let users = users.compare(inspection.identity.uid, real, effective);
        let users = if self.is_parent {
            self.unless_not_visible(users, self.users.is_some(), inspection.is_mapped, inspection)
        } else {
            users
        };
        note(Check::Uid, users)?;
        let namespace = self.compare_namespace(&inspection.namespaces);
        note(
            Check::Namespace,
            self.unless_not_visible(
                namespace,
                self.namespace.is_some(),
                inspection.namespaces.visible,
                inspection,
            ),
        )?;
        let explicit = |compared| self.unless_not_visible(compared, true, true, inspection);
        note(Check::Gid, explicit(self.compare_groups(inspection)))?;
        note(Check::Cgroup, explicit(self.compare_cgroup(inspection)?))?;
        note(Check::Label, explicit(self.compare_label(inspection)))?;
        for (confinement, found) in self.compare_confinement(inspection, deadline)? {
            let passed = found.is_ok();
            let (Ok(found) | Err(found)) = found;
            let compared = Comparison::compared(passed, confinement.wanted(), found);
            note(Check::Confined(confinement), compared)?;
        }
        // Last, because reading a content takes long.
        let executable = self.compare_executable(inspection, deadline)?;
        // A parent that is unreadable for another reason, such as this process's additional rights, may be a
        // stranger.
        let is_visible = inspection.identity.executable.is_some()
            || !inspection.is_behind_sandbox()
            || sys::process::is_privileged_execution();
        note(
            Check::Executable,
            self.unless_not_visible(executable, self.executables.is_some(), is_visible, inspection),
        )
    }

    fn compare_namespace(&self, namespaces: &NamespaceComparison) -> Comparison {
        let mut found = namespaces.found.clone();
        match self.namespace.unwrap_or_default() {
            Namespace::Any => return Comparison::not_asked(found),
            Namespace::Same if namespaces.same || self.is_parent && !namespaces.visible => {}
            Namespace::Same => {
                found.push_str("; share both namespaces, or set the policy's `namespace` to any");
            }
        }
        Comparison::compared(namespaces.same, SAME_NAMESPACE, found)
    }

    fn compare_groups(&self, inspection: &Inspection) -> Comparison {
        let (gid, groups) = (inspection.identity.gid, &inspection.groups);
        let Some(wanted) = &self.groups else {
            return Comparison::not_asked(gid.to_string());
        };
        let found = match groups {
            Ok(groups) => format!("{gid} with {groups:?}"),
            Err(why) => format!("{gid}, and {why}"),
        };
        let has =
            |wanted: &u32| gid == *wanted || groups.as_ref().is_ok_and(|groups| groups.contains(wanted));
        Comparison::compared(wanted.iter().any(has), format!("one of {wanted:?}"), found)
    }

    /// Compares the cgroup by number if the kernel reports the peer's number and the cgroup filesystem is
    /// mounted here. A number names one cgroup, even if cgroups are removed and created under the same name.
    /// Otherwise compares the name that /proc shows.
    fn compare_cgroup(&self, inspection: &Inspection) -> Result<Comparison> {
        let shown = inspection.describe_cgroup();
        let Some(wanted) = &self.cgroup else {
            return Ok(Comparison::not_asked(shown));
        };
        let not_visible = |why: String| Comparison::compared(false, wanted, format!("{shown}; {why}"));
        let number = match inspection.cgroup_number {
            Ok(number) => number,
            Err(errno) => {
                let why = format!("its pidfd does not report the cgroup's number: {}", errno.desc());
                return Ok(not_visible(why));
            }
        };
        let numbers = match number.map(|_| namespace::cgroup_numbers(wanted)).transpose()? {
            Some(Ok(numbers)) => numbers,
            Some(Err(why)) => return Ok(not_visible(why)),
            None => None,
        };
        let Some((number, named)) = number.zip(numbers) else {
            let passed = inspection.identity.cgroup.as_ref() == Some(wanted);
            return Ok(Comparison::compared(passed, wanted, shown));
        };
        let asked = match named.first() {
            Some(first) => format!("{wanted}, number {first}"),
            None => format!("{wanted}, which does not exist"),
        };
        let found = format!("{shown}, number {number} by its pidfd");
        Ok(Comparison::compared(named.contains(&number), asked, found))
    }

    fn compare_label(&self, inspection: &Inspection) -> Comparison {
        let found = inspection.describe_label();
        match &self.label {
            None => Comparison::not_asked(found),
            Some(wanted) => {
                Comparison::compared(inspection.identity.label.as_ref() == Some(wanted), wanted, found)
            }
        }
    }

    fn compare_confinement(
        &self,
        inspection: &Inspection,
        deadline: &Deadline,
    ) -> Result<Vec<ConfinementCheck>> {
        if self.confined.is_empty() {
            return Ok(Vec::new());
        }
        if inspection.named_by != NamedBy::Socket {
            let why = format!("not provable: {}", self.unproven_reason());
            return Ok(confinement::fail_all(&self.confined, &why));
        }
        confinement::inspect(&self.confined, inspection.directory.as_deref(), deadline)
    }

    fn compare_executable(&self, inspection: &mut Inspection, deadline: &Deadline) -> Result<Comparison> {
        let shown = match &inspection.identity.executable {
            Some(found) => found.to_string(),
            None => inspection.describe_unreadable_executable(),
        };
        let same = [Program::same()];
        let wanted = match &self.executables {
            None => &same[..],
            Some(Executables::OneOf(programs)) => programs,
            Some(Executables::Any) => return Ok(Comparison::not_asked(shown)),
        };
        let own = inspection.own.clone();
        let Some(found) = inspection.identity.executable.clone() else {
            return Ok(Comparison::compared(false, one_of(wanted, &own), shown));
        };
        let mut contents = Vec::new();
        let mut passed = false;
        for program in wanted {
            match (program.compare_file(&found, &own, deadline)?, program.sha256) {
                (Ok(false), _) => {}
                (Ok(true), None) => passed = true,
                (Ok(true), Some(sha256)) => contents.push(sha256),
                (Err(why), _) => {
                    return Ok(Comparison::compared(false, program.describe(&own), why));
                }
            }
        }
        // Read the content only if it decides: not if a file already matched, and not for the wrong file.
        if passed || contents.is_empty() {
            return Ok(Comparison::compared(passed, one_of(wanted, &own), shown));
        }
        Ok(match inspection.content(deadline)? {
            Ok(digest) => {
                let shown = format!("{} with the SHA-256 {digest}", found.path.display());
                Comparison::compared(contents.contains(&digest), one_of(wanted, &own), shown)
            }
            Err(why) => Comparison::compared(false, one_of(wanted, &own), format!("{found}: {why}")),
        })
    }
}

setters! { Policy {
    /// Requires the peer's effective uid to be one of these.
    uids(uids: impl Into<Vec<u32>>) => users = Some(Users::OneOf(uids.into()));

    /// Requires the peer to have this process's uid, as [`Policy::new`] does. A child that says so refuses a parent
    /// whose user it cannot see.
    same_uid() => users = Some(Users::Same);

    /// Accepts a peer of any user. The evidence records its uid.
    any_uid() => users = Some(Users::Any);

    /// Requires one of these to be the peer's effective gid or one of its supplementary groups. Supplementary
    /// groups count only if they are visible at each check.
    gids(gids: impl Into<Vec<u32>>) => groups = Some(gids.into());

    /// Accepts a peer that executes any file. A peer of another user usually needs this, because its executable
    /// cannot be seen without `CAP_SYS_PTRACE`.
    any_executable() => executables = Some(Executables::Any);

    /// Requires the peer to execute one of these. Replaces the previous requirement on its executable.
    programs(programs: impl IntoIterator<Item = Program>) => executables = Some(Executables::OneOf(programs.into_iter().collect()));

    /// Requires the peer to be in exactly this cgroup (version 2; a cgroup below it does not count). The name
    /// is written as in /proc/PID/cgroup: `/system.slice/orders.service`.
    cgroup(path: impl Into<String>) => cgroup = Some(path.into());

    /// Requires the peer to have had this security label when it connected or listened (`SO_PEERSEC`).
    label(label: impl Into<String>) => label = Some(label.into());

    /// Adds a callback that answers later, from any thread, through the [`Decision`]. Otherwise this is
    /// [`Policy::authorize`]. `ask` may return before the answer is given. A panic in `ask` refuses the peer.
    authorize_later(ask: impl Fn(Identity, Decision) + Send + Sync + 'static) => authorize = Some(Authorize::deferred(ask));

    /// Requires the kernel to confine the peer in these ways. This process reads them in /proc before anything
    /// is shared with the peer, and again at each later check. Each thread of the peer counts.
    ///
    /// The kernel never lifts [`Confinement::NoNewPrivs`] and [`Confinement::Seccomp`] again. Require
    /// [`Confinement::NoCapabilities`] together with [`Confinement::NoNewPrivs`], or a setuid program can give the
    /// peer capabilities, and [`Confinement::NetworkNamespace`] together with [`Confinement::NoCapabilities`], or
    /// the peer can enter another network namespace.
    ///
    /// A confined peer usually lives in namespaces of its own, and executes another program than this process:
    ///
    /// ```
    /// use ringfence::{Confinement, Namespace, Policy};
    ///
    /// let policy = Policy::new()
    ///     .namespace(Namespace::Any)
    ///     .any_executable()
    ///     .confined([Confinement::NoNewPrivs, Confinement::Seccomp, Confinement::NoCapabilities]);
    /// ```
    confined(confinements: impl IntoIterator<Item = Confinement>) => confined = confinements.into_iter().collect();
} }

impl Users {
    fn compare(&self, uid: u32, real: u32, effective: u32) -> Comparison {
        match self {
            Self::Same => {
                let wanted = if real == effective {
                    format!("{real}, this process's own")
                } else {
                    format!("{real} and {effective}, this process's real and effective uid, which differ")
                };
                Comparison::compared(uid == real && uid == effective, wanted, uid.to_string())
            }
            Self::OneOf(uids) => {
                Comparison::compared(uids.contains(&uid), format!("one of {uids:?}"), uid.to_string())
            }
            Self::Any => Comparison::not_asked(uid.to_string()),
        }
    }
}

/// The result of one comparison.
struct Comparison {
    /// `None`: the peer is refused.
    outcome: Option<Outcome>,
    wanted: String,
    found: String,
}

impl Comparison {
    fn compared(passed: bool, wanted: impl Into<String>, found: String) -> Self {
        let (outcome, wanted) = (passed.then_some(Outcome::Passed), wanted.into());
        Self {
            outcome,
            wanted,
            found,
        }
    }

    /// The policy has no such requirement.
    fn not_asked(found: String) -> Self {
        Self {
            outcome: Some(Outcome::NotAsked),
            ..Self::compared(true, NOT_ASKED, found)
        }
    }
}

fn one_of(programs: &[Program], own: &OwnExecutable) -> String {
    let all: Vec<String> = programs.iter().map(|program| program.describe(own)).collect();
    match &*all {
        [one] => one.clone(),
        _ => format!("one of: {}", all.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, time::Duration};

    use nix::errno::Errno;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::evidence::{Evidence, Outcome};

    const ZEROS: [u8; 32] = [0; 32];

    fn time() -> Deadline {
        Deadline::endless(Vec::new(), Duration::ZERO).within(Duration::from_secs(60))
    }

    /// This process, as seen from the other end of a socket.
    fn myself() -> Peer {
        let (near, _far) = UnixStream::pair().unwrap();
        Peer::attest(&near, MayHide::default(), &mut EvidenceLog::default()).unwrap()
    }

    fn inspect_self() -> Inspection {
        myself().inspect(&time()).unwrap()
    }

    fn check(policy: &Policy) -> Result<Vec<Evidence>> {
        let mut record = EvidenceLog::default();
        let identity = policy.check(&myself(), "a step", &time(), &mut record)?;
        assert_eq!(identity.pid.cast_unsigned(), std::process::id());
        Ok(record.into_list())
    }

    /// Returns whether the check passed, the required value and the found one. `None` if it was not required.
    fn outcome(compared: Comparison) -> (Option<bool>, String, String) {
        match compared.outcome {
            Some(Outcome::NotAsked) => (None, String::new(), compared.found),
            outcome => (
                Some(outcome == Some(Outcome::Passed)),
                compared.wanted,
                compared.found,
            ),
        }
    }

    #[test]
    fn required_properties_are_checked_and_others_recorded() {
        let Identity { uid, gid, .. } = inspect_self().identity;
        let own = std::env::current_exe().unwrap();
        let digest = Digest::from(<[u8; 32]>::from(Sha256::digest(std::fs::read(&own).unwrap())));
        let zeros = Digest::from(ZEROS);
        let new = Policy::new;
        for (policy, asked) in [
            // A part that is left out has its default. Only `any` drops a check.
            (new(), &["executable"][..]),
            (Policy::default(), &["executable"]),
            (new().any_executable(), &[]),
            (new().uids([uid + 1, uid]), &["executable"]),
            (new().gids([gid + 1, gid]), &["gid", "executable"]),
            (new().gids([gid]).any_executable(), &["gid"]),
            (new().executables([Path::new("/bin/sh"), &own]), &["executable"]),
            (
                new()
                    .executables(["/there/is/no/such/file"])
                    .programs([Program::same()]),
                &["executable"],
            ),
            (new().programs([Program::content(digest)]), &["executable"]),
            (
                new().programs([Program::same().with_content(digest)]),
                &["executable"],
            ),
            // If the file alone is accepted, its content is not read.
            (
                new().programs([Program::content(zeros), Program::path(&own)]),
                &["executable"],
            ),
        ] {
            let evidence = check(&policy).unwrap_or_else(|error| panic!("{policy:?}: {error}"));
            let mut wanted = vec!["uid", "namespace"];
            wanted.extend(asked);
            let passed: Vec<_> = evidence
                .iter()
                .filter(|one| one.outcome == Outcome::Passed)
                .map(|one| one.check)
                .collect();
            assert_eq!(passed, wanted, "{policy:?}");
            let all: Vec<_> = evidence.iter().map(|one| one.check).collect();
            assert_eq!(all, ["uid", "namespace", "gid", "cgroup", "label", "executable"]);
        }
    }

    #[test]
    fn failed_check_is_a_refusal_that_names_it() {
        let Identity { uid, gid, groups, .. } = inspect_self().identity;
        let zeros = Digest::from(ZEROS);
        let other = (gid + 1..=gid + 1_000).find(|group| !groups.iter().flatten().any(|had| had == group));
        let new = Policy::new;
        for (policy, check_name) in [
            (new().uids([uid + 1]), "uid"),
            (new().uids([]), "uid"),
            (new().gids([other.unwrap()]), "gid"),
            (new().gids([]), "gid"),
            (new().cgroup("/there/is no/such/cgroup"), "cgroup"),
            (new().label("no process has this"), "label"),
            (new().executables(["/bin/sh"]), "executable"),
            (new().executables(["/there/is/no/such/file"]), "executable"),
            (new().programs([]), "executable"),
            (
                new().programs([Program::same().with_content(zeros)]),
                "executable",
            ),
            (
                new().programs([Program::content(zeros), Program::path("/bin/sh")]),
                "executable",
            ),
        ] {
            let error = check(&policy).unwrap_err();
            let refusal = error.refusal().unwrap_or_else(|| panic!("{policy:?}: {error}"));
            assert_eq!(refusal.check.as_str(), check_name, "{policy:?}");
            assert_eq!(refusal.identity.as_ref().unwrap().uid, uid);
        }
    }

    #[test]
    fn only_a_matching_files_content_is_read() {
        let compared =
            |policy: Policy| outcome(policy.compare_executable(&mut inspect_self(), &time()).unwrap());
        let (passed, wanted, _) = compared(Policy::new());
        assert_eq!(passed, Some(true));
        assert!(wanted.starts_with("this process's own, /"), "{wanted}");
        let pinned = Program::path("/bin/sh").with_content(Digest::from(ZEROS));
        let (passed, wanted, found) =
            compared(Policy::new().programs([pinned.clone(), Program::path("/bin/no")]));
        assert_eq!(passed, Some(false));
        let zeros = "0".repeat(64);
        assert_eq!(
            wanted,
            format!("one of: /bin/sh with the SHA-256 {zeros}; /bin/no")
        );
        assert!(!found.contains("SHA-256"), "{found}");
        let (_, wanted, found) = compared(Policy::new().programs([Program::content(Digest::from(ZEROS))]));
        assert_eq!(wanted, format!("any file with the SHA-256 {zeros}"));
        assert!(found.contains(" with the SHA-256 "), "{found}");
    }

    /// A local shortage is an error, and a file that is not visible is not a match.
    #[test]
    fn unreadable_own_executable_accepts_no_peer() {
        let found = inspect_self().identity.executable.unwrap();
        let same = |errno| Program::same().compare_file(&found, &Err(errno), &time());
        assert!(matches!(same(Errno::EACCES), Ok(Err(_))));
        assert_eq!(same(Errno::EMFILE).err().unwrap().code(), "NO_SPACE");
        // A socket can be inspected, though it cannot be opened for reading.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = process::named_executable(&path, &time()).unwrap().unwrap();
        let named = Program::path(&path);
        assert!(matches!(
            named.compare_file(&socket, &process::own_executable(), &time()),
            Ok(Ok(true))
        ));
        assert!(matches!(
            named.compare_file(&found, &process::own_executable(), &time()),
            Ok(Ok(false))
        ));
    }

    #[test]
    fn same_user_requires_our_real_and_effective_uid() {
        let same = |uid, real, effective| outcome(Users::Same.compare(uid, real, effective));
        let own = "7, this process's own".to_owned();
        assert_eq!(same(7, 7, 7), (Some(true), own.clone(), "7".into()));
        assert_eq!(same(8, 7, 7), (Some(false), own, "8".into()));
        for uid in [7, 8, 9] {
            let (passed, wanted, _) = same(uid, 7, 8);
            assert_eq!(passed, Some(false));
            assert!(wanted.starts_with("7 and 8, "), "{wanted}");
        }
        assert_eq!(outcome(Users::OneOf(vec![8]).compare(7, 7, 7)).0, Some(false));
        let (passed, _, found) = outcome(Users::Any.compare(7, 8, 9));
        assert_eq!((passed, found.as_str()), (None, "7"));
    }

    #[test]
    fn supplementary_group_counts_if_known() {
        let mut inspection = inspect_self();
        inspection.identity.gid = 7;
        let policy = Policy::new().gids([8, 9]);
        for (groups, passed) in [
            (Ok(vec![9]), true),
            (Ok(vec![10]), false),
            (Err(String::new()), false),
        ] {
            inspection.groups = groups;
            assert_eq!(outcome(policy.compare_groups(&inspection)).0, Some(passed));
        }
        inspection.identity.gid = 9;
        assert_eq!(outcome(policy.compare_groups(&inspection)).0, Some(true));
        assert_eq!(
            outcome(Policy::new().compare_groups(&inspection)),
            (None, String::new(), "9".into())
        );
    }

    #[test]
    fn cgroup_is_compared_by_number_or_name() {
        let mut inspection = inspect_self();
        inspection.identity.cgroup = Some("/there/is no/such/cgroup".into());
        let policy = Policy::new().cgroup("/there/is no/such/cgroup");
        inspection.cgroup_number = Ok(None);
        assert_eq!(outcome(policy.compare_cgroup(&inspection).unwrap()).0, Some(true));
        let other = Policy::new().cgroup("/there/is no");
        assert_eq!(outcome(other.compare_cgroup(&inspection).unwrap()).0, Some(false));
        // If the kernel refuses the number, there is no match, even if the name is right.
        inspection.cgroup_number = Err(Errno::EACCES);
        assert_eq!(
            outcome(policy.compare_cgroup(&inspection).unwrap()).0,
            Some(false)
        );
        let not_asked = outcome(Policy::new().compare_cgroup(&inspection).unwrap());
        assert_eq!((not_asked.0, &*not_asked.2), (None, "/there/is no/such/cgroup"));
    }

    #[test]
    fn label_and_namespace_are_compared() {
        let mut inspection = inspect_self();
        inspection.identity.label = Some("one".into());
        assert_eq!(
            outcome(Policy::new().label("one").compare_label(&inspection)).0,
            Some(true)
        );
        assert_eq!(
            outcome(Policy::new().label("on").compare_label(&inspection)).0,
            Some(false)
        );
        for (namespace, same, passed) in [
            (Namespace::Same, true, Some(true)),
            (Namespace::Same, false, Some(false)),
            (Namespace::Any, true, None),
            (Namespace::Any, false, None),
        ] {
            inspection.namespaces.same = same;
            let policy = Policy::new().namespace(namespace);
            assert_eq!(policy.may_hide().pid, namespace == Namespace::Any);
            let (found_passed, _, found) = outcome(policy.compare_namespace(&inspection.namespaces));
            assert_eq!(found_passed, passed);
            assert_eq!(
                found.contains("share both namespaces"),
                passed == Some(false),
                "{found}"
            );
        }
    }

    #[test]
    fn child_refuses_an_invisible_parent_only_if_required() {
        let check = |policy: Policy| {
            let mut inspection = inspect_self();
            inspection.namespaces.same = false;
            inspection.namespaces.visible = false;
            inspection.is_mapped = false;
            inspection.identity.executable = None;
            let mut record = EvidenceLog::default();
            let compared = policy.compare(&mut inspection, "a step", &time(), &mut record);
            let refused = compared.err().map(|error| error.refusal().unwrap().check.clone());
            let outcomes = record.into_list().into_iter();
            let hidden = outcomes.filter(|evidence| evidence.outcome == Outcome::NotVisible);
            (refused, hidden.map(|evidence| evidence.check).collect::<Vec<_>>())
        };
        let of_parent = || Policy::new().for_parent();
        assert_eq!(check(of_parent()), (None, vec!["uid", "namespace", "executable"]));
        let refuses = |policy, check_name| assert_eq!(check(policy).0, Some(check_name));
        refuses(Policy::new(), Check::Namespace);
        refuses(of_parent().namespace(Namespace::Same), Check::Namespace);
        refuses(of_parent().programs([Program::same()]), Check::Executable);
        refuses(of_parent().uids([u32::MAX - 1]), Check::Uid);
        // Without a sandbox in between, an unreadable executable is refused.
        let behind = |pid, is_mapped, hides_user_namespace| {
            let mut inspection = inspect_self();
            inspection.identity.executable = None;
            inspection.identity.pid = pid;
            inspection.is_mapped = is_mapped;
            inspection.namespaces.hides_user_namespace = hides_user_namespace;
            let compared =
                of_parent().compare(&mut inspection, "a step", &time(), &mut EvidenceLog::default());
            compared.err().map(|error| error.refusal().unwrap().check.clone())
        };
        assert_eq!(behind(7, true, false), Some(Check::Executable));
        for (pid, is_mapped, hides_user_namespace) in [(0, true, false), (7, false, false), (7, true, true)] {
            assert_eq!(behind(pid, is_mapped, hides_user_namespace), None);
        }
        assert!(!of_parent().same_uid().may_hide().uid);
        assert!(of_parent().any_uid().may_hide().uid);
    }

    #[test]
    fn policy_detects_single_user_and_absolute_paths() {
        for (policy, one) in [
            (Policy::new(), true),
            (Policy::new().uids([1]), true),
            (Policy::new().uids([1, 1]), true),
            (Policy::new().uids([1, 2]), false),
            (Policy::new().uids([1, 2, 1]), false),
            (Policy::new().any_uid(), false),
        ] {
            assert_eq!(policy.is_for_one_user(), one, "{policy:?}");
        }
        let absolute = [
            Program::same(),
            Program::content(Digest::from(ZEROS)),
            Program::path("/a"),
        ];
        Policy::new().programs(absolute).check_paths().unwrap();
        Policy::new().check_paths().unwrap();
        let relative = Policy::new().executables(["/a", "b"]);
        assert_eq!(relative.check_paths().unwrap_err().code(), "INVALID_ARGUMENT");
    }

    #[test]
    fn callback_runs_unless_it_was_removed() {
        let two = Policy::new().uids([1, 2]).authorize(|_| Ok::<_, Error>(true));
        assert!(!two.without_callback().is_for_one_user(), "the rest stays");
        let no = Policy::new().authorize(|_| Ok::<_, Error>(false));
        let later = Policy::new().authorize_later(|_, decision| decision.refuse("no"));
        let identity = inspect_self().identity;
        let (near, _far) = UnixStream::pair().unwrap();
        let ask = |policy: &Policy| {
            let mut record = EvidenceLog::default();
            let asked = policy.run_callback(&identity, std::os::fd::AsFd::as_fd(&near), &time(), &mut record);
            asked.map(|()| record.into_list())
        };
        for policy in [no, later] {
            assert_eq!(
                ask(&policy).unwrap_err().refusal().unwrap().check,
                Check::Authorize
            );
            let evidence = ask(&policy.without_callback()).unwrap();
            assert_eq!(
                (evidence[0].check, evidence[0].outcome),
                ("authorize", Outcome::NotAsked)
            );
        }
    }
}
