//! ringfence itself, through the same public API that every user has.

use std::hint::spin_loop;

use anyhow::Result;
use ringfence::{Address, Message, Options, Receiver, Sender};

use crate::driver::{Contender, Job, Measure, Outcome, Setup, Wait, run_a, run_b};
use crate::work::{
    BATCH, Buffer, Work, buffer, fill_bytes, one_or_none, poll, poll_sum, sum_bytes, sum_item,
};

/// Records that are handed out by value: no long ones, which would each need a place on the stack.
macro_rules! short_sizes {
    ($run:ident, $job:expr) => {
        match $job.size {
            8 => $run::<Run<1>>($job),
            64 => $run::<Run<8>>($job),
            256 => $run::<Run<32>>($job),
            1024 => $run::<Run<128>>($job),
            _ => anyhow::bail!("not one of the sizes compiled in"),
        }
    };
}

pub fn takes_run(measure: Measure, size: usize) -> Result<(), &'static str> {
    match (measure, size) {
        (Measure::Batch, 8 | 64 | 256 | 1024) => Ok(()),
        (Measure::Batch, _) => Err("records of a fixed size; this one is not compiled in"),
        _ => Err("only batches"),
    }
}

pub fn a_run(job: &Job) -> Result<Outcome> {
    short_sizes!(run_a, job)
}

pub fn b_run(job: &Job) -> Result<()> {
    short_sizes!(run_b, job)
}

/// Fills messages `n` to `end` into one batch, publishes it, and returns how far it has come: the ring may be full before.
macro_rules! send_batch {
    ($sender:expr, $work:expr, $n:expr, $end:expr) => {{
        let mut n = $n;
        let mut batch = $sender.batch()?;
        while n < $end {
            let Some(bytes) = batch.reserve($work.size)? else {
                break;
            };
            $crate::work::fill_bytes(bytes, $work.first_word(n));
            n += 1;
        }
        batch.publish();
        n
    }};
}
pub(crate) use send_batch;

/// Writes message `n` in place, once there is room.
macro_rules! send_in_place {
    ($sender:expr, $work:expr, $n:expr) => {
        loop {
            if let Some(mut message) = $sender.reserve($work.size)? {
                $crate::work::fill_bytes(&mut message, $work.first_word($n));
                message.commit($work.size)?;
                break;
            }
            std::hint::spin_loop();
        }
    };
}
pub(crate) use send_in_place;

/// Writes `most` records of one size in place, if there is room for them: how many it has written.
macro_rules! send_run {
    ($sender:expr, $words:ident, $work:expr, $n:expr, $most:expr) => {
        match $sender.reserve_items::<[u64; $words]>($most)? {
            None => {
                std::hint::spin_loop();
                0
            }
            Some(mut run) => {
                for (item, n) in run.iter_mut().zip($n..) {
                    $crate::work::fill_item(item, $work.first_word(n));
                }
                run.commit($most)?;
                $most as u64
            }
        }
    };
}
pub(crate) use send_run;

/// Reads up to `most` messages by words: how many there were, and their sum.
macro_rules! drain {
    ($source:expr, $most:expr) => {{
        let mut total = 0u64;
        let add = |message: ::ringfence::Message<'_>| total = message.words().fold(total, u64::wrapping_add);
        ($source.receive_each(add, $most)? as u64, total)
    }};
}
pub(crate) use drain;

/// Reads up to `most` runs of records of one size: how many records there were, and their sum.
macro_rules! drain_runs {
    ($source:expr, $words:ident, $most:expr) => {{
        let (mut n, mut total, mut others) = (0, 0u64, 0);
        let add = |message: ::ringfence::Message<'_>| match $crate::ringfence::sum_run::<$words>(message) {
            Some((count, sum)) => {
                n += count;
                total = sum.wrapping_add(total);
            }
            None => others += 1,
        };
        $source.receive_each(add, $most)?;
        anyhow::ensure!(others == 0, "{others} messages were no run");
        (n, total)
    }};
}
pub(crate) use drain_runs;

/// Messages that one call to `drain` may hand over.
pub const DRAIN: usize = 256;
/// Bytes of a run of records of one size.
const RUN: usize = 16 * 1024;

pub struct Side {
    sender: Sender,
    receiver: Receiver,
    buffer: Buffer,
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let address = format!("@{}", setup.job.tag).parse::<Address>()?;
        let mut options = Options::new().capacity(setup.job.ring_bytes() as u64);
        if setup.job.measure == Measure::RttParked {
            options = options.busy_poll(std::time::Duration::ZERO);
        }
        let (sender, receiver) = ringfence::join(&address, &options)?.split();
        Ok(Self {
            sender,
            receiver,
            buffer: buffer(setup.job.size),
        })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        match measure {
            Measure::Copy => {
                for n in 0..work.count {
                    fill_bytes(&mut self.buffer, work.first_word(n));
                    while !self.sender.try_send(&self.buffer)? {
                        spin_loop();
                    }
                }
            }
            Measure::Batch => {
                let mut n = 0;
                while n < work.count {
                    let end = (n + BATCH as u64).min(work.count);
                    n = send_batch!(self.sender, work, n, end);
                }
            }
            _ => {
                for n in 0..work.count {
                    send_in_place!(self.sender, work, n);
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, measure: Measure) -> Result<u64> {
        poll_sum(work.count, spin_loop, |_| {
            if measure == Measure::Copy {
                let length = self.receiver.try_receive(&mut self.buffer)?;
                return Ok(one_or_none(
                    length.map(|length| sum_bytes(&self.buffer[..length])),
                ));
            }
            Ok(drain!(self.receiver, DRAIN))
        })
    }

    #[inline(always)]
    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()> {
        let bytes = &mut self.buffer[..words * 8];
        fill_bytes(bytes, start);
        if wait == Wait::Poll {
            while !self.sender.try_send(bytes)? {
                std::hint::spin_loop();
            }
        } else {
            self.sender.send(bytes)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64> {
        let bytes = &mut self.buffer[..words * 8];
        let length = if wait == Wait::Poll {
            poll(|| Ok(self.receiver.try_receive(bytes)?))?
        } else {
            self.receiver
                .receive(bytes)?
                .ok_or_else(|| anyhow::anyhow!("the channel ended"))?
        };
        Ok(sum_bytes(&bytes[..length]))
    }
}

/// Counts the records of one size in a message, and adds up their words. `None`: it is no run of them.
#[inline(always)]
pub fn sum_run<const W: usize>(message: Message<'_>) -> Option<(u64, u64)> {
    let items = message.items::<[u64; W]>()?;
    let count = items.len() as u64;
    Some((
        count,
        items.map(|item| sum_item(&item)).fold(0, u64::wrapping_add),
    ))
}

/// Records of one size, many to a message.
pub struct Run<const W: usize>(Side);

impl<const W: usize> Contender for Run<W> {
    fn open(setup: &mut Setup) -> Result<Self> {
        Side::open(setup).map(Self)
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        let mut n = 0;
        while n < work.count {
            let most = (RUN / work.size).max(1).min((work.count - n) as usize);
            n += send_run!(self.0.sender, W, work, n, most);
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        poll_sum(work.count, spin_loop, |_| {
            Ok(drain_runs!(self.0.receiver, W, DRAIN))
        })
    }

    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()> {
        self.0.send_one(words, start, wait)
    }

    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64> {
        self.0.receive_one(words, wait)
    }
}
