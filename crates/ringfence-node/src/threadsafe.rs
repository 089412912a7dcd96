//! Access to JavaScript from other threads.
//!
//! Node-API counts the threads that hold a thread-safe function. An environment that ends, such as a
//! terminated worker thread, frees its functions regardless, at least in Node 20. A thread that calls or
//! releases one after that would use freed memory. The engine finalizes a function before it frees it, and
//! the finalizer removes it here.

use std::{
    ffi::c_void,
    sync::{Mutex, MutexGuard, PoisonError},
};

use napi::sys;

/// A thread-safe function, for as long as it may be used.
#[derive(Default)]
pub(crate) struct Threadsafe(Mutex<Option<Function>>);

#[derive(Clone, Copy)]
struct Function(sys::napi_threadsafe_function);

// SAFETY: thread-safe functions may be used from every thread.
unsafe impl Send for Function {}

impl Threadsafe {
    fn lock(&self) -> MutexGuard<'_, Option<Function>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a function with the one reference that creating it returned. Its finalizer must call
    /// [`Threadsafe::forget`].
    pub(crate) fn set(&self, function: sys::napi_threadsafe_function) {
        *self.lock() = Some(Function(function));
    }

    /// Sends `data` to JavaScript. Returns `false` if it was not sent; the caller still owns it then.
    pub(crate) fn send(&self, data: *mut c_void) -> bool {
        let mut slot = self.lock();
        let Some(Function(function)) = *slot else {
            return false;
        };
        let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
        // SAFETY: the function is not freed while the lock is held, because its finalizer waits for the lock.
        let status = unsafe { sys::napi_call_threadsafe_function(function, data, mode) };
        if status == sys::Status::napi_closing {
            // With this status, the engine has already released the reference.
            *slot = None;
        }
        status == sys::Status::napi_ok
    }

    /// Sets whether the function keeps the event loop alive. Must be called on the environment's thread.
    pub(crate) fn keep_alive(&self, env: sys::napi_env, alive: bool) {
        if let Some(Function(function)) = *self.lock() {
            // SAFETY: as in `send`; the caller is on the environment's thread.
            unsafe {
                if alive {
                    sys::napi_ref_threadsafe_function(env, function);
                } else {
                    sys::napi_unref_threadsafe_function(env, function);
                }
            }
        }
    }

    /// Releases the reference, after which nothing can be sent.
    pub(crate) fn release(&self) {
        let mut slot = self.lock();
        if let Some(Function(function)) = slot.take() {
            // SAFETY: as in `send`. The reference is released only once, because it was taken out.
            unsafe {
                sys::napi_release_threadsafe_function(function, sys::ThreadsafeFunctionReleaseMode::release)
            };
        }
    }

    /// Removes the function, which the engine is about to free.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }
}
