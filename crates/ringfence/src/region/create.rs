//! An object of this process, made so that no other process has it.

use std::{
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open},
    libc::c_int,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{shm_open, shm_unlink},
        socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
        stat::{Mode, fchmod, fstat},
    },
    unistd::{fchown, geteuid},
};

use crate::{
    error::{Error, OrSystem, Result},
    evidence::{ANONYMOUS, EvidenceLog, LEASED, NO_MODE, SEALED, TRIPWIRE, UNLINKED},
    fork::CloseOnForkFd,
    region::{
        layout::region_size,
        own::OwnRegion,
        room::reserve,
        tripwire::{Tripwire, lease_error},
    },
    sys::{self, socket::ControlStatus, uninterrupted},
    wait::deadline::Deadline,
};

/// The number of attempts to make an object that no other process has opened.
const MAX_ATTEMPTS: u32 = 8;

/// The properties of the object to be made.
pub(crate) struct ObjectSpec<'a> {
    pub(crate) backing: Backing,
    /// The name of a memfd in /proc/PID/maps: at most 249 bytes (memfd_create(2)). `ringfence ps` reads it there; no
    /// peer does.
    pub(crate) name: &'a [u8],
    /// The size of the ring in bytes.
    pub(crate) capacity: u64,
    /// The signal of the tripwire.
    pub(crate) signal: c_int,
    /// The uid of the peer that will receive the object.
    pub(crate) peer: u32,
}

/// A shared object that this process has made and mapped, and whose descriptor is still open.
pub(crate) struct SharedObject {
    /// The descriptor that is passed to the peer.
    descriptor: CloseOnForkFd,
    pub(crate) region: OwnRegion,
}

impl AsFd for SharedObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl SharedObject {
    /// Makes an object and proves that no other process has it. Reserving the memory of a large object takes
    /// time, which `deadline` limits.
    pub(crate) fn create(
        wanted: &ObjectSpec<'_>,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<Self> {
        retry_exposed(|| match wanted.backing {
            Backing::Memfd => {
                let blank = Blank::create(wanted.name, wanted.capacity, deadline)?;
                Self::seal(blank, wanted, record)
            }
            // The lease belongs to the same open file that the peer receives. Through it the peer could make
            // the kernel send any other signal, even one that terminates this process. A peer of the same
            // user can do that anyway.
            Backing::Shm => {
                let signal = (wanted.peer == geteuid().as_raw()).then_some(wanted.signal);
                Self::create_shm(wanted.capacity, signal, deadline, record)
            }
        })
    }

    /// Makes the object of a memfd: maps it, and seals it against every further writer.
    pub(crate) fn seal(blank: Blank, wanted: &ObjectSpec<'_>, record: &mut EvidenceLog) -> Result<Self> {
        let ObjectSpec { capacity, signal, .. } = *wanted;
        let Blank { raw, leased, kind } = blank;
        let region = OwnRegion::map(&leased, capacity)?;
        fcntl(&leased, FcntlArg::F_ADD_SEALS(wanted_seals())).or_system("sealing the memfd (Linux 5.1)")?;
        let links = count_links(&leased)?;
        if links != 0 {
            return Err(Error::ObjectExposed(format!("it has {links} names")));
        }
        record.met(ANONYMOUS, kind);
        record.met(SEALED, seal_names(wanted_seals()));
        region.guard(Tripwire::arm(&leased, signal)?);
        record_lease(Some(signal), record);
        // From here on only the mapping keeps the open file. So no process can take its descriptor and, with
        // it, the lease.
        drop(leased);
        Ok(Self {
            descriptor: raw,
            region,
        })
    }

    fn create_shm(
        capacity: u64,
        signal: Option<c_int>,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<Self> {
        let random: [u8; 16] = sys::process::bytes().or_system("random bytes")?;
        let name = format!("/ringfence-{:032x}", u128::from_le_bytes(random));
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let descriptor =
            shm_open(name.as_str(), flags, Mode::empty()).or_system("making a shared object in /dev/shm")?;
        let descriptor = CloseOnForkFd::new(descriptor)?;
        sys::uninterrupted(|| shm_unlink(name.as_str())).map_err(|errno| {
            Error::unless_short("unlinking a shared object", errno, |errno| {
                Error::ObjectExposed(format!("its name could not be removed: {}", errno.desc()))
            })
        })?;
        let links = count_links(&descriptor)?;
        if links != 0 {
            return Err(Error::ObjectExposed(format!(
                "it still has {links} names: another process linked it before it was unlinked"
            )));
        }
        reserve(descriptor.as_fd(), region_size(capacity), || {
            deadline.check_at(RESERVING)
        })?;
        let region = OwnRegion::map(&descriptor, capacity)?;
        record.met(UNLINKED, "shm, 0 names");
        match signal {
            Some(signal) => region.guard(Tripwire::arm(&descriptor, signal)?),
            None => sys::file::acquire_lease(&descriptor).map_err(lease_error)?,
        }
        record_lease(signal, record);
        Ok(Self { descriptor, region })
    }

    /// Removes all permissions. Existing descriptors stay valid. A process of another user that has received
    /// one can no longer open the object again through its own /proc, and so cannot raise a false alarm. A
    /// process of the same user could restore the permission.
    pub(crate) fn remove_permissions(&self, record: &mut EvidenceLog) -> Result<()> {
        fchmod(&self.descriptor, Mode::empty()).or_system("removing the permissions of the shared object")?;
        record.met(NO_MODE, "0");
        Ok(())
    }

    /// Fails with [`Error::ObjectExposed`] if another process has tried to open the object.
    pub(crate) fn check(&self) -> Result<()> {
        if self.region.tripwire().is_some_and(Tripwire::is_tripped) {
            return Err(Error::ObjectExposed(
                "another process tried to open it during the handshake".into(),
            ));
        }
        Ok(())
    }
}

/// A memfd with its memory, which no process has mapped yet.
pub(crate) struct Blank {
    /// The descriptor that the owner passes to its peer.
    raw: CloseOnForkFd,
    /// The kernel does not count a raw memfd as open for writing, so it would refuse the lease. A reopened
    /// memfd behaves like any file. The reopened file and its lease stay with the owner.
    leased: CloseOnForkFd,
    /// Its description in the evidence.
    kind: &'static str,
}

impl Blank {
    fn create(name: &[u8], capacity: u64, deadline: &Deadline) -> Result<Self> {
        let (raw, noexec) = memfd(name)?;
        let raw = CloseOnForkFd::new(raw)?;
        let path = format!("/proc/self/fd/{}", raw.as_raw_fd());
        let leased = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .or_system("reopening the memfd through /proc/self/fd (openat)")?;
        let leased = CloseOnForkFd::new(leased)?;
        reserve(leased.as_fd(), region_size(capacity), || {
            deadline.check_at(RESERVING)
        })?;
        let kind = if noexec {
            "memfd, never executable"
        } else {
            "memfd"
        };
        Ok(Self { raw, leased, kind })
    }

    /// Whether this process may create one. A shortage is no denial.
    pub(crate) fn is_allowed(deadline: &Deadline) -> bool {
        !matches!(
            Self::create(b"ringfence-trial", 0, deadline),
            Err(Error::Unsupported { .. })
        )
    }

    /// Creates one for a child of this user. The child maps and seals it.
    pub(crate) fn for_child(capacity: u64, user: u32, deadline: &Deadline) -> Result<Self> {
        let blank = Self::create(b"ringfence", capacity, deadline)?;
        if user != geteuid().as_raw() {
            // The kernel grants a lease to the owner alone.
            fchown(&*blank.raw, Some(user.into()), None)
                .or_system("giving memory to the child's user (fchown)")?;
        }
        Ok(blank)
    }

    /// Receives the one that the parent has created for this process.
    pub(super) const fn of_parent(raw: CloseOnForkFd, leased: CloseOnForkFd) -> Self {
        Self {
            raw,
            leased,
            kind: "memfd, created by the parent",
        }
    }

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        // In this order: the receiver takes the last one first.
        [self.leased.as_fd(), self.raw.as_fd()]
    }
}

/// Makes a memfd that can be sealed. Returns whether it can never be executed.
pub(super) fn memfd(name: &[u8]) -> Result<(OwnedFd, bool)> {
    /// MFD_NOEXEC_SEAL, Linux 6.3.
    const NOEXEC_SEAL: u32 = 8;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name, flags | MFdFlags::from_bits_retain(NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => memfd_create(name, flags).map(|raw| (raw, false)),
        other => other.map(|raw| (raw, true)),
    };
    made.or_system("making a memfd")
}

/// Makes a new object each time that another process has opened the previous one, up to `MAX_ATTEMPTS` objects.
fn retry_exposed<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..MAX_ATTEMPTS {
        match make() {
            Err(Error::ObjectExposed(_)) => {}
            other => return other,
        }
    }
    make()
}

fn record_lease(signal: Option<c_int>, record: &mut EvidenceLog) {
    record.met(LEASED, "granted");
    match signal {
        Some(signal) => record.met(TRIPWIRE, format!("by signal {signal}")),
        None => record.not_asked(
            "object",
            "tripwire",
            "none: with shm, a peer of another user could make the kernel send any signal",
        ),
    }
}

fn count_links(descriptor: &OwnedFd) -> Result<u64> {
    #[cfg_attr(
        target_arch = "x86_64",
        expect(
            clippy::useless_conversion,
            reason = "st_nlink has 32 bits on other architectures"
        )
    )]
    fstat(descriptor)
        .map(|stat| u64::from(stat.st_nlink))
        .or_system("inspecting the shared object (fstat)")
}

/// The step in which a deadline may pass.
const RESERVING: &str = "reserving this side's memory";

named! { all pub(crate),
    /// The kind of shared memory. Both sides of a channel must choose the same.
    #[non_exhaustive]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub enum Backing {
        /// memfd_create(2), sealed. It never has a name, and the peer can neither write, shrink nor grow it.
        #[default]
        Memfd = 1 => "memfd",
        /// shm_open(3) with mode 0 under a random name that is unlinked immediately. For a moment a process of
        /// the same user can open it, and the peer could truncate it. The lease detects most processes that
        /// opened it.
        Shm = 2 => "shm",
    }
}

numbered! { Backing as u32 }
parsed! { Backing, "backing" }

/// Returns the seals of an object: the owner's mapping stays writable, and no process can make another
/// writable one.
pub(crate) fn wanted_seals() -> SealFlag {
    SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Returns the names of seals, as in fcntl(2), for the evidence.
pub(super) fn seal_names(found: SealFlag) -> String {
    /// F_SEAL_EXEC, which the kernel sets when it creates a memfd that can never be executed (Linux 6.3).
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

// A descriptor that this process keeps where no path leads to it: in flight, in a socket of its own.
//
// A publisher passes its ring to each new subscriber as long as it accepts any. If the descriptor were in
// the table, every process of the same user could open it again through `/proc/PID/fd`. A descriptor that
// was sent on a socket and not received is in no table, and a socket cannot be opened through /proc.
//
// recvmsg(2) with `MSG_PEEK` installs a copy and leaves the message in the queue. Receiving it and sending
// it back could lose it, if no descriptor is available in between.

/// The kept descriptor. Dropping it closes it.
pub(crate) struct InFlightDescriptor {
    /// Its queue holds one message, which is never received. No other end is open. A forked child closes its
    /// copy.
    socket: CloseOnForkFd,
}

impl InFlightDescriptor {
    /// Keeps a copy of a descriptor, which counts against the user's limit of descriptors in flight
    /// (unix(7)).
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if that limit is reached, or if no descriptor is available for the socket.
    pub(crate) fn new(descriptor: impl AsFd) -> Result<Self> {
        const WHAT: &str = "keeping a descriptor for new subscribers";
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (sending, receiving) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).or_system(WHAT)?;
        let (sending, socket) = (CloseOnForkFd::new(sending)?, CloseOnForkFd::new(receiving)?);
        let raw = [descriptor.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&raw)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        uninterrupted(|| sendmsg::<()>(sending.as_raw_fd(), &[IoSlice::new(&[1])], &control, flags, None))
            .or_system(WHAT)?;
        // The message stays in the queue although its sender is closed.
        drop(sending);
        Ok(Self { socket })
    }

    /// Returns a copy, which is in this process's table until it is dropped. Fails with [`Error::NoSpace`] if
    /// no descriptor is available now; a later call may succeed.
    pub(crate) fn copy(&self) -> Result<OwnedFd> {
        const WHAT: &str = "a copy of the descriptor that is kept for new subscribers";
        let mut byte = [0];
        let received = sys::socket::peek(&*self.socket, &mut byte).or_system(WHAT)?;
        let mut descriptors = received.descriptors;
        match (received.control, descriptors.pop()) {
            (ControlStatus::Expected, Some(copy)) => Ok(copy),
            (ControlStatus::Short, _) => Err(Error::system(WHAT, Errno::EMFILE)),
            // No other message was ever sent there.
            _ => Err(Error::system(WHAT, Errno::EBADMSG)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use nix::{
        fcntl::{FcntlArg, FdFlag, SealFlag, fcntl},
        libc,
        sys::{
            memfd::{MFdFlags, memfd_create},
            resource::{Resource, getrlimit, setrlimit},
            stat::fstat,
        },
    };

    use super::*;

    fn time() -> Deadline {
        Deadline::endless(Vec::new(), std::time::Duration::ZERO)
    }

    fn created(backing: Backing, capacity: u64, peer: u32) -> (SharedObject, Vec<(&'static str, String)>) {
        let wanted = ObjectSpec {
            backing,
            name: b"ringfence-test",
            capacity,
            signal: libc::SIGRTMIN() + 5,
            peer,
        };
        let mut record = EvidenceLog::default();
        let object = SharedObject::create(&wanted, &time(), &mut record).unwrap();
        let evidence = record.into_list().into_iter();
        (object, evidence.map(|one| (one.check, one.found)).collect())
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn object_is_sealed_or_unlinked_and_close_on_exec() {
        let own = geteuid().as_raw();
        for (backing, capacity, peer, checks, name) in [
            (
                Backing::Memfd,
                4096,
                own,
                &["created", "sealed", "lease", "tripwire"][..],
                "/memfd:ringfence-test (deleted)",
            ),
            (
                Backing::Memfd,
                0,
                own + 1,
                &["created", "sealed", "lease", "tripwire"],
                "/memfd:ringfence-test (deleted)",
            ),
            (
                Backing::Shm,
                4096,
                own,
                &["created", "lease", "tripwire"],
                "/dev/shm/ringfence-",
            ),
        ] {
            let (object, evidence) = created(backing, capacity, peer);
            let found: Vec<_> = evidence.iter().map(|(check, _)| *check).collect();
            assert_eq!(found, checks);
            assert!(
                evidence.last().unwrap().1.starts_with("by signal "),
                "{evidence:?}"
            );
            object.check().unwrap();
            let flags = FdFlag::from_bits_retain(fcntl(&object, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
            let link = std::fs::read_link(format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())).unwrap();
            assert!(link.to_str().unwrap().starts_with(name), "{link:?}");
            if backing == Backing::Memfd {
                let seals = SealFlag::from_bits_retain(fcntl(&object, FcntlArg::F_GET_SEALS).unwrap());
                assert!(seals.contains(wanted_seals()));
                // Kernels that support this seal set it at creation.
                let never_executable = seals.bits() & 0x20 != 0;
                assert_eq!(evidence[0].1 == "memfd, never executable", never_executable);
                object.remove_permissions(&mut EvidenceLog::default()).unwrap();
                assert_eq!(fstat(&object).unwrap().st_mode & 0o777, 0);
            }
        }
        // A peer of another user must not get a descriptor with which it could make the kernel send a signal
        // here.
        let (object, evidence) = created(Backing::Shm, 4096, own + 1);
        assert!(object.region.tripwire().is_none());
        assert!(evidence.last().unwrap().1.starts_with("none: "), "{evidence:?}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn object_opened_by_another_process_is_exposed() {
        let (object, _) = created(Backing::Memfd, 4096, geteuid().as_raw());
        let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
        // A blocking open would wait for the lease.
        let opened = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        while !object.region.tripwire().unwrap().is_tripped() {
            std::thread::yield_now();
        }
        assert_eq!(object.check().unwrap_err().code(), "OBJECT_EXPOSED");
    }

    #[test]
    fn exposed_object_is_recreated_a_few_times() {
        let tried = |answer: fn(u32) -> Result<u32>| {
            let mut tries = 0;
            let made = retry_exposed(|| {
                tries += 1;
                answer(tries)
            });
            (made.map_err(|error| error.code()), tries)
        };
        let exposed = |_| Err(Error::ObjectExposed(String::new()));
        assert_eq!(tried(Ok), (Ok(1), 1));
        assert_eq!(tried(exposed), (Err("OBJECT_EXPOSED"), MAX_ATTEMPTS));
        assert_eq!(tried(|_| Err(Error::Aborted)), (Err("ABORTED"), 1));
        assert_eq!(
            tried(|tries| if tries < MAX_ATTEMPTS {
                Err(Error::ObjectExposed(String::new()))
            } else {
                Ok(tries)
            }),
            (Ok(MAX_ATTEMPTS), MAX_ATTEMPTS)
        );
    }

    #[test]
    fn names_of_an_object_are_counted() {
        let named = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let descriptor = OwnedFd::from(named.reopen().unwrap());
        assert_eq!(count_links(&descriptor).unwrap(), 1);
        drop(named);
        assert_eq!(count_links(&descriptor).unwrap(), 0);
    }

    /// The deadline and the cancel token of the handshake apply here too.
    #[test]
    fn deadline_and_cancel_token_end_the_reservation() {
        let cancel_token = crate::wait::deadline::CancelToken::new().unwrap();
        let deadline = Deadline::endless(vec![cancel_token.clone()], std::time::Duration::from_secs(60));
        deadline.check_at(RESERVING).unwrap();
        let late = deadline.within(std::time::Duration::ZERO);
        assert_eq!(late.check_at(RESERVING).unwrap_err().code(), "HANDSHAKE_TIMEOUT");
        cancel_token.cancel();
        assert_eq!(deadline.check_at(RESERVING).unwrap_err().code(), "ABORTED");
    }

    #[test]
    fn each_backing_has_a_number_and_a_name() {
        let known = [(1, "memfd", Backing::Memfd), (2, "shm", Backing::Shm)];
        for (number, name, backing) in known {
            assert_eq!(backing.number(), number);
            assert_eq!(Backing::from_number(number), Some(backing));
            assert_eq!(name.parse::<Backing>().unwrap(), backing);
        }
        for number in [0, 3, u32::MAX] {
            assert_eq!(Backing::from_number(number), None);
        }
        assert_eq!("mem".parse::<Backing>().unwrap_err().code(), "INVALID_ARGUMENT");
    }

    #[test]
    fn required_seals_do_not_restrict_the_owner() {
        assert_eq!(seal_names(SealFlag::empty()), "none");
        assert_eq!(seal_names(SealFlag::from_bits_retain(0x20)), "EXEC");
        assert_eq!(
            seal_names(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL),
            "WRITE|SEAL"
        );
        assert_eq!(seal_names(wanted_seals()), "FUTURE_WRITE|SHRINK|GROW|SEAL");
    }

    fn object() -> OwnedFd {
        memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap()
    }

    /// Whether any descriptor of this process refers to that file.
    fn is_open(inode: u64) -> bool {
        std::fs::read_dir("/proc/self/fd").unwrap().any(|entry| {
            let path = entry.unwrap().path();
            std::fs::metadata(path).is_ok_and(|found| std::os::unix::fs::MetadataExt::ino(&found) == inode)
        })
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn parked_descriptor_is_in_no_table_and_can_be_copied() {
        let object = object();
        let inode = fstat(&object).unwrap().st_ino;
        let kept = InFlightDescriptor::new(&object).unwrap();
        drop(object);
        let flags = fcntl(&kept.socket, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        for _ in 0..3 {
            assert!(!is_open(inode));
            let copy = kept.copy().unwrap();
            assert_eq!(fstat(&copy).unwrap().st_ino, inode);
            assert!(is_open(inode));
        }
        // Two copies at the same time.
        let copies = [kept.copy().unwrap(), kept.copy().unwrap()];
        assert_ne!(copies[0].as_raw_fd(), copies[1].as_raw_fd());
    }

    /// In a separate process, because the limit applies to the whole process, including other tests.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no fork")]
    fn parked_descriptor_survives_a_descriptor_shortage() {
        use nix::{
            sys::wait::WaitStatus,
            sys::wait::waitpid,
            unistd::{ForkResult, fork},
        };
        // SAFETY: the child makes only system calls and calls this crate's own code, and exits without
        // returning.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let kept = InFlightDescriptor::new(object()).unwrap();
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
                let short = kept.copy().is_err_and(|error| error.code() == "NO_SPACE");
                setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
                let again = kept.copy().is_ok();
                // SAFETY: _exit only ends this process.
                unsafe { nix::libc::_exit(i32::from(!(short && again))) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
    }
}
