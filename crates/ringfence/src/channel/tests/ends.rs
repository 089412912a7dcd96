//! Every way in which a channel ends, on a line and regions of which the test holds both sides: what is
//! reported to the peer and here, and in which order.

use std::{
    os::fd::AsRawFd,
    sync::{Mutex, atomic::Ordering},
    thread,
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};

use super::*;
use crate::{
    channel::end::{CloseReason, END_ANNOUNCED, Handover, OnEnd, OwnPhase, Shared},
    channel::receiver::{Keep, pull_retained},
    region::copy::Writable,
    region::phase::{Phase, Step},
    wait::deadline::Deadline,
};

/// A limit for tests that have already failed.
const FAR: Duration = Duration::from_secs(60);

/// The state in which a channel has ended, and what its peer could see at that moment: the phase, and whether
/// the line had ended.
type Told = (ChannelState, Option<Phase>, bool);

/// One side of a channel, and everything that its peer holds.
struct Side {
    channel: Channel,
    own: OwnRegion,
    peer: OwnRegion,
    peers_line: OwnedFd,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Side {
    /// `succeeds`: this side takes over the address of its peer.
    fn new(succeeds: bool) -> Self {
        let (line, peers_line) = crate::sys::socket::new_line().unwrap();
        let (own, peer) = (OwnRegion::private(CAPACITY), OwnRegion::private(CAPACITY));
        let told = Arc::default();
        let tells = Tells {
            own: own.clone(),
            line: peers_line.try_clone().unwrap(),
            told: Arc::clone(&told),
            succeeds,
        };
        let parts = without_a_peer(line, own.clone(), peer.seen_by_peer(), CAPACITY, LONGEST);
        Self {
            channel: Channel::assemble(parts, Some(Box::new(tells)), &Options::new()),
            own,
            peer,
            peers_line,
            told,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.channel.shared()
    }

    fn phase(&self) -> Option<Phase> {
        phase(&self.own)
    }

    fn state(&self) -> ChannelState {
        self.shared().state.get()
    }

    fn told(&self) -> Vec<ChannelState> {
        let told = self.told.lock().unwrap();
        for (_, phase, _) in &*told {
            assert_eq!(*phase, Some(Phase::OPEN), "the peer is told later");
        }
        told.iter().map(|(state, ..)| *state).collect()
    }

    /// The peer sets its end word and hangs up.
    fn peer_ends(&mut self, word: u64) {
        self.peer.store(layout::PHASE, word, Ordering::Release);
        // Two descriptors refer to this end of the line.
        shutdown(self.peers_line.as_raw_fd(), Shutdown::Both).unwrap();
    }
}

/// A resource that is released at the end, which records what the peer could see then.
#[derive(Debug)]
struct Tells {
    own: OwnRegion,
    line: OwnedFd,
    told: Arc<Mutex<Vec<Told>>>,
    succeeds: bool,
}

impl OnEnd for Tells {
    fn end(&mut self, state: ChannelState) -> bool {
        let seen = (state, phase(&self.own), has_ended(&self.line));
        self.told.lock().unwrap().push(seen);
        self.succeeds
    }
}

fn phase(region: &OwnRegion) -> Option<Phase> {
    Phase::from_word(region.load(layout::PHASE, Ordering::Acquire))
}

/// Whether the other side has ended the line.
fn has_ended(line: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    recv(line.as_raw_fd(), &mut [0], flags) == Ok(0)
}

fn said(step: Step) -> Option<Phase> {
    Phase::OPEN.then(step)
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn each_end_is_said_once_and_the_first_one_counts() {
    use ChannelState::{
        ClosedByPeer, ClosedHere, Corrupt, DestroyedHere, Evicted, EvictedByPeer, Exposed, ExposedAtPeer,
        Inherited, LeftByPeer, Open, PeerExited, Refused,
    };
    for end in [
        ClosedHere,
        DestroyedHere,
        ClosedByPeer,
        PeerExited,
        Corrupt,
        Refused,
        Exposed,
        ExposedAtPeer,
        LeftByPeer,
        Evicted,
        EvictedByPeer,
    ] {
        for succeeds in [false, true] {
            let mut side = Side::new(succeeds);
            assert!(side.channel.sender().try_send(&[7; 100]).unwrap());
            for none in [Open, Inherited] {
                assert!(side.shared().end(none).is_none());
                assert_eq!((side.state(), side.phase()), (Open, Some(Phase::OPEN)));
            }
            let untold = side.shared().end(end).expect("an end to tell");
            let step = match end {
                Exposed => Step::Exposed,
                Evicted => Step::Evicted,
                _ if succeeds => Step::Succeeds,
                _ => Step::Closed,
            };
            // Only a close ends the sending.
            let said = |step| {
                if end == ClosedHere {
                    Phase::ENDED.then(step)
                } else {
                    said(step)
                }
            };
            assert_eq!((side.state(), side.phase()), (end, said(step)), "{end:?}");
            assert_eq!(left(&side.own) == 0, end == Exposed, "{end:?}");
            assert!(has_ended(&side.peers_line));
            drop(untold);
            for other in [ClosedHere, Exposed, PeerExited] {
                assert!(side.shared().end(other).is_none());
                assert_eq!((side.state(), side.phase()), (end, said(step)), "{end:?}");
            }
            assert_eq!(side.told(), [end]);
            let (_, _, hung_up) = side.told.lock().unwrap()[0];
            assert!(!hung_up, "whoever hears of the end may want what is let go of");
            assert_eq!(
                side.shared().peer_is_gone(),
                matches!(end, ClosedByPeer | PeerExited | LeftByPeer)
            );
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn the_last_word_of_the_peer_says_how_it_has_ended() {
    for (word, end) in [
        (0, ChannelState::PeerExited),
        (1, ChannelState::PeerExited),
        (2, ChannelState::ClosedByPeer),
        (10, ChannelState::ClosedByPeer),
        (3, ChannelState::ExposedAtPeer),
        (4, ChannelState::LeftByPeer),
        (5, ChannelState::ClosedByPeer),
        // The peer of a pair cannot evict.
        (6, ChannelState::ClosedByPeer),
        (99, ChannelState::PeerExited),
    ] {
        let mut side = Side::new(false);
        side.shared().notice();
        side.shared().doorbell.check_peer();
        side.shared().notice();
        assert_eq!(side.state(), ChannelState::Open, "nobody has hung up");
        side.peer_ends(word);
        side.shared().doorbell.check_peer();
        side.shared().notice();
        assert_eq!((side.state(), side.told()), (end, vec![end]), "{word}");
    }
}

/// A program may keep its handles of a channel for a long time without calling them.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn a_receiver_that_has_told_the_end_keeps_no_memory_of_the_channel() {
    let keeps = |receiver: &Receiver| !receiver.ring.consumer.peer().is_nowhere();
    let none = |receiver: &mut Receiver| {
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
    };
    let lost = |receiver: &mut Receiver| {
        let found = receiver.receive(&mut [0; 8]);
        assert!(matches!(found, Err(Error::PeerLost(_))), "{found:?}");
    };
    // The end word is set before the line ends.
    for (word, end, cut) in [
        (2, ChannelState::ClosedByPeer, true),
        (10, ChannelState::ClosedByPeer, false),
        (4, ChannelState::LeftByPeer, true),
        (12, ChannelState::LeftByPeer, false),
    ] {
        let none: fn(&mut Receiver) = if cut { lost } else { none };
        let mut side = Side::new(false);
        assert!(keeps(side.channel.receiver()));
        side.peer.store(layout::PHASE, word, Ordering::Release);
        none(side.channel.receiver());
        assert_eq!(side.state(), end);
        let receiver = side.channel.receiver();
        let reason = if cut {
            CloseReason::Lost
        } else {
            CloseReason::Closed
        };
        assert_eq!(
            (keeps(receiver), receiver.close_reason()),
            (false, Some(reason)),
            "{word}"
        );
        none(receiver);
    }
    // The peer ends its direction first, and the channel later.
    let mut side = Side::new(false);
    side.peer
        .store(layout::PHASE, Phase::ENDED.word(), Ordering::Release);
    none(side.channel.receiver());
    assert!(keeps(side.channel.receiver()), "the other direction is open");
    side.peer_ends(10);
    let receiver = side.channel.receiver();
    receiver.poll_line().unwrap();
    assert_eq!(
        (keeps(receiver), receiver.close_reason()),
        (false, Some(CloseReason::Closed))
    );
    none(receiver);
    // Both directions have ended.
    let mut side = Side::new(false);
    side.channel.sender().end();
    side.peer
        .store(layout::PHASE, Phase::ENDED.word(), Ordering::Release);
    none(side.channel.receiver());
    assert_eq!(side.state(), ChannelState::ClosedHere);
    assert!(!keeps(side.channel.receiver()));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn what_is_found_in_a_ring_is_a_lie_unless_its_owner_has_wiped_it_or_the_channel_has_ended() {
    let lie = || Err::<(), _>(Error::RingCorrupt("a lie".into()));
    for (word, end, code) in [
        (0, ChannelState::Corrupt, "RING_CORRUPT"),
        (2, ChannelState::Corrupt, "RING_CORRUPT"),
        (3, ChannelState::ExposedAtPeer, "OBJECT_EXPOSED"),
        (6, ChannelState::Corrupt, "RING_CORRUPT"),
        (99, ChannelState::Corrupt, "RING_CORRUPT"),
    ] {
        let side = Side::new(false);
        assert_eq!(side.shared().judge(Ok(7)).unwrap(), 7);
        let other = side.shared().judge(Err::<(), _>(Error::TimedOut)).unwrap_err();
        assert_eq!((other.code(), side.state()), ("TIMED_OUT", ChannelState::Open));
        side.peer.store(layout::PHASE, word, Ordering::Release);
        assert_eq!(side.shared().judge(lie()).unwrap_err().code(), code, "{word}");
        assert_eq!((side.state(), side.told()), (end, vec![end]), "{word}");
    }
    for (end, code) in [
        (ChannelState::ClosedHere, "CLOSED"),
        (ChannelState::Exposed, "OBJECT_EXPOSED"),
        // The peer could write until it exited, and what it wrote is read to the end.
        (ChannelState::PeerExited, "RING_CORRUPT"),
    ] {
        let side = Side::new(false);
        side.shared().finish(end);
        assert_eq!(side.shared().judge(lie()).unwrap_err().code(), code, "{end:?}");
        assert_eq!((side.state(), side.told()), (end, vec![end]));
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn a_channel_ends_by_itself_once_both_directions_have() {
    let side = Side::new(false);
    side.shared().finish_if_both_ended();
    side.shared().sending_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    side.shared().sending_ended.store(false, Ordering::Release);
    side.shared().receiving_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    assert_eq!((side.state(), side.told()), (ChannelState::Open, vec![]));
    side.shared().sending_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    assert_eq!(side.state(), ChannelState::ClosedHere);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn a_member_that_leaves_says_so_and_knows_whether_its_peer_has_its_place() {
    let soon = || Deadline::endless(Vec::new(), FAR).within(Duration::ZERO);
    let far = || Deadline::endless(Vec::new(), FAR).within(FAR);
    for (word, hangs_up, handover) in [
        (5, true, Handover::Taken),
        (13, true, Handover::Taken),
        (2, true, Handover::NoSuccessor),
        (0, true, Handover::NoSuccessor),
        (0, false, Handover::Unanswered),
        (5, false, Handover::Taken),
    ] {
        let mut side = Side::new(true);
        side.peer.store(layout::PHASE, word, Ordering::Release);
        if hangs_up {
            side.peer_ends(word);
        }
        let deadline = if hangs_up { far() } else { soon() };
        assert_eq!(side.shared().leave(&deadline), handover, "{word}, {hangs_up}");
        assert_eq!(
            (side.state(), side.phase()),
            (ChannelState::ClosedHere, said(Step::Left))
        );
        assert!(has_ended(&side.peers_line));
        assert_eq!(side.shared().leave(&far()), Handover::NoSuccessor, "it has left");
        assert!(side.shared().end(ChannelState::Exposed).is_none());
        assert_eq!(side.phase(), said(Step::Left));
        assert_eq!(side.told.lock().unwrap().len(), 1);
    }
    let side = Side::new(false);
    side.shared().finish(ChannelState::ClosedHere);
    assert_eq!(
        side.shared().leave(&far()),
        Handover::NoSuccessor,
        "it has closed"
    );
    assert_eq!(side.phase(), Phase::ENDED.then(Step::Closed));
}

/// Its region still exists, and another process may open it.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn a_member_that_waits_for_the_answer_can_be_exposed_and_ends_in_no_other_way() {
    let mut side = Side::new(false);
    assert!(side.channel.sender().try_send(&[7; 100]).unwrap());
    let shared = Arc::clone(side.shared());
    let leaves = thread::spawn(move || shared.leave(&Deadline::endless(Vec::new(), FAR).within(FAR)));
    while side.phase() == Some(Phase::OPEN) {
        assert!(!leaves.is_finished());
        thread::yield_now();
    }
    for end in [
        ChannelState::ClosedHere,
        ChannelState::PeerExited,
        ChannelState::Evicted,
    ] {
        assert!(side.shared().end(end).is_none());
        assert_eq!((side.phase(), left(&side.own) > 100), (said(Step::Left), true));
    }
    assert_eq!(
        side.shared().leave(&Deadline::endless(Vec::new(), FAR)),
        Handover::NoSuccessor,
        "another does"
    );
    assert!(side.shared().end(ChannelState::Exposed).is_none());
    assert_eq!((side.phase(), left(&side.own)), (Some(Phase::EXPOSED), 0));
    assert_eq!(side.state(), ChannelState::ClosedHere, "as the program is told");
    side.peer_ends(2);
    assert_eq!(leaves.join().unwrap(), Handover::NoSuccessor);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn where_a_subscribers_reading_ends_is_said_once() {
    let side = Side::new(false);
    let tail = || side.own.load(layout::TAIL, Ordering::Acquire);
    side.shared().end_reading_at(0x30);
    assert_eq!(tail(), 0x30 | END_ANNOUNCED);
    side.shared().end_reading_at(0x60);
    assert_eq!(tail(), 0x30 | END_ANNOUNCED);
}

/// An address or a slot, which is released on drop.
#[derive(Debug)]
struct Kept(Tells);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.end(ChannelState::Open);
    }
}

/// A process that is notified of the end may claim the resource at once.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn what_a_channel_keeps_from_others_is_free_before_its_peer_is_told_of_the_end() {
    for is_vacated in [false, true] {
        let mut side = Side::new(false);
        let tells = Tells {
            own: side.own.clone(),
            line: side.peers_line.try_clone().unwrap(),
            told: Arc::clone(&side.told),
            succeeds: false,
        };
        side.shared().set_on_end(Box::new(Some(Kept(tells))));
        if is_vacated {
            side.channel.sender().vacate();
            assert_eq!(side.told(), [ChannelState::Open], "it is free");
            assert_eq!(side.state(), ChannelState::Open, "and nothing has ended");
        }
        side.shared().finish(ChannelState::ClosedHere);
        assert_eq!(side.told(), [ChannelState::Open]);
        assert!(!side.told.lock().unwrap()[0].2, "the line had not ended by then");
        assert_eq!(
            side.phase(),
            Phase::ENDED.then(Step::Closed),
            "it has no successor"
        );
    }
}

#[test]
fn a_step_that_does_not_follow_is_not_written() {
    let region = OwnRegion::private(CAPACITY);
    let mut own = OwnPhase::of(&region);
    assert!(own.end_sending());
    assert_eq!((own.step(), phase(&region)), (Step::Open, Some(Phase::ENDED)));
    assert!(!own.end_sending(), "it was said");
    assert!(own.advance(Step::Left));
    let left = Phase::ENDED.then(Step::Left);
    assert_eq!((own.step(), phase(&region)), (Step::Left, left));
    assert!(!own.advance(Step::Closed) && !own.end_sending());
    assert_eq!((own.step(), phase(&region)), (Step::Left, left));
    assert!(own.advance(Step::Exposed));
    assert_eq!(
        (own.step(), phase(&region)),
        (Step::Exposed, Some(Phase::EXPOSED))
    );
}

type Read = fn(&mut Receiver) -> Result<()>;

/// The ways to read a message.
const READS: [(&str, Read); 7] = [
    ("try_receive", |receiver| {
        receiver.try_receive(&mut [0; 4096]).map(drop)
    }),
    ("try_receive_vec", |receiver| receiver.try_receive_vec().map(drop)),
    ("receive_part", |receiver| {
        let size = receiver.next_size()?.expect("a message");
        receiver.receive_part(&mut vec![0; size]).map(drop)
    }),
    ("try_receive_packed", |receiver| {
        receiver.try_receive_packed(&mut [0; 4096]).map(drop)
    }),
    ("try_receive_more_packed", |receiver| {
        receiver.try_receive_more_packed(&mut [0; 4096]).map(drop)
    }),
    ("pull_retained", |receiver| {
        pull_retained(receiver, &mut [0; 4096], 0..=4096, Keep::Each).map(drop)
    }),
    ("drain", |receiver| receiver.receive_each(|_| (), 10).map(drop)),
];

/// An exposed peer reports the exposure before it wipes its memory: data read after that may be zeros.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn a_message_that_may_have_been_wiped_is_an_error_and_not_counted() {
    // One record, and two fragments.
    for length in [100, 3000] {
        for (name, read) in READS {
            let (one, other) = pair(&Options::new());
            let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
            let region = sender.writing.as_ref().expect("open").ring.own().clone();
            let message = bytes(1, length);
            assert_eq!(sender.send_part(&message, 0).expect("open"), Progress::Whole);
            let is_packed = name.contains("packed") || name == "pull_retained";
            if length > 2048 && is_packed {
                // Packed reads return no fragments.
                assert_eq!(
                    receiver.try_receive_packed(&mut [0; 4096]).expect("open"),
                    Packed::Large(length)
                );
                continue;
            }
            region.store(layout::PHASE, Phase::EXPOSED.word(), Ordering::Release);
            let found = read(&mut receiver);
            assert!(
                matches!(found, Err(Error::ObjectExposed(_))),
                "{name} {length}: {found:?}"
            );
            let stats = receiver.stats();
            assert_eq!(
                (stats.messages_received, stats.bytes_received),
                (0, 0),
                "{name} {length}"
            );
        }
    }
}
