//! A message where it lies, and how far one has got.

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::region::copy::{ROW, has_wide_loads};
use crate::{
    error::{Error, Result},
    region::copy::BLOCK,
    region::copy::Readable,
    region::peer::PeerRegion,
};

/// A message where it lies: in the peer's region, which the peer may write while it is read. So there is no slice of
/// it: it yields words and copies. A caller that decides something reads once, and decides on what it has read.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a>(Lies<'a>);

#[derive(Debug, Clone, Copy)]
enum Lies<'a> {
    Ring {
        peer: &'a PeerRegion,
        at: usize,
        length: usize,
        /// Up to here there is something to read.
        end: usize,
    },
    /// It came in fragments, which were gathered in memory of this process.
    Gathered(&'a [u8]),
}

impl<'a> Message<'a> {
    #[inline]
    pub(crate) fn in_ring(peer: &'a PeerRegion, at: usize, length: usize, end: usize) -> Self {
        Self(Lies::Ring {
            peer,
            at,
            length,
            end,
        })
    }

    pub(crate) fn gathered(bytes: &'a [u8]) -> Self {
        Self(Lies::Gathered(bytes))
    }

    /// Bytes of the message.
    #[inline]
    pub fn len(&self) -> usize {
        match self.0 {
            Lies::Ring { length, .. } => length,
            Lies::Gathered(bytes) => bytes.len(),
        }
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message as little-endian words; the last one is filled up with zeros.
    #[inline]
    pub fn words(&self) -> Words<'a> {
        Words {
            message: *self,
            at: 0,
        }
    }

    /// Copies what lies from this byte on, which need not be the first of a word.
    #[inline]
    pub(super) fn copy_part(&self, from: usize, into: &mut [u8]) {
        match self.0 {
            Lies::Ring { peer, at, end, .. } => {
                peer.will_read_on(at + from, into.len(), end);
                let skip = from % 8;
                if skip == 0 {
                    return peer.copy_out(at + from, into);
                }
                // A region is read from a word on.
                let word = peer.peek(at + from - skip).to_ne_bytes();
                let (first, rest) = into.split_at_mut(into.len().min(8 - skip));
                first.copy_from_slice(&word[skip..skip + first.len()]);
                if !rest.is_empty() {
                    peer.copy_out(at + from - skip + 8, rest);
                }
            }
            Lies::Gathered(bytes) => into.copy_from_slice(&bytes[from..from + into.len()]),
        }
    }

    /// The words of the block that lies from this byte on, the first of a word. `None`: there is no whole one, or it must be copied.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) unsafe fn peek_block(&self, from: usize) -> Option<[u64; BLOCK / 8]> {
        let Lies::Ring {
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
        // SAFETY: the ring has checked that the message lies in the region, and the block lies in the message; the caller
        // promises AVX2.
        Some(unsafe { peer.peek_block(at + from) })
    }

    /// Copies the message to the beginning of `into` and returns its length.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is longer.
    pub fn copy_to(&self, into: &mut [u8]) -> Result<usize> {
        let (length, room) = (self.len(), into.len());
        let Some(into) = into.get_mut(..length) else {
            return Err(too_small(room, length));
        };
        match self.0 {
            Lies::Ring { peer, at, end, .. } => peer.copy_out_ahead(at, into, end),
            Lies::Gathered(bytes) => into.copy_from_slice(bytes),
        }
        Ok(length)
    }

    /// A copy of the message.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where there is no memory for it: how much that takes is the peer's choice.
    pub fn try_to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.len())
            .map_err(|error| Error::NoSpace {
                what: format!("a copy of a message of {} bytes", self.len()),
                reason: error.to_string(),
            })?;
        bytes.resize(self.len(), 0);
        // As long as the message.
        let _ = self.copy_to(&mut bytes);
        Ok(bytes)
    }

    /// A copy of the message, for where memory cannot run out: this process is aborted if it does, as by every `Vec`. See
    /// [`Message::try_to_vec`].
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        // As long as the message.
        let _ = self.copy_to(&mut bytes);
        bytes
    }
}

pub(crate) fn too_small(room: usize, size: usize) -> Error {
    Error::invalid(format!(
        "a buffer of {room} bytes does not hold a message of {size}"
    ))
}

/// Less than this is read word by word.
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
            Lies::Ring { peer, at: start, .. } => {
                let word = u64::from_le(peer.peek(start + at));
                if left >= 8 {
                    word
                } else {
                    word & ((1 << (left * 8)) - 1)
                }
            }
            Lies::Gathered(bytes) => {
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

    #[inline]
    fn fold<B, F: FnMut(B, u64) -> B>(mut self, init: B, mut f: F) -> B {
        let mut result = init;
        let whole = self.message.len() & !7;
        match self.message.0 {
            Lies::Ring { peer, at: start, .. } if whole < self.at + BLOCK_AT_LEAST => {
                while self.at < whole {
                    result = f(result, u64::from_le(peer.peek(start + self.at)));
                    self.at += 8;
                }
            }
            Lies::Gathered(bytes) if whole < self.at + BLOCK_AT_LEAST => {
                for word in bytes[self.at.min(whole)..whole].as_chunks::<8>().0 {
                    result = f(result, u64::from_le_bytes(*word));
                }
                self.at = self.at.max(whole);
            }
            _ => {
                // A copy, which is made here alone: `self` then stays in registers for a short message.
                result = self.clone().fold_long(whole, result, &mut f);
                self.at = whole;
            }
        }
        if self.at < self.message.len() {
            result = f(result, self.word(self.at));
        }
        result
    }
}

impl ExactSizeIterator for Words<'_> {}

impl Words<'_> {
    /// Word by word the compiler may not read two at once. A block that is copied first is this process's own, and
    /// what is done with its words can be done with many at a time. Kept apart, so that the visit of a short message is
    /// short enough to become part of the loop that makes it.
    ///
    /// By reference: words that were just stored one by one, and are then copied two by two to be passed on, wait for those stores.
    #[inline(never)]
    fn fold_long<B, F: FnMut(B, u64) -> B>(&self, whole: usize, result: B, f: &mut F) -> B {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if has_wide_loads() {
            // SAFETY: the processor has AVX2, as was just asked.
            return unsafe { self.fold_wide(whole, result, f) };
        }
        self.fold_blocks(whole, result, f)
    }

    /// As [`Words::fold_blocks`], with what is done to the words compiled for AVX2 as well.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2")]
    unsafe fn fold_wide<B, F: FnMut(B, u64) -> B>(&self, whole: usize, mut result: B, f: &mut F) -> B {
        let Lies::Ring {
            peer, at: start, end, ..
        } = self.message.0
        else {
            return self.fold_blocks(whole, result, f);
        };
        let mut at = self.at;
        while at + BLOCK <= whole {
            peer.will_read_on(start + at, BLOCK, end);
            // SAFETY: the ring has checked that the message lies in the region, and the block lies in the message; the
            // caller promises AVX2.
            let block = unsafe { peer.peek_block(start + at) };
            at += BLOCK;
            for word in block {
                result = f(result, u64::from_le(word));
            }
        }
        while at + ROW <= whole {
            // SAFETY: as above.
            let row = unsafe { peer.peek_row(start + at) };
            at += ROW;
            for word in row {
                result = f(result, u64::from_le(word));
            }
        }
        while at < whole {
            result = f(result, u64::from_le(peer.peek(start + at)));
            at += 8;
        }
        result
    }

    /// Folds the words from here on, as far as `whole`.
    #[inline]
    fn fold_blocks<B, F: FnMut(B, u64) -> B>(&self, whole: usize, mut result: B, f: &mut F) -> B {
        let mut at = self.at;
        match self.message.0 {
            Lies::Ring {
                peer, at: start, end, ..
            } => {
                let mut block = [0_u8; BLOCK];
                while at < whole {
                    let block = &mut block[..BLOCK.min(whole - at)];
                    peer.will_read_on(start + at, block.len(), end);
                    peer.copy_out(start + at, block);
                    at += block.len();
                    for word in block.as_chunks::<8>().0 {
                        result = f(result, u64::from_le_bytes(*word));
                    }
                }
            }
            Lies::Gathered(bytes) if at < whole => {
                for word in bytes[at..whole].as_chunks::<8>().0 {
                    result = f(result, u64::from_le_bytes(*word));
                }
            }
            Lies::Gathered(_) => {}
        }
        result
    }
}

/// How far a message has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of it is through.
    Whole,
    /// This many bytes of it are.
    Part(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{region::copy::Writable, region::layout, region::own::OwnRegion};

    /// What [`Message::words`] must yield of these bytes.
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
    fn words_and_copies_are_the_bytes_that_were_sent_one_by_one_and_all_at_once() {
        let own = OwnRegion::private(8192);
        let bytes: Vec<u8> = (0..8192_u32).map(|n| (n * 11 % 253) as u8).collect();
        own.copy_in(layout::DATA, &bytes);
        let peer = own.seen_by_peer();
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
                // What a processor without wide loads does, for this one may have them.
                let whole = length / 8 * 8;
                let blocks = message.words().fold_blocks(whole, Vec::new(), &mut pushed);
                assert_eq!(&blocks[..], &wanted[..whole / 8], "{length}");
            }
        }
    }
}
