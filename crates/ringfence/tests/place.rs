//! The rendezvous of two processes: which of them gets an address, and which files it leaves.

mod support;

use std::{
    os::unix::{fs::MetadataExt, net::UnixListener},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::{Mode, umask},
    unistd::geteuid,
};
use ringfence::{
    Address, CancelToken, Channel, Channels, Error, Options, Policy, Role, connect, join, listen,
};
use support::{
    Actor, OTHER_UID, OtherUsers, TIME_LIMIT, address_in, fresh_address, join_later, report, small,
    wait_for_host, wait_for_test, wire,
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = || address_in(&arguments);
    match role.as_str() {
        "racer" => as_racer(&arguments),
        "churn" => as_churn(&arguments),
        "join" => match join(&address(), &small()) {
            Ok(channel) => {
                report(channel.role().to_string());
                wait_for_test();
                drop(channel);
            }
            Err(error) => report(format!("{} {error}", error.code())),
        },
        // As another user, with a policy that accepts root as its partner.
        "stranger" => match join(
            &address(),
            &small().policy(Policy::new().any_executable().uids([0])),
        ) {
            Ok(channel) => {
                report(format!("{} of {}", channel.role(), channel.peer().uid));
                wait_for_test();
            }
            Err(error) => {
                let refusal = error.refusal();
                let by_peer = refusal.is_some_and(|refusal| refusal.by_peer);
                let check = refusal.map_or("", |refusal| refusal.check.as_str());
                report(format!("{} by peer: {by_peer} {check}", error.code()));
            }
        },
        "masked" => as_masked(&arguments),
        "drops connections" => {
            let listener = wire::listen(&arguments[0]);
            report("listening");
            for stream in listener.incoming() {
                drop(stream);
            }
        }
        "agent" => match connect(&address(), &small()) {
            Ok(_) => report("in"),
            Err(error) => report(error.to_string()),
        },
        // Takes a relative path, changes the directory, and closes.
        "wanderer" => as_wanderer(&arguments),
        // Hangs up on the first client, is full for longer than a handshake may take, hangs up on a few more,
        // and leaves.
        "flaky host" => as_flaky_host(&arguments),
        // Hangs up in the middle of each handshake.
        "exits mid handshake" => {
            wire::host(&arguments[0], "OFFER", || {
                report("leaving");
                std::process::exit(0);
            });
        }
        other => unreachable!("{other}"),
    }
}

fn as_racer(arguments: &[String]) {
    for _ in 0..RACES {
        wait_for_test();
        let channel = match join(&address_in(arguments), &small()) {
            Ok(channel) => channel,
            Err(error) => {
                report(error.to_string());
                return;
            }
        };
        report(channel.role().to_string());
        report(exchange_ids(channel).to_string());
    }
}

fn as_churn(arguments: &[String]) {
    let cancel_token = CancelToken::new().unwrap();
    let canceller = cancel_token.clone();
    thread::spawn(move || {
        wait_for_test();
        canceller.cancel();
    });
    let options = small().wait(true).cancel_token(cancel_token);
    loop {
        let channel = match join(&address_in(arguments), &options) {
            Ok(channel) => channel,
            // This call or the host was cancelled. The test notices a process that ends too early.
            Err(Error::Aborted | Error::PeerLost(_)) => return,
            Err(error) => panic!("{error}"),
        };
        let peer = channel.peer().pid;
        // Cancelled between its READY and ours, the peer has left. Here too, the test notices one that left
        // early.
        let Some(answer) = try_exchange_ids(channel) else {
            return;
        };
        assert_eq!(answer, peer, "the peer that answers is the one that was checked");
        report("met");
    }
}

fn as_masked(arguments: &[String]) {
    umask(Mode::from_bits_truncate(0o077));
    let mode = u32::from_str_radix(&arguments[1], 8).unwrap();
    let options = small().mode(mode);
    let options = match arguments.get(2) {
        Some(group) => options.group(group.parse().unwrap()),
        None => options,
    };
    drop(join(&address_in(arguments), &options).unwrap());
}

fn as_wanderer(arguments: &[String]) {
    let [from, to, call] = arguments else {
        unreachable!()
    };
    let address: Address = "socket".parse().unwrap();
    std::env::set_current_dir(from).unwrap();
    let cancel_token = CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone());
    match call.as_str() {
        "listen" => {
            let listener = listen(&address, &options).unwrap();
            assert_eq!(listener.address(), &address);
            report("bound");
            wait_for_test();
            std::env::set_current_dir(to).unwrap();
            listener.close(Channels::Close);
        }
        "join" => {
            let joining = join_later(&address, &options);
            wait_for_host(&Address::path(std::path::Path::new(from).join("socket")).unwrap());
            report("bound");
            wait_for_test();
            std::env::set_current_dir(to).unwrap();
            cancel_token.cancel();
            assert!(matches!(joining.join().unwrap(), Err(Error::Aborted)));
        }
        other => unreachable!("{other}"),
    }
    report("closed");
}

fn as_flaky_host(arguments: &[String]) {
    let allowed = Duration::from_millis(arguments[1].parse().unwrap());
    let listener = wire::listen(&arguments[0]);
    report("listening");
    drop(listener.accept().unwrap());
    let first = Instant::now();
    while first.elapsed() < 2 * allowed {
        let (stream, _) = listener.accept().unwrap();
        // REFUSE: two processes share the address already.
        wire::send(&stream, &wire::good(4, &[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }
    (0..7).for_each(|_| drop(listener.accept().unwrap()));
}

/// Sends the peer this process's id, and receives the peer's. Both have received the other's id once both
/// directions have ended. The channel is closed then.
fn exchange_ids(channel: Channel) -> i32 {
    try_exchange_ids(channel).expect("the peer's id")
}

/// As `exchange_ids`, but `None` if the peer's process has exited before it sent its id.
fn try_exchange_ids(channel: Channel) -> Option<i32> {
    let (mut sender, mut receiver) = channel.split();
    match sender.send(&std::process::id().to_le_bytes()) {
        Err(Error::PeerLost(_)) => {}
        sent => sent.unwrap(),
    }
    sender.end();
    let mut peer = [0; 4];
    let length = match receiver.receive(&mut peer) {
        Err(Error::PeerLost(_)) => return None,
        found => found
            .unwrap()
            .expect("a peer that was not killed has sent its id"),
    };
    assert_eq!((length, receiver.receive(&mut [0; 4]).unwrap()), (4, None));
    Some(i32::from_le_bytes(peer))
}

const RACES: u32 = 1000;

#[test]
fn connection_churn_leaves_no_process_waiting() {
    const MEETINGS: u32 = 150;
    for named in [true, false] {
        let (address, keep) = fresh_address(named);
        let start = |_| Actor::start("churn", &[&address.to_string()]);
        let mut churners: Vec<_> = (0..5).map(start).collect();
        for one in &churners {
            (0..MEETINGS).for_each(|_| one.expect("met"));
        }
        churners.iter_mut().for_each(Actor::proceed);
        churners.into_iter().for_each(Actor::finish);
        if let Some(directory) = keep {
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn racing_joins_elect_one_host_and_one_guest() {
    let (address, keep) = fresh_address(true);
    let path = address.as_path().unwrap();
    let lock = PathBuf::from(format!("{}.lock", path.display()));
    let mut racers = [
        Actor::start("racer", &[&address.to_string()]),
        Actor::start("racer", &[&address.to_string()]),
    ];
    for round in 0..RACES {
        // The leftovers of a killed host: a socket at which no process answers, and mostly its lock file,
        // which no process holds.
        if round % 4 != 3 {
            drop(UnixListener::bind(path).expect("a socket"));
        }
        if round % 4 < 2 {
            std::fs::write(&lock, "").unwrap();
        }
        racers.iter_mut().for_each(Actor::proceed);
        let mut roles = racers.each_ref().map(Actor::next_line);
        roles.sort_unstable();
        assert_eq!(roles, ["guest", "host"], "round {round}");
        let pids = [racers[1].pid(), racers[0].pid()].map(|pid| pid.to_string());
        assert_eq!(
            racers.each_ref().map(Actor::next_line),
            pids,
            "each other, in round {round}"
        );
    }
    racers.into_iter().for_each(Actor::finish);
    assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
}

#[test]
fn waiting_join_gets_the_address_once_free() {
    let (address, _keep) = fresh_address(true);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let mut first = Actor::start("join", &[&address.to_string()]);
    first.expect("guest");
    let channel = host.join().unwrap().unwrap();
    // Two waiting processes become a pair once the first two have gone.
    let second = Actor::start("join", &[&address.to_string()]);
    assert!(second.next_line().starts_with("ADDRESS_OCCUPIED"));
    let patient = join_later(&address, &small().wait(true));
    first.proceed();
    first.finish();
    channel.close();
    wait_for_host(&address);
    let third = Actor::start("join", &[&address.to_string()]);
    third.expect("guest");
    let channel = patient.join().unwrap().expect("a channel");
    assert_eq!((channel.role(), channel.peer().pid), (Role::Host, third.pid()));
}

/// A host that is preempted between taking its lock and binding its socket, or between removing the socket
/// and releasing the lock, is one that is starting or leaving.
#[test]
fn join_waits_for_a_lock_without_a_socket() {
    let (address, _keep) = fresh_address(true);
    let lock = std::fs::File::create(format!("{address}.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let joining = join_later(&address, &small());
    // The first checks take 0.16 s together; an earlier version made no others.
    thread::sleep(Duration::from_millis(500));
    assert!(!joining.is_finished());
    drop(lock);
    wait_for_host(&address);
    let guest = Actor::start("join", &[&address.to_string()]);
    guest.expect("guest");
    assert_eq!(joining.join().unwrap().expect("a channel").role(), Role::Host);
}

/// As long as there is no socket, the address belongs to another process, and `wait` waits for it.
#[test]
fn held_lock_without_a_socket_occupies_the_address() {
    let (address, _keep) = fresh_address(true);
    let lock = std::fs::File::create(format!("{address}.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let patient = join_later(&address, &small().wait(true));
    let impatient = Actor::start("join", &[&address.to_string()]);
    let reply = impatient.next_line();
    assert!(reply.starts_with("ADDRESS_OCCUPIED"), "{reply}");
    assert!(!patient.is_finished());
    drop(lock);
    wait_for_host(&address);
    let guest = Actor::start("join", &[&address.to_string()]);
    guest.expect("guest");
    assert_eq!(patient.join().unwrap().expect("a channel").role(), Role::Host);
}

#[test]
fn socket_mode_and_group_ignore_the_umask() {
    let group = geteuid().is_root().then_some(OTHER_UID);
    for mode in [0o600, 0o660, 0o666, 0o644] {
        let (address, _keep) = fresh_address(true);
        let text = (address.to_string(), format!("{mode:o}"), OTHER_UID.to_string());
        let mut arguments = vec![text.0.as_str(), text.1.as_str()];
        arguments.extend(group.map(|_| text.2.as_str()));
        let _host = Actor::start("masked", &arguments);
        wait_for_host(&address);
        let path = address.as_path().unwrap();
        let socket = std::fs::symlink_metadata(path).unwrap();
        assert_eq!(socket.mode() & 0o7777, mode, "{mode:o}");
        if let Some(group) = group {
            assert_eq!(socket.gid(), group);
        }
        let lock = std::fs::symlink_metadata(format!("{}.lock", path.display())).unwrap();
        assert_eq!(lock.mode() & 0o7777, 0o600, "the lock is its owner's");
    }
}

#[test]
fn obstructing_files_are_reported_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), "precious").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink(at("target"), at("linked.lock")).unwrap();
    std::fs::create_dir(at("locked.lock")).unwrap();
    for (name, reason) in [
        ("file", "not a socket"),
        ("folder", "not a socket"),
        ("linked", "symbolic link"),
        ("locked", "lock file"),
        ("missing/socket", "directory"),
        ("file/socket", "directory"),
    ] {
        let error = join(&Address::path(at(name)).unwrap(), &small()).unwrap_err();
        assert_eq!(error.code(), "ADDRESS_INVALID", "{name}: {error}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(!at("target").exists(), "no link was followed");
    let mut left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["file", "folder", "linked.lock", "locked.lock"]);
}

fn names_in(directory: &std::path::Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn relative_path_survives_a_change_of_directory() {
    for call in ["listen", "join"] {
        let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [from, to] = directories.each_ref().map(tempfile::TempDir::path);
        let arguments = [from, to].map(|path| path.to_str().unwrap());
        let mut wanderer = Actor::start("wanderer", &[arguments[0], arguments[1], call]);
        wanderer.expect("bound");
        // Another instance listens at the path to which the first one changes.
        let other = Address::path(to.join("socket")).unwrap();
        let other_listener = listen(&other, &small()).unwrap();
        wanderer.proceed();
        wanderer.expect("closed");
        assert_eq!(names_in(from), [""; 0], "{call}");
        assert_eq!(names_in(to), ["socket", "socket.lock"], "{call}");
        // No other process can take the address of the other instance.
        assert!(matches!(
            listen(&other, &small()),
            Err(Error::AddressOccupied { .. })
        ));
        drop(other_listener);
        assert_eq!(names_in(to), [""; 0], "{call}");
    }
}

#[test]
fn close_leaves_replaced_files_and_directories_alone() {
    for renamed in [true, false] {
        let parent = tempfile::tempdir().unwrap();
        let [here, moved] = ["here", "moved"].map(|name| parent.path().join(name));
        std::fs::create_dir(&here).unwrap();
        let address = Address::path(here.join("socket")).unwrap();
        let first = listen(&address, &small()).unwrap();
        if renamed {
            std::fs::rename(&here, &moved).unwrap();
            std::fs::create_dir(&here).unwrap();
        } else {
            for name in names_in(&here) {
                std::fs::remove_file(here.join(name)).unwrap();
            }
        }
        let second = listen(&address, &small()).unwrap();
        drop(first);
        if renamed {
            assert_eq!(names_in(&moved), [""; 0]);
        }
        assert_eq!(names_in(&here), ["socket", "socket.lock"]);
        assert!(matches!(
            listen(&address, &small()),
            Err(Error::AddressOccupied { .. })
        ));
        let agent = Actor::start("agent", &[&address.to_string()]);
        agent.expect("in");
        drop(second);
        assert_eq!(names_in(&here), [""; 0]);
    }
}

/// A child that a thread starts inherits the process's listening sockets until it executes its program.
#[test]
fn closed_name_is_free_while_children_start() {
    let (address, _directory) = fresh_address(false);
    let done = AtomicBool::new(false);
    let start_programs = || {
        while !done.load(Ordering::Relaxed) {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
    };
    let bind_and_close = || {
        let listener = match listen(&address, &small()) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        listener.close(Channels::Keep);
        drop(listener);
        connect(&address, &small()).unwrap_err()
    };
    let found = thread::scope(|scope| {
        let starting = [scope.spawn(start_programs), scope.spawn(start_programs)];
        let found = (0..200)
            .map(|_| bind_and_close())
            .find(|error| error.code() != "PEER_LOST");
        done.store(true, Ordering::Relaxed);
        for thread in starting {
            thread.join().unwrap();
        }
        found
    });
    assert!(found.is_none(), "{found:?}");
}

#[test]
fn directory_path_is_an_invalid_address() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["", ".", "..", "there/"] {
        let error = listen(
            &format!("{}/{path}", directory.path().display()).parse().unwrap(),
            &small(),
        )
        .unwrap_err();
        assert_eq!(error.code(), "ADDRESS_INVALID", "{path:?}: {error}");
    }
    assert_eq!(names_in(directory.path()), [""; 0]);
}

#[test]
fn file_that_replaced_the_socket_is_not_removed() {
    let (address, _keep) = fresh_address(true);
    let cancel_token = CancelToken::new().unwrap();
    let host = join_later(&address, &small().cancel_token(cancel_token.clone()));
    wait_for_host(&address);
    let path = address.as_path().unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "another program's").unwrap();
    cancel_token.cancel();
    assert!(matches!(host.join().unwrap(), Err(Error::Aborted)));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "another program's");
}

#[test]
fn join_fails_at_deadline_if_host_drops_connections() {
    let (address, _keep) = fresh_address(false);
    let dropping = Actor::start("drops connections", &[&address.to_string()]);
    dropping.expect("listening");
    let mut allowed = Duration::from_millis(100);
    loop {
        let started = Instant::now();
        let error = join(&address, &small().handshake_timeout(allowed)).unwrap_err();
        assert!(started.elapsed() >= allowed);
        match error.code() {
            "PEER_LOST" => break,
            // The host did not run for as long as that.
            "HANDSHAKE_TIMEOUT" => {
                assert!(allowed < TIME_LIMIT, "{error}");
                allowed *= 2;
            }
            _ => panic!("{error}"),
        }
    }
}

#[test]
fn earlier_disconnect_does_not_fail_a_waiting_join() {
    let (address, _keep) = fresh_address(false);
    // Long enough for a handshake on a busy machine.
    let flaky = Actor::start("flaky host", &[&address.to_string(), "1000"]);
    flaky.expect("listening");
    let options = small().handshake_timeout(Duration::from_secs(1)).wait(true);
    let patient = join_later(&address, &options);
    flaky.finish();
    // The waiting process has the address now, and waits for a partner.
    wait_for_host(&address);
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("guest");
    let channel = patient.join().unwrap().expect("a channel");
    assert_eq!((channel.role(), channel.peer().pid), (Role::Host, partner.pid()));
}

#[test]
fn waiting_join_retries_if_host_exits_mid_handshake() {
    let (address, _keep) = fresh_address(false);
    let flaky = Actor::start("exits mid handshake", &[&address.to_string()]);
    wait_for_host(&address);
    let patient = join_later(&address, &small().wait(true));
    flaky.expect("leaving");
    // Its socket is closed with it, so that the host found below is the waiting process.
    flaky.finish();
    wait_for_host(&address);
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("guest");
    let channel = patient.join().unwrap().expect("a channel");
    assert_eq!(channel.peer().pid, partner.pid());
}

/// Any executable, since the other users run a copy.
fn options_for(uids: &[u32]) -> Options {
    small()
        .mode(0o666)
        .policy(Policy::new().any_executable().uids(uids))
}

#[test]
fn host_refuses_another_user_and_keeps_waiting() {
    let Some(others) = OtherUsers::new() else { return };
    for address in [others.address(), fresh_address(false).0] {
        let host = join_later(&address, &options_for(&[0]));
        wait_for_host(&address);
        for _ in 0..3 {
            let stranger = others.start("stranger", &address);
            stranger.expect("PEER_REFUSED by peer: true uid");
            stranger.finish();
        }
        let partner = Actor::start("join", &[&address.to_string()]);
        partner.expect("guest");
        assert_eq!(host.join().unwrap().expect("a channel").peer().pid, partner.pid());
    }
}

#[test]
fn guest_refuses_a_host_of_another_user() {
    let Some(others) = OtherUsers::new() else { return };
    let (address, _keep) = fresh_address(false);
    let _squatter = others.start("stranger", &address);
    wait_for_host(&address);
    let error = join(&address, &small()).unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (refusal.check.as_str(), refusal.by_peer),
        ("uid", false),
        "{error}"
    );
    assert!(refusal.found.contains(&OTHER_UID.to_string()), "{error}");
}

#[test]
fn two_users_pair_if_both_policies_allow_it() {
    let Some(others) = OtherUsers::new() else { return };
    let address = others.address();
    let host = join_later(&address, &options_for(&[OTHER_UID]));
    wait_for_host(&address);
    let stranger = others.start("stranger", &address);
    stranger.expect("guest of 0");
    let channel = host.join().unwrap().expect("a channel");
    assert_eq!((channel.peer().uid, channel.peer().gid), (OTHER_UID, OTHER_UID));
}

#[test]
fn missing_permissions_are_reported_as_invalid_address() {
    let Some(others) = OtherUsers::new() else { return };
    let address = others.address();
    // No process is there, and the stranger may not be the first.
    let stranger = others.start("stranger", &address);
    stranger.expect("ADDRESS_INVALID by peer: false ");
    stranger.finish();
    // A process is there, whose socket is for its own user.
    let cancel_token = CancelToken::new().unwrap();
    let host = join_later(&address, &small().cancel_token(cancel_token.clone()));
    wait_for_host(&address);
    let stranger = others.start("stranger", &address);
    stranger.expect("ADDRESS_INVALID by peer: false ");
    stranger.finish();
    cancel_token.cancel();
    assert!(host.join().unwrap().is_err());
}
