//! Whether the kernel says that an object is open once, and tells when it is opened again.

use std::{
    os::fd::OwnedFd,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::mman::{shm_open, shm_unlink},
    sys::stat::Mode,
};

use crate::{
    doctor::finding::{About, Finding, number_in},
    doctor::memfd::{again, failed, memfd},
    region::exposure::tripwire::Tripwire,
    signal::claim,
    sys,
};

const MEMFD_LEASE: About = About {
    name: "memfd-lease",
    title: "Write lease on a memfd",
};

pub(super) fn memfd_lease() -> Finding {
    match memfd().and_then(|object| leased(&object)) {
        Ok(found) => MEMFD_LEASE.good(
            found,
            "the kernel confirms that no other process has the object open when it is passed on, and keeps later openers \
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

pub(super) fn shm_lease() -> Finding {
    match shm_object().and_then(|object| leased(&object)) {
        Ok(found) => SHM_LEASE.good(
            found,
            "with the shm backing, a process that got in before the lease is noticed, unless with O_PATH; the peer itself can \
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
    let random: [u8; 16] = sys::random::bytes().map_err(failed("getrandom"))?;
    let name = format!("/ringfence-doctor-{:032x}", u128::from_le_bytes(random));
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let object = shm_open(name.as_str(), flags, mode).map_err(failed("shm_open"))?;
    shm_unlink(name.as_str()).map_err(failed("shm_unlink"))?;
    Ok(object)
}

/// Tries whether a write lease tells that another process has an object open.
fn leased(object: &OwnedFd) -> Result<String, String> {
    let open = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let second = again(object, open).map_err(failed("opening it once more"))?;
    match sys::lease::take_lease(object) {
        Err(Errno::EAGAIN) => {}
        Ok(()) => return Err("granted although the object was open twice".into()),
        Err(errno) => return Err(failed("F_SETLEASE")(errno)),
    }
    drop(second);
    // A child that another thread of this process forks holds a copy of `second` until it execs.
    let deadline = Instant::now() + Duration::from_secs(1);
    while let Err(errno) = sys::lease::take_lease(object) {
        if errno != Errno::EAGAIN || Instant::now() >= deadline {
            return Err(failed("F_SETLEASE on an object that no other process has open")(
                errno,
            ));
        }
        thread::sleep(Duration::from_millis(1));
    }
    if sys::lease::has_write_lease(object) != Ok(true) {
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

pub(super) fn tripwire() -> Finding {
    match alarmed() {
        Ok((number, true)) => TRIPWIRE.good(
            format!("sounded (signal {number}) when the object was opened under its lease"),
            "a process that opens the memory of a channel ends it: its owner wipes it first, and both sides see it (exposed)",
        ),
        Ok((number, false)) => TRIPWIRE.missing(
            format!("signal {number} did not come within {} s", ALARM.as_secs()),
            "a process that opens the memory of a channel is kept waiting for the lease-break time, and neither side is \
             told; look for a \
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

/// Whether an alarm sounds when a process opens an object of this one's own, and by which signal.
fn alarmed() -> Result<(i32, bool), String> {
    let object = memfd()?;
    let refused = |error: crate::Error| error.to_string();
    let number = claim::unused().map_err(refused)?;
    let wire = Tripwire::arm(&object, number).map_err(refused)?;
    let (sounded, alarm) = mpsc::channel();
    wire.on_alarm(move || {
        // Without a receiver, no call waits any more.
        let _ = sounded.send(());
        None
    });
    match again(&object, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(Errno::EWOULDBLOCK) => {}
        Ok(_) => return Err("an opener is let in at once".into()),
        Err(errno) => return Err(failed("opening it under the lease")(errno)),
    }
    Ok((number, alarm.recv_timeout(ALARM).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_of_leases_sees_a_second_open() {
        let object = memfd().unwrap();
        assert!(leased(&object).is_ok());
        let object = memfd().unwrap();
        let _second = again(&object, OFlag::O_RDONLY).unwrap();
        assert!(leased(&object).unwrap_err().contains("no other process"));
    }
}
