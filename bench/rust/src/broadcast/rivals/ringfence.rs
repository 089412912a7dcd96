//! ringfence: one publisher's ring that all subscribers read; and beside it what took its place before, a channel to each.

use anyhow::{Result, bail};
use ringfence::{Address, Arrival, Delivery, Listener, Options, Publisher, Receiver, Sender, Subscription};

use crate::broadcast::blocked::STALL;
use crate::broadcast::driver::{Job, Publish, Ready, Subscribe, nothing_there};
use crate::line::Line;
use crate::ringfence::{fill_items, sum_items};
use crate::work::{BATCH, Work, fill_bytes};

/// Messages that one call to `drain` may hand over.
const DRAIN: usize = 256;

fn address(job: &Job) -> Result<Address> {
    Ok(format!("@{}", job.tag).parse()?)
}

fn options(job: &Job) -> Options {
    Options::new().capacity(job.ring_bytes() as u64)
}

impl Publish for Publisher {
    fn open(job: &Job) -> Result<Self> {
        let options = options(job).stall(STALL).max_peers(64);
        Ok(ringfence::publish(&address(job)?, &options)?)
    }

    fn publish(&mut self, work: &Work, batch: bool) -> Result<()> {
        let mut n = 0;
        while batch && n < work.count {
            let mut batch = self.batch()?;
            let end = (n + BATCH as u64).min(work.count);
            while n < end {
                let Some(bytes) = batch.reserve(work.size)? else {
                    break;
                };
                fill_bytes(bytes, work.first_word(n));
                n += 1;
            }
            batch.publish();
        }
        while n < work.count {
            let Some(mut message) = self.reserve(work.size)? else {
                std::hint::spin_loop();
                continue;
            };
            fill_bytes(&mut message, work.first_word(n));
            message.commit(work.size)?;
            n += 1;
        }
        Ok(())
    }
}

impl Subscribe for Subscription {
    fn open(job: &Job) -> Result<Self> {
        Ok(ringfence::subscribe(&address(job)?, &Options::new())?)
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            let most = DRAIN.min((work.count - n) as usize);
            let seen = self.receive_each(
                |message| total = message.words().fold(total, u64::wrapping_add),
                most,
            )?;
            n += seen as u64;
            if seen == 0 {
                nothing_there();
            }
        }
        Ok(total)
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
                nothing_there();
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
            let Some(mut run) = self.0.reserve_items::<[u64; W]>(BATCH)? else {
                std::hint::spin_loop();
                continue;
            };
            fill_items(&mut run, work, n);
            run.commit(BATCH)?;
            n += BATCH as u64;
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
        let (mut n, mut total, mut others) = (0, 0u64, 0);
        while n < work.count {
            let most = DRAIN.min((work.count - n) as usize / BATCH);
            let seen = self.0.receive_each(
                |message| match sum_items::<W>(message) {
                    Some((count, sum)) => {
                        n += count;
                        total = sum.wrapping_add(total);
                    }
                    None => others += 1,
                },
                most,
            )?;
            if seen == 0 {
                nothing_there();
            }
        }
        anyhow::ensure!(others == 0, "{others} messages were no run");
        Ok(total)
    }
}

/// A service, and a channel to each subscriber.
pub struct Pairs {
    listener: Listener,
    senders: Vec<Sender>,
    // What would be received: letting go of it would end the channel.
    receivers: Vec<Receiver>,
}

impl Publish for Pairs {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self {
            listener: ringfence::listen(&address(job)?, &options(job).max_peers(64))?,
            senders: Vec::new(),
            receivers: Vec::new(),
        })
    }

    fn admit(&mut self, job: &Job) -> Result<()> {
        while self.senders.len() < job.subscribers {
            match self.listener.accept()? {
                Arrival::Accepted(channel) => {
                    let (sender, receiver) = channel.split();
                    self.senders.push(sender);
                    self.receivers.push(receiver);
                }
                refused => bail!("{refused:?}"),
            }
        }
        Ok(())
    }

    fn publish(&mut self, work: &Work, batch: bool) -> Result<()> {
        if batch {
            return self.publish_batches(work);
        }
        for n in 0..work.count {
            for sender in &mut self.senders {
                let mut message = loop {
                    match sender.reserve(work.size)? {
                        Some(message) => break message,
                        None => std::hint::spin_loop(),
                    }
                };
                fill_bytes(&mut message, work.first_word(n));
                message.commit(work.size)?;
            }
        }
        Ok(())
    }
}

impl Pairs {
    fn publish_batches(&mut self, work: &Work) -> Result<()> {
        for first in (0..work.count).step_by(BATCH) {
            for sender in &mut self.senders {
                let (mut n, end) = (first, (first + BATCH as u64).min(work.count));
                while n < end {
                    let mut batch = sender.batch()?;
                    while n < end {
                        let Some(bytes) = batch.reserve(work.size)? else {
                            break;
                        };
                        fill_bytes(bytes, work.first_word(n));
                        n += 1;
                    }
                    batch.publish();
                }
            }
        }
        Ok(())
    }
}

/// The other end of one of [`Pairs`].
pub struct Pair {
    // The other half: letting go of it would end this side's sending, which costs nothing and says nothing here.
    _sender: Sender,
    receiver: Receiver,
}

impl Subscribe for Pair {
    fn open(job: &Job) -> Result<Self> {
        let (sender, receiver) = ringfence::connect(&address(job)?, &options(job))?.split();
        Ok(Self {
            _sender: sender,
            receiver,
        })
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            let seen = self.receiver.receive_each(
                |message| total = message.words().fold(total, u64::wrapping_add),
                DRAIN.min((work.count - n) as usize),
            )?;
            n += seen as u64;
            if seen == 0 {
                nothing_there();
            }
        }
        Ok(total)
    }
}
