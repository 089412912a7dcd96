//! One test for each row of the attack table: the attack does harm to the plain program (where the table says so),
//! and fails against ringfence with what is promised there.

use std::{
    io::{Write as _, stderr},
    path::Path,
};

use ringfence_attacks::{ROWS, Trouble, play};

fn row(number: u8) {
    let row = ROWS
        .iter()
        .find(|row| row.number == number)
        .expect("a row of the table");
    match play(row, Path::new(env!("CARGO_BIN_EXE_ringfence-attacks"))) {
        Ok(report) => {
            assert_eq!(
                report.plain.bit, row.bites_plain,
                "the plain program: {}",
                report.plain.seen
            );
            assert!(!report.ringfence.bit, "ringfence: {}", report.ringfence.seen);
        }
        Err(Trouble::Wrong(what)) => panic!("{what}"),
        // Not through the macros, whose output is shown for failures only: nobody should take it for played.
        Err(trouble) => writeln!(stderr(), "row {number}, {}: {trouble}", row.attack).expect("stderr"),
    }
}

macro_rules! rows {
    ($($name:ident $number:literal)*) => {
        $(
            #[test]
            fn $name() {
                row($number);
            }
        )*

        #[test]
        fn every_row_has_its_test() {
            let tested = [$($number),*];
            let rows: Vec<u8> = ROWS.iter().map(|row| row.number).collect();
            assert_eq!(rows, tested);
        }
    };
}

rows! {
    row_01_path_descriptor 1
    row_02_hard_link 2
    row_03_proc_fd 3
    row_04_getfd 4
    row_05_kept_path 5
    row_06_lease_break 6
    row_07_memory 7
    row_08_core_dump 8
    row_09_traced 9
    row_10_preloaded 10
    row_11_node_options 11
    row_12_inspector 12
    row_13_worn 13
    row_14_borrowed_face 14
    row_15_false_host 15
    row_16_wrap 16
    row_17_zombie 17
    row_18_turncoat 18
    row_19_same_inode 19
    row_20_other_script 20
    row_21_stranger 21
    row_22_unmapped 22
    row_23_pid_zero 23
    row_24_squatter 24
    row_25_backlog 25
    row_26_silent_crowd 26
    row_27_stale_race 27
    row_28_forged_farewell 28
    row_29_flooded_queue 29
    row_30_truncate 30
    row_31_full_tmpfs 31
    row_32_write_what_it_reads 32
    row_33_lies 33
    row_34_double_fetch 34
    row_35_unsound 35
    row_36_rude 36
    row_37_inheritance 37
    row_38_never_reads 38
    row_39_pidfds 39
    row_40_namesake 40
    row_41_heavy 41
    row_42_greedy 42
    row_43_dropped_group 43
    row_44_without_descriptors 44
    row_45_at_every_moment 45
    row_55_false_alarm 55
    row_56_fork 56
    row_57_bad_callback 57
}
