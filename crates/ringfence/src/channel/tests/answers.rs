//! A channel's reports about itself: its figures, limits, room and identity.

use super::*;
use crate::{
    channel::end::Partner,
    channel::receiver::{Retain, pull_again, pull_retained, release},
    ring::lies::packed,
};

const EMPTY: u64 = CAPACITY - 72 - 24;

#[test]
fn stats_count_messages_bytes_and_staged_data() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    assert!(sender.try_send(&[7; 100]).expect("open"));
    let stats = sender.stats();
    assert_eq!((stats.messages_sent, stats.bytes_sent), (1, 100));
    assert_eq!(
        (stats.ring_capacity, stats.ring_used, stats.staged),
        (CAPACITY, 112, 0)
    );
    assert_eq!(receiver.try_receive(&mut [0; 100]).expect("open"), Some(100));
    let stats = receiver.stats();
    assert_eq!((stats.messages_received, stats.bytes_received), (1, 100));
    assert_eq!(sender.stats().ring_used, 0);
    // A message that does not fit the ring in one piece.
    let message = [7; 6000];
    let Progress::Part(written) = sender.send_part(&message, 0).expect("open") else {
        panic!("it is longer than the ring")
    };
    assert!(written > 0);
    assert_eq!(sender.stats().staged, (message.len() - written) as u64);
    sender.send_part(&message, written).expect("open");
    assert_eq!(sender.stats().messages_sent, 1, "counted once it is complete");
}

#[test]
fn channel_reports_its_limits_and_identity() {
    let time = Duration::from_micros(7);
    let (one, mut other) = pair(&Options::new().busy_poll(time));
    assert_eq!(one.busy_poll(), time);
    let (this, that) = (Partner::of(one.shared()), Partner::of(other.shared()));
    assert!(this.is(&Partner::of(one.shared())) && !this.is(&that));
    let sender = other.sender();
    assert_eq!(
        (sender.capacity(), sender.max_message_size()),
        (CAPACITY, LONGEST)
    );
    assert_eq!(sender.packed_room(24).expect("open") as u64, EMPTY);
    assert_eq!(sender.close_reason(), None);
    one.close();
    assert!(this.open().is_none() && that.open().is_none());
    assert!(other.sender().close_reason().is_some());
}

#[test]
fn retained_records_are_reported_on_release() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let set = packed([&[1; 24][..], &[2; 24]]);
    let mut into = [0; 512];
    for keep in [Retain::Each, Retain::Several] {
        assert_eq!(sender.try_send_packed(&set).expect("open"), set.len());
        let pulled = pull_retained(&mut receiver, &mut into, 0..=100, keep).expect("open");
        assert_eq!(pulled, Packed::Bytes(64));
        assert_eq!(sender.stats().ring_used, 64, "still retained");
        let again = pull_again(&mut receiver, &mut into, 32).expect("open");
        assert_eq!(again, Packed::Bytes(32));
        assert_eq!(into[8..32], [2; 24]);
        release(&mut receiver);
        assert_eq!(sender.stats().ring_used, 0);
    }
    for (keep, used) in [(Retain::Each, 32), (Retain::Several, 0)] {
        assert!(sender.try_send(&[3; 24]).expect("open"));
        let pulled = pull_retained(&mut receiver, &mut into, 0..=100, keep).expect("open");
        assert_eq!(pulled, Packed::Bytes(32));
        assert_eq!(sender.stats().ring_used, used);
        release(&mut receiver);
    }
}

#[test]
fn oversized_message_error_names_the_limit() {
    let (one, _other) = pair(&Options::new());
    let (mut sender, _unread) = one.split();
    assert!(sender.try_send(&[7; 2040]).expect("open"));
    for (refused, size, limit, reason) in [
        (
            sender.try_send(&[7; 2049]).map(drop),
            2049,
            CAPACITY / 2,
            "half the ring",
        ),
        (
            sender.send(&vec![7; 20_001]),
            20_001,
            LONGEST,
            "what the peer takes",
        ),
    ] {
        let Err(Error::MessageTooLarge {
            size: found,
            limit: most,
            reason: why,
        }) = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!((found, most), (size, limit));
        assert!(why.starts_with(reason), "{why}");
    }
    // A peer whose limit is slightly above half the ring, or exactly half.
    for (longest, size, limit) in [
        (2049, 2050, 2048),
        (5000, 2049, 2048),
        (2048, 2049, 2048),
        (7, 8, 7),
    ] {
        let (one, _other) = pair_of(longest, &Options::new());
        let (mut sender, _unread) = one.split();
        let refused = sender.try_send(&vec![7; size]);
        assert!(
            matches!(&refused, Err(Error::MessageTooLarge { limit: most, .. }) if *most == limit),
            "{longest}: {refused:?}"
        );
    }
}

/// Passes a message in pieces through a small ring. The parts seen in between are ignored.
fn send_in_parts(sender: &mut Sender, receiver: &mut Receiver, message: &[u8], into: &mut [u8]) {
    let mut written = 0;
    loop {
        let sent = sender.send_part(message, written).expect("open");
        if let Some(length) = receiver.try_receive(into).expect("open") {
            assert!(into[..length] == *message, "the message arrives unchanged");
            return;
        }
        assert_eq!(
            receiver
                .receive_each(|_| panic!("a fragment was visited"), 1)
                .expect("open"),
            0
        );
        let Progress::Part(so_far) = sent else {
            panic!("the last part was sent without an arrival")
        };
        written = so_far;
    }
}

#[test]
#[cfg_attr(miri, ignore = "it takes long, and is about no memory of the ring's")]
fn idle_reader_shrinks_its_scratch_buffer() {
    const MIB: usize = 1 << 20;
    let (one, other) = pair_of(17 * MIB as u64, &Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let mut into = vec![0; 17 * MIB];
    let message: Vec<_> = (0..=250).cycle().take(into.len()).collect();
    for (length, kept, idle) in [
        (MIB / 2, MIB / 2, MIB / 2),
        (MIB, MIB, MIB),
        (2 * MIB, 2 * MIB, 0),
        (16 * MIB, 16 * MIB, 0),
        (17 * MIB, 0, 0),
    ] {
        send_in_parts(&mut sender, &mut receiver, &message[..length], &mut into);
        assert_eq!(receiver.ring.scratch.size(), kept, "{length}");
        assert_eq!(receiver.try_receive(&mut into).expect("open"), None);
        assert_eq!(receiver.ring.scratch.size(), idle, "{length}");
    }
    // A closed receiver keeps no memory.
    send_in_parts(&mut sender, &mut receiver, &message[..MIB], &mut into);
    receiver.close();
    assert_eq!(receiver.ring.scratch.size(), 0);
}
