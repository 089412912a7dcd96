//! A message where it lies.

use crate::{
    error::{Error, Result},
    region::{BLOCK, PeerRegion, Readable},
};

/// A message where it lies: in the peer's region, which the peer may write while it is read. So there is no slice of
/// it: it yields words and copies, and whoever decides something reads once and decides on what it read.
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

    /// Copies the message to the beginning of `into` and returns its length. Errors with [`Error::InvalidArgument`]
    /// if it is longer.
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
            _ => (self, result) = self.fold_long(whole, result, &mut f),
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
    #[inline(never)]
    fn fold_long<B, F: FnMut(B, u64) -> B>(mut self, whole: usize, mut result: B, f: &mut F) -> (Self, B) {
        match self.message.0 {
            Lies::Ring {
                peer, at: start, end, ..
            } => {
                let mut block = [0_u8; BLOCK];
                while self.at < whole {
                    let block = &mut block[..BLOCK.min(whole - self.at)];
                    peer.will_read_on(start + self.at, block.len(), end);
                    peer.copy_out(start + self.at, block);
                    self.at += block.len();
                    for word in block.as_chunks::<8>().0 {
                        result = f(result, u64::from_le_bytes(*word));
                    }
                }
            }
            Lies::Gathered(bytes) if self.at < whole => {
                for word in bytes[self.at..whole].as_chunks::<8>().0 {
                    result = f(result, u64::from_le_bytes(*word));
                }
                self.at = whole;
            }
            Lies::Gathered(_) => {}
        }
        (self, result)
    }
}
