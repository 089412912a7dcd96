//! Many to one: what one source can do to the others.

use super::must;
use crate::{
    Half, Report, Trouble,
    actor::Actor,
    stage::{Program, Stage, Who},
};

/// Bytes of the flooder's ring: many turns of a merge.
const RING: &str = "capacity=1048576";

/// A publisher that floods, and has filled its ring already; one that has said one word; and what their reader has read of the
/// flood before it heard that word. The flood goes on meanwhile. Also how many messages the full ring has.
fn heard_after(stage: &Stage, of: &'static str, options: &str) -> Result<(usize, usize), Trouble> {
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
    flooder.say("send-all 5000")?;
    let before = collector.ask("hear")?;
    let before = before
        .strip_prefix("heard after ")
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| Trouble::wrong(before.clone()))?;
    Ok((filled, before))
}

fn filled(flooder: &mut Actor) -> Result<usize, Trouble> {
    flooder.say("fill")?;
    let count = flooder.expect("filled")?;
    count.parse().map_err(|_| Trouble::wrong(count))
}

/// Row 54: one source of a merge has more to read, at any time, than is read.
///
/// What stops it: a turn is bounded by bytes, and one that was quiet has the next one.
pub(super) fn floods_one_source(stage: &Stage) -> Result<Report, Trouble> {
    let (filled, before) = heard_after(stage, "plain", "")?;
    let seen = format!("another is heard after {before} messages, where the ring has {filled}");
    let plain = if before < filled {
        Half::held(seen)
    } else {
        Half::bit(seen)
    };
    let (filled, before) = heard_after(stage, "ringfence", RING)?;
    let seen = format!("another is heard after {before} messages, where the ring has {filled}");
    // Some turns of 16 KiB. Without turns it would be all.
    if before > filled / 8 {
        return Ok(Report::bitten(plain, seen));
    }
    Ok(Report {
        plain,
        ringfence: Half::held(seen),
        stopped_by: "turns: of some 16 KiB, and the next one's is the quiet one's",
    })
}
