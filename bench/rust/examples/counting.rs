//! The cost of the counting for `stats()`: messages of 64 B, all sent into an empty ring, and then all read.
//!
//!     cargo run --release --example counting -- one|batch 180000 21
//!
//! The numbers: messages at a time (at most 200,000 fit), and rounds. The other side of the comparison is the same program, built from a tree
//! whose ring does not count. Instructions of a message: under `valgrind --tool=callgrind --trace-children=yes`, of two numbers of
//! messages, once each, the difference.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringfence::{Channel, Options, from_parent, spawn};

const SIZE: usize = 64;

struct Job {
    batches: bool,
    count: usize,
    rounds: usize,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [how, count, rounds, more @ ..] = &words[..] else {
        anyhow::bail!("one or batch, how many, how often");
    };
    let job = Job {
        batches: how == "batch",
        count: count.parse()?,
        rounds: rounds.parse()?,
    };
    let options = Options::new().capacity(16 << 20);
    if !more.is_empty() {
        return measure("read", &mut from_parent(&options)?, &job, read);
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(&words).arg("reader");
    let (mut child, line) = spawn(command)?;
    measure("sent", &mut line.channel(&options)?, &job, send)?;
    child.wait()?;
    Ok(())
}

/// Prints the nanoseconds of a message: the median of the rounds, and the least. The two sides take turns, by tokens.
fn measure(
    what: &str,
    channel: &mut Channel,
    job: &Job,
    turn: fn(&mut Channel, &Job) -> Result<f64>,
) -> Result<()> {
    let times = (0..job.rounds).map(|_| turn(channel, job));
    let mut times = times.collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).context("no round")?;
    println!("{what}: {median:.2} ns a message, at least {:.2}", times[0]);
    Ok(())
}

fn send(channel: &mut Channel, job: &Job) -> Result<f64> {
    let message = [7; SIZE];
    let begun = Instant::now();
    if job.batches {
        for from in (0..job.count).step_by(32) {
            let mut batch = channel.sender().batch()?;
            for _ in from..job.count.min(from + 32) {
                ensure!(batch.push(&message)?, "the ring is full");
            }
            batch.publish();
        }
    } else {
        for _ in 0..job.count {
            ensure!(channel.sender().try_send(&message)?, "the ring is full");
        }
    }
    let time = begun.elapsed().as_nanos() as f64 / job.count as f64;
    channel.tokens().send(1)?;
    channel.tokens().token()?;
    Ok(time)
}

fn read(channel: &mut Channel, job: &Job) -> Result<f64> {
    channel.tokens().token()?;
    let mut into = [0; SIZE];
    let mut left = job.count;
    let begun = Instant::now();
    while left > 0 {
        if job.batches {
            left -= channel.receiver().receive_each(
                |message| {
                    message.copy_to(&mut into).expect("it fits");
                },
                left,
            )?;
        } else {
            ensure!(
                channel.receiver().try_receive(&mut into)? == Some(SIZE),
                "one is missing"
            );
            left -= 1;
        }
    }
    let time = begun.elapsed().as_nanos() as f64 / job.count as f64;
    channel.tokens().send(1)?;
    Ok(time)
}
