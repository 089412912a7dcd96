//! This process has no descriptors left, or the kernel has no memory. That is a local error: it is reported
//! as one, and never attributed to the peer.

mod support;

use std::{
    fs,
    io::Error as SystemError,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::FileExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::gettid,
};
use ringfence::{
    Address, Arrival, CancelToken, Change, Channel, Channels, Error, Options, PublisherEvent, Refused, Role,
    SealedBuffer, Status, connect, doctor, from_parent, join, listen, member, publish, spawn, subscribe,
};
use support::{
    Actor, POLL, TIME_LIMIT, fresh_address, report, small, threads_named, wait_for_host, wait_for_test,
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    if role == "inherits" {
        // It gets a channel, or an error that names the reason.
        if let Ok(channel) = from_parent(&small()) {
            let (_sender, mut receiver) = channel.split();
            while let Ok(Some(_)) = receiver.receive(&mut [0; 64]) {}
        }
        return;
    }
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "verify" => verify(&address),
        "sends beside calls" => send_beside_calls(&address),
        "accepts after shortage" => accepts_after_shortage(&address, &arguments[1]),
        "cancelled during shortage" => cancelled_during_shortage(&address),
        "takes over" => takes_over_after_shortage(&address),
        "wakes peer" => send_with_failing_wakeups(&address, arguments[1].parse().unwrap()),
        "interrupted" => interrupted(&address),
        "small files" => small_files(&address, arguments[1].parse().unwrap()),
        "limited" => attempt_with_limit(&address, &arguments[1], arguments[2].parse().unwrap()),
        other => panic!("no such role: {other}"),
    }
}

/// While this lives, no descriptor of this number or above can be opened.
struct DescriptorLimit(u64);

impl DescriptorLimit {
    fn new(first: u64) -> Self {
        let (before, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, first, most).unwrap();
        Self(before)
    }
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, self.0, most).unwrap();
    }
}

/// Sends a message and waits for the same one.
fn echo_once(channel: &mut Channel) {
    channel.sender().send(b"there and back").unwrap();
    let mut answer = [0; 64];
    let length = channel.receiver().receive(&mut answer).unwrap().unwrap();
    assert_eq!(&answer[..length], b"there and back");
}

/// Checks the peer again with fewer and fewer descriptors.
fn verify(address: &Address) {
    let mut channel = join(address, &small()).unwrap();
    let mut outcomes = Vec::new();
    for first in 0..40 {
        let short = DescriptorLimit::new(first);
        let verified = channel.verify();
        drop(short);
        outcomes.push(match verified {
            Ok(_) => "ok",
            Err(error) => error.code(),
        });
        echo_once(&mut channel);
    }
    // Both outcomes occur, and no other.
    assert!(
        outcomes.contains(&"ok") && outcomes.contains(&"NO_SPACE"),
        "{outcomes:?}"
    );
    assert!(
        outcomes.iter().all(|it| ["ok", "NO_SPACE"].contains(it)),
        "{outcomes:?}"
    );
    channel.close();
    report("verified");
}

/// After mlockall(2), mmap(2) fails with EAGAIN at the limit of locked memory.
#[test]
fn memory_that_may_not_be_locked_is_a_shortage() {
    // The filter applies to one thread.
    let accepting = thread::spawn(|| {
        let object = SealedBuffer::from_bytes(b"abc")
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .unwrap();
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        support::forbid(libc::SYS_mmap, Some((3, flags)), libc::EAGAIN);
        SealedBuffer::accept(object, 3).unwrap_err().code()
    });
    assert_eq!(accepting.join().unwrap(), "NO_SPACE");
}

#[test]
fn verify_without_descriptors_keeps_the_channel() {
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start("verify", &[&address.to_string()]);
    wait_for_host(&address);
    let mut channel = join(&address, &small()).unwrap();
    let mut message = [0; 64];
    while let Ok(Some(length)) = channel.receiver().receive(&mut message) {
        channel.sender().send(&message[..length]).unwrap();
    }
    actor.expect("verified");
    actor.finish();
}

/// Sends a message beside calls through a full ring, without descriptors to wait with, and then another one.
fn send_beside_calls(address: &Address) {
    let mut channel = join(address, &small()).unwrap();
    while channel.sender().try_send(b"filler").unwrap() {}
    let calls = channel.into_calls().unwrap();
    let short = DescriptorLimit::new(0);
    let failed = calls.send(b"failed");
    drop(short);
    assert_eq!(failed.unwrap_err().code(), "NO_SPACE");
    report("failed");
    calls.send(b"repeat").unwrap();
    calls.end().unwrap();
    report("sent");
    wait_for_test();
}

#[test]
fn message_beside_calls_whose_wait_fails_is_not_sent() {
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start("sends beside calls", &[&address.to_string()]);
    wait_for_host(&address);
    let mut channel = join(&address, &small()).unwrap();
    actor.expect("failed");
    let mut messages = Vec::new();
    while let Some(message) = channel.receiver().receive_vec().unwrap() {
        if message != b"filler" {
            messages.push(message);
        }
    }
    assert_eq!(messages, [b"repeat"]);
    actor.expect("sent");
    actor.finish();
}

/// Opens the `syscall` file of the thread with this name, which shows its current system call.
fn call_of(name: &str) -> fs::File {
    let own = std::process::id().cast_signed();
    let mut threads = Vec::new();
    wait_until(name, || {
        threads = threads_named(own, name);
        !threads.is_empty()
    });
    let thread = threads[0];
    fs::File::open(format!("/proc/self/task/{thread}/syscall")).unwrap()
}

/// Exhausts the descriptors and reports it. When this returns, the thread of this name has failed at its
/// work.
fn exhaust_descriptors(name: &str) -> DescriptorLimit {
    let call = call_of(name);
    let sleep = format!("{} ", libc::SYS_clock_nanosleep);
    let short = DescriptorLimit::new(0);
    report("short");
    wait_until("its thread sleeps, or has ended", || {
        let mut text = [0; 64];
        call.read_at(&mut text, 0).is_err() || text.starts_with(sleep.as_bytes())
    });
    short
}

/// Exhausts the descriptors until the thread has failed, and reports the recovery.
fn exhaust_descriptors_briefly(name: &str) {
    drop(exhaust_descriptors(name));
    report("ok");
}

/// Waits until a client is accepted. Until then clients are refused for lack of descriptors.
fn wait_for_accepted<T>(next: impl Fn() -> ringfence::Result<T>, refusal: impl Fn(T) -> Option<Refused>) {
    while let Some(refused) = refusal(next().unwrap()) {
        assert_eq!(refused.error.code(), "NO_SPACE");
    }
    report("accepted");
    wait_for_test();
}

/// Accepts no client while it has no descriptor to wait with, and accepts clients afterwards.
fn accepts_after_shortage(address: &Address, what: &str) {
    match what {
        "service" => {
            let listener = listen(address, &small()).unwrap();
            exhaust_descriptors_briefly("ringfence-accep");
            wait_for_accepted(
                || listener.accept(),
                |arrival| match arrival {
                    Arrival::Accepted(_) => None,
                    Arrival::Refused(refused) => Some(refused),
                    other => panic!("{other:?}"),
                },
            );
        }
        "publisher" => {
            let publisher = publish(address, &small()).unwrap();
            exhaust_descriptors_briefly("ringfence-accep");
            wait_for_accepted(
                || publisher.audience().next(),
                |event| match event {
                    PublisherEvent::Subscriber(_) => None,
                    PublisherEvent::Refused(refused) => Some(refused),
                    other => panic!("{other:?}"),
                },
            );
        }
        _ => {
            let membership = member(address, &small()).unwrap();
            exhaust_descriptors_briefly("ringfence-membe");
            wait_for_accepted(
                || membership.next(),
                |change| match change {
                    Change::Channel(_) => None,
                    Change::Refused(refused) => Some(refused),
                    other => panic!("{other:?}"),
                },
            );
        }
    }
}

#[test]
fn failed_accept_wait_is_retried() {
    for what in ["service", "publisher", "member"] {
        let (address, _keep) = fresh_address(false);
        let host = Actor::start("accepts after shortage", &[&address.to_string(), what]);
        host.expect("short");
        let connecting = thread::spawn({
            let options = small().wait(true);
            move || match what {
                "service" => connect(&address, &options).map(drop),
                "publisher" => subscribe(&address, &options).map(drop),
                _ => member(&address, &options)?.partner(None).map(drop),
            }
        });
        host.expect("ok");
        host.expect("accepted");
        connecting.join().unwrap().unwrap();
        host.finish();
    }
}

/// Cancels its service while the service has no descriptor to wait with, and so cannot receive the wakeup.
fn cancelled_during_shortage(address: &Address) {
    let cancel_token = CancelToken::new().unwrap();
    let listener = listen(address, &small().cancel_token(cancel_token.clone())).unwrap();
    let short = exhaust_descriptors("ringfence-accep");
    cancel_token.cancel();
    let mut end = None;
    wait_until("the cancellation", || {
        end = match listener.try_accept() {
            Err(error) => Some(error),
            Ok(Some(Arrival::Refused(refused))) if refused.error.code() == "NO_SPACE" => None,
            Ok(None) => None,
            Ok(other) => panic!("{other:?}"),
        };
        end.is_some()
    });
    drop(short);
    report(end.unwrap().code());
}

#[test]
fn cancel_works_while_the_accept_wait_fails() {
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("cancelled during shortage", &[&address.to_string()]);
    host.expect("short");
    // Ends its first wait.
    let connecting = thread::spawn(move || connect(&address, &small()).map(drop));
    host.expect("ABORTED");
    host.finish();
    connecting.join().unwrap().unwrap_err();
}

/// Is a guest until its host has gone, at a moment at which it cannot react.
fn takes_over_after_shortage(address: &Address) {
    let membership = member(address, &small()).unwrap();
    assert_eq!(membership.role(), Role::Guest);
    let channel = membership.partner(None).unwrap().unwrap();
    exhaust_descriptors_briefly("ringfence-membe");
    loop {
        match membership.next().unwrap() {
            Change::Role(Role::Host) => break,
            Change::Refused(refused) => assert_eq!(refused.error.code(), "NO_SPACE"),
            other => panic!("{other:?}"),
        }
    }
    drop(channel);
    report("host");
    wait_for_test();
}

#[test]
fn takeover_is_retried_after_a_shortage() {
    for at_path in [false, true] {
        let (address, _keep) = fresh_address(at_path);
        let host = member(&address, &small()).unwrap();
        let guest = Actor::start("takes over", &[&address.to_string()]);
        let channel = host.partner(None).unwrap().unwrap();
        guest.expect("short");
        drop((channel, host));
        guest.expect("ok");
        guest.expect("host");
        guest.finish();
    }
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Counts the descriptors and threads of this process.
fn open_resources() -> (usize, usize) {
    (entries("/proc/self/fd"), entries("/proc/self/task"))
}

/// Waits until a condition holds: threads take a moment to exit.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}

/// Makes one call in a process limited to this many descriptors, and reports the outcome. Nothing of the call
/// may be left afterwards.
fn attempt_with_limit(address: &Address, call: &str, first: u64) {
    let (descriptors, threads) = open_resources();
    // The structure by which a process's connect calls take turns is created once, and stays.
    let descriptors = descriptors + usize::from(call == "connect");
    wait_for_test();
    let limited = DescriptorLimit::new(first);
    let outcome = attempt(address, call);
    drop(limited);
    report(match outcome {
        Ok(()) => "ok".into(),
        Err(Error::NoSpace { .. }) => "NO_SPACE".into(),
        Err(error) => format!("{error:?}"),
    });
    wait_until("descriptors or threads are leaked", || {
        let now = open_resources();
        now.0 <= descriptors && now.1 <= threads
    });
    report("clean");
}

fn attempt(address: &Address, call: &str) -> ringfence::Result<()> {
    let options = small();
    match call {
        "join" => join(address, &options).map(drop),
        "connect" => connect(address, &options).map(drop),
        "listen" => match listen(address, &options)?.accept()? {
            Arrival::Refused(refused) => Err(refused.error),
            _ => Ok(()),
        },
        "keeps listening" => {
            let moment = Duration::from_secs(3);
            let listener = listen(address, &options.handshake_timeout(moment))?;
            let end = Instant::now() + 2 * moment;
            loop {
                match listener.accept_until(end) {
                    // A client was refused. A shortage of this process alone is reported without a client.
                    Ok(Arrival::Refused(Refused {
                        error,
                        identity: Some(_),
                        ..
                    })) => return Err(error),
                    Ok(Arrival::Accepted(_)) => return Ok(()),
                    Ok(_) => {}
                    Err(Error::TimedOut) => {
                        return Err(Error::NoSpace {
                            what: "a descriptor".into(),
                            reason: "no client was accepted or refused".into(),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        "member" => {
            let membership = member(address, &options)?;
            loop {
                match membership.next()? {
                    Change::Channel(channel) => {
                        // A host stays until its guest has completed the handshake.
                        let (_sender, mut receiver) = channel.split();
                        while membership.role() == Role::Host
                            && let Ok(Some(_)) = receiver.receive(&mut [0; 64])
                        {}
                        return Ok(());
                    }
                    Change::Refused(refused) => return Err(refused.error),
                    _ => {}
                }
            }
        }
        "spawn" => {
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "role", "--test-threads=1"])
                .env("RINGFENCE_ROLE", "inherits")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            // SAFETY: one system call between fork and exec. It gives the child enough descriptors.
            unsafe {
                command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?));
            }
            let (mut child, line) = spawn(command)?;
            let outcome = line.channel(&options).map(drop);
            // The child has exited successfully, with or without a channel.
            assert!(child.wait().unwrap().success());
            outcome
        }
        other => panic!("no such call: {other}"),
    }
}

/// Runs a call with 3 descriptors, 4, and so on, until it has succeeded a few times in a row. `partner` is
/// the other side: it resumes the other process, and receives the outcome of the call from it.
fn step_by_step(call: &str, partner: impl Fn(&Address, &mut Actor) -> String) {
    let mut outcomes = Vec::new();
    for first in 3..40 {
        let (address, keep) = fresh_address(true);
        let mut actor = Actor::start("limited", &[&address.to_string(), call, &first.to_string()]);
        let outcome = partner(&address, &mut actor);
        actor.expect("clean");
        actor.finish();
        let folder = keep.unwrap();
        assert_eq!(
            entries(folder.path().to_str().unwrap()),
            0,
            "{call}, {first} descriptors, {outcome}: files are left"
        );
        outcomes.push(outcome);
        if outcomes.len() > 3 && outcomes.iter().rev().take(3).all(|it| it == "ok") {
            break;
        }
    }
    assert!(
        outcomes.iter().all(|it| it == "ok" || it == "NO_SPACE"),
        "{call}: {outcomes:?}"
    );
    assert_eq!(outcomes.first().unwrap(), "NO_SPACE", "{call}: {outcomes:?}");
    assert_eq!(outcomes.last().unwrap(), "ok", "{call}: {outcomes:?}");
}

/// The other side's concurrent work, on a thread. It is cancelled once the short side has reported the
/// outcome of its call.
struct Concurrent {
    cancel_token: CancelToken,
    working: thread::JoinHandle<ringfence::Result<()>>,
}

impl Concurrent {
    fn begin(work: impl FnOnce(&Options) -> ringfence::Result<()> + Send + 'static) -> Self {
        let cancel_token = CancelToken::new().unwrap();
        let options = small().cancel_token(cancel_token.clone());
        Self {
            cancel_token,
            working: thread::spawn(move || work(&options)),
        }
    }

    /// Checks that the other side has a channel, or an error that names the reason.
    fn end(self, outcome: &str) {
        self.cancel_token.cancel();
        if let Err(error) = self.working.join().unwrap() {
            assert!(
                matches!(error, Error::Aborted | Error::PeerLost(_)),
                "{outcome}: {error}"
            );
        }
    }
}

/// Waits until the other process listens at the path, or has reported that it cannot.
fn wait_until_listening(address: &Address, actor: &mut Actor) -> Option<String> {
    actor.proceed();
    let wanted = address.to_string();
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(outcome) = actor.try_next_line() {
            return Some(outcome);
        }
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        // The flag is __SO_ACCEPTCON.
        let listens = |line: &str| line.contains(" 00010000 ") && line.ends_with(&wanted);
        if table.lines().any(listens) {
            return None;
        }
        assert!(Instant::now() < end, "it neither listens nor reports an outcome");
        thread::yield_now();
    }
}

/// The short side listens, and this side connects to it.
fn connect_to_limited(
    address: &Address,
    actor: &mut Actor,
    work: impl FnOnce(&Address, &Options) -> ringfence::Result<()> + Send + 'static,
) -> String {
    wait_until_listening(address, actor).unwrap_or_else(|| {
        let at = address.clone();
        let concurrent = Concurrent::begin(move |options| work(&at, options));
        let outcome = actor.next_line();
        concurrent.end(&outcome);
        outcome
    })
}

#[test]
fn join_as_guest_without_descriptors_is_no_space() {
    step_by_step("join", |address, actor| {
        let at = address.clone();
        let concurrent = Concurrent::begin(move |options| join(&at, options).map(drop));
        wait_for_host(address);
        actor.proceed();
        let outcome = actor.next_line();
        concurrent.end(&outcome);
        outcome
    });
}

#[test]
fn join_as_host_without_descriptors_is_no_space() {
    step_by_step("join", |address, actor| {
        connect_to_limited(address, actor, |at, options| join(at, options).map(drop))
    });
}

#[test]
fn listen_without_descriptors_is_no_space() {
    step_by_step("listen", |address, actor| {
        connect_to_limited(address, actor, |at, options| connect(at, options).map(drop))
    });
}

#[test]
fn client_that_got_a_descriptor_is_served_or_refused() {
    step_by_step("keeps listening", |address, actor| {
        connect_to_limited(address, actor, |at, options| connect(at, options).map(drop))
    });
}

#[test]
fn connect_without_descriptors_is_no_space() {
    step_by_step("connect", |address, actor| {
        let listener = listen(address, &small()).unwrap();
        actor.proceed();
        let outcome = actor.next_line();
        listener.close(Channels::Close);
        outcome
    });
}

#[test]
fn second_member_without_descriptors_is_no_space() {
    step_by_step("member", |address, actor| {
        let membership = member(address, &small()).unwrap();
        actor.proceed();
        let outcome = actor.next_line();
        drop(membership);
        outcome
    });
}

#[test]
fn first_member_without_descriptors_is_no_space() {
    step_by_step("member", |address, actor| {
        connect_to_limited(address, actor, |at, options| member(at, options).map(drop))
    });
}

#[test]
fn spawn_without_descriptors_is_no_space() {
    step_by_step("spawn", |_, actor| {
        actor.proceed();
        actor.next_line()
    });
}

/// A timer interrupts it a thousand times a second while it creates a large ring.
fn interrupted(address: &Address) {
    extern "C" fn tick(_: libc::c_int) {}
    // SAFETY: the handler does nothing, and both calls are given plain structs.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = tick as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(
            libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()),
            0
        );
        let often = libc::timeval {
            tv_sec: 0,
            tv_usec: 1000,
        };
        let timer = libc::itimerval {
            it_interval: often,
            it_value: often,
        };
        assert_eq!(
            libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()),
            0
        );
    }
    let channel = join(address, &small().capacity(64 << 20)).unwrap();
    report("joined");
    wait_for_test();
    channel.close();
}

#[test]
fn large_ring_is_created_despite_constant_signals() {
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("interrupted", &[&address.to_string()]);
    wait_for_host(&address);
    let channel = join(&address, &small()).unwrap();
    actor.expect("joined");
    actor.proceed();
    actor.finish();
    drop(channel);
}

/// Installs a seccomp filter whose supervisor, a thread of this process, decides on each wakeup that another
/// thread sends (seccomp_unotify(2)). The first `failures` wakeups fail for lack of kernel memory.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    reason = "numbers of the kernel's own, each of which fits in where it takes them"
)]
fn fail_wakeups(failures: u32) {
    const SET_MODE_FILTER: libc::c_long = 1;
    const NEW_LISTENER: libc::c_long = 8;
    /// _IOWR('!', 0, struct seccomp_notif) and _IOWR('!', 1, struct seccomp_notif_resp).
    const RECEIVE: u32 = 0xc050_2100;
    const ANSWER: u32 = 0xc018_2101;
    const CONTINUE: u32 = 1;
    #[repr(C)]
    struct Asked {
        id: u64,
        pid: u32,
        flags: u32,
        number: i32,
        arch: u32,
        at: u64,
        arguments: [u64; 6],
    }
    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    let (tx, rx) = mpsc::channel::<OwnedFd>();
    thread::spawn(move || {
        let listener = rx.recv().unwrap();
        for count in 0.. {
            // SAFETY: all-zero bytes are a valid value, which the kernel requires.
            let mut asked: Asked = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one such struct.
            let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut asked) };
            if result != 0 {
                continue;
            }
            let fails = count < failures;
            let answer = Answer {
                id: asked.id,
                value: 0,
                error: if fails { -(Errno::ENOBUFS as i32) } else { 0 },
                flags: if fails { 0 } else { CONTINUE },
            };
            // SAFETY: the kernel reads one such struct.
            unsafe { libc::ioctl(listener.as_raw_fd(), ANSWER as _, &raw const answer) };
        }
    });
    let load = |at| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: at,
    };
    let unless = |value: u32, skip| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k: value,
    };
    let answer = |k| libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // struct seccomp_data starts with the call's number. An open channel sends wakeups only.
    let mut filter = [
        load(0),
        unless(libc::SYS_sendmsg as u32, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    prctl::set_no_new_privs().unwrap();
    // SAFETY: the kernel reads the program, and returns a new descriptor.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            NEW_LISTENER,
            &raw const program,
        )
    };
    assert!(listener >= 0, "{}", SystemError::last_os_error());
    // SAFETY: the kernel has just created it for this call.
    tx.send(unsafe { OwnedFd::from_raw_fd(listener as i32) }).unwrap();
}

/// Sends one message, whose wakeup fails at first for lack of kernel memory, and then waits for the answer.
fn send_with_failing_wakeups(address: &Address, failures: u32) {
    let mut channel = join(address, &small()).unwrap();
    report("joined");
    wait_for_test();
    fail_wakeups(failures);
    echo_once(&mut channel);
    report("answered");
}

#[test]
fn wakeup_is_retried_if_the_kernel_has_no_memory() {
    // Few failures are retried at once, many by a thread, since that takes longer.
    for failures in ["3", "60"] {
        let (address, _keep) = fresh_address(false);
        let mut actor = Actor::start("wakes peer", &[&address.to_string(), failures]);
        wait_for_host(&address);
        let channel = join(&address, &small()).unwrap();
        actor.expect("joined");
        let (tx, rx) = mpsc::channel();
        let answering = thread::spawn(move || {
            let (mut sender, mut receiver) = channel.split();
            tx.send(gettid()).unwrap();
            let mut message = [0; 64];
            let length = receiver.receive(&mut message).unwrap().unwrap();
            sender.send(&message[..length]).unwrap();
            receiver
        });
        let file = format!("/proc/self/task/{}/syscall", rx.recv().unwrap());
        wait_until("it does not sleep", || {
            fs::read_to_string(Path::new(&file)).is_ok_and(|call| call.starts_with(&format!("{POLL} ")))
        });
        actor.proceed();
        actor.expect("answered");
        drop(answering.join().unwrap());
        actor.finish();
    }
}

/// Makes an object of each call with a file size limit. Beyond it the kernel sends SIGXFSZ, which ends a
/// process.
fn small_files(address: &Address, limit: u64) {
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, limit, most).unwrap();
    let seals = doctor()
        .findings
        .into_iter()
        .find(|finding| finding.name == "memfd-seals")
        .unwrap();
    report(match seals.status {
        Status::Good => "good",
        _ => "missing",
    });
    if seals.status != Status::Good {
        assert!(seals.found.contains("RLIMIT_FSIZE"), "{}", seals.found);
    }
    let options = small();
    let code = |error: Option<Error>| error.map_or("made", |error| error.code());
    for made in [
        publish(address, &options).map(drop).err(),
        listen(address, &options).map(drop).err(),
        member(address, &options).map(drop).err(),
    ] {
        report(code(made));
    }
    // Without a peer these would wait for one: they are refused before that, or find none.
    let brief = options.handshake_timeout(Duration::from_millis(1));
    for refused in [
        join(address, &brief.clone().cancel_token(cancelled()))
            .map(drop)
            .err(),
        connect(address, &brief).map(drop).err(),
        subscribe(address, &brief).map(drop).err(),
        spawn(Command::new("true"))
            .and_then(|(_, line)| line.channel(&brief))
            .map(drop)
            .err(),
    ] {
        report(code(refused));
    }
}

fn cancelled() -> CancelToken {
    let token = CancelToken::new().unwrap();
    token.cancel();
    token
}

/// The smallest ring needs an object of 12 KiB.
#[test]
fn file_size_limit_is_no_space_and_does_not_kill() {
    for limit in [0, 4096, 8192, 12_287, 12_288, 20_000, 24_576] {
        let (address, _keep) = fresh_address(false);
        let actor = Actor::start("small files", &[&address.to_string(), &limit.to_string()]);
        let fits = limit >= 12_288;
        // The doctor also tries to grow an object.
        actor.expect(if limit > 12_288 { "good" } else { "missing" });
        for call in ["publish", "listen", "member"] {
            assert_eq!(
                actor.next_line(),
                if fits { "made" } else { "NO_SPACE" },
                "{call}, {limit}"
            );
        }
        for call in ["join", "connect", "subscribe", "spawn"] {
            assert_eq!(actor.next_line() == "NO_SPACE", !fits, "{call}, {limit}");
        }
        actor.finish();
    }
}
