//! How far this process is open to others of its user: tracing, /proc, core dumps.

use nix::sys::resource::Resource;

use crate::{
    doctor::finding::{About, Finding, number_in},
    doctor::limits::{UNREADABLE, limits},
    sys,
};

const PTRACE: About = About {
    name: "ptrace-scope",
    title: "Tracing by the same user (Yama)",
};

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

const DUMPABLE: About = About {
    name: "dumpable",
    title: "Whether this process shows itself (dumpable)",
};

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

const CORE: About = About {
    name: "limit-core",
    title: "Core dumps (RLIMIT_CORE)",
};

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
