//! One that publishes and any number that subscribe: ringfence beside what a user would pick instead.
//!
//! A run is one publisher and its subscribers, each a process of its own. The publisher has the first core, the subscribers share the
//! second. Every word of every message is written, every subscriber reads all of them, and every sum is compared.
//! Nothing may be lost: each rival runs in the mode in which its publisher waits for the slowest subscriber. Beside them stand the two
//! deliveries of ringfence that may lose, whose subscribers check each message that they have got.

mod blocked;
mod driver;
mod plan;
mod rivals;

pub use blocked::{Blocked, Harm};
pub use driver::{Job, Outcome};
pub use plan::{Arguments, run};

use anyhow::{Context, Result};

/// The publisher's process of one run.
pub fn publish(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    let rival = rivals::all()
        .into_iter()
        .find(|rival| rival.id == job.rival)
        .with_context(|| format!("{} is not compiled in", job.rival))?;
    match job.harm {
        None => println!("{}", serde_json::to_string(&(rival.publish)(&job)?)?),
        Some(_) => (rival.blocked)(&job)?,
    }
    Ok(())
}

/// One subscriber's process of one run.
pub fn subscribe(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job)?;
    if job.rival == driver::IDLE {
        return rivals::idle(&job);
    }
    let rival = rivals::all()
        .into_iter()
        .find(|rival| rival.id == job.rival)
        .with_context(|| format!("{} is not compiled in", job.rival))?;
    (rival.subscribe)(&job)
}
