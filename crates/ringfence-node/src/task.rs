//! What blocks runs on a thread of its own, and a thread-safe function carries its outcome to JavaScript, once. So does the end of what blocks
//! as it ends.

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

/// How long the end of a process or of an environment waits until what it has at an address is let go of: it takes a moment, and a process that
/// ends in that moment would leave its files behind. A partner that was stopped keeps this process no longer.
const A_MOMENT: Duration = Duration::from_secs(1);

/// What is being let go of: disconnected once it is gone.
pub(crate) type Going = mpsc::Receiver<()>;

/// Lets go of something at an address, and does not wait: a partner may take its time, and the event loop must not.
pub(crate) fn let_go(made: impl Send + 'static) -> Going {
    let (going, gone) = mpsc::channel();
    let leave = move || {
        drop(made);
        drop(going);
    };
    // Without a thread it is let go of here, as the closure is dropped.
    let _ = thread::Builder::new().name("ringfence-leave".into()).spawn(leave);
    gone
}

pub(crate) fn wait_a_moment(for_it: &Going) {
    // Nothing is ever sent: it ends, or it takes too long.
    let _ = for_it.recv_timeout(A_MOMENT);
}

/// Makes the arguments of the JavaScript callback from an outcome, on the environment's thread.
type Convert<T> = Box<dyn FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]>>;

/// What the function carries around.
struct Context<T> {
    threadsafe: Arc<Threadsafe>,
    convert: Cell<Option<Convert<T>>>,
    gone: Cell<Option<Box<dyn FnOnce()>>>,
}

/// The one hold on the function; given back also where there never was a thread, since a function that is not released
/// keeps the event loop alive.
struct Reply<T>(Arc<Threadsafe>, PhantomData<fn(T)>);

/// Runs `work` on a thread of this name, and calls `callback` with what `convert` makes of it; later, and once, and the
/// event loop is kept alive until then. `gone` runs when nothing waits for the thread any more: the outcome was
/// delivered, or the environment ends.
///
/// # Safety
/// `env` is the environment that runs now, on this thread; `callback` a live function of it.
pub(crate) unsafe fn run<T: Send + 'static>(
    env: sys::napi_env,
    callback: sys::napi_value,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
    convert: impl FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]> + 'static,
    gone: impl FnOnce() + 'static,
) -> napi::Result<()> {
    let reply = Reply(Arc::default(), PhantomData);
    let context = Box::into_raw(Box::new(Context::<T> {
        threadsafe: Arc::clone(&reply.0),
        convert: Cell::new(Some(Box::new(convert))),
        gone: Cell::new(Some(Box::new(gone))),
    }));
    // SAFETY: passed on from the caller; `forget` frees the context, which is of its type.
    let function = unsafe { create(env, callback, name, context.cast(), forget::<T>, deliver::<T>) };
    match function {
        Ok(function) => reply.0.take_over(function),
        Err(error) => {
            // SAFETY: there is no function that would free it.
            drop(unsafe { Box::from_raw(context) });
            return Err(error);
        }
    }
    thread::Builder::new()
        .name(name.into())
        .spawn(move || reply.send(work()))
        .map(drop)
        .map_err(|error| napi::Error::from_reason(format!("no thread ({name}): {error}")))
}

/// The arguments of a callback: a failure, or null and what `show` makes of what was found.
///
/// # Errors
/// Where JavaScript has run out of memory, or is ending.
pub(crate) fn outcome<T>(
    env: sys::napi_env,
    outcome: ringfence::Result<T>,
    show: impl FnOnce(T) -> napi::Result<sys::napi_value>,
) -> napi::Result<[sys::napi_value; 2]> {
    // SAFETY: the environment is the one whose thread this is, and that is about to call back.
    unsafe {
        let null = ToNapiValue::to_napi_value(env, Null)?;
        match outcome {
            Ok(found) => Ok([null, show(found)?]),
            Err(error) => Ok([ToNapiValue::to_napi_value(env, Failure::from(&error))?, null]),
        }
    }
}

/// The arguments of a callback that is told no more than that it is done.
///
/// # Errors
/// As [`outcome`].
pub(crate) fn nothing(env: sys::napi_env) -> napi::Result<[sys::napi_value; 2]> {
    // SAFETY: as in `outcome`.
    let null = unsafe { ToNapiValue::to_napi_value(env, Null) }?;
    Ok([null, null])
}

/// A thread-safe function without a limit to what waits for JavaScript.
///
/// # Safety
/// As [`run`]; `finalize` gets the context as its data, once, when the function goes, and `deliver` gets it before that.
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
    // SAFETY: env is live, and the bytes are as many as stated.
    let status = unsafe { sys::napi_create_string_utf8(env, name.as_ptr().cast(), length, &raw mut label) };
    check(status, "a string")?;
    // SAFETY: env and the callback are live; the caller answers for the context.
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
/// On the environment's thread, inside a handle scope; the function and the arguments are live values of `env`.
pub(crate) unsafe fn call(env: sys::napi_env, function: sys::napi_value, arguments: &[sys::napi_value]) {
    let (mut receiver, mut result) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: as the caller says.
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
            // SAFETY: it was not sent, so nothing else takes it back.
            drop(unsafe { Box::from_raw(data) });
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The function is gone, or its environment ends: nothing waits for the thread any more.
unsafe extern "C" fn forget<T>(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: the box of `run`; the engine calls this once.
    let context = unsafe { Box::from_raw(data.cast::<Context<T>>()) };
    context.threadsafe.forget();
    if let Some(gone) = context.gone.take() {
        gone();
    }
}

unsafe extern "C" fn deliver<T>(
    env: sys::napi_env,
    callback: sys::napi_value,
    context: *mut c_void,
    data: *mut c_void,
) {
    // SAFETY: the box of `Reply::send`; the engine delivers it once, with a null env where it is ending.
    let outcome = *unsafe { Box::from_raw(data.cast::<T>()) };
    if env.is_null() {
        return;
    }
    // SAFETY: alive until `forget`, which comes after the last delivery.
    let context = unsafe { &*context.cast_const().cast::<Context<T>>() };
    let Some(convert) = context.convert.take() else {
        return;
    };
    let converted = convert(env, outcome);
    if let Some(gone) = context.gone.take() {
        gone();
    }
    // JavaScript has run out of memory, or is ending.
    let Ok(arguments) = converted else {
        return;
    };
    // SAFETY: the engine calls on the environment's thread, inside a handle scope.
    unsafe { call(env, callback, &arguments) };
}
