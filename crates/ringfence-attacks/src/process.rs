//! A spawned process that communicates in lines.
//!
//! Every role of this executable takes orders on standard input and answers on standard output, one line
//! each. So the rows order events by what they have received and never by sleeping. A process started here is
//! always killed and reaped here.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use crate::RowError;

/// The time limit for an answer that must come. It is generous, because the machine may be busy.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The next event of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// One line of its standard output.
    Line(String),
    /// It ended. The text says how.
    Exited(String),
    /// Nothing, within the time limit.
    Timeout,
}

/// A process of this test.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    orders: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Starts `command`. `name` identifies it in error messages.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self, RowError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| RowError::wrong(format!("{name} could not be started: {error}")))?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let (sender, lines) = mpsc::channel();
        if let Some(answers) = answers {
            thread::spawn(move || {
                for line in BufReader::new(answers).lines() {
                    let Ok(line) = line else { break };
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            name,
            child,
            orders,
            lines,
        })
    }

    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends an order.
    pub fn send_order(&mut self, order: &str) -> Result<(), RowError> {
        let name = self.name;
        let orders = self
            .orders
            .as_mut()
            .ok_or_else(|| RowError::wrong(format!("{name} no longer accepts orders")))?;
        orders
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|error| RowError::wrong(format!("could not send {order:?} to {name}: {error}")))
    }

    /// Waits for a line, or for the end of the process.
    pub fn next_event(&mut self, within: Duration) -> Event {
        let end = Instant::now() + within;
        match self.lines.recv_timeout(within) {
            Ok(line) => Event::Line(line),
            Err(RecvTimeoutError::Timeout) => Event::Timeout,
            // Its output is closed, usually because the process is just ending.
            Err(RecvTimeoutError::Disconnected) => loop {
                match self.child.try_wait() {
                    Ok(Some(status)) => break Event::Exited(describe_exit(status)),
                    Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                    _ => break Event::Timeout,
                }
            },
        }
    }

    /// Waits for a line that must come.
    pub fn line(&mut self) -> Result<String, RowError> {
        match self.next_event(TIME_LIMIT) {
            Event::Line(line) => Ok(line),
            other => Err(RowError::wrong(format!(
                "expected an answer from {}, got {other:?}",
                self.name
            ))),
        }
    }

    /// Waits for a line that starts with `start`, and returns the rest.
    pub fn line_after(&mut self, start: &str) -> Result<String, RowError> {
        let line = self.line()?;
        match line.strip_prefix(start) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(RowError::wrong(format!(
                "expected {start:?} from {}, got {line:?}",
                self.name
            ))),
        }
    }

    /// Sends an order and returns the answer.
    pub fn ask(&mut self, order: &str) -> Result<String, RowError> {
        self.send_order(order)?;
        self.line()
    }

    /// Sends an order and returns the answer, the end of the process, or a timeout.
    pub fn try_ask(&mut self, order: &str, within: Duration) -> Event {
        if self.send_order(order).is_err() {
            // A dead process cannot receive orders. Callers check how it died.
            return self.next_event(within);
        }
        self.next_event(within)
    }

    /// Waits until the process is a zombie, and does not reap it.
    pub fn wait_for_zombie(&self) -> Result<(), RowError> {
        let end = Instant::now() + TIME_LIMIT;
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        loop {
            match waitid(Id::Pid(self.pid()), flags) {
                Ok(WaitStatus::StillAlive) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Ok(()),
                Err(Errno::EINTR) => {}
                other => {
                    return Err(RowError::wrong(format!(
                        "{} did not become a zombie: {other:?}",
                        self.name
                    )));
                }
            }
        }
    }

    /// Stops it with SIGSTOP, as any process of the same user can.
    pub fn stop(&self) -> Result<(), RowError> {
        let refused = |errno| RowError::wrong(format!("{} could not be stopped: {errno}", self.name));
        kill(self.pid(), Signal::SIGSTOP).map_err(refused)?;
        let end = Instant::now() + TIME_LIMIT;
        while !is_stopped(self.pid()) {
            if Instant::now() > end {
                return Err(RowError::wrong(format!("{} did not stop", self.name)));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Continues it.
    pub fn resume(&self) -> Result<(), RowError> {
        kill(self.pid(), Signal::SIGCONT)
            .map_err(|errno| RowError::wrong(format!("{} could not be continued: {errno}", self.name)))
    }

    /// Kills it.
    pub fn kill(&mut self) {
        // A process that has already ended is not an error here.
        drop(self.child.kill());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        drop(self.child.wait());
    }
}

/// Returns a process's state letter from /proc/PID/stat.
pub fn state_of(pid: Pid) -> Option<char> {
    state_in(format!("/proc/{pid}/stat").as_ref())
}

fn state_in(stat: &Path) -> Option<char> {
    let text = fs::read_to_string(stat).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// Whether each of its threads has stopped. Until then the signal may not have reached some of them.
pub fn is_stopped(pid: Pid) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| {
        threads.flatten().all(|thread| {
            // A thread without a state has ended in the meantime.
            state_in(&thread.path().join("stat")).is_none_or(|state| state == 'T')
        })
    })
}

/// Describes how a process ended, for a reader of the table.
fn describe_exit(status: ExitStatus) -> String {
    match status.signal().and_then(|number| Signal::try_from(number).ok()) {
        Some(signal) => signal.as_str().to_owned(),
        None => status.to_string(),
    }
}
