//! Two-process benchmark of ringfence and its rivals. See ../../README.md for what is measured.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
#[cfg(feature = "ringfence")]
use ringfence_bench::{broadcast, scale};
use ringfence_bench::{contenders, driver, machine, plan};

#[derive(Parser)]
#[command(about = "ringfence beside what a user would pick instead: same work, same cores, same minutes")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// ringfence and its rivals, two processes
    Peers(plan::Arguments),
    /// One that publishes, and its subscribers
    #[cfg(feature = "ringfence")]
    Broadcast(broadcast::Arguments),
    /// ringfence alone, as channels, messages and rings grow
    #[cfg(feature = "ringfence")]
    Scale(scale::Arguments),
    /// What is compiled in, as JSON
    List,
    /// Where the two cores are just now
    Probe,
    /// Side A of one run
    #[command(hide = true)]
    One { job: String },
    /// Side B of it
    #[command(hide = true)]
    Peer { job: String },
    /// The publisher of one run
    #[cfg(feature = "ringfence")]
    #[command(hide = true)]
    Publish { job: String },
    /// A subscriber of it
    #[cfg(feature = "ringfence")]
    #[command(hide = true)]
    Subscribe { job: String },
    /// The other side of scale
    #[cfg(feature = "ringfence")]
    #[command(hide = true)]
    ScalePeer {
        tag: String,
        capacity: usize,
        size: usize,
    },
}

fn entry(id: &str) -> Result<contenders::Entry> {
    contenders::all()
        .into_iter()
        .find(|entry| entry.id == id)
        .with_context(|| format!("{id} is not compiled in"))
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Task::Peers(arguments) => plan::run(arguments)?,
        Task::List => println!("{}", serde_json::to_string(&plan::listing())?),
        Task::Probe => println!("{}", serde_json::to_string(&machine::probe([0, 1])?)?),
        Task::One { job } => {
            let job: driver::Job = serde_json::from_str(&job)?;
            let outcome = (entry(&job.contender)?.a)(&job)?;
            println!("{}", serde_json::to_string(&outcome)?);
        }
        Task::Peer { job } => {
            let job: driver::Job = serde_json::from_str(&job)?;
            (entry(&job.contender)?.b)(&job)?;
        }
        #[cfg(feature = "ringfence")]
        Task::Broadcast(arguments) => broadcast::run(&arguments)?,
        #[cfg(feature = "ringfence")]
        Task::Publish { job } => broadcast::publish(&job)?,
        #[cfg(feature = "ringfence")]
        Task::Subscribe { job } => broadcast::subscribe(&job)?,
        #[cfg(feature = "ringfence")]
        Task::Scale(arguments) => scale::run(&arguments)?,
        #[cfg(feature = "ringfence")]
        Task::ScalePeer { tag, capacity, size } => scale::peer(&tag, capacity, size)?,
    }
    Ok(())
}

fn exit(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

#[cfg(not(feature = "native-ipc"))]
fn main() {
    exit(run());
}

#[cfg(feature = "native-ipc")]
::native_ipc::receiver_main!(|bootstrap: Result<
    ::native_ipc::session::ReceiverBootstrap,
    ::native_ipc::session::SessionFailure,
>| {
    *contenders::native_ipc::BOOTSTRAP.lock().expect("not poisoned") = bootstrap.ok();
    exit(run());
});
