//! What stands around this process: a filter of system calls, a container.

use std::path::Path;

use crate::doctor::finding::{About, Finding, status_line};

const SECCOMP: About = About {
    name: "seccomp",
    title: "Filter of system calls (seccomp)",
};

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

const CONTAINER: About = About {
    name: "container",
    title: "Container",
};

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
