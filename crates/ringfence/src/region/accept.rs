//! An object that the peer made: checked without trusting it, then mapped for reading.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    libc,
    sys::{
        stat::{FileStat, fstat},
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
    },
    unistd::geteuid,
};

use crate::{
    error::{Error, Result},
    evidence::EvidenceLog,
    fork::CloseOnForkFd,
    region::create::{Backing, Blank},
    region::create::{seal_names, wanted_seals},
    region::layout::region_size,
    region::peer::PeerRegion,
    sys,
};

/// The only filesystem of a ring's object.
const TMPFS: (&[FsType], &str) = (&[TMPFS_MAGIC], "tmpfs");

/// The agreement of both sides, and the peer's statements about its object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) backing: Backing,
    /// The capacity of the peer's ring in bytes.
    pub(crate) capacity: u64,
    /// The size of the object in bytes, as the peer states it.
    pub(crate) stated: u64,
    /// The uid of the peer.
    pub(crate) owner: u32,
}

/// Checks the object that the peer passed, and maps it for reading.
pub(crate) fn accept(descriptor: &OwnedFd, agreed: &Agreed, record: &mut EvidenceLog) -> Result<PeerRegion> {
    let mut checks = Checks { record: Some(record) };
    let seals = checks.kind(descriptor, TMPFS)?;
    let stat = stat_of(descriptor)?;
    checks.size(&stat, agreed.capacity, agreed.stated)?;
    checks.owner(&stat, agreed.owner)?;
    match agreed.backing {
        Backing::Memfd => checks.seals(seals, wanted_seals())?,
        Backing::Shm => checks.lease(descriptor)?,
    }
    PeerRegion::map(descriptor, agreed.capacity)
}

/// Checks the memory that the parent has created for this process's object, by both of its descriptors. It must not change its
/// size, and must be writable still. This process cannot find out whether the parent has mapped it for writing. It relies
/// on the parent for that: the process that starts another one can write to its memory in any case.
pub(crate) fn accept_blank(
    raw: CloseOnForkFd,
    reopened: CloseOnForkFd,
    capacity: u64,
    record: &mut EvidenceLog,
) -> Result<Blank> {
    const WANTED: &str = "a memfd that is not sealed";
    let mut checks = Checks { record: Some(record) };
    let found = checks.kind(&reopened, TMPFS)?;
    let is_open = !found.intersects(wanted_seals() | SealFlag::F_SEAL_WRITE);
    checks.require("seals", || WANTED.into(), || seal_names(found), is_open)?;
    ask("seals", WANTED, &reopened, |object| {
        fcntl(
            object,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )
    })?;
    let (file, other) = (stat_of(&reopened)?, stat_of(&raw)?);
    checks.size(&file, capacity, region_size(capacity))?;
    checks.owner(&file, geteuid().as_raw())?;
    let [wanted, found] =
        [&file, &other].map(|stat| format!("device {}, inode {}", stat.st_dev, stat.st_ino));
    let is_same = wanted == found;
    checks.require("file", || wanted, || found, is_same)?;
    Ok(Blank::of_parent(raw, reopened))
}

/// Makes a system call on an object of the peer. If it fails, the check fails, unless the error is local.
pub(super) fn ask<'a, T>(
    check: &'static str,
    wanted: &str,
    object: &'a OwnedFd,
    call: impl Fn(BorrowedFd<'a>) -> Result<T, Errno>,
) -> Result<T> {
    Error::or_local("inspecting the peer's shared object", object, call, |errno| {
        Error::unsound(check, wanted, errno.desc())
    })
}

const IN_MEMORY: &str = "a regular file in memory";

/// Returns the seals of an object. Only a file in memory has some, even if it forbids to add any, and the kernel asks no filesystem
/// for them. The peer may serve the filesystem of another file (FUSE), where other calls on the file, and closing it, may never return.
pub(crate) fn seals_of(object: &OwnedFd) -> Result<SealFlag> {
    ask("kind", IN_MEMORY, object, |object| {
        fcntl(object, FcntlArg::F_GET_SEALS)
    })
    .map(SealFlag::from_bits_retain)
}

/// The checks, and the record of their results, if one is kept.
pub(super) struct Checks<'a> {
    pub(super) record: Option<&'a mut EvidenceLog>,
}

impl Checks<'_> {
    pub(super) fn require(
        &mut self,
        check: &'static str,
        wanted: impl FnOnce() -> String,
        found: impl FnOnce() -> String,
        passed: bool,
    ) -> Result<()> {
        if !passed {
            let (wanted, found) = (wanted(), found());
            return Err(Error::ObjectUnsound { check, wanted, found });
        }
        if let Some(record) = &mut self.record {
            record.passed("object", check, wanted(), found());
        }
        Ok(())
    }

    /// Checks that this is a file on one of these filesystems, and returns its seals. Any other may answer a question, or an access to
    /// the mapping, late, never, or with a signal.
    pub(super) fn kind(
        &mut self,
        descriptor: &OwnedFd,
        (filesystems, names): (&[FsType], &str),
    ) -> Result<SealFlag> {
        let seals = seals_of(descriptor)?;
        self.require("kind", || IN_MEMORY.into(), || IN_MEMORY.into(), true)?;
        let filesystem = filesystem_of(descriptor, names)?;
        self.require(
            "filesystem",
            || names.into(),
            || format!("{:#x}", filesystem.0),
            filesystems.contains(&filesystem),
        )?;
        Ok(seals)
    }

    fn size(&mut self, stat: &FileStat, capacity: u64, stated: u64) -> Result<()> {
        let wanted = region_size(capacity);
        let size = stat.st_size.cast_unsigned();
        self.require(
            "size",
            || format!("{wanted} bytes, as agreed"),
            || format!("{size}, and {stated} stated"),
            size == wanted && stated == wanted,
        )?;
        self.memory(stat, wanted)
    }

    /// Checks that the memory is reserved. Otherwise an access would allocate it at this process's expense, or be a SIGBUS on
    /// hugetlbfs.
    pub(super) fn memory(&mut self, stat: &FileStat, wanted: u64) -> Result<()> {
        let reserved = stat.st_blocks.cast_unsigned() * 512;
        self.require(
            "memory",
            || format!("{wanted} bytes reserved"),
            || format!("{reserved} reserved"),
            reserved >= wanted,
        )
    }

    fn owner(&mut self, stat: &FileStat, owner: u32) -> Result<()> {
        self.require(
            "owner",
            || format!("uid {owner}, the peer"),
            || format!("uid {}", stat.st_uid),
            stat.st_uid == owner,
        )?;
        let links = stat.st_nlink;
        self.require("names", || "0".into(), || links.to_string(), links == 0)
    }

    pub(super) fn seals(&mut self, found: SealFlag, wanted: SealFlag) -> Result<()> {
        self.require(
            "seals",
            || seal_names(wanted),
            || seal_names(found),
            found.contains(wanted),
        )
    }

    pub(super) fn access(&mut self, descriptor: &OwnedFd) -> Result<()> {
        let flags = ask("access", "O_RDWR", descriptor, |object| {
            fcntl(object, FcntlArg::F_GETFL)
        })?;
        self.require(
            "access",
            || "O_RDWR".into(),
            || format!("{:#o}", flags & libc::O_ACCMODE),
            flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDWR,
        )
    }

    fn lease(&mut self, descriptor: &OwnedFd) -> Result<()> {
        const WANTED: &str = "F_WRLCK, held by the peer";
        self.access(descriptor)?;
        let leased = ask("lease", WANTED, descriptor, sys::file::has_write_lease)?;
        let found = if leased { "F_WRLCK" } else { "not held" };
        self.require("lease", || WANTED.into(), || found.into(), leased)
    }
}

/// Returns the filesystem of an object, which should be one of these.
pub(super) fn filesystem_of(object: &OwnedFd, names: &str) -> Result<FsType> {
    ask("filesystem", names, object, fstatfs).map(|found| found.filesystem_type())
}

/// Inspects an object.
pub(super) fn stat_of(object: &OwnedFd) -> Result<FileStat> {
    ask("file", "a file that can be inspected", object, fstat)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::fd::{AsFd, AsRawFd},
    };

    use nix::{
        fcntl::{FallocateFlags, fallocate},
        sys::memfd::{MFdFlags, memfd_create},
        unistd::{ftruncate, geteuid, pipe},
    };

    use super::*;

    const SIZE: u64 = region_size(4096);

    /// Sets the size of an object, with or without reserved memory.
    fn sized(object: impl AsFd, size: u64, reserved: bool) {
        let size = size.cast_signed();
        if reserved {
            fallocate(object, FallocateFlags::empty(), 0, size).unwrap();
        } else {
            ftruncate(object, size).unwrap();
        }
    }

    fn memfd(size: u64, reserved: bool, seals: SealFlag) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let object = memfd_create("ringfence-test", flags).unwrap();
        sized(&object, size, reserved);
        fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        object
    }

    fn shm() -> OwnedFd {
        let object = tempfile::tempfile_in("/dev/shm").unwrap();
        sized(&object, SIZE, true);
        object.into()
    }

    fn agreed(backing: Backing) -> Agreed {
        Agreed {
            backing,
            capacity: 4096,
            stated: SIZE,
            owner: geteuid().as_raw(),
        }
    }

    /// Returns the checks that passed, and the one that failed.
    fn looked_at(object: &OwnedFd, agreed: Agreed) -> (Vec<&'static str>, Option<&'static str>) {
        let mut record = EvidenceLog::default();
        let failed = match accept(object, &agreed, &mut record) {
            Ok(_) => None,
            Err(Error::ObjectUnsound { check, .. }) => Some(check),
            Err(other) => panic!("{other:?}"),
        };
        let passed = record.into_list();
        (passed.iter().map(|evidence| evidence.check).collect(), failed)
    }

    #[test]
    fn valid_object_passes_and_content_is_checked_last() {
        let of_each = ["kind", "filesystem", "size", "memory", "owner", "names"];
        let sealed = memfd(SIZE, true, wanted_seals());
        let passed = [&of_each[..], &["seals"]].concat();
        assert_eq!(
            looked_at(&sealed, agreed(Backing::Memfd)),
            (passed, Some("layout"))
        );
        let leased = shm();
        sys::file::acquire_lease(&leased).unwrap();
        let mut record = EvidenceLog::default();
        assert!(accept(&sealed, &agreed(Backing::Memfd), &mut record).is_err());
        let kind = &record.into_list()[0];
        assert_eq!((&*kind.wanted, &*kind.found), (IN_MEMORY, IN_MEMORY));
        let passed = [&of_each[..], &["access", "lease"]].concat();
        assert_eq!(looked_at(&leased, agreed(Backing::Shm)), (passed, Some("layout")));
    }

    #[test]
    fn failed_object_check_is_named() {
        let named = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        sized(named.as_file(), SIZE, true);
        let (sound, other) = (agreed(Backing::Memfd), agreed(Backing::Shm));
        let sealed = || memfd(SIZE, true, wanted_seals());
        let unleased = shm();
        let path = format!("/proc/self/fd/{}", unleased.as_raw_fd());
        for (object, agreed, check) in [
            (pipe().unwrap().0, sound, "kind"),
            (File::open("/dev/shm").unwrap().into(), sound, "kind"),
            (File::open("/proc/self/maps").unwrap().into(), sound, "kind"),
            (memfd(SIZE + 4096, true, wanted_seals()), sound, "size"),
            (
                sealed(),
                Agreed {
                    stated: SIZE + 1,
                    ..sound
                },
                "size",
            ),
            (
                sealed(),
                Agreed {
                    capacity: 8192,
                    ..sound
                },
                "size",
            ),
            (memfd(SIZE, false, wanted_seals()), sound, "memory"),
            (
                sealed(),
                Agreed {
                    owner: sound.owner + 1,
                    ..sound
                },
                "owner",
            ),
            (named.reopen().unwrap().into(), other, "names"),
            (memfd(SIZE, true, SealFlag::empty()), sound, "seals"),
            (
                memfd(SIZE, true, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
                sound,
                "seals",
            ),
            (File::open(path).unwrap().into(), other, "access"),
            (unleased, other, "lease"),
        ] {
            assert_eq!(looked_at(&object, agreed).1, Some(check));
        }
    }
}
