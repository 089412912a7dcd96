//! The small machines of ringfence's protocol, checked by exhaustion.
//!
//! A test tries some of the orders in which threads and processes can meet. A model tries all of them: it says what each
//! side can do next, one indivisible step at a time, and [stateright](https://docs.rs/stateright) visits every state that
//! such steps can lead to. What must hold is asked in each.
//!
//! | module | what it checks |
//! | --- | --- |
//! | [`ending`] | the phases of a channel's two regions: who ends it, how the other is told, who has the address then, and what is wiped |
//!
//! `cargo test -p ringfence-model` checks all of them in some seconds.
//!
//! # How to read a model
//!
//! - `State` is what there is: shared words, lines, locks, and where each thread stands. `Action` is one step of one thread. What
//!   the code does under a lock still takes several steps here, since the other process sees each of them.
//! - A property is a sentence. `always` must hold in each state; `sometimes` in one at least, so that a model in which nothing
//!   can happen does not pass.
//! - A `Fault` is a mistake that the code once made, or could make. With it in place the checker must find a property that
//!   does not hold: a test asserts that for each of them. A model that no fault breaks proves nothing.
//! - What decides in the code decides here as well, where that can be had: `ending` includes the file with the order of the
//!   phases (`crates/ringfence/src/memory/phase.rs`) as it is.
//!
//! # What a model does not say
//!
//! It knows no memory orderings: a store is seen by the next load. Those are loom's affair, in the tests of the crate.

pub mod ending;
