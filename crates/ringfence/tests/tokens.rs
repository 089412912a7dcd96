//! Tokens: realtime signals that the two sides of a channel send each other, and that no other process can
//! forge.

mod support;

use std::{
    fs,
    os::unix::process::CommandExt,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use ringfence::{Address, CancelToken, Channel, Error, Options, Policy, Tokens, join};
use support::{
    Actor, OTHER_UID, OtherUsers, TIME_LIMIT, forbid, fresh_address, report, small, thread_named, threads_of,
    wait_for_host, wait_for_test,
};

/// The default, which the forging processes below rely on.
const NUMBER: i32 = 50;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    if let "forge" = role.as_str() {
        return forge(&arguments);
    }
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "echo" => as_echo(&address, &arguments),
        "kills itself" => as_kills_itself(&address),
        "small queue" => as_small_queue(&address, &arguments),
        "collect" => as_collect(&address),
        "counts strays" => as_counts_strays(&address, &arguments),
        "drops tokens" => as_drops_tokens(&address, &arguments),
        "send 42" => as_send_42(&address),
        "flooded" => as_flooded(&address, arguments[1].parse().unwrap()),
        "closes" => as_closes(&address, arguments[1].parse().unwrap()),
        "execute" => as_execute(&address),
        "stranger" => as_stranger(&address),
        _ => unreachable!("{role}"),
    }
}

/// Sends every token back, plus one.
fn as_echo(address: &Address, arguments: &[String]) {
    match arguments.get(1).map(String::as_str) {
        // As before Linux 6.9.
        Some("no thread pidfds") => forbid(libc::SYS_pidfd_open, Some((1, libc::O_EXCL)), libc::EINVAL),
        // It cannot test what is delivered with a signal, and so accepts no tokens.
        Some("no signals") => forbid(libc::SYS_rt_tgsigqueueinfo, None, libc::EPERM),
        _ => {}
    }
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    if arguments.len() > 2 {
        send_retrying(&tokens, arguments[2].parse().unwrap());
    }
    while let Some(token) = tokens.token().unwrap() {
        send_retrying(&tokens, token + 1);
    }
    report(format!("{:?}", tokens.send(1).unwrap_err().code()));
}

/// Sends tokens, and kills itself at once.
fn as_kills_itself(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    for token in 1..=3 {
        send_retrying(&tokens, token);
    }
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}

fn as_small_queue(address: &Address, arguments: &[String]) {
    let limit = arguments[1].parse().unwrap();
    setrlimit(Resource::RLIMIT_SIGPENDING, limit, limit).unwrap();
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    for wanted in 0.. {
        let token = tokens.token().unwrap();
        if token == Some(u64::MAX) {
            report(format!("{wanted} in order"));
            break;
        }
        assert_eq!(token, Some(wanted));
    }
    wait_for_test();
}

fn as_collect(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    let found: Vec<_> = std::iter::from_fn(|| tokens.token().unwrap()).collect();
    report(format!("{found:?}"));
    wait_for_test();
}

fn as_counts_strays(address: &Address, arguments: &[String]) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    wait_for_test();
    // Every forged token is counted, and none is handed out. The genuine token is handed out.
    let wanted: u64 = arguments[1].parse().unwrap();
    wait_until(|| tokens.strays() >= wanted);
    report(format!("{} {:?}", tokens.strays(), tokens.try_token()));
    let token = tokens.token_until(Instant::now() + TIME_LIMIT).unwrap();
    report(format!("{token:?} {} {}", tokens.strays(), tokens.dropped()));
}

/// Takes no token until this many were dropped.
fn as_drops_tokens(address: &Address, arguments: &[String]) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    let wanted: u64 = arguments[1].parse().unwrap();
    wait_until(|| tokens.dropped() >= wanted);
    let mut taken = 0;
    while tokens.try_token() == Some(taken) {
        taken += 1;
    }
    report(format!("{taken} {}", tokens.dropped()));
    wait_for_test();
}

fn as_send_42(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report("joined");
    wait_for_test();
    send_retrying(&tokens, 42);
    wait_for_test();
}

fn as_execute(address: &Address) {
    let mut channel = join(address, &small()).unwrap();
    report("joined");
    channel.receiver().receive(&mut [0; 8]).unwrap();
    let error = Command::new("sh")
        .args(["-c", "echo; echo @@ alive; read x"])
        .exec();
    panic!("{error}");
}

fn as_stranger(address: &Address) {
    let options = small().policy(Policy::new().any_executable().uids([0]));
    let channel = join(address, &options).unwrap();
    let tokens = channel.tokens();
    report(format!("{:?}", tokens.token().unwrap()));
    let error = tokens.send(1).unwrap_err();
    report(format!("{} {error}", error.code()));
    // The channel continues to work.
    let (mut sender, _receiver) = channel.split();
    sender.send(b"instead").unwrap();
    wait_for_test();
}

fn wait_until(holds: impl Fn() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "the condition did not become true");
        thread::yield_now();
    }
}

/// Sends a token, and retries as long as the queue is full.
fn send_retrying(tokens: &Tokens, token: u64) {
    loop {
        match tokens.send(token) {
            Ok(()) => return,
            Err(Error::NoSpace { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The name of the thread that receives the tokens of a process, as truncated by the kernel.
const SIGNAL_THREAD: &str = "ringfence-signa";

/// Returns the thread to which its tokens are sent.
fn thread_of(process: i32) -> i32 {
    thread_named(process, SIGNAL_THREAD)
}

/// Sends a forged signal, as any process can. Returns whether there was room for it.
fn send_forged(to: i32, thread: Option<i32>, from: i32, mailbox: i32, rest: [u8; 16]) -> bool {
    // SAFETY: all-zero bytes are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    info.si_signo = NUMBER;
    info.si_errno = mailbox;
    info.si_code = libc::SI_QUEUE;
    // SAFETY: a siginfo has 128 bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut info).cast::<u8>(), 128) };
    bytes[16..20].copy_from_slice(&from.to_ne_bytes());
    bytes[24..32].copy_from_slice(&666_u64.to_ne_bytes());
    bytes[32..48].copy_from_slice(&rest);
    let info = &raw const info;
    // SAFETY: the kernel reads one siginfo.
    let result = unsafe {
        match thread {
            Some(thread) => libc::syscall(libc::SYS_rt_tgsigqueueinfo, to, thread, NUMBER, info),
            None => libc::syscall(libc::SYS_rt_sigqueueinfo, to, NUMBER, info),
        }
    };
    let error = std::io::Error::last_os_error();
    let has_ended = thread.is_some() && error.raw_os_error() == Some(libc::ESRCH);
    assert!(
        result == 0 || has_ended || error.raw_os_error() == Some(libc::EAGAIN),
        "{error}"
    );
    result == 0
}

/// Sends this many signals, alternately to the process and to its threads in turn, and retries while the
/// queue is full.
fn forge(arguments: &[String]) {
    let to = arguments[0].parse().unwrap();
    let count: usize = arguments[1].parse().unwrap();
    // Some of the library's own threads exit once the channel is there, and signals that are pending for one
    // are lost with it.
    let threads: Vec<_> = threads_of(to)
        .into_iter()
        .filter(|(_, name)| name == SIGNAL_THREAD || !name.starts_with("ringfence-"))
        .collect();
    for number in 0..count {
        let mut thread = (number % 2 == 0).then(|| threads[number / 2 % threads.len()].0);
        while !send_forged(to, thread, to, 1, [7; 16]) {
            // Do not send to a thread that has exited since.
            thread = thread.filter(|id| fs::exists(format!("/proc/{to}/task/{id}")).unwrap());
            thread::yield_now();
        }
    }
    report("sent");
    wait_for_test();
}

#[test]
fn unread_tokens_beyond_65536_are_dropped_and_counted() {
    let (address, _keep) = fresh_address(false);
    let mut other = Actor::start("drops tokens", &[&address.to_string(), "10"]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    for token in 0..65_536 + 10 {
        send_retrying(&tokens, token);
    }
    other.expect("65536 10");
    other.proceed();
}

#[test]
fn tokens_keep_their_order_in_both_directions() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string()]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    thread::scope(|scope| {
        scope.spawn(|| {
            for token in 0..2000 {
                send_retrying(&tokens, token << 40);
            }
        });
        for token in 0..2000 {
            assert_eq!(
                tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(),
                Some((token << 40) + 1)
            );
        }
    });
    assert_eq!(tokens.try_token(), None);
    assert!(!tokens.is_ended());
    assert_eq!(tokens.dropped(), 0);
    let error = tokens
        .token_until(Instant::now() + Duration::from_millis(1))
        .unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error}");
    channel.close();
    assert_eq!(tokens.token().unwrap(), None);
    assert!(tokens.is_ended());
    assert_eq!(tokens.send(1).unwrap_err().code(), "CLOSED");
    other.expect("\"PEER_LOST\"");
    other.finish();
}

/// If a thread cannot be held by descriptor, its number is used. A process that cannot receive tokens can
/// still send them.
#[test]
fn tokens_degrade_without_thread_pidfds_or_signals() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string(), "no thread pidfds"]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    for token in 0..200 {
        send_retrying(&tokens, token);
        assert_eq!(
            tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(),
            Some(token + 1)
        );
    }
    channel.close();
    other.expect("\"PEER_LOST\"");
    other.finish();

    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string(), "no signals", "7"]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    let error = tokens.send(1).unwrap_err();
    assert_eq!(error.code(), "UNSUPPORTED");
    assert!(
        error.to_string().contains("loses part of a signal's data"),
        "{error}"
    );
    assert_eq!(tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(), Some(7));
    channel.close();
    other.expect("\"PEER_LOST\"");
    other.finish();
}

#[test]
fn tokens_sent_before_a_kill_arrive_before_its_report() {
    let mut met = 0;
    while met < 30 {
        let (address, _keep) = fresh_address(false);
        let _other = Actor::start("kills itself", &[&address.to_string()]);
        let channel = match join(&address, &small()) {
            Ok(channel) => channel,
            // It was ready, had sent its tokens, and was dead before this side's last check.
            Err(Error::PeerLost(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        let tokens = channel.tokens();
        met += 1;
        let found: Vec<_> = std::iter::from_fn(|| tokens.token().unwrap()).collect();
        assert_eq!(found, [1, 2, 3]);
        assert_eq!(tokens.send(4).unwrap_err().code(), "PEER_LOST");
    }
}

/// A side that notices the end first has its signal thread confirm that it has received everything sent
/// before. If the queue has no room for that signal either, another signal takes its place.
#[test]
fn tokens_sent_before_the_end_survive_a_full_queue() {
    for _ in 0..10 {
        let (address, _keep) = fresh_address(false);
        let mut other = Actor::start("collect", &[&address.to_string()]);
        let channel = join(&address, &small()).unwrap();
        other.expect("joined");
        other.stop();
        let tokens = channel.tokens();
        for token in 0..50 {
            send_retrying(&tokens, token);
        }
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel reads one rlimit, and writes none.
        let result = unsafe {
            libc::prlimit(
                other.pid(),
                libc::RLIMIT_SIGPENDING,
                &raw const none,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 0);
        assert_eq!(tokens.send(50).unwrap_err().code(), "NO_SPACE");
        channel.close();
        other.resume();
        other.expect(&format!("{:?}", (0..50).collect::<Vec<_>>()));
        other.proceed();
        other.finish();
    }
}

#[test]
fn several_threads_share_the_received_tokens() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string()]);
    let channel = join(&address, &small()).unwrap();
    let tokens = channel.tokens();
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(token) = tokens.token().unwrap() {
                    found.lock().unwrap().push(token);
                }
            });
        }
        for token in 0..600 {
            send_retrying(&tokens, token);
        }
        wait_until(|| found.lock().unwrap().len() == 600);
        channel.close();
    });
    let mut found = found.into_inner().unwrap();
    found.sort_unstable();
    assert_eq!(found, (1..=600).collect::<Vec<_>>());
    drop(other);
}

#[test]
fn forged_tokens_are_counted_and_not_delivered() {
    let (address, _keep) = fresh_address(false);
    let mut target = Actor::start("counts strays", &[&address.to_string(), "84"]);
    wait_for_host(&address);
    let mut peer = Actor::start("send 42", &[&address.to_string()]);
    target.expect("joined");
    peer.expect("joined");
    let thread = thread_of(target.pid());
    for _ in 0..20 {
        wait_until(|| send_forged(target.pid(), None, peer.pid(), 1, [0; 16]));
    }
    // The numbers of the mailboxes can be guessed.
    for mailbox in 0..64 {
        wait_until(|| send_forged(target.pid(), Some(thread), peer.pid(), mailbox, [0; 16]));
    }
    target.proceed();
    target.expect("84 None");
    peer.proceed();
    target.expect("Some(42) 84 0");
    target.finish();
}

#[test]
fn full_queue_is_no_space_and_loses_no_token() {
    const LIMIT: u64 = 1000;
    let (address, _keep) = fresh_address(false);
    let mut other = Actor::start("small queue", &[&address.to_string(), &LIMIT.to_string()]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    other.stop();
    let mut sent = 0;
    let error = loop {
        match tokens.send(sent) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent <= LIMIT);
    };
    assert_eq!(error.code(), "NO_SPACE", "{error}");
    assert!(error.to_string().contains("RLIMIT_SIGPENDING"), "{error}");
    // The channel is unaffected.
    let (mut sender, _receiver) = channel.split();
    sender.send(b"there is room here").unwrap();
    other.resume();
    send_retrying(&tokens, u64::MAX);
    other.expect(&format!("{sent} in order"));
    other.proceed();
    other.finish();
}

/// Messages and tokens pass to and fro while another process floods this one with signals. The signals
/// interrupt threads that only allocate memory and take locks.
#[test]
fn signal_flood_loses_no_message_or_token() {
    const FLOOD: u64 = 100_000;
    let (address, _keep) = fresh_address(false);
    let mut flooded = Actor::start("flooded", &[&address.to_string(), &FLOOD.to_string()]);
    let channel = join(&address, &small()).unwrap();
    flooded.expect("joined");
    let mut forger = Actor::start("forge", &[&flooded.pid().to_string(), &FLOOD.to_string()]);
    let tokens = channel.tokens();
    let (mut sender, mut receiver) = channel.split();
    let over = AtomicBool::new(false);
    let (messages, token_count) = thread::scope(|scope| {
        let messages = scope.spawn(|| {
            let mut sent = 0_u64;
            while !over.load(Ordering::Relaxed) {
                sender.send(&sent.to_le_bytes()).unwrap();
                let mut answer = [0; 8];
                assert_eq!(receiver.receive(&mut answer).unwrap(), Some(8));
                assert_eq!(u64::from_le_bytes(answer), sent);
                sent += 1;
            }
            sent
        });
        let token_count = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                send_retrying(&tokens, sent);
                assert_eq!(
                    tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(),
                    Some(sent)
                );
                sent += 1;
            }
            sent
        });
        let guard = SetOnDrop(&over);
        forger.expect("sent");
        drop(guard);
        (messages.join().unwrap(), token_count.join().unwrap())
    });
    forger.proceed();
    assert!(messages > 0 && token_count > 0);
    flooded.proceed();
    flooded.expect(&FLOOD.to_string());
    drop((sender, receiver));
    flooded.expect(&token_count.to_string());
    flooded.finish();
}

/// Ends the loops that run until this is set, also if a test fails: otherwise their threads would be joined
/// forever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends messages and tokens back, and works at the same time.
fn as_flooded(address: &Address, flood: u64) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    let (mut sender, mut receiver) = channel.split();
    let before = resident();
    let over = AtomicBool::new(false);
    let counted = Mutex::new(0_u64);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let block = vec![1_u8; 100 + std::hint::black_box(400)];
                    *counted.lock().unwrap() += u64::from(block[7]);
                }
            });
        }
        scope.spawn(|| {
            let mut message = [0; 8];
            while let Some(length) = receiver.receive(&mut message).unwrap() {
                sender.send(&message[..length]).unwrap();
            }
        });
        let token_count = scope.spawn(|| {
            let mut count = 0;
            while let Some(token) = tokens.token().unwrap() {
                send_retrying(&tokens, token);
                count += 1;
            }
            count
        });
        report("joined");
        wait_for_test();
        wait_until(|| tokens.strays() >= flood);
        let grown = resident().saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes more are resident");
        report(tokens.strays().to_string());
        // Runs until the channel ends.
        report(token_count.join().unwrap().to_string());
        over.store(true, Ordering::Relaxed);
    });
}

/// Returns the resident bytes of this process's private memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A side that closes releases its signal number, and by default a realtime signal ends the process: the
/// other side's tokens must not arrive after that.
#[test]
fn closing_while_tokens_arrive_kills_neither_side() {
    let (address, _keep) = fresh_address(false);
    let address = address.to_string();
    let mut one = Actor::start("closes", &[&address, "150"]);
    // One of the two may count a meeting that the other does not, so only one of them counts.
    let mut other = Actor::start("closes", &[&address, "1000000"]);
    one.expect("done");
    one.proceed();
    other.proceed();
    other.expect("done");
    one.finish();
    other.finish();
}

fn as_closes(address: &Address, rounds: u32) {
    let cancel_token = CancelToken::new().unwrap();
    let canceller = cancel_token.clone();
    let listening = thread::spawn(move || {
        wait_for_test();
        canceller.cancel();
    });
    for round in 0..rounds {
        let Some(channel) = meet(address, &cancel_token) else {
            break;
        };
        let tokens = channel.tokens();
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                loop {
                    match tokens.send(7) {
                        Ok(()) | Err(Error::NoSpace { .. }) => {}
                        Err(error) => return error,
                    }
                }
            });
            // Both get about as far as this, and each is first in half of the rounds.
            for _ in 0..round % 7 {
                let _ = tokens.token().unwrap();
            }
            channel.close();
            let error = sending.join().unwrap();
            assert!(matches!(error, Error::Closed(_) | Error::PeerLost(_)), "{error}");
        });
    }
    report("done");
    listening.join().unwrap();
}

/// Each may arrive at the address while it still belongs to the last round, or leave before the other has
/// checked.
fn meet(address: &Address, cancel_token: &CancelToken) -> Option<Channel> {
    loop {
        match join(address, &small().wait(true).cancel_token(cancel_token.clone())) {
            Ok(channel) => return Some(channel),
            Err(Error::Aborted) => return None,
            Err(Error::PeerLost(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn token_does_not_kill_a_peer_that_called_exec() {
    for _ in 0..20 {
        let (address, _keep) = fresh_address(false);
        let mut other = Actor::start("execute", &[&address.to_string()]);
        let channel = join(&address, &small()).unwrap();
        other.expect("joined");
        let tokens = channel.tokens();
        let (mut sender, _receiver) = channel.split();
        sender.send(b"now").unwrap();
        let error = loop {
            match tokens.send(1) {
                Ok(()) | Err(Error::NoSpace { .. }) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), "PEER_LOST");
        other.expect("alive");
        other.proceed();
        other.finish();
    }
}

#[test]
fn only_root_can_send_tokens_to_another_user() {
    let Some(others) = OtherUsers::new() else {
        return;
    };
    let address = others.address();
    let options = Options::new()
        .capacity(4096)
        .handshake_timeout(TIME_LIMIT)
        .mode(0o666)
        .policy(Policy::new().any_executable().uids([OTHER_UID]));
    let joining = support::join_later(&address, &options);
    wait_for_host(&address);
    let mut stranger = others.start("stranger", &address);
    let (_sender, mut receiver, tokens) = {
        let channel = joining.join().unwrap().unwrap();
        let tokens = channel.tokens();
        let (sender, receiver) = channel.split();
        (sender, receiver, tokens)
    };
    send_retrying(&tokens, u64::MAX);
    stranger.expect(&format!("{:?}", Some(u64::MAX)));
    let refused = stranger.next_line();
    assert!(
        refused.starts_with("UNSUPPORTED")
            && refused.contains("may not send process")
            && refused.contains("CAP_KILL"),
        "{refused}"
    );
    let mut message = [0; 16];
    assert_eq!(receiver.receive(&mut message).unwrap(), Some(7));
    assert_eq!(tokens.try_token(), None);
    stranger.proceed();
    stranger.finish();
}
