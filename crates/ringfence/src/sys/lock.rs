//! A lock without poisoning.
//!
//! Every value that this crate guards is valid after each statement that changes it. So a thread that panics
//! while it holds a lock leaves a valid value, and other threads continue with it. For that reason
//! [`Mutex::lock`] ignores poisoning. A value that cannot keep this rule must not be guarded by this lock.

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

    /// Returns `None` if another thread has the lock, or if a guard was leaked.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns the value without locking: `&mut self` proves that no other reference exists.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guard was leaked: with `mem::forget`, or because the guard's thread does not exist in a
    /// forked child.
    pub(crate) fn is_held(&mut self) -> bool {
        self.try_lock().is_none()
    }
}

/// [`std::sync::Condvar`] for [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most for `time`. The caller checks its condition and its clock afterwards.
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
                    panic!("expected by the test");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!(*guarded.lock(), 2);
    }

    #[test]
    fn a_leaked_guard_is_noticed() {
        let mut guarded = Mutex::new(1);
        assert!(!guarded.is_held());
        std::mem::forget(guarded.lock());
        assert!(guarded.is_held());
        assert_eq!(*guarded.get_mut(), 1);
    }
}
