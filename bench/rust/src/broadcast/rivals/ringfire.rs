//! ringfire: its lossless ring for messages of one compiled-in size, its blobs for long ones.

use std::thread::yield_now;

use anyhow::Result;
use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, FlowControl, RingConsumer, RingProducer,
    RingProducerBuilder,
};

use crate::broadcast::driver::{Job, Outcome, Publish, Subscribe, publisher, subscriber};
use crate::contenders::ringfire::{none_lost, push_all, push_blobs, take_blobs};
use crate::work::{Work, poll_sum, sum_items};

/// From here on messages go through blobs: elements pass by value, several copies each.
const BLOB: usize = 16 * 1024;

pub fn takes(size: usize, batch: bool) -> Result<(), &'static str> {
    match (size, batch) {
        (BLOB.., true) => Err("one blob a push"),
        (64 | 1024 | BLOB.., _) => Ok(()),
        _ => Err("elements of a fixed size; this one is not compiled in"),
    }
}

pub fn publish(job: &Job) -> Result<Outcome> {
    match job.size {
        64 => publisher::<Ring<8>>(job),
        1024 => publisher::<Ring<128>>(job),
        _ => publisher::<Blobs>(job),
    }
}

pub fn subscribe(job: &Job) -> Result<()> {
    match job.size {
        64 => subscriber::<RingReader<8>>(job),
        1024 => subscriber::<RingReader<128>>(job),
        _ => subscriber::<BlobReader>(job),
    }
}

fn path(job: &Job) -> String {
    format!("/dev/shm/{}.ring", job.tag)
}

pub struct Ring<const W: usize>(RingProducer<[u64; W]>);

impl<const W: usize> Publish for Ring<W> {
    fn open(job: &Job) -> Result<Self> {
        let producer = RingProducerBuilder::new(job.slots() as u64)
            .flow_control(FlowControl::LosslessBackpressure)
            .max_readers(job.subscribers)
            .build(path(job))?;
        Ok(Self(producer))
    }

    fn publish(&mut self, work: &Work, batch: bool) -> Result<()> {
        push_all(&mut self.0, work, batch);
        Ok(())
    }
}

pub struct RingReader<const W: usize> {
    consumer: RingConsumer<[u64; W]>,
    batch: Vec<[u64; W]>,
}

impl<const W: usize> Subscribe for RingReader<W> {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self {
            consumer: RingConsumer::attach(path(job))?,
            batch: vec![[0; W]; 256],
        })
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let total = poll_sum(work.count, yield_now, |left| {
            let most = self.batch.len().min(left as usize);
            let count = self.consumer.recv_batch(&mut self.batch[..most]);
            Ok((count as u64, sum_items(&self.batch[..count])))
        });
        none_lost(self.consumer.lapped_count())?;
        total
    }
}

pub struct Blobs(BlobProducer<()>);

impl Publish for Blobs {
    fn open(job: &Job) -> Result<Self> {
        let producer = BlobProducerBuilder::new(job.slots() as u64, job.ring_bytes())
            .max_readers(job.subscribers)
            .build(path(job))?;
        Ok(Self(producer))
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        push_blobs(&mut self.0, work)
    }
}

pub struct BlobReader(BlobConsumer<()>);

impl Subscribe for BlobReader {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self(BlobConsumer::attach(path(job))?))
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        take_blobs(&mut self.0, work, yield_now)
    }
}
