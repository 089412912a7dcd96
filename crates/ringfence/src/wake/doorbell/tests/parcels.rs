//! Parcels of a publisher, which have the numbers of their messages.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::{
    fork::OwnerProcess,
    wake::attachments::{Attachment, AttachmentRef, Attachments, tests::stuck_socket},
    wake::doorbell::Doorbell,
};

fn ends(accepts: Attachments) -> (Doorbell, Doorbell) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (publisher, subscriber) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
    let owner = OwnerProcess::current().unwrap();
    (
        Doorbell::new(publisher, None, Attachments::none(), false, owner),
        Doorbell::new(subscriber, None, accepts, true, owner),
    )
}

fn accepts(count: u32) -> Attachments {
    Attachments::none().descriptors(true).max_count(count)
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn post(publisher: &Doorbell, count: usize, number: u64) {
    let descriptor = null();
    let attachments = vec![AttachmentRef::from(descriptor.as_fd()); count];
    publisher.try_post(&attachments, Some(number)).unwrap();
}

fn collect(subscriber: &Doorbell, count: usize, number: u64) -> Vec<Attachment> {
    subscriber.collect(count, number).unwrap()
}

#[test]
fn message_gets_the_parcel_with_its_number() {
    let (publisher, subscriber) = ends(accepts(4));
    post(&publisher, 1, 3);
    post(&publisher, 2, 5);
    assert!(collect(&subscriber, 1, 2).is_empty());
    assert_eq!(collect(&subscriber, 1, 3).len(), 1);
    assert!(collect(&subscriber, 1, 4).is_empty());
    assert_eq!(collect(&subscriber, 2, 5).len(), 2);
}

#[test]
fn parcel_replaces_one_for_the_same_message() {
    let (publisher, subscriber) = ends(accepts(4));
    post(&publisher, 1, 1);
    post(&publisher, 1, 2);
    // Also one that was read from the line already.
    subscriber.read_wakeups();
    post(&publisher, 3, 2);
    // It takes no room from the parcel before it.
    assert_eq!(collect(&subscriber, 1, 1).len(), 1);
    assert_eq!(collect(&subscriber, 3, 2).len(), 3);
}

#[test]
fn withdrawn_parcel_is_not_received() {
    for read_before in [false, true] {
        let (publisher, subscriber) = ends(accepts(1));
        post(&publisher, 1, 1);
        if read_before {
            subscriber.read_wakeups();
        }
        post(&publisher, 0, 1);
        assert!(collect(&subscriber, 1, 1).is_empty());
        post(&publisher, 1, 2);
        assert_eq!(collect(&subscriber, 1, 2).len(), 1);
    }
}

/// No skb with descriptors lies between a withdrawal and what follows, so one read returns both.
#[test]
fn withdrawal_ends_at_a_wakeup_or_the_next_parcel() {
    let (publisher, subscriber) = ends(accepts(1));
    post(&publisher, 1, 1);
    post(&publisher, 0, 1);
    publisher.wake_peer();
    post(&publisher, 1, 1);
    post(&publisher, 0, 1);
    post(&publisher, 1, 1);
    subscriber.read_wakeups();
    assert!(subscriber.violation().is_none());
    assert_eq!(collect(&subscriber, 1, 1).len(), 1);
}

/// The first does not close while its data is not read. The others wait for it.
#[test]
fn descriptors_that_do_not_close_are_a_violation() {
    let (stuck, _unread) = stuck_socket();
    let (publisher, subscriber) = ends(accepts(1));
    let attachment = [AttachmentRef::from(stuck.as_fd())];
    publisher.try_post(&attachment, Some(1)).unwrap();
    drop(stuck);
    for _ in 0..1100 {
        subscriber.read_wakeups();
        if subscriber.violation().is_some() {
            return;
        }
        post(&publisher, 1, 1);
    }
    panic!("no violation");
}

#[test]
fn parcels_of_missed_messages_are_dropped() {
    let (publisher, subscriber) = ends(accepts(2));
    for number in 1..=10 {
        post(&publisher, 1, number);
    }
    // More than it holds: the oldest go.
    subscriber.read_wakeups();
    assert_eq!(collect(&subscriber, 1, 9).len(), 1);
    post(&publisher, 1, 11);
    post(&publisher, 1, 12);
    subscriber.drop_missed(12);
    assert!(subscriber.violation().is_none());
    assert_eq!(collect(&subscriber, 1, 12).len(), 1);
}

#[test]
fn numbers_that_decrease_and_wrong_counts_are_violations() {
    let (publisher, subscriber) = ends(accepts(4));
    post(&publisher, 1, 2);
    post(&publisher, 1, 1);
    subscriber.read_wakeups();
    assert!(subscriber.violation().is_some());
    let (publisher, subscriber) = ends(accepts(4));
    post(&publisher, 1, 2);
    assert_eq!(subscriber.collect(2, 2).unwrap_err().code(), "RING_CORRUPT");
    let (publisher, subscriber) = ends(accepts(4));
    post(&publisher, 5, 1);
    subscriber.read_wakeups();
    assert!(subscriber.violation().is_some());
}
