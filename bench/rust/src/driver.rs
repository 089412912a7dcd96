//! Two sides of one measurement: A makes and times, B takes and sums. Both are fresh processes for every run, so
//! that no contender inherits another's threads, mappings or heap.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::line::{self, Line};
use crate::work::Work;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// One-way, one publish a message, written and read in place where the contender allows it.
    One,
    /// One-way, 32 messages a publish (a socket: as many as fill 64 KiB).
    Batch,
    /// One-way through the plain send and receive of a buffer.
    Copy,
    /// Round trip, both sides polling.
    RttPolled,
    /// Round trip, both sides spinning for a while before they sleep.
    RttSpin,
    /// Round trip, both sides asleep between messages; and how often an idle reader wakes.
    RttParked,
    /// One-way, 1,000 messages a second to a reader that sleeps between them: wakeups and CPU.
    Paced,
}

impl Measure {
    pub fn is_round_trip(self) -> bool {
        matches!(self, Self::RttPolled | Self::RttSpin | Self::RttParked)
    }
}

/// The way in which a side waits for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Poll,
    Spin,
    Park,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub contender: String,
    pub measure: Measure,
    pub size: usize,
    pub seconds: f64,
    /// Cores of the two sides.
    pub cpus: [usize; 2],
    /// Bytes a ring may hold; never less than four messages.
    pub capacity: usize,
    /// Unique: names sockets, services and files of this run.
    pub tag: String,
}

impl Job {
    /// Room for four of the largest messages, so that a queue of whole messages can pipeline at all.
    pub fn ring_bytes(&self) -> usize {
        self.capacity.max(4 * self.size).next_power_of_two()
    }

    /// The ring in messages, for contenders that count those.
    pub fn slots(&self) -> usize {
        self.ring_bytes() / self.size
    }

    fn wait(&self) -> Wait {
        match self.measure {
            Measure::RttSpin => Wait::Spin,
            Measure::RttParked | Measure::Paced => Wait::Park,
            _ => Wait::Poll,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub messages: u64,
    pub seconds: f64,
    pub messages_per_second: f64,
    pub bytes_per_second: f64,
    /// CPU of both sides, user and system, over the measured stretch.
    pub cpu_ns_per_message: f64,
    /// Times that either side lost its core to another process.
    pub preempted: u64,
    pub round_trip: Option<RoundTrip>,
    /// Context switches of the reading process per second while nothing was sent.
    pub idle_wakeups_per_second: Option<f64>,
    /// Times that the reader went to sleep per message, if messages are paced.
    pub wakeups_per_message: Option<f64>,
}

impl Outcome {
    /// Messages that went one way, or there and back.
    pub fn of(job: &Job, count: u64, seconds: f64, usage: Usage) -> Self {
        Self {
            messages: count,
            seconds,
            messages_per_second: count as f64 / seconds,
            bytes_per_second: count as f64 * job.size as f64 / seconds,
            cpu_ns_per_message: usage.cpu_ns as f64 / count as f64,
            preempted: usage.preempted,
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RoundTrip {
    pub p50_ns: f64,
    pub p99_ns: f64,
    pub p999_ns: f64,
    /// `[percentile, ns]`, for the plot.
    pub curve: Vec<(f64, f64)>,
}

/// The parameters of one side of a contender.
pub struct Setup {
    pub job: Job,
    pub side: Side,
    listener: Option<UnixListener>,
    line: Option<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

impl Side {
    /// A's own first: B has them the other way round.
    pub fn order<T>(self, a: T, b: T) -> (T, T) {
        if self == Self::A { (a, b) } else { (b, a) }
    }
}

impl Setup {
    /// Names of the two directions: out of this side, and back.
    pub fn ways(&self) -> (&'static str, &'static str) {
        self.side.order("ping", "pong")
    }

    /// Waits until the other side has come as far.
    pub fn meet(&mut self) -> Result<()> {
        let line = self.line()?;
        line.send(&Ready)?;
        let Ready = line.receive()?;
        Ok(())
    }

    pub fn line(&mut self) -> Result<&mut Line> {
        if self.line.is_none() {
            self.line = Some(match (&self.listener, self.side) {
                (Some(listener), Side::A) => Line::accept(listener)?,
                _ => Line::connect(&self.job.tag)?,
            });
        }
        Ok(self.line.as_mut().expect("just made"))
    }
}

/// One side of a rival. A's loop sends, B's receives; each contender owns its loops, so that they can be as tight
/// as its API allows.
pub trait Contender: Sized {
    /// The two sides are threads of one process.
    const THREADS: bool = false;

    fn open(setup: &mut Setup) -> Result<Self>;

    /// Sends `work.count` messages.
    fn produce(&mut self, _work: &Work, _measure: Measure) -> Result<()> {
        bail!("no one-way measure")
    }

    /// Receives `work.count` messages and sums their words.
    fn consume(&mut self, _work: &Work, _measure: Measure) -> Result<u64> {
        bail!("no one-way measure")
    }

    /// Sends one message whose first word is `start`.
    fn send_one(&mut self, words: usize, start: u64, wait: Wait) -> Result<()>;

    /// Receives one message and sums its words.
    fn receive_one(&mut self, words: usize, wait: Wait) -> Result<u64>;
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Consume { count: u64 },
    Echo { count: u64 },
    Take { count: u64 },
    Quit,
}

/// The receiver's report on a stretch.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub finished: u64,
    pub sum: u64,
    /// Messages that it has read.
    pub read: u64,
    pub usage: Usage,
}

/// The first word of side B: its pid.
type Hello = i32;

#[derive(Debug, Serialize, Deserialize)]
pub struct Ready;

pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to cpu {cpu}"))
}

/// User and system time so far, and how often another process was given the core. Threads count alone where both sides
/// share a process, else the whole process does, helper threads of the contender included.
pub fn usage(thread_only: bool) -> Usage {
    let who = if thread_only {
        UsageWho::RUSAGE_THREAD
    } else {
        UsageWho::RUSAGE_SELF
    };
    let usage = getrusage(who).expect("nothing can fail here");
    let ns = |time: TimeVal| time.num_microseconds() as u64 * 1000;
    Usage {
        cpu_ns: ns(usage.user_time()) + ns(usage.system_time()),
        sleeps: usage.voluntary_context_switches() as u64,
        preempted: usage.involuntary_context_switches() as u64,
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_ns: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Times that another process was given the core.
    pub preempted: u64,
}

impl Usage {
    pub fn since(thread_only: bool, before: Self) -> Self {
        let now = usage(thread_only);
        Self {
            cpu_ns: now.cpu_ns - before.cpu_ns,
            sleeps: now.sleeps - before.sleeps,
            preempted: now.preempted - before.preempted,
        }
    }

    pub fn and(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            sleeps: self.sleeps + other.sleeps,
            preempted: self.preempted + other.preempted,
        }
    }
}

fn switches(pid: i32) -> Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        for line in status.lines() {
            if let Some((key, value)) = line.split_once(':')
                && key.ends_with("ctxt_switches")
            {
                total += value.trim().parse::<u64>()?;
            }
        }
    }
    Ok(total)
}

/// Starts a process that ends with this one: a run that is cut short must not leave it on a core that the next one is measured on.
pub fn spawn(command: &mut Command) -> Result<Child> {
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
    }
    Ok(command.stdin(Stdio::null()).spawn()?)
}

/// Starts this program with other arguments, as [`spawn`] does.
pub fn spawn_self(arguments: &[&str]) -> Result<Child> {
    spawn(Command::new(std::env::current_exe()?).args(arguments))
}

/// Runs stretches, at first of `count` messages, until one takes `enough` seconds; returns how many take `seconds`. `stretch` returns
/// how many it has sent, and the seconds that took.
pub fn warmed_up(
    seconds: f64,
    mut count: u64,
    mut stretch: impl FnMut(u64) -> Result<(u64, f64)>,
) -> Result<u64> {
    let enough = (seconds / 5.0).clamp(0.02, 0.2);
    loop {
        let (sent, taken) = stretch(count)?;
        if taken >= enough {
            return Ok((sent as f64 / taken * seconds) as u64 + 1);
        }
        count = (sent as f64 * (1.3 * enough / taken).clamp(1.5, 32.0)) as u64;
    }
}

/// Side A of one run: opens the contender, lets it warm up, measures.
pub fn run_a<C: Contender + 'static>(job: &Job) -> Result<Outcome> {
    pin(job.cpus[0])?;
    let listener = line::listen(&job.tag)?;
    let mut child = None;
    let mut thread = None;
    if C::THREADS {
        let job = job.clone();
        thread = Some(std::thread::spawn(move || run_b::<C>(&job)));
    } else {
        child = Some(spawn_self(&["peer", &serde_json::to_string(job)?])?);
    }
    let mut setup = Setup {
        job: job.clone(),
        side: Side::A,
        listener: Some(listener),
        line: None,
    };
    let mut contender = C::open(&mut setup)?;
    setup.line()?;
    let mut line = setup.line.take().expect("connected above");
    let hello: Hello = line.receive()?;

    let outcome = if job.measure == Measure::Paced {
        paced(&mut contender, &mut line, job)
    } else if job.measure.is_round_trip() {
        round_trips(&mut contender, &mut line, job, hello, C::THREADS)
    } else {
        one_way(&mut contender, &mut line, job, C::THREADS)
    };
    if outcome.is_ok() {
        line.send(&Order::Quit)?;
        drop(contender);
        if let Some(mut child) = child {
            child.wait()?;
        }
        if let Some(thread) = thread {
            thread.join().map_err(|_| anyhow::anyhow!("side B panicked"))??;
        }
    }
    outcome
}

/// Side B: does what A orders until it says quit.
pub fn run_b<C: Contender>(job: &Job) -> Result<()> {
    pin(job.cpus[1])?;
    let mut setup = Setup {
        job: job.clone(),
        side: Side::B,
        listener: None,
        line: None,
    };
    let mut contender = C::open(&mut setup)?;
    setup.line()?;
    let mut line = setup.line.take().expect("connected above");
    line.send(&(std::process::id() as Hello))?;
    let wait = job.wait();
    loop {
        match line.receive()? {
            Order::Quit => return Ok(()),
            order => {
                line.send(&Ready)?;
                let before = usage(C::THREADS);
                let sum = execute(&mut contender, &order, job, wait)?;
                line.send(&Report {
                    finished: clock::now(),
                    sum,
                    usage: Usage::since(C::THREADS, before),
                    ..Report::default()
                })?;
            }
        }
    }
}

fn execute<C: Contender>(contender: &mut C, order: &Order, job: &Job, wait: Wait) -> Result<u64> {
    let words = job.size / 8;
    let mut sum = 0u64;
    match *order {
        Order::Consume { count } => return contender.consume(&Work::new(job.size, count), job.measure),
        Order::Echo { count } => {
            for n in 0..count {
                sum = sum.wrapping_add(contender.receive_one(words, wait)?);
                contender.send_one(words, n, wait)?;
            }
        }
        Order::Take { count } => {
            for _ in 0..count {
                sum = sum.wrapping_add(contender.receive_one(words, wait)?);
            }
        }
        Order::Quit => {}
    }
    Ok(sum)
}

/// Sends a message each millisecond.
fn paced<C: Contender>(c: &mut C, line: &mut Line, job: &Job) -> Result<Outcome> {
    const PERIOD: u64 = 1_000_000;
    let work = Work::new(job.size, 0);
    let mut stretch = |count: u64| -> Result<(f64, Usage, Usage)> {
        line.send(&Order::Take { count })?;
        let Ready = line.receive()?;
        let (before, started) = (usage(false), clock::now());
        let mut expected = 0u64;
        for n in 0..count {
            let early = (started + n * PERIOD).saturating_sub(clock::now());
            std::thread::sleep(std::time::Duration::from_nanos(early));
            c.send_one(work.words, n, Wait::Park)?;
            expected = expected.wrapping_add(work.message_sum(n));
        }
        let mine = Usage::since(false, before);
        let report: Report = line.receive()?;
        if report.sum != expected {
            bail!("what arrived is not what was sent");
        }
        let seconds = (report.finished - started) as f64 / 1e9;
        Ok((seconds, mine, report.usage))
    };
    stretch(50)?;
    let count = (job.seconds * 1e9) as u64 / PERIOD;
    let (seconds, mine, theirs) = stretch(count)?;
    Ok(Outcome {
        wakeups_per_message: Some(theirs.sleeps as f64 / count as f64),
        ..Outcome::of(job, count, seconds, mine.and(theirs))
    })
}

fn one_way<C: Contender>(c: &mut C, line: &mut Line, job: &Job, threads: bool) -> Result<Outcome> {
    let mut stretch = |count: u64| -> Result<(Work, f64, Usage)> {
        let work = Work::new(job.size, count);
        line.send(&Order::Consume { count: work.count })?;
        let Ready = line.receive()?;
        let before = usage(threads);
        let started = clock::now();
        c.produce(&work, job.measure)?;
        let usage = Usage::since(threads, before);
        let report: Report = line.receive()?;
        if report.sum != work.expected_sum() {
            bail!(
                "what arrived is not what was sent: sum {:#x}, not {:#x}",
                report.sum,
                work.expected_sum()
            );
        }
        Ok((
            work,
            (report.finished - started) as f64 / 1e9,
            usage.and(report.usage),
        ))
    };

    // Twice round the ring: every page touched, every cached index in its steady state.
    let first = (2 * job.ring_bytes() / job.size) as u64;
    let count = warmed_up(job.seconds, first, |count| {
        let (work, seconds, _) = stretch(count)?;
        Ok((work.count, seconds))
    })?;
    let (work, seconds, usage) = stretch(count)?;
    Ok(Outcome::of(job, work.count, seconds, usage))
}

fn round_trips<C: Contender>(
    c: &mut C,
    line: &mut Line,
    job: &Job,
    hello: Hello,
    threads: bool,
) -> Result<Outcome> {
    let words = job.size / 8;
    let wait = job.wait();
    let tick = clock::tick_length();
    let mut stretch = |count: u64, histogram: &mut Histogram<u64>| -> Result<(f64, Usage)> {
        line.send(&Order::Echo { count })?;
        let Ready = line.receive()?;
        let before = usage(threads);
        let started = clock::now();
        let (mut expected, mut sum) = (0u64, 0u64);
        for n in 0..count {
            let sent = clock::ticks();
            c.send_one(words, n, wait)?;
            sum = sum.wrapping_add(c.receive_one(words, wait)?);
            histogram.saturating_record(clock::ticks().wrapping_sub(sent));
            expected = expected.wrapping_add(Work::new(job.size, 0).message_sum(n));
        }
        let seconds = (clock::now() - started) as f64 / 1e9;
        let usage = Usage::since(threads, before);
        let report: Report = line.receive()?;
        if report.sum != expected || sum != expected {
            bail!("what came back is not what was sent");
        }
        Ok((seconds, usage.and(report.usage)))
    };

    let histogram = || Histogram::<u64>::new_with_bounds(1, 1 << 40, 3);
    let count = warmed_up(job.seconds, 200, |count| {
        Ok((count, stretch(count, &mut histogram()?)?.0))
    })?;
    let mut measured = histogram()?;
    let (seconds, usage) = stretch(count, &mut measured)?;

    // Nothing is sent for a while: whatever the reader does then is wasted.
    let mut idle = None;
    if job.measure == Measure::RttParked && !threads {
        line.send(&Order::Echo { count: 1 })?;
        let Ready = line.receive()?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (from, started) = (switches(hello)?, clock::now());
        std::thread::sleep(std::time::Duration::from_millis(300));
        let woken = switches(hello)? - from;
        idle = Some(woken as f64 / ((clock::now() - started) as f64 / 1e9));
        c.send_one(words, 0, wait)?;
        c.receive_one(words, wait)?;
        let _: Report = line.receive()?;
    }

    let at = |percentile: f64| measured.value_at_percentile(percentile) as f64 * tick;
    let curve = [
        0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999, 100.0,
    ];
    Ok(Outcome {
        round_trip: Some(RoundTrip {
            p50_ns: at(50.0),
            p99_ns: at(99.0),
            p999_ns: at(99.9),
            curve: curve.iter().map(|&p| (p, at(p))).collect(),
        }),
        idle_wakeups_per_second: idle,
        ..Outcome::of(job, count, seconds, usage)
    })
}
