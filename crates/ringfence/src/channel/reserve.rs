//! Messages that are written in place: room in the ring, with a borrow of the sending half ([`Reservation`]) or without ([`Reserved`]);
//! and many messages with one publication ([`Batch`]).

#![expect(
    clippy::inline_always,
    reason = "what a call saves and returns on the stack are stores, and they wait behind those to the ring that the reader has had: near \
              cores gave half as many short messages"
)]
#![expect(private_bounds, reason = "as in `outbound`")]

use std::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use bytemuck::Pod;

use crate::{
    channel::end::ChannelState,
    channel::outbound::{InProgress, Limits, Outbound, Outlet, Writing, closed, refusal},
    error::{Error, Result},
    region::own::OwnRegion,
    ring::items::ReservedItems,
    ring::record::Tag,
    ring::spsc::Spsc,
    ring::write::Writer,
};

impl<R: Outlet> Outbound<R> {
    /// Room in the ring itself for a message of `size` bytes, to be filled in place and committed. `None`: there is no room
    /// now. Dropping it without a commit sends nothing.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// if let Some(mut room) = sender.reserve(16)? {
    ///     room[..8].copy_from_slice(&17_u64.to_le_bytes());
    ///     room.commit(8)?; // sends the first 8 bytes, and returns the others to the ring
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Outbound::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<Reservation<'_, R>>> {
        let at = match self.claim_fast(size) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        let Some(writing) = &mut self.writing else {
            return Err(closed::<R>());
        };
        writing.protect(at, size)?;
        Ok(Some(Reservation { writing, at, size }))
    }

    /// Reserves like [`Outbound::reserve`], for `count` values of plain data, which are one message: a run of them has one header, and
    /// each costs no more than its bytes. The receiver reads them by [`Message::items`](crate::Message::items), or as bytes.
    /// Values that are in memory already are sent by [`Outbound::send`] of [`bytemuck::cast_slice`].
    ///
    /// A type without a byte, and one that needs an alignment above eight, does not compile.
    ///
    /// ```no_run
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@prices".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// if let Some(mut run) = sender.reserve_items::<[u64; 8]>(256)? {
    ///     for (number, item) in run.iter_mut().enumerate() {
    ///         *item = [number as u64; 8];
    ///     }
    ///     run.commit(256)?; // or fewer: the room of the others is returned
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Outbound::try_send`].
    #[inline]
    pub fn reserve_items<T: Pod>(
        &mut self,
        count: usize,
    ) -> Result<Option<ReservedItems<Reservation<'_, R>, T>>> {
        let room = self.reserve(ReservedItems::<Reservation<'_, R>, T>::bytes(count))?;
        Ok(room.map(ReservedItems::new))
    }

    /// Claims like [`Outbound::claim`], if nothing is in the way.
    #[inline(always)]
    fn claim_fast(&mut self, size: usize) -> Option<usize> {
        if size as u64 > self.limits.at_once || self.in_progress != InProgress::Nothing || !self.is_open() {
            return None;
        }
        self.writing.as_mut()?.ring.claim_fast(size as u64)
    }

    /// Claims room for a message, and returns the offset of its bytes in the region.
    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        self.limits.check(size, self.limits.at_once)?;
        match self.writing()?.ring.claim(size as u64) {
            Ok(Some(at)) => Ok(Some(at)),
            other => self.on_no_room(other.map(|_| false), size).map(|_| None),
        }
    }

    /// Reserves like [`Outbound::reserve`], for callers that cannot hold a borrow: until [`Outbound::commit`] or [`Outbound::cancel`], or
    /// until the result is dropped, every other call that sends fails with [`Error::InvalidArgument`]. If the result is forgotten
    /// ([`std::mem::forget`]), this half can never know that it is no longer written, and sends nothing more;
    /// [`Outbound::end`] and close work.
    pub fn reserve_detached(&mut self, size: usize) -> Result<Option<Reserved>> {
        let Some(at) = self.claim(size)? else {
            return Ok(None);
        };
        let writing = self.writing()?;
        writing.protect(at, size)?;
        let region = writing.ring.own().clone();
        self.in_progress = InProgress::Reservation;
        self.reservation.store(true, Ordering::Relaxed);
        Ok(Some(Reserved {
            region,
            at,
            size,
            open: Arc::clone(&self.reservation),
        }))
    }

    /// Sends the first `length` bytes of what was reserved.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if that is more than was reserved (whose room is returned then), or if it was reserved with another
    /// half, else as [`Outbound::try_send`].
    pub fn commit(&mut self, reserved: Reserved, length: usize) -> Result<()> {
        let (at, size) = self.take_back(reserved)?;
        check_length(length, size)?;
        self.writing()?.finish(at, size, length);
        Ok(())
    }

    /// Returns what was reserved to the ring, and sends nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what was reserved with another half, and as [`Outbound::try_send`] on a channel that has ended.
    pub fn cancel(&mut self, reserved: Reserved) -> Result<()> {
        self.take_back(reserved).map(drop)
    }

    fn take_back(&mut self, reserved: Reserved) -> Result<(usize, usize)> {
        let range = (reserved.at, reserved.size);
        if !Arc::ptr_eq(&reserved.open, &self.reservation) {
            return Err(Error::invalid("this was reserved with another sender"));
        }
        drop(reserved);
        self.writing()?;
        Ok(range)
    }

    /// Many messages, one publication: the readers are woken once for all of them.
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
    /// As [`Outbound::try_send`].
    pub fn batch(&mut self) -> Result<Batch<'_, R>> {
        let limits = self.limits;
        let writing = self.writing()?;
        Ok(Batch {
            writing,
            limits,
            reserved: None,
            panicking: thread::panicking(),
        })
    }
}

/// Room in the ring for one message: dereferences to its bytes. Dropping it sends nothing.
pub struct Reservation<'a, R: Outlet = Spsc> {
    /// Has the ring, and holds these bytes of it.
    writing: &'a mut Writing<R>,
    /// Their offset in the region, and their number.
    at: usize,
    size: usize,
}

opaque! { [R: Outlet] Reservation<'_, R>; }

impl<R: Outlet> Reservation<'_, R> {
    /// Sends the first `length` bytes.
    ///
    /// # Errors
    /// As [`Outbound::commit`].
    #[inline(always)]
    pub fn commit(self, length: usize) -> Result<()> {
        // A value that is not dropped stays in registers.
        let mut this = ManuallyDrop::new(self);
        let (at, size) = (this.at, this.size);
        let writing = &mut *this.writing;
        if length > size || !writing.is_open() {
            return Err(not_committed(writing, length, size));
        }
        writing.finish(at, size, length);
        writing.ring.own().unprotect();
        Ok(())
    }
}

impl<R: Outlet, T: Pod> ReservedItems<Reservation<'_, R>, T> {
    /// Sends the first `count` values, as one message.
    ///
    /// # Errors
    /// As [`Outbound::commit`].
    #[inline]
    pub fn commit(self, count: usize) -> Result<()> {
        self.room.commit(Self::bytes(count))
    }
}

impl<R: Outlet> Deref for Reservation<'_, R> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let Self { at, size, .. } = *self;
        // SAFETY: `reserve` has claimed this range and holds it. The sending half is borrowed since, so that no other range is claimed or
        // held. Writing takes an exclusive borrow, and no other process can write here.
        unsafe { self.writing.ring.own().claimed_for_reading(at, size) }
    }
}

impl<R: Outlet> DerefMut for Reservation<'_, R> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let Self { at, size, .. } = *self;
        // SAFETY: as above, with an exclusive borrow.
        unsafe { self.writing.ring.own_mut().claimed(at, size) }
    }
}

impl<R: Outlet> Drop for Reservation<'_, R> {
    #[inline(always)]
    fn drop(&mut self) {
        self.writing.ring.own().unprotect();
    }
}

#[cold]
#[inline(never)]
fn not_committed<R: Outlet>(writing: &mut Writing<R>, length: usize, size: usize) -> Error {
    writing.ring.own().unprotect();
    let checked = check_length(length, size);
    checked.err().unwrap_or_else(|| refusal::<R>(&writing.shared))
}

#[inline]
fn check_length(length: usize, size: usize) -> Result<()> {
    if length <= size {
        return Ok(());
    }
    Err(too_long(length, size))
}

#[cold]
fn too_long(length: usize, size: usize) -> Error {
    Error::invalid(format!("{length} bytes committed of a reservation of {size}"))
}

/// Room in the ring that is not tied to its sending half by a borrow. The region stays mapped while this lives. Dropping it
/// without a commit sends nothing, on whatever thread.
pub struct Reserved {
    region: OwnRegion,
    /// The range, which is claimed and held for this alone.
    at: usize,
    size: usize,
    open: Arc<AtomicBool>,
}

opaque! { [] Reserved; }

impl Reserved {
    /// The bytes to fill.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the writer has claimed this range for this reservation, hands out no other before it is committed or cancelled (which
        // consume this), and this borrow is exclusive. A channel that is closed in the meantime leaves the mapping alone: `region`
        // holds it.
        unsafe { self.region.claimed(self.at, self.size) }
    }

    /// Returns a value that keeps the memory mapped after this is gone: for bindings that show it to another language.
    pub fn keeper(&self) -> Keeper {
        Keeper {
            _region: self.region.clone(),
        }
    }

    /// Bytes reserved.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.region.unprotect();
        // Release: the sending half loads this before it hands the bytes out again.
        self.open.store(false, Ordering::Release);
    }
}

/// Keeps the memory of a [`Reserved`] mapped.
#[derive(Clone)]
pub struct Keeper {
    _region: OwnRegion,
}

/// Messages that become visible to the readers together, at [`Batch::publish`] or when this is dropped.
///
/// If a panic interrupts its use, or it is forgotten ([`std::mem::forget`]), the message that was reserved last is not sent: the program may
/// not have written all of it.
pub struct Batch<'a, R: Outlet = Spsc> {
    writing: &'a mut Writing<R>,
    limits: Limits,
    /// The range that was handed out last, and that the program may still write.
    reserved: Option<(usize, usize)>,
    /// This was made while a panic unwound, by a destructor.
    panicking: bool,
}

opaque! { [R: Outlet] Batch<'_, R>; }

impl<R: Outlet> Batch<'_, R> {
    /// Adds a message. `false`: there is no room now. At a publisher, what was added so far is published then.
    ///
    /// # Errors
    /// As [`Outbound::try_send`].
    #[inline(always)]
    pub fn push(&mut self, message: &[u8]) -> Result<bool> {
        self.release();
        self.limits.check(message.len(), self.limits.at_once)?;
        self.writing.check_open()?;
        match self.writing.ring.push(message, Tag::NONE) {
            Ok(true) => Ok(true),
            other => {
                let push = |ring: &mut Writer<_, _>| Ok(ring.push(message, Tag::NONE)?.then_some(()));
                let pushed = self.try_again(other.map(|_| None), message.len(), push)?;
                Ok(pushed.is_some())
            }
        }
    }

    /// Adds a message of `size` bytes, to be filled before the next call. `None`: there is no room now.
    ///
    /// # Errors
    /// As [`Outbound::try_send`].
    #[inline(always)]
    pub fn reserve(&mut self, size: usize) -> Result<Option<&mut [u8]>> {
        self.limits.check(size, self.limits.at_once)?;
        // A channel that has closed wipes the range that was handed out before: its borrow has ended.
        self.writing.check_open().inspect_err(|_| self.release())?;
        self.finish();
        let at = match self.writing.ring.claim_fast(size as u64) {
            Some(at) => at,
            None => match self.claim(size)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        // Replaces the range that was handed out before: its borrow has ended.
        self.writing.protect(at, size)?;
        self.reserved = Some((at, size));
        // SAFETY: the range was just claimed, is published only after this borrow has ended, and is claimed by no other call.
        Ok(Some(unsafe { self.writing.ring.own_mut().claimed(at, size) }))
    }

    #[cold]
    #[inline(never)]
    fn claim(&mut self, size: usize) -> Result<Option<usize>> {
        // There may be no range that replaces the one handed out before.
        self.release();
        self.writing.check_open()?;
        match self.writing.ring.claim(size as u64) {
            Ok(Some(at)) => Ok(Some(at)),
            other => self.try_again(other, size, |ring| ring.claim(size as u64)),
        }
    }

    /// Tries once more after there was no room, if the unpublished messages of this batch may be in the way.
    #[cold]
    fn try_again<T>(
        &mut self,
        found: Result<Option<T>>,
        size: usize,
        again: impl FnOnce(&mut Writer<OwnRegion, R::Room>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut found = R::judge(self.writing, found)?;
        if R::PUBLISHING_MAKES_ROOM {
            self.writing.publish();
            let result = again(&mut self.writing.ring);
            found = R::judge(self.writing, result)?;
        }
        if found.is_none() {
            R::on_full(self.writing, size);
            self.writing.check_open()?;
        }
        Ok(found)
    }

    /// Adds the message that was handed out to the batch: its borrow has ended.
    #[inline]
    fn finish(&mut self) {
        if let Some((at, size)) = self.reserved.take() {
            self.writing.ring.finish(at, size, size);
        }
    }

    /// The range that was handed out is no longer written.
    #[inline]
    fn release(&mut self) {
        // A channel that has closed sends nothing more.
        if self.writing.is_open() {
            self.finish();
        }
        self.writing.ring.own().unprotect();
    }

    /// Makes what was added so far visible to the readers.
    #[inline]
    pub fn publish(&mut self) {
        self.release();
        if !R::state(&self.writing.shared).is(ChannelState::Inherited, Ordering::Relaxed) {
            self.writing.publish();
        }
    }
}

impl<R: Outlet> Drop for Batch<'_, R> {
    fn drop(&mut self) {
        if !self.panicking && thread::panicking() {
            self.reserved = None;
        }
        self.publish();
    }
}
