//! Table of calls × errors × outcomes.

use std::collections::BTreeMap;

use crate::{
    calls::{CALLS, ERRORS},
    scenario::Fault,
};

/// Number of cases with each outcome, for each failed call and error.
#[derive(Debug, Default)]
pub(crate) struct Table(BTreeMap<(usize, usize), BTreeMap<String, u32>>);

impl Table {
    pub(crate) fn add(&mut self, fault: Fault, outcome: String) {
        *self
            .0
            .entry((fault.row, fault.error))
            .or_default()
            .entry(outcome)
            .or_default() += 1;
    }

    /// Prints the table as Markdown, with one row for each call.
    pub(crate) fn print(&self) {
        let names: Vec<&str> = ERRORS.iter().map(|&(name, _)| name).collect();
        println!("| call | {} |", names.join(" | "));
        println!("| --- |{}", " --- |".repeat(names.len()));
        let mut rows: Vec<usize> = self.0.keys().map(|&(row, _)| row).collect();
        rows.dedup();
        rows.sort_by_key(|&row| CALLS[row].name);
        for row in rows {
            let cells: Vec<String> = (0..ERRORS.len()).map(|error| self.cell(row, error)).collect();
            println!("| `{}` | {} |", CALLS[row].name, cells.join(" | "));
        }
    }

    fn cell(&self, row: usize, error: usize) -> String {
        let Some(outcomes) = self.0.get(&(row, error)) else {
            return "–".into();
        };
        let mut outcomes: Vec<_> = outcomes.iter().collect();
        outcomes.sort_by_key(|&(_, count)| std::cmp::Reverse(*count));
        let parts: Vec<String> = outcomes
            .iter()
            .map(|(outcome, count)| format!("{outcome} {count}"))
            .collect();
        parts.join(", ")
    }
}
