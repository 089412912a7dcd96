//! The roles of the processes. Each reads orders as lines and answers in lines.

mod attackers;
mod broadcast;
mod caller;
mod endings;
mod hostile;
mod hostile_plain;
mod insiders;
mod inspector;
mod merge;
mod namespaces;
mod program;
mod victim;
mod victim_plain;

use std::{io::stdin, process::ExitCode};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::alarm,
};

/// Longest lifetime of a row's process in seconds, even if its parent dies.
const LIFETIME: u32 = 120;

/// Runs the role that `args` names.
pub fn run(args: &[String]) -> ExitCode {
    alarm::set(LIFETIME);
    // Best effort: the alarm is the actual limit.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run_role(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("failed {what}");
            ExitCode::FAILURE
        }
    }
}

fn run_role(args: &[&str]) -> Result<(), String> {
    match args {
        ["victim", "plain"] => program::forget_inherited().and_then(|()| victim_plain::run()),
        ["victim", "ringfence"] => program::forget_inherited().and_then(|()| victim::run()),
        ["hostile", "plain", "guest", address] => hostile_plain::guest(address),
        ["hostile", "plain", "host", address, kind] => hostile_plain::host(address, kind),
        ["hostile", "ringfence", rest @ ..] => hostile::run(rest),
        ["publisher", "plain"] => broadcast::plain_publisher(),
        ["publisher", "ringfence"] => program::forget_inherited().and_then(|()| broadcast::publisher()),
        ["subscriber", "plain"] => broadcast::plain_subscriber(),
        ["subscriber", "ringfence"] => program::forget_inherited().and_then(|()| broadcast::subscriber()),
        ["collector", "plain"] => merge::plain(),
        ["collector", "ringfence"] => program::forget_inherited().and_then(|()| merge::protected()),
        ["caller", address] => program::forget_inherited().and_then(|()| caller::run(address)),
        ["inventory"] => {
            program::print_inventory();
            Ok(())
        }
        ["idle"] => program::idle(),
        ["own-shm", bytes, owner, places @ ..] => namespaces::own_shm(bytes, owner, places),
        ["within", owner, uid, program, rest @ ..] => namespaces::within(owner, uid, program, rest),
        ["unmapped", program, rest @ ..] => namespaces::unmapped(program, rest),
        ["hidden-proc", uid, program, rest @ ..] => namespaces::hidden_proc(uid, program, rest),
        ["own-pids", uid, program, rest @ ..] => namespaces::own_pids(uid, program, rest),
        ["attacker", rest @ ..] => attackers::run(rest),
        ["insider", rest @ ..] => insiders::run(rest),
        other => Err(format!("no such role: {other:?}")),
    }
}

/// Answers every order until the input is closed.
fn serve(mut answer: impl FnMut(&[&str]) -> Result<String, String>) -> Result<(), String> {
    for line in stdin().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("{}", answer(&words)?);
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number: {text:?}"))
}
