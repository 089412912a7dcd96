//! The thread that notices deaths. `wake/doorbell/tests` test that a death ends a read.

use std::{
    fs::File,
    io::Read,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::epoll::Epoll, unistd::Pid};

use super::*;
use crate::sys;

/// Ends a test that has failed already.
const FAR: Duration = Duration::from_secs(60);

/// A process that does nothing, and a line that its death ends. Its end of the line is held here.
struct Watched {
    child: Child,
    watch: Option<ExitWatch>,
    read: UnixStream,
    _end: UnixStream,
}

impl Watched {
    fn new() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = sys::process::pidfd_open(Pid::from_raw(child.id().cast_signed())).unwrap();
        let (line, end) = UnixStream::pair().unwrap();
        let read = line.try_clone().unwrap();
        read.set_read_timeout(Some(FAR)).unwrap();
        Self {
            watch: Some(ExitWatch::new(&Arc::new(line.into()), &Arc::new(pidfd)).unwrap()),
            child,
            read,
            _end: end,
        }
    }

    /// Its parent has not asked for its end yet, as a program may never do.
    fn expect_exit_detected(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.read.read(&mut [0]).unwrap(), 0, "the exit ends the line");
        self.child.wait().unwrap();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn exit_is_detected_before_the_parent_waits() {
    Watched::new().expect_exit_detected();
}

#[test]
fn dropped_watch_leaves_the_others_watched() {
    let (mut one, other) = (Watched::new(), Watched::new());
    one.watch = None;
    other.expect_exit_detected();
}

#[test]
fn failing_wait_is_retried_a_limited_number_of_times() {
    // Every wait on this fails at once.
    let epoll = Epoll(File::open("/dev/null").unwrap().into());
    let begin = Instant::now();
    let thread = thread::spawn(move || watch(&epoll));
    while !thread.is_finished() {
        assert!(begin.elapsed() < FAR, "the thread never gives up");
        thread::yield_now();
    }
    thread.join().unwrap();
    // No pause is shorter than it was asked to be.
    assert!(
        begin.elapsed() >= RETRY_PAUSE * MAX_FAILURES,
        "it gave up too early"
    );
}
