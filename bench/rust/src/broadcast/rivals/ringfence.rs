//! ringfence: one publisher's ring that all subscribers read; and beside it what took its place before, a channel to each.

use std::thread::yield_now;

use anyhow::{Result, bail};
use ringfence::{Address, Arrival, Delivery, Listener, Options, Publisher, Receiver, Sender, Subscription};

use crate::broadcast::blocked::STALL;
use crate::broadcast::driver::{Job, Publish, Subscribe};
use crate::driver::Ready;
use crate::line::Line;
use crate::ringfence::{DRAIN, drain, drain_runs, send_batch, send_in_place, send_run};
use crate::work::{BATCH, Work, poll_sum};

fn address(job: &Job) -> Result<Address> {
    Ok(format!("@{}", job.tag).parse()?)
}

fn options(job: &Job) -> Options {
    Options::new().capacity(job.ring_bytes() as u64)
}

/// Room for all subscribers, which belong to one user.
fn peers(options: Options, job: &Job) -> Options {
    options.max_peers(64.max(job.subscribers + job.idle))
}

impl Publish for Publisher {
    fn open(job: &Job) -> Result<Self> {
        let options = peers(options(job).stall(STALL), job);
        Ok(ringfence::publish(&address(job)?, &options)?)
    }

    fn publish(&mut self, work: &Work, batch: bool) -> Result<()> {
        let mut n = 0;
        while batch && n < work.count {
            n = send_batch!(self, work, n, (n + BATCH as u64).min(work.count));
        }
        for n in n..work.count {
            send_in_place!(self, work, n);
        }
        Ok(())
    }
}

impl Subscribe for Subscription {
    fn open(job: &Job) -> Result<Self> {
        Ok(ringfence::subscribe(&address(job)?, &Options::new())?)
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        poll_sum(work.count, yield_now, |left| {
            Ok(drain!(self, DRAIN.min(left as usize)))
        })
    }
}

/// A subscriber that loses what it does not read in time: `LATEST` skips to the newest.
pub struct Lossy<const LATEST: bool> {
    subscription: Subscription,
    read: u64,
}

impl<const LATEST: bool> Subscribe for Lossy<LATEST> {
    fn open(job: &Job) -> Result<Self> {
        let delivery = if LATEST {
            Delivery::Latest
        } else {
            Delivery::BestEffort
        };
        let options = Options::new().delivery(delivery);
        Ok(Self {
            subscription: ringfence::subscribe(&address(job)?, &options)?,
            read: 0,
        })
    }

    /// Until it has come to the last message: a sum of all of them says nothing here, so each message is one without a gap, and
    /// later than the one before.
    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let (mut next, mut wrong) = (0, 0);
        self.read = 0;
        while next < work.first_word(work.count) {
            let seen = self.subscription.receive_each(
                |message| {
                    let mut words = message.words();
                    let Some(first) = words.next() else { return };
                    let sum = words.fold(first, u64::wrapping_add);
                    wrong += u64::from(first < next || sum != work.message_sum(first));
                    next = first + work.words as u64;
                },
                DRAIN,
            )?;
            self.read += seen as u64;
            if seen == 0 {
                yield_now();
            }
        }
        anyhow::ensure!(wrong == 0, "{wrong} messages were torn, or came twice");
        Ok(work.expected_sum())
    }

    fn read(&self, _: &Work) -> u64 {
        self.read
    }
}

/// Subscribes, and never reads.
pub fn idle(job: &Job) -> Result<()> {
    let options = Options::new().delivery(Delivery::BestEffort);
    let _subscription = ringfence::subscribe(&address(job)?, &options)?;
    Line::connect(&job.tag)?.send(&Ready)?;
    loop {
        std::thread::park();
    }
}

/// Messages of one size, a batch of them as one message.
pub struct Runs<const W: usize>(Publisher);

impl<const W: usize> Publish for Runs<W> {
    fn open(job: &Job) -> Result<Self> {
        <Publisher as Publish>::open(job).map(Self)
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        let mut n = 0;
        while n < work.count {
            n += send_run!(self.0, W, work, n, BATCH);
        }
        Ok(())
    }
}

/// The other end of [`Runs`].
pub struct RunReader<const W: usize>(Subscription);

impl<const W: usize> Subscribe for RunReader<W> {
    fn open(job: &Job) -> Result<Self> {
        <Subscription as Subscribe>::open(job).map(Self)
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        poll_sum(work.count, yield_now, |left| {
            Ok(drain_runs!(self.0, W, DRAIN.min(left as usize / BATCH)))
        })
    }
}

/// A service, and a channel to each subscriber.
pub struct Pairs {
    listener: Listener,
    // Nothing is received: dropping the receiver would end the channel.
    channels: Vec<(Sender, Receiver)>,
}

impl Publish for Pairs {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self {
            listener: ringfence::listen(&address(job)?, &peers(options(job), job))?,
            channels: Vec::new(),
        })
    }

    fn admit(&mut self, job: &Job) -> Result<()> {
        while self.channels.len() < job.subscribers {
            match self.listener.accept()? {
                Arrival::Accepted(channel) => self.channels.push(channel.split()),
                refused => bail!("{refused:?}"),
            }
        }
        Ok(())
    }

    fn publish(&mut self, work: &Work, batch: bool) -> Result<()> {
        let step = if batch { BATCH } else { 1 };
        for first in (0..work.count).step_by(step) {
            let end = (first + step as u64).min(work.count);
            for (sender, _) in &mut self.channels {
                let mut n = first;
                while batch && n < end {
                    n = send_batch!(sender, work, n, end);
                }
                for n in n..end {
                    send_in_place!(sender, work, n);
                }
            }
        }
        Ok(())
    }
}

/// The other end of one of [`Pairs`].
pub struct Pair((Sender, Receiver));

impl Subscribe for Pair {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self(ringfence::connect(&address(job)?, &options(job))?.split()))
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let Self((_, receiver)) = self;
        poll_sum(work.count, yield_now, |left| {
            Ok(drain!(receiver, DRAIN.min(left as usize)))
        })
    }
}
