//! The shared object: how one is made so that nobody else has it, and how one that a peer passed is looked at.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    str::FromStr,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    libc::{self, c_int},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{shm_open, shm_unlink},
        resource::{RLIM_INFINITY, Resource, getrlimit},
        stat::{Mode, SFlag, fstat},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
    unistd::geteuid,
};

use crate::{
    error::{Error, Result, errno, is_shortage},
    evidence::Record,
    fork::Withheld,
    memory::layout::region_size,
    memory::own::OwnRegion,
    memory::peer::PeerRegion,
    memory::tripwire::{Tripwire, refused},
    options::Options,
    sys,
    wait::deadline::{Deadline, Woken},
};

/// What the shared memory is made of. Both sides of a channel must choose the same.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// memfd_create(2), sealed: no name at any time, and the peer can neither write, shrink nor grow it.
    #[default]
    Memfd,
    /// shm_open(3) with mode 0 under a random name that is unlinked at once: there is a moment in which a process
    /// of the same user can get hold of it, and the peer could truncate it. The lease finds most who got in.
    Shm,
}

impl Backing {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Memfd => 1,
            Self::Shm => 2,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Memfd, Self::Shm]
            .into_iter()
            .find(|backing| backing.number() == number)
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memfd => "memfd",
            Self::Shm => "shm",
        })
    }
}

impl FromStr for Backing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Memfd, Self::Shm]
            .into_iter()
            .find(|backing| backing.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("backing must be 'memfd' or 'shm', not {text:?}")))
    }
}

/// How often a new object is made after somebody got into the one before.
const TRIES: u32 = 8;

/// The seals of an object: the owner's mapping stays writable, and nobody makes another one.
pub(crate) fn seals() -> SealFlag {
    SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Seals, as fcntl(2) names them, for the evidence.
fn names(found: SealFlag) -> String {
    /// F_SEAL_EXEC, which a memfd that can never be executed has from birth (Linux 6.3).
    const EXEC: SealFlag = SealFlag::from_bits_retain(0x20);
    let known = [
        (SealFlag::F_SEAL_FUTURE_WRITE, "FUTURE_WRITE"),
        (SealFlag::F_SEAL_WRITE, "WRITE"),
        (SealFlag::F_SEAL_SHRINK, "SHRINK"),
        (SealFlag::F_SEAL_GROW, "GROW"),
        (SealFlag::F_SEAL_SEAL, "SEAL"),
        (EXEC, "EXEC"),
    ];
    let set: Vec<_> = known
        .iter()
        .filter(|(seal, _)| found.contains(*seal))
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "none".into()
    } else {
        set.join("|")
    }
}

/// A shared object that this process has made, mapped, and not yet let go of.
#[derive(Debug)]
pub(crate) struct SharedObject {
    /// What is passed to the peer.
    descriptor: Withheld,
    pub(crate) region: OwnRegion,
    pub(crate) size: u64,
}

impl AsFd for SharedObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl SharedObject {
    /// Makes an object for a ring as the options want it and proves that nobody else has it. `signal` is that of the
    /// tripwire; `owner` the peer's uid. To reserve the memory of a large one takes time, which `deadline` bounds.
    pub(crate) fn create(
        options: &Options,
        signal: c_int,
        owner: u32,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<Self> {
        let Options {
            backing, capacity, ..
        } = *options;
        let size = region_size(capacity);
        check_room(size)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let created = match backing {
                Backing::Memfd => Self::create_memfd(capacity, signal, deadline, record),
                // The lease belongs to the very descriptor that the peer gets, which could have any signal sent in its
                // place, one that ends this process as well. A peer of the same user can do that anyhow.
                Backing::Shm => {
                    let signal = (owner == geteuid().as_raw()).then_some(signal);
                    Self::create_shm(capacity, signal, deadline, record)
                }
            };
            match created {
                Err(Error::ObjectExposed(_)) if tries < TRIES => {}
                other => return other,
            }
        }
    }

    fn create_memfd(capacity: u64, signal: c_int, deadline: &Deadline, record: &mut Record) -> Result<Self> {
        /// MFD_NOEXEC_SEAL, Linux 6.3: the object can never be executed.
        const NOEXEC_SEAL: u32 = 8;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let (raw, noexec) = match memfd_create("ringfence", flags | MFdFlags::from_bits_retain(NOEXEC_SEAL)) {
            Ok(raw) => (raw, true),
            Err(Errno::EINVAL) => (
                memfd_create("ringfence", flags).map_err(|e| Error::system("making a memfd", e))?,
                false,
            ),
            Err(errno) => return Err(Error::system("making a memfd", errno)),
        };
        let raw = Withheld::new(raw)?;
        // The kernel does not count a raw memfd as open for writing, so it would refuse the lease: a reopened one
        // behaves like any file. It stays with this process, and so does the lease: the peer gets the raw one.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&**raw));
        let leased = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Error::system("reopening the memfd through /proc/self/fd", errno))?;
        let leased = Withheld::new(leased)?;
        reserve(leased.as_fd(), region_size(capacity), || has_time(deadline))?;
        let region = OwnRegion::map(&leased, capacity)?;
        fcntl(&leased, FcntlArg::F_ADD_SEALS(seals()))
            .map_err(|errno| Error::system("sealing the memfd (Linux 5.1)", errno))?;
        let links = links(&leased)?;
        if links != 0 {
            return Err(Error::ObjectExposed(format!("it has {links} names")));
        }
        record.passed(
            "object",
            "created",
            "a memfd: exclusive, without a name",
            if noexec {
                "memfd, never executable"
            } else {
                "memfd"
            },
        );
        record.passed(
            "object",
            "sealed",
            "no further writer, no shrinking, no growing",
            names(seals()),
        );
        region.guard(Tripwire::arm(&leased, signal)?);
        note_lease(Some(signal), record);
        // The mapping alone keeps the open file from here on: nobody can take its descriptor, and the lease with it.
        drop(leased);
        Ok(Self {
            descriptor: raw,
            region,
            size: region_size(capacity),
        })
    }

    fn create_shm(
        capacity: u64,
        signal: Option<c_int>,
        deadline: &Deadline,
        record: &mut Record,
    ) -> Result<Self> {
        let random: [u8; 16] = sys::random().map_err(|errno| Error::system("random bytes", errno))?;
        let name = format!("/ringfence-{:032x}", u128::from_le_bytes(random));
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let descriptor = shm_open(name.as_str(), flags, Mode::empty())
            .map_err(|errno| Error::system("making a shared object in /dev/shm", errno))?;
        let descriptor = Withheld::new(descriptor)?;
        shm_unlink(name.as_str()).map_err(|errno| {
            Error::ObjectExposed(format!("its name could not be taken away: {}", errno.desc()))
        })?;
        let links = links(&descriptor)?;
        if links != 0 {
            return Err(Error::ObjectExposed(format!(
                "it has {links} more names: somebody made a link in the moment before it was unlinked"
            )));
        }
        reserve(descriptor.as_fd(), region_size(capacity), || has_time(deadline))?;
        let region = OwnRegion::map(&descriptor, capacity)?;
        record.passed(
            "object",
            "created",
            "O_CREAT|O_EXCL with mode 0, unlinked, 0 names",
            "shm, 0 names",
        );
        match signal {
            Some(signal) => region.guard(Tripwire::arm(&descriptor, signal)?),
            None => sys::take_lease(&descriptor).map_err(refused)?,
        }
        note_lease(signal, record);
        Ok(Self {
            descriptor,
            region,
            size: region_size(capacity),
        })
    }

    /// Errors with [`Error::ObjectExposed`] once somebody has tried to open it.
    pub(crate) fn check(&self) -> Result<()> {
        if self.region.tripwire().is_some_and(Tripwire::is_tripped) {
            return Err(Error::ObjectExposed(
                "somebody tried to open it during the handshake".into(),
            ));
        }
        Ok(())
    }

    /// Lets go of the descriptor: from here on the mapping is all there is.
    pub(crate) fn into_region(self) -> OwnRegion {
        self.region
    }
}

fn note_lease(signal: Option<c_int>, record: &mut Record) {
    record.passed(
        "object",
        "lease",
        "F_WRLCK granted: nobody else has it open",
        "granted",
    );
    match signal {
        Some(signal) => record.passed(
            "object",
            "tripwire",
            "who opens it later sets off an alarm",
            format!("by signal {signal}"),
        ),
        None => record.unchecked(
            "object",
            "tripwire",
            "none: with shm and a peer of another user, that peer could have any signal sent",
        ),
    }
}

fn links(descriptor: &OwnedFd) -> Result<u64> {
    #[cfg_attr(
        target_arch = "x86_64",
        expect(
            clippy::useless_conversion,
            reason = "st_nlink has 32 bits on other architectures"
        )
    )]
    fstat(descriptor)
        .map(|stat| u64::from(stat.st_nlink))
        .map_err(|errno| Error::system("looking at the shared object (fstat)", errno))
}

/// How much is reserved at a time: at most, about a millisecond; at least, a page on every machine.
const PART: [libc::off_t; 2] = [4 << 20, 1 << 16];

/// Reserves all of it now: a full filesystem is an error here, not a SIGBUS later. In parts, and between two of them
/// `look` says whether there is time left.
///
/// Before Linux 6.9 a signal has shmem give back all that one call had reserved so far (mm/shmem.c, `shmem_fallocate`). Under
/// the timer of a profiler one call for a large object would begin anew for ever. So what is done stays done, and what a
/// signal interrupts is tried again in smaller parts.
fn reserve(descriptor: impl AsFd, size: u64, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let [most, least] = PART;
    let length = libc::off_t::try_from(size).map_err(|_| no_space(size, "it exceeds the largest file"))?;
    let (mut done, mut part) = (0, most);
    while done < length {
        look()?;
        let now = part.min(length - done);
        match fallocate(descriptor.as_fd(), FallocateFlags::empty(), done, now) {
            Err(Errno::EINTR) => part = (part / 2).max(least),
            Ok(()) => {
                done += now;
                part = (part * 2).min(most);
            }
            Err(errno) => return Err(Error::system(format!("a shared object of {size} bytes"), errno)),
        }
    }
    Ok(())
}

/// Whether there is time left to reserve memory.
fn has_time(deadline: &Deadline) -> Result<()> {
    match deadline.look()? {
        Woken::Ready => Ok(()),
        Woken::Late => Err(Error::HandshakeTimeout {
            step: "this side's memory was being reserved",
            after: deadline.allowed,
        }),
    }
}

fn no_space(size: u64, reason: impl Into<String>) -> Error {
    Error::NoSpace {
        what: format!("a shared object of {size} bytes"),
        reason: reason.into(),
    }
}

/// A memfd has no filesystem of a size of its own: the kernel would hand out pages until it has to kill somebody.
/// So what is available is looked up first, and a limit on file sizes too, since exceeding that one is a signal.
pub(crate) fn check_room(size: u64) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)
        .map_err(|errno| Error::system("the limit of file sizes (getrlimit)", errno))?;
    if limit != RLIM_INFINITY && size > limit {
        return Err(no_space(
            size,
            format!("files may have {limit} bytes here (RLIMIT_FSIZE)"),
        ));
    }
    let available =
        available_memory().map_err(|errno| Error::system("what memory is left (/proc/meminfo)", errno))?;
    let Some(available) = available else {
        return Ok(());
    };
    if size > available {
        return Err(no_space(
            size,
            format!("{available} bytes of memory are available"),
        ));
    }
    Ok(())
}

/// What the machine, and the cgroup that this process is in, have left. `None` where neither says so. Errors where this
/// process has run out of descriptors, and nothing was asked.
pub(crate) fn available_memory() -> Result<Option<u64>, Errno> {
    let machine = match std::fs::read_to_string("/proc/meminfo") {
        Err(error) if is_shortage(errno(&error)) => return Err(errno(&error)),
        other => other.ok(),
    };
    let machine = machine.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    });
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
            let read = |name: &str| {
                std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}"))
                    .ok()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            // What is used includes the cache of files, most of which the kernel gives back when asked.
            let stat = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.stat")).ok()?;
            let cache = stat
                .lines()
                .find_map(|line| line.strip_prefix("inactive_file "))?
                .parse::<u64>()
                .ok()?;
            Some(read("memory.max")?.saturating_sub(read("memory.current")?.saturating_sub(cache)))
        });
    Ok(machine.into_iter().chain(cgroup).min())
}

/// Looks at an object that the peer passed, believing nothing, and maps it for reading.
pub(crate) fn accept(
    descriptor: &OwnedFd,
    options: &Options,
    capacity: u64,
    stated: u64,
    owner: u32,
    record: &mut Record,
) -> Result<PeerRegion> {
    let agreed = region_size(capacity);
    let mut hold = |check: &'static str, wanted: String, found: String, passed: bool| {
        if passed {
            record.passed("object", check, wanted, found);
            Ok(())
        } else {
            Err(Error::ObjectUnsound { check, wanted, found })
        }
    };
    let unsound = |check: &'static str, wanted: &str, errno: Errno| {
        Error::unless_short("looking at the peer's shared object", errno, |errno| {
            Error::ObjectUnsound {
                check,
                wanted: wanted.to_owned(),
                found: errno.desc().to_owned(),
            }
        })
    };
    let stat = fstat(descriptor).map_err(|errno| unsound("file", "a file that can be looked at", errno))?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    hold(
        "kind",
        "a regular file".into(),
        if kind == SFlag::S_IFREG {
            "a regular file".into()
        } else {
            format!("{kind:?}")
        },
        kind == SFlag::S_IFREG,
    )?;
    // Any other filesystem may answer a read of the mapping late, never, or with a signal.
    let filesystem = fstatfs(descriptor)
        .map_err(|errno| unsound("filesystem", "tmpfs", errno))?
        .filesystem_type();
    hold(
        "filesystem",
        "tmpfs".into(),
        format!("{:#x}", filesystem.0),
        filesystem == TMPFS_MAGIC,
    )?;
    let size = stat.st_size.cast_unsigned();
    hold(
        "size",
        format!("{agreed} bytes, as agreed"),
        format!("{size}, and {stated} stated"),
        size == agreed && stated == agreed,
    )?;
    // What has no memory of its own yet would be given ours when it is mapped.
    let reserved = stat.st_blocks.cast_unsigned() * 512;
    hold(
        "memory",
        format!("{agreed} bytes reserved"),
        format!("{reserved} reserved"),
        reserved >= agreed,
    )?;
    hold(
        "owner",
        format!("uid {owner}, the peer"),
        format!("uid {}", stat.st_uid),
        stat.st_uid == owner,
    )?;
    hold("names", "0".into(), stat.st_nlink.to_string(), stat.st_nlink == 0)?;
    if options.backing == Backing::Memfd {
        let found = fcntl(descriptor, FcntlArg::F_GET_SEALS)
            .map_err(|errno| unsound("seals", "a sealed memfd", errno))?;
        let found = SealFlag::from_bits_retain(found);
        hold("seals", names(seals()), names(found), found.contains(seals()))?;
    } else {
        let flags = sys::open_flags(descriptor).map_err(|errno| unsound("access", "O_RDWR", errno))?;
        hold(
            "access",
            "O_RDWR".into(),
            format!("{:#o}", flags & libc::O_ACCMODE),
            flags & libc::O_ACCMODE == libc::O_RDWR,
        )?;
        let leased = sys::has_write_lease(descriptor)
            .map_err(|errno| unsound("lease", "F_WRLCK, held by the peer", errno))?;
        hold(
            "lease",
            "F_WRLCK, held by the peer".into(),
            if leased { "F_WRLCK" } else { "not held" }.into(),
            leased,
        )?;
    }
    PeerRegion::map(descriptor, capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> OwnedFd {
        memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap()
    }

    fn reserved(object: &OwnedFd) -> i64 {
        fstat(object).unwrap().st_blocks * 512
    }

    /// A deadline that passes in the middle ends it there, and not after all of it.
    #[test]
    fn memory_is_reserved_part_by_part_and_no_further_than_there_is_time() {
        let object = object();
        let size = 40 << 20;
        let mut before = 0;
        let mut looks = 0;
        let result = reserve(&object, size, || {
            let now = reserved(&object);
            assert!(now - before <= PART[0], "{before} became {now} in one go");
            before = now;
            looks += 1;
            if looks == 4 { Err(Error::Aborted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Aborted)));
        assert_eq!(reserved(&object), 3 * PART[0]);
        reserve(&object, size, || Ok(())).unwrap();
        assert_eq!(reserved(&object).cast_unsigned(), size);
    }

    #[test]
    fn what_is_no_whole_part_is_reserved_as_well() {
        let object = object();
        reserve(&object, (4 << 20) + 8192, || Ok(())).unwrap();
        assert_eq!(fstat(&object).unwrap().st_size, (4 << 20) + 8192);
        assert_eq!(reserved(&object), (4 << 20) + 8192);
    }

    /// The time of a whole handshake, and whoever calls it off, count here too.
    #[test]
    fn a_deadline_and_a_cancel_token_end_the_reservation_of_memory() {
        let cancel_token = crate::wait::deadline::CancelToken::new().unwrap();
        let deadline = Deadline::endless(vec![cancel_token.clone()], std::time::Duration::from_secs(60));
        has_time(&deadline).unwrap();
        let late = deadline.within(std::time::Duration::ZERO);
        assert_eq!(has_time(&late).unwrap_err().code(), "HANDSHAKE_TIMEOUT");
        cancel_token.cancel();
        assert_eq!(has_time(&deadline).unwrap_err().code(), "ABORTED");
    }
}
