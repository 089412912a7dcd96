//! A message in the ring, and the progress of one that is sent in parts.

use std::ops::Range;

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::region::copy::{ROW, has_wide_loads};
use crate::{
    error::{Error, Result},
    region::copy::Readable,
    region::copy::{BLOCK, LINE},
    region::peer::PeerRegion,
    ring::record::Tag,
};

/// A message in place: in the peer's region, which the peer may write while it is read. So no slice of it
/// exists: it yields words and copies. A caller that makes a decision must read once, and decide on the value
/// that it has read.
#[derive(Clone, Copy)]
pub struct Message<'a>(MessageData<'a>, Tag);

opaque! { [] Message<'_>; }

#[derive(Clone, Copy)]
enum MessageData<'a> {
    Ring {
        peer: &'a PeerRegion,
        at: usize,
        length: usize,
        /// Offset in the region up to which there is something to read.
        end: usize,
    },
    /// The message arrived in fragments, which were gathered in memory of this process.
    Gathered(&'a [u8]),
}

impl<'a> Message<'a> {
    #[inline]
    pub(crate) fn in_ring(peer: &'a PeerRegion, at: usize, length: usize, end: usize) -> Self {
        let message = MessageData::Ring {
            peer,
            at,
            length,
            end,
        };
        Self(message, Tag::NONE)
    }

    pub(crate) fn gathered(bytes: &'a [u8]) -> Self {
        Self(MessageData::Gathered(bytes), Tag::NONE)
    }

    #[inline]
    pub(crate) fn tagged(self, tag: Tag) -> Self {
        Self(self.0, tag)
    }

    /// Returns what the message's first record said about it.
    #[doc(hidden)]
    #[inline]
    pub fn tag(&self) -> Tag {
        self.1
    }

    /// Returns the number of bytes in the message.
    #[inline]
    pub fn len(&self) -> usize {
        match self.0 {
            MessageData::Ring { length, .. } => length,
            MessageData::Gathered(bytes) => bytes.len(),
        }
    }

    /// Whether the message has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the message as little-endian words. The last one is padded with zeros.
    #[inline]
    pub fn words(&self) -> Words<'a> {
        Words {
            message: *self,
            at: 0,
        }
    }

    /// Copies the bytes from `from` on, which need not be the first byte of a word.
    #[inline]
    pub(super) fn copy_part(&self, from: usize, into: &mut [u8]) {
        match self.0 {
            MessageData::Ring { peer, at, end, .. } => {
                peer.will_read_on(at + from, into.len(), end);
                let skip = from % 8;
                if skip == 0 {
                    return peer.copy_out(at + from, into);
                }
                // Reads of a region start at a word boundary.
                let word = peer.peek(at + from - skip).to_ne_bytes();
                let (first, rest) = into.split_at_mut(into.len().min(8 - skip));
                first.copy_from_slice(&word[skip..skip + first.len()]);
                if !rest.is_empty() {
                    peer.copy_out(at + from - skip + 8, rest);
                }
            }
            MessageData::Gathered(bytes) => into.copy_from_slice(&bytes[from..from + into.len()]),
        }
    }

    /// Returns the words of the block that starts at this byte, which is the first of a word. `None`: no
    /// whole block is left, or it must be copied.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn peek_block(&self, from: usize) -> Option<[u64; BLOCK / 8]> {
        let MessageData::Ring {
            peer,
            at,
            length,
            end,
        } = self.0
        else {
            return None;
        };
        if length < BLOCK || from > length - BLOCK || !from.is_multiple_of(8) {
            return None;
        }
        peer.will_read_on(at + from, BLOCK, end);
        // SAFETY: the ring has checked that the message lies in the region, and the block lies in the
        // message; the caller promises AVX2.
        Some(unsafe { peer.peek_block(at + from) })
    }

    /// Copies the message to the start of `into` and returns its length.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is longer.
    pub fn copy_to(&self, into: &mut [u8]) -> Result<usize> {
        let (length, room) = (self.len(), into.len());
        let Some(into) = into.get_mut(..length) else {
            return Err(too_small(room, length));
        };
        match self.0 {
            MessageData::Ring { peer, at, end, .. } => peer.copy_out_ahead(at, into, end),
            MessageData::Gathered(bytes) => into.copy_from_slice(bytes),
        }
        Ok(length)
    }

    /// Returns a copy of the message.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there is no memory for the copy: the peer chooses its size.
    pub fn try_to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.len()).map_err(|error| {
            Error::no_space(format!("a copy of a message of {} bytes", self.len()), error)
        })?;
        bytes.resize(self.len(), 0);
        // Cannot fail: the buffer is as long as the message.
        let _ = self.copy_to(&mut bytes);
        Ok(bytes)
    }

    /// Returns a copy of the message, and aborts the process if there is no memory for it, as every `Vec`
    /// does. See [`Message::try_to_vec`].
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        // Cannot fail: the buffer is as long as the message.
        let _ = self.copy_to(&mut bytes);
        bytes
    }
}

pub(crate) fn too_small(room: usize, size: usize) -> Error {
    Error::invalid(format!(
        "a buffer of {room} bytes does not hold a message of {size}"
    ))
}

/// Shorter messages are read word by word.
const BLOCK_AT_LEAST: usize = 256;

/// The words of a [`Message`], each read once.
#[derive(Debug, Clone)]
pub struct Words<'a> {
    message: Message<'a>,
    at: usize,
}

impl Words<'_> {
    #[inline]
    fn word(&self, at: usize) -> u64 {
        let left = self.message.len() - at;
        match self.message.0 {
            MessageData::Ring { peer, at: start, .. } => {
                let word = u64::from_le(peer.peek(start + at));
                if left >= 8 {
                    word
                } else {
                    word & ((1 << (left * 8)) - 1)
                }
            }
            MessageData::Gathered(bytes) => {
                let mut word = [0; 8];
                let count = left.min(8);
                word[..count].copy_from_slice(&bytes[at..at + count]);
                u64::from_le_bytes(word)
            }
        }
    }
}

impl Iterator for Words<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        if self.at >= self.message.len() {
            return None;
        }
        let word = self.word(self.at);
        self.at += 8;
        Some(word)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.message.len().saturating_sub(self.at).div_ceil(8);
        (left, Some(left))
    }

    #[expect(
        clippy::inline_always,
        reason = "in a program with several loops over words the compiler would make a call of it: half of the time of a short message"
    )]
    #[inline(always)]
    fn fold<B, F: FnMut(B, u64) -> B>(mut self, init: B, mut f: F) -> B {
        let mut result = init;
        let whole = self.message.len() & !7;
        match self.message.0 {
            MessageData::Ring { peer, at: start, .. } if whole < self.at + BLOCK_AT_LEAST => {
                while self.at + LINE <= whole {
                    let line = peer.peek_line(start + self.at);
                    // By index: with a longer loop the compiler would make a call of this function.
                    let mut index = 0;
                    while index < line.len() {
                        result = f(result, u64::from_le(line[index]));
                        index += 1;
                    }
                    self.at += LINE;
                }
                while self.at < whole {
                    result = f(result, u64::from_le(peer.peek(start + self.at)));
                    self.at += 8;
                }
            }
            MessageData::Ring {
                peer, at: start, end, ..
            } => {
                result = fold_ring(peer, start + self.at..start + whole, end, result, &mut f);
                self.at = whole;
            }
            MessageData::Gathered(bytes) => {
                let (words, _) = bytes[self.at.min(whole)..whole].as_chunks::<8>();
                result = if words.len() < BLOCK_AT_LEAST / 8 {
                    fold_gathered(words, result, &mut f)
                } else {
                    fold_long(words, result, &mut f)
                };
                self.at = self.at.max(whole);
            }
        }
        if self.at < self.message.len() {
            result = f(result, self.word(self.at));
        }
        result
    }
}

impl ExactSizeIterator for Words<'_> {}

/// Folds the words of a range of the ring.
///
/// If the compiler reads the region word by word, it may not combine two reads. A block that is copied first is private to this process, so
/// its words can be processed many at a time. This function is separate to keep the loop over short messages small enough to be inlined. It
/// takes the fields of the message, since a message that is passed by reference is stored, also a short one.
#[inline(never)]
fn fold_ring<B, F: FnMut(B, u64) -> B>(
    peer: &PeerRegion,
    words: Range<usize>,
    end: usize,
    result: B,
    f: &mut F,
) -> B {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if has_wide_loads() {
        // SAFETY: the processor has AVX2, as was just checked.
        return unsafe { fold_wide(peer, words, end, result, f) };
    }
    fold_blocks(peer, words, end, result, f)
}

/// As [`fold_blocks`], but `f` is compiled for AVX2 as well.
///
/// # Safety
/// The processor has AVX2.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
unsafe fn fold_wide<B, F: FnMut(B, u64) -> B>(
    peer: &PeerRegion,
    words: Range<usize>,
    end: usize,
    mut result: B,
    f: &mut F,
) -> B {
    let Range {
        start: mut at,
        end: whole,
    } = words;
    while at + BLOCK <= whole {
        peer.will_read_on(at, BLOCK, end);
        // SAFETY: the ring has checked that the message lies in the region, and the block lies in the
        // message; the caller promises AVX2.
        let block = unsafe { peer.peek_block(at) };
        at += BLOCK;
        for word in block {
            result = f(result, u64::from_le(word));
        }
    }
    while at + ROW <= whole {
        // SAFETY: as above.
        let row = unsafe { peer.peek_row(at) };
        at += ROW;
        for word in row {
            result = f(result, u64::from_le(word));
        }
    }
    while at < whole {
        result = f(result, u64::from_le(peer.peek(at)));
        at += 8;
    }
    result
}

/// Folds the words of a range of the ring.
fn fold_blocks<B, F: FnMut(B, u64) -> B>(
    peer: &PeerRegion,
    words: Range<usize>,
    end: usize,
    mut result: B,
    f: &mut F,
) -> B {
    let mut block = [0_u8; BLOCK];
    for at in words.clone().step_by(BLOCK) {
        let block = &mut block[..BLOCK.min(words.end - at)];
        peer.will_read_on(at, block.len(), end);
        peer.copy_out(at, block);
        for word in block.as_chunks::<8>().0 {
            result = f(result, u64::from_le_bytes(*word));
        }
    }
    result
}

/// Folds words that were gathered, as [`fold_ring`] does.
#[inline(never)]
fn fold_long<B, F: FnMut(B, u64) -> B>(words: &[[u8; 8]], result: B, f: &mut F) -> B {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if has_wide_loads() {
        #[target_feature(enable = "avx2")]
        fn fold_wide<B, F: FnMut(B, u64) -> B>(words: &[[u8; 8]], result: B, f: &mut F) -> B {
            fold_gathered(words, result, f)
        }
        // SAFETY: the processor has AVX2, as was just checked.
        return unsafe { fold_wide(words, result, f) };
    }
    fold_gathered(words, result, f)
}

#[inline]
fn fold_gathered<B, F: FnMut(B, u64) -> B>(words: &[[u8; 8]], mut result: B, f: &mut F) -> B {
    for word in words {
        result = f(result, u64::from_le_bytes(*word));
    }
    result
}

/// The progress of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The whole message is done.
    Whole,
    /// This many bytes of the message are done.
    Part(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{region::copy::Writable, region::layout, region::own::OwnRegion};

    /// The words that [`Message::words`] must yield for these bytes.
    fn words_of(bytes: &[u8]) -> Vec<u64> {
        bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect()
    }

    fn pushed(mut all: Vec<u64>, word: u64) -> Vec<u64> {
        all.push(word);
        all
    }

    #[test]
    fn words_and_copies_return_the_sent_bytes() {
        let own = OwnRegion::private(8192);
        let bytes: Vec<u8> = (0..8192_u32).map(|n| (n * 11 % 253) as u8).collect();
        own.copy_in(layout::DATA, &bytes);
        let peer = own.peer_view();
        let lengths: Vec<usize> = if cfg!(miri) {
            vec![0, 9, 700]
        } else {
            (0..3000).collect()
        };
        for length in lengths {
            let from = 8 * (length % 5);
            let bytes = &bytes[from..from + length];
            let wanted = words_of(bytes);
            for message in [
                Message::in_ring(&peer, layout::DATA + from, length, layout::DATA + 8192),
                Message::gathered(bytes),
            ] {
                assert_eq!((message.len(), message.is_empty()), (length, length == 0));
                assert_eq!(message.to_vec(), bytes, "{length}");
                assert_eq!(message.try_to_vec().unwrap(), bytes, "{length}");
                let mut words = message.words();
                for (index, word) in wanted.iter().enumerate() {
                    assert_eq!(words.len(), wanted.len() - index);
                    assert_eq!(words.next(), Some(*word), "{index} of {length}");
                }
                assert_eq!((words.next(), words.len()), (None, 0));
                assert!(words.fold(Vec::new(), pushed).is_empty(), "nothing is left");
                assert_eq!(message.words().fold(Vec::new(), pushed), wanted, "{length}");
                let mut begun = message.words();
                let first = begun.next().into_iter().collect();
                assert_eq!(begun.fold(first, pushed), wanted, "{length}");
            }
            // The path of a processor without wide loads, since this one may have them.
            let (at, whole) = (layout::DATA + from, length / 8 * 8);
            let blocks = fold_blocks(
                &peer,
                at..at + whole,
                layout::DATA + 8192,
                Vec::new(),
                &mut pushed,
            );
            assert_eq!(&blocks[..], &wanted[..whole / 8], "{length}");
        }
    }
}
