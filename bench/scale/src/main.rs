//! What ringfence costs as work grows: 1 to 1,000 channels between two processes, idle and busy; messages of 8 B to
//! 64 MiB; rings of 64 KiB to 64 MiB. Each step is compared with the one before: a cost that grows faster than what
//! it is paid for is called out.

mod side;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringfence_bench::machine;
use serde::Serialize;

use side::{Flow, Host, Usage};

const HELP: &str = "\
ringfence-scale: what ringfence costs as work grows

  --channels 1,10,100,1000     between two processes, each joined at an address of its own
  --sizes 8,64,…               bytes of a message, multiples of 8 (8 B to 64 MiB), through a ring of 4 MiB
  --capacities 65536,…         bytes of a ring (64 KiB to 64 MiB), with messages of 64 B and of 16 KiB
  --seconds 0.5                of one measurement
  --runs 3                     rounds: each measures every step once; the median counts
  --pause 0                    seconds between two steps, for others on the same machine
  --json FILE                  all of it
  --only channels,sizes,capacities";

struct Plan {
    channels: Vec<usize>,
    sizes: Vec<usize>,
    capacities: Vec<usize>,
    seconds: f64,
    runs: usize,
    pause: f64,
    json: Option<PathBuf>,
    only: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of<S>(samples: &[S], pick: impl Fn(&S) -> f64) -> Self {
        let mut values: Vec<f64> = samples.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}

/// One way, for a while.
#[derive(Serialize)]
struct FlowRow {
    messages_per_second: Spread,
    cpu_ns_per_message: Spread,
    preempted_per_second: Spread,
}

impl FlowRow {
    fn of<S>(samples: &[S], pick: impl Fn(&S) -> Flow) -> Self {
        Self {
            messages_per_second: Spread::of(samples, |sample| pick(sample).messages_per_second),
            cpu_ns_per_message: Spread::of(samples, |sample| pick(sample).cpu_ns_per_message),
            preempted_per_second: Spread::of(samples, |sample| pick(sample).preempted_per_second),
        }
    }

    fn seconds_per_message(&self) -> f64 {
        1.0 / self.messages_per_second.median
    }
}

#[derive(Serialize)]
struct ChannelsRow {
    channels: usize,
    placement: &'static str,
    /// In that placement.
    runs: usize,
    /// To join one, handshake and memory included.
    join_ms: Spread,
    /// Of both processes, for each channel.
    descriptors: f64,
    /// Shared memory of both directions, for each channel.
    memory_kib: f64,
    /// All readers asleep, nothing sent: both processes together.
    idle_cpu_percent: Spread,
    idle_wakeups_per_second: Spread,
    /// One message of 64 B to each channel in turn, the reader polling all of them in turn.
    busy: FlowRow,
    /// The same, a batch of 32 to each channel in turn.
    batched: FlowRow,
    /// One channel speaks, the reader sleeps on all of them (epoll).
    woken_round_trip_us: Spread,
}

/// One measurement of a [`ChannelsRow`].
struct ChannelsSample {
    join_ms: f64,
    descriptors: f64,
    memory_kib: f64,
    idle: Usage,
    busy: Flow,
    batched: Flow,
    woken_us: f64,
}

#[derive(Serialize)]
struct SizeRow {
    size: usize,
    placement: &'static str,
    /// In that placement.
    runs: usize,
    flow: FlowRow,
    /// The same copies by one thread, without a channel.
    alone_per_second: Spread,
    in_fragments: bool,
}

#[derive(Serialize)]
struct CapacityRow {
    capacity: usize,
    placement: &'static str,
    /// In that placement.
    runs: usize,
    join_ms: Spread,
    /// Messages of 64 B.
    small: FlowRow,
    /// Messages of 16 KiB.
    large: FlowRow,
}

#[derive(Serialize, Default)]
struct Results {
    machine: Option<machine::Machine>,
    seconds: f64,
    runs: usize,
    /// Before and after each step.
    placements: Vec<machine::Placement>,
    channels: Vec<ChannelsRow>,
    sizes: Vec<SizeRow>,
    capacities: Vec<CapacityRow>,
    worse_than_linear: Vec<String>,
}

/// What was measured of a step, all of it in one placement.
struct Step<S> {
    work: usize,
    placement: &'static str,
    samples: Vec<S>,
}

/// Every step once in each round, so that what the machine does in one minute it does to all of them. Near runs and far
/// ones are not put together: what most runs had is kept, and of a step that has none of it what there is.
fn rounds<S>(
    plan: &Plan,
    results: &mut Results,
    steps: &[usize],
    mut measure: impl FnMut(usize) -> Result<S>,
) -> Result<Vec<Step<S>>> {
    let mut samples: Vec<(usize, Vec<(&'static str, S)>)> =
        steps.iter().map(|step| (*step, Vec::new())).collect();
    for _ in 0..plan.runs {
        for (step, values) in &mut samples {
            let before = machine::probe([0, 1])?;
            let value = measure(*step)?;
            let after = machine::probe([0, 1])?;
            let name = if before.near == after.near {
                before.name()
            } else {
                "moved"
            };
            results.placements.extend([before, after]);
            values.push((name, value));
            std::thread::sleep(Duration::from_secs_f64(plan.pause));
        }
    }
    let most = |values: &mut dyn Iterator<Item = &'static str>| {
        let mut counts = [("near", 0), ("far", 0), ("moved", 0)];
        values.for_each(|name| {
            counts
                .iter_mut()
                .for_each(|(other, count)| *count += usize::from(*other == name))
        });
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts[0].0
    };
    let usual = most(
        &mut samples
            .iter()
            .flat_map(|(_, values)| values)
            .map(|(name, _)| *name),
    );
    Ok(samples
        .into_iter()
        .map(|(work, values)| {
            let placement = if values.iter().any(|(name, _)| *name == usual) {
                usual
            } else {
                most(&mut values.iter().map(|(name, _)| *name))
            };
            let samples = values.into_iter().filter(|(name, _)| *name == placement);
            Step {
                work,
                placement,
                samples: samples.map(|(_, value)| value).collect(),
            }
        })
        .collect())
}

/// A row of a table, of which only those in one placement can be compared.
trait Row {
    fn placement(&self) -> &'static str;
}

impl Row for ChannelsRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

impl Row for SizeRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

impl Row for CapacityRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

fn parse(arguments: &[String]) -> Result<Option<Plan>> {
    let powers =
        |from: u32, to: u32, by: usize| (from..=to).step_by(by).map(|power| 1usize << power).collect();
    let mut plan = Plan {
        channels: vec![1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
        sizes: powers(3, 26, 1),
        capacities: powers(16, 26, 1),
        seconds: 0.5,
        runs: 3,
        pause: 0.0,
        json: None,
        only: ["channels", "sizes", "capacities"].map(str::to_owned).to_vec(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--help" || argument == "-h" {
            println!("{HELP}");
            return Ok(None);
        }
        let value = arguments
            .next()
            .with_context(|| format!("{argument} wants a value; see --help"))?;
        let numbers = || {
            value
                .split(',')
                .map(|number| Ok(number.parse()?))
                .collect::<Result<Vec<usize>>>()
        };
        match argument.as_str() {
            "--channels" => plan.channels = numbers()?,
            "--sizes" => plan.sizes = numbers()?,
            "--capacities" => plan.capacities = numbers()?,
            "--seconds" => plan.seconds = value.parse()?,
            "--runs" => plan.runs = value.parse::<usize>()?.max(1),
            "--pause" => plan.pause = value.parse()?,
            "--json" => plan.json = Some(value.into()),
            "--only" => plan.only = value.split(',').map(str::to_owned).collect(),
            _ => bail!("{argument} is not an option; see --help"),
        }
    }
    if plan.sizes.iter().any(|size| *size == 0 || size % 8 != 0) {
        bail!("sizes are multiples of 8");
    }
    Ok(Some(plan))
}

fn channels(plan: &Plan, results: &mut Results) -> Result<()> {
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
            busy: host.busy(plan.seconds, 1)?,
            batched: host.busy(plan.seconds, 32)?,
            woken_us: host.woken(200)?,
        };
        host.quit()?;
        Ok(sample)
    })?;
    println!(
        "\n{:>8} {:>9} {:>12} {:>11} {:>9} {:>10} {:>13} {:>13} {:>12}",
        "channels", "join", "descriptors", "memory", "idle CPU", "wake-ups", "busy", "batches", "woken RTT"
    );
    for step in samples {
        let (count, samples) = (step.work, step.samples);
        let spread = |pick: fn(&ChannelsSample) -> f64| Spread::of(&samples, pick);
        let row = ChannelsRow {
            channels: count,
            placement: step.placement,
            runs: samples.len(),
            join_ms: spread(|sample| sample.join_ms),
            descriptors: spread(|sample| sample.descriptors).median,
            memory_kib: spread(|sample| sample.memory_kib).median,
            idle_cpu_percent: spread(|sample| sample.idle.cpu_ns as f64 / sample.idle.seconds / 1e7),
            idle_wakeups_per_second: spread(|sample| sample.idle.sleeps as f64 / sample.idle.seconds),
            busy: FlowRow::of(&samples, |sample| sample.busy),
            batched: FlowRow::of(&samples, |sample| sample.batched),
            woken_round_trip_us: spread(|sample| sample.woken_us),
        };
        println!(
            "{:>8} {:>6.2} ms {:>12.1} {:>7.0} KiB {:>7.2} % {:>8.1}/s {:>9.2} M/s {:>9.2} M/s {:>9.1} µs",
            row.channels,
            row.join_ms.median,
            row.descriptors,
            row.memory_kib,
            row.idle_cpu_percent.median,
            row.idle_wakeups_per_second.median,
            row.busy.messages_per_second.median / 1e6,
            row.batched.messages_per_second.median / 1e6,
            row.woken_round_trip_us.median
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
    steps.extend(worse("channels", "a woken round trip", rows, growth, |row| {
        row.woken_round_trip_us.median
    }));
    results.worse_than_linear.extend(steps);
    Ok(())
}

fn sizes(plan: &Plan, results: &mut Results) -> Result<()> {
    let samples = rounds(plan, results, &plan.sizes, |size| {
        let mut host = Host::start(4 << 20, size)?;
        host.join(1)?;
        let flow = host.stream(plan.seconds)?;
        let in_fragments = size as u64 > host.max_at_once();
        host.quit()?;
        let alone = side::alone(4 << 20, size, plan.seconds)?;
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
            alone_per_second: Spread::of(&samples, |sample| sample.2),
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

fn capacities(plan: &Plan, results: &mut Results) -> Result<()> {
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
            join_ms: Spread::of(&samples, |sample| sample.0),
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

/// Steps at which a cost grew by more than the work did. A quarter is left for what two runs differ by anyway.
fn worse<R: Row>(
    table: &str,
    what: &str,
    rows: &[R],
    work: impl Fn(&R) -> f64,
    cost: impl Fn(&R) -> f64,
) -> Vec<String> {
    rows.windows(2)
        .filter_map(|pair| {
            let [before, after] = pair else {
                unreachable!("windows of two")
            };
            let (grown, dearer) = (work(after) / work(before), cost(after) / cost(before));
            (before.placement() == after.placement() && dearer > grown * 1.25).then(|| {
                format!(
                    "{table}: {what} grew {dearer:.2} times from {} to {}",
                    work(before),
                    work(after)
                )
            })
        })
        .collect()
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, tag, capacity, size] = &arguments[..]
        && first == "--peer"
    {
        return side::peer(tag, capacity.parse()?, size.parse()?);
    }
    let Some(plan) = parse(&arguments)? else {
        return Ok(());
    };
    side::raise_descriptor_limit();
    let mut results = Results {
        machine: Some(machine::describe()),
        seconds: plan.seconds,
        runs: plan.runs,
        ..Results::default()
    };
    for (name, part) in [
        ("channels", channels as fn(&Plan, &mut Results) -> Result<()>),
        ("sizes", sizes),
        ("capacities", capacities),
    ] {
        if plan.only.iter().any(|only| only == name) {
            part(&plan, &mut results)?;
        }
    }
    let near = results
        .placements
        .iter()
        .filter(|placement| placement.near)
        .count();
    println!(
        "\ncores 0 and 1: near in {near} of {} looks",
        results.placements.len()
    );
    if results.worse_than_linear.is_empty() {
        println!("no step is worse than linear");
    }
    for step in &results.worse_than_linear {
        println!("worse than linear: {step}");
    }
    if let Some(path) = &plan.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
