//! One that publishes and any number that subscribe: ringfence beside what a user would pick instead.
//!
//! A run is one publisher and its subscribers, each a process of its own. The publisher has the first core, the subscribers share the
//! second. Every word of every message is written, every subscriber reads all of them, and every sum is compared.
//! Nothing may be lost: each rival runs in the mode in which its publisher waits for the slowest subscriber. Beside them stand the two
//! deliveries of ringfence that may lose, whose subscribers check each message that they have got.

mod blocked;
mod driver;
mod rivals;

use driver::Job;
use rivals::Rival;

use anyhow::{Context, Result};
use serde_json::json;

/// What is compiled in.
pub fn list() -> Vec<serde_json::Value> {
    let describe = |rival: Rival| json!({ "id": rival.id, "version": rival.version, "note": rival.note, "blocked": rival.is_blocked });
    rivals::all().into_iter().map(describe).collect()
}

fn rival(id: &str) -> Result<Rival> {
    let mut all = rivals::all().into_iter();
    all.find(|rival| rival.id == id)
        .with_context(|| format!("{id} is not compiled in"))
}

/// The publisher's process of one run.
pub fn publish(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    let rival = rival(&job.contender)?;
    match ((rival.takes)(job.size, job.batch), job.failure) {
        (Err(why), _) => println!("{}", json!({ "skipped": why })),
        (_, None) => println!("{}", serde_json::to_string(&(rival.publish)(&job)?)?),
        (_, Some(_)) => (rival.blocked)(&job)?,
    }
    Ok(())
}

/// One subscriber's process of one run.
pub fn subscribe(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    if job.contender == driver::IDLE {
        return rivals::idle(&job);
    }
    (rival(&job.contender)?.subscribe)(&job)
}
