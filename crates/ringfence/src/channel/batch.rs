//! Many messages, one publication.

#![expect(clippy::inline_always, reason = "as in `reservation`")]

use crate::{
    channel::reservation::exposed,
    channel::sender::{Sender, Writing, ended},
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
        Ok(Batch { writing, longest })
    }
}

/// Messages that become visible to the peer together, at [`Batch::publish`] or when this is dropped.
#[derive(Debug)]
pub struct Batch<'a> {
    writing: &'a mut Writing,
    longest: u64,
}

impl Batch<'_> {
    /// Adds a message. `false`: there is no room now.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline(always)]
    pub fn push(&mut self, message: &[u8]) -> Result<bool> {
        self.let_go();
        self.check_size(message.len())?;
        self.writing.check_open()?;
        match self.writing.producer.push(message) {
            Ok(pushed) => Ok(pushed),
            error => self.writing.shared.judge(error),
        }
    }

    /// Adds a message of `size` bytes, to be filled before the next call. `None`: there is no room now.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<&mut [u8]>> {
        self.check_size(size)?;
        let at = match self.writing.producer.claim_known(size as u64) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        let producer = &mut self.writing.producer;
        // In place of what was handed out before: its borrow has ended.
        if !producer.own().hold(at, size) {
            return Err(exposed(&self.writing.shared));
        }
        producer.finish(at, size, size);
        // SAFETY: the range was just claimed, is published only after this borrow has ended, and is claimed by no other call.
        Ok(Some(unsafe { producer.own_mut().claimed(at, size) }))
    }

    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        // There may be no range that takes the place of what was handed out before.
        self.let_go();
        self.writing.check_open()?;
        let claimed = self.writing.producer.claim(size as u64);
        self.writing.shared.judge(claimed)
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
        self.writing.producer.own().let_go();
    }

    /// Makes what was added so far visible to the peer.
    #[inline]
    pub fn publish(&mut self) {
        self.let_go();
        if self.writing.shared.is_inherited() {
            return;
        }
        if self.writing.producer.publish() {
            self.writing.wake();
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
