//! Wakeups of a waiting half, and what it then finds. The tests poll the line as an event loop would.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::{channel::end::CloseReason, region::copy::Writable, region::phase::Phase};

/// Whether an event loop that watches this descriptor would be woken.
fn is_readable(half: &impl AsFd) -> bool {
    let mut watched = [PollFd::new(half.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::ZERO).expect("poll") > 0
}

struct Ends {
    sender: Sender,
    unread: Receiver,
    unwritten: Sender,
    receiver: Receiver,
}

fn ends() -> Ends {
    let (one, other) = pair(&Options::new());
    let ((sender, unread), (unwritten, receiver)) = (one.split(), other.split());
    Ends {
        sender,
        unread,
        unwritten,
        receiver,
    }
}

fn fill(sender: &mut Sender) {
    while sender.try_send(&[7; 100]).expect("open") {}
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn room_is_checked_for_a_whole_message_or_a_fragment() {
    let Ends {
        mut sender,
        unread: _unread,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    assert!(sender.has_room(2048).expect("open") && sender.has_room(20_000).expect("open"));
    assert!(sender.try_send(&[7; 2000]).expect("open"));
    assert!(sender.try_send(&[7; 1000]).expect("open"));
    // About 1,000 bytes are left.
    for (size, is_there) in [
        (900, true),
        (1200, false),
        (2048, false),
        (2049, true),
        (20_000, true),
    ] {
        assert_eq!(sender.has_room(size).expect("open"), is_there, "{size}");
        assert_eq!(sender.arm(size).expect("open"), !is_there, "{size}");
        sender.disarm();
    }
    assert!(sender.try_send(&[7; 700]).expect("open"));
    for size in [900, 2049, 20_000] {
        assert!(!sender.has_room(size).expect("open"), "{size}");
    }
    while receiver.try_receive(&mut [0; 2000]).expect("open").is_some() {}
    assert!(sender.has_room(2048).expect("open") && sender.has_room(20_000).expect("open"));
}

/// After that, the reader may do something else and not check the ring for a long time.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn parked_sender_is_woken_by_the_first_read() {
    let Ends {
        mut sender,
        unread: mut back,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    for _ in 0..20 {
        assert!(sender.try_send(&[7; 100]).expect("open"));
    }
    assert!(sender.arm(2000).expect("open"));
    let sent = back.stats().messages_sent;
    assert_eq!(sent, 20, "counts are published when it parks");
    assert!(!is_readable(&sender));
    assert_eq!(receiver.try_receive(&mut [0; 100]).expect("open"), Some(100));
    assert!(is_readable(&sender));
    sender.poll_line();
    sender.disarm();
    assert!(sender.has_room(100).expect("open") && !is_readable(&sender));
    assert_eq!(sender.close_reason(), None);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn busy_reader_wakes_the_sender_at_half_the_ring() {
    let Ends {
        mut sender,
        unread: _unread,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    let mut into = [0; 112];
    fill(&mut sender);
    assert!(sender.arm(100).expect("open"));
    assert_eq!(
        receiver.try_receive_more_packed(&mut into).expect("open"),
        Packed::Bytes(112)
    );
    assert!(!is_readable(&sender), "only one message fits");
    receiver.wake();
    assert!(is_readable(&sender));
    sender.poll_line();
    fill(&mut sender);
    assert!(sender.arm(100).expect("open"));
    for _ in 0..CAPACITY / 112 / 2 {
        assert_eq!(
            receiver.try_receive_more_packed(&mut into).expect("open"),
            Packed::Bytes(112)
        );
    }
    assert!(is_readable(&sender), "half the ring is free");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn wakeup_is_consumed_by_polling_or_arming() {
    let Ends {
        mut sender,
        unread: _unread,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    for later in [false, true] {
        assert!(receiver.arm().expect("open") && !is_readable(&receiver));
        assert!(sender.try_send(&[7; 8]).expect("open"));
        assert!(is_readable(&receiver));
        if later {
            receiver.poll_line_later().expect("open");
            assert!(is_readable(&receiver), "the wakeup stays on the line");
        } else {
            receiver.poll_line().expect("open");
            assert!(!is_readable(&receiver));
        }
        receiver.disarm();
        assert_eq!(receiver.try_receive(&mut [0; 8]).expect("open"), Some(8));
        assert!(
            receiver.arm().expect("open") && !is_readable(&receiver),
            "{later}"
        );
        receiver.disarm();
    }
    // If it is not armed in between, the next poll reads the line.
    assert!(receiver.arm().expect("open"));
    assert!(sender.try_send(&[7; 8]).expect("open"));
    for is_left in [true, false] {
        receiver.poll_line_later().expect("open");
        assert_eq!(is_readable(&receiver), is_left);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn polling_the_line_detects_a_closed_peer() {
    type Poll = fn(&mut Ends);
    let polls: [Poll; 3] = [
        |ends| ends.sender.poll_line(),
        |ends| ends.unread.poll_line().expect("what is there can be read"),
        |ends| {
            // The first call leaves the line unread.
            for _ in 0..2 {
                ends.unread.poll_line_later().expect("what is there can be read");
            }
        },
    ];
    for poll_once in polls {
        let mut ends = ends();
        ends.receiver.close();
        assert!(is_readable(&ends.sender));
        assert_eq!(ends.sender.close_reason(), None, "the line was not polled yet");
        poll_once(&mut ends);
        assert_eq!(ends.sender.close_reason(), Some(CloseReason::Closed));
        assert!(matches!(ends.sender.try_send(b"x"), Err(Error::PeerLost(_))));
    }
}

/// With each call that sends.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn polling_a_full_ring_detects_a_closed_peer() {
    type Try = fn(&mut Sender) -> Result<bool>;
    let tries: [Try; 3] = [
        |sender| sender.try_send(&[7; 100]),
        |sender| {
            let mut packed = vec![0; 112];
            packed[..8].copy_from_slice(&[100, 0, 0, 0, 3, 0, 0, 0]);
            sender.try_send_packed(&packed).map(|taken| taken > 0)
        },
        |sender| sender.reserve(100).map(|room| room.is_some()),
    ];
    for send in tries {
        let Ends {
            mut sender,
            unread: _unread,
            unwritten: _unwritten,
            mut receiver,
        } = ends();
        fill(&mut sender);
        receiver.close();
        let refused = (0..3 * 4096).find_map(|_| send(&mut sender).map(|sent| assert!(!sent)).err());
        assert!(matches!(refused, Some(Error::PeerLost(_))), "{refused:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn dropped_sender_ends_only_its_direction() {
    let Ends {
        mut sender,
        unread: mut back,
        mut unwritten,
        mut receiver,
    } = ends();
    assert!(sender.try_send(b"last").expect("open"));
    assert_eq!(receiver.try_receive(&mut [0; 8]).expect("open"), Some(4));
    assert!(receiver.arm().expect("open") && !is_readable(&receiver));
    drop(sender);
    assert!(is_readable(&receiver));
    assert!(receiver.is_ended().expect("open"));
    assert_eq!(receiver.close_reason(), None, "only this direction has ended");
    assert!(unwritten.try_send(b"an answer").expect("open"));
    assert_eq!(back.try_receive(&mut [0; 9]).expect("open"), Some(9));
}

/// After the end, the ring's fill level is reported as of the end, even if it was never queried before.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn closed_sender_reports_unread_bytes() {
    let mut ends = ends();
    assert!(ends.sender.try_send(&[7; 100]).expect("open"));
    ends.sender.close();
    let stats = ends.sender.stats();
    assert_eq!((stats.ring_used, stats.messages_sent), (112, 1));
}

/// The reported error is the end of the channel, not the unfinished message: that can no longer be completed.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn partial_message_does_not_hide_the_end_of_the_channel() {
    let Ends {
        mut sender,
        unread: _unread,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    let started = sender.send_part(&[7; 6000], 0).expect("open");
    assert!(matches!(started, Progress::Part(1..)));
    assert!(matches!(sender.try_send(b"x"), Err(Error::InvalidArgument(_))));
    receiver.close();
    sender.poll_line();
    assert!(matches!(sender.try_send(b"x"), Err(Error::PeerLost(_))));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn foreign_or_late_reservation_is_not_cancelled() {
    let (mut one, mut other) = (ends(), ends());
    let foreign = one.sender.reserve_detached(8).expect("open").expect("room");
    assert!(matches!(
        other.sender.cancel(foreign),
        Err(Error::InvalidArgument(_))
    ));
    let own = other.sender.reserve_detached(8).expect("open").expect("room");
    other.sender.cancel(own).expect("its own");
    assert!(other.sender.try_send(b"next").expect("open"));
    let late = other.sender.reserve_detached(8).expect("open").expect("room");
    other.sender.close();
    assert!(matches!(other.sender.cancel(late), Err(Error::Closed(_))));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn alarm_wipes_a_dropped_reservation() {
    let (mut sender, region, expose) = exposable();
    let mut room = sender.reserve(64).expect("open").expect("room");
    room.fill(7);
    drop(room);
    expose();
    assert_eq!(left(&region), 0);
}

/// The peer's alarm reports the exposure and then wipes its memory. Data read before the next check may be
/// zeros.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn messages_read_during_peer_exposure_are_discarded() {
    let Ends {
        mut sender,
        unread: _unread,
        unwritten: _unwritten,
        mut receiver,
    } = ends();
    let region = sender.writing.as_ref().expect("open").ring.own().clone();
    for _ in 0..3 {
        assert!(sender.try_send(&[7; 8]).expect("open"));
    }
    let mut visits = 0;
    let visit = |_: Message<'_>| {
        visits += 1;
        region.store(layout::PHASE, Phase::EXPOSED.word(), Ordering::Release);
    };
    let drained = receiver.receive_each(visit, 9);
    assert!(matches!(drained, Err(Error::ObjectExposed(_))), "{drained:?}");
    assert!(visits > 0);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Exposed));
}

/// Once this side has announced its close, the peer wipes the unread data.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn messages_read_during_a_local_close_are_discarded() {
    for ends_sending in [true, false] {
        let Ends {
            mut sender,
            unread: _unread,
            mut unwritten,
            mut receiver,
        } = ends();
        for _ in 0..3 {
            assert!(sender.try_send(&[7; 8]).expect("open"));
        }
        let visit = |_: Message<'_>| {
            if ends_sending {
                unwritten.end();
            } else {
                unwritten.close();
            }
        };
        let drained = receiver.receive_each(visit, 9);
        if ends_sending {
            assert_eq!(drained.expect("reading continues"), 3);
        } else {
            assert!(matches!(drained, Err(Error::Closed(_))), "{drained:?}");
        }
    }
}
