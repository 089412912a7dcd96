//! What ringfence costs as work grows: 1 to 10,000 channels between two processes, idle and busy, read one by one and by one
//! merge; 1 to 1,000 subscribers of one publisher; messages of 8 B to 64 MiB; rings of 64 KiB to 64 MiB. Each step is compared with the one before: a cost that grows faster than what
//! it is paid for is called out.

mod host;
mod rounds;
mod rows;
mod side;
mod tables;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::machine;
use rows::{CapacityRow, ChannelsRow, Row, SizeRow, SubscribersRow};
pub use side::peer;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    Channels,
    Subscribers,
    Sizes,
    Capacities,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Between two processes, each joined at an address of its own
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,5,10,20,50,100,200,500,1000,5000,10000"
    )]
    channels: Vec<usize>,
    /// Subscriptions of one process to one publisher in another
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,5,10,20,50,100,200,500,1000"
    )]
    subscribers: Vec<usize>,
    /// Bytes of a message, multiples of 8, through a ring of 4 MiB
    #[arg(long, value_delimiter = ',', default_values_t = powers(3, 26))]
    sizes: Vec<usize>,
    /// Bytes of a ring, with messages of 64 B and of 16 KiB
    #[arg(long, value_delimiter = ',', default_values_t = powers(16, 26))]
    capacities: Vec<usize>,
    /// Of one measurement
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Rounds: each measures every step once; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds between two steps, for others on the same machine
    #[arg(long, default_value_t = 0.0)]
    pause: f64,
    /// All of it
    #[arg(long)]
    json: Option<PathBuf>,
    /// These tables alone
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "channels,subscribers,sizes,capacities"
    )]
    only: Vec<Table>,
}

fn powers(from: u32, to: u32) -> Vec<usize> {
    (from..=to).map(|power| 1usize << power).collect()
}

#[derive(Serialize, Default)]
struct Results {
    machine: Option<machine::Machine>,
    seconds: f64,
    runs: usize,
    /// Before and after each step.
    placements: Vec<machine::Placement>,
    channels: Vec<ChannelsRow>,
    subscribers: Vec<SubscribersRow>,
    sizes: Vec<SizeRow>,
    capacities: Vec<CapacityRow>,
    worse_than_linear: Vec<String>,
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

pub fn run(plan: &Arguments) -> Result<()> {
    if plan.sizes.iter().any(|size| *size == 0 || size % 8 != 0) {
        bail!("sizes are multiples of 8");
    }
    let descriptors = side::raise_descriptor_limit();
    let plan = &Arguments {
        channels: tables::affordable(&plan.channels, descriptors),
        ..plan.clone()
    };
    let mut results = Results {
        machine: Some(machine::describe()),
        seconds: plan.seconds,
        runs: plan.runs.max(1),
        ..Results::default()
    };
    for table in &plan.only {
        match table {
            Table::Channels => tables::channels(plan, &mut results)?,
            Table::Subscribers => tables::subscribers(plan, &mut results)?,
            Table::Sizes => tables::sizes(plan, &mut results)?,
            Table::Capacities => tables::capacities(plan, &mut results)?,
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
