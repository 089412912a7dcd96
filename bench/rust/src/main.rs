//! The Rust side of single runs; `npm run bench` decides which run, and when. See ../../README.md for what is measured.

use anyhow::{Context, Result, bail};
#[cfg(feature = "ringfence")]
use ringfence_bench::{broadcast, scale};
use ringfence_bench::{contenders, driver};
use serde_json::json;

const USAGE: &str =
    "runs one job, as JSON, for `npm run bench`: list | one JOB | publish JOB | step JOB | descriptors
The Rust half of a measurement by itself: npm run bench -- peers --rust, broadcast --rust, scale";

fn entry(id: &str) -> Result<contenders::Entry> {
    contenders::all()
        .into_iter()
        .find(|entry| entry.id == id)
        .with_context(|| format!("{id} is not compiled in"))
}

/// Side A of one run.
fn one(job: &str) -> Result<serde_json::Value> {
    let job: driver::Job = serde_json::from_str(job)?;
    let entry = entry(&job.contender)?;
    match (entry.takes)(job.measure, job.size) {
        Ok(()) => Ok(serde_json::to_value((entry.a)(&job)?)?),
        Err(why) => Ok(json!({ "skipped": why })),
    }
}

/// Side B of it.
fn peer(job: &str) -> Result<()> {
    let job: driver::Job = serde_json::from_str(job)?;
    (entry(&job.contender)?.b)(&job)
}

fn list() -> serde_json::Value {
    let peers = contenders::all().into_iter();
    let peers: Vec<_> = peers
        .map(|entry| json!({ "id": entry.id, "version": entry.version, "note": entry.note }))
        .collect();
    #[cfg(feature = "ringfence")]
    let broadcast = broadcast::list();
    #[cfg(not(feature = "ringfence"))]
    let broadcast: [(); 0] = [];
    json!({ "peers": peers, "broadcast": broadcast })
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => println!("{}", list()),
        ["one", job] => println!("{}", one(job)?),
        ["peer", job] => peer(job)?,
        #[cfg(feature = "ringfence")]
        ["publish", job] => broadcast::publish(job)?,
        #[cfg(feature = "ringfence")]
        ["subscribe", job] => broadcast::subscribe(job)?,
        #[cfg(feature = "ringfence")]
        ["step", job] => println!("{}", scale::step(job)?),
        #[cfg(feature = "ringfence")]
        ["scale-peer", tag, capacity, size] => scale::peer(tag, capacity.parse()?, size.parse()?)?,
        #[cfg(feature = "ringfence")]
        ["descriptors"] => println!("{}", scale::raise_descriptor_limit()),
        _ => bail!(USAGE),
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
