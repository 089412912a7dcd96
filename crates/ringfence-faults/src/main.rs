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
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "the kernel passes every argument as 64 bits, and takes less of most"
)]
mod inject;
mod partner;
mod runner;
mod scenario;
mod subject;
mod table;
mod talk;
mod traces;

use calls::is_unknown;
use inject::Plan;
use ringfence::{Address, Evidence};
use talk::AttemptError;
use traces::Traces;

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
            play_subject(role, address, plan)
        }
        ["partner", role, address] => play_partner(role, address),
        ["parent-of", plan @ ..] => play_parent(plan),
        _ => runner::main(&words),
    }
}

fn play_subject(role: &str, address: &str, plan: Plan) -> ExitCode {
    let address: Address = address.parse().expect("an address");
    if let Err(error) = inject::begin(plan) {
        println!("wrong could not install the filter: {error}\ndone");
        return ExitCode::FAILURE;
    }
    let report = subject::run(role, &address);
    let left = left();
    for (code, text) in &report.codes.0 {
        println!("code {code} {}", text.replace('\n', " "));
    }
    for Evidence {
        step, check, outcome, ..
    } in &report.evidence
    {
        println!("evidence {step} {check} {outcome}");
    }
    if let Some(what) = report.wrong {
        println!("wrong {}", what.replace('\n', " "));
    }
    println!("hits {}", inject::hits());
    for (row, count) in inject::counts() {
        println!("count {row}={count}");
    }
    for number in inject::others().filter(|&number| is_unknown(number)) {
        println!("unknown {number}");
    }
    finish(&left)
}

fn play_partner(role: &str, address: &str) -> ExitCode {
    let address = if role == "child" { "@none" } else { address };
    let outcome = partner::run(role, &address.parse().expect("an address"));
    let left = left();
    match outcome {
        Ok((whole, codes)) => {
            println!("whole {whole}");
            for (code, text) in codes.0 {
                println!("code {code} {}", text.replace('\n', " "));
            }
        }
        Err(AttemptError::Coded(code, text)) => println!("code {code} {text}"),
        Err(AttemptError::Wrong(what)) => println!("wrong {what}"),
    }
    finish(&left)
}

/// Plays the parent of a child. The child reports for itself; this reports only what the child cannot.
fn play_parent(plan: &[&str]) -> ExitCode {
    match partner::bring_up(plan) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(AttemptError::Coded(code, text)) => println!("wrong the parent: {code} {text}"),
        Err(AttemptError::Wrong(what)) => println!("wrong {what}"),
    }
    ExitCode::FAILURE
}

fn finish(left: &Traces) -> ExitCode {
    for (kind, count) in left {
        println!("left {kind}={count}");
    }
    println!("done");
    ExitCode::SUCCESS
}

/// Returns the leftovers beyond what the runner saw without a fault. Without such a list, returns all of
/// them.
fn left() -> Traces {
    let text = std::env::var("RINGFENCE_FAULTS_TRACES").unwrap_or_default();
    if text.is_empty() {
        return traces::settled();
    }
    let pair = |item: &str| {
        let (kind, count) = item.rsplit_once('=')?;
        Some((kind.to_owned(), count.parse().ok()?))
    };
    traces::beyond(&text.split(';').filter_map(pair).collect())
}
