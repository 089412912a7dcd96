//! From the core's types to plain JavaScript objects, and back.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]

use std::fmt;

use napi_derive::napi;

/// An error: its code without prefix, its sentence, and for a refusal what was compared.
#[napi(object)]
pub struct Failure {
    /// `PEER_REFUSED` and so on.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// The check that failed, for a refusal.
    pub check: Option<String>,
    /// What it asked for.
    pub wanted: Option<String>,
    /// What it found.
    pub found: Option<String>,
    /// The refused peer, as far as it is known.
    pub identity: Option<Identity>,
    /// What the kernel said, where that is behind it.
    pub cause: Option<String>,
    /// The question to the policy's callback that JavaScript answered with an error of its own.
    pub question: Option<u32>,
}

/// JavaScript's own error, which stays there: this is the number of the question.
#[derive(Debug)]
pub(crate) struct Thrown {
    pub(crate) question: u32,
    pub(crate) text: String,
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Thrown {}

/// A peer may make up another name each time, and programs count by them: the sentence alone has it.
fn name_of(check: &ringfence::Check) -> &str {
    match check {
        ringfence::Check::Other(_) => "other",
        known => known.as_str(),
    }
}

impl From<&ringfence::Error> for Failure {
    fn from(error: &ringfence::Error) -> Self {
        let refusal = error.refusal();
        let (check, wanted, found) = match error {
            ringfence::Error::ObjectUnsound { check, wanted, found } => (
                Some((*check).to_owned()),
                Some(wanted.clone()),
                Some(found.clone()),
            ),
            _ => (
                refusal.map(|refusal| name_of(&refusal.check).to_owned()),
                refusal.map(|refusal| refusal.wanted.clone()),
                refusal.map(|refusal| refusal.found.clone()),
            ),
        };
        Self {
            code: error.code().to_owned(),
            message: error.to_string(),
            check,
            wanted,
            found,
            identity: refusal
                .and_then(|refusal| refusal.identity.as_ref())
                .map(Identity::from),
            cause: std::error::Error::source(error).map(ToString::to_string),
            question: std::error::Error::source(error)
                .and_then(|cause| cause.downcast_ref::<Thrown>())
                .map(|thrown| thrown.question),
        }
    }
}

/// A file that a process executes.
#[napi(object)]
pub struct Executable {
    /// Its path, for people.
    pub path: String,
    /// `st_dev`, in decimal: a number of JavaScript's does not hold it, and a bigint would make JSON of an identity fail.
    pub device: String,
    /// `st_ino`, likewise.
    pub inode: String,
    /// What its content hashes to, where the policy asked for that.
    pub sha256: Option<String>,
}

/// What the kernel attested of a peer.
#[napi(object)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Option<Vec<u32>>,
    /// The cgroup's path.
    pub cgroup: Option<String>,
    /// The security label.
    pub label: Option<String>,
    /// The executable.
    pub executable: Option<Executable>,
}

impl From<&ringfence::Identity> for Identity {
    fn from(identity: &ringfence::Identity) -> Self {
        Self {
            pid: identity.pid,
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
            cgroup: identity.cgroup.clone(),
            label: identity.label.clone(),
            executable: identity.executable.as_ref().map(|executable| Executable {
                path: executable.path.to_string_lossy().into_owned(),
                device: executable.device.to_string(),
                inode: executable.inode.to_string(),
                sha256: executable.sha256.map(|sha256| sha256.to_string()),
            }),
        }
    }
}

/// One check that was made.
#[napi(object)]
pub struct Evidence {
    /// The step of the handshake.
    pub step: String,
    /// What was looked at.
    pub check: String,
    /// What it had to be.
    pub wanted: String,
    /// What it was.
    pub found: String,
    /// How the check came out: `passed` or `not-asked`.
    pub outcome: String,
}

impl Evidence {
    pub(crate) fn list(evidence: &[ringfence::Evidence]) -> Vec<Self> {
        evidence.iter().map(Self::from).collect()
    }
}

impl From<&ringfence::Evidence> for Evidence {
    fn from(evidence: &ringfence::Evidence) -> Self {
        Self {
            step: evidence.step.to_owned(),
            check: evidence.check.to_owned(),
            wanted: evidence.wanted.clone(),
            found: evidence.found.clone(),
            outcome: evidence.outcome.as_str().to_owned(),
        }
    }
}

/// What a later look at the peer has found.
#[napi(object)]
pub struct Verified {
    /// Who it is.
    pub identity: Identity,
    /// The checks that were made.
    pub evidence: Vec<Evidence>,
}

impl From<&ringfence::Verified> for Verified {
    fn from(verified: &ringfence::Verified) -> Self {
        Self {
            identity: Identity::from(&verified.identity),
            evidence: Evidence::list(&verified.evidence),
        }
    }
}

/// An executable that a policy lets in.
#[napi(object)]
pub struct Program {
    /// This process's own.
    pub same: bool,
    /// Left out, and not this process's own: whatever file has the content.
    pub path: Option<String>,
    /// 64 hexadecimal digits.
    pub sha256: Option<String>,
}

/// A policy, as TypeScript has checked it.
#[napi(object)]
pub struct Policy {
    /// The uids that pass; left out: this process's own.
    pub uids: Option<Vec<u32>>,
    /// The gids that pass; left out: not looked at.
    pub gids: Option<Vec<u32>>,
    /// The executables that pass; left out: not looked at.
    pub executables: Option<Vec<Program>>,
    /// The cgroup.
    pub cgroup: Option<String>,
    /// The security label.
    pub label: Option<String>,
    /// `same` or `any`; left out: `same`.
    pub namespace: Option<String>,
}

/// The options of a channel, as TypeScript has checked them.
#[napi(object)]
pub struct Options {
    /// `memfd` or `shm`.
    pub backing: Option<String>,
    /// Bytes.
    pub capacity: Option<f64>,
    /// Bytes.
    pub max_message_size: Option<f64>,
    /// Bytes.
    pub max_peer_capacity: Option<f64>,
    /// Left out: the same uid and the same executable.
    pub policy: Option<Policy>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// A gid.
    pub group: Option<u32>,
    /// A group's name.
    pub group_name: Option<String>,
    /// Milliseconds.
    pub timeout: Option<f64>,
    /// Wait for the place.
    pub wait: Option<bool>,
    /// Channels of a service.
    pub max_peers: Option<f64>,
    /// Of these, with one process.
    pub max_peers_per_process: Option<f64>,
    /// Of these, with one user.
    pub max_peers_per_user: Option<f64>,
    /// Microseconds.
    pub busy_poll: Option<f64>,
    /// Close this process to others of its user within the handshake.
    pub harden: Option<bool>,
    /// The tripwire's realtime signal.
    pub signal_number: Option<i32>,
    /// Milliseconds; Infinity: never.
    pub stall: Option<f64>,
    /// What subscribers may ask for.
    pub deliveries: Option<Vec<String>>,
    /// What a subscriber asks for.
    pub delivery: Option<String>,
    /// Where a subscriber begins.
    pub from: Option<String>,
    /// Whether the event loop's own handles may be used to watch the line.
    pub use_libuv: bool,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "TypeScript passes safe non-negative integers"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

impl Options {
    /// The core's options; `with_callback` gives the policy its callback. Errors with what the core says to them.
    pub(crate) fn to_core(
        &self,
        with_callback: impl FnOnce(ringfence::Policy) -> ringfence::Policy,
    ) -> ringfence::Result<ringfence::Options> {
        let mut options = ringfence::Options::new();
        if let Some(backing) = &self.backing {
            options = options.backing(backing.parse()?);
        }
        if let Some(capacity) = self.capacity {
            options = options.capacity(whole(capacity));
        }
        if let Some(size) = self.max_message_size {
            options = options.max_message_size(whole(size));
        }
        if let Some(size) = self.max_peer_capacity {
            options = options.max_peer_capacity(whole(size));
        }
        if let Some(policy) = &self.policy {
            options = options.policy(with_callback(policy.to_core()?));
        }
        if let Some(mode) = self.mode {
            options = options.mode(mode);
        }
        if let Some(group) = self.group {
            options = options.group(group);
        }
        if let Some(name) = &self.group_name {
            options = options.group_name(name);
        }
        if let Some(timeout) = self.timeout {
            options = options.timeout(std::time::Duration::from_micros(whole(timeout * 1000.0)));
        }
        let count = |count: f64| usize::try_from(whole(count)).unwrap_or(usize::MAX);
        if let Some(most) = self.max_peers {
            options = options.max_peers(count(most));
        }
        if let Some(most) = self.max_peers_per_process {
            options = options.max_peers_per_process(count(most));
        }
        if let Some(most) = self.max_peers_per_user {
            options = options.max_peers_per_user(count(most));
        }
        if let Some(busy_poll) = self.busy_poll {
            options = options.busy_poll(std::time::Duration::from_micros(whole(busy_poll)));
        }
        if let Some(number) = self.signal_number {
            options = options.signal_number(number);
        }
        if let Some(stall) = self.stall {
            options = options.stall(if stall.is_finite() {
                std::time::Duration::from_micros(whole(stall * 1000.0))
            } else {
                std::time::Duration::MAX
            });
        }
        if let Some(deliveries) = &self.deliveries {
            let deliveries: ringfence::Result<Vec<_>> = deliveries.iter().map(|name| name.parse()).collect();
            options = options.deliveries(deliveries?);
        }
        if let Some(delivery) = &self.delivery {
            options = options.delivery(delivery.parse()?);
        }
        if let Some(from) = &self.from {
            options = options.from(from.parse()?);
        }
        Ok(options
            .wait(self.wait.unwrap_or(false))
            .harden(self.harden.unwrap_or(false)))
    }
}

impl Policy {
    fn to_core(&self) -> ringfence::Result<ringfence::Policy> {
        let mut policy = ringfence::Policy::new();
        if let Some(uids) = &self.uids {
            policy = policy.uids(uids.clone());
        }
        if let Some(gids) = &self.gids {
            policy = policy.gids(gids.clone());
        }
        if let Some(programs) = &self.executables {
            let programs: ringfence::Result<Vec<_>> = programs.iter().map(Program::to_core).collect();
            policy = policy.programs(programs?);
        }
        if let Some(cgroup) = &self.cgroup {
            policy = policy.cgroup(cgroup);
        }
        if let Some(label) = &self.label {
            policy = policy.label(label);
        }
        if let Some(namespace) = &self.namespace {
            policy = policy.namespace(namespace.parse()?);
        }
        Ok(policy)
    }
}

impl Program {
    fn to_core(&self) -> ringfence::Result<ringfence::Program> {
        let sha256 = self
            .sha256
            .as_deref()
            .map(str::parse::<ringfence::Digest>)
            .transpose()?;
        let file = match &self.path {
            _ if self.same => Some(ringfence::Program::same()),
            path => path.as_ref().map(ringfence::Program::path),
        };
        match (file, sha256) {
            (Some(file), Some(sha256)) => Ok(file.with_content(sha256)),
            (Some(file), None) => Ok(file),
            (None, Some(sha256)) => Ok(ringfence::Program::content(sha256)),
            (None, None) => Err(ringfence::Error::InvalidArgument(
                "an executable of a policy needs a path or a sha256".into(),
            )),
        }
    }
}

/// One thing that was looked at.
#[napi(object)]
pub struct Finding {
    /// Its name for programs.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// `good`, `limited` or `missing`.
    pub status: String,
    /// What was found.
    pub found: String,
    /// What that means for the promises.
    pub meaning: String,
}

/// What this system offers.
#[napi(object)]
pub struct Diagnosis {
    /// The kernel's name and version.
    pub kernel: String,
    /// One entry for each thing that the promises rest on.
    pub findings: Vec<Finding>,
}

/// Closes this process to others of its user. Returns what went wrong, or null.
#[napi]
pub fn harden() -> Option<Failure> {
    ringfence::harden().err().as_ref().map(Failure::from)
}

/// One memory barrier for all channels that were parked. Returns what went wrong, or null.
#[napi]
pub fn barrier() -> Option<Failure> {
    ringfence::binding::barrier().err().as_ref().map(Failure::from)
}

/// Keeps Node from opening its inspector on SIGUSR1. Returns what went wrong, or null.
#[napi]
pub fn ignore_sigusr1() -> Option<Failure> {
    ringfence::binding::ignore_sigusr1()
        .err()
        .as_ref()
        .map(Failure::from)
}

/// Tries what this system offers.
#[napi]
pub fn doctor() -> Diagnosis {
    let diagnosis = ringfence::doctor();
    let findings = diagnosis.findings.into_iter().map(|finding| Finding {
        name: finding.name.to_owned(),
        title: finding.title.to_owned(),
        status: finding.status.to_string(),
        found: finding.found,
        meaning: finding.meaning,
    });
    Diagnosis {
        kernel: diagnosis.kernel,
        findings: findings.collect(),
    }
}
