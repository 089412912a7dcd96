//! Shared code of the tests with two processes: starts this test binary again in a role, and receives its
//! reports.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test binary uses a part of it"
)]

#[cfg(feature = "tokio")]
pub mod tasks;
pub mod wire;

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, geteuid},
};
use ringfence::{Address, Arrival, Channel, Listener, Options, ParentLine, Refused, join, spawn};

/// Longer than any step takes on a loaded machine, and short enough for a person to wait.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The system calls behind poll(2): some kernels (arm64) have no such call.
#[cfg(target_arch = "x86_64")]
pub const POLL: libc::c_long = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
pub const POLL: libc::c_long = libc::SYS_ppoll;

/// A limit for tests that hang: after this the process exits, whichever thread is waiting.
const WATCHDOG: Duration = Duration::from_secs(600);

fn start_watchdog() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::spawn(|| {
            thread::sleep(WATCHDOG);
            eprintln!("a test hangs: {WATCHDOG:?} have passed");
            std::process::abort();
        });
    });
}

/// The prefix of lines that a test waits for. Other lines are output of the test harness.
const REPORT_PREFIX: &str = "@@ ";

static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Makes an executable copy of this executable in another file. Another process writes the copy: a child
/// forked concurrently by a thread of this process would hold the file open for writing, and executing it
/// would fail (ETXTBSY).
pub fn copy_of_this_executable(to: &Path) {
    let own = std::env::current_exe().expect("this executable");
    let copied = Command::new("cp").arg(own).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{}", to.display());
}

/// Returns an address that no other test uses.
pub fn fresh_address(named: bool) -> (Address, Option<tempfile::TempDir>) {
    if named {
        let directory = tempfile::tempdir().expect("a directory");
        let address = Address::path(directory.path().join("socket")).expect("an address");
        return (address, Some(directory));
    }
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("ringfence-test-{}-{number}", std::process::id());
    (Address::abstract_name(name).expect("an address"), None)
}

/// Options with a small ring: the tests make thousands.
pub fn small() -> Options {
    Options::new().capacity(4096).handshake_timeout(TIME_LIMIT)
}

/// Another process of this executable, in a role. Killed on drop.
pub struct Actor {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Actor {
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        Self::start_from(std::env::current_exe().expect("this executable"), role, arguments)
    }

    pub fn start_from(executable: PathBuf, role: &str, arguments: &[&str]) -> Self {
        Self::run(Command::new(executable), role, arguments)
    }

    /// Starts a role. `command` runs this executable, in any way.
    pub fn run(command: Command, role: &str, arguments: &[&str]) -> Self {
        let mut command = Self::prepare(command, role, arguments);
        Self::from_child(command.spawn().expect("a process"))
    }

    /// As [`Actor::run`], with an input that the test provides.
    pub fn run_with_input(command: Command, input: OwnedFd, role: &str, arguments: &[&str]) -> Self {
        let mut command = Self::prepare(command, role, arguments);
        command.stdin(input);
        Self::from_child(command.spawn().expect("a process"))
    }

    /// Starts a role that inherits a private line.
    pub fn spawn(role: &str, arguments: &[&str]) -> (Self, ParentLine) {
        Self::spawn_from(
            &std::env::current_exe().expect("this executable"),
            role,
            arguments,
        )
    }

    pub fn spawn_from(executable: &Path, role: &str, arguments: &[&str]) -> (Self, ParentLine) {
        Self::spawn_command(Command::new(executable), role, arguments)
    }

    /// As [`Actor::spawn`]. `command` runs this executable, in any way.
    pub fn spawn_command(command: Command, role: &str, arguments: &[&str]) -> (Self, ParentLine) {
        let command = Self::prepare(command, role, arguments);
        let (child, line) = spawn(command).expect("a process");
        (Self::from_child(child), line)
    }

    pub fn prepare(mut command: Command, role: &str, arguments: &[&str]) -> Command {
        start_watchdog();
        command
            .args(["--exact", "role", "--nocapture", "--test-threads=1"])
            .env("RINGFENCE_ROLE", role)
            .env("RINGFENCE_ARGUMENTS", arguments.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Starts one of several processes that share a stream of lines: each line carries the process's number.
    pub fn start_with_shared_output(
        number: usize,
        lines: Sender<(usize, String)>,
        role: &str,
        arguments: &[&str],
    ) -> Self {
        let executable = std::env::current_exe().expect("this executable");
        let mut command = Self::prepare(Command::new(executable), role, arguments);
        let child = command.spawn().expect("a process");
        Self::forward_lines(child, channel().1, move |text| lines.send((number, text)).is_ok())
    }

    pub fn from_child(child: Child) -> Self {
        let (sender, lines) = channel();
        Self::forward_lines(child, lines, move |text| sender.send(text).is_ok())
    }

    fn forward_lines(
        mut child: Child,
        lines: Receiver<String>,
        mut forward: impl FnMut(String) -> bool + Send + 'static,
    ) -> Self {
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The harness prints the name of a test without a newline before it runs it.
                if let Some((_, text)) = line.split_once(REPORT_PREFIX)
                    && !forward(text.to_owned())
                {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Returns the next line that the process reports. Panics if there is none.
    pub fn next_line(&self) -> String {
        self.lines
            .recv_timeout(TIME_LIMIT)
            .expect("lines of the other process")
    }

    /// Returns the next line that the process reports, or `None` once its output has ended.
    pub fn next_line_or_end(&self) -> Option<String> {
        match self.lines.recv_timeout(TIME_LIMIT) {
            Err(RecvTimeoutError::Timeout) => panic!("the other process reports nothing and does not exit"),
            other => other.ok(),
        }
    }

    pub fn expect(&self, wanted: &str) {
        assert_eq!(self.next_line(), wanted);
    }

    /// Returns a line that the process has already reported, if any.
    pub fn try_next_line(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Resumes a role that waits for the test.
    pub fn proceed(&mut self) {
        self.send_line("");
    }

    /// Sends a line to a role that reads one.
    pub fn send_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("an open input");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .expect("the process reads its input");
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("the exit status");
    }

    /// Stops the process. SIGSTOP is delivered asynchronously: until one of its threads handles it, the
    /// others keep running.
    pub fn stop(&self) {
        let pid = Pid::from_raw(self.pid());
        kill(pid, Signal::SIGSTOP).expect("SIGSTOP");
        waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED).expect("a stopped process");
    }

    /// Resumes the stopped process.
    pub fn resume(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGCONT).expect("SIGCONT");
    }

    /// Waits until the process has exited successfully on its own.
    pub fn finish(self) {
        let status = self.end();
        assert!(status.success(), "the other process failed: {status}");
    }

    /// Waits until the process has exited successfully, or was ended by a signal, which is returned.
    pub fn signal(self) -> Option<i32> {
        let status = self.end();
        assert!(
            status.success() || status.signal().is_some(),
            "the other process failed: {status}"
        );
        status.signal()
    }

    fn end(mut self) -> ExitStatus {
        self.stdin = None;
        let end = Instant::now() + TIME_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("the exit status") {
                return status;
            }
            assert!(Instant::now() < end, "the other process does not exit");
            thread::yield_now();
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A user who owns nothing.
pub const OTHER_UID: u32 = 65001;

/// If root runs the tests, another user can take part, from a copy of this executable that this user may run.
pub struct OtherUsers(tempfile::TempDir);

impl OtherUsers {
    pub fn new() -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("skipped: it takes root to be another user");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        copy_of_this_executable(&directory.path().join("copy"));
        Some(Self(directory))
    }

    /// Returns the path of the copy.
    pub fn program(&self) -> PathBuf {
        self.0.path().join("copy")
    }

    pub fn start(&self, role: &str, address: &Address) -> Actor {
        self.start_as(OTHER_UID, role, &[&address.to_string()])
    }

    pub fn start_as(&self, uid: u32, role: &str, arguments: &[&str]) -> Actor {
        let mut command = Command::new("setpriv");
        let id = uid.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(self.0.path().join("copy"));
        Actor::run(command, role, arguments)
    }

    /// Returns a path in a directory that every user may traverse, and only root may write.
    pub fn address(&self) -> Address {
        let directory = self.0.path().join("open");
        if !directory.exists() {
            std::fs::create_dir(&directory).unwrap();
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o711)).unwrap();
        }
        Address::path(directory.join("socket")).unwrap()
    }
}

/// Asserts that a call has failed because the peer is lost.
pub fn assert_lost<T: std::fmt::Debug>(found: Result<T, ringfence::Error>) {
    let error = found.expect_err("the peer is lost");
    assert!(matches!(error, ringfence::Error::PeerLost(_)), "{error}");
}

/// Inside another process: reports a line to the test.
pub fn report(text: impl AsRef<str>) {
    println!("\n{REPORT_PREFIX}{}", text.as_ref());
}

/// Inside another process: waits for the test.
pub fn wait_for_test() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line of the test");
}

/// Inside another process: returns the role and its arguments. `None` in the test itself.
pub fn role() -> Option<(String, Vec<String>)> {
    let role = std::env::var("RINGFENCE_ROLE").ok()?;
    start_watchdog();
    let arguments = std::env::var("RINGFENCE_ARGUMENTS").unwrap_or_default();
    Some((role, arguments.lines().map(str::to_owned).collect()))
}

/// Returns the address in a role's first argument.
pub fn address_in(arguments: &[String]) -> Address {
    arguments[0].parse().expect("an address")
}

/// Returns the next arrival, which must be an accepted client.
pub fn accepted(listener: &Listener) -> Channel {
    match listener.accept().expect("an event") {
        Arrival::Accepted(channel) => channel,
        other => panic!("{other:?}"),
    }
}

/// Returns the next arrival, which must be a refused client.
pub fn refused(listener: &Listener) -> Refused {
    match listener.accept().expect("an event") {
        Arrival::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

/// Returns a message whose first byte depends on its number, and whose period is that of no offset in a ring.
pub fn message(number: usize, length: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..=250).collect();
    let first = number % period.len();
    // Copies whole periods: in a debug build an iterator takes a second for some megabytes.
    let mut message = period.repeat((first + length).div_ceil(period.len()));
    message.drain(..first);
    message.truncate(length);
    message
}

/// Returns message lengths for busy traffic through a ring of 4096 bytes.
pub fn mixed_length(number: usize) -> usize {
    if number.is_multiple_of(50) {
        30_000
    } else {
        number * 31 % 700
    }
}

/// Joins on a thread, so that the test can continue in the meantime.
pub fn join_later(address: &Address, options: &Options) -> thread::JoinHandle<ringfence::Result<Channel>> {
    let (address, options) = (address.clone(), options.clone());
    thread::spawn(move || join(&address, &options))
}

/// Returns the threads of a process, each with its name as truncated by the kernel. Skips threads that exit during the call.
pub fn threads_of(pid: i32) -> Vec<(i32, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((id, name.trim().to_owned()))
        })
        .collect()
}

/// Returns the threads of a process that have this name, as truncated by the kernel.
pub fn threads_named(pid: i32, name: &str) -> Vec<i32> {
    let threads = threads_of(pid).into_iter();
    threads
        .filter_map(|(id, found)| (found == name).then_some(id))
        .collect()
}

/// Returns the thread of a process that has this name, as truncated by the kernel. Waits for it: a thread has its name only
/// once it runs, and a listing may leave out a thread while another one exits.
pub fn thread_named(pid: i32, name: &str) -> i32 {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(thread) = threads_named(pid, name).first() {
            return *thread;
        }
        assert!(Instant::now() < end, "process {pid} has no thread {name}");
        thread::yield_now();
    }
}

/// Counts the running handshakes of a host process: each has a thread.
pub fn handshakes_of(pid: i32) -> usize {
    threads_named(pid, "ringfence-host").len()
}

/// Waits until any process listens at the address.
pub fn wait_for_host(address: &Address) {
    let end = Instant::now() + TIME_LIMIT;
    let wanted = address.to_string();
    loop {
        let table = std::fs::read_to_string("/proc/net/unix").expect("the table of sockets");
        // The flag is __SO_ACCEPTCON: the socket is listening.
        let listens = |line: &str| {
            let mut fields = line.split_whitespace();
            fields.nth(3) == Some("00010000") && fields.next_back() == Some(&wanted)
        };
        if table.lines().any(listens) {
            return;
        }
        assert!(Instant::now() < end, "no process listens at {wanted}");
        thread::yield_now();
    }
}

/// Whether this system has the barriers that two processes may negotiate (membarrier(2)).
pub fn has_barriers() -> bool {
    const GLOBAL_EXPEDITED_AND_ITS_REGISTRATION: libc::c_long = 0b110;
    // SAFETY: membarrier takes integers; this queries the supported commands.
    let known = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
    known > 0 && known & GLOBAL_EXPEDITED_AND_ITS_REGISTRATION == GLOBAL_EXPEDITED_AND_ITS_REGISTRATION
}

static BARRIERS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_barrier(_signal: libc::c_int) {
    BARRIERS.fetch_add(1, Ordering::Relaxed);
}

/// Counts calls of membarrier(2) in this thread from here on, instead of executing them.
pub fn count_barriers() {
    let action = SigAction::new(
        SigHandler::Handler(count_barrier),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler only adds to an atomic.
    unsafe { sigaction(Signal::SIGSYS, &action) }.unwrap();
    trap(libc::SYS_membarrier, None);
}

/// Returns the number of calls since then.
pub fn barriers() -> usize {
    BARRIERS.load(Ordering::Relaxed)
}

/// Makes a system call fail with an error from here on, in this thread and those that it starts (seccomp(2)):
/// every such call, or only those with this argument.
pub fn forbid(call: libc::c_long, argument: Option<(u32, i32)>, error: i32) {
    filter(call, argument, libc::SECCOMP_RET_ERRNO | error.cast_unsigned());
}

/// Makes a system call raise SIGSYS instead from here on, as [`forbid`] makes it fail.
pub fn trap(call: libc::c_long, argument: Option<(u32, i32)>) {
    filter(call, argument, libc::SECCOMP_RET_TRAP);
}

fn filter(call: libc::c_long, argument: Option<(u32, i32)>, verdict: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let (load, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_RET | libc::BPF_K,
    );
    let other_than = |k: u32, skip: u8| libc::sock_filter {
        jf: skip,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    // The checked data: the call's number, then the architecture and an address, then the arguments of eight
    // bytes each.
    let call = u32::try_from(call).unwrap();
    let (at, value) = argument.map_or((0, call), |(index, value)| {
        (16 + 8 * index, value.cast_unsigned())
    });
    let mut filter = [
        statement(load, 0),
        other_than(call, 3),
        statement(load, at),
        other_than(value, 1),
        statement(answer, verdict),
        statement(answer, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 6,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: prctl takes integers here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let (mode, program) = (libc::SECCOMP_MODE_FILTER, &raw const program);
    // SAFETY: the kernel reads the program and the six instructions that it points to.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, program) }, 0);
}
