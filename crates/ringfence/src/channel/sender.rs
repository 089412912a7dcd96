//! The sending half of a channel.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::Ordering,
    time::Instant,
};

use crate::{
    channel::end::{AtomicState, ChannelState, CloseReason, Shared},
    channel::open::Link,
    channel::outbound::{InProgress, Outbound, Outlet, Writing, in_progress_error},
    channel::stats::ChannelStats,
    channel::unread::Outgoing,
    channel::waiting::{Parking, Waits},
    error::{Error, Result},
    region::peer::PeerRegion,
    ring::message::Progress,
    ring::record::Tag,
    ring::spsc::{PeerHead, Spsc},
    wake::attachments::AttachmentRef,
};

/// The sending half of a channel.
pub type Sender = Outbound<Spsc>;

impl Outlet for Spsc {
    const NAME: &'static str = "Sender";
    type Shared = Shared;
    type Room = PeerHead<PeerRegion>;
    type Link = Link;
    type Own = Outgoing;

    const ENDED: &'static str = "this side has ended its sending";
    const TOO_LONG: &'static str = "what the peer takes";
    const PUBLISHING_MAKES_ROOM: bool = false;

    #[inline]
    fn state(shared: &Shared) -> &AtomicState {
        &shared.state
    }

    fn close_reason(shared: &Shared) -> Option<CloseReason> {
        shared.close_reason()
    }

    fn check(shared: &Shared) -> Result<()> {
        let was_ended = shared.sending_ended.load(Ordering::Acquire);
        shared.check().map_err(|error| {
            // After `end` the error is the same, whatever the peer has done since.
            let is_ours = was_ended && !matches!(error, Error::RingCorrupt(_) | Error::ObjectExposed(_));
            if is_ours {
                Error::Closed(Self::ENDED)
            } else {
                error
            }
        })
    }

    fn wait_for_end(shared: &Shared) {
        shared.wait_for_end();
    }

    #[inline]
    fn wake_readers(writing: &mut Writing<Self>) {
        if writing.link.waker.must_wake() {
            writing.shared.doorbell.wake_peer();
        }
    }

    fn judge<T>(writing: &mut Writing<Self>, result: Result<T>) -> Result<T> {
        writing.shared.judge(result)
    }

    fn on_full(writing: &mut Writing<Self>, _size: usize) {
        if writing.link.must_check_line() {
            writing.shared.check_peer();
        }
    }

    fn send_part(outbound: &mut Sender, message: &[u8], tag: Tag, written: usize) -> Result<Progress> {
        outbound.limits.check(message.len(), outbound.limits.longest)?;
        let in_progress = outbound.in_progress;
        let writing = outbound.writing_more()?;
        let continues = match in_progress {
            InProgress::Message(size, so_far) => (size, so_far) == (message.len(), written),
            InProgress::Nothing | InProgress::Reservation => written == 0,
        };
        if !continues {
            return Err(not_next_error(in_progress, message.len(), written));
        }
        let result = writing.ring.push_part(message, tag, written);
        Spsc::wake_readers(writing);
        let result = Spsc::judge(writing, result);
        outbound.in_progress = match result {
            Ok(Progress::Part(written)) if written > 0 => InProgress::Message(message.len(), written),
            _ => InProgress::Nothing,
        };
        result
    }

    fn send_part_with(
        outbound: &mut Sender,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
    ) -> Result<Progress> {
        outbound.send_part_with(message, attachments)
    }

    fn await_room_for(outbound: &mut Sender, attachments: &[AttachmentRef<'_>]) -> Result<()> {
        outbound.own.wanted = outbound.own.check(attachments)?;
        Ok(())
    }

    fn arm(outbound: &mut Sender, size: usize) -> Result<bool> {
        outbound.arm_for(size)
    }

    fn disarm(outbound: &mut Sender) {
        outbound.unpark();
    }

    fn count_wait(outbound: &mut Sender, since: Instant, _failed: bool) {
        outbound.shared.counters.count_wait(since);
    }

    fn release(outbound: &mut Sender) {
        if let Some(mut writing) = outbound.writing.take()
            && !outbound.shared.is_inherited()
        {
            let used = writing.ring.used();
            outbound.shared.counters.used.store(used, Ordering::Relaxed);
        }
    }

    fn end(outbound: &mut Sender) {
        let shared = &outbound.shared;
        if shared.is_inherited() || shared.sending_ended.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(mut writing) = outbound.writing.take() {
            writing.ring.publish();
            shared.counters.used.store(writing.ring.used(), Ordering::Relaxed);
            if shared.end_sending() {
                Self::wake_readers(&mut writing);
            }
        }
        shared.finish_if_both_ended();
    }

    fn destroy(outbound: &mut Sender) {
        outbound.finish(ChannelState::DestroyedHere);
    }
}

impl Sender {
    /// Bytes of the longest message that can be put into the ring at once: half the capacity, or what the peer
    /// accepts, if that is less. Longer ones travel in fragments, through [`Sender::send`].
    #[inline]
    pub fn max_at_once(&self) -> u64 {
        self.limits.at_once
    }

    /// What this half has sent so far, and what the other half has reported last: once in a lap of its ring, and each time that it
    /// sleeps or is asked itself. The last figures stay after the end.
    pub fn stats(&mut self) -> ChannelStats {
        // In a forked child the ring is not mapped.
        if let Some(Writing { ring, shared, .. }) = &mut self.writing
            && !shared.is_inherited()
        {
            ring.counted();
            shared.counters.used.store(ring.used(), Ordering::Relaxed);
        }
        let mut stats = self.shared.counters.snapshot();
        if let (InProgress::Message(size, written), Some(_)) = (self.in_progress, &self.writing) {
            stats.staged = (size - written) as u64;
        }
        stats
    }

    /// Puts as much of a message into the ring as there is room for now, and returns how much: for callers that wait in a
    /// way of their own. Until it is whole, the same message must be passed with what the last call returned (0 at first).
    /// In the meantime every other call that sends fails with [`Error::InvalidArgument`], and so does one that continues with
    /// another length or from another place. [`Sender::end`] and close work: the peer then never gets the message.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_part(&mut self, message: &[u8], written: usize) -> Result<Progress> {
        self.send_part_tagged(message, Tag::NONE, written)
    }

    /// Returns the number of bytes in the ring of a message whose remainder must still be passed to [`Sender::send_part`]. `None`: no
    /// message is under way.
    pub fn under_way(&self) -> Option<usize> {
        match self.in_progress {
            InProgress::Message(_, written) => Some(written),
            _ => None,
        }
    }

    /// Reads the wakeups on the line, and notices a peer that is gone: see [`Sender::close_reason`].
    pub fn poll_line(&mut self) {
        self.shared.doorbell.read_wakeups();
        self.shared.end_if_gone();
        self.refresh();
    }

    /// Notices the end like [`Sender::poll_line`], for a caller that has just polled the line with the other half
    /// ([`Receiver::poll_line`](crate::Receiver::poll_line)).
    pub fn refresh(&mut self) {
        if !self.shared.state.is(ChannelState::Open, Ordering::Acquire) {
            Spsc::release(self);
        }
    }

    /// Frees the address of a pair's host early, with the files beside a path, and changes nothing else: for
    /// a process that is about to exit without notifying its peer, which then finds that it has exited, and that is to leave no
    /// files behind. Others may have the address from here on. Does nothing for a guest, or on a channel that has ended.
    pub fn vacate(&self) {
        self.shared.vacate();
    }

    /// Closes the whole channel from this half: the peer reads what is in the ring, and then a clean end.
    pub fn close(&mut self) {
        self.finish(ChannelState::ClosedHere);
    }

    fn finish(&mut self, how: ChannelState) {
        if let Some(writing) = &mut self.writing
            && !self.shared.is_inherited()
        {
            writing.ring.publish();
        }
        self.shared.finish(how);
        Spsc::release(self);
    }
}

impl Waits for Sender {
    type For = usize;

    fn parking(&mut self) -> Parking<'_> {
        let writing = self.writing.as_mut();
        Parking {
            shared: &self.shared,
            sleeper: writing.map(|writing| &mut writing.link.sleeper),
            spins: &mut self.spins,
        }
    }

    fn check(&mut self) -> Result<()> {
        self.writing_more().map(drop)
    }

    #[inline]
    fn is_available(&mut self, size: usize) -> Result<bool> {
        Ok(self.has_room_for(self.own.wanted)? && self.has_room(size)?)
    }

    /// A sender that will never find room gets an error.
    fn is_over(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn counted(&mut self) -> (u64, u64) {
        let writing = self.writing.as_mut();
        writing.map_or((0, 0), |writing| writing.ring.counted())
    }
}

impl AsFd for Sender {
    /// For an event loop: readable when the peer has woken this side, has gone, or has died. For the last of these, one thread of the
    /// process watches the peers of all channels: another process may hold a copy of the dead peer's socket.
    ///
    /// This is the private line, and both halves have the same:
    /// one event loop waits for both, or for one of them while a thread waits for the other (such as in
    /// [`Receiver::wait_readable`](crate::Receiver::wait_readable)). Threads beside a loop cost the channel two descriptors, made when the first of
    /// them waits. If a thread slept in a call when the loop began, the loop gets an epoll of its own for the line (two more).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.line_only()
    }
}

#[cold]
fn not_next_error(in_progress: InProgress, size: usize, written: usize) -> Error {
    match in_progress {
        InProgress::Message(size, written) => in_progress_error(size, written),
        InProgress::Nothing | InProgress::Reservation => Error::invalid(format!(
            "no message is under way: one of {size} bytes begins with 0, not with {written}"
        )),
    }
}
