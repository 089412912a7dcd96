//! The line itself, on real sockets.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc,
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
