//! A parent and a child that it starts. The parent leaves the child an end of a line, so there is no address that another process
//! could take first, or connect to.
//!
//! The line is a socketpair, both of whose ends are close-on-exec. The child's end loses that in the child alone, after
//! the fork. A variable in its environment, [`LINE_VARIABLE`], is the number of the descriptor. A grandchild inherits the
//! variable but not the line, so the number alone proves nothing: the descriptor must be a socket on which another process
//! has left the mark of a line, with its credentials.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    poll::PollFlags,
    sys::{
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::{SFlag, fstat},
    },
    unistd::{dup2_raw, dup2_stdin, pipe2},
};

use crate::{
    channel::Channel,
    error::{Error, OrSystem, Result, SILENT_CHILD},
    evidence::{EvidenceLog, LINE_FROM_PARENT, LINE_TO_CHILD},
    fork::OwnerProcess,
    handshake::frame::Meeting,
    handshake::line,
    handshake::parts::{ExpectedChild, Side},
    options::Options,
    peer::family::{ChildProcesses, Started, is_alive, is_exiting},
    signal::barriers,
    sys::{self, lock::Mutex},
    wait::deadline::Deadline,
    wake::attachments::PeerSocket,
};

/// The longest time that the line of a child may stay open after the child has exited: a process that another thread starts has a copy
/// of each descriptor between its fork and its exec. After that, the child is assumed to have passed it on.
const FORK_TO_EXEC: Duration = Duration::from_secs(1);

/// The environment variable that tells a child of its line: the number of the descriptor. It is known before the start, so a
/// launcher that clears the environment can set it (`bwrap --clearenv --setenv RINGFENCE_LINE 3`).
pub const LINE_VARIABLE: &str = "RINGFENCE_LINE";

/// Starts a program that inherits one end of a private line. No other process has that end.
///
/// The program calls [`from_parent`], and this process calls [`ParentLine::channel`]. The rest of the command (arguments,
/// environment, standard input and output) stays as it was. The caller waits for the child, as with [`Command::spawn`].
///
/// ```no_run
/// use std::process::Command;
/// use ringfence::{Options, Policy, spawn};
///
/// # fn main() -> ringfence::Result<()> {
/// let (mut child, line) = spawn(Command::new("/usr/lib/app/worker"))?;
/// // Another program than this one: the policy must name it.
/// let options = Options::new().policy(Policy::new().executables(["/usr/lib/app/worker"]));
/// let (mut sender, _receiver) = line.channel(&options)?.split();
/// sender.send(b"begin")?;
/// # child.wait().ok();
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if the program cannot be started; [`Error::NoSpace`].
pub fn spawn(command: Command) -> Result<(Child, ParentLine)> {
    spawn_with(command, LinePlace::default())
}

/// The place where a child finds its end of the line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinePlace {
    /// Descriptor 3, or the next number at which this process leaves its children nothing. The number is known before the start
    /// of a process that leaves its children only the standard descriptors, which most do.
    #[default]
    Descriptor,
    /// Standard input, for launchers that close all descriptors but the standard ones.
    Stdin,
}

/// As [`spawn`], with a place for the line.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with(mut command: Command, place: LinePlace) -> Result<(Child, ParentLine)> {
    let (line, child_end) = private_line()?;
    let (number, _reserved) = match place {
        LinePlace::Stdin => (STANDARD_INPUT, None),
        LinePlace::Descriptor => {
            let number = free_descriptor_number()?;
            // Keeps the number from the pipe by which the standard library reports a failed start.
            let reserved = sys::uninterrupted(|| fcntl(&child_end, FcntlArg::F_DUPFD_CLOEXEC(number)))
                // SAFETY: the call has just made this descriptor.
                .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
                .or_system("a private line")?;
            (number, Some(reserved))
        }
    };
    command.env(LINE_VARIABLE, number.to_string());
    let inherit = move || {
        if child_end.as_fd().as_raw_fd() == number {
            fcntl(&child_end, FcntlArg::F_SETFD(FdFlag::empty()))?;
        } else {
            // SAFETY: whatever this process had at the number is close-on-exec or its standard input, and this copy of the process
            // executes the program next.
            let _ = unsafe { dup2_raw(&child_end, number) }?.into_raw_fd();
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call, and touches nothing that another thread may have held.
    unsafe { command.pre_exec(inherit) };
    let program = command.get_program().to_owned();
    let started = command.spawn();
    // Drops this process's copy of the child's end: when the child exits, the line ends.
    drop(command);
    let mut child = started.map_err(|error| {
        let what = format!("starting {}", program.display());
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => Error::system(what, errno),
            Some(Errno::EAGAIN) => Error::no_space(what, "no more processes are allowed"),
            _ => Error::invalid(format!("{what}: {error}")),
        }
    })?;
    if let Err(error) = line.started(child.id()) {
        // The caller does not get the child, so it is ended here.
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok((child, line))
}

/// Returns the first number above the standard descriptors that no descriptor has, except one that is closed on exec.
fn free_descriptor_number() -> Result<RawFd> {
    for number in STANDARD_INPUT + 3.. {
        // SAFETY: used for this call only, which answers EBADF if nothing is open there.
        let there = unsafe { BorrowedFd::borrow_raw(number) };
        match sys::uninterrupted(|| fcntl(there, FcntlArg::F_GETFD)) {
            Err(Errno::EBADF) => return Ok(number),
            Ok(flags) if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) => return Ok(number),
            Ok(_) => {}
            Err(errno) => return Err(Error::system("a number for the line", errno)),
        }
    }
    Err(Error::system("a number for the line", Errno::EMFILE))
}

/// Creates a line between this process and a child that is to be started, for a program that starts its child by other means.
/// Other programs call [`spawn`].
///
/// # Errors
/// [`Error::NoSpace`] if descriptors have run out.
pub fn private_line() -> Result<(ParentLine, ChildLine)> {
    let owner = OwnerProcess::current()?;
    let (line, child_end) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .or_system("a private line")?;
    let number = sys::uninterrupted(|| fstat(&child_end))
        .or_system("a private line")?
        .st_ino;
    line::prepare(&line, &child_end)?;
    Ok((
        ParentLine {
            line,
            processes: ChildProcesses::new(number, owner),
            admit: Admit::Child,
            owner,
        },
        ChildLine { line: child_end },
    ))
}

/// The process that may answer on the line of a child.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Admit {
    /// The process that was started.
    #[default]
    Child,
    /// Any one process that has the line from the process that was started, however often that one forks. For launchers
    /// such as `sh -c`, `bwrap`, `unshare` or `timeout`. The first process that answers is the peer: the kernel names the
    /// maker of the socket pair that it passes, and a pidfd holds it. Every other process is refused.
    ///
    /// The policy's namespace is then [`Namespace::Any`](crate::Namespace::Any) unless the program sets it, since launchers
    /// make namespaces. The policy's other checks apply to the process that answers.
    Descendant,
}

impl FromStr for Admit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "child" => Ok(Self::Child),
            "descendant" => Ok(Self::Descendant),
            _ => Err(Error::invalid(format!(
                "admit must be child or descendant, not {text:?}"
            ))),
        }
    }
}

/// The parent's end of a line. Dropping it makes the child's handshake fail.
#[derive(Debug)]
pub struct ParentLine {
    line: OwnedFd,
    processes: ChildProcesses,
    admit: Admit,
    /// A forked child of this process has a copy, and must not use it.
    owner: OwnerProcess,
}

/// The child's end of a line, close-on-exec. A program that starts the child leaves it a descriptor of this that is not
/// close-on-exec (by dup2(2), between fork and exec), sets [`LINE_VARIABLE`] to its number, and drops this afterwards. The
/// number may be 0, for a launcher that closes all descriptors but the standard ones.
#[derive(Debug)]
pub struct ChildLine {
    line: OwnedFd,
}

impl AsFd for ChildLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}

impl ParentLine {
    /// Sets which process may answer. [`Admit::Child`] by default.
    #[must_use]
    pub const fn admit(mut self, admit: Admit) -> Self {
        self.admit = admit;
        self
    }

    /// Names the process that was started. It must be the one that answers, unless [`ParentLine::admit`] says otherwise, and
    /// [`ParentLine::channel`] waits for its end as well. To be called before the process is waited for (wait(2)): until then no other process can have its number.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if there is no such process; [`Error::NoSpace`].
    pub fn started(&self, pid: u32) -> Result<()> {
        self.processes.start(pid)
    }

    /// Returns the processes that [`ParentLine::started`] stands for, by which they can be killed.
    #[must_use]
    pub fn processes(&self) -> ChildProcesses {
        self.processes.clone()
    }

    /// The channel with the child, once that has called [`from_parent`]. This side is the host.
    ///
    /// The policy is the same as everywhere: by default the child must run this very executable, as this user. If another program was
    /// started, the policy must name it ([`Policy::executables`](crate::Policy::executables)), and
    /// the child's must name this one.
    ///
    /// Blocks until the child has answered: [`Options::handshake_timeout`] is for its start, up to its first word, and anew for the
    /// handshake.
    ///
    /// # Errors
    /// As [`join`](crate::join). Also [`Error::ChildExited`] if the child has exited and no process has its end of the line;
    /// [`Error::PeerLost`] if the child has closed that end and still runs, or has exited and left it to another process that may not
    /// answer (reported up to a second after the exit); [`Error::HandshakeTimeout`] if no process answers; and [`Error::PeerRefused`] if another process answers, which has the line
    /// from the child. If this fails after a descendant has answered, that process is killed: the caller could not identify it.
    /// [`ChildProcesses::kill`] kills the others.
    pub fn channel(self, options: &Options) -> Result<Channel> {
        self.owner.check()?;
        let mut options = options.clone().checked()?;
        if self.admit == Admit::Descendant {
            options.policy = options.policy.for_descendant();
        }
        if let Some(cgroup) = options.policy.cgroup_name() {
            self.processes.in_cgroup(cgroup)?;
        }
        let options = &options;
        let mut record = EvidenceLog::default();
        record.met(LINE_TO_CHILD, "made by this process");
        let child = self.processes.started();
        let pidfd = child.map(Started::pidfd).transpose()?.flatten();
        barriers::register_early();
        self.wait(pidfd.as_deref(), &deadline(options))?;
        let deadline = deadline(options);
        let expected = match (self.admit, child) {
            (Admit::Descendant, _) => ExpectedChild::Descendant,
            (Admit::Child, Some(child)) => {
                ExpectedChild::Process(child.pid, pidfd.as_deref().map(AsFd::as_fd))
            }
            (Admit::Child, None) => ExpectedChild::Unknown,
        };
        let side = Side::new(&"the child's line", options, &deadline, Meeting::Family);
        let mut answered = None;
        match side.parent(self.line, expected, &mut answered, record) {
            Ok(parts) => {
                // A process that is known by its claim alone is not killed.
                if let (Some((pid, _)), Some(pidfd)) = (answered, parts.process.pidfd()) {
                    self.processes.set_peer(pid, pidfd);
                }
                Ok(Channel::assemble(parts, None, options))
            }
            Err(error) => Err(handshake_error(
                error,
                self.admit,
                self.processes.started(),
                answered.as_ref(),
            )),
        }
    }

    /// Waits for the first byte, or for the end of every process that could send it.
    fn wait(&self, pidfd: Option<&OwnedFd>, deadline: &Deadline) -> Result<()> {
        let child = self.processes.started();
        let mut awaited = vec![(self.line.as_fd(), PollFlags::POLLIN)];
        // A launcher may exit and leave the line to a descendant.
        let exit = pidfd.map(|pidfd| (pidfd.as_fd(), PollFlags::POLLIN));
        awaited.extend(exit.filter(|_| self.admit == Admit::Child));
        deadline.wait_at(SILENT_CHILD, &awaited)?;
        // The child may have sent the reason before it exited, or another process may have a copy of the line for a moment.
        let end = Instant::now().checked_add(FORK_TO_EXEC);
        if !deadline.until(end).wait(&awaited[..1])? {
            return Err(Error::PeerLost(
                "the child has exited and left its end of the line to another process; admit a descendant to let that one answer".into(),
            ));
        }
        if sys::socket::unread(&self.line) != Ok(0) {
            return Ok(());
        }
        // No process has the line. A launcher exits a moment after the last one that had it.
        let exit = exit.filter(|_| self.admit == Admit::Descendant);
        if let Some(child) = child
            && (child.is_exiting() || (exit.is_some() && deadline.wait(exit.as_slice())?))
        {
            return Err(Error::ChildExited(child.pid));
        }
        Err(Error::PeerLost(match child {
            Some(child) => format!(
                "the child, process {}, still runs, and no process has its end of the line; if the launcher closes descriptors, leave \
                 the line on standard input",
                child.pid
            ),
            None => "no process has the child's end of the line".into(),
        }))
    }
}

/// The error for a handshake that failed once the process `answered` was known. Kills that process if it is not the child: the caller
/// could not identify it.
fn handshake_error(
    error: Error,
    admit: Admit,
    child: Option<&Started>,
    answered: Option<&(i32, Option<OwnedFd>)>,
) -> Error {
    let pidfd = answered.and_then(|(_, pidfd)| pidfd.as_ref());
    let exited = answered
        .zip(pidfd)
        .is_some_and(|((pid, _), pidfd)| is_exiting(*pid) || !is_alive(pidfd));
    if let (Admit::Descendant, Some(pidfd)) = (admit, pidfd) {
        // Best effort: it may have exited, or have become another user's.
        let _ = sys::signal::pidfd_signal(pidfd, Signal::SIGKILL as i32, None);
    }
    let is_child = |child: &&Started| match answered {
        Some((pid, _)) => *pid == child.pid,
        None => admit == Admit::Child,
    };
    match (error, child.filter(is_child), answered) {
        (Error::PeerLost(_), Some(child), _) if child.is_exiting() => Error::ChildExited(child.pid),
        (Error::PeerLost(why), None, Some((pid, _))) if exited => Error::PeerLost(format!(
            "process {pid}, to which the child had handed the line, exited during the handshake ({why})"
        )),
        (error, ..) => error,
    }
}

fn deadline(options: &Options) -> Deadline {
    options.deadline().within(options.handshake_timeout)
}

/// The channel with the parent, in a process that was started by [`spawn`], or by Node's. This side is the guest. It
/// works once in a process. Call it early: until then a process that this one starts inherits the line as
/// well, and could answer in its place (which the parent would refuse).
///
/// Blocks for [`Options::handshake_timeout`] at most.
///
/// # Ownership
/// The call takes over the descriptor that [`LINE_VARIABLE`] names, and closes it. It does so only for a socket that another process
/// has prepared as a line, so a socket that this process opened, connected or accepted is refused. Two cases remain for the caller:
/// do not use the inherited descriptor in another way, and do not call this in a forked child that executes no program while it still has
/// its parent's [`ChildLine`]; leave the child a duplicate.
///
/// ```no_run
/// use ringfence::{Options, from_parent};
///
/// # fn main() -> ringfence::Result<()> {
/// let (_sender, mut receiver) = from_parent(&Options::new())?.split();
/// let mut message = vec![0; 65536];
/// while let Some(length) = receiver.receive(&mut message)? {
///     println!("{} bytes", message[..length].len());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`join`](crate::join). Also [`Error::AddressInvalid`] in a process that was not left a line, or has taken it already, or whose
/// variable names something else, and [`Error::PeerLost`] if the parent has gone, or has dropped its end.
pub fn from_parent(options: &Options) -> Result<Channel> {
    let mut options = options.clone().checked()?;
    options.policy = options.policy.for_parent();
    let options = &options;
    let line = claim_line()?;
    let mut record = EvidenceLog::default();
    record.met(LINE_FROM_PARENT, format!("descriptor {}", line.as_raw_fd()));
    let deadline = deadline(options);
    let side = Side::new(&"the parent's line", options, &deadline, Meeting::Family).of_child();
    let parts = side.guest(PeerSocket::inherited(line), record)?;
    let parts = parts.ok_or_else(|| Error::PeerLost("the parent has gone without an answer".into()))?;
    Ok(Channel::assemble(parts, None, options))
}

/// The child's end, once.
fn claim_line() -> Result<OwnedFd> {
    /// Whether the line was taken. In a fork too: there it is its parent's, at the same number.
    static CLAIMED: Mutex<bool> = Mutex::for_try_lock(false);
    let invalid = |reason: String| Error::AddressInvalid {
        address: LINE_VARIABLE.into(),
        reason,
        source: None,
    };
    let value = std::env::var(LINE_VARIABLE).map_err(|_| {
        let reason = "it is not in the environment: no ringfence parent has started this process; start this program \
                      with `spawn`, and let launchers pass the variable on";
        invalid(reason.into())
    })?;
    let number: RawFd = value
        .parse()
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| invalid(format!("it is {value:?}, and not the number of a descriptor")))?;
    // A held lock means that another thread is taking the line, or that this process was forked at such a moment: then the line is its
    // parent's.
    let claimed = CLAIMED.try_lock().filter(|claimed| !**claimed);
    let mut claimed = claimed.ok_or_else(|| invalid("this process has taken its line already".into()))?;
    let other = |found: &str| {
        invalid(format!(
            "descriptor {number} is not the line that was left: {found}"
        ))
    };
    let lookup_failed = |errno: Errno| {
        Error::unless_short("the line that the parent has left", errno, |errno| {
            other(errno.desc())
        })
    };
    let line = inherited(number)
        .map_err(lookup_failed)?
        .ok_or_else(|| other("it is something else"))?;
    *claimed = true;
    Ok(line)
}

const STANDARD_INPUT: RawFd = 0;

/// The descriptor of that number, if it is a line of another process's. After an error it is as it was, and can be
/// taken later.
fn inherited(number: RawFd) -> Result<Option<OwnedFd>, Errno> {
    // SAFETY: used in this function alone, and not once it is owned. If nothing is open there, the first call answers EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let found = sys::uninterrupted(|| fstat(fd))?;
    let socket = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK;
    // A socket that this process has connected, accepted or made has another part of it as its owner, whatever the variable says.
    if !socket || !line::is_prepared_by_another(fd)? {
        return Ok(None);
    }
    if number == STANDARD_INPUT {
        // Standard input stays open, so that no other descriptor gets its number. It reads as empty from now on.
        let line = fd
            .try_clone_to_owned()
            .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
        let (empty, _) = pipe2(OFlag::O_CLOEXEC)?;
        sys::uninterrupted(|| dup2_stdin(&empty))?;
        return Ok(Some(line));
    }
    sys::uninterrupted(|| fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)))?;
    // SAFETY: no part of this program has made it, as was just checked, so it was inherited; it is the very line that the
    // parent has left for this call, and the call takes it once.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}
