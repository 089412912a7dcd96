//! A mapping of another process's memory, for attackers. Accesses are bounds-checked and atomic, because
//! other processes access the memory at the same time.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap},
};

/// A shared mapping.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the address is valid on every thread, and all access through it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; all reads and writes are atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `size` bytes for reading, and for writing if requested.
    pub fn new(object: impl AsFd, size: usize, writable: bool) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(size).ok_or(Errno::EINVAL)?;
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, object, 0) }?;
        Ok(Self {
            base: base.cast(),
            size,
        })
    }

    /// Returns the size of the mapping in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Makes a read-only mapping writable, if the kernel allows it.
    pub fn make_writable(&self) -> Result<(), Errno> {
        // SAFETY: the range is exactly this mapping, and additional rights invalidate no existing access.
        unsafe {
            mprotect(
                self.base.cast(),
                self.size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            )
        }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.size,
            "word at {at} is outside of the mapping of {} bytes",
            self.size
        );
        // SAFETY: in bounds, as checked above.
        let address = unsafe { self.base.add(at) };
        // SAFETY: the word is aligned and valid as long as the mapping, and this process accesses it only
        // atomically.
        unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(
            at < self.size,
            "byte at {at} is outside of the mapping of {} bytes",
            self.size
        );
        // SAFETY: in bounds, as checked above.
        let address = unsafe { self.base.add(at) };
        // SAFETY: the byte is valid as long as the mapping, and this process accesses it only atomically.
        unsafe { AtomicU8::from_ptr(address.as_ptr()) }
    }

    /// Reads a word.
    pub fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Writes a word.
    pub fn store(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Writes bytes.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.byte(at + index).store(*byte, Ordering::Relaxed);
        }
    }

    /// Reads bytes.
    pub fn read(&self, at: usize, count: usize) -> Vec<u8> {
        (at..at + count)
            .map(|at| self.byte(at).load(Ordering::Relaxed))
            .collect()
    }

    /// Returns the offset of `needle`.
    pub fn find(&self, needle: &[u8]) -> Option<usize> {
        self.read(0, self.size)
            .windows(needle.len())
            .position(|window| window == needle)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference into it outlives this borrow.
        let _ = unsafe { munmap(self.base.cast(), self.size) };
    }
}
