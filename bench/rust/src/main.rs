//! Two-process benchmark of ringfence and its rivals. See ../../README.md for what is measured.

use anyhow::{Context, Result};
use ringfence_bench::{contenders, driver, machine, plan};

fn entry(id: &str) -> Result<contenders::Entry> {
    contenders::all()
        .into_iter()
        .find(|entry| entry.id == id)
        .with_context(|| format!("{id} is not compiled in"))
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // Side A of one run, and side B of it.
        Some("--one") => {
            let job: driver::Job = serde_json::from_str(arguments.get(1).context("a job")?)?;
            let outcome = (entry(&job.contender)?.a)(&job)?;
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(())
        }
        Some("--peer") => {
            let job: driver::Job = serde_json::from_str(arguments.get(1).context("a job")?)?;
            (entry(&job.contender)?.b)(&job)
        }
        Some("--list") => {
            println!("{}", serde_json::to_string(&plan::listing())?);
            Ok(())
        }
        Some("--probe") => {
            println!("{}", serde_json::to_string(&machine::probe([0, 1])?)?);
            Ok(())
        }
        _ => plan::run(&arguments),
    }
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
