//! ringfire: its lossless ring for messages of one compiled-in size, its blobs for long ones.

use anyhow::{Result, bail};
use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, FlowControl, RingConsumer, RingProducer,
    RingProducerBuilder,
};

use crate::broadcast::driver::{Job, Outcome, Publish, Subscribe, nothing_there, publisher, subscriber};
use crate::work::{BATCH, Work, fill, fill_bytes, sum, sum_bytes};

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
        if batch {
            let mut batch = [[0u64; W]; BATCH];
            for first in (0..work.count).step_by(BATCH) {
                for (i, item) in batch.iter_mut().enumerate() {
                    // SAFETY: an array of that many words.
                    unsafe { fill(item.as_mut_ptr().cast(), W, work.first_word(first + i as u64)) };
                }
                self.0.push_batch(&batch);
            }
        } else {
            let mut item = [0u64; W];
            for n in 0..work.count {
                // SAFETY: an array of that many words.
                unsafe { fill(item.as_mut_ptr().cast(), W, work.first_word(n)) };
                self.0.push(&item);
            }
        }
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
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            let most = self.batch.len().min((work.count - n) as usize);
            let count = self.consumer.recv_batch(&mut self.batch[..most]);
            for item in &self.batch[..count] {
                // SAFETY: an array of that many words.
                total = total.wrapping_add(unsafe { sum(item.as_ptr().cast(), W) });
            }
            n += count as u64;
            if count == 0 {
                nothing_there();
            }
        }
        if self.consumer.lapped_count() != 0 {
            bail!("{} messages lost", self.consumer.lapped_count());
        }
        Ok(total)
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
        for n in 0..work.count {
            // Blobs have no backpressure of their own: the readers' registered positions stand in for it. One slot is kept free,
            // since a blob is written before its descriptor is published.
            while self.0.headroom() < 2 {
                std::hint::spin_loop();
            }
            self.0
                .push_with(&(), work.size, |bytes| fill_bytes(bytes, work.first_word(n)))?;
        }
        Ok(())
    }
}

pub struct BlobReader(BlobConsumer<()>);

impl Subscribe for BlobReader {
    fn open(job: &Job) -> Result<Self> {
        Ok(Self(BlobConsumer::attach(path(job))?))
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            match self.0.view(|(), bytes| sum_bytes(bytes))? {
                Some(sum) => {
                    total = total.wrapping_add(sum);
                    n += 1;
                }
                None => nothing_there(),
            }
        }
        if self.0.lapped_count() != 0 {
            bail!("{} messages lost", self.0.lapped_count());
        }
        Ok(total)
    }
}
