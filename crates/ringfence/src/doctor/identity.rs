//! Who this process is to the policy of a peer.

use std::{os::fd::AsFd, path::Path};

use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::{
    doctor::finding::{About, Finding, number_in},
    doctor::peers::pair,
    peer::process,
    sys,
};

const USER: About = About {
    name: "user",
    title: "The user this process runs as",
};

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

const LABEL: About = About {
    name: "label",
    title: "Security label (SO_PEERSEC)",
};

pub(super) fn label() -> Finding {
    let none = "a policy cannot ask for a label: it would refuse every peer";
    match pair().and_then(|(one, _other)| sys::socket::peer_label(one.as_fd())) {
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

const EXECUTABLE: About = About {
    name: "executable",
    title: "What \"the same executable\" says here",
};

/// Programs that run other programs: what they execute is in an argument, or in an environment variable.
const INTERPRETERS: [&str; 29] = [
    "bash",
    "beam.smp",
    "bun",
    "busybox",
    "dash",
    "deno",
    "dotnet",
    "electron",
    "java",
    "julia",
    "ksh",
    "lua",
    "luajit",
    "mono",
    "node",
    "nodejs",
    "perl",
    "php",
    "pwsh",
    "pypy",
    "python",
    "qemu-aarch64",
    "qemu-x86_64",
    "R",
    "ruby",
    "sh",
    "tclsh",
    "wine64-preloader",
    "zsh",
];

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
    INTERPRETERS.contains(&name) || INTERPRETERS.contains(&bare)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_told_by_their_names() {
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
