//! Conversions between the core's types and plain JavaScript objects.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]

use std::fmt;

use napi::Either;
use napi_derive::napi;

/// An error: its code without prefix, its sentence, and the compared values if it is a refusal.
#[napi(object)]
pub struct Failure {
    /// The code, such as `PEER_REFUSED`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// The failed check of a refusal.
    pub check: Option<String>,
    /// The value that the check required.
    pub wanted: Option<String>,
    /// The value that the check found.
    pub found: Option<String>,
    /// Identity of the refused peer, as far as it is known.
    pub identity: Option<Identity>,
    /// The kernel's error, if one caused this error.
    pub cause: Option<String>,
    /// Number of the question that the policy's JavaScript callback answered with an error.
    pub question: Option<u32>,
}

/// An error of the policy's callback. The error itself stays in JavaScript, under the number of the question.
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

/// Returns the name of a check. A peer may invent names, and programs count refusals by name, so unknown ones
/// become `other`. The error's sentence has the actual name.
fn check_name(check: &ringfence::Check) -> &str {
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
                refusal.map(|refusal| check_name(&refusal.check).to_owned()),
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

impl From<&ringfence::Refused> for Failure {
    fn from(refused: &ringfence::Refused) -> Self {
        let mut failure = Self::from(&refused.error);
        failure.identity = refused.identity.as_ref().map(Identity::from);
        failure
    }
}

/// An executable file of a process.
#[napi(object)]
pub struct Executable {
    /// Its path, for display.
    pub path: String,
    /// `st_dev` in decimal. A JavaScript number cannot hold it, and a bigint would make `JSON.stringify` of
    /// an identity fail.
    pub device: String,
    /// `st_ino`, likewise.
    pub inode: String,
    /// SHA-256 of its content, if the policy requires one.
    pub sha256: Option<String>,
}

/// Identity of a peer, attested by the kernel.
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
    /// Path of the cgroup.
    pub cgroup: Option<String>,
    /// Security label.
    pub label: Option<String>,
    /// Executable of the process.
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

/// A check that was made.
#[napi(object)]
pub struct Evidence {
    /// Step of the handshake.
    pub step: String,
    /// Name of the check.
    pub check: String,
    /// Required value.
    pub wanted: String,
    /// Found value.
    pub found: String,
    /// Result of the check: `passed` or `not-asked`.
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

/// Result of a later check of the peer.
#[napi(object)]
pub struct Verified {
    /// Identity of the peer.
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

/// An executable that a policy allows.
#[napi(object)]
pub struct Program {
    /// Whether it is this process's own executable.
    pub same: bool,
    /// Path. Without one, and if `same` is false, any file with the content is allowed.
    pub path: Option<String>,
    /// SHA-256 of the content, as 64 hexadecimal digits.
    pub sha256: Option<String>,
}

/// A policy, validated by TypeScript.
#[napi(object)]
pub struct Policy {
    /// Allowed uids. Default: this process's own.
    pub uids: Option<Vec<u32>>,
    /// Whether the uid is not checked.
    pub any_uid: Option<bool>,
    /// Whether the policy names this process's own uid.
    pub same_uid: Option<bool>,
    /// Allowed gids. Default: not checked.
    pub gids: Option<Vec<u32>>,
    /// Allowed executables. Default: this process's own.
    pub executables: Option<Vec<Program>>,
    /// Whether the executable is not checked.
    pub any_executable: Option<bool>,
    /// Required cgroup.
    pub cgroup: Option<String>,
    /// Required security label.
    pub label: Option<String>,
    /// `same` (the default) or `any`.
    pub namespace: Option<String>,
    /// Names of the checks that the kernel confines the peer. Default: not checked.
    pub confined: Option<Vec<String>>,
}

/// The attachments that this side accepts.
#[napi(object)]
pub struct Attachments {
    /// Whether sealed buffers are accepted.
    pub sealed: Option<bool>,
    /// Whether descriptors are accepted.
    pub descriptors: Option<bool>,
    /// Unread bytes of sealed buffers.
    pub max_bytes: Option<f64>,
    /// Unread attachments.
    pub max_count: Option<u32>,
}

impl From<&Attachments> for ringfence::Attachments {
    fn from(attachments: &Attachments) -> Self {
        let mut accepted = Self::none()
            .sealed(attachments.sealed.unwrap_or(false))
            .descriptors(attachments.descriptors.unwrap_or(false));
        if let Some(bytes) = attachments.max_bytes {
            accepted = accepted.max_bytes(to_u64(bytes));
        }
        if let Some(count) = attachments.max_count {
            accepted = accepted.max_count(count);
        }
        accepted
    }
}

/// Options of an endpoint, validated by TypeScript.
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
    /// Default: none.
    pub attachments: Option<Attachments>,
    /// Default: the same uid and the same executable.
    pub policy: Option<Policy>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// A gid, or the name of a group.
    pub group: Option<Either<u32, String>>,
    /// Milliseconds.
    pub handshake_timeout: Option<f64>,
    /// Whether to wait for the address.
    pub wait: Option<bool>,
    /// Number of channels of a service.
    pub max_peers: Option<f64>,
    /// Number of these channels with one process.
    pub max_peers_per_process: Option<f64>,
    /// Number of these channels with one user.
    pub max_peers_per_user: Option<f64>,
    /// Microseconds.
    pub busy_poll_micros: Option<f64>,
    /// Whether to make this process inaccessible to others of its user during the handshake.
    pub harden: Option<bool>,
    /// Realtime signal of the tripwire.
    pub realtime_signal: Option<i32>,
    /// Milliseconds; Infinity for never.
    pub stall: Option<f64>,
    /// Deliveries that subscribers may ask for.
    pub deliveries: Option<Vec<String>>,
    /// Delivery that a subscriber asks for.
    pub delivery: Option<String>,
    /// Position at which a subscriber starts.
    pub from: Option<String>,
    /// Whether poll handles of the event loop may be used to watch descriptors.
    pub use_libuv: bool,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "TypeScript passes safe non-negative integers"
)]
pub(crate) fn to_u64(number: f64) -> u64 {
    number as u64
}

impl Options {
    /// Converts to the core's options. `with_callback` adds the callback to the policy. Fails if the core
    /// rejects a value.
    pub(crate) fn to_core(
        &self,
        with_callback: impl FnOnce(ringfence::Policy) -> ringfence::Policy,
    ) -> ringfence::Result<ringfence::Options> {
        let mut options = ringfence::Options::new();
        if let Some(backing) = &self.backing {
            options = options.backing(backing.parse()?);
        }
        if let Some(capacity) = self.capacity {
            options = options.capacity(to_u64(capacity));
        }
        if let Some(size) = self.max_message_size {
            options = options.max_message_size(to_u64(size));
        }
        if let Some(size) = self.max_peer_capacity {
            options = options.max_peer_capacity(to_u64(size));
        }
        if let Some(attachments) = &self.attachments {
            options = options.attachments(attachments.into());
        }
        if let Some(policy) = &self.policy {
            options = options.policy(with_callback(policy.to_core()?));
        }
        if let Some(mode) = self.mode {
            options = options.mode(mode);
        }
        match &self.group {
            Some(Either::A(gid)) => options = options.group(*gid),
            Some(Either::B(name)) => options = options.group_name(name),
            None => {}
        }
        if let Some(timeout) = self.handshake_timeout {
            options = options.handshake_timeout(std::time::Duration::from_micros(to_u64(timeout * 1000.0)));
        }
        let count = |count: f64| usize::try_from(to_u64(count)).unwrap_or(usize::MAX);
        if let Some(max) = self.max_peers {
            options = options.max_peers(count(max));
        }
        if let Some(max) = self.max_peers_per_process {
            options = options.max_peers_per_process(count(max));
        }
        if let Some(max) = self.max_peers_per_user {
            options = options.max_peers_per_user(count(max));
        }
        // A JavaScript thread that spins handles no other event, so it spins only if asked to.
        let busy_poll = self.busy_poll_micros.map_or(0, to_u64);
        options = options.busy_poll(std::time::Duration::from_micros(busy_poll));
        if let Some(number) = self.realtime_signal {
            options = options.realtime_signal(number);
        }
        if let Some(stall) = self.stall {
            options = options.stall(if stall.is_finite() {
                std::time::Duration::from_micros(to_u64(stall * 1000.0))
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
        if self.any_uid == Some(true) {
            policy = policy.any_uid();
        }
        if self.same_uid == Some(true) {
            policy = policy.same_uid();
        }
        if let Some(gids) = &self.gids {
            policy = policy.gids(gids.clone());
        }
        if let Some(programs) = &self.executables {
            let programs: ringfence::Result<Vec<_>> = programs.iter().map(Program::to_core).collect();
            policy = policy.programs(programs?);
        }
        if self.any_executable == Some(true) {
            policy = policy.any_executable();
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
        if let Some(confined) = &self.confined {
            let confined: ringfence::Result<Vec<_>> = confined.iter().map(|name| name.parse()).collect();
            policy = policy.confined(confined?);
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

/// Result of one test of this system.
#[napi(object)]
pub struct Finding {
    /// Name for programs.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// `good`, `limited` or `missing`.
    pub status: String,
    /// Observed state.
    pub found: String,
    /// Consequence for the promises.
    pub meaning: String,
}

/// The abilities of this system.
#[napi(object)]
pub struct Diagnosis {
    /// Name and version of the kernel.
    pub kernel: String,
    /// One entry for each ability that the promises depend on.
    pub findings: Vec<Finding>,
}

/// Makes this process inaccessible to others of its user. Returns the failure, or null.
#[napi]
pub fn harden() -> Option<Failure> {
    ringfence::harden().err().as_ref().map(Failure::from)
}

/// Makes one memory barrier for all parked channels. Returns the failure, or null.
#[napi]
pub fn barrier() -> Option<Failure> {
    ringfence::binding::barrier().err().as_ref().map(Failure::from)
}

/// Prevents Node from opening its inspector on SIGUSR1. Returns the failure, or null.
#[napi]
pub fn ignore_sigusr1() -> Option<Failure> {
    ringfence::binding::ignore_sigusr1()
        .err()
        .as_ref()
        .map(Failure::from)
}

/// Tests what this system supports.
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
