//! The resources that a process still holds: descriptors, threads, and mappings of shared memory.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

/// Number of resources of each kind. Digits in names are dropped, so that two processes can be compared.
pub(crate) type Resources = BTreeMap<String, usize>;

fn without_digits(name: &str) -> String {
    name.chars().filter(|it| !it.is_ascii_digit()).collect()
}

/// Returns the resources that the process holds now.
pub(crate) fn current() -> Resources {
    let mut found = Resources::new();
    let mut note = |kind: &str, name: &str| {
        *found
            .entry(format!("{kind} {}", without_digits(name)))
            .or_default() += 1;
    };
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        // The descriptor of the directory that is being read is closed by now.
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.to_string_lossy();
            if !target.starts_with("/proc/") {
                note("descriptor", target.split([':', '(']).next().unwrap_or(&target));
            }
        }
    }
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        if let Ok(name) = fs::read_to_string(entry.path().join("comm")) {
            note("thread", name.trim());
        }
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
    {
        note("mapping", line.split_whitespace().nth(5).unwrap_or("?"));
    }
    found
}

/// Returns the resources beyond `limits`, once there are none or after ten seconds: ending threads need a
/// moment.
pub(crate) fn excess(limits: &Resources) -> Resources {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut found = current();
        found.retain(|kind, count| {
            *count = count.saturating_sub(limits.get(kind).copied().unwrap_or(0));
            *count > 0
        });
        if found.is_empty() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the resources once they have not changed for a while, for a process without a known limit.
pub(crate) fn wait_until_stable() -> Resources {
    let (mut before, mut same) = (current(), 0);
    while same < 8 {
        std::thread::sleep(Duration::from_millis(10));
        let found = current();
        same = if found == before { same + 1 } else { 0 };
        before = found;
    }
    before
}
