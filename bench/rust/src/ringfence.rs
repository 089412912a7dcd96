//! ringfence itself, through the same public API that every user has.

use anyhow::Result;
use ringfence::{Address, Options, Receiver, Sender};

use crate::driver::{Contender, Measure, Setup, Wait};
use crate::work::{BATCH, Work, fill_bytes, sum_bytes};

pub fn takes(_: Measure, _: usize) -> Result<(), &'static str> {
    Ok(())
}

/// How long a side of the spin-then-park measure spins: longer than a round trip between two awake cores, far
/// shorter than a time slice.
const SPIN: std::time::Duration = std::time::Duration::from_micros(50);
/// Messages that one call to `drain` may hand over.
const DRAIN: usize = 256;

pub struct Side {
    sender: Sender,
    receiver: Receiver,
    buffer: Vec<u8>,
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
            buffer: vec![0; setup.job.size],
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
                let seen = self.receiver.drain(
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
