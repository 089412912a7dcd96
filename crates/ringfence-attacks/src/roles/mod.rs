//! The processes that play the rows. Each reads orders as lines and answers in lines.

mod attackers;
mod broadcast;
mod caller;
mod endings;
mod hand;
mod hand_fenced;
mod insiders;
mod inspector;
mod keeper;
mod merge;
mod program;
mod victim;
mod victim_fenced;

use std::{io::stdin, process::ExitCode};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::alarm,
};

/// Longest lifetime of a row's process in seconds, even if its parent dies.
const LIFETIME: u32 = 120;

/// Plays the role that `args` names.
pub fn play(args: &[String]) -> ExitCode {
    alarm::set(LIFETIME);
    // Best effort: the alarm is the actual limit.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match take_part(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            println!("failed {what}");
            ExitCode::FAILURE
        }
    }
}

fn take_part(args: &[&str]) -> Result<(), String> {
    match args {
        ["victim", "plain"] => program::forget_inherited().and_then(|()| victim::run()),
        ["victim", "ringfence"] => program::forget_inherited().and_then(|()| victim_fenced::run()),
        ["hand", "plain", "guest", address] => hand::guest(address),
        ["hand", "plain", "host", address, kind] => hand::host(address, kind),
        ["hand", "ringfence", rest @ ..] => hand_fenced::run(rest),
        ["publisher", "plain"] => broadcast::plain_publisher(),
        ["publisher", "ringfence"] => program::forget_inherited().and_then(|()| broadcast::publisher()),
        ["subscriber", "plain"] => broadcast::plain_subscriber(),
        ["subscriber", "ringfence"] => program::forget_inherited().and_then(|()| broadcast::subscriber()),
        ["collector", "plain"] => merge::plain(),
        ["collector", "ringfence"] => program::forget_inherited().and_then(|()| merge::fenced()),
        ["caller", address] => program::forget_inherited().and_then(|()| caller::run(address)),
        ["inventory"] => {
            program::print_inventory();
            Ok(())
        }
        ["still"] => program::still(),
        ["own-shm", bytes, as_whom, places @ ..] => keeper::own_shm(bytes, as_whom, places),
        ["within", keeper, uid, program, rest @ ..] => keeper::within(keeper, uid, program, rest),
        ["unmapped", program, rest @ ..] => keeper::unmapped(program, rest),
        ["hidden-proc", uid, program, rest @ ..] => keeper::hidden_proc(uid, program, rest),
        ["own-pids", uid, program, rest @ ..] => keeper::own_pids(uid, program, rest),
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
