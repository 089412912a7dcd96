//! What this kernel, this machine and this process offer, found out by trying.
//!
//! Each probe does what a channel does, on objects of its own that are gone when it returns. What it finds is said
//! in a sentence about the promises: a machine is not good or bad, but some promises rest on things that it lacks.

use std::{
    fmt, fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    ptr::NonNull,
    sync::{atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    libc,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{ProtFlags, mprotect, shm_open, shm_unlink},
        resource::{RLIM_INFINITY, Resource, getrlimit},
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt},
        stat::Mode,
        statfs::{PROC_SUPER_MAGIC, TMPFS_MAGIC, statfs},
        statvfs::statvfs,
        uio::pwrite,
    },
    unistd::{ftruncate, getegid, geteuid, getgid, getpid, gettid, getuid},
};

use crate::{
    memory::access::Writable,
    memory::layout::{self, CAPACITY_MIN, region_size},
    memory::mapping::Mapping,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    memory::room,
    memory::seals,
    memory::tripwire::Tripwire,
    options::Options,
    peer::process,
    signal::claim,
    sys,
};

/// Whether the promises that rest on something hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// They do.
    Good,
    /// They hold in part: the finding's meaning says which.
    Limited,
    /// They do not hold here.
    Missing,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Limited => "limited",
            Self::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name for programs: small letters and hyphens. Names are kept from version to version.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Whether the promises that rest on it hold.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for the promises, and what can be done about it.
    pub meaning: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.status)
    }
}

/// What [`doctor`] found.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kernel's name and version.
    pub kernel: String,
    /// One for each thing that the promises rest on, in an order that is kept.
    pub findings: Vec<Finding>,
}

/// Tries what this kernel offers to this process, and says what that means for the promises.
///
/// Harmless, and leaves nothing behind: no descriptor, no mapping, no file, no state of the process. Takes a few
/// milliseconds. What is missing is a finding, never an error.
pub fn doctor() -> Diagnosis {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let kernel = format!("{} {}", read("ostype").trim(), read("osrelease").trim());
    Diagnosis {
        kernel: if kernel.trim().is_empty() {
            "unknown: /proc cannot be read".into()
        } else {
            kernel
        },
        findings: vec![
            memfd_seals(),
            memfd_noexec(),
            memfd_lease(),
            shm_lease(),
            tripwire(),
            pidfd(),
            peer_pidfd(),
            peer_groups(),
            pidfd_information(),
            membarrier(),
            proc(),
            pid_namespace(),
            shared_memory(),
            memory(),
            ptrace_scope(),
            dumpable(),
            user(),
            label(),
            executable(),
            file_size(),
            descriptors(),
            signals(),
            tokens(),
            core(),
            seccomp(),
            container(),
        ],
    }
}

/// A finding with its constant parts.
#[derive(Debug, Clone, Copy)]
struct About {
    name: &'static str,
    title: &'static str,
}

impl About {
    fn is(self, status: Status, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        Finding {
            name: self.name,
            title: self.title,
            status,
            found: found.into(),
            meaning: meaning.into(),
        }
    }

    fn good(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Good, found, meaning)
    }

    fn limited(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Limited, found, meaning)
    }

    fn missing(self, found: impl Into<String>, meaning: impl Into<String>) -> Finding {
        self.is(Status::Missing, found, meaning)
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..=1023 => format!("{count} bytes"),
        1024..=1_048_575 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// The region of a ring with the capacity that nobody asked for otherwise.
fn default_region() -> u64 {
    region_size(Options::default().capacity)
}

/// A line of /proc/self/status.
fn status_line(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

fn number_in(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A memfd as the channel makes it: reopened, so that the kernel counts it among the open files.
fn memfd() -> Result<OwnedFd, String> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let raw = memfd_create("ringfence-doctor", flags).map_err(failed("memfd_create"))?;
    again(&raw, OFlag::O_RDWR).map_err(failed("reopening it through /proc/self/fd"))
}

/// What failed, and why.
fn failed(what: &'static str) -> impl FnOnce(Errno) -> String {
    move |errno| format!("{what}: {}", errno.desc())
}

/// Opens the same object once more.
fn again(object: &OwnedFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

const SEALS: About = About {
    name: "memfd-seals",
    title: "Sealed memory (memfd)",
};

fn memfd_seals() -> Finding {
    match sealed_against() {
        Ok(open) if open.is_empty() => SEALS.good(
            "a second writable mapping, mprotect, a write, shrinking, growing, punching a hole and further seals are \
             refused; the first mapping still writes, and a reader sees it",
            "with the memfd backing, a peer that has passed and turns hostile cannot write, cut or grow this side's \
             memory",
        ),
        Ok(open) => SEALS.missing(
            format!("possible in spite of the seals: {}", open.join(", ")),
            "a peer could change this side's memory behind its back; share it only with processes that you trust as \
             yourself",
        ),
        Err(why) => SEALS.missing(
            why,
            "the memfd backing cannot be used here; it takes Linux 5.1, and a sandbox that allows memfd_create and \
             /proc/self/fd",
        ),
    }
}

/// Seals a throw-away memfd as the channel does. Returns what can still be done to it that must not be.
fn sealed_against() -> Result<Vec<&'static str>, String> {
    let object = memfd()?;
    let size = region_size(CAPACITY_MIN);
    let length = libc::off_t::try_from(size).map_err(|error| error.to_string())?;
    ftruncate(&object, length).map_err(failed("ftruncate"))?;
    let own = OwnRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;
    fcntl(&object, FcntlArg::F_ADD_SEALS(seals::wanted())).map_err(failed("F_ADD_SEALS"))?;
    let peer = PeerRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;

    own.store(layout::DATA, 42, Ordering::Release);
    let live = peer.peek(layout::DATA) == 42;
    let mapping = Mapping::new(&object, 4096, false).map_err(failed("mapping it to read"))?;
    let writable = NonNull::new(mapping.as_mut_ptr().cast()).is_some_and(|address| {
        // SAFETY: the range is that mapping, which nobody else knows of and nobody reads. If the call succeeds, it
        // is writable until it is unmapped a few lines further down.
        unsafe {
            mprotect(
                address,
                mapping.len(),
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            )
        }
        .is_ok()
    });
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let tried = [
        ("the owner's mapping writes nothing any more", !live),
        (
            "a second writable mapping",
            Mapping::new(&object, 4096, true).is_ok(),
        ),
        ("making a mapping writable", writable),
        ("writing", pwrite(&object, b"x", 0).is_ok()),
        ("shrinking", ftruncate(&object, 0).is_ok()),
        ("growing", ftruncate(&object, length * 2).is_ok()),
        ("punching a hole", fallocate(&object, hole, 0, 4096).is_ok()),
        (
            "sealing further",
            fcntl(&object, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_ok(),
        ),
    ];
    Ok(tried
        .into_iter()
        .filter(|(_, done)| *done)
        .map(|(what, _)| what)
        .collect())
}

const NOEXEC: About = About {
    name: "memfd-noexec",
    title: "Memory that is never executed (MFD_NOEXEC_SEAL)",
};

fn memfd_noexec() -> Finding {
    /// Linux 6.3, of which nix has no names: the flag of memfd_create, and the seal that it sets.
    const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);
    const SEAL_EXEC: i32 = 0x20;
    let sysctl = number_in("/proc/sys/vm/memfd_noexec");
    let rule = match sysctl {
        Some(2) => "vm.memfd_noexec=2: no other kind can be made",
        Some(1) => "vm.memfd_noexec=1: the default for everybody",
        Some(_) => "vm.memfd_noexec=0: for those who ask, as this does",
        None => "no vm.memfd_noexec",
    };
    let flags = MFdFlags::MFD_CLOEXEC | NOEXEC_SEAL;
    let sealed = memfd_create("ringfence-doctor", flags)
        .and_then(|object| fcntl(&object, FcntlArg::F_GET_SEALS).map(|seals| seals & SEAL_EXEC != 0));
    match sealed {
        Ok(true) => NOEXEC.good(
            format!("granted and sealed; {rule}"),
            "what lies in shared memory can be executed by nobody through its descriptor",
        ),
        Ok(false) => NOEXEC.limited(
            format!("granted, but not sealed; {rule}"),
            "whoever has the descriptor may make the object executable; nothing else rests on it",
        ),
        Err(errno) => NOEXEC.limited(
            format!("not granted: {} (Linux 6.3); {rule}", errno.desc()),
            "the memory is made without it: whoever has the descriptor may execute what lies there; nothing else \
             rests on it",
        ),
    }
}

const MEMFD_LEASE: About = About {
    name: "memfd-lease",
    title: "Write lease on a memfd",
};

fn memfd_lease() -> Finding {
    match memfd().and_then(|object| leased(&object)) {
        Ok(found) => MEMFD_LEASE.good(
            found,
            "the kernel confirms that nobody else has the object open when it is passed on, and keeps later openers \
             waiting for the lease-break time",
        ),
        Err(why) => MEMFD_LEASE.missing(
            why,
            "the memfd backing cannot prove its object exclusive, so no channel is made; look for a sandbox that \
             forbids fcntl(2) F_SETLEASE, or a /proc that cannot be read",
        ),
    }
}

const SHM_LEASE: About = About {
    name: "shm-lease",
    title: "Write lease on a shm_open object",
};

fn shm_lease() -> Finding {
    match shm_object().and_then(|object| leased(&object)) {
        Ok(found) => SHM_LEASE.good(
            found,
            "with the shm backing, whoever got in before the lease is noticed, unless with O_PATH; the peer itself can \
             write and cut the object: prefer memfd, which has no name and is sealed",
        ),
        Err(why) => SHM_LEASE.missing(
            why,
            "the shm backing cannot be used here; the memfd backing, which is the default, needs none of it",
        ),
    }
}

/// A shm object as the channel makes it, but with a mode that lets the probe open it once more.
fn shm_object() -> Result<OwnedFd, String> {
    let random: [u8; 16] = sys::random().map_err(failed("getrandom"))?;
    let name = format!("/ringfence-doctor-{:032x}", u128::from_le_bytes(random));
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let object = shm_open(name.as_str(), flags, mode).map_err(failed("shm_open"))?;
    shm_unlink(name.as_str()).map_err(failed("shm_unlink"))?;
    Ok(object)
}

/// Tries whether a write lease tells somebody else from nobody.
fn leased(object: &OwnedFd) -> Result<String, String> {
    let open = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let second = again(object, open).map_err(failed("opening it once more"))?;
    match sys::take_lease(object) {
        Err(Errno::EAGAIN) => {}
        Ok(()) => return Err("granted although the object was open twice".into()),
        Err(errno) => return Err(failed("F_SETLEASE")(errno)),
    }
    drop(second);
    // A child that another thread of this process forks holds a copy of `second` until it execs.
    let deadline = Instant::now() + Duration::from_secs(1);
    while let Err(errno) = sys::take_lease(object) {
        if errno != Errno::EAGAIN || Instant::now() >= deadline {
            return Err(failed("F_SETLEASE on an object that nobody else has open")(errno));
        }
        thread::sleep(Duration::from_millis(1));
    }
    if sys::has_write_lease(object) != Ok(true) {
        return Err("granted, but F_GETLEASE does not show it".into());
    }
    match again(object, open) {
        Err(Errno::EWOULDBLOCK) => {}
        Ok(_) => return Err("granted, but a later opener is let in at once".into()),
        Err(errno) => return Err(failed("opening it under the lease")(errno)),
    }
    let seconds = number_in("/proc/sys/fs/lease-break-time")
        .map_or_else(|| "unknown".into(), |seconds| format!("{seconds} s"));
    Ok(format!(
        "granted alone, refused (EAGAIN) while a second open exists, later openers are kept waiting (lease-break \
         time: {seconds})"
    ))
}

const TRIPWIRE: About = About {
    name: "tripwire",
    title: "Alarm when a shared object is opened",
};

fn tripwire() -> Finding {
    match alarmed() {
        Ok((number, true)) => TRIPWIRE.good(
            format!("sounded (signal {number}) when the object was opened under its lease"),
            "whoever opens the memory of a channel ends it: its owner wipes it first, and both sides see it (exposed)",
        ),
        Ok((number, false)) => TRIPWIRE.missing(
            format!("signal {number} did not come within {} s", ALARM.as_secs()),
            "whoever opens the memory of a channel is kept waiting for the lease-break time, and nobody is told; look for a \
             sandbox that forbids fcntl(2) F_SETSIG or F_SETOWN_EX, or hides /proc/locks",
        ),
        Err(why) => TRIPWIRE.missing(
            why,
            "no channel is made",
        ),
    }
}

/// How long the probe waits for the alarm: the signal comes at once, to a thread that may have to wait for a processor.
const ALARM: Duration = Duration::from_secs(2);

/// Whether an alarm sounds when somebody opens an object of this process's own, and by which signal.
fn alarmed() -> Result<(i32, bool), String> {
    let object = memfd()?;
    let refused = |error: crate::Error| error.to_string();
    let number = claim::unused().map_err(refused)?;
    let wire = Tripwire::arm(&object, number).map_err(refused)?;
    let (sounded, alarm) = mpsc::channel();
    wire.on_alarm(move || {
        // Without a receiver, nobody waits any more.
        let _ = sounded.send(());
    });
    match again(&object, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(Errno::EWOULDBLOCK) => {}
        Ok(_) => return Err("an opener is let in at once".into()),
        Err(errno) => return Err(failed("opening it under the lease")(errno)),
    }
    Ok((number, alarm.recv_timeout(ALARM).is_ok()))
}

const PIDFD: About = About {
    name: "pidfd",
    title: "Holding on to a process (pidfd_open)",
};

fn pidfd() -> Finding {
    match sys::pidfd_open(getpid()) {
        Ok(_) => PIDFD.good(
            "works",
            "what is read of a peer in /proc is read between two looks that show that very process alive, and its \
             death is noticed even where its end of the line is kept open",
        ),
        Err(errno) => PIDFD.limited(
            format!("{} (Linux 5.3)", errno.desc()),
            "a peer is held by its number and its directory in /proc; its death is noticed by the end of the line \
             alone",
        ),
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

const PEER_PIDFD: About = About {
    name: "peer-pidfd",
    title: "The peer's process from its socket (SO_PEERPIDFD)",
};

fn peer_pidfd() -> Finding {
    match pair().and_then(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd)) {
        Ok(_) => PEER_PIDFD.good(
            "works",
            "the process that is looked at is the one that connected, even if its number has been given to another \
             since",
        ),
        Err(errno) => PEER_PIDFD.limited(
            format!("{} (Linux 6.5)", errno.desc()),
            "the peer's process is found by its number; one that ended in that moment could be taken for its \
             successor, who then still lacks the private line",
        ),
    }
}

const PEER_GROUPS: About = About {
    name: "peer-groups",
    title: "The peer's groups from its socket (SO_PEERGROUPS)",
};

fn peer_groups() -> Finding {
    match pair().and_then(|(one, _other)| sys::peer_groups(one.as_fd())) {
        Ok(groups) => PEER_GROUPS.good(
            format!("works; this process has {}", groups.len()),
            "a policy that asks for a gid finds it among the peer's supplementary groups as well",
        ),
        Err(errno) => PEER_GROUPS.limited(
            format!("{} (Linux 4.13)", errno.desc()),
            "a policy that asks for a gid finds the peer's effective one alone",
        ),
    }
}

const PIDFD_INFO: About = About {
    name: "pidfd-info",
    title: "What a pidfd says of its process (PIDFD_GET_INFO)",
};

fn pidfd_information() -> Finding {
    match sys::pidfd_open(getpid()).and_then(sys::pidfd_info) {
        Ok(info) => PIDFD_INFO.good(
            format!("works: pid {}, effective uid {}, gid {}", info.pid, info.uid, info.gid),
            "a peer's user, group and cgroup are looked at again through its pidfd, which names no other process",
        ),
        Err(errno) => PIDFD_INFO.limited(
            format!("{} (Linux 6.13)", errno.desc()),
            "a peer's user, group and cgroup are looked at again in /proc alone, between two looks that find it alive",
        ),
    }
}

const MEMBARRIER: About = About {
    name: "membarrier",
    title: "Barriers for other processes (membarrier)",
};

fn membarrier() -> Finding {
    match sys::knows_barriers().and_then(|known| sys::issue_barrier().map(|()| known)) {
        Ok(true) => MEMBARRIER.good(
            "global expedited: works",
            "sending takes no fence: whoever goes to sleep makes the barrier for both",
        ),
        Ok(false) | Err(_) => MEMBARRIER.limited(
            "global expedited: not here (Linux 4.16, and a sandbox that allows it)",
            "every send makes a full fence of its own: slower, and just as right",
        ),
    }
}

const PROC: About = About {
    name: "proc",
    title: "Looking at processes (/proc)",
};

fn proc() -> Finding {
    let refused = "no peer can be looked at, so every one is refused; mount /proc where this process runs";
    match statfs("/proc").map(|found| found.filesystem_type()) {
        Ok(PROC_SUPER_MAGIC) => {}
        Ok(_) => return PROC.missing("something else is mounted there", refused),
        Err(errno) => return PROC.missing(errno.desc(), refused),
    }
    let own = match process::own_executable() {
        Ok(own) => own,
        Err(errno) => {
            return PROC.missing(
                format!("/proc/self/exe cannot be looked at: {}", errno.desc()),
                "a policy that asks for the same executable refuses everybody; ask for uid, gid, cgroup or label",
            );
        }
    };
    let overflow = number_in("/proc/sys/kernel/overflowuid");
    if overflow.is_none() {
        return PROC.missing("/proc/sys/kernel/overflowuid cannot be read", refused);
    }
    match hidepid() {
        Some(hidden) => PROC.limited(
            format!("readable, own executable {own}; mounted with {hidden}"),
            "of another user's peer, the executable and supplementary groups cannot be seen, and a policy that asks for \
             them refuses it (before Linux 6.13 each policy does); mount /proc without hidepid, or give this process the \
             group that its gid= names",
        ),
        None => PROC.good(
            format!("readable, own executable {own}"),
            "a peer's executable and cgroup can be asked for",
        ),
    }
}

/// The option that hides other users' processes, where it is in force (proc(5)).
fn hidepid() -> Option<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // proc(5), mountinfo: the fifth field is the mount point; what is mounted last hides the others.
    let line = text
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    line.split([' ', ','])
        .find(|option| {
            option
                .strip_prefix("hidepid=")
                .is_some_and(|value| !matches!(value, "0" | "off"))
        })
        .map(str::to_owned)
}

const PID_NAMESPACE: About = About {
    name: "pid-namespace",
    title: "Process numbers (pid namespace)",
};

fn pid_namespace() -> Finding {
    let pid = getpid().as_raw();
    let shown = fs::read_link("/proc/self").unwrap_or_else(|_| "nothing".into());
    if shown.as_os_str() != pid.to_string().as_str() {
        return PID_NAMESPACE.missing(
            format!("this process is {pid}, and /proc calls it {}", shown.display()),
            "/proc shows another pid namespace, so a peer's number names a stranger there; mount a /proc of this \
             namespace",
        );
    }
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    let (which, meaning) = if namespace.as_deref() == Some(Path::new("pid:[4026531836]")) {
        (
            "the machine's own",
            "peers in a container's namespace are seen from here, but live in another: they are refused, unless the policy's namespace is any",
        )
    } else {
        (
            "one of its own",
            "a peer outside of this pid namespace is refused; let both share one (a container's pid option), or let any in \
             (the policy's namespace)",
        )
    };
    PID_NAMESPACE.good(
        format!("pid {pid}, and /proc agrees; the namespace is {which}"),
        meaning,
    )
}

const SHARED_MEMORY: About = About {
    name: "dev-shm",
    title: "Room in /dev/shm",
};

fn shared_memory() -> Finding {
    let none =
        "the shm backing cannot be used here; the memfd backing, which is the default, does not need it";
    match statfs("/dev/shm").map(|found| found.filesystem_type()) {
        Ok(TMPFS_MAGIC) => {}
        Ok(_) => return SHARED_MEMORY.missing("it is no tmpfs", none),
        Err(errno) => return SHARED_MEMORY.missing(errno.desc(), none),
    }
    let found = match statvfs("/dev/shm") {
        Ok(found) => found,
        Err(errno) => return SHARED_MEMORY.missing(errno.desc(), none),
    };
    let size = found.blocks().saturating_mul(found.fragment_size());
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let pair = default_region() * 2;
    // A tmpfs that is mounted with size=0 has no limit but memory, and says so with no blocks.
    let room = if size == 0 { pair } else { free };
    let text = if size == 0 {
        "no limit of its own".to_owned()
    } else {
        format!("{} free of {}", bytes(free), bytes(size))
    };
    if room >= pair {
        SHARED_MEMORY.good(
            text,
            format!(
                "a pair with the shm backing takes {} of it with default rings; memfd takes nothing of it",
                bytes(pair)
            ),
        )
    } else {
        SHARED_MEMORY.limited(
            text,
            format!(
                "the shm backing has no room for a pair with default rings ({}): give /dev/shm more (a container's \
                 shm-size), ask for a smaller capacity, or use memfd, which takes nothing of it",
                bytes(pair)
            ),
        )
    }
}

const MEMORY: About = About {
    name: "memory",
    title: "Memory for a ring",
};

fn memory() -> Finding {
    let region = default_region();
    let found = match room::available_memory() {
        Ok(Some(available)) => format!("{} available to this process", bytes(available)),
        Ok(None) => "neither /proc/meminfo nor the cgroup says".into(),
        Err(errno) => format!("/proc/meminfo cannot be read: {}", errno.desc()),
    };
    match room::check_room(region) {
        Ok(()) => MEMORY.good(
            found,
            format!(
                "a ring takes all its memory at once ({} by default, at each side): what cannot be had is an error \
                 when the channel is made, not a signal later",
                bytes(region)
            ),
        ),
        Err(error) => MEMORY.missing(
            format!("{found}; {error}"),
            format!(
                "a default ring ({}) is refused with NO_SPACE; ask for a smaller capacity, or give this process more",
                bytes(region)
            ),
        ),
    }
}

const PTRACE: About = About {
    name: "ptrace-scope",
    title: "Tracing by the same user (Yama)",
};

fn yama() -> Option<u64> {
    number_in("/proc/sys/kernel/yama/ptrace_scope")
}

fn ptrace_scope() -> Finding {
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

fn dumpable() -> Finding {
    match sys::dumpable() {
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

const USER: About = About {
    name: "user",
    title: "The user this process runs as",
};

fn user() -> Finding {
    let (real, effective) = (getuid().as_raw(), geteuid().as_raw());
    let namespace = match fs::read_to_string("/proc/self/uid_map") {
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
            "everybody who is not mapped here looks like this user, so peers refuse it; run it as a user that is \
             mapped and is nobody's default",
        );
    }
    if real != effective {
        return USER.limited(
            found,
            "real and effective uid differ, so a policy that asks for the same uid refuses everybody; name the uids",
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

fn label() -> Finding {
    let none = "a policy cannot ask for a label: it would refuse everybody";
    match pair().and_then(|(one, _other)| sys::peer_label(one.as_fd())) {
        Ok(label) if label.is_empty() => LABEL.limited("empty", none),
        Ok(label) if label.starts_with("unconfined") => LABEL.limited(
            label,
            "this process has no profile: its label tells it from nobody; confine it, and let the policy ask for that",
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

fn executable() -> Finding {
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
            "a policy that asks for the same executable refuses everybody; ask for uid, gid, cgroup or label",
        ),
    }
}

/// Soft and hard limit, or what kept them from being read.
fn limits(of: Resource) -> Result<(u64, u64, String), String> {
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

const UNREADABLE: &str = "the limit cannot be read, so it is found out when it is hit";

const FILE_SIZE: About = About {
    name: "limit-file-size",
    title: "Largest file (RLIMIT_FSIZE)",
};

fn file_size() -> Finding {
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

fn descriptors() -> Finding {
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

fn signals() -> Finding {
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

fn tokens() -> Finding {
    match claim::carry_all() {
        Ok(true) if sys::pidfd_open_thread(gettid().as_raw()).is_ok() => TOKENS.good(
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

const CORE: About = About {
    name: "limit-core",
    title: "Core dumps (RLIMIT_CORE)",
};

fn core() -> Finding {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let piped = pattern.starts_with('|');
    let dumpable = sys::dumpable().is_ok_and(|value| value == 1);
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
                "a core does not hold the rings (MADV_DONTDUMP), but it holds what was copied out of them; whoever of \
                 the same user may raise the limit: set the hard one to 0 (ulimit -Hc 0)"
            },
        ),
        Err(why) => CORE.limited(why, UNREADABLE),
    }
}

const SECCOMP: About = About {
    name: "seccomp",
    title: "Filter of system calls (seccomp)",
};

fn seccomp() -> Finding {
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

fn container() -> Finding {
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
        CONTAINER.good("no sign of one", "whoever is on this machine is within reach")
    } else {
        CONTAINER.good(
            format!("signs of one: {}", hints.join(", ")),
            "a peer in another container must share what the address lives in (a directory for a path, the network \
             namespace for @name), the pid namespace, and the user namespace",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, process::Command};

    use super::*;

    fn finding<'a>(diagnosis: &'a Diagnosis, name: &str) -> &'a Finding {
        diagnosis
            .findings
            .iter()
            .find(|finding| finding.name == name)
            .unwrap()
    }

    #[test]
    fn every_finding_is_there_once_and_says_something() {
        let diagnosis = doctor();
        assert!(diagnosis.kernel.starts_with("Linux "), "{}", diagnosis.kernel);
        let names: Vec<_> = diagnosis.findings.iter().map(|finding| finding.name).collect();
        assert_eq!(
            names,
            [
                "memfd-seals",
                "memfd-noexec",
                "memfd-lease",
                "shm-lease",
                "tripwire",
                "pidfd",
                "peer-pidfd",
                "peer-groups",
                "pidfd-info",
                "membarrier",
                "proc",
                "pid-namespace",
                "dev-shm",
                "memory",
                "ptrace-scope",
                "dumpable",
                "user",
                "label",
                "executable",
                "limit-file-size",
                "limit-descriptors",
                "limit-signals",
                "tokens",
                "limit-core",
                "seccomp",
                "container",
            ]
        );
        let titles: BTreeSet<_> = diagnosis.findings.iter().map(|finding| finding.title).collect();
        assert_eq!(
            titles.len(),
            names.len(),
            "a title tells one finding from the others"
        );
        for Finding {
            name, found, meaning, ..
        } in &diagnosis.findings
        {
            assert!(!found.is_empty() && !meaning.is_empty(), "{name}");
            assert!(
                !meaning.contains("  ") && !meaning.ends_with('.'),
                "{name}: {meaning:?}"
            );
        }
    }

    /// What a channel of the default backing cannot do without: a machine on which the other tests pass has it.
    #[test]
    fn what_the_default_needs_is_good_where_channels_can_be_made() {
        let diagnosis = doctor();
        for name in ["memfd-seals", "memfd-lease", "tripwire"] {
            let found = finding(&diagnosis, name);
            assert_eq!(found.status, Status::Good, "{found:?}");
        }
    }

    #[test]
    fn the_probe_of_seals_sees_what_an_unsealed_object_allows() {
        let object = memfd().unwrap();
        ftruncate(&object, 4096).unwrap();
        assert!(Mapping::new(&object, 4096, true).is_ok());
        assert!(pwrite(&object, b"x", 0).is_ok());
        assert!(ftruncate(&object, 0).is_ok());
        assert_eq!(sealed_against(), Ok(vec![]));
    }

    #[test]
    fn the_probe_of_leases_sees_a_second_open() {
        let object = memfd().unwrap();
        assert!(leased(&object).is_ok());
        let object = memfd().unwrap();
        let _second = again(&object, OFlag::O_RDONLY).unwrap();
        assert!(leased(&object).unwrap_err().contains("nobody else"));
    }

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

    /// Alone in a process: other tests open and close things meanwhile.
    #[test]
    fn nothing_is_left_behind() {
        const ALONE: &str = "RINGFENCE_DOCTOR_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let status = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "doctor::tests::nothing_is_left_behind",
                    "--test-threads=1",
                ])
                .env(ALONE, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        let open = || -> BTreeSet<_> {
            let links = fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            // The directory that is being read is itself one of them.
            links.filter(|link| !link.starts_with("/proc")).collect()
        };
        let objects = || -> usize {
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines()
                .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
                .count()
        };
        let names = || -> usize {
            let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
            entries
                .filter(|entry| {
                    entry
                        .file_name()
                        .to_string_lossy()
                        .starts_with("ringfence-doctor")
                })
                .count()
        };
        let before = (open(), objects(), names());
        for _ in 0..10 {
            doctor();
        }
        assert_eq!((open(), objects(), names()), before);
    }
}
