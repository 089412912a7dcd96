//! Runs the examples. `cargo test` builds them beside the tests, and so does `cargo test --examples`.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        built.exists(),
        "{} is not built: cargo test --examples",
        built.display()
    );
    built
}

/// Runs an example twice at one address, and returns the output of both.
fn run_two(name: &str) -> String {
    let address = format!("@ringfence-example-{name}-{}", std::process::id());
    let start = || {
        Command::new(example(name))
            .arg(&address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let outputs = [start(), start()].map(|process| {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8(output.stdout).unwrap()
    });
    outputs.concat()
}

#[test]
fn pair_example_exchanges_messages() {
    let both = run_two("pair");
    for wanted in [
        "this process is the host",
        "this process is the guest",
        "wanted",
        "answer to question 4",
    ] {
        assert!(both.contains(wanted), "no {wanted:?} in:\n{both}");
    }
}

#[test]
#[cfg(feature = "tokio")]
fn tasks_example_exchanges_messages() {
    let both = run_two("tasks");
    for wanted in [
        "this process is the host",
        "this process is the guest",
        "question 0 came back",
        "question 4 came back",
    ] {
        assert!(both.contains(wanted), "no {wanted:?} in:\n{both}");
    }
}
