//! A lock without poisoning.
//!
//! Every value that this crate guards is valid after each statement that changes it. So a thread that panics
//! while it holds a lock leaves a valid value, and other threads continue with it. For that reason
//! [`Mutex::lock`] ignores poisoning. A value that cannot keep this rule must not be guarded by this lock.
//!
//! A forked child must not lock a mutex that its parent made: a thread that the child does not have may hold it.
//! `fork::ProcessMutex` refuses that. Code that uses this type directly must check first, and a debug build
//! panics if it did not.

use std::{
    fmt,
    sync::{PoisonError, TryLockError},
    time::Duration,
};

pub(crate) use std::sync::MutexGuard;

/// [`std::sync::Mutex`], whose `lock` cannot fail.
pub(crate) struct Mutex<T> {
    inner: std::sync::Mutex<T>,
    /// The process that made it; 0 for one that [`Mutex::for_try_lock`] made.
    #[cfg(debug_assertions)]
    process: u32,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            inner: std::sync::Mutex::new(value),
            #[cfg(debug_assertions)]
            process: std::process::id(),
        }
    }

    /// A mutex for a static that forked children use as well. They never wait for it, since [`Mutex::try_lock`] does not.
    pub(crate) const fn for_try_lock(value: T) -> Self {
        Self {
            inner: std::sync::Mutex::new(value),
            #[cfg(debug_assertions)]
            process: 0,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(debug_assertions)]
        assert_eq!(
            self.process,
            std::process::id(),
            "a forked child may wait forever for a lock of its parent's"
        );
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `None` if another thread has the lock, or if a guard was leaked.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns the value without locking: `&mut self` proves that no other reference exists.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guard was leaked: with `mem::forget`, or because the guard's thread does not exist in a
    /// forked child.
    pub(crate) fn is_locked(&mut self) -> bool {
        self.try_lock().is_none()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    /// Does not wait: `<locked>` stands for a value that is in use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
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
    fn panicking_thread_releases_the_lock() {
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
    fn leaked_guard_is_detected() {
        let mut guarded = Mutex::new(1);
        assert!(!guarded.is_locked());
        std::mem::forget(guarded.lock());
        assert!(guarded.is_locked());
        assert_eq!(*guarded.get_mut(), 1);
    }
}
