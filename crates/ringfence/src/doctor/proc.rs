//! What this process sees of others.

use std::{fs, path::Path};

use nix::{
    sys::statfs::{PROC_SUPER_MAGIC, statfs},
    unistd::getpid,
};

use crate::{
    doctor::finding::{About, Finding, number_in},
    peer::process,
    sys,
};

const PROC: About = About {
    name: "proc",
    title: "Looking at processes (/proc)",
};

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

/// The option that hides other users' processes, where it is in force (proc(5)).
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

const PID_NAMESPACE: About = About {
    name: "pid-namespace",
    title: "Process numbers (pid namespace)",
};

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
