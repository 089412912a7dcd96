//! How other threads reach JavaScript.
//!
//! Node-API's thread-safe functions are counted by the threads that hold them, but an environment that ends (a worker
//! thread that is terminated, say) frees them all the same, in Node 20 at least: a thread that calls or releases one after
//! that uses freed memory. The engine finalizes a function before it frees it, and that is when it is taken away here.

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

// SAFETY: thread-safe functions are made to be used from every thread.
unsafe impl Send for Function {}

impl Threadsafe {
    fn function(&self) -> MutexGuard<'_, Option<Function>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the one hold that creating the function gave. Its finalizer must call [`Threadsafe::forget`].
    pub(crate) fn take_over(&self, function: sys::napi_threadsafe_function) {
        *self.function() = Some(Function(function));
    }

    /// Sends `data` to JavaScript. `false`: it was not sent, and is the caller's still.
    pub(crate) fn send(&self, data: *mut c_void) -> bool {
        let mut held = self.function();
        let Some(Function(function)) = *held else {
            return false;
        };
        let mode = sys::ThreadsafeFunctionCallMode::nonblocking;
        // SAFETY: it has not been freed, and is not while the lock is held: its finalizer waits for that.
        let status = unsafe { sys::napi_call_threadsafe_function(function, data, mode) };
        if status == sys::Status::napi_closing {
            // The engine has taken the hold back with this answer: nothing is left to release.
            *held = None;
        }
        status == sys::Status::napi_ok
    }

    /// Whether the function keeps the event loop alive. To be called on the environment's thread.
    pub(crate) fn keep_alive(&self, env: sys::napi_env, alive: bool) {
        if let Some(Function(function)) = *self.function() {
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

    /// Gives the hold back: nothing more will be sent.
    pub(crate) fn release(&self) {
        let mut held = self.function();
        if let Some(Function(function)) = held.take() {
            // SAFETY: as in `send`; the hold is given back once, since it has been taken out.
            unsafe {
                sys::napi_release_threadsafe_function(function, sys::ThreadsafeFunctionReleaseMode::release)
            };
        }
    }

    /// The engine is about to free the function.
    pub(crate) fn forget(&self) {
        *self.function() = None;
    }
}
