//! Objects as a peer passes them, of any kind, size and filesystem: sound except for the drawn faults.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use arbitrary::{Result, Unstructured};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{shm_open, shm_unlink},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::{Mode, fstat},
        uio::pwrite,
    },
    unistd::{ftruncate, geteuid, pipe2},
};

use crate::{
    error::Error,
    evidence::EvidenceLog,
    region::accept::{Agreed, accept},
    region::copy::Readable,
    region::create::Backing,
    region::create::wanted_seals,
    region::layout::{self, CAPACITY_MIN, MAGIC, as_offset, region_size},
    sys::file::acquire_lease,
};

/// The maximum size of objects that use memory: larger ones would be slow.
const MOST: u64 = 1 << 18;

/// Passes a drawn object against agreed parameters. An object that does not match is refused, and no part of
/// it is mapped. One that matches can be read to its end, whatever the peer does to it afterwards.
pub fn object(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    // A script that ends early draws sound values for the remainder.
    let Ok(Some(drawn)) = Drawn::take(&mut script) else {
        return;
    };
    let before = fstat(&drawn.object).map(|stat| stat.st_blocks);
    let mut record = EvidenceLog::default();
    let accepted = accept(&drawn.object, &drawn.agreed, &mut record);
    let after = fstat(&drawn.object).map(|stat| stat.st_blocks);
    assert_eq!(before, after, "a look takes no memory");
    match (accepted, drawn.wrong) {
        (Ok(region), None) => {
            let size = as_offset(region_size(drawn.agreed.capacity));
            drawn.spoil(size);
            for at in (0..size).step_by(8) {
                let word = region.load(at, Ordering::Acquire).to_ne_bytes();
                let mut copy = [0; 8];
                region.copy_out(at, &mut copy);
                assert_eq!(word, copy);
            }
            region.copy_out(0, &mut vec![0; size]);
        }
        (Ok(_), Some(wrong)) => panic!("an object whose {wrong} is wrong was mapped"),
        (Err(error @ Error::ObjectUnsound { .. }), Some(_)) => {
            let shown = error.to_string();
            assert!(
                !shown.chars().any(char::is_control),
                "a terminal could be steered by {shown:?}"
            );
        }
        (Err(error), wrong) => panic!("{error}, and wrong was {wrong:?}"),
    }
}

/// True rarely, and never once the script is exhausted.
pub(super) fn odd(script: &mut Unstructured<'_>) -> Result<bool> {
    Ok(script.int_in_range(0..=15)? == 15)
}

/// A drawn object. Records its first fault, if any.
pub(super) struct Drawn {
    pub(super) object: OwnedFd,
    /// The name of the object, if it has one.
    name: Option<Name>,
    pub(super) agreed: Agreed,
    pub(super) wrong: Option<&'static str>,
}

impl Drawn {
    /// `None`: this kernel supports no such object.
    fn take(script: &mut Unstructured<'_>) -> Result<Option<Self>> {
        let backing = *script.choose(&[Backing::Memfd, Backing::Shm])?;
        let capacity = match script.int_in_range(0..=3)? {
            0 => CAPACITY_MIN,
            1 => 0,
            2 => 2 * CAPACITY_MIN,
            _ => 1 << script.int_in_range(12..=46)?,
        };
        let Some(mut drawn) = Self::of(script, backing, capacity)? else {
            return Ok(None);
        };
        if odd(script)? {
            drawn.agreed.owner = script.arbitrary()?;
            if drawn.agreed.owner != geteuid().as_raw() {
                drawn.wrong = drawn.wrong.or(Some("owner"));
            }
        }
        Ok(Some(drawn))
    }

    /// Draws an object for agreed parameters.
    pub(super) fn of(script: &mut Unstructured<'_>, backing: Backing, capacity: u64) -> Result<Option<Self>> {
        let mut agreed = Agreed {
            backing,
            capacity,
            stated: region_size(capacity),
            owner: geteuid().as_raw(),
        };
        let Some((object, name, mut wrong)) = make(backing, script)? else {
            return Ok(None);
        };
        let mut judge = |sound: bool, what| {
            if !sound {
                wrong = wrong.or(Some(what));
            }
        };
        let size = if odd(script)? {
            near(script, region_size(capacity))?
        } else {
            region_size(capacity)
        };
        let reserved = size <= MOST && !odd(script)?;
        let sized = resize(&object, size, reserved);
        judge(sized && size == region_size(capacity), "size");
        judge(reserved, "memory");
        if size >= 4096 && odd(script)? {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let pages = (size / 4096).min(64).cast_signed();
            let at = script.int_in_range(0..=pages - 1)? * 4096;
            // Writing to the first page allocates it again.
            judge(fallocate(&object, hole, at, 4096).is_err() || at == 0, "memory");
        }
        for (at, true_word) in [(layout::MAGIC_AT, MAGIC), (layout::CAPACITY, capacity)] {
            let word = if odd(script)? {
                script.arbitrary()?
            } else {
                true_word
            };
            judge(write(&object, at, word) && word == true_word, "words");
        }
        for _ in 0..script.int_in_range(0..=4)? {
            let at = script.int_in_range(2..=511_usize)? * 8;
            write(&object, at, script.arbitrary()?);
        }
        match backing {
            Backing::Memfd => judge(seal(&object, script)?, "seals"),
            Backing::Shm => judge(!odd(script)? && acquire_lease(&object).is_ok(), "lease"),
        }
        let mut passed = None;
        if odd(script)? {
            passed = reopen(&object);
            // A read-only memfd is accepted as well. For the other backing, the lease belongs to one open
            // file description, and opening the object again breaks it.
            judge(backing == Backing::Memfd, "access");
        }
        if odd(script)? {
            agreed.stated = near(script, agreed.stated)?;
            judge(agreed.stated == region_size(capacity), "stated size");
        }
        Ok(Some(Self {
            object: passed.unwrap_or(object),
            name,
            agreed,
            wrong,
        }))
    }

    /// Makes the changes that a peer may still attempt after it was accepted.
    fn spoil(&self, size: usize) {
        if self.agreed.backing == Backing::Memfd {
            let refused: Result<_, Errno> = ftruncate(&self.object, 0);
            assert!(refused.is_err(), "a sealed object was cut");
            assert!(!write(&self.object, 0, 7), "a sealed object was written to");
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let length = size as u64;
            assert!(
                fallocate(&self.object, hole, 0, length.cast_signed()).is_err(),
                "a sealed object's memory was taken"
            );
        } else {
            // This object could be truncated, as docs/internals/promises.md states.
            assert!(self.name.is_none());
            write(&self.object, layout::PHASE, u64::MAX);
        }
    }
}

type Made = (OwnedFd, Option<Name>, Option<&'static str>);

/// Creates an object of no size yet, with its name and the fault that it already has.
fn make(backing: Backing, script: &mut Unstructured<'_>) -> Result<Option<Made>> {
    let close = MFdFlags::MFD_CLOEXEC;
    let sealable = close | MFdFlags::MFD_ALLOW_SEALING;
    let plain = |object: Result<OwnedFd, Errno>, wrong| object.ok().map(|object| (object, None, Some(wrong)));
    if !odd(script)? {
        return Ok(match backing {
            Backing::Memfd => memfd_create("fuzzed", sealable)
                .ok()
                .map(|object| (object, None, None)),
            Backing::Shm => Name::make().map(|(object, name)| {
                drop(name);
                (object, None, None)
            }),
        });
    }
    let socket = || {
        socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
    };
    let opened = |path| File::open(path).map(OwnedFd::from).map_err(|_| Errno::ENOENT);
    Ok(match script.int_in_range(0..=8)? {
        0 => Name::make().map(|(object, name)| (object, Some(name), Some("names"))),
        // An object of the other backing. A memfd has no name, and a lease can be taken on it.
        1 if backing == Backing::Memfd => Name::make().map(|(object, name)| {
            drop(name);
            (object, None, Some("seals"))
        }),
        1 => plain(memfd_create("fuzzed", sealable), "lease"),
        2 => plain(pipe2(OFlag::O_CLOEXEC).map(|(end, _)| end), "kind"),
        3 => plain(socket().map(|(end, _)| end), "kind"),
        4 => plain(opened("/dev/shm"), "kind"),
        5 => plain(opened("/dev/null"), "kind"),
        6 => plain(opened("/proc/self/maps"), "kind"),
        7 => plain(
            memfd_create("fuzzed", sealable | MFdFlags::MFD_HUGETLB),
            "filesystem",
        ),
        _ => plain(memfd_create("fuzzed", close), "seals"),
    })
}

/// Draws a size at or near this one, or any size.
fn near(script: &mut Unstructured<'_>, size: u64) -> Result<u64> {
    Ok(match script.int_in_range(0..=5)? {
        0 => size - 1,
        1 => size + 1,
        2 => size + 4096,
        3 => size - 4096,
        4 => 0,
        _ => script.arbitrary()?,
    })
}

fn resize(object: &OwnedFd, size: u64, reserved: bool) -> bool {
    if reserved && size > 0 {
        fallocate(object, FallocateFlags::empty(), 0, size.cast_signed()).is_ok()
    } else {
        i64::try_from(size).is_ok_and(|size| ftruncate(object, size).is_ok())
    }
}

fn write(object: &OwnedFd, at: usize, word: u64) -> bool {
    let at = i64::try_from(at).expect("within a page");
    pwrite(object, &word.to_le_bytes(), at) == Ok(8)
}

/// Whether the object has all seals in the end.
fn seal(object: &OwnedFd, script: &mut Unstructured<'_>) -> Result<bool> {
    let wanted = match script.int_in_range(0..=15)? {
        15 => SealFlag::from_bits_truncate(script.int_in_range(0..=31)?),
        // More seals than required. Since Linux 6.7, such an object can be mapped for reading.
        14 => wanted_seals() | SealFlag::F_SEAL_WRITE,
        _ => wanted_seals(),
    };
    let sealed = fcntl(object, FcntlArg::F_ADD_SEALS(wanted)).is_ok();
    Ok(sealed && wanted.contains(wanted_seals()))
}

/// Opens the same object again, read-only.
fn reopen(object: &OwnedFd) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    open(path.as_str(), flags, Mode::empty()).ok()
}

/// The name of an object in /dev/shm, removed on drop.
struct Name(String);

impl Name {
    fn make() -> Option<(OwnedFd, Self)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("/fuzzed-{}-{number}", std::process::id());
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let object = shm_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).ok()?;
        Some((object, Self(name)))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = shm_unlink(self.0.as_str());
    }
}
