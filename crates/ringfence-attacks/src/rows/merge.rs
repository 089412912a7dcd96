//! Many to one: the influence of one source on the others.

use super::expect_answer;
use crate::{
    Outcome, Report, RowError,
    process::Process,
    setup::{Program, Setup, User},
};

/// The size of the flooder's ring in bytes: many turns of a merge.
const RING: &str = "capacity=1048576";

/// Starts a publisher that floods and has already filled its ring, and another one that sends one message.
/// Returns the number of messages that the full ring holds, and the number of flood messages that their
/// reader has read before that one message. The flood continues in the meantime.
fn received_after(setup: &Setup, of: &'static str, options: &str) -> Result<(usize, usize), RowError> {
    let spawn = |name, role| setup.spawn(name, User::Agent, Program::Genuine, &[role, of]);
    let [loud, quiet] = ["loud", "quiet"].map(|part| setup.address(&format!("{of}-{part}")));
    let mut flooder = spawn("the flooder", "publisher")?;
    expect_answer(&mut flooder, &format!("publish {loud} {options}"), "publishing")?;
    let mut other = spawn("the quiet one", "publisher")?;
    expect_answer(&mut other, &format!("publish {quiet}"), "publishing")?;
    let mut collector = spawn("the collector", "collector")?;
    expect_answer(&mut collector, &format!("from {loud} {quiet}"), "collecting")?;
    let filled = filled(&mut flooder)?;
    expect_answer(&mut other, "send-all 1", "all sent")?;
    flooder.send_order("send-all 5000")?;
    let before = collector.ask("receive")?;
    let before = before
        .strip_prefix("received after ")
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| RowError::wrong(before.clone()))?;
    Ok((filled, before))
}

fn filled(flooder: &mut Process) -> Result<usize, RowError> {
    flooder.send_order("fill")?;
    let count = flooder.line_after("filled")?;
    count.parse().map_err(|_| RowError::wrong(count))
}

/// Row 54: one source of a merge always has more messages than are read.
///
/// Defence: a turn is limited in bytes, and a quiet source gets the next turn.
pub(super) fn flooded_source(setup: &Setup) -> Result<Report, RowError> {
    let (filled, before) = received_after(setup, "plain", "")?;
    let seen = format!("the quiet source is read after {before} messages; the ring holds {filled}");
    let plain = if before < filled {
        Outcome::failed(seen)
    } else {
        Outcome::succeeded(seen)
    };
    let (filled, before) = received_after(setup, "ringfence", RING)?;
    let seen = format!("the quiet source is read after {before} messages; the ring holds {filled}");
    // A few turns of 16 KiB. Without turns all messages would come first.
    if before > filled / 8 {
        return Ok(Report::with_harm(plain, seen));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(seen),
        stopped_by: "sources take turns of about 16 KiB, and the quiet one is next",
    })
}
