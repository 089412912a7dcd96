//! Models of the small state machines in ringfence's protocol, checked exhaustively.
//!
//! A test tries some of the orders in which the steps of threads and processes can interleave. A model tries
//! all of them: it defines what each side can do next, one indivisible step at a time.
//! [stateright](https://docs.rs/stateright) then visits every reachable state and checks the properties in
//! each.
//!
//! | module | what it checks |
//! | --- | --- |
//! | [`ending`] | the phases of a channel's two regions: which side ends it, how the other side learns that, who owns the address afterwards, and what is wiped |
//! | [`closing`] | the end of sending and the close of a channel, from both sides at the same time, with messages in the ring |
//! | [`parking`] | one publisher and its readers, each of which sleeps when it has nothing to do: the parked words, the fences, and the single word that promises fences to all readers |
//! | [`admission`] | a reader that subscribes while the publisher continues: its starting position is kept, it misses nothing, and it is woken |
//! | [`wakeups`] | one line that wakes two halves, one waiting in an event loop and the other in a thread |
//! | [`eviction`] | a reader that is evicted while it reads, and a new one in the same slot: knowledge about the first is never applied to the second |
//! | [`floor`] | a reader that is overtaken: no torn message, an exact count, and no false accusation of an honest publisher |
//! | [`ownership`] | the ownership of an address while members join, leave, are killed and are stopped |
//! | [`wiping`] | a ring that is wiped while slices of it are handed out: slices stay unchanged, and nothing else remains |
//!
//! `cargo test -p ringfence-model` checks all of them in a few seconds. `npm run test:models` checks larger
//! forms, in a minute or two. Each prints its result and the number of states ([`check`]).
//!
//! # How to read a model
//!
//! - `State` contains shared words, lines, locks, and the next step of each thread. `Action` is one step of
//!   one thread. Code that runs under a lock still takes several steps here, because the other process sees
//!   each of them.
//! - A property is a sentence. `always` must hold in every state. `sometimes` must hold in at least one, so
//!   that a model in which nothing can happen does not pass.
//! - A `Fault` is a mistake that the code once contained, or could contain. With the fault enabled the
//!   checker must find a violated property, and a test asserts that for each fault. A model that no fault
//!   breaks proves nothing.
//! - If possible, a model uses the code itself: `ending` includes the source file with the order of the
//!   phases (`crates/ringfence/src/region/phase.rs`).
//!
//! # What a model does not show
//!
//! - [`ending`], [`wakeups`] and [`ownership`] do not model memory orderings: each load sees the latest store.
//!   The others use the words of [`memory`], where a thread may see old values unless the code forbids it.
//! - A model is small: two or three readers, and a ring of a few cells. It does not find a mistake that needs
//!   more.
//! - The model does not check that the code behaves like the model. loom runs the code itself, in smaller
//!   configurations.

pub mod admission;
pub mod check;
pub mod closing;
pub mod ending;
pub mod eviction;
pub mod floor;
pub mod memory;
pub mod ownership;
pub mod parking;
pub mod wakeups;
pub mod wiping;
