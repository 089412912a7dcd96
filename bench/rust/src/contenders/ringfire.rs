//! ringfire: its lossless ring for small messages, its blobs for long ones.

use std::hint::spin_loop;

use anyhow::{Result, bail, ensure};
use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, FlowControl, FutexWait, RingConsumer, RingProducer,
    RingProducerBuilder,
};

use crate::driver::{Contender, Job, Measure, Outcome, Setup, Wait, run_a, run_b};
use crate::work::{
    BATCH, Work, fill_bytes, fill_item, one_or_none, poll_sum, sum_bytes, sum_item, sum_items,
};

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

macro_rules! run {
    ($run:ident, $job:ident) => {
        match $job.size {
            64 => $run::<Ring<8>>($job),
            256 => $run::<Ring<32>>($job),
            1024 => $run::<Ring<128>>($job),
            4096 => $run::<Ring<512>>($job),
            _ => $run::<Blobs>($job),
        }
    };
}

pub fn a(job: &Job) -> Result<Outcome> {
    run!(run_a, job)
}

pub fn b(job: &Job) -> Result<()> {
    run!(run_b, job)
}

fn path(setup: &Setup, way: &str) -> String {
    format!("/dev/shm/{}.{way}", setup.job.tag)
}

pub fn none_lost(count: u64) -> Result<()> {
    ensure!(count == 0, "{count} messages lost");
    Ok(())
}

/// Pushes messages one at a time, or in batches.
pub fn push_all<const W: usize>(producer: &mut RingProducer<[u64; W]>, work: &Work, batched: bool) {
    if batched {
        let mut batch = [[0u64; W]; BATCH];
        for first in (0..work.count).step_by(BATCH) {
            for (item, n) in batch.iter_mut().zip(first..) {
                fill_item(item, work.first_word(n));
            }
            producer.push_batch(&batch);
        }
    } else {
        let mut item = [0u64; W];
        for n in 0..work.count {
            fill_item(&mut item, work.first_word(n));
            producer.push(&item);
        }
    }
}

/// Blobs have no backpressure of their own: the readers' registered positions stand in for it. One slot is kept free, since a blob is
/// written before its descriptor is published.
pub fn push_blobs(producer: &mut BlobProducer<()>, work: &Work) -> Result<()> {
    for n in 0..work.count {
        while producer.headroom() < 2 {
            spin_loop();
        }
        producer.push_with(&(), work.size, |bytes| fill_bytes(bytes, work.first_word(n)))?;
    }
    Ok(())
}

pub fn take_blobs(consumer: &mut BlobConsumer<()>, work: &Work, idle: fn()) -> Result<u64> {
    let total = poll_sum(work.count, idle, |_| {
        Ok(one_or_none(consumer.view(|(), bytes| sum_bytes(bytes))?))
    });
    none_lost(consumer.lapped_count())?;
    total
}

pub struct Ring<const W: usize> {
    producer: RingProducer<[u64; W]>,
    consumer: RingConsumer<[u64; W]>,
    batch: Vec<[u64; W]>,
}

impl<const W: usize> Contender for Ring<W> {
    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = setup.ways();
        let producer = RingProducerBuilder::new(setup.job.slots() as u64)
            .flow_control(FlowControl::LosslessBackpressure)
            .max_readers(1)
            .build(path(setup, out))?;
        setup.meet()?;
        let consumer = RingConsumer::attach(path(setup, back))?;
        // The producer does not wait for readers that have not registered yet.
        setup.meet()?;
        Ok(Self {
            producer,
            consumer,
            batch: vec![[0; W]; 256],
        })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        push_all(&mut self.producer, work, measure == Measure::Batch);
        Ok(())
    }

    fn consume(&mut self, work: &Work, measure: Measure) -> Result<u64> {
        let total = if measure == Measure::Batch {
            poll_sum(
                work.count,
                || (),
                |_| {
                    let count = self.consumer.recv_batch(&mut self.batch);
                    Ok((count as u64, sum_items(&self.batch[..count])))
                },
            )
        } else {
            poll_sum(work.count, spin_loop, |_| {
                Ok(one_or_none(self.consumer.try_recv().map(|item| sum_item(&item))))
            })
        };
        none_lost(self.consumer.lapped_count())?;
        total
    }

    #[inline(always)]
    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        let mut item = [0u64; W];
        fill_item(&mut item, start);
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
        Ok(sum_item(&item))
    }
}

pub struct Blobs {
    producer: BlobProducer<()>,
    consumer: BlobConsumer<()>,
}

impl Contender for Blobs {
    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = setup.ways();
        let producer = BlobProducerBuilder::new(setup.job.slots() as u64, setup.job.ring_bytes())
            .max_readers(1)
            .build(path(setup, out))?;
        setup.meet()?;
        let consumer = BlobConsumer::attach(path(setup, back))?;
        setup.meet()?;
        Ok(Self { producer, consumer })
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        push_blobs(&mut self.producer, work)
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        take_blobs(&mut self.consumer, work, spin_loop)
    }

    fn send_one(&mut self, _: usize, _: u64, _: Wait) -> Result<()> {
        bail!("round trips go through the ring")
    }

    fn receive_one(&mut self, _: usize, _: Wait) -> Result<u64> {
        bail!("round trips go through the ring")
    }
}
