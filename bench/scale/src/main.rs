//! What ringfence costs as work grows: 1 to 1,000 channels between two processes, idle and busy; messages of 8 B to
//! 64 MiB; rings of 64 KiB to 64 MiB. Each step is compared with the one before: a cost that grows faster than what
//! it is paid for is called out.

mod side;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ringfence_bench::machine;
use serde::Serialize;

use side::{Host, Usage};

const HELP: &str = "\
ringfence-scale: what ringfence costs as work grows

  --channels 1,10,100,1000     between two processes, each joined at an address of its own
  --sizes 8,64,…               bytes of a message, multiples of 8 (8 B to 64 MiB), through a ring of 4 MiB
  --capacities 65536,…         bytes of a ring (64 KiB to 64 MiB), with messages of 64 B and of 16 KiB
  --seconds 0.5                of one measurement
  --runs 3                     of each; the median counts
  --json FILE                  all of it
  --only channels,sizes,capacities";

struct Plan {
    channels: Vec<usize>,
    sizes: Vec<usize>,
    capacities: Vec<usize>,
    seconds: f64,
    runs: usize,
    json: Option<PathBuf>,
    only: Vec<String>,
}

#[derive(Serialize)]
struct ChannelsRow {
    channels: usize,
    /// To join one, handshake and memory included.
    join_ms: f64,
    /// Of both processes, for each channel.
    descriptors: f64,
    /// Shared memory of both directions, for each channel.
    memory_kib: f64,
    /// All readers asleep, nothing sent: both processes together.
    idle_cpu_percent: f64,
    idle_wakeups_per_second: f64,
    /// One message of 64 B to each channel in turn, the reader polling all of them in turn.
    busy_messages_per_second: f64,
    /// The same, a batch of 32 to each channel in turn.
    busy_batched_messages_per_second: f64,
    /// One channel speaks, the reader sleeps on all of them (epoll).
    woken_round_trip_us: f64,
}

#[derive(Serialize)]
struct SizeRow {
    size: usize,
    messages_per_second: f64,
    bytes_per_second: f64,
    ns_per_message: f64,
    in_fragments: bool,
}

#[derive(Serialize)]
struct CapacityRow {
    capacity: usize,
    join_ms: f64,
    small_messages_per_second: f64,
    large_bytes_per_second: f64,
}

#[derive(Serialize, Default)]
struct Results {
    machine: Option<machine::Machine>,
    before: Option<machine::Placement>,
    after: Option<machine::Placement>,
    channels: Vec<ChannelsRow>,
    sizes: Vec<SizeRow>,
    capacities: Vec<CapacityRow>,
    worse_than_linear: Vec<String>,
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn repeat(runs: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    Ok(median((0..runs).map(|_| measure()).collect::<Result<_>>()?))
}

fn channels(plan: &Plan, results: &mut Results) -> Result<()> {
    println!(
        "\n{:>8} {:>9} {:>12} {:>11} {:>9} {:>10} {:>13} {:>13} {:>12}",
        "channels", "join", "descriptors", "memory", "idle CPU", "wake-ups", "busy", "batches", "woken RTT"
    );
    for &count in &plan.channels {
        // A small ring each: a thousand of the default size would be 8 GiB.
        let mut host = Host::start(64 * 1024, 64)?;
        let base = host.resources()?;
        let join_ms = host.join(count)? / count as f64 * 1e3;
        let full = host.resources()?;
        let per = |value: f64| value / count as f64;
        let Usage {
            cpu_ns,
            switches,
            seconds,
        } = host.idle(plan.seconds)?;
        let row = ChannelsRow {
            channels: count,
            join_ms,
            descriptors: per((full.descriptors - base.descriptors) as f64),
            memory_kib: per((full.shared_kib - base.shared_kib) as f64),
            idle_cpu_percent: cpu_ns as f64 / seconds / 1e7,
            idle_wakeups_per_second: switches as f64 / seconds,
            busy_messages_per_second: repeat(plan.runs, || host.busy(plan.seconds, 1))?,
            busy_batched_messages_per_second: repeat(plan.runs, || host.busy(plan.seconds, 32))?,
            woken_round_trip_us: repeat(plan.runs, || host.woken(200))?,
        };
        host.quit()?;
        println!(
            "{:>8} {:>6.2} ms {:>12.1} {:>7.0} KiB {:>7.2} % {:>8.1}/s {:>9.2} M/s {:>9.2} M/s {:>9.1} µs",
            row.channels,
            row.join_ms,
            row.descriptors,
            row.memory_kib,
            row.idle_cpu_percent,
            row.idle_wakeups_per_second,
            row.busy_messages_per_second / 1e6,
            row.busy_batched_messages_per_second / 1e6,
            row.woken_round_trip_us
        );
        results.channels.push(row);
    }
    let rows = &results.channels;
    let mut steps = Vec::new();
    let growth = |row: &ChannelsRow| row.channels as f64;
    // A join, a descriptor and a message must not become dearer by more than the number of channels does.
    steps.extend(worse("channels", "join time", rows, growth, |row| {
        row.join_ms * row.channels as f64
    }));
    steps.extend(worse("channels", "memory", rows, growth, |row| {
        row.memory_kib * row.channels as f64
    }));
    steps.extend(worse("channels", "descriptors", rows, growth, |row| {
        row.descriptors * row.channels as f64
    }));
    // A round over all channels costs each of them once.
    steps.extend(worse("channels", "a busy round", rows, growth, |row| {
        row.channels as f64 / row.busy_messages_per_second
    }));
    steps.extend(worse("channels", "a batched round", rows, growth, |row| {
        row.channels as f64 / row.busy_batched_messages_per_second
    }));
    steps.extend(worse("channels", "a woken round trip", rows, growth, |row| {
        row.woken_round_trip_us
    }));
    results.worse_than_linear.extend(steps);
    Ok(())
}

fn sizes(plan: &Plan, results: &mut Results) -> Result<()> {
    println!(
        "\n{:>10} {:>14} {:>12} {:>14}",
        "message", "messages", "bytes", "each"
    );
    for &size in &plan.sizes {
        let mut host = Host::start(4 << 20, size)?;
        host.join(1)?;
        let rate = repeat(plan.runs, || host.stream(plan.seconds))?;
        let in_fragments = size as u64 > host.max_at_once();
        host.quit()?;
        let row = SizeRow {
            size,
            messages_per_second: rate,
            bytes_per_second: rate * size as f64,
            ns_per_message: 1e9 / rate,
            in_fragments,
        };
        println!(
            "{:>10} {:>12.3e}/s {:>7.2} GB/s {:>11.1} ns{}",
            row.size,
            row.messages_per_second,
            row.bytes_per_second / 1e9,
            row.ns_per_message,
            if in_fragments { "  in fragments" } else { "" }
        );
        results.sizes.push(row);
    }
    let steps = worse(
        "sizes",
        "a message",
        &results.sizes,
        |row| row.size as f64,
        |row| row.ns_per_message,
    );
    results.worse_than_linear.extend(steps);
    Ok(())
}

fn capacities(plan: &Plan, results: &mut Results) -> Result<()> {
    println!("\n{:>10} {:>10} {:>14} {:>14}", "ring", "join", "64 B", "16 KiB");
    for &capacity in &plan.capacities {
        let mut host = Host::start(capacity, 64)?;
        let join_ms = host.join(1)? * 1e3;
        let small = repeat(plan.runs, || host.stream(plan.seconds))?;
        host.quit()?;
        let mut host = Host::start(capacity, 16 * 1024)?;
        host.join(1)?;
        let large = repeat(plan.runs, || host.stream(plan.seconds))? * 16384.0;
        host.quit()?;
        println!(
            "{capacity:>10} {join_ms:>7.2} ms {:>10.2} M/s {:>9.2} GB/s",
            small / 1e6,
            large / 1e9
        );
        results.capacities.push(CapacityRow {
            capacity,
            join_ms,
            small_messages_per_second: small,
            large_bytes_per_second: large,
        });
    }
    let steps = worse(
        "capacities",
        "join time",
        &results.capacities,
        |row| row.capacity as f64,
        |row| row.join_ms,
    );
    results.worse_than_linear.extend(steps);
    Ok(())
}

/// Steps at which a cost grew by more than the work did. A quarter is left for what two runs differ by anyway.
fn worse<R>(
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
            (dearer > grown * 1.25).then(|| {
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
    let placement = machine::probe([0, 1])?;
    let mut results = Results {
        machine: Some(machine::describe()),
        before: Some(placement),
        ..Results::default()
    };
    println!(
        "cores 0 and 1: {} ({:.0} ns)",
        placement.name(),
        placement.line_ns
    );
    for (name, part) in [
        ("channels", channels as fn(&Plan, &mut Results) -> Result<()>),
        ("sizes", sizes),
        ("capacities", capacities),
    ] {
        if plan.only.iter().any(|only| only == name) {
            part(&plan, &mut results)?;
        }
    }
    let placement = machine::probe([0, 1])?;
    println!(
        "\ncores 0 and 1: {} ({:.0} ns)",
        placement.name(),
        placement.line_ns
    );
    results.after = Some(placement);
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
