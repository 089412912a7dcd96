//! The object of the default backing: what its seals refuse, and that it is never executed.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::Ordering,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    libc,
    sys::memfd::{MFdFlags, memfd_create},
    sys::mman::{ProtFlags, mprotect},
    sys::stat::Mode,
    sys::uio::pwrite,
    unistd::ftruncate,
};

use crate::{
    doctor::finding::{About, Finding, number_in},
    region::access::Writable,
    region::layout,
    region::layout::CAPACITY_MIN,
    region::layout::region_size,
    region::map::Mapping,
    region::own::OwnRegion,
    region::peer::PeerRegion,
    region::room::check_room,
    region::seals,
};

/// A memfd as the channel makes it: reopened, so that the kernel counts it among the open files.
pub(super) fn memfd() -> Result<OwnedFd, String> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let raw = memfd_create("ringfence-doctor", flags).map_err(failed("memfd_create"))?;
    again(&raw, OFlag::O_RDWR).map_err(failed("reopening it through /proc/self/fd"))
}

/// What failed, and why.
pub(super) fn failed(what: &'static str) -> impl FnOnce(Errno) -> String {
    move |errno| format!("{what}: {}", errno.desc())
}

/// Opens the same object once more.
pub(super) fn again(object: &OwnedFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

const SEALS: About = About {
    name: "memfd-seals",
    title: "Sealed memory (memfd)",
};

pub(super) fn memfd_seals() -> Finding {
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
            "the memfd backing cannot be used here; it takes Linux 5.1, files of more than 12 KiB (ulimit -f), and a \
             sandbox that allows memfd_create and /proc/self/fd",
        ),
    }
}

/// Seals a throw-away memfd as the channel does. Returns the operations that are still possible and must not be.
fn sealed_against() -> Result<Vec<&'static str>, String> {
    let object = memfd()?;
    let size = region_size(CAPACITY_MIN);
    let length = libc::off_t::try_from(size).map_err(|error| error.to_string())?;
    // The object is also grown, by a byte. Beyond the limit of file sizes the kernel would send SIGXFSZ, before it asks for the seals.
    check_room(size + 1).map_err(|error| error.to_string())?;
    ftruncate(&object, length).map_err(failed("ftruncate"))?;
    let own = OwnRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;
    fcntl(&object, FcntlArg::F_ADD_SEALS(seals::wanted())).map_err(failed("F_ADD_SEALS"))?;
    let peer = PeerRegion::map(&object, CAPACITY_MIN).map_err(|error| error.to_string())?;

    own.store(layout::DATA, 42, Ordering::Release);
    let live = peer.peek(layout::DATA) == 42;
    let mapping = Mapping::new(&object, 4096, false).map_err(failed("mapping it to read"))?;
    let writable = NonNull::new(mapping.as_mut_ptr().cast()).is_some_and(|address| {
        // SAFETY: the range is that mapping, which no other code knows of and none reads. If the call succeeds, it
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

const NOEXEC: About = About {
    name: "memfd-noexec",
    title: "Memory that is never executed (MFD_NOEXEC_SEAL)",
};

pub(super) fn memfd_noexec() -> Finding {
    /// Linux 6.3, of which nix has no names: the flag of memfd_create, and the seal that it sets.
    const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);
    const SEAL_EXEC: i32 = 0x20;
    let sysctl = number_in("/proc/sys/vm/memfd_noexec");
    let rule = match sysctl {
        Some(2) => "vm.memfd_noexec=2: no other kind can be made",
        Some(1) => "vm.memfd_noexec=1: the default for all",
        Some(_) => "vm.memfd_noexec=0: for those who ask, as this does",
        None => "no vm.memfd_noexec",
    };
    let flags = MFdFlags::MFD_CLOEXEC | NOEXEC_SEAL;
    let sealed = memfd_create("ringfence-doctor", flags)
        .and_then(|object| fcntl(&object, FcntlArg::F_GET_SEALS).map(|seals| seals & SEAL_EXEC != 0));
    match sealed {
        Ok(true) => NOEXEC.good(
            format!("granted and sealed; {rule}"),
            "what lies in shared memory cannot be executed through its descriptor",
        ),
        Ok(false) => NOEXEC.limited(
            format!("granted, but not sealed; {rule}"),
            "a process that has the descriptor may make the object executable; nothing else rests on it",
        ),
        Err(errno) => NOEXEC.limited(
            format!("not granted: {} (Linux 6.3); {rule}", errno.desc()),
            "the memory is made without it: a process that has the descriptor may execute what lies there; nothing else \
             rests on it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_of_seals_sees_what_an_unsealed_object_allows() {
        let object = memfd().unwrap();
        ftruncate(&object, 4096).unwrap();
        assert!(Mapping::new(&object, 4096, true).is_ok());
        assert!(pwrite(&object, b"x", 0).is_ok());
        assert!(ftruncate(&object, 0).is_ok());
        assert_eq!(sealed_against(), Ok(vec![]));
    }
}
