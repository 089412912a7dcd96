//! Cases that once went wrong. `npm run test:faults` runs all cases.

use std::process::Command;

/// Runs one case. A failure shows everything that the processes reported.
fn run_case(scenario: &str, call: &str, number: &str, error: &str) {
    let run = Command::new(env!("CARGO_BIN_EXE_ringfence-faults"))
        .args(["case", scenario, call, number, error])
        .output()
        .expect("the harness starts");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

/// The thread that removes ended subscribers stopped at the first failed wait, and the publisher waited forever.
#[test]
fn publisher_detects_ends_after_a_failed_wait() {
    run_case("publisher", "epoll_wait", "1", "EMFILE");
}

/// The thread that accepts at the address stopped for lack of a descriptor after the publisher was created: no subscriber could
/// connect.
#[test]
fn failed_thread_start_fails_the_call() {
    run_case("publisher", "eventfd2", "6", "EMFILE");
    run_case("service", "eventfd2", "all", "EMFILE");
}

/// A check of a passed descriptor that failed for lack of memory was blamed on the peer.
#[test]
fn local_shortage_is_not_attributed_to_the_peer() {
    run_case("parent", "getpeername", "1", "ENOMEM");
    run_case("pair, the host", "getsockname", "1", "EMFILE");
    run_case("member, second", "getsockopt(SO_TYPE)", "all", "ENOMEM");
}

/// A call on a passed socket that was denied once was blamed on the peer.
#[test]
fn denied_call_on_a_socket_is_not_attributed_to_the_peer() {
    run_case("member, second", "recvmsg", "1", "EACCES");
    run_case("member, second", "getsockopt(SO_ACCEPTCONN)", "1", "EACCES");
}

/// An interrupted check of the seals was blamed on the peer.
#[test]
fn interrupted_seal_check_is_retried() {
    run_case("agent", "fcntl(F_GET_SEALS)", "1", "EINTR");
}

/// Other interrupted checks of passed descriptors were blamed on the peer.
#[test]
fn every_interrupted_check_is_retried() {
    run_case("member, second", "getsockopt(SO_ACCEPTCONN)", "1+", "EINTR");
    run_case("pair over shm, the guest", "fcntl(F_GETFL)", "1+", "EINTR");
}

/// An interrupted bind(2) was reported as an unusable address.
#[test]
fn interrupted_bind_is_retried() {
    run_case("pair, the host", "bind", "1", "EINTR");
}

/// A name that could not be removed for lack of memory was reported as one that others had opened.
#[test]
fn failed_unlink_is_a_local_error() {
    run_case("pair over shm, the guest", "unlink", "1+", "ENOMEM");
}

/// The child lost its line, and the parent its child.
#[test]
fn child_can_retry_to_claim_its_line() {
    run_case("child", "fcntl(F_SETFD)", "1", "EACCES");
}

/// A subscriber that could not be watched was admitted, and its subscription ended at once as closed.
#[test]
fn subscriber_is_kept_if_its_watch_fails_at_first() {
    run_case("publisher", "epoll_ctl", "3", "ENOMEM");
}

/// A wakeup was retried only for lack of memory. If a security module refused it, the peer slept on.
#[test]
fn refused_wakeup_is_sent_again() {
    run_case("member, first", "sendmsg(wakeup)", "7", "EACCES");
    run_case("pair, the guest", "sendmsg(wakeup)", "1+", "EIO");
}

/// A failed read of the line counted as the peer's death, and a guest replaced its host, which was still alive.
#[test]
fn failed_line_read_does_not_end_the_peer() {
    run_case("member, second", "recvmsg(wakeup)", "all", "EACCES");
}

/// A parcel of attachments that could not be removed from the line was read twice, and the second one counted as a violation.
#[test]
fn parcel_left_on_the_line_is_read_once() {
    run_case("attachments", "recvmsg(wakeup)", "all", "ENOMEM");
}

/// If the wakeups before a publisher's parcel could not be read, the message was handed out without its attachments.
#[test]
fn wakeup_before_a_parcel_loses_no_attachments() {
    for scenario in ["subscriber", "second subscriber"] {
        run_case(scenario, "recvmsg(wakeup)", "1+", "EAGAIN");
    }
}

/// A wakeup between two threads of the process was lost if the write failed.
#[test]
fn local_wakeup_survives_a_failed_write() {
    run_case("member, second", "write", "2", "EMFILE");
    run_case("host refuses an executable", "write", "4", "EACCES");
}

/// `npm run test:faults` tries every check; every policy needs this one.
#[test]
fn no_policy_passes_if_its_check_fails() {
    run_case("host refuses an executable", "read", "1+", "EIO");
}
