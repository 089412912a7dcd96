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
    Actor, STRANGER, Strangers, TIME_LIMIT, forbid, fresh_address, say, small, wait_for_host, wait_for_test,
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
        "last words" => as_last_words(&address),
        "little room" => as_little_room(&address, &arguments),
        "gather" => as_gather(&address),
        "leave alone" => as_leave_alone(&address, &arguments),
        "let lie" => as_let_lie(&address, &arguments),
        "send 42" => as_send_42(&address),
        "beset" => beset(&address, arguments[1].parse().unwrap()),
        "part" => part(&address, arguments[1].parse().unwrap()),
        "execute" => as_execute(&address),
        "stranger" => as_stranger(&address),
        _ => unreachable!("{role}"),
    }
}

/// Sends every token back, plus one.
fn as_echo(address: &Address, arguments: &[String]) {
    match arguments.get(1).map(String::as_str) {
        // As before Linux 6.9.
        Some("no threads") => forbid(libc::SYS_pidfd_open, Some((1, libc::O_EXCL)), libc::EINVAL),
        // It cannot test what is delivered with a signal, and so accepts no tokens.
        Some("no trial") => forbid(libc::SYS_rt_tgsigqueueinfo, None, libc::EPERM),
        _ => {}
    }
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    if arguments.len() > 2 {
        insist(&tokens, arguments[2].parse().unwrap());
    }
    while let Some(token) = tokens.token().unwrap() {
        insist(&tokens, token + 1);
    }
    say(format!("{:?}", tokens.send(1).unwrap_err().code()));
}

/// Sends tokens, and kills itself at once.
fn as_last_words(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    for token in 1..=3 {
        insist(&tokens, token);
    }
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}

fn as_little_room(address: &Address, arguments: &[String]) {
    let limit = arguments[1].parse().unwrap();
    setrlimit(Resource::RLIMIT_SIGPENDING, limit, limit).unwrap();
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    for wanted in 0.. {
        let token = tokens.token().unwrap();
        if token == Some(u64::MAX) {
            say(format!("{wanted} in order"));
            break;
        }
        assert_eq!(token, Some(wanted));
    }
    wait_for_test();
}

fn as_gather(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    let found: Vec<_> = std::iter::from_fn(|| tokens.token().unwrap()).collect();
    say(format!("{found:?}"));
    wait_for_test();
}

fn as_leave_alone(address: &Address, arguments: &[String]) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    wait_for_test();
    // Every forged token is counted, and none is handed out. The genuine token is handed out.
    let wanted: u64 = arguments[1].parse().unwrap();
    until(|| tokens.strays() >= wanted);
    say(format!("{} {:?}", tokens.strays(), tokens.try_token()));
    let token = tokens.token_until(Instant::now() + TIME_LIMIT).unwrap();
    say(format!("{token:?} {} {}", tokens.strays(), tokens.dropped()));
}

/// Takes no token until this many were dropped.
fn as_let_lie(address: &Address, arguments: &[String]) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    let wanted: u64 = arguments[1].parse().unwrap();
    until(|| tokens.dropped() >= wanted);
    let mut taken = 0;
    while tokens.try_token() == Some(taken) {
        taken += 1;
    }
    say(format!("{taken} {}", tokens.dropped()));
    wait_for_test();
}

fn as_send_42(address: &Address) {
    let channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    say("joined");
    wait_for_test();
    insist(&tokens, 42);
    wait_for_test();
}

fn as_execute(address: &Address) {
    let mut channel = join(address, &small()).unwrap();
    say("joined");
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
    say(format!("{:?}", tokens.token().unwrap()));
    let error = tokens.send(1).unwrap_err();
    say(format!("{} {error}", error.code()));
    // The channel continues to work.
    let (mut sender, _receiver) = channel.split();
    sender.send(b"instead").unwrap();
    wait_for_test();
}

fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain");
        thread::yield_now();
    }
}

/// Sends a token, and retries as long as the queue is full.
fn insist(tokens: &Tokens, token: u64) {
    loop {
        match tokens.send(token) {
            Ok(()) => return,
            Err(Error::NoSpace { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Returns the threads of another process, each with its name.
fn threads_of(process: i32) -> Vec<(i32, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    tasks
        .map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap();
            let id = task.file_name().to_str().unwrap().parse().unwrap();
            (id, name.trim().to_owned())
        })
        .collect()
}

/// The name of the thread that receives the tokens of a process, as truncated by the kernel.
const OWN: &str = "ringfence-signa";

/// Returns the thread to which its tokens are sent.
fn thread_of(process: i32) -> i32 {
    let threads = threads_of(process);
    let (id, _) = threads.iter().find(|(_, name)| name == OWN).unwrap();
    *id
}

/// Sends a forged signal, as any process can. Returns whether there was room for it.
fn made_up(to: i32, thread: Option<i32>, from: i32, mailbox: i32, rest: [u8; 16]) -> bool {
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
        .filter(|(_, name)| name == OWN || !name.starts_with("ringfence-"))
        .collect();
    for number in 0..count {
        let mut thread = (number % 2 == 0).then(|| threads[number / 2 % threads.len()].0);
        while !made_up(to, thread, to, 1, [7; 16]) {
            // Do not send to a thread that has exited since.
            thread = thread.filter(|id| fs::exists(format!("/proc/{to}/task/{id}")).unwrap());
            thread::yield_now();
        }
    }
    say("sent");
    wait_for_test();
}

#[test]
fn of_tokens_that_lie_65536_are_kept_and_the_rest_is_counted() {
    let (address, _keep) = fresh_address(false);
    let mut other = Actor::start("let lie", &[&address.to_string(), "10"]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    for token in 0..65_536 + 10 {
        insist(&tokens, token);
    }
    other.expect("65536 10");
    other.go_on();
}

#[test]
fn tokens_go_both_ways_and_keep_their_order() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string()]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    thread::scope(|scope| {
        scope.spawn(|| {
            for token in 0..2000 {
                insist(&tokens, token << 40);
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
fn an_older_kernel_and_a_filter_of_system_calls_cost_what_they_must() {
    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string(), "no threads"]);
    let channel = join(&address, &small()).unwrap();
    other.expect("joined");
    let tokens = channel.tokens();
    for token in 0..200 {
        insist(&tokens, token);
        assert_eq!(
            tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(),
            Some(token + 1)
        );
    }
    channel.close();
    other.expect("\"PEER_LOST\"");
    other.finish();

    let (address, _keep) = fresh_address(false);
    let other = Actor::start("echo", &[&address.to_string(), "no trial", "7"]);
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
fn what_was_sent_before_a_death_comes_before_its_news() {
    let mut met = 0;
    while met < 30 {
        let (address, _keep) = fresh_address(false);
        let _other = Actor::start("last words", &[&address.to_string()]);
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
fn what_was_sent_before_the_end_comes_though_the_queue_is_full() {
    for _ in 0..10 {
        let (address, _keep) = fresh_address(false);
        let mut other = Actor::start("gather", &[&address.to_string()]);
        let channel = join(&address, &small()).unwrap();
        other.expect("joined");
        other.stop();
        let tokens = channel.tokens();
        for token in 0..50 {
            insist(&tokens, token);
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
        other.go_on();
        other.finish();
    }
}

#[test]
fn several_threads_share_what_comes() {
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
            insist(&tokens, token);
        }
        until(|| found.lock().unwrap().len() == 600);
        channel.close();
    });
    let mut found = found.into_inner().unwrap();
    found.sort_unstable();
    assert_eq!(found, (1..=600).collect::<Vec<_>>());
    drop(other);
}

#[test]
fn a_token_that_another_process_makes_up_is_counted_and_not_handed_out() {
    let (address, _keep) = fresh_address(false);
    let mut target = Actor::start("leave alone", &[&address.to_string(), "84"]);
    wait_for_host(&address);
    let mut peer = Actor::start("send 42", &[&address.to_string()]);
    target.expect("joined");
    peer.expect("joined");
    let thread = thread_of(target.pid());
    for _ in 0..20 {
        until(|| made_up(target.pid(), None, peer.pid(), 1, [0; 16]));
    }
    // The numbers of the mailboxes can be guessed.
    for mailbox in 0..64 {
        until(|| made_up(target.pid(), Some(thread), peer.pid(), mailbox, [0; 16]));
    }
    target.go_on();
    target.expect("84 None");
    peer.go_on();
    target.expect("Some(42) 84 0");
    target.finish();
}

#[test]
fn a_full_queue_is_an_error_and_what_was_taken_comes() {
    const LIMIT: u64 = 1000;
    let (address, _keep) = fresh_address(false);
    let mut other = Actor::start("little room", &[&address.to_string(), &LIMIT.to_string()]);
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
    insist(&tokens, u64::MAX);
    other.expect(&format!("{sent} in order"));
    other.go_on();
    other.finish();
}

/// Messages and tokens pass to and fro while another process floods this one with signals. The signals
/// interrupt threads that only allocate memory and take locks.
#[test]
fn a_flood_of_signals_costs_neither_messages_nor_tokens() {
    const FLOOD: u64 = 100_000;
    let (address, _keep) = fresh_address(false);
    let mut beset = Actor::start("beset", &[&address.to_string(), &FLOOD.to_string()]);
    let channel = join(&address, &small()).unwrap();
    beset.expect("joined");
    let mut forger = Actor::start("forge", &[&beset.pid().to_string(), &FLOOD.to_string()]);
    let tokens = channel.tokens();
    let (mut sender, mut receiver) = channel.split();
    let over = AtomicBool::new(false);
    let (messages, words) = thread::scope(|scope| {
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
        let words = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                insist(&tokens, sent);
                assert_eq!(
                    tokens.token_until(Instant::now() + TIME_LIMIT).unwrap(),
                    Some(sent)
                );
                sent += 1;
            }
            sent
        });
        let ends = Ends(&over);
        forger.expect("sent");
        drop(ends);
        (messages.join().unwrap(), words.join().unwrap())
    });
    forger.go_on();
    assert!(messages > 0 && words > 0);
    beset.go_on();
    beset.expect(&FLOOD.to_string());
    drop((sender, receiver));
    beset.expect(&words.to_string());
    beset.finish();
}

/// Ends the loops that run until this is set, also if a test fails: otherwise their threads would be joined
/// forever.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends messages and tokens back, and works at the same time.
fn beset(address: &Address, flood: u64) {
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
        let words = scope.spawn(|| {
            let mut count = 0;
            while let Some(token) = tokens.token().unwrap() {
                insist(&tokens, token);
                count += 1;
            }
            count
        });
        say("joined");
        wait_for_test();
        until(|| tokens.strays() >= flood);
        let grown = resident().saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes more are resident");
        say(tokens.strays().to_string());
        // Runs until the channel ends.
        say(words.join().unwrap().to_string());
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
fn two_that_part_while_they_send_tokens_both_live() {
    let (address, _keep) = fresh_address(false);
    let address = address.to_string();
    let mut one = Actor::start("part", &[&address, "150"]);
    // One of the two may count a meeting that the other does not, so only one of them counts.
    let mut other = Actor::start("part", &[&address, "1000000"]);
    one.expect("parted");
    one.go_on();
    other.go_on();
    other.expect("parted");
    one.finish();
    other.finish();
}

fn part(address: &Address, rounds: u32) {
    let enough = CancelToken::new().unwrap();
    let told = enough.clone();
    let listening = thread::spawn(move || {
        wait_for_test();
        told.cancel();
    });
    for round in 0..rounds {
        let Some(channel) = meet(address, &enough) else {
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
    say("parted");
    listening.join().unwrap();
}

/// Each may arrive at the address while it still belongs to the last round, or leave before the other has
/// checked.
fn meet(address: &Address, enough: &CancelToken) -> Option<Channel> {
    loop {
        match join(address, &small().wait(true).cancel_token(enough.clone())) {
            Ok(channel) => return Some(channel),
            Err(Error::Aborted) => return None,
            Err(Error::PeerLost(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_peer_that_executes_another_program_is_not_ended_by_a_token() {
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
        other.go_on();
        other.finish();
    }
}

#[test]
fn another_user_is_sent_tokens_by_root_alone() {
    let Some(strangers) = Strangers::new() else {
        return;
    };
    let address = strangers.address();
    let options = Options::new()
        .capacity(4096)
        .handshake_timeout(TIME_LIMIT)
        .mode(0o666)
        .policy(Policy::new().any_executable().uids([STRANGER]));
    let joining = support::join_later(&address, &options);
    wait_for_host(&address);
    let mut stranger = strangers.start("stranger", &address);
    let (_sender, mut receiver, tokens) = {
        let channel = joining.join().unwrap().unwrap();
        let tokens = channel.tokens();
        let (sender, receiver) = channel.split();
        (sender, receiver, tokens)
    };
    insist(&tokens, u64::MAX);
    stranger.expect(&format!("{:?}", Some(u64::MAX)));
    let refused = stranger.hear();
    assert!(
        refused.starts_with("UNSUPPORTED")
            && refused.contains("may not send process")
            && refused.contains("CAP_KILL"),
        "{refused}"
    );
    let mut message = [0; 16];
    assert_eq!(receiver.receive(&mut message).unwrap(), Some(7));
    assert_eq!(tokens.try_token(), None);
    stranger.go_on();
    stranger.finish();
}
