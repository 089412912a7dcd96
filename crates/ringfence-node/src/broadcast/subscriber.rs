//! A subscriber, as its publisher sees it.

use std::{cell::RefCell, ffi::CStr, ptr, rc::Rc};

use napi::{bindgen_prelude::*, sys};
use ringfence::Subscriber;

use crate::{
    convert::{Evidence, Failure, Identity},
    handle::Handle,
    raw::{Answer, Call, Function, add_function, check, set_number, set_property},
    task,
};

struct Known {
    subscriber: Subscriber,
    handle: Handle,
}

impl Known {
    fn panicked(&mut self) {
        self.handle.panicked("the subscriber is left as it was");
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
fn lag(known: &mut Known, _call: &mut Call) -> Answer {
    Answer::Number(known.subscriber.lag() as f64)
}

fn evidence(known: &mut Known, call: &mut Call) -> Answer {
    let evidence: Vec<Evidence> = known.subscriber.evidence().iter().map(Evidence::from).collect();
    // SAFETY: this runs in a callback of the environment.
    match unsafe { ToNapiValue::to_napi_value(call.env, evidence) } {
        Ok(value) => Answer::Value(value),
        Err(_) => Answer::Nothing,
    }
}

/// Looks at it again, on a thread, since a content may take long to read. The callback gets a failure, or null and who it is; it is
/// called once, later.
fn verify(known: &mut Known, call: &mut Call) -> Answer {
    let subscriber = known.subscriber.clone();
    // SAFETY: this runs in a callback of the environment, whose argument the function is.
    let started = unsafe {
        task::run(
            call.env,
            call.value(0),
            "ringfence-verify",
            move || subscriber.verify(),
            |env, outcome: ringfence::Result<ringfence::Identity>| match outcome {
                Ok(found) => Ok([
                    ToNapiValue::to_napi_value(env, Null)?,
                    ToNapiValue::to_napi_value(env, Identity::from(&found))?,
                ]),
                Err(error) => Ok([
                    ToNapiValue::to_napi_value(env, Failure::from(&error))?,
                    ToNapiValue::to_napi_value(env, Null)?,
                ]),
            },
            || {},
        )
    };
    match started {
        Ok(()) => Answer::from(0),
        Err(error) => known.handle.fail(ringfence::Error::NoSpace {
            what: "looking at the subscriber".into(),
            reason: error.reason.clone(),
        }),
    }
}

fn disconnect(known: &mut Known, _call: &mut Call) -> Answer {
    known.subscriber.disconnect();
    Answer::Nothing
}

fn failure(known: &mut Known, call: &mut Call) -> Answer {
    known.handle.failure(call)
}

/// The functions that JavaScript sees.
const FUNCTIONS: [(&CStr, Function<Known>); 5] = [
    (c"lag", lag),
    (c"evidence", evidence),
    (c"verify", verify),
    (c"disconnect", disconnect),
    (c"failure", failure),
];

/// A subscriber as a JavaScript object, which knows it by this number.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(super) unsafe fn to_object(
    env: sys::napi_env,
    subscriber: Subscriber,
    number: u32,
) -> napi::Result<sys::napi_value> {
    let mut object = ptr::null_mut();
    // SAFETY: env is live.
    let status = unsafe { sys::napi_create_object(env, &raw mut object) };
    check(status, "an object")?;
    let identity = Identity::from(&subscriber.peer());
    let delivery = subscriber.delivery().to_string();
    // SAFETY: env and object are live.
    unsafe {
        set_number(env, object, c"number", number.into())?;
        set_property(env, object, c"peer", ToNapiValue::to_napi_value(env, identity)?)?;
        set_property(
            env,
            object,
            c"delivery",
            ToNapiValue::to_napi_value(env, delivery)?,
        )?;
    }
    let known = Rc::new(RefCell::new(Known {
        subscriber,
        handle: Handle::new(true),
    }));
    for (name, function) in FUNCTIONS {
        // SAFETY: env and object are live.
        unsafe { add_function(env, object, name, &known, function, Known::panicked) }?;
    }
    Ok(object)
}
