//! Immutable shared memory: an object that no process can write, shrink or grow.

use std::{
    num::NonZeroUsize,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    slice,
    sync::Arc,
    thread,
    time::Duration,
};

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC},
    },
    unistd::ftruncate,
};

use crate::{
    error::{Error, OrSystem, Result, errno},
    region::accept::{Checks, ask, filesystem_of, stat_of},
    region::create::memfd,
    region::layout::as_offset,
    region::room::reserve,
    sys::uninterrupted,
};

/// Memory that never changes, and that can be passed to other processes without a copy.
///
/// It is a memfd with the four seals of [fcntl(2)](https://man7.org/linux/man-pages/man2/fcntl.2.html) that make
/// it immutable, also for its creator: `F_SEAL_SEAL`, `F_SEAL_SHRINK`, `F_SEAL_GROW` and `F_SEAL_WRITE`. Passing
/// one costs the same for 1 KiB and for 1 GiB.
///
/// ```
/// use ringfence::SealedBuffer;
///
/// # fn main() -> ringfence::Result<()> {
/// let squares = SealedBuffer::create(256, |bytes| {
///     for (number, byte) in bytes.iter_mut().enumerate() {
///         *byte = (number * number) as u8;
///     }
/// })?;
/// assert_eq!(squares[3], 9);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SealedBuffer {
    object: OwnedFd,
    /// `None` for an empty object, which cannot be mapped.
    map: Option<Mmap>,
}

impl SealedBuffer {
    /// Makes a buffer of `size` bytes, which are 0 until `write` sets them. `write` has the memory once; after that
    /// nothing can change it.
    ///
    /// # Errors
    /// - [`Error::NoSpace`] if there are not enough memory or descriptors.
    /// - [`Error::InvalidArgument`] if something that `write` started still uses the memory, such as a forked child,
    ///   io_uring or vmsplice.
    pub fn create(size: usize, write: impl FnOnce(&mut [u8])) -> Result<Self> {
        let mut draft = Draft::new(size)?;
        write(draft.bytes());
        draft.seal()
    }

    /// Makes a buffer with a copy of these bytes.
    ///
    /// # Errors
    /// As [`SealedBuffer::create`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::create(bytes.len(), |into| into.copy_from_slice(bytes))
    }

    /// Checks an object that another process passed and stated to have `stated` bytes, and maps it.
    ///
    /// # Errors
    /// - [`Error::ObjectUnsound`] if any process can change it, or if it has another size or lacks memory.
    /// - [`Error::NoSpace`] if there are not enough memory or descriptors.
    pub fn accept(object: OwnedFd, stated: u64) -> Result<Self> {
        let map = Self::inspect(&object, stated)?;
        Ok(Self::new(object, map))
    }

    /// As [`SealedBuffer::accept`], for a caller that keeps the object if this fails for a local reason. Returns its mapping.
    pub(crate) fn inspect(object: &OwnedFd, stated: u64) -> Result<Option<Mmap>> {
        let mut checks = Checks { record: None };
        let found = checks.kind(object, FILESYSTEMS)?;
        checks.seals(found, seals())?;
        // The size is set again through this descriptor.
        checks.access(object)?;
        let found = stat_of(object)?;
        let size = found.st_size.cast_unsigned();
        checks.require(
            "size",
            || format!("{stated} bytes, as stated"),
            || size.to_string(),
            size == stated,
        )?;
        // Blocks behind the end would make up for holes in the count below. The seals forbid to add any later.
        ask("size", "a size that can be set again", object, |object| {
            ftruncate(object, found.st_size)
        })?;
        checks.memory(&stat_of(object)?, size)?;
        Self::map(object, as_offset(size))
    }

    /// A buffer of an object and its mapping, which [`SealedBuffer::inspect`] has returned.
    pub(crate) fn new(object: OwnedFd, map: Option<Mmap>) -> Self {
        Self { object, map }
    }

    fn map(object: &OwnedFd, size: usize) -> Result<Option<Mmap>> {
        if size == 0 {
            return Ok(None);
        }
        let what = || format!("mapping a sealed buffer of {size} bytes");
        // Private: before Linux 6.7 a shared mapping of an object with F_SEAL_WRITE fails.
        // SAFETY: the kernel guarantees that the content never changes: after F_SEAL_WRITE, write(2), a writable
        // shared mapping, and punching a hole fail (EPERM), and it grants that seal only if no writable mapping and
        // no pinned page exists (EBUSY). After F_SEAL_SHRINK each page stays inside of the file. F_SEAL_SEAL keeps
        // the other three. `accept` has checked all of that, and `seal` has established it.
        // Without a reservation, which hugetlbfs would make for the copies that a read-only mapping never makes.
        let map = unsafe {
            MmapOptions::new()
                .len(size)
                .no_reserve_swap()
                .map_copy_read_only(object)
        }
        .map_err(|error| Error::system(what(), errno(&error)))?;
        // The content is the program's, as that of a channel's region.
        map.advise(Advice::DontDump)
            .map_err(|error| Error::system(what(), errno(&error)))?;
        Ok(Some(map))
    }
}

impl Deref for SealedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for SealedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsFd for SealedBuffer {
    /// The sealed object, for calls that take a file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.object.as_fd()
    }
}

/// A private copy-on-write mapping of a buffer: writes to it stay in this process. `None` for an empty buffer, and for huge
/// pages: a write that finds no free one for its copy ends the process (SIGBUS).
///
/// # Errors
/// [`Error::NoSpace`] if there is no memory for the mapping.
pub fn copy_on_write(buffer: &SealedBuffer) -> Result<Option<MmapMut>> {
    let size = buffer.len();
    let is_mapped = size > 0 && filesystem_of(&buffer.object, FILESYSTEMS.1)? != HUGETLBFS_MAGIC;
    is_mapped
        .then(|| {
            // SAFETY: as in `SealedBuffer::map`.
            let map = unsafe {
                MmapOptions::new()
                    .len(size)
                    .no_reserve_swap()
                    .map_copy(&buffer.object)
            }?;
            map.advise(Advice::DontDump)?;
            Ok(map)
        })
        .transpose()
        .map_err(|error| Error::system(format!("mapping a sealed buffer of {size} bytes"), errno(&error)))
}

/// A buffer that is being filled.
#[derive(Debug)]
pub struct Draft {
    object: OwnedFd,
    memory: DraftMemory,
    size: usize,
}

/// Keeps the memory of a draft mapped. `None` if the draft is empty.
pub type DraftMemory = Option<Arc<MmapMut>>;

impl Draft {
    /// Makes a buffer of `size` bytes, which are 0.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there are not enough memory or descriptors.
    pub fn new(size: usize) -> Result<Self> {
        let bytes = size as u64;
        let (object, _) = memfd(b"ringfence-sealed")?;
        reserve(&object, bytes, || Ok(()))?;
        let memory = (size > 0)
            .then(|| {
                // SAFETY: only this process has the object. Another process could open it in /proc only if it could
                // write this process's memory as well.
                let map = unsafe { MmapOptions::new().len(size).map_mut(&object) }?;
                // A forked child's copy of the mapping would forbid the seal.
                map.advise(Advice::DontFork)?;
                map.advise(Advice::DontDump)?;
                // Before Linux 5.14, each page is mapped when it is filled. `MAP_POPULATE` takes half as long again.
                let _ = map.advise(Advice::PopulateWrite);
                Ok(Arc::new(map))
            })
            .transpose()
            .map_err(|error| Error::system(format!("mapping a buffer of {size} bytes"), errno(&error)))?;
        Ok(Self { object, memory, size })
    }

    /// The memory to fill.
    pub fn bytes(&mut self) -> &mut [u8] {
        match &self.memory {
            // SAFETY: the memory is mapped as long as `memory`, and writable. Only this function gives access to it,
            // with a borrow of the draft.
            Some(map) => unsafe { slice::from_raw_parts_mut(map.as_ptr().cast_mut(), self.size) },
            None => &mut [],
        }
    }

    /// Returns a handle that keeps the memory mapped. After [`Draft::seal`] it is private memory of this process.
    pub fn memory(&self) -> DraftMemory {
        self.memory.clone()
    }

    /// Makes the buffer immutable. Memory that a [`Draft::memory`] keeps stays writable, but no longer changes the
    /// buffer.
    ///
    /// # Errors
    /// As [`SealedBuffer::create`].
    pub fn seal(self) -> Result<SealedBuffer> {
        if let Some(map) = self.memory {
            detach(map, &self.object)?;
        }
        unless_busy(|| fcntl(&self.object, FcntlArg::F_ADD_SEALS(seals()))).map_err(|errno| match errno {
            Errno::EBUSY => Error::invalid(
                "a sealed buffer: something still uses its memory (a mapping, io_uring or vmsplice); wait for that to end before `write` returns",
            ),
            errno => Error::system("sealing a buffer", errno),
        })?;
        let map = SealedBuffer::map(&self.object, self.size)?;
        Ok(SealedBuffer::new(self.object, map))
    }
}

/// Repeats a call for a few milliseconds while the memory is in use (EBUSY): the kernel holds a page while it moves it, and a child that
/// another thread has forked may have the mapping until it executes its program.
fn unless_busy<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for exponent in 1..5 {
        match uninterrupted(&mut call) {
            Err(Errno::EBUSY) => thread::sleep(Duration::from_millis(1 << exponent)),
            result => return result,
        }
    }
    uninterrupted(call)
}

/// Ends a shared mapping of an object, since a writable one forbids the seal. If others keep the mapping, a private one
/// replaces it at the same address.
fn detach(map: Arc<MmapMut>, object: &OwnedFd) -> Result<()> {
    let Err(map) = Arc::try_unwrap(map) else {
        return Ok(());
    };
    let place = NonZeroUsize::new(map.as_ptr().addr()).zip(NonZeroUsize::new(map.len()));
    let (address, size) = place.expect("a mapping has an address and a size");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    // SAFETY: `map` owns this range, has the same size, and unmaps it later. No Rust reference to it exists, since the
    // draft is gone. The accesses of others stay valid, since the range has the same content and access before and after.
    let replaced = unsafe { mmap(Some(address), size, access, flags, object, 0) };
    let replaced = replaced.map_err(|errno| {
        // The kernel may have unmapped the range already, and may use it for something else.
        std::mem::forget(Arc::clone(&map));
        Error::system("mapping a sealed buffer privately", errno)
    })?;
    debug_assert_eq!(replaced.as_ptr().addr(), address.get());
    map.advise(Advice::DontDump)
        .or_system("mapping a sealed buffer privately")
}

/// The filesystems on which the seals mean something.
const FILESYSTEMS: (&[FsType], &str) = (&[TMPFS_MAGIC, HUGETLBFS_MAGIC], "tmpfs or hugetlbfs");

/// F_SEAL_FUTURE_WRITE would not do: earlier mappings stay writable.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg_attr(miri, expect(unused, reason = "Miri has no memfd"))]
#[cfg(test)]
mod tests {
    use std::{
        fs::{File, OpenOptions},
        io::Write as _,
        os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    };

    use nix::{
        fcntl::{FallocateFlags, fallocate},
        sys::memfd::{MFdFlags, memfd_create},
    };

    use super::*;

    /// An unsealed object of `size` bytes, `reserved` of which have memory.
    fn object(size: i64, reserved: i64) -> OwnedFd {
        let (object, _) = memfd(b"ringfence-test").unwrap();
        ftruncate(&object, size).unwrap();
        if reserved > 0 {
            fallocate(&object, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, reserved).unwrap();
        }
        object
    }

    fn seal(object: OwnedFd, seals: SealFlag) -> OwnedFd {
        fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        object
    }

    fn check_of(found: Result<SealedBuffer>) -> &'static str {
        match found {
            Err(Error::ObjectUnsound { check, .. }) => check,
            other => panic!("{other:?}"),
        }
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn buffer_has_the_written_bytes_and_is_acceptable() {
        for size in [0, 1, 4096, 100_000_u32] {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let buffer = SealedBuffer::from_bytes(&bytes).unwrap();
            assert_eq!(*buffer, *bytes);
            let passed = buffer.as_fd().try_clone_to_owned().unwrap();
            let accepted = SealedBuffer::accept(passed, size.into()).unwrap();
            drop(buffer);
            assert_eq!(*accepted, *bytes);
        }
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn sealed_buffer_cannot_be_changed() {
        let buffer = SealedBuffer::create(8192, |bytes| bytes.fill(7)).unwrap();
        let dup = File::from(buffer.as_fd().try_clone_to_owned().unwrap());
        let path = format!("/proc/self/fd/{}", buffer.as_fd().as_raw_fd());
        let reopened = OpenOptions::new().read(true).write(true).open(path);
        for file in [Some(dup), reopened.ok()].into_iter().flatten() {
            assert!((&file).write(b"x").is_err());
            assert!(file.write_at(b"x", 0).is_err());
            assert!(file.set_len(4096).is_err());
            assert!(file.set_len(16_384).is_err());
            for punch in [
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                FallocateFlags::FALLOC_FL_KEEP_SIZE,
            ] {
                let from = if punch.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
                    0
                } else {
                    8192
                };
                assert!(fallocate(&file, punch, from, 4096).is_err(), "{punch:?}");
            }
            // SAFETY: the mapping is not used.
            assert!(unsafe { MmapOptions::new().len(8192).map_mut(&file) }.is_err());
            assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).is_err());
        }
        assert!(buffer.iter().all(|byte| *byte == 7));
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn writable_buffer_cannot_be_sealed() {
        let mut draft = Draft::new(4096).unwrap();
        draft.bytes()[0] = 1;
        // SAFETY: the mapping is not used.
        let map = unsafe { MmapOptions::new().len(4096).map_mut(&draft.object) }.unwrap();
        let error = draft.seal().unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT");
        assert!(error.to_string().contains("still uses its memory"), "{error}");
        drop(map);
    }

    #[test]
    fn memory_in_use_for_a_moment_is_sealed() {
        let mut calls = 0;
        let sealed = unless_busy(|| {
            calls += 1;
            if calls < 4 { Err(Errno::EBUSY) } else { Ok(calls) }
        });
        assert_eq!(sealed, Ok(4));
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn memory_outliving_its_draft_is_private() {
        let mut draft = Draft::new(8192).unwrap();
        draft.bytes().fill(3);
        let memory = draft.memory().unwrap();
        let buffer = draft.seal().unwrap();
        let late = memory.as_ptr().cast_mut();
        // SAFETY: the memory is mapped, writable, and used by nothing else.
        unsafe {
            assert_eq!(late.add(5000).read(), 3);
            late.add(5000).write(4);
            assert_eq!(late.add(5000).read(), 4);
        }
        let mut copy = copy_on_write(&buffer).unwrap().unwrap();
        drop((memory, buffer.as_fd().try_clone_to_owned().unwrap()));
        assert!(buffer.iter().all(|byte| *byte == 3));
        copy.fill(5);
        assert!(buffer.iter().all(|byte| *byte == 3));
        drop(buffer);
        assert!(copy.iter().all(|byte| *byte == 5));
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn huge_pages_are_not_mapped_for_copying() {
        let size = 2 << 20;
        let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB | MFdFlags::MFD_ALLOW_SEALING;
        // A system without huge pages has none to pass.
        let Ok(huge) = memfd_create(c"ringfence-test", flags) else {
            return;
        };
        if fallocate(&huge, FallocateFlags::empty(), 0, size).is_err() {
            return;
        }
        let buffer = SealedBuffer::accept(seal(huge, seals()), size.cast_unsigned()).unwrap();
        assert!(copy_on_write(&buffer).unwrap().is_none());
    }

    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    #[test]
    fn changeable_or_sparse_object_is_unsound() {
        for (name, missing) in [
            ("seal", SealFlag::F_SEAL_SEAL),
            ("shrink", SealFlag::F_SEAL_SHRINK),
            ("grow", SealFlag::F_SEAL_GROW),
            ("write", SealFlag::F_SEAL_WRITE),
        ] {
            let with_future = (seals() - missing) | SealFlag::F_SEAL_FUTURE_WRITE;
            let found = SealedBuffer::accept(seal(object(4096, 4096), with_future), 4096);
            assert_eq!(check_of(found), "seals", "{name}");
        }
        let sealed = |size, reserved| seal(object(size, reserved), seals());
        assert_eq!(check_of(SealedBuffer::accept(sealed(4096, 4096), 4095)), "size");
        assert_eq!(
            check_of(SealedBuffer::accept(sealed(4096, 4096), u64::MAX)),
            "size"
        );
        assert_eq!(check_of(SealedBuffer::accept(sealed(8192, 4096), 8192)), "memory");

        // As many blocks as the size needs, but behind its end.
        let behind = object(8192, 0);
        fallocate(&behind, FallocateFlags::FALLOC_FL_KEEP_SIZE, 8192, 8192).unwrap();
        assert_eq!(
            check_of(SealedBuffer::accept(seal(behind, seals()), 8192)),
            "memory"
        );

        let sound = sealed(4096, 4096);
        let path = format!("/proc/self/fd/{}", sound.as_raw_fd());
        assert_eq!(
            check_of(SealedBuffer::accept(File::open(path).unwrap().into(), 4096)),
            "access"
        );
        assert_eq!(SealedBuffer::accept(sound, 4096).unwrap().len(), 4096);

        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        for other in [pipe, file.into()] {
            assert_eq!(check_of(SealedBuffer::accept(other, 0)), "kind");
        }
    }
}
