//! Which peers are admitted, which are refused and why, and which are found to have changed.

mod support;

use std::{
    error::Error as _,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::{prctl, stat::stat},
    unistd::{Uid, geteuid, setgroups, setresuid},
};
use ringfence::{
    Address, CancelToken, Channel, CloseReason, Decision, Digest, Error, Options, Policy, Program, connect,
    join, listen, member,
};
use support::{Actor, TIME_LIMIT, fresh_address, join_later, report, small, wait_for_host, wait_for_test};

/// Users who own nothing.
const OTHER_UID: u32 = 65001;
const ANOTHER: u32 = 65002;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    // The uid that it expects of its partner, if that is not its own.
    let policy = match arguments.get(1).filter(|text| !text.is_empty()) {
        Some(uid) => Policy::new().any_executable().uids([uid.parse::<u32>().unwrap()]),
        None => Policy::new().any_executable(),
    };
    let policy = match role.as_str() {
        "same executable" | "verify" => policy.programs([Program::same()]),
        "authorizes" => policy.authorize(|_| {
            report(format!("{} objects", objects()));
            Ok::<_, Error>(true)
        }),
        _ => policy,
    };
    if role == "hardened" {
        prctl::set_dumpable(false).unwrap();
    }
    let mut channel = match join(&address, &small().policy(policy)) {
        Ok(channel) => channel,
        Err(error) => {
            report(format!("{} {error}", error.code()));
            return;
        }
    };
    report("joined");
    match role.as_str() {
        "change user" => {
            wait_for_test();
            let uid = Uid::from_raw(OTHER_UID);
            setresuid(uid, uid, uid).unwrap();
            report("changed");
        }
        "leave groups" => {
            wait_for_test();
            setgroups(&[]).unwrap();
            report("changed");
        }
        "harden" => {
            wait_for_test();
            prctl::set_dumpable(false).unwrap();
            report("changed");
        }
        "verify" => {
            wait_for_test();
            report(match channel.verify() {
                Ok(peer) => format!("verified {}", peer.pid),
                Err(error) => error.to_string(),
            });
        }
        "execute" => {
            wait_for_test();
            let error = Command::new("sleep").arg("1000").exec();
            panic!("{error}");
        }
        _ => {}
    }
    let (_sender, mut receiver) = channel.split();
    // Until the other side ends, in any way.
    let _ = receiver.receive(&mut [0; 64]);
    report("ended");
}

/// The other side's policy only requires the same uid.
fn host_of(actor: Actor, address: &Address, options: &Options) -> (Actor, ringfence::Result<Channel>) {
    wait_for_host(address);
    let joined = join(address, options);
    (actor, joined)
}

/// This side joins a host in a role, as a guest.
fn meet(role: &str, options: &Options) -> (Actor, ringfence::Result<Channel>) {
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start(role, &[&address.to_string()]);
    host_of(actor, &address, options)
}

fn with(policy: Policy) -> Options {
    small().policy(policy)
}

/// Returns the refusal of this side: the check, the wanted value and the found value.
fn refused(result: ringfence::Result<Channel>) -> (String, String, String) {
    let error = result.unwrap_err();
    let refusal = error.refusal().unwrap_or_else(|| panic!("no refusal: {error}"));
    assert!(!refusal.by_peer, "{error}");
    assert!(refusal.identity.is_some(), "{error}");
    assert!(error.to_string().contains(&refusal.found), "{error}");
    (
        refusal.check.to_string(),
        refusal.wanted.clone(),
        refusal.found.clone(),
    )
}

fn as_user(uid: u32, executable: &Path) -> Command {
    let id = uid.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .arg(executable);
    command
}

fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: it takes root to be another user");
    }
    root
}

/// Makes a directory that every user may read, with a copy of this executable in it.
fn copied() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("copy");
    support::copy_of_this_executable(&copy);
    (directory, copy)
}

fn digest_of(path: &Path) -> Digest {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].parse().unwrap()
}

#[test]
fn executable_is_pinned_by_its_digest() {
    let own = std::env::current_exe().unwrap();
    let (sha256, wrong) = (digest_of(&own), Digest::from([7; 32]));
    for program in [
        Program::content(sha256),
        Program::same().with_content(sha256),
        Program::path(&own).with_content(sha256),
    ] {
        let policy = Policy::new().programs([Program::path("/nowhere"), program]);
        let (_actor, channel) = meet("stay", &with(policy));
        let channel = channel.unwrap();
        let found = channel.peer().executable.as_ref().unwrap();
        assert_eq!(found.sha256, Some(sha256));
        let evidence = channel.evidence().iter().rfind(|one| one.check == "executable");
        assert!(evidence.unwrap().found.contains(&sha256.to_string()));
    }
    for program in [
        Program::content(wrong),
        Program::same().with_content(wrong),
        Program::path("/bin/sh").with_content(sha256),
    ] {
        let (_actor, channel) = meet("stay", &with(Policy::new().programs([program])));
        let (check, wanted, found) = refused(channel);
        assert_eq!(check, "executable");
        assert!(
            wanted.contains("SHA-256") && found.contains(&*own.to_string_lossy()),
            "{wanted} / {found}"
        );
    }
}

#[test]
fn unreadable_executable_is_refused_with_advice() {
    // Root can read every executable, so both sides are users without capabilities.
    let (_directory, copy) = copied();
    let start = |role: &str, address: &Address, uid: u32, of: u32| {
        let command = if geteuid().is_root() {
            as_user(uid, &copy)
        } else {
            Command::new(&copy)
        };
        Actor::run(command, role, &[&address.to_string(), &of.to_string()])
    };
    let (me, other) = if geteuid().is_root() {
        (OTHER_UID, ANOTHER)
    } else {
        (geteuid().as_raw(), geteuid().as_raw())
    };
    // A process of the same user that is not dumpable.
    let (address, _keep) = fresh_address(false);
    let _host = start("hardened", &address, me, me);
    wait_for_host(&address);
    let answer = start("same executable", &address, me, me).next_line();
    for words in [
        "PEER_REFUSED",
        "the policy requires executable",
        "hardened (not dumpable)",
        "ask for uid, gid, cgroup or label",
    ] {
        assert!(answer.contains(words), "{answer}");
    }
    // A peer that hardens itself later keeps its identity.
    let (address, _keep) = fresh_address(false);
    let mut host = start("harden", &address, me, me);
    wait_for_host(&address);
    let mut guest = start("verify", &address, me, me);
    host.expect("joined");
    guest.expect("joined");
    host.proceed();
    host.expect("changed");
    guest.proceed();
    guest.expect(&format!("verified {}", host.pid()));
    if !root() {
        return;
    }
    let (address, _keep) = fresh_address(false);
    let host = start("stay", &address, me, other);
    wait_for_host(&address);
    let answer = start("same executable", &address, other, me).next_line();
    for words in [
        "PEER_REFUSED",
        "another user's (uid 65001)",
        "CAP_SYS_PTRACE",
        "ask for uid, gid, cgroup or label",
    ] {
        assert!(answer.contains(words), "{answer}");
    }
    // A policy that only checks visible properties admits it.
    start("stay", &address, other, me).expect("joined");
    host.expect("joined");
}

#[test]
fn another_user_learns_only_the_failed_check() {
    if !root() {
        return;
    }
    let (_directory, copy) = copied();
    let (address, _keep) = fresh_address(false);
    let cancel_token = CancelToken::new().unwrap();
    let host = join_later(
        &address,
        &with(Policy::new().any_executable().uids([4711])).cancel_token(cancel_token.clone()),
    );
    wait_for_host(&address);
    let stranger = Actor::run(as_user(OTHER_UID, &copy), "stay", &[&address.to_string(), "0"]);
    stranger.expect(
        "PEER_REFUSED the peer refused this process: its policy checks uid; the details are hidden from other users",
    );
    cancel_token.cancel();
    assert!(matches!(host.join().unwrap(), Err(Error::Aborted)));
}

#[test]
fn supplementary_group_counts_while_it_is_held() {
    if !root() {
        return;
    }
    let (address, _keep) = fresh_address(false);
    let mut command = Command::new("setpriv");
    command
        .arg("--groups=4711,4712")
        .arg(std::env::current_exe().unwrap());
    let actor = Actor::run(command, "leave groups", &[&address.to_string()]);
    let (mut actor, channel) = host_of(
        actor,
        &address,
        &with(Policy::new().any_executable().gids([1, 4712])),
    );
    let mut channel = channel.unwrap();
    assert_eq!(channel.peer().groups, Some(vec![4711, 4712]));
    actor.expect("joined");
    channel.verify().unwrap();
    actor.proceed();
    actor.expect("changed");
    let error = channel.verify().unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (refusal.check.as_str(), refusal.found.as_str()),
        ("gid", "0 with []")
    );
    actor.expect("ended");
}

/// A cgroup of this test. It must be empty when this is dropped.
struct Cgroup {
    path: PathBuf,
    name: String,
}

impl Cgroup {
    fn new(what: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 ") && line.split(' ').nth(3) == Some("/"))?;
        let name = format!("ringfence-test-{}-{what}", std::process::id());
        let path = Path::new(mount.split(' ').nth(4)?).join(&name);
        fs::create_dir(&path).ok()?;
        let name = format!("/{name}");
        Some(Self { path, name })
    }

    fn add_process(&self, pid: i32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is busy for a moment after the last process in it was killed.
        while fs::remove_dir(&self.path).is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY)) {
            std::thread::yield_now();
        }
    }
}

#[test]
fn cgroup_is_compared_by_number_and_rechecked() {
    let (Some(one), Some(two)) = (Cgroup::new("one"), Cgroup::new("two")) else {
        eprintln!("skipped: no cgroup filesystem (version 2) that this user may write");
        return;
    };
    let enter = |policy: Policy| {
        let (address, _keep) = fresh_address(false);
        let actor = Actor::start("stay", &[&address.to_string()]);
        one.add_process(actor.pid());
        host_of(actor, &address, &with(policy))
    };
    for wrong in [
        two.name.clone(),
        format!("{}/below", one.name),
        "/".into(),
        one.name[1..].into(),
    ] {
        let (_actor, channel) = enter(Policy::new().any_executable().cgroup(&wrong));
        let (check, wanted, found) = refused(channel);
        assert_eq!(check, "cgroup");
        assert!(
            wanted.starts_with(&wrong) && found.starts_with(&one.name),
            "{wanted} / {found}"
        );
    }
    let (actor, channel) = enter(Policy::new().any_executable().cgroup(&one.name));
    let mut channel = channel.unwrap();
    assert_eq!(channel.peer().cgroup.as_deref(), Some(&*one.name));
    let evidence = channel
        .evidence()
        .iter()
        .find(|one| one.check == "cgroup")
        .unwrap();
    if ringfence::doctor()
        .findings
        .iter()
        .any(|one| one.name == "pidfd-info" && one.status == ringfence::Status::Good)
    {
        let number = stat(&one.path).unwrap().st_ino;
        assert_eq!(
            evidence.found,
            format!("{}, number {number} by its pidfd", one.name)
        );
    }
    channel.verify().unwrap();
    two.add_process(actor.pid());
    let error = channel.verify().unwrap_err();
    assert_eq!(
        error.refusal().map(|refusal| refusal.check.as_str()),
        Some("cgroup"),
        "{error}"
    );
    actor.expect("joined");
    actor.expect("ended");
}

#[test]
fn unknown_label_is_refused() {
    let (_actor, channel) = meet(
        "stay",
        &with(Policy::new().any_executable().label("no process has this")),
    );
    let (check, wanted, found) = refused(channel);
    assert_eq!(
        (check.as_str(), wanted.as_str()),
        ("label", "no process has this")
    );
    assert!(!found.is_empty());
}

#[test]
fn authorize_runs_last_and_its_failures_refuse() {
    // As the guest. The callback accepts, and is called once, with the peer's identity.
    let asked = Arc::new(Mutex::new(Vec::new()));
    let policy = Policy::new().any_executable().authorize({
        let asked = Arc::clone(&asked);
        move |identity| {
            asked.lock().unwrap().push(identity.pid);
            Ok::<_, Error>(true)
        }
    });
    let (actor, channel) = meet("stay", &with(policy));
    let mut channel = channel.unwrap();
    channel.verify().unwrap();
    assert_eq!(*asked.lock().unwrap(), [actor.pid()]);
    let steps: Vec<_> = channel.evidence().iter().map(|one| one.check).collect();
    let first = |check| steps.iter().position(|found| *found == check).unwrap();
    assert!(first("executable") < first("authorize"), "{steps:?}");
    // The line was checked before, and nothing was shared yet.
    assert!(first("line") < first("authorize"), "{steps:?}");
    assert!(first("authorize") < first("sent"), "{steps:?}");
    drop(channel);

    let no = Policy::new()
        .any_executable()
        .authorize(|_| Ok::<_, Error>(false));
    let (_actor, channel) = meet("stay", &with(no));
    assert_eq!(
        refused(channel),
        ("authorize".into(), "true".into(), "false".into())
    );

    let error = Policy::new()
        .any_executable()
        .authorize(|_| Err("the directory is down"));
    let (_actor, channel) = meet("stay", &with(error));
    let error = channel.unwrap_err();
    assert_eq!(error.refusal().unwrap().found, "an error: the directory is down");
    assert_eq!(error.source().unwrap().to_string(), "the directory is down");

    let panics = Policy::new()
        .any_executable()
        .authorize(|_| -> Result<bool, Error> { panic!("as this test wants it") });
    let (_actor, channel) = meet("stay", &with(panics));
    assert_eq!(refused(channel).2, "a panic: as this test wants it");

    // The callback is not called for a peer that fails an earlier check.
    let asked = Arc::new(AtomicBool::new(false));
    let policy = Policy::new().executables(["/bin/sh"]).authorize({
        let asked = Arc::clone(&asked);
        move |_| {
            asked.store(true, Ordering::Release);
            Ok::<_, Error>(true)
        }
    });
    let (_actor, channel) = meet("stay", &with(policy));
    assert_eq!(refused(channel).0, "executable");
    assert!(!asked.load(Ordering::Acquire));
}

/// The number of shared objects of this process.
fn objects() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("/memfd:ringfence"))
        .count()
}

#[test]
fn guest_has_no_shared_object_during_authorize() {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let guest = Actor::start("authorizes", &[&address.to_string()]);
    guest.expect("0 objects");
    guest.expect("joined");
    host.join().unwrap().unwrap();
}

#[test]
fn pending_decision_delays_only_its_own_peer() {
    let pending: Arc<Mutex<Vec<Decision>>> = Arc::default();
    let number = AtomicU32::new(0);
    let policy = Policy::new().any_executable().authorize_later({
        let pending = Arc::clone(&pending);
        move |_, decision| match number.fetch_add(1, Ordering::Relaxed) {
            0 => pending.lock().unwrap().push(decision),
            _ => decision.allow(),
        }
    });
    // The host: the next guest is admitted while the first decision is still pending.
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &with(policy));
    wait_for_host(&address);
    let first = Actor::start("stay", &[&address.to_string()]);
    while pending.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let second = Actor::start("stay", &[&address.to_string()]);
    let channel = host.join().unwrap().unwrap();
    assert_eq!(channel.peer().pid, second.pid());
    assert!(first.next_line().starts_with("ADDRESS_OCCUPIED"));
    let late = pending.lock().unwrap().pop().unwrap();
    assert!(!late.is_awaited());
    late.allow();
    drop(channel);

    // The guest: it waits until its deadline.
    let policy = Policy::new().any_executable().authorize_later({
        let pending = Arc::clone(&pending);
        move |_, decision| pending.lock().unwrap().push(decision)
    });
    let mut allowed = Duration::from_millis(100);
    loop {
        let (_actor, channel) = meet("stay", &with(policy.clone()).handshake_timeout(allowed));
        match channel.unwrap_err() {
            Error::HandshakeTimeout { step, after } if after == allowed => {
                if step == "the answer of `authorize`" {
                    break;
                }
                // A busy machine has not got that far.
                assert!(allowed < TIME_LIMIT, "the last step: {step}");
                allowed *= 2;
            }
            error => panic!("{error}"),
        }
    }

    // A peer that disconnects in the meantime is not waited for.
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("stay", &[&address.to_string()]);
    wait_for_host(&address);
    pending.lock().unwrap().clear();
    let joining = join_later(&address, &with(policy).handshake_timeout(TIME_LIMIT * 10));
    while pending.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    actor.kill();
    assert_eq!(joining.join().unwrap().unwrap_err().code(), "PEER_LOST");
    assert!(!pending.lock().unwrap()[0].is_awaited());
}

#[test]
fn verify_checks_the_current_peer() {
    let (mut actor, channel) = meet("stay", &with(Policy::new()));
    let mut channel = channel.unwrap();
    let before = channel.evidence().len();
    for _ in 0..3 {
        assert_eq!(channel.verify().unwrap().pid, actor.pid());
    }
    let checks = &channel.evidence()[before..];
    assert_eq!(
        checks.iter().map(|one| one.check).collect::<Vec<_>>(),
        ["uid", "namespace", "gid", "cgroup", "label", "executable"],
        "those of the last verification"
    );
    assert!(checks.iter().all(|one| one.step == "verify"));
    let verifier = channel.verifier();
    let elsewhere = std::thread::spawn(move || verifier.verify().unwrap().identity.pid);
    assert_eq!(elsewhere.join().unwrap(), actor.pid());

    let verifier = channel.verifier();
    actor.kill();
    assert_eq!(channel.verify().unwrap_err().code(), "PEER_LOST");
    drop(channel);
    assert_eq!(verifier.verify().unwrap_err().code(), "CLOSED");
}

#[test]
fn replaced_executable_fails_verification() {
    let (directory, copy) = copied();
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start_from(copy.clone(), "stay", &[&address.to_string()]);
    let (actor, channel) = host_of(actor, &address, &with(Policy::new().executables([&copy])));
    let mut channel = channel.unwrap();
    channel.verify().unwrap();
    let other = directory.path().join("other");
    fs::copy(&copy, &other).unwrap();
    fs::rename(&other, &copy).unwrap();
    let error = channel.verify().unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.check.as_str(), "executable");
    assert!(refusal.found.contains("(deleted)"), "{error}");
    assert_eq!(refusal.identity.as_ref().map(|peer| peer.pid), Some(actor.pid()));
    // It is cut off, on both sides.
    assert_eq!(channel.verify().unwrap_err().code(), "CLOSED");
    let (mut sender, mut receiver) = channel.split();
    assert_eq!(sender.try_send(b"no").unwrap_err().code(), "CLOSED");
    assert_eq!(receiver.try_receive(&mut [0; 8]).unwrap_err().code(), "CLOSED");
    assert_eq!(receiver.close_reason(), Some(CloseReason::Refused));
    actor.expect("joined");
    actor.expect("ended");
}

#[test]
fn peer_that_changes_its_user_is_cut_off() {
    if !root() {
        return;
    }
    let (mut actor, channel) = meet(
        "change user",
        &with(Policy::new().any_executable().uids([0, OTHER_UID])),
    );
    let mut channel = channel.unwrap();
    actor.expect("joined");
    actor.proceed();
    actor.expect("changed");
    let error = channel.verify().unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (
            refusal.check.as_str(),
            refusal.wanted.as_str(),
            refusal.found.as_str()
        ),
        ("uid", "0, as first attested", "65001 now")
    );
    actor.expect("ended");
}

#[test]
fn peer_that_calls_exec_is_cut_off() {
    let options = with(Policy::new());
    let (host, channel) = meet("execute", &options);
    is_cut_off(host, channel.unwrap());
    let (address, _keep) = fresh_address(false);
    let joined = join_later(&address, &options);
    wait_for_host(&address);
    let guest = Actor::start("execute", &[&address.to_string()]);
    is_cut_off(guest, joined.join().unwrap().unwrap());
}

/// The peer is cut off when it executes another program.
fn is_cut_off(mut actor: Actor, mut channel: Channel) {
    let verifier = channel.verifier();
    channel.sender().send(b"before exec").unwrap();
    actor.expect("joined");
    actor.proceed();
    let (_sender, mut receiver) = channel.split();
    assert!(matches!(receiver.receive(&mut [0; 64]), Err(Error::PeerLost(_))));
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    // The process lives, but is no longer our peer.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(actor.pid()), None).unwrap();
    assert_eq!(verifier.verify().unwrap_err().code(), "PEER_LOST");
}

#[test]
fn relative_executable_path_is_rejected() {
    let (address, _keep) = fresh_address(false);
    let options = |policy: Policy| small().policy(policy);
    for policy in [
        Policy::new().executables(["bin/agent"]),
        Policy::new().executables(["/bin/true", "agent"]),
        Policy::new().programs([Program::path("./agent")]),
        Policy::new().executables([""]),
    ] {
        for error in [
            join(&address, &options(policy.clone())).map(drop).unwrap_err(),
            listen(&address, &options(policy.clone())).map(drop).unwrap_err(),
            connect(&address, &options(policy.clone())).map(drop).unwrap_err(),
            member(&address, &options(policy.clone())).map(drop).unwrap_err(),
        ] {
            assert_eq!(error.code(), "INVALID_ARGUMENT", "{error}");
        }
    }
}
