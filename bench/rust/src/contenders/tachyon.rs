//! Tachyon: a ring of records each way, read in place; a futex for sleeping.

use std::time::Duration;

use anyhow::{Result, bail};
use tachyon_ipc::{Bus, TachyonError};

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{BATCH, Work, fill_bytes, poll, poll_sum, sum_bytes};

/// The reader releases 32 messages at a time. A ring that holds fewer would block the sender for ever.
const LEAST: usize = 64;

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Copy => Err("in place only"),
        _ if size > 1 << 20 => Err("its reader releases 32 messages at a time: up to 1 MiB"),
        _ => Ok(()),
    }
}

/// Messages that one call to `drain_batch` may return.
const DRAIN: usize = 256;
/// Empty checks before it sleeps, as in its own examples.
const SPINS: u32 = 10_000;

pub struct Side {
    sender: Bus,
    receiver: Bus,
}

fn connect(path: &str) -> Result<Bus> {
    for _ in 0..500 {
        if let Ok(bus) = Bus::connect(path) {
            return Ok(bus);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("tachyon: nothing listens at {path}")
}

fn convert<T>(result: std::result::Result<T, TachyonError>) -> Result<T> {
    result.map_err(|error| anyhow::anyhow!("tachyon: {error:?}"))
}

impl Side {
    #[inline(always)]
    fn send(&self, bytes: usize, start: u64, flushes: bool) -> Result<()> {
        let mut message = poll(|| match self.sender.acquire_tx(bytes) {
            Ok(message) => Ok(Some(message)),
            Err(TachyonError::BufferFull) => {
                // What was committed without a flush is not yet visible to the reader.
                self.sender.flush();
                Ok(None)
            }
            Err(error) => convert(Err(error)),
        })?;
        // SAFETY: all bytes are written before the message is committed.
        fill_bytes(unsafe { message.as_mut_slice() }, start);
        convert(if flushes {
            message.commit(bytes, 1)
        } else {
            message.commit_unflushed(bytes, 1)
        })
    }
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let folder = std::env::temp_dir();
        let path = |way| format!("{}/{}.{way}", folder.display(), setup.job.tag);
        let capacity = setup
            .job
            .ring_bytes()
            .max(LEAST * setup.job.size.next_power_of_two());
        let listen = |way| convert(Bus::listen(&path(way), capacity));
        let (sender, receiver) = if setup.side == Which::A {
            (listen("ping")?, connect(&path("pong"))?)
        } else {
            let receiver = connect(&path("ping"))?;
            (listen("pong")?, receiver)
        };
        if !matches!(
            setup.job.measure,
            Measure::RttParked | Measure::RttSpin | Measure::Paced
        ) {
            // Neither side sleeps, so neither looks for a sleeper.
            sender.set_polling_mode(1);
            receiver.set_polling_mode(1);
        }
        Ok(Self { sender, receiver })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        let every = if measure == Measure::Batch {
            BATCH as u64
        } else {
            1
        };
        for n in 0..work.count {
            self.send(work.size, work.first_word(n), n % every == every - 1)?;
        }
        self.sender.flush();
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        poll_sum(work.count, std::hint::spin_loop, |left| {
            let messages = convert(self.receiver.drain_batch(DRAIN.min(left as usize), u32::MAX))?;
            let sum = messages.iter().fold(0, |total: u64, message| {
                total.wrapping_add(sum_bytes(message.data()))
            });
            let count = messages.len() as u64;
            convert(messages.commit())?;
            Ok((count, sum))
        })
    }

    #[inline(always)]
    fn send_one(&mut self, words: usize, start: u64, _: Wait) -> Result<()> {
        self.send(words * 8, start, true)
    }

    #[inline(always)]
    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        let message = convert(self.receiver.acquire_rx(match wait {
            Wait::Poll => u32::MAX,
            Wait::Spin => SPINS,
            Wait::Park => 0,
        }))?;
        let sum = sum_bytes(message.data());
        convert(message.commit())?;
        Ok(sum)
    }
}
