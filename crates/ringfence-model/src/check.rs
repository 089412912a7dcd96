//! What the tests ask of each model: that it holds, in every state that it can reach, and that a mistake in it is found.
//!
//! Each prints a line of a table. `npm run test:models` shows all of them.

use std::{fmt::Debug, hash::Hash, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// Visits every state. What must hold does, and what must happen can.
///
/// # Panics
///
/// Where that is not so, with the shortest way to the state.
pub fn holds<M>(name: &str, form: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Debug + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let started = Instant::now();
    let checked = model.checker().spawn_bfs().join();
    tell(name, form, "holds", checked.unique_state_count(), started);
    checked.assert_properties();
    assert!(checked.is_done(), "every state was visited");
}

/// Visits states until the one is found in which this property does not hold.
///
/// # Panics
///
/// Where there is none.
pub fn finds<M>(name: &str, fault: &impl Debug, broken: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + PartialEq + Debug + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let started = Instant::now();
    let only = HasDiscoveries::AnyOf([broken].into());
    let found = model.checker().finish_when(only).spawn_bfs().join();
    let states = found.unique_state_count();
    let path = found.discovery(broken);
    assert!(
        path.is_some(),
        "{fault:?} breaks nothing of {broken:?} in {states} states"
    );
    tell(name, &format!("{fault:?}"), broken, states, started);
}

fn tell(name: &str, form: &str, outcome: &str, states: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f32();
    println!("| {name} | {form} | {outcome} | {states} | {seconds:.1} s |");
}
