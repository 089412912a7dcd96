//! Makes each system call of ringfence fail in turn, and checks the consequences.
//!
//! ```text
//! ringfence-faults [--seconds N] [--seed S] [--only TEXT]   random cases for N seconds; all cases without N
//! ringfence-faults case SCENARIO CALL NUMBER[+]|all[+] ERROR            one case, with everything the processes reported
//! ```
//!
//! A case consists of a scenario, a call of one of its processes, which of those calls fails, and an error.
//! Scenarios are a pair, calls and attachments in both directions, a service with two agents, two members, a publisher that
//! attaches, with one or two subscribers, a parent and its child, and peers that do not meet the policy.

use std::process::ExitCode;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel passes every argument as 64 bits, and takes less of most"
)]
mod calls;
mod conversation;
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "the kernel passes every argument as 64 bits, and takes less of most"
)]
mod inject;
mod partner;
mod resources;
mod runner;
mod scenario;
mod subject;
mod table;

use calls::is_unknown;
use conversation::AttemptError;
use inject::Plan;
use resources::Resources;
use ringfence::{Address, Evidence};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &words[..] {
        ["subject", role, address, row, errno, first, times] => {
            let number = |text: &str| text.parse::<u32>().ok();
            let plan = Plan {
                row: row.parse().ok(),
                errno: errno.parse().unwrap_or(0),
                first: number(first).unwrap_or(1),
                times: number(times).unwrap_or(0),
            };
            run_subject(role, address, plan)
        }
        ["partner", role, address] => run_partner(role, address),
        ["parent-of", plan @ ..] => run_parent(plan),
        _ => runner::main(&words),
    }
}

fn run_subject(role: &str, address: &str, plan: Plan) -> ExitCode {
    let address: Address = address.parse().expect("an address");
    if let Err(error) = inject::install(plan) {
        println!("failure could not install the filter: {error}\ndone");
        return ExitCode::FAILURE;
    }
    let report = subject::run(role, &address);
    let leftovers = leftovers();
    report.codes.print();
    for Evidence {
        step, check, outcome, ..
    } in &report.evidence
    {
        println!("evidence {step} {check} {outcome}");
    }
    if let Some(what) = report.failure {
        println!("failure {}", what.replace('\n', " "));
    }
    println!("hits {}", inject::hits());
    for (row, count) in inject::counts() {
        println!("count {row}={count}");
    }
    for number in inject::uncovered().filter(|&number| is_unknown(number)) {
        println!("unknown {number}");
    }
    finish(&leftovers)
}

fn run_partner(role: &str, address: &str) -> ExitCode {
    let address = if role == "child" { "@none" } else { address };
    let outcome = partner::run(role, &address.parse().expect("an address"));
    let leftovers = leftovers();
    match outcome {
        Ok((completed, codes)) => {
            println!("completed {completed}");
            codes.print();
        }
        Err(AttemptError::Coded(code, text)) => println!("code {code} {text}"),
        Err(AttemptError::Unexpected(what)) => println!("failure {what}"),
    }
    finish(&leftovers)
}

/// Runs the parent of a child. The child reports for itself; this reports only what the child cannot.
fn run_parent(plan: &[&str]) -> ExitCode {
    match partner::run_parent(plan) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(AttemptError::Coded(code, text)) => println!("failure the parent: {code} {text}"),
        Err(AttemptError::Unexpected(what)) => println!("failure {what}"),
    }
    ExitCode::FAILURE
}

fn finish(leftovers: &Resources) -> ExitCode {
    for (kind, count) in leftovers {
        println!("leftover {kind}={count}");
    }
    println!("done");
    ExitCode::SUCCESS
}

/// Returns the leftovers beyond what the runner saw without a fault. Without such a list, returns all of
/// them.
fn leftovers() -> Resources {
    let text = std::env::var("RINGFENCE_FAULTS_RESOURCES").unwrap_or_default();
    if text.is_empty() {
        return resources::wait_until_stable();
    }
    let pair = |item: &str| {
        let (kind, count) = item.rsplit_once('=')?;
        Some((kind.to_owned(), count.parse().ok()?))
    };
    resources::excess(&text.split(';').filter_map(pair).collect())
}
