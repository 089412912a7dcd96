//! A mapped shared object: the region that this process writes, and the one that it can only read.
//!
//! Nothing here ever becomes a Rust reference to memory that the peer writes. The peer's region is read through
//! volatile accesses and opaque copies alone: it lies outside every Rust allocation, so such a read yields some
//! bytes whatever the peer does meanwhile (see `ptr::read_volatile`), and whoever reads checks what it got.

use std::{
    mem,
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence},
    },
    thread,
    time::Duration,
};

use nix::{errno::Errno, libc};

use crate::{
    error::{Error, Result},
    memory::mapping::Mapping,
    memory::tripwire::Tripwire,
    sys,
};

/// Where things lie in a region. Every word that one side writes and the other polls has 128 bytes to itself:
/// processors fetch cache lines in pairs.
pub(crate) mod layout {
    /// [`MAGIC`](super::MAGIC) as a little-endian word.
    pub(crate) const MAGIC_AT: usize = 0;
    /// Capacity of the ring, in bytes.
    pub(crate) const CAPACITY: usize = 8;
    /// How far this region's owner has written: the position after its last published record.
    pub(crate) const TAIL: usize = 128;
    /// How far this region's owner has read in the peer's ring.
    pub(crate) const HEAD: usize = 256;
    /// Odd while the owner sleeps until there is something to read.
    pub(crate) const READER_PARKED: usize = 384;
    /// Odd while the owner sleeps until there is room to write.
    pub(crate) const WRITER_PARKED: usize = 512;
    /// What the owner will still do: see [`Phase`](crate::memory::phase::Phase).
    pub(crate) const PHASE: usize = 640;
    /// How many tokens the owner has sent.
    pub(crate) const TOKENS: usize = 768;
    /// 1 while the owner makes a full fence between each store of its tail and its look at the peer's
    /// [`READER_PARKED`].
    pub(crate) const TAIL_FENCED: usize = 896;
    /// The same for its head, and the peer's [`WRITER_PARKED`].
    pub(crate) const HEAD_FENCED: usize = 1024;
    /// The ring itself.
    pub(crate) const DATA: usize = 4096;
    /// A record that fits the ring's end but for this many bytes is written past it, so that a message of
    /// exactly half the capacity always finds a place in an empty ring, headers and beginnings of lines notwithstanding.
    pub(crate) const OVERHANG: usize = 64;
}

/// The first word of every region: the name and the version of its layout.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"ringfnc1");

/// A page: regions are whole pages. Larger pages divide it or are divided by it; only the size matters here.
const PAGE: u64 = 4096;

/// The smallest ring, in bytes.
pub const CAPACITY_MIN: u64 = 4096;

/// Rounds a wanted capacity up to what a ring can have: a power of two of at least [`CAPACITY_MIN`]. `None` for
/// 0 and for what does not fit 63 bits.
pub(crate) fn round_capacity(wanted: u64) -> Option<u64> {
    if wanted == 0 || wanted > 1 << 62 {
        return None;
    }
    Some(wanted.next_power_of_two().max(CAPACITY_MIN))
}

/// Bytes that a region with this capacity takes.
pub(crate) const fn region_size(capacity: u64) -> u64 {
    layout::DATA as u64 + capacity + PAGE
}

/// Bytes of a cache line. Where lines are longer, some are asked for twice.
pub(crate) const LINE: usize = 64;

/// Where one record ends tells where the next begins, so a reader would wait for the lines of each in turn, and the
/// processor's own prefetching ends at each page: readers ask for what lies this far ahead.
pub(crate) const AHEAD: usize = 8192;

/// Bytes that are copied in one go: few, so that lines are asked for at the pace at which they come.
pub(crate) const BLOCK: usize = 512;

/// A region as the ring reads it. Offsets are in bytes from the region's start; those of words are multiples of
/// eight. Implemented by the mappings below, and by the models that the ring's tests run on.
pub(crate) trait Readable {
    fn load(&self, at: usize, order: Ordering) -> u64;
    /// Copies `into.len()` bytes out. `at` is a multiple of eight.
    fn copy_out(&self, at: usize, into: &mut [u8]);
    /// As [`Readable::copy_out`], for a reader who goes on behind it, where there is something up to `end`.
    #[inline]
    fn copy_out_ahead(&self, at: usize, into: &mut [u8], end: usize) {
        if into.len() <= SMALL {
            return self.copy_out(at, into);
        }
        for (index, block) in into.chunks_mut(BLOCK).enumerate() {
            let at = at + index * BLOCK;
            self.will_read_on(at, block.len(), end);
            self.copy_out(at, block);
        }
    }
    /// As many bytes will be read at `at` now: fetches as many that lie further on, where there is something up to `end`.
    #[inline]
    fn will_read_on(&self, at: usize, length: usize, end: usize) {
        let from = at + AHEAD;
        if length == BLOCK && from + BLOCK <= end {
            // So many that the compiler can write them out: to count them took as long as to read the block.
            for line in 0..BLOCK / LINE {
                self.will_read_later(from + line * LINE);
            }
            return;
        }
        for line in (from..(from + length).min(end)).step_by(LINE) {
            self.will_read_later(line);
        }
    }
    /// Fetches the cache line at `at` ahead of its reading.
    #[inline]
    fn will_read(&self, at: usize) {
        let _ = at;
    }
    /// As [`Readable::will_read`], where much more will be read before: to the second cache.
    #[inline]
    fn will_read_later(&self, at: usize) {
        let _ = at;
    }
    /// A sequentially consistent fence, of the kind of memory that this is.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
    /// The same on every processor that runs a process which has asked for it: membarrier(2).
    fn barrier_for_all(&self) -> std::result::Result<(), Errno> {
        sys::issue_barrier()
    }
}

/// A region as its owner writes it.
pub(crate) trait Writable: Readable {
    fn store(&self, at: usize, value: u64, order: Ordering);
    fn copy_in(&self, at: usize, from: &[u8]);
    /// Fetches the cache line at `at` ahead of its writing.
    #[inline]
    fn will_write(&self, at: usize) {
        let _ = at;
    }
}

#[derive(Debug)]
enum Backing {
    Shared(Mapping),
    Own(Own),
    /// Memory of this process alone: for a half that reads or writes nothing any more.
    Private(Words),
}

/// A mapping of this process's own object: wiped before it goes.
#[derive(Debug)]
struct Own {
    /// First, since the lease that it watches goes with the mapping.
    tripwire: OnceLock<Tripwire>,
    map: Mapping,
    /// The peer may still read the ring from this position on; one that no tail can have: nothing more.
    kept_from: AtomicU64,
    /// Whether anything was ever to be read here.
    used: AtomicBool,
    hold: Hold,
}

/// What the producer has handed out as a slice, and that the ring is being wiped: a slice that changes under the one who has it
/// would be undefined behaviour. So the wipe leaves that range out, and the one who lets go of it wipes it.
///
/// The range is written by the producer alone, and the flag by the alarm, under the channel's lock. Each stores its own and then
/// looks at the other's, with a full barrier in between: one of the two at least sees the other. The producer's is made by the
/// alarm where the kernel does that (membarrier(2)), as with a sleeper's and a publisher's: a reservation costs no fence.
#[derive(Debug, Default)]
struct Hold {
    /// Offset of the range; 0: there is none. Stored after its length.
    at: AtomicUsize,
    length: AtomicUsize,
    wiped: AtomicBool,
    /// The alarm can make the producer's barrier.
    has_barriers: AtomicBool,
}

impl Hold {
    fn producers_fence(&self) {
        if self.has_barriers.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    fn alarms_fence(&self) {
        /// A processor writes out what it has stored in far less.
        const MUCH: Duration = Duration::from_millis(100);
        fence(Ordering::SeqCst);
        // Where the kernel has no memory left for it, or a filter of system calls came later.
        if self.has_barriers.load(Ordering::Relaxed) && sys::issue_barrier().is_err() {
            thread::sleep(MUCH);
        }
    }

    fn range(&self) -> Option<(usize, usize)> {
        let at = self.at.load(Ordering::Acquire);
        (at != 0).then(|| (at, at + self.length.load(Ordering::Relaxed)))
    }
}

/// No position of a record: those are multiples of eight.
const NOTHING_KEPT: u64 = u64::MAX;

impl Drop for Own {
    fn drop(&mut self) {
        let head = *self.kept_from.get_mut();
        if *self.used.get_mut() && self.map.is_here() {
            // SAFETY: a word of the mapping, which nobody else in this process has any more.
            let tail = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(layout::TAIL).cast()) };
            // With shm the peer may have written it: whatever it says, only the parts of the ring follow from it. The
            // capacity, on which their ends depend, is not read there.
            let tail = tail.load(Ordering::Acquire);
            for (from, to) in read_already(self.capacity(), head, tail) {
                self.fill(from, to);
            }
        }
    }
}

impl Own {
    /// Of the ring, as the size of the mapping tells.
    fn capacity(&self) -> u64 {
        self.map.len() as u64 - region_size(0)
    }

    /// Writes zeros from one offset to another.
    fn fill(&self, from: usize, to: usize) {
        assert!(from <= to && to <= self.map.len(), "the range lies in the region");
        // SAFETY: in bounds, and mapped for writing.
        unsafe { opaque_wipe(self.map.as_mut_ptr().add(from), to - from) }
    }
}

/// The parts of a ring, as offsets in its region, that nobody will read any more, if the peer has read up to `head`.
/// All of it where that is no position that a peer can have.
fn read_already(capacity: u64, head: u64, tail: u64) -> Vec<(usize, usize)> {
    let end = capacity + layout::OVERHANG as u64;
    let unread = tail.wrapping_sub(head);
    let (from, to) = (head & (capacity - 1), tail & (capacity - 1));
    let parts = if unread == 0 || unread > capacity || !head.is_multiple_of(8) {
        vec![(0, end)]
    } else if from < to {
        vec![(0, from), (to, end)]
    } else {
        // The overhang holds the end of a record that begins before it.
        vec![(to, from)]
    };
    parts
        .into_iter()
        .map(|(from, to)| (layout::DATA + as_offset(from), layout::DATA + as_offset(to)))
        .collect()
}

/// Zeros, not resident before they are touched. Held by a pointer, as a mapping is: a box would claim that nothing
/// else points into it, each time that it is moved or looked at.
#[derive(Debug)]
struct Words(NonNull<[u64]>);

impl Words {
    fn zeroed(bytes: usize) -> Self {
        let words = vec![0_u64; bytes.div_ceil(8)].into_boxed_slice();
        Self(NonNull::from(Box::leak(words)))
    }
}

// SAFETY: memory that the pointer owns, as good on one thread as on another; it is written only atomically, or by the
// one producer, as a mapping is.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: it was a box when it was made, and whoever points into it keeps this from being dropped.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Backing {
    fn base(&self) -> *mut u8 {
        match self {
            Self::Shared(map) | Self::Own(Own { map, .. }) => map.as_mut_ptr(),
            Self::Private(words) => words.0.as_ptr().cast(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Shared(map) | Self::Own(Own { map, .. }) => map.len(),
            Self::Private(words) => words.0.len() * 8,
        }
    }
}

const _: () = assert!(
    align_of::<AtomicU64>() == align_of::<u64>(),
    "ringfence needs a 64-bit target"
);

fn map(what: &str, object: impl AsFd, capacity: u64, writable: bool) -> Result<Mapping> {
    let size = length(region_size(capacity))?;
    Mapping::new(object, size, writable).map_err(|errno| Error::system(what, errno))
}

fn length(size: u64) -> Result<usize> {
    usize::try_from(size).map_err(|_| Error::NoSpace {
        what: format!("a mapping of {size} bytes"),
        reason: "it exceeds the address space".into(),
    })
}

/// The region that this process owns: mapped for reading and writing here, and nowhere else.
#[derive(Debug, Clone)]
pub(crate) struct OwnRegion {
    base: *mut u8,
    keep: Arc<Backing>,
}

// SAFETY: the pointer is to the mapping that `keep` holds, which is as good on one thread as on another; all access
// is through atomics, or to parts of the ring that the one producer has claimed.
unsafe impl Send for OwnRegion {}
// SAFETY: as above; nothing is written through a shared reference but atomics and what the one producer claimed.
unsafe impl Sync for OwnRegion {}

impl OwnRegion {
    fn new(backing: Backing) -> Self {
        Self {
            base: backing.base(),
            keep: Arc::new(backing),
        }
    }

    /// Maps a new object of `region_size(capacity)` bytes, prefaulted, and writes its head words.
    pub(crate) fn map(object: impl AsFd, capacity: u64) -> Result<Self> {
        let map = map("mapping the shared object", object, capacity, true)?;
        let own = Own {
            tripwire: OnceLock::new(),
            map,
            kept_from: AtomicU64::new(NOTHING_KEPT),
            used: AtomicBool::new(false),
            hold: Hold::default(),
        };
        Ok(Self::initialised(Backing::Own(own), capacity))
    }

    fn own(&self) -> Option<&Own> {
        match &*self.keep {
            Backing::Own(own) => Some(own),
            _ => None,
        }
    }

    /// Keeps the watch on this region's object for as long as it is mapped.
    pub(crate) fn guard(&self, tripwire: Tripwire) {
        if let Some(own) = self.own() {
            // There is one object, and one lease on it.
            let _ = own.tripwire.set(tripwire);
        }
    }

    pub(crate) fn tripwire(&self) -> Option<&Tripwire> {
        self.own()?.tripwire.get()
    }

    /// The peer has the region now: when this mapping goes, all of the ring is wiped. `barriers`: this process takes and can issue
    /// membarrier(2).
    pub(crate) fn in_use(&self, barriers: bool) {
        if let Some(own) = self.own() {
            own.hold.has_barriers.store(barriers, Ordering::Relaxed);
            own.used.store(true, Ordering::Release);
        }
    }

    /// For the producer, before it hands out a range as a slice: no wipe touches it until [`OwnRegion::let_go`]. It can have one at
    /// a time. `false`: the ring is being wiped, or was, and nothing may be handed out.
    #[inline]
    pub(crate) fn hold(&self, at: usize, length: usize) -> bool {
        let Some(Own { hold, .. }) = self.own() else {
            return true;
        };
        // Before the stores: an alarm that still sees the last range sees its length, too.
        if hold.wiped.load(Ordering::Relaxed) {
            return false;
        }
        hold.length.store(length, Ordering::Relaxed);
        hold.at.store(at, Ordering::Release);
        hold.producers_fence();
        if hold.wiped.load(Ordering::Relaxed) {
            self.let_go(at, length);
            return false;
        }
        true
    }

    /// The slice is gone, that [`OwnRegion::hold`] was called for.
    #[inline]
    pub(crate) fn let_go(&self, at: usize, length: usize) {
        let Some(own) = self.own() else { return };
        own.hold.at.store(0, Ordering::Release);
        own.hold.producers_fence();
        if own.hold.wiped.load(Ordering::Acquire) && own.map.is_here() {
            own.fill(at, at + length);
        }
    }

    /// The peer may still read what lies behind this position, its head: only the rest is wiped when this mapping goes.
    pub(crate) fn keep_from(&self, head: u64) {
        if let Some(own) = self.own() {
            own.kept_from.store(head, Ordering::Release);
        }
    }

    /// Wipes the ring now, whoever reads it meanwhile, and once more when this mapping goes. What the producer has handed out is
    /// wiped when that is let go of.
    pub(crate) fn wipe(&self) {
        if let Some(own) = self.own() {
            own.kept_from.store(NOTHING_KEPT, Ordering::Release);
            own.hold.wiped.store(true, Ordering::Release);
            own.hold.alarms_fence();
            let end = own.map.len();
            let (from, to) = own.hold.range().unwrap_or((end, end));
            own.fill(layout::DATA, from);
            own.fill(to, end);
        }
    }

    /// The head words alone, in private memory: for whoever tells nobody any more.
    pub(crate) fn nowhere() -> Self {
        Self::new(Backing::Private(Words::zeroed(layout::DATA)))
    }

    /// A region in private memory, for tests of the ring on plain memory (and under Miri).
    #[cfg(any(test, fuzzing))]
    pub(crate) fn private(capacity: u64) -> Self {
        Self::initialised(
            Backing::Private(Words::zeroed(usize::try_from(region_size(capacity)).unwrap())),
            capacity,
        )
    }

    fn initialised(backing: Backing, capacity: u64) -> Self {
        let region = Self::new(backing);
        region.store(layout::CAPACITY, capacity, Ordering::Relaxed);
        region.store(layout::MAGIC_AT, MAGIC, Ordering::Release);
        region
    }

    /// The peer's view of this region, for tests on plain memory.
    #[cfg(test)]
    pub(crate) fn seen_by_peer(&self) -> PeerRegion {
        PeerRegion {
            base: self.base,
            keep: Arc::clone(&self.keep),
        }
    }

    /// The bytes of a record that the producer has claimed and not yet published.
    ///
    /// # Safety
    /// The range lies in the ring (its overhang included), and the caller is its one producer, has claimed the
    /// range, and hands out no second reference to it while this one lives.
    #[inline]
    pub(crate) unsafe fn claimed(&mut self, at: usize, length: usize) -> &mut [u8] {
        debug_assert!(at + length <= self.keep.size(), "the range lies in the region");
        // SAFETY: the caller promises the range and that it is alone; no other process can write here, since this
        // is the only writable mapping, and what another process reads is outside Rust's memory model.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), length) }
    }

    /// As [`OwnRegion::claimed`], for reading.
    ///
    /// # Safety
    /// As there, but other shared references may live meanwhile.
    #[inline]
    pub(crate) unsafe fn claimed_for_reading(&self, at: usize, length: usize) -> &[u8] {
        debug_assert!(at + length <= self.keep.size(), "the range lies in the region");
        // SAFETY: the caller promises the range, and that nobody writes it while the reference lives.
        unsafe { std::slice::from_raw_parts(self.base.add(at), length) }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.keep.size(),
            "a word of the region"
        );
        // SAFETY: in bounds and aligned (the base is a page, or a slice of u64); the word is only ever
        // accessed atomically, or under `claimed`, whose caller is the only one to touch it then.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }
}

impl Readable for OwnRegion {
    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.word(at).load(order)
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(
            at + into.len() <= self.keep.size(),
            "the range lies in the region"
        );
        // SAFETY: in bounds, and nobody but this process writes here.
        unsafe { ptr::copy_nonoverlapping(self.base.add(at), into.as_mut_ptr(), into.len()) }
    }
}

impl Writable for OwnRegion {
    #[inline]
    fn will_write(&self, at: usize) {
        prefetch_for_writing(self.base.wrapping_add(at));
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.word(at).store(value, order);
    }

    #[inline]
    fn copy_in(&self, at: usize, from: &[u8]) {
        debug_assert!(
            at + from.len() <= self.keep.size(),
            "the range lies in the region"
        );
        if from.len() <= SMALL {
            // Word by word, as most callers have just written it: a wider load of narrower stores waits until they have
            // reached the cache. Atomically, or the compiler makes a call of it, which loads as widely as it can.
            let (words, rest) = from.as_chunks::<8>();
            for (index, word) in words.iter().enumerate() {
                self.store(at + index * 8, u64::from_ne_bytes(*word), Ordering::Relaxed);
            }
            let done = words.len() * 8;
            // SAFETY: as below.
            unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), self.base.add(at + done), rest.len()) };
            return;
        }
        // SAFETY: in bounds: the ring claims only ranges inside the region, and has claimed this one, so nobody in
        // this process reads or writes it; nobody outside can write it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(at), from.len()) }
    }
}

/// The region that the peer owns: mapped for reading. Its contents may change at any moment, and may be lies.
#[derive(Debug, Clone)]
pub(crate) struct PeerRegion {
    base: *const u8,
    keep: Arc<Backing>,
}

// SAFETY: as for OwnRegion; this one is never written through at all.
unsafe impl Send for PeerRegion {}
// SAFETY: as above.
unsafe impl Sync for PeerRegion {}

impl PeerRegion {
    /// Maps what the peer passed, for reading, and checks that it is laid out as agreed.
    pub(crate) fn map(object: impl AsFd, capacity: u64) -> Result<Self> {
        let map = map("mapping the peer's object", object, capacity, false)?;
        let region = Self {
            base: map.as_mut_ptr(),
            keep: Arc::new(Backing::Shared(map)),
        };
        for (check, at, wanted) in [
            ("layout", layout::MAGIC_AT, MAGIC),
            ("capacity", layout::CAPACITY, capacity),
        ] {
            let found = region.load(at, Ordering::Acquire);
            if found != wanted {
                return Err(Error::ObjectUnsound {
                    check,
                    wanted: format!("{wanted:#x}"),
                    found: format!("{found:#x}"),
                });
            }
        }
        Ok(region)
    }

    /// An empty ring in private memory: for whoever reads nothing any more.
    pub(crate) fn nowhere() -> Self {
        let OwnRegion { base, keep } = OwnRegion::nowhere();
        Self { base, keep }
    }

    /// Whether there is nothing to read here, nor will be: see [`PeerRegion::nowhere`].
    pub(crate) fn is_nowhere(&self) -> bool {
        self.keep.size() == layout::DATA
    }

    /// Reads the word at a multiple of eight, whoever writes it meanwhile: for payloads.
    #[inline]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "the base is a page or a slice of words, and `at` a multiple of eight"
    )]
    pub(crate) fn peek(&self, at: usize) -> u64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.keep.size(),
            "a word of the region"
        );
        // SAFETY: in bounds and aligned; the memory is a mapping of another process's object, outside every Rust
        // allocation (or private memory that nobody writes any more), so a volatile read is defined and yields
        // some eight bytes.
        unsafe { self.base.add(at).cast::<u64>().read_volatile() }
    }

    /// As [`PeerRegion::peek`], for two words: stored at once, so that whoever reads both at once need not wait.
    #[inline]
    fn peek_pair(&self, at: usize) -> [u8; 16] {
        debug_assert!(
            at.is_multiple_of(8) && at + 16 <= self.keep.size(),
            "two words of the region"
        );
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let pair: std::arch::x86_64::__m128i;
            // SAFETY: in bounds; to the compiler this is foreign code that yields some sixteen bytes, whoever writes
            // there meanwhile. Every x86-64 processor has the instruction.
            unsafe {
                std::arch::asm!("movdqu {}, [{}]", out(xmm_reg) pair, in(reg) self.base.add(at), options(nostack, preserves_flags, readonly));
            }
            // SAFETY: sixteen bytes either way, all of which are valid as either.
            unsafe { mem::transmute(pair) }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            let mut pair = [0; 16];
            pair[..8].copy_from_slice(&self.peek(at).to_ne_bytes());
            pair[8..].copy_from_slice(&self.peek(at + 8).to_ne_bytes());
            pair
        }
    }
}

/// Bytes of four wide loads.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) const ROW: usize = 4 * 32;

/// Whether [`PeerRegion::peek_row`] may be called.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
pub(crate) fn has_wide_loads() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
impl PeerRegion {
    /// Words in a row, whoever writes them meanwhile, by the widest loads that most processors have: a tenth of the
    /// instructions that it takes word by word, and no call in between, as a copy would take.
    ///
    /// # Safety
    /// The row lies in the region, and the processor has AVX2: see [`has_wide_loads`].
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(crate) unsafe fn peek_row(&self, at: usize) -> [u64; ROW / 8] {
        use std::arch::{asm, x86_64::__m256i};

        debug_assert!(at + ROW <= self.keep.size(), "a row of the region");
        let from = self.base.wrapping_add(at);
        let (a, b, c, d): (__m256i, __m256i, __m256i, __m256i);
        // SAFETY: the caller promises that the bytes are there, and that the processor has the instruction; to the
        // compiler this is foreign code that yields some bytes, whoever writes there meanwhile.
        unsafe {
            asm!(
                "vmovdqu {a}, [{from}]",
                "vmovdqu {b}, [{from} + 32]",
                "vmovdqu {c}, [{from} + 64]",
                "vmovdqu {d}, [{from} + 96]",
                from = in(reg) from,
                a = out(ymm_reg) a,
                b = out(ymm_reg) b,
                c = out(ymm_reg) c,
                d = out(ymm_reg) d,
                options(nostack, preserves_flags, readonly)
            );
        }
        // SAFETY: as many bytes either way, all of which are valid as either.
        unsafe { mem::transmute::<[__m256i; 4], [u64; ROW / 8]>([a, b, c, d]) }
    }

    /// As [`PeerRegion::peek_row`], for a block of them.
    ///
    /// # Safety
    /// As there, of a whole block.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(crate) unsafe fn peek_block(&self, at: usize) -> [u64; BLOCK / 8] {
        let mut rows = [[0; ROW / 8]; BLOCK / ROW];
        for (index, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller promises the block, of which the row is a part, and AVX2.
            *row = unsafe { self.peek_row(at + index * ROW) };
        }
        // SAFETY: an array of arrays lies as one array does.
        unsafe { mem::transmute::<[[u64; ROW / 8]; BLOCK / ROW], [u64; BLOCK / 8]>(rows) }
    }
}

/// A position inside a ring is less than the region's size, which was a usize when it was mapped.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by the size of an existing mapping"
)]
pub(crate) const fn as_offset(position: u64) -> usize {
    position as usize
}

impl Readable for PeerRegion {
    #[inline]
    fn will_read(&self, at: usize) {
        prefetch(self.base.wrapping_add(at), Cache::First);
    }

    #[inline]
    fn will_read_later(&self, at: usize) {
        prefetch(self.base.wrapping_add(at), Cache::Second);
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        debug_assert!(
            at.is_multiple_of(8) && at + 8 <= self.keep.size(),
            "a word of the region"
        );
        // SAFETY: in bounds and aligned; the owner accesses these words only atomically, or breaks its own promise
        // outside of Rust's memory, where an atomic load is a plain machine load of eight bytes. The mapping may be
        // read-only, where only relaxed loads are promised to work (std::sync::atomic): hence the fence.
        let value =
            unsafe { AtomicU64::from_ptr(self.base.add(at).cast_mut().cast()) }.load(Ordering::Relaxed);
        if !matches!(order, Ordering::Relaxed) {
            fence(Ordering::Acquire);
        }
        value
    }

    #[inline]
    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(
            at + into.len() <= self.keep.size(),
            "the range lies in the region"
        );
        if into.len() <= SMALL || cfg!(miri) {
            let mut from = at;
            let mut pairs = into.chunks_exact_mut(16);
            for pair in &mut pairs {
                pair.copy_from_slice(&self.peek_pair(from));
                from += 16;
            }
            let mut words = pairs.into_remainder().chunks_exact_mut(8);
            for word in &mut words {
                word.copy_from_slice(&self.peek(from).to_ne_bytes());
                from += 8;
            }
            let rest = words.into_remainder();
            if !rest.is_empty() {
                // The region is a multiple of eight long, so the last word is whole.
                let bytes = self.peek(from).to_ne_bytes();
                rest.copy_from_slice(&bytes[..rest.len()]);
            }
        } else {
            // SAFETY: in bounds on both sides, and the destination is ours alone.
            unsafe { opaque_copy(self.base.add(at), into.as_mut_ptr(), into.len()) }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Cache {
    First,
    Second,
}

/// Asks for a cache line before it is needed. A hint: it changes nothing, whatever the address.
#[inline]
fn prefetch(at: *const u8, to: Cache) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults and has no effect that a program could see; every x86-64 processor takes it.
        unsafe {
            match to {
                Cache::First => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                Cache::Second => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            }
        };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (at, to);
}

/// Asks for a cache line before it is written: as [`prefetch`], but nobody else has it then.
#[inline]
fn prefetch_for_writing(at: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as for `prefetch`; where the processor knows no such instruction, it does nothing (Intel's manual, volume
    // 2, PREFETCHW).
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// memset(3) through a pointer that the compiler cannot see through: it cannot take the writes for useless, though
/// the memory goes next; and where another thread of this process is writing the same bytes at that moment, what comes
/// of it is decided by the machine, as with any other process's writes to shared memory, and thrown away.
///
/// # Safety
/// `to` is writable for `length` bytes.
unsafe fn opaque_wipe(to: *mut u8, length: usize) {
    type Fill = unsafe extern "C" fn(*mut libc::c_void, libc::c_int, usize) -> *mut libc::c_void;
    static FILL: Fill = libc::memset;
    // SAFETY: a static that is never written.
    let fill = unsafe { ptr::read_volatile(&raw const FILL) };
    // SAFETY: the caller promises the range.
    unsafe { fill(to.cast(), 0, length) };
}

/// Up to here a copy word by word is faster than a call.
const SMALL: usize = 128;

/// memcpy(3) through a pointer that the compiler cannot see through: to it this is foreign code that fills the
/// destination, with no promise about the source that a concurrent writer could break.
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, and they do not overlap.
unsafe fn opaque_copy(from: *const u8, to: *mut u8, length: usize) {
    type Copy = unsafe extern "C" fn(*mut libc::c_void, *const libc::c_void, usize) -> *mut libc::c_void;
    static COPY: Copy = libc::memcpy;
    // SAFETY: a static that is never written.
    let copy = unsafe { ptr::read_volatile(&raw const COPY) };
    // SAFETY: the caller promises both ranges.
    unsafe { copy(to.cast(), from.cast(), length) };
}

const _: () = assert!(mem::size_of::<u64>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_round_up_to_powers_of_two() {
        for (wanted, got) in [
            (0, None),
            (1, Some(4096)),
            (4096, Some(4096)),
            (4097, Some(8192)),
            (1 << 62, Some(1 << 62)),
            (u64::MAX, None),
        ] {
            assert_eq!(round_capacity(wanted), got, "{wanted}");
        }
    }

    #[test]
    fn copies_of_every_length_and_offset_are_exact() {
        let own = OwnRegion::private(4096);
        let bytes: Vec<u8> = (0..4096_u32).map(|n| (n * 7 % 251) as u8).collect();
        own.copy_in(layout::DATA, &bytes);
        let peer = own.seen_by_peer();
        let lengths: Vec<usize> = if cfg!(miri) {
            vec![0, 1, 7, 8, 9, 130]
        } else {
            (0..300).chain([1000, 2047, 4096 - 32]).collect()
        };
        for at in [0, 8, 16, 32] {
            for &length in &lengths {
                let mut out = vec![0xaa; length];
                peer.copy_out(layout::DATA + at, &mut out);
                assert_eq!(out, bytes[at..at + length], "{at} {length}");
            }
        }
    }

    #[test]
    fn only_what_was_read_is_wiped() {
        let data = layout::DATA;
        let end = 4096 + layout::OVERHANG;
        for (head, tail, wiped) in [
            // All was read; and a head that no peer has.
            (64, 64, vec![(0, end)]),
            (128, 64, vec![(0, end)]),
            (0, 8192, vec![(0, end)]),
            (4, 64, vec![(0, end)]),
            (NOTHING_KEPT, 64, vec![(0, end)]),
            // In the middle, over the end, to the very end, and a full ring.
            (8, 64, vec![(0, 8), (64, end)]),
            (4000, 4200, vec![(104, 4000)]),
            (4000, 4096, vec![(0, 4000)]),
            (8, 4104, vec![(8, 8)]),
        ] {
            let wiped: Vec<_> = wiped
                .into_iter()
                .map(|(from, to)| (data + from, data + to))
                .collect();
            assert_eq!(read_already(4096, head, tail), wiped, "{head} {tail}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn a_wipe_leaves_out_what_the_producer_has_handed_out() {
        use nix::{
            sys::memfd::{MFdFlags, memfd_create},
            unistd::ftruncate,
        };

        const AT: usize = layout::DATA + 80;
        let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&object, i64::try_from(region_size(4096)).unwrap()).unwrap();
        let mut own = OwnRegion::map(&object, 4096).unwrap();
        own.in_use(false);
        own.copy_in(layout::DATA, &[7; 4104]);
        let found = |own: &OwnRegion| {
            let mut bytes = vec![1; 4104];
            own.copy_out(layout::DATA, &mut bytes);
            bytes
        };
        // One that was let go of counts no more.
        assert!(own.hold(layout::DATA, 8));
        own.let_go(layout::DATA, 8);
        assert!(own.hold(AT, 100));
        let alarm = own.clone();
        // SAFETY: a range of the ring, that nobody else has.
        let slice = unsafe { own.claimed(AT, 100) };
        alarm.wipe();
        assert_eq!(slice, [7; 100]);
        let mut wanted = vec![0; 4104];
        wanted[80..180].fill(7);
        assert_eq!(found(&own), wanted);
        assert!(!own.hold(layout::DATA, 8), "nothing more is handed out");
        own.let_go(AT, 100);
        assert_eq!(found(&own), [0; 4104]);
    }

    /// With shm, the peer holds a descriptor that can write this side's region.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn whatever_a_peer_writes_in_the_head_words_what_was_read_is_wiped() {
        use nix::{
            sys::{
                memfd::{MFdFlags, memfd_create},
                uio::pread,
            },
            unistd::ftruncate,
        };

        for capacity in [0, 1, 8, 8192, 1 << 62, u64::MAX] {
            for tail in [0, 64, 4200, u64::MAX] {
                let object = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
                ftruncate(&object, i64::try_from(region_size(4096)).unwrap()).unwrap();
                let own = OwnRegion::map(&object, 4096).unwrap();
                own.copy_in(layout::DATA, &[7; 4104]);
                own.in_use(false);
                own.keep_from(8);
                own.store(layout::CAPACITY, capacity, Ordering::Relaxed);
                own.store(layout::TAIL, tail, Ordering::Relaxed);
                drop(own);
                let mut left = [1; 4104];
                assert_eq!(
                    pread(&object, &mut left, i64::try_from(layout::DATA).unwrap()),
                    Ok(4104)
                );
                // The true capacity, and that tail.
                let wiped = read_already(4096, 8, tail);
                for (at, byte) in (layout::DATA..).zip(left) {
                    let is_wiped = wiped.iter().any(|(from, to)| (*from..*to).contains(&at));
                    assert_eq!(byte == 0, is_wiped, "{capacity} {tail}, at {at}");
                }
            }
        }
    }
}
