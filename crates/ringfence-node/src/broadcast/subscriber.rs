//! A publisher's view of a subscriber.

use std::ffi::CStr;

use napi::{bindgen_prelude::*, sys};
use ringfence::Subscriber;

use crate::{
    convert::{Evidence, Identity},
    handle::{Handle, Object, failure},
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number, set_property},
    task,
};

struct SubscriberState {
    subscriber: Subscriber,
    handle: Handle,
}

impl State for SubscriberState {
    fn panicked(&mut self) {
        self.handle.panicked("the subscriber is unchanged");
    }
}

impl Object for SubscriberState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
fn lag(state: &mut SubscriberState, _call: &mut Call) -> Answer {
    Answer::Number(state.subscriber.lag() as f64)
}

fn evidence(state: &mut SubscriberState, call: &mut Call) -> Answer {
    Answer::value(call.env, Evidence::list(state.subscriber.evidence()))
}

/// Checks the subscriber again, on a thread, because hashing an executable may take long. The callback
/// receives a failure, or null and the identity. It is called once, asynchronously.
fn verify(state: &mut SubscriberState, call: &mut Call) -> Answer {
    let subscriber = state.subscriber.clone();
    state.handle.run_on_thread(
        call,
        ("ringfence-verify", "the thread of verify()"),
        move || subscriber.verify(),
        |env, found| {
            // SAFETY: this runs on the environment's thread, which is about to call the callback.
            task::result_arguments(env, found, |found| unsafe {
                ToNapiValue::to_napi_value(env, Identity::from(&found))
            })
        },
    )
}

fn disconnect(state: &mut SubscriberState, _call: &mut Call) -> Answer {
    state.subscriber.disconnect();
    Answer::Nothing
}

/// Functions of the JavaScript object.
const FUNCTIONS: [(&CStr, Function<SubscriberState>); 5] = [
    (c"lag", lag),
    (c"evidence", evidence),
    (c"verify", verify),
    (c"disconnect", disconnect),
    (c"failure", failure),
];

/// Creates the JavaScript object of a subscriber, with its number.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(super) unsafe fn to_object(
    env: sys::napi_env,
    subscriber: Subscriber,
    number: u32,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
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
    let state = SubscriberState {
        subscriber,
        handle: Handle::new(true),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, state) }?;
    Ok(object)
}
