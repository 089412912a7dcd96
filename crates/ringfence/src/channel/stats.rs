//! What a channel has done so far, for people and programs that watch it.
//!
//! Each half counts what it does itself. What it has counted is told to [`Counters`] once in a lap of its ring, when it sleeps, when it
//! is asked and when it is gone: from there other threads read it, also after the channel's end.

use std::{
    ops::AddAssign,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::ring::tally::Tally;

/// What a channel has done since it was made, and how full its ring is.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Messages that are in the ring, or were read there. One that failed or was given up is not counted.
    pub messages_sent: u64,
    /// Bytes of their payloads.
    pub bytes_sent: u64,
    /// Messages that were handed out.
    pub messages_received: u64,
    /// Bytes of their payloads.
    pub bytes_received: u64,
    /// Calls of [`Sender::send`](crate::Sender::send) that had to wait for room.
    pub waits: u64,
    /// How long they waited, in microseconds.
    pub waited_micros: u64,
    /// How often this side has woken its peer.
    pub bells_rung: u64,
    /// How often this side has gone to sleep, for want of messages or of room.
    pub sleeps: u64,
    /// Bytes of this side's ring that the peer has not read. After the end: as it was when it was last known.
    pub ring_used: u64,
    /// Bytes of this side's ring.
    pub ring_capacity: u64,
    /// Bytes of a message under way that are not in the ring yet.
    pub staged: u64,
}

impl AddAssign for ChannelStats {
    fn add_assign(&mut self, other: Self) {
        self.messages_sent += other.messages_sent;
        self.bytes_sent += other.bytes_sent;
        self.messages_received += other.messages_received;
        self.bytes_received += other.bytes_received;
        self.waits += other.waits;
        self.waited_micros += other.waited_micros;
        self.bells_rung += other.bells_rung;
        self.sleeps += other.sleeps;
        self.ring_used += other.ring_used;
        self.ring_capacity += other.ring_capacity;
        self.staged += other.staged;
    }
}

/// What the halves of a channel have told last. Stays after the channel's end.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: Arc<Tally>,
    pub(crate) received: Arc<Tally>,
    waits: AtomicU64,
    waited_micros: AtomicU64,
    sleeps: AtomicU64,
    /// Counted by the line.
    rung: Arc<AtomicU64>,
    used: AtomicU64,
    capacity: AtomicU64,
}

impl Counters {
    pub(crate) fn new(rung: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            rung: Arc::clone(rung),
            ..Self::default()
        })
    }

    /// Bytes of this side's ring.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    /// A half lies down.
    pub(crate) fn slept(&self) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::Relaxed)
    }

    /// A call had to wait for room, from this moment until now.
    pub(crate) fn waited(&self, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.waited_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many calls had to wait, and for how many microseconds.
    pub(crate) fn waits(&self) -> (u64, u64) {
        let micros = self.waited_micros.load(Ordering::Relaxed);
        (self.waits.load(Ordering::Relaxed), micros)
    }

    /// Bytes of the ring that are not read.
    pub(crate) fn set_used(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// What was told so far.
    pub(crate) fn told(&self) -> ChannelStats {
        let (messages_sent, bytes_sent) = self.sent.get();
        let (messages_received, bytes_received) = self.received.get();
        let (waits, waited_micros) = self.waits();
        ChannelStats {
            messages_sent,
            bytes_sent,
            messages_received,
            bytes_received,
            waits,
            waited_micros,
            bells_rung: self.rung.load(Ordering::Relaxed),
            sleeps: self.sleeps(),
            ring_used: self.used.load(Ordering::Relaxed),
            ring_capacity: self.capacity.load(Ordering::Relaxed),
            staged: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Each figure another, so that none is taken for another one.
    fn figures(of: u64) -> ChannelStats {
        ChannelStats {
            messages_sent: of,
            bytes_sent: of * 2,
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
    fn a_sum_has_the_sum_of_each_figure() {
        let mut sum = figures(3);
        sum += figures(4);
        assert_eq!(sum, figures(7));
    }

    #[test]
    fn what_the_halves_have_counted_is_told() {
        let rung = Arc::new(AtomicU64::new(6));
        let counters = Counters::new(&rung);
        counters.set_capacity(4096);
        counters.set_used(72);
        for _ in 0..3 {
            counters.slept();
        }
        let since = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        counters.waited(since);
        counters.waited(since);
        rung.store(7, Ordering::Relaxed);
        let waited_micros = counters.told().waited_micros;
        assert!(waited_micros >= 200_000_000, "{waited_micros}");
        assert_eq!(counters.waits(), (2, waited_micros));
        assert_eq!(counters.sleeps(), 3);
        let told = ChannelStats {
            waits: 2,
            waited_micros,
            bells_rung: 7,
            sleeps: 3,
            ring_used: 72,
            ring_capacity: 4096,
            ..ChannelStats::default()
        };
        assert_eq!(counters.told(), told);
    }
}
