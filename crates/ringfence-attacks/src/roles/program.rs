//! Orders that every test program obeys, apart from those about its channel: for example, to start another program.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, alarm, fork, getpid, pause},
};

/// Like [`super::serve`], with additional orders about the program itself.
pub(super) fn serve(mut answer: impl FnMut(&[&str]) -> Result<String, String>) -> Result<(), String> {
    super::serve(|order| match order {
        ["pid"] => Ok(getpid().to_string()),
        ["descriptors"] => Ok(inventory().len().to_string()),
        ["inventory"] => Ok(inventory().join(" ")),
        ["child"] => child_inherits(),
        ["own-memory"] => own_memory(),
        ["limit-memory", more] => limit_memory(more),
        ["exec", other] => exec_inventory(other),
        ["fork"] => fork_maps(),
        other => answer(other),
    })
}

/// Closes the descriptors that the test runner left open, so that later inventories show only this program's.
pub(super) fn forget_inherited() -> Result<(), String> {
    // SAFETY: this is the first call, so nothing in this process owns a descriptor beyond the standard
    // streams yet.
    Errno::result(unsafe { libc::close_range(3, u32::MAX, 0) })
        .map(drop)
        .map_err(|errno| format!("close_range: {errno}"))
}

fn status(name: &str) -> Result<u64, String> {
    let text = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .ok_or("no such line in /proc/self/status")?;
    let kilobytes: u64 = super::number(line.trim_matches([':', '\t', ' ', 'k', 'B']))?;
    Ok(kilobytes * 1024)
}

/// Returns the bytes of anonymous memory of this process. Shared memory does not count.
fn own_memory() -> Result<String, String> {
    status("RssAnon").map(|bytes| bytes.to_string())
}

/// Limits this process to `more` bytes of address space beyond what it has now.
fn limit_memory(more: &str) -> Result<String, String> {
    let limit = status("VmSize")? + super::number::<u64>(more)?;
    setrlimit(Resource::RLIMIT_AS, limit, limit).map_err(|errno| format!("setrlimit: {errno}"))?;
    Ok("limited".into())
}

/// Does nothing until the process is killed.
pub(super) fn idle() -> ! {
    loop {
        pause();
    }
}

/// Becomes another program, as any program may, without closing any descriptors.
fn exec_inventory(program: &str) -> Result<String, String> {
    Err(Command::new(program)
        .args(["role", "inventory"])
        .exec()
        .to_string())
}

/// Calls `what` while this process cannot open any descriptor.
pub(super) fn without_descriptors<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    let failed = |errno: Errno| format!("RLIMIT_NOFILE: {errno}");
    let (before, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    // Only the standard streams have numbers below this.
    setrlimit(Resource::RLIMIT_NOFILE, 3, most).map_err(failed)?;
    let done = what();
    setrlimit(Resource::RLIMIT_NOFILE, before, most).map_err(failed)?;
    Ok(done)
}

/// Returns what this process's descriptors refer to, as /proc/self/fd shows it. Sorted, one entry each.
pub(super) fn inventory() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let mut open: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            // Leave out the descriptor of the directory that is being read.
            let own = format!("/proc/{}/fd", std::process::id());
            (target.to_string_lossy() != own)
                .then(|| format!("{}={}", entry.file_name().to_string_lossy(), target.display()))
        })
        .collect();
    open.sort();
    open
}

/// Prints the inherited descriptors beyond the three standard streams.
pub(super) fn print_inventory() {
    let beyond: Vec<String> = inventory()
        .into_iter()
        .filter(|entry| {
            !["0=", "1=", "2="]
                .iter()
                .any(|standard| entry.starts_with(standard))
        })
        .collect();
    println!("[{}]", beyond.join(" "));
}

/// Starts another program, as any thread may at any time, and returns which descriptors it inherited.
pub(super) fn child_inherits() -> Result<String, String> {
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own)
        .args(["role", "inventory"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Forks without exec, calls `what` in the child, which prints the result, and returns how the child ended.
pub(super) fn in_child(what: impl FnOnce() -> String) -> Result<String, String> {
    /// Seconds after which a child counts as stuck; only waiting for a missing process takes that long.
    const LIMIT: u32 = 20;
    // SAFETY: the row tests precisely what a child may do in a copy of a process with several threads.
    match unsafe { fork() }.map_err(|errno| errno.to_string())? {
        ForkResult::Child => {
            alarm::set(LIMIT);
            let said = catch_unwind(AssertUnwindSafe(what));
            println!("child {}", said.as_deref().unwrap_or("panicked"));
            // SAFETY: _exit ends the process without running the exit handlers that its parent registered.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).map_err(|errno| errno.to_string())? {
            WaitStatus::Exited(_, 0) => Ok("ended well".into()),
            other => Ok(format!("ended {other:?}")),
        },
    }
}

/// Opens descriptors until the limit is reached.
pub(super) fn fill() -> Result<String, String> {
    setrlimit(Resource::RLIMIT_NOFILE, 256, 256).map_err(|errno| errno.to_string())?;
    loop {
        match fs::File::open("/dev/null") {
            // Keep it open for the lifetime of the process.
            Ok(file) => std::mem::forget(file),
            Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => return Ok("full".into()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Forks without exec, and returns which shared objects are mapped in the child.
fn fork_maps() -> Result<String, String> {
    // SAFETY: the child only waits for a signal, which is allowed after a fork of any process.
    match unsafe { fork() }.map_err(|errno| errno.to_string())? {
        ForkResult::Child => loop {
            pause();
        },
        ForkResult::Parent { child } => {
            let maps = fs::read_to_string(format!("/proc/{child}/maps"));
            // The child is not reaped yet, so its pid still names it.
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            let maps = maps.map_err(|error| error.to_string())?;
            let shared: Vec<&str> = maps
                .lines()
                .filter(|line| line.contains("/memfd:") || line.contains("/dev/shm/"))
                .filter_map(|line| line.split_whitespace().nth(5))
                .collect();
            Ok(format!("[{}]", shared.join(" ")))
        }
    }
}
