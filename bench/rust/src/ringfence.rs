//! ringfence itself, through the same public API that every user has.

use anyhow::Result;
use ringfence::{Address, Message, Options, Receiver, Sender};

use crate::driver::{Contender, Job, Measure, Outcome, Setup, Wait, run_a, run_b};
use crate::work::{BATCH, Buffer, Work, buffer, fill, fill_bytes, sum, sum_bytes};

pub fn takes(_: Measure, _: usize) -> Result<(), &'static str> {
    Ok(())
}

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

/// How long a side of the spin-then-park measure spins: longer than a round trip between two awake cores, far
/// shorter than a time slice.
const SPIN: std::time::Duration = std::time::Duration::from_micros(50);
/// Messages that one call to `drain` may hand over.
const DRAIN: usize = 256;
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
        if setup.job.measure == Measure::RttSpin {
            options = options.busy_poll(SPIN);
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
                        std::hint::spin_loop();
                    }
                }
            }
            Measure::Batch => {
                let mut n = 0;
                while n < work.count {
                    let mut batch = self.sender.batch()?;
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
            }
            _ => {
                for n in 0..work.count {
                    let mut message = loop {
                        match self.sender.reserve(work.size)? {
                            Some(message) => break message,
                            None => std::hint::spin_loop(),
                        }
                    };
                    fill_bytes(&mut message, work.first_word(n));
                    message.commit(work.size)?;
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, measure: Measure) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        if measure == Measure::Copy {
            while n < work.count {
                match self.receiver.try_receive(&mut self.buffer)? {
                    Some(length) => {
                        total = total.wrapping_add(sum_bytes(&self.buffer[..length]));
                        n += 1;
                    }
                    None => std::hint::spin_loop(),
                }
            }
        } else {
            while n < work.count {
                let seen = self.receiver.receive_each(
                    |message| total = message.words().fold(total, u64::wrapping_add),
                    DRAIN,
                )?;
                n += seen as u64;
                if seen == 0 {
                    std::hint::spin_loop();
                }
            }
        }
        Ok(total)
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
            loop {
                match self.receiver.try_receive(bytes)? {
                    Some(length) => break length,
                    None => std::hint::spin_loop(),
                }
            }
        } else {
            self.receiver
                .receive(bytes)?
                .ok_or_else(|| anyhow::anyhow!("the channel ended"))?
        };
        Ok(sum_bytes(&bytes[..length]))
    }
}

/// Fills records of one size, of which the first is the `n`th.
#[inline(always)]
pub fn fill_items<const W: usize>(run: &mut [[u64; W]], work: &Work, n: u64) {
    for (item, n) in run.iter_mut().zip(n..) {
        // SAFETY: an array of that many words.
        unsafe { fill(item.as_mut_ptr().cast(), W, work.first_word(n)) };
    }
}

/// How many records of one size a message has, and the sum of their words. `None`: it is no run of them.
#[inline(always)]
pub fn sum_items<const W: usize>(message: Message<'_>) -> Option<(u64, u64)> {
    let items = message.items::<[u64; W]>()?;
    let count = items.len() as u64;
    // SAFETY: an array of that many words.
    let add = |total: u64, item: [u64; W]| total.wrapping_add(unsafe { sum(item.as_ptr().cast(), W) });
    Some((count, items.fold(0, add)))
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
            let Some(mut run) = self.0.sender.reserve_items::<[u64; W]>(most)? else {
                std::hint::spin_loop();
                continue;
            };
            fill_items(&mut run, work, n);
            run.commit(most)?;
            n += most as u64;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let (mut n, mut total, mut others) = (0, 0u64, 0);
        while n < work.count {
            let seen = self.0.receiver.receive_each(
                |message| match sum_items::<W>(message) {
                    Some((count, sum)) => {
                        n += count;
                        total = sum.wrapping_add(total);
                    }
                    None => others += 1,
                },
                DRAIN,
            )?;
            if seen == 0 {
                std::hint::spin_loop();
            }
        }
        anyhow::ensure!(others == 0, "{others} messages were no run");
        Ok(total)
    }

    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()> {
        self.0.send_one(words, start, wait)
    }

    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64> {
        self.0.receive_one(words, wait)
    }
}
