//! Each step of the handshake on its own: malformed, truncated, or omitted.

mod support;

use std::{
    io::Read,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::libc;
use ringfence::{Address, Backing, CancelToken, CloseReason, Error, Options, Policy, join};
use support::{
    Actor, fresh_address, join_later, report, small, wait_for_host, wait_for_test,
    wire::{self, ManualGuest},
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = arguments[0].as_str();
    match role.as_str() {
        "join" => {
            let backing = arguments
                .get(1)
                .map_or(Backing::Memfd, |text| text.parse().unwrap());
            match join(&address.parse().unwrap(), &small().backing(backing)) {
                Ok(channel) => {
                    report(channel.role().to_string());
                    let (_sender, mut receiver) = channel.split();
                    // Until the other side ends.
                    receiver.receive(&mut [0; 64]).unwrap();
                }
                Err(error) => report(format!("{} {error}", error.code())),
            }
        }
        "stop at" => wire::guest(address, &arguments[1], false, || {
            report("stopped");
            wait_for_test();
        }),
        "silent guest" => {
            let mut answer = Vec::new();
            let _ = wire::connect(address).read_to_end(&mut answer);
            report("disconnected");
        }
        "pidfds before" | "pidfds after" => with_pidfds(address, role == "pidfds before"),
        "in pieces" => wire::guest(address, "", true, || {}),
        "prefixes" => {
            let hello = wire::hello(&[0; 32]);
            for length in 0..hello.len() {
                let mut stream = wire::connect(address);
                let (_mine, theirs) = wire::line();
                if length > 0 {
                    wire::send(&stream, &hello[..length], Some(theirs.as_fd()));
                }
                // Until it is rejected: a host accepts only a limited number of connections of one process at
                // a time.
                stream.shutdown(Shutdown::Write).unwrap();
                stream.read_to_end(&mut Vec::new()).unwrap();
            }
            report("all");
        }
        "sends frame" => {
            let mut stream = wire::connect(address);
            let (_mine, theirs) = wire::line();
            let hello = wire::hello(&[0; 32]);
            let bytes = match arguments[1].as_str() {
                "magic" => wire::frame(*b"RINGFNCE", 3, 1, &hello[16..]),
                "version" => wire::frame(*b"ringfnce", 1, 1, &hello[16..]),
                "kind" => wire::good(9, &hello[16..]),
                "early" => wire::good(3, &[0; 32]),
                "long" => wire::good(1, &[0; 97]),
                _ => unreachable!("{arguments:?}"),
            };
            wire::send(&stream, &bytes, Some(theirs.as_fd()));
            // The reason arrives on the agreed socket: a REFUSE frame, or at least the end.
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            report(String::from_utf8_lossy(&answer).replace(char::is_control, " "));
        }
        "silent host" => {
            let listener = wire::listen(address);
            report("listening");
            let _stream = listener.accept().unwrap();
            wait_for_test();
        }
        "host that passes a descriptor" => {
            let listener = wire::listen(address);
            report("listening");
            let (_mine, descriptor) = wire::line();
            wire::answer_with(&listener.accept().unwrap().0, 0, &[descriptor.as_fd()]);
        }
        "refusing host" => {
            let listener = wire::listen(address);
            report("listening");
            for code in &arguments[1..] {
                wire::refuse_client(&listener.accept().unwrap().0, 5, code);
                report(code);
            }
            // The guest connects once more. It is refused, and does not wait there for a partner.
            wire::refuse_client(&listener.accept().unwrap().0, 1, "address");
            report("connected again");
        }
        "counts barriers" => count_barriers(address, arguments.get(1).map(String::as_str)),
        "host with wrong echo" | "host that is not ready" => {
            let ready = |line: &UnixStream| match role.as_str() {
                "host that is not ready" => report("not ready"),
                // This READY does not echo the guest's nonce.
                _ => wire::send(line, &wire::good(3, &[0; 32]), None),
            };
            let listener = wire::listen(address);
            report("listening");
            let word = wire::host_of_a_guest_that_fails(&listener, 0, ready);
            report(format!("phase {word}"));
        }
        other => unreachable!("{other}"),
    }
}

/// A guest that has the kernel install a pidfd with each part of its frames: either from before it passes the
/// line, or only after the host has answered.
fn with_pidfds(address: &str, before: bool) {
    let stream = wire::connect(address);
    let (mut mine, theirs) = wire::line();
    if before {
        assert!(wire::request_pidfds(&theirs));
    }
    wire::send(&stream, &wire::hello(&[0; 32]), Some(theirs.as_fd()));
    let (_, body) = wire::receive(&mut mine).expect("the host's HELLO");
    let nonce = &body[..32];
    if !before {
        assert!(wire::request_pidfds(&theirs));
    }
    let (object, _mapping) = wire::object();
    if before {
        wire::send_in_pieces(&mine, &wire::offer(nonce), Some(object.as_fd()));
    }
    // Without an OFFER it is also the wrong frame, which shows only once all of it was read.
    wire::send_in_pieces(&mine, &wire::good(3, nonce), None);
    loop {
        match wire::receive(&mut mine) {
            Ok((2, _)) => {}
            Ok((3, _)) => break report("ready"),
            Ok((4, body)) => {
                break report(String::from_utf8_lossy(&body[2..]).replace(char::is_control, " "));
            }
            other => break report(format!("{other:?}")),
        }
    }
    wait_for_test();
}

/// Counts the barriers that this process issues to park once.
fn count_barriers(address: &str, mode: Option<&str>) {
    /// `MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED`.
    const REGISTER: i32 = 4;
    match mode {
        Some("forbidden") => support::forbid(libc::SYS_membarrier, None, libc::ENOSYS),
        Some("not yet registered") => {
            support::forbid(libc::SYS_membarrier, Some((0, REGISTER)), libc::ENOSYS);
        }
        _ => {}
    }
    let (_sender, mut receiver) = join(&address.parse().unwrap(), &small()).unwrap().split();
    support::count_barriers();
    assert!(receiver.arm().unwrap(), "no message was sent");
    report(support::barriers().to_string());
    wait_for_test();
}

/// Counts the pidfds of a process that this one holds, from /proc/self/fdinfo.
fn pidfds_of(pid: i32) -> usize {
    let wanted = format!("Pid:\t{pid}");
    std::fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .filter(|text| text.lines().any(|line| line == wanted))
        .count()
}

/// A sound partner connects, and gets the slot.
fn partner_is_accepted(
    address: &Address,
    host: std::thread::JoinHandle<ringfence::Result<ringfence::Channel>>,
) {
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("guest");
    let channel = host.join().unwrap().expect("a channel");
    assert_eq!(channel.peer().pid, partner.pid());
    channel.close();
    partner.finish();
}

#[test]
fn guest_killed_at_any_step_frees_the_slot() {
    for step in wire::GUEST_STEPS {
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &small());
        wait_for_host(&address);
        let mut guest = Actor::start("stop at", &[&address.to_string(), step]);
        guest.expect("stopped");
        if step == "READY" {
            // It completed the handshake as a guest, and then died: the host has a channel that ends.
            guest.kill();
            let (_sender, mut receiver) = host.join().unwrap().expect("a channel").split();
            assert!(matches!(receiver.receive(&mut [0; 64]), Err(Error::PeerLost(_))));
            assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
        } else {
            guest.kill();
            partner_is_accepted(&address, host);
        }
    }
}

/// The host already has a channel, and would take the guest for dead.
#[test]
fn guest_that_fails_after_ready_reports_a_close() {
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("host with wrong echo", &[&address.to_string()]);
    host.expect("listening");
    let refused = join(&address, &small()).expect_err("no channel");
    assert!(matches!(refused, Error::Protocol(_)), "{refused}");
    host.expect("phase 2");
    host.finish();
}

/// The host may have the channel already, and its READY be on the way.
#[test]
fn guest_that_gives_up_after_its_ready_ends_cleanly() {
    const CLOSED_AND_ENDED: u64 = 2 | 8;
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("host that is not ready", &[&address.to_string()]);
    host.expect("listening");
    let token = CancelToken::new().unwrap();
    let guest = join_later(&address, &small().cancel_token(token.clone()));
    host.expect("not ready");
    token.cancel();
    assert!(matches!(guest.join().unwrap(), Err(Error::Aborted)));
    host.expect(&format!("phase {CLOSED_AND_ENDED}"));
    host.finish();
}

#[test]
fn descriptor_in_the_hosts_hello_is_rejected() {
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("host that passes a descriptor", &[&address.to_string()]);
    host.expect("listening");
    let refused = join(&address, &small()).expect_err("no channel");
    assert!(
        matches!(&refused, Error::Protocol(what) if what.contains("descriptors")),
        "{refused}"
    );
    host.finish();
}

/// A waiting guest has lost nothing if a host is about to leave. A local error of the host would recur.
#[test]
fn guest_retries_transient_refusals_only() {
    let (address, _keep) = fresh_address(false);
    let codes = ["CLOSED", "HANDSHAKE_TIMEOUT", "NO_SPACE"];
    let host = Actor::start("refusing host", &[&[&*address.to_string()], &codes[..]].concat());
    host.expect("listening");
    let refused = join(&address, &small()).expect_err("no channel");
    assert!(
        matches!(&refused, Error::PeerLost(why) if why.contains("NO_SPACE, as reported")),
        "{refused}"
    );
    for code in codes {
        host.expect(code);
    }
}

/// Its announced features: bit 0, that it supports barriers; bit 1, that it restricts access by other
/// processes of its user.
#[test]
fn barriers_are_used_only_if_both_sides_announce_them() {
    if !support::has_barriers() {
        eprintln!("skipped: this system has no barriers");
        return;
    }
    for (mode, features, barriers) in [
        ("", 1, ["0", "1", "0", "1"]),
        // A publisher that is not registered makes fences. As a sleeper, it issues barriers like any other.
        ("not yet registered", 1, ["0", "1", "0", "1"]),
        ("forbidden", 0, ["0"; 4]),
    ] {
        for (announced, barriers) in (0..).zip(barriers) {
            let (address, _keep) = fresh_address(false);
            let mut host = Actor::start("counts barriers", &[&address.to_string(), mode]);
            wait_for_host(&address);
            let guest = ManualGuest::guest_with(&address.to_string(), announced);
            assert_eq!(guest.features, features);
            assert_eq!(host.next_line(), barriers, "to a peer that announces {announced}");
            host.proceed();
        }
    }
}

#[test]
fn guest_stalled_at_any_step_does_not_block_the_next() {
    for step in &wire::GUEST_STEPS[..5] {
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &small());
        wait_for_host(&address);
        let staller = Actor::start("stop at", &[&address.to_string(), step]);
        staller.expect("stopped");
        // It is still at its step when the next guest connects.
        partner_is_accepted(&address, host);
    }
}

#[test]
fn truncated_hello_is_refused_and_split_hello_accepted() {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let prefixes = Actor::start("prefixes", &[&address.to_string()]);
    prefixes.expect("all");
    let pieces = Actor::start("in pieces", &[&address.to_string()]);
    let channel = host.join().unwrap().expect("a channel");
    assert_eq!(channel.peer().pid, pieces.pid());
    assert_eq!(
        (channel.role(), channel.peer().executable.is_some()),
        (ringfence::Role::Host, true)
    );
    channel.close();
    pieces.finish();
}

#[test]
fn unexpected_control_message_ends_the_handshake() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    if !wire::request_pidfds(&one) {
        eprintln!("skipped: SO_PASSPIDFD takes Linux 6.5");
        return;
    }
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let mut guest = Actor::start("pidfds after", &[&address.to_string()]);
    let answer = guest.next_line();
    // The host closes the pidfd that it holds of every guest a moment after it has sent the reason.
    let end = Instant::now() + support::TIME_LIMIT;
    while pidfds_of(guest.pid()) > 0 {
        assert!(Instant::now() < end, "{} pidfds are left", pidfds_of(guest.pid()));
        std::thread::yield_now();
    }
    assert!(
        answer.contains("protocol") && answer.contains("control message"),
        "{answer}"
    );
    guest.proceed();
    partner_is_accepted(&address, host);
}

#[test]
fn socket_options_of_a_passed_line_are_reset() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    if !wire::request_pidfds(&one) {
        eprintln!("skipped: SO_PASSPIDFD takes Linux 6.5");
        return;
    }
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let mut guest = Actor::start("pidfds before", &[&address.to_string()]);
    guest.expect("ready");
    let channel = host.join().unwrap().unwrap();
    assert_eq!(channel.peer().pid, guest.pid());
    // The pidfd that every channel holds of its peer.
    assert_eq!(pidfds_of(guest.pid()), 1);
    drop(channel);
    guest.proceed();
    guest.finish();
}

#[test]
fn malformed_frames_are_refused_with_a_reason() {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    for (what, reason) in [
        ("magic", "begins with"),
        ("version", "speaks version 1, and this is version 3"),
        ("kind", "unknown kind 9"),
        ("early", "expected a HELLO"),
        ("long", "97 bytes"),
    ] {
        let stranger = Actor::start("sends frame", &[&address.to_string(), what]);
        let answer = stranger.next_line();
        assert!(answer.contains(reason), "{what}: {answer}");
        stranger.finish();
    }
    partner_is_accepted(&address, host);
}

#[test]
fn silent_host_fails_the_join_at_its_deadline() {
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("silent host", &[&address.to_string()]);
    host.expect("listening");
    let started = Instant::now();
    let error = join(&address, &small().handshake_timeout(Duration::from_millis(300))).unwrap_err();
    assert!(
        matches!(error, Error::HandshakeTimeout { after, .. } if after == Duration::from_millis(300)),
        "{error}"
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn silent_guest_is_dropped_at_the_deadline() {
    let (address, _keep) = fresh_address(false);
    // Long enough for the partner's handshake on a busy machine.
    let host = join_later(&address, &small().handshake_timeout(Duration::from_secs(1)));
    wait_for_host(&address);
    let silent = Actor::start("silent guest", &[&address.to_string()]);
    // The host hangs up after the deadline, and the silent guest notices.
    silent.expect("disconnected");
    partner_is_accepted(&address, host);
}

#[test]
fn differing_backings_are_reported_to_the_guest() {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let guest = Actor::start("join", &[&address.to_string(), "shm"]);
    let answer = guest.next_line();
    assert!(
        answer.starts_with("PROTOCOL") && answer.contains("memfd") && answer.contains("shm"),
        "{answer}"
    );
    guest.finish();
    partner_is_accepted(&address, host);
}

#[test]
fn other_executable_is_refused_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    support::copy_of_this_executable(&copy);
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let stranger = Actor::start_from(copy.clone(), "join", &[&address.to_string()]);
    let answer = stranger.next_line();
    assert!(
        answer.starts_with("PEER_REFUSED") && answer.contains("executable"),
        "{answer}"
    );
    stranger.finish();
    partner_is_accepted(&address, host);

    // As the host, it is refused by the guest as well.
    let (address, _keep) = fresh_address(false);
    let mut stranger = Actor::start_from(copy.clone(), "join", &[&address.to_string()]);
    wait_for_host(&address);
    let error = join(&address, &small()).unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!((refusal.check.as_str(), refusal.by_peer), ("executable", false));
    assert_eq!(
        refusal.identity.as_ref().map(|peer| peer.pid),
        Some(stranger.pid())
    );
    assert!(refusal.found.contains("copy"), "{refusal}");
    // A policy that names its executable admits it. Its own policy must name ours.
    stranger.kill();
    let mut stranger = Actor::start_from(copy.clone(), "join", &[&address.to_string()]);
    wait_for_host(&address);
    let error = join(&address, &small().policy(Policy::new().executables([&copy]))).unwrap_err();
    assert!(error.refusal().is_some_and(|refusal| refusal.by_peer), "{error}");
    stranger.kill();
}

#[test]
fn another_user_is_refused_and_the_host_keeps_waiting() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to be another user");
        return;
    }
    let (address, _keep) = fresh_address(false);
    // Another user must be able to execute it.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let copy = directory.path().join("copy");
    support::copy_of_this_executable(&copy);
    let options = small().policy(Policy::new().any_executable());
    let host = join_later(&address, &options);
    wait_for_host(&address);
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid=65001", "--regid=65001", "--clear-groups"])
        .arg(&copy);
    let stranger = Actor::run(command, "join", &[&address.to_string()]);
    let answer = stranger.next_line();
    assert!(answer.starts_with("PEER_REFUSED"), "{answer}");
    stranger.finish();
    partner_is_accepted(&address, host);
}

#[test]
fn waiting_host_can_be_cancelled() {
    let (address, _keep) = fresh_address(true);
    let cancel_token = CancelToken::new().unwrap();
    let host = join_later(&address, &small().cancel_token(cancel_token.clone()));
    wait_for_host(&address);
    cancel_token.cancel();
    assert!(matches!(host.join().unwrap(), Err(Error::Aborted)));
    let path = address.as_path().unwrap();
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn out_of_range_options_are_rejected() {
    let (address, _keep) = fresh_address(false);
    for (options, code) in [
        (Options::new().capacity(0), "INVALID_ARGUMENT"),
        (Options::new().max_message_size(0), "INVALID_ARGUMENT"),
        (Options::new().max_message_size((1 << 31) + 1), "INVALID_ARGUMENT"),
        (Options::new().mode(0o1777), "INVALID_ARGUMENT"),
        (Options::new().group(u32::MAX), "INVALID_ARGUMENT"),
        (
            Options::new().handshake_timeout(Duration::ZERO),
            "INVALID_ARGUMENT",
        ),
        (Options::new().capacity(1 << 45), "NO_SPACE"),
        (Options::new().capacity(u64::MAX), "NO_SPACE"),
    ] {
        assert_eq!(join(&address, &options).unwrap_err().code(), code, "{options:?}");
    }
}
