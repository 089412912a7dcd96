//! The resources that an open channel holds in its process, and those that a child inherits. This test has
//! its own process.

mod support;

use std::{collections::BTreeSet, path::Path};

use ringfence::{Address, Backing, join};
use support::{Actor, fresh_address, join_later, report, small, wait_for_host, wait_for_test};

/// The other processes of this test.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    match role.as_str() {
        "partner" => {
            let address: Address = arguments[0].parse().unwrap();
            let backing: Backing = arguments[1].parse().unwrap();
            let before = descriptors();
            let channel = join(&address, &small().backing(backing)).unwrap();
            report_state(&before);
            report(child());
            wait_for_test();
            drop(channel);
            report_state(&before);
        }
        "child" => report_state(&BTreeSet::new()),
        other => unreachable!("{other}"),
    }
}

/// Returns the targets of the descriptors, except for standard input, output and error, and the pipes between
/// the processes.
fn descriptors() -> BTreeSet<(i32, String)> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            // The descriptor that reads the directory is closed when its entry is checked.
            let target = std::fs::read_link(entry.path()).ok()?.display().to_string();
            (number > 2 && !target.contains("/fd") && !target.starts_with("pipe:"))
                .then_some((number, target))
        })
        .collect()
}

/// Returns how the shared objects are mapped.
fn mappings() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut access: Vec<_> = maps
        .lines()
        .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        // The test's own executable may be in /dev/shm. It is mapped privately.
        .filter(|access| access.ends_with('s'))
        .collect();
    access.sort_unstable();
    access
}

/// Returns the kinds of the additional descriptors, without their individual numbers.
fn kinds(more_than: &BTreeSet<(i32, String)>) -> Vec<String> {
    let mut kinds: Vec<_> = descriptors()
        .difference(more_than)
        .map(|(_, target)| target.split(':').next().unwrap().to_owned())
        .collect();
    kinds.sort_unstable();
    kinds
}

fn is_lock(kind: &str) -> bool {
    Path::new(kind)
        .extension()
        .is_some_and(|extension| extension == "lock")
}

fn report_state(before: &BTreeSet<(i32, String)>) {
    report(format!("{} | {}", kinds(before).join(" "), mappings().join(" ")));
}

/// Returns the descriptors and mappings of a child of this process.
fn child() -> String {
    let child = Actor::start("child", &[]);
    let line = child.next_line();
    child.finish();
    line
}

#[test]
fn open_channel_resources_are_minimal_and_not_inherited() {
    if support::role().is_some() {
        return;
    }
    // The parent of this test may have left descriptors open in it.
    let inherited = child();
    for backing in [Backing::Memfd, Backing::Shm] {
        for named in [false, true] {
            let (address, keep) = fresh_address(named);
            let before = descriptors();
            let host = join_later(&address, &small().backing(backing));
            wait_for_host(&address);
            let mut partner = Actor::start("partner", &[&address.to_string(), &backing.to_string()]);
            let channel = host.join().unwrap().unwrap();
            // The guest keeps the line, the pidfd that reports its peer's exit and, once per process, the
            // table of locks.
            partner.expect("/proc/locks anon_inode socket | r--s rw-s");
            partner.expect(&inherited);
            assert_eq!(
                mappings(),
                ["r--s", "rw-s"],
                "its own to write, the peer's to read"
            );
            let resources = kinds(&before);
            let (locks, rest): (Vec<_>, Vec<_>) = resources.into_iter().partition(|kind| is_lock(kind));
            assert_eq!(locks.len(), usize::from(named), "{locks:?}");
            // The host at a path holds its directory as well.
            let directory = keep.as_ref().map(|keep| keep.path().display().to_string());
            let mut wanted = vec!["/proc/locks", "anon_inode", "socket", "socket"];
            wanted.extend(directory.as_deref());
            wanted.sort_unstable();
            assert_eq!(
                rest, wanted,
                "the lock table, the line, the pidfd and the directory"
            );

            assert_eq!(child(), inherited);

            channel.close();
            assert_eq!(mappings(), [""; 0]);
            partner.proceed();
            partner.expect(" | ");
            partner.finish();
            assert_eq!(descriptors(), before);
        }
    }
}
