//! A parent and its child: the line that the child inherits, and the outcome of each error.

mod support;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
        unix::process::ExitStatusExt,
    },
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
        wait::{Id, WaitPidFlag, waitid, waitpid},
    },
    unistd::Pid,
};
use ringfence::{
    Admit, Channel, Check, CloseReason, LINE_VARIABLE, LinePlace, Outcome, Policy, Role, from_parent,
    private_line, spawn, spawn_with,
};
use support::{Actor, POLL, TIME_LIMIT, forbid, report, small, trap, wait_for_test, wire};

/// A copy of the line of this process's channel outlives it, in a process that it starts.
fn as_leaves_a_copy() {
    let channel = from_parent(&small()).unwrap();
    let copies = sockets().len();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("socket:") {
            let number: RawFd = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: the descriptor is open, and stays open during the call.
            let socket = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
    }
    assert_eq!(copies, 1, "the channel's line");
    // It ends with the test: then its input ends.
    let mut holder = Command::new("cat").stdout(Stdio::null()).spawn().unwrap();
    report(format!("{} {}", std::process::id(), holder.id()));
    let (_sender, mut receiver) = channel.split();
    let _ = receiver.receive(&mut [0; 16]);
    holder.wait().unwrap();
}

/// Is killed when it kills the first process of its child.
fn as_dies_in_kill() {
    let script = r#"sleep 1000 & first=$!; sleep 1000 & echo "@@ $$ $first $!"; wait"#;
    let (child, line) = Actor::spawn_command(shell(script), "leaves", &[]);
    report(child.next_line());
    trap(libc::SYS_pidfd_send_signal, Some((1, Signal::SIGKILL as i32)));
    let _ = line.processes().kill();
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    match role.as_str() {
        // Echoes its messages.
        "child" => {
            let channel = from_parent(&small()).unwrap();
            assert_eq!(channel.role(), Role::Guest);
            assert_eq!(channel.peer().pid, nix::unistd::getppid().as_raw());
            report(descriptors());
            let again = from_parent(&small()).unwrap_err();
            report(format!("{}: {again}", again.code()));
            echo(channel);
        }
        "asks" => {
            let time = arguments
                .first()
                .map_or(TIME_LIMIT, |time| Duration::from_millis(time.parse().unwrap()));
            let options = small().handshake_timeout(time);
            let options = match arguments.get(1) {
                Some(parent) => options.policy(Policy::new().executables([parent])),
                None => options,
            };
            match from_parent(&options) {
                Ok(_) => report("a channel"),
                Err(error) => report(format!("{}: {error}", error.code())),
            }
        }
        // The call that takes over the line fails in its first thread.
        "tries twice" => {
            let first = thread::spawn(|| {
                forbid(libc::SYS_fcntl, Some((1, libc::F_SETFD)), libc::EMFILE);
                from_parent(&small()).map(drop)
            });
            report(first.join().unwrap().unwrap_err().code());
            echo(from_parent(&small()).unwrap());
        }
        // Is asked for another line at the same time, which does not exist.
        "claims another line" => {
            let left = std::env::var(LINE_VARIABLE).unwrap();
            let first = thread::spawn(|| from_parent(&small()).unwrap());
            while !is_close_on_exec(&left) {
                thread::yield_now();
            }
            for line in ["1000", &left] {
                // SAFETY: the other thread has read the variable, and waits for the parent. It reads no
                // variable after that.
                unsafe { std::env::set_var(LINE_VARIABLE, line) };
                let error = from_parent(&small()).unwrap_err();
                report(format!("{}: {error}", error.code()));
            }
            echo(first.join().unwrap());
        }
        "owns" => as_owner(&arguments[0]),
        "leaves" => {}
        // Lacks the descriptors for an answer.
        "cannot answer" => {
            forbid(libc::SYS_socketpair, None, libc::EMFILE);
            let error = from_parent(&small()).unwrap_err();
            report(error.code());
            wait_for_test();
        }
        "asks and stays" => {
            let error = from_parent(&small()).unwrap_err();
            report(error.code());
            wait_for_test();
        }
        "silent" => {
            report("started");
            wait_for_test();
        }
        // Lets a child of its own answer instead.
        "passes its line on" => {
            let grandchild = Actor::start("asks", &[]);
            report(grandchild.next_line());
        }
        "has a child" => {
            let channel = from_parent(&small()).unwrap();
            let grandchild = Actor::start("asks", &[]);
            report(grandchild.next_line());
            grandchild.finish();
            echo(channel);
        }
        "leaves a copy" => as_leaves_a_copy(),
        "lists descriptors" => {
            report(descriptors());
            wait_for_test();
        }
        "executes" => {
            use std::os::unix::process::CommandExt;
            let channel = from_parent(&small()).unwrap();
            wait_for_test();
            // The process lives on with another program, so its pidfd reports nothing.
            let error = Command::new("sleep").arg("1000").exec();
            drop(channel);
            panic!("{error}");
        }
        "dies in kill" => as_dies_in_kill(),
        // Has a channel for as long as it is not killed.
        "stays" => {
            let _channel = from_parent(&small().policy(Policy::new().any_executable())).unwrap();
            report(std::env::var(LINE_VARIABLE).unwrap());
            loop {
                thread::park();
            }
        }
        other => unreachable!("{other}"),
    }
}

/// Checks that its own sockets stay its own, even if the variable names them.
fn as_owner(listening: &str) {
    let (one, other) = UnixStream::pair().unwrap();
    let (prepared, _end) = UnixStream::pair().unwrap();
    setsockopt(&prepared, sockopt::PassCred, &true).unwrap();
    let (_parent, child) = private_line().unwrap();
    let connected = UnixStream::connect(listening).unwrap();
    setsockopt(&connected, sockopt::PassCred, &true).unwrap();
    report("connected");
    // The mark of a line, from another process.
    poll(
        &mut [PollFd::new(connected.as_fd(), PollFlags::POLLIN)],
        PollTimeout::NONE,
    )
    .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let owned = [
        one.as_fd(),
        prepared.as_fd(),
        child.as_fd(),
        connected.as_fd(),
        tcp.as_fd(),
    ];
    // The last one is inherited, but is no line.
    for socket in owned.into_iter().chain([std::io::stdin().as_fd()]) {
        let line = socket.as_raw_fd().to_string();
        // SAFETY: no other thread accesses the environment.
        unsafe { std::env::set_var(LINE_VARIABLE, line) };
        let error = from_parent(&small()).unwrap_err();
        assert!(
            error.to_string().contains("is not the line that was left"),
            "{error}"
        );
        fcntl(socket, FcntlArg::F_GETFD).expect("an open descriptor");
    }
    (&one).write_all(b"!").unwrap();
    (&other).read_exact(&mut [0]).unwrap();
    report("own");
}

fn echo(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut message = vec![0; 1 << 16];
    while let Some(length) = receiver.receive(&mut message).unwrap() {
        sender.send(&message[..length]).unwrap();
    }
}

fn is_close_on_exec(number: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:\t"))
        .unwrap();
    i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_CLOEXEC != 0
}

/// With a child that echoes: a message makes a round trip, and both directions end.
fn exchange_and_end(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    sender.send(b"after all").unwrap();
    assert_eq!(receiver.receive(&mut [0; 16]).unwrap(), Some(9));
    sender.end();
    assert_eq!(receiver.receive(&mut [0; 16]).unwrap(), None);
}

/// Returns the sockets of this process.
fn sockets() -> BTreeSet<String> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| target.starts_with("socket:"))
        .collect()
}

fn descriptors() -> String {
    Vec::from_iter(sockets()).join(" ")
}

#[test]
fn parent_and_child_have_a_channel_with_full_evidence() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("child", &[]);
    let channel = line.channel(&small()).unwrap();
    assert_eq!(channel.role(), Role::Host);
    assert_eq!(channel.peer().pid, child.pid());
    let checks: Vec<_> = channel
        .evidence()
        .iter()
        .map(|evidence| format!("{} {}", evidence.step, evidence.check))
        .collect();
    for wanted in [
        "rendezvous line",
        "credentials child",
        "credentials process",
        "executable uid",
        "executable executable",
        "hello line",
        "final executable",
        "ready received",
    ] {
        assert!(checks.iter().any(|check| check == wanted), "{wanted}: {checks:?}");
    }
    let sockets = child.next_line();
    assert_eq!(
        sockets.split(' ').count(),
        1,
        "only the channel's line: {sockets}"
    );
    let again = child.next_line();
    assert!(
        again.starts_with("ADDRESS_INVALID") && again.contains("already"),
        "{again}"
    );
    let (mut sender, mut receiver) = channel.split();
    let mut message = [0; 16];
    for text in [&b""[..], b"one", b"two"] {
        sender.send(text).unwrap();
        assert_eq!(receiver.receive(&mut message).unwrap(), Some(text.len()));
        assert_eq!(&message[..text.len()], text);
    }
    sender.end();
    assert_eq!(receiver.receive(&mut message).unwrap(), None);
    child.finish();
    assert_eq!(receiver.close_reason(), Some(CloseReason::Closed));
}

#[test]
fn line_can_be_claimed_after_a_failed_attempt() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("tries twice", &[]);
    let channel = line.channel(&small()).unwrap();
    child.expect("NO_SPACE");
    exchange_and_end(channel);
    child.finish();
}

#[test]
fn claimed_line_stays_claimed_after_a_failed_second_call() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("claims another line", &[]);
    for _ in 0..2 {
        let reply = child.next_line();
        assert!(
            reply.starts_with("ADDRESS_INVALID") && reply.contains("has taken its line already"),
            "{reply}"
        );
    }
    exchange_and_end(line.channel(&small()).unwrap());
    child.finish();
}

#[test]
fn child_exit_before_its_answer_is_reported_at_once() {
    if support::role().is_some() {
        return;
    }
    let started = Instant::now();
    let (child, line) = Actor::spawn("leaves", &[]);
    let error = line.channel(&small()).unwrap_err();
    assert_eq!(error.code(), "CHILD_EXITED", "{error}");
    assert!(
        started.elapsed() < TIME_LIMIT,
        "the exit was reported, not the timeout"
    );
    child.finish();
}

/// A process between its fork and its exec has a copy of every descriptor.
#[test]
fn child_exit_is_reported_once_no_starting_process_has_its_line() {
    if support::role().is_some() {
        return;
    }
    let (line, childs) = private_line().unwrap();
    let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    line.started(child.id()).unwrap();
    let (until, resume) = std::io::pipe().unwrap();
    // SAFETY: the copy of this process makes system calls only. It bypasses the handlers of pthread_atfork(3), as posix_spawn(3) does.
    let starting = match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        // SAFETY: it closes its own copy, reads into a buffer of its own, and ends.
        0 => unsafe {
            let mut byte = [0_u8; 1];
            libc::close(resume.as_raw_fd());
            libc::read(until.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
            libc::_exit(0)
        },
        pid => Pid::from_raw(pid.try_into().unwrap()),
    };
    drop(childs);
    waitid(
        Id::Pid(Pid::from_raw(child.id().cast_signed())),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
    )
    .unwrap();
    let (sender, waiting) = mpsc::channel();
    let failing = thread::spawn(move || {
        sender.send(nix::unistd::gettid()).unwrap();
        line.channel(&small()).unwrap_err().code()
    });
    let file = format!("/proc/self/task/{}/syscall", waiting.recv().unwrap());
    let end = Instant::now() + TIME_LIMIT;
    // A thread that has ended has no such file.
    while let Ok(call) = std::fs::read_to_string(&file)
        && !call.starts_with(&format!("{POLL} "))
    {
        assert!(Instant::now() < end, "the thread does not wait: {call}");
        thread::yield_now();
    }
    drop(resume);
    assert_eq!(failing.join().unwrap(), "CHILD_EXITED");
    waitpid(starting, None).unwrap();
    child.wait().unwrap();
}

#[test]
fn child_reports_why_it_cannot_answer() {
    if support::role().is_some() {
        return;
    }
    for admit in [Admit::Child, Admit::Descendant] {
        let (child, line) = Actor::spawn("cannot answer", &[]);
        let error = line.admit(admit).channel(&small()).unwrap_err();
        assert_eq!(error.code(), "PEER_LOST", "{error}");
        let why = error.to_string();
        assert!(
            why.contains("it could not continue: ") && why.contains("socketpair"),
            "{why}"
        );
        child.expect("NO_SPACE");
    }
}

#[test]
fn silent_child_fails_at_the_deadline() {
    if support::role().is_some() {
        return;
    }
    let (mut child, line) = Actor::spawn("silent", &[]);
    child.expect("started");
    let options = small().handshake_timeout(Duration::from_millis(50));
    let error = line.channel(&options).unwrap_err();
    assert_eq!(error.code(), "HANDSHAKE_TIMEOUT");
    assert!(
        error
            .to_string()
            .contains("(last step: the child's call of `from_parent`)"),
        "{error}"
    );
    child.proceed();
    child.finish();
}

#[test]
fn waiting_for_a_silent_child_can_be_cancelled() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("silent", &[]);
    let cancel_token = ringfence::CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone());
    let waiting = std::thread::spawn(move || line.channel(&options).map(drop));
    child.expect("started");
    cancel_token.cancel();
    assert_eq!(waiting.join().unwrap().unwrap_err().code(), "ABORTED");
}

#[test]
fn child_detects_a_lost_or_silent_parent() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("asks", &[]);
    drop(line);
    let reply = child.next_line();
    assert!(reply.starts_with("PEER_LOST"), "{reply}");
    let (child, _line) = Actor::spawn("asks", &["50"]);
    let reply = child.next_line();
    assert!(reply.starts_with("HANDSHAKE_TIMEOUT"), "{reply}");
}

#[test]
fn from_parent_without_a_line_fails() {
    if support::role().is_some() {
        return;
    }
    let reply = Actor::start("asks", &[]).next_line();
    assert!(reply.starts_with("ADDRESS_INVALID"), "{reply}");
    assert!(
        reply.contains("no ringfence parent has started this process; start this program with `spawn`"),
        "{reply}"
    );
    // A number and a socket that do not match the open descriptor, and a malformed value.
    for (value, why) in [
        ("0", "is not the line that was left"),
        ("1000", "is not the line that was left"),
        ("-1", "and not the number of a descriptor"),
        ("3:1", "and not the number of a descriptor"),
        ("", "and not the number of a descriptor"),
    ] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(LINE_VARIABLE, value);
        let reply = Actor::run(command, "asks", &[]).next_line();
        assert!(
            reply.starts_with("ADDRESS_INVALID") && reply.contains(why),
            "{value}: {reply}"
        );
    }
}

#[test]
fn own_sockets_are_never_taken_for_the_line() {
    if support::role().is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listening = UnixListener::bind(&path).unwrap();
    let (stdin, _end) = UnixStream::pair().unwrap();
    let command = Command::new(std::env::current_exe().unwrap());
    let child = Actor::run_with_input(command, OwnedFd::from(stdin), "owns", &[path.to_str().unwrap()]);
    child.expect("connected");
    let (accepted, _) = listening.accept().unwrap();
    wire::send(&accepted, &wire::good(3, &[0; 32]), None);
    child.expect("own");
    child.finish();
}

#[test]
fn process_other_than_the_child_is_refused() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("passes its line on", &[]);
    let error = line.channel(&small()).unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.check, Check::Child);
    assert!(refusal.wanted.contains(&child.pid().to_string()), "{error}");
    let reply = child.next_line();
    assert!(reply.starts_with("PEER_REFUSED"), "{reply}");
}

/// Returns a shell that runs this executable in the way that `script` says, in which it is `"$0" "$@"`.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap());
    command
}

#[test]
fn descendant_is_admitted_despite_forks_and_exits() {
    if support::role().is_some() {
        return;
    }
    for script in [
        r#""$0" "$@"; exit"#,
        r#""$0" "$@" & wait"#,
        // The launcher exits while its descendant starts.
        r#""$0" "$@" &"#,
        r#"("$0" "$@" &) &"#,
        r#"setsid -f "$0" "$@""#,
    ] {
        let (launcher, line) = Actor::spawn_command(shell(script), "asks", &[]);
        let channel = line.admit(Admit::Descendant).channel(&small()).unwrap();
        assert_ne!(channel.peer().pid, launcher.pid(), "{script}");
        let child = channel
            .evidence()
            .iter()
            .find(|evidence| evidence.check == "child");
        assert_eq!(child.unwrap().outcome, Outcome::Passed, "{script}");
        launcher.expect("a channel");
    }
}

#[test]
fn only_the_first_descendant_is_admitted() {
    if support::role().is_some() {
        return;
    }
    let script = r#""$0" "$@" & "$0" "$@" & wait"#;
    let (launcher, line) = Actor::spawn_command(shell(script), "asks", &[]);
    let _channel = line.admit(Admit::Descendant).channel(&small()).unwrap();
    let mut reply = [launcher.next_line(), launcher.next_line()];
    reply.sort();
    let [refused, admitted] = &reply;
    assert_eq!(admitted, "a channel");
    assert!(refused.starts_with("PEER_REFUSED"), "{refused}");
    assert!(refused.contains("checks child"), "{refused}");
}

#[test]
fn refused_descendant_is_killed() {
    if support::role().is_some() {
        return;
    }
    let (launcher, line) = Actor::spawn_command(shell(r#""$0" "$@"; echo "@@ $?""#), "asks and stays", &[]);
    let options = small().policy(Policy::new().executables(["/bin/true"]));
    let error = line.admit(Admit::Descendant).channel(&options).unwrap_err();
    assert_eq!(error.refusal().expect("a refusal").check, Check::Executable);
    let mut reply = launcher.next_line();
    if reply.starts_with("PEER_REFUSED") {
        reply = launcher.next_line();
    }
    assert_eq!(reply, "137");
}

#[test]
fn launcher_exit_without_descendants_is_reported() {
    if support::role().is_some() {
        return;
    }
    let (launcher, line) = Actor::spawn_command(shell("true"), "leaves", &[]);
    let options = small().handshake_timeout(Duration::from_secs(1 << 30));
    let error = line.admit(Admit::Descendant).channel(&options).unwrap_err();
    assert_eq!(error.code(), "CHILD_EXITED", "{error}");
    launcher.finish();
}

#[test]
fn killed_descendant_is_not_reported_as_launcher_exit() {
    if support::role().is_some() {
        return;
    }
    for (admit, script, code) in [
        (Admit::Descendant, r#""$0" "$@"; exit 3"#, "PEER_LOST"),
        (Admit::Descendant, r#"exec "$0" "$@""#, "CHILD_EXITED"),
        (Admit::Child, r#"exec "$0" "$@""#, "CHILD_EXITED"),
    ] {
        let (_launcher, line) = Actor::spawn_command(shell(script), "asks", &[]);
        let policy = Policy::new().authorize(|identity| {
            kill(Pid::from_raw(identity.pid), Signal::SIGKILL)?;
            Ok::<_, nix::Error>(true)
        });
        let error = line.admit(admit).channel(&small().policy(policy)).unwrap_err();
        assert_eq!(error.code(), code, "{script}: {error}");
    }
}

#[test]
fn line_is_descriptor_3_or_standard_input() {
    if support::role().is_some() {
        return;
    }
    for (place, number) in [(LinePlace::Descriptor, "3"), (LinePlace::Stdin, "0")] {
        let mut command = Actor::prepare(Command::new(std::env::current_exe().unwrap()), "stays", &[]);
        command.stdin(Stdio::null());
        let (child, line) = spawn_with(command, place).unwrap();
        let child = Actor::from_child(child);
        let _channel = line.channel(&small()).unwrap();
        child.expect(number);
    }
    let error = spawn(Command::new("/no/such/program")).unwrap_err();
    assert_eq!(error.code(), "INVALID_ARGUMENT", "{error}");
}

fn is_running(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < TIME_LIMIT, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn kill_ends_the_childs_processes_and_no_others() {
    if support::role().is_some() {
        return;
    }
    let other = Actor::start("silent", &[]);
    other.expect("started");
    let script = r#"(sleep 1000 & echo "@@ $!"); setsid sleep 1000 & echo "@@ $!"; "$0" "$@"; exit"#;
    let (mut launcher, line) = Actor::spawn_command(shell(script), "stays", &[]);
    let processes = line.processes();
    let sleeping = [launcher.next_line(), launcher.next_line()].map(|pid| pid.parse::<i32>().unwrap());
    let channel = line.admit(Admit::Descendant).channel(&small()).unwrap();
    let mut pids = sleeping.to_vec();
    pids.push(channel.peer().pid);
    assert!(pids.iter().all(|pid| is_running(*pid)));
    assert!(processes.kill().unwrap());
    // The first has lost its parent, and still holds the line.
    wait_until("all are killed", || !pids.iter().any(|pid| is_running(*pid)));
    launcher.kill();
    assert!(is_running(other.pid()));
    assert!(processes.kill().unwrap(), "a second kill succeeds");
}

#[test]
fn kill_ends_what_a_child_that_has_exited_left() {
    if support::role().is_some() {
        return;
    }
    let script = r#"sleep 1000 <&- >&- 2>&- 3>&- & echo "@@ $!"; exec "$0" "$@""#;
    let (mut child, line) = Actor::spawn_command(shell(script), "stays", &[]);
    let processes = line.processes();
    let sleeping = child.next_line().parse().unwrap();
    let _channel = line.channel(&small()).unwrap();
    child.kill();
    assert!(is_running(sleeping));
    assert!(processes.kill().unwrap());
    wait_until("all are killed", || !is_running(sleeping));
}

/// A stopped process cannot notice that its parent is gone.
#[test]
fn killed_parent_leaves_at_most_one_process_stopped() {
    if support::role().is_some() {
        return;
    }
    let parent = Actor::start("dies in kill", &[]);
    let reply = parent.next_line();
    let pids = reply.split_whitespace().map(|pid| pid.parse().unwrap());
    let pids: Vec<i32> = pids.collect();
    assert_eq!(parent.signal(), Some(libc::SIGSYS));
    let stopped = || {
        let is_stopped = |pid: &&i32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
        };
        pids.iter().filter(is_stopped).count()
    };
    wait_until("the first is stopped", || stopped() > 0);
    let stopped = stopped();
    for pid in &pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    assert_eq!((pids.len(), stopped), (3, 1), "{reply}");
}

/// The child may have passed its line to a process that it did not start.
#[test]
fn kill_spares_a_sibling_that_holds_the_line() {
    if support::role().is_some() {
        return;
    }
    let (line, childs) = private_line().unwrap();
    let sleep = || {
        let mut command = Command::new("sleep");
        let end = childs.as_fd().try_clone_to_owned().unwrap();
        command.arg("1000").stdin(end).spawn().unwrap()
    };
    let mut child = sleep();
    line.started(child.id()).unwrap();
    let mut sibling = sleep();
    drop(childs);
    assert!(line.processes().kill().unwrap());
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    kill(Pid::from_raw(sibling.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(sibling.wait().unwrap().signal(), Some(libc::SIGTERM));
}

/// A cgroup (version 2) in which processes can be killed together. Removed on drop.
struct Cgroup {
    name: String,
    directory: std::path::PathBuf,
}

impl Cgroup {
    /// `None`, and a line that gives the reason, if none can be made.
    fn new(name: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (line.contains(" - cgroup2 ") && fields[3] == "/").then(|| fields[4].to_owned())
        });
        let Some(point) = point else {
            println!("left out: the cgroup filesystem (version 2) is not mounted here");
            return None;
        };
        let name = format!("/ringfence-test-{}-{name}", std::process::id());
        let directory = std::path::PathBuf::from(format!("{point}{name}"));
        if let Err(error) = std::fs::create_dir(&directory) {
            println!("left out: no cgroup can be made here: {error}");
            return None;
        }
        let made = Self { name, directory };
        if !made.directory.join("cgroup.kill").exists() {
            println!("left out: this kernel has no cgroup.kill (Linux 5.14)");
            return None;
        }
        Some(made)
    }

    fn processes(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.directory.join("cgroup.procs")).unwrap();
        text.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    fn is_empty(&self) -> bool {
        let events = std::fs::read_to_string(self.directory.join("cgroup.events")).unwrap();
        events.contains("populated 0")
    }

    /// A shell that enters the cgroup and leaves a process in it, `detached`, that has no ties to the shell.
    fn shell(&self, detached: &str) -> Command {
        let script = format!(
            r#"echo $$ >"$GROUP/cgroup.procs"; setsid -f {detached} <&- >&- 2>&- 3>&-; "$0" "$@"; exit"#
        );
        let mut command = shell(&script);
        command.env("GROUP", &self.directory);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.directory.join("cgroup.kill"), "1");
        while std::fs::remove_dir(&self.directory)
            .is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
        {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn kill_ends_every_process_in_the_childs_cgroup() {
    if support::role().is_some() {
        return;
    }
    let Some(cgroup) = Cgroup::new("own") else { return };
    let (_launcher, line) = Actor::spawn_command(cgroup.shell("sleep 1000"), "stays", &[]);
    let processes = line.processes();
    let options = small().policy(Policy::new().cgroup(&cgroup.name));
    let _channel = line.admit(Admit::Descendant).channel(&options).unwrap();
    assert_eq!(cgroup.processes().len(), 3);
    assert!(processes.kill().unwrap());
    wait_until("the cgroup is empty", || cgroup.is_empty());
}

/// No search finds all of them: each starts the next one and exits.
#[test]
fn kill_ends_a_forking_cgroup() {
    if support::role().is_some() {
        return;
    }
    let Some(cgroup) = Cgroup::new("forking") else {
        return;
    };
    let mut command = cgroup.shell(r#"sh -c 'for i in 1 2 3 4 5 6 7 8; do sh -c "$NEXT" & done'"#);
    command.env("NEXT", r#"sh -c "$NEXT" &"#);
    let (_launcher, line) = Actor::spawn_command(command, "stays", &[]);
    let processes = line.processes();
    let options = small().policy(Policy::new().cgroup(&cgroup.name));
    let _channel = line.admit(Admit::Descendant).channel(&options).unwrap();
    let before = cgroup.processes();
    wait_until("the processes fork", || {
        cgroup.processes().iter().any(|pid| !before.contains(pid))
    });
    assert!(processes.kill().unwrap());
    wait_until("the cgroup is empty", || cgroup.is_empty());
}

#[test]
fn kill_spares_a_shared_cgroup() {
    if support::role().is_some() {
        return;
    }
    let Some(cgroup) = Cgroup::new("shared") else {
        return;
    };
    let start = || {
        let (launcher, line) = Actor::spawn_command(cgroup.shell("sleep 1000"), "stays", &[]);
        let processes = line.processes();
        let options = small().policy(Policy::new().cgroup(&cgroup.name));
        let channel = line.admit(Admit::Descendant).channel(&options).unwrap();
        (launcher, processes, channel)
    };
    let (_first, first_processes, _channel) = start();
    let (_second, second_processes, channel) = start();
    assert!(first_processes.kill().unwrap());
    // The two shells' detached processes, the second shell and the second peer.
    wait_until("the first child is killed", || cgroup.processes().len() == 4);
    assert!(is_running(channel.peer().pid));
    assert!(second_processes.kill().unwrap());
    wait_until("the second child is killed", || cgroup.processes().len() == 2);
}

#[test]
fn peer_exit_ends_the_channel_despite_a_copy_of_its_line() {
    if support::role().is_some() {
        return;
    }
    let (launcher, line) = Actor::spawn_command(shell(r#""$0" "$@" <&0 & wait"#), "leaves a copy", &[]);
    let (_sender, mut receiver) = line.admit(Admit::Descendant).channel(&small()).unwrap().split();
    let reply = launcher.next_line();
    let mut pids = reply.split(' ').map(|pid| Pid::from_raw(pid.parse().unwrap()));
    let (peer, holder) = (pids.next().unwrap(), pids.next().unwrap());
    kill(peer, Signal::SIGKILL).unwrap();
    let _ = receiver.receive(&mut [0; 16]);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
    kill(holder, None).expect("the other process still runs");
    kill(holder, Signal::SIGKILL).unwrap();
}

#[test]
fn grandchild_inherits_the_variable_but_no_line() {
    if support::role().is_some() {
        return;
    }
    let (child, line) = Actor::spawn("has a child", &[]);
    let channel = line.channel(&small()).unwrap();
    let reply = child.next_line();
    assert!(
        reply.starts_with("ADDRESS_INVALID") && reply.contains("is not the line that was left"),
        "{reply}"
    );
    channel.close();
    child.finish();
}

#[test]
fn other_program_is_refused_unless_the_policy_allows_it() {
    if support::role().is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("another");
    support::copy_of_this_executable(&other);
    let own = std::env::current_exe().unwrap();
    let meet = |named_by_parent: bool, named_by_child: bool| {
        let arguments: &[&str] = &["60000", own.to_str().unwrap()];
        let arguments = &arguments[..if named_by_child { 2 } else { 1 }];
        let (child, line) = Actor::spawn_from(&other, "asks", arguments);
        let options = if named_by_parent {
            small().policy(Policy::new().executables([&other]))
        } else {
            small()
        };
        (line.channel(&options), child.next_line())
    };
    let (outcome, reply) = meet(false, true);
    let error = outcome.unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert!(!refusal.by_peer && refusal.check == Check::Executable, "{error}");
    assert!(reply.starts_with("PEER_REFUSED"), "{reply}");

    let (outcome, reply) = meet(true, false);
    let error = outcome.unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert!(refusal.by_peer && refusal.check == Check::Executable, "{error}");
    assert!(reply.starts_with("PEER_REFUSED"), "{reply}");

    let (outcome, reply) = meet(true, true);
    outcome.unwrap();
    assert_eq!(reply, "a channel");
}

#[test]
fn missing_program_is_an_error_that_names_it() {
    if support::role().is_some() {
        return;
    }
    let error = spawn(Command::new("/no/such/program")).unwrap_err();
    assert_eq!(error.code(), "INVALID_ARGUMENT");
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[test]
fn concurrently_started_process_inherits_no_line() {
    if support::role().is_some() {
        return;
    }
    let (_parent, child) = private_line().unwrap();
    let flags = fcntl(&child, FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
    // While children with lines are being started, starts children without one, again and again.
    std::thread::scope(|scope| {
        let lines = scope.spawn(|| {
            (0..20)
                .map(|_| Actor::spawn("lists descriptors", &[]))
                .collect::<Vec<_>>()
        });
        let plain: Vec<_> = (0..10).map(|_| Actor::start("lists descriptors", &[])).collect();
        for child in &plain {
            assert_eq!(child.next_line(), "", "a child without a line");
        }
        for (child, _line) in &lines.join().unwrap() {
            let found = child.next_line();
            assert_eq!(found.split(' ').count(), 1, "only its own line: {found}");
        }
    });
}

#[test]
fn child_that_calls_exec_is_cut_off() {
    if support::role().is_some() {
        return;
    }
    let (mut child, line) = Actor::spawn("executes", &[]);
    let (_sender, mut receiver) = line.channel(&small()).unwrap().split();
    child.proceed();
    assert_eq!(receiver.receive(&mut [0; 16]).unwrap_err().code(), "PEER_LOST");
    assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
}
