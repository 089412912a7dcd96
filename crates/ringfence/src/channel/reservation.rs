//! Messages that are written where they will lie: room in the ring, with a borrow of the sender ([`Reservation`]) or without
//! ([`Reserved`]).

#![expect(
    clippy::inline_always,
    reason = "what a call saves and returns on the stack are stores, and they wait behind those to the ring that the reader has had: near \
              cores gave half as many short messages"
)]

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use crate::{
    channel::end::Shared,
    channel::reserved::{Reserved, too_long},
    channel::sender::{Begun, Sender, Writing, ended},
    error::{Error, Result},
    ring::items::ReservedItems,
};

impl Sender {
    /// Room in the ring itself for a message of `size` bytes, to be filled in place and committed. `None`: there is no room
    /// now. Dropping it without a commit sends nothing.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// if let Some(mut room) = sender.reserve(16)? {
    ///     room[..8].copy_from_slice(&17_u64.to_le_bytes());
    ///     room.commit(8)?; // sends the first 8 bytes, and gives the rest back
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<Reservation<'_>>> {
        let at = match self.claim_known(size) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        let writing = self.writing.as_mut().ok_or_else(ended)?;
        if !writing.producer.own().hold(at, size) {
            return Err(exposed(&self.shared));
        }
        Ok(Some(Reservation { writing, at, size }))
    }

    /// As [`Sender::reserve`], for `count` values of plain data, which are one message: a run of them has one header, and each costs
    /// no more than its bytes. The receiver reads them by [`Message::items`](crate::Message::items), or as the bytes that they are.
    /// Values that are there already are sent by [`Sender::send`] of [`bytemuck::cast_slice`].
    ///
    /// A type that must lie at more than a multiple of eight is refused by the compiler, and one without a byte.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// if let Some(mut run) = sender.reserve_items::<[u64; 8]>(256)? {
    ///     for (number, item) in run.iter_mut().enumerate() {
    ///         *item = [number as u64; 8];
    ///     }
    ///     run.commit(256)?; // or fewer: the rest is given back
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    #[inline]
    pub fn reserve_items<T: Pod>(
        &mut self,
        count: usize,
    ) -> Result<Option<ReservedItems<Reservation<'_>, T>>> {
        let room = self.reserve(ReservedItems::<Reservation<'_>, T>::bytes(count))?;
        Ok(room.map(ReservedItems::new))
    }

    /// As [`Sender::claim`], where nothing is in the way.
    #[inline(always)]
    fn claim_known(&mut self, size: usize) -> Option<usize> {
        if size as u64 > self.at_once || self.begun != Begun::Nothing || !self.is_open() {
            return None;
        }
        self.writing.as_mut()?.producer.claim_known(size as u64)
    }

    /// Claims room for a message: the offset of its bytes in the region.
    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        self.check_size(size, true)?;
        match self.writing()?.producer.claim(size as u64) {
            Ok(Some(at)) => Ok(Some(at)),
            other => self.not_sent(other.map(|_| false)).map(|_| None),
        }
    }

    /// As [`Sender::reserve`], for callers that cannot hold a borrow: until [`Sender::commit`] or [`Sender::cancel`], or until
    /// what this returns is dropped, every other call that sends is refused with [`Error::InvalidArgument`]. One that is
    /// forgotten ([`std::mem::forget`]) may still be written as far as this half can know, and so nothing is sent any more;
    /// [`Sender::end`] and close work.
    pub fn reserve_detached(&mut self, size: usize) -> Result<Option<Reserved>> {
        let Some(at) = self.claim(size)? else {
            return Ok(None);
        };
        let region = self.writing()?.producer.own_mut().clone();
        if !region.hold(at, size) {
            return Err(exposed(&self.shared));
        }
        self.begun = Begun::Reservation;
        Ok(Some(Reserved::new(region, at, size, &self.reservation)))
    }

    /// Sends the first `length` bytes of what was reserved.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if that is more than was reserved (which is given back then), or was reserved with another
    /// sender, else as [`Sender::try_send`].
    pub fn commit(&mut self, reserved: Reserved, length: usize) -> Result<()> {
        let (at, size) = self.take_back(reserved)?;
        if length > size {
            return Err(too_long(length, size));
        }
        let writing = self.writing.as_mut().ok_or_else(ended)?;
        writing.finish(at, size, length);
        Ok(())
    }

    /// Gives back what was reserved; nothing is sent.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what was reserved with another sender, and as [`Sender::try_send`] on a channel that has
    /// ended, where there is nothing to give back to.
    pub fn cancel(&mut self, reserved: Reserved) -> Result<()> {
        self.take_back(reserved).map(drop)
    }

    fn take_back(&mut self, reserved: Reserved) -> Result<(usize, usize)> {
        let range = reserved
            .give_back(&self.reservation)
            .ok_or_else(|| Error::invalid("this was reserved with another sender"))?;
        self.writing()?;
        Ok(range)
    }
}

/// Room in the ring for one message: dereferences to its bytes. Dropping it sends nothing.
#[derive(Debug)]
pub struct Reservation<'a> {
    /// Has the ring, and holds these bytes of it.
    writing: &'a mut Writing,
    /// Where they lie in the region, and how many.
    at: usize,
    size: usize,
}

impl Reservation<'_> {
    /// Sends the first `length` bytes.
    ///
    /// # Errors
    /// As [`Sender::commit`].
    #[inline(always)]
    pub fn commit(self, length: usize) -> Result<()> {
        let Self { at, size, .. } = self;
        if length > size {
            return Err(too_long(length, size));
        }
        self.writing.check_open()?;
        self.writing.finish(at, size, length);
        Ok(())
    }
}

impl<T: Pod> ReservedItems<Reservation<'_>, T> {
    /// Sends the first `count` values, as one message.
    ///
    /// # Errors
    /// As [`Sender::commit`].
    #[inline]
    pub fn commit(self, count: usize) -> Result<()> {
        self.room.commit(Self::bytes(count))
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let Self { at, size, .. } = *self;
        // SAFETY: `reserve` has claimed this range and holds it; the sender is borrowed since, so that nothing else is claimed or
        // held meanwhile; writing takes an exclusive borrow, and no other process can write here.
        unsafe { self.writing.producer.own().claimed_for_reading(at, size) }
    }
}

impl DerefMut for Reservation<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let Self { at, size, .. } = *self;
        // SAFETY: as above, with an exclusive borrow.
        unsafe { self.writing.producer.own_mut().claimed(at, size) }
    }
}

impl Drop for Reservation<'_> {
    #[inline]
    fn drop(&mut self) {
        self.writing.producer.own().let_go();
    }
}

/// Why nothing is handed out of a ring that is being wiped.
#[cold]
pub(super) fn exposed(shared: &Shared) -> Error {
    shared.wait_for_end();
    shared.check().err().unwrap_or_else(ended)
}
