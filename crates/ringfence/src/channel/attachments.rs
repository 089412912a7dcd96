//! Attachments of messages: both halves of a channel send and receive them here.
//!
//! The sending half puts them on the line before it publishes the record that announces them, so the receiving half
//! finds them there. `wake/attachments.rs` has the form in which they travel.
#![expect(private_bounds, reason = "as in `inbound`")]

use std::{mem, sync::atomic::Ordering};

use crate::{
    channel::inbound::{Inbound, Inlet},
    channel::receiver::Receiver,
    channel::sender::Sender,
    channel::subscription::Subscription,
    channel::unread::{Incoming, Load},
    error::{Error, Result},
    ring::message::Progress,
    ring::record::{Record, Tag, WHOLE},
    wake::attachments::{Attachment, AttachmentRef},
};

impl Sender {
    /// Starts a message with attachments. [`Progress::Part`] of 0 bytes: nothing was sent, because the ring has no room, or because the
    /// peer holds as many unread attachments as it accepts. Call it again once [`Sender::arm_with`] reports room. After more bytes,
    /// [`Sender::send_part`] continues the message.
    ///
    /// # Errors
    /// As [`Sender::send_with`].
    pub fn send_part_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<Progress> {
        if attachments.is_empty() {
            return self.send_part(message, 0);
        }
        let load = self.own.check(attachments)?;
        let count =
            u8::try_from(attachments.len()).map_err(|_| Error::invalid("attachments: at most 253"))?;
        // No other message may be in progress: its next record would separate the attachments from their own record.
        self.writing()?;
        if !self.has_room(message.len())? || !self.has_room_for(load)? {
            return Ok(Progress::Part(0));
        }
        if let Err(error) = self.shared.doorbell.post(attachments) {
            self.shared.end_if_gone();
            return Err(if self.is_open() { error } else { self.refusal() });
        }
        let sent = self.send_part_tagged(message, Tag::with_attachments(count), 0)?;
        // It fails if the channel has ended since. Then no later message waits for these attachments.
        if let Ok((_, end)) = self.positions() {
            self.own.add(load, end);
        }
        let counter = &self.shared.counters.attachments_sent;
        counter.fetch_add(load.count, Ordering::Relaxed);
        Ok(sent)
    }

    fn positions(&mut self) -> Result<(u64, u64)> {
        let writing = self.writing_more()?;
        let positions = writing.ring.positions();
        writing.shared.judge(positions)
    }

    /// Whether the peer holds so few unread attachments that it accepts this load, too.
    pub(super) fn has_room_for(&mut self, load: Load) -> Result<bool> {
        if load == Load::default() || self.own.is_empty() {
            return Ok(true);
        }
        let (head, _) = self.positions()?;
        Ok(self.own.fits(load, head))
    }
}

impl<R: Inlet> Inbound<R> {
    /// Takes the attachments of the message that was received last. The next call that receives may drop those that were not taken, as
    /// the end of the channel does. [`receive_each`](Inbound::receive_each) returns after a message with attachments.
    ///
    /// ```no_run
    /// use ringfence::{Attachment, Attachments, Options};
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@frames".parse()?;
    /// let options = Options::new().attachments(Attachments::none().sealed(true));
    /// let (_sender, mut receiver) = ringfence::join(&address, &options)?.split();
    /// while let Some(name) = receiver.receive_vec()? {
    ///     for attachment in receiver.attachments() {
    ///         if let Attachment::Sealed(frame) = attachment {
    ///             println!("{}: {} bytes", String::from_utf8_lossy(&name), frame.len());
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn attachments(&mut self) -> Vec<Attachment> {
        self.incoming.take(self.reader.end_of_last())
    }

    /// Whether the message that was received last has attachments that were not taken.
    #[inline]
    pub fn has_attachments(&self) -> bool {
        self.incoming.is_of(self.reader.end_of_last())
    }

    /// `size` is that of the record at the head, if it is the whole message.
    #[cold]
    fn collect_some(&mut self, count: usize, size: Option<u64>, number: u64) -> Result<()> {
        let at = self.reader.position();
        if self.incoming.at == Some(at) {
            return Ok(());
        }
        // Those that were not taken may hold the descriptors that these need.
        self.incoming = Incoming::default();
        let collected = self.shared.doorbell.collect(count, number);
        self.shared.end_if_gone();
        let violation = match &collected {
            Err(Error::RingCorrupt(what)) => Some(what.clone()),
            Err(error @ Error::ObjectUnsound { .. }) => Some(error.to_string()),
            _ => None,
        };
        if let Some(what) = violation {
            self.shared.finish_corrupt(what);
            // A program may keep this half for long without calling it again.
            self.shared.doorbell.drop_attachments();
        }
        let attachments = self.judge(collected)?;
        let counter = &self.shared.counters.attachments_received;
        counter.fetch_add(attachments.len() as u64, Ordering::Relaxed);
        self.incoming = Incoming {
            attachments,
            at: Some(at),
            end: size.map(|size| at + size),
        };
        Ok(())
    }
}

/// Returns the size of a record that is a whole message.
fn whole_size(record: &Record) -> Option<u64> {
    (record.flags == WHOLE).then_some(record.size)
}

impl Subscription {
    /// As [`Receiver::collect`], for the next message if it has attachments. Returns whether it has.
    pub(super) fn collect_next_tagged(&mut self) -> Result<bool> {
        let next = self.reader.next_tagged();
        self.drop_missed();
        let Some((record, number)) = self.judge(next)? else {
            return Ok(false);
        };
        self.collect_some(record.tag.attachments(), whole_size(&record), number)?;
        self.reader.mark_collected();
        Ok(true)
    }

    /// Drops the attachments of missed messages. To be called before this side shows that it has passed them: the publisher then takes
    /// them for read.
    pub(super) fn drop_missed(&mut self) {
        if !self.ring.collects {
            return;
        }
        let before = mem::replace(&mut self.ring.missed, self.reader.missed());
        if before != self.ring.missed {
            self.shared.doorbell.drop_missed(self.reader.next_number());
        }
    }
}

impl Receiver {
    /// Gets the attachments of the message that starts with this record before it is consumed: if that fails for a local reason, the
    /// message stays with its attachments.
    #[inline]
    pub(super) fn collect(&mut self, first: Record) -> Result<()> {
        if first.tag.attachments() == 0 {
            return Ok(());
        }
        self.collect_some(first.tag.attachments(), whole_size(&first), 0)
    }

    /// As [`Receiver::collect`], for a message that is about to be gathered. `false`: there is none, and the caller reads none: one that
    /// has arrived since may have attachments.
    pub(super) fn collect_next(&mut self) -> Result<bool> {
        if self.reader.is_gathering() {
            return Ok(true);
        }
        let next = self.reader.next_record();
        let next = self.judge(next)?;
        match next {
            Some(record) => self.collect(record)?,
            None => self.wake_if_published(),
        }
        Ok(next.is_some())
    }

    /// The message that was gathered is whole.
    #[inline]
    pub(super) fn mark_gathered(&mut self) {
        if self.reader.limit.tag.attachments() > 0 {
            self.incoming.end = Some(self.reader.position());
        }
    }
}
