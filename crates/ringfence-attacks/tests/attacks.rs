//! One test for each row of the attack table. The attack succeeds against the plain program if the table says so, and
//! fails against ringfence as the row promises.

use std::{
    io::{Write as _, stderr},
    path::Path,
};

use ringfence_attacks::{ROWS, RowError, run_row};

fn row(number: u8) {
    let row = ROWS
        .iter()
        .find(|row| row.number == number)
        .expect("a row of the table");
    match run_row(row, Path::new(env!("CARGO_BIN_EXE_ringfence-attacks"))) {
        Ok(report) => {
            assert_eq!(
                report.plain.succeeded, row.harms_plain,
                "the plain program: {}",
                report.plain.seen
            );
            assert!(
                !report.ringfence.succeeded,
                "ringfence: {}",
                report.ringfence.seen
            );
        }
        Err(RowError::Wrong(what)) => panic!("{what}"),
        // Written to stderr directly: the output of the macros is shown for failures only, and a skipped row must be seen.
        Err(error) => writeln!(stderr(), "row {number}, {}: {error}", row.attack).expect("stderr"),
    }
}

macro_rules! tests {
    ($($number:literal $test:ident $who:literal $attack:literal $harms:literal $module:ident::$run:ident;)*) => {
        $(
            #[test]
            fn $test() {
                row($number);
            }
        )*
    };
}

ringfence_attacks::with_rows!(tests);
