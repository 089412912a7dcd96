//! The small machines of ringfence's protocol, checked by exhaustion.
//!
//! A test tries some of the orders in which threads and processes can meet. A model tries all of them: it says what each
//! side can do next, one indivisible step at a time, and [stateright](https://docs.rs/stateright) visits every state that
//! such steps can lead to. What must hold is asked in each.
//!
//! | module | what it checks |
//! | --- | --- |
//! | [`ending`] | the phases of a channel's two regions: who ends it, how the other is told, who has the address then, and what is wiped |
//! | [`closing`] | the end of sending and the close of a channel, from both sides at once, with messages on their way |
//! | [`parking`] | one publisher and its readers, each of which sleeps when it has nothing to do: the words by which they are rung, the fences, and the promise of fences that one word makes to all readers |
//! | [`admission`] | a reader that comes while the publisher goes on: its place is kept, it misses nothing, and it is rung |
//! | [`bells`] | one line as the bell of two halves, of which one is waited for by an event loop and the other by a thread |
//! | [`eviction`] | a reader that is let go of while it reads, and a newcomer in its place: what was known of the one is not taken for the other |
//! | [`floor`] | a reader that is overtaken: no torn message, an exact count, no honest publisher accused |
//! | [`holding`] | who holds an address, while members come, leave, are killed and are stopped |
//! | [`wiping`] | a ring that is wiped while slices of it are handed out: what is written in place is left alone, and nothing else stays |
//!
//! `cargo test -p ringfence-model` checks all of them in some seconds, and `npm run test:models` more of each, in a minute or two. Each
//! prints what it has found, and in how many states ([`check`]).
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
//! - [`ending`], [`bells`] and [`holding`] know no memory orderings: a store is seen by the next load. The others have the words of
//!   [`memory`], where a thread may see old values as long as nothing that the code does forbids it.
//! - A model is small: two or three readers, a ring of a few cells. A mistake that takes more is not found.
//! - That the code does what a model does is not checked by the model. loom runs the code itself, with less of everything.

pub mod admission;
pub mod bells;
pub mod check;
pub mod closing;
pub mod ending;
pub mod eviction;
pub mod floor;
pub mod holding;
pub mod memory;
pub mod parking;
pub mod wiping;
