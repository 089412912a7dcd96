//! Functions called by JavaScript, without a class in between: a raw Node-API call costs a tenth of a generated
//! method's, and on a channel's hot path that is the difference.

use std::{
    cell::RefCell,
    ffi::{CStr, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    rc::Rc,
};

use napi::{bindgen_prelude::ToNapiValue, sys};

use crate::answers::FAILED;

/// An operation's number, and what it takes at most.
const ARGUMENTS: usize = 6;

/// One call from JavaScript: its environment and its arguments.
pub(crate) struct Call {
    pub(crate) env: sys::napi_env,
    arguments: [sys::napi_value; ARGUMENTS],
}

impl Call {
    /// Goes on to the arguments behind the first.
    pub(crate) fn shift(&mut self) {
        self.arguments.rotate_left(1);
    }

    /// The bytes of the typed array that is argument `index`; empty where it is none, or was detached.
    ///
    /// # Safety
    /// The slice must not be used after the callback has returned, nor once JavaScript has run, and the same array
    /// must not be asked for twice.
    pub(crate) unsafe fn bytes<'a>(&mut self, index: usize) -> &'a mut [u8] {
        let (mut kind, mut length, mut data) = (0, 0, ptr::null_mut());
        // SAFETY: the value is an argument of this call, and the out-pointers are to locals.
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
        // SAFETY: the engine says that so many bytes are there; no JavaScript runs during the callback, so nothing
        // detaches or writes them, and the caller keeps to what it promises.
        unsafe { std::slice::from_raw_parts_mut(data.cast(), length) }
    }

    /// The number that is argument `index`, as a size; 0 for what is none.
    pub(crate) fn size(&self, index: usize) -> usize {
        let mut number = 0_f64;
        // SAFETY: the value is an argument of this call, and the out-pointer is to a local. What is not a number
        // leaves it alone.
        unsafe { sys::napi_get_value_double(self.env, self.arguments[index], &raw mut number) };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float-to-int cast saturates"
        )]
        let size = number as usize;
        size
    }

    /// The bigint that is argument `index`, modulo 2^64; 0 for what is none.
    pub(crate) fn word(&self, index: usize) -> u64 {
        let (mut word, mut lossless) = (0, false);
        // SAFETY: the value is an argument of this call, and the out-pointers are to locals. What is no bigint leaves them
        // alone.
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

/// What a call gives back to JavaScript.
pub(crate) enum Answer {
    Number(f64),
    Value(sys::napi_value),
    Nothing,
}

impl Answer {
    /// A number of 64 bits, as a bigint.
    pub(crate) fn bigint(env: sys::napi_env, number: u64) -> Self {
        let mut value = ptr::null_mut();
        // SAFETY: the callers' env is that of their callback, and the out-pointer is to a local. On failure it stays null, which is
        // undefined.
        unsafe { sys::napi_create_bigint_uint64(env, number, &raw mut value) };
        Self::Value(value)
    }

    /// Numbers, as an array.
    pub(crate) fn numbers(env: sys::napi_env, numbers: &[u64]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
        let numbers: Vec<f64> = numbers.iter().map(|number| *number as f64).collect();
        Self::value(env, numbers)
    }

    /// `undefined` where JavaScript has run out of memory, or is ending.
    pub(crate) fn value(env: sys::napi_env, value: impl ToNapiValue) -> Self {
        // SAFETY: the callers' env is that of their callback.
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

/// A function of `T`: gets the state that belongs to it, and the call.
pub(crate) type Function<T> = fn(&mut T, &mut Call) -> Answer;

/// What the functions of a JavaScript object share.
pub(crate) trait State {
    /// A call has panicked: lets go of all that JavaScript must not use any more, and remembers it.
    fn panicked(&mut self);
}

/// What a JavaScript function carries: the state shared by all functions of its object, and what to do.
struct Bound<T> {
    state: Rc<RefCell<T>>,
    function: Function<T>,
}

/// An empty JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn new_object(env: sys::napi_env) -> napi::Result<sys::napi_value> {
    let mut object = ptr::null_mut();
    // SAFETY: env is live, and the out-pointer is to a local.
    let status = unsafe { sys::napi_create_object(env, &raw mut object) };
    check(status, "an object")?;
    Ok(object)
}

/// Adds functions to a JavaScript object, which share a state.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, and `object` a live object of it.
pub(crate) unsafe fn add_functions<T: State + 'static>(
    env: sys::napi_env,
    object: sys::napi_value,
    functions: &[(&CStr, Function<T>)],
    state: T,
) -> napi::Result<()> {
    let state = Rc::new(RefCell::new(state));
    for (name, function) in functions {
        let bound = Bound {
            state: Rc::clone(&state),
            function: *function,
        };
        // SAFETY: as the caller says.
        unsafe { add_function(env, object, name, bound) }?;
    }
    Ok(())
}

/// # Safety
/// As [`add_functions`].
unsafe fn add_function<T: State + 'static>(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    bound: Bound<T>,
) -> napi::Result<()> {
    let bound = Box::into_raw(Box::new(bound));
    let mut value = ptr::null_mut();
    // SAFETY: env is live; the name is NUL-terminated; the data pointer stays valid until the finalizer below has
    // run, which is when the function can no longer be called.
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
        // An environment that is ending makes none, and the state must not outlive it.
        // SAFETY: there is no function that has the box.
        drop(unsafe { Box::from_raw(bound) });
        return Err(error);
    }
    // SAFETY: value is the function just created, and `finalize` frees the very box that is handed over here.
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
        // SAFETY: the function is not part of any object, so it is never called, and nothing else frees the box.
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
    // SAFETY: `add_function` made this box, and the engine calls a finalizer once.
    drop(unsafe { Box::from_raw(data.cast::<Bound<T>>()) });
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
    // SAFETY: env and info are those of this very callback. Missing arguments are filled with undefined.
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
    // SAFETY: the data pointer is the box of `add_function`, alive as long as the function that is being called.
    let bound = unsafe { &*data.cast::<Bound<T>>() };
    // JavaScript never runs inside a call, so nothing else can hold the state; if something does, that is a defect
    // that must not become a panic in Node.
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
        // SAFETY: env is live, and the out-pointer is to a local. On failure it stays null, which is undefined.
        Answer::Number(number) => unsafe {
            sys::napi_create_double(env, number, &raw mut value);
        },
    }
    value
}

/// Turns a Node-API status into a result.
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
/// `env` is the environment that runs now, on this thread; object and value are live values of it.
pub(crate) unsafe fn set_property(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    value: sys::napi_value,
) -> napi::Result<()> {
    // SAFETY: the caller promises both values; the name is NUL-terminated.
    let status = unsafe { sys::napi_set_named_property(env, object, name.as_ptr(), value) };
    check(status, "a property")
}

/// As [`set_property`], for a number.
///
/// # Safety
/// As there.
pub(crate) unsafe fn set_number(
    env: sys::napi_env,
    object: sys::napi_value,
    name: &CStr,
    number: f64,
) -> napi::Result<()> {
    let mut value = ptr::null_mut();
    // SAFETY: env is live, and the out-pointer is to a local.
    let status = unsafe { sys::napi_create_double(env, number, &raw mut value) };
    check(status, "a number")?;
    // SAFETY: the value was just made; the caller promises the rest.
    unsafe { set_property(env, object, name, value) }
}
