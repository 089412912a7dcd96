//! This process has no descriptors left, or the kernel has no memory. That is a local error: it is reported
//! as one, and never attributed to the peer.

mod support;

use std::{
    fs,
    io::Error as SystemError,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
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
    Status, connect, doctor, from_parent, join, listen, member, publish, spawn, subscribe,
};
use support::{Actor, TIME_LIMIT, fresh_address, say, small, wait_for_host, wait_for_test};

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
        "lets in" => lets_in(&address, &arguments[1]),
        "called off" => called_off(&address),
        "succeeds" => succeeds(&address),
        "ring" => ring(&address, arguments[1].parse().unwrap()),
        "interrupted" => interrupted(&address),
        "small files" => small_files(&address, arguments[1].parse().unwrap()),
        "short" => short(&address, &arguments[1], arguments[2].parse().unwrap()),
        other => panic!("no such role: {other}"),
    }
}

/// While this lives, no descriptor of this number or above can be opened.
struct Short(u64);

impl Short {
    fn new(first: u64) -> Self {
        let (before, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, first, most).unwrap();
        Self(before)
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, self.0, most).unwrap();
    }
}

/// Sends a message and waits for the same one.
fn both_ways(channel: &mut Channel) {
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
        let short = Short::new(first);
        let verified = channel.verify();
        drop(short);
        outcomes.push(match verified {
            Ok(_) => "well",
            Err(error) => error.code(),
        });
        both_ways(&mut channel);
    }
    // Both outcomes occur, and no other.
    assert!(
        outcomes.contains(&"well") && outcomes.contains(&"NO_SPACE"),
        "{outcomes:?}"
    );
    assert!(
        outcomes.iter().all(|it| ["well", "NO_SPACE"].contains(it)),
        "{outcomes:?}"
    );
    channel.close();
    say("verified");
}

#[test]
fn a_look_at_the_peer_for_which_no_descriptor_is_left_ends_no_channel() {
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

/// Opens the `syscall` file of the thread with this name, which shows its current system call.
fn call_of(name: &str) -> fs::File {
    let mut call = None;
    wait_until(name, || {
        call = fs::read_dir("/proc/self/task")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // Other threads may exit in the meantime.
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|it| it.trim() == name))
            .map(|task| fs::File::open(task.join("syscall")).unwrap());
        call.is_some()
    });
    call.unwrap()
}

/// Exhausts the descriptors and reports it. When this returns, the thread of this name has failed at its
/// work.
fn be_short(name: &str) -> Short {
    let call = call_of(name);
    let sleep = format!("{} ", libc::SYS_clock_nanosleep);
    let short = Short::new(0);
    say("short");
    wait_until("its thread sleeps, or has ended", || {
        let mut text = [0; 64];
        call.read_at(&mut text, 0).is_err() || text.starts_with(sleep.as_bytes())
    });
    short
}

/// Has descriptors again after that.
fn be_short_for_a_while(name: &str) {
    drop(be_short(name));
    say("well");
}

/// Waits until a client is accepted. Until then clients are refused for lack of descriptors.
fn until_one_is_here<T>(next: impl Fn() -> ringfence::Result<T>, refusal: impl Fn(T) -> Option<Refused>) {
    while let Some(refused) = refusal(next().unwrap()) {
        assert_eq!(refused.error.code(), "NO_SPACE");
    }
    say("one is here");
    wait_for_test();
}

/// Accepts no client while it has no descriptor to wait with, and accepts clients afterwards.
fn lets_in(address: &Address, what: &str) {
    match what {
        "service" => {
            let listener = listen(address, &small()).unwrap();
            be_short_for_a_while("ringfence-accep");
            until_one_is_here(
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
            be_short_for_a_while("ringfence-accep");
            until_one_is_here(
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
            be_short_for_a_while("ringfence-membe");
            until_one_is_here(
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
fn a_wait_for_newcomers_that_fails_closes_no_door() {
    for what in ["service", "publisher", "member"] {
        let (address, _keep) = fresh_address(false);
        let host = Actor::start("lets in", &[&address.to_string(), what]);
        host.expect("short");
        let comes = thread::spawn({
            let options = small().wait(true);
            move || match what {
                "service" => connect(&address, &options).map(drop),
                "publisher" => subscribe(&address, &options).map(drop),
                _ => member(&address, &options)?.partner(None).map(drop),
            }
        });
        host.expect("well");
        host.expect("one is here");
        comes.join().unwrap().unwrap();
        host.finish();
    }
}

/// Cancels its service while the service has no descriptor to wait with, and so cannot receive the wakeup.
fn called_off(address: &Address) {
    let cancel_token = CancelToken::new().unwrap();
    let listener = listen(address, &small().cancel_token(cancel_token.clone())).unwrap();
    let short = be_short("ringfence-accep");
    cancel_token.cancel();
    let mut end = None;
    wait_until("its end", || {
        end = match listener.try_accept() {
            Err(error) => Some(error),
            Ok(Some(Arrival::Refused(refused))) if refused.error.code() == "NO_SPACE" => None,
            Ok(None) => None,
            Ok(other) => panic!("{other:?}"),
        };
        end.is_some()
    });
    drop(short);
    say(end.unwrap().code());
}

#[test]
fn a_wait_for_newcomers_that_fails_is_called_off_all_the_same() {
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("called off", &[&address.to_string()]);
    host.expect("short");
    // Ends its first wait.
    let comes = thread::spawn(move || connect(&address, &small()).map(drop));
    host.expect("ABORTED");
    host.finish();
    comes.join().unwrap().unwrap_err();
}

/// Is a guest until its host has gone, at a moment at which it cannot react.
fn succeeds(address: &Address) {
    let membership = member(address, &small()).unwrap();
    assert_eq!(membership.role(), Role::Guest);
    let channel = membership.partner(None).unwrap().unwrap();
    be_short_for_a_while("ringfence-membe");
    loop {
        match membership.next().unwrap() {
            Change::Role(Role::Host) => break,
            Change::Refused(refused) => assert_eq!(refused.error.code(), "NO_SPACE"),
            other => panic!("{other:?}"),
        }
    }
    drop(channel);
    say("host");
    wait_for_test();
}

#[test]
fn a_member_that_lacks_all_as_its_host_goes_is_a_member_still() {
    for at_path in [false, true] {
        let (address, _keep) = fresh_address(at_path);
        let host = member(&address, &small()).unwrap();
        let guest = Actor::start("succeeds", &[&address.to_string()]);
        let channel = host.partner(None).unwrap().unwrap();
        guest.expect("short");
        drop((channel, host));
        guest.expect("well");
        guest.expect("host");
        guest.finish();
    }
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Counts the descriptors and threads of this process.
fn traces() -> (usize, usize) {
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
fn short(address: &Address, call: &str, first: u64) {
    let (descriptors, threads) = traces();
    // The structure by which a process's connect calls take turns is created once, and stays.
    let descriptors = descriptors + usize::from(call == "connect");
    wait_for_test();
    let limited = Short::new(first);
    let outcome = attempt(address, call);
    drop(limited);
    say(match outcome {
        Ok(()) => "well".into(),
        Err(Error::NoSpace { .. }) => "NO_SPACE".into(),
        Err(error) => format!("{error:?}"),
    });
    wait_until("something is left of it", || {
        let now = traces();
        now.0 <= descriptors && now.1 <= threads
    });
    say("clean");
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
        "listens on" => {
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
                            reason: "nobody was let in, and nobody was refused".into(),
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
        let mut actor = Actor::start("short", &[&address.to_string(), call, &first.to_string()]);
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
        if outcomes.len() > 3 && outcomes.iter().rev().take(3).all(|it| it == "well") {
            break;
        }
    }
    assert!(
        outcomes.iter().all(|it| it == "well" || it == "NO_SPACE"),
        "{call}: {outcomes:?}"
    );
    assert_eq!(outcomes.first().unwrap(), "NO_SPACE", "{call}: {outcomes:?}");
    assert_eq!(outcomes.last().unwrap(), "well", "{call}: {outcomes:?}");
}

/// The other side's concurrent work, on a thread. It is cancelled once the short side has reported the
/// outcome of its call.
struct Beside {
    cancel_token: CancelToken,
    working: thread::JoinHandle<ringfence::Result<()>>,
}

impl Beside {
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
fn listens_or_says(address: &Address, actor: &mut Actor) -> Option<String> {
    actor.go_on();
    let wanted = address.to_string();
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(outcome) = actor.heard() {
            return Some(outcome);
        }
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        // The flag is __SO_ACCEPTCON.
        let listens = |line: &str| line.contains(" 00010000 ") && line.ends_with(&wanted);
        if table.lines().any(listens) {
            return None;
        }
        assert!(Instant::now() < end, "it neither listens nor says anything");
        thread::yield_now();
    }
}

/// The short side listens, and this side connects to it.
fn come(
    address: &Address,
    actor: &mut Actor,
    work: impl FnOnce(&Address, &Options) -> ringfence::Result<()> + Send + 'static,
) -> String {
    listens_or_says(address, actor).unwrap_or_else(|| {
        let at = address.clone();
        let beside = Beside::begin(move |options| work(&at, options));
        let outcome = actor.hear();
        beside.end(&outcome);
        outcome
    })
}

#[test]
fn a_guest_without_descriptors_is_told_so() {
    step_by_step("join", |address, actor| {
        let at = address.clone();
        let beside = Beside::begin(move |options| join(&at, options).map(drop));
        wait_for_host(address);
        actor.go_on();
        let outcome = actor.hear();
        beside.end(&outcome);
        outcome
    });
}

#[test]
fn a_host_without_descriptors_is_told_so() {
    step_by_step("join", |address, actor| {
        come(address, actor, |at, options| join(at, options).map(drop))
    });
}

#[test]
fn a_listener_without_descriptors_is_told_so() {
    step_by_step("listen", |address, actor| {
        come(address, actor, |at, options| connect(at, options).map(drop))
    });
}

#[test]
fn a_newcomer_for_whom_there_was_one_descriptor_is_looked_at_though_the_next_would_have_none() {
    step_by_step("listens on", |address, actor| {
        come(address, actor, |at, options| connect(at, options).map(drop))
    });
}

#[test]
fn an_agent_without_descriptors_is_told_so() {
    step_by_step("connect", |address, actor| {
        let listener = listen(address, &small()).unwrap();
        actor.go_on();
        let outcome = actor.hear();
        listener.close(Channels::Close);
        outcome
    });
}

#[test]
fn a_second_member_without_descriptors_is_told_so() {
    step_by_step("member", |address, actor| {
        let membership = member(address, &small()).unwrap();
        actor.go_on();
        let outcome = actor.hear();
        drop(membership);
        outcome
    });
}

#[test]
fn a_first_member_without_descriptors_is_told_so() {
    step_by_step("member", |address, actor| {
        come(address, actor, |at, options| member(at, options).map(drop))
    });
}

#[test]
fn a_parent_without_descriptors_is_told_so() {
    step_by_step("spawn", |_, actor| {
        actor.go_on();
        actor.hear()
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
    say("joined");
    wait_for_test();
    channel.close();
}

#[test]
fn a_large_ring_is_made_though_a_timer_interrupts_all_the_time() {
    let (address, _keep) = fresh_address(false);
    let mut actor = Actor::start("interrupted", &[&address.to_string()]);
    wait_for_host(&address);
    let channel = join(&address, &small()).unwrap();
    actor.expect("joined");
    actor.go_on();
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
fn without_memory_for_bells(failures: u32) {
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
    let (tell, told) = mpsc::channel::<OwnedFd>();
    thread::spawn(move || {
        let listener = told.recv().unwrap();
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
    tell.send(unsafe { OwnedFd::from_raw_fd(listener as i32) })
        .unwrap();
}

/// Sends one message, whose wakeup fails at first for lack of kernel memory, and then waits for the answer.
fn ring(address: &Address, failures: u32) {
    let mut channel = join(address, &small()).unwrap();
    say("joined");
    wait_for_test();
    without_memory_for_bells(failures);
    both_ways(&mut channel);
    say("answered");
}

/// The system calls behind poll(2): some kernels (arm64) have no such call.
#[cfg(target_arch = "x86_64")]
const POLL: libc::c_long = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
const POLL: libc::c_long = libc::SYS_ppoll;

#[test]
fn a_bell_that_the_kernel_has_no_memory_for_is_rung_again() {
    // Few failures are retried at once, many by a thread, since that takes longer.
    for failures in ["3", "60"] {
        let (address, _keep) = fresh_address(false);
        let mut actor = Actor::start("ring", &[&address.to_string(), failures]);
        wait_for_host(&address);
        let channel = join(&address, &small()).unwrap();
        actor.expect("joined");
        let (tell, told) = mpsc::channel();
        let answering = thread::spawn(move || {
            let (mut sender, mut receiver) = channel.split();
            tell.send(gettid()).unwrap();
            let mut message = [0; 64];
            let length = receiver.receive(&mut message).unwrap().unwrap();
            sender.send(&message[..length]).unwrap();
            receiver
        });
        let file = format!("/proc/self/task/{}/syscall", told.recv().unwrap());
        wait_until("it does not sleep", || {
            fs::read_to_string(Path::new(&file)).is_ok_and(|call| call.starts_with(&format!("{POLL} ")))
        });
        actor.go_on();
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
    say(match seals.status {
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
        say(code(made));
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
        say(code(refused));
    }
}

fn cancelled() -> CancelToken {
    let token = CancelToken::new().unwrap();
    token.cancel();
    token
}

/// The smallest ring needs an object of 12 KiB.
#[test]
fn a_limit_of_file_sizes_is_told_and_ends_no_process() {
    for limit in [0, 4096, 8192, 12_287, 12_288, 20_000, 24_576] {
        let (address, _keep) = fresh_address(false);
        let actor = Actor::start("small files", &[&address.to_string(), &limit.to_string()]);
        let fits = limit >= 12_288;
        // The doctor also tries to grow an object.
        actor.expect(if limit > 12_288 { "good" } else { "missing" });
        for call in ["publish", "listen", "member"] {
            assert_eq!(
                actor.hear(),
                if fits { "made" } else { "NO_SPACE" },
                "{call}, {limit}"
            );
        }
        for call in ["join", "connect", "subscribe", "spawn"] {
            assert_eq!(actor.hear() == "NO_SPACE", !fits, "{call}, {limit}");
        }
        actor.finish();
    }
}
