//! Shared words as processors and compilers let several threads see them.
//!
//! A store is not seen by all threads at once. Each word has the list of what was stored in it, and each thread a *view*: for each
//! word, the oldest store that it may still read. A load takes any store from there on, so a thread may see an old tail beside a new
//! fence word. What narrows the choice is what the code writes down: a release store carries its thread's view, an acquire load takes it
//! over, and a full fence exchanges views with every other full fence.
//!
//! These are the rules of C11 as loom has them, without one thing: a load cannot see a store that its own thread makes possible later
//! (out of thin air). They allow all that the store buffers of x86-64 allow, and what ARM allows beyond that: loads out of order, and
//! stores of two words out of order.
//!
//! Each word has one writing thread at a time, as in the code. So a store is always the newest of its word.

use std::cmp::max;

/// How a load or store orders what its thread does before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Not at all.
    Relaxed,
    /// A load takes over the view that a release store carries; a store carries its thread's view.
    Synchronises,
}

/// For each word, the oldest store that may still be read.
type View<const WORDS: usize> = [u8; WORDS];

fn join<const WORDS: usize>(view: &mut View<WORDS>, other: &View<WORDS>) {
    for (mine, theirs) in view.iter_mut().zip(other) {
        *mine = max(*mine, *theirs);
    }
}

fn narrow(word: usize) -> u8 {
    u8::try_from(word).expect("a model has few words")
}

/// One store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Store<const WORDS: usize> {
    word: u8,
    at: u8,
    value: u8,
    carries: View<WORDS>,
}

/// What one thread has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Seen<const WORDS: usize> {
    /// Which words it reads or writes, one bit each. None, once it has ended. What it would hear of the others is left out: that
    /// allows more, and makes fewer states.
    uses: u32,
    now: View<WORDS>,
    /// What it has read relaxed carried this: an acquire fence takes it over.
    after_fence: View<WORDS>,
    /// Its view at its last release fence: what its relaxed stores carry.
    at_fence: View<WORDS>,
}

/// The words, and the views of so many threads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Memory<const WORDS: usize, const THREADS: usize> {
    stores: Vec<Store<WORDS>>,
    threads: [Seen<WORDS>; THREADS],
    /// What the full fences so far agree on.
    agreed: View<WORDS>,
}

impl<const WORDS: usize, const THREADS: usize> Memory<WORDS, THREADS> {
    /// All words 0, which every thread has seen. `uses` says of each thread which words it reads or writes: one bit each. A thread
    /// without any does not take part.
    pub fn new(uses: [u32; THREADS]) -> Self {
        let stores = (0..WORDS).map(|word| Store {
            word: narrow(word),
            at: 0,
            value: 0,
            carries: [0; WORDS],
        });
        let mut seen = [Seen {
            uses: 0,
            now: [0; WORDS],
            after_fence: [0; WORDS],
            at_fence: [0; WORDS],
        }; THREADS];
        for (thread, uses) in seen.iter_mut().zip(uses) {
            thread.uses = uses;
        }
        Self {
            stores: stores.collect(),
            threads: seen,
            agreed: [0; WORDS],
        }
    }

    fn of(&self, word: usize) -> impl DoubleEndedIterator<Item = &Store<WORDS>> {
        self.stores
            .iter()
            .filter(move |store| usize::from(store.word) == word)
    }

    fn newest(&self, word: usize) -> &Store<WORDS> {
        self.of(word).next_back().expect("one store at least is kept")
    }

    fn find(&self, word: usize, at: u8) -> &Store<WORDS> {
        self.of(word)
            .find(|store| store.at == at)
            .expect("one of the choices")
    }

    /// How many stores of the word the thread may read: the choices of [`Memory::load`].
    pub fn choices(&self, thread: usize, word: usize) -> u8 {
        self.newest(word).at - self.threads[thread].now[word] + 1
    }

    /// What a thread reads, which takes the oldest (0) or a newer one of the stores that it may read.
    pub fn load(&mut self, thread: usize, word: usize, choice: u8, order: Order) -> u8 {
        let at = self.threads[thread].now[word] + choice;
        let &Store { value, carries, .. } = self.find(word, at);
        let seen = &mut self.threads[thread];
        seen.now[word] = at;
        if order == Order::Synchronises {
            join(&mut seen.now, &carries);
        }
        join(&mut seen.after_fence, &carries);
        self.forget();
        value
    }

    /// What a thread reads of a word that it has under a lock, or by a system call: the newest.
    pub fn load_newest(&mut self, thread: usize, word: usize) -> u8 {
        let newest = self.choices(thread, word) - 1;
        self.load(thread, word, newest, Order::Synchronises)
    }

    /// Stores a value.
    pub fn store(&mut self, thread: usize, word: usize, value: u8, order: Order) {
        let at = self.newest(word).at + 1;
        let seen = &mut self.threads[thread];
        seen.now[word] = at;
        let mut carries = match order {
            Order::Synchronises => seen.now,
            Order::Relaxed => seen.at_fence,
        };
        carries[word] = at;
        self.insert(Store {
            word: narrow(word),
            at,
            value,
            carries,
        });
    }

    /// What the kernel says of a process that it has ended: seen with all that was stored before.
    pub fn store_by_kernel(&mut self, word: usize, value: u8) {
        let at = self.newest(word).at + 1;
        let mut carries = [0; WORDS];
        for (other, newest) in carries.iter_mut().enumerate() {
            *newest = self.newest(other).at;
        }
        carries[word] = at;
        self.insert(Store {
            word: narrow(word),
            at,
            value,
            carries,
        });
    }

    fn insert(&mut self, store: Store<WORDS>) {
        let place = self.stores.partition_point(|other| other.word <= store.word);
        self.stores.insert(place, store);
        self.forget();
    }

    /// What was read before is older than what is read after.
    pub fn acquire_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        join(&mut seen.now, &seen.after_fence);
        self.forget();
    }

    /// What is stored after this, and is seen, makes seen what was stored before.
    pub fn release_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        seen.at_fence = seen.now;
        self.forget();
    }

    /// Both, and of two threads' full fences one is before the other.
    pub fn full_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        let after_fence = seen.after_fence;
        join(&mut seen.now, &after_fence);
        join(&mut seen.now, &self.agreed);
        self.agreed = seen.now;
        seen.at_fence = seen.now;
        self.forget();
    }

    /// The thread ends. No processor keeps back what it has stored, so a membarrier need not interrupt it.
    pub fn retire(&mut self, thread: usize) {
        self.full_fence(thread);
        self.threads[thread] = Seen {
            uses: 0,
            now: [0; WORDS],
            after_fence: [0; WORDS],
            at_fence: [0; WORDS],
        };
        self.forget();
    }

    /// Every store so far is seen by the thread: no processor keeps one back for ever.
    pub fn settle(&mut self, thread: usize) {
        for word in 0..WORDS {
            let newest = self.newest(word).at;
            self.threads[thread].now[word] = newest;
        }
        self.forget();
    }

    /// Lets go of what no thread can read or hear of, and counts from what is left: so states that differ in nothing that a
    /// thread can see are one.
    fn forget(&mut self) {
        let mut oldest = [u8::MAX; WORDS];
        let mut used_beside = [0; WORDS];
        let mut used = 0;
        for seen in &mut self.threads {
            let now = seen.now;
            join(&mut seen.after_fence, &now);
            used |= seen.uses;
            for word in words(seen.uses, WORDS) {
                oldest[word] = oldest[word].min(now[word]);
                used_beside[word] |= seen.uses;
            }
        }
        for (word, oldest) in oldest.iter_mut().enumerate() {
            *oldest = (*oldest).min(self.newest(word).at);
        }
        self.stores
            .retain(|store| store.at >= oldest[usize::from(store.word)]);
        let rebase = |view: &mut View<WORDS>, uses: u32| {
            for (word, at) in view.iter_mut().enumerate() {
                let is_used = uses & (1 << word) != 0;
                *at = if is_used {
                    at.saturating_sub(oldest[word])
                } else {
                    0
                };
            }
        };
        rebase(&mut self.agreed, used);
        for store in &mut self.stores {
            let word = usize::from(store.word);
            store.at -= oldest[word];
            rebase(&mut store.carries, used_beside[word]);
        }
        for seen in &mut self.threads {
            rebase(&mut seen.now, seen.uses);
            rebase(&mut seen.after_fence, seen.uses);
            rebase(&mut seen.at_fence, seen.uses);
        }
        self.raise();
    }

    /// What a store carries matters only where one that may read it has not seen as much.
    fn raise(&mut self) {
        for store in &mut self.stores {
            let word = usize::from(store.word);
            let mut known = [u8::MAX; WORDS];
            let may_read = |seen: &&Seen<WORDS>| seen.uses & (1 << word) != 0 && seen.now[word] <= store.at;
            for seen in self.threads.iter().filter(may_read) {
                for word in words(seen.uses, WORDS) {
                    known[word] = known[word].min(seen.now[word]);
                }
            }
            for (carried, known) in store.carries.iter_mut().zip(known) {
                *carried = if known == u8::MAX { 0 } else { max(*carried, known) };
            }
        }
    }
}

/// The words of such a set.
fn words(set: u32, all: usize) -> impl Iterator<Item = usize> {
    (0..all).filter(move |word| set & (1 << word) != 0)
}

/// membarrier(2), as one thread issues it: a fence of its own, one of each other thread at a moment of that thread's, and one
/// of its own in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Membarrier {
    /// The threads that have not made theirs: one bit each.
    pub left: u8,
}

impl Membarrier {
    /// Begins one, which interrupts these threads (one bit each) as far as they take part. The others' fences are left out: they
    /// could only help.
    pub fn begin<const WORDS: usize, const THREADS: usize>(
        memory: &mut Memory<WORDS, THREADS>,
        thread: usize,
        others: u8,
    ) -> Self {
        memory.full_fence(thread);
        let takes_part = |other: &usize| others & (1 << other) != 0 && memory.threads[*other].uses != 0;
        Self {
            left: (0..THREADS).filter(takes_part).map(|other| 1 << other).sum(),
        }
    }

    /// Another thread is interrupted. The last one ends the call.
    pub fn interrupt<const WORDS: usize, const THREADS: usize>(
        &mut self,
        memory: &mut Memory<WORDS, THREADS>,
        thread: usize,
        other: usize,
    ) {
        memory.full_fence(other);
        self.left &= !(1 << other);
        if self.left == 0 {
            memory.full_fence(thread);
        }
    }
}

#[cfg(test)]
mod tests;
