//! Probes of this process: its identity, its limits and its confinement, and what the kernel reports about a peer.

use std::{fs, os::fd::AsFd, path::Path};

use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit},
        socket::{getsockopt, sockopt},
        statfs::{PROC_SUPER_MAGIC, statfs},
    },
    unistd::{getegid, geteuid, getgid, getpid, gettid, getuid},
};

use crate::{
    doctor::{
        Judgement,
        Status::{Good, Limited, Missing},
        default_region, number_in,
    },
    peer::process,
    signal::claim,
    sys::{self, socket::new_line},
};

pub(super) fn pidfd() -> Judgement {
    match sys::process::pidfd_open(getpid()) {
        Ok(_) => Good.with(
            "works",
            "a pidfd check before and after each read of a peer's /proc confirms that the same process is alive; \
             its death is detected even if another process holds its end of the line open",
        ),
        Err(errno) => Limited.with(
            format!("{} (Linux 5.3)", errno.desc()),
            "a peer is identified by its pid and its /proc directory; its death is detected only when the line \
             closes",
        ),
    }
}

pub(super) fn peer_pidfd() -> Judgement {
    match new_line().and_then(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd)) {
        Ok(_) => Good.with(
            "works",
            "checks apply to the process that connected, even if its pid has been reused since",
        ),
        Err(errno) => Limited.with(
            format!("{} (Linux 6.5)", errno.desc()),
            "the peer's process is found by its pid; if the peer exits at that moment, a process that reuses the \
             pid could be checked instead, but it does not have the private line",
        ),
    }
}

pub(super) fn peer_groups() -> Judgement {
    match new_line().and_then(|(one, _other)| sys::socket::peer_groups(one.as_fd())) {
        Ok(groups) => Good.with(
            format!("works; this process has {}", groups.len()),
            "a policy that requires a gid also accepts the peer's supplementary groups",
        ),
        Err(errno) => Limited.with(
            format!("{} (Linux 4.13)", errno.desc()),
            "a policy that requires a gid checks only the peer's effective gid",
        ),
    }
}

pub(super) fn pidfd_information() -> Judgement {
    match sys::process::pidfd_open(getpid()).and_then(sys::process::pidfd_info) {
        Ok(info) => Good.with(
            format!("works: pid {}, effective uid {}, gid {}", info.pid, info.uid, info.gid),
            "a peer's user, group and cgroup are re-checked through its pidfd, which never refers to another \
             process",
        ),
        Err(errno) => Limited.with(
            format!("{} (Linux 6.13)", errno.desc()),
            "a peer's user, group and cgroup are re-checked only in /proc, between two checks that it is alive",
        ),
    }
}

pub(super) fn membarrier() -> Judgement {
    match sys::process::supports_barriers().and_then(|known| sys::process::issue_barrier().map(|()| known)) {
        Ok(true) => Good.with(
            "global expedited: works",
            "sending needs no fence: the side that goes to sleep issues the barrier for both",
        ),
        Ok(false) | Err(_) => Limited.with(
            "global expedited: not available (needs Linux 4.16 and a sandbox that allows it)",
            "every send issues a full fence: slower, but equally correct",
        ),
    }
}

pub(super) fn proc() -> Judgement {
    let refused = "no peer can be inspected, so every peer is refused; mount /proc where this process runs";
    match statfs("/proc").map(|found| found.filesystem_type()) {
        Ok(PROC_SUPER_MAGIC) => {}
        Ok(_) => return Missing.with("another filesystem is mounted there", refused),
        Err(errno) => return Missing.with(errno.desc(), refused),
    }
    let own = match process::own_executable() {
        Ok(own) => own,
        Err(errno) => {
            return Missing.with(
                format!("/proc/self/exe cannot be inspected: {}", errno.desc()),
                "a policy that requires the same executable refuses every peer; require a uid, gid, cgroup or \
                 label instead",
            );
        }
    };
    let overflow = number_in("/proc/sys/kernel/overflowuid");
    if overflow.is_none() {
        return Missing.with("/proc/sys/kernel/overflowuid cannot be read", refused);
    }
    match hidepid() {
        Some(hidden) => Limited.with(
            format!("readable, own executable {own}; mounted with {hidden}"),
            "the executable and supplementary groups of another user's peer are hidden, so a policy that requires \
             them refuses it (before Linux 6.13 every policy does); mount /proc without hidepid, or add this \
             process to the group in the gid= mount option",
        ),
        None => Good.with(
            format!("readable, own executable {own}"),
            "a policy can require an executable or a cgroup",
        ),
    }
}

/// The mount option that hides other users' processes, if it is in effect (proc(5)).
fn hidepid() -> Option<String> {
    let text = sys::file::read_whole_text("/proc/self/mountinfo").ok()?;
    // proc(5), mountinfo: the fifth field is the mount point; the last mount hides earlier ones.
    let line = text
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    line.split([' ', ','])
        .find(|option| {
            option
                .strip_prefix("hidepid=")
                .is_some_and(|value| !matches!(value, "0" | "off"))
        })
        .map(str::to_owned)
}

pub(super) fn pid_namespace() -> Judgement {
    let pid = getpid().as_raw();
    let shown = fs::read_link("/proc/self").unwrap_or_else(|_| "nothing".into());
    if shown.as_os_str() != pid.to_string().as_str() {
        return Missing.with(
            format!("this process is {pid}, but /proc reports {}", shown.display()),
            "/proc shows another pid namespace, in which a peer's pid refers to a different process; mount a /proc \
             of this namespace",
        );
    }
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    let (which, meaning) = if namespace.as_deref() == Some(Path::new("pid:[4026531836]")) {
        (
            "the initial one",
            "peers in a container's pid namespace are visible from here, but refused unless the policy sets \
             namespace to any",
        )
    } else {
        (
            "not the initial one",
            "a peer outside this pid namespace is refused; share one pid namespace (a container's pid option), or \
             set namespace to any in the policy",
        )
    };
    Good.with(
        format!("pid {pid}, and /proc agrees; the namespace is {which}"),
        meaning,
    )
}

pub(super) fn user() -> Judgement {
    let (real, effective) = (getuid().as_raw(), geteuid().as_raw());
    let namespace = match sys::file::read_whole_text("/proc/self/uid_map") {
        Ok(map) if map.split_whitespace().eq(["0", "0", "4294967295"]) => "the initial user namespace",
        Ok(_) => "a user namespace other than the initial one",
        Err(_) => "unknown user namespace",
    };
    let found = format!(
        "uid {real}, effective {effective}; gid {}, effective {}; {namespace}",
        getgid(),
        getegid()
    );
    if number_in("/proc/sys/kernel/overflowuid") == Some(u64::from(effective)) {
        return Missing.with(
            format!("{found}; this is the overflow uid"),
            "every unmapped user appears as this uid, so peers refuse it; run this process as a mapped user other \
             than the overflow uid",
        );
    }
    if real != effective {
        return Limited.with(
            found,
            "real and effective uid differ, so a policy that requires the same uid refuses every peer; list the \
             uids in the policy",
        );
    }
    if effective == 0 {
        return Limited.with(
            found,
            "a policy that requires the same uid accepts every process of root, and root may read any memory; run \
             both processes as a dedicated user",
        );
    }
    Good.with(
        found,
        "the kernel keeps other users out; only further policy requirements distinguish the processes of this \
         user, so run both sides as a dedicated user",
    )
}

pub(super) fn label() -> Judgement {
    let none = "a policy that requires a label refuses every peer";
    match new_line().and_then(|(one, _other)| sys::socket::peer_label(one.as_fd())) {
        Ok(label) if label.is_empty() => Limited.with("empty", none),
        Ok(label) if label.starts_with("unconfined") => Limited.with(
            label,
            "this process has no profile, so its label does not distinguish it from other processes; confine it, \
             and require its label in the policy",
        ),
        Ok(label) => Good.with(
            label,
            "a policy can require it: the administrator assigns labels, not the user",
        ),
        Err(errno) => Limited.with(
            format!("{}: no security module provides one", errno.desc()),
            none,
        ),
    }
}

/// Programs that run other programs, named by an argument or an environment variable.
const INTERPRETERS: &str = "bash beam.smp bun busybox dash deno dotnet electron java julia ksh lua luajit mono \
    node nodejs perl php pwsh pypy python qemu-aarch64 qemu-x86_64 R ruby sh tclsh wine64-preloader zsh";

fn is_interpreter(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // The kernel appends this if the file was replaced after the process started.
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    // python3.12, php8.2, ruby3.1, node20, qemu-x86_64-static.
    let name = name.strip_suffix("-static").unwrap_or(name);
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    INTERPRETERS
        .split(' ')
        .any(|known| known == name || known == bare)
}

pub(super) fn executable() -> Judgement {
    match process::own_executable() {
        Ok(own) if is_interpreter(&own.path) => Limited.with(
            format!("{}, which runs any script", own.path.display()),
            "\"same executable\" proves nothing here, because every script of the same user runs in it; use a \
             dedicated user, group or cgroup, or build a single executable",
        ),
        Ok(own) => Good.with(
            own.path.display().to_string(),
            "\"same executable\" prevents accidents; it is no boundary against the same user, who can load other \
             code into it (LD_PRELOAD, ptrace)",
        ),
        Err(errno) => Missing.with(
            errno.desc(),
            "a policy that requires the same executable refuses every peer; require a uid, gid, cgroup or label \
             instead",
        ),
    }
}

/// The soft limit, the hard limit, and both as text. Fails with the reason why they cannot be read.
pub(super) fn limits(of: Resource) -> Result<(u64, u64, String), String> {
    let shown = |limit: u64| {
        if limit == RLIM_INFINITY {
            "unlimited".to_owned()
        } else {
            limit.to_string()
        }
    };
    getrlimit(of)
        .map(|(soft, hard)| (soft, hard, format!("{}, at most {}", shown(soft), shown(hard))))
        .map_err(|errno| errno.desc().to_owned())
}

pub(super) const UNREADABLE: &str = "the limit cannot be read, so it shows only when a call fails";

pub(super) fn file_size() -> Judgement {
    let region = default_region();
    match limits(Resource::RLIMIT_FSIZE) {
        Ok((soft, _, found)) if soft >= region => {
            Good.with(found, "shared objects count as files, and a default ring is below the limit")
        }
        Ok((_, _, found)) => Limited.with(
            found,
            format!(
                "a default ring needs an object of {region} bytes and fails with NO_SPACE; raise the limit (ulimit \
                 -f), or choose a smaller capacity"
            ),
        ),
        Err(why) => Limited.with(why, UNREADABLE),
    }
}

/// The descriptors that a host holds at its limits: 64 handshakes in parallel with at most eight each, and 128 waiting
/// clients with at most three each.
const DESCRIPTORS_WANTED: u64 = 896;

pub(super) fn descriptors() -> Judgement {
    let used = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    match limits(Resource::RLIMIT_NOFILE) {
        Ok((soft, _, found)) if soft.saturating_sub(used) >= DESCRIPTORS_WANTED => Good.with(
            format!("{found}; {used} open"),
            "an open channel holds two (the line and the pidfd), and its host one or two more (the address and its \
             lock)",
        ),
        Ok((_, _, found)) => Limited.with(
            format!("{found}; {used} open"),
            format!(
                "a host with many clients connecting at once may need {DESCRIPTORS_WANTED} more and fail with \
                 NO_SPACE; raise the limit (ulimit -n)"
            ),
        ),
        Err(why) => Limited.with(why, UNREADABLE),
    }
}

pub(super) fn signals() -> Judgement {
    let meaning = "the maximum number of tokens in transit to processes of this user, shared with other signals; \
         alarms do not count";
    match limits(Resource::RLIMIT_SIGPENDING) {
        Ok((0, _, found)) => Limited.with(
            found,
            "no token can be queued for this process: sending fails with \
             NO_SPACE",
        ),
        Ok((_, _, found)) => Good.with(found, meaning),
        Err(why) => Limited.with(why, UNREADABLE),
    }
}

pub(super) fn tokens() -> Judgement {
    match claim::carries_all() {
        Ok(true) if sys::process::pidfd_open_thread(gettid().as_raw()).is_ok() => Good.with(
            "data arrives in full; threads have handles (PIDFD_THREAD)",
            "a token carries a secret that distinguishes it from forgeries, and goes only to the peer's thread",
        ),
        Ok(true) => Limited.with(
            "data arrives in full; no thread handles (Linux 6.9)",
            "a token carries a secret that distinguishes it from forgeries, and goes to the peer's thread by \
             thread id, which is checked immediately before",
        ),
        Ok(false) => Missing.with(
            "data after the signal value is lost",
            "this process cannot receive tokens: its peers get UNSUPPORTED",
        ),
        Err(errno) => Limited.with(
            errno.desc(),
            "cannot test now whether this process can receive tokens",
        ),
    }
}

fn yama() -> Option<u64> {
    number_in("/proc/sys/kernel/yama/ptrace_scope")
}

pub(super) fn ptrace_scope() -> Judgement {
    match yama() {
        None | Some(0) => Limited.with(
            if yama().is_some() {
                "kernel.yama.ptrace_scope=0"
            } else {
                "no Yama in this kernel"
            },
            "any process of the same user may read and write this process's memory, including its channels; run \
             both processes as a dedicated user",
        ),
        Some(1) => Good.with(
            "kernel.yama.ptrace_scope=1",
            "processes of the same user cannot attach to this process, but its ancestors can; the kernel still \
             shows all of them its open files",
        ),
        Some(scope) => Good.with(
            format!("kernel.yama.ptrace_scope={scope}"),
            "processes of the same user cannot attach to this process; the kernel still shows them its open files",
        ),
    }
}

pub(super) fn dumpable() -> Judgement {
    match sys::process::dumpable() {
        Ok(1) if yama().is_some_and(|scope| scope > 0) => Good.with(
            "dumpable",
            "a peer of the same user can read this process's executable path; only Yama protects its memory from \
             that user's other processes",
        ),
        Ok(1) => Limited.with(
            "dumpable",
            "a peer of the same user can read this process's executable path, and every process of that user can \
             read its memory; run it as a dedicated user",
        ),
        Ok(value) => Limited.with(
            format!("not dumpable ({value})"),
            "memory, open files and the executable path are hidden from the same user: a peer whose policy \
             requires the executable refuses this process unless the peer has CAP_SYS_PTRACE; require a uid, gid, \
             cgroup or label instead",
        ),
        Err(errno) => Limited.with(errno.desc(), "unknown which processes may read this process's memory"),
    }
}

pub(super) fn core() -> Judgement {
    let pattern = sys::file::read_whole_text("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let piped = pattern.starts_with('|');
    let dumpable = sys::process::dumpable().is_ok_and(|value| value == 1);
    match limits(Resource::RLIMIT_CORE) {
        Ok((_, _, found)) if !dumpable => Good.with(found, "this process is not dumpable, so a crash writes no \
             core"),
        Ok((0, 0, found)) if !piped => Good.with(found, "a crash of this process writes none of its memory to disk"),
        Ok((_, _, found)) => Limited.with(
            if piped {
                format!("{found}; cores are piped to a program ({})", pattern.trim())
            } else {
                found
            },
            if piped {
                "a core excludes the rings (MADV_DONTDUMP), but includes data copied out of them; the program \
                 receives it regardless of the limit"
            } else {
                "a core excludes the rings (MADV_DONTDUMP), but includes data copied out of them; a process of the \
                 same user may raise the soft limit: set the hard limit to 0 (ulimit -Hc 0)"
            },
        ),
        Err(why) => Limited.with(why, UNREADABLE),
    }
}

pub(super) fn seccomp() -> Judgement {
    let status = sys::file::read_whole_text("/proc/self/status").unwrap_or_default();
    match sys::file::value_in(&status, "Seccomp:") {
        Some("0") => Good.with("none", "no filter blocks system calls of this process"),
        Some("2") => Good.with(
            "a filter is active",
            "the findings above show what it blocks: they were tested under it",
        ),
        Some(other) => Limited.with(
            format!("mode {other}"),
            "this process may make almost no system calls, so it cannot make a channel",
        ),
        None => Limited.with(
            "not in /proc/self/status",
            "the findings above show what a filter may block: they were tested under it",
        ),
    }
}

pub(super) fn container() -> Judgement {
    let hints: Vec<String> = ["/.dockerenv", "/run/.containerenv"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .map(str::to_owned)
        .chain(
            std::env::var("container")
                .ok()
                .map(|value| format!("container={value}")),
        )
        .collect();
    if hints.is_empty() {
        Good.with("not detected", "every process of this machine can be a peer")
    } else {
        Good.with(
            format!("detected: {}", hints.join(", ")),
            "a peer in another container must share the location of the address (a directory for a path, the \
             network namespace for @name), the pid namespace and the user namespace",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_recognized_by_name() {
        for name in [
            "node",
            "nodejs",
            "python3.12",
            "python",
            "bun",
            "electron",
            "php8.2",
            "node20",
            "sh",
        ] {
            assert!(
                is_interpreter(Path::new("/usr/bin").join(name).as_path()),
                "{name}"
            );
        }
        assert!(is_interpreter(Path::new("/usr/bin/node (deleted)")));
        for name in ["orders", "noded", "nodemon-service", "my-python-app", ""] {
            assert!(
                !is_interpreter(Path::new("/usr/bin").join(name).as_path()),
                "{name}"
            );
        }
    }
}
