//! ringfire: its lossless ring for small messages, its blobs for long ones.

use anyhow::{Result, bail};
use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, FlowControl, FutexWait, RingConsumer, RingProducer,
    RingProducerBuilder,
};

use crate::driver::{Contender, Job, Measure, Outcome, Setup, Side as Which, Wait, run_a, run_b};
use crate::work::{BATCH, Work, fill, fill_bytes, sum, sum_bytes};

/// From here on messages go through blobs: elements pass by value, several copies each, and fill the stack.
const BLOB: usize = 16 * 1024;

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match (measure, size) {
        (Measure::Copy, _) => Err("the same as one"),
        (Measure::Batch, BLOB..) => Err("one blob a push"),
        (Measure::RttPolled | Measure::RttSpin | Measure::RttParked, BLOB..) => {
            Err("round trips below 16 KiB only")
        }
        (_, 64 | 256 | 1024 | 4096 | BLOB..) => Ok(()),
        _ => Err("elements of a fixed size; this one is not compiled in"),
    }
}

pub fn a(job: &Job) -> Result<Outcome> {
    match job.size {
        64 => run_a::<Ring<8>>(job),
        256 => run_a::<Ring<32>>(job),
        1024 => run_a::<Ring<128>>(job),
        4096 => run_a::<Ring<512>>(job),
        _ => run_a::<Blobs>(job),
    }
}

pub fn b(job: &Job) -> Result<()> {
    match job.size {
        64 => run_b::<Ring<8>>(job),
        256 => run_b::<Ring<32>>(job),
        1024 => run_b::<Ring<128>>(job),
        4096 => run_b::<Ring<512>>(job),
        _ => run_b::<Blobs>(job),
    }
}

fn path(setup: &Setup, way: &str) -> String {
    format!("/dev/shm/{}.{way}", setup.job.tag)
}

fn ways(side: Which) -> (&'static str, &'static str) {
    if side == Which::A {
        ("ping", "pong")
    } else {
        ("pong", "ping")
    }
}

/// Both files exist once both sides have said so.
fn meet(setup: &mut Setup) -> Result<()> {
    let line = setup.line()?;
    line.send(&true)?;
    let _: bool = line.receive()?;
    Ok(())
}

pub struct Ring<const W: usize> {
    producer: RingProducer<[u64; W]>,
    consumer: RingConsumer<[u64; W]>,
    batch: Vec<[u64; W]>,
}

impl<const W: usize> Contender for Ring<W> {
    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = ways(setup.side);
        let producer = RingProducerBuilder::new(setup.job.slots() as u64)
            .flow_control(FlowControl::LosslessBackpressure)
            .max_readers(1)
            .build(path(setup, out))?;
        meet(setup)?;
        let consumer = RingConsumer::attach(path(setup, back))?;
        // The producer does not wait for readers that have not registered yet.
        meet(setup)?;
        Ok(Self {
            producer,
            consumer,
            batch: vec![[0; W]; 256],
        })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        if measure == Measure::Batch {
            let mut batch = [[0u64; W]; BATCH];
            for first in (0..work.count).step_by(BATCH) {
                for (i, item) in batch.iter_mut().enumerate() {
                    // SAFETY: an array of that many words.
                    unsafe { fill(item.as_mut_ptr().cast(), W, work.first_word(first + i as u64)) };
                }
                self.producer.push_batch(&batch);
            }
        } else {
            let mut item = [0u64; W];
            for n in 0..work.count {
                // SAFETY: an array of that many words.
                unsafe { fill(item.as_mut_ptr().cast(), W, work.first_word(n)) };
                self.producer.push(&item);
            }
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, measure: Measure) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        if measure == Measure::Batch {
            while n < work.count {
                let count = self.consumer.recv_batch(&mut self.batch);
                for item in &self.batch[..count] {
                    // SAFETY: an array of that many words.
                    total = total.wrapping_add(unsafe { sum(item.as_ptr().cast(), W) });
                }
                n += count as u64;
            }
        } else {
            while n < work.count {
                match self.consumer.try_recv() {
                    Some(item) => {
                        // SAFETY: an array of that many words.
                        total = total.wrapping_add(unsafe { sum(item.as_ptr().cast(), W) });
                        n += 1;
                    }
                    None => std::hint::spin_loop(),
                }
            }
        }
        if self.consumer.lapped_count() != 0 {
            bail!("{} messages lost", self.consumer.lapped_count());
        }
        Ok(total)
    }

    #[inline(always)]
    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        let mut item = [0u64; W];
        // SAFETY: an array of that many words.
        unsafe { fill(item.as_mut_ptr().cast(), W, start) };
        self.producer.push(&item);
        Ok(())
    }

    #[inline(always)]
    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        let item = match wait {
            Wait::Poll => self.consumer.recv_blocking(&mut ringfire::BusySpin),
            Wait::Spin => self.consumer.recv_blocking(&mut FutexWait::default()),
            Wait::Park => self.consumer.recv_blocking(&mut FutexWait::new(0, None)),
        };
        // SAFETY: an array of that many words.
        Ok(unsafe { sum(item.as_ptr().cast(), W) })
    }
}

pub struct Blobs {
    producer: BlobProducer<()>,
    consumer: BlobConsumer<()>,
}

impl Contender for Blobs {
    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = ways(setup.side);
        let producer = BlobProducerBuilder::new(setup.job.slots() as u64, setup.job.ring_bytes())
            .max_readers(1)
            .build(path(setup, out))?;
        meet(setup)?;
        let consumer = BlobConsumer::attach(path(setup, back))?;
        meet(setup)?;
        Ok(Self { producer, consumer })
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        for n in 0..work.count {
            // Blobs have no backpressure of their own: the reader's registered position stands in for it. One slot
            // is kept free, since a blob is written before its descriptor is published.
            while self.producer.headroom() < 2 {
                std::hint::spin_loop();
            }
            self.producer
                .push_with(&(), work.size, |bytes| fill_bytes(bytes, work.first_word(n)))?;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            match self.consumer.view(|(), bytes| sum_bytes(bytes))? {
                Some(sum) => {
                    total = total.wrapping_add(sum);
                    n += 1;
                }
                None => std::hint::spin_loop(),
            }
        }
        if self.consumer.lapped_count() != 0 {
            bail!("{} messages lost", self.consumer.lapped_count());
        }
        Ok(total)
    }

    fn send_one(&mut self, _: usize, _: u64, _: Wait) -> Result<()> {
        bail!("round trips go through the ring")
    }

    fn receive_one(&mut self, _: usize, _: Wait) -> Result<u64> {
        bail!("round trips go through the ring")
    }
}
