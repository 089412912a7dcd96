//! Where things lie in a region, and how large it is.
//!
//! Both sides of a channel agree on this layout: to change it is to change the protocol, and the name in [`MAGIC`].
//! Every word that one side writes and the other polls has 128 bytes to itself: processors fetch cache lines in pairs.

/// [`MAGIC`] as a little-endian word.
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
/// 1 while the owner makes a full fence between each store of its tail and its load of the peer's
/// [`READER_PARKED`].
pub(crate) const TAIL_FENCED: usize = 896;
/// The same for its head, and the peer's [`WRITER_PARKED`].
pub(crate) const HEAD_FENCED: usize = 1024;
/// The ring itself.
pub(crate) const DATA: usize = 4096;
/// A record may run past the ring's end by so many bytes. So a message of exactly half the capacity always finds a place in
/// an empty ring, whatever its header takes, and the gap before the next cache line.
pub(crate) const OVERHANG: usize = 64;

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
    DATA as u64 + capacity + PAGE
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
}
