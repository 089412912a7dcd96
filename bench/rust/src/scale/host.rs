//! The process that sends and measures.

use std::process::Child;

use anyhow::{Context, Result, bail};
use ringfence::{Options, Publisher};

use super::side::{Answer, Channels, Flow, Order, Resources, keep_a_thread, resources};
use crate::clock;
use crate::driver::{Usage, pin, spawn_self, usage, warmed_up};
use crate::line::{self, Line};
use crate::ringfence::send_batch;
use crate::work::{Work, fill_bytes, sum_bytes};

/// The same work by one thread, with plain memory in the ring's place: written, copied in and out in the parts in which a
/// channel does it, summed. The machine's own cost, before there is a channel.
pub(super) fn alone(capacity: usize, size: usize, seconds: f64) -> Result<f64> {
    let (mut from, mut ring, mut to) = (vec![0; size], vec![0; capacity], vec![0; size]);
    let part = if size > capacity / 2 { capacity / 8 } else { size };
    let mut place = 0;
    let mut stretch = |count: u64| -> Result<f64> {
        let work = Work::new(size, count);
        let mut total = 0u64;
        let started = clock::now();
        for n in 0..work.count {
            fill_bytes(&mut from, work.first_word(n));
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                if place + part > capacity {
                    place = 0;
                }
                let ring = &mut ring[place..place + from.len()];
                ring.copy_from_slice(from);
                to.copy_from_slice(std::hint::black_box(ring));
                place += part;
            }
            total = total.wrapping_add(sum_bytes(&to));
        }
        if total != work.expected_sum() {
            bail!("what was copied is not what was there");
        }
        Ok(work.count as f64 / ((clock::now() - started) as f64 / 1e9))
    };
    let rate = stretch((1 << 20) / size as u64 + 1)?;
    let rate = stretch((rate * seconds / 5.0) as u64 + 1)?;
    stretch((rate * seconds) as u64 + 1)
}

/// The CPU time of the longest of the steps that follow each other for 20 ms, in nanoseconds. Few steps: what they publish must fit the ring.
pub(super) fn longest_of(mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    const MARGIN: u64 = 20_000_000;
    let started = clock::now();
    let mut longest = 0;
    while clock::now() - started < MARGIN {
        let before = clock::thread_cpu();
        step()?;
        longest = longest.max(clock::thread_cpu() - before);
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    Ok(longest as f64)
}

/// This process, which sends and measures.
pub(super) struct Host {
    channels: Channels,
    publisher: Option<Publisher>,
    line: Line,
    peer: Child,
    size: usize,
}

impl Host {
    pub(super) fn start(tag: &str, capacity: usize, size: usize) -> Result<Self> {
        pin(0)?;
        keep_a_thread();
        let listener = line::listen(tag)?;
        let peer = spawn_self(&["scale-peer", tag, &capacity.to_string(), &size.to_string()])?;
        let line = Line::accept(&listener)?;
        Ok(Self {
            channels: Channels::new(tag, capacity, size)?,
            publisher: None,
            line,
            peer,
            size,
        })
    }

    /// Joins `count` channels. Returns the seconds from the later side's call until both sides have them.
    pub(super) fn join(&mut self, count: usize) -> Result<f64> {
        self.line.send(&Order::Join(count))?;
        let started = clock::now();
        self.channels.join(count)?;
        let joined = clock::now();
        let answer: Answer = self.line.receive()?;
        Ok((answer.finished.max(joined) - answer.started.max(started)) as f64 / 1e9)
    }

    /// Publishes, has the other process subscribe so often, and returns the seconds that the latter took.
    pub(super) fn publish(&mut self, capacity: usize, count: usize) -> Result<f64> {
        let options = Options::new()
            .capacity(capacity as u64)
            .max_message_size(self.size as u64)
            .max_peers(count + 1)
            .max_peers_per_process(count + 1)
            .max_peers_per_user(count + 1);
        self.publisher = Some(ringfence::publish(&self.channels.publisher()?, &options)?);
        let started = clock::now();
        self.line.send(&Order::Subscribe(count))?;
        let answer: Answer = self.line.receive()?;
        Ok((answer.finished - started) as f64 / 1e9)
    }

    /// Has one more subscriber join, or one leave: returns the CPU time of the longest publish in the meantime, in nanoseconds.
    pub(super) fn change(&mut self, joins: bool) -> Result<f64> {
        let work = Work::new(self.size, 1);
        let publisher = self.publisher.as_mut().context("a publisher")?;
        self.line.send(&if joins {
            Order::Subscribe(1)
        } else {
            Order::Unsubscribe
        })?;
        let longest = longest_of(|| {
            send_batch!(publisher, work, 0, 1);
            Ok(())
        })?;
        let _: Answer = self.line.receive()?;
        Ok(longest)
    }

    /// Drops all channels, or all subscriptions, on both sides, and returns the seconds that took.
    pub(super) fn release(&mut self) -> Result<f64> {
        self.line.send(&Order::Release)?;
        let started = clock::now();
        self.channels.release();
        let answer: Answer = self.line.receive()?;
        Ok((answer.finished.max(clock::now()) - started) as f64 / 1e9)
    }

    /// Of both processes together.
    pub(super) fn resources(&mut self) -> Result<Resources> {
        self.line.send(&Order::Resources)?;
        let theirs: Answer = self.line.receive()?;
        let mine = resources()?;
        Ok(Resources {
            descriptors: mine.descriptors + theirs.resources.descriptors,
            // Both map the same pages.
            shared_kib: mine.shared_kib.max(theirs.resources.shared_kib),
        })
    }

    /// Sends nothing for a while: returns what both processes together have used, and the seconds.
    pub(super) fn idle(&mut self, seconds: f64) -> Result<(Usage, f64)> {
        let milliseconds = (seconds * 1000.0) as u64;
        self.line.send(&Order::Idle(milliseconds))?;
        let (mine, seconds) = self.channels.idle(milliseconds)?;
        let mut both = mine.and(self.line.receive::<Answer>()?.usage);
        // The one sleep that each of them ends by its own clock is not the channels' doing.
        both.sleeps = both.sleeps.saturating_sub(2);
        Ok((both, seconds))
    }

    /// `batch` messages to each channel in turn. `merged`: the other process reads them by one merge.
    pub(super) fn busy(&mut self, seconds: f64, batch: usize, merged: bool) -> Result<Flow> {
        let channels = self.channels.ends.len() as u64;
        self.timed(
            seconds,
            4096.max(channels * batch as u64),
            if merged { Order::Merged } else { Order::Busy },
            |host, work| {
                let mut n = 0;
                while n < work.count {
                    for (sender, _) in &mut host.channels.ends {
                        let end = (n + batch as u64).min(work.count);
                        while n < end {
                            n = send_batch!(sender, work, n, end);
                        }
                    }
                }
                Ok(())
            },
        )
    }

    /// Publishes, `batch` messages at a time, to all subscriptions.
    pub(super) fn broadcast(&mut self, seconds: f64, batch: usize) -> Result<Flow> {
        self.timed(seconds, 256, Order::ReceiveEach, |host, work| {
            let publisher = host.publisher.as_mut().context("a publisher")?;
            let mut n = 0;
            while n < work.count {
                n = send_batch!(publisher, work, n, (n + batch as u64).min(work.count));
            }
            Ok(())
        })
    }

    /// Messages through the first channel, by plain send and receive, which know fragments.
    pub(super) fn stream(&mut self, seconds: f64) -> Result<Flow> {
        let first = (16 << 20) / self.size as u64 + 1;
        self.timed(seconds, first, Order::Stream, |host, work| {
            let (sender, _) = host.channels.ends.first_mut().context("a channel")?;
            let buffer = &mut host.channels.buffer;
            for n in 0..work.count {
                fill_bytes(buffer, work.first_word(n));
                if work.size as u64 > sender.max_at_once() {
                    sender.send(buffer)?;
                } else {
                    while !sender.try_send(buffer)? {
                        std::hint::spin_loop();
                    }
                }
            }
            Ok(())
        })
    }

    pub(super) fn max_at_once(&self) -> u64 {
        self.channels
            .ends
            .first()
            .map_or(0, |(sender, _)| sender.max_at_once())
    }

    /// Microseconds of the median round trip over the last channel, the peer asleep on all of them.
    pub(super) fn woken(&mut self, count: u64) -> Result<f64> {
        self.line.send(&Order::Woken(count))?;
        // Until the peer sleeps.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let size = self.size;
        let (sender, receiver) = self.channels.ends.last_mut().context("a channel")?;
        let buffer = &mut self.channels.buffer;
        let mut times = Vec::new();
        for n in 0..count {
            fill_bytes(&mut buffer[..size], n);
            let started = clock::now();
            sender.send(&buffer[..size])?;
            receiver.receive(buffer)?.context("the channel ended")?;
            times.push((clock::now() - started) as f64 / 1e3);
        }
        let _: Answer = self.line.receive()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    pub(super) fn quit(mut self) -> Result<()> {
        self.line.send(&Order::Quit)?;
        drop((self.channels, self.publisher));
        self.peer.wait()?;
        Ok(())
    }

    /// Warms up, then sends for so long; the sums are compared.
    fn timed(
        &mut self,
        seconds: f64,
        first: u64,
        order: fn(u64) -> Order,
        send: impl Fn(&mut Self, &Work) -> Result<()>,
    ) -> Result<Flow> {
        let mut stretch = |count: u64| -> Result<(u64, f64, Usage)> {
            let work = Work::new(self.size, count);
            self.line.send(&order(work.count))?;
            let (before, started) = (usage(false), clock::now());
            send(self, &work)?;
            let mine = Usage::since(false, before);
            let answer: Answer = self.line.receive()?;
            if answer.sum != work.expected_sum() {
                bail!("what arrived is not what was sent");
            }
            let seconds = (answer.finished - started) as f64 / 1e9;
            Ok((work.count, seconds, mine.and(answer.usage)))
        };
        let count = warmed_up(seconds, first, |count| {
            let (sent, taken, _) = stretch(count)?;
            Ok((sent, taken))
        })?;
        let (sent, seconds, usage) = stretch(count)?;
        Ok(Flow {
            messages_per_second: sent as f64 / seconds,
            cpu_ns_per_message: usage.cpu_ns as f64 / sent as f64,
            preempted_per_second: usage.preempted as f64 / seconds,
        })
    }
}
