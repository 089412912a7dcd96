//! Blocking work on its own thread. A thread-safe function delivers its result to JavaScript, once. Dropping
//! something that blocks runs on a thread as well.

use std::{
    cell::Cell,
    ffi::c_void,
    marker::PhantomData,
    ptr,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use napi::{
    bindgen_prelude::{Null, ToNapiValue},
    sys,
};

use crate::{convert::Failure, raw::check, threadsafe::Threadsafe};

/// Longest wait for the release of an address when a process or an environment ends. The release normally
/// takes a moment; a process that exits earlier would leave its files behind. A stopped partner must not
/// delay the exit any longer.
const MAX_EXIT_DELAY: Duration = Duration::from_secs(1);

/// A release in progress; disconnected once it is complete.
pub(crate) type Release = mpsc::Receiver<()>;

/// Drops a value at an address on a thread, without waiting: the partner may be slow, and the event loop must
/// not block.
pub(crate) fn drop_in_background(value: impl Send + 'static) -> Release {
    let (sender, receiver) = mpsc::channel();
    let job = move || {
        drop(value);
        drop(sender);
    };
    // If no thread can be started, dropping the closure releases the value here.
    let _ = thread::Builder::new().name("ringfence-leave".into()).spawn(job);
    receiver
}

pub(crate) fn wait_briefly(release: &Release) {
    // Nothing is ever sent: the channel disconnects, or the wait times out.
    let _ = release.recv_timeout(MAX_EXIT_DELAY);
}

/// Creates the arguments of the JavaScript callback from a result, on the environment's thread.
type Convert<T> = Box<dyn FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]>>;

/// Context of the thread-safe function.
struct Context<T> {
    threadsafe: Arc<Threadsafe>,
    convert: Cell<Option<Convert<T>>>,
    on_end: Cell<Option<Box<dyn FnOnce()>>>,
}

/// The only reference to the function. It is released even if no thread was started, because an unreleased
/// function keeps the event loop alive.
struct Reply<T>(Arc<Threadsafe>, PhantomData<fn(T)>);

/// Runs `work` on a thread with this name, and then calls `callback` once with what `convert` returns,
/// asynchronously.
///
/// The event loop is kept alive until then. `on_end` runs when nothing waits for the thread any longer: the
/// result was delivered, or the environment ends.
///
/// # Safety
/// `env` is the environment that runs now, on this thread; `callback` is a live function of it.
pub(crate) unsafe fn run<T: Send + 'static>(
    env: sys::napi_env,
    callback: sys::napi_value,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
    convert: impl FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]> + 'static,
    on_end: impl FnOnce() + 'static,
) -> napi::Result<()> {
    let reply = Reply(Arc::default(), PhantomData);
    let context = Box::into_raw(Box::new(Context::<T> {
        threadsafe: Arc::clone(&reply.0),
        convert: Cell::new(Some(Box::new(convert))),
        on_end: Cell::new(Some(Box::new(on_end))),
    }));
    // SAFETY: the caller guarantees env and callback. `finalize_context` frees the context, which has the type it
    // expects.
    let function = unsafe {
        create(
            env,
            callback,
            name,
            context.cast(),
            finalize_context::<T>,
            deliver::<T>,
        )
    };
    match function {
        Ok(function) => reply.0.set(function),
        Err(error) => {
            // SAFETY: no function was created, so nothing else frees the context.
            drop(unsafe { Box::from_raw(context) });
            return Err(error);
        }
    }
    thread::Builder::new()
        .name(name.into())
        .spawn(move || reply.send(work()))
        .map(drop)
        .map_err(|error| napi::Error::from_reason(format!("could not start thread {name}: {error}")))
}

/// Returns the arguments of a callback: a failure, or null and what `convert` returns.
///
/// # Errors
/// If JavaScript has run out of memory or is ending.
pub(crate) fn result_arguments<T>(
    env: sys::napi_env,
    result: ringfence::Result<T>,
    convert: impl FnOnce(T) -> napi::Result<sys::napi_value>,
) -> napi::Result<[sys::napi_value; 2]> {
    // SAFETY: env is the environment of this thread, which is about to call the callback.
    unsafe {
        let null = ToNapiValue::to_napi_value(env, Null)?;
        match result {
            Ok(value) => Ok([null, convert(value)?]),
            Err(error) => Ok([ToNapiValue::to_napi_value(env, Failure::from(&error))?, null]),
        }
    }
}

/// Returns the arguments of a callback that only reports completion.
///
/// # Errors
/// As for [`result_arguments`].
pub(crate) fn no_result(env: sys::napi_env) -> napi::Result<[sys::napi_value; 2]> {
    // SAFETY: as in `result_arguments`.
    let null = unsafe { ToNapiValue::to_napi_value(env, Null) }?;
    Ok([null, null])
}

/// Creates a thread-safe function with an unlimited queue.
///
/// # Safety
/// As for [`run`]. `deliver` receives the context. `finalize` receives it as its data, once, when the
/// function is freed.
pub(crate) unsafe fn create(
    env: sys::napi_env,
    callback: sys::napi_value,
    name: &str,
    context: *mut c_void,
    finalize: unsafe extern "C" fn(sys::napi_env, *mut c_void, *mut c_void),
    deliver: unsafe extern "C" fn(sys::napi_env, sys::napi_value, *mut c_void, *mut c_void),
) -> napi::Result<sys::napi_threadsafe_function> {
    let (mut label, mut function) = (ptr::null_mut(), ptr::null_mut());
    let length = isize::try_from(name.len()).unwrap_or(0);
    // SAFETY: env is live, and the length is that of the bytes.
    let status = unsafe { sys::napi_create_string_utf8(env, name.as_ptr().cast(), length, &raw mut label) };
    check(status, "a string")?;
    // SAFETY: env and the callback are live; the caller guarantees the context.
    let status = unsafe {
        sys::napi_create_threadsafe_function(
            env,
            callback,
            ptr::null_mut(),
            label,
            0,
            1,
            context,
            Some(finalize),
            context,
            Some(deliver),
            &raw mut function,
        )
    };
    check(status, "a thread-safe function")?;
    Ok(function)
}

/// Calls a JavaScript function. An exception stays pending, and the engine reports it as uncaught.
///
/// # Safety
/// On the environment's thread, inside a handle scope; the function and the arguments are live values of
/// `env`.
pub(crate) unsafe fn call(env: sys::napi_env, function: sys::napi_value, arguments: &[sys::napi_value]) {
    let (mut receiver, mut result) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller guarantees the values.
    unsafe {
        sys::napi_get_global(env, &raw mut receiver);
        sys::napi_call_function(
            env,
            receiver,
            function,
            arguments.len(),
            arguments.as_ptr(),
            &raw mut result,
        );
    }
}

impl<T> Reply<T> {
    fn send(self, outcome: T) {
        let data = Box::into_raw(Box::new(outcome));
        if !self.0.send(data.cast()) {
            // SAFETY: the result was not sent, so nothing else owns the box.
            drop(unsafe { Box::from_raw(data) });
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Called when the function is freed or its environment ends: nothing waits for the thread any longer.
unsafe extern "C" fn finalize_context<T>(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: data is the box from `run`, and the engine calls this once.
    let context = unsafe { Box::from_raw(data.cast::<Context<T>>()) };
    context.threadsafe.forget();
    if let Some(on_end) = context.on_end.take() {
        on_end();
    }
}

unsafe extern "C" fn deliver<T>(
    env: sys::napi_env,
    callback: sys::napi_value,
    context: *mut c_void,
    data: *mut c_void,
) {
    // SAFETY: data is the box from `Reply::send`, which the engine delivers once. If the environment is
    // ending, env is null.
    let outcome = *unsafe { Box::from_raw(data.cast::<T>()) };
    if env.is_null() {
        return;
    }
    // SAFETY: the context lives until `finalize_context`, which the engine calls after the last delivery.
    let context = unsafe { &*context.cast_const().cast::<Context<T>>() };
    let Some(convert) = context.convert.take() else {
        return;
    };
    let converted = convert(env, outcome);
    if let Some(on_end) = context.on_end.take() {
        on_end();
    }
    // On an error, JavaScript has run out of memory or is ending.
    let Ok(arguments) = converted else { return };
    // SAFETY: the engine calls this on the environment's thread, inside a handle scope.
    unsafe { call(env, callback, &arguments) };
}
