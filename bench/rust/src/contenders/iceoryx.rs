//! iceoryx2: publish-subscribe with one publisher and one subscriber each way, told to lose nothing.

use anyhow::{Result, anyhow};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{Work, fill, sum};

pub fn takes(measure: Measure, _: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Batch => Err("one sample a send"),
        Measure::Copy => Err("in place only"),
        Measure::RttSpin => Err("it does not spin"),
        _ => Ok(()),
    }
}

pub struct Side {
    publisher: Publisher<ipc::Service, [u64], ()>,
    subscriber: Subscriber<ipc::Service, [u64], ()>,
    notifier: Notifier<ipc::Service>,
    listener: Listener<ipc::Service>,
    _node: Node<ipc::Service>,
}

/// Its errors are neither `Send` nor worth their types here.
fn told<T, E: std::fmt::Debug>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("iceoryx2: {error:?}"))
}

impl Side {
    #[inline(always)]
    fn publish(&mut self, words: usize, start: u64) -> Result<()> {
        let mut sample = told(self.publisher.loan_slice_uninit(words))?;
        // SAFETY: the sample was loaned for so many words.
        unsafe { fill(sample.payload_mut().as_mut_ptr().cast(), words, start) };
        // SAFETY: all of it was just filled.
        told(unsafe { sample.assume_init() }.send())?;
        Ok(())
    }

    #[inline(always)]
    fn take(&mut self, words: usize) -> Result<Option<u64>> {
        Ok(told(self.subscriber.receive())?
            // SAFETY: the sender fills each sample with so many words.
            .map(|sample| unsafe { sum(sample.payload().as_ptr().cast(), words) }))
    }
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        set_log_level(LogLevel::Error);
        let (side, words, tag) = (setup.side, setup.job.size / 8, setup.job.tag.clone());
        // Its queue is preallocated for the worst case in every port, so the slots of a small message are bounded.
        let slots = setup.job.slots().min(16_384);
        let node = told(NodeBuilder::new().create::<ipc::Service>())?;
        let stream = |way: &str| {
            let name = told(ServiceName::new(&format!("{tag}/{way}")))?;
            told(
                node.service_builder(&name)
                    .publish_subscribe::<[u64]>()
                    .enable_safe_overflow(false)
                    .history_size(0)
                    .max_publishers(1)
                    .max_subscribers(1)
                    .subscriber_max_buffer_size(slots)
                    .subscriber_max_borrowed_samples(2)
                    .open_or_create(),
            )
        };
        let bell = |way: &str| {
            let name = told(ServiceName::new(&format!("{tag}/{way}/bell")))?;
            told(node.service_builder(&name).event().open_or_create())
        };
        let (out, back) = if side == Which::A {
            ("ping", "pong")
        } else {
            ("pong", "ping")
        };
        let publisher = told(
            stream(out)?
                .publisher_builder()
                .initial_max_slice_len(words)
                .max_loaned_samples(2)
                .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
                .create(),
        )?;
        let subscriber = told(stream(back)?.subscriber_builder().create())?;
        let notifier = told(bell(out)?.notifier_builder().create())?;
        let listener = told(bell(back)?.listener_builder().create())?;
        // What is sent before the other side subscribes is lost: wait for each other.
        let line = setup.line()?;
        line.send(&true)?;
        let _: bool = line.receive()?;
        Ok(Self {
            publisher,
            subscriber,
            notifier,
            listener,
            _node: node,
        })
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        for n in 0..work.count {
            self.publish(work.words, work.first_word(n))?;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let (mut n, mut total) = (0, 0u64);
        while n < work.count {
            match self.take(work.words)? {
                Some(sum) => {
                    total = total.wrapping_add(sum);
                    n += 1;
                }
                None => std::hint::spin_loop(),
            }
        }
        Ok(total)
    }

    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()> {
        self.publish(words, start)?;
        if wait != Wait::Poll {
            told(self.notifier.notify())?;
        }
        Ok(())
    }

    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64> {
        loop {
            if let Some(sum) = self.take(words)? {
                return Ok(sum);
            }
            if wait == Wait::Poll {
                std::hint::spin_loop();
            } else {
                told(self.listener.blocking_wait(|_| {}))?;
            }
        }
    }
}
