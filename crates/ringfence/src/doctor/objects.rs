//! Probes of shared memory: seals, leases, the tripwire, and the available space.

use std::{
    os::fd::{AsRawFd, OwnedFd},
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
        stat::Mode,
        statfs::{TMPFS_MAGIC, statfs},
        statvfs::statvfs,
        uio::pwrite,
    },
    unistd::ftruncate,
};

use crate::{
    doctor::{
        Judgement,
        Status::{Good, Limited, Missing},
        bytes, default_region, number_in,
    },
    region::{
        copy::Writable,
        create::wanted_seals,
        layout::{self, CAPACITY_MIN, region_size},
        map::Mapping,
        own::OwnRegion,
        peer::PeerRegion,
        room::{self, check_room},
        tripwire::Tripwire,
    },
    signal::claim,
    sys,
};

/// A memfd as the channel makes it: reopened, so that the kernel counts it among the open files.
pub(super) fn memfd() -> Result<OwnedFd, String> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let raw = memfd_create("ringfence-doctor", flags).map_err(failed("memfd_create"))?;
    reopen(&raw, OFlag::O_RDWR).map_err(failed("reopening a memfd through /proc/self/fd"))
}

/// Names the failed call, and the reason.
pub(super) fn failed(what: &'static str) -> impl FnOnce(Errno) -> String {
    move |errno| format!("{what}: {}", errno.desc())
}

/// Opens the same object again.
pub(super) fn reopen(object: &OwnedFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

pub(super) fn memfd_seals() -> Judgement {
    match broken_seals() {
        Ok(open) if open.is_empty() => Good.with(
            "a second writable mapping, mprotect, writing, shrinking, growing, punching a hole and further seals \
             are refused; the first mapping still writes, and a reader sees the data",
            "with the memfd backing, an accepted peer that turns hostile cannot write, truncate or grow this \
             side's memory",
        ),
        Ok(open) => Missing.with(
            format!("possible despite the seals: {}", open.join(", ")),
            "a peer could change this side's memory unnoticed; connect only to processes that you trust completely",
        ),
        Err(why) => Missing.with(
            why,
            "the memfd backing cannot be used here; it needs Linux 5.1, files of more than 12 KiB (ulimit -f), and \
             a sandbox that allows memfd_create and /proc/self/fd",
        ),
    }
}

/// Seals a throw-away memfd as the channel does. Returns the operations that are still possible and must not be.
fn broken_seals() -> Result<Vec<&'static str>, String> {
    let object = memfd()?;
    let size = region_size(CAPACITY_MIN);
    let length = libc::off_t::try_from(size).map_err(|error| error.to_string())?;
    // The object is also grown, by a byte. Beyond the file size limit the kernel would send SIGXFSZ before it checks the seals.
    check_room(size + 1).map_err(|error| error.to_string())?;
    ftruncate(&object, length).map_err(failed("ftruncate"))?;
    let own = OwnRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;
    fcntl(&object, FcntlArg::F_ADD_SEALS(wanted_seals())).map_err(failed("F_ADD_SEALS"))?;
    let peer = PeerRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;

    own.store(layout::DATA, 42, Ordering::Release);
    let live = peer.peek(layout::DATA) == 42;
    let mapping = Mapping::new(&object, 4096, false).map_err(failed("mapping a memfd read-only"))?;
    let writable = NonNull::new(mapping.as_mut_ptr().cast()).is_some_and(|address| {
        // SAFETY: the range is that mapping, to which no other code has a pointer. If the call succeeds, it
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
        ("writes of the owner's mapping are lost", !live),
        (
            "a second writable mapping",
            Mapping::new(&object, 4096, true).is_ok(),
        ),
        ("making a mapping writable", writable),
        ("writing", pwrite(&object, b"x", 0).is_ok()),
        ("shrinking", ftruncate(&object, 0).is_ok()),
        ("growing", ftruncate(&object, length + 1).is_ok()),
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

pub(super) fn memfd_noexec() -> Judgement {
    /// The flag of memfd_create and the seal that it sets (Linux 6.3). nix does not define them.
    const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);
    const SEAL_EXEC: i32 = 0x20;
    let sysctl = number_in("/proc/sys/vm/memfd_noexec");
    let rule = match sysctl {
        Some(2) => "vm.memfd_noexec=2: required for all memfds",
        Some(1) => "vm.memfd_noexec=1: the default for all memfds",
        Some(_) => "vm.memfd_noexec=0: on request only",
        None => "no vm.memfd_noexec",
    };
    let flags = MFdFlags::MFD_CLOEXEC | NOEXEC_SEAL;
    let sealed = memfd_create("ringfence-doctor", flags)
        .and_then(|object| fcntl(&object, FcntlArg::F_GET_SEALS).map(|seals| seals & SEAL_EXEC != 0));
    match sealed {
        Ok(true) => Good.with(
            format!("granted and sealed; {rule}"),
            "the content of shared memory cannot be executed through its descriptor",
        ),
        Ok(false) => Limited.with(
            format!("granted, but not sealed; {rule}"),
            "a process that has the descriptor may make the object executable; no other promise depends on this",
        ),
        Err(errno) => Limited.with(
            format!("not granted: {} (Linux 6.3); {rule}", errno.desc()),
            "the memory is made without the flag, so a process that has the descriptor may execute its content; no \
             other promise depends on this",
        ),
    }
}

pub(super) fn memfd_lease() -> Judgement {
    match memfd().and_then(|object| probe_lease(&object)) {
        Ok(found) => Good.with(
            found,
            "the kernel confirms that no other process has the object open when it is passed to the peer, and \
             delays later opens by the lease-break time",
        ),
        Err(why) => Missing.with(
            why,
            "the memfd backing cannot prove that its object is exclusive, so no channel can be made; check for a \
             sandbox that forbids fcntl(2) F_SETLEASE, or an unreadable /proc",
        ),
    }
}

pub(super) fn shm_lease() -> Judgement {
    match shm_object().and_then(|object| probe_lease(&object)) {
        Ok(found) => Good.with(
            found,
            "with the shm backing, an open before the lease is detected, except with O_PATH; the peer itself can \
             write and truncate the object: prefer memfd, which has no name and is sealed",
        ),
        Err(why) => Missing.with(
            why,
            "the shm backing cannot be used here; the memfd backing, which is the default, does not need this",
        ),
    }
}

/// A shm object as the channel makes it, but with a mode that lets the probe open it again.
fn shm_object() -> Result<OwnedFd, String> {
    let random: [u8; 16] = sys::process::bytes().map_err(failed("getrandom"))?;
    let name = format!("/ringfence-doctor-{:032x}", u128::from_le_bytes(random));
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let object = shm_open(name.as_str(), flags, mode).map_err(failed("shm_open"))?;
    shm_unlink(name.as_str()).map_err(failed("shm_unlink"))?;
    Ok(object)
}

/// Tests whether a write lease detects that another process has an object open.
fn probe_lease(object: &OwnedFd) -> Result<String, String> {
    let open = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let second = reopen(object, open).map_err(failed("opening the object again"))?;
    match sys::file::acquire_lease(object) {
        Err(Errno::EAGAIN) => {}
        Ok(()) => return Err("granted although the object was open twice".into()),
        Err(errno) => return Err(failed("F_SETLEASE")(errno)),
    }
    drop(second);
    // A child that another thread of this process forks holds a copy of `second` until it execs.
    let deadline = Instant::now() + Duration::from_secs(1);
    while let Err(errno) = sys::file::acquire_lease(object) {
        if errno != Errno::EAGAIN || Instant::now() >= deadline {
            return Err(failed("F_SETLEASE on an object that no other process has open")(
                errno,
            ));
        }
        thread::sleep(Duration::from_millis(1));
    }
    if sys::file::has_write_lease(object) != Ok(true) {
        return Err("granted, but F_GETLEASE does not show it".into());
    }
    match reopen(object, open) {
        Err(Errno::EWOULDBLOCK) => {}
        Ok(_) => return Err("granted, but a later open succeeds immediately".into()),
        Err(errno) => return Err(failed("opening the object under the lease")(errno)),
    }
    let seconds = number_in("/proc/sys/fs/lease-break-time")
        .map_or_else(|| "unknown".into(), |seconds| format!("{seconds} s"));
    Ok(format!(
        "granted for a single open, refused (EAGAIN) while a second open exists; later opens are delayed \
         (lease-break time: {seconds})"
    ))
}

pub(super) fn tripwire() -> Judgement {
    match triggers_alarm() {
        Ok((number, true)) => Good.with(
            format!("triggered (signal {number}) when the object was opened under its lease"),
            "if a process opens the memory of a channel, the owner wipes it first, and the channel ends on both sides \
             (exposed)",
        ),
        Ok((number, false)) => Missing.with(
            format!("signal {number} did not arrive within {} s", ALARM.as_secs()),
            "a process that opens the memory of a channel is delayed by the lease-break time, and neither side is \
             notified; check for a sandbox that forbids fcntl(2) F_SETSIG or F_SETOWN_EX, or hides /proc/locks",
        ),
        Err(why) => Missing.with(
            why,
            "no channel can be made",
        ),
    }
}

/// The time limit of the wait for the alarm. The signal is sent immediately, but the thread may wait for a processor.
const ALARM: Duration = Duration::from_secs(2);

/// Opens an object that has a tripwire. Returns the alarm's signal, and whether it arrived.
fn triggers_alarm() -> Result<(i32, bool), String> {
    let object = memfd()?;
    let refused = |error: crate::error::Error| error.to_string();
    let number = claim::unused().map_err(refused)?;
    let wire = Tripwire::arm(&object, number).map_err(refused)?;
    let (triggered, alarm) = mpsc::channel();
    wire.on_alarm(move || {
        // Fails if the receiver has timed out.
        let _ = triggered.send(());
        None
    });
    match reopen(&object, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(Errno::EWOULDBLOCK) => {}
        Ok(_) => return Err("an open succeeds immediately".into()),
        Err(errno) => return Err(failed("opening the object under the lease")(errno)),
    }
    Ok((number, alarm.recv_timeout(ALARM).is_ok()))
}

pub(super) fn shared_memory() -> Judgement {
    let none =
        "the shm backing cannot be used here; the memfd backing, which is the default, does not need it";
    match statfs("/dev/shm").map(|found| found.filesystem_type()) {
        Ok(TMPFS_MAGIC) => {}
        Ok(_) => return Missing.with("not a tmpfs", none),
        Err(errno) => return Missing.with(errno.desc(), none),
    }
    let found = match statvfs("/dev/shm") {
        Ok(found) => found,
        Err(errno) => return Missing.with(errno.desc(), none),
    };
    let size = found.blocks().saturating_mul(found.fragment_size());
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let pair = default_region() * 2;
    // A tmpfs that is mounted with size=0 has no limit except memory, and reports zero blocks.
    let room = if size == 0 { pair } else { free };
    let text = if size == 0 {
        "no size limit".to_owned()
    } else {
        format!("{} free of {}", bytes(free), bytes(size))
    };
    if room >= pair {
        Good.with(
            text,
            format!(
                "a pair with the shm backing and default rings uses {}; the memfd backing uses none",
                bytes(pair)
            ),
        )
    } else {
        Limited.with(
            text,
            format!(
                "the shm backing has no space for a pair with default rings ({}): enlarge /dev/shm (a container's \
                 shm-size), choose a smaller capacity, or use memfd, which does not use /dev/shm",
                bytes(pair)
            ),
        )
    }
}

pub(super) fn memory() -> Judgement {
    let region = default_region();
    let found = match room::available_memory() {
        Ok(Some(available)) => format!("{} available to this process", bytes(available)),
        Ok(None) => "in neither /proc/meminfo nor the cgroup".into(),
        Err(errno) => format!("/proc/meminfo cannot be read: {}", errno.desc()),
    };
    match room::check_room(region) {
        Ok(()) => Good.with(
            found,
            format!(
                "each side allocates its ring in full ({} by default) when the channel is made, so a lack of \
                 memory is an error then, not a signal later",
                bytes(region)
            ),
        ),
        Err(error) => Missing.with(
            format!("{found}; {error}"),
            format!(
                "a default ring ({}) fails with NO_SPACE; choose a smaller capacity, or give this process more \
                 memory",
                bytes(region)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seal_probe_detects_an_unsealed_object() {
        let object = memfd().unwrap();
        ftruncate(&object, 4096).unwrap();
        assert!(Mapping::new(&object, 4096, true).is_ok());
        assert!(pwrite(&object, b"x", 0).is_ok());
        assert!(ftruncate(&object, 0).is_ok());
        assert_eq!(broken_seals(), Ok(vec![]));
    }

    #[test]
    fn lease_probe_detects_a_second_open() {
        let object = memfd().unwrap();
        assert!(probe_lease(&object).is_ok());
        let object = memfd().unwrap();
        let _second = reopen(&object, OFlag::O_RDONLY).unwrap();
        assert!(probe_lease(&object).unwrap_err().contains("no other process"));
    }
}
