//! iceoryx2: publish-subscribe with one publisher, told to lose nothing.

use anyhow::{Result, anyhow};
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

use crate::broadcast::driver::{Job, Publish, Subscribe, nothing_there};
use crate::work::{Work, fill, sum};

pub fn takes(_: usize, batch: bool) -> Result<(), &'static str> {
    if batch { Err("one sample a send") } else { Ok(()) }
}

/// Its errors are neither `Send` nor worth their types here.
fn told<T, E: std::fmt::Debug>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("iceoryx2: {error:?}"))
}

type Opened = (Node<ipc::Service>, PortFactory<ipc::Service, [u64], ()>);

fn service(job: &Job) -> Result<Opened> {
    set_log_level(LogLevel::Error);
    let node = told(NodeBuilder::new().create::<ipc::Service>())?;
    let name = told(ServiceName::new(&job.tag))?;
    let service = told(
        node.service_builder(&name)
            .publish_subscribe::<[u64]>()
            .enable_safe_overflow(false)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(job.subscribers)
            // Its queue is preallocated for the worst case in every port, so the slots of a small message are bounded.
            .subscriber_max_buffer_size(job.slots().min(16_384))
            .subscriber_max_borrowed_samples(2)
            .open_or_create(),
    )?;
    Ok((node, service))
}

pub struct Out {
    publisher: Publisher<ipc::Service, [u64], ()>,
    _opened: Opened,
}

impl Publish for Out {
    fn open(job: &Job) -> Result<Self> {
        let opened = service(job)?;
        let publisher = told(
            opened
                .1
                .publisher_builder()
                .initial_max_slice_len(job.size / 8)
                .max_loaned_samples(2)
                .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
                .create(),
        )?;
        Ok(Self {
            publisher,
            _opened: opened,
        })
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        for n in 0..work.count {
            let mut sample = told(self.publisher.loan_slice_uninit(work.words))?;
            // SAFETY: a loan of that many words.
            unsafe {
                fill(
                    sample.payload_mut().as_mut_ptr().cast(),
                    work.words,
                    work.first_word(n),
                )
            };
            // SAFETY: every word was just written.
            told(unsafe { sample.assume_init() }.send())?;
        }
        Ok(())
    }
}

pub struct In {
    subscriber: Subscriber<ipc::Service, [u64], ()>,
    _opened: Opened,
}

impl Subscribe for In {
    fn open(job: &Job) -> Result<Self> {
        let opened = service(job)?;
        let subscriber = told(opened.1.subscriber_builder().create())?;
        Ok(Self {
            subscriber,
            _opened: opened,
        })
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            match told(self.subscriber.receive())? {
                Some(sample) => {
                    // SAFETY: a sample of that many words.
                    let words = unsafe { sum(sample.payload().as_ptr().cast(), work.words) };
                    total = total.wrapping_add(words);
                    n += 1;
                }
                None => nothing_there(),
            }
        }
        Ok(total)
    }
}
