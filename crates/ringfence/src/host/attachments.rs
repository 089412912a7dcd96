//! Attachments of published messages: each subscriber gets descriptors of its own, of the same objects.

use std::{mem, time::Instant};

use crate::{
    channel::end::ChannelState,
    channel::outbound::Outlet,
    channel::unread::{Load, Outgoing},
    error::{Error, Result},
    handshake::broadcast::ReaderBell,
    host::broadcaster::{Broadcaster, charge},
    host::stalls::Goal,
    ring::delivery::Delivery,
    ring::fan_out::FanOut,
    ring::fan_out::readers::ActiveReader,
    ring::record::Tag,
    wake::attachments::{AttachmentRef, MOST},
};

impl Broadcaster {
    /// Publishes a message with attachments like [`Broadcaster::send`]. Waits also while a reliable subscriber holds as many unread
    /// attachments as it accepts.
    ///
    /// A subscriber gets the message without its attachments if it does not accept them ([`Options::attachments`](crate::Options)); if it
    /// is not a reliable one, also while it holds too many. [`PublisherStats::attachments_withheld`](crate::PublisherStats) counts them.
    ///
    /// # Errors
    /// As [`Broadcaster::send`]; [`Error::MessageTooLarge`] for more than 253 attachments; [`Error::NoSpace`] if the kernel does not pass
    /// them to a reliable subscriber. Nothing was published then.
    pub fn send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<()> {
        self.send_with_by(message, attachments, None)
    }

    /// Publishes like [`Broadcaster::send_with`], up to a deadline.
    ///
    /// # Errors
    /// As [`Broadcaster::send_with`], and [`Error::TimedOut`].
    pub fn send_with_until(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        deadline: Instant,
    ) -> Result<()> {
        self.send_with_by(message, attachments, Some(deadline))
    }

    fn send_with_by(
        &mut self,
        message: &[u8],
        attachments: &[AttachmentRef<'_>],
        deadline: Option<Instant>,
    ) -> Result<()> {
        if self.try_send_with(message, attachments)? {
            return Ok(());
        }
        let since = Instant::now();
        let sent = loop {
            self.own.attached.awaited = self.own.attached.full;
            let waited = self.wait(message.len(), deadline);
            self.own.attached.awaited = None;
            let sent = match waited {
                Ok(true) => self.try_send_with(message, attachments),
                Ok(false) => Err(Error::TimedOut),
                Err(error) => Err(error),
            };
            match sent {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        FanOut::waited(self, since, sent.is_err());
        sent
    }

    /// Publishes a message with attachments. `false`: there is no room now, or a reliable subscriber holds as many unread attachments as
    /// it accepts. Call it again once [`Broadcaster::arm_with`] says so.
    ///
    /// # Errors
    /// As [`Broadcaster::send_with`].
    pub fn try_send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<bool> {
        self.own.attached.full = None;
        if attachments.is_empty() {
            return self.try_send(message);
        }
        let too_many = Error::MessageTooLarge {
            size: attachments.len(),
            limit: MOST as u64,
            reason: "the number of attachments that the kernel passes at once",
        };
        let count = u8::try_from(attachments.len()).map_err(|_| too_many)?;
        self.writing()?;
        if !self.has_room(message.len())? {
            return self.not_sent(Ok(false), message.len());
        }
        let readers = self.shared.ring.readers.active();
        self.forget_the_gone(&readers);
        let Some(loads) = self.loads(&readers, attachments) else {
            return Ok(false);
        };
        let number = self.sequence() + 1;
        let passed = pass(&readers, &loads, attachments, number);
        let published = match passed.failed {
            Some(error @ Error::NoSpace { .. }) => self.not_passed(&readers[passed.loads.len()], error),
            Some(error) => Err(error),
            // A subscriber that starts at the oldest message may have taken the room.
            None => self.try_send_tagged(message, Tag::with_attachments(count)),
        };
        if !matches!(published, Ok(true)) {
            self.withdraw(&readers, &passed.loads, number);
            return published;
        }
        let end = self.writing()?.ring.tail();
        let attached = &mut self.own.attached;
        for (reader, passed) in readers.iter().zip(passed.loads) {
            match passed.zip(attached.unread.get_mut(&reader.number)) {
                Some((load, unread)) => {
                    unread.add(load, end);
                    attached.sent += load.count;
                }
                None => attached.withheld += u64::from(count),
            }
        }
        Ok(true)
    }

    /// Reports that this half sleeps, like [`Broadcaster::arm`], until the message of `size` bytes that [`Broadcaster::try_send_with`] has
    /// refused finds room.
    ///
    /// # Errors
    /// As [`Broadcaster::arm`].
    pub fn arm_with(&mut self, size: usize) -> Result<bool> {
        self.own.attached.awaited = self.own.attached.full;
        let armed = self.arm(size);
        self.own.attached.awaited = None;
        armed
    }

    fn forget_the_gone(&mut self, readers: &[ActiveReader<ReaderBell>]) {
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
        readers: &[ActiveReader<ReaderBell>],
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

    /// A reliable subscriber's line takes no more attachments. `false`: try again once it has read those that it has.
    fn not_passed(&mut self, reader: &ActiveReader<ReaderBell>, error: Error) -> Result<bool> {
        let unread = self.own.attached.unread.get(&reader.number);
        if let Some(goal) = unread.and_then(Outgoing::last) {
            self.wait_for(reader.number, goal);
            return Ok(false);
        }
        let doorbell = reader.attached.doorbell.upgrade();
        if doorbell.is_some_and(|doorbell| doorbell.is_hoarded())
            && let Some(link) = self.shared.link(reader.number)
        {
            let what = "it has read messages, and has left their attachments on the line";
            // Ends the channel with this reason. The other subscribers go on.
            let _ = link.judge::<()>(Err(Error::RingCorrupt(what.into())));
            return Ok(false);
        }
        Err(error)
    }

    /// Withdraws the attachments of a message that is not published: the next message has the same number.
    fn withdraw(&self, readers: &[ActiveReader<ReaderBell>], passed: &[Option<Load>], number: u64) {
        for (reader, _) in readers.iter().zip(passed).filter(|(_, load)| load.is_some()) {
            let doorbell = reader.attached.doorbell.upgrade();
            let withdrawn = doorbell.map(|doorbell| doorbell.post(&[], Some(number)));
            if let Some(Err(Error::NoSpace { .. })) = withdrawn
                && let Some(link) = self.shared.link(reader.number)
            {
                // It must not receive them with the wrong message. An honest subscriber leaves room on the line.
                link.finish(ChannelState::Evicted);
            }
        }
    }
}

/// The result of passing attachments.
struct Passed {
    /// The load that each subscriber got, in the order of the list.
    loads: Vec<Option<Load>>,
    failed: Option<Error>,
}

/// Puts the attachments on the lines of these subscribers, up to the first error.
fn pass(
    readers: &[ActiveReader<ReaderBell>],
    loads: &[Option<Load>],
    attachments: &[AttachmentRef<'_>],
    number: u64,
) -> Passed {
    let mut passed = Passed {
        loads: Vec::with_capacity(readers.len()),
        failed: None,
    };
    for (reader, load) in readers.iter().zip(loads) {
        let doorbell = load.and_then(|_| reader.attached.doorbell.upgrade());
        let posted = doorbell.map(|doorbell| doorbell.post(attachments, Some(number)));
        passed.loads.push(match posted {
            Some(Ok(())) => *load,
            Some(Err(Error::NoSpace { .. })) if reader.delivery != Delivery::Reliable => None,
            None | Some(Err(Error::PeerLost(_))) => None,
            Some(Err(error)) => {
                passed.failed = Some(error);
                break;
            }
        });
    }
    passed
}
