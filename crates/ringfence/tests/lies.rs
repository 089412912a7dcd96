//! A peer that completes the handshake and then violates the protocol in its own region: this side's channel
//! ends, and its process continues.

mod support;

use std::thread::JoinHandle;

use ringfence::{Address, Channel, CloseReason, Error, Options, Packed, Progress, Receiver, Sender};
use support::{Actor, fresh_address, join_later, report, small, wait_for_host, wait_for_test, wire};

// Offsets from docs/internals/protocol.md.
const TAIL: usize = 128;
const HEAD: usize = 256;
const PHASE: usize = 640;
const DATA: usize = 4096;
const WHOLE: u64 = 3 << 32;
const FIRST: u64 = 1 << 32;
const LAST: u64 = 2 << 32;
const PADDING: u64 = 4 << 32;

/// The longest message that this side accepts.
const LONGEST: usize = 1 << 16;

fn options() -> Options {
    small().max_message_size(LONGEST as u64)
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    match role.as_str() {
        "liar" => {
            let peer = wire::ManualGuest::guest(&arguments[0]);
            for words in &arguments[1..] {
                for word in words.split(',') {
                    let (at, value) = word.split_once('=').unwrap();
                    peer.write(at.parse().unwrap(), value.parse().unwrap());
                }
                peer.send_wakeup();
                report("violated");
                wait_for_test();
            }
        }
        "toggler" => {
            let peer = wire::ManualGuest::guest(&arguments[0]);
            // A first fragment of 8 bytes whose announced size keeps changing, and a last fragment that fits
            // one of the two sizes.
            peer.write(DATA, FIRST + 16);
            peer.write(DATA + 24, LAST + 92);
            peer.write(TAIL, 24 + 104);
            peer.send_wakeup();
            report("ready");
            loop {
                peer.write(DATA + 8, 100);
                peer.write(DATA + 8, 60_000);
            }
        }
        other => unreachable!("{other}"),
    }
}

fn liar(violations: &[Vec<(usize, u64)>]) -> (Actor, Channel) {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, &options());
    wait_for_host(&address);
    let violations: Vec<String> = violations
        .iter()
        .map(|words| {
            let words: Vec<_> = words.iter().map(|(at, word)| format!("{at}={word}")).collect();
            words.join(",")
        })
        .collect();
    let address = address.to_string();
    let mut arguments = vec![address.as_str()];
    arguments.extend(violations.iter().map(String::as_str));
    let actor = Actor::start("liar", &arguments);
    actor.expect("violated");
    (actor, host.join().unwrap().expect("a channel"))
}

/// Checks that every way to read finds the violation, and that the channel is then closed for both halves.
fn expect_corrupt(what: &str, violations: &[Vec<(usize, u64)>]) {
    type Read = fn(&mut Receiver) -> ringfence::Result<()>;
    let ways: [(&str, Read); 5] = [
        ("receive", |receiver| {
            receiver.receive(&mut vec![0; LONGEST]).map(drop)
        }),
        ("drain", |receiver| {
            receiver.receive_each(|message| drop(message.to_vec()), 10)?;
            receiver.is_ended().map(drop)
        }),
        ("packed", |receiver| {
            let mut into = [0; 8192];
            loop {
                match receiver.try_receive_packed(&mut into)? {
                    Packed::Large(_) => drop(receiver.receive_part(&mut vec![0; LONGEST])?),
                    Packed::Bytes(0) | Packed::Nothing => return receiver.is_ended().map(drop),
                    Packed::Bytes(_) => {}
                }
            }
        }),
        ("part", |receiver| {
            while receiver.receive_part(&mut vec![0; LONGEST])? == Progress::Whole {}
            receiver.is_ended().map(drop)
        }),
        ("wait", |receiver| {
            receiver.wait_readable(None)?;
            receiver.next_size()?;
            receiver.receive(&mut vec![0; LONGEST]).map(drop)
        }),
    ];
    for (way, read) in ways {
        let (_liar, channel) = liar(violations);
        let (mut sender, mut receiver) = channel.split();
        let found = read(&mut receiver);
        assert!(
            matches!(found, Err(Error::RingCorrupt(_))),
            "{what}, {way}: {found:?}"
        );
        assert_eq!(
            receiver.close_reason(),
            Some(CloseReason::Corrupt),
            "{what}, {way}"
        );
        assert!(
            matches!(sender.try_send(b"x"), Err(Error::RingCorrupt(_))),
            "{what}, {way}"
        );
        let again = receiver.receive(&mut [0; 8]);
        assert!(
            matches!(again, Err(Error::RingCorrupt(_))),
            "{what}, {way}: {again:?}"
        );
    }
}

#[test]
fn invalid_tail_header_size_or_phase_ends_the_channel() {
    for (what, words) in [
        ("a tail too far", vec![(TAIL, 8192)]),
        ("the largest tail", vec![(TAIL, u64::MAX - 7)]),
        ("a tail between words", vec![(TAIL, 12)]),
        ("a record beyond the tail", vec![(DATA, WHOLE + 100), (TAIL, 64)]),
        (
            "a record of the largest length",
            vec![(DATA, WHOLE + 0xffff_ffff), (TAIL, 4096)],
        ),
        (
            "a record of more than half the ring",
            vec![(DATA, WHOLE + 2056), (TAIL, 4096)],
        ),
        ("unknown flags", vec![(DATA, (64 << 32) | 8), (TAIL, 64)]),
        (
            "a last fragment without a first",
            vec![(DATA, LAST + 8), (TAIL, 64)],
        ),
        ("padding before the end", vec![(DATA, PADDING + 8), (TAIL, 64)]),
        ("a lap of padding", vec![(DATA, PADDING + 4088), (TAIL, 4096)]),
        (
            "a size above the limit",
            vec![(DATA, FIRST + 16), (DATA + 8, 1 << 40), (TAIL, 24)],
        ),
        (
            "a size of zero",
            vec![(DATA, FIRST + 16), (DATA + 8, 0), (TAIL, 24)],
        ),
        ("an unknown phase", vec![(PHASE, 77)]),
    ] {
        expect_corrupt(what, &[words]);
    }
}

#[test]
fn decreasing_tail_ends_the_channel() {
    let (mut liar, channel) = liar(&[vec![(DATA, WHOLE + 8), (TAIL, 16)], vec![(TAIL, 8)]]);
    let (_sender, mut receiver) = channel.split();
    assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), Some(8));
    liar.proceed();
    liar.expect("violated");
    let found = receiver.receive(&mut [0; 8]);
    assert!(matches!(found, Err(Error::RingCorrupt(_))), "{found:?}");
}

fn fill(sender: &mut Sender) -> Error {
    loop {
        match sender.try_send(&[1; 100]) {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = sender.wait(100, None) {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

#[test]
fn invalid_head_ends_the_channel() {
    for (what, head) in [
        ("ahead of everything", 1 << 20),
        ("between words", 9),
        ("the largest", u64::MAX),
    ] {
        let (_liar, channel) = liar(&[vec![(HEAD, head)]]);
        let (mut sender, receiver) = channel.split();
        let found = fill(&mut sender);
        assert!(matches!(found, Error::RingCorrupt(_)), "{what}: {found:?}");
        assert_eq!(receiver.close_reason(), Some(CloseReason::Corrupt));
        let found = sender.reserve(8).map(drop);
        assert!(matches!(found, Err(Error::RingCorrupt(_))), "{what}: {found:?}");
    }
}

#[test]
fn concurrently_changing_size_is_read_consistently() {
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let (address, _keep) = fresh_address(false);
        let host: JoinHandle<_> = join_later(&address, &options());
        wait_for_host(&address);
        let toggler = Actor::start("toggler", &[&Address::to_string(&address)]);
        toggler.expect("ready");
        let (_sender, mut receiver) = host.join().unwrap().unwrap().split();
        // The first size may be the larger one, for which the buffer is too small.
        match receiver.try_receive(&mut [0; 100]) {
            Ok(Some(length)) => assert_eq!(length, 100),
            Ok(None) | Err(Error::InvalidArgument(_) | Error::RingCorrupt(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
