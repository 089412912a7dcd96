//! Several threads end a channel at once, in different ways: the peer is notified of one end, the true one.

mod support;

use std::{
    fs,
    sync::{Arc, Barrier, mpsc},
    thread,
};

use ringfence::{
    Address, Change, Channel, CloseReason, LEAVING, Policy, Receiver, Role, Tokens, join, member,
};
use support::{
    Actor, assert_lost, copy_of_this_executable, fresh_address, report, small, wait_for_host, wait_for_test,
};

/// Of 6,000 such closes, 119 were reported wrongly when each half wrote the phase on its own.
const CLOSES: u32 = 800;
/// As many as the peer's ring holds.
const MESSAGES: usize = 9;
const LENGTH: usize = 1500;
/// Copying this takes longer than a peer takes to notice an end.
const LARGE: usize = 16 << 20;

/// The ways in which a peer that has sent tokens ends.
const WAYS: [&str; 3] = ["closes", "is dropped", "ends"];
/// The calls by which a reader notices it.
const CHECKS: [&str; 3] = ["receive", "is_ended", "try_receive"];
/// Every way with every check, 100 times.
const ROUNDS: usize = 900;
const LEAVES: usize = 60;

fn send_tokens(tokens: &Tokens) {
    for token in 1..=3 {
        while let Err(error) = tokens.send(token) {
            // Queued signals are counted per user.
            assert_eq!(error.code(), "NO_SPACE", "{error}");
        }
    }
}

/// Reads until the end is reported.
fn read_to_the_end(receiver: &mut Receiver, check: &str) {
    match check {
        "receive" => assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None),
        "is_ended" => while !receiver.is_ended().unwrap() {},
        "try_receive" => {
            while !receiver.is_ended().unwrap() {
                assert_eq!(receiver.try_receive(&mut [0; 8]).unwrap(), None);
            }
        }
        other => unreachable!("{other}"),
    }
}

fn drain(tokens: &Tokens) -> Vec<u64> {
    std::iter::from_fn(|| tokens.try_token()).collect()
}

fn message(number: usize) -> Vec<u8> {
    (0..LENGTH)
        .map(|at| u8::try_from((at * 7 + number * 31) % 250 + 1).unwrap())
        .collect()
}

/// Closes from the reading half while the writing half is dropped, on two threads that start at the same
/// moment.
fn close_from_both_sides(channel: Channel) {
    let (sender, mut receiver) = channel.split();
    let start = Arc::new(Barrier::new(2));
    let starts = Arc::clone(&start);
    let closing = thread::spawn(move || {
        starts.wait();
        receiver.close();
    });
    start.wait();
    drop(sender);
    closing.join().unwrap();
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "closes from both sides" => {
            for _ in 0..CLOSES {
                close_from_both_sides(join(&address, &small().wait(true)).unwrap());
            }
            wait_for_test();
        }
        "guest of closing host" => as_guest_of_closing_host(&address),
        "sends tokens and ends" => as_sends_tokens_and_ends(&address),
        "sends tokens and leaves" => as_sends_tokens_and_leaves(&address),
        "sends large" => as_sends_large(&address),
        "reads after refusal" => as_reads_after_refusal(&address, &arguments),
        other => unreachable!("{other}"),
    }
}

fn as_guest_of_closing_host(address: &Address) {
    let membership = member(address, &small()).unwrap();
    report(membership.role().to_string());
    let mut channels = 0;
    while channels < CLOSES {
        match membership.next().unwrap() {
            Change::Channel(channel) => {
                let (_sender, mut receiver) = channel.split();
                assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
                channels += 1;
            }
            Change::Role(role) => panic!("the {role} after {channels} channels"),
            Change::Refused(refused) => panic!("{refused:?}"),
            _ => {}
        }
    }
    report(format!("{} after {channels}", membership.role()));
    wait_for_test();
}

fn as_sends_tokens_and_ends(address: &Address) {
    for how in WAYS.iter().cycle().take(ROUNDS) {
        let channel = join(address, &small().wait(true)).unwrap();
        send_tokens(&channel.tokens());
        match *how {
            "closes" => channel.close(),
            "is dropped" => drop(channel),
            "ends" => {
                let (mut sender, mut receiver) = channel.split();
                sender.end();
                assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
            }
            other => unreachable!("{other}"),
        }
    }
}

fn as_sends_tokens_and_leaves(address: &Address) {
    for round in 0..LEAVES {
        let address: Address = format!("{address}-{round}").parse().unwrap();
        let membership = member(&address, &small()).unwrap();
        let channel = membership.partner(None).unwrap().unwrap();
        send_tokens(&channel.tokens());
        membership.leave();
    }
}

fn as_sends_large(address: &Address) {
    let large = vec![7; LARGE];
    loop {
        let options = small().capacity(2 * LARGE as u64).wait(true);
        let (mut sender, mut receiver) = join(address, &options).unwrap().split();
        sender.send(&large).unwrap();
        // Drop the channel as soon as the other side is done with it: that wipes the memory.
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
    }
}

fn as_reads_after_refusal(address: &Address, arguments: &[String]) {
    // The test runs another file.
    let policy = Policy::new().executables([&arguments[1]]);
    let mut channel = join(address, &small().policy(policy)).unwrap();
    report("joined");
    wait_for_test();
    let receiver = channel.receiver();
    let mut into = [0; LENGTH];
    for number in 0..MESSAGES {
        assert_eq!(receiver.receive(&mut into).unwrap(), Some(LENGTH), "{number}");
        assert!(into[..] == message(number), "message {number} was torn");
    }
    assert_lost(receiver.receive(&mut into));
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    report("all read");
}

#[test]
fn concurrent_close_and_drop_report_one_close() {
    let (address, _keep) = fresh_address(false);
    let closer = Actor::start("closes from both sides", &[&address.to_string()]);
    let mut reasons = Vec::new();
    for _ in 0..CLOSES {
        let (_sender, mut receiver) = join(&address, &small().wait(true)).unwrap().split();
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
        // If the end of the sending came first, the close is a second event.
        while receiver.close_reason().is_none() {
            receiver.poll_line().unwrap();
        }
        reasons.push(receiver.close_reason().unwrap());
    }
    let wrong = reasons.iter().filter(|reason| **reason != CloseReason::Closed);
    assert_eq!(wrong.count(), 0, "of {CLOSES} closes");
    closer.finish();
}

/// A guest that took its host for dead would be a second host.
#[test]
fn closing_a_channel_does_not_trigger_a_takeover() {
    let (address, _keep) = fresh_address(false);
    let membership = member(&address, &small()).unwrap();
    let mut guest = Actor::start("guest of closing host", &[&address.to_string()]);
    guest.expect("guest");
    let (report_sender, result) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            report_sender.send(guest.next_line()).unwrap();
            guest.proceed();
        });
        for _ in 0..CLOSES {
            match membership.partner(None) {
                Ok(Some(channel)) => close_from_both_sides(channel),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(result.recv().unwrap(), format!("guest after {CLOSES}"));
    assert_eq!(membership.role(), Role::Host);
}

#[test]
fn sent_tokens_arrive_before_the_end_is_reported() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("sends tokens and ends", &[&address.to_string()]);
    let mut wrong = Vec::new();
    for (round, how) in WAYS.iter().cycle().take(ROUNDS).enumerate() {
        let check = CHECKS[round / WAYS.len() % CHECKS.len()];
        let channel = join(&address, &small().wait(true)).unwrap();
        let tokens = channel.tokens();
        let (_sender, mut receiver) = channel.split();
        read_to_the_end(&mut receiver, check);
        let found = drain(&tokens);
        if found != [1, 2, 3] {
            wrong.push(format!("{how}, {check}: {found:?}"));
        }
        // No test of this file forges signals.
        assert_eq!(tokens.strays(), 0, "{how}, {check}");
    }
    assert!(
        wrong.is_empty(),
        "{} of {ROUNDS}: {}",
        wrong.len(),
        wrong.join("; ")
    );
    other.finish();
}

#[test]
fn tokens_of_a_leaving_host_arrive_before_its_end() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("sends tokens and leaves", &[&address.to_string()]);
    for round in 0..LEAVES {
        let address: Address = format!("{address}-{round}").parse().unwrap();
        wait_for_host(&address);
        let membership = member(&address, &small()).unwrap();
        let channel = membership.partner(None).unwrap().unwrap();
        let tokens = channel.tokens();
        let (_sender, mut receiver) = channel.split();
        read_to_the_end(&mut receiver, CHECKS[round % CHECKS.len()]);
        assert_eq!(drain(&tokens), [1, 2, 3, LEAVING], "round {round}");
        assert_eq!(tokens.strays(), 0);
    }
    other.finish();
}

/// The peer wipes messages that this side no longer reads, while one of its threads may still be reading
/// them.
#[test]
fn concurrent_close_never_exposes_wiped_memory() {
    let (address, _keep) = fresh_address(false);
    let _sender = Actor::start("sends large", &[&address.to_string()]);
    let mut into = vec![0; LARGE];
    for round in 0..24 {
        let (mut sender, mut receiver) = join(&address, &small().wait(true)).unwrap().split();
        assert!(receiver.wait_readable(None).unwrap());
        into.fill(1);
        let found = thread::scope(|scope| {
            scope.spawn(move || sender.close());
            receiver.receive(&mut into)
        });
        match found {
            Ok(found) => {
                assert_eq!(found, Some(LARGE));
                assert!(into.iter().all(|byte| *byte == 7), "round {round}: torn");
            }
            Err(error) => assert_eq!(error.code(), "CLOSED", "round {round}: {error}"),
        }
    }
}

#[test]
fn messages_sent_before_a_refusal_are_read_intact() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    copy_of_this_executable(&copy);
    let (address, _keep) = fresh_address(false);
    let options = small()
        .capacity(16 * 1024)
        .policy(Policy::new().executables([&copy]));
    let host = support::join_later(&address, &options);
    wait_for_host(&address);
    let own = std::env::current_exe().unwrap();
    let arguments = [&address.to_string(), own.to_str().unwrap()];
    let mut reader = Actor::start_from(copy.clone(), "reads after refusal", &arguments);
    let mut channel = host.join().unwrap().unwrap();
    reader.expect("joined");
    for number in 0..MESSAGES {
        assert!(channel.sender().try_send(&message(number)).unwrap());
    }
    let other = directory.path().join("other");
    fs::copy(&copy, &other).unwrap();
    fs::rename(&other, &copy).unwrap();
    assert_eq!(channel.verify().unwrap_err().code(), "PEER_REFUSED");
    drop(channel);
    reader.proceed();
    reader.expect("all read");
    reader.finish();
}
