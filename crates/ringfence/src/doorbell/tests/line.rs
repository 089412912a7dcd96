//! The line itself, on real sockets.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};

use crate::doorbell::Doorbell;

/// Ends a test that has failed already.
const FAR: Duration = Duration::from_secs(60);

fn line() -> (Doorbell, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (own, peer) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    (Doorbell::new(own, None), peer)
}

fn far() -> Option<Instant> {
    Instant::now().checked_add(FAR)
}

fn ring(peer: &OwnedFd) {
    assert_eq!(send(peer.as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT), Ok(1));
}

#[test]
fn a_bell_rung_before_the_wait_is_not_slept_through() {
    let (doorbell, peer) = line();
    let heard = doorbell.heard();
    ring(&peer);
    assert!(doorbell.wait(heard, far()).unwrap());
    // Nor is one that somebody else has read meanwhile.
    let heard = doorbell.heard();
    ring(&peer);
    assert!(doorbell.listen());
    assert!(doorbell.wait(heard, far()).unwrap());
    assert!(!doorbell.is_gone());
}

#[test]
fn a_deadline_that_passes_is_no_bell() {
    let (doorbell, _peer) = line();
    let before = Instant::now();
    let deadline = before.checked_add(Duration::from_millis(20));
    assert!(!doorbell.wait(doorbell.heard(), deadline).unwrap());
    assert!(before.elapsed() >= Duration::from_millis(20));
    assert!(
        !doorbell.wait(doorbell.heard(), Some(before)).unwrap(),
        "long past"
    );
}

#[test]
fn an_end_of_the_line_wakes_and_stays() {
    let (doorbell, peer) = line();
    // What was rung before the end is read, and the end is noticed behind it.
    ring(&peer);
    drop(peer);
    while !doorbell.is_gone() {
        assert!(doorbell.wait(doorbell.heard(), far()).unwrap());
    }
    assert!(doorbell.wait(doorbell.heard(), None).unwrap());
    assert!(!doorbell.listen());
    doorbell.ring();
}

/// The line has failed then (ECONNRESET), which libuv tells once.
#[test]
fn an_end_behind_a_bell_is_found_at_once_though_the_peer_has_left_bells_unread() {
    let (doorbell, peer) = line();
    doorbell.ring();
    ring(&peer);
    drop(peer);
    assert!(!doorbell.listen());
}

#[test]
fn hanging_up_wakes_whoever_waits_on_both_sides() {
    let (doorbell, peer) = line();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| doorbell.wait(doorbell.heard(), far()).unwrap()))
            .collect();
        doorbell.hang_up();
        for thread in waiting {
            assert!(thread.join().unwrap());
        }
    });
    assert!(doorbell.is_gone());
    assert_eq!(recv(peer.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Ok(0));
}

#[test]
fn one_bell_wakes_every_thread_that_waits() {
    let (doorbell, peer) = line();
    let heard = doorbell.heard();
    let (woken, count) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..4 {
            let woken = woken.clone();
            let doorbell = &doorbell;
            scope.spawn(move || woken.send(doorbell.wait(heard, far()).unwrap()).unwrap());
        }
        ring(&peer);
        for _ in 0..4 {
            assert!(count.recv().unwrap(), "not the deadline");
        }
    });
}

fn unread(peer_of: &Doorbell) -> bool {
    let mut byte = [0];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    recv(peer_of.line.as_raw_fd(), &mut byte, flags) == Ok(1)
}

#[test]
fn a_bell_is_left_on_the_line_until_somebody_lies_down_again() {
    let (doorbell, peer) = line();
    ring(&peer);
    assert!(doorbell.wait(doorbell.heard(), far()).unwrap());
    assert!(unread(&doorbell));
    assert!(doorbell.catch_up());
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up(), "nothing is left");
    // The same for an event loop, which comes again where nobody lies down.
    ring(&peer);
    let heard = doorbell.heard();
    doorbell.listen_later();
    assert!(unread(&doorbell));
    assert!(doorbell.wait(heard, None).unwrap(), "it was heard");
    doorbell.listen_later();
    assert!(!unread(&doorbell));
    assert!(!doorbell.catch_up());
    // What is left there does not hide the end.
    ring(&peer);
    doorbell.listen_later();
    drop(peer);
    assert!(doorbell.wait(doorbell.heard(), None).unwrap());
    assert!(doorbell.is_gone());
}

/// Two halves of a channel wait on two threads, each for its own; a bell that one of them reads may be the other's.
#[test]
fn two_that_wait_take_no_bell_from_each_other() {
    const TURNS: u64 = 20_000;
    let (doorbell, peer) = line();
    let halves = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 2];
    thread::scope(|scope| {
        for (said, parked) in &halves {
            let doorbell = &doorbell;
            scope.spawn(move || {
                let mut sleeps = 1;
                for turn in 1..=TURNS {
                    while said.load(Ordering::SeqCst) < turn {
                        doorbell.catch_up();
                        let heard = doorbell.heard();
                        sleeps += 2;
                        parked.store(sleeps, Ordering::SeqCst);
                        if said.load(Ordering::SeqCst) < turn {
                            assert!(doorbell.wait(heard, far()).unwrap(), "a bell was lost");
                        }
                        parked.store(0, Ordering::SeqCst);
                    }
                }
            });
        }
        let mut rung = [0; 2];
        for turn in 1..=TURNS {
            for ((said, parked), rung) in halves.iter().zip(&mut rung) {
                said.store(turn, Ordering::SeqCst);
                let sleeps = parked.load(Ordering::SeqCst);
                if sleeps != 0 && sleeps != *rung {
                    *rung = sleeps;
                    ring(&peer);
                }
                if turn % 7 == 0 {
                    thread::yield_now();
                }
            }
        }
    });
}

#[test]
fn a_peer_that_never_reads_blocks_nobody() {
    let (doorbell, peer) = line();
    // The peer made the pair, and can change the mode of what both share.
    let flags = fcntl(&peer, FcntlArg::F_GETFL)
        .map(OFlag::from_bits_retain)
        .unwrap();
    fcntl(&doorbell.line, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).unwrap();
    for _ in 0..1_000_000 / 64 {
        doorbell.ring();
    }
    let mut bells = vec![0; 1 << 20];
    assert!(recv(peer.as_raw_fd(), &mut bells, MsgFlags::MSG_DONTWAIT).unwrap() > 0);
    // An empty line in that mode blocks nobody either.
    assert!(doorbell.listen());
}

#[test]
fn a_peer_whose_bells_have_no_end_keeps_nobody() {
    let (doorbell, peer) = line();
    while send(peer.as_raw_fd(), &[7; 4096], MsgFlags::MSG_DONTWAIT).is_ok() {}
    let heard = doorbell.heard();
    assert!(doorbell.wait(heard, far()).unwrap());
    for _ in 0..1000 {
        assert!(doorbell.listen());
    }
    let deadline = Instant::now().checked_add(Duration::from_millis(1));
    assert!(
        !doorbell.wait(doorbell.heard(), deadline).unwrap(),
        "all was read"
    );
}
