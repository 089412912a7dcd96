//! For how long a subscriber that dies is in its publisher's way, told apart from the time that the kernel takes to end it.
//!
//!     cargo run --release --example dead_subscriber -- killed|zombie
//!
//! A publisher on core 0, two reliable subscribers that poll on core 1. One gets SIGKILL. Its parent waits for it (`killed`), or
//! watches its pidfd and leaves it a zombie.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use ringfence::{Address, Options, PublisherEvent, publish, subscribe};
use ringfence_bench::clock::now;
use ringfence_bench::driver::pin;

/// In nanoseconds: when the last batch was published, the longest time between two, and when that was over.
static LAST: AtomicU64 = AtomicU64::new(0);
static LONGEST: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicU64 = AtomicU64::new(0);

const BEFORE: Duration = Duration::from_millis(300);
/// Longer than any gap that was seen.
const AFTER: Duration = Duration::from_millis(400);

fn read(address: &str) -> Result<()> {
    pin(1)?;
    let mut subscription = subscribe(&address.parse::<Address>()?, &Options::new())?;
    let mut bytes = 0;
    loop {
        subscription.receive_each(|message| bytes += message.len(), usize::MAX)?;
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [role, address] = &words[..]
        && role == "read"
    {
        return read(address);
    }
    let is_zombie = words.first().context("killed or zombie")? == "zombie";
    let address: Address = format!("@dead-subscriber-{}", std::process::id()).parse()?;
    let mut publisher = publish(&address, &Options::new().capacity(4 << 20))?;
    pin(0)?;
    let start = || {
        Command::new(std::env::current_exe()?)
            .args(["read", &address.to_string()])
            .spawn()
    };
    let children = [start()?, start()?];
    let mut there = 0;
    while there < children.len() {
        there += usize::from(matches!(publisher.next()?, PublisherEvent::Subscriber(_)));
    }
    std::thread::spawn(move || {
        if let Err(error) = watch(children, is_zombie) {
            eprintln!("{error:#}");
        }
        std::process::exit(0);
    });
    loop {
        for _ in 0..32 {
            publisher.send(&[7; 64])?;
        }
        let at = now();
        let gap = at - LAST.swap(at, Relaxed);
        if gap > LONGEST.load(Relaxed) {
            LONGEST.store(gap, Relaxed);
            OVER.store(at, Relaxed);
        }
    }
}

fn watch([victim, mut other]: [Child; 2], is_zombie: bool) -> Result<()> {
    pin(1)?;
    let victim = Pid::from_raw(victim.id() as i32);
    // SAFETY: it takes integers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, victim.as_raw(), 0) };
    anyhow::ensure!(number >= 0, "no pidfd");
    // SAFETY: the kernel has just made it for this.
    let pidfd = unsafe { OwnedFd::from_raw_fd(number as i32) };
    std::thread::sleep(BEFORE);
    LONGEST.store(0, Relaxed);
    let killed = now();
    kill(victim, Signal::SIGKILL)?;
    if is_zombie {
        poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        )?;
    } else {
        waitpid(victim, None)?;
    }
    let ended = now();
    std::thread::sleep(AFTER);
    let since = |moment: u64| (OVER.load(Relaxed) as f64 - moment as f64) / 1e6;
    println!(
        "ended by the kernel after {:.2} ms; the longest time between two batches was {:.2} ms, and over {:.2} ms after that end",
        (ended - killed) as f64 / 1e6,
        LONGEST.load(Relaxed) as f64 / 1e6,
        since(ended),
    );
    other.kill()?;
    Ok(())
}
