//! Every way in which a channel ends, on a line and regions of which the test holds both sides: what is
//! reported to the peer and here, and in which order.

use std::{
    os::fd::AsRawFd,
    sync::{Mutex, atomic::Ordering, mpsc},
    thread,
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};

use super::*;
use crate::{
    channel::end::{CloseReason, END_ANNOUNCED, Handover, OnEnd, OwnPhase, Shared},
    channel::receiver::{Retain, pull_retained},
    channel::stats::Counters,
    region::copy::Writable,
    region::phase::{Phase, Step},
    wait::deadline::Deadline,
};

/// A limit for tests that have already failed.
const FAR: Duration = Duration::from_secs(60);

/// The state in which a channel has ended, and what its peer could see at that moment: the phase, and whether
/// the line had ended.
type Ended = (ChannelState, Option<Phase>, bool);

/// One side of a channel, and everything that its peer holds.
struct Side {
    channel: Channel,
    own: OwnRegion,
    peer: OwnRegion,
    peers_line: OwnedFd,
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Side {
    /// `succeeds`: this side takes over the address of its peer.
    fn new(succeeds: bool) -> Self {
        let (line, peers_line) = crate::sys::socket::new_line().unwrap();
        let (own, peer) = (OwnRegion::private(CAPACITY), OwnRegion::private(CAPACITY));
        let ended = Arc::default();
        let recorder = EndRecorder {
            own: own.clone(),
            line: peers_line.try_clone().unwrap(),
            ended: Arc::clone(&ended),
            succeeds,
        };
        let parts = without_a_peer(line, own.clone(), peer.peer_view(), CAPACITY, LONGEST);
        Self {
            channel: Channel::assemble(parts, Some(Box::new(recorder)), &Options::new()),
            own,
            peer,
            peers_line,
            ended,
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

    fn ended(&self) -> Vec<ChannelState> {
        let ended = self.ended.lock().unwrap();
        for (_, phase, _) in &*ended {
            assert_eq!(*phase, Some(Phase::OPEN), "the peer is notified later");
        }
        ended.iter().map(|(state, ..)| *state).collect()
    }

    /// The peer sets its end word and hangs up.
    fn peer_ends(&mut self, word: u64) {
        self.peer.store(layout::PHASE, word, Ordering::Release);
        // Two descriptors refer to this end of the line.
        shutdown(self.peers_line.as_raw_fd(), Shutdown::Both).unwrap();
    }
}

/// A resource that is released at the end, which records what the peer could see then.
struct EndRecorder {
    own: OwnRegion,
    line: OwnedFd,
    ended: Arc<Mutex<Vec<Ended>>>,
    succeeds: bool,
}

impl OnEnd for EndRecorder {
    fn end(&mut self, state: ChannelState) -> bool {
        let seen = (state, phase(&self.own), has_ended(&self.line));
        self.ended.lock().unwrap().push(seen);
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

fn phase_after(step: Step) -> Option<Phase> {
    Phase::OPEN.then(step)
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn first_end_is_final_and_announced_once() {
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
            let pending_report = side.shared().end(end).expect("an end to report");
            let step = match end {
                Exposed => Step::Exposed,
                Evicted => Step::Evicted,
                _ if succeeds => Step::Succeeds,
                _ => Step::Closed,
            };
            // Only a close ends the sending.
            let phase_after = |step| {
                if end == ClosedHere {
                    Phase::ENDED.then(step)
                } else {
                    phase_after(step)
                }
            };
            assert_eq!((side.state(), side.phase()), (end, phase_after(step)), "{end:?}");
            assert_eq!(left(&side.own) == 0, end == Exposed, "{end:?}");
            assert!(has_ended(&side.peers_line));
            drop(pending_report);
            for other in [ClosedHere, Exposed, PeerExited] {
                assert!(side.shared().end(other).is_none());
                assert_eq!((side.state(), side.phase()), (end, phase_after(step)), "{end:?}");
            }
            assert_eq!(side.ended(), [end]);
            let (_, _, line_ended) = side.ended.lock().unwrap()[0];
            assert!(!line_ended, "resources are released before the line ends");
            assert_eq!(
                side.shared().peer_is_gone(),
                matches!(end, ClosedByPeer | PeerExited | LeftByPeer)
            );
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn final_phase_of_the_peer_determines_the_state() {
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
        side.shared().end_if_gone();
        side.shared().doorbell.check_peer();
        side.shared().end_if_gone();
        assert_eq!(side.state(), ChannelState::Open, "the peer has not disconnected");
        side.peer_ends(word);
        side.shared().doorbell.check_peer();
        side.shared().end_if_gone();
        assert_eq!((side.state(), side.ended()), (end, vec![end]), "{word}");
    }
}

/// A program may keep its handles of a channel for a long time without calling them.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn receiver_unmaps_after_reporting_the_end() {
    let keeps = |receiver: &Receiver| !receiver.reader.peer.is_detached();
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
fn corruption_is_a_violation_unless_wiped_or_ended() {
    let corrupt = || Err::<(), _>(Error::RingCorrupt("a violation".into()));
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
        assert_eq!(side.shared().judge(corrupt()).unwrap_err().code(), code, "{word}");
        assert_eq!((side.state(), side.ended()), (end, vec![end]), "{word}");
    }
    for (end, code) in [
        (ChannelState::ClosedHere, "CLOSED"),
        (ChannelState::Exposed, "OBJECT_EXPOSED"),
        // The peer could write until it exited, and what it wrote is read to the end.
        (ChannelState::PeerExited, "RING_CORRUPT"),
    ] {
        let side = Side::new(false);
        side.shared().finish(end);
        assert_eq!(
            side.shared().judge(corrupt()).unwrap_err().code(),
            code,
            "{end:?}"
        );
        assert_eq!((side.state(), side.ended()), (end, vec![end]));
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn channel_ends_once_both_directions_have_ended() {
    let side = Side::new(false);
    side.shared().finish_if_both_ended();
    side.shared().sending_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    side.shared().sending_ended.store(false, Ordering::Release);
    side.shared().receiving_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    assert_eq!((side.state(), side.ended()), (ChannelState::Open, vec![]));
    side.shared().sending_ended.store(true, Ordering::Release);
    side.shared().finish_if_both_ended();
    assert_eq!(side.state(), ChannelState::ClosedHere);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn leave_announces_and_returns_the_handover() {
    let soon = || Deadline::endless(Vec::new(), FAR).within(Duration::ZERO);
    let far = || Deadline::endless(Vec::new(), FAR).within(FAR);
    for (word, disconnects, handover) in [
        (5, true, Handover::Taken),
        (13, true, Handover::Taken),
        (2, true, Handover::NoSuccessor),
        (0, true, Handover::NoSuccessor),
        (0, false, Handover::Unanswered),
        (5, false, Handover::Taken),
    ] {
        let mut side = Side::new(true);
        side.peer.store(layout::PHASE, word, Ordering::Release);
        if disconnects {
            side.peer_ends(word);
        }
        let deadline = if disconnects { far() } else { soon() };
        assert_eq!(side.shared().leave(&deadline), handover, "{word}, {disconnects}");
        assert_eq!(
            (side.state(), side.phase()),
            (ChannelState::ClosedHere, phase_after(Step::Left))
        );
        assert!(has_ended(&side.peers_line));
        assert_eq!(side.shared().leave(&far()), Handover::NoSuccessor, "it has left");
        assert!(side.shared().end(ChannelState::Exposed).is_none());
        assert_eq!(side.phase(), phase_after(Step::Left));
        assert_eq!(side.ended.lock().unwrap().len(), 1);
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
fn leaving_member_can_only_become_exposed() {
    let mut side = Side::new(false);
    assert!(side.channel.sender().try_send(&[7; 100]).unwrap());
    let shared = Arc::clone(side.shared());
    let leaving = thread::spawn(move || shared.leave(&Deadline::endless(Vec::new(), FAR).within(FAR)));
    while side.phase() == Some(Phase::OPEN) {
        assert!(!leaving.is_finished());
        thread::yield_now();
    }
    for end in [
        ChannelState::ClosedHere,
        ChannelState::PeerExited,
        ChannelState::Evicted,
    ] {
        assert!(side.shared().end(end).is_none());
        assert_eq!(
            (side.phase(), left(&side.own) > 100),
            (phase_after(Step::Left), true)
        );
    }
    assert_eq!(
        side.shared().leave(&Deadline::endless(Vec::new(), FAR)),
        Handover::NoSuccessor,
        "another thread is leaving"
    );
    assert!(side.shared().end(ChannelState::Exposed).is_none());
    assert_eq!((side.phase(), left(&side.own)), (Some(Phase::EXPOSED), 0));
    assert_eq!(
        side.state(),
        ChannelState::ClosedHere,
        "as reported to the program"
    );
    side.peer_ends(2);
    assert_eq!(leaving.join().unwrap(), Handover::NoSuccessor);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn end_position_is_announced_once() {
    let side = Side::new(false);
    let tail = || side.own.load(layout::TAIL, Ordering::Acquire);
    side.shared().end_reading_at(0x30);
    assert_eq!(tail(), 0x30 | END_ANNOUNCED);
    side.shared().end_reading_at(0x60);
    assert_eq!(tail(), 0x30 | END_ANNOUNCED);
}

/// An address or a slot, which is released on drop.
struct ReleasedOnDrop(EndRecorder);

impl Drop for ReleasedOnDrop {
    fn drop(&mut self) {
        self.0.end(ChannelState::Open);
    }
}

/// A process that is notified of the end may claim the resource at once.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn resources_are_released_before_the_peer_sees_the_end() {
    for is_vacated in [false, true] {
        let mut side = Side::new(false);
        let recorder = EndRecorder {
            own: side.own.clone(),
            line: side.peers_line.try_clone().unwrap(),
            ended: Arc::clone(&side.ended),
            succeeds: false,
        };
        side.shared().set_on_end(Box::new(Some(ReleasedOnDrop(recorder))));
        if is_vacated {
            side.channel.sender().vacate();
            assert_eq!(side.ended(), [ChannelState::Open], "the resource is released");
            assert_eq!(side.state(), ChannelState::Open, "the channel is still open");
        }
        side.shared().finish(ChannelState::ClosedHere);
        assert_eq!(side.ended(), [ChannelState::Open]);
        assert!(!side.ended.lock().unwrap()[0].2, "the line has not ended yet");
        assert_eq!(
            side.phase(),
            Phase::ENDED.then(Step::Closed),
            "it has no successor"
        );
    }
}

/// Reports the counts at the end.
#[derive(Debug)]
struct CountsAtEnd(Arc<Counters>, mpsc::Sender<(u64, u64)>);

impl OnEnd for CountsAtEnd {
    fn end(&mut self, _state: ChannelState) -> bool {
        self.1.send(self.0.received.get()).unwrap();
        false
    }
}

/// A service adds the figures of a channel up once the channel has ended.
#[test]
fn last_counts_of_a_panicking_receiver_precede_the_end() {
    let (one, other) = pair(&Options::new());
    let ((mut sender, _unread), (_unwritten, mut receiver)) = (one.split(), other.split());
    let (report, reports) = mpsc::channel();
    let counters = Arc::clone(&receiver.shared.counters);
    receiver
        .shared
        .set_on_end(Box::new(CountsAtEnd(counters, report)));
    assert!(sender.try_send(b"the last").unwrap());
    assert_eq!(receiver.try_receive(&mut [0; 8]).unwrap(), Some(8));
    let panicking = thread::spawn(move || {
        let _receiver = receiver;
        panic!("on purpose");
    });
    assert!(panicking.join().is_err());
    assert_eq!(reports.recv(), Ok((1, 8)));
}

#[test]
fn invalid_phase_steps_are_not_written() {
    let region = OwnRegion::private(CAPACITY);
    let mut own = OwnPhase::of(&region);
    assert!(own.end_sending());
    assert_eq!(
        (own.current.step, phase(&region)),
        (Step::Open, Some(Phase::ENDED))
    );
    assert!(!own.end_sending(), "announced before");
    assert!(own.advance(Step::Left));
    let left = Phase::ENDED.then(Step::Left);
    assert_eq!((own.current.step, phase(&region)), (Step::Left, left));
    assert!(!own.advance(Step::Closed) && !own.end_sending());
    assert_eq!((own.current.step, phase(&region)), (Step::Left, left));
    assert!(own.advance(Step::Exposed));
    assert_eq!(
        (own.current.step, phase(&region)),
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
        pull_retained(receiver, &mut [0; 4096], 0..=4096, Retain::Each).map(drop)
    }),
    ("drain", |receiver| receiver.receive_each(|_| (), 10).map(drop)),
];

/// An exposed peer reports the exposure before it wipes its memory: data read after that may be zeros.
#[test]
#[cfg_attr(miri, ignore = "Miri has no socketpair with these flags")]
fn possibly_wiped_message_is_an_error() {
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
