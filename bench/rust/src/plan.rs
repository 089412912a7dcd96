//! Which runs, in which order, and what they add up to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::contenders;
use crate::driver::{Job, Measure, Outcome};
use crate::machine::{self, Machine, Placed};
use crate::process::{self, progress};
use crate::spread::Spread;

#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// These contenders alone (see list)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What is measured (all)
    #[arg(long, value_enum, value_delimiter = ',')]
    measures: Vec<Measure>,
    /// Bytes of a message for the one-way measures; multiples of 8
    #[arg(long, value_delimiter = ',', default_value = "64,1024,65536,1048576,16777216")]
    sizes: Vec<usize>,
    /// Of one run, warm-up not counted
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Of each cell; contenders alternate
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of a ring; at least four messages
    #[arg(long, default_value_t = 4 << 20)]
    capacity: usize,
    /// Where the two sides are pinned
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// Every run and its summary
    #[arg(long)]
    json: Option<PathBuf>,
    /// Another build of this program, for contenders that need another toolchain
    #[arg(long)]
    also: Vec<PathBuf>,
}

/// The arguments, checked.
struct Plan {
    only: Vec<String>,
    measures: Vec<Measure>,
    sizes: Vec<usize>,
    seconds: f64,
    runs: usize,
    capacity: usize,
    cpus: [usize; 2],
    json: Option<PathBuf>,
    also: Vec<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    pub id: String,
    pub version: String,
    pub note: String,
}

pub fn listing() -> Vec<Listed> {
    contenders::all()
        .into_iter()
        .map(|entry| Listed {
            id: entry.id.into(),
            version: entry.version.into(),
            note: entry.note.into(),
        })
        .collect()
}

type Run = Placed<Outcome>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Summary {
    runs: usize,
    messages_per_second: Spread,
    bytes_per_second: Spread,
    cpu_ns_per_message: Spread,
    preempted: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ns: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ns: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p999_ns: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_wakeups_per_second: Option<Spread>,
}

fn summarise(runs: &[&Run]) -> Summary {
    let spread = |pick: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(|run| pick(run)).collect());
    let maybe = |pick: &dyn Fn(&Run) -> Option<f64>| {
        let values: Vec<f64> = runs.iter().filter_map(|run| pick(run)).collect();
        (!values.is_empty()).then(|| Spread::of(values))
    };
    Summary {
        runs: runs.len(),
        messages_per_second: spread(&|run| run.outcome.messages_per_second),
        bytes_per_second: spread(&|run| run.outcome.bytes_per_second),
        cpu_ns_per_message: spread(&|run| run.outcome.cpu_ns_per_message),
        preempted: spread(&|run| run.outcome.preempted as f64),
        p50_ns: maybe(&|run| run.outcome.round_trip.as_ref().map(|trip| trip.p50_ns)),
        p99_ns: maybe(&|run| run.outcome.round_trip.as_ref().map(|trip| trip.p99_ns)),
        p999_ns: maybe(&|run| run.outcome.round_trip.as_ref().map(|trip| trip.p999_ns)),
        idle_wakeups_per_second: maybe(&|run| run.outcome.idle_wakeups_per_second),
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    contender: String,
    measure: String,
    size: usize,
    /// Near runs and far runs are summed up apart: a median over both describes neither.
    by_placement: BTreeMap<String, Summary>,
    runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    failures: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Results {
    harness: String,
    started: u64,
    machine: Machine,
    cpus: [usize; 2],
    seconds: f64,
    capacity: usize,
    contenders: Vec<Listed>,
    cells: Vec<Cell>,
}

fn checked(arguments: Arguments) -> Result<Plan> {
    if arguments.sizes.iter().any(|size| *size == 0 || size % 8 != 0) {
        bail!("sizes are multiples of 8");
    }
    Ok(Plan {
        only: arguments.only,
        measures: if arguments.measures.is_empty() {
            Measure::ALL.to_vec()
        } else {
            arguments.measures
        },
        sizes: arguments.sizes,
        seconds: arguments.seconds,
        runs: arguments.runs,
        capacity: arguments.capacity,
        cpus: arguments.cpus.try_into().ok().context("two cpus")?,
        json: arguments.json,
        also: arguments.also,
    })
}

/// A contender as this program or another build of it offers it.
struct Offer {
    listed: Listed,
    program: PathBuf,
}

fn offers(plan: &Plan) -> Result<Vec<Offer>> {
    let mut offers: Vec<Offer> = Vec::new();
    let own = std::env::current_exe()?;
    for program in std::iter::once(&own).chain(&plan.also) {
        let output = Command::new(program)
            .arg("list")
            .output()
            .with_context(|| program.display().to_string())?;
        for listed in serde_json::from_slice::<Vec<Listed>>(&output.stdout)? {
            if !offers.iter().any(|offer| offer.listed.id == listed.id) {
                offers.push(Offer {
                    listed,
                    program: program.clone(),
                });
            }
        }
    }
    if let Some(unknown) = plan
        .only
        .iter()
        .find(|id| !offers.iter().any(|offer| offer.listed.id == **id))
    {
        bail!("no contender {unknown}");
    }
    offers.retain(|offer| plan.only.is_empty() || plan.only.contains(&offer.listed.id));
    Ok(offers)
}

/// Runs one job in a process of its own and takes no longer than it should.
fn run_job(offer: &Offer, job: &Job) -> Result<Outcome> {
    let limit = Duration::from_secs_f64(30.0 + 20.0 * job.seconds);
    let arguments = ["one", &serde_json::to_string(job)?];
    let line = process::last_line(&offer.program, &arguments, limit)?;
    Ok(serde_json::from_str(&line)?)
}

fn quantity(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} G", v / 1e9),
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e3 => format!("{:.2} k", v / 1e3),
        v => format!("{v:.2} "),
    }
}

fn time(ns: f64) -> String {
    if ns < 10_000.0 {
        format!("{ns:.0} ns")
    } else {
        format!("{:.1} µs", ns / 1000.0)
    }
}

fn line_of(cell: &Cell) -> String {
    let head = format!("{:<14} {:<10} {:>9}", cell.contender, cell.measure, cell.size);
    if cell.runs.is_empty() {
        let why = cell
            .skipped
            .as_deref()
            .or(cell.failures.last().map(String::as_str))
            .unwrap_or("");
        return format!("{head}  -  {why}");
    }
    let mut text = String::new();
    for (placement, summary) in &cell.by_placement {
        if !text.is_empty() {
            text += "\n";
        }
        text += &format!("{head}  {placement:<5} ");
        if let (Some(p50), Some(p99), Some(p999)) = (&summary.p50_ns, &summary.p99_ns, &summary.p999_ns) {
            text += &format!(
                "p50 {:>9}  p99 {:>9}  p99.9 {:>9}  cpu {:>9}",
                time(p50.median),
                time(p99.median),
                time(p999.median),
                time(summary.cpu_ns_per_message.median)
            );
            if let Some(idle) = &summary.idle_wakeups_per_second {
                text += &format!("  idle {:.0}/s", idle.median);
            }
        } else {
            text += &format!(
                "{:>9}msg/s ({} - {})  {:>9}B/s  cpu {:>9}",
                quantity(summary.messages_per_second.median),
                quantity(summary.messages_per_second.min),
                quantity(summary.messages_per_second.max),
                quantity(summary.bytes_per_second.median),
                time(summary.cpu_ns_per_message.median)
            );
        }
        text += &format!("  [{}]", summary.runs);
    }
    for failure in &cell.failures {
        text += &format!("\n{head}  failed: {failure}");
    }
    text
}

pub fn run(arguments: Arguments) -> Result<()> {
    let plan = checked(arguments)?;
    let offers = offers(&plan)?;
    let entries = contenders::all();
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let machine = machine::describe();
    let placement = machine::probe(plan.cpus)?;
    println!(
        "{}, {} cores, {}, Linux {}",
        machine.cpu, machine.cores, machine.caches, machine.kernel
    );
    println!(
        "{}; cores {:?}: {} ({:.0} ns)",
        machine.rustc,
        plan.cpus,
        placement.name(),
        placement.line_ns
    );

    let mut cells = Vec::new();
    let mut serial = 0;
    for &measure in &plan.measures {
        let sizes = if measure.is_round_trip() || measure == Measure::Copy || measure == Measure::Batch {
            // Batches and copies matter where messages are small; a round trip of megabytes is a throughput.
            vec![64]
        } else {
            plan.sizes.clone()
        };
        for size in sizes {
            let mut row: Vec<Cell> = Vec::new();
            for offer in &offers {
                // What another build takes only it knows; a cell it does not take fails with the reason.
                let takes = entries
                    .iter()
                    .find(|entry| entry.id == offer.listed.id)
                    .map_or_else(
                        || foreign(&offer.listed.id, measure),
                        |entry| (entry.takes)(measure, size),
                    );
                row.push(Cell {
                    contender: offer.listed.id.clone(),
                    measure: measure.name().into(),
                    size,
                    by_placement: BTreeMap::new(),
                    runs: Vec::new(),
                    skipped: takes.err().map(str::to_owned),
                    failures: Vec::new(),
                });
            }
            // Contenders alternate: what the machine does to one run it does to its neighbours.
            for run in 0..plan.runs {
                for (offer, cell) in offers.iter().zip(&mut row) {
                    if cell.skipped.is_some() || cell.failures.len() > 1 {
                        continue;
                    }
                    let (contender, measure_name) = (&cell.contender, &cell.measure);
                    progress(format_args!("{contender} {measure_name} {size} run {}", run + 1));
                    serial += 1;
                    let job = Job {
                        contender: offer.listed.id.clone(),
                        measure,
                        size,
                        seconds: plan.seconds,
                        cpus: plan.cpus,
                        capacity: plan.capacity,
                        tag: format!("rfbench-{}-{serial}", std::process::id()),
                    };
                    let before = machine::probe(plan.cpus)?;
                    match run_job(offer, &job) {
                        Ok(outcome) => {
                            cell.runs.push(Run {
                                before,
                                after: machine::probe(plan.cpus)?,
                                outcome,
                            });
                        }
                        Err(error) => {
                            cell.failures.push(format!("{error:#}"));
                            process::sweep(&job.tag);
                        }
                    }
                }
            }
            progress(format_args!(""));
            for mut cell in row {
                let mut groups: BTreeMap<String, Vec<&Run>> = BTreeMap::new();
                for run in &cell.runs {
                    groups.entry(run.placement().into()).or_default().push(run);
                }
                cell.by_placement = groups
                    .into_iter()
                    .map(|(name, runs)| (name, summarise(&runs)))
                    .collect();
                if cell.skipped.is_none() || !plan.only.is_empty() {
                    println!("{}", line_of(&cell));
                }
                cells.push(cell);
            }
        }
    }
    let results = Results {
        harness: "rust".into(),
        started,
        machine,
        cpus: plan.cpus,
        seconds: plan.seconds,
        capacity: plan.capacity,
        contenders: offers.into_iter().map(|offer| offer.listed).collect(),
        cells,
    };
    if let Some(path) = plan.json {
        std::fs::write(&path, serde_json::to_string_pretty(&results)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// native-ipc is the one contender of another build; its limits, told here since they cannot be asked for.
fn foreign(id: &str, measure: Measure) -> Result<(), &'static str> {
    match measure {
        Measure::Batch | Measure::Copy | Measure::RttSpin if id == "native-ipc" => Err("it has no such mode"),
        _ => Ok(()),
    }
}
