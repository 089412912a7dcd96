//! Many to one: the influence of one source on the others.

use super::must;
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    stage::{Program, Stage, Who},
};

/// The size of the flooder's ring in bytes: many turns of a merge.
const RING: &str = "capacity=1048576";

/// Starts a publisher that floods and has already filled its ring, and another one that sends one message.
/// Returns the number of messages that the full ring holds, and the number of flood messages that their
/// reader has read before that one message. The flood continues in the meantime.
fn heard_after(stage: &Stage, of: &'static str, options: &str) -> Result<(usize, usize), RowError> {
    let spawn = |name, role| stage.spawn(name, Who::Agent, Program::Genuine, &[role, of]);
    let [loud, quiet] = ["loud", "quiet"].map(|part| stage.address(&format!("{of}-{part}")));
    let mut flooder = spawn("the flooder", "publisher")?;
    must(&mut flooder, &format!("publish {loud} {options}"), "publishing")?;
    let mut other = spawn("the quiet one", "publisher")?;
    must(&mut other, &format!("publish {quiet}"), "publishing")?;
    let mut collector = spawn("the collector", "collector")?;
    must(&mut collector, &format!("from {loud} {quiet}"), "collecting")?;
    let filled = filled(&mut flooder)?;
    must(&mut other, "send-all 1", "all sent")?;
    flooder.send_order("send-all 5000")?;
    let before = collector.ask("hear")?;
    let before = before
        .strip_prefix("heard after ")
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| RowError::wrong(before.clone()))?;
    Ok((filled, before))
}

fn filled(flooder: &mut Actor) -> Result<usize, RowError> {
    flooder.send_order("fill")?;
    let count = flooder.line_after("filled")?;
    count.parse().map_err(|_| RowError::wrong(count))
}

/// Row 54: one source of a merge always has more messages than are read.
///
/// Defence: a turn is limited in bytes, and a quiet source gets the next turn.
pub(super) fn floods_one_source(stage: &Stage) -> Result<Report, RowError> {
    let (filled, before) = heard_after(stage, "plain", "")?;
    let seen = format!("the quiet source is read after {before} messages; the ring holds {filled}");
    let plain = if before < filled {
        Outcome::failed(seen)
    } else {
        Outcome::succeeded(seen)
    };
    let (filled, before) = heard_after(stage, "ringfence", RING)?;
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
