//! Functions that JavaScript calls directly, without a class. A raw Node-API call costs a tenth of a
//! generated method's call, which matters on a channel's hot path.

use std::{
    cell::RefCell,
    ffi::{CStr, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    rc::Rc,
};

use napi::{bindgen_prelude::ToNapiValue, sys};

use crate::answers::FAILED;

/// Maximum number of arguments: an operation's number and its own arguments.
const ARGUMENTS: usize = 6;

/// One call from JavaScript: its environment and its arguments.
pub(crate) struct Call {
    pub(crate) env: sys::napi_env,
    arguments: [sys::napi_value; ARGUMENTS],
}

impl Call {
    /// Removes the first argument.
    pub(crate) fn shift(&mut self) {
        self.arguments.rotate_left(1);
    }

    /// Returns the bytes of the `Uint8Array` in argument `index`; empty if it is another value or was
    /// detached.
    ///
    /// # Safety
    /// The slice must not be used after the callback has returned, nor after JavaScript has run. The same
    /// array must not be requested twice.
    pub(crate) unsafe fn bytes<'a>(&mut self, index: usize) -> &'a mut [u8] {
        let (mut kind, mut length, mut data) = (0, 0, ptr::null_mut());
        // SAFETY: the value is an argument of this call, and the out-pointers point to locals.
        let status = unsafe {
            sys::napi_get_typedarray_info(
                self.env,
                self.arguments[index],
                &raw mut kind,
                &raw mut length,
                &raw mut data,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        if status != sys::Status::napi_ok
            || data.is_null()
            || length == 0
            || kind != sys::TypedarrayType::uint8_array
        {
            return &mut [];
        }
        // SAFETY: the engine reports that many valid bytes. No JavaScript runs during the callback, so
        // nothing detaches or writes them. The caller guarantees the rest.
        unsafe { std::slice::from_raw_parts_mut(data.cast(), length) }
    }

    /// Returns the number in argument `index` as a size; 0 for another value.
    pub(crate) fn size(&self, index: usize) -> usize {
        let mut number = 0_f64;
        // SAFETY: the value is an argument of this call, and the out-pointer points to a local, which stays
        // unchanged if the value is not a number.
        unsafe { sys::napi_get_value_double(self.env, self.arguments[index], &raw mut number) };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float-to-int cast saturates"
        )]
        let size = number as usize;
        size
    }

    /// Returns the bigint in argument `index`, modulo 2^64; 0 for another value.
    pub(crate) fn word(&self, index: usize) -> u64 {
        let (mut word, mut lossless) = (0, false);
        // SAFETY: the value is an argument of this call, and the out-pointers point to locals, which stay
        // unchanged if the value is not a bigint.
        unsafe {
            sys::napi_get_value_bigint_uint64(
                self.env,
                self.arguments[index],
                &raw mut word,
                &raw mut lossless,
            )
        };
        word
    }

    pub(crate) fn value(&self, index: usize) -> sys::napi_value {
        self.arguments[index]
    }
}

/// Return value of a call.
pub(crate) enum Answer {
    Number(f64),
    Value(sys::napi_value),
    Nothing,
}

impl Answer {
    /// Converts a 64-bit number to a bigint.
    pub(crate) fn bigint(env: sys::napi_env, number: u64) -> Self {
        let mut value = ptr::null_mut();
        // SAFETY: the callers pass the env of their callback, and the out-pointer points to a local. On
        // failure it stays null, which means undefined.
        unsafe { sys::napi_create_bigint_uint64(env, number, &raw mut value) };
        Self::Value(value)
    }

    /// Converts numbers to an array.
    pub(crate) fn numbers(env: sys::napi_env, numbers: &[u64]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
        let numbers: Vec<f64> = numbers.iter().map(|number| *number as f64).collect();
        Self::value(env, numbers)
    }

    /// Converts a value. The result is `undefined` if JavaScript has run out of memory or is ending.
    pub(crate) fn value(env: sys::napi_env, value: impl ToNapiValue) -> Self {
        // SAFETY: the callers pass the env of their callback.
        match unsafe { ToNapiValue::to_napi_value(env, value) } {
            Ok(value) => Self::Value(value),
            Err(_) => Self::Nothing,
        }
    }
}

impl From<usize> for Answer {
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
    fn from(size: usize) -> Self {
        Self::Number(size as f64)
    }
}

impl From<i32> for Answer {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

/// A function with the state of its object and the call.
pub(crate) type Function<T> = fn(&mut T, &mut Call) -> Answer;

/// State shared by the functions of a JavaScript object.
pub(crate) trait State {
    /// Called after a panic in a call: releases everything that JavaScript must no longer use, and stores an
    /// error.
    fn panicked(&mut self);
}

/// Data of a JavaScript function: the state of its object, and the Rust function to call.
struct BoundFunction<T> {
    state: Rc<RefCell<T>>,
    function: Function<T>,
}

/// Creates an empty JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn new_object(env: sys::napi_env) -> napi::Result<sys::napi_value> {
    let mut object = ptr::null_mut();
    // SAFETY: env is live, and the out-pointer points to a local.
    let status = unsafe { sys::napi_create_object(env, &raw mut object) };
    check(status, "an object")?;
    Ok(object)
}

/// Adds functions that share a state to a JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, and `object` is a live object of it.
pub(crate) unsafe fn add_functions<T: State + 'static>(
    env: sys::napi_env,
    object: sys::napi_value,
    functions: &[(&CStr, Function<T>)],
    state: T,
) -> napi::Result<()> {
    let state = Rc::new(RefCell::new(state));
    for (name, function) in functions {
        let bound = BoundFunction {
            state: Rc::clone(&state),
            function: *function,
        };
        // SAFETY: the caller guarantees env and object.
        unsafe { add_function(env, object, name, bound) }?;
    }
    Ok(())
}

/// Adds one function.
///
/// # Safety
/// As for [`add_functions`].
unsafe fn add_function<T: State + 'static>(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    bound: BoundFunction<T>,
) -> napi::Result<()> {
    let bound = Box::into_raw(Box::new(bound));
    let mut value = ptr::null_mut();
    // SAFETY: env is live, and the name is NUL-terminated. The data pointer stays valid until the finalizer
    // below runs, after which the function can no longer be called.
    let status = unsafe {
        sys::napi_create_function(
            env,
            name.as_ptr(),
            -1,
            Some(trampoline::<T>),
            bound.cast(),
            &raw mut value,
        )
    };
    if let Err(error) = check(status, "creating a function") {
        // An ending environment creates no functions, and the state must not outlive it. SAFETY: no function
        // was created, so nothing else owns the box.
        drop(unsafe { Box::from_raw(bound) });
        return Err(error);
    }
    // SAFETY: value is the function just created, and `finalize` frees exactly the box that is passed here.
    let status = unsafe {
        sys::napi_add_finalizer(
            env,
            value,
            bound.cast(),
            Some(finalize::<T>),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if let Err(error) = check(status, "adding a finalizer") {
        // SAFETY: the function belongs to no object, so it is never called, and nothing else frees the box.
        drop(unsafe { Box::from_raw(bound) });
        return Err(error);
    }
    // SAFETY: object and value are live values of env.
    check(
        unsafe { sys::napi_set_named_property(env, object, name.as_ptr(), value) },
        "adding a function",
    )
}

unsafe extern "C" fn finalize<T>(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: data is the box from `add_function`, and the engine calls a finalizer once.
    drop(unsafe { Box::from_raw(data.cast::<BoundFunction<T>>()) });
}

unsafe extern "C" fn trampoline<T: State>(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    let mut call = Call {
        env,
        arguments: [ptr::null_mut(); ARGUMENTS],
    };
    let (mut count, mut data) = (call.arguments.len(), ptr::null_mut());
    // SAFETY: env and info belong to this callback. The engine fills missing arguments with undefined.
    let status = unsafe {
        sys::napi_get_cb_info(
            env,
            info,
            &raw mut count,
            call.arguments.as_mut_ptr(),
            ptr::null_mut(),
            &raw mut data,
        )
    };
    if status != sys::Status::napi_ok || data.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the data pointer is the box from `add_function`, which lives as long as the function that is
    // called.
    let bound = unsafe { &*data.cast::<BoundFunction<T>>() };
    // JavaScript never runs inside a call, so nothing else can borrow the state. If something does, that is a
    // defect, which must not become a panic in Node.
    let Ok(mut state) = bound.state.try_borrow_mut() else {
        return ptr::null_mut();
    };
    let answer =
        catch_unwind(AssertUnwindSafe(|| (bound.function)(&mut state, &mut call))).unwrap_or_else(|_| {
            state.panicked();
            Answer::from(FAILED)
        });
    drop(state);
    let mut value = ptr::null_mut();
    match answer {
        Answer::Value(value) => return value,
        Answer::Nothing => {}
        // SAFETY: env is live, and the out-pointer points to a local. On failure it stays null, which means
        // undefined.
        Answer::Number(number) => unsafe {
            sys::napi_create_double(env, number, &raw mut value);
        },
    }
    value
}

/// Converts a Node-API status to a result.
pub(crate) fn check(status: sys::napi_status, what: &str) -> napi::Result<()> {
    if status == sys::Status::napi_ok {
        return Ok(());
    }
    Err(napi::Error::new(
        napi::Status::from(status),
        format!("{what} failed"),
    ))
}

/// Sets a property of a JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread; `object` and `value` are live values of it.
pub(crate) unsafe fn set_property(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    value: sys::napi_value,
) -> napi::Result<()> {
    // SAFETY: the caller guarantees both values; the name is NUL-terminated.
    let status = unsafe { sys::napi_set_named_property(env, object, name.as_ptr(), value) };
    check(status, "a property")
}

/// Like [`set_property`], for a number.
///
/// # Safety
/// As for [`set_property`].
pub(crate) unsafe fn set_number(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    number: f64,
) -> napi::Result<()> {
    let mut value = ptr::null_mut();
    // SAFETY: env is live, and the out-pointer points to a local.
    let status = unsafe { sys::napi_create_double(env, number, &raw mut value) };
    check(status, "a number")?;
    // SAFETY: the value was just created; the caller guarantees the rest.
    unsafe { set_property(env, object, name, value) }
}

/// Exposes memory to JavaScript as an external array buffer. `None` if the engine does not allow external memory
/// (Electron), or with `no_external`. `owner` is dropped once JavaScript no longer uses the memory.
///
/// # Safety
/// `env` is the environment that runs now, on this thread. The bytes stay valid until `owner` is dropped, and Rust does
/// not access them while JavaScript runs.
pub(crate) unsafe fn expose<T: Send>(
    env: sys::napi_env,
    bytes: *mut u8,
    length: usize,
    owner: T,
    no_external: bool,
) -> Option<sys::napi_value> {
    if no_external {
        return None;
    }
    let owner = Box::into_raw(Box::new(owner));
    let mut value = ptr::null_mut();
    // SAFETY: the caller guarantees env and the bytes; the finalizer frees exactly the box that is passed here.
    let status = unsafe {
        sys::napi_create_external_arraybuffer(
            env,
            bytes.cast(),
            length,
            Some(drop_owner::<T>),
            owner.cast(),
            &raw mut value,
        )
    };
    if status == sys::Status::napi_ok {
        return Some(value);
    }
    // SAFETY: without a buffer there is no finalizer.
    drop(unsafe { Box::from_raw(owner) });
    None
}

unsafe extern "C" fn drop_owner<T>(_env: sys::napi_env, _data: *mut c_void, owner: *mut c_void) {
    // SAFETY: the box from `expose`; the engine finalizes a buffer once.
    drop(unsafe { Box::from_raw(owner.cast::<T>()) });
}

/// Detaches an array buffer. Other values stay as they are.
///
/// # Safety
/// `env` is the environment that runs now, on this thread; `buffer` is a live value of it.
pub(crate) unsafe fn detach(env: sys::napi_env, buffer: sys::napi_value) {
    // SAFETY: the caller guarantees both.
    unsafe { sys::napi_detach_arraybuffer(env, buffer) };
}
