//! What a child that was forked has of this crate, as long as it executes nothing: a copy of all that lies in memory, the
//! descriptors, and none of the threads.
//!
//! All of it is its parent's still. So every static here is one for each process ([`PerProcess`]), every handle knows where
//! it was made ([`Birth`], or a [`ForkMark`] that calls look at anyhow), a lock refuses a child ([`ProcessMutex`]), and in a child what
//! was made before does nothing.
//!
//! A process is told from its children by a word that the kernel sets to zero in them (`MADV_WIPEONFORK`, Linux 4.14). Not
//! by its number: a child in a new pid namespace may have the same, and so may a grandchild. Nor by pthread_atfork(3) alone,
//! which a raw clone(2) passes over. What that is used for is what a child is better off without: descriptors that hold
//! an address or an object ([`Withheld`]), and holes where the mappings were ([`Hole`]).

use std::{
    fmt, mem,
    num::NonZeroUsize,
    ops::Deref,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};

use nix::{
    errno::Errno,
    libc::c_void,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
    unistd::close,
};

use crate::{
    error::{Error, Result},
    sys::{
        self,
        lock::{Mutex, MutexGuard},
    },
};

/// What a call on something that was a parent's says.
pub(crate) const INHERITED: &str = "it belongs to the process that this one was forked from; make one here";

/// Bytes of a mapping that a child finds empty. The kernel rounds up where pages are larger.
const PAGE: usize = 4096;

/// Memory that reads as zeros in a child. It is there for as long as the process is.
fn wiped_page() -> Result<NonNull<c_void>, Errno> {
    let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses where.
    let page = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: it is that mapping, which no other code knows; what is advised changes nothing in this process.
    if let Err(errno) = unsafe { madvise(page, PAGE, MmapAdvise::MADV_WIPEONFORK) } {
        unmap(page);
        return Err(errno);
    }
    Ok(page)
}

fn no_page(errno: Errno) -> Error {
    Error::system("memory that a forked child finds empty", errno)
}

fn unmap(page: NonNull<c_void>) {
    // SAFETY: the mapping was just made, and there is no pointer into it. It fails for what is no mapping.
    let _ = unsafe { munmap(page, PAGE) };
}

/// The word that is zero in a child, until that has made something.
static HERE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The number of the last process that has made something, of this one and those that it descends from.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// In which process something was made: this one, or one that it was forked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Birth(u64);

impl Birth {
    /// For what is made now. Errors with [`Error::NoSpace`].
    pub(crate) fn now() -> Result<Self> {
        Self::try_now().map_err(no_page)
    }

    fn try_now() -> Result<Self, Errno> {
        let word = match here() {
            Some(word) => word,
            None => begin()?,
        };
        let own = word.load(Ordering::Acquire);
        if own != 0 {
            return Ok(Self(own));
        }
        let next = BEGUN.fetch_add(1, Ordering::Relaxed) + 1;
        // Another thread may have been first.
        let first = word.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
        Ok(Self(first.map_or_else(|other| other, |_| next)))
    }

    /// Whether it was made in this process.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        here().is_some_and(|word| word.load(Ordering::Relaxed) == self.0)
    }

    /// Errors with [`Error::Closed`] where it was made in another.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(inherited()) }
    }
}

pub(crate) fn inherited() -> Error {
    Error::Closed(INHERITED)
}

#[inline]
fn here() -> Option<&'static AtomicU64> {
    // SAFETY: null, or a word of a page that stays for as long as the process does, and is in every child.
    unsafe { HERE.load(Ordering::Acquire).as_ref() }
}

#[cold]
fn begin() -> Result<&'static AtomicU64, Errno> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let page = wiped_page()?;
    let made = page.as_ptr().cast();
    let first = HERE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let word = first.map_or_else(
        |other| {
            unmap(page);
            other
        },
        |_| made,
    );
    // Where it cannot be had, a child keeps a few descriptors longer than it need.
    if !TOLD.swap(true, Ordering::AcqRel) {
        let _ = sys::process::in_each_child(in_child);
    }
    // SAFETY: as in `here`.
    Ok(unsafe { &*word })
}

/// A static of which each process has its own, made when it is first asked for. What its parent had is neither looked at
/// nor dropped: another thread may have been changing it at the moment of the fork, and holds its lock for ever.
pub(crate) struct PerProcess<T>(AtomicPtr<Of<T>>);

struct Of<T> {
    birth: Birth,
    value: T,
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Errors as [`Birth::now`].
    pub(crate) fn get(&self) -> Result<&'static T> {
        let birth = Birth::now()?;
        loop {
            let found = self.0.load(Ordering::Acquire);
            // SAFETY: null, or one that was leaked here, by this process or before it was forked.
            if let Some(of) = unsafe { found.as_ref() }
                && of.birth == birth
            {
                return Ok(&of.value);
            }
            let value = T::default();
            let made = Box::into_raw(Box::new(Of { birth, value }));
            let placed = self
                .0
                .compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire);
            if placed.is_err() {
                // SAFETY: made above, and not seen by other threads yet.
                drop(unsafe { Box::from_raw(made) });
            }
        }
    }

    /// The same for a thread that ends something. `None`: this process has made none.
    pub(crate) fn existing(&self) -> Option<&'static T> {
        // SAFETY: as in `get`.
        let of = unsafe { self.0.load(Ordering::Acquire).as_ref() }?;
        of.birth.is_here().then_some(&of.value)
    }
}

/// A byte that reads as [`ForkMark::INHERITED`] in a child, so that a call that looks at it anyhow learns that as well.
pub(crate) struct ForkMark {
    cell: Cell,
    birth: Birth,
}

#[derive(Clone, Copy)]
struct Cell(NonNull<AtomicU8>);

// SAFETY: it points to an atomic byte of a page that stays for as long as the process does.
unsafe impl Send for Cell {}
// SAFETY: as above.
unsafe impl Sync for Cell {}

/// Bytes that are free, of pages that are never given back.
static CELLS: PerProcess<Mutex<Vec<Cell>>> = PerProcess::new();

impl ForkMark {
    /// What no mark says where it was made.
    pub(crate) const INHERITED: u8 = 0;
    /// What a new mark says.
    pub(crate) const FRESH: u8 = u8::MAX;

    /// The process that made it.
    pub(crate) fn birth(&self) -> Birth {
        self.birth
    }

    /// Errors as [`Birth::now`].
    pub(crate) fn new() -> Result<Self> {
        let birth = Birth::now()?;
        let mut cells = CELLS.get()?.lock();
        if cells.is_empty() {
            let page = wiped_page().map_err(no_page)?.cast::<AtomicU8>();
            // SAFETY: all within the page, whose zeros are as many atomic bytes.
            cells.extend((0..PAGE).map(|at| Cell(unsafe { page.add(at) })));
        }
        let cell = cells.pop().ok_or_else(inherited)?;
        let mark = Self { cell, birth };
        mark.store(Self::FRESH, Ordering::Release);
        Ok(mark)
    }
}

impl Deref for ForkMark {
    type Target = AtomicU8;

    #[inline]
    fn deref(&self) -> &AtomicU8 {
        // SAFETY: see `Cell`.
        unsafe { self.cell.0.as_ref() }
    }
}

impl Drop for ForkMark {
    fn drop(&mut self) {
        if let Some(cells) = CELLS.existing().filter(|_| self.birth.is_here()) {
            cells.lock().push(self.cell);
        }
    }
}

impl fmt::Debug for ForkMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.load(Ordering::Relaxed))
    }
}

/// A mutex that belongs to the process that made it.
///
/// A forked child may inherit it locked by a thread that the child does not have. So a child never waits for it:
/// [`ProcessMutex::lock`] checks first. When it is dropped in a child, a value that some thread was changing is leaked.
#[derive(Debug)]
pub(crate) struct ProcessMutex<T: Default> {
    mutex: Mutex<T>,
    birth: Birth,
}

impl<T: Default> ProcessMutex<T> {
    pub(crate) fn new(value: T, birth: Birth) -> Self {
        Self {
            mutex: Mutex::new(value),
            birth,
        }
    }

    /// Errors with [`Error::Closed`] in a child.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>> {
        self.birth.check()?;
        Ok(self.mutex.lock())
    }

    /// The process that made it.
    pub(crate) fn birth(&self) -> Birth {
        self.birth
    }
}

impl<T: Default> Drop for ProcessMutex<T> {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            leave_torn(&mut self.mutex);
        }
    }
}

/// In a child: leaks a value that another thread was changing at the moment of the fork.
pub(crate) fn leave_torn<T: Default>(guarded: &mut Mutex<T>) {
    if guarded.is_held() {
        mem::forget(mem::take(guarded.get_mut()));
    }
}

/// What is to be done in each child, without a lock and without memory: it runs between a fork and its return, where
/// another thread of the parent may have held any (pthread_atfork(3)).
struct Chores<T: 'static> {
    all: AtomicPtr<Chore<T>>,
    /// Those of this process that ask for nothing now. A child looks through all, and not at these.
    idle: PerProcess<Mutex<Vec<&'static T>>>,
}

struct Chore<T: 'static> {
    what: T,
    next: *mut Chore<T>,
}

/// A descriptor, or -1.
static DESCRIPTORS: Chores<AtomicI32> = Chores::new();

/// A mapping, or 0 and whatever.
static MAPPINGS: Chores<(AtomicUsize, AtomicUsize)> = Chores::new();

impl<T: Send + Sync> Chores<T> {
    const fn new() -> Self {
        Self {
            all: AtomicPtr::new(ptr::null_mut()),
            idle: PerProcess::new(),
        }
    }

    /// One that is the caller's alone, and asks for nothing yet.
    fn acquire(&self, idle: impl FnOnce() -> T) -> &'static T {
        if let Some(taken) = self.idle.existing().and_then(|idle| idle.lock().pop()) {
            return taken;
        }
        let made = Box::leak(Box::new(Chore {
            what: idle(),
            next: self.all.load(Ordering::Acquire),
        }));
        let what = &raw const made.what;
        loop {
            let next = made.next;
            match self
                .all
                .compare_exchange(next, made, Ordering::AcqRel, Ordering::Acquire)
            {
                // SAFETY: it was leaked.
                Ok(_) => return unsafe { &*what },
                Err(other) => made.next = other,
            }
        }
    }

    /// By the process that has taken it, and once: it asks for nothing any more.
    fn release(&self, idle: &'static T) {
        if let Ok(others) = self.idle.get() {
            others.lock().push(idle);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &'static T> {
        let mut next = self.all.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: null, or one that was leaked, and is not changed any more but for what is atomic in it.
            let chore = unsafe { next.as_ref() }?;
            next = chore.next;
            Some(&chore.what)
        })
    }

    /// In a child: what its parent had noted is not its own to take.
    fn begin_anew(&self) {
        self.all.store(ptr::null_mut(), Ordering::Release);
    }
}

extern "C" fn in_child() {
    for descriptor in DESCRIPTORS.iter() {
        let number = descriptor.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            // It is this process's own copy, of which no thread here knows any more.
            let _ = close(number);
        }
    }
    DESCRIPTORS.begin_anew();
    for (base, length) in MAPPINGS.iter() {
        let length = length.load(Ordering::Relaxed);
        fill(base.swap(0, Ordering::Acquire), length);
    }
    MAPPINGS.begin_anew();
}

/// Where a mapping was that a child does not get, it finds zeros of its own. Else its next mapping could come to lie
/// there, and a reservation, say, that was open at the fork would write into it.
fn fill(base: usize, length: usize) {
    let (Some(base), Some(length)) = (NonZeroUsize::new(base), NonZeroUsize::new(length)) else {
        return;
    };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: what is mapped there already stays. A kernel that takes the place for a wish maps some pages elsewhere.
    let _ = unsafe { mmap_anonymous(Some(base), length, access, flags) };
}

/// A descriptor of which a child keeps no copy, since that would hold what its parent has let go of: an address, a lock, an
/// object.
#[derive(Debug)]
pub(crate) struct Withheld {
    descriptor: Arc<OwnedFd>,
    noted: &'static AtomicI32,
    birth: Birth,
}

impl Withheld {
    /// Errors as [`Birth::now`].
    pub(crate) fn new(descriptor: OwnedFd) -> Result<Self> {
        let birth = Birth::now()?;
        let noted = DESCRIPTORS.acquire(|| AtomicI32::new(-1));
        noted.store(descriptor.as_raw_fd(), Ordering::Release);
        Ok(Self {
            descriptor: Arc::new(descriptor),
            noted,
            birth,
        })
    }

    /// Not in a child, which has no copy.
    pub(crate) fn is_here(&self) -> bool {
        self.birth.is_here()
    }
}

impl Deref for Withheld {
    type Target = Arc<OwnedFd>;

    fn deref(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }
}

impl AsFd for Withheld {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        if self.birth.is_here() {
            // Before it is closed: its number may be another's at once.
            self.noted.store(-1, Ordering::Release);
            DESCRIPTORS.release(self.noted);
        } else {
            // It is closed already. One reference more than will ever be dropped.
            mem::forget(Arc::clone(&self.descriptor));
        }
    }
}

/// What is left in a child where this process has a mapping that it does not get.
#[derive(Debug)]
pub(crate) struct Hole {
    noted: &'static (AtomicUsize, AtomicUsize),
    pub(crate) birth: Birth,
}

impl Hole {
    /// Errors where there is no memory to tell by.
    pub(crate) fn at(base: *mut u8, length: usize) -> Result<Self, Errno> {
        let birth = Birth::try_now()?;
        let noted = MAPPINGS.acquire(|| (AtomicUsize::new(0), AtomicUsize::new(0)));
        noted.1.store(length, Ordering::Relaxed);
        // A child that finds this finds the length as well.
        noted.0.store(base.expose_provenance(), Ordering::Release);
        Ok(Self { noted, birth })
    }
}

impl Hole {
    /// Before it is unmapped: the place may be another mapping's at once.
    pub(crate) fn close(&self) {
        self.noted.0.store(0, Ordering::Release);
        MAPPINGS.release(self.noted);
    }
}
