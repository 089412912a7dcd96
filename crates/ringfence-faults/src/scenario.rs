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
    resources::Resources,
    subject::TIMEOUT_VARIABLE,
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
    pub(crate) subject_starts_first: bool,
}

const fn scenario(
    name: &'static str,
    subject: &'static str,
    partners: &'static [&'static str],
    subject_starts_first: bool,
) -> Scenario {
    Scenario {
        name,
        subject,
        partners,
        subject_starts_first,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("pair, the host", "pair", &["pair"], true),
    scenario("pair, the guest", "pair", &["pair"], false),
    scenario("calls", "calls", &["calls"], true),
    scenario("attachments", "attachments", &["attachments"], true),
    scenario("pair over shm, the host", "shm", &["shm"], true),
    scenario("pair over shm, the guest", "shm", &["shm"], false),
    scenario("service", "service", &["agent", "agent"], true),
    scenario("agent", "agent", &["service"], false),
    scenario("member, first", "member", &["member"], true),
    scenario("member, second", "member", &["member"], false),
    scenario("publisher", "publisher", &["subscriber"], true),
    scenario("subscriber", "subscriber", &["publisher"], false),
    scenario(
        "publisher of two",
        "publisher of two",
        &["subscriber", "subscriber"],
        true,
    ),
    scenario(
        "second subscriber",
        "subscriber",
        &["publisher of two", "subscriber"],
        false,
    ),
    scenario("parent", "parent", &[], true),
    scenario("child", "child", &[], true),
    scenario("host refuses a uid", "host-uid", &["agent"], true),
    scenario("guest refuses a uid", "guest-uid", &["service"], false),
    scenario("host refuses a gid", "host-gid", &["agent"], true),
    scenario("guest refuses a gid", "guest-gid", &["service"], false),
    scenario(
        "host refuses a dropped group",
        "host-group",
        &["agent of a group"],
        true,
    ),
    scenario("host refuses an executable", "host-executable", &["agent"], true),
    scenario(
        "guest refuses an executable",
        "guest-executable",
        &["service"],
        false,
    ),
    scenario("host refuses a content", "host-content", &["agent"], true),
    scenario("guest refuses a content", "guest-content", &["service"], false),
    scenario("host refuses a cgroup", "host-cgroup", &["agent"], true),
    scenario("guest refuses a cgroup", "guest-cgroup", &["service"], false),
    scenario("host refuses a label", "host-label", &["agent"], true),
    scenario("guest refuses a label", "guest-label", &["service"], false),
    scenario("host refuses by authorize", "host-authorize", &["agent"], true),
    scenario(
        "guest refuses by authorize",
        "guest-authorize",
        &["service"],
        false,
    ),
    scenario(
        "host refuses a namespace",
        "host-namespace",
        &["agent of a namespace"],
        true,
    ),
    scenario(
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

    /// Returns the reason why the scenario cannot be run on this machine.
    pub(crate) fn skip_reason(&self) -> Option<&'static str> {
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
    /// Whether the calls after it fail as well, up to `MAX_CONSECUTIVE` calls.
    pub(crate) lasts: bool,
}

/// Number of consecutive calls that fail. Without a limit, a call that is retried after EINTR would be
/// retried forever.
pub(crate) const MAX_CONSECUTIVE: u32 = 12;

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
    pub(crate) leftovers: Resources,
    pub(crate) hits: u32,
    pub(crate) completed: u32,
    pub(crate) failures: Vec<String>,
    is_done: bool,
}

/// Result of a case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Result {
    pub(crate) subject: ProcessReport,
    pub(crate) partners: Vec<ProcessReport>,
    pub(crate) failures: Vec<String>,
}

/// Leftovers that a process may have, by kind: what it leaves without a fault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed {
    pub(crate) subject: Resources,
    pub(crate) partner: Resources,
}

impl Allowed {
    pub(crate) fn add(&mut self, result: &Result) {
        merge_max(&mut self.subject, &result.subject.leftovers);
        for partner in &result.partners {
            merge_max(&mut self.partner, &partner.leftovers);
        }
    }
}

pub(crate) fn merge_max<K: Clone + Ord, V: Copy + Ord>(maxima: &mut BTreeMap<K, V>, values: &BTreeMap<K, V>) {
    for (key, &value) in values {
        let max = maxima.entry(key.clone()).or_insert(value);
        *max = value.max(*max);
    }
}

/// Time after which a process of a case has failed.
const LIMIT: Duration = Duration::from_secs(60);

struct Process {
    child: Child,
    is_compared: bool,
    output: mpsc::Receiver<String>,
}

impl Process {
    fn start(mut command: Command, resources: &Resources) -> Self {
        let resources: Vec<String> = resources
            .iter()
            .map(|(kind, count)| format!("{kind}={count}"))
            .collect();
        let mut child = command
            .env("RINGFENCE_FAULTS_RESOURCES", resources.join(";"))
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
            is_compared: !resources.is_empty(),
            output,
        }
    }

    /// Waits for the process to end, and returns its report.
    fn finish(mut self, name: &str, failures: &mut Vec<String>) -> ProcessReport {
        drop(self.child.stdin.take());
        let text = self.output.recv_timeout(LIMIT).unwrap_or_else(|_| {
            failures.push(format!("{name} hangs: {}", wait_channels(self.child.id())));
            let _ = self.child.kill();
            self.output.recv_timeout(LIMIT).unwrap_or_default()
        });
        let status = self.child.wait();
        let report = ProcessReport::parse(&text);
        failures.extend(report.failures.iter().map(|what| format!("{name}: {what}")));
        if !report.is_done {
            let end = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let stderr_text: Vec<&str> = text.lines().filter(|line| line.starts_with("stderr ")).collect();
            failures.push(format!("{name} ended early ({end}): {}", stderr_text.join(" | ")));
        }
        // A run without a fault reports everything that is left, and none of it is an error.
        for (kind, count) in report.leftovers.iter().filter(|_| self.is_compared) {
            failures.push(format!("{name} left behind: {count} × {kind}"));
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
fn wait_channels(pid: u32) -> String {
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
                "leftover" => {
                    if let Some((kind, count)) = pair() {
                        report.leftovers.insert(kind, count as usize);
                    }
                }
                // A parent reports for a second child too, if the first one had an error.
                "hits" => report.hits += rest.parse().unwrap_or(0),
                "completed" => report.completed = rest.parse().unwrap_or(0),
                "failure" => report.failures.push(rest.to_owned()),
                "done" => report.is_done = true,
                _ => {}
            }
        }
        report
    }

    /// Returns the first code of all attempts, or "success".
    pub(crate) fn outcome(&self) -> String {
        self.codes.first().map_or("success".into(), |code| {
            code.split(' ').next().unwrap_or(code).to_owned()
        })
    }
}

fn command(program: &Path, arguments: &[&str], scenario: &Scenario, in_namespace: bool) -> Command {
    let mut command = if in_namespace {
        let mut command = Command::new("unshare");
        command.args(UNSHARE).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).env(TIMEOUT_VARIABLE, scenario.timeout());
    command
}

/// Runs a scenario once. Without a fault, counts the calls.
pub(crate) fn run_case(
    program: &Path,
    scenario: &Scenario,
    fault: Option<Fault>,
    allowed: &Allowed,
) -> Result {
    let folder = tempfile::Builder::new()
        .prefix("ringfence-faults")
        .tempdir()
        .expect("a directory");
    let address = folder.path().join("socket");
    let text = address.to_str().expect("a name of ASCII");
    let plan = fault.map_or(["count", "0", "0", "0"].map(str::to_owned), |fault| {
        let times = if fault.lasts { MAX_CONSECUTIVE } else { 1 };
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
    let start_subject = || Process::start(command(program, &subject, scenario, false), &allowed.subject);
    let start_partner = |role: &&str| {
        let words = ["partner", *role, text];
        Process::start(
            command(program, &words, scenario, scenario.in_namespace()),
            &allowed.partner,
        )
    };
    let mut result = Result::default();
    let (first, others) = scenario
        .partners
        .split_at(usize::from(!scenario.subject_starts_first).min(scenario.partners.len()));
    let mut partners: Vec<Process> = first.iter().map(start_partner).collect();
    for partner in &mut partners {
        wait_for(&address, partner);
    }
    let mut subject = start_subject();
    if scenario.subject_starts_first && !others.is_empty() {
        wait_for(&address, &mut subject);
    }
    partners.extend(others.iter().map(start_partner));
    result.subject = subject.finish("the subject", &mut result.failures);
    for partner in partners {
        let report = partner.finish("the partner", &mut result.failures);
        if report.completed == 0 && !scenario.must_refuse() {
            result
                .failures
                .push("the partner had no complete conversation".into());
        }
        result.partners.push(report);
    }
    for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
        result.failures.push(format!(
            "a file was left: {}",
            entry.file_name().to_string_lossy()
        ));
    }
    result
}

/// Waits until the first process has bound the address or has ended. A process that must refuse tries only
/// once; one whose first calls fail binds the address in a later attempt.
fn wait_for(address: &Path, first: &mut Process) {
    let end = Instant::now() + Duration::from_secs(30);
    while !address.exists() && Instant::now() < end && matches!(first.child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(1));
    }
}
