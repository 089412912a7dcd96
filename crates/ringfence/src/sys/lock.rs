//! A lock without poison.
//!
//! Every value that this crate guards is valid after each statement that changes it. A thread that panics while it holds a lock
//! therefore leaves a valid value, and the threads that come next go on with it. That rule is why [`Mutex::lock`] ignores
//! poisoning; a value that cannot keep the rule must not be put behind this lock.

use std::{
    sync::{PoisonError, TryLockError},
    time::Duration,
};

pub(crate) use std::sync::MutexGuard;

/// [`std::sync::Mutex`], whose `lock` cannot fail.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where another thread has the lock, or a guard exists that nothing will ever drop.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The value, without a lock: there is no other reference.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guard exists that nothing will ever drop: one that was leaked, or one of a thread that a fork has left behind.
    pub(crate) fn is_held(&mut self) -> bool {
        self.try_lock().is_none()
    }
}

/// [`std::sync::Condvar`], for that lock.
#[derive(Debug, Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits no longer than a time. The caller looks at its own condition and clock afterwards.
    pub(crate) fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        self.0
            .wait_timeout(guard, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_leaves_the_lock_to_the_next() {
        let guarded = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let mut value = guarded.lock();
                    *value = 2;
                    panic!("as the test wants");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!(*guarded.lock(), 2);
    }

    #[test]
    fn a_guard_that_was_leaked_is_noticed() {
        let mut guarded = Mutex::new(1);
        assert!(!guarded.is_held());
        std::mem::forget(guarded.lock());
        assert!(guarded.is_held());
        assert_eq!(*guarded.get_mut(), 1);
    }
}
