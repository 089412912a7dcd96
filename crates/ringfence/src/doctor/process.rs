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
    doctor::{About, Finding, default_region, number_in, status_line},
    peer::process,
    signal::claim,
    sys::{self, socket::new_line},
};

const PIDFD: About = About("pidfd", "Holding on to a process (pidfd_open)");

pub(super) fn pidfd() -> Finding {
    match sys::process::pidfd_open(getpid()) {
        Ok(_) => PIDFD.good(
            "works",
            "what is read of a peer in /proc is read between two looks that show that very process alive, and its \
             death is noticed even where its end of the line is kept open",
        ),
        Err(errno) => PIDFD.limited(
            format!("{} (Linux 5.3)", errno.desc()),
            "a peer is held by its number and its directory in /proc; its death is noticed by the end of the line \
             alone",
        ),
    }
}

const PEER_PIDFD: About = About("peer-pidfd", "The peer's process from its socket (SO_PEERPIDFD)");

pub(super) fn peer_pidfd() -> Finding {
    match new_line().and_then(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd)) {
        Ok(_) => PEER_PIDFD.good(
            "works",
            "the process that is looked at is the one that connected, even if its number has been given to another \
             since",
        ),
        Err(errno) => PEER_PIDFD.limited(
            format!("{} (Linux 6.5)", errno.desc()),
            "the peer's process is found by its number; one that ended in that moment could be taken for its \
             successor, who then still lacks the private line",
        ),
    }
}

const PEER_GROUPS: About = About("peer-groups", "The peer's groups from its socket (SO_PEERGROUPS)");

pub(super) fn peer_groups() -> Finding {
    match new_line().and_then(|(one, _other)| sys::socket::peer_groups(one.as_fd())) {
        Ok(groups) => PEER_GROUPS.good(
            format!("works; this process has {}", groups.len()),
            "a policy that asks for a gid finds it among the peer's supplementary groups as well",
        ),
        Err(errno) => PEER_GROUPS.limited(
            format!("{} (Linux 4.13)", errno.desc()),
            "a policy that asks for a gid finds the peer's effective one alone",
        ),
    }
}

const PIDFD_INFO: About = About("pidfd-info", "What a pidfd says of its process (PIDFD_GET_INFO)");

pub(super) fn pidfd_information() -> Finding {
    match sys::process::pidfd_open(getpid()).and_then(sys::process::pidfd_info) {
        Ok(info) => PIDFD_INFO.good(
            format!("works: pid {}, effective uid {}, gid {}", info.pid, info.uid, info.gid),
            "a peer's user, group and cgroup are looked at again through its pidfd, which names no other process",
        ),
        Err(errno) => PIDFD_INFO.limited(
            format!("{} (Linux 6.13)", errno.desc()),
            "a peer's user, group and cgroup are looked at again in /proc alone, between two looks that find it alive",
        ),
    }
}

const MEMBARRIER: About = About("membarrier", "Barriers for other processes (membarrier)");

pub(super) fn membarrier() -> Finding {
    match sys::process::supports_barriers().and_then(|known| sys::process::issue_barrier().map(|()| known)) {
        Ok(true) => MEMBARRIER.good(
            "global expedited: works",
            "sending takes no fence: the side that goes to sleep makes the barrier for both",
        ),
        Ok(false) | Err(_) => MEMBARRIER.limited(
            "global expedited: not here (Linux 4.16, and a sandbox that allows it)",
            "every send makes a full fence of its own: slower, and just as right",
        ),
    }
}

const PROC: About = About("proc", "Looking at processes (/proc)");

pub(super) fn proc() -> Finding {
    let refused = "no peer can be looked at, so every one is refused; mount /proc where this process runs";
    match statfs("/proc").map(|found| found.filesystem_type()) {
        Ok(PROC_SUPER_MAGIC) => {}
        Ok(_) => return PROC.missing("something else is mounted there", refused),
        Err(errno) => return PROC.missing(errno.desc(), refused),
    }
    let own = match process::own_executable() {
        Ok(own) => own,
        Err(errno) => {
            return PROC.missing(
                format!("/proc/self/exe cannot be looked at: {}", errno.desc()),
                "a policy that asks for the same executable refuses every peer; ask for uid, gid, cgroup or label",
            );
        }
    };
    let overflow = number_in("/proc/sys/kernel/overflowuid");
    if overflow.is_none() {
        return PROC.missing("/proc/sys/kernel/overflowuid cannot be read", refused);
    }
    match hidepid() {
        Some(hidden) => PROC.limited(
            format!("readable, own executable {own}; mounted with {hidden}"),
            "of another user's peer, the executable and supplementary groups cannot be seen, and a policy that asks for \
             them refuses it (before Linux 6.13 each policy does); mount /proc without hidepid, or give this process the \
             group that its gid= names",
        ),
        None => PROC.good(
            format!("readable, own executable {own}"),
            "a peer's executable and cgroup can be asked for",
        ),
    }
}

/// The mount option that hides other users' processes, if it is in effect (proc(5)).
fn hidepid() -> Option<String> {
    let text = sys::file::read_whole_text("/proc/self/mountinfo").ok()?;
    // proc(5), mountinfo: the fifth field is the mount point; what is mounted last hides the others.
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

const PID_NAMESPACE: About = About("pid-namespace", "Process numbers (pid namespace)");

pub(super) fn pid_namespace() -> Finding {
    let pid = getpid().as_raw();
    let shown = fs::read_link("/proc/self").unwrap_or_else(|_| "nothing".into());
    if shown.as_os_str() != pid.to_string().as_str() {
        return PID_NAMESPACE.missing(
            format!("this process is {pid}, and /proc calls it {}", shown.display()),
            "/proc shows another pid namespace, so a peer's number names a stranger there; mount a /proc of this \
             namespace",
        );
    }
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    let (which, meaning) = if namespace.as_deref() == Some(Path::new("pid:[4026531836]")) {
        (
            "the machine's own",
            "peers in a container's namespace are seen from here, but live in another: they are refused, unless the policy's namespace is any",
        )
    } else {
        (
            "one of its own",
            "a peer outside of this pid namespace is refused; let both share one (a container's pid option), or let any in \
             (the policy's namespace)",
        )
    };
    PID_NAMESPACE.good(
        format!("pid {pid}, and /proc agrees; the namespace is {which}"),
        meaning,
    )
}

const USER: About = About("user", "The user this process runs as");

pub(super) fn user() -> Finding {
    let (real, effective) = (getuid().as_raw(), geteuid().as_raw());
    let namespace = match sys::file::read_whole_text("/proc/self/uid_map") {
        Ok(map) if map.split_whitespace().eq(["0", "0", "4294967295"]) => "the machine's own user namespace",
        Ok(_) => "a user namespace of its own",
        Err(_) => "its user namespace cannot be told",
    };
    let found = format!(
        "uid {real}, effective {effective}; gid {}, effective {}; {namespace}",
        getgid(),
        getegid()
    );
    if number_in("/proc/sys/kernel/overflowuid") == Some(u64::from(effective)) {
        return USER.missing(
            format!("{found}; that is the overflow uid"),
            "every user who is not mapped here looks like this one, so peers refuse it; run it as a user that is \
             mapped and is no system's default",
        );
    }
    if real != effective {
        return USER.limited(
            found,
            "real and effective uid differ, so a policy that asks for the same uid refuses every peer; name the uids",
        );
    }
    if effective == 0 {
        return USER.limited(
            found,
            "a policy that asks for the same uid lets every process of root in, and root may read any memory; run \
             the two as a user of their own",
        );
    }
    USER.good(
        found,
        "other users are kept out by the kernel; processes of this user are told apart only by what a policy asks \
         besides, so give the two a user of their own",
    )
}

const LABEL: About = About("label", "Security label (SO_PEERSEC)");

pub(super) fn label() -> Finding {
    let none = "a policy cannot ask for a label: it would refuse every peer";
    match new_line().and_then(|(one, _other)| sys::socket::peer_label(one.as_fd())) {
        Ok(label) if label.is_empty() => LABEL.limited("empty", none),
        Ok(label) if label.starts_with("unconfined") => LABEL.limited(
            label,
            "this process has no profile: its label tells it from no other process; confine it, and let the policy ask for that",
        ),
        Ok(label) => LABEL.good(
            label,
            "a policy can ask for it: a label is given by the administrator, not by the user",
        ),
        Err(errno) => LABEL.limited(
            format!("{}: no security module gives one", errno.desc()),
            none,
        ),
    }
}

const EXECUTABLE: About = About("executable", "What \"the same executable\" says here");

/// Programs that run other programs: what they execute is in an argument, or in an environment variable.
const INTERPRETERS: &str = "bash beam.smp bun busybox dash deno dotnet electron java julia ksh lua luajit mono \
    node nodejs perl php pwsh pypy python qemu-aarch64 qemu-x86_64 R ruby sh tclsh wine64-preloader zsh";

fn is_interpreter(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // A file that was replaced since it was started.
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    // python3.12, php8.2, ruby3.1, node20, qemu-x86_64-static.
    let name = name.strip_suffix("-static").unwrap_or(name);
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    INTERPRETERS
        .split(' ')
        .any(|known| known == name || known == bare)
}

pub(super) fn executable() -> Finding {
    match process::own_executable() {
        Ok(own) if is_interpreter(&own.path) => EXECUTABLE.limited(
            format!("{}, which runs any script", own.path.display()),
            "\"same executable\" proves nothing here: every script of the same user runs it; use a user, a group or a \
             cgroup of their own, or build a single executable",
        ),
        Ok(own) => EXECUTABLE.good(
            own.path.display().to_string(),
            "\"same executable\" keeps accidents out; it is no boundary against the same user, who can load other \
             code into it (LD_PRELOAD, ptrace)",
        ),
        Err(errno) => EXECUTABLE.missing(
            errno.desc(),
            "a policy that asks for the same executable refuses every peer; ask for uid, gid, cgroup or label",
        ),
    }
}

/// Soft and hard limit, or what kept them from being read.
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

pub(super) const UNREADABLE: &str = "the limit cannot be read, so it is found out when it is hit";

const FILE_SIZE: About = About("limit-file-size", "Largest file (RLIMIT_FSIZE)");

pub(super) fn file_size() -> Finding {
    let region = default_region();
    match limits(Resource::RLIMIT_FSIZE) {
        Ok((soft, _, found)) if soft >= region => {
            FILE_SIZE.good(found, "shared objects are files to the kernel, and a default ring is below the limit")
        }
        Ok((_, _, found)) => FILE_SIZE.limited(
            found,
            format!(
                "a default ring takes an object of {region} bytes and is refused with NO_SPACE; raise it (ulimit -f), \
                 or ask for a smaller capacity"
            ),
        ),
        Err(why) => FILE_SIZE.limited(why, UNREADABLE),
    }
}

const DESCRIPTORS: About = About("limit-descriptors", "Open files (RLIMIT_NOFILE)");

/// The descriptors that a host holds at its limits: 64 handshakes in parallel with at most eight each, and 128 waiting
/// clients with at most three each.
const DESCRIPTORS_WANTED: u64 = 896;

pub(super) fn descriptors() -> Finding {
    let used = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    match limits(Resource::RLIMIT_NOFILE) {
        Ok((soft, _, found)) if soft.saturating_sub(used) >= DESCRIPTORS_WANTED => DESCRIPTORS.good(
            format!("{found}; {used} open"),
            "an open channel holds two (the line and the pidfd), its host one or two more (the address and its lock)",
        ),
        Ok((_, _, found)) => DESCRIPTORS.limited(
            format!("{found}; {used} open"),
            format!(
                "a host with many newcomers at once may need {DESCRIPTORS_WANTED} more and fails with NO_SPACE; raise \
                 it (ulimit -n)"
            ),
        ),
        Err(why) => DESCRIPTORS.limited(why, UNREADABLE),
    }
}

const SIGNALS: About = About("limit-signals", "Queued signals (RLIMIT_SIGPENDING)");

pub(super) fn signals() -> Finding {
    let meaning = "as many tokens may be on their way to processes of this user, other signals included; an alarm needs none \
                   of that room";
    match limits(Resource::RLIMIT_SIGPENDING) {
        Ok((0, _, found)) => SIGNALS.limited(found, "there is no room for a token to this process: NO_SPACE"),
        Ok((_, _, found)) => SIGNALS.good(found, meaning),
        Err(why) => SIGNALS.limited(why, UNREADABLE),
    }
}

const TOKENS: About = About("tokens", "Tokens (what comes with a realtime signal)");

pub(super) fn tokens() -> Finding {
    match claim::carries_all() {
        Ok(true) if sys::process::pidfd_open_thread(gettid().as_raw()).is_ok() => TOKENS.good(
            "all of it arrives; threads are held (PIDFD_THREAD)",
            "a token carries the secret that tells it from what others make up, and goes to the peer's thread alone",
        ),
        Ok(true) => TOKENS.limited(
            "all of it arrives; threads cannot be held (Linux 6.9)",
            "a token carries the secret that tells it from what others make up, and goes to the peer's thread by its \
             number, which is looked at in the moment before",
        ),
        Ok(false) => TOKENS.missing(
            "what lies behind the value is lost",
            "this process can be sent no tokens: UNSUPPORTED for its peers",
        ),
        Err(errno) => TOKENS.limited(
            errno.desc(),
            "whether this process can be sent tokens cannot be tried now",
        ),
    }
}

const PTRACE: About = About("ptrace-scope", "Tracing by the same user (Yama)");

fn yama() -> Option<u64> {
    number_in("/proc/sys/kernel/yama/ptrace_scope")
}

pub(super) fn ptrace_scope() -> Finding {
    match yama() {
        None | Some(0) => PTRACE.limited(
            if yama().is_some() {
                "kernel.yama.ptrace_scope=0"
            } else {
                "no Yama in this kernel"
            },
            "any process of the same user may read and write this one's memory, channel included; run the two under \
             a user of their own",
        ),
        Some(1) => PTRACE.good(
            "kernel.yama.ptrace_scope=1",
            "processes of the same user cannot attach to this one, but those that started it can; the kernel still \
             shows them its open files",
        ),
        Some(scope) => PTRACE.good(
            format!("kernel.yama.ptrace_scope={scope}"),
            "processes of the same user cannot attach to this one; the kernel still shows them its open files",
        ),
    }
}

const DUMPABLE: About = About("dumpable", "Whether this process shows itself (dumpable)");

pub(super) fn dumpable() -> Finding {
    match sys::process::dumpable() {
        Ok(1) if yama().is_some_and(|scope| scope > 0) => DUMPABLE.good(
            "dumpable",
            "a peer of the same user can look up this process's executable; against that user's other processes its \
             memory has Yama alone",
        ),
        Ok(1) => DUMPABLE.limited(
            "dumpable",
            "a peer of the same user can look up this process's executable, and every process of that user can read \
             its memory; run it under a user of its own",
        ),
        Ok(value) => DUMPABLE.limited(
            format!("not dumpable ({value})"),
            "memory and open files are closed to the same user, and so is the executable: a peer whose policy asks \
             for it refuses this process unless it has CAP_SYS_PTRACE; let policies ask for uid, gid, cgroup or label",
        ),
        Err(errno) => DUMPABLE.limited(errno.desc(), "it cannot be told who may read this process's memory"),
    }
}

const CORE: About = About("limit-core", "Core dumps (RLIMIT_CORE)");

pub(super) fn core() -> Finding {
    let pattern = sys::file::read_whole_text("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let piped = pattern.starts_with('|');
    let dumpable = sys::process::dumpable().is_ok_and(|value| value == 1);
    match limits(Resource::RLIMIT_CORE) {
        Ok((_, _, found)) if !dumpable => CORE.good(found, "this process is not dumpable, so it leaves no core"),
        Ok((0, 0, found)) if !piped => CORE.good(found, "a crash of this process leaves nothing of its memory"),
        Ok((_, _, found)) => CORE.limited(
            if piped {
                format!("{found}; cores go to a program ({})", pattern.trim())
            } else {
                found
            },
            if piped {
                "a core does not hold the rings (MADV_DONTDUMP), but it holds what was copied out of them, and goes to \
                 that program whatever the limit"
            } else {
                "a core does not hold the rings (MADV_DONTDUMP), but it holds what was copied out of them; a process of \
                 the same user may raise the limit: set the hard one to 0 (ulimit -Hc 0)"
            },
        ),
        Err(why) => CORE.limited(why, UNREADABLE),
    }
}

const SECCOMP: About = About("seccomp", "Filter of system calls (seccomp)");

pub(super) fn seccomp() -> Finding {
    match status_line("Seccomp").as_deref() {
        Some("0") => SECCOMP.good("none", "no system call is kept from this process"),
        Some("2") => SECCOMP.good(
            "a filter is in force",
            "what it keeps from this process shows in the findings above: they were tried under it",
        ),
        Some(other) => SECCOMP.limited(
            format!("mode {other}"),
            "this process may make hardly any system call, so no channel can be made",
        ),
        None => SECCOMP.limited(
            "/proc/self/status does not say",
            "what it may keep from this process shows in the findings above: they were tried under it",
        ),
    }
}

const CONTAINER: About = About("container", "Container");

pub(super) fn container() -> Finding {
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
        CONTAINER.good("no sign of one", "every process of this machine is within reach")
    } else {
        CONTAINER.good(
            format!("signs of one: {}", hints.join(", ")),
            "a peer in another container must share what the address lives in (a directory for a path, the network \
             namespace for @name), the pid namespace, and the user namespace",
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
