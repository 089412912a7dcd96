//! The meeting point of two processes: which of them may use an address, which one gets it, and what is left
//! of it.

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
    Actor, STRANGER, Strangers, address_in, fresh_address, join_later, say, small, wait_for_host,
    wait_for_test, wire,
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
        "crowd" => as_crowd(&arguments),
        "join" => match join(&address(), &small()) {
            Ok(channel) => {
                say(channel.role().to_string());
                wait_for_test();
                drop(channel);
            }
            Err(error) => say(format!("{} {error}", error.code())),
        },
        // As another user, with a policy that accepts root as its partner.
        "stranger" => match join(
            &address(),
            &small().policy(Policy::new().any_executable().uids([0])),
        ) {
            Ok(channel) => {
                say(format!("{} of {}", channel.role(), channel.peer().uid));
                wait_for_test();
            }
            Err(error) => {
                let refusal = error.refusal();
                let by_peer = refusal.is_some_and(|refusal| refusal.by_peer);
                let check = refusal.map_or("", |refusal| refusal.check.as_str());
                say(format!("{} by peer: {by_peer} {check}", error.code()));
            }
        },
        "masked" => as_masked(&arguments),
        "snub" => {
            let listener = wire::listen(&arguments[0]);
            say("listening");
            for stream in listener.incoming() {
                drop(stream);
            }
        }
        "agent" => match connect(&address(), &small()) {
            Ok(_) => say("in"),
            Err(error) => say(error.to_string()),
        },
        // Takes a relative path, changes the directory, and closes.
        "wanderer" => wander(&arguments),
        // Hangs up on the first client, is full for longer than a handshake may take, hangs up on a few more,
        // and leaves.
        "moody" => be_moody(&arguments),
        // Hangs up in the middle of each handshake.
        "moody in the middle" => {
            wire::host(&arguments[0], "OFFER", || {
                say("leaving");
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
                say(error.to_string());
                return;
            }
        };
        say(channel.role().to_string());
        say(greet(channel).to_string());
    }
}

fn as_crowd(arguments: &[String]) {
    let cancel_token = CancelToken::new().unwrap();
    let calls_off = cancel_token.clone();
    thread::spawn(move || {
        wait_for_test();
        calls_off.cancel();
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
        let Some(answer) = greet_or_miss(channel) else {
            return;
        };
        assert_eq!(answer, peer, "who answers is who was looked at");
        say("met");
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

fn wander(arguments: &[String]) {
    let [from, to, how] = arguments else {
        unreachable!()
    };
    let address: Address = "socket".parse().unwrap();
    std::env::set_current_dir(from).unwrap();
    let cancel_token = CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone());
    match how.as_str() {
        "listen" => {
            let listener = listen(&address, &options).unwrap();
            assert_eq!(listener.address(), &address);
            say("there");
            wait_for_test();
            std::env::set_current_dir(to).unwrap();
            listener.close(Channels::Close);
        }
        "join" => {
            let joining = join_later(&address, &options);
            wait_for_host(&Address::path(std::path::Path::new(from).join("socket")).unwrap());
            say("there");
            wait_for_test();
            std::env::set_current_dir(to).unwrap();
            cancel_token.cancel();
            assert!(matches!(joining.join().unwrap(), Err(Error::Aborted)));
        }
        other => unreachable!("{other}"),
    }
    say("gone");
}

fn be_moody(arguments: &[String]) {
    let allowed = Duration::from_millis(arguments[1].parse().unwrap());
    let listener = wire::listen(&arguments[0]);
    say("listening");
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
fn greet(channel: Channel) -> i32 {
    greet_or_miss(channel).expect("the peer's greeting")
}

/// As `greet`, but `None` if the peer's process has exited before it sent its id.
fn greet_or_miss(channel: Channel) -> Option<i32> {
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
fn in_a_crowd_that_comes_and_goes_none_is_left_standing() {
    const MEETINGS: u32 = 150;
    for named in [true, false] {
        let (address, keep) = fresh_address(named);
        let start = |_| Actor::start("crowd", &[&address.to_string()]);
        let mut crowd: Vec<_> = (0..5).map(start).collect();
        for one in &crowd {
            (0..MEETINGS).for_each(|_| one.expect("met"));
        }
        crowd.iter_mut().for_each(Actor::go_on);
        crowd.into_iter().for_each(Actor::finish);
        if let Some(directory) = keep {
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn of_two_who_race_for_a_place_one_is_the_host_and_the_other_its_guest_a_thousand_times() {
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
        racers.iter_mut().for_each(Actor::go_on);
        let mut roles = racers.each_ref().map(Actor::hear);
        roles.sort_unstable();
        assert_eq!(roles, ["guest", "host"], "round {round}");
        let pids = [racers[1].pid(), racers[0].pid()].map(|pid| pid.to_string());
        assert_eq!(
            racers.each_ref().map(Actor::hear),
            pids,
            "each other, in round {round}"
        );
    }
    racers.into_iter().for_each(Actor::finish);
    assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
}

#[test]
fn who_waits_gets_the_place_when_it_is_free() {
    let (address, _keep) = fresh_address(true);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let mut first = Actor::start("join", &[&address.to_string()]);
    first.expect("guest");
    let channel = host.join().unwrap().unwrap();
    // Two waiting processes become a pair once the first two have gone.
    let second = Actor::start("join", &[&address.to_string()]);
    assert!(second.hear().starts_with("ADDRESS_OCCUPIED"));
    let patient = join_later(&address, &small().wait(true));
    first.go_on();
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
fn a_lock_without_a_socket_is_waited_for() {
    let (address, _keep) = fresh_address(true);
    let lock = std::fs::File::create(format!("{address}.lock")).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let joining = join_later(&address, &small());
    // The first checks take 0.16 s together; an earlier version made no others.
    thread::sleep(Duration::from_millis(500));
    assert!(!joining.is_finished());
    drop(held);
    wait_for_host(&address);
    let guest = Actor::start("join", &[&address.to_string()]);
    guest.expect("guest");
    assert_eq!(joining.join().unwrap().expect("a channel").role(), Role::Host);
}

/// As long as there is no socket, the address belongs to another process, and `wait` waits for it.
#[test]
fn a_lock_that_stays_without_a_socket_is_another_s_address() {
    let (address, _keep) = fresh_address(true);
    let lock = std::fs::File::create(format!("{address}.lock")).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let patient = join_later(&address, &small().wait(true));
    let impatient = Actor::start("join", &[&address.to_string()]);
    let told = impatient.hear();
    assert!(told.starts_with("ADDRESS_OCCUPIED"), "{told}");
    assert!(!patient.is_finished());
    drop(held);
    wait_for_host(&address);
    let guest = Actor::start("join", &[&address.to_string()]);
    guest.expect("guest");
    assert_eq!(patient.join().unwrap().expect("a channel").role(), Role::Host);
}

#[test]
fn a_socket_has_the_mode_and_the_group_that_were_asked_for_whatever_the_umask() {
    let group = geteuid().is_root().then_some(STRANGER);
    for mode in [0o600, 0o660, 0o666, 0o644] {
        let (address, _keep) = fresh_address(true);
        let text = (address.to_string(), format!("{mode:o}"), STRANGER.to_string());
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
fn whatever_lies_in_the_way_is_named_and_left_as_it_is() {
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
fn a_relative_path_is_the_same_place_wherever_its_process_goes() {
    for how in ["listen", "join"] {
        let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [from, to] = directories.each_ref().map(tempfile::TempDir::path);
        let arguments = [from, to].map(|path| path.to_str().unwrap());
        let mut wanderer = Actor::start("wanderer", &[arguments[0], arguments[1], how]);
        wanderer.expect("there");
        // Another instance listens at the path to which the first one changes.
        let other = Address::path(to.join("socket")).unwrap();
        let living = listen(&other, &small()).unwrap();
        wanderer.go_on();
        wanderer.expect("gone");
        assert_eq!(names_in(from), [""; 0], "{how}");
        assert_eq!(names_in(to), ["socket", "socket.lock"], "{how}");
        // No other process can take the address of the living instance.
        assert!(matches!(
            listen(&other, &small()),
            Err(Error::AddressOccupied { .. })
        ));
        drop(living);
        assert_eq!(names_in(to), [""; 0], "{how}");
    }
}

#[test]
fn what_took_the_place_of_a_directory_or_of_files_that_were_removed_is_left_alone() {
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
fn a_name_that_is_let_go_of_while_programs_start_is_free_and_takes_no_calls() {
    let (address, _directory) = fresh_address(false);
    let over = AtomicBool::new(false);
    let start_programs = || {
        while !over.load(Ordering::Relaxed) {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
    };
    let come_and_go = || {
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
            .map(|_| come_and_go())
            .find(|error| error.code() != "PEER_LOST");
        over.store(true, Ordering::Relaxed);
        for thread in starting {
            thread.join().unwrap();
        }
        found
    });
    assert!(found.is_none(), "{found:?}");
}

#[test]
fn a_path_that_names_a_directory_is_no_address() {
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
fn a_file_that_took_the_sockets_place_is_not_removed_with_it() {
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
fn a_host_that_closes_each_connection_unanswered_is_given_up_at_the_deadline() {
    let (address, _keep) = fresh_address(false);
    let snub = Actor::start("snub", &[&address.to_string()]);
    snub.expect("listening");
    let allowed = Duration::from_millis(200);
    let started = Instant::now();
    let error = join(&address, &small().handshake_timeout(allowed)).unwrap_err();
    assert_eq!(error.code(), "PEER_LOST", "{error}");
    assert!(started.elapsed() >= allowed);
}

#[test]
fn a_hang_up_long_ago_is_forgotten_once_another_had_the_place() {
    let (address, _keep) = fresh_address(false);
    // Long enough for a handshake on a busy machine.
    let moody = Actor::start("moody", &[&address.to_string(), "1000"]);
    moody.expect("listening");
    let options = small().handshake_timeout(Duration::from_secs(1)).wait(true);
    let patient = join_later(&address, &options);
    moody.finish();
    // The waiting process has the address now, and waits for a partner.
    wait_for_host(&address);
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("guest");
    let channel = patient.join().unwrap().expect("a channel");
    assert_eq!((channel.role(), channel.peer().pid), (Role::Host, partner.pid()));
}

#[test]
fn who_waits_goes_on_when_its_host_ends_in_the_middle_of_a_handshake() {
    let (address, _keep) = fresh_address(false);
    let moody = Actor::start("moody in the middle", &[&address.to_string()]);
    wait_for_host(&address);
    let patient = join_later(&address, &small().wait(true));
    moody.expect("leaving");
    // Its socket is closed with it, so that the host found below is the waiting process.
    moody.finish();
    wait_for_host(&address);
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("guest");
    let channel = patient.join().unwrap().expect("a channel");
    assert_eq!(channel.peer().pid, partner.pid());
}

/// Any executable, since the strangers run a copy.
fn of_users(uids: &[u32]) -> Options {
    small()
        .mode(0o666)
        .policy(Policy::new().any_executable().uids(uids))
}

#[test]
fn another_user_who_can_connect_is_refused_by_the_host_which_goes_on() {
    let Some(strangers) = Strangers::new() else { return };
    for address in [strangers.address(), fresh_address(false).0] {
        let host = join_later(&address, &of_users(&[0]));
        wait_for_host(&address);
        for _ in 0..3 {
            let stranger = strangers.start("stranger", &address);
            stranger.expect("PEER_REFUSED by peer: true uid");
            stranger.finish();
        }
        let partner = Actor::start("join", &[&address.to_string()]);
        partner.expect("guest");
        assert_eq!(host.join().unwrap().expect("a channel").peer().pid, partner.pid());
    }
}

#[test]
fn another_user_who_squats_the_address_is_refused_by_the_guest() {
    let Some(strangers) = Strangers::new() else { return };
    let (address, _keep) = fresh_address(false);
    let _squatter = strangers.start("stranger", &address);
    wait_for_host(&address);
    let error = join(&address, &small()).unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (refusal.check.as_str(), refusal.by_peer),
        ("uid", false),
        "{error}"
    );
    assert!(refusal.found.contains(&STRANGER.to_string()), "{error}");
}

#[test]
fn two_users_are_a_pair_where_both_policies_name_the_other() {
    let Some(strangers) = Strangers::new() else { return };
    let address = strangers.address();
    let host = join_later(&address, &of_users(&[STRANGER]));
    wait_for_host(&address);
    let stranger = strangers.start("stranger", &address);
    stranger.expect("guest of 0");
    let channel = host.join().unwrap().expect("a channel");
    assert_eq!((channel.peer().uid, channel.peer().gid), (STRANGER, STRANGER));
}

#[test]
fn another_user_who_may_not_connect_or_write_the_directory_is_told_so() {
    let Some(strangers) = Strangers::new() else { return };
    let address = strangers.address();
    // No process is there, and the stranger may not be the first.
    let stranger = strangers.start("stranger", &address);
    stranger.expect("ADDRESS_INVALID by peer: false ");
    stranger.finish();
    // A process is there, whose socket is for its own user.
    let cancel_token = CancelToken::new().unwrap();
    let host = join_later(&address, &small().cancel_token(cancel_token.clone()));
    wait_for_host(&address);
    let stranger = strangers.start("stranger", &address);
    stranger.expect("ADDRESS_INVALID by peer: false ");
    stranger.finish();
    cancel_token.cancel();
    assert!(host.join().unwrap().is_err());
}
