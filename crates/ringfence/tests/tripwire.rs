//! A process that opens the shared memory of a channel triggers an alarm. Consumed messages are wiped when a
//! channel closes.

mod support;

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    libc,
    sys::{
        resource::{Resource, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        stat::Mode,
    },
};
use ringfence::{Address, Backing, Channel, CloseReason, Error, Options, join};
use support::{Actor, TIME_LIMIT, fresh_address, report, small, thread_named, wait_for_test};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let backing = arguments[1].parse().unwrap();
    let options = small().backing(backing);
    match role.as_str() {
        "wait" => as_wait(&address, &options),
        "open" => as_open(&address, &options, &arguments),
        "checks signals" => as_checks_signals(&address, &options, &arguments),
        // Takes and releases many locks, so that the table of locks is far longer than a page.
        "churns locks" => churn_locks(),
        "two messages" => as_two_messages(&address, &options),
        _ => unreachable!("{role}"),
    }
}

/// Joins, and reports how the channel ended.
fn as_wait(address: &Address, options: &Options) {
    let (mut sender, mut receiver) = join_until_captured(address, options).split();
    report("joined");
    let error = loop {
        match receiver.receive(&mut [0; 64]) {
            Ok(Some(_)) => report("received"),
            Ok(None) => break "end".into(),
            Err(error) => break error.code().to_owned(),
        }
    };
    let sent = sender.try_send(b"too late");
    report(format!(
        "{error} {:?} {}",
        receiver.close_reason(),
        sent.map_or_else(|error| error.code(), |_| "sent")
    ));
}

/// Opens the memory of its own channel or its peer's, as any process with a path to it could.
fn as_open(address: &Address, options: &Options, arguments: &[String]) {
    if arguments.get(2).is_some_and(|mode| mode == "full") {
        setrlimit(Resource::RLIMIT_SIGPENDING, 0, 0).unwrap();
    }
    let (channel, paths) = join_and_capture(address, options, |_| true);
    let (mut sender, mut receiver) = channel.split();
    sender.send(b"the secret").unwrap();
    let mut reservation = sender.reserve(18).unwrap().unwrap();
    reservation.copy_from_slice(b"half of the secret");
    let mut filled = arguments
        .get(2)
        .is_some_and(|mode| mode == "full of files")
        .then(fill_descriptors);
    wait_for_test();
    // The kernel allocates a descriptor before it checks which processes have the object open.
    filled.as_mut().and_then(Vec::pop);
    let opening = reopen(&paths[0]);
    let refilled = filled.as_ref().and_then(|files| files[0].try_clone().ok());
    let opened = match opening {
        Err(error) if error.raw_os_error() == Some(Errno::EWOULDBLOCK as i32) => "blocked".into(),
        other => format!("{other:?}"),
    };
    let error = receiver.receive(&mut [0; 64]).unwrap_err();
    // A slice does not change while it is borrowed.
    assert_eq!(reservation[..], *b"half of the secret");
    drop(reservation);
    report(format!(
        "{opened} {} {:?} {}",
        error.code(),
        receiver.close_reason(),
        sender.try_send(b"more").unwrap_err().code()
    ));
    drop((sender, receiver, filled, refilled));
    wait_for_test();
    // All have released the memory: it can be opened, and it is empty.
    report(format!(
        "{} {}",
        contains(&paths, b"the secret"),
        contains(&paths, b"half of")
    ));
}

/// Has no descriptor left, or has some, and reports when it has received the test's messages.
fn as_checks_signals(address: &Address, options: &Options, arguments: &[String]) {
    let (mut sender, mut receiver) = {
        let mut channel = join(address, options).unwrap();
        channel.sender().send(b"kept").unwrap();
        let tokens = channel.tokens();
        // Created on first use.
        tokens.bell().unwrap();
        let thread = signal_thread();
        let filled = (arguments[2] == "full of files").then(fill_descriptors);
        report(thread.to_string());
        // Of two pending signals, the lower number is delivered first.
        for wanted in 0..ALARMS {
            assert_eq!(tokens.token().unwrap(), Some(wanted));
            assert_eq!(channel.receiver().close_reason(), None, "after {wanted} signals");
            channel.sender().send(b"whole").unwrap();
        }
        drop(filled);
        channel.split()
    };
    assert_eq!(receiver.receive(&mut [0; 64]).unwrap(), None);
    sender.close();
}

/// Sends two messages of which one is read, and closes.
fn as_two_messages(address: &Address, options: &Options) {
    let (channel, paths) = join_and_capture(address, options, is_own);
    let (mut sender, mut receiver) = channel.split();
    sender.send(b"the first, which is read").unwrap();
    assert_eq!(receiver.receive(&mut [0; 64]).unwrap(), Some(4));
    sender.send(b"the second, which is not").unwrap();
    drop((sender, receiver));
    report(format!(
        "{} {}",
        contains(&paths, b"which is read"),
        contains(&paths, b"which is not")
    ));
    wait_for_test();
}

/// The number of signals that are no alarm.
const ALARMS: u64 = 40;

fn fill_descriptors() -> Vec<File> {
    let file = File::open("/dev/null").unwrap();
    let mut files = Vec::new();
    setrlimit(Resource::RLIMIT_NOFILE, 256, 256).unwrap();
    loop {
        match file.try_clone() {
            Ok(another) => files.push(another),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
                files.push(file);
                return files;
            }
        }
    }
}

/// Returns the thread of this process to which alarms are directed.
fn signal_thread() -> i32 {
    thread_named(std::process::id().cast_signed(), "ringfence-signa")
}

fn churn_locks() {
    const LOCKS: i64 = 1500;
    let lock = |file: &File, kind: i32, start: i64, length: i64| {
        // SAFETY: all-zero bytes are a valid lock.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind.try_into().unwrap();
        (lock.l_start, lock.l_len) = (start, length);
        fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
    };
    let work = || {
        let file = tempfile::tempfile().unwrap();
        for round in 0_u64.. {
            for number in 0..LOCKS {
                lock(&file, libc::F_WRLCK, 2 * number, 1);
            }
            if round == 0 {
                report("busy");
            }
            // Unlock all at once: the following entries in the table move forward by that many lines.
            lock(&file, libc::F_UNLCK, 0, 0);
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
}

fn busy() -> Actor {
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start("churns locks", &[&address.to_string(), "memfd"]);
    actor.expect("busy");
    actor.expect("busy");
    actor
}

/// Sends SIGIO to the other side's thread, as any process of the same user can, and then a token. The token's
/// arrival proves that the thread has handled the signal.
fn expect_signals_ignored(mode: &str) {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("checks signals", &[&address.to_string(), "memfd", mode]);
    let mut channel = join(&address, &small()).unwrap();
    let mut message = [0; 64];
    assert_eq!(channel.receiver().receive(&mut message).unwrap(), Some(4));
    let thread: i32 = other.next_line().parse().unwrap();
    let tokens = channel.tokens();
    for token in 0..ALARMS {
        // SAFETY: tgkill takes three integers.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, other.pid(), thread, libc::SIGIO) };
        assert_eq!(sent, 0);
        tokens.send(token).unwrap();
        assert_eq!(
            channel.receiver().receive(&mut message).unwrap(),
            Some(5),
            "{mode}, after {token} signals"
        );
    }
    drop(channel);
    other.finish();
}

#[test]
fn plain_signal_wipes_nothing_without_descriptors() {
    expect_signals_ignored("full of files");
}

#[test]
fn plain_signal_wipes_nothing_while_locks_churn() {
    let _busy = busy();
    expect_signals_ignored("with room");
}

#[test]
fn alarm_is_detected_while_locks_churn() {
    let _busy = busy();
    expect_alarm(Backing::Memfd, "");
}

#[test]
fn alarm_is_detected_without_descriptors() {
    expect_alarm(Backing::Memfd, "full of files");
}

/// Whether one of these objects contains this text. Those that cannot be opened are still in use by another
/// process. The released object can be opened once the thread that handled the alarm has released it too.
fn contains(paths: &[File], text: &[u8]) -> String {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        let found: Vec<_> = paths.iter().filter_map(|file| contents(file).ok()).collect();
        if !found.is_empty() {
            let present = found
                .iter()
                .any(|bytes| bytes.windows(text.len()).any(|window| window == text));
            return if present { "there" } else { "wiped" }.into();
        }
        assert!(Instant::now() < end, "nothing can be opened");
        thread::yield_now();
    }
}

/// Joins a process that captures paths to the objects, and retries until it has them.
fn join_until_captured(address: &Address, options: &Options) -> Channel {
    loop {
        let mut channel = join(address, options).unwrap();
        let mut word = [0; 64];
        match channel.receiver().receive(&mut word).unwrap() {
            Some(4) => return channel,
            // Not captured: the time window was too short.
            Some(5) => channel.close(),
            other => panic!("{other:?}"),
        }
    }
}

/// Takes `O_PATH` descriptors of every shared object that this process has a descriptor of. They do not count
/// as opens.
fn capture_paths(paths: &mut Vec<File>) {
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        if !target.starts_with("/memfd:ringfence") && !target.starts_with("/dev/shm/ringfence") {
            continue;
        }
        let own = paths
            .iter()
            .any(|file| entry.file_name().to_str() == Some(&file.as_raw_fd().to_string()));
        // Not OpenOptions, which clears this flag if the C library counts it among the access modes (musl).
        let path = open(&entry.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        if let (false, Ok(file)) = (own, path.map(File::from)) {
            // The number may belong to another file by now.
            if fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .is_ok_and(|now| now.to_string_lossy() == target)
            {
                paths.push(file);
            }
        }
    }
}

/// Whether this process writes this object: only that one is mapped writable. Opening the peer's object would
/// end the channel at the peer.
fn is_own(file: &File) -> bool {
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("rw-s") && fields.nth(2) == Some(&inode)
    })
}

/// Joins, and captures paths to the wanted objects while their descriptors are open. This process has no
/// other objects.
fn join_and_capture(address: &Address, options: &Options, wanted: fn(&File) -> bool) -> (Channel, Vec<File>) {
    loop {
        let done = AtomicBool::new(false);
        let (mut channel, mut paths) = thread::scope(|scope| {
            let capturing = scope.spawn(|| {
                let mut paths = Vec::new();
                while !done.load(Ordering::Relaxed) && paths.len() < 200 {
                    capture_paths(&mut paths);
                }
                paths
            });
            let channel = join(address, options);
            done.store(true, Ordering::Relaxed);
            (channel.unwrap(), capturing.join().unwrap())
        });
        paths.retain(wanted);
        if paths.is_empty() {
            channel.sender().send(b"again").unwrap();
            // The other side closes once it has read that.
            assert_eq!(channel.receiver().receive(&mut [0; 8]).unwrap(), None);
        } else {
            channel.sender().send(b"kept").unwrap();
            return (channel, paths);
        }
    }
}

fn reopen(file: &File) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn contents(file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reopen(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn opening_the_memory_ends_the_channel_on_both_sides() {
    for backing in [Backing::Memfd, Backing::Shm] {
        if backing == Backing::Shm && !nix::unistd::geteuid().is_root() {
            eprintln!(
                "shm left out: its mode is 0, and only root opens such a file without changing that first"
            );
            continue;
        }
        expect_alarm(backing, "");
    }
}

#[test]
fn full_signal_queue_does_not_suppress_an_alarm() {
    expect_alarm(Backing::Memfd, "full");
}

fn expect_alarm(backing: Backing, mode: &str) {
    let (address, _keep) = fresh_address(false);
    let (address, backing) = (address.to_string(), backing.to_string());
    let mut opener = Actor::start("open", &[&address, &backing, mode]);
    let other = Actor::start("wait", &[&address, &backing]);
    other.expect("joined");
    other.expect("received");
    opener.proceed();
    let ended = "OBJECT_EXPOSED Some(Exposed) OBJECT_EXPOSED";
    opener.expect(&format!("blocked {ended}"));
    other.expect(ended);
    other.finish();
    opener.proceed();
    opener.expect("wiped wiped");
    opener.finish();
}

#[test]
fn close_wipes_read_messages_and_keeps_unread_ones() {
    let (address, _keep) = fresh_address(false);
    let mut other = Actor::start("two messages", &[&address.to_string(), "memfd"]);
    let (mut sender, mut receiver) = join_until_captured(&address, &small()).split();
    let mut message = [0; 64];
    assert_eq!(receiver.receive(&mut message).unwrap(), Some(24));
    sender.send(b"read").unwrap();
    // This side polls nothing until the other has inspected the leftovers.
    other.expect("wiped there");
    assert_eq!(receiver.receive(&mut message).unwrap(), Some(24));
    assert_eq!(&message[..24], b"the second, which is not");
    assert_eq!(receiver.receive(&mut message).unwrap(), None);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Closed));
    other.proceed();
    other.finish();
}

/// Returns the disposition of a signal in this process: its handler as a number, 0 for the default.
fn handler_of(number: i32) -> usize {
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one sigaction, and reads none.
    let result = unsafe { libc::sigaction(number, std::ptr::null(), &raw mut found) };
    assert_eq!(result, 0);
    found.sa_sigaction
}

#[test]
fn signal_number_is_claimed_while_a_channel_is_open() {
    const NUMBER: i32 = 57;
    let (address, _keep) = fresh_address(false);
    let options = small().realtime_signal(NUMBER);
    let other = Actor::start("wait", &[&address.to_string(), "memfd"]);
    let mut channel = join(&address, &options).unwrap();
    channel.sender().send(b"kept").unwrap();
    other.expect("joined");
    assert_ne!(handler_of(NUMBER), libc::SIG_DFL);
    assert!(
        channel
            .evidence()
            .iter()
            .any(|check| check.check == "tripwire" && check.found.contains("57"))
    );
    // A signal from another process instead of the kernel has no effect, even if it is sent to that very
    // thread.
    let own = std::process::id().cast_signed();
    // SAFETY: kill takes two integers.
    assert_eq!(unsafe { libc::kill(own, NUMBER) }, 0);
    // SAFETY: tgkill takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, own, signal_thread(), NUMBER) };
    assert_eq!(sent, 0);
    let (mut sender, receiver) = channel.split();
    sender.send(b"still").unwrap();
    other.expect("received");
    assert_eq!(receiver.close_reason(), None);
    drop((sender, receiver));
    other.finish();
    let end = Instant::now() + TIME_LIMIT;
    // The number is reset at the end of the channel. A handshake thread of another test does not use this
    // number.
    while handler_of(NUMBER) != libc::SIG_DFL {
        assert!(Instant::now() < end, "the number is not released");
        thread::yield_now();
    }
}

#[test]
fn signal_number_in_use_is_an_error() {
    // nix names no realtime signals.
    const NUMBER: i32 = 58;
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut ignore: libc::sigaction = unsafe { std::mem::zeroed() };
    ignore.sa_sigaction = libc::SIG_IGN;
    // SAFETY: the kernel reads one sigaction.
    let result = unsafe { libc::sigaction(NUMBER, &raw const ignore, std::ptr::null_mut()) };
    assert_eq!(result, 0);
    let (address, _keep) = fresh_address(false);
    let error = join(&address, &small().realtime_signal(NUMBER)).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument(text) if text.contains("signal 58 is in use")),
        "{error}"
    );
    assert_eq!(handler_of(NUMBER), libc::SIG_IGN);
    for number in [0, 10, 33, 65] {
        let error = join(&address, &small().realtime_signal(number)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{number}: {error}");
    }
}

/// A program that handles SIGIO still receives it.
#[test]
fn programs_sigio_handler_still_works() {
    static RECEIVED: AtomicBool = AtomicBool::new(false);
    extern "C" fn on_sigio(_: i32) {
        RECEIVED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(
        SigHandler::Handler(on_sigio),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler stores an atomic.
    unsafe { sigaction(Signal::SIGIO, &action) }.unwrap();
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("wait", &[&address.to_string(), "memfd"]);
    let mut channel = join(&address, &small()).unwrap();
    channel.sender().send(b"kept").unwrap();
    other.expect("joined");
    nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGIO).unwrap();
    let end = Instant::now() + TIME_LIMIT;
    while !RECEIVED.load(Ordering::Relaxed) {
        assert!(Instant::now() < end, "SIGIO was not received");
        thread::yield_now();
    }
    channel.close();
    other.finish();
}
