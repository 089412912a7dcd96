//! Which runs, in which order, and what they add up to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::blocked::{Blocked, Harm};
use super::driver::{Job, Outcome};
use super::rivals::{self, Rival};
use crate::machine::{self, Machine, Placed, Placement};
use crate::process::{self, progress};
use crate::spread::Spread;

#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// These rivals alone
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many subscribers
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    subscribers: Vec<usize>,
    /// How many idle subscribers stand beside one that reads, in runs of ringfence alone
    #[arg(long, value_delimiter = ',', default_value = "0,16,62")]
    idle: Vec<usize>,
    /// Bytes of a message, multiples of 8; 64 is published in batches as well
    #[arg(long, value_delimiter = ',', default_value = "64,1024,65536")]
    sizes: Vec<usize>,
    /// Of one run, warm-up not counted
    #[arg(long, default_value_t = 0.15)]
    seconds: f64,
    /// Rounds: each runs every cell once
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Bytes of a queue; sixteen messages at least
    #[arg(long, default_value_t = 4 << 20)]
    capacity: usize,
    /// The publisher's core, and that of all subscribers
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// Leaves out how long the publisher is blocked by a subscriber that dies or stops
    #[arg(long)]
    no_blocked: bool,
    /// Every run and its summary
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Step {
    subscribers: usize,
    idle: usize,
    size: usize,
    batch: bool,
}

#[derive(Serialize)]
struct Summary {
    runs: usize,
    published_per_second: Spread,
    delivered_per_second: Spread,
    cpu_ns_per_delivered: Spread,
    publisher_ns: Spread,
}

#[derive(Serialize)]
struct Cell {
    rival: &'static str,
    #[serde(flatten)]
    step: Step,
    by_placement: BTreeMap<&'static str, Summary>,
    runs: Vec<Placed<Outcome>>,
    skipped: Option<&'static str>,
    failures: Vec<String>,
}

#[derive(Serialize)]
struct BlockedCell {
    rival: &'static str,
    harm: Harm,
    runs: Vec<Blocked>,
    failures: Vec<String>,
}

#[derive(Serialize)]
struct Listed {
    id: &'static str,
    version: &'static str,
    note: &'static str,
    skipped: Option<&'static str>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    placements: Vec<Placement>,
    seconds: f64,
    capacity: usize,
    rivals: Vec<Listed>,
    cells: Vec<Cell>,
    blocked: Vec<BlockedCell>,
}

/// What every run of a plan needs.
struct Runner {
    cpus: [usize; 2],
    seconds: f64,
    capacity: usize,
    program: PathBuf,
    serial: usize,
}

impl Runner {
    fn job(&mut self, rival: &Rival, step: Step, harm: Option<Harm>) -> Job {
        self.serial += 1;
        Job {
            rival: rival.id.into(),
            subscribers: step.subscribers,
            idle: step.idle,
            size: step.size,
            batch: step.batch,
            seconds: self.seconds,
            cpus: self.cpus,
            capacity: self.capacity,
            harm,
            tag: format!("rfcast-{}-{}", std::process::id(), self.serial),
        }
    }

    fn answer<T: serde::de::DeserializeOwned>(&self, job: &Job) -> Result<T> {
        let arguments = ["publish", &serde_json::to_string(job)?];
        let limit = Duration::from_secs_f64(20.0 + 20.0 * job.seconds);
        let line = process::last_line(&self.program, &arguments, limit);
        process::sweep(&job.tag);
        Ok(serde_json::from_str(&line?)?)
    }

    fn measure(&mut self, rival: &Rival, cell: &mut Cell) -> Result<()> {
        let job = self.job(rival, cell.step, None);
        let before = machine::probe(self.cpus)?;
        match self.answer(&job) {
            Ok(outcome) => cell.runs.push(Placed {
                before,
                after: machine::probe(self.cpus)?,
                outcome,
            }),
            Err(error) => cell.failures.push(format!("{error:#}")),
        }
        Ok(())
    }
}

fn steps(arguments: &Arguments) -> Vec<Step> {
    let sizes = arguments.sizes.iter().flat_map(|&size| {
        let batches: &[bool] = if size == 64 { &[false, true] } else { &[false] };
        batches.iter().map(move |&batch| (size, batch))
    });
    sizes
        .flat_map(|(size, batch)| {
            let step = Step {
                subscribers: 1,
                idle: 0,
                size,
                batch,
            };
            let counts = arguments.subscribers.iter();
            let counts = counts.map(move |&subscribers| Step { subscribers, ..step });
            let idle = arguments.idle.iter().filter(move |&&idle| size == 64 && idle > 0);
            counts.chain(idle.map(move |&idle| Step { idle, ..step }))
        })
        .collect()
}

fn chosen(arguments: &Arguments) -> Result<Vec<Rival>> {
    let all = rivals::all();
    if let Some(unknown) = arguments
        .only
        .iter()
        .find(|id| !all.iter().any(|rival| rival.id == **id))
    {
        bail!("no rival {unknown}");
    }
    let is_wanted =
        |rival: &Rival| arguments.only.is_empty() || arguments.only.iter().any(|id| id == rival.id);
    Ok(all.into_iter().filter(is_wanted).collect())
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.sizes.iter().any(|size| *size == 0 || size % 8 != 0) {
        bail!("sizes are multiples of 8");
    }
    let rivals = chosen(arguments)?;
    let mut runner = Runner {
        cpus: arguments.cpus.clone().try_into().ok().context("two cpus")?,
        seconds: arguments.seconds,
        capacity: arguments.capacity,
        program: std::env::current_exe()?,
        serial: 0,
    };
    let mut placements = vec![machine::probe(runner.cpus)?];
    let mut cells = measured(arguments, &rivals, &mut runner)?;
    cells.iter_mut().for_each(summarise);
    let blocked = if arguments.no_blocked {
        Vec::new()
    } else {
        blocked(&rivals, &mut runner)
    };
    placements.push(machine::probe(runner.cpus)?);
    let results = Results {
        machine: machine::describe(),
        placements,
        seconds: arguments.seconds,
        capacity: arguments.capacity,
        rivals: rivals
            .iter()
            .map(|rival| Listed {
                id: rival.id,
                version: rival.version,
                note: rival.note,
                skipped: (rival.takes)(64, false).err(),
            })
            .collect(),
        cells,
        blocked,
    };
    results.cells.iter().for_each(print);
    results.blocked.iter().for_each(print_blocked);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string(&results)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn takes(rival: &Rival, step: Step) -> Result<(), &'static str> {
    if step.idle > 0 && rival.id != "ringfence" {
        return Err("asked of ringfence alone");
    }
    (rival.takes)(step.size, step.batch)
}

/// Every cell once in each round, so that what the machine does in one minute it does to all of them.
fn measured(arguments: &Arguments, rivals: &[Rival], runner: &mut Runner) -> Result<Vec<Cell>> {
    let mut cells: Vec<(&Rival, Cell)> = Vec::new();
    for step in steps(arguments) {
        for rival in rivals {
            let cell = Cell {
                rival: rival.id,
                step,
                by_placement: BTreeMap::new(),
                runs: Vec::new(),
                skipped: takes(rival, step).err(),
                failures: Vec::new(),
            };
            cells.push((rival, cell));
        }
    }
    for round in 1..=arguments.runs {
        for (rival, cell) in &mut cells {
            // One failure is bad luck, and the next one is not: what hangs would take the time of all.
            if cell.skipped.is_some() || cell.failures.len() > 1 {
                continue;
            }
            let Step {
                subscribers, size, ..
            } = cell.step;
            progress(format_args!(
                "round {round}: {} to {subscribers}, {size} B",
                rival.id
            ));
            runner.measure(rival, cell)?;
        }
    }
    progress(format_args!(""));
    Ok(cells.into_iter().map(|(_, cell)| cell).collect())
}

fn blocked(rivals: &[Rival], runner: &mut Runner) -> Vec<BlockedCell> {
    let step = Step {
        subscribers: 2,
        idle: 0,
        size: 64,
        batch: false,
    };
    let mut cells = Vec::new();
    for rival in rivals {
        if !rival.is_blocked || (rival.takes)(step.size, step.batch).is_err() {
            continue;
        }
        for harm in Harm::ALL {
            progress(format_args!("{}, a subscriber is {}", rival.id, harm.name()));
            let mut cell = BlockedCell {
                rival: rival.id,
                harm,
                runs: Vec::new(),
                failures: Vec::new(),
            };
            while cell.runs.len() < 3 && cell.failures.len() < 2 {
                let job = runner.job(rival, step, Some(harm));
                match runner.answer::<Blocked>(&job) {
                    // One that does not go on at all would do so three times, at six seconds each.
                    Ok(found) if !found.goes_on => {
                        cell.runs = vec![found];
                        break;
                    }
                    Ok(found) => cell.runs.push(found),
                    Err(error) => cell.failures.push(format!("{error:#}")),
                }
            }
            cells.push(cell);
        }
    }
    progress(format_args!(""));
    cells
}

/// Near runs and far ones are summed up apart: a median over both describes neither.
fn summarise(cell: &mut Cell) {
    let mut groups: BTreeMap<&'static str, Vec<&Outcome>> = BTreeMap::new();
    for run in &cell.runs {
        groups.entry(run.placement()).or_default().push(&run.outcome);
    }
    let summary = |outcomes: Vec<&Outcome>| Summary {
        runs: outcomes.len(),
        published_per_second: Spread::by(&outcomes, |outcome| outcome.published_per_second),
        delivered_per_second: Spread::by(&outcomes, |outcome| outcome.delivered_per_second),
        cpu_ns_per_delivered: Spread::by(&outcomes, |outcome| outcome.cpu_ns_per_delivered),
        publisher_ns: Spread::by(&outcomes, |outcome| outcome.publisher_ns),
    };
    cell.by_placement = groups
        .into_iter()
        .map(|(name, outcomes)| (name, summary(outcomes)))
        .collect();
}

fn print(cell: &Cell) {
    let Step {
        subscribers,
        idle,
        size,
        batch,
    } = cell.step;
    let how = if batch { "batch" } else { "one" };
    let beside = if idle > 0 {
        format!("+{idle} idle ")
    } else {
        String::new()
    };
    let head = format!("{:<10} {subscribers:>3} {beside}{size:>6} {how:<5}", cell.rival);
    for (placement, summary) in &cell.by_placement {
        println!(
            "{head} {placement:<5} {:>8.2} M/s published {:>8.2} M/s delivered ({:.2}-{:.2}) cpu {:>7.1} ns publisher {:>7.1} ns",
            summary.published_per_second.median / 1e6,
            summary.delivered_per_second.median / 1e6,
            summary.delivered_per_second.min / 1e6,
            summary.delivered_per_second.max / 1e6,
            summary.cpu_ns_per_delivered.median,
            summary.publisher_ns.median,
        );
    }
    for failure in &cell.failures {
        println!("{head} failed: {failure}");
    }
}

fn print_blocked(cell: &BlockedCell) {
    for run in &cell.runs {
        let more = if run.goes_on { "" } else { " and more" };
        let (rival, harm) = (cell.rival, cell.harm.name());
        println!("{rival:<10} {harm:<8} blocked {:.1} ms{more}", run.milliseconds);
    }
    for failure in &cell.failures {
        println!("{:<10} {:<8} failed: {failure}", cell.rival, cell.harm.name());
    }
}
