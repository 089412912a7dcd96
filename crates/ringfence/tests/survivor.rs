//! Messages that an exited peer has left are read in place. The survivor does not pay for a copy of them, and
//! loses none if memory runs out.

mod support;

use std::{fs, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{
    Address, Arrival, Channels, Error, Message, Options, Packed, Progress, Receiver, join, listen,
};
use support::{Actor, TIME_LIMIT, fresh_address, report, small, wait_for_host, wait_for_test};

const RING: u64 = 64 << 20;
const MESSAGE: usize = 1 << 20;
/// Memory that a process may need for other purposes at the same time: an eighth of the ring.
const LITTLE: u64 = 8 << 20;

/// Size of a message that is many times the ring. By default, all of it is accepted. The C library returns the memory to the system when
/// it is freed, as it does from 32 MiB on.
const LONG: usize = 64 << 20;

fn long() -> Vec<u8> {
    support::message(0, LONG)
}

fn message(number: u64) -> Vec<u8> {
    let mut message = support::message(0, MESSAGE);
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

/// Returns a figure of this process, in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ', 'k', 'B'])
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// Counts the shared objects of ringfence that this process has mapped.
fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:ringfence"))
        .count()
}

/// Returns `None` if the peer is lost and everything was read.
fn unless_lost<T: std::fmt::Debug>(found: ringfence::Result<T>) -> Option<T> {
    match found {
        Err(Error::PeerLost(_)) => None,
        found => Some(found.unwrap()),
    }
}

/// Reads all remaining messages, using each way of reading in turn. Returns their number.
fn read_all(receiver: &mut Receiver) -> u64 {
    let mut into = vec![0; 2 * MESSAGE];
    let mut count = 0;
    let wanted = message(0);
    let check = |number: u64, bytes: &[u8]| {
        assert_eq!(bytes[..8], number.to_le_bytes());
        assert!(bytes[8..] == wanted[8..], "message {number}");
    };
    loop {
        let before = count;
        let Some(found) = unless_lost(receiver.try_receive(&mut into)) else {
            return count;
        };
        if let Some(length) = found {
            check(count, &into[..length]);
            count += 1;
        }
        let drain = |message: Message<'_>| {
            assert_eq!(message.words().next(), Some(count));
            assert_eq!(message.len(), MESSAGE);
            count += 1;
        };
        if unless_lost(receiver.receive_each(drain, 3)).is_none() {
            return count;
        }
        let Some(packed) = unless_lost(receiver.try_receive_packed(&mut into)) else {
            return count;
        };
        if let Packed::Bytes(bytes) = packed {
            check(count, &into[8..bytes]);
            count += 1;
        }
        if count == before {
            assert!(receiver.is_ended().unwrap());
            return count;
        }
    }
}

fn as_survivor(address: &Address, then: &str) {
    let (mut sender, mut receiver) = join(address, &small()).unwrap().split();
    report("met");
    wait_for_test();
    // From here on large allocations fail: copying the ring would fail, or abort the process.
    let (before, size) = (status("RssAnon"), status("VmSize"));
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, size + LITTLE, hard).unwrap();
    report("ready");
    while receiver.close_reason().is_none() {
        receiver.wait_readable(None).unwrap();
        receiver.poll_line().unwrap();
        sender.poll_line();
    }
    let reason = receiver.close_reason().unwrap();
    assert!(receiver.has_message().unwrap());
    let grown = status("RssAnon").saturating_sub(before);
    assert!(grown < LITTLE, "{grown} bytes were copied");
    setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
    assert_eq!(mappings(), 1, "only the peer's");
    if then == "reads" {
        let count = read_all(&mut receiver);
        assert!(status("RssAnon").saturating_sub(before) < LITTLE);
        assert_eq!(mappings(), 0, "everything was read");
        report(format!("{reason} {count}"));
    } else {
        receiver.close();
        assert_eq!(mappings(), 0, "unmapped on close");
        report("unmapped");
    }
}

fn as_limited_memory(address: &Address, mode: &str) {
    let (_sender, mut receiver) = join(address, &small()).unwrap().split();
    let wanted = long();
    // Written to, so that it is already counted here.
    let mut into = vec![1; LONG];
    let before = status("RssAnon");
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, status("VmSize") + LONG as u64 / 4, hard).unwrap();
    let found = receiver.receive(&mut into);
    assert!(matches!(found, Err(Error::NoSpace { .. })), "{found:?}");
    assert_eq!(receiver.close_reason(), None, "the channel is open");
    // It fails again.
    let found = receiver.receive(&mut into);
    assert!(matches!(found, Err(Error::NoSpace { .. })), "{found:?}");
    if mode == "whole" {
        setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
        assert_eq!(receiver.receive(&mut into).unwrap(), Some(LONG));
    } else {
        // Into the existing memory.
        while receiver.receive_part(&mut into).unwrap() != Progress::Whole {
            receiver.wait_readable(None).unwrap();
        }
        setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
    }
    assert!(into == wanted);
    let grown = status("RssAnon").saturating_sub(before);
    assert!(grown < LONG as u64 / 2, "{grown} bytes remain allocated");
    assert_eq!(receiver.receive(&mut into).unwrap(), Some(5));
    let mut visited = 0;
    while visited < 2 {
        let drain = |message: Message<'_>| {
            assert_eq!(message.len(), if visited == 0 { LONG } else { 5 });
            visited += 1;
        };
        if receiver.receive_each(drain, 1).unwrap() == 0 {
            receiver.wait_readable(None).unwrap();
        }
    }
    let grown = status("RssAnon").saturating_sub(before);
    assert!(grown < LONG as u64 / 2, "{grown} bytes remain allocated");
    report("received");
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "fills" => {
            let options = Options::new().capacity(RING).handshake_timeout(TIME_LIMIT);
            let (mut sender, _receiver) = join(&address, &options).unwrap().split();
            let (mut message, mut count) = (message(0), 0);
            while sender.try_send(&message).unwrap() {
                count += 1_u64;
                message[..8].copy_from_slice(&count.to_le_bytes());
            }
            report(count.to_string());
            wait_for_test();
            sender.end();
            sender.close();
            report("closed");
            wait_for_test();
        }
        "survives" => as_survivor(&address, &arguments[1]),
        "sends long" => {
            let (mut sender, _receiver) = join(&address, &Options::new().handshake_timeout(TIME_LIMIT))
                .unwrap()
                .split();
            report("met");
            for _ in 0..2 {
                sender.send(&long()).unwrap();
                sender.send(b"short").unwrap();
            }
            wait_for_test();
        }
        "limited memory" => as_limited_memory(&address, &arguments[1]),
        "joins" => {
            let capacity = arguments[1].parse().unwrap();
            let mut options = small().capacity(capacity);
            if let Some(most) = arguments.get(2) {
                options = options.max_peer_capacity(most.parse().unwrap());
            }
            match join(&address, &options).map(drop) {
                Ok(()) => report("met"),
                Err(error) => report(error.to_string()),
            }
        }
        "agent" => {
            let capacity = arguments[1].parse().unwrap();
            match ringfence::connect(&address, &small().capacity(capacity)).map(drop) {
                Ok(()) => report("met"),
                Err(error) => report(error.to_string()),
            }
        }
        other => unreachable!("{other}"),
    }
}

#[test]
fn message_without_memory_fails_only_that_call() {
    for mode in ["whole", "in parts"] {
        let (address, _keep) = fresh_address(false);
        let text = address.to_string();
        let short = Actor::start("limited memory", &[&text, mode]);
        wait_for_host(&address);
        let mut sends = Actor::start("sends long", &[&text]);
        sends.expect("met");
        short.expect("received");
        short.finish();
        sends.proceed();
        sends.finish();
    }
}

/// Starts a survivor, and a peer that has filled its ring. Also returns the number of messages.
fn meet(then: &str) -> (Actor, Actor, u64) {
    let (address, _keep) = fresh_address(false);
    let text = address.to_string();
    let mut survivor = Actor::start("survives", &[&text, then]);
    wait_for_host(&address);
    let filler = Actor::start("fills", &[&text]);
    let count = filler.next_line().parse().unwrap();
    assert!(count > 50, "{count} messages fill the ring");
    survivor.expect("met");
    survivor.proceed();
    survivor.expect("ready");
    (survivor, filler, count)
}

#[test]
fn messages_of_a_killed_peer_are_read_in_place() {
    let (survivor, mut filler, count) = meet("reads");
    filler.kill();
    survivor.expect(&format!("lost {count}"));
    survivor.finish();
}

#[test]
fn messages_of_a_closed_peer_are_read_in_place() {
    let (survivor, mut filler, count) = meet("reads");
    filler.proceed();
    filler.expect("closed");
    survivor.expect(&format!("closed {count}"));
    survivor.finish();
}

#[test]
fn unwanted_messages_are_unmapped_on_close() {
    let (survivor, mut filler, _) = meet("closes");
    filler.kill();
    survivor.expect("unmapped");
    survivor.finish();
}

#[test]
fn peer_ring_above_the_limit_is_refused_with_both_sizes() {
    // The host continues with the next guest, so the test checks the guest's error, whichever side has the
    // lower limit.
    for (host, guest) in [
        (["4096", "32768"].as_slice(), ["65536"].as_slice()),
        (&["65536"], &["4096", "32768"]),
    ] {
        let (address, _keep) = fresh_address(false);
        let address_text = address.to_string();
        let _host = Actor::start("joins", &[&[address_text.as_str()], host].concat());
        wait_for_host(&address);
        let guest = Actor::start("joins", &[&[address_text.as_str()], guest].concat());
        let found = guest.next_line();
        assert!(found.contains("65536") && found.contains("32768"), "{found}");
        guest.finish();
    }
}

#[test]
fn service_refuses_a_client_with_a_larger_ring() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small().max_peer_capacity(8192)).unwrap();
    let large = Actor::start("agent", &[&address.to_string(), "16384"]);
    let reply = large.next_line();
    assert!(reply.contains("16384") && reply.contains("8192"), "{reply}");
    let right = Actor::start("agent", &[&address.to_string(), "8192"]);
    let mut refused = 0;
    let _channel = loop {
        match listener.accept().unwrap() {
            Arrival::Accepted(channel) => break channel,
            Arrival::Refused(refusal) => {
                assert!(matches!(refusal.error, Error::Protocol(_)), "{refusal:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    };
    right.expect("met");
    assert_eq!(refused, 1);
    listener.close(Channels::Keep);
    let invalid = join(
        &address,
        &small()
            .max_peer_capacity(4095)
            .handshake_timeout(Duration::from_secs(1)),
    );
    assert!(matches!(invalid, Err(Error::InvalidArgument(_))), "{invalid:?}");
}
