//! How the binding reads into memory that JavaScript hands out at once, and may take away.
//!
//! Several messages lie in one block there. Where a program has the block detached by one of them, those that it has not asked for yet
//! must not be lost. So their records are held in the ring, which the peer does not write before it is told that they were read.

use std::ops::RangeInclusive;

use crate::{
    channel::inbound::Packed, channel::receiver::Receiver, error::Result, region::layout::as_offset,
    ring::consumer::Wanted, ring::record::packed_size,
};

/// Which messages can be had again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Each of them.
    Each,
    /// One that comes alone cannot: the caller hands it out before any program runs.
    Several,
}

/// As [`Receiver::try_receive_packed`], of messages of `lengths` alone, into memory that was not used lately. The peer is told by
/// [`release`] that they were read: once the caller has no more use for them, and at the latest by the next call to receive. Until then
/// [`pull_again`] has them. That goes for at most a quarter of the ring, or one message.
pub fn pull_held(
    receiver: &mut Receiver,
    into: &mut [u8],
    lengths: RangeInclusive<usize>,
    keep: Keep,
) -> Result<Packed> {
    release(receiver);
    let wanted = Wanted {
        least: *lengths.start() as u64,
        most: *lengths.end() as u64,
        fresh: true,
    };
    let packed = receiver.receive_records(|consumer| consumer.pull_held(into, &wanted))?;
    if keep == Keep::Several && packed == Packed::Bytes(first(into)) {
        release(receiver);
    }
    Ok(packed)
}

/// Copies once more what [`pull_held`] has copied, but for the first `passed` bytes: whole messages, as many as fit. Errors as
/// [`Receiver::try_receive`]; with [`Error::RingCorrupt`](crate::Error::RingCorrupt) also where the peer has written over it.
pub fn pull_again(receiver: &mut Receiver, into: &mut [u8], passed: usize) -> Result<Packed> {
    receiver.receive_records(|consumer| consumer.pull_again(into, passed))
}

/// Tells the peer that what was pulled is not needed any more, and wakes one that waits for room.
pub fn release(receiver: &mut Receiver) {
    if !receiver.shared.is_inherited() && receiver.ring.consumer.publish() {
        receiver.wake_at_once();
    }
}

/// Bytes of the first of some records.
fn first(packed: &[u8]) -> usize {
    let length = packed
        .first_chunk()
        .map_or(0, |length| u32::from_le_bytes(*length));
    as_offset(packed_size(length.into()))
}
