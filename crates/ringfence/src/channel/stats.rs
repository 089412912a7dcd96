//! Statistics of a channel.
//!
//! Each half counts its own work. It publishes its counts to [`Counters`] once per lap of its ring, when it
//! sleeps, when it is asked, and when it is dropped. Other threads read them there, also after the channel
//! has ended.

use std::{
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::ring::spsc::Tally;

/// The work that a channel has done since it was made, and how full its ring is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Messages put into the ring. Messages that failed or were given up are not counted.
    pub messages_sent: u64,
    /// Bytes in their payloads.
    pub bytes_sent: u64,
    /// Attachments that were sent with messages.
    pub attachments_sent: u64,
    /// Attachments that were received with messages.
    pub attachments_received: u64,
    /// Messages that were received by the program.
    pub messages_received: u64,
    /// Bytes in their payloads.
    pub bytes_received: u64,
    /// Calls of [`Sender::send`](crate::Sender::send) that had to wait for room.
    pub waits: u64,
    /// The total time of those waits, in microseconds.
    pub waited_micros: u64,
    /// Number of times that this side has woken its peer.
    pub bells_rung: u64,
    /// Number of times that this side has gone to sleep, waiting for messages or for room.
    pub sleeps: u64,
    /// Bytes of this side's ring that the peer has not read. After the end: the last known value.
    pub ring_used: u64,
    /// Capacity of this side's ring in bytes.
    pub ring_capacity: u64,
    /// Bytes of an unfinished message that are not in the ring yet.
    pub staged: u64,
}

impl AddAssign for ChannelStats {
    fn add_assign(&mut self, other: Self) {
        macro_rules! add {
            ($($field:ident)+) => { $(self.$field += other.$field;)+ };
        }
        add! {
            messages_sent bytes_sent attachments_sent attachments_received messages_received bytes_received
            waits waited_micros bells_rung sleeps ring_used ring_capacity staged
        }
    }
}

/// The counts that the halves of a channel have last published. They remain readable after the channel has
/// ended.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: Arc<Tally>,
    pub(crate) received: Arc<Tally>,
    /// Written by the sending half and by the receiving half.
    pub(crate) attachments_sent: AtomicU64,
    pub(crate) attachments_received: AtomicU64,
    waits: AtomicU64,
    waited_micros: AtomicU64,
    /// The number of times that a half went to sleep.
    pub(crate) sleeps: AtomicU64,
    /// Counted by the line.
    wakeups: Arc<AtomicU64>,
    /// Unread bytes in this side's ring.
    pub(crate) used: AtomicU64,
    /// Bytes of this side's ring.
    capacity: u64,
}

impl Counters {
    pub(crate) fn new(wakeups: &Arc<AtomicU64>, capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            wakeups: Arc::clone(wakeups),
            ..Self::default()
        })
    }

    /// Counts a call that has waited for room since this moment.
    pub(crate) fn count_wait(&self, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the published counts.
    pub(crate) fn snapshot(&self) -> ChannelStats {
        let (messages_sent, bytes_sent) = self.sent.get();
        let (messages_received, bytes_received) = self.received.get();
        ChannelStats {
            messages_sent,
            bytes_sent,
            messages_received,
            bytes_received,
            attachments_sent: self.attachments_sent.load(Ordering::Relaxed),
            attachments_received: self.attachments_received.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            waited_micros: self.waited_micros.load(Ordering::Relaxed),
            bells_rung: self.wakeups.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            ring_used: self.used.load(Ordering::Relaxed),
            ring_capacity: self.capacity,
            staged: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Distinct figures, so that a mix-up of fields is detected.
    fn figures(of: u64) -> ChannelStats {
        ChannelStats {
            messages_sent: of,
            bytes_sent: of * 2,
            attachments_sent: of * 31,
            attachments_received: of * 37,
            messages_received: of * 3,
            bytes_received: of * 5,
            waits: of * 7,
            waited_micros: of * 11,
            bells_rung: of * 13,
            sleeps: of * 17,
            ring_used: of * 19,
            ring_capacity: of * 23,
            staged: of * 29,
        }
    }

    #[test]
    fn sums_add_each_field() {
        let mut sum = figures(3);
        sum += figures(4);
        assert_eq!(sum, figures(7));
    }

    #[test]
    fn snapshot_returns_the_counts_of_both_halves() {
        let rung = Arc::new(AtomicU64::new(6));
        let counters = Counters::new(&rung, 4096);
        counters.used.store(72, Ordering::Relaxed);
        counters.sleeps.store(3, Ordering::Relaxed);
        let since = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        counters.count_wait(since);
        counters.count_wait(since);
        rung.store(7, Ordering::Relaxed);
        let waited_micros = counters.snapshot().waited_micros;
        assert!(waited_micros >= 200_000_000, "{waited_micros}");
        let told = ChannelStats {
            waits: 2,
            waited_micros,
            bells_rung: 7,
            sleeps: 3,
            ring_used: 72,
            ring_capacity: 4096,
            ..ChannelStats::default()
        };
        assert_eq!(counters.snapshot(), told);
    }
}
