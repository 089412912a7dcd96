//! The tables: channels, subscribers, messages, capacities.

use anyhow::Result;

use super::host::{Host, alone};
use super::rounds::rounds;
use super::rows::{
    CapacityRow, ChannelsRow, ChannelsSample, FlowRow, SizeRow, SubscribersRow, SubscribersSample,
};
use super::{Arguments, Results, worse};
use crate::spread::Spread;

/// Bytes of the ring of a publisher that many read.
const RING_OF_MANY: usize = 1 << 20;
/// Descriptors that a process takes for a channel, and for what else it has.
const DESCRIPTORS_EACH: usize = 3;
const DESCRIPTORS_BESIDE: usize = 200;

/// Those numbers of channels for which a process has descriptors; says which it leaves out.
pub fn affordable(wanted: &[usize], limit: u64) -> Vec<usize> {
    let (can, cannot): (Vec<_>, Vec<_>) = wanted
        .iter()
        .partition(|count| (*count * DESCRIPTORS_EACH + DESCRIPTORS_BESIDE) as u64 <= limit);
    if !cannot.is_empty() {
        println!("left out, with a limit of {limit} descriptors: {cannot:?}");
    }
    can
}

pub fn channels(plan: &Arguments, results: &mut Results) -> Result<()> {
    let samples = rounds(plan, results, &plan.channels, |count| {
        // A small ring each: a thousand of the default size would be 8 GiB.
        let mut host = Host::start(64 * 1024, 64)?;
        let base = host.resources()?;
        let join_ms = host.join(count)? / count as f64 * 1e3;
        let full = host.resources()?;
        let per = |value: u64| value as f64 / count as f64;
        let sample = ChannelsSample {
            join_ms,
            descriptors: per(full.descriptors - base.descriptors),
            memory_kib: per(full.shared_kib - base.shared_kib),
            // Long enough to see what happens once a second.
            idle: host.idle(plan.seconds.max(1.0))?,
            busy: host.busy(plan.seconds, 1, false)?,
            batched: host.busy(plan.seconds, 32, false)?,
            woken_us: host.woken(200)?,
            merged: host.busy(plan.seconds, 1, true)?,
            merged_batched: host.busy(plan.seconds, 32, true)?,
            leave_ms: host.release()? / count as f64 * 1e3,
        };
        host.quit()?;
        Ok(sample)
    })?;
    println!(
        "\n{:>8} {:>9} {:>9} {:>12} {:>11} {:>9} {:>10} {:>13} {:>13} {:>12} {:>13}",
        "channels",
        "join",
        "leave",
        "descriptors",
        "memory",
        "idle CPU",
        "wake-ups",
        "busy",
        "batches",
        "woken RTT",
        "merged"
    );
    for step in samples {
        let (count, samples) = (step.work, step.samples);
        let spread = |pick: fn(&ChannelsSample) -> f64| Spread::by(&samples, pick);
        let row = ChannelsRow {
            channels: count,
            placement: step.placement,
            runs: samples.len(),
            join_ms: spread(|sample| sample.join_ms),
            leave_ms: spread(|sample| sample.leave_ms),
            descriptors: spread(|sample| sample.descriptors).median,
            memory_kib: spread(|sample| sample.memory_kib).median,
            idle_cpu_percent: spread(|sample| sample.idle.cpu_ns as f64 / sample.idle.seconds / 1e7),
            idle_wakeups_per_second: spread(|sample| sample.idle.sleeps as f64 / sample.idle.seconds),
            busy: FlowRow::of(&samples, |sample| sample.busy),
            batched: FlowRow::of(&samples, |sample| sample.batched),
            woken_round_trip_us: spread(|sample| sample.woken_us),
            merged: FlowRow::of(&samples, |sample| sample.merged),
            merged_batched: FlowRow::of(&samples, |sample| sample.merged_batched),
        };
        println!(
            "{:>8} {:>6.2} ms {:>6.2} ms {:>12.1} {:>7.0} KiB {:>7.2} % {:>8.1}/s {:>9.2} M/s {:>9.2} M/s {:>9.1} µs {:>9.2} M/s",
            row.channels,
            row.join_ms.median,
            row.leave_ms.median,
            row.descriptors,
            row.memory_kib,
            row.idle_cpu_percent.median,
            row.idle_wakeups_per_second.median,
            row.busy.messages_per_second.median / 1e6,
            row.batched.messages_per_second.median / 1e6,
            row.woken_round_trip_us.median,
            row.merged.messages_per_second.median / 1e6
        );
        results.channels.push(row);
    }
    let rows = &results.channels;
    let mut steps = Vec::new();
    let growth = |row: &ChannelsRow| row.channels as f64;
    // The least of the joins, since most of the others have waited for a core, beside other work.
    // A join, a descriptor and a message must not become dearer by more than the number of channels does.
    steps.extend(worse("channels", "join time", rows, growth, |row| {
        row.join_ms.min * row.channels as f64
    }));
    steps.extend(worse("channels", "time to leave", rows, growth, |row| {
        row.leave_ms.min * row.channels as f64
    }));
    steps.extend(worse("channels", "memory", rows, growth, |row| {
        row.memory_kib * row.channels as f64
    }));
    steps.extend(worse("channels", "descriptors", rows, growth, |row| {
        row.descriptors * row.channels as f64
    }));
    // A round over all channels costs each of them once.
    steps.extend(worse("channels", "a busy round", rows, growth, |row| {
        row.channels as f64 * row.busy.seconds_per_message()
    }));
    steps.extend(worse("channels", "a batched round", rows, growth, |row| {
        row.channels as f64 * row.batched.seconds_per_message()
    }));
    steps.extend(worse("channels", "a merged round", rows, growth, |row| {
        row.channels as f64 * row.merged.seconds_per_message()
    }));
    steps.extend(worse("channels", "a woken round trip", rows, growth, |row| {
        row.woken_round_trip_us.median
    }));
    results.worse_than_linear.extend(steps);
    Ok(())
}

pub fn subscribers(plan: &Arguments, results: &mut Results) -> Result<()> {
    let samples = rounds(plan, results, &plan.subscribers, |count| {
        let mut host = Host::start(RING_OF_MANY, 64)?;
        let base = host.resources()?;
        let join_ms = host.publish(RING_OF_MANY, count)? / count as f64 * 1e3;
        let full = host.resources()?;
        let sample = SubscribersSample {
            join_ms,
            descriptors: (full.descriptors - base.descriptors) as f64 / count as f64,
            idle: host.idle(plan.seconds.max(1.0))?,
            one: host.broadcast(plan.seconds, 1)?,
            batched: host.broadcast(plan.seconds, 32)?,
            leave_ms: host.release()? / count as f64 * 1e3,
        };
        host.quit()?;
        Ok(sample)
    })?;
    println!(
        "\n{:>11} {:>9} {:>9} {:>12} {:>9} {:>10} {:>13} {:>13}",
        "subscribers", "join", "leave", "descriptors", "idle CPU", "wake-ups", "delivered", "batches"
    );
    for step in samples {
        let (count, samples) = (step.work, step.samples);
        let spread = |pick: fn(&SubscribersSample) -> f64| Spread::by(&samples, pick);
        let row = SubscribersRow {
            subscribers: count,
            placement: step.placement,
            runs: samples.len(),
            join_ms: spread(|sample| sample.join_ms),
            leave_ms: spread(|sample| sample.leave_ms),
            descriptors: spread(|sample| sample.descriptors).median,
            idle_cpu_percent: spread(|sample| sample.idle.cpu_ns as f64 / sample.idle.seconds / 1e7),
            idle_wakeups_per_second: spread(|sample| sample.idle.sleeps as f64 / sample.idle.seconds),
            one: FlowRow::of(&samples, |sample| sample.one),
            batched: FlowRow::of(&samples, |sample| sample.batched),
        };
        println!(
            "{:>11} {:>6.2} ms {:>6.2} ms {:>12.1} {:>7.2} % {:>8.1}/s {:>9.2} M/s {:>9.2} M/s",
            row.subscribers,
            row.join_ms.median,
            row.leave_ms.median,
            row.descriptors,
            row.idle_cpu_percent.median,
            row.idle_wakeups_per_second.median,
            row.one.messages_per_second.median * count as f64 / 1e6,
            row.batched.messages_per_second.median * count as f64 / 1e6,
        );
        results.subscribers.push(row);
    }
    let rows = &results.subscribers;
    let growth = |row: &SubscribersRow| row.subscribers as f64;
    let mut steps = worse("subscribers", "join time", rows, growth, |row| {
        row.join_ms.min * row.subscribers as f64
    });
    steps.extend(worse("subscribers", "time to leave", rows, growth, |row| {
        row.leave_ms.min * row.subscribers as f64
    }));
    // Each is read once by each.
    steps.extend(worse("subscribers", "a message", rows, growth, |row| {
        row.one.seconds_per_message()
    }));
    steps.extend(worse(
        "subscribers",
        "a message in a batch",
        rows,
        growth,
        |row| row.batched.seconds_per_message(),
    ));
    results.worse_than_linear.extend(steps);
    Ok(())
}

pub fn sizes(plan: &Arguments, results: &mut Results) -> Result<()> {
    let samples = rounds(plan, results, &plan.sizes, |size| {
        let mut host = Host::start(4 << 20, size)?;
        host.join(1)?;
        let flow = host.stream(plan.seconds)?;
        let in_fragments = size as u64 > host.max_at_once();
        host.quit()?;
        let alone = alone(4 << 20, size, plan.seconds)?;
        Ok((flow, in_fragments, alone))
    })?;
    println!(
        "\n{:>10} {:>14} {:>12} {:>14} {:>14}",
        "message", "messages", "bytes", "each", "without it"
    );
    for step in samples {
        let (size, samples) = (step.work, step.samples);
        let row = SizeRow {
            size,
            placement: step.placement,
            runs: samples.len(),
            flow: FlowRow::of(&samples, |sample| sample.0),
            alone_per_second: Spread::by(&samples, |sample| sample.2),
            in_fragments: samples[0].1,
        };
        let rate = row.flow.messages_per_second.median;
        println!(
            "{:>10} {:>12.3e}/s {:>7.2} GB/s {:>11.1} ns {:>11.1} ns{}",
            row.size,
            rate,
            rate * size as f64 / 1e9,
            1e9 / rate,
            1e9 / row.alone_per_second.median,
            if row.in_fragments { "  in fragments" } else { "" }
        );
        results.sizes.push(row);
    }
    let steps = worse(
        "sizes",
        "a message",
        &results.sizes,
        |row| row.size as f64,
        |row| row.flow.seconds_per_message(),
    );
    results.worse_than_linear.extend(steps);
    Ok(())
}

pub fn capacities(plan: &Arguments, results: &mut Results) -> Result<()> {
    let samples = rounds(plan, results, &plan.capacities, |capacity| {
        let mut host = Host::start(capacity, 64)?;
        let join_ms = host.join(1)? * 1e3;
        let small = host.stream(plan.seconds)?;
        host.quit()?;
        let mut host = Host::start(capacity, 16 * 1024)?;
        host.join(1)?;
        let large = host.stream(plan.seconds)?;
        host.quit()?;
        Ok((join_ms, small, large))
    })?;
    println!("\n{:>10} {:>10} {:>14} {:>14}", "ring", "join", "64 B", "16 KiB");
    for step in samples {
        let (capacity, samples) = (step.work, step.samples);
        let row = CapacityRow {
            capacity,
            placement: step.placement,
            runs: samples.len(),
            join_ms: Spread::by(&samples, |sample| sample.0),
            small: FlowRow::of(&samples, |sample| sample.1),
            large: FlowRow::of(&samples, |sample| sample.2),
        };
        println!(
            "{capacity:>10} {:>7.2} ms {:>10.2} M/s {:>9.2} GB/s",
            row.join_ms.median,
            row.small.messages_per_second.median / 1e6,
            row.large.messages_per_second.median * 16384.0 / 1e9
        );
        results.capacities.push(row);
    }
    let steps = worse(
        "capacities",
        "join time",
        &results.capacities,
        |row| row.capacity as f64,
        |row| row.join_ms.min,
    );
    results.worse_than_linear.extend(steps);
    Ok(())
}
