//! A merge of many channels, with their other ends in the same test.

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    channel::calls::envelope::CallError,
    channel::end::CloseReason,
    channel::merge::{Merge, Merged, MergedVec, NotAdded},
    channel::waiting::Waits,
    region::copy::Writable,
    wake::parking::Barriers,
};

/// A source of a merge, and the other end of its channel.
struct Source {
    sender: Sender,
    _others: (Receiver, Sender),
}

fn source() -> (Source, Receiver) {
    let (one, other) = pair(&Options::new());
    let ((sender, unread), (unwritten, receiver)) = (one.split(), other.split());
    let source = Source {
        sender,
        _others: (unread, unwritten),
    };
    (source, receiver)
}

fn send(source: &mut Source, count: usize) {
    for _ in 0..count {
        assert!(source.sender.try_send(&[7; 8]).expect("open"));
    }
}

#[test]
fn rejected_source_error_has_the_system_error_as_source() {
    let because = std::io::Error::other("the kernel's reason");
    let not = NotAdded {
        source: (),
        error: Error::Unsupported {
            what: "a call".into(),
            source: Some(because),
        },
    };
    let reason = std::error::Error::source(&not).expect("a reason");
    assert_eq!(reason.to_string(), "the kernel's reason");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn merge_returns_vecs_until_it_is_empty() {
    let mut merge = Merge::new().expect("descriptors");
    assert_eq!((merge.is_empty(), merge.len()), (true, 0));
    let (mut source, receiver) = source();
    let from = merge.add(receiver).expect("room");
    assert_eq!((merge.is_empty(), merge.len()), (false, 1));
    assert_eq!(merge.try_receive_vec().expect("open"), None);
    let messages = [bytes(1, 5), bytes(2, 3000), bytes(3, 0)];
    for message in messages {
        // The long message arrives in fragments. Each is read before there is room for the next one.
        let mut written = 0;
        let found = loop {
            let sent = source.sender.send_part(&message, written).expect("open");
            let found = merge.try_receive_vec().expect("open");
            match (sent, found) {
                (_, Some(found)) => break found,
                (Progress::Part(so_far), None) => written = so_far,
                (Progress::Whole, None) => panic!("all of it is there"),
            }
        };
        assert_eq!(found, MergedVec::Message { from, bytes: message });
    }
    drop(source);
    let end = merge.try_receive_vec().expect("open");
    assert!(
        matches!(end, Some(MergedVec::Ended { from: source_key, .. }) if source_key == from),
        "{end:?}"
    );
    assert!(merge.is_empty() && merge.is_ended());
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn source_that_calls_leaves_the_others_alone() {
    let mut merge = Merge::new().expect("descriptors");
    let (mut source, receiver) = source();
    let (caller, other) = pair(&Options::new());
    let (_unwritten, unanswered) = other.split();
    let (from, key) = (
        merge.add(receiver).expect("room"),
        merge.add(unanswered).expect("room"),
    );
    let calls = caller.into_calls().expect("descriptors");
    calls.send(b"before").expect("open");
    let pending = calls.start(b"a", None).expect("open");
    send(&mut source, 2);
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(merge.try_receive_vec().expect("open").expect("an event"));
    }
    let (message, reason) = (vec![7; 8], CloseReason::Corrupt);
    let message = MergedVec::Message { from, bytes: message };
    let before = MergedVec::Message {
        from: key,
        bytes: b"before".to_vec(),
    };
    let end = MergedVec::Ended { from: key, reason };
    for (wanted, count) in [(message, 2), (before, 1), (end, 1)] {
        let found = events.iter().filter(|found| **found == wanted).count();
        assert_eq!(found, count, "{wanted:?} in {events:?}");
    }
    // The caller need not wait for the program to drop the other half.
    let lost = pending.wait().expect_err("no answer");
    assert!(matches!(lost, CallError::Channel(Error::PeerLost(_))), "{lost:?}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn drain_of_several_sources_respects_the_maximum() {
    for max in [1, 3, 4, 5, 6, 7] {
        let mut merge = Merge::new().expect("descriptors");
        let mut sources = Vec::new();
        for _ in 0..3 {
            let (mut source, receiver) = source();
            send(&mut source, 2);
            merge.add(receiver).expect("room");
            sources.push(source);
        }
        let mut visits = 0;
        let drained = merge.receive_each(|_, _| visits += 1, max).expect("open");
        assert_eq!((drained, visits), (max.min(6), max.min(6)));
        assert_eq!(merge.receive_each(|_, _| (), 9).expect("open"), 6 - max.min(6));
    }
}

/// Messages that arrived after `has_message` form a second row, from which fewer may be taken.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn visit_limits_include_already_known_messages() {
    const PACKED: u64 = 16;
    for (max, bytes) in [(5, u64::MAX - 1), (100, 5 * PACKED)] {
        let (mut source, mut receiver) = source();
        send(&mut source, 3);
        assert!(receiver.has_message().expect("open"));
        send(&mut source, 10);
        let visited = receiver.visit(|_| (), max, bytes);
        assert_eq!(
            (visited.count, visited.empty.expect("open")),
            (5, false),
            "{max}, {bytes}"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn merge_counts_only_its_own_messages() {
    let mut merge = Merge::new().expect("descriptors");
    let (mut source, mut receiver) = source();
    send(&mut source, 5);
    for _ in 0..2 {
        assert_eq!(receiver.try_receive(&mut [0; 8]).expect("open"), Some(8));
    }
    let from = merge.add(receiver).expect("room");
    let length = 8;
    let count = |merge: &mut Merge| {
        let stats = merge.stats();
        (stats.sources, stats.messages_received, stats.bytes_received)
    };
    assert_eq!(count(&mut merge), (1, 0, 0));
    assert_eq!(
        merge.try_receive(&mut [0; 8]).expect("open"),
        Some(Merged::Message { from, length })
    );
    assert_eq!(count(&mut merge), (1, 1, 8));
    // Messages that the source received after that no longer count. Those that it received here still do.
    let mut receiver = merge.remove(from).expect("it is there");
    assert_eq!(receiver.try_receive(&mut [0; 8]).expect("open"), Some(8));
    assert_eq!(count(&mut merge), (0, 1, 8));
    merge.add(receiver).expect("room");
    assert!(merge.try_receive(&mut [0; 8]).expect("open").is_some());
    assert_eq!(count(&mut merge), (1, 2, 16));
}

/// A peer without fences may have stored a message that this side cannot see yet.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn barrier_is_needed_until_the_peer_issues_fences() {
    let (line, _other) = crate::sys::socket::new_line().expect("a line");
    let (own, peer) = (OwnRegion::private(CAPACITY), OwnRegion::private(CAPACITY));
    let mut parts = without_a_peer(line, own, peer.peer_view(), CAPACITY, LONGEST);
    parts.barriers = Barriers::Sleeper;
    let (_sender, mut receiver) = Channel::assemble(parts, None, &Options::new()).split();
    assert!(receiver.announce().expect("open"));
    peer.store(layout::TAIL_FENCED, 1, Ordering::Release);
    assert!(!receiver.announce().expect("open"));
}

/// For the binding, which keeps its sources in many objects.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn two_step_parking_detects_new_messages() {
    let (mut source, mut receiver) = source();
    for _ in 0..3 {
        // Both sides issue fences, so no barrier is needed.
        assert!(!receiver.announce().expect("open"));
        assert!(receiver.check_parked(()).expect("open"), "nothing was sent");
        assert!(!receiver.announce().expect("open"));
        send(&mut source, 1);
        assert!(
            !receiver.check_parked(()).expect("open"),
            "something came meanwhile"
        );
        assert_eq!(receiver.try_receive(&mut [0; 8]).expect("open"), Some(8));
    }
}
