//! The ring of a pair: one writer and one reader.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    error::Result,
    region::copy::{Readable, Writable},
    region::layout::{self, as_offset},
    ring::message::Progress,
    ring::pace::pause,
    ring::record::{FIRST, LAST, Tag, corrupt, largest_record},
    ring::tally::{STRETCH, Sum, Tally},
    ring::write::{Room, Writer, Written},
};

/// The kind of ring that one process writes and one reads.
#[derive(Debug)]
pub struct Spsc;

/// The writing end of a pair's ring.
pub(crate) type SpscWriter<O, P> = Writer<O, PeerHead<P>>;

/// The room in a pair's ring: the peer's head says how much of it was read.
#[derive(Debug)]
pub(crate) struct PeerHead<P> {
    pub(super) peer: P,
    /// The head when it was last read.
    pub(super) head: u64,
    /// The last check found no room.
    starved: bool,
    /// Messages since the tally was last updated.
    sum: Sum,
    tally: Arc<Tally>,
}

impl<P> Drop for PeerHead<P> {
    fn drop(&mut self) {
        self.sum.tell(&self.tally);
    }
}

impl<P: Readable> PeerHead<P> {
    /// Reads the peer's head. One that goes backwards, or past what was published, is a protocol violation.
    pub(super) fn read<O>(&mut self, ring: &Written<O>) -> Result<()> {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        let published = ring.published();
        // In unsigned arithmetic both violations are a distance larger than what is unread.
        if head.wrapping_sub(self.head) > published - self.head || !head.is_multiple_of(8) {
            return Err(corrupt(format!(
                "its head went from {} to {head}, and {published} was published",
                self.head
            )));
        }
        self.head = head;
        Ok(())
    }

    fn end<O>(&self, ring: &Written<O>) -> u64 {
        self.head + ring.capacity
    }
}

impl<O: Writable, P: Readable> Room<O> for PeerHead<P> {
    const CALLS: bool = true;

    #[inline]
    fn largest_record(capacity: u64) -> u64 {
        largest_record(capacity)
    }

    fn extend(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        self.sum.tell(&self.tally);
        if end <= self.end(ring) {
            return Ok(true);
        }
        if self.starved {
            pause(ring.capacity);
        }
        self.read(ring)?;
        self.starved = end > self.end(ring);
        Ok(!self.starved)
    }

    fn begin_stretch(&mut self, ring: &Written<O>) -> u64 {
        self.end(ring).min(ring.tail + STRETCH)
    }

    fn has(&mut self, ring: &Written<O>, end: u64) -> Result<bool> {
        if end > self.end(ring) {
            self.read(ring)?;
        }
        Ok(end <= self.end(ring))
    }

    fn limit(&mut self, ring: &Written<O>) -> Result<u64> {
        self.read(ring)?;
        Ok(self.end(ring))
    }

    fn used(&mut self, ring: &Written<O>) -> u64 {
        let head = self.peer.load(layout::HEAD, Ordering::Acquire);
        // A violation is found by the next call that needs room.
        ring.tail.wrapping_sub(head).min(ring.tail - self.head)
    }

    #[inline]
    fn count(&mut self, length: u64) {
        self.sum.add(length);
    }

    fn count_all(&mut self, messages: u64, bytes: u64) {
        self.tally.add(messages, bytes);
    }
}

impl<O: Writable, P: Readable> SpscWriter<O, P> {
    pub(crate) fn new(own: O, peer: P, capacity: u64) -> Self {
        let room = PeerHead {
            peer,
            head: 0,
            starved: false,
            sum: Sum::default(),
            tally: Arc::default(),
        };
        Self::with_room(own, room, capacity)
    }

    /// Counts in this tally from now on, which counts for no other ring.
    pub(crate) fn count_in(&mut self, tally: &Arc<Tally>) {
        self.room.tally = Arc::clone(tally);
    }

    /// Returns the number of messages that were written, and the bytes of their payloads. A message in fragments counts once it is whole.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        let PeerHead { sum, tally, .. } = &mut self.room;
        sum.tell(tally);
        tally.get()
    }

    /// Writes as much of a message as there is room for, in fragments if necessary, and publishes it. `written` is what
    /// the last call returned, 0 at first.
    pub(crate) fn push_part(&mut self, message: &[u8], tag: Tag, mut written: usize) -> Result<Progress> {
        if message.len() as u64 <= self.largest_record() {
            let pushed = self.push(message, tag)?;
            self.publish();
            return Ok(if pushed {
                Progress::Whole
            } else {
                Progress::Part(0)
            });
        }
        // An eighth of the ring: the reader reads one fragment while the next is written.
        let largest = as_offset(self.ring.capacity / 8);
        while written < message.len() {
            let first = written == 0;
            // The first fragment starts with the size of the whole message, so that the reader knows how much memory it needs.
            let prefix = if first { 8 } else { 0 };
            let count = (message.len() - written).min(largest - prefix);
            let length = (prefix + count) as u64;
            let Some(at) = self.claim(length)? else {
                return Ok(Progress::Part(written));
            };
            if first {
                self.ring.own.store(at, message.len() as u64, Ordering::Relaxed);
            }
            self.ring
                .own
                .copy_in(at + prefix, &message[written..written + count]);
            written += count;
            let last = written == message.len();
            let flags = (u32::from(first) * (FIRST | tag.bits())) | (u32::from(last) * LAST);
            self.hide();
            self.advance(at, length, length, flags);
            self.publish();
        }
        self.room.tally.add(1, message.len() as u64);
        Ok(Progress::Whole)
    }
}
