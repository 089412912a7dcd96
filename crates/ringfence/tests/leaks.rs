//! Joins and closes many times: nothing is left of the channels, in the process or in the system.

mod support;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ringfence::{Address, Backing, join};
use support::{Actor, TIME_LIMIT, fresh_address, report, small};

/// After this many rounds the allocator and the threads' stacks have settled.
const SETTLING: u32 = 50;
/// `npm run soak:churn` makes more.
const ROUNDS: u32 = 1500;

/// The two processes of this test: one closes each channel.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let options = small().backing(arguments[1].parse().unwrap()).wait(true);
    let has_own_shm = arguments[2] == "own";
    let mut before = None;
    for round in 0..SETTLING + ROUNDS {
        // The test limits the time between two lines, and not that of all rounds.
        if round % 100 == 0 {
            report(round.to_string());
        }
        if round == SETTLING {
            before = Some(resources(has_own_shm));
        }
        let channel = join(&address, &options).unwrap();
        if role == "closes" {
            channel.close();
        } else {
            let (_sender, mut receiver) = channel.split();
            assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
        }
    }
    assert_nothing_added(before.unwrap(), has_own_shm, &format!("{role}, {options:?}"));
}

/// Runs this executable with a /dev/shm of its own.
fn in_own_shm() -> Command {
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs none /dev/shm && exec "$0" "$@""#;
    command.args(["-m", "sh", "-c", script]);
    command
}

#[test]
fn repeated_joins_and_closes_leak_nothing() {
    let can_mount = in_own_shm()
        .arg("true")
        .status()
        .is_ok_and(|status| status.success());
    if !can_mount {
        eprintln!(
            "names in /dev/shm are not counted: this user may not mount one, and others leave names there"
        );
    }
    let shm = if can_mount { "own" } else { "common" };
    let start = |role: &str, address: &Address, backing: Backing| {
        let own = std::env::current_exe().unwrap();
        let command = if can_mount {
            let mut command = in_own_shm();
            command.arg(own);
            command
        } else {
            Command::new(own)
        };
        Actor::run(command, role, &[&address.to_string(), &backing.to_string(), shm])
    };
    for backing in [Backing::Memfd, Backing::Shm] {
        let (address, _keep) = fresh_address(false);
        let reads = start("reads", &address, backing);
        let closes = start("closes", &address, backing);
        while closes.next_line_or_end().is_some() {}
        closes.finish();
        reads.finish();
    }
}

/// Counts possible leaks: descriptors, mappings, and names in /dev/shm.
fn resources(has_own_shm: bool) -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // The allocator's own mappings change.
    let mapped = maps
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
        .count();
    let names = if has_own_shm { entries("/dev/shm") } else { 0 };
    (entries("/proc/self/fd"), mapped, names)
}

/// Checks that nothing is left after thousands of rounds. A thread that was still exiting at the first count,
/// or still is now, is no leak. So the counts must not exceed the first ones after all threads have exited.
fn assert_nothing_added(before: (usize, usize, usize), has_own_shm: bool, what: &str) {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        let now = resources(has_own_shm);
        if now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2 {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {before:?} became {now:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}
