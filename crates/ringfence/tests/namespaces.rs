//! Peers in other namespaces, and peers of which /proc does not show everything.

mod support;

use std::{path::Path, process::Command};

use ringfence::{Address, Channel, Error, Namespace, Options, Policy, Program, join};
use support::{
    Actor, OTHER_UID, OtherUsers, fresh_address, join_later, report, small, wait_for_host, wait_for_test,
};

/// Another user than [`OTHER_UID`].
const ANOTHER: u32 = 65002;
/// An additional group of one of the two users.
const GROUP: u32 = 64711;

/// Parses a policy such as `uid=1 gid=2 cgroup=/a any executable`. Each part is optional.
fn policy(words: &str) -> Policy {
    words
        .split_whitespace()
        .fold(Policy::new().any_executable(), |policy, word| {
            match word.split_once('=').unwrap_or((word, "")) {
                ("uid", uid) => policy.uids([uid.parse::<u32>().unwrap()]),
                ("gid", gid) => policy.gids([gid.parse::<u32>().unwrap()]),
                ("cgroup", name) => policy.cgroup(name),
                ("any", _) => policy.namespace(Namespace::Any),
                ("executable", _) => policy.programs([Program::same()]),
                other => unreachable!("{other:?}"),
            }
        })
}

fn options(words: &str) -> Options {
    small().policy(policy(words))
}

/// Formats a refusal in one line: the check, the side that failed it, and the found value.
fn shown(error: &Error) -> String {
    match error.refusal() {
        Some(refusal) => {
            let whose = if refusal.by_peer { "the peer's" } else { "own" };
            format!("refused {} {whose}: {}", refusal.check, refusal.found)
        }
        None => format!("{} {error}", error.code()),
    }
}

/// Returns the evidence on the namespaces, one line per check.
fn evidence(channel: &Channel) -> Vec<(String, String)> {
    channel
        .evidence()
        .iter()
        .filter(|evidence| evidence.check == "namespace")
        .map(|evidence| (evidence.wanted.clone(), evidence.found.clone()))
        .collect()
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let words = arguments.get(1).map_or("", String::as_str);
    if role == "wait" {
        report("there");
        wait_for_test();
    }
    // Also joins with another process, which it starts in its own namespaces.
    let _other = (role == "pair").then(|| Actor::start("join", &[&address.to_string(), words]));
    let mut channel = match join(&address, &options(words)) {
        Ok(channel) => channel,
        Err(error) => {
            report(shown(&error));
            return;
        }
    };
    report(format!("joined {}", channel.peer().pid));
    report(match channel.verify() {
        Ok(peer) => format!("verified {}", peer.pid),
        Err(error) => shown(&error),
    });
    let (mut sender, mut receiver) = channel.split();
    let mut bytes = [0; 64];
    while let Ok(Some(length)) = receiver.receive(&mut bytes) {
        sender.send(&bytes[..length]).unwrap();
    }
}

/// Returns a command that runs this executable in new namespaces. `None` if this user may not create any.
fn in_namespaces(flags: &str) -> Option<Command> {
    let may = Command::new("unshare").args([flags, "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may not make namespaces (unshare {flags})");
        return None;
    }
    let mut command = Command::new("unshare");
    command.arg(flags);
    if flags.contains('p') {
        // Processes started there end with the process that has started them.
        command.arg("--kill-child");
    }
    command.arg(std::env::current_exe().unwrap());
    Some(command)
}

/// An honest partner connects to a waiting host, and gets the slot.
fn partner_is_accepted(address: &Address, host: std::thread::JoinHandle<ringfence::Result<Channel>>) {
    let partner = Actor::start("join", &[&address.to_string()]);
    let channel = host.join().unwrap().expect("a channel");
    assert_eq!(channel.peer().pid, partner.pid());
    let namespace_evidence = evidence(&channel);
    assert!(namespace_evidence.len() >= 2, "{namespace_evidence:?}");
    for (wanted, found) in namespace_evidence {
        assert!(wanted.contains("pid and user namespace"), "{wanted}");
        assert!(found.contains("the same pid namespace"), "{found}");
        assert!(found.contains("the same user namespace"), "{found}");
    }
}

#[test]
fn host_refuses_a_guest_in_a_child_pid_namespace() {
    let Some(command) = in_namespaces("-Urpf") else {
        return;
    };
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &Options::new().capacity(4096));
    wait_for_host(&address);
    // It would admit the host, and so receives the host's refusal.
    let guest = Actor::run(command, "join", &[&address.to_string(), "any"]);
    let reply = guest.next_line();
    assert!(reply.starts_with("refused namespace the peer's: "), "{reply}");
    assert!(reply.contains("below"), "{reply}");
    guest.finish();
    partner_is_accepted(&address, host);
}

#[test]
fn guest_refuses_a_host_outside_its_pid_namespace() {
    let Some(command) = in_namespaces("-Urpf") else {
        return;
    };
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &options("any"));
    wait_for_host(&address);
    let guest = Actor::run(command, "join", &[&address.to_string(), ""]);
    let reply = guest.next_line();
    assert!(reply.starts_with("refused namespace own: "), "{reply}");
    assert!(reply.contains("pid 0"), "{reply}");
    guest.finish();
    partner_is_accepted(&address, {
        // If the host above accepted any namespace, the evidence would show it.
        let other = Actor::start("join", &[&address.to_string()]);
        other.expect(&format!("joined {}", std::process::id()));
        drop(host.join().unwrap().unwrap());
        let host = join_later(&address, &small());
        wait_for_host(&address);
        host
    });
}

#[test]
fn guest_refuses_a_host_in_a_child_pid_namespace() {
    let Some(command) = in_namespaces("-Urpf") else {
        return;
    };
    let (address, _keep) = fresh_address(false);
    let host = Actor::run(command, "join", &[&address.to_string(), "any"]);
    wait_for_host(&address);
    let error = join(&address, &small()).unwrap_err();
    let reply = shown(&error);
    assert!(reply.starts_with("refused namespace own: "), "{reply}");
    drop(host);
}

#[test]
fn any_namespace_is_admitted_if_both_policies_allow() {
    // With the /proc of this namespace, which shows the host, and with a new one, which does not.
    for flags in ["-Urpf", "-Urpf --mount-proc"] {
        let mut words = flags.split(' ');
        let Some(mut command) = in_namespaces(words.next().unwrap()) else {
            return;
        };
        if let Some(more) = words.next() {
            command = Command::new("unshare");
            command
                .args(["-Urpf", more, "--kill-child"])
                .arg(std::env::current_exe().unwrap());
        }
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &options("any"));
        wait_for_host(&address);
        let guest = Actor::run(command, "join", &[&address.to_string(), "any"]);
        guest.expect("joined 0");
        guest.expect("verified 0");
        let mut channel = host.join().unwrap().unwrap();
        for (wanted, found) in evidence(&channel) {
            assert_eq!(wanted, "not asked for");
            assert!(found.contains("below"), "{found}");
        }
        channel.verify().unwrap();
        // The thread id that the guest names belongs to another thread here.
        let error = channel.tokens().send(1).unwrap_err();
        assert_eq!(error.code(), "UNSUPPORTED", "{error}");
        let (mut sender, mut receiver) = channel.split();
        sender.send(b"there and back").unwrap();
        let mut bytes = [0; 64];
        assert_eq!(receiver.receive(&mut bytes).unwrap(), Some(14));
        assert_eq!(&bytes[..14], b"there and back");
        drop((sender, receiver));
        guest.finish();
    }
}

/// There, /proc belongs to another pid namespace, in which these numbers belong to other processes.
#[test]
fn peers_are_found_despite_a_foreign_proc_mount() {
    let Some(command) = in_namespaces("-Urpf") else {
        return;
    };
    let (address, _keep) = fresh_address(false);
    let pair = Actor::run(command, "pair", &[&address.to_string(), "executable"]);
    let reply = pair.next_line();
    assert!(reply.starts_with("joined "), "{reply}");
    let reply = pair.next_line();
    assert!(reply.starts_with("verified "), "{reply}");
}

#[test]
fn host_refuses_a_guest_in_another_user_namespace() {
    let Some(command) = in_namespaces("-Ur") else {
        return;
    };
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let guest = Actor::run(command, "join", &[&address.to_string(), "any"]);
    let reply = guest.next_line();
    assert!(reply.starts_with("refused namespace the peer's: "), "{reply}");
    assert!(reply.contains("user namespace: another"), "{reply}");
    guest.finish();
    partner_is_accepted(&address, host);
}

#[test]
fn parent_refuses_a_child_in_another_user_namespace() {
    let Some(mut command) = in_namespaces("-Ur") else {
        return;
    };
    command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("RINGFENCE_CHILD", "1");
    let (mut child, line) = ringfence::spawn(command).unwrap();
    let error = line.channel(&small()).unwrap_err();
    let reply = shown(&error);
    assert!(reply.starts_with("refused namespace own: "), "{reply}");
    child.wait().unwrap();
}

/// The role that the test above starts.
#[test]
fn child() {
    if std::env::var_os("RINGFENCE_CHILD").is_some() {
        let _ = ringfence::from_parent(&small().policy(policy("any")));
    }
}

/// Starts `program` as an unprivileged user, in a new mount namespace, after root has run `before` there.
fn as_user_after(before: &str, uid: u32, groups: &str, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let groups = match groups {
        "" => "--clear-groups".to_owned(),
        groups => format!("--groups={groups}"),
    };
    command.args(["--mount", "--propagation=private", "sh", "-ec"]);
    command.arg(format!(
        "{before}\nexec setpriv --reuid {uid} --regid {uid} {groups} \"$0\" \"$@\""
    ));
    command.arg(program);
    command
}

/// Linux 5.8: hidepid applies to one mount. Before that it would apply to all.
fn hidepid_applies_per_mount() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let new = (numbers.next(), numbers.next()) >= (Some(6), Some(13));
    if !new {
        eprintln!("skipped: before Linux 6.13 a peer that /proc hides is refused for its uid");
    }
    new
}

/// Starts a host to which /proc shows nothing of its guest, which belongs to another user and has one more
/// group.
fn pair_with_hidden_guest(others: &OtherUsers, before: &str, host: &str) -> (Actor, Actor) {
    let (address, _keep) = fresh_address(false);
    let words = format!("uid={ANOTHER} {host}");
    let command = as_user_after(before, OTHER_UID, "", &others.program());
    let host = Actor::run(command, "join", &[&address.to_string(), &words]);
    wait_for_host(&address);
    let command = as_user_after(":", ANOTHER, &GROUP.to_string(), &others.program());
    let words = format!("uid={OTHER_UID}");
    let guest = Actor::run(command, "join", &[&address.to_string(), &words]);
    (host, guest)
}

const HIDING: [&str; 3] = ["hidepid=1", "hidepid=2", "hidepid=4"];

#[test]
fn peer_hidden_by_proc_is_admitted_by_known_properties() {
    let Some(others) = OtherUsers::new() else { return };
    if !hidepid_applies_per_mount() {
        return;
    }
    for hiding in HIDING {
        let before = format!("mount -t proc -o {hiding} proc /proc");
        for words in ["", &format!("gid={ANOTHER}")] {
            let (host, guest) = pair_with_hidden_guest(&others, &before, words);
            let reply = host.next_line();
            assert!(reply.starts_with("joined "), "{hiding} {words}: {reply}");
            let reply = host.next_line();
            assert!(reply.starts_with("verified "), "{hiding} {words}: {reply}");
            assert!(guest.next_line().starts_with("joined "));
        }
    }
}

#[test]
fn property_hidden_by_proc_is_refused_if_required() {
    let Some(others) = OtherUsers::new() else { return };
    if !hidepid_applies_per_mount() {
        return;
    }
    for hiding in HIDING {
        let before = format!("mount -t proc -o {hiding} proc /proc");
        // The guest has the group, and the kernel reported it at the connect. Whether it still has it cannot
        // be checked.
        for (words, check, why) in [
            (format!("gid={GROUP}"), "gid", "cannot be read in /proc"),
            ("executable".to_owned(), "executable", "hidepid"),
        ] {
            let (host, guest) = pair_with_hidden_guest(&others, &before, &words);
            let reply = guest.next_line();
            assert!(
                reply.starts_with(&format!("refused {check} the peer's")),
                "{hiding}: {reply}"
            );
            drop((host, guest));
            // As a guest, this side reports the reason itself.
            let (address, _keep) = fresh_address(false);
            let command = as_user_after(":", ANOTHER, &GROUP.to_string(), &others.program());
            let uid = format!("uid={OTHER_UID}");
            let host = Actor::run(command, "join", &[&address.to_string(), &uid]);
            wait_for_host(&address);
            let command = as_user_after(&before, OTHER_UID, "", &others.program());
            let words = format!("uid={ANOTHER} {words}");
            let guest = Actor::run(command, "join", &[&address.to_string(), &words]);
            let reply = guest.next_line();
            assert!(
                reply.starts_with(&format!("refused {check} own")),
                "{hiding}: {reply}"
            );
            assert!(reply.contains(why), "{hiding}: {reply}");
            drop(host);
        }
    }
}

#[test]
fn group_is_visible_without_hidepid() {
    let Some(others) = OtherUsers::new() else { return };
    let (host, guest) = pair_with_hidden_guest(&others, ":", &format!("gid={GROUP}"));
    assert!(host.next_line().starts_with("joined "));
    assert!(host.next_line().starts_with("verified "));
    assert!(guest.next_line().starts_with("joined "));
}

/// Compared by its name alone, a cgroup could be another one of the same name.
#[test]
fn cgroup_with_an_unknown_number_is_refused() {
    let Some(others) = OtherUsers::new() else { return };
    if !hidepid_applies_per_mount() {
        return;
    }
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let Some(name) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
        eprintln!("skipped: no cgroup of version 2");
        return;
    };
    let words = format!("cgroup={name}");
    let (host, _guest) = pair_with_hidden_guest(&others, ":", &words);
    let reply = host.next_line();
    assert!(reply.starts_with("joined "), "{reply}");
    // The shell executes the program, which then has the shell's process id.
    let before = "touch /dev/shm/ringfence-unreadable-$$
chmod 0 /dev/shm/ringfence-unreadable-$$
mount --bind /dev/shm/ringfence-unreadable-$$ /proc/$$/mountinfo
rm /dev/shm/ringfence-unreadable-$$";
    let (_host, guest) = pair_with_hidden_guest(&others, before, &words);
    let reply = guest.next_line();
    assert!(reply.starts_with("refused cgroup the peer's"), "{reply}");
}
