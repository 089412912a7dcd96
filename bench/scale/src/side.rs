//! The two processes: the host sends and measures, the peer does what it is told.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use ringfence::{Address, Options, Receiver, Sender};
use ringfence_bench::clock;
use ringfence_bench::driver::pin;
use ringfence_bench::line::{self, Line};
use ringfence_bench::work::{Work, fill_bytes, sum_bytes};
use serde::{Deserialize, Serialize};

/// Messages that one call to `drain` may hand over.
const DRAIN: usize = 256;

#[derive(Serialize, Deserialize)]
enum Order {
    /// Joins this many more channels.
    Join(usize),
    /// Sleeps on all channels for so many milliseconds.
    Idle(u64),
    /// Polls all channels in turn until so many messages have come.
    Busy(u64),
    /// Sleeps on all channels and sends back what comes, so many times.
    Woken(u64),
    /// Receives so many messages from the first channel, each copied into a buffer.
    Stream(u64),
    Resources,
    Quit,
}

#[derive(Default, Serialize, Deserialize)]
struct Answer {
    finished: u64,
    sum: u64,
    usage: Usage,
    resources: Resources,
}

/// What a process has used over a stretch of time.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_ns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// How often it lost its core to somebody else.
    pub preempted: u64,
    pub seconds: f64,
}

impl Usage {
    /// What was used since `before`, which was taken so long ago.
    fn since(before: Self, seconds: f64) -> Self {
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
    /// How often either side lost its core to somebody else, each second.
    pub preempted_per_second: f64,
}

/// What a process holds.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Resources {
    pub descriptors: u64,
    pub shared_kib: u64,
}

/// A channel keeps a descriptor and two mappings; a thousand of them need more than the usual 1,024.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

fn used() -> Usage {
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Usage {
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        sleeps: usage.ru_nvcsw as u64,
        preempted: usage.ru_nivcsw as u64,
        seconds: 0.0,
    }
}

fn resources() -> Result<Resources> {
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

/// The channels of one process and the descriptor that it sleeps on.
struct Channels {
    tag: String,
    options: Options,
    ends: Vec<(Sender, Receiver)>,
    epoll: OwnedFd,
    buffer: Vec<u8>,
}

impl Channels {
    fn new(tag: &str, capacity: usize, size: usize) -> Result<Self> {
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
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            buffer: vec![0; size],
        })
    }

    fn join(&mut self, more: usize) -> Result<()> {
        for _ in 0..more {
            let index = self.ends.len();
            let address = format!("@{}.{index}", self.tag).parse::<Address>()?;
            let (sender, receiver) = ringfence::join(&address, &self.options)?.split();
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: index as u64,
            };
            let added = unsafe {
                libc::epoll_ctl(
                    self.epoll.as_raw_fd(),
                    libc::EPOLL_CTL_ADD,
                    receiver.as_fd().as_raw_fd(),
                    &mut event,
                )
            };
            if added < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            self.ends.push((sender, receiver));
        }
        Ok(())
    }

    /// Says on every channel that its reader sleeps. False: on one of them there is something already.
    fn arm(&mut self) -> Result<bool> {
        let mut asleep = true;
        for (_, receiver) in &mut self.ends {
            asleep &= receiver.arm()?;
        }
        Ok(asleep)
    }

    /// Sleeps until a line is readable, and returns which.
    fn sleep(&mut self, milliseconds: i32) -> Result<Vec<usize>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
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

    fn idle(&mut self, milliseconds: u64) -> Result<Usage> {
        self.arm()?;
        let started = clock::now();
        let before = used();
        let deadline = started + milliseconds * 1_000_000;
        while clock::now() < deadline {
            let left = (deadline - clock::now()) / 1_000_000 + 1;
            for woken in self.sleep(left as i32)? {
                self.ends[woken].1.poll_line()?;
            }
        }
        let usage = Usage::since(before, (clock::now() - started) as f64 / 1e9);
        for (_, receiver) in &mut self.ends {
            receiver.disarm();
        }
        Ok(usage)
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
            Order::Idle(milliseconds) => answer.usage = channels.idle(milliseconds)?,
            Order::Busy(count) => {
                answer.sum = poll_all(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
            Order::Woken(count) => answer.sum = echo_woken(&mut channels, count)?,
            Order::Stream(count) => {
                answer.sum = take(&mut channels, count)?;
                answer.usage = Usage::since(before, 0.0);
            }
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
            n += receiver.drain(
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

fn echo_woken(channels: &mut Channels, count: u64) -> Result<u64> {
    let (mut n, mut total) = (0, 0u64);
    // Said once for all of them and renewed for the one that was woken: what an event loop does.
    channels.arm()?;
    while n < count {
        for index in channels.sleep(1000)? {
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

/// The same work by one thread, with plain memory in the ring's place: written, copied in and out in the parts in which a
/// channel does it, summed. What the machine takes for that, before there is a channel.
pub fn alone(capacity: usize, size: usize, seconds: f64) -> Result<f64> {
    let (mut from, mut ring, mut to) = (vec![0; size], vec![0; capacity], vec![0; size]);
    let part = if size > capacity / 2 { capacity / 8 } else { size };
    let mut place = 0;
    let mut stretch = |count: u64| -> Result<f64> {
        let work = Work::new(size, count);
        let mut total = 0u64;
        let started = clock::now();
        for n in 0..work.count {
            fill_bytes(&mut from, work.first_word(n));
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                if place + part > capacity {
                    place = 0;
                }
                let ring = &mut ring[place..place + from.len()];
                ring.copy_from_slice(from);
                to.copy_from_slice(std::hint::black_box(ring));
                place += part;
            }
            total = total.wrapping_add(sum_bytes(&to));
        }
        if total != work.expected_sum() {
            bail!("what was copied is not what was there");
        }
        Ok(work.count as f64 / ((clock::now() - started) as f64 / 1e9))
    };
    let rate = stretch((1 << 20) / size as u64 + 1)?;
    let rate = stretch((rate * seconds / 5.0) as u64 + 1)?;
    stretch((rate * seconds) as u64 + 1)
}

/// This process, which sends and measures.
pub struct Host {
    channels: Channels,
    line: Line,
    peer: Child,
    size: usize,
}

impl Host {
    pub fn start(capacity: usize, size: usize) -> Result<Self> {
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let serial = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let tag = format!("rfscale-{}-{serial}", std::process::id());
        pin(0)?;
        let listener = line::listen(&tag)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--peer", &tag, &capacity.to_string(), &size.to_string()]);
        // A host that is stopped must not leave a peer spinning.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let peer = command.spawn()?;
        let line = Line::accept(&listener)?;
        Ok(Self {
            channels: Channels::new(&tag, capacity, size)?,
            line,
            peer,
            size,
        })
    }

    /// Joins so many channels and returns the seconds that took.
    pub fn join(&mut self, count: usize) -> Result<f64> {
        self.line.send(&Order::Join(count))?;
        let started = clock::now();
        self.channels.join(count)?;
        let answer: Answer = self.line.receive()?;
        Ok((answer.finished.max(clock::now()) - started) as f64 / 1e9)
    }

    /// Of both processes together.
    pub fn resources(&mut self) -> Result<Resources> {
        self.line.send(&Order::Resources)?;
        let theirs: Answer = self.line.receive()?;
        let mine = resources()?;
        Ok(Resources {
            descriptors: mine.descriptors + theirs.resources.descriptors,
            // Both map the same pages.
            shared_kib: mine.shared_kib.max(theirs.resources.shared_kib),
        })
    }

    pub fn idle(&mut self, seconds: f64) -> Result<Usage> {
        let milliseconds = (seconds * 1000.0) as u64;
        self.line.send(&Order::Idle(milliseconds))?;
        let mine = self.channels.idle(milliseconds)?;
        let theirs = self.line.receive::<Answer>()?.usage;
        Ok(Usage {
            cpu_ns: mine.cpu_ns + theirs.cpu_ns,
            // The one sleep that each of them ends by its own clock is not the channels' doing.
            sleeps: (mine.sleeps + theirs.sleeps).saturating_sub(2),
            preempted: mine.preempted + theirs.preempted,
            seconds: mine.seconds,
        })
    }

    /// `batch` messages to each channel in turn.
    pub fn busy(&mut self, seconds: f64, batch: usize) -> Result<Flow> {
        let channels = self.channels.ends.len() as u64;
        self.timed(
            seconds,
            4096.max(channels * batch as u64),
            Order::Busy,
            |host, work| {
                let mut n = 0;
                while n < work.count {
                    for (sender, _) in &mut host.channels.ends {
                        let end = (n + batch as u64).min(work.count);
                        while n < end {
                            let mut records = sender.batch()?;
                            while n < end {
                                let Some(bytes) = records.reserve(work.size)? else {
                                    break;
                                };
                                fill_bytes(bytes, work.first_word(n));
                                n += 1;
                            }
                            records.publish();
                        }
                    }
                }
                Ok(())
            },
        )
    }

    /// Messages through the first channel, by plain send and receive, which know fragments.
    pub fn stream(&mut self, seconds: f64) -> Result<Flow> {
        let first = (16 << 20) / self.size as u64 + 1;
        self.timed(seconds, first, Order::Stream, |host, work| {
            let (sender, _) = host.channels.ends.first_mut().context("a channel")?;
            let buffer = &mut host.channels.buffer;
            for n in 0..work.count {
                fill_bytes(buffer, work.first_word(n));
                if work.size as u64 > sender.max_at_once() {
                    sender.send(buffer)?;
                } else {
                    while !sender.try_send(buffer)? {
                        std::hint::spin_loop();
                    }
                }
            }
            Ok(())
        })
    }

    pub fn max_at_once(&self) -> u64 {
        self.channels
            .ends
            .first()
            .map_or(0, |(sender, _)| sender.max_at_once())
    }

    /// Microseconds of the median round trip over the last channel, the peer asleep on all of them.
    pub fn woken(&mut self, count: u64) -> Result<f64> {
        self.line.send(&Order::Woken(count))?;
        // Until the peer sleeps.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let size = self.size;
        let (sender, receiver) = self.channels.ends.last_mut().context("a channel")?;
        let buffer = &mut self.channels.buffer;
        let mut times = Vec::new();
        for n in 0..count {
            fill_bytes(&mut buffer[..size], n);
            let started = clock::now();
            sender.send(&buffer[..size])?;
            receiver.receive(buffer)?.context("the channel ended")?;
            times.push((clock::now() - started) as f64 / 1e3);
        }
        let _: Answer = self.line.receive()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    pub fn quit(mut self) -> Result<()> {
        self.line.send(&Order::Quit)?;
        drop(self.channels);
        self.peer.wait()?;
        Ok(())
    }

    /// Warms up, then sends for so long; the sums are compared.
    fn timed(
        &mut self,
        seconds: f64,
        first: u64,
        order: fn(u64) -> Order,
        send: impl Fn(&mut Self, &Work) -> Result<()>,
    ) -> Result<Flow> {
        let mut stretch = |count: u64| -> Result<(u64, Usage)> {
            let work = Work::new(self.size, count);
            self.line.send(&order(work.count))?;
            let (before, started) = (used(), clock::now());
            send(self, &work)?;
            let mine = Usage::since(before, 0.0);
            let answer: Answer = self.line.receive()?;
            if answer.sum != work.expected_sum() {
                bail!("what arrived is not what was sent");
            }
            let both = Usage {
                cpu_ns: mine.cpu_ns + answer.usage.cpu_ns,
                sleeps: mine.sleeps + answer.usage.sleeps,
                preempted: mine.preempted + answer.usage.preempted,
                seconds: (answer.finished - started) as f64 / 1e9,
            };
            Ok((work.count, both))
        };
        let enough = (seconds / 5.0).clamp(0.02, 0.2);
        let mut count = first;
        let rate = loop {
            let (sent, Usage { seconds: taken, .. }) = stretch(count)?;
            if taken >= enough {
                break sent as f64 / taken;
            }
            count = (sent as f64 * (1.3 * enough / taken).clamp(1.5, 64.0)) as u64;
        };
        let (sent, usage) = stretch((rate * seconds) as u64 + 1)?;
        Ok(Flow {
            messages_per_second: sent as f64 / usage.seconds,
            cpu_ns_per_message: usage.cpu_ns as f64 / sent as f64,
            preempted_per_second: usage.preempted as f64 / usage.seconds,
        })
    }
}
