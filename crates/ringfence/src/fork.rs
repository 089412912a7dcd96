//! Protection of a forked child that has not executed another program. It has a copy of the parent's memory and
//! descriptors, and none of the parent's threads.
//!
//! Everything that the parent made still belongs to the parent. So each process has its own statics
//! ([`PerProcess`]), every handle knows the process that made it ([`OwnerProcess`], or a [`ForkMark`] in a word that calls
//! read anyway), and a lock refuses a child ([`ProcessMutex`]). In a child, handles of the parent do nothing.
//!
//! A word that the kernel sets to zero in children (`MADV_WIPEONFORK`, Linux 4.14) distinguishes a process from its
//! children. A process number would not: a child in a new pid namespace may have the same number. A raw clone(2)
//! bypasses pthread_atfork(3), so its handlers only do work that a child can live without: they close descriptors
//! that hold an address or an object ([`CloseOnForkFd`]), and fill the holes where the mappings were ([`Hole`]).

use std::{
    mem,
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

/// The error of a call on a handle that the parent made.
pub(crate) const INHERITED: &str = "it belongs to the process that this one was forked from; make one here";

/// The size of a mapping that is wiped in a child. The kernel rounds it up if pages are larger.
const PAGE: usize = 4096;

/// Maps memory that reads as zeros in a child. It is never unmapped.
fn wiped_page() -> Result<NonNull<c_void>, Errno> {
    let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the address.
    let page = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: no other code has a pointer to that mapping, and the advice changes nothing in this process.
    if let Err(errno) = unsafe { madvise(page, PAGE, MmapAdvise::MADV_WIPEONFORK) } {
        unmap(page);
        return Err(errno);
    }
    Ok(page)
}

fn no_page(errno: Errno) -> Error {
    Error::system("memory that is zeroed in a forked child", errno)
}

fn unmap(page: NonNull<c_void>) {
    // SAFETY: the mapping was just made, and there is no pointer into it. munmap fails if the range is not a mapping.
    let _ = unsafe { munmap(page, PAGE) };
}

/// The word that is zero in a child until the child makes a value.
static PROCESS_WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The number of the last process, among this one and its ancestors, that made a value.
static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The process that made a value: this one, or one from which it was forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerProcess(u64);

impl OwnerProcess {
    /// Returns this process. Fails with [`Error::NoSpace`] if there is no memory to mark it with.
    pub(crate) fn current() -> Result<Self> {
        Self::try_current().map_err(no_page)
    }

    pub(crate) fn try_current() -> Result<Self, Errno> {
        let word = match process_word() {
            Some(word) => word,
            None => make_word()?,
        };
        let own = word.load(Ordering::Acquire);
        if own != 0 {
            return Ok(Self(own));
        }
        let next = LAST_NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        // Another thread may have been first.
        let first = word.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
        Ok(Self(first.map_or_else(|other| other, |_| next)))
    }

    /// Whether it was made in this process.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        process_word().is_some_and(|word| word.load(Ordering::Relaxed) == self.0)
    }

    /// Fails with [`Error::Closed`] if it was made in another process.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_current() {
            Ok(())
        } else {
            Err(inherited())
        }
    }
}

pub(crate) fn inherited() -> Error {
    Error::Closed(INHERITED)
}

#[inline]
fn process_word() -> Option<&'static AtomicU64> {
    // SAFETY: null, or a word of a page that is never unmapped and that every child has.
    unsafe { PROCESS_WORD.load(Ordering::Acquire).as_ref() }
}

#[cold]
fn make_word() -> Result<&'static AtomicU64, Errno> {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    let page = wiped_page()?;
    let made = page.as_ptr().cast();
    let first = PROCESS_WORD.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let word = first.map_or_else(
        |other| {
            unmap(page);
            other
        },
        |_| made,
    );
    // Best effort: without it, a child leaks a few descriptors.
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        let _ = sys::process::in_each_child(in_child);
    }
    // SAFETY: as in `process_word`.
    Ok(unsafe { &*word })
}

/// A static with one value per process, made on first use. The parent's value is neither read nor dropped, because
/// another thread may have been changing it at the moment of the fork, and holds its lock forever.
pub(crate) struct PerProcess<T>(AtomicPtr<OwnedValue<T>>);

struct OwnedValue<T> {
    owner: OwnerProcess,
    value: T,
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Fails as [`OwnerProcess::current`] does.
    pub(crate) fn get(&self) -> Result<&'static T> {
        let owner = OwnerProcess::current()?;
        loop {
            let found = self.0.load(Ordering::Acquire);
            // SAFETY: null, or one that was leaked here, by this process or before it was forked.
            if let Some(of) = unsafe { found.as_ref() }
                && of.owner == owner
            {
                return Ok(&of.value);
            }
            let value = T::default();
            let made = Box::into_raw(Box::new(OwnedValue { owner, value }));
            let placed = self
                .0
                .compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire);
            if placed.is_err() {
                // SAFETY: made above, and not seen by other threads yet.
                drop(unsafe { Box::from_raw(made) });
            }
        }
    }

    /// Returns the value if this process has made one.
    pub(crate) fn existing(&self) -> Option<&'static T> {
        // SAFETY: as in `get`.
        let of = unsafe { self.0.load(Ordering::Acquire).as_ref() }?;
        of.owner.is_current().then_some(&of.value)
    }
}

/// A byte that reads as [`ForkMark::INHERITED`] in a child. It doubles as the state that calls read anyway, so the check
/// costs them nothing.
pub(crate) struct ForkMark {
    cell: &'static AtomicU8,
    owner: OwnerProcess,
}

/// Free bytes, in pages that are never unmapped.
static CELLS: PerProcess<Mutex<Vec<&'static AtomicU8>>> = PerProcess::new();

impl ForkMark {
    /// The value of a mark in a child. The process that made it never stores this value.
    pub(crate) const INHERITED: u8 = 0;
    /// The value of a new mark.
    pub(crate) const FRESH: u8 = u8::MAX;

    /// The process that made it.
    pub(crate) fn owner(&self) -> OwnerProcess {
        self.owner
    }

    /// Errors as [`OwnerProcess::current`].
    pub(crate) fn new() -> Result<Self> {
        let owner = OwnerProcess::current()?;
        let mut cells = CELLS.get()?.lock();
        if cells.is_empty() {
            let page = wiped_page().map_err(no_page)?.cast::<AtomicU8>();
            // SAFETY: all offsets are within the page, which is never unmapped, and a zero byte is a valid atomic.
            cells.extend((0..PAGE).map(|at| unsafe { page.add(at).as_ref() }));
        }
        let cell = cells.pop().ok_or_else(inherited)?;
        let mark = Self { cell, owner };
        mark.store(Self::FRESH, Ordering::Release);
        Ok(mark)
    }
}

impl Deref for ForkMark {
    type Target = AtomicU8;

    #[inline]
    fn deref(&self) -> &AtomicU8 {
        self.cell
    }
}

impl Drop for ForkMark {
    fn drop(&mut self) {
        if let Some(cells) = CELLS.existing().filter(|_| self.owner.is_current()) {
            cells.lock().push(self.cell);
        }
    }
}

/// A mutex that belongs to the process that made it.
///
/// A forked child may inherit it locked by a thread that the child does not have. So a child never waits for it:
/// [`ProcessMutex::lock`] checks first. When it is dropped in a child, a value that some thread was changing is leaked.
pub(crate) struct ProcessMutex<T: Default> {
    mutex: Mutex<T>,
    owner: OwnerProcess,
}

impl<T: Default> ProcessMutex<T> {
    pub(crate) fn new(value: T, owner: OwnerProcess) -> Self {
        Self {
            mutex: Mutex::new(value),
            owner,
        }
    }

    /// Errors with [`Error::Closed`] in a child.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>> {
        self.owner.check()?;
        Ok(self.mutex.lock())
    }

    /// The process that made it.
    pub(crate) fn owner(&self) -> OwnerProcess {
        self.owner
    }
}

impl<T: Default> Drop for ProcessMutex<T> {
    fn drop(&mut self) {
        if !self.owner.is_current() {
            leak_if_locked(&mut self.mutex);
        }
    }
}

/// In a child, leaks a value that another thread was changing at the moment of the fork.
pub(crate) fn leak_if_locked<T: Default>(guarded: &mut Mutex<T>) {
    if guarded.is_locked() {
        mem::forget(mem::take(guarded.get_mut()));
    }
}

/// A list of work for each child. A child does it between the fork and its return, so it may not lock or allocate:
/// another thread of the parent may have held any lock at the fork (pthread_atfork(3)).
struct ChildTasks<T: 'static> {
    all: AtomicPtr<ChildTask<T>>,
    /// The entries of this process that are free. A child visits all entries and does not read this list.
    idle: PerProcess<Mutex<Vec<&'static T>>>,
}

struct ChildTask<T: 'static> {
    work: T,
    next: *mut ChildTask<T>,
}

/// A descriptor, or -1.
static DESCRIPTORS: ChildTasks<AtomicI32> = ChildTasks::new();

/// The address and the length of a mapping. If the address is 0, the length means nothing.
static MAPPINGS: ChildTasks<(AtomicUsize, AtomicUsize)> = ChildTasks::new();

impl<T: Send + Sync> ChildTasks<T> {
    const fn new() -> Self {
        Self {
            all: AtomicPtr::new(ptr::null_mut()),
            idle: PerProcess::new(),
        }
    }

    /// Returns an entry for the caller alone, which is free or new.
    fn acquire(&self, idle: impl FnOnce() -> T) -> &'static T {
        if let Some(taken) = self.idle.existing().and_then(|idle| idle.lock().pop()) {
            return taken;
        }
        let made = Box::leak(Box::new(ChildTask {
            work: idle(),
            next: self.all.load(Ordering::Acquire),
        }));
        let what = &raw const made.work;
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

    /// Frees an entry. Must be called once, by the process that acquired it, after clearing it.
    fn release(&self, idle: &'static T) {
        if let Ok(others) = self.idle.get() {
            others.lock().push(idle);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &'static T> {
        let mut next = self.all.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: null, or an entry that was leaked and in which only atomics change.
            let task = unsafe { next.as_ref() }?;
            next = task.next;
            Some(&task.work)
        })
    }

    /// Starts an empty list in a child, because the entries belong to the parent.
    fn clear_in_child(&self) {
        self.all.store(ptr::null_mut(), Ordering::Release);
    }
}

extern "C" fn in_child() {
    for descriptor in DESCRIPTORS.iter() {
        let number = descriptor.swap(-1, Ordering::Relaxed);
        if number >= 0 {
            // It is this process's own copy, and no thread here uses it.
            let _ = close(number);
        }
    }
    DESCRIPTORS.clear_in_child();
    for (base, length) in MAPPINGS.iter() {
        let length = length.load(Ordering::Relaxed);
        fill(base.swap(0, Ordering::Acquire), length);
    }
    MAPPINGS.clear_in_child();
}

/// Maps zeros in a child where the parent had a mapping that the child does not get. Otherwise the kernel could place
/// the child's next mapping there, and a reservation that was open at the fork would write into it.
fn fill(base: usize, length: usize) {
    let (Some(base), Some(length)) = (NonZeroUsize::new(base), NonZeroUsize::new(length)) else {
        return;
    };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: an existing mapping stays. A kernel without MAP_FIXED_NOREPLACE treats the address as a hint, and maps
    // the pages elsewhere.
    let _ = unsafe { mmap_anonymous(Some(base), length, access, flags) };
}

/// A descriptor of which a child keeps no copy. The copy would hold an address, a lock or an object that the parent has
/// released.
#[derive(Debug)]
pub(crate) struct CloseOnForkFd {
    descriptor: Arc<OwnedFd>,
    entry: &'static AtomicI32,
    owner: OwnerProcess,
}

impl CloseOnForkFd {
    /// Errors as [`OwnerProcess::current`].
    pub(crate) fn new(descriptor: OwnedFd) -> Result<Self> {
        let owner = OwnerProcess::current()?;
        let entry = DESCRIPTORS.acquire(|| AtomicI32::new(-1));
        entry.store(descriptor.as_raw_fd(), Ordering::Release);
        Ok(Self {
            descriptor: Arc::new(descriptor),
            entry,
            owner,
        })
    }

    /// Whether this process has the descriptor. A child has no copy.
    pub(crate) fn in_owner_process(&self) -> bool {
        self.owner.is_current()
    }
}

impl Deref for CloseOnForkFd {
    type Target = Arc<OwnedFd>;

    fn deref(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }
}

impl AsFd for CloseOnForkFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for CloseOnForkFd {
    fn drop(&mut self) {
        if self.owner.is_current() {
            // Before it is closed, because another thread may get its number immediately afterwards.
            self.entry.store(-1, Ordering::Release);
            DESCRIPTORS.release(self.entry);
        } else {
            // It is closed already. The additional reference keeps the number from being closed again.
            mem::forget(Arc::clone(&self.descriptor));
        }
    }
}

/// Registers a mapping that a child does not get, so that the child fills the hole.
pub(crate) struct Hole {
    entry: &'static (AtomicUsize, AtomicUsize),
    pub(crate) owner: OwnerProcess,
}

impl Hole {
    /// Fails if there is no memory for the registration.
    pub(crate) fn at(base: *mut u8, length: usize) -> Result<Self, Errno> {
        let owner = OwnerProcess::try_current()?;
        let entry = MAPPINGS.acquire(|| (AtomicUsize::new(0), AtomicUsize::new(0)));
        entry.1.store(length, Ordering::Relaxed);
        // A child that finds this finds the length as well.
        entry.0.store(base.expose_provenance(), Ordering::Release);
        Ok(Self { entry, owner })
    }

    /// Must be called before the mapping is unmapped, because another mapping may get its address immediately afterwards.
    pub(crate) fn close(&self) {
        self.entry.0.store(0, Ordering::Release);
        MAPPINGS.release(self.entry);
    }
}
