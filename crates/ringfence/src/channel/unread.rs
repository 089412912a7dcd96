//! Attachments that were sent and that the peer has not read, and those that the program has not taken.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    error::{Error, Result},
    wake::attachments::{Attachment, AttachmentRef, Attachments, MAX_COUNT, discard},
};

/// The most messages with attachments that the peer has not read. The line's buffer has room for about 220 of their parcels (212,992
/// bytes, up to 960 for each), and the remainder is for wakeups.
const MAX_ON_LINE: usize = 128;

/// Sent attachments that the peer has not read.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// The attachments that the peer accepts.
    accepts: Attachments,
    /// The number and the bytes of the attachments of each unread message, and the position at which its first record ends.
    unread: VecDeque<(u64, Load)>,
    sum: Load,
    /// The attachments for which this half waits.
    pub(super) wanted: Load,
    /// At a publisher: the message whose attachments are on the line, and that is not published. The next one may have its number.
    pub(crate) unpublished: Option<u64>,
    /// At a publisher: what was put on the line since that was last found empty, whatever the subscriber claims to have read.
    pub(crate) on_line: OnLine,
}

/// The content that a publisher has put on a line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OnLine {
    pub(crate) descriptors: u64,
    /// Parcels of messages that were not published, and withdrawals.
    pub(crate) surplus: usize,
}

/// A number of attachments, and the bytes of the sealed buffers among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Outgoing {
    pub(crate) fn new(accepts: Attachments) -> Self {
        Self {
            accepts,
            ..Self::default()
        }
    }

    /// Returns the load of these attachments. Fails if the peer never accepts them.
    pub(crate) fn check(&self, attachments: &[AttachmentRef<'_>]) -> Result<Load> {
        let mut load = Load::default();
        for attachment in attachments {
            let (accepted, name) = match attachment {
                AttachmentRef::Sealed(_) => (self.accepts.sealed, "sealed buffers"),
                AttachmentRef::Descriptor(_) => (self.accepts.descriptors, "descriptors"),
            };
            if !accepted {
                return Err(Error::invalid(format!(
                    "the peer does not accept {name}: open its side with the option `attachments`"
                )));
            }
            load.count += 1;
            load.bytes = load.bytes.saturating_add(attachment.bytes());
        }
        let max = (MAX_COUNT as u64).min(self.accepts.max_count.into());
        if load.count > max {
            let reason = "the number of attachments that the peer takes";
            return Err(Error::too_large(attachments.len(), max, reason));
        }
        if load.bytes > self.accepts.max_bytes {
            let reason = "the bytes of sealed buffers that the peer takes";
            let size = usize::try_from(load.bytes).unwrap_or(usize::MAX);
            return Err(Error::too_large(size, self.accepts.max_bytes, reason));
        }
        Ok(load)
    }

    /// Whether the peer, which has read up to this position, accepts these as well.
    pub(crate) fn fits(&mut self, more: Load, head: u64) -> bool {
        self.release(head);
        self.goal(more) <= head
    }

    /// The attachments of the message with this number were put on the line.
    pub(crate) fn posted(&mut self, load: Load, number: u64) {
        self.unpublished = Some(number);
        self.on_line.descriptors += load.count;
        self.on_line.surplus += 1;
    }

    /// Adds the attachments that were posted last: their message was published, and ends at this position.
    pub(crate) fn published(&mut self, load: Load, end: u64) {
        self.unpublished = None;
        self.on_line.surplus -= 1;
        self.add(load, end);
    }

    /// The parcel of the unpublished message was withdrawn.
    pub(crate) fn withdrawn(&mut self) {
        self.unpublished = None;
        self.on_line.surplus += 1;
    }

    /// The lowest position up to which the peer must have read so that it accepts these as well.
    pub(crate) fn goal(&self, more: Load) -> u64 {
        let (mut messages, mut sum, mut goal) = (self.unread.len(), self.sum, 0);
        for (end, load) in &self.unread {
            if messages < MAX_ON_LINE
                && sum.count + more.count <= self.accepts.max_count.into()
                && sum.bytes + more.bytes <= self.accepts.max_bytes
            {
                break;
            }
            messages -= 1;
            sum.count -= load.count;
            sum.bytes -= load.bytes;
            goal = *end;
        }
        goal
    }

    /// Adds the attachments of a message whose first record ends at this position.
    pub(crate) fn add(&mut self, load: Load, end: u64) {
        self.unread.push_back((end, load));
        self.sum.count += load.count;
        self.sum.bytes += load.bytes;
    }

    /// The position up to which the peer must read all messages with attachments. `None`: it has.
    pub(crate) fn last(&self) -> Option<u64> {
        self.unread.back().map(|(end, _)| *end)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }

    fn release(&mut self, head: u64) {
        while let Some(&(end, load)) = self.unread.front()
            && end <= head
        {
            self.unread.pop_front();
            self.sum.count -= load.count;
            self.sum.bytes -= load.bytes;
        }
    }
}

/// The attachments that a broadcaster has passed. Only the sending half uses this.
#[derive(Debug, Default)]
pub(crate) struct PassedAttachments {
    /// The attachments that each subscriber has not read, by its number in the list of readers.
    pub(crate) unread: BTreeMap<u64, Outgoing>,
    /// Passed attachments: one for each subscriber.
    pub(crate) sent: u64,
    /// Attachments that were not passed to a subscriber.
    pub(crate) withheld: u64,
    /// The reliable subscriber that held too many when a message was refused, and the position up to which it must read.
    pub(crate) full: Option<(u64, u64)>,
    /// The same while this half waits for that subscriber.
    pub(crate) awaited: Option<(u64, u64)>,
}

/// The attachments of the message that was received last, or that is received next.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    pub(super) attachments: Vec<Attachment>,
    /// The position of that message's first record.
    pub(super) at: Option<u64>,
    /// The position behind the message. `None` while its fragments are still arriving.
    pub(super) end: Option<u64>,
}

impl Incoming {
    /// Whether there are some, and the message that ends at this position is theirs.
    #[inline]
    pub(super) fn is_of(&self, position: u64) -> bool {
        !self.attachments.is_empty() && self.end == Some(position)
    }

    /// Takes those of the message that ends at this position, and drops those of an earlier one.
    pub(super) fn take(&mut self, position: u64) -> Vec<Attachment> {
        let found = if self.is_of(position) {
            std::mem::take(&mut self.attachments)
        } else {
            Vec::new()
        };
        if self.end.is_some_and(|end| end < position) {
            self.discard();
        }
        found
    }

    fn discard(&mut self) {
        discard(
            self.attachments
                .drain(..)
                .filter_map(|attachment| match attachment {
                    Attachment::Sealed(_) => None,
                    Attachment::Descriptor(descriptor) => Some(descriptor),
                }),
        );
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_is_the_end_of_the_last_message_to_read() {
        let mut unread = Outgoing::new(Attachments::none().descriptors(true).max_count(3));
        let load = |count| Load { count, bytes: 0 };
        for end in [100, 200, 300] {
            unread.add(load(1), end);
        }
        assert_eq!([1, 2, 3].map(|count| unread.goal(load(count))), [100, 200, 300]);
        assert!(!unread.fits(load(2), 100));
        assert!(unread.fits(load(2), 200));
        assert_eq!(unread.goal(load(2)), 0);
    }
}
