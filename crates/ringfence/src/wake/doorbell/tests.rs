//! Tests of the line: its waiters, the readers of wakeups, and its end.

mod line;
mod parcels;
