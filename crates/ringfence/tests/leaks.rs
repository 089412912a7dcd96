//! Joins and closes without end: nothing of them stays, in the process or in the system.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use ringfence::{Address, Backing, join};
use support::{Actor, fresh_address, small};

/// The other process of this test.
#[test]
fn role() {
    let Some((_, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let options = small().backing(arguments[1].parse().unwrap()).wait(true);
    let mut before = None;
    for round in 0..arguments[2].parse().unwrap() {
        if round == SETTLING {
            before = Some(traces());
        }
        let (_sender, mut receiver) = join(&address, &options).unwrap().split();
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
    }
    nothing_was_added(before.unwrap(), &format!("{options:?}"));
}

/// The allocator and the threads' stacks have settled after so many rounds.
const SETTLING: u32 = 50;

#[test]
fn ten_thousand_joins_and_closes_leave_nothing_behind() {
    const ROUNDS: u32 = 5000;
    for backing in [Backing::Memfd, Backing::Shm] {
        let (address, _keep) = fresh_address(false);
        let other = Actor::start(
            "many joins",
            &[
                &address.to_string(),
                &backing.to_string(),
                &(SETTLING + ROUNDS).to_string(),
            ],
        );
        let round = || {
            let channel = join(&address, &small().backing(backing).wait(true)).unwrap();
            assert_eq!(channel.peer().pid, other.pid());
            channel.close();
        };
        (0..SETTLING).for_each(|_| round());
        let before = traces();
        (0..ROUNDS).for_each(|_| round());
        nothing_was_added(before, &format!("{backing}"));
        other.finish();
    }
}

/// What could leak: descriptors, mappings, and names in /dev/shm. This test is alone in its process, and so is its
/// other side.
fn traces() -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // The allocator's own come and go.
    let mapped = maps
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
        .count();
    // Others on this machine make names too, each for the moment before it is unlinked: those that stay count.
    let mut names = entries("/dev/shm");
    for _ in 0..50 {
        let still = entries("/dev/shm");
        names.retain(|name| name.starts_with("ringfence") && still.contains(name));
    }
    (entries("/proc/self/fd").len(), mapped, names.len())
}

/// What is left of thousands of rounds. A thread that was still ending when the first look was taken, or is now, is none
/// of that: hence no more than before, once all have ended.
fn nothing_was_added(before: (usize, usize, usize), what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = traces();
        if now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2 {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {before:?} became {now:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn entries(folder: &str) -> Vec<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
