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
    Address, CancelToken, Change, Channel, CloseReason, Error, LEAVING, Membership, Options, Policy, Role,
    join, member,
};
use support::{
    Actor, OTHER_UID, OtherUsers, TIME_LIMIT, address_in, forbid, fresh_address, handshakes_of, join_later,
    report, small, thread_named, wait_for_host, wait_for_test, wire,
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
        "limited threads" => as_limited_threads(&arguments),
        "misled" => {
            let before = traces();
            let error = member(&address(), &small()).map(drop).unwrap_err();
            assert_eq!(traces(), before);
            report(format!("{} {error}", error.code()));
        }
        "wanderer" => as_wanderer(
            &address(),
            Path::new(&arguments[1]),
            arguments[2].parse().unwrap(),
        ),
        "joiner" => match join(&address(), &small()) {
            Ok(channel) => report(channel.role().to_string()),
            Err(error) => report(format!("{} {error}", error.code())),
        },
        "executor" => {
            let membership = member(&address(), &small()).unwrap();
            report(membership.role().to_string());
            wait_for_test();
            let error = Command::new("/bin/sleep").arg("1000").exec();
            panic!("{error}");
        }
        "thief" => as_thief(&arguments),
        "saboteur" => as_saboteur(&arguments),
        "rejoiner" => as_rejoiner(),
        "exiting host" => as_exiting_host(&arguments),
        // The kernel has no memory for a listen(2) of this process.
        "listen fails" => {
            forbid(nix::libc::SYS_listen, None, nix::libc::ENOMEM);
            obey(&address(), &small());
        }
        "false host" => as_false_host(&arguments),
        "unready host" => as_unready_host(&arguments),
        // The maximum number of connections per process, each stopped in the middle of its HELLO.
        "stalled handshakes" => {
            let hello = wire::hello(&[0; 32]);
            let streams: Vec<_> = (0..16).map(|_| wire::connect(&arguments[0])).collect();
            for stream in &streams {
                wire::send(stream, &hello[..16], None);
            }
            report("stalled handshakes");
            wait_for_test();
        }
        "unreadable line" => as_unreadable_line(&address()),
        other => unreachable!("{other}"),
    }
}

fn as_sleeper(arguments: &[String]) {
    let membership = member(&address_in(arguments), &small()).unwrap();
    report("host");
    let (mut sender, mut receiver) = membership.partner(None).unwrap().unwrap().split();
    let before = context_switches();
    let mut message = [0; 8];
    for _ in 0..EXCHANGES {
        sender.send(b"question").unwrap();
        receiver.receive(&mut message).unwrap().unwrap();
    }
    // Wakeups from before may still have been on their way.
    let woken = context_switches() - before;
    assert!(woken < EXCHANGES / 10, "woken {woken} times");
    report("slept");
    wait_for_test();
}

/// Tries to be a member with one more thread each time, until the limit suffices.
fn as_limited_threads(arguments: &[String]) {
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
    // One failure for the membership thread, and one for the signal thread.
    assert!(failures >= 2, "{failures}");
    report("a member at last");
}

/// Leaves, but keeps the listening socket, and accepts every incoming connection on it.
fn as_thief(arguments: &[String]) {
    let membership = member(&address_in(arguments), &small()).unwrap();
    report("host");
    wait_for_test();
    let stolen = listening_socket();
    membership.leave();
    report("left");
    for _ in 0..THEFTS {
        wire::answer(&next_of(&stolen));
        report("stolen");
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
    report("done");
    wait_for_test();
    drop((membership, channel));
}

/// Exits between sending its READY and the guest's check of what came with it.
#[expect(
    clippy::incompatible_msrv,
    reason = "File::lock: the tests are built by a newer compiler"
)]
fn as_exiting_host(arguments: &[String]) {
    let socket = Path::new(&arguments[0]);
    let beside = format!("{}.lock", arguments[0]);
    let lock = File::create(&beside).unwrap();
    lock.lock().unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    setsockopt(&listener, sockopt::PassCred, &true).unwrap();
    report("listening");
    let passed = |listener: &UnixListener| {
        fs::remove_file(socket).unwrap();
        fs::remove_file(&beside).unwrap();
        vec![
            OwnedFd::from(listener.try_clone().unwrap()),
            OwnedFd::from(lock.try_clone().unwrap()),
        ]
    };
    report(wire::member_host_at(&listener, passed));
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
    report(wire::member_host(&arguments[0], || report("listening"), passed));
    wait_for_test();
}

/// Leaves a place that its guest cannot take over, so that the guest joins again, and then sends no READY.
fn as_unready_host(arguments: &[String]) {
    let socket = Path::new(&arguments[0]);
    let membership = member(&address_in(arguments), &small()).unwrap();
    report("host");
    let _channel = membership.partner(None).unwrap();
    // The guest has seen this place.
    read_command();
    fs::remove_file(socket).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    setsockopt(&listener, sockopt::PassCred, &true).unwrap();
    membership.leave();
    let word = wire::host_of_a_guest_that_fails(&listener, wire::MEMBERSHIP, |_| report("not ready"));
    report(format!("phase {word}"));
    wait_for_test();
}

/// A guest whose security module forbids it to read its lines, which does not prove anything about its host.
fn as_unreadable_line(address: &Address) {
    let membership = member(address, &small()).unwrap();
    let (_sender, mut receiver) = membership.partner(None).unwrap().unwrap().split();
    // Only in this thread: the membership thread has already started.
    forbid(nix::libc::SYS_recvmsg, None, nix::libc::EACCES);
    receiver.poll_line().unwrap();
    assert_eq!(receiver.close_reason(), None);
    assert_eq!(membership.role(), Role::Guest);
    report("a guest");
    wait_for_test();
    let end = Instant::now() + TIME_LIMIT;
    while receiver.close_reason().is_none() {
        let _ = receiver.poll_line();
        assert!(Instant::now() < end, "the host's exit is not reported");
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

/// Accepts the next connection. Another process may accept one first.
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

/// Round trips, each of which wakes a sleeping receiver.
const EXCHANGES: u64 = 200;

/// Returns the number of times that the membership thread has slept.
fn context_switches() -> u64 {
    let thread = thread_named(std::process::id().cast_signed(), "ringfence-membe");
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// A member that obeys commands, one word per line: `leave`, `close` (only the channel), `send` (a message to
/// the partner), `end`.
fn obey(address: &Address, options: &Options) {
    let before = traces();
    let membership = match member(address, options) {
        Ok(membership) => membership,
        Err(error) => {
            report(format!("{} {error}", error.code()));
            return;
        }
    };
    report(membership.role().to_string());
    let mut channel: Option<Channel> = None;
    loop {
        let has_command = {
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
                report(format!("lost {} {error}", error.code()));
                return;
            }
        } {
            match change {
                Change::Channel(new) => {
                    report(format!("channel {} {}", new.role(), new.peer().pid));
                    if let Some(old) = channel.replace(new) {
                        report(format!("before {}", drain(old)));
                    }
                }
                Change::Role(role) => report(format!("now {role}")),
                Change::Refused(refused) => report(format!("refused {}", refused.error.code())),
                other => panic!("{other:?}"),
            }
        }
        if !has_command {
            continue;
        }
        match &*read_command() {
            "close" => drop(channel.take()),
            "send" => channel.as_mut().unwrap().sender().send(b"hello").unwrap(),
            "partner" => report(membership.has_partner().to_string()),
            "leave" | "" => {
                membership.leave();
                drop(channel);
                assert_eq!(traces(), before);
                report("left");
                return;
            }
            other => panic!("{other}"),
        }
    }
}

/// Reads the next command, and no byte after it.
fn read_command() -> String {
    let mut word = Vec::new();
    let mut byte = [0];
    while nix::unistd::read(std::io::stdin(), &mut byte).unwrap() == 1 && byte != *b"\n" {
        word.push(byte[0]);
    }
    String::from_utf8(word).unwrap()
}

/// Reads the remaining messages of a channel that has ended, and its reason.
fn drain(channel: Channel) -> String {
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
fn start_pair(address: &Address) -> (Actor, Actor) {
    let host = start("member", address);
    host.expect("host");
    let guest = start_guest(address, &host);
    (host, guest)
}

/// Starts the guest of a host without one, and waits for their channel.
fn start_guest(address: &Address, host: &Actor) -> Actor {
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
fn guest_takes_over_when_host_leaves() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = start_pair(&address);
        for _ in 0..5 {
            host.send_line("send");
            host.send_line("leave");
            // `leave` does not return before the guest has taken over the address.
            host.expect("left");
            host.finish();
            guest.expect("now host");
            let next = start_guest(&address, &guest);
            // Messages sent before are still read, although the next partner is already there.
            guest.expect("before hello closed");
            (host, guest) = (guest, next);
        }
        host.send_line("leave");
        host.expect("left");
        guest.expect("now host");
        guest.send_line("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn guest_takes_over_when_host_is_killed() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = start_pair(&address);
        for _ in 0..5 {
            host.send_line("send");
            host.send_line("partner");
            host.expect("true");
            host.kill();
            guest.expect("now host");
            let next = start_guest(&address, &guest);
            guest.expect("before hello lost");
            (host, guest) = (guest, next);
        }
        guest.send_line("leave");
        guest.expect("left");
        host.send_line("leave");
        host.expect("left");
        assert_free(&address);
    }
}

#[test]
fn guest_takes_over_when_host_calls_exec() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let mut host = start("executor", &address);
        host.expect("host");
        let mut guest = start("member", &address);
        guest.expect("guest");
        guest.expect(&format!("channel guest {}", host.pid()));
        host.proceed();
        guest.expect("now host");
        guest.send_line("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn third_member_is_refused_or_waits_for_a_slot() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = start_pair(&address);
        let third = start("member", &address);
        let reply = third.next_line();
        assert!(reply.starts_with("ADDRESS_OCCUPIED "), "{reply}");
        assert!(reply.contains("two members hold it already"), "{reply}");
        host.expect("refused ADDRESS_OCCUPIED");
        let patient = start("patient", &address);
        host.expect("refused ADDRESS_OCCUPIED");
        // The host leaves: the guest becomes the host, and the waiting member becomes its guest.
        host.send_line("leave");
        while host.next_line() != "left" {}
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
        guest.send_line("leave");
        guest.expect("left");
        last.expect("now host");
        drop(last);
    }
}

#[test]
fn leaving_guest_frees_only_its_own_slot() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = start_pair(&address);
        for _ in 0..3 {
            guest.send_line("send");
            guest.send_line("leave");
            guest.expect("left");
            let next = start_guest(&address, &host);
            host.expect("before hello closed");
            guest = next;
        }
        drop(guest);
        host.send_line("leave");
        host.expect("left");
        assert_free(&address);
    }
}

#[test]
fn closing_only_the_channel_keeps_the_membership() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (mut host, mut guest) = start_pair(&address);
        for round in 0..6 {
            let closes = if round % 2 == 0 { &mut host } else { &mut guest };
            closes.send_line("close");
            guest.expect(&format!("channel guest {}", host.pid()));
            host.expect(&format!("channel host {}", guest.pid()));
            let stays = if round % 2 == 0 { &guest } else { &host };
            stays.expect("before closed");
        }
        host.send_line("leave");
        host.expect("left");
        guest.expect("now host");
        guest.send_line("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn both_members_can_leave_concurrently() {
    let mut succeeded = 0;
    for round in 0..60 {
        let (address, _keep) = fresh_address(round % 2 == 0);
        let (mut host, mut guest) = start_pair(&address);
        let (first, second) = if round % 4 < 2 {
            (&mut host, &mut guest)
        } else {
            (&mut guest, &mut host)
        };
        first.send_line("leave");
        second.send_line("leave");
        for member in [host, guest] {
            match member.next_line().as_str() {
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
fn guest_of_another_user_takes_over() {
    let Some(others) = OtherUsers::new() else {
        return;
    };
    let address = others.address();
    let options = small()
        .mode(0o666)
        .policy(Policy::new().any_executable().uids([OTHER_UID]));
    let become_member = |role| {
        let own = member(&address, &options).unwrap();
        assert_eq!(own.role(), role);
        own
    };
    let own = become_member(Role::Host);
    let mut stranger = others.start("stranger", &address);
    stranger.expect("guest");
    let channel = own.partner(None).unwrap().unwrap();
    assert_eq!(channel.peer().uid, OTHER_UID);
    own.leave();
    while stranger.next_line() != "now host" {}
    let own = become_member(Role::Guest);
    let next = own.partner(None).unwrap().unwrap();
    assert_eq!(next.peer().uid, OTHER_UID);
    // The last member may not remove the files. The next one takes them over.
    own.leave();
    stranger.send_line("leave");
    while stranger.next_line() != "left" {}
    assert!(address.as_path().unwrap().exists());
    become_member(Role::Host).leave();
    assert_free(&address);
}

/// For an audit of what a process has passed on. The host of a pair passes on no share of its address.
#[test]
fn evidence_lists_descriptors_passed_to_the_guest() {
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
fn membership_thread_sleeps_while_messages_flow() {
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
fn member_and_join_refuse_each_other() {
    let (address, _keep) = fresh_address(false);
    let mut host = start("member", &address);
    host.expect("host");
    let joiner = start("joiner", &address);
    let reply = joiner.next_line();
    assert!(reply.starts_with("PROTOCOL "), "{reply}");
    assert!(reply.contains("called `member`"), "{reply}");
    assert!(reply.contains("called `join`"), "{reply}");
    host.expect("refused PROTOCOL");
    host.send_line("leave");
    host.expect("left");
    // The other way round as well.
    let cancel_token = CancelToken::new().unwrap();
    let waiting = support::join_later(&address, &small().cancel_token(cancel_token.clone()));
    support::wait_for_host(&address);
    let member = start("member", &address);
    let reply = member.next_line();
    assert!(reply.starts_with("PROTOCOL "), "{reply}");
    cancel_token.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted)));
}

#[test]
fn second_membership_of_one_process_is_refused() {
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
fn member_that_left_can_rejoin_as_guest_at_once() {
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
        other.send_line("leave");
        assert!(matches!(own.next().unwrap(), Change::Role(Role::Host)));
        // It announced its departure by a token as well.
        assert_eq!(channel.tokens().try_token(), Some(LEAVING));
        assert_eq!(drain(channel), "closed");
        // It holds the address for a moment after it was taken over.
        while other.next_line() != "left" {}
    }
    own.leave();
    assert_free(&address);
}

/// The partner may have the channel already. Only `leave` promises it a clean end.
#[test]
fn member_ends_while_it_joins_again_as_it_was_told() {
    const CLOSED: u64 = 2;
    const CLOSED_AND_ENDED: u64 = CLOSED | 8;
    let endings: [(fn(Membership), u64); 2] = [
        (Membership::leave, CLOSED_AND_ENDED),
        (Membership::destroy, CLOSED),
    ];
    for (end, phase) in endings {
        let (address, _keep) = fresh_address(true);
        let mut host = start("unready host", &address);
        host.expect("host");
        let own = member(&address, &small()).unwrap();
        let _channel = own.partner(None).unwrap().unwrap();
        host.send_line("leave");
        host.expect("not ready");
        end(own);
        host.expect(&format!("phase {phase}"));
        host.finish();
    }
}

#[test]
fn waiting_for_a_slot_can_be_cancelled() {
    let (address, _keep) = fresh_address(false);
    let (_host, _guest) = start_pair(&address);
    let cancel_token = CancelToken::new().unwrap();
    let canceller = cancel_token.clone();
    let (address_, options) = (address.clone(), small().wait(true).cancel_token(cancel_token));
    let waiting = thread::spawn(move || member(&address_, &options).map(drop));
    canceller.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted)));
}

#[test]
fn leaving_host_does_not_hang_on_a_stopped_guest() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let own = member(&address, &small().handshake_timeout(Duration::from_secs(1))).unwrap();
        let mut guest = start("member", &address);
        guest.expect("guest");
        guest.next_line();
        let _channel = own.partner(None).unwrap().unwrap();
        guest.stop();
        own.leave();
        guest.resume();
        // It takes over the address nevertheless.
        guest.expect("now host");
        let next = start("member", &address);
        next.expect("guest");
        drop(next);
        while !guest.next_line().starts_with("channel host") {}
        guest.expect("before closed");
        guest.send_line("leave");
        guest.expect("left");
        assert_free(&address);
    }
}

#[test]
fn stalled_handshakes_do_not_block_another_member() {
    let (address, _keep) = fresh_address(false);
    let host = start("member", &address);
    host.expect("host");
    let staller = start("stalled handshakes", &address);
    staller.expect("stalled handshakes");
    let end = Instant::now() + TIME_LIMIT;
    while handshakes_of(host.pid()) < 16 {
        assert!(Instant::now() < end, "the handshakes do not start");
        thread::yield_now();
    }
    start("member", &address).expect("guest");
}

const THEFTS: usize = 2;

#[test]
fn clients_retry_past_a_stolen_listening_socket() {
    let (address, _keep) = fresh_address(false);
    let mut thief = start("thief", &address);
    thief.expect("host");
    let guest = start("member", &address);
    guest.expect("guest");
    guest.next_line();
    thief.proceed();
    thief.expect("left");
    guest.expect("now host");
    // Each client that the thief steals connects again, until it meets the owner that the kernel has named.
    let mut stolen = 0;
    while stolen < THEFTS {
        let mut next = start("member", &address);
        next.expect("guest");
        next.expect(&format!("channel guest {}", guest.pid()));
        next.send_line("leave");
        next.expect("left");
        while thief.try_next_line().is_some() {
            stolen += 1;
        }
    }
}

#[test]
fn sabotaged_listening_socket_does_not_hang_the_host() {
    for sabotage in ["hang", "shut"] {
        let (address, _keep) = fresh_address(sabotage == "shut");
        let own = member(&address, &small()).unwrap();
        let mut saboteur = Actor::start("saboteur", &[&address.to_string(), sabotage]);
        saboteur.expect("done");
        let channel = own.partner(None).unwrap().unwrap();
        if sabotage == "shut" {
            // No guest can connect any longer, and that is reported.
            assert!(matches!(own.next(), Err(Error::Closed(_))));
            // Its lock, which the partner holds as well, delays no other process.
            start("member", &address).expect("host");
        } else {
            let next = start("member", &address);
            assert!(next.next_line().starts_with("ADDRESS_OCCUPIED "));
        }
        drop(channel);
        saboteur.proceed();
        own.leave();
        saboteur.finish();
    }
}

#[test]
fn guest_checks_descriptors_passed_by_its_host() {
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
        let guest = start("misled", &address);
        let reply = guest.next_line();
        assert!(reply.starts_with(code), "{passed}: {reply}");
        guest.finish();
        let reply = host.next_line();
        assert!(reply.starts_with("REFUSE"), "{passed}: {reply}");
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
fn member_retries_if_host_exits_at_ready() {
    for linked in [false, true] {
        let (address, directory) = fresh_address(true);
        let mut host = Actor::start("exiting host", &[&address.to_string()]);
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
        let reply = host.next_line();
        assert!(
            linked || (reply.starts_with("REFUSE") && reply.contains("lock")),
            "{reply}"
        );
        host.proceed();
        host.finish();
        own.leave();
    }
}

#[test]
fn unreadable_line_does_not_trigger_a_takeover() {
    let (address, _keep) = fresh_address(true);
    let mut host = start("member", &address);
    host.expect("host");
    let mut guest = start("unreadable line", &address);
    guest.expect("a guest");
    host.expect(&format!("channel host {}", guest.pid()));
    host.send_line("partner");
    host.expect("true");
    host.kill();
    guest.proceed();
    guest.finish();
}

#[test]
fn failed_takeover_reports_its_error() {
    let (address, _keep) = fresh_address(true);
    let mut host = start("member", &address);
    host.expect("host");
    let guest = start("listen fails", &address);
    guest.expect("guest");
    assert!(guest.next_line().starts_with("channel guest"));
    host.kill();
    // The guest joins again, which needs the same system call.
    guest.expect("refused NO_SPACE");
    assert!(guest.next_line().starts_with("lost NO_SPACE"));
}

/// A cleaner has removed the host's files: a successor at that place would be a host that no client finds.
#[test]
fn guest_rebinds_if_the_hosts_files_were_removed() {
    for file in ["", ".lock"] {
        let (address, _keep) = fresh_address(true);
        let (mut host, guest) = start_pair(&address);
        host.send_line("send");
        host.send_line("partner");
        host.expect("true");
        fs::remove_file(format!("{address}{file}")).unwrap();
        host.kill();
        guest.expect("refused PEER_LOST");
        guest.expect("now host");
        let next = start_guest(&address, &guest);
        guest.expect("before hello lost");
        for mut member in [next, guest] {
            member.send_line("leave");
            member.expect("left");
        }
        assert_free(&address);
    }
}

#[test]
fn failed_membership_occupies_no_slot() {
    let Some(others) = OtherUsers::new() else { return };
    // A separate user: the limit counts all threads of a user.
    let uid = OTHER_UID + 1000 + std::process::id() % 10_000;
    let (address, _keep) = fresh_address(false);
    let host = member(
        &address,
        &small().policy(Policy::new().any_executable().uids([uid, 0])),
    )
    .unwrap();
    let short = others.start_as(uid, "limited threads", &[&address.to_string()]);
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
fn unread_channels_are_limited_until_polled() {
    let (address, _keep) = fresh_address(false);
    let own = member(&address, &small()).unwrap();
    let mut guest = start("member", &address);
    guest.expect("guest");
    // The guest closes its channel and joins again, until this side accepts it no longer.
    for _ in 0..16 {
        guest.next_line();
        guest.send_line("close");
    }
    assert_eq!(own.role(), Role::Host);
    for _ in 0..16 {
        assert!(matches!(own.next().unwrap(), Change::Channel(_)));
    }
    // It accepts it again now.
    assert!(guest.next_line().starts_with("channel guest"));
    assert!(own.partner(None).unwrap().is_some());
}

// Three members that join and leave at random.

/// Messages on a channel in each direction: some at once, then one for each that arrives.
const INITIAL_MESSAGES: u64 = 8;
const MESSAGES: u64 = 100;

fn now() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()
}

/// Inside a process that joins and leaves: exchanges messages with each partner, and records each sent
/// message where the record outlives the process. `own`: a unique name, since the kernel reuses process ids.
fn as_wanderer(address: &Address, records: &Path, own: u32) {
    let mut number = 0;
    let before = traces();
    loop {
        let membership = member(address, &small().wait(true)).unwrap();
        report(format!("{} {}", membership.role(), now()));
        let leaving = Arc::new(Mutex::new(false));
        let mut exchanges = Vec::new();
        loop {
            let stdin = std::io::stdin();
            let mut polled = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(membership.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut polled, PollTimeout::NONE).unwrap();
            let has_command = polled[0].any() == Some(true);
            while let Some(change) = membership.try_next().unwrap() {
                match change {
                    Change::Channel(channel) => {
                        report(format!("channel {} {}", channel.role(), channel.peer().pid));
                        let (records, leaving) = (records.to_owned(), Arc::clone(&leaving));
                        number += 1;
                        exchanges.push(thread::spawn(move || {
                            exchange(channel, (own, number), &records, &leaving);
                        }));
                    }
                    Change::Role(role) => report(format!("{role} {}", now())),
                    Change::Refused(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            if has_command {
                break;
            }
        }
        read_command();
        *leaving.lock().unwrap() = true;
        report(format!("leaving {}", now()));
        membership.leave();
        for exchange in exchanges {
            exchange.join().unwrap();
        }
        assert_eq!(traces(), before);
        report("left");
        read_command();
    }
}

/// The sender of messages: a wanderer, and the number of its channel.
type SenderId = (u32, u32);

fn record_file(records: &Path, (wanderer, number): SenderId) -> PathBuf {
    records.join(format!("{wanderer}-{number}"))
}

fn exchange(channel: Channel, own: SenderId, records: &Path, leaving: &Mutex<bool>) {
    let (mut sender, mut receiver) = channel.split();
    let record_file = File::create_new(record_file(records, own)).unwrap();
    let mut count = 0_u64;
    let mut send = || {
        // A message that is sent while this process leaves would be on neither side.
        let leaving = leaving.lock().unwrap();
        if *leaving || count == MESSAGES {
            return;
        }
        let mut message = [0; 16];
        message[..4].copy_from_slice(&own.0.to_le_bytes());
        message[4..8].copy_from_slice(&own.1.to_le_bytes());
        message[8..].copy_from_slice(&count.to_le_bytes());
        if sender.try_send(&message).unwrap_or(false) {
            count += 1;
            record_file.write_all_at(&count.to_le_bytes(), 0).unwrap();
        }
    };
    for _ in 0..INITIAL_MESSAGES {
        send();
    }
    let (mut read, mut peer) = (0_u64, None);
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
        assert_eq!(*peer.get_or_insert(this), this);
        assert_eq!(u64::from_le_bytes(message[8..].try_into().unwrap()), read);
        read += 1;
        send();
    };
    // If this side has left, it has no guarantees.
    if let (true, Some((wanderer, number))) = (ended, peer) {
        report(format!("received {wanderer} {number} {read}"));
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
    records: tempfile::TempDir,
    actors: HashMap<usize, (Actor, Known)>,
    next: usize,
    reports_to: mpsc::Sender<(usize, String)>,
    reports: Receiver<(usize, String)>,
    /// The start and end of each host's term.
    terms: Vec<(u128, u128)>,
    received: Vec<(SenderId, u64)>,
    random: u64,
}

impl Supervisor {
    fn start(&mut self) {
        let number = self.next;
        self.next += 1;
        let address = self.address.to_string();
        let name = number.to_string();
        let words = [&*address, self.records.path().to_str().unwrap(), &name];
        let actor = Actor::start_with_shared_output(number, self.reports_to.clone(), "wanderer", &words);
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
    fn handle_report(&mut self) {
        let report = self.reports.recv_timeout(TIME_LIMIT);
        let (number, line) = report.unwrap_or_else(|_| panic!("no report arrives: {:?}", self.known()));
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
            _ => panic!("unexpected report of {number}: {line}"),
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
            self.handle_report();
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
    fn make_leave(&mut self, number: usize) {
        self.actors.get_mut(&number).unwrap().0.proceed();
        loop {
            let Some((actor, known)) = self.actors.get_mut(&number) else {
                return;
            };
            if known.left {
                *known = Known::default();
                actor.proceed();
                return;
            }
            self.handle_report();
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
        for (sender_id, received) in &self.received {
            let sent = fs::read(record_file(self.records.path(), *sender_id)).unwrap();
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
    wanted.map_or(500, |wanted| wanted.parse().expect("a number"))
}

#[test]
fn random_churn_never_yields_two_hosts() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let (reports_to, reports) = mpsc::channel();
        let mut supervisor = Supervisor {
            address: address.clone(),
            records: tempfile::tempdir().unwrap(),
            actors: HashMap::new(),
            next: 0,
            reports_to,
            reports,
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
                supervisor.make_leave(number);
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
                    supervisor.actors.get_mut(&number).unwrap().0.proceed();
                    while !supervisor.actors[&number].1.left {
                        supervisor.handle_report();
                    }
                    supervisor.actors.remove(&number);
                }
                None => supervisor.handle_report(),
            }
        }
        supervisor.check();
        assert_free(&address);
    }
}

#[test]
fn maximum_durations_are_accepted() {
    let (address, _keep) = fresh_address(false);
    let options = small().handshake_timeout(Duration::MAX).busy_poll(Duration::MAX);
    member(&address, &options).unwrap().leave();
}

/// Joins each address that it is given, and reports whether it was a guest there before it was the host.
fn as_rejoiner() {
    loop {
        let path = PathBuf::from(read_command());
        if path.as_os_str().is_empty() {
            return;
        }
        report("joining");
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
        report(format!(
            "{} {}",
            if was_guest { "guest" } else { "host" },
            fs::metadata(&path).unwrap().ino()
        ));
        membership.leave();
    }
}

/// A guest that received READY takes over the address, whatever has happened to the host in the meantime.
#[test]
fn host_leaving_during_a_handshake_keeps_the_address() {
    let mut rejoiner = Actor::start("rejoiner", &[]);
    for round in 0..300 {
        let (address, directory) = fresh_address(true);
        let socket = directory.as_ref().unwrap().path().join("socket");
        let host = member(&address, &small()).unwrap();
        let before = fs::metadata(&socket).unwrap().ino();
        rejoiner.send_line(socket.to_str().unwrap());
        rejoiner.expect("joining");
        // A random moment within a handshake, which takes a few milliseconds.
        let moment = Instant::now() + Duration::from_micros(round * 10);
        while Instant::now() < moment {
            thread::yield_now();
        }
        host.leave();
        let reply = rejoiner.next_line();
        if let Some(inode) = reply.strip_prefix("guest ") {
            assert_eq!(inode, before.to_string(), "round {round}");
        }
    }
    rejoiner.finish();
}
