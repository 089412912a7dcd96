//! Members of an address: one leaves, the other takes over the address, and neither loses data.

mod support;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileExt, MetadataExt, symlink},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{Shutdown, accept, getsockopt, setsockopt, shutdown, sockopt},
    },
};
use ringfence::{
    Address, CancelToken, Change, Channel, CloseReason, Error, LEAVING, Options, Policy, Role, join, member,
};
use support::{
    Actor, STRANGER, Strangers, TIME_LIMIT, address_in, forbid, fresh_address, handshakes_of, join_later,
    say, small, wait_for_host, wait_for_test, wire,
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = || address_in(&arguments);
    match role.as_str() {
        "member" => obey(&address(), &small()),
        "stranger" => obey(
            &address(),
            &small()
                .policy(Policy::new().any_executable().uids([0]))
                .wait(true),
        ),
        "patient" => obey(&address(), &small().wait(true)),
        "sleeper" => as_sleeper(&arguments),
        "short of threads" => as_short_of_threads(&arguments),
        "deceived" => {
            let before = traces();
            let error = member(&address(), &small()).map(drop).unwrap_err();
            assert_eq!(traces(), before);
            say(format!("{} {error}", error.code()));
        }
        "wanderer" => wander(
            &address(),
            Path::new(&arguments[1]),
            arguments[2].parse().unwrap(),
        ),
        "joiner" => match join(&address(), &small()) {
            Ok(channel) => say(channel.role().to_string()),
            Err(error) => say(format!("{} {error}", error.code())),
        },
        "executor" => {
            let membership = member(&address(), &small()).unwrap();
            say(membership.role().to_string());
            wait_for_test();
            let error = Command::new("/bin/sleep").arg("1000").exec();
            panic!("{error}");
        }
        "thief" => as_thief(&arguments),
        "saboteur" => as_saboteur(&arguments),
        "comer" => come_again_and_again(),
        "parting host" => as_parting_host(&arguments),
        // The kernel has no memory for a listen(2) of this process.
        "listens no more" => {
            forbid(nix::libc::SYS_listen, None, nix::libc::ENOMEM);
            obey(&address(), &small());
        }
        "false host" => as_false_host(&arguments),
        // The maximum number of connections per process, each stopped in the middle of its HELLO.
        "dawdles" => {
            let hello = wire::hello(&[0; 32]);
            let streams: Vec<_> = (0..16).map(|_| wire::connect(&arguments[0])).collect();
            for stream in &streams {
                wire::send(stream, &hello[..16], None);
            }
            say("dawdles");
            wait_for_test();
        }
        "reads no line" => as_reader_of_no_line(&address()),
        other => unreachable!("{other}"),
    }
}

fn as_sleeper(arguments: &[String]) {
    let membership = member(&address_in(arguments), &small()).unwrap();
    say("host");
    let (mut sender, mut receiver) = membership.partner(None).unwrap().unwrap().split();
    let before = wake_ups();
    let mut message = [0; 8];
    for _ in 0..EXCHANGES {
        sender.send(b"question").unwrap();
        receiver.receive(&mut message).unwrap().unwrap();
    }
    // Wakeups from before may still have been on their way.
    let woken = wake_ups() - before;
    assert!(woken < EXCHANGES / 10, "woken {woken} times");
    say("slept");
    wait_for_test();
}

/// Tries to be a member with one more thread each time, until the limit suffices.
fn as_short_of_threads(arguments: &[String]) {
    let address = address_in(arguments);
    let options = small().policy(Policy::new().any_executable().uids([0]));
    let before = (traces(), threads());
    let mut failures = 0;
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    for most in 1.. {
        setrlimit(Resource::RLIMIT_NPROC, most, hard).unwrap();
        match member(&address, &options) {
            Ok(membership) => {
                assert_eq!(membership.role(), Role::Guest);
                break;
            }
            Err(error) => assert_eq!(error.code(), "NO_SPACE", "{error}"),
        }
        failures += 1;
        // A thread that was asked to stop takes a moment to exit.
        let end = Instant::now() + TIME_LIMIT;
        while (traces(), threads()) != before {
            assert!(Instant::now() < end, "{:?} of {before:?}", (traces(), threads()));
            thread::yield_now();
        }
    }
    // One failure for the keeper's thread, and one for the signal thread.
    assert!(failures >= 2, "{failures}");
    say("a member at last");
}

/// Leaves, but keeps the listening socket, and accepts every incoming connection on it.
fn as_thief(arguments: &[String]) {
    let membership = member(&address_in(arguments), &small()).unwrap();
    say("host");
    wait_for_test();
    let stolen = listening_socket();
    membership.leave();
    say("left");
    for _ in 0..THEFTS {
        wire::answer(&next_of(&stolen));
        say("stolen");
    }
    wait_for_test();
}

/// Makes its host's accept hang, or return immediately forever.
fn as_saboteur(arguments: &[String]) {
    let membership = member(&address_in(arguments), &small()).unwrap();
    let channel = membership.partner(None).unwrap();
    let listener = listening_socket();
    if arguments[1] == "hang" {
        fcntl(&listener, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    } else {
        shutdown(listener.as_raw_fd(), Shutdown::Read).unwrap();
    }
    say("done");
    wait_for_test();
    drop((membership, channel));
}

/// Exits between sending its READY and the guest's check of what came with it.
#[expect(
    clippy::incompatible_msrv,
    reason = "File::lock: the tests are built by a newer compiler"
)]
fn as_parting_host(arguments: &[String]) {
    let socket = Path::new(&arguments[0]);
    let beside = format!("{}.lock", arguments[0]);
    let lock = File::create(&beside).unwrap();
    lock.lock().unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    setsockopt(&listener, sockopt::PassCred, &true).unwrap();
    say("listening");
    let passed = |listener: &UnixListener| {
        fs::remove_file(socket).unwrap();
        fs::remove_file(&beside).unwrap();
        vec![
            OwnedFd::from(listener.try_clone().unwrap()),
            OwnedFd::from(lock.try_clone().unwrap()),
        ]
    };
    say(wire::member_host_at(&listener, passed));
    wait_for_test();
}

fn as_false_host(arguments: &[String]) {
    let passed = |listener: &UnixListener| match arguments[1].as_str() {
        "nothing" => vec![],
        "another socket" => vec![OwnedFd::from(wire::listen(&format!("{}-x", arguments[0])))],
        "a pair" => vec![wire::line().1],
        "a file" => vec![OwnedFd::from(File::open("/dev/null").unwrap())],
        "one too many" => vec![
            OwnedFd::from(listener.try_clone().unwrap()),
            OwnedFd::from(File::open("/dev/null").unwrap()),
        ],
        "too many" => (0..3)
            .map(|_| OwnedFd::from(listener.try_clone().unwrap()))
            .collect(),
        "the socket" => vec![OwnedFd::from(listener.try_clone().unwrap())],
        other => unreachable!("{other}"),
    };
    say(wire::member_host(&arguments[0], || say("listening"), passed));
    wait_for_test();
}

/// A guest whose security module forbids it to read its lines, which does not prove anything about its host.
fn as_reader_of_no_line(address: &Address) {
    let membership = member(address, &small()).unwrap();
    let (_sender, mut receiver) = membership.partner(None).unwrap().unwrap().split();
    // Only in this thread: the keeper's has already started.
    forbid(nix::libc::SYS_recvmsg, None, nix::libc::EACCES);
    receiver.poll_line().unwrap();
    assert_eq!(receiver.close_reason(), None);
    assert_eq!(membership.role(), Role::Guest);
    say("a guest");
    wait_for_test();
    let end = Instant::now() + TIME_LIMIT;
    while receiver.close_reason().is_none() {
        let _ = receiver.poll_line();
        assert!(Instant::now() < end, "it does not hear of its host's end");
    }
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    assert!(matches!(membership.next().unwrap(), Change::Role(Role::Host)));
}

/// Duplicates the listening socket of this process.
fn listening_socket() -> OwnedFd {
    let numbers = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().parse::<i32>().ok()
    });
    numbers
        // SAFETY: used for this one call, which fails with EBADF if the descriptor is not open.
        .map(|number| unsafe { BorrowedFd::borrow_raw(number) })
        .find(|fd| getsockopt(fd, sockopt::AcceptConn) == Ok(true))
        .expect("it listens")
        .try_clone_to_owned()
        .unwrap()
}

/// Accepts the next connection, unless another process is faster.
fn next_of(listener: &OwnedFd) -> UnixStream {
    loop {
        let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::NONE).unwrap();
        match accept(listener) {
            Ok(stream) => return UnixStream::from(stream),
            Err(Errno::EAGAIN) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Round trips, each with a sleeping receiver that is woken.
const EXCHANGES: u64 = 200;

/// Returns the number of wakeups of this process's keeper.
fn wake_ups() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let keeper = tasks
        .map(|task| task.unwrap().path())
        .find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == "ringfence-membe")
        .expect("a keeper");
    let status = fs::read_to_string(keeper.join("status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// A member that obeys commands, one word per line: `leave`, `close` (only the channel), `tell` (a message to
/// the partner), `end`.
fn obey(address: &Address, options: &Options) {
    let before = traces();
    let membership = match member(address, options) {
        Ok(membership) => membership,
        Err(error) => {
            say(format!("{} {error}", error.code()));
            return;
        }
    };
    say(membership.role().to_string());
    let mut channel: Option<Channel> = None;
    loop {
        let told = {
            let stdin = std::io::stdin();
            let mut polled = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(membership.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut polled, PollTimeout::NONE).unwrap();
            polled[0].any() == Some(true)
        };
        while let Some(change) = match membership.try_next() {
            Ok(change) => change,
            Err(error) => {
                say(format!("lost {} {error}", error.code()));
                return;
            }
        } {
            match change {
                Change::Channel(new) => {
                    say(format!("channel {} {}", new.role(), new.peer().pid));
                    if let Some(old) = channel.replace(new) {
                        say(format!("before {}", last_words(old)));
                    }
                }
                Change::Role(role) => say(format!("now {role}")),
                Change::Refused(refused) => say(format!("refused {}", refused.error.code())),
                other => panic!("{other:?}"),
            }
        }
        if !told {
            continue;
        }
        match &*word() {
            "close" => drop(channel.take()),
            "tell" => channel.as_mut().unwrap().sender().send(b"told").unwrap(),
            "partner" => say(membership.has_partner().to_string()),
            "leave" | "" => {
                membership.leave();
                drop(channel);
                assert_eq!(traces(), before);
                say("left");
                return;
            }
            other => panic!("{other}"),
        }
    }
}

/// Reads the next command, and no byte after it.
fn word() -> String {
    let mut word = Vec::new();
    let mut byte = [0];
    while nix::unistd::read(std::io::stdin(), &mut byte).unwrap() == 1 && byte != *b"\n" {
        word.push(byte[0]);
    }
    String::from_utf8(word).unwrap()
}

/// Reads the remaining messages of a channel that has ended, and its reason.
fn last_words(channel: Channel) -> String {
    let (_sender, mut receiver) = channel.split();
    let mut words = Vec::new();
    let mut message = [0; 64];
    while let Ok(Some(length)) = receiver.receive(&mut message) {
        words.push(String::from_utf8_lossy(&message[..length]).into_owned());
    }
    let reason = receiver
        .close_reason()
        .map_or("open".to_owned(), |reason| reason.to_string());
    words.push(reason);
    words.join(" ")
}

/// Counts descriptors, and mappings of shared memory.
fn traces() -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("memfd:")).count();
    (fs::read_dir("/proc/self/fd").unwrap().count(), mapped)
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn start(role: &str, address: &Address) -> Actor {
    Actor::start(role, &[&address.to_string()])
}

/// Starts two members with a channel between them: the host, and the guest.
fn two(address: &Address) -> (Actor, Actor) {
    let host = start("member", address);
    host.expect("host");
    let guest = joined(address, &host);
    (host, guest)
}

/// Starts the guest of a host without one, and waits for their channel.
fn joined(address: &Address, host: &Actor) -> Actor {
    let guest = start("member", address);
    guest.expect("guest");
    guest.expect(&format!("channel guest {}", host.pid()));
    host.expect(&format!("channel host {}", guest.pid()));
    guest
}

/// Checks that no process holds the address and no file is left. If the last owner has exited or executed
/// another program, the kernel may still be closing its descriptors, so this waits a moment.
fn assert_free(address: &Address) {
    let end = Instant::now() + TIME_LIMIT;
    let name = format!(" {address}");
    loop {
        let listed = fs::read_to_string("/proc/net/unix").unwrap();
        let bound = listed.lines().any(|line| line.ends_with(&name));
        let directory = address.as_path().and_then(Path::parent);
        let left = directory.map_or(0, |directory| fs::read_dir(directory).unwrap().count());
        if !bound && left == 0 {
            return;
        }
        assert!(Instant::now() < end, "bound: {bound}, with {left} files");
        thread::yield_now();
    }
}

#[test]
fn a_host_that_leaves_is_followed_by_its_guest() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = two(&address);
        for _ in 0..5 {
            host.tell("tell");
            host.tell("leave");
            // `leave` does not return before the guest has taken over the address.
            host.expect("left");
            host.finish();
            guest.expect("now host");
            let next = joined(&address, &guest);
            // Messages sent before are still read, although the next partner is already there.
            guest.expect("before told closed");
            (host, guest) = (guest, next);
        }
        host.tell("leave");
        host.expect("left");
        guest.expect("now host");
        guest.tell("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn a_host_that_is_killed_is_followed_by_its_guest() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = two(&address);
        for _ in 0..5 {
            host.tell("tell");
            host.tell("partner");
            host.expect("true");
            host.kill();
            guest.expect("now host");
            let next = joined(&address, &guest);
            guest.expect("before told lost");
            (host, guest) = (guest, next);
        }
        guest.tell("leave");
        guest.expect("left");
        host.tell("leave");
        host.expect("left");
        assert_free(&address);
    }
}

#[test]
fn a_host_that_executes_another_program_is_followed_by_its_guest() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let mut host = start("executor", &address);
        host.expect("host");
        let mut guest = start("member", &address);
        guest.expect("guest");
        guest.expect(&format!("channel guest {}", host.pid()));
        host.go_on();
        guest.expect("now host");
        guest.tell("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn a_third_is_told_so_or_waits_for_its_turn() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = two(&address);
        let third = start("member", &address);
        let told = third.hear();
        assert!(told.starts_with("ADDRESS_OCCUPIED "), "{told}");
        assert!(told.contains("two members hold it already"), "{told}");
        host.expect("refused ADDRESS_OCCUPIED");
        let patient = start("patient", &address);
        host.expect("refused ADDRESS_OCCUPIED");
        // The host leaves: the guest becomes the host, and the waiting member becomes its guest.
        host.tell("leave");
        while host.hear() != "left" {}
        guest.expect("now host");
        patient.expect("guest");
        patient.expect(&format!("channel guest {}", guest.pid()));
        guest.expect(&format!("channel host {}", patient.pid()));
        guest.expect("before closed");
        // The guest is killed: the next member takes its slot.
        drop(patient);
        let last = start("patient", &address);
        last.expect("guest");
        last.expect(&format!("channel guest {}", guest.pid()));
        guest.expect(&format!("channel host {}", last.pid()));
        guest.expect("before lost");
        guest.tell("leave");
        guest.expect("left");
        last.expect("now host");
        drop(last);
    }
}

#[test]
fn a_guest_that_leaves_frees_its_place_alone() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = two(&address);
        for _ in 0..3 {
            guest.tell("tell");
            guest.tell("leave");
            guest.expect("left");
            let next = joined(&address, &host);
            host.expect("before told closed");
            guest = next;
        }
        drop(guest);
        host.tell("leave");
        host.expect("left");
        assert_free(&address);
    }
}

#[test]
fn a_member_that_closes_the_channel_alone_keeps_its_place() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = two(&address);
        for round in 0..6 {
            let closes = if round % 2 == 0 { &mut host } else { &mut guest };
            closes.tell("close");
            guest.expect(&format!("channel guest {}", host.pid()));
            host.expect(&format!("channel host {}", guest.pid()));
            let stays = if round % 2 == 0 { &guest } else { &host };
            stays.expect("before closed");
        }
        host.tell("leave");
        host.expect("left");
        guest.expect("now host");
        guest.tell("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn both_may_leave_at_once() {
    let mut succeeded = 0;
    for round in 0..60 {
        let (address, _keep) = fresh_address(round % 2 == 0);
        let (mut host, mut guest) = two(&address);
        let (first, second) = if round % 4 < 2 {
            (&mut host, &mut guest)
        } else {
            (&mut guest, &mut host)
        };
        first.tell("leave");
        second.tell("leave");
        for member in [host, guest] {
            match member.hear().as_str() {
                "left" => {}
                "now host" => {
                    succeeded += 1;
                    member.expect("left");
                }
                other => panic!("{other}"),
            }
            member.finish();
        }
        assert_free(&address);
    }
    eprintln!("in {succeeded} of 60 rounds the guest was the host before it left");
}

#[test]
fn a_guest_of_another_user_follows_as_well() {
    let Some(strangers) = Strangers::new() else {
        return;
    };
    let address = strangers.address();
    let options = small()
        .mode(0o666)
        .policy(Policy::new().any_executable().uids([STRANGER]));
    let come = |role| {
        let own = member(&address, &options).unwrap();
        assert_eq!(own.role(), role);
        own
    };
    let own = come(Role::Host);
    let mut stranger = strangers.start("stranger", &address);
    stranger.expect("guest");
    let channel = own.partner(None).unwrap().unwrap();
    assert_eq!(channel.peer().uid, STRANGER);
    own.leave();
    while stranger.hear() != "now host" {}
    let own = come(Role::Guest);
    let next = own.partner(None).unwrap().unwrap();
    assert_eq!(next.peer().uid, STRANGER);
    // The last member may not remove the files. The next one takes them over.
    own.leave();
    stranger.tell("leave");
    while stranger.hear() != "left" {}
    assert!(address.as_path().unwrap().exists());
    come(Role::Host).leave();
    assert_free(&address);
}

/// For an audit of what a process has passed on. The host of a pair passes on no share of its address.
#[test]
fn a_host_s_evidence_says_what_its_guest_has_of_the_place() {
    let passed_on = |channel: &Channel| {
        let mut evidence = channel.evidence().iter();
        let found = evidence.find(|one| one.check == "passed on");
        found.map(|one| one.found.clone())
    };
    for (named, what) in [(false, "1 descriptors"), (true, "2 descriptors")] {
        let (address, _keep) = fresh_address(named);
        let own = member(&address, &small()).unwrap();
        let _guest = start("member", &address);
        let channel = own.partner(None).unwrap().unwrap();
        assert_eq!(passed_on(&channel).as_deref(), Some(what));
    }
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let _guest = start("joiner", &address);
    assert_eq!(passed_on(&host.join().unwrap().unwrap()), None);
}

#[test]
fn the_keeper_sleeps_while_two_talk() {
    let (address, _keep) = fresh_address(false);
    let sleeper = start("sleeper", &address);
    sleeper.expect("host");
    let own = member(&address, &small()).unwrap();
    let (mut sender, mut receiver) = own.partner(None).unwrap().unwrap().split();
    let mut message = [0; 8];
    for _ in 0..EXCHANGES {
        receiver.receive(&mut message).unwrap().unwrap();
        sender.send(&message).unwrap();
    }
    sleeper.expect("slept");
}

#[test]
fn members_meet_members_alone() {
    let (address, _keep) = fresh_address(false);
    let mut host = start("member", &address);
    host.expect("host");
    let joiner = start("joiner", &address);
    let told = joiner.hear();
    assert!(told.starts_with("PROTOCOL "), "{told}");
    assert!(told.contains("called `member`"), "{told}");
    assert!(told.contains("called `join`"), "{told}");
    host.expect("refused PROTOCOL");
    host.tell("leave");
    host.expect("left");
    // The other way round as well.
    let cancel_token = CancelToken::new().unwrap();
    let waiting = support::join_later(&address, &small().cancel_token(cancel_token.clone()));
    support::wait_for_host(&address);
    let member = start("member", &address);
    let told = member.hear();
    assert!(told.starts_with("PROTOCOL "), "{told}");
    cancel_token.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted)));
}

#[test]
fn a_process_does_not_meet_itself() {
    let (address, _keep) = fresh_address(true);
    let first = member(&address, &small()).unwrap();
    assert_eq!((first.role(), first.has_partner()), (Role::Host, false));
    assert!(matches!(
        member(&address, &small()),
        Err(Error::AddressOccupied { .. })
    ));
    assert!(matches!(first.next().unwrap(), Change::Refused(_)));
    assert!(first.try_next().unwrap().is_none());
    let deadline = Instant::now() + Duration::from_millis(5);
    assert!(first.next_until(Some(deadline)).unwrap().is_none());
    first.leave();
    assert_free(&address);
    // After leaving, it may become a member again at once.
    member(&address, &small()).unwrap().leave();
    assert_free(&address);
}

#[test]
fn one_that_has_left_may_come_again_at_once_as_the_guest_of_its_guest() {
    let (address, _keep) = fresh_address(true);
    let mut own = member(&address, &small()).unwrap();
    for _ in 0..20 {
        let mut other = start("member", &address);
        other.expect("guest");
        let channel = own.partner(None).unwrap().unwrap();
        assert_eq!(channel.peer().pid, other.pid());
        own.leave();
        own = member(&address, &small()).unwrap();
        assert_eq!(own.role(), Role::Guest);
        let channel = own.partner(None).unwrap().unwrap();
        assert_eq!(channel.peer().pid, other.pid());
        other.tell("leave");
        assert!(matches!(own.next().unwrap(), Change::Role(Role::Host)));
        // It announced its departure by a token as well.
        assert_eq!(channel.tokens().try_token(), Some(LEAVING));
        assert_eq!(last_words(channel), "closed");
        // It holds the address for a moment after it was taken over.
        while other.hear() != "left" {}
    }
    own.leave();
    assert_free(&address);
}

#[test]
fn the_waiting_for_a_place_can_be_called_off() {
    let (address, _keep) = fresh_address(false);
    let (_host, _guest) = two(&address);
    let cancel_token = CancelToken::new().unwrap();
    let calls_off = cancel_token.clone();
    let (address_, options) = (address.clone(), small().wait(true).cancel_token(cancel_token));
    let waiting = thread::spawn(move || member(&address_, &options).map(drop));
    calls_off.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted)));
}

#[test]
fn a_host_does_not_wait_for_ever_for_a_guest_that_was_stopped() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let own = member(&address, &small().handshake_timeout(Duration::from_secs(1))).unwrap();
        let mut guest = start("member", &address);
        guest.expect("guest");
        guest.hear();
        let _channel = own.partner(None).unwrap().unwrap();
        guest.stop();
        own.leave();
        guest.resume();
        // It takes over the address nevertheless.
        guest.expect("now host");
        let next = start("member", &address);
        next.expect("guest");
        drop(next);
        while !guest.hear().starts_with("channel host") {}
        guest.expect("before closed");
        guest.tell("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn a_process_that_dawdles_keeps_no_other_from_being_a_member() {
    let (address, _keep) = fresh_address(false);
    let host = start("member", &address);
    host.expect("host");
    let dawdler = start("dawdles", &address);
    dawdler.expect("dawdles");
    let end = Instant::now() + TIME_LIMIT;
    while handshakes_of(host.pid()) < 16 {
        assert!(Instant::now() < end, "they do not begin");
        thread::yield_now();
    }
    start("member", &address).expect("guest");
}

const THEFTS: usize = 2;

#[test]
fn one_that_keeps_the_listening_socket_is_not_believed() {
    let (address, _keep) = fresh_address(false);
    let mut thief = start("thief", &address);
    thief.expect("host");
    let guest = start("member", &address);
    guest.expect("guest");
    guest.hear();
    thief.go_on();
    thief.expect("left");
    guest.expect("now host");
    // Each client that the thief steals connects again, until it meets the owner that the kernel has named.
    let mut stolen = 0;
    while stolen < THEFTS {
        let mut next = start("member", &address);
        next.expect("guest");
        next.expect(&format!("channel guest {}", guest.pid()));
        next.tell("leave");
        next.expect("left");
        while thief.heard().is_some() {
            stolen += 1;
        }
    }
}

#[test]
fn a_partner_that_spoils_the_listening_socket_does_not_hang_the_other() {
    for deed in ["hang", "shut"] {
        let (address, _keep) = fresh_address(deed == "shut");
        let own = member(&address, &small()).unwrap();
        let mut saboteur = Actor::start("saboteur", &[&address.to_string(), deed]);
        saboteur.expect("done");
        let channel = own.partner(None).unwrap().unwrap();
        if deed == "shut" {
            // No guest can connect any longer, and that is reported.
            assert!(matches!(own.next(), Err(Error::Closed(_))));
            // Its lock, which the partner holds as well, delays no other process.
            start("member", &address).expect("host");
        } else {
            let next = start("member", &address);
            assert!(next.hear().starts_with("ADDRESS_OCCUPIED "));
        }
        drop(channel);
        saboteur.go_on();
        own.leave();
        saboteur.finish();
    }
}

#[test]
fn what_a_host_passes_is_looked_at() {
    let cases = [
        ("nothing", "OBJECT_UNSOUND"),
        ("one too many", "OBJECT_UNSOUND"),
        ("too many", "OBJECT_UNSOUND"),
        ("another socket", "PEER_REFUSED"),
        ("a pair", "PEER_REFUSED"),
        ("a file", "PEER_REFUSED"),
    ];
    for (passed, code) in cases {
        let (address, _keep) = fresh_address(false);
        let host = Actor::start("false host", &[&address.to_string(), passed]);
        host.expect("listening");
        let guest = start("deceived", &address);
        let told = guest.hear();
        assert!(told.starts_with(code), "{passed}: {told}");
        guest.finish();
        let told = host.hear();
        assert!(told.starts_with("REFUSE"), "{passed}: {told}");
    }
    let (address, _keep) = fresh_address(false);
    let mut host = Actor::start("false host", &[&address.to_string(), "the socket"]);
    host.expect("listening");
    let own = member(&address, &small()).unwrap();
    assert_eq!(own.role(), Role::Guest);
    host.kill();
    let channel = own.partner(None).unwrap().unwrap();
    assert!(matches!(own.next().unwrap(), Change::Role(Role::Host)));
    assert_eq!(channel.peer().pid, host.pid());
    let (_sender, receiver) = channel.split();
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
}

#[test]
fn a_newcomer_whose_host_goes_away_at_its_ready_comes_again() {
    for linked in [false, true] {
        let (address, directory) = fresh_address(true);
        let mut host = Actor::start("parting host", &[&address.to_string()]);
        host.expect("listening");
        // Through the same path, the lock is not the one beside the socket. Through another path, the
        // socket's location is not even known.
        let links = tempfile::tempdir().unwrap();
        let own_address = if linked {
            let link = links.path().join("link");
            symlink(directory.as_ref().unwrap().path(), &link).unwrap();
            Address::path(link.join("socket")).unwrap()
        } else {
            address
        };
        let own = member(&own_address, &small()).unwrap();
        assert_eq!(own.role(), Role::Host);
        let told = host.hear();
        assert!(
            linked || (told.starts_with("REFUSE") && told.contains("lock")),
            "{told}"
        );
        host.go_on();
        host.finish();
        own.leave();
    }
}

#[test]
fn a_guest_that_cannot_read_its_line_does_not_take_the_place_of_a_host_that_is_there() {
    let (address, _keep) = fresh_address(true);
    let mut host = start("member", &address);
    host.expect("host");
    let mut guest = start("reads no line", &address);
    guest.expect("a guest");
    host.expect(&format!("channel host {}", guest.pid()));
    host.tell("partner");
    host.expect("true");
    host.kill();
    guest.go_on();
    guest.finish();
}

#[test]
fn a_guest_that_cannot_take_its_hosts_place_says_why() {
    let (address, _keep) = fresh_address(true);
    let mut host = start("member", &address);
    host.expect("host");
    let guest = start("listens no more", &address);
    guest.expect("guest");
    assert!(guest.hear().starts_with("channel guest"));
    host.kill();
    // The guest joins again, which needs the same system call.
    guest.expect("refused NO_SPACE");
    assert!(guest.hear().starts_with("lost NO_SPACE"));
}

/// A cleaner has removed the host's files: a successor at that place would be a host that no client finds.
#[test]
fn a_guest_does_not_take_over_what_is_not_beside_the_path_any_more() {
    for file in ["", ".lock"] {
        let (address, _keep) = fresh_address(true);
        let (mut host, guest) = two(&address);
        host.tell("tell");
        host.tell("partner");
        host.expect("true");
        fs::remove_file(format!("{address}{file}")).unwrap();
        host.kill();
        guest.expect("refused PEER_LOST");
        guest.expect("now host");
        let next = joined(&address, &guest);
        guest.expect("before told lost");
        for mut member in [next, guest] {
            member.tell("leave");
            member.expect("left");
        }
        assert_free(&address);
    }
}

#[test]
fn a_member_that_cannot_be_one_has_taken_no_place() {
    let Some(strangers) = Strangers::new() else { return };
    // A separate user: the limit counts all threads of a user.
    let uid = STRANGER + 1000 + std::process::id() % 10_000;
    let (address, _keep) = fresh_address(false);
    let host = member(
        &address,
        &small().policy(Policy::new().any_executable().uids([uid, 0])),
    )
    .unwrap();
    let short = strangers.start_as(uid, "short of threads", &[&address.to_string()]);
    let mut partner = host
        .partner(Some(Instant::now() + TIME_LIMIT))
        .unwrap()
        .expect("a partner");
    short.expect("a member at last");
    short.finish();
    // It was a partner once, and not before: a third member finds the slot free.
    assert_eq!(partner.receiver().receive(&mut [0; 8]).unwrap(), None);
    drop(partner);
    let third = start("member", &address);
    third.expect("guest");
    let partner = host.partner(Some(Instant::now() + TIME_LIMIT)).unwrap();
    assert_eq!(partner.expect("a partner").peer().pid, third.pid());
}

#[test]
fn a_program_that_asks_for_nothing_is_brought_no_more_than_so_many() {
    let (address, _keep) = fresh_address(false);
    let own = member(&address, &small()).unwrap();
    let mut guest = start("member", &address);
    guest.expect("guest");
    // The guest closes its channel and joins again, until this side accepts it no longer.
    for _ in 0..16 {
        guest.hear();
        guest.tell("close");
    }
    assert_eq!(own.role(), Role::Host);
    for _ in 0..16 {
        assert!(matches!(own.next().unwrap(), Change::Channel(_)));
    }
    // It accepts it again now.
    assert!(guest.hear().starts_with("channel guest"));
    assert!(own.partner(None).unwrap().is_some());
}

// Three members that join and leave at random.

/// Messages on a channel in each direction: some at once, then one for each that arrives.
const AT_ONCE: u64 = 8;
const MESSAGES: u64 = 100;

fn now() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()
}

/// Inside a process that joins and leaves: exchanges messages with each partner, and records each sent
/// message where the record outlives the process. `own`: a unique name, since the kernel reuses process ids.
fn wander(address: &Address, notes: &Path, own: u32) {
    let mut number = 0;
    let before = traces();
    loop {
        let membership = member(address, &small().wait(true)).unwrap();
        say(format!("{} {}", membership.role(), now()));
        let quiet = Arc::new(Mutex::new(false));
        let mut talks = Vec::new();
        loop {
            let stdin = std::io::stdin();
            let mut polled = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(membership.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut polled, PollTimeout::NONE).unwrap();
            let told = polled[0].any() == Some(true);
            while let Some(change) = membership.try_next().unwrap() {
                match change {
                    Change::Channel(channel) => {
                        say(format!("channel {} {}", channel.role(), channel.peer().pid));
                        let (notes, quiet) = (notes.to_owned(), Arc::clone(&quiet));
                        number += 1;
                        talks.push(thread::spawn(move || {
                            talk(channel, (own, number), &notes, &quiet);
                        }));
                    }
                    Change::Role(role) => say(format!("{role} {}", now())),
                    Change::Refused(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            if told {
                break;
            }
        }
        word();
        *quiet.lock().unwrap() = true;
        say(format!("leaving {}", now()));
        membership.leave();
        for talk in talks {
            talk.join().unwrap();
        }
        assert_eq!(traces(), before);
        say("left");
        word();
    }
}

/// The sender of messages: a wanderer, and the number of its channel.
type Talker = (u32, u32);

fn note(notes: &Path, (wanderer, number): Talker) -> PathBuf {
    notes.join(format!("{wanderer}-{number}"))
}

fn talk(channel: Channel, own: Talker, notes: &Path, quiet: &Mutex<bool>) {
    let (mut sender, mut receiver) = channel.split();
    let note = File::create_new(note(notes, own)).unwrap();
    let mut count = 0_u64;
    let mut send = || {
        // A message that is sent while this process leaves would be on neither side.
        let quiet = quiet.lock().unwrap();
        if *quiet || count == MESSAGES {
            return;
        }
        let mut message = [0; 16];
        message[..4].copy_from_slice(&own.0.to_le_bytes());
        message[4..8].copy_from_slice(&own.1.to_le_bytes());
        message[8..].copy_from_slice(&count.to_le_bytes());
        if sender.try_send(&message).unwrap_or(false) {
            count += 1;
            note.write_all_at(&count.to_le_bytes(), 0).unwrap();
        }
    };
    for _ in 0..AT_ONCE {
        send();
    }
    let (mut read, mut whose) = (0_u64, None);
    let mut message = [0; 16];
    let ended = loop {
        match receiver.receive(&mut message) {
            Ok(Some(16)) => {}
            Ok(Some(other)) => panic!("{other} bytes"),
            Ok(None) | Err(Error::PeerLost(_)) => break true,
            Err(Error::Closed(_)) => break false,
            Err(error) => panic!("{error}"),
        }
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
        let this = (word(0), word(4));
        assert_eq!(*whose.get_or_insert(this), this);
        assert_eq!(u64::from_le_bytes(message[8..].try_into().unwrap()), read);
        read += 1;
        send();
    };
    // If this side has left, it has no guarantees.
    if let (true, Some((wanderer, number))) = (ended, whose) {
        say(format!("received {wanderer} {number} {read}"));
    }
}

/// The supervisor's knowledge of one member.
#[derive(Debug, Default, Clone)]
struct Known {
    /// The time since when it is the host, in microseconds.
    host_since: Option<u128>,
    guest: bool,
    partner: Option<i32>,
    left: bool,
}

struct Supervisor {
    address: Address,
    notes: tempfile::TempDir,
    actors: HashMap<usize, (Actor, Known)>,
    next: usize,
    says: mpsc::Sender<(usize, String)>,
    said: Receiver<(usize, String)>,
    /// The start and end of each host's term.
    terms: Vec<(u128, u128)>,
    received: Vec<(Talker, u64)>,
    random: u64,
}

impl Supervisor {
    fn start(&mut self) {
        let number = self.next;
        self.next += 1;
        let address = self.address.to_string();
        let name = number.to_string();
        let words = [&*address, self.notes.path().to_str().unwrap(), &name];
        let actor = Actor::start_among(number, self.says.clone(), "wanderer", &words);
        self.actors.insert(number, (actor, Known::default()));
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    /// Handles the next report of a member.
    fn hear(&mut self) {
        let heard = self.said.recv_timeout(TIME_LIMIT);
        let (number, line) = heard.unwrap_or_else(|_| panic!("nothing happens: {:?}", self.known()));
        let words: Vec<_> = line.split(' ').collect();
        if words[0] == "received" {
            let name = |at: usize| words[at].parse().unwrap();
            self.received
                .push(((name(1), name(2)), words[3].parse().unwrap()));
            return;
        }
        // Ignore reports of a member that was killed since.
        let Some((_, known)) = self.actors.get_mut(&number) else {
            return;
        };
        match words[..] {
            ["host", at] => {
                known.host_since = Some(at.parse().unwrap());
                (known.guest, known.partner) = (false, None);
            }
            ["guest", _] => known.guest = true,
            ["channel", _, peer] => known.partner = Some(peer.parse().unwrap()),
            ["leaving", at] => {
                known.guest = false;
                if let Some(since) = known.host_since.take() {
                    self.terms.push((since, at.parse().unwrap()));
                }
            }
            ["left"] => known.left = true,
            _ => panic!("{number} says {line}"),
        }
    }

    fn known(&self) -> Vec<(i32, Known)> {
        let known = self.actors.values();
        known.map(|(actor, known)| (actor.pid(), known.clone())).collect()
    }

    /// Waits until one member is the host and one its guest, with a channel between them.
    fn settle(&mut self) {
        loop {
            let all = self.known();
            let settled = all.iter().any(|(host, of_host)| {
                let is_guest = |(guest, of_guest): &(i32, Known)| {
                    of_guest.guest && of_host.partner == Some(*guest) && of_guest.partner == Some(*host)
                };
                of_host.host_since.is_some() && all.iter().any(is_guest)
            });
            if settled {
                return;
            }
            self.hear();
        }
    }

    /// Picks a member at random: the host, the guest, or a waiting one.
    fn pick(&mut self) -> usize {
        let kind = self.random(10);
        let wanted = |known: &Known| match kind {
            0..7 => known.host_since.is_some(),
            7..9 => known.guest,
            _ => known.host_since.is_none() && !known.guest,
        };
        let found = self.actors.iter().find(|(_, (_, known))| wanted(known));
        let any = || self.actors.keys().next();
        *found.map(|(number, _)| number).or_else(any).unwrap()
    }

    fn kill(&mut self, number: usize) {
        let (mut actor, known) = self.actors.remove(&number).unwrap();
        let at = now();
        actor.kill();
        if let Some(since) = known.host_since {
            self.terms.push((since, at));
        }
    }

    /// Makes a member leave and join again.
    fn send_away(&mut self, number: usize) {
        self.actors.get_mut(&number).unwrap().0.go_on();
        loop {
            let Some((actor, known)) = self.actors.get_mut(&number) else {
                return;
            };
            if known.left {
                *known = Known::default();
                actor.go_on();
                return;
            }
            self.hear();
        }
    }

    /// Checks that no two members were host at once, and that everything sent before a departure was
    /// received.
    fn check(&mut self) {
        self.terms.sort_unstable();
        let mut longest = 0;
        for pair in self.terms.windows(2) {
            let ((_, ended), (began, _)) = (pair[0], pair[1]);
            assert!(began >= ended, "two hosts at a time: {pair:?}");
            longest = longest.max(began - ended);
        }
        let mut messages = 0;
        for (talker, received) in &self.received {
            let sent = fs::read(note(self.notes.path(), *talker)).unwrap();
            // A message sent a moment ago may not be recorded yet.
            let sent = sent.try_into().map_or(0, u64::from_le_bytes);
            assert!(
                (sent..=sent + 1).contains(received),
                "{received} of {sent} messages were received"
            );
            messages += received;
        }
        eprintln!(
            "{}: {} hosts, one after the other; none for {longest} µs at most; {messages} messages received, of {} partners",
            self.address,
            self.terms.len(),
            self.received.len()
        );
    }
}

/// The number of handovers at each of two addresses.
fn handovers() -> usize {
    let wanted = std::env::var("RINGFENCE_HANDOVERS").ok();
    wanted.map_or(1000, |wanted| wanted.parse().expect("a number"))
}

#[test]
fn three_come_and_go_and_there_is_always_one_host() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (says, said) = mpsc::channel();
        let mut supervisor = Supervisor {
            address: address.clone(),
            notes: tempfile::tempdir().unwrap(),
            actors: HashMap::new(),
            next: 0,
            says,
            said,
            terms: Vec::new(),
            received: Vec::new(),
            random: 1,
        };
        (0..3).for_each(|_| supervisor.start());
        while supervisor.terms.len() < handovers() {
            // Sometimes the test does not wait for the members to settle.
            if supervisor.random(4) > 0 {
                supervisor.settle();
            }
            let number = supervisor.pick();
            if supervisor.random(2) == 0 {
                supervisor.kill(number);
                supervisor.start();
            } else if supervisor.actors[&number].1.host_since.is_some() || supervisor.actors[&number].1.guest
            {
                supervisor.send_away(number);
            }
        }
        supervisor.settle();
        // All leave. The last one has no successor.
        while !supervisor.actors.is_empty() {
            let found = supervisor
                .actors
                .iter()
                .find(|(_, (_, known))| known.host_since.is_some())
                .map(|(number, _)| *number);
            match found {
                Some(number) => {
                    supervisor.actors.get_mut(&number).unwrap().0.go_on();
                    while !supervisor.actors[&number].1.left {
                        supervisor.hear();
                    }
                    supervisor.actors.remove(&number);
                }
                None => supervisor.hear(),
            }
        }
        supervisor.check();
        assert_free(&address);
    }
}

#[test]
fn a_member_may_have_all_the_time_that_there_is() {
    let (address, _keep) = fresh_address(false);
    let options = small().handshake_timeout(Duration::MAX).busy_poll(Duration::MAX);
    member(&address, &options).unwrap().leave();
}

/// Joins each address that it is given, and reports whether it was a guest there before it was the host.
fn come_again_and_again() {
    loop {
        let path = PathBuf::from(word());
        if path.as_os_str().is_empty() {
            return;
        }
        say("coming");
        let membership = member(&Address::path(&path).unwrap(), &small()).unwrap();
        let mut was_guest = membership.role() == Role::Guest;
        // Keep the channels as well: dropping one would close it, and a guest that closes does not become the
        // successor.
        let mut changes = Vec::new();
        while membership.role() == Role::Guest {
            changes.push(membership.next().unwrap());
        }
        while let Some(change) = membership.try_next().unwrap() {
            changes.push(change);
        }
        was_guest |= changes
            .iter()
            .any(|change| matches!(change, Change::Role(Role::Host)));
        say(format!(
            "{} {}",
            if was_guest { "guest" } else { "host" },
            fs::metadata(&path).unwrap().ino()
        ));
        membership.leave();
    }
}

/// A guest that received READY takes over the address, whatever has happened to the host in the meantime.
#[test]
fn a_host_that_leaves_while_its_guest_comes_drops_no_place() {
    let mut comer = Actor::start("comer", &[]);
    for round in 0..300 {
        let (address, directory) = fresh_address(true);
        let socket = directory.as_ref().unwrap().path().join("socket");
        let host = member(&address, &small()).unwrap();
        let before = fs::metadata(&socket).unwrap().ino();
        comer.tell(socket.to_str().unwrap());
        comer.expect("coming");
        // A random moment within a handshake, which takes a few milliseconds.
        let moment = Instant::now() + Duration::from_micros(round * 10);
        while Instant::now() < moment {
            thread::yield_now();
        }
        host.leave();
        let told = comer.hear();
        if let Some(inode) = told.strip_prefix("guest ") {
            assert_eq!(inode, before.to_string(), "round {round}");
        }
    }
    comer.finish();
}
