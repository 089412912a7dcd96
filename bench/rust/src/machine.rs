//! What this machine is, and where its hypervisor has put the two cores just now.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::driver::pin;

/// Round trips of one cache line below this are "near": one die. Between, nothing has been seen; far ones take
/// several times as long.
pub const NEAR: f64 = 200.0;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Round trip of one cache line between the two cores.
    pub line_ns: f64,
    pub near: bool,
}

impl Placement {
    pub fn name(self) -> &'static str {
        if self.near { "near" } else { "far" }
    }
}

/// What was measured, and where the cores were before and after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placed<T> {
    pub before: Placement,
    pub after: Placement,
    #[serde(flatten)]
    pub outcome: T,
}

impl<T> Placed<T> {
    /// A run whose cores moved meanwhile belongs to neither placement.
    pub fn placement(&self) -> &'static str {
        placement_of(self.before, self.after)
    }
}

/// The name of where a run was that lies between these two looks.
pub fn placement_of(before: Placement, after: Placement) -> &'static str {
    if before.near == after.near {
        before.name()
    } else {
        "moved"
    }
}

#[repr(align(128))]
struct Lined(AtomicU64);

/// Sends a cache line to and fro for a few milliseconds. The median of many short stretches: a stretch that was
/// interrupted says nothing about distance.
pub fn probe(cpus: [usize; 2]) -> Result<Placement> {
    const STRETCHES: usize = 50;
    const TRIPS: u64 = 500;
    let (ping, pong) = (Lined(AtomicU64::new(0)), Lined(AtomicU64::new(0)));
    let ready = AtomicBool::new(false);
    let mut stretches = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let echo = scope.spawn(|| -> Result<()> {
            pin(cpus[1])?;
            ready.store(true, Ordering::Release);
            for turn in 1..=STRETCHES as u64 * TRIPS {
                while ping.0.load(Ordering::Acquire) != turn {
                    std::hint::spin_loop();
                }
                pong.0.store(turn, Ordering::Release);
            }
            Ok(())
        });
        let lead = scope.spawn(|| -> Result<Vec<f64>> {
            pin(cpus[0])?;
            while !ready.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let mut turn = 0;
            let mut stretches = Vec::with_capacity(STRETCHES);
            for _ in 0..STRETCHES {
                let started = clock::now();
                for _ in 0..TRIPS {
                    turn += 1;
                    ping.0.store(turn, Ordering::Release);
                    while pong.0.load(Ordering::Acquire) != turn {
                        std::hint::spin_loop();
                    }
                }
                stretches.push((clock::now() - started) as f64 / TRIPS as f64);
            }
            Ok(stretches)
        });
        echo.join().map_err(|_| anyhow!("the probe failed"))??;
        lead.join().map_err(|_| anyhow!("the probe failed"))?
    })?;
    stretches.sort_by(f64::total_cmp);
    let line_ns = stretches[STRETCHES / 2];
    Ok(Placement {
        line_ns,
        near: line_ns < NEAR,
    })
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub caches: String,
    pub memory_gib: f64,
    pub kernel: String,
    pub hypervisor: bool,
    pub rustc: String,
}

pub fn describe() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let field = |name: &str| {
        info.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let cache = |index: usize| {
        let of = |name: &str| {
            read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"))
                .trim()
                .to_owned()
        };
        (!of("size").is_empty())
            .then(|| format!("L{} {} {}", of("level"), of("type").to_lowercase(), of("size")))
    };
    let memory = read("/proc/meminfo");
    let kib: f64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0.0);
    Machine {
        cpu: format!(
            "{} (family {} model {})",
            field("model name"),
            field("cpu family"),
            field("model")
        ),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        caches: (0..4).filter_map(cache).collect::<Vec<_>>().join(", "),
        memory_gib: kib / 1024.0 / 1024.0,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        hypervisor: info.contains("hypervisor"),
        rustc: std::process::Command::new("rustc")
            .arg("--version")
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default(),
    }
}
