//! A process that measures: started, waited for, and ended where it takes too long.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The last line of what the program prints. Its last line of errors is the error where it fails.
pub fn last_line(program: &Path, arguments: &[&str], limit: Duration) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Asleep until it ends: looking every few milliseconds would take a core from what is measured.
    if !ends_within(&child, limit)? {
        child.kill()?;
        child.wait()?;
        bail!("took too long");
    }
    let status = child.wait()?;
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().context("piped")?.read_to_string(&mut out)?;
    child.stderr.take().context("piped")?.read_to_string(&mut err)?;
    if !status.success() {
        bail!("{}", err.lines().last().unwrap_or("ended without a word"));
    }
    match out.lines().last() {
        Some(line) => Ok(line.to_owned()),
        None => bail!("{}", err.lines().last().unwrap_or("said nothing")),
    }
}

fn ends_within(child: &Child, limit: Duration) -> Result<bool> {
    // SAFETY: pidfd_open takes two numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error()).context("pidfd_open");
    }
    // SAFETY: the descriptor was just made, and belongs to nothing else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which is there for the call.
    Ok(unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) } == 1)
}

/// Removes the files that a run cut short has left in shared memory.
pub fn sweep(tag: &str) {
    let Ok(files) = std::fs::read_dir("/dev/shm") else {
        return;
    };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().starts_with(&format!("{tag}.")) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// What is going on, on one line that the next one overwrites; nothing where no terminal is.
pub fn progress(doing: std::fmt::Arguments<'_>) {
    use std::io::{IsTerminal, Write};
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{doing}");
        let _ = out.flush();
    }
}
