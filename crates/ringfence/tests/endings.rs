//! The end of a channel: a peer that is killed at any step and at any moment, and one that closes.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork, pause},
};
use ringfence::{Address, CancelToken, Channel, CloseReason, Error, Merge, Merged, Receiver, join};
use support::{
    Actor, assert_lost, fresh_address, join_later, report, small, wait_for_host, wait_for_test, wire,
};

/// The length of a message of a stream: every hundredth is sent in fragments.
fn length(number: u64) -> usize {
    let number = usize::try_from(number).unwrap();
    if number.is_multiple_of(100) {
        10_000
    } else {
        number * 37 % 1500 + 8
    }
}

fn message(number: u64) -> Vec<u8> {
    let mut message: Vec<u8> = (0..=u8::MAX).cycle().take(length(number)).collect();
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "host stops at" => wire::host(&arguments[0], &arguments[1], || {
            report("stopped");
            wait_for_test();
        }),
        "joins repeatedly" => loop {
            let channel = join(&address, &small().wait(true)).unwrap();
            report("met");
            drop(channel);
        },
        "stream" => {
            let (mut sender, _receiver) = join(&address, &small()).unwrap().split();
            for number in 0.. {
                sender.send(&message(number)).unwrap();
            }
        }
        "reads to the end" => {
            let (_sender, mut receiver) = join(&address, &small()).unwrap().split();
            report(receiver.receive_vec().unwrap_err().code());
        }
        "sends ten" => as_sends_ten(&address, &arguments[1]),
        "sits" => {
            let mut channel = join(&address, &small()).unwrap();
            report("met");
            wait_for_test();
            channel.sender().close();
            report("closed");
            wait_for_test();
        }
        "echoes after the end" => {
            let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
            let mut into = [0; 16_000];
            let mut count = 0;
            while let Some(found) = receiver.receive(&mut into).unwrap() {
                assert!(into[..found] == message(count), "message {count}");
                count += 1;
            }
            assert_eq!(receiver.close_reason(), None, "the other direction is open");
            for number in 0..count {
                sender.send(&message(number)).unwrap();
            }
            sender.end();
            report(format!("{:?}", receiver.close_reason()));
        }
        "reports mappings" => {
            let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
            report(mapped().to_string());
            if arguments[1] == "its peer" {
                assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
                // If the end of the sending came first, the close is a second event.
                while receiver.close_reason().is_none() {
                    receiver.poll_line().unwrap();
                }
                sender.refresh();
            } else {
                sender.close();
                receiver.close();
            }
            report(mapped().to_string());
            assert!(sender.close_reason().is_some());
        }
        "forks" => {
            let _channel = join(&address, &small()).unwrap();
            // SAFETY: the child does nothing but sleep.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => loop {
                    pause();
                },
                ForkResult::Parent { child } => {
                    report(child.to_string());
                    wait_for_test();
                }
            }
        }
        other => unreachable!("{other}"),
    }
}

/// Sends ten messages, and goes in this way.
fn as_sends_ten(address: &Address, way: &str) {
    let channel = join(address, &small()).unwrap();
    let (mut sender, receiver) = channel.split();
    for number in 1..=10 {
        sender.send(&message(number)[..8]).unwrap();
    }
    match way {
        "closes" => sender.close(),
        "ends and closes" => {
            sender.end();
            sender.close();
        }
        "ends and destroys" => {
            sender.end();
            sender.destroy();
        }
        "destroys" => sender.destroy(),
        "drops" => drop((sender, receiver)),
        "panics" => {
            let panicking = thread::spawn(move || {
                let _halves = (sender, receiver);
                panic!("on purpose");
            });
            assert!(panicking.join().is_err());
        }
        "panics as it receives" => {
            let panicking = thread::spawn(move || {
                let _receiver = receiver;
                panic!("on purpose");
            });
            assert!(panicking.join().is_err());
            sender.end();
        }
        "exits" => std::process::exit(0),
        "is killed" => {
            report("closed");
            return wait_for_test();
        }
        other => unreachable!("{other}"),
    }
    report("closed");
    wait_for_test();
}

/// Counts the shared objects that this process has mapped.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:ringfence"))
        .count()
}

/// A program may keep its handles of a channel for a long time.
#[test]
fn halves_of_an_ended_channel_unmap_its_memory() {
    for closer in ["itself", "its peer"] {
        let (reporter, channel) = host_with("reports mappings", &[closer]);
        reporter.expect("2");
        if closer == "its peer" {
            channel.close();
        }
        reporter.expect("0");
        reporter.finish();
    }
}

fn host_with(role: &str, arguments: &[&str]) -> (Actor, Channel) {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &small());
    wait_for_host(&address);
    let address = address.to_string();
    let mut all = vec![address.as_str()];
    all.extend(arguments);
    let actor = Actor::start(role, &all);
    (actor, host.join().unwrap().expect("a channel"))
}

/// Reads until the channel ends, whatever arrives before that.
fn end_of(receiver: &mut Receiver) -> CloseReason {
    loop {
        match receiver.receive(&mut [0; 16_000]) {
            Ok(Some(_)) => {}
            Ok(None) | Err(Error::PeerLost(_)) => break,
            Err(error) => panic!("an honest peer: {error}"),
        }
    }
    receiver.close_reason().expect("an ended channel")
}

#[test]
fn host_killed_at_any_step_is_lost_or_replaced() {
    for step in wire::HOST_STEPS {
        let (address, _keep) = fresh_address(false);
        let mut host = Actor::start("host stops at", &[&address.to_string(), step]);
        wait_for_host(&address);
        let guest = join_later(&address, &small());
        host.expect("stopped");
        host.kill();
        match step {
            "listening" | "accepted" | "HELLO" => {
                // The host had not answered: its guest and the next process to arrive form a pair.
                let partner = Actor::start("sits", &[&address.to_string()]);
                let channel = guest.join().unwrap().expect("a channel");
                assert_eq!(channel.peer().pid, partner.pid(), "{step}");
            }
            // It completed the handshake as a host.
            "READY" => {
                let (_sender, mut receiver) = guest.join().unwrap().expect("a channel").split();
                assert_eq!(end_of(&mut receiver), CloseReason::Lost);
            }
            _ => {
                let error = guest.join().unwrap().expect_err("no channel");
                assert_eq!(error.code(), "PEER_LOST", "{step}: {error}");
            }
        }
    }
}

#[test]
fn host_can_exit_before_its_guest_reads_ready() {
    let (address, _directory) = fresh_address(false);
    let mut host = Actor::start("host stops at", &[&address.to_string(), "ready"]);
    wait_for_host(&address);
    let guest = Actor::start("reads to the end", &[&address.to_string()]);
    host.expect("stopped");
    guest.stop();
    host.proceed();
    host.finish();
    guest.resume();
    guest.expect("PEER_LOST");
    guest.finish();
}

#[test]
fn peers_killed_at_random_leave_the_address_usable() {
    const KILLS: u32 = 60;
    let (address, keep) = fresh_address(true);
    for round in 0..KILLS {
        let mut worker = Actor::start("joins repeatedly", &[&address.to_string()]);
        let pid = worker.pid();
        let channel = join(&address, &small().wait(true)).expect("a channel");
        assert_eq!(channel.peer().pid, pid);
        drop(channel);
        worker.expect("met");
        // The worker is in the middle of its next join, at a different step each round.
        let cancel_token = CancelToken::new().unwrap();
        let canceller = cancel_token.clone();
        let killer = thread::spawn(move || {
            let end = Instant::now() + Duration::from_micros(u64::from(round) * 53 % 1500);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            worker.kill();
            canceller.cancel();
        });
        match join(&address, &small().wait(true).cancel_token(cancel_token)) {
            Ok(channel) => {
                // The channel ends when the worker closes it or dies.
                let (_sender, mut receiver) = channel.split();
                match receiver.receive(&mut [0; 8]) {
                    Ok(None) | Err(Error::PeerLost(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
            Err(error) => assert!(
                matches!(error, Error::Aborted | Error::PeerLost(_)),
                "round {round}: {error}"
            ),
        }
        killer.join().unwrap();
    }
    let partner = Actor::start("sits", &[&address.to_string()]);
    wait_for_host(&address);
    let channel = join(&address, &small()).expect("a channel");
    partner.expect("met");
    channel.close();
    drop(partner);
    // The partner was killed as the host: the next host must remove its files.
    let host = CancelToken::new().unwrap();
    let next = join_later(&address, &small().cancel_token(host.clone()));
    wait_for_host(&address);
    host.cancel();
    assert!(matches!(next.join().unwrap(), Err(Error::Aborted)));
    assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
}

#[test]
fn committed_messages_survive_a_kill_mid_transfer() {
    const READ_BEFORE: u64 = 5000;
    let (mut streamer, channel) = host_with("stream", &[]);
    let (mut sender, mut receiver) = channel.split();
    let mut into = [0; 16_000];
    let mut count = 0;
    let end = loop {
        match receiver.receive(&mut into) {
            Ok(Some(found)) => {
                assert!(into[..found] == message(count), "message {count}");
                count += 1;
                if count == READ_BEFORE {
                    streamer.kill();
                }
            }
            end => break end,
        }
    };
    assert_lost(end);
    assert!(count >= READ_BEFORE);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    assert_lost(sender.send(b"x"));
    assert_lost(receiver.receive(&mut into));
}

#[test]
fn messages_sent_before_a_close_are_read() {
    for ending in ["closes", "ends and closes", "ends and destroys", "destroys"] {
        let (mut closer, channel) = host_with("sends ten", &[ending]);
        closer.expect("closed");
        let (mut sender, mut receiver) = channel.split();
        let mut into = [0; 16];
        for number in 1..=10_u64 {
            assert_eq!(receiver.receive(&mut into).unwrap(), Some(8));
            assert_eq!(into[..8], number.to_le_bytes());
        }
        if ending == "destroys" {
            assert_lost(receiver.receive(&mut into));
            assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
        } else {
            assert_eq!(receiver.receive(&mut into).unwrap(), None);
            // If the end of the sending came first, the close is a second event.
            while receiver.close_reason().is_none() {
                receiver.poll_line().unwrap();
            }
            assert_eq!(receiver.close_reason(), Some(CloseReason::Closed));
        }
        assert_lost(sender.send(b"x"));
        closer.proceed();
    }
}

/// Reads to the end. Returns the number of messages, and whether the end was clean.
type ReadAll = fn(Channel) -> (usize, Result<(), Error>);

const READS: &[(&str, ReadAll)] = &[
    ("receive", |channel| {
        let (_sender, mut receiver) = channel.split();
        let mut count = 0;
        let end = loop {
            match receiver.receive(&mut [0; 8]) {
                Ok(Some(_)) => count += 1,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        (count, end)
    }),
    ("try_receive", |channel| {
        let (_sender, mut receiver) = channel.split();
        let mut count = 0;
        let end = loop {
            match receiver.try_receive(&mut [0; 8]) {
                Ok(Some(_)) => count += 1,
                Ok(None) => match receiver.is_ended() {
                    Ok(false) => thread::yield_now(),
                    ended => break ended.map(drop),
                },
                Err(error) => break Err(error),
            }
        };
        (count, end)
    }),
    ("receive_each", |channel| {
        let (_sender, mut receiver) = channel.split();
        let mut count = 0;
        let mut some = || {
            let is_over = !receiver.wait_readable(None)?;
            receiver.receive_each(|_| count += 1, 3)?;
            Ok(!is_over)
        };
        let end = loop {
            match some() {
                Ok(true) => {}
                end => break end.map(drop),
            }
        };
        (count, end)
    }),
    ("merge", |channel| {
        let (_sender, receiver) = channel.split();
        let mut merge = Merge::new().unwrap();
        merge.add(receiver).unwrap();
        let mut count = 0;
        let end = loop {
            match merge
                .receive(&mut [0; 8])
                .unwrap()
                .expect("the end of the source")
            {
                Merged::Message { .. } => count += 1,
                Merged::Ended {
                    reason: CloseReason::Closed,
                    ..
                } => break Ok(()),
                Merged::Ended { reason, .. } => break Err(Error::PeerLost(reason.to_string())),
            }
        };
        assert_eq!(merge.receive(&mut [0; 8]).unwrap(), None, "no source is left");
        (count, end)
    }),
    #[cfg(feature = "tokio")]
    ("a task", |channel| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut channel = ringfence::tokio::Channel::new(channel).unwrap();
            let mut count = 0;
            let end = loop {
                match channel.receive_vec().await {
                    Ok(Some(_)) => count += 1,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            (count, end)
        })
    }),
];

#[test]
fn every_read_distinguishes_a_lost_peer_from_a_clean_end() {
    for (way, is_clean) in [
        ("closes", true),
        ("drops", true),
        ("ends and destroys", true),
        ("destroys", false),
        ("panics", false),
        ("panics as it receives", false),
        ("exits", false),
        ("is killed", false),
    ] {
        for (name, read) in READS {
            let (mut closer, channel) = host_with("sends ten", &[way]);
            if way != "exits" {
                closer.expect("closed");
            }
            if way == "is killed" {
                closer.kill();
            }
            let (count, end) = read(channel);
            assert_eq!(count, 10, "{way}, {name}");
            match end {
                Ok(()) => assert!(is_clean, "{way}, {name}: a clean end"),
                Err(Error::PeerLost(_)) => assert!(!is_clean, "{way}, {name}: lost"),
                Err(error) => panic!("{way}, {name}: {error}"),
            }
        }
    }
}

#[test]
fn waiting_sender_detects_a_lost_peer() {
    for killed in [true, false] {
        let (mut sitter, channel) = host_with("sits", &[]);
        let (mut sender, _receiver) = channel.split();
        while sender.try_send(&[1; 500]).unwrap() {}
        let waiting = thread::spawn(move || sender.send(&[1; 2000]).unwrap_err());
        sitter.expect("met");
        if killed {
            sitter.kill();
        } else {
            sitter.proceed();
            sitter.expect("closed");
        }
        assert_eq!(waiting.join().unwrap().code(), "PEER_LOST");
    }
}

#[test]
fn close_on_one_thread_ends_a_wait_on_another() {
    let (_sitter, channel) = host_with("sits", &[]);
    let (mut sender, mut receiver) = channel.split();
    let waiting = thread::spawn(move || receiver.receive(&mut [0; 8]));
    sender.close();
    let found = waiting.join().unwrap();
    assert!(matches!(found, Err(Error::Closed(_))), "{found:?}");
}

#[test]
fn one_direction_can_end_before_the_other() {
    const MESSAGES: u64 = 500;
    let (answerer, channel) = host_with("echoes after the end", &[]);
    let (mut sender, mut receiver) = channel.split();
    for number in 0..MESSAGES {
        sender.send(&message(number)).unwrap();
    }
    sender.end();
    assert!(matches!(sender.try_send(b"x"), Err(Error::Closed(_))));
    assert_eq!(receiver.close_reason(), None);
    let mut into = [0; 16_000];
    for number in 0..MESSAGES {
        let found = receiver.receive(&mut into).unwrap().expect("a message");
        assert!(into[..found] == message(number), "message {number}");
    }
    assert_eq!(receiver.receive(&mut into).unwrap(), None);
    assert_eq!(
        receiver.close_reason(),
        Some(CloseReason::Closed),
        "both have ended"
    );
    assert!(matches!(sender.send(b"x"), Err(Error::Closed(_))));
    answerer.expect("Some(Closed)");
    answerer.finish();
}

#[test]
fn peer_exit_is_detected_despite_its_forked_child() {
    /// A child of a dead process: nothing else would end it.
    struct Orphan(Pid);

    impl Drop for Orphan {
        fn drop(&mut self) {
            // It may have been ended with its parent.
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }

    let (mut forker, channel) = host_with("forks", &[]);
    let child = Orphan(Pid::from_raw(forker.next_line().parse().unwrap()));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.0)).unwrap();
    assert!(
        !maps.contains("ringfence (deleted)") && !maps.contains("memfd:"),
        "{maps}"
    );
    let (_sender, mut receiver) = channel.split();
    forker.kill();
    assert_lost(receiver.receive(&mut [0; 8]));
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
}
