//! Which runs, in which order, and what they add up to.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::contenders;
use crate::driver::{Job, Measure, Outcome};
use crate::machine::{self, Machine, Placement};

const HELP: &str = "\
ringfence-bench: ringfence and its rivals, two processes, one machine

  --only a,b         these contenders alone (see --list)
  --measures a,b     of one, batch, copy, rtt-polled, rtt-spin, rtt-parked
  --sizes 64,1024    bytes of a message for the one-way measures; multiples of 8
  --seconds 0.5      of one run, warm-up not counted
  --runs 5           of each cell; contenders alternate
  --capacity BYTES   of a ring (4 MiB; at least four messages)
  --cpus 0,1         where the two sides are pinned
  --json FILE        every run and its summary
  --also PROGRAM     another build of this program, for contenders that need another toolchain
  --list             what is compiled in, as JSON
  --probe            where the two cores are just now";

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

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    before: Placement,
    after: Placement,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Run {
    /// A run whose cores moved meanwhile belongs to neither placement.
    fn placement(&self) -> &'static str {
        if self.before.near == self.after.near {
            self.before.name()
        } else {
            "moved"
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let (n, half) = (values.len(), values.len() / 2);
        let median = if n % 2 == 0 && n > 0 {
            (at(half - 1) + at(half)) / 2.0
        } else {
            at(half)
        };
        Self {
            median,
            min: at(0),
            max: at(n.saturating_sub(1)),
        }
    }
}

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

fn parse(arguments: &[String]) -> Result<Option<Plan>> {
    let mut plan = Plan {
        only: Vec::new(),
        measures: Measure::ALL.to_vec(),
        sizes: vec![64, 1024, 65_536, 1 << 20, 16 << 20],
        seconds: 0.5,
        runs: 5,
        capacity: 4 << 20,
        cpus: [0, 1],
        json: None,
        also: Vec::new(),
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
        let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match argument.as_str() {
            "--only" => plan.only = list(),
            "--measures" => {
                plan.measures = list()
                    .iter()
                    .map(|name| {
                        Measure::ALL
                            .into_iter()
                            .find(|measure| measure.name() == name)
                            .with_context(|| format!("no measure {name}"))
                    })
                    .collect::<Result<_>>()?;
            }
            "--sizes" => {
                plan.sizes = list()
                    .iter()
                    .map(|size| Ok(size.parse()?))
                    .collect::<Result<_>>()?;
                if plan.sizes.iter().any(|size| *size == 0 || size % 8 != 0) {
                    bail!("sizes are multiples of 8");
                }
            }
            "--seconds" => plan.seconds = value.parse()?,
            "--runs" => plan.runs = value.parse()?,
            "--capacity" => plan.capacity = value.parse()?,
            "--cpus" => {
                let cpus = list()
                    .iter()
                    .map(|cpu| Ok(cpu.parse()?))
                    .collect::<Result<Vec<usize>>>()?;
                plan.cpus = cpus.try_into().ok().context("two cpus")?;
            }
            "--json" => plan.json = Some(value.into()),
            "--also" => plan.also.push(value.into()),
            _ => bail!("{argument} is not an option; see --help"),
        }
    }
    Ok(Some(plan))
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
            .arg("--list")
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
    let mut child = Command::new(&offer.program)
        .arg("--one")
        .arg(serde_json::to_string(job)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Asleep until it ends: looking every few milliseconds would take a core from what is measured.
    let deadline = Duration::from_secs_f64(30.0 + 20.0 * job.seconds);
    if !ends_within(&child, deadline)? {
        child.kill()?;
        child.wait()?;
        bail!("took too long");
    }
    let status = child.wait()?;
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().context("piped")?.read_to_string(&mut out)?;
    child.stderr.take().context("piped")?.read_to_string(&mut err)?;
    if !status.success() {
        bail!("{}", err.lines().last().unwrap_or("ended without a word"));
    }
    Ok(serde_json::from_str(out.lines().last().unwrap_or_default())?)
}

fn ends_within(child: &std::process::Child, deadline: Duration) -> Result<bool> {
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error()).context("pidfd_open");
    }
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    Ok(unsafe { libc::poll(&mut poll, 1, deadline.as_millis() as i32) } == 1)
}

/// Removes the files that a run cut short has left in shared memory.
fn sweep(tag: &str) {
    let Ok(files) = std::fs::read_dir("/dev/shm") else {
        return;
    };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().starts_with(&format!("{tag}.")) {
            let _ = std::fs::remove_file(file.path());
        }
    }
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

pub fn run(arguments: &[String]) -> Result<()> {
    let Some(plan) = parse(arguments)? else {
        return Ok(());
    };
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
                    if std::io::stderr().is_terminal() {
                        eprint!(
                            "\r\x1b[K{} {} {size} run {}",
                            cell.contender,
                            cell.measure,
                            run + 1
                        );
                        std::io::stderr().flush()?;
                    }
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
                            sweep(&job.tag);
                        }
                    }
                }
            }
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
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
