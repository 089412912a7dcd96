//! A listener as a plain JavaScript object of functions, like a channel. The core has its own thread that
//! accepts. An event makes a descriptor readable, which is watched like a channel's line.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
};

use napi::{bindgen_prelude::*, sys};
use ringfence::{Arrival, Channels};

use crate::{
    channel,
    convert::Failure,
    handle::{Handle, Object, failure, keep_alive},
    raw::{Answer, Call, Function, State, add_functions, new_object},
};

struct ListenerState {
    /// `None` once the listener is closed.
    listener: Option<ringfence::Listener>,
    handle: Handle,
}

impl State for ListenerState {
    fn panicked(&mut self) {
        self.close();
        self.handle.panicked("the listener was closed");
    }
}

impl Object for ListenerState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl ListenerState {
    fn close(&mut self) {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        if let Some(listener) = self.listener.take() {
            // TypeScript closes the channels that JavaScript has, if they are to be closed.
            listener.close(Channels::Keep);
        }
    }
}

impl Drop for ListenerState {
    fn drop(&mut self) {
        self.close();
    }
}

/// Answers with the next event: a channel, or the failure of a refused client. Answers 0 if there is none
/// now.
fn accept(state: &mut ListenerState, call: &mut Call) -> Answer {
    let Some(listener) = &state.listener else {
        return Answer::from(0);
    };
    let arrival = match listener.try_accept() {
        Ok(Some(arrival)) => arrival,
        Ok(None) => return Answer::from(0),
        Err(error) => return state.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let object = unsafe {
        match arrival {
            Arrival::Accepted(channel) => channel::to_object(call.env, channel, state.handle.use_libuv),
            Arrival::Refused(refused) => ToNapiValue::to_napi_value(call.env, Failure::from(&refused)),
            _ => return Answer::from(0),
        }
    };
    state.handle.object_answer(object, "a channel")
}

/// Argument: 1 to let new clients wait, 0 to accept them.
fn pause(state: &mut ListenerState, call: &mut Call) -> Answer {
    match &state.listener {
        Some(listener) if call.size(0) != 0 => listener.pause(),
        Some(listener) => listener.resume(),
        None => {}
    }
    Answer::Nothing
}

fn watch(state: &mut ListenerState, call: &mut Call) -> Answer {
    let Some(listener) = &state.listener else {
        return Answer::from(0);
    };
    let events = listener.as_fd().as_raw_fd();
    // SAFETY: the descriptor lives as long as the listener, and the poll handle is stopped before that is
    // dropped.
    unsafe { state.handle.watch(call, events) }
}

fn close(state: &mut ListenerState, _call: &mut Call) -> Answer {
    state.close();
    Answer::Nothing
}

/// Functions of the JavaScript object.
const FUNCTIONS: [(&CStr, Function<ListenerState>); 6] = [
    (c"accept", accept),
    (c"pause", pause),
    (c"watch", watch),
    (c"keepAlive", keep_alive),
    (c"close", close),
    (c"failure", failure),
];

/// Creates the JavaScript object of a listener.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    listener: ringfence::Listener,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    let state = ListenerState {
        listener: Some(listener),
        handle: Handle::new(use_libuv),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, state) }?;
    Ok(object)
}
