//! The costs of ringfence as work grows: channels between two processes, idle and busy, read one by one and by one merge; subscribers of
//! one publisher; messages and rings of any length. Each step is one process and its peer.

mod host;
mod side;

use std::num::NonZero;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::driver::{Usage, pin};
use host::{Host, alone, longest_of};
pub use side::{peer, raise_descriptor_limit};

#[derive(Deserialize)]
struct Job {
    /// The table: channels, subscribers, sizes or capacities.
    measure: String,
    #[serde(default)]
    contender: String,
    /// The number of channels or subscribers, or of bytes of a message or of a ring.
    size: usize,
    seconds: f64,
    /// Names sockets and addresses of this run alone.
    tag: String,
}

/// Bytes of a page of memory.
const PAGE: usize = 4096;

/// Bytes of the ring of a publisher that many read.
const RING_OF_MANY: usize = 1 << 20;

/// Changes of a list of subscribers that are measured, half of them joins.
const CHANGES: usize = 20;

/// Measures one step of a table.
pub fn step(job: &str) -> Result<Value> {
    let job: Job = serde_json::from_str(job)?;
    raise_descriptor_limit();
    let host = |capacity, size| Host::start(&job.tag, capacity, size);
    match job.measure.as_str() {
        "channels" => channels(host(64 * 1024, 64)?, job.size, job.seconds),
        "subscribers" => subscribers(host(RING_OF_MANY, 64)?, job.size, job.seconds),
        "joins" => joins(host(64 * 1024, 64)?, job.size),
        "changes" if job.contender == "pages" => pages(job.size),
        "changes" => changes(host(RING_OF_MANY, 64)?, job.size),
        "sizes" => {
            let mut host = host(4 << 20, job.size)?;
            host.join(1)?;
            let flow = host.stream(job.seconds)?;
            let in_fragments = job.size as u64 > host.max_at_once();
            host.quit()?;
            let alone = alone(4 << 20, job.size, job.seconds)?;
            Ok(json!({ "flow": flow, "alone_per_second": alone, "in_fragments": in_fragments }))
        }
        "capacities" => {
            let mut sample = serde_json::Map::new();
            for size in [64, 1024, 64 * 1024, 1 << 20] {
                let mut host = host(job.size, size)?;
                let base = host.resources()?.shared_kib;
                sample.insert("join_ms".into(), json!(host.join(1)? * 1e3));
                sample.insert("memory_kib".into(), json!(host.resources()?.shared_kib - base));
                sample.insert(size.to_string(), json!(host.stream(job.seconds)?));
                if size == 64 {
                    sample.insert("batched".into(), json!(host.busy(job.seconds, 32, false)?));
                }
                host.quit()?;
            }
            Ok(sample.into())
        }
        other => bail!("no table {other}"),
    }
}

fn idle((usage, seconds): (Usage, f64)) -> (f64, f64) {
    (usage.cpu_ns as f64 / seconds / 1e7, usage.sleeps as f64 / seconds)
}

/// The median and the 99th percentile.
fn curve(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values[(values.len() - 1) * part / 100];
    (at(50), at(99))
}

/// The first join of two processes that have several threads, and `count` further ones.
fn joins(mut host: Host, count: usize) -> Result<Value> {
    let first = host.join(1)? * 1e9;
    let times = (0..count).map(|_| Ok(host.join(1)? * 1e9));
    let (p50, p99) = curve(times.collect::<Result<Vec<_>>>()?);
    host.quit()?;
    Ok(json!({ "first_ns": first, "p50_ns": p50, "p99_ns": p99 }))
}

/// CPU time of the longest publish while one of `count` subscribers joins or leaves.
fn changes(mut host: Host, count: usize) -> Result<Value> {
    host.publish(RING_OF_MANY, count)?;
    let times = (0..CHANGES).map(|change| host.change(change % 2 == 0));
    let (p50, p99) = curve(times.collect::<Result<Vec<_>>>()?);
    host.quit()?;
    Ok(json!({ "p50_ns": p50, "p99_ns": p99 }))
}

/// What a publish to `count` subscribers cannot avoid, since each of them writes memory of its own: a load from a page of each.
fn pages(count: usize) -> Result<Value> {
    pin(0)?;
    let size = NonZero::new(count * PAGE).context("no subscriber")?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, which is never undone.
    let base = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE) }?;
    let load = |page: usize| {
        // A different line of each page, as subscribers have.
        let at = page * PAGE + page % (PAGE / 64) * 64;
        // SAFETY: the word lies in the mapping, and is aligned.
        unsafe { base.as_ptr().cast::<u8>().add(at).cast::<u64>().read_volatile() }
    };
    let times = (0..CHANGES).map(|_| {
        longest_of(|| {
            ensure!(
                (0..count).map(load).sum::<u64>() == 0,
                "somebody has written the pages"
            );
            Ok(())
        })
    });
    let (p50, p99) = curve(times.collect::<Result<Vec<_>>>()?);
    Ok(json!({ "p50_ns": p50, "p99_ns": p99 }))
}

/// Small rings: a thousand of the default size would take gigabytes.
fn channels(mut host: Host, count: usize, seconds: f64) -> Result<Value> {
    let each = |value: f64| value / count as f64;
    let base = host.resources()?;
    let join = host.join(count)?;
    let full = host.resources()?;
    // Long enough to see what happens once a second.
    let (idle_cpu, idle_wakeups) = idle(host.idle(seconds.max(1.0))?);
    let sample = json!({
        "join_ms": each(join * 1e3),
        "descriptors": each((full.descriptors - base.descriptors) as f64),
        "memory_kib": each((full.shared_kib - base.shared_kib) as f64),
        "idle_cpu_percent": idle_cpu,
        "idle_wakeups_per_second": idle_wakeups,
        "busy": host.busy(seconds, 1, false)?,
        "batched": host.busy(seconds, 32, false)?,
        "woken_round_trip_us": host.woken(200)?,
        "merged": host.busy(seconds, 1, true)?,
        "merged_batched": host.busy(seconds, 32, true)?,
        "leave_ms": each(host.release()? * 1e3),
    });
    host.quit()?;
    Ok(sample)
}

fn subscribers(mut host: Host, count: usize, seconds: f64) -> Result<Value> {
    let each = |value: f64| value / count as f64;
    let base = host.resources()?;
    let join = host.publish(RING_OF_MANY, count)?;
    let full = host.resources()?;
    let (idle_cpu, idle_wakeups) = idle(host.idle(seconds.max(1.0))?);
    let sample = json!({
        "join_ms": each(join * 1e3),
        "descriptors": each((full.descriptors - base.descriptors) as f64),
        "idle_cpu_percent": idle_cpu,
        "idle_wakeups_per_second": idle_wakeups,
        "one": host.broadcast(seconds, 1)?,
        "batched": host.broadcast(seconds, 32)?,
        "leave_ms": each(host.release()? * 1e3),
    });
    host.quit()?;
    Ok(sample)
}
