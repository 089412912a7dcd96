//! The processes that a child consists of, and their end.
//!
//! A pidfd holds the child and the process that answered. Other descendants are found in /proc. A number that was read there
//! may be another process's a moment later, so a process is opened by its number and compared again before it gets a signal.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, OnceLock, Weak},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, readlinkat},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        stat::Mode,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, getpid, write},
};

use crate::{
    error::{Error, Result},
    fork::{Birth, PerProcess},
    peer::namespace::{InProc, cgroup_directories, in_proc},
    sys::{self, lock::Mutex, uninterrupted},
};

/// The processes of a child: the one that was started, the one that answered on the line, and their descendants.
/// [`ParentLine::processes`](crate::ParentLine::processes) returns it.
#[derive(Debug, Clone)]
pub struct ChildProcesses(Arc<Family>);

#[derive(Debug)]
struct Family {
    /// The inode number of the child's end of the line.
    line: u64,
    started: OnceLock<Started>,
    /// The process that answered, once the handshake has succeeded.
    peer: OnceLock<(i32, Arc<OwnedFd>)>,
    /// The cgroup that the policy names.
    cgroup: OnceLock<String>,
    /// A forked child of this process has a copy, and must kill nothing.
    birth: Birth,
}

/// The families of this process whose policy names a cgroup.
static IN_CGROUPS: PerProcess<Mutex<Vec<Weak<Family>>>> = PerProcess::new();

/// The process that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    /// `None` before Linux 5.3, and under a filter that denies pidfd_open. Then the child's end shows as the end of the line, unless
    /// another process has it as well.
    pub(crate) pidfd: Option<OwnedFd>,
    /// `None` if /proc does not show the process under this number.
    born: Option<u64>,
}

/// How often /proc is searched for processes that were forked since the last search. Those that were found are stopped, so only
/// a process that was not found yet can fork.
const SEARCHES: usize = 32;

/// The depth of the cgroups that are searched below the child's.
const DEPTH: usize = 16;

impl ChildProcesses {
    pub(crate) fn new(line: u64, birth: Birth) -> Self {
        Self(Arc::new(Family {
            line,
            started: OnceLock::new(),
            peer: OnceLock::new(),
            cgroup: OnceLock::new(),
            birth,
        }))
    }

    /// Names the process that was started. The first call counts.
    pub(crate) fn start(&self, pid: u32) -> Result<()> {
        self.0.birth.check()?;
        let started = Started::open(pid)?;
        let _ = self.0.started.set(started);
        Ok(())
    }

    pub(crate) fn started(&self) -> Option<&Started> {
        self.0.started.get()
    }

    pub(crate) fn answered(&self, pid: i32, pidfd: Arc<OwnedFd>) {
        let _ = self.0.peer.set((pid, pidfd));
    }

    pub(crate) fn in_cgroup(&self, name: &str) -> Result<()> {
        let _ = self.0.cgroup.set(name.to_owned());
        let mut families = IN_CGROUPS.get()?.lock();
        families.retain(|family| family.strong_count() > 0);
        families.push(Arc::downgrade(&self.0));
        Ok(())
    }

    /// Kills the child, the process that answered, and their descendants (SIGKILL).
    ///
    /// If [`Policy::cgroup`](crate::Policy::cgroup) names a cgroup that belongs to the child and that this process may write, everything in
    /// it is killed at once (`cgroup.kill`, Linux 5.14). A cgroup belongs to the child if it holds no process that is older than the
    /// child, and if no other live child of this process names it.
    ///
    /// Without such a cgroup, this kills the descendants that /proc shows, those whose parent has exited included if they still hold
    /// the line and have stayed in the session. A process that has left both is found only in a cgroup, or ends with its pid namespace.
    /// No process that is older than the child is killed.
    ///
    /// Does not wait for the processes. Returns `false` if the child may still run, because it is another user's or because
    /// this system has no pidfd (Linux 5.3): then use [`Child::kill`](std::process::Child::kill).
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child of the process that started them.
    pub fn kill(&self) -> Result<bool> {
        let family = &*self.0;
        family.birth.check()?;
        let Some(started) = family.started.get() else {
            return Ok(false);
        };
        if let Some(born) = started.born {
            family.kill_cgroup(started, born);
            let mut stopped = BTreeMap::<i32, OwnedFd>::new();
            for _ in 0..SEARCHES {
                let known = stopped.keys().copied().collect();
                let found = family.descendants(started, born, &known);
                let before = stopped.len();
                for process in found {
                    let Some(pidfd) = process.open() else { continue };
                    let _ = sys::process::signal(&pidfd, Signal::SIGSTOP);
                    stopped.insert(process.pid, pidfd);
                }
                if stopped.len() == before {
                    break;
                }
            }
            for pidfd in stopped.values() {
                let _ = sys::process::signal(pidfd, Signal::SIGKILL);
            }
        }
        if let Some((pid, pidfd)) = family.peer.get()
            && started.born.is_none_or(|born| {
                // An older process was not started by the child.
                Process::read(*pid).is_none_or(|peer| peer.born >= born)
            })
        {
            let _ = sys::process::signal(pidfd, Signal::SIGKILL);
        }
        let killed = |pidfd| sys::process::signal(pidfd, Signal::SIGKILL);
        Ok(matches!(
            started.pidfd.as_ref().map(killed),
            Some(Ok(()) | Err(Errno::ESRCH))
        ))
    }
}

impl Family {
    /// Whether the child or the process that answered is alive.
    fn is_alive(&self) -> bool {
        self.started.get().is_some_and(|started| !started.has_exited())
            || self.peer.get().is_some_and(|(_, pidfd)| is_alive(pidfd))
    }

    /// Returns the living processes that belong to the child, except those that are known.
    fn descendants(&self, started: &Started, born: u64, known: &BTreeSet<i32>) -> Vec<Process> {
        let processes = Process::all();
        let own = getpid().as_raw();
        let session = processes.iter().find(|process| process.pid == own);
        let session = session.map(|process| process.session);
        let mut members = known.clone();
        // Both were alive while /proc was read, so the numbers there were theirs.
        if started.pidfd.as_ref().is_some_and(is_alive) {
            members.insert(started.pid);
        }
        members.extend(
            self.peer
                .get()
                .filter(|(_, pidfd)| is_alive(pidfd))
                .map(|peer| peer.0),
        );
        let mut others: Vec<Process> = processes
            .into_iter()
            .filter(|process| process.born >= born && process.pid != own && !known.contains(&process.pid))
            .collect();
        let mut found = Vec::new();
        loop {
            let (new, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|process| {
                let related = [process.pid, process.parent, process.session];
                // A process that the child has passed the line to may be innocent. It can join no session of another process's.
                let in_session = Some(process.session) == session || process.session == started.pid;
                related.iter().any(|pid| members.contains(pid)) || (in_session && process.holds(self.line))
            });
            if new.is_empty() {
                return found;
            }
            members.extend(new.iter().map(|process| process.pid));
            found.extend(new);
            others = rest;
        }
    }

    /// Kills everything in the child's cgroup, if the cgroup is the child's alone.
    fn kill_cgroup(&self, started: &Started, born: u64) {
        let Some(name) = self.cgroup.get().filter(|_| !self.shares_cgroup()) else {
            return;
        };
        for directory in cgroup_directories(name).unwrap_or_default() {
            let mut inside = BTreeSet::new();
            if processes_below(&directory, DEPTH, &mut inside).is_err() {
                continue;
            }
            let is_own = inside.iter().all(|pid| match Process::read(*pid) {
                Some(process) => process.born >= born,
                None => {
                    *pid > 0 && matches!(sys::process::pidfd_open(Pid::from_raw(*pid)), Err(Errno::ESRCH))
                }
            });
            // Before the handshake has succeeded, the child may never have entered the cgroup.
            let is_entered = || {
                let found = self.descendants(started, born, &BTreeSet::new());
                found.iter().any(|process| inside.contains(&process.pid))
            };
            if is_own && !inside.is_empty() && (self.peer.get().is_some() || is_entered()) {
                let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let file = uninterrupted(|| openat(&directory, "cgroup.kill", flags, Mode::empty()));
                // Without the file, or the right to write it, the processes are killed one by one.
                let _ = file.and_then(|file| write(&file, b"1"));
            }
        }
    }

    fn shares_cgroup(&self) -> bool {
        let Some(families) = IN_CGROUPS.existing() else {
            return false;
        };
        let families = families.lock();
        families.iter().filter_map(Weak::upgrade).any(|family| {
            !std::ptr::eq(&raw const *family, self) && family.cgroup == self.cgroup && family.is_alive()
        })
    }
}

impl Started {
    fn open(pid: u32) -> Result<Self> {
        let gone = |errno: Errno| Error::PeerLost(format!("there is no process {pid}: {}", errno.desc()));
        let pid = i32::try_from(pid).map_err(|_| gone(Errno::ESRCH))?;
        let pidfd = match sys::process::pidfd_open(Pid::from_raw(pid)) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::ENOSYS | Errno::EPERM) => None,
            Err(errno @ (Errno::ESRCH | Errno::EINVAL)) => return Err(gone(errno)),
            Err(errno) => return Err(Error::system("a descriptor of the child (pidfd_open)", errno)),
        };
        let is_shown = matches!(in_proc(pid, pidfd.as_ref())?, InProc::Number(number) if number == pid);
        let born = Process::read(pid)
            .filter(|_| is_shown)
            .map(|process| process.born);
        Ok(Self { pid, pidfd, born })
    }

    /// Whether the child has exited. It may not have been waited for yet.
    pub(crate) fn has_exited(&self) -> bool {
        if let Some(pidfd) = &self.pidfd {
            return !is_alive(pidfd);
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match uninterrupted(|| waitid(Id::Pid(Pid::from_raw(self.pid)), flags)) {
            Ok(status) => status != WaitStatus::StillAlive,
            // It was waited for.
            Err(errno) => errno == Errno::ECHILD,
        }
    }

    /// Whether the child has exited or is about to: the kernel closes its end of the line before it reports the exit.
    pub(crate) fn is_exiting(&self) -> bool {
        self.has_exited() || Process::read(self.pid).is_some_and(|process| process.is_exiting)
    }
}

/// Whether the process of a pidfd has not exited.
pub(crate) fn is_alive(pidfd: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    uninterrupted(|| poll(&mut polled, PollTimeout::ZERO)) == Ok(0)
}

/// A process as /proc/PID/stat shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// The time of its start, in ticks since the machine's start.
    born: u64,
    is_exiting: bool,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = sys::file::read_whole(AT_FDCWD, &format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &String::from_utf8_lossy(&stat))
    }

    fn parse(pid: i32, stat: &str) -> Option<Self> {
        /// The kernel's `PF_EXITING`.
        const EXITING: u32 = 4;
        // The name, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let flags: u32 = fields.get(6)?.parse().ok()?;
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            born: fields.get(19)?.parse().ok()?,
            is_exiting: matches!(fields[0], "Z" | "X") || flags & EXITING != 0,
        })
    }

    /// Returns all processes that /proc shows and that are not exiting.
    fn all() -> Vec<Self> {
        let pids = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read)
            .filter(|process| !process.is_exiting)
            .collect()
    }

    /// Opens the process, if its number is still its own.
    fn open(&self) -> Option<OwnedFd> {
        let pidfd = sys::process::pidfd_open(Pid::from_raw(self.pid)).ok()?;
        let now = Self::read(self.pid)?;
        (now.born == self.born && is_alive(&pidfd)).then_some(pidfd)
    }

    /// Whether it has a descriptor of the socket with this inode number.
    fn holds(&self, socket: u64) -> bool {
        let directory = format!("/proc/{}/fd", self.pid);
        let socket = format!("socket:[{socket}]");
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        entries.flatten().any(|entry| {
            readlinkat(AT_FDCWD, &entry.path()).is_ok_and(|target| target.to_str() == Some(&socket))
        })
    }
}

/// Collects the processes of a cgroup and of those below it. The number of one that is not visible here is 0.
fn processes_below(directory: &OwnedFd, depth: usize, found: &mut BTreeSet<i32>) -> Result<(), Errno> {
    let text = sys::file::read_whole(directory, "cgroup.procs")?;
    for line in String::from_utf8_lossy(&text).lines() {
        found.insert(line.parse().map_err(|_| Errno::EINVAL)?);
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    for entry in entries.map_err(|_| Errno::EACCES)? {
        let entry = entry.map_err(|_| Errno::EACCES)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = match uninterrupted(|| openat(directory, &*entry.file_name(), flags, Mode::empty())) {
            // It was removed, so it is empty.
            Err(Errno::ENOENT) => continue,
            below => below?,
        };
        processes_below(&below, depth.checked_sub(1).ok_or(Errno::ELOOP)?, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let stat = "7 (a) R 1) S 3 4 5 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 1 0 1234 0";
        let process = Process {
            pid: 7,
            parent: 3,
            session: 5,
            born: 1234,
            is_exiting: true,
        };
        assert_eq!(Process::parse(7, stat), Some(process));
        for none in [
            "",
            "7 (a) S 3 4 5",
            "7 (a) S x 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 0",
        ] {
            assert_eq!(Process::parse(7, none), None, "{none:?}");
        }
    }

    #[test]
    fn this_process_is_seen_and_holds_its_sockets() {
        let own = Process::read(getpid().as_raw()).unwrap();
        assert!(!own.is_exiting);
        assert!(Process::all().iter().any(|process| process.pid == own.pid));
        assert!(own.open().is_some());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
        assert!(own.holds(inode));
        drop(socket);
        assert!(!own.holds(inode));
    }
}
