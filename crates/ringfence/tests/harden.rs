//! Processes that restrict access by other processes of their user, during the handshake and otherwise.

mod support;

use ringfence::{Address, Options, Policy, harden, is_hardened, join};
use support::{Actor, OtherUsers, fresh_address, report, small, wait_for_host, wait_for_test};

/// An unprivileged user: root may inspect every process, so its own processes prove nothing.
const USER: u32 = 54_325;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let mut options = small();
    for argument in &arguments[1..] {
        options = match argument.as_str() {
            "option" => options.harden(true),
            "before" => {
                harden().unwrap();
                options
            }
            "uid only" => options.policy(Policy::new().any_executable()),
            _ => unreachable!("{argument}"),
        };
    }
    assert_eq!(role, "join");
    // A guest that is refused may try again, as the same process.
    loop {
        join_and_report(&address, &options);
        wait_for_test();
    }
}

fn join_and_report(address: &Address, options: &Options) {
    match join(address, options) {
        Ok(channel) => {
            report(format!("{} {}", channel.role(), is_hardened()));
            for check in channel.evidence() {
                if check.check.ends_with("hardened") || check.step == "final" && check.check == "executable" {
                    report(format!("{}: {} [{}]", check.check, check.found, check.wanted));
                }
            }
            report("evidence ends");
            wait_for_test();
        }
        Err(error) => {
            let refusal = error.refusal();
            report(format!(
                "{} {} {error}",
                error.code(),
                refusal.map_or("", |refusal| refusal.check.as_str())
            ));
        }
    }
}

/// The joining processes, which are not root. If root runs the tests, they belong to another user, who runs
/// an accessible copy.
struct Joiners(Option<OtherUsers>);

impl Joiners {
    fn new() -> Self {
        Self(OtherUsers::new())
    }

    fn start(&self, address: &Address, how: &[&str]) -> Actor {
        let address = address.to_string();
        let arguments = [&[&*address], how].concat();
        match &self.0 {
            Some(others) => others.start_as(USER, "join", &arguments),
            None => Actor::start("join", &arguments),
        }
    }
}

fn evidence(actor: &Actor) -> Vec<String> {
    std::iter::repeat_with(|| actor.next_line())
        .take_while(|line| line != "evidence ends")
        .collect()
}

#[test]
fn both_sides_harden_after_checking_each_other() {
    let (address, _keep) = fresh_address(false);
    let joiners = Joiners::new();
    let host = joiners.start(&address, &["option"]);
    wait_for_host(&address);
    let guest = joiners.start(&address, &["option"]);
    for (actor, role) in [(&host, "host"), (&guest, "guest")] {
        actor.expect(&format!("{role} true"));
        let lines = evidence(actor);
        assert_eq!(
            lines[0],
            "hardened: not dumpable, no core [this process, after its inspection and before it makes its object]"
        );
        // The default policy held, also at the last check.
        let last = lines.last().unwrap();
        assert!(
            lines.iter().any(|line| line.starts_with("executable: ")),
            "{lines:?}"
        );
        assert!(
            last.contains("the peer reports it, which proves nothing"),
            "{last}"
        );
        assert!(last.contains("not dumpable, as the owner of its files"), "{last}");
        assert!(last.contains("its executable is unchanged"), "{last}");
    }
}

#[test]
fn hardening_of_one_side_is_independent() {
    let (address, _keep) = fresh_address(false);
    let joiners = Joiners::new();
    let host = joiners.start(&address, &["option"]);
    wait_for_host(&address);
    let guest = joiners.start(&address, &[]);
    host.expect("host true");
    let lines = evidence(&host);
    let last = lines.last().unwrap();
    assert!(last.contains("the peer does not report it; dumpable"), "{last}");
    guest.expect("guest false");
    assert_eq!(
        evidence(&guest)[0],
        "hardened: this process: dumpable [not asked for]"
    );
}

#[test]
fn already_hardened_guest_fails_an_executable_policy() {
    let (address, _keep) = fresh_address(false);
    let joiners = Joiners::new();
    let mut host = joiners.start(&address, &[]);
    wait_for_host(&address);
    let guest = joiners.start(&address, &["before"]);
    let answer = guest.next_line();
    assert!(
        answer.starts_with("PEER_REFUSED executable ")
            && answer.contains("ask for uid, gid, cgroup or label instead"),
        "{answer}"
    );
    drop(guest);
    // The host keeps waiting, for a guest that it can inspect.
    let guest = joiners.start(&address, &[]);
    guest.expect("guest false");
    host.expect("host false");
    host.proceed();
}

#[test]
fn already_hardened_sides_meet_under_a_uid_policy() {
    let (address, _keep) = fresh_address(false);
    let joiners = Joiners::new();
    let host = joiners.start(&address, &["before", "uid only"]);
    wait_for_host(&address);
    let guest = joiners.start(&address, &["before", "uid only"]);
    for (actor, role) in [(&host, "host"), (&guest, "guest")] {
        actor.expect(&format!("{role} true"));
        let lines = evidence(actor);
        assert_eq!(lines[0], "hardened: this process: not dumpable [not asked for]");
        assert!(
            lines
                .last()
                .unwrap()
                .contains("; not dumpable, as the owner of its files in /proc shows ["),
            "{lines:?}"
        );
    }
}
