//! For how long the publisher is blocked after one of two subscribers was killed, stopped, or is a zombie.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::driver::{Crowd, Job, Order, Publish};
use crate::clock;
use crate::driver::pin;
use crate::work::Work;

/// The failure of a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    /// SIGKILL, reaped by its parent.
    Killed,
    /// SIGSTOP.
    Stopped,
    /// SIGKILL, not reaped.
    Zombie,
}

impl Failure {
    fn inject(self, pid: Pid) -> Result<()> {
        match self {
            Self::Killed => {
                kill(pid, Signal::SIGKILL)?;
                waitpid(pid, None)?;
            }
            Self::Stopped => kill(pid, Signal::SIGSTOP)?,
            Self::Zombie => {
                kill(pid, Signal::SIGKILL)?;
                // Waits for its exit without reaping it.
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
            }
        }
        Ok(())
    }
}

/// The time for which a subscriber may delay ringfence's publisher in these runs. The default is 5 s.
pub const STALL: Duration = Duration::from_secs(1);
/// Longest wait for the publisher to continue.
const LIMIT: Duration = Duration::from_secs(6);
/// Publishing before the failure, and after the publisher has continued.
const MARGIN: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocked {
    /// The longest time between two publishes after the failure.
    pub milliseconds: f64,
    /// The publisher continued within the limit.
    pub continues: bool,
}

/// When the last publish returned, and the longest time between two since the failure; in nanoseconds.
struct Pulse {
    last: AtomicU64,
    longest: AtomicU64,
}

/// Publishes on this thread until another one has seen enough, and ends the process with the answer: a publisher that is blocked
/// for ever cannot be called back.
pub fn blocked<P: Publish>(job: &Job) -> Result<()> {
    static PULSE: Pulse = Pulse {
        last: AtomicU64::new(0),
        longest: AtomicU64::new(0),
    };
    let failure = job.failure.context("a failure")?;
    let mut publisher = P::open(job)?;
    pin(job.cpus[0])?;
    let mut crowd = Crowd::start(&mut publisher, job)?;
    for line in &mut crowd.lines {
        line.send(&Order::Forever)?;
    }
    let victim = Pid::from_raw(crowd.children[0].id() as i32);
    let cpu = job.cpus[1];
    PULSE.last.store(clock::now(), Ordering::Relaxed);
    std::thread::spawn(move || {
        let found = pin(cpu).and_then(|()| watch(&PULSE, failure, victim));
        match found.and_then(|found| Ok(serde_json::to_string(&found)?)) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("{error:#}"),
        }
        // The subscribers end with this process.
        std::process::exit(0);
    });
    let work = Work::new(job.size, 1);
    loop {
        publisher.publish(&work, job.batch)?;
        let now = clock::now();
        let gap = now - PULSE.last.swap(now, Ordering::Relaxed);
        PULSE.longest.fetch_max(gap, Ordering::Relaxed);
    }
}

fn watch(pulse: &Pulse, failure: Failure, victim: Pid) -> Result<Blocked> {
    std::thread::sleep(MARGIN);
    pulse.longest.store(0, Ordering::Relaxed);
    failure.inject(victim)?;
    let done = clock::now();
    let quiet = || Duration::from_nanos(clock::now().saturating_sub(pulse.last.load(Ordering::Relaxed)));
    let since = || Duration::from_nanos(clock::now() - done);
    // Long enough for the ring to be full, and for a stall to begin.
    std::thread::sleep(MARGIN);
    while quiet() > MARGIN / 4 && since() < LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    let continues = since() < LIMIT;
    if continues {
        std::thread::sleep(MARGIN);
    }
    let longest = Duration::from_nanos(pulse.longest.load(Ordering::Relaxed)).max(quiet());
    Ok(Blocked {
        milliseconds: longest.as_secs_f64() * 1e3,
        continues,
    })
}
