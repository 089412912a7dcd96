//! What both processes have, and the peer, which does what it is told.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::clock;
use crate::driver::pin;
use crate::line::Line;
use crate::work::sum_bytes;
use anyhow::{Context, Result};
use ringfence::{Address, Merge, Options, Receiver, Sender, Subscription};
use serde::{Deserialize, Serialize};

/// Messages that one call to `drain` may hand over.
const DRAIN: usize = 256;

#[derive(Serialize, Deserialize)]
pub(super) enum Order {
    /// Joins this many more channels.
    Join(usize),
    /// Subscribes so often.
    Subscribe(usize),
    /// Sleeps on all channels and subscriptions for so many milliseconds.
    Idle(u64),
    /// Polls all channels in turn until so many messages have come.
    Busy(u64),
    /// Reads so many messages from all channels together by one merge, which has them from then on.
    Merged(u64),
    /// Reads so many messages from each subscription, all of them in turn.
    Overheard(u64),
    /// Sleeps on all channels and sends back what comes, so many times.
    Woken(u64),
    /// Receives so many messages from the first channel, each copied into a buffer.
    Stream(u64),
    Resources,
    /// Lets go of all channels and subscriptions.
    Release,
    Quit,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) finished: u64,
    pub(super) sum: u64,
    pub(super) usage: Usage,
    pub(super) resources: Resources,
}

/// What a process has used over a stretch of time.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_ns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// How often it lost its core to another process.
    pub preempted: u64,
    pub seconds: f64,
}

impl Usage {
    /// What was used since `before`, which was taken so long ago.
    pub(super) fn since(before: Self, seconds: f64) -> Self {
        let after = used();
        Self {
            cpu_ns: after.cpu_ns - before.cpu_ns,
            sleeps: after.sleeps - before.sleeps,
            preempted: after.preempted - before.preempted,
            seconds,
        }
    }
}

/// Messages that go one way for a while.
#[derive(Clone, Copy)]
pub struct Flow {
    pub messages_per_second: f64,
    /// Of both sides, user and system.
    pub cpu_ns_per_message: f64,
    /// How often either side lost its core to another process, each second.
    pub preempted_per_second: f64,
}

/// What a process holds.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Resources {
    pub descriptors: u64,
    pub shared_kib: u64,
}

/// What ten thousand channels need in one process, with what else it has.
const DESCRIPTORS: libc::rlim_t = 65_536;

/// A channel keeps some descriptors and two mappings; a thousand of them need more than the usual 1,024. Returns the limit.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel reads and writes the limit, which is there for both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let raised = libc::rlimit {
            rlim_cur: DESCRIPTORS.max(limit.rlim_max),
            rlim_max: DESCRIPTORS.max(limit.rlim_max),
        };
        // Who may not raise the hard limit takes all that it allows.
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            limit = raised;
        } else {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}

pub(super) fn used() -> Usage {
    // SAFETY: numbers, all of which may be 0.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    // SAFETY: the kernel writes the figures, which are there for the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Usage {
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        sleeps: usage.ru_nvcsw as u64,
        preempted: usage.ru_nivcsw as u64,
        seconds: 0.0,
    }
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
    epoll: OwnedFd,
    pub(super) buffer: Vec<u8>,
}

impl Channels {
    pub(super) fn new(tag: &str, capacity: usize, size: usize) -> Result<Self> {
        // SAFETY: it takes a number.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(Self {
            tag: tag.into(),
            options: Options::new()
                .capacity(capacity as u64)
                .max_message_size(size as u64),
            ends: Vec::new(),
            merge: None,
            subscriptions: Vec::new(),
            // SAFETY: the descriptor was just made, and belongs to nothing else.
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            buffer: vec![0; size],
        })
    }

    pub(super) fn join(&mut self, more: usize) -> Result<()> {
        for _ in 0..more {
            let index = self.ends.len();
            let address = format!("@{}.{index}", self.tag).parse::<Address>()?;
            let (sender, receiver) = ringfence::join(&address, &self.options)?.split();
            self.watch(receiver.as_fd().as_raw_fd(), index)?;
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
            self.watch(subscription.as_fd().as_raw_fd(), self.subscriptions.len())?;
            self.subscriptions.push(subscription);
        }
        Ok(())
    }

    fn watch(&self, line: RawFd, index: usize) -> Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: index as u64,
        };
        // SAFETY: the kernel reads the event, which is there for the call.
        let added = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, line, &mut event) };
        if added < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
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
    fn sleep(&mut self, milliseconds: i32) -> Result<Vec<usize>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: the kernel writes at most as many events as there is room for.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 64, milliseconds) };
        if count < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(events[..count as usize]
            .iter()
            .map(|event| event.u64 as usize)
            .collect())
    }

    pub(super) fn idle(&mut self, milliseconds: u64) -> Result<Usage> {
        self.arm()?;
        let started = clock::now();
        let before = used();
        let deadline = started + milliseconds * 1_000_000;
        while clock::now() < deadline {
            let left = (deadline - clock::now()) / 1_000_000 + 1;
            for woken in self.sleep(left as i32)? {
                match self.subscriptions.get_mut(woken) {
                    Some(subscription) => subscription.poll_line()?,
                    None => self.ends[woken].1.poll_line()?,
                }
            }
        }
        let usage = Usage::since(before, (clock::now() - started) as f64 / 1e9);
        for (_, receiver) in &mut self.ends {
            receiver.disarm();
        }
        for subscription in &mut self.subscriptions {
            subscription.disarm();
        }
        Ok(usage)
    }

    /// The merge of all receivers, which is made when it is first asked for. What was sent from here until then was read.
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
    raise_descriptor_limit();
    let mut line = Line::connect(tag)?;
    let mut channels = Channels::new(tag, capacity, size)?;
    loop {
        let mut answer = Answer::default();
        let order = line.receive()?;
        let before = used();
        match order {
            Order::Join(more) => channels.join(more)?,
            Order::Subscribe(more) => channels.subscribe(more)?,
            Order::Idle(milliseconds) => answer.usage = channels.idle(milliseconds)?,
            Order::Busy(count) => {
                answer.sum = poll_all(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
            Order::Merged(count) => {
                answer.sum = merge_all(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
            Order::Overheard(count) => {
                answer.sum = overhear_all(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
            Order::Woken(count) => answer.sum = echo_woken(&mut channels, count)?,
            Order::Stream(count) => {
                answer.sum = take(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
            Order::Release => channels.release(),
            Order::Resources => answer.resources = resources()?,
            Order::Quit => return Ok(()),
        }
        answer.finished = clock::now();
        line.send(&answer)?;
    }
}

fn poll_all(channels: &mut Channels, count: u64) -> Result<u64> {
    let (mut n, mut total) = (0, 0u64);
    while n < count {
        let before = n;
        for (_, receiver) in &mut channels.ends {
            n += receiver.receive_each(
                |message| total = message.words().fold(total, u64::wrapping_add),
                DRAIN,
            )? as u64;
        }
        if n == before {
            std::hint::spin_loop();
        }
    }
    Ok(total)
}

fn merge_all(channels: &mut Channels, count: u64) -> Result<u64> {
    let merge = channels.merge()?;
    let (mut n, mut total) = (0, 0u64);
    while n < count {
        let seen = merge.receive_each(
            |_, message| total = message.words().fold(total, u64::wrapping_add),
            DRAIN,
        )?;
        n += seen as u64;
        if seen == 0 {
            std::hint::spin_loop();
        }
    }
    Ok(total)
}

/// The sum that each of them has found: all of them the same.
fn overhear_all(channels: &mut Channels, count: u64) -> Result<u64> {
    let mut found = vec![(0u64, 0u64); channels.subscriptions.len()];
    let mut unfinished = found.len();
    while unfinished > 0 {
        let mut seen = 0;
        for (subscription, (n, total)) in channels.subscriptions.iter_mut().zip(&mut found) {
            let most = DRAIN.min((count - *n) as usize);
            if most == 0 {
                continue;
            }
            let here = subscription.receive_each(
                |message| *total = message.words().fold(*total, u64::wrapping_add),
                most,
            )?;
            *n += here as u64;
            seen += here;
            unfinished -= usize::from(*n == count);
        }
        if seen == 0 {
            std::hint::spin_loop();
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
    // Said once for all of them and renewed for the one that was woken: what an event loop does. What has come before is not rung for.
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
    let mut total = 0u64;
    for _ in 0..count {
        let length = loop {
            match receiver.try_receive(&mut channels.buffer)? {
                Some(length) => break length,
                None => std::hint::spin_loop(),
            }
        };
        total = total.wrapping_add(sum_bytes(&channels.buffer[..length]));
    }
    Ok(total)
}
