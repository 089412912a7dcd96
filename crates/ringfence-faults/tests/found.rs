//! Cases that once went wrong. `npm run test:faults` plays all cases.

use std::process::Command;

/// Plays one case. A failure shows everything that the processes reported.
fn play(scenario: &str, call: &str, number: &str, error: &str) {
    let played = Command::new(env!("CARGO_BIN_EXE_ringfence-faults"))
        .args(["case", scenario, call, number, error])
        .output()
        .expect("the harness starts");
    assert!(
        played.status.success(),
        "{}",
        String::from_utf8_lossy(&played.stdout)
    );
}

/// The thread that removes ended subscribers stopped at the first failed wait, and the publisher waited forever.
#[test]
fn a_publisher_hears_of_ends_after_a_wait_that_failed() {
    play("publisher", "epoll_wait", "1", "EMFILE");
}

/// The thread that accepts at the address stopped for lack of a descriptor after the publisher was created: no subscriber could
/// connect.
#[test]
fn what_keeps_an_address_is_there_before_the_address_is_kept() {
    play("publisher", "eventfd2", "6", "EMFILE");
    play("service", "eventfd2", "all", "EMFILE");
}

/// A check of a passed descriptor that failed for lack of memory was blamed on the peer.
#[test]
fn a_shortage_of_ones_own_is_not_held_against_the_peer() {
    play("parent", "getpeername", "1", "ENOMEM");
    play("pair, the host", "getsockname", "1", "EMFILE");
    play("member, second", "getsockopt(SO_TYPE)", "all", "ENOMEM");
}

/// An interrupted check of the seals was blamed on the peer.
#[test]
fn a_look_at_seals_that_is_interrupted_is_made_again() {
    play("agent", "fcntl(F_GET_SEALS)", "1", "EINTR");
}

/// Other interrupted checks of passed descriptors were blamed on the peer.
#[test]
fn every_look_that_is_interrupted_is_made_again() {
    play("member, second", "getsockopt(SO_ACCEPTCONN)", "1+", "EINTR");
    play("pair over shm, the guest", "fcntl(F_GETFL)", "1+", "EINTR");
}

/// A name that could not be removed for lack of memory was reported as one that others had opened.
#[test]
fn a_name_that_cannot_be_taken_away_is_trouble_of_ones_own() {
    play("pair over shm, the guest", "unlink", "1+", "ENOMEM");
}

/// The child lost its line, and the parent its child.
#[test]
fn a_line_that_could_not_be_taken_is_taken_at_the_next_try() {
    play("child", "fcntl(F_SETFD)", "1", "EACCES");
}

/// A subscriber that could not be watched was admitted, and its subscription ended at once as closed.
#[test]
fn a_subscriber_is_kept_where_it_cannot_be_watched_at_first() {
    play("publisher", "epoll_ctl", "3", "ENOMEM");
}

/// A wakeup was retried only for lack of memory. If a security module refused it, the peer slept on.
#[test]
fn a_bell_that_is_refused_for_a_while_is_sent_again() {
    play("member, first", "sendto", "7", "EACCES");
    play("pair, the guest", "sendto", "1+", "EIO");
}

/// A failed read of the line counted as the peer's death, and a guest replaced its host, which was still alive.
#[test]
fn a_line_that_cannot_be_read_is_no_end_of_the_peer() {
    play("member, second", "recvfrom", "all", "EACCES");
}

/// A wakeup between two threads of the process was lost if the write failed.
#[test]
fn a_bell_within_the_process_is_not_lost_by_a_write_that_fails() {
    play("member, second", "write", "2", "EMFILE");
    play("host refuses an executable", "write", "4", "EACCES");
}

/// `npm run test:faults` tries every check; every policy needs this one.
#[test]
fn no_policy_passes_where_the_look_fails() {
    play("host refuses an executable", "read", "1+", "EIO");
}
