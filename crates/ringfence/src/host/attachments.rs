//! Attachments of published messages: each subscriber gets descriptors of its own, of the same objects.

use std::mem;

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit},
};

use crate::{
    channel::unread::{Load, OnLine, Outgoing},
    error::{Error, Result},
    handshake::broadcast::ReaderLink,
    host::audience::Broadcast,
    host::broadcaster::{Broadcaster, charge},
    host::endpoint::Endpoint,
    host::stalls::Goal,
    ring::fan_out::Delivery,
    ring::fan_out::readers::ActiveReader,
    ring::record::Tag,
    wake::attachments::{AttachmentRef, MAX_COUNT},
    wake::doorbell::{Doorbell, is_gone, passing_failed},
};

impl Broadcaster {
    /// Publishes a message with attachments. `false`: there is no room now, or a reliable subscriber holds as many unread attachments as
    /// it accepts. Call it again once [`Broadcaster::arm_with`] reports room.
    ///
    /// # Errors
    /// As [`Broadcaster::send_with`].
    pub fn try_send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<bool> {
        self.own.attached.full = None;
        if attachments.is_empty() {
            return self.try_send(message);
        }
        let count = u8::try_from(attachments.len()).ok();
        let count = count.filter(|count| usize::from(*count) <= MAX_COUNT);
        let reason = "the number of attachments that the kernel passes at once";
        let count = count.ok_or(Error::too_large(attachments.len(), MAX_COUNT as u64, reason))?;
        self.writing()?;
        if !self.has_room(message.len())? {
            return self.on_no_room(Ok(false), message.len());
        }
        let mut readers = self.shared.ring.readers.active();
        // One that was disconnected reads no later message.
        self.shared.drop_gone(&mut readers);
        self.forget_gone(&readers);
        let Some(loads) = self.loads(&readers, attachments) else {
            return Ok(false);
        };
        let number = self.sequence() + 1;
        let Some(passed) = self.pass(&readers, &loads, attachments, number)? else {
            return Ok(false);
        };
        // A subscriber that starts at the oldest message may have taken the room.
        if !self.try_send_tagged(message, Tag::with_attachments(count))? {
            return Ok(false);
        }
        // It is published, also if another thread has closed the publisher since.
        let Some(writing) = &self.writing else {
            return Ok(true);
        };
        let end = writing.ring.tail();
        let attached = &mut self.own.attached;
        for (reader, passed) in readers.iter().zip(passed) {
            match passed.zip(attached.unread.get_mut(&reader.number)) {
                Some((load, unread)) => {
                    unread.published(load, end);
                    attached.sent += load.count;
                }
                None => attached.withheld += u64::from(count),
            }
        }
        Ok(true)
    }

    fn forget_gone(&mut self, readers: &[ActiveReader<ReaderLink>]) {
        let mut before = mem::take(&mut self.own.attached.unread);
        let unread = readers.iter().map(|ActiveReader { number, attached, .. }| {
            let known = before.remove(number);
            (*number, known.unwrap_or_else(|| Outgoing::new(attached.accepts)))
        });
        self.own.attached.unread = unread.collect();
    }

    /// Returns the load for each subscriber, if it gets the attachments. `None`: a reliable one must read first.
    fn loads(
        &mut self,
        readers: &[ActiveReader<ReaderLink>],
        attachments: &[AttachmentRef<'_>],
    ) -> Option<Vec<Option<Load>>> {
        let mut loads = Vec::with_capacity(readers.len());
        for reader in readers {
            let unread = self.own.attached.unread.get_mut(&reader.number)?;
            let load = unread.check(attachments).ok();
            let fits = load.is_none_or(|load| unread.fits(load, reader.head));
            if !fits && reader.delivery == Delivery::Reliable {
                let goal = load.map_or(0, |load| unread.goal(load));
                self.wait_for(reader.number, goal);
                return None;
            }
            loads.push(load.filter(|_| fits));
        }
        Some(loads)
    }

    /// The message is refused until this subscriber has read up to this position.
    fn wait_for(&mut self, number: u64, position: u64) {
        self.own.attached.full = Some((number, position));
        if let Some(writing) = &mut self.writing {
            let only = Some(number);
            charge(writing, Goal { position, only });
        }
    }

    /// The kernel puts no more attachments on the line of a reliable subscriber. `false`: this is not its fault. Otherwise the publisher
    /// waits for it, or it has ended.
    fn is_blocking(&mut self, reader: &ActiveReader<ReaderLink>) -> bool {
        let unread = self.own.attached.unread.get(&reader.number);
        if let Some(goal) = unread.and_then(Outgoing::last) {
            self.wait_for(reader.number, goal);
            return true;
        }
        // An honest one has not had the time to read the parcels of messages that were not published.
        let surplus = unread.map_or(0, |unread| unread.on_line.surplus * PARCEL_MEMORY);
        let doorbell = reader.attached.doorbell.upgrade();
        if doorbell.is_some_and(|doorbell| doorbell.is_hoarded(surplus))
            && let Some(link) = self.shared.link(reader.number)
        {
            let what = "it has read messages, and has left their attachments on the line";
            // Ends the channel with this reason. The other subscribers go on.
            let _ = link.judge::<()>(Err(Error::RingCorrupt(what.into())));
            return true;
        }
        false
    }

    /// Puts the attachments on the lines of the subscribers with a load, up to the first local error. Returns the loads that were passed.
    /// `None`: a reliable subscriber must read first, or has ended.
    ///
    /// After an error, or if the message is not published then, parcels stay on lines: see [`Broadcaster::pass_to`].
    fn pass(
        &mut self,
        readers: &[ActiveReader<ReaderLink>],
        loads: &[Option<Load>],
        attachments: &[AttachmentRef<'_>],
        number: u64,
    ) -> Result<Option<Vec<Option<Load>>>> {
        let lossy = readers.iter().zip(loads);
        let lossy = lossy.filter(|(reader, load)| load.is_some() && reader.delivery != Delivery::Reliable);
        let share = descriptors_in_flight() / (lossy.count() as u64).max(1);
        let mut passed = Vec::with_capacity(readers.len());
        for (reader, load) in readers.iter().zip(loads) {
            match self.pass_to(reader, *load, attachments, number, share) {
                Ok(load) => passed.push(load),
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS)
                    if reader.delivery == Delivery::Reliable && self.is_blocking(reader) =>
                {
                    return Ok(None);
                }
                Err(errno) => return Err(passing_failed(errno, attachments.len())),
            }
        }
        Ok(Some(passed))
    }

    /// Puts the attachments on the line of one subscriber, if it has a load. Returns that if it was passed.
    ///
    /// The line may have the parcel of a message that was not published. One for a message with the same number replaces it. It is
    /// withdrawn before a message with that number which has none for this subscriber, and before a parcel for a later message, beside
    /// which it would count.
    fn pass_to(
        &mut self,
        reader: &ActiveReader<ReaderLink>,
        mut load: Option<Load>,
        attachments: &[AttachmentRef<'_>],
        number: u64,
        share: u64,
    ) -> Result<Option<Load>, Errno> {
        let reliable = reader.delivery == Delivery::Reliable;
        let unread = self.own.attached.unread.get_mut(&reader.number);
        let Some((doorbell, unread)) = reader.attached.doorbell.upgrade().zip(unread) else {
            return Ok(None);
        };
        if let Some(Load { count, .. }) = load {
            let is_over = |on_line: OnLine, share: u64, surplus: usize| {
                on_line.surplus >= surplus || (!reliable && on_line.descriptors + count > share)
            };
            // From half on, since the line of a subscriber that reads is not always empty.
            if is_over(unread.on_line, share / 2, MAX_SURPLUS / 2) && doorbell.is_line_read() {
                unread.on_line = OnLine::default();
            }
            if is_over(unread.on_line, share, MAX_SURPLUS) {
                if reliable {
                    return Err(Errno::EAGAIN);
                }
                load = None;
            }
        }
        if let Some(before) = unread.unpublished
            && (before == number) == load.is_none()
        {
            if !post(&self.shared, reader, &doorbell, &[], before)? {
                return Ok(None);
            }
            unread.withdrawn();
        }
        let Some(load) = load else { return Ok(None) };
        if post(&self.shared, reader, &doorbell, attachments, number)? {
            unread.posted(load, number);
            return Ok(Some(load));
        }
        // The parcel that this one would have replaced must not arrive with this message.
        if unread.unpublished == Some(number) && post(&self.shared, reader, &doorbell, &[], number)? {
            unread.withdrawn();
        }
        Ok(None)
    }
}

/// The most parcels and withdrawals on a line beside the parcels of unread messages.
const MAX_SURPLUS: usize = 32;
/// The memory that the kernel counts for the largest parcel on a line.
const PARCEL_MEMORY: usize = 4608;

/// The number of descriptors that may be on the lines of subscribers that are not reliable. Such a subscriber need not read them, and the
/// kernel lets the processes of a user have `RLIMIT_NOFILE` of them in flight (unix(7)).
fn descriptors_in_flight() -> u64 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    limit / 2
}

/// Puts a parcel on the line of a subscriber, or withdraws one. `false`: the subscriber does without it, or has gone.
fn post(
    publisher: &Endpoint<Broadcast>,
    reader: &ActiveReader<ReaderLink>,
    doorbell: &Doorbell,
    attachments: &[AttachmentRef<'_>],
    number: u64,
) -> Result<bool, Errno> {
    let Err(errno) = doorbell.try_post(attachments, Some(number)) else {
        return Ok(true);
    };
    let is_withdrawal = attachments.is_empty();
    let what = match (errno, reader.delivery) {
        (errno, _) if is_gone(errno) => return Ok(false),
        // The caller's own descriptor.
        (Errno::EINVAL | Errno::EBADF, _) => return Err(errno),
        (_, Delivery::BestEffort | Delivery::Latest) if !is_withdrawal => return Ok(false),
        // An honest subscriber leaves room on its line.
        (Errno::EAGAIN, Delivery::BestEffort | Delivery::Latest) => {
            "it has left more attachments on the line than it accepts"
        }
        // If this process may send without descriptors, the subscriber's socket refuses them (SO_PASSRIGHTS).
        (Errno::EPERM, _) if !is_withdrawal && doorbell.try_post(&[], Some(number)) != Err(errno) => {
            "its line refuses the attachments that it accepts"
        }
        _ => return Err(errno),
    };
    if let Some(link) = publisher.link(reader.number) {
        // Ends the channel with this reason. The other subscribers go on.
        let _ = link.judge::<()>(Err(Error::RingCorrupt(what.into())));
    }
    Ok(false)
}
