//! Selects the cases, runs them concurrently, and reports the results.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    num::NonZero,
    path::Path,
    process::ExitCode,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::{
    calls::{CALLS, ERRORS, EXEMPT},
    scenario::{Allowed, Fault, MAX_CONSECUTIVE, Result, SCENARIOS, Scenario, merge_max, run_case},
    table::Table,
};

/// Concurrent cases per core: a case spends nearly all of its time waiting for the other process.
const CASES_PER_CORE: usize = 12;

/// Runs without a fault at the start of each scenario. Threads interleave differently, so not every run makes
/// all calls.
const BASELINE_RUNS: usize = 3;

struct Arguments {
    seconds: Option<u64>,
    cases: usize,
    seed: u64,
    only: String,
}

/// A scenario, and its behavior without a fault.
struct Baseline {
    scenario: &'static Scenario,
    counts: BTreeMap<usize, u32>,
    evidence: BTreeSet<String>,
    outcome: String,
    allowed: Allowed,
}

pub(crate) fn main(arguments: &[&str]) -> ExitCode {
    let program = std::env::current_exe().expect("the path of this executable");
    if let ["case", scenario, call, first, error] = arguments {
        return run_one(&program, scenario, call, first, error);
    }
    let Some(arguments) = Arguments::parse(arguments) else {
        eprintln!(
            "usage: ringfence-faults [--seconds N] [--cases N] [--seed S] [--only TEXT] | case SCENARIO CALL NUMBER[+]|all[+] ERROR"
        );
        return ExitCode::from(2);
    };
    let mut failures = Vec::new();
    let baselines = run_baselines(&program, &arguments.only, &mut failures);
    let cases = order_cases(&baselines, arguments.seed);
    for baseline in &baselines {
        let mut counts: Vec<_> = baseline
            .counts
            .iter()
            .map(|(&row, &count)| (count, CALLS[row].name))
            .collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let all: u32 = counts.iter().map(|&(count, _)| count).sum();
        println!(
            "{}: {all} calls: {:?}",
            baseline.scenario.name,
            &counts[..6.min(counts.len())]
        );
    }
    println!(
        "{} scenarios, {} cases, seed {}",
        baselines.len(),
        cases.len(),
        arguments.seed
    );
    let started = Instant::now();
    let end = arguments
        .seconds
        .map(|seconds| started + Duration::from_secs(seconds));
    let findings = Findings::default();
    let next = Mutex::new(cases.iter().take(arguments.cases));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..CASES_PER_CORE * cores {
            scope.spawn(|| {
                while end.is_none_or(|end| Instant::now() < end) {
                    let Some(&(index, fault)) = next.lock().expect("no panic").next() else {
                        return;
                    };
                    let result = run_case(
                        &program,
                        baselines[index].scenario,
                        Some(fault),
                        &baselines[index].allowed,
                    );
                    findings.judge(&baselines[index], fault, &result);
                }
            });
        }
    });
    findings.print_report(cases.len(), started.elapsed(), failures)
}

impl Arguments {
    fn parse(words: &[&str]) -> Option<Self> {
        let mut arguments = Self {
            seconds: None,
            cases: usize::MAX,
            seed: u64::from(std::process::id()),
            only: String::new(),
        };
        for pair in words.chunks(2) {
            match pair {
                ["--seconds", number] => arguments.seconds = Some(number.parse().ok()?),
                ["--cases", number] => arguments.cases = number.parse().ok()?,
                ["--seed", number] => arguments.seed = number.parse().ok()?,
                ["--only", text] => (*text).clone_into(&mut arguments.only),
                _ => return None,
            }
        }
        Some(arguments)
    }
}

/// Runs each scenario without a fault, and counts its calls.
fn run_baselines(program: &Path, only: &str, failures: &mut Vec<String>) -> Vec<Baseline> {
    let mut baselines = Vec::new();
    for scenario in SCENARIOS.iter().filter(|it| it.name.contains(only)) {
        if let Some(skip_reason) = scenario.skip_reason() {
            println!("skipped: {} ({skip_reason})", scenario.name);
            continue;
        }
        let mut all = Baseline {
            scenario,
            counts: BTreeMap::new(),
            evidence: BTreeSet::new(),
            outcome: String::new(),
            allowed: Allowed::default(),
        };
        for _ in 0..BASELINE_RUNS {
            let result = run_case(program, scenario, None, &Allowed::default());
            all.add(&result);
            failures.extend(
                result
                    .failures
                    .iter()
                    .map(|what| format!("{}, without a fault: {what}", scenario.name)),
            );
            let is_right = all.outcome
                == if scenario.must_refuse() {
                    "PEER_REFUSED"
                } else {
                    "success"
                };
            // If the partner refuses first, the check that must not fail open is never made.
            let refuses_first = |code: &String| code.contains("the peer refused this process");
            if scenario.must_refuse() && result.subject.codes.iter().any(refuses_first) {
                failures.push(format!("{}: the partner refuses first", scenario.name));
            }
            // Without a security module there are no labels, and a policy with a label is refused before a
            // peer connects.
            let has_no_labels = scenario.subject.ends_with("label") && all.outcome == "UNSUPPORTED";
            if !(is_right || has_no_labels) {
                failures.push(format!(
                    "{}, without a fault: {:?}",
                    scenario.name, result.subject.codes
                ));
            }
            for number in &result.subject.unknown {
                failures.push(format!(
                    "{}: the table does not know system call {number}",
                    scenario.name
                ));
            }
        }
        baselines.push(all);
    }
    baselines
}

impl Baseline {
    fn add(&mut self, result: &Result) {
        merge_max(&mut self.counts, &result.subject.counts);
        self.evidence.extend(result.subject.evidence.iter().cloned());
        self.outcome = result.subject.outcome();
        self.allowed.add(result);
    }
}

/// Returns all cases in the order in which they run. Each call with each error comes once first, then again in another
/// scenario or at another call of its row, and so on.
fn order_cases(baselines: &[Baseline], seed: u64) -> Vec<(usize, Fault)> {
    let mut all = Vec::new();
    for (index, baseline) in baselines.iter().enumerate() {
        for (&row, &count) in &baseline.counts {
            for (error, &(_, errno)) in ERRORS.iter().enumerate() {
                let once = (1..=count).map(|first| Fault {
                    row,
                    error,
                    first,
                    lasts: false,
                });
                // Delays of all calls would be slowness, not a fault.
                let lasting = (errno != 0).then_some(Fault {
                    row,
                    error,
                    first: 1,
                    lasts: true,
                });
                all.extend(once.chain(lasting).map(|fault| (index, fault)));
            }
        }
    }
    // One run may count a call more or less than another, because threads interleave differently. Each case
    // is sorted by its own hash, so the order of the other cases does not depend on that call.
    all.sort_by_cached_key(|(index, fault)| {
        let mut hasher = DefaultHasher::new();
        (seed, baselines[*index].scenario.name, fault.to_string()).hash(&mut hasher);
        hasher.finish()
    });
    let mut turns: BTreeMap<(usize, usize, bool), usize> = BTreeMap::new();
    let mut ordered: Vec<(usize, (usize, Fault))> = all
        .into_iter()
        .map(|case| {
            let turn = turns.entry((case.1.row, case.1.error, case.1.lasts)).or_default();
            *turn += 1;
            (*turn, case)
        })
        .collect();
    ordered.sort_by_key(|&(turn, _)| turn);
    ordered.into_iter().map(|(_, case)| case).collect()
}

/// Findings so far.
#[derive(Default)]
struct Findings {
    once: Mutex<Table>,
    lasting: Mutex<Table>,
    failures: Mutex<Vec<String>>,
    /// Differences between a channel's evidence and that without a fault, with the faults that caused them.
    evidence: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// The number of cases, and of those in which the call was made.
    cases_run: Mutex<(usize, usize)>,
}

impl Findings {
    fn judge(&self, baseline: &Baseline, fault: Fault, result: &Result) {
        let is_hit = result.subject.hits > 0;
        {
            let mut run = self.cases_run.lock().expect("no panic");
            run.0 += 1;
            run.1 += usize::from(is_hit);
        }
        let name = baseline.scenario.name;
        for what in result
            .failures
            .iter()
            .chain(&blamed_on_others(baseline.scenario, fault, result))
        {
            if is_forced_by_kernel(fault, what, &result.failures) {
                continue;
            }
            let line = format!(
                "{name}: {fault}: {what}; codes {} and {}",
                brief(&result.subject.codes),
                result
                    .partners
                    .iter()
                    .map(|it| brief(&it.codes))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            println!("✘ {line}");
            self.failures.lock().expect("no panic").push(line);
        }
        if !is_hit {
            return;
        }
        let outcome = result.subject.outcome();
        if outcome == "success" {
            for line in result.subject.evidence.symmetric_difference(&baseline.evidence) {
                let sign = if baseline.evidence.contains(line) {
                    '-'
                } else {
                    '+'
                };
                let mut all = self.evidence.lock().expect("no panic");
                all.entry(format!("{sign} {line}"))
                    .or_default()
                    .insert(format!("{} {}", CALLS[fault.row].name, ERRORS[fault.error].0));
            }
        }
        let table = if fault.lasts { &self.lasting } else { &self.once };
        table.lock().expect("no panic").add(fault, outcome);
    }

    fn print_report(self, cases: usize, took: Duration, mut failures: Vec<String>) -> ExitCode {
        println!("\nOne failing call:\n");
        self.once.into_inner().expect("no panic").print();
        println!("\n{MAX_CONSECUTIVE} consecutive failing calls:\n");
        self.lasting.into_inner().expect("no panic").print();
        println!("\nDifferences in the evidence of channels that were opened (+ added, - missing):\n");
        for (line, faults) in self.evidence.into_inner().expect("no panic") {
            println!("{line}: {}", faults.into_iter().collect::<Vec<_>>().join(", "));
        }
        println!("\nCalls that were not made to fail:\n");
        for (name, _, reason) in EXEMPT {
            println!("{name}: {reason}");
        }
        let (run, hit) = self.cases_run.into_inner().expect("no panic");
        failures.extend(self.failures.into_inner().expect("no panic"));
        println!(
            "\n{run} of {cases} cases in {} s; in {hit} the call was made. {} failed.",
            took.as_secs(),
            failures.len()
        );
        for what in &failures {
            println!("✘ {what}");
        }
        if failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Formats the first code and the number of codes.
fn brief(codes: &[String]) -> String {
    codes
        .first()
        .map_or("none".into(), |first| format!("{} × {first}", codes.len()))
}

/// Codes that blame the peer, which did something unexpected or is not the expected process, or the address.
const BLAMES: &[&str] = &[
    "ADDRESS_INVALID",
    "MALFORMED",
    "OBJECT_EXPOSED",
    "OBJECT_UNSOUND",
    "PEER_REFUSED",
    "PROTOCOL",
    "RING_CORRUPT",
];

/// Calls on sockets. No peer can have them denied.
const ON_SOCKETS: &[&str] = &["getpeername", "getsockname", "getsockopt", "recvmsg", "sendmsg"];

/// Returns a report if a local error is blamed on others. A shortage or an interruption is a local error,
/// the peer of these scenarios meets the policy, and the address is usable.
fn blamed_on_others(scenario: &Scenario, fault: Fault, result: &Result) -> Option<String> {
    let call = CALLS[fault.row].name;
    let is_local = match ERRORS[fault.error].0 {
        "EINTR" | "EMFILE" | "ENOMEM" => true,
        "EACCES" => ON_SOCKETS.iter().any(|name| call.starts_with(name)),
        _ => false,
    };
    if !is_local || scenario.must_refuse() {
        return None;
    }
    let blame = |code: &&String| BLAMES.contains(&code.split(' ').next().unwrap_or_default());
    // Some refusals are reported only to the peer.
    let reported = |code: &&String| code.starts_with("PEER_REFUSED");
    let own = result.subject.codes.iter().find(blame);
    let code = own.or_else(|| result.partners.iter().flat_map(|it| &it.codes).find(reported))?;
    Some(format!(
        "a local error was blamed on the peer or the address: {code}"
    ))
}

/// Returns whether a report follows from the forced answer of the kernel, and not from what the crate does.
fn is_forced_by_kernel(fault: Fault, what: &str, failures: &[String]) -> bool {
    let error = ERRORS[fault.error].0;
    match CALLS[fault.row].name {
        // A mapping that could not be removed stays.
        "munmap" if what.contains("left behind") => what.contains("× mapping"),
        // If the subject has detected that mapping itself, it stops there.
        "munmap" if what.contains("no complete conversation") => failures
            .iter()
            .any(|it| it.contains("ended peers left behind") && it.contains("× mapping")),
        // A file is removed only after a check of what it is, since another process may have put its own
        // there. A lock file is removed only by the process that holds the lock.
        "unlink" | "unlinkat" | "newfstatat" | "flock" => what.starts_with("a file was left"),
        // The thread is ended by a signal that needs no memory. On a real kernel, that signal fails only if
        // the thread is gone.
        "tgkill" => what.ends_with("thread ringfence-signa"),
        // EAGAIN means a full buffer, which holds wakeups that the peer has not read. If the buffer is not
        // full, the peer sleeps on.
        "sendmsg(wakeup)" if error == "EAGAIN" && what.starts_with("a file was left") => {
            failures.iter().any(|it| it.contains("ended early (signal: 9"))
        }
        // The subject keeps what it holds in that case, and misses what was published in the meantime.
        "sendmsg(wakeup)"
            if error == "EAGAIN" && LATE_LOST_WAKEUP_SIGNS.iter().any(|it| what.contains(it)) =>
        {
            failures.iter().any(|it| indicates_lost_wakeup(it))
        }
        "sendmsg(wakeup)" => error == "EAGAIN" && indicates_lost_wakeup(what),
        // The standard library panics if it cannot read the pipe that reports whether its child has executed
        // the program.
        "recvfrom" | "read" => what.contains("the CLOEXEC pipe failed"),
        _ => false,
    }
}

fn indicates_lost_wakeup(what: &str) -> bool {
    LOST_WAKEUP_SIGNS.iter().any(|it| what.contains(it))
}

const LATE_LOST_WAKEUP_SIGNS: &[&str] = &["message 0 has the wrong content", "left behind"];
const LOST_WAKEUP_SIGNS: &[&str] = &[
    "hangs",
    "ended early (signal: 9",
    "did not recover",
    "was lost",
    "no complete conversation",
    "could be filled within",
];

/// Runs one case and prints everything that was reported. With `all`, runs each call of the row in turn,
/// until one fails.
fn run_one(program: &Path, scenario: &str, call: &str, first: &str, error: &str) -> ExitCode {
    let found = (
        SCENARIOS.iter().find(|it| it.name == scenario),
        CALLS.iter().position(|it| it.name == call),
        ERRORS.iter().position(|it| it.0 == error),
        first.trim_end_matches('+').parse(),
    );
    let (Some(scenario), Some(row), Some(error), number) = found else {
        eprintln!("no such case");
        return ExitCode::from(2);
    };
    let control = run_case(program, scenario, None, &Allowed::default());
    let mut allowed = Allowed::default();
    allowed.add(&control);
    let numbers = match (number, first) {
        (Ok(number), _) => number..=number,
        (Err(_), "all" | "all+") => 1..=control.subject.counts.get(&row).copied().unwrap_or(0),
        (Err(_), _) => {
            eprintln!("{first} is not the number of a call");
            return ExitCode::from(2);
        }
    };
    let lasts = first.ends_with('+');
    for first in numbers {
        let fault = Fault {
            row,
            error,
            first,
            lasts,
        };
        let mut result = run_case(program, scenario, Some(fault), &allowed);
        result.failures.extend(blamed_on_others(scenario, fault, &result));
        println!("{fault}: {result:#?}");
        if !result.failures.is_empty() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
