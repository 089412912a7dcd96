//! The scenarios: their processes, the process whose calls fail, and one run with real processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    calls::{CALLS, ERRORS},
    subject::TIMEOUT_VARIABLE,
    traces::Traces,
};

/// A set of processes, one of which has calls that fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) subject: &'static str,
    /// Roles of the other processes, in their starting order. A parent and its child have none: each starts
    /// the other.
    pub(crate) partners: &'static [&'static str],
    /// Whether the subject starts first, and so binds the address.
    pub(crate) is_first: bool,
}

const fn some(
    name: &'static str,
    subject: &'static str,
    partners: &'static [&'static str],
    is_first: bool,
) -> Scenario {
    Scenario {
        name,
        subject,
        partners,
        is_first,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    some("pair, the host", "pair", &["pair"], true),
    some("pair, the guest", "pair", &["pair"], false),
    some("calls", "calls", &["calls"], true),
    some("attachments", "attachments", &["attachments"], true),
    some("pair over shm, the host", "shm", &["shm"], true),
    some("pair over shm, the guest", "shm", &["shm"], false),
    some("service", "service", &["agent", "agent"], true),
    some("agent", "agent", &["service"], false),
    some("member, first", "member", &["member"], true),
    some("member, second", "member", &["member"], false),
    some("publisher", "publisher", &["subscriber"], true),
    some("subscriber", "subscriber", &["publisher"], false),
    some(
        "publisher of two",
        "publisher of two",
        &["subscriber", "subscriber"],
        true,
    ),
    some(
        "subscriber beside another",
        "subscriber",
        &["publisher of two", "subscriber"],
        false,
    ),
    some("parent", "parent", &[], true),
    some("child", "child", &[], true),
    some("host refuses a uid", "host-uid", &["agent"], true),
    some("guest refuses a uid", "guest-uid", &["service"], false),
    some("host refuses a gid", "host-gid", &["agent"], true),
    some("guest refuses a gid", "guest-gid", &["service"], false),
    some(
        "host refuses a dropped group",
        "host-group",
        &["agent of a group"],
        true,
    ),
    some("host refuses an executable", "host-executable", &["agent"], true),
    some(
        "guest refuses an executable",
        "guest-executable",
        &["service"],
        false,
    ),
    some("host refuses a content", "host-content", &["agent"], true),
    some("guest refuses a content", "guest-content", &["service"], false),
    some("host refuses a cgroup", "host-cgroup", &["agent"], true),
    some("guest refuses a cgroup", "guest-cgroup", &["service"], false),
    some("host refuses a label", "host-label", &["agent"], true),
    some("guest refuses a label", "guest-label", &["service"], false),
    some("host refuses by authorize", "host-authorize", &["agent"], true),
    some(
        "guest refuses by authorize",
        "guest-authorize",
        &["service"],
        false,
    ),
    some(
        "host refuses a namespace",
        "host-namespace",
        &["agent of a namespace"],
        true,
    ),
    some(
        "guest refuses a namespace",
        "guest-namespace",
        &["service of a namespace"],
        false,
    ),
];

impl Scenario {
    /// Returns whether the peer does not meet the policy in this scenario.
    pub(crate) fn must_refuse(&self) -> bool {
        self.subject.contains('-')
    }

    /// Returns the handshake's timeout in seconds. Hashing an executable of tens of megabytes takes long, in
    /// particular in an unoptimized build.
    fn timeout(&self) -> &'static str {
        if self.subject.ends_with("-content") {
            "60"
        } else {
            "5"
        }
    }

    fn in_namespace(&self) -> bool {
        self.subject.ends_with("-namespace")
    }

    /// Returns the reason why the scenario cannot be played on this machine.
    pub(crate) fn obstacle(&self) -> Option<&'static str> {
        let run = || {
            Command::new("unshare")
                .args(UNSHARE)
                .arg("true")
                .stderr(Stdio::null())
                .status()
        };
        if self.in_namespace() && !run().is_ok_and(|status| status.success()) {
            return Some("cannot create a namespace");
        }
        // SAFETY: geteuid takes no pointers and has no errors.
        let is_root = unsafe { libc::geteuid() } == 0;
        (self.subject == "host-group" && !is_root).then_some("needs root to set a group")
    }
}

const UNSHARE: [&str; 3] = ["-Urpf", "--kill-child", "--"];

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    /// Index into `CALLS`.
    pub(crate) row: usize,
    /// Index into `ERRORS`.
    pub(crate) error: usize,
    /// Number of the first failing call of the row, from 1 on.
    pub(crate) first: u32,
    /// Whether the calls after it fail as well, up to `LASTING` calls.
    pub(crate) lasts: bool,
}

/// Number of consecutive calls that fail. Without a limit, a call that is retried after EINTR would be
/// retried forever.
pub(crate) const LASTING: u32 = 12;

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.lasts { "+" } else { "" };
        write!(
            f,
            "{} {}{more} {}",
            CALLS[self.row].name, self.first, ERRORS[self.error].0
        )
    }
}

/// Report of a process.
#[derive(Debug, Default, Clone)]
pub(crate) struct ProcessReport {
    pub(crate) codes: Vec<String>,
    pub(crate) evidence: BTreeSet<String>,
    pub(crate) counts: BTreeMap<usize, u32>,
    pub(crate) unknown: Vec<String>,
    pub(crate) left: Traces,
    pub(crate) hits: u32,
    pub(crate) whole: u32,
    pub(crate) wrong: Vec<String>,
    is_done: bool,
}

/// Result of a case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Result {
    pub(crate) subject: ProcessReport,
    pub(crate) partners: Vec<ProcessReport>,
    pub(crate) wrong: Vec<String>,
}

/// Leftovers that a process may have, by kind: what it leaves without a fault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed {
    pub(crate) subject: Traces,
    pub(crate) partner: Traces,
}

impl Allowed {
    pub(crate) fn add(&mut self, result: &Result) {
        let partners = result.partners.iter().map(|it| &it.left);
        for (kind, &count) in &result.subject.left {
            let most = self.subject.entry(kind.clone()).or_default();
            *most = count.max(*most);
        }
        for (kind, &count) in partners.flatten() {
            let most = self.partner.entry(kind.clone()).or_default();
            *most = count.max(*most);
        }
    }
}

/// Time after which a process of a case has failed.
const LIMIT: Duration = Duration::from_secs(60);

struct Actor {
    child: Child,
    is_compared: bool,
    output: mpsc::Receiver<String>,
}

impl Actor {
    fn start(mut command: Command, traces: &Traces) -> Self {
        let traces: Vec<String> = traces
            .iter()
            .map(|(kind, count)| format!("{kind}={count}"))
            .collect();
        let mut child = command
            .env("RINGFENCE_FAULTS_TRACES", traces.join(";"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process of this executable");
        let (sender, output) = mpsc::channel();
        let stdout = child.stdout.take().expect("a pipe");
        let mut stderr = child.stderr.take().expect("a pipe");
        thread::spawn(move || {
            let mut text = read(stdout);
            let mut stderr_text = Vec::new();
            let _ = stderr.read_to_end(&mut stderr_text);
            for line in String::from_utf8_lossy(&stderr_text).lines() {
                text.push_str("stderr ");
                text.push_str(line);
                text.push('\n');
            }
            let _ = sender.send(text);
        });
        Self {
            child,
            is_compared: !traces.is_empty(),
            output,
        }
    }

    /// Waits for the process to end, and returns its report.
    fn finish(mut self, who: &str, wrong: &mut Vec<String>) -> ProcessReport {
        drop(self.child.stdin.take());
        let text = self.output.recv_timeout(LIMIT).unwrap_or_else(|_| {
            wrong.push(format!("{who} hangs: {}", waits_of(self.child.id())));
            let _ = self.child.kill();
            self.output.recv_timeout(LIMIT).unwrap_or_default()
        });
        let status = self.child.wait();
        let report = ProcessReport::parse(&text);
        wrong.extend(report.wrong.iter().map(|what| format!("{who}: {what}")));
        if !report.is_done {
            let end = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let stderr_text: Vec<&str> = text.lines().filter(|line| line.starts_with("stderr ")).collect();
            wrong.push(format!("{who} ended early ({end}): {}", stderr_text.join(" | ")));
        }
        // A run without a fault reports everything that is left, and none of it is an error.
        for (kind, count) in report.left.iter().filter(|_| self.is_compared) {
            wrong.push(format!("{who} left behind: {count} × {kind}"));
        }
        report
    }
}

fn read(mut stdout: ChildStdout) -> String {
    let mut text = Vec::new();
    let _ = stdout.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns the kernel functions and system calls in which the threads of a process wait.
fn waits_of(pid: u32) -> String {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let read_file = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let call: Vec<String> = read_file("syscall")
            .split(' ')
            .take(3)
            .map(str::to_owned)
            .collect();
        found.push(format!(
            "{} {} {}",
            read_file("comm").trim(),
            read_file("wchan"),
            call.join(" ").trim()
        ));
    }
    found.join(", ")
}

impl ProcessReport {
    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let pair = || {
                let (left, right) = rest.rsplit_once('=')?;
                Some((left.to_owned(), right.parse::<u32>().ok()?))
            };
            match word {
                "code" => report.codes.push(rest.to_owned()),
                "evidence" => drop(report.evidence.insert(rest.to_owned())),
                "count" => {
                    if let Some((row, count)) = pair() {
                        report.counts.insert(row.parse().unwrap_or(usize::MAX), count);
                    }
                }
                "unknown" => report.unknown.push(rest.to_owned()),
                "left" => {
                    if let Some((kind, count)) = pair() {
                        report.left.insert(kind, count as usize);
                    }
                }
                // A parent reports for a second child too, if the first one had an error.
                "hits" => report.hits += rest.parse().unwrap_or(0),
                "whole" => report.whole = rest.parse().unwrap_or(0),
                "wrong" => report.wrong.push(rest.to_owned()),
                "done" => report.is_done = true,
                _ => {}
            }
        }
        report
    }

    /// Returns the first code of all attempts, or "well".
    pub(crate) fn outcome(&self) -> String {
        self.codes.first().map_or("well".into(), |code| {
            code.split(' ').next().unwrap_or(code).to_owned()
        })
    }
}

fn command(own: &Path, arguments: &[&str], scenario: &Scenario, in_namespace: bool) -> Command {
    let mut command = if in_namespace {
        let mut command = Command::new("unshare");
        command.args(UNSHARE).arg(own);
        command
    } else {
        Command::new(own)
    };
    command.args(arguments).env(TIMEOUT_VARIABLE, scenario.timeout());
    command
}

/// Plays a scenario once. Without a fault, counts the calls.
pub(crate) fn play(own: &Path, scenario: &Scenario, fault: Option<Fault>, allowed: &Allowed) -> Result {
    let folder = tempfile::Builder::new()
        .prefix("ringfence-faults")
        .tempdir()
        .expect("a directory");
    let address = folder.path().join("socket");
    let text = address.to_str().expect("a name of ASCII");
    let plan = fault.map_or(["count", "0", "0", "0"].map(str::to_owned), |fault| {
        let times = if fault.lasts { LASTING } else { 1 };
        [
            fault.row.to_string(),
            ERRORS[fault.error].1.to_string(),
            fault.first.to_string(),
            times.to_string(),
        ]
    });
    let word = if scenario.subject == "child" {
        "parent-of"
    } else {
        "subject"
    };
    let mut subject = vec![word, scenario.subject, text];
    subject.extend(plan.iter().map(String::as_str));
    let start_subject = || Actor::start(command(own, &subject, scenario, false), &allowed.subject);
    let start_partner = |role: &&str| {
        let words = ["partner", *role, text];
        Actor::start(
            command(own, &words, scenario, scenario.in_namespace()),
            &allowed.partner,
        )
    };
    let mut result = Result::default();
    let (first, others) = scenario
        .partners
        .split_at(usize::from(!scenario.is_first).min(scenario.partners.len()));
    let mut partners: Vec<Actor> = first.iter().map(start_partner).collect();
    for partner in &mut partners {
        wait_for(&address, partner);
    }
    let mut subject = start_subject();
    if scenario.is_first && !others.is_empty() {
        wait_for(&address, &mut subject);
    }
    partners.extend(others.iter().map(start_partner));
    result.subject = subject.finish("the subject", &mut result.wrong);
    for partner in partners {
        let report = partner.finish("the partner", &mut result.wrong);
        if report.whole == 0 && !scenario.must_refuse() {
            result
                .wrong
                .push("the partner had no complete conversation".into());
        }
        result.partners.push(report);
    }
    for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
        result.wrong.push(format!(
            "a file was left: {}",
            entry.file_name().to_string_lossy()
        ));
    }
    result
}

/// Waits until the first process has bound the address or has ended. A process that must refuse tries only
/// once; one whose first calls fail binds the address in a later attempt.
fn wait_for(address: &Path, first: &mut Actor) {
    let end = Instant::now() + Duration::from_secs(30);
    while !address.exists() && Instant::now() < end && matches!(first.child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(1));
    }
}
