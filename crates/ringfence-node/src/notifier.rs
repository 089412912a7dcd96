//! A JavaScript function that other threads call any number of times.

use std::{
    ffi::c_void,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use napi::sys;

use crate::{task, threadsafe::Threadsafe};

/// Calls a JavaScript function with values that other threads send. It does not keep the event loop alive. Dropping it
/// releases the function once every sent value was delivered.
pub(crate) struct Notifier<T> {
    threadsafe: Arc<Threadsafe>,
    pending: Arc<AtomicUsize>,
    _values: std::marker::PhantomData<fn(T)>,
}

/// Converts a value to the arguments of the function, on the environment's thread.
type Convert<T> = fn(sys::napi_env, T) -> napi::Result<Vec<sys::napi_value>>;

struct Context<T> {
    threadsafe: Arc<Threadsafe>,
    pending: Arc<AtomicUsize>,
    convert: Convert<T>,
}

impl<T: Send + 'static> Notifier<T> {
    /// # Safety
    /// `env` is the environment that runs now, on this thread; `callback` a live function of it.
    pub(crate) unsafe fn new(
        env: sys::napi_env,
        callback: sys::napi_value,
        name: &str,
        convert: Convert<T>,
    ) -> napi::Result<Self> {
        let notifier = Self {
            threadsafe: Arc::default(),
            pending: Arc::default(),
            _values: std::marker::PhantomData,
        };
        let context = Box::into_raw(Box::new(Context {
            threadsafe: Arc::clone(&notifier.threadsafe),
            pending: Arc::clone(&notifier.pending),
            convert,
        }));
        // SAFETY: the caller guarantees env and callback. `finalize_context` frees the context, which has the type it expects.
        let function = unsafe {
            task::create(
                env,
                callback,
                name,
                context.cast(),
                finalize_context::<T>,
                deliver::<T>,
            )
        };
        match function {
            Ok(function) => notifier.threadsafe.set(function),
            Err(error) => {
                // SAFETY: no function was created, so nothing else frees the context.
                drop(unsafe { Box::from_raw(context) });
                return Err(error);
            }
        }
        notifier.threadsafe.keep_alive(env, false);
        Ok(notifier)
    }

    /// Values that were sent and are not delivered yet.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// `false`: the value is not delivered, since the environment is ending.
    pub(crate) fn send(&self, value: T) -> bool {
        let value = Box::into_raw(Box::new(value));
        self.pending.fetch_add(1, Ordering::Relaxed);
        let sent = self.threadsafe.send(value.cast());
        if !sent {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            // SAFETY: the value was not sent, so nothing else owns the box.
            drop(unsafe { Box::from_raw(value) });
        }
        sent
    }
}

impl<T> Drop for Notifier<T> {
    fn drop(&mut self) {
        self.threadsafe.release();
    }
}

/// Called when the function is freed or its environment ends.
unsafe extern "C" fn finalize_context<T>(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: the box of `new`; the engine calls this once.
    let context = *unsafe { Box::from_raw(data.cast::<Context<T>>()) };
    context.threadsafe.forget();
}

unsafe extern "C" fn deliver<T>(
    env: sys::napi_env,
    callback: sys::napi_value,
    context: *mut c_void,
    data: *mut c_void,
) {
    // SAFETY: the box of `send`; the engine delivers it once, with a null env if the environment is ending.
    let value = *unsafe { Box::from_raw(data.cast::<T>()) };
    if env.is_null() {
        return;
    }
    // SAFETY: alive until `finalize_context`, which runs after the last delivery.
    let context = unsafe { &*context.cast_const().cast::<Context<T>>() };
    context.pending.fetch_sub(1, Ordering::Relaxed);
    // On an error, JavaScript has run out of memory or is ending.
    if let Ok(arguments) = (context.convert)(env, value) {
        // SAFETY: the engine calls on the environment's thread, inside a handle scope.
        unsafe { task::call(env, callback, &arguments) };
    }
}

/// Converts one argument.
pub(crate) fn argument<T: napi::bindgen_prelude::ToNapiValue>(
    env: sys::napi_env,
    value: T,
) -> napi::Result<sys::napi_value> {
    // SAFETY: only `deliver` calls this, on the environment's thread, inside the handle scope that the engine has opened.
    unsafe { T::to_napi_value(env, value) }
}
