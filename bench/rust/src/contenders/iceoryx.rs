//! iceoryx2: publish-subscribe with one publisher and one subscriber each way, configured to lose nothing.

use std::hint::spin_loop;

use anyhow::{Result, anyhow};
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

use crate::driver::{Contender, Measure, Setup, Wait};
use crate::work::{Work, fill, one_or_none, poll, poll_sum, sum};

pub fn takes(measure: Measure, _: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Batch => Err("one sample a send"),
        Measure::Copy => Err("in place only"),
        Measure::RttSpin => Err("it does not spin"),
        _ => Ok(()),
    }
}

pub struct Side {
    publisher: Port,
    subscriber: Subscriber<ipc::Service, [u64], ()>,
    notifier: Notifier<ipc::Service>,
    listener: Listener<ipc::Service>,
    _node: Node<ipc::Service>,
}

/// Its errors are neither `Send` nor worth their types here.
fn convert<T, E: std::fmt::Debug>(result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("iceoryx2: {error:?}"))
}

pub type Service = PortFactory<ipc::Service, [u64], ()>;
type Port = Publisher<ipc::Service, [u64], ()>;

pub fn node() -> Result<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    convert(NodeBuilder::new().create::<ipc::Service>())
}

/// One that loses nothing. Its queue is preallocated for the worst case in every port, so the slots of a small message are bounded.
pub fn service(node: &Node<ipc::Service>, name: &str, slots: usize, subscribers: usize) -> Result<Service> {
    convert(
        node.service_builder(&convert(ServiceName::new(name))?)
            .publish_subscribe::<[u64]>()
            .enable_safe_overflow(false)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(subscribers)
            .max_nodes(subscribers + 1)
            .subscriber_max_buffer_size(slots.min(16_384))
            .subscriber_max_borrowed_samples(2)
            .open_or_create(),
    )
}

pub fn publisher(service: &Service, size: usize) -> Result<Port> {
    let builder = service.publisher_builder().initial_max_slice_len(size / 8);
    convert(
        builder
            .max_loaned_samples(2)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create(),
    )
}

#[inline(always)]
pub fn publish(publisher: &mut Port, words: usize, start: u64) -> Result<()> {
    let mut sample = convert(publisher.loan_slice_uninit(words))?;
    // SAFETY: the sample was loaned for that many words.
    unsafe { fill(sample.payload_mut().as_mut_ptr().cast(), words, start) };
    // SAFETY: all of it was just filled.
    convert(unsafe { sample.assume_init() }.send())?;
    Ok(())
}

#[inline(always)]
pub fn take(subscriber: &Subscriber<ipc::Service, [u64], ()>, words: usize) -> Result<Option<u64>> {
    Ok(convert(subscriber.receive())?
        // SAFETY: the sender fills each sample with that many words.
        .map(|sample| unsafe { sum(sample.payload().as_ptr().cast(), words) }))
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = setup.ways();
        let job = &setup.job;
        let node = node()?;
        let stream = |way| service(&node, &format!("{}/{way}", job.tag), job.slots(), 1);
        let bell = |way| {
            let name = convert(ServiceName::new(&format!("{}/{way}/bell", job.tag)))?;
            convert(node.service_builder(&name).event().open_or_create())
        };
        let publisher = publisher(&stream(out)?, job.size)?;
        let subscriber = convert(stream(back)?.subscriber_builder().create())?;
        let notifier = convert(bell(out)?.notifier_builder().create())?;
        let listener = convert(bell(back)?.listener_builder().create())?;
        // What is sent before the other side subscribes is lost: wait for each other.
        setup.meet()?;
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
            publish(&mut self.publisher, work.words, work.first_word(n))?;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        poll_sum(work.count, spin_loop, |_| {
            Ok(one_or_none(take(&self.subscriber, work.words)?))
        })
    }

    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()> {
        publish(&mut self.publisher, words, start)?;
        if wait != Wait::Poll {
            convert(self.notifier.notify())?;
        }
        Ok(())
    }

    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64> {
        poll(|| {
            let found = take(&self.subscriber, words)?;
            if found.is_none() && wait != Wait::Poll {
                convert(self.listener.blocking_wait(|_| {}))?;
            }
            Ok(found)
        })
    }
}
