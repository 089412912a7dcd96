//! The processes that a child consists of, and their end.
//!
//! A pidfd holds the child and the process that answered. Other descendants are found in /proc. A number that was read there
//! may be another process's a moment later, so a process is opened by its number and compared again before it gets a signal.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, readlinkat},
    poll::PollFlags,
    sys::{
        signal::Signal,
        stat::Mode,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid, write},
};

use crate::{
    error::{Error, Result, is_denied},
    fork::{OwnerProcess, PerProcess},
    peer::namespace::{FixedNamespaces, InProc, cgroup_directories, proc_number},
    sys::{self, lock::Mutex, uninterrupted},
};

/// The processes of a child: the one that was started, the one that answered on the line, and their descendants.
/// [`ParentLine::processes`](crate::ParentLine::processes) returns it.
#[derive(Clone)]
pub struct ChildProcesses(Arc<Family>);

opaque! { [] ChildProcesses; }

struct Family {
    /// The inode number of the child's end of the line.
    line: u64,
    started: OnceLock<Started>,
    /// The process that answered, once the handshake has succeeded.
    peer: OnceLock<(i32, Pidfd)>,
    /// The descendants that were running when they were listed. Those that run still are found after their parents have exited.
    known: Mutex<BTreeSet<ProcessId>>,
    /// The cgroup that the policy names.
    cgroup: OnceLock<String>,
    /// A forked child of this process has a copy, and must kill nothing.
    owner: OwnerProcess,
}

/// The families of this process whose policy names a cgroup.
/// One stays in the list until its processes have exited, whatever the program has kept of it.
static IN_CGROUPS: PerProcess<Mutex<Vec<Arc<Family>>>> = PerProcess::new();

/// The process that was started.
pub(crate) struct Started {
    pub(crate) pid: i32,
    /// `None` before Linux 5.3, and under a filter that denies pidfd_open. Then the child's end shows as the end of the line, unless
    /// another process has it as well.
    pidfd: Option<Pidfd>,
    /// `None` if /proc does not show the process under this number.
    start_time: Option<u64>,
}

/// The pidfd of a process, until it is released.
struct Pidfd {
    pidfd: Mutex<Option<Arc<OwnedFd>>>,
    /// Finds the process again if it was released while it ran. `None` if /proc does not show the process.
    process: Option<Process>,
}

impl Pidfd {
    fn new(pidfd: Arc<OwnedFd>, process: Option<Process>) -> Self {
        Self {
            pidfd: Mutex::new(Some(pidfd)),
            process,
        }
    }

    /// `None`: it was released.
    fn get(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.lock().clone()
    }

    fn is_alive(&self) -> bool {
        match self.get() {
            Some(pidfd) => is_alive(&pidfd),
            None => self.process.as_ref().is_some_and(Process::is_running),
        }
    }

    /// Closes it if the process has exited or can be found again.
    fn release(&self) {
        if self.process.is_some() || !self.is_alive() {
            *self.pidfd.lock() = None;
        }
    }

    fn kill(&self) -> bool {
        let process = self.process.as_ref();
        match self.get().or_else(|| process?.open().map(Arc::new)) {
            Some(pidfd) => matches!(
                sys::signal::pidfd_signal(&*pidfd, Signal::SIGKILL as i32, None),
                Ok(()) | Err(Errno::ESRCH)
            ),
            None => process.is_none_or(|process| !process.is_running()),
        }
    }
}

/// The number of a process, and the time of its start: no other process has both.
type ProcessId = (i32, u64);

/// The processor time for a list of descendants.
const LIST_TIME: Duration = Duration::from_millis(10);

/// The most searches of /proc. Each finds the processes whose parent has exited since the last one.
const SEARCHES: usize = 32;

/// The processor time for all searches. A child with many processes and descriptors cannot delay its end for longer, and by keeping the
/// processors busy it makes no search end early.
const SEARCH_TIME: Duration = Duration::from_millis(500);

/// The processor time that this thread has used. A search ends at one.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::MAX, Duration::from)
}

/// The depth of the cgroups that are searched below the child's.
const DEPTH: usize = 16;

impl ChildProcesses {
    pub(crate) fn new(line: u64, owner: OwnerProcess) -> Self {
        Self(Arc::new(Family {
            line,
            started: OnceLock::new(),
            peer: OnceLock::new(),
            known: Mutex::new(BTreeSet::new()),
            cgroup: OnceLock::new(),
            owner,
        }))
    }

    /// Names the process that was started. The first call counts.
    pub(crate) fn start(&self, pid: u32) -> Result<()> {
        self.0.owner.check()?;
        let started = Started::open(pid)?;
        let _ = self.0.started.set(started);
        Ok(())
    }

    pub(crate) fn started(&self) -> Option<&Started> {
        self.0.started.get()
    }

    pub(crate) fn set_peer(&self, pid: i32, pidfd: Arc<OwnedFd>) {
        // Best effort: a process that is not found again keeps its pidfd until it has exited.
        // Once it has exited, the number may be another process's.
        let process = find_in_proc(pid, Some(&pidfd)).ok().flatten();
        let process = process.filter(|_| is_alive(&pidfd));
        let _ = self.0.peer.set((pid, Pidfd::new(pidfd, process)));
        // A launcher may keep a process that ends its sandbox and does not hold the line.
        self.list();
    }

    /// Lists the descendants of the child and of the process that answered, so that [`ChildProcesses::kill`] finds those whose
    /// parents exit before it is called.
    #[doc(hidden)]
    pub fn list(&self) {
        let until = processor_time().saturating_add(LIST_TIME);
        let peer = self.0.peer.get().map(|(pid, pidfd)| (*pid, pidfd));
        let started = self
            .started()
            .and_then(|started| Some((started.pid, started.pidfd.as_ref()?)));
        let pids = started.into_iter().chain(peer);
        // It was alive after the read, so the number was still its own.
        let read = pids.filter_map(|(pid, pidfd)| Process::read(pid).filter(|_| pidfd.is_alive()));
        let mut next: Vec<_> = read.collect();
        let mut found = BTreeSet::new();
        while let Some(process) = next.pop()
            && processor_time() < until
        {
            let children = process.children();
            // It still had its number after its children were read.
            if process.is_running() && found.insert(process.id()) {
                next.extend(children);
            }
        }
        self.0.known.lock().extend(found);
    }

    /// Closes the descriptors of processes, once the child has exited and the channel has ended: the program may keep this for long.
    /// [`ChildProcesses::kill`] then finds a process that still runs in /proc.
    #[doc(hidden)]
    pub fn release(&self) {
        let started = self.0.started.get().and_then(|started| started.pidfd.as_ref());
        let peer = self.0.peer.get().map(|(_, pidfd)| pidfd);
        for pidfd in started.into_iter().chain(peer) {
            pidfd.release();
        }
    }

    pub(crate) fn in_cgroup(&self, name: &str) -> Result<()> {
        let _ = self.0.cgroup.set(name.to_owned());
        let mut families = IN_CGROUPS.get()?.lock();
        families.retain(|family| Arc::strong_count(family) > 1 || family.is_alive());
        families.push(Arc::clone(&self.0));
        Ok(())
    }

    /// Kills the child, the process that answered, and their descendants (SIGKILL).
    ///
    /// If [`Policy::cgroup`](crate::Policy::cgroup) names a cgroup that belongs to the child and that this process may write, everything in
    /// it is killed at once (`cgroup.kill`, Linux 5.14). A cgroup belongs to the child if it holds no process that is older than the
    /// child, and if no other live child of this process names it.
    ///
    /// Without such a cgroup, this kills the descendants that /proc shows, and those that were running when the handshake succeeded. Others
    /// whose parent has exited are included if they still hold the line and have stayed in the session, unless this process has become
    /// their parent (as process 1 of a container, for one): then they look like its other children. A process that is not found ends with
    /// its cgroup or pid namespace.
    /// No process that is older than the child is killed. The search takes half a second of processor time at most.
    ///
    /// Does not wait for the processes. Returns `false` if the child may still run, because it is another user's or because
    /// this system has no pidfd (Linux 5.3): then use [`Child::kill`](std::process::Child::kill).
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child of the process that started them.
    pub fn kill(&self) -> Result<bool> {
        let family = &*self.0;
        family.owner.check()?;
        let Some(started) = family.started.get() else {
            return Ok(false);
        };
        if let Some(start_time) = started.start_time {
            let until = processor_time().saturating_add(SEARCH_TIME);
            family.kill_cgroup(started, start_time, until);
            let mut found = BTreeSet::new();
            for _ in 0..SEARCHES {
                let mut next = family.descendants(started, start_time, &found, until);
                if next.is_empty() || processor_time() >= until {
                    break;
                }
                while let Some(process) = next.pop() {
                    if found.insert(process.id()) {
                        next.extend(process.kill(until));
                    }
                }
            }
        }
        if let Some((pid, pidfd)) = family.peer.get()
            && started.start_time.is_none_or(|start_time| {
                // An older process was not started by the child.
                Process::read(*pid).is_none_or(|peer| peer.start_time >= start_time)
            })
        {
            pidfd.kill();
        }
        Ok(started.pidfd.as_ref().is_some_and(Pidfd::kill))
    }
}

impl Family {
    /// Whether the child or the process that answered is alive.
    fn is_alive(&self) -> bool {
        let started = self.started.get().is_some_and(|started| !started.has_exited());
        let peer = self.peer.get().is_some_and(|(_, pidfd)| pidfd.is_alive());
        started || peer
    }

    /// Returns the living processes that belong to the child, except those that were found before. The youngest come first.
    fn descendants(
        &self,
        started: &Started,
        start_time: u64,
        before: &BTreeSet<ProcessId>,
        until: Duration,
    ) -> Vec<Process> {
        let processes: BTreeMap<i32, Process> = Process::all().collect();
        let own = getpid().as_raw();
        let session = processes.get(&own).map(|process| process.session);
        // In each session, and below each parent.
        let mut related = BTreeMap::<i32, Vec<i32>>::new();
        for process in processes.values() {
            for number in [process.parent, process.session] {
                related.entry(number).or_default().push(process.pid);
            }
        }
        let mut members = BTreeSet::new();
        let mut next = Vec::new();
        // Both were alive while /proc was read, so the numbers there were theirs.
        if started.pidfd.as_ref().is_some_and(Pidfd::is_alive) {
            next.push(started.pid);
        }
        next.extend(
            self.peer
                .get()
                .filter(|(pid, pidfd)| *pid > 0 && pidfd.is_alive())
                .map(|peer| peer.0),
        );
        // A session keeps its number until its last member has exited, so the members of a leader that was just killed are found.
        for (pid, start_time) in self.known.lock().union(before) {
            match processes.get(pid) {
                Some(process) if process.start_time == *start_time => next.push(*pid),
                None if before.contains(&(*pid, *start_time)) => {
                    next.extend(related.get(pid).into_iter().flatten());
                }
                _ => {}
            }
        }
        // The child may have passed the line to a process that it did not start. The parent of such a process is alive and in the
        // same session.
        let is_orphan = |process: &Process| {
            let in_session = Some(process.session) == session || process.session == started.pid;
            let parent = processes.get(&process.parent);
            let is_reparented =
                process.parent == 1 || parent.is_none_or(|parent| parent.session != process.session);
            in_session && is_reparented && process.parent != own
        };
        let mut orphans = processes.values().filter(|process| is_orphan(process));
        loop {
            while let Some(pid) = next.pop() {
                let is_older = |process: &Process| process.start_time < start_time;
                if pid != own && !processes.get(&pid).is_some_and(is_older) && members.insert(pid) {
                    next.extend(related.get(&pid).into_iter().flatten());
                }
            }
            let with_line = orphans.find(|process| {
                let is_candidate = process.start_time >= start_time && !members.contains(&process.pid);
                is_candidate && processor_time() < until && process.has_descriptor_of(self.line, until)
            });
            match with_line {
                Some(process) => next.push(process.pid),
                None => break,
            }
        }
        let found = processes.into_values().rev();
        found
            .filter(|process| members.contains(&process.pid) && !before.contains(&process.id()))
            .collect()
    }

    /// Kills everything in the child's cgroup, if the cgroup is the child's alone.
    fn kill_cgroup(&self, started: &Started, start_time: u64, until: Duration) {
        let Some(name) = self.cgroup.get().filter(|_| !self.shares_cgroup()) else {
            return;
        };
        let own = getpid().as_raw();
        for directory in cgroup_directories(name).unwrap_or_default() {
            let mut inside = BTreeSet::new();
            if collect_processes(&directory, DEPTH, &mut inside).is_err() {
                continue;
            }
            let family: BTreeSet<i32> = self
                .descendants(started, start_time, &BTreeSet::new(), until)
                .into_iter()
                .map(|process| process.pid)
                .collect();
            let is_exclusive = inside.iter().all(|pid| match Process::read(*pid) {
                Some(process) => {
                    *pid != own && (process.is_younger(started.pid, start_time) || family.contains(pid))
                }
                None => {
                    *pid > 0 && matches!(sys::process::pidfd_open(Pid::from_raw(*pid)), Err(Errno::ESRCH))
                }
            });
            // Before the handshake has succeeded, the child may never have entered the cgroup.
            let has_members = || !family.is_disjoint(&inside);
            if is_exclusive && !inside.is_empty() && (self.peer.get().is_some() || has_members()) {
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
        families.iter().any(|family| {
            !std::ptr::eq(&raw const **family, self) && family.cgroup == self.cgroup && family.is_alive()
        })
    }
}

impl Started {
    fn open(pid: u32) -> Result<Self> {
        let gone = |errno: Errno| Error::PeerLost(format!("there is no process {pid}: {}", errno.desc()));
        let pid = i32::try_from(pid).map_err(|_| gone(Errno::ESRCH))?;
        let pidfd = match sys::process::pidfd_open(Pid::from_raw(pid)) {
            Ok(pidfd) => Some(pidfd),
            Err(errno) if is_denied(errno) => None,
            Err(errno @ (Errno::ESRCH | Errno::EINVAL)) => return Err(gone(errno)),
            Err(errno) => return Err(Error::system("a descriptor of the child (pidfd_open)", errno)),
        };
        let start_time = find_in_proc(pid, pidfd.as_ref())?.map(|process| process.start_time);
        let pidfd = pidfd.map(|pidfd| Pidfd::new(Arc::new(pidfd), None));
        Ok(Self {
            pid,
            pidfd,
            start_time,
        })
    }

    /// The pidfd of the child, if this system has any. Fails if the child has exited and was released.
    pub(crate) fn pidfd(&self) -> Result<Option<Arc<OwnedFd>>> {
        match &self.pidfd {
            None => Ok(None),
            Some(pidfd) => pidfd.get().map(Some).ok_or(Error::ChildExited(self.pid)),
        }
    }

    /// Whether the child has exited. It may not have been waited for yet.
    pub(crate) fn has_exited(&self) -> bool {
        if let Some(pidfd) = &self.pidfd {
            return !pidfd.is_alive();
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
        self.has_exited() || is_exiting(self.pid)
    }
}

/// Returns the process, if /proc shows it under its number.
fn find_in_proc(pid: i32, pidfd: Option<&OwnedFd>) -> Result<Option<Process>> {
    let found = proc_number(pid, pidfd, &FixedNamespaces::default())?;
    let is_shown = matches!(found, InProc::Number(number) if number == pid);
    Ok(Process::read(pid).filter(|_| is_shown))
}

/// Whether a process that was alive a moment ago is exiting: its descriptors are closed before its pidfd reports the exit.
pub(crate) fn is_exiting(pid: i32) -> bool {
    Process::read(pid).is_some_and(|process| process.is_exiting)
}

/// Whether the process of a pidfd has not exited.
pub(crate) fn is_alive(pidfd: &impl AsFd) -> bool {
    sys::is_ready(pidfd, PollFlags::POLLIN) == Ok(false)
}

/// A process as /proc/PID/stat shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// The time of its start, in ticks since the machine's start.
    start_time: u64,
    /// Its main thread has exited, or is about to.
    is_exiting: bool,
    threads: usize,
}

impl Process {
    const fn id(&self) -> ProcessId {
        (self.pid, self.start_time)
    }

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
            start_time: fields.get(19)?.parse().ok()?,
            is_exiting: matches!(fields[0], "Z" | "X") || flags & EXITING != 0,
            threads: fields.get(17)?.parse().ok()?,
        })
    }

    /// Whether it started after the process with this number and time of start.
    fn is_younger(&self, pid: i32, start_time: u64) -> bool {
        /// Fewer numbers than this are given out within a tick. It is half of the least default of the kernel's `pid_max`.
        const HALF: i32 = 1 << 14;
        // A tick has 10 ms, enough for a child to detach a process. Within a tick the numbers tell the order: each is the next free
        // one, and after the highest they start again.
        let after = self.pid - pid;
        self.start_time > start_time
            || self.start_time == start_time && ((1..=HALF).contains(&after) || after < -HALF)
    }

    /// Returns all processes that /proc shows and of which a thread runs.
    fn all() -> impl Iterator<Item = (i32, Self)> {
        let pids = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read)
            .filter(|process| !process.has_ended())
            .map(|process| (process.pid, process))
    }

    /// Opens it, if its number is still its own.
    fn open(&self) -> Option<OwnedFd> {
        let pidfd = sys::process::pidfd_open(Pid::from_raw(self.pid)).ok()?;
        (self.is_running() && is_alive(&pidfd)).then_some(pidfd)
    }

    /// Kills it and returns its children, or none once this thread has run until that time.
    ///
    /// It is stopped first. A process that is killed at once may have forked since its children were read, and that child then has
    /// another parent and is not found. A process with a pending signal starts no fork. If this process is itself killed between the two
    /// signals, the stopped process stays stopped for good. So no more than one is stopped at a time, and only while its children
    /// are read.
    fn kill(&self, until: Duration) -> Vec<Self> {
        let Some(pidfd) = self.open() else {
            return Vec::new();
        };
        let signal = |signal| sys::signal::pidfd_signal(&pidfd, signal as i32, None);
        let mut children = Vec::new();
        if processor_time() < until && signal(Signal::SIGSTOP).is_ok() {
            children = self.children();
        }
        let _ = signal(Signal::SIGKILL);
        children
    }

    fn children(&self) -> Vec<Self> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        let list = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).ok();
        let lists: Option<Vec<_>> = threads.into_iter().flatten().flatten().map(list).collect();
        let Some(lists) = lists else {
            // The kernel does not list them (`CONFIG_PROC_CHILDREN`).
            let all = Self::all().map(|(_, process)| process);
            return all.filter(|process| process.parent == self.pid).collect();
        };
        let pids = lists.iter().flat_map(|list| list.split_whitespace());
        let children = pids.filter_map(|pid| Self::read(pid.parse().ok()?));
        children.filter(|child| child.parent == self.pid).collect()
    }

    /// Whether no thread of it is left, or only one that is exiting.
    const fn has_ended(&self) -> bool {
        self.is_exiting && self.threads <= 1
    }

    /// Whether it still has its number, and has not ended.
    fn is_running(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start_time == self.start_time && !now.has_ended())
    }

    /// Whether it has a descriptor of the socket with this inode number.
    fn has_descriptor_of(&self, socket: u64, until: Duration) -> bool {
        let directory = format!("/proc/{}/fd", self.pid);
        let socket = format!("socket:[{socket}]");
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        let mut entries = entries.flatten().take_while(|_| processor_time() < until);
        entries.any(|entry| {
            readlinkat(AT_FDCWD, &entry.path()).is_ok_and(|target| target.to_str() == Some(&socket))
        })
    }
}

/// Collects the processes of a cgroup and of those below it. The number of one that is not visible here is 0.
fn collect_processes(directory: &OwnedFd, depth: usize, found: &mut BTreeSet<i32>) -> Result<(), Errno> {
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
        collect_processes(&below, depth.checked_sub(1).ok_or(Errno::ELOOP)?, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn process_is_parsed_despite_its_name() {
        let stat = "7 (a) R 1) S 3 4 5 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 1 0 1234 0";
        let process = Process {
            pid: 7,
            parent: 3,
            session: 5,
            start_time: 1234,
            is_exiting: true,
            threads: 1,
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
    fn pid_order_decides_within_one_tick() {
        let is_younger = |pid, start_time| {
            let process = Process {
                pid,
                parent: 1,
                session: 1,
                start_time,
                is_exiting: false,
                threads: 1,
            };
            process.is_younger(32_000, 50)
        };
        for (pid, start_time, wanted) in [
            (300, 51, true),
            (32_700, 49, false),
            (32_001, 50, true),
            (31_999, 50, false),
            (32_000, 50, false),
            // The numbers have started again, after the one and before the other.
            (300, 50, true),
            (4_194_000, 50, false),
        ] {
            assert_eq!(is_younger(pid, start_time), wanted, "{pid} {start_time}");
        }
    }

    #[test]
    fn search_finds_the_session_of_a_process_that_was_killed_before_it() {
        let script = "sleep 1000 <&- >&- 2>&- & echo $!; exec sleep 1000";
        let mut command = Command::new("setsid");
        let mut leader = command
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        let output = leader.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut pid).unwrap();
        let orphan = Process::read(pid.trim().parse().unwrap()).unwrap();
        let processes = ChildProcesses::new(0, OwnerProcess::current().unwrap());
        processes.start(leader.id()).unwrap();
        let started = processes.started().unwrap();
        let start_time = started.start_time.unwrap();
        leader.kill().unwrap();
        leader.wait().unwrap();
        let found = |before: &[ProcessId]| {
            let before = before.iter().copied().collect();
            let found = processes
                .0
                .descendants(started, start_time, &before, Duration::MAX);
            found.iter().map(|process| process.pid).collect::<Vec<_>>()
        };
        let with_session = found(&[(started.pid, start_time)]);
        let without = found(&[]);
        assert!(orphan.kill(Duration::MAX).is_empty());
        assert_eq!(with_session, [orphan.pid]);
        assert_eq!(without, []);
    }

    #[test]
    fn own_process_is_found_with_its_sockets() {
        let own = Process::read(getpid().as_raw()).unwrap();
        assert!(!own.is_exiting);
        assert!(Process::all().any(|(pid, _)| pid == own.pid));
        let until = processor_time() + Duration::from_secs(60);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
        assert!(own.has_descriptor_of(inode, until));
        drop(socket);
        assert!(!own.has_descriptor_of(inode, until));
    }
}
