//! Collectors that execute orders. They read from two publishers, one of which floods, and report how many flood
//! messages arrived before the other publisher's message.

use std::{
    thread,
    time::{Duration, Instant},
};

use ringfence::{Address, Error, Merge, Merged, Message, Options, Subscription, subscribe};

use super::serve;
use crate::{plain_broadcast, process::TIME_LIMIT};

/// Number of flood messages after which a collector gives up.
const TOO_MUCH: usize = 100_000;

/// Reads one source after the other, each until it is empty, as loops over several descriptors are often
/// written.
pub(super) fn plain() -> Result<(), String> {
    let mut both = None;
    serve(|order| {
        Ok(match order {
            ["from", flooded, quiet] => {
                let open = |address| plain_broadcast::subscribe(address, 0, false);
                both = Some((open(flooded)?, open(quiet)?));
                "collecting".into()
            }
            ["receive"] => {
                let (flooded, quiet) = both.as_mut().ok_or("collects nothing")?;
                let mut before = 0;
                loop {
                    while before < TOO_MUCH && flooded.receive(Duration::ZERO).is_some() {
                        before += 1;
                    }
                    if before == TOO_MUCH || quiet.receive(Duration::ZERO).is_some() {
                        break format!("received after {before}");
                    }
                }
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Runs a collector of ringfence.
pub(super) fn protected() -> Result<(), String> {
    let mut both = None;
    let mut single = None;
    serve(|order| {
        Ok(match order {
            ["from", flooded, quiet] => {
                both = Some(merge(flooded, quiet).map_err(|error| error.to_string())?);
                "collecting".into()
            }
            ["subscribe", address] => {
                single = Some(merge_one(address).map_err(|error| error.to_string())?);
                "subscribed".into()
            }
            ["visit"] => visit(single.as_mut().ok_or("collects nothing")?),
            ["receive"] => {
                let (merge, quiet) = both.as_mut().ok_or("collects nothing")?;
                let (mut before, mut into) = (0, vec![0; 64 * 1024]);
                loop {
                    match merge.receive(&mut into).map_err(|error| error.to_string())? {
                        Some(Merged::Message { from, .. }) if from == *quiet => {
                            break format!("received after {before}");
                        }
                        Some(Merged::Message { .. }) if before < TOO_MUCH => before += 1,
                        other => break format!("{other:?}"),
                    }
                }
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

fn merge_one(address: &str) -> Result<Merge<Subscription>, Error> {
    let mut merge = Merge::new()?;
    merge.add(subscribe(&address.parse()?, &Options::new())?)?;
    Ok(merge)
}

/// Looks at the first message until its first word is another.
fn visit(merge: &mut Merge<Subscription>) -> String {
    let end = Instant::now() + TIME_LIMIT;
    let mut seen = None;
    let visitor = |_, message: Message<'_>| {
        let first = message.words().next();
        println!("visiting");
        seen = first;
        while seen == first && Instant::now() < end {
            thread::yield_now();
            seen = message.words().next();
        }
    };
    let outcome = match merge.receive_each(visitor, 10) {
        Ok(count) => format!("{count} visited"),
        Err(error) => error.code().into(),
    };
    let (seen, received) = (seen.unwrap_or_default(), merge.stats().messages_received);
    format!("{outcome} after {seen}, {received} received")
}

fn merge(flooded: &str, quiet: &str) -> Result<(Merge<Subscription>, ringfence::Key), Error> {
    let mut merge = Merge::new()?;
    let open = |address: &str| subscribe(&address.parse::<Address>()?, &Options::new());
    merge.add(open(flooded)?)?;
    let quiet = merge.add(open(quiet)?)?;
    Ok((merge, quiet))
}
