//! What this process may have: sizes, descriptors, signals.

use std::fs;

use nix::{
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
    unistd::gettid,
};

use crate::{
    doctor::finding::{About, Finding, default_region},
    signal::claim,
    sys,
};

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

const FILE_SIZE: About = About {
    name: "limit-file-size",
    title: "Largest file (RLIMIT_FSIZE)",
};

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

const DESCRIPTORS: About = About {
    name: "limit-descriptors",
    title: "Open files (RLIMIT_NOFILE)",
};

/// What a host holds while as many handshakes run side by side as it allows (64, at most eight descriptors each), and as
/// many newcomers wait (128, at most three each).
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

const SIGNALS: About = About {
    name: "limit-signals",
    title: "Queued signals (RLIMIT_SIGPENDING)",
};

pub(super) fn signals() -> Finding {
    let meaning = "as many tokens may be on their way to processes of this user, other signals included; an alarm needs none \
                   of that room";
    match limits(Resource::RLIMIT_SIGPENDING) {
        Ok((0, _, found)) => SIGNALS.limited(found, "there is no room for a token to this process: NO_SPACE"),
        Ok((_, _, found)) => SIGNALS.good(found, meaning),
        Err(why) => SIGNALS.limited(why, UNREADABLE),
    }
}

const TOKENS: About = About {
    name: "tokens",
    title: "Tokens (what comes with a realtime signal)",
};

pub(super) fn tokens() -> Finding {
    match claim::carry_all() {
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
