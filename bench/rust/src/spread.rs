//! Several runs of one thing, as one figure with its spread.

use serde::{Deserialize, Serialize};

/// The median of all runs, the least and the most.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of no value at all: zeros.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let (n, half) = (values.len(), values.len() / 2);
        let median = if n % 2 == 0 && n > 0 {
            (at(half - 1) + at(half)) / 2.0
        } else {
            at(half)
        };
        Self {
            median,
            min: at(0),
            max: at(n.saturating_sub(1)),
        }
    }

    /// Of one figure of each run.
    pub fn by<S>(samples: &[S], pick: impl Fn(&S) -> f64) -> Self {
        Self::of(samples.iter().map(pick).collect())
    }
}
