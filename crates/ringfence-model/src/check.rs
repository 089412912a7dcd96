//! Checks for the tests of each model: that its properties hold in every reachable state, and that the
//! checker finds each fault.
//!
//! Each check prints a line of a table. `npm run test:models` shows all of them.

use std::{fmt::Debug, hash::Hash, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// Visits every state and checks all properties.
///
/// # Panics
///
/// If a property does not hold; the message contains the shortest path to the state.
pub fn holds<M>(name: &str, form: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Debug + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let started = Instant::now();
    let checked = model.checker().spawn_bfs().join();
    print_row(name, form, "holds", checked.unique_state_count(), started);
    checked.assert_properties();
    assert!(checked.is_done(), "the checker visited every state");
}

/// Visits states until one violates this property.
///
/// # Panics
///
/// If no state violates it.
pub fn finds<M>(name: &str, fault: &impl Debug, property: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Debug + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let started = Instant::now();
    let only = HasDiscoveries::AnyOf([property].into());
    let found = model.checker().finish_when(only).spawn_bfs().join();
    let states = found.unique_state_count();
    let path = found.discovery(property);
    assert!(
        path.is_some(),
        "{fault:?} does not violate {property:?} in {states} states"
    );
    print_row(name, &format!("{fault:?}"), property, states, started);
}

fn print_row(name: &str, form: &str, outcome: &str, states: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f32();
    println!("| {name} | {form} | {outcome} | {states} | {seconds:.1} s |");
}
