//! Messages that are written where they will lie: room in a publisher's ring, with a borrow ([`Room`]) or without
//! ([`Reserved`]).
#![expect(clippy::inline_always, reason = "as in `broadcaster`")]

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use crate::{
    channel::reserved::{Reserved, too_long},
    endpoint::broadcast::broadcaster::Broadcaster,
    error::{Error, Result},
    ring::items::ReservedItems,
};

impl Broadcaster {
    /// Room in the ring itself for a message of `size` bytes, to be filled in place and committed. `None`: there is no room now,
    /// as in [`Broadcaster::try_send`], whose errors this has. Dropping it without a commit sends nothing.
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<Room<'_>>> {
        let at = match self.claim_known(size) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        if !self.shared.region.hold(at, size) {
            return Err(self.why_not());
        }
        Ok(Some(Room {
            sender: self,
            at,
            size,
        }))
    }

    /// As [`Broadcaster::reserve`], for `count` values of plain data, which are one message: see
    /// [`Sender::reserve_items`](crate::Sender::reserve_items).
    #[inline]
    pub fn reserve_items<T: Pod>(&mut self, count: usize) -> Result<Option<ReservedItems<Room<'_>, T>>> {
        let room = self.reserve(ReservedItems::<Room<'_>, T>::bytes(count))?;
        Ok(room.map(ReservedItems::new))
    }

    /// As [`Broadcaster::claim`], where nothing is in the way.
    #[inline(always)]
    fn claim_known(&mut self, size: usize) -> Option<usize> {
        if size as u64 > self.longest || self.reserved || !self.is_open() {
            return None;
        }
        self.writing.as_mut()?.ring.claim_known(size as u64)
    }

    /// Claims room for a message: the offset of its bytes in the region.
    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        self.check_size(size)?;
        let writing = self.writing()?;
        let claimed = writing.ring.claim(size as u64)?;
        if claimed.is_none() {
            self.refused(size);
        }
        Ok(claimed)
    }

    /// As [`Broadcaster::reserve`], for callers that cannot hold a borrow: see
    /// [`Sender::reserve_detached`](crate::Sender::reserve_detached).
    pub fn reserve_detached(&mut self, size: usize) -> Result<Option<Reserved>> {
        let Some(at) = self.claim(size)? else {
            return Ok(None);
        };
        if !self.shared.region.hold(at, size) {
            return Err(self.why_not());
        }
        self.reserved = true;
        let region = self.shared.region.clone();
        Ok(Some(Reserved::new(region, at, size, &self.reservation)))
    }

    /// Sends the first `length` bytes of what was reserved. Errors with [`Error::InvalidArgument`] if that is more than was
    /// reserved (which is given back then), or was reserved elsewhere, else as [`Broadcaster::try_send`].
    pub fn commit(&mut self, reserved: Reserved, length: usize) -> Result<()> {
        let (at, size) = self.take_back(reserved)?;
        if length > size {
            return Err(too_long(length, size));
        }
        self.writing()?.ring.finish_now(at, size, length);
        self.sent();
        Ok(())
    }

    /// Gives back what was reserved; nothing is sent. Errors with [`Error::InvalidArgument`] for what was reserved elsewhere, and as
    /// [`Broadcaster::try_send`].
    pub fn cancel(&mut self, reserved: Reserved) -> Result<()> {
        self.take_back(reserved)?;
        self.writing().map(drop)
    }

    fn take_back(&self, reserved: Reserved) -> Result<(usize, usize)> {
        reserved
            .give_back(&self.reservation)
            .ok_or_else(|| Error::invalid("this was reserved elsewhere"))
    }
}

/// Room in a publisher's ring for one message: dereferences to its bytes. Dropping it sends nothing.
#[derive(Debug)]
pub struct Room<'a> {
    sender: &'a mut Broadcaster,
    /// Where its bytes lie in the region, and how many.
    at: usize,
    size: usize,
}

impl Room<'_> {
    /// Sends the first `length` bytes. Errors as [`Broadcaster::commit`].
    #[inline(always)]
    pub fn commit(self, length: usize) -> Result<()> {
        let Self { at, size, .. } = self;
        let writing = self.sender.writing()?;
        if length > size {
            return Err(too_long(length, size));
        }
        writing.ring.finish_now(at, size, length);
        self.sender.sent();
        Ok(())
    }
}

impl<T: Pod> ReservedItems<Room<'_>, T> {
    /// Sends the first `count` values, as one message. Errors as [`Broadcaster::commit`].
    #[inline]
    pub fn commit(self, count: usize) -> Result<()> {
        self.room.commit(Self::bytes(count))
    }
}

impl Deref for Room<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let Some(writing) = &self.sender.writing else {
            return &[];
        };
        let Self { at, size, .. } = *self;
        // SAFETY: `reserve` has claimed this range and holds it; the sender is borrowed since, so that nothing else is claimed or
        // held meanwhile; writing takes an exclusive borrow, and no other process can write here.
        unsafe { writing.ring.own().claimed_for_reading(at, size) }
    }
}

impl DerefMut for Room<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let Self { at, size, .. } = *self;
        let Some(writing) = &mut self.sender.writing else {
            return &mut [];
        };
        // SAFETY: as above, with an exclusive borrow.
        unsafe { writing.ring.own_mut().claimed(at, size) }
    }
}

impl Drop for Room<'_> {
    #[inline]
    fn drop(&mut self) {
        self.sender.shared.region.let_go();
    }
}
