//! Reads for the binding, into memory that JavaScript hands out at once and may detach.
//!
//! Several messages share one block there. If a program detaches the block through one of them, the others must not be lost. So their
//! records are held in the ring: the peer does not overwrite them until this side publishes that they were read.

use std::ops::RangeInclusive;

use crate::{
    channel::inbound::Packed, channel::receiver::Receiver, error::Result, region::layout::as_offset,
    ring::read::WantedLengths, ring::record::packed_size,
};

/// The messages that [`pull_again`] can return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Each of them.
    Each,
    /// All unless it is a single one, which the caller hands out before any program runs.
    Several,
}

/// Like [`Receiver::try_receive_packed`], only for messages of `lengths`, into memory that was not used lately. They are held until
/// [`release`], or until the next call that receives: until then [`pull_again`] returns them. At most a quarter of the ring is held, or
/// one message.
pub fn pull_held(
    receiver: &mut Receiver,
    into: &mut [u8],
    lengths: RangeInclusive<usize>,
    keep: Keep,
) -> Result<Packed> {
    release(receiver);
    let wanted = WantedLengths {
        least: *lengths.start() as u64,
        most: *lengths.end() as u64,
        fresh: true,
        calls: false,
    };
    let packed = receiver.receive_records(|consumer| consumer.pull_held(into, &wanted))?;
    if keep == Keep::Several && packed == Packed::Bytes(first(into)) {
        release(receiver);
    }
    Ok(packed)
}

/// Like [`Receiver::try_receive_packed`], for call frames. [`Packed::Large`]: the next one does not fit, or a message is next.
pub fn pull_calls(receiver: &mut Receiver, into: &mut [u8]) -> Result<Packed> {
    receiver.receive_records(|consumer| consumer.pull_calls(into))
}

/// Copies the held messages again, without the first `passed` bytes: whole messages, as many as fit. Errors as
/// [`Receiver::try_receive`], and with [`Error::RingCorrupt`](crate::Error::RingCorrupt) if the peer has overwritten them.
pub fn pull_again(receiver: &mut Receiver, into: &mut [u8], passed: usize) -> Result<Packed> {
    receiver.receive_records(|consumer| consumer.pull_again(into, passed))
}

/// Publishes that the held messages were read, and wakes a peer that waits for room.
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
