//! The layout of a record. No other file depends on it.
//!
//! A record is a header of eight bytes (length in the low half, flags in the high half, little-endian) and
//! its payload, padded to a multiple of eight. A long payload starts at the next cache line. A record never
//! wraps: if it does not fit before the end of the ring, a padding record fills that end.
//!
//! The binding and JavaScript exchange messages in packed form: records one after the other, laid out like
//! short ones in the ring.

use crate::{
    error::{Error, Result},
    region::copy::LINE,
    region::layout::as_offset,
};

/// Bytes of a record's header.
pub const HEADER: u64 = 8;

/// The record begins a message.
pub(crate) const FIRST: u32 = 1;
/// The record ends a message.
pub(crate) const LAST: u32 = 2;
/// The record is no message: it fills the end of the ring.
pub(crate) const PADDING: u32 = 4;
/// The payload starts at the first cache line after the header.
pub(crate) const ALIGNED: u32 = 8;
/// A record that is a whole message.
pub const WHOLE: u32 = FIRST | LAST;

/// Properties of a message, in the flags of its first record: whether it is a call frame, and the number of its
/// attachments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// A plain message.
    pub const NONE: Self = Self(0);
    /// A frame of a call.
    pub const CALL: Self = Self(16);
    pub(super) const ATTACHMENTS: u32 = 0xff00;
    /// The bits of all tags.
    pub(super) const BITS: u32 = Self::CALL.0 | Self::ATTACHMENTS;

    /// A message with this number of attachments, at most 253.
    #[inline]
    pub(crate) fn with_attachments(count: u8) -> Self {
        Self(u32::from(count) << 8)
    }

    /// Returns the tag in these flags of a record.
    #[inline]
    pub const fn of(flags: u32) -> Self {
        Self(flags & Self::BITS)
    }

    /// Returns the tag as it stands in a record's flags.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether the message is a call frame.
    #[inline]
    pub const fn is_call(self) -> bool {
        self.0 & Self::CALL.0 != 0
    }

    /// Returns the number of attachments.
    #[inline]
    pub const fn attachments(self) -> usize {
        ((self.0 & Self::ATTACHMENTS) >> 8) as usize
    }
}

/// Payloads of at least this many bytes are written [`ALIGNED`]. Otherwise every second wide load or store
/// would touch two cache lines.
pub(crate) const LONG: u64 = 2048;

/// The largest payload of one record: half the ring, so that it fits an empty ring at any start position.
#[inline]
pub(crate) const fn largest_record(capacity: u64) -> u64 {
    capacity / 2
}

/// Rounds up to a multiple of eight. The length has 32 bits, or is at most half a ring. There is no branch
/// for lengths that are already a multiple: the path from one record to the next would depend on it.
#[inline]
pub(super) const fn padded(length: u64) -> u64 {
    (length + 7) & !7
}

/// Returns the number of bytes from the start of a record to its payload. `at` is the record's position or
/// its offset in the region: they differ by whole lines.
#[inline]
pub(super) fn to_payload(at: u64, aligned: bool) -> u64 {
    if aligned {
        // A branch rather than a conditional move: a short record must not wait for this computation.
        cold_path();
        HEADER + (at + HEADER).wrapping_neg() % LINE as u64
    } else {
        HEADER
    }
}

#[cold]
#[inline(never)]
pub(super) fn cold_path() {}

/// Returns the size of a record that this side writes at this position.
#[inline]
pub(crate) fn record_size(at: u64, payload: u64) -> u64 {
    to_payload(at, payload >= LONG) + padded(payload)
}

/// Returns the size of a message in packed form.
#[inline]
pub(crate) const fn packed_size(length: u64) -> u64 {
    HEADER + padded(length)
}

#[inline]
pub(super) const fn header(length: u64, flags: u32) -> u64 {
    length | ((flags as u64) << 32)
}

#[inline]
pub(super) const fn split(header: u64) -> (u64, u32) {
    (header & 0xffff_ffff, (header >> 32) as u32)
}

/// A record found in the ring, after all checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Offset of the payload in the region.
    pub(crate) at: usize,
    /// Number of bytes in the payload.
    pub(crate) length: usize,
    /// The flags without [`ALIGNED`] and the tag.
    pub(crate) flags: u32,
    pub(crate) tag: Tag,
    pub(super) aligned: bool,
    /// Number of bytes from this record's header to the next one.
    pub(crate) size: u64,
    /// Offset in the region up to which records are contiguous.
    pub(crate) end: usize,
}

impl Record {
    /// Returns the record at this offset in the region.
    #[inline]
    pub(super) fn new(at: usize, length: u64, flags: u32, end: usize) -> Self {
        let aligned = flags & ALIGNED != 0;
        let to_payload = to_payload(at as u64, aligned);
        Self {
            at: at + as_offset(to_payload),
            length: as_offset(length),
            flags: flags & !(ALIGNED | Tag::BITS),
            tag: Tag::of(flags),
            aligned,
            size: to_payload + padded(length),
            end,
        }
    }

    /// As [`Record::new`], but `None` unless the record is a whole message without a tag.
    #[inline]
    pub(super) fn whole(at: usize, length: u64, flags: u32, end: usize) -> Option<Self> {
        const WHOLE_ALIGNED: u32 = WHOLE | ALIGNED;
        // Compare all flags at once. Testing a single flag first made a reader of short records 12 % slower.
        match flags {
            WHOLE => Some(Self::new(at, length, WHOLE, end)),
            WHOLE_ALIGNED => Some(Self::new(at, length, WHOLE_ALIGNED, end)),
            _ => None,
        }
    }
}

/// Returns the length and the tag of the packed record at `at`, after checking that it is a whole message, not too
/// long, and a call frame only if those are allowed.
pub(super) fn packed_header(packed: &[u8], at: usize, longest: u64, calls: bool) -> Result<(u64, Tag)> {
    let refused = |what: &str| {
        Err(Error::InvalidArgument(format!(
            "packed records: {what} at byte {at}"
        )))
    };
    let Some(bytes) = packed.get(at..at + 8) else {
        return refused("a header is cut");
    };
    let (length, flags) = split(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    let tag = Tag(flags & if calls { Tag::CALL.0 } else { 0 });
    if flags != WHOLE | tag.0 {
        return refused("a record is not a whole message");
    }
    if length > longest {
        let reason = "half the ring, and what the peer takes";
        return Err(Error::too_large(as_offset(length), longest, reason));
    }
    if ((packed.len() - at) as u64) < packed_size(length) {
        return refused("a record is cut");
    }
    Ok((length, tag))
}

#[cold]
#[inline(never)]
pub(super) fn corrupt(what: String) -> Error {
    Error::RingCorrupt(what)
}
