//! Cases that went wrong once. The whole table is `npm run test:faults`.

use std::process::Command;

/// Plays one case: it fails with all that was said.
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

/// The thread that lets go of subscribers that have gone ended with the first wait that failed, and the publisher waited for ever.
#[test]
fn a_publisher_hears_of_ends_after_a_wait_that_failed() {
    play("publisher", "epoll_wait", "1", "EMFILE");
}

/// The thread that keeps the address ended for want of a descriptor, after the publisher had been made: none ever came.
#[test]
fn what_keeps_an_address_is_there_before_the_address_is_kept() {
    play("publisher", "eventfd2", "6", "EMFILE");
    play("service", "eventfd2", "all", "EMFILE");
}

/// A look at what the peer had passed that failed for want of memory was held against the peer.
#[test]
fn a_shortage_of_ones_own_is_not_held_against_the_peer() {
    play("parent", "getpeername", "1", "ENOMEM");
    play("pair, the host", "getsockname", "1", "EMFILE");
    play("member, second", "getsockopt(SO_TYPE)", "all", "ENOMEM");
}

/// A look at the seals that was cut short was held against the peer.
#[test]
fn a_look_at_seals_that_is_interrupted_is_made_again() {
    play("agent", "fcntl(F_GET_SEALS)", "1", "EINTR");
}

/// Other looks at what the peer had passed were held against it where they were cut short.
#[test]
fn every_look_that_is_interrupted_is_made_again() {
    play("member, second", "getsockopt(SO_ACCEPTCONN)", "1+", "EINTR");
    play("pair over shm, the guest", "fcntl(F_GETFL)", "1+", "EINTR");
}

/// A name that stayed for want of memory was told as one that others had seen.
#[test]
fn a_name_that_cannot_be_taken_away_is_trouble_of_ones_own() {
    play("pair over shm, the guest", "unlink", "1+", "ENOMEM");
}

/// The child had lost its line, and the parent the child.
#[test]
fn a_line_that_could_not_be_taken_is_taken_at_the_next_try() {
    play("child", "fcntl(F_SETFD)", "1", "EACCES");
}

/// A subscriber that could not be watched was let in, and told at once that its publisher had closed.
#[test]
fn a_subscriber_is_kept_where_it_cannot_be_watched_at_first() {
    play("publisher", "epoll_ctl", "3", "ENOMEM");
}

/// Only a shortage of memory made a bell be sent again; a security module that said no left the peer asleep.
#[test]
fn a_bell_that_is_refused_for_a_while_is_sent_again() {
    play("member, first", "sendto", "7", "EACCES");
    play("pair, the guest", "sendto", "1+", "EIO");
}

/// A read of the line that failed was taken for the peer's death, and a guest took the place of its host, which was there.
#[test]
fn a_line_that_cannot_be_read_is_no_end_of_the_peer() {
    play("member, second", "recvfrom", "all", "EACCES");
}

/// What one thread of the process tells another was lost where the write failed.
#[test]
fn a_bell_within_the_process_is_not_lost_by_a_write_that_fails() {
    play("member, second", "write", "2", "EMFILE");
    play("host refuses an executable", "write", "4", "EACCES");
}

/// The whole table tries every look; this is one that every policy needs.
#[test]
fn no_policy_passes_where_the_look_fails() {
    play("host refuses an executable", "read", "1+", "EIO");
}
