//! iceoryx2: publish-subscribe with one publisher, configured to lose nothing.

use std::thread::yield_now;

use anyhow::{Context, Result};
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{Node, ipc};

use crate::broadcast::driver::{Job, Publish, Subscribe};
use crate::contenders::iceoryx;
use crate::work::{Work, one_or_none, poll_sum};

pub fn takes(_: usize, batch: bool) -> Result<(), &'static str> {
    if batch { Err("one sample a send") } else { Ok(()) }
}

type Opened = (Node<ipc::Service>, iceoryx::Service);

fn service(job: &Job) -> Result<Opened> {
    let node = iceoryx::node()?;
    let service = iceoryx::service(&node, &job.tag, job.slots(), job.subscribers)?;
    Ok((node, service))
}

pub struct Out(
    Publisher<ipc::Service, [u64], ()>,
    #[expect(dead_code, reason = "kept open")] Opened,
);

impl Publish for Out {
    fn open(job: &Job) -> Result<Self> {
        let opened = service(job)?;
        Ok(Self(iceoryx::publisher(&opened.1, job.size)?, opened))
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        for n in 0..work.count {
            iceoryx::publish(&mut self.0, work.words, work.first_word(n))?;
        }
        Ok(())
    }
}

pub struct In(
    Subscriber<ipc::Service, [u64], ()>,
    #[expect(dead_code, reason = "kept open")] Opened,
);

impl Subscribe for In {
    fn open(job: &Job) -> Result<Self> {
        let opened = service(job)?;
        let subscriber = opened.1.subscriber_builder().create();
        Ok(Self(subscriber.ok().context("no subscriber")?, opened))
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        poll_sum(work.count, yield_now, |_| {
            Ok(one_or_none(iceoryx::take(&self.0, work.words)?))
        })
    }
}
