//! The parts of both processes, and the peer, which carries out orders.

use std::hint::spin_loop;
use std::os::fd::{AsFd, BorrowedFd};

use crate::clock;
use crate::driver::{Usage, pin, usage};
use crate::line::Line;
use crate::ringfence::{DRAIN, drain};
use crate::work::{one_or_none, poll_sum, sum_bytes};
use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{Address, Merge, Options, Receiver, Sender, Subscription};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// Joins this many more channels.
    Join(usize),
    /// Adds this many subscriptions.
    Subscribe(usize),
    /// Drops the newest subscription.
    Unsubscribe,
    /// Sleeps on all channels and subscriptions for this many milliseconds.
    Idle(u64),
    /// Polls all channels in turn until this many messages have arrived.
    Busy(u64),
    /// Reads this many messages from all channels together by one merge, which owns them from then on.
    Merged(u64),
    /// Reads this many messages from each subscription, in turn.
    ReceiveEach(u64),
    /// Sleeps on all channels and sends back this many messages.
    Woken(u64),
    /// Receives this many messages from the first channel, each copied into a buffer.
    Stream(u64),
    Resources,
    /// Drops all channels and subscriptions.
    Release,
    Quit,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) started: u64,
    pub(super) finished: u64,
    pub(super) sum: u64,
    pub(super) usage: Usage,
    pub(super) resources: Resources,
}

/// Messages that go one way for a while.
#[derive(Serialize)]
pub struct Flow {
    pub messages_per_second: f64,
    /// Of both sides, user and system.
    pub cpu_ns_per_message: f64,
    /// Preemptions of either side per second.
    pub preempted_per_second: f64,
}

/// The resources of a process.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Resources {
    pub descriptors: u64,
    pub shared_kib: u64,
}

/// Enough for ten thousand channels in one process, and for its other descriptors.
const DESCRIPTORS: u64 = 65_536;

/// A channel keeps some descriptors and two mappings; a thousand of them need more than the usual 1,024. Returns the limit.
pub fn raise_descriptor_limit() -> u64 {
    let (now, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    let wanted = DESCRIPTORS.max(hard);
    // A process that may not raise the hard limit takes all that it allows.
    [(wanted, wanted), (hard, hard)]
        .into_iter()
        .find(|&(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft, hard).is_ok())
        .map_or(now, |(soft, _)| soft)
}

/// Starts a thread that does nothing: most processes that join have several.
pub(super) fn keep_a_thread() {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
}

pub(super) fn resources() -> Result<Resources> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let shared = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("RssShmem:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .context("RssShmem")?;
    Ok(Resources {
        descriptors: std::fs::read_dir("/proc/self/fd")?.count() as u64,
        shared_kib: shared,
    })
}

/// The channels or subscriptions of one process, and the descriptor that it sleeps on.
pub(super) struct Channels {
    tag: String,
    options: Options,
    pub(super) ends: Vec<(Sender, Receiver)>,
    /// The receivers of the ends that are read by one merge.
    merge: Option<Merge<Receiver>>,
    subscriptions: Vec<Subscription>,
    epoll: Epoll,
    pub(super) buffer: Vec<u8>,
}

impl Channels {
    pub(super) fn new(tag: &str, capacity: usize, size: usize) -> Result<Self> {
        Ok(Self {
            tag: tag.into(),
            options: Options::new()
                .capacity(capacity as u64)
                .max_message_size(size as u64),
            ends: Vec::new(),
            merge: None,
            subscriptions: Vec::new(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            buffer: vec![0; size],
        })
    }

    pub(super) fn join(&mut self, more: usize) -> Result<()> {
        for _ in 0..more {
            let index = self.ends.len();
            let address = format!("@{}.{index}", self.tag).parse::<Address>()?;
            let (sender, receiver) = ringfence::join(&address, &self.options)?.split();
            self.watch(receiver.as_fd(), index)?;
            self.ends.push((sender, receiver));
        }
        Ok(())
    }

    pub(super) fn publisher(&self) -> Result<Address> {
        Ok(format!("@{}.pub", self.tag).parse()?)
    }

    fn subscribe(&mut self, more: usize) -> Result<()> {
        let address = self.publisher()?;
        for _ in 0..more {
            let subscription = ringfence::subscribe(&address, &self.options)?;
            self.watch(subscription.as_fd(), self.subscriptions.len())?;
            self.subscriptions.push(subscription);
        }
        Ok(())
    }

    fn watch(&self, line: BorrowedFd<'_>, index: usize) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        Ok(self.epoll.add(line, event)?)
    }

    /// Ends all channels and subscriptions.
    pub(super) fn release(&mut self) {
        self.merge = None;
        self.ends.clear();
        self.subscriptions.clear();
    }

    /// Says on every channel that its reader sleeps. False: on one of them there is something already.
    fn arm(&mut self) -> Result<bool> {
        let mut asleep = true;
        for (_, receiver) in &mut self.ends {
            asleep &= receiver.arm()?;
        }
        for subscription in &mut self.subscriptions {
            asleep &= subscription.arm()?;
        }
        Ok(asleep)
    }

    /// Sleeps until a line is readable, and returns which.
    fn sleep(&mut self, milliseconds: u64) -> Result<Vec<usize>> {
        let mut events = [EpollEvent::empty(); 64];
        let limit = EpollTimeout::try_from(std::time::Duration::from_millis(milliseconds))?;
        let count = self.epoll.wait(&mut events, limit)?;
        Ok(events[..count]
            .iter()
            .map(|event| event.data() as usize)
            .collect())
    }

    /// Sleeps on all of them for a while: what was used, and the seconds that took.
    pub(super) fn idle(&mut self, milliseconds: u64) -> Result<(Usage, f64)> {
        self.arm()?;
        let started = clock::now();
        let before = usage(false);
        let deadline = started + milliseconds * 1_000_000;
        while clock::now() < deadline {
            let left = (deadline - clock::now()) / 1_000_000 + 1;
            for woken in self.sleep(left)? {
                match self.subscriptions.get_mut(woken) {
                    Some(subscription) => subscription.poll_line()?,
                    None => self.ends[woken].1.poll_line()?,
                }
            }
        }
        let found = (Usage::since(false, before), (clock::now() - started) as f64 / 1e9);
        for (_, receiver) in &mut self.ends {
            receiver.disarm();
        }
        for subscription in &mut self.subscriptions {
            subscription.disarm();
        }
        Ok(found)
    }

    /// The merge of all receivers, which is made when it is first asked for. Messages sent before that have been read.
    fn merge(&mut self) -> Result<&mut Merge<Receiver>> {
        if self.merge.is_none() {
            let mut merge = Merge::new()?;
            for (_, receiver) in self.ends.drain(..) {
                merge.add(receiver).map_err(|refused| refused.error)?;
            }
            self.merge = Some(merge);
        }
        self.merge.as_mut().context("it was made")
    }
}

/// The process that was started by the host.
pub fn peer(tag: &str, capacity: usize, size: usize) -> Result<()> {
    pin(1)?;
    keep_a_thread();
    raise_descriptor_limit();
    let mut line = Line::connect(tag)?;
    let mut channels = Channels::new(tag, capacity, size)?;
    loop {
        let order: Order = line.receive()?;
        let mut answer = Answer {
            started: clock::now(),
            ..Answer::default()
        };
        let before = usage(false);
        match order {
            Order::Join(more) => channels.join(more)?,
            Order::Subscribe(more) => channels.subscribe(more)?,
            Order::Unsubscribe => drop(channels.subscriptions.pop()),
            Order::Idle(milliseconds) => answer.usage = channels.idle(milliseconds)?.0,
            Order::Busy(count) => answer.sum = poll_all(&mut channels, count)?,
            Order::Merged(count) => answer.sum = merge_all(&mut channels, count)?,
            Order::ReceiveEach(count) => answer.sum = receive_each(&mut channels, count)?,
            Order::Woken(count) => answer.sum = echo_woken(&mut channels, count)?,
            Order::Stream(count) => answer.sum = take(&mut channels, count)?,
            Order::Release => channels.release(),
            Order::Resources => answer.resources = resources()?,
            Order::Quit => return Ok(()),
        }
        answer.finished = clock::now();
        if !matches!(order, Order::Idle(_)) {
            answer.usage = Usage::since(false, before);
        }
        line.send(&answer)?;
    }
}

fn poll_all(channels: &mut Channels, count: u64) -> Result<u64> {
    poll_sum(count, spin_loop, |_| {
        let mut found = (0, 0u64);
        for (_, receiver) in &mut channels.ends {
            let (n, sum) = drain!(receiver, DRAIN);
            found = (found.0 + n, found.1.wrapping_add(sum));
        }
        Ok(found)
    })
}

fn merge_all(channels: &mut Channels, count: u64) -> Result<u64> {
    let merge = channels.merge()?;
    poll_sum(count, spin_loop, |_| {
        let mut total = 0u64;
        let seen = merge.receive_each(
            |_, message| total = message.words().fold(total, u64::wrapping_add),
            DRAIN,
        )?;
        Ok((seen as u64, total))
    })
}

/// Receives from each subscription. Returns the sum, which must be equal for all.
fn receive_each(channels: &mut Channels, count: u64) -> Result<u64> {
    let mut found = vec![(0u64, 0u64); channels.subscriptions.len()];
    let mut unfinished = found.len();
    while unfinished > 0 {
        let mut seen = 0;
        for (subscription, (n, total)) in channels.subscriptions.iter_mut().zip(&mut found) {
            let most = DRAIN.min((count - *n) as usize);
            if most == 0 {
                continue;
            }
            let (here, sum) = drain!(subscription, most);
            *n += here;
            *total = total.wrapping_add(sum);
            seen += here;
            unfinished -= usize::from(*n == count);
        }
        if seen == 0 {
            spin_loop();
        }
    }
    let (_, first) = *found.first().context("a subscription")?;
    anyhow::ensure!(
        found.iter().all(|(_, sum)| *sum == first),
        "two subscribers differ"
    );
    Ok(first)
}

fn echo_woken(channels: &mut Channels, count: u64) -> Result<u64> {
    let (mut n, mut total) = (0, 0u64);
    // As an event loop does: arm all once, and then each one that was woken. Earlier messages wake nothing.
    let mut ready: Vec<usize> = if channels.arm()? {
        Vec::new()
    } else {
        (0..channels.ends.len()).collect()
    };
    while n < count {
        if ready.is_empty() {
            ready = channels.sleep(1000)?;
        }
        for index in ready.drain(..) {
            let (sender, receiver) = &mut channels.ends[index];
            receiver.poll_line()?;
            loop {
                receiver.disarm();
                while let Some(length) = receiver.try_receive(&mut channels.buffer)? {
                    total = total.wrapping_add(sum_bytes(&channels.buffer[..length]));
                    sender.send(&channels.buffer[..length])?;
                    n += 1;
                }
                if receiver.arm()? {
                    break;
                }
            }
        }
    }
    for (_, receiver) in &mut channels.ends {
        receiver.disarm();
    }
    Ok(total)
}

fn take(channels: &mut Channels, count: u64) -> Result<u64> {
    let (_, receiver) = channels.ends.first_mut().context("a channel")?;
    let buffer = &mut channels.buffer;
    poll_sum(count, spin_loop, |_| {
        let length = receiver.try_receive(buffer)?;
        Ok(one_or_none(length.map(|length| sum_bytes(&buffer[..length]))))
    })
}
