//! A shared object as it lies in this process's memory, and in pages of which size.

use std::{
    fs,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::OnceLock,
};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::{
    errno::Errno,
    libc::c_void,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
};

use crate::{error::errno, sys};

/// Bytes of a huge page; `None` where the kernel has none, or does not say.
pub(crate) fn huge_page() -> Option<usize> {
    /// Every mapping asks, and the answer lasts as long as the kernel.
    static SIZE: OnceLock<Option<usize>> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
        text.trim()
            .parse()
            .ok()
            .filter(|size: &usize| size.is_power_of_two())
    })
}

/// How much of a mapping lies in huge pages, and why no more does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gathered {
    pub(crate) bytes: usize,
    pub(crate) rest: Option<String>,
}

/// Which pages a mapping is to be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Whichever.
    Any,
    /// Huge ones, where they fit in.
    Huge,
}

impl Pages {
    pub(crate) fn huge_if(huge: bool) -> Self {
        if huge { Self::Huge } else { Self::Any }
    }
}

/// A mapping of a shared object from its beginning; unmapped when this is dropped.
#[derive(Debug)]
pub(crate) enum Mapping {
    /// Where the kernel has chosen.
    Anywhere(MmapRaw),
    /// At an address of our choice, for which memmap2 has no word.
    Placed(Placed),
}

/// A mapping that begins where huge pages can be mapped as such.
#[derive(Debug)]
pub(crate) struct Placed {
    base: NonNull<c_void>,
    length: NonZeroUsize,
}

// SAFETY: it is memory, as good on one thread as on another. Whoever goes through its pointers sees to the rest.
unsafe impl Send for Placed {}
// SAFETY: as above.
unsafe impl Sync for Placed {}

impl Mapping {
    /// Maps all of it now: nothing is left for a later fault to find wanting.
    pub(crate) fn new(object: impl AsFd, length: usize, writable: bool, pages: Pages) -> Result<Self, Errno> {
        let place = huge_page().filter(|page| pages == Pages::Huge && length >= *page);
        let mapping = match place {
            Some(page) => Self::Placed(Placed::new(&object, length, writable, page)?),
            None => Self::Anywhere(anywhere(&object, length, writable)?),
        };
        // A core dump must not hold what only two processes may see, and a forked child is not one of the two.
        match &mapping {
            Self::Anywhere(map) => {
                map.advise(Advice::DontDump).map_err(|error| errno(&error))?;
                map.advise(Advice::DontFork).map_err(|error| errno(&error))?;
            }
            Self::Placed(placed) => {
                placed.advise(MmapAdvise::MADV_DONTDUMP)?;
                placed.advise(MmapAdvise::MADV_DONTFORK)?;
            }
        }
        Ok(mapping)
    }

    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        match self {
            Self::Anywhere(map) => map.as_mut_ptr(),
            Self::Placed(placed) => placed.base.as_ptr().cast(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Anywhere(map) => map.len(),
            Self::Placed(placed) => placed.length.get(),
        }
    }

    /// Has the kernel put the object into huge pages, as far as it will. Not by MADV_HUGEPAGE, which is about pages that
    /// are still to come, and nothing at all where `shmem_enabled` says never: these are all there, and were reserved one
    /// by one. Whoever maps the object from now on gets them as huge pages.
    pub(crate) fn gather(&self) -> Gathered {
        let none = |why: String| Gathered {
            bytes: 0,
            rest: Some(why),
        };
        let Some(page) = huge_page() else {
            return none("this kernel says nothing of huge pages".into());
        };
        let whole = self.len() / page * page;
        if whole == 0 {
            return none(format!("the object has {} bytes, a huge page {page}", self.len()));
        }
        if !self.as_mut_ptr().addr().is_multiple_of(page) {
            return none("no address was free from which huge pages can be mapped".into());
        }
        let Err(errno) = sys::collapse(self.as_mut_ptr(), whole) else {
            return Gathered {
                bytes: whole,
                rest: None,
            };
        };
        // How far it has come is not told. A kernel that does not know the call, or must not, says the same of each page.
        let bytes = if errno == Errno::EINVAL {
            0
        } else {
            let pages = (0..whole).step_by(page);
            let gathered =
                pages.filter(|at| sys::collapse(self.as_mut_ptr().wrapping_add(*at), page).is_ok());
            gathered.count() * page
        };
        let why = match errno {
            Errno::EINVAL => {
                "MADV_COLLAPSE is refused: it takes Linux 6.1, and huge pages that neither the system \
                              (shmem_enabled: deny) nor the process has forbidden"
                    .to_owned()
            }
            errno => format!("MADV_COLLAPSE: {}", errno.desc()),
        };
        Gathered {
            bytes,
            rest: Some(why).filter(|_| bytes < whole),
        }
    }
}

fn anywhere(object: &impl AsFd, length: usize, writable: bool) -> Result<MmapRaw, Errno> {
    let descriptor = object.as_fd().as_raw_fd();
    let mut options = MmapOptions::new();
    let options = options.len(length).populate();
    let mapped = if writable {
        options.map_raw(descriptor)
    } else {
        options.map_raw_read_only(descriptor)
    };
    mapped.map_err(|error| errno(&error))
}

impl Placed {
    fn new(object: &impl AsFd, length: usize, writable: bool, page: usize) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let access = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: the place is a wish, which the kernel passes over where something is mapped already.
        let base = unsafe { mmap(border(length, page), length, access, flags, object, 0) }?;
        Ok(Self { base, length })
    }

    fn advise(&self, advice: MmapAdvise) -> Result<(), Errno> {
        // SAFETY: the range is this mapping; what is advised here changes neither its bytes nor whether it is there.
        unsafe { madvise(self.base, self.length.get(), advice) }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: whoever has pointers into the mapping keeps this from being dropped.
        let unmapped = unsafe { munmap(self.base, self.length.get()) };
        // It fails for what is no mapping.
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// An address at which this process has room, on a border of pages of this size. Another thread may take it before its
/// caller does.
fn border(length: NonZeroUsize, page: usize) -> Option<NonZeroUsize> {
    let wider = length.checked_add(page)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: the kernel chooses where, and nobody can use what it maps there.
    let found = unsafe { mmap_anonymous(None, wider, ProtFlags::PROT_NONE, flags) }.ok()?;
    // SAFETY: it is that mapping, of which nobody else knows.
    unsafe { munmap(found, wider.get()) }.ok()?;
    NonZeroUsize::new(found.addr().get().checked_next_multiple_of(page)?)
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn object(length: usize) -> std::os::fd::OwnedFd {
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&object, length.try_into().unwrap()).unwrap();
        object
    }

    #[test]
    fn what_holds_a_huge_page_begins_on_a_border_and_is_mapped_from_its_beginning() {
        let Some(page) = huge_page() else { return };
        for length in [page, page + 8192, 2 * page + 4096] {
            let object = object(length);
            nix::sys::uio::pwrite(&object, b"begins", 0).unwrap();
            let mapping = Mapping::new(&object, length, false, Pages::Huge).unwrap();
            assert!(mapping.as_mut_ptr().addr().is_multiple_of(page));
            assert_eq!(mapping.len(), length);
            // SAFETY: the first byte of the mapping, which nobody writes.
            assert_eq!(unsafe { mapping.as_mut_ptr().read() }, b'b');
        }
    }

    #[test]
    fn what_holds_no_huge_page_says_so() {
        let object = object(8192);
        let gathered = Mapping::new(&object, 8192, true, Pages::Huge).unwrap().gather();
        assert_eq!(gathered.bytes, 0);
        assert!(gathered.rest.is_some());
    }

    #[test]
    fn gathering_changes_no_byte() {
        let Some(page) = huge_page().filter(|page| *page <= 32 << 20) else {
            return;
        };
        let object = object(2 * page + 4096);
        let text: Vec<u8> = (0..=250).cycle().take(2 * page + 4096).collect();
        nix::sys::uio::pwrite(&object, &text, 0).unwrap();
        let mapping = Mapping::new(&object, text.len(), true, Pages::Huge).unwrap();
        let Gathered { bytes, rest } = mapping.gather();
        assert!(bytes <= 2 * page && bytes.is_multiple_of(page));
        assert_eq!(rest.is_none(), bytes == 2 * page, "{rest:?}");
        let mut found = vec![0; text.len()];
        nix::sys::uio::pread(&object, &mut found, 0).unwrap();
        assert!(found == text);
        // SAFETY: the mapping, which nobody writes.
        let mapped = unsafe { std::slice::from_raw_parts(mapping.as_mut_ptr(), mapping.len()) };
        assert!(mapped == text);
    }
}
