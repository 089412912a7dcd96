//! Runs the rows of the attack table with real processes, and prints the outcomes.
//!
//! Without arguments it runs all rows and prints a table; the exit code is 1 if an outcome was not as
//! promised. With numbers it runs those rows. `role …` starts one of the processes that a row consists of
//! (not for interactive use).

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "role") {
        args.remove(0);
        return ringfence_attacks::run_role(&args);
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
            eprintln!("cannot find this executable: {error}");
            return ExitCode::from(2);
        }
    };
    if ringfence_attacks::print_table(&executable, &numbers) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
