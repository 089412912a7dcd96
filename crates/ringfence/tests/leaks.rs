//! Joins and closes many times: nothing is left of the channels, in the process or in the system.

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
            before = Some(resources());
        }
        let (_sender, mut receiver) = join(&address, &options).unwrap().split();
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
    }
    assert_nothing_added(before.unwrap(), &format!("{options:?}"));
}

/// After this many rounds the allocator and the threads' stacks have settled.
const SETTLING: u32 = 50;

#[test]
fn repeated_joins_and_closes_leak_nothing() {
    // `npm run soak:churn` makes more.
    const ROUNDS: u32 = 1500;
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
        let before = resources();
        (0..ROUNDS).for_each(|_| round());
        assert_nothing_added(before, &format!("{backing}"));
        other.finish();
    }
}

/// Counts possible leaks: descriptors, mappings, and names in /dev/shm. This test has its own process, and so
/// has its other side.
fn resources() -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // The allocator's own mappings change.
    let mapped = maps
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
        .count();
    // Other processes on this machine make names as well, each for the moment before it is unlinked. Only
    // names that stay count.
    let mut names = entries("/dev/shm");
    for _ in 0..50 {
        let still = entries("/dev/shm");
        names.retain(|name| name.starts_with("ringfence") && still.contains(name));
    }
    (entries("/proc/self/fd").len(), mapped, names.len())
}

/// Checks that nothing is left after thousands of rounds. A thread that was still exiting at the first count,
/// or still is now, is no leak. So the counts must not exceed the first ones after all threads have exited.
fn assert_nothing_added(before: (usize, usize, usize), what: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = resources();
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
