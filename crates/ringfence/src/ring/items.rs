//! Plain data of a fixed size, one value after the other: a run of values is one message, with one header.
//!
//! The peer may write a message while it is read, and its header may claim any length. So no slice of values
//! exists: each value is copied out, once, and every bit pattern is a valid value ([`Pod`]).

use std::{
    iter::FusedIterator,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::Pod;

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::region::copy::has_wide_loads;
use crate::{region::copy::BLOCK, ring::message::Message};

/// A block of values in memory of this process, aligned for every type up to an alignment of 64.
#[repr(C, align(64))]
struct Block([u8; BLOCK]);

impl<'a> Message<'a> {
    /// Returns the message as values of plain data, one after the other. `None`: its length is not a multiple
    /// of the size of a value, so it is something else.
    ///
    /// A message may hold one value or thousands. A run has one header, so each value costs no more than its
    /// bytes. Any bytes that the peer has written are a value of such a type. The caller must check what they
    /// mean, on the copy that it has received. Values are returned one by one, on the stack.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (_sender, mut receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut sum = 0;
    /// receiver.receive_each(
    ///     |message| match message.items::<[u64; 8]>() {
    ///         Some(items) => items.for_each(|item| sum += item[0]),
    ///         None => println!("{} bytes are not a run of such values", message.len()),
    ///     },
    ///     1000,
    /// )?;
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn items<T: Pod>(&self) -> Option<Items<'a, T>> {
        Items::new(*self)
    }
}

/// The values in a [`Message`]: see [`Message::items`]. Each value is copied out when it is returned, and no
/// byte is read twice.
///
/// `for_each`, `fold` and the adapters built on them read many values at once. They are several times faster
/// than a `for` loop.
#[derive(Debug, Clone)]
pub struct Items<'a, T> {
    message: Message<'a>,
    /// Number of bytes already read.
    at: usize,
    item: PhantomData<fn() -> T>,
}

impl<'a, T: Pod> Items<'a, T> {
    /// Number of bytes in the values that fit a block. 0: values are read one by one.
    const BLOCK: usize = if align_of::<T>() <= align_of::<Block>() {
        BLOCK / size_of::<T>() * size_of::<T>()
    } else {
        0
    };

    /// `None`: the message's length is not a multiple of the size of a value.
    #[inline]
    pub(super) fn new(message: Message<'a>) -> Option<Self> {
        const { assert!(size_of::<T>() > 0, "a value has at least one byte") };
        message.len().is_multiple_of(size_of::<T>()).then_some(Self {
            message,
            at: 0,
            item: PhantomData,
        })
    }

    /// Copies a block of values at a time and passes them on, until none is left.
    #[inline]
    fn fold_blocks<B>(self, mut result: B, f: &mut impl FnMut(B, T) -> B) -> B {
        let (mut at, end) = (self.at, self.message.len());
        let mut block = Block([0; BLOCK]);
        while at < end {
            let count = Self::BLOCK.min(end - at);
            let bytes = &mut block.0[..count];
            self.message.copy_part(at, bytes);
            at += count;
            for item in bytemuck::cast_slice::<u8, T>(bytes) {
                result = f(result, *item);
            }
        }
        result
    }

    /// As [`Items::fold_blocks`], but with wide loads, and with `f` compiled for AVX2 as well.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2")]
    unsafe fn fold_wide<B>(mut self, mut result: B, f: &mut impl FnMut(B, T) -> B) -> B {
        if Self::BLOCK == BLOCK {
            // SAFETY: the caller promises AVX2.
            while let Some(words) = unsafe { self.message.peek_block(self.at) } {
                self.at += BLOCK;
                // The array of words is aligned for words only, but values may need a larger alignment.
                let block = Block(bytemuck::cast(words));
                for item in bytemuck::cast_slice::<u8, T>(&block.0) {
                    result = f(result, *item);
                }
            }
        }
        self.fold_blocks(result, f)
    }
}

impl<T: Pod> Iterator for Items<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.at >= self.message.len() {
            return None;
        }
        let mut item = T::zeroed();
        self.message.copy_part(self.at, bytemuck::bytes_of_mut(&mut item));
        self.at += size_of::<T>();
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.message.len() - self.at) / size_of::<T>();
        (left, Some(left))
    }

    #[inline]
    fn fold<B, F: FnMut(B, T) -> B>(self, init: B, mut f: F) -> B {
        if Self::BLOCK == 0 {
            let mut result = init;
            for item in self {
                result = f(result, item);
            }
            return result;
        }
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if has_wide_loads() {
            // SAFETY: the processor has AVX2, as was just checked.
            return unsafe { self.fold_wide(init, &mut f) };
        }
        self.fold_blocks(init, &mut f)
    }
}

impl<T: Pod> ExactSizeIterator for Items<'_, T> {}
impl<T: Pod> FusedIterator for Items<'_, T> {}

/// Room for values of plain data in the ring itself: see
/// [`Sender::reserve_items`](crate::Sender::reserve_items). It dereferences to a slice of values, which holds
/// whatever was in that memory before. Dropping it sends nothing.
#[derive(Debug)]
pub struct ReservedItems<R, T> {
    pub(crate) room: R,
    item: PhantomData<T>,
}

impl<R, T: Pod> ReservedItems<R, T> {
    /// Wraps a reservation for a whole number of values, aligned to eight bytes.
    #[inline]
    pub(crate) fn new(room: R) -> Self {
        const {
            assert!(
                size_of::<T>() > 0 && align_of::<T>() <= 8,
                "a value has at least one byte, and lies at a multiple of eight"
            );
        };
        Self {
            room,
            item: PhantomData,
        }
    }

    /// Returns the number of bytes in `count` values. Saturates on overflow, to a number that is larger than
    /// any reservation.
    #[inline]
    pub(crate) fn bytes(count: usize) -> usize {
        count.saturating_mul(size_of::<T>())
    }
}

impl<R: Deref<Target = [u8]>, T: Pod> Deref for ReservedItems<R, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // The reservation of a sender that has ended is empty, and its pointer need not be aligned.
        if self.room.is_empty() {
            return &[];
        }
        bytemuck::cast_slice(&self.room)
    }
}

impl<R: DerefMut<Target = [u8]>, T: Pod> DerefMut for ReservedItems<R, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        if self.room.is_empty() {
            return &mut [];
        }
        bytemuck::cast_slice_mut(&mut self.room)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::{
        region::{copy::Writable, layout, own::OwnRegion},
        ring::message::Message,
    };

    fn are_the_same<T: Pod + PartialEq + Debug>(message: Message<'_>, bytes: &[u8]) {
        let size = size_of::<T>();
        let Some(items) = message.items::<T>() else {
            assert_ne!(bytes.len() % size, 0, "{} bytes in values of {size}", bytes.len());
            return;
        };
        assert_eq!(bytes.len() % size, 0);
        assert_eq!(items.len(), bytes.len() / size);
        let wanted: Vec<T> = bytes.chunks(size).map(bytemuck::pod_read_unaligned).collect();
        assert_eq!(items.clone().fold(Vec::new(), pushed), wanted, "all at once");
        let mut one_by_one = items.clone();
        assert_eq!(
            std::iter::from_fn(|| one_by_one.next()).collect::<Vec<_>>(),
            wanted
        );
        let mut begun = items;
        let first: Vec<T> = begun.next().into_iter().collect();
        assert_eq!(begun.len(), wanted.len() - first.len());
        assert_eq!(begun.fold(first, pushed), wanted, "the first by itself");
    }

    fn pushed<T>(mut all: Vec<T>, item: T) -> Vec<T> {
        all.push(item);
        all
    }

    /// A type whose alignment is larger than that of a block.
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[repr(C, align(128))]
    struct Far([u64; 16]);

    // SAFETY: the type consists of words without padding, and all bit patterns are valid.
    unsafe impl bytemuck::Zeroable for Far {}
    // SAFETY: as above.
    unsafe impl Pod for Far {}

    #[test]
    fn items_round_trip_for_every_size() {
        let own = OwnRegion::private(8192);
        let bytes: Vec<u8> = (0..8192_u32).map(|n| (n * 11 % 253) as u8).collect();
        own.copy_in(layout::DATA, &bytes);
        let peer = own.peer_view();
        let lengths: Vec<usize> = if cfg!(miri) {
            vec![0, 9, 24, 640]
        } else {
            (0..1300).chain([2048, 3072]).collect()
        };
        for length in lengths {
            let from = 8 * (length % 5);
            let bytes = &bytes[from..from + length];
            for message in [
                Message::in_ring(&peer, layout::DATA + from, length, layout::DATA + 8192),
                Message::gathered(bytes),
            ] {
                are_the_same::<u8>(message, bytes);
                are_the_same::<[u8; 3]>(message, bytes);
                are_the_same::<u16>(message, bytes);
                are_the_same::<[u32; 3]>(message, bytes);
                are_the_same::<u64>(message, bytes);
                are_the_same::<[u64; 8]>(message, bytes);
                are_the_same::<[u8; 100]>(message, bytes);
                are_the_same::<[u8; 513]>(message, bytes);
                are_the_same::<[u64; 128]>(message, bytes);
                are_the_same::<Far>(message, bytes);
            }
        }
    }

    #[test]
    fn items_room_is_a_slice_and_ends_with_the_channel() {
        assert_eq!(ReservedItems::<&[u8], u32>::bytes(3), 12);
        assert_eq!(ReservedItems::<&[u8], u32>::bytes(usize::MAX / 3), usize::MAX);
        let mut ring = [7_u64, 8, 9];
        let mut room = ReservedItems::<_, u64>::new(bytemuck::bytes_of_mut(&mut ring));
        assert_eq!(*room, [7, 8, 9]);
        room[1] = 10;
        assert_eq!(ring, [7, 10, 9]);
        let mut ended = ReservedItems::<_, u64>::new(&mut [0_u8; 0][..]);
        assert!(ended.is_empty() && ended.iter_mut().next().is_none());
    }
}
