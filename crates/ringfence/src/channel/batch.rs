//! Many messages, one publication.

#![expect(clippy::inline_always, reason = "as in `reservation`")]

use crate::{
    channel::reservation::exposed,
    channel::sender::{Sender, Writing, ended},
    channel::shared::Shared,
    error::{Error, Result},
};

impl Sender {
    /// Many messages, one publication: the peer is woken once for all of them.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let mut batch = sender.batch()?;
    /// for price in 0..1000_u64 {
    ///     if !batch.push(&price.to_le_bytes())? {
    ///         break; // the ring is full
    ///     }
    /// }
    /// batch.publish();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    pub fn batch(&mut self) -> Result<Batch<'_>> {
        let longest = self.max_at_once();
        self.writing()?;
        let writing = self.writing.as_mut().ok_or_else(ended)?;
        Ok(Batch {
            writing,
            shared: &self.shared,
            longest,
            handed_out: None,
        })
    }
}

/// Messages that become visible to the peer together, at [`Batch::publish`] or when this is dropped.
#[derive(Debug)]
pub struct Batch<'a> {
    writing: &'a mut Writing,
    shared: &'a Shared,
    longest: u64,
    /// Where the bytes lie that [`Batch::reserve`] has handed out last, and how many.
    handed_out: Option<(usize, usize)>,
}

impl Batch<'_> {
    /// Adds a message. `false`: there is no room now.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline(always)]
    pub fn push(&mut self, message: &[u8]) -> Result<bool> {
        self.check_size(message.len())?;
        self.let_go();
        match self.writing.producer.push(message) {
            Ok(pushed) => Ok(pushed),
            error => self.shared.judge(error),
        }
    }

    /// Adds a message of `size` bytes, to be filled before the next call. `None`: there is no room now.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<&mut [u8]>> {
        self.check_size(size)?;
        self.let_go();
        let producer = &mut self.writing.producer;
        match producer.claim_record(size as u64) {
            Ok(Some(at)) => {
                if !producer.own().hold(at, size) {
                    return Err(exposed(self.shared));
                }
                self.handed_out = Some((at, size));
                producer.finish(at, size, size);
                // SAFETY: the range was just claimed, is published only after this borrow has ended, and is claimed
                // by no other call.
                Ok(Some(unsafe { producer.own_mut().claimed(at, size) }))
            }
            Ok(None) => Ok(None),
            Err(error) => self.shared.judge(Err(error)),
        }
    }

    #[inline]
    fn check_size(&self, size: usize) -> Result<()> {
        if size as u64 <= self.longest {
            return Ok(());
        }
        Err(too_large(size, self.longest))
    }

    /// What was handed out is not written any more: its borrow has ended.
    #[inline]
    fn let_go(&mut self) {
        if let Some((at, size)) = self.handed_out.take() {
            self.writing.producer.own().let_go(at, size);
        }
    }

    /// Makes what was added so far visible to the peer.
    #[inline]
    pub fn publish(&mut self) {
        self.let_go();
        if self.shared.is_inherited() {
            return;
        }
        if self.writing.producer.publish() && self.writing.link.waker.must_ring() {
            self.shared.doorbell.ring();
        }
    }
}

#[cold]
fn too_large(size: usize, limit: u64) -> Error {
    Error::MessageTooLarge {
        size,
        limit,
        reason: "half the ring, and what the peer takes",
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}
