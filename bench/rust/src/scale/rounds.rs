//! Every step once in each round.

use std::time::Duration;

use anyhow::Result;

use super::{Arguments, Results};
use crate::machine;

/// What was measured of a step, all of it in one placement.
pub struct Step<S> {
    pub work: usize,
    pub placement: &'static str,
    pub samples: Vec<S>,
}

/// Every step once in each round, so that what the machine does in one minute it does to all of them. Near runs and far
/// ones are not put together: what most runs had is kept, and of a step that has none of it what there is.
pub fn rounds<S>(
    plan: &Arguments,
    results: &mut Results,
    steps: &[usize],
    mut measure: impl FnMut(usize) -> Result<S>,
) -> Result<Vec<Step<S>>> {
    let mut samples: Vec<(usize, Vec<(&'static str, S)>)> =
        steps.iter().map(|step| (*step, Vec::new())).collect();
    for _ in 0..plan.runs {
        for (step, values) in &mut samples {
            let before = machine::probe([0, 1])?;
            let value = measure(*step)?;
            let after = machine::probe([0, 1])?;
            let name = machine::placement_of(before, after);
            results.placements.extend([before, after]);
            values.push((name, value));
            std::thread::sleep(Duration::from_secs_f64(plan.pause));
        }
    }
    let most = |values: &mut dyn Iterator<Item = &'static str>| {
        let mut counts = [("near", 0), ("far", 0), ("moved", 0)];
        values.for_each(|name| {
            counts
                .iter_mut()
                .for_each(|(other, count)| *count += usize::from(*other == name))
        });
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts[0].0
    };
    let usual = most(
        &mut samples
            .iter()
            .flat_map(|(_, values)| values)
            .map(|(name, _)| *name),
    );
    Ok(samples
        .into_iter()
        .map(|(work, values)| {
            let placement = if values.iter().any(|(name, _)| *name == usual) {
                usual
            } else {
                most(&mut values.iter().map(|(name, _)| *name))
            };
            let samples = values.into_iter().filter(|(name, _)| *name == placement);
            Step {
                work,
                placement,
                samples: samples.map(|(_, value)| value).collect(),
            }
        })
        .collect())
}
