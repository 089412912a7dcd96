//! A process in a memory cgroup that requests more than the limit of the cgroup, or of one above it, gets an
//! error. If other processes take the memory at the same time, the kernel may kill the process. Then its
//! peers are notified, receive everything that it had sent, and keep none of its resources.
//!
//! The tests are skipped, with a line that gives the reason, if no memory cgroup can be created here.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process, thread,
    time::Instant,
};

use nix::libc;
use ringfence::{Address, Arrival, Channel, Channels, CloseReason, Listener, Options, connect, listen};
use support::{Actor, TIME_LIMIT, accepted, fresh_address, message, report, small};

/// The memory limit for all processes of the cgroup.
const LIMIT: u64 = 48 << 20;
/// A ring that does not fit.
const TOO_MUCH: u64 = 96 << 20;
/// A ring that fits a few times.
const RING: u64 = 4 << 20;
/// A number of such rings that exceeds the limit.
const TOO_MANY: usize = 24;
const MESSAGE: usize = 1 << 20;

/// A memory cgroup with that limit, of version 2 or 1, and a child cgroup without a limit.
struct Cgroup {
    limited: PathBuf,
    below: PathBuf,
}

impl Cgroup {
    /// `None`, and a line that gives the reason, if none can be created.
    fn new(name: &str) -> Option<Self> {
        Self::make(name)
            .inspect_err(|why| println!("left out, no memory cgroup can be made here: {why}"))
            .ok()
    }

    fn make(name: &str) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        // Without swap: memory beyond the limit would be moved there.
        let (root, limits) = if controllers.split_whitespace().any(|it| it == "memory") {
            (root.to_owned(), [("memory.max", LIMIT), ("memory.swap.max", 0)])
        } else {
            let names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            (root.join("memory"), names.map(|it| (it, LIMIT)))
        };
        let limited = root.join(format!("ringfence-test-{}-{name}", process::id()));
        let below = limited.join("below");
        let made = Self { limited, below };
        for directory in [&made.limited, &made.below] {
            fs::create_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let [(limit, bytes), (swap, of_swap)] = limits;
        fs::write(made.limited.join(limit), bytes.to_string())
            .map_err(|error| format!("{limit}: {error}"))?;
        // This file does not exist on a system without swap.
        let _ = fs::write(made.limited.join(swap), of_swap.to_string());
        Ok(made)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name of ASCII")
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may remain in the cgroup for a moment after its parent has waited for it.
        let end = Instant::now() + TIME_LIMIT;
        for directory in [&self.below, &self.limited] {
            while fs::remove_dir(directory).is_err() && directory.exists() && Instant::now() < end {
                thread::yield_now();
            }
        }
    }
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "large ring" => as_large_ring(&address, &arguments[1]),
        "many rings" => as_many_rings(&address, &arguments[1]),
        "bystander" => bystander(&address),
        other => panic!("no such role: {other}"),
    }
}

/// From here on the memory of this process is charged to the cgroup.
fn enter(cgroup: &str) {
    fs::write(Path::new(cgroup).join("cgroup.procs"), process::id().to_string()).unwrap();
}

fn agent(capacity: u64) -> Options {
    small().capacity(capacity).max_message_size(MESSAGE as u64)
}

fn as_large_ring(address: &Address, cgroup: &str) {
    enter(cgroup);
    let mut channel = connect(address, &agent(RING)).unwrap();
    channel.sender().send(&message(0, MESSAGE)).unwrap();
    match connect(address, &agent(TOO_MUCH)) {
        Ok(_) => report("connected"),
        Err(error) => report(error.code()),
    }
    // Its existing channel continues to work.
    channel.sender().send(&message(1, MESSAGE)).unwrap();
    channel.close();
}

fn as_many_rings(address: &Address, cgroup: &str) {
    enter(cgroup);
    let mut channels = Vec::new();
    for number in 0..TOO_MANY {
        match connect(address, &agent(RING)) {
            Ok(mut channel) => {
                // The message goes into memory that is already reserved, so this allocates nothing.
                channel.sender().send(&message(number, MESSAGE)).unwrap();
                channels.push(channel);
            }
            Err(error) => {
                report(channels.len().to_string());
                report(error.code());
                channels.into_iter().for_each(Channel::close);
                return;
            }
        }
    }
    report("connected");
}

/// Another process of the same service.
fn bystander(address: &Address) {
    let mut channel = connect(address, &small()).unwrap();
    report("met");
    let mut room = [0; 64];
    while let Some(length) = channel.receiver().receive(&mut room).unwrap() {
        channel.sender().send(&room[..length]).unwrap();
    }
}

fn check_echo(channel: &mut Channel) {
    channel.sender().send(b"there and back").unwrap();
    let mut room = [0; 64];
    let length = channel.receiver().receive(&mut room).unwrap().unwrap();
    assert_eq!(&room[..length], b"there and back");
}

fn service() -> (Listener, Address, Option<tempfile::TempDir>) {
    let (address, keep) = fresh_address(false);
    let options = small().max_message_size(MESSAGE as u64);
    (listen(&address, &options).unwrap(), address, keep)
}

/// Counts the descriptors of this process, and the shared objects of ringfence that it has mapped.
fn resources() -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("memfd:ringfence"));
    (fs::read_dir("/proc/self/fd").unwrap().count(), mapped.count())
}

/// Waits until there are no more than before: resources are released a moment after an end.
fn wait_until_released(before: (usize, usize)) {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let (descriptors, mappings) = resources();
        if descriptors <= before.0 && mappings <= before.1 {
            return;
        }
        assert!(
            Instant::now() < end,
            "{descriptors} descriptors and {mappings} mappings are left, where there were {before:?}"
        );
        thread::yield_now();
    }
}

/// Reads everything that a peer had sent, and its end.
fn read_to_the_end(channel: &mut Channel) -> (Vec<Vec<u8>>, CloseReason) {
    let mut messages = Vec::new();
    let end = Instant::now() + TIME_LIMIT;
    while let Some(message) = channel.receiver().receive_vec_until(end).unwrap() {
        messages.push(message);
    }
    (messages, channel.receiver().close_reason().expect("an end"))
}

#[test]
fn ring_larger_than_the_cgroup_is_an_error() {
    let Some(cgroup) = Cgroup::new("ring") else { return };
    expect_no_space_in(&cgroup.limited);
}

#[test]
fn ring_larger_than_a_parent_cgroup_is_an_error() {
    let Some(cgroup) = Cgroup::new("above") else {
        return;
    };
    expect_no_space_in(&cgroup.below);
}

fn expect_no_space_in(cgroup: &Path) {
    let (listener, address, _keep) = service();
    let bystander_actor = Actor::start("bystander", &[&address.to_string()]);
    let mut bystander = accepted(&listener);
    bystander_actor.expect("met");
    let before = resources();

    let actor = Actor::start("large ring", &[&address.to_string(), text(cgroup)]);
    let mut channel = accepted(&listener);
    assert_eq!(actor.next_line_or_end().as_deref(), Some("NO_SPACE"));
    assert_eq!(actor.signal(), None);
    // Its existing channel continues to work.
    let (messages, reason) = read_to_the_end(&mut channel);
    assert!(messages == [0, 1].map(|number| message(number, MESSAGE)));
    assert_eq!(reason, CloseReason::Closed);
    drop(channel);
    wait_until_released(before);
    check_echo(&mut bystander);
    bystander.close();
    bystander_actor.finish();
}

#[test]
fn rings_that_fill_the_cgroup_fail_or_kill_the_client() {
    let Some(cgroup) = Cgroup::new("rings") else {
        return;
    };
    let (listener, address, _keep) = service();
    let bystander_actor = Actor::start("bystander", &[&address.to_string()]);
    let mut bystander = accepted(&listener);
    bystander_actor.expect("met");
    let before = resources();

    let actor = Actor::start("many rings", &[&address.to_string(), text(&cgroup.below)]);
    let mut channels = Vec::new();
    let reason = if let Some(count) = actor.next_line_or_end() {
        assert_eq!(actor.next_line_or_end().as_deref(), Some("NO_SPACE"));
        assert_eq!(actor.signal(), None);
        channels.extend((0..count.parse().unwrap()).map(|_| accepted(&listener)));
        CloseReason::Closed
    } else {
        // The kernel had less memory left than it reported a moment before. The running handshake fails, well
        // before its deadline.
        assert_eq!(actor.signal(), Some(libc::SIGKILL));
        let refused = loop {
            match listener.accept_until(Instant::now() + TIME_LIMIT).unwrap() {
                Arrival::Accepted(channel) => channels.push(channel),
                Arrival::Refused(refused) => break refused.error,
                other => panic!("{other:?}"),
            }
        };
        assert!(
            ["PEER_LOST", "PEER_REFUSED"].contains(&refused.code()),
            "{refused}"
        );
        CloseReason::Lost
    };
    assert!(!channels.is_empty() && channels.len() < TOO_MANY);
    // Reading the memory that the peer had reserved raises no signal, whatever has happened to the cgroup. The channels may arrive in
    // another order than they were made.
    let count = channels.len();
    let mut missing: Vec<_> = (0..count).map(|number| message(number, MESSAGE)).collect();
    let mut received = 0;
    for mut channel in channels {
        let (messages, end) = read_to_the_end(&mut channel);
        assert_eq!(end, reason);
        assert!(messages.len() <= 1, "{} messages", messages.len());
        received += messages.len();
        missing.retain(|message| !messages.contains(message));
    }
    assert_eq!(received + missing.len(), count, "a message has other content");
    // The client may have been killed before it sent the message of its last channel.
    assert!(
        missing.is_empty() || reason == CloseReason::Lost && missing.len() == 1,
        "{} messages are missing",
        missing.len()
    );
    wait_until_released(before);
    check_echo(&mut bystander);
    assert_eq!(listener.size(), 1);
    bystander.close();
    bystander_actor.finish();
    listener.close(Channels::Close);
}
