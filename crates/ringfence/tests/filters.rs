//! Children whose system calls a filter restricts: the filters of common sandboxes, and the documented list of
//! calls that an open channel needs.

// The list is that of x86-64: other processors have newer calls in place of epoll_wait and poll.
#![cfg(target_arch = "x86_64")]

mod support;

use std::{
    collections::BTreeSet, fs, os::unix::process::CommandExt, path::Path, process::Command, time::Duration,
};

use nix::libc::{self, c_long};
use ringfence::{
    Admit, Channel, Check, Confinement, Namespace, Options, Outcome, ParentLine, Policy, Program, from_parent,
};
use support::{Actor, forbid, say, small};

/// A call that a filter denies, if its argument with this index has this value.
type Denied = (c_long, Option<(u32, i32)>);

const fn all(call: c_long) -> Denied {
    (call, None)
}

/// The denied calls of Codex. It allows Unix sockets and no others.
const CODEX: &[Denied] = &[
    all(libc::SYS_accept),
    all(libc::SYS_accept4),
    all(libc::SYS_bind),
    all(libc::SYS_connect),
    all(libc::SYS_getpeername),
    all(libc::SYS_getsockname),
    all(libc::SYS_getsockopt),
    all(libc::SYS_io_uring_enter),
    all(libc::SYS_io_uring_register),
    all(libc::SYS_io_uring_setup),
    all(libc::SYS_listen),
    all(libc::SYS_ptrace),
    all(libc::SYS_recvmmsg),
    all(libc::SYS_sendmmsg),
    all(libc::SYS_sendto),
    all(libc::SYS_setsockopt),
    all(libc::SYS_shutdown),
    (libc::SYS_socket, Some((0, libc::AF_INET))),
    (libc::SYS_socket, Some((0, libc::AF_INET6))),
];

/// The denied calls of sandbox-runtime: new Unix sockets, and io_uring, which could make one.
const SANDBOX_RUNTIME: &[Denied] = &[
    (libc::SYS_socket, Some((0, libc::AF_UNIX))),
    all(libc::SYS_io_uring_setup),
    all(libc::SYS_io_uring_enter),
    all(libc::SYS_io_uring_register),
];

/// Denied calls of Docker's default profile, for a container without additional capabilities.
const DOCKER: &[Denied] = &[
    all(libc::SYS_acct),
    all(libc::SYS_add_key),
    all(libc::SYS_bpf),
    all(libc::SYS_clock_adjtime),
    all(libc::SYS_clock_settime),
    all(libc::SYS_delete_module),
    all(libc::SYS_finit_module),
    all(libc::SYS_get_mempolicy),
    all(libc::SYS_init_module),
    all(libc::SYS_io_uring_enter),
    all(libc::SYS_io_uring_register),
    all(libc::SYS_io_uring_setup),
    all(libc::SYS_kcmp),
    all(libc::SYS_kexec_file_load),
    all(libc::SYS_kexec_load),
    all(libc::SYS_keyctl),
    all(libc::SYS_mbind),
    all(libc::SYS_mount),
    all(libc::SYS_move_pages),
    all(libc::SYS_open_by_handle_at),
    all(libc::SYS_perf_event_open),
    all(libc::SYS_personality),
    all(libc::SYS_pidfd_getfd),
    all(libc::SYS_pivot_root),
    all(libc::SYS_process_vm_readv),
    all(libc::SYS_process_vm_writev),
    all(libc::SYS_quotactl),
    all(libc::SYS_reboot),
    all(libc::SYS_request_key),
    all(libc::SYS_set_mempolicy),
    all(libc::SYS_setns),
    all(libc::SYS_settimeofday),
    all(libc::SYS_swapoff),
    all(libc::SYS_swapon),
    all(libc::SYS_umount2),
    all(libc::SYS_unshare),
    all(libc::SYS_userfaultfd),
];

/// Calls that systemd's `@system-service` lacks.
const SYSTEM_SERVICE: &[Denied] = &[
    all(libc::SYS_acct),
    all(libc::SYS_bpf),
    all(libc::SYS_chroot),
    all(libc::SYS_clock_settime),
    all(libc::SYS_fanotify_init),
    all(libc::SYS_init_module),
    all(libc::SYS_io_uring_enter),
    all(libc::SYS_io_uring_register),
    all(libc::SYS_io_uring_setup),
    all(libc::SYS_kcmp),
    all(libc::SYS_kexec_load),
    all(libc::SYS_mount),
    all(libc::SYS_open_by_handle_at),
    all(libc::SYS_perf_event_open),
    all(libc::SYS_pidfd_getfd),
    all(libc::SYS_pivot_root),
    all(libc::SYS_process_vm_readv),
    all(libc::SYS_process_vm_writev),
    all(libc::SYS_ptrace),
    all(libc::SYS_quotactl),
    all(libc::SYS_reboot),
    all(libc::SYS_setns),
    all(libc::SYS_settimeofday),
    all(libc::SYS_swapon),
    all(libc::SYS_syslog),
    all(libc::SYS_umount2),
    all(libc::SYS_unshare),
    all(libc::SYS_userfaultfd),
    all(libc::SYS_vhangup),
];

/// Calls that have a fallback.
const FALLBACKS: &[Denied] = &[
    all(libc::SYS_membarrier),
    all(libc::SYS_pidfd_open),
    all(libc::SYS_kcmp),
    all(libc::SYS_sendto),
    all(libc::SYS_recvfrom),
    all(libc::SYS_shutdown),
];

/// The options of a child whose policy names this check, or nothing.
fn naming(check: &str) -> Options {
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
    let Some((role, _)) = support::role() else {
        return;
    };
    let options = match role.as_str() {
        "child" | "steady" | "strays" => options(),
        check => naming(check),
    };
    match from_parent(&options) {
        Ok(channel) if role == "evidence" => {
            let hidden = channel
                .evidence()
                .iter()
                .filter(|one| one.outcome == Outcome::NotVisible);
            let checks: BTreeSet<_> = hidden.map(|one| one.check).collect();
            say(Vec::from_iter(checks).join(" "));
            echo(channel);
        }
        Ok(channel) if role == "steady" => steady(channel),
        Ok(channel) if role == "strays" => {
            only(&documented());
            let _ = fs::File::open("/dev/null");
            drop(channel);
        }
        Ok(channel) => {
            echo(channel);
            say("ended");
        }
        Err(error) => say(format!("{}: {error}", error.code())),
    }
}

fn echo(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut bytes = vec![0; 1 << 17];
    while let Ok(Some(length)) = receiver.receive(&mut bytes) {
        sender.send(&bytes[..length]).unwrap();
    }
}

/// The calls in the section of docs/production.md on the calls of an open channel.
fn documented() -> Vec<c_long> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/production.md");
    let text = fs::read_to_string(path).unwrap();
    let section = text.split("An open channel makes these calls").nth(1).unwrap();
    let list = section.split("```").nth(1).unwrap();
    let number = |name: &str| match name {
        "text" => None,
        "epoll_wait" => Some(libc::SYS_epoll_wait),
        "exit_group" => Some(libc::SYS_exit_group),
        "futex" => Some(libc::SYS_futex),
        "getpid" => Some(libc::SYS_getpid),
        "membarrier" => Some(libc::SYS_membarrier),
        "mmap" => Some(libc::SYS_mmap),
        "mremap" => Some(libc::SYS_mremap),
        "munmap" => Some(libc::SYS_munmap),
        "poll" => Some(libc::SYS_poll),
        "recvmsg" => Some(libc::SYS_recvmsg),
        "rt_sigtimedwait" => Some(libc::SYS_rt_sigtimedwait),
        "sendmsg" => Some(libc::SYS_sendmsg),
        "shutdown" => Some(libc::SYS_shutdown),
        other => panic!("the list names {other}"),
    };
    list.split_whitespace().filter_map(number).collect()
}

/// Kills this process at any other call from here on, whichever thread makes it.
fn only(calls: &[c_long]) {
    const ALL_THREADS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_TSYNC;
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    };
    let answer = |k| statement(libc::BPF_RET | libc::BPF_K, k);
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        filter.push(libc::sock_filter {
            jf: 1,
            ..statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                u32::try_from(*call).unwrap(),
            )
        });
        filter.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    filter.push(answer(libc::SECCOMP_RET_KILL_PROCESS));
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: prctl takes integers here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the kernel reads the program and the instructions that it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            ALL_THREADS,
            &raw const program,
        )
    };
    assert_eq!(result, 0);
    // Freeing it would be a call of the allocator's.
    std::mem::forget(filter);
}

/// Echoes messages. Loads the filter after some of them, because the first sleeps prepare the later ones.
fn steady(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut bytes = vec![0; 1 << 17];
    while let Ok(Some(length)) = receiver.receive(&mut bytes) {
        if &bytes[..length] == b"shed" && receiver.stats().sleeps > 40 {
            only(&documented());
            bytes[..length].copy_from_slice(b"done");
        }
        sender.send(&bytes[..length]).unwrap();
    }
    // Closing the channel makes more calls.
    // SAFETY: it ends this process.
    unsafe { libc::_exit(0) };
}

fn start(role: &str, denied: &'static [Denied]) -> (Actor, ParentLine) {
    start_by(Command::new(std::env::current_exe().unwrap()), role, denied)
}

/// As [`start`]. `command` runs this executable, in any way.
fn start_by(mut command: Command, role: &str, denied: &'static [Denied]) -> (Actor, ParentLine) {
    let confine = move || {
        for (call, argument) in denied {
            forbid(*call, *argument, libc::EPERM);
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(confine) };
    Actor::spawn_by(command, role, &[])
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

#[test]
fn a_child_under_the_filter_of_a_common_sandbox_has_a_channel() {
    for (name, denied) in [
        ("Codex", CODEX),
        ("sandbox-runtime", SANDBOX_RUNTIME),
        ("Docker", DOCKER),
        ("@system-service", SYSTEM_SERVICE),
        ("calls with a fallback", FALLBACKS),
    ] {
        let (child, line) = start("child", denied);
        let policy = Policy::new()
            .any_executable()
            .confined([Confinement::NoNewPrivs, Confinement::Seccomp]);
        let mut channel = match line.channel(&small().policy(policy)) {
            Ok(channel) => channel,
            Err(error) => panic!("{name}: {error}; the child: {}", child.hear()),
        };
        round_trips(&mut channel, (0..100).map(|number| number * 10));
        channel.close();
        child.expect("ended");
        child.finish();
    }
}

#[test]
fn an_open_channel_makes_no_call_that_is_not_documented() {
    let (child, line) = start("steady", &[]);
    let mut channel = line.channel(&options()).unwrap();
    let mut answer = [0; 4];
    while &answer != b"done" {
        // So that the child falls asleep.
        std::thread::sleep(Duration::from_millis(1));
        channel.sender().send(b"shed").unwrap();
        assert_eq!(channel.receiver().receive(&mut answer).unwrap(), Some(4));
    }
    round_trips(&mut channel, (0..500).map(|number| number * 200));
    channel.close();
    assert_eq!(child.signal(), None);
}

const GETSOCKOPT: &[Denied] = &[all(libc::SYS_getsockopt)];

/// A check of the parent that cannot be made refuses the parent only if the child's policy names it.
#[test]
fn a_child_that_may_not_ask_the_socket_takes_its_parent_for_the_maker_of_the_line() {
    let (child, line) = start("evidence", GETSOCKOPT);
    let channel = line.channel(&small()).unwrap();
    child.expect("credentials executable namespace uid");
    channel.close();
    child.finish();
    for check in ["uid", "executable", "namespace", "gid"] {
        let (child, line) = start(check, GETSOCKOPT);
        let error = line.channel(&small()).unwrap_err();
        assert_eq!(error.refusal().unwrap().check.as_str(), check, "{error}");
        let said = child.hear();
        assert!(
            said.starts_with("PEER_REFUSED: ") && said.contains("a filter of this process denies getsockopt"),
            "{said}"
        );
    }
}

/// In another pid namespace, its parent has no number either.
#[test]
fn a_child_that_may_not_ask_the_socket_has_a_channel_from_a_pid_namespace_of_its_own() {
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
    let (launcher, line) = start_by(command, "child", CODEX);
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
fn a_child_that_may_not_make_a_line_gets_one_and_no_confinement_is_provable() {
    const SOCKETPAIR: &[Denied] = &[all(libc::SYS_socketpair)];
    for admit in [Admit::Child, Admit::Descendant] {
        let (child, line) = start("child", SOCKETPAIR);
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
        let (child, line) = start("child", SOCKETPAIR);
        let policy = Policy::new().confined([Confinement::NoNewPrivs]);
        let error = line.admit(admit).channel(&small().policy(policy)).unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.check, Check::Confined(Confinement::NoNewPrivs));
        assert!(refusal.found.contains("not provable"), "{error}");
        assert!(child.hear().starts_with("PEER_REFUSED: "));
    }
    // The file of the process that its message names is the right one, and may be another process's.
    let (_child, line) = start("child", SOCKETPAIR);
    let error = line.admit(Admit::Descendant).channel(&small()).unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.check, Check::Executable);
    assert!(refusal.found.contains("not provable"), "{error}");
}

/// The parent makes the memory of both, and that of the child is writable by the child alone.
#[test]
fn a_child_that_may_not_create_memory_gets_it_from_its_parent() {
    const MEMORY: [&[Denied]; 3] = [
        &[all(libc::SYS_memfd_create)],
        &[all(libc::SYS_fallocate)],
        // The reopened memfd holds the lease.
        &[(libc::SYS_openat, Some((2, libc::O_RDWR | libc::O_CLOEXEC)))],
    ];
    for denied in MEMORY {
        let (child, line) = start("child", denied);
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
    let childs = mapped(&child.to_string());
    let (_, inode) = childs
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
fn a_call_that_is_not_documented_kills() {
    let (child, line) = start("strays", &[]);
    let mut channel = line.channel(&options()).unwrap();
    // Until the child is gone.
    let _ = channel.receiver().receive(&mut [0; 64]);
    assert_eq!(child.signal(), Some(libc::SIGSYS));
}
