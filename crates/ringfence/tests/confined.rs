//! A policy that requires the kernel to confine the peer: which peers pass, which are refused, and what the
//! refusal says.

mod support;

use std::{
    fs::{self, File},
    io::IoSlice,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
    sync::mpsc,
    thread,
    time::Instant,
};

use nix::{
    libc,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::{dup, geteuid, gettid},
};
use ringfence::{
    Channel, Check, Confinement, Error, LINE_VARIABLE, Namespace, Options, Outcome, ParentLine, Policy,
    connect, from_parent, listen, private_line,
};
use support::{
    Actor, TIME_LIMIT, address_in, forbid, fresh_address, refused, report, small, wait_for_host,
    wait_for_test,
};

const ALL: [Confinement; 5] = [
    Confinement::NoNewPrivs,
    Confinement::Seccomp,
    Confinement::NoCapabilities,
    Confinement::UserNamespace,
    Confinement::NetworkNamespace,
];

fn any() -> Policy {
    Policy::new().any_executable().namespace(Namespace::Any)
}

fn requires(confinements: &[Confinement]) -> Options {
    small().policy(any().confined(confinements.iter().copied()))
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    match role.as_str() {
        "child" => answer(any()),
        // The main thread of the process has no filter.
        "confines one thread" => {
            forbid(libc::SYS_reboot, None, libc::EPERM);
            answer(any());
        }
        // Enters the network namespace of its parent once the parent has checked it.
        "returns" => answer(any().authorize(|parent| {
            let path = format!("/proc/{}/ns/net", parent.pid);
            let (sender, entered) = mpsc::channel();
            thread::spawn(move || {
                let namespace = File::open(path).unwrap();
                // SAFETY: setns takes integers.
                let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                sender.send(result).unwrap();
                loop {
                    thread::park();
                }
            });
            Ok::<_, Error>(entered.recv() == Ok(0))
        })),
        "returns later" => {
            let channel = from_parent(&small().policy(any())).unwrap();
            wait_for_test();
            let namespace = File::open(format!("/proc/{}/ns/net", channel.peer().pid)).unwrap();
            // SAFETY: setns takes integers.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0);
            report("returned");
            wait_for_test();
        }
        "passes the line" => {
            let line: i32 = arguments[0].parse().unwrap();
            let bytes = [IoSlice::new(b"!")];
            let rights = [ControlMessage::ScmRights(&[line])];
            sendmsg::<()>(0, &bytes, &rights, MsgFlags::empty(), None).unwrap();
            report("passed");
        }
        "receives the line" => {
            let mut byte = [0];
            let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
            let mut space = nix::cmsg_space!([i32; 1]);
            let received = recvmsg::<()>(0, &mut bytes, Some(&mut space), MsgFlags::empty()).unwrap();
            let Some(ControlMessageOwned::ScmRights(line)) = received.cmsgs().unwrap().next() else {
                panic!("no descriptor");
            };
            // SAFETY: the kernel has just installed it for this process.
            let line = unsafe { OwnedFd::from_raw_fd(line[0]) };
            // SAFETY: no other thread reads the environment.
            unsafe { std::env::set_var(LINE_VARIABLE, line.as_raw_fd().to_string()) };
            std::mem::forget(line);
            answer(any());
        }
        // Its sandbox denies the calls that a filter of the network often denies.
        "shutdown denied" => {
            for call in [libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_shutdown] {
                forbid(call, None, libc::EPERM);
            }
            let (mut sender, mut receiver) = from_parent(&small().policy(any())).unwrap().split();
            let (tx, rx) = mpsc::channel();
            let waiting = thread::spawn(move || {
                tx.send(gettid()).unwrap();
                let mut bytes = [0; 64];
                loop {
                    match receiver.receive(&mut bytes) {
                        Ok(Some(length)) => report(String::from_utf8_lossy(&bytes[..length])),
                        other => return other.map(drop),
                    }
                }
            });
            let file = format!("/proc/self/task/{}/syscall", rx.recv().unwrap());
            sender.send(b"to the parent").unwrap();
            wait_for_test();
            let end = Instant::now() + TIME_LIMIT;
            while !fs::read_to_string(&file).is_ok_and(|call| {
                let number = call.split(' ').next().and_then(|number| number.parse().ok());
                number.is_some_and(|number| SLEEPS.contains(&number))
            }) {
                assert!(Instant::now() < end, "the thread does not sleep");
                thread::yield_now();
            }
            sender.close();
            report(waiting.join().unwrap().unwrap_err().code());
            wait_for_test();
        }
        "connect" => {
            let connected = connect(&address_in(&arguments), &small().policy(any()));
            report(connected.map_or_else(|error| error.to_string(), |_| "connected".into()));
        }
        other => unreachable!("{other}"),
    }
}

/// As the child: reports the outcome, and stays until the parent closes the channel.
fn answer(policy: Policy) {
    match from_parent(&small().policy(policy)) {
        Ok(channel) => {
            report("a channel");
            let _ = channel.split().1.receive(&mut [0; 64]);
        }
        Err(error) => report(error.to_string()),
    }
}

/// Starts a child by `unshare` with these flags, and under a filter if it is to be confined. `None` if this
/// user may not create such namespaces.
fn start(flags: &str, filtered: bool, role: &str) -> Option<(Actor, ParentLine)> {
    let own = std::env::current_exe().unwrap();
    let mut command = if flags.is_empty() {
        Command::new(own)
    } else {
        let may = Command::new("unshare").args([flags, "true"]).output();
        if !may.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this user may not create namespaces (unshare {flags})");
            return None;
        }
        let mut command = Command::new("unshare");
        command.arg(flags).arg(own);
        command
    };
    if filtered {
        let confine = || {
            forbid(libc::SYS_reboot, None, libc::EPERM);
            Ok(())
        };
        // SAFETY: between fork and exec it makes two system calls and allocates nothing.
        unsafe { command.pre_exec(confine) };
    }
    Some(Actor::spawn_command(command, role, &[]))
}

/// The system calls in which a thread sleeps on the line.
const SLEEPS: &[libc::c_long] = &[
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Wakeups arrive, and the end of the channel wakes the threads of both sides.
#[test]
fn child_without_shutdown_exchanges_messages_and_ends() {
    let (mut child, line) = start("", false, "shutdown denied").unwrap();
    let (mut sender, mut receiver) = line.channel(&requires(&[])).unwrap().split();
    let mut bytes = [0; 64];
    let length = receiver.receive(&mut bytes).unwrap().unwrap();
    assert_eq!(&bytes[..length], b"to the parent");
    for text in ["one", "two"] {
        sender.send(text.as_bytes()).unwrap();
        child.expect(text);
    }
    child.proceed();
    child.expect("CLOSED");
    // The child still lives, and holds no end of the line.
    assert!(matches!(
        receiver.receive(&mut bytes),
        Ok(None) | Err(Error::PeerLost(_))
    ));
    child.proceed();
    child.finish();
}

fn refusal(result: ringfence::Result<Channel>) -> (Confinement, String, String) {
    let error = result.expect_err("a refusal");
    let refusal = error.refusal().unwrap_or_else(|| panic!("no refusal: {error}"));
    let Check::Confined(confinement) = refusal.check else {
        panic!("another check: {error}");
    };
    assert!(!refusal.by_peer && refusal.identity.is_some(), "{error}");
    (confinement, refusal.found.clone(), error.to_string())
}

#[test]
fn confined_child_passes_every_check_at_every_step() {
    let Some((child, line)) = start("-Urn", true, "child") else {
        return;
    };
    let mut channel = line.channel(&requires(&ALL)).unwrap();
    child.expect("a channel");
    let found = |channel: &Channel, step: &str, confinement: Confinement| {
        let mut evidence = channel.evidence().iter();
        let one = evidence.find(|one| one.step == step && one.check == confinement.as_str());
        let one = one.unwrap_or_else(|| panic!("{step}: no {confinement}"));
        assert_eq!(one.outcome, Outcome::Passed);
        assert!(!one.wanted.is_empty() && !one.found.is_empty());
        one.found.clone()
    };
    channel.verify().unwrap();
    for step in ["executable", "final", "verify"] {
        for confinement in ALL {
            found(&channel, step, confinement);
        }
        let capabilities = found(&channel, step, Confinement::NoCapabilities);
        assert!(
            capabilities.contains("in a user namespace below"),
            "{capabilities}"
        );
    }
}

#[test]
fn unconfined_child_is_refused_by_the_failed_check() {
    for (confinement, advice) in [
        (Confinement::NoNewPrivs, "--no-new-privs"),
        (Confinement::Seccomp, "bwrap --seccomp"),
        (Confinement::NoCapabilities, "--cap-drop ALL"),
        (Confinement::UserNamespace, "--unshare-user"),
        (Confinement::NetworkNamespace, "--unshare-net"),
    ] {
        if confinement == Confinement::NoCapabilities && !geteuid().is_root() {
            continue;
        }
        let (child, line) = start("", false, "child").unwrap();
        let (check, _, sentence) = refusal(line.channel(&requires(&[confinement])));
        assert_eq!(check, confinement);
        assert!(sentence.contains(advice), "{sentence}");
        assert!(
            sentence.contains(&format!("requires {confinement} ")),
            "{sentence}"
        );
        let reply = child.next_line();
        assert!(reply.contains(confinement.as_str()), "{reply}");
    }
}

#[test]
fn partly_confined_child_is_refused() {
    let (_child, line) = start("", true, "child").unwrap();
    let wanted = [
        Confinement::NoNewPrivs,
        Confinement::Seccomp,
        Confinement::UserNamespace,
    ];
    let (check, found, _) = refusal(line.channel(&requires(&wanted)));
    assert_eq!(check, Confinement::UserNamespace);
    assert!(found.starts_with("this process's own"), "{found}");
}

#[test]
fn child_with_an_unconfined_thread_is_refused() {
    for confinement in [Confinement::NoNewPrivs, Confinement::Seccomp] {
        let (child, line) = start("", false, "confines one thread").unwrap();
        let (check, found, _) = refusal(line.channel(&requires(&[confinement])));
        assert_eq!(check, confinement);
        assert!(found.contains(&format!("(thread {})", child.pid())), "{found}");
    }
}

#[test]
fn capabilities_in_a_child_namespace_do_not_count() {
    let Some((child, line)) = start("-Ur", false, "child") else {
        return;
    };
    let channel = line.channel(&requires(&[Confinement::NoCapabilities])).unwrap();
    child.expect("a channel");
    let mut evidence = channel.evidence().iter();
    let found = &evidence
        .find(|one| one.check == "confined.noCapabilities")
        .unwrap()
        .found;
    assert!(
        found.starts_with("CapEff 0000") && !found.starts_with("CapEff 0000000000000000"),
        "{found}"
    );
}

/// Only a process with capabilities over the parent's network namespace can return to it.
#[test]
fn leaving_the_network_namespace_fails_the_last_check() {
    if !geteuid().is_root() {
        eprintln!("skipped: it takes root to enter a network namespace");
        return;
    }
    let wanted = [Confinement::NetworkNamespace];
    let Some((child, line)) = start("-n", false, "returns") else {
        return;
    };
    let (check, found, _) = refusal(line.channel(&requires(&wanted)));
    assert_eq!(check, Confinement::NetworkNamespace);
    assert!(found.starts_with("this process's own"), "{found}");
    drop(child);

    let (mut child, line) = start("-n", false, "returns later").unwrap();
    let mut channel = line.channel(&requires(&wanted)).unwrap();
    channel.verify().unwrap();
    child.proceed();
    child.expect("returned");
    let error = channel.verify().unwrap_err();
    assert_eq!(
        error.refusal().unwrap().check,
        Check::Confined(Confinement::NetworkNamespace)
    );
}

#[test]
fn unconfined_holder_of_a_confined_line_is_refused() {
    let (here, there) = UnixStream::pair().unwrap();
    let (line, child_end) = private_line().unwrap();
    let inherited = dup(&child_end).unwrap();
    let number = inherited.as_raw_fd();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let confine = move || {
        nix::fcntl::fcntl(
            inherited.as_fd(),
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )?;
        forbid(libc::SYS_reboot, None, libc::EPERM);
        Ok(())
    };
    // SAFETY: between fork and exec it makes three system calls and allocates nothing.
    unsafe { command.pre_exec(confine) };
    let role = "passes the line";
    let confined = Actor::run_with_input(command, there.into(), role, &[&number.to_string()]);
    drop(child_end);
    let unconfined = Command::new(std::env::current_exe().unwrap());
    let unconfined = Actor::run_with_input(unconfined, here.into(), "receives the line", &[]);
    confined.expect("passed");
    let (check, ..) = refusal(line.channel(&requires(&[Confinement::NoNewPrivs, Confinement::Seccomp])));
    assert_eq!(check, Confinement::NoNewPrivs);
    let reply = unconfined.next_line();
    assert!(reply.contains("confined.noNewPrivs"), "{reply}");
}

#[test]
fn service_refuses_and_counts_an_unconfined_client() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &requires(&[Confinement::Seccomp])).unwrap();
    wait_for_host(&address);
    let client = Actor::start("connect", &[&address.to_string()]);
    let reply = client.next_line();
    assert!(reply.contains("confined.seccomp"), "{reply}");
    let error = refused(&listener).error;
    assert_eq!(
        error.refusal().unwrap().check,
        Check::Confined(Confinement::Seccomp)
    );
    assert_eq!(listener.stats().refused.get("confined.seccomp"), Some(&1));
}
