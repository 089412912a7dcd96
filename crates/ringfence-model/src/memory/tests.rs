//! Litmus tests: the memory of the models allows what C11 allows, and nothing else.

use std::collections::HashSet;

use super::{Membarrier, Memory, Order};

const X: usize = 0;
const Y: usize = 1;

type Small = Memory<2, 2>;

/// One step of a thread. A load appends its value to the thread's results.
#[derive(Debug, Clone, Copy)]
enum Op {
    Store(usize, Order),
    Load(usize, Order),
    Acquire,
    Release,
    Full,
    /// A membarrier, which makes a fence in both threads.
    All,
}

use Op::{Acquire, All, Full, Load, Release, Store};
use Order::{AcqRel, Relaxed};

/// Returns all pairs of values that the two threads can have loaded when both have ended.
fn outcomes(programs: [&[Op]; 2]) -> HashSet<[Vec<u8>; 2]> {
    let mut found = HashSet::new();
    let start = (Small::new([3, 3]), [0, 0], [Vec::new(), Vec::new()]);
    let mut open = vec![start];
    while let Some((memory, at, loaded)) = open.pop() {
        let mut ended = true;
        for thread in [0, 1] {
            let Some(&op) = programs[thread].get(at[thread]) else {
                continue;
            };
            ended = false;
            let choices = match op {
                Load(word, _) => memory.choices(thread, word),
                _ => 1,
            };
            for choice in 0..choices {
                let (mut memory, mut at, mut loaded) = (memory.clone(), at, loaded.clone());
                at[thread] += 1;
                match op {
                    Store(word, order) => memory.store(thread, word, 1, order),
                    Load(word, order) => loaded[thread].push(memory.load(thread, word, choice, order)),
                    Acquire => memory.acquire_fence(thread),
                    Release => memory.release_fence(thread),
                    Full => memory.full_fence(thread),
                    All => Membarrier::start(&mut memory, thread, 1 << (1 - thread)).interrupt(
                        &mut memory,
                        thread,
                        1 - thread,
                    ),
                }
                open.push((memory, at, loaded));
            }
        }
        if ended {
            found.insert(loaded);
        }
    }
    found
}

fn allows(programs: [&[Op]; 2], loaded: [&[u8]; 2]) -> bool {
    outcomes(programs).contains(&loaded.map(<[u8]>::to_vec))
}

#[test]
fn store_buffering_needs_fences_on_both_sides() {
    let checks = |word| Load(word, AcqRel);
    let publishes = |word| Store(word, AcqRel);
    let both_miss = [[0].as_slice(), [0].as_slice()];
    assert!(allows(
        [&[publishes(X), checks(Y)], &[publishes(Y), checks(X)]],
        both_miss
    ));
    assert!(allows(
        [&[publishes(X), Full, checks(Y)], &[publishes(Y), checks(X)]],
        both_miss
    ));
    assert!(!allows(
        [&[publishes(X), Full, checks(Y)], &[publishes(Y), Full, checks(X)]],
        both_miss
    ));
    assert!(!allows(
        [&[publishes(X), checks(Y)], &[publishes(Y), All, checks(X)]],
        both_miss
    ));
}

#[test]
fn release_and_acquire_publish_earlier_stores() {
    for (release, acquire) in [
        (Relaxed, Relaxed),
        (AcqRel, Relaxed),
        (Relaxed, AcqRel),
        (AcqRel, AcqRel),
    ] {
        let old_data = allows(
            [
                &[Store(X, Relaxed), Store(Y, release)],
                &[Load(Y, acquire), Load(X, Relaxed)],
            ],
            [&[], &[1, 0]],
        );
        let ordered = release == AcqRel && acquire == AcqRel;
        assert_eq!(old_data, !ordered, "{release:?}, {acquire:?}");
    }
}

#[test]
fn fences_on_both_sides_order_relaxed_words() {
    for (writer, reader) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut stores = vec![Store(X, Relaxed), Store(Y, Relaxed)];
        let mut loads = vec![Load(Y, Relaxed), Load(X, Relaxed)];
        if writer {
            stores.insert(1, Release);
        }
        if reader {
            loads.insert(1, Acquire);
        }
        let old_data = allows([&stores, &loads], [&[], &[1, 0]]);
        assert_eq!(old_data, !(writer && reader), "{writer}, {reader}");
    }
}

#[test]
fn loads_of_one_word_never_return_older_values() {
    let stores = [Store(X, Relaxed)];
    let loads = [Load(X, Relaxed), Load(X, Relaxed)];
    assert!(allows([&stores, &loads], [&[], &[0, 1]]));
    assert!(!allows([&stores, &loads], [&[], &[1, 0]]));
}
