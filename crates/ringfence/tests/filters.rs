//! Children whose system calls a filter restricts: the filters of common sandboxes (their lists are in `filters/`), and the
//! documented list of calls that an open channel needs.

// The list is that of x86-64: other processors have newer calls in place of epoll_wait and poll.
#![cfg(target_arch = "x86_64")]

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::libc::{self, c_long};
use ringfence::{
    Address, Admit, Arrival, Attachments, Channel, Check, CloseReason, Confinement, Namespace, Options,
    Outcome, ParentLine, Policy, Program, SealedBuffer, connect, from_parent, listen,
};
use support::{Actor, TIME_LIMIT, fresh_address, report, small, threads_named};

/// A program of seccomp(2).
struct Filter(Vec<libc::sock_filter>);

/// A call, the condition on an argument under which a rule counts, and the error of this call, if it has its own.
struct Rule {
    call: u32,
    condition: Option<Condition>,
    error: Option<u32>,
}

/// Whether the argument with this index has this value under this mask.
struct Condition {
    index: u32,
    mask: u32,
    value: u32,
    wanted: bool,
}

const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();

impl Filter {
    /// The filter of `filters/NAME.txt`.
    fn named(name: &str) -> Self {
        let text = data(name);
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let kind = lines.next().unwrap();
        let rules: Vec<_> = lines.map(Rule::parse).collect();
        match kind {
            "deny" => Self::new(&rules, DENIED, libc::SECCOMP_RET_ALLOW),
            "allow" => Self::new(&rules, libc::SECCOMP_RET_ALLOW, DENIED),
            other => panic!("{name} has the unknown kind {other}"),
        }
    }

    /// Denies these calls, each as a line of a list.
    fn denying(calls: &[&str]) -> Self {
        let rules: Vec<_> = calls.iter().map(|call| Rule::parse(call)).collect();
        Self::new(&rules, DENIED, libc::SECCOMP_RET_ALLOW)
    }

    /// Kills at every other call.
    fn only(calls: &[&str]) -> Self {
        let rules: Vec<_> = calls.iter().map(|call| Rule::parse(call)).collect();
        Self::new(&rules, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS)
    }

    fn new(rules: &[Rule], verdict: u32, otherwise: u32) -> Self {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt,
            jf,
            k,
        };
        let answer = |verdict| statement(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
        // The checked data: the call's number, then the architecture and an address, then the arguments of eight
        // bytes each.
        let mut program = vec![statement(LOAD, 0, 0, 0)];
        for Rule {
            call,
            condition,
            error,
        } in rules
        {
            let verdict = error.map_or(verdict, |error| libc::SECCOMP_RET_ERRNO | error);
            let Some(condition) = condition else {
                program.extend([statement(EQUALS, *call, 0, 1), answer(verdict)]);
                continue;
            };
            let (jt, jf) = if condition.wanted { (0, 1) } else { (1, 0) };
            program.extend([
                statement(EQUALS, *call, 0, 5),
                statement(LOAD, 16 + 8 * condition.index, 0, 0),
                statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, condition.mask, 0, 0),
                statement(EQUALS, condition.value, jt, jf),
                answer(verdict),
                statement(LOAD, 0, 0, 0),
            ]);
        }
        program.push(answer(otherwise));
        Self(program)
    }

    /// Loads it for this thread and those that it starts, or for all threads. Allocates nothing.
    fn load(&self, flags: libc::c_ulong) {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).unwrap(),
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: prctl takes integers here.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
        // SAFETY: the kernel reads the program and the instructions that it points to.
        assert_eq!(unsafe { libc::syscall(call, mode, flags, &raw const program) }, 0);
    }
}

impl Rule {
    /// Parses a line of a list: `NAME`, `NAME if INDEX&MASK=VALUE`, the same with `unless`, or `NAME fails ERRNO`.
    fn parse(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let fails = words.get(1) == Some(&"fails");
        let error = fails.then(|| number_of(words[2]));
        let condition = words.get(2).filter(|_| !fails).map(|condition| {
            let numbers: Vec<u32> = condition.split(['&', '=']).map(number_of).collect();
            let [index, mask, value] = numbers[..] else {
                panic!("{line}")
            };
            let wanted = words[1] == "if";
            Condition {
                index,
                mask,
                value,
                wanted,
            }
        });
        let call = call(words[0]);
        Self {
            call,
            condition,
            error,
        }
    }
}

fn number_of(text: &str) -> u32 {
    text.strip_prefix("0x").map_or_else(
        || text.parse().unwrap(),
        |digits| u32::from_str_radix(digits, 16).unwrap(),
    )
}

/// The number of a system call.
fn call(name: &str) -> u32 {
    static CALLS: OnceLock<HashMap<String, u32>> = OnceLock::new();
    let calls = CALLS.get_or_init(|| {
        let text = data("calls");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let parse = |line: &str| {
            let (number, name) = line.split_once(' ').unwrap();
            (name.to_owned(), number.parse().unwrap())
        };
        lines.map(parse).collect()
    });
    *calls
        .get(name)
        .unwrap_or_else(|| panic!("unknown system call {name}"))
}

fn data(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filters");
    fs::read_to_string(directory.join(format!("{name}.txt"))).unwrap()
}

/// Calls that have a fallback.
const FALLBACKS: [&str; 10] = [
    "membarrier",
    "pidfd_open",
    "pidfd_send_signal",
    "kcmp",
    "sendto",
    "recvfrom",
    "shutdown",
    "getsockopt",
    "socketpair",
    "memfd_create",
];

/// The options of a child whose policy names this check, or nothing.
fn options_naming(check: &str) -> Options {
    let policy = Policy::new();
    small().policy(match check {
        "uid" => policy.same_uid(),
        "namespace" => policy.namespace(Namespace::Same),
        "executable" => policy.programs([Program::same()]),
        "gid" => policy.gids([nix::unistd::getegid().as_raw()]),
        _ => policy,
    })
}

fn options() -> Options {
    small().policy(Policy::new().any_executable().namespace(Namespace::Any))
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    if let [address, rule] = &arguments[..] {
        return meet_filtered(&role, &address.parse().unwrap(), rule);
    }
    if role.starts_with("landlocked") {
        restrict_files(role.ends_with("reads"));
    }
    let options = match role.as_str() {
        "child" | "steady" | "strays" => options(),
        "attached" => options().attachments(Attachments::none().sealed(true)),
        check => options_naming(check),
    };
    match from_parent(&options) {
        Ok(channel) if role == "evidence" => {
            let hidden = channel
                .evidence()
                .iter()
                .filter(|one| one.outcome == Outcome::NotVisible);
            let checks: BTreeSet<_> = hidden.map(|one| one.check).collect();
            report(Vec::from_iter(checks).join(" "));
            echo(channel);
        }
        Ok(channel) if role == "steady" => as_steady(channel),
        Ok(mut channel) if role == "attached" => {
            Filter::denying(&["fstat", "newfstatat if 3&0x1000=0x1000"]).load(0);
            let error = channel.receiver().receive(&mut [0; 8]).unwrap_err();
            report(format!("{}: {error}", error.code()));
        }
        Ok(channel) if role == "strays" => {
            load_documented_filter();
            let _ = fs::File::open("/dev/null");
            drop(channel);
        }
        Ok(channel) => {
            echo(channel);
            report("ended");
        }
        Err(error) => report(format!("{}: {error}", error.code())),
    }
}

/// Connects or listens once this process denies itself a call, and reports the error.
fn meet_filtered(role: &str, address: &Address, denied: &str) {
    let listener = (role == "listens").then(|| listen(address, &options()).unwrap());
    Filter::denying(&[denied]).load(libc::SECCOMP_FILTER_FLAG_TSYNC);
    report("ready");
    let error = match &listener {
        None => connect(address, &options()).unwrap_err(),
        Some(listener) => match listener.accept().unwrap() {
            Arrival::Refused(refused) => refused.error,
            other => panic!("{other:?}"),
        },
    };
    report(format!("{}: {error}", error.code()));
}

/// Denies this thread and those that it starts each access to files, or each one but reading. Does nothing if the kernel
/// lacks Landlock.
fn restrict_files(may_read: bool) {
    const SYS_CREATE_RULESET: c_long = 444;
    const SYS_ADD_RULE: c_long = 445;
    const SYS_RESTRICT_SELF: c_long = 446;
    // All rights of the first version.
    let rights: u64 = (1 << 13) - 1;
    // SAFETY: the kernel reads the eight bytes of the rights.
    let ruleset = unsafe { libc::syscall(SYS_CREATE_RULESET, &raw const rights, size_of::<u64>(), 0) };
    if ruleset < 0 {
        eprintln!("skipped: this kernel has no Landlock");
        return;
    }
    if may_read {
        let root = fs::File::open("/").unwrap();
        let mut rule = [0; 12];
        // The rights to execute and read files, and to read directories.
        rule[..8].copy_from_slice(&0b1101_u64.to_ne_bytes());
        rule[8..].copy_from_slice(&root.as_raw_fd().to_ne_bytes());
        // SAFETY: the kernel reads the twelve bytes of a `landlock_path_beneath_attr`.
        let added = unsafe { libc::syscall(SYS_ADD_RULE, ruleset, 1, rule.as_ptr(), 0) };
        assert_eq!(added, 0);
    }
    // SAFETY: prctl takes integers here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the call takes integers.
    assert_eq!(unsafe { libc::syscall(SYS_RESTRICT_SELF, ruleset, 0) }, 0);
    assert_eq!(fs::File::open("/dev/null").is_ok(), may_read);
    fs::File::create("/dev/null").expect_err("no file can be written");
}

fn echo(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut bytes = vec![0; 1 << 17];
    while let Ok(Some(length)) = receiver.receive(&mut bytes) {
        sender.send(&bytes[..length]).unwrap();
    }
}

/// The filter that allows the calls of an open channel and of one that closes, by the lists in docs/internals/system-calls.md.
fn documented() -> Filter {
    /// The allocator's, for this test's messages.
    const ALLOCATOR: &str = "brk mmap mremap munmap";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/system-calls.md");
    let text = fs::read_to_string(path).unwrap();
    let list = |name: &str| {
        let behind = text.split(&format!("<!-- calls: {name} -->")).nth(1).unwrap();
        behind.split("```").nth(1).unwrap().strip_prefix("text").unwrap()
    };
    let lists = [list("open"), list("close"), ALLOCATOR].map(str::split_whitespace);
    Filter::only(&lists.into_iter().flatten().collect::<Vec<_>>())
}

/// Loads the documented filter for all threads. Freeing it would be a call of the allocator's.
fn load_documented_filter() {
    let filter = std::mem::ManuallyDrop::new(documented());
    filter.load(libc::SECCOMP_FILTER_FLAG_TSYNC);
}

/// Echoes messages. Loads the filter once the thread that watches the peer has started, as it does after some
/// sleeps: the C library makes other calls while it starts a thread.
fn as_steady(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut bytes = vec![0; 1 << 17];
    while let Some(length) = receiver.receive(&mut bytes).unwrap() {
        if &bytes[..length] == b"shed" && has_exit_watcher() {
            load_documented_filter();
            bytes[..length].copy_from_slice(b"done");
        }
        sender.send(&bytes[..length]).unwrap();
    }
    sender.end();
    drop((sender, receiver));
    // The test harness makes other calls.
    // SAFETY: it ends this process.
    unsafe { libc::_exit(0) };
}

const EXIT_WATCHER: &str = "ringfence-exits";

fn has_exit_watcher() -> bool {
    !threads_named(std::process::id().cast_signed(), EXIT_WATCHER).is_empty()
}

fn start(role: &str, filter: Option<Filter>) -> (Actor, ParentLine) {
    start_by(Command::new(std::env::current_exe().unwrap()), role, filter)
}

/// As [`start`]. `command` runs this executable, in any way.
fn start_by(mut command: Command, role: &str, filter: Option<Filter>) -> (Actor, ParentLine) {
    let confine = move || {
        if let Some(filter) = &filter {
            filter.load(0);
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(confine) };
    Actor::spawn_command(command, role, &[])
}

/// Sends messages of these lengths, each once the previous one has come back.
fn round_trips(channel: &mut Channel, lengths: impl IntoIterator<Item = usize>) {
    let mut bytes = vec![0; 1 << 17];
    for (number, length) in lengths.into_iter().enumerate() {
        let message = support::message(number, length);
        channel.sender().send(&message).unwrap();
        let received = channel.receiver().receive(&mut bytes).unwrap().unwrap();
        assert_eq!(bytes[..received], message);
    }
}

/// Passes messages to and fro with a child that echoes, and ends.
fn expect_channel(what: &str, (child, line): (Actor, ParentLine), policy: Policy) {
    let mut channel = match line.channel(&small().policy(policy.any_executable())) {
        Ok(channel) => channel,
        Err(error) => panic!("{what}: {error}; the child: {}", child.next_line()),
    };
    round_trips(&mut channel, (0..100).map(|number| number * 10));
    channel.close();
    child.expect("ended");
    child.finish();
}

#[test]
fn common_sandbox_filters_allow_a_channel() {
    for name in ["codex", "sandbox-runtime", "docker", "system-service"] {
        let confined = [Confinement::NoNewPrivs, Confinement::Seccomp];
        let child = start("child", Some(Filter::named(name)));
        expect_channel(name, child, Policy::new().confined(confined));
    }
}

#[test]
fn each_call_with_a_fallback_can_be_denied() {
    for error in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
        let rules = FALLBACKS.map(|call| format!("{call} fails {error}"));
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        for rule in &rules {
            expect_channel(
                rule,
                start("child", Some(Filter::denying(&[rule]))),
                Policy::new(),
            );
        }
        let all = start("child", Some(Filter::denying(&rules)));
        expect_channel(&format!("all of them, {error}"), all, Policy::new());
    }
}

/// Landlock (5.13), without access to any file, and with the right to read all, as Codex has it. From inside, no process
/// outside can be inspected.
#[test]
fn child_under_landlock_has_a_channel() {
    for role in ["landlocked", "landlocked-reads"] {
        expect_channel(role, start(role, None), Policy::new());
    }
}

#[test]
fn open_channel_makes_only_documented_calls() {
    let (child, line) = start("steady", None);
    let mut channel = line.channel(&options()).unwrap();
    let (mut answer, mut bytes) = ([0; 4], vec![0; 1 << 17]);
    let end = Instant::now() + TIME_LIMIT;
    while &answer != b"done" {
        assert!(Instant::now() < end, "the child has no thread {EXIT_WATCHER}");
        // So that the child falls asleep.
        std::thread::sleep(Duration::from_millis(1));
        channel.sender().send(b"shed").unwrap();
        assert_eq!(channel.receiver().receive(&mut answer).unwrap(), Some(4));
    }
    round_trips(&mut channel, (0..500).map(|number| number * 200));
    // Both sides sleep now and then.
    let (mut sender, mut receiver) = channel.split();
    for run in 0..1000 {
        for number in 0..10 {
            sender.send(&support::message(number, run * 7 % 300)).unwrap();
        }
        for number in 0..10 {
            let length = receiver.receive(&mut bytes).unwrap().unwrap();
            assert_eq!(bytes[..length], support::message(number, run * 7 % 300));
        }
        if run % 10 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    sender.end();
    assert_eq!(receiver.receive(&mut bytes).unwrap(), None);
    assert_eq!(receiver.close_reason(), Some(CloseReason::Closed));
    assert_eq!(child.signal(), None);
}

/// A check of the parent that cannot be made refuses the parent only if the child's policy names it.
#[test]
fn child_without_getsockopt_trusts_the_inherited_line() {
    let (child, line) = start("evidence", Some(Filter::denying(&["getsockopt"])));
    let channel = line.channel(&small()).unwrap();
    child.expect("credentials executable namespace uid");
    channel.close();
    child.finish();
    for check in ["uid", "executable", "namespace", "gid"] {
        let (child, line) = start(check, Some(Filter::denying(&["getsockopt"])));
        let error = line.channel(&small()).unwrap_err();
        assert_eq!(error.refusal().unwrap().check.as_str(), check, "{error}");
        let reply = child.next_line();
        assert!(
            reply.starts_with("PEER_REFUSED: ")
                && reply.contains("a filter of this process denies getsockopt"),
            "{reply}"
        );
    }
}

/// In another pid namespace, its parent has no number either.
#[test]
fn filtered_child_in_a_pid_namespace_has_a_channel() {
    let namespaces = ["-Urpf", "--kill-child"];
    if !Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: this user may not make namespaces");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(namespaces).arg(std::env::current_exe().unwrap());
    let (launcher, line) = start_by(command, "child", Some(Filter::named("codex")));
    let policy = Policy::new().any_executable().confined([Confinement::Seccomp]);
    let mut channel = line
        .admit(Admit::Descendant)
        .channel(&small().policy(policy))
        .unwrap();
    round_trips(&mut channel, 0..100);
    channel.close();
    launcher.expect("ended");
    launcher.finish();
}

#[test]
fn child_without_socketpair_proves_no_confinement() {
    for admit in [Admit::Child, Admit::Descendant] {
        let (child, line) = start("child", Some(Filter::denying(&["socketpair"])));
        let policy = match admit {
            Admit::Child => Policy::new(),
            // Another process can have the number that a descendant names.
            Admit::Descendant => Policy::new().any_executable(),
        };
        let mut channel = line.admit(admit).channel(&small().policy(policy)).unwrap();
        let hidden = channel
            .evidence()
            .iter()
            .find(|one| one.outcome == Outcome::NotVisible);
        assert_eq!(hidden.unwrap().check, "line");
        assert_eq!(channel.peer().pid, child.pid());
        round_trips(&mut channel, 0..100);
        channel.close();
        child.expect("ended");
        child.finish();
        let (child, line) = start("child", Some(Filter::denying(&["socketpair"])));
        let policy = Policy::new().confined([Confinement::NoNewPrivs]);
        let error = line.admit(admit).channel(&small().policy(policy)).unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.check, Check::Confined(Confinement::NoNewPrivs));
        assert!(refusal.found.contains("not provable"), "{error}");
        assert!(child.next_line().starts_with("PEER_REFUSED: "));
    }
    // The file of the process that its message names is the right one, and may be another process's.
    let (_child, line) = start("child", Some(Filter::denying(&["socketpair"])));
    let error = line.admit(Admit::Descendant).channel(&small()).unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.check, Check::Executable);
    assert!(refusal.found.contains("not provable"), "{error}");
}

/// The parent makes the memory of both, and that of the child is writable by the child alone.
#[test]
fn child_without_memfd_gets_memory_from_its_parent() {
    for denied in [
        "memfd_create",
        "fallocate",
        // The reopened memfd holds the lease.
        "openat if 2&0x80003=0x80002",
    ] {
        let (child, line) = start("child", Some(Filter::denying(&[denied])));
        let mut channel = line.channel(&small()).unwrap();
        let found = |check| {
            channel
                .evidence()
                .iter()
                .find(|one| one.check == check)
                .unwrap()
                .found
                .clone()
        };
        assert_eq!(found("given"), "12288 bytes");
        assert!(found("seals").starts_with("FUTURE_WRITE"), "{}", found("seals"));
        assert!(child_inode_is_read_only_here(child.pid()));
        round_trips(&mut channel, (0..100).map(|number| number * 100));
        channel.close();
        child.expect("ended");
        child.finish();
    }
}

/// The peer's object is not to blame.
#[test]
fn denied_question_about_the_object_of_the_peer_is_a_local_error() {
    let (child, line) = start("child", Some(Filter::denying(&[GET_SEALS])));
    line.channel(&small()).unwrap_err();
    let reply = child.next_line();
    assert!(
        reply.starts_with("UNSUPPORTED: ") && reply.contains("inspecting the peer's shared object"),
        "{reply}"
    );
}

const GET_SEALS: &str = "fcntl if 1&0xffffffff=0x40a";

/// The C library may make fstat of a sealed buffer from another system call.
#[test]
fn denied_fstat_of_an_attachment_is_a_local_error() {
    let (child, line) = start("attached", None);
    let mut channel = line.channel(&options()).unwrap();
    let buffer = SealedBuffer::from_bytes(b"sealed").unwrap();
    channel
        .sender()
        .send_with(b"message", &[(&buffer).into()])
        .unwrap();
    let reply = child.next_line();
    assert!(
        reply.starts_with("UNSUPPORTED: ") && reply.contains("inspecting the peer's shared object"),
        "{reply}"
    );
}

/// The peer has met the policy.
#[test]
fn denied_call_of_a_handshake_is_a_local_error() {
    for (rule, what) in [
        ("getsockopt if 2&0xffffffff=17", "SO_PEERCRED"),
        ("getsockopt if 2&0xffffffff=77", "SO_PEERPIDFD"),
        ("fstatfs", "a mounted /proc"),
        (GET_SEALS, "shared object"),
        ("recvmsg", "recvmsg"),
        ("sendmsg", "sendmsg"),
    ] {
        for role in ["connects", "listens"] {
            let (address, _keep) = fresh_address(false);
            let _listener = (role == "connects").then(|| listen(&address, &options()).unwrap());
            let filtered = Actor::start(role, &[&address.to_string(), rule]);
            filtered.expect("ready");
            if role == "listens" {
                connect(&address, &options()).unwrap_err();
            }
            let reply = filtered.next_line();
            assert!(
                reply.starts_with("UNSUPPORTED: ") && reply.contains(what),
                "{role}, {rule}: {reply}"
            );
        }
    }
}

/// Whether this process maps the object that the child may write, and for reading alone.
fn child_inode_is_read_only_here(child: i32) -> bool {
    let mapped = |pid: &str| -> Vec<(String, String)> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let lines = maps.lines().filter(|line| line.contains("memfd:ringfence"));
        let of = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (fields[1].to_owned(), fields[4].to_owned())
        };
        lines.map(of).collect()
    };
    let child_mappings = mapped(&child.to_string());
    let (_, inode) = child_mappings
        .iter()
        .find(|(rights, _)| rights == "rw-s")
        .expect("its own region");
    let here: Vec<_> = mapped("self")
        .into_iter()
        .filter(|(_, other)| other == inode)
        .collect();
    here.len() == 1 && here[0].0 == "r--s"
}

/// The test of the documented calls notices a call that the list lacks.
#[test]
fn undocumented_call_kills_the_process() {
    let (child, line) = start("strays", None);
    let mut channel = line.channel(&options()).unwrap();
    // Until the child is gone.
    let _ = channel.receiver().receive(&mut [0; 64]);
    assert_eq!(child.signal(), Some(libc::SIGSYS));
}
