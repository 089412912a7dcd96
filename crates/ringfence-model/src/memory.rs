//! Shared words as several threads see them through processors and compilers.
//!
//! A store does not become visible to all threads at the same time. Each word has the list of values that
//! were stored in it. Each thread has a *view*: for each word, the oldest store that it may still read. A
//! load takes any store from there on, so a thread may see an old tail together with a new fence word. The
//! code narrows the choice: a release store carries its thread's view, an acquire load adopts it, and a full
//! fence exchanges views with every other full fence.
//!
//! These are the rules of C11 as loom implements them, with one exception: a load cannot see a store that its
//! own thread makes possible later (out of thin air). They allow everything that the store buffers of x86-64
//! allow. They also allow what ARM adds to that: loads out of order, and stores of two words out of order.
//!
//! As in the code, only one thread at a time writes each word. So a store is always the newest of its word.

use std::cmp::max;

/// The ordering of a load or store with its thread's other accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// No ordering.
    Relaxed,
    /// A load adopts the view that a release store carries. A store carries its thread's view.
    AcqRel,
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

/// The view of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ThreadView<const WORDS: usize> {
    /// The words that it reads or writes, one bit each. Zero once the thread has ended. Its knowledge of
    /// other words is not tracked, which allows more behaviour with fewer states.
    uses: u32,
    now: View<WORDS>,
    /// The views carried by stores that it has read relaxed. An acquire fence adopts them.
    after_fence: View<WORDS>,
    /// Its view at its last release fence, which its relaxed stores carry.
    at_fence: View<WORDS>,
}

/// The words, and the views of `THREADS` threads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Memory<const WORDS: usize, const THREADS: usize> {
    stores: Vec<Store<WORDS>>,
    threads: [ThreadView<WORDS>; THREADS],
    /// The view that all full fences so far agree on.
    fenced: View<WORDS>,
}

impl<const WORDS: usize, const THREADS: usize> Memory<WORDS, THREADS> {
    /// Makes words that are all 0, which every thread has seen. `uses` has the words that each thread reads
    /// or writes, one bit each. A thread without any word does not take part.
    pub fn new(uses: [u32; THREADS]) -> Self {
        let stores = (0..WORDS).map(|word| Store {
            word: narrow(word),
            at: 0,
            value: 0,
            carries: [0; WORDS],
        });
        let mut seen = [ThreadView {
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
            fenced: [0; WORDS],
        }
    }

    fn stores_of(&self, word: usize) -> impl DoubleEndedIterator<Item = &Store<WORDS>> {
        self.stores
            .iter()
            .filter(move |store| usize::from(store.word) == word)
    }

    fn newest(&self, word: usize) -> &Store<WORDS> {
        self.stores_of(word)
            .next_back()
            .expect("at least one store is kept")
    }

    fn find(&self, word: usize, at: u8) -> &Store<WORDS> {
        self.stores_of(word)
            .find(|store| store.at == at)
            .expect("a valid choice")
    }

    /// Returns the number of stores of the word that the thread may read: the choices of [`Memory::load`].
    pub fn choices(&self, thread: usize, word: usize) -> u8 {
        self.newest(word).at - self.threads[thread].now[word] + 1
    }

    /// Loads a word. `choice` selects the oldest (0) or a newer one of the stores that the thread may read.
    pub fn load(&mut self, thread: usize, word: usize, choice: u8, order: Order) -> u8 {
        let at = self.threads[thread].now[word] + choice;
        let &Store { value, carries, .. } = self.find(word, at);
        let seen = &mut self.threads[thread];
        seen.now[word] = at;
        if order == Order::AcqRel {
            join(&mut seen.now, &carries);
        }
        join(&mut seen.after_fence, &carries);
        self.compact();
        value
    }

    /// Loads the newest value of a word, for a word that is protected by a lock or read by a system call.
    pub fn load_newest(&mut self, thread: usize, word: usize) -> u8 {
        let newest = self.choices(thread, word) - 1;
        self.load(thread, word, newest, Order::AcqRel)
    }

    /// Stores a value.
    pub fn store(&mut self, thread: usize, word: usize, value: u8, order: Order) {
        let at = self.newest(word).at + 1;
        let seen = &mut self.threads[thread];
        seen.now[word] = at;
        let mut carries = match order {
            Order::AcqRel => seen.now,
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

    /// Stores a value on behalf of the kernel, which reports that a process has ended. A load also sees
    /// everything that was stored before.
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
        let index = self.stores.partition_point(|other| other.word <= store.word);
        self.stores.insert(index, store);
        self.compact();
    }

    /// Orders the loads before the fence with the loads after it.
    pub fn acquire_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        join(&mut seen.now, &seen.after_fence);
        self.compact();
    }

    /// Orders the stores before the fence with the stores after it: a thread that sees a later store sees the
    /// earlier ones.
    pub fn release_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        seen.at_fence = seen.now;
        self.compact();
    }

    /// Does both, and full fences of different threads have a total order.
    pub fn full_fence(&mut self, thread: usize) {
        let seen = &mut self.threads[thread];
        let after_fence = seen.after_fence;
        join(&mut seen.now, &after_fence);
        join(&mut seen.now, &self.fenced);
        self.fenced = seen.now;
        seen.at_fence = seen.now;
        self.compact();
    }

    /// Ends the thread. No processor holds back its stores any longer, so a membarrier need not interrupt it.
    pub fn retire(&mut self, thread: usize) {
        self.full_fence(thread);
        self.threads[thread] = ThreadView {
            uses: 0,
            now: [0; WORDS],
            after_fence: [0; WORDS],
            at_fence: [0; WORDS],
        };
        self.compact();
    }

    /// Makes every store so far visible to the thread: no processor delays a store forever.
    pub fn settle(&mut self, thread: usize) {
        for word in 0..WORDS {
            let newest = self.newest(word).at;
            self.threads[thread].now[word] = newest;
        }
        self.compact();
    }

    /// Drops everything that no thread can read or learn, and renumbers the rest. So states that no thread
    /// can distinguish become equal.
    fn compact(&mut self) {
        let mut oldest = [u8::MAX; WORDS];
        let mut used_with = [0; WORDS];
        let mut used = 0;
        for seen in &mut self.threads {
            let now = seen.now;
            join(&mut seen.after_fence, &now);
            used |= seen.uses;
            for word in words(seen.uses, WORDS) {
                oldest[word] = oldest[word].min(now[word]);
                used_with[word] |= seen.uses;
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
        rebase(&mut self.fenced, used);
        for store in &mut self.stores {
            let word = usize::from(store.word);
            store.at -= oldest[word];
            rebase(&mut store.carries, used_with[word]);
        }
        for seen in &mut self.threads {
            rebase(&mut seen.now, seen.uses);
            rebase(&mut seen.after_fence, seen.uses);
            rebase(&mut seen.at_fence, seen.uses);
        }
        self.normalize_carried_views();
    }

    /// Normalizes the carried views: they matter only if a thread that may read the store has not seen as
    /// much.
    fn normalize_carried_views(&mut self) {
        for store in &mut self.stores {
            let word = usize::from(store.word);
            let mut known = [u8::MAX; WORDS];
            let may_read =
                |seen: &&ThreadView<WORDS>| seen.uses & (1 << word) != 0 && seen.now[word] <= store.at;
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

/// Returns the words of a bit set.
fn words(set: u32, all: usize) -> impl Iterator<Item = usize> {
    (0..all).filter(move |word| set & (1 << word) != 0)
}

/// membarrier(2) as one thread issues it: a fence of its own, then one in each other thread at any time, then
/// another of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Membarrier {
    /// The threads that have not made their fence yet, one bit each.
    pub pending: u8,
}

impl Membarrier {
    /// Starts a call that interrupts these threads (one bit each), if they take part. The fences of other
    /// threads are left out, because they could only help.
    pub fn start<const WORDS: usize, const THREADS: usize>(
        memory: &mut Memory<WORDS, THREADS>,
        thread: usize,
        others: u8,
    ) -> Self {
        memory.full_fence(thread);
        let takes_part = |other: &usize| others & (1 << other) != 0 && memory.threads[*other].uses != 0;
        Self {
            pending: (0..THREADS).filter(takes_part).map(|other| 1 << other).sum(),
        }
    }

    /// Interrupts another thread. The last interruption ends the call.
    pub fn interrupt<const WORDS: usize, const THREADS: usize>(
        &mut self,
        memory: &mut Memory<WORDS, THREADS>,
        thread: usize,
        other: usize,
    ) {
        memory.full_fence(other);
        self.pending &= !(1 << other);
        if self.pending == 0 {
            memory.full_fence(thread);
        }
    }
}

#[cfg(test)]
mod tests;
