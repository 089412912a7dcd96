//! Many messages to the subscribers, one publication.
#![expect(clippy::inline_always, reason = "as in `broadcaster`")]

use std::sync::atomic::Ordering;

use crate::{
    channel::end::ChannelState, endpoint::broadcast::broadcaster::Broadcaster, error::Result,
    handshake::broadcast::ReaderBell, region::own::OwnRegion, region::peer::PeerRegion,
    ring::fan_out::floor::FanOutWriter,
};

impl Broadcaster {
    /// Many messages, one publication. Errors as [`Broadcaster::try_send`].
    pub fn batch(&mut self) -> Result<BroadcastBatch<'_>> {
        self.writing()?;
        Ok(BroadcastBatch { sender: self })
    }
}

/// Messages that become visible to the subscribers together, at [`BroadcastBatch::publish`] or when this is dropped.
#[derive(Debug)]
pub struct BroadcastBatch<'a> {
    sender: &'a mut Broadcaster,
}

impl BroadcastBatch<'_> {
    /// Adds a message. `false`: there is no room now. Errors as [`Broadcaster::try_send`].
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<bool> {
        self.let_go();
        self.sender.check_size(message.len())?;
        if self.sender.writing()?.ring.push(message)? {
            return Ok(true);
        }
        self.make_room(|ring| Ok(ring.push(message)?.then_some(())), message.len())
            .map(|pushed| pushed.is_some())
    }

    /// Adds a message of `size` bytes, to be filled before the next call. `None`: there is no room now. Errors as
    /// [`Broadcaster::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<&mut [u8]>> {
        self.sender.check_size(size)?;
        let at = match self.sender.writing()?.ring.claim_known(size as u64) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        // In place of what was handed out before: its borrow has ended.
        if !self.sender.shared.region.hold(at, size) {
            return Err(self.sender.why_not());
        }
        let writing = self.sender.writing()?;
        writing.ring.finish(at, size, size);
        // SAFETY: the range was just claimed, is published only after this borrow has ended, and is claimed by no other call.
        Ok(Some(unsafe { writing.ring.own_mut().claimed(at, size) }))
    }

    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        // There may be no range that takes the place of what was handed out before.
        self.let_go();
        match self.sender.writing()?.ring.claim(size as u64)? {
            Some(at) => Ok(Some(at)),
            None => self.make_room(|ring| ring.claim(size as u64), size),
        }
    }

    /// What this batch has written itself may be in the way: publishes it, and tries once more.
    #[cold]
    fn make_room<T>(
        &mut self,
        again: impl FnOnce(&mut FanOutWriter<OwnRegion, PeerRegion, ReaderBell>) -> Result<Option<T>>,
        size: usize,
    ) -> Result<Option<T>> {
        self.sender.publish();
        let found = again(&mut self.sender.writing()?.ring)?;
        if found.is_none() {
            self.sender.refused(size);
        }
        Ok(found)
    }

    /// What was handed out is not written any more: its borrow has ended.
    #[inline]
    fn let_go(&mut self) {
        self.sender.shared.region.let_go();
    }

    /// Makes what was added so far visible to the subscribers.
    #[inline]
    pub fn publish(&mut self) {
        self.let_go();
        if !self
            .sender
            .shared
            .state
            .is(ChannelState::Inherited, Ordering::Relaxed)
        {
            self.sender.publish();
        }
    }
}

impl Drop for BroadcastBatch<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}
