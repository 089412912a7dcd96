//! Attachments of messages: both halves of a channel send and receive them here.
//!
//! The sending half puts them on the line before it publishes the record that announces them, so the receiving half
//! finds them there. `wake/attachments.rs` has the form in which they travel.

use std::{sync::atomic::Ordering, time::Instant};

use crate::{
    channel::end::ChannelState,
    channel::outbound::Begun,
    channel::receiver::Receiver,
    channel::sender::Sender,
    channel::unread::{Incoming, Load},
    error::{Error, Result},
    ring::message::Progress,
    ring::record::Tag,
    wake::attachments::{Attachment, AttachmentRef},
};

impl Sender {
    /// Sends a message with attachments like [`Sender::send`]. Waits also while the peer holds as many unread attachments as it
    /// accepts.
    ///
    /// # Errors
    /// As [`Sender::send`]; [`Error::InvalidArgument`] if the peer does not accept attachments of these kinds
    /// ([`Options::attachments`](crate::Options::attachments)); [`Error::MessageTooLarge`] if it never accepts so many or so large
    /// ones; [`Error::NoSpace`] if the kernel does not pass them. Nothing was sent then.
    ///
    /// ```no_run
    /// use ringfence::SealedBuffer;
    ///
    /// # fn main() -> ringfence::Result<()> {
    /// # let address: ringfence::Address = "@frames".parse()?;
    /// # let (mut sender, _receiver) = ringfence::join(&address, &ringfence::Options::new())?.split();
    /// let frame = SealedBuffer::create(1 << 24, |bytes| bytes.fill(255))?;
    /// sender.send_with(b"a white frame", &[(&frame).into()])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<()> {
        self.send_with_by(message, attachments, None)
    }

    /// Sends like [`Sender::send_with`], up to a deadline: see [`Sender::send_until`].
    ///
    /// # Errors
    /// As [`Sender::send_with`], and [`Error::TimedOut`].
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
        let mut written = loop {
            match self.send_part_with(message, attachments)? {
                Progress::Whole => return Ok(()),
                Progress::Part(0) => {}
                Progress::Part(written) => break written,
            }
            self.own.wanted = self.own.check(attachments)?;
            let waited = self.wait(message.len(), deadline);
            self.own.wanted = Load::default();
            if !waited? {
                return Err(Error::TimedOut);
            }
        };
        while self.wait(message.len(), deadline)? {
            match self.send_part(message, written)? {
                Progress::Whole => return Ok(()),
                Progress::Part(more) => written = more,
            }
        }
        Err(Error::TimedOut)
    }

    /// Starts a message with attachments, as [`Sender::send_part`] does with 0 bytes written, which continues it.
    ///
    /// # Errors
    /// As [`Sender::send_with`].
    pub fn send_part_with(&mut self, message: &[u8], attachments: &[AttachmentRef<'_>]) -> Result<Progress> {
        let load = self.own.check(attachments)?;
        if attachments.is_empty() || self.begun != Begun::Nothing {
            return self.send_part(message, 0);
        }
        if !self.has_room(message.len())? || !self.fits(load)? {
            return Ok(Progress::Part(0));
        }
        let count =
            u8::try_from(attachments.len()).map_err(|_| Error::invalid("attachments: at most 253"))?;
        // There is room for the record, so nothing comes between the attachments and it.
        self.shared.doorbell.post(attachments)?;
        let sent = self.send_part_tagged(message, Tag::with_attachments(count), 0)?;
        let (_, end) = self.positions()?;
        self.own.add(load, end);
        let counter = &self.shared.counters.attachments_sent;
        counter.fetch_add(load.count, Ordering::Relaxed);
        Ok(sent)
    }

    fn positions(&mut self) -> Result<(u64, u64)> {
        let writing = self.writing_on()?;
        let positions = writing.ring.positions();
        writing.shared.judge(positions)
    }

    fn fits(&mut self, load: Load) -> Result<bool> {
        if load == Load::default() || self.own.is_empty() {
            return Ok(true);
        }
        let (head, _) = self.positions()?;
        Ok(self.own.fits(load, head))
    }

    /// Whether the peer accepts the attachments that this half waits to send.
    pub(super) fn fits_unread(&mut self) -> Result<bool> {
        self.fits(self.own.wanted)
    }
}

impl Receiver {
    /// Takes the attachments of the last received message that has some. The next such message drops those that were not taken,
    /// and [`receive_each`](Receiver::receive_each) returns after it has visited one.
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
        std::mem::take(&mut self.ring.incoming.attachments)
    }

    /// Gets the attachments of the next message, which has this tag, before it is consumed: if that fails for a local reason, the
    /// message stays with its attachments.
    #[inline]
    pub(super) fn collect(&mut self, tag: Tag) -> Result<()> {
        if tag.attachments() == 0 {
            return Ok(());
        }
        self.collect_some(tag.attachments())
    }

    #[cold]
    fn collect_some(&mut self, count: usize) -> Result<()> {
        let at = self.ring.consumer.position();
        if self.ring.incoming.at == Some(at) {
            return Ok(());
        }
        let collected = self.shared.doorbell.collect(count);
        self.shared.notice();
        if let Err(Error::ObjectUnsound { .. }) = collected {
            self.shared.finish(ChannelState::Corrupt);
        }
        let attachments = self.judge(collected)?;
        let counter = &self.shared.counters.attachments_received;
        counter.fetch_add(count as u64, Ordering::Relaxed);
        self.ring.incoming = Incoming {
            attachments,
            at: Some(at),
        };
        Ok(())
    }

    /// As [`Receiver::collect`], for a message that is about to be gathered.
    pub(super) fn collect_next(&mut self) -> Result<()> {
        if self.ring.consumer.is_gathering() {
            return Ok(());
        }
        let next = self.ring.consumer.next_record();
        match self.judge(next)? {
            Some(record) => self.collect(record.tag),
            None => Ok(()),
        }
    }
}
