//! One run: a publisher's process, and a process for each subscriber.

use std::process::Child;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::blocked::Failure;
use crate::clock;
use crate::driver::{Ready, Report, Usage, pin, spawn_self, usage, warmed_up};
use crate::line::{self, Line};
use crate::work::Work;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub contender: String,
    pub subscribers: usize,
    /// Further ones, which lose what they do not read, and read nothing.
    pub idle: usize,
    /// Bytes of a message.
    pub size: usize,
    /// 32 messages a publish.
    pub batch: bool,
    pub seconds: f64,
    /// The publisher's core, and that of all subscribers.
    pub cpus: [usize; 2],
    /// Bytes that the queue may hold; never less than eight messages.
    pub capacity: usize,
    #[serde(default)]
    /// The fate of the first subscriber, in a run that measures how long the publisher is blocked by it.
    pub failure: Option<Failure>,
    /// Names sockets, services and files of this run alone.
    pub tag: String,
}

impl Job {
    /// Eight messages at least: ringfence's longest is an eighth of the ring.
    pub fn ring_bytes(&self) -> usize {
        self.capacity.max(16 * self.size).next_power_of_two()
    }

    /// The ring in messages.
    pub fn slots(&self) -> usize {
        self.ring_bytes() / self.size
    }
}

/// The publisher of one rival.
pub trait Publish: Sized {
    /// Makes what subscribers come to. Called before this process is pinned, so that helper threads may have either core.
    fn open(job: &Job) -> Result<Self>;

    /// Lets the subscribers in, which have been started.
    fn admit(&mut self, _job: &Job) -> Result<()> {
        Ok(())
    }

    /// Publishes `work.count` messages.
    fn publish(&mut self, work: &Work, batch: bool) -> Result<()>;
}

/// A subscriber of one rival.
pub trait Subscribe: Sized {
    fn open(job: &Job) -> Result<Self>;

    /// Receives `work.count` messages and sums their words.
    fn consume(&mut self, work: &Work, batch: bool) -> Result<u64>;

    /// The number that the last call has read: fewer, if a subscriber may lose some, which then checks each of them.
    fn read(&self, work: &Work) -> u64 {
        work.count
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub seconds: f64,
    pub delivered_per_second: f64,
    /// Of all processes, for each message that one subscriber has read.
    pub cpu_ns_per_delivered: f64,
    /// A call of the publisher's that finds room, the filling of the message included: the median of several bursts.
    pub publisher_ns: f64,
    pub preempted: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Consume { count: u64 },
    Forever,
    Quit,
}

/// The subscribers' processes, which end with this.
pub struct Crowd {
    pub children: Vec<Child>,
    pub lines: Vec<Line>,
}

impl Crowd {
    /// Starts them, has the publisher let them in, and waits until all are ready.
    pub fn start<P: Publish>(publisher: &mut P, job: &Job) -> Result<Self> {
        let listener = line::listen(&job.tag)?;
        let idle = Job {
            idle: 0,
            contender: IDLE.into(),
            ..job.clone()
        };
        let mut children = Vec::new();
        let mut lines = Vec::new();
        for _ in 0..job.idle {
            children.push(spawn(&idle)?);
            // It gets no orders.
            let Ready = Line::accept(&listener)?.receive()?;
        }
        for _ in 0..job.subscribers {
            children.push(spawn(job)?);
        }
        publisher.admit(job)?;
        for _ in 0..job.subscribers {
            lines.push(Line::accept(&listener)?);
        }
        for line in &mut lines {
            let Ready = line.receive()?;
        }
        Ok(Self { children, lines })
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        self.lines.iter_mut().try_for_each(|line| line.send(order))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The contender that the job of an idle subscriber names.
pub const IDLE: &str = "idle";

fn spawn(job: &Job) -> Result<Child> {
    spawn_self(&["subscribe", &serde_json::to_string(job)?])
}

/// The subscriber's process: does what the publisher's orders until it says quit.
pub fn subscriber<S: Subscribe>(job: &Job) -> Result<()> {
    pin(job.cpus[1])?;
    let mut subscriber = S::open(job)?;
    let mut line = Line::connect(&job.tag)?;
    line.send(&Ready)?;
    loop {
        match line.receive()? {
            Order::Consume { count } => {
                let work = Work::new(job.size, count);
                line.send(&Ready)?;
                let before = usage(false);
                let sum = subscriber.consume(&work, job.batch)?;
                line.send(&Report {
                    finished: clock::now(),
                    sum,
                    read: subscriber.read(&work),
                    usage: Usage::since(false, before),
                })?;
            }
            Order::Forever => loop {
                subscriber.consume(&Work::new(job.size, 1), job.batch)?;
            },
            Order::Quit => return Ok(()),
        }
    }
}

/// The publisher's process: lets them in, warms up, measures.
pub fn publisher<P: Publish>(job: &Job) -> Result<Outcome> {
    let mut publisher = P::open(job)?;
    pin(job.cpus[0])?;
    let mut crowd = Crowd::start(&mut publisher, job)?;
    let first = (job.slots() / 8).max(32) as u64;
    let count = warmed_up(job.seconds, first, |count| {
        let stretch = stretch(&mut publisher, &mut crowd, job, count)?;
        Ok((stretch.work.count, stretch.seconds))
    })?;
    let measured = stretch(&mut publisher, &mut crowd, job, count)?;
    let mut bursts = (0..BURSTS)
        .map(|_| {
            // A quarter of the queue: there is room for all of it, whatever a message takes beside its bytes.
            let burst = stretch(&mut publisher, &mut crowd, job, (job.slots() / 4) as u64)?;
            Ok(burst.publishing * 1e9 / burst.work.count as f64)
        })
        .collect::<Result<Vec<_>>>()?;
    bursts.sort_by(f64::total_cmp);
    crowd.order(&Order::Quit)?;
    let delivered = measured.read as f64;
    Ok(Outcome {
        seconds: measured.seconds,
        delivered_per_second: delivered / measured.seconds,
        cpu_ns_per_delivered: measured.usage.cpu_ns as f64 / delivered,
        publisher_ns: bursts[BURSTS / 2],
        preempted: measured.usage.preempted,
    })
}

/// Into an empty queue, to see what a call costs that finds room.
const BURSTS: usize = 15;

struct Stretch {
    work: Work,
    /// By all subscribers.
    read: u64,
    /// Until the last subscriber has summed the last word.
    seconds: f64,
    /// Until the publisher has published the last message.
    publishing: f64,
    usage: Usage,
}

fn stretch<P: Publish>(publisher: &mut P, crowd: &mut Crowd, job: &Job, count: u64) -> Result<Stretch> {
    let work = Work::new(job.size, count);
    crowd.order(&Order::Consume { count: work.count })?;
    for line in &mut crowd.lines {
        let Ready = line.receive()?;
    }
    let before = usage(false);
    let started = clock::now();
    publisher.publish(&work, job.batch)?;
    let publishing = clock::now() - started;
    let mut total = Usage::since(false, before);
    let (mut finished, mut read) = (started, 0);
    for line in &mut crowd.lines {
        let report: Report = line.receive()?;
        if report.sum != work.expected_sum() {
            bail!("what arrived is not what was published");
        }
        finished = finished.max(report.finished);
        read += report.read;
        total = total.and(report.usage);
    }
    Ok(Stretch {
        work,
        read,
        seconds: (finished - started) as f64 / 1e9,
        publishing: publishing as f64 / 1e9,
        usage: total,
    })
}
