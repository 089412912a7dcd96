//! Plays the rows of the attack table with real processes, and prints what came of each.
//!
//! Without arguments: all rows, as a table; the exit code is 1 if one attack did what it must not. With numbers:
//! those rows. With `role …`: one of the processes that the rows are played with (not for people).

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "role") {
        args.remove(0);
        return ringfence_attacks::play_role(&args);
    }
    let mut numbers = Vec::new();
    for arg in args {
        let Ok(number) = arg.parse() else {
            eprintln!("usage: ringfence-attacks [ROW]…");
            return ExitCode::from(2);
        };
        numbers.push(number);
    }
    let executable = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => {
            eprintln!("this executable cannot be found: {error}");
            return ExitCode::from(2);
        }
    };
    if ringfence_attacks::print_table(&executable, &numbers) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
